"""What the depth networks Pi3X and MoGe-2 cost: parameters, time a frame and peak memory, by resolution and window.

    python benchmarks/depth.py

Weights are random: neither time nor memory depends on them, and nothing is fetched. Two tables.

"Counted": the networks at full size, on any machine: what their tensors take, weights and pictures included, counted on
tensors that have no numbers (`longtake.model.tensor_memory`). Beside it is what `annotate.depth.pi3x_bytes` predicts,
and what the authors of Pi3X measured on an A800 in bfloat16. They make the maps of 64 frames together, we those of one;
"64 maps" is our network with theirs. A GPU needs more, for its context, libraries' workspaces, the allocator's gaps.

"Measured": each case in a process of its own, after a run to warm up; the fastest run counts. With a GPU, the networks
at full size in bfloat16 under autocast. Without, on the CPU in float32: MoGe-2 with ViT-S at full size, and a small
Pi3X, a quarter as wide and with fewer blocks, which says how cost grows and how ways compare, not what Pi3X costs.
Memory is weights, pictures and what is taken beside them: on a GPU by PyTorch's allocator, on a CPU the growth of the
largest resident set, in which libraries count too. CPU time is of all threads and says more where the machine is busy.
On a CPU, "x" is of CPU time. The ways:

    fused      as longtake runs it: attention by PyTorch's fused kernels
    unfused    the same with the attention's scores in memory, as the formula is written; CPU alone
    compiled   fused, with every transformer block through torch.compile; "compile s" is what the first run takes longer
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from measure import RESULTS, machine, number, print_table, write_result
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from longtake.annotate.depth import Precision, pi3x_bytes
from longtake.model.dinov2 import Block
from longtake.model.moge2.config import published_config
from longtake.model.moge2.network import MoGe2
from longtake.model.pi3x import heads
from longtake.model.pi3x.config import PI3X
from longtake.model.pi3x.network import Pi3X
from longtake.model.tensor_memory import peak_bytes

MIB = 2**20
SMALL = replace(
    PI3X,
    width=256,
    heads=4,
    encoder_depth=4,
    decoder_depth=8,
    pose_blocks=(1,),
    head_depth=2,
    camera_width=128,
    metric_width=128,
    metric_heads=2,
    conv_widths=(64, 32, 32),
)
NETWORKS = {
    "pi3x": lambda: Pi3X(PI3X, multimodal=False),
    "pi3x small": lambda: Pi3X(SMALL, multimodal=False),
    "moge2 vits": lambda: MoGe2(published_config("vits")),
    "moge2 vitb": lambda: MoGe2(published_config("vitb")),
    "moge2 vitl": lambda: MoGe2(published_config("vitl")),
}
# https://github.com/yyfz/Pi3, on an A800 in bfloat16: MB a frame beside 3790 MB of weights, and ms a frame in a window
# of so many frames. https://github.com/microsoft/MoGe: ms an image with ViT-L in float16, on an A100 or RTX 3090.
REFERENCE_WEIGHTS = 3790.0
REFERENCE_FRAME = {(224, 224): 10.7, (504, 336): 36.0, (672, 378): 68.9, (672, 672): 173.0}
REFERENCE_MS = {(224, 224, 4096): 126.0, (504, 336, 1024): 352.0, (672, 378, 512): 398.0, (672, 672, 256): 633.0}
REFERENCE_MOGE2_MS = 60.0
REFERENCE_MAPS = 64  # frames whose maps they make together
ENOUGH_S = 10.0  # of runs for one case; one run at least
MOST_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network on pictures of one size, all frames in one call."""

    network: str
    width: int
    height: int
    frames: int
    precision: Precision
    tokens: int | None = None  # MoGe-2's budget, which its cost depends on in place of the picture's size
    way: Literal["fused", "unfused", "compiled"] = "fused"

    def inputs(self, device: str) -> tuple[Any, ...]:
        pictures = torch.rand(self.frames, 3, self.height, self.width, device=device)
        return (pictures[None],) if self.tokens is None else (pictures, self.tokens)


def pi3x(sizes: dict[tuple[int, int], tuple[int, ...]], precision: Precision, network: str = "pi3x") -> list[Case]:
    return [
        Case(network=network, width=w, height=h, frames=n, precision=precision)
        for (w, h), windows in sizes.items()
        for n in windows
    ]


def moge2(vits: tuple[str, ...], tokens: tuple[int, ...], batches: tuple[int, ...], precision: Precision) -> list[Case]:
    return [
        Case(network=f"moge2 {v}", width=1280, height=720, frames=n, precision=precision, tokens=t)
        for v in vits
        for t in tokens
        for n in batches
    ]


COUNTED = [
    *pi3x({size: (2, 16, 256) for size in ((224, 224), (672, 378), (672, 672))}, "bfloat16"),
    *pi3x({(672, 378): (2, 16, 256)}, "float32"),
    *moge2(("vits", "vitl"), (1200, 3600), (1, 8), "bfloat16"),
]
ON_GPU = [
    *pi3x({(224, 224): (16, 256), (672, 378): (2, 16, 64, 256, 512), (672, 672): (16, 256)}, "bfloat16"),
    *moge2(("vits", "vitb", "vitl"), (1200, 3600), (1, 8), "bfloat16"),
]
ON_CPU = [
    *pi3x({(224, 126): (2, 8, 16), (336, 196): (2, 8)}, "float32", "pi3x small"),
    *moge2(("vits",), (1200,), (1, 4), "float32"),
    *moge2(("vits",), (2500,), (1,), "float32"),
]
COMPILED_ON_CPU = (8, 1)  # frames of the cases that are compiled there, which takes a minute each


# ---- counted -----------------------------------------------------------------------------------------------------


def count(case: Case, maps_at_once: int = heads.FRAMES_AT_ONCE) -> float:
    """MiB of tensors, weights included."""
    ours, heads.FRAMES_AT_ONCE = heads.FRAMES_AT_ONCE, maps_at_once
    try:
        precision = getattr(torch, case.precision)
        return peak_bytes(NETWORKS[case.network], lambda net: net(*case.inputs("cpu")), precision=precision) / MIB
    finally:
        heads.FRAMES_AT_ONCE = ours


def counted_row(case: Case) -> dict[str, Any]:
    size = (case.width, case.height)
    row = {"kind": "counted", **asdict(case), "counted_mib": count(case)}
    if case.network == "pi3x":
        predicted = pi3x_bytes(*size, case.frames, precision=case.precision, multimodal=False) / MIB
        row |= {"predicted_mib": predicted, "counted_64_maps_mib": count(case, REFERENCE_MAPS)}
        if case.precision == "bfloat16":
            row["reference_mib"] = REFERENCE_WEIGHTS + case.frames * REFERENCE_FRAME[size]
    return row


# ---- measured ----------------------------------------------------------------------------------------------------


class CpuMemory:
    """The process's resident set."""

    def start(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else memory that the warm-up let go would not show when it is taken again
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident set so far is forgotten
        self._before = self._status("VmRSS")

    def grown(self) -> float:
        """MiB that it was larger, at most."""
        return self._status("VmHWM") - self._before

    def _status(self, name: str) -> float:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def synchronise(self) -> None: ...


class GpuMemory:
    """What PyTorch's allocator has given out."""

    def start(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def grown(self) -> float:
        return (torch.cuda.max_memory_allocated() - self._before) / MIB

    def synchronise(self) -> None:
        torch.cuda.synchronize()


def measure(case: Case, device: str) -> dict[str, Any]:
    """The case, in this process."""
    torch.manual_seed(0)
    with torch.device(device):
        network: nn.Module = NETWORKS[case.network]().eval().requires_grad_(False)
    if case.way == "compiled":
        for module in network.modules():
            if isinstance(module, Block):
                module.compile()  # one graph serves all blocks of a kind
    inputs = case.inputs(device)
    memory = GpuMemory() if device == "cuda" else CpuMemory()
    lower = torch.autocast(device, getattr(torch, case.precision), enabled=case.precision != "float32")

    def run() -> tuple[float, float]:
        """Seconds and CPU seconds."""
        memory.synchronise()
        start, cpu = time.perf_counter(), time.process_time()
        attention = sdpa_kernel(SDPBackend.MATH) if case.way == "unfused" else nullcontext()
        with torch.inference_mode(), lower, attention:
            network(*inputs)
        memory.synchronise()
        return time.perf_counter() - start, time.process_time() - cpu

    try:
        first, _ = run()
        memory.start()
        runs = [run()]
        while sum(seconds for seconds, _ in runs) < ENOUGH_S and len(runs) < MOST_RUNS:
            runs.append(run())
        grown = memory.grown()
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    seconds, cpu = (min(column) for column in zip(*runs, strict=True))
    weights = sum(p.nbytes for p in network.parameters()) / MIB
    pictures = inputs[0].nbytes / MIB
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "runs": len(runs),
        "threads": torch.get_num_threads(),
        "ms_per_frame": 1000 * seconds / case.frames,
        "cpu_ms_per_frame": 1000 * cpu / case.frames,
        "compile_s": first - seconds if case.way == "compiled" else None,
        "weights_mib": weights,
        "peak_mib": weights + pictures + grown,
    }


def measured_row(case: Case, device: str) -> dict[str, Any]:
    """The case, in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--device", device]
    fresh = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # or compiling would cost nothing the next time
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=fresh)
    row = {"kind": "measured", "device": device, **asdict(case), **json.loads(done.stdout)}
    if case.network == "pi3x":
        size, frames = (case.width, case.height), case.frames
        row["predicted_mib"] = pi3x_bytes(*size, frames, precision=case.precision, multimodal=False) / MIB
        row["reference_mib"] = REFERENCE_WEIGHTS + frames * REFERENCE_FRAME[size]
        row["reference_ms_per_frame"] = REFERENCE_MS.get((*size, frames))
    elif case.network == "moge2 vitl" and device == "cuda":
        row["reference_ms_per_frame"] = REFERENCE_MOGE2_MS
    return row


def cases(device: str) -> list[Case]:
    """What is measured on this machine, each network and size in all ways one after another."""
    compiler = os.environ.get("CXX", "g++")
    compiles = shutil.which(compiler) is not None
    if not compiles:
        print(f"there is no C++ compiler {compiler}, which torch.compile needs: that way is left out; set CXX to one")
    out = []
    for case in ON_GPU if device == "cuda" else ON_CPU:
        out.append(case)
        if device == "cpu":
            out.append(replace(case, way="unfused"))
        if compiles and (device == "cuda" or (case.frames in COMPILED_ON_CPU and case.tokens != 2500)):
            out.append(replace(case, way="compiled"))
    return out


# ---- tables ------------------------------------------------------------------------------------------------------


def _name(row: dict[str, Any]) -> list[str]:
    size = f"{row['width']}x{row['height']}"
    return [row["network"], row["precision"], size, number(row["tokens"], 0), str(row["frames"])]


def _ratio(a: float | None, b: float | None) -> str:
    return number(a / b if a and b else None)


def print_counted(rows: list[dict[str, Any]]) -> None:
    print("\nCounted, full size, MiB:")
    head = "network,precision,picture,tokens,frames,counted,64 maps,predicted,/ counted,reference,predicted /"
    table = []
    for row in rows:
        held, predicted, reference = (row.get(f"{name}_mib") for name in ("counted", "predicted", "reference"))
        amounts = [number(x, 0) for x in (held, row.get("counted_64_maps_mib"), predicted)]
        table.append(
            [*_name(row), *amounts, _ratio(predicted, held), number(reference, 0), _ratio(predicted, reference)]
        )
    print_table(head.split(","), table)


def print_measured(rows: list[dict[str, Any]], device: str) -> None:
    where = torch.cuda.get_device_name() if device == "cuda" else f"{rows[0]['threads']} thread(s) of the CPU, no GPU"
    print(f"\nMeasured with random weights, on {where}; MiB; x: over the fused way:")
    head = "network,precision,picture,tokens,frames,way,ms/frame,CPU ms,x,compile s,peak,x,weights,counted,predicted,"
    head += "reference,reference ms"
    table, fused = [], {}
    for row in rows:
        if "error" in row:
            table.append([*_name(row), row["way"], row["error"], *["-"] * 10])
            continue
        fused = row if row["way"] == "fused" else fused
        clock = "ms_per_frame" if device == "cuda" else "cpu_ms_per_frame"
        table.append(
            [
                *_name(row),
                row["way"],
                number(row["ms_per_frame"], 1),
                number(row["cpu_ms_per_frame"], 1),
                _ratio(row[clock], fused.get(clock)),
                number(row["compile_s"], 0),
                number(row["peak_mib"], 0),
                _ratio(row["peak_mib"], fused.get("peak_mib")),
                number(row["weights_mib"], 0),
                number(row["counted_mib"], 0),
                number(row.get("predicted_mib"), 0),
                number(row.get("reference_mib"), 0),
                number(row.get("reference_ms_per_frame"), 0),
            ]
        )
    print_table(head.split(","), table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "depth.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # what the process of one case is given
    parser.add_argument("--device", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(Case(**json.loads(args.case)), args.device)))
        return

    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = machine() | {"gpu": torch.cuda.get_device_name() if device == "cuda" else None}
    rows: list[dict[str, Any]] = []
    for name, build in NETWORKS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build().parameters())
        print(f"{name}: {parameters:,} parameters")
        rows.append({"kind": "parameters", "network": name, "parameters": parameters})
    for case in COUNTED:
        rows.append(counted_row(case))
        write_result(args.out, rows, started)
    print_counted([row for row in rows if row["kind"] == "counted"])
    for case in cases(device):
        row = measured_row(case, device)
        row["counted_mib"] = None if case.way == "unfused" else count(case)
        rows.append(row)
        write_result(args.out, rows, started)
    print_measured([row for row in rows if row["kind"] == "measured"], device)


if __name__ == "__main__":
    main()
