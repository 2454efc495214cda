"""DiFix: a picture drawn from splats, rid of what splats do wrong, by one step of a diffusion network.

The network is SD-Turbo, fine-tuned. A picture is encoded, the UNet is asked once, at step 199 of 1000, what noise is in
the latent picture, and without that noise it is decoded. No noise is ever added. The decoder also gets what the encoder
saw at each of its four sizes, by convolutions over single pixels, so that what was right stays where it was.

With a reference (a photograph from nearby) both pictures go through together, and each self-attention of the UNet sees
the pixels of both; that is what the weights `difix_ref` were trained for.

The published folder holds tokenizer, text_encoder, scheduler, unet and vae as diffusers and transformers write them.
The vae is Stable Diffusion's with the four convolutions and, on the decoder, low-rank corrections that are added to
the weights when loading.

Departures from the published code: the encoder's mean is taken where it draws from the encoder's normal distribution
(frames of a film would shimmer), and pictures whose sides are no multiple of 8 are continued by their border pixels
where it resizes them (the intrinsics would no longer hold).

Source: Wu et al., Difix3D+: Improving 3D Reconstructions with Single-Step Diffusion Models, CVPR 2025.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadWeights, LongtakeError, MissingPart

STEP = 199  # of 1000, at which the weights were trained
PROMPT = "remove degradation"  # with which they were
LORA_ALPHA = 8  # PEFT's default, which training left alone: corrections count 8 / rank
MULTIPLE = 8  # of pixels, that the autoencoder shrinks to one
MAX_PIXELS = 1920 * 1088  # of a picture: memory grows with them
FILES = (  # that `load` reads, of the folder
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


class Difix(nn.Module):
    """The network for inference, its prompt already read; unet, vae and scheduler are diffusers' own.

    Attributes:
        prompt: [1, 77, D] as the text encoder sees it.
    """

    prompt: Tensor
    unet: Any  # diffusers' types say less than they are
    vae: Any

    def __init__(self, unet: Any, vae: Any, joins: nn.ModuleList, scheduler: Any, gamma: float) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.joins = joins  # of the encoder's activations to the decoder's, from the coarsest to the finest
        self.scheduler = scheduler
        self.gamma = gamma  # factor on the encoder's activations
        self.register_buffer("prompt", torch.zeros(1, 1, unet.config.cross_attention_dim), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [1 or 2, 3, H, W] in -1 .. 1, the second a reference; the first one enhanced [1, 3, H, W]."""
        views = len(pictures)
        _mix_views(self.unet, views)
        z, seen = self._encode(pictures)
        noise = self.unet(z, STEP, encoder_hidden_states=self.prompt.expand(views, -1, -1)).sample
        z = self.scheduler.step(noise, STEP, z).pred_original_sample
        return self._decode(z[:1], [a[:1] for a in seen]).clamp(-1, 1)

    def _encode(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latent pictures [B, 4, H/8, W/8], and the activations before each of the encoder's blocks."""
        encoder, seen = self.vae.encoder, []
        x = encoder.conv_in(pictures)
        for block in encoder.down_blocks:
            seen.append(x)
            x = block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        mean, _ = self.vae.quant_conv(x).chunk(2, 1)
        return mean * self.vae.config.scaling_factor, seen

    def _decode(self, z: Tensor, seen: list[Tensor]) -> Tensor:
        decoder = self.vae.decoder
        x = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(z / self.vae.config.scaling_factor)))
        for block, join in zip(decoder.up_blocks, self.joins, strict=True):
            x = block(x + join(self.gamma * seen.pop()))
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))

    @torch.inference_mode()
    def enhance(self, rgb: NDArray[np.float32], reference: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """A picture [H, W, 3] in 0 .. 1, enhanced.

        Args:
            reference: [H, W, 3] a photograph from nearby, for weights that were trained with one.

        Raises:
            LongtakeError: the picture is too large, or the reference has another size.
        """
        height, width = rgb.shape[:2]
        if height * width > MAX_PIXELS:
            raise LongtakeError(f"DiFix takes pictures of up to {MAX_PIXELS} pixels, not {width} x {height}")
        if reference is not None and reference.shape != rgb.shape:
            raise LongtakeError(f"a reference of {list(reference.shape)} for a picture of {list(rgb.shape)}: resize it")
        stack = np.stack([rgb] if reference is None else [rgb, reference])
        pictures = torch.from_numpy(stack).permute(0, 3, 1, 2).to(self.prompt.device, self.prompt.dtype) * 2 - 1
        pad = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        out = self(F.pad(pictures, pad, mode="replicate"))[0, :, :height, :width]
        return (out.float() / 2 + 0.5).permute(1, 2, 0).cpu().numpy()


class _Together:
    """Self-attention over the pixels of all views at once, by the processor that diffusers would use."""

    def __init__(self, own: Any, views: int) -> None:
        self.own = own
        self.views = views

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _, n, d = hidden_states.shape
        together = self.own(attn, hidden_states.reshape(-1, self.views * n, d), *args, **kwargs)
        return together.reshape(-1, n, d)


def _mix_views(unet: Any, views: int) -> None:
    """Have each self-attention (diffusers' attn1) see this many views; attention to the prompt stays as it is."""
    processors = dict(unet.attn_processors)
    for name, processor in processors.items():
        own = processor.own if isinstance(processor, _Together) else processor
        processors[name] = _Together(own, views) if views > 1 and name.endswith("attn1.processor") else own
    unet.set_attn_processor(processors)


# ---- loading -----------------------------------------------------------------------------------------------------


def load(files: Mapping[str, Path], *, device: torch.device | str, dtype: torch.dtype) -> Difix:
    """The network from its published files, for inference.

    Args:
        files: where each of `FILES` is, as `hub.locate` tells; those of a folder lie together.

    Raises:
        MissingPart: diffusers or transformers is not installed.
        BadWeights: a file cannot be read, or belongs to another network.
    """
    try:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # pyright: ignore
    except ImportError as error:
        raise MissingPart(f"DiFix runs on diffusers ({error}): pip install 'longtake[enhance]'") from error
    with torch.device("meta"):
        unet = UNet2DConditionModel(**_arguments(files["unet/config.json"], UNet2DConditionModel))
        vae = AutoencoderKL(**_arguments(files["vae/config.json"], AutoencoderKL))
        joins = _joins(vae)
    scheduler = DDPMScheduler(**_arguments(files["scheduler/scheduler_config.json"], DDPMScheduler))
    path = files["unet/diffusion_pytorch_model.safetensors"]
    _fill(unet, _tensors(path), path, dtype)
    path = files["vae/diffusion_pytorch_model.safetensors"]
    tensors = merged(_tensors(path), path)
    named = {f"{i}.weight": tensors.pop(f"decoder.skip_conv_{i + 1}.weight", None) for i in range(len(joins))}
    _fill(vae, tensors, path, dtype)
    _fill(joins, {name: tensor for name, tensor in named.items() if tensor is not None}, path, dtype)
    gamma = float(_tree(files["vae/config.json"]).get("gamma", 1.0))
    net = Difix(unet, vae, joins, scheduler, gamma).to(device).eval().requires_grad_(False)
    net.prompt = _read_prompt(files).to(device, dtype)
    return net


def merged(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights with PEFT's low-rank corrections added: W + (alpha / rank) B A, for linear layers and convolutions.

    Raises:
        BadWeights: a correction lacks its other half, or the weight that it corrects.
    """
    out = {key.replace(".base_layer.", "."): t for key, t in tensors.items() if ".lora_" not in key}
    for key in [key for key in tensors if ".lora_" in key]:
        layer, _, rest = key.partition(".lora_")
        half, _, adapter = rest.partition(".")
        other, target = f"{layer}.lora_{'B' if half == 'A' else 'A'}.{adapter}", f"{layer}.weight"
        if other not in tensors or target not in out:
            raise BadWeights(f"{path}: {key} comes without {other if other not in tensors else target}")
        if half == "A":
            a, b, weight = tensors[key].float(), tensors[other].float(), out[target].float()
            out[target] = weight + LORA_ALPHA / len(a) * (b.flatten(1) @ a.flatten(1)).view_as(weight)
    return out


def _joins(vae: Any) -> nn.ModuleList:
    """Convolutions from the width before each of the encoder's blocks to that before the decoder's of the same size."""
    widths = list(vae.config.block_out_channels)
    before_down = [widths[0], *widths[:-1]]
    before_up = [widths[-1], *widths[:0:-1]]
    return nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(before_down[::-1], before_up, strict=True))


def _read_prompt(files: Mapping[str, Path]) -> Tensor:
    """[1, 77, D] the prompt as the text encoder sees it; the encoder is let go."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise MissingPart(
            f"DiFix's prompt is read by transformers ({error}): pip install 'longtake[enhance]'"
        ) from error
    folder = files["text_encoder/config.json"].parent
    try:
        tokenizer = CLIPTokenizer.from_pretrained(files["tokenizer/vocab.json"].parent, local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise BadWeights(f"{folder}: no text encoder with its tokenizer: {error}") from error
    length = encoder.config.max_position_embeddings
    ids = tokenizer(PROMPT, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode():
        return encoder(ids)[0].clone()


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadWeights(f"{path}: no configuration: {error}") from error
    if not isinstance(tree, dict):
        raise BadWeights(f"{path}: no configuration but {type(tree).__name__}")
    return tree


def _arguments(path: Path, kind: type) -> dict[str, Any]:
    """Of a configuration what this class of diffusers takes; the published ones hold more."""
    known = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: value for name, value in _tree(path).items() if name in known}


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadWeights(f"{path}: cannot be read: {error}") from error


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """Give a network without numbers its weights; raises BadWeights where they are not exactly its own."""
    want = net.state_dict()
    wrong = sorted(want.keys() ^ tensors.keys())
    wrong += [key for key in want.keys() & tensors.keys() if want[key].shape != tensors[key].shape]
    if wrong:
        raise BadWeights(f"{path}: {wrong[0]} is missing, too much or of another shape; so are {len(wrong) - 1} others")
    net.load_state_dict({key: tensor.to(dtype) for key, tensor in tensors.items()}, assign=True)
