"""Filter profiles: which clips are fit for training, and by which measured number each of the others is not.

A profile is a list of rules in a TOML file (`profiles/`); a rule is a manifest column that must lie in a range. A clip
that fails keeps its row, with status "filtered", the reasons, and every value beside its thresholds, so it can be
judged again without its video.
"""

from __future__ import annotations

import functools
import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import LongtakeError
from .safe import finite, read_text

INF = math.inf
ROUNDING = 1e-6  # of the bound: what float32 storage and atan may move a value that lies exactly on it
REFERENCE_SIDE_PX = 1280  # pixel thresholds of `robust` are stated for a picture whose longer side is this


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`low <= values[metric] <= high`.

    `needs` says what this installation lacks to measure the metric at all (or why a clip may not have it): a missing
    value is then reported as not measured. Without `needs` a missing value fails the clip.
    """

    metric: str
    low: float = -INF
    high: float = INF
    reason: str | None = None  # instead of <metric>_low, <metric>_high
    needs: str | None = None
    per_side: bool = False  # bounds are pixels at REFERENCE_SIDE_PX and scale with the picture


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule applied to one clip; `passed` is None where the metric was not measured."""

    name: str
    value: float | None
    low: float
    high: float
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a clip passes a profile, why not, and every number that was looked at."""

    profile: str
    source: str | None
    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Metrics of the profile that nothing measured: the verdict says nothing about them."""
        return tuple(c.name for c in self.checks if c.passed is None)

    def to_json(self) -> str:
        """`{metric: {value, min, max, passed}}`; null for an open bound, for no value, and for not measured."""
        return json.dumps(
            {
                c.name: {"value": c.value, "min": _finite(c.low), "max": _finite(c.high), "passed": c.passed}
                for c in self.checks
            },
            allow_nan=False,
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A named list of rules: those of every clip, then those of the source it comes from, where there are sources."""

    name: str
    about: str
    rules: tuple[Rule, ...]
    sources: Mapping[str, tuple[Rule, ...]]
    source_hint: str | None = None


def load_profile(path: Path) -> Profile:
    """A profile from its TOML file; `profiles/robust.toml` explains the form.

    Raises:
        LongtakeError: unreadable, or anything in it that is no rule; it says where.
    """
    try:
        tree = tomllib.loads(read_text(path, 1 << 20))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise LongtakeError(f"{path} cannot be read as TOML: {error}") from error
    known = {"about", "rules", "sources", "source_hint"}
    if unknown := tree.keys() - known:
        raise LongtakeError(f"{path}: unknown {', '.join(sorted(unknown))}; a profile has {', '.join(sorted(known))}.")
    sources = tree.get("sources", {})
    if not isinstance(sources, dict) or not all(
        isinstance(v, dict) and v.keys() <= {"rules"} for v in sources.values()
    ):
        raise LongtakeError(f"{path}: sources are tables with a list of rules, such as [sources.mine].")
    for name in ("about", "source_hint"):
        if not isinstance(tree.get(name, ""), str):
            raise LongtakeError(f"{path}: {name} is no text.")
    return Profile(
        name=path.stem,
        about=tree.get("about", ""),
        rules=_rules(tree.get("rules", []), f"{path}: rules"),
        sources={n: _rules(v.get("rules", []), f"{path}: sources.{n}") for n, v in sources.items()},
        source_hint=tree.get("source_hint"),
    )


def _rules(found: Any, where: str) -> tuple[Rule, ...]:
    if not isinstance(found, list):
        raise LongtakeError(f"{where} is no list of rules.")
    kinds = {"metric": str, "low": float, "high": float, "reason": str, "needs": str, "per_side": bool}
    out = []
    for number, tree in enumerate(found, 1):
        if not isinstance(tree, dict) or "metric" not in tree:
            raise LongtakeError(f"{where}: rule {number} has no metric.")
        for name, value in tree.items():
            kind = kinds.get(name)
            if kind is None:
                raise LongtakeError(f"{where}: rule {number} has an unknown {name}; it may have {', '.join(kinds)}.")
            if kind is float and not finite(value):
                raise LongtakeError(f"{where}: rule {number} has {name} = {value!r}, no number.")
            if kind is not float and not isinstance(value, kind):
                raise LongtakeError(f"{where}: rule {number} has {name} = {value!r}, no {kind.__name__}.")
        rule = Rule(**tree)
        if rule.low > rule.high:
            raise LongtakeError(
                f"{where}: rule {number} on {rule.metric} has low = {rule.low} above high = {rule.high}."
            )
        out.append(rule)
    return tuple(out)


_FOLDER = Path(__file__).parent / "profiles"
PROFILES = tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


@functools.cache
def _profile(name: str) -> Profile:
    if name in PROFILES:
        return load_profile(_FOLDER / f"{name}.toml")
    if name.endswith(".toml"):
        return load_profile(Path(name))
    raise LongtakeError(
        f"There is no filter profile {name!r}. Choose one of: {', '.join(PROFILES)}; or name a .toml file of rules."
    )


def rules(profile: str, source: str | None = None) -> tuple[Rule, ...]:
    """The rules of a profile for clips of one source.

    Args:
        profile: a name of PROFILES, or a .toml file.

    Raises:
        LongtakeError: no such profile, a broken file, or a source that the profile does not list, where it lists any.
    """
    found = _profile(profile)
    if not found.sources:
        return found.rules
    if source is None or source not in found.sources:
        what = "needs to know the source of the clips" if source is None else f"has no thresholds for source {source!r}"
        hint = f" ({found.source_hint})" if found.source_hint else ""
        raise LongtakeError(f"The filter profile {found.name} {what}. Choose one of: {', '.join(found.sources)}{hint}.")
    return found.rules + found.sources[source]


def judge(profile: str, source: str | None, values: Mapping[str, float | None]) -> Verdict:
    """Judge one clip.

    Args:
        values: metric -> number, as `row_values` reads them from a row; None, NaN or absent where there is none.

    Raises:
        LongtakeError: unknown profile or source.
    """
    checks, reasons = [], []
    for rule in rules(profile, source):
        value = _finite(values.get(rule.metric))
        scale = _picture_scale(values) if rule.per_side else 1.0
        low, high = rule.low * scale, rule.high * scale
        passed: bool | None = None
        if value is not None:
            too_low, too_high = value < low - ROUNDING * abs(low), value > high + ROUNDING * abs(high)
            passed = not (too_low or too_high)
            if not passed:
                reasons.append(rule.reason or f"{rule.metric}_{'low' if too_low else 'high'}")
        elif rule.needs is None:
            passed = False
            reasons.append(f"{rule.metric}_unknown")
        checks.append(Check(name=rule.metric, value=value, low=low, high=high, passed=passed))
    return Verdict(
        profile=profile, source=source, passed=not reasons, reasons=tuple(dict.fromkeys(reasons)), checks=tuple(checks)
    )


def row_values(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a manifest row that profiles judge, with the two that a row has as words."""
    values = {name: _finite(v) for name, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if row.get("motion_class") is not None:
        values["is_static"] = float(row["motion_class"] == "static")
    if row.get("focal_status") is not None:
        values["focal_undetermined"] = float(row["focal_status"] == "undetermined")
    return values


def judged(row: dict[str, Any], profile: str, source: str | None = None) -> dict[str, Any]:
    """The row with the profile's verdict in its filter columns; a failed row stays as it is, for it has no values."""
    rules(profile, source)  # a wrong profile is an error also where every clip has failed
    if row["status"] == "failed":
        return row
    return row | verdict_columns(judge(profile, source, row_values(row)))


def verdict_columns(verdict: Verdict) -> dict[str, Any]:
    """The filter columns of a row that was judged so."""
    name = _profile(verdict.profile).name
    return {
        "status": "ok" if verdict.passed else "filtered",
        "filter_profile": name if verdict.source is None else f"{name}/{verdict.source}",
        "filter_reasons": list(verdict.reasons),
        "filter_not_measured": list(verdict.not_measured),
        "filter_values": verdict.to_json(),
    }


def camera_values(intrinsics: NDArray, width: int, height: int) -> dict[str, float]:
    """Fields of view and anisotropy of a clip.

    Args:
        intrinsics: [T, 4] fx, fy, cx, cy in pixels of width x height.

    Source: SANA-WM App. B.3: theta_x = 2 atan(W / 2 fx), anisotropy = |fx - fy| / ((fx + fy) / 2), the largest of all
    frames.
    """
    fx, fy = np.asarray(intrinsics, np.float64)[:, :2].T
    out: dict[str, float] = {}
    for axis, size, f in (("x", width, fx), ("y", height, fy)):
        fov = np.degrees(2 * np.arctan(size / (2 * f)))
        out |= {
            f"fov_{axis}_min_deg": float(fov.min()),
            f"fov_{axis}_median_deg": float(np.median(fov)),
            f"fov_{axis}_max_deg": float(fov.max()),
        }
    return out | {"focal_anisotropy": float((np.abs(fx - fy) / ((fx + fy) / 2)).max())}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of the clips that went in; checked to add up."""

    num_in: int
    ok: int
    filtered: int
    failed: int
    reasons: dict[str, int]  # how many clips had each reason; a clip may have several

    def __post_init__(self) -> None:
        if self.num_in != self.ok + self.filtered + self.failed:
            raise ValueError(
                f"{self.num_in} clips went in, but {self.ok} ok + {self.filtered} filtered + {self.failed} failed = "
                f"{self.ok + self.filtered + self.failed} came out: a clip was lost or counted twice."
            )


def summarize(rows: Iterable[Mapping[str, Any]], *, num_in: int) -> Summary:
    """Count rows (their `status` and `filter_reasons`) against the number of clips that went in.

    Raises:
        ValueError: the counts do not add up, or a row has an unknown status.
    """
    status: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows:
        status[row["status"]] += 1
        reasons.update(row["filter_reasons"] or ())
    if unknown := set(status) - {"ok", "filtered", "failed"}:
        raise ValueError(f"unknown status {sorted(unknown)}: a row is ok, filtered or failed")
    counts = {name: status[name] for name in ("ok", "filtered", "failed")}
    return Summary(num_in=num_in, reasons=dict(reasons.most_common()), **counts)


@dataclass(frozen=True, kw_only=True)
class RuleCount:
    """What one rule did to the clips that were judged."""

    metric: str
    low: float | None
    high: float | None
    judged: int  # clips that had a value, or needed one
    not_measured: int
    dropped: int
    dropped_alone: int  # clips that no other rule dropped


@dataclass(frozen=True, kw_only=True)
class DropRates:
    """How many clips a profile drops, by which rules, and how these overlap."""

    profile: str
    source: str | None
    judged: int
    dropped: int
    failed: int  # rows without values: not judged
    rules: tuple[RuleCount, ...]
    overlap: tuple[tuple[str, str, int], ...]  # clips that both rules dropped, most first


class DropCount:
    """Counts verdicts of one profile as they come."""

    def __init__(self, profile: str, source: str | None) -> None:
        self.profile, self.source = profile, source
        self.bounds = {r.metric: (_finite(r.low), _finite(r.high)) for r in rules(profile, source)}
        self.judged = self.dropped = self.failed = 0
        self.seen: Counter[str] = Counter()
        self.by: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()

    def add(self, verdict: Verdict) -> None:
        """Count one clip's verdict."""
        culprits = [check.name for check in verdict.checks if check.passed is False]
        self.judged += 1
        self.dropped += bool(culprits)
        self.seen.update(check.name for check in verdict.checks if check.passed is not None)
        self.by.update(culprits)
        self.pairs.update(combinations(culprits, 2))
        if len(culprits) == 1:
            self.alone[culprits[0]] += 1

    def rates(self) -> DropRates:
        """The counts so far."""
        found = tuple(
            RuleCount(
                metric=metric,
                low=low,
                high=high,
                judged=self.seen[metric],
                not_measured=self.judged - self.seen[metric],
                dropped=self.by[metric],
                dropped_alone=self.alone[metric],
            )
            for metric, (low, high) in self.bounds.items()
        )
        return DropRates(
            profile=_profile(self.profile).name,
            source=self.source,
            judged=self.judged,
            dropped=self.dropped,
            failed=self.failed,
            rules=found,
            overlap=tuple((a, b, n) for (a, b), n in self.pairs.most_common()),
        )


def _picture_scale(values: Mapping[str, float | None]) -> float:
    width, height = values.get("width"), values.get("height")
    if not width or not height:
        raise ValueError("the picture's width and height are needed to judge thresholds in pixels")
    return max(width, height) / REFERENCE_SIDE_PX


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
