"""What SANA-WM's trainer reads beside its latents (SanaWMZipLatentDataset of NVlabs/Sana).

    <stem>.zip                      <id>.json {prompt, width, height}
    <stem>_camera.npz               ids, ranges (start, count), pose [sum F,4,4] camera to world, intrinsics [sum F,4]
    <stem>_metric_scale_stats.json  {id: {"median": factor that makes metres of the clip's translations}}
    <stem>_<score>.json             {id: {score name: value}}, for its external filters

The trainer takes row i of a clip for its frame i, and trains a clip that is missing in the .npz with cameras that do
not move: a clip with a frame without a pose is left out, and every clip in the zip has its cameras. It scales
intrinsics with the picture's size and takes half the width for the middle, so pixel corners lie at integers. Poses are
float32, intrinsics float64 (so that half a pixel more and less leaves the same bits): a round trip is exact.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadMedia
from ..cameras import CORNER, Cameras
from ..readers import Clip
from ..safe import member, members, parse_json, read_json, read_npz, regular, told
from .output import Output

STEM = "clips"
SCORES = {  # the trainer's name -> ours
    "vmafmotion_score": "vmaf_motion",
    "dover_score": "dover",
    "unimatch_flow_score": "flow_px",
    "entity_count": "num_entities",
    "quality_pass": "vlm_quality",
}
COLUMNS = ("scale_kind", "caption", *SCORES.values())


def write(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """One zip with its sidecars. A clip whose lengths are in an arbitrary unit has no factor and is left out."""
    left: dict[str, str] = {}
    ids, ranges, poses, intrinsics = [], [], [], []
    scores: dict[str, dict[str, dict[str, float]]] = {name: {} for name in SCORES}
    with out.draft(f"{STEM}.zip") as (file, _path):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for clip, row in samples:
                if row["scale_kind"] != "metric":
                    left[clip.clip_id] = "relative_scale"
                    continue
                info = {"prompt": row["caption"] or "", "width": clip.width, "height": clip.height}
                archive.writestr(zipfile.ZipInfo(f"{clip.clip_id}.json"), json.dumps(info))  # the same bytes each time
                start = ranges[-1][0] + ranges[-1][1] if ranges else 0
                ids.append(clip.clip_id)
                ranges.append((start, clip.num_frames))
                poses.append(clip.world_from_cam.astype(np.float32))
                intrinsics.append(clip.intrinsics + CORNER)
                for name, column in SCORES.items():
                    if row[column] is not None:
                        scores[name][clip.clip_id] = {name: float(row[column])}
    with out.draft(f"{STEM}_camera.npz") as (file, _path):
        np.savez(
            file,
            ids=np.array(ids, dtype=str) if ids else np.zeros(0, "U1"),
            ranges=np.array(ranges, np.int64).reshape(-1, 2),
            pose=np.concatenate(poses) if poses else np.zeros((0, 4, 4), np.float32),
            intrinsics=np.concatenate(intrinsics) if intrinsics else np.zeros((0, 4)),
        )
    out.json(f"{STEM}_metric_scale_stats.json", {i: {"median": 1.0} for i in ids})
    for name, values in scores.items():
        out.json(f"{STEM}_{name}.json", values)
    return left


def read(source: Path) -> Iterator[Cameras]:
    """Every clip of every `<stem>_camera.npz` of a folder. Raises BadMedia where one is not whole."""
    found = [source] if source.is_file() else sorted(source.glob("*_camera.npz"))
    if not found:
        raise BadMedia("no_cameras", f"{source}: there is no *_camera.npz.")
    for path in found:
        arrays = read_npz(path, dict.fromkeys(("ids", "ranges", "pose", "intrinsics"), True))
        ids, ranges, poses, intrinsics = (arrays[n] for n in ("ids", "ranges", "pose", "intrinsics"))
        n = len(poses) if poses.ndim else 0
        if poses.shape != (n, 4, 4) or intrinsics.shape != (n, 4) or ranges.shape != (len(ids), 2):
            raise BadMedia("broken_cameras", f"{path}: pose {poses.shape}, intrinsics {intrinsics.shape}.")
        if {poses.dtype.kind, intrinsics.dtype.kind} != {"f"} or ids.dtype.kind != "U" or ranges.dtype.kind not in "iu":
            raise BadMedia("broken_cameras", f"{path}: its arrays are of other kinds than this format has.")
        stem = path.name.removesuffix("_camera.npz")
        scales = _scales(path.with_name(f"{stem}_metric_scale_stats.json"))
        infos = _infos(path.with_name(f"{stem}.zip"))
        for name, (start, count) in zip(ids.tolist(), ranges.tolist(), strict=True):
            if not (0 <= start <= start + count <= n and count):
                raise BadMedia("broken_cameras", f"{path}: clip {name} has the rows {start} + {count} of {n}.")
            info = infos.get(name, {})
            size = (info.get("width"), info.get("height"))
            rows = slice(start, start + count)
            k = intrinsics[rows].astype(np.float64) - CORNER
            yield Cameras(
                name=name,
                poses=poses[rows].astype(np.float64),
                intrinsics=k,
                size=size if all(isinstance(s, int) and 0 < s < 1 << 20 for s in size) else None,  # type: ignore[arg-type]
                caption=info.get("prompt") if isinstance(info.get("prompt"), str) else None,
                metres_per_unit=scales.get(name),
            )


def _scales(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise BadMedia("broken_cameras", f"{path} is no table of factors.")
    out = {}
    for name, value in tree.items():
        value = value.get("median") if isinstance(value, dict) else value
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise BadMedia("broken_cameras", f"{path}: the factor of {str(name)[:80]} is {str(value)[:40]}.")
        out[name] = float(value)
    return out


def _infos(path: Path) -> dict[str, dict[str, Any]]:
    """What the zip's JSON files say, by clip."""
    if not path.is_file():
        return {}
    with told(path), zipfile.ZipFile(regular(path)) as archive:
        found = {}
        for info in members(archive):
            if info.filename.endswith(".json"):
                tree = parse_json(member(archive, info.filename, 1 << 20))
                found[info.filename.removesuffix(".json")] = tree if isinstance(tree, dict) else {}
        return found
