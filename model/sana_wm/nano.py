"""nano: SANA-WM's code with networks so small that a CPU trains and runs them.

It is to show a picture, a path and a prompt going all the way to a video that follows the path. It knows one room,
drawn by longtake itself, at 224 x 128, and nothing else: it says nothing of what SANA-WM can do.
How the weights were made: benchmarks/train_nano.py.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import torch

from .config import SanaWMConfig
from .generate import Parts, Settings
from .load import load
from .text import Text
from .vae import VaeConfig, load_vae

NANO = SanaWMConfig(
    latent_channels=32,
    text_width=64,
    plucker_channels=48,
    heads=6,
    head_dim=32,
    text_heads=6,
    depth=4,
    softmax_blocks=(1, 3),
    plucker_blocks=4,
    ffn_width=384,
)
NANO_VAE = VaeConfig(
    latent_channels=32,
    encoder_widths=(32, 64, 64, 128),
    encoder_layers=(0, 1, 1, 1, 0),
    decoder_widths=(32, 64, 128),
    decoder_layers=(2, 2, 1, 0),
    decoder_causal=False,
)
NANO_SETTINGS = Settings(frames=25, width=224, height=128, steps=12, guidance=1.0, shift=1.0)

WORDS = 32  # of a prompt that are read, the beginning of the text being one
NET_FILE, VAE_FILE = (Path(__file__).with_name(f"nano_{part}.safetensors") for part in ("net", "vae"))


class HashedWords:
    """In the place of a text encoder: every word is a direction that follows from its letters, and its order is lost.

    No network and no meaning: "chair" and "chairs" have nothing in common.
    """

    def prompt(self, text: str) -> Text:
        words = re.findall(r"\w+", text.lower())
        states = torch.zeros(1, WORDS, NANO.text_width)
        for i, word in enumerate(("<text>", *words)[:WORDS]):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            states[0, i] = torch.from_numpy(np.random.default_rng(seed).standard_normal(NANO.text_width))
        mask = torch.arange(WORDS)[None] <= len(words)
        return Text(states=states, mask=mask, lost_tokens=max(0, len(words) + 1 - WORDS))

    def negative(self, text: str) -> Text:
        return self.prompt(text)


def nano_parts(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Parts:
    """The networks with their weights; for `generate` with `NANO_SETTINGS`.

    Raises:
        BadWeights: they are damaged.
    """
    return Parts(
        text=HashedWords,
        vae=lambda: load_vae(VAE_FILE, NANO_VAE, device=device, dtype=dtype),
        net=lambda: load(NET_FILE, device=device, dtype=dtype, config=NANO),
    )
