"""Depth of a shot, frame by frame into a file: from networks or as given, and one made metric by another.

    Pi3X: windows of frames, joined (`depth.clip_depth`)  ┐
    given: maps that a user has                           ┴─▶ file ─▶ compared with MoGe-2, frame by frame (`scale`)
    MoGe-2 alone: single frames, metric; no cameras         ─▶ file

Frames stream through; what is held is a window of pictures, and the file is read again where two depths are compared.
Neither sky nor moving things are masked: a moving thing's pixels agree with each other, so that the comparison counts
them, and the robust factor leaves out those that do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..records import Rejected, Shot, VideoInfo
from .depth import (
    DepthConfig,
    DepthTrack,
    FrameDepth,
    OutOfDeviceMemory,
    SingleBackend,
    SingleDepth,
    WindowBackend,
    clip_depth,
    metric_disagreement,
    shrunk,
    single_depths,
)
from .depth_clip import GIVEN_SIGMA, DepthClip, DepthWriter, finish_depth
from .features import Features, extract
from .given import cut_depth, open_given_depth
from .loops import LoopConfig, picture_loops
from .scale import FrameFactor, ScaleConfig, frame_factor, scale_track, usable_pixels
from .video import VideoConfig, pictures

Progress = Callable[[int, int], None]
_NO_FACTOR = FrameFactor(factor=math.nan, dispersion=math.nan, pixels=0, inliers=math.nan)


@dataclass(frozen=True, kw_only=True)
class DepthStageConfig:
    """How depth is computed, and what of the machine it may take."""

    device: str = "auto"  # cpu, cuda or cuda:1; auto: a GPU where there is one
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: half on a GPU, float32 on a CPU
    vram_gib: float | None = None  # of the device, for the networks; None: what is free on a GPU, any on a CPU
    pixel_limit: int = 255_000  # of a depth map
    batch: int = 2  # pictures that MoGe-2 sees at a time
    single_side: int = 1280  # that they are shrunk to: MoGe-2 makes them smaller still
    single_every_s: float = 0.5  # between the frames it sees where no other depth is asked for
    network_sigma: float = 0.05  # standard deviation of log depth that networks are taken to have where confident
    given_sigma: float = GIVEN_SIGMA  # the same of given depth
    loop_every_s: float = 1.0  # between the pictures that are compared for places seen again
    loop_side: int = 640  # that they are shrunk to
    loops: LoopConfig = field(default_factory=LoopConfig)
    window: DepthConfig = field(default_factory=DepthConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)

    def __post_init__(self) -> None:
        if self.batch < 1 or self.single_side < 1 or self.pixel_limit < 14 * 14:
            raise ValueError("batch and single_side are at least 1, pixel_limit at least 196")
        if self.vram_gib is not None and not self.vram_gib > 0:
            raise ValueError(f"vram_gib is above 0, not {self.vram_gib}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Backends:
    """The networks at hand, as functions; None: not asked for."""

    window: WindowBackend | None = None  # Pi3X
    longest: Callable[[int, int], int] | None = None  # frames of width x height that it has the memory for; None: any
    single: Callable[[tuple[int, int], float | None], SingleBackend] | None = None  # MoGe-2
    # for maps of (width, height), with the horizontal field of view in degrees where it is known


@dataclass(frozen=True, kw_only=True)
class Known:
    """Depth that the user has."""

    path: Path
    metric: bool


def estimate_depth(
    info: VideoInfo,
    shot: Shot,
    config: DepthStageConfig,
    backends: Backends,
    path: Path,
    *,
    known: Known | None = None,
    intrinsics: tuple[float, ...] | None = None,
    video_config: VideoConfig | None = None,
    progress: Progress | None = None,
) -> DepthClip | Rejected:
    """Depth of a shot's frames, written to `path`, which is of no use where the shot is refused.

    With MoGe-2 it is metric: the factors that take the other depth to MoGe-2's are smoothed over time, and cameras
    move by steps that grow with them. Without, Pi3X's is not called metric, although it comes near.

    Args:
        backends: Pi3X's is used unless depth is given; at least one of the three must be there.
        intrinsics: fx, fy, cx, cy in pixels of the display picture where they are known; MoGe-2 then is told.
        progress: called with (frames done, frames in all), each pass of a network over the shot counting.

    Raises:
        BadMedia: the video cannot be decoded, or given depth cannot be read or does not fit it.
    """
    video_config = video_config or VideoConfig()
    first = known is not None or backends.window is not None
    passes = first + (backends.single is not None)
    job = _Job(info, shot, config, video_config, path, intrinsics, progress, passes * shot.num_frames)
    if known is not None:
        clip = _given(job, known)
    elif backends.window is not None:
        clip = _windows(job, backends.window, backends.longest)
    elif backends.single is not None:
        clip = _singles(job, backends.single)
    else:
        raise ValueError("depth is neither given nor asked of a network")
    if first and backends.single is not None and isinstance(clip, DepthClip):
        clip = _fused(job, clip, backends.single)
    return finish_depth(clip) if isinstance(clip, DepthClip) else clip


@dataclass(frozen=True, eq=False)
class _Job:
    info: VideoInfo
    shot: Shot
    config: DepthStageConfig
    video_config: VideoConfig
    path: Path
    intrinsics: tuple[float, ...] | None
    progress: Progress | None
    total: int  # of frames, over all passes

    @property
    def fov_x_deg(self) -> float | None:
        """Of the shot's crop, where the camera is known."""
        if self.intrinsics is None:
            return None
        return math.degrees(2 * math.atan(self.shot.crop[2] / (2 * self.intrinsics[0])))

    def pictures(
        self,
        shown: list[int],
        *,
        before: int = 0,
        only: NDArray[np.int64] | None = None,
        max_side: int | None = None,
        watched: bool = True,
    ) -> Iterator[NDArray[np.uint8]]:
        """The shot's pictures, whose numbers are added to `shown`; `before`: passes over the shot that are done."""
        start, stop = self.shot.start, self.shot.stop
        stream = pictures(
            self.info,
            start=start,
            stop=stop,
            only=only,
            crop=self.shot.crop,
            max_side=max_side,
            config=self.video_config,
        )
        for index, picture in stream:
            shown.append(index)
            yield picture
            if self.progress is not None and watched:
                self.progress(before * (stop - start) + index + 1 - start, self.total)

    def refused(self, refusal: Rejected) -> Rejected:
        where = f"{self.info.path}, frames {self.shot.start} to {self.shot.stop - 1}"
        return replace(refusal, message=f"{where}: {refusal.message}")

    def refuse(self, reason: str, message: str) -> Rejected:
        return self.refused(Rejected(stage="depth", reason=reason, message=message))

    def clip(self, writer: DepthWriter, source: str, **facts: object) -> DepthClip:
        """The clip of what was written, not yet finished."""
        height, width = writer.shape
        known: dict[str, object] = {
            "factor": np.ones(len(writer.frame_index)),
            "world_from_cam": None,
            "focal_px": None,
            "metric": False,
            "scale": None,
            "relative_sigma": self.config.network_sigma,
        }
        return DepthClip(
            path=self.path,
            frame_index=np.array(writer.frame_index, np.int64),
            width=width,
            height=height,
            crop=self.shot.crop,
            source=source,
            **known | facts,  # type: ignore[arg-type]
        )

    def map_size(self) -> tuple[int, int]:
        """Width and height of the networks' maps."""
        from ..model.pi3x.geometry import target_size

        return target_size(self.shot.crop[2], self.shot.crop[3], self.config.pixel_limit)


