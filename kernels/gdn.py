"""Frame-wise gated delta rule: linear attention whose memory is corrected once a frame, by all its tokens at once.

A frame with keys K [S, D], values V, corrections B = diag(beta) and decay g turns the memory M [D, V] into

    M <- g M + K^T B (V - K g M) = g (I - P) M + U,    P = K^T B K [D, D],    U = K^T B V [D, V]

The left form (`gdn_reference.py`) reads as the rule is meant, but a frame's keys wait for the frame before. The right
one splits it: P and U of all frames at once, over all tokens; then the memories, one frame after the other but without
tokens; then all answers at once. Both directions of time share P and U, and their memories are added before queries
read them, so both ways cost 3 S D^2 + 2 D^3 multiplications a frame and head where the left form takes 6 S D^2, and
almost all of them are free of any order: on a GPU B x T x H programs instead of B x H.

No history of memories is kept. Frames are taken CHUNK at a time, so that P, U and memories of one chunk are all there
is of them: at 20 heads of 112, five times 32 MB in float32, where q of a minute's clip is 950 MB. Of both directions
the forward one is first run to the last chunk, to know the memories at the chunks' borders, which builds P and U twice
for clips of more than one chunk (5 S D^2). Gradients keep the inputs and the memories at the borders, and build the
rest again.

Everything is float32, whatever the inputs: memories add up over a clip. float64 inputs stay so, for tests.

Sources: Yang et al., Gated Delta Networks, arXiv 2412.06464; frame-wise and both ways: SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import gdn_torch
from .backend import runs_triton

CHUNK = 32  # frames

Ways = tuple[bool, bool]  # whether the forward and the backward direction are asked for


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
    """What a memory M of key-value pairs answers to the queries of T frames of S tokens, in one direction of time.

    A frame with decay g turns M into g M + sum_s beta_s (v_s - g M k_s) k_s^T. Forward, its own queries read the new M;
    backward, from the last frame to the first, they read M as the frame found it, so that the two directions together
    see every frame once. A frame with beta 0 and decay 1 leaves M as it is.

    With v = 1 (V = 1), M is the sum of keys that normalises linear attention.

    Args:
        q, k: [B, T, S, H, D], k scaled so that a frame's sum_s beta_s |k_s|^2 is about 1 or less.
        v: [B, T, S, H, V].
        beta: [B, T, S, H] in [0, 1], how far a token corrects the memory.
        decay: [B, T, H] in [0, 1], how much of the memory a frame keeps.
        state: [B, H, V, D] M before the first frame of the direction; zero where None.

    Returns:
        The answers M q [B, T, S, H, V] and M after the last frame of the direction [B, H, V, D], both float32, and
        differentiable by every argument.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(q, k, v, beta, decay, state)
    memory = None if state is None else state.mT
    answers, last = _GatedDelta.apply(q, k, v, beta, decay, memory, (not backward, backward))
    return answers, last.mT


