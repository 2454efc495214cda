"""The sizes of Pi3X."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pi3XConfig:
    """Sizes of a network. A checkpoint carries none, so they must be given."""

    width: int  # of the encoder's and the decoder's tokens
    heads: int
    grid: int  # patches along each side of the grid that the position embedding was learned on
    encoder_depth: int
    encoder_registers: int
    decoder_depth: int
    decoder_registers: int
    pose_blocks: tuple[int, ...]  # decoder blocks that known poses enter after
    head_depth: int  # transformer blocks of each head
    camera_width: int
    metric_width: int
    metric_heads: int
    conv_widths: tuple[int, ...]  # channels after each doubling of the point and confidence maps' resolution
    conv_blocks: int  # residual blocks at each resolution
    conv_last: int


# The public network, hub repository yyfz233/Pi3X: 1,360,032,433 parameters, 992,465,329 without conditions.
# Its weights are CC BY-NC 4.0: non-commercial use only.
PI3X = Pi3XConfig(
    width=1024,
    heads=16,
    grid=37,
    encoder_depth=24,
    encoder_registers=4,
    decoder_depth=36,
    decoder_registers=5,
    pose_blocks=(1, 9, 17, 25, 33),
    head_depth=5,
    camera_width=512,
    metric_width=512,
    metric_heads=8,
    conv_widths=(256, 128, 64),
    conv_blocks=2,
    conv_last=32,
)
