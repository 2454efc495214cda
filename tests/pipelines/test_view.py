"""`longtake view` of a rendered clip: the recording, read back, holds scene, cameras, pictures and depth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from longtake.annotate.depth_clip import open_depth
from longtake.datasets.readers import read_clip
from longtake.pipelines.cli import app
from longtake.pipelines.render import RenderConfig, RenderRun, render
from longtake.pipelines.view import LEAST_OPACITY, MAX_SHOWN, cloud_of, view
from longtake.render.camera_path import PathConfig, PathLimits
from longtake.render.gaussians import SH0, Gaussians
from longtake.render.scene import read_scene
from longtake.render.splat_room import write_room

chunk = pytest.importorskip("rerun.chunk", reason="the extra `rerun` is not installed, or too old to read recordings")

WIDTH, HEIGHT, FRAMES = 96, 64, 80


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> RenderRun:
    folder = tmp_path_factory.mktemp("view")
    config = RenderConfig(
        design=1,
        families=("near_training",),
        scene_scale=2.0,
        path=PathConfig(num_frames=FRAMES, fps=1.0, width=WIDTH, height=HEIGHT),
        limits=PathLimits(enough_centres=0.005, max_turn_deg_frame=45.0, max_acceleration=50.0, min_supporters=0.0),
    )
    return render(
        write_room(folder / "scene", 12_000), out=folder / "M", config=config, jobs=0, report=False, quiet=True
    )


def chunks_of(recording: Path) -> dict[str, list]:
    out: dict[str, list] = {}
    for found in chunk.RrdReader(recording).stream():
        out.setdefault(str(found.entity_path), []).append(found)
    return out


def column(chunks: list, name: str) -> np.ndarray:
    """The values of a component, one row a time."""
    batches = [found.to_record_batch() for found in chunks]
    return np.array([row for b in batches if name in b.schema.names for row in b.column(name).to_pylist()])


def test_scene_cameras_pictures_and_depth_are_in_it(done: RenderRun, tmp_path: Path) -> None:
    path, notes = view(done.out, tmp_path / "a.rrd")
    (row,) = done.manifest.rows()
    clip, found = read_clip(row), chunks_of(path)
    (points,) = column(found["/world/scene"], "Points3D:positions")
    gaussians = read_scene(row["splat_uri"]).gaussians
    assert len(points) == (gaussians.opacities >= LEAST_OPACITY).sum()
    np.testing.assert_allclose(points.max(0), 2 * gaussians.means.max(0), rtol=0.01)  # metres, as the poses
    assert sum(c.num_rows for c in found["/world/camera"]) == FRAMES
    shown = {name: sum(c.num_rows for c in found[f"/world/camera/picture/{name}"]) for name in ("rgb", "depth")}
    assert shown == {"rgb": MAX_SHOWN, "depth": MAX_SHOWN}
    np.testing.assert_allclose(
        column(found["/world/camera/picture"], "Pinhole:image_from_camera").reshape(-1, 3, 3).swapaxes(1, 2),
        clip.k,
        rtol=1e-5,
    )
    first = column(found["/world/camera/picture/depth"], "DepthImage:buffer")[0]
    depth = np.frombuffer(np.asarray(first, np.uint8).tobytes(), np.float32).reshape(HEIGHT, WIDTH)
    want = open_depth(done.out / row["depth_uri"]).read(0)[0]
    np.testing.assert_array_equal(depth, np.nan_to_num(want))
    assert not [words for words in notes if "not" in words]


def test_small_pictures_keep_the_camera(done: RenderRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.pipelines.view.MAX_SIDE", WIDTH // 2)
    found = chunks_of(view(done.out, tmp_path / "a.rrd")[0])
    k = column(found["/world/camera/picture"], "Pinhole:image_from_camera").reshape(-1, 3, 3).swapaxes(1, 2)
    full = read_clip(next(iter(done.manifest.rows()))).k
    np.testing.assert_allclose(k[:, 0, 0], full[:, 0, 0] / 2, rtol=1e-5)
    np.testing.assert_allclose(k[:, :2, 2] + 0.5, (full[:, :2, 2] + 0.5) / 2, rtol=1e-5)


def test_what_is_not_there_is_said(done: RenderRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "M"
    shutil.copytree(done.out, copy)
    (row,) = done.manifest.rows()
    scene = Path(row["splat_uri"])
    kept = scene.read_bytes()
    (copy / row["uri"]).unlink()
    try:
        scene.write_bytes(kept + b"\n")
        _, notes = view(copy, tmp_path / "b.rrd")
        assert any("no longer the scene" in words for words in notes)
        scene.unlink()
        assert app(["view", str(copy), "--out", str(tmp_path / "c.rrd")], result_action="return_value") is None
    finally:
        scene.write_bytes(kept)
    said = capsys.readouterr()
    assert str(tmp_path / "c.rrd") in said.out
    assert "the scene is not shown" in said.err and "the camera holds no pictures" in said.err
    found = chunks_of(tmp_path / "c.rrd")
    assert "/world/scene" not in found and "/world/camera/picture/rgb" not in found
    (text,) = column(found["/notes"], "TextDocument:text")
    assert "the scene is not shown" in text[0] and json.loads(row["render_stats"])["metres_per_unit"] == 2.0


def test_a_capped_cloud_has_the_most_opaque() -> None:
    rng = np.random.default_rng(0)
    n = 1000
    gaussians = Gaussians(
        means=rng.normal(size=(n, 3)).astype(np.float32),
        scales=rng.uniform(0.1, 1, (n, 3)).astype(np.float32),
        quaternions=np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        opacities=np.linspace(0, 1, n, dtype=np.float32),
        sh=rng.normal(size=(n, 4, 3)).astype(np.float32),
    )
    cloud = cloud_of(gaussians, 100, 3.0)
    np.testing.assert_array_equal(cloud.xyz, 3 * gaussians.means[-100:])
    np.testing.assert_allclose(cloud.rgb, 255 * np.clip(0.5 + SH0 * gaussians.sh[-100:, 0], 0, 1), atol=0.51)
    np.testing.assert_allclose(cloud.radii, 3 * np.sort(gaussians.scales[-100:])[:, 1], rtol=1e-6)
    assert len(cloud_of(gaussians, n, 1.0).xyz) == (gaussians.opacities >= LEAST_OPACITY).sum()
