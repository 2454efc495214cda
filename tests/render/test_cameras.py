"""Training cameras: COLMAP beside pycolmap, nerfstudio and 3DGS files by hand, and hostile files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from longtake.records import BadMedia, LongtakeError
from longtake.render.cameras import MODELS, find_cameras, read_cameras

OPENGL = np.diag([1.0, -1, -1, 1])


def poses(n: int, seed: int = 0) -> np.ndarray:
    """world_from_cam [n, 4, 4]."""
    out = np.tile(np.eye(4), (n, 1, 1))
    out[:, :3, :3] = Rotation.random(n, rng=np.random.default_rng(seed)).as_matrix().reshape(n, 3, 3)
    out[:, :3, 3] = np.random.default_rng(seed).normal(size=(n, 3))
    return out


def colmap_rows(world_from_cam: np.ndarray) -> list[tuple[float, ...]]:
    """Quaternion (w, x, y, z) and translation of cam_from_world."""
    inverse = np.linalg.inv(world_from_cam)
    quaternions = np.roll(Rotation.from_matrix(inverse[:, :3, :3]).as_quat(), 1, 1)
    return [(*q, *t) for q, t in zip(quaternions, inverse[:, :3, 3], strict=True)]


def write_text_model(folder: Path, cameras: list[str], images: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text("# Camera list\n# with a comment\n" + "".join(f"{c}\n" for c in cameras))
    (folder / "images.txt").write_text("# Image list\n" + "".join(f"{i}\n" for i in images))
    return folder


def text_images(world_from_cam: np.ndarray, camera: int = 1, points: str = "") -> list[str]:
    rows = colmap_rows(world_from_cam)
    return [
        f"{i + 1} {' '.join(map(repr, map(float, row)))} {camera} im {i:02d}.png\n{points}"
        for i, row in enumerate(rows)
    ]


def write_binary_model(
    folder: Path, world_from_cam: np.ndarray, *, model: int = 1, params=(500.0, 510, 320, 240)
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    camera = struct.pack("<QIiQQ", 1, 7, model, 640, 480) + struct.pack(f"<{len(params)}d", *params)
    images = struct.pack("<Q", len(world_from_cam))
    for i, row in enumerate(colmap_rows(world_from_cam)):
        images += (
            struct.pack("<I7dI", i + 1, *row, 7) + f"im{i:02d}.png\0".encode() + struct.pack("<Q", i) + bytes(24 * i)
        )
    (folder / "cameras.bin").write_bytes(camera)
    (folder / "images.bin").write_bytes(images)
    return folder


def write_nerfstudio(file: Path, world_from_cam: np.ndarray, **shared) -> Path:
    shared = {"w": 640, "h": 480, "fl_x": 500, "fl_y": 510, "cx": 320.5, "cy": 239.5} | shared
    frames = [
        {"file_path": f"images/{i}.png", "transform_matrix": (m @ OPENGL).tolist()}
        for i, m in enumerate(world_from_cam)
    ]
    file.write_text(json.dumps({**shared, "frames": frames}))
    return file


# --- COLMAP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", ["", "1.5 2.5 -1 3.25 4 17"])
def test_colmap_text(tmp_path, points):
    want = poses(4)
    images = text_images(want, 1, points)[::-1]
    cameras = ["1 PINHOLE 640 480 500 510 320 240", "2 SIMPLE_PINHOLE 100 80 90 50 40"]
    images[0] = images[0].replace(" 1 im", " 2 im")
    got = read_cameras(write_text_model(tmp_path / "m", cameras, images))
    assert got.names == tuple(f"im {i:02d}.png" for i in range(4)) and got.format == "colmap"  # names may have spaces
    np.testing.assert_allclose(got.world_from_cam, want, atol=1e-12)
    np.testing.assert_array_equal(got.intrinsics[[0, 3]], [[500, 510, 319.5, 239.5], [90, 90, 49.5, 39.5]])
    np.testing.assert_array_equal(got.sizes[[0, 3]], [[640, 480], [100, 80]])
    assert not got.distorted.any() and not got.remarks


def test_colmap_binary(tmp_path):
    want = poses(5)
    got = read_cameras(write_binary_model(tmp_path / "m", want))
    np.testing.assert_allclose(got.world_from_cam, want, atol=1e-12)
    np.testing.assert_array_equal(got.intrinsics, np.tile([500, 510, 319.5, 239.5], (5, 1)))
    assert got.names == tuple(f"im{i:02d}.png" for i in range(5))


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_colmap_written_by_pycolmap(tmp_path, suffix):
    """A model of two lenses with observations, as the library itself writes it, against what it says of it."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap, which writes COLMAP models, is not installed")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 2, 4, 20
    options.camera_model_id, options.camera_params = pycolmap.CameraModelId.PINHOLE, [900.0, 910.0, 512.0, 384.0]
    model = pycolmap.synthesize_dataset(options)
    folder = tmp_path / "sparse" / "0"
    folder.mkdir(parents=True)
    (model.write_binary if suffix == ".bin" else model.write_text)(folder)
    got = read_cameras(tmp_path)
    images = sorted(model.images.values(), key=lambda image: image.name)
    assert got.names == tuple(image.name for image in images) and len(got) == 8
    for i, image in enumerate(images):
        inverse = np.concatenate([image.cam_from_world().inverse().matrix(), [[0, 0, 0, 1]]])
        np.testing.assert_allclose(got.world_from_cam[i], inverse, atol=1e-9)
        camera = model.cameras[image.camera_id]
        assert tuple(got.sizes[i]) == (camera.width, camera.height)
        fx, fy, cx, cy = got.intrinsics[i]
        np.testing.assert_allclose([fx, fy, cx + 0.5, cy + 0.5], camera.params, atol=1e-12)
        seen = np.array([0.3, -0.2, 2.0])
        u, v = camera.img_from_cam(seen)  # its pixel coordinates: the first pixel's centre is at 0.5
        np.testing.assert_allclose([fx * 0.15 + cx, fy * -0.1 + cy], [u - 0.5, v - 0.5], atol=1e-9)


