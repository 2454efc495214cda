"""A pose for every frame of a chunk from the map of its keyframes; and the cameras of chunks that have no map."""

from __future__ import annotations

import numpy as np
import poselib
from numpy.typing import NDArray

from ..geometry import interpolate_pose, invert_pose, undistort, unit_px
from .bundle import BundleConfig, batch_resect
from .klt import FeatureTracks, without_pictures
from .mapper import Intrinsics, Map, reprojection_px
from .solved import Solved, TrackConfig


def pose_every_frame(
    m: Map,
    tracks: FeatureTracks,
    seconds: NDArray,
    motion: str,
    flags: frozenset[str],
    config: TrackConfig,
    *,
    given: NDArray | None = None,
) -> Solved:
    """Poses of the frames between keyframes, from the points they see, or as given: cam_from_world [F, 4, 4]."""
    num = len(tracks.frame_index)
    names, local = np.unique(tracks.track.astype(np.int64), return_inverse=True)
    per_view = m.setting.per_view
    keys = tracks.keyframes[m.registered]
    point = m.label[local]
    xy = _corrected(m, tracks, local)
    pose, intrinsics = _between(keys, m.pose[m.registered], m.intrinsics[m.registered], num, seconds)
    o = np.flatnonzero(m.has_point[point])
    limit = config.frame_px * m.px
    if given is not None:
        pose = given
    else:
        pose, intrinsics = _resected(m, tracks, pose, intrinsics, o, point, xy, keys, seconds, limit, config)
    residual = _residual(m, tracks, pose, intrinsics, o, point, xy)
    if given is None and not m.turning:
        for row in _doubtful(residual, tracks.row, num, limit, config):
            _resect_alone(row, pose, intrinsics, m, tracks, o, point, xy, limit)
        residual = _residual(m, tracks, pose, intrinsics, o, point, xy)
    if given is None:
        pose[_doubtful(residual, tracks.row, num, limit, config)] = np.nan
    residual[np.isnan(pose[tracks.row, 0, 0])] = np.nan
    stats = {"num_points": float(m.has_point.sum()), "num_keyframes": float(m.registered.sum())}
    if m.inlier.any():
        stats["ba_rmse_px"] = float(np.sqrt((m.residual_px(np.flatnonzero(m.inlier)) ** 2).mean()))
    has = np.flatnonzero(m.has_point[m.label])
    return Solved(
        tracks=without_pictures(tracks),
        world_from_cam=invert_pose(pose),
        intrinsics=intrinsics,
        per_view=per_view,
        focal_sigma=np.interp(np.arange(num), keys, m.focal_sigma[m.registered]),
        motion_class=motion,
        flags=flags,
        point_track=names[has] if not m.turning else np.zeros(0, np.int64),
        points=m.points[m.label[has]] if not m.turning else np.zeros((0, 3)),
        obs_xy=xy,
        residual=residual,
        inlier=residual < limit,
        stats=stats,
    )


def _resected(
    m: Map,
    tracks: FeatureTracks,
    pose: NDArray,
    intrinsics: NDArray,
    o: NDArray,
    point: NDArray,
    xy: NDArray,
    keys: NDArray,
    seconds: NDArray,
    limit: float,
    config: TrackConfig,
) -> tuple[NDArray, NDArray]:
    """Poses and intrinsics of all frames, those between keyframes fitted to the points of observations o."""
    used, compact = np.unique(point[o], return_inverse=True)
    per_view = m.setting.per_view
    prior = None
    if per_view:
        gap = np.abs(seconds[:, None] - seconds[keys]).min(1)
        prior = (np.log(intrinsics[:, 0]), 0.002 + 0.3 * config.mapper.smooth_log_focal * np.sqrt(gap))
    found = batch_resect(
        m.points[used],
        pose,
        intrinsics,
        tracks.row[o].astype(np.int64),
        compact,
        xy[o],
        config=BundleConfig(max_iterations=15, loss="cauchy", loss_px=0.5 * m.px, cost_tolerance=1e-4),
        inlier_px=limit,
        free_focal=per_view,
        log_focal_prior=prior,
        fixed_translation=m.turning,
    )
    is_key = np.zeros(len(pose), bool)
    is_key[keys] = True
    pose = np.where(is_key[:, None, None], pose, found.cam_from_world)
    return pose, np.where(is_key[:, None], intrinsics, found.intrinsics)


def _residual(
    m: Map, tracks: FeatureTracks, pose: NDArray, intrinsics: NDArray, o: NDArray, point: NDArray, xy: NDArray
) -> NDArray:
    """[O] reprojection error (px) of observations o; nan for the others."""
    row = tracks.row[o]
    out = np.full(len(tracks.row), np.nan)
    out[o] = reprojection_px(pose[row], intrinsics[row], m.points[point[o]], xy[o])
    return out


