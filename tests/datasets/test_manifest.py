"""The committed manifest: what is published is whole, what is not is not seen, and one row stands for one clip."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from longtake.datasets import manifest as module
from longtake.datasets import storage
from longtake.datasets.manifest import check_writable, create_manifest, open_manifest
from longtake.datasets.schema import SCHEMA
from longtake.records import LongtakeError


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "run"


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*") if p.is_file()}


def indexes(folder: Path) -> set[str]:
    return {f"{name}.npy" for name in listed(folder)}


def listed(folder: Path) -> set[str]:
    return {part.name for part in open_manifest(folder).snapshot().parts}


def test_rows_come_back_as_they_went_in(folder, make_row):
    given = [make_row("a.mp4", unposed=(2, 3), zoom=True), make_row("b.mp4", failed=True)]
    create_manifest(folder).append(given)
    read = list(open_manifest(folder).rows())
    assert len(read) == 2
    for before, after in zip(given, read, strict=True):
        assert list(after) == SCHEMA.names
        for name, value in before.items():
            if isinstance(value, float):
                assert after[name] == pytest.approx(value, rel=1e-6), name  # stored as float32
            elif isinstance(value, np.ndarray):
                np.testing.assert_array_equal(after[name], value.astype(after[name].dtype), err_msg=name)
            elif isinstance(value, list) and value and not isinstance(value[0], str):
                assert after[name].tolist() == pytest.approx(value), name
            elif isinstance(value, list):
                assert list(after[name]) == value, name
            else:
                assert after[name] == value, name
    assert open_manifest(folder).validate() == [
        f"{next(iter(listed(folder)))}: clip {row['clip_id']}: uri {row['uri']} does not exist" for row in given
    ]


def test_stored_as_other_readers_like_it(folder, make_row):
    create_manifest(folder).append([make_row(f"{i}.mp4") for i in range(130)])
    (path,) = open_manifest(folder).paths()
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [64, 64, 2]
    columns = {
        (c := metadata.row_group(0).column(i)).path_in_schema: c for i in range(metadata.row_group(0).num_columns)
    }
    assert "BYTE_STREAM_SPLIT" in columns["c2w.list.element"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["intrinsics.list.element"].encodings
    assert "RLE_DICTIONARY" in columns["status"].encodings
    assert "RLE_DICTIONARY" not in columns["clip_id"].encodings
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert metadata.metadata[b"longtake.schema"] == SCHEMA.metadata[b"longtake.schema"]
    field = pq.read_schema(path).field("trans_total_m")
    assert field.metadata[b"unit"] == b"see scale_kind"


def test_only_parts_match_parquet_globs(folder, make_row):
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4")])
    manifest.append([make_row("b.mp4")])
    assert {p.name for p in folder.rglob("*.parquet")} == listed(folder)
    assert all(name.startswith("part-") for name in listed(folder))
    assert names(folder) == listed(folder) | indexes(folder) | {"0.json", "1.json", "2.json"}


def test_selected_columns_and_rows(folder, make_row):
    manifest = create_manifest(folder)
    assert manifest.table().schema.equals(SCHEMA) and list(manifest.rows()) == [] and manifest.ids() == set()
    a, b = make_row("a.mp4"), make_row("b.mp4", failed=True)
    manifest.append([a])
    manifest.append([b])
    failed = pc.field("status") == "failed"
    assert list(manifest.rows(["status", "num_frames"], failed)) == [{"status": "failed", "num_frames": 20}]
    assert manifest.table(["clip_id"]).column_names == ["clip_id"]
    assert manifest.ids() == {a["clip_id"], b["clip_id"]} and len(manifest) == 2
    with pytest.raises(LongtakeError, match=r"no column state.*status"):
        manifest.table(["state"])


def test_one_row_is_found_in_any_row_group(folder, make_row):
    rows = [make_row(f"{i}.mp4") for i in range(150)]
    manifest = create_manifest(folder)
    manifest.append(rows[:130])
    manifest.append(rows[130:])
    for i in (0, 63, 64, 129, 130, 149):
        assert manifest.row(rows[i]["clip_id"])["source_uri"] == f"/videos/{i}.mp4"
    with pytest.raises(LongtakeError, match="no clip nowhere"):
        manifest.row("nowhere")


def test_appending_a_clip_again_replaces_its_row(folder, make_row):
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4"), make_row("b.mp4", failed=True)])
    manifest.append([make_row("c.mp4")])
    before = manifest.snapshot()
    after = manifest.append([make_row("b.mp4", run_id="run-2"), make_row("d.mp4", run_id="run-2")])
    found = {Path(r["source_uri"]).stem: (r["run_id"], r["status"]) for r in manifest.rows()}
    assert found == {"a": ("run-1", "ok"), "b": ("run-2", "ok"), "c": ("run-1", "ok"), "d": ("run-2", "ok")}
    assert after.number == before.number + 1 and after.rows == 4
    assert before.parts[0] not in after.parts and before.parts[1] in after.parts  # only what it was in is rewritten
    assert {p.name for p in folder.glob("*.parquet")} == listed(folder)
    manifest.append([make_row("c.mp4", run_id="run-3")])  # the part had no other row
    assert len(manifest) == 4 and manifest.row(make_row("c.mp4")["clip_id"])["run_id"] == "run-3"


def test_refused_rows_leave_nothing(folder, make_row):
    manifest = create_manifest(folder)
    with pytest.raises(ValueError, match="two of the rows are of one clip"):
        manifest.append([make_row("a.mp4"), make_row("a.mp4")])
    with pytest.raises(ValueError, match="no column colour"):
        manifest.append([make_row("a.mp4") | {"colour": 1}])
    assert manifest.append([]).number == 0
    assert names(folder) == {"0.json"}


def test_compact_joins_small_parts(folder, make_row):
    manifest = create_manifest(folder)
    for i in range(5):
        manifest.append([make_row(f"{i}.mp4")])
    assert len(manifest.compact().parts) == 1
    assert len(manifest) == 5 and len(manifest.ids()) == 5
    assert {p.name for p in folder.glob("*.parquet")} == listed(folder)
    number = manifest.snapshot().number
    assert manifest.compact().number == number  # nothing left to do


def test_reading_goes_on_while_parts_are_replaced(folder, make_row):
    manifest = create_manifest(folder)
    for i in range(4):
        manifest.append([make_row(f"{i}.mp4")])
    reader = open_manifest(folder).rows(["clip_id"])
    first = [next(reader), next(reader)]
    manifest.compact()
    rest = list(reader)
    assert {r["clip_id"] for r in first + rest} == manifest.ids() and len(first + rest) == 4


WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import conftest
from longtake.datasets.manifest import create_manifest
from longtake.datasets.schema import annotate_row

def row(name):
    info, of = conftest.video(name), conftest.shot()
    track = conftest.track(info, of)
    return annotate_row(path=info.path, provenance=conftest.PROVENANCE, video=info, shot=of, track=track)
"""


