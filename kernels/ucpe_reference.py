"""Channels turned and moved as it is written down. `ucpe.py` is what computes it fast.

Sources: Su et al., RoFormer, arXiv 2104.09864; UCPE in SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

import torch
from torch import Tensor


def turn(x: Tensor, by: Tensor) -> Tensor:
    """As `ucpe.turn`."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * by).flatten(-2)


def move(x: Tensor, motion: Tensor, by: Tensor, *, shorten: bool = False) -> Tensor:
    """As `ucpe.move`."""
    half = x.shape[-1] // 2
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    points = torch.einsum("btsij,btshgj->btshgi", motion.to(wide.dtype), wide[..., :half].unflatten(-1, (-1, 4)))
    moved = torch.cat([points.flatten(-2), turn(wide[..., half:], by)], -1)
    return moved * (_rms(wide) / _rms(moved)).clamp(max=1.0) if shorten else moved


def _rms(x: Tensor) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
