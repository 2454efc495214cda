"""The manifest: a folder of Parquet parts, and snapshots that say which of them count.

    M/part-<id>.parquet     immutable once there; any Parquet reader takes M/*.parquet
    M/_snapshots/<n>.json   the parts of version n; created whole or not at all, never changed while it counts
    M/_index/<part>.npy     which row of a part holds which clip: made from the part, and made again where it is missing
    M/_staging/             parts on their way; not named *.parquet

A commit writes its parts under _staging, publishes snapshot n + 1 by creating a file of that name (which fails if
another writer was first: it then looks again and retries), and moves the parts beside the others. What a killed writer
left in _staging belongs to no snapshot and is never read. One row per clip_id: appending a clip that is there already
replaces its row, by rewriting the part it was in. M is a local folder, or a prefix in an object store (`storage.py`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import BadMedia, LongtakeError
from .row_files import RowFiles
from .schema import SCHEMA, SCHEMA_ID, principal_point_outside, row_problem, to_table
from .storage import Local, Storage, absolute, has_secret, open_storage
from .storage import check_writable as check_writable
from .where import parse_where

if TYPE_CHECKING:
    from .readers import ReadPictures, Selection

T = TypeVar("T")

ROW_GROUP_CLIPS = 64
CHUNK_CLIPS = 8 * ROW_GROUP_CLIPS  # rows in memory while parts are written
PART_BYTES = 64 << 20  # a part ends after these: its footer, which every lookup reads, stays below 0.4 MB
SMALL_PARTS = 32  # so many parts below PART_BYTES / 16 are joined by the next append
HELD = ("clips", "sidecars")  # folders of files that rows name
LOW_CARDINALITY = """origin status source_dataset license split container codec pix_fmt color_range boundary
    intrinsics_mode focal_status distortion_model camera_convention pixel_center scale_kind scale_source pose_source
    motion_class filter_profile caption_model path_family error_stage run_id config_hash software_version
    stage_versions model_revisions model_licenses""".split()
_FLOAT_LISTS = [f.name for f in SCHEMA if pa.types.is_list(f.type) and pa.types.is_floating(f.type.value_type)]
_NAMES = frozenset(SCHEMA.names)
URI_COLUMNS = [name for name in SCHEMA.names if name.endswith(("uri", "uris"))]

_PART_NAME = re.compile(r"part-[0-9A-Za-z-]{1,80}\.parquet")
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what damaged Parquet files raise


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of a snapshot."""

    name: str
    rows: int
    bytes: int
    sha256: str | None = None  # None in snapshots of schema 1.2 and before


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of the manifest."""

    number: int
    parts: tuple[Part, ...]
    schema: str = SCHEMA_ID  # the newest of its parts

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge did with the rows of the other manifests."""

    added: int  # clips that were not here
    replaced: int  # clips whose row here was older
    left: int  # rows that were not newer than another of the same clip


class _PartGone(Exception):
    """A part was superseded between reading its snapshot and reading it."""


