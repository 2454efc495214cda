"""Exports: what a reader of each format gets is the track that went in, and no pose is made up."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.compute as pc
import pytest

from longtake.datasets.exporters import WRITERS, export
from longtake.datasets.manifest import create_manifest
from longtake.datasets.readers import read_clip
from longtake.datasets.score import score_files
from longtake.geometry import invert_pose, pose, rotation_from_quaternion
from longtake.records import LongtakeError


@pytest.fixture
def manifest(tmp_path, make_row):
    """A clip with two frames unposed, one that zooms with distortion, a failed one, and one without any pose."""
    out = create_manifest(tmp_path / "run")
    out.append(
        [
            make_row("plain.mp4", unposed=(3, 7)),
            make_row("zoom.mp4", zoom=True, distortion_model="opencv_radial", distortion=(-0.1, 0.02)),
            make_row("failed.mp4", failed=True),
            make_row("lost.mp4", unposed=tuple(range(20))),
        ]
    )
    return out


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def clips(manifest):
    return {
        row["source_uri"].split("/")[-1].split(".")[0]: read_clip(row)
        for row in manifest.rows(filter=pc.field("status") != "failed")
    }


@pytest.mark.parametrize("to", WRITERS)
def test_the_counts_add_up(manifest, tmp_path, to):
    summary = export(manifest, to, tmp_path / "out")
    unposed = WRITERS[to].unposed
    if to == "sana_wm":  # every clip of this manifest has lengths in a unit of its own
        expected = (0, 0, {"frames_without_pose": 1, "relative_scale": 1})
    elif unposed == "refused":
        expected = (1, 20, {"frames_without_pose": 1})
    else:
        expected = (3, 18 + 20, {}) if unposed == "marked" else (2, 18 + 20, {})
    assert (summary.clips, summary.frames, summary.clips_left_out) == expected
    assert summary.clips_without_pose == (0 if unposed == "marked" else 1)
    assert summary.clips_failed == 1 and summary.frames_without_pose == 2 + 20
    assert summary.clips + sum(summary.clips_left_out.values()) + summary.clips_without_pose == 3
    assert summary.clips_distorted == (0 if WRITERS[to].distortion or not summary.clips or to == "sana_wm" else 1)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["frames"] == expected[1]
    assert not list((tmp_path / "out").rglob("*.part"))


def test_npz(manifest, clips, out):
    export(manifest, "npz", out)
    for clip in clips.values():
        with np.load(out / f"{clip.clip_id}.npz", allow_pickle=False) as file:
            assert file["c2w"].dtype == file["K"].dtype == np.float64 and file["pose_valid"].dtype == bool
            np.testing.assert_array_equal(file["c2w"], clip.world_from_cam)
            np.testing.assert_array_equal(file["K"], clip.k)
            np.testing.assert_array_equal(file["pose_valid"], clip.pose_valid)
            np.testing.assert_array_equal(file["times_s"], clip.times_s)
    path = out / f"{clips['plain'].clip_id}.npz"
    found = score_files(path, path)
    assert found["frames"] == 20 and found["ate_rmse"] == pytest.approx(0, abs=1e-9)


def test_tum(manifest, clips, out):
    export(manifest, "tum", out)
    clip = clips["plain"]
    table = np.loadtxt(out / f"{clip.clip_id}.txt")
    assert table.shape == (18, 8)
    np.testing.assert_allclose(table[:, 0], clip.times_s[clip.pose_valid], atol=1e-9)
    rotation = rotation_from_quaternion(table[:, [7, 4, 5, 6]])
    np.testing.assert_allclose(pose(rotation, table[:, 1:4]), clip.world_from_cam[clip.pose_valid], atol=1e-6)


def test_npy(manifest, clips, out):
    export(manifest, "npy", out)
    clip = clips["plain"]
    c2w, intrinsics, frames = (
        np.load(out / f"{clip.clip_id}_{name}.npy", allow_pickle=False) for name in ("c2w", "intrinsics", "frames")
    )
    assert c2w.shape == (18, 4, 4) and intrinsics.shape == (18, 4)
    assert frames.tolist() == [i for i in range(20) if i not in (3, 7)]
    np.testing.assert_array_equal(c2w, clip.world_from_cam[frames])
    np.testing.assert_array_equal(intrinsics, clip.intrinsics[frames])


@pytest.mark.parametrize("name, cameras, model", [("plain", 1, "PINHOLE"), ("zoom", 20, "OPENCV")])
def test_colmap_reads_its_model(manifest, clips, out, name, cameras, model):
    pycolmap = pytest.importorskip("pycolmap", exc_type=ImportError)
    export(manifest, "colmap", out)
    clip = clips[name]
    found = pycolmap.Reconstruction(str(out / clip.clip_id))
    assert found.num_cameras() == cameras and found.num_images() == clip.pose_valid.sum()
    images = {image.name: image for image in found.images.values()}
    x = np.array([0.3, -0.2, 1.0])  # a point in front of the camera
    for i in np.flatnonzero(clip.pose_valid):
        image = images[clip.image_names[i]]
        camera = found.cameras[image.camera_id]
        assert camera.model.name == model and (camera.width, camera.height) == (640, 480)
        cam_from_world = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        np.testing.assert_allclose(invert_pose(cam_from_world), clip.world_from_cam[i], atol=1e-6)
        k1, k2 = clip.distortion or (0.0, 0.0)
        r2 = x[0] ** 2 + x[1] ** 2
        ours = clip.intrinsics[i, :2] * x[:2] * (1 + k1 * r2 + k2 * r2 * r2) + clip.intrinsics[i, 2:]
        np.testing.assert_allclose(camera.img_from_cam(x), ours + 0.5, atol=1e-4)  # their corner is our (-0.5, -0.5)


def test_nerfstudio(manifest, clips, out):
    export(manifest, "nerfstudio", out)
    plain = json.loads((out / clips["plain"].clip_id / "transforms.json").read_text())
    assert (plain["w"], plain["h"], plain["fl_x"], plain["cx"], plain["cy"]) == (640, 480, 500.0, 320.0, 240.0)
    assert len(plain["frames"]) == 18 and plain["frames"][3]["file_path"] == "images/frame_000009.png"  # 8 has no pose
    zoom = json.loads((out / clips["zoom"].clip_id / "transforms.json").read_text())
    assert "fl_x" not in zoom and (zoom["k1"], zoom["k2"]) == pytest.approx((-0.1, 0.02))
    for i, frame in enumerate(zoom["frames"]):
        c2w = clips["zoom"].world_from_cam[i]
        m = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(m[:3, 3], c2w[:3, 3])
        np.testing.assert_allclose(-m[:3, 2], c2w[:3, 2])  # it looks along -z
        np.testing.assert_allclose(-m[:3, 1], c2w[:3, 1])  # y is up
        assert frame["fl_x"] == clips["zoom"].intrinsics[i, 0]


def test_only_some_clips(manifest, clips, out):
    summary = export(manifest, "npz", out, where=pc.field("clip_id") == clips["zoom"].clip_id)
    assert summary.clips == 1 and [p.stem for p in out.glob("*.npz")] == [clips["zoom"].clip_id]


def test_other_files_are_not_touched(manifest, tmp_path):
    out = tmp_path / "out"
    export(manifest, "npz", out)
    assert export(manifest, "npz", out).clips == 3  # the same again is welcome
    with pytest.raises(LongtakeError, match=r"holds the export of .*run to npz"):
        export(manifest, "npy", out)
    other = create_manifest(tmp_path / "run2")
    with pytest.raises(LongtakeError, match="holds the export of"):
        export(other, "npz", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(LongtakeError, match=r"holds other files.*nothing was written"):
        export(manifest, "tum", tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(LongtakeError, match="Cannot write the export"):
        export(manifest, "tum", tmp_path / "mine" / "notes.txt")


def test_unknown_format(manifest, tmp_path):
    with pytest.raises(LongtakeError, match=r"no export format 'usd'.*nerfstudio"):
        export(manifest, "usd", tmp_path / "out")
    assert not (tmp_path / "out").exists()
