"""Rows read back: arrays in their shapes, for everything that uses a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    from .manifest import Manifest
    from .training import TrainingClips, TrainingStream


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
    "clip_id status uri sha256 bytes width height frame_start num_frames image_uris start_s fps_num fps_den pts_s c2w "
    "pose_valid intrinsics distortion"
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


PICTURE_COLUMNS = (
    "uri image_uris container width height coded_width coded_height rotation_deg mirrored sar_num sar_den interlaced "
    "origin_s frame_start"
).split()


class ReadPictures(Protocol):
    """How a manifest decodes: `pipelines.frames.read_pictures`, given to it by `longtake.open_manifest`."""

    def __call__(
        self,
        path: str,
        row: Mapping[str, Any],
        times_s: NDArray[np.float64],
        indices: NDArray[np.int64],
        *,
        crop: tuple[int, int, int, int],
        size: tuple[int, int],
    ) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class Selection:
    """Clips of a manifest, in an order: `Manifest.filter` makes one. Only their ids are in memory."""

    manifest: Manifest
    clip_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __iter__(self) -> Iterator[Clip]:
        """The cameras of the clips that have one, each read when it is asked for."""
        for clip_id in self.clip_ids:
            row = self.manifest.row(clip_id, CLIP_COLUMNS)
            if row["c2w"] is not None:
                yield read_clip(row)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows as an Arrow table, in the manifest's order."""
        import pyarrow as pa
        import pyarrow.compute as pc

        return self.manifest.table(columns, pc.field("clip_id").isin(pa.array(self.clip_ids, pa.string())))

    @overload
    def to_torch(
        self,
        *,
        frames: int,
        fps: float,
        size: tuple[int, int],
        seed: int = 0,
        pictures: bool = True,
        stream: Literal[False] = False,
    ) -> TrainingClips: ...
    @overload
    def to_torch(
        self,
        *,
        frames: int,
        fps: float,
        size: tuple[int, int],
        seed: int = 0,
        pictures: bool = True,
        stream: Literal[True],
    ) -> TrainingStream: ...
    def to_torch(
        self,
        *,
        frames: int,
        fps: float,
        size: tuple[int, int],
        seed: int = 0,
        pictures: bool = True,
        stream: bool = False,
    ) -> TrainingClips | TrainingStream:
        """A PyTorch dataset of windows of these clips: see `training.TrainingClips` for what a sample holds.

        Clips that have no window of so many posed frames at that rate are left out; `skipped` says how many and why.

        Args:
            frames: of each window, 8k + 1.
            fps: their rate; of a clip those frames are taken that are shown nearest to the wanted times.
            size: height and width of the pictures; the clip's scene is cropped about its middle, and scaled.
            seed: of the order and of where in its clip a window begins.
            pictures: False leaves the files alone and gives the cameras only.
            stream: an iterable dataset that shards itself over ranks and workers, instead of a map-style one.

        Raises:
            LongtakeError: a number of frames that is not 8k + 1, or none of the clips has such a window.
        """
        from .training import TrainingClips, TrainingStream, Window

        window = Window(frames=frames, fps=fps, size=size, seed=seed, pictures=pictures)
        clips = TrainingClips(self, window)
        return TrainingStream(clips) if stream else clips
