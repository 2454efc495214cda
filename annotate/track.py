"""From a shot to its camera track: the list of steps is `estimate_track`.

frames -> feature tracks -> motion class -> map of the keyframes (mapper) -> loops -> lens, focal length over time
       -> a pose for every frame -> chunks joined -> Track
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import poselib
from numpy.typing import NDArray

from ..geometry import align_similarity, interpolate_pose, invert_pose, undistort
from ..records import Frame, Rejected, Shot, Track, VideoInfo
from .bundle import BundleConfig, batch_resect, torch_threads
from .features import extract
from .klt import FeatureTracks, KltConfig, feature_tracks
from .loops import LoopConfig, LoopMatch, loop_candidates, matched_loop, verified_loop
from .mapper import Intrinsics, Map, MapperConfig, Observations, reconstruct, reprojection_px
from .matching import (
    MatchConfig,
    PairMatches,
    consistent_pairs,
    match_pairs,
    merge_tracks,
    pairs_to_match,
    tracks_of_photographs,
    trusted_pairs,
)
from .motion import MotionConfig, classify, turning_map
from .twoview import Pair, focal_votes, relate, sampson, strongly_bent
from .video import VideoConfig, frames

MUCH_PARALLAX_PX = 4.0  # beyond which more says no more of a pair to start from
MOST_PAIRS = 40  # keyframe pairs that tell the kind of motion and vote for a focal length
HELD_OUT = 10  # every tenth track takes no part in estimation and measures it


@dataclass(frozen=True)
class TrackConfig:
    """How a camera track is estimated. Pixel thresholds of the parts are for an image diagonal of 800."""

    max_side: int = 960  # frames are tracked at most this large
    intrinsics_mode: str = "auto"  # "shared", "per_frame", or what the data ask for
    klt: KltConfig = field(default_factory=KltConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig)
    loops: LoopConfig = field(default_factory=LoopConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    zoom_evidence: float = 1.01  # times what one focal length explains, that per-frame focal lengths must explain,
    zoom_spread: float = 0.03  # and the spread (5 to 95 %) of log f they must show
    undetermined_above: float = 0.04  # relative standard deviation of a focal length that is not worth reporting
    frame_px: float = 3.0  # of an inlier of a frame between keyframes
    much_unexplained: float = 0.35  # share of tracks a map leaves over from which on a second scene is looked for,
    farther_out: float = 1.25  # which is the world if it covers so much more of the picture's border
    barrel: float = -0.12  # k1 beyond which, as where much is unexplained, the lens may be a fisheye
    min_frame_inliers: int = 12
    min_frame_ratio: float = 0.3

    def __post_init__(self) -> None:
        if self.intrinsics_mode not in ("auto", "shared", "per_frame"):
            raise ValueError(f"intrinsics_mode is auto, shared or per_frame, not {self.intrinsics_mode!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """A chunk's cameras in its own world, in pixels of the frames tracked."""

    tracks: FeatureTracks
    world_from_cam: NDArray[np.float64]  # [F, 4, 4] NaN where not posed
    intrinsics: NDArray[np.float64]  # [F, 6]
    per_view: bool
    focal_sigma: NDArray[np.float64]  # [F] relative
    motion_class: str
    flags: frozenset[str]
    point_track: NDArray[np.int64]  # [N] track numbers of the points
    points: NDArray[np.float64]  # [N, 3]
    obs_xy: NDArray[np.float64]  # [O, 2] positions of the chunk's observations, drift taken out
    residual: NDArray[np.float64]  # [O] px; nan without a point
    inlier: NDArray[np.bool_]  # [O]
    stats: dict[str, float]


def estimate_track(
    info: VideoInfo,
    shot: Shot,
    config: TrackConfig,
    *,
    video_config: VideoConfig | None = None,
    intrinsics: tuple[float, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Track | Rejected:
    """Camera poses and intrinsics for every frame of a shot.

    Args:
        intrinsics: fx, fy, cx, cy in pixels of the display picture where they are known.
        progress: called with (frames done, frames in all).

    Returns: the track, its world that of the first posed frame, in units of the scene's median depth there unless the
        camera only turns; or a refusal.
    """
    started = time.monotonic()
    x0, y0, crop_w, crop_h = shot.crop
    stream = frames(
        info,
        start=shot.start,
        stop=shot.stop,
        max_side=config.max_side,
        crop=shot.crop,
        progress=progress,
        config=video_config or VideoConfig(),
    )
    mask = _mask(shot, config.max_side)
    scale = crop_w / _size(crop_w, crop_h, config.max_side)[0]
    known = None if intrinsics is None else _to_working(intrinsics, x0, y0, scale)
    setting = Intrinsics(given=known)
    solved: list[Solved] = []
    if shot.photographs:
        photographs = _photographs(stream, config, mask)
        if photographs is not None:
            solved.append(_solve_photographs(*photographs, info.pts_ns, setting, config))
    else:
        for tracks in feature_tracks(stream, config.klt, mask):
            before = solved[-1] if solved else None
            if known is None and before is not None and not before.per_view and before.focal_sigma.max() < 0.02:
                setting = Intrinsics(given=tuple(before.intrinsics[0]))
            solved.append(_solve_video(tracks, info.pts_ns, before, setting, config))
    if not solved or sum(len(s.tracks.frame_index) for s in solved) < 2:
        return Rejected(stage="track", reason="too_few_frames", message=f"{info.path}: a camera track needs two frames")
    if not _join(solved):
        if any("fisheye" in s.flags for s in solved):
            message = "the lens bends straight lines more than the camera model can follow: undistort the video first"
            return Rejected(stage="track", reason="fisheye", message=f"{info.path}: {message}")
        return Rejected(
            stage="track",
            reason="no_reconstruction",
            message=f"{info.path}, frames {shot.start} to {shot.stop - 1}: no part has enough matching points to find "
            "camera poses: too dark, too blurred, without texture, or frames that do not show one scene",
        )
    return _assemble(info, shot, solved, scale, known is not None, config, time.monotonic() - started)


def _size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """The size that `frames` shrinks a picture to."""
    s = min(1.0, max_side / max(width, height))
    return max(1, round(width * s)), max(1, round(height * s))


def _mask(shot: Shot, max_side: int) -> NDArray[np.bool_] | None:
    """Where features may be born, in the size of the frames tracked; None for everywhere."""
    if shot.overlay is None:
        return None
    x, y, w, h = shot.crop
    part = shot.overlay[y : y + h, x : x + w]
    return cv2.resize(part.astype(np.uint8), _size(w, h, max_side), interpolation=cv2.INTER_AREA) == 0


def _to_working(k: tuple[float, ...], x0: float, y0: float, scale: float) -> tuple[float, ...]:
    fx, fy, cx, cy = k[:4]
    return (fx / scale, fy / scale, (cx - x0 + 0.5) / scale - 0.5, (cy - y0 + 0.5) / scale - 0.5, *k[4:6])


# ---- photographs -----------------------------------------------------------------------------------------------


def _photographs(
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


def _with_tracks(tracks: FeatureTracks, matches: list[PairMatches]) -> FeatureTracks:
    """The chunk of photographs with the tracks that these matches make."""
    view, track, xy, _ = tracks_of_photographs(tracks.features, matches)
    order = np.lexsort((track, view))
    return replace(
        tracks, row=view[order].astype(np.int32), track=track[order].astype(np.int32), xy=xy[order].astype(np.float32)
    )


def _solve_photographs(
    tracks: FeatureTracks,
    matches: list[PairMatches],
    pts_ns: NDArray[np.int64],
    setting: Intrinsics,
    config: TrackConfig,
) -> Solved:
    """Cameras of photographs: a map from the pairs that can be trusted, then from all that agree with it."""
    pairs = [m.pair for m in matches]
    seconds = pts_ns[tracks.frame_index] / 1e9
    size = float(max(tracks.width, tracks.height))
    guesses = _focal_guesses(pairs, size, None, setting, config)
    motion = classify(None, pairs, config.motion)
    trusted = trusted_pairs(tracks.features, matches, guesses[0], config.match)
    tracks = _with_tracks(tracks, trusted)
    _, obs = _observations(tracks, None)
    if motion == "flat":
        turned = turning_map(obs, config.mapper, setting, guesses, tracks.images, config.motion)
        if turned is not None:
            return _pose_every_frame(turned, tracks, seconds, "rotation", frozenset(), config)
        motion = "planar"
    starts = [(p.a, p.b) for p in _starting_pairs([m.pair for m in trusted])]
    complete: dict[bool, FeatureTracks] = {}  # the tracks that each map is made of

    def build(per_view: bool) -> Map | None:
        intrinsics = Intrinsics(given=setting.given, per_view=per_view)
        first = reconstruct(obs, config.mapper, intrinsics, guesses, starts)
        if first is None:
            return None
        first.polish(tracks.images, rounds=1)
        agreed = consistent_pairs(tracks.features, matches, first.pose, first.intrinsics, config.match)
        believed = {(m.pair.a, m.pair.b) for m in agreed}
        waiting = [m for m in trusted if not first.registered[[m.pair.a, m.pair.b]].all()]
        complete[per_view] = _with_tracks(tracks, agreed + [m for m in waiting if (m.pair.a, m.pair.b) not in believed])
        second = Map(_observations(complete[per_view], None)[1], config.mapper, intrinsics, guesses[0])
        second.take_cameras(first)
        second.adjust_all()
        second.grow()
        second.polish(tracks.images, rounds=2)
        second.look_again(tracks.images)
        second.polish(tracks.images, rounds=3)
        return second

    best = _choose_focal_model(build, setting, config)
    if best is None or not best.inlier.any():
        return _still(tracks, setting, "general", frozenset({"no_reconstruction"}), config)
    return _pose_every_frame(best, complete[best.setting.per_view], seconds, motion, frozenset(), config)


# ---- one chunk -------------------------------------------------------------------------------------------------


def _solve_video(
    tracks: FeatureTracks,
    pts_ns: NDArray[np.int64],
    before: Solved | None,
    setting: Intrinsics,
    config: TrackConfig,
) -> Solved:
    """Cameras of one chunk of a video."""
    seconds = pts_ns[tracks.frame_index] / 1e9
    pairs = _keyframe_pairs(tracks)
    motion = classify(tracks, pairs, config.motion)
    if motion == "static":
        return _still(tracks, setting, "static", frozenset(), config)
    names = np.unique(tracks.track)
    best, motion, flags = _map_of_video(tracks, names, pairs, motion, seconds, before, setting, config)
    if best is None or not best.inlier.any():
        return _still(tracks, setting, "general", frozenset({"no_reconstruction"}), config)
    rest = _unexplained(best, tracks, names, config)
    if (rest is not None or best.intrinsics[0, 4] < config.barrel) and _is_fisheye(tracks):
        return _still(tracks, setting, "general", frozenset({"fisheye"}), config)
    if rest is not None:
        pairs = _keyframe_pairs(rest)
        motion_of_rest = classify(None, pairs, config.motion)
        other, motion_of_rest, more = _map_of_video(
            rest, names, pairs, motion_of_rest, seconds, before, setting, config
        )
        flags |= {"much_moves"}
        if other is not None and _unexplained(other, rest, names, config) is None and _surrounds(other, best, config):
            best, motion, flags = other, motion_of_rest, more | {"much_moves"}
    return _pose_every_frame(best, tracks, seconds, motion, flags, config)


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
) -> tuple[Map | None, str, frozenset[str]]:
    """The map of a chunk's keyframes, if there is one, the motion class, and flags."""
    names, obs = _observations(tracks, seconds, names)
    guesses = _focal_guesses(pairs, float(max(tracks.width, tracks.height)), before, setting, config)
    if motion == "flat":
        turned = turning_map(obs, config.mapper, setting, guesses, tracks.images, config.motion)
        if turned is not None:
            return turned, "rotation", frozenset()
        motion = "planar"
    starts = [(p.a, p.b) for p in _starting_pairs(pairs)]

    def build(per_view: bool) -> Map | None:
        intrinsics = Intrinsics(given=setting.given, per_view=per_view)
        m = reconstruct(obs, config.mapper, intrinsics, guesses, starts)
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
    return best, motion, frozenset({"loop_closed"} if loops else ())


def _observations(
    tracks: FeatureTracks, seconds: NDArray | None, names: NDArray | None = None
) -> tuple[NDArray, Observations]:
    """What keyframes see, without the held-out tracks, and the numbers [N] of its tracks (`names` where they are to be
    some of these). `seconds` are None for photographs."""
    names = np.unique(tracks.track) if names is None else names
    local = np.searchsorted(names, tracks.track)
    rank = np.full(len(tracks.frame_index), -1)
    rank[tracks.keyframes] = np.arange(len(tracks.keyframes))
    use = (rank[tracks.row] >= 0) & (tracks.track % HELD_OUT != HELD_OUT - 1)
    obs = Observations.sorted(
        view=rank[tracks.row[use]],
        track=local[use],
        xy=tracks.xy[use],
        width=tracks.width,
        height=tracks.height,
        num_views=len(tracks.keyframes),
        num_tracks=len(names),
        time_s=None if seconds is None else seconds[tracks.keyframes],
    )
    return names, obs


def _choose_focal_model(build: Callable[[bool], Map | None], setting: Intrinsics, config: TrackConfig) -> Map | None:
    """A map with one focal length, or with one each where the data ask for it."""
    if setting.given is not None or config.intrinsics_mode == "shared":
        return build(False)
    if config.intrinsics_mode == "per_frame":
        return build(True)
    shared = build(False)
    if shared is not None and not _wants_zoom(shared, config):
        return shared
    varying = build(True)
    if shared is None or varying is None:
        return shared if varying is None else varying
    # A zoom passes for a dolly near by, but not far away: what has no parallax decides
    explained = [_loosened(m, m.config.inlier_px).score() for m in (shared, varying)]
    return varying if explained[1] > config.zoom_evidence * explained[0] else shared


def _keyframe_pairs(tracks: FeatureTracks) -> list[Pair]:
    """Two-view geometry of keyframes with the farthest later one that still shares a third of their tracks."""
    centre = np.array([(tracks.width - 1) / 2, (tracks.height - 1) / 2])
    px = np.hypot(tracks.width, tracks.height) / 800
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
            pair = relate(i, j, seen[i][1][ia], seen[j][1][ib], limit_px=1.0 * px)
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


# ---- every frame -----------------------------------------------------------------------------------------------


def _pose_every_frame(
    m: Map,
    tracks: FeatureTracks,
    seconds: NDArray,
    motion: str,
    flags: frozenset[str],
    config: TrackConfig,
) -> Solved:
    """Poses of the frames between keyframes, from the points they see."""
    num = len(tracks.frame_index)
    names, local = np.unique(tracks.track.astype(np.int64), return_inverse=True)
    per_view = m.setting.per_view
    keys = tracks.keyframes[m.registered]
    point = m.label[local]
    xy = _corrected(m, tracks, local)
    pose, intrinsics = _between(keys, m.pose[m.registered], m.intrinsics[m.registered], num, seconds)
    o = np.flatnonzero(m.has_point[point])
    used, compact = np.unique(point[o], return_inverse=True)
    limit = config.frame_px * m.px
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
    is_key = np.zeros(num, bool)
    is_key[keys] = True
    pose = np.where(is_key[:, None, None], pose, found.cam_from_world)
    intrinsics = np.where(is_key[:, None], intrinsics, found.intrinsics)
    residual = np.full(len(tracks.row), np.nan)
    residual[o] = reprojection_px(pose[tracks.row[o]], intrinsics[tracks.row[o]], m.points[point[o]], xy[o])
    if not m.turning:
        for row in _doubtful(residual, tracks.row, num, limit, config):
            _resect_alone(row, pose, intrinsics, m, tracks, o, point, xy, limit)
        residual[o] = reprojection_px(pose[tracks.row[o]], intrinsics[tracks.row[o]], m.points[point[o]], xy[o])
    pose[_doubtful(residual, tracks.row, num, limit, config)] = np.nan
    residual[np.isnan(pose[tracks.row, 0, 0])] = np.nan
    error = m.residual_px(np.flatnonzero(m.inlier))
    has = np.flatnonzero(m.has_point[m.label])
    return Solved(
        tracks=tracks,
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
        stats={
            "ba_rmse_px": float(np.sqrt((error**2).mean())),
            "num_points": float(m.has_point.sum()),
            "num_keyframes": float(m.registered.sum()),
        },
    )


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
    """[6] what is given, or a horizontal field of view of about 60 degrees about the image centre."""
    if setting.given is not None:
        return np.array([*setting.given, 0.0, 0.0])[:6]
    f = 0.87 * max(tracks.width, tracks.height)
    return np.array([f, f, (tracks.width - 1) / 2, (tracks.height - 1) / 2, 0.0, 0.0])


def _still(
    tracks: FeatureTracks, setting: Intrinsics, motion: str, flags: frozenset[str], config: TrackConfig
) -> Solved:
    """A camera that stays where it is ("static"), or one that could not be estimated ("general", poses NaN)."""
    num = len(tracks.frame_index)
    row = _prior_intrinsics(tracks, setting)
    pose = np.tile(np.eye(4), (num, 1, 1)) if motion == "static" else np.full((num, 4, 4), np.nan)
    home = _median_position(tracks)
    residual = np.linalg.norm(tracks.xy - home, axis=1) if motion == "static" else np.full(len(tracks.row), np.nan)
    return Solved(
        tracks=tracks,
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
        inlier=residual < config.frame_px * np.hypot(tracks.width, tracks.height) / 800,
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


# ---- the whole shot ----------------------------------------------------------------------------------------------


def _join(solved: list[Solved]) -> bool:
    """Move every chunk into the world of the first, in place of its `world_from_cam` and `points`.

    Chunks share points: a similarity found robustly from those; where one has none (a camera that turns or stays) the
    poses of shared frames give a rigid motion. What cannot be joined to the longest run of chunks loses its poses.
    False where no frame has a pose.
    """
    runs: list[list[int]] = [[0]]
    for k in range(1, len(solved)):
        if _attach(solved[k - 1], solved[k]):
            runs[-1].append(k)
        else:
            runs.append([k])
    posed = [sum(np.isfinite(solved[k].world_from_cam[:, 0, 0]).sum() for k in run) for run in runs]
    best = set(runs[int(np.argmax(posed))])
    for k, s in enumerate(solved):
        if k not in best:
            s.world_from_cam[:] = np.nan
    return max(posed) > 0


def _attach(a: Solved, b: Solved) -> bool:
    """Move chunk b, in place, to where it continues chunk a; False where nothing ties them."""
    _, ia, ib = np.intersect1d(a.point_track, b.point_track, return_indices=True)
    if len(ia) >= 20:
        source, target = b.points[ib], a.points[ia]
        keep = np.ones(len(ia), bool)
        s, rotation, t = align_similarity(source, target)
        for _ in range(10):
            error = np.linalg.norm(target - (s * source @ rotation.T + t), axis=1)
            keep = error <= max(2.5 * float(np.median(error[keep])), 1e-12)
            s, rotation, t = align_similarity(source[keep], target[keep])
        if keep.sum() < 15:
            return False
    else:
        _, fa, fb = np.intersect1d(a.tracks.frame_index, b.tracks.frame_index, return_indices=True)
        both = np.isfinite(a.world_from_cam[fa, 0, 0]) & np.isfinite(b.world_from_cam[fb, 0, 0])
        if not both.any() or (len(a.points) and len(b.points)):
            return False
        i = np.flatnonzero(both)[-1]
        move = a.world_from_cam[fa[i]] @ invert_pose(b.world_from_cam[fb[i]])
        s, rotation, t = 1.0, move[:3, :3], move[:3, 3]
    b.world_from_cam[:, :3, 3] = s * b.world_from_cam[:, :3, 3] @ rotation.T + t
    b.world_from_cam[:, :3, :3] = rotation @ b.world_from_cam[:, :3, :3]
    b.points[:] = s * b.points @ rotation.T + t
    return True


def _assemble(
    info: VideoInfo,
    shot: Shot,
    solved: list[Solved],
    scale: float,
    given: bool,
    config: TrackConfig,
    seconds: float,
) -> Track:
    """One record for the shot from its chunks; frames that were not decoded have no pose."""
    num = shot.num_frames
    per_frame: dict[str, NDArray] = {
        "world_from_cam": np.full((num, 4, 4), np.nan),
        "intrinsics": np.full((num, 6), np.nan),
        "focal_sigma": np.full(num, np.nan),
        "is_keyframe": np.zeros(num, bool),
        "reproj_rmse_px": np.full(num, np.nan),
        "sampson_px": np.full(num, np.nan),
        "num_tracked": np.zeros(num, np.int32),
        "inlier_ratio": np.full(num, np.nan),
        "coverage": np.full(num, np.nan),
        "dyn_ratio": np.full(num, np.nan),
        "step_px": np.full(num, np.nan),
    }
    examples = []
    for s in solved:
        rows = s.tracks.frame_index - shot.start
        new = np.isnan(per_frame["intrinsics"][rows, 0])  # what two chunks share is the earlier one's
        for name, values in _measure(s, scale, shot.photographs).items():
            per_frame[name][rows[new]] = values[new]
        examples.append(_examples(s, rows, new))
    pose = per_frame["world_from_cam"]
    valid: NDArray[np.bool_] = np.asarray(np.isfinite(pose).all((1, 2)))
    pose[~valid] = np.nan
    unit = 1.0
    if valid.any():
        first = invert_pose(pose[np.flatnonzero(valid)[0]])
        pose[valid] = first @ pose[valid]
        unit = _unit(solved, first)
        pose[valid, :3, 3] /= unit
    intrinsics = _fill(per_frame["intrinsics"])
    k = intrinsics[:, :4] * scale
    k[:, 2] += (scale - 1) / 2 + shot.crop[0]
    k[:, 3] += (scale - 1) / 2 + shot.crop[1]
    distortion = tuple(float(x) for x in intrinsics[0, 4:6])
    per_view = any(s.per_view for s in solved) or bool(np.ptp(k[:, 0]) > 1e-9 * k[0, 0])
    sigma = per_frame.pop("focal_sigma")
    known = sigma[np.isfinite(sigma)]
    if given:
        status = "given"
    elif len(known) and float(np.median(known)) <= config.undetermined_above:
        status = "estimated"
    else:
        status = "undetermined"
    classes = [s.motion_class for s in solved]
    motion = next(c for c in ("general", "planar", "rotation", "static") if c in classes)
    flags = set().union(*(s.flags for s in solved))
    if not valid.all():
        flags.add("frames_without_pose")
    if status == "undetermined":
        flags.add("focal_undetermined")
    if len(solved) > 1:
        flags.add("joined_chunks")
    stats = {"seconds": seconds, "num_chunks": float(len(solved)), "unit": unit}
    for name in ("num_points", "num_keyframes"):
        stats[name] = float(sum(s.stats.get(name, 0.0) for s in solved))
    rmse = [s.stats["ba_rmse_px"] for s in solved if "ba_rmse_px" in s.stats]
    if rmse:
        stats["ba_rmse_px"] = scale * float(np.sqrt(np.mean(np.square(rmse))))
    del per_frame["world_from_cam"], per_frame["intrinsics"]
    return Track(
        pts_ns=info.pts_ns[shot.start : shot.stop],
        width=info.width,
        height=info.height,
        world_from_cam=pose,
        pose_valid=valid,
        intrinsics=k,
        intrinsics_mode="per_frame" if per_view else "static",
        focal_status=status,
        focal_sigma=np.where(np.isfinite(sigma), sigma, np.nan),
        distortion_model="opencv_radial" if any(distortion) else "none",
        distortion=distortion if any(distortion) else (),
        motion_class=motion,
        flags=tuple(sorted(flags)),
        scale_kind="relative",
        pose_source="classical",
        stats=stats,
        examples=np.concatenate(examples) * [1, 1, scale, scale] + _offset(shot, scale),
        **per_frame,
    )


def _offset(shot: Shot, scale: float) -> NDArray[np.float32]:
    """What turns scaled working pixels (row, track, x, y) into display pixels."""
    return np.array([0, 0, (scale - 1) / 2 + shot.crop[0], (scale - 1) / 2 + shot.crop[1]], np.float32)


def _fill(intrinsics: NDArray) -> NDArray:
    """Intrinsics of frames without any, from the nearest frame that has them."""
    known = np.flatnonzero(np.isfinite(intrinsics[:, 0]))
    after = known[np.searchsorted(known, np.arange(len(intrinsics))).clip(0, len(known) - 1)]
    before = known[(np.searchsorted(known, np.arange(len(intrinsics)), side="right") - 1).clip(0)]
    here = np.arange(len(intrinsics))
    return intrinsics[np.where(np.abs(after - here) < np.abs(here - before), after, before)]


def _unit(solved: list[Solved], first_cam_from_world: NDArray) -> float:
    """Length that becomes 1: the median depth of the points in front of the first posed camera; 1 without points."""
    for s in solved:
        if len(s.points):
            depth = s.points @ first_cam_from_world[2, :3] + first_cam_from_world[2, 3]
            depth = depth[depth > 0]
            if len(depth):
                return float(np.median(depth))
    return 1.0


def _measure(s: Solved, scale: float, photographs: bool) -> dict[str, NDArray]:
    """Per-frame arrays of one chunk, in display pixels."""
    tracks = s.tracks
    num = len(tracks.frame_index)
    row, good = tracks.row, s.inlier
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.bincount(row, minlength=num)
        pointed = np.bincount(row[np.isfinite(s.residual)], minlength=num)
        inliers = np.bincount(row[good], minlength=num)
        square = np.bincount(row[good], s.residual[good] ** 2, num)
        cell = np.floor(tracks.xy / [tracks.width, tracks.height] * 8).clip(0, 7).astype(int)
        cells = np.unique((row * 64 + cell[:, 1] * 8 + cell[:, 0])[good]) // 64
        posed = np.isfinite(s.world_from_cam[:, 0, 0])
        keyframe = np.zeros(num, bool)
        keyframe[tracks.keyframes] = True
        return {
            "world_from_cam": s.world_from_cam,
            "intrinsics": s.intrinsics,
            "focal_sigma": s.focal_sigma,
            "is_keyframe": keyframe,
            "num_tracked": seen.astype(np.int32),
            "reproj_rmse_px": scale * np.sqrt(square / np.where(inliers, inliers, np.nan)),
            "inlier_ratio": inliers / np.where(pointed, pointed, np.nan),
            "coverage": np.where(posed, np.bincount(cells, minlength=num) / 64, np.nan),
            "dyn_ratio": _moving_share(s),
            "sampson_px": scale * _held_out_sampson(s, photographs),
            "step_px": np.full(num, np.nan) if photographs else scale * _step(tracks),
        }


def _moving_share(s: Solved) -> NDArray:
    """[F] share of the tracks longer than two keyframes that do not move with the scene."""
    tracks = s.tracks
    num = len(tracks.frame_index)
    life = np.unique(tracks.track, return_inverse=True, return_counts=True)
    gap = max(2, int(np.median(np.diff(tracks.keyframes))) if len(tracks.keyframes) > 1 else 2)
    long = (life[2] >= gap)[life[1]] & (tracks.track % HELD_OUT != HELD_OUT - 1)
    posed = np.isfinite(s.world_from_cam[tracks.row, 0, 0])
    seen = np.bincount(tracks.row[long & posed], minlength=num)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(tracks.row[long & posed & ~s.inlier], minlength=num) / np.where(seen, seen, np.nan)


def _held_out_sampson(s: Solved, photographs: bool) -> NDArray:
    """[F] median Sampson distance (px) of the tracks that took no part, to the keyframe before (of photographs: to the
    photograph that shares most of them). Source: Hartley & Zisserman, 2nd ed., eq. 11.9."""
    tracks = s.tracks
    num = len(tracks.frame_index)
    out = np.full(num, np.nan)
    held = np.flatnonzero(tracks.track % HELD_OUT == HELD_OUT - 1)
    bounds = np.searchsorted(tracks.row[held], np.arange(num + 1))
    sets = [held[bounds[r] : bounds[r + 1]] for r in range(num)]
    moved = len(s.points) > 0
    for r in range(num):
        if not np.isfinite(s.world_from_cam[r, 0, 0]) or not len(sets[r]):
            continue
        if photographs:
            shared = [
                len(np.intersect1d(tracks.track[sets[r]], tracks.track[o])) if q != r else 0 for q, o in enumerate(sets)
            ]
            q = int(np.argmax(shared))
        else:
            q = int(tracks.keyframes[max(0, np.searchsorted(tracks.keyframes, r) - 1)])
        if q == r or not np.isfinite(s.world_from_cam[q, 0, 0]):
            continue
        _, i, j = np.intersect1d(tracks.track[sets[r]], tracks.track[sets[q]], return_indices=True)
        if len(i) < 5:
            continue
        a, b = _pinhole(s, r, sets[r][i]), _pinhole(s, q, sets[q][j])
        rel = invert_pose(s.world_from_cam[q]) @ s.world_from_cam[r]
        if moved:
            distance = sampson(a, b, rel)
        else:
            turned = a @ rel[:3, :3].T
            distance = np.linalg.norm(turned[:, :2] / turned[:, 2:] - b[:, :2], axis=1)
        out[r] = np.median(distance) * s.intrinsics[r, 0]
    return out


def _pinhole(s: Solved, row: int, o: NDArray) -> NDArray:
    """Homogeneous undistorted image points [n, 3] of observations o of a frame."""
    k = s.intrinsics[row]
    n = undistort((s.obs_xy[o] - k[2:4]) / k[:2], k[4], k[5])
    return np.concatenate([n, np.ones((len(n), 1))], 1)


def _step(tracks: FeatureTracks) -> NDArray:
    """[F] median displacement (px) of tracks from the frame before; nan at the first."""
    out = np.full(len(tracks.frame_index), np.nan)
    bounds = np.searchsorted(tracks.row, np.arange(len(out) + 1))
    for r in range(1, len(out)):
        a, b = slice(bounds[r - 1], bounds[r]), slice(bounds[r], bounds[r + 1])
        _, i, j = np.intersect1d(tracks.track[a], tracks.track[b], assume_unique=True, return_indices=True)
        if len(i):
            out[r] = np.median(np.linalg.norm(tracks.xy[b][j] - tracks.xy[a][i], axis=1))
    return out


def _examples(s: Solved, rows: NDArray, new: NDArray, *, count: int = 8, points: int = 150) -> NDArray[np.float32]:
    """[M, 4] (frame of the shot, track, x, y) of inliers in a few keyframes."""
    mine = [k for k in s.tracks.keyframes if new[k]]
    chosen = (
        [mine[i] for i in np.unique(np.linspace(0, len(mine) - 1, min(count, len(mine))).round().astype(int))]
        if mine
        else []
    )
    out = []
    for k in chosen:
        o = np.flatnonzero((s.tracks.row == k) & s.inlier)
        o = o[np.argsort(s.tracks.track[o].astype(np.int64) * 2654435761 % 4294967296)][:points]
        out.append(np.column_stack([np.full(len(o), rows[k]), s.tracks.track[o], s.obs_xy[o]]))
    return np.concatenate(out).astype(np.float32) if out else np.zeros((0, 4), np.float32)
