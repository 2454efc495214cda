"""A pipeline of toy stages with everything that real ones have, and a driver of it that faults can be done to.

    look (a source) -> find -> for each clip: trace -> judge -> a row of the manifest

Every call of a stage leaves a line "stage | clip | process" in a log before it works. Sources are names; what stages
find in them is drawn from the name. Some are refused, and so are some clips.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longtake.pipelines.stages import (
    Artifacts,
    Graph,
    Job,
    Outcome,
    Progress,
    Ref,
    Resources,
    Stage,
    keep_file,
    temporary_name,
)
from longtake.records import BadMedia, Rejected, Shot, Track, VideoInfo

FRAMES = 8
RUN_COLUMNS = ("run_id", "created_at", "timings_s")  # of a row, what tells of the run and not of the clip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a driver does."""

    out: Path
    log: Path
    sources: int
    work_s: float = 0.0  # of each stage
    bytes: int = 1000  # of each clip's file
    executor: str = "local"
    jobs: int = 0
    address: str | None = None
    gpus: float = 0.0  # of the stage that loads a network
    commit_rows: int = 3
    die_at: int | None = None  # number of the file operation before which the driver kills itself
    jumping_clock: bool = False
    max_failed_ratio: float | None = None
    settings: tuple[tuple[str, str], ...] = ()  # environment variables


def _seed(*names: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4])


def _begin(stage: str, clip: str, log: str, work_s: float) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{stage} | {clip} | {os.getpid()}\n".encode())
    os.close(descriptor)
    time.sleep(work_s)


def look(source: str, log: str, work_s: float, *, progress: Progress | None) -> VideoInfo:
    _begin("look", source, log, work_s)
    if _seed("look", source) % 8 == 0:
        raise BadMedia("not_a_video", f"{source} is text")
    count = FRAMES * (1 + _seed("find", source) % 3)
    return VideoInfo(
        path=f"/toys/{source}",
        is_images=False,
        image_paths=(),
        sha256=hashlib.sha256(source.encode()).hexdigest(),
        num_bytes=1000,
        container="mp4",
        codec="h264",
        pix_fmt="yuv420p",
        coded_width=64,
        coded_height=48,
        width=64,
        height=48,
        rotation_deg=0,
        sar_num=1,
        sar_den=1,
        color_range="tv",
        interlaced=False,
        pts_ns=np.arange(count) * 100_000_000,
        is_vfr=False,
        tagged_fps=10.0,
    )


def find(source: str, info: VideoInfo, log: str, work_s: float, *, progress: Progress | None) -> list[Shot]:
    _begin("find", source, log, work_s)
    starts = range(0, info.num_frames, FRAMES)
    return [
        Shot(index=i, start=start, stop=start + FRAMES, crop=(0, 0, 64, 48), overlay=None, boundary="cut")
        for i, start in enumerate(starts)
    ]


def trace(
    clip: str, info: VideoInfo, shots: list[Shot], position: int, log: str, work_s: float, *, progress: Progress | None
) -> Track | Rejected:
    _begin("trace", clip, log, work_s)
    if _seed("trace", clip) % 9 == 0:
        return Rejected(stage="trace", reason="fisheye", message="a circle")
    n = FRAMES
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, 3] = np.random.default_rng(_seed(clip)).normal(size=(n, 3)).cumsum(0)
    unknown = np.full(n, np.nan)
    return Track(
        pts_ns=info.pts_ns[shots[position].start : shots[position].stop],
        width=info.width,
        height=info.height,
        world_from_cam=poses,
        pose_valid=np.ones(n, bool),
        intrinsics=np.tile([60.0, 60.0, 31.5, 23.5], (n, 1)),
        intrinsics_mode="static",
        focal_status="given",
        focal_sigma=unknown,
        distortion_model="none",
        distortion=(),
        motion_class="general",
        flags=(),
        scale_kind="relative",
        pose_source="toy",
        is_keyframe=np.ones(n, bool),
        reproj_rmse_px=np.zeros(n),
        sampson_px=unknown,
        num_tracked=np.full(n, 100, np.int32),
        inlier_ratio=np.zeros(n),
        coverage=np.zeros(n),
        dyn_ratio=np.zeros(n),
        step_px=unknown,
    )


