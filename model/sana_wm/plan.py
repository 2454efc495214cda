"""What a video will take, before anything is downloaded or loaded: room on the disk, memory, arithmetic.

Counted from the networks' sizes. Activations are those that the code was measured to hold at once (see
`tensor_memory`), in parts of the tensors that they are proportional to; a GPU's context and libraries come on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ...kernels.gdn import CHUNK
from ..hub import record
from ..networks import networks
from .camera import STRIDE, snap_frames
from .config import SANA_WM, SanaWMConfig
from .generate import Settings
from .network import SanaWM
from .text import TOKENS
from .vae import LTX2_VAE, SPACE, Vae, VaeConfig

GEMMA_PARAMETERS = 2_614_341_888
GEMMA_ACTIVATION_BYTES = 200_000_000  # of some 560 tokens, most of it the prompt's instruction
# Of the network's peak: numbers of the network's width that a token holds, in bytes by those of a weight, and what it
# holds besides (its ray's matrices and rotations).
TOKEN_BYTES = {2: 40.8, 4: 56.4}
RAY_BYTES = 1100
DECODER_CHUNKS = 15  # tensors of one latent frame's pixels at the decoder's last width


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes are of the networks and their activations; parts are used one after the other."""

    frames: int
    latent_frames: int
    tokens: int  # of one pass of the network
    passes: int  # of the network
    download_bytes: int  # weights that are not here yet; of some only rounded sizes are known
    memory_bytes: Mapping[str, int]  # at the peak of text, encode, sample and decode
    latents_bytes: int  # what is kept of the video between sample and decode
    flops: Mapping[str, float]  # of sample and decode, two for a multiplication with its addition

    @property
    def peak_bytes(self) -> int:
        return max(self.memory_bytes.values())

    def seconds(self, flops_per_s: float) -> float:
        """How long the arithmetic takes at least, at the rate that a machine multiplies matrices with."""
        return sum(self.flops.values()) / flops_per_s


def plan(
    settings: Settings,
    *,
    path_frames: int,
    dtype: torch.dtype = torch.bfloat16,
    net: SanaWMConfig = SANA_WM,
    vae: VaeConfig = LTX2_VAE,
    text_parameters: int = GEMMA_PARAMETERS,
    weights: Sequence[str] = ("generate",),
) -> Plan:
    """What a video takes on a path of so many frames, with networks in `dtype`. Nothing is downloaded or loaded.

    Args:
        weights: names or groups of the networks that are downloaded where they are not here.
    """
    size = dtype.itemsize
    frames = snap_frames(min(settings.frames, path_frames), most=path_frames)
    latent_frames = (frames - 1) // STRIDE + 1
    rows, cols = settings.height // SPACE, settings.width // SPACE
    tokens = latent_frames * rows * cols
    passes = settings.steps * (1 if settings.guidance == 1 else 2)
    net_bytes, vae_bytes = (count * size for count in _parameters(net, vae))
    last_chunk = STRIDE * (SPACE // 4) ** 2 * rows * cols * vae.decoder_widths[0] // 2 * size
    return Plan(
        frames=frames,
        latent_frames=latent_frames,
        tokens=tokens,
        passes=passes,
        download_bytes=sum(part.num_bytes for part in networks(weights) if record(part) is None),
        memory_bytes={
            "text": text_parameters * size + (GEMMA_ACTIVATION_BYTES if text_parameters else 0),
            "encode": vae_bytes + last_chunk,
            "sample": net_bytes + round(tokens * (TOKEN_BYTES[size] * net.width + RAY_BYTES)),
            "decode": vae_bytes + DECODER_CHUNKS * last_chunk,
        },
        latents_bytes=4 * net.latent_channels * tokens,
        flops={
            "sample": passes * pass_flops(net, latent_frames, tokens),
            "decode": latent_frames * decoder_flops(vae, rows, cols),
        },
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """A change with which a video fits."""

    flags: str  # of the command line
    peak_bytes: int
    frames: int


def ways_to_fit(
    settings: Settings,
    memory_bytes: int,
    *,
    path_frames: int,
    dtype: torch.dtype,
    plan: Callable[..., Plan] = plan,
) -> list[Way]:
    """What to change so that a video takes at most so much memory, the smallest change first; none where nothing does.

    Guidance is not among them: its two passes go one after the other, so that without it only the time is halved.
    """

    def planned(frames: int, kind: torch.dtype) -> Plan:
        return plan(replace(settings, frames=frames), path_frames=path_frames, dtype=kind)

    ways = []
    for kind, words in ((dtype, ""), (torch.bfloat16, "--dtype bf16")):
        if kind.itemsize > dtype.itemsize or (words and kind == dtype):
            continue
        whole = planned(settings.frames, kind)
        frames = whole.frames
        low, high = planned(STRIDE + 1, kind), whole
        if high.peak_bytes > memory_bytes >= low.peak_bytes:
            # all but the tokens' share stays the same, so memory is straight in the frames above some number
            few, many = 1, (frames - 1) // STRIDE
            while many - few > 1:
                middle = (few + many) // 2
                if planned(STRIDE * middle + 1, kind).peak_bytes <= memory_bytes:
                    few = middle
                else:
                    many = middle
            frames = STRIDE * few + 1
        elif low.peak_bytes > memory_bytes:
            continue
        flags = " ".join(filter(None, (words, f"--num-frames {frames}" if frames < whole.frames else "")))
        if flags:
            ways.append(Way(flags=flags, peak_bytes=planned(frames, kind).peak_bytes, frames=frames))
    return sorted(ways, key=lambda way: -way.frames)


@lru_cache(maxsize=4)
def _parameters(net: SanaWMConfig, vae: VaeConfig) -> tuple[int, int]:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in x.parameters()) for x in (SanaWM(net), Vae(vae))]
    return counts[0], counts[1]


