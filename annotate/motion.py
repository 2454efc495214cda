"""What kind of motion a chunk shows, and the map of a camera that only turns.

`classify` says "static" (most long tracks stay where they are), "planar" (one homography explains nearly every pair of
keyframes: a flat scene, or a camera that turns) or "general"; `turning_map` fits rotations about one centre, which then
compete with cameras that move: Torr, Fitzgibbon & Zisserman, IJCV 32(1), 1999, on choosing the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..geometry import nearest_rotation, unit_px
from .klt import FeatureTracks
from .mapper import Intrinsics, Map, MapperConfig, Observations, common
from .twoview import Pair


@dataclass(frozen=True)
class MotionConfig:
    """Pixels are for an image diagonal of 800; of a turn `Observations.px`."""

    still_px: float = 1.0  # a track that stays within this of its median position is still
    still_share: float = 0.6  # of the observations of long tracks, for a static camera;
    still_frame: float = (
        0.6  # or still tracks in this share of the cells along the picture's border, whatever moves within
    )
    flat_off_plane: float = 0.12  # share of matches off the homography in a pair that counts as flat
    turning_off_plane: float = 0.3  # the same of a pair that a turn is tried for
    flat_share: float = 0.8  # of the pairs
    turning_px: float = 0.6  # median residual of rotations about one centre
    turning_more: float = 0.1  # share of all that it leaves over beside cameras that move, or
    turning_worse: float = 2.0  # times what these leave over, where a camera does not turn
    turning_longest: float = 4.0  # longer sides; beyond, a turn looks like a glide over a wall, whatever the focal one
    turning_share: float = 0.75  # of the observations within the mapper's limit


def classify(tracks: FeatureTracks | None, pairs: list[Pair], config: MotionConfig) -> str:
    """ "static" (never without `tracks`, for photographs), "planar" or "general"."""
    if tracks is not None and _is_static(tracks, config):
        return "static"
    return "planar" if _is_flat(pairs, config.flat_off_plane, config) else "general"


def may_turn(pairs: list[Pair], config: MotionConfig) -> bool:
    """Whether so little is off one homography that the camera may only turn."""
    return _is_flat(pairs, config.turning_off_plane, config)


def _is_flat(pairs: list[Pair], off_plane: float, config: MotionConfig) -> bool:
    return bool(pairs and np.mean([p.off_plane < off_plane for p in pairs]) >= config.flat_share)


def _is_static(tracks: FeatureTracks, config: MotionConfig) -> bool:
    """Whether most long tracks stay where they are, or those that do surround what moves (a bonnet does not)."""
    order = np.lexsort((tracks.row, tracks.track))
    track, xy = tracks.track[order], tracks.xy[order]
    first = np.flatnonzero(np.r_[True, np.diff(track) != 0]) if len(track) else np.zeros(0, int)
    length = np.diff(np.r_[first, len(track)])
    low, high = np.minimum.reduceat(xy, first), np.maximum.reduceat(xy, first)
    extent = np.linalg.norm(high - low, axis=1) / 2
    long = length >= min(30, max(2, len(tracks.frame_index) // 2))
    if not long.any():
        return False
    still = long & (extent < config.still_px * unit_px(tracks.width, tracks.height))
    if length[still].sum() >= config.still_share * length[long].sum():
        return True
    x, y = np.floor(low[still] / [tracks.width, tracks.height] * 8).clip(0, 7).astype(int).T
    border = np.isin(x, (0, 7)) | np.isin(y, (0, 7))
    return len(np.unique(8 * y[border] + x[border])) >= config.still_frame * 28


def turning_map(
    obs: Observations,
    config: MapperConfig,
    setting: Intrinsics,
    focals: list[float],
    images: list[NDArray[np.uint8]],
    motion: MotionConfig,
) -> Map | None:
    """Rotations about one centre for all views, with one focal length or, where that fails, with one each; None where
    rotations do not explain the observations."""
    for per_view in (False, True):
        if per_view and (setting.given is not None or obs.time_s is None):
            break
        maps = [_chain(obs, config, replace(setting, per_view=per_view), f) for f in focals]
        maps = [m for m in maps if m is not None]
        for m in sorted(maps, key=Map.score)[-2:]:
            for _ in range(2):
                m.bundle(iterations=15)
                m.triangulate()
        if not maps:
            continue
        best = max(maps, key=Map.score)
        seen = best.registered[best.obs.view] & np.isfinite(best.points[best.obs.track, 0])
        error = best.residual_px(np.flatnonzero(best.inlier))
        explained = best.inlier.sum() / max(1, best.seen_twice().sum())
        if seen.any() and np.median(error) < motion.turning_px * obs.px and explained > motion.turning_share:
            best.polish(images, rounds=2)
            if np.median(best.intrinsics[:, 0]) > motion.turning_longest * max(obs.width, obs.height):
                best.focal_sigma[:] = np.inf
            return best
    return None


def _chain(obs: Observations, config: MapperConfig, setting: Intrinsics, focal: float) -> Map | None:
    """Rotations from view to view by aligning rays (Kabsch, reweighted), and the directions they give."""
    m = Map(obs, config, setting, focal)
    m.turning = True
    m.pose[0] = np.eye(4)
    m.registered[0] = True
    for v in range(1, obs.num_views):
        oa, ob = common(m, v - 1, v)
        if len(oa) < config.min_pose_inliers or not m.registered[v - 1]:
            break
        ratios = np.geomspace(0.8, 1.25, 15) if setting.per_view else np.ones(1)
        best = (np.inf, np.eye(3), 1.0)
        a = _unit_rays(m, oa, 1.0)
        for ratio in ratios:
            b = _unit_rays(m, ob, ratio * m.intrinsics[v - 1, 0] / m.intrinsics[v, 0])
            rotation, error = _align(a, b)
            if error < best[0]:
                best = (error, rotation, float(ratio))
        m.intrinsics[v, :2] = m.intrinsics[v - 1, :2] * best[2]
        m.pose[v] = np.eye(4)
        m.pose[v, :3, :3] = nearest_rotation(best[1] @ m.pose[v - 1, :3, :3])
        m.registered[v] = True
    if m.registered.sum() < 2:
        return None
    m.triangulate()
    return m


def _unit_rays(m: Map, o: NDArray, zoom: float) -> NDArray:
    rays = np.concatenate([m.rays(o) / zoom, np.ones((len(o), 1))], 1)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _align(a: NDArray, b: NDArray) -> tuple[NDArray, float]:
    """R with b ~ R a, and the median angle left (rad)."""
    weight = np.ones(len(a))
    rotation, error = np.eye(3), np.zeros(len(a))
    for _ in range(8):
        rotation = nearest_rotation((b * weight[:, None]).T @ a)
        error = np.linalg.norm(b - a @ rotation.T, axis=1)
        weight = 1 / (1 + (error / max(1.5 * float(np.median(error)), 1e-9)) ** 2)
    return rotation, float(np.median(error))
