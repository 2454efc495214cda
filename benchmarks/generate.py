"""One denoising step of SANA-WM's first stage: ours beside diffusers' transformer, with the same random weights.

    python benchmarks/generate.py                 # needs `pip install diffusers==0.42.1`
    python benchmarks/generate.py --frames 17 41

Both networks share one set of tensors and get the same latents, text, camera and rays; implementations take turns, and
the median of their runs counts. "error" is |v - v'| / |v'| of the velocities against diffusers', which rounds queries,
keys and values of softmax attention to bfloat16, whatever the network's type. "longtake" does so too; "longtake,
unrounded" leaves them as they are, which is what `longtake generate` does. One step is one pass of the network, as a
clip of 60 steps with guidance takes 120 times; what longtake prepares once for all of them is told apart.

On the CPU: a network of the same structure, 8 blocks of 4 heads in place of 20 of 20, latents of 11 x 20, in float32
and in bfloat16, the published type. In bfloat16 "error" is against the same weights in float32, and diffusers is
helped: on a CPU it refuses to make its grid of pixels in that type, so it is made in float32 and rounded. "cpu s" is
processor time over all threads, which says more on a busy machine. "GDN" and "softmax" are its parts in blocks of the
two kinds. "loading" is the largest resident set that a checkpoint of about 0.4 GB in the original layout adds, over the
size of its file.

With a GPU besides: the network at full size in bfloat16 at 161, 321 and 961 frames of 1280x704, and in FP8 where the
device multiplies it, with every attention backend of PyTorch; TFLOP/s are of counted arithmetic, "share" is of the
bfloat16 rate that the device's maker states, or else of a measured product of matrices. Peak memory holds the weights.
SGLang's kernel of the scan alone stands beside ours where sglang is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers import transformer_sana_wm
from diffusers.models.transformers.transformer_sana_wm import SanaWMRotaryPosEmbed, SanaWMTransformer3DModel
from measure import RESULTS, machine, number, print_table, write_result
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longtake.kernels import gdn
from longtake.model.sana_wm.attention import SelfAttention
from longtake.model.sana_wm.config import SANA_WM, SanaWMConfig
from longtake.model.sana_wm.fp8 import multiplies_fp8, to_fp8
from longtake.model.sana_wm.load import KEPT_FLOAT32
from longtake.model.sana_wm.network import Conditions, Prepared, SanaWM
from longtake.model.sana_wm.plan import matmul_flops_per_s, pass_flops

SMALL = replace(SANA_WM, heads=4, text_heads=4, depth=8, softmax_blocks=(3, 7), plucker_blocks=8, ffn_width=3 * 448)
SMALL_GRID = (11, 20)
WORDS = 120  # of the text's 300 places
STATED_FLOPS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "RTX 5090": 209.5e12, "L40S": 362e12}
BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
LOADED = replace(SMALL, heads=20, text_heads=20, depth=1, softmax_blocks=(), plucker_blocks=1, ffn_width=6720)
LOAD = """
import sys
from pathlib import Path

import torch
from longtake.model.sana_wm.load import load
from longtake.model.sana_wm.attention import SelfAttention
from longtake.model.sana_wm.config import SanaWMConfig

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

before = status("VmRSS")
net = load(Path(sys.argv[1]), device="cpu", dtype=getattr(torch, sys.argv[3]), config=eval(sys.argv[2]))
print(status("VmHWM") - before, sum(float(p.sum()) for p in net.parameters()))
"""


# ---- networks ----------------------------------------------------------------------------------------------------


def random_weights(net: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights under which numbers keep their size from block to block, drawn in place."""
    for name, value in net.named_parameters():
        if "norm" in name:
            value.fill_(0.1 if name.startswith("attention_y_norm") else 1.0)
        elif name.endswith("A_log"):
            value.zero_()
        elif name.endswith("dt_bias"):
            value.fill_(-3.0)  # frames are forgotten slowly
        else:
            value.normal_(0.0, value[0].numel() ** -0.5 if value.ndim > 1 else 0.02, generator=generator)


