"""Fourteen checks that a path must pass, each a measured value beside its limit, cheap ones first.

Three of them (distance to surfaces, empty tiles, blank frames) look at rendered views. They need `draw`: any rasteriser
as `draw(world_from_cam [4, 4], intrinsics [4], width, height) -> (alpha [H, W], depth [H, W])`, pixel centres at
integer coordinates. Without it they are not made, and are not in the list. Views are drawn small: the long side is
`draw_size` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...geometry import angle_between_deg
from .record import CameraPath, CheckResult
from .survey import MARGIN, ZONE, Survey

Draw = Callable[[NDArray[np.float64], NDArray[np.float64], int, int], tuple[NDArray, NDArray]]

_TILES = 32
_STILL = 1e-6  # steps shorter than this share of the scene radius are no motion


@dataclass(frozen=True, kw_only=True)
class PathLimits:
    """The limits of the fourteen checks; r is the scene radius."""

    max_camera_distance: float = ZONE  # r, to the nearest training camera
    margin: float = MARGIN  # r, between a pose and solid cells; unknown space counts as solid
    min_surface: float = 0.05  # r, 5th percentile of rendered depth
    min_surface_nears: float = 5.0  # near planes, the same
    near: float = 0.01  # the rasteriser's near plane, scene units
    every: int = 10  # frames between the sampled ones
    enough_centres: float = (
        0.1  # of the subsampled centres, or a third of what the median training camera sees, if less
    )
    min_covered: float = 0.7  # share of sampled frames that see enough centres
    max_empty_tiles: float = 0.65  # of a 32 x 32 grid, mean over sampled frames
    max_blank: float = 0.3  # share of frames whose mean alpha is below 0.5
    min_supporters: float = 2.0  # training cameras that see what a frame sees, median over frames
    supporter_distance: float = 0.5  # r
    supporter_angle_deg: float = 45.0
    supporter_share: float = 0.25  # of a frame's points that a supporter must see too
    max_turn_deg_s: float = 45.0
    max_turn_deg_frame: float = 4.0
    max_speed: float = 0.25  # median depths a second
    max_acceleration: float = 1.0  # 99th percentile of second differences, in median steps; third differences too
    max_roll_deg: float = 5.0  # beyond what was asked for
    min_fov_deg: float = 25.0
    max_fov_deg: float = 120.0
    draw_size: int = 160  # pixels, long side


def run_checks(path: CameraPath, survey: Survey, limits: PathLimits, draw: Draw | None = None) -> Iterator[CheckResult]:
    """The checks one after another; each is measured when it is asked for, so one may stop at the first that fails."""
    views = _Views(path, survey, limits, draw)
    yield focal(path, limits)
    yield roll(path, survey, limits)
    yield rotation_speed(path, limits)
    yield acceleration(path, survey, limits)
    yield captured_zone(path, survey, limits)
    yield height(path, survey)
    yield free_space(path, survey, limits)
    yield free_steps(path, survey)
    yield coverage(views)
    yield view_support(views)
    yield translation_speed(path, views)
    if draw is not None:
        yield surface_distance(views)
        yield empty_tiles(views)
        yield blank_frames(views)


# ---- motion ----------------------------------------------------------------------------------------------------------


def focal(path: CameraPath, limits: PathLimits) -> CheckResult:
    """The field of view farthest from the middle of its range, degrees; or how much an unasked zoom changes the focal
    length."""
    change = float((path.intrinsics[:, :2].max(0) / path.intrinsics[:, :2].min(0)).max() - 1)
    if change > 1e-9 and path.parameters.get("zoom", 1.0) == 1.0:
        return CheckResult(name="unasked_zoom", value=change, limit=0.0, bound="at_most")
    fov = np.degrees(2 * np.arctan(np.array([path.width, path.height]) / 2 / path.intrinsics[:, :2]))
    low, high = float(fov.min()), float(fov.max())
    if limits.min_fov_deg - low >= high - limits.max_fov_deg:
        return CheckResult(name="field_of_view", value=low, limit=limits.min_fov_deg, bound="at_least")
    return CheckResult(name="field_of_view", value=high, limit=limits.max_fov_deg, bound="at_most")


def roll(path: CameraPath, survey: Survey, limits: PathLimits) -> CheckResult:
    """The largest roll, degrees: the angle in the picture between its upward axis and the scene's up."""
    axes = path.world_from_cam[:, :3, :3]
    lean = np.degrees(np.arctan2(np.abs(survey.up @ axes[:, :, 0].T), -(survey.up @ axes[:, :, 1].T)))
    limit = limits.max_roll_deg + abs(float(path.parameters.get("roll_deg", 0.0)))
    return CheckResult(name="roll", value=float(lean.max()), limit=limit, bound="at_most")


def rotation_speed(path: CameraPath, limits: PathLimits) -> CheckResult:
    """The fastest turn, degrees a second; the limit is the tighter one of a second's and a frame's."""
    axes = path.world_from_cam[:, :3, :3]
    limit = min(limits.max_turn_deg_s, limits.max_turn_deg_frame * path.fps)
    fastest = float(angle_between_deg(axes[:-1], axes[1:]).max()) * path.fps
    return CheckResult(name="rotation_speed", value=fastest, limit=limit, bound="at_most")


def acceleration(path: CameraPath, survey: Survey, limits: PathLimits) -> CheckResult:
    """99th percentile of second and of third differences of position, whichever is larger, over the median step of the
    frames that move."""
    eye = path.world_from_cam[:, :3, 3]
    steps = np.linalg.norm(np.diff(eye, axis=0), axis=1)
    moving = steps[steps > _STILL * survey.radius]
    value = 0.0
    if moving.size:
        jumps = [np.linalg.norm(np.diff(eye, n, axis=0), axis=1) for n in (2, 3)]
        value = float(max(np.quantile(j, 0.99) for j in jumps) / np.median(moving))
    return CheckResult(name="acceleration", value=value, limit=limits.max_acceleration, bound="at_most")


# ---- places ----------------------------------------------------------------------------------------------------------


def captured_zone(path: CameraPath, survey: Survey, limits: PathLimits) -> CheckResult:
    """The longest distance to the nearest training camera."""
    value = float(survey.distance_to_cameras(path.world_from_cam[:, :3, 3]).max())
    limit = limits.max_camera_distance * survey.radius
    return CheckResult(name="captured_zone", value=value, limit=limit, bound="at_most")


def height(path: CameraPath, survey: Survey) -> CheckResult:
    """The height farthest out of, or nearest to leaving, the training cameras' range."""
    h, (bottom, top) = survey.height(path.world_from_cam[:, :3, 3]), survey.height_limits
    low, high = float(h.min()), float(h.max())
    if bottom - low > high - top:
        return CheckResult(name="height", value=low, limit=bottom, bound="at_least")
    return CheckResult(name="height", value=high, limit=top, bound="at_most")


def free_space(path: CameraPath, survey: Survey, limits: PathLimits) -> CheckResult:
    """The shortest distance from a pose to a solid cell; 0 where a pose lies in solid or unknown space."""
    value = float(survey.clearance(path.world_from_cam[:, :3, 3]).min())
    return CheckResult(name="free_space", value=value, limit=limits.margin * survey.radius, bound="at_least")


def free_steps(path: CameraPath, survey: Survey) -> CheckResult:
    """Solid cells met between the poses, sampled every half cell."""
    eye = path.world_from_cam[:, :3, 3]
    longest = float(np.linalg.norm(np.diff(eye, axis=0), axis=1).max())
    s = np.linspace(0, 1, max(int(np.ceil(2 * longest / survey.cell)), 1) + 1)[:, None, None]
    between = ((1 - s) * eye[:-1] + s * eye[1:]).reshape(-1, 3)
    return CheckResult(name="free_steps", value=float(survey.solid(between).sum()), limit=0.0, bound="at_most")


# ---- views -----------------------------------------------------------------------------------------------------------


def coverage(views: _Views) -> CheckResult:
    """Share of sampled frames that see enough of the subsampled Gaussians."""
    survey, limits = views.survey, views.limits
    enough = min(limits.enough_centres * len(survey.centres), survey.training_count / 3)
    share = float(np.mean([s.count >= enough for s in views.sights]))
    return CheckResult(name="coverage", value=share, limit=limits.min_covered, bound="at_least")


def translation_speed(path: CameraPath, views: _Views) -> CheckResult:
    """The fastest travel, scene units a second, against a share of the median depth that the path sees."""
    eye = path.world_from_cam[:, :3, 3]
    value = float(np.linalg.norm(np.diff(eye, axis=0), axis=1).max()) * path.fps
    limit = views.limits.max_speed * views.median_depth
    return CheckResult(name="translation_speed", value=value, limit=limit, bound="at_most")


