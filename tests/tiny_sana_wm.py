"""SANA-WM's network and autoencoder so small that a CPU runs them in no time, of the sizes of the reference outputs."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from longtake.model.sana_wm.config import SanaWMConfig
from longtake.model.sana_wm.vae import VaeConfig

Net = TypeVar("Net", bound=nn.Module)

NET = SanaWMConfig(  # case g2
    latent_channels=8,
    text_width=20,
    plucker_channels=48,
    heads=2,
    head_dim=24,
    text_heads=4,
    depth=4,
    softmax_blocks=(1, 3),
    plucker_blocks=3,
    ffn_width=96,
)
VAE = VaeConfig(  # cases g2 and i
    latent_channels=8,
    encoder_widths=(8, 8, 16, 16),
    encoder_layers=(1, 1, 1, 1, 1),
    decoder_widths=(8, 16, 32),
    decoder_layers=(1, 1, 1, 1),
    decoder_causal=False,
)


def seeded(net: Net) -> Net:
    """The network with random weights, always the same."""
    g = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) / 8
    return net.eval().requires_grad_(False)
