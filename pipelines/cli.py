"""The command line. Every command imports what it needs when it runs, so that `longtake --help` answers at once.

Exit codes: 0 all well; 1 some clips failed (each has its row), or a check found problems; 2 wrong usage; 3 the
environment lacks something, and what to do is said; 130 stopped by Ctrl-C, the same command goes on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from ..errors import BadMedia, BadWeights, LongtakeError
from . import manifest_commands, result_commands, weights_commands
from .config import MissingPart, RunStopped, UsageError, resolve
from .display import printable
from .lift import lift, preview
from .printing import Json, complain, ending, print_facts, print_json, print_run, print_yield

app = App(
    name="longtake",
    help="Turn video into posed clips: camera poses and intrinsics for every frame, quality, reasons for refusals.",
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
)
manifest = App(name="manifest", help="Look into a manifest, check it, judge it, exchange it with other tools.")
app.command(manifest)
stage = App(name="stage", help="Run one stage of a pipeline by itself.")
app.command(stage)
weights = App(name="weights", help="The networks' weights: what there is, what is needed, get it, check it.")
app.command(weights)
app.command(lift)
app.command(preview)
app.command(result_commands.report)
app.command(result_commands.view)
app.command(result_commands.score)
app.command(result_commands.evaluate)
app.command(result_commands.fov)
app.command(result_commands.doctor)
stage.command(result_commands.replay)
manifest.command(manifest_commands.show)
manifest.command(manifest_commands.validate)
manifest.command(manifest_commands.query)
manifest.command(manifest_commands.export)
manifest.command(manifest_commands.import_collection, name="import")
manifest.command(manifest_commands.filter)
manifest.command(manifest_commands.stats)
manifest.command(manifest_commands.card)
manifest.command(manifest_commands.merge)
manifest.command(manifest_commands.compact)
manifest.command(manifest_commands.migrate)
manifest.command(manifest_commands.gc)
weights.command(weights_commands.list_weights, name="list")
weights.command(weights_commands.plan_weights, name="plan")
weights.command(weights_commands.fetch_weights, name="fetch")
weights.command(weights_commands.verify_weights, name="verify")


def main() -> None:
    """Run the command line and leave with its exit code; a person's mistake is told in words, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be Unicode
    try:
        code = app()
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except BrokenPipeError:  # the reader has seen enough: `longtake manifest show M | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        complain("stopped. What is on record stays; the same command goes on from there")
        sys.exit(130)
    except MissingPart as error:
        complain(str(error))
        sys.exit(3)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "longtake":
            raise
        complain(f"the Python package {error.name} is not installed: pip install {error.name} (see `longtake doctor`)")
        sys.exit(3)
    except OSError as error:  # a disk that is full or may not be written, a file that went away
        complain(f"{error}. What is on record stays; the same command goes on from there")
        sys.exit(3)
    except LongtakeError as error:
        complain(str(error))
        sys.exit(1 if isinstance(error, (BadMedia, BadWeights, RunStopped)) else 2)


# ---- from video to a manifest ------------------------------------------------------------------------------------


