"""SANA-WM's first stage: noisy latent frames, a text and a camera path to the velocity of the latents' flow.

Written for inference from a description of the published network; names in the state dict are the checkpoint's.
Source: SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import CrossAttention, Places, SelfAttention
from .config import SanaWMConfig
from .encoding import RayEncoding, turns

TIME_WIDTH = 256
FFN_NUMBERS = 2**28  # of the widest activation at once; indices of 2^31 and more break convolutions


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """What a clip of T latent frames of rows x cols is to show."""

    text: Tensor  # [B, L, text_width] hidden states of the text encoder
    text_mask: Tensor  # [B, L] True where a word is
    camera: Tensor | None  # [B, T, 20] world_from_cam row by row, then fx, fy, cx, cy in latent pixels; see camera.py
    plucker: Tensor | None  # [B, plucker_channels, T, rows, cols] rays of the source frames
    valid: Tensor | None = None  # [B, T] False where a frame is padding

    def __post_init__(self) -> None:
        if self.text.ndim != 3 or self.text_mask.shape != self.text.shape[:2] or self.text_mask.dtype != torch.bool:
            raise ValueError(
                f"text is {list(self.text.shape)} and its mask {self.text_mask.dtype} {list(self.text_mask.shape)}, "
                "not [B, L, text_width] and bool [B, L]"
            )


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
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.x_embedder = PointConv(config.latent_channels, width)
        self.y_embedder = TextEmbedder(config.text_width, width)
        self.attention_y_norm = nn.RMSNorm(width, eps=1e-5)
        self.plucker_embedder = PointConv(config.plucker_channels, width)
        self.raymap_embedder = PointConv(3, width)  # in the checkpoint without being used
        self.blocks = nn.ModuleList(Block(config, i, attention_dtype) for i in range(config.depth))
        self.final_layer = FinalLayer(width, config.latent_channels)

    def forward(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The velocity, noise minus data, of latents [B, latent_channels, T, rows, cols]: the same shape, float32.

        Args:
            timesteps: [B, T] of each latent frame, 1000 for noise and 0 for a clean frame; truncated to integers, as
                in training.

        Raises:
            ValueError: the shapes do not belong together.
        """
        self._check(latents, timesteps, conditions)
        grid = (latents.shape[2], latents.shape[3], latents.shape[4])
        dtype = self.final_layer.linear.weight.dtype
        valid = None if conditions.valid is None else conditions.valid[..., None, None].to(dtype)

        x = self.x_embedder(latents.to(dtype))
        t = self.t_embedder(timesteps)
        t6 = self.t_block(t).unflatten(-1, (6, -1))  # [B, T, 6, C]
        text = self.attention_y_norm(self.y_embedder(conditions.text.to(dtype)))
        plucker = None if conditions.plucker is None else self.plucker_embedder(conditions.plucker.to(dtype))
        whole, half = turns(grid, self.config.head_dim, latents.device)
        rays = None if conditions.camera is None else RayEncoding.of(conditions.camera, grid, half)
        places = Places(turns=whole, rays=rays, valid=valid)
        for block in self.blocks:
            x = block(x, t6, text, conditions.text_mask, plucker, places, grid)
        x = self.final_layer(x, t)
        return x.float().unflatten(2, grid[1:]).movedim(-1, 1)

    def _check(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> None:
        config = self.config
        if latents.ndim != 5 or latents.shape[1] != config.latent_channels or not latents.is_floating_point():
            raise ValueError(
                f"latents are {latents.dtype} {list(latents.shape)}, "
                f"not floats [B, {config.latent_channels}, T, rows, cols]"
            )
        batch, _, frames, rows, cols = latents.shape
        text = conditions.text.shape[1]
        for name, tensor, shape in (
            ("timesteps", timesteps, (batch, frames)),
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
        self.plucker_proj = nn.Linear(width, width) if index < config.plucker_blocks else None
        self.cross_attn = CrossAttention(config)
        self.mlp = ConvMlp(width, config.ffn_width)

    def forward(
        self,
        x: Tensor,
        t6: Tensor,
        text: Tensor,
        text_mask: Tensor,
        plucker: Tensor | None,
        places: Places,
        grid: tuple[int, int, int],
    ) -> Tensor:
        """x [B, T, S, C] -> the same shape."""
        modulation = (self.scale_shift_table + t6)[:, :, :, None]  # [B, T, 6, 1, C]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(2)
        keep = places.valid
        x = x + gate_a * self.attn(_mask(_norm(x) * (1 + scale_a) + shift_a, keep), places)
        if self.plucker_proj is not None and plucker is not None:
            x = x + self.plucker_proj(plucker)
        x = x + self.cross_attn(x, text, text_mask)
        return _mask(x + gate_f * self.mlp(_mask(_norm(x) * (1 + scale_f) + shift_f, keep), grid), keep)


class ConvMlp(nn.Module):
    """A gated MLP with a 3 x 3 filter in space, then a convolution over three frames added to its result."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inverted_conv = _Conv(nn.Conv2d(width, 2 * hidden, 1))
        self.depth_conv = _Conv(nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = _Conv(nn.Conv2d(hidden, width, 1, bias=False))
        self.t_conv = nn.Conv2d(width, width, (3, 1), padding=(1, 0), bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """x [B, T, S, C] -> the same shape."""
        images = x.flatten(0, 1).unflatten(1, grid[1:]).movedim(-1, 1)  # [B * T, C, rows, cols]
        most = max(1, FFN_NUMBERS // (self.inverted_conv.conv.out_channels * grid[1] * grid[2]))
        parts = [self._in_space(part) for part in images.split(most)]
        y = torch.cat(parts).movedim(1, -1).flatten(1, 2).unflatten(0, x.shape[:2])
        return y + self.t_conv(y.movedim(-1, 1)).movedim(1, -1)

    def _in_space(self, x: Tensor) -> Tensor:
        value, gate = self.depth_conv(F.silu(self.inverted_conv(x))).chunk(2, dim=1)
        return self.point_conv(value * F.silu(gate))


class _Conv(nn.Module):
    """A convolution under the checkpoint's name."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PointConv(nn.Module):
    """A linear map of every latent pixel's channels: [B, channels, T, rows, cols] -> tokens [B, T, S, C]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1).flatten(2, 3), self.proj.weight.flatten(1), self.proj.bias)


class TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_WIDTH, width)
        self.linear_2 = nn.Linear(width, width)

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
        self.y_proj = nn.ModuleDict({"fc1": nn.Linear(text_width, width), "fc2": nn.Linear(width, width)})

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj["fc2"](F.gelu(self.y_proj["fc1"](text), approximate="tanh"))


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.linear = nn.Linear(width, channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, T, S, C] and the frames' times t [B, T, C] -> [B, T, S, channels]."""
        shift, scale = (self.scale_shift_table + t[:, :, None])[:, :, :, None].unbind(2)
        return self.linear(_norm(x) * (1 + scale) + shift)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _mask(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep
