"""A picture, a camera path and a prompt to a video: SANA-WM's first stage from beginning to end.

    made = generate(fetched_parts("cuda", torch.bfloat16), picture, path, "a red house by the sea", settings=Settings())
    for frame in video(made, vae):  # RGB uint8 [H, W, 3], one after the other
        ...

Networks are loaded when it is their turn and let go before the next, so memory holds one at a time.

Source: SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import LongtakeError
from .camera import STRIDE, Crop, pack
from .load import load
from .network import Conditions, SanaWM
from .path import CameraPath, first_frames, for_picture
from .sampler import dpm_sigmas, dpm_solver, euler, euler_sigmas, guided, negative_of, start
from .vae import SPACE, Vae, load_vae, pictures, read_config

if TYPE_CHECKING:
    from .text import Text, TextEncoder

SAMPLERS = {"euler": (euler, euler_sigmas), "dpm": (dpm_solver, dpm_sigmas)}


class PromptTooLong(LongtakeError):
    """The end of the prompt has no room among the tokens that the network sees."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a video is made with, besides its picture, path and prompt. The defaults are the published ones.

    Raises:
        LongtakeError: a number that no video can be made with.
    """

    frames: int = 161  # at most: a shorter path makes a shorter video
    width: int = 1280  # the network was trained with this size alone
    height: int = 704
    steps: int = 60
    guidance: float = 5.0  # 1: no negative prompt, and half the time
    shift: float = 9.8  # of the noise schedule
    sampler: str = "euler"
    seed: int = 42

    def __post_init__(self) -> None:
        if self.frames < 1 or self.steps < 1:
            raise LongtakeError(f"frames {self.frames} and steps {self.steps} must be at least 1")
        if self.width % SPACE or self.height % SPACE or min(self.width, self.height) < 2 * SPACE:
            raise LongtakeError(f"a video of {self.width}x{self.height}: sides are multiples of {SPACE}, 64 or more")
        if not (self.guidance >= 1 and self.shift > 0):
            raise LongtakeError(f"guidance {self.guidance} must be at least 1, and shift {self.shift} positive")
        if self.sampler not in SAMPLERS:
            raise LongtakeError(f"there is no sampler {self.sampler!r}: {', '.join(SAMPLERS)}")


class ReadsPrompts(Protocol):
    """What is taken of a text encoder."""

    def prompt(self, text: str) -> Text: ...

    def negative(self, text: str) -> Text: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How to come by the networks. Each is called once for a video, when it is needed."""

    text: Callable[[], ReadsPrompts]
    vae: Callable[[], Vae]
    net: Callable[[], SanaWM]


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """Latent frames, and the camera that they were asked to show."""

    latents: Tensor  # [1, C, T, H / 32, W / 32] float32 on the CPU, normalised
    path: CameraPath  # of the 8 (T - 1) + 1 frames; intrinsics in their pixels
    settings: Settings
    lost_tokens: int  # of the prompt's end, that had no room


def fetched_parts(device: torch.device | str, dtype: torch.dtype) -> Parts:
    """The published networks, as `longtake weights fetch generate` got them, to compute on `device` in `dtype`.

    Raises:
        MissingPart: when one is asked for that is not here, or whose licence was not accepted.
    """
    from ..hub import locate

    def text() -> TextEncoder:
        from .text import load_text_encoder

        files = locate("gemma2-2b")
        return load_text_encoder(
            files["gemma-2-2b-it.safetensors"],
            files["config.json"],
            files["tokenizer.json"],
            device=device,
            dtype=dtype,
        )

    def vae() -> Vae:
        files = locate("ltx2-vae")
        config = read_config(files["vae/config.json"])
        return load_vae(files["vae/diffusion_pytorch_model.safetensors"], config, device=device, dtype=dtype)

    def net() -> SanaWM:
        return load(locate("sana-wm")["dit/sana_wm_1600m_720p.safetensors"], device=device, dtype=dtype)

    return Parts(text=text, vae=vae, net=net)


def generate(
    parts: Parts,
    picture: NDArray[np.uint8],
    path: CameraPath,
    prompt: str,
    *,
    negative: str = "",
    settings: Settings,
    cut_prompt: bool = True,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> Generated:
    """Latent frames that begin with a picture and are seen along a path.

    The noise is drawn on the CPU, so a seed means the same on every machine; arithmetic differs in its last bits.

    Args:
        picture: [H, W, 3] RGB, cropped in its middle to the video's shape.
        path: beginning where the picture was taken, with the picture's intrinsics.
        prompt: what is seen; the path says how the camera moves.
        negative: what to lead away from; has no effect with guidance 1.
        cut_prompt: leave out the end of a prompt that is too long; else it raises.
        on_step: called after each step with its number and the number of them; what it raises ends this.

    Raises:
        LongtakeError: picture and path do not belong together, the path has a single frame.
        PromptTooLong: unless it may be cut.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise LongtakeError(f"the picture is {picture.dtype} {list(picture.shape)}, not uint8 RGB [H, W, 3]")
    path = framed(path, picture.shape[1], picture.shape[0], settings)
    text, away = _read(parts, prompt, negative if settings.guidance != 1 else None)
    if text.lost_tokens and not cut_prompt:
        raise PromptTooLong(
            f"the prompt is too long: {text.lost_tokens} tokens of its end have no room (a token is some four "
            "characters). Shorten it, or have it cut: --cut-prompt"
        )
    height, width = picture.shape[:2]
    crop = Crop.to_cover(width, height, out_width=settings.width, out_height=settings.height)
    first = _encode(parts, crop.picture(torch.from_numpy(picture)))
    latents = _sample(parts, first, path, text, away, settings, on_step)
    return Generated(latents=latents, path=path, settings=settings, lost_tokens=text.lost_tokens)


def framed(path: CameraPath, width: int, height: int, settings: Settings) -> CameraPath:
    """The path of a video's frames, from that of a picture of width x height: as long, and with their intrinsics.

    Raises:
        LongtakeError: the picture is not the path's, or there are too few frames for a video.
    """
    path = first_frames(for_picture(path, width, height), settings.frames)
    if path.num_frames < STRIDE + 1:
        raise LongtakeError(f"a video has {STRIDE + 1} frames or more: the path, or the settings' frames, are too few")
    crop = Crop.to_cover(width, height, out_width=settings.width, out_height=settings.height)
    intrinsics = crop.intrinsics(torch.from_numpy(path.intrinsics), width, height)
    return replace(path, intrinsics=intrinsics.numpy(), width=settings.width, height=settings.height)


def video(made: Generated, vae: Vae) -> Iterator[NDArray[np.uint8]]:
    """The frames [H, W, 3] RGB, one after the other; few are in memory at once."""
    yield from frames_of(made.latents, vae)


@torch.inference_mode()
def frames_of(latents: Tensor, vae: Vae) -> Iterator[NDArray[np.uint8]]:
    """The frames [H, W, 3] RGB of latents [1, C, T, h, w], one after the other."""
    for frames in vae.decode(latents.to(vae.latents_mean.device)):
        yield from pictures(frames[0]).numpy()


def _read(parts: Parts, prompt: str, negative: str | None) -> tuple[Text, Text | None]:
    encoder = parts.text()
    return encoder.prompt(prompt), None if negative is None else encoder.negative(negative)


def _encode(parts: Parts, picture: Tensor) -> Tensor:
    vae = parts.vae()
    return vae.encode(picture[None, :, None].to(vae.latents_mean.device))


@torch.inference_mode()
def _sample(
    parts: Parts,
    first: Tensor,
    path: CameraPath,
    text: Text,
    away: Text | None,
    settings: Settings,
    on_step: Callable[[int, int], None],
) -> Tensor:
    rows, cols = first.shape[-2:]
    camera, plucker = pack(
        torch.from_numpy(path.world_from_cam),
        torch.from_numpy(path.intrinsics),
        width=path.width,
        height=path.height,
        rows=rows,
        cols=cols,
    )
    shape = (1, first.shape[1], len(camera), rows, cols)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(settings.seed))
    net = parts.net()
    device = net.final_layer.linear.weight.device
    conditions = Conditions(
        text=text.states.to(device),
        text_mask=text.mask.to(device),
        camera=camera[None].to(device),
        plucker=plucker[None].to(device),
    )
    negative = None if away is None else negative_of(conditions, away.states.to(device), away.mask.to(device))
    step, sigmas = SAMPLERS[settings.sampler]
    latents = start(noise.to(device), first.to(device))
    velocity = guided(net, conditions, negative, settings.guidance)
    for done, now in enumerate(step(velocity, latents, sigmas(settings.steps, settings.shift)), start=1):
        latents = now
        on_step(done, settings.steps)
    return latents.cpu()
