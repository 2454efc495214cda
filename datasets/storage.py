"""Where a manifest lies: a local folder, or a prefix in an object store (`s3://bucket/prefix`, also gs:// and az://).

Both can do the few things that a commit needs: write a file so that it is there whole or not at all, and create a name
that must be new. A local folder links a finished file to that name; an object store is asked for a conditional put
(`If-None-Match: *`). Names are relative to the folder, with slashes.

Object stores are reached through obstore, whose settings and credentials come from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, ..., or the machine's role). An address that
holds a password or a signature is refused, so none is ever written down.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ..records import LongtakeError

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

MIN_FREE_BYTES = 64 << 20
SCHEMES = ("s3", "gs", "az")
_SECRET = re.compile(
    r"^[a-z][a-z0-9+.-]+:/{1,2}[^/?#]*@|[?&](x-amz-(signature|credential|security-token)|x-goog-signature|awsaccesskeyid|sig)=",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file as a listing shows it."""

    name: str
    bytes: int
    age_s: float


class Storage(Protocol):
    """What a manifest asks of the place where it lies."""

    url: str  # for people and for other readers; a path for a local folder
    filesystem: FileSystem  # as pyarrow wants it, together with `path`

    def path(self, name: str) -> str: ...
    def list(self, folder: str, *, deep: bool = False) -> list[Entry]:
        """Files in a folder, "" for the outermost, sorted by name; none where there is no such folder."""
        ...

    def present(self, names: Iterable[str]) -> set[str]:
        """Those of some names in one folder that exist."""
        ...

    def exists(self, name: str) -> bool: ...
    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def open(self, name: str) -> NativeFile:
        """A context, to read from anywhere in the file; raises FileNotFoundError."""
        ...

    def writer(self, name: str) -> Any:
        """Context of a file to write; when the block ends the file is there, durable; if it raises, it is not."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a name that must be new: whole, durable, and False where it exists already."""
        ...

    def replace(self, name: str, data: bytes) -> None: ...
    def move(self, source: str, target: str) -> None:
        """Raises FileNotFoundError."""
        ...

    def delete(self, name: str) -> None:
        """Nothing happens where there is no such file."""
        ...

    def sync(self, folder: str) -> None:
        """Make moves and deletions in a folder durable."""
        ...

    def prepare(self) -> None:
        """Make the folder, and make sure that commits can be made there; raises LongtakeError."""
        ...

    def told(self) -> Any:
        """Context that turns what a write may raise into words about the manifest."""
        ...


def open_storage(path: str | os.PathLike[str]) -> Storage:
    """The place that a path or an address names.

    Raises:
        LongtakeError: an address with a secret in it, of an unknown kind, or obstore is not installed.
    """
    text = os.fspath(path)
    if has_secret(text):
        raise LongtakeError(
            f"{text.split('://')[0]}://...: the address holds a password or a signature. Set credentials in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and name the bucket and prefix alone."
        )
    scheme, separator, rest = text.partition(":/")  # pathlib makes one slash of two
    if not separator or len(scheme) < 2 or "/" in scheme:
        return Local(Path(text))
    if scheme == "file":
        return Local(Path("/" + rest.lstrip("/")))
    if scheme not in SCHEMES:
        raise LongtakeError(f"{text}: manifests lie in local folders or at {', '.join(f'{s}://' for s in SCHEMES)}.")
    return Remote(f"{scheme}://{rest.strip('/')}")


def has_secret(uri: str) -> bool:
    """Whether an address carries a user, a password or a signature."""
    return _SECRET.search(uri) is not None


def absolute(base: Storage, uri: str) -> str:
    """A row's `uri` as it reads from anywhere."""
    if "://" in uri or uri.startswith("/"):
        return uri
    return os.path.normpath(base.folder.resolve() / uri) if isinstance(base, Local) else f"{base.url}/{uri}"


# ---- a local folder ----------------------------------------------------------------------------------------------


