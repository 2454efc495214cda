"""A shot's depth from pictures to the file, by functions that know the geometry in place of networks.

As in `test_depth`: what is proven is all that lies around a network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from longtake.annotate.depth import DepthConfig, OutOfDeviceMemory, SingleGeometry, WindowGeometry, shrunk
from longtake.annotate.depth_clip import DepthClip, open_depth
from longtake.annotate.loops import LoopConfig
from longtake.annotate.scale import ScaleConfig
from longtake.annotate.shot_depth import Backends, DepthStageConfig, Known, estimate_depth
from longtake.annotate.video import pictures, probe
from longtake.geometry import invert_pose
from longtake.records import BadMedia, Rejected, Shot, VideoInfo
from longtake.render.room import Room, camera_path, render_clip, room_depth

from ..videos import number_of, numbered, write
from .test_depth import FOCAL, HEIGHT, WIDTH, depth_map, drifted, picture
from .test_depth import Known as Windows
from .test_depth import path as walk

FRAMES, METRES = 30, 1.7  # one unit of the walk is so many metres
CONFIG = DepthStageConfig(pixel_limit=1200, window=DepthConfig(length=8, overlap=3), scale=ScaleConfig(min_pixels=50))


@pytest.fixture(scope="module")
def info(tmp_path_factory) -> VideoInfo:
    """A video of numbered frames, twice as large as the maps."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    return probe(write(path, numbered(FRAMES, 2 * WIDTH, 2 * HEIGHT), fps=10))


def shot(start: int = 0, stop: int = FRAMES, crop=(0, 0, 2 * WIDTH, 2 * HEIGHT)) -> Shot:
    return Shot(index=0, start=start, stop=stop, crop=crop, overlay=None, boundary="start")


def windows(truth: Windows, *, most: int = 99):
    """Pi3X's place: the truth of the frames whose numbers are painted; no memory for more than `most`."""

    def see(pictures):
        assert pictures.shape[1:] == (HEIGHT, WIDTH, 3)
        if len(pictures) > most:
            raise OutOfDeviceMemory("full")
        return truth(np.stack([picture(number_of(p[..., 1])) for p in pictures]))

    return see


def singles(*, metres: float = METRES, blind=(), most: int = 99, noise: float = 0.05, seen: list | None = None):
    """MoGe-2's place: the truth in metres, each frame off by a factor of its own; `blind` ones see nothing."""

    def for_maps_of(size, fov_x_deg):
        assert size == (WIDTH, HEIGHT)

        def see(pictures):
            if len(pictures) > most:
                raise OutOfDeviceMemory("full")
            frames = [number_of(p[..., 1]) for p in pictures]
            if seen is not None:
                seen.append((frames, fov_x_deg))
            off = [np.exp(noise * np.random.default_rng(f).standard_normal()) for f in frames]
            depth = np.stack([depth_map(f) * metres * e for f, e in zip(frames, off, strict=True)])
            depth[np.isin(frames, list(blind))] = np.inf
            focal = np.full(len(frames), FOCAL / WIDTH)
            return SingleGeometry(depth=depth.astype(np.float32), focal_widths=focal)

        return see

    return for_maps_of


def estimated(info, backends: Backends, path: Path, *, config=CONFIG, of: Shot | None = None, **asked) -> DepthClip:
    clip = estimate_depth(info, of or shot(), config, backends, path, **asked)
    assert isinstance(clip, DepthClip), clip
    again = open_depth(path)
    np.testing.assert_array_equal(again.factor, clip.factor)
    return clip


def wrong_by(clip: DepthClip, unit: float) -> float:
    """The largest relative error of a frame's median depth, for lengths in `unit`s of the walk."""
    ratios = [
        np.nanmedian(clip.read(row)[0] / depth_map(frame)) / unit for row, frame in enumerate(clip.frame_index.tolist())
    ]
    return float(np.abs(np.array(ratios) - 1).max())


