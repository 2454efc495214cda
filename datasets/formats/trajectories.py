"""Trajectories as text: TUM RGB-D and KITTI odometry. Numbers are written with all their digits.

TUM's quaternions hold exact rotations, which the manifest's float32 matrices are not: such a round trip is good to
float32 rounding (2e-7), KITTI's matrices bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadMedia
from ...geometry import pose, quaternion_from_rotation, rotation_from_quaternion
from ..cameras import Cameras, Refused, each, unit_quaternions
from ..readers import Clip
from ..safe import read_text
from .arrays import as_poses, beside, files
from .output import Output


def write_tum(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """`<id>.txt`: t tx ty tz qx qy qz qw of the posed frames."""
    for clip, _ in samples:
        posed = np.flatnonzero(clip.pose_valid)
        c2w = clip.world_from_cam[posed]
        q = quaternion_from_rotation(c2w[:, :3, :3])  # w first
        table = np.column_stack([clip.times_s[posed], c2w[:, :3, 3], q[:, 1:], q[:, 0]])
        out.text(f"{clip.clip_id}.txt", _lines(table))
    return {}


def write_kitti(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """`poses/<id>.txt`, `sequences/<id>/times.txt`, and `calib.txt` where the intrinsics are one set.

    KITTI takes row i for frame i and one calibration for a sequence: neither has a word for what is otherwise.
    """
    for clip, _ in samples:
        out.text(f"poses/{clip.clip_id}.txt", _lines(clip.world_from_cam[:, :3].reshape(-1, 12)))
        out.text(f"sequences/{clip.clip_id}/times.txt", _lines(clip.times_s[:, None]))
        if (clip.intrinsics == clip.intrinsics[0]).all():
            fx, fy, cx, cy = clip.intrinsics[0].tolist()
            p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
            out.text(f"sequences/{clip.clip_id}/calib.txt", "P0: " + " ".join(map(repr, p)) + "\n")
    return {}


def read_tum(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each .txt of rows of 8 numbers."""

    def read(name: str) -> Cameras:
        path = beside(source, f"{name}.txt")
        table = _table(path, 8)
        q = unit_quaternions(table[:, 4:], str(path))
        rotation = rotation_from_quaternion(q[:, [3, 0, 1, 2]])
        return Cameras(name=path.stem, poses=pose(rotation, table[:, 1:4]), times_s=table[:, 0])

    return each((path.stem for path in files(source, ".txt")), read)


def read_kitti(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each poses/*.txt of rows of 12 numbers; times and P0 (or P2, the colour camera) where there are."""
    folder = source / "poses" if (source / "poses").is_dir() else source

    def read(name: str) -> Cameras:
        path = beside(folder, f"{name}.txt")
        poses = as_poses(_table(path, 12).reshape(-1, 3, 4), path)
        sequence = path.parent.parent / "sequences" / path.stem
        times = _table(sequence / "times.txt", 1)[:, 0] if (sequence / "times.txt").is_file() else None
        if times is not None and len(times) != len(poses):
            raise BadMedia("broken_cameras", f"{sequence}/times.txt has {len(times)} times for {len(poses)} poses.")
        k = _projection(sequence / "calib.txt") if (sequence / "calib.txt").is_file() else None
        return Cameras(
            name=path.stem,
            poses=poses,
            times_s=times,
            intrinsics=None if k is None else np.repeat(k[None], len(poses), 0),
        )

    return each((path.stem for path in files(folder, ".txt")), read)


def _lines(table: NDArray[np.float64]) -> str:
    return "".join(" ".join(map(repr, row)) + "\n" for row in table.tolist())


def _projection(path: Path) -> NDArray[np.float64]:
    rows = {line.partition(":")[0].strip(): line.partition(":")[2] for line in read_text(path).splitlines()}
    name = next((n for n in ("P2", "P0") if n in rows), None)
    if name is None:
        raise BadMedia("broken_cameras", f"{path}: neither P0 nor P2.")
    p = _numbers(rows[name].split(), path, 12)
    return np.array([p[0], p[5], p[2], p[6]])


def _table(path: Path, width: int) -> NDArray[np.float64]:
    lines = (line.partition("#")[0].replace(",", " ").split() for line in read_text(path).splitlines())
    rows = [_numbers(line, path, width) for line in lines if line]
    if not rows:
        raise BadMedia("no_cameras", f"{path} is empty.")
    return np.array(rows)


def _numbers(words: list[str], path: Path, width: int) -> list[float]:
    if len(words) != width:
        raise BadMedia("broken_cameras", f"{path}: a row has {len(words)} numbers instead of {width}.")
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise BadMedia("broken_cameras", f"{path}: {error}.") from error
