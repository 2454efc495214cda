"""From video files to a manifest of posed clips: the list of stages, and the run that takes every input through them.

    probe (a file) -> shots -> for each shot: track -> quality -> sheet -> a row of the manifest

Every input ends in at least one row, or is counted as a duplicate of another with the same bytes. A run may be cut off
anywhere: the next one with the same output takes up what is on record (`stages`) and commits what is missing.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

from ..annotate.quality import Quality, QualityConfig, measure
from ..annotate.sheet import Sheet, draw_sheet
from ..annotate.shots import ShotsConfig, find_shots
from ..annotate.track import TrackConfig, estimate_track
from ..annotate.video import VideoConfig, expand_inputs, probe
from ..datasets import filters, schema
from ..datasets.manifest import create_manifest
from ..datasets.report import write_report
from ..records import BadMedia, LongtakeError, Rejected, Shot, Track, VideoInfo
from .config import MissingPart, RunStopped, UsageError, digest
from .display import Display, make_display
from .executors import drive, make_executor
from .ledger import Ledger, Run
from .stages import Artifacts, Job, Outcome, Progress, Ref, Resources, Stage

CAMERA_NAMES = (("fx", "fl_x"), ("fy", "fl_y"), ("cx", "cx"), ("cy", "cy"))
LIMIT_S, LIMIT_S_PER_FRAME = 600.0, 5.0  # a job that takes longer hangs: some hundred times what it should take


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """All that a row depends on besides its video."""

    stills: bool = False  # the frames are separate photographs
    intrinsics: tuple[float, ...] | None = None  # known camera in display pixels: (f,) or (fx, fy, cx, cy)
    profile: str = "none"  # filter profile that judges the clips: robust, sana_wm or none
    source: str | None = None  # whose thresholds of sana_wm
    source_dataset: str | None = None  # stated by the user, kept in every row
    license: str | None = None  # the same
    video: VideoConfig = field(default_factory=VideoConfig)
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        if self.intrinsics is not None and (len(self.intrinsics) not in (1, 4) or min(self.intrinsics[:2]) <= 0):
            raise ValueError(
                f"intrinsics are f or fx, fy, cx, cy in pixels with focal lengths above 0, not {self.intrinsics}"
            )
        if self.profile != "none":
            filters.rules(self.profile, self.source)
        elif self.source is not None:
            raise ValueError(f"source {self.source!r} chooses thresholds of the profile sana_wm: set profile too")


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


def _track(
    info: VideoInfo,
    shots: list[Shot],
    position: int,
    intrinsics: tuple[float, ...] | None,
    config: TrackConfig,
    video: VideoConfig,
    *,
    progress: Progress | None,
) -> Track | Rejected:
    given = None if intrinsics is None else known_camera(intrinsics, info)
    return estimate_track(info, shots[position], config, video_config=video, intrinsics=given, progress=progress)


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
TRACK = Stage(name="track", version=3, fn=_track, resources=Resources(cpus=1, memory_bytes=2 << 30))
QUALITY = Stage(name="quality", version=1, fn=_quality)
SHEET = Stage(name="sheet", version=1, fn=_sheet)
VERSIONS = {stage.name: str(stage.version) for stage in (PROBE, SHOTS, TRACK, QUALITY)}


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
    retry_failed: bool = False,
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
        retry_failed: work failed clips out again.
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
    if executor not in ("local", "ray"):
        raise UsageError(f"executor is local or ray, not {executor!r}")
    if address is not None and executor != "ray":
        raise UsageError("an address is of a Ray cluster: choose the executor ray with it")
    if jobs is not None and jobs < (executor == "ray"):
        raise UsageError(f"cannot run {jobs} jobs at the same time")
    if not inputs:
        raise UsageError("nothing to annotate: give video files, folders of images or patterns")
    try:
        sources = [str(source) for source in expand_inputs([str(item) for item in inputs])]
    except LongtakeError as error:
        raise UsageError(str(error)) from error
    try:
        manifest = create_manifest(Path(out).absolute())
    except LongtakeError as error:
        raise MissingPart(str(error)) from error

    display = make_display(quiet)
    ledger = Ledger(
        manifest,
        inputs=sources,
        config=Config(annotate=config),
        stage_versions=VERSIONS,
        retry_failed=retry_failed,
        display=display,
        about={"executor": executor},
    )
    store = Artifacts(manifest.folder / "artifacts")
    graph = _Graph(ledger, store, config, sheets=report)
    pool = None
    try:
        count = jobs if jobs is not None else (0 if executor == "ray" else 1)
        pool = make_executor(executor, store.root, jobs=count, address=address, log=ledger.log)
        with _draining(display) as stopping:
            first = graph.first_jobs(sources)
            again = not retry_failed
            end = drive(pool, store, first, graph.after, reuse_rejected=again, stopping=stopping, tick=ledger.tick)
        ledger.commit()
    except BaseException:
        with suppress(OSError):  # a full disk may be what broke it
            ledger.close("broken")
        raise
    finally:
        if pool:
            pool.close()
        display.close()
    if end.stopped:
        ledger.close("stopped")
        raise _why_stopped(end.stopped, ledger.log)
    manifest.compact()
    run = ledger.close("interrupted" if end.interrupted else "finished")
    if not report or end.interrupted:
        return run
    try:
        return replace(run, report=write_report(manifest.folder))
    except LongtakeError as error:
        raise MissingPart(str(error)) from error


@dataclass(kw_only=True)
class _Place:
    """Where one job stands: its source, and for a shot's jobs which shot and what is known of it so far."""

    source: str
    info_key: str = ""
    info: VideoInfo | None = None
    shots_key: str = ""
    position: int = 0  # in the list of shots
    shot: Shot | None = None
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

    def __init__(self, ledger: Ledger, store: Artifacts, config: AnnotateConfig, *, sheets: bool) -> None:
        self.ledger = ledger
        self.store = store
        self.config = config
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
            if outcome.status == "failed":  # on record from now on: only --retry-failed tries again
                self.store.save(job.key, refused, {"stage": job.stage.name, "seconds": outcome.seconds})
        place.timings_s[job.stage.name] = seconds = self.store.about(job.key)["seconds"]
        self.ledger.stage_seconds[job.stage.name] += seconds
        if job.stage.name == TRACK.name and outcome.reason == "out_of_memory" and not place.reduced:
            place.reduced = True
            return [self._track_job(place)]
        if job.stage.name != SHEET.name:  # a clip is not refused for lack of pictures of it
            place.refused = place.refused or refused
        match job.stage.name:
            case "probe":
                return self._after_probe(place, job.key)
            case "shots":
                return self._after_shots(place, job.key)
            case "track":
                place.track_key = job.key
                config = (self.config.quality, self.config.video)
                return [self._shot_job(QUALITY, config, place)]  # of a refused shot too: for its pictures
            case "quality":
                if outcome.status == "ok":
                    place.quality = self.store.load(job.key)
                    if self.sheets:
                        return [self._shot_job(SHEET, (self.config.video,), place)]
            case "sheet":
                if outcome.status == "ok":
                    self._write_sheet(place, self.store.load(job.key))
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
                jobs.append(self._track_job(own))
        return jobs

    def _track_job(self, place: _Place) -> Job:
        assert place.info
        track = self.config.track
        if place.reduced:
            track = replace(track, max_side=track.max_side // 2)
        config = (self.config.intrinsics, track, self.config.video)
        key = TRACK.key(place.info.sha256, (place.position, *config), (place.shots_key,))
        return self._job(
            TRACK, key, (Ref(key=place.info_key), Ref(key=place.shots_key), place.position, *config), place
        )

    def _shot_job(self, stage: Stage, config: tuple[object, ...], place: _Place) -> Job:
        """A job that takes a shot, its track or refusal, and a configuration."""
        shot = (Ref(key=place.info_key), Ref(key=place.shots_key), place.position, Ref(key=place.track_key))
        key = stage.key(place.clip_id, (*config, place.refused is None), (place.track_key,))
        return self._job(stage, key, (*shot, *config), place)

    def _job(self, stage: Stage, key: str, inputs: tuple[object, ...], place: _Place) -> Job:
        self.places[key] = place
        limit_s = LIMIT_S + LIMIT_S_PER_FRAME * (place.info.num_frames if place.info else 0)
        return Job(stage=stage, key=key, inputs=inputs, clip=place.name, limit_s=limit_s)

    def _is_first(self, identity: str, source: str) -> bool:
        """Whether no other source had this identity; the others are counted as its duplicates."""
        if identity in self.seen:
            self.ledger.duplicate(source, self.seen[identity])
            return False
        self.seen[identity] = source
        return True

    def _write_sheet(self, place: _Place, sheet: Sheet) -> None:
        """Put a clip's pictures where reports look for them."""
        folder = self.ledger.out / "sidecars" / place.clip_id
        folder.mkdir(parents=True, exist_ok=True)
        for frame, jpeg in zip(sheet.frames, sheet.jpegs, strict=True):
            (folder / f"contact_{frame:06d}.jpg").write_bytes(jpeg.tobytes())

    def _finish(self, place: _Place) -> None:
        """Hand the clip's row to the ledger."""
        refused = place.refused
        track: Track | None = None if refused else self.store.load(place.track_key)
        if track is not None and place.reduced:
            track = replace(track, flags=(*track.flags, "reduced_for_memory"))
        row = schema.annotate_row(
            path=place.source,
            provenance=schema.Provenance(
                run_id=self.ledger.run_id,
                config_hash=self.ledger.config_hash,
                software_version=metadata.version("longtake"),
                stage_versions=VERSIONS,
                timings_s=place.timings_s,
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
        if self.config.profile != "none":
            row = filters.judged(row, self.config.profile, self.config.source)
        self.ledger.add(row, place.name, f"{refused.reason}: {refused.message}" if refused else "")


def fingerprint(source: str) -> str:
    """What tells whether a file has changed without reading it: path, sizes and times of last change.

    For a folder or a pattern: of every file in it.
    """
    if os.path.isdir(source):
        files = [entry.path for entry in os.scandir(source) if entry.is_file()]
    else:
        files = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
    stats = [(file, os.stat(file)) for file in sorted(files)]
    return digest([os.path.abspath(source), [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]])


@contextmanager
def _draining(display: Display) -> Iterator[Callable[[], bool]]:
    """While open, the first Ctrl-C only asks to stop, the second interrupts; signals reach the main thread alone."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        display.note("stopping: finishing what runs. Ctrl-C again stops at once; nothing on record is lost either way")

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _why_stopped(outcome: Outcome, log: Path) -> LongtakeError:
    if outcome.status == "stopped":
        return MissingPart(f"{outcome.message}. Make room and run the same command: it goes on where it stopped.")
    return RunStopped(
        f"Stopped: the same unexpected error in several clips, so it is not the clips. {outcome.message}. "
        f"Tracebacks are in {log}. Once it is mended, the same command with --retry-failed goes on."
    )
