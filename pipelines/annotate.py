"""From video files to a manifest of posed clips: the list of stages, and the run that takes every input through them.

    probe (a file) -> shots -> for each shot: [depth ->] track -> quality -> sheet -> a row of the manifest

as `GRAPH` declares it. The stage `depth` is there where networks are asked for, or depth is given.

Every input ends in at least one row, or is counted as a duplicate of another with the same bytes. A run may be cut off
anywhere: the next one with the same output takes up what is on record (`stages`) and commits what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from ..annotate.depth_clip import DepthClip
from ..annotate.given import read_poses
from ..annotate.quality import Quality, QualityConfig, measure
from ..annotate.sheet import Sheet, draw_sheet
from ..annotate.shot_depth import DepthStageConfig, Known, estimate_depth
from ..annotate.shots import ShotsConfig, find_shots
from ..annotate.track import TrackConfig, estimate_track
from ..annotate.video import VideoConfig, expand_inputs, probe
from ..datasets import filters, schema
from ..datasets.manifest import create_manifest
from ..records import BadMedia, LongtakeError, Rejected, Shot, Track, VideoInfo
from .config import MissingPart, UsageError, digest
from .depth import (
    Facts,
    check_device,
    keep_depth,
    licences,
    load_backends,
    needed_networks,
    remarks,
    revisions,
    uses_gpu,
)
from .display import make_display
from .ledger import Ledger, Run
from .run import carry_out, check_executor, fingerprint, given_file, scratch_file
from .stages import Artifacts, Graph, Job, Outcome, Progress, Ref, Resources, Stage

CAMERA_NAMES = (("fx", "fl_x"), ("fy", "fl_y"), ("cx", "cx"), ("cy", "cy"))
LIMIT_S, LIMIT_S_PER_FRAME = 600.0, 5.0  # a job that takes longer hangs: some hundred times what it should take
LIMIT_S_PER_DEPTH_FRAME = 300.0  # the same of networks, which may be on a CPU
Scale = Literal["metric", "relative"]


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """All that a row depends on besides its video."""

    stills: bool = False  # the frames are separate photographs
    intrinsics: tuple[float, ...] | None = None  # known camera in display pixels: (f,) or (fx, fy, cx, cy)
    engine: Literal["classical", "pi3x"] = "classical"  # pi3x: its depth and cameras are where estimation starts
    metric: Literal["none", "moge2"] = "none"  # the network that says how many metres lengths are
    given_depth: str | None = None  # known depth: a folder, .npy or .zip; {folder} and {stem} stand for the input's
    given_depth_scale: Scale | None = None
    given_poses: str | None = None  # known poses: .npy, .npz or text; {folder} and {stem} as above
    given_poses_scale: Scale | None = None
    profile: str = "none"  # filter profile that judges the clips: robust, sana_wm or none
    source: str | None = None  # whose thresholds of sana_wm
    source_dataset: str | None = None  # stated by the user, kept in every row
    license: str | None = None  # the same
    video: VideoConfig = field(default_factory=VideoConfig)
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    depth: DepthStageConfig = field(default_factory=DepthStageConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        if self.intrinsics is not None and (len(self.intrinsics) not in (1, 4) or min(self.intrinsics[:2]) <= 0):
            raise ValueError(
                f"intrinsics are f or fx, fy, cx, cy in pixels with focal lengths above 0, not {self.intrinsics}"
            )
        for what in ("depth", "poses"):
            if (getattr(self, f"given_{what}") is None) != (getattr(self, f"given_{what}_scale") is None):
                raise ValueError(f"given {what} need a scale, metric or relative: give both or neither")
        if self.given_depth is not None and self.engine == "pi3x":
            raise ValueError("given depth takes the place of what pi3x says: leave one of them out")
        if self.given_depth_scale == "metric" and self.metric != "none":
            raise ValueError("the given depth is metric already: it needs no network for that")
        if self.profile != "none":
            filters.rules(self.profile, self.source)
        elif self.source is not None:
            raise ValueError(f"source {self.source!r} chooses thresholds of the profile sana_wm: set profile too")

    @property
    def asks_depth(self) -> bool:
        return self.engine != "classical" or self.metric != "none" or self.given_depth is not None


@dataclass(frozen=True, kw_only=True)
class Config:
    """The root of the configuration file."""

    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)


# ---- the stages --------------------------------------------------------------------------------------------------


def _probe(path: str, stills: bool, config: VideoConfig, *, progress: Progress | None) -> VideoInfo:
    return probe(path, stills=stills, config=config)


def _shots(
    info: VideoInfo, stills: bool, config: ShotsConfig, video: VideoConfig, *, progress: Progress | None
) -> list[Shot] | Rejected:
    shots = find_shots(info, config, video, stills=stills, progress=progress)
    if shots:
        return shots
    message = f"{info.path}: none of its {info.num_frames} frames belongs to a shot long enough to keep"
    return Rejected(stage="shots", reason="no_shots", message=message)


def _depth(
    info: VideoInfo,
    shots: list[Shot],
    position: int,
    networks: tuple[str, ...],
    known: Known | None,
    intrinsics: tuple[float, ...] | None,
    config: DepthStageConfig,
    video: VideoConfig,
    scratch: str,
    *,
    progress: Progress | None,
) -> DepthClip | Rejected:
    """Depth of a shot; its file lies in the folder `scratch` until it is stored."""
    path = scratch_file(Path(scratch), "depth", ".zip")
    clip = None
    try:
        clip = estimate_depth(
            info,
            shots[position],
            config,
            load_backends(networks, config),
            path,
            known=known,
            intrinsics=None if intrinsics is None else known_camera(intrinsics, info),
            video_config=video,
            progress=progress,
        )
        return clip
    finally:
        if not isinstance(clip, DepthClip):
            path.unlink(missing_ok=True)


def _track(
    info: VideoInfo,
    shots: list[Shot],
    position: int,
    intrinsics: tuple[float, ...] | None,
    config: TrackConfig,
    video: VideoConfig,
    depth: DepthClip | None,
    poses: Known | None,
    *,
    progress: Progress | None,
) -> Track | Rejected:
    return estimate_track(
        info,
        shots[position],
        config,
        video_config=video,
        intrinsics=None if intrinsics is None else known_camera(intrinsics, info),
        depth=depth,
        poses=None if poses is None else read_poses(poses.path, info.num_frames, info.pts_ns, poses.metric),
        progress=progress,
    )


def _quality(
    info: VideoInfo,
    shots: list[Shot],
    position: int,
    track: Track | Rejected,
    config: QualityConfig,
    video: VideoConfig,
    *,
    progress: Progress | None,
) -> Quality:
    known = track if isinstance(track, Track) else None
    return measure(info, shots[position], known, config, video_config=video, progress=progress)


def _sheet(
    info: VideoInfo,
    shots: list[Shot],
    position: int,
    track: Track | Rejected,
    video: VideoConfig,
    *,
    progress: Progress | None,
) -> Sheet:
    return draw_sheet(info, shots[position], track if isinstance(track, Track) else None, video_config=video)


PROBE = Stage(name="probe", version=1, fn=_probe)
SHOTS = Stage(name="shots", version=2, fn=_shots)
DEPTH = Stage(name="depth", version=1, fn=_depth, resources=Resources(cpus=1, memory_bytes=8 << 30), resident=True)
TRACK = Stage(name="track", version=4, fn=_track, resources=Resources(cpus=1, memory_bytes=2 << 30))
QUALITY = Stage(name="quality", version=1, fn=_quality)
SHEET = Stage(name="sheet", version=1, fn=_sheet)
GRAPH = Graph(chains=((PROBE,), (SHOTS,), (DEPTH, TRACK, QUALITY, SHEET)))  # of a file, its content, and each shot
VERSIONS = {stage.name: str(stage.version) for stage in (PROBE, SHOTS, TRACK, QUALITY)}  # of every run


def stage_versions(config: AnnotateConfig, networks: Sequence[Facts], sources: Sequence[str]) -> dict[str, str]:
    """Stage -> its version, with the weights and the given files that the results depend on."""
    versions = dict(VERSIONS)
    if config.asks_depth:
        versions["depth"] = str(DEPTH.version)
        for name, revision in revisions(networks).items():
            versions["depth"] += f" {name}@{revision}"
    for what, stage in (("depth", "depth"), ("poses", "track")):
        pattern = getattr(config, f"given_{what}")
        if pattern is not None:
            stands = digest([fingerprint(str(given_file(pattern, source))) for source in sources])
            versions[stage] += f" {what}@{stands[:16]}"
    return versions


def _check_given(config: AnnotateConfig, sources: Sequence[str]) -> None:
    """Raises UsageError where one file is given for several sources, or for one that is not there."""
    for what in ("depth", "poses"):
        pattern = getattr(config, f"given_{what}")
        if pattern is None or "{stem}" in pattern or "{folder}" in pattern:
            continue
        if len(sources) > 1:
            raise UsageError(
                f"--{what} {pattern}: one for {len(sources)} inputs. Put {{stem}} or {{folder}} where the name of the "
                f"input, or of its folder, stands: --{what} '{{folder}}/{what}/{{stem}}.npy'"
            )
        if not given_file(pattern, sources[0]).exists():
            raise UsageError(f"--{what} {pattern}: no such file or folder")


def known_camera(intrinsics: tuple[float, ...], info: VideoInfo) -> tuple[float, ...]:
    """fx, fy, cx, cy in display pixels; a focal length alone gets the picture's centre.

    Raises:
        BadMedia: the principal point lies outside the picture.
    """
    if len(intrinsics) == 1:
        return (intrinsics[0], intrinsics[0], (info.width - 1) / 2, (info.height - 1) / 2)
    _, _, cx, cy = intrinsics
    if not (0 <= cx < info.width and 0 <= cy < info.height):
        where = f"{cx:g}, {cy:g} lies outside its picture of {info.width}x{info.height}"
        message = f"{info.path}: the given principal point {where}; was it measured at another resolution?"
        raise BadMedia("intrinsics_do_not_fit", message)
    return intrinsics


def read_intrinsics(text: str) -> tuple[float, ...]:
    """(f,) or (fx, fy, cx, cy) from "f" or "fx,fy,cx,cy", or from a file.

    A text file holds such numbers, or the nine of a camera matrix; a JSON file "fx" "fy" "cx" "cy" (or "fl_x" "fl_y",
    as nerfstudio has them), or a matrix "K".

    Raises:
        UsageError: it is neither.
    """
    path = Path(text)
    words = text
    if path.is_file():
        words = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix.lower() == ".json":
            words = _camera_words(path, words)
    try:
        numbers = tuple(float(word) for word in words.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if len(numbers) == 9:
        fx, _, cx, _, fy, cy, *last = numbers
        numbers = (fx, fy, cx, cy) if last == [0.0, 0.0, 1.0] else ()
    if len(numbers) not in (1, 4):
        what = "" if path.is_file() else " and there is no such file"
        raise UsageError(f"--intrinsics {text}: not f or fx,fy,cx,cy in pixels{what}")
    return numbers


def _camera_words(path: Path, text: str) -> str:
    """The numbers of a JSON file's camera as words."""
    try:
        tree = json.loads(text)
        matrix = tree.get("K")
        names = [tree.get(a, tree.get(b)) for a, b in CAMERA_NAMES]
        numbers = [number for row in matrix for number in row] if matrix else names
        return " ".join(str(float(number)) for number in numbers)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no camera: it needs numbers fx, fy, cx, cy, or a matrix K") from error


