"""longtake beside COLMAP on the test sequences: coverage, accuracy, speed and memory, and whether the targets are met.

    python benchmarks/annotate_vs_colmap.py
    python benchmarks/annotate_vs_colmap.py --only kitti_drive_1 --skip-colmap

longtake: the whole command `longtake annotate` with its defaults on all frames, `--stills` where the sequence's
meta.json says that it is no continuous video; its seconds are those of the whole command.
COLMAP: pycolmap's incremental mapper on at most 100 frames evenly chosen, one SIMPLE_RADIAL camera for all, SIFT,
exhaustive matching, all else as it comes, but that models of less than ten frames are kept too. Its seconds are of
features, matching and mapping alone: decoding and start are left out. The largest model counts.
Both run one after the other, each in a process of its own on all cores.
Positions are compared after the best similarity; "ATE same" is on COLMAP's frames alone, for both. "ratio" is posed
frames a second over COLMAP's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import (
    RESULTS,
    annotate_and_score,
    machine,
    measured,
    number,
    print_table,
    read_truth,
    sequences,
    write_result,
)
from numpy.typing import NDArray

from longtake.datasets.score import score

MAX_FRAMES = 100  # for COLMAP, whose time grows with the square of their number


@dataclass(frozen=True)
class Target:
    """What must be reached; errors in the sequence's unit and in percent. `speed`: posed frames/s over COLMAP's."""

    coverage_pct: float
    ate: float
    focal_pct: float
    focal_p90_pct: float | None = None
    speed: float | None = None


TARGETS = {
    "sevenscenes_handheld": Target(100, 0.046, 2, speed=5),
    "sevenscenes_digital_zoom": Target(98, 0.025, 3, 6),
    "kitti_drive_1": Target(100, 0.05, 3),
    "ingp_fox": Target(100, 0.010, 1),
    "tum_fr3_cabinet_keyframes": Target(98, 0.045, 5),
    "strecha_fountain_p11": Target(100, 0.007, 0.5),
    "strecha_entry_p10": Target(100, 0.02, 0.5),
    "middlebury_templering": Target(100, 0.0013, 2.5),
    "mobilebrick_arkit": Target(100, 0.0003, 2.5),
}


def missed(target: Target, found: dict[str, Any], speed: float | None) -> list[str]:
    """The names of what was not reached; a figure that is missing counts as not reached."""

    def at_most(name: str, limit: float) -> bool:
        value = found.get(name)
        return value is not None and value <= limit

    checks = {
        "coverage": found["coverage_pct"] >= target.coverage_pct,
        "ATE": at_most("ate_rmse", target.ate),
        "focal": at_most("focal_err_pct_median", target.focal_pct),
        "focal p90": target.focal_p90_pct is None or at_most("focal_err_pct_p90", target.focal_p90_pct),
        "speed": target.speed is None or speed is None or speed >= target.speed,
    }
    return [name for name, met in checks.items() if not met]


def chosen_frames(count: int) -> NDArray[np.int64]:
    """At most MAX_FRAMES frames, evenly from first to last."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(np.int64))


# ---- COLMAP ------------------------------------------------------------------------------------------------------


