"""Camera paths by the rules of the posed-video benchmark: waypoints, splines, strict speeds, places seen twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, Slerp

from ...geometry import angle_between_deg, pose
from .motion import arc_length, centripetal_catmull_rom, eased, laplacian_smoothed, squad, turned, unit, upright
from .record import CameraPath, CheckResult, NoPath
from .revisits import revisit_pairs
from .survey import Survey


@dataclass(frozen=True, kw_only=True)
class BenchmarkRules:
    """Published limits (SANA-WM, arXiv 2605.15178, App. D) and the drawing of waypoints."""

    num_frames: int = 961
    fps: float = 16.0
    waypoints: tuple[int, int] = (11, 15)  # inclusive
    max_turn_deg_s: float = 12.0
    max_speed_m_s: float = 0.4
    max_travel: float = 0.6  # of the median depth: the farthest from the first pose
    margin_m: float = 0.3  # to solid cells; unknown space counts as solid
    slow_down: float = 0.7  # speed on a hit, and with it the size of the path
    tries: int = 3  # after the first
    revisit_m: float = 0.5
    revisit_deg: float = 20.0
    smoothing_rounds: int = 40


def benchmark_path(
    survey: Survey, seed: int, *, metres_per_unit: float, rules: BenchmarkRules | None = None
) -> CameraPath:
    """A path that goes round a loop once and a quarter, so that its end shows again what its beginning showed.

    11 to 15 waypoints lie on the loop, a ring with random bulges before the anchor camera; those of the second round
    are those of the first. Positions are a centripetal Catmull-Rom spline, rotations a Squad, timed by arc length with
    eased ends, then smoothed by a Laplacian. The published rules do not say what travel is: here, the farthest from
    the start.

    Args:
        metres_per_unit: of the scene: the rules are in metres.

    Raises:
        NoPath: the path still comes too near to solid or unknown space after the last try, or meets no rule's limit.
    """
    rules = rules or BenchmarkRules()
    rng = np.random.default_rng(seed)
    camera = int(rng.choice(survey.usable))
    anchor = survey.world_from_cam[camera]
    depth = survey.depth_ahead(camera) * metres_per_unit
    count = int(rng.integers(rules.waypoints[0], rules.waypoints[1] + 1))
    once = round(count / 1.25)  # waypoints of the loop; the rest come again
    length = 0.9 * rng.uniform(0.6, 1.0) * rules.max_speed_m_s * rules.num_frames / rules.fps  # metres, with eased ends
    where, yaw, pitch = _loop(rng, once)
    again = np.arange(count) % once
    size_m = min(length / 1.25 / _perimeter(where), 0.9 * rules.max_travel * depth / _reach(where))
    hits = 0
    while True:
        offsets = size_m * rules.slow_down**hits / metres_per_unit * where[again]  # a slower path is a smaller one
        eye, rotation, fastest = _slow_enough(survey, anchor, offsets, yaw[again], pitch[again], rules)
        clearance = float(survey.clearance(eye).min()) * metres_per_unit
        if clearance >= rules.margin_m:
            break
        if hits == rules.tries:
            raise NoPath("collision", f"{clearance:.2f} m to solid or unknown space after {hits} slower tries")
        hits += 1
    world_from_cam = pose(rotation, eye)
    pairs = revisit_pairs(
        world_from_cam, max_distance=rules.revisit_m / metres_per_unit, max_angle_deg=rules.revisit_deg, away=1.0
    )
    fastest_m = float(np.linalg.norm(np.diff(eye, axis=0), axis=1).max()) * rules.fps * metres_per_unit
    travel_m = float(np.linalg.norm(eye - eye[0], axis=1).max()) * metres_per_unit
    checks = (
        CheckResult(name="rotation_speed", value=fastest, limit=rules.max_turn_deg_s, bound="at_most"),
        CheckResult(name="translation_speed", value=fastest_m, limit=rules.max_speed_m_s, bound="at_most"),
        CheckResult(name="travel", value=travel_m, limit=rules.max_travel * depth, bound="at_most"),
        CheckResult(name="margin", value=clearance, limit=rules.margin_m, bound="at_least"),
        CheckResult(name="revisits", value=float(len(pairs)), limit=1.0, bound="at_least"),
    )
    for check in checks:
        if not check.passed:
            raise NoPath(check.name, f"{check.name} is {check.value:.3g}, limit {check.limit:.3g}")
    width, height = (int(side) for side in survey.sizes[camera])
    return CameraPath(
        world_from_cam=world_from_cam,
        intrinsics=np.tile(survey.intrinsics[camera], (rules.num_frames, 1)),
        width=width,
        height=height,
        fps=rules.fps,
        family="benchmark",
        seed=seed,
        parameters={
            "anchor": camera,
            "anchors": survey.anchors,
            "waypoints": count,
            "hits": hits,
            "metres_per_unit": metres_per_unit,
        },
        checks=checks,
        revisit_pairs=pairs,
    )


def _loop(rng: np.random.Generator, count: int) -> tuple[NDArray, NDArray, NDArray]:
    """Waypoints right, ahead, up [count, 3] of a bulging ring that begins at 0 and lies ahead; yaw, pitch [count]."""
    angle = 2 * np.pi * np.arange(count) / count
    side = rng.choice([-1.0, 1.0])
    bulge = (
        1 + 0.25 * rng.uniform() * np.cos(2 * angle + rng.uniform(0, 6)) + 0.12 * np.cos(3 * angle + rng.uniform(0, 6))
    )
    ring = (
        np.stack([side * np.sin(angle), 1 - np.cos(angle), 0.2 * np.sin(angle + rng.uniform(0, 6))], 1) * bulge[:, None]
    )
    ring *= [rng.uniform(0.7, 1.2), 1.0, 1.0]
    yaw = rng.uniform(15, 35) * np.sin(angle + rng.uniform(0, 6)) + rng.uniform(0, 10) * np.sin(2 * angle)
    pitch = rng.uniform(2, 8) * np.sin(angle + rng.uniform(0, 6))
    return ring - ring[0], yaw - yaw[0], pitch - pitch[0]


def _slow_enough(
    survey: Survey, anchor: NDArray, offsets: NDArray, yaw: NDArray, pitch: NDArray, rules: BenchmarkRules
) -> tuple[NDArray, NDArray, float]:
    """`_through`, turning less until the fastest turn, degrees a second, is within the rules."""
    swing = 1.0
    while True:
        eye, rotation = _through(survey, anchor, offsets, swing * yaw, swing * pitch, rules)
        fastest = float(angle_between_deg(rotation[:-1], rotation[1:]).max()) * rules.fps
        if fastest <= rules.max_turn_deg_s:
            return eye, rotation, fastest
        swing *= 0.95 * rules.max_turn_deg_s / fastest


def _perimeter(ring: NDArray) -> float:
    return float(np.linalg.norm(np.diff(ring, axis=0, append=ring[:1]), axis=1).sum())


def _reach(ring: NDArray) -> float:
    return float(np.linalg.norm(ring - ring[0], axis=1).max())


def _through(
    survey: Survey, anchor: NDArray, offsets: NDArray, yaw_deg: NDArray, pitch_deg: NDArray, rules: BenchmarkRules
) -> tuple[NDArray, NDArray]:
    """Places [T, 3] and rotations [T, 3, 3] through waypoints given right, ahead and up of the anchor."""
    right = unit(np.cross(anchor[:3, 2], survey.up))
    axes = np.stack([right, np.cross(survey.up, right), survey.up])
    per_span = 60
    eye = centripetal_catmull_rom(anchor[:3, 3] + offsets @ axes, per_span)
    rotation = squad(upright(turned(anchor[:3, 2], survey.up, yaw_deg, pitch_deg), survey.up), per_span)
    s = arc_length(eye, rotation, 0.0) if np.ptp(eye, axis=0).max() > 0 else np.linspace(0, 1, len(eye))
    s = s / s[-1] + np.linspace(0, 1e-9, len(s))
    at = eased(np.linspace(0, 1, rules.num_frames), 0.06) * s[-1]
    eye = CubicSpline(s, eye)(at)
    rotation = Slerp(s, Rotation.from_matrix(rotation))(np.clip(at, s[0], s[-1])).as_matrix()
    return laplacian_smoothed(eye, rotation, rules.smoothing_rounds)
