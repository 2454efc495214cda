"""`features.py` in Triton: a token's channels in one program, one frame after the other at the same place, so that the
frames around it are still in the cache. All of it is float32 between loading and storing.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (kernels are launched with numbers for their constexpr arguments, and static_range is a range to Triton alone)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _features_kernel(
    x, weight, taps, out, T, S, stride_xb, stride_xt, stride_xs, eps, scale,
    C: tl.constexpr, TAPS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_bst = tl.program_id(0).to(tl.int64)
    i_b, i_s, i_t = i_bst // (S * T), i_bst // T % S, i_bst % T
    o_c = tl.arange(0, BC)
    m_c = o_c < C
    x += i_b * stride_xb + i_s * stride_xs + o_c
    if TAPS == 0:
        b_y = tl.load(x + i_t * stride_xt, mask=m_c, other=0.0).to(tl.float32)  # [BC]
    else:
        b_y = tl.zeros((BC,), tl.float32)
        for i in tl.static_range(2 * TAPS - 1):
            o_t = (
                i_t + i - (TAPS - 1) + 0 * o_c
            )  # the frame, once a channel: the interpreter cannot & blocks and numbers
            i_tap = i if i < TAPS else 2 * TAPS - 2 - i
            m_x = m_c & (o_t >= 0) & (o_t < T)
            b_x = tl.load(x + o_t * stride_xt, mask=m_x, other=0.0).to(tl.float32)
            b_y += b_x * tl.load(taps + o_c * TAPS + i_tap, mask=m_c, other=0.0).to(tl.float32)
    b_y *= scale / tl.sqrt(tl.sum(b_y * b_y) / C + eps)
    b_y *= tl.load(weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    tl.store(out + ((i_b * T + i_t) * S + i_s) * C + o_c, tl.maximum(b_y, 0.0), mask=m_c)


def features(x: Tensor, weight: Tensor, taps: Tensor | None, eps: float, scale: float) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, frames, tokens, width = x.shape
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _features_kernel[(batch * frames * tokens,)](
        x, weight, weight if taps is None else taps.contiguous(), out, frames, tokens, *x.stride()[:3], eps, scale,
        C=width, TAPS=0 if taps is None else taps.shape[-1], BC=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return out