@app.command
def annotate(
    *inputs: Annotated[str, Parameter(name="INPUT", required=True)],
    out: Path,
    stills: bool = False,
    executor: Annotated[Literal["local", "ray"], Parameter(show_default=True)] = "local",
    address: str | None = None,
    jobs: int | None = None,
    intrinsics: str | None = None,
    intrinsics_mode: Literal["auto", "shared", "per_frame"] | None = None,
    engine: Literal["classical", "pi3x"] | None = None,
    metric: Literal["none", "moge2"] | None = None,
    device: str | None = None,
    vram: float | None = None,
    depth: str | None = None,
    depth_scale: Literal["metric", "relative"] | None = None,
    poses: str | None = None,
    poses_scale: Literal["metric", "relative"] | None = None,
    profile: Literal["none", "robust", "sana_wm"] | None = None,
    source: str | None = None,
    config: Path | None = None,
    set: tuple[str, ...] = (),
    gpu_share: float = 1.0,
    retry_failed: bool = False,
    max_failed_ratio: float | None = None,
    report: Annotated[bool, Parameter(negative="--no-report")] = True,
    json: Json = False,
    quiet: bool = False,
) -> int:
    """Annotate videos: a manifest with the camera's pose and intrinsics for every frame of every clip.

    The same command again goes on where it was stopped, and repeats nothing that is done.

    Parameters
    ----------
    inputs
        Video files, folders of videos or of images, or glob patterns in quotes.
    out
        Folder of the manifest; made where there is none.
    stills
        The frames of each input are separate photographs, not one continuous take.
    executor
        Where the work is done: worker processes of this machine, or Ray.
    address
        The Ray cluster to join, such as auto or host:6379; without it one is started on this machine.
    jobs
        Clips worked on at the same time.
    intrinsics
        The known camera in pixels: f, or fx,fy,cx,cy, or a file that holds them.
    intrinsics_mode
        One set of intrinsics for a shot, one for each frame, or what the data ask for.
    engine
        Where cameras come from: the pictures alone, or starting from what the network Pi3X sees.
    metric
        The network that says how many metres lengths are: none, or MoGe-2.
    device
        Where networks run: auto, cpu, cuda or cuda:1.
    vram
        Memory in GiB that networks may take; windows of frames become shorter until they fit.
    depth
        Known depth: a folder of 16-bit PNGs in millimetres named by frame (000000.png), .npy [frames, height, width]
        or a depth.zip of longtake. {folder} and {stem} stand for an input's.
    depth_scale
        Whether that depth is in metres or in a unit of its own.
    poses
        Known camera-to-world poses in OpenCV axes: .npy, .npz, TUM or KITTI text. {folder} and {stem} as above.
    poses_scale
        Whether these poses are in metres or in a unit of their own.
    profile
        Filter profile: clips that fail it keep their row, with the reasons.
    source
        For the profile sana_wm: the collection whose thresholds apply.
    config
        TOML file with any part of the configuration.
    set
        One setting, such as annotate.track.max_side=640; may be given again.
    gpu_share
        Share of a GPU that the networks of one clip take on Ray; at 0.5 two share one.
    retry_failed
        Work clips out again that failed before.
    max_failed_ratio
        Stop once more than this share of the clips has failed, such as 0.2; looked at from 20 clips on.
    report
        Draw each clip's pictures and write report.html into the folder.
    json
        Print the counts as JSON.
    quiet
        Show no progress.
    """
    from . import annotate as pipeline

    given: dict[str, object] = {
        "stills": stills or None,
        "intrinsics": None if intrinsics is None else pipeline.read_intrinsics(intrinsics),
        "track.intrinsics_mode": intrinsics_mode,
        "engine": engine,
        "metric": metric,
        "depth.device": device,
        "depth.vram_gib": vram,
        "given_depth": depth,
        "given_depth_scale": depth_scale,
        "given_poses": poses,
        "given_poses_scale": poses_scale,
        "profile": profile,
        "source": source,
    }
    settings = {f"annotate.{name}": value for name, value in given.items() if value is not None}
    resolved = resolve(pipeline.Config, toml=config, sets=set, given=settings)
    run = pipeline.annotate(
        *inputs,
        out=out,
        config=resolved.annotate,
        executor=executor,
        address=address,
        jobs=jobs,
        gpu_share=gpu_share,
        retry_failed=retry_failed,
        max_failed_ratio=max_failed_ratio,
        report=report,
        quiet=quiet,
    )
    if json:
        print_json(run.counts())
    else:
        print_run(run)
    return ending(run)


