"""A stage, the artifacts it leaves, and how one job of it is run.

A `Stage` is a pure function from records to a record or to a counted refusal. Its result is kept under a key made of
what went in (content, stage, version, the configuration it reads, the keys of the stages before), so a rerun finds what
is done and repeats nothing:

    <out>/artifacts/<k[:2]>/<k>/arrays.npz   the arrays of the record
    <out>/artifacts/<k[:2]>/<k>/file0.zip    a file that the record names by its `Path`
    <out>/artifacts/<k[:2]>/<k>/result.json  everything else; present means done

All are written to a folder of another name, synced, and renamed into place at once: readers see all or nothing, and of
two writers of one key the second loses harmlessly. Beside its value a result keeps the call that gave it, so that the
call can be made again (`replay`).

A pipeline declares its stages as a `Graph`; its jobs are linked as the graph says, wherever they run.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import re
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ..records import BadMedia, LongtakeError, Rejected
from .config import digest, to_tree

TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EINTR}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
RETRY_SECONDS = (0.2, 1.0, 5.0)  # waits between tries of a job whose input or output failed for a passing reason

SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
FILE_NAME = re.compile(r"file[0-9]+(\.[a-z0-9]{1,8})?")
OWNER = re.compile(r"\.tmp-.*-(?P<space>[0-9a-f]{12})-(?P<pid>[0-9]+)-[0-9a-f]{32}")

Progress = Callable[[int, int], None]  # frames done, frames in all
Status = Literal["ok", "rejected", "failed", "stopped"]  # stopped: this run cannot go on (a full disk)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job of a stage occupies. Ray schedules by all of it; the local executor by slots and memory."""

    cpus: float = 1.0
    gpus: float = 0.0  # 0.5: two share a GPU
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A named step. Raise `version` whenever the same input may give another result."""

    name: str
    version: int
    fn: Callable[..., object]  # fn(*inputs, progress=...) -> record | Rejected; importable by name in another process
    resources: Resources = field(default_factory=Resources)
    resident: bool = False  # loads networks, which then stay: on Ray it runs in actors, not in tasks

    def key(self, content: str, config: object, upstream: tuple[str, ...] = ()) -> str:
        """The name of the artifact: sha256 of all that the result depends on, 64 hex digits."""
        return digest([content, self.name, self.version, to_tree(config), list(upstream)])


@dataclass(frozen=True, kw_only=True)
class Ref:
    """An input that another stage left in the store: jobs carry its key, not its arrays."""

    key: str


@dataclass(frozen=True)
class Graph:
    """The stages of a pipeline as it is declared: chains, each of which is begun for every item that the last stage of
    the chain before has found. Within a chain a stage follows the one before it, unless that refuses.
    """

    chains: tuple[tuple[Stage, ...], ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for chain in self.chains for stage in chain)

    def link(self, *jobs: Job) -> Job:
        """The first of these jobs, which the others follow one by one.

        Raises:
            ValueError: their stages do not follow each other in one of the chains.
        """
        names = [job.stage.name for job in jobs]
        for chain in self.chains:
            order = [stage.name for stage in chain if stage.name in names]
            if names == order:
                break
        else:
            raise ValueError(f"no chain of the graph has the stages {' > '.join(names)} in this order")
        *earlier, linked = jobs
        for job in reversed(earlier):
            linked = replace(job, then=linked)
        return linked


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One call of a stage. Small enough to send anywhere: records travel as `Ref`s."""

    stage: Stage
    key: str
    inputs: tuple[object, ...]
    clip: str  # what a person calls it: path and shot
    limit_s: float = float("inf")  # longer than this and the job is taken for hung
    then: Job | None = None  # follows where this one gives a result, and not where it gives a refusal

    def chain(self) -> Iterator[Job]:
        """This job and all that follow it."""
        job: Job | None = self
        while job:
            yield job
            job = job.then


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a job. The record itself lies in the store."""

    job: Job
    status: Status
    reason: str = ""  # snake_case, for the manifest
    message: str = ""
    trace: str = ""  # the traceback of an unexpected exception
    bug: str = ""  # what makes two unexpected exceptions the same one
    seconds: float = 0.0
    resumed: bool = False  # found in the store, nothing was run


class Artifacts:
    """The folder of results, by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        return self.root / f"{key[:2]}/{key}"

    def has(self, key: str) -> bool:
        return (self.folder(key) / "result.json").is_file()

    def load(self, key: str) -> Any:
        """The record, list, dictionary or `Rejected` stored under `key`.

        Raises:
            KeyError: nothing is stored there.
        """
        folder = self.folder(key)
        try:
            tree = json.loads((folder / "result.json").read_text(encoding="utf-8"))["value"]
        except FileNotFoundError as error:
            raise KeyError(key) from error
        return decode(tree, self._arrays(folder), folder)

    def save(
        self, key: str, value: object, about: dict[str, object] | None = None, inputs: Sequence[object] = ()
    ) -> None:
        """Store a value under its key, all or nothing; does nothing harmful where another writer was first.

        Files that the value names are moved in; the paths that it has are then of no use, those of `load` are.

        Args:
            about: plain values that tell of the call.
            inputs: of the call, for `replay`.
        """
        folder = self.folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.parent / temporary_name(key[:16])
        temporary.mkdir()
        try:
            arrays: dict[str, NDArray[Any]] = {}
            files: dict[str, Path] = {}
            tree = encode(value, arrays, files)
            called_with = encode(list(inputs), arrays)
            for name, path in files.items():
                shutil.move(path, temporary / name)
                with open(temporary / name, "rb") as file:
                    os.fsync(file.fileno())
            if arrays:
                with open(temporary / "arrays.npz", "wb") as file:
                    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
                    _sync(file)
            text = json.dumps({"about": about or {}, "inputs": called_with, "value": tree}, allow_nan=False)
            with open(temporary / "result.json", "w", encoding="utf-8") as file:
                file.write(text)
                _sync(file)
            sync_folder(temporary)
            while True:
                try:
                    temporary.rename(folder)
                    sync_folder(folder.parent)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    if self.has(key):  # another writer was first
                        break
                    self.drop(key)  # what a power cut left of a result
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def refuse(self, outcome: Outcome) -> None:
        """Put a job on record that failed without a word of its own: only `--retry-failed` tries it again."""
        job = outcome.job
        refused = Rejected(stage=job.stage.name, reason=outcome.reason, message=outcome.message)
        self.save(job.key, refused, _about(job, outcome.seconds), job.inputs)

    def about(self, key: str) -> dict[str, Any]:
        """Stage, version, clip and seconds of a stored result."""
        return json.loads((self.folder(key) / "result.json").read_text(encoding="utf-8"))["about"]

    def inputs(self, key: str) -> list[Any]:
        """What the call was given that left this result; `Ref`s name results of other stages."""
        folder = self.folder(key)
        tree = json.loads((folder / "result.json").read_text(encoding="utf-8"))["inputs"]
        return decode(tree, self._arrays(folder))

    def keys(self) -> Iterator[str]:
        """Of all results, in no order."""
        for path in self.root.glob("??/*/result.json"):
            if not path.parent.name.startswith("."):
                yield path.parent.name

    def drop(self, key: str) -> None:
        """Forget a result at once, so that it is worked out again."""
        gone = self.root / key[:2] / temporary_name(key[:16])
        try:
            self.folder(key).rename(gone)
        except FileNotFoundError:  # another run was faster
            return
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes of this machine left unfinished. No clock is asked: clocks jump."""
        for pattern in ("*.tmp-*", "??/.tmp-*"):
            for path in self.root.glob(pattern):
                if _abandoned(path.name):
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)

    def _arrays(self, folder: Path) -> dict[str, NDArray[Any]]:
        try:
            with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError:  # the record has none
            return {}


# ---- names of unfinished things ----------------------------------------------------------------------------------


def temporary_name(kind: str, suffix: str = "") -> str:
    """A name for what is not finished: it tells whose it is, so that what a killed process leaves can be removed."""
    return f".tmp-{kind}-{_process_space()}-{os.getpid()}-{uuid4().hex}{suffix}"


def _abandoned(name: str) -> bool:
    """Whether the process is gone that made a thing of this name; False where that cannot be known."""
    match = OWNER.search(name)
    if not match or match["space"] != _process_space():
        return False
    return not is_running(int(match["pid"]))


def is_running(pid: int) -> bool:
    """Whether there is such a process on this machine, and it has not ended."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # ended, nobody has asked
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    except FileNotFoundError:  # ended meanwhile, or this is no Linux
        return not Path("/proc/self/stat").exists()


