"""From projections to the queries and keys of linear attention: a filter over frames, a norm, what is not negative.

In torch each of them reads and writes all channels, seven times for keys; the kernel does it once. Its gradient is the
plain form's, computed again from the inputs: a training step is spent elsewhere.

Sources: short convolution and feature map of SANA-WM, arXiv 2605.15178; RMSNorm, arXiv 1910.07467.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import runs_triton


def features(x: Tensor, weight: Tensor, *, eps: float, scale: float = 1.0, taps: Tensor | None = None) -> Tensor:
    """scale * relu(rms_norm(short_conv(x, taps))) of every token's channels; float32.

    Args:
        x: [B, T, S, C].
        weight: [C] of the norm, over all channels.
        taps: [C, K] of `short_conv`; None leaves it out.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if x.ndim != 4 or weight.shape != x.shape[-1:] or (taps is not None and taps.shape[:-1] != weight.shape):
        shapes = [None if y is None else list(y.shape) for y in (x, weight, taps)]
        raise ValueError("x, weight and taps have shapes {}, {}, {}, not [B, T, S, C], [C], [C, K]".format(*shapes))
    if runs_triton(x):
        return _Features.apply(x, weight, taps, eps, scale)
    return _features(x, weight, taps, eps, scale)


def short_conv(x: Tensor, taps: Tensor) -> Tensor:
    """A filter over the frames of x [B, T, S, C] for each channel; frames before the first and after the last are zero.

    `taps` [C, K] go backwards in time, the last on the frame itself, and are mirrored: 2 K - 1 frames in all.
    """
    both = torch.cat([taps, taps[:, :-1].flip(-1)], -1)  # the frame's own tap counts once
    y = F.conv2d(x.movedim(-1, 1), both[:, None, :, None], padding=(taps.shape[-1] - 1, 0), groups=x.shape[-1])
    return y.movedim(1, -1)


def _features(x: Tensor, weight: Tensor, taps: Tensor | None, eps: float, scale: float) -> Tensor:
    y = x if taps is None else short_conv(x, taps)
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    size = (torch.linalg.vector_norm(y, dim=-1, keepdim=True).square() / y.shape[-1] + eps).sqrt()
    return (y * (scale / size)).mul_(weight).relu_()


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, taps: Tensor | None, eps: float, scale: float) -> Tensor:
        from . import features_triton

        ctx.save_for_backward(x, weight, taps)
        ctx.eps, ctx.scale = eps, scale
        return features_triton.features(x, weight, taps, eps, scale)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = [y.detach().requires_grad_() for y in ctx.saved_tensors if y is not None]
        x, weight, *taps = inputs
        with torch.enable_grad():
            out = _features(x, weight, taps[0] if taps else None, ctx.eps, ctx.scale)
        d_x, d_weight, *d_taps = torch.autograd.grad(out, inputs, d_out.to(out.dtype))
        return d_x, d_weight, d_taps[0] if d_taps else None, None, None
