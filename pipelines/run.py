"""What every run does, whichever its stages are: jobs are driven to their end, Ctrl-C drains, the books are closed."""

from __future__ import annotations

import glob
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

from ..datasets.report import write_report
from ..records import LongtakeError
from .config import MissingPart, RunStopped, UsageError, digest
from .display import Display
from .executors import drive, make_executor
from .ledger import Ledger, Run
from .stages import Artifacts, Graph, Job, Outcome, temporary_name


def check_executor(executor: str, jobs: int | None, address: str | None, max_failed_ratio: float | None = None) -> None:
    """Raises UsageError for what cannot be asked of an executor or of a run."""
    if max_failed_ratio is not None and not 0 <= max_failed_ratio <= 1:
        raise UsageError(f"the largest share of clips that may fail lies between 0 and 1, not at {max_failed_ratio}")
    if executor not in ("local", "ray"):
        raise UsageError(f"executor is local or ray, not {executor!r}")
    if address is not None and executor != "ray":
        raise UsageError("an address is of a Ray cluster: choose the executor ray with it")
    if jobs is not None and jobs < (executor == "ray"):
        raise UsageError(f"cannot run {jobs} jobs at the same time")


def carry_out(
    first: Iterable[Job],
    after: Callable[[Outcome], Iterable[Job]],
    *,
    ledger: Ledger,
    store: Artifacts,
    executor: str,
    jobs: int | None,
    address: str | None,
    retry_failed: bool,
    report: bool,
    graph: Graph | None = None,
    max_failed_ratio: float | None = None,
) -> Run:
    """Run the first jobs and all that follow from their outcomes, commit the rows, close the books.

    Args:
        first, after: as for `executors.drive`.
        jobs: at the same time. For local 1 by default, and 0 means in this very process; for ray as many as CPUs.
        retry_failed: forget the refusals on record.
        report: write report.html into the manifest's folder, unless the run was interrupted.
        graph: the pipeline's stages, in the order in which they are shown.
        max_failed_ratio: stop where more than this share of the clips has failed; looked at from
            `ledger.MIN_CLIPS_JUDGED` clips on. None: go on whatever fails.

    Raises:
        LongtakeError: going on was pointless, or rows or the report cannot be written.
    """
    display = ledger.display
    ledger.name_stages(graph.stages if graph else ())
    store.sweep()
    pool = None
    quiet = ExitStack()
    try:
        if executor == "ray":  # it prints what befalls its workers; standard output is for what was asked for
            log = quiet.enter_context(open(ledger.log, "a", encoding="utf-8", errors="backslashreplace"))
            quiet.enter_context(redirect_stdout(log))
        count = jobs if jobs is not None else (0 if executor == "ray" else 1)
        pool = make_executor(executor, store.root, jobs=count, address=address, log=ledger.log)
        with _draining(display) as stopping:
            end = drive(
                pool,
                store,
                first,
                after,
                reuse_rejected=not retry_failed,
                stopping=lambda: stopping() or ledger.too_many_failed(max_failed_ratio),
                tick=ledger.tick,
                counts=ledger.stages,
            )
        ledger.commit()
        cut_off = end.stopped or (end.interrupted and ledger.is_unfinished)
        if not cut_off:
            ledger.tidy()
    except BaseException:
        with suppress(OSError):  # a full disk may be what broke it
            ledger.close("broken")
        raise
    finally:
        if pool:
            pool.close()
            store.sweep()  # what killed workers left
        quiet.close()
        display.close()
    if end.stopped:
        ledger.close("stopped")
        raise _why_stopped(end.stopped, ledger.log)
    if cut_off and ledger.too_many_failed(max_failed_ratio):
        ledger.close("stopped")
        raise RunStopped(
            f"Stopped: {ledger.failed} of {len(ledger.done)} clips failed, more than a share of {max_failed_ratio:g}. "
            f"Their rows say why; tracebacks are in {ledger.log}. The same command goes on where it stopped, with "
            "another --max-failed-ratio, or with --retry-failed once it is mended."
        )
    run = ledger.close("interrupted" if cut_off else "finished")
    if not report or cut_off:
        return run
    try:
        return replace(run, report=write_report(ledger.out))
    except LongtakeError as error:
        raise MissingPart(str(error)) from error


def scratch_file(folder: Path, kind: str, suffix: str) -> Path:
    """A name for a file that a job writes before it is stored; what a killed job leaves is swept away by later runs."""
    return folder / temporary_name(kind, suffix)


def given_file(pattern: str, source: str) -> Path:
    """The file or folder given for a source: `{folder}` and `{stem}` in the pattern are the source's own."""
    path = Path(source)
    return Path(pattern.replace("{folder}", str(path.parent)).replace("{stem}", path.stem)).absolute()


def fingerprint(source: str) -> str:
    """What tells whether a file has changed without reading it: path, sizes and times of last change.

    For a folder or a pattern: of every file in it.
    """
    if os.path.isdir(source):
        files = [entry.path for entry in os.scandir(source) if entry.is_file()]
    else:
        files = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
    stats = [(file, os.stat(file)) for file in sorted(files)]
    return digest([os.path.abspath(source), [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]])


@contextmanager
def _draining(display: Display) -> Iterator[Callable[[], bool]]:
    """While open, the first Ctrl-C only asks to stop, the second interrupts; signals reach the main thread alone."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        display.note("stopping: finishing what runs. Ctrl-C again stops at once; nothing on record is lost either way")

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _why_stopped(outcome: Outcome, log: Path) -> LongtakeError:
    if outcome.status == "stopped":
        return MissingPart(f"{outcome.message}. Make room and run the same command: it goes on where it stopped.")
    return RunStopped(
        f"Stopped: the same unexpected error in several clips, so it is not the clips. {outcome.message}. "
        f"Tracebacks are in {log}. Once it is mended, the same command with --retry-failed goes on."
    )