def _corrected(m: Map, tracks: FeatureTracks, local: NDArray) -> NDArray[np.float64]:
    """Observations in all frames with the drift that alignment found at keyframes taken out, linearly in between."""
    num_keys = len(tracks.keyframes)
    rank = np.full(len(tracks.frame_index), -1)
    rank[tracks.keyframes] = np.arange(num_keys)
    at = np.flatnonzero(rank[tracks.row] >= 0)
    name = m.obs.track * num_keys + m.obs.view  # ascending: observations are sorted by track, then view
    mine = m.label[local[at]] * num_keys + rank[tracks.row[at]]
    where = np.searchsorted(name, mine).clip(0, len(name) - 1)
    hit = (name[where] == mine) & m.aligned[where]
    shift = np.full((len(m.label), num_keys, 2), np.nan, np.float32)  # of (track, keyframe)
    shift[local[at[hit]], rank[tracks.row[at[hit]]]] = m.obs.xy[where[hit]] - tracks.xy[at[hit]]
    after = np.searchsorted(tracks.keyframes, tracks.row)
    before = np.searchsorted(tracks.keyframes, tracks.row, side="right") - 1
    s0, s1 = shift[local, before], shift[local, after]
    k0, k1 = tracks.keyframes[before], tracks.keyframes[after]
    w = ((tracks.row - k0) / np.maximum(k1 - k0, 1))[:, None]
    both = (1 - w) * s0 + w * s1
    shift_xy = np.where(np.isfinite(both), both, np.where(np.isfinite(s0), s0, s1))
    return tracks.xy.astype(np.float64) + np.nan_to_num(shift_xy)


def _between(
    keys: NDArray, key_pose: NDArray, key_intrinsics: NDArray, num: int, seconds: NDArray
) -> tuple[NDArray, NDArray]:
    """Poses and intrinsics of all frames, interpolated from keyframes: where resection starts."""
    pose = np.tile(np.eye(4), (num, 1, 1))
    pose[: keys[0] + 1], pose[keys[-1] :] = key_pose[0], key_pose[-1]
    for (i, a), (j, b) in zip(
        zip(keys, key_pose, strict=True), list(zip(keys, key_pose, strict=True))[1:], strict=False
    ):
        s = (seconds[i : j + 1] - seconds[i]) / max(seconds[j] - seconds[i], 1e-9)
        pose[i : j + 1] = invert_pose(interpolate_pose(invert_pose(a), invert_pose(b), s))
    columns = [np.interp(seconds, seconds[keys], np.log(key_intrinsics[:, c])) for c in (0, 1)]
    rest = [np.interp(seconds, seconds[keys], key_intrinsics[:, c]) for c in (2, 3, 4, 5)]
    return pose, np.stack([*np.exp(columns), *rest], 1)


def _doubtful(residual: NDArray, row: NDArray, num: int, limit: float, config: TrackConfig) -> NDArray[np.int64]:
    """Frames that too few points agree on."""
    seen = np.bincount(row[np.isfinite(residual) | np.isinf(residual)], minlength=num)
    good = np.bincount(row[residual < limit], minlength=num)
    return np.flatnonzero((good < config.min_frame_inliers) | (good < config.min_frame_ratio * seen))


def _resect_alone(row, pose, intrinsics, m: Map, tracks, o, point, xy, limit: float) -> None:
    """RANSAC for a frame that interpolation did not bring near its pose."""
    mine = o[tracks.row[o] == row]
    if len(mine) < 6:
        return
    k = intrinsics[row]
    rays = undistort((xy[mine] - k[2:4]) / k[:2], k[4], k[5])
    camera = {"model": "PINHOLE", "width": 0, "height": 0, "params": [k[0], k[1], 0, 0]}
    found, _ = poselib.estimate_absolute_pose(
        rays * k[:2], m.points[point[mine]], camera, {"max_reproj_error": limit, "seed": 0}, {}
    )
    pose[row] = np.eye(4)
    pose[row, :3] = found.Rt


# ---- cameras that do not move, or only turn ----------------------------------------------------------------------


def _prior_intrinsics(tracks: FeatureTracks, setting: Intrinsics) -> NDArray[np.float64]:
    """[6] what is given, what a network expects, or a field of view of about 60 degrees about the image centre."""
    if setting.given is not None:
        return np.array([*setting.given, 0.0, 0.0])[:6]
    f = 0.87 * max(tracks.width, tracks.height) if setting.expected is None else float(np.median(setting.expected))
    return np.array([f, f, (tracks.width - 1) / 2, (tracks.height - 1) / 2, 0.0, 0.0])


def still(
    tracks: FeatureTracks, setting: Intrinsics, motion: str, flags: frozenset[str], config: TrackConfig
) -> Solved:
    """A camera that stays where it is ("static"), or one that could not be estimated ("general", poses NaN)."""
    num = len(tracks.frame_index)
    row = _prior_intrinsics(tracks, setting)
    pose = np.tile(np.eye(4), (num, 1, 1)) if motion == "static" else np.full((num, 4, 4), np.nan)
    home = _median_position(tracks)
    residual = np.linalg.norm(tracks.xy - home, axis=1) if motion == "static" else np.full(len(tracks.row), np.nan)
    return Solved(
        tracks=without_pictures(tracks),
        world_from_cam=pose,
        intrinsics=np.tile(row, (num, 1)),
        per_view=False,
        focal_sigma=np.full(num, np.inf),
        motion_class=motion,
        flags=flags,
        point_track=np.zeros(0, np.int64),
        points=np.zeros((0, 3)),
        obs_xy=tracks.xy.astype(np.float64),
        residual=residual,
        inlier=residual < config.frame_px * unit_px(tracks.width, tracks.height),
        stats={},
    )


def _median_position(tracks: FeatureTracks) -> NDArray[np.float64]:
    """For every observation, the median position of its track."""
    order = np.lexsort((tracks.row, tracks.track))
    _, first = np.unique(tracks.track[order], return_index=True)
    out = np.empty((len(tracks.row), 2))
    for part in np.split(order, first[1:]):
        out[part] = np.median(tracks.xy[part], axis=0)
    return out
