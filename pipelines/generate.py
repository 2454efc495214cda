"""From a first picture, a prompt and a camera path to a manifest of generated clips: the list of stages, and the run.

    picture, prompt, path -> asked (read and checked) -> latents -> film -> quality -> a row of the manifest
                                                                      \\-> the same with the keys drawn over it

What is slow is kept as soon as it is there: a run that was cut off after the latents only decodes. Every clip that was
asked for ends in a row, be it with status failed. The row's video is without the keys, so that it can be trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..annotate.quality import Quality, QualityConfig, measure
from ..annotate.sheet import Sheet, jpeg, pictured, shrunk
from ..annotate.video import VideoConfig, encode_rgb, pictures, probe
from ..datasets import schema
from ..datasets.manifest import create_manifest
from ..model import hub
from ..model.networks import networks
from ..model.sana_wm.actions import ACTION_MAPS, FPS
from ..model.sana_wm.generate import Parts, PromptTooLong, Settings, fetched_parts, framed, frames_of
from ..model.sana_wm.generate import generate as denoise
from ..model.sana_wm.path import CameraPath
from ..model.sana_wm.plan import Plan, plan, ways_to_fit
from ..records import LongtakeError, Rejected, Shot, Track, VideoInfo, known_track, motion_of
from . import path_plan
from .asked import Asked, PathConfig, Request, ask, requests
from .config import MissingPart, UsageError, digest, nearest, to_tree
from .depth import Facts, licences, revisions
from .display import make_display
from .ledger import Ledger, Run
from .overlay import Keys, shown_keys
from .run import carry_out, check_executor, fingerprint, scratch_file
from .stages import Artifacts, Graph, Job, Outcome, Progress, Ref, Resources, Stage, keep_file, write_atomic

if TYPE_CHECKING:
    import torch

ALONE = "one network in memory at a time"  # how a clip is made for which memory ran out
BYTES_PER_PIXEL = 0.1  # of a film, all frames; H.264 at this quality takes less of most


@dataclass(frozen=True, kw_only=True)
class Model:
    """A generator: how to come by its networks, and what it is set to where nothing else is asked for."""

    parts: Callable[[str, torch.dtype], Parts]  # to compute on a device in a type of numbers
    settings: Settings
    networks: Callable[[], list[Facts]]  # what the manifest tells of its weights; raises MissingPart without them
    plan: Callable[..., Plan] = plan


def _sana_wm() -> Model:
    return Model(
        parts=fetched_parts,
        settings=Settings(),
        networks=lambda: [hub.provenance(network.name) for network in networks(["generate"])],
    )


def _nano() -> Model:
    from ..model.sana_wm import nano

    def facts() -> list[Facts]:
        sha256 = hashlib.sha256(b"".join(file.read_bytes() for file in (nano.NET_FILE, nano.VAE_FILE))).hexdigest()
        about: Facts = {"network": "nano", "repo": None, "revision": None, "sha256": sha256, "licence": "Apache-2.0"}
        return [{**about, "licence_accepted_at": None}]

    sizes = {"net": nano.NANO, "vae": nano.NANO_VAE, "text_parameters": 0, "weights": ()}
    return Model(parts=nano.nano_parts, settings=nano.NANO_SETTINGS, networks=facts, plan=partial(plan, **sizes))


MODELS: dict[str, Callable[[], Model]] = {"sana-wm": _sana_wm, "nano": _nano}


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """All that a row depends on besides its first picture. None stands for the model's own setting."""

    model: str = "sana-wm"
    prompt: str | None = None  # None: a row's caption
    negative: str = ""
    cut_prompt: bool = False  # leave out the end of a prompt that is too long, rather than refuse it
    frames: int | None = None
    fps: float = FPS  # of the film; the network counts 16 a second whatever it says
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    sampler: str | None = None
    seed: int | None = None
    device: str = "auto"
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    offload: bool = False  # let go of each network after its turn also where all of them have room
    keep_latents: bool = False
    crf: int = 18  # quality of H.264: 0 lossless, 51 worst
    path: PathConfig = field(default_factory=PathConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"there is no model {self.model!r}: {', '.join(MODELS)}.{nearest(self.model, MODELS)}")
        if not 1 <= self.fps <= 240 or not 0 <= self.crf <= 51:
            raise UsageError(f"--fps {self.fps} must be 1 to 240, and crf {self.crf} 0 to 51")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: a number from 0 to 2^63 - 1")
        self.settings()

    def settings(self) -> Settings:
        """With the model's own for what is not asked for otherwise.

        Raises:
            LongtakeError: a number that no video can be made with.
        """
        given = {f.name: getattr(self, f.name) for f in fields(Settings) if getattr(self, f.name) is not None}
        return replace(MODELS[self.model]().settings, **given)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The root of the configuration file."""

    generate: GenerateConfig = field(default_factory=GenerateConfig)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where networks run, as what is asked for resolves on it."""

    device: str  # cpu, cuda or cuda:1
    dtype: str  # bf16 or fp32
    memory_bytes: int  # of it

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return torch.bfloat16 if self.dtype == "bf16" else torch.float32

    def lacks(self, p: Plan) -> str:
        """How much memory a clip needs that does not fit, in words."""
        needed, there = hub.in_words(p.peak_bytes), hub.in_words(self.memory_bytes)
        return f"{needed} of memory are needed, and {self.device} has {there}"


