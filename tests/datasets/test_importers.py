"""Round trips through every format, other tools as readers, and what a wrong convention is told."""

from __future__ import annotations

import json
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.datasets.cameras import CONVENTIONS, DIRECTIONS, intrinsics_problem, rigid, signs, world_from_cam
from longtake.datasets.exporters import WRITERS, export
from longtake.datasets.importers import READERS, ImportConfig, imported_row, read_collection
from longtake.datasets.manifest import create_manifest
from longtake.datasets.readers import read_clip
from longtake.datasets.schema import SCHEMA, check_row
from longtake.errors import BadMedia, LongtakeError
from longtake.geometry import invert_pose, pose, quaternion_from_rotation, rotation_from_vector

BY_QUATERNION = ("tum", "colmap")  # rotations of float32 matrices are not exact: these formats make them so


def config(form: str, **known: Any) -> ImportConfig:
    """What a user would state for a format, and what a test states otherwise."""
    stated: dict[str, Any] = {
        "direction": READERS[form].direction or "c2w",
        "convention": READERS[form].convention or "opencv",
        "scale": "metric",
        "fps": 30.0,
        "size": (640, 480),
        "license": "CC0-1.0",
        "intrinsics": (500.0, 500.0, 319.5, 239.5),
    }
    return ImportConfig(format=form, **stated | known)


def read(source: Path, settings: ImportConfig, made: Any, probe: Any = None) -> dict[str, dict[str, Any]]:
    """Rows by the clip's name, each checked against the schema."""
    rows = {}
    for clip in read_collection(source, settings, probe):
        rows[clip.name] = imported_row(clip, settings, made.provenance, source.parent / "imported")
        check_row(rows[clip.name])
    return rows


@pytest.fixture
def manifest(tmp_path, make_row):
    """Clips in metres: one plain, one that zooms, one without poses in the middle; and one with distortion."""
    out = create_manifest(tmp_path / "run")
    radial = {"distortion_model": "opencv_radial", "distortion": (-0.1, 0.02)}
    rows = [
        make_row("plain.mp4", scale_kind="metric"),
        make_row("zoom.mp4", zoom=True, scale_kind="metric"),
        make_row("gaps.mp4", unposed=(3, 7), scale_kind="metric"),
        make_row("radial.mp4", scale_kind="metric", **radial),
    ]
    out.append([row | {"caption": "a room with a table"} for row in rows])
    return out


@pytest.mark.parametrize("form", [name for name in WRITERS if name in READERS])
def test_what_comes_back_is_what_went_out(manifest, tmp_path, made, form):
    summary = export(manifest, form, tmp_path / "out")
    rows = read(tmp_path / "out", config(form), made)
    clips = {row["clip_id"]: read_clip(row) for row in manifest.rows()}
    assert len(rows) == summary.clips == (3 if READERS[form].unposed == "refused" else 4)
    for name, row in rows.items():
        was, now = clips[name], read_clip(row)
        before, after = was.world_from_cam[was.pose_valid], now.world_from_cam[now.pose_valid]
        if form in BY_QUATERNION:
            np.testing.assert_allclose(after, before, rtol=0, atol=2e-7)  # the last bit of float32
        else:
            np.testing.assert_array_equal(after, before)
        if form == "tum":  # a trajectory alone: gaps are known by time
            assert np.isclose(was.times_s[was.pose_valid][[0, -1]], now.times_s[now.pose_valid][[0, -1]]).all()
            continue
        np.testing.assert_array_equal(now.pose_valid, was.pose_valid)
        if form != "kitti" or (was.intrinsics == was.intrinsics[0]).all():  # KITTI has one calibration a sequence
            np.testing.assert_array_equal(now.intrinsics[now.pose_valid], was.intrinsics[was.pose_valid])
        assert (now.width, now.height) == (640, 480)
        if form in ("npz", "kitti", "webdataset", "lerobot"):
            np.testing.assert_allclose(now.times_s, was.times_s, rtol=0, atol=1e-9)
        if WRITERS[form].distortion:
            assert now.distortion == was.distortion
        if form in ("sana_wm", "webdataset", "lerobot"):
            assert row["caption"] == "a room with a table"
        assert (row["origin"], row["license"], row["motion_class"]) == ("imported", "CC0-1.0", None)


