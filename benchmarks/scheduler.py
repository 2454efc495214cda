"""What running jobs costs beside the jobs: of a clip on every executor, of a chain on Ray, and from one worker to two.

    python benchmarks/scheduler.py                # all of it; a minute and a half on a quiet machine
    python benchmarks/scheduler.py --only cost scale_local

cost: a clip is a chain of two stages that do nothing, each with its result stored as in any run. ms a clip is the wall
    time of many clips by their number, on one worker, the start of workers left out. Results lie in memory (/dev/shm),
    so that it is our cost; disk_ms is what the disk takes besides to have a clip's two results synced.
chains: a chain of three tasks that do nothing as Ray can be given it: task references, which the pipelines use, or
    graphs of `.bind()`, built anew for each clip or once.
scale: clips of two stages of pure computing for 50 ms each, on one worker and on two. Efficiency is the time of one
    worker by twice the time of two: 1 means that nothing is lost. `scale_ray` runs on Ray.

Run it on a machine that does nothing else, with two cores at least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from measure import RESULTS, machine, number, print_table, write_result

from longtake.pipelines.executors import drive, make_executor
from longtake.pipelines.stages import Artifacts, Graph, Job, Outcome, Progress, Ref, Stage

WORK_S = 0.05
MEMORY = Path("/dev/shm")
Row = dict[str, Any]


def nothing(*_: object, progress: Progress | None) -> int:
    return 1


def compute(seconds: float, *_: object, progress: Progress | None) -> int:
    """Keeps a core busy for so long of its own time, however slow the machine is."""
    end = time.process_time() + seconds
    turns = 0
    while time.process_time() < end:
        turns += 1
    return 1


FIRST, SECOND = (Stage(name=name, version=1, fn=nothing) for name in ("first", "second"))
HEAVY, HEAVIER = (Stage(name=name, version=1, fn=compute) for name in ("heavy", "heavier"))
GRAPH = Graph(chains=((FIRST, SECOND), (HEAVY, HEAVIER)))


def chains(stages: tuple[Stage, Stage], count: int, *inputs: object) -> Iterator[Job]:
    for i in range(count):
        first, second = stages
        key = first.key(str(i), None)
        head = Job(stage=first, key=key, inputs=inputs, clip=str(i))
        tail = Job(stage=second, key=second.key(str(i), None, (key,)), inputs=(*inputs, Ref(key=key)), clip=str(i))
        yield GRAPH.link(head, tail)


def timed(kind: str, jobs: int, todo: Iterable[Job], warm: Iterable[Job]) -> float:
    """Seconds for all these jobs; the workers have been at work before."""

    def after(outcome: Outcome) -> list[Job]:
        assert outcome.status == "ok", outcome.message
        return []

    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        executor = make_executor(kind, Path(folder), jobs=jobs)
        try:
            drive(executor, Artifacts(Path(folder)), warm, after)
            began = time.perf_counter()
            drive(executor, Artifacts(Path(folder)), todo, after)
            return time.perf_counter() - began
        finally:
            executor.close()


def warm_up(stages: tuple[Stage, Stage], *inputs: object) -> list[Job]:
    return [
        GRAPH.link(*(Job(stage=s, key=f"{i:02x}{s.name}", inputs=inputs, clip="") for s in stages)) for i in range(8)
    ]


def store_ms(count: int, where: Path | None) -> float:
    """Milliseconds to write and sync the two results of a clip."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        store = Artifacts(Path(folder))
        began = time.perf_counter()
        for job in chains((FIRST, SECOND), count):
            for link in job.chain():
                store.save(link.key, 1, {"stage": link.stage.name}, link.inputs)
        return 1e3 * (time.perf_counter() - began) / count