def machine(device: str, dtype: str, *, here: bool = True) -> Machine:
    """The device that is asked for, or the best there is; bf16 on a GPU and fp32 on a CPU unless told otherwise.

    Args:
        here: the work is done on this machine; of GPUs that others have the memory is taken to be 0.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"--device {device}: auto, cpu, cuda, or one of several such as cuda:1")
    if kind == "cpu":
        _, memory_bytes = hub.machine_memory()
    elif torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count():
        memory_bytes = torch.cuda.get_device_properties(int(number or 0)).total_memory
    elif here:
        raise UsageError(f"--device {device}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    else:
        memory_bytes = 0
    found = dtype if dtype != "auto" else ("fp32" if kind == "cpu" else "bf16")
    return Machine(device=device, dtype=found, memory_bytes=memory_bytes)


def sampler_of(sampling_algo: str) -> str | None:
    """Our sampler by the name that published code has for it; None for the model's own.

    Raises:
        UsageError: there is none, with what to take instead.
    """
    if sampling_algo in ("chunk_flow_euler", "self_forcing"):
        raise UsageError(
            f"--sampling-algo {sampling_algo} is of the chunk-causal and streaming networks, which are not here: the "
            "bidirectional one takes flow_euler_ltx or flow_dpm-solver"
        )
    known = {"auto": None, "flow_euler_ltx": "euler", "flow_dpm-solver": "dpm"}
    if sampling_algo not in known:
        raise UsageError(f"--sampling-algo {sampling_algo}: {', '.join(known)}.{nearest(sampling_algo, known)}")
    return known[sampling_algo]


# ---- the stages --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What the stages that need networks are told of them."""

    model: str
    device: str
    dtype: str
    resident: bool  # networks stay in memory from clip to clip

    def parts(self) -> Parts:
        if self.resident:
            return _resident(self)
        _resident.cache_clear()  # of clips before
        return self._fresh()

    def _fresh(self) -> Parts:
        dtype = Machine(device=self.device, dtype=self.dtype, memory_bytes=0).torch_dtype
        return MODELS[self.model]().parts(self.device, dtype)


@lru_cache(maxsize=1)
def _resident(engine: Engine) -> Parts:
    fresh = engine._fresh()
    return Parts(text=cache(fresh.text), vae=cache(fresh.vae), net=cache(fresh.net))


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Latent frames, and what became known while they were made."""

    file: Path  # safetensors: latents [1, C, T, h, w], world_from_cam [F, 4, 4], intrinsics [F, 4]
    stats: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """A video as it was encoded."""

    video: Path
    info: VideoInfo
    sheet: Sheet


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The film for people."""

    video: Path


def _asked(request: Request, *, progress: Progress | None) -> Asked | Rejected:
    try:
        return ask(request)
    except UsageError as error:  # of a batch: this clip's alone
        return Rejected(stage="asked", reason="cannot_be_asked", message=str(error))


