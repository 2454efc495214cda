"""Cameras of single pictures: known geometry comes back, limits hold, EXIF as another program writes it, zooms in time.

The networks here are tiny ones with random weights, and `Exact...`: the exact point map of a known camera in place of
a network's.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from longtake.errors import LongtakeError
from longtake.model import exif, intrinsics
from longtake.model.exif import read_exif
from longtake.model.intrinsics import Reading, check_fov, from_exif, from_moge2, from_pi3x, given, resample
from longtake.model.moge2 import config as moge2_config
from longtake.model.moge2 import focal
from longtake.model.moge2.config import parse_config
from longtake.model.moge2.infer import infer
from longtake.model.moge2.network import Maps, MoGe2
from longtake.model.pi3x.geometry import target_size
from longtake.model.pi3x.network import Pi3X

from .test_moge2 import TINY as TINY_BACKBONE
from .test_moge2 import tiny_config
from .test_pi3x import TINY as TINY_PI3X

SIZES = [(640, 480), (1280, 704), (270, 480), (101, 67)]  # wide and tall, larger and smaller than what Pi3X sees
WIDE = [0.5, 1.0, 2.0, 1.5]  # widths over focal lengths


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def reading(fov_x_deg: float, fov_y_deg: float, source: str = "pi3x") -> Reading:
    fx, fy = (size / 2 / math.tan(math.radians(fov) / 2) for size, fov in ((640, fov_x_deg), (480, fov_y_deg)))
    return Reading(source=source, width=640, height=480, intrinsics=(fx, fy, 319.5, 239.5))


# ---- networks ----------------------------------------------------------------------------------------------------


class ExactPi3X(torch.nn.Module):
    """In place of Pi3X: the rays of a camera whose focal lengths are fx, fy in pixels of the whole picture."""

    def __init__(self, fx: float, fy: float, width: int, height: int) -> None:
        super().__init__()
        self.anywhere = torch.nn.Parameter(torch.zeros(1))
        self.fx, self.fy, self.size = fx, fy, (width, height)

    def forward(self, images):
        height, width = images.shape[-2:]
        assert (width, height) == target_size(*self.size) and 0.9 < images.max() <= 1
        y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in (height, width)), indexing="ij")
        slope_x, slope_y = x * self.size[0] / width / self.fx, y * self.size[1] / height / self.fy
        rays = torch.stack([slope_x, slope_y, torch.ones_like(x)], -1)
        return SimpleNamespace(rays=torch.nn.functional.normalize(rays, dim=-1)[None, None])


@pytest.mark.parametrize("width, height, wide", [(*size, w) for size, w in zip(SIZES, WIDE, strict=True)])
def test_pi3x_reading_is_the_camera_whose_rays_it_has(width, height, wide):
    fx, fy = width / wide, 1.1 * width / wide  # pixels need not be square
    got = from_pi3x(ExactPi3X(fx, fy, width, height), picture(width, height))  # type: ignore[arg-type]
    want = (fx, fy, (width - 1) / 2, (height - 1) / 2)
    np.testing.assert_allclose(got.intrinsics, want, rtol=1e-6)  # rays are float32
    assert got.source == "pi3x" and "CC-BY-NC-4.0" in got.remark


def test_pi3x_reading_that_is_no_camera_is_refused():
    with pytest.raises(LongtakeError, match=r"pi3x: fx, fy, cx, cy = -500, 500, .* are no camera's"):
        from_pi3x(ExactPi3X(-500, 500, 64, 48), picture(64, 48))  # type: ignore[arg-type]
    with pytest.raises(LongtakeError, match="pi3x: fx, fy, cx, cy = nan"):
        from_pi3x(ExactPi3X(math.nan, 500, 64, 48), picture(64, 48))  # type: ignore[arg-type]


def test_pi3x_reading_is_the_published_fit_to_the_networks_own_rays():
    """sum(x u) / sum(x^2) over the rays' slopes, scaled by each axis, for a real network of random weights."""
    torch.manual_seed(11)  # one of those whose rays fit focal lengths above 0
    net = Pi3X(replace(TINY_PI3X, encoder_depth=1, decoder_depth=2, pose_blocks=(), head_depth=1), multimodal=False)
    rgb, seen = picture(320, 200), []
    net.eval().register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out.rays[0, 0])))
    got = from_pi3x(net, rgb)
    images, rays = seen[0][0], seen[0][1].double().numpy()
    width, height = target_size(320, 200)
    assert images.shape == (1, 1, 3, height, width)
    x, y = rays[..., 0] / abs(rays[..., 2]), rays[..., 1] / abs(rays[..., 2])
    fx = (x * (np.arange(width) - (width - 1) / 2)).sum() / (x * x).sum() * 320 / width
    fy = (y * (np.arange(height) - (height - 1) / 2)[:, None]).sum() / (y * y).sum() * 200 / height
    np.testing.assert_allclose(got.intrinsics, (fx, fy, 159.5, 99.5), rtol=1e-6)


