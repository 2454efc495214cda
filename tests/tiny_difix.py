"""DiFix with small random weights, in the layout of the published folder, saved by the libraries that saved that."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # pyright: ignore
from safetensors.torch import save_file
from torch import Tensor

RANK = 4
ADAPTED = ("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0")
SD_TURBO_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SD_TURBO_UNET = {
    "attention_head_dim": (5, 10, 20, 20),
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SMALL_VAE = SD_TURBO_VAE | {"block_out_channels": (8, 16, 24, 32), "layers_per_block": 1, "norm_num_groups": 4}
SMALL_UNET = SD_TURBO_UNET | {
    "block_out_channels": (16, 16, 32, 32),
    "attention_head_dim": (2, 2, 4, 4),
    "cross_attention_dim": 24,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def write_difix(folder: Path) -> Path:
    """Small random networks, saved by the libraries that saved the published ones."""
    torch.manual_seed(0)
    UNet2DConditionModel(**SMALL_UNET).save_pretrained(folder / "unet")
    DDPMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    vae = AutoencoderKL(**SMALL_VAE)
    vae.save_pretrained(folder / "vae")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"lora_rank": RANK, "gamma": 0.9}))
    tensors = {}
    for key, tensor in vae.state_dict().items():
        layer, _, last = key.rpartition(".")
        adapted = key.startswith("decoder.") and any(layer.endswith(f".{name}") for name in ADAPTED)
        tensors[f"{layer}.base_layer.{last}" if adapted else key] = tensor
        if adapted and last == "weight":
            tensors |= correction(layer, tensor)
    for i, (a, b) in enumerate([(24, 32), (16, 32), (8, 24), (8, 16)]):
        layer, weight = f"decoder.skip_conv_{i + 1}", 0.1 * torch.randn(b, a, 1, 1)
        tensors |= {f"{layer}.base_layer.weight": weight} | correction(layer, weight)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "vae" / "diffusion_pytorch_model.safetensors")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["!", *letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=0,
    )  # fmt: skip
    transformers.CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "!"}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps(special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 32})
    )
    return folder


def correction(layer: str, weight: Tensor) -> dict[str, Tensor]:
    b_shape = (len(weight), RANK, 1, 1) if weight.ndim == 4 else (len(weight), RANK)
    return {
        f"{layer}.lora_A.vae_skip.weight": 0.1 * torch.randn(RANK, *weight.shape[1:]),
        f"{layer}.lora_B.vae_skip.weight": 0.1 * torch.randn(b_shape),
    }
