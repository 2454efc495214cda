"""Where a token is: its place in the clip as turns of channel pairs, its ray as a rigid motion of channel quadruples.

The operators themselves are `kernels/ucpe.py`. Everything here is float32 or finer, whatever the network's type: half
precision loses the sine of small angles and the length of a long path.

Sources: Su et al., RoFormer, arXiv 2104.09864; UCPE in SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.ucpe import move

BASE = 10000.0


def turns(grid: tuple[int, int, int], dim: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Unit complex numbers for the places of a grid of (frames, rows, columns): pairs of time, of rows, of columns.

    Returns:
        [T, S, 1, dim / 2] for whole heads, and [T, S, 1, dim / 4] for half a head: each axis without its slow half.
    """
    space = 2 * (dim // 6)
    widths = (dim - 2 * space, space, space)
    half_space = 2 * (dim // 2 // 6)
    half_widths = (dim // 2 - 2 * half_space, half_space, half_space)
    whole, half = [], []
    for axis, (count, width, half_width) in enumerate(zip(grid, widths, half_widths, strict=True)):
        frequency = BASE ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.outer(torch.arange(count, dtype=torch.float64), frequency)
        turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)
        shape = [1, 1, 1, 1, width // 2]
        shape[axis] = count
        turn = turn.reshape(shape).expand(*grid, 1, -1)
        whole.append(turn)
        half.append(turn[..., : half_width // 2])
    return torch.cat(whole, -1).flatten(1, 2), torch.cat(half, -1).flatten(1, 2)


def ray_from_world(camera: Tensor, rows: int, cols: int) -> Tensor:
    """Rigid motions into the frames of tokens' rays: z along the ray, y towards the camera's y, its centre at 0.

    Args:
        camera: [B, T, 20] a frame's world_from_cam [4, 4] row by row, then (fx, fy, cx, cy) in units of latent pixels,
            whose centres are at integer coordinates.

    Returns:
        [B, T, rows * cols, 4, 4] float32; the identity where a ray has no direction, or is parallel to its camera's y.
    """
    camera = camera.float()
    rotation = camera[..., :16].unflatten(-1, (4, 4))[:, :, None, None, :3, :3]  # [B, T, 1, 1, 3, 3]
    centre = camera[..., :16].unflatten(-1, (4, 4))[:, :, None, None, :3, 3]
    fx, fy, cx, cy = camera[..., None, None, 16:].unbind(-1)  # each [B, T, 1, 1]
    v = torch.arange(rows, device=camera.device).reshape(rows, 1)
    u = torch.arange(cols, device=camera.device)
    x, y = torch.broadcast_tensors((u - cx) / fx, (v - cy) / fy)
    ray = torch.stack([x, y, torch.ones_like(x)], -1)
    z_axis = _unit((rotation @ _unit(ray)[..., None])[..., 0])
    down = rotation[..., 1].expand_as(z_axis)
    x_axis = _unit(torch.linalg.cross(down, z_axis))
    y_axis = _unit(torch.linalg.cross(z_axis, x_axis))
    axes = torch.stack([x_axis, y_axis, z_axis], -2)  # [B, T, rows, cols, 3, 3]
    motion = torch.cat([axes, -(axes @ centre[..., None])], -1)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], device=camera.device)
    motion = torch.cat([motion, last.expand(*motion.shape[:-2], 1, 4)], -2)
    defined = motion.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    motion = torch.where(defined, motion, torch.eye(4, device=camera.device))
    return motion.flatten(2, 3)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def invert_rigid(motion: Tensor) -> Tensor:
    """The inverse of rigid motions [..., 4, 4]."""
    back = motion[..., :3, :3].mT
    out = torch.cat([back, -(back @ motion[..., :3, 3:])], -1)
    return torch.cat([out, motion[..., 3:, :]], -2)


@dataclass(frozen=True, eq=False)
class RayEncoding:
    """Heads' channels seen from their tokens' rays: half of them, four by four, as points; the other half turned."""

    from_world: Tensor  # [B, T, S, 4, 4]
    to_world: Tensor  # its inverse
    turns: Tensor  # [T, S, 1, D / 4]

    @classmethod
    def of(cls, camera: Tensor, grid: tuple[int, int, int], half_turns: Tensor) -> RayEncoding:
        from_world = ray_from_world(camera, *grid[1:])
        return cls(from_world, invert_rigid(from_world), half_turns)

    def query(self, x: Tensor) -> Tensor:
        """x [B, T, S, H, D] -> the same, encoded and no longer than before; float32."""
        return move(x, self.from_world.mT, self.turns, shorten=True)

    def key(self, x: Tensor) -> Tensor:
        """As `query`, for keys and values."""
        return move(x, self.to_world, self.turns, shorten=True)

    def decode(self, x: Tensor) -> Tensor:
        """Answers out of the rays' frames, back."""
        return move(x, self.from_world, self.turns.conj())
