"""Depth in a file: what is written comes back, hostile files are refused, and depth gets from networks to the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from longtake.annotate.depth_clip import (
    MAX_DEPTH,
    MIN_DEPTH,
    STEP,
    DepthClip,
    DepthWriter,
    codes_from_depth,
    finish_depth,
    log_depth,
    open_depth,
)
from longtake.records import BadMedia

WIDTH, HEIGHT = 32, 24


def slope() -> np.ndarray:
    """Depth [HEIGHT, WIDTH] whose log is linear in the pixels, so that interpolation is exact."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return np.exp(0.5 + 0.01 * u - 0.02 * v)


def write(path: Path, depths, confidence=1.0, **changes) -> DepthClip:
    """A finished file of these depths for every other frame, over a crop twice as large as the maps."""
    with DepthWriter(path) as writer:
        for i, depth in enumerate(depths):
            writer.add(2 * i, depth, np.broadcast_to(confidence, np.shape(depth)))
    n = len(depths)
    facts: dict[str, Any] = {
        "path": path,
        "frame_index": np.array(writer.frame_index),
        "width": WIDTH,
        "height": HEIGHT,
        "crop": (10, 6, 2 * WIDTH, 2 * HEIGHT),
        "factor": np.full(n, 2.0),
        "world_from_cam": np.tile(np.eye(4), (n, 1, 1)),
        "focal_px": np.full((n, 2), 50.0),
        "metric": True,
        "source": "pi3x+moge2",
        "scale": None,
        "relative_sigma": 0.05,
    }
    return finish_depth(DepthClip(**facts | changes))


def test_codes_hold_depth_to_half_a_step():
    depth = np.geomspace(MIN_DEPTH, MAX_DEPTH, 10_000)
    back = np.exp(log_depth(codes_from_depth(depth)).astype(np.float64))
    assert np.abs(np.log(back / depth)).max() <= 0.5 * STEP + 1e-5
    assert not codes_from_depth(np.array([0, -1, np.nan, np.inf, -np.inf, MIN_DEPTH / 2, 2 * MAX_DEPTH])).any()


def test_what_is_written_is_read(tmp_path):
    depth = slope()
    holes = depth.copy()
    holes[3, 4] = np.nan
    clip = write(tmp_path / "d.zip", [depth, holes], confidence=0.4)
    found, confidence = clip.read(0)
    assert found.dtype == np.float32 and found == pytest.approx(2 * depth, rel=STEP)
    assert confidence == pytest.approx(0.4, abs=0.003)
    found, confidence = clip.read(1)
    assert np.argwhere(np.isnan(found)).tolist() == [[3, 4]] and confidence[3, 4] == 0
    again = open_depth(clip.path)
    assert again.frame_index.tolist() == [0, 2] and again.crop == clip.crop and again.metric
    np.testing.assert_array_equal(again.focal_px, clip.focal_px)
    np.testing.assert_array_equal(again.read(0)[0], clip.read(0)[0])


