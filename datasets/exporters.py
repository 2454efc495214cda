"""Manifest rows as the files that other tools read.

Formats that have no word for a frame without a pose leave such frames out, and the summary counts them; no pose is made
up. Frames are named as `readers.Clip.image_names` says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import invert_pose, quaternion_from_rotation
from ..records import LongtakeError
from .readers import CLIP_COLUMNS, Clip, read_clip

if TYPE_CHECKING:
    import pyarrow.compute as pc

    from .manifest import Manifest

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # camera axes x right, y up, z backward


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export wrote and what it could not."""

    format: str
    manifest: str
    snapshot: int
    clips: int  # written
    frames: int  # written with a pose
    frames_without_pose: int  # left out, or marked where the format can say so (npz)
    clips_failed: int  # no camera: skipped
    clips_without_pose: int  # not one frame with a pose, in a format that cannot say so: skipped


def export(
    manifest: Manifest, to: str, out: str | os.PathLike[str], where: pc.Expression | None = None
) -> ExportSummary:
    """Write the clips of a manifest into the folder `out`, filtered ones too unless `where` says otherwise.

    Args:
        to: one of
            npz: `<clip_id>.npz` {c2w [N,4,4], K [N,3,3], pose_valid [N], times_s [N]}, row i for frame i of the clip;
            tum: `<clip_id>.txt`, camera to world as `t tx ty tz qx qy qz qw`, seconds from the source's first frame;
            colmap: `<clip_id>/` {cameras,images,points3D}.txt, one camera per image where intrinsics vary;
            nerfstudio: `<clip_id>/transforms.json`, OpenGL camera axes;
            npy: `<clip_id>_c2w.npy` [F,4,4], `<clip_id>_intrinsics.npy` [F,4], `<clip_id>_frames.npy` [F] the frames
            of the clip that these rows are of.
        where: such as `pyarrow.compute.field("status") == "ok"`.

    Returns:
        The counts, which `out/export.json` holds too.

    Raises:
        LongtakeError: unknown format, or `out` holds other things than an earlier export of the same.
    """
    if to not in WRITERS:
        raise LongtakeError(f"There is no export format {to!r}. Choose one of: {', '.join(WRITERS)}.")
    folder, write = Path(out), WRITERS[to]
    _claim(folder, to, manifest)
    snapshot = manifest.snapshot().number
    clips = frames = unposed = failed = empty = 0
    for row in manifest.rows(CLIP_COLUMNS, where):
        if row["c2w"] is None:
            failed += 1
            continue
        clip = read_clip(row)
        count = int(clip.pose_valid.sum())
        unposed += clip.num_frames - count
        if count == 0 and to != "npz":
            empty += 1
            continue
        with _told(folder):
            write(clip, folder)
        clips, frames = clips + 1, frames + count
    summary = ExportSummary(
        format=to,
        manifest=str(manifest.folder.resolve()),
        snapshot=snapshot,
        clips=clips,
        frames=frames,
        frames_without_pose=unposed,
        clips_failed=failed,
        clips_without_pose=empty,
    )
    with _told(folder):
        _write_text(folder / "export.json", json.dumps(asdict(summary), indent=1) + "\n")
    return summary


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LongtakeError(
            f"Cannot write the export to {folder}: {error.strerror or error}. "
            "Make room or choose another folder, and run it again."
        ) from error


def _claim(folder: Path, to: str, manifest: Manifest) -> None:
    """Make the output folder ours, unless something else is in it."""
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        return
    try:
        before = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        before = None
    if before is None or (before["format"], before["manifest"]) != (to, str(manifest.folder.resolve())):
        what = "other files" if before is None else f"the export of {before['manifest']} to {before['format']}"
        raise LongtakeError(f"{folder} holds {what}. Empty it, or choose another folder; nothing was written.")


def _write_npz(clip: Clip, folder: Path) -> None:
    path = folder / f"{clip.clip_id}.npz"
    draft = path.with_suffix(".part")
    with open(draft, "wb") as file:
        np.savez_compressed(file, c2w=clip.world_from_cam, K=clip.k, pose_valid=clip.pose_valid, times_s=clip.times_s)
    os.replace(draft, path)


