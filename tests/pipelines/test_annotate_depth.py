"""Depth and known poses on their way through a run: what is asked beforehand, what a row says, what is not repeated.

Networks are tiny ones of random weights, fetched and loaded like the published ones, or functions that know an answer.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longtake.annotate.depth import OutOfDeviceMemory, SingleGeometry, WindowGeometry
from longtake.annotate.depth_clip import DepthClip, open_depth
from longtake.annotate.given import GivenPoses
from longtake.annotate.quality import Quality, measure_track
from longtake.annotate.shot_depth import Backends
from longtake.datasets.manifest import open_manifest
from longtake.model import hub, networks
from longtake.model.moge2 import config as moge2_config
from longtake.model.moge2 import focal
from longtake.model.moge2.config import parse_config
from longtake.model.moge2.network import MoGe2
from longtake.model.networks import File
from longtake.model.pi3x import config as pi3x_config
from longtake.model.pi3x.network import Pi3X
from longtake.pipelines import annotate as pipeline
from longtake.pipelines.annotate import AnnotateConfig, Config, annotate
from longtake.pipelines.config import MissingPart, UsageError, resolve
from longtake.pipelines.stages import temporary_name
from longtake.records import Shot, VideoInfo

from ..model.test_moge2 import TINY as TINY_BACKBONE
from ..model.test_moge2 import tiny_config
from ..model.test_pi3x import TINY
from .test_annotate import FRAMES, HEIGHT, WIDTH, still_track, write_video

PI3X = replace(TINY, encoder_depth=1, decoder_depth=2, pose_blocks=(), head_depth=1)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No weights are here but a test's own."""
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def adopt(monkeypatch, name: str, file: Path) -> None:
    """Put a file on record as a network's fetched weights, its licence accepted."""
    data = file.read_bytes()
    declared = File(file.name, len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(networks.NETWORKS, name, replace(networks.NETWORKS[name], files=(declared,)))
    hub.accept(networks.NETWORKS[name])
    hub.adopt_folder(networks.NETWORKS[name], file.parent)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Checkpoints of both networks in the published layout, fetched."""
    monkeypatch.setattr(pi3x_config, "PI3X", PI3X)
    monkeypatch.setitem(moge2_config.BACKBONES, "dinov2_tiny14", TINY_BACKBONE)
    monkeypatch.setattr(focal, "MAX_SIGMA", 1e9)  # random points tell a focal length only by a lax measure
    (tmp_path / "weights").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        save_file(Pi3X(PI3X, multimodal=False).state_dict(), tmp_path / "weights" / "model.safetensors")
        torch.manual_seed(3)
        moge2 = MoGe2(parse_config(tiny_config()))
        with torch.no_grad():  # its metres come near to those of the other
            moge2.state_dict()["scale_head.2.bias"].add_(2.86)
        torch.save({"model_config": tiny_config(), "model": moge2.state_dict()}, tmp_path / "weights" / "model.pt")
    adopt(monkeypatch, "pi3x", tmp_path / "weights" / "model.safetensors")
    adopt(monkeypatch, "moge2-vits-normal", tmp_path / "weights" / "model.pt")


def only_row(out: Path) -> dict:
    (row,) = open_manifest(out).rows()
    return row


# ---- before any work ---------------------------------------------------------------------------------------------


def test_without_weights_nothing_begins_and_the_command_to_give_is_named(tmp_path, longtake):
    video = write_video(tmp_path / "v.mp4")
    ask = ("annotate", video, "--out", tmp_path / "m", "--jobs", 0)
    code, out, err = longtake(*ask, "--engine", "pi3x")
    assert (code, out) == (3, "") and "longtake weights fetch pi3x --accept-licence" in err
    code, out, err = longtake(*ask, "--metric", "moge2")
    assert (code, out) == (3, "") and "longtake weights fetch moge2-vitl-normal" in err
    code, out, err = longtake(*ask, "--engine", "pi3x", "--metric", "moge2")
    assert code == 3 and "fetch pi3x" in err and "fetch moge2" in err and "--engine classical" in err
    hub.accept(networks.NETWORKS["pi3x"])
    code, out, err = longtake(*ask, "--engine", "pi3x")
    assert code == 3 and "the weights of pi3x are not here: longtake weights fetch pi3x" in err
    assert not (tmp_path / "m").exists()


def test_devices_are_checked_beforehand(tmp_path, longtake, weights):
    video = write_video(tmp_path / "v.mp4")
    ask = ("annotate", video, "--out", tmp_path / "m", "--jobs", 0, "--metric", "moge2", "--device")
    code, _, err = longtake(*ask, "tpu")
    assert code == 2 and "auto, cpu, cuda or cuda:1, not 'tpu'" in err
    code, _, err = longtake(*ask, f"cuda:{torch.cuda.device_count()}")
    assert code == 3 and "Without: --device cpu" in err
    assert not (tmp_path / "m").exists()


def test_settings_that_contradict_each_other(tmp_path):
    for given, words in (
        ({"given_depth": "d"}, "given depth need a scale"),
        ({"given_poses_scale": "metric"}, "given poses need a scale"),
        ({"given_depth": "d", "given_depth_scale": "relative", "engine": "pi3x"}, "takes the place of"),
        ({"given_depth": "d", "given_depth_scale": "metric", "metric": "moge2"}, "metric already"),
        ({"depth.vram_gib": -1.0}, "vram_gib is above 0"),
        ({"depth.batch": 0}, "at least 1"),
    ):
        with pytest.raises(UsageError, match=words):
            resolve(Config, given={f"annotate.{name}": value for name, value in given.items()})
    one = AnnotateConfig(given_poses=str(tmp_path / "p.npy"), given_poses_scale="metric")
    a, b = write_video(tmp_path / "a.mp4"), write_video(tmp_path / "b.mp4", 1)
    with pytest.raises(UsageError, match=r"--poses .*p.npy: one for 2 inputs. Put \{stem\}"):
        annotate(a, b, out=tmp_path / "m", config=one, jobs=0)
    with pytest.raises(UsageError, match=r"--poses .*p.npy: no such file"):
        annotate(a, out=tmp_path / "m", config=one, jobs=0)
    with pytest.raises(MissingPart, match="weights fetch pi3x"):
        annotate(a, out=tmp_path / "m", config=AnnotateConfig(engine="pi3x"), jobs=0)
    assert not (tmp_path / "m").exists()


# ---- networks as they are fetched --------------------------------------------------------------------------------


# what random weights see agrees with nothing: the limits that would refuse it are off
LAX = [
    *("--set", "annotate.depth.pixel_limit=1200", "--set", "annotate.depth.window.edge_jump=1e9"),
    *("--set", "annotate.depth.window.length=6", "--set", "annotate.depth.window.overlap=2"),
    *("--set", "annotate.depth.window.max_spread=1e9", "--set", "annotate.depth.window.max_unknown=1.0"),
    *("--set", "annotate.depth.window.min_pixels=1", "--set", "annotate.depth.window.min_confidence=0.0"),
    *("--set", "annotate.depth.scale.edge_ratio=1e9", "--set", "annotate.depth.scale.min_pixels=1"),
]


def test_fetched_networks_annotate(tmp_path, longtake, weights):
    """The whole command on random weights: depth gets as far as the row, and what is refused is so for a reason."""
    out = tmp_path / "m"
    ask = ("annotate", write_video(tmp_path / "v.mp4"), "--out", out, "--jobs", 0, "--no-report", *LAX)
    code, printed, err = longtake(*ask, "--engine", "pi3x", "--metric", "moge2", "--device", "cpu", "--vram", 8)
    row = only_row(out)
    assert "Traceback" not in err and "pi3x: weights under CC-BY-NC-4.0, non-commercial use only" in err
    assert code == (1 if row["status"] == "failed" else 0), (printed, err)
    assert row["error_stage"] in (None, "track"), row["error"]  # nonsense may not fit what the pictures show
    assert json.loads(row["timings_s"])["depth"] > 0
    pinned = networks.NETWORKS["pi3x"].revision
    assert json.loads(row["model_revisions"])["pi3x"] == pinned
    assert json.loads(row["model_licenses"])["pi3x"].startswith("CC-BY-NC-4.0, accepted 2")
    assert f"pi3x@{pinned}" in json.loads(row["stage_versions"])["depth"]
    (about,) = (json.loads(path.read_text()) for path in (out / "runs").glob("*/run.json"))
    assert [facts["network"] for facts in about["networks"]] == ["pi3x", "moge2-vits-normal"]
    (artifact,) = (out / "artifacts").glob("*/*/file0.zip")
    clip = open_depth(artifact)
    assert clip.source == "pi3x+moge2" and clip.metric and len(clip.frame_index) == FRAMES
    depth, confidence = clip.read(FRAMES - 1)
    assert np.isfinite(depth).any() and confidence.max() > 0
    if row["status"] == "ok":
        assert row["scale_kind"] == "metric" and row["scale_source"] == "pi3x+moge2"
        assert (out / row["depth_uri"]).samefile(artifact)


def test_networks_that_contradict_each_other_fail_the_clip(tmp_path, longtake, weights, monkeypatch):
    """The same with 300 times as many metres: a row with the reason, and no file left over."""
    assumed = pipeline.load_backends

    def larger(names, config):
        found = assumed(names, config)
        assert found.single is not None

        def single(size, fov):
            def see(pictures):
                answer = found.single(size, fov)(pictures)  # type: ignore[misc]
                return replace(answer, depth=300 * answer.depth)

            return see

        return replace(found, single=single)

    monkeypatch.setattr(pipeline, "load_backends", larger)
    out = tmp_path / "m"
    ask = ("annotate", write_video(tmp_path / "v.mp4"), "--out", out, "--jobs", 0, "--no-report", *LAX)
    code, _, _ = longtake(*ask, "--engine", "pi3x", "--metric", "moge2")
    row = only_row(out)
    assert code == 1 and row["filter_reasons"] == ["metric_disagreement"] and row["error_stage"] == "depth"
    assert row["depth_uri"] is None and row["luma"] > 0  # what its pictures say is kept
    assert not list((out / "artifacts").rglob("*.zip"))


# ---- networks that know an answer --------------------------------------------------------------------------------


def sees_a_wall(most: int = 99):
    """In Pi3X's place: a wall 2 units away, and a camera that moves 0.1 to the right from frame to frame."""

    def see(pictures):
        if len(pictures) > most:
            raise OutOfDeviceMemory("full")
        frames, height, width = pictures.shape[:3]
        v, u = np.mgrid[:height, :width]
        points = 2 * np.stack([(u - (width - 1) / 2) / width, (v - (height - 1) / 2) / width, np.ones_like(u)], -1)
        cameras = np.tile(np.eye(4), (frames, 1, 1))
        cameras[:, 0, 3] = 0.1 * np.arange(frames)
        return WindowGeometry(
            cam_points=np.tile(points.astype(np.float32), (frames, 1, 1, 1)),
            world_from_cam=cameras,
            confidence=np.ones((frames, height, width), np.float32),
        )

    return see


def measures_a_wall(size, fov):
    """In MoGe-2's place: a wall 6 metres away."""

    def see(pictures):
        depth = np.full((len(pictures), size[1], size[0]), 6, np.float32)
        return SingleGeometry(depth=depth, focal_widths=np.ones(len(pictures)))

    return see


class Tracker:
    """In the place of tracking: keeps what it was given, and gives a camera that stays."""

    def __init__(self) -> None:
        self.depth: list[DepthClip | None] = []
        self.poses: list[GivenPoses | None] = []

    def __call__(self, info: VideoInfo, shot: Shot, config, *, depth=None, poses=None, **_):
        self.depth.append(depth)
        self.poses.append(poses)
        metric = (depth is not None and depth.metric) or (poses is not None and poses.metric)
        return replace(still_track(info, shot), scale_kind="metric" if metric else "relative")


@pytest.fixture
def tracker(monkeypatch, weights):
    """Every video is one shot, networks know an answer, and no pictures are measured."""

    def one_shot(info: VideoInfo, *_, **__):
        crop = (0, 0, info.width, info.height)
        return [Shot(index=0, start=0, stop=info.num_frames, crop=crop, overlay=None, boundary="start")]

    def known(names, config):
        return Backends(
            window=sees_a_wall() if "pi3x" in names else None,
            single=measures_a_wall if any(name.startswith("moge2") for name in names) else None,
        )

    stand_in = Tracker()
    monkeypatch.setattr(pipeline, "find_shots", one_shot)
    monkeypatch.setattr(pipeline, "estimate_track", stand_in)
    monkeypatch.setattr(pipeline, "load_backends", known)
    monkeypatch.setattr(
        pipeline,
        "measure",
        lambda i, s, track, c, **_: Quality(clip=measure_track(track, c) if track else {}, frames={}),
    )
    return stand_in


def annotated(*videos: Path, out: Path, **settings: Any):
    settings = {"depth.pixel_limit": 5000, **settings}
    config = resolve(Config, given={f"annotate.{name}": value for name, value in settings.items()}).annotate
    return annotate(*videos, out=out, config=config, jobs=0, report=False)


def test_a_row_tells_of_its_depth(tmp_path, tracker):
    run = annotated(write_video(tmp_path / "v.mp4"), out=tmp_path / "m", engine="pi3x", metric="moge2")
    row = only_row(run.out)
    (depth,) = tracker.depth
    assert depth is not None and depth.scale is not None and depth.path.is_file()
    assert depth.factor == pytest.approx(np.full(FRAMES, 3.0), rel=1e-3)
    assert depth.world_from_cam is not None and depth.world_from_cam[-1, 0, 3] == pytest.approx(3.3, rel=1e-3)
    assert depth.focal_px is not None and depth.focal_px[:, 0] == pytest.approx(np.full(FRAMES, WIDTH), rel=1e-3)
    assert row["status"] == "ok" and row["scale_source"] == "pi3x+moge2"
    assert row["depth_uri"] == f"sidecars/{row['clip_id']}/depth.zip" and "in metres" in row["depth_encoding"]
    assert run.manifest.validate() == []
    again = open_depth(run.out / row["depth_uri"])
    assert np.nanmedian(again.read(3)[0]) == pytest.approx(6, rel=1e-3)
    formula = row["depth_encoding"].partition("= factor[i] * ")[2].partition(" for frame")[0]
    with zipfile.ZipFile(run.out / row["depth_uri"]) as archive:
        code = cv2.imdecode(np.frombuffer(archive.read("000000.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    stored = eval(formula, {"exp": np.exp, "code": float(np.median(np.asarray(code)))})
    assert stored * again.factor[0] == pytest.approx(6, rel=1e-3)


def test_nothing_is_repeated_unless_something_changed(tmp_path, tracker, monkeypatch):
    video = write_video(tmp_path / "v.mp4")
    ask: dict[str, Any] = {"out": tmp_path / "m", "engine": "pi3x", "metric": "moge2"}
    assert annotated(video, **ask).committed == 1
    assert annotated(video, **ask).committed == 0 and len(tracker.depth) == 1
    # another track of the same depth: its file is found, not made again
    monkeypatch.setattr(pipeline, "load_backends", lambda names, config: pytest.fail("depth was on record"))
    ask["track.max_side"] = 320
    assert annotated(video, **ask).committed == 1
    assert len(tracker.depth) == 2 and len(list((tmp_path / "m" / "artifacts").rglob("*.zip"))) == 1


def test_other_weights_make_other_rows(tmp_path, tracker, monkeypatch):
    video = write_video(tmp_path / "v.mp4")
    assert annotated(video, out=tmp_path / "m", metric="moge2").committed == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.pt").write_bytes((tmp_path / "weights" / "model.pt").read_bytes() + b" ")
    hub.forget(networks.NETWORKS["moge2-vits-normal"])
    with monkeypatch.context() as patch:
        adopt(patch, "moge2-vits-normal", tmp_path / "other" / "model.pt")
        moved = replace(networks.NETWORKS["moge2-vits-normal"], revision="0" * 40)
        patch.setitem(networks.NETWORKS, "moge2-vits-normal", moved)
        hub.forget(moved)
        hub.adopt_folder(moved, tmp_path / "other")
        assert annotated(video, out=tmp_path / "m", metric="moge2").committed == 1
    row = only_row(tmp_path / "m")
    assert json.loads(row["model_revisions"]) == {"moge2-vits-normal": "0" * 40} and len(tracker.depth) == 2


def test_the_scale_alone_asks_few_frames_and_no_cameras(tmp_path, tracker):
    run = annotated(write_video(tmp_path / "v.mp4"), out=tmp_path / "m", metric="moge2")
    (depth,) = tracker.depth
    assert depth is not None and depth.frame_index.tolist() == [0, 5, 10] and depth.world_from_cam is None
    row = only_row(run.out)
    assert row["scale_source"] == "moge2" and "pi3x" not in row["model_revisions"]


def test_what_memory_asked_for_is_said(tmp_path, tracker, monkeypatch):
    monkeypatch.setattr(pipeline, "load_backends", lambda names, config: Backends(window=sees_a_wall(most=4)))
    run = annotated(write_video(tmp_path / "v.mp4"), out=tmp_path / "m", engine="pi3x")
    row = only_row(run.out)
    assert tracker.depth[-1].flags == ("shorter_depth_windows",) and row["scale_source"] is None
    assert "a unit of its own, not that of c2w" in row["depth_encoding"]
    monkeypatch.setattr(pipeline, "load_backends", lambda names, config: Backends(window=sees_a_wall(most=1)))
    row = only_row(annotated(write_video(tmp_path / "w.mp4", 1), out=tmp_path / "n", engine="pi3x").out)
    assert row["filter_reasons"] == ["out_of_memory"] and row["error_stage"] == "depth"
    assert len(tracker.depth) == 1  # the refused clip was not tracked


# ---- given -------------------------------------------------------------------------------------------------------


def write_depth(path: Path, value: float = 2.0) -> Path:
    np.save(path, np.full((FRAMES, HEIGHT // 4, WIDTH // 4), value, np.float32))
    return path


def write_poses(path: Path, step: float = 0.1, frames: int = FRAMES) -> Path:
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    c2w[:, 0, 3] = step * np.arange(frames)
    np.save(path, c2w)
    return path


def test_given_depth_becomes_the_clips(tmp_path, tracker):
    video, depth = write_video(tmp_path / "v.mp4"), write_depth(tmp_path / "d.npy")
    ask = {"out": tmp_path / "m", "given_depth": str(depth)}
    row = only_row(annotated(video, **ask, given_depth_scale="metric").out)
    assert row["scale_source"] == "given" and row["model_revisions"] is None and "in metres" in row["depth_encoding"]
    row = only_row(annotated(video, **ask, given_depth_scale="relative", metric="moge2").out)
    assert row["scale_source"] == "given+moge2"
    assert tracker.depth[-1].factor == pytest.approx(np.full(FRAMES, 3.0), rel=1e-3)
    # a file that changes under its name makes the row anew
    write_depth(depth, 4.0)
    assert annotated(video, **ask, given_depth_scale="relative", metric="moge2").committed == 1
    assert tracker.depth[-1].factor == pytest.approx(np.full(FRAMES, 1.5), rel=1e-3)


def test_given_poses_reach_the_tracker(tmp_path, tracker):
    video, poses = write_video(tmp_path / "v.mp4"), write_poses(tmp_path / "p.npy")
    ask = {"out": tmp_path / "m", "given_poses": str(poses), "given_poses_scale": "metric"}
    row = only_row(annotated(video, **ask).out)
    (given,) = tracker.poses
    assert given is not None and given.metric and given.world_from_cam[3, 0, 3] == pytest.approx(0.3)
    assert tracker.depth == [None] and row["scale_source"] == "given poses" and row["depth_uri"] is None
    assert annotated(video, **ask).committed == 0
    write_poses(poses, step=0.2)
    assert annotated(video, **ask).committed == 1 and tracker.poses[-1].world_from_cam[3, 0, 3] == pytest.approx(0.6)


def test_each_input_has_its_own_files(tmp_path, tracker):
    videos = [write_video(tmp_path / name / "v.mp4", seed) for seed, name in enumerate("ab")]
    for folder, step in (("a", 0.1), ("b", 0.7)):
        write_poses(tmp_path / folder / "v.npy", step)
    ask = {"given_poses": "{folder}/{stem}.npy", "given_poses_scale": "relative"}
    run = annotated(*videos, out=tmp_path / "m", **ask)
    assert run.ok == 2 and sorted(p.world_from_cam[1, 0, 3] for p in tracker.poses) == pytest.approx([0.1, 0.7])


def test_given_files_that_do_not_fit_fail_their_clip(tmp_path, tracker):
    videos = [write_video(tmp_path / f"{name}.mp4", seed) for seed, name in enumerate("abc")]
    write_poses(tmp_path / "a.npy")
    write_poses(tmp_path / "b.npy", frames=FRAMES - 1)
    ask = {"given_poses": "{folder}/{stem}.npy", "given_poses_scale": "metric"}
    run = annotated(*videos, out=tmp_path / "m", **ask)
    reasons = {Path(row["source_uri"]).stem: row["filter_reasons"] for row in run.manifest.rows()}
    assert reasons == {"a": [], "b": ["poses_do_not_fit"], "c": ["poses_unreadable"]}
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    ask = {"given_depth": str(tmp_path / "a.zip"), "given_depth_scale": "metric"}
    row = only_row(annotated(videos[0], out=tmp_path / "n", **ask).out)
    assert row["filter_reasons"] == ["depth_unreadable"] and row["error_stage"] == "depth"
    assert not list((tmp_path / "n").rglob(".tmp-*"))


def test_files_that_killed_processes_left_are_swept(tmp_path, tracker):
    video = write_video(tmp_path / "v.mp4")
    annotated(video, out=tmp_path / "m")
    script = "from longtake.pipelines.stages import temporary_name as name; print(name('depth', '.zip'))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    left, ours = (tmp_path / "m" / "artifacts" / name for name in (ended, temporary_name("depth", ".zip")))
    left.touch()
    ours.touch()
    annotated(video, out=tmp_path / "m")
    assert not left.exists() and ours.exists()


def test_given_files_in_a_worker_process(tmp_path, longtake):
    """All of it as a user runs it: jobs travel to another process, depth comes back as a file."""
    video = write_video(tmp_path / "v.mp4")
    write_depth(tmp_path / "d.npy")
    write_poses(tmp_path / "p.npy")
    ask = ("annotate", video, "--out", tmp_path / "m", "--no-report", "--json")
    ask += ("--depth", tmp_path / "d.npy", "--depth-scale", "metric")
    code, out, err = longtake(*ask, "--poses", tmp_path / "p.npy", "--poses-scale", "metric")
    row = only_row(tmp_path / "m")
    assert row["error_stage"] in (None, "track") and "internal_error" not in row["filter_reasons"], row["error"]
    assert json.loads(out)["clips"] == 1 and code == (1 if row["status"] == "failed" else 0), err
    assert len(list((tmp_path / "m" / "artifacts").rglob("file0.zip"))) == 1
