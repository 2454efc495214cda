"""The cameras of one chunk: feature tracks of a video, or matches of photographs, to a map and poses for all frames.

`solve_video` and `solve_photographs` are the two ways in. Both tell the kind of motion, guess focal lengths, grow a map
with one focal length, and another with one each if the first one asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..geometry import invert_pose, unit_px
from ..records import Frame
from .bundle import torch_threads
from .depth_prior import DepthPrior
from .every_frame import pose_every_frame, still
from .features import extract
from .klt import FeatureTracks, error_px, softness
from .loops import LoopMatch, loop_candidates, matched_loop, verified_loop
from .mapper import Intrinsics, Map, Observations, reconstruct
from .matching import (
    PairMatches,
    consistent_pairs,
    match_pairs,
    merge_tracks,
    pairs_to_match,
    tracks_of_photographs,
    trusted_pairs,
)
from .motion import classify, may_turn, turning_map
from .solved import HELD_OUT, Solved, TrackConfig
from .twoview import Pair, focal_votes, relate, strongly_bent

MUCH_PARALLAX_PX = 4.0  # beyond which more says no more of a pair to start from
MOST_PAIRS = 40  # keyframe pairs that tell the kind of motion and vote for a focal length

# ---- photographs -----------------------------------------------------------------------------------------------


def read_photographs(
    stream: Iterable[Frame], config: TrackConfig, mask: NDArray[np.bool_] | None
) -> tuple[FeatureTracks, list[PairMatches]] | None:
    """Features of every photograph as one chunk of which all frames are keyframes, without tracks so far, and the
    verified matches; None for fewer than two."""
    images, index = [], []
    for frame in stream:
        images.append(frame.gray)
        index.append(frame.index)
    if len(images) < 2:
        return None
    features = [extract(image, mask) for image in images]
    matches = match_pairs(features, pairs_to_match(features, config.match), config.match)
    tracks = FeatureTracks(
        width=images[0].shape[1],
        height=images[0].shape[0],
        px=error_px(images[0].shape[1], images[0].shape[0], float(np.median([softness(x) for x in images]))),
        frame_index=np.array(index, np.int64),
        row=np.zeros(0, np.int32),
        track=np.zeros(0, np.int32),
        xy=np.zeros((0, 2), np.float32),
        keyframes=np.arange(len(images)),
        images=images,
        features=features,
        keypoint_track=[],
    )
    return tracks, matches


def with_tracks(tracks: FeatureTracks, matches: list[PairMatches]) -> FeatureTracks:
    """The chunk of photographs with the tracks that these matches make."""
    view, track, xy, _ = tracks_of_photographs(tracks.features, matches)
    order = np.lexsort((track, view))
    return replace(
        tracks, row=view[order].astype(np.int32), track=track[order].astype(np.int32), xy=xy[order].astype(np.float32)
    )


def solve_photographs(
    tracks: FeatureTracks,
    matches: list[PairMatches],
    pts_ns: NDArray[np.int64],
    setting: Intrinsics,
    config: TrackConfig,
    prior: DepthPrior | None = None,
) -> Solved:
    """Cameras of photographs: a map from the pairs that can be trusted, then from all that agree with it."""
    pairs = [m.pair for m in matches]
    seconds = pts_ns[tracks.frame_index] / 1e9
    setting = _expecting(setting, tracks, prior, config)
    size = float(max(tracks.width, tracks.height))
    guesses = _focal_guesses(pairs, size, None, setting, config)
    motion = classify(None, pairs, config.motion)
    trusted = trusted_pairs(tracks.features, matches, guesses[0], config.match)
    tracks = with_tracks(tracks, trusted)
    _, obs = _observations(tracks, None, prior, config)
    turned, sure = _turning(motion, pairs, obs, tracks, setting, guesses, config)
    if turned is not None and sure:
        return pose_every_frame(turned, tracks, seconds, "rotation", frozenset(), config)
    starts = [(p.a, p.b) for p in _starting_pairs([m.pair for m in trusted])]
    complete: dict[bool, FeatureTracks] = {}  # the tracks that each map is made of

    def build(per_view: bool) -> Map | None:
        intrinsics = replace(setting, per_view=per_view)
        first = _first_map(obs, intrinsics, guesses, starts, tracks, prior, config)
        if first is None:
            return None
        first.polish(tracks.images, rounds=1)
        agreed = consistent_pairs(tracks.features, matches, first.pose, first.intrinsics, config.match)
        believed = {(m.pair.a, m.pair.b) for m in agreed}
        waiting = [m for m in trusted if not first.registered[[m.pair.a, m.pair.b]].all()]
        complete[per_view] = with_tracks(tracks, agreed + [m for m in waiting if (m.pair.a, m.pair.b) not in believed])
        all_seen = _observations(complete[per_view], None, prior, config)[1]
        second = Map(all_seen, config.mapper, intrinsics, guesses[0])
        second.take_cameras(first)
        second.adjust_all()
        second.grow()
        second.polish(tracks.images, rounds=2)
        second.look_again(tracks.images)
        second.polish(tracks.images, rounds=3)
        return second

    best = _choose_focal_model(build, setting, config)
    if turned is not None and not _moves(best, turned, config):
        return pose_every_frame(turned, tracks, seconds, "rotation", frozenset(), config)
    if best is None or not best.inlier.any():
        return still(tracks, setting, "general", frozenset({"no_reconstruction"}), config)
    return pose_every_frame(best, complete[best.setting.per_view], seconds, motion, frozenset(), config)


# ---- one chunk -------------------------------------------------------------------------------------------------


def solve_video(
    tracks: FeatureTracks,
    pts_ns: NDArray[np.int64],
    before: Solved | None,
    setting: Intrinsics,
    config: TrackConfig,
    prior: DepthPrior | None = None,
) -> Solved:
    """Cameras of one chunk of a video."""
    seconds = pts_ns[tracks.frame_index] / 1e9
    setting = _expecting(setting, tracks, prior, config)
    pairs = _keyframe_pairs(tracks)
    motion = classify(tracks, pairs, config.motion)
    if motion == "static":
        return still(tracks, setting, "static", frozenset(), config)
    names = np.unique(tracks.track)
    best, motion, flags = _map_of_video(tracks, names, pairs, motion, seconds, before, setting, config, prior)
    if best is None or not best.inlier.any():
        return still(tracks, setting, "general", frozenset({"no_reconstruction"}), config)
    rest = _unexplained(best, tracks, names, config)
    if (rest is not None or best.intrinsics[0, 4] < config.barrel) and _is_fisheye(tracks):
        return still(tracks, setting, "general", frozenset({"fisheye"}), config)
    if rest is not None:
        pairs = _keyframe_pairs(rest)
        motion_of_rest = classify(None, pairs, config.motion)
        other, motion_of_rest, more = _map_of_video(
            rest, names, pairs, motion_of_rest, seconds, before, setting, config, prior
        )
        flags |= {"much_moves"}
        if other is not None and _unexplained(other, rest, names, config) is None and _surrounds(other, best, config):
            best, motion, flags = other, motion_of_rest, more | {"much_moves"}
    return pose_every_frame(best, tracks, seconds, motion, flags, config)


def solve_given(
    tracks: FeatureTracks,
    cam_from_world: NDArray,
    pts_ns: NDArray[np.int64],
    setting: Intrinsics,
    config: TrackConfig,
    prior: DepthPrior | None = None,
) -> Solved:
    """Points, and the intrinsics that are not given too, of a chunk whose poses [F, 4, 4] are given and stay.

    Frames without a given pose (NaN) get none.
    """
    seconds = pts_ns[tracks.frame_index] / 1e9
    setting = _expecting(setting, tracks, prior, config)
    _, obs = _observations(tracks, seconds, None, config)  # the depth's unit need not be that of the poses
    posed = cam_from_world[tracks.keyframes]
    guesses = _focal_guesses(_keyframe_pairs(tracks), float(max(tracks.width, tracks.height)), None, setting, config)

    def build(per_view: bool) -> Map | None:
        maps = []
        for focal in guesses:
            m = Map(obs, config.mapper, replace(setting, per_view=per_view), focal)
            m.fixed, m.registered = True, np.isfinite(posed[:, 0, 0])
            m.pose[m.registered] = posed[m.registered]
            for looseness in (8.0, 4.0, 1.0):  # a wrong focal length first, then its residuals
                m.triangulate(again=True, limit=looseness * config.mapper.inlier_px)
                m.bundle(iterations=10, loss_px=looseness)
            m.select(config.mapper.inlier_px)
            maps.append(m)
        best = max(maps, key=Map.score)
        if not best.inlier.any():
            return None
        best.polish(tracks.images, rounds=1)
        return best

    if np.isfinite(posed[:, 0, 0]).sum() >= 2:
        best = _choose_focal_model(build, setting, config)
        if best is not None and best.inlier.any():
            return pose_every_frame(best, tracks, seconds, "general", frozenset(), config, given=cam_from_world)
    found = still(tracks, setting, "general", frozenset(), config)
    return replace(found, world_from_cam=invert_pose(cam_from_world), flags=frozenset({"no_parallax"}))


def _unexplained(m: Map, tracks: FeatureTracks, names: NDArray, config: TrackConfig) -> FeatureTracks | None:
    """The tracks that a map leaves over, where these are so many that they may be the scene, and the map a thing that
    moves before it."""
    obs = m.obs
    loose = _loosened(m, 1.5 * m.config.inlier_px)
    seen = np.bincount(obs.track[m.registered[obs.view]], minlength=obs.num_tracks)
    agree = np.bincount(obs.track[loose.inlier], minlength=obs.num_tracks)
    left = (agree < 0.5 * seen)[m.label]
    long = (seen >= 3)[m.label]
    if (left & long).sum() < config.much_unexplained * long.sum():
        return None
    keep = left[np.searchsorted(names, tracks.track)]
    return replace(tracks, row=tracks.row[keep], track=tracks.track[keep], xy=tracks.xy[keep])


def _loosened(m: Map, limit_px: float) -> Map:
    """The map with points for all that its cameras explain, be it far away or not sharply aligned."""
    loose = m.copy(per_view=m.setting.per_view)
    loose.config = replace(m.config, min_angle_deg=0.0)
    loose.aligned[:] = True
    loose.triangulate(again=True, limit=limit_px)
    return loose


def _surrounds(m: Map, other: Map, config: TrackConfig) -> bool:
    """Whether the scene of one map reaches farther out in the picture than that of the other, in as many views."""

    def reach(m: Map) -> float:
        xy = m.obs.xy[m.inlier] / [m.obs.width, m.obs.height] * 8
        cell = np.floor(xy).clip(0, 7).astype(int)
        border = ((cell == 0) | (cell == 7)).any(1)
        cells = np.unique(64 * m.obs.view[m.inlier][border] + 8 * cell[border, 1] + cell[border, 0])
        return len(cells) / 28

    return m.registered.sum() >= 0.9 * other.registered.sum() and reach(m) > config.farther_out * reach(other)


def _map_of_video(
    tracks: FeatureTracks,
    names: NDArray,
    pairs: list[Pair],
    motion: str,
    seconds: NDArray,
    before: Solved | None,
    setting: Intrinsics,
    config: TrackConfig,
    prior: DepthPrior | None,
) -> tuple[Map | None, str, frozenset[str]]:
    """The map of a chunk's keyframes, if there is one, the motion class, and flags."""
    names, obs = _observations(tracks, seconds, prior, config, names)
    guesses = _focal_guesses(pairs, float(max(tracks.width, tracks.height)), before, setting, config)
    turned, sure = _turning(motion, pairs, obs, tracks, setting, guesses, config)
    if turned is not None and sure:
        return turned, "rotation", frozenset()
    starts = [(p.a, p.b) for p in _starting_pairs(pairs)]

    def build(per_view: bool) -> Map | None:
        intrinsics = replace(setting, per_view=per_view)
        m = _first_map(obs, intrinsics, guesses, starts, tracks, prior, config)
        if m is not None:
            m.polish(tracks.images, rounds=1)
        return m

    loops = 0
    with _matching_loops(tracks, names, obs, config) as loop_matches:
        best = _choose_focal_model(build, setting, config)
        if best is not None:
            loops = _close_loops(best, loop_matches(), config)
            if best.setting.per_view:  # zoom and dolly differ little in short tracks
                best.look_again(tracks.images)
            best.polish(tracks.images, rounds=1)
    if turned is not None and not _moves(best, turned, config):
        return turned, "rotation", frozenset()
    return best, motion, frozenset({"loop_closed"} if loops else ())


def _expecting(setting: Intrinsics, tracks: FeatureTracks, prior: DepthPrior | None, config: TrackConfig) -> Intrinsics:
    """The setting with the focal lengths of the keyframes that a network expects."""
    expected = None if prior is None else prior.focals(tracks.frame_index[tracks.keyframes])
    return replace(setting, expected=expected, expected_sigma=config.depth.focal_sigma)


def _first_map(
    obs: Observations,
    setting: Intrinsics,
    guesses: list[float],
    starts: list[tuple[int, int]],
    tracks: FeatureTracks,
    prior: DepthPrior | None,
    config: TrackConfig,
) -> Map | None:
    """A map from the cameras that came with the depth; where these explain too little of what the views saw, another
    from nothing, and the better of the two."""
    cameras = None if prior is None else prior.cameras(tracks.frame_index[tracks.keyframes])
    maps = []
    if cameras is not None:
        m = Map(obs, config.mapper, setting, guesses[0])
        if m.start_cameras(cameras):
            m.grow()
            if m.inlier.sum() >= config.depth.min_agreeing * m.seen_twice().sum():
                return m
            maps.append(m)
    m = reconstruct(obs, config.mapper, setting, guesses, starts)
    return max([*maps, m] if m else maps, key=Map.score, default=None)


def _observations(
    tracks: FeatureTracks,
    seconds: NDArray | None,
    prior: DepthPrior | None,
    config: TrackConfig,
    names: NDArray | None = None,
) -> tuple[NDArray, Observations]:
    """What keyframes see, without the held-out tracks, and the numbers [N] of its tracks (`names` where they are to be
    some of these). `seconds` are None for photographs."""
    names = np.unique(tracks.track) if names is None else names
    local = np.searchsorted(names, tracks.track)
    rank = np.full(len(tracks.frame_index), -1)
    rank[tracks.keyframes] = np.arange(len(tracks.keyframes))
    use = np.flatnonzero((rank[tracks.row] >= 0) & (tracks.track % HELD_OUT != HELD_OUT - 1))
    log_depth = depth_weight = None
    if prior is not None:
        noise_px = config.mapper.noise_px * unit_px(tracks.width, tracks.height)
        log_depth, depth_weight = prior.observed(tracks, use, noise_px)
    obs = Observations.sorted(
        view=rank[tracks.row[use]],
        track=local[use],
        xy=tracks.xy[use],
        log_depth=log_depth,
        depth_weight=depth_weight,
        width=tracks.width,
        height=tracks.height,
        px=tracks.px,
        num_views=len(tracks.keyframes),
        num_tracks=len(names),
        time_s=None if seconds is None else seconds[tracks.keyframes],
    )
    return names, obs