@app.command
def render(
    *scenes: Annotated[str, Parameter(name="SCENE", required=True)],
    out: Path,
    design: int | None = None,
    families: str | None = None,
    seed: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    size: str | None = None,
    zoom: str | None = None,
    cameras: str | None = None,
    views: Literal["outside", "inside"] | None = None,
    scene_scale: str | None = None,
    depth_every: int | None = None,
    enhance: Literal["none", "holes", "difix"] | None = None,
    rasterizer: Literal["auto", "cpu", "gsplat", "reference"] | None = None,
    profile: Literal["none", "sana_wm"] | None = None,
    source: str | None = None,
    source_dataset: str | None = None,
    license: str | None = None,
    executor: Annotated[Literal["local", "ray"], Parameter(show_default=True)] = "local",
    address: str | None = None,
    jobs: int | None = None,
    config: Path | None = None,
    set: tuple[str, ...] = (),
    retry_failed: bool = False,
    max_failed_ratio: float | None = None,
    report: Annotated[bool, Parameter(negative="--no-report")] = True,
    json: Json = False,
    quiet: bool = False,
) -> int:
    """Film camera paths through Gaussian-splat scenes: minute-long clips with their exact cameras and depth.

    Paths are designed from the scene's training cameras, and checked before they are filmed and after. The same command
    again goes on where it was stopped, and repeats nothing that is done.

    Parameters
    ----------
    scenes
        Splat scenes: PLY, SPZ, SOG, .splat or .safetensors.
    out
        Folder of the manifest; made where there is none.
    design
        Candidate paths a scene, of which those are filmed that pass the checks. 40 without it, as a published recipe
        has it: 10 near the training cameras, 30 of the nine other families.
    families
        Families of paths, separated by commas, taken in turn instead of that mixture: near_training, orbit, spiral,
        dolly, fly_through, random_walk, crane, compound, revisit, in_place.
    seed
        Of all paths; 0 without it.
    frames
        Frames a clip; 961 without it.
    fps
        Frames a second; 16 without it.
    size
        Height x width of the pictures; 704x1280 without it.
    zoom
        Range that each path's ratio of focal lengths is drawn from, such as 0.7,1.5. No zoom without it.
    cameras
        The training cameras: a COLMAP model, transforms.json or cameras.json; looked for beside the scene without it.
        {folder} and {stem} stand for a scene's.
    views
        For scenes without training cameras: look at an object from outside, or at a room from inside.
    scene_scale
        Metres that a unit of the scene is, or metric for 1. Lengths are relative without it.
    depth_every
        Frames from one whose depth is stored to the next; 1 without it, 0 for no depth.
    enhance
        holes: fill holes and cracks a few pixels wide with what is farther away around them. difix: have the network
        DiFix redraw each frame; its weights are fetched by `longtake weights fetch difix`. Nothing without it. How much
        surfaces flicker before and after is in each row.
    rasterizer
        What draws the frames; without it gsplat on a CUDA device where there is one, else the CPU.
    profile
        Filter profile: clips that fail it keep their row, with the reasons.
    source
        For the profile sana_wm: the collection whose thresholds apply, such as dl3dv_gs.
    source_dataset
        Name of the collection that the scenes come from, for every row.
    license
        The scenes' licence, for every row.
    executor
        Where the work is done: worker processes of this machine, or Ray.
    address
        The Ray cluster to join, such as auto or host:6379; without it one is started on this machine.
    jobs
        Clips worked on at the same time.
    config
        TOML file with any part of the configuration.
    set
        One setting, such as render.limits.max_blank=0.2; may be given again.
    retry_failed
        Work clips out again that failed or were rejected before.
    max_failed_ratio
        Stop once more than this share of the clips has failed, such as 0.2; looked at from 20 clips on.
    report
        Write report.html into the folder.
    json
        Print the counts as JSON.
    quiet
        Show no progress.
    """
    from . import render as pipeline

    height, width = _size(size) if size is not None else (None, None)
    given: dict[str, object] = {
        "design": design,
        "families": None if families is None else tuple(families.replace(" ", "").split(",")),
        "seed": seed,
        "path.num_frames": frames,
        "path.fps": fps,
        "path.height": height,
        "path.width": width,
        "path.zoom": None if zoom is None else _range(zoom),
        "scene.cameras": cameras,
        "scene.views": views,
        "scene_scale": None if scene_scale is None else _scale(scene_scale),
        "film.depth_every": depth_every,
        "film.enhance": enhance,
        "film.backend": rasterizer,
        "profile": profile,
        "source": source,
        "source_dataset": source_dataset,
        "license": license,
    }
    settings = {f"render.{name}": value for name, value in given.items() if value is not None}
    run = pipeline.render(
        *scenes,
        out=out,
        config=resolve(pipeline.Config, toml=config, sets=set, given=settings).render,
        executor=executor,
        address=address,
        jobs=jobs,
        retry_failed=retry_failed,
        max_failed_ratio=max_failed_ratio,
        report=report,
        quiet=quiet,
    )
    if json:
        print_json(run.counts())
    else:
        print_yield(run)
        print_run(run)
    return ending(run, "candidates", "scenes")


