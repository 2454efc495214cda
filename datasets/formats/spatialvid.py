"""SpatialVID and SpatialVID-HQ: annotations/**/<id>/ {poses.npy, intrinsics.npy, indexes.txt, caption.json}.

`poses.npy` [N, 7] holds tx ty tz qx qy qz qw of the world in the camera (world to camera), and `intrinsics.npy` [N, 4]
fx, cx as shares of the width and fy, cy as shares of the height: its own utils/c2w.py and utils/normalize_intrinsics.py
read and write them so. Rows are of sampled frames alone. Which frames they are `indexes.txt` says; its form is not
documented: it is read as numbers, of which the last of each line (or all, on a single line) number the video's frames,
and refused where they are not as many as poses or do not increase.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import BadMedia
from ...geometry import pose, rotation_from_quaternion
from ..cameras import Cameras, Refused, each, unit_quaternions
from ..safe import read_npy, read_text


def read(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each folder with poses.npy below `source`; its video is videos/**/<id>.mp4 where it is there."""
    root = source / "annotations" if (source / "annotations").is_dir() else source
    found = sorted(p.parent for pattern in ("", "*/", "*/*/") for p in root.glob(f"{pattern}poses.npy"))
    if not found:
        raise BadMedia("no_cameras", f"{source}: there is no poses.npy below it.")

    def read_clip(name: str) -> Cameras:
        folder = root / name
        table = read_npy(folder / "poses.npy")
        if table.dtype.kind != "f" or table.ndim != 2 or table.shape[1] != 7:
            raise BadMedia("broken_cameras", f"{folder}/poses.npy is {table.dtype} {table.shape}, not floats [N, 7].")
        table = table.astype(np.float64)
        q = unit_quaternions(table[:, 3:], f"{folder}/poses.npy")
        path = folder / "intrinsics.npy"
        k = read_npy(path) if path.is_file() else None
        if k is not None and (k.dtype.kind != "f" or k.shape != (len(table), 4)):
            raise BadMedia("broken_cameras", f"{path} is {k.dtype} {k.shape} for {len(table)} poses.")
        index = folder / "indexes.txt"
        video = source / "videos" / f"{name}.mp4"
        shares = k is not None and bool((np.abs(k) <= 4).all())
        return Cameras(
            name=name,
            poses=pose(rotation_from_quaternion(q[:, [3, 0, 1, 2]]), table[:, :3]),
            intrinsics=None if k is None else k.astype(np.float64) - ([0, 0, 0, 0] if shares else [0, 0, 0.5, 0.5]),
            normalized=shares,
            frames=_indexes(index, len(table)) if index.is_file() else None,
            media=f"videos/{name}.mp4" if video.is_file() else None,
        )

    return each((folder.relative_to(root).as_posix() for folder in found), read_clip)


def _indexes(path: Path, count: int) -> NDArray[np.int64]:
    lines = [line.replace(",", " ").split() for line in read_text(path).splitlines() if line.strip()]
    words = lines[0] if len(lines) == 1 else [line[-1] for line in lines]
    try:
        found = np.array([int(word) for word in words], np.int64)
    except (ValueError, OverflowError) as error:
        raise BadMedia("broken_cameras", f"{path}: {error}.") from error
    if len(found) != count or not (np.diff(found) > 0).all():
        raise BadMedia("broken_cameras", f"{path}: {len(found)} frame numbers for {count} poses, or not in order.")
    return found