def _latents(
    asked: Asked,
    settings: Settings,
    negative: str,
    cut_prompt: bool,
    engine: Engine,
    scratch: str,
    *,
    progress: Progress | None,
) -> Latents | Rejected:
    """Denoise, and leave the latent frames in a file."""
    import torch
    from safetensors.torch import save_file

    began = _peak_memory(engine.device, reset=True)
    try:
        made = denoise(
            engine.parts(),
            asked.picture,
            asked.path,
            asked.prompt,
            negative=negative,
            settings=settings,
            cut_prompt=cut_prompt,
            on_step=progress or (lambda done, steps: None),
        )
    except PromptTooLong as error:
        return Rejected(stage="latents", reason="prompt_too_long", message=str(error))
    except (RuntimeError, MemoryError) as error:
        _raise_unless_memory(error)
        return Rejected(stage="latents", reason="out_of_memory", message=_too_much(asked, settings, engine))
    if not bool(made.latents.isfinite().all()):
        return Rejected(stage="latents", reason="not_finite", message="the network gave numbers that are none (nan)")
    stats: dict[str, Any] = {
        "device": engine.device,
        "dtype": engine.dtype,
        "passes": settings.steps * (1 if settings.guidance == 1 else 2),
        "lost_tokens": made.lost_tokens,
        "remarks": list(asked.remarks),
    }
    if began is not None:
        stats["peak_memory_bytes"] = _peak_memory(engine.device)
    file = scratch_file(Path(scratch), "latents", ".safetensors")
    about = {"prompt": asked.prompt, "negative": negative, "settings": json.dumps(asdict(settings))}
    tensors = {
        "latents": made.latents.contiguous(),
        "world_from_cam": torch.from_numpy(made.path.world_from_cam).contiguous(),
        "intrinsics": torch.from_numpy(made.path.intrinsics).contiguous(),
    }
    save_file(tensors, file, about | {"format": "longtake-latents/1", "model": engine.model})
    return Latents(file=file, stats=stats)


def _raise_unless_memory(error: Exception) -> None:
    """Raise an error again unless it says that memory ran out; on a CPU PyTorch says so in words alone."""
    import torch

    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "DefaultCPUAllocator" not in str(error):
        raise error


def _peak_memory(device: str, *, reset: bool = False) -> int | None:
    """Bytes of tensors that a GPU held at once since the last reset; None for a CPU, which does not count them."""
    import torch

    if not device.startswith("cuda"):
        return None
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)


def _too_much(asked: Asked, settings: Settings, engine: Engine) -> str:
    found = machine(engine.device, engine.dtype)
    ways = ways_to_fit(
        settings,
        round(0.8 * found.memory_bytes),  # less than the plan counts with: it was not enough
        path_frames=asked.path.num_frames,
        dtype=found.torch_dtype,
        plan=MODELS[engine.model]().plan,
    )
    flags = [f"longtake generate {way.flags}" for way in ways] or ["fewer frames (--num-frames)", "--device cpu"]
    return f"{engine.device} ran out of memory; ways out: {', or '.join(flags)}. longtake generate --plan tells more"


def _film(
    asked: Asked,
    latents: Latents,
    settings: Settings,
    engine: Engine,
    fps: float,
    crf: int,
    scratch: str,
    *,
    progress: Progress | None,
) -> Film | Rejected:
    """Decode, a few frames in memory at a time; the file can be watched up to where the decoder is."""
    from safetensors.torch import load_file

    total = framed(asked.path, asked.path.width, asked.path.height, settings).num_frames
    shown = pictured(total)
    jpegs: list[NDArray[np.uint8]] = []
    video = scratch_file(Path(scratch), "film", ".mp4")

    def frames() -> Iterator[NDArray[np.uint8]]:
        for i, rgb in enumerate(frames_of(load_file(latents.file)["latents"], engine.parts().vae())):
            if i in shown:
                jpegs.append(jpeg(shrunk(rgb)))
            if progress is not None:
                progress(i + 1, total)
            yield rgb

    try:
        encode_rgb(video, frames(), fps, crf=crf)
    except (RuntimeError, MemoryError) as error:
        _raise_unless_memory(error)
        return Rejected(stage="film", reason="out_of_memory", message=_too_much(asked, settings, engine))
    info = probe(video)
    if info.num_frames != total:
        raise RuntimeError(f"{video}: {total} frames were encoded, and {info.num_frames} are in it")
    return Film(video=video, info=info, sheet=Sheet(frames=tuple(shown.tolist()), jpegs=tuple(jpegs)))


def _quality(
    film: Film, asked: Asked, settings: Settings, config: QualityConfig, *, progress: Progress | None
) -> Quality:
    info = replace(film.info, path=str(film.video))
    crop = (0, 0, info.width, info.height)
    shot = Shot(index=0, start=0, stop=info.num_frames, crop=crop, overlay=None, boundary="start")
    track = asked_track(framed(asked.path, asked.path.width, asked.path.height, settings), info.pts_ns)
    return measure(info, shot, track, config, video_config=VideoConfig(), progress=progress)


