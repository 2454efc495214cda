"""What a user knows of a video beforehand: its camera's poses, or its depth, in the forms that others write.

Poses are world_from_cam (camera to world) with OpenCV's camera axes, x right, y down, z forward: no file says so, and
one of the inverses looks as good. Depth is along the optical axis, of the upright picture.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from ..geometry import nearest_rotation, pose, rotation_from_quaternion
from ..records import BadMedia, VideoInfo, check_shape
from .depth_clip import MAX_PIXELS, check_rigid, decode_png, open_depth

MAX_BYTES = 1 << 30  # of a file of poses
MAX_PNG_BYTES = 1 << 26
ROUNDING = 1e-2  # by which a rotation may be off for digits that were left out
POSE_NAMES = ("c2w", "world_from_cam", "data", "pose", "poses")  # of the array in an .npz, the first that is there
# what NumPy raises for files that are none of its own
UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TokenError, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenPoses:
    """The camera's pose in every frame of a video, as known beforehand."""

    world_from_cam: NDArray[np.float64]  # [N, 4, 4] rigid; nan in frames that have none
    metric: bool  # translations are in metres

    def __post_init__(self) -> None:
        check_shape(self, "world_from_cam", (len(self.world_from_cam), 4, 4))
        there = np.isfinite(self.world_from_cam).all((1, 2))
        if there.sum() < 2:
            raise ValueError("fewer than two frames have a pose")
        check_rigid(self.world_from_cam[there])


# ---- poses -------------------------------------------------------------------------------------------------------


def read_poses(path: Path, num_frames: int, pts_ns: NDArray[np.int64], metric: bool) -> GivenPoses:
    """Poses from a file: one for each frame of the video, or with times or frame numbers of their own.

    .npy      [N, 4, 4] or [N, 3, 4]; nan where a frame has none
    .npz      the same under one of POSE_NAMES; `inds` numbers their frames (ViPE), `pose_valid` takes some away
    text      rows of 12 or 16 numbers (KITTI: the upper 3x4, or all, row by row), one a frame; or rows of 8 (TUM:
              seconds from the first frame, x y z, quaternion qx qy qz qw), each for the frame nearest in time

    Args:
        num_frames: N, of the video.
        pts_ns: [N] times of its frames, from the first.

    Raises:
        BadMedia: poses_unreadable, poses_do_not_fit (their number or times are not the video's) or poses_not_rigid.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _bad("poses_unreadable", path, f"has more than {MAX_BYTES >> 20} MiB")
        rows, where = _from_arrays(path) if path.suffix in (".npy", ".npz") else _from_text(path, pts_ns)
    except (*UNREADABLE, RuntimeError, MemoryError) as error:
        raise _bad("poses_unreadable", path, f"cannot be read as poses ({error})") from error
    if rows.dtype.kind not in "fiu" or rows.ndim != 3 or rows.shape[1:] not in ((4, 4), (3, 4)):
        what = f"{rows.dtype} {list(rows.shape)}"
        raise _bad("poses_unreadable", path, f"holds {what}, not numbers [frames, 4, 4] or [frames, 3, 4]")
    if where is None and len(rows) != num_frames:
        raise _bad("poses_do_not_fit", path, f"has {len(rows)} poses, but the video {num_frames} frames")
    if where is not None:
        outside = where[(where < 0) | (where >= num_frames)]
        if outside.size or len(where) != len(rows) or len(np.unique(where)) != len(where):
            which = f"frame {outside[0]}" if outside.size else "frames twice, or other than it has poses"
            raise _bad("poses_do_not_fit", path, f"numbers {which}; the video has frames 0 .. {num_frames - 1}")
    every = np.full((num_frames, 4, 4), np.nan)
    every[np.arange(num_frames) if where is None else where] = _rigid(path, rows.astype(np.float64))
    try:
        return GivenPoses(world_from_cam=every, metric=metric)
    except ValueError as error:
        raise _bad("poses_do_not_fit", path, f"does not do: {error}") from error


def _from_arrays(path: Path) -> tuple[NDArray, NDArray[np.int64] | None]:
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return np.array(loaded), None
    with loaded:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in loaded.zip.infolist()}
        name = next((name for name in POSE_NAMES if name in sizes), None)
        if name is None:
            raise ValueError(f"it holds {', '.join(sizes) or 'nothing'}, and none of {', '.join(POSE_NAMES)}")
        if sum(sizes.get(n, 0) for n in (name, "inds", "pose_valid")) > MAX_BYTES:
            raise ValueError("it unpacks to too much")
        rows = np.array(loaded[name])
        index = loaded["inds"] if "inds" in sizes else None
        valid = loaded["pose_valid"] if "pose_valid" in sizes else np.ones(rows.shape[:1], bool)
    if valid.shape != rows.shape[:1] or valid.dtype != bool:
        raise ValueError(f"its pose_valid is {valid.dtype} {list(valid.shape)} for {len(rows)} poses")
    if index is not None and (index.dtype.kind not in "iu" or index.ndim != 1):
        raise ValueError(f"its frame numbers inds are {index.dtype} {list(index.shape)}")
    rows = np.where(valid.reshape(-1, *[1] * (rows.ndim - 1)), rows, np.nan)
    return rows, None if index is None else index.astype(np.int64)


def _from_text(path: Path, pts_ns: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.int64] | None]:
    lines = (line.partition("#")[0].replace(",", " ").split() for line in path.read_text("utf-8").splitlines())
    rows = [[float(word) for word in line] for line in lines if line]
    widths = {len(row) for row in rows}
    if widths == {12} or widths == {16}:
        return np.array(rows).reshape(len(rows), -1, 4), None
    if widths != {8}:
        raise ValueError(f"rows of {sorted(widths)} numbers: 12 or 16 (KITTI) or 8 (TUM) are read")
    table = np.array(rows)
    norm = np.linalg.norm(table[:, 4:], axis=1)
    if not (np.abs(norm - 1) < ROUNDING).all():
        off = int(np.flatnonzero(~(np.abs(norm - 1) < ROUNDING))[0])
        raise ValueError(f"row {off + 1}: the quaternion qx qy qz qw has the length {norm[off]:.3g}, not 1")
    kept, where = _by_time(path, table[:, 0], pts_ns / 1e9)
    return pose(rotation_from_quaternion(table[kept][:, [7, 4, 5, 6]]), table[kept, 1:4]), where


def _by_time(path: Path, times_s: NDArray, frames_s: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows, and the frame of each: the frame nearest in time within half a frame, and its nearest row."""
    half = 0.5 * float(np.median(np.diff(frames_s))) if len(frames_s) > 1 else 0.0
    nearest = np.searchsorted((frames_s[1:] + frames_s[:-1]) / 2, times_s)
    apart = np.abs(frames_s[nearest] - times_s)
    best: dict[int, int] = {}
    for row in np.argsort(apart, kind="stable").tolist():
        if apart[row] <= half + 1e-6:
            best.setdefault(int(nearest[row]), row)
    if not best:
        raise _bad(
            "poses_do_not_fit",
            path,
            f"has times {times_s.min():.3f} to {times_s.max():.3f} s, and none within half a frame of the video's, 0 "
            f"to {frames_s[-1]:.3f} s: times count from the first frame",
        )
    where = np.array(sorted(best), np.int64)
    return np.array([best[int(f)] for f in where], np.int64), where


