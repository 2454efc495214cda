"""From a picture or a manifest's first frames to videos and rows, with small random networks on the CPU."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longtake.annotate.video import encode_rgb, pictures, probe
from longtake.datasets import schema
from longtake.datasets.manifest import create_manifest, open_manifest
from longtake.datasets.readers import read_clip
from longtake.datasets.report import write_report
from longtake.geometry import invert_pose
from longtake.model.sana_wm.actions import steer
from longtake.model.sana_wm.generate import Parts, Settings
from longtake.model.sana_wm.network import SanaWM
from longtake.model.sana_wm.path import given_path
from longtake.model.sana_wm.plan import plan
from longtake.model.sana_wm.text import TOKENS, Text
from longtake.model.sana_wm.vae import Vae
from longtake.pipelines import asked as asking
from longtake.pipelines import generate as pipeline
from longtake.pipelines import ledger, path_plan
from longtake.pipelines.asked import PathConfig, read_npy, read_picture, read_poses, read_prompt
from longtake.pipelines.cli import app
from longtake.pipelines.config import MissingPart, RunStopped, UsageError
from longtake.pipelines.generate import GenerateConfig, Model, asked_track, generate
from longtake.pipelines.ledger import Run
from longtake.pipelines.overlay import Keys, shown_keys
from longtake.pipelines.planning import plan_run
from longtake.records import BadMedia, LongtakeError, Rejected

from ..spy import spied
from ..tiny_sana_wm import NET as DEEPER
from ..tiny_sana_wm import VAE, seeded

NET = replace(DEEPER, depth=2, softmax_blocks=(1,), plucker_blocks=2)
WIDTH, HEIGHT = 128, 96


class Words:
    """In the text encoder's place: numbers drawn from the text, ten characters a token."""

    def prompt(self, text: str) -> Text:
        states = torch.zeros(1, TOKENS, NET.text_width)
        count = min(TOKENS, len(text) // 10 + 1)
        states[:, :count] = torch.randn(
            1, count, NET.text_width, generator=torch.Generator().manual_seed(sum(map(ord, text)))
        )
        return Text(states=states, mask=torch.arange(TOKENS)[None] < count, lost_tokens=max(0, len(text) // 10 - 298))

    negative = prompt


def tiny(device: str, dtype: torch.dtype) -> Parts:
    return Parts(text=Words, vae=lambda: seeded(Vae(VAE)), net=lambda: seeded(SanaWM(NET)))


TINY = Model(
    parts=tiny,
    settings=Settings(frames=17, width=WIDTH, height=HEIGHT, steps=2),
    networks=list,
    plan=partial(plan, net=NET, vae=VAE, text_parameters=1000, weights=()),
)
LENS = np.array([130.0, 130, 80, 60])


@pytest.fixture(autouse=True)
def model(monkeypatch, tmp_path):
    monkeypatch.setitem(pipeline.MODELS, "tiny", lambda: TINY)
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    pipeline._resident.cache_clear()


@pytest.fixture
def picture(tmp_path) -> Path:
    rgb = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (160, 120))
    path = tmp_path / "house.png"
    cv2.imwrite(str(path), rgb)
    return path


def config(**changes: Any) -> GenerateConfig:
    path: dict[str, Any] = {"action": "w-8,wd-8", "intrinsics": "130"} | changes.pop("path", {})
    given: dict[str, Any] = {"model": "tiny", "prompt": "a red house", "path": PathConfig(**path)}
    given |= changes
    return GenerateConfig(**given)


def run(out: Path, picture: Path | None = None, /, **options: Any) -> Run:
    own: dict[str, Any] = {"config": config()}
    if picture is not None:
        own["image"] = str(picture)
    given: dict[str, Any] = {**own, "report": False, **options}
    return generate(out=out, jobs=0, **given)


def command(*words: object) -> int:
    return app(
        ["generate", "--model", "tiny", "--jobs", "0", "--quiet", "--no-report", *map(str, words)],
        result_action="return_value",
    )


def counted(monkeypatch) -> list[str]:
    """Names of the stages' slow functions as they are called."""
    return spied(monkeypatch, pipeline, "denoise", "encode_rgb", "measure")


# ---- one picture -----------------------------------------------------------------------------------------------------


def test_a_picture_becomes_a_video_and_a_row(picture, tmp_path):
    out = tmp_path / "out"
    found = run(out, picture, config=config(keep_latents=True, seed=7), name="walk", report=True)
    assert (found.clips, found.ok, found.failed) == (1, 1, 0)
    (row,) = found.manifest.rows()
    assert (row["origin"], row["status"], row["prompt"], row["seed"]) == ("generated", "ok", "a red house", 7)
    assert (row["num_frames"], row["width"], row["height"], row["fps_num"], row["fps_den"]) == (17, 128, 96, 16, 1)
    assert (row["pose_source"], row["scale_kind"], row["focal_status"]) == ("asked", "metric", "given")
    assert row["group_id"] == row["source_sha256"] == asking.file_sha256(picture)
    assert row["action_dsl"] == "w-8,wd-8" and row["action_keys"][:2] == ["", "w"] and row["action_keys"][-1] == "wd"
    told = json.loads(row["generation_config"])
    assert (told["steps"], told["model"], told["intrinsics_from"]) == (2, "tiny", "given")
    assert json.loads(row["generation_stats"])["passes"] == 4
    clip = read_clip(row)
    np.testing.assert_allclose(clip.world_from_cam, steer("w-8,wd-8"), atol=1e-6)
    np.testing.assert_allclose(clip.intrinsics[:, 0], 130 * 0.8)  # 160 x 120 is scaled to 128 x 96
    assert found.manifest.validate() == []
    clean, shown = probe(out / row["uri"]), probe(out / "walk.mp4")
    assert clean.num_frames == shown.num_frames == 17 and clean.sha256 != shown.sha256
    (_, a), (_, b) = next(pictures(clean)), next(pictures(shown))
    same, keys = (np.abs(a[part].astype(int) - b[part]).mean() for part in (np.s_[:48], np.s_[-20:, :34]))
    assert same < 10 and keys > 3 * same, "noise that is encoded twice, and keys"
    assert (out / "walk.plan.svg").read_text().startswith("<svg")
    kept = load_file(out / "walk.latents.safetensors")
    assert kept["latents"].shape == (1, 8, 3, 3, 4) and kept["world_from_cam"].shape == (17, 4, 4)
    assert found.report is not None and "a red house" in found.report.read_text()


def test_upstreams_flags_in_both_spellings(picture, tmp_path, capsys):
    np.save(tmp_path / "k.npy", np.array([130.0, 130, 80, 60]))
    np.save(tmp_path / "path.npy", steer("w-40").astype(np.float32))
    (tmp_path / "prompt.txt").write_text("eine rote Hütte\n", encoding="utf-8")
    known = ("--image", picture, "--prompt", tmp_path / "prompt.txt", "--intrinsics", tmp_path / "k.npy")
    old = "--num_frames 9 --step 1 --cfg_scale 1 --flow_shift 8 --no_refiner --offload_vae --no_action_overlay"
    assert command(*known, "--camera", tmp_path / "path.npy", "--output_dir", tmp_path / "a", *old.split()) == 0
    new = "--num-frames 9 --steps 1 --cfg-scale 1 --flow-shift 8 --no-refiner --offload-vae --no-action-overlay"
    assert command(*known, "--camera", tmp_path / "path.npy", "--output-dir", tmp_path / "b", *new.split()) == 0
    (a,), (b,) = (open_manifest(tmp_path / name).rows() for name in "ab")
    assert a["clip_id"] == b["clip_id"] and a["sha256"] == b["sha256"] and a["prompt"] == "eine rote Hütte"
    assert a["num_frames"] == 9 and a["negative_prompt"] is None
    assert (tmp_path / "a" / "output.mp4").read_bytes() == (tmp_path / "a" / a["uri"]).read_bytes()
    assert "video:" in capsys.readouterr().out
    words = ("--action", "w-8", "--translation_speed", 0.1, "--rotation_speed_deg", 2, "--action-map", "first")
    assert (
        command(*known, *words, "--step", 1, "--output_dir", tmp_path / "c", "--sampling_algo", "flow_dpm-solver") == 0
    )
    (c,) = open_manifest(tmp_path / "c").rows()
    assert read_clip(c).world_from_cam[-1, 2, 3] == pytest.approx(0.8, abs=1e-4)
    assert json.loads(c["generation_config"])["sampler"] == "dpm"


@pytest.mark.parametrize(
    "words, answer",
    [
        ("--image {p} --prompt x --output-dir {o}", "where does the camera go"),
        ("--image {p} --action w-8 --output-dir {o}", "--prompt is missing"),
        ("--image {p} --prompt x --action w-8", "--output-dir is missing"),
        ("--prompt x --action w-8 --output-dir {o}", "--image, or first frames with --manifest"),
        ("--image {p} --manifest {o} --prompt x --action w-8 --output-dir {o}", "and not both"),
        ("--image {p} --prompt x --action w-8 --camera x.npy --output-dir {o}", "give one of them"),
        ("--image {p} --prompt x --camera x.npy --output-dir {o} --intrinsics 130", "no such file"),
        ("--image {p} --prompt x --camera x.npy --translation-speed 1 --output-dir {o}", "of --action's keys"),
        ("--image {p} --prompt x --action w-8 --where status=='ok' --output-dir {o}", "choose rows of --manifest"),
        ("--image {p} --prompt x --action w-8 --output-dir {o}", "nothing tells the camera"),
        ("--image {p} --prompt x --action w-8 --intrinsics 1x --output-dir {o}", "not f or fx,fy,cx,cy"),
        ("--image {p} --prompt x --action w-8 --intrinsics 13 --output-dir {o}", "both must lie between 25 and 120"),
        ("--image {p} --prompt x --action w-8 --intrinsics 900 --output-dir {o}", "both must lie between 25 and 120"),
        ("--image {p} --prompt x --action w-8 --intrinsics 130 --name a/b --output-dir {o}", "plain file name"),
        ("--image {p} --prompt x --action w-8 --intrinsics 130 --device tpu --output-dir {o}", "--device tpu"),
        ("--image {p} --prompt x --action w-8 --num-frames 0 --output-dir {o}", "frames 0"),
        ("--image {p} --prompt x --action w-8 --num-frames 4 --intrinsics 130 --output-dir {o}", "9 frames or more"),
        ("--image {p} --prompt x --action w-8 --cfg-scale 0.5 --output-dir {o}", "at least 1"),
        ("--image {p} --prompt x --action w-8 --fps 0 --output-dir {o}", "--fps 0"),
        ("--image {p} --prompt x --action w-8 --seed -1 --output-dir {o}", "--seed -1"),
        ("--image {p} --prompt x --action w-8 --speed 0 --intrinsics 130 --output-dir {o}", "--speed 0"),
        ("--image {p} --prompt x --action w-8 --sampling_algo self_forcing --output-dir {o}", "streaming networks"),
        ("--image {p} --prompt x --action w-8 --sampling_algo flow_eulr --output-dir {o}", "flow_euler_ltx"),
        ("--image {p} --prompt none.txt --action w-8 --output-dir {o}", "no such file"),
        ("--manifest {o} --clip-id x --where y --output-dir {o}", "no manifest|both choose"),
    ],
)
def test_misused_flags(picture, tmp_path, words, answer):
    made = words.format(p=picture, o=tmp_path / "o").split()
    with pytest.raises(LongtakeError, match=answer):
        command(*made)
    assert not (tmp_path / "o").exists(), "nothing is made by a command that was not understood"


@pytest.mark.parametrize("text", ["w", "w-0", "x-3", "none-0", "w-1.5", "", "w-99999999", "w-" + "9" * 5000])
def test_no_actions(picture, tmp_path, text):
    with pytest.raises(UsageError, match=r"is not KEYS-FRAMES|more than 100000 frames"):
        run(tmp_path / "o", picture, config=config(path={"action": text}))


def test_a_path_that_is_too_short_or_too_fast(picture, tmp_path):
    with pytest.raises(BadMedia, match="has 7 frames, and the shortest video 9"):
        run(tmp_path / "o", picture, config=config(path={"action": "w-6"}))
    motion = path_plan.Motion.of(given_path(steer("w-16"), LENS, width=160, height=120))
    assert motion.remarks() == [] and motion.words().startswith("17 frames, 1.1 s: the camera moves forward 0.40 m")
    fast = given_path(steer("wd-16")[::8], LENS, width=160, height=120)
    assert len(path_plan.Motion.of(fast).remarks()) == 2


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_of_every_kind(tmp_path):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32] = (200, 40, 20)  # red on the left
    bgr = rgb[..., ::-1]
    files = {
        "plain.png": bgr,
        "alpha.png": np.dstack([bgr, np.full((48, 64), 128, np.uint8)]),
        "deep.png": bgr.astype(np.uint16) * 257,
        "plain.JPEG": bgr,
        "deep.tif": bgr.astype(np.uint16) * 257,
    }
    for name, data in files.items():
        cv2.imwrite(str(tmp_path / name.lower()), data)
        got = read_picture(str(tmp_path / name.lower()))
        assert got.shape == (48, 64, 3) and got.dtype == np.uint8, name
        assert np.abs(got[24, 8].astype(int) - (200, 40, 20)).max() < 12, name
    cv2.imwrite(str(tmp_path / "grey.png"), rgb[..., 0])
    assert read_picture(str(tmp_path / "grey.png")).shape == (48, 64, 3)


def test_a_turned_and_a_cmyk_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32] = (200, 40, 20)
    exif = image.Exif()
    exif[274] = 6  # a quarter turn clockwise makes it upright
    image.fromarray(rgb).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    got = read_picture(str(tmp_path / "turned.jpg"))
    assert got.shape == (64, 48, 3) and got[8, 24, 0] > 150 > 40 > got[56, 24, 0]
    image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    got = read_picture(str(tmp_path / "cmyk.jpg"))
    assert got.shape == (48, 64, 3) and got[24, 8, 0] > 120 > got[24, 8, 2]


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("none.png", None, "unreadable"),
        ("empty.png", b"", "empty_file"),
        ("text.png", b"this is no picture", "undecodable"),
        ("cut.png", "cut", "undecodable"),
        ("one.png", (1, 1), "picture_size"),
        ("flat.png", (8, 500), "picture_size"),
        ("text.xyz", b"this is no picture", "not_a_video"),
        ("folder.png", "folder", "not_a_picture"),
    ],
)
def test_what_is_no_first_picture(tmp_path, name, data, reason):
    path = tmp_path / name
    if data == "folder":
        path.mkdir()
    elif data == "cut":
        _, png = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        path.write_bytes(png.tobytes()[:40])
    elif isinstance(data, tuple):
        cv2.imwrite(str(path), np.zeros((*data, 3), np.uint8))
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(BadMedia) as caught:
        run(tmp_path / "o", path)
    assert caught.value.reason == reason and name in str(caught.value)
    assert not (tmp_path / "o").exists()


