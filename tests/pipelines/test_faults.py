"""What is killed, filled up or run twice leaves what a run leaves that nothing happens to; a few faults of each kind.

`python benchmarks/faults.py` does many, and so does `pytest -m slow`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fault_drill as drill
import pytest
from toy_pipeline import Plan


@pytest.fixture
def plan(tmp_path) -> Plan:
    return Plan(out=tmp_path / "out", log=tmp_path / "log", sources=5)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> drill.Content:
    folder = tmp_path_factory.mktemp("undisturbed")
    return drill.undisturbed(Plan(out=folder, log=folder, sources=5), folder / "run")


def test_nothing_happens(plan, expected, tmp_path):
    assert expected.rows and len(expected.artifacts) > len(expected.rows)
    assert drill.undisturbed(plan, tmp_path / "again") == expected


def test_the_drills_see_what_is_wrong(plan, expected):
    assert drill.finish(drill.start(plan)) == 0
    watch = drill.Watch(plan)
    watch.end(expected)
    with open(plan.log, "a") as log:
        log.write("find | source 001 | 1\n")
    with pytest.raises(AssertionError, match="find of source 001 was stored and called again"):
        watch.look()
    watch = drill.Watch(plan)
    row = next(drill.open_manifest(plan.out).rows())
    drill.open_manifest(plan.out).append([row | {"luma": 1.0}])
    with pytest.raises(AssertionError):
        watch.end(expected)


def test_a_driver_is_killed_at_any_file_operation(plan, expected, tmp_path):
    figures = drill.crash_points(plan, expected, kills=4, seed=1, folder=tmp_path)
    assert figures["kills"] >= 4 and figures["calls_cut_off"] > 0


def test_a_driver_is_killed_while_workers_work(plan, expected):
    plan = drill.replace(plan, jobs=2, work_s=0.02)
    assert drill.killed_drivers(plan, expected, kills=2, seed=2)["kills"] >= 1


def test_workers_are_killed(plan, expected):
    plan = drill.replace(plan, jobs=2, work_s=0.05)
    assert drill.killed_workers(plan, expected, kills=3, seed=3, stages=("find", "trace", "judge"))["kills"] == 3


@pytest.mark.parametrize("kill_one", [False, True])
def test_two_drivers_share_a_manifest(plan, expected, kill_one):
    plan = drill.replace(plan, jobs=1, work_s=0.01, commit_rows=1)
    drill.two_drivers(plan, expected, drivers=2, kill_one=kill_one)


def test_the_clock_jumps(plan, expected):
    plan = drill.replace(plan, jobs=2, work_s=0.02, commit_rows=1)
    drill.jumping_clock(plan, expected, kills=1, seed=4)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and what sets its size in MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", mount], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def resize(mib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={mib}m", mount], check=True)

    yield mount, resize
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_the_disk_fills_up(plan, tmp_path, small_disk):
    mount, resize = small_disk
    plan = drill.replace(plan, out=mount / "out", bytes=2 << 20, commit_rows=1)
    expected = drill.undisturbed(plan, tmp_path / "undisturbed")
    assert drill.full_disk(plan, expected, mount, resize)["stops"] >= 1


@pytest.mark.slow
def test_many_faults_of_every_kind(tmp_path):
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"
    done = subprocess.run(
        [sys.executable, script, "--out", tmp_path / "faults.json"], stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, "what failed was said above"
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert len(rows) == 10 and sum(row.get("kills", 0) for row in rows) >= 50
