"""Faults done to runs of the toy pipeline, and what must hold after each.

The same drills are done by the tests, a few faults each, and by `benchmarks/faults.py`, many. After every fault: no row
that was committed is lost or changed, and no stage whose result was stored is called again. At the end: one row for
each clip, rows and artifacts as those of a run that nothing happened to, and nothing left of what was cut off.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import toy_pipeline as toy
from toy_pipeline import Plan

from longtake.datasets.manifest import open_manifest
from longtake.pipelines.stages import Artifacts, is_running
from longtake.records import LongtakeError

LIMIT_S = 600.0  # for what takes seconds
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["toy_pipeline", "longtake.pipelines.run", "longtake.datasets.schema"])


def start(plan: Plan) -> BaseProcess:
    """A driver in a process of its own."""
    process = _server.Process(target=toy.drive, args=(plan,))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    process.join(LIMIT_S)
    assert process.exitcode is not None, "the driver hangs"
    return process.exitcode


# ---- what must hold ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a run leaves, without what tells of the run itself."""

    rows: dict[str, str]  # clip_id -> hash of all columns but `toy_pipeline.RUN_COLUMNS`
    artifacts: dict[str, str]  # key -> hash of the value, its arrays and files
    sidecars: dict[str, str]


def content(out: Path) -> Content:
    manifest = open_manifest(out)
    rows = [row["clip_id"] for row in manifest.rows(["clip_id"])]
    assert len(rows) == len(set(rows)), "a clip has two rows"
    assert manifest.validate() == [], manifest.validate()
    store = Artifacts(out / "artifacts")
    sidecars = {p.parent.name: _digest(p.read_bytes()) for p in (out / "sidecars").glob("*/file.bin")}
    return Content(
        rows={row["clip_id"]: _row_digest(row, toy.RUN_COLUMNS) for row in manifest.rows()},
        artifacts={key: _artifact_digest(store.folder(key)) for key in store.keys()},
        sidecars=sidecars,
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _row_digest(row: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items() if k not in without}
    return _digest(json.dumps(plain, sort_keys=True, default=str).encode())


def _artifact_digest(folder: Path) -> str:
    parts = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if path.name == "result.json":  # without the seconds that it took
            data = json.dumps(json.loads(data)["value"], sort_keys=True).encode()
        parts.append(f"{path.name} {_digest(data)}")
    return _digest("\n".join(parts).encode())


@dataclass
class Watch:
    """Looks at a run between faults."""

    plan: Plan
    rows_stay: bool = True  # False: another driver may put its own row of the same content in place of one
    rows: dict[str, str] = field(default_factory=dict)  # committed so far
    stored: dict[tuple[str, str], int] = field(default_factory=dict)  # stage, clip -> lines of the log when it was seen

    def look(self) -> None:
        """Compare with what was seen before."""
        store = Artifacts(self.plan.out / "artifacts")
        for key in list(store.keys()):
            with suppress(FileNotFoundError):
                about = store.about(key)
                self.stored.setdefault((about["stage"], about["clip"]), -1)
        lines = self.lines()
        for call, seen in self.stored.items():
            if seen < 0:
                self.stored[call] = len(lines)
        for number, (stage, clip, _) in enumerate(lines):
            assert number < self.stored.get((stage, clip), len(lines)), f"{stage} of {clip} was stored and called again"
        without = () if self.rows_stay else toy.RUN_COLUMNS
        with suppress(LongtakeError):  # it was killed before there was a manifest
            now = {row["clip_id"]: _row_digest(row, without) for row in open_manifest(self.plan.out).rows()}
            assert self.rows.items() <= now.items(), "a committed row was lost or changed"
            self.rows = now

    def lines(self) -> list[tuple[str, str, int]]:
        """(stage, clip, process) of every call so far."""
        if not self.plan.log.exists():
            return []
        text = self.plan.log.read_text()
        words = [line.split(" | ") for line in text[: text.rfind("\n") + 1].splitlines()]
        return [(stage, clip, int(pid)) for stage, clip, pid in words]

    def wait_for_lines(self, count: int, process: BaseProcess) -> bool:
        """Wait until stages have been called so often; False where the driver ended before."""
        deadline = time.monotonic() + LIMIT_S
        while len(self.lines()) < count:
            if not process.is_alive():
                return False
            assert time.monotonic() < deadline, "nothing goes on"
            time.sleep(0.002)
        return True

    def end(self, undisturbed: Content) -> dict[str, Any]:
        """All that must hold when a run has ended well; figures of it."""
        self.look()
        found = content(self.plan.out)
        assert found.rows == undisturbed.rows
        assert found.artifacts == undisturbed.artifacts
        assert found.sidecars == undisturbed.sidecars
        left = [p.name for p in (self.plan.out / "artifacts").rglob(".tmp-*")]
        assert left == [], "unfinished files stay"
        calls = Counter((stage, clip) for stage, clip, _ in self.lines())
        figures = {"clips": len(found.rows), "artifacts": len(found.artifacts), "calls": calls.total()}
        return figures | {"calls_cut_off": calls.total() - len(calls)}


def undisturbed(plan: Plan, folder: Path) -> Content:
    """What the plan leaves when nothing happens."""
    folder.mkdir(parents=True)
    quiet = replace(plan, out=folder / "out", log=folder / "log", executor="local", jobs=0, work_s=0.0, address=None)
    assert finish(start(quiet)) == 0
    return content(quiet.out)


# ---- the drills --------------------------------------------------------------------------------------------------


def crash_points(plan: Plan, expected: Content, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The driver is killed before random ones of its own file operations, run after run, until so many kills hit."""
    count = replace(plan, die_at=0, out=folder / "count" / "out", log=folder / "count" / "log")
    count.log.parent.mkdir(parents=True)
    assert finish(start(count)) == 0
    operations = int(count.log.with_name("operations").read_text())
    rng = np.random.default_rng(seed)
    hits = rounds = calls_cut_off = 0
    while hits < kills:
        here = replace(plan, out=folder / f"round {rounds}" / "out", log=folder / f"round {rounds}" / "log")
        here.log.parent.mkdir(parents=True)
        watch = Watch(here)
        for _ in range(4):  # kills of one run: what is left gets fewer with each
            code = finish(start(replace(here, die_at=int(rng.integers(1, operations // 2)))))
            watch.look()
            if code == 0:
                break
            assert code == -signal.SIGKILL
            hits += 1
        assert finish(start(here)) == 0
        calls_cut_off += watch.end(expected)["calls_cut_off"]
        rounds += 1
    return {"kills": hits, "runs": rounds, "file_operations": operations, "calls_cut_off": calls_cut_off}


def killed_drivers(plan: Plan, expected: Content, kills: int, seed: int) -> dict[str, Any]:
    """The driver is killed from outside while its workers work; the next one takes the run up."""
    rng = np.random.default_rng(seed)
    watch = Watch(plan)
    hits = 0
    for _ in range(kills):
        process = start(plan)
        if watch.wait_for_lines(len(watch.lines()) + int(rng.integers(1, 6)), process):
            time.sleep(float(rng.uniform(0, plan.work_s)))
            process.kill()
        hits += finish(process) == -signal.SIGKILL
        wait_until_gone(watch, plan)
        watch.look()
    assert finish(start(plan)) == 0
    return {"kills": hits} | watch.end(expected)


def wait_until_gone(watch: Watch, plan: Plan) -> None:
    """Workers leave by themselves when their driver is gone."""
    if plan.address:  # Ray's workers are the cluster's, which ends what a driver had begun
        return
    deadline = time.monotonic() + LIMIT_S
    for pid in {pid for _, _, pid in watch.lines()}:
        while is_running(pid):
            assert time.monotonic() < deadline, f"worker {pid} stays without its driver"
            time.sleep(0.005)


def killed_workers(plan: Plan, expected: Content, kills: int, seed: int, stages: tuple[str, ...]) -> dict[str, Any]:
    """Workers are killed in the middle of calls of these stages, each call once; the run goes on by itself."""
    rng = np.random.default_rng(seed)
    watch = Watch(plan)
    process = start(plan)
    victims: set[tuple[str, str]] = set()
    seen = 0
    while len(victims) < kills and watch.wait_for_lines(seen + int(rng.integers(1, 3)), process):
        begun = [line for line in watch.lines()[seen:] if line[0] in stages and line[:2] not in victims]
        if begun:
            stage, clip, pid = begun[-1]
            victims.add((stage, clip))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            watch.look()
        seen = len(watch.lines())
    assert finish(process) == 0
    return {"kills": len(victims)} | watch.end(expected)


def full_disk(plan: Plan, expected: Content, mount: Path, fill: Callable[[int], None]) -> dict[str, Any]:
    """The disk that the run writes to fills up; once there is room, the same command goes on.

    Args:
        mount: a small file system; `plan.out` lies there.
        fill: makes the file system so many MiB large.
    """
    watch = Watch(plan)
    stops = 0
    for _ in range(3):
        disk = os.statvfs(mount)
        fill(
            ((disk.f_blocks - disk.f_bavail) * disk.f_frsize >> 20) + 70
        )  # a run does not begin with less than 64 free
        ballast = mount / "ballast"
        free = os.statvfs(mount).f_bavail * disk.f_frsize
        process = start(plan)
        if watch.wait_for_lines(len(watch.lines()) + 3, process):
            with suppress(OSError), open(ballast, "ab") as file:
                file.write(bytes(max(0, free - (3 << 20))))
        code = finish(process)
        assert code in (0, 3)
        stops += code == 3
        watch.look()
        ballast.unlink(missing_ok=True)
    fill(400)
    assert finish(start(plan)) == 0
    return {"stops": stops} | watch.end(expected)


def two_drivers(plan: Plan, expected: Content, drivers: int, kill_one: bool) -> dict[str, Any]:
    """Several drivers of the same inputs commit to one manifest; one may be killed on the way."""
    watch = Watch(plan, rows_stay=False)
    processes = [start(plan) for _ in range(drivers)]
    if kill_one and watch.wait_for_lines(len(expected.artifacts) // 2, processes[0]):
        processes[0].kill()
    codes = [finish(process) for process in processes]
    assert codes[1:] == [0] * (drivers - 1) and codes[0] in (0, -signal.SIGKILL)
    watch.look()
    assert finish(start(plan)) == 0  # sweeps what the killed one left
    return {"drivers": drivers, "killed": codes.count(-signal.SIGKILL)} | watch.end(expected)


def jumping_clock(plan: Plan, expected: Content, kills: int, seed: int) -> dict[str, Any]:
    """The wall clock jumps to and fro while drivers are killed and go on."""
    return killed_drivers(replace(plan, jumping_clock=True), expected, kills, seed)


# ---- Ray ---------------------------------------------------------------------------------------------------------


RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_health_check_period_ms": "500",  # a node is given up after two seconds
    "RAY_health_check_failure_threshold": "4",
    "PYTHONPATH": str(Path(__file__).parent),  # where its workers find the toys
}


class Raylets:
    """A Ray cluster on this machine: a head that runs no jobs, and nodes of two CPUs and, in name, a GPU.

    Only for a process that has not imported Ray: it reads its settings then.
    """

    def __init__(self, nodes: int) -> None:
        assert "ray" not in sys.modules
        os.environ.update(RAY_SETTINGS)
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    def runs(self, plan: Plan) -> Plan:
        """The plan, here; its networks take half a GPU each."""
        address = self.cluster.address
        return replace(plan, executor="ray", address=address, gpus=0.5, settings=tuple(RAY_SETTINGS.items()))

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80 << 20))

    def kill(self) -> None:
        """Kill the oldest node with all its workers."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def close(self) -> None:
        self.cluster.shutdown()


def killed_nodes(plan: Plan, expected: Content, cluster: Raylets, kills: int) -> dict[str, Any]:
    """Nodes are killed in the middle of the run, and others come; the run goes on by itself."""
    watch = Watch(plan)
    process = start(plan)
    total = len(expected.artifacts)
    done = 0
    for i in range(kills):
        if not watch.wait_for_lines(total * (i + 1) // (kills + 2), process):
            break
        cluster.kill()
        done += 1
        watch.look()
        cluster.add()
    assert finish(process) == 0
    return {"kills": done} | watch.end(expected)