# ---- prompts and arrays ----------------------------------------------------------------------------------------------


def test_prompts(tmp_path, picture):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa house \n")
    assert read_prompt(str(tmp_path / "bom.txt")) == "a house" and read_prompt(" a, b. ") == "a, b."
    (tmp_path / "latin.txt").write_bytes("Hütte".encode("latin-1"))
    (tmp_path / "big.txt").write_text("x" * 70_000)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    for name, words in (
        ("latin.txt", "not UTF-8 .byte 1 is 0xfc"),
        ("big.txt", "70000 bytes"),
        ("empty.txt", "empty"),
        ("binary.txt", "control character"),
    ):
        with pytest.raises(UsageError, match=words):
            read_prompt(str(tmp_path / name))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_prompt(os.fsdecode(b"H\xfctte"))
    with pytest.raises(UsageError, match="1200 characters"):
        read_prompt("x" * 70_000)


def test_a_prompt_with_more_tokens_than_room(picture, tmp_path):
    found = run(tmp_path / "o", picture, config=config(prompt="house " * 600))
    (row,) = found.manifest.rows()
    assert list(row["filter_reasons"]) == ["prompt_too_long"] and "--cut-prompt" in row["error"]
    assert run(tmp_path / "o", picture, config=config(prompt="house " * 600, cut_prompt=True)).ok == 1
    (row,) = found.manifest.rows()
    assert json.loads(row["generation_stats"])["lost_tokens"] > 0


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/longtake-was-here",)


