"""A camera path and a first picture as SANA-WM takes them: cropped to its shape, rays of all source frames packed.

Source: SANA-WM, arXiv 2605.15178, and its published code. Computed in float64, given in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..pi3x.geometry import resize

STRIDE = 8  # source frames a latent frame, apart from the first, which is one


def snap_frames(count: int, *, most: int | None = None) -> int:
    """The number of frames 8 k + 1 nearest to `count`, of two the larger, but above `most` only where that is 0."""
    k = (count - 1 + STRIDE // 2) // STRIDE
    if most is not None:
        k = min(k, (most - 1) // STRIDE)
    return STRIDE * max(k, 0) + 1


@dataclass(frozen=True)
class Crop:
    """How a picture is scaled to cover a smaller shape, and what is cut off."""

    width: int  # scaled, before cutting
    height: int
    left: int
    top: int
    out_width: int
    out_height: int

    @classmethod
    def to_cover(cls, width: int, height: int, *, out_width: int, out_height: int) -> Crop:
        """The middle of a picture of width x height, in which the whole of one side is kept."""
        scale = max(out_height / height, out_width / width)
        scaled_width = max(out_width, round(width * scale))
        scaled_height = max(out_height, round(height * scale))
        left, top = (scaled_width - out_width) // 2, (scaled_height - out_height) // 2
        return cls(scaled_width, scaled_height, left, top, out_width, out_height)

    def picture(self, image: Tensor) -> Tensor:
        """An RGB image [H, W, 3] (uint8) scaled by Pillow's Lanczos filter and cropped: [3, height, width], -1 to 1."""
        scaled = resize(image, self.width, self.height)
        kept = scaled[:, self.top : self.top + self.out_height, self.left : self.left + self.out_width]
        return 2 * kept - 1

    def intrinsics(self, intrinsics: Tensor, width: int, height: int) -> Tensor:
        """(fx, fy, cx, cy) [..., 4] in pixels of the picture of width x height -> of the cropped one; float64."""
        x, y = self.width / width, self.height / height
        scale = torch.tensor([x, y, x, y], dtype=torch.float64)
        return intrinsics.double() * scale - torch.tensor([0.0, 0.0, self.left, self.top], dtype=torch.float64)


def pack(
    world_from_cam: Tensor, intrinsics: Tensor, *, width: int, height: int, rows: int, cols: int
) -> tuple[Tensor, Tensor]:
    """What the network is told of a camera path.

    Args:
        world_from_cam: [F, 4, 4] rigid motions in metres, of F = 8 k + 1 frames.
        intrinsics: [F, 4] fx, fy, cx, cy in pixels of the generated frames of width x height.
        rows, cols: of a latent frame.

    Returns:
        camera [T, 20] and plucker [48, T, rows, cols] of T = k + 1 latent frames, as in `Conditions`, without a batch;
        float32. Poses are relative to the first. A latent frame has the pose of its last source frame and the rays of
        all its 8; the first one, which is a single source frame, has those of the seven after it as well.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.
    """
    count = len(world_from_cam)
    if world_from_cam.shape != (count, 4, 4) or intrinsics.shape != (count, 4) or count % STRIDE != 1:
        raise ValueError(
            f"world_from_cam is {list(world_from_cam.shape)} and intrinsics {list(intrinsics.shape)}, not [F, 4, 4] "
            f"and [F, 4] of F = {STRIDE} k + 1 frames; snap_frames gives such a number"
        )
    if bad := [name for name, x in (("pose", world_from_cam), ("intrinsics", intrinsics)) if not x.isfinite().all()]:
        raise ValueError(f"the camera path has a {bad[0]} that is not finite; leave out the frames without a camera")
    pose = torch.linalg.inv(world_from_cam[0].double()) @ world_from_cam.double()
    pose[0] = torch.eye(4)
    grid = torch.tensor([cols / width, rows / height] * 2, dtype=torch.float64)
    latent_intrinsics = intrinsics.double() * grid
    camera = torch.cat([pose.flatten(1), latent_intrinsics], -1)[::STRIDE]
    rays = plucker_rays(pose, latent_intrinsics, rows, cols)  # [F, 6, rows, cols]
    starts = (torch.arange(len(camera)) * STRIDE - (STRIDE - 1)).clamp(min=0)
    source = (starts[:, None] + torch.arange(STRIDE)).clamp(max=count - 1)  # [T, 8]
    return camera.float(), rays[source].flatten(1, 2).transpose(0, 1).float()


def plucker_rays(world_from_cam: Tensor, intrinsics: Tensor, rows: int, cols: int) -> Tensor:
    """Every latent pixel's ray: its unit direction, then its moment, centre x direction.

    Args:
        world_from_cam: [F, 4, 4].
        intrinsics: [F, 4] in latent pixels, whose centres are at integer coordinates.

    Returns:
        [F, 6, rows, cols].
    """
    fx, fy, cx, cy = intrinsics[:, :, None, None].unbind(1)
    v, u = torch.arange(rows)[:, None], torch.arange(cols)
    x, y = torch.broadcast_tensors((u - cx) / fx, (v - cy) / fy)
    ray = torch.stack([x, y, torch.ones_like(x)], -1)  # [F, rows, cols, 3]
    direction = ray @ world_from_cam[:, None, :3, :3].mT
    direction = direction / direction.norm(dim=-1, keepdim=True)
    centre = world_from_cam[:, None, None, :3, 3].expand_as(direction)
    return torch.cat([direction, torch.linalg.cross(centre, direction)], -1).movedim(-1, 1)
