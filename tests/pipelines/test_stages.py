"""Artifacts are all or nothing and come back as they were; a job's failures become outcomes."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import toy_stages as toy

from longtake.pipelines import stages
from longtake.pipelines.stages import Artifacts, Graph, Stage, decode, encode, recorded, run_job
from longtake.records import Rejected, Shot


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert isinstance(b, dict) and list(a) == list(b)
        for name in a:
            assert_same(a[name], b[name])
    elif hasattr(a, "__dataclass_fields__"):
        for f in fields(a):  # type: ignore[arg-type]
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, float) and math.isnan(a):
        assert isinstance(b, float) and math.isnan(b)
    else:
        assert a == b


def shot() -> Shot:
    mask = np.eye(3, dtype=bool)
    return Shot(index=1, start=0, stop=9, crop=(0, 2, 8, 6), overlay=mask, boundary="cut")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [shot(), shot()],
        {"a": 1, "b": (1.5, math.nan, -math.inf, True, None, "ü\udcff"), 3: np.zeros((0, 4), np.float32)},
        Rejected(stage="x", reason="y", message="z"),
        [np.array([np.nan, 1.0]), np.array(["text"]), {}],
    ],
)
def test_record_round_trip(tmp_path, value):
    store = Artifacts(tmp_path)
    store.save("ab12", value)
    assert_same(store.load("ab12"), value)


def test_what_cannot_be_plain_is_refused(tmp_path):
    with pytest.raises(TypeError, match="object"):
        encode(object(), {})
    with pytest.raises(TypeError, match="ndarray"):
        encode(np.array([object()]), {})
    with pytest.raises(TypeError, match="no record of longtake"):
        decode({"$record": "subprocess:Popen", "fields": {"args": ["true"]}}, {})
    with pytest.raises(TypeError, match="is no record"):
        decode({"$record": "longtake.pipelines.stages:run_job", "fields": {}}, {})


def test_a_cut_off_save_is_no_result(tmp_path, monkeypatch):
    store = Artifacts(tmp_path)

    def power_cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "_sync", power_cut)
        store.save("ab12", [1, 2])
    assert not store.has("ab12")
    with pytest.raises(KeyError):
        store.load("ab12")
    store.save("ab12", [1, 2])
    assert store.load("ab12") == [1, 2]


def test_second_writer_loses_harmlessly(tmp_path):
    store = Artifacts(tmp_path)
    store.save("ab12", "first")
    store.save("ab12", "second")
    assert store.load("ab12") == "first"
    assert [p.name for p in (tmp_path / "ab").iterdir()] == ["ab12"]


def test_what_a_power_cut_left_is_replaced(tmp_path):
    store = Artifacts(tmp_path)
    store.folder("ab12").mkdir(parents=True)
    (store.folder("ab12") / "arrays.npz").write_bytes(b"half")
    assert not store.has("ab12")
    store.save("ab12", 1)
    assert store.load("ab12") == 1


def test_what_killed_processes_left_is_swept(tmp_path):
    store = Artifacts(tmp_path)
    store.save("ab12", 1)
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = stages.temporary_name("ab12")
    theirs = mine.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    elsewhere = theirs.replace(stages._process_space(), "0" * 12)  # a process of another machine, or container
    for name in (mine, theirs, elsewhere):
        (tmp_path / "ab" / name).mkdir()
        (tmp_path / f"{name}.zip").touch()
    store.sweep()
    assert {p.name for p in (tmp_path / "ab").iterdir()} == {"ab12", mine, elsewhere}
    assert {p.name for p in tmp_path.glob(".tmp-*")} == {f"{mine}.zip", f"{elsewhere}.zip"}


def test_a_call_is_kept_with_its_result(tmp_path):
    inputs = (3, stages.Ref(key="cd34"), tmp_path / "x", (1.5, math.nan), shot(), None)
    store = Artifacts(tmp_path)
    store.save("ab12", [np.arange(3)], {"stage": "x"}, inputs)
    assert_same(store.inputs("ab12"), list(inputs))
    assert_same(store.load("ab12"), [np.arange(3)])
    assert list(store.keys()) == ["ab12"]


def test_jobs_are_linked_as_the_graph_declares():
    graph = Graph(chains=((toy.COUNT,), (toy.SUM, toy.TRIPLE)))
    assert [stage.name for stage in graph.stages] == ["count", "sum", "triple"]
    count = toy.count_job(3, Path("calls"))
    total = toy.sum_job(count)
    triple = toy.triple_job(total)
    assert [job.stage.name for job in graph.link(total, triple).chain()] == ["sum", "triple"]
    assert list(graph.link(triple).chain()) == [triple]
    for wrong in [(count, total), (triple, total)]:
        with pytest.raises(ValueError, match="no chain of the graph has the stages"):
            graph.link(*wrong)


def test_key_follows_all_that_goes_in():
    stage = Stage(name="track", version=1, fn=toy.count)
    keys = {
        stage.key("c", {"a": 1}, ("up",)),
        stage.key("d", {"a": 1}, ("up",)),
        stage.key("c", {"a": 2}, ("up",)),
        stage.key("c", {"a": 1}, ("down",)),
        Stage(name="track", version=2, fn=toy.count).key("c", {"a": 1}, ("up",)),
        Stage(name="shots", version=1, fn=toy.count).key("c", {"a": 1}, ("up",)),
    }
    assert len(keys) == 6 and all(len(key) == 64 for key in keys)


def test_a_done_job_is_not_run_again(tmp_path):
    calls, store = tmp_path / "calls", tmp_path / "store"
    job = toy.count_job(3, calls)
    assert (run_job(job, store).resumed, run_job(job, store).resumed) == (False, True)
    assert calls.read_text() == "3\n"
    about = json.loads((Artifacts(store).folder(job.key) / "result.json").read_text())["about"]
    assert about["stage"] == "count" and about["version"] == 1 and about["fn"] == "toy_stages:count"


@pytest.mark.parametrize(
    "job, status, reason, on_record",
    [
        (toy.job(toy.add_up, {"numbers": []}), "rejected", "nothing_to_add", True),
        (toy.job(toy.refuse), "rejected", "not_a_video", True),
        (toy.job(toy.stumble, "x"), "failed", "internal_error", False),
        (toy.job(toy.eat_memory), "failed", "out_of_memory", False),
    ],
)
def test_failures_become_outcomes(tmp_path, job, status, reason, on_record):
    outcome = run_job(job, tmp_path)
    assert (outcome.status, outcome.reason) == (status, reason) and outcome.message
    assert Artifacts(tmp_path).has(job.key) == on_record


def test_a_surprise_says_where(tmp_path):
    outcome = run_job(toy.job(toy.stumble, "some clip"), tmp_path)
    assert "in some clip" in outcome.message and "toy_stages.py" in outcome.bug and "Traceback" in outcome.trace
    other = run_job(toy.job(toy.stumble, "another", clip="b"), tmp_path)
    assert other.bug == outcome.bug


def test_passing_errors_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RETRY_SECONDS", (0.0, 0.0))
    assert run_job(toy.job(toy.fail_first, str(tmp_path / "m"), errno.EIO), tmp_path / "s").status == "ok"
    lasting = run_job(toy.job(toy.fail_first, str(tmp_path / "n"), errno.EACCES), tmp_path / "s")
    assert (lasting.status, lasting.reason) == ("failed", "io_error")


def test_a_full_disk_stops_the_run(tmp_path):
    outcome = run_job(toy.job(toy.fail_first, str(tmp_path / "m"), errno.ENOSPC), tmp_path)
    assert (outcome.status, outcome.reason) == ("stopped", "disk_full")


def test_refusals_are_forgotten_on_request(tmp_path):
    job, store = toy.job(toy.refuse), Artifacts(tmp_path)
    assert recorded(job, store) is None
    run_job(job, tmp_path)
    again = recorded(job, store)
    assert again is not None and again.reason == "not_a_video" and again.resumed
    assert recorded(job, store, reuse_rejected=False) is None and not store.has(job.key)


def test_shot_fields_are_all_stored():
    arrays: dict = {}
    assert set(encode(shot(), arrays)["fields"]) == set(asdict(shot()))


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_file_moves_in_and_is_found_by_its_path(tmp_path):
    store = Artifacts(tmp_path / "store")
    (tmp_path / "d.zip").write_bytes(b"depth")
    (tmp_path / "Ünusual name").write_bytes(b"other")
    store.save("ab12", {"depth": tmp_path / "d.zip", "rest": [tmp_path / "Ünusual name"]})
    assert not (tmp_path / "d.zip").exists()
    got = store.load("ab12")
    assert got["depth"].is_absolute() and got["depth"].parent == store.folder("ab12")
    assert got["depth"].name == "file0.zip" and got["depth"].read_bytes() == b"depth"
    assert got["rest"][0].read_bytes() == b"other"


def test_of_two_writers_one_file_stays(tmp_path):
    store = Artifacts(tmp_path / "store")
    for text in ("first", "second"):
        (tmp_path / "d.zip").write_text(text)
        store.save("ab12", tmp_path / "d.zip")
    assert store.load("ab12").read_text() == "first"
    assert [p.name for p in (tmp_path / "store" / "ab").iterdir()] == ["ab12"]


@pytest.mark.parametrize(
    "name",
    ["../ab34/result.json", "/etc/passwd", "result.json", "file0.zip/../result.json", "file7", "file0\n", 3, None],
)
def test_an_artifact_names_no_file_but_its_own(tmp_path, name):
    store = Artifacts(tmp_path)
    (tmp_path / "d.zip").touch()
    store.save("ab12", tmp_path / "d.zip")
    store.save("ab34", 1)
    result = store.folder("ab12") / "result.json"
    result.write_text(json.dumps({"about": {}, "value": {"$file": name}}))
    with pytest.raises(TypeError, match="an artifact names"):
        store.load("ab12")


def test_an_artifact_leads_out_by_no_link(tmp_path):
    store = Artifacts(tmp_path)
    (tmp_path / "d.zip").touch()
    store.save("ab12", tmp_path / "d.zip")
    (store.folder("ab12") / "file0.zip").unlink()
    (store.folder("ab12") / "file0.zip").symlink_to("/etc/hostname")
    with pytest.raises(TypeError, match="no plain file"):
        store.load("ab12")
