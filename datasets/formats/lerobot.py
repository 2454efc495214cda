"""LeRobot's dataset layout, version 3.0: one episode for each clip.

    meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet      one row for each frame
    videos/observation.images.camera/chunk-000/file-000.mp4      with media: each clip's video file as it is

Frames have observation.c2w [12] float32 (3x4 row-major camera to world, OpenCV axes), observation.intrinsics [4] and
observation.pose_valid; where that is false the pose is NaN. A dataset has one frame rate and even steps: clips with
another rate than the first one's, or with uneven times, are left out. `task` is the clip's caption.

Source: lerobot 0.4.4, datasets/utils.py and lerobot_dataset.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..readers import Clip
from .output import Output

COLUMNS = ("caption", "split", "start_s", "fps_num", "fps_den", "pts_s")
FEATURES = {
    "observation.c2w": ("float32", [12]),
    "observation.intrinsics": ("float32", [4]),
    "observation.pose_valid": ("bool", [1]),
    "timestamp": ("float32", [1]),
    "frame_index": ("int64", [1]),
    "episode_index": ("int64", [1]),
    "index": ("int64", [1]),
    "task_index": ("int64", [1]),
}
VIDEO = "observation.images.camera"
CHUNK = 1000  # files in a chunk


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
                "observation.c2w": clip.world_from_cam[:, :3].reshape(n, 12).astype(np.float32),
                "observation.intrinsics": clip.intrinsics.astype(np.float32),
                "observation.pose_valid": clip.pose_valid,
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