def _overlay(
    film: Film, asked: Asked, action_map: str, fps: float, crf: int, scratch: str, *, progress: Progress | None
) -> Shown:
    """The film with the keys that steer its camera drawn over it."""
    info = replace(film.info, path=str(film.video))
    keys, held = Keys(info.width, info.height), shown_keys(asked.path, asked.keys, ACTION_MAPS[action_map])
    video = scratch_file(Path(scratch), "keys", ".mp4")
    encode_rgb(video, (keys.draw(rgb, held[i]) for i, rgb in pictures(info)), fps, crf=crf)
    return Shown(video=video)


ASKED = Stage(name="asked", version=1, fn=_asked, resources=Resources(memory_bytes=1 << 30))
LATENTS = Stage(name="latents", version=1, fn=_latents)
FILM = Stage(name="film", version=1, fn=_film)
QUALITY = Stage(name="quality", version=1, fn=_quality)
OVERLAY = Stage(name="overlay", version=1, fn=_overlay)
GRAPH = Graph(((ASKED, LATENTS, FILM, QUALITY, OVERLAY),))
VERSIONS = {stage.name: str(stage.version) for stage in (ASKED, LATENTS, FILM, QUALITY)}


def asked_track(path: CameraPath, pts_ns: NDArray[np.int64]) -> Track:
    """The camera that a video was asked to show. Whether it does is another question: `longtake evaluate`."""
    return known_track(
        pts_ns=pts_ns,
        world_from_cam=path.world_from_cam,
        intrinsics=path.intrinsics,
        width=path.width,
        height=path.height,
        motion_class=motion_of(path.world_from_cam),
        scale_kind="metric",
        pose_source="asked",
    )


# ---- the run -----------------------------------------------------------------------------------------------------