class Local:
    """A folder of a file system that has hard links."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    @property
    def filesystem(self) -> FileSystem:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def path(self, name: str) -> str:
        path = self.folder / name
        try:
            usual = stat.S_ISREG(path.stat().st_mode)
        except FileNotFoundError:
            usual = True
        except OSError as error:  # a loop of links
            raise LongtakeError(f"{path} cannot be read: {error.strerror}. The manifest is damaged.") from error
        if not usual:  # reading from a pipe might never end
            raise LongtakeError(f"{path} is no regular file. The manifest is damaged.")
        return os.path.abspath(self.folder / name)

    def list(self, folder: str, *, deep: bool = False) -> list[Entry]:
        now, found = time.time(), []
        paths = (self.folder / folder).rglob("*") if deep else (self.folder / folder).glob("*")
        for path in paths:
            try:
                status = path.stat()
            except OSError as error:  # gone meanwhile, or a loop of links
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                continue
            if stat.S_ISREG(status.st_mode):
                name = path.relative_to(self.folder).as_posix()
                found.append(Entry(name=name, bytes=status.st_size, age_s=now - status.st_mtime))
        return sorted(found, key=lambda entry: entry.name)

    def present(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if self.exists(name)}

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def read(self, name: str) -> bytes:
        return Path(self.path(name)).read_bytes()

    def open(self, name: str) -> NativeFile:
        return self.filesystem.open_input_file(self.path(name))

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        try:
            with open(path, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def create(self, name: str, data: bytes) -> bool:
        target = self.folder / name
        draft = self.folder / "_staging" / f"{target.stem}-{uuid.uuid4().hex}.staged"
        try:
            with self.writer(draft.relative_to(self.folder).as_posix()) as file:
                file.write(data)
            os.link(draft, target)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        self.sync(os.path.dirname(name))
        return True

    def replace(self, name: str, data: bytes) -> None:
        draft = f"_staging/{uuid.uuid4().hex}.staged"
        with self.writer(draft) as file:
            file.write(data)
        os.replace(self.folder / draft, self.folder / name)

    def move(self, source: str, target: str) -> None:
        os.rename(self.folder / source, self.folder / target)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def sync(self, folder: str) -> None:
        handle = os.open(self.folder / folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def prepare(self) -> None:
        check_writable(self.folder)
        with self.told():
            for name in ("_snapshots", "_staging", "_index"):
                (self.folder / name).mkdir(exist_ok=True)

    @contextmanager
    def told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                what = "There is no room left. Free some and run again: what was committed before is safe."
            elif error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS) and error.filename2:
                what = "Its file system has no hard links, which commits need. Choose a folder on another one."
            elif error.errno in (errno.ENOTDIR, errno.EEXIST):
                what = "Part of that path is a file. Choose another output folder."
            else:
                what = "Choose a folder that you may write to."
            words = error.strerror or error
            raise LongtakeError(f"Cannot write the manifest to {self.folder}: {words}. {what}") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make the folder, and make sure that files can be written, linked and renamed there and that there is room.

    Raises:
        LongtakeError: says which of these fails, where, and what to do.
    """
    folder = Path(path)
    place = Local(folder)
    with place.told():
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".longtake-{uuid.uuid4().hex}"
        try:
            with place.writer(probe.name) as file:
                file.write(b"longtake")
            os.link(probe, probe.with_suffix(".link"))
        finally:
            probe.unlink(missing_ok=True)
            probe.with_suffix(".link").unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise LongtakeError(
            f"Only {free >> 20} MiB are free where {folder} lies. Free at least {MIN_FREE_BYTES >> 20} MiB, "
            "or choose another output folder."
        )


# ---- an object store ---------------------------------------------------------------------------------------------


