"""The same jobs, the same outcomes, wherever they run; what kills a worker costs one job."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import toy_stages as toy

from longtake.pipelines import executors
from longtake.pipelines.config import MissingPart
from longtake.pipelines.executors import Executor, drive, make_executor
from longtake.pipelines.progress import Stages
from longtake.pipelines.stages import Artifacts, Graph, Job, Outcome, Resources


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """One Ray for all tests here, as a run starts it: that takes seconds."""
    if not find_spec("ray"):
        pytest.skip("Ray is not installed")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(toy.__file__).parent))  # where Ray's workers find the toy stages
    own = make_executor("ray", tmp_path_factory.mktemp("own"), jobs=2)
    yield own
    own.close()
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


def test_a_chain_goes_on_unless_it_is_refused(executor, tmp_path):
    calls, store = tmp_path / "calls", Artifacts(tmp_path / "store")
    graph = Graph(chains=((toy.COUNT, toy.SUM, toy.TRIPLE),))
    first = []
    for n in (0, 3, 4):  # the sum of no numbers is refused
        count = toy.count_job(n, calls)
        first.append(graph.link(count, total := toy.sum_job(count), toy.triple_job(total)))
    heard: list[tuple[str, str, str]] = []

    def after(outcome: Outcome) -> list[Job]:
        heard.append((outcome.job.clip, outcome.job.stage.name, outcome.status))
        return []

    counts = Stages()
    assert drive(executor, store, first, after, counts=counts) == executors.Drive()
    for n in (3, 4):
        assert [h[1:] for h in heard if h[0] == f"count {n}"] == [("count", "ok"), ("sum", "ok"), ("triple", "ok")]
    assert [h[1:] for h in heard if h[0] == "count 0"] == [("count", "ok"), ("sum", "rejected")]
    assert [store.load(list(job.chain())[-1].key) for job in first[1:]] == [9, 18]
    assert {name: (c.done, c.refused, c.failed, c.queued) for name, c in counts.items()} == {
        "count": (3, 0, 0, 0),
        "sum": (2, 1, 0, 0),
        "triple": (2, 0, 0, 0),
    }
    heard.clear()
    store.drop(list(first[1].chain())[1].key)
    drive(executor, store, first, after, counts=(again := Stages()))
    assert len(heard) == 8 and sum(c.resumed for c in again.values()) >= 6  # the lost one alone is worked out again
    assert sorted(calls.read_text().split()) == ["0", "3", "4"]


def test_surprises_fail_one_clip_and_stop_when_they_repeat(executor, tmp_path):
    bad = [toy.job(toy.stumble, f"clip {i}", clip=f"clip {i}") for i in range(40)]
    outcomes, end = run(executor, tmp_path / "store", [*bad[:4], toy.count_job(2, tmp_path / "calls")])
    assert end.stopped is None and sorted(o.status for o in outcomes) == ["failed"] * 4 + ["ok"] * 2
    outcomes, end = run(executor, tmp_path / "store", bad)
    assert end.stopped is not None and end.stopped.reason == "internal_error"
    assert sum(o.resumed for o in outcomes) == 4  # failures are on record
    assert 5 <= len(outcomes) - 4 < 5 + executors.WINDOW * executor.slots  # what was in flight is waited for, no more


@pytest.mark.parametrize("number, reason", [(signal.SIGKILL, "out_of_memory"), (signal.SIGSEGV, "crashed")])
def test_a_killed_worker_costs_one_job(tmp_path, number, reason):
    pool = make_executor("local", tmp_path / "store", jobs=1)
    calls = tmp_path / "calls"
    jobs = [toy.count_job(1, calls), toy.job(toy.die, int(number), clip="bad"), toy.count_job(2, calls)]
    outcomes, _ = run(pool, tmp_path / "store", jobs)
    pool.close()
    assert {o.reason for o in outcomes if o.job.clip == "bad"} == {reason}
    assert sum(o.status == "ok" for o in outcomes) == 4


@pytest.mark.parametrize("kind", ["workers", "ray"])
def test_what_killed_a_worker_by_chance_costs_nothing(kind, tmp_path, request):
    if kind == "ray":
        request.getfixturevalue("ray_cluster")
    pool = make_executor("ray" if kind == "ray" else "local", tmp_path / "store", jobs=2)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    unlucky = toy.job(toy.die_first, str(deaths), executors.TRIES - 1, clip="unlucky")
    outcomes, _ = run(pool, tmp_path / "store", [unlucky, toy.count_job(2, tmp_path / "calls")])
    pool.close()
    assert [o.status for o in outcomes] == ["ok"] * 3
    assert Artifacts(tmp_path / "store").load(unlucky.key) == executors.TRIES


def test_a_worker_that_dies_idle_is_replaced(tmp_path):
    pool = executors.Workers(tmp_path / "store", jobs=1)
    pool.workers[0].process.kill()
    pool.workers[0].process.wait()
    outcomes, _ = run(pool, tmp_path / "store", [toy.count_job(2, tmp_path / "calls")])
    pool.close()
    assert [o.status for o in outcomes] == ["ok", "ok"]


@pytest.mark.parametrize("free_gib, together", [(25, 1), (15, 0)])
def test_memory_decides_what_runs_together(tmp_path, monkeypatch, free_gib, together):
    monkeypatch.setattr(executors, "free_bytes", lambda: free_gib << 30)
    pool = executors.Workers(tmp_path / "store", jobs=2)
    here = tmp_path / "here"
    here.mkdir()
    need = Resources(memory_bytes=10 << 30)
    jobs = [toy.job(toy.meet, str(here), str(i), together, clip=str(i), resources=need) for i in range(2)]
    outcomes, _ = run(pool, tmp_path / "store", jobs)
    pool.close()
    assert [o.status for o in outcomes] == ["ok", "ok"]
    assert [Artifacts(tmp_path / "store").load(job.key) for job in jobs] == [together] * 2


def test_free_memory_is_that_of_this_machine():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < executors.free_bytes() < whole


@pytest.fixture
def own_ray(ray_cluster):
    """Ray as a process starts it that has not imported Ray before: what others have set is theirs."""
    if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0" or os.environ.get("RAY_AUTH_MODE") != "token":
        pytest.skip("another test imported Ray first; run this module by itself")
    return ray_cluster


def test_own_ray_listens_to_this_machine_alone(own_ray):
    inodes = set()
    for pid in descendants(os.getpid()):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    listening = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()
    ]
    ours = [row for row in listening if len(row) > 9 and row[3] == "0A" and row[9] in inodes]
    assert len(ours) >= 5, "the cluster's servers"
    assert {row[1].partition(":")[0] for row in ours} <= loopback


def test_own_ray_asks_for_a_token(own_ray):
    """Another process of this machine that does not have it finds no cluster."""
    address = own_ray.ray.get_runtime_context().gcs_address
    script = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
    environment = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run([sys.executable, "-c", script, address], env=environment, capture_output=True, text=True)
    assert done.returncode and "token" in done.stderr.lower()


def descendants(pid: int) -> list[int]:
    found = [pid]
    with suppress(OSError):  # it ended while we looked
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [p for child in (task / "children").read_text().split() for p in descendants(int(child))]
    return found


def test_networks_stay_in_actors(tmp_path, ray_cluster):
    """One is loaded once, stages after it go on in tasks, and what kills an actor costs one job."""
    pool = make_executor("ray", tmp_path / "store", jobs=2)
    log = tmp_path / "loaded"
    chains = []
    for i in range(5):
        network = toy.job(toy.use_network, str(log), name="network", clip=f"clip {i}", resident=True)
        chains.append(replace(network, then=toy.triple_job(network)))
    bad = toy.job(toy.die, int(signal.SIGKILL), name="network", clip="bad", resident=True)
    outcomes, _ = run(pool, tmp_path / "store", [*chains, bad])
    pool.close()
    store = Artifacts(tmp_path / "store")
    users = {store.load(job.key) for job in chains}
    assert users <= set(map(int, log.read_text().split())) and len(log.read_text().split()) == len(users) == 1
    failed = [o for o in outcomes if o.status != "ok"]
    assert [(o.job.clip, o.reason) for o in failed] == [("bad", "crashed")] and len(outcomes) == 11


def test_a_chain_waits_for_its_network(tmp_path, ray_cluster):
    pool = make_executor("ray", tmp_path / "store", jobs=2)
    count = toy.count_job(3, tmp_path / "calls")
    total = toy.sum_job(count)
    network = toy.job(toy.use_network, str(tmp_path / "loaded"), name="network", clip=count.clip, resident=True)
    chain = replace(count, then=replace(total, then=replace(network, then=toy.triple_job(network))))
    heard: list[str] = []
    drive(pool, Artifacts(tmp_path / "store"), [chain], lambda outcome: heard.append(outcome.job.stage.name) or [])
    pool.close()
    assert heard == ["count", "sum", "network", "triple"]


def test_a_chain_is_heard_of_before_it_ends(tmp_path, ray_cluster):
    pool = make_executor("ray", tmp_path / "store", jobs=2)
    (tmp_path / "place").mkdir()
    count = toy.count_job(3, tmp_path / "calls")
    waiting = toy.job(toy.meet, str(tmp_path / "place"), "job", 1, name="meet", clip=count.clip)

    def after(outcome: Outcome) -> list[Job]:
        (tmp_path / "place" / outcome.job.stage.name).touch()
        return []

    drive(pool, Artifacts(tmp_path / "store"), [replace(count, then=waiting)], after)
    pool.close()
    assert Artifacts(tmp_path / "store").load(waiting.key) == 1  # it ended when we had heard of the first


@pytest.mark.parametrize(
    "gpus, share, actors", [(1, 0.6, 1), (2, 0.6, 2), (8, 0.4, 16), (3, 1, 3), (4, 2, 2), (0, 0.5, 0)]
)
def test_no_actor_lies_on_two_gpus(gpus, share, actors):
    """One that waited for the rest of two would wait for ever, and a job with it."""
    assert executors.actors_on(gpus, share) == actors


def test_a_gpu_that_is_not_there_is_told(tmp_path, ray_cluster):
    job = toy.job(toy.use_network, str(tmp_path / "loaded"), resources=Resources(gpus=0.5))
    with pytest.raises(MissingPart, match=r"asks for 0\.5 GPUs"):
        ray_cluster.submit(job)


def test_more_memory_than_there_is_runs_alone(tmp_path, ray_cluster):
    pool = make_executor("ray", tmp_path / "store", jobs=2)
    job = toy.job(toy.use_network, str(tmp_path / "loaded"), resources=Resources(memory_bytes=1 << 60))
    outcomes, _ = run(pool, tmp_path / "store", [job])
    pool.close()
    assert [o.status for o in outcomes] == ["ok"]


def test_actors_leave_memory_to_other_stages(tmp_path, ray_cluster):
    pool = make_executor("ray", tmp_path / "store", jobs=2)
    all_there_is = Resources(memory_bytes=1 << 60)
    first = toy.job(toy.use_network, str(tmp_path / "a"), name="net", resources=all_there_is, resident=True)
    second = toy.job(toy.use_network, str(tmp_path / "b"), name="other", resources=all_there_is)
    outcomes, _ = run(pool, tmp_path / "store", [first, second])
    pool.close()
    assert [o.status for o in outcomes] == ["ok", "ok"]


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