@pytest.mark.parametrize(
    "data, words",
    [
        (np.array([Evil()], object), "pickles are never read"),
        ("pickle", "cannot be read as a .npy file"),
        (steer("w-20")[:, :3], r"append the row 0 0 0 1"),
        (np.eye(4), r"shape \[4, 4\], not \[F, 4, 4\]"),
        (steer("w-5"), "6 poses; the shortest video has 9"),
        (np.where(np.arange(21)[:, None, None] == 4, np.nan, steer("w-20")), "frame 4 has a number that is not finite"),
        (steer("w-20").transpose(0, 2, 1), "transposed"),
        (2 * steer("w-20"), "frame 0 is not a rigid motion"),
        (steer("w-20") * [[1, 1, 1, 1], [1, 1, 1, 1], [-1, -1, -1, 1], [1, 1, 1, 1]], "is not a rigid motion"),
        (np.array([["w"] * 4] * 4), "holds <U1, not numbers"),
        ("short", "which it does not have"),
        ("huge", "over 256 MiB"),
        ("noheader", "cannot be read as a .npy file"),
        ("text", "cannot be read as a .npy file"),
    ],
)
def test_broken_poses(picture, tmp_path, data, words):
    path = tmp_path / "path.npy"
    if isinstance(data, np.ndarray):
        np.save(path, data, allow_pickle=True)
    elif data == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif data == "text":
        path.write_text("1 0 0 0\n" * 40)
    else:
        np.save(path, steer("w-20"))
        whole = path.read_bytes()
        if data == "short":
            path.write_bytes(whole[:-100])
        elif data == "huge":
            path.write_bytes(whole.replace(b"(21, 4, 4), }", b"(2100000000, 4, 4), }"[:21])[:128])
        else:
            path.write_bytes(whole[:20])
    with pytest.raises(UsageError, match=words):
        run(tmp_path / "o", picture, config=config(path={"action": None, "camera": str(path)}))
    assert not (tmp_path / "o").exists() and not Path("/tmp/longtake-was-here").exists()


