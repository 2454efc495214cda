"""Splat scene files: what a file is, told by its content, read into `Gaussians` with everything checked; and written.

Scenes keep the axes of PLY (x right, y down, z forward by convention; the format does not say). Formats that state
other axes are turned.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import MissingPart
from ..records import BadMedia, LongtakeError
from .formats.ply import read_ply, write_ply
from .formats.raw import MAX_SPLATS, RawScene, unsupported
from .formats.sog import read_sog
from .formats.splat import looks_like_splat, read_splat, write_splat
from .formats.spz import read_spz, write_spz
from .formats.tensors import read_tensors, write_tensors
from .gaussians import Gaussians, faults

READERS: dict[str, Callable[[Path, int], RawScene]] = {
    "ply": read_ply,
    "spz": read_spz,
    "sog": read_sog,
    "splat": read_splat,
    "safetensors": read_tensors,
}
WRITERS: dict[str, Callable[[Path, Gaussians], None]] = {
    ".ply": write_ply,
    ".spz": write_spz,
    ".splat": write_splat,
    ".safetensors": write_tensors,
}
HEAD = 4096  # bytes that tell what a file is


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A scene as it was read, and what was learned on the way."""

    path: str  # absolute
    format: str  # a key of READERS
    gaussians: Gaussians
    antialiased: bool | None  # trained for antialiased drawing; None where the file does not tell
    dropped: dict[str, int] = field(default_factory=dict)  # what was wrong -> how many splats; empty without any
    num_dropped: int = 0  # splats left out; fewer than the sum of `dropped` where one was wrong in several ways
    remarks: tuple[str, ...] = ()  # what a user should know: extensions left out, values folded in


def read_scene(path: str | Path, *, drop_invalid: bool = False, max_splats: int = MAX_SPLATS) -> Scene:
    """A scene of any known format: 3DGS PLY, compressed PLY, SPZ 1-4, SOG 1-2, .splat or our safetensors.

    Args:
        path: a file, or a SOG folder. Its suffix does not matter.
        drop_invalid: leave out splats that cannot be drawn (a value is not finite, a scale is zero, a quaternion is
            zero) and count them; otherwise a single one refuses the file.
        max_splats: refuse files that state more, before memory is taken for them.

    Raises:
        BadMedia: no such file, an unknown or refused format, a broken or lying file, splats that cannot be drawn.
        LongtakeError: a broken safetensors file; or a part is missing (MissingPart).
    """
    path = Path(path).absolute()
    try:
        form = detect(path)
        raw = READERS[form](path, max_splats)
    except OSError as error:
        raise BadMedia("unreadable", f"{path}: {error.strerror or error}") from error
    dropped, bad = {}, np.zeros(len(raw.fields["means"]), np.bool_)
    for name, what, rows in faults(raw.fields):
        dropped[f"{name} {what}"], bad = int(rows.sum()), bad | rows
    total, fields = int(bad.sum()), raw.fields
    if total:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in dropped.items())
        tally = f"{path}: {total} of {len(bad)} splats cannot be drawn ({reasons}; the first is number {bad.argmax()})"
        if total == len(bad):
            raise BadMedia("invalid_splats", f"{tally}. Nothing is left: the file is broken, or of another layout.")
        if not drop_invalid:
            raise BadMedia("invalid_splats", f"{tally}. Pass drop_invalid to leave them out, or clean the scene.")
        fields = {name: values[~bad] for name, values in fields.items()}
    return Scene(
        path=str(path),
        format=form,
        gaussians=Gaussians(**fields),
        antialiased=raw.antialiased,
        dropped=dropped,
        num_dropped=total,
        remarks=raw.remarks,
    )


