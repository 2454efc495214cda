"""Heads' channels as pairs that are turned and as points that are moved: rotary places, and rays as rigid motions.

All of it is linear in x but for `shorten`, so gradients run the same motions transposed. Channels are read and written
once: for a minute's clip, 20 heads of 112 in float32, each pass over them is 1 GB.

Sources: Su et al., RoFormer, arXiv 2104.09864; UCPE in SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backend import runs_triton

EPS = 1e-6  # added to mean squares


def turn(x: Tensor, by: Tensor) -> Tensor:
    """x [B, T, S, H, D], adjacent channels taken as complex numbers, times `by` [T, S, 1, D / 2]; float32.

    Raises:
        ValueError: the shapes do not belong together, or `by` is to have a gradient.
    """
    _check(x, None, by, pairs=x.shape[-1] // 2)
    return _Move.apply(x, None, by, False)


def move(x: Tensor, motion: Tensor, by: Tensor, *, shorten: bool = False) -> Tensor:
    """The first half of x's channels, four by four, times each token's matrix, and the other half turned; float32.

    Args:
        x: [B, T, S, H, D].
        motion: [B, T, S, 4, 4] applied to columns of four channels; it has no gradient.
        by: [T, S, 1, D / 4] complex, as in `turn`; it has no gradient.
        shorten: scale the result down to x's root mean square, over the D channels of a head, where it is longer.

    Raises:
        ValueError: the shapes do not belong together, or `motion` or `by` are to have a gradient.
    """
    _check(x, motion, by, pairs=x.shape[-1] // 4)
    return _Move.apply(x, motion, by, shorten)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, motion: Tensor | None, by: Tensor, shorten: bool) -> Tensor:
        ctx.save_for_backward(x, motion, by)
        ctx.shorten = shorten
        return _move(x, motion, by, shorten)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of c(x, m) m with m = A x and c = min(1, rms x / rms m): A^T of what m has, and c's part for x."""
        x, motion, by = ctx.saved_tensors
        back = None if motion is None else motion.mT
        if not ctx.shorten:
            return _move(d_out, back, by.conj(), False).to(x.dtype), None, None, None
        moved = _move(x, motion, by, False)
        x_square, square = _mean_square(x.to(moved.dtype)), _mean_square(moved)
        scale = (x_square / square).clamp(max=1).sqrt()
        slope = torch.where(square > x_square, scale * torch.linalg.vecdot(d_out, moved)[..., None], 0) / x.shape[-1]
        d_moved = scale * d_out - slope / square * moved
        return (_move(d_moved, back, by.conj(), False) + slope / x_square * x).to(x.dtype), None, None, None


def _move(x: Tensor, motion: Tensor | None, by: Tensor, shorten: bool) -> Tensor:
    if runs_triton(x):
        from . import ucpe_triton

        return ucpe_triton.move(x, motion, by, shorten)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    out = torch.empty_like(wide, memory_format=torch.contiguous_format)
    half = 0 if motion is None else x.shape[-1] // 2
    if motion is not None:
        points = wide[..., :half].unflatten(-1, (-1, 4)).flatten(-3, -2) @ motion.mT.to(wide.dtype)
        out[..., :half] = points.view(*x.shape[:-1], half)
    pairs = wide[..., half:].unflatten(-1, (-1, 2))
    if pairs.stride(-1) != 1 or any(s % 2 for s in pairs.stride()[:-1]) or pairs.storage_offset() % 2:
        pairs = pairs.contiguous()
    torch.mul(torch.view_as_complex(pairs), by, out=torch.view_as_complex(out[..., half:].unflatten(-1, (-1, 2))))
    return out.mul_((_mean_square(wide) / _mean_square(out)).clamp_(max=1).sqrt_()) if shorten else out


def _mean_square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + EPS


def _check(x: Tensor, motion: Tensor | None, by: Tensor, *, pairs: int) -> None:
    if x.ndim != 5 or x.shape[-1] % (2 if motion is None else 8):
        raise ValueError(
            f"x has shape {list(x.shape)}, not [B, T, S, H, D] with D a multiple of {2 if motion is None else 8}"
        )
    want = {"by": (by, (*x.shape[1:3], 1, pairs))}
    if motion is not None:
        want["motion"] = (motion, (*x.shape[:3], 4, 4))
    for name, (tensor, shape) in want.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; for x {list(x.shape)} it takes {list(shape)}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and none is computed: detach it")
