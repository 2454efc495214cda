"""The EXIF tags of a picture file, without a library: they lie in one small TIFF structure, whatever holds it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

FOCAL_MM, FOCAL_35MM = 37386, 41989
X_PER_UNIT, Y_PER_UNIT, UNIT = 41486, 41487, 41488  # pixels on the sensor; inch 2, cm 3, mm 4, um 5
WIDTH, HEIGHT = 40962, 40963  # of the picture when the camera wrote it

_SUB_IFD = 34665
_TYPES = {3: "H", 4: "I", 5: "II"}  # SHORT, LONG, RATIONAL: all that is asked for here
# a JPEG's, WebP's or HEIF's block, a PNG's chunk, a WebP chunk without the block's name, or a TIFF file itself
_START = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4}|\A)(?=II\*\0|MM\0\*)", re.DOTALL)


def read_exif(path: Path) -> dict[int, float]:
    """Numbers by tag, of those named above and all others with one unsigned number; empty where there are none.

    Damaged entries are left out: EXIF is a camera's remark, and the picture counts without it. 0 / 0 and others that
    are no number, too.
    """
    data = path.read_bytes()
    found = _START.search(data)
    if found is None:
        return {}
    tiff = data[found.end() :]
    order = "<" if tiff[:2] == b"II" else ">"
    tags = _entries(tiff, order, *(_at(tiff, order + "I", 4) or (len(tiff),)))
    return tags | (_entries(tiff, order, int(tags[_SUB_IFD])) if _SUB_IFD in tags else {})


def _entries(tiff: bytes, order: str, start: int) -> dict[int, float]:
    """The numbers of the directory at `start`."""
    tags: dict[int, float] = {}
    for i in range(sum(_at(tiff, order + "H", start))):
        entry = start + 2 + 12 * i
        tag, kind, count = _at(tiff, order + "HHI", entry) or (0, 0, 0)
        if kind not in _TYPES or count != 1:
            continue
        place = entry + 8 if kind != 5 else sum(_at(tiff, order + "I", entry + 8)) or len(tiff)
        value = _at(tiff, order + _TYPES[kind], place)
        if len(value) == 2 and value[1] != 0:
            tags[tag] = value[0] / value[1]
        elif len(value) == 1:
            tags[tag] = value[0]
    return tags


def _at(tiff: bytes, form: str, place: int) -> tuple[int, ...]:
    """What is there; nothing where the block ends before."""
    return struct.unpack_from(form, tiff, place) if place + struct.calcsize(form) <= len(tiff) else ()
