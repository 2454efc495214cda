"""DiFix on small random weights in the layout of the published folder: against the published way of computing it, laws
of its parts, and what is said of files that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longtake.errors import BadWeights, LongtakeError
from longtake.model.difix import FILES, LORA_ALPHA, MAX_PIXELS, STEP, Difix, load, merged
from longtake.model.networks import NETWORKS

diffusers = pytest.importorskip("diffusers", reason="the extra `enhance` is not installed")
pytest.importorskip("transformers", reason="the extra `enhance` is not installed")
from ..tiny_difix import RANK, SCHEDULER, SD_TURBO_UNET, SD_TURBO_VAE, SMALL_VAE, correction, write_difix  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_difix(tmp_path_factory.mktemp("difix"))


@pytest.fixture(scope="module")
def net(folder: Path) -> Difix:
    return load(files_of(folder), device="cpu", dtype=torch.float32)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(1).random((44, 70, 3), np.float32)  # no multiple of 8, nor of what the UNet halves


def files_of(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in FILES}


# ---- what it computes --------------------------------------------------------------------------------------------


def published(folder: Path, picture: Tensor, prompt: Tensor) -> Tensor:
    """One step as the published code takes it, but with the encoder's mean: corrections beside the layers that they
    correct, skips by hooks, the scheduler's own way from step 199 to none."""
    vae = diffusers.AutoencoderKL(**SMALL_VAE).eval()
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    plain = {k.replace(".base_layer", ""): t for k, t in tensors.items() if "lora" not in k and "skip" not in k}
    vae.load_state_dict(plain)

    def corrected(layer: nn.Module, name: str) -> nn.Module:
        a, b = (tensors[f"{name}.lora_{half}.vae_skip.weight"] for half in "AB")

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            (x,) = inputs
            if isinstance(module, nn.Conv2d):
                low = nn.functional.conv2d(x, a, stride=module.stride, padding=module.padding)
                return output + LORA_ALPHA / RANK * nn.functional.conv2d(low, b)
            return output + LORA_ALPHA / RANK * (x @ a.T @ b.T)

        layer.register_forward_hook(add)
        return layer

    for name, module in vae.named_modules():
        if f"{name}.lora_A.vae_skip.weight" in tensors:
            corrected(module, name)
    seen: list[Tensor] = []
    for block in vae.encoder.down_blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for i, block in enumerate(vae.decoder.up_blocks):
        weight = tensors[f"decoder.skip_conv_{i + 1}.base_layer.weight"]
        skip = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        skip.weight.data = weight
        corrected(skip, f"decoder.skip_conv_{i + 1}")
        block.register_forward_pre_hook(
            lambda _, inputs, skip=skip, i=i: (inputs[0] + skip(seen[::-1][i] * 0.9), *inputs[1:])
        )
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(timesteps=[STEP])
    factor = vae.config.scaling_factor
    with torch.no_grad():
        z = vae.encode(picture).latent_dist.mode() * factor
        noise = unet(z, scheduler.timesteps[0], encoder_hidden_states=prompt).sample
        z = scheduler.step(noise, scheduler.timesteps[0], z).prev_sample
        return vae.decode(z / factor).sample.clamp(-1, 1)


def test_a_step_is_the_published_one(net: Difix, folder: Path) -> None:
    picture = torch.rand(1, 3, 48, 72, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        ours = net(picture)
    theirs = published(folder, picture, net.prompt.clone())
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)  # corrections are added before or after: rounding


def test_pictures_of_any_size_keep_it(net: Difix, rgb: np.ndarray) -> None:
    out = net.enhance(rgb)
    assert out.shape == rgb.shape and out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1
    np.testing.assert_array_equal(net.enhance(rgb), out)  # nothing is drawn by chance
    assert np.abs(net.enhance(rgb[::-1].copy()) - out).max() > 0.01
    padded = np.pad(rgb, ((0, 4), (0, 2), (0, 0)), "edge")
    np.testing.assert_allclose(net.enhance(padded)[:44, :70], out, atol=1e-5)


def test_a_reference_is_seen_by_self_attention_alone(net: Difix, rgb: np.ndarray) -> None:
    alone = net.enhance(rgb)
    np.testing.assert_allclose(net.enhance(rgb, rgb), alone, atol=1e-4)  # keys given twice: the same weighted mean
    other = net.enhance(rgb, np.zeros_like(rgb))
    assert np.abs(other - alone).max() > 1e-4
    np.testing.assert_array_equal(net.enhance(rgb), alone)
    with pytest.raises(LongtakeError, match="resize it"):
        net.enhance(rgb, rgb[:8])


