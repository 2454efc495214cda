"""What files of others may do here: name places below a folder, hold text, JSON, arrays and archives of bounded size.

Nothing is unpickled, nothing is unpacked to a place that a file names, and nothing is allocated because a header says
so: sizes are compared with what the file holds, and with a limit, first.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadMedia

MAX_TEXT_BYTES = 1 << 28
MAX_ARRAY_BYTES = 1 << 30
MAX_MEMBERS = 1_000_000  # of an archive
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# what NumPy and zipfile raise for files that are none of their own, or damaged
_DAMAGED = (
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RuntimeError,  # a member that is encrypted
    NotImplementedError,  # a member that is packed in a way that Python cannot unpack
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def safe_id(text: str, where: object) -> str:
    """The text, if it can be the name of a file: letters, digits, `.`, `_` and `-`, at most 200.

    Raises:
        BadMedia: bad_id.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise BadMedia(
            "bad_id",
            f"{where}: {str(text)[:80]!r} cannot name a file. An id has letters, digits, '.', '_' and '-', does not "
            "begin with '.' or '-', and has at most 200 characters.",
        )
    return text


def confined(base: Path, name: str) -> Path:
    """The place below `base` that a file names, links followed.

    Raises:
        BadMedia: unsafe_path, where the name is absolute, has a scheme or a `..`, or leads outside through a link.
    """
    place = followed(base, name)
    if not place.is_relative_to(base.resolve()):
        raise _unsafe(base, name, "leads out of the folder through a link")
    return place


def followed(base: Path, name: str) -> Path:
    """The place that a relative name means, links followed wherever they lead.

    Raises:
        BadMedia: unsafe_path, where the name is absolute, has a scheme or a `..`.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadMedia("unsafe_path", f"{base}: {str(name)[:80]!r} is no file's name.")
    if _SCHEME.match(name) or "\\" in name:
        raise _unsafe(base, name, "is no relative path")
    if name.startswith(("/", "~")) or ".." in name.split("/"):
        raise _unsafe(base, name, "leads out of the folder")
    try:
        return (base.resolve() / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise _unsafe(base, name, f"cannot be followed ({error})") from error


def _unsafe(base: Path, name: str, what: str) -> BadMedia:
    return BadMedia(
        "unsafe_path", f"{base}: the name {name[:200]!r} {what}. Only files below that folder are read or written."
    )


def below(base: Path, place: Path) -> str | None:
    """The relative URI of a place below `base`, or None where it lies elsewhere; links followed."""
    root, real = base.resolve(), place.resolve()
    return real.relative_to(root).as_posix() if root in real.parents else None


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A text file of at most `max_bytes`.

    Raises:
        BadMedia: unreadable or too_large.
    """
    with told(path):
        return read_bytes(path, max_bytes).decode("utf-8-sig")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A regular file of at most `max_bytes`; of a pipe or a device nothing is read.

    Raises:
        BadMedia: unreadable or too_large.
    """
    regular(path)
    with told(path), open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BadMedia("too_large", f"{path} has more than {max_bytes >> 20} MiB.")
    return data


def regular(path: Path) -> Path:
    """The path, if a regular file is there.

    Raises:
        BadMedia: unreadable, where there is nothing, or something whose reading might never end.
    """
    with told(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadMedia("unreadable", f"{path} is no regular file.")
    return path


def read_json(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """A JSON file of at most `max_bytes`; nested too deeply, it is refused like any other damage."""
    text = read_text(path, max_bytes)
    with told(path):
        return parse_json(text)


def parse_json(text: str | bytes) -> Any:
    """JSON; ValueError where it is none or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def finite(value: Any) -> bool:
    """Whether a value of JSON or TOML is a number that float64 can hold; an integer there may have any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e308  # false for nan


def numbers(values: Any, what: str, where: object) -> NDArray[np.float64]:
    """Nested lists of JSON as float64; null and text are refused, not read as something else.

    Raises:
        BadMedia: broken_cameras.
    """
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise BadMedia("broken_cameras", f"{where}: {what} is no array of numbers ({error}).") from error
    if array.dtype.kind not in "fiu":
        raise BadMedia("broken_cameras", f"{where}: {what} is no array of numbers.")
    return array.astype(np.float64)


def read_npy(path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> NDArray:
    """An array of numbers, booleans or fixed-width text; its header is believed only where the file is just as long.

    Raises:
        BadMedia: unreadable.
    """
    with told(path, " as a .npy file"), open(regular(path), "rb") as file:
        return _array(file, os.fstat(file.fileno()).st_size, max_bytes)


def read_npz(source: Path | IO[bytes], names: Mapping[str, bool], max_bytes: int = MAX_ARRAY_BYTES) -> dict:
    """Arrays of an .npz by name.

    Args:
        names: name -> whether it must be there. Others are not looked at.
        max_bytes: of all of these together, unpacked.
    """
    where = regular(source) if isinstance(source, Path) else "an .npz"
    with told(where), zipfile.ZipFile(source) as archive:
        sizes = {info.filename: info.file_size for info in members(archive)}
        if missing := [name for name, needed in names.items() if needed and f"{name}.npy" not in sizes]:
            there = ", ".join(n.removesuffix(".npy") for n in list(sizes)[:20]) or "nothing"
            raise ValueError(f"it has no {', '.join(missing)}, but {there}")
        found = {}
        for name in names:
            if (size := sizes.get(f"{name}.npy")) is not None:
                with archive.open(f"{name}.npy") as file:
                    found[name] = _array(file, size, max_bytes)
                max_bytes -= found[name].nbytes
        return found


@contextmanager
def open_parquet(path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` of at most `max_bytes`, packed and unpacked; for as long as the block is.

    Raises:
        BadMedia: unreadable, where it is none, is larger, or does not hold in the block what it says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with told(path):
        try:
            if regular(path).stat().st_size > max_bytes:
                raise ValueError(f"it has more than {max_bytes >> 20} MiB")
            with pq.ParquetFile(path) as file:
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                if sum(group.total_byte_size for group in groups) > max_bytes:
                    raise ValueError(f"it unpacks to more than {max_bytes >> 20} MiB")
                yield file
        except pa.ArrowException as error:
            raise ValueError(f"as Parquet: {error}") from error


def members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of an archive; ValueError for too many, two of one name, or names that lead elsewhere."""
    found = archive.infolist()
    if len(found) > MAX_MEMBERS:
        raise ValueError(f"it has {len(found)} members, more than {MAX_MEMBERS}")
    for info in found:
        check_member(info.filename)
    if len({info.filename for info in found}) != len(found):
        raise ValueError("it has two members of one name")
    return found