def both(config: SanaWMConfig, dtype: torch.dtype, device: str) -> tuple[SanaWM, SanaWMTransformer3DModel]:
    """Our network and diffusers', of the same tensors."""
    with torch.device("meta"):
        net = SanaWM(config, attention_dtype=torch.bfloat16)
        peer = SanaWMTransformer3DModel(
            num_layers=config.depth,
            hidden_size=config.width,
            num_attention_heads=config.heads,
            linear_head_dim=config.head_dim,
            chunk_plucker_post_attn_blocks=config.plucker_blocks,
        )
    net = net.to(dtype)
    for name, value in net.named_parameters():
        if name.endswith(KEPT_FLOAT32):
            value.data = value.data.float()
    net = net.to_empty(device=device).eval().requires_grad_(False)
    random_weights(net, torch.Generator(device).manual_seed(0))
    for name, value in net.named_buffers():
        assert name.endswith("recall_gate")
        value.zero_()
    peer.load_state_dict(net.state_dict(), assign=True)
    peer.rope = SanaWMRotaryPosEmbed(config.head_dim, (1, 1, 1), 1024)  # its table is no tensor of the state
    return net, peer.to(dtype).eval().requires_grad_(False)


def inputs(config: SanaWMConfig, frames: int, rows: int, cols: int, device: str) -> tuple[Tensor, Tensor, Conditions]:
    """Latents, timesteps and conditions of a walk forward that turns."""
    generator = torch.Generator().manual_seed(frames)
    pose = torch.eye(4).repeat(frames, 1, 1)
    angle = torch.arange(frames) * 0.03
    pose[:, 0, 0], pose[:, 0, 2], pose[:, 2, 0], pose[:, 2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    pose[:, 2, 3] = 0.2 * torch.arange(frames)
    intrinsics = torch.tensor([cols / 2, cols / 2, cols / 2, rows / 2]).expand(frames, 4)
    mask = torch.arange(300)[None] < WORDS
    conditions = Conditions(
        text=torch.randn(1, 300, config.text_width, generator=generator).to(device),
        text_mask=mask.to(device),
        camera=torch.cat([pose.flatten(1), intrinsics], 1)[None].to(device),
        plucker=torch.randn(1, config.plucker_channels, frames, rows, cols, generator=generator).to(device),
    )
    latents = torch.randn(1, config.latent_channels, frames, rows, cols, generator=generator)
    timesteps = torch.full((1, frames), 700.0)
    timesteps[:, 0] = 0
    return latents.to(device), timesteps.to(device), conditions


def diffusers_step(
    peer: SanaWMTransformer3DModel, latents: Tensor, timesteps: Tensor, conditions: Conditions
) -> Tensor:
    assert conditions.text_mask is not None and conditions.camera is not None
    return peer(
        latents,
        timesteps[:, None],
        conditions.text[:, None],
        mask=conditions.text_mask.to(torch.int16),
        camera_conditions=conditions.camera.to(peer.dtype),  # as its pipeline does
        chunk_plucker=conditions.plucker,
    ).sample


@contextmanager
def grids_in_bfloat16() -> Iterator[None]:
    """Lets diffusers run in bfloat16 on a CPU."""
    kept = transformer_sana_wm.create_grid

    def create_grid(*args: Any, dtype: torch.dtype, **named: Any) -> Tensor:
        return kept(*args, dtype=torch.float32, **named).to(dtype)

    transformer_sana_wm.create_grid = create_grid
    yield
    transformer_sana_wm.create_grid = kept


@contextmanager
def unrounded(net: SanaWM) -> Iterator[None]:
    """Softmax attention in the network's own type."""
    attentions = [module for module in net.modules() if isinstance(module, SelfAttention)]
    kept = [attention.attention_dtype for attention in attentions]
    for attention in attentions:
        attention.attention_dtype = None
    yield
    for attention, dtype in zip(attentions, kept, strict=True):
        attention.attention_dtype = dtype


def latent_frames(frames: int) -> int:
    return (frames - 1) // 8 + 1


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


# ---- the CPU -----------------------------------------------------------------------------------------------------


@dataclass
class Took:
    wall_s: float
    cpu_s: float


def took(work: Callable[[], Any]) -> tuple[Took, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu), made


def in_turns(ways: dict[str, Callable[[], Tensor]], runs: int) -> dict[str, tuple[dict[str, float], Tensor]]:
    """Medians of so many runs of each, one after the other, after one that does not count; and what it made."""
    times: dict[str, list[Took]] = {name: [] for name in ways}
    made = {name: work() for name, work in ways.items()}
    for _ in range(runs):
        for name, work in ways.items():
            times[name].append(took(work)[0])
    return {
        name: (
            {
                "s": float(np.median([t.wall_s for t in times[name]])),
                "cpu_s": float(np.median([t.cpu_s for t in times[name]])),
            },
            made[name],
        )
        for name in ways
    }


def by_kind(net: SanaWM, step: Callable[[], Any], clock: Callable[[], float]) -> dict[str, float]:
    """How long one step is in blocks of either kind."""
    found, begun = {"gdn": 0.0, "softmax": 0.0}, 0.0

    def begin(*_: Any) -> None:
        nonlocal begun
        begun = clock()

    def end(module: Any, *_: Any) -> None:
        found["softmax" if module.attn.softmax else "gdn"] += clock() - begun

    hooks = [h for b in net.blocks for h in (b.register_forward_pre_hook(begin), b.register_forward_hook(end))]
    step()
    for hook in hooks:
        hook.remove()
    return found


def on_cpu(frame_counts: list[int], runs: int) -> list[dict[str, Any]]:
    with grids_in_bfloat16():
        return [row for dtype in (torch.float32, torch.bfloat16) for row in on_cpu_in(dtype, frame_counts, runs)]


def on_cpu_in(dtype: torch.dtype, frame_counts: list[int], runs: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    net, peer = both(SMALL, dtype, "cpu")
    exact = None if dtype == torch.float32 else deepcopy(net).float()
    for frames in frame_counts:
        count = latent_frames(frames)
        tokens = count * SMALL_GRID[0] * SMALL_GRID[1]
        latents, timesteps, conditions = inputs(SMALL, count, *SMALL_GRID, "cpu")
        given = replace(conditions, text=conditions.text.to(dtype), plucker=conditions.plucker.to(dtype))
        once, prepared = took(lambda c=conditions, x=latents: net.prepare(c.trimmed(), x))

        def ours(x=latents, t=timesteps, p: Prepared = prepared) -> Tensor:
            return net(x, t, p)

        def ours_unrounded(work: Callable[[], Tensor] = ours) -> Tensor:
            with unrounded(net):
                return work()

        rounded = latents.to(dtype)
        ways = {
            "diffusers": lambda a=(rounded, timesteps, given): diffusers_step(peer, *a),
            "longtake": ours,
        }
        if dtype == torch.float32:
            ways["longtake, unrounded"] = ours_unrounded
        found = in_turns(ways, runs)
        want = found["diffusers"][1] if exact is None else exact(latents, timesteps, conditions.trimmed())
        parts = by_kind(net, ours, time.process_time)
        for name, (times, velocity) in found.items():
            row = {
                "device": "cpu",
                "type": str(dtype).removeprefix("torch."),
                "implementation": name,
                "frames": frames,
                "tokens": tokens,
                "threads": torch.get_num_threads(),
                **times,
                "gflop_per_cpu_s": pass_flops(SMALL, count, tokens) / times["cpu_s"] / 1e9,
                "times_diffusers": found["diffusers"][0]["cpu_s"] / times["cpu_s"],
                "error": relative_error(velocity, want),
            }
            if name == "longtake":
                row |= {"prepare_cpu_s": once.cpu_s, "gdn_cpu_s": parts["gdn"], "softmax_cpu_s": parts["softmax"]}
            rows.append(row)
            print(name, row["type"], frames, number(row["cpu_s"]), flush=True)
    return rows


def loading() -> list[dict[str, Any]]:
    """Resident memory that reading a checkpoint adds at most, in a process of its own, by type of the weights."""
    from safetensors.torch import save_file

    net = SanaWM(LOADED)
    tensors = {
        name.replace("linear_1", "mlp.0").replace("linear_2", "mlp.2"): value
        for name, value in net.state_dict().items()
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "original.safetensors"
        save_file(tensors, path)
        size = path.stat().st_size
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, "-c", LOAD, str(path), repr(LOADED), dtype]
            added = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])
            rows.append({"loading": dtype, "file_mb": size / 1e6, "peak_mb": added / 1e6, "over_file": added / size})
    return rows


