"""From posed pictures to a scene of Gaussian splats: a clip of a manifest, or a folder with cameras, is trained on.

Checkpoints and the report lie in the folder SCENE.fit beside the scene; the same command again goes on from there.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..annotate.depth_clip import DepthClip, open_depth
from ..annotate.video import pictures, probe
from ..datasets.readers import read_clip
from ..datasets.row_files import local_file
from ..geometry import distort
from ..records import BadMedia
from ..render.cameras import read_cameras
from ..render.fit import Densify, FitConfig, Fitted, Rasterize, fit, split
from ..render.fit_gsplat import check_gpu, gsplat_densify, gsplat_rasterize
from ..render.scene import WRITERS, write_scene
from ..render.views import Points, Views, colmap_points, depth_points, random_points
from .clips import row_of_clip
from .config import MissingPart, UsageError, config_hash, to_tree

DEPTH_FRAMES = 24  # of a clip, that first points are taken from
DEPTH_STEP = 4  # pixels from one that may be a first point to the next
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG")  # of pictures whose cameras' file leaves theirs out
MEASURES = {"gaussians": "splats", "loss": "loss", "psnr": "PSNR dB", "ssim": "SSIM"}
ABOVE = 3  # folders above that of the cameras, where pictures are looked for


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """All that a scene depends on besides its pictures."""

    train: FitConfig = field(default_factory=FitConfig)
    max_side: int = 1600  # pixels of the longer side; larger pictures are shrunk
    first_points: int = 100_000  # where there are no sparse points


@dataclass(frozen=True, kw_only=True)
class Config:
    fit: SceneConfig = field(default_factory=SceneConfig)


Engine = Callable[[FitConfig, str], tuple[Rasterize, Densify]]
Entry = Mapping[str, float | None]  # of the training's history


def say(entry: Entry) -> None:
    """Where training stands, on standard error."""
    measured = [f"{name} {entry[key]:.5g}" for key, name in MEASURES.items() if entry[key] is not None]
    print(f"step {entry['step']}: {', '.join(measured)}", file=sys.stderr, flush=True)


def say_nothing(entry: Entry) -> None: ...


def gsplat_engine(config: FitConfig, device: str) -> tuple[Rasterize, Densify]:
    """gsplat's renderer and strategy; raises MissingPart where they cannot run."""
    check_gpu(device)
    return gsplat_rasterize, gsplat_densify(config)