def judge(
    clip: str, track: Track, scratch: str, size: int, log: str, work_s: float, *, progress: Progress | None
) -> dict[str, object]:
    """A number, and a file."""
    _begin("judge", clip, log, work_s)
    path = Path(scratch) / temporary_name("judge", ".bin")
    path.write_bytes(np.random.default_rng(_seed(clip)).bytes(size))
    return {"luma": float(np.linalg.norm(track.world_from_cam[-1, :3, 3])), "file": path}


LOOK = Stage(name="look", version=1, fn=look)
FIND = Stage(name="find", version=1, fn=find)
TRACE = Stage(name="trace", version=1, fn=trace, resources=Resources(memory_bytes=1 << 20), resident=True)
JUDGE = Stage(name="judge", version=1, fn=judge)
GRAPH = Graph(chains=((LOOK,), (FIND,), (TRACE, JUDGE)))


class ToyGraph:
    """Which job follows from which outcome: the bookkeeping of a real pipeline in small."""

    def __init__(self, plan: Plan, ledger: Any, store: Artifacts) -> None:
        self.plan = plan
        self.ledger = ledger
        self.store = store
        self.trace = replace(TRACE, resources=replace(TRACE.resources, gpus=plan.gpus))
        self.rest = (str(plan.log), plan.work_s)

    def first_jobs(self) -> Iterator[Job]:
        for i in range(self.plan.sources):
            source = f"source {i:03}"
            yield Job(stage=LOOK, key=LOOK.key(source, None), inputs=(source, *self.rest), clip=source)

    def after(self, outcome: Outcome) -> Iterable[Job]:
        job = outcome.job
        self.ledger.note(job.clip, outcome)
        if outcome.status == "stopped":
            return []
        source = job.clip[: len("source 000")]
        look_key = LOOK.key(source, None)
        find_key = FIND.key(source, None, (look_key,))
        refused = None if outcome.status == "ok" else self.store.load(job.key)
        match job.stage.name:
            case "look":
                self.ledger.inputs_left -= 1
                if refused is None:
                    inputs = (source, Ref(key=job.key), *self.rest)
                    return [Job(stage=FIND, key=find_key, inputs=inputs, clip=source)]
                self.ledger.expected += 1
                self._add(source, job.clip, refused=refused)
            case "find":
                info, shots = self.store.load(look_key), self.store.load(job.key)
                self.ledger.expected += len(shots)
                return list(self._clips(source, info, shots, find_key, look_key))
            case "trace" if refused:
                self._add(source, job.clip, refused=refused)
            case "judge":
                self._add(source, job.clip, refused=refused)
        return []

    def _clips(self, source: str, info: VideoInfo, shots: list[Shot], find_key: str, look_key: str) -> Iterator[Job]:
        for i, shot in enumerate(shots):
            clip = f"{source} {i}"
            if row := self.ledger.current(self._id(info, shot)):
                self.ledger.count(row, clip, "")
                continue
            key = TRACE.key(source, i, (find_key,))
            inputs = (clip, Ref(key=look_key), Ref(key=find_key), i, *self.rest)
            trace = Job(stage=self.trace, key=key, inputs=inputs, clip=clip, limit_s=600.0)
            inputs = (clip, Ref(key=key), str(self.store.root), self.plan.bytes, *self.rest)
            key = JUDGE.key(source, self.plan.bytes, (key,))
            yield GRAPH.link(trace, Job(stage=JUDGE, key=key, inputs=inputs, clip=clip))

    def _id(self, info: VideoInfo, shot: Shot) -> str:
        from longtake.datasets import schema

        span = (shot.start, shot.stop)
        return schema.clip_id(sha256=info.sha256, path=info.path, span=span, crop=shot.crop, rotation_deg=0)

    def _add(self, source: str, clip: str, refused: Rejected | None) -> None:
        from longtake.datasets import schema

        look_key = LOOK.key(source, None)
        find_key = FIND.key(source, None, (look_key,))
        info = shot = track = judged = None
        if clip != source:
            i = int(clip.rpartition(" ")[2])
            info, shot = self.store.load(look_key), self.store.load(find_key)[i]
            key = TRACE.key(source, i, (find_key,))
            if refused is None:
                track = self.store.load(key)
                judged = self.store.load(JUDGE.key(source, self.plan.bytes, (key,)))
        row = schema.annotate_row(
            path=f"/toys/{source}",
            provenance=schema.Provenance(
                run_id=self.ledger.run_id,
                config_hash=self.ledger.config_hash,
                software_version="1",
                stage_versions=self.ledger.stage_versions,
                timings_s={},
            ),
            video=info,
            shot=shot,
            track=track,
            rejected=refused,
            quality={"luma": judged["luma"]} if judged else None,
        )
        row["uri"] = None
        if judged:
            row["uri"] = f"sidecars/{row['clip_id']}/file.bin"
            keep_file(judged["file"], self.plan.out / row["uri"])
        self.ledger.add(row, clip, "")


