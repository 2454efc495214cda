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
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..annotate.depth_clip import MEANING
from ..annotate.quality import Quality, QualityConfig, measure
from ..annotate.video import VideoConfig
from ..datasets import filters, schema
from ..datasets.manifest import create_manifest
from ..model import hub
from ..model.networks import NETWORKS
from ..records import BadMedia, LongtakeError, Rejected, Shot
from ..render.camera_path import (
    EXTENTS,
    FAMILIES,
    CameraPath,
    CheckResult,
    PathConfig,
    PathLimits,
    Survey,
    attempt,
    derive_cameras,
    draw_plan,
    survey,
)
from ..render.cameras import find_cameras, read_cameras
from ..render.cuda import check_kernels, device_found
from ..render.rasterize import Backend, Rasterizer
from ..render.scene import Scene, read_scene
from .config import MissingPart, UsageError, nearest
from .depth import Facts, licences, revisions
from .display import make_display
from .film import Film, FilmConfig, shoot, true_track
from .ledger import Ledger, Run
from .run import carry_out, check_executor, fingerprint, given_file, scratch_file
from .stages import Artifacts, Graph, Job, Outcome, Progress, Ref, Resources, Stage, keep_file

LIMIT_S, LIMIT_S_PER_FRAME = 3600.0, 60.0  # a job that takes longer hangs; the slowest rasteriser takes seconds a frame
CHECKED = ("camera_path", "film_check")  # stages of refusals that are a candidate's, not a failure


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
