"""Loop closure inside a map: keyframes that show the same place though no track joins them.

Candidates look alike and share no track; LighterGlue and an epipolar geometry match them; what the map already knows
decides whether to believe them: resecting one keyframe from the other's points must not ask for more drift than a walk
of that length can have built up. A symmetric scene's wrong match asks for half a turn, and is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import poselib
from numpy.typing import NDArray

from ..geometry import angle_between_deg, camera_centres, undistort, unit_px
from .features import Features, match, similarity
from .twoview import relate


@dataclass(frozen=True)
class LoopConfig:
    min_gap: int = 6  # keyframes between the two
    per_keyframe: float = 0.5  # candidates matched, per keyframe of the map
    min_similarity: float = 0.08  # share of the strongest keypoints that are mutual neighbours
    keypoints: int = 1024
    min_matches: int = 20
    max_drift: float = 0.15  # of the path between the two
    max_drift_deg: float = 20.0


def loop_candidates(features: list[Features], shared: NDArray[np.int64], config: LoopConfig) -> list[tuple[int, int]]:
    """Pairs (a < b) of keyframes worth matching, most alike first; `shared` [K, K] counts common tracks."""
    n = len(features)
    alike = similarity(features, count=256)
    a, b = np.triu_indices(n, config.min_gap)
    use = (alike[a, b] >= config.min_similarity) & (shared[a, b] < config.min_matches)
    a, b = a[use], b[use]
    taken = np.zeros((n, n), bool)
    out: list[tuple[int, int]] = []
    for k in np.argsort(-alike[a, b], kind="stable"):
        i, j = int(a[k]), int(b[k])
        if taken[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].any():
            continue  # a neighbouring pair says the same
        taken[i, j] = True
        out.append((i, j))
        if len(out) >= config.per_keyframe * n:
            break
    return out


def picture_loops(features: list[Features], config: LoopConfig) -> list[tuple[int, int]]:
    """Pairs (a < b) of pictures that show one place, by their matches alone: no map has its say."""
    nothing = np.zeros((len(features), len(features)), np.int64)
    names = [np.arange(len(f.xy), dtype=np.int32) for f in features]
    pairs = loop_candidates(features, nothing, config)
    return [(a, b) for a, b in pairs if matched_loop(a, b, features, names, config) is not None]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoopMatch:
    """Two keyframes whose matches agree with one epipolar geometry."""

    a: int
    b: int
    track_a: NDArray[np.int64]  # [n] tracks of keyframe a ...
    track_b: NDArray[np.int64]  # [n] ... and of b, that matching says are the same points
    xy_b: NDArray[np.float64]  # [n, 2] keypoints in b, pixels
    px: float  # of the picture that are one at a diagonal of 800


def matched_loop(
    a: int, b: int, features: list[Features], keypoint_track: list[NDArray[np.int32]], config: LoopConfig
) -> LoopMatch | None:
    """What two keyframes have in common by their pictures alone; None where that is too little."""
    fa, fb = features[a], features[b]
    px = unit_px(fa.width, fa.height)
    m = match(fa, fb, count=config.keypoints)
    ta, tb = keypoint_track[a][m[:, 0]], keypoint_track[b][m[:, 1]]
    known = (ta >= 0) & (tb >= 0)
    m, ta, tb = m[known], ta[known].astype(np.int64), tb[known].astype(np.int64)
    centre = np.array([(fa.width - 1) / 2, (fa.height - 1) / 2])
    xa, xb = fa.xy[m[:, 0]].astype(float), fb.xy[m[:, 1]].astype(float)
    pair = relate(a, b, xa - centre, xb - centre, limit_px=2.0 * px)
    if pair is None or pair.num_epipolar < config.min_matches:
        return None
    return LoopMatch(a=a, b=b, track_a=ta[pair.inlier], track_b=tb[pair.inlier], xy_b=xb[pair.inlier], px=px)


def verified_loop(
    loop: LoopMatch,
    points: NDArray[np.float64],
    cam_from_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    config: LoopConfig,
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Tracks [n], [n] of the two keyframes that are the same points; None where the map does not believe the loop.

    Args:
        points: [N, 3] by track, NaN where a track has none; cam_from_world [K, 4, 4]; intrinsics [K, 6].
    """
    a, b, ta, tb = loop.a, loop.b, loop.track_a, loop.track_b
    posed = np.isfinite(points[ta, 0])
    if posed.sum() < 12:
        return None
    k = intrinsics[b]
    rays = undistort((loop.xy_b[posed] - k[2:4]) / k[:2], k[4], k[5])
    camera = {"model": "PINHOLE", "width": 0, "height": 0, "params": [k[0], k[1], 0, 0]}
    found, info = poselib.estimate_absolute_pose(
        rays * k[:2], points[ta[posed]], camera, {"max_reproj_error": 6 * loop.px, "seed": 0}, {}
    )
    inlier = np.array(info["inliers"], bool)
    if inlier.sum() < max(12, 0.5 * posed.sum()):
        return None
    centres = camera_centres(cam_from_world)
    walk = centres[a : b + 1]
    walk = walk[np.isfinite(walk[:, 0])]
    path = np.linalg.norm(np.diff(walk, axis=0), axis=1).sum()
    rt = np.asarray(found.Rt)
    drift = np.linalg.norm(-rt[:, :3].T @ rt[:, 3] - centres[b])
    if (
        drift > config.max_drift * path
        or angle_between_deg(rt[:, :3], cam_from_world[b, :3, :3]) > config.max_drift_deg
    ):
        return None
    keep = np.ones(len(ta), bool)
    keep[np.flatnonzero(posed)[~inlier]] = False
    keep &= ta != tb
    return ta[keep], tb[keep]
