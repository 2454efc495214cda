"""SANA-WM's self-attention: gated delta networks over frames, softmax in every fourth block.

Each self-attention has a second, camera branch, with projections of its own, whose queries, keys and values are seen
from the tokens' rays; its output is added before the gate. Tokens are [B, T, S, C]: S tokens a latent frame.
Names in the state dict are the checkpoint's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels import gdn
from ...kernels.features import features, short_conv
from ...kernels.linear import linear
from ...kernels.ucpe import turn
from .config import SanaWMConfig
from .encoding import RayEncoding

KEY_TAPS = 4
NORM_EPS = 1e-5
EPS = 1e-8  # added to the normaliser of linear attention

Gates = tuple[Tensor, Tensor]  # beta [B, T, S, H] of every token and decay [B, T, H] of every frame, float32


@dataclass(frozen=True, eq=False)
class Places:
    """What all blocks know of their tokens."""

    turns: Tensor  # [T, S, 1, D / 2]
    rays: RayEncoding | None  # None: no camera branch
    valid: Tensor | None  # [B, T, 1, 1] 1.0 where a frame is one, 0.0 where it is padding; None: all are


class Linear(nn.Linear):
    """A linear map by `kernels.linear`, which is faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class ShortConv(nn.Module):
    """A filter over frames for each channel: `weight`'s taps backwards in time, the last on the frame, and mirrored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, KEY_TAPS))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, S, C]; frames before the first and after the last are zero."""
        return short_conv(x, self.weight[:, 0])


