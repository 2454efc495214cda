"""3DGS PLY, plain and compressed: one binary container, two layouts of a splat.

Plain: a vertex element with x y z, f_dc_*, f_rest_* (channel-major: all red, all green, all blue), opacity (logit),
scale_* (log), rot_* (w x y z). Compressed (PlayCanvas): a chunk element with the bounds of every 256 splats, a vertex
element of four packed uint32 a splat, and an optional element `sh` of one byte a coefficient.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..gaussians import SH0, SH_COUNTS, Gaussians
from .raw import (
    RawScene,
    broken,
    check_count,
    linear_scales,
    logit,
    sigmoid,
    truncated,
    unit,
    unpack_quaternions,
    unsupported,
)

MAX_HEADER_BYTES = 1 << 16
BLOCK = 8192  # splats turned from rows to columns at a time, so that a block stays in the cache
CHUNK = 256  # splats that share bounds in a compressed PLY
TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2"},
    **{"ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
MEANS, DC = ("x", "y", "z"), ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES, ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")


@dataclass(frozen=True, kw_only=True)
class Element:
    name: str
    count: int
    dtype: np.dtype | None  # None where a property is a list, whose size only the data tell
    offset: int  # of its first byte in the file; -1 after an element with a list


def read_ply(path: Path, max_splats: int) -> RawScene:
    """A plain or compressed 3DGS PLY, told apart by its elements.

    Raises:
        BadMedia: no binary PLY, no splats in it, more than `max_splats`, or a size that the header does not state.
    """
    elements = read_header(path, max_splats)
    if "chunk" in elements and "packed_position" in (_dtype(elements["vertex"]).names or ()):
        return _read_compressed(path, elements)
    return _read_plain(path, elements["vertex"])


def write_ply(path: Path, gaussians: Gaussians) -> None:
    """A plain binary little-endian 3DGS PLY without normals."""
    rest = 3 * (SH_COUNTS[gaussians.sh_degree] - 1)
    names = [*MEANS, *DC, *(f"f_rest_{i}" for i in range(rest)), "opacity", *SCALES, *ROTATION]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(gaussians)}"]
    lines += [*(f"property float {name}" for name in names), "end_header\n"]
    with open(path, "wb") as file:
        file.write("\n".join(lines).encode())
        for start in range(0, len(gaussians), BLOCK):
            own = slice(start, start + BLOCK)
            columns = [
                gaussians.means[own],
                gaussians.sh[own, 0],
                gaussians.sh[own, 1:].transpose(0, 2, 1).reshape(len(gaussians.means[own]), rest),
                logit(gaussians.opacities[own])[:, None],
                np.log(gaussians.scales[own]),
                gaussians.quaternions[own],
            ]
            file.write(np.concatenate(columns, 1).astype("<f4").tobytes())


def read_header(path: Path, max_splats: int) -> dict[str, Element]:
    """The elements of a binary PLY in their order, with their places in the file checked against its size."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    end = start.find(b"\nend_header")
    newline = start.find(b"\n", end + 1)
    if not start.startswith(b"ply") or end < 0 or newline < 0:
        raise broken(path, f"no PLY header that ends within {MAX_HEADER_BYTES} bytes")
    lines = [line.split() for line in start[:end].decode("ascii", "replace").splitlines()[1:]]
    lines = [words for words in lines if words and words[0] not in ("comment", "obj_info")]
    if not lines or lines[0][0] != "format":
        raise broken(path, "a PLY header without a format line")
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(lines[0][1] if len(lines[0]) > 1 else "")
    if order is None:
        raise unsupported(
            path, f"a PLY of format {' '.join(lines[0][1:2])}; write it as binary_little_endian, as splat programs do"
        )
    declared: list[tuple[str, int, list[tuple[str, str]] | None]] = []
    for words in lines[1:]:
        if words[0] == "element" and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 19:
            declared.append((words[1], int(words[2]), []))
        elif words[0] == "property" and declared and len(words) == 3 and words[1] in TYPES:
            properties = declared[-1][2]
            if properties is not None:
                properties.append((words[2], order + TYPES[words[1]]))
        elif words[0] == "property" and declared and len(words) == 5 and words[1] == "list":
            declared[-1] = (*declared[-1][:2], None)
        else:
            raise broken(path, f"an unknown line in its PLY header: {' '.join(words)[:80]!r}")
    elements, offset = {}, newline + 1
    for name, count, properties in declared:
        names = [p for p, _ in properties or ()]
        if len(set(names)) != len(names) or name in elements:
            raise broken(path, f"its PLY header names something twice in element {name}")
        if name == "vertex":
            check_count(path, count, max_splats)
        dtype = None if properties is None else np.dtype(properties)
        elements[name] = Element(name=name, count=count, dtype=dtype, offset=offset)
        if dtype is None or offset < 0:
            offset = -1
        else:
            offset += count * dtype.itemsize
            if offset > size:
                have = max(0, size - elements[name].offset)
                raise truncated(path, f"element {name} of {count}", count * dtype.itemsize, have)
    if "vertex" not in elements:
        raise unsupported(path, "a PLY without a vertex element: no splats")
    if offset >= 0 and offset != size:
        raise broken(path, f"its PLY header describes {offset} bytes, but the file has {size}: the count is wrong")
    return elements


