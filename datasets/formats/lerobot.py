"""LeRobot's dataset layout, version 3.0: one episode for each clip.

    meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet      one row for each frame
    videos/observation.images.camera/chunk-000/file-000.mp4      with media: each clip's video file as it is

Frames have observation.c2w [12] float32 (3x4 row-major camera to world, OpenCV axes), observation.intrinsics [4] and
observation.pose_valid; where that is false the pose is NaN. A dataset has one frame rate and even steps: clips with
another rate than the first one's, or with uneven times, are left out. `task` is the clip's caption.

Reading, an episode is a clip. LeRobot has no name for a camera's pose: where the column is another than ours, it is
asked for, and so is the video of a dataset with several cameras. Poses are matrices of 3x4 or 4x4 in rows, or seven
numbers that info.json names x, y, z, qx, qy, qz, qw, in whatever order; other seven numbers are not guessed at.
Intrinsics and pose_valid are read where they have our names. Times are frame_index / fps, as LeRobot defines them,
from the episode's beginning, or from the source's where meta/episodes has our start_s. Exact, bit for bit, but for
quaternions.

Source: lerobot 0.4.4, datasets/utils.py and lerobot_dataset.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadMedia
from ...geometry import pose, rotation_from_quaternion
from ..cameras import MAX_FRAMES, Cameras, Refused, unit_quaternions
from ..readers import Clip
from ..safe import confined, finite, open_parquet, read_json, safe_id
from .arrays import as_intrinsics, as_poses
from .output import Output

COLUMNS = ("caption", "split", "start_s", "fps_num", "fps_den", "pts_s")
POSE, INTRINSICS, VALID = "observation.c2w", "observation.intrinsics", "observation.pose_valid"
FEATURES = {
    POSE: ("float32", [12]),
    INTRINSICS: ("float32", [4]),
    VALID: ("bool", [1]),
    "timestamp": ("float32", [1]),
    "frame_index": ("int64", [1]),
    "episode_index": ("int64", [1]),
    "index": ("int64", [1]),
    "task_index": ("int64", [1]),
}
VIDEO = "observation.images.camera"
CHUNK = 1000  # files in a chunk
QUATERNION = ("x", "y", "z", "qx", "qy", "qz", "qw")
MATRICES = ([12], [16], [3, 4], [4, 4])
MAX_EPISODES = 1_000_000


# ---- writing -----------------------------------------------------------------------------------------------------


def write(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """One data file, whose row groups are the episodes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    left: dict[str, str] = {}
    episodes: list[dict[str, Any]] = []
    tasks: dict[str, int] = {}
    stats = {name: _Stats() for name in FEATURES}
    fps: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    total = 0
    schema = pa.schema([(name, _arrow(pa, *kind)) for name, kind in FEATURES.items()])
    with (
        out.draft("data/chunk-000/file-000.parquet") as (file, _path),
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for clip, row in samples:
            rate = (row["fps_num"], row["fps_den"])
            if row["pts_s"] is not None or None in rate or fps not in (None, rate):
                left[clip.clip_id] = "uneven_times" if row["pts_s"] is not None or None in rate else "other_frame_rate"
                continue
            video = out.video(row)
            if out.media != "none" and (video is None or size not in (None, (clip.width, clip.height))):
                left[clip.clip_id] = "no_video" if video is None else "other_size"
                continue
            fps, size = rate, (clip.width, clip.height)
            n, number = clip.num_frames, len(episodes)
            task = tasks.setdefault(row["caption"] or "", len(tasks))
            columns = {
                POSE: clip.world_from_cam[:, :3].reshape(n, 12).astype(np.float32),
                INTRINSICS: clip.intrinsics.astype(np.float32),
                VALID: clip.pose_valid,
                "timestamp": (np.arange(n) * (rate[1] / rate[0])).astype(np.float32),
                "frame_index": np.arange(n),
                "episode_index": np.full(n, number),
                "index": np.arange(total, total + n),
                "task_index": np.full(n, task),
            }
            arrays = [_column(pa, columns[f.name], f.type) for f in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=n)
            for name, values in columns.items():
                stats[name].add(values.reshape(n, -1))
            episode = {
                "episode_index": number,
                "tasks": [row["caption"] or ""],
                "length": n,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": total,
                "dataset_to_index": total + n,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                "clip_id": clip.clip_id,
                "width": clip.width,
                "height": clip.height,
                "frame_start": clip.frame_start,
                "start_s": float(clip.times_s[0]),
            }
            if video is not None:
                start = clip.frame_start * rate[1] / rate[0]
                episode |= {
                    f"videos/{VIDEO}/chunk_index": number // CHUNK,
                    f"videos/{VIDEO}/file_index": number % CHUNK,
                    f"videos/{VIDEO}/from_timestamp": start,
                    f"videos/{VIDEO}/to_timestamp": start + n * rate[1] / rate[0],
                }
                out.put(video, f"videos/{VIDEO}/chunk-{number // CHUNK:03d}/file-{number % CHUNK:03d}.mp4")
            episodes.append(episode)
            total += n
    _meta(out, pa, pq, episodes, tasks, stats, fps, size, total)
    return left


def _meta(
    out: Output, pa: Any, pq: Any, episodes: Any, tasks: Any, stats: Any, fps: Any, size: Any, total: int
) -> None:
    features: dict[str, Any] = {
        name: {"dtype": kind, "shape": shape, "names": None} for name, (kind, shape) in FEATURES.items()
    }
    rate = None if fps is None else (fps[0] // fps[1] if fps[0] % fps[1] == 0 else fps[0] / fps[1])
    if out.media != "none" and size is not None:
        facts = {"video.height": size[1], "video.width": size[0], "video.fps": rate, "video.channels": 3}
        names = ["height", "width", "channels"]
        features[VIDEO] = {"dtype": "video", "shape": [size[1], size[0], 3], "names": names, "info": facts}
    out.json(
        "meta/info.json",
        {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(episodes),
            "total_frames": total,
            "total_tasks": len(tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": rate,
            "splits": {"train": f"0:{len(episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            if VIDEO in features
            else None,
            "features": features,
        },
    )
    out.json("meta/stats.json", {name: s.tree() for name, s in stats.items()})
    if episodes:
        with out.draft("meta/episodes/chunk-000/file-000.parquet") as (file, _path):
            pq.write_table(pa.Table.from_pylist(episodes), file)
    index = "__index_level_0__"  # pandas' name for an index without one: LeRobot looks tasks up by it
    table = pa.table(
        {"task_index": pa.array(list(tasks.values()), pa.int64()), index: pa.array(list(tasks), pa.string())}
    )
    about = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
            for name, field, kind, numpy_kind in (
                ("task_index", "task_index", "int64", "int64"),
                (None, index, "unicode", "object"),
            )
        ],
        "pandas_version": "2.0.0",
    }
    with out.draft("meta/tasks.parquet") as (file, _path):
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), file)