def writer(folder: Path, script: str, *, wait: bool = True) -> subprocess.Popen[str]:
    """Another process that runs `script` with `row(name)`, `create_manifest` and `folder` at hand."""
    code = WRITER + f"folder = {str(folder)!r}\n" + textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    if wait:
        process.stderr_text = process.communicate(timeout=120)[1]  # type: ignore[attr-defined]
    return process


def test_two_writers_both_land(folder):
    create_manifest(folder)
    script = """
        manifest = create_manifest(folder)
        sys.stdin.readline()  # both begin together
        for i in range(8):
            manifest.append([row(f"{name}{i}.mp4"), row("shared.mp4")])
    """
    writers = [writer(folder, f"name = {name!r}\n" + textwrap.dedent(script), wait=False) for name in "xy"]
    for process in writers:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    for process in writers:
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    manifest = open_manifest(folder)
    stems = sorted(Path(r["source_uri"]).stem for r in manifest.rows(["source_uri"]))
    assert stems == sorted([f"{name}{i}" for name in "xy" for i in range(8)] + ["shared"])
    assert manifest.snapshot().number == 16  # every commit is one snapshot, none was lost
    assert {p.name for p in folder.glob("*.parquet")} == listed(folder)
    assert not list((folder / "_staging").iterdir())


