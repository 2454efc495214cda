"""Fetching weights from a small hub on this machine: whole, broken off, damaged, refused, without room, offline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from longtake.errors import BadWeights, LongtakeError, MissingPart
from longtake.model import hub
from longtake.model.networks import NETWORKS

from ..hub_server import COMMIT, LATER, Hub, serve, toy

CHUNK = 1 << 15  # what huggingface_hub writes at a time here; at most this is lost when it breaks off
WEIGHTS = safetensors.numpy.save({"w": np.random.default_rng(0).normal(size=(500, 400)).astype(np.float32)})
FILES = {"net/model.safetensors": WEIGHTS, "config.json": b'{"width": 400}'}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that huggingface_hub talks to, with a cache and records of this test alone."""
    from huggingface_hub import constants

    with serve(Hub(files=FILES | {"other.safetensors": b"not asked for", "README.md": b"nor this"})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
        yield server


def network(server, **changes):
    """The toy of the two files, also by name."""
    made = toy(Hub(files=FILES, repo=server.repo), **changes)
    NETWORKS["toy"] = made
    return made


@pytest.fixture(autouse=True)
def no_toy_stays():
    yield
    NETWORKS.pop("toy", None)


def contents(located: dict[str, Path]) -> dict[str, bytes]:
    return {path: location.read_bytes() for path, location in located.items()}


# ---- all goes well --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_record", [True, False])
def test_fetches_the_listed_files_and_no_other(server, on_record):
    net = network(server, on_record=on_record)
    job = hub.ask(net)
    assert job.missing_bytes == sum(map(len, FILES.values())) and not server.gets()
    known = hub.download(job)
    assert contents(hub.locate("toy")) == FILES
    assert (known.revision, known.source) == (COMMIT, "hub") and hub.record(net) == known
    asked = {request.path.rpartition("/resolve/")[2] for request in server.seen if "/resolve/" in request.path}
    assert asked == {f"{COMMIT}/{name}" for name in FILES}
    assert {request.path for request in server.gets()} == {"/cdn/net/model.safetensors"}
    assert {name: server.sent(name) for name in FILES} == {name: len(data) for name, data in FILES.items()}
    assert hub.verify(net) == []


def test_what_was_fetched_is_found_by_huggingface_hub(server):
    from huggingface_hub import hf_hub_download, scan_cache_dir

    hub.download(hub.ask(network(server)))
    before = len(server.seen)
    path = hf_hub_download(server.repo, "net/model.safetensors", revision=COMMIT)
    assert Path(path).read_bytes() == WEIGHTS and len(server.seen) == before
    assert not scan_cache_dir().warnings
    assert not list(Path(path).parents[3].rglob("*part"))


def test_what_huggingface_hub_fetched_is_checked_and_not_fetched_again(server):
    from huggingface_hub import hf_hub_download

    net = network(server)
    for name in FILES:
        hf_hub_download(server.repo, name, revision=COMMIT)
    sent = [server.sent(name) for name in FILES]
    with pytest.raises(MissingPart, match="longtake weights fetch toy"):
        hub.locate("toy")
    job = hub.ask(net)
    assert job.missing_bytes == 0
    hub.download(job)
    assert contents(hub.locate("toy")) == FILES and [server.sent(name) for name in FILES] == sent


def test_a_branch_is_resolved_to_its_commit(server):
    server.commits = (COMMIT, LATER)
    net = network(server)
    known = hub.download(hub.ask(net, "main"))
    assert known.revision == LATER
    branch = [request.path for request in server.seen if "/main/" in request.path]
    assert len(branch) == 1, "only the first question names the branch: it may move on"
    assert hub.provenance("toy")["revision"] == LATER


def test_provenance_names_all_that_a_manifest_needs(server):
    net = network(server, must_accept=True)
    hub.download(hub.ask(net))
    with pytest.raises(MissingPart, match="--accept-licence"):
        hub.provenance("toy")
    accepted = hub.accept(net)
    facts = hub.provenance("toy")
    assert facts["repo"] == server.repo and facts["revision"] == COMMIT and facts["licence"] == "Toy-1.0"
    assert facts["licence_accepted_at"] == accepted.accepted_at
    lines = "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES))
    assert facts["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


# ---- it breaks off --------------------------------------------------------------------------------------------------


def test_goes_on_after_the_connection_broke(server):
    cuts = [200_000, 300_001]
    server.cut_after = list(cuts)
    hub.download(hub.ask(network(server)))
    assert contents(hub.locate("toy")) == FILES
    first, *again = [request.range for request in server.gets()]
    begins = [int(text.removeprefix("bytes=").rstrip("-")) for text in again]
    assert first is None and len(begins) == 2
    done = 0
    for cut, begin in zip(cuts, begins, strict=True):
        done += cut // CHUNK * CHUNK  # the whole chunks that came are kept
        assert begin == done
    assert server.sent("model.safetensors") < len(WEIGHTS) + len(cuts) * CHUNK


def test_a_later_call_goes_on_where_one_gave_up(server):
    net = network(server)
    server.cut_after = [400_000] + [0] * 6  # and then nothing, until huggingface_hub gives up
    with pytest.raises(MissingPart, match="the same command goes on there") as caught:
        hub.download(hub.ask(net))
    assert server.url in str(caught.value)
    kept = 400_000 // CHUNK * CHUNK
    job = hub.ask(net)
    assert job.missing_bytes == sum(map(len, FILES.values())) - kept
    assert hub.part_bytes(net, net.files[0]) == kept
    hub.download(job)
    assert server.gets()[-1].range == f"bytes={kept}-"
    assert contents(hub.locate("toy")) == FILES
    assert server.sent("model.safetensors") == 400_000 + len(WEIGHTS) - kept


def test_a_server_without_ranges_sends_all_anew(server):
    server.cut_after, server.ranges = [200_000], False
    hub.download(hub.ask(network(server)))
    assert contents(hub.locate("toy")) == FILES


def test_two_at_once_fetch_each_byte_once(server):
    net = network(server)
    jobs = [hub.ask(net), hub.ask(net)]
    threads = [threading.Thread(target=hub.download, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(hub.locate("toy")) == FILES and server.sent("model.safetensors") == len(WEIGHTS)


# ---- wrong bytes ----------------------------------------------------------------------------------------------------


def test_a_file_without_its_hash_is_not_kept(server):
    net = network(server)
    job = hub.ask(net)
    server.files = {**server.files, "net/model.safetensors": WEIGHTS[:-1] + b"x"}
    with pytest.raises(BadWeights, match="SHA-256") as caught:
        hub.download(job)
    assert hashlib.sha256(WEIGHTS).hexdigest() in str(caught.value)
    assert hub.record(net) is None and not hub.here(net) and hub.part_bytes(net, net.files[0]) == 0
    server.files = {**server.files, "net/model.safetensors": WEIGHTS}
    hub.download(hub.ask(net))
    assert contents(hub.locate("toy")) == FILES


def test_hashes_of_the_hub_are_taken_where_none_are_on_record(server):
    net = network(server, on_record=False)
    for name in FILES:
        job = hub.ask(net)
        server.files = {**server.files, name: FILES[name][:-1] + b"x"}
        with pytest.raises(BadWeights, match=r"SHA-256|git's hash"):
            hub.download(job)
        server.files = {**server.files, name: FILES[name]}


def test_another_file_than_on_record_is_refused_before_it_is_fetched(server):
    net = network(server)
    server.files = {**server.files, "net/model.safetensors": WEIGHTS + b"more"}
    with pytest.raises(BadWeights, match=f"{len(WEIGHTS) + 4} bytes, on record are {len(WEIGHTS)}"):
        hub.ask(net)
    assert not server.gets()


@pytest.mark.parametrize(
    "claim, words",
    [
        ({"X-Linked-Etag": '"../../../evil"'}, "does not state commit, size and hash"),
        ({"X-Linked-Etag": '"..aaaaaaaaaaaaaaaa"'}, "does not state commit, size and hash"),
        ({"X-Linked-Size": ""}, "does not state commit, size and hash"),
        ({"X-Repo-Commit": LATER}, f"got {LATER}"),
    ],
)
def test_a_server_that_is_no_hub_is_told_so(server, claim, words):
    server.claims = {"net/model.safetensors": claim}
    with pytest.raises(BadWeights, match=words):
        hub.ask(network(server, on_record=False))


def test_damage_is_found_and_mended(server):
    net = network(server)
    hub.download(hub.ask(net))
    location = hub.locate("toy")["net/model.safetensors"]
    location.resolve().write_bytes(WEIGHTS[:-1] + b"x")
    assert hub.record(net) is not None, "the size alone does not tell"
    (problem,) = hub.verify(net)
    assert "SHA-256" in problem and str(location) in problem
    with pytest.raises(MissingPart):
        hub.locate("toy")
    hub.download(hub.ask(net))
    assert hub.verify(net) == [] and contents(hub.locate("toy")) == FILES
    location.resolve().unlink()
    assert hub.record(net) is None and "is not here" in hub.verify(net)[0]


def test_verify_compares_tensors(server):
    net = network(server)
    hub.download(hub.ask(net))
    assert hub.verify(net, {"net/model.safetensors": {"w": (500, 400)}}) == []
    (problem,) = hub.verify(net, {"net/model.safetensors": {"w": (500, 401)}})
    assert "w has shape (500, 400), not (500, 401)" in problem


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"gated": True}, MissingPart, "is gated: ask for access"),
        ({"token": "hf_right"}, MissingPart, "set HF_TOKEN"),
        ({"repo": "someone/else"}, BadWeights, r"is not there \(404\)"),
        ({"commits": (LATER,)}, BadWeights, "has no such revision. Another one: --revision"),
        ({"files": {"net/model.safetensors": WEIGHTS}}, BadWeights, "has no file config.json"),
        ({"answer": 503}, MissingPart, "answers 503"),
    ],
)
def test_refusals_are_told_in_words(server, monkeypatch, change, kind, words):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    net = network(server)
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(kind, match=words) as caught:
        hub.ask(net)
    assert "secret" not in str(caught.value) and not server.gets()


