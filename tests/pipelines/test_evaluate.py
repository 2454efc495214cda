"""Videos against the camera that they were asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from longtake.annotate.video import encode_rgb
from longtake.geometry import pose, rotation_from_vector
from longtake.pipelines import evaluate as pipeline
from longtake.pipelines.cli import app
from longtake.pipelines.config import UsageError
from longtake.records import LongtakeError
from longtake.render.room import Room, camera_path, render_clip

WIDTH, HEIGHT, FRAMES = 224, 128, 17


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """walk.mp4 and blank.mp4, which shows nothing; the same poses beside each."""
    folder = tmp_path_factory.mktemp("films")
    cameras, k = camera_path("walk", FRAMES, width=WIDTH, height=HEIGHT, extent=0.2)
    encode_rgb(folder / "walk.mp4", render_clip(Room(0), cameras, k, WIDTH, HEIGHT), 16)
    encode_rgb(folder / "blank.mp4", (np.full((HEIGHT, WIDTH, 3), 90, np.uint8) for _ in cameras), 16)
    for name in ("walk", "blank"):
        np.save(folder / f"{name}.npy", cameras)
    np.savetxt(folder / "camera.txt", k[:1])
    return folder


def rotated(deg: float, count: int = 5) -> np.ndarray:
    turn = np.radians(deg) * np.linspace(0, 1, count)
    return pose(rotation_from_vector(np.stack([0 * turn, turn, 0 * turn], 1)), np.zeros((count, 3)))


def test_a_film_follows_its_own_path_and_an_empty_one_does_not(films: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["evaluate", str(films), "--poses", "{folder}/{stem}.npy", "--intrinsics", str(films / "camera.txt")]
    assert app([*arguments, "--json", "--out", str(films / "found.json")], result_action="return_value") == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree == json.loads((films / "found.json").read_text())
    blank, walk = tree["clips"]
    assert (blank["clip"], walk["clip"]) == ("blank.mp4", "walk.mp4")
    assert walk["posed"] == FRAMES and walk["reason"] is None and walk["focal"] == "given"
    assert walk["rot_deg"] < 0.3 and walk["rot_deg_x"] > 10
    assert walk["trans"] < 0.02 and walk["trans_x"] > 10
    assert tree["untracked"] == 1 and blank["posed"] == 0 and blank["reason"]
    assert blank["rot_deg"] == blank["rot_deg_static"] == walk["rot_deg_static"]
    assert blank["trans_x"] == pytest.approx(1)
    mean = tree["mean"]
    assert mean["rot_deg"] == pytest.approx((blank["rot_deg"] + walk["rot_deg"]) / 2)
    assert mean["posed"] == FRAMES and mean["frames"] == 2 * FRAMES


def test_clips_that_cannot_be_scored_are_named(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "walk.npy", np.tile(np.eye(4), (3, 1, 1)))
    code = app(
        ["evaluate", str(films / "walk.mp4"), "--poses", str(tmp_path / "walk.npy")], result_action="return_value"
    )
    assert code == 1
    assert "not scored: walk.mp4" in capsys.readouterr().out


def test_wrong_usage(tmp_path: Path):
    with pytest.raises(UsageError, match="nothing to evaluate"):
        pipeline.evaluate()
    with pytest.raises(UsageError, match="of videos with --poses"):
        pipeline.evaluate("somewhere", intrinsics=(100.0,))
    with pytest.raises(LongtakeError):
        pipeline.evaluate(str(tmp_path / "none"))


def test_the_static_camera_is_off_by_the_mean_of_the_path():
    asked = rotated(8.0)
    asked[:, 0, 3] = np.linspace(0, 4, 5)
    still = np.tile(np.eye(4), (5, 1, 1))
    off = pipeline.errors(still, asked)
    assert off.rot_deg == pytest.approx(4.0) and off.trans == pytest.approx(2.0)
    assert pipeline.errors(pipeline.aligned(still, asked), asked).trans == pytest.approx(1.2)  # from its middle
    assert pipeline.errors(asked, asked) == pipeline.Errors(rot_deg=0.0, trans=0.0, cam_mc=0.0)


def test_one_scale_is_free_and_nothing_else():
    rng = np.random.default_rng(0)
    asked = rotated(20.0)
    asked[1:, :3, 3] = rng.normal(size=(4, 3))
    half = pipeline.scaled(asked, 0.5)
    scale = pipeline.scale_between(half[:, :3, 3], asked[:, :3, 3])
    assert scale == pytest.approx(2.0)
    assert pipeline.errors(pipeline.scaled(half, scale), asked).cam_mc < 1e-12
    assert pipeline.scale_between(-asked[:, :3, 3], asked[:, :3, 3]) == 0.0  # backwards: no better than standing still
    turned = pose(rotation_from_vector(np.array([0.0, math.radians(30), 0.0])), np.zeros(3)) @ asked
    assert pipeline.errors(turned, asked).rot_deg == pytest.approx(30)
    assert pipeline.errors(pipeline.aligned(turned, asked), asked).cam_mc < 1e-9


def test_the_world_of_the_poses_is_of_no_matter():
    world = pose(rotation_from_vector(np.array([0.3, -0.2, 1.0])), np.array([5.0, 1.0, -2.0]))
    asked = rotated(12.0)
    np.testing.assert_allclose(pipeline.from_first(world @ asked), asked, atol=1e-12)


def test_frames_without_a_pose_keep_the_last():
    found = rotated(8.0)
    found[[2, 4]] = np.nan
    np.testing.assert_allclose(pipeline.hold(found), rotated(8.0)[[0, 1, 1, 3, 3]], atol=1e-12)
    found[0] = np.nan
    np.testing.assert_allclose(pipeline.hold(found)[:2], np.tile(np.eye(4), (2, 1, 1)), atol=1e-12)
