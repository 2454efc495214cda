"""What a person sees of a run: bars on a terminal, a line per clip elsewhere. All of it goes to standard error."""

from __future__ import annotations

import sys
from typing import Protocol


def printable(text: str) -> str:
    """Text from outside for a terminal: what is no printable character (control codes, broken names) is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Display(Protocol):
    """Told of a run as it goes."""

    def clip(self, name: str, status: str, words: str) -> None:
        """A clip is done."""
        ...

    def note(self, words: str) -> None: ...

    def tick(self, running: list[tuple[str, int, int]], done: int, total: int) -> None:
        """Called often: (clip and stage, frames done, frames in all) of what runs; clips done, clips known."""
        ...

    def close(self) -> None: ...


def make_display(quiet: bool) -> Display:
    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


class Quiet:
    """Says nothing; errors are exceptions."""

    def clip(self, name: str, status: str, words: str) -> None: ...
    def note(self, words: str) -> None: ...
    def tick(self, running: list[tuple[str, int, int]], done: int, total: int) -> None: ...
    def close(self) -> None: ...


class Lines:
    """One plain line per clip, for logs and pipes."""

    def clip(self, name: str, status: str, words: str) -> None:
        print(printable(f"{name}: {status}{': ' if words else ''}{words}"), file=sys.stderr, flush=True)

    def note(self, words: str) -> None:
        print(printable(words), file=sys.stderr, flush=True)

    def tick(self, running: list[tuple[str, int, int]], done: int, total: int) -> None: ...
    def close(self) -> None: ...


class Bars:
    """A bar for the whole and one for each running job."""

    COLORS = {"ok": "green", "filtered": "yellow", "failed": "red"}  # noqa: RUF012

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.whole = self.bars.add_task("clips", total=None)
        self.jobs = {}
        self.bars.start()

    def clip(self, name: str, status: str, words: str) -> None:
        from rich.text import Text

        tail = printable(f": {words}") if words else ""
        line = Text.assemble(printable(f"{name}: "), (status, self.COLORS.get(status, "")), tail)
        self.bars.console.print(line)

    def note(self, words: str) -> None:
        self.bars.console.print(printable(words), markup=False, highlight=False)

    def tick(self, running: list[tuple[str, int, int]], done: int, total: int) -> None:
        self.bars.update(self.whole, completed=done, total=total)
        names = {name for name, _, _ in running}
        for name in [name for name in self.jobs if name not in names]:
            self.bars.remove_task(self.jobs.pop(name))
        for name, frames, of in running:
            if name not in self.jobs:
                self.jobs[name] = self.bars.add_task(printable(name), total=None)
            self.bars.update(self.jobs[name], completed=frames, total=of or None)

    def close(self) -> None:
        self.bars.stop()