# ---- the sources -------------------------------------------------------------------------------------------------


def _windows(job: _Job, backend: WindowBackend, longest: Callable[[int, int], int] | None) -> DepthClip | Rejected:
    """Pi3X's depth and cameras, with windows that fit into memory: halved where it runs out all the same."""
    wanted = job.config.window.length
    loops = _loops(job) if job.shot.num_frames > 3 * wanted else []
    try:
        length = wanted if longest is None else min(wanted, longest(*job.map_size()))
    except OutOfDeviceMemory as error:
        return job.refuse("out_of_memory", str(error))
    while True:
        try:
            clip = _windows_of(job, backend, length, loops)
            break
        except OutOfDeviceMemory as error:
            if length == 2:
                return job.refuse("out_of_memory", str(error))
        length = max(2, length // 2)
    short = length < wanted and isinstance(clip, DepthClip)
    return replace(clip, flags=("shorter_depth_windows",)) if short else clip


def _loops(job: _Job) -> list[tuple[int, int]]:
    """Frames of the stream, counted from 0, that show the same place: of one picture in `loop_every_s` each."""
    shown: list[int] = []
    at: list[int] = []
    features: list[Features] = []
    for picture in job.pictures(shown, max_side=job.config.loop_side, watched=False):
        seconds = job.info.pts_ns[shown[-1]] / 1e9
        if not at or seconds - job.info.pts_ns[shown[at[-1]]] / 1e9 >= job.config.loop_every_s:
            at.append(len(shown) - 1)
            features.append(extract(np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)))
    return [(at[a], at[b]) for a, b in picture_loops(features, job.config.loops)]


