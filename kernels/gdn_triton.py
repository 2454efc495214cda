"""The steps of `gdn.py` in Triton, for a GPU; each has its plain form under the same name in `gdn_torch.py`.

`products` and `read`, which touch the tokens, give every frame and head its own program (2,420 for a clip of a minute,
20 heads); `walk`, which is sequential in time, splits a memory into bands of columns instead: columns of M do not mix.
The D x D tensors they exchange are made a chunk of frames at a time by the caller.

Products are of float32 numbers as three TF32 products ("tf32x3"): about 2^-21 of relative error, at several times the
speed that ieee float32 has without tensor cores. One TF32 product errs by 2^-11 a step, and a memory of 121 frames is
made of 121 steps. The interpreter computes in float32. Heads of other widths than powers of two are masked: 112 as 128.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (kernels are launched with numbers for their constexpr arguments, and with LAUNCH besides their own)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PRECISION = tl.constexpr("tf32x3")
LAUNCH = {"num_warps": 8, "num_stages": 2}


@triton.jit
def _products_kernel(
    x, y, beta, out, T, S, H, X, Y, stride_xb, stride_yb, stride_sb,
    WEIGHTED: tl.constexpr, BS: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    i_bth = tl.program_id(0).to(tl.int64)
    i_b, i_t, i_h = i_bth // (T * H), i_bth // H % T, i_bth % H
    o_x = tl.program_id(1) * BX + tl.arange(0, BX)
    o_y = tl.program_id(2) * BY + tl.arange(0, BY)
    m_x, m_y = o_x < X, o_y < Y
    x += i_b * stride_xb + (i_t * S * H + i_h) * X
    y += i_b * stride_yb + (i_t * S * H + i_h) * Y
    beta += i_b * stride_sb + i_t * S * H + i_h
    b_out = tl.zeros((BX, BY), tl.float32)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)
        m_s = o_s < S
        b_x = tl.load(x + o_s[:, None] * (H * X) + o_x, mask=m_s[:, None] & m_x, other=0.0).to(tl.float32)  # [BS, BX]
        b_y = tl.load(y + o_s[:, None] * (H * Y) + o_y, mask=m_s[:, None] & m_y, other=0.0).to(tl.float32)  # [BS, BY]
        if WEIGHTED:
            b_x *= tl.load(beta + o_s * H, mask=m_s, other=0.0).to(tl.float32)[:, None]
        b_out += tl.dot(tl.trans(b_x), b_y, input_precision=PRECISION)
    tl.store(out + (i_bth * X + o_x[:, None]) * Y + o_y, b_out, mask=m_x[:, None] & m_y)


@triton.jit
def _read_kernel(
    x, states, out, T, S, H, X, Y, stride_xb, stride_sbth, stride_sx, stride_sy, stride_ob,
    BS: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    i_bth = tl.program_id(0).to(tl.int64)
    i_b, i_t, i_h = i_bth // (T * H), i_bth // H % T, i_bth % H
    o_s = tl.program_id(1) * BS + tl.arange(0, BS)
    o_y = tl.program_id(2) * BY + tl.arange(0, BY)
    m_s, m_y = o_s < S, o_y < Y
    x += i_b * stride_xb + (i_t * S * H + i_h) * X
    out += i_b * stride_ob + (i_t * S * H + i_h) * Y
    states += i_bth * stride_sbth
    b_out = tl.zeros((BS, BY), tl.float32)
    for i_x in range(0, X, BX):
        o_x = i_x + tl.arange(0, BX)
        m_x = o_x < X
        b_x = tl.load(x + o_s[:, None] * (H * X) + o_x, mask=m_s[:, None] & m_x, other=0.0).to(tl.float32)  # [BS, BX]
        b_m = tl.load(
            states + o_x[:, None] * stride_sx + o_y * stride_sy, mask=m_x[:, None] & m_y, other=0.0
        )  # [BX, BY]
        b_out += tl.dot(b_x, b_m, input_precision=PRECISION)
    tl.store(out + o_s[:, None] * (H * Y) + o_y, b_out, mask=m_s[:, None] & m_y)


@triton.jit
def _walk_kernel(
    p, u, decay, history, T, H, D, V,
    BACKWARD: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    i_bh = tl.program_id(0).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    o_d = tl.arange(0, BD)
    o_v = tl.program_id(1) * BV + tl.arange(0, BV)
    m_d, m_v = o_d < D, o_v < V
    o_m = o_d[:, None] * V + o_v  # [BD, BV] of a memory
    m_m = m_d[:, None] & m_v
    for i in range(T):
        i_t = T - 1 - i if BACKWARD else i
        i_pu = (i_b * T + i_t) * H + i_h
        found = history + ((i_b * (T + 1) + i_t + (1 if BACKWARD else 0)) * H + i_h) * D * V
        made = history + ((i_b * (T + 1) + i_t + (0 if BACKWARD else 1)) * H + i_h) * D * V
        b_m = tl.load(found + o_m, mask=m_m, other=0.0)  # [BD, BV]
        for i_k in range(0, D, BK):  # the memory again, by rows: registers cannot be sliced
            o_k = i_k + tl.arange(0, BK)
            m_k = o_k < D
            b_p = tl.load(p + (i_pu * D + o_d[:, None]) * D + o_k, mask=m_d[:, None] & m_k, other=0.0)  # [BD, BK]
            b_r = tl.load(found + o_k[:, None] * V + o_v, mask=m_k[:, None] & m_v, other=0.0)  # [BK, BV]
            b_m -= tl.dot(b_p, b_r, input_precision=PRECISION)
        b_u = tl.load(u + i_pu * D * V + o_m, mask=m_m, other=0.0)
        tl.store(made + o_m, tl.load(decay + i_pu) * b_m + b_u, mask=m_m)
        tl.debug_barrier()  # what one thread stored others load in the next frame


def transitions(k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return products(k, k, beta), products(k, v, beta)


def products(x: Tensor, y: Tensor, beta: Tensor | None = None) -> Tensor:
    x, y = _inner(x), _inner(y)
    weights = x if beta is None else _inner(beta)
    batch, frames, tokens, heads, width = x.shape
    out = x.new_empty(batch, frames, heads, width, y.shape[-1], dtype=torch.float32)
    bx, by = _block(width, 128), _block(y.shape[-1], 128)
    grid = (batch * frames * heads, triton.cdiv(width, bx), triton.cdiv(y.shape[-1], by))
    _products_kernel[grid](
        x, y, weights, out, frames, tokens, heads, width, y.shape[-1], x.stride(0), y.stride(0), weights.stride(0),
        WEIGHTED=beta is not None, BS=32, BX=bx, BY=by, **LAUNCH,
    )  # fmt: skip
    return out


def walk(p: Tensor, u: Tensor, decay: Tensor, start: Tensor, *, backward: bool = False) -> Tensor:
    batch, frames, heads, dim, values = u.shape
    history = u.new_empty(batch, frames + 1, heads, dim, values)
    history[:, frames if backward else 0] = start
    bv = _block(values, 16)
    _walk_kernel[(batch * heads, triton.cdiv(values, bv))](
        p.contiguous(), u.contiguous(), decay.float().contiguous(), history, frames, heads, dim, values,
        BACKWARD=backward, BD=_block(dim, 256), BK=32, BV=bv, **LAUNCH,
    )  # fmt: skip
    return history


def read(x: Tensor, states: Tensor, *, out: Tensor | None = None) -> Tensor:
    x = _inner(x)
    batch, frames, tokens, heads, width = x.shape
    if out is None:
        out = states.new_empty(*x.shape[:-1], states.shape[-1])
    if states.mT.is_contiguous():
        strides = (1, states.stride(-1))
    else:
        states = states.contiguous()
        strides = (states.shape[-1], 1)
    by = _block(out.shape[-1], 128)
    _read_kernel[(batch * frames * heads, triton.cdiv(tokens, 64), triton.cdiv(out.shape[-1], by))](
        x, states, out, frames, tokens, heads, width, out.shape[-1],
        x.stride(0), width * out.shape[-1], *strides, out.stride(0),
        BS=64, BX=32, BY=by, **LAUNCH,
    )  # fmt: skip
    return out


def _inner(x: Tensor) -> Tensor:
    """x, its rows contiguous within each clip: a span of frames of a contiguous tensor is taken as it is."""
    return x if x[0].is_contiguous() else x.contiguous()


def _block(width: int, most: int) -> int:
    """Dot products take blocks of 16 and more."""
    return min(most, max(16, triton.next_power_of_2(width)))
