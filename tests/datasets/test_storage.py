"""A manifest in an object store is what it is in a folder: an S3 server, whole commits, nothing lost, no secrets."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from longtake.datasets import storage
from longtake.datasets.manifest import Manifest, create_manifest, open_manifest
from longtake.datasets.row_files import RowFiles
from longtake.datasets.storage import Local, Remote, absolute, has_secret, open_storage
from longtake.records import BadMedia, LongtakeError

SECRET = "not-to-be-written-down"
SERVER = """
import logging
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app)  # one request at a time: as atomic as the real one
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an S3 server (moto's) in a process of its own."""
    pytest.importorskip("obstore", exc_type=ImportError)
    pytest.importorskip("moto.server", exc_type=ImportError)
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.kill()
    process.wait()


@pytest.fixture
def bucket(server, monkeypatch) -> str:
    """Address of a new prefix."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{os.urandom(6).hex()}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}/some/prefix"


def objects(url: str) -> dict[str, bytes]:
    place = open_storage(url)
    return {entry.name: place.read(entry.name) for entry in place.list("", deep=True)}


def test_the_life_of_a_manifest(bucket, make_row):
    manifest = create_manifest(bucket)
    assert create_manifest(bucket).snapshot().number == 0
    manifest.append([make_row(f"{i}.mp4") for i in range(70)])
    manifest.append([make_row("3.mp4", run_id="again"), make_row("x.mp4", failed=True)])
    found = open_manifest(bucket)
    assert len(found) == 71 and len(found.ids()) == 71
    wanted = make_row("3.mp4", run_id="again")
    row = found.row(wanted["clip_id"])
    assert row["run_id"] == "again"
    np.testing.assert_array_equal(row["c2w"], wanted["c2w"].astype(np.float32))
    assert list(found.rows(["source_uri"], pc.field("status") == "failed")) == [{"source_uri": "/videos/x.mp4"}]
    files = objects(bucket)
    assert {name.split("/")[0] for name in files} == {"_snapshots", "_index", *(p.name for p in found.snapshot().parts)}
    assert len(found.compact().parts) == 1
    assert sorted(name for name in objects(bucket) if name.endswith(".parquet")) == [found.snapshot().parts[0].name]
    problems = found.validate()  # the films of these rows do not exist
    assert len(problems) == 71 and all("does not exist" in problem for problem in problems)
    place = open_storage(bucket)
    place.replace("part-stray.parquet", b"?")
    place.replace("_staging/part-left.parquet.staged", b"?")
    place.replace("clips/of-nobody.mp4", b"?")
    assert set(found.validate()) - set(problems) == {
        "clips/of-nobody.mp4: belongs to no row",
        "part-stray.parquet: in no snapshot; a reader of *.parquet takes it for part of the manifest, gc() removes it",
    }
    assert found.gc(0) == ["part-stray.parquet", "part-left.parquet.staged"]
    assert not objects(bucket)["_snapshots/1.json"] and objects(bucket)["_snapshots/3.json"]


def test_files_beside_it_are_found_and_checked(bucket, make_row):
    import hashlib

    manifest = create_manifest(bucket)
    film = b"not really a film"
    open_storage(bucket).replace("clips/a.mp4", film)
    known = {"sha256": hashlib.sha256(film).hexdigest(), "bytes": len(film)}
    manifest.append([make_row("a.mp4") | known | {"uri": "clips/a.mp4"}])
    manifest.append([make_row("b.mp4") | known | {"uri": f"{bucket}/clips/a.mp4"}])
    assert manifest.validate(hashes=True) == []
    open_storage(bucket).replace("clips/a.mp4", film[::-1])
    assert ["has SHA-256" in problem for problem in manifest.validate(hashes=True)] == [True, True]


def test_only_its_own_address_is_read(bucket, make_row, tmp_path):
    manifest = create_manifest(bucket)
    (row,) = [make_row("a.mp4") | {"uri": "clips/a.mp4"}]
    other = f"{bucket.rpartition('/')[0]}/other"
    assert [place.url for place, _ in manifest.files.find(row)] == [bucket]
    assert manifest.files.find(row | {"uri": f"{bucket}/clips/a.mp4"}) == manifest.files.find(row)
    for uri in (f"{other}/a.mp4", f"{bucket}-2/a.mp4", f"{bucket}/../other/a.mp4", "../other/a.mp4", "s3://else/a.mp4"):
        with pytest.raises(BadMedia, match="files are read below"):
            manifest.files.find(row | {"uri": uri})
    (tmp_path / "a.mp4").write_bytes(b"not what the row was made from")
    with pytest.raises(BadMedia, match="lies outside"):
        manifest.files.find(row | {"uri": str(tmp_path / "a.mp4")})
    ((place, name),) = open_manifest(bucket, files_in=[other]).files.find(row | {"uri": f"{other}/a.mp4"})
    assert (place.url, name) == (other, "a.mp4")


def test_merge_from_a_folder_and_from_a_bucket(bucket, make_row, tmp_path):
    local, remote = create_manifest(tmp_path / "local"), create_manifest(bucket)
    remote.append([make_row("a.mp4") | {"uri": "clips/a.mp4"}])
    local.append([make_row("b.mp4") | {"uri": "clips/b.mp4"}])
    local.merge(remote)
    assert local.row(make_row("a.mp4")["clip_id"])["uri"] == f"{bucket}/clips/a.mp4"
    remote.merge(local)
    assert remote.row(make_row("b.mp4")["clip_id"])["uri"] == f"{tmp_path}/local/clips/b.mp4"
    assert remote.ids() == local.ids()


def test_two_writers_both_land(bucket):
    create_manifest(bucket)
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import conftest
        from longtake.datasets.manifest import open_manifest
        from longtake.datasets.schema import annotate_row

        def row(name):
            info, of = conftest.video(name), conftest.shot()
            return annotate_row(path=info.path, provenance=conftest.PROVENANCE, video=info, shot=of,
                                track=conftest.track(info, of))

        manifest = open_manifest(sys.argv[2])
        sys.stdin.readline()  # both begin together
        for i in range(5):
            manifest.append([row(f"{sys.argv[3]}{i}.mp4"), row("shared.mp4")])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parent), bucket]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for name in "xy"
    ]
    for process in writers:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    for process in writers:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    manifest = open_manifest(bucket)
    stems = sorted(Path(r["source_uri"]).stem for r in manifest.rows(["source_uri"]))
    assert stems == sorted([f"{name}{i}" for name in "xy" for i in range(5)] + ["shared"])
    assert manifest.snapshot().number == 10  # every commit is one snapshot, none was lost


def test_the_loser_of_a_race_looks_again(bucket, make_row, monkeypatch):
    manifest, other = create_manifest(bucket), open_manifest(bucket)
    manifest.append([make_row("a.mp4")])
    create, answers = Remote.create, []

    def slow(self, name, data):
        if not answers:
            answers.append(None)
            other.append([make_row("a.mp4", run_id="other"), make_row("b.mp4")])
        answers.append(create(self, name, data))
        return answers[-1]

    monkeypatch.setattr(Remote, "create", slow)
    manifest.append([make_row("a.mp4", run_id="ours")])
    assert answers == [None, True, False, True]
    assert {Path(r["source_uri"]).stem: r["run_id"] for r in manifest.rows()} == {"a": "ours", "b": "run-1"}


def test_a_part_that_is_moved_while_it_is_read(bucket, make_row, monkeypatch):
    manifest = create_manifest(bucket)
    manifest.append([make_row("a.mp4")])
    place = open_storage(bucket)
    (part,) = (p.name for p in manifest.snapshot().parts)
    place.move(part, f"_staging/{part}.staged")  # as while a commit ends
    opened, real = [], Manifest._open

    def slow(self, part):
        file = real(self, part)
        if not opened:  # between the footer and the rows the commit ends
            opened.append(part)
            place.move(f"_staging/{part.name}.staged", part.name)
        return file

    monkeypatch.setattr(Manifest, "_open", slow)
    assert open_manifest(bucket).row(make_row("a.mp4")["clip_id"], ["status"]) == {"status": "ok"}
    assert opened


def test_an_answer_that_was_lost_is_no_lost_race(bucket, make_row, monkeypatch):
    manifest = create_manifest(bucket)
    create = Remote.create
    monkeypatch.setattr(Remote, "create", lambda self, name, data: create(self, name, data) and False)
    assert manifest.append([make_row("a.mp4")]).number == 1
    assert open_manifest(bucket).snapshot().number == 1 and len(manifest) == 1


def test_no_credentials_are_written_and_none_are_taken_from_an_address(bucket, make_row, tmp_path):
    create_manifest(bucket).append([make_row("a.mp4")])
    assert not [name for name, data in objects(bucket).items() if SECRET.encode() in data or b"someone" in data]
    for address in ("s3://me:secret@bucket/a", "s3://bucket/a?X-Amz-Signature=secret", Path("s3://me@bucket/a")):
        with pytest.raises(LongtakeError, match="Set credentials in the environment") as error:
            open_storage(address)
        assert "secret" not in str(error.value)


def test_what_is_wrong_with_a_store_is_said(bucket, make_row, monkeypatch):
    with pytest.raises(LongtakeError, match="has no snapshot"):
        open_manifest(bucket)
    with pytest.raises(LongtakeError, match="Check that the bucket exists"):
        create_manifest("s3://no-such-bucket-here/a")
    with pytest.raises(LongtakeError, match=r"lie in local folders or at s3://"):
        open_storage("ftp://host/a")
    with pytest.raises(LongtakeError, match="is no local folder"):
        _ = create_manifest(bucket).folder
    monkeypatch.setattr(Remote, "create", lambda self, name, data: self.replace(name, data) or True)
    with pytest.raises(LongtakeError, match="ignores If-None-Match"):
        create_manifest(f"{bucket}/other")


def test_a_fork_of_a_connected_process_is_told(bucket):
    manifest = create_manifest(bucket)
    manifest.storage._client = (-1, *manifest.storage._client[1:])  # type: ignore[attr-defined]
    with pytest.raises(LongtakeError, match='multiprocessing_context="spawn"'):
        len(manifest)


def test_addresses_through_pathlib(bucket, make_row):
    create_manifest(Path(bucket)).append([make_row("a.mp4")])
    assert open_manifest(Path(bucket)).url == bucket and len(open_manifest(bucket)) == 1


def test_others_read_it_there(bucket, make_row, server):
    polars = pytest.importorskip("polars", exc_type=ImportError)
    create_manifest(bucket).append([make_row("a.mp4"), make_row("b.mp4", failed=True)])
    options = {"aws_endpoint_url": server, "aws_allow_http": "true"}
    frame = polars.read_parquet(f"{bucket}/*.parquet", storage_options=options)
    assert sorted(frame["status"].to_list()) == ["failed", "ok"]
    from pyarrow.fs import S3FileSystem

    files = S3FileSystem(endpoint_override=server)
    assert pq.read_table(bucket.removeprefix("s3://"), filesystem=files, columns=["status"]).num_rows == 2


@pytest.mark.parametrize(
    "uri, secret",
    [
        ("s3://bucket/a@b.mp4", False),
        ("s3://key:secret@bucket/a.mp4", True),
        ("https://token@host/a.mp4", True),
        ("https://host/a.mp4?X-Amz-Credential=abc", True),
        ("https://host/a.mp4?design=1", False),
        ("/videos/me:you@home.mp4", False),
    ],
)
def test_secrets_in_addresses(uri, secret):
    assert has_secret(uri) is secret


def test_what_addresses_mean(tmp_path):
    here = Local(tmp_path)
    assert isinstance(open_storage(f"file://{tmp_path}"), Local)
    assert RowFiles(here).place("clips/a.mp4", "") == (here, "clips/a.mp4")
    assert absolute(here, "../a.mp4") == str(tmp_path.parent / "a.mp4") and absolute(here, "s3://b/a") == "s3://b/a"
    (tmp_path / "a b.mp4").write_bytes(b"x")
    place, name = RowFiles(here).place(f"file://{tmp_path}/a b.mp4", "")  # type: ignore[misc]
    assert place.exists(name)
    assert storage.SCHEMES == ("s3", "gs", "az")
