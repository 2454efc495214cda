"""One stage again, on the inputs that a run saved: for looking into a clip that failed, or at what a change does."""

from __future__ import annotations

import hashlib
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..records import Rejected
from .config import UsageError
from .stages import Artifacts, Job, Outcome, Progress, Ref, Stage, encode, run_job

PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A call made again."""

    key: str
    stage: str
    clip: str
    outcome: Outcome
    recorded: str  # status: ok or rejected
    recorded_s: float
    seconds: float
    result: Path | None  # folder of the new result; None: the call left none
    same: bool | None  # as the result on record; None without a new one

    def facts(self) -> dict[str, Any]:
        """In words."""
        return {
            "key": self.key,
            "stage": self.stage,
            "clip": self.clip,
            "recorded": self.recorded,
            "recorded_s": self.recorded_s,
            "now": self.outcome.status,
            "seconds": round(self.seconds, 3),
            "reason": self.outcome.reason or None,
            "message": self.outcome.message or None,
            "trace": self.outcome.trace or None,
            "result": None if self.result is None else str(self.result),
            "same": self.same,
        }


def find_call(store: Artifacts, stage: str, clip: str) -> str:
    """The key of the one result of this stage for a clip with this text in its name.

    Raises:
        UsageError: there is none, or there are several; says which.
    """
    found = {}
    stages = set()
    for key in store.keys():
        about = store.about(key)
        stages.add(about["stage"])
        if about["stage"] == stage and clip in about.get("clip", ""):
            found[key] = about["clip"]
    if not stages:
        raise UsageError(f"{store.root} holds no results: give the folder that was named with --out")
    if stage not in stages:
        raise UsageError(f"no stage {stage!r} has left a result in {store.root}: there are {', '.join(sorted(stages))}")
    if len(found) != 1:
        words = "".join(f"\n  {key[:16]}  {name}" for key, name in sorted(found.items(), key=lambda item: item[1])[:20])
        count = f"{len(found)} results" if found else "no result"
        raise UsageError(f"{count} of {stage} for a clip named like {clip!r}; name one by its key or more of it{words}")
    return next(iter(found))


def find_key(store: Artifacts, beginning: str) -> str:
    """The key that begins so.

    Raises:
        UsageError: none does, or several do.
    """
    found = [key for key in store.keys() if key.startswith(beginning)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} results in {store.root} have a key that begins with {beginning!r}")
    return found[0]


def replay(store: Artifacts, key: str, out: Path, progress: Progress | None = None) -> Replay:
    """Make the call again that left a result, in this process, with the inputs that it had then.

    Nothing in the store is changed. The new result goes to the folder `out`, an artifact store like the other; the
    call is made with the code that is here, whatever its version.

    Raises:
        UsageError: the call was not saved, its stage is no longer there, or an input is not.
    """
    about = store.about(key)
    job = Job(stage=_stage(about, key), key=key, inputs=tuple(_inputs(store, key, out)), clip=about["clip"])
    there = Artifacts(out)
    there.drop(key)
    started = time.monotonic()
    outcome = run_job(job, out, progress)
    seconds = time.monotonic() - started
    left = there.has(key)
    return Replay(
        key=key,
        stage=about["stage"],
        clip=about["clip"],
        outcome=outcome,
        recorded="rejected" if isinstance(store.load(key), Rejected) else "ok",
        recorded_s=about["seconds"],
        seconds=seconds,
        result=there.folder(key) if left else None,
        same=_value(there, key) == _value(store, key) if left else None,
    )


def _stage(about: dict[str, Any], key: str) -> Stage:
    module, _, name = about.get("fn", "").partition(":")
    if module.partition(".")[0] != PACKAGE:
        raise UsageError(f"the result {key[:16]} does not tell which call left it: an earlier longtake made it")
    try:
        fn = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the stage {about['stage']} was {module}:{name}, which this longtake does not have"
        ) from error
    return Stage(name=about["stage"], version=about["version"], fn=fn)


def _inputs(store: Artifacts, key: str, out: Path) -> list[object]:
    """The inputs of the call; results of other stages are read here, for the new store does not have them."""
    try:
        inputs = store.inputs(key)
    except KeyError as error:
        raise UsageError(f"the result {key[:16]} was left without its inputs: an earlier longtake made it") from error
    try:
        loaded = [store.load(item.key) if isinstance(item, Ref) else item for item in inputs]
    except KeyError as error:
        raise UsageError(f"an input of {key[:16]} is no longer in {store.root}: run the pipeline again") from error
    out.mkdir(parents=True, exist_ok=True)
    return [str(out) if item == str(store.root) else item for item in loaded]  # where files lie until they are stored


def _value(store: Artifacts, key: str) -> object:
    """What tells two results apart: records, the bytes of arrays and of files; not the seconds that they took."""
    arrays: dict[str, NDArray[Any]] = {}
    files: dict[str, Path] = {}
    tree = encode(store.load(key), arrays, files)
    numbers = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
    return tree, numbers, {name: hashlib.sha256(path.read_bytes()).digest() for name, path in files.items()}
