"""A clip's camera track as a Rerun recording, to be turned about in Rerun's viewer: `rerun CLIP.rrd`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..records import LongtakeError
from .manifest import open_manifest
from .readers import read_clip
from .report import sidecar_pictures

_CURVES = ("frame_reproj_rmse_px", "frame_sampson_px", "frame_num_tracked", "frame_coverage", "frame_dyn_ratio")


def write_rrd(
    manifest: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, clip_id: str | None = None
) -> Path:
    """Write a recording: the path, a camera on its true time line, focal length and quality as curves, the pictures.

    Args:
        manifest: its folder.
        out: the recording; None for <clip_id>.rrd in that folder.
        clip_id: the clip; None for the manifest's only one with poses.

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
    source = open_manifest(manifest)
    if clip_id is None:
        ids = [str(row["clip_id"]) for row in source.rows(["clip_id", "status"]) if row["status"] != "failed"]
        if len(ids) != 1:
            raise LongtakeError(
                f"The manifest {source.folder} has {len(ids)} clips with poses: say which by its clip_id."
            )
        clip_id = ids[0]
    row = source.row(clip_id)
    if row["c2w"] is None:
        raise LongtakeError(f"Clip {clip_id} has no poses to show: {row['error']}")
    clip = read_clip(row)
    target = Path(out) if out is not None else source.folder / f"{clip_id}.rrd"
    draft = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
    except OSError as error:
        raise LongtakeError(f"Cannot write the recording {target}: {error.strerror}. Choose another place.") from error

    with rr.RecordingStream("longtake", recording_id=clip_id) as recording:
        recording.save(draft)
        recording.log("world", rr.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)
        centres = clip.world_from_cam[:, :3, 3]
        runs = np.split(np.arange(clip.num_frames), np.flatnonzero(np.diff(clip.pose_valid.astype(int))) + 1)
        strips = [centres[run] for run in runs if clip.pose_valid[run[0]] and len(run) > 1]
        recording.log("world/path", rr.LineStrips3D(strips), static=True)
        if row["frame_is_keyframe"] is not None:
            keyframes = centres[np.asarray(row["frame_is_keyframe"], bool) & clip.pose_valid]
            recording.log("world/keyframes", rr.Points3D(keyframes), static=True)
        pictures = dict(sidecar_pictures(source.folder, row))
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
                        image_from_camera=clip.k[i],
                        resolution=[clip.width, clip.height],
                        camera_xyz=rr.ViewCoordinates.RDF,
                    ),
                )
            else:
                recording.log("world/camera", rr.Clear(recursive=True))
            recording.log("curves/focal_px", rr.Scalars(clip.intrinsics[i, :2]))
            for name, values in curves.items():
                if np.isfinite(values[i]):
                    recording.log(f"curves/{name.removeprefix('frame_')}", rr.Scalars(values[i]))
            if i in pictures:
                recording.log("pictures", rr.EncodedImage(contents=pictures[i], media_type="image/jpeg"))
        recording.flush()
    draft.replace(target)
    return target
