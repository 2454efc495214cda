"""Rotary position encodings: channels turned in pairs by angles proportional to a token's position.

Sources: Su et al., RoFormer, arXiv 2104.09864; in two dimensions Heo et al., arXiv 2403.13298.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dinov2 import Rotate

BASE = 100.0


def rotary(positions: Tensor, dim: int) -> Rotate:
    """A turn of the channels of x [..., N, dim], which holds one equal section a coordinate of positions [N, P].

    Channel j of a section's first half and of its second are one pair, turned by position * 100^(-j / pairs).
    """
    count = positions.shape[-1]
    pairs = dim // (2 * count)
    frequency = BASE ** -(torch.arange(pairs, device=positions.device) / pairs)
    angle = positions[..., None].float() * frequency  # [N, P, pairs]
    cos, sin = angle.cos(), angle.sin()

    def rotate(x: Tensor) -> Tensor:
        a, b = x.unflatten(-1, (count, 2, pairs)).unbind(-2)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-2).flatten(-3).to(x.dtype)

    return rotate


def grid_positions(rows: int, cols: int, device: torch.device) -> Tensor:
    """(row, column) of every patch, row by row: [rows * cols, 2]."""
    return torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(cols, device=device))
