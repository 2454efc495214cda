"""The sizes of SANA-WM's first stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SanaWMConfig:
    """Sizes of a network. The original checkpoint carries none, so they must be given."""

    latent_channels: int
    text_width: int  # of the text encoder's hidden states
    plucker_channels: int  # 6 for each of the source frames behind a latent frame
    heads: int
    head_dim: int
    text_heads: int  # of the attention to the text
    depth: int
    softmax_blocks: tuple[int, ...]  # the blocks with softmax attention; the others are gated delta networks
    plucker_blocks: int  # rays enter after the attention of the first so many blocks
    ffn_width: int

    def __post_init__(self) -> None:
        if self.head_dim % 8 or not 0 < self.head_dim <= 256:
            raise ValueError(f"head_dim is {self.head_dim}: half of it is taken in fours, so it is 8, 16, ... 256")
        if wrong := [i for i in self.softmax_blocks if not 0 <= i < self.depth]:
            raise ValueError(f"softmax_blocks {wrong} are not among the {self.depth} blocks")
        if not 0 <= self.plucker_blocks <= self.depth:
            raise ValueError(f"plucker_blocks is {self.plucker_blocks}, of {self.depth} blocks")

        if self.width % self.text_heads:
            raise ValueError(f"text_heads is {self.text_heads}, which does not divide the width {self.width}")

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


# The public network, hub repository Efficient-Large-Model/SANA-WM_bidirectional: 2,661,800,448 parameters.
SANA_WM = SanaWMConfig(
    latent_channels=128,
    text_width=2304,
    plucker_channels=48,
    heads=20,
    head_dim=112,
    text_heads=20,
    depth=20,
    softmax_blocks=(3, 7, 11, 15, 19),
    plucker_blocks=20,
    ffn_width=6720,
)
