"""Where jobs run: in this process, in worker processes of this machine, or on a Ray cluster; the same stages in all.

    submit(job)      queue it; on Ray with the jobs that follow it, as one graph of tasks
    wait(timeout)    the outcomes that have come in since, at least one unless time runs out
    drain()          begin nothing more
    close()          end the workers; what they were doing is lost, what they finished is stored

A worker that dies takes nothing with it but the job it had. That is tried again, twice: whatever killed the worker may
not have meant the job. After the third time the clip is set aside with its reason. Ray is imported here alone, and only
when it is asked for.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Protocol

from .config import MissingPart
from .progress import Stages
from .stages import Artifacts, Job, Outcome, Stage, recorded, run_job

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PROGRESS_EVERY_S = 0.2
TICK_S = 0.5
WINDOW = 3  # jobs in flight per slot: enough that none waits for us, few enough to stop soon
TRIES = 3  # of a job whose worker dies
RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(TRIES - 1)}
OWN_RAY_SETTINGS = {  # of a cluster that is started here: nobody else can reach it, or has its token
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 0: its servers listen on 127.0.0.1 alone, as on Windows and macOS
    "RAY_AUTH_MODE": "token",
    "RAY_task_events_report_interval_ms": "0",  # no records of each task, which only Ray's dashboard reads
}
WORDS = tuple(f.name for f in fields(Outcome) if f.name != "job")  # what a Ray task tells of its job
SAME_BUG_LIMIT = 5  # distinct clips with the same unexpected exception: it is not the clips


class Executor(Protocol):
    """What a pipeline needs of an executor."""

    slots: int  # jobs that run at the same time
    takes_chains: bool  # a job is submitted with those that follow it

    @property
    def load(self) -> int: ...  # what was submitted and is not over: jobs, or chains of them
    def submit(self, job: Job) -> None: ...
    def wait(self, timeout_s: float) -> list[Outcome]: ...
    def progress(self) -> list[tuple[str, int, int]]: ...  # (clip and stage, frames done, frames in all), running jobs
    def drain(self) -> None: ...  # forget the jobs that have not begun
    def close(self) -> None: ...


def make_executor(
    kind: str, root: Path, *, jobs: int = 1, address: str | None = None, log: Path | None = None
) -> Executor:
    """The executor of a run.

    Args:
        kind: "local" or "ray".
        root: the artifact folder, seen under this path by every worker.
        jobs: jobs at the same time; for local 0 means in this very process (no protection from crashes), for ray 0
            means as many as the cluster's CPUs.
        address: of the Ray cluster to join; None starts one on this machine.
        log: a file for what libraries print in local workers; None lets them print.
    """
    if kind == "ray":
        return RayTasks(root, jobs=jobs, address=address)
    return Workers(root, jobs=jobs, log=log) if jobs else Inline(root)


@dataclass(frozen=True, kw_only=True)
class Drive:
    """How `drive` ended: `interrupted` by the caller, or `stopped` with the outcome that made going on pointless."""

    interrupted: bool = False
    stopped: Outcome | None = None


def drive(
    executor: Executor,
    store: Artifacts,
    first: Iterable[Job],
    after: Callable[[Outcome], Iterable[Job]],
    *,
    reuse_rejected: bool = True,
    stopping: Callable[[], bool] = lambda: False,
    tick: Callable[[list[tuple[str, int, int]]], None] = lambda running: None,
    counts: Stages | None = None,
) -> Drive:
    """Run the first jobs and all that follow from their outcomes, with a bounded number in flight.

    A job is followed by its `then`, where it gives a result, and by what `after` says. A job that failed is on record
    as a refusal before `after` hears of it.

    Jobs that follow go before new first ones, so that what was begun is finished and its memory let go; `first` may be
    endless. What is on record is not run. Once `stopping()` is true nothing new is begun, and what runs is waited for;
    so too where a disk is full or the same unexpected exception has come from many clips.

    Args:
        after: called once with every outcome, in this thread; gives the jobs that can run now.
        tick: called at least every half second with (clip and stage, frames done, frames in all) of what runs.
        counts: told of every job.
    """
    counts = Stages() if counts is None else counts
    todo: list[Job] = []
    new = iter(first)
    stopped: Outcome | None = None
    bugs: defaultdict[str, set[str]] = defaultdict(set)

    def finish(outcome: Outcome, *, then: Job | None) -> None:
        nonlocal stopped
        if outcome.status == "failed":
            store.refuse(outcome)
        counts.end(outcome)
        follow = list(after(outcome))
        for job in follow:
            counts.queue(job)
        if outcome.status == "ok" and then:
            follow.append(then)
        todo.extend(reversed(follow))
        if outcome.bug:
            bugs[outcome.bug].add(outcome.job.clip)
        if outcome.status == "stopped" or len(bugs[outcome.bug]) >= SAME_BUG_LIMIT:
            stopped = stopped or outcome

    while True:
        while executor.load < WINDOW * executor.slots and not stopped and not stopping():
            if todo:
                job = todo.pop()
            elif job := next(new, None):
                counts.queue(job)
            else:
                break
            if done := recorded(job, store, reuse_rejected=reuse_rejected):
                finish(done, then=job.then)
            else:
                executor.submit(job)
        if stopped or stopping():
            executor.drain()
        if not executor.load:
            return Drive(interrupted=stopping() and not stopped, stopped=stopped)
        tick(executor.progress())
        for outcome in executor.wait(TICK_S):
            finish(outcome, then=None if executor.takes_chains else outcome.job.then)


class Inline:
    """Jobs run one after another in this process: for tests and debuggers."""

    takes_chains = False

    def __init__(self, root: Path) -> None:
        self.slots = 1
        self.root = root
        self.queue: deque[Job] = deque()

    @property
    def load(self) -> int:
        return len(self.queue)

    def submit(self, job: Job) -> None:
        self.queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        return [run_job(self.queue.popleft(), self.root)] if self.queue else []

    def progress(self) -> list[tuple[str, int, int]]:
        return []

    def drain(self) -> None:
        self.queue.clear()

    def close(self) -> None:
        self.queue.clear()


class Workers:
    """A fixed number of worker processes, each kept for many jobs, so that torch is imported once in each.

    They are started as `python -m longtake.pipelines.executors`, not by multiprocessing: that needs no
    `if __name__ == "__main__"` in the user's script and inherits no locks.

    A job begins while others run only if the memory that it declares is free; one that declares more than there is
    runs alone. So does one whose worker died: memory may have been what killed it.
    """

    takes_chains = False

    def __init__(self, root: Path, *, jobs: int, log: Path | None = None) -> None:
        self.slots = jobs
        self.root = root
        self.log = log
        self.queue: deque[Job] = deque()
        self.deaths: Counter[str] = Counter()  # key of a job -> workers that died of it
        self.workers = [_Worker(self.root, jobs, log) for _ in range(jobs)]

    @property
    def load(self) -> int:
        return len(self.queue) + len(self._busy())

    def submit(self, job: Job) -> None:
        self.queue.append(job)
        self._feed()

    def wait(self, timeout_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + timeout_s
        while not outcomes and self._busy() and (left := deadline - time.monotonic()) > 0:
            ready = wait_for([w.connection for w in self._busy()], left)
            for worker in list(self.workers):
                if worker.connection in ready and (outcome := self._receive(worker)):
                    outcomes.append(outcome)
            self._feed()
        return outcomes

    def progress(self) -> list[tuple[str, int, int]]:
        return [(f"{w.job.clip}: {w.job.stage.name}", w.frames[0], w.frames[1]) for w in self.workers if w.job]

    def drain(self) -> None:
        self.queue.clear()

    def close(self) -> None:
        self.queue.clear()
        for worker in self.workers:
            worker.stop()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.job]

    def _feed(self) -> None:
        """Give the jobs that wait to the workers that do not work, in order: a large one is not overtaken for ever."""
        for worker in list(self.workers):
            if worker.job or not self.queue or not self._admits(self.queue[0]):
                continue
            job = self.queue.popleft()
            try:
                worker.start_job(job)
            except (BrokenPipeError, ConnectionResetError):  # it died while it had nothing to do
                self._replace(worker).start_job(job)

    def _admits(self, job: Job) -> bool:
        busy = self._busy()
        if not busy:
            return True
        if self.deaths[job.key] or any(w.job and self.deaths[w.job.key] for w in busy):
            return False
        promised = sum(w.unused_bytes() for w in busy)
        return (job.stage.resources.memory_bytes or 0) + promised <= free_bytes()

    def _replace(self, worker: _Worker) -> _Worker:
        worker.stop()
        fresh = _Worker(self.root, self.slots, self.log)
        self.workers[self.workers.index(worker)] = fresh
        return fresh

    def _receive(self, worker: _Worker) -> Outcome | None:
        job = worker.job
        assert job is not None
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            code = worker.process.wait()
            self._replace(worker)
            self.deaths[job.key] += 1
            if Artifacts(self.root).has(job.key):  # a result or a refusal, left just before
                return run_job(job, self.root)
            if self.deaths[job.key] < TRIES:
                self.queue.appendleft(job)
                return None
            return _after_death(job, code)
        if isinstance(message, Outcome):
            worker.job = None
            del self.deaths[job.key]
            return message
        worker.frames = message
        return None


def free_bytes() -> int:
    """Memory that can be had without anything being swapped out: of this machine, and of our control group."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or one without a limit
        return free
    return min(free, limit - used + int(stat["inactive_file"]))


