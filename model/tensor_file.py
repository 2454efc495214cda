"""Safetensors files looked at from outside: is the header sound, and are these the tensors that a network needs?"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadWeights

MAX_HEADER_BYTES = 16_000_000  # the largest header of these networks takes 0.6 MB
DTYPE_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
DTYPE_BYTES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}


def check_tensors(
    path: Path, shapes: Mapping[str, Sequence[int]] | None, dtypes: Sequence[str] = ("F32", "F16", "BF16")
) -> None:
    """Raises BadWeights where a safetensors file is broken, or holds other tensors than these; reads the header only.

    Args:
        shapes: the tensors' names and shapes, all of them; None checks the header alone.
        dtypes: the types that they may have.
    """
    header = read_safetensors_header(path)
    if shapes is None:
        return
    if header.keys() != set(shapes):
        lacking, extra = sorted(set(shapes) - header.keys()), sorted(header.keys() - set(shapes))
        raise BadWeights(f"{path}: lacks {_some(lacking)}; has besides {_some(extra)}. Is it another network's file?")
    for name, (dtype, shape) in header.items():
        if shape != tuple(shapes[name]):
            raise BadWeights(f"{path}: {name} has shape {shape}, not {tuple(shapes[name])}")
        if dtype not in dtypes:
            raise BadWeights(f"{path}: {name} has type {dtype}, not one of {', '.join(dtypes)}")


def read_safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in a safetensors file, by name, without reading the tensors.

    Raises:
        BadWeights: the header is too large, no JSON, or does not describe the bytes after it exactly.
    """
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > min(MAX_HEADER_BYTES, total - 8):
            raise BadWeights(f"{path}: no safetensors file, or cut off: {total} bytes with a header of {length}")
        raw = file.read(length)
    try:
        tree = json.loads(raw, object_pairs_hook=_unique)
        if not isinstance(tree, dict):
            raise ValueError("no table of tensors")
        tree.pop("__metadata__", None)
        header, end = {}, 0
        spans = sorted(_span(name, entry) for name, entry in tree.items())
        for begin, stop, name, dtype, shape in spans:
            if begin != end:
                raise ValueError(f"{name} begins at byte {begin}, not at {end}")
            header[name], end = (dtype, shape), stop
        if end != total - 8 - length:
            raise ValueError(f"its tensors take {end} bytes of {total - 8 - length}")
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{path}: broken safetensors header: {error or 'too deep'}") from error
    return header


def _span(name: str, entry: object) -> tuple[int, int, str, str, tuple[int, ...]]:
    """(first byte, byte after the last, name, type, shape) of a tensor; raises ValueError."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} is no tensor's entry")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if len(offsets) != 2 or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"{name} has shape {shape} and offsets {offsets}")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"{name} has the unknown type {dtype}")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"{name} of {dtype} and shape {shape} does not take bytes {offsets[0]} to {offsets[1]}")
    return offsets[0], offsets[1], name, dtype, tuple(shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a name twice")
    return tree


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})" if names else "nothing"
