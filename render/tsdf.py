"""Frames with depth fused by a truncated signed distance field, which the package Open3D computes, into splats.

Where `lift.Fusion` keeps what it saw first and adds what is new, the field takes the mean of all frames at each voxel:
errors of depth, poses and exposure average out, and what is thinner than some voxels goes. Confidence is a threshold
here and no weight, and there is no sky.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import LongtakeError, MissingPart
from ..geometry import invert_pose
from .lift import Discs, LiftConfig, Lifted, RgbdFrame, _about, _gaussians, usable_depth

BLOCK = 8  # voxels along an edge of what is allocated at once
BLOCKS = 20_000  # allocated at first: 0.2 GB; Open3D takes more as they are needed
TRUNCATION = 4.0  # voxels on either side of a surface that know of it
LEAST_WEIGHT = 0.5  # from which a voxel counts: one frame
SIZE = 0.6  # standard deviation of a splat along the surface, in voxels


class TsdfFusion:
    """A field that takes in frame by frame; its surface's points, with normals and colours, become splats.

    Args:
        config: `cell` is the edge of all voxels, in pixels at the median depth of the first frame; `size`, `agree` and
            `opaque` have no meaning here.
    """

    def __init__(self, config: LiftConfig | None = None) -> None:
        try:
            import open3d  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingPart(
                f"frames are fused in a distance field by Open3D ({error}): pip install 'longtake[open3d]'"
            ) from error
        self.config = config or LiftConfig()
        self.pixels = self.frames = 0
        self.without_depth: list[str] = []
        self.voxel = 0.0
        self._o3d = open3d
        self._grid: Any = None

    def add(self, frame: RgbdFrame) -> None:
        """Take in a frame. One without usable depth is only written down."""
        usable = usable_depth(frame, self.config)
        if not usable.any():
            self.without_depth.append(frame.name)
            return
        self.frames += 1
        self.pixels += int(usable.sum())
        o3d, core = self._o3d, self._o3d.core
        fx, fy, cx, cy = np.asarray(frame.intrinsics, np.float64)
        if self._grid is None:
            self.voxel = self.config.cell * float(np.median(frame.depth[usable])) / float(np.sqrt(fx * fy))
            kinds, shapes = (core.float32,) * 3, (1, 1, 3)
            self._grid = o3d.t.geometry.VoxelBlockGrid(
                ("tsdf", "weight", "color"), kinds, shapes, self.voxel, BLOCK, BLOCKS
            )
        depth = np.where(usable, frame.depth, 0).astype(np.float32)
        shown = o3d.t.geometry.Image(core.Tensor(depth))
        colour = o3d.t.geometry.Image(core.Tensor(frame.rgb.astype(np.float32) / 255))
        camera = core.Tensor(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
        pose = core.Tensor(np.ascontiguousarray(invert_pose(np.asarray(frame.world_from_cam, np.float64))))
        scale, farthest = 1.0, float(depth.max()) * 1.01  # of stored depth to the world's unit; nothing is cut off
        blocks = self._grid.compute_unique_block_coordinates(shown, camera, pose, scale, farthest, TRUNCATION)
        self._grid.integrate(blocks, shown, colour, camera, camera, pose, scale, farthest, TRUNCATION)

    def lifted(self) -> Lifted:
        """The surface as splats, and how it came about; `counts` are 1: how often a point was seen is not kept.

        Raises:
            LongtakeError: no frame had usable depth.
        """
        if self._grid is None:
            some = ", ".join(self.without_depth[:3]) or "there were none"
            raise LongtakeError(f"nothing was lifted: no frame had usable depth ({some})")
        cloud = self._grid.extract_point_cloud(LEAST_WEIGHT)
        points = cloud.point.positions.numpy().astype(np.float64)
        n = len(points)
        discs = Discs(
            pixel=np.zeros(n, np.int64),
            points=points,
            axes=_about(cloud.point.normals.numpy().astype(np.float64)),
            scales=np.tile(SIZE * self.voxel * np.array([1, 1, self.config.thickness]), (n, 1)),
            footprint=np.full(n, self.voxel),
            colours=np.clip(cloud.point.colors.numpy().astype(np.float64), 0, 1),
            confidence=np.ones(n),
        )
        return Lifted(
            gaussians=_gaussians(discs, self.config),
            counts=np.ones(n, np.int64),
            frames=self.frames,
            without_depth=tuple(self.without_depth),
            pixels=self.pixels,
            shown_already=0,
        )