def fit_scene(
    source: Path,
    *,
    out: Path,
    config: SceneConfig,
    clip: str | None = None,
    device: str = "cuda",
    engine: Engine = gsplat_engine,
    progress: Callable[[Entry], None] = say_nothing,
) -> dict[str, Any]:
    """Train a scene, and write it and what is to be said of it.

    Args:
        source: a manifest's folder; or a folder of pictures with a COLMAP model or transforms.json, or that itself.
        clip: of the manifest; the beginning of its id is enough, and its only one needs none.
        engine: asked before anything is read.

    Returns:
        What SCENE.fit/report.json says, without the configuration and the history.

    Raises:
        MissingPart: this machine cannot train, or its GPU has too little memory.
        UsageError: a scene of no known suffix, no such clip.
        BadMedia: pictures or cameras cannot be read.
    """
    if out.suffix not in WRITERS:
        raise UsageError(f"--out {out}: scenes are written as {', '.join(WRITERS)}")
    rasterize, densify = engine(config.train, device)
    views, points, scale_kind = read_source(source, clip, config)
    folder = out.with_name(f"{out.name}.fit")
    options = {"rasterize": rasterize, "densify": densify, "device": device, "folder": folder, "progress": progress}
    try:
        fitted = fit(views, points, config.train, **options)
    except torch.OutOfMemoryError as error:
        raise MissingPart(
            f"the memory of the GPU is full: bound the splats (--strategy mcmc --max-gaussians N), or the pictures "
            f"(--max-side, now {config.max_side}), and remove {folder} ({str(error).splitlines()[0]})"
        ) from error
    write_scene(fitted.gaussians, out)
    facts = _facts(source, out, views, points, config, fitted, scale_kind)
    tree = facts | {"config": to_tree(config), "history": fitted.history, "versions": _versions(device)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    return facts


def _facts(
    source: Path, out: Path, views: Views, points: Points, config: SceneConfig, fitted: Fitted, scale_kind: str
) -> dict[str, Any]:
    train, held_out = split(len(views), config.train.hold_out_every)
    last = fitted.history[-1]
    return {
        "scene": str(out),
        "source": str(source),
        "trained_on": len(train),
        "held_out": len(held_out),
        "first_points": len(points),
        "first_points_from": points.source,
        "steps": config.train.steps,
        "gaussians": len(fitted.gaussians),
        "psnr_db": last["psnr"],
        "ssim": last["ssim"],
        "scale_kind": scale_kind,
        "near": fitted.near,
        "config_hash": config_hash(config),
    }


def _versions(device: str) -> dict[str, str | None]:
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    versions: dict[str, str | None] = {"python": platform.python_version(), "device": gpu or platform.processor()}
    for name in ("longtake", "torch", "gsplat"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def read_source(source: Path, clip: str | None, config: SceneConfig) -> tuple[Views, Points, str]:
    """Posed pictures, first points, and whether lengths are metric or relative."""
    if (source / "_snapshots").is_dir():
        return _read_clip(source, clip, config)
    if clip is not None:
        raise UsageError(f"--clip says which clip of a manifest, and {source} is none")
    if not source.exists():
        raise BadMedia("unreadable", f"{source}: no such file or folder")
    return *_read_folder(source, config), "relative"


# ---- a clip of a manifest ----------------------------------------------------------------------------------------


def _read_clip(manifest: Path, name: str | None, config: SceneConfig) -> tuple[Views, Points, str]:
    row = row_of_clip(manifest, name)
    if row["c2w"] is None:
        raise BadMedia("no_poses", f"clip {row['clip_id']} has status {row['status']} and no poses to train with")
    clip = read_clip(row)
    info = probe(local_file(manifest, row))
    if info.sha256 != row["sha256"]:
        raise BadMedia("source_changed", f"{info.path}: is not the file that clip {clip.clip_id} was made from")
    x, y, w, h = map(int, row["crop"]) if row["crop"] is not None else (0, 0, info.width, info.height)
    crop = x, y, w, h
    posed = np.flatnonzero(clip.pose_valid)
    bent = clip.distortion or (0.0, 0.0)
    images, intrinsics, kept = [], [], []
    for frame, rgb in pictures(info, only=clip.frame_start + posed, crop=crop, max_side=config.max_side):
        i = frame - clip.frame_start
        picture, k = _pinhole(rgb, _within(clip.intrinsics[i], crop, rgb.shape[1], rgb.shape[0]), bent)
        images.append(picture)
        intrinsics.append(k)
        kept.append(i)
    if not kept:
        raise BadMedia("undecodable", f"{info.path}: not one frame with a pose can be decoded")
    views = Views(
        names=tuple(f"frame {clip.frame_start + i}" for i in kept),
        pictures=tuple(images),
        world_from_cam=clip.world_from_cam[kept],
        intrinsics=np.array(intrinsics),
    )
    points, seed = None, config.train.seed
    if row["depth_uri"] is not None and row["scale_kind"] == "metric":
        depth = open_depth(local_file(manifest, row, "depth_uri"))
        if depth.metric:  # else in a unit that is not that of the poses
            maps = _depth_maps(depth, views, clip.frame_start + np.array(kept), clip.intrinsics[kept], bent)
            points = depth_points(views, maps, count=config.first_points, seed=seed)
    return views, points or random_points(views, count=config.first_points, seed=seed), row["scale_kind"]


def _within(k: NDArray, crop: tuple[int, ...], width: int, height: int) -> NDArray[np.float64]:
    """Intrinsics of a picture that was cropped (x, y, w, h) and then shrunk to width x height."""
    scale = np.array([width / crop[2], height / crop[3]])
    return np.concatenate([k[:2] * scale, (k[2:] - crop[:2] + 0.5) * scale - 0.5])


def _pinhole(rgb: NDArray[np.uint8], k: NDArray, bent: tuple[float, ...]) -> tuple[NDArray[np.uint8], NDArray]:
    """The picture without its lens's distortion k1, k2, zoomed in until it is filled; and its intrinsics."""
    if not any(bent):
        return rgb, k
    matrix, bend = np.array([[k[0], 0, k[2]], [0, k[1], k[3]], [0, 0, 1]]), np.array([*bent, 0.0, 0.0])
    straight, _ = cv2.getOptimalNewCameraMatrix(matrix, bend, (rgb.shape[1], rgb.shape[0]), 0)
    picture = np.asarray(cv2.undistort(rgb, matrix, bend, None, straight), np.uint8)
    return picture, np.array([straight[0, 0], straight[1, 1], straight[0, 2], straight[1, 2]])


def _depth_maps(
    depth: DepthClip, views: Views, frames: NDArray[np.int64], display: NDArray, bent: tuple[float, ...]
) -> list[tuple[int, NDArray]]:
    """(view, depth over its picture) for some views, evenly spaced, from a file in the source's display pixels.

    Args:
        frames: [T] of the source, of the views.
        display: [T, 4] their intrinsics in display pixels.
    """
    row_of = {int(frame): row for row, frame in enumerate(depth.frame_index)}
    known = [i for i, frame in enumerate(frames.tolist()) if frame in row_of]
    chosen = (
        [known[i] for i in np.unique(np.linspace(0, len(known) - 1, DEPTH_FRAMES).round().astype(int))] if known else []
    )
    maps = []
    for i in chosen:
        height, width = (max(side // DEPTH_STEP, 1) for side in views.pictures[i].shape[:2])
        scale = np.array([views.pictures[i].shape[1] / width, views.pictures[i].shape[0] / height])
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
        k, pixel = views.intrinsics[i], (grid + 0.5) * scale - 0.5
        seen = distort((pixel - k[2:]) / k[:2], *bent) * display[i, :2] + display[i, 2:]
        maps.append((i, depth.sample(row_of[int(frames[i])], seen)[0].reshape(height, width)))
    return maps


# ---- a folder with cameras ---------------------------------------------------------------------------------------


def _read_folder(source: Path, config: SceneConfig) -> tuple[Views, Points]:
    cameras = read_cameras(source)
    files = _find_pictures(Path(cameras.path), cameras.names)
    images, intrinsics = [], []
    for file, k, (width, height) in zip(files, cameras.intrinsics, cameras.sizes.tolist(), strict=True):
        bgr = cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if bgr is None:
            raise BadMedia("undecodable", f"{file}: cannot be read as a picture")
        if abs(bgr.shape[1] * height / (bgr.shape[0] * width) - 1) > 0.01:
            raise BadMedia(
                "size_differs",
                f"{file} is {bgr.shape[1]} x {bgr.shape[0]}, and its camera {width} x {height}: cropped or turned",
            )
        shrink = min(1.0, config.max_side / max(bgr.shape[:2]))
        if shrink < 1:
            size = (max(round(bgr.shape[1] * shrink), 1), max(round(bgr.shape[0] * shrink), 1))
            bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
        images.append(np.ascontiguousarray(bgr[..., ::-1]))
        intrinsics.append(_within(k, (0, 0, width, height), bgr.shape[1], bgr.shape[0]))
    views = Views(
        names=cameras.names,
        pictures=tuple(images),
        world_from_cam=cameras.world_from_cam,
        intrinsics=np.array(intrinsics),
    )
    points = colmap_points(Path(cameras.path)) if cameras.format == "colmap" else None
    return views, points or random_points(views, count=config.first_points, seed=config.train.seed)


def _find_pictures(cameras: Path, names: tuple[str, ...]) -> list[Path]:
    """The pictures' files: in the folder of the cameras or one above it, or in a folder `images` there."""
    start = cameras if cameras.is_dir() else cameras.parent
    places = [folder / inner for folder in (start, *start.parents[:ABOVE]) for inner in ("images", "")]
    for place in places:
        for suffix in SUFFIXES:
            if (place / f"{names[0]}{suffix}").is_file():
                files = [place / f"{name}{suffix}" for name in names]
                lacking = [file for file in files if not file.is_file()]
                if lacking:
                    raise BadMedia("no_pictures", f"{lacking[0]} is not there, nor are {len(lacking) - 1} others")
                return files
    raise BadMedia(
        "no_pictures",
        f"{cameras} has cameras of {names[0]} and others, and these pictures are neither beside it nor in a folder "
        f"images there or in {ABOVE} folders above",
    )
