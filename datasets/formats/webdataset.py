"""WebDataset: tar files in which what begins with one name is one sample.

    clips-000000.tar  <id>.json            clip_id, width, height, frame_start, scale_kind, caption, license, distortion
                      <id>.c2w.npy         [T,4,4] float32, OpenCV axes, NaN where pose_valid is false
                      <id>.intrinsics.npy  [T,4] float32 fx fy cx cy, pixel centres at integers
                      <id>.pose_valid.npy  [T] bool
                      <id>.times_s.npy     [T] float64 seconds from the source's first frame
                      <id>.mp4             with media: the video file as it is; frame_start says where the clip begins

Exact, bit for bit.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadMedia
from ..cameras import Cameras
from ..readers import Clip
from ..safe import MAX_ARRAY_BYTES, MAX_MEMBERS, array_from_bytes, check_member, parse_json, regular, told
from .arrays import as_intrinsics, as_poses
from .output import Output

SHARD_CLIPS, SHARD_BYTES = 1000, 1 << 30
COLUMNS = ("scale_kind", "caption", "license", "source_dataset", "split", "group_id")
ARRAYS = ("c2w", "intrinsics", "pose_valid", "times_s")


def write(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """Shards of at most 1000 clips and about 1 GiB."""
    number, waiting = 0, iter(samples)
    sample = next(waiting, None)
    while sample is not None:
        with out.draft(f"clips-{number:06d}.tar") as (file, _path), tarfile.open(fileobj=file, mode="w") as tar:
            for _ in range(SHARD_CLIPS):
                _add_clip(tar, *sample, out)
                sample = next(waiting, None)
                if sample is None or file.tell() > SHARD_BYTES:
                    break
        number += 1
    return {}


def _add_clip(tar: tarfile.TarFile, clip: Clip, row: Mapping[str, Any], out: Output) -> None:
    if "." in clip.clip_id:
        raise BadMedia("bad_id", f"clip {clip.clip_id}: WebDataset ends a sample's name at the first '.'")
    facts = {"clip_id": clip.clip_id, "width": clip.width, "height": clip.height, "frame_start": clip.frame_start}
    facts |= {"distortion": list(clip.distortion)} | {name: row[name] for name in COLUMNS}
    _add(tar, f"{clip.clip_id}.json", json.dumps(facts).encode())
    values = (
        clip.world_from_cam.astype(np.float32),
        clip.intrinsics.astype(np.float32),
        clip.pose_valid,
        clip.times_s,
    )
    for name, array in zip(ARRAYS, values, strict=True):
        buffer = io.BytesIO()
        np.save(buffer, array)
        _add(tar, f"{clip.clip_id}.{name}.npy", buffer.getvalue())
    if video := out.video(row):
        info = tarfile.TarInfo(f"{clip.clip_id}{video.suffix.lower()}")
        with open(video, "rb") as source:
            info.size = video.stat().st_size
            tar.addfile(info, source)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def read(source: Path) -> Iterator[Cameras]:
    """Every sample of the folder's *.tar files that has c2w.npy; their videos stay in the tar and are not read."""
    found = [source] if source.is_file() else sorted(source.glob("*.tar"))
    if not found:
        raise BadMedia("no_cameras", f"{source}: there is no .tar file.")
    for path in found:
        for name, parts in _samples(path):
            if "c2w" in parts:
                yield _cameras(path, name, parts)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted = {"json", *(f"{name}.npy" for name in ARRAYS)}
    name, parts = None, {}
    with told(path):
        try:
            with tarfile.open(regular(path), "r:") as tar:  # "r:": packed tar files are refused, and with them bombs
                for count, info in enumerate(tar):
                    check_member(info.name)
                    key, _, kind = info.name.rpartition("/")[2].partition(".")
                    key = info.name[: len(info.name) - len(kind) - 1] if kind else key
                    if count > MAX_MEMBERS:
                        raise ValueError(f"it has more than {MAX_MEMBERS} members")
                    if name is not None and key != name:
                        yield name, parts
                        parts = {}
                    name = key
                    if not info.isreg() or kind not in wanted:
                        continue
                    if info.size > MAX_ARRAY_BYTES or info.size > path.stat().st_size:
                        raise ValueError(f"its member {info.name[:80]} has {info.size} bytes")
                    member = tar.extractfile(info)
                    data = member.read() if member is not None else b""
                    parts[kind.removesuffix(".npy")] = parse_json(data) if kind == "json" else array_from_bytes(data)
        except tarfile.TarError as error:
            raise ValueError(str(error)) from error
        if name is not None:
            yield name, parts


def _cameras(path: Path, name: str, parts: dict[str, Any]) -> Cameras:
    where = f"{path}: {name}"
    poses = as_poses(parts["c2w"], where)
    facts = parts.get("json", {})
    if not isinstance(facts, dict):
        raise BadMedia("broken_cameras", f"{where}: its JSON is no table.")
    size = (facts.get("width"), facts.get("height"))
    start = facts.get("frame_start", 0)
    distortion = facts.get("distortion") or []
    if not isinstance(start, int) or not 0 <= start < 1 << 31:
        raise BadMedia("broken_cameras", f"{where}: frame_start is {str(start)[:40]}.")
    if not isinstance(distortion, list) or not all(isinstance(k, float) for k in distortion) or len(distortion) > 2:
        raise BadMedia("broken_cameras", f"{where}: distortion is {str(distortion)[:80]}.")
    poses[~_column(parts, "pose_valid", "b", len(poses), where, np.ones(len(poses), bool))] = np.nan
    return Cameras(
        name=name,
        poses=poses,
        intrinsics=as_intrinsics(parts.get("intrinsics"), len(poses), where),
        size=size if all(isinstance(s, int) and 0 < s < 1 << 20 for s in size) else None,  # type: ignore[arg-type]
        times_s=_column(parts, "times_s", "f", len(poses), where, None),
        frames=np.arange(start, start + len(poses)),
        distortion=tuple(distortion),  # type: ignore[arg-type]
        caption=facts.get("caption") if isinstance(facts.get("caption"), str) else None,
    )


def _column(parts: dict[str, Any], name: str, kind: str, count: int, where: str, missing: Any) -> Any:
    values = parts.get(name, missing)
    if values is None:
        return values
    if values.dtype.kind != kind or values.shape != (count,):
        raise BadMedia("broken_cameras", f"{where}: {name} is {values.dtype} {values.shape} for {count} poses.")
    return values