def test_lens_models_are_those_of_pycolmap():
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap, which knows COLMAP's models, is not installed")
    for number, (name, count, shared) in MODELS.items():
        if not hasattr(pycolmap.CameraModelId, name):
            continue  # an older COLMAP
        camera = pycolmap.Camera.create_from_model_name(1, name, 100.0, 64, 48)
        assert int(camera.model.value if hasattr(camera.model, "value") else camera.model) == number
        if count:
            assert camera.params_info.split(", ")[: 3 if shared else 4] == (["f"] if shared else ["fx", "fy"]) + [
                "cx",
                "cy",
            ]
            assert len(camera.params) == count


def test_distorted_lenses_are_refused_or_flagged(tmp_path):
    cameras = ["1 OPENCV 640 480 500 510 320 240 0.1 0 0 0", "2 OPENCV 640 480 500 510 320 240 0 0 0 0"]
    images = text_images(poses(2), 1)
    images[1] = images[1].replace(" 1 im", " 2 im")
    folder = write_text_model(tmp_path / "m", cameras, images)
    with pytest.raises(BadMedia, match=r"1 of 2 .*im 00\.png.*image_undistorter"):
        read_cameras(folder)
    got = read_cameras(folder, allow_distorted=True)
    np.testing.assert_array_equal(got.distorted, [True, False])
    assert "distorted" in got.remarks[0]


@pytest.mark.parametrize("name", [name for name, count, _ in MODELS.values() if not count])
def test_lenses_that_are_no_pinhole_are_always_refused(tmp_path, name):
    folder = write_text_model(tmp_path / "m", [f"1 {name} 640 480 500 510 320 240 0 0 0 0"], text_images(poses(1)))
    with pytest.raises(BadMedia, match=f"{name}, which is no pinhole"):
        read_cameras(folder, allow_distorted=True)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_nerfstudio(tmp_path):
    want = poses(3)
    got = read_cameras(write_nerfstudio(tmp_path / "transforms.json", want, camera_model="OPENCV", k1=0.0, p2=0))
    np.testing.assert_allclose(got.world_from_cam, want, atol=1e-12)
    np.testing.assert_array_equal(got.intrinsics, np.tile([500, 510, 320, 239], (3, 1)))
    assert got.names == ("images/0.png", "images/1.png", "images/2.png")
    assert [remark.split()[0] for remark in got.remarks] == ["nerfstudio"]


def test_nerfstudio_looks_along_minus_z_of_its_own_axes(tmp_path):
    forward = read_cameras(write_nerfstudio(tmp_path / "transforms.json", np.eye(4)[None] @ OPENGL)).world_from_cam[
        0, :3, 2
    ]
    np.testing.assert_array_equal(forward, [0, 0, -1])  # transform_matrix is the identity


