"""OpenEXR pictures of depth, as far as they are needed: scan lines of half or float numbers, packed with zlib or not.

Written without OpenEXR's library: a picture of one channel is a header and blocks of zlib, and files of others are then
read by NumPy, which a damaged one cannot crash. Other packings (PIZ, DWA, ...), tiles and deep pictures are refused.

Source: OpenEXR's documentation, "OpenEXR File Layout"; its predictor and the halves of bytes: ImfZip.cpp.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..safe import told

MAGIC, VERSION, LONG_NAMES = 20000630, 2, 0x400
LINES = {0: 1, 2: 1, 3: 16}  # compression -> scan lines in a block: none, ZIPS, ZIP
KINDS = {0: "<u4", 1: "<f2", 2: "<f4"}
MAX_PIXELS = 1 << 24
MAX_CHANNELS = 64
MAX_BLOCK_BYTES = 1 << 28


def write_depth(depth: NDArray) -> bytes:
    """A picture [H, W] as the half-float channel Z; nan where depth is unknown."""
    with np.errstate(over="ignore"):  # beyond 65504 m: inf
        values = np.asarray(depth).astype("<f2")
    height, width = values.shape
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    head = struct.pack("<2i", MAGIC, VERSION)
    for name, kind, data in (
        ("channels", "chlist", b"Z\0" + struct.pack("<iB3x2i", 1, 0, 1, 1) + b"\0"),
        ("compression", "compression", b"\3"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ):
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(data)) + data
    head += b"\0"
    blocks = [_packed(values[y : y + LINES[3]].tobytes()) for y in range(0, height, LINES[3])]
    ends = len(head) + 8 * len(blocks) + np.cumsum([0, *(8 + len(block) for block in blocks)])
    body = b"".join(struct.pack("<2i", LINES[3] * i, len(block)) + block for i, block in enumerate(blocks))
    return head + ends[:-1].astype("<u8").tobytes() + body


def read_depth(data: bytes, where: object) -> NDArray[np.float32]:
    """The channel Z [H, W] of a picture, or its only channel.

    Raises:
        BadMedia: unreadable, where it is damaged, too large, or packed in another way.
    """
    with told(where):
        return _read(data)


def _read(data: bytes) -> NDArray[np.float32]:
    magic, version = struct.unpack_from("<2i", data)
    if magic != MAGIC or version & ~LONG_NAMES != VERSION:
        raise ValueError("it is no OpenEXR picture of scan lines")
    at, attributes = 8, {}
    while data[at : at + 1] != b"\0":
        (name, at), (_, after) = _text(data, at), _text(data, _text(data, at)[1])
        (size,) = struct.unpack_from("<i", data, after)
        if size < 0 or after + 4 + size > len(data):
            raise ValueError(f"its attribute {name[:40]} ends beyond the file")
        attributes[name], at = data[after + 4 : after + 4 + size], after + 4 + size
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    packing = attributes["compression"][0]
    if packing not in LINES:
        raise ValueError(f"it is packed in the way {packing}; of OpenEXR's ways none, ZIPS and ZIP are read")
    if not (0 < width and 0 < height and width * height <= MAX_PIXELS):
        raise ValueError(f"it has {width} x {height} pixels")
    channels = list(_channels(attributes["channels"]))
    named = [i for i, (name, _) in enumerate(channels) if name == "Z"] or list(range(len(channels)))
    if len(named) != 1 or len(channels) > MAX_CHANNELS:
        raise ValueError(f"it has the channels {', '.join(name for name, _ in channels)[:80]}, and no Z")
    widths = [width * np.dtype(kind).itemsize for _, kind in channels]
    first, kind = sum(widths[: named[0]]), channels[named[0]][1]
    lines = LINES[packing]
    if lines * sum(widths) > MAX_BLOCK_BYTES:
        raise ValueError(f"its blocks unpack to {lines * sum(widths)} bytes")
    blocks = math.ceil(height / lines)
    at += 1 + 8 * blocks
    out = np.zeros((height, width), np.float32)
    seen: set[int] = set()
    for _ in range(blocks):
        y, size = struct.unpack_from("<2i", data, at)
        row, block = y - top, data[at + 8 : at + 8 + size]
        if row in seen or row % lines or not 0 <= row < height or not 0 <= size == len(block):
            raise ValueError(f"its block at line {y} is none, or cut off")
        seen.add(row)
        count = min(lines, height - row)
        if len(block) != (whole := count * sum(widths)):  # else it is stored as it is
            block = _unpacked(block, whole)
        table = np.frombuffer(block, np.uint8).reshape(count, -1)[:, first : first + widths[named[0]]]
        out[row : row + count] = np.ascontiguousarray(table).view(kind)
        at += 8 + size
    return out


def _text(data: bytes, at: int) -> tuple[str, int]:
    """A name, and where it ends."""
    end = data.index(b"\0", at, at + 256)
    return data[at:end].decode("latin-1"), end + 1


def _channels(data: bytes) -> Iterator[tuple[str, str]]:
    """Name and kind of each, in the order in which they are stored."""
    at = 0
    while data[at : at + 1] != b"\0":
        name, at = _text(data, at)
        kind, _, across, down = struct.unpack_from("<iB3x2i", data, at)
        at += 16
        if kind not in KINDS or (across, down) != (1, 1):
            raise ValueError(f"its channel {name[:40]} is of the kind {kind}, or has fewer pixels than the picture")
        yield name, KINDS[kind]


def _packed(data: bytes) -> bytes:
    """Low bytes before high ones, differences, zlib; the data itself where that is no shorter."""
    values = np.frombuffer(data, np.uint8)
    apart = np.concatenate([values[::2], values[1::2]])
    apart[1:] = apart[1:] - apart[:-1] + np.uint8(128)
    packed = zlib.compress(apart.tobytes(), 4)
    return packed if len(packed) < len(data) else data


def _unpacked(block: bytes, whole: int) -> bytes:
    unpacking = zlib.decompressobj()
    values = np.frombuffer(unpacking.decompress(block, whole), np.uint8).copy()
    if len(values) != whole or unpacking.decompress(unpacking.unconsumed_tail, 1):
        raise ValueError("a block of it unpacks to another size than its lines have")
    values[1:] -= np.uint8(128)
    values = np.cumsum(values, dtype=np.uint8)
    out = np.empty(whole, np.uint8)
    out[::2], out[1::2] = values[: (whole + 1) // 2], values[(whole + 1) // 2 :]
    return out.tobytes()
