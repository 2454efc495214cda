"""SANA-WM's layers in eight bits: the format's laws, and what the whole network loses by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longtake.model.sana_wm.config import SANA_WM, SanaWMConfig
from longtake.model.sana_wm.fp8 import E4M3, LARGEST, LAYERS, Fp8Linear, multiplies_fp8, quantise, to_fp8
from longtake.model.sana_wm.load import load
from longtake.model.sana_wm.network import Conditions, SanaWM

CONFIG = replace(
    SANA_WM,
    latent_channels=16,
    text_width=32,
    heads=4,
    head_dim=32,
    text_heads=4,
    depth=4,
    softmax_blocks=(3,),
    plucker_blocks=4,
    ffn_width=384,
)
RELATIVE = 2**-4  # half of the last of 3 bits
SMALLEST = 2**-9  # step of the smallest numbers


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestQuantise:
    def test_error(self):
        x = normal(64, 512) * normal(64, 1, seed=1).exp()
        numbers, scale = quantise(x)
        assert numbers.dtype == E4M3 and scale.shape == (64, 1)
        error = (numbers.float() * scale - x).abs()
        assert bool((error <= RELATIVE * x.abs() + SMALLEST / 2 * scale).all())
        assert bool((numbers.float().abs().amax(1) == LARGEST).all())

    def test_a_rows_size_does_not_matter(self):
        x = normal(3, 64)
        sizes = torch.tensor([[2.0**-20], [1.0], [2.0**20]])
        assert torch.equal(quantise(x * sizes)[0].float(), quantise(x)[0].float())
        assert torch.equal(quantise(x * sizes)[1], quantise(x)[1] * sizes)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_nothing_and_next_to_nothing(self, dtype):
        for size in (0.0, 1e-38):
            numbers, scale = quantise(torch.full((2, 16), size, dtype=dtype))
            assert bool((numbers.float() * scale).isfinite().all()) and bool((scale > 0).all())


class TestLinear:
    def test_is_the_product_of_what_was_quantised(self):
        weight, bias, x = normal(48, 32, seed=1), normal(48, seed=2), normal(2, 5, 32)
        got = Fp8Linear(weight, bias)(x)
        rows, scale = quantise(x.reshape(10, 32))
        columns, column_scale = quantise(weight)
        want = (rows.double() * scale) @ (columns.double() * column_scale).T + bias
        torch.testing.assert_close(got, want.reshape(2, 5, 48).float(), rtol=1e-5, atol=1e-5)

    def test_error(self):
        weight, x = normal(256, 1024, seed=1), normal(100, 1024)
        want = x @ weight.T
        error = float((Fp8Linear(weight, None)(x) - want).norm() / want.norm())
        assert 0.02 < error < 0.04  # two roundings of 2^-4 / sqrt(3) each, at most

    def test_refuses_other_widths(self):
        with pytest.raises(ValueError, match=r"a layer of \[20, 32\] .* multiples of 16"):
            Fp8Linear(torch.zeros(20, 32), None)


def drawn(config: SanaWMConfig = CONFIG) -> SanaWM:
    net = SanaWM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in net.named_parameters():
        if "norm" in name:
            value.fill_(1.0)
        elif not name.endswith("A_log"):
            value.normal_(0.0, value[0].numel() ** -0.5 if value.ndim > 1 else 0.02, generator=generator)
    return net


def clip(config: SanaWMConfig = CONFIG, frames: int = 3, rows: int = 4, cols: int = 6):
    pose = torch.eye(4).repeat(frames, 1, 1)
    pose[:, 2, 3] = 0.3 * torch.arange(frames)
    camera = torch.cat([pose.flatten(1), torch.tensor([4.0, 4.0, 3.0, 2.0]).expand(frames, 4)], 1)
    conditions = Conditions(
        text=normal(1, 9, config.text_width, seed=3),
        text_mask=None,
        camera=camera[None],
        plucker=normal(1, 48, frames, rows, cols, seed=4),
    )
    return normal(1, 16, frames, rows, cols, seed=5), torch.tensor([[0.0, 700.0, 700.0]]), conditions


class TestNetwork:
    def test_error(self):
        """Of four blocks on fixed inputs: what eight bits cost, beside what bfloat16 costs."""
        inputs = clip()
        with torch.inference_mode():
            want = drawn()(*inputs)
            errors = {
                "bfloat16": float((drawn().bfloat16()(*inputs) - want).norm() / want.norm()),
                "fp8": float((to_fp8(drawn())(*inputs) - want).norm() / want.norm()),
            }
        assert 0.001 < errors["bfloat16"] < 0.02 and 0.01 < errors["fp8"] < 0.08, errors

    def test_the_camera_is_still_followed(self):
        """What another path changes is the same change in eight bits, but for a part."""
        latents, timesteps, conditions = clip()
        assert conditions.camera is not None
        camera = conditions.camera.clone()
        camera[..., 3] = torch.tensor([0.0, 0.5, 1.0])  # aside, too

        def change(net: SanaWM) -> Tensor:
            with torch.inference_mode():
                moved = net(latents, timesteps, replace(conditions, camera=camera))
                return moved - net(latents, timesteps, conditions)

        want, got = change(drawn()), change(to_fp8(drawn()))
        assert float((got * want).sum() / (got.norm() * want.norm())) > 0.5

    def test_layers(self):
        net = to_fp8(drawn())
        small = {name for name, module in net.named_modules() if isinstance(module, Fp8Linear)}
        assert small == {f"blocks.{i}.{name}" for i in range(4) for name in LAYERS}

    def test_loading(self, tmp_path):
        save_file(drawn().state_dict(), tmp_path / "w.safetensors")
        net = load(tmp_path / "w.safetensors", device="cpu", dtype=torch.float32, fp8=True, config=CONFIG)
        with torch.inference_mode():
            assert torch.equal(net(*clip()), to_fp8(drawn())(*clip()))

    @pytest.mark.skipif(
        not torch.cuda.is_available() or not multiplies_fp8("cuda"), reason="no GPU that multiplies eight-bit matrices"
    )
    def test_on_a_gpu(self):
        layer, x = Fp8Linear(normal(64, 128, seed=1), normal(64, seed=2)), normal(50, 128)
        got = layer.cuda()(x.cuda()).cpu()
        # the result is rounded to bfloat16
        torch.testing.assert_close(got, layer.cpu()(x), rtol=2**-7, atol=2**-7)