def test_nerfstudio_with_a_lens_a_frame_and_an_applied_transform(tmp_path):
    file = write_nerfstudio(tmp_path / "transforms.json", poses(2), applied_transform=np.eye(4)[:3].tolist(), k1=0.2)
    tree = json.loads(file.read_text())
    tree["frames"][1] |= {"w": 100, "h": 50, "fl_x": 70, "fl_y": 71, "cx": 50, "cy": 25, "k1": 0}
    tree["frames"][0]["transform_matrix"] = tree["frames"][0]["transform_matrix"][:3]
    file.write_text(json.dumps(tree))
    got = read_cameras(file, allow_distorted=True)
    np.testing.assert_array_equal(got.intrinsics[1], [70, 71, 49.5, 24.5])
    np.testing.assert_array_equal(got.sizes, [[640, 480], [100, 50]])
    np.testing.assert_array_equal(got.distorted, [True, False])
    np.testing.assert_allclose(got.world_from_cam, poses(2), atol=1e-12)
    assert got.remarks[0].startswith("applied_transform is left in")


def test_angles_of_view_instead_of_focal_lengths(tmp_path):
    tree = json.loads(write_nerfstudio(tmp_path / "transforms.json", poses(1)).read_text())
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del tree[key]
    (tmp_path / "transforms.json").write_text(json.dumps(tree | {"camera_angle_x": np.pi / 2}))
    np.testing.assert_allclose(read_cameras(tmp_path).intrinsics, [[320, 320, 319.5, 239.5]])


def test_cameras_of_3dgs_training(tmp_path):
    want = poses(2)
    entries = [
        {"id": i, "img_name": f"a{i}", "width": 640, "height": 480, "fx": 500, "fy": 510}
        | {"position": m[:3, 3].tolist(), "rotation": m[:3, :3].tolist()}
        for i, m in enumerate(want)
    ]
    (tmp_path / "cameras.json").write_text(json.dumps(entries))
    splats = tmp_path / "point_cloud" / "iteration_30000" / "point_cloud.ply"
    splats.parent.mkdir(parents=True)
    splats.write_bytes(b"")
    got = read_cameras(splats)  # found from the scene's own place
    assert got.format == "3dgs" and got.names == ("a0", "a1")
    np.testing.assert_allclose(got.world_from_cam, want, atol=1e-12)
    np.testing.assert_array_equal(got.intrinsics, [[500, 510, 319.5, 239.5]] * 2)


# --- where they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "sparse/0", "sparse", "colmap/sparse/0"])
def test_models_are_found_beside_a_scene(tmp_path, place):
    write_binary_model(tmp_path / place, poses(1))
    assert find_cameras(tmp_path / "scene.ply") == find_cameras(tmp_path) == tmp_path / place
    assert len(read_cameras(tmp_path)) == 1


def test_none_and_two(tmp_path):
    assert find_cameras(tmp_path) is None
    with pytest.raises(BadMedia, match="no training cameras"):
        read_cameras(tmp_path)
    with pytest.raises(BadMedia, match="no training cameras"):
        read_cameras(tmp_path / "nowhere")
    write_binary_model(tmp_path / "sparse" / "0", poses(1))
    write_nerfstudio(tmp_path / "transforms.json", poses(1))
    with pytest.raises(BadMedia, match=r"transforms\.json and sparse/0"):
        find_cameras(tmp_path)
    assert read_cameras(tmp_path / "transforms.json").format == "nerfstudio"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cameras, images, words",
    [
        ("1 PINHOLE 640 480 500 510 320", None, "3 parameters"),
        ("1 PINHOLE 640 480 500 -510 320 240", None, "not sound"),
        ("1 PINHOLE 640 480 nan 510 320 240", None, "not sound"),
        ("1 PINHOLE 0 480 500 510 320 240", None, "not sound"),
        ("1 POLAROID 640 480 500 510 320 240", None, "unknown lens model 'POLAROID'"),
        ("one PINHOLE", None, "no camera"),
        ("2 PINHOLE 640 480 500 510 320 240", None, "camera 1, which cameras.txt does not have"),
        (None, "1 0 0 0 0 1 2 3 1 a.png\n", "length 0"),
        (None, "1 1 0 0 0 nan 2 3 1 a.png\n", "not sound"),
        (None, "1 1 0 0 0 1 2 3 a.png\n", "no picture"),
        (None, "", "no camera with a pose"),
    ],
)
def test_text_models_that_are_broken(tmp_path, cameras, images, words):
    good = "1 PINHOLE 640 480 500 510 320 240"
    lines = text_images(poses(1)) if images is None else [images] if images else []
    write_text_model(tmp_path, [cameras or good], lines)
    with pytest.raises(BadMedia, match=words):
        read_cameras(tmp_path)


