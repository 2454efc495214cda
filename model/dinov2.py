"""DINOv2 vision transformer with 14-pixel patches: the image encoder of Pi3X and MoGe-2, and their common blocks.

Parameter names are those of the published checkpoints (`blocks.i.attn.qkv`, `ls1.gamma`, `patch_embed.proj`, ...), so
weights load without renaming.

Sources: Oquab et al., DINOv2, arXiv 2304.07193; registers: Darcet et al., arXiv 2309.16588.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 14  # pixels along each side
Rotate = Callable[[Tensor], Tensor]  # what a position encoding does to queries and keys [B, heads, N, D / heads]


@dataclass(frozen=True, kw_only=True)
class DinoV2Config:
    """Sizes of an encoder."""

    channels: int  # of the input image
    width: int
    depth: int
    heads: int
    grid: int  # patches along each side of the grid that the position embedding was learned on
    registers: int
    mask_token: bool  # the checkpoint carries the mask token of pre-training; nothing here uses it


VITS14 = DinoV2Config(channels=3, width=384, depth=12, heads=6, grid=37, registers=0, mask_token=True)
VITB14 = DinoV2Config(channels=3, width=768, depth=12, heads=12, grid=37, registers=0, mask_token=True)
VITL14 = DinoV2Config(channels=3, width=1024, depth=24, heads=16, grid=37, registers=0, mask_token=True)


class DinoV2(nn.Module):
    """Normalised images to patch tokens."""

    def __init__(self, config: DinoV2Config) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchEmbed(config.channels, width)
        self.blocks = nn.ModuleList(Block(width, config.heads, layer_scale=True) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor, taps: Collection[int] | None = None) -> list[tuple[Tensor, Tensor]]:
        """Patch and class tokens of the tapped blocks, after the final norm.

        Args:
            images: [B, channels, 14 rows, 14 cols], already with zero mean and unit variance a channel.
            taps: indices of blocks; the last one where None.

        Returns:
            (patches [B, rows * cols, width], class [B, width]) of each tapped block, in order of depth.

        Raises:
            ValueError: the sides are no multiples of 14, or a tap is no block.
        """
        taps = {len(self.blocks) - 1} if taps is None else set(taps)
        if wrong := sorted(taps - set(range(len(self.blocks)))):
            raise ValueError(f"taps {wrong} are not among the encoder's {len(self.blocks)} blocks")
        rows, cols = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.position_embedding(rows, cols)
        skip = 1 + self.config.registers  # the class token and the registers come before the patches
        if self.config.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        out = []
        for i, block in enumerate(self.blocks[: max(taps) + 1]):
            x = block(x)
            if i in taps:
                tokens = self.norm(x)
                out.append((tokens[:, skip:], tokens[:, 0]))
        return out

    def position_embedding(self, rows: int, cols: int) -> Tensor:
        """The learned grid resized to rows x cols, after the class token's: [1, 1 + rows * cols, width].

        The published networks were trained with a scale factor in place of a target size; it moves the sampling points
        (by up to 0.1 / rows of a cell), and tokens differ visibly without it.
        """
        n = self.config.grid
        if rows == cols == n:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().reshape(1, n, n, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / n, (cols + 0.1) / n)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([self.pos_embed[:, :1], grid.to(self.pos_embed.dtype)], dim=1)


class PatchEmbed(nn.Module):
    """Every 14x14 patch of [B, channels, H, W] to a token: [B, H W / 196, width], row by row."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"an image of {width}x{height} has no whole number of {PATCH}x{PATCH} patches; resize it")
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """A pre-norm transformer block, x + attention, then x + MLP."""

    def __init__(self, width: int, heads: int, *, layer_scale: bool, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor, rotate: Rotate | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rotate))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention over x [B, N, width], with optional norm and position encoding of queries and keys."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normalised, and values: [B, heads, N, D / heads] each."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x: Tensor, rotate: Rotate | None = None) -> Tensor:
        q, k, v = self.split_heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        # norms and rotations come out in float32 under autocast: one type for the fused kernels
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(x.transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A learned gain a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