def test_poses_of_the_other_convention(tmp_path):
    np.save(tmp_path / "w2c.npy", invert_pose(steer("wd-20")))
    np.testing.assert_allclose(read_poses(tmp_path / "w2c.npy", "w2c"), steer("wd-20"), atol=1e-12)
    right = path_plan.Motion.of(given_path(steer("wd-20"), LENS, width=160, height=120)).words()
    wrong = path_plan.Motion.of(given_path(read_poses(tmp_path / "w2c.npy"), LENS, width=160, height=120)).words()
    assert "forward 0.5" in right and "12 deg right" in right
    assert "back 0.5" in wrong and "12 deg left" in wrong, "the plan tells what the file cannot"


def test_intrinsics_in_every_form(picture, tmp_path):
    k, matrix = np.array([130.0, 131, 80, 60]), np.array([[130.0, 0, 80], [0, 131, 60], [0, 0, 1]])
    for value in (k, matrix, np.tile(k, (17, 1)), np.tile(matrix, (17, 1, 1)), np.tile(k, (5, 1))):
        np.save(tmp_path / "k.npy", value)
        np.testing.assert_allclose(
            np.broadcast_to(asking.read_lens(str(tmp_path / "k.npy"), 17, 160, 120), (17, 4)), np.tile(k, (17, 1))
        )
    for value, words in (
        (np.ones(3), r"shape \[3\]"),
        (-k, "not all finite and above 0"),
        (k * [1, 1, 50, 1], "in its pixels"),
        (np.where(np.eye(3, k=1) > 0, 1.0, matrix), "a matrix is not"),
        (k * np.nan, "not all finite"),
    ):
        np.save(tmp_path / "k.npy", value)
        with pytest.raises(UsageError, match=words):
            run(tmp_path / "o", picture, config=config(path={"intrinsics": str(tmp_path / "k.npy")}))
    zoom = np.linspace(1, 8, 17)[:, None] * k
    np.save(tmp_path / "k.npy", np.concatenate([zoom[:, :2], np.tile(k[2:], (17, 1))], 1))
    with pytest.raises(BadMedia, match="along the path the lens reaches"):
        run(tmp_path / "o", picture, config=config(path={"intrinsics": str(tmp_path / "k.npy")}))


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing(picture, tmp_path, monkeypatch):
    first = run(tmp_path / "o", picture)
    before = (tmp_path / "o" / "output.mp4").stat().st_ino
    calls = counted(monkeypatch)
    again = run(tmp_path / "o", picture)
    assert calls == [] and (again.ok, again.committed) == (first.ok, 0) == (1, 0)
    assert (tmp_path / "o" / "output.mp4").stat().st_ino == before