def test_the_prompt_is_read_once_and_padded(net: Difix) -> None:
    assert net.prompt.shape == (1, 32, 24) and net.prompt.std() > 0.1
    assert not any("text" in name for name, _ in net.named_parameters())


def test_corrections_of_linear_layers_and_convolutions() -> None:
    conv, linear = nn.Conv2d(5, 6, 3, bias=False), nn.Linear(7, 4, bias=False)
    tensors = {"c.base_layer.weight": conv.weight.data} | correction("c", conv.weight.data)
    tensors |= {"l.base_layer.weight": linear.weight.data} | correction("l", linear.weight.data)
    out = merged(tensors, Path("x"))
    assert out.keys() == {"c.weight", "l.weight"}
    x, y = torch.randn(2, 5, 8, 8), torch.randn(3, 7)
    low = nn.functional.conv2d(x, tensors["c.lora_A.vae_skip.weight"])
    want = conv(x) + 2 * nn.functional.conv2d(low, tensors["c.lora_B.vae_skip.weight"])
    torch.testing.assert_close(nn.functional.conv2d(x, out["c.weight"]), want, atol=1e-5, rtol=1e-5)
    want = linear(y) + 2 * y @ tensors["l.lora_A.vae_skip.weight"].T @ tensors["l.lora_B.vae_skip.weight"].T
    torch.testing.assert_close(y @ out["l.weight"].T, want, atol=1e-5, rtol=1e-5)


# ---- what it takes -----------------------------------------------------------------------------------------------


def test_memory_is_bounded(net: Difix) -> None:
    """A film's frame in half precision, at the published sizes: within what the list of networks says."""
    from longtake.model.difix import _joins
    from longtake.model.tensor_memory import peak_bytes

    def build() -> Difix:
        torch.set_default_dtype(torch.float16)
        down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
        up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
        unet = diffusers.UNet2DConditionModel(down_block_types=down, up_block_types=up, **SD_TURBO_UNET)
        vae = diffusers.AutoencoderKL(**SD_TURBO_VAE)
        return Difix(unet, vae, _joins(vae), diffusers.DDPMScheduler(**SCHEDULER), 1.0)

    def run(big: Difix) -> None:
        with torch.no_grad():
            big(torch.zeros(1, 3, 704, 1280, dtype=torch.float16, device=big.prompt.device))

    try:
        peak = peak_bytes(build, run, precision=torch.float16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert 2e9 < peak < NETWORKS["difix"].memory_bytes
    with pytest.raises(LongtakeError, match=f"up to {MAX_PIXELS}"):
        net.enhance(np.zeros((2160, 3840, 3), np.float32))


# ---- files -------------------------------------------------------------------------------------------------------


def test_the_list_of_networks_names_what_is_read() -> None:
    assert {file.path for file in NETWORKS["difix"].files} == set(FILES)
    assert NETWORKS["difix"].licence.must_accept


@pytest.mark.parametrize(
    "name, spoil, words",
    [
        (
            "vae/diffusion_pytorch_model.safetensors",
            lambda t: t.pop("encoder.conv_in.weight"),
            "encoder.conv_in.weight",
        ),
        ("vae/diffusion_pytorch_model.safetensors", lambda t: t.pop("decoder.skip_conv_2.base_layer.weight"), "skip"),
        (
            "vae/diffusion_pytorch_model.safetensors",
            lambda t: t.pop("decoder.conv_in.lora_B.vae_skip.weight"),
            "conv_in.lora_A.vae_skip.weight comes without",
        ),
        ("unet/diffusion_pytorch_model.safetensors", lambda t: t.update(more=torch.zeros(1)), "more is missing, too"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            lambda t: t.update({"conv_in.bias": torch.zeros(3)}),
            "conv_in.bias is missing, too much or of another shape",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, name: str, spoil, words: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / name)
    spoil(tensors)
    save_file(tensors, copy / name)
    with pytest.raises(BadWeights, match=words):
        load(files_of(copy), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    "name", ["unet/config.json", "text_encoder/config.json", "vae/diffusion_pytorch_model.safetensors"]
)
def test_broken_files_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).write_text("no")
    with pytest.raises(BadWeights, match=name.partition("/")[0]):
        load(files_of(copy), device="cpu", dtype=torch.float32)