def _write_npy(clip: Clip, folder: Path) -> None:
    posed = np.flatnonzero(clip.pose_valid)
    arrays = {"c2w": clip.world_from_cam[posed], "intrinsics": clip.intrinsics[posed], "frames": posed}
    for name, values in arrays.items():
        np.save(folder / f"{clip.clip_id}_{name}.npy", values)


def _write_tum(clip: Clip, folder: Path) -> None:
    posed = np.flatnonzero(clip.pose_valid)
    c2w = clip.world_from_cam[posed]
    q = quaternion_from_rotation(c2w[:, :3, :3])  # w first
    table = np.column_stack([clip.times_s[posed], c2w[:, :3, 3], q[:, 1:], q[:, 0]])
    lines = [" ".join([f"{row[0]:.9f}", *(f"{v:.9g}" for v in row[1:])]) for row in table]
    _write_text(folder / f"{clip.clip_id}.txt", "".join(f"{line}\n" for line in lines))


def _write_colmap(clip: Clip, folder: Path) -> None:
    """COLMAP's text model: world to camera, pixel corners at integers, so that a centre lies half a pixel further."""
    posed = np.flatnonzero(clip.pose_valid)
    cam_from_world = invert_pose(clip.world_from_cam[posed])
    q, t = quaternion_from_rotation(cam_from_world[:, :3, :3]), cam_from_world[:, :3, 3]
    shared = _share_intrinsics(clip)
    model, tail = ("OPENCV", [*clip.distortion, 0.0, 0.0]) if clip.distortion else ("PINHOLE", [])
    names = clip.image_names
    cameras, images = [], []
    for i, frame in enumerate(posed):
        camera = 1 if shared else i + 1
        if camera == i + 1:
            fx, fy, cx, cy = clip.intrinsics[frame]
            numbers = " ".join(f"{v:.9g}" for v in (fx, fy, cx + 0.5, cy + 0.5, *tail))
            cameras.append(f"{camera} {model} {clip.width} {clip.height} {numbers}\n")
        pose = " ".join(f"{v:.12g}" for v in (*q[i], *t[i]))
        images.append(f"{i + 1} {pose} {camera} {names[frame]}\n\n")  # the empty line: no 2D points
    out = folder / clip.clip_id
    out.mkdir(exist_ok=True)
    _write_text(out / "cameras.txt", "".join(cameras))
    _write_text(out / "images.txt", "".join(images))
    _write_text(out / "points3D.txt", "")


def _write_nerfstudio(clip: Clip, folder: Path) -> None:
    """Intrinsics at the top where all frames share them, else beside each frame; pixel corners at integers."""
    posed = np.flatnonzero(clip.pose_valid)
    c2w = clip.world_from_cam[posed] @ OPENGL_FROM_OPENCV
    names = clip.image_names
    frames = [
        {"file_path": f"images/{names[i]}", "transform_matrix": m.tolist()} for i, m in zip(posed, c2w, strict=True)
    ]
    k1, k2 = clip.distortion or (0.0, 0.0)
    tree: dict[str, Any] = {
        "camera_model": "OPENCV" if clip.distortion else "PINHOLE",
        "w": clip.width,
        "h": clip.height,
        "k1": k1,
        "k2": k2,
        "p1": 0.0,
        "p2": 0.0,
    }
    if _share_intrinsics(clip):
        tree |= _nerfstudio_intrinsics(clip.intrinsics[posed[0]])
    else:
        for frame, i in zip(frames, posed, strict=True):
            frame |= _nerfstudio_intrinsics(clip.intrinsics[i])
    out = folder / clip.clip_id
    out.mkdir(exist_ok=True)
    _write_text(out / "transforms.json", json.dumps(tree | {"frames": frames}, indent=1) + "\n")


def _nerfstudio_intrinsics(intrinsics: NDArray[np.float64]) -> dict[str, float]:
    fx, fy, cx, cy = intrinsics.tolist()
    return {"fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5}


def _share_intrinsics(clip: Clip) -> bool:
    used = clip.intrinsics[clip.pose_valid]
    return bool((used == used[0]).all())


def _write_text(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


WRITERS: dict[str, Callable[[Clip, Path], None]] = {
    "npz": _write_npz,
    "tum": _write_tum,
    "colmap": _write_colmap,
    "nerfstudio": _write_nerfstudio,
    "npy": _write_npy,
}