# ---- a GPU -------------------------------------------------------------------------------------------------------


def gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(kw_only=True)
class Gpu:
    """Rows of one GPU."""

    name: str
    peak: float  # FLOP/s in bfloat16
    peak_is: str  # stated or measured
    runs: int

    @classmethod
    def here(cls, runs: int) -> Gpu:
        name = torch.cuda.get_device_name()
        stated = next((rate for part, rate in STATED_FLOPS.items() if part in name), None)
        peak = stated or matmul_flops_per_s("cuda", torch.bfloat16)
        return cls(name=name, peak=peak, peak_is="stated" if stated else "measured", runs=runs)

    def row(
        self, implementation: str, frames: int, step: Callable[[], Tensor], backends: list[SDPBackend]
    ) -> tuple[dict[str, Any], Tensor | None]:
        """What a step takes, and its velocity on the CPU; None where it cannot run, which the row says."""
        tokens = latent_frames(frames) * 880
        row: dict[str, Any] = {"device": self.name, "implementation": implementation, "frames": frames}
        row |= {"tokens": tokens}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            with sdpa_kernel(backends):
                velocity = step()
                times = []
                for _ in range(self.runs):
                    start = gpu_clock()
                    step()
                    times.append(gpu_clock() - start)
        except RuntimeError as error:  # no such kernel on this device, or no room
            return row | {"failed": str(error).splitlines()[0]}, None
        rate = pass_flops(SANA_WM, latent_frames(frames), tokens) / float(np.median(times))
        row |= {
            "ms": 1e3 * float(np.median(times)),
            "tflop_per_s": rate / 1e12,
            "share_of_peak": rate / self.peak,
            "peak_rate": self.peak_is,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        }
        return row, velocity.cpu()