def test_a_file_tells_other_tools_what_it_means(tmp_path):
    clip = write(tmp_path / "d.zip", [slope()], focal_px=np.full((1, 2), np.nan))
    with zipfile.ZipFile(clip.path) as archive:
        meta = json.loads(archive.read("meta.json"))
        code = cv2.imdecode(np.frombuffer(archive.read("000000.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert meta["unit"] == "m" and meta["focal_px"] == [[None, None]]
    formula = meta["meaning"].partition(" for frame")[0].partition("= ")[2].replace("factor[i]", "factor")
    depth = eval(formula, {"exp": np.exp, "code": np.asarray(code, float), "factor": meta["factor"][0]})
    assert depth == pytest.approx(2 * slope(), rel=STEP)


def test_samples_at_display_pixels(tmp_path):
    clip = write(tmp_path / "d.zip", [slope()], confidence=0.5)
    rng = np.random.default_rng(0)
    u, v = rng.uniform(0, WIDTH - 1, 50), rng.uniform(0, HEIGHT - 1, 50)
    xy = np.stack([10 + 2 * (u + 0.5) - 0.5, 6 + 2 * (v + 0.5) - 0.5], 1)
    depth, confidence = clip.sample(0, xy)
    assert depth == pytest.approx(2 * np.exp(0.5 + 0.01 * u - 0.02 * v), rel=STEP)
    assert confidence == pytest.approx(0.5, abs=0.003)


def test_nothing_is_sampled_outside_at_holes_and_at_edges(tmp_path):
    depth = slope()
    depth[:, 16:] *= 3  # a step
    depth[5, 5] = np.nan
    clip = write(tmp_path / "d.zip", [depth])

    def at(u, v):
        return clip.sample(0, np.array([[10 + 2 * (u + 0.5) - 0.5, 6 + 2 * (v + 0.5) - 0.5]]))

    for u, v in ((15.5, 12), (14.5, 12), (5, 5), (4.5, 5), (5, 4.4), (-0.6, 3), (3, HEIGHT), (np.nan, 3)):
        found, confidence = at(u, v)
        assert np.isnan(found[0]) and confidence[0] == 0, (u, v)
    for u, v in ((13.9, 12), (18, 12), (-0.4, 3), (3, HEIGHT - 0.6)):
        found, confidence = at(u, v)
        assert found[0] > 0 and confidence[0] == 1, (u, v)


def test_records_are_checked(tmp_path):
    good = write(tmp_path / "d.zip", [slope()])
    facts: dict[str, Any] = {name: getattr(good, name) for name in DepthClip.__dataclass_fields__}
    mirrored = np.diag([1.0, 1, -1, 1])[None]
    for change, words in (
        ({"factor": np.array([0.0])}, "finite and positive"),
        ({"factor": np.ones(2)}, "has shape"),
        ({"frame_index": np.array([], np.int64), "factor": np.ones(0)}, "at least one frame|has shape"),
        ({"width": 1 << 20, "height": 1 << 20}, "are not read"),
        ({"world_from_cam": mirrored}, "rigid"),
        ({"world_from_cam": 1.1 * np.eye(4)[None]}, "rigid"),
        ({"focal_px": np.array([[1.0, -1.0]])}, "focal lengths must be positive"),
        ({"source": "dust3r"}, "is none of"),
        ({"crop": (0, 0, 0, 5)}, "is no x, y"),
        ({"relative_sigma": float("nan")}, "is none"),
    ):
        wrong: dict[str, Any] = {**facts, **change}
        with pytest.raises(ValueError, match=words):
            DepthClip(**wrong)


# ---- files that are not what they seem ---------------------------------------------------------------------------


def rewrite(path: Path, change) -> None:
    """The file again with its entries (name -> bytes) as `change` leaves them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def meta(**changes):
    def change(entries):
        entries["meta.json"] = json.dumps(json.loads(entries["meta.json"]) | changes).encode()

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda e: e.pop("meta.json"), "it was not finished"),
        (lambda e: e.update({"meta.json": b"{"}), "does not hold"),
        (lambda e: e.update({"meta.json": b"[" * 100_000}), "does not hold"),
        (lambda e: e.update({"meta.json": b"[]"}), "not of the form"),
        (meta(format="other"), "not of the form"),
        (meta(factor=[float("nan"), 1.0]), "finite and positive"),
        (meta(factor="x"), "does not hold"),
        (meta(width=1 << 30), "are not read"),
        (meta(width=1e400), "does not hold"),
        (meta(frame_index=[0, 4]), "has no 000004.png"),
        (meta(frame_index=[2, 0]), "numbers increase"),
        (meta(crop=[0, 0, -1, 5]), "is no x, y"),
        (lambda e: e.pop("c000002.png"), "has no c000002.png"),
    ],
)
def test_a_file_that_is_none(tmp_path, change, words):
    write(tmp_path / "d.zip", [slope()] * 2)
    rewrite(tmp_path / "d.zip", change)
    with pytest.raises(BadMedia, match=words) as caught:
        open_depth(tmp_path / "d.zip")
    assert caught.value.reason == "depth_unreadable" and str(tmp_path) in str(caught.value)


def png(shape, dtype: type = np.uint16) -> bytes:
    return cv2.imencode(".png", np.ones(shape, dtype))[1].tobytes()


def huge(width: int, height: int) -> bytes:
    """The head of a picture that claims to be large."""
    return png((2, 2))[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png((2, 2))[24:]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "no gray PNG"),
        (b"GIF89a", "no gray PNG"),
        (png((HEIGHT, WIDTH), np.uint8), "no gray PNG of 16 bits"),
        (png((HEIGHT, WIDTH, 3)), "no gray PNG of 16 bits"),
        (png((HEIGHT, WIDTH + 1)), "not 32 x 24"),
        (huge(60_000, 60_000), "60000 x 60000"),
        (png((HEIGHT, WIDTH))[:40], "cannot be decoded"),
        (b"\0" * 1_000_000, "packed or larger"),
    ],
)
def test_a_picture_that_is_none(tmp_path, data, words):
    write(tmp_path / "d.zip", [slope()] * 2)
    rewrite(tmp_path / "d.zip", lambda entries: entries.update({"000002.png": data}))
    clip = open_depth(tmp_path / "d.zip")
    clip.read(0)
    with pytest.raises(BadMedia, match=words):
        clip.read(1)


def test_a_file_that_unpacks_to_more_than_it_is(tmp_path):
    clip = write(tmp_path / "d.zip", [slope()])
    with zipfile.ZipFile(clip.path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(clip.path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(BadMedia, match="packed"):
        open_depth(clip.path)


def test_a_file_that_is_cut_off_or_damaged(tmp_path):
    clip = write(tmp_path / "d.zip", [slope()])
    data = bytearray(clip.path.read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadMedia, match="cut off"):
        open_depth(tmp_path / "cut.zip")
    data[200] ^= 255
    (tmp_path / "bad.zip").write_bytes(data)
    with pytest.raises(BadMedia, match=r"000000.png cannot be read"):
        open_depth(tmp_path / "bad.zip").read(0)
    with pytest.raises(BadMedia, match="no zip"):
        open_depth(tmp_path / "none.zip")
