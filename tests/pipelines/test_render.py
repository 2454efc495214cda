"""A scene goes in, clips with exact cameras and depth come out; every candidate is accounted for.

The scene is the room of splats, small; films are 96 x 64 and 24 frames long, so slow that paths made for a minute fit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from longtake.annotate.depth_clip import STEP, DepthClip, open_depth
from longtake.annotate.video import pictures, probe
from longtake.datasets.readers import read_clip
from longtake.pipelines import ledger
from longtake.pipelines import render as pipeline
from longtake.pipelines.cli import app
from longtake.pipelines.config import UsageError, resolve
from longtake.pipelines.render import (
    Config,
    FilmConfig,
    RenderConfig,
    RenderRun,
    SceneConfig,
    content_sha256,
    render,
    shoot,
    true_track,
)
from longtake.records import LongtakeError, Rejected
from longtake.render.camera_path import CameraPath, PathConfig, PathLimits, Survey, design, survey
from longtake.render.cameras import read_cameras
from longtake.render.rasterize import Rasterizer
from longtake.render.scene import read_scene
from longtake.render.splat_room import write_room

from ..spy import spied

WIDTH, HEIGHT, FRAMES = 96, 64, 24
LIMITS = PathLimits(enough_centres=0.005, max_turn_deg_frame=45.0, max_acceleration=50.0, min_supporters=0.0)
CONFIG = RenderConfig(
    design=3,
    families=("near_training", "random_walk", "in_place"),
    path=PathConfig(num_frames=FRAMES, fps=0.5, width=WIDTH, height=HEIGHT),
    limits=LIMITS,
    license="CC0-1.0",
)


ONE = replace(CONFIG, families=("near_training",), design=1)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return write_room(tmp_path_factory.mktemp("room"), 12_000)


@pytest.fixture(scope="module")
def allowed(room: Path) -> Survey:
    cameras = read_cameras(room.parent)
    return survey(read_scene(room).gaussians, cameras.world_from_cam, cameras.intrinsics, cameras.sizes)


@pytest.fixture(scope="module")
def rasterizer(room: Path) -> Rasterizer:
    return Rasterizer(read_scene(room).gaussians)


@pytest.fixture(scope="module")
def done(room: Path, tmp_path_factory) -> RenderRun:
    return run(room, out=tmp_path_factory.mktemp("out") / "M", config=replace(CONFIG, scene_scale=2.0))


def run(*scenes: Path, out: Path, config: RenderConfig = CONFIG, **options) -> RenderRun:
    return render(*scenes, out=out, config=config, jobs=0, **{"report": False, **options})


def only(found: RenderRun, family: str) -> dict:
    (row,) = [r for r in found.manifest.rows() if r["path_family"] == family]
    return row


# ---- what a run gives ------------------------------------------------------------------------------------------------


def test_every_candidate_is_a_row_or_a_counted_rejection(room, tmp_path):
    limits = replace(LIMITS, max_turn_deg_frame=0.05)
    found = run(room, out=tmp_path / "M", config=replace(CONFIG, design=2, families=("in_place",), limits=limits))
    assert (found.candidates, found.rejected, found.clips) == (2, {"rotation_speed": 2}, 0)
    found = run(room, out=tmp_path / "M")
    book = json.loads((found.folder / "run.json").read_text())
    assert sorted(c["number"] for c in book["candidates"]) == [0, 1, 2]
    rejected = [c for c in book["candidates"] if c["outcome"] == "rejected"]
    assert all(c["reason"] in c["message"] and c["clip_id"] is None for c in rejected)
    assert (found.candidates, sum(found.rejected.values()), found.ok) == (3, len(rejected), 3 - len(rejected))
    assert (found.failed, found.left, found.clips) == (0, 0, found.ok)
    ids = {c["clip_id"] for c in book["candidates"] if c["outcome"] == "accepted"}
    assert ids == found.manifest.ids()
    for family, row in found.families.items():
        assert row["candidates"] == sum(n for name, n in row.items() if name != "candidates"), family
    assert found.manifest.validate() == []


def test_rows_say_where_a_clip_is_from(done, room):
    for row in done.manifest.rows():
        assert (row["origin"], row["status"], row["license"]) == ("rendered", "ok", "CC0-1.0")
        assert row["group_id"] == row["source_sha256"] == content_sha256(room)
        assert row["source_uri"] == row["splat_uri"] == str(room)
        assert (row["scale_kind"], row["scale_source"]) == ("metric", "stated: a unit of the scene is 2 m")
        assert (row["focal_status"], row["pose_source"], row["tracked_ratio"]) == ("given", "rendered", 1.0)
        assert row["frame_num_tracked"] is None and row["reproj_rmse_px"] is None  # nothing was estimated
        assert (row["width"], row["height"], row["num_frames"], row["fps_num"], row["fps_den"]) == (
            WIDTH,
            HEIGHT,
            FRAMES,
            1,
            2,
        )
        assert (done.out / row["uri"]).is_file() and row["vmaf_motion"] is not None
        assert 0.5 < row["render_coverage"] <= 1 and 0 <= row["hole_ratio"] < 0.1
        checks = json.loads(row["path_checks"])
        assert len(checks) == 16 and {"free_space", "coverage", "first_frame_luma", "blank_film"} <= set(checks)
        for name, check in checks.items():
            value, limit = check["value"], check["limit"]
            assert value is None or (value <= limit if check["bound"] == "at_most" else value >= limit), name
        assert json.loads(row["render_stats"])["num_cameras"] == 72


def test_poses_are_the_paths_own_in_metres(done, allowed):
    row = only(done, "random_walk")
    extent = json.loads(row["path_parameters"])["extent"]
    path = pipeline.attempt(allowed, "random_walk", row["seed"], extent=extent, limits=LIMITS, config=CONFIG.path)
    assert isinstance(path, CameraPath)
    clip = read_clip(row)
    np.testing.assert_allclose(clip.world_from_cam[:, :3, :3], path.world_from_cam[:, :3, :3], atol=1e-6)
    np.testing.assert_allclose(clip.world_from_cam[:, :3, 3], 2 * path.world_from_cam[:, :3, 3], atol=1e-5)
    np.testing.assert_array_equal(np.reshape(row["revisit_pairs"], (-1, 2)), path.revisit_pairs)
    assert only(done, "in_place")["motion_class"] == "rotation" and row["motion_class"] == "general"


def test_pictures_and_depth_are_what_the_rasteriser_draws(done, rasterizer):
    row = only(done, "random_walk")
    clip = read_clip(row)
    depth = open_depth(done.out / row["depth_uri"])
    assert depth.metric and depth.source == "rendered" and depth.frame_index.tolist() == list(range(FRAMES))
    assert depth.world_from_cam is not None
    np.testing.assert_allclose(depth.world_from_cam, clip.world_from_cam, atol=1e-5)
    shown = dict(pictures(probe(done.out / row["uri"])))
    for i in (0, 13, FRAMES - 1):
        pose = depth.world_from_cam[i].copy()
        pose[:3, 3] /= 2
        drawn = rasterizer.draw(pose, clip.intrinsics[i], WIDTH, HEIGHT)
        found, trust = depth.read(i)
        known = np.isfinite(found)
        assert known.mean() > 0.95
        # the codes lose half a step; intrinsics in the row are float32, so a pixel in a thousand may see another edge
        off = np.abs(np.log(found[known] / (2 * drawn.depth[known])))
        assert np.quantile(off, 0.99) < STEP and off.max() < 0.02
        np.testing.assert_allclose(trust[known], np.minimum(drawn.alpha[known], 1), atol=0.6 / 255 + 1e-3)
        error = np.abs(shown[i].astype(float) - 255 * np.clip(drawn.rgb, 0, 1))
        assert error.mean() < 6, "H.264 with halved colour resolution"


def test_the_report_shows_paths_and_checks(room, tmp_path):
    found = run(room, out=tmp_path / "M", config=ONE, report=True)
    (row,) = found.manifest.rows()
    assert len(list((tmp_path / "M" / "sidecars" / row["clip_id"]).glob("contact_*.jpg"))) == 8
    assert found.report is not None
    page = found.report.read_text()
    for words in (
        f"room.ply: near training {row['seed']}",
        "Checks of the path and the film: 16 passed",
        "Path from above",
        'class="ground"',
        "training camera",
        "<h3>Depth",
    ):
        assert words in page
    assert "feature tracks</h3>" not in page


def test_plan_and_depth_pictures_lie_beside_a_clip(done, allowed):
    row = only(done, "random_walk")
    folder = done.out / "sidecars" / row["clip_id"]
    facts = json.loads((folder / "plan.json").read_text())
    right, ahead, up, corner = (np.array(facts[name]) for name in ("right", "ahead", "up", "corner"))
    np.testing.assert_allclose(np.cross(right, ahead), up, atol=1e-9)
    np.testing.assert_allclose(up, allowed.up, atol=1e-9)
    picture = cv2.imread(str(folder / "plan.png"), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    height, width = picture.shape[:2]
    eye = read_clip(row).world_from_cam[:, :3, 3]  # metres: two to a unit
    a, b = ((eye - corner) @ axis / size for axis, size in ((right, facts["size"][0]), (ahead, facts["size"][1])))
    ink = picture[(height - 1 - b * height).round().astype(int), (a * width).astype(int), 3]
    assert (ink < 128).all(), "no pose stands in a solid cell of its height range"
    assert facts["heights"][0] < (eye @ up).min() < (eye @ up).max() < facts["heights"][1]
    assert len(facts["cameras"]) == 72
    stats, depths = json.loads(row["render_stats"]), sorted(folder.glob("depth_*.jpg"))
    assert [p.stem[6:] for p in depths] == [p.stem[8:] for p in sorted(folder.glob("contact_*.jpg"))] and depths
    assert 0 < stats["depth_near"] < stats["depth_far"]


# ---- going on --------------------------------------------------------------------------------------------------------


def counted(monkeypatch) -> list[str]:
    """Names of the stages' functions as they are called."""
    return spied(monkeypatch, pipeline, "attempt", "shoot", "measure")


