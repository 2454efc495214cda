"""`longtake fit` without a GPU: what it reads of a manifest and of folders, what it writes, refusals, exit codes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from longtake.annotate.depth_clip import DepthClip, DepthWriter, finish_depth
from longtake.annotate.video import probe
from longtake.datasets.manifest import create_manifest
from longtake.datasets.schema import annotate_row
from longtake.errors import BadMedia, MissingPart
from longtake.geometry import distort, invert_pose, quaternion_from_rotation
from longtake.pipelines import cli
from longtake.pipelines.config import UsageError
from longtake.pipelines.fit import SceneConfig, fit_scene, read_source
from longtake.render.fit import FitConfig
from longtake.render.rasterize import rasterize
from longtake.render.scene import read_scene

from ..datasets import conftest as made
from ..render.test_fit import HEIGHT, WIDTH, Recorder, dense, ring, truth
from ..videos import write

K = (40.0, 42.0, 24.0, 15.0)  # pixel centres at integers
TINY = SceneConfig(train=FitConfig(steps=4, save_every=2, sh_degree=1), first_points=300)


def engine(config, device):
    """The dense renderer of the tests, for the CPU."""
    return dense, Recorder()


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list[np.ndarray]]:
    """Poses and pictures of a scene."""
    poses = ring(9)
    pictures = rasterize(truth(), poses, np.array(K), WIDTH, HEIGHT, backend="reference")
    return poses, [np.rint(255 * picture.rgb.clip(0, 1)).astype(np.uint8) for picture in pictures]


def write_pictures(folder, pictures, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures, strict=True):
        cv2.imwrite(str(folder / name), np.ascontiguousarray(picture[..., ::-1]))


@pytest.fixture
def colmap(tmp_path, drawn):
    """images/ beside sparse/0 with points, as COLMAP leaves them."""
    poses, pictures = drawn
    names = [f"im{i}.png" for i in range(len(pictures))]
    write_pictures(tmp_path / "scan" / "images", pictures, names)
    model = tmp_path / "scan" / "sparse" / "0"
    model.mkdir(parents=True)
    fx, fy, cx, cy = K
    (model / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} {fx} {fy} {cx + 0.5} {cy + 0.5}\n")
    inverse = invert_pose(poses)
    rows = np.concatenate([quaternion_from_rotation(inverse[:, :3, :3]), inverse[:, :3, 3]], 1)
    images = [f"{i + 1} {' '.join(map(repr, row.tolist()))} 1 {names[i]}\n\n" for i, row in enumerate(rows)]
    (model / "images.txt").write_text("".join(images))
    points = [f"{i} {' '.join(map(str, xyz))} 90 100 110 0.5\n" for i, xyz in enumerate(truth().means.tolist())]
    (model / "points3D.txt").write_text("".join(points))
    return tmp_path / "scan"


@pytest.fixture
def clip(tmp_path):
    """A manifest with one clip: frames 5 .. 24 of a video whose pixels say where they are; frame 9 has no pose."""

    def make(*, metric: bool = False, depth: float | None = None, crop=(0, 0, 640, 480), **changes):
        x, y = np.meshgrid(np.arange(640), np.arange(480))
        picture = np.stack([x * 0.35 + 15, y * 0.45 + 15, np.full(x.shape, 128)], -1).round().astype(np.uint8)
        options = {"preset": "ultrafast", "crf": "4"}
        info = probe(write(tmp_path / "take.mp4", [picture] * 30, pix_fmt="yuv444p", options=options))
        shot = made.shot(crop=crop)
        changes |= {"scale_kind": "metric"} if metric else {}
        track = made.track(info, shot, unposed=(4,), **changes)
        row = annotate_row(path=info.path, provenance=made.PROVENANCE, video=info, shot=shot, track=track)
        out = tmp_path / "posed"
        create_manifest(out).append([row | {"depth_uri": "depth.zip" if depth else None}])
        if depth:
            with DepthWriter(out / "depth.zip") as writer:
                for frame in range(5, 25):
                    writer.add(frame, np.full((120, 160), depth), np.ones((120, 160)))
            facts = {"width": 160, "height": 120, "crop": crop, "factor": np.ones(20), "metric": metric}
            file = {"path": out / "depth.zip", "frame_index": np.array(writer.frame_index)}
            rest = {"world_from_cam": None, "focal_px": None, "source": "given", "scale": None, "relative_sigma": 0.05}
            finish_depth(DepthClip(**facts, **file, **rest))
        return out, track

    return make


def place_of(picture: np.ndarray) -> np.ndarray:
    """[H, W, 2] where the pixels of the clip's video lay, from their colours."""
    return np.stack([(picture[..., 0] - 15) / 0.35, (picture[..., 1] - 15) / 0.45], -1)


