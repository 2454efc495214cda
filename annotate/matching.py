"""From pairwise matches to tracks: which images to match, verified matches, tracks merged without contradictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import poselib
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from ..geometry import angle_between_deg, invert_pose, undistort, unit_px
from .features import Features, match, similarity
from .twoview import Pair, relate, sampson


@dataclass(frozen=True)
class MatchConfig:
    exhaustive_below: int = 32  # up to this many photographs, all pairs are matched
    partners: int = 16  # above, that many most similar ones each, and the three neighbours in order
    keypoints: int = 2048
    epipolar_px: float = 1.5  # for an image diagonal of 800
    min_inliers: int = 20
    order_bonus: float = 1.5  # pictures that follow each other are likelier neighbours, so their pairs weigh more
    trusted_steps: int = 4  # of the tree of strongest pairs, between two pictures whose pair is believed at once
    trusted_deg: float = 20.0  # between the pair's rotation and that along the tree
    consistent_share: float = 0.6  # of a pair's matches that must fit the map for the pair to be believed later


@dataclass(frozen=True, kw_only=True, eq=False)
class PairMatches:
    """Verified matches: keypoint ia[k] of image a is keypoint ib[k] of image b."""

    pair: Pair
    ia: NDArray[np.int64]
    ib: NDArray[np.int64]


def pairs_to_match(features: list[Features], config: MatchConfig) -> list[tuple[int, int]]:
    """Pairs (a < b) of photographs worth matching."""
    n = len(features)
    if n <= config.exhaustive_below:
        return [(a, b) for a in range(n) for b in range(a + 1, n)]
    alike = similarity(features)
    near = {
        (min(a, b), max(a, b))
        for a in range(n)
        for b in np.argsort(-alike[a], kind="stable")[: config.partners].tolist()
    }
    near |= {(a, a + k) for k in (1, 2, 3) for a in range(n - k)}
    return sorted((a, b) for a, b in near if a != b)


def match_pairs(
    features: list[Features],
    pairs: Iterable[tuple[int, int]],
    config: MatchConfig,
    progress: Callable[[int], None] | None = None,
) -> list[PairMatches]:
    """LighterGlue matches of image pairs that agree with one epipolar geometry."""
    out = []
    for count, (a, b) in enumerate(pairs):
        fa, fb = features[a], features[b]
        m = match(fa, fb, count=config.keypoints)
        centre = np.array([(fa.width - 1) / 2, (fa.height - 1) / 2])
        xa, xb = fa.xy[m[:, 0]].astype(float) - centre, fb.xy[m[:, 1]].astype(float) - centre
        pair = relate(a, b, xa, xb, limit_px=config.epipolar_px * unit_px(fa.width, fa.height))
        if pair is not None and pair.num_epipolar >= config.min_inliers:
            out.append(PairMatches(pair=pair, ia=m[pair.inlier, 0], ib=m[pair.inlier, 1]))
        if progress:
            progress(count + 1)
    return out


def trusted_pairs(
    features: list[Features], matches: list[PairMatches], focal: float, config: MatchConfig
) -> list[PairMatches]:
    """The verified pairs to begin with, where a scene may repeat itself.

    Two sides of a building or a cupboard match each other well, but not as well as two pictures of one side do. So the
    strongest pairs that join all pictures (a maximum spanning tree) are believed, and of the others those between
    pictures a few steps apart on it whose rotation agrees with the steps. The rest wait until a map can judge them.
    Source: the idea of growing from reliable edges is Jiang et al., CVPR 2012, and Cui & Tan, ICCV 2015.

    Args:
        focal: a guess in pixels; only rotations depend on it.
    """
    n = len(features)
    if not matches:
        return []
    strength = np.array(
        [m.pair.num_epipolar * (config.order_bonus if m.pair.b - m.pair.a == 1 else 1.0) for m in matches]
    )
    a, b = np.array([m.pair.a for m in matches]), np.array([m.pair.b for m in matches])
    tree = minimum_spanning_tree(coo_matrix((1 / strength, (a, b)), shape=(n, n))).tocoo()
    at = {(int(i), int(j)): k for k, (i, j) in enumerate(zip(a, b, strict=True))}
    neighbours: dict[int, list[tuple[int, NDArray]]] = {v: [] for v in range(n)}
    for i, j in zip(tree.row.tolist(), tree.col.tolist(), strict=True):
        rotation = _relative_rotation(features, matches[at[i, j]], focal)
        neighbours[i].append((j, rotation))
        neighbours[j].append((i, rotation.T))
    reach: list[dict[int, NDArray]] = []  # rotation of every picture within a few steps
    for v in range(n):
        found = {v: np.eye(3)}
        edge = [v]
        for _ in range(config.trusted_steps):
            edge = [
                w
                for u in edge
                for w, rotation in neighbours[u]
                if w not in found and found.setdefault(w, rotation @ found[u]) is not None
            ]
        reach.append(found)
    tree_pairs = set(zip(tree.row.tolist(), tree.col.tolist(), strict=True))
    out = []
    for m in matches:
        i, j = m.pair.a, m.pair.b
        if (i, j) in tree_pairs:
            out.append(m)
        elif j in reach[i]:
            angle = angle_between_deg(reach[i][j], _relative_rotation(features, m, focal))
            if angle < config.trusted_deg:
                out.append(m)
    return out


def _relative_rotation(features: list[Features], m: PairMatches, focal: float) -> NDArray[np.float64]:
    """Rotation [3, 3] of the second camera from the first, by the five-point algorithm."""
    fa, fb = features[m.pair.a], features[m.pair.b]
    centre = np.array([(fa.width - 1) / 2, (fa.height - 1) / 2])
    camera = {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [focal, 0, 0]}
    found, _ = poselib.estimate_relative_pose(
        fa.xy[m.ia].astype(float) - centre,
        fb.xy[m.ib].astype(float) - centre,
        camera,
        camera,
        {"max_epipolar_error": 2.0, "seed": 0, "max_iterations": 500},
        {},
    )
    return np.asarray(found.Rt)[:, :3]


def consistent_pairs(
    features: list[Features],
    matches: list[PairMatches],
    cam_from_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    config: MatchConfig,
) -> list[PairMatches]:
    """The pairs whose matches fit the epipolar geometry of the cameras found (or whose cameras were not).

    Args:
        cam_from_world: [V, 4, 4], NaN where unknown; intrinsics: [V, 6] fx, fy, cx, cy, k1, k2.
    """
    out = []
    for m in matches:
        i, j = m.pair.a, m.pair.b
        if np.isnan(cam_from_world[[i, j], 0, 0]).any():
            continue
        limit = 2 * config.epipolar_px * unit_px(features[i].width, features[i].height)
        rel = cam_from_world[j] @ invert_pose(cam_from_world[i])
        rays = []
        for v, xy in ((i, features[i].xy[m.ia]), (j, features[j].xy[m.ib])):
            k = intrinsics[v]
            rays.append(np.column_stack([undistort((xy - k[2:4]) / k[:2], k[4], k[5]), np.ones(len(xy))]))
        distance = sampson(rays[0], rays[1], rel) * intrinsics[i, 0]
        if (distance < limit).mean() >= config.consistent_share:
            out.append(m)
    return out


def merge_tracks(num_tracks: int, a: NDArray, b: NDArray, obs_view: NDArray, obs_track: NDArray) -> NDArray[np.int64]:
    """Join tracks that matches (a[k], b[k]) say are one point.

    A joined track that would see two points in one view contradicts itself: its members stay apart.

    Returns: [num_tracks] the new label of each track; labels are old track numbers.
    """
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(num_tracks, num_tracks))
    _, label = connected_components(graph, directed=False)
    views = int(obs_view.max()) + 1 if len(obs_view) else 1
    _, inverse, count = np.unique(
        label[obs_track].astype(np.int64) * views + obs_view, return_inverse=True, return_counts=True
    )
    torn = np.zeros(label.max() + 1 if num_tracks else 0, bool)
    torn[label[obs_track[count[inverse] > 1]]] = True
    first = np.zeros(len(torn), np.int64)
    first[label[::-1]] = np.arange(num_tracks)[::-1]  # the smallest member names the joined track
    return np.where(torn[label], np.arange(num_tracks), first[label])


def tracks_of_photographs(
    features: list[Features], matches: list[PairMatches]
) -> tuple[NDArray, NDArray, NDArray, int]:
    """Tracks of keypoints over photographs.

    Returns: view [O], track [O], xy [O, 2] and the number of tracks. Keypoints that two contradicting matches tie
    together keep the ties of the stronger pairs.
    """
    offset = np.concatenate([[0], np.cumsum([len(f.xy) for f in features])])
    view = np.repeat(np.arange(len(features)), np.diff(offset))
    parent = np.arange(offset[-1])
    members: dict[int, dict[int, int]] = {}  # root -> view -> keypoint

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = int(parent[k])
        return k

    for m in sorted(matches, key=lambda m: -m.pair.num_epipolar):
        for i, j in zip((offset[m.pair.a] + m.ia).tolist(), (offset[m.pair.b] + m.ib).tolist(), strict=True):
            ri, rj = root(i), root(j)
            if ri == rj:
                continue
            mi, mj = members.get(ri) or {int(view[ri]): ri}, members.get(rj) or {int(view[rj]): rj}
            if mi.keys() & mj.keys():
                continue
            parent[rj] = ri
            members[ri] = mi | mj
            members.pop(rj, None)
    xy = np.concatenate([f.xy for f in features]).astype(float)
    label = np.array([root(k) for k in range(len(parent))])
    names, track, count = np.unique(label, return_inverse=True, return_counts=True)
    keep = count[track] >= 2
    names, track = np.unique(track[keep], return_inverse=True)
    return view[keep], track, xy[keep], len(names)