@app.command
def generate(
    *,
    image: str | None = None,
    prompt: str | None = None,
    output_dir: Annotated[Path | None, Parameter(alias="--out")] = None,
    name: Annotated[str, Parameter(show_default=True)] = "output",
    action: str | None = None,
    action_map: Literal["current", "first"] | None = None,
    translation_speed: float | None = None,
    rotation_speed_deg: float | None = None,
    camera: str | None = None,
    camera_clip: str | None = None,
    camera_convention: Literal["c2w", "w2c"] | None = None,
    metres_per_unit: float | None = None,
    intrinsics: str | None = None,
    speed: float | None = None,
    reverse: bool = False,
    loop: bool = False,
    manifest: Path | None = None,
    where: str | None = None,
    clip_id: tuple[str, ...] = (),
    plan: bool = False,
    model: str | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    steps: Annotated[int | None, Parameter(alias="--step")] = None,
    cfg_scale: float | None = None,
    flow_shift: float | None = None,
    sampling_algo: Annotated[str, Parameter(show_default=True)] = "auto",
    negative_prompt: str = "",
    cut_prompt: bool = False,
    seed: int | None = None,
    device: str | None = None,
    dtype: Literal["auto", "bf16", "fp32"] | None = None,
    offload_vae: bool = False,
    no_refiner: bool = False,
    no_action_overlay: bool = False,
    keep_latents: Annotated[bool, Parameter(alias="--save-stage1")] = False,
    executor: Annotated[Literal["local", "ray"], Parameter(show_default=True)] = "local",
    address: str | None = None,
    jobs: int | None = None,
    config: Path | None = None,
    set: tuple[str, ...] = (),
    retry_failed: bool = False,
    max_failed_ratio: float | None = None,
    report: Annotated[bool, Parameter(negative="--no-report")] = True,
    json: Json = False,
    quiet: bool = False,
) -> int:
    """Generate video from a first picture along a camera path, with SANA-WM; options may also be spelled with _.

    What a video takes of memory, disk and time, and which options make it fit, is told by --plan before anything is
    fetched or loaded. The same command again goes on where it was stopped: after the denoising, only decoding is left.

    Parameters
    ----------
    image
        The first picture, or a video whose first frame is taken.
    prompt
        What is seen, not how the camera moves: a text, or a text file (UTF-8). Without it a manifest's captions.
    output_dir
        Folder for the results and their manifest; made where there is none.
    name
        Name of the video in that folder: NAME.mp4, NAME.plan.svg.
    action
        The path by keys and frames, such as w-40,wd-20,none-8: w s forward and back, i k look up and down, and with the
        current map a d turn, j l step aside; with the first release's map a d step aside and j l turn.
    action_map
        What keys do: current (with inertia), which is taken without it, or first, as in the first release.
    translation_speed
        Metres a frame while a key is held; 0.025 without it (first: 0.05).
    rotation_speed_deg
        Degrees a frame while a key is held; 0.6 without it (first: 1.2).
    camera
        The path: .npy of camera-to-world poses [F, 4, 4] in metres, OpenCV axes, 16 a second; or a manifest's folder,
        whose clip may be annotated or rendered.
    camera_clip
        The clip of that manifest; the beginning of its id is enough, and its only one needs none.
    camera_convention
        What the .npy holds: c2w, which is taken without it, or w2c. No file tells: look at what the plan says.
    metres_per_unit
        For paths of clips whose scale is relative.
    intrinsics
        Of the whole picture in its pixels: f, or fx,fy,cx,cy, or .npy of (4,), (3, 3), (F, 4) or (F, 3, 3). Without it
        a row's own; else Pi3X, MoGe-2 or EXIF are asked, as by `longtake fov`.
    speed
        Follow the path so many times as fast.
    reverse
        Follow it from its end to its beginning.
    loop
        Follow it there, and the same way back.
    manifest
        Begin with the first frames of this manifest's clips, along their own paths, and with their captions.
    where
        Which of them; those with status == 'ok' without it.
    clip_id
        Which of them; the beginning of an id is enough. May be given again.
    plan
        Only tell what it would take, and what to change so that it fits. Writes NAME.plan.svg where --output-dir is.
    model
        The generator: sana-wm without it.
    num_frames
        At most; 8 k + 1 of them are made. 161 without it.
    fps
        Frames a second of the film; 16 without it, as the network counts them.
    steps
        Of the sampler; 60 without it.
    cfg_scale
        How much the prompt is followed; 5 without it. 1 takes half the time.
    flow_shift
        Of the noise schedule; 9.8 without it.
    sampling_algo
        auto, flow_euler_ltx or flow_dpm-solver.
    negative_prompt
        What to lead away from: a text or a text file.
    cut_prompt
        Leave out the end of a prompt that is too long, rather than refuse it.
    seed
        Of the noise; 42 without it.
    device
        auto, cpu, cuda or cuda:1.
    dtype
        Numbers that networks compute with; auto is bf16 on a GPU and fp32 on a CPU.
    offload_vae
        Let go of each network after its turn. Where memory does not hold all of them, that is done anyway.
    no_refiner
        The first stage alone: the only one there is so far. Said here, it is not said in every run.
    no_action_overlay
        Do not draw the keys over NAME.mp4. The manifest's own video never has them.
    keep_latents
        Keep the latent frames, as safetensors, for a second stage.
    executor
        Where the work is done: worker processes of this machine, or Ray.
    address
        The Ray cluster to join, such as auto or host:6379; without it one is started on this machine.
    jobs
        Clips worked on at the same time.
    config
        TOML file with any part of the configuration.
    set
        One setting, such as generate.crf=23; may be given again.
    retry_failed
        Work clips out again that failed before.
    max_failed_ratio
        Stop once more than this share of the clips has failed, such as 0.2; looked at from 20 clips on.
    report
        Write report.html into the folder.
    json
        Print the counts, or the plan, as JSON.
    quiet
        Show no progress.
    """
    from . import generate as pipeline
    from .asked import read_prompt

    given: dict[str, object] = {
        "model": model,
        "prompt": None if prompt is None else read_prompt(prompt),
        "negative": read_prompt(negative_prompt, "--negative-prompt") if negative_prompt else None,
        "cut_prompt": cut_prompt or None,
        "frames": num_frames,
        "fps": fps,
        "steps": steps,
        "guidance": cfg_scale,
        "shift": flow_shift,
        "sampler": pipeline.sampler_of(sampling_algo),
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "offload": offload_vae or None,
        "keep_latents": keep_latents or None,
        "path.action": action,
        "path.action_map": action_map,
        "path.translation_speed": translation_speed,
        "path.rotation_speed_deg": rotation_speed_deg,
        "path.camera": camera,
        "path.camera_clip": camera_clip,
        "path.camera_convention": camera_convention,
        "path.metres_per_unit": metres_per_unit,
        "path.intrinsics": intrinsics,
        "path.speed": speed,
        "path.reverse": reverse or None,
        "path.loop": loop or None,
    }
    settings = {f"generate.{name}": value for name, value in given.items() if value is not None}
    resolved = resolve(pipeline.Config, toml=config, sets=set, given=settings).generate
    chosen: dict[str, Any] = {"image": image, "manifest": manifest, "where": where, "clip_ids": clip_id}
    if plan:
        from .planning import plan_run

        planned = plan_run(resolved, out=output_dir, name=name, **chosen)
        if json:
            print_json(planned.facts())
        else:
            print("\n".join(printable(line) for line in planned.lines()))
        return 3 if planned.obstacles else 0
    if output_dir is None:
        raise UsageError("--output-dir is missing: the folder for the video and its manifest")
    if not (no_refiner or quiet):
        print("the video is that of the first stage: no refiner is run (--no-refiner: do not say so)", file=sys.stderr)
    run = pipeline.generate(
        out=output_dir,
        config=resolved,
        name=name,
        overlay=not no_action_overlay,
        executor=executor,
        address=address,
        jobs=jobs,
        retry_failed=retry_failed,
        max_failed_ratio=max_failed_ratio,
        report=report,
        quiet=quiet,
        **chosen,
    )
    if json:
        print_json(run.counts())
    else:
        print_run(run)
        if image is not None and run.ok:
            print(f"video:    {run.out / name}.mp4")
    return ending(run)


