"""Clip quality: each number against a picture or a path of which it is known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.annotate.quality import QualityConfig, blur, measure, measure_pictures, measure_track
from longtake.annotate.video import VideoConfig, encode_rgb, probe
from longtake.geometry import pose, rotation_from_vector
from longtake.records import Frame, Shot, Track, VideoInfo

CONFIG = QualityConfig()
FPS = 24


def picture(seed: int = 0, width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """A sharp random picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    out = np.zeros((height, width))
    for cell in (2, 4, 8, 16, 32):
        noise = rng.normal(size=(height // cell + 1, width // cell + 1))
        out += np.kron(noise, np.ones((cell, cell)))[:height, :width]
    return np.clip(128 + 28 * out, 0, 255).astype(np.uint8)


def video(width: int, height: int, num_frames: int, color_range: str = "pc") -> VideoInfo:
    return VideoInfo(
        path="/nowhere.mp4", is_images=False, image_paths=(), sha256="0" * 64, num_bytes=1, container="mov",
        codec="h264", pix_fmt="yuv420p", coded_width=width, coded_height=height, width=width, height=height,
        rotation_deg=0, sar_num=1, sar_den=1, color_range=color_range, interlaced=False, is_vfr=False,
        tagged_fps=float(FPS), pts_ns=np.arange(num_frames) * 10**9 // FPS,
    )  # fmt: skip


def pictures(
    grays: Sequence[NDArray[np.uint8]],
    *,
    full_size: tuple[int, int] | None = None,
    thumb: NDArray[np.uint8] | None = None,
    photographs: bool = False,
    color_range: str = "pc",
) -> dict[str, NDArray[np.float64]]:
    """What `measure_pictures` says of these luma pictures, decoded from a video of `full_size`."""
    width, height = full_size or (grays[0].shape[1], grays[0].shape[0])
    info = video(width, height, len(grays), color_range)
    shot = Shot(
        index=0, start=0, stop=len(grays), crop=(0, 0, width, height), overlay=None, boundary="start",
        photographs=photographs,
    )  # fmt: skip
    frames = (
        Frame(index=i, pts_ns=int(info.pts_ns[i]), gray=g, thumb=np.dstack([g] * 3) if thumb is None else thumb)
        for i, g in enumerate(grays)
    )
    return measure_pictures(frames, info, shot, CONFIG)


def test_blur_rises_as_a_picture_loses_focus() -> None:
    scores = [blur(np.asarray(cv2.GaussianBlur(picture(), (0, 0), s), np.uint8)) for s in (0.3, 1, 2, 4)]
    assert scores == sorted(scores) and scores[0] < 0.3 and scores[-1] > 0.7
    assert np.isnan(blur(np.full((48, 64), 16, np.uint8)))  # nothing to judge by


def test_blur_in_one_direction_counts() -> None:
    smeared = cv2.blur(picture(), (15, 1))
    assert blur(np.asarray(smeared, np.uint8)) > blur(picture()) + 0.3


def test_vmaf_motion_is_ffmpegs(tmp_path: Path) -> None:
    if "vmafmotion" not in av.filter.filters_available:
        pytest.skip("this PyAV's FFmpeg has no vmafmotion filter")
    big = picture(3, 400, 300)
    grays = [np.ascontiguousarray(big[3 * i : 3 * i + 240, 5 * i : 5 * i + 320]) for i in range(6)]
    log = tmp_path / "motion.txt"
    graph = av.filter.Graph()
    source = graph.add_buffer(width=320, height=240, format=av.VideoFormat("gray"), time_base=Fraction(1, FPS))
    motion, sink = graph.add("vmafmotion", f"stats_file={log}"), graph.add("buffersink")
    source.link_to(motion)
    motion.link_to(sink)
    graph.configure()
    for i, gray in enumerate(grays):
        frame = av.VideoFrame.from_ndarray(gray, format="gray")
        frame.pts, frame.time_base = i, Fraction(1, FPS)
        source.push(frame)
        sink.pull()
    del graph, source, motion, sink  # closes the file
    theirs = [float(line.split("motion:")[1].split()[0]) for line in log.read_text().splitlines()]
    ours = pictures(grays)["vmaf_motion"]
    assert np.isnan(ours[0]) and theirs[0] == 0
    assert len(theirs) == 6 and min(theirs[1:]) > 5
    assert ours[1:] == pytest.approx(theirs[1:], rel=0.01)
    tv = pictures(grays, color_range="tv")["vmaf_motion"]
    assert tv[1:] == pytest.approx(ours[1:] * 219 / 255)


def test_flow_is_in_pixels_of_the_whole_picture() -> None:
    big = np.asarray(cv2.GaussianBlur(picture(5, 1000, 500), (0, 0), 2), np.uint8)
    for step in (1, 9):  # 9: a quarter of the picture's width in half a second
        grays = [np.ascontiguousarray(big[:360, i * step : i * step + 480]) for i in range(FPS + 1)]
        flow = pictures(grays, full_size=(960, 720))["flow_px"]  # decoded at half size
        assert np.flatnonzero(np.isfinite(flow)).tolist() == [12, 24]
        assert flow[[12, 24]] == pytest.approx(12 * 2 * step, rel=0.08)


def test_frames_that_repeat_are_found_and_moving_ones_are_not() -> None:
    grays = [picture(i) for i in range(4)]
    noisy = np.clip(grays[1].astype(int) + np.random.default_rng(0).integers(-1, 2, grays[1].shape), 0, 255)
    found = pictures([grays[0], grays[1], grays[1], noisy.astype(np.uint8), grays[2], np.roll(grays[2], 1, 1)])
    assert found["duplicate"][1:].tolist() == [0, 1, 1, 0, 0]


def test_luma_and_saturation_and_what_photographs_do_not_have() -> None:
    gray, thumb = np.full((240, 320), 200, np.uint8), np.full((120, 160, 3), (200, 100, 100), np.uint8)
    stills = pictures([gray, picture(0)], thumb=thumb, photographs=True)
    assert stills["luma"][0] == 200
    assert stills["saturation"] == pytest.approx([127.5, 127.5], abs=1)  # (200 - 100) / 200 of 255
    assert all(np.isnan(stills[name]).all() for name in ("vmaf_motion", "flow_px", "duplicate"))


def test_a_video_file_from_end_to_end(tmp_path: Path) -> None:
    """Black bars, a repeated frame and a shot that does not begin the file."""
    big = np.dstack([picture(7, 800, 500)] * 3)
    images = []
    for i in range(36):
        image = np.zeros((240, 320, 3), np.uint8)
        j = i - (i == 30)
        image[30:210] = big[2 * j : 2 * j + 180, 4 * j : 4 * j + 320]
        images.append(image)
    encode_rgb(tmp_path / "film.mp4", images, FPS, crf=8)
    info = probe(tmp_path / "film.mp4")
    shot = Shot(index=1, start=6, stop=36, crop=(0, 30, 320, 180), overlay=None, boundary="cut")
    seen = []
    found = measure(
        info, shot, track(straight(30)), CONFIG, video_config=VideoConfig(), progress=lambda *a: seen.append(a)
    )
    assert seen[-1] == (30, 30)
    assert {len(v) for v in found.frames.values()} == {30}
    assert np.flatnonzero(found.frames["duplicate"] == 1).tolist() == [24]
    assert found.clip["duplicate_ratio"] == pytest.approx(1 / 29)
    assert found.clip["luma"] == pytest.approx(np.mean([image[30:210] for image in images[6:]]), abs=2)
    assert found.clip["saturation"] < 3  # gray
    assert found.clip["flow_px"] == pytest.approx(12 * np.hypot(4, 2), rel=0.1)
    assert found.clip["trans_total_m"] == pytest.approx(29 / FPS * 1.2)
    without = measure(info, shot, None, CONFIG, video_config=VideoConfig())
    assert without.clip.keys() == found.clip.keys() - {
        "trans_total_m", "rot_total_deg", "max_speed_m_s", "max_rot_deg_s", "jump_count"
    }  # fmt: skip


def track(
    centres: NDArray, yaw_deg: NDArray | float = 0.0, pts_ns: NDArray | None = None, lost: Sequence[int] = ()
) -> Track:
    n = len(centres)
    turn = np.zeros((n, 3))
    turn[:, 1] = np.radians(np.broadcast_to(yaw_deg, n))
    world_from_cam = pose(rotation_from_vector(turn), np.asarray(centres, float))
    valid = ~np.isin(np.arange(n), lost)
    world_from_cam[~valid] = np.nan
    nothing = np.full(n, np.nan)
    return Track(
        pts_ns=np.arange(n) * 10**9 // FPS if pts_ns is None else pts_ns, width=640, height=480,
        world_from_cam=world_from_cam, pose_valid=valid, intrinsics=np.tile([500.0, 500, 319.5, 239.5], (n, 1)),
        intrinsics_mode="static", focal_status="estimated", focal_sigma=nothing, distortion_model="none", distortion=(),
        motion_class="general", flags=(), scale_kind="relative", pose_source="test", is_keyframe=valid,
        reproj_rmse_px=nothing, sampson_px=nothing, num_tracked=np.zeros(n, np.int32), inlier_ratio=nothing,
        coverage=nothing, dyn_ratio=nothing, step_px=nothing,
    )  # fmt: skip


def straight(n: int, metres_per_s: float = 1.2) -> NDArray[np.float64]:
    return np.outer(np.arange(n) / FPS * metres_per_s, [1.0, 0, 0])


def test_path_lengths_and_speeds() -> None:
    found = measure_track(track(straight(49), yaw_deg=np.arange(49) * 0.5), CONFIG)
    assert found["trans_total_m"] == pytest.approx(2.4)
    assert found["rot_total_deg"] == pytest.approx(24)
    assert found["max_speed_m_s"] == pytest.approx(1.2, rel=1e-6)
    assert found["max_rot_deg_s"] == pytest.approx(12, rel=1e-6)
    assert found["jump_count"] == 0


def test_speed_is_by_true_time() -> None:
    """Ten frames dropped, and said so by the time stamps: nothing jumps. Without the stamps it is a jump."""
    kept = np.r_[0:20, 30:60]
    assert measure_track(track(straight(60)[kept], pts_ns=kept * 10**9 // FPS), CONFIG)["jump_count"] == 0
    hidden = measure_track(track(straight(60)[kept]), CONFIG)
    assert hidden["jump_count"] == 1
    assert hidden["max_speed_m_s"] == pytest.approx(1.2, rel=1e-6)  # one wrong step does not set it


def test_jumps_of_position_and_of_direction_are_counted() -> None:
    rng = np.random.default_rng(1)
    path = straight(100) + rng.normal(0, 0.004, (100, 3))  # 8 % of a step of noise
    assert measure_track(track(path), CONFIG)["jump_count"] == 0
    path[40:] += [0, 0.8, 0]
    path[70:] -= [0, 0.8, 0]
    assert measure_track(track(path), CONFIG)["jump_count"] == 2
    assert measure_track(track(straight(50), yaw_deg=np.where(np.arange(50) < 25, 0, 20)), CONFIG)["jump_count"] == 1


def test_a_start_from_rest_a_stop_and_repeated_frames_are_no_jumps() -> None:
    rest = np.clip(np.arange(60) - 20, 0, 20)[:, None] / FPS * [1.0, 0, 0]
    assert measure_track(track(rest), CONFIG)["jump_count"] == 0
    doubled = straight(60)[np.arange(60) - (np.arange(60) % 5 == 4)]
    assert measure_track(track(doubled), CONFIG)["jump_count"] == 0
    assert measure_track(track(np.zeros((30, 3))), CONFIG)["jump_count"] == 0


def test_what_the_track_does_not_say_stays_absent() -> None:
    assert measure_track(track(straight(5), lost=[0, 1, 2, 3]), CONFIG) == {}
    gap = measure_track(track(straight(49), lost=range(10, 20)), CONFIG)
    assert gap["trans_total_m"] == pytest.approx(2.4) and gap["jump_count"] == 0
    stills = measure_track(track(straight(9)), CONFIG, photographs=True)
    assert stills.keys() == {"trans_total_m", "rot_total_deg"}
