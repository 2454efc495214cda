"""`longtake render --enhance difix`: nothing before licence and weights are here, then every frame."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longtake.annotate.video import pictures, probe
from longtake.errors import MissingPart
from longtake.model import hub
from longtake.model.networks import NETWORKS
from longtake.pipelines import cli
from longtake.pipelines.render import FilmConfig, RenderConfig, networks_of, render
from longtake.render import enhance
from longtake.render.camera_path import PathConfig, PathLimits
from longtake.render.splat_room import write_room

pytest.importorskip("diffusers", reason="the extra `enhance` is not installed")
pytest.importorskip("transformers", reason="the extra `enhance` is not installed")
from ..tiny_difix import write_difix

CONFIG = RenderConfig(
    design=1,
    families=("near_training",),
    path=PathConfig(num_frames=16, fps=0.5, width=70, height=50),  # no multiples of 8
    limits=PathLimits(enough_centres=0.005, max_turn_deg_frame=45.0, max_acceleration=50.0, min_supporters=0.0),
)
DIFIX = replace(CONFIG, film=FilmConfig(enhance="difix"))


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return write_room(tmp_path_factory.mktemp("room"), 12_000)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    enhance._difix.cache_clear()


def test_without_licence_or_weights_it_says_what_to_do_and_leaves_with_3(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["longtake", "render", str(room), "--out", str(tmp_path / "M"), "--enhance", "difix", "--quiet"]
    for advice in ("longtake weights fetch difix --accept-licence", "the weights of difix are not here"):
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().err
        assert left.value.code == 3 and advice in said and "--enhance holes" in said
        hub.accept(NETWORKS["difix"])
    assert not list(tmp_path.rglob("*.mp4"))


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.pipelines.render.find_spec", lambda name: None if name == "diffusers" else name)
    with pytest.raises(MissingPart, match=r"needs diffusers: pip install 'longtake\[enhance\]'"):
        networks_of(DIFIX.film)
    assert networks_of(FilmConfig(enhance="holes")) == []


def test_every_frame_goes_through_the_network(room: Path, tmp_path: Path) -> None:
    hub.accept(NETWORKS["difix"])
    hub.adopt_folder(NETWORKS["difix"], write_difix(tmp_path / "weights"))
    found = render(room, out=tmp_path / "M", config=DIFIX, jobs=0, report=False, quiet=True)
    (row,) = found.manifest.rows()
    (plain,) = render(room, out=tmp_path / "P", config=CONFIG, jobs=0, report=False, quiet=True).manifest.rows()
    stats = json.loads(row["render_stats"])
    assert stats["enhanced_ratio"] == 1.0
    assert stats["flicker_before"] > 0 and stats["flicker_after"] > 0
    assert json.loads(row["model_licenses"])["difix"].startswith("NVIDIA License")
    assert json.loads(row["model_revisions"])["difix"].startswith("sha256:"), "a folder's commit is not known"
    assert plain["model_licenses"] in (None, "{}") and "flicker_after" not in json.loads(plain["render_stats"])
    np.testing.assert_array_equal(row["c2w"], plain["c2w"])
    first, drawn = (
        next(pictures(probe(tmp_path / name / r["uri"])))[1].astype(float) for name, r in (("M", row), ("P", plain))
    )
    assert first.shape == (50, 70, 3) and np.abs(first - drawn).mean() > 10, "random weights repaint the picture"
