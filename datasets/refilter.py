"""Judging a manifest again: another profile, scores from other tools, and how many clips each rule drops.

Nothing is measured again: rows hold every number that profiles look at. Scores that longtake does not measure (DOVER,
counts of a vision-language model, captions) join by clip id from Parquet, JSON lines, or the {id: score} tables of
SANA-WM's trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..records import LongtakeError
from .filters import DropCount, DropRates, judge, row_values, verdict_columns
from .formats.sana_wm import SCORES
from .safe import finite, open_parquet, parse_json, read_text, told
from .schema import SCHEMA

if TYPE_CHECKING:
    import pyarrow.compute as pc

    from .manifest import Manifest

NUMBERS = (
    "dover num_entities vlm_quality vmaf_motion flow_px saturation luma blur num_cuts masked_ratio dyn_ratio".split()
)
TEXTS = ("caption", "caption_model", "split", "group_id")
IDS = ("clip_id", "id", "key")
MAX_TEXT = 100_000  # characters of one caption
BATCH = 4096  # rows committed at once
OPEN = {  # what a row says that no profile has judged
    "status": "ok",
    "filter_profile": None,
    "filter_reasons": [],
    "filter_not_measured": None,
    "filter_values": None,
}


@dataclass(frozen=True, kw_only=True)
class Refiltered:
    """What judging a manifest again came to."""

    rates: DropRates | None  # None where the profile is none
    rows: int  # looked at
    changed: int  # with another verdict or a new score; not written in a dry run
    scored: int  # that a score joined
    scores_without_clip: int  # ids of the score files that the manifest does not have


def read_scores(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """clip id -> column -> value, of all these files together.

    Files: .parquet and .jsonl with a column of IDS and any of NUMBERS, TEXTS or the trainer's names for them; .json
    with {id: {name: value}}, or {id: value} in a file that ends on the name, such as clips_dover_score.json.

    Raises:
        LongtakeError: a file that cannot be read, an unknown column, a value of another kind, an id twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for number, (clip_id, values) in enumerate(_entries(path), 1):
            where = f"{path}: entry {number}"
            if not isinstance(clip_id, str) or not clip_id:
                raise LongtakeError(f"{where} has no clip id; it stands under one of {', '.join(IDS)}.")
            into = found.setdefault(clip_id, {})
            for name, value in values.items():
                column = SCORES.get(name, name)
                if value is None:
                    continue
                if column in into:
                    raise LongtakeError(f"{where}: {column} of clip {clip_id} is given twice.")
                into[column] = _checked(column, value, where)
    return found


def refilter(
    manifest: Manifest,
    profile: str | None,
    source: str | None = None,
    *,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    where: pc.Expression | None = None,
    dry_run: bool = False,
) -> Refiltered:
    """Judge the rows of a manifest by a profile, and commit those whose verdict or scores are new.

    Args:
        profile: a name or a .toml file; None takes back whatever verdict rows have.
        scores: of `read_scores`; they are written to the rows before these are judged.
        where: which rows; all without it.
        dry_run: only count.

    Raises:
        LongtakeError: unknown profile or source.
    """
    count = DropCount(profile, source) if profile is not None else None
    joined: set[str] = set()
    waiting: list[dict[str, Any]] = []
    seen = changed = 0
    for row in manifest.rows(filter=where):
        seen += 1
        extra = dict((scores or {}).get(row["clip_id"], {}))
        if extra:
            joined.add(row["clip_id"])
        after = row | extra
        if row["status"] == "failed":
            if count is not None:
                count.failed += 1
        elif count is not None:
            verdict = judge(count.profile, source, row_values(after))
            count.add(verdict)
            after |= verdict_columns(verdict)
        else:
            after |= OPEN
        if any(after[name] != row[name] for name in (*OPEN, *extra)):
            changed += 1
            if not dry_run:
                waiting.append(after)
        if len(waiting) >= BATCH:
            manifest.append(waiting)
            waiting = []
    if waiting:
        manifest.append(waiting)
    return Refiltered(
        rates=count.rates() if count is not None else None,
        rows=seen,
        changed=changed,
        scored=len(joined),
        scores_without_clip=len(set(scores or ()) - joined - (manifest.ids() if where is not None else set())),
    )


def _entries(path: Path) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".jsonl":
        return [_line(line, path, n) for n, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if path.suffix == ".json":
        with told(path):
            tree = parse_json(read_text(path))
        if not isinstance(tree, dict):
            raise LongtakeError(f"{path} is no table of scores by clip id.")
        name = next((n for n in (*SCORES, *NUMBERS, *TEXTS) if path.stem.endswith(n)), None)
        return [(i, v if isinstance(v, dict) else _named(name, v, path)) for i, v in tree.items()]
    raise LongtakeError(f"{path}: scores are read from .parquet, .jsonl or .json files.")


def _parquet(path: Path) -> list[tuple[Any, dict[str, Any]]]:
    with open_parquet(path) as file:
        rows = file.read().to_pylist()
    return [_split(row) for row in rows]


def _line(line: str, path: Path, number: int) -> tuple[Any, dict[str, Any]]:
    with told(f"{path}: line {number}"):
        tree = parse_json(line)
    if not isinstance(tree, dict):
        raise LongtakeError(f"{path}: line {number} is no JSON table.")
    return _split(tree)


def _split(row: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    key = next((name for name in IDS if name in row), None)
    return (row[key], {n: v for n, v in row.items() if n != key}) if key is not None else (None, row)


def _named(name: str | None, value: Any, path: Path) -> dict[str, Any]:
    if name is None:
        raise LongtakeError(
            f"{path} holds values without names: end the file's name on one, such as clips_dover_score.json. "
            f"Names: {', '.join((*SCORES, *NUMBERS, *TEXTS))}."
        )
    return {name: value}


def _checked(column: str, value: Any, where: str) -> Any:
    if column in TEXTS:
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise LongtakeError(f"{where}: {column} is no text of at most {MAX_TEXT} characters.")
        return value
    if column not in NUMBERS:
        raise LongtakeError(
            f"{where}: a score {column} has no column that others may fill. There are "
            f"{', '.join((*NUMBERS, *TEXTS))}, and SANA-WM's names {', '.join(SCORES)}."
        )
    if isinstance(value, bool) or finite(value):
        return int(value) if pa.types.is_integer(SCHEMA.field(column).type) else float(value)
    raise LongtakeError(f"{where}: {column} is {str(value)[:80]}, no number.")
