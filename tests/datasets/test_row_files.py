"""Which of the files that rows name are read: those below the manifest, and those that the row was made from."""

from __future__ import annotations

import hashlib
import os
import pickle

import pytest

from longtake.datasets.manifest import create_manifest, open_manifest
from longtake.datasets.row_files import VARIABLE, RowFiles, local_file, path_of
from longtake.datasets.storage import Local
from longtake.errors import BadMedia

FILM = b"not really a film"
SECRET = b"what the manifest's writer has never seen"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def place(tmp_path):
    """A manifest's folder with a film in it; beside it the same film, and a secret."""
    folder = tmp_path / "run"
    (folder / "clips").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for path in (folder / "clips" / "a.mp4", tmp_path / "other" / "a.mp4"):
        path.write_bytes(FILM)
    (tmp_path / "other" / "secret.mp4").write_bytes(SECRET)
    (folder / "clips" / "to-secret.mp4").symlink_to(tmp_path / "other" / "secret.mp4")
    (folder / "clips" / "to-film.mp4").symlink_to(tmp_path / "other" / "a.mp4")
    (folder / "clips" / "loop.mp4").symlink_to("loop.mp4")
    return folder


def row(uri, **changes):
    known = {"clip_id": "c", "uri": uri, "image_uris": None, "sha256": sha256(FILM), "bytes": len(FILM)}
    return known | changes


@pytest.mark.parametrize("uri", ["clips/a.mp4", "{run}/clips/a.mp4", "file://{run}/clips/a.mp4"])
def test_below_the_folder_nothing_is_hashed(place, uri):
    assert local_file(place, row(uri.format(run=place), sha256=None)).read_bytes() == FILM


@pytest.mark.parametrize("uri", ["{other}/a.mp4", "file://{other}/a.mp4", "clips/to-film.mp4"])
def test_elsewhere_it_must_be_the_file_that_the_row_was_made_from(place, uri):
    uri = uri.format(other=place.parent / "other")
    assert local_file(place, row(uri)).read_bytes() == FILM
    for changed in ({"sha256": sha256(b"")}, {"sha256": None}, {"bytes": 3}):
        with pytest.raises(BadMedia, match=r"lies outside .* is not what the row was made from") as error:
            local_file(place, row(uri, **changed))
        assert error.value.reason == "unsafe_path"
    (place.parent / "other" / "a.mp4").write_bytes(FILM[::-1])  # hashes are remembered, but not for a changed file
    os.utime(place.parent / "other" / "a.mp4", ns=(1, 1))
    with pytest.raises(BadMedia, match="by its SHA-256"):
        local_file(place, row(uri))


@pytest.mark.parametrize(
    "uri",
    [
        "{other}/secret.mp4",
        "file://{other}/secret.mp4",
        "clips/to-secret.mp4",
        "../other/a.mp4",
        "clips/../../other/a.mp4",
        "clips/loop.mp4",
        "file://host/a.mp4",
        "file:{other}/a.mp4",
        "http://host/a.mp4",
        "https://host/a.mp4",
        "s3://bucket/a.mp4",
        "concat:clips/a.mp4",
        "clips\\a.mp4",
        "~/a.mp4",
        "clips/\0.mp4",
        "/\0.mp4",
        "",
        "a" * 256,
        "/" + "a/" * 3000,
    ],
)
def test_what_is_refused(place, uri):
    with pytest.raises(BadMedia):
        local_file(place, row(uri.format(other=place.parent / "other")))


def test_folders_that_the_user_names(place, monkeypatch):
    other = place.parent / "other"
    files = RowFiles(Local(place), [other])
    for uri in (f"{other}/secret.mp4", "clips/to-secret.mp4"):
        assert path_of(files.find(row(uri))[0]).read_bytes() == SECRET
    with pytest.raises(BadMedia, match="leads out of the folder"):
        files.find(row("../other/secret.mp4"))
    with pytest.raises(BadMedia, match="lies outside"):
        files.find(row("/etc/hostname"))
    monkeypatch.setenv(VARIABLE, f"/nowhere{os.pathsep}{other}/")
    assert local_file(place, row(f"{other}/secret.mp4")).read_bytes() == SECRET


