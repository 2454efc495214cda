"""OmniWorld-Game: <scene>/ {split_info.json, camera/split_<k>.json, color/<frame>.png}.

A split's camera file holds `quats` (w, x, y, z) and `trans` of the world in the camera (OpenCV axes, world to camera),
`focals` and `cx`, `cy` in pixels; `split_info.json` lists the frames of each split. The dataset's README says so, and
its published readers do. Some files say `input_size`, the share of the full picture that the intrinsics are of; they
are divided by it. Lengths are relative: the factor to metres stands in the dataset's metadata table ("Metric Scale")
and is passed with --metres-per-unit. Pixel corners are taken to lie at integers, as the middle of its pictures says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadMedia
from ...geometry import pose, rotation_from_quaternion
from ..cameras import CORNER, MAX_FRAMES, Cameras, Refused, each, unit_quaternions
from ..safe import finite, numbers, read_json


def read(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each split of the scene, or of the scenes, in `source`."""
    scenes = (
        [source]
        if (source / "split_info.json").is_file()
        else sorted(p.parent for p in source.glob("*/split_info.json"))
    )
    if not scenes:
        raise BadMedia("no_cameras", f"{source}: there is no split_info.json.")
    for scene in scenes:
        try:
            splits = _splits(scene / "split_info.json")
        except BadMedia as error:
            yield Refused(name=scene.name, error=error)
            continue
        there = {f"{scene.name}/split_{k}": (k, frames) for k, frames in splits.items()}
        yield from each(there, lambda name, s=scene, t=there: _split(source, s, *t[name]))


def _splits(path: Path) -> dict[int, Any]:
    """The frames of each split that has cameras."""
    tree = read_json(path)
    splits = tree.get("split") if isinstance(tree, dict) else None
    if isinstance(splits, dict) and all(key.isdecimal() and len(key) < 7 for key in splits):
        splits = {int(key): frames for key, frames in splits.items()}
    elif isinstance(splits, list):
        splits = dict(enumerate(splits))
    else:
        raise BadMedia("broken_cameras", f"{path} has no list of splits.")
    return {k: v for k, v in sorted(splits.items()) if (path.parent / "camera" / f"split_{k}.json").is_file()}


def _split(source: Path, scene: Path, k: int, frames: Any) -> Cameras:
    path = scene / "camera" / f"split_{k}.json"
    index = numbers(frames, "split_info", path)
    if index.ndim != 1 or not len(index) or (index % 1).any() or index.min() < 0 or index.max() >= MAX_FRAMES:
        raise BadMedia("broken_cameras", f"{path}: its split lists no frame numbers.")
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise BadMedia("broken_cameras", f"{path} is no table.")
    q = unit_quaternions(numbers(tree.get("quats"), "quats", path), str(path))
    t = numbers(tree.get("trans"), "trans", path)
    n = len(index)
    if q.shape != (n, 4) or t.shape != (n, 3):
        raise BadMedia("broken_cameras", f"{path}: {len(q)} quats and {len(t)} trans for {n} frames.")
    lens = [numbers(tree.get(name), name, path) for name in ("focals", "focals", "cx", "cy")]
    if any(v.shape not in ((), (n,)) for v in lens):
        raise BadMedia("broken_cameras", f"{path}: focals, cx or cy are not one, or one a frame.")
    share = tree.get("input_size", 1.0)
    if not finite(share) or not 0 < share <= 1:
        raise BadMedia("broken_cameras", f"{path}: input_size is {str(share)[:40]}.")
    intrinsics = np.stack([np.broadcast_to(v, n) for v in lens], 1) / share - CORNER
    name = scene.relative_to(source).as_posix() if scene != source else scene.name
    color = scene / "color"
    return Cameras(
        name=f"{name}/split_{k}",
        poses=pose(rotation_from_quaternion(q), t),
        intrinsics=intrinsics,
        frames=index.astype(np.int64),
        image_names=tuple(f"{int(i):06d}.png" for i in index) if color.is_dir() else (),
        media=color.relative_to(source).as_posix() if color.is_dir() else None,
    )