class _Stats:
    """Least, greatest, mean and deviation of rows as they come; NaN is no value."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, np.float64(0), np.float64(0)
        self.low, self.high = np.float64(np.inf), np.float64(-np.inf)

    def add(self, values: np.ndarray) -> None:
        v = values.astype(np.float64)
        v = v[np.isfinite(v).all(1)]
        if len(v):
            self.count += len(v)
            self.sum, self.squares = self.sum + v.sum(0), self.squares + (v * v).sum(0)
            self.low, self.high = np.minimum(self.low, v.min(0)), np.maximum(self.high, v.max(0))

    def tree(self) -> dict[str, Any]:
        if not self.count:
            return {"count": [0]}
        mean = self.sum / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean * mean, 0))
        values = {"min": self.low, "max": self.high, "mean": mean, "std": deviation}
        return {name: v.tolist() for name, v in values.items()} | {"count": [self.count]}


def _arrow(pa: Any, kind: str, shape: list[int]) -> Any:
    value = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}[kind]
    return value if shape == [1] else pa.list_(value, shape[0])


def _column(pa: Any, values: np.ndarray, kind: Any) -> Any:
    if values.ndim == 1:
        return pa.array(values, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), values.shape[1])


# ---- reading -----------------------------------------------------------------------------------------------------


def read(source: Path, *, pose_column: str = POSE, video_column: str | None = None) -> Iterator[Cameras | Refused]:
    """One clip for each episode, in the order in which data/ has them.

    Args:
        pose_column: of the camera's poses.
        video_column: of the camera's video; None where there is only one.

    Raises:
        BadMedia: this is no LeRobot dataset of version 3, or it has no such columns.
    """
    info = _info(source)
    features = info["features"]
    videos = [name for name, about in features.items() if about.get("dtype") == "video"]
    if video_column is None and len(videos) == 1:
        video_column = videos[0]
    elif video_column is not None and video_column not in videos:
        raise BadMedia("no_media", f"{source}: no video {video_column[:80]}, but {', '.join(videos) or 'none'}.")
    kind = _pose_kind(source, features, pose_column)
    columns = ["episode_index", "frame_index", pose_column, *(n for n in (INTRINSICS, VALID) if n in features)]
    episodes = _episodes(source, video_column)
    found = sorted(source.glob("data/chunk-*/file-*.parquet"))
    if not found:
        raise BadMedia("no_cameras", f"{source}: there is no data/chunk-*/file-*.parquet.")
    seen: set[int] = set()
    for number, values in _by_episode(source, found, columns):
        episode = episodes.get(number, {})
        name = f"episode_{number:06d}"
        with suppress(BadMedia):
            name = safe_id(episode["clip_id"], source) if "clip_id" in episode else name
        try:
            if number in seen:
                raise BadMedia("broken_cameras", f"{source}: the rows of episode {number} stand in several places.")
            seen.add(number)
            yield _cameras(source, name, episode, values, kind, pose_column, video_column, info)
        except BadMedia as error:
            yield Refused(name=name, error=error)


def _info(source: Path) -> dict[str, Any]:
    where = source / "meta" / "info.json"
    info = read_json(confined(source, "meta/info.json"))
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not isinstance(version, str) or not version.startswith("v3."):
        raise BadMedia(
            "unreadable",
            f"{where}: no LeRobot dataset of version 3, but {str(version)[:40]}. LeRobot's own scripts convert others.",
        )
    if not finite(info.get("fps")) or not 0 < info["fps"] < 1e6:
        raise BadMedia("unreadable", f"{where}: fps is {str(info.get('fps'))[:40]}.")
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(about, dict) for about in features.values()):
        raise BadMedia("unreadable", f"{where}: features is no table of tables.")
    return info


def _pose_kind(source: Path, features: dict[str, Any], column: str) -> list[int] | None:
    """Where each of QUATERNION stands in the column's seven numbers; None for matrices."""
    about = features.get(column)
    if about is None:
        able = [
            name for name, f in features.items() if f.get("shape") in (*MATRICES, [7]) and f.get("dtype") != "video"
        ]
        raise BadMedia(
            "no_cameras",
            f"{source}: no column {column[:80]}. Pass --pose-column, the one with the camera's poses"
            + (f"; by their shapes, it may be one of {', '.join(able)[:400]}." if able else "; none has such a shape."),
        )
    if about.get("shape") in MATRICES:
        return None
    names = about.get("names")
    names = next(iter(names.values()), None) if isinstance(names, dict) and len(names) == 1 else names
    if about.get("shape") == [7] and isinstance(names, list) and sorted(map(str, names)) == sorted(QUATERNION):
        return [names.index(name) for name in QUATERNION]
    raise BadMedia(
        "no_cameras",
        f"{source}: {column[:80]} has the shape {str(about.get('shape'))[:40]} and the names {str(names)[:120]}. Poses "
        f"are matrices of 3x4 or 4x4, or seven numbers that info.json names {', '.join(QUATERNION)}.",
    )