class _Worker:
    """One worker process, the pipe to it, and the job it has."""

    def __init__(self, root: Path, jobs: int, log: Path | None) -> None:
        ours, theirs = socket.socketpair()
        threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
        environment = {**dict.fromkeys(THREAD_VARIABLES, threads), "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        output = open(log, "ab") if log else None
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.executors", str(theirs.fileno()), str(root)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,  # never written: its end tells the worker that we are gone
                stdout=output,
                stderr=output,
                env={**environment, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                start_new_session=True,  # Ctrl-C is for us alone: workers finish what they have
            )
        finally:
            theirs.close()
            if output:
                output.close()
        self.connection = Connection(ours.detach())
        self.job: Job | None = None
        self.frames = (0, 0)

    def start_job(self, job: Job) -> None:
        self.connection.send(job)
        self.job, self.frames = job, (0, 0)

    def unused_bytes(self) -> int:
        """Of the memory that the job declares, what it has not taken yet."""
        declared = (self.job.stage.resources.memory_bytes or 0) if self.job else 0
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):  # it has just died
            pages = 0
        return max(0, declared - pages * os.sysconf("SC_PAGE_SIZE"))

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


def _after_death(job: Job, code: int) -> Outcome:
    """The outcome of a job whose workers died one after another."""
    times = f"{TRIES} times, the last time alone"
    if code == -signal.SIGKILL:  # the kernel's answer to memory that ran out
        words = f"{job.stage.name} was killed by the system {times}"
        return Outcome(job=job, status="failed", reason="out_of_memory", message=words)
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    words = f"{job.stage.name} crashed its process {times} ({name})"
    return Outcome(job=job, status="failed", reason="crashed", message=words)