def test_a_folder_of_a_similar_name_is_another(place):
    other = place.with_name("run-2")
    other.mkdir()
    (other / "secret.mp4").write_bytes(SECRET)
    with pytest.raises(BadMedia, match="lies outside"):
        local_file(place, row(f"{other}/secret.mp4"))


def test_files_without_a_hash_lie_below_the_folder(place):
    (place / "depth.zip").write_bytes(SECRET)
    assert local_file(place, row("clips/a.mp4", depth_uri="depth.zip"), "depth_uri").is_file()
    with pytest.raises(BadMedia, match=r"depth_uri .*secret.mp4 lies outside"):
        local_file(place, row("clips/a.mp4", depth_uri=f"{place.parent}/other/secret.mp4"), "depth_uri")


def test_what_is_not_there_is_left_to_who_reads_it(place):
    assert local_file(place, row("/nowhere/a.mp4")) == local_file(place, row("file:///nowhere/a.mp4"))


def pictures(folder):
    folder.mkdir()
    for i in range(12):  # 10.png comes after 9.png
        (folder / f"{i}.png").write_bytes(bytes([i]) * (i + 1))
    digests = [hashlib.sha256(bytes([i]) * (i + 1)).digest() for i in range(12)]
    return {"sha256": sha256(b"".join(digests)), "bytes": 78}


def test_pictures_of_a_folder(place):
    folder = place.parent / "pictures"
    known = pictures(folder)
    every = [f"{folder}/{i}.png" for i in range(12)]
    for uri, some in ((str(folder), every), (str(folder), every[3:7]), (f"{folder}/*.png", every)):
        of = row(uri, **known, image_uris=some)
        assert [path_of(p) for p in RowFiles(Local(place)).find(of, "image_uris", some[1:3])] == [
            folder / name.rpartition("/")[2] for name in some[1:3]
        ]
    assert local_file(place, row(str(folder), **known, image_uris=every[3:7])) == folder
    secret = f"{place.parent}/other/secret.mp4"
    for uri, named in ((str(folder), [*every, secret]), (str(folder), [secret]), (f"{folder}/*.png", [*every, secret])):
        with pytest.raises(BadMedia, match="lies outside"):
            RowFiles(Local(place)).find(row(uri, **known, image_uris=named), "image_uris")
    (folder / "3.png").write_bytes(b"\3\3\3\4")
    os.utime(folder / "3.png", ns=(1, 1))
    with pytest.raises(BadMedia, match="lies outside"):
        RowFiles(Local(place)).find(row(str(folder), **known, image_uris=every), "image_uris")


def test_a_manifest_finds_them_also_in_another_process(place, make_row):
    (place / "clips" / "loop.mp4").unlink()
    manifest = create_manifest(place)
    manifest.append([make_row("a.mp4") | {"uri": f"{place.parent}/other/secret.mp4"}])
    (found,) = manifest.rows()
    with pytest.raises(BadMedia, match=f"{VARIABLE}={place.parent}/other"):
        manifest.files.find(found)
    trusting = pickle.loads(pickle.dumps(open_manifest(place, files_in=[place.parent / "other"]).files))
    assert path_of(trusting.find(found)[0]).read_bytes() == SECRET


def test_validating_what_cannot_be_looked_at(place, make_row):
    (place / "clips" / "a").mkdir()
    manifest = create_manifest(place)  # with a loop of links below clips/
    manifest.append([make_row("a.mp4") | {"uri": "clips/loop.mp4"}, make_row("b.mp4") | {"uri": "a" * 300}])
    problems = " ".join(manifest.validate())
    assert "loop.mp4' cannot be followed" in problems and "a name of 300 characters" in problems
