"""OpenEXR pictures of depth: what goes in comes out, and OpenEXR's own library reads and writes the same."""

from __future__ import annotations

import numpy as np
import pytest

from longtake.datasets.formats.exr import read_depth, write_depth
from longtake.errors import BadMedia


def depth(height: int, width: int) -> np.ndarray:
    found = np.random.default_rng(0).uniform(0.1, 50, (height, width)).astype(np.float16)
    found[height // 3, : width // 2] = np.nan
    found[0, 0] = np.inf
    return found


SIZES = [(1, 1), (3, 5), (16, 4), (17, 31), (48, 64), (100, 7)]


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(size):
    picture = depth(*size)
    np.testing.assert_array_equal(read_depth(write_depth(picture), "a"), picture.astype(np.float32))
    flat = np.full(size, 2.0)  # which packs well, where noise may not
    np.testing.assert_array_equal(read_depth(write_depth(flat), "a"), flat)


def test_too_far_for_a_half_is_infinitely_far():
    assert read_depth(write_depth(np.array([[1e6, 65504.0]])), "a").tolist() == [[np.inf, 65504.0]]


@pytest.mark.parametrize("size", SIZES)
def test_openexr_reads_what_is_written(tmp_path, size):
    library = pytest.importorskip("OpenEXR")
    (tmp_path / "a.exr").write_bytes(write_depth(depth(*size)))
    with library.File(str(tmp_path / "a.exr")) as file:
        np.testing.assert_array_equal(file.channels()["Z"].pixels, depth(*size))


@pytest.mark.parametrize("packing", ["NO", "ZIPS", "ZIP"])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("others", [(), ("A", "Y"), ("a", "z")])
def test_what_openexr_writes_is_read(tmp_path, packing, kind, others):
    library = pytest.importorskip("OpenEXR")
    picture = depth(37, 29).astype(kind)
    head = {"compression": getattr(library, f"{packing}_COMPRESSION"), "type": library.scanlineimage}
    channels = {"Z": picture, **{name: np.zeros((37, 29), np.float32) for name in others}}
    with library.File(head, channels) as file:
        file.write(str(tmp_path / "a.exr"))
    np.testing.assert_array_equal(read_depth((tmp_path / "a.exr").read_bytes(), "a"), picture.astype(np.float32))


def test_other_packings_are_told(tmp_path):
    library = pytest.importorskip("OpenEXR")
    head = {"compression": library.PIZ_COMPRESSION, "type": library.scanlineimage}
    with library.File(head, {"Z": depth(40, 40)}) as file:
        file.write(str(tmp_path / "a.exr"))
    with pytest.raises(BadMedia, match="it is packed in the way 4"):
        read_depth((tmp_path / "a.exr").read_bytes(), "a")


def test_damage_is_told_and_never_more():
    data = write_depth(depth(33, 20))
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(2000):
        broken = bytearray(data[: rng.integers(len(data))] if rng.integers(3) == 0 else data)
        for _ in range(rng.integers(1, 4)):
            if broken:
                broken[rng.integers(min(len(broken), 400))] = rng.integers(256)
        try:
            assert read_depth(bytes(broken), "a").size <= 1 << 24
        except BadMedia:
            told += 1
    assert told > 1000


def test_sizes_are_looked_at_before_anything_is_allocated():
    data = write_depth(np.ones((2, 2)))
    window = data.index(b"box2i\0") + 10
    huge = data[:window] + np.array([0, 0, 2**31 - 2, 2**31 - 2], "<i4").tobytes() + data[window + 16 :]
    with pytest.raises(BadMedia, match="it has 2147483647 x 2147483647 pixels"):
        read_depth(huge, "a")
