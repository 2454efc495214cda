"""From a shot to its camera track: the list of steps is `estimate_track`.

frames -> feature tracks (klt) -> for each chunk: motion class, map of the keyframes, loops, lens, focal length over
time, a pose for every frame (solve, every_frame) -> chunks joined -> metres (depth_prior) -> Track (assemble)

Three ways of knowing more than the pictures (SANA-WM, arXiv 2605.15178, sec. 4): depth that networks predict, depth
that is given, poses that are given.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import invert_pose
from ..records import Rejected, Shot, Track, VideoInfo
from .assemble import assemble, join
from .depth_clip import DepthClip
from .depth_prior import DepthPrior, find_units
from .given import GivenPoses
from .klt import feature_tracks
from .mapper import Intrinsics
from .solve import read_photographs, solve_given, solve_photographs, solve_video, with_tracks
from .solved import Solved, TrackConfig
from .video import VideoConfig, frames

__all__ = ["TrackConfig", "estimate_track"]


def estimate_track(
    info: VideoInfo,
    shot: Shot,
    config: TrackConfig,
    *,
    video_config: VideoConfig | None = None,
    intrinsics: tuple[float, ...] | None = None,
    depth: DepthClip | None = None,
    poses: GivenPoses | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Track | Rejected:
    """Camera poses and intrinsics for every frame of a shot.

    Args:
        intrinsics: fx, fy, cx, cy in pixels of the display picture where they are known.
        depth: what networks or sensors say of the shot's depth. Where its frames share one scale it is a prior, and its
            cameras, if it has some, are where estimation starts; where it is metric, so is the track.
        poses: of the video's frames; they are kept, but for their unit where the depth says how many metres that is.
        progress: called with (frames done, frames in all).

    Returns: the track, its world that of the first posed frame. Its unit is the metre where depth or poses are metric,
        that of the poses where these are given, else the scene's median depth in the first posed frame, or, where
        the camera only turns, of no meaning. Or a refusal.
    """
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
    prior = None
    if depth is not None:
        prior = DepthPrior(clip=depth, shot=shot, scale=scale, pts_ns=info.pts_ns, config=config.depth)
    given = None if poses is None else invert_pose(poses.world_from_cam)
    solved: list[Solved] = []
    if shot.photographs:
        photographs = read_photographs(stream, config, mask)
        if photographs is not None and given is not None:
            tracks = with_tracks(*photographs)
            solved.append(solve_given(tracks, given[tracks.frame_index], info.pts_ns, setting, config, prior))
        elif photographs is not None:
            solved.append(solve_photographs(*photographs, info.pts_ns, setting, config, prior))
    else:
        for tracks in feature_tracks(stream, config.klt, mask):
            before = solved[-1] if solved else None
            if known is None and before is not None and not before.per_view and before.focal_sigma.max() < 0.02:
                setting = Intrinsics(given=tuple(before.intrinsics[0]))
            if given is not None:
                solved.append(solve_given(tracks, given[tracks.frame_index], info.pts_ns, setting, config, prior))
            else:
                solved.append(solve_video(tracks, info.pts_ns, before, setting, config, prior))
    if not solved or sum(len(s.tracks.frame_index) for s in solved) < 2:
        return Rejected(stage="track", reason="too_few_frames", message=f"{info.path}: a camera track needs two frames")
    if given is not None:
        if not any(np.isfinite(s.world_from_cam).any() for s in solved):
            message = f"{info.path}, frames {shot.start} to {shot.stop - 1}: none of the given poses is of these frames"
            return Rejected(stage="track", reason="no_given_pose", message=message)
    elif not join(solved):
        if any("fisheye" in s.flags for s in solved):
            message = "the lens bends straight lines more than the camera model can follow: undistort the video first"
            return Rejected(stage="track", reason="fisheye", message=f"{info.path}: {message}")
        return Rejected(
            stage="track",
            reason="no_reconstruction",
            message=f"{info.path}, frames {shot.start} to {shot.stop - 1}: no part has enough matching points to find "
            "camera poses: too dark, too blurred, without texture, or frames that do not show one scene",
        )
    units = find_units(prior, poses, solved, config)
    return assemble(info, shot, solved, scale, known is not None, units, config)


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