def test_other_settings_keep_what_was_finished(picture, tmp_path, monkeypatch):
    run(tmp_path / "o", picture)
    run(tmp_path / "o", picture, config=config(seed=1))
    assert len(open_manifest(tmp_path / "o")) == 2 and open_manifest(tmp_path / "o").validate() == []
    calls = counted(monkeypatch)
    assert run(tmp_path / "o", picture, config=config(fps=8.0)).ok == 1
    assert "denoise" not in calls, "a film at another rate is of the same latents"
    rates = sorted((r["fps_num"], r["seed"]) for r in open_manifest(tmp_path / "o").rows())
    assert rates == [(8, 42), (16, 1), (16, 42)]


@pytest.mark.parametrize(
    "stage, repeated",
    [
        ("denoise", ["denoise", "encode_rgb", "measure", "encode_rgb"]),
        ("encode_rgb", ["encode_rgb", "measure", "encode_rgb"]),
        ("measure", ["measure", "encode_rgb"]),
    ],
)
def test_a_run_killed_between_stages_goes_on_there(picture, tmp_path, monkeypatch, stage, repeated):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, stage, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path / "o", picture)
    calls = counted(monkeypatch)
    assert run(tmp_path / "o", picture).ok == 1 and calls == repeated


def test_killed_between_artifact_and_manifest(picture, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger.Ledger, "commit", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path / "o", picture)
    calls = counted(monkeypatch)
    assert run(tmp_path / "o", picture).committed == 1 and calls == []


def test_a_full_disk_stops_the_run_and_keeps_the_latents(picture, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "encode_rgb", full)
        with pytest.raises(MissingPart, match=r"No space left on device\. Make room"):
            run(tmp_path / "o", picture)
    calls = counted(monkeypatch)
    assert run(tmp_path / "o", picture).ok == 1 and "denoise" not in calls
    monkeypatch.setattr(
        pipeline.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 9})
    )
    with pytest.raises(MissingPart, match=r"are free\. Make"):
        pipeline._check_room(tmp_path, TINY.plan(TINY.settings, path_frames=17), TINY.settings)


def test_memory_that_runs_out(picture, tmp_path, monkeypatch):
    """Once: again with one network at a time; twice: a failed row that says so, and what would fit."""
    original, calls = pipeline.denoise, []

    def scarce(*args, **kwargs):
        calls.append(args[0])
        if len(calls) <= allowed:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline, "denoise", scarce)
    allowed = 1
    assert run(tmp_path / "o", picture).ok == 1 and len(calls) == 2
    (row,) = open_manifest(tmp_path / "o").rows()
    assert "one network in memory" in json.loads(row["generation_stats"])["remarks"][0]
    allowed = 99
    found = run(tmp_path / "p", picture)
    (row,) = found.manifest.rows()
    assert (found.failed, list(row["filter_reasons"])) == (1, ["out_of_memory"]) and "--plan" in row["error"]
    assert "the second try" in row["error"] and len(calls) == 4
    assert run(tmp_path / "p", picture).failed == 1 and len(calls) == 4, "what was learnt of the clip is on record"
    allowed = 0
    assert run(tmp_path / "p", picture, retry_failed=True).ok == 1


