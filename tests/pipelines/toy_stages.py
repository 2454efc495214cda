"""Small stages that worker processes can import: each does one thing that real stages do, or that befalls them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtake.pipelines.stages import Job, Progress, Ref, Stage
from longtake.records import BadMedia, Rejected


def count(n: int, calls: str, *, progress: Progress | None) -> dict[str, NDArray[np.int64]]:
    """0 .. n-1; each call leaves a line in the file `calls`."""
    with open(calls, "a") as file:
        file.write(f"{n}\n")
    if progress:
        progress(n, n)
    return {"numbers": np.arange(n)}


def add_up(numbers: dict[str, NDArray[np.int64]], *, progress: Progress | None) -> int | Rejected:
    if not len(numbers["numbers"]):
        return Rejected(stage="sum", reason="nothing_to_add", message="there are no numbers")
    return int(numbers["numbers"].sum())


def triple(number: int, *, progress: Progress | None) -> int:
    return 3 * number


def refuse(*, progress: Progress | None) -> None:
    raise BadMedia("not_a_video", "this is text")


def stumble(clip: str, *, progress: Progress | None) -> None:
    raise ZeroDivisionError(f"in {clip}")


def eat_memory(*, progress: Progress | None) -> None:
    raise MemoryError


def die(number: int, *, progress: Progress | None) -> None:
    os.kill(os.getpid(), signal.Signals(number))
    time.sleep(60)


def hang(*, progress: Progress | None) -> None:
    time.sleep(600)


def fail_first(marker: str, error: int, *, progress: Progress | None) -> str:
    """Fails with this errno until the marker is there."""
    if Path(marker).exists():
        return "done"
    Path(marker).touch()
    raise OSError(error, os.strerror(error))


def die_first(folder: str, times: int, *, progress: Progress | None) -> int:
    """Kills its process so many times; then says how often it was called."""
    calls = len(list(Path(folder).iterdir()))
    (Path(folder) / str(calls)).touch()
    if calls < times:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return calls + 1


def meet(folder: str, name: str, others: int, *, progress: Progress | None) -> int:
    """Waits until so many others are here at the same time, but not for ever; how many were."""
    mine = Path(folder) / name
    mine.touch()
    deadline = time.monotonic() + 30
    while (seen := len(list(Path(folder).iterdir())) - 1) < others and time.monotonic() < deadline:
        time.sleep(0.01)
    if not others:
        mine.unlink()
    return seen


LOADED: list[str] = []  # in this process


def use_network(log: str, *, progress: Progress | None) -> int:
    """Loads once in a process, and leaves a line in the file `log` when it does; which process it is."""
    if not LOADED:
        LOADED.append(log)
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
    return os.getpid()


COUNT = Stage(name="count", version=1, fn=count)
SUM = Stage(name="sum", version=1, fn=add_up)
TRIPLE = Stage(name="triple", version=1, fn=triple)


def job(
    fn, *inputs: object, name: str = "toy", clip: str = "clip", limit_s: float = float("inf"), **stage_options
) -> Job:
    stage = Stage(name=name, version=1, fn=fn, **stage_options)
    return Job(stage=stage, key=stage.key(clip, inputs), inputs=inputs, clip=clip, limit_s=limit_s)


def count_job(n: int, calls: Path) -> Job:
    return Job(stage=COUNT, key=COUNT.key(str(n), None), inputs=(n, str(calls)), clip=f"count {n}")


def sum_job(counted: Job) -> Job:
    return Job(stage=SUM, key=SUM.key("", None, (counted.key,)), inputs=(Ref(key=counted.key),), clip=counted.clip)


def triple_job(before: Job) -> Job:
    return Job(stage=TRIPLE, key=TRIPLE.key("", None, (before.key,)), inputs=(Ref(key=before.key),), clip=before.clip)