def test_the_loser_of_a_race_looks_again(folder, make_row, monkeypatch):
    manifest, other = create_manifest(folder), open_manifest(folder)
    manifest.append([make_row("a.mp4")])
    link, raced = os.link, []

    def slow(source, target):
        if not raced:  # between our look and our publication the other replaces the row that we replace too
            raced.append(True)
            other.append([make_row("a.mp4", run_id="other"), make_row("b.mp4")])
        link(source, target)

    monkeypatch.setattr(os, "link", slow)
    manifest.append([make_row("a.mp4", run_id="ours")])
    assert raced
    found = {Path(r["source_uri"]).stem: r["run_id"] for r in manifest.rows()}
    assert found == {"a": "ours", "b": "run-1"}
    assert {p.name for p in folder.glob("*.parquet")} == listed(folder)


@pytest.mark.parametrize("call", ["pq.ParquetWriter", "os.link"])
def test_killed_before_publication_nothing_is_seen(folder, make_row, call):
    create_manifest(folder).append([make_row("a.mp4")])
    before = listed(folder)
    script = f"""
        import longtake.datasets.manifest as m
        manifest = create_manifest(folder)
        owner = {"m.pq" if call.startswith("pq") else "os"}
        real = owner.{call.split(".")[1]}
        def killed(*args, **kwargs):
            if "pq" in {call!r}:
                args[0].write(b"PAR1 half a file")
                args[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        owner.{call.split(".")[1]} = killed
        manifest.append([row("b.mp4"), row("a.mp4")])
    """
    assert writer(folder, script).returncode == -9
    manifest = open_manifest(folder)
    assert [Path(r["source_uri"]).stem for r in manifest.rows()] == ["a"]
    assert {p.name for p in folder.rglob("*.parquet")} == before  # also for those who read the files by themselves
    assert list((folder / "_staging").iterdir())
    assert manifest.gc(min_age_s=3600) == []  # it might be of a writer that is alive
    assert manifest.gc(min_age_s=0)
    assert not list((folder / "_staging").iterdir())
    manifest.append([make_row("b.mp4")])
    assert len(manifest) == 2


@pytest.mark.parametrize("call", ["os.rename", "os.unlink"])
def test_killed_after_publication_everything_is_seen(folder, make_row, call):
    create_manifest(folder).append([make_row("a.mp4")])
    script = f"""
        import pathlib
        manifest = create_manifest(folder)
        link = os.link
        def kill(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        def armed(*args):
            link(*args)
            os.rename = kill
            if {call == "os.unlink"}:
                os.rename = rename
                real = pathlib.Path.unlink
                pathlib.Path.unlink = lambda self, **k: kill() if self.suffix == ".parquet" else real(self, **k)
        rename, os.link = os.rename, armed
        manifest.append([row("b.mp4"), row("a.mp4")])
    """
    assert writer(folder, script).returncode == -9
    manifest = open_manifest(folder)
    assert sorted(Path(r["source_uri"]).stem for r in manifest.rows()) == ["a", "b"]
    manifest.append([make_row("c.mp4")])  # the next writer puts the files where they belong
    assert sorted(Path(r["source_uri"]).stem for r in manifest.rows()) == ["a", "b", "c"]
    assert {p.name for p in folder.glob("*.parquet")} == listed(folder)


def test_a_full_disk_is_said_and_nothing_is_seen(folder, make_row):
    create_manifest(folder).append([make_row("a.mp4")])
    script = """
        import resource
        manifest = create_manifest(folder)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # files end after 4 KiB, as on a full disk
        manifest.append([row("b.mp4")])
    """
    process = writer(folder, script)
    assert process.returncode == 1
    error = process.stderr_text.strip().splitlines()[-1]  # type: ignore[attr-defined]
    assert "LongtakeError: Cannot write the manifest to" in error and "There is no room left" in error
    assert len(open_manifest(folder)) == 1 and not list((folder / "_staging").iterdir())


