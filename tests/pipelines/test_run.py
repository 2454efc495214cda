"""What a run tells of itself, when it stops, and a stage of it made again."""

from __future__ import annotations

import io
import json

import pytest
import toy_pipeline as toy
import toy_stages

from longtake.datasets.manifest import open_manifest
from longtake.pipelines import display, ledger, stages
from longtake.pipelines import replay as again
from longtake.pipelines.config import UsageError
from longtake.pipelines.display import Lines, stage_table
from longtake.pipelines.progress import Stages, State
from longtake.pipelines.stages import Artifacts, Outcome


@pytest.fixture
def plan(tmp_path) -> toy.Plan:
    return toy.Plan(out=tmp_path / "out", log=tmp_path / "log", sources=5)


def carry_out(plan: toy.Plan) -> dict:
    """In this process; what run.json says."""
    with pytest.raises(SystemExit) as end:
        toy.drive(plan)
    records = [json.loads(path.read_text()) for path in (plan.out / "runs").glob("*/run.json")]
    return {"code": end.value.code} | max(records, key=lambda record: record["started_at"])


def test_a_run_keeps_what_its_stages_took(plan):
    about = carry_out(plan)
    assert about["code"] == 0 and about["state"] == "finished"
    assert list(about["stages"]) == ["look", "find", "trace", "judge"]
    found = about["stages"]
    assert found["look"]["done"] + found["look"]["refused"] == plan.sources
    assert found["trace"]["done"] == found["judge"]["done"] == about["ok"]
    assert found["trace"]["refused"] + found["look"]["refused"] == about["failed"] > 0
    assert all(counts["queued"] == counts["failed"] == counts["resumed"] == 0 for counts in found.values())
    assert all(0 < counts["longest_s"] <= counts["seconds"] for counts in found.values())


def test_a_run_that_mostly_fails_is_stopped(plan, monkeypatch, capsys):
    monkeypatch.setattr(ledger, "MIN_CLIPS_JUDGED", 3)
    stopped = carry_out(toy.replace(plan, max_failed_ratio=0.0))
    assert stopped["code"] == 1 and stopped["state"] == "stopped" and stopped["failed"] > 0
    assert "more than a share of 0" in capsys.readouterr().err
    assert stopped["ok"] + stopped["failed"] >= 3 and stopped["left"] + stopped["inputs_left"] > 0
    assert carry_out(toy.replace(plan, max_failed_ratio=0.9))["code"] == 0


def test_another_runs_rows_stay(plan, monkeypatch):
    """A row that another run has committed meanwhile is left as it is."""
    before = ledger.Ledger.commit

    def commit(self: ledger.Ledger) -> None:
        monkeypatch.setattr(ledger.Ledger, "commit", before)
        carry_out(plan)  # the other run, from beginning to end
        rows.update({row["clip_id"]: row["run_id"] for row in self.manifest.rows(["clip_id", "run_id"])})
        before(self)

    rows: dict[str, str] = {}
    monkeypatch.setattr(ledger.Ledger, "commit", commit)
    carry_out(plan)
    now = open_manifest(plan.out).rows(["clip_id", "run_id"])
    assert rows and {row["clip_id"]: row["run_id"] for row in now} == rows


def state(**changes) -> State:
    found = Stages()
    count = toy_stages.count_job(3, toy.Path("calls"))
    chain = stages.Graph(chains=((toy_stages.COUNT, toy_stages.SUM),)).link(count, toy_stages.sum_job(count))
    for _ in range(3):
        found.queue(chain)
    found.end(Outcome(job=chain, status="ok", seconds=4.0))
    found.end(Outcome(job=chain, status="rejected", reason="x", seconds=2.0))
    values = {"clips": 1, "known": 3, "failed": 1, "inputs_left": 2, "clips_per_minute": 30.0, "seconds_left": 3725.0}
    return State(seconds=10.0, stages=found, **(values | changes))


