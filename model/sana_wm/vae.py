"""LTX-2's video autoencoder: a picture into a latent frame, and latent frames into a video that never lies in memory.

The decoder looks one frame ahead in every convolution, so its published code decodes a clip at once, or in overlapping
tiles whose seams are blended. Here every convolution keeps the two frames before, and gives a frame when the next has
come: the result is that of the whole clip, whatever its length, in memory that does not depend on it. Chunks of frames
go through `map`, which lets go of what it passes on; a generator would hold a chunk in every layer.

Names in the state dict are the checkpoint's. Source: LTX-2, arXiv 2601.03233, and its published code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import BadWeights
from .load import read_weights

SPACE = 32  # pixels a side of a latent pixel
TIME = 8  # frames of a latent frame, apart from the first, which is one
_DOWN = ((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2))  # the encoder's strides in time, rows, columns
_UP = ((2, 2, 2),) * 3
_PATCH = 4

Padding = Literal["zeros", "reflect"]
Chunks = Iterable[Tensor]  # of one video, one after the other: [B, C, t, H, W] with t at least 1


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Sizes of the autoencoder."""

    latent_channels: int
    encoder_widths: tuple[int, ...]  # after each of the four halvings
    encoder_layers: tuple[int, ...]  # before each, and after all
    decoder_widths: tuple[int, ...]  # from the frames' side to the latents', as in the checkpoint's config.json
    decoder_layers: tuple[int, ...]
    decoder_causal: bool  # frames do not depend on later ones; the published one is not

    def __post_init__(self) -> None:
        counts = [len(x) for x in (self.encoder_widths, self.encoder_layers, self.decoder_widths, self.decoder_layers)]
        if counts != [4, 5, 3, 4]:
            raise ValueError(f"an autoencoder of {counts} widths and layers; LTX-2's has 4, 5, 3 and 4")
        first, second, third = self.decoder_widths
        if (second, third) != (2 * first, 4 * first) or first % 2:
            raise ValueError(f"decoder_widths {self.decoder_widths} do not double from an even number")


# The public one: in the hub repository Efficient-Large-Model/SANA-WM_bidirectional, folder vae.
LTX2_VAE = VaeConfig(
    latent_channels=128,
    encoder_widths=(256, 512, 1024, 2048),
    encoder_layers=(4, 6, 6, 2, 2),
    decoder_widths=(256, 512, 1024),
    decoder_layers=(5, 5, 5, 5),
    decoder_causal=False,
)
_ALIKE = {  # what config.json must say, where it says it
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": _PATCH,
    "patch_size_t": 1,
    "spatio_temporal_scaling": [True] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_type": ["spatiotemporal"] * 3,
    "upsample_residual": [True] * 3,
    "upsample_factor": [2] * 3,
    "decoder_inject_noise": [False] * 4,
    "timestep_conditioning": False,
    "encoder_causal": True,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect",
    "scaling_factor": 1.0,
}


def read_config(path: Path) -> VaeConfig:
    """The sizes in a checkpoint's config.json.

    Raises:
        BadWeights: it cannot be read, or is that of an autoencoder of another kind.
    """
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        if other := [f"{key} {tree[key]}" for key, value in _ALIKE.items() if tree.get(key, value) != value]:
            raise ValueError(f"another kind of autoencoder: {', '.join(other)}")
        return VaeConfig(
            latent_channels=tree["latent_channels"],
            encoder_widths=tuple(tree["block_out_channels"]),
            encoder_layers=tuple(tree["layers_per_block"]),
            decoder_widths=tuple(tree["decoder_block_out_channels"]),
            decoder_layers=tuple(tree["decoder_layers_per_block"]),
            decoder_causal=tree["decoder_causal"],
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadWeights(f"{path}: no configuration of LTX-2's autoencoder: {error!r}") from error


def load_vae(weights: Path, config: VaeConfig, *, device: torch.device | str, dtype: torch.dtype) -> Vae:
    """The autoencoder with a checkpoint's weights, for inference; it computes in `dtype`.

    Raises:
        BadWeights: the file cannot be read, is damaged, or belongs to another network.
    """
    with torch.device("meta"):
        vae = Vae(config)
    return read_weights(vae, weights, device=device, dtype=dtype, float32=("latents_mean", "latents_std"))


class Vae(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.latents_mean: Tensor
        self.latents_std: Tensor
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))

    def encode(self, video: Tensor) -> Tensor:
        """A video, or a picture as one of one frame, [B, 3, 8 k + 1, H, W] in -1..1 -> latents, float32.

        Returns:
            [B, latent_channels, k + 1, H / 32, W / 32], the mode, normalised.

        Raises:
            ValueError: a side is no multiple of 32, or frames are not 8 k + 1.
        """
        frames, height, width = video.shape[2:]
        if height % SPACE or width % SPACE or frames % TIME != 1:
            raise ValueError(f"{frames} frames of {width}x{height}: give {TIME} k + 1, of sides in {SPACE}s")
        moments = self.encoder(video.to(self.encoder.conv_in.conv.weight.dtype)).float()
        mean, std = (x.view(1, -1, 1, 1, 1) for x in (self.latents_mean, self.latents_std))
        return (moments[:, : self.config.latent_channels] - mean) / std

    def decode(self, latents: Tensor, *, at_once: int = 1) -> Iterator[Tensor]:
        """Normalised latents [B, latent_channels, T, h, w] -> the video's frames in -1..1, some at a time, float32.

        Args:
            at_once: latent frames that go through the decoder together. The result does not depend on it.

        Yields:
            [B, 3, t, 32 h, 32 w], together 8 (T - 1) + 1 frames.

        Raises:
            ValueError: latents of fewer than 2 x 2, which cannot be mirrored at their edges.
        """
        if min(latents.shape[-2:]) < 2:
            raise ValueError(f"latents are {list(latents.shape)}: the decoder mirrors edges, which takes 2 x 2 or more")
        mean, std = (x.view(1, -1, 1, 1, 1) for x in (self.latents_mean, self.latents_std))
        dtype = self.decoder.conv_in.conv.weight.dtype
        parts = latents.split(at_once, dim=2)
        frames = self.decoder(map(lambda part: (part.float() * std + mean).to(dtype), parts))
        return map(Tensor.float, frames)


