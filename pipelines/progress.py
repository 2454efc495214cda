"""How far a run is: the jobs of each stage, and what they say of the whole. For ledger, executors and displays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stages import Job, Outcome


@dataclass
class StageCounts:
    """The jobs of one stage in a run."""

    queued: int = 0  # known and not over, those included that run
    done: int = 0
    refused: int = 0  # bad data, with its reason
    failed: int = 0  # out of memory, a crash, a bug
    resumed: int = 0  # of the three, those that were on record
    seconds: float = 0.0  # all that was worked in this run, tries and reading of inputs included
    longest_s: float = 0.0

    @property
    def worked(self) -> int:
        return self.done + self.refused + self.failed - self.resumed


class Stages(dict[str, StageCounts]):
    """Stage -> its jobs in a run, in the order of the graph; `executors.drive` tells it of them."""

    def __missing__(self, name: str) -> StageCounts:
        self[name] = counts = StageCounts()
        return counts

    def queue(self, job: Job) -> None:
        """A job is known, and with it those that follow."""
        for link in job.chain():
            self[link.stage.name].queued += 1

    def end(self, outcome: Outcome) -> None:
        """A job is over; where it gave no result, so are those that should have followed."""
        counts = self[outcome.job.stage.name]
        counts.queued -= 1
        counts.resumed += outcome.resumed
        counts.seconds += outcome.seconds
        counts.longest_s = max(counts.longest_s, outcome.seconds)
        if outcome.status == "ok":
            counts.done += 1
            return
        if outcome.status == "rejected":
            counts.refused += 1
        else:
            counts.failed += 1
        for link in outcome.job.then.chain() if outcome.job.then else ():
            self[link.stage.name].queued -= 1


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a run is."""

    seconds: float
    clips: int  # done
    known: int  # clips of the inputs that were looked at
    failed: int
    inputs_left: int
    clips_per_minute: float | None  # of this run's own; None before the first
    seconds_left: float | None
    stages: Stages