def view_support(views: _Views) -> CheckResult:
    """Training cameras near a frame, that look its way and see a quarter of its points: median over sampled frames."""
    survey, limits, path = views.survey, views.limits, views.path
    cameras = survey.world_from_cam
    counts = []
    for i, sight in zip(views.frames[::2], views.sights[::2], strict=True):
        pose = path.world_from_cam[i]
        near = np.linalg.norm(cameras[:, :3, 3] - pose[:3, 3], axis=1) <= limits.supporter_distance * survey.radius
        alike = cameras[:, :3, 2] @ pose[:3, 2] >= np.cos(np.radians(limits.supporter_angle_deg))
        candidates = np.flatnonzero(near & alike) if len(sight.points) else np.zeros(0, int)
        counts.append(sum(survey.sees(int(j), sight.points).mean() >= limits.supporter_share for j in candidates))
    return CheckResult(
        name="view_support", value=float(np.median(counts)), limit=limits.min_supporters, bound="at_least"
    )


def surface_distance(views: _Views) -> CheckResult:
    """The smallest 5th percentile of rendered depth over sampled frames."""
    limits = views.limits
    limit = max(limits.min_surface * views.survey.radius, limits.min_surface_nears * limits.near)
    value = min((np.quantile(d, 0.05) for d in views.depths if d.size), default=np.inf)
    return CheckResult(name="surface_distance", value=float(value), limit=limit, bound="at_least")


def empty_tiles(views: _Views) -> CheckResult:
    """Mean over sampled frames of the share of tiles with a mean alpha below 0.1."""
    shares = []
    for alpha, _ in views.drawn:
        h, w = alpha.shape
        tile = (np.arange(h) * _TILES // h)[:, None] * _TILES + np.arange(w) * _TILES // w
        total = np.bincount(tile.ravel(), alpha.ravel(), _TILES**2)
        shares.append(np.mean(total < 0.1 * np.bincount(tile.ravel(), minlength=_TILES**2)))
    value = float(np.mean(shares))
    return CheckResult(name="empty_tiles", value=value, limit=views.limits.max_empty_tiles, bound="at_most")


def blank_frames(views: _Views) -> CheckResult:
    """Share of sampled frames with a mean alpha below 0.5."""
    value = float(np.mean([alpha.mean() < 0.5 for alpha, _ in views.drawn]))
    return CheckResult(name="blank_frames", value=value, limit=views.limits.max_blank, bound="at_most")


class _Views:
    """What sampled frames of a path see; looked at and drawn once, when first needed."""

    def __init__(self, path: CameraPath, survey: Survey, limits: PathLimits, draw: Draw | None) -> None:
        self.path, self.survey, self.limits = path, survey, limits
        self._draw = draw
        self.frames = np.arange(0, path.num_frames, limits.every)

    @cached_property
    def sights(self):  # of the frames, by their subsampled centres
        path = self.path
        return [
            self.survey.sight(path.world_from_cam[i], path.intrinsics[i], path.width, path.height) for i in self.frames
        ]

    @cached_property
    def drawn(self) -> list[tuple[NDArray, NDArray]]:
        """Alpha and depth [h, w] of the frames, small."""
        path = self.path
        assert self._draw is not None  # the checks that draw are made only with it
        scale = self.limits.draw_size / max(path.width, path.height)
        width, height = (max(round(side * scale), 2 * _TILES) for side in (path.width, path.height))
        shrink = np.array([width / path.width, height / path.height] * 2)
        corner = np.array([0, 0, 0.5, 0.5])  # to coordinates in which pictures scale
        intrinsics = (path.intrinsics + corner) * shrink - corner
        views = (self._draw(path.world_from_cam[i], intrinsics[i], width, height) for i in self.frames)
        return [(np.asarray(alpha), np.asarray(depth)) for alpha, depth in views]

    @cached_property
    def depths(self) -> list[NDArray]:
        """Rendered depth of the frames where alpha gives it a meaning."""
        return [depth[alpha >= 0.5] for alpha, depth in self.drawn]

    @property
    def median_depth(self) -> float:
        """Of what the path sees: rendered where `draw` is given, else of the subsampled centres; 0 if nothing."""
        found = self.depths if self._draw is not None else [s.depth for s in self.sights]
        found = np.concatenate(found)
        return float(np.median(found)) if found.size else 0.0
