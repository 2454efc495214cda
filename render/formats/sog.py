"""PlayCanvas's SOG, versions 1 and 2: lossless WebP textures, a splat a pixel, and meta.json; a folder or a zip.

Version 2 looks bytes up in codebooks; version 1 (no `version` in meta.json) spreads them between bounds. Axes: PLY's.

Source: github.com/playcanvas/splat-transform, src/lib/readers/read-sog.ts and read-sog-v1.ts.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...records import BadMedia
from ..gaussians import SH_COUNTS
from .raw import (
    RawScene,
    broken,
    check_count,
    check_ratio,
    linear_scales,
    sigmoid,
    truncated,
    unit,
    unpack_quaternions,
    unsupported,
)

MAX_META_BYTES = 1 << 22
MAX_TEXTURE_BYTES = 1 << 29
PALETTE_WIDTH = 64  # entries of the harmonics' palette in a row of its texture
TAG = 252  # alpha of a quaternion's pixel: 252 + the index of the component left out


@dataclass(frozen=True, kw_only=True)
class Sog:
    """An opened SOG: where it is, its meta.json, its number of splats, and how to load one of its files."""

    path: Path
    meta: dict[str, Any]
    count: int
    load: Callable[[str, int], bytes]  # (name, most bytes allowed) -> content

    @property
    def version(self) -> int:
        return self.meta.get("version", 1)

    def numbers(self, section: str, name: str, count: int) -> NDArray[np.float32]:
        """[count] of meta.json's numbers; a lone number counts as a list of one."""
        values = self.meta[section].get(name)
        values = values if isinstance(values, list) else [values]
        if len(values) != count or not all(_is_finite(v) for v in values):
            raise broken(self.path, f"{section}.{name} of its meta.json is no list of {count} finite numbers")
        return np.array(values, np.float64).astype(np.float32)

    def files(self, section: str, count: int) -> list[str]:
        names = self.meta[section].get("files")
        if not isinstance(names, list) or len(names) != count:
            raise broken(self.path, f"{section}.files of its meta.json does not name {count} files")
        for name in names:
            if not isinstance(name, str) or not name or name != Path(name).name or name in (".", "..") or "\\" in name:
                raise broken(self.path, f"{section}.files of its meta.json names {name!r}, no file beside it")
        return names

    def texture(self, name: str, pixels: int) -> NDArray[np.uint8]:
        """The first `pixels` pixels [pixels, 4] of a texture, red green blue alpha, row by row."""
        return self.image(name, pixels).reshape(-1, 4)[:pixels]

    def image(self, name: str, pixels: int) -> NDArray[np.uint8]:
        """A lossless WebP of `pixels` pixels or few more, [H, W, 4]; its size is checked before it is decoded."""
        data = self.load(name, MAX_TEXTURE_BYTES)
        width, height = webp_size(self.path, name, data)
        if width * height < pixels:
            raise broken(self.path, f"{name} is {width} x {height}, too small for {pixels} pixels")
        if width * height > 2 * pixels + (1 << 16):
            raise broken(self.path, f"{name} is {width} x {height}, far too large for {pixels} pixels")
        check_ratio(self.path, len(data), 4 * width * height)
        import cv2

        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise broken(self.path, f"{name} does not decode ({error.err})") from error
        if image is None or image.shape[:2] != (height, width) or image.dtype != np.uint8 or image.ndim != 3:
            raise broken(self.path, f"{name} does not decode to {width} x {height} colour pixels")
        if image.shape[2] == 3:  # a texture whose alpha is 255 everywhere is stored without
            image = np.concatenate([image, np.full((height, width, 1), 255, np.uint8)], 2)
        return image[..., [2, 1, 0, 3]].astype(np.uint8, copy=False)


def read_sog(path: Path, max_splats: int) -> RawScene:
    """A folder with meta.json, that meta.json itself, or a zip of such a folder.

    Raises:
        BadMedia: a file is missing, cut off or not lossless WebP, or meta.json does not describe the textures.
    """
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return _read(_open(path, lambda name, most: _from_zip(path, archive, name, most), max_splats))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise broken(path, f"its zip does not unpack ({error})") from error
    folder = path if path.is_dir() else path.parent
    return _read(_open(path, lambda name, most: _from_folder(folder, name, most), max_splats))


def webp_size(path: Path, name: str, data: bytes) -> tuple[int, int]:
    """(width, height) of a lossless WebP, from its VP8L chunk."""
    at = 12
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        while at + 13 <= len(data):
            kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
            if kind == b"VP8L":
                if data[at + 8] != 0x2F:
                    break
                bits = int.from_bytes(data[at + 9 : at + 13], "little")
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            if kind == b"VP8 ":
                raise broken(path, f"{name} is lossy WebP, which ruins what its bytes mean")
            at += 8 + length + length % 2
    raise broken(path, f"{name} is no lossless WebP")


def _open(path: Path, load: Callable[[str, int], bytes], max_splats: int) -> Sog:
    try:
        meta = json.loads(load("meta.json", MAX_META_BYTES))
    except (ValueError, RecursionError) as error:
        raise broken(path, f"its meta.json is no JSON ({error})") from error
    sections = ("means", "scales", "quats", "sh0")
    if not isinstance(meta, dict) or not all(isinstance(meta.get(name), dict) for name in sections):
        raise unsupported(path, f"its meta.json does not describe {', '.join(sections)}: no SOG scene")
    if "version" in meta and meta["version"] not in (1, 2):
        raise unsupported(path, f"SOG version {str(meta['version'])[:20]}; 1 and 2 are read. Write it again as PLY.")
    if "shN" in meta and meta["shN"] is not None and not isinstance(meta["shN"], dict):
        raise broken(path, "shN of its meta.json is no table")
    shape = meta["means"].get("shape")
    count = meta.get("count") if meta.get("version") == 2 else (shape[0] if isinstance(shape, list) and shape else None)
    if type(count) is not int:
        raise broken(path, "its meta.json does not state the number of splats")
    return Sog(path=path, meta=meta, count=check_count(path, count, max_splats), load=load)