@pytest.mark.parametrize(
    "file, change, words",
    [
        ("cameras.bin", lambda b: struct.pack("<Q", 2**60) + b[8:], "more than fit"),
        ("images.bin", lambda b: struct.pack("<Q", 2**60) + b[8:], "more than fit"),
        ("images.bin", lambda b: b[:-1], "ends at byte"),
        ("images.bin", lambda b: b + b"x", "1 bytes after"),
        ("images.bin", lambda b: b[:72] + b"a" * (len(b) - 72), "does not end"),
        ("images.bin", lambda b: b"", "empty"),
        ("cameras.bin", lambda b: b[:12] + struct.pack("<i", 99) + b[16:], "lens model number 99"),
    ],
)
def test_binary_models_that_lie(tmp_path, file, change, words):
    write_binary_model(tmp_path, poses(2))
    (tmp_path / file).write_bytes(change((tmp_path / file).read_bytes()))
    with pytest.raises(BadMedia, match=words):
        read_cameras(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.update(frames=[]), "no camera with a pose"),
        (lambda t: t.update(frames=[3]), "frame 0 is no table"),
        (lambda t: t.pop("w"), "w of images/0.png is None.*size"),
        (lambda t: t.update(fl_x="500"), "fl_x of images/0.png"),
        (lambda t: t.update(fl_x=10**400), "fl_x of images/0.png"),
        (lambda t: t.update(cx=float("nan")), "cx of images/0.png"),
        (lambda t: t.update(fl_y=0), "not sound"),
        (lambda t: (t.pop("fl_x"), t.update(camera_angle_x=7)), "no angle of view"),
        (lambda t: t.update(camera_model="OPENCV_FISHEYE"), "no pinhole"),
        (lambda t: t.update(is_fisheye=True), "fisheye"),
        (lambda t: t.update(k1=0.1), "distorted"),
        (lambda t: t["frames"][0].update(transform_matrix=np.eye(3).tolist()), "no matrix"),
        (lambda t: t["frames"][0].update(transform_matrix=[[1, 2], 3]), "no matrix"),
        (lambda t: t["frames"][0].update(transform_matrix=(2 * np.eye(4)).tolist()), "no rotation"),
        (lambda t: t["frames"][0].update(transform_matrix=np.diag([1, 1, -1, 1]).tolist()), "no rotation"),
        (lambda t: t.pop("frames"), "neither"),
    ],
)
def test_transforms_that_are_broken(tmp_path, change, words):
    file = write_nerfstudio(tmp_path / "transforms.json", poses(2))
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(BadMedia, match=words):
        read_cameras(file)


def test_json_that_is_none(tmp_path):
    for text in ("{", "[" * 100_000, "[]", "7", '{"frames": 1}', "\x00"):
        (tmp_path / "transforms.json").write_text(text)
        with pytest.raises(BadMedia):
            read_cameras(tmp_path)


def test_damaged_models_raise_nothing_but_words(tmp_path):
    """Every file of each form, cut off at 40 places and with 120 changed bytes: read, or refused by a LongtakeError."""
    rng = np.random.default_rng(3)
    write_binary_model(tmp_path / "bin", poses(3))
    write_text_model(tmp_path / "txt", ["1 PINHOLE 640 480 500 510 320 240"], text_images(poses(3), 1, "1 2 -1"))
    (tmp_path / "json").mkdir()
    write_nerfstudio(tmp_path / "json" / "transforms.json", poses(3))
    refused = 0
    for file in sorted(tmp_path.glob("*/*")):
        data = file.read_bytes()
        damaged = [data[:cut] for cut in np.linspace(0, len(data) - 1, 40).astype(int)]
        for _ in range(120):
            other = bytearray(data)
            for at in rng.integers(0, len(data), rng.integers(1, 4)):
                other[at] = rng.integers(0, 256)
            damaged.append(bytes(other))
        for other in damaged:
            file.write_bytes(other)
            try:
                cameras = read_cameras(file.parent, allow_distorted=True)
            except LongtakeError as error:
                refused += 1
                assert len(str(error)) > 20
            else:
                assert np.isfinite(cameras.world_from_cam).all() and np.isfinite(cameras.intrinsics).all()
        file.write_bytes(data)
    assert refused > 200