def pass_flops(net: SanaWMConfig, frames: int, tokens: int) -> float:
    """Of one pass of the network over `tokens` of so many latent frames, its conditions prepared, without what grows
    with neither the square of its width nor that of its tokens.
    """
    c, d = net.width, net.head_dim
    softmax = len(net.softmax_blocks)
    linear = (
        9 * c * c + 2 * c * c + 3 * c * net.ffn_width + 3 * c * c
    )  # self-attention, that to the text, MLP, its time
    rays = net.plucker_blocks * net.plucker_channels * c
    words = 2 * TOKENS * c
    # The scans (kernels/gdn.py) of values, of their normaliser and of the camera's branch: products of tokens, 5 of 7
    # done twice in all chunks but the last, and walks from memory to memory, 4, of which 2 are.
    twice = 1 - (1 + (frames - 1) % CHUNK) / frames
    scans = (7 + 5 * twice + (4 + 2 * twice) * d * frames / tokens) * c * d
    attention = softmax * 4 * tokens * c + (net.depth - softmax) * scans
    return 2.0 * tokens * (net.depth * (linear + words) + rays + attention)


def decoder_flops(vae: VaeConfig, rows: int, cols: int) -> float:
    """Of decoding one latent frame."""
    width, layers = vae.decoder_widths[-1], vae.decoder_layers[::-1]
    pixels = rows * cols
    work = pixels * width * (vae.latent_channels + 2 * layers[0] * width)
    for i in range(3):
        w = width >> i
        work += pixels * w * 4 * w  # to eight times as many pixels, half as wide
        pixels *= 8
        work += pixels * 2 * layers[i + 1] * (w // 2) ** 2
    work += pixels * (width >> 3) * 48
    return 2.0 * 27 * work


def matmul_flops_per_s(device: torch.device | str, dtype: torch.dtype) -> float:
    """The rate at which a machine multiplies matrices, measured; the best of three."""
    side = 8192 if torch.device(device).type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        (a @ a).sum().item()  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2.0 * side**3 / best