def _worker_main(descriptor: int, root: Path) -> None:
    """Receive jobs, run them, send outcomes, until the other side is gone."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    connection = Connection(descriptor)
    last_sent = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > PROGRESS_EVERY_S:
            last_sent = time.monotonic()
            connection.send((done, total))

    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run_job(job, root, progress, may_exit=True))


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


class RayTasks:
    """Jobs as Ray tasks. Results are files in a folder that all nodes see: a lost node loses only what it was doing.

    A job is sent with those that follow it: each task takes the outcome of the one before it, so that Ray goes on with
    a clip while we do something else. Stages that load networks run in actors, which load them once. An actor has one
    job at a time, for with it would die those that wait for it; so a chain is sent up to such a stage, which waits.
    """

    takes_chains = True

    def __init__(self, root: Path, *, jobs: int, address: str | None) -> None:
        settings = RAY_SETTINGS | (OWN_RAY_SETTINGS if address is None else {})
        if "ray" not in sys.modules:  # it reads them while it is imported; whoever has done that has said what is meant
            for name, value in settings.items():
                os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise MissingPart("--executor ray needs Ray: pip install 'ray>=2.54'") from error
        self.ray: Any = ray
        self.root = root.absolute()
        self.started_here = not ray.is_initialized()
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            _knock(address)
            if self.started_here and address is None:
                ray.init("local", include_dashboard=False, num_cpus=jobs or None, **quiet)
            elif self.started_here:
                ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise MissingPart(f"no Ray cluster at {address or 'this machine'}: {error}") from error
        self.slots = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.load = 0  # chains that are not over
        self.draining = False
        self.task: Any = ray.remote(_run_packed)  # of every stage: Ray keeps workers for functions, and changing costs
        self.tasks: dict[str, Any] = {}  # the same with what a stage occupies
        self.running: dict[Any, _Sent] = {}  # by reference; the tasks of a chain in order
        self.pools: dict[str, _Pool] = {}

    def submit(self, job: Job) -> None:
        self.load += 1
        if not job.stage.resident:
            self._send(job)
            return
        name = job.stage.name
        if name not in self.pools:
            self.pools[name] = self._open_pool(job.stage)
        self.pools[name].queue.append(job)
        self._feed()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """What has come in once a chain has ended, or after the time; each waking up costs as much as a small task."""
        if not self.running:
            return []
        ends = list({id(sent.chain): sent.chain[-1] for sent in self.running.values()}.values())
        self.ray.wait(ends, num_returns=1, timeout=timeout_s)
        ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        told = dict(zip(ready, self._told(ready), strict=True))
        outcomes = [self._receive(r, told[r]) for r in list(self.running) if r in told and r in self.running]
        self._feed()
        return outcomes

    def progress(self) -> list[tuple[str, int, int]]:
        return []

    def drain(self) -> None:
        """Ray does not tell which tasks have begun; but those have not that wait for another, or for an actor."""
        self.draining = True
        for pool in self.pools.values():
            self.load -= len(pool.queue)
            pool.queue.clear()
        for chain in {id(sent.chain): sent.chain for sent in self.running.values()}.values():
            while chain[-1] in self.running and len(chain) > 1 and chain[-2] in self.running:
                del self.running[chain[-1]]
                self.ray.cancel(chain.pop())

    def close(self) -> None:
        self.running.clear()
        for pool in self.pools.values():
            for actor in pool.actors:
                self.ray.kill(actor)
        self.pools.clear()
        if self.started_here:
            self.ray.shutdown()

    def _send(self, job: Job, actor: Any = None) -> None:
        """Submit a chain of tasks; the first one to an actor where one is given."""
        chain: list[Any] = []
        for link in job.chain():
            if chain and link.stage.resident:
                break
            packed = pickle.dumps((replace(link, then=None), self.root))
            if actor is not None and not chain:
                task = actor.run.remote(packed)
            else:
                task = self._task(link.stage).remote(chain[-1] if chain else None, packed)
            self.running[task] = _Sent(job=link, chain=chain, actor=None if chain else actor)
            chain.append(task)

    def _told(self, ready: list[Any]) -> list[Any]:
        """What these tasks gave, or the error that stands in its place."""
        try:
            return self.ray.get(ready)
        except self.ray.exceptions.RayError as error:  # of one of them
            return [error] if len(ready) == 1 else [told for reference in ready for told in self._told([reference])]

    def _receive(self, reference: Any, told: Any) -> Outcome:
        sent = self.running.pop(reference)
        if sent.actor is not None:
            self.pools[sent.job.stage.name].idle.append(sent.actor)
        outcome = self._outcome(told, sent.job)
        rest = sent.chain[sent.chain.index(reference) + 1 :]
        if outcome.status != "ok":
            for task in rest:  # they find that there is nothing to do
                self.running.pop(task, None)
            rest = []
        if not rest:
            self.load -= 1
            if outcome.status == "ok" and sent.job.then and not self.draining:
                self.submit(sent.job.then)
        return outcome

    def _outcome(self, told: Any, job: Job) -> Outcome:
        lost = self.ray.exceptions
        if isinstance(told, lost.OutOfMemoryError):
            return Outcome(job=job, status="failed", reason="out_of_memory", message=str(told).partition("\n")[0])
        if isinstance(told, lost.RayTaskError):  # it could not be unpacked there: another version, another environment
            text = f"{job.stage.name}: {str(told).strip().splitlines()[-1]}"
            return Outcome(job=job, status="failed", reason="internal_error", message=text, trace=str(told), bug=text)
        if isinstance(told, lost.RayError):
            if Artifacts(self.root).has(job.key):
                return run_job(job, self.root)
            text = f"{job.stage.name}: the worker died again and again ({type(told).__name__})"
            return Outcome(job=job, status="failed", reason="crashed", message=text, trace=str(told))
        return Outcome(job=job, **dict(zip(WORDS, told, strict=True)))

    # -- what a stage occupies

    def _task(self, stage: Stage) -> Any:
        """The remote function with a stage's options."""
        if stage.name not in self.tasks:
            tries = {"max_retries": TRIES - 1, "retry_exceptions": False}
            self.tasks[stage.name] = self.task.options(**self._need(stage), **tries, name=stage.name)
        return self.tasks[stage.name]

    def _need(self, stage: Stage) -> dict[str, Any]:
        """What Ray keeps free for a job; where no node has the memory, all that the largest node has.

        Raises:
            MissingPart: the cluster is this machine, and it has no such GPU.
        """
        need = stage.resources
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus = max(node.get("GPU", 0.0) for node in nodes)
        if self.started_here and need.gpus > gpus:
            raise MissingPart(f"the stage {stage.name} asks for {need.gpus:g} GPUs, and Ray finds {gpus:g} here")
        memory = min(need.memory_bytes or 0, int(max(node.get("memory", 0.0) for node in nodes)))
        return {"num_cpus": need.cpus, "num_gpus": need.gpus} | ({"memory": memory} if memory else {})

    def _open_pool(self, stage: Stage) -> _Pool:
        """Actors for a stage: as many as the GPUs hold, or without GPUs on at most half of the CPUs.

        An actor keeps what Ray gives it for as long as it lives, and other stages would wait for ever for what it
        leaves too little of. So those on GPUs are given no CPU, and none is given memory: that limits their number.
        """
        need = self._need(stage)
        whole = self.ray.cluster_resources()
        memory = need.pop("memory", 0)
        if stage.resources.gpus:
            size = actors_on(whole.get("GPU", 0.0), stage.resources.gpus)
        else:
            size = min(self.slots // 2, int(whole["memory"] / 2 // memory) if memory else self.slots)
        if stage.resources.gpus or self.slots == 1:
            need["num_cpus"] = 0
        tries = 2 * (TRIES - 1)  # a death may take two: the call that it cut off, and the next, which finds nobody yet
        kind = self.ray.remote(Resident).options(max_restarts=-1, max_task_retries=tries, **need)
        return _Pool(actors=[kind.remote() for _ in range(max(1, size))])

    def _feed(self) -> None:
        for pool in self.pools.values():
            while pool.queue and pool.idle:
                self._send(pool.queue.popleft(), pool.idle.popleft())


def actors_on(gpus: float, share: float) -> int:
    """How many actors find room on these GPUs, each with this share; none lies on two GPUs in part."""
    return int(gpus / share) if share >= 1 else int(gpus) * int(1 / share)


class Resident:
    """What an actor runs: whatever its stage loads stays in its process."""

    def run(self, packed: bytes) -> list[Any]:
        return _run_packed(None, packed)


def _run_packed(before: list[Any] | None, packed: bytes) -> list[Any]:
    """What a task runs: a job, unless the one that it follows gave no result. To Ray, jobs are bytes and outcomes lists
    of plain values: other things it packs and unpacks with a slower pickle, which costs more than a small job."""
    if before is not None and before[WORDS.index("status")] != "ok":
        return before
    job, root = pickle.loads(packed)
    outcome = run_job(job, root, may_exit=True)
    return [getattr(outcome, name) for name in WORDS]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sent:
    """A task that Ray has."""

    job: Job
    chain: list[Any]  # references of all tasks of its chain, in order
    actor: Any  # that has it, or None


class _Pool:
    """The actors of a stage, and the jobs that wait for one."""

    def __init__(self, actors: list[Any]) -> None:
        self.actors = actors
        self.idle = deque(actors)
        self.queue: deque[Job] = deque()


def _knock(address: str | None) -> None:
    """Raise OSError where nobody answers at host:port: Ray itself would wait for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


if __name__ == "__main__":
    _worker_main(int(sys.argv[1]), Path(sys.argv[2]))