def test_a_second_run_does_nothing_and_counts_the_same(done, room, monkeypatch):
    calls = counted(monkeypatch)
    again = run(room, out=done.out, config=replace(CONFIG, scene_scale=2.0))
    assert calls == [] and again.committed == 0
    assert (again.ok, again.rejected, again.families) == (done.ok, done.rejected, done.families)


@pytest.mark.parametrize("stage, repeated", [("shoot", ["shoot", "measure"]), ("measure", ["measure"])])
def test_a_run_killed_between_stages_goes_on_there(room, tmp_path, monkeypatch, stage, repeated):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, stage, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        run(room, out=tmp_path / "M", config=ONE)
    assert not list((tmp_path / "M" / "artifacts").glob("*.tmp-*"))
    calls = counted(monkeypatch)
    found = run(room, out=tmp_path / "M", config=ONE)
    assert calls == repeated and found.ok == 1


def test_killed_between_artifact_and_manifest(room, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger.Ledger, "commit", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        run(room, out=tmp_path / "M", config=ONE)
    calls = counted(monkeypatch)
    found = run(room, out=tmp_path / "M", config=ONE)
    assert (calls, found.ok, found.committed) == ([], 1, 1)


def test_a_changed_scene_is_another_group(room, tmp_path):
    folder = tmp_path / "scene"
    write_room(folder, 11_000, seed=0)
    for scene in (room, folder / room.name):
        found = run(scene, out=tmp_path / "M", config=ONE)
    assert len({row["group_id"] for row in found.manifest.rows()}) == len(found.manifest) == 2
    twice = run(room, folder / room.name, room, out=tmp_path / "M", config=ONE)
    assert (twice.inputs, twice.duplicates, twice.ok, twice.committed) == (3, 1, 2, 0)


def test_a_worker_process_films_the_same(done, room, tmp_path):
    one = replace(ONE, scene_scale=2.0)
    found = render(room, out=tmp_path / "M", config=one, jobs=1, report=False)
    (row,) = found.manifest.rows()
    same = only(done, "near_training")
    assert row["clip_id"] == same["clip_id"]
    np.testing.assert_array_equal(row["c2w"], same["c2w"])


# ---- rejections and failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "film, reason",
    [
        (FilmConfig(min_first_luma=250.0), "first_frame_luma"),
        (FilmConfig(max_blank=-1.0), "blank_film"),
    ],
)
def test_a_film_that_will_not_do_is_counted_and_leaves_nothing(room, tmp_path, film, reason):
    one = replace(ONE, film=film)
    found = run(room, out=tmp_path / "M", config=one)
    assert (found.rejected, found.clips, len(found.manifest)) == ({reason: 1}, 0, 0)
    assert not list((tmp_path / "M").rglob("*.mp4")) and not list((tmp_path / "M").rglob("*.zip"))
    again = run(room, out=tmp_path / "M", config=one)
    assert again.rejected == {reason: 1}
    assert not list((tmp_path / "M" / "artifacts").glob("*tmp-*"))