def test_outputs_that_cannot_be_written_are_known_before(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LongtakeError, match="Part of that path is a file"):
        check_writable(tmp_path / "file" / "run")
    with pytest.raises(LongtakeError, match="Part of that path is a file"):
        create_manifest(tmp_path / "file")

    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted", source, None, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(LongtakeError, match="has no hard links"):
            check_writable(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
        with pytest.raises(LongtakeError, match="Only 3 MiB are free"):
            check_writable(tmp_path / "a")
    check_writable(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LongtakeError, match="Choose a folder that you may write to"):
        check_writable(tmp_path / "run")


def test_what_is_no_manifest(tmp_path, folder, make_row):
    with pytest.raises(LongtakeError, match="the folder does not exist"):
        open_manifest(tmp_path / "nowhere")
    with pytest.raises(LongtakeError, match="has no _snapshots folder"):
        open_manifest(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(LongtakeError, match=r"holds mine.parquet"):
        create_manifest(tmp_path)
    create_manifest(folder)
    path = folder / "_snapshots" / "0.json"
    path.write_text(path.read_text().replace("longtake.clips/1.", "longtake.clips/2."))
    with pytest.raises(LongtakeError, match="use the version that wrote it"):
        open_manifest(folder)


def test_older_minor_versions_are_read(folder, make_row):
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4")])
    (path,) = manifest.paths()
    pq.write_table(pq.read_table(path).drop_columns(["splat_uri"]), path)
    assert manifest.table()["splat_uri"].to_pylist() == [None]
    assert manifest.row(make_row("a.mp4")["clip_id"])["splat_uri"] is None
    manifest.append([make_row("b.mp4")])
    assert len(manifest.compact().parts) == 1


def test_validate_finds_what_is_wrong(folder, make_row, tmp_path):
    def edited(**changes):
        path = manifest.paths()[0]
        table = pq.read_table(path)
        for name, value in changes.items():
            i = table.schema.get_field_index(name)
            table = table.set_column(i, table.field(i), pa.array([value] * len(table), table.field(i).type))
        pq.write_table(table, path)
        found = [p for p in manifest.validate() if "snapshot" not in p]
        path.write_bytes(original)
        return found

    manifest = create_manifest(folder)
    for video in (folder / "a.mp4", tmp_path / "a.mp4"):
        video.write_bytes(b"x")
    row = make_row("a.mp4") | {"uri": "a.mp4"}  # relative to the manifest
    manifest.append([row])
    original = manifest.paths()[0].read_bytes()
    assert manifest.validate() == []
    assert edited(uri=str(tmp_path / "a.mp4")) == []
    assert "uri ../a.mp4 is never read" in edited(uri="../a.mp4")[0]
    centre = np.tile(np.array([500, 500, 1300, 240], np.float32), 20)
    assert "principal point [1300.  240.] lies outside the 640 x 480 picture" in edited(intrinsics=centre)[0]
    assert "neither poses" in edited(c2w=None)[0]
    assert "depth_uri depth/a.zip does not exist" in edited(depth_uri="depth/a.zip")[0]
    (folder / "part-stray.parquet").write_bytes(original)
    assert manifest.validate() == [
        "part-stray.parquet: in no snapshot; a reader of *.parquet takes it for part of the manifest, gc() removes it"
    ]
    assert manifest.gc() == ["part-stray.parquet"]
    manifest.paths()[0].write_bytes(original[:-100])
    assert "not readable" in manifest.validate()[0]
    manifest.paths()[0].unlink()
    assert manifest.validate()[0].endswith("listed in snapshot 1, but the file is missing")
    with pytest.raises(LongtakeError, match="is damaged"):
        list(manifest.rows())
    with pytest.raises(LongtakeError, match="is damaged"):
        open_manifest(folder).ids()


def test_files_and_rows_that_do_not_belong_together(folder, make_row):
    manifest = create_manifest(folder)
    row = make_row("a.mp4")
    content = b"not really a film"
    row |= {"uri": "clips/a.mp4", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    for name in ("clips/a.mp4", f"sidecars/{row['clip_id']}/contact_3.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest.append([row])
    assert manifest.validate(hashes=True) == []
    for name in ("clips/b.mp4", "sidecars/gone/depth.zip"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert manifest.validate() == [f"{name}: belongs to no row" for name in ("clips/b.mp4", "sidecars/gone/depth.zip")]
    for name in ("clips/b.mp4", "sidecars/gone/depth.zip"):
        (folder / name).unlink()
    (folder / "clips" / "a.mp4").write_bytes(content[::-1])
    assert manifest.validate() == []
    assert "uri clips/a.mp4 has SHA-256" in manifest.validate(hashes=True)[0]
    (folder / "clips" / "a.mp4").write_bytes(content + b"!")
    assert "uri clips/a.mp4 has 18 bytes, not 17" in manifest.validate(hashes=True)[0]


def test_a_part_that_was_changed_is_told(folder, make_row):
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4", failed=True)])
    path = manifest.paths()[0]
    data = path.read_bytes()
    at = data.index(b"only 3 features")
    path.write_bytes(data[:at] + b"only 4 features" + data[at + 15 :])
    assert any("its content is not what snapshot 1 was made with" in p for p in open_manifest(folder).validate())


def test_indexes_are_made_anew_and_wrong_ones_told(folder, make_row):
    rows = [make_row(f"{i}.mp4") for i in range(70)]
    create_manifest(folder).append(rows)
    (path,) = (folder / "_index").iterdir()
    right = path.read_bytes()
    for wrong in (None, b"", b"no array", right[:-12]):
        path.unlink(missing_ok=True)
        if wrong is not None:
            path.write_bytes(wrong)
        assert open_manifest(folder).row(rows[66]["clip_id"], ["source_uri"]) == {"source_uri": "/videos/66.mp4"}
    table = np.load(io.BytesIO(right))
    np.save(path, np.roll(table, 1))
    assert f"_index/{path.name}: not of this part" in open_manifest(folder).validate()[-1]
    path.unlink()
    open_manifest(folder).append([rows[0] | {"run_id": "again"}])  # without the index, too, a row replaces its like
    assert len(open_manifest(folder)) == 70
    (folder / "_index" / "part-gone.parquet.npy").write_bytes(b"left over")
    assert open_manifest(folder).gc(0) == ["part-gone.parquet.npy"]


def test_old_snapshots_are_emptied_but_keep_their_names(folder, make_row):
    manifest = create_manifest(folder)
    for i in range(3):
        manifest.append([make_row(f"{i}.mp4")])
    slow = open_manifest(folder)
    assert manifest.gc() == [] and (folder / "_snapshots" / "1.json").stat().st_size
    manifest.gc(0)
    sizes = {p.name: p.stat().st_size for p in (folder / "_snapshots").iterdir()}
    assert sizes.pop("3.json") and set(sizes) == {"0.json", "1.json", "2.json"} and not any(sizes.values())
    slow.append([make_row("3.mp4")])
    assert open_manifest(folder).snapshot().number == 4 and len(slow) == 4


def test_rows_from_a_generator_fill_parts_of_bounded_size(folder, make_row, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CLIPS", 64)
    monkeypatch.setattr(module, "PART_BYTES", 5_000)
    rows = (make_row(f"{i}.mp4") for i in range(150))
    snapshot = create_manifest(folder).append(rows)
    assert snapshot.number == 1 and [part.rows for part in snapshot.parts] == [64, 64, 22]
    assert [r["source_uri"] for r in open_manifest(folder).rows(["source_uri"])] == [
        f"/videos/{i}.mp4" for i in range(150)
    ]
    with pytest.raises(ValueError, match="two of the rows"):
        open_manifest(folder).append(make_row(f"{'ab'[i % 149 == 0]}{i % 149}.mp4") for i in range(150))
    assert open_manifest(folder).snapshot() == snapshot and not list((folder / "_staging").iterdir())
    assert {p.name for p in (folder / "_index").iterdir()} == indexes(folder)


def test_many_small_parts_are_joined_while_rows_come_in(folder, make_row, monkeypatch):
    monkeypatch.setattr(module, "SMALL_PARTS", 4)
    manifest = create_manifest(folder)
    for i in range(9):
        assert len(manifest.append([make_row(f"{i}.mp4")]).parts) <= 5
    assert manifest.table(["source_uri"])["source_uri"].to_pylist() == [f"/videos/{i}.mp4" for i in range(9)]


def test_compact_makes_several_parts_where_one_would_be_too_large(folder, make_row, monkeypatch):
    manifest = create_manifest(folder)
    sizes = [manifest.append([make_row(f"{i}.mp4")]).parts[-1].bytes for i in range(5)]
    monkeypatch.setattr(module, "PART_BYTES", round(2.5 * max(sizes)))
    assert [part.rows for part in manifest.compact().parts] == [2, 2, 1]
    assert len(manifest.ids()) == 5


def test_merge_takes_the_newest_row_of_each_clip(tmp_path, make_row):
    def at(year, name, **more):
        return make_row(name, run_id=str(year)) | {"created_at": datetime(year, 1, 1, tzinfo=UTC)} | more

    here, one, two = (create_manifest(tmp_path / name) for name in ("here", "one", "two"))
    here.append([at(2020, "a.mp4"), at(2020, "b.mp4"), at(2020, "e.mp4")])
    one.append([at(2021, "a.mp4", uri="clips/a.mp4"), at(2019, "b.mp4"), at(2021, "c.mp4", uri="/films/c.mp4")])
    two.append([at(2022, "c.mp4"), at(2022, "d.mp4", uri="s3://bucket/d.mp4", depth_uri="../d.zip")])
    done = here.merge(one, two)
    assert (done.added, done.replaced, done.left) == (2, 1, 2)
    found = {Path(r["source_uri"]).stem: r for r in here.rows()}
    assert {name: row["run_id"] for name, row in found.items()} == {
        "a": "2021",
        "b": "2020",
        "c": "2022",
        "d": "2022",
        "e": "2020",
    }
    assert found["a"]["uri"] == str(tmp_path / "one" / "clips" / "a.mp4")
    assert (found["d"]["uri"], found["d"]["depth_uri"]) == ("s3://bucket/d.mp4", str(tmp_path / "d.zip"))
    assert here.snapshot().number == 2
    assert here.merge(one, two) == module.Merged(added=0, replaced=0, left=5) and here.snapshot().number == 2


def older_part(folder: Path, *, without: list[str], more: dict, version: str) -> Path:
    """Rewrites the only part as another version of the schema would have written it."""
    (path,) = open_manifest(folder).paths()
    table = pq.read_table(path).drop_columns(without)
    for name, values in more.items():
        table = table.append_column(name, values)
    stamp = b"longtake.clips/" + version.encode()
    pq.write_table(table.replace_schema_metadata({**SCHEMA.metadata, b"longtake.schema": stamp}), path)
    return path


def test_migrate_adds_new_columns_and_keeps_unknown_ones(folder, make_row):
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4"), make_row("b.mp4")])
    weather = pa.array([{"rain": True, "mm": [1, 2]}, None])
    old = older_part(folder, without=["splat_uri", "prompt"], more={"weather": weather}, version="1.0")
    manifest.append([make_row("c.mp4")])
    before = manifest.snapshot()
    assert manifest.table(["weather", "prompt"]).to_pylist()[0] == {
        "weather": {"rain": True, "mm": [1, 2]},
        "prompt": None,
    }
    after = open_manifest(folder).migrate()
    assert not old.exists() and after.parts[1] == before.parts[1] and after.number == before.number + 1
    schema = pq.read_schema(manifest.paths()[0])
    assert (
        schema.names == [*SCHEMA.names, "weather"] and schema.metadata[b"longtake.schema"] == module.SCHEMA_ID.encode()
    )
    assert manifest.table(["weather"])["weather"].to_pylist() == [*weather.to_pylist(), None]
    assert manifest.migrate() == after  # nothing left to do
    manifest.append([make_row("b.mp4", run_id="again")])  # nor does what rewrites a part lose them
    manifest.compact()
    assert len(manifest.paths()) == 1
    assert manifest.table(["weather"])["weather"].to_pylist() == [weather[0].as_py(), None, None]
    other = create_manifest(folder.parent / "other")
    other.merge(manifest)
    assert other.table(["weather"])["weather"].to_pylist() == [weather[0].as_py(), None, None]


def test_parts_of_a_later_minor_version(folder, make_row):
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4")])
    older_part(folder, without=[], more={"smell": pa.array([0.5])}, version="1.77")
    path = folder / "_snapshots" / "1.json"
    path.write_text(path.read_text().replace(module.SCHEMA_ID, "longtake.clips/1.77"))
    manifest = open_manifest(folder)
    number = manifest.snapshot().number
    assert manifest.migrate().number == number  # it is no business of ours
    manifest.append([make_row("b.mp4")])
    assert manifest.compact().schema == "longtake.clips/1.77"
    assert manifest.table(["smell"])["smell"].to_pylist() == [0.5, None]
    assert pq.read_schema(manifest.paths()[0]).metadata[b"longtake.schema"] == b"longtake.clips/1.77"


def test_columns_of_two_types_are_told(folder, make_row):
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4")])
    older_part(folder, without=[], more={"smell": pa.array([0.5])}, version="1.2")
    other = create_manifest(folder.parent / "other")
    other.append([make_row("b.mp4")])
    older_part(folder.parent / "other", without=[], more={"smell": pa.array(["nice"])}, version="1.2")
    manifest.merge(other)
    with pytest.raises(LongtakeError, match="Column smell is double in one part and string in another"):
        manifest.compact()
    assert len(manifest) == 2 and manifest.table(["status"]).num_rows == 2


def test_addresses_with_secrets_are_refused(folder, make_row):
    manifest = create_manifest(folder)
    for uri in (
        "https://me:secret@host/a.mp4",
        "https://bucket.s3.amazonaws.com/a.mp4?X-Amz-Expires=60&X-Amz-Signature=abc",
        "https://account.blob.core.windows.net/a.mp4?sv=1&sig=abc",
    ):
        with pytest.raises(ValueError, match="uri holds a password or a signature"):
            manifest.append([make_row("a.mp4") | {"uri": uri}])
    manifest.append([make_row("a.mp4") | {"uri": "https://host/@a/b.mp4?t=3"}])


def test_sql(folder, make_row):
    pytest.importorskip("duckdb", exc_type=ImportError)
    manifest = create_manifest(folder)
    manifest.append([make_row("a.mp4"), make_row("b.mp4", failed=True)])
    manifest.append([make_row("c.mp4", zoom=True)])
    found = manifest.sql("select source_uri, len(c2w) n from clips where status = 'ok' order by source_uri desc")
    assert found.to_pylist() == [{"source_uri": "/videos/c.mp4", "n": 240}, {"source_uri": "/videos/a.mp4", "n": 240}]
    with pytest.raises(LongtakeError, match="DuckDB cannot answer"):
        manifest.sql("select nothing from clips")
    with pytest.raises(LongtakeError, match="DuckDB cannot answer"):
        manifest.sql(f"select * from '{folder}/*.parquet'")  # nothing but the clips is in reach


def test_snapshots_say_what_they_hold(folder, make_row):
    snapshot = create_manifest(folder).append([make_row("a.mp4")])
    tree = json.loads((folder / "_snapshots" / "1.json").read_text())
    assert tree["rows"] == 1 and tree["schema"].startswith("longtake.clips/1.")
    assert tree["parts"][0]["name"] == snapshot.parts[0].name
    assert tree["parts"][0]["bytes"] == (folder / snapshot.parts[0].name).stat().st_size


def test_polars_reads_it(folder, make_row):
    polars = pytest.importorskip("polars", exc_type=ImportError)
    create_manifest(folder).append([make_row("a.mp4"), make_row("b.mp4", failed=True)])
    frame = polars.read_parquet(str(folder / "*.parquet"))
    assert frame.filter(polars.col("status") == "ok").height == 1
    assert frame["c2w"].list.len().to_list() == [240, None]
    assert frame["created_at"].dtype == polars.Datetime("us", "UTC")
    assert frame["frame_num_tracked"][0].to_list() == [400] * 20


def test_duckdb_reads_it(folder, make_row):
    duckdb = pytest.importorskip("duckdb", exc_type=ImportError)
    create_manifest(folder).append([make_row("a.mp4"), make_row("b.mp4", failed=True)])
    query = f"select status, len(c2w) as n, year(created_at) as y from '{folder}/*.parquet' order by status"
    rows = duckdb.sql(query).fetchall()
    assert rows == [("failed", None, 2025), ("ok", 240, 2025)]
    reasons = duckdb.sql(
        f"select unnest(filter_reasons) as r, count(*) from '{folder}/*.parquet' group by r"
    ).fetchall()
    assert reasons == [("too_few_tracks", 1)]


def test_hugging_face_reads_it(folder, make_row, tmp_path, hugging_face):
    create_manifest(folder).append([make_row("a.mp4"), make_row("b.mp4", failed=True)])
    files = str(folder / "*.parquet")  # with data_dir= it takes the snapshots for data
    data = hugging_face.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert data["status"][:] == ["ok", "failed"] and len(data[0]["c2w"]) == 240