def write_scene(gaussians: Gaussians, path: str | Path) -> None:
    """A scene as .ply (float32), .spz (version 4, compact), .splat (no view-dependence) or .safetensors (bit for bit).

    The file appears whole or not at all.

    Raises:
        LongtakeError: no splats, a suffix that is none of these, or values the format cannot hold.
        MissingPart: the disk refuses.
    """
    path = Path(path)
    suffix = ".compressed.ply" if path.name.endswith(".compressed.ply") else path.suffix
    write = WRITERS.get(suffix)
    if write is None:
        raise LongtakeError(f"{path}: scenes are written as {', '.join(WRITERS)}, not as {suffix or 'no suffix'}")
    if not len(gaussians):
        raise LongtakeError(f"{path}: a scene of 0 splats is not written, because nothing reads it")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial, gaussians)
        os.replace(partial, path)
    except OSError as error:
        raise MissingPart(f"{path}: cannot be written ({error.strerror or error}). Name another place.") from error
    finally:
        partial.unlink(missing_ok=True)


def detect(path: Path) -> str:
    """Which of READERS reads this file or folder, by its content.

    Raises:
        BadMedia: nothing there, nothing known, or a format that is known but not read, with what to do.
        OSError: it cannot be opened.
    """
    if path.is_dir():
        return _detect_folder(path)
    if path.exists() and not path.is_file():
        raise BadMedia("unreadable", f"{path}: no plain file but a pipe or a device. Write the scene to a file first.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(HEAD)
    if not start:
        raise BadMedia("empty_file", f"{path}: the file is empty")
    if start.startswith((b"ply\n", b"ply\r\n")):
        return "ply"
    if start.startswith(b"NGSP"):
        return "spz"
    if start.startswith(b"\x1f\x8b"):
        return _detect_gzip(path, start)
    if start.startswith(b"PK\x03\x04"):
        return "sog"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    if start.lstrip()[:1] == b"{" and path.name == "meta.json":
        return "sog"
    if _is_ksplat(start, size):
        raise unsupported(
            path,
            "a .ksplat, the web viewer's own format, which is not read. Write it as PLY once with the program that "
            "made it, or with splat-transform (npm install -g @playcanvas/splat-transform), and pass that.",
        )
    if looks_like_splat(start, size):
        return "splat"
    raise BadMedia(
        "unknown_scene_format",
        f"{path}: begins with {start[:8]!r}, no scene that is known. Read are 3DGS PLY, compressed PLY, SPZ, SOG "
        "(folder or zip), .splat and longtake's safetensors.",
    )


def _detect_folder(path: Path) -> str:
    if (path / "meta.json").is_file():
        return "sog"
    marks = ("xyz_gpcc.bin", "mask.b")  # FCGS keeps them in <folder>/<rate>/<part>
    if any(next(path.glob(deep + mark), None) for deep in ("", "*/", "*/*/") for mark in marks):
        raise unsupported(
            path,
            "an FCGS folder: decoding needs its CUDA build, its checkpoint of this rate and the G-PCC coder. Decode it "
            "once with FCGS's decode_single_scene.py and pass the PLY.",
        )
    raise BadMedia(
        "unknown_scene_format",
        f"{path}: a folder without meta.json, so no SOG scene. Pass the scene's file itself "
        "(after training: point_cloud/iteration_*/point_cloud.ply).",
    )


def _detect_gzip(path: Path, start: bytes) -> str:
    try:
        inner = zlib.decompressobj(wbits=31).decompress(start, 4)
    except zlib.error as error:
        raise BadMedia("broken_scene", f"{path}: its gzip does not unpack ({error}). Copy the file again.") from error
    if inner == b"NGSP":
        return "spz"
    raise BadMedia(
        "unknown_scene_format", f"{path}: gzip around {inner!r}, no SPZ. Unpack it (gunzip) and pass what is inside."
    )


def _is_ksplat(start: bytes, size: int) -> bool:
    """Version 0.1 and on, sections, splats and compression level of a ksplat header of 4,096 bytes."""
    if len(start) < HEAD or start[0] != 0 or not 1 <= start[1] <= 9:
        return False
    most, sections = (int.from_bytes(start[i : i + 4], "little") for i in (4, 8))
    return 1 <= most and sections <= most and HEAD + 1024 * most <= size and start[20] <= 2 and start[21] == 0