def pictures(frames: Tensor) -> Tensor:
    """Frames [3, t, H, W] in -1..1 as RGB [t, H, W, 3] uint8 on the CPU."""
    return (127.5 * frames.float().clamp(-1, 1) + 127.5).round().to(torch.uint8).movedim(0, -1).cpu()


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = (config.latent_channels, *config.encoder_widths)
        self.conv_in = Conv(3 * _PATCH**2, widths[0], causal=True, padding="zeros")
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[i], widths[i + 1], config.encoder_layers[i], _DOWN[i]) for i in range(4)
        )
        self.mid_block = MidBlock(widths[-1], config.encoder_layers[-1], causal=True, padding="zeros")
        self.conv_out = Conv(widths[-1], config.latent_channels + 1, causal=True, padding="zeros")

    def forward(self, video: Tensor) -> Tensor:
        """[B, 3, 8 k + 1, H, W] -> [B, latent_channels + 1, k + 1, H / 32, W / 32]: means, then a log variance."""
        x = self.conv_in(_to_patches(video))
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(_activated(self.mid_block(x)))


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        causal = config.decoder_causal
        width, layers = config.decoder_widths[-1], config.decoder_layers[::-1]
        self.conv_in = Conv(config.latent_channels, width, causal=causal, padding="reflect")
        self.mid_block = MidBlock(width, layers[0], causal=causal, padding="reflect")
        self.up_blocks = nn.ModuleList(
            UpBlock(width >> i, layers[i + 1], _UP[i], causal=causal, padding="reflect") for i in range(3)
        )
        self.conv_out = Conv(width >> 3, 3 * _PATCH**2, causal=causal, padding="reflect")

    def forward(self, chunks: Chunks) -> Chunks:
        """Chunks of latents -> chunks of frames."""
        chunks = _through((self.conv_in, self.mid_block, *self.up_blocks), chunks)
        return map(_from_patches, self.conv_out.stream(map(_activated, chunks)))


