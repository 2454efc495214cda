"""Where writers write: files appear whole or not at all, and media are linked or copied beside them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import LongtakeError
from ..row_files import RowFiles, path_of

Media = Literal["none", "link", "copy"]
ReadDepth = Callable[[Path, int, int], Iterator[tuple[int, NDArray[np.float32]]] | None]  # file, width, height
FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts")


@dataclass(frozen=True, kw_only=True)
class Output:
    """An export's folder, and what becomes of the clips' videos."""

    folder: Path
    files: RowFiles | None  # of the manifest; None where no media are wanted
    media: Media
    read_depth: ReadDepth | None = None  # how depth files are read; None: no depth is written

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        self.data(name, text.encode())

    def json(self, name: str, tree: object) -> None:
        """Write a JSON file; numbers keep all their digits."""
        self.text(name, json.dumps(tree, indent=1, allow_nan=False) + "\n")

    def data(self, name: str, data: bytes) -> None:
        """Write a file's bytes."""
        with self.draft(name) as (file, _):
            file.write(data)

    def draft(self, name: str) -> Draft:
        """A file to write to that takes its name once it is whole: `with out.draft("a.npz") as (file, path)`."""
        return Draft(self.folder / name)

    def video(self, row: Mapping[str, Any]) -> Path | None:
        """The clip's video file; None where none is wanted, or the clip's frames are images."""
        if self.files is None or row["uri"] is None or row["image_uris"] is not None:
            return None
        (found,) = self.files.find(row)
        place = path_of(found)
        return place if place.suffix.lower() in FILMS else None

    def depth(self, row: Mapping[str, Any]) -> Iterator[tuple[int, NDArray[np.float32]]] | None:
        """Frames of the clip's video with depth maps [height, width] in metres, nan where unknown.

        None where media are not wanted, or the clip has no depth in the unit of its poses.
        """
        if self.files is None or self.read_depth is None or row["depth_uri"] is None or row["scale_kind"] != "metric":
            return None
        (found,) = self.files.find(row, "depth_uri")
        return self.read_depth(path_of(found), row["width"], row["height"])

    def put(self, source: Path, name: str) -> None:
        """Link or copy a file into the export."""
        put_file(source, self.folder / name, self.media)


class Draft:
    """A file under another name until it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")

    def __enter__(self) -> tuple[IO[bytes], Path]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.part, "xb")
        return self.file, self.part

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.close()
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)


def put_file(source: Path, target: Path, how: str) -> None:
    """Hard link (`link`) or copy (`copy`) a regular file, unless it is there already; never a symbolic link.

    Raises:
        LongtakeError: it cannot be linked, as between two file systems.
    """
    real = source.resolve(strict=True)
    if not real.is_file():
        raise LongtakeError(f"{source} is no regular file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if how == "link":
            os.link(real, part)
        else:
            shutil.copyfile(real, part)
        os.replace(part, target)
    except OSError as error:
        if how == "link" and error.errno in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise LongtakeError(
                f"{source} cannot be hard-linked to {target.parent} ({error.strerror}): they lie on two file systems, "
                "or the file is another user's. Copy media instead: --media copy."
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)
