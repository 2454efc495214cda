"""SANA-WM's first stage: noisy latent frames, a text and a camera path to the velocity of the latents' flow.

Written for inference from a description of the published network; names in the state dict are the checkpoint's. What
depends on the conditions alone is computed once for all steps, by `SanaWM.prepare`.
Source: SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.linear import linear
from .attention import Linear, Places, SelfAttention
from .config import SanaWMConfig
from .encoding import RayEncoding, turns

TIME_WIDTH = 256
# Numbers of the MLP's widest activation at once. A few frames fill a GPU; fewer yet stay in a CPU's cache.
MLP_NUMBERS = {"cuda": 2**26, "cpu": 2**20}
CONV_NUMBERS = 2**28  # that a convolution takes at once; indices of 2^31 and more break it


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """What a clip of T latent frames of rows x cols is to show."""

    text: Tensor  # [B, L, text_width] hidden states of the text encoder
    text_mask: Tensor | None  # [B, L] True where a word is; None: all are
    camera: Tensor | None  # [B, T, 20] world_from_cam row by row, then fx, fy, cx, cy in latent pixels; see camera.py
    plucker: Tensor | None  # [B, plucker_channels, T, rows, cols] rays of the source frames
    valid: Tensor | None = None  # [B, T] False where a frame is padding

    def __post_init__(self) -> None:
        mask = self.text_mask
        said = "no mask" if mask is None else f"its mask {mask.dtype} {list(mask.shape)}"
        if self.text.ndim != 3 or said not in ("no mask", f"its mask {torch.bool} {list(self.text.shape[:2])}"):
            raise ValueError(f"text is {list(self.text.shape)} and {said}, not [B, L, text_width] and bool [B, L]")

    def trimmed(self) -> Conditions:
        """The same without the places that hold a word in no text: fewer keys, and for a single text no mask, which
        keeps the fastest attention from being used.

        Raises:
            ValueError: a text has no word.
        """
        if self.text_mask is None:
            return self
        if not self.text_mask.any(1).all():
            raise ValueError("a text has no word: its mask is False everywhere")
        some = self.text_mask.any(0)
        mask = self.text_mask[:, some]
        return replace(self, text=self.text[:, some], text_mask=None if mask.all() else mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Conditions as the blocks take them, for latents of one shape."""

    shape: torch.Size  # of the latents
    places: Places
    rays: Tensor | None  # [B, T, S, plucker_channels]
    blocks: tuple[BlockConditions, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockConditions:
    """What one block takes from text and rays."""

    words: Words
    of_rays: tuple[Tensor, Tensor] | None  # matrix [C, plucker_channels] and bias [C] of the rays' injection


class SanaWM(nn.Module):
    """The network. It computes in the type of its weights; gates, linear attention and geometry are always float32.

    Args:
        attention_dtype: what queries, keys and values of softmax self-attention are rounded to. The published code
            takes bfloat16 even in a float32 network; None leaves them in the network's type.
    """

    def __init__(self, config: SanaWMConfig, *, attention_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.t_embedder = TimeEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.x_embedder = PointConv(config.latent_channels, width)
        self.y_embedder = TextEmbedder(config.text_width, width)
        self.attention_y_norm = nn.RMSNorm(width, eps=1e-5)
        self.plucker_embedder = PointConv(config.plucker_channels, width)
        self.raymap_embedder = PointConv(3, width)  # in the checkpoint without being used
        self.blocks = nn.ModuleList(Block(config, i, attention_dtype) for i in range(config.depth))
        self.final_layer = FinalLayer(width, config.latent_channels)

    def forward(self, latents: Tensor, timesteps: Tensor, conditions: Conditions | Prepared) -> Tensor:
        """The velocity, noise minus data, of latents [B, latent_channels, T, rows, cols]: the same shape, float32.

        Args:
            timesteps: [B, T] of each latent frame, 1000 for noise and 0 for a clean frame; truncated to integers, as
                in training.
            conditions: prepared, where they serve more than one call.

        Raises:
            ValueError: the shapes do not belong together.
        """
        given = self.prepare(conditions, latents) if isinstance(conditions, Conditions) else conditions
        if latents.shape != given.shape:
            raise ValueError(f"latents are {list(latents.shape)}, the prepared conditions for {list(given.shape)}")
        times = [latents.shape[0], latents.shape[2]]
        if list(timesteps.shape) != times:
            raise ValueError(
                f"timesteps has shape {list(timesteps.shape)}; for latents {list(latents.shape)} it takes {times}"
            )

        x = self.x_embedder(latents.to(self.dtype))
        t = self.t_embedder(timesteps)
        t6 = self.t_block(t).unflatten(-1, (6, -1))  # [B, T, 6, C]
        for block, conditions_of_block in zip(self.blocks, given.blocks, strict=True):
            x = block(x, t6, conditions_of_block, given)
        x = self.final_layer(x, t)
        return x.float().unflatten(2, latents.shape[3:]).movedim(-1, 1)

    def prepare(self, conditions: Conditions, latents: Tensor) -> Prepared:
        """Conditions for all latents [B, latent_channels, T, rows, cols] of one shape.

        Raises:
            ValueError: the shapes do not belong together.
        """
        self._check(latents, conditions)
        shape = latents.shape
        grid = (shape[2], shape[3], shape[4])
        whole, half = turns(grid, self.config.head_dim, latents.device)
        places = Places(
            turns=whole,
            rays=None if conditions.camera is None else RayEncoding.of(conditions.camera, grid, half),
            valid=None if conditions.valid is None else conditions.valid[..., None, None].to(self.dtype),
        )
        text = self.attention_y_norm(self.y_embedder(conditions.text.to(self.dtype)))
        rays = conditions.plucker
        blocks = []
        for block in self.blocks:
            assert isinstance(block, Block)
            words = block.cross_attn.words(text, conditions.text_mask)
            of_rays = None if rays is None else block.of_rays(self.plucker_embedder.proj)
            blocks.append(BlockConditions(words=words, of_rays=of_rays))
        return Prepared(
            shape=shape,
            places=places,
            rays=None if rays is None else rays.movedim(1, -1).flatten(2, 3).to(self.dtype).contiguous(),
            blocks=tuple(blocks),
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.final_layer.linear.weight.dtype

    def _check(self, latents: Tensor, conditions: Conditions) -> None:
        config = self.config
        if latents.ndim != 5 or latents.shape[1] != config.latent_channels or not latents.is_floating_point():
            raise ValueError(
                f"latents are {latents.dtype} {list(latents.shape)}, "
                f"not floats [B, {config.latent_channels}, T, rows, cols]"
            )
        batch, _, frames, rows, cols = latents.shape
        text = conditions.text.shape[1]
        for name, tensor, shape in (
            ("text", conditions.text, (batch, text, config.text_width)),
            ("camera", conditions.camera, (batch, frames, 20)),
            ("plucker", conditions.plucker, (batch, config.plucker_channels, frames, rows, cols)),
            ("valid", conditions.valid, (batch, frames)),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; for latents {list(latents.shape)} it takes {list(shape)}"
                )


class Block(nn.Module):
    """Attention over the clip, the rays' injection, attention to the text, and a convolutional MLP."""

    def __init__(self, config: SanaWMConfig, index: int, attention_dtype: torch.dtype | None) -> None:
        super().__init__()
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.attn = SelfAttention(config, softmax=index in config.softmax_blocks, attention_dtype=attention_dtype)
        self.plucker_proj = Linear(width, width) if index < config.plucker_blocks else None
        self.cross_attn = CrossAttention(config)
        self.mlp = ConvMlp(width, config.ffn_width)

    def forward(self, x: Tensor, t6: Tensor, given: BlockConditions, clip: Prepared) -> Tensor:
        """x [B, T, S, C] -> the same shape."""
        modulation = (self.scale_shift_table + t6)[:, :, :, None]  # [B, T, 6, 1, C]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(2)
        keep = clip.places.valid
        x = torch.addcmul(x, gate_a, self.attn(_mask(_modulated(x, shift_a, scale_a), keep), clip.places))
        if clip.rays is not None and given.of_rays is not None:
            x = linear(clip.rays, *given.of_rays).add_(x)
        x = self.cross_attn(x, given.words).add_(x)
        w = _mask(_modulated(x, shift_f, scale_f), keep)
        return _mask(torch.addcmul(x, gate_f, self.mlp(w, clip.shape[3:])), keep)

    def of_rays(self, embedder: nn.Conv3d) -> tuple[Tensor, Tensor] | None:
        """`embedder` and then this block's map of its result in one: there is nothing between them, and it costs a
        fortieth.
        """
        if self.plucker_proj is None:
            return None
        matrix, out = self.plucker_proj.weight.float(), self.plucker_proj.weight.dtype
        assert embedder.bias is not None
        bias = matrix @ embedder.bias.float() + self.plucker_proj.bias.float()
        return (matrix @ embedder.weight.flatten(1).float()).to(out), bias.to(out)


@dataclass(frozen=True, eq=False)
class Words:
    """A text's keys and values for one block."""

    keys: Tensor  # [B, heads, L, D]
    values: Tensor
    mask: Tensor | None  # [B, 1, 1, L] True where a word is; None: all are


class CrossAttention(nn.Module):
    """What every token takes from the text."""

    def __init__(self, config: SanaWMConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.text_heads
        self.q_linear = Linear(width, width)
        self.kv_linear = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.q_norm = nn.RMSNorm(width, eps=1e-6)
        self.k_norm = nn.RMSNorm(width, eps=1e-6)

    def words(self, text: Tensor, text_mask: Tensor | None) -> Words:
        """Of text [B, L, C], of which the words are where text_mask [B, L] is True."""
        k, v = self.kv_linear(text).chunk(2, dim=-1)
        mask = None if text_mask is None else text_mask[:, None, None]
        return Words(self._split(self.k_norm(k)), self._split(v), mask)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x [B, T, S, C] -> the same shape."""
        q = self._split(self.q_norm(self.q_linear(x.flatten(1, 2))))
        out = F.scaled_dot_product_attention(q, words.keys, words.values, attn_mask=words.mask)
        return self.proj(out.transpose(1, 2).flatten(2)).unflatten(1, x.shape[1:3])

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ConvMlp(nn.Module):
    """A gated MLP with a 3 x 3 filter in space, then a convolution over three frames added to its result.

    A few frames at a time, channels last: its widest activations, six times the network's, never exist for a clip.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inverted_conv = PixelLinear(nn.Conv2d(width, 2 * hidden, 1))
        self.depth_conv = _Conv(nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = PixelLinear(nn.Conv2d(hidden, width, 1, bias=False))
        self.t_conv = nn.Conv2d(width, width, (3, 1), padding=(1, 0), bias=False)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x [B, T, S, C] of S = rows x cols -> the same shape."""
        images = x.flatten(0, 1).unflatten(1, grid[-2:])  # [B * T, rows, cols, C]
        wide = self.depth_conv.conv.out_channels * x.shape[2]
        most = max(1, MLP_NUMBERS.get(x.device.type, 2**26) // wide)
        y = torch.cat([self._in_space(part) for part in images.split(most)]).view(x.shape)
        return self._in_time(y)

    def _in_space(self, x: Tensor) -> Tensor:
        """[n, rows, cols, C] -> the same shape."""
        x = F.silu(self.inverted_conv(x), inplace=True)
        value, gate = self.depth_conv(x.movedim(-1, 1)).movedim(1, -1).chunk(2, dim=-1)
        return self.point_conv(F.silu(gate).mul_(value))

    def _in_time(self, y: Tensor) -> Tensor:
        """y [B, T, S, C] and its filtered frames: the same shape."""
        frames = y.shape[1]
        most = max(1, CONV_NUMBERS // (y.shape[0] * y.shape[2] * y.shape[3]))
        parts = []
        for first in range(0, frames, most):
            begin, end = max(first - 1, 0), first + most + 1  # with a neighbour on both sides, where there is one
            near = y[:, begin:end]
            both = self.t_conv(near.movedim(-1, 1)).movedim(1, -1).add_(near)
            parts.append(both[:, first - begin : first - begin + most])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class _Conv(nn.Module):
    """A convolution under the checkpoint's name."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PixelLinear(nn.Module):
    """A 1 x 1 convolution under the checkpoint's name, computed as what it is: a linear map of [..., channels]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.conv.weight.flatten(1), self.conv.bias)


class PointConv(nn.Module):
    """A linear map of every latent pixel's channels: [B, channels, T, rows, cols] -> tokens [B, T, S, C]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.movedim(1, -1).flatten(2, 3), self.proj.weight.flatten(1), self.proj.bias)


class TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(TIME_WIDTH, width)
        self.linear_2 = Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        """[B, T] -> [B, T, C]."""
        half = TIME_WIDTH // 2
        frequency = torch.exp(-math.log(10000) / half * torch.arange(half, device=timesteps.device))
        angle = timesteps.long()[..., None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], -1)
        return self.linear_2(F.silu(self.linear_1(wave.to(self.linear_1.weight.dtype))))


class TextEmbedder(nn.Module):
    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.y_proj = nn.ModuleDict({"fc1": Linear(text_width, width), "fc2": Linear(width, width)})

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj["fc2"](F.gelu(self.y_proj["fc1"](text), approximate="tanh"))


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.linear = Linear(width, channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, T, S, C] and the frames' times t [B, T, C] -> [B, T, S, channels]."""
        shift, scale = (self.scale_shift_table + t[:, :, None])[:, :, :, None].unbind(2)
        return self.linear(_modulated(x, shift, scale))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, _norm(x), 1 + scale)


def _mask(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep
