"""What the benchmarks share: footage, a command with its time and memory, `longtake annotate` scored, the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake import open_manifest
from longtake.datasets.readers import read_clip
from longtake.datasets.score import score

RESULTS = Path(__file__).parent / "results"
LIBRARIES = "longtake torch numpy scipy av opencv-python-headless kornia poselib pycolmap".split()
SAMPLE_S = 0.1  # how often memory is looked at


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A command that has ended."""

    stdout: str
    code: int
    seconds: float
    peak_mb: float  # largest sum of the resident sets of the process and all below it; shared pages count in each


def measured(command: Sequence[str]) -> Measured:
    """Run a command and watch its memory; its words on stderr go to ours."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while True:
        peak = max(peak, sum(_resident_bytes(pid) for pid in _tree(process.pid)))
        try:
            stdout, _ = process.communicate(timeout=SAMPLE_S)
            break
        except subprocess.TimeoutExpired:
            continue
    seconds = time.perf_counter() - start
    return Measured(stdout=stdout, code=process.returncode, seconds=seconds, peak_mb=peak / 2**20)


def _resident_bytes(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _tree(pid: int) -> list[int]:
    """The process and all that it started, directly or not."""
    out = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                out += _tree(int(child))
    except OSError:  # it ended while we looked
        pass
    return out


# ---- longtake ----------------------------------------------------------------------------------------------------


def annotate_and_score(
    video: Path, out: Path, truth: dict[str, NDArray] | None, *options: str, frames: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """`longtake annotate VIDEO --out OUT` with its defaults in a process of its own, then its npz against the truth.

    A video that was taken for several clips counts with the one that has most poses: only its frames have one.

    Args:
        truth: c2w [N, 4, 4] and K [N, 3, 3] of all frames of the video; None: only time and memory.
        options: more of the command line.
        frames: score these frames once more by themselves, as `same_frames`.

    Returns:
        seconds and peak_mb of the whole command, start of Python and report included; track_seconds, of the stage that
        finds the cameras; clips, posed_frames, posed_per_s; what the row says of the track; score.
    """
    from longtake.datasets.exporters import export

    command = [sys.executable, "-m", "longtake", "annotate", str(video), "--out", str(out), "--quiet", "--json"]
    run = measured([*command, *options])
    if run.code > 1:
        raise SystemExit(f"{video}: longtake annotate ended with exit code {run.code}\n{run.stdout}")
    manifest = open_manifest(out)
    rows = list(manifest.rows())
    found: dict[str, Any] = {
        "seconds": run.seconds,
        "peak_mb": run.peak_mb,
        "clips": len(rows),
        "errors": [row["error"] for row in rows if row["error"]],
        "track_seconds": sum(json.loads(row["timings_s"] or "{}").get("track", 0.0) for row in rows),
    }
    clips = [(int(np.sum(row["pose_valid"])), row) for row in rows if row["c2w"] is not None]
    if not clips:
        return found | {"posed_frames": 0, "posed_per_s": 0.0, "score": {"coverage_pct": 0.0}}
    posed, row = max(clips, key=lambda pair: pair[0])
    names = "motion_class intrinsics_mode focal_status flags distortion".split()
    found |= {name: row[name] for name in names}
    found |= {"posed_frames": posed, "posed_per_s": posed / run.seconds}
    if truth is None:
        return found
    export(manifest, "npz", out / "npz")
    with np.load(out / "npz" / f"{row['clip_id']}.npz") as file:
        clip = {name: file[name] for name in ("c2w", "K", "pose_valid")}
    whole = on_frames(clip, read_clip(row).frame_start + np.arange(len(clip["c2w"])), len(truth["c2w"]))
    found["score"] = score(whole, truth)
    if frames is not None:
        found["same_frames"] = score(*({name: a[frames] for name, a in track.items()} for track in (whole, truth)))
    return found


def on_frames(track: dict[str, NDArray], frames: NDArray, count: int) -> dict[str, NDArray]:
    """A track of some frames as one of `count`; the others have no pose."""
    out = {
        "c2w": np.full((count, 4, 4), np.nan),
        "K": np.tile(np.eye(3), (count, 1, 1)),
        "pose_valid": np.zeros(count, bool),
    }
    for name, values in out.items():
        values[frames] = track[name]
    return out


# ---- footage -----------------------------------------------------------------------------------------------------


def sequences() -> Path:
    """The folder of test sequences, in LONGTAKE_TEST_DATA or beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LONGTAKE_TEST_DATA", default)) / "sequences"
    if not folder.is_dir():
        raise SystemExit(f"no test footage at {folder}; set LONGTAKE_TEST_DATA to the folder above it")
    return folder


def read_truth(sequence: Path) -> dict[str, NDArray]:
    """c2w, K and, where it is given, pose_valid."""
    with np.load(sequence / "gt.npz") as file:
        return {name: file[name] for name in ("c2w", "K", "pose_valid") if name in file.files}


# ---- results -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """CPU model, cores, memory, system, load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "cores": os.cpu_count(),
        "ram_gb": round(memory / 2**30, 1),
        "system": platform.platform(),
        "load": os.getloadavg(),
    }


def write_result(path: Path, rows: list[dict[str, Any]], started: dict[str, Any]) -> None:
    """The rows so far as JSON, with the machine as `machine` gave it before the work, versions and date."""
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": started,
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES},
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return value.tolist()


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns apart by two spaces, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for line in (head, *rows):
        first, *rest = zip(line, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip())


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits after the point, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
