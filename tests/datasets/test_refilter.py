"""Judging a manifest again: profiles from files, scores of other tools, drop rates and their overlap."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtake.datasets import filters
from longtake.datasets.filters import PROFILES, load_profile, rules
from longtake.datasets.manifest import create_manifest
from longtake.datasets.refilter import read_scores, refilter
from longtake.errors import LongtakeError

MINE = """
about = "mine"
[[rules]]
metric = "tracked_ratio"
low = 0.95
[[rules]]
metric = "fov_x_max_deg"
high = 60
reason = "too_wide"
[[rules]]
metric = "dover"
low = 0.5
needs = "DOVER"
"""


@pytest.fixture
def manifest(tmp_path, make_row):
    """Four clips, all 65 degrees wide: one that zooms, one with gaps (0.9 tracked), a plain and a failed one."""
    out = create_manifest(tmp_path / "run")
    rows = [make_row("a.mp4", zoom=True), make_row("b.mp4", unposed=(3, 7)), make_row("c.mp4")]
    out.append([*rows, make_row("d.mp4", failed=True)])
    return out


@pytest.fixture
def ids(manifest):
    return {row["source_uri"][-5]: row["clip_id"] for row in manifest.rows(["source_uri", "clip_id"])}


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return str(path)


def test_drop_rates_and_overlap(manifest, mine):
    found = refilter(manifest, mine, dry_run=True)
    rates = found.rates
    assert rates is not None and (rates.judged, rates.dropped, rates.failed) == (3, 3, 1)
    by = {rule.metric: rule for rule in rates.rules}
    assert (by["tracked_ratio"].dropped, by["tracked_ratio"].dropped_alone) == (1, 0)
    assert (by["fov_x_max_deg"].dropped, by["fov_x_max_deg"].dropped_alone) == (3, 2)
    assert (by["dover"].judged, by["dover"].not_measured, by["dover"].dropped) == (0, 3, 0)
    assert rates.overlap == (("tracked_ratio", "fov_x_max_deg", 1),)
    assert (found.rows, found.changed) == (4, 3)
    assert {row["status"] for row in manifest.rows()} == {"ok", "failed"}  # a dry run writes nothing


def test_verdicts_are_written_and_taken_back(manifest, mine, ids):
    refilter(manifest, mine)
    row = manifest.row(ids["b"])
    assert row["status"] == "filtered" and row["filter_reasons"] == ["tracked_ratio_low", "too_wide"]
    assert row["filter_profile"] == "mine" and row["filter_not_measured"] == ["dover"]
    assert json.loads(row["filter_values"])["tracked_ratio"]["passed"] is False
    assert manifest.row(ids["d"])["status"] == "failed"
    number = manifest.snapshot().number
    assert refilter(manifest, mine).changed == 0 and manifest.snapshot().number == number  # nothing new, no commit
    assert refilter(manifest, None).changed == 3
    assert [manifest.row(ids[n])["status"] for n in "abcd"] == ["ok", "ok", "ok", "failed"]
    assert manifest.validate() == [] or all("does not exist" in p for p in manifest.validate())  # videos are made up


def test_scores_join_by_id(manifest, tmp_path, ids, mine):
    pq.write_table(pa.table({"clip_id": [ids["a"], "other"], "dover_score": [0.2, 0.9]}), tmp_path / "s.parquet")
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": ids["b"], "dover": 0.8, "caption": "a room"}) + "\n")
    (tmp_path / "clips_entity_count.json").write_text(json.dumps({ids["c"]: 4}))
    names = ("s.parquet", "t.jsonl", "clips_entity_count.json")
    scores = read_scores([tmp_path / name for name in names])
    found = refilter(manifest, mine, scores=scores)
    assert (found.scored, found.scores_without_clip) == (3, 1)
    assert manifest.row(ids["a"])["filter_reasons"] == ["too_wide", "dover_low"]
    assert manifest.row(ids["a"])["dover"] == pytest.approx(0.2)
    assert manifest.row(ids["b"])["caption"] == "a room" and manifest.row(ids["c"])["num_entities"] == 4
    assert found.rates is not None and {r.metric: r.not_measured for r in found.rates.rules}["dover"] == 1


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"id": "a", "dovr": 1}', "a score dovr has no column"),
        ('{"id": "a", "c2w": [1]}', "a score c2w has no column"),
        ('{"dover": 1}', "has no clip id"),
        ('{"id": "a", "dover": "high"}', "dover is high, no number"),
        ('{"id": "a", "dover": NaN}', "dover is nan, no number"),
        ('{"id": "a", "dover": 1}\n{"id": "a", "dover": 2}', "is given twice"),
        ("[" * 100_000, "nested too deeply"),
        ("no json", "line 1 cannot be read"),
    ],
)
def test_scores_that_are_none(tmp_path, text, words):
    (tmp_path / "s.jsonl").write_text(text + "\n")
    with pytest.raises(LongtakeError, match=words):
        read_scores([tmp_path / "s.jsonl"])


@pytest.mark.parametrize(
    "text, words",
    [
        ("rules = 3", "is no list of rules"),
        ("[[rules]]\nlow = 3", "rule 1 has no metric"),
        ('[[rules]]\nmetric = "luma"\nmin = 3', "rule 1 has an unknown min"),
        ('[[rules]]\nmetric = "luma"\nlow = "dark"', "low = 'dark', no number"),
        ('[[rules]]\nmetric = "luma"\nlow = 3\nhigh = 2', "low = 3 above high = 2"),
        ("rule = []", "unknown rule"),
        ("[", "cannot be read as TOML"),
        ("[sources]\na = 3", "sources are tables"),
    ],
)
def test_profiles_that_are_none(tmp_path, text, words):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(LongtakeError, match=words):
        load_profile(tmp_path / "p.toml")


def test_profiles_ship_as_files():
    shipped = load_profile(Path(filters.__file__).with_name("profiles") / "robust.toml")
    assert PROFILES == ("robust", "sana_wm") and rules("robust") == shipped.rules
    with pytest.raises(LongtakeError, match=r"no filter profile 'bust'.*robust, sana_wm.*\.toml"):
        rules("bust")
