"""The books of a run: which rows wait to be committed, what was counted, and what is kept of the run.

<out>/part-*.parquet            the manifest
<out>/artifacts/                results of stages, by key
<out>/runs/<run_id>/run.json    inputs, configuration, versions, machine, counts, jobs and seconds by stage
<out>/runs/<run_id>/config.toml the resolved configuration, to be given to --config again
<out>/runs/<run_id>/log.txt     tracebacks, and what libraries had to say
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..datasets import filters
from ..records import LongtakeError
from .config import MissingPart, config_hash, to_toml, to_tree
from .display import Display
from .progress import Stages, State
from .stages import Outcome, Stage, write_atomic

if TYPE_CHECKING:
    from ..datasets.manifest import Manifest

COMMIT_ROWS, COMMIT_S = 64, 30.0  # rows are committed when so many wait, or the oldest has waited so long
MIN_CLIPS_JUDGED = 20  # before so many clips are done, nothing is said about the share that failed
LIBRARIES = "longtake torch numpy scipy av opencv-python-headless kornia poselib pyarrow ray".split()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run did. `clips` = ok + filtered + failed + left; nothing is left unless the run was cut off."""

    run_id: str
    out: Path
    state: str  # finished, interrupted, stopped (going on was pointless) or broken
    inputs: int
    duplicates: int  # inputs with the same bytes as another: no row of their own
    clips: int
    ok: int
    filtered: int
    failed: int
    left: int
    inputs_left: int  # inputs that the run did not come to
    committed: int  # rows written by this run; the others were there
    reasons: dict[str, int]  # clips with each reason for being filtered or failed
    seconds: float
    report: Path | None = None  # the HTML page

    @property
    def folder(self) -> Path:
        return self.out / "runs" / self.run_id

    @property
    def manifest(self) -> Manifest:
        from ..datasets.manifest import open_manifest

        return open_manifest(self.out)

    def counts(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


class Ledger:
    """Counts every clip once, and commits the rows that are new or made differently from those present."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        inputs: Sequence[str],
        config: object,
        stage_versions: Mapping[str, str],
        retry_failed: bool,
        display: Display,
        about: Mapping[str, object],
    ) -> None:
        """Open the books, and write the run's configuration down before the work starts.

        Args:
            config: the root of the configuration; a row is current only if it was made with the same.
            about: what else run.json says of the run.
        """
        self.started = time.monotonic()
        self.manifest = manifest
        self.out = manifest.folder
        self.stage_versions = dict(stage_versions)
        self.retry_failed = retry_failed
        self.display = display
        self.config_hash = config_hash(config)
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid4().hex[:6]}"
        self.folder = self.out / "runs" / self.run_id
        self._look()
        self.num_inputs = len(inputs)
        self.inputs_left = len(inputs)
        self.expected = 0  # clips that must be counted before the run is over
        self.done: list[dict[str, Any]] = []
        self.failed = 0  # of them
        self.worked = 0  # of them, those whose rows this run made
        self.stages = Stages()
        self.duplicates: list[dict[str, str]] = []
        self.stage_seconds: Counter[str] = Counter()
        self.waiting: dict[str, Mapping[str, Any]] = {}
        self.waiting_since = 0.0
        self.committed = 0
        self.about: dict[str, object] = {
            "run_id": self.run_id,
            "state": "running",
            "started_at": _now(),
            "input_paths": list(inputs),
            **about,
            "config": to_tree(config),
            "config_hash": self.config_hash,
            "stage_versions": self.stage_versions,
            "versions": _versions(),
            "machine": {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
        }
        self.folder.mkdir(parents=True)
        (self.folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
        self._write()

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def _look(self) -> None:
        """Read which rows there are."""
        self.snapshot = self.manifest.snapshot().number
        columns = ["clip_id", "status", "config_hash", "stage_versions", "filter_reasons"]
        self.present: dict[str, dict[str, Any]] = {r["clip_id"]: r for r in self.manifest.table(columns).to_pylist()}

    def current(self, clip_id: str) -> dict[str, Any] | None:
        """The row of this clip that needs not be made again: same configuration, same stages; or None."""
        row = self.present.get(clip_id)
        if row is None or (row["status"] == "failed" and self.retry_failed):
            return None
        same = row["config_hash"] == self.config_hash and json.loads(row["stage_versions"]) == self.stage_versions
        return row if same else None

    def add(self, row: Mapping[str, Any], name: str, words: str) -> None:
        """Count a clip, and keep its row for the next commit unless the manifest has it."""
        self.worked += 1
        if self.current(row["clip_id"]) is None:
            self.waiting_since = self.waiting_since or time.monotonic()
            self.waiting[row["clip_id"]] = row
        self.count(row, name, words)

    def count(self, row: Mapping[str, Any], name: str, words: str) -> None:
        """Count a clip whose row is in the manifest."""
        self.done.append({"status": row["status"], "filter_reasons": row["filter_reasons"]})
        self.failed += row["status"] == "failed"
        self.display.clip(name, row["status"], words or ", ".join(row["filter_reasons"] or ()))

    def duplicate(self, source: str, first: str) -> None:
        """Count an input that repeats another."""
        self.duplicates.append({"source": source, "of": first})
        why = "named twice" if source == first else f"the same bytes as {first}, which has the rows"
        self.display.note(f"{source}: {why}")

    def note(self, source: str, outcome: Outcome) -> None:
        """Write down what a job says that has no place in a row."""
        if outcome.status in ("failed", "stopped"):
            with open(self.log, "a", encoding="utf-8", errors="backslashreplace") as log:
                print(f"{_now()} {source}: {outcome.job.stage.name}: {outcome.message}\n{outcome.trace}", file=log)

    def name_stages(self, stages: Sequence[Stage]) -> None:
        """The order in which stages are shown."""
        for stage in stages:
            self.stages[stage.name]

    def too_many_failed(self, ratio: float | None) -> bool:
        """Whether more than this share of the clips has failed."""
        return ratio is not None and len(self.done) >= MIN_CLIPS_JUDGED and self.failed > ratio * len(self.done)

    @property
    def is_unfinished(self) -> bool:
        """Whether there are inputs that nobody has looked at, or clips that are not counted."""
        return self.inputs_left > 0 or len(self.done) < self.expected

    def state(self) -> State:
        """How far the run is."""
        seconds = time.monotonic() - self.started
        looked_at = self.num_inputs - self.inputs_left
        expected = self.expected * self.num_inputs / looked_at if looked_at else 0.0  # of inputs not looked at too
        per_minute = 60 * self.worked / seconds if self.worked else None
        left_s = None if per_minute is None else max(0.0, 60 * (expected - len(self.done)) / per_minute)
        return State(
            seconds=seconds,
            clips=len(self.done),
            known=self.expected,
            failed=self.failed,
            inputs_left=self.inputs_left,
            clips_per_minute=per_minute,
            seconds_left=left_s,
            stages=self.stages,
        )

    def tick(self, running: list[tuple[str, int, int]]) -> None:
        """Show the state of things, and commit if it is time to."""
        self.display.tick(running, self.state())
        if len(self.waiting) >= COMMIT_ROWS or (self.waiting and time.monotonic() - self.waiting_since > COMMIT_S):
            self.commit()

    def commit(self) -> None:
        """Publish the rows that wait, but those that another run has published meanwhile.

        Raises:
            MissingPart: they cannot be written.
        """
        if not self.waiting:
            return
        try:
            if self.manifest.snapshot().number != self.snapshot:
                self._look()
                self.waiting = {id: row for id, row in self.waiting.items() if self.current(id) is None}
            published = self.manifest.append(self.waiting.values()).number
        except LongtakeError as error:
            raise MissingPart(str(error)) from error
        if published == self.snapshot + 1:  # else somebody was in between: look next time
            self.snapshot = published
        self.committed += len(self.waiting)
        self.waiting, self.waiting_since = {}, 0.0

    def tidy(self) -> None:
        """Join small parts, and remove what a killed writer had replaced and not removed.

        Raises:
            MissingPart: the manifest cannot be written.
        """
        try:
            self.manifest.compact()
            self.manifest.gc(math.inf)  # nothing that is being written
        except LongtakeError as error:
            raise MissingPart(str(error)) from error

    def close(self, state: str) -> Run:
        """Write the run's last words.

        Raises:
            ValueError: the run finished, but a clip was lost or counted twice.
        """
        done = filters.summarize(self.done, num_in=self.expected if state == "finished" else len(self.done))
        run = Run(
            run_id=self.run_id,
            out=self.out,
            state=state,
            inputs=self.num_inputs,
            duplicates=len(self.duplicates),
            clips=self.expected,
            ok=done.ok,
            filtered=done.filtered,
            failed=done.failed,
            left=self.expected - len(self.done),
            inputs_left=self.inputs_left,
            committed=self.committed,
            reasons=done.reasons,
            seconds=round(time.monotonic() - self.started, 3),
        )
        self.about |= {"finished_at": _now(), "duplicate_inputs": self.duplicates, **run.counts()}
        self.about["timings_s"] = {name: round(seconds, 3) for name, seconds in self.stage_seconds.items()}
        self.about["stages"] = {name: _rounded(asdict(counts)) for name, counts in self.stages.items()}
        self._write()
        return run

    def _write(self) -> None:
        write_atomic(self.folder / "run.json", json.dumps(self.about, indent=1))


def _rounded(counts: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) for name, value in counts.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
