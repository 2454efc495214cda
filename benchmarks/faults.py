"""Faults done to runs, and whether anything is lost, doubled or done twice: kill -9, a full disk, two drivers, a clock.

    python benchmarks/faults.py                        # all of it; some minutes, and a tmpfs as root
    python benchmarks/faults.py --only crash_points ray_nodes
    python benchmarks/faults.py --share 0.1            # a tenth of the kills

The runs are of the toy pipeline of the tests (`tests/pipelines/toy_pipeline.py`), whose stages sleep; what is done to
them and what must hold after each fault is in `tests/pipelines/fault_drill.py`. A drill that fails ends the program.

kills: processes that were killed in the middle of a run. calls_cut_off: calls of stages that left no result and had to
be made again; a call whose result was stored is never made again, or the drill fails. Rows are compared in all columns
but run_id, created_at and timings_s, artifacts by the hashes of their value, arrays and files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pipelines"))

import fault_drill as drill
from measure import RESULTS, machine, print_table, write_result
from toy_pipeline import Plan

SOURCES = 12
Figures = dict[str, Any]


class Drills:
    """Every drill by its name, in a folder of its own; a drill takes the number of kills."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        plan = Plan(out=folder / "out", log=folder / "log", sources=SOURCES)
        self.expected = drill.undisturbed(plan, folder / "undisturbed")
        self.raylets: drill.Raylets | None = None

    def plan(self, name: str, **settings: Any) -> Plan:
        folder = self.folder / name
        folder.mkdir()
        return replace(Plan(out=folder / "out", log=folder / "log", sources=SOURCES), **settings)

    def close(self) -> None:
        if self.raylets:
            self.raylets.close()

    def crash_points(self, kills: int) -> Figures:
        plan = self.plan("crash_points")
        return drill.crash_points(plan, self.expected, kills, self.seed, plan.out.parent)

    def drivers(self, kills: int) -> Figures:
        plan = self.plan("drivers", jobs=2, work_s=0.05, commit_rows=1)
        return drill.killed_drivers(plan, self.expected, kills, self.seed)

    def workers(self, kills: int) -> Figures:
        plan = self.plan("workers", jobs=2, work_s=0.05)
        return drill.killed_workers(plan, self.expected, kills, self.seed, ("look", "find", "trace", "judge"))

    def two_drivers(self, kills: int) -> Figures:
        """Three at once, of which one is killed."""
        total: Figures = {"kills": 0, "calls_cut_off": 0, "calls": 0}
        for i in range(kills):
            plan = self.plan(f"two_drivers {i}", jobs=1, work_s=0.01, commit_rows=1)
            figures = drill.two_drivers(plan, self.expected, drivers=3, kill_one=True)
            total = {name: total[name] + figures[name] for name in ("calls_cut_off", "calls")} | {
                "kills": total["kills"] + figures["killed"]
            }
        return total

    def clock(self, kills: int) -> Figures:
        plan = self.plan("clock", jobs=2, work_s=0.05, commit_rows=1)
        return drill.jumping_clock(plan, self.expected, kills, self.seed)

    def disk(self, kills: int) -> Figures:
        mount = self.folder / "disk"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(mount)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"skipped": f"no file system can be mounted here: {done.stderr.strip()}"}

        def resize(mib: int) -> None:
            subprocess.run(["mount", "-o", f"remount,size={mib}m", str(mount)], check=True)

        try:
            plan = self.plan("disk files", out=mount / "out", bytes=1 << 20, commit_rows=1)
            expected = drill.undisturbed(plan, self.folder / "undisturbed disk")
            return drill.full_disk(plan, expected, mount, resize)
        finally:
            subprocess.run(["umount", "--lazy", str(mount)], check=True)

    def ray_workers(self, kills: int) -> Figures:
        plan = self.on_ray("ray_workers")
        return drill.killed_workers(plan, self.expected, kills, self.seed, ("look", "find", "judge"))

    def ray_actors(self, kills: int) -> Figures:
        return drill.killed_workers(self.on_ray("ray_actors"), self.expected, kills, self.seed, ("trace",))

    def ray_nodes(self, kills: int) -> Figures:
        assert self.raylets
        return drill.killed_nodes(self.on_ray("ray_nodes"), self.expected, self.raylets, kills)

    def ray_drivers(self, kills: int) -> Figures:
        return drill.killed_drivers(self.on_ray("ray_drivers"), self.expected, kills, self.seed)

    def on_ray(self, name: str) -> Plan:
        self.raylets = self.raylets or drill.Raylets(nodes=2)
        return self.raylets.runs(self.plan(name, work_s=0.2, commit_rows=1))


KILLS = {  # of each drill
    "crash_points": 60,
    "drivers": 20,
    "workers": 20,
    "two_drivers": 5,
    "clock": 5,
    "disk": 0,
    "ray_workers": 8,
    "ray_actors": 6,
    "ray_nodes": 2,
    "ray_drivers": 5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KILLS, default=list(KILLS))
    parser.add_argument("--share", type=float, default=1.0, help="of the kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    options = parser.parse_args()
    started = machine()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        drills = Drills(Path(folder), options.seed)
        try:
            for name in options.only:
                run: Callable[[int], Figures] = getattr(drills, name)
                kills = max(1, round(options.share * KILLS[name])) if KILLS[name] else 0
                began = time.monotonic()
                figures = run(kills)
                rows.append({"drill": name, "seed": options.seed} | figures | {"seconds": time.monotonic() - began})
                print(rows[-1], file=sys.stderr, flush=True)
                write_result(options.out, rows, started)
        finally:
            drills.close()
    names = ("kills", "stops", "calls", "calls_cut_off")
    table = [[row["drill"], *(str(row.get(name, "-")) for name in names), f"{row['seconds']:.0f}"] for row in rows]
    print_table(["drill", *names, "seconds"], table)
    print(f"{sum(row.get('kills', 0) for row in rows)} kills; nothing was lost, changed, doubled or done twice")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