class Remote:
    """A prefix in an object store. Its client has threads, which a fork does not copy: one is made in each process."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import obstore  # noqa: F401
        except ImportError as error:
            raise LongtakeError(f"{url}: object stores need obstore: pip install longtake[cloud]") from error
        self._client: tuple[int, Any, FileSystem] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_client": None}

    def _connected(self) -> tuple[int, Any, FileSystem]:
        if self._client is not None and self._client[0] != os.getpid():
            raise LongtakeError(
                f"{self.url}: this process is a fork of one that was connected, and would wait for threads that are "
                'not there. Start it with multiprocessing_context="spawn" or "forkserver".'
            )
        if self._client is None:
            from obstore.fsspec import FsspecStore
            from obstore.store import from_url
            from pyarrow.fs import FSSpecHandler, PyFileSystem

            options: Any = {"allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")}
            store = from_url(self.url, client_options=options)
            files = FsspecStore(self.url.partition("://")[0], client_options=options)  # pyright: ignore
            self._client = os.getpid(), store, PyFileSystem(FSSpecHandler(files))
        return self._client

    @property
    def store(self) -> Any:
        return self._connected()[1]

    @property
    def filesystem(self) -> FileSystem:
        return self._connected()[2]

    def path(self, name: str) -> str:
        return f"{self.url.partition('://')[2]}/{name}"

    def list(self, folder: str, *, deep: bool = False) -> list[Entry]:
        import obstore

        now = time.time()
        if deep:
            found = [meta for batch in obstore.list(self.store, folder or None) for meta in batch]
        else:
            found = obstore.list_with_delimiter(self.store, folder or None)["objects"]
        entries = (
            Entry(name=m["path"], bytes=m["size"], age_s=now - m["last_modified"].timestamp())  # pyright: ignore
            for m in found
        )
        return sorted(entries, key=lambda entry: entry.name)

    def present(self, names: Iterable[str]) -> set[str]:
        wanted = set(names)
        if len(wanted) < 4:
            return {name for name in wanted if self.exists(name)}
        (folder,) = {os.path.dirname(name) for name in wanted}
        return wanted & {entry.name for entry in self.list(folder)}

    def exists(self, name: str) -> bool:
        import obstore

        try:
            obstore.head(self.store, name)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        import obstore

        return bytes(obstore.get(self.store, name).bytes())

    def open(self, name: str) -> NativeFile:
        return self.filesystem.open_input_file(self.path(name))

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        import obstore

        with tempfile.NamedTemporaryFile() as file:  # an upload in pieces whose memory is bounded
            yield file  # pyright: ignore
            file.flush()
            obstore.put(self.store, name, Path(file.name))

    def create(self, name: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self.store, name, data, mode="create")
        except AlreadyExistsError:  # also where an answer was lost and obstore asked again: see Manifest._publish
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        import obstore

        obstore.put(self.store, name, data)

    def move(self, source: str, target: str) -> None:
        import obstore

        obstore.copy(self.store, source, target)
        self.delete(source)

    def delete(self, name: str) -> None:
        import obstore

        with suppress(FileNotFoundError):
            obstore.delete(self.store, name)

    def sync(self, folder: str) -> None:
        """An object store answers when a change is durable."""

    def prepare(self) -> None:
        with self.told():
            probe = f".longtake-{uuid.uuid4().hex}"
            first, second = self.create(probe, b"1"), self.create(probe, b"2")
            self.delete(probe)
        if not first or second:
            raise LongtakeError(
                f"{self.url}: the store overwrites where it is asked to create (it ignores If-None-Match), so two "
                "writers would lose each other's commits. Use a newer server, or a local folder."
            )

    @contextmanager
    def told(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            why = str(error).splitlines()[0]
            raise LongtakeError(
                f"Cannot write the manifest to {self.url}: {why} Check that the bucket exists, and the credentials, "
                "region and endpoint in the environment (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL)."
            ) from error
        except OSError as error:
            raise LongtakeError(f"Cannot write the manifest to {self.url}: {error}") from error
