"""Chosen frames of a clip as pictures, decoded in this process: for training, on files that annotation has seen.

Whatever a file's own defects are, annotation met them in a child process with limits; a training loader has worker
processes of its own, and no time to start another for each clip.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import BadMedia

SAME_NS = 1000  # times of one frame differ by the rounding of a row's seconds at most
SEEK_WORTH_NS = 2_000_000_000
MAX_PIXELS = 7680 * 4320
NS = 1_000_000_000


def read_pictures(
    path: str,
    row: Mapping[str, Any],
    times_s: NDArray[np.float64],
    indices: NDArray[np.int64],
    *,
    crop: tuple[int, int, int, int],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """RGB pictures [T, h, w, 3], upright, square pixels, full range, of the frames of a clip that are named.

    Args:
        path: the file, or for an image folder whatever: its files are in the row.
        row: the clip's, with `readers.PICTURE_COLUMNS`.
        times_s: [N] of all frames of the clip, from the first frame of the source.
        indices: [T] frames of the clip, increasing.
        crop: x, y, width, height of the part of the upright picture that is wanted.
        size: height and width to which it is then scaled.

    Raises:
        BadMedia: a frame is not there (any more), or cannot be decoded.
    """
    from ..annotate.decoder import ImagePixels, VideoPixels, View, read_image

    facts = {name: row[name] for name in row if row[name] is not None}
    view = View.of({**facts, "mirrored": bool(row["mirrored"])}, crop, None)
    turned = view.rotation_deg in (90, 270)
    view = dataclasses.replace(view, out=size if turned else size[::-1])
    out = np.empty((len(indices), *size, 3), np.uint8)
    if row["image_uris"] is not None:
        pixels = ImagePixels(view)
        for k, index in enumerate(indices.tolist()):
            image = read_image(row["image_uris"][index])
            if image is None:
                raise BadMedia("undecodable", f"{row['image_uris'][index]}: not a readable image.")
            out[k] = pixels.rgb(image)
        return out
    pixels = VideoPixels(view)
    at_ns = np.rint(times_s[indices] * NS).astype(np.int64)
    for k, frame in enumerate(_frames(path, row, at_ns, row["frame_start"] + indices)):
        if (frame.width, frame.height) != (row["coded_width"], row["coded_height"]):
            raise BadMedia("frame_size_changes", f"{path}: a frame of {frame.width}x{frame.height}; annotate it again.")
        out[k] = pixels.rgb(frame)
    return out


def _frames(path: str, row: Mapping[str, Any], at_ns: NDArray, numbers: NDArray) -> Iterator[Any]:
    """The frames shown at these times; in AVI files, whose times are not those of showing, those of these numbers."""
    from ..annotate.decoder import decode, deinterlace, frame_ns, open_video

    origin_ns = round(row["origin_s"] * NS)
    by_number = row["container"] == "avi"

    def from_the(start_ns: int | None) -> Iterator[tuple[int, Any]]:
        container, stream = open_video(path, MAX_PIXELS)
        if start_ns is not None and stream.time_base is not None:
            import av.error

            with suppress(av.error.FFmpegError):  # it cannot seek
                container.seek(int(Fraction(start_ns + origin_ns, NS) / stream.time_base), stream=stream)
        frames = decode(container, stream)
        for count, frame in enumerate(deinterlace(frames, stream) if row["interlaced"] else frames):
            if by_number:
                yield count, frame
            elif (at := frame_ns(frame)) is not None:
                yield at - origin_ns, frame

    wanted, near = (numbers, 0) if by_number else (at_ns, SAME_NS)
    found: Iterator[tuple[int, Any]] | None = None
    if not by_number and at_ns[0] > SEEK_WORTH_NS:
        found = from_the(int(at_ns[0]) - SEEK_WORTH_NS // 2)  # a key frame's own leading pictures are lost after a seek
        first = next(found, None)
        if first is None or first[0] > at_ns[0] + near:
            found = None  # its index misleads: from the beginning
        else:
            found = itertools.chain([first], found)
    found = from_the(None) if found is None else found
    for value in wanted.tolist():
        at, frame = next((pair for pair in found if pair[0] >= value - near), (0, None))
        if frame is None:
            raise BadMedia("undecodable", f"{path}: it ends before frame {_name(value, by_number)}.")
        if at > value + near:
            raise BadMedia("undecodable", f"{path}: frame {_name(value, by_number)} is missing or cannot be decoded.")
        yield frame


def _name(value: int, by_number: bool) -> str:
    return str(value) if by_number else f"at {value / NS:.6f} s"