def test_films_are_blank_or_dark_where_there_is_nothing(room, rasterizer, tmp_path):
    """Cameras in the room that turn to look out of the scene from its border."""
    away = np.eye(4)
    away[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # looks along -y
    away[:3, 3] = (3.0, -1.0, 1.4)
    path = CameraPath(
        world_from_cam=np.tile(away, (FRAMES, 1, 1)),
        intrinsics=np.tile([70.0, 70.0, 47.5, 31.5], (FRAMES, 1)),
        width=WIDTH,
        height=HEIGHT,
        fps=16.0,
        family="crane",
        seed=0,
        parameters={},
        revisit_pairs=np.zeros((0, 2), int),
    )
    options = {"video": tmp_path / "v.mp4", "depth": tmp_path / "d.zip", "antialiased": False, "scene_scale": None}
    for film, reason in (
        (FilmConfig(), "first_frame_luma"),
        (FilmConfig(min_first_luma=0.0), "blank_film"),
    ):
        refused = shoot(rasterizer, path, film, **options)
        assert isinstance(refused, Rejected) and (refused.stage, refused.reason) == ("film_check", reason)
    assert true_track(path, np.arange(FRAMES), None).motion_class == "static"


def test_what_is_no_scene_is_a_failed_row(room, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "text.ply").write_text("no scene")
    (folder / "empty.splat").touch()
    (folder / "cut.ply").write_bytes(room.read_bytes()[:5000])
    (folder / "bare").mkdir()
    (folder / "alone.ply").write_bytes(room.read_bytes())
    found = run(*sorted(folder.iterdir()), out=tmp_path / "M")
    reasons = {Path(r["source_uri"]).name: r["filter_reasons"][0] for r in found.manifest.rows()}
    assert reasons == {
        "text.ply": "unknown_scene_format",
        "empty.splat": "empty_file",
        "cut.ply": "truncated",
        "bare": "unknown_scene_format",
        "alone.ply": "no_cameras",
    }
    assert (found.failed, found.clips, found.candidates, found.inputs_left) == (5, 5, 0, 0)
    (alone,) = [r for r in found.manifest.rows() if r["source_uri"].endswith("alone.ply")]
    assert "--views outside" in alone["error"] and alone["error_stage"] == "scene"
    assert found.manifest.validate() == []


def test_a_scene_without_cameras_gets_derived_ones(room, tmp_path):
    alone = tmp_path / "alone.ply"
    alone.write_bytes(room.read_bytes())
    scene = SceneConfig(views="inside", up=(0.0, 0.0, 1.0))
    found = run(
        alone, out=tmp_path / "M", config=replace(CONFIG, families=("near_training", "in_place"), design=2, scene=scene)
    )
    assert found.ok
    for row in found.manifest.rows():
        assert list(row["flags"]) == ["derived_cameras"] and row["scale_kind"] == "relative"
        assert json.loads(row["render_stats"])["cameras"] == "derived_inside"


def test_named_cameras(room, tmp_path):
    alone = tmp_path / "a" / "room.ply"
    alone.parent.mkdir()
    alone.write_bytes(room.read_bytes())
    (tmp_path / "a" / "room.json").write_bytes((room.parent / "cameras.json").read_bytes())
    scene = SceneConfig(cameras="{folder}/{stem}.json")
    found = run(alone, out=tmp_path / "M", config=replace(ONE, scene=scene))
    assert found.ok == 1
    with pytest.raises(UsageError, match="no such file"):
        run(alone, out=tmp_path / "M", config=replace(CONFIG, scene=SceneConfig(cameras="none.json")))
    with pytest.raises(UsageError, match="one for 2 scenes"):
        run(alone, room, out=tmp_path / "M", config=replace(CONFIG, scene=SceneConfig(cameras="none.json")))


def test_a_surprise_is_a_failed_row_and_tried_again_when_asked(room, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "shoot", lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError("0/0")))
        found = run(room, out=tmp_path / "M", config=ONE)
    (row,) = found.manifest.rows()
    assert (row["status"], list(row["filter_reasons"]), row["error_stage"]) == ("failed", ["internal_error"], "film")
    assert row["path_family"] == "near_training" and row["path_checks"] and row["group_id"]
    assert (found.failed, found.rejected) == (1, {})
    assert run(room, out=tmp_path / "M", config=ONE).failed == 1, "a failed clip is left alone"
    assert run(room, out=tmp_path / "M", config=ONE, retry_failed=True).ok == 1


