"""The command line. Every command imports what it needs when it runs, so that `longtake --help` answers at once.

Exit codes: 0 all well; 1 some clips failed (each has its row), or a check found problems; 2 wrong usage; 3 the
environment lacks something, and what to do is said; 130 stopped by Ctrl-C, the same command goes on.
"""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from ..errors import BadMedia, BadWeights, LongtakeError
from . import manifest_commands
from .config import MissingPart, RunStopped, UsageError, resolve
from .display import printable
from .lift import lift, preview

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

Json = Annotated[bool, Parameter(help="Print JSON.")]


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
        _complain("stopped. What is on record stays; the same command goes on from there")
        sys.exit(130)
    except MissingPart as error:
        _complain(str(error))
        sys.exit(3)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "longtake":
            raise
        _complain(f"the Python package {error.name} is not installed: pip install {error.name} (see `longtake doctor`)")
        sys.exit(3)
    except OSError as error:  # a disk that is full or may not be written, a file that went away
        _complain(f"{error}. What is on record stays; the same command goes on from there")
        sys.exit(3)
    except LongtakeError as error:
        _complain(str(error))
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
        _print_json(run.counts())
    else:
        _print_run(run)
    return _ending(run)


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
        _print_json(run.counts())
    else:
        _print_yield(run)
        _print_run(run)
    return _ending(run, "candidates", "scenes")


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
            _print_json(planned.facts())
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
        report=report,
        quiet=quiet,
        **chosen,
    )
    if json:
        _print_json(run.counts())
    else:
        _print_run(run)
        if image is not None and run.ok:
            print(f"video:    {run.out / name}.mp4")
    return _ending(run)


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
        _print_json(facts)
    else:
        _print_facts(facts)


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
        _print_json(facts)
        return
    del facts["pts_ns"], facts["image_paths"]
    _print_facts(facts | {"duration_s": round(float(info.pts_ns[-1]) / 1e9, 3)})


# ---- the manifest ------------------------------------------------------------------------------------------------

Where = Annotated[str | None, Parameter(help="Condition on rows, such as \"status == 'ok' and num_frames >= 100\".")]
SHOWN = "clip_id source_uri status num_frames motion_class fov_x_median_deg tracked_ratio filter_reasons".split()


@manifest.command
def show(folder: str, clip_id: str | None = None, /, *, json: Json = False) -> None:
    """List the clips of a manifest, or all that is known of one of them.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    clip_id
        One clip; the beginning of its id is enough.
    """
    from ..datasets.manifest import open_manifest

    found = open_manifest(folder)
    if clip_id is None:
        _print_rows(found.rows(SHOWN), json)
        return
    matches = found.matching(clip_id)
    if len(matches) != 1:
        raise UsageError(f"{len(matches)} clips of {folder} have an id that begins with {clip_id}")
    row = found.row(matches[0])
    if json:
        _print_json(row)
    else:
        _print_facts({name: _short(value) for name, value in row.items() if value is not None})


@manifest.command
def validate(folder: str, /, *, hashes: bool = False, json: Json = False) -> int:
    """Check every row and every file that the manifest names; exit code 1 where something is wrong.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    hashes
        Read every film that a row names, too, and compare its size and SHA-256 with the row.
    """
    from ..datasets.manifest import open_manifest

    found = open_manifest(folder)
    problems = found.validate(hashes=hashes)
    if json:
        _print_json({"clips": len(found), "problems": problems})
    else:
        print("\n".join(problems) if problems else f"{len(found)} clips, nothing wrong")
    return 1 if problems else 0


@manifest.command
def query(folder: str, /, where: Where = None, *, columns: str | None = None, json: Json = False) -> None:
    """Print the rows that meet a condition.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    columns
        Names, separated by commas; those of `show` without it.
    """
    from ..datasets.manifest import open_manifest

    names = columns.replace(" ", "").split(",") if columns else SHOWN
    _print_rows(open_manifest(folder).rows(names, _condition(where)), json)


manifest.command(manifest_commands.export)
manifest.command(manifest_commands.import_collection, name="import")
manifest.command(manifest_commands.filter)
manifest.command(manifest_commands.stats)
manifest.command(manifest_commands.card)
manifest.command(manifest_commands.merge)
manifest.command(manifest_commands.compact)
manifest.command(manifest_commands.migrate)
manifest.command(manifest_commands.gc)


