"""What Pi3X reads out of its features: point and confidence maps, camera poses, the metric scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dinov2 import Block, Mlp, Rotate
from .config import Pi3XConfig

# Maps are made for so many frames together. One frame's take 656 bytes a pixel of the picture on the way, about three
# times what transformers hold for it, so many at once would decide the memory of a window. One is no slower on a CPU.
FRAMES_AT_ONCE = 1


class TokenHead(nn.Module):
    """Features [B, N, 2 width] to tokens [B, N, out] through transformer blocks."""

    def __init__(self, config: Pi3XConfig, out: int) -> None:
        super().__init__()
        self.projects = nn.Linear(2 * config.width, config.width)
        blocks = (Block(config.width, config.heads, layer_scale=False) for _ in range(config.head_depth))
        self.blocks = nn.ModuleList(blocks)
        self.linear_out = nn.Linear(config.width, out)

    def forward(self, features: Tensor, rotate: Rotate) -> Tensor:
        x = self.projects(features)
        for block in self.blocks:
            x = block(x, rotate)
        return self.linear_out(x)


class MapHead(nn.Module):
    """Tokens [B, width, rows, cols] to maps [B, sum(outputs), 14 rows, 14 cols], as in MoGe (arXiv 2410.19115)."""

    def __init__(self, config: Pi3XConfig, outputs: tuple[int, ...]) -> None:
        super().__init__()
        stages = []
        before = config.width
        for after in config.conv_widths:
            up = nn.Sequential(nn.ConvTranspose2d(before + 2, after, kernel_size=2, stride=2), conv3x3(after, after))
            stages.append(nn.Sequential(up, *(ResidualConv(after) for _ in range(config.conv_blocks))))
            before = after
        self.upsample_blocks = nn.ModuleList(stages)
        self.output_block = nn.ModuleList(
            nn.Sequential(conv3x3(before + 2, config.conv_last), nn.ReLU(), nn.Conv2d(config.conv_last, n, 1))
            for n in outputs
        )

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        parts = tokens.split(FRAMES_AT_ONCE)
        return torch.cat([self._maps(part, height, width) for part in parts])

    def _maps(self, x: Tensor, height: int, width: int) -> Tensor:
        aspect = width / height
        for stage in self.upsample_blocks:
            x = stage(append_view_plane(x, aspect))
        x = append_view_plane(F.interpolate(x, (height, width), mode="bilinear"), aspect)
        return torch.cat([block(x) for block in self.output_block], dim=1)


class ResidualConv(nn.Module):
    """Two normalised convolutions and a skip, twice as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            conv3x3(channels, hidden),
            nn.GroupNorm(hidden // 32, hidden),
            nn.ReLU(),
            conv3x3(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, padding_mode="replicate")


def append_view_plane(x: Tensor, aspect: float) -> Tensor:
    """x [B, C, H, W] with two channels more: where each pixel lies on an image of half diagonal 1 and this aspect."""
    height, width = x.shape[-2:]
    diagonal = (1 + aspect**2) ** 0.5
    reach_u, reach_v = aspect / diagonal * (width - 1) / width, 1 / diagonal * (height - 1) / height
    u = torch.linspace(-reach_u, reach_u, width, device=x.device, dtype=x.dtype)
    v = torch.linspace(-reach_v, reach_v, height, device=x.device, dtype=x.dtype)
    v, u = torch.meshgrid(v, u, indexing="ij")
    return torch.cat([x, torch.stack([u, v]).expand(len(x), -1, -1, -1)], dim=1)


class CameraHead(nn.Module):
    """Patch tokens [B, N, width] to poses [B, 4, 4]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList(ResidualMlp(width) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t = nn.Linear(width, 3)
        self.fc_rot = nn.Linear(width, 9)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(1))
        pose = torch.eye(4, device=x.device, dtype=x.dtype).repeat(len(x), 1, 1)
        pose[:, :3, :3] = nearest_rotation(F.normalize(self.fc_rot(x).unflatten(-1, (3, 3)), dim=-1))
        pose[:, :3, 3] = self.fc_t(x)
        return pose


class ResidualMlp(nn.Module):
    """Three layers, each with a ReLU, and a skip. The checkpoint calls them convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Linear(width, width)
        self.res_conv2 = nn.Linear(width, width)
        self.res_conv3 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.res_conv3(F.relu(self.res_conv2(F.relu(self.res_conv1(x))))))


def nearest_rotation(m: Tensor) -> Tensor:
    """The rotation nearest to m [..., 3, 3] in the Frobenius norm (Levinson et al., arXiv 2006.14616)."""
    u, _, vt = torch.linalg.svd(m)
    flip = torch.ones_like(m[..., 0])
    flip[..., 2] = torch.linalg.det(u @ vt)
    return (u * flip[..., None, :]) @ vt


class MetricDecoder(nn.Module):
    """One learned query that reads the features of all frames: queries [B, 1, 2 width] to [B, 1, metric width]."""

    def __init__(self, config: Pi3XConfig) -> None:
        super().__init__()
        width = config.metric_width
        self.projects_x = nn.Linear(2 * config.width, width)
        self.projects_y = nn.Linear(2 * config.width, width)
        self.blocks = nn.ModuleList(CrossBlock(width, config.metric_heads) for _ in range(config.head_depth))
        self.linear_out = nn.Linear(width, width)

    def forward(self, queries: Tensor, features: Tensor, rotate_keys: Rotate) -> Tensor:
        x, context = self.projects_x(queries), self.projects_y(features)
        for block in self.blocks:
            x = block(x, context, rotate_keys)
        return self.linear_out(x)


class CrossBlock(nn.Module):
    """x + attention to the context, then x + MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.norm_y = nn.LayerNorm(width, eps=1e-6)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, context: Tensor, rotate_keys: Rotate) -> Tensor:
        x = x + self.cross_attn(self.norm2(x), self.norm_y(context), rotate_keys)
        return x + self.mlp(self.norm3(x))


class CrossAttention(nn.Module):
    """Multi-head attention from x [B, N, width] to the context [B, M, width]; queries are at position 0, unturned."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, rotate_keys: Rotate) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(x), self.k_proj(context), self.v_proj(context))
        )
        x = F.scaled_dot_product_attention(q, rotate_keys(k), v)
        return self.proj(x.transpose(1, 2).flatten(2))
