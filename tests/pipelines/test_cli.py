"""What a person meets: help, wrong usage, missing things, exit codes; never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from longtake.annotate.video import encode_rgb
from longtake.datasets.manifest import open_manifest


def longtake(*words: object, cwd: Path | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "longtake", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=300, env={**os.environ, "COLUMNS": "200"}
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words, answer",
    [
        (["annotat", "x"], 'Did you mean "annotate"?'),
        (["annotate", "x", "--outt", "m"], "Did you mean --out?"),
        (["annotate", "x", "--out", "m", "--executor", "rya"], 'Did you mean "ray"?'),
        (["annotate", "--out", "m"], "INPUT"),
        (["annotate", "nowhere.mp4", "--out", "m"], "nowhere.mp4: no such file"),
        (["manifest", "exprot", "m"], 'Did you mean "export"?'),
        (["manifest", "export", "m", "--to", "npzz", "--out", "d"], 'Did you mean "npz"?'),
        (["manifest", "show", "nowhere"], "There is no manifest at nowhere"),
        (["score", "a.npz", "b.npz"], "There is no file"),
        (["report", "nowhere"], "There is no manifest at nowhere"),
    ],
)
def test_wrong_usage_is_answered(tmp_path, words, answer):
    code, out, err = longtake(*words, cwd=tmp_path)
    assert (code, out) == (2, "") and answer in " ".join(err.split())
    assert not list(tmp_path.iterdir()), "nothing is made by a command that was not understood"


def test_bad_file_is_told_in_words(tmp_path):
    (tmp_path / "text.mp4").write_text("this is no video")
    code, out, err = longtake("probe", tmp_path / "text.mp4")
    assert (code, out) == (1, "") and err.startswith("longtake: ") and "text.mp4" in err


def test_score_prints_json(tmp_path):
    c2w = np.tile(np.eye(4), (5, 1, 1))
    c2w[:, 0, 3] = np.arange(5) ** 2
    np.savez(
        tmp_path / "a.npz", c2w=c2w, K=np.tile(np.diag([500.0, 500.0, 1.0]), (5, 1, 1)), pose_valid=np.ones(5, bool)
    )
    code, out, _ = longtake("score", tmp_path / "a.npz", tmp_path / "a.npz", "--json")
    assert code == 0 and json.loads(out)["coverage_pct"] == 100
    code, out, _ = longtake("score", tmp_path / "a.npz", tmp_path / "a.npz")
    assert code == 0 and "coverage_pct" in out


def test_doctor_lists_what_is_there():
    code, out, _ = longtake("doctor", "--json")
    findings = {f["name"]: f for f in json.loads(out)}
    assert findings["torch"]["state"] == "ok" and findings["XFeat weights"]["state"] == "ok"
    assert code == (3 if any(f["state"] == "missing" for f in findings.values()) else 0)


# ---- runs that are cut off ---------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path):
    """Four short videos of a window that moves over a random texture."""
    for seed in range(4):
        texture = np.random.default_rng(seed).integers(0, 256, (30, 80, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        (tmp_path / "in").mkdir(exist_ok=True)
        encode_rgb(tmp_path / "in" / f"{seed}.mp4", [texture[:, 4 * i : 4 * i + 160] for i in range(12)], 10)
    return tmp_path / "in"


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_same_command_goes_on(videos, tmp_path, number, code):
    command = ["annotate", str(videos), "--out", str(tmp_path / "out"), "--no-report"]
    with subprocess.Popen([sys.executable, "-m", "longtake", *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        first = next(event for event in events if event["event"] == "clip")
        assert first["clip"] == "0.mp4"  # it is done, others run
        workers = children(process.pid)
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == code and "Traceback" not in rest
    assert workers and not [pid for pid in workers if is_running(pid)], "workers leave with their driver"
    if number == signal.SIGINT:
        assert "The same command goes on from here" in rest
        assert 1 <= len(open_manifest(tmp_path / "out")) < 4
    before = {path.parent.name for path in (tmp_path / "out" / "artifacts").rglob("result.json")}
    assert before

    again = longtake(*command, "--json", "--quiet")
    run = json.loads(again[1])
    assert run["clips"] == 4 == run["ok"] + run["filtered"] + run["failed"] and run["inputs_left"] == 0
    assert len(open_manifest(tmp_path / "out")) == 4 and open_manifest(tmp_path / "out").validate() == []


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether the process lives, a moment after its parent has gone."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.05)
    return True
