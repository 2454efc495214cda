"""Training of splats on a GPU: time, PSNR and SSIM of views held out, splats and memory, by strategy and first points.

    python benchmarks/fit.py                             # the room of `longtake.render.room`, pictures drawn by code
    python benchmarks/fit.py garden bicycle --max-side 1297  # folders with cameras, such as those of Mip-NeRF 360
    python benchmarks/fit.py --steps 7000

Needs an NVIDIA GPU with gsplat, and says so where there is none. Seconds are of training with its measures at
checkpoints, after the pictures were read and gsplat compiled; peak MiB is what PyTorch held on the device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, machine, number, print_table, write_result

from longtake.errors import MissingPart
from longtake.pipelines.fit import SceneConfig, gsplat_engine, read_source
from longtake.render.fit import FitConfig, fit
from longtake.render.room import Room, camera_path, render_room, room_depth
from longtake.render.views import Points, Views, depth_points, random_points

DEPTH_EVERY = 10  # views of the room


def room_views(count: int, width: int, height: int) -> tuple[Views, list[tuple[int, Any]]]:
    """A walk along an arc past the furniture and a circle that looks outwards; depth of some of its views."""
    room = Room(0)
    parts = [camera_path(kind, count // 2, width=width, height=height, shake=0.0) for kind in ("walk", "loop")]
    poses, intrinsics = (np.concatenate(part) for part in zip(*parts, strict=True))
    cameras = list(zip(poses, intrinsics, strict=True))
    views = Views(
        names=tuple(f"{i:04d}" for i in range(len(poses))),
        pictures=tuple(render_room(room, pose, k, width, height) for pose, k in cameras),
        world_from_cam=poses,
        intrinsics=intrinsics,
    )
    some = range(1, len(poses), DEPTH_EVERY)
    return views, [(i, room_depth(room, *cameras[i], width, height)) for i in some]


def scenes(folders: list[str], config: SceneConfig) -> Iterator[tuple[str, Views, Points]]:
    """Name, views and first points of what is trained on."""
    for folder in folders:
        views, points, _ = read_source(Path(folder), None, config)
        yield Path(folder).resolve().name, views, points
    if not folders:
        views, maps = room_views(200, 1280, 704)
        yield "room", views, depth_points(views, maps, count=config.first_points)
        yield "room", views, random_points(views, count=config.first_points)


def trained(views: Views, points: Points, config: FitConfig, device: str) -> dict[str, Any]:
    """What one training took and gave."""
    rasterize, densify = gsplat_engine(config, device)
    torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    fitted = fit(views, points, config, rasterize=rasterize, densify=densify, device=device)
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20,
        "gaussians": len(fitted.gaussians),
        "psnr_db": fitted.history[-1]["psnr"],
        "ssim": fitted.history[-1]["ssim"],
        "history": list(fitted.history),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="pictures with a COLMAP model or a transforms.json; manifests")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--max-side", type=int, default=1600)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS / "fit.json")
    options = parser.parse_args()
    config = SceneConfig(train=FitConfig(steps=options.steps), max_side=options.max_side)
    started = machine()
    try:
        gsplat_engine(config.train, options.device)
    except MissingPart as error:
        raise SystemExit(f"not measured: {error}") from error
    torch.cuda.init()
    started["gpu"] = torch.cuda.get_device_name(options.device)
    started["cuda"], started["gsplat"] = torch.version.cuda, metadata.version("gsplat")
    rows: list[dict[str, Any]] = []
    for name, views, points in scenes(options.folders, config):
        if not rows:  # gsplat compiles itself on first use
            fit_config = FitConfig(steps=10, hold_out_every=0)
            trained(views, points, fit_config, options.device)
        for strategy in ("default", "mcmc"):
            found = trained(views, points, replace(config.train, strategy=strategy), options.device)
            about = {"scene": name, "views": len(views), "first_points": len(points), "from": points.source}
            size = {"width": views.pictures[0].shape[1], "height": views.pictures[0].shape[0]}
            rows.append({**about, **size, "strategy": strategy, "steps": options.steps, **found})
            write_result(options.out, rows, started)
    print_table(
        ["scene", "from", "strategy", "splats", "seconds", "PSNR dB", "SSIM", "peak MiB"],
        [
            [
                row["scene"],
                row["from"],
                row["strategy"],
                str(row["gaussians"]),
                number(row["seconds"], 1),
                number(row["psnr_db"]),
                number(row["ssim"], 4),
                number(row["peak_mib"], 0),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