def test_errors_of_the_encoder_are_the_films(rasterizer, room, tmp_path):
    """What the encoding thread meets is raised where frames are drawn, and nothing hangs."""
    path = CameraPath(
        world_from_cam=np.tile(read_cameras(room.parent).world_from_cam[:1], (200, 1, 1)),
        intrinsics=np.tile([70.0, 70.0, 47.5, 31.5], (200, 1)),
        width=WIDTH,
        height=HEIGHT,
        fps=16.0,
        family="crane",
        seed=0,
        parameters={},
        revisit_pairs=np.zeros((0, 2), int),
    )
    options = {"antialiased": False, "scene_scale": None}
    nowhere = tmp_path / "none" / "v.mp4"
    with pytest.raises(FileNotFoundError):
        shoot(rasterizer, path, FilmConfig(), video=nowhere, depth=tmp_path / "d.zip", **options)
    with pytest.raises(FileNotFoundError):
        shoot(rasterizer, path, FilmConfig(), video=tmp_path / "v.mp4", depth=nowhere, **options)
    assert not (tmp_path / "v.mp4").exists() and not list(tmp_path.glob(".v*"))


# ---- options ---------------------------------------------------------------------------------------------------------


def test_the_published_mixture_is_that_of_design(allowed):
    made = design(allowed, 40, 3, config=CONFIG.path)
    config = RenderConfig(design=40, seed=3)
    assert config.candidates() == [(o.family, o.seed) for o in made.outcomes]
    assert sum(family == "near_training" for family, _ in config.candidates()) == 10
    chosen = RenderConfig(design=5, families=("orbit", "dolly")).candidates()
    assert [family for family, _ in chosen] == ["orbit", "dolly", "orbit", "dolly", "orbit"]


