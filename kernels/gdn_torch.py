"""The steps of `gdn.py` in torch, for a CPU: one matrix product over all heads for each frame, straight from [S, H, D].

A frame's heads are strided views that BLAS takes as they are, so nothing is copied into another order, and a frame's
keys are still in the cache when their second product needs them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def transitions(k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """P = sum_s beta_s k_s k_s^T [B, T, H, D, D] and U = sum_s beta_s k_s v_s^T [B, T, H, D, V] of every frame."""
    batch, frames, _, heads, dim = k.shape
    dtype = torch.promote_types(k.dtype, torch.float32)
    p, u = (k.new_empty(batch, frames, heads, dim, n, dtype=dtype) for n in (dim, v.shape[-1]))
    for b in range(batch):
        for t in range(frames):
            weighted = (k[b, t].to(dtype) * beta[b, t, ..., None].to(dtype)).permute(1, 2, 0)
            torch.bmm(weighted, k[b, t].to(dtype).transpose(0, 1), out=p[b, t])
            torch.bmm(weighted, v[b, t].to(dtype).transpose(0, 1), out=u[b, t])
    return p, u


def products(x: Tensor, y: Tensor, beta: Tensor | None = None) -> Tensor:
    """sum_s beta_s x_s y_s^T of every frame and head: [B, T, S, H, X] and [B, T, S, H, Y] -> [B, T, H, X, Y]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    out = x.new_empty(*x.shape[:2], *x.shape[3:], y.shape[-1], dtype=dtype)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            left = x[b, t].to(dtype) if beta is None else x[b, t].to(dtype) * beta[b, t, ..., None].to(dtype)
            torch.bmm(left.permute(1, 2, 0), y[b, t].to(dtype).transpose(0, 1), out=out[b, t])
    return out


def walk(p: Tensor, u: Tensor, decay: Tensor, start: Tensor, *, backward: bool = False) -> Tensor:
    """The memories M <- g (I - P) M + U between frames, [B, T + 1, H, D, V], from `start` at the first or the last."""
    frames = p.shape[1]
    history = u.new_empty(u.shape[0], frames + 1, *u.shape[2:])
    gate = decay.to(u.dtype)[..., None, None]
    history[:, frames if backward else 0] = start
    for t in reversed(range(frames)) if backward else range(frames):
        found, made = (t + 1, t) if backward else (t, t + 1)
        kept = history[:, found] - p[:, t] @ history[:, found]
        torch.addcmul(u[:, t], gate[:, t], kept, out=history[:, made])
    return history


def read(x: Tensor, states: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x [B, T, S, H, X] times its frame's and head's `states` [B, T, H, X, Y]: [B, T, S, H, Y]."""
    if out is None:
        out = states.new_empty(*x.shape[:-1], states.shape[-1])
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            torch.bmm(x[b, t].to(states.dtype).transpose(0, 1), states[b, t], out=out[b, t].transpose(0, 1))
    return out