def _read(sog: Sog) -> RawScene:
    count, old = sog.count, sog.version == 1
    low, high = sog.numbers("means", "mins", 3), sog.numbers("means", "maxs", 3)
    lower, upper = (sog.texture(name, count)[:, :3] for name in sog.files("means", 2))
    logs = low + (high - low) * unit(lower | upper.astype(np.uint16) << 8, 65535)
    with np.errstate(over="ignore", invalid="ignore"):
        means = (np.sign(logs) * np.expm1(np.abs(logs))).astype(np.float32)
    quats = sog.texture(sog.files("quats", 1)[0], count)
    quaternions = unpack_quaternions((unit(quats[:, :3]) * 2 - 1) * 2**-0.5, np.maximum(quats[:, 3], TAG) - TAG)
    quaternions[quats[:, 3] < TAG] = 0  # no such rotation: counted with what is wrong
    scales = sog.texture(sog.files("scales", 1)[0], count)[:, :3]
    colours = sog.texture(sog.files("sh0", 1)[0], count)
    if old:
        low, high = sog.numbers("sh0", "mins", 4), sog.numbers("sh0", "maxs", 4)
        values = low + (high - low) * unit(colours)
        dc, opacities = values[:, :3], sigmoid(values[:, 3])
        low, high = sog.numbers("scales", "mins", 3), sog.numbers("scales", "maxs", 3)
        logs = low + (high - low) * unit(scales)
    else:
        dc, opacities = sog.numbers("sh0", "codebook", 256)[colours[:, :3]], unit(colours[:, 3])
        logs = sog.numbers("scales", "codebook", 256)[scales]
    rest = _harmonics(sog)
    sh = np.empty((count, 1 + rest.shape[1], 3), np.float32)
    sh[:, 0], sh[:, 1:] = dc, rest
    return RawScene(
        fields={
            "means": means,
            "scales": linear_scales(logs),
            "quaternions": quaternions,
            "opacities": opacities,
            "sh": sh,
        }
    )


def _harmonics(sog: Sog) -> NDArray[np.float32]:
    """[count, 0 | 3 | 8 | 15, 3] harmonics beyond the constant: a 16-bit label a splat into a palette."""
    section = sog.meta.get("shN")
    if section is None or section.get("bands") == 0:
        return np.zeros((sog.count, 0, 3), np.float32)
    palette_name, labels_name = sog.files("shN", 2)
    labels = sog.texture(labels_name, sog.count)
    labels = labels[:, 0] | labels[:, 1].astype(np.uint16) << 8
    entries = int(labels.max()) + 1  # what must be there
    if sog.version == 1:
        low, high = sog.numbers("shN", "mins", 1)[0], sog.numbers("shN", "maxs", 1)[0]
        codebook = (low + (high - low) * (np.arange(256) / 255)).astype(np.float32)
        width = webp_size(sog.path, palette_name, sog.load(palette_name, MAX_TEXTURE_BYTES))[0]
        coefficients = width // PALETTE_WIDTH
    else:
        codebook = sog.numbers("shN", "codebook", 256)
        bands, stated = section.get("bands"), section.get("count")
        coefficients = SH_COUNTS[bands] - 1 if type(bands) is int and bands in SH_COUNTS else 0
        if type(stated) is not int or not entries <= stated <= 1 << 16:
            raise broken(sog.path, f"a palette of {str(stated)[:20]} harmonics, but a splat has number {entries - 1}")
        entries = stated
    if coefficients not in (3, 8, 15):
        raise broken(sog.path, "harmonics of no known degree")
    rows = -(-entries // PALETTE_WIDTH)
    if sog.version == 1:
        rows = max(rows, webp_size(sog.path, palette_name, sog.load(palette_name, MAX_TEXTURE_BYTES))[1])
        if rows > (1 << 16) // PALETTE_WIDTH:
            raise broken(sog.path, f"a palette of {rows} rows of harmonics")
    palette = sog.image(palette_name, rows * PALETTE_WIDTH * coefficients)
    if palette.shape[1] != PALETTE_WIDTH * coefficients:
        raise broken(sog.path, f"{palette_name} is {palette.shape[1]} wide, not {PALETTE_WIDTH * coefficients}")
    return codebook[palette[..., :3]].reshape(-1, coefficients, 3)[labels]


def _from_folder(folder: Path, name: str, most: int) -> bytes:
    file = folder / name
    try:
        size = file.stat().st_size
        if not file.is_file() or size > most:
            raise broken(file, f"{size} bytes, more than the {most} such a file may have, or no plain file")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise broken(folder, f"{name} is missing, which this SOG scene needs") from error
    except OSError as error:
        raise BadMedia("unreadable", f"{file}: {error.strerror}") from error


def _from_zip(path: Path, archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise broken(path, f"its zip has no {name}, which a SOG scene needs") from error
    if info.flag_bits & 1:
        raise unsupported(path, f"{name} in its zip is encrypted; unpack it first")
    if info.file_size > most:
        raise broken(path, f"{name} in its zip says it takes {info.file_size} bytes, more than {most}")
    check_ratio(path, info.compress_size, info.file_size)
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise truncated(path, f"{name} in its zip", info.file_size, len(data))
    return data


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond float
        return False