def test_the_token_goes_to_the_hub_alone(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    server.token = "hf_right"
    hub.download(hub.ask(network(server)))
    assert contents(hub.locate("toy")) == FILES
    for request in server.seen:
        assert request.authorized == (request.host == "127.0.0.1"), request


def test_an_unknown_name_is_answered_with_the_nearest(server):
    network(server)
    with pytest.raises(LongtakeError, match="Did you mean toy"):
        hub.locate("toyy")


# ---- no room, no network --------------------------------------------------------------------------------------------


def test_room_is_asked_before_the_first_byte(server):
    server.claims = {"net/model.safetensors": {"X-Linked-Size": str(10**18)}}
    job = hub.ask(network(server, on_record=False))
    with pytest.raises(MissingPart, match="set HF_HUB_CACHE to a folder on a larger disk"):
        hub.check_room(job.missing_bytes)
    hub.check_room(0)
    assert not server.gets()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True).returncode:
        pytest.skip("file systems can be mounted by root alone")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_on_the_way(server, small_disk, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk))
    net = network(server)
    with pytest.raises(OSError, match="No space left on device"):
        hub.download(hub.ask(net))
    assert hub.record(net) is None and not hub.here(net)
    kept = hub.part_bytes(net, net.files[0])
    assert 0 < kept <= 256 * 1024
    assert next(small_disk.rglob("*part")).read_bytes() == WEIGHTS[:kept]


