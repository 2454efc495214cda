"""What a person meets: help, wrong usage, missing things, exit codes; never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


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
