"""What may be known of a sequence beforehand, and its normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STATIC = 0.02  # a camera whose centres stay this close to frame 0's has no scale to normalise by


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """Known cameras and depths of B sequences of T frames; each part may be absent, as a whole or in some frames.

    The frames [B, T] (bool) say where a part is known: everywhere where None. Cameras elsewhere must be finite, and
    depths elsewhere still count in the mean that depths are divided by, as in the published network: set them to 0.
    Poses enter from two known frames of a sequence on. Poses and depths share one unit, whichever it is.
    """

    intrinsics: Tensor | None = None  # [B, T, 3, 3] pixels of the images given, pixel centres at + 0.5
    rays: Tensor | None = None  # [B, T, H, W, 3] camera-frame directions of any length, in place of intrinsics
    ray_frames: Tensor | None = None
    depths: Tensor | None = None  # [B, T, H, W] along z; unknown where not finite or not above 0
    depth_frames: Tensor | None = None
    world_from_cam: Tensor | None = None  # [B, T, 4, 4], any world
    pose_frames: Tensor | None = None

    def check(self, batch: int, frames: int, height: int, width: int) -> None:
        """Raise ValueError unless every part fits images [batch, frames, 3, height, width]."""
        shapes = {
            "intrinsics": (3, 3),
            "rays": (height, width, 3),
            "ray_frames": (),
            "depths": (height, width),
            "depth_frames": (),
            "world_from_cam": (4, 4),
            "pose_frames": (),
        }
        for name, shape in shapes.items():
            part = getattr(self, name)
            if part is not None and part.shape != (batch, frames, *shape):
                raise ValueError(f"{name} has shape {list(part.shape)}; these images need {[batch, frames, *shape]}")
            if part is not None and name.endswith("_frames") and part.dtype != torch.bool:
                raise ValueError(f"{name} is {part.dtype}, not bool")
        if self.intrinsics is not None and self.rays is not None:
            raise ValueError("intrinsics and rays say the same thing: give one")
        for name, given in (
            ("ray_frames", self.intrinsics is not None or self.rays is not None),
            ("depth_frames", self.depths is not None),
            ("pose_frames", self.world_from_cam is not None),
        ):
            if getattr(self, name) is not None and not given:
                raise ValueError(f"{name} says where something is known that was not given")


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Conditions as the network takes them; None where nothing is known."""

    slopes: Tensor | None  # [B, T, 2, H, W] x / z and y / z of every pixel's ray
    ray_frames: Tensor  # [B, T]
    depths: Tensor | None  # [B, T, 2, H, W] depth, about 1 on average, and where it is known
    depth_frames: Tensor  # [B, T]
    world_from_cam: Tensor | None  # [B, T, 4, 4] in frame 0's camera
    pose_frames: Tensor  # [B, T]


def normalise(given: Conditions, images: Tensor) -> Known:
    """The conditions in units of the mean depth, else of the mean distance from frame 0's centre.

    Raises:
        ValueError: a part does not fit the images [B, T, 3, H, W].
    """
    batch, frames, _, height, width = images.shape
    given.check(batch, frames, height, width)

    def frames_of(part: Tensor | None, where: Tensor | None) -> Tensor:
        return torch.full((batch, frames), part is not None, device=images.device) if where is None else where

    ray_frames = frames_of(given.intrinsics if given.rays is None else given.rays, given.ray_frames)
    depth_frames = frames_of(given.depths, given.depth_frames)
    pose_frames = frames_of(given.world_from_cam, given.pose_frames)
    pose_frames = pose_frames & (pose_frames.sum(1, keepdim=True) > 1)

    slopes = None
    if given.rays is not None:
        slopes = (given.rays[..., :2] / (given.rays[..., 2:] + 1e-6)).movedim(-1, 2)
    elif given.intrinsics is not None:
        slopes = _pixel_slopes(given.intrinsics, height, width)

    depths, unit = None, images.new_ones(batch)
    if given.depths is not None:
        valid = given.depths.isfinite() & (given.depths > 0)
        depth = torch.where(valid, given.depths, 0.0)
        count = valid.sum((1, 2, 3))
        unit = torch.where(count > 0, depth.sum((1, 2, 3)) / count.clamp(min=1), unit) + 1e-8
        depths = torch.stack([depth / unit[:, None, None, None], valid], dim=2)

    poses = given.world_from_cam
    if poses is not None:
        poses = invert_rigid(poses[:, :1]) @ poses
        poses[..., :3, 3] /= unit[:, None, None]
        if frames > 1:  # without depths, the mean distance travelled is the unit
            travel = poses[:, 1:, :3, 3].norm(dim=-1)  # [B, T - 1]
            moves = ~depth_frames.any(1) & (travel.amax(1) >= STATIC)
            poses[..., :3, 3] /= torch.where(moves, travel.mean(1) + 1e-8, torch.ones_like(unit))[:, None, None]
    return Known(
        slopes=slopes,
        ray_frames=ray_frames,
        depths=depths,
        depth_frames=depth_frames,
        world_from_cam=poses,
        pose_frames=pose_frames,
    )


def invert_rigid(poses: Tensor) -> Tensor:
    """The inverse of the rigid motions poses [..., 4, 4]."""
    out = poses.clone()
    out[..., :3, :3] = poses[..., :3, :3].mT
    out[..., :3, 3:] = -(out[..., :3, :3] @ poses[..., :3, 3:])
    return out


def _pixel_slopes(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """(x / z, y / z) of every pixel's ray [..., 2, height, width] for intrinsics [..., 3, 3], centres at + 0.5."""
    v, u = torch.meshgrid(
        torch.arange(height, device=intrinsics.device) + 0.5,
        torch.arange(width, device=intrinsics.device) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1)  # [3, H * W]
    return (intrinsics.inverse() @ pixels)[..., :2, :].unflatten(-1, (height, width))