@lru_cache
def _process_space() -> str:
    """Where a process id means the same process: a machine, and on it a container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return digest([socket.gethostname(), space])[:12]


def run_job(job: Job, root: Path, progress: Progress | None = None, *, may_exit: bool = False) -> Outcome:
    """Run one job where we are, store its result, and say what became of it; never raises for what a clip can cause.

    `may_exit` says that this process exists for jobs: one that outlasts its limit is put on record as a refusal and the
    process ends, for a call that hangs inside a decoder cannot be stopped otherwise.

    Bad data (`Rejected`, `BadMedia`) is a stored refusal; a passing input or output error is tried again with growing
    waits; memory that ran out and unexpected exceptions fail this clip and store nothing.
    """
    store = Artifacts(root)
    if not may_exit or not np.isfinite(job.limit_s):
        return _run_job(job, store, progress)
    watchdog = threading.Timer(job.limit_s, _give_up, (job, store))
    watchdog.daemon = True
    watchdog.start()
    try:
        return _run_job(job, store, progress)
    finally:
        watchdog.cancel()


def _give_up(job: Job, store: Artifacts) -> None:
    message = f"{job.stage.name} had not finished after {job.limit_s:.0f} s"
    refused = Rejected(stage=job.stage.name, reason="timed_out", message=message)
    store.save(job.key, refused, _about(job, job.limit_s), job.inputs)
    os._exit(1)


def _run_job(job: Job, store: Artifacts, progress: Progress | None) -> Outcome:
    started = time.monotonic()
    if done := recorded(job, store):  # another run, or the try before this one, was here
        return done
    for wait_s in (*RETRY_SECONDS, None):
        try:
            value = _result(job, store, progress)
        except OSError as error:
            if error.errno in TRANSIENT and wait_s is not None:
                time.sleep(wait_s)
                continue
            if error.errno in FULL:
                return _outcome(job, started, "stopped", "disk_full", f"cannot write {store.root}: {error.strerror}")
            trace = "".join(traceback.format_exception(error))
            return _outcome(job, started, "failed", "io_error", str(error), trace=trace)
        except MemoryError:
            return _outcome(job, started, "failed", "out_of_memory", f"{job.stage.name} ran out of memory")
        except Exception as error:  # the border of a clip: one clip's surprise must not cost the others
            return _unexpected(job, started, error)
        if isinstance(value, Rejected):
            return _outcome(job, started, "rejected", value.reason, value.message)
        return _outcome(job, started, "ok")
    raise AssertionError("the last try returns")


def recorded(job: Job, store: Artifacts, *, reuse_rejected: bool = True) -> Outcome | None:
    """The outcome of a job that was done before, or None; with `reuse_rejected` False a refusal is forgotten."""
    if not store.has(job.key):
        return None
    value: object = store.load(job.key)
    if not isinstance(value, Rejected):
        return Outcome(job=job, status="ok", resumed=True)
    if reuse_rejected:
        return Outcome(job=job, status="rejected", reason=value.reason, message=value.message, resumed=True)
    store.drop(job.key)
    return None


def _result(job: Job, store: Artifacts, progress: Progress | None) -> object:
    """Work out the job's record and store it."""
    inputs = [store.load(i.key) if isinstance(i, Ref) else i for i in job.inputs]
    started = time.monotonic()
    try:
        value = job.stage.fn(*inputs, progress=progress)
    except BadMedia as error:
        value = Rejected(stage=job.stage.name, reason=error.reason, message=str(error))
    store.save(job.key, value, _about(job, time.monotonic() - started), job.inputs)
    return value