@stage.command
def replay(
    folder: Path,
    name: Annotated[str, Parameter(name="STAGE")] = "",
    /,
    *,
    clip: str = "",
    key: str | None = None,
    to: Path | None = None,
    json: Json = False,
) -> int:
    """Run one stage again on the inputs that a run saved, and compare; exit code 1 where it fails.

    Nothing of the run is changed, and nothing of this is used by later runs.

    Parameters
    ----------
    folder
        The folder that was named with --out.
    name
        The stage, such as track.
    clip
        Part of the clip's name, as the run showed it. Not needed where the stage has one result.
    key
        The result's key, or its beginning, in place of stage and clip.
    to
        Folder for the new result; FOLDER/replay without it.
    """
    from . import replay as again

    store = again.Artifacts(folder.absolute() / "artifacts")
    if key is None and not name:
        raise UsageError("say which stage, or --key")
    found = again.find_key(store, key) if key is not None else again.find_call(store, name, clip)
    facts = again.replay(store, found, (to or folder / "replay").absolute()).facts()
    if json:
        _print_json(facts)
    else:
        _print_facts({name: value for name, value in facts.items() if name != "trace"})
        if facts["trace"]:
            print("\n".join(map(printable, facts["trace"].splitlines())))
    return 1 if facts["now"] == "failed" else 0


# ---- looking at results ------------------------------------------------------------------------------------------


@app.command
def report(run: Path, /, *, out: Path | None = None, clip: tuple[str, ...] = ()) -> None:
    """Write one HTML page that shows a run and its clips; it needs nothing else to be looked at.

    Parameters
    ----------
    run
        Folder that was named with --out when annotating.
    out
        The page; report.html in that folder without it.
    clip
        Clips to show in full; the first 50 without it.
    """
    from ..datasets.report import write_report

    print(write_report(run, out, clip_ids=list(clip) or None))


@app.command
def view(folder: Path, clip_id: str | None = None, /, *, out: Path | None = None) -> None:
    """Write a clip as a Rerun recording (.rrd): its camera, pictures and depth; for a rendered one the scene too.

    Parameters
    ----------
    folder
        Folder of the manifest.
    clip_id
        The clip; the manifest's only one without it.
    out
        The recording; CLIP_ID.rrd in that folder without it.
    """
    from .view import view as write_view

    path, notes = write_view(folder, out, clip_id=clip_id)
    for words in notes:
        _complain(words)
    print(path)


@app.command
def score(prediction: Path, truth: Path, /, *, json: Json = False) -> None:
    """Compare an estimated camera track with the truth: two .npz files with c2w, K and optionally pose_valid.

    Parameters
    ----------
    prediction
        As `longtake manifest export --to npz` writes it.
    truth
        The same for the true camera.
    """
    from ..datasets.score import score_files

    figures = score_files(prediction, truth)
    if json:
        _print_json(figures)
    else:
        _print_facts({name: None if value is None else f"{value:.6g}" for name, value in figures.items()})


@app.command
def evaluate(
    *inputs: Annotated[str, Parameter(name="INPUT", required=True)],
    poses: str | None = None,
    intrinsics: str | None = None,
    out: Path | None = None,
    jobs: int = 1,
    json: Json = False,
) -> int:
    """Say whether generated videos follow the camera that they were asked for, beside a camera that never moves.

    They are tracked as any footage is. Clips that cannot be tracked count as standing still. Exit code 1 where a clip
    could not be scored at all.

    Parameters
    ----------
    inputs
        Manifests with generated or rendered clips; with --poses, videos.
    poses
        The poses that each video was asked for: .npy, .npz or text, camera to world; {folder} and {stem} in the name
        stand for the video's.
    intrinsics
        The videos' camera where it is known, in pixels: f, or fx,fy,cx,cy, or a file that holds them.
    out
        JSON file for the figures.
    jobs
        Clips worked on at the same time.
    """
    from . import evaluate as pipeline
    from .annotate import read_intrinsics

    numbers = None if intrinsics is None else read_intrinsics(intrinsics)
    found = pipeline.evaluate(*inputs, poses=poses, intrinsics=numbers, jobs=jobs)
    if out is not None:
        pipeline.write(found, out)
    if json:
        _print_json(found.tree())
    else:
        for line in pipeline.table(found.rows()):
            print(printable(line))
        print(f"could not be tracked, and count as standing still: {found.untracked} of {len(found.clips)}")
        for name, why in found.failed:
            print(printable(f"not scored: {name}: {why}"))
    return 1 if found.failed else 0