def both_ways(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """The sum of the answers of a forward and a backward `scan` from empty memories: [B, T, S, H, V], float32."""
    _check(q, k, v, beta, decay, None)
    return _GatedDelta.apply(q, k, v, beta, decay, None, (True, True))[0]


class _GatedDelta(torch.autograd.Function):
    """Memories here are M^T [B, H, D, V]; a history of T frames has T + 1, entry t between frames t - 1 and t.

    So frame t reads entry t + 1 in both directions: the forward memory after it, the backward one before it.
    """

    @staticmethod
    def forward(ctx: Any, q, k, v, beta, decay, first, ways: Ways) -> tuple[Tensor, Tensor]:
        ops, forth, back = _ops(q), *ways
        dtype = torch.promote_types(q.dtype, torch.float32)
        chunks = _chunks(q.shape[1])
        if first is None:
            first = q.new_zeros(q.shape[0], *q.shape[3:], v.shape[-1], dtype=dtype)
        before = [first.to(dtype)]  # the forward memory at the beginning of each chunk, from the first on
        after = [first.to(dtype)]  # the backward memory at the end of each chunk, from the last on
        if forth and back:
            for c in chunks[:-1]:
                p, u = ops.transitions(k[:, c], v[:, c], beta[:, c])
                before.append(ops.walk(p, u, decay[:, c], before[-1])[:, -1].clone())

        answers = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=dtype)
        for i in reversed(range(len(chunks))) if back else range(len(chunks)):
            c = chunks[i]
            p, u = ops.transitions(k[:, c], v[:, c], beta[:, c])
            reads = []
            if forth:
                history = ops.walk(p, u, decay[:, c], before[i])
                reads.append(history[:, 1:])
                if not back:
                    before.append(history[:, -1].clone())
            if back:
                history = ops.walk(p, u, decay[:, c], after[-1], backward=True)
                reads.append(history[:, 1:])
                after.append(history[:, 0].clone())
            ops.read(q[:, c], _total(reads), out=answers[:, c])
        ctx.save_for_backward(q, k, v, beta, decay, *before, *after)
        ctx.ways, ctx.borders = ways, len(before)
        return answers, after[-1] if back else before[-1]

    @staticmethod
    def backward(ctx: Any, d_answers: Tensor, d_last: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adjoints of memories walk the other way: through the same transitions, fed by q^T d_answers instead of U."""
        q, k, v, beta, decay, *borders = ctx.saved_tensors
        before, after = borders[: ctx.borders], borders[ctx.borders :]
        ops, (forth, back) = _ops(q), ctx.ways
        chunks = _chunks(q.shape[1])
        grads = [torch.empty_like(x) for x in (q, k, v, beta, decay)]
        adjoint = d_last  # of the memory that the loop below walks with: the forward one, unless only backward is asked
        adjoints_back = [torch.zeros_like(d_last) if forth else d_last]  # at the beginning of each chunk
        if forth and back:
            adjoint = torch.zeros_like(d_last)
            for c in chunks[:-1]:
                p = ops.products(k[:, c], k[:, c], beta[:, c])
                d_read = ops.products(q[:, c], d_answers[:, c])
                adjoints_back.append(ops.walk(p, d_read, decay[:, c], adjoints_back[-1])[:, -1].clone())

        for i in reversed(range(len(chunks))) if forth else range(len(chunks)):
            c = chunks[i]
            gate = decay[:, c, :, None, None].to(d_last.dtype)
            p, u = ops.transitions(k[:, c], v[:, c], beta[:, c])
            d_read = ops.products(q[:, c], d_answers[:, c])
            reads = []
            sides = []  # of each direction: the memory that each frame changes, and the adjoint of what it makes of it
            if forth:
                history = ops.walk(p, u, decay[:, c], before[i])
                reads.append(history[:, 1:])
                fed = gate * (d_read - p @ d_read)
                walk = ops.walk(p, fed, decay[:, c], adjoint, backward=True)
                adjoint = walk[:, 0].clone()
                sides.append((history[:, :-1], walk[:, 1:] + d_read))
            if back:
                history = ops.walk(p, u, decay[:, c], after[len(chunks) - 1 - i], backward=True)
                reads.append(history[:, 1:])
                walk = ops.walk(p, d_read, decay[:, c], adjoints_back[i])
                if not forth:
                    adjoint = walk[:, -1].clone()
                    adjoints_back.append(adjoint)
                sides.append((history[:, 1:], walk[:, :-1]))

            d_u = _total([made for _, made in sides])
            d_p = -gate * _total([made @ found.mT for found, made in sides])
            d_gate = _total([((found - p @ found) * made).sum((-1, -2)) for found, made in sides])
            of_keys = ops.read(k[:, c], (d_p + d_p.mT) / 2)
            of_values = ops.read(v[:, c], d_u.mT)
            weight = beta[:, c, ..., None]
            grads[0][:, c] = ops.read(d_answers[:, c], _total(reads).mT)
            grads[1][:, c] = weight * (2 * of_keys + of_values)
            grads[2][:, c] = weight * ops.read(k[:, c], d_u)
            grads[3][:, c] = (k[:, c] * (of_keys + of_values)).sum(-1)
            grads[4][:, c] = d_gate
        return *grads, adjoint if ctx.needs_input_grad[5] else None, None


def _ops(q: Tensor) -> ModuleType:
    if runs_triton(q):
        from . import gdn_triton

        return gdn_triton
    return gdn_torch


def _total(ways: list[Tensor]) -> Tensor:
    return ways[0] + ways[1] if len(ways) == 2 else ways[0]


def _chunks(frames: int) -> list[slice]:
    return [slice(t, min(t + CHUNK, frames)) for t in range(0, frames, CHUNK)]


def _check(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor | None) -> None:
    if q.ndim != 5 or 0 in q.shape:
        raise ValueError(f"q has shape {list(q.shape)}, not [B, T, S, H, D] with at least one of each")
    batch, frames, tokens, heads, dim = q.shape
    want = {
        "k": (k, (batch, frames, tokens, heads, dim)),
        "v": (v, (batch, frames, tokens, heads, v.shape[-1])),
        "beta": (beta, (batch, frames, tokens, heads)),
        "decay": (decay, (batch, frames, heads)),
    }
    if state is not None:
        want["state"] = (state, (batch, heads, v.shape[-1], dim))
    for name, (tensor, shape) in want.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; for q {list(q.shape)} it takes {list(shape)}")
