"""Tracks with depth or poses known beforehand, on rendered footage: what each kind of knowledge must give.

The depth is the true one plus errors of a stated size: what is proven is what is made of it, not a network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.annotate.depth_clip import DepthClip, DepthWriter, finish_depth
from longtake.annotate.given import GivenPoses
from longtake.render.room import room_depth

from .test_track import HEIGHT, ROOM, WIDTH, clip, focal_error, posed, position_error, rotation_error_deg, track_of

FRAMES = 30


def depth_clip(
    folder: Path,
    cameras: NDArray,
    k: NDArray,
    *,
    source: str = "pi3x+moge2",
    bend: float = 0.03,
    noise: float = 0.01,
    wander: float = 0.0,
    focal: float | None = 1.02,
    unit: float = 1.0,
    **facts,
) -> DepthClip:
    """The room's depth with a smooth lasting error, pixel noise, and a scale of each frame that wanders at random.

    Args:
        focal: what the focal lengths are wrong by; None: nothing is said of them.
        unit: metres of the depth's unit.
    """
    rng = np.random.default_rng(3)
    field = bend * cv2.resize(
        rng.normal(size=(3, 4)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    path = folder / f"{source}.zip"
    with DepthWriter(path) as writer:
        for i, (camera, row) in enumerate(zip(cameras, k, strict=True)):
            error = field + noise * rng.normal(size=field.shape) + wander * rng.normal()
            writer.add(i, room_depth(ROOM, camera, row, WIDTH, HEIGHT) * np.exp(error) / unit, np.ones(field.shape))
    moved = cameras.copy()
    moved[:, :3, 3] = (moved[:, :3, 3] + 0.01 * rng.normal(size=(len(cameras), 3))) / unit
    known = {
        "factor": np.ones(len(cameras)),
        "world_from_cam": moved if source.startswith("pi3x") else None,
        "focal_px": None if focal is None else focal * k[:, :2],
        "metric": True,
        "scale": None,
        "relative_sigma": 0.05,
    }
    size = {"width": WIDTH, "height": HEIGHT, "crop": (0, 0, WIDTH, HEIGHT)}
    found = DepthClip(path=path, frame_index=np.arange(len(cameras)), source=source, **size, **known | facts)
    return finish_depth(found)


def some(clip: DepthClip, every: int) -> DepthClip:
    """Every so many frames of it."""
    focal = None if clip.focal_px is None else clip.focal_px[::every]
    world_from_cam = None if clip.world_from_cam is None else clip.world_from_cam[::every]
    return replace(
        clip,
        frame_index=clip.frame_index[::every],
        factor=clip.factor[::every],
        focal_px=focal,
        world_from_cam=world_from_cam,
    )


def metres(track, cameras: NDArray) -> float:
    """Length of the way from the first to the last frame, as a share of the true one."""
    way = np.linalg.norm(track.world_from_cam[-1, :3, 3] - track.world_from_cam[0, :3, 3])
    return float(way / np.linalg.norm(cameras[-1, :3, 3] - cameras[0, :3, 3]))


@pytest.mark.parametrize(("source", "every"), [("pi3x+moge2", 1), ("moge2", 7), ("given", 1), ("given", 5)])
def test_depth_in_metres_makes_the_track_metric(tmp_path, source, every):
    path, cameras, k = clip(tmp_path, "walk", FRAMES, extent=0.3)
    depth = some(depth_clip(tmp_path, cameras, k, source=source), every)
    track = posed(track_of(path, depth=depth))
    assert (track.scale_kind, track.pose_source) == ("metric", "pi3x" if source == "pi3x+moge2" else "classical")
    assert track.pose_valid.all() and position_error(track, cameras) < 0.01
    assert abs(metres(track, cameras) - 1) < 0.04
    assert track.focal_status == "estimated" and focal_error(track, k) < 0.02
    assert track.scale_raw is not None and np.isfinite(track.scale_raw).sum() >= 0.9 * FRAMES / every
    assert 0.9 < track.stats["scale_of_frames"] < 1.1 and track.stats["scale_dispersion"] < 0.1


def test_depth_without_a_unit_leaves_the_track_relative(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", FRAMES, extent=0.3)
    track = posed(track_of(path, depth=depth_clip(tmp_path, cameras, k, source="pi3x", unit=3.0, metric=False)))
    assert (track.scale_kind, track.pose_source) == ("relative", "pi3x")
    assert position_error(track, cameras) < 0.01 and "unit" in track.stats and track.scale_raw is None


def test_a_few_centimetres_are_measured_although_they_hardly_show(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", FRAMES, extent=0.02, shake=0.0)
    track = posed(track_of(path, depth=depth_clip(tmp_path, cameras, k)))
    assert track.scale_kind == "metric" and track.pose_valid.all()
    assert abs(metres(track, cameras) - 1) < 0.15 and rotation_error_deg(track, cameras) < 0.2
    assert focal_error(track, k) < 0.04


def test_a_dolly_zoom_is_neither_a_dolly_nor_a_zoom(tmp_path):
    path, cameras, k = clip(tmp_path, "dolly_zoom", 60)
    track = posed(track_of(path, depth=depth_clip(tmp_path, cameras, k)))
    assert track.intrinsics_mode == "per_frame" and focal_error(track, k) < 0.05
    assert position_error(track, cameras) < 0.02 and abs(metres(track, cameras) - 1) < 0.05


def test_exact_depth_tells_zoom_from_dolly_but_not_the_focal_length(tmp_path):
    path, cameras, k = clip(tmp_path, "dolly_zoom", 60)
    exact = {"source": "given", "focal": None, "bend": 0.0, "relative_sigma": 0.01}
    track = posed(track_of(path, depth=depth_clip(tmp_path, cameras, k, **exact)))
    zoom, true_zoom = track.intrinsics[-1, 0] / track.intrinsics[0, 0], k[-1, 0] / k[0, 0]
    assert track.intrinsics_mode == "per_frame" and abs(zoom / true_zoom - 1) < 0.03
    assert position_error(track, cameras) < 0.02 and abs(metres(track, cameras) - 1) < 0.03
    assert track.focal_status == "undetermined"  # along the axis, a wider lens and a wider scene look the same


def test_a_network_says_the_focal_length_of_a_camera_that_stands_still(tmp_path):
    path, cameras, k = clip(tmp_path, "static", 20)
    depth = replace(depth_clip(tmp_path, cameras, k), flags=("shorter_depth_windows",))
    track = posed(track_of(path, depth=depth))
    assert "shorter_depth_windows" in track.flags
    assert (track.motion_class, track.focal_status, track.scale_kind) == ("static", "predicted", "metric")
    assert focal_error(track, k) == pytest.approx(0.02, abs=1e-3) and "focal_undetermined" in track.flags


def test_a_turn_on_the_spot_stays_one(tmp_path):
    path, cameras, k = clip(tmp_path, "pan", FRAMES)
    track = posed(track_of(path, depth=depth_clip(tmp_path, cameras, k)))
    assert (track.motion_class, track.scale_kind) == ("rotation", "metric")
    assert not track.world_from_cam[:, :3, 3].any() and rotation_error_deg(track, cameras) < 0.1


def test_cameras_that_do_not_fit_are_not_believed(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", FRAMES, extent=0.3)
    found = depth_clip(tmp_path, cameras, k)
    assert found.world_from_cam is not None
    wrong = replace(found, world_from_cam=found.world_from_cam[::-1])
    track = posed(track_of(path, depth=wrong))
    assert position_error(track, cameras) < 0.01 and abs(metres(track, cameras) - 1) < 0.04


@pytest.mark.parametrize("source", ["pi3x+moge2", "moge2"])
def test_given_poses_are_kept_and_made_metric(tmp_path, source):
    path, cameras, k = clip(tmp_path, "walk", FRAMES, extent=0.3)
    given = cameras.copy()
    given[:, :3, 3] /= 2.5
    poses = GivenPoses(world_from_cam=given, metric=False)
    track = posed(track_of(path, depth=depth_clip(tmp_path, cameras, k, source=source, wander=0.02), poses=poses))
    assert (track.scale_kind, track.pose_source) == ("metric", "given")
    assert rotation_error_deg(track, cameras) < 1e-4 and position_error(track, cameras) < 1e-6
    assert abs(metres(track, cameras) - 1) < 0.04 and focal_error(track, k) < 0.01
    assert ("scale_of_structure" in track.stats) == (source == "pi3x+moge2")


@pytest.mark.parametrize("metric", [False, True])
def test_given_poses_alone_keep_their_unit(tmp_path, metric):
    path, cameras, k = clip(tmp_path, "walk", FRAMES, extent=0.3)
    given = cameras.copy()
    given[3] = np.nan
    track = posed(track_of(path, poses=GivenPoses(world_from_cam=given, metric=metric)))
    assert track.scale_kind == ("metric" if metric else "relative")
    assert metres(track, cameras) == pytest.approx(1, abs=1e-9) and focal_error(track, k) < 0.01
    assert np.flatnonzero(~track.pose_valid).tolist() == [3] and "frames_without_pose" in track.flags
    assert np.nanmedian(track.reproj_rmse_px) < 0.5


def test_given_poses_without_parallax_say_nothing_of_the_focal_length(tmp_path):
    path, cameras, _ = clip(tmp_path, "pan", FRAMES, extent=0.5)
    track = posed(track_of(path, poses=GivenPoses(world_from_cam=cameras, metric=True)))
    assert track.focal_status == "undetermined" and "no_parallax" in track.flags
    assert rotation_error_deg(track, cameras) < 1e-4
