"""The manifest: a folder of Parquet parts, and snapshots that say which of them count.

    M/part-<id>.parquet     immutable once there; any Parquet reader takes M/*.parquet
    M/_snapshots/<n>.json   the parts of version n; created whole or not at all, never changed
    M/_staging/             parts on their way; not named *.parquet

A commit writes its part under _staging, publishes snapshot n + 1 by linking a finished file to that name (which fails
if another writer was first: it then looks again and retries), and moves the part beside the others. What a killed
writer left in _staging belongs to no snapshot and is never read. One row per clip_id: appending a clip that is there
already replaces its row, by rewriting the part it was in.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ..records import LongtakeError
from .schema import SCHEMA, SCHEMA_ID, principal_point_outside, row_problem, to_table

ROW_GROUP_CLIPS = 64
MIN_FREE_BYTES = 64 << 20
PART_BYTES = 128 << 20  # what compact() aims at
LOW_CARDINALITY = """origin status source_dataset license split container codec pix_fmt color_range boundary
    intrinsics_mode focal_status distortion_model camera_convention pixel_center scale_kind scale_source pose_source
    motion_class filter_profile caption_model path_family error_stage run_id config_hash software_version
    stage_versions model_revisions model_licenses""".split()
_FLOAT_LISTS = [f.name for f in SCHEMA if pa.types.is_list(f.type) and pa.types.is_floating(f.type.value_type)]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of a snapshot."""

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of the manifest."""

    number: int
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


class _PartGone(Exception):
    """A part was superseded between reading its snapshot and reading it."""


def open_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest in this folder.

    Raises:
        LongtakeError: there is none, or it was written by a later major version.
    """
    folder = Path(path)
    if not (folder / "_snapshots").is_dir():
        if not folder.exists():
            raise LongtakeError(f"There is no manifest at {folder}: the folder does not exist.")
        raise LongtakeError(
            f"{folder} is no manifest: it has no _snapshots folder. Give the folder that was named with --out."
        )
    manifest = Manifest(folder)
    manifest.snapshot()
    return manifest


def create_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest in this folder, made empty where there is none yet.

    Raises:
        LongtakeError: the folder cannot be written, is nearly full, or holds Parquet files that are not ours.
    """
    folder = Path(path)
    check_writable(folder)
    if not (folder / "_snapshots").is_dir() and (foreign := sorted(p.name for p in folder.glob("*.parquet"))):
        raise LongtakeError(
            f"{folder} holds {foreign[0]}, which is part of no manifest: a reader of *.parquet would mix the two. "
            "Choose another output folder."
        )
    manifest = Manifest(folder)
    with _told(folder):
        for name in ("_snapshots", "_staging"):
            (folder / name).mkdir(exist_ok=True)
        if not manifest._numbers():
            manifest._publish(Snapshot(number=0, parts=()))  # losing this race leaves the same empty manifest
    return manifest


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make the folder, and make sure that files can be written, linked and renamed there and that there is room.

    Raises:
        LongtakeError: says which of these fails, where, and what to do.
    """
    folder = Path(path)
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".longtake-{uuid.uuid4().hex}"
        try:
            _write_file(probe, b"longtake")
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


