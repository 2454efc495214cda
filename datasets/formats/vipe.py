"""ViPE's result folders.

    pose/<n>.npz                data [N,4,4] float32 camera to world, OpenCV axes; inds [N], the frames of the video
    intrinsics/<n>.npz          data [N,4] fx fy cx cy, inds; and <n>_camera.txt, "frame: PINHOLE"
    rgb/<n>.mp4                 with media: the video
    depth/<n>.zip               with media: <frame>.exr, half floats along the optical axis, in the unit of the poses
    mask/<n>.zip, mask/<n>.txt  with media: <frame>.png, 8 bits: the number of what is there; "number: phrase"

Frames without a pose are left out of pose/ and intrinsics/. The format has no place for times, distortion and scale.
Where its pixel centres lie it does not say: intrinsics are written and read as they are, centres at integers. Cameras
and masks are exact, bit for bit. Depth has a relative error of 0.05 % as a half and 0.014 % in our files; it is written
for clips in metres, in the pictures' size, nan where unknown, and taken over where depth is finite and positive.

Source: ViPE 1.1.0 (nv-tlabs/vipe), its artifact files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from re import compile
from struct import unpack_from
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

from ...errors import BadMedia
from ..cameras import MAX_FRAMES, Cameras, Refused, each
from ..readers import Clip
from ..row_files import path_of
from ..safe import member, members, read_npz, read_text, regular, told
from . import exr
from .arrays import as_poses, files
from .output import Output

COLUMNS = ("scale_kind", "depth_uri", "mask_uri")
FRAME = compile(r"([0-9]{5,7})\.(exr|png)")
MAX_PICTURE_BYTES = 1 << 28
MAX_PHRASES_BYTES = 1 << 20
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


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
        if maps := out.depth(row):
            with out.draft(f"depth/{clip.clip_id}.zip") as (file, _path), ZipFile(file, "w", ZIP_STORED) as archive:
                for frame, depth in maps:
                    archive.writestr(f"{frame:05d}.exr", exr.write_depth(depth))
        if out.files is not None and row["mask_uri"] is not None:
            masks = path_of(*out.files.find(row, "mask_uri"))
            check_masks(masks)
            out.put(masks, f"mask/{clip.clip_id}.zip")
            if (phrases := masks.with_suffix(".txt")).is_file():
                out.text(f"mask/{clip.clip_id}.txt", read_text(phrases, MAX_PHRASES_BYTES))
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
        sidecars = {
            kind: name for kind in ("depth", "mask") if (source / (name := f"{kind}/{path.stem}.zip")).is_file()
        }
        return Cameras(
            name=path.stem,
            poses=poses,
            intrinsics=k,
            frames=inds,
            media=media,
            depth=sidecars.get("depth"),
            masks=sidecars.get("mask"),
        )

    return each((path.stem for path in files(source / "pose", ".npz")), read_clip)


def _inds(values: np.ndarray, count: int, path: Path) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.shape != (count,) or not (np.diff(values.astype(np.int64)) > 0).all():
        raise BadMedia("broken_cameras", f"{path}: inds {values.dtype} {values.shape} for {count} rows.")
    return values.astype(np.int64)


def read_depth(path: Path, first: int, stop: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Depth maps [H, W] of the frames first .. stop - 1 that have one, in order, as they are in the file.

    Raises:
        BadMedia: unreadable.
    """
    with told(path), ZipFile(regular(path)) as archive:
        for frame, name in _frames(archive, "exr"):
            if first <= frame < stop:
                yield frame, exr.read_depth(member(archive, name, MAX_PICTURE_BYTES), f"{path}: {name}")


def check_masks(path: Path) -> None:
    """Raise BadMedia unless this is an archive of one gray PNG of 8 bits a frame; their pixels are not looked at."""
    with told(path), ZipFile(regular(path)) as archive:
        for _, name in _frames(archive, "png"):
            with archive.open(name) as file:
                head = file.read(26)
            if not head.startswith(PNG) or len(head) < 26 or head[24:26] != b"\x08\0":
                raise ValueError(f"its {name} is no gray PNG of 8 bits")
            width, height = unpack_from(">2I", head, 16)
            if not 0 < width * height <= exr.MAX_PIXELS or archive.getinfo(name).file_size > MAX_PICTURE_BYTES:
                raise ValueError(f"its {name} has {width} x {height} pixels")


def _frames(archive: ZipFile, kind: str) -> list[tuple[int, str]]:
    """Frame and name of each member, in order of the frames."""
    found = [(FRAME.fullmatch(info.filename), info.filename) for info in members(archive)]
    if odd := [name for match, name in found if match is None or match[2] != kind]:
        raise ValueError(f"its member {odd[0][:80]} is not named like 00000.{kind}")
    numbered = sorted((int(match[1]), name) for match, name in found if match is not None)
    if not numbered or numbered[-1][0] >= MAX_FRAMES or len({frame for frame, _ in numbered}) != len(numbered):
        raise ValueError("it holds no frames, or two pictures of one")
    return numbered