def test_the_same_import_gives_the_same_rows(manifest, tmp_path, made):
    export(manifest, "nerfstudio", tmp_path / "out")
    first, again = (read(tmp_path / "out", config("nerfstudio"), made) for _ in range(2))
    assert {r["clip_id"] for r in first.values()} == {r["clip_id"] for r in again.values()}
    assert not {r["clip_id"] for r in first.values()} & manifest.ids()  # an imported clip never replaces another


# ---- other tools read what is written ----------------------------------------------------------------------------


def test_webdataset_reads_its_shards(manifest, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    export(manifest, "webdataset", tmp_path / "out")
    clips = {row["clip_id"]: read_clip(row) for row in manifest.rows()}
    shards = [str(p) for p in (tmp_path / "out").glob("*.tar")]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert {s["__key__"] for s in samples} == clips.keys()
    for sample in samples:
        clip = clips[sample["__key__"]]
        np.testing.assert_array_equal(sample["c2w.npy"], clip.world_from_cam.astype(np.float32))
        np.testing.assert_array_equal(sample["intrinsics.npy"], clip.intrinsics.astype(np.float32))
        np.testing.assert_array_equal(sample["pose_valid.npy"], clip.pose_valid)
        assert sample["json"]["caption"] == "a room with a table"


def test_hugging_face_reads_the_manifest_and_the_lerobot_layout(manifest, tmp_path, hugging_face):
    """As lerobot 0.4.4 loads a dataset: features from info.json, Parquet under them, tasks by pandas' index."""
    hf = hugging_face
    import pandas

    def load(pattern: str, **known: Any) -> Any:
        paths = sorted(str(p) for p in (tmp_path / "out").glob(pattern))
        return hf.Dataset.from_parquet(paths, cache_dir=str(tmp_path / "hf"), **known)

    export(manifest, "lerobot", tmp_path / "out")
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    features = {}
    for name, about in info["features"].items():
        value = hf.Value(dtype=about["dtype"])
        n = about["shape"][0]
        features[name] = value if n == 1 else hf.Sequence(length=n, feature=value)
    data = load("data/*/*.parquet", features=hf.Features(features)).with_format("numpy")
    episodes = load("meta/episodes/*/*.parquet")
    tasks = pandas.read_parquet(tmp_path / "out" / "meta" / "tasks.parquet")
    clips = {row["clip_id"]: read_clip(row) for row in manifest.rows()}
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 30)
    assert info["total_frames"] == len(data) == 80 and info["total_episodes"] == len(episodes) == 4
    assert tasks.iloc[0].name == "a room with a table"  # how LeRobot finds a frame's task
    for episode in episodes:
        clip = clips[episode["clip_id"]]
        rows = data[episode["dataset_from_index"] : episode["dataset_to_index"]]
        assert episode["length"] == clip.num_frames and (rows["frame_index"] == np.arange(clip.num_frames)).all()
        c2w = clip.world_from_cam[:, :3].reshape(-1, 12).astype(np.float32)
        np.testing.assert_array_equal(np.stack(rows["observation.c2w"]), c2w)
        np.testing.assert_array_equal(rows["observation.pose_valid"], clip.pose_valid)
        np.testing.assert_allclose(rows["timestamp"], np.arange(clip.num_frames) / 30, atol=1e-6)
    stats = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    posed = np.concatenate([c.world_from_cam[c.pose_valid][:, :3].reshape(-1, 12) for c in clips.values()])
    np.testing.assert_allclose(stats["observation.c2w"]["mean"], posed.mean(0), atol=1e-6)
    parts = hf.Dataset.from_parquet([str(p) for p in manifest.paths()], cache_dir=str(tmp_path / "hf"))
    assert set(parts["clip_id"]) == clips.keys()


