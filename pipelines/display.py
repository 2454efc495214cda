"""What a person sees of a run: a live table on a terminal, JSON lines elsewhere. All of it goes to standard error."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any, Protocol

from .progress import State

PROGRESS_EVERY_S = 10.0  # between two lines that say how far the run is


def printable(text: str) -> str:
    """Text from outside for a terminal: what is no printable character (control codes, broken names) is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Display(Protocol):
    """Told of a run as it goes."""

    def clip(self, name: str, status: str, words: str) -> None:
        """A clip is done."""
        ...

    def note(self, words: str) -> None: ...

    def tick(self, running: list[tuple[str, int, int]], state: State) -> None:
        """Called often: (clip and stage, frames done, frames in all) of what runs; how far the run is."""
        ...

    def close(self) -> None: ...


def make_display(quiet: bool) -> Display:
    if quiet:
        return Quiet()
    return Live() if sys.stderr.isatty() else Lines()


class Quiet:
    """Says nothing; errors are exceptions."""

    def clip(self, name: str, status: str, words: str) -> None: ...
    def note(self, words: str) -> None: ...
    def tick(self, running: list[tuple[str, int, int]], state: State) -> None: ...
    def close(self) -> None: ...


class Lines:
    """One JSON object a line, for logs and pipes: `event` is clip, note or progress."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.due = time.monotonic() + PROGRESS_EVERY_S

    def clip(self, name: str, status: str, words: str) -> None:
        self._print({"event": "clip", "clip": name, "status": status} | ({"words": words} if words else {}))

    def note(self, words: str) -> None:
        self._print({"event": "note", "words": words})

    def tick(self, running: list[tuple[str, int, int]], state: State) -> None:
        self.state = state
        if time.monotonic() >= self.due:
            self._progress(state)

    def close(self) -> None:
        if self.state:
            self._progress(self.state)
        self.state = None

    def _progress(self, state: State) -> None:
        self.due = time.monotonic() + PROGRESS_EVERY_S
        self._print({"event": "progress"} | asdict(state))

    def _print(self, tree: dict[str, Any]) -> None:
        print(json.dumps(tree), file=sys.stderr, flush=True)


class Live:
    """A table of stages, what is left, and a bar for each running job."""

    COLORS = {"ok": "green", "filtered": "yellow", "failed": "red"}  # noqa: RUF012

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        self.jobs = {}
        self.live = RichLive(console=self.console, transient=True, refresh_per_second=4)
        self.live.start()

    def clip(self, name: str, status: str, words: str) -> None:
        from rich.text import Text

        tail = printable(f": {words}") if words else ""
        line = Text.assemble(printable(f"{name}: "), (status, self.COLORS.get(status, "")), tail)
        self.console.print(line)

    def note(self, words: str) -> None:
        self.console.print(printable(words), markup=False, highlight=False)

    def tick(self, running: list[tuple[str, int, int]], state: State) -> None:
        from rich.console import Group

        names = {name for name, _, _ in running}
        for name in [name for name in self.jobs if name not in names]:
            self.bars.remove_task(self.jobs.pop(name))
        for name, frames, of in running:
            if name not in self.jobs:
                self.jobs[name] = self.bars.add_task(printable(name), total=None)
            self.bars.update(self.jobs[name], completed=frames, total=of or None)
        self.live.update(Group(stage_table(state), self.bars))

    def close(self) -> None:
        self.live.stop()


def stage_table(state: State) -> Any:
    """What rich shows: a row for each stage, below them the clips, their rate, and the time left."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rate = "-" if state.clips_per_minute is None else f"{state.clips_per_minute:.1f}"
    left = "-" if state.seconds_left is None else _duration(state.seconds_left)
    failed = f" ({state.failed} failed)" if state.failed else ""
    inputs = f" + {state.inputs_left} inputs" if state.inputs_left else ""
    words = f"{state.clips} of {state.known} clips{inputs}{failed}, {rate} a minute, time left {left}"
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("done", "refused", "failed", "queued", "s a job"):
        table.add_column(name, justify="right")
    for name, counts in state.stages.items():
        each = f"{counts.seconds / counts.worked:.1f}" if counts.worked else "-"
        numbers = (counts.done, counts.refused, counts.failed, counts.queued)
        table.add_row(printable(name), *map(str, numbers), each)
    return Group(table, Text(words))


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