def on_gpu(frame_counts: list[int], runs: int) -> list[dict[str, Any]]:
    gpu, all_backends = Gpu.here(runs), [*BACKENDS.values(), SDPBackend.MATH]
    net, peer = both(SANA_WM, torch.bfloat16, "cuda")
    rows: list[dict[str, Any]] = []
    wanted: dict[int, tuple[float | None, Tensor | None]] = {}  # diffusers' ms and velocity

    def ours(implementation: str, frames: int, backends: list[SDPBackend]) -> dict[str, Any]:
        latents, timesteps, conditions = inputs(SANA_WM, latent_frames(frames), 22, 40, "cuda")
        with torch.inference_mode():
            prepared = net.prepare(conditions.trimmed(), latents)
        row, got = gpu.row(implementation, frames, lambda: net(latents, timesteps, prepared), backends)
        ms, want = wanted[frames]
        if got is not None and want is not None and ms is not None:
            row |= {"times_diffusers": ms / row["ms"], "error": relative_error(got, want)}
        if got is not None and not implementation.endswith("fp8"):
            with sdpa_kernel(backends):
                parts = by_kind(net, lambda: net(latents, timesteps, prepared), gpu_clock)
            row |= {"gdn_ms": 1e3 * parts["gdn"], "softmax_ms": 1e3 * parts["softmax"]}
        print(row, flush=True)
        return row

    for frames in frame_counts:
        given = inputs(SANA_WM, latent_frames(frames), 22, 40, "cuda")
        row, velocity = gpu.row("diffusers", frames, partial(diffusers_step, peer, *given), all_backends)
        print(row, flush=True)
        wanted[frames] = row.get("ms"), velocity
        rows += [row, ours("longtake", frames, all_backends)]
        rows += [ours(f"longtake, {name}", frames, [backend]) for name, backend in BACKENDS.items()]
        rows += scans_alone(gpu, frames)
    del peer  # which holds the weights, too
    if multiplies_fp8("cuda"):
        net = to_fp8(net)
        rows += [ours("longtake, fp8", frames, all_backends) for frames in frame_counts]
    return rows


