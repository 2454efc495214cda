"""Frame-wise gated delta rule: linear attention whose memory is corrected once a frame, by all its tokens at once.

The plain reference, and what runs on a CPU: one frame after the other in matrix products over all heads, so that no
history of states is kept, in float32.

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
        The answers M q [B, T, S, H, V] and M after the last frame of the direction [B, H, V, D], both float32.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(q, k, v, beta, decay, state)
    batch, frames, _, heads, dim = q.shape
    if state is None:
        state = torch.zeros(batch, heads, v.shape[-1], dim, device=q.device)
    memory = state.mT.float()  # [B, H, D, V]
    out: list[Tensor] = []
    for t in range(frames - 1, -1, -1) if backward else range(frames):
        q_t, k_t, v_t = (x[:, t].transpose(1, 2).float() for x in (q, k, v))  # [B, H, S, D or V]
        if backward:
            out.append(q_t @ memory)
        memory = decay[:, t, :, None, None].float() * memory
        change = beta[:, t].transpose(1, 2)[..., None].float() * (v_t - k_t @ memory)
        memory = memory + k_t.mT @ change
        if not backward:
            out.append(q_t @ memory)
    answers = torch.stack(out[::-1] if backward else out, dim=1)  # [B, T, H, S, V]
    return answers.transpose(2, 3), memory.mT


def both_ways(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """The sum of the answers of a forward and a backward `scan` from empty memories: [B, T, S, H, V], float32."""
    return scan(q, k, v, beta, decay)[0] + scan(q, k, v, beta, decay, backward=True)[0]


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
