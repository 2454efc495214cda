"""`longtake manifest import, filter, stats, card, export` as a person calls them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from longtake.annotate.depth_clip import DepthClip, DepthWriter, finish_depth, open_depth
from longtake.annotate.video import encode_rgb
from longtake.datasets.formats import vipe
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


# ---- depth and masks ---------------------------------------------------------------------------------------------

CROP = (8, 0, 48, 48)  # of the 64 x 48 film: what its depth covers, in maps half as large


def depth_of(frame: int) -> np.ndarray:
    depth = np.linspace(1, 30, 24 * 24).reshape(24, 24) * (1 + frame / 10)
    depth[3, 4] = np.nan
    return depth


@pytest.fixture
def posed(collection, tmp_path) -> Path:
    """A manifest of the film, in metres, with depth of every second frame and masks with names."""
    out = tmp_path / "posed"
    stated = {"direction": "c2w", "convention": "opencv", "scale": "metric", "license": None, "media": "copy"}
    found = import_collection(
        collection,
        out,
        ImportConfig(format="npy", media_folder=tmp_path / "films", **stated),  # type: ignore[arg-type]
    )
    assert found.ok == 1
    manifest = open_manifest(out)
    (row,) = (row for row in manifest.rows() if row["status"] == "ok")
    folder = out / "sidecars" / row["clip_id"]
    folder.mkdir(parents=True)
    with DepthWriter(folder / "depth.zip") as writer:
        for frame in range(0, COUNT, 2):
            writer.add(frame, depth_of(frame), np.ones((24, 24)))
    known = {"factor": np.ones(COUNT // 2), "world_from_cam": None, "focal_px": None, "scale": None}
    finish_depth(
        DepthClip(
            path=writer.path,
            frame_index=np.arange(0, COUNT, 2),
            width=24,
            height=24,
            crop=CROP,
            metric=True,
            source="given",
            relative_sigma=0.01,
            **known,  # type: ignore[arg-type]
        )
    )
    with zipfile.ZipFile(folder / "masks.zip", "w") as archive:
        for frame in (0, 5):
            png = cv2.imencode(".png", np.full((48, 64), frame, np.uint8))[1].tobytes()
            archive.writestr(f"{frame:05d}.png", png)
    (folder / "masks.txt").write_text("5: a dog\n")
    uris = {name: f"sidecars/{row['clip_id']}/{name}.zip" for name in ("depth", "masks")}
    manifest.append([row | {"depth_uri": uris["depth"], "depth_encoding": "", "mask_uri": uris["masks"]}])
    assert manifest.validate() == []
    return out


ASKED = ["--format", "vipe", "--scale", "metric", "--license", "unknown", "--json"]


def test_depth_and_masks_go_to_vipe_and_come_back(posed, tmp_path, capsys):
    assert run("manifest", "export", posed, "--to", "vipe", "--out", tmp_path / "vipe", "--media", "copy") == 0
    (name,) = (p.stem for p in (tmp_path / "vipe" / "depth").iterdir())
    maps = dict(vipe.read_depth(tmp_path / "vipe" / "depth" / f"{name}.zip", 0, COUNT))
    assert sorted(maps) == list(range(0, COUNT, 2))
    for frame, depth in maps.items():
        assert depth.shape == (48, 64) and np.isnan(depth[:, :8]).all() and np.isnan(depth[:, 56:]).all()
        every = np.repeat(np.repeat(depth_of(frame), 2, 0), 2, 1)
        np.testing.assert_allclose(depth[:, 8:56], every, rtol=2**-11 + 2e-4)  # half floats, of our codes
    with zipfile.ZipFile(tmp_path / "vipe" / "mask" / f"{name}.zip") as archive:
        assert archive.namelist() == ["00000.png", "00005.png"]
    assert (tmp_path / "vipe" / "mask" / f"{name}.txt").read_text() == "5: a dog\n"
    back = tmp_path / "back"
    capsys.readouterr()
    assert run("manifest", "import", tmp_path / "vipe", "--out", back, *ASKED, "--metres-per-unit", 2) == 0
    manifest = open_manifest(back)
    assert manifest.validate() == []
    (row,) = manifest.rows()
    clip = open_depth(back / row["depth_uri"])
    assert clip.metric and clip.frame_index.tolist() == sorted(maps) and (clip.width, clip.height) == (64, 48)
    for i, frame in enumerate(clip.frame_index.tolist()):
        np.testing.assert_allclose(clip.read(i)[0], 2 * maps[frame], rtol=2e-4)
    sidecars = posed / "sidecars" / name
    for kind in ("zip", "txt"):
        came = (back / row["mask_uri"]).with_suffix(f".{kind}")
        assert came.read_bytes() == (sidecars / f"masks.{kind}").read_bytes()


def test_without_media_neither_is_written_nor_read(posed, tmp_path, capsys):
    assert run("manifest", "export", posed, "--to", "vipe", "--out", tmp_path / "bare") == 0
    assert sorted(p.name for p in (tmp_path / "bare").iterdir()) == ["export.json", "intrinsics", "pose"]
    assert run("manifest", "export", posed, "--to", "vipe", "--out", tmp_path / "vipe", "--media", "link") == 0
    size = ["--media", "none", "--size", "64x48", "--fps", "24"]
    assert run("manifest", "import", tmp_path / "vipe", "--out", tmp_path / "back", *ASKED, *size) == 0
    (row,) = open_manifest(tmp_path / "back").rows()
    assert row["depth_uri"] is None and row["mask_uri"] is None


def test_depth_in_another_unit_than_the_poses_is_left_out(posed, tmp_path):
    manifest = open_manifest(posed)
    (row,) = (row for row in manifest.rows() if row["status"] == "ok")
    manifest.append([row | {"scale_kind": "relative"}])
    assert run("manifest", "export", posed, "--to", "vipe", "--out", tmp_path / "vipe", "--media", "copy") == 0
    assert not (tmp_path / "vipe" / "depth").exists() and (tmp_path / "vipe" / "mask").exists()


@pytest.mark.parametrize(
    "kind, name, data, words",
    [
        ("depth", "00000.exr", b"no picture", "is no OpenEXR picture|cannot be read"),
        ("depth", "00000.bin", b"", "is not named like 00000.exr"),
        ("depth", "../00000.exr", b"", "leads out of the archive"),
        ("mask", "00000.png", b"\x89PNG", "is no gray PNG of 8 bits"),
    ],
)
def test_a_clip_with_damaged_depth_or_masks_fails_with_words(posed, tmp_path, capsys, kind, name, data, words):
    assert run("manifest", "export", posed, "--to", "vipe", "--out", tmp_path / "vipe", "--media", "copy") == 0
    (path,) = (tmp_path / "vipe" / kind).glob("*.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)
    capsys.readouterr()
    assert run("manifest", "import", tmp_path / "vipe", "--out", tmp_path / "back", *ASKED) == 1
    (error,) = json.loads(capsys.readouterr().out)["first_errors"].values()
    assert re.search(words, error)
    (row,) = open_manifest(tmp_path / "back").rows()
    assert row["status"] == "failed" and row["depth_uri"] is None and row["c2w"] is None
    assert open_manifest(tmp_path / "back").validate() == []