def _about(job: Job, seconds: float) -> dict[str, object]:
    fn = f"{job.stage.fn.__module__}:{job.stage.fn.__qualname__}"
    words = {"stage": job.stage.name, "version": job.stage.version, "fn": fn, "clip": job.clip}
    return {**words, "seconds": round(seconds, 3)}


def _outcome(
    job: Job, started: float, status: Status, reason: str = "", message: str = "", trace: str = "", bug: str = ""
):
    seconds = time.monotonic() - started
    return Outcome(job=job, status=status, reason=reason, message=message, trace=trace, bug=bug, seconds=seconds)


def _unexpected(job: Job, started: float, error: Exception) -> Outcome:
    text = str(error) or type(error).__name__
    if isinstance(error, LongtakeError):  # said in words already, and about this clip
        return _outcome(job, started, "failed", "failed_" + job.stage.name, text)
    last = traceback.extract_tb(error.__traceback__)[-1]
    bug = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    trace = "".join(traceback.format_exception(error))
    return _outcome(job, started, "failed", "internal_error", f"{bug}: {text}", trace=trace, bug=bug)


def encode(value: object, arrays: dict[str, NDArray[Any]], files: dict[str, Path] | None = None) -> Any:
    """A value as plain JSON; its arrays go to `arrays`, its files to `files`, and the JSON names them.

    Without `files` a `Path` stays the path that it is.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:  # an object array would be a pickle
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"$array": name}
    if isinstance(value, Path) and files is None:
        return {"$path": str(value)}
    if isinstance(value, Path):
        assert files is not None
        name = f"file{len(files)}{value.suffix if SUFFIX.fullmatch(value.suffix) else ''}"
        files[name] = value
        return {"$file": name}
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, arrays, files) for item in value]}
    if isinstance(value, list):
        return [encode(item, arrays, files) for item in value]
    if isinstance(value, dict):
        return {"$dict": [[encode(k, arrays, files), encode(v, arrays, files)] for k, v in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        fields = {f.name: encode(getattr(value, f.name), arrays, files) for f in dataclasses.fields(value)}
        return {"$record": kind, "fields": fields}
    raise TypeError(f"cannot store a {type(value).__name__} in an artifact")


def decode(tree: Any, arrays: dict[str, NDArray[Any]], folder: Path | None = None) -> Any:
    """The inverse of `encode`. Only longtake's own dataclasses are made, by their constructors, which check them; only
    files that lie in `folder` itself are named, and without it plain paths."""
    if isinstance(tree, list):
        return [decode(item, arrays, folder) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$float" in tree:
        return float(tree["$float"])
    if "$array" in tree:
        return arrays[tree["$array"]]
    if "$path" in tree and folder is None:
        return Path(tree["$path"])
    if "$file" in tree:
        return _file_in(folder, tree["$file"])
    if "$tuple" in tree:
        return tuple(decode(item, arrays, folder) for item in tree["$tuple"])
    if "$dict" in tree:
        return {decode(k, arrays, folder): decode(v, arrays, folder) for k, v in tree["$dict"]}
    module, _, name = tree["$record"].partition(":")
    if module.partition(".")[0] != __name__.partition(".")[0]:
        raise TypeError(f"{tree['$record']} is no record of longtake")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{tree['$record']} is no record")
    return cls(**{field_name: decode(item, arrays, folder) for field_name, item in tree["fields"].items()})


def _file_in(folder: Path | None, name: object) -> Path:
    """The file of this name that `encode` gave it, in the folder and no link out of it."""
    if folder is None or not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise TypeError(f"an artifact names a file {name!r}, which is not its own")
    path = folder.absolute() / name
    if path.is_symlink() or not path.is_file():
        raise TypeError(f"an artifact names {path}, which is no plain file")
    return path


def keep_file(file: Path, target: Path) -> None:
    """Put a stored file at a place of its own, at once and without a second copy where the disk allows that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(temporary_name("keep"))
    try:
        try:
            os.link(file, fresh)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, fresh)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Replace a small text file at once: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            _sync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
