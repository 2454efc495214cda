"""What commands print: JSON, facts and tables on standard output, complaints on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from .display import printable

Json = Annotated[bool, Parameter(help="Print JSON.")]


def complain(words: str) -> None:
    print(f"longtake: {printable(words)}", file=sys.stderr)


def print_run(run: Any) -> None:
    print(f"{run.clips} clips = {run.ok} ok + {run.filtered} filtered + {run.failed} failed", end="")
    print(f" + {run.left} left" if run.left else "", end="")
    print(f", from {run.inputs} inputs" + (f" (duplicates: {run.duplicates})" if run.duplicates else ""), end="")
    print(f", in {run.seconds:.1f} s")
    for reason, count in run.reasons.items():
        print(f"  {count} x {reason}")
    print(f"manifest: {run.out}")
    if run.report:
        print(f"report:   {run.report}")


def ending(run: Any, clips: str = "clips", inputs: str = "inputs") -> int:
    """The exit code of a run; what is left of one that was interrupted is told."""
    if run.state == "interrupted":
        left = f"{run.left} {clips} and {run.inputs_left} {inputs} left"
        complain(f"stopped with {left}. The same command goes on from here")
        return 130
    return 1 if run.failed else 0


def print_yield(run: Any) -> None:
    """What became of the candidates, by family."""
    reasons = {reason: None for row in run.families.values() for reason in row}
    print_rows({"family": name} | {r: row.get(r, 0) for r in reasons} for name, row in run.families.items())
    print(f"{run.candidates} candidates, {sum(run.rejected.values())} rejected")


def print_json(tree: object) -> None:
    print(json.dumps(tree, indent=1, default=_plain, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """NumPy arrays and numbers, times and paths as JSON has them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def print_facts(facts: Mapping[str, object]) -> None:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        words = ", ".join(f"{n} {count}" for n, count in value.items()) if isinstance(value, dict) else value
        print(f"{name:<{width}}  {'-' if words is None else printable(str(words))}")


def print_rows(rows: Iterable[Mapping[str, Any]], as_json: bool = False) -> None:
    """A table with a head, columns apart by two spaces; JSON lines where asked for."""
    if as_json:
        for row in rows:
            print(json.dumps(row, default=_plain, ensure_ascii=False))
        return
    lines: list[Sequence[str]] = []
    for row in rows:
        lines = lines or [list(row)]
        lines.append([short(value) for value in row.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def short(value: Any) -> str:
    """A value of a row in a few characters; long lists by their length."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "__len__") and not isinstance(value, str):
        return ",".join(map(str, value)) if len(value) <= 4 else f"[{len(value)} values]"
    return printable(str(value))
