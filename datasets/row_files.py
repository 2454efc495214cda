"""The files that a manifest's rows name, and which of them are read: a manifest may come from anyone.

A file below the manifest's folder is read, links followed. Any other is read only if it is the very file that the row
was made from, by its SHA-256: whoever wrote that row has seen its content already, so nothing is shown to anybody who
did not know it. That holds for the videos and picture folders that one's own runs have recorded where they lie; it
needs no list of trusted manifests, and refuses a file that was replaced since. Files without a hash in the row (depth,
masks) lie below the folder, or below one that the user names: `open_manifest(..., files_in=[...])`, or the environment
variable LONGTAKE_FILES_IN. Files below such folders are read as they are, without being hashed.

Object stores are read below the manifest's own address, and below those that the user names. Nothing else is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import BadMedia
from ..files import joint_digest, natural_key
from .safe import followed, regular, told
from .storage import Local, Remote, Storage, open_storage

VARIABLE = "LONGTAKE_FILES_IN"
MAX_PATH, MAX_NAME = 4000, 255  # characters; file systems have no longer ones
Place = tuple[Storage, str]


class RowFiles:
    """Finds the files that rows of one manifest name."""

    def __init__(self, base: Storage, files_in: Iterable[str | os.PathLike[str]] = ()) -> None:
        """Args:
        base: where the manifest lies.
        files_in: folders, and addresses of object stores, whose files rows may name besides.
        """
        said = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
        stores = [base, *(open_storage(place) for place in (*files_in, *said))]
        self.base = base
        self.folders = [store.folder for store in stores if isinstance(store, Local)]
        self.remotes = [store for store in stores if isinstance(store, Remote)]

    def find(self, row: Mapping[str, Any], column: str = "uri", uris: Sequence[str] | None = None) -> list[Place]:
        """Where the files are that a column of a row names.

        Args:
            row: with `clip_id`, `uri`, `image_uris`, `sha256`, `bytes` and the column.
            uris: those of a column of several that are wanted; None for all.

        Raises:
            BadMedia: unsafe_path, where one of them is not to be read.
        """
        every: Sequence[str] = row[column] if column.endswith("uris") else [row[column]]
        found: list[Place] = []
        elsewhere: list[Path] = []
        for uri in every if uris is None else uris:
            place = self.place(uri, f"clip {row['clip_id']}: {column}")
            if isinstance(place, Path):
                elsewhere.append(place)
                place = (Local(Path("/")), str(place))
            found.append(place)
        if any(os.path.exists(path) for path in elsewhere) and not _made_from(elsewhere, row, column):
            raise BadMedia(
                "unsafe_path",
                f"clip {row['clip_id']}: {column} {str(elsewhere[0])[:200]} lies outside {self.base.url}, and is not "
                "what the row was made from, by its SHA-256. If rows of this manifest shall name files there, say so: "
                f"{VARIABLE}={elsewhere[0].parent}",
            )
        return found

    def place(self, uri: str, where: str) -> Place | Path:
        """Where a file is, of which the address alone is looked at; a path for one that lies elsewhere.

        Raises:
            BadMedia: unsafe_path, where it is no file of a folder or an object store, or leads out of its folder.
        """
        if len(uri) > MAX_PATH or any(len(part) > MAX_NAME for part in uri.split("/")):
            raise BadMedia("unsafe_path", f"{where} {uri[:80]}...: a name of {len(uri)} characters.")
        scheme, separator, rest = uri.partition("://")
        if separator and scheme == "file" and rest.startswith("/"):
            uri = rest
        elif separator:
            return self._remote(uri, where)
        if uri.startswith("/"):
            with told(uri[:200]):
                place, real = Local(Path("/")), Path(uri).resolve()
        elif isinstance(self.base, Local):
            place, real = self.base, followed(self.base.folder, uri)
        else:
            return self._remote(f"{self.base.url}/{uri}", where)
        return (place, uri) if any(real.is_relative_to(folder.resolve()) for folder in self.folders) else real

    def _remote(self, uri: str, where: str) -> Place:
        for store in self.remotes:
            if uri.startswith(f"{store.url}/") and ".." not in uri.split("/"):
                return store, uri.removeprefix(f"{store.url}/")
        raise BadMedia(
            "unsafe_path",
            f"{where} {uri[:200]}: files are read below {self.base.url}, and where else the user says: "
            "longtake.open_manifest(..., files_in=[...]).",
        )


def local_file(manifest: Path, row: Mapping[str, Any], column: str = "uri", uri: str | None = None) -> Path:
    """The file or picture folder of this machine that a row of a local manifest names: see `RowFiles.find`."""
    (place,) = RowFiles(Local(manifest)).find(row, column, None if uri is None else [uri])
    return path_of(place)


def path_of(place: Place) -> Path:
    """The absolute path of a file that was found.

    Raises:
        BadMedia: unreadable, where it lies in an object store.
    """
    storage, name = place
    if not isinstance(storage, Local):
        raise BadMedia("unreadable", f"{storage.url}/{name} is no file of this machine, which this needs: copy it.")
    return storage.folder.absolute() / name


# ---- what a row was made from ------------------------------------------------------------------------------------


def _made_from(paths: Sequence[Path], row: Mapping[str, Any], column: str) -> bool:
    """Whether these are the files whose hash the row has."""
    if column not in ("uri", "image_uris") or row["sha256"] is None:
        return False
    with told(paths[0]):
        if row["image_uris"] is None:
            files = list(paths)
        elif not row["uri"].startswith(("/", "file:///")):
            return False
        else:
            folder = Path(row["uri"].removeprefix("file://")).resolve()
            files = _pictures(folder, row["image_uris"])
            if not {folder, *files}.issuperset(paths):
                return False
        return sum(regular(path).stat().st_size for path in files) == row["bytes"] and _digest(files) == row["sha256"]


def _pictures(folder: Path, uris: Sequence[str]) -> list[Path]:
    """The pictures of a folder, of which a row names some, in the order in which `annotate.video` has them."""
    if not folder.is_dir():  # they were found by a pattern
        return [Path(uri.removeprefix("file://")).resolve() for uri in uris]
    kinds = {os.path.splitext(uri)[1].lower() for uri in uris}
    found = [path for path in folder.iterdir() if path.suffix.lower() in kinds and path.is_file()]
    return [path.resolve() for path in sorted(found, key=natural_key)]


def _digest(paths: Sequence[Path]) -> str:
    """SHA-256 of a file, or of many files' digests in order."""
    digests = []
    for path in paths:
        status = path.stat()
        digests.append(_file_digest(str(path), status.st_size, status.st_mtime_ns))
    return joint_digest(digests)


@lru_cache(maxsize=1 << 16)
def _file_digest(path: str, size: int, time_ns: int) -> bytes:
    """Once for each file that does not change: a long film has many clips."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
