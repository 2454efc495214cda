"""Splat scene files: round trips, other people's readers and writers, one object in two formats, and hostile files."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from longtake.errors import MissingPart
from longtake.records import BadMedia, LongtakeError
from longtake.render.formats import ply, raw, spz
from longtake.render.gaussians import FIELDS, SH0, SH_COUNTS, Gaussians
from longtake.render.harmonics import rotate_sh, sh_basis
from longtake.render.scene import detect, read_scene, write_scene

FLIP = np.diag([1.0, -1.0, -1.0])  # PLY's axes to SPZ's and back


def sample(n: int, degree: int, seed: int = 0) -> Gaussians:
    """Random Gaussians within what every format can hold."""
    rng = np.random.default_rng(seed)
    return Gaussians(
        means=rng.uniform(-3, 3, (n, 3)).astype(np.float32),
        scales=np.exp(rng.uniform(-6, 1, (n, 3))).astype(np.float32),
        quaternions=rng.normal(size=(n, 4)).astype(np.float32),
        opacities=rng.uniform(0.01, 0.99, n).astype(np.float32),
        sh=rng.uniform(-0.9, 0.9, (n, SH_COUNTS[degree], 3)).astype(np.float32),
    )


def covariances(g: Gaussians) -> NDArray:
    axes = Rotation.from_quat(np.roll(g.quaternions, -1, 1)).as_matrix() * g.scales[:, None].astype(np.float64)
    return axes @ axes.swapaxes(1, 2)


def rotation_gap(a: NDArray, b: NDArray) -> float:
    """The largest angle in radians between quaternions (w, x, y, z) of any length and sign."""
    a, b = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (a.astype(np.float64), b.astype(np.float64)))
    return float(2 * np.arccos(np.clip(np.abs((a * b).sum(1)), 0, 1)).max())


def check_close(
    a: Gaussians, b: Gaussians, *, mean: float, log_scale: float, angle: float, opacity: float, dc: float, rest: float
):
    assert len(a) == len(b) and a.sh_degree == b.sh_degree
    np.testing.assert_allclose(a.means, b.means, rtol=0, atol=mean)
    np.testing.assert_allclose(np.log(a.scales), np.log(b.scales), rtol=0, atol=log_scale)
    assert rotation_gap(a.quaternions, b.quaternions) <= angle
    np.testing.assert_allclose(a.opacities, b.opacities, rtol=0, atol=opacity)
    np.testing.assert_allclose(a.sh[:, 0], b.sh[:, 0], rtol=0, atol=dc)
    np.testing.assert_allclose(a.sh[:, 1:], b.sh[:, 1:], rtol=0, atol=rest)


EXACT = {"mean": 0, "log_scale": 1e-6, "angle": 1e-6, "opacity": 1e-6, "dc": 0, "rest": 0}
# half a step of each code; a quaternion's three parts are each within 0.7 / 1022, which turns it by up to 4 times that
SPZ = {
    "mean": 2**-20,
    "log_scale": 0.5 / 16 + 1e-5,
    "angle": 0.004,
    "opacity": 0.5 / 255 + 1e-6,
    "dc": 0.014,
    "rest": 0.004,
}


# --- harmonics and axes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_turned_harmonics_show_the_same_colour_in_the_turned_direction(degree):
    rng = np.random.default_rng(1)
    sh = rng.normal(size=(5, SH_COUNTS[degree], 3)).astype(np.float32)
    directions = rng.normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rotation = Rotation.random(rng=np.random.default_rng(2)).as_matrix()
    before = np.einsum("dk,nkc->ndc", sh_basis(directions, degree), sh)
    after = np.einsum("dk,nkc->ndc", sh_basis(directions @ rotation.T, degree), rotate_sh(sh, rotation))
    np.testing.assert_allclose(after, before, atol=2e-6)  # float32 coefficients


def test_two_turns_are_one_turn():
    a, b = Rotation.random(2, rng=np.random.default_rng(3)).as_matrix()
    g = sample(20, 3)
    check_close(
        g.rotated(a).rotated(b), g.rotated(b @ a), mean=3e-6, log_scale=0, angle=2e-3, opacity=0, dc=0, rest=3e-6
    )


def test_a_half_turn_only_changes_signs_and_twice_is_nothing():
    g = sample(50, 3)
    turned = g.rotated(FLIP)
    np.testing.assert_array_equal(np.abs(turned.sh), np.abs(g.sh))
    np.testing.assert_array_equal(turned.means, g.means * np.array([1, -1, -1], np.float32))
    np.testing.assert_array_equal(turned.rotated(FLIP).sh, g.sh)


def test_turned_gaussians_have_turned_covariances():
    rotation, g = Rotation.random(rng=np.random.default_rng(4)).as_matrix(), sample(30, 0)
    want = rotation @ covariances(g) @ rotation.T
    np.testing.assert_allclose(covariances(g.rotated(rotation)), want, atol=1e-5 * want.max())


@pytest.mark.parametrize(
    "matrix, words",
    [(np.diag([1.0, 1, -1]), "reflection"), (2 * np.eye(3), "not a rotation"), (np.eye(2), "not a rot")],
)
def test_only_rotations_turn_a_scene(matrix, words):
    with pytest.raises(LongtakeError, match=words):
        sample(2, 1).rotated(matrix)


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 9001])  # one splat, and more than a block
def test_ply_round_trip(tmp_path, degree, n):
    g = sample(n, degree)
    write_scene(g, tmp_path / "a.ply")
    scene = read_scene(tmp_path / "a.ply")
    assert (scene.format, scene.antialiased, scene.num_dropped) == ("ply", None, 0)
    check_close(scene.gaussians, g, **EXACT)
    np.testing.assert_array_equal(scene.gaussians.quaternions, g.quaternions)


def test_ply_keeps_opacities_of_exactly_0_and_1(tmp_path):
    g = sample(2, 0)
    g.opacities[:] = 0, 1
    write_scene(g, tmp_path / "a.ply")
    np.testing.assert_array_equal(read_scene(tmp_path / "a.ply").gaussians.opacities, [0, 1])


@pytest.mark.parametrize("degree", [0, 3])
def test_safetensors_round_trip_bit_for_bit(tmp_path, degree):
    g = sample(100, degree)
    write_scene(g, tmp_path / "a.safetensors")
    back = read_scene(tmp_path / "a.safetensors").gaussians
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(back, name), getattr(g, name))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [3, 4])
def test_spz_round_trip(tmp_path, degree, version):
    g = sample(500, degree)
    spz.write_spz(tmp_path / "a", g, version=version, antialiased=True)
    scene = read_scene(tmp_path / "a")
    assert (scene.format, scene.antialiased) == ("spz", True)
    check_close(scene.gaussians, g, **SPZ)
    spz.write_spz(tmp_path / "b", scene.gaussians, version=version)  # what was rounded once stays
    again = read_scene(tmp_path / "b").gaussians
    check_close(again, scene.gaussians, mean=0, log_scale=1e-5, angle=2e-3, opacity=0, dc=1e-6, rest=1e-6)


def test_splat_round_trip(tmp_path):
    g = sample(300, 0)
    write_scene(g, tmp_path / "a.splat")
    back = read_scene(tmp_path / "a.splat").gaussians
    check_close(back, g, mean=0, log_scale=0, angle=0.02, opacity=0.5 / 255 + 1e-6, dc=0.5 / 255 / SH0 + 1e-5, rest=0)


def test_a_suffix_means_nothing_when_reading(tmp_path):
    g = sample(3, 1)
    for suffix, want in ((".ply", "ply"), (".spz", "spz"), (".splat", "splat"), (".safetensors", "safetensors")):
        write_scene(g, tmp_path / f"a{suffix}")
        named_wrong = tmp_path / "scene.mp4"
        (tmp_path / f"a{suffix}").rename(named_wrong)
        assert detect(named_wrong) == want == read_scene(named_wrong).format
    assert not list(tmp_path.glob("*.partial"))


def test_properties_of_a_ply_may_stand_in_any_order_and_type(tmp_path):
    g = sample(10, 1)
    write_scene(g, tmp_path / "a.ply")
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    names = [line.split()[2].decode() for line in header.splitlines() if line.startswith(b"property")]
    rows = np.frombuffer(body, np.dtype([(name, "<f4") for name in names]))
    shuffled = np.dtype([("nx", ">f4"), *((name, ">f8") for name in sorted(names)), ("segment", ">i2")])
    other = np.zeros(10, shuffled)
    for name in names:
        other[name] = rows[name]
    kinds = {"f4": "float", "f8": "double", "i2": "short"}
    lines = ["ply", "format binary_big_endian 1.0", "comment by hand", "element vertex 10"]
    lines += [f"property {kinds[shuffled[name].str[1:]]} {name}" for name in shuffled.names or ()]
    (tmp_path / "b").write_bytes("\n".join([*lines, "end_header\n"]).encode() + other.tobytes())
    check_close(read_scene(tmp_path / "b").gaussians, g, **EXACT)


def test_a_mip_splatting_filter_widens_the_splats_and_thins_their_opacity(tmp_path):
    names = [*ply.MEANS, *ply.DC, "opacity", *ply.SCALES, *ply.ROTATION, "filter_3D"]
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 1", *(f"property float {n}" for n in names)]
    values = np.array([0, 0, 0, 0, 0, 0, 0, *np.log([3, 1, 2]), 1, 0, 0, 0, 4], np.float32)
    (tmp_path / "a").write_bytes("\n".join([*lines, "end_header\n"]).encode() + values.astype("<f4").tobytes())
    scene = read_scene(tmp_path / "a")
    np.testing.assert_allclose(scene.gaussians.scales[0], [5, 17**0.5, 20**0.5], rtol=1e-6)
    np.testing.assert_allclose(scene.gaussians.opacities[0], 0.5 * 6 / (5 * 17**0.5 * 20**0.5), rtol=1e-6)
    assert scene.antialiased and "filter_3D" in scene.remarks[0]


# --- layouts written out by hand -------------------------------------------------------------------------------------


def test_compressed_ply_by_hand(tmp_path):
    bounds = ["min_x", "min_y", "min_z", "max_x", "max_y", "max_z"]
    bounds += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
    lines = ["ply", "format binary_little_endian 1.0", "element chunk 1", *(f"property float {b}" for b in bounds)]
    lines += ["element vertex 2", *(f"property uint packed_{n}" for n in ("position", "rotation", "scale", "color"))]
    lines += ["element sh 2", *(f"property uchar f_rest_{i}" for i in range(9)), "end_header\n"]
    chunk = np.array([-1, -2, -3, 1, 2, 3, -4, -4, -4, -2, -2, -2], np.float32)
    whole = 2047 << 21 | 1023 << 11 | 2047
    largest_is_y = 2 << 30 | 1023 << 20 | 511 << 10 | 511  # w at its most, x and z about 0
    vertex = np.array([0, largest_is_y, whole, 255 << 24 | 255, whole, 0, 0, 128 << 8], np.uint32)
    harmonics = np.array([0, 255, 127, 1, 2, 3, 4, 5, 6] * 2, np.uint8)
    parts = (chunk.astype("<f4"), vertex.astype("<u4"), harmonics)
    (tmp_path / "a").write_bytes("\n".join(lines).encode() + b"".join(part.tobytes() for part in parts))
    g = read_scene(tmp_path / "a").gaussians
    np.testing.assert_array_equal(g.means, [[-1, -2, -3], [1, 2, 3]])
    np.testing.assert_allclose(np.log(g.scales), [[-2] * 3, [-4] * 3], rtol=1e-6)
    np.testing.assert_allclose(g.quaternions[0], [0.5**0.5, 0, 0.5**0.5, 0], atol=1e-3)
    np.testing.assert_array_equal(g.opacities, [1, 0])
    np.testing.assert_allclose(g.sh[0, 0] * SH0 + 0.5, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(g.sh[1, 0] * SH0 + 0.5, [0, 0, 128 / 255], atol=1e-6)
    red, green = [-4, 4, -4 + 127.5 / 32], [-4 + 1.5 / 32, -4 + 2.5 / 32, -4 + 3.5 / 32]
    np.testing.assert_allclose(g.sh[0, 1:, :2].T, [red, green], atol=1e-6)


def old_spz(version: int, extensions: bytes = b"") -> bytes:
    """An SPZ of version 1, 2 or 3 of one splat at (1, 2, -3), degree 1."""
    fixed = b"".join(int(v * 4096).to_bytes(3, "little", signed=True) for v in (1, 2, -3))
    means = np.array([1, 2, -3], "<f2").tobytes() if version == 1 else fixed
    # a turn of 90 degrees about y: x y z = 0, sqrt(1/2), 0; in three bytes, or smallest-three with w left out
    turn = bytes([127, 218, 128]) if version < 3 else struct.pack("<I", 3 << 30 | 511 << 10)
    body = means + bytes([51, 255, 128, 0, 160, 176, 144]) + turn + bytes([128, 192, 64, 128, 128, 128, 0, 128, 255])
    flags = 2 if extensions else 0
    return gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", version, 1, 1, 12, flags, 0) + body + extensions)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_spz_of_each_old_version_by_hand(tmp_path, version):
    (tmp_path / "a").write_bytes(old_spz(version))
    scene = read_scene(tmp_path / "a")
    g = scene.gaussians
    np.testing.assert_array_equal(g.means, [[1, -2, 3]])  # y and z change sign
    np.testing.assert_allclose(np.log(g.scales), [[0, 1, -1]], atol=1e-6)
    np.testing.assert_allclose(g.opacities, [0.2], atol=1e-6)
    np.testing.assert_allclose(g.sh[0, 0], [0.5 / 0.15, (128 / 255 - 0.5) / 0.15, -0.5 / 0.15], rtol=1e-4)
    np.testing.assert_array_equal(g.sh[0, 1:], [[0, -0.5, 0.5], [0, 0, 0], [-1, 0, 127 / 128]])  # y flips, z flips
    turned = FLIP @ Rotation.from_euler("y", 90, degrees=True).as_matrix()
    want = turned @ np.diag(g.scales[0].astype(np.float64) ** 2) @ turned.T
    np.testing.assert_allclose(covariances(g)[0], want, atol=0.03 * want.max())  # 8-bit quaternions


@pytest.mark.parametrize(
    "code, signs", [(0, (1, -1, -1)), (4, (1, -1, -1)), (6, (1, 1, 1)), (1, (-1, 1, -1)), (7, (-1, -1, 1))]
)
def test_an_spz_may_state_its_axes(tmp_path, code, signs):
    (tmp_path / "a").write_bytes(old_spz(3, struct.pack("<III", 0xADBE0003, 4, code)))
    np.testing.assert_array_equal(read_scene(tmp_path / "a").gaussians.means[0], np.array([1, 2, -3]) * signs)


def test_extensions_of_an_spz_are_told_of(tmp_path):
    (tmp_path / "a").write_bytes(old_spz(3, struct.pack("<IIfff", 0xADBE0002, 12, 0, 1, 2)))
    assert read_scene(tmp_path / "a").remarks == ("the SPZ extension 0xadbe0002 (12 bytes) was left out",)
    (tmp_path / "a").write_bytes(old_spz(3, struct.pack("<III", 0xADBE0003, 4, 8)))
    with pytest.raises(BadMedia, match="left-handed"):
        read_scene(tmp_path / "a")


# --- SOG -------------------------------------------------------------------------------------------------------------


def webp(pixels: NDArray, width: int, height: int) -> bytes:
    """Lossless WebP of pixels [N, 4] (red green blue alpha), filled up with ones."""
    image = np.ones((width * height, 4), np.uint8)
    image[: len(pixels)] = pixels
    bgra = image.reshape(height, width, 4)[..., [2, 1, 0, 3]]
    data = cv2.imencode(".webp", bgra, [cv2.IMWRITE_WEBP_QUALITY, 101])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert (decoded[..., :3] == bgra[..., :3]).all(), "this encoder keeps colours only where alpha is not 0"
    return data.tobytes()


def make_sog(folder: Path, degree: int, n: int = 200, seed: int = 5) -> Gaussians:
    """A SOG version 2 of random codes, and what it must read as."""
    rng = np.random.default_rng(seed)
    width, height = 16, -(-n // 16)
    opaque = np.full((n, 1), 255, np.uint8)
    low, high = np.array([-1.0, -0.5, 0]), np.array([1.0, 0.5, 2])
    position = rng.integers(0, 65536, (n, 3))
    tags, three = rng.integers(0, 4, n), rng.integers(60, 196, (n, 3))
    scales, colours, alphas = rng.integers(0, 256, (n, 3)), rng.integers(0, 256, (n, 3)), rng.integers(1, 256, n)
    scale_book, colour_book = np.sort(rng.uniform(-6, 0, 256)), np.sort(rng.uniform(-2, 2, 256))
    files = {
        "means_l.webp": np.concatenate([position & 255, opaque], 1),
        "means_u.webp": np.concatenate([position >> 8, opaque], 1),
        "quats.webp": np.concatenate([three, 252 + tags[:, None]], 1),
        "scales.webp": np.concatenate([scales, opaque], 1),
        "sh0.webp": np.concatenate([colours, alphas[:, None]], 1),
    }
    meta: dict = {
        "version": 2,
        "count": n,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scale_book.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colour_book.tolist(), "files": ["sh0.webp"]},
    }
    k = SH_COUNTS[degree] - 1
    rest = np.zeros((n, 0, 3))
    if degree:
        entries, book = 100, np.sort(rng.uniform(-1, 1, 256))
        palette, labels = rng.integers(0, 256, (entries, k, 3)), rng.integers(0, entries, n)
        rest = book[palette][labels]
        rows = np.concatenate([palette.reshape(-1, 3), np.full((entries * k, 1), 255)], 1)
        (folder / "shN_centroids.webp").write_bytes(webp(rows, 64 * k, 2))
        files["shN_labels.webp"] = np.concatenate([np.stack([labels & 255, labels >> 8, 0 * labels], 1), opaque], 1)
        names = ["shN_centroids.webp", "shN_labels.webp"]
        meta["shN"] = {"count": entries, "bands": degree, "codebook": book.tolist(), "files": names}
    for name, pixels in files.items():
        (folder / name).write_bytes(webp(pixels, width, height))
    (folder / "meta.json").write_text(json.dumps(meta))
    logs = low + (high - low) * position / 65535
    quaternions = np.zeros((n, 4))
    parts = (three / 255 * 2 - 1) / 2**0.5
    for i, tag in enumerate(tags):
        quaternions[i, [j for j in range(4) if j != tag]] = parts[i]
        quaternions[i, tag] = np.sqrt(1 - (parts[i] ** 2).sum())
    fields = {
        "means": np.sign(logs) * np.expm1(np.abs(logs)),
        "scales": np.exp(scale_book[scales]),
        "quaternions": quaternions,
        "opacities": alphas / 255,
        "sh": np.concatenate([colour_book[colours][:, None], rest], 1),
    }
    return Gaussians(**{name: values.astype(np.float32) for name, values in fields.items()})


NEAR = {"mean": 1e-6, "log_scale": 1e-5, "angle": 2e-3, "opacity": 1e-6, "dc": 1e-6, "rest": 1e-6}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("form", ["folder", "meta.json", "zip"])
def test_sog_version_2(tmp_path, degree, form):
    want = make_sog(tmp_path, degree)
    path = {"folder": tmp_path, "meta.json": tmp_path / "meta.json", "zip": tmp_path / "a.bin"}[form]
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in [*tmp_path.glob("*.webp"), tmp_path / "meta.json"]:
                archive.write(file, file.name)
    scene = read_scene(path)
    assert scene.format == "sog"
    check_close(scene.gaussians, want, **NEAR)


def test_sog_version_1_with_harmonics(tmp_path):
    want = make_sog(tmp_path, 2)
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["version"]
    meta["means"]["shape"] = [meta.pop("count"), 3]
    meta["scales"] |= {"mins": [-6, -5, -4], "maxs": [0, 1, 2]}
    meta["sh0"] |= {"mins": [-2, -2, -2, -4], "maxs": [2, 2, 2, 6]}
    meta["shN"] |= {"mins": -1, "maxs": 1}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    g = read_scene(tmp_path).gaussians
    assert g.sh_degree == 2
    picture = cv2.imread(str(tmp_path / "scales.webp"), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    codes = picture[..., 2::-1].reshape(-1, 3)[: len(g)]
    np.testing.assert_allclose(np.log(g.scales), np.array([-6, -5, -4]) + codes / 255 * 6, atol=1e-5)
    logits = -4 + 10 * want.opacities.astype(np.float64)
    np.testing.assert_allclose(g.opacities, 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(g.means, want.means, atol=1e-6)
    steps = (g.sh[:, 1:] + 1) / 2 * 255
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)


def test_lossless_webp_with_alpha_decodes_to_the_byte():
    image = np.random.default_rng(0).integers(1, 256, (40, 24, 4)).astype(np.uint8)
    data = webp(image.reshape(-1, 4), 24, 40)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), -1)
    assert decoded is not None
    np.testing.assert_array_equal(decoded[..., [2, 1, 0, 3]], image)


# --- real files ------------------------------------------------------------------------------------------------------


def test_one_object_in_two_formats(shared_data):
    a = read_scene(shared_data / "splats" / "biker.spz").gaussians
    b = read_scene(shared_data / "splats" / "biker.compressed.ply").gaussians
    assert len(a) == len(b) == 152_746
    for power in (0.05, 0.5, 0.95):  # the two writers kept different orders, so first the distributions
        np.testing.assert_allclose(np.quantile(a.means, power, 0), np.quantile(b.means, power, 0), atol=1e-3)
        np.testing.assert_allclose(np.quantile(a.opacities, power), np.quantile(b.opacities, power), atol=1 / 255)
        np.testing.assert_allclose(np.quantile(a.sh, power, 0), np.quantile(b.sh, power, 0), atol=0.03)
    distance, match = KDTree(b.means).query(a.means[::40])
    assert np.quantile(distance, 0.99) < 1e-3  # 12 fractional bits on one side, 11 bits of a chunk on the other
    near = distance < 5e-4
    for name, most in (("opacities", 1.01 / 255), ("sh", 0.03)):
        gap = np.abs(getattr(a, name)[::40] - getattr(b, name)[match])
        assert np.median(gap[near]) <= most and np.mean(gap[near] <= most) > 0.9, name
    big = near & (np.abs(a.opacities[::40] - b.opacities[match]) < 0.005) & (b.scales[match].max(1) > 0.002)
    ours, theirs = (covariances(g)[rows][big] for g, rows in ((a, np.s_[::40]), (b, match)))
    gap = np.linalg.norm(ours - theirs, axis=(1, 2)) / np.linalg.norm(theirs, axis=(1, 2))
    assert big.sum() > 500 and np.median(gap) < 0.06  # log scales in steps of 1/16: variances to 6 %


def test_the_logo_in_sog_version_1_reads(shared_data):
    scene = read_scene(shared_data / "splats" / "playcanvas_logo_sog")
    assert len(scene.gaussians) == 307_128 and scene.num_dropped == 0 and scene.gaussians.sh_degree == 0
    assert 0.5 < scene.gaussians.opacities.mean() < 0.9


def test_real_points_come_back_through_every_format(shared_data, tmp_path):
    points = np.load(shared_data / "splats" / "gsplat_test_garden.npz")
    n = len(points["means3d"])
    g = Gaussians(
        means=points["means3d"],
        scales=np.full((n, 3), 0.01, np.float32),
        quaternions=np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        opacities=np.full(n, 0.9, np.float32),
        sh=((points["colors"][:, None] / 255 - 0.5) / SH0).astype(np.float32),
    )
    for suffix, tolerance in (
        (".ply", EXACT),
        (".spz", SPZ),
        (".splat", EXACT | {"opacity": 0.5 / 255 + 1e-6, "dc": 1e-5}),
    ):
        write_scene(g, tmp_path / f"a{suffix}")
        check_close(read_scene(tmp_path / f"a{suffix}").gaussians, g, **tolerance)


# --- gsply, another implementation -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gsply():
    """Another reader and writer of these formats, uncompiled: compiling takes it longer than a few hundred splats."""
    reason = "gsply, the other reader of these formats, is not installed"
    pytest.importorskip("numba", reason=reason).config.DISABLE_JIT = True
    return pytest.importorskip("gsply", reason=reason)


def from_gsply(data) -> Gaussians:
    """What gsply read (logarithms and logits), as Gaussians."""
    rest = np.asarray(data.shN) if data.shN is not None and data.shN.size else np.zeros((len(data.means), 0, 3))
    fields = {
        "means": data.means,
        "scales": np.exp(data.scales),
        "quaternions": data.quats,
        "opacities": 1 / (1 + np.exp(-data.opacities.astype(np.float64))),
        "sh": np.concatenate([np.asarray(data.sh0)[:, None], rest], 1),
    }
    return Gaussians(**{name: np.ascontiguousarray(values, np.float32) for name, values in fields.items()})


def to_gsply(gsply, g: Gaussians):
    return gsply.GSData.from_arrays(
        means=g.means,
        scales=np.log(g.scales),
        quats=g.quaternions / np.linalg.norm(g.quaternions, axis=1, keepdims=True),
        opacities=raw.logit(g.opacities),
        sh0=np.ascontiguousarray(g.sh[:, 0]),
        shN=np.ascontiguousarray(g.sh[:, 1:]) if g.sh_degree else None,
        format="ply",
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gsply_reads_our_ply_and_we_read_its(gsply, tmp_path, degree):
    g = sample(300, degree)
    write_scene(g, tmp_path / "a.ply")
    check_close(from_gsply(gsply.plyread(tmp_path / "a.ply")), g, **EXACT)
    gsply.plywrite(tmp_path / "b.ply", to_gsply(gsply, g))
    check_close(read_scene(tmp_path / "b.ply").gaussians, g, **(EXACT | {"angle": 2e-3}))


@pytest.mark.parametrize("degree", [0, 3])
def test_we_read_gsplys_compressed_ply_as_it_does(gsply, tmp_path, degree):
    (tmp_path / "a.ply").write_bytes(gsply.compress_to_bytes(to_gsply(gsply, sample(700, degree))))
    theirs = from_gsply(gsply.plyread(tmp_path / "a.ply"))
    ours = read_scene(tmp_path / "a.ply").gaussians
    check_close(ours, theirs, **(NEAR | {"rest": 1 / 64}))  # its harmonics are read half a step lower


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [3, 4])
def test_gsply_reads_our_spz_and_we_read_its(gsply, tmp_path, degree, version):
    if version == 4:
        pytest.importorskip("zstandard", reason="gsply reads SPZ 4 by way of zstandard, which is not installed")
    g = sample(300, degree)
    spz.write_spz(tmp_path / "a.spz", g, version=version)
    ours = read_scene(tmp_path / "a.spz").gaussians
    theirs = from_gsply(gsply.read_spz(tmp_path / "a.spz")).rotated(FLIP)  # gsply leaves the file's axes
    check_close(ours, theirs, **NEAR)
    gsply.write_spz(tmp_path / "b.spz", to_gsply(gsply, g.rotated(FLIP)), version=version)
    check_close(read_scene(tmp_path / "b.spz").gaussians, g, **(SPZ | {"mean": 2**-12}))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gsply_reads_a_sog_as_we_do(gsply, tmp_path, degree, monkeypatch):
    pytest.importorskip("imagecodecs", reason="gsply reads SOG by way of imagecodecs, which is not installed")
    reader = pytest.importorskip("gsply.sog_reader")
    decode = reader._load_webp_image
    # compiled, its bytes widen when they are shifted; uncompiled they must be wide before
    monkeypatch.setattr(reader, "_load_webp_image", lambda data: (decode(data)[0].astype(np.int64), *decode(data)[1:]))
    make_sog(tmp_path, degree)
    check_close(read_scene(tmp_path).gaussians, from_gsply(gsply.sogread(tmp_path)), **NEAR)


# --- refusals --------------------------------------------------------------------------------------------------------


def plain_ply(n: int, body: bytes, *, format: str = "binary_little_endian", extra: str = "", skip: str = "-") -> bytes:
    names = [*ply.MEANS, *ply.DC, "opacity", *ply.SCALES, *ply.ROTATION]
    lines = ["ply", f"format {format} 1.0", f"element vertex {n}"]
    lines += [f"property float {name}" for name in names if name not in skip.split()]
    return ("\n".join(lines) + "\n" + extra + "end_header\n").encode() + body


def spz4(*, version: int = 4, n: int = 1, degree: int = 0, bits: int = 12, streams: int = 5, toc: int = 32) -> bytes:
    return struct.pack("<4sIIBBBBI12x", b"NGSP", version, n, degree, bits, 0, streams, toc) + bytes(200)


ONE = np.zeros(14, "<f4").tobytes()
MANY = 0xFFFFFFFF
HOSTILE = {
    "empty": (b"", "empty_file", "empty"),
    "text": (b"hello, this is no scene at all.", "unknown_scene_format", "3DGS PLY"),
    "zeros that are no splat": (bytes([255] * 64), "unknown_scene_format", "no scene that is known"),
    "gzip of something else": (gzip.compress(b"hello"), "unknown_scene_format", "gunzip"),
    "ply without end": (b"ply\nformat binary_little_endian 1.0\n", "broken_scene", "no PLY header"),
    "ply of text": (plain_ply(1, b"0 0 0", format="ascii"), "unsupported_scene", "binary_little_endian"),
    "ply of a mesh": (plain_ply(1, ONE[:48], skip="opacity f_dc_0"), "unsupported_scene", "point cloud or a mesh"),
    "ply of 2D Gaussians": (plain_ply(1, ONE[:52], skip="scale_2"), "unsupported_scene", "2D Gaussians"),
    "ply of degree 4": (
        plain_ply(1, ONE + bytes(72 * 4), extra="".join(f"property float f_rest_{i}\n" for i in range(72))),
        "unsupported_scene",
        "72 properties",
    ),
    "ply with 0 splats": (plain_ply(0, b""), "empty_scene", "0 splats"),
    "ply cut off": (plain_ply(2, ONE), "truncated", "Copy the file again"),
    "ply with more than it says": (plain_ply(1, ONE + ONE), "broken_scene", "the count is wrong"),
    "ply that says four thousand million": (plain_ply(MANY, ONE), "too_large", "max_splats"),
    "ply that says more than that": (plain_ply(10**17, ONE), "too_large", "max_splats"),
    "ply that says thirty million": (plain_ply(30_000_000, ONE), "truncated", "element vertex of 30000000"),
    "ply with the same name twice": (plain_ply(1, ONE, extra="property float x\n"), "broken_scene", "twice"),
    "ply with nonsense": (plain_ply(1, ONE, extra="proberty float q\n"), "broken_scene", "proberty"),
    "spz of version 9": (gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 9, 1, 0, 12, 0, 0)), "unsupported_scene", "9"),
    "spz of 0 splats": (gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, 0, 0, 12, 0, 0)), "empty_scene", "0 splats"),
    "spz of degree 4": (spz4(degree=4), "unsupported_scene", "degree 4"),
    "spz with bad fixed point": (spz4(bits=25), "broken_scene", "25"),
    "spz that says many": (spz4(n=MANY), "too_large", "max_splats"),
    "spz that says millions": (spz4(n=30_000_000), "too_large", "exhaust memory"),
    "spz with too many streams": (spz4(streams=200), "broken_scene", "200 streams"),
    "spz whose contents lie outside": (spz4(toc=2**31), "truncated", "table of contents"),
    "spz with other sizes": (spz4(), "broken_scene", "take 0 bytes"),
    "spz 3 without gzip": (spz4(version=3), "broken_scene", "gzip"),
    "spz bomb": (
        gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, 8_000_000, 0, 12, 0, 0) + bytes(1 << 20)),
        "too_large",
        "no scene compresses like that",
    ),
    "spz longer than it says": (
        gzip.compress(zlib.decompress(old_spz(3), 31) + bytes(1 << 22)), "broken_scene", "more than the 1 splats"
    ),
    "spz cut off": (old_spz(3)[:-9], "truncated", "gzip stream"),
    "ksplat": (bytes([0, 1, 0, 0, *[1, 0, 0, 0] * 4, 1, 0]) + bytes(6000), "unsupported_scene", "splat-transform"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_words_and_without_memory(tmp_path, name):
    data, reason, words = HOSTILE[name]
    (tmp_path / "a").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(BadMedia, match=words) as caught:
            read_scene(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.reason == reason
    assert str(tmp_path / "a") in str(caught.value)


def test_what_is_not_there_and_folders_without_a_scene(tmp_path):
    with pytest.raises(BadMedia, match="No such file"):
        read_scene(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadMedia, match="no plain file"):
        read_scene(tmp_path / "pipe")
    with pytest.raises(BadMedia, match=r"meta\.json"):
        read_scene(tmp_path)
    (tmp_path / "0.0001" / "0").mkdir(parents=True)
    (tmp_path / "0.0001" / "0" / "xyz_gpcc.bin").write_bytes(b"")
    with pytest.raises(BadMedia, match="decode_single_scene"):
        read_scene(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.update(version=3), "version 3"),
        (lambda m: m.update(count=0), "0 splats"),
        (lambda m: m.update(count=10**9), "max_splats"),
        (lambda m: m.update(count="200"), "number of splats"),
        (lambda m: m.update(count=100_000), "too small"),
        (lambda m: m.pop("quats"), "no SOG scene"),
        (lambda m: m["quats"].update(files=["../quats.webp"]), "no file beside it"),
        (lambda m: m["quats"].update(files=["/etc/hostname"]), "no file beside it"),
        (lambda m: m["quats"].update(files=["gone.webp"]), "missing"),
        (lambda m: m["means"].update(mins=[0, 1]), "3 finite numbers"),
        (lambda m: m["means"].update(mins=[0, 1, float("nan")]), "3 finite numbers"),
        (lambda m: m["scales"].update(codebook=[0.0] * 255), "256 finite numbers"),
        (lambda m: m["shN"].update(count=3), "palette of 3"),
        (lambda m: m["shN"].update(bands=4), "no known degree"),
        (lambda m: m["shN"].update(bands=2), "too small|wide"),
        (lambda m: m["shN"].update(files=["shN_centroids.webp"]), "2 files"),
    ],
)
def test_a_sog_whose_meta_lies(tmp_path, change, words):
    make_sog(tmp_path, 1)
    meta = json.loads((tmp_path / "meta.json").read_text())
    change(meta)
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(BadMedia, match=words):
        read_scene(tmp_path)


def test_a_webp_that_says_it_is_huge_is_not_decoded(tmp_path):
    make_sog(tmp_path, 0)
    data = bytearray((tmp_path / "quats.webp").read_bytes())
    data[21:25] = (16383 | 16383 << 14 | 1 << 28).to_bytes(4, "little")
    (tmp_path / "quats.webp").write_bytes(data)
    with pytest.raises(BadMedia, match="16384 x 16384, far too large"):
        read_scene(tmp_path)
    lossy = cv2.imencode(".webp", np.zeros((16, 16, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()
    (tmp_path / "quats.webp").write_bytes(lossy)
    with pytest.raises(BadMedia, match="lossy"):
        read_scene(tmp_path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", b" " * (1 << 25))
    with pytest.raises(BadMedia, match="more than"):
        read_scene(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        archive.writestr("arrays.npy", b"")
    with pytest.raises(BadMedia, match=r"no meta\.json"):
        read_scene(tmp_path / "b")


@pytest.mark.parametrize("suffix", [".ply", ".safetensors", ".splat"])
@pytest.mark.parametrize(
    "field, value, words",
    [
        ("means", np.nan, "means is not finite: 2"),
        ("means", np.inf, "means is not finite: 2"),
        ("scales", 0.0, "scales is not positive: 2"),
        ("scales", np.nan, "scales is not finite: 2"),
        ("quaternions", 0.0, "quaternions is zero: 2"),
    ],
)
def test_splats_that_cannot_be_drawn_refuse_the_file_or_are_counted(tmp_path, suffix, field, value, words):
    g = sample(50, 0)
    getattr(g, field)[[7, 30]] = value
    with np.errstate(all="ignore"):
        write_scene(g, tmp_path / f"a{suffix}")
    if suffix == ".splat" and field == "quaternions":
        data = np.fromfile(tmp_path / "a.splat", np.uint8).reshape(50, 32)
        data[[7, 30], 28:] = 128
        data.tofile(tmp_path / "a.splat")
    with pytest.raises(BadMedia, match=f"2 of 50 splats cannot be drawn .*{words}.*first is number 7.*drop_invalid"):
        read_scene(tmp_path / f"a{suffix}")
    scene = read_scene(tmp_path / f"a{suffix}", drop_invalid=True)
    assert len(scene.gaussians) == 48 and scene.num_dropped == 2 and list(scene.dropped.values()) == [2]
    np.testing.assert_array_equal(scene.gaussians.means, np.delete(g.means, [7, 30], 0))
    getattr(g, field)[:] = value
    with np.errstate(all="ignore"):
        write_scene(g, tmp_path / f"b{suffix}")
    if suffix != ".splat":
        with pytest.raises(BadMedia, match="Nothing is left"):
            read_scene(tmp_path / f"b{suffix}", drop_invalid=True)


def test_safetensors_of_something_else(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "a")
    with pytest.raises(BadMedia, match="tensors weight"):
        read_scene(tmp_path / "a")
    g = sample(4, 1)
    fields = {name: getattr(g, name) for name in FIELDS}
    save_file(fields | {"sh": g.sh[:, :3].copy()}, tmp_path / "a")
    with pytest.raises(BadMedia, match="not F32"):
        read_scene(tmp_path / "a")
    save_file(fields | {"means": g.means.astype(np.float64)}, tmp_path / "a")
    with pytest.raises(BadMedia, match="means is F64"):
        read_scene(tmp_path / "a")
    save_file({name: values[:0] for name, values in fields.items()}, tmp_path / "a")
    with pytest.raises(BadMedia, match="0 splats"):
        read_scene(tmp_path / "a")


def test_what_cannot_be_written(tmp_path):
    g = sample(3, 0)
    with pytest.raises(LongtakeError, match=r"\.ply, \.spz"):
        write_scene(g, tmp_path / "a.ksplat")
    with pytest.raises(LongtakeError, match=r"not as \.compressed\.ply"):
        write_scene(g, tmp_path / "a.compressed.ply")
    with pytest.raises(LongtakeError, match="0 splats"):
        write_scene(sample(0, 0), tmp_path / "a.ply")
    g.means[0] = 1e8
    with pytest.raises(LongtakeError, match="2\\^23"):
        write_scene(g, tmp_path / "a.spz")
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingPart, match="Name another place"):
        write_scene(sample(1, 0), tmp_path / "gone" / "a.ply")


def fuzz_inputs(folder: Path) -> dict[str, bytes]:
    g = sample(6, 1)
    out = {}
    for suffix in (".ply", ".spz", ".splat", ".safetensors"):
        write_scene(g, folder / f"a{suffix}")
        out[suffix] = (folder / f"a{suffix}").read_bytes()
    spz.write_spz(folder / "old", g, version=3)
    out["spz 3"] = (folder / "old").read_bytes()
    sog = folder / "sog"
    sog.mkdir()
    make_sog(sog, 1, n=20)
    with zipfile.ZipFile(folder / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sog.iterdir():
            archive.write(file, file.name)
    out["sog"] = (folder / "zip").read_bytes()
    return out


def test_damaged_files_raise_nothing_but_words(tmp_path):
    """Cut off at 60 places and with 250 changed bytes each: read, or refused by a LongtakeError; nothing else."""
    rng = np.random.default_rng(7)
    refused = 0
    for name, data in fuzz_inputs(tmp_path).items():
        cuts = np.linspace(0, len(data) - 1, 60).astype(int)
        damaged = [data[:cut] for cut in cuts]
        for _ in range(250):
            other = bytearray(data)
            # half of the damage in the first 400 bytes, where headers are
            for at in rng.integers(0, min(len(data), 400) if rng.random() < 0.5 else len(data), rng.integers(1, 4)):
                other[at] = rng.integers(0, 256)
            damaged.append(bytes(other))
        for i, other in enumerate(damaged):
            (tmp_path / "x").write_bytes(other)
            try:
                scene = read_scene(tmp_path / "x", drop_invalid=True)
            except LongtakeError as error:
                refused += 1
                assert len(str(error)) > 20
            else:
                assert i >= len(cuts) or name == ".splat", f"{name} cut off at byte {len(other)} was read"
                assert len(scene.gaussians) > 0
    assert refused > 500
