"""MoGe-2's sizes, as the `model_config` of a checkpoint states them.

Source: Wang et al., MoGe-2, arXiv 2507.02546; the names of the fields are those of the published files.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...errors import LongtakeError
from ..dinov2 import VITB14, VITL14, VITS14, DinoV2Config

BACKBONES = {"dinov2_vits14": VITS14, "dinov2_vitb14": VITB14, "dinov2_vitl14": VITL14}

Remap = Literal["linear", "sinh", "exp", "sinh_exp"]
Norm = Literal["none", "layer_norm", "group_norm"]
Activation = Literal["relu", "leaky_relu", "silu", "elu"]
Resampler = Literal["conv_transpose", "bilinear", "nearest", "pixel_shuffle"]


@dataclass(frozen=True, kw_only=True)
class ConvStackConfig:
    """A pyramid of convolutions, coarse to fine; every level is twice as fine as the one before it."""

    dim_in: tuple[int | None, ...]  # channels that enter each level; None: `width` of them, and no convolution
    width: tuple[int, ...]  # channels within each level
    dim_out: tuple[int | None, ...]  # channels that leave each level; None: `width` of them, and no convolution
    num_blocks: tuple[int, ...]  # residual blocks of each level
    hidden_factor: int  # channels within a residual block, as a multiple of `width`
    in_norm: Norm
    hidden_norm: Norm
    activation: Activation
    resamplers: tuple[Resampler, ...]  # from each level to the next

    def __post_init__(self) -> None:
        levels = len(self.width)
        lengths = {"dim_in": levels, "dim_out": levels, "num_blocks": levels, "resamplers": levels - 1}
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise LongtakeError(f"{name} {getattr(self, name)} has not {length} entries, for {levels} levels")
        norms = ((self.in_norm, 1), (self.hidden_norm, self.hidden_factor))
        used = [w for w, n in zip(self.width, self.num_blocks, strict=True) if n]
        widths = {w * k for norm, k in norms if norm == "group_norm" for w in used}
        if odd := [w for w in widths if w < 32 or w % (w // 32)]:
            raise LongtakeError(f"group_norm takes channels in groups of 32, which {odd} channels do not make")

    @property
    def channels_in(self) -> tuple[int, ...]:
        return tuple(a or b for a, b in zip(self.dim_in, self.width, strict=True))

    @property
    def channels_out(self) -> tuple[int, ...]:
        return tuple(a or b for a, b in zip(self.dim_out, self.width, strict=True))


@dataclass(frozen=True, kw_only=True)
class MoGe2Config:
    """The whole network; a head that is None is absent."""

    backbone: DinoV2Config
    taps: tuple[int, ...]  # the encoder's blocks whose tokens are used
    dim_encoder: int  # channels of the coarsest level
    neck: ConvStackConfig
    points_head: ConvStackConfig
    normal_head: ConvStackConfig | None
    mask_head: ConvStackConfig | None
    scale_head: tuple[int, ...] | None  # widths of its layers, input and output included
    remap_output: Remap
    num_tokens_range: tuple[int, int]

    def __post_init__(self) -> None:
        levels = len(self.neck.width)
        expected = (self.dim_encoder + 2, *[2] * (levels - 1))
        if self.neck.channels_in != expected:
            raise LongtakeError(f"the neck takes {self.neck.channels_in} channels, but is given {expected}")
        for name, channels in {"points_head": 3, "normal_head": 3, "mask_head": 1}.items():
            head = getattr(self, name)
            if head is not None and head.channels_in != self.neck.channels_out:
                raise LongtakeError(
                    f"{name} takes {head.channels_in} channels, the neck gives {self.neck.channels_out}"
                )
            if head is not None and head.channels_out[-1] != channels:
                raise LongtakeError(f"{name} ends in {head.channels_out[-1]} channels, not {channels}")
        if self.scale_head is not None and (self.scale_head[0], self.scale_head[-1]) != (self.backbone.width, 1):
            raise LongtakeError(f"scale_head {self.scale_head} does not lead from {self.backbone.width} channels to 1")


def parse_config(raw: object) -> MoGe2Config:
    """The configuration that a checkpoint's `model_config` states. Unknown keys are warned about and ignored.

    Raises:
        LongtakeError: a field is missing, is of another type or out of range, or contradicts another.
    """
    fields = _Fields(raw, "model_config")
    encoder = _Fields(fields.take("encoder"), "model_config.encoder")
    backbone = BACKBONES[encoder.choice("backbone", tuple(BACKBONES))]
    taps = encoder.integers("intermediate_layers", (0, backbone.depth))
    if isinstance(encoder.raw["intermediate_layers"], int):  # the last n blocks
        taps = tuple(range(backbone.depth - taps[0], backbone.depth))
    if not taps or list(taps) != sorted(set(taps)) or taps[-1] >= backbone.depth:
        raise LongtakeError(f"model_config.encoder.intermediate_layers {taps} are not among {backbone.depth} blocks")
    scale = fields.take("scale_head", None)
    scale = None if scale is None else _Fields(scale, "model_config.scale_head")
    tokens = fields.integers("num_tokens_range", (1, 1_000_000), count=2)
    config = MoGe2Config(
        backbone=backbone,
        taps=taps,
        dim_encoder=encoder.integers("dim_out", _CHANNELS, count=1)[0],
        neck=_conv_stack(fields.take("neck"), "model_config.neck"),
        points_head=_conv_stack(fields.take("points_head"), "model_config.points_head"),
        normal_head=_conv_stack(raw, "model_config.normal_head") if (raw := fields.take("normal_head", None)) else None,
        mask_head=_conv_stack(raw, "model_config.mask_head") if (raw := fields.take("mask_head", None)) else None,
        scale_head=scale and scale.integers("dims", _CHANNELS),
        remap_output=fields.choice("remap_output", get_args(Remap)),
        num_tokens_range=(min(tokens), max(tokens)),
    )
    for part in (fields, encoder, scale):
        if part is not None:
            part.warn_unknown()
    return config


def published_config(size: Literal["vits", "vitb", "vitl"], *, normal: bool = True) -> MoGe2Config:
    """A published network's sizes, for tests and benchmarks: to load a checkpoint, `parse_config` its own."""
    backbone = BACKBONES[f"dinov2_{size}14"]
    channels = [backbone.width, 256, 128, 64, 32]
    common = {
        "dim_res_blocks": channels,
        "res_block_in_norm": "none",
        "res_block_hidden_norm": "none",
        "resamplers": ["conv_transpose"] * 3 + ["bilinear"],
    }
    head = {**common, "dim_in": channels, "num_res_blocks": [0, 1, 1, 1, 0]}
    neck_blocks = [0, 2, 2, 2, 0] if size == "vitl" else [0, 1, 1, 1, 0]
    raw: dict[str, object] = {
        "encoder": {
            "backbone": f"dinov2_{size}14",
            "intermediate_layers": [5, 11, 17, 23] if size == "vitl" else [5, 11],
            "dim_out": backbone.width,
        },
        "neck": {**common, "dim_in": [backbone.width + 2, 2, 2, 2, 2], "dim_out": None, "num_res_blocks": neck_blocks},
        "points_head": {**head, "dim_out": [None] * 4 + [3]},
        "mask_head": {**head, "dim_out": [None] * 4 + [1]},
        "scale_head": {"dims": [backbone.width] * 3 + [1]},
        "remap_output": "exp",
        "num_tokens_range": [1200, 3600],
    }
    if normal:
        raw["normal_head"] = {**head, "dim_out": [None] * 4 + [3]}
    return parse_config(raw)


