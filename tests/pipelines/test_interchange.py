"""`longtake manifest import, filter, stats, card, export` as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from longtake.annotate.video import encode_rgb
from longtake.datasets.importers import ImportConfig
from longtake.datasets.manifest import open_manifest
from longtake.datasets.readers import read_clip
from longtake.errors import LongtakeError
from longtake.pipelines import cli
from longtake.pipelines.interchange import import_collection

COUNT = 12


@pytest.fixture
def collection(tmp_path) -> Path:
    """A film and its cameras, as SANA-WM's inference takes them, and a second one whose poses are mirrored."""
    films = tmp_path / "films"
    films.mkdir()
    rng = np.random.default_rng(0)
    encode_rgb(films / "a.mp4", (rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(COUNT)), 24)
    c2w = np.tile(np.eye(4), (COUNT, 1, 1))
    c2w[:, 2, 3] = np.linspace(0, 1.1, COUNT)
    folder = tmp_path / "collection"
    folder.mkdir()
    np.save(folder / "a_c2w.npy", c2w)
    np.save(folder / "b_c2w.npy", c2w @ np.diag([1.0, 1, -1, 1]))
    for name in "ab":
        np.save(folder / f"{name}_intrinsics.npy", np.array([50.0, 50, 31.5, 23.5]))
    return folder


def run(*words: object) -> int:
    return int(cli.app([str(w) for w in words]) or 0)


def test_from_another_tool_to_a_card(collection, tmp_path, capsys):
    out = tmp_path / "out"
    stated = ["--pose", "c2w", "--convention", "opencv", "--scale", "metric", "--license", "CC0-1.0", "--media", "copy"]
    code = run("manifest", "import", collection, "--out", out, "--format", "npy", *stated,
               "--media-folder", tmp_path / "films", "--json")  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 1 and (found["clips"], found["ok"], found["failed"], found["frames"]) == (2, 1, 1, COUNT)
    assert found["reasons"] == {"mirrored": 1} and "odd number of axes" in found["first_errors"]["mirrored"]
    manifest = open_manifest(out)
    assert manifest.validate() == []
    (row,) = (row for row in manifest.rows() if row["status"] == "ok")
    assert row["uri"] == f"clips/{row['clip_id']}.mp4" and (out / row["uri"]).is_file()
    assert (row["width"], row["height"], row["fps_num"], row["num_frames"]) == (64, 48, 24, COUNT)
    assert row["trans_total_m"] == pytest.approx(1.1, rel=1e-5) and row["max_speed_m_s"] == pytest.approx(2.4, rel=1e-3)
    assert read_clip(row).pose_valid.all()

    profile = tmp_path / "slow.toml"
    profile.write_text('[[rules]]\nmetric = "max_speed_m_s"\nhigh = 2\nreason = "too_fast"\n')
    assert run("manifest", "filter", out, "--profile", profile) == 0
    printed = capsys.readouterr().out
    assert "slow: 1 of 1 clips dropped (100.0 %)" in printed and "max_speed_m_s" in printed
    assert manifest.row(row["clip_id"])["filter_reasons"] == ["too_fast"]

    assert run("manifest", "stats", out, "--pictures", tmp_path / "pictures", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["license"] == {"CC0-1.0": 2} and facts["filter_reasons"] == {"too_fast": 1, "mirrored": 1}
    assert len(facts["pictures"]) == len(list((tmp_path / "pictures").glob("*.svg"))) == 6

    assert run("manifest", "card", out) == 0
    assert "| CC0\\-1.0 | 2 |" in (out / "README.md").read_text()

    assert run("manifest", "export", out, "--to", "webdataset", "--out", tmp_path / "tar", "--media", "copy") == 0
    assert (tmp_path / "tar" / "clips-000000.tar").stat().st_size > (out / row["uri"]).stat().st_size


def test_what_the_format_does_not_say_is_asked_for(collection, tmp_path):
    with pytest.raises(LongtakeError, match="pass --pose, one of c2w, w2c"):
        run("manifest", "import", collection, "--out", tmp_path / "out", "--format", "npy", "--license", "unknown")
    assert not (tmp_path / "out").exists()


def test_poses_for_another_film(collection, tmp_path):
    np.save(collection / "a_c2w.npy", np.load(collection / "a_c2w.npy")[:5])
    config = ImportConfig(
        format="npy",
        license=None,
        direction="c2w",
        convention="opencv",
        scale="metric",
        media="keep",
        media_folder=tmp_path / "films",
    )
    found = import_collection(collection, tmp_path / "out", config)
    assert found.reasons["other_frame_count"] == 1
    assert f"5 poses for the {COUNT} frames" in found.first_errors["other_frame_count"]


def test_manifests_are_merged_and_kept_tidy(collection, tmp_path, capsys):
    stated = ["--pose", "c2w", "--convention", "opencv", "--scale", "metric", "--license", "CC0-1.0", "--media", "copy"]
    first, both = tmp_path / "first", tmp_path / "both"
    run("manifest", "import", collection, "--out", first, "--format", "npy", *stated,
        "--media-folder", tmp_path / "films", "--json")  # fmt: skip
    capsys.readouterr()
    assert run("manifest", "merge", both, first, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"added": 2, "replaced": 0, "left": 0}
    assert run("manifest", "merge", both, first, "--json") == 0, "nothing is newer"
    assert json.loads(capsys.readouterr().out) == {"added": 0, "replaced": 0, "left": 2}
    assert open_manifest(both).ids() == open_manifest(first).ids()
    assert run("manifest", "validate", both, "--hashes") == 0
    capsys.readouterr()
    (both / "_staging" / "part-0.parquet.staged").write_bytes(b"of a killed writer")
    for words, said in (
        (["compact"], "2 clips, 1 parts before, 1 now"),
        (["migrate"], "2 clips, 1 parts before, 1 now"),
        (["gc", "--min-age-s", "0"], "part-0.parquet.staged"),
    ):
        assert run("manifest", words[0], both, *words[1:]) == 0
        assert said in capsys.readouterr().out
    assert not list((both / "_staging").iterdir()) and len(open_manifest(both)) == 2
