"""MoGe-2: one image to points in metres, their validity, surface normals and the camera's focal length.

A DINOv2 encoder gives one coarse level of features; a neck of convolutions makes five levels of them, each twice as
fine, and a head of the same kind reads each map off. The network's points are right up to a shift in depth, which
`infer.py` recovers together with the focal length. Parameter names are those of the published checkpoints.

Source: Wang et al., MoGe-2, arXiv 2507.02546, and MoGe, arXiv 2410.19115.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dinov2 import PATCH, DinoV2
from .config import ConvStackConfig, MoGe2Config
from .focal import view_plane

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "silu": nn.SiLU, "elu": nn.ELU}


class Maps(NamedTuple):
    """What the network says of a batch of images; None where it has no such head."""

    points: Tensor  # [B, H, W, 3] camera axes, up to a z shift and the metric scale
    normal: Tensor | None  # [B, H, W, 3] unit vectors in camera axes, towards the camera
    mask: Tensor | None  # [B, H, W] probability that a pixel has a depth (sky has none)
    metric_scale: Tensor | None  # [B] metres per unit of `points`


class MoGe2(nn.Module):
    """The network. float32 parameters; run it under `torch.autocast` for less."""

    def __init__(self, config: MoGe2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.neck = ConvStack(config.neck)
        self.points_head = ConvStack(config.points_head)
        self.normal_head = None if config.normal_head is None else ConvStack(config.normal_head)
        self.mask_head = None if config.mask_head is None else ConvStack(config.mask_head)
        self.scale_head = None
        if config.scale_head is not None:
            a, *rest = config.scale_head
            layers: list[nn.Module] = []
            for b in rest:
                layers += [nn.Linear(a, b), nn.ReLU()]
                a = b
            self.scale_head = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor, num_tokens: int) -> Maps:
        """Every head's map, at the size of the image; float32.

        Args:
            image: [B, 3, H, W] RGB in [0, 1], any size.
            num_tokens: about how many patches the encoder sees: what detail and time depend on, whatever the size.
        """
        height, width = image.shape[-2:]
        rows, cols = token_grid(height, width, num_tokens)
        features, summary = self.encoder(image, rows, cols)
        levels = []
        for i in range(len(self.config.neck.width)):
            uv = view_plane(rows << i, cols << i, aspect=width / height).to(features)
            levels.append(uv.permute(2, 0, 1).expand(len(image), -1, -1, -1))
        levels[0] = torch.cat([features, levels[0]], dim=1)
        levels = self.neck(levels)

        def read(head: nn.Module) -> Tensor:
            fine = head(levels)[-1].float()
            return F.interpolate(fine, (height, width), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

        return Maps(
            points=remap(read(self.points_head), self.config.remap_output),
            normal=None if self.normal_head is None else F.normalize(read(self.normal_head), dim=-1),
            mask=None if self.mask_head is None else read(self.mask_head)[..., 0].sigmoid(),
            metric_scale=None if self.scale_head is None else self.scale_head(summary)[:, 0].float().exp(),
        )


class Encoder(nn.Module):
    """An image to one coarse level of features and one vector that sums it up."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: MoGe2Config) -> None:
        super().__init__()
        self.taps = config.taps
        self.backbone = DinoV2(config.backbone)
        self.output_projections = nn.ModuleList(
            nn.Conv2d(config.backbone.width, config.dim_encoder, 1) for _ in config.taps
        )
        self.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] to [B, D, rows, cols] and [B, D']."""
        size = (PATCH * rows, PATCH * cols)
        image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        tapped = self.backbone((image - self.image_mean) / self.image_std, self.taps)
        maps = [
            project(patches.transpose(1, 2).unflatten(2, (rows, cols)))
            for project, (patches, _) in zip(self.output_projections, tapped, strict=True)
        ]
        return torch.stack(maps).sum(0), tapped[-1][1]


class ConvStack(nn.Module):
    """Residual convolutions from the coarsest level to the finest; each has its own input and output."""

    def __init__(self, c: ConvStackConfig) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList(_conv1(a, w) for a, w in zip(c.dim_in, c.width, strict=True))
        self.output_blocks = nn.ModuleList(_conv1(w, b) for w, b in zip(c.width, c.dim_out, strict=True))
        self.res_blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(w, c) for _ in range(n))) for w, n in zip(c.width, c.num_blocks, strict=True)
        )
        self.resamplers = nn.ModuleList(
            _resampler(kind, a, b) for kind, a, b in zip(c.resamplers, c.width[:-1], c.width[1:], strict=True)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """[B, dim_in[i], rows 2^i, cols 2^i] of each level to [B, dim_out[i], rows 2^i, cols 2^i]."""
        out = []
        x = None
        for i, level in enumerate(levels):
            level = self.input_blocks[i](level)
            x = level if x is None else self.resamplers[i - 1](x) + level
            x = self.res_blocks[i](x)
            out.append(self.output_blocks[i](x))
        return out


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, width: int, c: ConvStackConfig) -> None:
        super().__init__()
        hidden = width * c.hidden_factor
        self.layers = nn.Sequential(
            _norm(c.in_norm, width),
            _ACTIVATIONS[c.activation](),
            _conv3(width, hidden),
            _norm(c.hidden_norm, hidden),
            _ACTIVATIONS[c.activation](),
            _conv3(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _conv1(a: int | None, b: int | None) -> nn.Module:
    return nn.Identity() if a is None or b is None else nn.Conv2d(a, b, 1)


def _conv3(a: int, b: int) -> nn.Module:
    return nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate")


def _norm(kind: str, width: int) -> nn.Module:
    return nn.Identity() if kind == "none" else nn.GroupNorm(1 if kind == "layer_norm" else width // 32, width)


def _resampler(kind: str, a: int, b: int) -> nn.Module:
    """a channels to b at twice the resolution."""
    if kind == "conv_transpose":
        return nn.Sequential(nn.ConvTranspose2d(a, b, 2, stride=2), _conv3(b, b))
    if kind == "pixel_shuffle":
        return nn.Sequential(_conv3(a, 4 * b), nn.PixelShuffle(2), _conv3(b, b))
    return nn.Sequential(nn.Upsample(scale_factor=2, mode=kind), _conv3(a, b))


def token_grid(height: int, width: int, num_tokens: int) -> tuple[int, int]:
    """Rows and columns of about `num_tokens` nearly square patches of an image."""
    return max(1, round(math.sqrt(num_tokens * height / width))), max(1, round(math.sqrt(num_tokens * width / height)))


def remap(raw: Tensor, kind: str) -> Tensor:
    """The network's numbers [..., 3] to points [..., 3]."""
    xy, z = raw[..., :2], raw[..., 2:]
    if kind == "exp":
        return torch.cat([xy * z.exp(), z.exp()], -1)
    if kind == "sinh":
        return raw.sinh()
    if kind == "sinh_exp":
        return torch.cat([xy.sinh(), z.exp()], -1)
    return raw