class SelfAttention(nn.Module):
    """Both branches of one block's attention over all tokens; `softmax` chooses its kind.

    A softmax block's gates (`beta_proj`, `gate_proj`, `A_log`, `dt_bias`) are in the checkpoint without being used.
    """

    recall_gate: Tensor

    def __init__(self, config: SanaWMConfig, *, softmax: bool, attention_dtype: torch.dtype | None) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.heads, self.softmax, self.attention_dtype = heads, softmax, attention_dtype
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.register_buffer("recall_gate", torch.zeros(1))  # no use is known
        self.qkv = Linear(width, 3 * width, bias=False)
        self.proj = Linear(width, width)
        self.q_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.beta_proj = Linear(width, heads)
        self.gate_proj = Linear(width, heads)
        self.output_gate = Linear(width, width)
        self.q_proj_cam = Linear(width, width)
        self.k_proj_cam = Linear(width, width)
        self.v_proj_cam = Linear(width, width)
        self.out_proj_cam = Linear(width, width)
        self.q_norm_cam = nn.RMSNorm(width, eps=NORM_EPS)
        self.k_norm_cam = nn.RMSNorm(width, eps=NORM_EPS)
        if not softmax:
            self.conv_k = ShortConv(width)
            self.conv_k_cam = ShortConv(width)

    def forward(self, u: Tensor, places: Places) -> Tensor:
        """u [B, T, S, C] -> the same shape and type."""
        gates = None if self.softmax else self._gates(u, places.valid)
        q, k, v = self.qkv(u).chunk(3, dim=-1)
        out = self._main(q, k, v, places, gates).to(u.dtype)
        if places.rays is not None:
            q, k, v = self.q_proj_cam(u), self.k_proj_cam(u), self.v_proj_cam(u)
            if places.valid is not None:  # the bias: padding is to be nothing to the filter over frames
                k = k * places.valid
            out = self.out_proj_cam(self._camera(q, k, v, places.rays, places.valid, gates).to(u.dtype)).add_(out)
        return self.proj(F.silu(self.output_gate(u).float(), inplace=True).mul_(out).to(u.dtype))

    def _gates(self, u: Tensor, valid: Tensor | None) -> Gates:
        beta = self.beta_proj(u).float().sigmoid()
        step = F.softplus(self.gate_proj(u.mean(2)).float() + self.dt_bias.float())
        decay = (-self.A_log.float().exp() * step).exp()
        if valid is not None:  # padding does not touch the memory
            beta, decay = beta * valid, torch.where(valid[..., 0] > 0, decay, 1.0)
        return beta, decay

    def _main(self, q: Tensor, k: Tensor, v: Tensor, places: Places, gates: Gates | None) -> Tensor:
        if gates is None:
            q, k, v = self._split(self.q_norm(q)), self._split(self.k_norm(k)), self._split(v)
            q, k = turn(q, places.turns).to(v.dtype), turn(k, places.turns).to(v.dtype)
            out = softmax_attention(q, k, v, scale=q.shape[-1] ** -0.5, dtype=self.attention_dtype)
        else:
            q, k, v = self._features(q, k, v, self.q_norm, self.k_norm, self.conv_k)
            out = linear_attention(q, k, v, gates, places.turns)
        return out.flatten(-2)

    def _camera(
        self, q: Tensor, k: Tensor, v: Tensor, rays: RayEncoding, valid: Tensor | None, gates: Gates | None
    ) -> Tensor:
        if gates is None:
            q, k, v = self._split(self.q_norm_cam(q)), self._split(self.k_norm_cam(k)), self._split(v)
            out = softmax_ray_attention(q, k, v, rays, valid=valid, dtype=self.attention_dtype)
        else:
            q, k, v = self._features(q, k, v, self.q_norm_cam, self.k_norm_cam, self.conv_k_cam)
            out = linear_ray_attention(q, k, v, gates, rays)
        return out.flatten(-2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # [B, T, S, H, D]

    def _features(
        self, q: Tensor, k: Tensor, v: Tensor, q_norm: nn.RMSNorm, k_norm: nn.RMSNorm, conv: ShortConv
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Heads [B, T, S, H, D], q and k in float32, not negative, k scaled by its width and the frame's tokens."""
        scale = (k.shape[-1] // self.heads * k.shape[2]) ** -0.5
        q = features(q, q_norm.weight, eps=NORM_EPS)
        k = features(k, k_norm.weight, eps=NORM_EPS, scale=scale, taps=conv.weight[:, 0])
        return self._split(q), self._split(k), self._split(v)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, gates: Gates, turns: Tensor) -> Tensor:
    """[B, T, S, H, D] each: values by turned queries and keys, over the sum of keys as they are."""
    above = gdn.both_ways(turn(q, turns), turn(k, turns), v, *gates)
    below = gdn.both_ways(q, k, torch.ones_like(v[..., :1]), *gates)
    return above / (below + EPS)


def linear_ray_attention(q: Tensor, k: Tensor, v: Tensor, gates: Gates, rays: RayEncoding) -> Tensor:
    """As `linear_attention`, by queries and keys seen from their rays, and not normalised."""
    seen = rays.key(k)
    return rays.decode(gdn.both_ways(rays.query(q), seen, rays.key(v), ray_beta(gates[0], k, seen), gates[1]))


def ray_beta(beta: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """beta [B, T, S, H], smaller where a frame's keys are longer as seen from their rays."""
    seen_length, length = (torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-6) for x in (seen, k))
    return beta / (seen_length / length).square().mean(2, keepdim=True).clamp(min=1.0)


def softmax_ray_attention(
    q: Tensor, k: Tensor, v: Tensor, rays: RayEncoding, *, valid: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    """[B, T, S, H, D] each: softmax attention to the valid frames' keys, all seen from their rays."""
    scale = _published_width(q.shape[-1]) ** -0.5
    q, k, v = rays.query(q).to(v.dtype), rays.key(k).to(v.dtype), rays.key(v).to(v.dtype)
    return rays.decode(softmax_attention(q, k, v, scale=scale, dtype=dtype, valid=valid))


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, dtype: torch.dtype | None, valid: Tensor | None = None
) -> Tensor:
    """[B, T, S, H, D] each: every token to every token, of valid frames; in `dtype`, or in the inputs' where None."""
    grid, out_dtype = q.shape[1:3], v.dtype
    q, k, v = (x.flatten(1, 2).transpose(1, 2).to(dtype or out_dtype) for x in (q, k, v))
    mask = None if valid is None else (valid > 0).expand(*valid.shape[:2], grid[1], 1).flatten(1)[:, None, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).unflatten(1, grid).to(out_dtype)


def _published_width(dim: int) -> int:
    """Heads of other widths are published padded with zeros, which changes nothing but the scale of the logits."""
    return dim if dim in (32, 64, 128, 256) else 128 if dim < 128 else 256