class ExactMoGe2(torch.nn.Module):
    """In place of MoGe-2: a hilly surface before a camera of this focal length, its depths without their shift."""

    config = SimpleNamespace(num_tokens_range=(20, 60))

    def __init__(self, focal_px: float, *, flat: bool = False) -> None:
        super().__init__()
        self.anywhere, self.focal_px, self.flat = torch.nn.Parameter(torch.zeros(1)), focal_px, flat

    def forward(self, image, num_tokens):
        height, width = image.shape[-2:]
        assert 0.9 < image.max() <= 1
        y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in (height, width)), indexing="ij")
        z = 2 + (0 if self.flat else 1) * torch.sin(x / width * 5) * torch.cos(y / height * 4)
        points = torch.stack([x / self.focal_px * z, y / self.focal_px * z, z - 1.5], -1)
        return Maps(points=points[None], normal=None, mask=None, metric_scale=None)


@pytest.mark.parametrize("width, height, wide", [(*size, w) for size, w in zip(SIZES, WIDE, strict=True)])
def test_moge2_reading_is_the_camera_that_its_points_project_by(width, height, wide):
    got = from_moge2(ExactMoGe2(width / wide), picture(width, height))  # type: ignore[arg-type]
    want = (width / wide, width / wide, (width - 1) / 2, (height - 1) / 2)
    np.testing.assert_allclose(got.intrinsics, want, rtol=1e-4)  # points are float32
    assert got.focal_sigma is not None and 0 < got.focal_sigma < 0.05 and got.remark == "weights: MIT"


def test_moge2_says_where_points_do_not_tell_the_focal_length():
    with pytest.raises(LongtakeError, match="do not tell the focal length"):
        from_moge2(ExactMoGe2(640, flat=True), picture(640, 480))  # type: ignore[arg-type]


def test_moge2_reading_is_that_of_infer(monkeypatch):
    """A real network of random weights, whose points tell a focal length only by a lax measure."""
    monkeypatch.setitem(moge2_config.BACKBONES, "dinov2_tiny14", TINY_BACKBONE)
    torch.manual_seed(3)
    net, rgb = MoGe2(parse_config(tiny_config())).eval(), picture(70, 42)
    with pytest.raises(LongtakeError, match="do not tell the focal length"):
        from_moge2(net, rgb)
    monkeypatch.setattr(focal, "MAX_SIGMA", 1e9)
    found = infer(net, torch.tensor(rgb).permute(2, 0, 1) / 255)
    got = from_moge2(net, rgb)
    assert got.intrinsics == pytest.approx((float(found.intrinsics[0, 0]) * 70,) * 2 + (34.5, 20.5))
    assert got.intrinsics[1] == pytest.approx(float(found.intrinsics[1, 1]) * 42), "square pixels"
    assert got.focal_sigma == pytest.approx(float(found.focal_sigma))


# ---- the check ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [25.01, 60, 119.99])
@pytest.mark.parametrize("outside", [24.99, 120.01, 3, 170])
def test_both_fields_of_view_must_be_in_range(inside, outside):
    check_fov(reading(inside, inside))
    for fovs in ((inside, outside), (outside, inside)):
        assert not reading(*fovs).in_range
        with pytest.raises(LongtakeError, match=f"{fovs[0]:.2f} x {fovs[1]:.2f} degrees by pi3x"):
            check_fov(reading(*fovs))


@pytest.mark.parametrize("limit", ["MIN_FOV_DEG", "MAX_FOV_DEG"])
def test_the_limits_themselves_are_outside(monkeypatch, limit):
    square = Reading(source="given", width=2, height=2, intrinsics=(1, 1, 0, 0))
    assert square.fov_deg == (90, 90) and square.in_range
    monkeypatch.setattr(intrinsics, limit, 90.0)  # the one angle that floating point has exactly
    assert not square.in_range