def check_member(name: str) -> None:
    """Raise ValueError where a name in an archive is absolute or has a `..`: it was made to be written elsewhere."""
    if name.startswith(("/", "\\", "~")) or _SCHEME.match(name) or ".." in re.split(r"[/\\]", name):
        raise ValueError(f"its member {name[:200]!r} leads out of the archive")


def member(archive: zipfile.ZipFile, name: str, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """A member's bytes; ValueError where it unpacks to more than its header or the limit says."""
    size = archive.getinfo(name).file_size
    if size > max_bytes:
        raise ValueError(f"its member {name} unpacks to {size} bytes")
    with archive.open(name) as file:
        data = file.read(size + 1)
    if len(data) != size:
        raise ValueError(f"its member {name} has not the size that it claims")
    return data


def array_from_bytes(data: bytes, max_bytes: int = MAX_ARRAY_BYTES) -> NDArray:
    """The array of an .npy file's bytes; ValueError where it is none."""
    return _array(io.BytesIO(data), len(data), max_bytes)


def _array(file: IO[bytes], size: int, max_bytes: int) -> NDArray:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its array has the version {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read_header(file)  # ast.literal_eval of at most 10,000 characters
    if dtype.hasobject or dtype.kind not in "fiubU" or not dtype.itemsize:
        words = "; pickles are never read" if dtype.hasobject else ""
        raise ValueError(f"its array holds {dtype}, not numbers or text{words}")
    if any(n < 0 for n in shape) or len(shape) > 8:
        raise ValueError(f"its array has the shape {shape}")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > max_bytes:
        raise ValueError(f"its header speaks of {wanted} bytes, over {max_bytes >> 20} MiB")
    if wanted != size - file.tell():
        raise ValueError(f"its header speaks of {wanted} bytes, which it does not have: damaged?")
    data = file.read(wanted)
    if len(data) != wanted:
        raise ValueError(f"its array ends after {len(data)} of {wanted} bytes")
    if not wanted:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if in_columns else "C").copy()


@contextmanager
def told(path: object, form: str = "") -> Iterator[None]:
    """What NumPy, zipfile and the like raise of a file, as BadMedia that names it; `form` says what it was read as."""
    try:
        yield
    except OSError as error:
        raise BadMedia("unreadable", f"{path}: {error.strerror or error}") from error
    except BadMedia:
        raise
    except _DAMAGED as error:
        raise BadMedia("unreadable", f"{path} cannot be read{form}: {error or type(error).__name__}") from error