def scans_alone(gpu: Gpu, frames: int) -> list[dict[str, Any]]:
    """The linear attention's scan of one block and branch, both ways, ours and SGLang's where it is installed."""
    count, heads, dim = latent_frames(frames), SANA_WM.heads, SANA_WM.head_dim
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(1, count, 880, heads, dim, device="cuda", generator=generator) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1) * 880**-0.5
    beta = torch.rand(1, count, 880, heads, device="cuda", generator=generator)
    decay = 0.9 + 0.1 * torch.rand(1, count, heads, device="cuda", generator=generator)
    ways: dict[str, Callable[[], Tensor]] = {"longtake": lambda: gdn.both_ways(q, k, v, beta, decay)}
    try:
        from sglang.kernels.ops.diffusion.attention.sana_wm_gdn_chunkwise_triton import (  # pyright: ignore[reportMissingImports]
            cam_scan_bidi_chunkwise,
        )
    except ImportError:
        print("SGLang's kernel is not measured: sglang 0.5.23 is not installed")
    else:
        heads_first = [x.flatten(1, 2).permute(0, 2, 3, 1).contiguous() for x in (q, k, v)]  # [B, H, D, T * S]
        gates = [beta.permute(0, 3, 1, 2).contiguous(), decay.transpose(1, 2).contiguous()]

        def sglang() -> Tensor:
            out = cam_scan_bidi_chunkwise(*heads_first, *gates)
            return out.permute(0, 3, 1, 2).unflatten(1, (count, 880))

        ways["sglang"] = sglang
    rows, want = [], ways["longtake"]()
    for name, work in ways.items():
        made = work()
        times = []
        for _ in range(gpu.runs):
            start = gpu_clock()
            work()
            times.append(gpu_clock() - start)
        row = {"device": gpu.name, "scan": name, "frames": frames, "ms": 1e3 * float(np.median(times))}
        rows.append(row | {"error": relative_error(made, want)})
        print(rows[-1], flush=True)
    return rows


# ---- both --------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> None:
    head = (
        "implementation",
        "frames",
        "s",
        "cpu s",
        "TFLOP/s",
        "share",
        "x diffusers",
        "error",
        "GDN",
        "softmax",
        "GB",
    )
    steps = [row for row in rows if "implementation" in row]
    cells = []
    for row in steps:
        on_device = row["device"] != "cpu"
        unit = 1e-3 if on_device else 1.0
        names = ("gdn_ms", "softmax_ms") if on_device else ("gdn_cpu_s", "softmax_cpu_s")
        parts = [None if row.get(name) is None else unit * row[name] for name in names]
        seconds = row["ms"] / 1e3 if "ms" in row else row.get("s")
        error = row.get("error")
        cells.append(
            [
                f"{row['device']}: {row['implementation']}"
                + (", bfloat16" if row.get("type") == "bfloat16" else "")
                + (", failed" if "failed" in row else ""),
                str(row["frames"]),
                number(seconds, 3),
                number(row.get("cpu_s"), 3),
                number(row.get("tflop_per_s"), 1),
                number(row.get("share_of_peak")),
                number(row.get("times_diffusers")),
                "-" if error is None else f"{error:.1e}",
                *(number(part, 3) for part in parts),
                number(row.get("peak_gb"), 1),
            ]
        )
    print_table(head, cells)
    for row in rows:
        if "loading" in row:
            print(
                f"loading to {row['loading']}: {row['peak_mb']:.0f} MB for {row['file_mb']:.0f}: {row['over_file']:.3f}"
            )
        if "scan" in row:
            print(f"scan of {row['frames']} frames, {row['scan']}: {row['ms']:.2f} ms, {row['error']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 41, 89, 185], help="on the CPU (17 41 89 185)")
    parser.add_argument("--gpu-frames", type=int, nargs="+", default=[161, 321, 961], help="on a GPU (161 321 961)")
    parser.add_argument("--runs", type=int, default=5, help="of each implementation (5)")
    parser.add_argument("--no-cpu", action="store_true", help="the GPU alone")
    options = parser.parse_args()
    started = machine() | {"diffusers": metadata.version("diffusers"), "nice": os.nice(0)}
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        if torch.cuda.is_available():
            started |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
            rows += on_gpu(options.gpu_frames, options.runs)
        else:
            print("No GPU: full size is not measured.")
        if not options.no_cpu:
            rows += on_cpu(options.frames, options.runs)
            rows += loading()
    table(rows)
    print("load before and after:", started["load"], machine()["load"])
    write_result(RESULTS / "generate.json", rows, started | {"load_after": machine()["load"]})


if __name__ == "__main__":
    main()