def test_offline(server, monkeypatch):
    from huggingface_hub import constants, hf_hub_download

    net = network(server)
    for name in FILES:
        hf_hub_download(server.repo, name, revision=COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(server.seen)
    with pytest.raises(MissingPart, match=r"HF_HUB_OFFLINE forbids .*--from DIR"):
        hub.ask(net)
    assert hub.adopt_cached(net) is not None and contents(hub.locate("toy")) == FILES
    assert len(server.seen) == before


def test_offline_without_the_files(server, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.adopt_cached(network(server)) is None and not server.seen


def test_no_network(server, monkeypatch):
    from huggingface_hub import constants

    dead = "http://127.0.0.1:9"  # the discard port: nobody listens
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(MissingPart, match=r"127.0.0.1:9 cannot be reached .*HF_ENDPOINT"):
        hub.ask(network(server))


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "toy", "someone/toy"])
def test_files_of_a_folder_stay_there(server, tmp_path, below):
    net = network(server)
    put(tmp_path / "mine" / below, FILES)
    known = hub.adopt_folder(net, tmp_path / "mine")
    assert (known.source, known.revision) == ("folder", COMMIT), "all hashes are on record: it is that commit"
    assert all(path.is_relative_to(tmp_path / "mine") for path in hub.locate("toy").values())
    assert contents(hub.locate("toy")) == FILES and not server.seen