_CHANNELS = (1, 1 << 16)
_MAX_ENTRIES = 64  # of a list; the networks have 5 levels and up to 24 blocks
_REQUIRED = object()


def _conv_stack(raw: object, where: str) -> ConvStackConfig:
    fields = _Fields(raw, where)
    width = fields.integers("dim_res_blocks", _CHANNELS)
    levels = len(width)
    resamplers = fields.take("resamplers")
    if not isinstance(resamplers, list | tuple) or not set(resamplers) <= set(get_args(Resampler)):
        raise LongtakeError(f"{where}.resamplers is {resamplers!r}, not a list of {', '.join(get_args(Resampler))}")
    config = ConvStackConfig(
        dim_in=fields.integers("dim_in", _CHANNELS, count=levels, optional=True),
        width=width,
        dim_out=fields.integers("dim_out", _CHANNELS, count=levels, optional=True),
        num_blocks=fields.integers("num_res_blocks", (0, 256), count=levels),
        hidden_factor=fields.integers("dim_times_res_block_hidden", (1, 64), count=1, default=1)[0],
        in_norm=fields.choice("res_block_in_norm", get_args(Norm), "layer_norm"),
        hidden_norm=fields.choice("res_block_hidden_norm", get_args(Norm), "group_norm"),
        activation=fields.choice("activation", get_args(Activation), "relu"),
        resamplers=tuple(resamplers),
    )
    fields.warn_unknown()
    return config


class _Fields:
    """A mapping from a file, read key by key with checks."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise LongtakeError(f"{where} is {type(raw).__name__}, not a mapping: this is no MoGe-2 checkpoint")
        self.raw, self.where, self.taken = raw, where, set[str]()

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        self.taken.add(key)
        value = self.raw.get(key, default)
        if value is _REQUIRED:
            raise LongtakeError(f"{self.where} has no {key!r}: this is no MoGe-2 checkpoint")
        return value

    def choice(self, key: str, options: tuple[str, ...], default: Any = _REQUIRED) -> Any:
        value = self.take(key, default)
        if not isinstance(value, str) or value not in options:
            raise LongtakeError(f"{self.where}.{key} is {value!r}, not one of {', '.join(options)}")
        return value

    def integers(
        self,
        key: str,
        bounds: tuple[int, int],
        *,
        count: int | None = None,
        optional: bool = False,
        default: Any = _REQUIRED,
    ) -> tuple:
        """Integers from low to high, or None where `optional`; a scalar stands for `count` of them (or 1)."""
        value = self.take(key, None if optional else default)
        values = tuple(value) if isinstance(value, list | tuple) else (value,) * (count or 1)
        low, high = bounds
        for v in values:
            if not (optional and v is None) and not (type(v) is int and low <= v <= high):
                raise LongtakeError(f"{self.where}.{key} is {value!r}, not integers from {low} to {high}")
        if not 1 <= len(values) <= _MAX_ENTRIES or (count is not None and len(values) != count):
            raise LongtakeError(
                f"{self.where}.{key} is {value!r}, of {len(values)} entries instead of {count or 'a few'}"
            )
        return values

    def warn_unknown(self) -> None:
        if unknown := [str(key) for key in self.raw if key not in self.taken]:
            warnings.warn(f"{self.where} has keys unknown here, ignored: {', '.join(unknown)}", stacklevel=4)