@app.command
def fov(
    image: str,
    /,
    *,
    intrinsics: str | None = None,
    row: Path | None = None,
    clip: str | None = None,
    frame: int = 0,
    json: Json = False,
) -> int:
    """Say which camera took a picture, by every source at hand, and whether it can be generated from.

    Both fields of view must lie between 25 and 120 degrees; exit code 1 where they do not.

    Parameters
    ----------
    image
        A picture; of a video or a folder the first frame.
    intrinsics
        The known camera in pixels: f, or fx,fy,cx,cy, or a file that holds them.
    row
        Manifest that has the picture as a frame.
    clip
        The clip; the beginning of its id is enough, and the manifest's only one needs none.
    frame
        The frame of the clip; its first without it.
    """
    from . import fov as pipeline
    from .annotate import read_intrinsics

    numbers = None if intrinsics is None else read_intrinsics(intrinsics)
    answer = pipeline.examine(image, numbers=numbers, manifest=row, clip=clip, frame=frame)
    rows, used = answer.rows(), answer.readings[0]
    if json:
        counts = {"used": used.source, "intrinsics": used.intrinsics, "width": used.width, "height": used.height}
        _print_json(counts | {"problem": answer.problem, "readings": rows, "left_out": answer.left_out})
    else:
        _print_rows(rows, False)
        print(f"{used.source} counts; focal_pct: how much longer the focal length is than by {used.source}")
        for source, why in answer.left_out.items():
            print(printable(f"left out: {source}: {why}"))
    if answer.problem:
        _complain(answer.problem)
    return 1 if answer.problem else 0


@app.command
def doctor(*, json: Json = False) -> int:
    """Check whether this machine has all that longtake needs; exit code 3 where something is missing."""
    from dataclasses import asdict

    from .doctor import examine

    findings = list(examine())
    if json:
        _print_json([asdict(finding) for finding in findings])
    else:
        signs = {"ok": "ok      ", "missing": "MISSING ", "optional": "optional"}
        for finding in findings:
            print(f"{signs[finding.state]}  {finding.name}: {finding.words}")
    return 3 if any(finding.state == "missing" for finding in findings) else 0


# ---- the networks' weights ---------------------------------------------------------------------------------------

Names = Annotated[str, Parameter(name="NAME", required=True)]


@weights.command(name="list")
def list_weights(*, json: Json = False) -> None:
    """List the networks, what their weights may be used for, and which are here."""
    from .weights import list_networks

    rows = list_networks()
    if json:
        _print_json(rows)
        return
    _print_rows(
        (
            {
                "network": row["network"],
                "state": row["state"],
                "size": row["size"],
                "licence": row["licence"],
                "accepted": row["licence_state"],
                "for": row["use"],
            }
            for row in rows
        ),
        False,
    )


@weights.command(name="plan")
def plan_weights(*names: Names, json: Json = False) -> int:
    """Say what would be downloaded; exit code 3 where something stands in the way. Needs no network.

    Parameters
    ----------
    names
        Networks of `longtake weights list`, or the groups annotate, generate, refine.
    """
    from ..model.hub import in_words
    from .weights import plan

    rows, obstacles = plan(names)
    total = sum(row["to_download"] for row in rows)
    if json:
        _print_json({"files": rows, "bytes_to_download": total, "obstacles": obstacles})
    else:
        for row in rows:
            print(printable(f"{row['network']}  {row['file']}  {row['location'] or row['size'] + ' to download'}"))
        print(f"{'' if all(row['exact'] for row in rows) else 'about '}{in_words(total)} to download")
        for obstacle in obstacles:
            _complain(obstacle)
    return 3 if obstacles else 0