def _episodes(source: Path, video: str | None) -> dict[int, dict[str, Any]]:
    """What meta/episodes says of each episode."""
    wanted = ["episode_index", "length", "tasks", "clip_id", "width", "height", "frame_start", "start_s"]
    wanted += [f"videos/{video}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    out: dict[int, dict[str, Any]] = {}
    for path in sorted(source.glob("meta/episodes/chunk-*/file-*.parquet")):
        with open_parquet(confined(source, path.relative_to(source).as_posix())) as file:
            there = [name for name in wanted if name in file.schema_arrow.names]
            if file.metadata.num_rows + len(out) > MAX_EPISODES:
                raise BadMedia("unreadable", f"{path}: more than {MAX_EPISODES} episodes.")
            for row in file.read(columns=there).to_pylist():
                if isinstance(row.get("episode_index"), int):
                    out[row["episode_index"]] = row
    return out


def _by_episode(source: Path, paths: list[Path], columns: list[str]) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """The rows of one episode after the other; an episode may go on in the next file."""
    number: int | None = None
    held: list[dict[str, NDArray[Any]]] = []
    for path in paths:
        with open_parquet(confined(source, path.relative_to(source).as_posix())) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise BadMedia("broken_cameras", f"{path}: no column {', '.join(missing)[:200]}.")
            for batch in file.iter_batches(columns=columns, use_threads=False):
                values = {name: _numbers(batch[name], f"{path}: {name}") for name in columns}
                index = values["episode_index"]
                if index.ndim != 1 or index.dtype.kind not in "iu":
                    raise BadMedia("broken_cameras", f"{path}: episode_index is {index.dtype} {index.shape}.")
                ends = [*(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]
                for start, end in zip([0, *ends], ends, strict=False):
                    if start == end:
                        continue
                    if number is not None and number != int(index[start]):
                        yield number, _joined(held, path)
                        held = []
                    number = int(index[start])
                    held.append({name: v[start:end] for name, v in values.items()})
                    if sum(len(part["episode_index"]) for part in held) > MAX_FRAMES:
                        raise BadMedia("too_many_frames", f"{path}: an episode of more than {MAX_FRAMES} frames.")
    if number is not None:
        yield number, _joined(held, paths[-1])


def _joined(parts: list[dict[str, NDArray[Any]]], path: Path) -> dict[str, NDArray[Any]]:
    if len({(name, v.shape[1:]) for part in parts for name, v in part.items()}) > len(parts[0]):
        raise BadMedia("broken_cameras", f"{path}: a column whose rows have several lengths.")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _numbers(column: Any, where: str) -> NDArray[Any]:
    """[N], or [N, ...] where rows are lists that all have one length, or lists of such."""
    import pyarrow as pa

    shape = [len(column)]
    if isinstance(column, pa.ExtensionArray):  # the arrays of Hugging Face datasets
        column = column.storage
    while (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    ):
        lengths = column.value_lengths().unique().to_pylist()
        if column.null_count or len(lengths) > 1:
            raise BadMedia("broken_cameras", f"{where}: rows without a value, or of several lengths.")
        shape.append(lengths[0] if lengths else 0)
        column = column.flatten()
    if column.null_count or not (
        pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    ):
        raise BadMedia("broken_cameras", f"{where}: {column.type}, or rows without a value; numbers are wanted.")
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def _cameras(
    source: Path,
    name: str,
    episode: dict[str, Any],
    values: dict[str, NDArray[Any]],
    kind: list[int] | None,
    pose_column: str,
    video: str | None,
    info: dict[str, Any],
) -> Cameras:
    where = f"{source}: {name}"
    table, index = values[pose_column], values["frame_index"]
    n = len(index)
    if "length" in episode and episode["length"] != n:
        raise BadMedia(
            "other_frame_count", f"{where}: meta/episodes speaks of {episode['length']} frames, data of {n}."
        )
    if index.ndim != 1 or index.dtype.kind not in "iu" or index[0] < 0 or index[-1] >= MAX_FRAMES:
        raise BadMedia("broken_cameras", f"{where}: frame_index is {index.dtype} {index.shape}.")
    poses = _poses(table.reshape(n, -1), kind, where)
    if VALID in values:
        valid = values[VALID].reshape(n, -1)
        if valid.dtype != bool or valid.shape != (n, 1):
            raise BadMedia("broken_cameras", f"{where}: {VALID} is {valid.dtype} {valid.shape}.")
        poses[~valid[:, 0]] = np.nan
    k = values.get(INTRINSICS)
    if k is not None and k.shape == (n, 9):
        k = k.reshape(n, 3, 3)
    media, start = _media(source, episode, video, info["fps"])
    start_s = episode.get("start_s")
    return Cameras(
        name=name,
        poses=poses,
        intrinsics=as_intrinsics(k, n, where),
        size=_size(episode, info["features"].get(video, {})),
        times_s=index.astype(np.int64) / info["fps"] + (start_s if isinstance(start_s, float) else 0.0),
        frames=start + index.astype(np.int64),
        media=media,
        caption=_caption(episode),
    )


def _poses(table: NDArray[Any], kind: list[int] | None, where: str) -> NDArray[np.float64]:
    if kind is None and table.shape[1] in (12, 16):
        return as_poses(table.reshape(len(table), -1, 4), where)
    if kind is None or table.shape[1] != 7 or table.dtype.kind != "f":
        raise BadMedia("broken_cameras", f"{where}: poses are {table.dtype} {table.shape}, not what info.json says.")
    x, y, z, qx, qy, qz, qw = table[:, kind].astype(np.float64).T
    q = unit_quaternions(np.column_stack([qw, qx, qy, qz]), where)
    return pose(rotation_from_quaternion(q), np.column_stack([x, y, z]))


def _media(source: Path, episode: dict[str, Any], video: str | None, fps: float) -> tuple[str | None, int]:
    """The episode's video, relative to the dataset, and the frame of it with which the episode begins."""
    chunk, file, start = (episode.get(f"videos/{video}/{n}") for n in ("chunk_index", "file_index", "from_timestamp"))
    if video is None or not isinstance(chunk, int) or not isinstance(file, int) or not isinstance(start, float):
        first = episode.get("frame_start")
        return None, first if isinstance(first, int) and 0 <= first < MAX_FRAMES else 0
    first = start * fps
    if not 0 <= first < MAX_FRAMES or not math.isclose(first, round(first), abs_tol=0.01):
        raise BadMedia(
            "other_frame_count", f"{source}: an episode begins at {start} s of its video, between two frames."
        )
    return f"videos/{video}/chunk-{chunk:03d}/file-{file:03d}.mp4", round(first)


def _size(episode: dict[str, Any], about: dict[str, Any]) -> tuple[int, int] | None:
    """Of the pictures: as we write it, else as LeRobot describes the video."""
    shape, names = about.get("shape"), about.get("names")
    size = (episode.get("width"), episode.get("height"))
    if None in size and isinstance(shape, list) and isinstance(names, list) and len(shape) == len(names) == 3:
        found = dict(zip(map(str, names), shape, strict=True))
        size = (found.get("width"), found.get("height"))
    return size if all(isinstance(s, int) and 0 < s < 1 << 20 for s in size) else None  # type: ignore[return-value]


def _caption(episode: dict[str, Any]) -> str | None:
    tasks = episode.get("tasks")
    return tasks[0] or None if isinstance(tasks, list) and tasks and isinstance(tasks[0], str) else None
