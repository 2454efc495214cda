"""The contact sheet shows frames of the clip, with the feature points where the track says they are."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from longtake.annotate.sheet import MAX_SIDE, NUM_PICTURES, draw_sheet
from longtake.annotate.video import VideoConfig, encode_rgb, probe
from longtake.records import Shot, Track

WIDTH, HEIGHT, FRAMES = 960, 540, 20


@pytest.fixture(scope="module")
def gray_levels(tmp_path_factory):
    """A video whose frame i is the gray 10 i, and the shot of its frames 5 .. 19."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    encode_rgb(path, [np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8) for i in range(FRAMES)], 10)
    shot = Shot(index=0, start=5, stop=20, crop=(0, 0, WIDTH, HEIGHT), overlay=None, boundary="start")
    return probe(path), shot


def track(shot: Shot, pts_ns: np.ndarray) -> Track:
    n = shot.num_frames
    zeros = np.zeros(n)
    return Track(
        pts_ns=pts_ns[shot.start : shot.stop], width=WIDTH, height=HEIGHT,
        world_from_cam=np.tile(np.eye(4), (n, 1, 1)), pose_valid=np.ones(n, bool),
        intrinsics=np.tile([900.0, 900.0, 480.0, 270.0], (n, 1)), intrinsics_mode="static", focal_status="given",
        focal_sigma=zeros, distortion_model="none", distortion=(), motion_class="static", flags=(),
        scale_kind="relative", pose_source="test", is_keyframe=np.ones(n, bool), reproj_rmse_px=zeros,
        sampson_px=zeros, num_tracked=np.zeros(n, np.int32), inlier_ratio=zeros, coverage=zeros, dyn_ratio=zeros,
        step_px=zeros,
    )  # fmt: skip


def test_frames_are_spread_over_the_shot(gray_levels):
    info, shot = gray_levels
    sheet = draw_sheet(info, shot, track(shot, info.pts_ns), video_config=VideoConfig())
    assert len(sheet.frames) == NUM_PICTURES and sheet.frames[0] == 0 and sheet.frames[-1] == shot.num_frames - 1
    for frame, jpeg in zip(sheet.frames, sheet.jpegs, strict=True):
        picture = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))
        assert max(picture.shape) == MAX_SIDE
        assert abs(float(picture.mean()) - 10 * (shot.start + frame)) < 3  # H.264 and JPEG
    assert draw_sheet(info, shot, None, video_config=VideoConfig()).frames == sheet.frames


def test_points_are_drawn_where_they_are(gray_levels):
    info, shot = gray_levels
    examples = np.array([[3, 7, 200, 100], [3, 8, 700, 400], [9, 7, 240, 120]], np.float32)
    sheet = draw_sheet(info, shot, replace(track(shot, info.pts_ns), examples=examples), video_config=VideoConfig())
    assert sheet.frames == (3, 9)
    picture = np.asarray(cv2.imdecode(sheet.jpegs[0], cv2.IMREAD_COLOR)).astype(int)
    y, x = np.nonzero(np.ptp(picture, axis=-1) > 60)  # colour stands out of gray
    points = ((200, 100), (700, 400))
    distance = np.array([np.hypot(2 * x + 0.5 - px, 2 * y + 0.5 - py) for px, py in points])  # in the video's pixels
    assert (distance.min(1) < 4).all(), "each point has its dot"
    assert distance.min(0).max() < 16, "and there is no other"