@pytest.mark.parametrize("times, status", [(1, "ok"), (2, "failed")])
def test_memory_that_runs_out_while_decoding(picture, tmp_path, monkeypatch, times, status):
    """The latents are kept; the networks are not."""

    def scarce(latents, vae):
        calls.append(pipeline._resident.cache_info().currsize)
        if len(calls) <= times:
            raise MemoryError
        return original(latents, vae)

    original, calls, slow = pipeline.frames_of, [], counted(monkeypatch)
    monkeypatch.setattr(pipeline, "frames_of", scarce)
    (row,) = run(tmp_path / "o", picture).manifest.rows()
    assert (row["status"], calls, slow.count("denoise")) == (status, [1, 0], 1)
    (remark,) = json.loads(row["generation_stats"])["remarks"]
    assert remark == "memory ran out in the stage film: made again with one network in memory at a time"


def test_numbers_that_are_none(picture, tmp_path, monkeypatch):
    def nan(*args, **kwargs):
        made = original(*args, **kwargs)
        return replace(made, latents=made.latents * float("nan"))

    original = pipeline.denoise
    monkeypatch.setattr(pipeline, "denoise", nan)
    (row,) = run(tmp_path / "o", picture).manifest.rows()
    assert list(row["filter_reasons"]) == ["not_finite"] and not (tmp_path / "o" / "output.mp4").exists()


# ---- a manifest ------------------------------------------------------------------------------------------------------


@pytest.fixture
def parents(tmp_path) -> Path:
    """Three posed clips: metric and captioned, of relative scale, and one whose video is gone."""
    folder = tmp_path / "parents"
    manifest = create_manifest(folder)
    rng = np.random.default_rng(0)
    rows = []
    for name, changes in (
        ("good.mp4", {"caption": "a kitchen", "split": "val", "license": "CC0-1.0", "group_id": "g" * 64}),
        ("relative.mp4", {"caption": "a garden", "scale_kind": "relative"}),
        ("gone.mp4", {"caption": "a street"}),
    ):
        film = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (192, 128))
        encode_rgb(folder / name, [np.roll(np.asarray(film, np.uint8), i, 1) for i in range(41)], 32.0)
        info = probe(folder / name)
        path = given_path(steer("w-20,wd-20"), np.array([150, 150, 95.5, 63.5]), width=192, height=128)
        row = schema.generate_row(
            id=name,
            source=str(folder / name),
            source_sha256=info.sha256,
            provenance=schema.Provenance(run_id="r", config_hash="c", software_version="0", stage_versions={}),
            config={},
            seed=0,
            video=info,
            uri=name,
            track=asked_track(path, info.pts_ns),
        )
        rows.append(row | {"origin": "annotated"} | changes)
    manifest.append(rows)
    (folder / "gone.mp4").unlink()
    return folder


OWN = {"action": None, "intrinsics": None}


def test_rows_begin_clips_along_their_own_paths(parents, tmp_path):
    found = run(tmp_path / "o", config=config(prompt=None, path=OWN), manifest=parents)
    assert (found.clips, found.ok, found.failed, found.inputs_left) == (3, 1, 2, 0)
    rows = {row["parent_clip_id"]: row for row in found.manifest.rows()}
    assert list(rows["relative.mp4"]["filter_reasons"]) == ["relative_scale"]
    assert "--metres-per-unit" in rows["relative.mp4"]["error"]
    assert list(rows["gone.mp4"]["filter_reasons"]) == ["unreadable"]
    row = rows["good.mp4"]
    assert (row["prompt"], row["split"], row["license"], row["group_id"]) == ("a kitchen", "val", "CC0-1.0", "g" * 64)
    assert row["num_frames"] == 17 and row["action_keys"] is None
    clip = read_clip(row)  # 32 frames a second become 16
    np.testing.assert_allclose(clip.world_from_cam, steer("w-20,wd-20")[:34:2], atol=1e-4)
    np.testing.assert_allclose(clip.intrinsics[:, 0], 150 * 0.75)
    assert found.manifest.validate() == [] and not (tmp_path / "o" / "output.mp4").exists()
    write_report(tmp_path / "o")
    again = run(tmp_path / "o", config=config(prompt=None, path=OWN), manifest=parents)
    assert (again.ok, again.failed, again.committed) == (1, 2, 0)


def test_which_rows(parents, tmp_path):
    common = {"config": config(prompt="a hall", path=OWN | {"metres_per_unit": 2.0, "speed": 2.0, "loop": True})}
    found = run(tmp_path / "o", manifest=parents, clip_ids=["rel", "relative.mp4"], **common)
    (row,) = found.manifest.rows()
    assert (found.clips, row["parent_clip_id"], row["prompt"]) == (1, "relative.mp4", "a hall")
    poses = read_clip(row).world_from_cam
    assert poses.shape[0] == 17
    np.testing.assert_allclose(poses[1, 2, 3], 2.0 * 4 * 0.025, atol=1e-4)
    where = run(tmp_path / "p", manifest=parents, where="split == 'val'", **common)
    assert [r["parent_clip_id"] for r in where.manifest.rows()] == ["good.mp4"]
    for options, words in (
        ({"where": "split == 'test'"}, "no clip with"),
        ({"clip_ids": ["x"]}, "has 0 clips with such an id"),
        ({"where": "spli == 1"}, "Did you mean split"),
        ({"config": config(path={"action": "x-3"})}, "is not KEYS-FRAMES"),
    ):
        with pytest.raises(LongtakeError, match=words):
            run(tmp_path / "q", manifest=parents, **common | options)