def test_sana_wm_finds_every_camera(manifest, tmp_path):
    """What SanaWMZipLatentDataset does with the files: every clip of the zip has its cameras, frame by frame."""
    export(manifest, "sana_wm", tmp_path / "out")
    clips = {row["clip_id"]: read_clip(row) for row in manifest.rows()}
    camera = np.load(tmp_path / "out" / "clips_camera.npz", allow_pickle=False)
    scales = json.loads((tmp_path / "out" / "clips_metric_scale_stats.json").read_text())
    with zipfile.ZipFile(tmp_path / "out" / "clips.zip") as archive:
        keys = [name.removesuffix(".json") for name in archive.namelist()]
        assert set(keys) == set(camera["ids"].tolist()) == set(scales) and len(keys) == 3
        for key in keys:
            info = json.loads(archive.read(f"{key}.json"))
            assert (info["width"], info["height"], info["prompt"]) == (640, 480, "a room with a table")
            start, count = camera["ranges"][camera["ids"].tolist().index(key)]
            poses = camera["pose"][start : start + count].astype(np.float32)
            poses[:, :3, 3] *= scales[key]["median"]
            np.testing.assert_array_equal(poses, clips[key].world_from_cam.astype(np.float32))
            k = camera["intrinsics"][start : start + count].astype(np.float32)
            k[:, [0, 2]] *= 20 / info["width"]  # to a latent of 20 x 15
            np.testing.assert_allclose(k[:, 2], 10.0, atol=1e-5)  # the middle of the picture stays in the middle


def test_kitti_rows_are_what_its_tools_take(manifest, tmp_path):
    export(manifest, "kitti", tmp_path / "out")
    clips = {row["clip_id"]: read_clip(row) for row in manifest.rows()}
    for path in (tmp_path / "out" / "poses").glob("*.txt"):
        rows = np.loadtxt(path).reshape(-1, 3, 4)
        np.testing.assert_array_equal(rows, clips[path.stem].world_from_cam[:, :3])


def test_colmap_binary_as_colmap_writes_it(manifest, tmp_path, made):
    pycolmap = pytest.importorskip("pycolmap", exc_type=ImportError)
    export(manifest, "colmap", tmp_path / "out")
    binary = tmp_path / "binary"
    for folder in (p for p in (tmp_path / "out").iterdir() if p.is_dir()):
        (binary / folder.name / "sparse" / "0").mkdir(parents=True)
        pycolmap.Reconstruction(str(folder)).write_binary(str(binary / folder.name / "sparse" / "0"))
    text, again = (read(p, config("colmap"), made) for p in (tmp_path / "out", binary))
    assert text.keys() == again.keys() and len(text) == 4
    for name in text:
        np.testing.assert_array_equal(text[name]["c2w"], again[name]["c2w"])
        np.testing.assert_array_equal(text[name]["intrinsics"], again[name]["intrinsics"])


# ---- collections -------------------------------------------------------------------------------------------------


def around(count: int = 24) -> np.ndarray:
    """Cameras on half a circle about a place, looking at it."""
    a = np.linspace(0, np.pi, count)
    return pose(
        rotation_from_vector(np.column_stack([0 * a, a, 0 * a])), np.column_stack([-np.sin(a), 0 * a, -np.cos(a)]) * 3
    )