def off_the_walk(clip: DepthClip, unit: float) -> float:
    """The largest error of a camera's place, in the walk's units."""
    assert clip.world_from_cam is not None
    truth = walk(FRAMES)[clip.frame_index]
    want = (invert_pose(truth[0]) @ truth)[:, :3, 3]
    return float(np.linalg.norm(clip.world_from_cam[:, :3, 3] / unit - want, axis=1).max())


# ---- what comes out ----------------------------------------------------------------------------------------------


def test_windows_alone_give_cameras_and_depth_in_a_unit_of_their_own(info, tmp_path):
    truth, calls = Windows(walk(FRAMES)), []
    clip = estimated(info, Backends(window=windows(truth)), tmp_path / "d.zip", progress=lambda *c: calls.append(c))
    assert (clip.source, clip.metric, clip.scale, clip.flags) == ("pi3x", False, None, ())
    assert clip.frame_index.tolist() == list(range(FRAMES)) and (clip.width, clip.height) == (WIDTH, HEIGHT)
    assert wrong_by(clip, truth.scales[0]) < 1e-3 and off_the_walk(clip, truth.scales[0]) < 1e-3
    assert clip.focal_px == pytest.approx(np.full((FRAMES, 2), 2 * FOCAL), rel=1e-3)
    assert calls[-1] == (FRAMES, FRAMES)


def test_both_give_metres(info, tmp_path):
    truth, calls = Windows(walk(FRAMES)), []
    backends = Backends(window=windows(truth), single=singles(blind=(0, 7)))
    clip = estimated(info, backends, tmp_path / "d.zip", progress=lambda *c: calls.append(c))
    assert clip.source == "pi3x+moge2" and clip.metric and clip.scale is not None
    assert np.flatnonzero(~clip.scale.defined).tolist() == [0, 7]
    # 28 independent factors of 5 %: 1 % remains
    assert wrong_by(clip, METRES) < 0.03 and off_the_walk(clip, METRES) < 0.15
    assert calls[-1] == (2 * FRAMES, 2 * FRAMES) and sorted(calls) == calls


def test_where_the_scale_drifts_cameras_are_brought_back_with_the_depth(info, tmp_path):
    drift = 0.02  # e^0.6 over the clip
    truth = Windows(walk(FRAMES), drift=drift)
    scale = ScaleConfig(min_pixels=50, memory_s=0.5)
    config = replace(CONFIG, scale=scale)
    backends = Backends(window=windows(truth), single=singles(noise=0.005))
    clip = estimated(info, backends, tmp_path / "d.zip", config=config)
    assert clip.scale is not None and clip.scale.drift == "drifting"
    assert wrong_by(clip, METRES) < 0.03 and off_the_walk(clip, METRES) < 0.1
    bare = estimated(info, Backends(window=windows(truth)), tmp_path / "e.zip")
    assert wrong_by(bare, truth.scales[0]) > 0.5


def test_a_place_seen_again_takes_the_drift_out(tmp_path):
    frames, width, height = 90, 320, 240
    cameras, k = camera_path("loop", frames, width=width, height=height)
    room = Room(0)
    film = probe(write(tmp_path / "loop.mp4", render_clip(room, cameras, k, width, height), options={"crf": "14"}))
    of = Shot(index=0, start=0, stop=frames, crop=(0, 0, width, height), overlay=None, boundary="start")
    config = DepthStageConfig(pixel_limit=20_000, window=DepthConfig(length=12, overlap=4), loop_every_s=0.32)
    numbers: dict[int, int] = {}
    for index, small in enumerate(shrunk((p for _, p in pictures(film)), pixel_limit=config.pixel_limit)):
        numbers[crc32(small.tobytes())] = index

    def see(seen):
        rows = [numbers[crc32(p.tobytes())] for p in seen]
        h, w = seen.shape[1:3]
        fx, fy, cx, cy = k[0] * [w / width, h / height, w / width, h / height]
        v, u = np.mgrid[:h, :w]
        rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], -1)
        depth = np.stack([room_depth(room, cameras[i], np.array([fx, fy, cx, cy]), w, h) for i in rows])
        near = np.ptp(rows) < 2 * len(rows)  # what drifts is the walk from frame to frame
        growth = np.exp(0.004 * np.array(rows)) if near else np.ones(len(rows))
        places = drifted(cameras, 0.004)[rows] if near else cameras[rows]
        points = rays * depth[..., None] * growth[:, None, None, None]
        return WindowGeometry(
            cam_points=points.astype(np.float32),
            world_from_cam=places,
            confidence=np.full(depth.shape, 0.9, np.float32),
        )

    def gap(config: DepthStageConfig) -> float:
        clip = estimated(film, Backends(window=see), tmp_path / "d.zip", config=config, of=of)
        assert clip.world_from_cam is not None
        ends = [
            np.nanmedian(clip.read(row)[0]) / np.median(room_depth(room, cameras[row], k[0], width, height))
            for row in (0, frames - 1)
        ]
        return float(np.log(ends[1] / ends[0]))

    with_loops = gap(config)
    without = gap(replace(config, loops=LoopConfig(min_similarity=1.1)))
    assert without == pytest.approx(0.004 * (frames - 1), rel=0.1)
    assert abs(with_loops) < 0.3 * without


