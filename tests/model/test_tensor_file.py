"""Safetensors headers: sound ones read like the library reads them; broken and hostile ones are refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from longtake.errors import BadWeights
from longtake.model.tensor_file import check_tensors, read_safetensors_header

TENSORS = {"a": np.zeros((2, 3), np.float32), "b.c": np.ones((0, 4), np.float16), "d": np.arange(5), "s": np.array(1.0)}


def test_reads_what_the_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(TENSORS, path, metadata={"format": "pt"})
    with safetensors.safe_open(path, "np") as file:
        theirs = {name: file.get_slice(name) for name in file.keys()}
        expected = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in theirs.items()}
    assert read_safetensors_header(path) == expected
    check_tensors(path, {name: value.shape for name, value in TENSORS.items()}, ("F32", "F16", "I64", "F64"))


def entry(begin: int, end: int, shape=(1,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write(path: Path, header: object, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"[" * 5000 + b"]" * 5000,
        b'{"a": ' * 5000 + b"1" + b"}" * 5000,
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "data_offsets": [0, 8]}}',
        {"a": entry(0, 4)},  # half of the data
        {"a": entry(0, 4), "b": entry(8, 12)},  # a hole, and beyond the end
        {"a": entry(0, 4), "b": entry(0, 8, (2,))},  # overlap
        {"a": entry(4, 8)},
        {"a": entry(0, 8)},  # longer than its shape
        {"a": entry(8, 0, (-2,))},
        {"a": entry(0, 8, (2**70,))},
        {"a": entry(0, 8, (True, 2))},
        {"a": entry(0, 8, (2.0,))},
        {"a": entry(0, 8, (2,), "F31")},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": {"0": 8}}},
        {"a": {"dtype": "F32", "shape": {}, "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": None},
    ],
)
def test_broken_headers_are_refused(tmp_path, header):
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(BadWeights, match=r"x\.safetensors: broken safetensors header: \S"):
        read_safetensors_header(path)
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "np") as file:
        [file.get_tensor(name) for name in file.keys()]


@pytest.mark.parametrize("data", [b"", b"1234567", (2**63 - 1).to_bytes(8, "little"), b"\xff" * 8 + b"{}"])
def test_a_file_that_is_none(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadWeights, match="no safetensors file, or cut off"):
        read_safetensors_header(path)


def test_a_giant_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(2 << 30)  # a hole: takes no room
    tracemalloc.start()
    try:
        with pytest.raises(BadWeights, match="no safetensors file, or cut off"):
            read_safetensors_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "shapes, dtypes, words",
    [
        ({"a": (2, 3)}, ("F32",), r"lacks nothing; has besides b \(1\)"),
        ({"a": (2, 3), "b": (1,), "c": ()}, ("F32",), r"lacks c \(1\); has besides nothing"),
        ({"a": (3, 2), "b": (1,)}, ("F32",), r"a has shape \(2, 3\), not \(3, 2\)"),
        ({"a": (2, 3), "b": (1,)}, ("BF16", "F16"), "a has type F32, not one of BF16, F16"),
    ],
)
def test_other_tensors_than_asked_for(tmp_path, shapes, dtypes, words):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.float32)}, path)
    with pytest.raises(BadWeights, match=words):
        check_tensors(path, shapes, dtypes)
