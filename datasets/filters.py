"""Filter profiles: which clips are fit for training, and by which measured number each of the others is not.

A profile is a list of rules; a rule is a manifest column that must lie in a range. A clip that fails keeps its row,
with status "filtered", the reasons, and every value beside its thresholds, so it can be judged again without its video.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import LongtakeError

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


DOVER, COUNTING = "the DOVER video-quality network", "a vision-language model"
METRIC_DEPTH = "a metric depth network (the clip has one constant scale)"

# SANA-WM (arXiv 2605.15178v1), App. B.3: the camera filters of every source ...
SANA_WM_CAMERA = (
    Rule(metric="fov_x_min_deg", low=25),
    Rule(metric="fov_x_max_deg", high=120),
    Rule(metric="fov_y_min_deg", low=25),
    Rule(metric="fov_y_max_deg", high=120),
    Rule(metric="focal_anisotropy", high=0.20),
    Rule(metric="scale_std_ratio", high=2.0, needs=METRIC_DEPTH),
)


def _visual(
    vmaf: tuple[float, float],
    flow: tuple[float, float],
    dover: tuple[float, float],
    *,
    saturation: bool,
    cuts: bool,
    entities: float | None,
) -> tuple[Rule, ...]:
    """One line of the paper's table of visual filters."""
    rules = [
        Rule(metric="vmaf_motion", low=vmaf[0], high=vmaf[1]),
        Rule(metric="flow_px", low=flow[0], high=flow[1]),
        Rule(metric="dover", low=dover[0], high=dover[1], needs=DOVER),
    ]
    if saturation:
        rules.append(Rule(metric="saturation", low=0, high=180))
    if cuts:
        rules.append(Rule(metric="num_cuts", high=1))
    if entities is not None:
        rules.append(Rule(metric="num_entities", low=0, high=entities, needs=COUNTING))
        rules.append(Rule(metric="vlm_quality", low=0.5, high=1.5, needs=COUNTING))
    return tuple(rules)


# ... and the visual filters of each.
SANA_WM_SOURCES: dict[str, tuple[Rule, ...]] = {
    "omniworld": _visual((0.5, 100), (3, 100), (0.35, 1), saturation=False, cuts=False, entities=10),
    "sekai_game": _visual((0.5, 50), (3, 80), (0.25, 1), saturation=False, cuts=False, entities=10),
    "sekai_walking": _visual((0.5, 50), (3, 50), (0.35, 1), saturation=True, cuts=False, entities=25),
    "miradata": _visual((0.5, 50), (3, 80), (0.4, 1), saturation=True, cuts=True, entities=None),
    "dl3dv_gs": _visual((6, 50), (3, 80), (0.4, 1), saturation=True, cuts=True, entities=None),
    "spatialvid": _visual((0.5, 50), (3, 80), (0.35, 1), saturation=True, cuts=False, entities=10),
}

# Ours: is the camera track to be trusted, and is there something to learn from it?
NO_TRACK = "a camera that moves and is tracked"
ROBUST = (
    Rule(metric="tracked_ratio", low=0.9, reason="frames_without_pose"),
    Rule(metric="reproj_rmse_px", high=2.5, per_side=True, needs=NO_TRACK),
    Rule(metric="sampson_px", high=1.5, per_side=True, needs=NO_TRACK),
    Rule(metric="num_tracked", low=50, reason="few_tracks"),
    Rule(metric="inlier_ratio", low=0.3, needs=NO_TRACK),
    Rule(metric="coverage", low=0.1, needs=NO_TRACK),
    Rule(metric="dyn_ratio", high=0.5, reason="mostly_moving_objects"),
    Rule(metric="jump_count", high=0, reason="pose_jumps", needs="a continuous video"),
    Rule(metric="scale_drift_log", high=math.log(1.5), reason="scale_drift", needs=METRIC_DEPTH),
    Rule(metric="luma", low=20, high=200),
    Rule(metric="blur", high=0.8, reason="blurred"),
    Rule(metric="fov_x_min_deg", low=15),
    Rule(metric="fov_x_max_deg", high=130),
    Rule(metric="focal_undetermined", high=0, reason="focal_undetermined"),
    Rule(metric="is_static", high=0, reason="static_camera"),
)

PROFILES = ("robust", "sana_wm")


def rules(profile: str, source: str | None = None) -> tuple[Rule, ...]:
    """The rules of a profile for clips of one source.

    Raises:
        LongtakeError: no such profile, or `sana_wm` without one of the sources that its paper lists.
    """
    if profile == "robust":
        return ROBUST
    if profile != "sana_wm":
        raise LongtakeError(f"There is no filter profile {profile!r}. Choose one of: {', '.join(PROFILES)}.")
    if source not in SANA_WM_SOURCES:
        what = "needs to know the source of the clips" if source is None else f"has no thresholds for source {source!r}"
        raise LongtakeError(
            f"The filter profile sana_wm {what}. Choose one of: {', '.join(SANA_WM_SOURCES)} "
            "(spatialvid is the nearest to ordinary internet video)."
        )
    return SANA_WM_CAMERA + SANA_WM_SOURCES[source]


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
    verdict = judge(profile, source, row_values(row))
    return row | {
        "status": "ok" if verdict.passed else "filtered",
        "filter_profile": profile if source is None else f"{profile}/{source}",
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


def _picture_scale(values: Mapping[str, float | None]) -> float:
    width, height = values.get("width"), values.get("height")
    if not width or not height:
        raise ValueError("the picture's width and height are needed to judge thresholds in pixels")
    return max(width, height) / REFERENCE_SIDE_PX


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