def test_single_frames_alone_are_metric_and_few(info, tmp_path):
    seen: list = []
    config = replace(CONFIG, single_every_s=0.45, batch=2)
    backends = Backends(single=singles(noise=0, seen=seen))
    clip = estimated(info, backends, tmp_path / "d.zip", config=config, of=shot(3, 20), intrinsics=(42.0, 42.0, 0, 0))
    assert clip.frame_index.tolist() == [3, 8, 13, 18]
    assert (clip.source, clip.metric, clip.world_from_cam, clip.scale) == ("moge2", True, None, None)
    assert wrong_by(clip, METRES) < 1e-3
    assert clip.focal_px == pytest.approx(np.full((4, 2), 2 * FOCAL))
    assert [frames for frames, _ in seen] == [[3, 8], [13, 18]]
    assert seen[0][1] == pytest.approx(90)  # the known camera's field of view: 2 atan(84 / (2 x 42))


def test_given_depth_is_kept_and_made_metric(info, tmp_path):
    maps = np.stack([depth_map(f) for f in range(FRAMES)]).astype(np.float32)
    maps[4] = np.nan
    np.save(tmp_path / "maps.npy", maps)
    asked = {"path": tmp_path / "d.zip", "known": Known(path=tmp_path / "maps.npy", metric=False)}
    clip = estimated(info, Backends(), **asked)
    assert (clip.source, clip.metric) == ("given", False) and clip.relative_sigma == 0.01
    depth, confidence = clip.read(4)
    assert np.isnan(depth).all() and not confidence.any()
    clip = estimated(info, Backends(single=singles()), **asked)
    assert (clip.source, clip.metric) == ("given+moge2", True) and clip.world_from_cam is None
    assert clip.scale is not None and np.flatnonzero(~clip.scale.defined).tolist() == [4]
    keep = np.arange(FRAMES) != 4
    ratio = np.array([np.nanmedian(clip.read(r)[0] / depth_map(r)) for r in np.flatnonzero(keep).tolist()])
    assert np.abs(ratio / METRES - 1).max() < 0.03
    metric = estimated(info, Backends(), tmp_path / "e.zip", known=Known(path=tmp_path / "maps.npy", metric=True))
    assert metric.metric and metric.read(3)[0] == pytest.approx(maps[3], rel=3e-4)


def test_given_depth_is_cut_to_the_shot(info, tmp_path):
    np.save(tmp_path / "maps.npy", np.stack([depth_map(f) for f in range(FRAMES)]).astype(np.float32))
    of = shot(5, 9, crop=(8, 4, 40, 20))
    known = Known(path=tmp_path / "maps.npy", metric=True)
    clip = estimated(info, Backends(), tmp_path / "d.zip", of=of, known=known)
    assert clip.frame_index.tolist() == [5, 6, 7, 8] and clip.crop == (8, 4, 40, 20)
    assert clip.read(1)[0] == pytest.approx(depth_map(6)[2:12, 4:24], rel=3e-4)


