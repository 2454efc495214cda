"""Where jobs run: in this process, in worker processes of this machine, or on a Ray cluster; the same stages in all.

    submit(job)      queue it
    wait(timeout)    the outcomes that have come in since, at least one unless time runs out
    close()          end the workers; what they were doing is lost, what they finished is stored

A worker that dies takes one job with it: the job fails with a reason, a new worker takes the place. Ray is imported
here alone, and only when it is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Protocol

from .config import MissingPart
from .stages import Artifacts, Job, Outcome, recorded, run_job

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PROGRESS_EVERY_S = 0.2
TICK_S = 0.5
WINDOW = 3  # jobs in flight per slot: enough that none waits for us, few enough to stop soon
SAME_BUG_LIMIT = 5  # distinct clips with the same unexpected exception: it is not the clips


class Executor(Protocol):
    """What a pipeline needs of an executor."""

    slots: int  # jobs that run at the same time

    def submit(self, job: Job) -> None: ...
    def wait(self, timeout_s: float) -> list[Outcome]: ...
    def progress(self) -> list[tuple[str, int, int]]: ...  # (clip and stage, frames done, frames in all), running jobs
    def drop_waiting(self) -> int: ...  # forget the jobs that have not begun; how many
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
) -> Drive:
    """Run the first jobs and all that follow from their outcomes, with a bounded number in flight.

    Jobs that follow go before new first ones, so that what was begun is finished and its memory let go; `first` may be
    endless. What is on record is not run. Once `stopping()` is true nothing new is begun, and what runs is waited for;
    so too where a disk is full or the same unexpected exception has come from many clips.

    Args:
        after: called once with every outcome, in this thread; gives the jobs that can run now.
        tick: called at least every half second with (clip and stage, frames done, frames in all) of what runs.
    """
    todo: list[Job] = []
    new = iter(first)
    in_flight = 0
    stopped: Outcome | None = None
    bugs: defaultdict[str, set[str]] = defaultdict(set)

    def finish(outcome: Outcome) -> None:
        nonlocal stopped
        todo.extend(reversed(list(after(outcome))))
        if outcome.bug:
            bugs[outcome.bug].add(outcome.job.clip)
        if outcome.status == "stopped" or len(bugs[outcome.bug]) >= SAME_BUG_LIMIT:
            stopped = stopped or outcome

    while True:
        while in_flight < WINDOW * executor.slots and not stopped and not stopping():
            job = todo.pop() if todo else next(new, None)
            if job is None:
                break
            if done := recorded(job, store, reuse_rejected=reuse_rejected):
                finish(done)
            else:
                executor.submit(job)
                in_flight += 1
        if stopped or stopping():
            in_flight -= executor.drop_waiting()
        if not in_flight:
            return Drive(interrupted=stopping() and not stopped, stopped=stopped)
        tick(executor.progress())
        for outcome in executor.wait(TICK_S):
            in_flight -= 1
            finish(outcome)


class Inline:
    """Jobs run one after another in this process: for tests and debuggers."""

    def __init__(self, root: Path) -> None:
        self.slots = 1
        self.root = root
        self.queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self.queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        return [run_job(self.queue.popleft(), self.root)] if self.queue else []

    def progress(self) -> list[tuple[str, int, int]]:
        return []

    def drop_waiting(self) -> int:
        count = len(self.queue)
        self.queue.clear()
        return count

    def close(self) -> None:
        self.queue.clear()


class Workers:
    """A fixed number of worker processes, each kept for many jobs, so that torch is imported once in each.

    They are started as `python -m longtake.pipelines.executors`, not by multiprocessing: that needs no
    `if __name__ == "__main__"` in the user's script and inherits no locks.
    """

    def __init__(self, root: Path, *, jobs: int, log: Path | None = None) -> None:
        self.slots = jobs
        self.root = root
        self.log = log
        self.queue: deque[Job] = deque()
        self.workers = [_Worker(self.root, jobs, log) for _ in range(jobs)]

    def submit(self, job: Job) -> None:
        self.queue.append(job)
        self._feed()

    def wait(self, timeout_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + timeout_s
        while not outcomes and any(w.job for w in self.workers) and (left := deadline - time.monotonic()) > 0:
            ready = wait_for([w.connection for w in self.workers if w.job], left)
            for worker in list(self.workers):
                if worker.connection in ready and (outcome := self._receive(worker)):
                    outcomes.append(outcome)
            self._feed()
        return outcomes

    def progress(self) -> list[tuple[str, int, int]]:
        return [(f"{w.job.clip}: {w.job.stage.name}", w.frames[0], w.frames[1]) for w in self.workers if w.job]

    def drop_waiting(self) -> int:
        count = len(self.queue)
        self.queue.clear()
        return count

    def close(self) -> None:
        self.queue.clear()
        for worker in self.workers:
            worker.stop()

    def _feed(self) -> None:
        for worker in self.workers:
            if not worker.job and self.queue:
                worker.start_job(self.queue.popleft())

    def _receive(self, worker: _Worker) -> Outcome | None:
        job = worker.job
        assert job is not None
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self.workers[self.workers.index(worker)] = _Worker(self.root, self.slots, self.log)
            return _after_death(job, self.root, worker.process.wait())
        if isinstance(message, Outcome):
            worker.job = None
            return message
        worker.frames = message
        return None


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
        self.job, self.frames = job, (0, 0)
        self.connection.send(job)

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


def _after_death(job: Job, root: Path, code: int) -> Outcome:
    """The outcome of a job whose worker is gone; the job may have left a result or a refusal just before."""
    if Artifacts(root).has(job.key):
        return run_job(job, root)  # finds it
    if code == -signal.SIGKILL:  # the kernel's answer to memory that ran out
        return Outcome(
            job=job, status="failed", reason="out_of_memory", message=f"{job.stage.name} was killed by the system"
        )
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Outcome(job=job, status="failed", reason="crashed", message=f"{job.stage.name} crashed its process ({name})")


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
    """Jobs as Ray tasks. Results are files in a folder that all nodes see: a lost node loses only what it was doing."""

    def __init__(self, root: Path, *, jobs: int, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
        self.task: Any = ray.remote(run_job)
        self.running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        need = job.stage.resources
        memory = {"memory": need.memory_bytes} if need.memory_bytes else {}
        task = self.task.options(
            num_cpus=need.cpus, num_gpus=need.gpus, max_retries=2, retry_exceptions=False, name=job.stage.name, **memory
        )
        self.running[task.remote(job, self.root, may_exit=True)] = job

    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self.running:
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=timeout_s)
        if ready:  # and whatever else is done by now, without waiting for it
            ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        return [self._outcome(reference) for reference in ready]

    def progress(self) -> list[tuple[str, int, int]]:
        return []

    def drop_waiting(self) -> int:
        return 0  # Ray does not tell which have begun

    def close(self) -> None:
        self.running.clear()
        if self.started_here:
            self.ray.shutdown()

    def _outcome(self, reference: Any) -> Outcome:
        job = self.running.pop(reference)
        lost = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except lost.OutOfMemoryError as error:
            return Outcome(job=job, status="failed", reason="out_of_memory", message=str(error).partition("\n")[0])
        except lost.RayTaskError as error:  # it could not be unpacked there: another version, another environment
            text = f"{job.stage.name}: {str(error).strip().splitlines()[-1]}"
            return Outcome(job=job, status="failed", reason="internal_error", message=text, trace=str(error), bug=text)
        except lost.RayError as error:
            if Artifacts(self.root).has(job.key):
                return run_job(job, self.root)
            text = f"{job.stage.name}: the worker died again and again ({type(error).__name__})"
            return Outcome(job=job, status="failed", reason="crashed", message=text, trace=str(error))


def _knock(address: str | None) -> None:
    """Raise OSError where nobody answers at host:port: Ray itself would wait for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


if __name__ == "__main__":
    _worker_main(int(sys.argv[1]), Path(sys.argv[2]))