@dataclass(frozen=True, eq=False)
class _Index:
    """Where the clips of a part are: hashes of their ids, sorted, and their rows."""

    hashes: NDArray[np.uint64]
    rows: NDArray[np.uint32]
    dtype = np.dtype([("hash", "<u8"), ("row", "<u4")])

    @classmethod
    def of(cls, clip_ids: Sequence[str]) -> _Index:
        hashes = _hashes(clip_ids)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order.astype(np.uint32))

    def candidates(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Rows of clips with one of these hashes."""
        first = np.searchsorted(self.hashes, hashes)
        last = np.searchsorted(self.hashes, hashes, "right")
        spans = [self.rows[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True) if a < b]
        return np.concatenate(spans) if spans else self.rows[:0]

    def to_bytes(self) -> bytes:
        table = np.empty(len(self.rows), self.dtype)
        table["hash"], table["row"] = self.hashes, self.rows
        file = io.BytesIO()
        np.save(file, table, allow_pickle=False)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, rows: int) -> _Index | None:
        """None where this is no index of a part of so many rows."""
        try:  # the header is looked at before anything is allocated for it
            file = io.BytesIO(data)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype != cls.dtype or shape != (rows,):
                return None
            table = np.frombuffer(file.read(), dtype)
        except (ValueError, EOFError, SyntaxError, TokenError):
            return None
        if len(table) != rows or (rows and table["row"].max() >= rows):
            return None
        return cls(np.ascontiguousarray(table["hash"]), np.ascontiguousarray(table["row"]))


def _hashes(clip_ids: Sequence[str]) -> NDArray[np.uint64]:
    """The same in every process, unlike Python's own."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in clip_ids)
    return np.frombuffer(digests, "<u8")


def open_manifest(path: str | os.PathLike[str], *, files_in: Iterable[str | os.PathLike[str]] = ()) -> Manifest:
    """The manifest in this folder, or at this address in an object store (`s3://bucket/prefix`).

    Args:
        files_in: folders and addresses besides the manifest's own, whose files its rows may name: see `row_files`.

    Raises:
        LongtakeError: there is none, it was written by a later major version, or it cannot be reached.
    """
    manifest = Manifest(path, files_in)
    storage = manifest.storage
    with storage.told():
        found = manifest._list_snapshots()
    if not found and isinstance(storage, Local) and not (storage.folder / "_snapshots").is_dir():
        if not storage.folder.exists():
            raise LongtakeError(f"There is no manifest at {storage.url}: the folder does not exist.")
        raise LongtakeError(
            f"{storage.url} is no manifest: it has no _snapshots folder. Give the folder that was named with --out."
        )
    manifest.snapshot()
    return manifest


def create_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest in this folder or at this address, made empty where there is none yet.

    Raises:
        LongtakeError: the place cannot be written, is nearly full, or holds Parquet files that are not ours.
    """
    manifest = Manifest(path)
    storage = manifest.storage
    with storage.told():
        numbers = manifest._list_snapshots()
        foreign = [e.name for e in storage.list("") if e.name.endswith(".parquet")] if not numbers else []
    if foreign and not (isinstance(storage, Local) and (storage.folder / "_snapshots").is_dir()):
        raise LongtakeError(
            f"{storage.url} holds {foreign[0]}, which is part of no manifest: a reader of *.parquet would mix the two. "
            "Choose another output folder."
        )
    storage.prepare()
    if not numbers:
        with storage.told():
            manifest._publish(Snapshot(number=0, parts=()))  # losing this race leaves the same empty manifest
    return manifest


class Manifest:
    """Reads and commits rows; `open_manifest` and `create_manifest` make one."""

    def __init__(self, path: str | os.PathLike[str], files_in: Iterable[str | os.PathLike[str]] = ()) -> None:
        self.storage: Storage = open_storage(path)
        self.files = RowFiles(self.storage, files_in)  # those that rows name
        self.read_pictures: ReadPictures | None = None  # how films are decoded, for training
        self._newest: Snapshot | None = None
        self._indexes: dict[str, _Index] = {}  # by part; parts never change

    @property
    def url(self) -> str:
        """The folder or the address, as it was given."""
        return self.storage.url

    @property
    def folder(self) -> Path:
        """The local folder.

        Raises:
            LongtakeError: the manifest lies in an object store.
        """
        if isinstance(self.storage, Local):
            return self.storage.folder
        raise LongtakeError(f"{self.url} is no local folder, which this needs: copy the manifest to one first.")

    # -- what there is

    def snapshot(self) -> Snapshot:
        """The newest published version."""
        while True:
            number = self._newest.number if self._newest else -1
            if not self._newest or not self.storage.exists(_snapshot_name(number)):
                numbers = self._list_snapshots()
                if not numbers:
                    raise LongtakeError(
                        f"The manifest {self.url} has no snapshot: it was never finished being created."
                    )
                number = max(numbers)
            while self.storage.exists(_snapshot_name(number + 1)):
                number += 1
            if self._newest and self._newest.number == number:
                return self._newest
            data = self.storage.read(_snapshot_name(number))
            if not data:  # a gc() was faster: there are newer ones
                if max(self._list_snapshots(), default=number) <= number:
                    raise LongtakeError(f"The manifest {self.url} is damaged: {_snapshot_name(number)} is empty.")
                self._newest = None
                continue
            self._newest = self._parsed(data, _snapshot_name(number))
            listed = {part.name for part in self._newest.parts}
            self._indexes = {name: index for name, index in self._indexes.items() if name in listed}
            return self._newest

    def _parsed(self, data: bytes, name: str) -> Snapshot:
        try:
            return self._snapshot_of(json.loads(data), name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LongtakeError(f"The manifest {self.url} is damaged: {name} is no snapshot ({error!r}).") from error

    def _snapshot_of(self, tree: Any, name: str) -> Snapshot:
        kind, _, version = tree["schema"].partition("/")
        wanted, _, ours = SCHEMA_ID.partition("/")
        if kind != wanted or version.split(".")[0] != ours.split(".")[0]:
            raise LongtakeError(
                f"{self.url}/{name} has schema {tree['schema']}, this longtake reads {SCHEMA_ID}: use the version that "
                "wrote it."
            )
        known = {f.name for f in fields(Part)}
        parts = tuple(Part(**{k: v for k, v in part.items() if k in known}) for part in tree["parts"])
        for part in parts:  # names become places: a snapshot of others must not name any but its own
            counts = (part.rows, part.bytes, tree["number"])
            if not _PART_NAME.fullmatch(part.name) or not all(isinstance(n, int) and 0 <= n < 1 << 53 for n in counts):
                raise ValueError(f"it lists the part {str(part)[:200]}")
        return Snapshot(number=tree["number"], parts=parts, schema=tree["schema"])

    def __len__(self) -> int:
        return self.snapshot().rows

    def paths(self) -> list[Path]:
        """The Parquet files of the newest snapshot in their local folder, for readers such as DuckDB or Polars."""
        return self._consistently(lambda s: [self.folder / name for name in self._locations(s.parts)])

    def dataset(self) -> ds.Dataset:
        """The rows of the newest snapshot as an Arrow dataset: whatever reads one, filters them without loading all."""
        return self._consistently(lambda snapshot: self._dataset(snapshot.parts, SCHEMA))

    # -- reading

    def ids(self) -> set[str]:
        """The clip_id of every row."""
        return set(self.table(["clip_id"])["clip_id"].to_pylist())

    def matching(self, beginning: str) -> list[str]:
        """The ids that begin so, sorted."""
        return sorted(clip_id for clip_id in self.ids() if clip_id.startswith(beginning))

    def table(self, columns: Sequence[str] | None = None, filter: pc.Expression | str | None = None) -> pa.Table:
        """Rows of the newest snapshot as an Arrow table.

        Args:
            columns: names; None for all of this version's schema. Columns that it does not know may be named, too.
            filter: such as `pyarrow.compute.field("status") == "ok"`, or text as `parse_where` reads it.

        Raises:
            LongtakeError: an unknown column.
        """
        condition = parse_where(filter) if isinstance(filter, str) else filter
        return self._consistently(lambda snapshot: self._scan(snapshot.parts, columns, condition))

    def sql(self, query: str) -> pa.Table:
        """What DuckDB answers to a query on the table `clips`, such as `select clip_id from clips where luma > 40`.

        Only the columns and row groups that the query needs are read.

        Raises:
            LongtakeError: DuckDB is not installed, or does not understand the query.
        """
        try:
            import duckdb
        except ImportError as error:
            raise LongtakeError("SQL needs the package duckdb: pip install duckdb") from error

        def ask(snapshot: Snapshot) -> pa.Table:
            with duckdb.connect(config={"enable_external_access": "false"}) as connection:
                connection.register("clips", self._dataset(snapshot.parts, SCHEMA))
                try:
                    answer = connection.sql(query)
                    if answer is None:
                        raise LongtakeError(f"{query!r} asks for nothing: begin with select.")
                    return answer.to_arrow_table()
                except duckdb.Error as error:
                    self._locations(snapshot.parts)  # was one of them replaced meanwhile?
                    raise LongtakeError(f"DuckDB cannot answer {query!r}: {error}") from error

        return self._consistently(ask)

    def filter(self, condition: pc.Expression | str | None = None, *, sql: str | None = None) -> Selection:
        """Clips to read or to train on, in the manifest's order; nothing but what the condition needs is read.

        Args:
            condition: such as `pyarrow.compute.field("status") == "ok"`, or text as `parse_where` reads it.
            sql: further, what would stand after `where` in a query on the clips, for DuckDB.

        Raises:
            LongtakeError: an unknown column, a condition that cannot be read, or DuckDB is wanted but not installed.
        """
        from .readers import Selection

        ids = self.table(["clip_id"], condition)["clip_id"].to_pylist()
        if sql is not None:
            chosen = set(self.sql(f"select clip_id from clips where ({sql}\n)")["clip_id"].to_pylist())
            ids = [clip_id for clip_id in ids if clip_id in chosen]
        return Selection(manifest=self, clip_ids=tuple(ids))

    def rows(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries, one part in memory at a time; lists of numbers are NumPy arrays.

        Every clip comes once, also while others write; one that is replaced meanwhile, as it was or as it is.
        """
        condition = parse_where(filter) if isinstance(filter, str) else filter
        wanted = None if columns is None else ["clip_id", *(name for name in columns if name != "clip_id")]
        finished: set[str] = set()
        given: set[str] = set()
        while part := self._consistently(lambda s: next((p for p in s.parts if p.name not in finished), None)):
            try:
                table = self._scan([part], wanted, condition)
            except (_PartGone, FileNotFoundError):
                self._consistently(lambda s: self._locations(s.parts))  # replaced, or damaged?
                continue
            except _UNREADABLE as error:
                raise self._unreadable(error) from error
            finished.add(part.name)
            for batch in table.to_batches(max_chunksize=ROW_GROUP_CLIPS):
                try:
                    rows = list(_dictionaries(batch))
                except _UNREADABLE as error:
                    raise self._unreadable(error) from error
                for row in rows:
                    if row["clip_id"] not in given:
                        given.add(row["clip_id"])
                        yield row if columns is None else {name: row[name] for name in columns}

    def row(self, clip_id: str, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """The row of one clip, read without the others.

        Raises:
            LongtakeError: no such clip, or an unknown column.
        """
        if (row := self._consistently(lambda snapshot: self._row(snapshot, clip_id, columns))) is None:
            raise LongtakeError(f"The manifest {self.url} has no clip {clip_id}.")
        return row

    def _row(self, snapshot: Snapshot, clip_id: str, columns: Sequence[str] | None) -> dict[str, Any] | None:
        names = SCHEMA.names if columns is None else list(columns)
        if unknown := [name for name in names if name not in _NAMES]:
            raise _unknown(unknown)
        wanted = _hashes([clip_id])
        for part in snapshot.parts:
            for position in self._index(part).candidates(wanted).tolist():
                with self._open(part) as file:
                    group = 0
                    while position >= (count := file.metadata.row_group(group).num_rows):
                        position, group = position - count, group + 1
                    table = file.read_row_group(group, columns=["clip_id", *names], use_threads=False)
                table = table.slice(position, 1)
                if table["clip_id"][0].as_py() == clip_id:
                    wanted_schema = pa.schema([SCHEMA.field(name) for name in names])
                    row = next(_dictionaries(_fitted(table, wanted_schema).combine_chunks().to_batches()[0]))
                    return {name: row[name] for name in names}
        return None

    # -- writing

    def append(self, rows: Iterable[Mapping[str, Any]]) -> Snapshot:
        """Commit rows, in one snapshot; a row whose clip is there already takes the place of the old one.

        Rows may come from a generator: some hundreds are in memory at a time.

        Returns:
            The snapshot that holds them.

        Raises:
            ValueError: a row does not fit the schema, has an address with a password in it, or two rows are of one
                clip; nothing is visible then.
            LongtakeError: the disk is full or cannot be written; nothing of these rows is visible then.
        """
        ids: set[str] = set()

        def tables() -> Iterator[pa.Table]:
            waiting = iter(rows)
            while chunk := list(itertools.islice(waiting, CHUNK_CLIPS)):
                table = to_table(chunk)
                for row in chunk:
                    if secret := [n for n in URI_COLUMNS if n[-1] == "i" and row.get(n) and has_secret(row[n])]:
                        raise ValueError(
                            f"clip {row['clip_id']}: {secret[0]} holds a password or a signature; keep it in the "
                            "environment, and write the address without it"
                        )
                before = len(ids)
                ids.update(table["clip_id"].to_pylist())
                if len(ids) != before + len(table):
                    raise ValueError("two of the rows are of one clip: append one row per clip_id")
                yield table

        with self.storage.told():
            added = self._stage(tables(), SCHEMA)
        return self._commit(added, ids, _many_small) if added else self.snapshot()

    def compact(self) -> Snapshot:
        """Join small parts into such of about 64 MiB; call it when a run is over."""
        return self._commit([], set(), _small_together) if _small_together(self.snapshot()) else self.snapshot()

    def merge(self, *others: Manifest) -> Merged:
        """Take over the rows of other manifests, in one snapshot; of a clip that several have the newest row counts.

        Addresses that were relative to the other folder become absolute; files stay where they are. Columns that this
        version does not know are kept. A few hundred rows are in memory at a time.

        Raises:
            LongtakeError: one column has two types, or the manifest cannot be written.
        """
        newest: dict[str, tuple[datetime, int]] = {}  # clip_id -> when its row was made, which manifest has it
        here, read = self.ids(), 0
        for i, source in enumerate([self, *others]):
            table = source.table(["clip_id", "created_at"])
            read += len(table) if i else 0
            for clip_id, made in zip(table["clip_id"].to_pylist(), table["created_at"].to_pylist(), strict=True):
                if clip_id not in newest or made > newest[clip_id][0]:
                    newest[clip_id] = made, i
        added: list[Part] = []
        try:
            for i, source in enumerate(others, 1):
                wanted = {clip_id for clip_id, (_, owner) in newest.items() if owner == i}
                if wanted:
                    keep = pa.array(sorted(wanted), pa.string())
                    added += source._consistently(lambda s, source=source, keep=keep: self._taken(source, s, keep))
        except BaseException:
            self._discard(added)
            raise
        taken = {clip_id for clip_id, (_, owner) in newest.items() if owner > 0}
        if added:
            self._commit(added, taken, _many_small)
        return Merged(added=len(taken - here), replaced=len(taken & here), left=read - len(taken))

    def _taken(self, source: Manifest, snapshot: Snapshot, keep: pa.Array) -> list[Part]:
        """The rows of another manifest with these ids, staged here."""

        def tables() -> Iterator[pa.Table]:
            for part in snapshot.parts:
                for table in source._chunks(part):
                    table = table.filter(pc.field("clip_id").isin(keep))
                    for name in URI_COLUMNS:
                        i = table.schema.get_field_index(name)
                        values = [_absolute(source.storage, value) for value in table[name].to_pylist()]
                        table = table.set_column(i, table.field(i), pa.array(values, table.field(i).type))
                    if len(table):
                        yield table

        with self.storage.told():
            return self._stage(tables(), source._schema_of(snapshot.parts))

    def migrate(self) -> Snapshot:
        """Rewrite the parts that an older minor version wrote, so that every part has this version's columns.

        Values that a column held are kept, with its new type where that has changed; columns that this version does not
        know survive. Parts of this version or a later one stay as they are. Other major versions are not read at all.

        Raises:
            LongtakeError: a value does not fit its column's type; says in which part.
        """

        def old(snapshot: Snapshot) -> list[list[Part]]:
            return [[part] for part in snapshot.parts if self._is_old(part)]

        return self._commit([], set(), old) if self._consistently(old) else self.snapshot()

    def _is_old(self, part: Part) -> bool:
        with self._open(part) as file:
            schema = file.schema_arrow
        if _version((schema.metadata or {}).get(b"longtake.schema", b"/0.0").decode()) < _version(SCHEMA_ID):
            return True
        return any(schema.get_field_index(f.name) < 0 or schema.field(f.name).type != f.type for f in SCHEMA)

    # -- checks

    def validate(self, *, hashes: bool = False) -> list[str]:
        """Everything wrong with the published rows, their parts and the files they name, in words; empty if none.

        Looks for: parts that are missing, changed or in no snapshot; rows that break the schema; clips with several
        rows; rows that name files which do not exist; files below clips/ and sidecars/ that belong to no row. Addresses
        outside the file system and object stores (https) are not looked at.

        Args:
            hashes: read every file that a row's `uri` names, too, and compare its size and SHA-256 with the row.
        """
        problems: list[str] = []
        seen: set[str] = set()
        named: set[str] = set()
        snapshot = self.snapshot()
        for part in snapshot.parts:
            for row in self._valid_rows(part, snapshot.number, problems):
                where = f"{part.name}: clip {row['clip_id']}"
                if row["clip_id"] in seen:
                    problems.append(f"{where}: more than one row")
                seen.add(row["clip_id"])
                if found := row_problem(row) or principal_point_outside(row):
                    problems.append(f"{where}: {found}")
                for name in URI_COLUMNS:
                    if name == "source_uri" or row[name] is None:
                        continue  # the original may be gone
                    for uri in [row[name]] if name.endswith("uri") else row[name]:
                        named.add(os.path.normpath(uri))
                        if problem := self._file_problem(uri, row if hashes and name == "uri" else None):
                            problems.append(f"{where}: {name} {uri} {problem}")
        for folder in HELD:
            for entry in self.storage.list(folder, deep=True):
                if entry.name not in named and seen.isdisjoint(entry.name.split("/")):
                    problems.append(f"{entry.name}: belongs to no row")
        listed = {part.name for part in snapshot.parts}
        problems += [
            f"{entry.name}: in no snapshot; a reader of *.parquet takes it for part of the manifest, gc() removes it"
            for entry in self.storage.list("")
            if entry.name.endswith(".parquet") and entry.name not in listed
        ]
        return problems

    def _valid_rows(self, part: Part, number: int, problems: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of a part, as far as it is what the snapshot says; what is wrong with it joins `problems`."""
        try:
            (place,) = self._locations([part])
            with self.storage.open(place) as file:
                digest, size = _digest(file)
            rows = 0
            ids: list[str] = []
            for table in self._chunks(part):
                rows += len(table)
                for batch in table.select(SCHEMA.names).to_batches():
                    for row in _dictionaries(batch):
                        ids.append(row["clip_id"])
                        yield row
        except (_PartGone, FileNotFoundError):
            problems.append(f"{part.name}: listed in snapshot {number}, but the file is missing")
            return
        except (pa.ArrowInvalid, OSError, LongtakeError) as error:
            problems.append(f"{part.name}: not readable: {error}")
            return
        if (size, rows) != (part.bytes, part.rows):
            problems.append(
                f"{part.name}: {size} bytes and {rows} rows, but snapshot {number} says {part.bytes} and {part.rows}"
            )
        elif part.sha256 is not None and digest != part.sha256:
            problems.append(f"{part.name}: its content is not what snapshot {number} was made with (SHA-256)")
        right, found = _Index.of(ids), self._indexes.get(part.name) or self._index(part)
        if not (np.array_equal(right.hashes, found.hashes) and np.array_equal(right.rows, found.rows)):
            problems.append(f"_index/{part.name}.npy: not of this part; remove it, it is made anew where it is missing")

    def _file_problem(self, uri: str, row: Mapping[str, Any] | None) -> str | None:
        """What is wrong with a file that a row names; with `row` also whether its content is what the row says."""
        try:
            place = self.files.place(uri, "")
        except BadMedia as error:
            return None if "://" in uri else f"is never read: {error}"
        storage, name = (Local(Path("/")), str(place)) if isinstance(place, Path) else place
        try:
            if not storage.exists(name):
                return "does not exist"
        except OSError as error:  # a name that is too long, a folder that is not ours
            return f"cannot be looked at: {error.strerror}"
        if row is None or row["sha256"] is None or row["image_uris"] is not None:
            return None
        with storage.open(name) as file:
            digest, size = _digest(file)
        if size != row["bytes"]:
            return f"has {size} bytes, not {row['bytes']}"
        return None if digest == row["sha256"] else f"has SHA-256 {digest}, not {row['sha256']}"

    def gc(self, min_age_s: float = 3600.0) -> list[str]:
        """Remove what no snapshot lists: replaced parts, and what killed writers left; returns the names.

        Snapshots before the newest are emptied; their names stay, so that a writer that slept cannot take one of them.

        Args:
            min_age_s: keep staged files and old snapshots younger than this: a writer may be about to publish, a reader
                about to read.
        """
        with self.storage.told():
            return self._settle() + self._remove_abandoned(min_age_s)

    def _remove_abandoned(self, min_age_s: float) -> list[str]:
        removed = []
        staged, indexes = self.storage.list("_staging"), self.storage.list("_index")
        snapshots = self.storage.list("_snapshots")
        newest = self.snapshot()
        listed = {part.name for part in newest.parts}
        for entry in [*staged, *indexes]:
            name = entry.name.rpartition("/")[2]
            part = name.removesuffix(".staged").removesuffix(".npy")
            if part not in listed and entry.age_s >= min_age_s:
                self.storage.delete(entry.name)
                removed.append(name)
        for entry in snapshots:
            number = Path(entry.name).stem
            if number.isdecimal() and int(number) < newest.number and entry.bytes and entry.age_s >= min_age_s:
                self.storage.replace(entry.name, b"")
        return removed

    # -- committing

    def _commit(self, added: list[Part], ids: set[str], regroup: Callable[[Snapshot], list[list[Part]]]) -> Snapshot:
        """Publish a snapshot with the staged parts `added` and without other rows of the clips `ids`.

        Each list of parts that `regroup(snapshot)` names is written anew as one or several. Everything is looked at
        again whenever another writer was first.
        """
        hashes = _hashes(sorted(ids))
        rewritten: dict[tuple[str, ...], list[Part]] = {}  # what was staged for which parts
        try:
            with self.storage.told():
                while True:
                    base = self.snapshot()
                    try:
                        kept = self._kept(base, ids, hashes, regroup, rewritten)
                    except (_PartGone, FileNotFoundError) as error:
                        if self._lacks_parts(base):
                            raise self._damaged(error, base) from error
                        continue  # replaced meanwhile; the next snapshot says by what
                    schema = max(base.schema, SCHEMA_ID, key=_version)
                    proposal = Snapshot(number=base.number + 1, parts=(*kept, *added), schema=schema)
                    if self._publish(proposal):
                        self._settle()
                        return proposal
        finally:  # of the staged parts only those go that no snapshot lists, whatever interrupted us
            listed = {part.name for part in self.snapshot().parts}
            everything = itertools.chain(added, *rewritten.values())
            self._discard(part for part in everything if part.name not in listed)

    def _kept(
        self,
        base: Snapshot,
        ids: set[str],
        hashes: NDArray[np.uint64],
        regroup: Callable[[Snapshot], list[list[Part]]],
        rewritten: dict[tuple[str, ...], list[Part]],
    ) -> list[Part]:
        """The parts of `base` after all that has to be rewritten was."""
        group_of = {part.name: group for group in regroup(base) for part in group}
        parts: list[Part] = []
        done: set[str] = set()
        for part in base.parts:
            group = group_of.get(part.name, [part])
            if part.name in done:
                continue
            done |= {member.name for member in group}
            if part.name not in group_of and not (hashes.size and self._index(part).candidates(hashes).size):
                parts.append(part)
                continue
            key = tuple(member.name for member in group)
            if key not in rewritten:
                gone = pa.array(sorted(ids), pa.string())

                def tables(group: list[Part] = group, gone: pa.Array = gone) -> Iterator[pa.Table]:
                    for member in group:
                        for table in self._chunks(member):
                            left = table.filter(~pc.field("clip_id").isin(gone)) if ids else table
                            if len(left):
                                yield left

                rewritten[key] = self._stage(tables(), self._schema_of(group))
            parts += rewritten[key]
        return parts

    def _stage(self, tables: Iterable[pa.Table], schema: pa.Schema) -> list[Part]:
        """Write rows as parts of about PART_BYTES under _staging, with their indexes; none for no rows."""
        parts: list[Part] = []
        source = _even(tables)
        try:
            while (table := next(source, None)) is not None:
                name, rows, ids = f"part-{uuid.uuid4().hex}.parquet", 0, []
                with self.storage.writer(_staged_name(name)) as file:
                    hashing = _Hashing(file)
                    with pq.ParquetWriter(
                        pa.PythonFile(hashing, "w"),
                        schema,
                        compression="zstd",
                        use_dictionary=LOW_CARDINALITY,  # pyright: ignore[reportArgumentType]
                        use_byte_stream_split=[f"{name}.list.element" for name in _FLOAT_LISTS],  # pyright: ignore
                        write_statistics=False,  # clips lie in no order that would let a reader skip some
                    ) as writer:
                        while table is not None:
                            writer.write_table(_fitted(table, schema), row_group_size=ROW_GROUP_CLIPS)
                            rows += len(table)
                            ids += table["clip_id"].to_pylist()
                            table = next(source, None) if hashing.bytes < PART_BYTES else None
                part = Part(name=name, rows=rows, bytes=hashing.bytes, sha256=hashing.sha256.hexdigest())
                parts.append(part)
                with self.storage.writer(_index_name(name)) as file:
                    file.write(_Index.of(ids).to_bytes())
        except BaseException:
            self._discard(parts)
            raise
        return parts

    def _discard(self, parts: Iterable[Part]) -> None:
        for part in parts:
            for name in (_staged_name(part.name), _index_name(part.name)):
                self.storage.delete(name)

    def _publish(self, snapshot: Snapshot) -> bool:
        """Create the snapshot's file with all its content; False where another writer has that number."""
        commit = uuid.uuid4().hex
        tree = {
            "number": snapshot.number,
            "commit": commit,
            "schema": snapshot.schema,
            "created_at": datetime.now(UTC).isoformat(),
            "rows": snapshot.rows,
            "parts": [asdict(part) for part in snapshot.parts],
        }
        name = _snapshot_name(snapshot.number)
        if self.storage.create(name, json.dumps(tree, indent=1).encode()):
            return True
        there = self.storage.read(name)  # ours, if an object store's answer was lost and the request repeated
        return bool(there) and json.loads(there).get("commit") == commit

    def _settle(self) -> list[str]:
        """Move published parts beside the others and remove replaced ones; also after a writer that was killed here."""
        removed = []
        while True:
            present = {e.name for e in self.storage.list("") if _is_part(e.name)}  # before the snapshot: all published
            snapshot = self.snapshot()
            listed = {part.name for part in snapshot.parts}
            for name in listed - present:
                with suppress(FileNotFoundError):  # another writer moved it
                    self.storage.move(_staged_name(name), name)
            for name in sorted(present - listed):
                self.storage.delete(name)
                self.storage.delete(_index_name(name))
                removed.append(name)
            self.storage.sync("")
            if self.snapshot().number == snapshot.number:
                return removed

    # -- files

    def _list_snapshots(self) -> list[int]:
        stems = (Path(entry.name).stem for entry in self.storage.list("_snapshots") if entry.name.endswith(".json"))
        return [int(stem) for stem in stems if stem.isdecimal()]

    def _locations(self, parts: Sequence[Part]) -> list[str]:
        """Where the parts are: at home, or staged."""
        names = [part.name for part in parts]
        home = self.storage.present(names)
        staged = self.storage.present(_staged_name(name) for name in names if name not in home)
        out = []
        for name in names:
            if name not in home and _staged_name(name) in staged:
                out.append(_staged_name(name))
            elif name in home or self.storage.exists(name):  # it may be moved from the second to the first meanwhile
                out.append(name)
            else:
                raise _PartGone(name)
        return out

    def _open(self, part: Part) -> pq.ParquetFile:
        for name in (part.name, _staged_name(part.name), part.name):
            if not self.storage.exists(name):  # asked first: obstore's files complain aloud where they cannot be opened
                continue
            with suppress(FileNotFoundError):
                return pq.ParquetFile(self.storage.path(name), filesystem=self.storage.filesystem)
        raise _PartGone(part.name)

    def _chunks(self, part: Part) -> Iterator[pa.Table]:
        """The rows of a part with all its columns, those of this version's schema first, some hundreds at a time."""
        with self._open(part) as file:
            for batch in file.iter_batches(ROW_GROUP_CLIPS, use_threads=False):
                yield _completed(pa.Table.from_batches([batch], file.schema_arrow), f"{self.url}/{part.name}")

    def _schema_of(self, parts: Sequence[Part]) -> pa.Schema:
        """This version's schema and whatever columns more the parts have."""
        schemas = []
        for part in parts:
            with self._open(part) as file:
                schemas.append(file.schema_arrow)
        return _joined_schema(schemas)

    def _dataset(self, parts: Sequence[Part], schema: pa.Schema) -> ds.Dataset:
        if not parts:
            return ds.dataset(schema.empty_table())
        paths = [self.storage.path(name) for name in self._locations(parts)]
        return ds.dataset(paths, schema=schema, format="parquet", filesystem=self.storage.filesystem)

    def _scan(self, parts: Sequence[Part], columns: Sequence[str] | None, filter: pc.Expression | None) -> pa.Table:
        names, schema = SCHEMA.names if columns is None else list(columns), SCHEMA
        if not _NAMES.issuperset(names):
            schema = self._schema_of(parts)
            if unknown := [name for name in names if name not in schema.names]:
                raise _unknown(unknown)
        if not parts:
            return schema.empty_table().select(names)
        return self._dataset(parts, schema).to_table(columns=names, filter=filter)

    def _index(self, part: Part) -> _Index:
        """Where the clips of a part are, from its index or, where there is none, from the part itself."""
        if part.name not in self._indexes:
            index = None
            with suppress(FileNotFoundError):
                index = _Index.from_bytes(self.storage.read(_index_name(part.name)), part.rows)
            if index is None:
                with self._open(part) as file:
                    index = _Index.of(file.read(columns=["clip_id"])["clip_id"].to_pylist())
            self._indexes[part.name] = index
        return self._indexes[part.name]

    def _consistently(self, read: Callable[[Snapshot], T]) -> T:
        """`read(snapshot)`, again with the next snapshot where a writer replaced one of its parts meanwhile."""
        while True:
            snapshot = self.snapshot()
            try:
                return read(snapshot)
            except (_PartGone, FileNotFoundError) as error:
                if self._lacks_parts(snapshot):
                    raise self._damaged(error, snapshot) from error
            except _UNREADABLE as error:
                raise self._unreadable(error) from error

    def _lacks_parts(self, snapshot: Snapshot) -> bool:
        """Whether this is the newest snapshot and a part of it is nowhere; not so if one was moved while we read it."""
        try:
            self._locations(snapshot.parts)
        except _PartGone:
            return self.snapshot().number == snapshot.number
        return False

    def _unreadable(self, error: Exception) -> LongtakeError:
        return LongtakeError(
            f"The manifest {self.url} is damaged: a part cannot be read ({error}). `longtake manifest validate` says "
            "which; restore it, or annotate its videos again into a new folder."
        )

    def _damaged(self, error: Exception, snapshot: Snapshot) -> LongtakeError:
        return LongtakeError(
            f"The manifest {self.url} is damaged: {error} is listed in snapshot {snapshot.number}, but "
            "the file is missing. Restore it, or annotate its videos again into a new folder."
        )


# ---- names -------------------------------------------------------------------------------------------------------


def _snapshot_name(number: int) -> str:
    return f"_snapshots/{number}.json"


def _staged_name(part: str) -> str:
    return f"_staging/{part}.staged"


def _index_name(part: str) -> str:
    return f"_index/{part}.npy"


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def _version(schema_id: str) -> tuple[int, ...]:
    return tuple(int(number) for number in schema_id.rpartition("/")[2].split("."))


def _unknown(names: Sequence[str]) -> LongtakeError:
    return LongtakeError(f"The manifest has no column {', '.join(names)}. It has: {', '.join(SCHEMA.names)}.")


# ---- which parts to write anew -----------------------------------------------------------------------------------


def _small_together(snapshot: Snapshot) -> list[list[Part]]:
    """Groups of parts that together make one of about PART_BYTES."""
    groups: list[list[Part]] = [[]]
    for part in snapshot.parts:
        if part.bytes > PART_BYTES // 2:
            continue
        if sum(p.bytes for p in groups[-1]) + part.bytes > PART_BYTES:
            groups.append([])
        groups[-1].append(part)
    return [group for group in groups if len(group) > 1]


def _many_small(snapshot: Snapshot) -> list[list[Part]]:
    """The smallest parts, once they are many: a manifest that grows by few rows at a time stays quick to read."""
    small = [part for part in snapshot.parts if part.bytes < PART_BYTES // 16]
    return _small_together(Snapshot(number=0, parts=tuple(small))) if len(small) >= SMALL_PARTS else []


# ---- tables ------------------------------------------------------------------------------------------------------


def _completed(table: pa.Table, where: str = "") -> pa.Table:
    """The table with this version's columns first (nulls for those it lacks), then those that it has besides."""
    schema = _joined_schema([table.schema])
    try:
        return _fitted(table, schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LongtakeError(f"{where}: a value does not fit its column in schema {SCHEMA_ID}: {error}") from error


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema, check_metadata=True):
        return table
    there = set(table.column_names)
    columns = [pa.nulls(len(table), f.type) if f.name not in there else _as_type(table[f.name], f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def _joined_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    more: dict[str, pa.Field] = {}
    newest = SCHEMA_ID
    for schema in schemas:
        newest = max(newest, (schema.metadata or {}).get(b"longtake.schema", SCHEMA_ID.encode()).decode(), key=_version)
        for f in schema:
            if f.name not in _NAMES and more.setdefault(f.name, f.with_nullable(True)).type != f.type:
                raise LongtakeError(
                    f"Column {f.name} is {more[f.name].type} in one part and {f.type} in another: rename it in one."
                )
    return pa.schema([*SCHEMA, *more.values()], metadata={**SCHEMA.metadata, b"longtake.schema": newest.encode()})


def _even(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of CHUNK_CLIPS, so that row groups are full."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(len(t) for t in waiting) >= CHUNK_CLIPS:
            whole = pa.concat_tables(waiting, promote_options="default")
            yield whole.slice(0, CHUNK_CLIPS)
            waiting = [whole.slice(CHUNK_CLIPS)] if len(whole) > CHUNK_CLIPS else []
    if waiting:
        yield pa.concat_tables(waiting, promote_options="default")


def _dictionaries(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = column.type
        if pa.types.is_list(kind) and not pa.types.is_string(kind.value_type):
            columns[name] = [s.values.to_numpy(zero_copy_only=False) if s.is_valid else None for s in column]
        else:
            columns[name] = column.to_pylist()
    for i in range(batch.num_rows):
        yield {name: values[i] for name, values in columns.items()}


def _absolute(base: Storage, value: str | list[str] | None) -> str | list[str] | None:
    if value is None or isinstance(value, str):
        return absolute(base, value) if value is not None else None
    return [absolute(base, uri) for uri in value]


@dataclass(eq=False)
class _Hashing:
    """A file for Arrow to write to, which counts and hashes what goes through it."""

    file: Any
    bytes: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    closed: bool = False

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        self.file.write(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True


def _digest(file: Any) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    sha256, size = hashlib.sha256(), 0
    while data := bytes(file.read(1 << 20)):
        sha256.update(data)
        size += len(data)
    return sha256.hexdigest(), size