def cost(clips: int, repeats: int) -> Iterator[Row]:
    disk, memory = (statistics.median(store_ms(clips, where) for _ in range(repeats)) for where in (None, MEMORY))
    for executor, kind, jobs in (("inline", "local", 0), ("workers", "local", 1), ("ray", "ray", 1)):
        stages = (FIRST, SECOND)
        times = [timed(kind, jobs, chains(stages, clips), warm_up(stages)) for _ in range(repeats)]
        figures = {"ms_a_clip": 1e3 * statistics.median(times) / clips, "disk_ms": disk - memory}
        yield {"what": "cost", "executor": executor, "clips": clips, "seconds": times} | figures


def ray_chains(clips: int, repeats: int) -> Iterator[Row]:
    """A chain of three tasks, submitted and waited for, in three ways; no results are stored."""
    with tempfile.TemporaryDirectory() as folder:
        executor = make_executor("ray", Path(folder), jobs=1)
        import ray
        from ray.dag import InputNode, MultiOutputNode

        warnings.filterwarnings("ignore", message="DAGNode.execute")
        task: Any = ray.remote(lambda job, before=None: job)
        options = [{"num_cpus": 1, "max_retries": 2, "name": name} for name in "abc"]
        ray.get([task.remote(i) for i in range(20)])

        def references() -> list[Any]:
            out: list[Any] = []
            for i in range(clips):
                before = None
                for option in options:
                    before = task.options(**option).remote(i, before)
                    out.append(before)
            return out

        def bound() -> list[Any]:
            out: list[Any] = []
            for i in range(clips):
                nodes: list[Any] = []
                for option in options:
                    nodes.append(task.options(**option).bind(i, nodes[-1] if nodes else None))
                out += MultiOutputNode(nodes).execute()  # pyright: ignore[reportArgumentType]
            return out

        with InputNode() as clip:
            nodes: list[Any] = []
            for option in options:
                nodes.append(task.options(**option).bind(clip, nodes[-1] if nodes else None))
            graph = MultiOutputNode(nodes)

        def bound_once() -> list[Any]:
            return [reference for i in range(clips) for reference in graph.execute(i)]  # pyright: ignore

        try:
            for name, submit in (("references", references), ("bind", bound), ("bind, built once", bound_once)):
                times = []
                for _ in range(repeats):
                    began = time.perf_counter()
                    ray.get(submit())
                    times.append(time.perf_counter() - began)
                figures = {"ms_a_clip": 1e3 * statistics.median(times) / clips}
                yield {"what": "chains", "executor": f"ray: {name}", "clips": clips, "seconds": times} | figures
        finally:
            executor.close()


def scale(kind: str, clips: int, repeats: int) -> Iterator[Row]:
    stages = (HEAVY, HEAVIER)
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for jobs in times:  # in turn, so that a machine that gets slower does so for both
            times[jobs].append(timed(kind, jobs, chains(stages, clips, WORK_S), warm_up(stages, 0.0)))
    one, two = (min(times[jobs]) for jobs in (1, 2))
    figures = {"seconds_1": times[1], "seconds_2": times[2], "efficiency": one / (2 * two)}
    yield {"what": "scale", "executor": "workers" if kind == "local" else kind, "clips": clips} | figures


PARTS = {
    "cost": lambda share: cost(max(20, int(1000 * share)), 5),
    "chains": lambda share: ray_chains(max(10, int(100 * share)), 3),
    "scale_local": lambda share: scale("local", max(10, int(60 * share)), 2),
    "scale_ray": lambda share: scale("ray", max(10, int(60 * share)), 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of the clips")
    parser.add_argument("--out", type=Path, default=RESULTS / "scheduler.json")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # where Ray's workers find this file
    started = machine()
    rows: list[Row] = []
    for name in options.only:
        for row in PARTS[name](options.share):
            rows.append(row)
            write_result(options.out, rows, started)
    names = ("ms_a_clip", "disk_ms", "efficiency")
    table = [[f"{row['what']}, {row['executor']}", *(number(row.get(name)) for name in names)] for row in rows]
    print_table(["", *names], table)


if __name__ == "__main__":
    from scheduler import main as run  # by the name that workers import it by

    run()
