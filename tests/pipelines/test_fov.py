"""`longtake fov` as a person meets it: which source counts, what is left out and why, exit codes, each refusal once.

Networks here are functions that state a known camera, or tiny networks of random weights fetched like any other.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longtake.datasets.manifest import create_manifest
from longtake.datasets.schema import annotate_row
from longtake.errors import BadMedia, LongtakeError, MissingPart
from longtake.model import hub, intrinsics, networks
from longtake.model.exif import FOCAL_35MM
from longtake.model.intrinsics import Reading
from longtake.model.moge2 import config as moge2_config
from longtake.model.moge2 import focal
from longtake.model.moge2.config import parse_config
from longtake.model.moge2.network import MoGe2
from longtake.model.networks import File
from longtake.model.pi3x.network import Pi3X
from longtake.pipelines.config import UsageError
from longtake.pipelines.fov import examine

from ..datasets import conftest as made
from ..model.test_moge2 import TINY as TINY_BACKBONE
from ..model.test_moge2 import tiny_config
from ..model.test_pi3x import TINY
from ..videos import numbered, write

RUN = made.PROVENANCE


def states(source: str, fov_x_deg: float):
    """In place of a network: whatever it is shown was taken with this horizontal field of view and square pixels."""

    def ask(rgb):
        height, width = rgb.shape[:2]
        f = width / 2 / math.tan(math.radians(fov_x_deg) / 2)
        return Reading(source=source, width=width, height=height, intrinsics=(f, f, (width - 1) / 2, (height - 1) / 2))

    return ask


def says_nothing(rgb):
    raise LongtakeError("moge2: too flat")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No weights are here but a test's own."""
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture
def photo(tmp_path):
    """Writes a picture, with a 35 mm equivalent focal length where one is given."""
    pil = pytest.importorskip("PIL.Image", reason="Pillow writes these files")

    def write(width: int = 64, height: int = 48, *, focal_35mm: int = 0, orientation: int = 1) -> str:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        block = pil.Exif()
        if focal_35mm:
            block[0x0112] = orientation
            block.get_ifd(0x8769)[FOCAL_35MM] = focal_35mm
        pil.fromarray(pixels).save(tmp_path / "photo.jpg", exif=block)
        return str(tmp_path / "photo.jpg")

    return write


def row(name: str = "a.mp4", **changes):
    info, of = made.video(name), made.shot()
    return annotate_row(
        path=info.path, provenance=RUN, video=info, shot=of, track=made.track(info, of, zoom=True, **changes)
    )


# ---- sources -----------------------------------------------------------------------------------------------------


def test_the_first_source_counts_and_the_others_are_measured_by_it(photo):
    picture = photo(focal_35mm=26)
    answer = examine(picture, networks={"pi3x": states("pi3x", 60), "moge2": states("moge2", 70)})
    assert [r.source for r in answer.readings] == ["pi3x", "moge2", "exif_35mm"] and answer.problem is None
    facts = {r["source"]: r for r in answer.rows()}
    shorter = math.tan(math.radians(30)) / math.tan(math.radians(35)) - 1
    assert facts["pi3x"]["focal_pct"] == 0 and facts["moge2"]["focal_pct"] == pytest.approx(100 * shorter)
    assert facts["moge2"]["fov_x_deg"] == pytest.approx(70)
    known = examine(picture, numbers=(50.0,), networks={"pi3x": states("pi3x", 60)})
    assert [r.source for r in known.readings] == ["given", "pi3x", "exif_35mm"]


def test_a_source_that_fails_is_left_out_with_its_reason(photo):
    answer = examine(photo(), networks={"pi3x": states("pi3x", 60), "moge2": says_nothing})
    assert [r.source for r in answer.readings] == ["pi3x"]
    assert answer.left_out["moge2"] == "moge2: too flat" and "no EXIF" in answer.left_out["exif"]


def test_a_camera_out_of_range_names_only_ways_that_are_in_range(photo):
    answer = examine(photo(), networks={"pi3x": states("pi3x", 130), "moge2": states("moge2", 70)})
    assert answer.problem is not None and "moge2 says 70.00" in answer.problem
    answer = examine(photo(), networks={"pi3x": states("pi3x", 130), "moge2": states("moge2", 140)})
    assert answer.problem is not None and "moge2" not in answer.problem


