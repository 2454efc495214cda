"""Frames fused by Open3D's distance field, on a room whose depth is known exactly."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from longtake.errors import LongtakeError, MissingPart
from longtake.geometry import invert_pose
from longtake.pipelines.cli import app
from longtake.pipelines.config import UsageError
from longtake.render.lift import LiftConfig, RgbdFrame
from longtake.render.rasterize import Rasterizer
from longtake.render.room import Room, camera_path, render_room, room_depth
from longtake.render.tsdf import TsdfFusion

WIDTH, HEIGHT, NOISE = 160, 120, 0.01


def frames(count: int) -> list[RgbdFrame]:
    """Views of the room a little apart, with relative noise of depth."""
    room, rng = Room(0), np.random.default_rng(0)
    poses, intrinsics = camera_path("walk", count, width=WIDTH, height=HEIGHT, extent=0.1)
    out = []
    for i, (pose, k) in enumerate(zip(poses, intrinsics, strict=True)):
        depth = room_depth(room, pose, k, WIDTH, HEIGHT)
        noisy = depth * np.exp(NOISE * rng.standard_normal(depth.shape))
        rgb = render_room(room, pose, k, WIDTH, HEIGHT)
        out.append(RgbdFrame(name=f"{i}", rgb=rgb, depth=noisy.astype(np.float32), intrinsics=k, world_from_cam=pose))
    return out


def test_noise_averages_out_and_the_picture_stays() -> None:
    pytest.importorskip("open3d", reason="the extra `open3d` is not installed")
    views = frames(8)
    fusion = TsdfFusion(LiftConfig(cell=3.0, edge_step=0.08))
    for view in views:
        fusion.add(view)
    lifted = fusion.lifted()
    assert (lifted.frames, lifted.without_depth) == (8, ()) and len(lifted.gaussians) == len(lifted.counts) > 1000
    view = views[4]
    truth = room_depth(Room(0), view.world_from_cam, view.intrinsics, WIDTH, HEIGHT)
    back = invert_pose(view.world_from_cam)
    p = lifted.gaussians.means @ back[:3, :3].T + back[:3, 3]
    column, row = np.rint(p[:, :2] / p[:, 2:] * view.intrinsics[:2] + view.intrinsics[2:]).astype(int).T
    inside = (p[:, 2] > 0) & (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    error = np.log(p[inside, 2] / truth[row[inside], column[inside]])
    assert abs(np.median(error)) < 0.1 * NOISE  # of 2 % voxels
    assert np.median(np.abs(error)) < 0.9 * 0.674 * NOISE, "less than of one frame, whose median is 0.674 sigma"
    drawn = Rasterizer(lifted.gaussians).draw(view.world_from_cam, view.intrinsics, WIDTH, HEIGHT)
    seen = drawn.alpha > 0.95
    assert seen.mean() > 0.8 and np.abs(255 * drawn.rgb[seen] - view.rgb[seen]).mean() < 20


def test_frames_without_depth_are_written_down() -> None:
    pytest.importorskip("open3d", reason="the extra `open3d` is not installed")
    (view,) = frames(1)
    bare = RgbdFrame(
        name="bare", rgb=view.rgb, depth=0 * view.depth, intrinsics=view.intrinsics, world_from_cam=view.world_from_cam
    )
    fusion = TsdfFusion()
    fusion.add(bare)
    with pytest.raises(LongtakeError, match="no frame had usable depth \\(bare\\)"):
        fusion.lifted()
    fusion.add(view)
    assert fusion.lifted().without_depth == ("bare",)


def test_without_open3d_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(MissingPart, match=r"pip install 'longtake\[open3d\]'"):
        TsdfFusion()
    with pytest.raises(UsageError, match="has no sky"):
        app(["lift", "m", "--out", "s.ply", "--fuse", "tsdf", "--sky", "shell"], result_action="return_value")