# ---- memory ------------------------------------------------------------------------------------------------------


def test_windows_shrink_to_the_memory_there_is(info, tmp_path):
    truth = Windows(walk(FRAMES))
    clip = estimated(info, Backends(window=windows(truth), longest=lambda w, h: 5), tmp_path / "d.zip")
    assert max(map(len, truth.requests)) == 5 and clip.flags == ("shorter_depth_windows",)
    truth = Windows(walk(FRAMES))
    clip = estimated(info, Backends(window=windows(truth, most=3)), tmp_path / "d.zip")
    assert max(map(len, truth.requests)) == 2 and clip.flags == ("shorter_depth_windows",)  # 8, 4, 2
    assert clip.frame_index.tolist() == list(range(FRAMES)) and wrong_by(clip, truth.scales[0]) < 1e-3


def test_batches_shrink_without_losing_frames(info, tmp_path):
    seen: list = []
    config = replace(CONFIG, single_every_s=0.0, batch=8)
    clip = estimated(info, Backends(single=singles(most=2, seen=seen)), tmp_path / "d.zip", config=config)
    assert clip.frame_index.tolist() == list(range(FRAMES)) and max(len(f) for f, _ in seen) == 2


def test_no_memory_at_all_is_a_refusal(info, tmp_path):
    def none(width, height):
        raise OutOfDeviceMemory("Pi3X needs more")

    truth = Windows(walk(FRAMES))
    for backends in (
        Backends(window=windows(truth, most=1)),
        Backends(window=windows(truth), longest=none),
        Backends(single=singles(most=0)),
        Backends(window=windows(truth), single=singles(most=0)),
    ):
        refused = estimate_depth(info, shot(), CONFIG, backends, tmp_path / "d.zip")
        assert isinstance(refused, Rejected) and refused.reason == "out_of_memory" and info.path in refused.message


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "single, reason",
    [
        (singles(blind=range(FRAMES)), "no_scale"),
        (singles(metres=30 * METRES), "metric_disagreement"),
        (singles(metres=-1.0), "depth_negative"),
    ],
)
def test_two_networks_that_cannot_be_fused(info, tmp_path, single, reason):
    truth = Windows(walk(FRAMES))
    refused = estimate_depth(info, shot(), CONFIG, Backends(window=windows(truth), single=single), tmp_path / "d.zip")
    assert isinstance(refused, Rejected) and (refused.stage in ("depth", "scale")) and refused.reason == reason
    assert info.path in refused.message and "frames 0 to 29" in refused.message


def test_refusals_of_one_source(info, tmp_path):
    def lost(pictures):
        found = windows(Windows(walk(FRAMES)))(pictures)
        return replace(found, world_from_cam=np.full_like(found.world_from_cam, np.nan))

    refused = estimate_depth(info, shot(), CONFIG, Backends(window=lost), tmp_path / "d.zip")
    assert isinstance(refused, Rejected) and refused.reason == "pose_not_finite"
    refused = estimate_depth(info, shot(), CONFIG, Backends(single=singles(blind=range(FRAMES))), tmp_path / "d.zip")
    assert isinstance(refused, Rejected) and refused.reason == "no_depth"
    np.save(tmp_path / "maps.npy", np.zeros((FRAMES, HEIGHT, WIDTH), np.float32))
    known = Known(path=tmp_path / "maps.npy", metric=True)
    refused = estimate_depth(info, shot(), CONFIG, Backends(), tmp_path / "d.zip", known=known)
    assert isinstance(refused, Rejected) and refused.reason == "no_depth"
    with pytest.raises(BadMedia, match="has 29 maps"):
        np.save(tmp_path / "maps.npy", np.ones((FRAMES - 1, HEIGHT, WIDTH), np.float32))
        estimate_depth(info, shot(), CONFIG, Backends(), tmp_path / "d.zip", known=known)
