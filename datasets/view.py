"""A clip as a Rerun recording, to be turned about in Rerun's viewer: `rerun CLIP.rrd`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import LongtakeError
from .manifest import Manifest, open_manifest
from .readers import read_clip
from .report import sidecar_pictures

_CURVES = ("frame_reproj_rmse_px", "frame_sampson_px", "frame_num_tracked", "frame_coverage", "frame_dyn_ratio")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """N coloured points of the scene; frame and unit are the poses'."""

    xyz: NDArray[np.float32]  # [N, 3]
    rgb: NDArray[np.uint8]  # [N, 3]
    radii: NDArray[np.float32]  # [N]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What the camera saw in one frame of the clip."""

    frame: int
    jpeg: bytes  # [h, w] pixels of the clip's whole picture, of whatever size
    size: tuple[int, int]  # w, h
    depth: NDArray[np.float32] | None  # [h, w] in the unit of the poses, nan where unknown


def find_clip(manifest: str | os.PathLike[str], clip_id: str | None = None) -> tuple[Manifest, Mapping[str, Any]]:
    """A manifest and the row of one of its clips: of the only one with poses where `clip_id` is None.

    Raises:
        LongtakeError: no such clip, several to choose from, or a clip without poses.
    """
    source = open_manifest(manifest)
    if clip_id is None:
        ids = [str(row["clip_id"]) for row in source.rows(["clip_id", "status"]) if row["status"] != "failed"]
        if len(ids) != 1:
            some = f": {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}" if ids else ""
            raise LongtakeError(
                f"The manifest {source.folder} has {len(ids)} clips with poses: say which by its clip_id{some}."
            )
        clip_id = ids[0]
    row = source.row(clip_id)
    if row["c2w"] is None:
        raise LongtakeError(f"Clip {clip_id} has no poses to show: {row['error']}")
    return source, row


def write_rrd(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    clip_id: str | None = None,
    scene: Cloud | None = None,
    shown: Iterable[Shown] = (),
    notes: Iterable[str] = (),
) -> Path:
    """Write a recording: the path, a camera on its true time line, focal length and quality as curves, the pictures.

    Args:
        manifest: its folder.
        out: the recording; None for <clip_id>.rrd in that folder.
        clip_id: the clip; None for the manifest's only one with poses.
        scene: points around the path.
        shown: pictures, and depth where known, for the camera to hold; in the order of the frames.
        notes: what a user should know of the recording, put into it as text.

    Returns:
        The recording's path.

    Raises:
        LongtakeError: rerun-sdk is not installed, no such clip, a clip without poses, or `out` cannot be written.
    """
    try:
        import rerun as rr
    except ModuleNotFoundError as error:
        raise LongtakeError(
            f"Recordings need the Python package rerun-sdk ({error.name} is missing): pip install 'longtake[rerun]'."
        ) from error
    source, row = find_clip(manifest, clip_id)
    clip = read_clip(row)
    target = Path(out) if out is not None else source.folder / f"{clip.clip_id}.rrd"
    draft = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
    except OSError as error:
        raise LongtakeError(f"Cannot write the recording {target}: {error.strerror}. Choose another place.") from error

    with rr.RecordingStream("longtake", recording_id=clip.clip_id) as recording:
        recording.save(draft)
        recording.log("world", rr.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)
        centres = clip.world_from_cam[:, :3, 3]
        runs = np.split(np.arange(clip.num_frames), np.flatnonzero(np.diff(clip.pose_valid.astype(int))) + 1)
        strips = [centres[run] for run in runs if clip.pose_valid[run[0]] and len(run) > 1]
        recording.log("world/path", rr.LineStrips3D(strips), static=True)
        if row["frame_is_keyframe"] is not None:
            keyframes = centres[np.asarray(row["frame_is_keyframe"], bool) & clip.pose_valid]
            recording.log("world/keyframes", rr.Points3D(keyframes), static=True)
        if scene is not None:
            recording.log("world/scene", rr.Points3D(scene.xyz, colors=scene.rgb, radii=scene.radii), static=True)
        if words := "\n\n".join(notes):
            recording.log("notes", rr.TextDocument(words, media_type="text/markdown"), static=True)
        pictures = dict(sidecar_pictures(source.folder, row))
        held = iter(shown)
        coming = next(held, None)
        size = (clip.width, clip.height) if coming is None else coming.size  # of the pictures that the camera holds
        k = clip.k
        curves = {name: np.asarray(row[name], np.float64) for name in _CURVES if row[name] is not None}
        for i, seconds in enumerate(clip.times_s):
            recording.set_time("time", duration=float(seconds))
            recording.set_time("frame", sequence=i)
            if clip.pose_valid[i]:
                pose = clip.world_from_cam[i]
                recording.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
                recording.log(
                    "world/camera/picture",
                    rr.Pinhole(
                        image_from_camera=_scaled(k[i], size[0] / clip.width, size[1] / clip.height),
                        resolution=size,
                        camera_xyz=rr.ViewCoordinates.RDF,
                    ),
                )
            else:
                recording.log("world/camera", rr.Clear(recursive=True))
            recording.log("curves/focal_px", rr.Scalars(clip.intrinsics[i, :2]))
            for name, values in curves.items():
                if np.isfinite(values[i]):
                    recording.log(f"curves/{name.removeprefix('frame_')}", rr.Scalars(values[i]))
            if coming is not None and coming.frame == i:
                picture = rr.EncodedImage(contents=coming.jpeg, media_type="image/jpeg")
                recording.log("world/camera/picture/rgb", picture)
                if coming.depth is not None:
                    recording.log("world/camera/picture/depth", rr.DepthImage(np.nan_to_num(coming.depth), meter=1.0))
                coming = next(held, None)
            if i in pictures:
                recording.log("pictures", rr.EncodedImage(contents=pictures[i], media_type="image/jpeg"))
        recording.flush()
    draft.replace(target)
    return target


def _scaled(k: NDArray[np.float64], across: float, down: float) -> NDArray[np.float64]:
    """A camera matrix for a picture scaled by these factors; pixel centres lie at integers."""
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return np.linalg.inv(shift) @ np.diag([across, down, 1.0]) @ shift @ k
