"""nerfstudio's transforms.json, which DL3DV uses too: camera to world, camera axes x right, y up, z backward.

Intrinsics stand at the top where all pictures share them, else beside each picture; pixel corners lie at integers.
Exact, bit for bit: only signs change, and half a pixel is added in float64.

DL3DV's files state the size of its full pictures (w, h); its smaller copies (images_2, images_4, images_8) lie beside
them and want intrinsics of their size, which is looked at where the pictures are there.

Source: docs.nerf.studio, "Data conventions".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadMedia
from ..cameras import CORNER, OPENGL_FROM_OPENCV, Cameras, Refused, each
from ..readers import Clip
from ..safe import finite, numbers, read_json
from .arrays import as_poses
from .output import Output

LENS = ("fl_x", "fl_y", "cx", "cy")
NO_PLACE = ("k3", "k4", "k5", "k6", "p1", "p2")


def write(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """`<id>/transforms.json` of the posed frames."""
    for clip, _ in samples:
        posed = np.flatnonzero(clip.pose_valid)
        c2w = clip.world_from_cam[posed] @ OPENGL_FROM_OPENCV
        names = clip.image_names
        k1, k2 = clip.distortion or (0.0, 0.0)
        tree: dict[str, Any] = {"camera_model": "OPENCV" if clip.distortion else "PINHOLE", "w": clip.width}
        tree |= {"h": clip.height, "k1": k1, "k2": k2, "p1": 0.0, "p2": 0.0}
        frames = [
            {"file_path": f"images/{names[i]}", "transform_matrix": m.tolist()} for i, m in zip(posed, c2w, strict=True)
        ]
        lenses = [dict(zip(LENS, (k + CORNER).tolist(), strict=True)) for k in clip.intrinsics[posed]]
        if all(lens == lenses[0] for lens in lenses):
            tree |= lenses[0]
        else:
            frames = [frame | lens for frame, lens in zip(frames, lenses, strict=True)]
        out.json(f"{clip.clip_id}/transforms.json", tree | {"frames": frames})
    return {}


def read(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each transforms.json: the file, in the folder, or in its subfolders. Pictures in order of name."""
    if source.is_file():
        found = [source]
    elif (source / "transforms.json").is_file():
        found = [source / "transforms.json"]
    else:
        found = sorted(source.glob("*/transforms.json")) + sorted(source.glob("*/*/transforms.json"))
    if not found:
        raise BadMedia("no_cameras", f"{source}: there is no transforms.json.")
    root = source if source.is_dir() else source.parent
    scenes = {"" if p.parent == root else p.parent.relative_to(root).as_posix(): p for p in found}
    return each(scenes, lambda name: _scene(root, scenes[name]))


def _scene(root: Path, path: Path) -> Cameras:
    tree = read_json(path)
    frames = tree.get("frames") if isinstance(tree, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise BadMedia("no_cameras", f"{path}: it has no list of frames.")
    if "FISHEYE" in str(tree.get("camera_model", "")) or any(_number(tree.get(k, 0), path) for k in NO_PLACE):
        raise BadMedia("distorted_lens", f"{path}: a lens with more than k1 and k2. Undistort the pictures first.")
    names = [frame.get("file_path") for frame in frames]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise BadMedia("broken_cameras", f"{path}: frames without file_path, or two of one.")
    order = sorted(range(len(names)), key=lambda i: names[i])
    frames, names = [frames[i] for i in order], [names[i].removeprefix("./") for i in order]
    poses = numbers([frame.get("transform_matrix") for frame in frames], "transform_matrix", path)
    lenses = [_lens({**tree, **frame}, path) for frame in frames]
    size = (_number(tree.get("w"), path), _number(tree.get("h"), path))
    if not all(1 <= s < 1 << 20 for s in size):
        raise BadMedia("broken_cameras", f"{path}: pictures of {size[0]} x {size[1]}.")
    k1, k2 = (_number(tree.get(name, 0), path) for name in ("k1", "k2"))
    scene = path.parent.relative_to(root)
    return Cameras(
        name="" if str(scene) == "." else scene.as_posix(),
        poses=as_poses(poses, path),
        intrinsics=np.array(lenses) - CORNER,
        size=(int(size[0]), int(size[1])),
        image_names=tuple(names),
        media=scene.as_posix(),
        distortion=(k1, k2) if k1 or k2 else (),
    )


def _lens(tree: Mapping[str, Any], path: Path) -> list[float]:
    if "fl_x" not in tree and "camera_angle_x" in tree:
        fx = 0.5 * _number(tree.get("w"), path) / math.tan(_number(tree["camera_angle_x"], path) / 2 or math.inf)
        tree = {"fl_x": fx, "fl_y": fx, **tree}
    return [_number(tree.get(name), path, name) for name in LENS]


def _number(value: Any, path: Path, name: str = "w or h") -> float:
    if not finite(value):
        raise BadMedia("broken_cameras", f"{path}: {name} is {str(value)[:40]}, no number.")
    return float(value)