def _dtype(element: Element) -> np.dtype:
    return element.dtype if element.dtype is not None else np.dtype([])


def _rows(path: Path, element: Element) -> NDArray:
    """The element's rows, mapped from the file."""
    if element.dtype is None or element.offset < 0:
        raise unsupported(path, f"element {element.name} of this PLY has lists in or before it: no splats")
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(data, element.dtype, element.count, element.offset)


def _columns(rows: NDArray, names: tuple[str, ...] | list[str]) -> NDArray[np.float32]:
    """[N, len(names)] float32; NaN and overflow pass through, for the caller to count."""
    out = np.empty((len(rows), len(names)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            for i, name in enumerate(names):
                out[start : start + BLOCK, i] = block[name]
    return out


def _read_plain(path: Path, vertex: Element) -> RawScene:
    names = _dtype(vertex).names or ()
    missing = [name for name in (*MEANS, *DC, "opacity", *SCALES, *ROTATION) if name not in names]
    if missing == ["scale_2"]:
        raise unsupported(path, "2D Gaussians (two scales a splat), which are not drawn here; train 3D Gaussians")
    if missing:
        raise unsupported(
            path,
            f"a PLY without {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}: a point cloud or a mesh, "
            "no 3DGS scene. Pass the point_cloud.ply that training wrote.",
        )
    rest = sum(name.startswith("f_rest_") for name in names)
    coefficients = 1 + rest // 3
    if rest % 3 or coefficients not in SH_COUNTS.values() or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise unsupported(path, f"{rest} properties f_rest_*; degrees 0 to 3 have 0, 9, 24 or 45, numbered from 0")
    rows = _rows(path, vertex)
    sh = np.empty((vertex.count, coefficients, 3), np.float32)
    sh[:, 0] = _columns(rows, DC)
    for channel in range(3):
        first = channel * (coefficients - 1)
        sh[:, 1:, channel] = _columns(rows, [f"f_rest_{first + i}" for i in range(coefficients - 1)])
    fields = {
        "means": _columns(rows, MEANS),
        "scales": linear_scales(_columns(rows, SCALES)),
        "quaternions": _columns(rows, ROTATION),
        "opacities": sigmoid(_columns(rows, ["opacity"])[:, 0]),
        "sh": sh,
    }
    if "filter_3D" not in names:
        return RawScene(fields=fields)
    # Mip-Splatting's own files keep its smoothing filter apart; what it draws is the Gaussian widened by it
    variance = np.square(fields["scales"], dtype=np.float64)
    widened = variance + np.square(_columns(rows, ["filter_3D"]), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        fields["opacities"] = (fields["opacities"] * np.sqrt((variance / widened).prod(1))).astype(np.float32)
    fields["scales"] = np.sqrt(widened).astype(np.float32)
    return RawScene(fields=fields, antialiased=True, remarks=("Mip-Splatting's filter_3D was folded into the scales",))


def _read_compressed(path: Path, elements: dict[str, Element]) -> RawScene:
    vertex, chunk, harmonics = elements["vertex"], elements["chunk"], elements.get("sh")
    count = vertex.count
    if chunk.count != -(-count // CHUNK) or (harmonics is not None and harmonics.count != count):
        raise broken(path, f"{count} splats with {chunk.count} chunks of {CHUNK}: the counts disagree")
    corners = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
    sizes = [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
    colours = [f"{end}_{c}" for end in ("min", "max") for c in "rgb"]
    names = _dtype(chunk).names or ()
    packed = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
    if not {*corners, *sizes} <= set(names) or not set(packed) <= set(_dtype(vertex).names or ()):
        raise broken(path, "a compressed PLY that lacks bounds or packed values")
    if any(_dtype(vertex)[name].str[1:] != "u4" for name in packed):
        raise broken(path, "a compressed PLY whose packed values are not uint")
    chunks, rows = _rows(path, chunk), _rows(path, vertex)

    def between(names: list[str], share: NDArray[np.float32]) -> NDArray[np.float32]:
        low, high = np.repeat(_columns(chunks, names), CHUNK, 0)[:count].reshape(count, 2, 3).swapaxes(0, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            return (low * (1 - share) + high * share).astype(np.float32, copy=False)

    rgba = _bits(rows["packed_color"], (24, 8), (16, 8), (8, 8), (0, 8))
    rgb = between(colours, rgba[:, :3]) if set(colours) <= set(names) else rgba[:, :3]
    sh = np.zeros((count, 1, 3), np.float32)
    if harmonics is not None:
        rest = len(_dtype(harmonics).names or ())
        if rest not in (9, 24, 45):
            raise unsupported(path, f"{rest} spherical harmonics a splat; degrees 1 to 3 have 9, 24 or 45")
        if any(_dtype(harmonics)[i].str[1:] != "u1" for i in range(rest)):
            raise broken(path, "a compressed PLY whose spherical harmonics are not uchar")
        if _dtype(harmonics).names != tuple(f"f_rest_{i}" for i in range(rest)):
            raise broken(path, "a compressed PLY whose spherical harmonics are not f_rest_0 and on")
        codes = _rows(path, harmonics).view("u1").reshape(count, 3, rest // 3)
        values = ((np.arange(256) + 0.5) / 32 - 4).astype(np.float32)
        values[[0, 255]] = -4, 4
        sh = np.zeros((count, 1 + rest // 3, 3), np.float32)
        sh[:, 1:] = values[codes].transpose(0, 2, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        sh[:, 0] = (rgb - 0.5) / np.float32(SH0)
    rotation = rows["packed_rotation"]
    three = (_bits(rotation, (20, 10), (10, 10), (0, 10)) - 0.5) * np.float32(2**0.5)
    return RawScene(
        fields={
            "means": between(corners, _bits(rows["packed_position"], (21, 11), (11, 10), (0, 11))),
            "scales": linear_scales(between(sizes, _bits(rows["packed_scale"], (21, 11), (11, 10), (0, 11)))),
            "quaternions": unpack_quaternions(three, rotation >> 30),
            "opacities": np.ascontiguousarray(rgba[:, 3]),
            "sh": sh,
        }
    )


def _bits(packed: NDArray[np.uint32], *places: tuple[int, int]) -> NDArray[np.float32]:
    """[N, len(places)] in 0 .. 1: for each (shift, width) those bits over their largest value."""
    masks = [(shift, (1 << width) - 1) for shift, width in places]
    return np.stack([unit((packed >> shift) & mask, mask) for shift, mask in masks], 1)