def test_another_clips_path_for_a_picture(parents, picture, tmp_path):
    path = {"action": None, "camera": str(parents), "camera_clip": "good", "reverse": True}
    (row,) = run(tmp_path / "o", picture, config=config(path=path)).manifest.rows()
    assert row["parent_clip_id"] is None and read_clip(row).world_from_cam[-1, 2, 3] < 0
    with pytest.raises(BadMedia, match="relative scale"):
        run(tmp_path / "p", picture, config=config(path=path | {"camera_clip": "rel"}))
    with pytest.raises(UsageError, match="has 3 clips"):
        run(tmp_path / "p", picture, config=config(path=path | {"camera_clip": None}))


def test_a_surprise_in_one_row_costs_no_other(parents, tmp_path, monkeypatch):
    def upset(parts, picture, path, prompt, **kwargs):
        if prompt == "a kitchen":
            raise ZeroDivisionError("0/0")
        return original(parts, picture, path, prompt, **kwargs)

    original = pipeline.denoise
    monkeypatch.setattr(pipeline, "denoise", upset)
    found = run(tmp_path / "o", config=config(prompt=None, path=OWN | {"metres_per_unit": 1.0}), manifest=parents)
    reasons = {row["parent_clip_id"]: list(row["filter_reasons"]) for row in found.manifest.rows()}
    assert reasons == {"good.mp4": ["internal_error"], "relative.mp4": [], "gone.mp4": ["unreadable"]}


def test_a_run_that_mostly_fails_is_stopped(parents, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "MIN_CLIPS_JUDGED", 1)
    words = ("--manifest", parents, "--output-dir", tmp_path / "o", "--max-failed-ratio")
    with pytest.raises(RunStopped, match=r"1 of 1 clips failed, more than a share of 0\.5"):  # the one that is gone
        command(*words, 0.5)
    assert len(open_manifest(tmp_path / "o")) == 1
    assert command(*words, 1.0) == 1 and len(open_manifest(tmp_path / "o")) == 3


class Elsewhere(pipeline.Engine):
    """Finds the tiny networks in a worker process, too, where nobody has put them among the models."""

    def _fresh(self) -> Parts:
        return tiny(self.device, torch.float32)


def test_rays_workers_make_the_same(parents, tmp_path, monkeypatch):
    if not find_spec("ray"):
        pytest.skip("Ray is not installed")
    monkeypatch.setattr(pipeline, "Engine", Elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)  # where they find this file
    own, made = config(prompt="a hall", path=OWN | {"metres_per_unit": 1.0}, keep_latents=True), []
    for executor, jobs in (("local", 0), ("ray", 2)):
        out = tmp_path / executor
        found = generate(out=out, manifest=parents, config=own, executor=executor, jobs=jobs, report=False)
        assert (found.ok, found.failed, found.manifest.validate()) == (2, 1, [])
        made.append({row["parent_clip_id"]: row | {"folder": out} for row in found.manifest.rows()})
    for parent, row in made[0].items():
        other = made[1][parent]
        assert (row["clip_id"], row["status"], row["error"]) == (other["clip_id"], other["status"], other["error"])
        if row["status"] == "ok":
            a, b = (load_file(r["folder"] / r["latents_uri"])["latents"] for r in (row, other))
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)  # other numbers of threads add up in other orders


