"""From a camera path to a film: its frames drawn, watched and encoded, with the depth of what was drawn."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ..annotate.depth_clip import STEP, DepthClip, DepthWriter, finish_depth
from ..annotate.sheet import Sheet, jpeg, pictured, shrunk
from ..annotate.video import encode_rgb, probe
from ..records import Rejected, Track, VideoInfo, known_track, motion_of
from ..render.camera_path import CameraPath, CheckResult, Plan
from ..render.enhance import HOLE, OPAQUE, Enhanced, Seen, difix, fill_holes, flicker
from ..render.rasterize import Backend, Rasterizer, Rendered
from .stages import Progress

AHEAD = 4  # frames that the rasteriser may be ahead of the encoders: what is in memory at once
FLICKER_EVERY = 8  # frames between those that flicker is measured at
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FilmConfig:
    """How a path is filmed, and what a film must not be."""

    backend: Backend = "auto"
    antialiased: bool | None = None  # None: as the scene's file says, else not
    depth_every: int = 1  # frames from one that depth is stored of to the next; 0: no depth
    enhance: Literal["none", "holes", "difix"] = "none"  # fill small holes, or have the network DiFix redraw all
    hole_px: int = 8  # widest hole that is filled
    crf: int = 18  # quality of H.264: 0 lossless, 51 worst
    max_blank: float = 0.3  # share of frames with a mean alpha below 0.5
    min_first_luma: float = 10.0  # mean of the first frame, 0 .. 255: below it is black

    def __post_init__(self) -> None:
        if self.depth_every < 0 or self.hole_px < 1 or not 0 <= self.crf <= 51:
            raise ValueError("depth_every is 0 or more, hole_px 1 or more, crf 0 to 51")


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """A path as it was filmed."""

    video: Path
    info: VideoInfo  # of the video
    depth: DepthClip | None
    sheet: Sheet
    depth_sheet: Sheet | None  # the same frames' depth, bright where near
    checks: tuple[CheckResult, ...]  # of the film
    coverage: float  # share of pixels with alpha 0.95 or more
    hole_ratio: float  # share of pixels with alpha below 0.5
    stats: dict[str, float | int | str | bool]  # the rasteriser, depth, holes and flicker
    plan: Plan | None = None  # of the scene around the path


def shoot(
    rasterizer: Rasterizer,
    path: CameraPath,
    config: FilmConfig,
    *,
    video: Path,
    depth: Path | None,
    antialiased: bool,
    scene_scale: float | None,
    progress: Progress | None = None,
) -> Film | Rejected:
    """Draw a path's frames, while those before are being encoded: the video, and the depth of what was drawn.

    A frame's depth is that of the rasteriser along the optical axis, and its trust is alpha: the share of the light
    that depth was taken from. Pixels that were enhanced keep theirs.

    Args:
        video, depth: files to write; no depth where None.
        scene_scale: metres of a unit of the scene; depth is in metres with it, else in units of the scene.
    """
    enhance = {"none": None, "holes": partial(fill_holes, max_px=config.hole_px), "difix": difix}[config.enhance]
    total = path.num_frames
    means, opaque, holes = (np.zeros(total) for _ in range(3))
    shown = pictured(total)
    jpegs: list[NDArray[np.uint8]] = []
    depths: list[NDArray[np.float32]] = []  # small, nan where a hole is
    flickers = _Flickers(path)
    first_luma, checks = 0.0, ()

    def encode(pictures: Iterator[NDArray[np.uint8]]) -> None:
        encode_rgb(video, pictures, path.fps, crf=config.crf)

    try:
        with ExitStack() as stack:
            to_video = stack.enter_context(_fed(encode))
            to_depth = None if depth is None else stack.enter_context(_fed(partial(_write_depth, depth)))
            for i in range(total):
                picture = rasterizer.draw(
                    path.world_from_cam[i], path.intrinsics[i], path.width, path.height, antialiased=antialiased
                )
                alpha = picture.alpha
                means[i], opaque[i], holes[i] = alpha.mean(), (alpha >= OPAQUE).mean(), (alpha < HOLE).mean()
                enhanced = None if enhance is None else enhance(picture)
                if enhanced is not None:
                    flickers.add(i, picture, enhanced)
                rgb = _eight_bits(picture.rgb if enhanced is None else enhanced.rgb)
                if i == 0:
                    first_luma = float((rgb @ np.array([0.299, 0.587, 0.114])).mean())
                checks = _film_checks(first_luma, float((means[: i + 1] < 0.5).sum() / total), config)
                for check in checks:
                    if not check.passed:
                        raise _Refused(check)
                to_video(rgb)
                if to_depth is not None and i % config.depth_every == 0:
                    to_depth((i, picture.depth, alpha))
                if i in shown:
                    jpegs.append(jpeg(shrunk(rgb)))
                    depths.append(shrunk(np.where(alpha >= HOLE, picture.depth, np.nan), cv2.INTER_NEAREST))
                if progress is not None:
                    progress(i + 1, total)
    except _Refused as refused:
        check = refused.check
        words = (
            f"{path.family}, seed {path.seed}: {check.name} is {check.value:.4g}, beyond its limit {check.limit:.4g}"
        )
        return Rejected(stage="film_check", reason=check.name, message=words)
    info = probe(video)
    if info.num_frames != total:
        raise RuntimeError(f"{video}: {total} frames were encoded, and {info.num_frames} are in it")
    shades, span = _depth_jpegs(depths)
    unit = scene_scale or 1.0
    frames = tuple(shown.tolist())
    return Film(
        video=video,
        info=info,
        depth=None if depth is None else _finished_depth(depth, path, config.depth_every, scene_scale),
        sheet=Sheet(frames=frames, jpegs=tuple(jpegs)),
        depth_sheet=None if span is None else Sheet(frames=frames, jpegs=shades),
        checks=checks,
        coverage=float(opaque.mean()),
        hole_ratio=float(holes.mean()),
        stats={
            "rasterizer": rasterizer.backend,
            "constants": rasterizer.profile.name,
            "antialiased": antialiased,
            "alpha_mean": float(means.mean()),
            **({} if span is None else {"depth_near": span[0] * unit, "depth_far": span[1] * unit}),
            **flickers.stats(),
        },
    )


class _Refused(Exception):
    """The film will not do."""

    def __init__(self, check: CheckResult) -> None:
        super().__init__(check.name)
        self.check = check


def _film_checks(first_luma: float, blank: float, config: FilmConfig) -> tuple[CheckResult, ...]:
    return (
        CheckResult(name="first_frame_luma", value=first_luma, limit=config.min_first_luma, bound="at_least"),
        CheckResult(name="blank_film", value=blank, limit=config.max_blank, bound="at_most"),
    )


class _Abandoned(Exception):
    """No more will come, and what came is not wanted."""


@contextmanager
def _fed(consume: Callable[[Iterator[T]], None]) -> Iterator[Callable[[T], None]]:
    """A consumer of an iterator in a thread of its own, and a function that hands it the next item.

    At most `AHEAD` items wait. On leaving, the consumer is waited for; its errors are raised here. Where this side
    fails, the iterator raises in the consumer, so that it cleans up.
    """
    waiting: queue.Queue[tuple[T, ...] | None] = queue.Queue(AHEAD)
    abandoned = False

    def items() -> Iterator[T]:
        while item := waiting.get():
            yield item[0]
        if abandoned:
            raise _Abandoned

    with ThreadPoolExecutor(1) as pool:
        consumer = pool.submit(consume, items())

        def put(item: tuple[T, ...] | None) -> None:
            while not consumer.done():
                try:
                    return waiting.put(item, timeout=0.5)
                except queue.Full:
                    continue

        def hand(item: T) -> None:
            put((item,))
            if consumer.done():
                consumer.result()

        try:
            yield hand
        except BaseException:
            abandoned = True
            raise
        finally:
            put(None)
        consumer.result()


def _write_depth(path: Path, maps: Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]) -> None:
    with DepthWriter(path) as writer:
        for i, depth, alpha in maps:
            writer.add(i, depth, np.minimum(alpha, 1))


def _finished_depth(file: Path, path: CameraPath, every: int, scene_scale: float | None) -> DepthClip:
    rows = np.arange(0, path.num_frames, every)
    clip = DepthClip(
        path=file,
        frame_index=rows,
        width=path.width,
        height=path.height,
        crop=(0, 0, path.width, path.height),
        factor=np.full(len(rows), scene_scale or 1.0),
        world_from_cam=_scaled(path.world_from_cam[rows], scene_scale),
        focal_px=path.intrinsics[rows, :2],
        metric=scene_scale is not None,
        source="rendered",
        scale=None,
        relative_sigma=STEP / 2,  # the most that its codes lose
    )
    return finish_depth(clip)


def _eight_bits(rgb: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(255 * rgb + 0.5, 0, 255).astype(np.uint8)


def _depth_jpegs(
    depths: Sequence[NDArray[np.float32]],
) -> tuple[tuple[NDArray[np.uint8], ...], tuple[float, float] | None]:
    """Depth maps in colours of 1 / depth, the same in all, holes black; the nearest and farthest depth of the scale.

    The scale leaves out a hundredth at either end. No pictures and None where all are holes.
    """
    known = np.concatenate([d[np.isfinite(d)] for d in depths])
    if not known.size:
        return (), None
    near, far = (float(d) for d in np.quantile(known, (0.01, 0.99)))
    out = []
    for d in depths:
        share = (1 / np.nan_to_num(d, nan=far) - 1 / far) / max(1 / near - 1 / far, 1e-12)
        shade = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
        colours = np.asarray(cv2.applyColorMap(shade, cv2.COLORMAP_INFERNO), np.uint8)
        colours[np.isnan(d)] = 0
        out.append(jpeg(colours[..., ::-1]))
    return tuple(out), (near, far)


class _Flickers:
    """How much an enhancer changed, and flicker there with and without it, at every `FLICKER_EVERY`th frame."""

    def __init__(self, path: CameraPath) -> None:
        self.path = path
        self.changed: list[float] = []
        self.found: list[tuple[float, float]] = []  # without, with
        self.last: tuple[Seen, Seen] | None = None

    def add(self, i: int, picture: Rendered, enhanced: Enhanced) -> None:
        self.changed.append(float(enhanced.changed.mean()))
        if i % FLICKER_EVERY > 1:
            return
        camera = {"world_from_cam": self.path.world_from_cam[i], "intrinsics": self.path.intrinsics[i]}
        now = tuple(Seen(rgb=rgb, depth=enhanced.depth, **camera) for rgb in (picture.rgb, enhanced.rgb))
        if i % FLICKER_EVERY == 1 and self.last is not None:
            plain, better = (flicker(a, b, enhanced.changed) for a, b in zip(self.last, now, strict=True))
            self.found.append((plain, better))
        self.last = (now[0], now[1])

    def stats(self) -> dict[str, float]:
        if not self.changed:
            return {}
        out = {"enhanced_ratio": float(np.mean(self.changed))}
        found = np.array(self.found).reshape(-1, 2)
        found = found[np.isfinite(found).all(1)]
        if len(found):
            out |= {"flicker_before": float(found[:, 0].mean()), "flicker_after": float(found[:, 1].mean())}
        return out


def _scaled(world_from_cam: NDArray[np.float64], scene_scale: float | None) -> NDArray[np.float64]:
    """Poses in metres, or in units of the scene where their length is not known."""
    out = world_from_cam.copy()
    out[:, :3, 3] *= scene_scale or 1.0
    return out


def true_track(path: CameraPath, pts_ns: NDArray[np.int64], scene_scale: float | None) -> Track:
    """The camera that a film was made with."""
    return known_track(
        pts_ns=pts_ns,
        world_from_cam=_scaled(path.world_from_cam, scene_scale),
        intrinsics=path.intrinsics,
        width=path.width,
        height=path.height,
        motion_class=motion_of(path.world_from_cam),
        scale_kind="relative" if scene_scale is None else "metric",
        pose_source="rendered",
        flags=() if path.parameters.get("anchors") == "training" else ("derived_cameras",),
    )