def test_refusal_names_values_and_ways_out():
    with pytest.raises(LongtakeError) as told:
        check_fov(reading(20, 15), [reading(50, 40, "moge2")])
    words = str(told.value)
    assert "20.00 x 15.00 degrees by pi3x (fx 1814.8" in words and "between 25 and 120" in words
    assert "--intrinsics f or fx,fy,cx,cy" in words and "moge2 says 50.00 x 40.00: --intrinsics 686.2" in words
    assert words.endswith("take a wider picture")
    with pytest.raises(LongtakeError, match=r"take the middle of the picture$") as told:
        check_fov(reading(130, 110, "given"))
    assert "f or fx" not in str(told.value), "who gave the camera is not told to give it"


def test_given_numbers():
    assert given((500.0,), 640, 480).intrinsics == (500, 500, 319.5, 239.5)
    assert given((500.0, 510.0, 300.0, 200.0), 640, 480).intrinsics == (500, 510, 300, 200)
    for wrong in ((0.0,), (-3.0,), (math.nan,), (500.0, math.inf, 1.0, 1.0), (500.0, 500.0, math.nan, 1.0)):
        with pytest.raises(LongtakeError, match=r"given: fx, fy, cx, cy = .* are no camera's"):
            given(wrong, 640, 480)


# ---- EXIF --------------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    """Writes a picture with EXIF tags by Pillow, which is none of ours."""
    pil = pytest.importorskip("PIL.Image", reason="Pillow writes these files")
    rational = pytest.importorskip("PIL.TiffImagePlugin").IFDRational

    def write(name: str, tags: dict[int, float], width: int = 80, height: int = 60, orientation: int = 1):
        block = pil.Exif()
        block[0x0112] = orientation
        block[0x010F] = "A camera of a maker whose name is longer than four letters"
        for tag, value in tags.items():
            whole = isinstance(value, int)
            block.get_ifd(0x8769)[tag] = value if whole else rational(round(value * 10000), 10000)
        pil.fromarray(picture(width, height)).save(tmp_path / name, exif=block)
        return tmp_path / name

    return write


@pytest.fixture
def parse(tmp_path):
    """The tags of a file of these bytes."""

    def parse(data: bytes) -> dict[int, float]:
        (tmp_path / "bytes").write_bytes(data)
        return read_exif(tmp_path / "bytes")

    return parse


TAGS = {exif.FOCAL_MM: 4.25, exif.FOCAL_35MM: 26, exif.X_PER_UNIT: 2000.5, exif.UNIT: 3}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_tags_are_read_from_every_kind_of_file(photo, name):
    path = photo(name, TAGS)
    found = read_exif(path)
    assert {tag: found[tag] for tag in TAGS} == TAGS


def test_both_byte_orders(parse):
    def block(order: str) -> bytes:
        head = struct.pack(order + "HI", 42, 8)
        sub = struct.pack(order + "HHHIIHHIHHI", 2, 37386, 5, 1, 56, 41989, 3, 1, 35, 0, 0)
        first = struct.pack(order + "HHHIII", 1, 34665, 4, 1, 26, 0)
        return (b"II" if order == "<" else b"MM") + head + first + sub + struct.pack(order + "II", 85, 10)

    for order in "<>":
        tags = parse(b"\xff\xd8\xff\xe1..Exif\0\0" + block(order))
        assert tags[exif.FOCAL_35MM] == 35 and tags[exif.FOCAL_MM] == 8.5
        assert parse(block(order)) == tags, "a TIFF file is such a block itself"


def test_damaged_tags_are_left_out(photo, parse):
    """Cut anywhere, with any byte of the block changed: what is still found is numbers, and nothing is raised."""
    data = photo("a.jpg", TAGS).read_bytes()
    start = data.index(b"Exif\0\0")
    rng = np.random.default_rng(0)
    whole = parse(data)
    for cut in range(start, start + 260, 3):
        assert set(parse(data[:cut])) <= set(whole)
    for _ in range(200):
        bad = bytearray(data)
        for _ in range(3):
            bad[start + 6 + int(rng.integers(0, 220))] = int(rng.integers(0, 256))
        assert all(isinstance(value, (int, float)) for value in parse(bytes(bad)).values())


def test_no_tags(parse):
    assert parse(cv2.imencode(".png", picture(40, 30))[1].tobytes()) == parse(b"") == {}
    assert from_exif({}, 40, 30, turned=False) == []


