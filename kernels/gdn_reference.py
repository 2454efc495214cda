"""The frame-wise gated delta rule as it is written: one frame after the other. `gdn.py` is what computes it fast.

Sources: Yang et al., Gated Delta Networks, arXiv 2412.06464; frame-wise and both ways: SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: Tensor | None = None,
    *,
    backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `gdn.scan`; in float32, or in float64 where the inputs are."""
    batch, frames, _, heads, dim = q.shape
    q, k, v, beta, decay = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v, beta, decay))
    memory = v.new_zeros(batch, heads, dim, v.shape[-1]) if state is None else state.mT.to(v.dtype)
    out: list[Tensor] = []
    for t in range(frames - 1, -1, -1) if backward else range(frames):
        q_t, k_t, v_t = (x[:, t].transpose(1, 2) for x in (q, k, v))  # [B, H, S, D or V]
        if backward:
            out.append(q_t @ memory)
        memory = decay[:, t, :, None, None] * memory
        change = beta[:, t].transpose(1, 2)[..., None] * (v_t - k_t @ memory)
        memory = memory + k_t.mT @ change
        if not backward:
            out.append(q_t @ memory)
    answers = torch.stack(out[::-1] if backward else out, dim=1)  # [B, T, H, S, V]
    return answers.transpose(2, 3), memory.mT


def both_ways(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """The sum of the answers of a forward and a backward `scan` from empty memories: [B, T, S, H, V]."""
    return scan(q, k, v, beta, decay)[0] + scan(q, k, v, beta, decay, backward=True)[0]
