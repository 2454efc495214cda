"""The same jobs, the same outcomes, wherever they run; what kills a worker costs one job."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
import toy_stages as toy

from longtake.pipelines import executors
from longtake.pipelines.config import MissingPart
from longtake.pipelines.executors import Executor, drive, make_executor
from longtake.pipelines.stages import Artifacts, Job, Outcome


@pytest.fixture(scope="module")
def ray_cluster():
    """One small Ray for all tests here: starting one takes seconds."""
    ray = pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(toy.__file__).parent))  # where Ray's workers find the toy stages
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()
    patch.undo()


@pytest.fixture(params=["inline", "workers", "ray"])
def executor(request, tmp_path):
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    kind, jobs = {"inline": ("local", 0), "workers": ("local", 2), "ray": ("ray", 2)}[request.param]
    made = make_executor(kind, tmp_path / "store", jobs=jobs)
    yield made
    made.close()


def run(executor: Executor, root: Path, first: list[Job], **options) -> tuple[list[Outcome], executors.Drive]:
    """Every job and, after each count, its sum; what became of them, in order."""
    outcomes: list[Outcome] = []

    def after(outcome: Outcome) -> list[Job]:
        outcomes.append(outcome)
        return [toy.sum_job(outcome.job)] if outcome.job.stage.name == "count" else []

    end = drive(executor, Artifacts(root), first, after, **options)
    return outcomes, end


def test_same_results_everywhere(executor, tmp_path):
    calls, root = tmp_path / "calls", tmp_path / "store"
    jobs = [toy.count_job(n, calls) for n in (0, 3, 4, 5)]
    outcomes, end = run(executor, root, jobs)
    assert end == executors.Drive()
    sums = {o.job.clip: o for o in outcomes if o.job.stage.name == "sum"}
    assert {clip: o.status for clip, o in sums.items()} == {
        "count 0": "rejected",
        "count 3": "ok",
        "count 4": "ok",
        "count 5": "ok",
    }
    assert [Artifacts(root).load(sums[f"count {n}"].job.key) for n in (3, 4, 5)] == [3, 6, 10]

    again, _ = run(executor, root, jobs)
    assert len(again) == 8 and all(o.resumed for o in again)
    assert sorted(calls.read_text().split()) == ["0", "3", "4", "5"]


def test_surprises_fail_one_clip_and_stop_when_they_repeat(executor, tmp_path):
    bad = [toy.job(toy.stumble, f"clip {i}", clip=f"clip {i}") for i in range(40)]
    outcomes, end = run(executor, tmp_path / "store", [*bad[:4], toy.count_job(2, tmp_path / "calls")])
    assert end.stopped is None and sorted(o.status for o in outcomes) == ["failed"] * 4 + ["ok"] * 2
    outcomes, end = run(executor, tmp_path / "store", bad)
    assert end.stopped is not None and end.stopped.reason == "internal_error"
    assert 5 <= len(outcomes) < 5 + executors.WINDOW * executor.slots  # what was in flight is waited for, no more


@pytest.mark.parametrize("number, reason", [(signal.SIGKILL, "out_of_memory"), (signal.SIGSEGV, "crashed")])
def test_a_killed_worker_costs_one_job(tmp_path, number, reason):
    pool = make_executor("local", tmp_path / "store", jobs=1)
    calls = tmp_path / "calls"
    jobs = [toy.count_job(1, calls), toy.job(toy.die, int(number), clip="bad"), toy.count_job(2, calls)]
    outcomes, _ = run(pool, tmp_path / "store", jobs)
    pool.close()
    assert {o.reason for o in outcomes if o.job.clip == "bad"} == {reason}
    assert sum(o.status == "ok" for o in outcomes) == 4


def test_a_killed_ray_worker_costs_one_job(tmp_path, ray_cluster):
    pool = make_executor("ray", tmp_path / "store", jobs=2)
    jobs = [toy.job(toy.die, int(signal.SIGKILL), clip="bad"), toy.count_job(2, tmp_path / "calls")]
    outcomes, _ = run(pool, tmp_path / "store", jobs)
    pool.close()
    assert {o.job.clip: o.status for o in outcomes} == {"bad": "failed", "count 2": "ok"}


def test_a_cluster_that_is_not_there_is_told(tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(MissingPart, match=f"no Ray cluster at {address}"):
        make_executor("ray", tmp_path, jobs=0, address=address)


def test_a_hung_job_is_given_up(tmp_path):
    pool = make_executor("local", tmp_path / "store", jobs=1)
    outcomes, _ = run(pool, tmp_path / "store", [toy.job(toy.hang, limit_s=0.5), toy.count_job(2, tmp_path / "calls")])
    pool.close()
    assert [o.reason for o in outcomes if o.job.stage.name == "toy"] == ["timed_out"]
    assert sum(o.status == "ok" for o in outcomes) == 2


def test_stopping_finishes_what_runs(executor, tmp_path):
    begun: list[Outcome] = []
    first = (toy.count_job(n, tmp_path / "calls") for n in range(1, 10_000))  # never all taken

    def after(outcome: Outcome) -> list[Job]:
        begun.append(outcome)
        return []

    end = drive(executor, Artifacts(tmp_path / "store"), first, after, stopping=lambda: len(begun) >= 3)
    assert end.interrupted and 3 <= len(begun) <= 3 + executors.WINDOW * executor.slots
    assert len(begun) == len((tmp_path / "calls").read_text().split())  # all that was begun is on record


def test_follow_ups_go_before_new_jobs(tmp_path):
    order: list[str] = []

    def after(outcome: Outcome) -> list[Job]:
        order.append(outcome.job.clip + outcome.job.stage.name)
        return [toy.sum_job(outcome.job)] if outcome.job.stage.name == "count" else []

    pool = executors.Inline(tmp_path)
    window, executors.WINDOW = executors.WINDOW, 1
    try:
        drive(pool, Artifacts(tmp_path), [toy.count_job(n, tmp_path / "calls") for n in (1, 2)], after)
    finally:
        executors.WINDOW = window
    assert order == ["count 1count", "count 1sum", "count 2count", "count 2sum"]