def test_spatialvid(tmp_path, made):
    c2w = around()
    w2c = invert_pose(c2w)
    q = quaternion_from_rotation(w2c[:, :3, :3])
    clip = tmp_path / "annotations" / "group_0001" / "0a00f99d"
    clip.mkdir(parents=True)
    np.save(clip / "poses.npy", np.column_stack([w2c[:, :3, 3], q[:, 1:], q[:, 0]]))
    np.save(clip / "intrinsics.npy", np.tile([0.8, 1.4, 0.5, 0.5], (len(c2w), 1)))
    (clip / "indexes.txt").write_text("".join(f"{6 * i}\n" for i in range(len(c2w))))
    rows = read(tmp_path, config("spatialvid", size=(1280, 720), scale="relative"), made)
    found = read_clip(rows["group_0001/0a00f99d"])
    assert found.num_frames == 6 * 23 + 1 and found.pose_valid.sum() == 24 and found.pose_valid[::6].all()
    np.testing.assert_allclose(found.world_from_cam[::6], c2w, atol=1e-6)
    np.testing.assert_allclose(found.intrinsics, np.tile([1024, 1008, 639.5, 359.5], (139, 1)))


def test_omniworld(tmp_path, made):
    c2w = around()
    w2c = invert_pose(c2w)
    scene = tmp_path / "worlds" / "b04f88d1f85a"
    (scene / "camera").mkdir(parents=True)
    (scene / "split_info.json").write_text(json.dumps({"split": [[0, 1], list(range(100, 124))]}))
    split = {"quats": quaternion_from_rotation(w2c[:, :3, :3]).tolist(), "trans": w2c[:, :3, 3].tolist()}
    split |= {"focals": [300.0] * 24, "cx": 160.0, "cy": 90.0, "input_size": 0.25}
    (scene / "camera" / "split_1.json").write_text(json.dumps(split))
    settings = config("omniworld", size=(1280, 720), scale=None, metres_per_unit=2.0)
    rows = read(tmp_path / "worlds", settings, made)
    row = rows["b04f88d1f85a/split_1"]
    found = read_clip(row)
    assert (row["frame_start"], row["frame_stop"], row["scale_kind"]) == (100, 124, "metric")
    np.testing.assert_allclose(found.world_from_cam[:, :3, 3], 2 * c2w[:, :3, 3], atol=1e-5)
    np.testing.assert_allclose(found.intrinsics[0], [1200, 1200, 639.5, 359.5])


def test_pictures_are_linked_below_the_manifest(manifest, tmp_path, made):
    export(manifest, "nerfstudio", tmp_path / "out")
    clip_id = next(row["clip_id"] for row in manifest.rows() if row["source_uri"].endswith("gaps.mp4"))
    scene = tmp_path / "out" / clip_id
    (scene / "images").mkdir()
    for i in range(5, 25):
        (scene / "images" / f"frame_{i:06d}.png").write_bytes(bytes([i]))
    paths = tuple(sorted(str(p) for p in (scene / "images").iterdir()))

    def probe(path: Path, stills: bool, fps: float | None) -> Any:
        assert path == scene / "images" and fps == 30.0
        return made.video(path=str(path), is_images=True, image_paths=paths, frames=20)

    rows = read(scene, config("nerfstudio", media="link"), made, probe)
    (row,) = rows.values()
    found = read_clip(row)
    assert found.num_frames == 20 and list(np.flatnonzero(~found.pose_valid)) == [3, 7]
    assert row["uri"] == f"clips/{row['clip_id']}" and row["image_uris"][2].endswith("/frame_000007.png")
    target = tmp_path / "out" / "imported"
    assert (target / row["image_uris"][2]).read_bytes() == bytes([7])
    assert not any(p.is_symlink() for p in target.rglob("*"))


def test_a_video_is_copied_and_its_frames_are_told(manifest, tmp_path, made):
    export(manifest, "vipe", tmp_path / "out")
    (tmp_path / "films").mkdir()
    for row in manifest.rows():
        (tmp_path / "films" / f"{row['clip_id']}.mp4").write_bytes(row["clip_id"].encode())
    settings = config("vipe", media="copy", media_folder=tmp_path / "films")
    rows = read(tmp_path / "out", settings, made, lambda path, stills, fps: made.video(path=str(path)))
    assert len(rows) == 4
    for name, row in rows.items():
        assert (row["frame_start"], row["frame_stop"], row["num_frames"]) == (5, 25, 20)
        assert (tmp_path / "out" / ".." / "imported" / row["uri"]).read_bytes() == name.encode()


