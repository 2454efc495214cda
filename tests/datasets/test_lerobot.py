"""LeRobot datasets of others: which column has the poses, how episodes share files, and what is not guessed at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtake.datasets.importers import ImportConfig, imported_row, read_collection
from longtake.datasets.readers import read_clip
from longtake.errors import BadMedia, LongtakeError
from longtake.geometry import pose, quaternion_from_rotation, rotation_from_vector

FPS = 10
LENGTHS = (8, 12, 10)
TWELVE = pa.list_(pa.float32(), 12)
CAMERAS = ("observation.images.front", "observation.images.wrist")


def path(count: int, seed: int) -> np.ndarray:
    s = np.linspace(0, 1, count)
    turn = rotation_from_vector(np.column_stack([0.1 * s, 0.5 * s, -0.2 * seed * s]))
    return pose(turn, np.column_stack([s, 0.3 * s**2, np.sin(3 * s)]))


PATHS = [path(n, i) for i, n in enumerate(LENGTHS)]


def dataset(folder: Path, column: str, values: list[Any], about: dict[str, Any], cameras: tuple[str, ...] = ()) -> Path:
    """Three episodes whose rows lie in two files, the second episode in both, and whose films lie in one."""
    index = np.concatenate([np.arange(n) for n in LENGTHS])
    table = pa.table(
        {
            "episode_index": np.repeat(np.arange(3), LENGTHS),
            "frame_index": index,
            "timestamp": (index / FPS).astype(np.float32),
            column: pa.array([v for path in values for v in path]),
        }
    )
    (folder / "data" / "chunk-000").mkdir(parents=True)
    for i, part in enumerate((table.slice(0, 15), table.slice(15))):
        pq.write_table(part, folder / "data" / "chunk-000" / f"file-{i:03d}.parquet", row_group_size=4)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    episodes = [{"episode_index": i, "length": n, "tasks": [f"task {i}"]} for i, n in enumerate(LENGTHS)]
    for name in cameras:
        for episode, start in zip(episodes, starts.tolist(), strict=True):
            facts = {"chunk_index": 0, "file_index": 0, "from_timestamp": start / FPS}
            episode |= {f"videos/{name}/{key}": value for key, value in facts.items()}
        film = folder / "videos" / name / "chunk-000" / "file-000.mp4"
        film.parent.mkdir(parents=True)
        film.write_bytes(name.encode())
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    features = {
        name: {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]} for name in cameras
    }
    features |= {column: about, "action": {"dtype": "float32", "shape": [7], "names": None}}
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


def config(**known: Any) -> ImportConfig:
    stated: dict[str, Any] = {"direction": "c2w", "convention": "opencv", "scale": "metric", "license": None}
    stated |= {"intrinsics": (500.0, 500.0, 319.5, 239.5), "size": (640, 480)}
    return ImportConfig(format="lerobot", **stated | known)


def rows(source: Path, settings: ImportConfig, made: Any, probe: Any = None) -> list[dict[str, Any]]:
    return [
        imported_row(clip, settings, made.provenance, source.parent / "imported")
        for clip in read_collection(source, settings, probe)
    ]


@pytest.mark.parametrize("kind", ["12", "16", "3x4", "4x4", "quaternion"])
def test_poses_in_a_column_that_is_named(tmp_path, made, kind):
    about: dict[str, Any] = {"dtype": "float32", "names": None}
    if kind == "quaternion":
        names = ["qw", "qx", "qy", "qz", "x", "y", "z"]
        values = [np.column_stack([quaternion_from_rotation(p[:, :3, :3]), p[:, :3, 3]]).tolist() for p in PATHS]
        about |= {"shape": [7], "names": {"axes": names}}
    else:
        count = 3 if kind in ("12", "3x4") else 4
        values = [(p[:, :count] if "x" in kind else p[:, :count].reshape(len(p), -1)).tolist() for p in PATHS]
        about |= {"shape": [int(n) for n in kind.split("x")]}
    source = dataset(tmp_path / "set", "observation.camera_pose", values, about)
    found = rows(source, config(pose_column="observation.camera_pose"), made)
    assert [row["caption"] for row in found] == ["task 0", "task 1", "task 2"]
    for row, was in zip(found, PATHS, strict=True):
        clip = read_clip(row)
        np.testing.assert_allclose(clip.world_from_cam, was, rtol=0, atol=1e-6)  # float32 rows
        np.testing.assert_allclose(clip.times_s, np.arange(len(was)) / FPS, rtol=0, atol=1e-9)
        assert (clip.frame_start, clip.width, clip.height) == (0, 640, 480)


MATRIX = {"dtype": "float32", "shape": [12], "names": None}
FLAT = [p[:, :3].reshape(len(p), 12).tolist() for p in PATHS]


def test_the_film_of_one_camera_that_many_episodes_share(tmp_path, made):
    source = dataset(tmp_path / "set", "pose", FLAT, MATRIX, CAMERAS)
    asked = config(pose_column="pose", video_column=CAMERAS[1], media="copy", size=None)
    found = rows(source, asked, made, lambda path, stills, fps: made.video(path=str(path), frames=30))
    starts = [0, 8, 20]
    assert [(row["frame_start"], row["num_frames"]) for row in found] == list(zip(starts, LENGTHS, strict=True))
    for row in found:
        assert (tmp_path / "imported" / row["uri"]).read_bytes() == CAMERAS[1].encode()
    for row in rows(source, config(pose_column="pose", media="copy"), made):  # which of the two is not guessed
        assert row["status"] == "failed" and "names no video" in row["error"]
    with pytest.raises(BadMedia, match=r"no video observation.depth, but observation.images.front, observ"):
        rows(source, config(pose_column="pose", video_column="observation.depth"), made)


def test_what_is_not_said_is_not_guessed(tmp_path, made):
    source = dataset(tmp_path / "set", "pose", FLAT, MATRIX)
    with pytest.raises(BadMedia, match=r"no column observation.c2w. Pass --pose-column.* one of pose, action\."):
        rows(source, config(), made)
    with pytest.raises(BadMedia, match=r"action has the shape \[7\] and the names None"):
        rows(source, config(pose_column="action"), made)
    with pytest.raises(LongtakeError, match=r"does not say it.*--pose"):
        config(direction=None)
    with pytest.raises(LongtakeError, match="are for the format lerobot, not for npz"):
        ImportConfig(format="npz", license=None, direction="c2w", convention="opencv", pose_column="pose")


def edited(source: Path, **changes: Any) -> Path:
    info = source / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | changes))
    return source


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"codebase_version": "v2.1"}, "no LeRobot dataset of version 3, but v2.1"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": "30"}, "fps is 30"),
        ({"features": {"pose": 3}}, "features is no table of tables"),
        ({"features": {"pose": MATRIX, "observation.intrinsics": {}}}, "no column observation.intrinsics"),
    ],
)
def test_datasets_that_are_none(tmp_path, made, changes, words):
    source = edited(dataset(tmp_path / "set", "pose", FLAT, MATRIX), **changes)
    with pytest.raises(BadMedia, match=words):
        rows(source, config(pose_column="pose"), made)


def test_one_bad_episode_leaves_the_others(tmp_path, made):
    source = dataset(tmp_path / "set", "pose", FLAT, MATRIX)
    episodes = source / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(episodes)
    pq.write_table(table.set_column(1, "length", pa.array([8, 13, 10])), episodes)
    found = rows(source, config(pose_column="pose"), made)
    assert [row["status"] for row in found] == ["ok", "failed", "ok"]
    assert "speaks of 13 frames, data of 12" in found[1]["error"]


def test_rows_of_several_lengths_and_rows_torn_apart(tmp_path, made):
    ragged = [[*FLAT[0][:-1], [1.0]], *FLAT[1:]]
    with pytest.raises(BadMedia, match="of several lengths"):
        rows(dataset(tmp_path / "ragged", "pose", ragged, MATRIX), config(pose_column="pose"), made)
    source = dataset(tmp_path / "torn", "pose", FLAT, MATRIX)
    first = source / "data" / "chunk-000" / "file-000.parquet"
    (first.with_name("file-002.parquet")).write_bytes(first.read_bytes())
    found = rows(source, config(pose_column="pose"), made)
    assert [row["status"] for row in found] == ["ok", "ok", "ok", "failed", "failed"]
    assert "stand in several places" in found[3]["error"]


def test_links_that_lead_out_of_the_dataset(tmp_path, made):
    source = dataset(tmp_path / "set", "pose", FLAT, MATRIX)
    first = source / "data" / "chunk-000" / "file-000.parquet"
    first.rename(tmp_path / "elsewhere.parquet")
    first.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(BadMedia, match="leads out of the folder through a link"):
        rows(source, config(pose_column="pose"), made)
