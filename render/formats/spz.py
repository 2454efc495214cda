"""Niantic's SPZ, versions 1 to 4: 24-bit positions, one byte for most else; axes x right, y up, z back.

Versions 1 to 3 are one gzip stream: a 16-byte header, then positions, alphas, colours, scales, rotations and
harmonics of all splats, then extensions. Version 4 starts with the magic NGSP: a 32-byte header, extensions, a table of
contents, and one zstd stream an attribute.

Source: github.com/nianticlabs/spz, src/cc/load-spz.cc and extensions/README.md.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingPart
from ...records import LongtakeError
from ..gaussians import SH_COUNTS, Gaussians, rotate_fields
from .raw import (
    RawScene,
    broken,
    check_count,
    check_ratio,
    linear_scales,
    pack_quaternions,
    truncated,
    unit,
    unpack_quaternions,
    unsupported,
)

if TYPE_CHECKING:
    from pyarrow import Codec

MAGIC, GZIP = b"NGSP", b"\x1f\x8b"
HEADER, HEADER4, STREAM = struct.Struct("<4sIIBBBB"), struct.Struct("<4sIIBBBBI12x"), struct.Struct("<QQ")
MAX_EXTENSIONS = 1 << 16
MAX_FRACTION_BITS = 24
COLOUR = 0.15  # a colour byte / 255 is 0.5 + 0.15 c0
ANTIALIASED, HAS_EXTENSIONS = 1, 2
COORDINATES = 0xADBE0003  # the extension that states other axes
# Codes of the right-handed axes, as signs of (x, y, z) of x right, y down, z forward. 0: not stated, hence the default
# RUB. The other codes below 9 are left-handed; those from 9 on changed their meaning between versions of the library.
AXES = {0: (1, -1, -1), 4: (1, -1, -1), 6: (1, 1, 1), 1: (-1, 1, -1), 7: (-1, -1, 1)}
ROOT_HALF = 2**-0.5


@dataclass(frozen=True, kw_only=True)
class Header:
    version: int
    count: int
    degree: int
    fraction_bits: int  # of the fixed-point positions
    flags: int

    def sizes(self) -> dict[str, int]:
        """Bytes of each attribute, in the order in which they are stored."""
        one = {"means": 6 if self.version == 1 else 9, "opacities": 1, "colours": 3, "scales": 3}
        one |= {"quaternions": 4 if self.version >= 3 else 3, "harmonics": 3 * (SH_COUNTS[self.degree] - 1)}
        return {name: self.count * size for name, size in one.items()}


def read_spz(path: Path, max_splats: int) -> RawScene:
    """Any version of SPZ, its axes turned to those of PLY (x right, y down, z forward).

    Raises:
        BadMedia: cut off, longer or shorter than its header says, of an unknown version, of degree 4, or stating axes
            that a rotation does not reach.
        MissingPart: version 4, and pyarrow has no zstd.
    """
    data = path.read_bytes()
    unpack = _unpack_streams if data.startswith(MAGIC) else _unpack_gzip
    header, parts, extensions = unpack(path, data, max_splats)
    signs, remarks = _axes(path, extensions)
    fields = rotate_fields(_fields(header, parts), np.diag(np.array(signs, np.float64)))
    return RawScene(fields=fields, antialiased=bool(header.flags & ANTIALIASED), remarks=remarks)


def write_spz(path: Path, gaussians: Gaussians, *, version: int = 4, antialiased: bool = False) -> None:
    """SPZ of version 3 (gzip, which older readers know) or 4 (zstd).

    Positions are rounded to 24 bits of the largest coordinate (2^-20 at the finest), log scales to 1/16 within -10 ..
    5.94, opacities to 1/255, colours to 1/38 within +-3.3, harmonics to 1/128 within +-1.

    Raises:
        LongtakeError: a coordinate of 2^23 or more, which the format cannot hold.
    """
    if version not in (3, 4):
        raise LongtakeError(f"SPZ is written as version 3 or 4, not {version}")
    largest = float(np.abs(gaussians.means).max())
    if largest >= 2**23 - 1:
        raise LongtakeError(f"{path}: SPZ holds coordinates below 2^23, not {largest:g}; scale the scene down first")
    bits = min(20, int(np.floor(np.log2((2**23 - 1) / max(largest, 1e-9)))))
    own = gaussians.rotated(np.diag([1.0, -1.0, -1.0]))
    fixed = np.round(own.means.astype(np.float64) * 2.0**bits).astype("<i4")
    three, left_out = pack_quaternions(np.roll(own.quaternions, -1, 1))  # the format's order is x y z w
    packed = left_out.astype("<u4")
    for part in np.round(three * (511 / ROOT_HALF)).astype(np.int32).T:
        packed = packed << 10 | (part < 0).astype("<u4") << 9 | np.abs(part).astype("<u4")
    parts = [
        fixed.view(np.uint8).reshape(-1, 4)[:, :3],
        _byte(own.opacities * 255),
        _byte(own.sh[:, 0] * (COLOUR * 255) + 127.5),
        _byte((np.log(own.scales) + 10) * 16),
        packed.view(np.uint8),
        _byte(own.sh[:, 1:] * 128 + 128),
    ]
    streams = [part.tobytes() for part in parts if part.size]
    head = (MAGIC, version, len(own), own.sh_degree, bits, ANTIALIASED * antialiased)
    if version == 3:
        body = HEADER.pack(*head, 0) + b"".join(streams)
        packer = zlib.compressobj(wbits=31)
        path.write_bytes(packer.compress(body) + packer.flush())
        return
    packed_streams = [_zstd().compress(stream, asbytes=True) for stream in streams]
    contents = [STREAM.pack(len(p), len(s)) for p, s in zip(packed_streams, streams, strict=True)]
    path.write_bytes(b"".join([HEADER4.pack(*head, len(streams), HEADER4.size), *contents, *packed_streams]))


def _byte(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _header(path: Path, start: bytes, max_splats: int) -> Header:
    if len(start) < HEADER.size:
        raise truncated(path, "the header of an SPZ", HEADER.size, len(start))
    magic, version, count, degree, bits, flags, _ = HEADER.unpack(start[: HEADER.size])
    if magic != MAGIC:
        raise unsupported(path, "gzip, but no SPZ within; unpack it first if it holds another kind of scene")
    if not 1 <= version <= 4:
        raise unsupported(path, f"SPZ version {version}; 1 to 4 are read. Write it again as PLY or SPZ 4.")
    if degree not in SH_COUNTS:
        raise unsupported(path, f"harmonics of degree {degree}; 0 to 3 are drawn. Write it again as degree 3.")
    if bits > MAX_FRACTION_BITS:
        raise broken(path, f"SPZ positions of 24 bits with {bits} of them after the point")
    check_count(path, count, max_splats)
    return Header(version=version, count=count, degree=degree, fraction_bits=bits, flags=flags)


def _unpack_gzip(path: Path, data: bytes, max_splats: int) -> tuple[Header, dict[str, bytes], bytes]:
    stream = zlib.decompressobj(wbits=31)
    try:
        start = stream.decompress(data, HEADER.size)
        header = _header(path, start, max_splats)
        if header.version == 4:
            raise broken(path, "SPZ version 4 inside gzip")
        sizes = header.sizes()
        total = sum(sizes.values())
        check_ratio(path, len(data), total)
        body = stream.decompress(stream.unconsumed_tail, total)
        room = 1 + (MAX_EXTENSIONS if header.flags & HAS_EXTENSIONS else 0)
        rest = stream.decompress(stream.unconsumed_tail, room)  # also reads the checksum
    except zlib.error as error:
        raise broken(path, f"the gzip stream of an SPZ does not unpack ({error})") from error
    if len(body) < total:
        raise truncated(path, f"an SPZ of {header.count} splats", total, len(body))
    if len(rest) == room or stream.unused_data:
        raise broken(path, f"holds more than the {header.count} splats of its SPZ header")
    if not stream.eof:
        raise truncated(path, "its gzip stream", len(data) + 1, len(data))
    parts, at = {}, 0
    for name, size in sizes.items():
        parts[name], at = body[at : at + size], at + size
    return header, parts, rest


def _unpack_streams(path: Path, data: bytes, max_splats: int) -> tuple[Header, dict[str, bytes], bytes]:
    header = _header(path, data, max_splats)
    if header.version != 4:
        raise broken(path, f"SPZ version {header.version} without its gzip wrapping")
    if len(data) < HEADER4.size:
        raise truncated(path, "the header of an SPZ 4", HEADER4.size, len(data))
    *_, num_streams, contents = HEADER4.unpack(data[: HEADER4.size])
    sizes = {name: size for name, size in header.sizes().items() if size}
    check_ratio(path, len(data), sum(sizes.values()))
    at = contents + num_streams * STREAM.size
    if num_streams != len(sizes) or contents < HEADER4.size:
        raise broken(path, f"{num_streams} streams with contents at byte {contents}, where {len(sizes)} belong")
    if at > len(data):
        raise truncated(path, "the table of contents of an SPZ 4", at, len(data))
    parts, codec = dict.fromkeys(header.sizes(), b""), _zstd()
    for i, (name, want) in enumerate(sizes.items()):
        packed, unpacked = STREAM.unpack_from(data, contents + i * STREAM.size)
        if unpacked != want:
            raise broken(path, f"its {name} take {unpacked} bytes, where {header.count} splats need {want}")
        if packed > len(data) - at:
            raise truncated(path, f"the stream of its {name}", packed, len(data) - at)
        try:
            parts[name] = codec.decompress(memoryview(data)[at : at + packed], decompressed_size=want, asbytes=True)
        except OSError as error:  # what pyarrow raises for a broken stream, and for one of another size
            raise broken(path, f"the stream of its {name} does not unpack to {want} bytes ({error})") from error
        at += packed
    if at != len(data):
        raise broken(path, f"{len(data) - at} bytes after its last stream")
    return header, parts, data[HEADER4.size : contents] if header.flags & HAS_EXTENSIONS else b""


def _zstd() -> Codec:
    import pyarrow

    if not pyarrow.Codec.is_available("zstd"):
        raise MissingPart("SPZ 4 needs zstd, which this build of pyarrow lacks: pip install pyarrow")
    return pyarrow.Codec("zstd", compression_level=12)


def _axes(path: Path, extensions: bytes) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """(signs that turn the file's axes to PLY's, remarks) from its extensions: type, length, payload each."""
    signs, remarks, at = AXES[0], [], 0
    while at + 8 <= len(extensions):
        kind, length = struct.unpack_from("<II", extensions, at)
        payload = extensions[at + 8 : at + 8 + length]
        if len(payload) < length:
            raise broken(path, f"its extension {kind:#x} of {length} bytes is cut off")
        at += 8 + length
        if kind != COORDINATES:
            remarks.append(f"the SPZ extension {kind:#010x} ({length} bytes) was left out")
            continue
        code = int.from_bytes(payload, "little") if length == 4 else -1
        if code not in AXES:
            raise unsupported(
                path, f"SPZ axes of code {code}, which are left-handed or unknown; write it again with axes RUB, or PLY"
            )
        signs = AXES[code]
    return signs, tuple(remarks)


def _fields(header: Header, parts: dict[str, bytes]) -> dict[str, NDArray[np.float32]]:
    n = header.count
    raw = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
    if header.version == 1:
        means = raw["means"].view("<f2").reshape(n, 3).astype(np.float32)
    else:
        b = raw["means"].reshape(n, 3, 3).astype(np.int32)
        fixed = b[..., 0] | b[..., 1] << 8 | b[..., 2] << 16
        means = ((fixed ^ 0x800000) - 0x800000).astype(np.float32) * np.float32(2.0**-header.fraction_bits)
    if header.version >= 3:
        packed = raw["quaternions"].view("<u4")
        codes = np.stack([packed >> 20, packed >> 10, packed], 1).astype(np.int32) & 1023
        three = (codes & 511) * np.where(codes & 512, -ROOT_HALF / 511, ROOT_HALF / 511)
        xyzw = unpack_quaternions(three.astype(np.float32), packed >> 30)
    else:
        three = unit(raw["quaternions"].reshape(n, 3)) * 2 - 1
        xyzw = unpack_quaternions(three.astype(np.float32), np.full(n, 3))
    sh = np.empty((n, SH_COUNTS[header.degree], 3), np.float32)
    sh[:, 0] = (unit(raw["colours"].reshape(n, 3)) - 0.5) / np.float32(COLOUR)
    sh[:, 1:] = unit(raw["harmonics"].reshape(sh[:, 1:].shape), 128) - 1
    return {
        "means": means,
        "scales": linear_scales(unit(raw["scales"].reshape(n, 3), 16) - 10),
        "quaternions": np.roll(xyzw, 1, 1),
        "opacities": unit(raw["opacities"]),
        "sh": sh,
    }
