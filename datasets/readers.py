"""Rows read back: arrays in their shapes, for everything that uses a manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """The camera of one clip; arrays in the manifest's conventions, float64."""

    clip_id: str
    uri: str
    width: int
    height: int
    frame_start: int  # index in `uri` of the clip's first frame
    image_uris: tuple[str, ...]  # the files of an image folder, empty for a video
    times_s: NDArray[np.float64]  # [T] from the first frame of the source
    world_from_cam: NDArray[np.float64]  # [T, 4, 4] NaN where there is no pose
    pose_valid: NDArray[np.bool_]  # [T]
    intrinsics: NDArray[np.float64]  # [T, 4] fx, fy, cx, cy
    distortion: tuple[float, ...]  # k1, k2, or empty

    @property
    def num_frames(self) -> int:
        return len(self.times_s)

    @property
    def k(self) -> NDArray[np.float64]:
        """[T, 3, 3] camera matrices."""
        out = np.zeros((self.num_frames, 3, 3))
        out[:, 0, 0], out[:, 1, 1], out[:, 0, 2], out[:, 1, 2] = self.intrinsics.T
        out[:, 2, 2] = 1.0
        return out

    @property
    def image_names(self) -> list[str]:
        """[T] how exported models call the frames.

        For an image folder the files' names, below the folder that holds them all; for a video what
        `ffmpeg -i VIDEO -fps_mode passthrough -start_number 0 images/frame_%06d.png` writes.
        """
        if self.image_uris:
            parent = os.path.commonpath([os.path.dirname(uri) for uri in self.image_uris])
            return [os.path.relpath(uri, parent) for uri in self.image_uris]
        return [f"frame_{self.frame_start + i:06d}.png" for i in range(self.num_frames)]


CLIP_COLUMNS = (
    "clip_id status uri width height frame_start num_frames image_uris start_s fps_num fps_den pts_s c2w pose_valid "
    "intrinsics distortion"
).split()


def read_clip(row: Mapping[str, Any]) -> Clip:
    """The clip of a row that has poses (at least `CLIP_COLUMNS` of it).

    Raises:
        ValueError: the row has none, being of a clip that failed.
    """
    if row["c2w"] is None:
        raise ValueError(f"clip {row['clip_id']} has status {row['status']} and no poses")
    c2w = np.asarray(row["c2w"], np.float64).reshape(-1, 3, 4)
    pose_valid = np.asarray(row["pose_valid"], bool)
    world_from_cam = np.full((len(c2w), 4, 4), np.nan)
    world_from_cam[:, :3] = c2w
    world_from_cam[pose_valid, 3] = (0.0, 0.0, 0.0, 1.0)
    return Clip(
        clip_id=row["clip_id"],
        uri=row["uri"],
        width=row["width"],
        height=row["height"],
        frame_start=row["frame_start"],
        image_uris=tuple(row["image_uris"] or ()),
        times_s=frame_times_s(row),
        world_from_cam=world_from_cam,
        pose_valid=pose_valid,
        intrinsics=np.asarray(row["intrinsics"], np.float64).reshape(-1, 4),
        distortion=tuple(float(k) for k in row["distortion"]) if row["distortion"] is not None else (),
    )


def frame_times_s(row: Mapping[str, Any]) -> NDArray[np.float64]:
    """[T] seconds from the first frame of the source."""
    if row["pts_s"] is not None:
        return np.asarray(row["pts_s"], np.float64)
    return row["start_s"] + np.arange(row["num_frames"]) * (row["fps_den"] / row["fps_num"])
