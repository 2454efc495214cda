"""From splat scenes to a manifest of posed clips: the list of stages, and the run that takes every scene through them.

    scene (a file) -> for each candidate: path -> film -> quality -> a row of the manifest

as `GRAPH` declares it.

A candidate is a camera path from a seed. One that fails a check, of the path before it is filmed or of the film, has no
row: it is counted by its reason in the run's record. All else ends in a row, be it with status failed.

A run may be cut off anywhere: the next one with the same output takes up what is on record (`stages`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import queue
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ..annotate.depth_clip import MEANING, STEP, DepthClip, DepthWriter, finish_depth
from ..annotate.quality import Quality, QualityConfig, measure
from ..annotate.sheet import Sheet, jpeg, pictured, shrunk
from ..annotate.video import VideoConfig, encode_rgb, probe
from ..datasets import filters, schema
from ..datasets.manifest import create_manifest
from ..model import hub
from ..model.networks import NETWORKS
from ..records import BadMedia, LongtakeError, Rejected, Shot, Track, VideoInfo, known_track, motion_of
from ..render.camera_path import (
    EXTENTS,
    FAMILIES,
    CameraPath,
    CheckResult,
    PathConfig,
    PathLimits,
    Plan,
    Survey,
    attempt,
    derive_cameras,
    draw_plan,
    survey,
)
from ..render.cameras import find_cameras, read_cameras
from ..render.cuda import check_kernels, device_found
from ..render.enhance import HOLE, OPAQUE, Enhanced, Seen, difix, fill_holes, flicker
from ..render.rasterize import Backend, Rasterizer, Rendered
from ..render.scene import Scene, read_scene
from .config import MissingPart, UsageError, nearest
from .depth import Facts, licences, revisions
from .display import make_display
from .ledger import Ledger, Run
from .run import carry_out, check_executor, fingerprint, given_file, scratch_file
from .stages import Artifacts, Graph, Job, Outcome, Progress, Ref, Resources, Stage, keep_file

LIMIT_S, LIMIT_S_PER_FRAME = 3600.0, 60.0  # a job that takes longer hangs; the slowest rasteriser takes seconds a frame
AHEAD = 4  # frames that the rasteriser may be ahead of the encoders: what is in memory at once
FLICKER_EVERY = 8  # frames between those that flicker is measured at
CHECKED = ("camera_path", "film_check")  # stages of refusals that are a candidate's, not a failure
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Which cameras paths are designed from."""

    cameras: str | None = None  # training cameras; {folder} and {stem} are the scene's; None: looked for beside it
    views: Literal["outside", "inside"] | None = None  # derived for scenes without: of an object, or of a room
    up: tuple[float, ...] = (0.0, -1.0, 0.0)  # the scene's up, for derived cameras alone
    drop_invalid: bool = False  # leave out splats that cannot be drawn, rather than refuse the scene

    def __post_init__(self) -> None:
        if len(self.up) != 3 or not math.hypot(*self.up) > 0:
            raise ValueError(f"up is a direction x, y, z, not {self.up}")


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


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """All that a row depends on besides its scene."""

    design: int = 40  # candidates a scene; a quarter of them near the training cameras
    families: tuple[str, ...] = ()  # of paths, in turn; none: all, as `render.camera_path.design` mixes them
    seed: int = 0
    scene_scale: float | None = None  # metres that a unit of the scene is; None: not known, clips are relative
    profile: Literal["none", "sana_wm"] = "none"  # filter profile that judges the clips
    source: str | None = None  # whose thresholds of sana_wm, such as dl3dv_gs
    source_dataset: str | None = None  # stated by the user, kept in every row
    license: str | None = None  # the same
    scene: SceneConfig = field(default_factory=SceneConfig)
    path: PathConfig = field(default_factory=PathConfig)
    limits: PathLimits = field(default_factory=PathLimits)
    film: FilmConfig = field(default_factory=FilmConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        if self.design < 1:
            raise ValueError(f"design is a number of candidates, not {self.design}")
        for family in self.families:
            if family not in FAMILIES:
                raise ValueError(f"path family {family!r} is none of {', '.join(FAMILIES)}.{nearest(family, FAMILIES)}")
        if self.scene_scale is not None and not 0 < self.scene_scale < math.inf:
            raise ValueError(f"a unit of the scene cannot be {self.scene_scale} metres")
        if self.path.width % 2 or self.path.height % 2 or min(self.path.width, self.path.height) < 16:
            raise ValueError(f"{self.path.width} x {self.path.height}: H.264 needs even sides, and 16 pixels at least")
        if self.profile != "none":
            filters.rules(self.profile, self.source)
        elif self.source is not None:
            raise ValueError(f"source {self.source!r} chooses thresholds of the profile sana_wm: set profile too")

    def candidates(self) -> list[tuple[str, int]]:
        """Family and seed of every candidate; without chosen families those of `render.camera_path.design`."""
        others = [name for name in FAMILIES if name != "near_training"]
        out = []
        for i in range(self.design):
            family = "near_training" if i % 4 == 0 else others[(i - i // 4 - 1) % len(others)]
            if self.families:
                family = self.families[i % len(self.families)]
            out.append((family, int(np.random.SeedSequence([self.seed, i]).generate_state(1)[0])))
        return out


@dataclass(frozen=True, kw_only=True)
class Config:
    """The root of the configuration file."""

    render: RenderConfig = field(default_factory=RenderConfig)


# ---- the stages --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneInfo:
    """What is known of a scene that paths can be designed in."""

    path: str  # absolute
    sha256: str  # of its content
    format: str
    num_splats: int
    num_dropped: int
    antialiased: bool | None  # trained for antialiased drawing; None where the file does not tell
    anchors: str  # what its cameras are: training, derived_outside or derived_inside
    cameras: str | None  # file or folder of the training cameras
    cameras_sha256: str | None
    num_cameras: int
    remarks: tuple[str, ...]  # what a user should know


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


def _scene(path: str, cameras: str | None, config: SceneConfig, *, progress: Progress | None) -> SceneInfo | Rejected:
    sha256 = content_sha256(Path(path))
    scene = _read_scene(path, sha256, config.drop_invalid)
    found = Path(cameras) if cameras else find_cameras(path)
    if found is None and config.views is None:
        message = (
            f"{path}: no training cameras beside it (cameras.json, transforms.json or a COLMAP model). Name them with "
            "--cameras, or have views derived: --views outside for an object, --views inside for a room"
        )
        return Rejected(stage="scene", reason="no_cameras", message=message)
    cameras_sha256 = None if found is None else content_sha256(found)
    remarks = scene.remarks + (() if found is None else read_cameras(found, allow_distorted=True).remarks)
    info = SceneInfo(
        path=path,
        sha256=sha256,
        format=scene.format,
        num_splats=len(scene.gaussians),
        num_dropped=scene.num_dropped,
        antialiased=scene.antialiased,
        anchors="training" if found is not None else f"derived_{config.views}",
        cameras=None if found is None else str(found.absolute()),
        cameras_sha256=cameras_sha256,
        num_cameras=0,
        remarks=remarks,
    )
    try:
        allowed = _survey(info, config)
    except (BadMedia, MissingPart):
        raise
    except LongtakeError as error:
        return Rejected(stage="scene", reason="cannot_be_filmed", message=f"{path}: {error}")
    return replace(info, num_cameras=len(allowed.world_from_cam))


def _path(
    info: SceneInfo,
    family: str,
    seed: int,
    config: PathConfig,
    limits: PathLimits,
    scene: SceneConfig,
    backend: Backend,
    *,
    progress: Progress | None,
) -> CameraPath | Rejected:
    """A candidate's path at the first extent at which it passes every check, or why it does not at the last."""
    rasterizer = _rasterizer(info.path, info.sha256, scene.drop_invalid, backend)

    def draw(pose: NDArray, intrinsics: NDArray, width: int, height: int) -> tuple[NDArray, NDArray]:
        picture = rasterizer.draw(pose, intrinsics, width, height)
        return picture.alpha, picture.depth

    allowed = _survey(replace(info, num_cameras=0), scene)
    result: CameraPath | Rejected | None = None
    for i, extent in enumerate(EXTENTS):
        result = attempt(allowed, family, seed, extent=extent, draw=draw, limits=limits, config=config)
        if isinstance(result, CameraPath):
            return result
        if progress is not None:
            progress(i + 1, len(EXTENTS))
    assert result is not None
    return result


def _film(
    info: SceneInfo,
    path: CameraPath,
    config: FilmConfig,
    scene: SceneConfig,
    scene_scale: float | None,
    scratch: str,
    *,
    progress: Progress | None,
) -> Film | Rejected:
    """The film of a path; its files lie in the folder `scratch` until they are stored."""
    video, depth = (scratch_file(Path(scratch), "film", suffix) for suffix in (".mp4", ".zip"))
    rasterizer = _rasterizer(info.path, info.sha256, scene.drop_invalid, config.backend)
    antialiased = bool(info.antialiased) if config.antialiased is None else config.antialiased
    film = None
    try:
        film = shoot(
            rasterizer,
            path,
            config,
            video=video,
            depth=depth if config.depth_every else None,
            antialiased=antialiased,
            scene_scale=scene_scale,
            progress=progress,
        )
        if isinstance(film, Film):
            film = replace(film, plan=draw_plan(_survey(replace(info, num_cameras=0), scene), path))
        return film
    finally:
        if not isinstance(film, Film):
            video.unlink(missing_ok=True)
            depth.unlink(missing_ok=True)


def _quality(
    film: Film,
    path: CameraPath,
    scene_scale: float | None,
    config: QualityConfig,
    *,
    progress: Progress | None,
) -> Quality:
    info = replace(film.info, path=str(film.video))
    crop = (0, 0, info.width, info.height)
    shot = Shot(index=0, start=0, stop=info.num_frames, crop=crop, overlay=None, boundary="start")
    track = true_track(path, info.pts_ns, scene_scale)
    return measure(info, shot, track, config, video_config=VideoConfig(), progress=progress)


SCENE = Stage(name="scene", version=1, fn=_scene, resources=Resources(memory_bytes=2 << 30))
PATH = Stage(name="path", version=1, fn=_path, resources=Resources(memory_bytes=2 << 30))
FILM = Stage(name="film", version=2, fn=_film, resources=Resources(memory_bytes=2 << 30))
QUALITY = Stage(name="quality", version=1, fn=_quality)
GRAPH = Graph(chains=((SCENE,), (PATH, FILM, QUALITY)))  # of a file, and of each candidate
VERSIONS = {stage.name: str(stage.version) for stage in GRAPH.stages}


def content_sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its files' names and hashes.

    Raises:
        BadMedia: it cannot be read.
    """
    try:
        if not path.is_dir():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        names = sorted(child.name for child in path.iterdir() if child.is_file())
        parts = [f"{name}\0{content_sha256(path / name)}\n" for name in names]
    except OSError as error:
        raise BadMedia("unreadable", f"{path}: {error.strerror or error}") from error
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()


# One scene is kept in each process that works on its candidates; by hash, so that a changed file is read again.


@lru_cache(maxsize=1)
def _read_scene(path: str, sha256: str, drop_invalid: bool) -> Scene:
    return read_scene(path, drop_invalid=drop_invalid)


@lru_cache(maxsize=1)
def _rasterizer(path: str, sha256: str, drop_invalid: bool, backend: Backend) -> Rasterizer:
    return Rasterizer(_read_scene(path, sha256, drop_invalid).gaussians, backend=backend)


@lru_cache(maxsize=1)
def _survey(info: SceneInfo, config: SceneConfig) -> Survey:
    gaussians = _read_scene(info.path, info.sha256, config.drop_invalid).gaussians
    if info.cameras is not None:
        cameras = read_cameras(info.cameras, allow_distorted=True)
        return survey(gaussians, cameras.world_from_cam, cameras.intrinsics, cameras.sizes)
    assert config.views is not None
    size, up = (1280, 704), np.array(config.up)
    poses, intrinsics = derive_cameras(gaussians, config.views, up=up, width=size[0], height=size[1])
    return survey(gaussians, poses, intrinsics, size, up=up, anchors=info.anchors)  # type: ignore[arg-type]


# ---- filming -----------------------------------------------------------------------------------------------------


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


# ---- the run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RenderRun(Run):
    """What a run did. `candidates` = clips with a row from a path + `rejected` + those left."""

    candidates: int
    rejected: dict[str, int]  # reason -> candidates
    families: dict[str, dict[str, int]]  # family -> candidates, accepted, and how many fell for each reason


def render(
    *scenes: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: RenderConfig | None = None,
    executor: str = "local",
    jobs: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    max_failed_ratio: float | None = None,
    report: bool = True,
    quiet: bool = True,
) -> RenderRun:
    """Film camera paths through splat scenes, and commit a row per clip to the manifest `out`.

    Args:
        scenes: files, SOG folders, or patterns.
        out: the folder of the manifest; made where it does not exist, taken up where it does.
        config: everything that can be set; None for the defaults.
        executor, jobs, address, max_failed_ratio: as for `annotate`.
        retry_failed: work failed clips, and rejected candidates, out again.
        report: write report.html into the folder.
        quiet: show no progress.

    Returns:
        The counts; `Run.manifest` reads the rows. A clip that fails has its row and raises nothing.

    Raises:
        LongtakeError: no such scene, an output that cannot be written, a setting that does not fit.
    """
    config = config or RenderConfig()
    check_executor(executor, jobs, address, max_failed_ratio)
    sources = _expanded([str(scene) for scene in scenes])
    pattern = config.scene.cameras
    if pattern is not None and "{stem}" not in pattern and "{folder}" not in pattern:
        if len(sources) > 1:
            raise UsageError(f"--cameras {pattern}: one for {len(sources)} scenes. Put {{folder}} or {{stem}} into it")
        if not given_file(pattern, sources[0]).exists():
            raise UsageError(f"--cameras {pattern}: no such file or folder")
    try:
        manifest = create_manifest(Path(out).absolute())
    except LongtakeError as error:
        raise MissingPart(str(error)) from error
    networks_of(config.film)
    display = make_display(quiet)
    if executor == "local" and (words := _remark(config.film.backend)):
        display.note(words)
    ledger = Ledger(
        manifest,
        inputs=sources,
        config=Config(render=config),
        stage_versions=VERSIONS,
        retry_failed=retry_failed,
        display=display,
        about={"executor": executor},
    )
    graph = _Graph(ledger, Artifacts(manifest.folder / "artifacts"), config)
    ledger.about["candidates"] = graph.candidates  # written when the books are closed
    run = carry_out(
        graph.first_jobs(sources),
        graph.after,
        ledger=ledger,
        store=graph.store,
        executor=executor,
        jobs=jobs,
        address=address,
        retry_failed=retry_failed,
        report=report,
        graph=GRAPH,
        max_failed_ratio=max_failed_ratio,
    )
    rejected = Counter(c["reason"] for c in graph.candidates if c["outcome"] == "rejected")
    table: dict[str, dict[str, int]] = {}
    for candidate in graph.candidates:
        row = table.setdefault(candidate["family"], {"candidates": 0, "accepted": 0})
        row["candidates"] += 1
        what = "accepted" if candidate["outcome"] == "accepted" else candidate["reason"]
        row[what] = row.get(what, 0) + 1
    return RenderRun(
        **{f.name: getattr(run, f.name) for f in fields(run)},
        candidates=len(graph.candidates) + run.left,
        rejected=dict(rejected.most_common()),
        families=table,
    )


def _expanded(scenes: Sequence[str]) -> list[str]:
    """Absolute paths of what a user names, patterns resolved.

    Raises:
        UsageError: nothing there.
    """
    if not scenes:
        raise UsageError("nothing to render: give splat scenes")
    out = []
    for scene in scenes:
        found = [scene] if os.path.exists(scene) else sorted(glob.glob(scene, recursive=True))
        if not found:
            raise UsageError(f"{scene}: no such file or folder")
        out += [os.path.abspath(path) for path in found]
    return out


def _remark(backend: Backend) -> str:
    """What a user should know of the rasteriser on this machine; raises MissingPart where it cannot run."""
    words = ""
    if backend == "gsplat":
        check_kernels()
    elif backend == "auto" and find_spec("gsplat") and device_found():
        try:
            check_kernels()
            return ""
        except MissingPart as error:
            words = f"frames are drawn on the CPU: {error}"
    if backend in ("reference", "gsplat"):
        return ""
    from ..render.cpu import library

    try:
        library()
    except MissingPart as error:
        if backend == "cpu":
            raise
        return f"frames take seconds each, by the slow reference: {error}"
    return words


@dataclass(kw_only=True)
class _Place:
    """Where one job stands: its scene, and for a candidate's jobs which one and what is known of it so far."""

    source: str
    info_key: str = ""
    info: SceneInfo | None = None
    number: int = -1  # of the candidate
    family: str = ""
    seed: int = 0
    clip_id: str = ""
    path_key: str = ""
    film_key: str = ""
    quality: Quality | None = None
    refused: Rejected | None = None
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        name = Path(self.source).name
        return name if self.number < 0 else f"{name} {self.number} {self.family}"


class _Graph:
    """Which job follows from which outcome, for every scene of a run."""

    def __init__(self, ledger: Ledger, store: Artifacts, config: RenderConfig) -> None:
        self.ledger = ledger
        self.store = store
        self.config = config
        self.networks = networks_of(config.film)
        on_gpu = config.film.backend == "gsplat" or (config.film.backend == "auto" and _gsplat_runs())
        gpus = {"resources": replace(FILM.resources, gpus=1.0)} if on_gpu else {}
        self.path_stage, self.film_stage = replace(PATH, **gpus), replace(FILM, **gpus)
        if self.networks:
            needed = FILM.resources.memory_bytes or 0
            memory = {"memory_bytes": needed + sum(NETWORKS[str(f["network"])].memory_bytes for f in self.networks)}
            memory |= {"gpus": 1.0} if device_found() else {}
            resources = replace(self.film_stage.resources, **memory)
            self.film_stage = replace(FILM, resources=resources, resident=True)
        self.places: dict[str, _Place] = {}  # key of a job that is not over -> its place
        self.seen: dict[str, str] = {}  # scene key and content of every source so far -> the first source that has it
        self.candidates: list[dict[str, Any]] = []  # what became of each, as run.json tells it

    def first_jobs(self, sources: Sequence[str]) -> Iterator[Job]:
        for source in sources:
            cameras = self._cameras(source)
            marks = () if cameras is None else (fingerprint(cameras),)
            key = SCENE.key(fingerprint(source), self.config.scene, marks)
            if not self._is_first(key, source):
                self.ledger.inputs_left -= 1
            else:
                yield self._job(SCENE, key, (source, cameras, self.config.scene), _Place(source=source))

    def after(self, outcome: Outcome) -> Iterable[Job]:
        """Write down what became of a job, and give the jobs that it makes possible."""
        job = outcome.job
        place = self.places.pop(job.key)
        self.ledger.note(place.source, outcome)
        if outcome.status == "stopped":
            return []
        if outcome.status == "rejected":
            place.refused = self.store.load(job.key)
        elif outcome.status == "failed":
            place.refused = Rejected(stage=job.stage.name, reason=outcome.reason, message=outcome.message)
        place.timings_s[job.stage.name] = seconds = self.store.about(job.key)["seconds"]
        self.ledger.stage_seconds[job.stage.name] += seconds
        if place.refused:
            for link in job.then.chain() if job.then else ():
                del self.places[link.key]
            return self._refuse(place)
        match job.stage.name:
            case "scene":
                return self._after_scene(place, job.key)
            case "path":
                place.path_key = job.key
            case "film":
                place.film_key = job.key
            case "quality":
                place.quality = self.store.load(job.key)
                self._account(place, "accepted")
                self._finish(place)
        return []

    def _refuse(self, place: _Place) -> Iterable[Job]:
        assert place.refused
        if place.number < 0:  # the scene as a whole
            self.ledger.inputs_left -= 1
            self.ledger.expected += 1
        elif place.refused.stage in CHECKED:
            self.ledger.expected -= 1
            self._account(place, "rejected")
            self.ledger.display.clip(place.name, "rejected", place.refused.reason)
            return []
        else:
            self._account(place, "failed")
        self._finish(place)
        return []

    def _after_scene(self, place: _Place, key: str) -> Iterable[Job]:
        self.ledger.inputs_left -= 1
        info: SceneInfo = self.store.load(key)
        place.info_key, place.info = key, info
        if not self._is_first(f"{info.sha256} {info.cameras_sha256}", place.source):
            return []
        for words in info.remarks:
            self.ledger.display.note(f"{Path(place.source).name}: {words}")
        config, scene = self.config, self.config.scene
        views = () if info.cameras else (scene.views, scene.up)
        candidates = config.candidates()
        self.ledger.expected += len(candidates)
        jobs = []
        for number, (family, seed) in enumerate(candidates):
            what = {"family": family, "seed": seed, "cameras": info.cameras_sha256, "views": views}
            what |= {f.name: getattr(config.path, f.name) for f in fields(config.path)}
            id = schema.rendered_clip_id(scene_sha256=info.sha256, path=what)
            own = replace(place, number=number, family=family, seed=seed, clip_id=id, timings_s=dict(place.timings_s))
            if row := self.ledger.current(id):
                self._account(own, "accepted" if row["status"] != "failed" else "failed", row)
                self.ledger.count(row, own.name, "")
                continue
            jobs.append(GRAPH.link(*self._candidate_jobs(own)))
        return jobs

    def _candidate_jobs(self, place: _Place) -> Iterator[Job]:
        config, scene, info = self.config, self.config.scene, Ref(key=place.info_key)
        path_key = PATH.key(place.clip_id, (config.limits, scene.drop_invalid), ())
        inputs = (place.family, place.seed, config.path, config.limits, scene, config.film.backend)
        yield self._job(self.path_stage, path_key, (info, *inputs), place)
        what = (config.film, scene.drop_invalid, config.scene_scale, *revisions(self.networks).items())
        film_key = FILM.key(place.clip_id, what, (path_key,))
        inputs = (config.film, scene, config.scene_scale, str(self.store.root))
        yield self._job(self.film_stage, film_key, (info, Ref(key=path_key), *inputs), place)
        judged = (config.scene_scale, config.quality)
        quality_key = QUALITY.key(place.clip_id, judged, (film_key,))
        yield self._job(QUALITY, quality_key, (Ref(key=film_key), Ref(key=path_key), *judged), place)

    def _job(self, stage: Stage, key: str, inputs: tuple[object, ...], place: _Place) -> Job:
        self.places[key] = place
        limit_s = LIMIT_S + LIMIT_S_PER_FRAME * self.config.path.num_frames
        return Job(stage=stage, key=key, inputs=inputs, clip=place.name, limit_s=limit_s)

    def _cameras(self, source: str) -> str | None:
        if self.config.scene.cameras is not None:
            return str(given_file(self.config.scene.cameras, source))
        try:
            found = find_cameras(source)
        except BadMedia:  # the stage meets it again, and says it in a row
            return None
        return None if found is None else str(found)

    def _is_first(self, identity: str, source: str) -> bool:
        """Whether no other source had this identity; the others are counted as its duplicates."""
        if identity in self.seen:
            self.ledger.duplicate(source, self.seen[identity])
            return False
        self.seen[identity] = source
        return True

    def _account(self, place: _Place, outcome: str, row: dict[str, Any] | None = None) -> None:
        """Put down what became of a candidate."""
        entry = {"scene": place.source, "number": place.number, "family": place.family, "seed": place.seed}
        entry |= {"outcome": outcome, "clip_id": None if outcome == "rejected" else place.clip_id}
        if place.refused:
            entry |= {"reason": place.refused.reason, "message": place.refused.message}
        elif row is not None and outcome == "failed":
            entry |= {"reason": row["filter_reasons"][0]}
        self.candidates.append(entry)

    def _finish(self, place: _Place) -> None:
        """Put the clip's files in their places, and hand its row to the ledger."""
        refused, info, config = place.refused, place.info, self.config
        path: CameraPath | None = self.store.load(place.path_key) if place.path_key else None
        film: Film | None = self.store.load(place.film_key) if place.film_key and not refused else None
        row_of: dict[str, Any] = {}
        if info is not None:
            row_of |= {"id": place.clip_id, "path_family": place.family, "seed": place.seed}
        if path is not None:
            row_of |= {"path_parameters": path.parameters, "path_checks": _checks(path.checks)}
        if path is not None and film is not None and info is not None:
            quality = place.quality
            columns = {"render_coverage": film.coverage, "hole_ratio": film.hole_ratio}
            row_of |= {
                "video": film.info,
                "uri": str(Path("clips") / f"{place.clip_id}.mp4"),
                "track": true_track(path, film.info.pts_ns, config.scene_scale),
                "path_checks": _checks((*path.checks, *film.checks)),
                "revisit_pairs": path.revisit_pairs,
                "render_stats": _scene_stats(info) | {"metres_per_unit": config.scene_scale} | film.stats,
                "quality": columns | (quality.clip if quality else {}),
                "frames": quality.frames if quality else None,
            }
        row = schema.render_row(
            scene=place.source,
            scene_sha256=info.sha256 if info else None,
            provenance=schema.Provenance(
                run_id=self.ledger.run_id,
                config_hash=self.ledger.config_hash,
                software_version=metadata.version("longtake"),
                stage_versions=self.ledger.stage_versions,
                timings_s=place.timings_s,
                model_revisions=revisions(self.networks) if film is not None else {},
                model_licenses=licences(self.networks) if film is not None else {},
            ),
            rejected=refused,
            source_dataset=config.source_dataset,
            license=config.license,
            **row_of,
        )
        if film is not None:
            row |= self._keep(film, row)
            if config.scene_scale is not None:
                row["scale_source"] = f"stated: a unit of the scene is {config.scene_scale:g} m"
            if config.profile != "none":
                row = filters.judged(row, config.profile, config.source)
        self.ledger.add(row, place.name, f"{refused.reason}: {refused.message}" if refused else "")

    def _keep(self, film: Film, row: dict[str, Any]) -> dict[str, Any]:
        """Put a film's files below the manifest's folder; the columns that tell of its depth."""
        out = self.ledger.out
        keep_file(film.video, out / row["uri"])
        sidecars = Path("sidecars") / row["clip_id"]
        film.sheet.write(out / sidecars)
        if film.depth_sheet is not None:
            film.depth_sheet.write(out / sidecars, "depth")
        if film.plan is not None:
            (out / sidecars / "plan.png").write_bytes(film.plan.png())
            facts = film.plan.facts(self.config.scene_scale or 1.0)
            (out / sidecars / "plan.json").write_text(json.dumps(facts), encoding="utf-8")
        if film.depth is None:
            return {}
        keep_file(film.depth.path, out / sidecars / "depth.zip")
        unit = "metres" if film.depth.metric else "units of the scene, as c2w"
        words = f"zip of PNGs, drawn with the frames, in {unit}; confidence is alpha: {MEANING}"
        return {"depth_uri": str(sidecars / "depth.zip"), "depth_encoding": words}


def _gsplat_runs() -> bool:
    if find_spec("gsplat") is None or not device_found():
        return False
    try:
        check_kernels()
    except MissingPart:
        return False
    return True


def networks_of(film: FilmConfig) -> list[Facts]:
    """The networks that a film needs, as the manifest tells of them.

    Raises:
        MissingPart: weights are not here, their licence was not accepted, or a package is missing; says what helps.
    """
    if film.enhance != "difix":
        return []
    lacking = [package for package in ("diffusers", "transformers") if find_spec(package) is None]
    if lacking:
        raise MissingPart(f"--enhance difix needs {' and '.join(lacking)}: pip install 'longtake[enhance]'")
    try:
        return [hub.provenance("difix")]
    except MissingPart as error:
        raise MissingPart(f"{error}. Without a network: --enhance holes") from error


def _checks(checks: Sequence[CheckResult]) -> dict[str, dict[str, Any]]:
    """As the manifest has them; null for a value or limit that is not finite."""
    return {
        c.name: {
            "value": c.value if math.isfinite(c.value) else None,
            "limit": c.limit if math.isfinite(c.limit) else None,
            "bound": c.bound,
        }
        for c in checks
    }


def _scene_stats(info: SceneInfo) -> dict[str, Any]:
    return {
        "format": info.format,
        "splats": info.num_splats,
        "dropped_splats": info.num_dropped,
        "cameras": info.anchors,
        "num_cameras": info.num_cameras,
        "cameras_sha256": info.cameras_sha256,
    }