def _turning(
    motion: str,
    pairs: list[Pair],
    obs: Observations,
    tracks: FeatureTracks,
    setting: Intrinsics,
    guesses: list[float],
    config: TrackConfig,
) -> tuple[Map | None, bool]:
    """The map of a camera that only turns, where that may be, and whether it needs no comparison: what it leaves over
    of a scene that looks flat is no more than noise."""
    if not may_turn(pairs, config.motion):
        return None, False
    turned = turning_map(obs, config.mapper, setting, guesses, tracks.images, config.motion)
    noise = config.mapper.noise_px**2
    sure = turned is not None and motion == "planar" and _left_over(turned, turned.registered) < noise / (1 + noise)
    return turned, sure


def _moves(moving: Map | None, turned: Map, config: TrackConfig) -> bool:
    """Whether cameras that move leave over far less than one that turns: a glide over a wall looks like a turn.

    Less by a share of all, or, where little is off, by a factor: the errors of soft pictures are no mere noise, and of
    what they leave over a camera that moves explains some.
    """
    if moving is None:
        return False
    both = moving.registered & turned.registered
    less, more = _left_over(moving, both), _left_over(turned, both)
    return more - less > config.motion.turning_more or more > config.motion.turning_worse * less


def _left_over(m: Map, views: NDArray) -> float:
    """Share of what these views saw twice that a map leaves over: of each observation more, the worse it fits.

    A point in space fits the two numbers of each of its n observations with three of its own, a direction with two.
    """
    loose = _loosened(m, m.config.inlier_px)
    loose.bundle(iterations=15, loss_px=m.obs.px / m.px)  # of all, not of what fitted best
    loose.triangulate()
    o = np.flatnonzero(loose.seen_twice())
    numbers = 2 * np.bincount(loose.obs.track[o])[loose.obs.track[o]]
    error = np.nan_to_num(loose.residual_px(o), nan=np.inf, posinf=np.inf) / m.obs.px
    square = (error**2 * numbers / (numbers - (2 if m.turning else 3)))[views[loose.obs.view[o]]]
    return 1 - float((1 / (1 + square)).mean()) if len(square) else 1.0


def _choose_focal_model(build: Callable[[bool], Map | None], setting: Intrinsics, config: TrackConfig) -> Map | None:
    """A map with one focal length, or with one each where the data ask for it."""
    if setting.given is not None or config.intrinsics_mode == "shared":
        return build(False)
    if config.intrinsics_mode == "per_frame":
        return build(True)
    if setting.expected is not None and np.ptp(np.log(setting.expected)) > config.depth.expected_zoom:
        varying = build(True)
        return build(False) if varying is None else varying
    shared = build(False)
    wander = 0.0 if shared is None else shared.depth_wander()
    if shared is not None and wander < config.depth.wander and not _wants_zoom(shared, config):
        return shared
    varying = build(True)
    if shared is None or varying is None:
        return shared if varying is None else varying
    if wander > config.depth.wander and varying.depth_wander() < 0.5 * wander:
        return varying
    # A zoom passes for a dolly near by, but not far away: what has no parallax decides
    explained = [_loosened(m, m.config.inlier_px).score() for m in (shared, varying)]
    return varying if explained[1] > config.zoom_evidence * explained[0] else shared


def _keyframe_pairs(tracks: FeatureTracks) -> list[Pair]:
    """Two-view geometry of keyframes with the farthest later one that still shares a third of their tracks."""
    centre = np.array([(tracks.width - 1) / 2, (tracks.height - 1) / 2])
    bounds = np.searchsorted(tracks.row, np.stack([tracks.keyframes, tracks.keyframes + 1]))
    seen = []
    for lo, hi in bounds.T:
        order = np.argsort(tracks.track[lo:hi])
        seen.append((tracks.track[lo:hi][order], tracks.xy[lo:hi][order].astype(float) - centre))
    out = []
    for i in range(0, len(seen) - 1, max(1, len(seen) // MOST_PAIRS)):
        found = None
        for j in range(i + 1, len(seen)):
            _, ia, ib = np.intersect1d(seen[i][0], seen[j][0], assume_unique=True, return_indices=True)
            if j > i + 1 and len(ia) < max(80, len(seen[i][0]) / 3):
                break
            found = (j, ia, ib)
        if found:
            j, ia, ib = found
            pair = relate(i, j, seen[i][1][ia], seen[j][1][ib], limit_px=tracks.px)
            if pair:
                out.append(pair)
    return out


def _is_fisheye(tracks: FeatureTracks) -> bool:
    """Whether pairs of keyframes agree best once a strong barrel distortion is taken out."""
    centre = np.array([(tracks.width - 1) / 2, (tracks.height - 1) / 2])
    keys = tracks.keyframes[np.unique(np.linspace(0, len(tracks.keyframes) - 1, 12).round().astype(int))]
    seen = [np.flatnonzero(tracks.row == k) for k in keys]
    matches = []
    for a, b in zip(seen[:-2], seen[2:], strict=True):
        _, i, j = np.intersect1d(tracks.track[a], tracks.track[b], assume_unique=True, return_indices=True)
        matches.append((tracks.xy[a[i]].astype(float) - centre, tracks.xy[b[j]].astype(float) - centre))
    radius = float(np.hypot(tracks.width, tracks.height)) / 2
    return strongly_bent(matches, radius, limit_px=radius / 400)


def _starting_pairs(pairs: list[Pair], count: int = 2) -> list[Pair]:
    """Pairs with many matches and much parallax, from different parts of the shot."""
    out: list[Pair] = []
    for p in sorted(pairs, key=lambda p: -p.num_epipolar * min(p.parallax_px, MUCH_PARALLAX_PX)):
        if not any({p.a, p.b} & {q.a, q.b} for q in out):
            out.append(p)
        if len(out) == count:
            break
    return out


def _focal_guesses(
    pairs: list[Pair], size: float, before: Solved | None, setting: Intrinsics, config: TrackConfig
) -> list[float]:
    """Focal lengths to start from, in pixels; `size` is the longer side."""
    if setting.given is not None:
        return [setting.given[0]]
    if before is not None and before.focal_sigma[-1] < config.undetermined_above:
        return [float(before.intrinsics[-1, 0])]
    votes = focal_votes(pairs, size)
    if setting.expected is not None:
        expected = float(np.median(setting.expected))
        return [expected] + [v for v in votes if abs(np.log(expected / v)) > 0.15]
    guesses = [g * size for g in config.mapper.focal_guesses]
    return votes + [g for g in guesses if all(abs(np.log(g / v)) > 0.15 for v in votes)]


def _wants_zoom(m: Map, config: TrackConfig) -> bool:
    """Whether focal lengths of their own would serve the views: from the shared solution, let them go."""
    trial = m.copy(per_view=True)
    trial.bundle(iterations=15, loss_px=0.5)
    log_f = np.log(trial.intrinsics[trial.registered, 0])
    spread = np.quantile(log_f, 0.95) - np.quantile(log_f, 0.05)
    return bool(spread > config.zoom_spread) or m.registered.mean() < 0.9


@contextmanager
def _matching_loops(
    tracks: FeatureTracks, names: NDArray, obs: Observations, config: TrackConfig
) -> Iterator[Callable[[], list[LoopMatch]]]:
    """Match keyframes that may show one place, beside what happens meanwhile; call what is given for the result."""
    lookup = np.full(int(names.max(initial=-1)) + 2, -1)
    lookup[names] = np.arange(len(names))
    keypoint_track = [np.where(k >= 0, lookup[k], -1) for k in tracks.keypoint_track]
    seen = np.zeros((obs.num_views, obs.num_tracks), np.float32)
    seen[obs.view, obs.track] = 1
    shared = (seen @ seen.T).astype(np.int64)

    def work() -> list[LoopMatch]:
        found = []
        for a, b in loop_candidates(tracks.features, shared, config.loops):
            if abandoned.is_set():
                break
            found.append(matched_loop(a, b, tracks.features, keypoint_track, config.loops))
        return [loop for loop in found if loop is not None]

    abandoned = threading.Event()
    with torch_threads(1), ThreadPoolExecutor(1) as pool:  # one for the matcher, one for the mapper
        matches = pool.submit(work)
        try:
            yield matches.result
        finally:
            abandoned.set()


def _close_loops(m: Map, matches: list[LoopMatch], config: TrackConfig) -> int:
    """Join tracks of keyframes that see the same place again; returns the number of loops kept."""
    obs = m.obs
    loops = []
    for loop in matches:
        if m.registered[loop.a] and m.registered[loop.b]:
            found = verified_loop(loop, m.points, m.pose, m.intrinsics, config.loops)
            if found is not None:
                loops.append(found)
    if not loops:
        return 0
    a, b = np.concatenate([x for x, _ in loops]), np.concatenate([y for _, y in loops])
    m.join_tracks(merge_tracks(obs.num_tracks, a, b, obs.view, obs.track))
    m.triangulate(limit=6 * config.mapper.inlier_px)
    for loss, limit in ((8.0, 6.0), (4.0, 3.0), (1.0, 1.0)):
        m.bundle(iterations=8, loss_px=loss)
        m.select(limit * config.mapper.inlier_px)
        m.triangulate(limit=limit * config.mapper.inlier_px)
    return len(loops)
