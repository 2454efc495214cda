"""What `longtake generate --plan` tells: memory, disk, download and time, and the flags that make a video fit.

Nothing is fetched and no network is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..model import hub
from ..model.sana_wm.generate import Settings
from ..model.sana_wm.plan import Plan, Way, matmul_flops_per_s, ways_to_fit
from . import path_plan
from .asked import Asked, Request, ask, requests
from .config import MissingPart
from .generate import MODELS, GenerateConfig, Machine, check_name, clip_bytes, machine
from .stages import write_atomic


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a run would take on this machine."""

    clips: int
    asked: Asked | None  # of a single picture
    settings: Settings
    machine: Machine
    plan: Plan  # of the longest clip
    disk_bytes: int  # of all clips
    free_bytes: int
    flops_per_s: float
    seconds: float  # at least, of all clips
    ways: tuple[Way, ...]  # to make it fit; none needed where it does
    obstacles: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.plan.peak_bytes <= self.machine.memory_bytes

    def facts(self) -> dict[str, Any]:
        """As JSON has them."""
        out: dict[str, Any] = {"clips": self.clips}
        if self.asked is not None:
            motion = path_plan.Motion.of(self.asked.path)
            out["path"] = {
                "words": motion.words(),
                "frames": motion.frames,
                "travelled_m": motion.travelled_m,
                "turned_deg": motion.turned_deg,
                "max_speed_m_s": float(motion.speed_m_s.max()),
                "max_turn_deg_s": float(motion.turn_deg_s.max()),
                "published_speeds_m_s": path_plan.SPEEDS_M_S,
                "published_turns_deg_s": path_plan.TURNS_DEG_S,
                "fov_deg": path_plan.fov_range(self.asked.path).tolist() if self.asked.lens else None,
                "intrinsics_from": self.asked.lens or None,
            }
        return out | {
            "frames": self.plan.frames,
            "size": [self.settings.width, self.settings.height],
            "tokens": self.plan.tokens,
            "passes": self.plan.passes,
            "device": self.machine.device,
            "dtype": self.machine.dtype,
            "device_memory_bytes": self.machine.memory_bytes,
            "memory_bytes": dict(self.plan.memory_bytes),
            "peak_bytes": self.plan.peak_bytes,
            "fits": self.fits,
            "download_bytes": self.plan.download_bytes,
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "flops": dict(self.plan.flops),
            "flops_per_s": self.flops_per_s,
            "seconds_at_least": self.seconds,
            "ways_to_fit": [asdict(way) for way in self.ways],
            "obstacles": list(self.obstacles),
        }

    def lines(self) -> Iterator[str]:
        """As a person reads them."""
        words = hub.in_words
        if self.asked is not None:
            motion = path_plan.Motion.of(self.asked.path)
            yield f"path      {motion.words()}"
            if self.asked.lens:
                (x0, x1), (y0, y1) = path_plan.fov_range(self.asked.path)
                same = x1 - x0 < 0.05 and y1 - y0 < 0.05
                told = f"{x0:.1f} x {y0:.1f}" if same else f"{x0:.1f} to {x1:.1f} x {y0:.1f} to {y1:.1f}"
                yield f"lens      field of view {told} deg, by {self.asked.lens}"
            else:
                yield "lens      not known yet: --intrinsics, or a network that is here when it runs, must say it"
            for remark in (*self.asked.remarks, *motion.remarks()):
                yield f"          {remark}"
        settings, p = self.settings, self.plan
        size = f"{p.frames} frames of {settings.width} x {settings.height}"
        yield f"video     {self.clips} x {size}, {settings.steps} steps, {p.passes} passes over {p.tokens:,} tokens"
        yield f"machine   {self.machine.device}, {self.machine.dtype}, {words(self.machine.memory_bytes)} of memory"
        parts = ", ".join(f"{name} {words(size)}" for name, size in p.memory_bytes.items())
        yield f"memory    {words(p.peak_bytes)} at its peak ({parts}; one after the other)"
        yield f"download  {words(p.download_bytes) if p.download_bytes else 'nothing: all weights are here'}"
        yield f"disk      {words(self.disk_bytes)} for results, {words(self.free_bytes)} free"
        rate = f"{self.flops_per_s / 1e12:.3g} TFLOP/s, measured just now"
        operations = f"{sum(p.flops.values()) * self.clips:.2g} operations"
        yield f"time      {_duration(self.seconds)} or more ({operations} at {rate})"
        if self.settings.guidance != 1:
            yield f"          with --cfg-scale 1, which follows the prompt less, {_duration(self.seconds / 2)}"
        for way in self.ways:
            yield f"to fit    {way.flags}: {words(way.peak_bytes)}"
        for obstacle in self.obstacles:
            yield f"obstacle  {obstacle}"


def plan_run(
    config: GenerateConfig,
    *,
    out: Path | None,
    name: str = "output",
    image: str | None = None,
    manifest: Path | None = None,
    where: str | None = None,
    clip_ids: Sequence[str] = (),
) -> Planned:
    """What a run would take. Nothing is fetched and no network is loaded; of a single picture's path NAME.plan.svg is
    drawn into `out`, where that is given."""
    chosen: dict[str, Any] = {"image": image, "manifest": manifest, "where": where, "clip_ids": clip_ids}
    asked_for = requests(config.prompt or "", config.path, config.settings().frames, estimate=False, **chosen)
    asked = ask(asked_for[0], lens_needed=False) if image is not None else None
    if asked is not None and out is not None:
        out.mkdir(parents=True, exist_ok=True)
        drawing = path_plan.draw(asked.path, lens=asked.lens, title=asked_for[0].name)
        write_atomic(out / f"{check_name(name)}.plan.svg", drawing)
    return _planned(config, asked_for, asked, out)


def _planned(config: GenerateConfig, asked_for: Sequence[Request], asked: Asked | None, out: Path | None) -> Planned:
    settings, model = config.settings(), MODELS[config.model]()
    found = machine(config.device, config.dtype)
    frames = asked.path.num_frames if asked is not None else settings.frames
    kind = found.torch_dtype
    p = model.plan(settings, path_frames=frames, dtype=kind)
    ways, obstacles = [], []
    if p.peak_bytes > found.memory_bytes:
        ways = ways_to_fit(settings, found.memory_bytes, path_frames=frames, dtype=kind, plan=model.plan)
        obstacles.append(found.lacks(p) + ("" if ways else ": no number of frames fits in it"))
        cpu = machine("cpu", "bf16")
        if found.device != "cpu" and p.peak_bytes <= cpu.memory_bytes:
            obstacles.append(f"--device cpu --dtype bf16 has {hub.in_words(cpu.memory_bytes)}; it takes far longer")
    disk = len(asked_for) * clip_bytes(p, settings)
    free = hub.free_bytes(out or Path.cwd())
    if disk > free:
        obstacles.append(f"{hub.in_words(disk)} of results have no room: {hub.in_words(free)} are free in {out or '.'}")
    try:
        model.networks()
    except MissingPart as error:
        obstacles.append(str(error))
    rate = matmul_flops_per_s(found.device, kind)
    return Planned(
        clips=len(asked_for),
        asked=asked,
        settings=settings,
        machine=found,
        plan=p,
        disk_bytes=disk,
        free_bytes=free,
        flops_per_s=rate,
        seconds=len(asked_for) * p.seconds(rate),
        ways=tuple(ways),
        obstacles=tuple(obstacles),
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 4320 else f"{minutes // 1440} days"
