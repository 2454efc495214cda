"""Seconds and memory of `longtake render` for one clip, from the scene's file to the manifest's row.

    python benchmarks/render_clip.py
    python benchmarks/render_clip.py --frames 96 --splats 300000

The scene is the room of splats of `longtake.render.splat_room`, the path a random walk through it; the whole command is
measured in a process of its own: start of Python, reading the scene, survey, design and checks of the path, filming
with video and depth, quality, row. Processor seconds are over all threads, which says more on a busy machine. A shorter
film than 961 frames of the same path would be too fast for the limits on motion, so these are wide open: all checks are
made, none of them refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import RESULTS, machine, measured, number, print_table, write_result

from longtake import open_manifest
from longtake.render.splat_room import write_room

MINUTE = 961  # frames of a clip
GOAL_S = 240  # of such a clip of 300 thousand splats at 704 x 1280, on two free cores
OPEN = "max_turn_deg_s=1e4 max_turn_deg_frame=1e3 max_speed=1e4 max_acceleration=1e4 min_supporters=0 enough_centres=0"


def measure(scene: Path, out: Path, frames: int, size: str, *options: str) -> dict[str, Any]:
    """One clip of `frames` frames, whose stages also say how long they took."""
    command = [sys.executable, "-m", "longtake", "render", str(scene), "--out", str(out), "--quiet", "--json"]
    command += ["--design", "1", "--families", "random_walk", "--frames", str(frames), "--size", size, "--no-report"]
    command += [word for limit in OPEN.split() for word in ("--set", f"render.limits.{limit}")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = measured([*command, *options])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = [row for row in open_manifest(out).rows() if row["status"] == "ok"]
    if run.code or not rows:
        raise SystemExit(f"longtake render ended with exit code {run.code} and {len(rows)} clips\n{run.stdout}")
    (row,) = rows
    stats, seconds = json.loads(row["render_stats"]), json.loads(row["timings_s"])
    return {
        "frames": frames,
        "size": size,
        "splats": stats["splats"],
        "rasterizer": stats["rasterizer"],
        "options": list(options),
        "seconds": run.seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": run.peak_mb,
        "stage_seconds": seconds,
        "film_ms_per_frame": 1e3 * seconds["film"] / frames,
        "video_mb": (out / row["uri"]).stat().st_size / 1e6,
        "depth_mb": (out / row["depth_uri"]).stat().st_size / 1e6 if row["depth_uri"] else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=300_000)
    parser.add_argument("--frames", type=int, nargs="+", default=[MINUTE])
    parser.add_argument("--size", default="704x1280", help="height x width")
    parser.add_argument("--out", type=Path, default=RESULTS / "render_clip.json")
    args, options = parser.parse_known_args()
    started, rows = machine() | {"nice": os.nice(0)}, []
    with tempfile.TemporaryDirectory() as folder:
        scene = write_room(Path(folder) / "scene", args.splats)
        for frames in args.frames:
            rows.append(measure(scene, Path(folder) / str(frames), frames, args.size, *options))
            write_result(args.out, rows, started | {"load_after": os.getloadavg()})
    head = "frames,splats,seconds,cpu s,film ms/frame,peak MB,video MB,depth MB".split(",")
    names = "seconds cpu_seconds film_ms_per_frame peak_mb video_mb depth_mb".split()
    print_table(head, [[str(r["frames"]), str(r["splats"]), *(number(r[name], 1) for name in names)] for r in rows])
    if len(rows) > 1:  # what a longer film adds
        (a, b) = (min(rows, key=lambda r: r["frames"]), max(rows, key=lambda r: r["frames"]))
        for name in ("seconds", "cpu_seconds"):
            each = (b[name] - a[name]) / (b["frames"] - a["frames"])
            print(f"{name}: {1e3 * each:.0f} ms a frame, so {b[name] + each * (MINUTE - b['frames']):.0f} s a minute")


if __name__ == "__main__":
    main()