def test_a_folder_of_unknown_origin_has_no_commit(server, tmp_path):
    net = network(server, on_record=False)
    put(tmp_path / "mine", FILES)
    hub.adopt_folder(net, tmp_path / "mine")
    assert hub.provenance("toy")["revision"] is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"config.json": None}, "has no config.json"),
        ({"config.json": b'{"width": 401}'}, "SHA-256"),
        ({"net/model.safetensors": WEIGHTS[:-1]}, "bytes, not"),
    ],
)
def test_a_folder_with_wrong_files(server, tmp_path, change, words):
    net = network(server)
    put(tmp_path / "mine", FILES | change)
    with pytest.raises(BadWeights, match=words):
        hub.adopt_folder(net, tmp_path / "mine")
    assert hub.record(net) is None


def test_a_folder_whose_hashes_nobody_knows_must_hold_sound_files(server, tmp_path):
    net = network(server, on_record=False)
    put(tmp_path / "mine", FILES | {"net/model.safetensors": WEIGHTS[:-1]})
    with pytest.raises(BadWeights, match="broken safetensors header"):
        hub.adopt_folder(net, tmp_path / "mine")


def put(folder: Path, files: Mapping[str, bytes | None]) -> None:
    for name, data in files.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


# ---- licences and records -------------------------------------------------------------------------------------------


def test_a_licence_is_accepted_once_and_anew_when_it_changes(server):
    net = network(server, must_accept=True)
    with pytest.raises(MissingPart, match=r"toy is under Toy-1.0: for toys only .*--accept-licence"):
        hub.check_licence(net)
    first = hub.accept(net)
    assert (first.licence, first.revision) == ("Toy-1.0", COMMIT) and first.accepted_at and first.software_version
    hub.check_licence(net)
    assert hub.accept(net) == first
    changed = dataclasses.replace(net, licence=dataclasses.replace(net.licence, name="Toy-2.0"))
    with pytest.raises(MissingPart, match=r"Toy-2\.0"):
        hub.check_licence(changed)


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"format": "longtake-weights/999"})])
def test_a_record_that_cannot_be_read_is_none(server, text):
    net = network(server, must_accept=True)
    hub.accept(net)
    hub.download(hub.ask(net))
    for kind in ("weights", "licences"):
        (hub.home() / kind / "toy.json").write_text(text)
    assert hub.record(net) is None and hub.acceptance(net) is None


def test_memory_is_compared_with_what_the_machine_has(server):
    net = network(server)
    hub.check_memory(net)
    with pytest.raises(MissingPart, match=r"takes about 1e\+06 GB of memory.*--for-another-machine"):
        hub.check_memory(dataclasses.replace(net, memory_bytes=10**15))
