"""SANA-WM's large linear layers in eight bits: twice the rate of bfloat16 on GPUs that multiply them, half the weights.

E4M3 numbers, 3 bits behind the point. Weights are scaled by output channel, once; inputs by token, in every pass.
In eight bits are the layers of the blocks that the published eight-bit variant has there, apart from those that gain
nothing: the gates' 20 channels, and the text's keys and values, which are computed once for a clip. The camera branch
stays as it is, also there: its share of a block's result is small and must not drown.

Other devices compute the same numbers by way of float32, for tests and to judge the loss; that is slower, not faster.
Source: Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .network import PixelLinear, SanaWM

LAYERS = (
    "attn.qkv",
    "attn.proj",
    "attn.output_gate",
    "cross_attn.q_linear",
    "cross_attn.proj",
    "mlp.inverted_conv",
    "mlp.point_conv",
)
E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
MULTIPLE = 16  # of channels, which the GPU's products ask for


def to_fp8(net: SanaWM) -> SanaWM:
    """The network itself, with its blocks' `LAYERS` in eight bits, one after the other; for inference.

    Raises:
        ValueError: a width is no multiple of 16.
    """
    for block in net.blocks:
        for name in LAYERS:
            layer = block.get_submodule(name)
            kept = layer.conv if isinstance(layer, PixelLinear) else layer
            assert isinstance(kept, nn.Linear | nn.Conv2d)
            owner, _, last = name.rpartition(".")
            setattr(block.get_submodule(owner), last, Fp8Linear(kept.weight.flatten(1), kept.bias))
    return net


def multiplies_fp8(device: torch.device | str) -> bool:
    """Whether products of eight-bit matrices run on a device: NVIDIA GPUs of Ada, Hopper and later."""
    return torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


class Fp8Linear(nn.Module):
    """A linear map of [..., in] to [..., out], its weight in eight bits."""

    weight: Tensor  # [out, in] E4M3
    scale: Tensor  # [out, 1] float32
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE:
            raise ValueError(f"a layer of {list(weight.shape)} cannot be in eight bits: widths are multiples of 16")
        quantised, scale = quantise(weight.detach())
        self.register_buffer("weight", quantised)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantise(x.flatten(0, -2))
        if multiplies_fp8(x.device):  # in bfloat16, the only result there is for scales by row
            bias = None if self.bias is None else self.bias.bfloat16()
            out = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
                rows, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), bias=bias, out_dtype=torch.bfloat16
            )
        else:
            bias = None if self.bias is None else self.bias.float()
            out = F.linear(rows.float() * scale, self.weight.float() * self.scale, bias)
        return out.to(x.dtype).unflatten(0, x.shape[:-1])


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, in] as E4M3 numbers and the scale of each row [n, 1], float32, which takes its largest to the largest."""
    most = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.where(most > 0, most / LARGEST, 1.0)
    return (x / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale
