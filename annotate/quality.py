"""How good a clip is: its pictures in one decoding pass, its camera path from the track.

Every number that could not be measured is NaN per frame and absent from the clip's values; none is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import angle_between_deg
from ..records import Frame, Shot, Track, VideoInfo
from .video import VideoConfig, frames

FLOW_LINKS = 5  # flow over half a second is chained of so many links: in one step that of a fast camera is not found
_GAUSSIAN5 = np.array([0.054488685, 0.244201342, 0.402619947, 0.244201342, 0.054488685])  # ffmpeg's vf_vmafmotion.c


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What is measured at which size and spacing."""

    max_side: int = 1280  # VMAF motion and luma: long side in pixels; larger pictures are reduced to it
    blur_side: int = 640  # blur: the same, so that it compares between sources
    flow_side: int = 320  # optical flow: the same; its result is in pixels of the whole picture again
    flow_seconds: float = 0.5  # between the two frames of an optical-flow pair, and from pair to pair
    duplicate_levels: float = 1.5  # of 255: a smoothed frame that nowhere differs by more repeats the one before
    speed_window: int = 5  # steps whose running median gives the largest speeds
    jump_ratio: float = 6.0  # a step this many times faster than its neighbours is a jump ...
    jump_deg: float = 1.0  # ... a turn only if it is more than this many degrees too


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """Measured numbers, named as the manifest's columns.

    What the track says of itself (reprojection errors, coverage, fields of view) is not repeated here.

    Attributes:
        clip: what could be measured of the clip. Pictures: blur (median over frames), luma, saturation, vmaf_motion,
            flow_px (means), duplicate_ratio. Camera, where there is a track: trans_total_m, rot_total_deg,
            max_speed_m_s, max_rot_deg_s, jump_count. Lengths and speeds are in the track's units, metres only where
            its scale is metric.
        frames: [T] each, NaN where not measured: blur 0 (sharp) to 1, luma 0 to 255, saturation 0 to 255, vmaf_motion
            against the frame before, flow_px against the frame `flow_seconds` before (on the later frame of each pair),
            duplicate 1 where the frame repeats the one before.
    """

    clip: dict[str, float]
    frames: dict[str, NDArray[np.float64]]