def test_nothing_tells_the_camera(photo):
    with pytest.raises(BadMedia, match=r"nothing tells its camera. moge2: too flat; .*--intrinsics f or"):
        examine(photo(), networks={"moge2": says_nothing})
    with pytest.raises(MissingPart, match=r"fetch pi3x --accept-licence.*fetch moge2-vitl-normal"):
        examine(photo())


def test_exif_of_a_turned_picture(photo):
    got = examine(photo(64, 48, focal_35mm=26, orientation=6), networks={}).readings[0]
    assert (got.width, got.height) == (48, 64)
    assert got.intrinsics == pytest.approx((80 * 26 / 43.26661, 80 * 26 / 43.26661, 23.5, 31.5))


def test_of_a_video_the_first_frame_counts(tmp_path):
    write(tmp_path / "v.mp4", pictures := numbered(3))
    seen = []
    examine(str(tmp_path / "v.mp4"), networks={"pi3x": lambda rgb: seen.append(rgb) or states("pi3x", 60)(rgb)})
    assert len(seen) == 1 and np.abs(seen[0].astype(int) - pictures[0]).mean() < 10


# ---- a manifest's row --------------------------------------------------------------------------------------------


def test_a_manifest_gives_the_camera_of_a_frame_at_the_pictures_size(tmp_path, photo):
    clip = row()
    create_manifest(tmp_path / "m").append([clip])
    for frame, zoom in ((0, 1.0), (19, 1.8)):
        answer = examine(photo(320, 240), manifest=tmp_path / "m", frame=frame, networks={"pi3x": states("pi3x", 60)})
        first = answer.readings[0]
        assert first.source == "manifest" and first.focal_sigma == pytest.approx(0.01)
        assert first.intrinsics == pytest.approx((250 * zoom, 250 * zoom, 159.5, 119.5))
    same = examine(photo(640, 480), manifest=tmp_path / "m", clip=clip["clip_id"][:6], networks={}).readings[0]
    assert same.intrinsics == pytest.approx((500, 500, 319.5, 239.5))


def test_a_focal_length_that_was_a_guess_does_not_count(tmp_path, photo):
    create_manifest(tmp_path / "m").append([row(focal_status="undetermined")])
    answer = examine(photo(), manifest=tmp_path / "m", networks={"pi3x": states("pi3x", 60)})
    assert answer.readings[0].source == "pi3x" and "did not determine: a guess" in answer.left_out["manifest"]


def test_lens_distortion_is_said(tmp_path, photo):
    create_manifest(tmp_path / "m").append([row(distortion_model="opencv_radial", distortion=(-0.1, 0.0))])
    answer = examine(photo(), manifest=tmp_path / "m", networks={})
    assert answer.readings[0].remark.endswith("focal length estimated, lens distortion left out")


def test_rows_that_are_not_this_pictures(tmp_path, photo):
    refused = made.Rejected(stage="track", reason="too_few_tracks", message="few")
    info = made.video("f.mp4")
    failed = annotate_row(path=info.path, provenance=RUN, video=info, shot=made.shot(), rejected=refused)
    good = row()
    create_manifest(tmp_path / "m").append([good, failed])
    ask = partial(examine, manifest=tmp_path / "m", networks={})
    with pytest.raises(UsageError, match="has 2 clips: name one with --clip ID"):
        ask(photo())
    with pytest.raises(UsageError, match="has 0 clips with an id that begins with zzz"):
        ask(photo(), clip="zzz")
    with pytest.raises(UsageError, match="has status failed and no camera"):
        ask(photo(), clip=failed["clip_id"])
    with pytest.raises(UsageError, match=r"has frames 0 .. 19, and no frame 20"):
        ask(photo(), clip=good["clip_id"], frame=20)
    with pytest.raises(UsageError, match="is 640 x 480 and the picture 64 x 64: it was cropped or stretched"):
        ask(photo(64, 64), clip=good["clip_id"])
    with pytest.raises(UsageError, match="name it with --row MANIFEST"):
        examine(photo(), clip="a", networks={})