# ---- the run -----------------------------------------------------------------------------------------------------


def annotate(
    *inputs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: AnnotateConfig | None = None,
    stills: bool | None = None,
    executor: str = "local",
    jobs: int | None = None,
    address: str | None = None,
    gpu_share: float = 1.0,
    retry_failed: bool = False,
    max_failed_ratio: float | None = None,
    report: bool = True,
    quiet: bool = True,
) -> Run:
    """Annotate videos, image folders or glob patterns, and commit a row per clip to the manifest `out`.

    Args:
        inputs: files, folders of videos or of images, or patterns.
        out: the folder of the manifest; made where it does not exist, taken up where it does.
        config: everything that can be set; None for the defaults.
        stills: True: the frames are separate photographs. None leaves what `config` says.
        executor: "local" (worker processes of this machine) or "ray".
        jobs: jobs at the same time. For local 1 by default, and 0 means in this very process; for ray as many as CPUs.
        address: of a Ray cluster; None starts one on this machine.
        gpu_share: of a GPU that the networks of one job take on Ray: at 0.5 two share one.
        retry_failed: work failed clips out again.
        max_failed_ratio: stop once more than this share of the clips has failed. None: go on whatever fails.
        report: draw each clip's pictures, and write report.html into the folder.
        quiet: show no progress.

    Returns:
        The counts; `Run.manifest` reads the rows. A clip that fails has its row and raises nothing.

    Raises:
        LongtakeError: no such input, an output that cannot be written, a setting that does not fit.
    """
    config = config or AnnotateConfig()
    if stills is not None:
        config = replace(config, stills=stills)
    check_executor(executor, jobs, address, max_failed_ratio)
    if not gpu_share > 0:
        raise UsageError(f"networks take some share of a GPU, not {gpu_share}")
    if not inputs:
        raise UsageError("nothing to annotate: give video files, folders of images or patterns")
    try:
        sources = [str(source) for source in expand_inputs([str(item) for item in inputs])]
    except LongtakeError as error:
        raise UsageError(str(error)) from error
    _check_given(config, sources)
    networks = needed_networks(config.engine, config.metric)
    if networks and executor == "local":
        check_device(config.depth.device)
    versions = stage_versions(config, networks, sources)
    try:
        manifest = create_manifest(Path(out).absolute())
    except LongtakeError as error:
        raise MissingPart(str(error)) from error

    display = make_display(quiet)
    ledger = Ledger(
        manifest,
        inputs=sources,
        config=Config(annotate=config),
        stage_versions=versions,
        retry_failed=retry_failed,
        display=display,
        about={"executor": executor, "networks": list(networks)},
    )
    for words in remarks(networks):
        display.note(words)
    store = Artifacts(manifest.folder / "artifacts")
    graph = _Graph(ledger, store, config, networks, sheets=report, gpu_share=gpu_share)
    return carry_out(
        graph.first_jobs(sources),
        graph.after,
        ledger=ledger,
        store=store,
        executor=executor,
        jobs=jobs,
        address=address,
        retry_failed=retry_failed,
        report=report,
        graph=GRAPH,
        max_failed_ratio=max_failed_ratio,
    )