class DownBlock(nn.Module):
    """Layers, then a step to fewer and wider pixels."""

    def __init__(self, width: int, out: int, layers: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, causal=True, padding="zeros") for _ in range(layers))
        self.downsamplers = nn.ModuleList([Downsampler(width, out, stride)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class MidBlock(nn.Module):
    def __init__(self, width: int, layers: int, *, causal: bool, padding: Padding) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, causal=causal, padding=padding) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.resnets:
            x = layer(x)
        return x

    def stream(self, chunks: Chunks) -> Chunks:
        return _through(self.resnets, chunks)


class UpBlock(nn.Module):
    """A step to more and half as wide pixels, then layers."""

    def __init__(
        self, width: int, layers: int, stride: tuple[int, int, int], *, causal: bool, padding: Padding
    ) -> None:
        super().__init__()
        self.upsamplers = nn.ModuleList([Upsampler(width, stride, causal=causal, padding=padding)])
        self.resnets = nn.ModuleList(Resnet(width // 2, causal=causal, padding=padding) for _ in range(layers))

    def stream(self, chunks: Chunks) -> Chunks:
        return _through((*self.upsamplers, *self.resnets), chunks)


class Downsampler(nn.Module):
    """A filter, and beside it averages, both with a block's pixels made channels."""

    def __init__(self, width: int, out: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride, self.out = stride, out
        count = stride[0] * stride[1] * stride[2]
        self.conv = Conv(width, out // count, causal=True, padding="zeros")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, : self.stride[0] - 1], x], 2)  # the first frame stands alone: a block with itself
        average = _to_channels(x, self.stride).unflatten(1, (self.out, -1)).mean(2)
        return _to_channels(self.conv(x), self.stride) + average


class Upsampler(nn.Module):
    """A filter, and beside it repetitions, both with channels made a block's pixels."""

    def __init__(self, width: int, stride: tuple[int, int, int], *, causal: bool, padding: Padding) -> None:
        super().__init__()
        self.stride = stride
        count = stride[0] * stride[1] * stride[2]
        self.repeats = count // 2
        self.conv = Conv(width, width * count // 2, causal=causal, padding=padding)

    def stream(self, chunks: Chunks) -> Chunks:
        waiting = Waiting()
        cut = self.stride[0] - 1  # of the first frame's block only the last is a frame

        def step(y: Tensor) -> Tensor:
            nonlocal cut
            repeated = _from_channels(waiting.take(y.shape[2]), self.stride).repeat(1, self.repeats, 1, 1, 1)
            y, cut = (_from_channels(y, self.stride) + repeated)[:, :, cut:], 0
            return y

        return map(step, self.conv.stream(map(waiting.put, chunks)))


class Resnet(nn.Module):
    def __init__(self, width: int, *, causal: bool, padding: Padding) -> None:
        super().__init__()
        self.conv1 = Conv(width, width, causal=causal, padding=padding)
        self.conv2 = Conv(width, width, causal=causal, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(_activated(self.conv1(_activated(x))))

    def stream(self, chunks: Chunks) -> Chunks:
        waiting = Waiting()
        inner = self.conv1.stream(map(_activated, map(waiting.put, chunks)))
        return map(lambda y: y + waiting.take(y.shape[2]), self.conv2.stream(map(_activated, inner)))


class Conv(nn.Module):
    """A 3 x 3 x 3 convolution that sees the edge frames repeated; where causal, only frames before."""

    def __init__(self, width: int, out: int, *, causal: bool, padding: Padding) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv3d(width, out, 3, padding=(0, 1, 1), padding_mode=padding)

    def forward(self, x: Tensor) -> Tensor:
        before = 2 if self.causal else 1
        edges = [x[:, :, :1]] * before, [x[:, :, -1:]] * (2 - before)
        return self.conv(torch.cat([*edges[0], x, *edges[1]], 2))

    def stream(self, chunks: Chunks) -> Chunks:
        """As `forward`, a frame when all that it depends on have come."""
        last: Tensor | None = None  # two frames, which go before the next

        def step(x: Tensor) -> Tensor | None:
            nonlocal last
            before = [x[:, :, :1]] * (2 if self.causal else 1) if last is None else [last]
            x = torch.cat([*before, x], 2)
            last = x[:, :, -2:].clone()  # not a view, which would keep the chunk
            return self.conv(x) if x.shape[2] > 2 else None

        def end() -> Iterator[Tensor]:
            if last is not None and not self.causal:
                yield self.conv(torch.cat([last, last[:, :, -1:]], 2))

        return chain(filter(_some, map(step, chunks)), end())


class Waiting:
    """Frames that have gone into a filter and are wanted beside what comes out of it."""

    def __init__(self) -> None:
        self.frames: Tensor | None = None

    def put(self, x: Tensor) -> Tensor:
        self.frames = x if self.frames is None else torch.cat([self.frames, x], 2)
        return x

    def take(self, count: int) -> Tensor:
        assert self.frames is not None
        taken, self.frames = self.frames[:, :, :count], self.frames[:, :, count:].clone()
        return taken


def _some(x: Tensor | None) -> TypeGuard[Tensor]:
    return x is not None


def _through(layers: Iterable[nn.Module], chunks: Chunks) -> Chunks:
    for layer in layers:
        assert isinstance(layer, Conv | MidBlock | UpBlock | Upsampler | Resnet)
        chunks = layer.stream(chunks)
    return chunks


def _activated(x: Tensor) -> Tensor:
    """Each pixel's channels at root mean square 1, then SiLU."""
    return F.silu(x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-8))


def _to_channels(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, C, T, H, W] -> [B, C t h w, T / t, H / h, W / w] for a stride of t, h, w."""
    for axis, step in zip((4, 3, 2), stride[::-1], strict=True):
        x = x.unflatten(axis, (-1, step))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _from_channels(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The inverse of `_to_channels`."""
    x = x.unflatten(1, (-1, *stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _to_patches(video: Tensor) -> Tensor:
    """[B, 3, T, H, W] -> [B, 48, T, H / 4, W / 4], a patch's pixels by column, then row."""
    return _to_channels(video, (1, _PATCH, _PATCH)).unflatten(1, (3, _PATCH, _PATCH)).transpose(2, 3).flatten(1, 3)


def _from_patches(x: Tensor) -> Tensor:
    """The inverse of `_to_patches`."""
    return _from_channels(x.unflatten(1, (3, _PATCH, _PATCH)).transpose(2, 3).flatten(1, 3), (1, _PATCH, _PATCH))