def drive(plan: Plan) -> None:
    """Carry the plan out in this process, and leave it: exit code 0 well, 1 stopped, 3 the disk is full."""
    os.environ.update({"OMP_NUM_THREADS": "1", **dict(plan.settings)})
    from longtake.datasets.manifest import create_manifest
    from longtake.pipelines import ledger
    from longtake.pipelines.config import MissingPart, RunStopped
    from longtake.pipelines.display import make_display
    from longtake.pipelines.run import carry_out

    if plan.jumping_clock:
        _make_clock_jump()
    if plan.die_at is not None:
        _die_at(plan.die_at, plan.out, plan.log.with_name("operations"))
    ledger.COMMIT_ROWS = plan.commit_rows
    code = 0
    try:
        manifest = create_manifest(plan.out)
        books = ledger.Ledger(
            manifest,
            inputs=[f"source {i:03}" for i in range(plan.sources)],
            config=Config(),
            stage_versions={stage.name: str(stage.version) for stage in GRAPH.stages},
            retry_failed=False,
            display=make_display(True),
            about={"executor": plan.executor},
        )
        graph = ToyGraph(plan, books, Artifacts(plan.out / "artifacts"))
        carry_out(
            graph.first_jobs(),
            graph.after,
            ledger=books,
            store=graph.store,
            executor=plan.executor,
            jobs=plan.jobs,
            address=plan.address,
            retry_failed=False,
            report=False,
            graph=GRAPH,
            max_failed_ratio=plan.max_failed_ratio,
        )
    except (MissingPart, OSError) as error:
        print(error, file=sys.stderr)
        code = 3
    except RunStopped as error:
        print(error, file=sys.stderr)
        code = 1
    sys.exit(code)


@dataclass(frozen=True)
class Config:
    """Nothing can be set."""


def _die_at(number: int, below: Path, count: Path) -> None:
    """Kill this process before its file operation of this number in this folder; leave the number of all in a file."""
    seen = 0
    within = os.fspath(below)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if not any(isinstance(a, (str, os.PathLike)) and os.fspath(a).startswith(within) for a in arguments):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if not number:
            count.write_text(str(seen))

    sys.addaudithook(hook)


def _make_clock_jump() -> None:
    """The wall clock jumps by up to a year, to and fro, at every look at it."""
    import datetime as module

    from longtake.datasets import manifest
    from longtake.pipelines import ledger

    real, rng = time.time, np.random.default_rng(0)

    def jumping() -> float:
        return real() + rng.uniform(-1, 1) * 365 * 86_400

    class Jumping(module.datetime):
        @classmethod
        def now(cls, tz: module.tzinfo | None = None) -> module.datetime:
            return module.datetime.fromtimestamp(jumping(), tz)

    time.time = jumping
    time.time_ns = lambda: int(1e9 * jumping())
    for user in (manifest, ledger):
        if hasattr(user, "datetime"):
            setattr(user, "datetime", Jumping)  # noqa: B010
