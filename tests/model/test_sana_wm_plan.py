"""Predictions of memory and arithmetic against what tensors and operators say of themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from longtake.model.networks import networks
from longtake.model.sana_wm.config import SANA_WM, SanaWMConfig
from longtake.model.sana_wm.generate import Settings
from longtake.model.sana_wm.network import Conditions, SanaWM
from longtake.model.sana_wm.plan import Plan, decoder_flops, matmul_flops_per_s, pass_flops, plan
from longtake.model.sana_wm.vae import Vae
from longtake.model.tensor_memory import TensorMemory

from ..tiny_sana_wm import VAE as SMALL

NET = replace(SANA_WM, heads=4, text_heads=4, depth=4, softmax_blocks=(3,), plucker_blocks=4, ffn_width=1344)
VAE = replace(SMALL, decoder_widths=(32, 64, 128), decoder_layers=(5, 5, 5, 5))


def inputs(net: SanaWMConfig, frames: int, rows: int, cols: int):
    conditions = Conditions(
        text=torch.zeros(1, 300, net.text_width),
        text_mask=torch.ones(1, 300, dtype=torch.bool),
        camera=torch.zeros(1, frames, 20),
        plucker=torch.zeros(1, 48, frames, rows, cols),
    )
    return torch.zeros(1, net.latent_channels, frames, rows, cols), torch.zeros(1, frames), conditions


class Fused(TorchFunctionMode):
    """Attention without its scores, as on a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return torch.empty_like(args[0]) if func is F.scaled_dot_product_attention else func(*args, **(kwargs or {}))


class Plain(TorchFunctionMode):
    """Attention as two products, which the counter knows."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args
        return (q @ k.mT).softmax(-1) @ v


def peak(net: torch.nn.Module, run) -> int:
    memory = TensorMemory()
    for held in (*net.parameters(), *net.buffers()):
        memory.add(held)
    with memory, Fused(), torch.no_grad():
        run(net)
    return memory.peak


def made(kind, config, dtype: torch.dtype):
    torch.set_default_dtype(dtype)
    try:
        return kind(config)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path))


def planned(settings: Settings, dtype: torch.dtype = torch.bfloat16, **sizes) -> Plan:
    return plan(settings, path_frames=9999, dtype=dtype, **sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_of_the_network(dtype):
    want = planned(Settings(frames=33), dtype, net=NET).memory_bytes["sample"]
    with FakeTensorMode():
        net = made(SanaWM, NET, dtype)
        got = peak(net, lambda net: net(*inputs(NET, 5, 22, 40)))
    # the text's part does not grow with the video and is left out
    assert 0.85 * got < want < 1.1 * got


def test_memory_of_the_decoder():
    settings = Settings(frames=193, width=256, height=256)
    want = planned(settings, torch.float32, vae=VAE).memory_bytes["decode"]
    with FakeTensorMode():
        vae = made(Vae, VAE, torch.float32)
        got = peak(vae, lambda vae: [None for _ in vae.decode(torch.zeros(1, 8, 25, 8, 8))])
    assert 0.85 * got < want < 1.2 * got


def onednn_flops(x: torch.Size, weight: torch.Size, *_, out_shape: torch.Size, **__) -> int:
    return 2 * out_shape.numel() * weight[1]


@pytest.mark.parametrize(("frames", "off"), [(1, 0.06), (4, 0.02), (40, 0.004)])
def test_arithmetic_of_the_network(frames, off):
    """All but preparing the conditions, which does not grow with the frames, is in it."""
    known = {torch.ops.mkldnn._linear_pointwise: onednn_flops}
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=known) as counter, Plain():
        SanaWM(NET)(*inputs(NET, frames, 22, 40))
    counted = counter.get_total_flops()
    assert counted == pytest.approx(pass_flops(NET, frames, frames * 880), rel=off)


def test_arithmetic_of_the_decoder():
    def count(frames: int) -> int:
        with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            for _ in Vae(VAE).decode(torch.zeros(1, 8, frames, 4, 4)):
                pass
        return counter.get_total_flops()

    assert count(5) - count(4) == pytest.approx(decoder_flops(VAE, 4, 4), rel=1e-3)


def test_the_published_video():
    """A minute takes 8 GB more than ten seconds for its activations, and more than its share of arithmetic."""
    short, minute = planned(Settings()), planned(Settings(frames=961))
    assert (short.frames, short.latent_frames, short.tokens, short.passes) == (161, 21, 18_480, 120)
    assert (minute.latent_frames, minute.tokens) == (121, 106_480)
    assert short.latents_bytes == 4 * 128 * 18_480
    assert 6.5e9 < short.memory_bytes["sample"] < 7.5e9 and 15e9 < minute.peak_bytes < 16e9
    assert short.memory_bytes["decode"] == minute.memory_bytes["decode"] < 5e9
    assert minute.flops["sample"] > 6 * short.flops["sample"]
    assert short.seconds(1e14) == sum(short.flops.values()) / 1e14


def test_less_of_everything():
    whole = planned(Settings())
    assert 2 * planned(Settings(guidance=1.0)).passes == whole.passes
    assert plan(Settings(), path_frames=100).frames == 97
    assert whole.download_bytes == sum(part.num_bytes for part in networks(["generate"])) > 18e9
    assert planned(Settings(), torch.float32).memory_bytes["text"] > 1.9 * whole.memory_bytes["text"]


def test_a_rate_is_measured():
    assert 1e6 < matmul_flops_per_s("cpu", torch.float32) < 1e16