def check_places(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal pixels [..., 2], up to the few grey levels, of 3 pixels each, that the video codec is off."""
    off = (found - wanted).reshape(-1, 2)
    assert np.abs(off).max() < 10
    assert np.abs(off).mean() < 1.8 and (np.abs(off.mean(0)) < 1.2).all()


# --- a folder with cameras -------------------------------------------------------------------------------------------


def test_colmap_model_to_scene_and_report(tmp_path, colmap, drawn):
    said = []
    out = tmp_path / "scene.ply"
    facts = fit_scene(colmap, out=out, config=TINY, device="cpu", engine=engine, progress=said.append)
    scene = read_scene(out)
    assert len(scene.gaussians) == facts["gaussians"] == 60
    assert facts["first_points_from"] == "colmap" and facts["first_points"] == 60
    assert (facts["trained_on"], facts["held_out"]) == (7, 2)
    assert [entry["step"] for entry in said] == [0, 2, 4]
    report = json.loads((tmp_path / "scene.ply.fit" / "report.json").read_text())
    assert report["history"] == said and report["psnr_db"] == facts["psnr_db"] == said[-1]["psnr"]
    assert report["config"]["train"]["steps"] == 4 and report["versions"]["torch"] == torch.__version__
    # once more: nothing is trained, and the scene is the same
    recorder = Recorder()
    fit_scene(colmap, out=out, config=TINY, device="cpu", engine=lambda *_: (dense, recorder))
    assert not recorder.calls
    np.testing.assert_array_equal(read_scene(out).gaussians.means, scene.gaussians.means)


def test_pictures_and_cameras_agree_after_reading(colmap, drawn):
    views, points, scale_kind = read_source(colmap / "sparse" / "0", None, TINY)
    poses, pictures = drawn
    assert scale_kind == "relative" and points.source == "colmap"
    np.testing.assert_allclose(views.world_from_cam, poses, atol=1e-9)
    np.testing.assert_allclose(views.intrinsics, np.tile(K, (9, 1)))
    for view, picture in zip(views.pictures, pictures, strict=True):
        np.testing.assert_array_equal(view, picture)


def test_large_pictures_are_shrunk_with_their_cameras(colmap):
    views, _, _ = read_source(colmap, None, replace(TINY, max_side=24))
    assert views.pictures[0].shape == (16, 24, 3)
    np.testing.assert_allclose(views.intrinsics[0], (20, 21, 11.75, 7.25))  # the corner (-0.5, -0.5) stays


def test_transforms_json_without_suffixes(tmp_path, drawn):
    poses, pictures = drawn
    write_pictures(tmp_path / "train", pictures, [f"r_{i}.png" for i in range(9)])
    frames = [
        {"file_path": f"train/r_{i}", "transform_matrix": (pose @ np.diag([1.0, -1, -1, 1])).tolist()}
        for i, pose in enumerate(poses)
    ]
    tree = {"w": WIDTH, "h": HEIGHT, "fl_x": 40, "fl_y": 42, "cx": 24.5, "cy": 15.5, "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(tree))
    views, points, _ = read_source(tmp_path, None, TINY)
    np.testing.assert_allclose(views.world_from_cam, poses, atol=1e-9)
    np.testing.assert_array_equal(views.pictures[3], pictures[3])
    assert points.source == "random" and len(points) == 300


def test_pictures_that_are_not_there_or_of_another_size_are_told(colmap):
    images = colmap / "images"
    (images / "im3.png").unlink()
    with pytest.raises(BadMedia, match=r"im3.png is not there, nor are 0 others"):
        read_source(colmap, None, TINY)
    (images / "im3.png").write_bytes(b"none")
    with pytest.raises(BadMedia, match=r"im3.png: cannot be read"):
        read_source(colmap, None, TINY)
    cv2.imwrite(str(images / "im3.png"), np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    with pytest.raises(BadMedia, match=r"im3.png is 32 x 48, and its camera 48 x 32"):
        read_source(colmap, None, TINY)
    images.rename(colmap / "elsewhere")
    with pytest.raises(BadMedia, match=r"cameras of im0.png and others, and these pictures"):
        read_source(colmap, None, TINY)
    with pytest.raises(BadMedia, match="no such file"):
        read_source(colmap / "nothing", None, TINY)
    with pytest.raises(UsageError, match="--clip"):
        read_source(colmap, "abc", TINY)


# --- a clip of a manifest --------------------------------------------------------------------------------------------


def test_frames_with_a_pose_are_read_from_the_video(clip):
    posed, track = clip()
    views, points, scale_kind = read_source(posed, None, TINY)
    assert scale_kind == "relative" and points.source == "random"
    assert views.names == tuple(f"frame {i}" for i in range(5, 25) if i != 9)
    np.testing.assert_allclose(views.world_from_cam, track.world_from_cam[track.pose_valid], atol=1e-6)
    np.testing.assert_allclose(views.intrinsics, track.intrinsics[track.pose_valid])


def test_cropped_bent_and_shrunk_frames_are_those_of_a_pinhole(clip):
    """A ray of the view's pinhole meets the pixel that the clip's bent lens, in the whole picture, shows there."""
    bend = (-0.12, 0.03)
    posed, track = clip(crop=(40, 0, 560, 480), distortion_model="opencv_radial", distortion=bend)
    views, _, _ = read_source(posed, None, replace(TINY, max_side=280))
    assert views.pictures[0].shape == (240, 280, 3)
    v, u = np.mgrid[8:232:20, 8:272:20]
    k = views.intrinsics[0]
    ray = np.stack([(u - k[2]) / k[0], (v - k[3]) / k[1]], -1)
    wanted = distort(ray, *bend) * track.intrinsics[0, :2] + track.intrinsics[0, 2:]
    check_places(place_of(views.pictures[0].astype(float))[v, u], wanted)


def test_metric_depth_gives_first_points(clip):
    posed, _ = clip(metric=True, depth=3.0)
    views, points, scale_kind = read_source(posed, None, TINY)
    assert scale_kind == "metric" and points.source == "depth" and len(points) == 300
    depths = np.stack([(points.xyz - pose[:3, 3]) @ pose[:3, 2] for pose in views.world_from_cam])
    np.testing.assert_allclose(np.abs(depths - 3).min(0), 0, atol=1e-3)
    # the colour of a point says which pixel it came from
    pixel = place_of(255 * points.rgb[None].astype(float))[0]
    pose = views.world_from_cam[np.abs(depths - 3).argmin(0)]
    p = np.einsum("nij,ni->nj", pose[:, :3, :3], points.xyz - pose[:, :3, 3])
    check_places(pixel, 500 * p[:, :2] / p[:, 2:] + [319.5, 239.5])


def test_depth_in_another_unit_than_the_poses_is_left_out(clip):
    posed, _ = clip(depth=3.0)
    assert read_source(posed, None, TINY)[1].source == "random"


def test_clips_that_cannot_be_trained_on_are_told(clip, tmp_path, monkeypatch):
    posed, _ = clip()
    with pytest.raises(UsageError, match=r"has 0 clips with an id that begins with zz: name one with --clip ID"):
        read_source(posed, "zz", TINY)
    with open(tmp_path / "take.mp4", "ab") as video:
        video.write(bytes(8))
    with pytest.raises(BadMedia, match="is not what the row was made from"):
        read_source(posed, None, TINY)
    monkeypatch.setenv("LONGTAKE_FILES_IN", str(tmp_path))
    with pytest.raises(BadMedia, match=r"is not the file that clip .* was made from"):
        read_source(posed, None, TINY)


# --- refusals and the command ----------------------------------------------------------------------------------------


def test_the_machine_is_asked_before_anything_is_read(tmp_path):
    def none(config, device):
        raise MissingPart("no GPU here")

    with pytest.raises(MissingPart, match="no GPU here"):
        fit_scene(tmp_path / "nothing", out=tmp_path / "a.ply", config=TINY, engine=none)
    with pytest.raises(UsageError, match=r"--out .*a.obj: scenes are written as \.ply"):
        fit_scene(tmp_path / "nothing", out=tmp_path / "a.obj", config=TINY, engine=none)
    assert not list(tmp_path.iterdir())


def test_full_memory_of_the_gpu_is_told(tmp_path, colmap):
    def full(params, camera, sh_degree):
        raise torch.OutOfMemoryError("CUDA out of memory.\nAnd more")

    with pytest.raises(MissingPart, match=r"--strategy mcmc --max-gaussians N.*now 1600.*scene.ply.fit"):
        fit_scene(colmap, out=tmp_path / "scene.ply", config=TINY, device="cpu", engine=lambda *_: (full, Recorder()))


def test_exit_code_3_without_a_gpu_before_anything_is_read(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["longtake", "fit", str(tmp_path / "nothing"), "--out", str(tmp_path / "a.ply")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
    assert "finds no NVIDIA GPU" in capsys.readouterr().err


def test_the_command_prints_what_the_report_says(tmp_path, colmap, monkeypatch, capsys):
    from longtake.pipelines import fit as pipeline

    train = pipeline.fit_scene

    def on_cpu(*args, **options):
        return train(*args, **options | {"device": "cpu", "engine": engine})

    monkeypatch.setattr(pipeline, "fit_scene", on_cpu)
    words = ["fit", str(colmap), "--out", str(tmp_path / "a.spz"), "--steps", "3", "--set", "fit.train.sh_degree=0"]
    monkeypatch.setattr(sys, "argv", ["longtake", *words, "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 0
    facts = json.loads(said.out)
    assert facts["steps"] == 3 and facts["gaussians"] == 60
    assert "step 0: splats 60, PSNR dB " in said.err and "step 3: splats 60, loss " in said.err
    assert read_scene(tmp_path / "a.spz").gaussians.sh_degree == 0
