"""From pairwise matches to tracks: which images to match, verified matches, tracks merged without contradictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .features import Features, match, similarity
from .twoview import Pair, relate


@dataclass(frozen=True)
class MatchConfig:
    exhaustive_below: int = 32  # up to this many photographs, all pairs are matched
    partners: int = 16  # above, that many most similar ones each, and the three neighbours in order
    keypoints: int = 2048
    epipolar_px: float = 1.5  # for an image diagonal of 800
    min_inliers: int = 20


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
        pair = relate(a, b, xa, xb, limit_px=config.epipolar_px * np.hypot(fa.width, fa.height) / 800)
        if pair is not None and pair.num_epipolar >= config.min_inliers:
            out.append(PairMatches(pair=pair, ia=m[pair.inlier, 0], ib=m[pair.inlier, 1]))
        if progress:
            progress(count + 1)
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
