"""Plain NumPy files: .npz with a mark for frames without a pose, and the .npy files that SANA-WM's inference takes.

Reading, a file may be any of its names with other poses in them: neither direction nor axes are defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadMedia
from ..cameras import Cameras, Refused, each
from ..readers import Clip
from ..safe import read_npy, read_npz
from .output import Output

POSE_NAMES = ("c2w", "world_from_cam", "w2c", "cam_from_world", "data", "pose", "poses", "extrinsics")


def write_npz(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """`<id>.npz` {c2w, K, pose_valid, times_s}, all float64 but pose_valid; NaN poses where there is none."""
    for clip, _ in samples:
        with out.draft(f"{clip.clip_id}.npz") as (file, _path):
            np.savez_compressed(
                file, c2w=clip.world_from_cam, K=clip.k, pose_valid=clip.pose_valid, times_s=clip.times_s
            )
    return {}


def write_npy(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """`<id>_{c2w,intrinsics,frames}.npy`, the posed frames alone; `frames` numbers them within the clip."""
    for clip, _ in samples:
        posed = np.flatnonzero(clip.pose_valid)
        arrays = {"c2w": clip.world_from_cam[posed], "intrinsics": clip.intrinsics[posed], "frames": posed}
        for name, values in arrays.items():
            with out.draft(f"{clip.clip_id}_{name}.npy") as (file, _path):
                np.save(file, values)
    return {}


def read_npz_folder(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each .npz: poses under one of POSE_NAMES, K or intrinsics, pose_valid, times_s, frames or inds."""

    def read(name: str) -> Cameras:
        path = beside(source, f"{name}.npz")
        names = (*POSE_NAMES, "K", "intrinsics", "pose_valid", "times_s", "frames", "inds")
        found = read_npz(path, {name: False for name in names})
        names = [name for name in POSE_NAMES if name in found]
        if len(names) != 1:
            what = " and ".join(names) or "no poses"
            raise BadMedia("broken_cameras", f"{path} has {what}: poses are read from one of {', '.join(POSE_NAMES)}.")
        poses = as_poses(found[names[0]], path)
        if "pose_valid" in found:
            valid = found["pose_valid"]
            if valid.shape != (len(poses),) or valid.dtype != bool:
                raise BadMedia("broken_cameras", f"{path}: pose_valid is {valid.dtype} {valid.shape}.")
            poses[~valid] = np.nan
        return Cameras(
            name=path.stem,
            poses=poses,
            intrinsics=as_intrinsics(found.get("intrinsics", found.get("K")), len(poses), path),
            times_s=_row(found.get("times_s"), "f", len(poses), path),
            frames=_row(found.get("frames", found.get("inds")), "iu", len(poses), path),
        )

    return each((path.stem for path in files(source, ".npz")), read)


def read_npy_folder(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each `<name>_c2w.npy` (or `<name>.npy` of poses), with `<name>_{intrinsics,frames}.npy` beside."""
    parts = ("_intrinsics", "_frames")

    def read(name: str) -> Cameras:
        path = beside(source, f"{name}.npy")
        stem = path.stem.removesuffix("_c2w")
        there = {part: p for part in parts if (p := path.with_name(f"{stem}{part}.npy")).is_file()}
        poses = as_poses(read_npy(path), path)
        loaded = {part: read_npy(p) for part, p in there.items()}
        return Cameras(
            name=stem,
            poses=poses,
            intrinsics=as_intrinsics(loaded.get("_intrinsics"), len(poses), path),
            frames=_row(loaded.get("_frames"), "iu", len(poses), path),
        )

    return each((path.stem for path in files(source, ".npy") if not path.stem.endswith(parts)), read)


def files(source: Path, suffix: str) -> list[Path]:
    """The files of a folder, or the one file that was named.

    Raises:
        BadMedia: there is none.
    """
    if source.is_file():
        return [source]
    found = sorted(p for p in source.iterdir() if p.suffix == suffix and p.is_file()) if source.is_dir() else []
    if not found:
        raise BadMedia("no_cameras", f"{source}: there is no {suffix} file. Name the folder that holds them.")
    return found


def beside(source: Path, name: str) -> Path:
    """The file of this name in a folder; the source itself where that is a file."""
    return source if source.is_file() else source / name


def as_poses(values: NDArray, where: object) -> NDArray[np.float64]:
    """[T, 4, 4] of an array [T, 4, 4] or [T, 3, 4]."""
    if values.dtype.kind not in "fiu" or values.ndim != 3 or values.shape[1:] not in ((4, 4), (3, 4)):
        raise BadMedia(
            "broken_cameras", f"{where}: poses are {values.dtype} {values.shape}, not numbers [T, 4, 4] or [T, 3, 4]."
        )
    out = np.zeros((len(values), 4, 4))
    out[:, 3, 3] = 1
    out[:, : values.shape[1]] = values
    out[~np.isfinite(out[:, :3]).all((1, 2))] = np.nan
    return out


def as_intrinsics(values: NDArray | None, count: int, where: object) -> NDArray[np.float64] | None:
    """[T, 4] fx, fy, cx, cy of [T, 3, 3], [3, 3], [T, 4] or [4]."""
    if values is None:
        return None
    if values.dtype.kind not in "fiu" or values.shape not in ((count, 3, 3), (3, 3), (count, 4), (4,)):
        raise BadMedia("broken_cameras", f"{where}: intrinsics are {values.dtype} {values.shape} for {count} poses.")
    k = values.astype(np.float64)
    if k.shape[-2:] == (3, 3) and not (k.shape == (3, 4)):
        if np.abs(k[..., [0, 1, 2, 2], [1, 0, 0, 1]]).max(initial=0) > 1e-6 or not (k[..., 2, 2] == 1).all():
            raise BadMedia("broken_cameras", f"{where}: the camera matrix has skew, or no last row 0 0 1.")
        k = np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)
    return np.broadcast_to(k, (count, 4)).copy()


def _row(values: NDArray | None, kinds: str, count: int, where: object) -> Any:
    if values is None:
        return None
    if values.dtype.kind not in kinds or values.shape != (count,):
        raise BadMedia("broken_cameras", f"{where}: {values.dtype} {values.shape} for {count} poses.")
    return values.astype(np.float64 if kinds == "f" else np.int64)