@dataclass(kw_only=True)
class _Place:
    """Where one job stands: its source, and for a shot's jobs which shot and what is known of it so far."""

    source: str
    info_key: str = ""
    info: VideoInfo | None = None
    shots_key: str = ""
    position: int = 0  # in the list of shots
    shot: Shot | None = None
    depth_key: str = ""
    track_key: str = ""
    reduced: bool = False  # tracked in smaller pictures, since memory ran out
    quality: Quality | None = None
    refused: Rejected | None = None  # the first refusal
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        name = Path(self.source).name
        if self.shot is None or self.info is None or self.shot.num_frames == self.info.num_frames:
            return name
        return f"{name} [{self.shot.start}:{self.shot.stop}]"

    @property
    def clip_id(self) -> str:
        assert self.info
        return schema.clip_id(
            sha256=self.info.sha256,
            path=self.info.path,
            span=(self.shot.start, self.shot.stop) if self.shot else None,
            crop=self.shot.crop if self.shot else None,
            rotation_deg=self.info.rotation_deg,
        )


class _Graph:
    """Which job follows from which outcome, for every input of a run."""

    def __init__(
        self,
        ledger: Ledger,
        store: Artifacts,
        config: AnnotateConfig,
        networks: Sequence[Facts],
        *,
        sheets: bool,
        gpu_share: float,
    ) -> None:
        self.ledger = ledger
        self.store = store
        self.config = config
        self.networks = networks
        gpus = gpu_share if networks and uses_gpu(config.depth.device) else 0.0
        self.depth_stage = replace(DEPTH, resources=replace(DEPTH.resources, gpus=gpus))
        self.sheets = sheets
        self.places: dict[str, _Place] = {}  # key of a job that is not over -> its place
        self.seen: dict[str, str] = {}  # probe key and content of every source so far -> the first source that has it

    def first_jobs(self, sources: Sequence[str]) -> Iterator[Job]:
        for source in sources:
            config = (self.config.stills, self.config.video)
            key = PROBE.key(fingerprint(source), config)
            if not self._is_first(key, source):
                self.ledger.inputs_left -= 1
            else:
                yield self._job(PROBE, key, (source, *config), _Place(source=source))

    def after(self, outcome: Outcome) -> Iterable[Job]:
        """Write down what became of a job, and give the jobs that it makes possible."""
        job = outcome.job
        place = self.places.pop(job.key)
        self.ledger.note(place.source, outcome)
        if outcome.status == "stopped":
            return []
        refused = None
        if outcome.status != "ok":
            refused = Rejected(stage=job.stage.name, reason=outcome.reason, message=outcome.message)
            for link in job.then.chain() if job.then else ():
                del self.places[link.key]
        place.timings_s[job.stage.name] = seconds = self.store.about(job.key)["seconds"]
        self.ledger.stage_seconds[job.stage.name] += seconds
        if job.stage.name == TRACK.name and outcome.reason == "out_of_memory" and not place.reduced:
            place.reduced = True
            return [GRAPH.link(*self._from_track(place))]
        if job.stage.name != SHEET.name:  # a clip is not refused for lack of pictures of it
            place.refused = place.refused or refused
        match job.stage.name:
            case "probe":
                return self._after_probe(place, job.key)
            case "shots":
                return self._after_shots(place, job.key)
            case "depth" | "track" if refused:  # a refusal of depth stands in the track's place
                place.track_key = job.key
                return [GRAPH.link(*self._from_quality(place))]  # for the pictures of a refused shot
            case "depth":
                place.depth_key = job.key
            case "track":
                place.track_key = job.key
            case "quality" if not refused:
                place.quality = self.store.load(job.key)
            case "sheet" if not refused:
                self.store.load(job.key).write(self.ledger.out / "sidecars" / place.clip_id)
        if refused or job.then is None:
            self._finish(place)
        return []

    def _after_probe(self, place: _Place, key: str) -> Iterable[Job]:
        self.ledger.inputs_left -= 1
        if place.refused:
            self.ledger.expected += 1
            self._finish(place)
            return []
        info: VideoInfo = self.store.load(key)
        place.info_key, place.info = key, info
        if not self._is_first(info.sha256, place.source):
            return []
        config = (self.config.stills, self.config.shots, self.config.video)
        next_key = SHOTS.key(info.sha256, config, (f"probe {PROBE.version}",))
        return [self._job(SHOTS, next_key, (Ref(key=key), *config), place)]

    def _after_shots(self, place: _Place, key: str) -> Iterable[Job]:
        if place.refused:
            self.ledger.expected += 1
            self._finish(place)
            return []
        shots: list[Shot] = self.store.load(key)
        self.ledger.expected += len(shots)
        jobs = []
        for position, shot in enumerate(shots):
            own = replace(place, shots_key=key, position=position, shot=shot, timings_s=dict(place.timings_s))
            if row := self.ledger.current(own.clip_id):
                self.ledger.count(row, own.name, "")
            else:
                jobs.append(GRAPH.link(*self._from_depth(own)))
        return jobs

    def _from_depth(self, place: _Place) -> list[Job]:
        """The jobs of a shot."""
        if not self.config.asks_depth:
            return self._from_track(place)
        depth = self._depth_job(place)
        return [depth, *self._from_track(place, depth.key)]

    def _from_track(self, place: _Place, depth_key: str = "") -> list[Job]:
        track = self._track_job(place, depth_key or place.depth_key)
        return [track, *self._from_quality(place, track.key)]

    def _from_quality(self, place: _Place, track_key: str = "") -> list[Job]:
        """What looks at a shot's pictures; of a shot that was refused too."""
        key = track_key or place.track_key
        jobs = [self._shot_job(QUALITY, (self.config.quality, self.config.video), place, key)]
        return [*jobs, self._shot_job(SHEET, (self.config.video,), place, key)] if self.sheets else jobs

    def _depth_job(self, place: _Place) -> Job:
        assert place.info
        config = self.config
        known = self._known(config.given_depth, config.given_depth_scale, place)
        names = tuple(str(facts["network"]) for facts in self.networks)
        inputs = (names, known, config.intrinsics, config.depth, config.video)
        weights = tuple(f"{facts['network']} {facts['sha256']}" for facts in self.networks)
        what = (place.position, names, config.intrinsics, config.depth, config.video)
        key = DEPTH.key(place.info.sha256, what, (place.shots_key, *weights, *_identity(known)))
        refs = (Ref(key=place.info_key), Ref(key=place.shots_key), place.position)
        return self._job(self.depth_stage, key, (*refs, *inputs, str(self.store.root)), place)

    def _known(self, pattern: str | None, scale: Scale | None, place: _Place) -> Known | None:
        return None if pattern is None else Known(path=given_file(pattern, place.source), metric=scale == "metric")

    def _track_job(self, place: _Place, depth_key: str) -> Job:
        assert place.info
        track = self.config.track
        if place.reduced:
            track = replace(track, max_side=track.max_side // 2)
        config = (self.config.intrinsics, track, self.config.video)
        poses = self._known(self.config.given_poses, self.config.given_poses_scale, place)
        upstream = [place.shots_key, *([depth_key] if depth_key else []), *_identity(poses)]
        key = TRACK.key(place.info.sha256, (place.position, *config), tuple(upstream))
        depth = Ref(key=depth_key) if depth_key else None
        refs = (Ref(key=place.info_key), Ref(key=place.shots_key), place.position)
        return self._job(TRACK, key, (*refs, *config, depth, poses), place)

    def _shot_job(self, stage: Stage, config: tuple[object, ...], place: _Place, track_key: str) -> Job:
        """A job that takes a shot, its track or refusal, and a configuration."""
        shot = (Ref(key=place.info_key), Ref(key=place.shots_key), place.position, Ref(key=track_key))
        key = stage.key(place.clip_id, (*config, place.refused is None), (track_key,))
        return self._job(stage, key, (*shot, *config), place)

    def _job(self, stage: Stage, key: str, inputs: tuple[object, ...], place: _Place) -> Job:
        self.places[key] = place
        per_frame_s = LIMIT_S_PER_DEPTH_FRAME if stage.name == DEPTH.name else LIMIT_S_PER_FRAME
        limit_s = LIMIT_S + per_frame_s * (place.info.num_frames if place.info else 0)
        return Job(stage=stage, key=key, inputs=inputs, clip=place.name, limit_s=limit_s)

    def _is_first(self, identity: str, source: str) -> bool:
        """Whether no other source had this identity; the others are counted as its duplicates."""
        if identity in self.seen:
            self.ledger.duplicate(source, self.seen[identity])
            return False
        self.seen[identity] = source
        return True

    def _finish(self, place: _Place) -> None:
        """Hand the clip's row to the ledger."""
        refused = place.refused
        track: Track | None = None if refused else self.store.load(place.track_key)
        if track is not None and place.reduced:
            track = replace(track, flags=(*track.flags, "reduced_for_memory"))
        depth: DepthClip | None = self.store.load(place.depth_key) if track and place.depth_key else None
        row = schema.annotate_row(
            path=place.source,
            provenance=schema.Provenance(
                run_id=self.ledger.run_id,
                config_hash=self.ledger.config_hash,
                software_version=metadata.version("longtake"),
                stage_versions=self.ledger.stage_versions,
                timings_s=place.timings_s,
                model_revisions=revisions(self.networks) if place.depth_key else {},
                model_licenses=licences(self.networks) if place.depth_key else {},
            ),
            video=place.info,
            shot=place.shot,
            track=track,
            rejected=refused,
            quality=place.quality.clip if place.quality else None,
            frames=place.quality.frames if place.quality else None,
            source_dataset=self.config.source_dataset,
            license=self.config.license,
        )
        if depth is not None:
            row |= keep_depth(depth, self.ledger.out, place.clip_id)
        if track is not None and track.scale_kind == "metric":
            row["scale_source"] = "given poses" if self.config.given_poses_scale == "metric" else depth and depth.source
        if self.config.profile != "none":
            row = filters.judged(row, self.config.profile, self.config.source)
        self.ledger.add(row, place.name, f"{refused.reason}: {refused.message}" if refused else "")


def _identity(known: Known | None) -> tuple[str, ...]:
    """What tells whether a given file is the same as before."""
    return () if known is None else (f"{known.path} {fingerprint(str(known.path))} {known.metric}",)
