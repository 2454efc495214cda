"""`ucpe.py` in Triton: motion, turn, both lengths and the scale in one pass over the channels.

Components of points, and of pairs, are loaded apart (strides of 4 and of 2 numbers, whose cache lines are shared), so
that a product with a small matrix is a few multiplications of whole registers and needs no shuffle.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (kernels are launched with numbers for their constexpr arguments, and static_range is a range to Triton alone)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _move_kernel(
    x, motion, by, out, rows, places, H, stride_mi, stride_mj,
    D: tl.constexpr, POINTS: tl.constexpr, CONJUGATE: tl.constexpr, SHORTEN: tl.constexpr,
    BR: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)  # a token's head
    m_r = o_r < rows
    o_n = o_r // H  # its token
    o_p = tl.arange(0, BP)
    PAIRS: tl.constexpr = (D - 4 * POINTS) // 2
    m_p = m_r[:, None] & (o_p < PAIRS)
    at_pairs = o_r[:, None] * D + 4 * POINTS + 2 * o_p
    re = tl.load(x + at_pairs, mask=m_p, other=0.0).to(tl.float32)  # [BR, BP]
    im = tl.load(x + at_pairs + 1, mask=m_p, other=0.0).to(tl.float32)
    at_turns = ((o_n % places)[:, None] * PAIRS + o_p) * 2
    cos = tl.load(by + at_turns, mask=m_p, other=0.0)
    sin = tl.load(by + at_turns + 1, mask=m_p, other=0.0)
    if CONJUGATE:
        sin = -sin
    new_re, new_im = re * cos - im * sin, re * sin + im * cos
    scale = tl.full((BR,), 1.0, tl.float32)
    if POINTS > 0:
        o_g = tl.arange(0, BG)
        m_g = m_r[:, None] & (o_g < POINTS)
        at_points = o_r[:, None] * D + 4 * o_g
        x0 = tl.load(x + at_points, mask=m_g, other=0.0).to(tl.float32)  # [BR, BG]
        x1 = tl.load(x + at_points + 1, mask=m_g, other=0.0).to(tl.float32)
        x2 = tl.load(x + at_points + 2, mask=m_g, other=0.0).to(tl.float32)
        x3 = tl.load(x + at_points + 3, mask=m_g, other=0.0).to(tl.float32)
        if SHORTEN:
            before = tl.sum(re * re + im * im, 1) + tl.sum(x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3, 1)
            after = tl.sum(new_re * new_re + new_im * new_im, 1)
            for i in tl.static_range(4):
                y = _row(motion + o_n * 16 + i * stride_mi, stride_mj, m_r, x0, x1, x2, x3)
                after += tl.sum(y * y, 1)
            scale = tl.sqrt(tl.minimum((before / D + 1e-6) / (after / D + 1e-6), 1.0))
        for i in tl.static_range(4):
            y = _row(motion + o_n * 16 + i * stride_mi, stride_mj, m_r, x0, x1, x2, x3)
            tl.store(out + at_points + i, y * scale[:, None], mask=m_g)
    tl.store(out + at_pairs, new_re * scale[:, None], mask=m_p)
    tl.store(out + at_pairs + 1, new_im * scale[:, None], mask=m_p)


@triton.jit
def _row(row, stride, m_r, x0, x1, x2, x3):
    """A row of each token's matrix times its points."""
    m0 = tl.load(row, mask=m_r, other=0.0)[:, None]
    m1 = tl.load(row + stride, mask=m_r, other=0.0)[:, None]
    m2 = tl.load(row + 2 * stride, mask=m_r, other=0.0)[:, None]
    m3 = tl.load(row + 3 * stride, mask=m_r, other=0.0)[:, None]
    return m0 * x0 + m1 * x1 + m2 * x2 + m3 * x3


def move(x: Tensor, motion: Tensor | None, by: Tensor, shorten: bool) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x, dtype=torch.float32)
    rows, dim = x.numel() // x.shape[-1], x.shape[-1]
    conjugate = by.is_conj()
    table = torch.view_as_real((by.conj() if conjugate else by).to(torch.complex64).contiguous())
    strides = (4, 1)
    matrices = table
    if motion is not None:
        matrices = motion.float()
        if matrices.mT.is_contiguous():
            strides = (1, 4)
        else:
            matrices = matrices.contiguous()
    points = 0 if motion is None else dim // 8
    _move_kernel[(triton.cdiv(rows, 16),)](
        x, matrices, table, out, rows, x.shape[1] * x.shape[2], x.shape[3], *strides,
        D=dim, POINTS=points, CONJUGATE=conjugate, SHORTEN=shorten,
        BR=16, BG=triton.next_power_of_2(max(points, 1)), BP=triton.next_power_of_2((dim - 4 * points) // 2),
    )  # fmt: skip
    return out