def test_progress_is_lines_of_json_where_nobody_looks(capsys, monkeypatch):
    lines = Lines()
    lines.clip("a\n\udcff.mp4", "failed", "fisheye: a circle")
    lines.note("something")
    lines.tick([], state())  # not due yet
    monkeypatch.setattr(display, "PROGRESS_EVERY_S", 0.0)
    lines.due = 0.0
    lines.tick([], state(clips_per_minute=None, seconds_left=None))
    lines.close()
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in said] == ["clip", "note", "progress", "progress"]
    assert said[0] == {"event": "clip", "clip": "a\n\udcff.mp4", "status": "failed", "words": "fisheye: a circle"}
    assert said[2]["clips_per_minute"] is None and said[2]["clips"] == 1
    assert said[2]["stages"]["count"] | {"seconds": 0} == {
        "queued": 1, "done": 1, "refused": 1, "failed": 0, "resumed": 0, "seconds": 0, "longest_s": 4.0
    }  # fmt: skip
    assert said[2]["stages"]["sum"]["queued"] == 2, "what follows a refusal does not come"


def test_the_table_of_stages():
    from rich.console import Console

    shown = io.StringIO()
    console = Console(file=shown, width=100)
    console.print(stage_table(state()))
    head, count, total, *words = [line.split() for line in shown.getvalue().splitlines()]
    assert head == "stage done refused failed queued s a job".split()
    assert count == "count 1 1 0 1 3.0".split() and total == "sum 0 0 0 2 -".split()
    assert " ".join(words[0]) == "1 of 3 clips + 2 inputs (1 failed), 30.0 a minute, time left 1:02:05"


def test_a_terminal_shows_the_table(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    live = display.make_display(quiet=False)
    assert isinstance(live, display.Live)
    live.clip("a[bold].mp4", "ok", "")
    live.tick([("a.mp4: track", 3, 10)], state())
    live.live.refresh()
    live.note("a note")
    live.tick([], state())
    live.close()
    assert all(words in shown.getvalue() for words in ("a[bold].mp4: ", "a note", "time left", "a.mp4: track"))


# ---- one stage again ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(plan, monkeypatch) -> Artifacts:
    carry_out(plan)
    monkeypatch.setattr(again, "PACKAGE", "toy_pipeline")  # else only longtake's own functions are called
    return Artifacts(plan.out / "artifacts")


def test_a_stage_is_run_again_on_what_was_saved(plan, store, tmp_path):
    before = sorted(store.keys())
    for stage in ("look", "find", "trace", "judge"):
        key = next(key for key in before if store.about(key)["stage"] == stage)
        clip = store.about(key)["clip"]
        assert again.find_call(store, stage, clip) == key == again.find_key(store, key[:20])
        calls = len(plan.log.read_text().splitlines())
        found = again.replay(store, key, tmp_path / "replay")
        assert len(plan.log.read_text().splitlines()) == calls + 1
        assert (found.stage, found.clip, found.same) == (stage, clip, True)
        assert found.recorded == found.outcome.status
        assert json.dumps(found.facts())
    assert sorted(store.keys()) == before and not list((plan.out / "artifacts").rglob(".tmp-*"))


def test_a_change_is_seen(plan, store, tmp_path, monkeypatch):
    key = next(key for key in store.keys() if store.about(key)["stage"] == "judge")
    monkeypatch.setattr(toy, "_seed", lambda *names: 7)
    found = again.replay(store, key, tmp_path / "replay")
    assert found.outcome.status == "ok" and found.same is False

    def stumble(*_: object, **__: object) -> None:
        raise ZeroDivisionError("0/0")

    monkeypatch.setattr(toy, "judge", stumble)
    found = again.replay(store, key, tmp_path / "replay")
    assert (found.outcome.status, found.same, found.result) == ("failed", None, None)
    assert "ZeroDivisionError" in found.facts()["trace"]


def test_what_cannot_be_run_again_is_told(plan, store, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no stage 'nose'"):
        again.find_call(store, "nose", "")
    with pytest.raises(UsageError, match="results of look"):
        again.find_call(store, "look", "source")
    with pytest.raises(UsageError, match="holds no results"):
        again.find_call(Artifacts(tmp_path / "none"), "look", "")
    with pytest.raises(UsageError, match="0 results"):
        again.find_key(store, "zz")
    key = next(key for key in store.keys() if store.about(key)["stage"] == "find")
    for input_key in [key for key in store.keys() if store.about(key)["stage"] == "look"]:
        store.drop(input_key)
    with pytest.raises(UsageError, match="is no longer in"):
        again.replay(store, key, tmp_path / "replay")
    monkeypatch.setattr(again, "PACKAGE", "longtake")
    with pytest.raises(UsageError, match="does not tell which call"):
        again.replay(store, key, tmp_path / "replay")
