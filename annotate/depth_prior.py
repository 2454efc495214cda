"""What depth from elsewhere tells the tracker: depths at its observations, cameras to start from, focal lengths; and,
once the cameras are known, how many metres their unit is.

Depth of one picture errs smoothly: neighbouring pixels are wrong together. A view's observations therefore count as no
more than `independent` samples of it, however many there are; where every frame has a scale error of its own, as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..geometry import align_similarity, invert_pose, undistort
from ..records import Rejected, Shot
from .depth_clip import DepthClip
from .given import GivenPoses
from .klt import FeatureTracks
from .scale import FrameFactor, ScaleConfig, ScaleTrack, factor_of_points, scale_track
from .solved import DepthPriorConfig, Solved, TrackConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthPrior:
    """The depth of a shot as seen from the frames tracked, which show its crop `scale` times smaller."""

    clip: DepthClip
    shot: Shot
    scale: float
    pts_ns: NDArray[np.int64]  # of the source video's frames
    config: DepthPriorConfig

    def rows(self, frame_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """[F] where the clip keeps the depth of frames of the source video; -1 where it has none."""
        at = np.searchsorted(self.clip.frame_index, frame_index).clip(0, len(self.clip.frame_index) - 1)
        return np.where(self.clip.frame_index[at] == frame_index, at, -1)

    def at(self, row: int, xy: NDArray) -> tuple[NDArray, NDArray]:
        """Depth and confidence [n] at working pixels [n, 2] of one of the clip's rows; nan and 0 where unknown."""
        corner = np.array(self.shot.crop[:2])
        return self.clip.sample(row, corner + self.scale * (np.asarray(xy, np.float64) + 0.5) - 0.5)

    def observed(self, tracks: FeatureTracks, use: NDArray, noise_px: float) -> tuple[NDArray, NDArray]:
        """Log depth and its weight [n] (see `mapper.Observations`) at the observations `use` [n]; 0 where unknown."""
        log_depth, weight = np.zeros(len(use)), np.zeros(len(use))
        row_of = self.rows(tracks.frame_index)
        independent = 1.0 if self.clip.source == "moge2" else self.config.independent
        for frame in np.unique(tracks.row[use]):
            if row_of[frame] < 0:
                continue
            o = np.flatnonzero(tracks.row[use] == frame)
            depth, confidence = self.at(int(row_of[frame]), tracks.xy[use[o]])
            known = confidence > 0
            share = min(1.0, np.sqrt(independent / max(known.sum(), 1)))
            log_depth[o[known]] = np.log(depth[known])
            weight[o[known]] = noise_px / self.clip.relative_sigma * share * np.sqrt(confidence[known])
        return log_depth, weight

    def cameras(self, frame_index: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """cam_from_world [F, 4, 4] in the unit of the depths, NaN where unknown; None where the source has none."""
        if self.clip.world_from_cam is None:
            return None
        row = self.rows(frame_index)
        return np.where((row >= 0)[:, None, None], invert_pose(self.clip.world_from_cam[row]), np.nan)

    def focals(self, frame_index: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Focal lengths [F] in pixels of the frames tracked: medians over a second, interpolated between frames that
        have one; None where the source says nothing of them."""
        if self.clip.focal_px is None:
            return None
        log_f = np.log(self.clip.focal_px / self.scale).mean(1)
        known = np.isfinite(log_f)
        if not known.any():
            return None
        log_f, seconds = log_f[known], self.pts_ns[self.clip.frame_index[known]] / 1e9
        reach = np.minimum(np.minimum(seconds - seconds[0], seconds[-1] - seconds), 0.5)  # even: a zoom does not bias
        first = np.searchsorted(seconds, seconds - reach - 1e-9)
        last = np.searchsorted(seconds, seconds + reach + 1e-9, side="right")
        smooth = [np.median(log_f[i:j]) for i, j in zip(first, last, strict=True)]
        return np.exp(np.interp(self.pts_ns[frame_index] / 1e9, seconds, smooth))


# ---- the unit of the track ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """In what unit a track's lengths are to be given, and where that comes from."""

    pose_source: str  # "classical", "pi3x" or "given"
    metric: bool
    factor: float | None  # that the chunks' lengths are multiplied by; None: by what makes the first depth 1
    focal_known: bool  # a network says focal lengths
    scale: ScaleTrack | None  # the factors that the depth, or else the track, was made metric with,
    scale_frames: NDArray[np.int64]  # [T] and the frames of the source video that they belong to
    flags: frozenset[str]
    stats: dict[str, float]


def find_units(
    prior: DepthPrior | None, poses: GivenPoses | None, solved: Sequence[Solved], config: TrackConfig
) -> Units:
    """Metres, where the depth or the given poses are in metres.

    Where poses are given in a unit of their own, the similarity of `structure_scale` says how many metres that is;
    where the depth has no cameras, or the two differ, the median of `track_scale`, as for poses that were estimated.
    """
    clip = None if prior is None else prior.clip
    source = "given" if poses is not None else "pi3x" if clip and clip.world_from_cam is not None else "classical"
    units = Units(
        pose_source=source,
        metric=poses is not None and poses.metric,
        factor=None if poses is None else 1.0,
        focal_known=clip is not None and clip.focal_px is not None,
        scale=None if clip is None else clip.scale,
        scale_frames=np.zeros(0, np.int64) if clip is None else clip.frame_index,
        flags=frozenset() if clip is None else frozenset((*clip.flags, *(clip.scale.flags if clip.scale else ()))),
        stats={},
    )
    if prior is None or not prior.clip.metric or units.metric:
        return units
    if not any(len(s.points) for s in solved) and not any(s.motion_class in ("general", "planar") for s in solved):
        return replace(units, metric=True, factor=1.0)  # a camera that stays in its place: no length to scale
    found = track_scale(prior, solved, config.scale)
    fit = None if poses is None else structure_scale(prior, solved)
    if isinstance(found, Rejected) and fit is None:
        return replace(units, flags=units.flags | {found.reason})
    if isinstance(found, ScaleTrack):
        median = float(np.exp(np.median(np.log(found.smoothed[found.defined]))))
        units = replace(units, metric=True, factor=median, stats={"scale_of_frames": median})
        if units.scale is None:
            frames = np.arange(prior.shot.start, prior.shot.stop)
            units = replace(units, scale=found, scale_frames=frames, flags=units.flags | set(found.flags))
    if fit is not None:
        stats = {**units.stats, "scale_of_structure": fit[0], "scale_fit_rms": fit[1]}
        if isinstance(found, ScaleTrack) and abs(np.log(fit[0] / stats["scale_of_frames"])) > config.depth.scales_agree:
            return replace(units, stats=stats, flags=units.flags | {"scales_disagree"})
        units = replace(units, metric=True, factor=fit[0], stats=stats)
    return units


def track_scale(prior: DepthPrior, solved: Sequence[Solved], config: ScaleConfig) -> ScaleTrack | Rejected:
    """How many of the clip's units one unit of the joined chunks is, frame by frame.

    The factor of a frame takes the depths of its points to the clip's. Frames without cameras, or with too few points
    whose depth is known, have none.
    """
    num = prior.shot.num_frames
    unknown = FrameFactor(factor=float("nan"), dispersion=float("nan"), pixels=0, inliers=float("nan"))
    factors = [unknown] * num
    for s in solved:
        row_of = prior.rows(s.tracks.frame_index)
        for frame, o, point in _seen_points(s):
            t = int(s.tracks.frame_index[frame]) - prior.shot.start
            if row_of[frame] < 0 or np.isfinite(factors[t].factor):
                continue
            cam_from_world = invert_pose(s.world_from_cam[frame])
            own = s.points[point] @ cam_from_world[2, :3] + cam_from_world[2, 3]
            depth, confidence = prior.at(int(row_of[frame]), s.tracks.xy[o])
            use = (confidence > 0) & (own > 0)
            factors[t] = factor_of_points(own[use], depth[use], config)
    return scale_track(factors, prior.pts_ns[prior.shot.start : prior.shot.stop], config)


def structure_scale(prior: DepthPrior, solved: Sequence[Solved]) -> tuple[float, float] | None:
    """The scale of the similarity that takes the chunks' points to where the clip's depth and cameras put them.

    A least-squares fit, repeated on the pairs whose residuals lie below the 80th percentile (SANA-WM, arXiv 2605.15178,
    sec. 4: given poses). The scale is Horn's symmetric one (J. Opt. Soc. Am. A 4, 1987), the ratio of the two spreads:
    Umeyama's shrinks with the errors of the points it starts from.

    Returns: the scale, and the root mean square residual of those pairs as a share of their median depth; None where
    the clip has no cameras or too few points are common.
    """
    if prior.clip.world_from_cam is None:
        return None
    ours, theirs, depths = [], [], []
    for s in solved:
        row_of = prior.rows(s.tracks.frame_index)
        for frame, o, point in _seen_points(s):
            if row_of[frame] < 0 or frame not in s.tracks.keyframes:
                continue
            depth, confidence = prior.at(int(row_of[frame]), s.tracks.xy[o])
            k, known = s.intrinsics[frame], confidence > 0
            n = undistort((s.obs_xy[o[known]] - k[2:4]) / k[:2], k[4], k[5])
            in_camera = np.concatenate([n, np.ones((len(n), 1))], 1) * depth[known, None]
            pose = prior.clip.world_from_cam[row_of[frame]]
            ours.append(s.points[point[known]])
            theirs.append(in_camera @ pose[:3, :3].T + pose[:3, 3])
            depths.append(depth[known])
    source, target = np.concatenate(ours or [np.zeros((0, 3))]), np.concatenate(theirs or [np.zeros((0, 3))])
    if len(source) < prior.config.min_points:
        return None
    keep, rms, scale = np.ones(len(source), bool), np.inf, 1.0
    for _ in range(10):
        _, rotation, _ = align_similarity(source[keep], target[keep])
        middle, goal = source[keep].mean(0), target[keep].mean(0)
        scale = np.sqrt(((target[keep] - goal) ** 2).sum() / ((source[keep] - middle) ** 2).sum())
        residual = np.linalg.norm(target - goal - scale * (source - middle) @ rotation.T, axis=1)
        before, keep = keep, residual <= np.quantile(residual, 0.8)
        rms = float(np.sqrt((residual[keep] ** 2).mean()))
        if (before == keep).all():
            break
    return float(scale), rms / float(np.median(np.concatenate(depths)))


def _seen_points(s: Solved):
    """(frame row, observations, their rows of `points`) for every posed frame: the inliers that have a point."""
    if not len(s.points):
        return
    at = np.searchsorted(s.point_track, s.tracks.track).clip(0, len(s.point_track) - 1)
    o = np.flatnonzero(s.inlier & (s.point_track[at] == s.tracks.track))
    bounds = np.searchsorted(s.tracks.row[o], np.arange(len(s.tracks.frame_index) + 1))
    for frame in range(len(s.tracks.frame_index)):
        mine = o[bounds[frame] : bounds[frame + 1]]
        if len(mine) and np.isfinite(s.world_from_cam[frame, 0, 0]):
            yield frame, mine, at[mine]
