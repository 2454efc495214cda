"""The commands `longtake lift` and `longtake preview`; `lifting` does what they say."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from .config import UsageError
from .printing import Json, print_facts, print_json

FRAMES = 24  # that a scene is lifted from, unless said otherwise


def lift(
    source: Annotated[str, Parameter(name="SOURCE")],
    /,
    *,
    out: Path,
    clip: str | None = None,
    frame: int | None = None,
    frames: int = FRAMES,
    depth: Path | None = None,
    poses: Path | None = None,
    intrinsics: str | None = None,
    network: Literal["moge2", "pi3x", "pi3x+moge2"] | None = None,
    device: str = "auto",
    sky: Literal["drop", "shell"] = "drop",
    fuse: Literal["cells", "tsdf"] = "cells",
    cell: float | None = None,
    json: Json = False,
    quiet: bool = False,
) -> int:
    """Make a Gaussian-splat scene of pictures whose depth and cameras are known, without training.

    Parameters
    ----------
    source
        A manifest; or a picture, a video, or a folder of pictures.
    out
        The scene: .ply, .spz, .splat or .safetensors.
    clip
        The clip of the manifest; the beginning of its id is enough, and the manifest's only one needs none.
    frame
        Lift this frame of the source alone.
    frames
        Frames to lift, evenly spread over those that have depth; 24 without it.
    depth
        Known depth in metres: a folder of 16-bit PNGs in millimetres named by frame (000000.png), .npy [frames,
        height, width] or a depth.zip of longtake; of the same camera as the pictures.
    poses
        With --depth: camera-to-world poses in metres, OpenCV axes: .npy, .npz, TUM or KITTI text.
    intrinsics
        The known camera in pixels: f, or fx,fy,cx,cy, or a file that holds them.
    network
        Where depth comes from without --depth: moge2 (the default, one frame), pi3x, or pi3x made metric by moge2.
    device
        Where networks run: auto, cpu, cuda or cuda:1.
    sky
        Pixels without depth: left out, or on a far shell.
    fuse
        How several frames become one scene: cells adds what is new to what was seen first; tsdf takes the mean of all
        frames in a distance field, smoother where depth and poses have errors, and needs Open3D (longtake[open3d]).
    cell
        Largest edge of the voxels that frames are fused in, in pixels; 2 without it, 3 with tsdf.
    json
        Print what was made as JSON.
    quiet
        Show no progress.
    """
    from ..render.lift import LiftConfig
    from ..render.scene import WRITERS, write_scene
    from .lifting import lift_source, open_source

    if fuse == "tsdf" and sky == "shell":
        raise UsageError("--fuse tsdf has no sky: leave --sky out, or fuse in cells")
    if out.suffix.lower() not in WRITERS:
        raise UsageError(f"--out {out}: a scene is one of {', '.join(WRITERS)}")
    start = time.perf_counter()
    given = _inputs(clip, depth, poses, intrinsics, network, device, frame, sky)
    with open_source(source, given) as opened:
        _say(opened.remarks)
        config = LiftConfig(cell=cell if cell is not None else {"cells": 2.0, "tsdf": 3.0}[fuse])
        lifted = lift_source(opened, frames, config, None if quiet else _progress, fuse=fuse)
    write_scene(lifted.gaussians, out)
    facts: dict[str, Any] = {
        "source": opened.name,
        "out": str(out),
        "gaussians": len(lifted.gaussians),
        "frames": lifted.frames,
        "without_depth": list(lifted.without_depth),
        "pixels": lifted.pixels,
        "shown_already": lifted.shown_already,
        "unit": "m" if opened.metric else "arbitrary",
        "seconds": round(time.perf_counter() - start, 3),
    }
    (print_json if json else print_facts)(facts)
    return 0


def preview(
    source: Annotated[str, Parameter(name="SOURCE")],
    /,
    *,
    path: str,
    out: Path | None = None,
    seed: int = 0,
    frames: int | None = None,
    every: int = 1,
    size: str | None = None,
    save: Path | None = None,
    clip: str | None = None,
    frame: int | None = None,
    depth: Path | None = None,
    intrinsics: str | None = None,
    network: Literal["moge2", "pi3x", "pi3x+moge2"] | None = None,
    device: str = "auto",
    sky: Literal["drop", "shell"] = "drop",
    json: Json = False,
) -> int:
    """Fly a camera path through the first picture in seconds; what the picture does not show stays magenta.

    The share of such holes is printed, so that paths can be searched before a generator is paid for.

    Parameters
    ----------
    source
        A picture; or a manifest, a video, or a folder of pictures, of which one frame is taken.
    path
        Poses (.npy, .npz) in metres, flown from where the picture was taken; or a family: near_training, orbit,
        spiral, dolly, fly_through, random_walk, crane, compound, revisit, in_place; or actions such as w-40,wd-20.
    out
        The video, .mp4; without it only holes are counted.
    seed
        Of a family's path; 0 without it.
    frames
        Frames of a family's path; 161 without it.
    every
        Draw each so many-th frame of the path.
    size
        Height x width of the pictures, such as 704x1280; the picture's own without it.
    save
        Write the path as .npy [frames, 4, 4], from the picture's camera.
    clip
        The clip of the manifest; the beginning of its id is enough, and the manifest's only one needs none.
    frame
        The frame of the source to fly through; the first that has depth without it.
    depth
        Known depth in metres, as for `longtake lift`.
    intrinsics
        The known camera in pixels: f, or fx,fy,cx,cy, or a file that holds them.
    network
        Where depth comes from without --depth: moge2 (the default), pi3x, or pi3x made metric by moge2.
    device
        Where networks run: auto, cpu, cuda or cuda:1.
    sky
        Pixels without depth: left out, or on a far shell.
    json
        Print JSON: with the share of holes in every frame, and how near the nearest surface comes.
    """
    import numpy as np

    from ..model.sana_wm.actions import FPS
    from .lifting import PATH_FRAMES, facts, open_source
    from .lifting import preview as fly_through

    if out is not None and out.suffix.lower() != ".mp4":
        raise UsageError(f"--out {out}: the video is an .mp4")
    if save is not None and save.suffix.lower() != ".npy":
        raise UsageError(f"--save {save}: the path is an .npy")
    start = time.perf_counter()
    given = _inputs(clip, depth, None, intrinsics, network, device, frame, sky, one=True)
    with open_source(source, given) as opened:
        _say(opened.remarks)
        if not opened.metric and path.lower().endswith((".npy", ".npz")):
            _say([f"{opened.name}: depth has a unit of its own, so metres of {path} are flown as such units"])
        (first,) = opened.read(opened.frames[:1])
        made = fly_through(
            first,
            path,
            out=out,
            seed=seed,
            num_frames=PATH_FRAMES if frames is None else frames,
            every=every,
            size=None if size is None else _size(size),
        )
    if save is not None:
        np.save(save, made.relative)
    told = dict(facts(made, opened, round(time.perf_counter() - start, 3)))
    if json:
        shares = [round(float(share), 5) for share in made.hole_share]
        nearest = [round(float(d), 4) if np.isfinite(d) else None for d in made.nearest]
        print_json(told | {"drawn_frames": list(made.drawn), "hole_share": shares, "nearest": nearest})
        return 0
    print_facts({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in told.items()})
    step = max(1, int(FPS / every))
    print(f"{'second':>8}  {'holes':>7}  {'nearest':>8}")
    for i in range(0, len(made.drawn), step):
        print(f"{made.drawn[i] / FPS:8.1f}  {made.hole_share[i]:7.1%}  {made.nearest[i]:8.3g}")
    if out is not None:
        print(f"preview: {out}")
    return 0


def _inputs(
    clip: str | None,
    depth: Path | None,
    poses: Path | None,
    intrinsics: str | None,
    network: Any,
    device: str,
    frame: int | None,
    sky: Any,
    one: bool = False,
) -> Any:
    from .annotate import read_intrinsics
    from .lifting import Inputs

    return Inputs(
        clip=clip,
        depth=depth,
        poses=poses,
        intrinsics=None if intrinsics is None else read_intrinsics(intrinsics),
        network=network,
        device=device,
        frame=frame,
        sky=sky,
        one=one,
    )


def _size(text: str) -> tuple[int, int]:
    """Width and height from HEIGHTxWIDTH."""
    words = text.lower().split("x")
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 and int(word) % 2 == 0 for word in words):
        raise UsageError(f"--size {text}: give height x width, both even, such as 704x1280")
    return int(words[1]), int(words[0])


def _say(words: Any) -> None:
    from .display import printable

    for line in words:
        print(printable(line), file=sys.stderr)


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\rframe {done} of {total}", end=end, file=sys.stderr, flush=True)