@app.command
def fit(
    source: Path,
    /,
    *,
    out: Path,
    clip: str | None = None,
    steps: int | None = None,
    strategy: Literal["default", "mcmc"] | None = None,
    max_gaussians: int | None = None,
    max_side: int | None = None,
    seed: int | None = None,
    device: Annotated[str, Parameter(show_default=True)] = "cuda",
    config: Path | None = None,
    set: tuple[str, ...] = (),
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Train a scene of Gaussian splats on posed pictures, with gsplat on a GPU. The same command again goes on.

    Every 8th picture is held out, and PSNR and SSIM are those of these pictures.

    Parameters
    ----------
    source
        A manifest's folder; or pictures with a COLMAP model or a transforms.json, whose points are started from.
    out
        The scene: .ply, .spz, .splat or .safetensors. Checkpoints and report.json go into the folder OUT.fit.
    clip
        The clip of the manifest; the beginning of its id is enough, and its only one needs none.
    steps
        Pictures trained on, one a step; 30000 without it.
    strategy
        How splats are added and taken away: default (as 3D Gaussian Splatting does), or mcmc, up to a number.
    max_gaussians
        That number; 1000000 without it.
    max_side
        Pixels of the longer side that pictures are shrunk to; 1600 without it.
    seed
        Of all that is random; 0 without it.
    device
        cuda or cuda:1.
    config
        TOML file with any part of the configuration.
    set
        One setting, such as fit.train.sh_degree=2; may be given again.
    json
        Print what the report says as JSON.
    quiet
        Show no progress.
    """
    from . import fit as pipeline

    given: dict[str, object] = {
        "train.steps": steps,
        "train.strategy": strategy,
        "train.max_gaussians": max_gaussians,
        "train.seed": seed,
        "max_side": max_side,
    }
    settings = {f"fit.{name}": value for name, value in given.items() if value is not None}
    resolved = resolve(pipeline.Config, toml=config, sets=set, given=settings).fit
    progress = pipeline.say_nothing if quiet else pipeline.say
    facts = pipeline.fit_scene(source, out=out, config=resolved, clip=clip, device=device, progress=progress)
    if json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command
def demo(*, out: Path = Path("demo-out"), quiet: bool = False) -> int:
    """Render a clip of a synthetic scene with a zoom, annotate it, score it by the truth, fly through its first frame.

    Parameters
    ----------
    out
        Folder for the clip, its manifest and its report.
    quiet
        Show no progress.
    """
    from .demo import run_demo

    return run_demo(out, quiet=quiet)


@app.command
def probe(file: str, /, *, stills: bool = False, json: Json = False) -> None:
    """Say what is known of a video before its pixels are decoded.

    Parameters
    ----------
    file
        A video file, a folder of images or a pattern in quotes.
    stills
        The images are separate photographs.
    json
        Print JSON, with the time of every frame.
    """
    from dataclasses import fields

    from ..annotate.video import probe

    info = probe(file, stills=stills)
    facts = {f.name: getattr(info, f.name) for f in fields(info)}
    facts |= {"pts_ns": info.pts_ns.tolist(), "num_frames": info.num_frames, "fps": info.fps}
    if json:
        print_json(facts)
        return
    del facts["pts_ns"], facts["image_paths"]
    print_facts(facts | {"duration_s": round(float(info.pts_ns[-1]) / 1e9, 3)})


# ---- reading options ---------------------------------------------------------------------------------------------


def _size(text: str) -> tuple[int, int]:
    """Height and width."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UsageError(f"--size {text}: wanted height x width in pixels, such as 704x1280")
    return int(height), int(width)


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--zoom {text}: wanted two ratios of focal lengths, such as 0.7,1.5") from error
    return low, high


def _scale(text: str) -> float | None:
    """Metres a unit."""
    if text in ("metric", "relative"):
        return 1.0 if text == "metric" else None
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--scene-scale {text}: wanted metres a unit of the scene, or metric or relative") from error