# ---- networks as they are fetched --------------------------------------------------------------------------------


def test_fetched_networks_answer(tmp_path, photo, monkeypatch):
    """Tiny checkpoints recorded like the published ones: located, loaded, asked."""
    torch.manual_seed(11)  # rays that fit focal lengths above 0
    config = replace(TINY, encoder_depth=1, decoder_depth=2, pose_blocks=(), head_depth=1)
    save_file(Pi3X(config, multimodal=False).state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(3)
    monkeypatch.setitem(moge2_config.BACKBONES, "dinov2_tiny14", TINY_BACKBONE)
    monkeypatch.setattr(focal, "MAX_SIGMA", 1e9)  # random points tell a focal length only by a lax measure
    tree = {"model_config": tiny_config(), "model": MoGe2(parse_config(tiny_config())).state_dict()}
    torch.save(tree, tmp_path / "model.pt")
    for name, file in (("pi3x", "model.safetensors"), ("moge2-vits-normal", "model.pt")):
        data = (tmp_path / file).read_bytes()
        declared = File(file, len(data), hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(networks.NETWORKS, name, replace(networks.NETWORKS[name], files=(declared,)))
        hub.accept(networks.NETWORKS[name])
        hub.adopt_folder(networks.NETWORKS[name], tmp_path)
    picture = photo()
    asked = {"pi3x": partial(intrinsics.ask_pi3x, config=config), "moge2": intrinsics.ask_moge2}
    answer = examine(picture, networks=asked)
    assert [r.source for r in answer.readings] == ["pi3x", "moge2"], answer.left_out
    # the published sizes do not fit these weights: said, and the other network still answers
    answer = examine(picture, networks=asked | {"pi3x": intrinsics.ask_pi3x})
    assert [r.source for r in answer.readings] == ["moge2"]
    assert "does not hold the weights of this Pi3X" in answer.left_out["pi3x"]


# ---- the command -------------------------------------------------------------------------------------------------


def test_without_weights_exif_answers_and_the_command_says_what_would_add_more(photo, longtake):
    code, out, err = longtake("fov", photo(focal_35mm=26))
    assert (code, err) == (0, "") and out.splitlines()[1].startswith("exif_35mm")
    assert "left out: pi3x: " in out and "longtake weights fetch pi3x --accept-licence" in out
    assert "left out: moge2: " in out and "longtake weights fetch moge2-vitl-normal" in out


def test_json(photo, longtake):
    code, out, err = longtake("fov", photo(focal_35mm=26), "--intrinsics", "60,61,31,24", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "") and facts["used"] == "given" and facts["intrinsics"] == [60, 61, 31, 24]
    assert facts["problem"] is None and set(facts["left_out"]) == {"pi3x", "moge2"}
    given, by_exif = facts["readings"]
    assert given["in_range"] and given["fov_x_deg"] == pytest.approx(56.145, abs=1e-3)
    ratio = 80 * 26 / 43.26661 / math.sqrt(60 * 61)
    assert by_exif["focal_pct"] == pytest.approx(100 * (ratio - 1), rel=1e-4)


def test_exit_codes(tmp_path, photo, longtake):
    code, out, err = longtake("fov", photo(focal_35mm=200))
    assert code == 1 and out and "degrees by exif_35mm" in err and "Ways out" in err
    code, out, err = longtake("fov", photo(), "--intrinsics", 500)
    assert code == 1 and "degrees by given" in err
    code, out, err = longtake("fov", photo(), "--intrinsics", -5)
    assert (code, out) == (2, "") and "are no camera's" in err
    code, out, err = longtake("fov", photo())
    assert (code, out) == (3, "") and "nothing tells its camera" in err and "weights fetch" in err
    code, out, err = longtake("fov", tmp_path / "nowhere.jpg")
    assert (code, out) == (1, "") and "nowhere.jpg: no such file" in err
    cv2.imwrite(str(tmp_path / "cut.png"), np.zeros((20, 20, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:30])
    code, out, err = longtake("fov", tmp_path / "cut.png")
    assert (code, out) == (1, "") and "cut.png" in err