def test_depth_of_some_frames_or_of_none(room, rasterizer, tmp_path):
    for every, frames in ((5, [0, 5, 10, 15, 20]), (0, None)):
        found = run(room, out=tmp_path / str(every), config=replace(ONE, film=FilmConfig(depth_every=every)))
        (row,) = found.manifest.rows()
        depth = None if row["depth_uri"] is None else open_depth(found.out / row["depth_uri"])
        assert (None if depth is None else depth.frame_index.tolist()) == frames
        assert depth is None or (isinstance(depth, DepthClip) and not depth.metric)
        assert found.manifest.validate() == []


def test_filled_holes_are_measured(room, tmp_path):
    one = replace(ONE, film=FilmConfig(enhance="holes"))
    (row,) = run(room, out=tmp_path / "M", config=one).manifest.rows()
    assert 0 <= json.loads(row["render_stats"])["enhanced_ratio"] < 0.2


def test_a_zoom_is_filmed(room, tmp_path):
    path = replace(CONFIG.path, zoom=(1.5, 1.5))
    found = run(room, out=tmp_path / "M", config=replace(ONE, path=path))
    for row in found.manifest.rows():
        f = read_clip(row).intrinsics[:, 0]
        assert row["intrinsics_mode"] == "per_frame" and f.max() / f.min() == pytest.approx(1.5, rel=1e-3)
    assert found.ok


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"design": 0}, "design is a number"),
        ({"families": ("orbitt",)}, "Did you mean 'orbit'"),
        ({"scene_scale": -1.0}, "cannot be -1.0 metres"),
        ({"path": PathConfig(width=97, height=64)}, "even sides"),
        ({"source": "dl3dv_gs"}, "set profile too"),
    ],
)
def test_wrong_settings(changes, words):
    with pytest.raises((ValueError, LongtakeError), match=words):
        RenderConfig(**changes)


def test_the_command_line(room, tmp_path, capsys):
    out = tmp_path / "M"
    words = f"--design 2 --families near_training,in_place --frames {FRAMES} --fps 0.5 --size {HEIGHT}x{WIDTH} --quiet"
    words += " --scene-scale 0.5 --license CC0-1.0 --jobs 0 --set render.limits.enough_centres=0.03 --no-report"
    assert app(["render", str(room), "--out", str(out), *words.split()], result_action="return_value") == 0
    printed = capsys.readouterr().out
    assert "2 candidates" in printed and "in_place" in printed and "manifest:" in printed
    toml = next((out / "runs").glob("*/config.toml"))
    config = resolve(Config, toml=toml).render
    assert (config.path.height, config.path.width, config.scene_scale) == (HEIGHT, WIDTH, 0.5)
    for wrong in ("--size 704", "--zoom 2", "--scene-scale x", "--families orbit,x"):
        with pytest.raises(UsageError):
            app(["render", str(room), "--out", str(out), *wrong.split()], result_action="return_value")
    with pytest.raises(UsageError, match="no such file"):
        app(["render", "none.ply", "--out", str(out)], result_action="return_value")