def generate(
    *,
    out: str | os.PathLike[str],
    config: GenerateConfig,
    image: str | None = None,
    manifest: str | os.PathLike[str] | None = None,
    where: str | None = None,
    clip_ids: Sequence[str] = (),
    name: str = "output",
    overlay: bool = True,
    executor: str = "local",
    jobs: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    max_failed_ratio: float | None = None,
    report: bool = True,
    quiet: bool = True,
) -> Run:
    """Generate clips, and commit a row for each to the manifest `out`.

    Args:
        out: the folder of the manifest; made where it does not exist, taken up where it does.
        image: the first picture, or a video that begins with it; `name`.mp4 and others lie in `out` then.
        manifest, where, clip_ids: the rows whose first frames are begun with; those that are ok by default.
        overlay: draw the keys over `name`.mp4. The row's own video never has them.
        executor, jobs, address, max_failed_ratio: as for `annotate`.
        retry_failed: work failed clips out again.
        report: write report.html into the folder.
        quiet: show no progress.

    Returns:
        The counts; `Run.manifest` reads the rows. A clip of a manifest that fails has its row and raises nothing.

    Raises:
        LongtakeError: what was asked for cannot be understood, or a picture or path given by hand will not do; weights
            are not here; the disk is full.
    """
    check_executor(executor, jobs, address, max_failed_ratio)
    check_name(name)
    settings, model = config.settings(), MODELS[config.model]()
    chosen: dict[str, Any] = {"image": image, "manifest": manifest, "where": where, "clip_ids": clip_ids}
    asked_for = requests(config.prompt, config.path, settings.frames, **chosen)
    single = ask(asked_for[0]) if image is not None else None
    found = machine(config.device, config.dtype, here=executor == "local")
    weights = model.networks()
    frames = single.path.num_frames if single is not None else settings.frames
    p = model.plan(settings, path_frames=frames, dtype=found.torch_dtype)
    if p.peak_bytes > found.memory_bytes and executor == "local":
        known = {"path_frames": frames, "dtype": found.torch_dtype, "plan": model.plan}
        ways = ways_to_fit(settings, found.memory_bytes, **known)
        words = "; ".join(way.flags for way in ways) or "no number of frames fits: another machine"
        raise MissingPart(f"{found.lacks(p)}. Ways out: {words}. longtake generate --plan tells more")
    try:
        opened = create_manifest(Path(out).absolute())
    except LongtakeError as error:
        raise MissingPart(str(error)) from error
    _check_room(opened.folder, p, settings)
    display = make_display(quiet)
    if single is not None:
        motion = path_plan.Motion.of(single.path)
        display.note(motion.words())
        for remark in (*single.remarks, *motion.remarks()):
            display.note(remark)
        drawing = path_plan.draw(single.path, lens=single.lens, title=asked_for[0].name)
        write_atomic(opened.folder / f"{name}.plan.svg", drawing)
    if config.fps != FPS:
        display.note(f"--fps {config.fps:g}: the network counts {FPS:g} frames a second, so the film runs otherwise")
    ledger = Ledger(
        opened,
        inputs=[request.name for request in asked_for],
        config=Config(generate=config),
        stage_versions=VERSIONS,
        retry_failed=retry_failed,
        display=display,
        about={"executor": executor, "networks": weights, "from_manifest": None if manifest is None else str(manifest)},
    )
    engine = Engine(
        model=config.model,
        device=found.device,
        dtype=found.dtype,
        resident=not config.offload and sum(p.memory_bytes.values()) < 0.9 * found.memory_bytes,
    )
    graph = _Graph(
        ledger,
        Artifacts(opened.folder / "artifacts"),
        config,
        engine,
        weights=weights,
        memory_bytes=p.peak_bytes,
        name=name if image is not None else None,
        overlay=overlay,
        on_ray=executor == "ray",
    )
    return carry_out(
        graph.first_jobs(asked_for, single),
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


def check_name(name: str) -> str:
    """The name, where it is one of a file; raises UsageError."""
    if Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise UsageError(f"--name {name!r}: a plain file name without its ending, such as output")
    return name


def clip_bytes(p: Plan, settings: Settings) -> int:
    """About what a clip takes of the disk: its latents, its film, and that with the keys."""
    return round(p.latents_bytes + 2 * BYTES_PER_PIXEL * p.frames * settings.width * settings.height)


def _check_room(folder: Path, p: Plan, settings: Settings) -> None:
    """Raise MissingPart where not even one clip has room."""
    needed = clip_bytes(p, settings)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise MissingPart(
            f"a clip takes about {hub.in_words(needed)}, and where {folder} lies {hub.in_words(free)} are free. Make "
            "room, or choose another --output-dir"
        )


@dataclass(kw_only=True)
class _Place:
    """Where one clip stands."""

    request: Request
    clip_id: str
    made: str  # hash of all that the latents depend on
    asked_key: str = ""
    latents_key: str = ""
    film_key: str = ""
    overlay_key: str = ""
    short_in: str = ""  # the stage in which memory ran out; since then one network is in it at a time
    quality: Quality | None = None
    refused: Rejected | None = None
    timings_s: dict[str, float] = field(default_factory=dict)


class _Graph:
    """Which job follows from which outcome, for every clip of a run."""

    def __init__(
        self,
        ledger: Ledger,
        store: Artifacts,
        config: GenerateConfig,
        engine: Engine,
        *,
        weights: Sequence[Facts],
        memory_bytes: int,
        name: str | None,
        overlay: bool,
        on_ray: bool,
    ) -> None:
        self.ledger = ledger
        self.store = store
        self.config = config
        self.settings = config.settings()
        self.weights = weights
        self.name = name  # of the files in the manifest's folder, for a single picture
        self.overlay = overlay and name is not None
        # on a GPU one of each finds room beside the other, and no two that denoise
        shares = (0.6, 0.4) if engine.device.startswith("cuda") else (0.0, 0.0)
        memory = {"memory_bytes": 4 << 30 if shares[0] else memory_bytes}
        # on Ray what is resident keeps what it takes for good: the one network that takes long to load, on a GPU
        stays = (shares[0] > 0, False) if on_ray else (True, True)
        self.latents_engine, self.film_engine = (replace(engine, resident=engine.resident and s) for s in stays)
        self.latents_stage, self.film_stage = (
            replace(stage, resources=Resources(gpus=share, **memory), resident=of.resident)
            for stage, share, of in zip((LATENTS, FILM), shares, (self.latents_engine, self.film_engine), strict=True)
        )
        self.places: dict[str, _Place] = {}
        self.seen: dict[str, str] = {}  # clip_id -> what asked for it first

    def first_jobs(self, asked_for: Iterable[Request], single: Asked | None) -> Iterator[Job]:
        """Of every request that is not done. `single` is what the only one was found to ask for, where it was read."""
        for request in asked_for:
            what = {
                "asked": request.digest(),
                "settings": asdict(self.settings),
                "negative": self.config.negative if self.settings.guidance != 1 else None,
                "model": self.config.model,
                "revisions": revisions(self.weights),
                "dtype": self.latents_engine.dtype,
            }
            made = digest(what)
            id = schema.generated_clip_id(f"{made} at {self.config.fps:g} fps")
            self.ledger.inputs_left -= 1
            if id in self.seen:
                self.ledger.duplicate(request.name, self.seen[id])
                continue
            self.seen[id] = request.name
            self.ledger.expected += 1
            if self.name is None and (row := self.ledger.current(id)):
                self.ledger.count(row, request.name, "")
                continue
            place = _Place(request=request, clip_id=id, made=made)
            key = ASKED.key(made, None, (self._mark(request),))
            if single is not None and not self.store.has(key):
                self.store.save(key, single, {"stage": ASKED.name, "seconds": 0.0})
            yield self._job(ASKED, key, (request,), place)

    def after(self, outcome: Outcome) -> Iterable[Job]:
        """Write down what became of a job, and give the job that it makes possible."""
        job = outcome.job
        place = self.places.pop(job.key)
        self.ledger.note(place.request.name, outcome)
        if outcome.status == "stopped":
            return []
        if outcome.status != "ok":
            again = f" (the second try, with {ALONE})" if place.short_in and outcome.reason == "out_of_memory" else ""
            place.refused = Rejected(stage=job.stage.name, reason=outcome.reason, message=outcome.message + again)
        place.timings_s[job.stage.name] = seconds = self.store.about(job.key)["seconds"]
        self.ledger.stage_seconds[job.stage.name] += seconds
        if outcome.reason == "out_of_memory" and job.stage.name in (LATENTS.name, FILM.name) and not place.short_in:
            place.short_in, place.refused = job.stage.name, None
            self.ledger.display.note(f"{place.request.name}: memory ran out in {job.stage.name}: again, with {ALONE}")
            return [self._latents_job(place) if job.stage.name == LATENTS.name else self._film_job(place)]
        if place.refused:
            self._finish(place)
            return []
        config, settings, scratch = self.config, self.settings, str(self.store.root)
        asked = Ref(key=place.asked_key or job.key)
        match job.stage.name:
            case "asked":
                place.asked_key = job.key
                return [self._latents_job(place)]
            case "latents":
                place.latents_key = job.key
                return [self._film_job(place)]
            case "film":
                place.film_key = job.key
                key = QUALITY.key(place.made, (config.quality,), (job.key,))
                return [self._job(QUALITY, key, (Ref(key=job.key), asked, settings, config.quality), place)]
            case "quality":
                place.quality = self.store.load(job.key)
                if self.overlay:
                    key = OVERLAY.key(place.made, (config.path.action_map,), (place.film_key,))
                    rest = (config.path.action_map, config.fps, config.crf, scratch)
                    return [self._job(OVERLAY, key, (Ref(key=place.film_key), asked, *rest), place)]
            case "overlay":
                place.overlay_key = job.key
        self._finish(place)
        return []

    def _latents_job(self, place: _Place) -> Job:
        config, (engine, again) = self.config, _tried(self.latents_engine, place)
        key = LATENTS.key(place.made, (config.cut_prompt, *again), (place.asked_key,))
        inputs = (self.settings, config.negative, config.cut_prompt, engine, str(self.store.root))
        return self._job(self.latents_stage, key, (Ref(key=place.asked_key), *inputs), place)

    def _film_job(self, place: _Place) -> Job:
        config, (engine, again) = self.config, _tried(self.film_engine, place)
        key = FILM.key(place.made, (config.fps, config.crf, *again), (place.latents_key,))
        inputs = (self.settings, engine, config.fps, config.crf, str(self.store.root))
        return self._job(self.film_stage, key, (Ref(key=place.asked_key), Ref(key=place.latents_key), *inputs), place)

    def _job(self, stage: Stage, key: str, inputs: tuple[object, ...], place: _Place) -> Job:
        self.places[key] = place
        return Job(stage=stage, key=key, inputs=inputs, clip=place.request.name)

    def _mark(self, request: Request) -> str:
        """What tells whether the file of the first picture has changed."""
        if request.row is None:
            return ""
        images = request.row["image_uris"]
        where = images[0] if images is not None and len(images) else request.row["uri"]
        return fingerprint(str(Path(request.folder) / where)) if where else ""

    def _finish(self, place: _Place) -> None:
        """Put the clip's files in their places, and hand its row to the ledger."""
        request, refused, config = place.request, place.refused, self.config
        source = request.source
        asked: Asked | None = self.store.load(place.asked_key) if place.asked_key else None
        latents: Latents | None = self.store.load(place.latents_key) if place.latents_key else None
        film: Film | None = self.store.load(place.film_key) if place.film_key and not refused else None
        stats = latents.stats if latents else None
        if stats and place.short_in:
            remark = f"memory ran out in the stage {place.short_in}: made again with {ALONE}"
            stats = stats | {"remarks": [*stats["remarks"], remark]}
        row_of: dict[str, Any] = {}
        if asked is not None and film is not None:
            path = framed(asked.path, asked.path.width, asked.path.height, self.settings)
            row_of = {
                "video": film.info,
                "uri": str(Path("clips") / f"{place.clip_id}.mp4"),
                "track": asked_track(path, film.info.pts_ns),
                "action_keys": asked.keys or None,
                "quality": place.quality.clip if place.quality else {},
                "frames": place.quality.frames if place.quality else None,
            }
        row = schema.generate_row(
            id=place.clip_id,
            source=source.uri,
            source_sha256=source.sha256,
            provenance=schema.Provenance(
                run_id=self.ledger.run_id,
                config_hash=self.ledger.config_hash,
                software_version=metadata.version("longtake"),
                stage_versions=self.ledger.stage_versions,
                timings_s=place.timings_s,
                model_revisions=revisions(self.weights),
                model_licenses=licences(self.weights),
            ),
            config=self._told(asked),
            seed=self.settings.seed,
            prompt=asked.prompt if asked else request.prompt,
            negative_prompt=config.negative or None,
            parent=source.parent,
            group_id=source.group_id,
            split=source.split,
            action_dsl=config.path.action,
            rejected=refused,
            stats=stats,
            source_dataset=source.source_dataset,
            license=source.license,
            **row_of,
        )
        if asked is not None and film is not None and latents is not None:
            row["scale_source"] = "asked for"
            row |= self._keep(place, asked, latents, film, row)
        remarks = "; ".join(stats["remarks"]) if stats else ""
        self.ledger.add(row, request.name, f"{refused.reason}: {refused.message}" if refused else remarks)

    def _told(self, asked: Asked | None) -> dict[str, Any]:
        """What the row says of how it was made; numbers that JSON has no words for are left out."""
        told = {name: value for name, value in asdict(self.settings).items() if name != "seed"}
        told |= {"model": self.config.model, "dtype": self.latents_engine.dtype, "fps": self.config.fps}
        told["path"] = {name: value for name, value in to_tree(self.config.path).items() if value is not None}
        told["intrinsics_from"] = asked.lens if asked else None
        return {k: v for k, v in told.items() if not (isinstance(v, float) and not math.isfinite(v))}

    def _keep(
        self, place: _Place, asked: Asked, latents: Latents, film: Film, row: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put a clip's files below the manifest's folder; the columns that tell of them."""
        out, id = self.ledger.out, place.clip_id
        keep_file(film.video, out / row["uri"])
        sidecars = Path("sidecars") / id
        film.sheet.write(out / sidecars)
        drawing = path_plan.draw(asked.path, lens=asked.lens, title=place.request.name)
        write_atomic(out / sidecars / "plan.svg", drawing)
        columns = {"plan_uri": str(sidecars / "plan.svg")}
        if self.config.keep_latents:
            keep_file(latents.file, out / sidecars / "latents.safetensors")
            columns["latents_uri"] = str(sidecars / "latents.safetensors")
        if self.name is not None:
            shown: Film | Shown = self.store.load(place.overlay_key) if place.overlay_key else film
            keep_file(shown.video, out / f"{self.name}.mp4")
            if self.config.keep_latents:
                keep_file(latents.file, out / f"{self.name}.latents.safetensors")
        return columns


def _tried(engine: Engine, place: _Place) -> tuple[Engine, tuple[str, ...]]:
    """How networks are run for a clip, and what in a key tells the second try."""
    return (replace(engine, resident=False), ("again",)) if place.short_in else (engine, ())