def test_bars_and_distortion_are_taken_off(parents):
    manifest = open_manifest(parents)
    row = {name: manifest.row("good.mp4")[name] for name in asking.ROW_COLUMNS}
    own = asking._row_camera(row)
    cut = row | {"crop": [16, 8, 160, 112], "distortion": np.array([0.1, 0.0])}
    picture, path, _ = asking._first_frame(cut, own, parents)
    assert picture.shape == (112, 160, 3) and path is not None and (path.width, path.height) == (160, 112)
    np.testing.assert_allclose(path.intrinsics[0], [150, 150, 79.5, 55.5])


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_loads_and_fetches_nothing(picture, tmp_path, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("a network was loaded")

    monkeypatch.setitem(pipeline.MODELS, "tiny", lambda: replace(TINY, parts=never))
    assert command("--plan", "--image", picture, "--action", "w-16", "--output-dir", tmp_path / "o") == 0
    printed = capsys.readouterr().out
    assert "moves forward 0.40 m" in printed and "not known yet" in printed and "memory" in printed
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["output.plan.svg"]
    assert command("--plan", "--image", picture, "--action", "w-16", "--intrinsics", 130, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["frames"] == 17 and facts["fits"] and facts["path"]["fov_deg"][0][0] == pytest.approx(63.2, abs=0.1)
    assert facts["seconds_at_least"] > 0 and facts["memory_bytes"].keys() == {"text", "encode", "sample", "decode"}


def test_what_would_make_it_fit(picture, monkeypatch):
    monkeypatch.setattr(pipeline.hub, "machine_memory", lambda: (0, 8_000_000_000))
    path = PathConfig(action="w-960", intrinsics="130")
    whole = GenerateConfig(frames=961, dtype="bf16", device="cpu", path=path)
    found = plan_run(whole, out=None, image=str(picture))
    (way,) = found.ways
    assert not found.fits and way.flags == f"--num-frames {way.frames}" and way.frames % 8 == 1 and way.frames > 9
    assert plan_run(replace(whole, frames=way.frames), out=None, image=str(picture)).fits
    assert not plan_run(replace(whole, frames=way.frames + 8), out=None, image=str(picture)).fits
    assert any("longtake weights fetch" in words for words in found.obstacles)
    exact = plan_run(replace(whole, frames=way.frames, dtype="fp32"), out=None, image=str(picture))
    assert [way.flags for way in exact.ways] == ["--dtype bf16"]
    monkeypatch.setattr(pipeline.hub, "machine_memory", lambda: (0, 2_000_000_000))
    none = plan_run(whole, out=None, image=str(picture))
    assert none.ways == () and "no number of frames fits" in none.obstacles[0]


def test_without_weights_nothing_is_begun(picture, tmp_path):
    with pytest.raises(MissingPart, match="longtake weights fetch"):
        run(tmp_path / "o", picture, config=config(model="sana-wm"))
    with pytest.raises(UsageError, match="Did you mean 'nano'"):
        config(model="nanno")
    assert not (tmp_path / "o").exists()


def test_memory_is_asked_before_the_work(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.hub, "machine_memory", lambda: (0, 1_000_000))
    with pytest.raises(MissingPart, match="of memory are needed, and cpu has 1 MB"):
        run(tmp_path / "o", picture)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_those_held_or_those_that_would_do():
    path = given_path(steer("w-20,a-20,l-20,i-10,none-20"), LENS, width=160, height=120)
    told = shown_keys(path, ("", *["w"] * 20, *["a"] * 20, *["l"] * 20, *["i"] * 10, *[""] * 20))
    seen = shown_keys(path, ())
    assert len(told) == len(seen) == path.num_frames == 91
    for i in (0, 10):
        assert told[i] == seen[i], i
    assert "a" in seen[30] and "l" in seen[50] and "i" in seen[65]  # as the camera moves: a key let go coasts


@pytest.mark.parametrize("width, height", [(1280, 704), (128, 96), (64, 64), (96, 640)])
def test_keys_lie_in_the_lower_corners(width, height):
    frame = np.full((height, width, 3), 90, np.uint8)
    keys = Keys(width, height)
    drawn = keys.draw(frame, frozenset("w"))
    changed = np.argwhere((drawn != frame).any(2))
    assert len(changed) and changed[:, 0].min() > 0.6 * height and (frame == 90).all()
    middle = (changed[:, 1] > 0.45 * width) & (changed[:, 1] < 0.55 * width)
    assert not middle.any() or width < 100
    other = keys.draw(frame, frozenset("l"))
    assert drawn[:, : width // 2].mean() > other[:, : width // 2].mean()  # a key that is held is bright
    assert drawn[:, width // 2 :].mean() < other[:, width // 2 :].mean()


def test_requests_are_the_same_for_the_same_files(picture, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(picture.read_bytes())
    path = PathConfig(action="w-8", intrinsics="130")
    a, b = (asking.requests("x", path, 9, image=str(p))[0] for p in (picture, copy))
    assert a.digest() == b.digest()
    assert asking.requests("y", path, 9, image=str(copy))[0].digest() != a.digest()
    refused = pipeline._asked(replace(a, path=replace(path, action="w")), progress=None)
    assert isinstance(refused, Rejected) and refused.reason == "cannot_be_asked"
    np.save(tmp_path / "n.npy", np.arange(4))
    assert read_npy(tmp_path / "n.npy", "--x").dtype == np.float64


def test_nano_in_a_worker_process(picture, tmp_path):
    """What a user gets without fetching anything."""
    path = PathConfig(action="w-8", intrinsics="130")
    own = GenerateConfig(model="nano", prompt="a room", steps=1, frames=9, path=path)
    found = generate(out=tmp_path / "o", image=str(picture), config=own, jobs=1, report=False)
    (row,) = found.manifest.rows()
    assert (row["status"], row["num_frames"]) == ("ok", 9), row["error"]
    assert json.loads(row["model_licenses"]) == {"nano": "Apache-2.0"} and "nano" in json.loads(row["model_revisions"])