class Manifest:
    """Reads and commits rows; `open_manifest` and `create_manifest` make one."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._positions: dict[str, dict[str, int]] = {}  # part -> clip_id -> row; parts never change

    def snapshot(self) -> Snapshot:
        """The newest published version."""
        numbers = self._numbers()
        if not numbers:
            raise LongtakeError(f"The manifest {self.folder} has no snapshot: it was never finished being created.")
        path = self._snapshot_path(max(numbers))
        tree = json.loads(path.read_text(encoding="utf-8"))
        name, _, version = tree["schema"].partition("/")
        wanted, _, ours = SCHEMA_ID.partition("/")
        if name != wanted or version.split(".")[0] != ours.split(".")[0]:
            raise LongtakeError(
                f"{path} has schema {tree['schema']}, this longtake reads {SCHEMA_ID}: use the version that wrote it."
            )
        return Snapshot(number=tree["number"], parts=tuple(Part(**part) for part in tree["parts"]))

    def __len__(self) -> int:
        return self.snapshot().rows

    def paths(self) -> list[Path]:
        """The Parquet files of the newest snapshot, for readers such as DuckDB or Polars."""
        return self._consistently(lambda snapshot: [self._part_path(part.name) for part in snapshot.parts])

    def ids(self) -> set[str]:
        """The clip_id of every row."""
        return self._consistently(lambda snapshot: {i for part in snapshot.parts for i in self._rows_of(part)})

    def table(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> pa.Table:
        """Rows of the newest snapshot as an Arrow table.

        Args:
            columns: names; None for all.
            filter: such as `pyarrow.compute.field("status") == "ok"`.

        Raises:
            LongtakeError: an unknown column.
        """
        return self._consistently(lambda snapshot: self._scan(snapshot.parts, columns, filter))

    def rows(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries, one part in memory at a time; lists of numbers are NumPy arrays.

        Every clip comes once, also while others write; one that is replaced meanwhile, as it was or as it is.
        """
        wanted = None if columns is None else ["clip_id", *(name for name in columns if name != "clip_id")]
        finished: set[str] = set()
        given: set[str] = set()
        while part := self._consistently(lambda s: next((p for p in s.parts if p.name not in finished), None)):
            try:
                table = self._scan([part], wanted, filter)
            except (_PartGone, FileNotFoundError):
                self._consistently(lambda s: [self._part_path(p.name) for p in s.parts])  # replaced, or damaged?
                continue
            finished.add(part.name)
            for batch in table.to_batches(max_chunksize=ROW_GROUP_CLIPS):
                for row in _dictionaries(batch):
                    if row["clip_id"] not in given:
                        given.add(row["clip_id"])
                        yield row if columns is None else {name: row[name] for name in columns}

    def row(self, clip_id: str) -> dict[str, Any]:
        """The row of one clip, read without the others.

        Raises:
            LongtakeError: no such clip.
        """

        def read(snapshot: Snapshot) -> dict[str, Any] | None:
            for part in snapshot.parts:
                if (position := self._rows_of(part).get(clip_id)) is None:
                    continue
                with self._open(part) as file:
                    group = 0
                    while position >= (count := file.metadata.row_group(group).num_rows):
                        position, group = position - count, group + 1
                    table = file.read_row_group(group).slice(position, 1)
                return next(_dictionaries(_as_schema(table).to_batches()[0]))
            return None

        if (row := self._consistently(read)) is None:
            raise LongtakeError(f"The manifest {self.folder} has no clip {clip_id}.")
        return row

    def append(self, rows: Iterable[Mapping[str, Any]]) -> Snapshot:
        """Commit rows, in one snapshot; a row whose clip is there already takes the place of the old one.

        Returns:
            The snapshot that holds them.

        Raises:
            ValueError: a row does not fit the schema, or two rows are of one clip.
            LongtakeError: the disk is full or cannot be written; nothing of these rows is visible then.
        """
        table = to_table(rows)
        ids = set(table["clip_id"].to_pylist())
        if len(ids) != len(table):
            raise ValueError("two of the rows are of one clip: append one row per clip_id")
        if not ids:
            return self.snapshot()
        return self._commit(table, lambda part: [i for i in self._rows_of(part) if i in ids])

    def compact(self) -> Snapshot:
        """Join small parts into one of at most about 128 MiB; call it when a run is over."""
        base = self.snapshot()
        small, total = [], 0
        for part in base.parts:
            if total + part.bytes <= PART_BYTES:
                small.append(part)
                total += part.bytes
        if len(small) < 2:
            return base
        return self._commit(None, lambda part: [], join={part.name for part in small})

    def validate(self) -> list[str]:
        """Everything wrong with the published rows and the files they name, in words; empty where all is well."""
        problems, seen = [], set()
        snapshot = self.snapshot()
        for part in snapshot.parts:
            try:
                path = self._part_path(part.name)
                with self._open(part) as file:
                    table = _as_schema(file.read())
            except _PartGone:
                problems.append(f"{part.name}: listed in snapshot {snapshot.number}, but the file is missing")
                continue
            except (pa.ArrowInvalid, OSError) as error:
                problems.append(f"{part.name}: not readable: {error}")
                continue
            if (size := path.stat().st_size) != part.bytes or len(table) != part.rows:
                problems.append(
                    f"{part.name}: {size} bytes and {len(table)} rows, but snapshot {snapshot.number} says "
                    f"{part.bytes} and {part.rows}"
                )
            for row in (r for batch in table.to_batches() for r in _dictionaries(batch)):
                where = f"{part.name}: clip {row['clip_id']}"
                if row["clip_id"] in seen:
                    problems.append(f"{where}: more than one row")
                seen.add(row["clip_id"])
                if found := row_problem(row) or principal_point_outside(row):
                    problems.append(f"{where}: {found}")
                for name in ("uri", "first_frame_uri", "depth_uri", "mask_uri", "splat_uri", "plan_uri", "latents_uri"):
                    if row[name] is not None and not (self.folder / row[name]).exists():
                        problems.append(f"{where}: {name} {row[name]} does not exist")
        listed = {part.name for part in snapshot.parts}
        problems += [
            f"{path.name}: in no snapshot; a reader of *.parquet takes it for part of the manifest, gc() removes it"
            for path in sorted(self.folder.glob("*.parquet"))
            if path.name not in listed
        ]
        return problems

    def gc(self, min_age_s: float = 3600.0) -> list[str]:
        """Remove what no snapshot lists: replaced parts, and what killed writers left; returns the names.

        Args:
            min_age_s: keep staged files younger than this, for a writer may be about to publish them.
        """
        with _told(self.folder):
            return self._settle() + self._remove_abandoned(min_age_s)

    def _remove_abandoned(self, min_age_s: float) -> list[str]:
        removed = []
        listed = {part.name for part in self.snapshot().parts}
        for path in sorted((self.folder / "_staging").iterdir()):
            if path.name.removesuffix(".staged") not in listed and time.time() - path.stat().st_mtime >= min_age_s:
                path.unlink(missing_ok=True)
                removed.append(path.name)
        return removed

    # -- committing

    def _commit(self, fresh: pa.Table | None, stale: Any, join: frozenset[str] | set[str] = frozenset()) -> Snapshot:
        """Publish a snapshot without the rows `stale(part)` names, with the parts `join` made one, and with `fresh`.

        Everything is looked at again whenever another writer was first.
        """
        staged: dict[str, Part] = {}  # what was rewritten for which part (and for which rows of it)
        try:
            with _told(self.folder):
                added = [self._stage(fresh)] if fresh is not None else []
                staged |= {part.name: part for part in added}
                while True:
                    base = self.snapshot()
                    try:
                        kept = self._rewritten(base, stale, join, staged)
                    except _PartGone:
                        continue  # replaced meanwhile; the next snapshot says by what
                    proposal = Snapshot(number=base.number + 1, parts=(*kept, *added))
                    if self._publish(proposal):
                        self._settle()
                        return proposal
        finally:  # of the staged parts only those go that no snapshot lists, whatever interrupted us
            listed = {part.name for part in self.snapshot().parts}
            for part in staged.values():
                if part.name not in listed:
                    self._staged_path(part.name).unlink(missing_ok=True)

    def _rewritten(
        self, base: Snapshot, stale: Any, join: frozenset[str] | set[str], staged: dict[str, Part]
    ) -> list[Part]:
        parts, joined = [], []
        for part in base.parts:
            gone = stale(part)
            if part.name in join:
                joined.append(part)
            elif not gone:
                parts.append(part)
            elif len(gone) < part.rows:
                if part.name not in staged:
                    keep = ~pc.field("clip_id").isin(pa.array(gone, pa.string()))
                    staged[part.name] = self._stage(self._read(part).filter(keep))
                parts.append(staged[part.name])
        if joined:
            key = " ".join(part.name for part in joined)
            if key not in staged:
                staged[key] = self._stage(pa.concat_tables([self._read(part) for part in joined]))
            parts.insert(0, staged[key])
        return parts

    def _stage(self, table: pa.Table) -> Part:
        part = f"part-{uuid.uuid4().hex}.parquet"
        path = self._staged_path(part)
        try:
            with open(path, "xb") as file:
                pq.write_table(
                    table,
                    file,
                    compression="zstd",
                    row_group_size=ROW_GROUP_CLIPS,
                    use_dictionary=LOW_CARDINALITY,  # pyright: ignore[reportArgumentType]
                    use_byte_stream_split=[f"{name}.list.element" for name in _FLOAT_LISTS],  # pyright: ignore[reportArgumentType]
                )
                file.flush()
                os.fsync(file.fileno())
            return Part(name=part, rows=len(table), bytes=path.stat().st_size)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _publish(self, snapshot: Snapshot) -> bool:
        """Create the snapshot's file with all its content; False where another writer has that number."""
        tree = {
            "number": snapshot.number,
            "schema": SCHEMA_ID,
            "created_at": datetime.now(UTC).isoformat(),
            "rows": snapshot.rows,
            "parts": [asdict(part) for part in snapshot.parts],
        }
        draft = self.folder / "_staging" / f"snapshot-{uuid.uuid4().hex}.staged"
        try:
            _write_file(draft, json.dumps(tree, indent=1).encode())
            os.link(draft, self._snapshot_path(snapshot.number))
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(self.folder / "_snapshots")
        return True

    def _settle(self) -> list[str]:
        """Move published parts beside the others and remove replaced ones; also after a writer that was killed here."""
        removed = []
        while True:
            present = sorted(self.folder.glob("part-*.parquet"))  # before the snapshot: all were published by then
            snapshot = self.snapshot()
            listed = {part.name for part in snapshot.parts}
            for name in listed - {path.name for path in present}:
                with suppress(FileNotFoundError):  # another writer moved it
                    os.rename(self._staged_path(name), self.folder / name)
            for path in present:
                if path.name not in listed:
                    path.unlink(missing_ok=True)
                    removed.append(path.name)
            _sync_folder(self.folder)
            if self.snapshot().number == snapshot.number:
                return removed

    # -- reading

    def _numbers(self) -> list[int]:
        return [int(p.stem) for p in (self.folder / "_snapshots").glob("*.json") if p.stem.isdecimal()]

    def _snapshot_path(self, number: int) -> Path:
        return self.folder / "_snapshots" / f"{number}.json"

    def _staged_path(self, part: str) -> Path:
        return self.folder / "_staging" / f"{part}.staged"

    def _part_path(self, name: str) -> Path:
        home, staged = self.folder / name, self._staged_path(name)
        for path in (home, staged, home):  # it may be moved from the second to the first while we look
            if path.exists():
                return path
        raise _PartGone(name)

    def _open(self, part: Part) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._part_path(part.name))
        except FileNotFoundError as error:
            raise _PartGone(part.name) from error

    def _read(self, part: Part) -> pa.Table:
        with self._open(part) as file:
            return _as_schema(file.read())

    def _scan(self, parts: Sequence[Part], columns: Sequence[str] | None, filter: pc.Expression | None) -> pa.Table:
        names = SCHEMA.names if columns is None else list(columns)
        if unknown := [name for name in names if name not in SCHEMA.names]:
            raise LongtakeError(f"The manifest has no column {', '.join(unknown)}. It has: {', '.join(SCHEMA.names)}.")
        if not parts:
            return SCHEMA.empty_table().select(names)
        paths = [str(self._part_path(part.name)) for part in parts]
        return ds.dataset(paths, schema=SCHEMA, format="parquet").to_table(columns=names, filter=filter)

    def _rows_of(self, part: Part) -> dict[str, int]:
        """clip_id -> row within the part."""
        if part.name not in self._positions:
            with self._open(part) as file:
                ids = file.read(columns=["clip_id"])["clip_id"].to_pylist()
            self._positions[part.name] = {clip_id: i for i, clip_id in enumerate(ids)}
        return self._positions[part.name]

    def _consistently(self, read: Any) -> Any:
        """`read(snapshot)`, again with the next snapshot where a writer replaced one of its parts meanwhile."""
        while True:
            snapshot = self.snapshot()
            try:
                return read(snapshot)
            except (_PartGone, FileNotFoundError) as error:
                if self.snapshot().number == snapshot.number:
                    raise LongtakeError(
                        f"The manifest {self.folder} is damaged: {error} is listed in snapshot {snapshot.number}, but "
                        "the file is missing. Restore it, or annotate its videos again into a new folder."
                    ) from error


def _as_schema(table: pa.Table) -> pa.Table:
    """The table with the columns that later minor versions added, as nulls."""
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type) for f in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


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


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turns an OSError of the block into words about the manifest's folder."""
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
        raise LongtakeError(f"Cannot write the manifest to {folder}: {error.strerror or error}. {what}") from error