# ---- what is wrong is refused with words -------------------------------------------------------------------------


def one(folder: Path, c2w: np.ndarray, **more: Any) -> Path:
    folder.mkdir()
    np.savez(folder / "clip.npz", c2w=c2w, **more)
    return folder


K = np.array([[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("path", ["around", "ahead"])
def test_a_wrong_reading_is_seen(tmp_path, made, direction, convention, path):
    ahead = np.tile(np.eye(4), (24, 1, 1))
    ahead[:, 2, 3] = np.linspace(0, 20, 24)
    source = one(tmp_path / "in", around() if path == "around" else ahead, K=K)  # c2w, OpenCV
    settings = config("npz", direction=direction, convention=convention)
    same = (direction, convention) == ("c2w", "opencv")
    unseen = path == "ahead" and (direction, convention) == ("w2c", "opengl")  # backward twice is forward
    if same or unseen:
        assert read(source, settings, made)["clip"]["status"] == "ok"
        return
    with pytest.raises(LongtakeError, match=rf"read as {direction} {convention}, 1 of 1 .*c2w opencv.*--trust"):
        read(source, settings, made)
    assert read(source, replace(settings, trust=True), made)["clip"]["status"] == "ok"


def test_real_paths_are_not_suspected(shared_data):
    seen = 0
    for path in sorted(shared_data.glob("sequences/*/gt.npz")):
        c2w = np.load(path, allow_pickle=False)["c2w"]
        if not np.isfinite(c2w).all():
            continue
        votes = {(d, c): signs(c2w, d, c)[0] for d in DIRECTIONS for c in CONVENTIONS}
        assert votes["c2w", "opencv"] != -1, path
        seen += list(votes.values()).count(-1)
    assert seen >= 15  # of 27 wrong readings; the others show nothing


def test_a_format_that_defines_it_is_not_contradicted(tmp_path):
    with pytest.raises(LongtakeError, match=r"--pose c2w contradicts the format colmap, which defines w2c"):
        config("colmap", direction="c2w")
    with pytest.raises(LongtakeError, match=r"--convention opencv contradicts the format nerfstudio"):
        config("nerfstudio", convention="opencv")
    with pytest.raises(LongtakeError, match=r"does not say it.*pass --pose, one of c2w, w2c"):
        ImportConfig(format="npz", license=None, convention="opencv")


@pytest.mark.parametrize(
    "change, reason, words",
    [
        (lambda m: m @ np.diag([1.0, 1, -1, 1]), "mirrored", "odd number of axes was flipped"),
        (lambda m: m * np.array([2.0, 2, 2, 1]), "not_rigid", "scales lengths by 2"),
        (lambda m: np.swapaxes(m, 1, 2), "not_rigid", "stored in columns"),
        (lambda m: m * np.nan, "no_poses", "no row has a pose"),
    ],
)
def test_matrices_that_are_no_poses(tmp_path, made, change, reason, words):
    row = read(one(tmp_path / "in", change(around()), K=K), config("npz"), made)["clip"]
    assert (row["status"], row["filter_reasons"]) == ("failed", [reason]) and words in row["error"]


@pytest.mark.parametrize(
    "k, words",
    [
        (K * [[2], [2], [1]], "in the middle of a picture of about 1279 x 959"),
        (K / [[4], [4], [1]], "of about 161 x 121"),
        (K / [[640], [480], [1]], "pass --normalized"),
        (K[[1, 0, 2]][:, [1, 0, 2]], "one that was turned"),
        (K * [[-1], [1], [1]], "no camera's"),
    ],
)
def test_intrinsics_of_another_size(tmp_path, made, k, words):
    row = read(one(tmp_path / "in", around(), K=k), config("npz"), made)["clip"]
    assert row["filter_reasons"] == ["intrinsics_of_another_size"] and words in row["error"]


def test_intrinsics_are_scaled_when_asked(tmp_path, made):
    half = np.array([[250.0, 0, 159.5], [0, 250, 119.5], [0, 0, 1]])
    row = read(one(tmp_path / "in", around(), K=half), config("npz", intrinsics_scale=2.0), made)["clip"]
    np.testing.assert_allclose(row["intrinsics"][:4], [500, 500, 319.5, 239.5])
    assert intrinsics_problem(np.array([[500, 500, 300.0, 250.0]]), (640, 480)) is None  # a real camera's is off a bit


def test_smaller_pictures_than_the_intrinsics(manifest, tmp_path, made):
    export(manifest, "vipe", tmp_path / "out")
    (tmp_path / "out" / "rgb").mkdir()
    for path in (tmp_path / "out" / "pose").iterdir():
        (tmp_path / "out" / "rgb" / f"{path.stem}.mp4").write_bytes(b"")
    small = made.video(path="/x.mp4", width=320, height=240)
    rows = read(tmp_path / "out", config("vipe", media="keep"), made, lambda *_: small)
    assert {tuple(row["filter_reasons"]) for row in rows.values()} == {("intrinsics_of_another_size",)}
    tree = {"w": 3840, "h": 2160, "fl_x": 2000, "fl_y": 2000, "cx": 1920, "cy": 1080}
    frames = [{"file_path": f"images_4/{i}.png", "transform_matrix": np.eye(4).tolist()} for i in range(3)]
    scene = tmp_path / "dl3dv"
    (scene / "images_4").mkdir(parents=True)
    (scene / "transforms.json").write_text(json.dumps(tree | {"frames": frames}))
    pictures = made.video(
        path=str(scene), is_images=True, width=960, height=540, frames=3, image_paths=("0.png", "1.png", "2.png")
    )
    (row,) = read(scene, config("nerfstudio", size=None, media="keep"), made, lambda *_: pictures).values()
    assert "pictures of 3840 x 2160, but they have 960 x 540" in row["error"]
    assert "--intrinsics-scale 0.25" in row["error"]
    asked = config("nerfstudio", size=None, media="keep", intrinsics_scale=0.25)
    (row,) = read(scene, asked, made, lambda *_: pictures).values()
    np.testing.assert_allclose(row["intrinsics"][:4], [500, 500, 479.5, 269.5])


def test_colmap_points_tell_inverted_poses(tmp_path, made):
    c2w = around()
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 3)) * 0.5

    def model(folder: Path, stored: np.ndarray) -> Path:
        """As a tool would write it that stores `stored` in the place of world to camera."""
        folder.mkdir()
        (folder / "cameras.txt").write_text("1 PINHOLE 640 480 500 500 320 240\n")
        q = quaternion_from_rotation(stored[:, :3, :3])
        lines = []
        for i, m in enumerate(invert_pose(c2w)):
            x = points @ m[:3, :3].T + m[:3, 3]
            xy = 500 * x[:, :2] / x[:, 2:] + [320, 240]
            head = " ".join(map(repr, [*q[i].tolist(), *stored[i, :3, 3].tolist()]))
            seen = " ".join(f"{u!r} {v!r} {j}" for j, (u, v) in enumerate(xy.tolist()))
            lines.append(f"{i + 1} {head} 1 {i:03d}.png\n{seen}\n")
        (folder / "images.txt").write_text("".join(lines))
        (folder / "points3D.txt").write_text(
            "".join(f"{j} {x} {y} {z} 0 0 0 1\n" for j, (x, y, z) in enumerate(points))
        )
        return folder

    assert read(model(tmp_path / "right", invert_pose(c2w)), config("colmap"), made)["right"]["status"] == "ok"
    row = read(model(tmp_path / "wrong", c2w), config("colmap"), made)["wrong"]
    assert row["filter_reasons"] == ["points_elsewhere"] and "stored c2w" in row["error"]


@pytest.mark.parametrize(
    "missing, words",
    [
        ({"size": None}, "Pass --size"),
        ({"scale": None}, "Pass --scale"),
        ({"fps": None}, "Pass --fps, or --stills"),
        ({"intrinsics": None}, "Pass --intrinsics"),
    ],
)
def test_what_nothing_says_is_asked_for(tmp_path, made, missing, words):
    with pytest.raises(LongtakeError, match=words):
        read(one(tmp_path / "in", around()), config("npz", **missing), made)


def test_one_damaged_file_does_not_stop_the_others(tmp_path, made):
    source = one(tmp_path / "in", around(), K=K)
    (source / "broken.npz").write_bytes(b"PK\3\4 no more")
    rows = read(source, config("npz"), made)
    assert (rows["clip"]["status"], rows["broken"]["status"]) == ("ok", "failed")
    assert rows["broken"]["filter_reasons"] == ["unreadable"]


# ---- hostile files -----------------------------------------------------------------------------------------------


def test_nothing_is_unpickled_or_allocated_by_a_header(tmp_path, made):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    source = tmp_path / "in"
    source.mkdir()
    np.save(source / "pickled.npy", np.array([Bomb()], object), allow_pickle=True)
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4, 4)}\n"
    (source / "huge.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head)
    with zipfile.ZipFile(source / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c2w.npy", b"\0" * (1 << 22))
    errors = {}
    for form in ("npy", "npz"):
        errors |= {name: row["error"] for name, row in read(source, config(form), made).items()}
    assert "holds object" in errors["pickled"] and not (tmp_path / "exploded").exists()
    assert "128000000000000 bytes" in errors["huge"]
    assert "cannot be read" in errors["bomb"]


@pytest.mark.parametrize("name", ["../outside", "/etc", "file:///etc/passwd", "a/../../outside", "link"])
def test_names_stay_below_the_collection(tmp_path, made, name):
    scene = tmp_path / "in"
    scene.mkdir()
    (tmp_path / "outside").mkdir()
    (scene / "link").symlink_to(tmp_path / "outside")
    tree = {"w": 640, "h": 480, "fl_x": 500, "fl_y": 500, "cx": 320, "cy": 240}
    frames = [{"file_path": f"{name}/{i}.png", "transform_matrix": np.eye(4).tolist()} for i in range(3)]
    (scene / "transforms.json").write_text(json.dumps(tree | {"frames": frames}))

    def probe(path: Path, *_: Any) -> Any:
        raise AssertionError(f"{path} was looked at")

    (row,) = read(scene, config("nerfstudio", media="link"), made, probe).values()
    assert row["filter_reasons"] == ["unsafe_path"] and row["uri"] is None


def test_archives_whose_members_lead_elsewhere(tmp_path, made):
    source = tmp_path / "in"
    source.mkdir()
    with zipfile.ZipFile(source / "slip.npz", "w") as archive:
        archive.writestr("../../c2w.npy", b"x")
    row = read(source, config("npz"), made)["slip"]
    assert "leads out of the archive" in row["error"]
    with tarfile.open(source / "slip.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../a.json"))
    with pytest.raises(BadMedia, match="leads out of the archive"):
        read(source, config("webdataset"), made)


def test_ids_of_a_manifest_name_no_other_files(manifest, tmp_path, make_row):
    manifest.append([make_row("evil.mp4") | {"clip_id": "../../evil"}])
    with pytest.raises(BadMedia, match="cannot name a file"):
        export(manifest, "npz", tmp_path / "out")
    assert not (tmp_path.parent / "evil.npz").exists()


def test_exact_rotations_pass_bit_for_bit():
    c2w = around().astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(rigid(c2w, "x"), c2w)
    np.testing.assert_array_equal(world_from_cam(c2w, "c2w", "opencv"), c2w)
    assert SCHEMA.field("origin").metadata[b"about"].endswith(b"imported")
