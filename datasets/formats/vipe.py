"""ViPE's result folders: pose/<n>.npz, intrinsics/<n>.npz, intrinsics/<n>_camera.txt, and rgb/<n>.mp4 with media.

`data` are float32 camera-to-world matrices in OpenCV axes, `inds` the frames of the video they are of; frames without a
pose are left out of both. Depth (depth/<n>.zip of EXR) and masks are neither written nor read. The format has no place
for times, distortion and scale. Where its pixel centres lie it does not say: intrinsics are written and read as they
are, centres at integers. Exact, bit for bit.

Source: ViPE 1.1.0 (nv-tlabs/vipe), its artifact files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadMedia
from ..cameras import Cameras, Refused, each
from ..readers import Clip
from ..safe import read_npz, read_text
from .arrays import as_poses, files
from .output import Output


def write(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """The pose and intrinsics files of each clip, and its video under rgb/ where media are wanted."""
    for clip, row in samples:
        posed = np.flatnonzero(clip.pose_valid)
        inds = posed + clip.frame_start
        for folder, data in (("pose", clip.world_from_cam[posed]), ("intrinsics", clip.intrinsics[posed])):
            with out.draft(f"{folder}/{clip.clip_id}.npz") as (file, _path):
                np.savez(file, data=data.astype(np.float32), inds=inds)
        out.text(f"intrinsics/{clip.clip_id}_camera.txt", "".join(f"{i}: PINHOLE\n" for i in inds))
        if video := out.video(row):
            out.put(video, f"rgb/{clip.clip_id}.mp4")
    return {}


def read(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each pose/*.npz. Raises BadMedia for cameras that are no pinholes."""

    def read_clip(name: str) -> Cameras:
        path = source / "pose" / f"{name}.npz"
        found = read_npz(path, {"data": True, "inds": True})
        poses = as_poses(found["data"], path)
        inds = _inds(found["inds"], len(poses), path)
        beside = source / "intrinsics" / path.name
        k = None
        if beside.is_file():
            table = read_npz(beside, {"data": True, "inds": True})
            where = _inds(table["inds"], len(table["data"]), beside)
            if table["data"].dtype.kind != "f" or table["data"].shape != (len(where), 4):
                raise BadMedia("broken_cameras", f"{beside}: intrinsics {table['data'].shape}.")
            if not np.isin(inds, where).all():
                raise BadMedia("broken_cameras", f"{beside}: frames with a pose have no intrinsics.")
            k = table["data"].astype(np.float64)[np.searchsorted(where, inds)]
            kinds = source / "intrinsics" / f"{path.stem}_camera.txt"
            if kinds.is_file() and (other := {w.split(":")[-1].strip() for w in read_text(kinds).split("\n") if w}) != {
                "PINHOLE"
            }:
                raise BadMedia("distorted_lens", f"{kinds}: cameras of {', '.join(sorted(other))[:80]}, not PINHOLE.")
        video = source / "rgb" / f"{path.stem}.mp4"
        media = f"rgb/{path.stem}.mp4" if video.is_file() else None
        return Cameras(name=path.stem, poses=poses, intrinsics=k, frames=inds, media=media)

    return each((path.stem for path in files(source / "pose", ".npz")), read_clip)


def _inds(values: np.ndarray, count: int, path: Path) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.shape != (count,) or not (np.diff(values.astype(np.int64)) > 0).all():
        raise BadMedia("broken_cameras", f"{path}: inds {values.dtype} {values.shape} for {count} rows.")
    return values.astype(np.int64)