def test_focal_length_from_the_35_mm_equivalent():
    (got,) = from_exif({exif.FOCAL_35MM: 43.2666}, 3000, 4000, turned=True)
    assert got.source == "exif_35mm"
    np.testing.assert_allclose(got.intrinsics, (5000, 5000, 1499.5, 1999.5), rtol=1e-5)  # f = diagonal on film and here
    (got,) = from_exif({exif.FOCAL_35MM: 18}, 3600, 2400, turned=False)
    assert got.fov_deg[0] == pytest.approx(90), "a picture of film's own shape: 36 mm at 18 mm"
    assert from_exif({exif.FOCAL_35MM: 0}, 3600, 2400, turned=False) == [], "0 is EXIF's word for unknown"


def test_focal_length_from_the_sensor():
    tags = {exif.FOCAL_MM: 50.0, exif.X_PER_UNIT: 1000.0, exif.Y_PER_UNIT: 1100.0, exif.UNIT: 3}  # 100 x 110 a mm
    (got,) = from_exif(tags, 6000, 4000, turned=False)
    assert got.source == "exif_sensor" and got.intrinsics == pytest.approx((5000, 5500, 2999.5, 1999.5))
    (turned,) = from_exif(tags, 4000, 6000, turned=True)
    assert turned.intrinsics == pytest.approx((5500, 5000, 1999.5, 2999.5))
    (smaller,) = from_exif(tags | {exif.WIDTH: 6000, exif.HEIGHT: 4000}, 1500, 1000, turned=False)
    assert smaller.intrinsics[:2] == pytest.approx((1250, 1375)) and smaller.fov_deg == pytest.approx(got.fov_deg)
    for unit, factor in ((2, 10 / 25.4), (4, 10), (5, 10000)):
        (other,) = from_exif(tags | {exif.UNIT: unit}, 6000, 4000, turned=False)
        assert other.intrinsics[0] == pytest.approx(5000 * factor)
    assert from_exif(tags | {exif.UNIT: 9}, 6000, 4000, turned=False) == []
    assert from_exif(tags | {exif.FOCAL_MM: 0}, 6000, 4000, turned=False) == []


def test_tags_of_a_picture_that_was_cropped_are_refused():
    tags = {exif.FOCAL_35MM: 26, exif.WIDTH: 4000, exif.HEIGHT: 3000}
    assert from_exif(tags, 3000, 4000, turned=True), "the same picture upright"
    with pytest.raises(LongtakeError, match="EXIF is of a picture of 4000 x 3000, and this one of 3000 x 3000"):
        from_exif(tags, 3000, 3000, turned=False)


# ---- over time ---------------------------------------------------------------------------------------------------


def test_a_steady_zoom_is_resampled_exactly():
    def zoom(t):
        return np.column_stack([500 * 1.5**t, 510 * 1.5**t, 320 + 2 * t, 240 - t])

    times = np.array([0, 0.5, 0.6, 2.0])
    at = np.array([0, 0.1, 0.55, 1.999, 2.0])
    np.testing.assert_allclose(resample(zoom(times), times, at), zoom(at), rtol=1e-12)
    np.testing.assert_array_equal(resample(zoom(times), times, times)[:, 2:], zoom(times)[:, 2:])


def test_resampling_again_at_the_same_times_changes_nothing():
    rng = np.random.default_rng(0)
    k, times = rng.uniform(100, 900, (20, 4)), np.cumsum(rng.uniform(0.01, 0.1, 20))
    at = np.linspace(times[0], times[-1], 50)
    once = resample(k, times, at)
    np.testing.assert_allclose(resample(once, at, at), once, rtol=1e-12)
    np.testing.assert_allclose(resample(k, times, times), k, rtol=1e-12)
    one = resample(k[:1], times[:1], at)
    np.testing.assert_array_equal(one, np.tile(k[0], (50, 1)))


@pytest.mark.parametrize(
    "k, times, at, words",
    [
        ([[1, 1, 0, 0]] * 2, [0, 1], [1.5], "1.5 s lies outside of the intrinsics' times, 0 to 1 s"),
        ([[1, 1, 0, 0]] * 2, [0, 1], [math.nan], "nan s lies outside"),
        ([[1, 1, 0, 0]] * 2, [1, 1], [1], "times_s must increase strictly"),
        ([[1, 0, 0, 0]] * 2, [0, 1], [1], "focal lengths above 0"),
        ([[1, 1, 0, 0]] * 2, [0, 1, 2], [1], r"intrinsics \[2, 4\] are not \[3, 4\]"),
    ],
)
def test_wrong_times(k, times, at, words):
    with pytest.raises(ValueError, match=words):
        resample(np.array(k, float), np.array(times, float), np.array(at, float))
