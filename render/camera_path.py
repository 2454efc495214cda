"""Camera paths for minute-long clips through a scene of Gaussians.

    allowed = survey(scene, world_from_cam, intrinsics, (1297, 840))  # what the capture allows
    made = design(allowed, count=40, seed=0, draw=draw)  # candidates, checked
    made.paths, made.table

A candidate is proposed by a family (`paths.families`) from a seed, timed by arc length with eased ends, smoothed, and
measured by fourteen checks (`paths.checks`). At the first that fails the same move is made smaller, which with the
same duration also makes it slower, up to three times; then it is rejected for that reason.

`benchmark_path` follows the stricter rules of the posed-video benchmark.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..geometry import pose
from ..records import LongtakeError, Rejected
from .paths.benchmark import BenchmarkRules as BenchmarkRules
from .paths.benchmark import benchmark_path as benchmark_path
from .paths.checks import Draw as Draw
from .paths.checks import PathLimits as PathLimits
from .paths.checks import run_checks as run_checks
from .paths.families import FAMILIES, Track
from .paths.motion import rolled, smoothed, timed, upright, zoomed
from .paths.plan import Plan as Plan
from .paths.plan import draw_plan as draw_plan
from .paths.record import CameraPath as CameraPath
from .paths.record import CheckResult as CheckResult
from .paths.record import NoPath as NoPath
from .paths.revisits import revisit_pairs
from .paths.survey import Survey as Survey
from .paths.survey import derive_cameras as derive_cameras
from .paths.survey import survey as survey

EXTENTS = (1.0, 0.7, 0.49, 0.343)  # of a move, tried one after another
_PER_RADIAN = 0.3  # scene radii of travel that a radian of turning counts as
_SAME_PLACE = 0.02  # scene radii, and
_SAME_HEADING_DEG = 3.0  # how near the poses of a revisit pair are


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """The clip that a path is designed for."""

    num_frames: int = 961
    fps: float = 16.0
    width: int = 1280
    height: int = 704
    zoom: tuple[float, float] | None = None  # range that each path's ratio of focal lengths is drawn from
    roll_deg: float = 0.0  # lean asked for, largest halfway

    def __post_init__(self) -> None:
        if self.num_frames < 16 or self.fps <= 0:
            raise LongtakeError(f"{self.num_frames} frames at {self.fps} fps are no path: give 16 or more, and a rate")
        if self.zoom is not None and not 0 < self.zoom[0] <= self.zoom[1]:
            raise LongtakeError(f"zoom {self.zoom} is not a range of positive ratios, low and high")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one candidate."""

    family: str
    seed: int
    accepted: bool
    reason: str  # the check that failed on the last try, or why the family had no path; "" where accepted
    message: str  # the same in words
    extent: float  # of the last try


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Accepted paths and what became of every candidate, in the order of proposal."""

    paths: tuple[CameraPath, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def rejected(self) -> dict[str, int]:
        """Rejected candidates by reason, most frequent first."""
        return dict(Counter(o.reason for o in self.outcomes if not o.accepted).most_common())

    @property
    def table(self) -> dict[str, dict[str, int]]:
        """By family: candidates, accepted, and how many fell for each reason."""
        out: dict[str, dict[str, int]] = {}
        for o in self.outcomes:
            row = out.setdefault(o.family, {"candidates": 0, "accepted": 0})
            row["candidates"] += 1
            key = "accepted" if o.accepted else o.reason
            row[key] = row.get(key, 0) + 1
        return out


def propose(
    survey: Survey, family: str, seed: int, *, extent: float = 1.0, config: PathConfig | None = None
) -> CameraPath:
    """One family's path from a seed, not yet checked.

    The focal length is the anchor camera's, so that the picture is as wide in degrees as the training picture; pixels
    are square and the principal point lies in the middle.

    Raises:
        NoPath: the scene has no room for such a path.
        LongtakeError: the family is unknown.
    """
    if family not in FAMILIES:
        raise LongtakeError(f"path family {family!r} is none of {', '.join(FAMILIES)}")
    config = config or PathConfig()
    rng = np.random.default_rng(seed)
    track = FAMILIES[family](survey, rng, extent)
    world_from_cam = _in_time(track, survey, config)
    if config.roll_deg:
        world_from_cam = rolled(world_from_cam, config.roll_deg)
    zoom, there_and_back = 1.0, False
    optics = np.random.default_rng([seed, 1])  # apart from the family's draws: the same move with and without zoom
    if config.zoom is not None:
        zoom = float(np.exp(optics.uniform(*np.log(config.zoom))))
        there_and_back = bool(optics.random() < 0.5)
    focal = survey.intrinsics[track.anchor, 0] * config.width / survey.sizes[track.anchor, 0]
    middle = np.array([focal, focal, (config.width - 1) / 2, (config.height - 1) / 2])
    return CameraPath(
        world_from_cam=world_from_cam,
        intrinsics=zoomed(middle, config.num_frames, zoom, there_and_back=there_and_back),
        width=config.width,
        height=config.height,
        fps=config.fps,
        family=family,
        seed=seed,
        parameters={
            "anchor": track.anchor,
            "anchors": survey.anchors,
            "extent": extent,
            "zoom": zoom,
            "zoom_returns": there_and_back,
            "roll_deg": config.roll_deg,
            **track.drawn,
        },
        revisit_pairs=_revisits(track, world_from_cam, survey),
    )


def design(
    survey: Survey,
    count: int = 40,
    seed: int = 0,
    *,
    draw: Draw | None = None,
    limits: PathLimits | None = None,
    config: PathConfig | None = None,
) -> Design:
    """`count` candidates, a quarter of them near the training cameras and the others of the nine other families in
    turn; those that pass every check, and the table of those that do not.

    Args:
        draw: a rasteriser, for the checks that look at rendered views; without it these three are left out.
    """
    limits = limits or PathLimits()
    others = [name for name in FAMILIES if name != "near_training"]
    paths: list[CameraPath] = []
    outcomes: list[Outcome] = []
    for i in range(count):
        family = "near_training" if i % 4 == 0 else others[(i - i // 4 - 1) % len(others)]
        own_seed = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
        result, extent = _shortened(survey, family, own_seed, draw, limits, config)
        accepted = isinstance(result, CameraPath)
        if accepted:
            paths.append(result)
        reason, message = ("", "") if accepted else (result.reason, result.message)
        outcomes.append(
            Outcome(family=family, seed=own_seed, accepted=accepted, reason=reason, message=message, extent=extent)
        )
    return Design(paths=tuple(paths), outcomes=tuple(outcomes))


def attempt(
    survey: Survey,
    family: str,
    seed: int,
    *,
    extent: float = 1.0,
    draw: Draw | None = None,
    limits: PathLimits | None = None,
    config: PathConfig | None = None,
) -> CameraPath | Rejected:
    """The path with its checks, all passed; or the first check that failed, or why the family had no path."""
    try:
        path = propose(survey, family, seed, extent=extent, config=config)
    except NoPath as none:
        return Rejected(stage="camera_path", reason=none.reason, message=f"{family}, seed {seed}: {none}")
    checks = []
    for check in run_checks(path, survey, limits or PathLimits(), draw):
        if not check.passed:
            side = "above" if check.bound == "at_most" else "below"
            message = f"{family}, seed {seed}: {check.name} is {check.value:.4g}, {side} its limit {check.limit:.4g}"
            return Rejected(stage="camera_path", reason=check.name, message=message)
        checks.append(check)
    return replace(path, checks=tuple(checks))


def _shortened(
    survey: Survey, family: str, seed: int, draw: Draw | None, limits: PathLimits, config: PathConfig | None
) -> tuple[CameraPath | Rejected, float]:
    """The largest move of this seed that passes, or why the smallest does not; and its extent."""
    for extent in EXTENTS[:-1]:
        result = attempt(survey, family, seed, extent=extent, draw=draw, limits=limits, config=config)
        if isinstance(result, CameraPath):
            return result, extent
    return attempt(survey, family, seed, extent=EXTENTS[-1], draw=draw, limits=limits, config=config), EXTENTS[-1]


def _in_time(track: Track, survey: Survey, config: PathConfig) -> NDArray[np.float64]:
    """A track as poses [T, 4, 4]: timed, then smoothed with a sigma of a 200th of the clip."""
    eye, rotation = timed(
        track.legs, survey.up, config.num_frames, per_radian=_PER_RADIAN * survey.radius, ramp=track.ramp
    )
    eye, rotation = smoothed(eye, rotation, config.num_frames / 200)
    return pose(upright(rotation[:, :, 2], survey.up), eye)  # the mean of upright views leans a hundredth of a degree


def _revisits(track: Track, world_from_cam: NDArray, survey: Survey) -> NDArray[np.int64]:
    """Frames whose poses coincide; for a way back at another heading, frames at the same place, so turned."""
    turn = abs(float(track.drawn["turn_deg"])) if track.drawn.get("variant") == "other_heading" else 0.0
    angle = _SAME_HEADING_DEG + turn
    return revisit_pairs(world_from_cam, max_distance=_SAME_PLACE * survey.radius, max_angle_deg=angle)