def measure(
    info: VideoInfo,
    shot: Shot,
    track: Track | None,
    config: QualityConfig,
    *,
    video_config: VideoConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """Measure a shot in one decoding pass, and its track if it has one.

    Raises:
        BadMedia: the file cannot be decoded.
    """
    pictures = frames(
        info,
        start=shot.start,
        stop=shot.stop,
        max_side=config.max_side,
        crop=shot.crop,
        progress=progress,
        config=video_config,
    )
    per_frame = measure_pictures(pictures, info, shot, config)
    clip = {}
    for name, values in per_frame.items():
        if (measured := values[np.isfinite(values)]).size:
            average = np.median if name == "blur" else np.mean
            clip["duplicate_ratio" if name == "duplicate" else name] = float(average(measured))
    if track is not None:
        clip |= measure_track(track, config, photographs=shot.photographs)
    return Quality(clip=clip, frames=per_frame)


def measure_pictures(
    pictures: Iterable[Frame], info: VideoInfo, shot: Shot, config: QualityConfig
) -> dict[str, NDArray[np.float64]]:
    """The per-frame values of `Quality`.

    Args:
        pictures: frames of the shot in order, cropped to its crop; one that is missing has NaN everywhere. Motion is
            measured between frames that follow one another here; separate photographs have none.
    """
    names = ("blur", "luma", "saturation", "vmaf_motion", "flow_px", "duplicate")
    out = {name: np.full(shot.num_frames, np.nan) for name in names}
    swing = 219 / 255 if info.color_range != "pc" else 1.0  # ffmpeg measures luma as stored, 16 to 235
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    smooth_before: NDArray | None = None
    link: tuple[int, NDArray[np.uint8]] | None = None  # time and small picture of the last link of the chain
    chain: NDArray | None = None  # [h, w, 2] flow from the first frame of the pair to that link
    pair_ns = 0
    for frame in pictures:
        i = frame.index - shot.start
        gray = frame.gray
        out["luma"][i] = gray.mean()
        out["saturation"][i] = cv2.cvtColor(frame.thumb, cv2.COLOR_RGB2HSV)[..., 1].mean()
        out["blur"][i] = blur(_reduced(gray, config.blur_side))
        if shot.photographs:
            continue
        smooth = cv2.sepFilter2D(gray, cv2.CV_32F, _GAUSSIAN5, _GAUSSIAN5, borderType=cv2.BORDER_REFLECT_101)
        if smooth_before is not None:
            difference = cv2.absdiff(smooth, smooth_before)
            out["vmaf_motion"][i] = difference.mean() * swing
            out["duplicate"][i] = difference.max() < config.duplicate_levels
        smooth_before = smooth
        if link is None:
            link = (frame.pts_ns, _reduced(gray, config.flow_side))
            pair_ns = frame.pts_ns
        elif frame.pts_ns - link[0] >= config.flow_seconds * 1e9 / FLOW_LINKS:
            small = _reduced(gray, config.flow_side)
            step = flow.calc(link[1], small, None)  # type: ignore[call-overload]
            chain = step if chain is None else chain + _looked_up(step, chain)
            link = (frame.pts_ns, small)
            if frame.pts_ns - pair_ns >= config.flow_seconds * 1e9:
                size = np.array([shot.crop[2] / small.shape[1], shot.crop[3] / small.shape[0]])
                out["flow_px"][i] = np.linalg.norm(chain * size, axis=-1).mean()
                chain, pair_ns = None, frame.pts_ns
    return out


def blur(gray: NDArray[np.uint8]) -> float:
    """How little a picture changes when it is blurred again: 0 sharp, 1 blurred; nan for a picture without any edge.

    Source: Crete et al., The Blur Effect, SPIE 6492, 2007: the share of the neighbour differences that a 9-tap mean
    leaves standing, in the worse of the two directions.
    """
    picture = gray.astype(np.float32)
    shares = []
    for axis, size in ((0, (1, 9)), (1, (9, 1))):
        sharp = np.abs(np.diff(picture, axis=axis))
        total = float(sharp.sum())
        if total == 0:
            return float("nan")
        again = np.abs(np.diff(cv2.blur(picture, size), axis=axis))
        shares.append(1 - float(np.maximum(sharp - again, 0).sum()) / total)
    return max(shares)


def measure_track(track: Track, config: QualityConfig, *, photographs: bool = False) -> dict[str, float]:
    """The camera's part of `Quality.clip`; empty for fewer than two posed frames.

    Paths and speeds go from each posed frame to the next posed one, over true time: straight across a gap. Separate
    photographs have a path but no speed.
    """
    posed = np.flatnonzero(track.pose_valid)
    if len(posed) < 2:
        return {}
    camera = track.world_from_cam[posed]
    seconds = np.diff(track.pts_ns[posed]) / 1e9
    steps = np.linalg.norm(np.diff(camera[:, :3, 3], axis=0), axis=1)
    turns = angle_between_deg(camera[:-1, :3, :3], camera[1:, :3, :3])
    out = {"trans_total_m": float(steps.sum()), "rot_total_deg": float(turns.sum())}
    if photographs:
        return out
    speed, rate = steps / seconds, turns / seconds
    jumps = _spikes(speed, config) | (_spikes(rate, config) & (turns > config.jump_deg))
    return out | {
        "max_speed_m_s": float(_running_median(speed, config.speed_window).max()),
        "max_rot_deg_s": float(_running_median(rate, config.speed_window).max()),
        "jump_count": float(jumps.sum()),
    }


def _spikes(speed: NDArray[np.float64], config: QualityConfig) -> NDArray[np.bool_]:
    """Steps far faster than the five before and the five after them, and than the clip's median step."""
    out = np.zeros(len(speed), bool)
    usual = np.median(speed)
    for i, v in enumerate(speed):
        near = np.r_[speed[max(0, i - 5) : i], speed[i + 1 : i + 6]]
        out[i] = len(near) > 1 and v > config.jump_ratio * max(float(np.median(near)), usual / 2) and v > 1e-9
    return out


def _running_median(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Medians of all runs of `window` values, or of all of them where they are fewer."""
    size = min(window, len(values))
    return np.median(np.lib.stride_tricks.sliding_window_view(values, size), axis=-1)


def _looked_up(step: NDArray, chain: NDArray) -> NDArray:
    """The flow `step` at the places to which `chain` has carried each pixel, all [h, w, 2]."""
    y, x = np.mgrid[: step.shape[0], : step.shape[1]].astype(np.float32)
    return cv2.remap(step, x + chain[..., 0], y + chain[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _reduced(gray: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    scale = max_side / max(gray.shape)
    if scale >= 1:
        return gray
    size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)
