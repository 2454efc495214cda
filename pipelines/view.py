"""What `longtake view` shows around a clip's camera: pictures and depth from their files, and the scene it was drawn
from, as points."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..annotate.depth_clip import DepthClip, open_depth
from ..annotate.video import pictures, probe
from ..datasets.row_files import local_file
from ..datasets.view import Cloud, Shown, find_clip, write_rrd
from ..records import BadMedia
from ..render.gaussians import SH0, Gaussians
from ..render.scene import read_scene
from .config import MissingPart
from .render import content_sha256

MAX_POINTS = 200_000
MAX_SHOWN = 60  # frames whose picture and depth are in the recording
MAX_SIDE = 384  # pixels of theirs
LEAST_OPACITY = 0.1


def view(
    folder: Path, out: Path | None = None, *, clip_id: str | None = None, max_points: int = MAX_POINTS
) -> tuple[Path, list[str]]:
    """Write a clip's recording; its path, and in words what is not in it.

    Raises:
        MissingPart: rerun-sdk is not installed.
        LongtakeError: as `write_rrd`.
    """
    if find_spec("rerun") is None:
        raise MissingPart("recordings need the package rerun-sdk: pip install 'longtake[rerun]'")
    source, row = find_clip(folder, clip_id)
    notes: list[str] = []
    scene = _scene(row, max_points, notes) if row["origin"] == "rendered" else None
    shown = _shown(source.folder, row, notes)
    path = write_rrd(folder, out, clip_id=row["clip_id"], scene=scene, shown=shown, notes=notes)
    return path, notes


def cloud_of(gaussians: Gaussians, max_points: int, scale: float) -> Cloud:
    """The most opaque Gaussians as points in their mean colour, as large as their middle deviation; lengths x scale."""
    opacity = gaussians.opacities
    ranked = opacity + np.random.default_rng(0).uniform(0, 1e-4, len(opacity))  # many are equal: any of them
    rows = np.argsort(-ranked, kind="stable")[:max_points]
    rows = np.sort(rows[opacity[rows] >= LEAST_OPACITY])
    colour = np.clip(0.5 + SH0 * gaussians.sh[rows, 0], 0, 1)
    return Cloud(
        xyz=np.float32(scale) * gaussians.means[rows],
        rgb=np.rint(255 * colour).astype(np.uint8),
        radii=np.float32(scale) * np.median(gaussians.scales[rows], axis=1),
    )


def _scene(row: Mapping[str, Any], max_points: int, notes: list[str]) -> Cloud | None:
    """The clip's scene in the unit of its poses, or None and why."""
    stats = json.loads(row["render_stats"])
    path = row["splat_uri"]
    try:
        if content_sha256(Path(path)) != row["source_sha256"]:
            notes.append(f"{path} is no longer the scene that the clip was filmed in: it is not shown")
            return None
        gaussians = read_scene(path, drop_invalid=stats["dropped_splats"] > 0).gaussians
    except BadMedia as error:
        notes.append(f"the scene is not shown: {error}")
        return None
    cloud = cloud_of(gaussians, max_points, stats.get("metres_per_unit") or 1.0)
    if len(cloud.xyz) < len(gaussians):
        notes.append(f"{len(cloud.xyz)} of the scene's {len(gaussians)} splats are shown, the most opaque ones")
    return cloud


def _shown(folder: Path, row: Mapping[str, Any], notes: list[str]) -> Iterator[Shown]:
    """Pictures and depth of up to `MAX_SHOWN` frames, evenly spread; what is not there is noted at once."""
    try:
        video = local_file(folder, row)
    except BadMedia as error:
        notes.append(f"pictures are not shown: {error}")
        return iter(())
    if not video.is_file():
        notes.append(f"{video} is not there: the camera holds no pictures")
        return iter(())
    depth = None
    if row["depth_uri"] is not None:
        try:
            depth = open_depth(local_file(folder, row, "depth_uri"))
        except BadMedia as error:
            notes.append(f"depth is not shown: {error}")
    first, count = row["frame_start"] or 0, row["num_frames"]
    able = np.arange(first, first + count)
    if depth is not None:
        able = np.intersect1d(able, depth.frame_index)
    if not len(able):
        return iter(())
    frames = able[np.unique(np.linspace(0, len(able) - 1, MAX_SHOWN).round().astype(int))]
    crop = None if row["crop"] is None else tuple(row["crop"])
    return _read(video, frames, first, crop, depth)


def _read(
    video: Path, frames: NDArray[np.int64], first: int, crop: tuple[int, ...] | None, depth: DepthClip | None
) -> Iterator[Shown]:
    info = probe(video)
    span = {"start": int(frames[0]), "stop": int(frames[-1]) + 1, "only": frames}
    for number, rgb in pictures(info, crop=crop, max_side=MAX_SIDE, **span):  # type: ignore[arg-type]
        h, w = rgb.shape[:2]
        found: NDArray[np.float32] | None = None
        if depth is not None:
            full, _ = depth.read(int(np.searchsorted(depth.frame_index, number)))
            found = np.asarray(cv2.resize(full, (w, h), interpolation=cv2.INTER_NEAREST), np.float32)
        jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        yield Shown(frame=number - first, jpeg=jpeg, size=(w, h), depth=found)