def _rigid(path: Path, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rigid motions [n, 4, 4] nearest to these, all nan where one has a nan."""
    there = np.isfinite(rows).all((1, 2))
    out = np.full((len(rows), 4, 4), np.nan)
    rotation = rows[there][:, :3, :3]
    number = np.flatnonzero(there)
    turned = np.flatnonzero(np.linalg.det(rotation) <= 0)
    if turned.size:
        words = "is mirrored (determinant below 0): were an odd number of axes flipped?"
        raise _bad("poses_not_rigid", path, f"pose {number[turned[0]]} {words}")
    nearest = nearest_rotation(rotation) if len(rotation) else rotation
    bent = np.flatnonzero(np.abs(rotation - nearest).max((1, 2), initial=0) > ROUNDING)
    if bent.size:
        size = float(np.cbrt(np.linalg.det(rotation[bent[0]])))
        raise _bad("poses_not_rigid", path, f"pose {number[bent[0]]} is no rigid motion: it scales by {size:.3g}")
    if rows.shape[1] == 4 and (odd := np.flatnonzero((rows[there][:, 3] != [0, 0, 0, 1]).any(1))).size:
        last = rows[number[odd[0]], 3]
        raise _bad("poses_not_rigid", path, f"pose {number[odd[0]]} has the last row {last}, not 0 0 0 1")
    out[there] = pose(nearest, rows[there][:, :3, 3])
    return out


# ---- depth -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenDepth:
    """Depth maps of some of a video's frames, as known beforehand."""

    frame_index: NDArray[np.int64]  # [M] frames of the video, increasing
    crop: tuple[int, int, int, int]  # x, y, w, h in display pixels: what the maps cover
    read: Callable[[int], tuple[NDArray[np.float32], NDArray[np.float32]]]
    # depth [H, W], nan where unknown, and confidence [H, W] in 0 .. 1 of frame `frame_index[i]`


def open_given_depth(path: Path, info: VideoInfo) -> GivenDepth:
    """Depth of a video's upright picture, in metres or another unit, from one of

    a folder  of 16-bit gray PNGs in thousandths (millimetres), 0 where unknown, named by their frame's number, which
              starts at 0: 000000.png; frames may be missing
    .npy      [frames, H, W] of floats, one map for each frame of the video, not positive or not finite where unknown
    .zip      a depth file of longtake

    Raises:
        BadMedia: depth_unreadable; depth_does_not_fit, where numbers of frames or shapes are not the video's.
    """
    whole = (0, 0, info.width, info.height)
    if path.is_dir():
        files = _numbered(path, info)
        read_png = _reader(path, info, lambda i: _png_depth(files[i][1]))
        return GivenDepth(frame_index=np.array([n for n, _ in files]), crop=whole, read=read_png)
    if path.suffix == ".zip":
        clip = open_depth(path)
        if clip.frame_index[-1] >= info.num_frames or not _within(clip.crop, whole):
            words = f"has frame {clip.frame_index[-1]} and covers {clip.crop}, but {_size(info)}"
            raise _bad("depth_does_not_fit", path, words)
        return GivenDepth(frame_index=clip.frame_index, crop=clip.crop, read=clip.read)
    try:
        maps = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise _bad("depth_unreadable", path, f"cannot be read as depth: a folder, .npy or .zip is ({error})") from error
    if not isinstance(maps, np.ndarray) or maps.ndim != 3 or maps.dtype.kind != "f":
        what = f"{maps.dtype} {list(maps.shape)}" if isinstance(maps, np.ndarray) else "several arrays"
        raise _bad("depth_unreadable", path, f"holds {what}, not floats [frames, height, width]")
    if len(maps) != info.num_frames:
        raise _bad("depth_does_not_fit", path, f"has {len(maps)} maps, but {_size(info)}")
    read = _reader(path, info, lambda i: np.asarray(maps[i], np.float32))
    return GivenDepth(frame_index=np.arange(len(maps)), crop=whole, read=read)


def cut_depth(
    depth: NDArray[np.float32], crop: tuple[int, int, int, int], to: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """The part of a map [H, W] of the picture's `crop` that shows `to`, by its nearest pixels; nan outside of it."""
    if crop == to:
        return depth
    index = []
    for axis in (0, 1):
        size = depth.shape[1 - axis]
        count = max(1, round(to[2 + axis] * size / crop[2 + axis]))
        at = (to[axis] + (np.arange(count) + 0.5) * to[2 + axis] / count - crop[axis]) * size / crop[2 + axis]
        index.append(np.floor(at).astype(np.int64))
    (u, v), (height, width) = index, depth.shape
    outside = ((v < 0) | (v >= height))[:, None] | ((u < 0) | (u >= width))
    out = depth[np.ix_(v.clip(0, height - 1), u.clip(0, width - 1))]
    out[outside] = np.nan
    return out


def _numbered(folder: Path, info: VideoInfo) -> list[tuple[int, Path]]:
    """The PNGs of the folder with the numbers that name them, in order."""
    files = sorted((int(p.stem), p) for p in folder.iterdir() if re.fullmatch(r"[0-9]{1,9}\.png", p.name))
    if not files:
        raise _bad("depth_unreadable", folder, "holds no PNG that is named by a frame's number, such as 000000.png")
    for (a, _), (b, path) in pairwise(files):
        if a == b:
            raise _bad("depth_does_not_fit", path, "is not the only one with this number")
    if files[-1][0] >= info.num_frames:
        raise _bad("depth_does_not_fit", files[-1][1], f"names a frame, but {_size(info)}; numbers start at 0")
    return files


def _png_depth(path: Path) -> NDArray[np.float32]:
    try:
        if path.stat().st_size > MAX_PNG_BYTES:
            raise _bad("depth_unreadable", path, f"has more than {MAX_PNG_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise _bad("depth_unreadable", path, f"cannot be read ({error.strerror})") from error
    return decode_png(data, None, np.uint16, str(path)).astype(np.float32) / np.float32(1000)


def _reader(
    path: Path, info: VideoInfo, load: Callable[[int], NDArray[np.float32]]
) -> Callable[[int], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """A reader that checks each map's size by the first's, and marks what is unknown."""
    height, width = load(0).shape
    if width * height > MAX_PIXELS or abs(width * info.height / (height * info.width) - 1) > 0.02:
        words = f"has maps of {width} x {height}, but {_size(info)}: they must show the whole upright picture"
        raise _bad("depth_does_not_fit", path, words)

    def read(i: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        depth = load(i)
        if depth.shape != (height, width):
            words = f"has maps of {width} x {height} and of {depth.shape[1]} x {depth.shape[0]}"
            raise _bad("depth_does_not_fit", path, words)
        known = np.isfinite(depth) & (depth > 0)
        return np.where(known, depth, np.float32(np.nan)), known.astype(np.float32)

    return read


def _size(info: VideoInfo) -> str:
    return f"the video has {info.num_frames} frames of {info.width} x {info.height}"


def _within(crop: tuple[int, int, int, int], whole: tuple[int, int, int, int]) -> bool:
    return crop[0] + crop[2] <= whole[2] and crop[1] + crop[3] <= whole[3]


def _bad(reason: str, path: Path, words: str) -> BadMedia:
    return BadMedia(reason, f"{path} {words}")