def _windows_of(job: _Job, backend: WindowBackend, length: int, loops: list[tuple[int, int]]) -> DepthClip | Rejected:
    config = job.config.window
    overlap = max(1, config.overlap * length // config.length)
    shown: list[int] = []
    focal: list[tuple[float, float]] = []
    track: DepthTrack | None = None
    with DepthWriter(job.path) as writer:
        stream = shrunk(job.pictures(shown), pixel_limit=job.config.pixel_limit)
        windows = replace(config, length=length, overlap=min(overlap, length - 1))
        for found in clip_depth(stream, backend, windows, loops=loops):
            if isinstance(found, Rejected):
                return job.refused(found)
            if isinstance(found, DepthTrack):
                track = found
                continue
            assert isinstance(found, FrameDepth)
            writer.add(shown[found.index], found.depth, found.confidence)
            focal.append(found.focal_px)
    assert track is not None
    height, width = writer.shape
    focal_px = np.array(focal) * [job.shot.crop[2] / width, job.shot.crop[3] / height]
    return job.clip(
        writer,
        "pi3x",
        factor=track.correction,
        world_from_cam=track.world_from_cam,
        focal_px=np.where(np.isfinite(focal_px) & (focal_px > 0), focal_px, np.nan),
    )


def _given(job: _Job, known: Known) -> DepthClip | Rejected:
    given = open_given_depth(known.path, job.info)
    rows = np.flatnonzero((given.frame_index >= job.shot.start) & (given.frame_index < job.shot.stop))
    pixels = 0
    with DepthWriter(job.path) as writer:
        for row in rows.tolist():
            depth, confidence = (cut_depth(x, given.crop, job.shot.crop) for x in given.read(row))
            pixels += writer.add(int(given.frame_index[row]), depth, confidence)
            if job.progress is not None:
                job.progress(int(given.frame_index[row]) + 1 - job.shot.start, job.total)
    if not pixels:
        return job.refuse("no_depth", f"{known.path} has no depth for any of them")
    return job.clip(writer, "given", metric=known.metric, relative_sigma=job.config.given_sigma)


def _singles(job: _Job, single: Callable[[tuple[int, int], float | None], SingleBackend]) -> DepthClip | Rejected:
    """MoGe-2's own depth of some frames: as much as the scale of a camera track asks for."""
    times_ns = job.info.pts_ns[job.shot.start : job.shot.stop]
    wanted: list[int] = []
    for index, pts_ns in enumerate(times_ns.tolist()):
        if not wanted or pts_ns - times_ns[wanted[-1]] >= job.config.single_every_s * 1e9:
            wanted.append(index)
    backend = single(job.map_size(), job.fov_x_deg)
    focal: list[float] = []
    pixels = 0
    with DepthWriter(job.path) as writer:
        for found in _passed(job, backend, job.shot.start + np.array(wanted)):
            if isinstance(found, Rejected):
                return found
            frame, depth = found
            pixels += writer.add(frame, depth.depth, np.isfinite(depth.depth))
            focal.append(depth.focal_widths * job.shot.crop[2])
    if not pixels:
        return job.refuse("no_depth", "MoGe-2 sees no surface in any of them")
    return job.clip(writer, "moge2", metric=True, focal_px=np.array([focal, focal]).T)


def _passed(
    job: _Job, backend: SingleBackend, only: NDArray[np.int64], *, before: int = 0
) -> Iterator[tuple[int, SingleDepth] | Rejected]:
    """MoGe-2's depth of these frames, with their numbers; in smaller batches from where memory runs out."""
    batch, done = job.config.batch, -1
    while True:
        shown: list[int] = []
        left = only[only > done]
        stream = job.pictures(shown, before=before, only=left, max_side=job.config.single_side)
        try:
            for found in single_depths(stream, backend, batch=batch):
                if isinstance(found, Rejected):
                    yield job.refused(found)
                    return
                done = shown[found.index]
                yield done, found
            return
        except OutOfDeviceMemory as error:
            if batch == 1:
                yield job.refuse("out_of_memory", str(error))
                return
        batch //= 2


def _fused(
    job: _Job, clip: DepthClip, single: Callable[[tuple[int, int], float | None], SingleBackend]
) -> DepthClip | Rejected:
    """The clip in metres, by MoGe-2's depth of its frames."""
    backend = single((clip.width, clip.height), job.fov_x_deg)
    row_of = {frame: row for row, frame in enumerate(clip.frame_index.tolist())}
    factors = [_NO_FACTOR] * len(row_of)
    for found in _passed(job, backend, clip.frame_index, before=1):
        if isinstance(found, Rejected):
            return found
        frame, metric = found
        depth, confidence = clip.read(row_of[frame])
        usable = usable_pixels(depth, metric.depth, job.config.scale, confidence=confidence)
        factors[row_of[frame]] = frame_factor(depth, metric.depth, usable, job.config.scale)
    scale = scale_track(factors, job.info.pts_ns[clip.frame_index], job.config.scale)
    if isinstance(scale, Rejected):
        return job.refused(scale)
    if clip.source == "pi3x" and (disagreement := metric_disagreement(scale.raw)) is not None:
        return job.refused(disagreement)
    cameras = clip.world_from_cam
    return replace(
        clip,
        factor=clip.factor * scale.smoothed,
        world_from_cam=None if cameras is None else _grown(cameras, scale.smoothed),
        metric=True,
        source=f"{clip.source}+moge2",
        scale=scale,
    )


def _grown(world_from_cam: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cameras [T, 4, 4] whose steps grow by the factors [T] of the frames that they lead from and to."""
    place = world_from_cam[:, :3, 3]
    steps = np.diff(place, axis=0) * np.sqrt(factor[1:] * factor[:-1])[:, None]
    out = world_from_cam.copy()
    out[:, :3, 3] = np.concatenate([factor[:1, None] * place[:1], steps]).cumsum(0)
    return out