def run_colmap(video: Path, folder: Path) -> None:
    """Reconstruct the chosen frames in this process, write track.npz (c2w, K, pose_valid), print seconds as JSON."""
    import av
    import pycolmap

    images = folder / "images"
    images.mkdir()
    with av.open(str(video)) as container:
        count = sum(1 for _ in container.decode(video=0))
    wanted = set(chosen_frames(count).tolist())
    with av.open(str(video)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frame.to_image().save(images / f"{i:06d}.png")
    database, clock = folder / "database.db", [time.perf_counter()]
    reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL")
    pycolmap.extract_features(database, images, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader)
    clock.append(time.perf_counter())
    pycolmap.match_exhaustive(database)
    clock.append(time.perf_counter())
    mapping = pycolmap.IncrementalPipelineOptions(min_model_size=3)
    models = pycolmap.incremental_mapping(database, images, folder / "model", mapping)
    clock.append(time.perf_counter())
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    c2w, k, valid = np.full((count, 4, 4), np.nan), np.tile(np.eye(3), (count, 1, 1)), np.zeros(count, bool)
    for image in best.images.values() if best else ():
        if not image.has_pose or image.camera is None:
            continue
        i = int(Path(image.name).stem)
        c2w[i] = np.eye(4)
        c2w[i, :3] = image.cam_from_world().inverse().matrix()
        k[i] = image.camera.calibration_matrix()
        k[i, :2, 2] -= 0.5  # COLMAP's first pixel has its centre at 0.5, 0.5
        valid[i] = True
    np.savez(folder / "track.npz", c2w=c2w, K=k, pose_valid=valid)
    steps = dict(zip(("features", "matching", "mapping"), np.diff(clock).tolist(), strict=True))
    print(json.dumps({"steps_s": steps, "models": len(models)}))


def colmap_and_score(video: Path, truth: dict[str, NDArray]) -> dict[str, Any]:
    """COLMAP in a process of its own; scored on the frames that it was given."""
    folder = Path(tempfile.mkdtemp(prefix="colmap-"))
    try:
        run = measured([sys.executable, __file__, "--colmap", str(video), str(folder)])
        if run.code:
            raise SystemExit(f"{video}: COLMAP ended with exit code {run.code}")
        with np.load(folder / "track.npz") as file:
            track = {name: file[name] for name in file.files}
    finally:
        shutil.rmtree(folder)
    frames = chosen_frames(len(track["c2w"]))
    posed = int(track["pose_valid"].sum())
    told = json.loads(run.stdout.splitlines()[-1])
    seconds = sum(told["steps_s"].values())
    return told | {
        "frames": len(frames),
        "posed_frames": posed,
        "seconds": seconds,
        "process_seconds": run.seconds,
        "posed_per_s": posed / seconds,
        "peak_mb": run.peak_mb,
        "score": score(*({name: a[frames] for name, a in t.items()} for t in (track, truth))),
    }


# ---- both --------------------------------------------------------------------------------------------------------


def compare(sequence: Path, *, skip_colmap: bool) -> dict[str, Any]:
    """One row of the result."""
    truth = read_truth(sequence)
    meta = json.loads((sequence / "meta.json").read_text())
    options = () if meta["continuous_video"] else ("--stills",)
    video, target = sequence / "video.mp4", TARGETS[sequence.name]
    row: dict[str, Any] = {"sequence": sequence.name, "options": options, "target": target.__dict__}
    folder = Path(tempfile.mkdtemp(prefix="longtake-"))
    try:
        frames = chosen_frames(len(truth["c2w"]))
        ours = annotate_and_score(video, folder / "manifest", truth, *options, frames=frames)
    finally:
        shutil.rmtree(folder)
    row["longtake"], speed = ours, None
    if not skip_colmap:
        row["colmap"] = theirs = colmap_and_score(video, truth)
        if theirs["posed_frames"]:
            speed = row["speed_ratio"] = ours["posed_per_s"] / theirs["posed_per_s"]
    row["missed"] = missed(target, ours["score"], speed)
    return row


HEAD = "sequence|tool|frames|posed %|ATE|(target)|ATE same|focal %|(target)|p90 %|s|posed/s|ratio|MB|target".split("|")


def lines(row: dict[str, Any]) -> list[list[str]]:
    """The row as lines of the table."""
    target = Target(**row["target"])
    out = []
    for tool in ("longtake", "colmap"):
        if tool not in row:
            continue
        found, ours = row[tool], tool == "longtake"
        s, same = found["score"], found.get("same_frames", found["score"])
        line = [
            row["sequence"] if ours else "",
            tool,
            str(s.get("frames", "-")),
            number(s["coverage_pct"], 1),
            number(s.get("ate_rmse"), 5),
            f"{target.ate:g}" if ours else "",
            number(same.get("ate_rmse"), 5),
            number(s.get("focal_err_pct_median")),
            f"{target.focal_pct:g}" if ours else "",
            number(s.get("focal_err_pct_p90")),
            number(found["seconds"], 1),
            number(found["posed_per_s"]),
            number(row.get("speed_ratio"), 1) if ours else "",
            number(found["peak_mb"], 0),
            ("MISSED " + ", ".join(row["missed"]) if row["missed"] else "met") if ours else "",
        ]
        out.append(line)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="NAME")
    parser.add_argument("--skip-colmap", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "annotate_vs_colmap.json")
    parser.add_argument("--colmap", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.colmap:
        run_colmap(*args.colmap)
        return
    os.environ.setdefault("GLOG_minloglevel", "2")  # COLMAP tells of every step otherwise
    started, folder = machine(), sequences()
    rows = []
    for name in args.only:
        rows.append(compare(folder / name, skip_colmap=args.skip_colmap))
        write_result(args.out, rows, started)
        print(f"{name}: done", file=sys.stderr)
    print_table(HEAD, [line for row in rows for line in lines(row)])
    met = sum(not row["missed"] for row in rows)
    print(f"targets met on {met} of {len(rows)} sequences" + (" (speed not judged)" if args.skip_colmap else ""))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