@weights.command(name="fetch")
def fetch_weights(
    *names: Names,
    folder: Annotated[Path | None, Parameter(name="--from")] = None,
    revision: str | None = None,
    accept_licence: bool = False,
    for_another_machine: bool = False,
    json: Json = False,
    quiet: bool = False,
) -> int:
    """Download networks' weights into the hub's cache and check them. The same command again goes on where it stopped.

    Parameters
    ----------
    names
        Networks of `longtake weights list`, or the groups annotate, generate, refine.
    folder
        Take the files of this folder instead, where they stay.
    revision
        Another commit, branch or tag than the pinned commit; for one network.
    accept_licence
        You accept the licences of these networks. Once is enough.
    for_another_machine
        Do not ask whether this one has the memory.
    quiet
        Show no progress.
    """
    from .weights import exit_code, fetch

    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    rows = fetch(
        names,
        folder=folder,
        revision=revision,
        accept_licence=accept_licence,
        for_another_machine=for_another_machine,
    )
    _print_weights(rows, json)
    return exit_code(rows)


@weights.command(name="verify")
def verify_weights(*names: Annotated[str, Parameter(name="NAME")], json: Json = False) -> int:
    """Read fetched weights again and compare sizes and hashes; exit code 1 where one is wrong.

    Parameters
    ----------
    names
        Networks or groups; all that were fetched without it.
    """
    from .weights import exit_code, verify

    rows = verify(names)
    _print_weights(rows, json)
    return exit_code(rows)


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


# ---- printing ----------------------------------------------------------------------------------------------------


def _complain(words: str) -> None:
    print(f"longtake: {printable(words)}", file=sys.stderr)


def _condition(where: str | None) -> Any:
    from ..datasets.where import parse_where

    return None if where is None else parse_where(where)


def _print_run(run: Any) -> None:
    print(f"{run.clips} clips = {run.ok} ok + {run.filtered} filtered + {run.failed} failed", end="")
    print(f" + {run.left} left" if run.left else "", end="")
    print(f", from {run.inputs} inputs" + (f" (duplicates: {run.duplicates})" if run.duplicates else ""), end="")
    print(f", in {run.seconds:.1f} s")
    for reason, count in run.reasons.items():
        print(f"  {count} x {reason}")
    print(f"manifest: {run.out}")
    if run.report:
        print(f"report:   {run.report}")


def _ending(run: Any, clips: str = "clips", inputs: str = "inputs") -> int:
    """The exit code of a run; what is left of one that was interrupted is told."""
    if run.state == "interrupted":
        left = f"{run.left} {clips} and {run.inputs_left} {inputs} left"
        _complain(f"stopped with {left}. The same command goes on from here")
        return 130
    return 1 if run.failed else 0


def _print_yield(run: Any) -> None:
    """What became of the candidates, by family."""
    reasons = {reason: None for row in run.families.values() for reason in row}
    _print_rows(({"family": name} | {r: row.get(r, 0) for r in reasons} for name, row in run.families.items()), False)
    print(f"{run.candidates} candidates, {sum(run.rejected.values())} rejected")


def _print_json(tree: object) -> None:
    print(json_format.dumps(tree, indent=1, default=_plain, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """NumPy arrays and numbers, times and paths as JSON has them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _print_facts(facts: Mapping[str, object]) -> None:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        words = ", ".join(f"{n} {count}" for n, count in value.items()) if isinstance(value, dict) else value
        print(f"{name:<{width}}  {'-' if words is None else printable(str(words))}")


def _print_rows(rows: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """A table with a head, columns apart by two spaces; JSON lines where asked for."""
    if as_json:
        for row in rows:
            print(json_format.dumps(row, default=_plain, ensure_ascii=False))
        return
    lines: list[Sequence[str]] = []
    for row in rows:
        lines = lines or [list(row)]
        lines.append([_short(value) for value in row.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_weights(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        if row["problem"]:
            _complain(row["problem"])
            continue
        print(f"{row['network']}: ready, {row['size']}, commit {row['revision'] or 'unknown'}")
        print(f"  {row['licence']}, {row['licence_url']}")
        for location in row["files"].values():
            print(f"  {printable(location)}")


def _short(value: Any) -> str:
    """A value of a row in a few characters; long lists by their length."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "__len__") and not isinstance(value, str):
        return ",".join(map(str, value)) if len(value) <= 4 else f"[{len(value)} values]"
    return printable(str(value))
