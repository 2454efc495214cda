"""What real video does to an annotator: odd and broken files through the command line, each ending in a row.

One run takes them all: exit code 1 since some fail, a reason for each of those, a track for the others, no traceback.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.datasets.manifest import open_manifest
from longtake.render.room import Room, camera_path, render_clip

from ..videos import Picture, cut_off, damage, size_changes, write, write_audio

WIDTH, HEIGHT, FRAMES = 160, 120, 24
LIMIT_S, LIMIT_BYTES = 600, 16 << 30
BROKEN = {  # file -> reason
    "empty.mp4": "empty_file",
    "text.mp4": "not_a_video",
    "no_index.mp4": "truncated",
    "audio.m4a": "no_video_stream",
    "one_frame.mp4": "no_shots",
    "black.mp4": "no_shots",
    "noise.mp4": "no_reconstruction",
    "grows.ts": "frame_size_changes",
}


def walk(frames: int = FRAMES, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> list[Picture]:
    """A hand-held camera among furniture."""
    path = camera_path("walk", frames, width=width, height=height, extent=0.25)
    return list(render_clip(Room(seed), *path, width, height))


def retagged(path: Path, rate: str) -> Path:
    """Change the frame rate that a Matroska file states of itself: DefaultDuration, nanoseconds of a frame."""
    data = bytearray(path.read_bytes())
    at = data.find(b"\x23\xe3\x83")
    assert at > 0 and data[at + 3] == 0x84
    data[at + 4 : at + 8] = int(rate).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def make_files(folder: Path) -> None:
    """Every odd file, by name."""
    take = walk()
    small: dict[str, Any] = {"options": {"crf": "16"}}
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("once upon a time\n" * 200)
    cut_off(write(folder / "no_index.mp4", take), 0.7)
    write_audio(folder / "audio.m4a")
    write(folder / "one_frame.mp4", take[:1])
    write(folder / "black.mp4", [np.zeros_like(take[0])] * FRAMES)
    rng = np.random.default_rng(0)
    write(folder / "noise.mp4", [rng.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(12)])
    size_changes(folder / "grows.ts", take, walk(12, 192, 144))

    write(folder / "six_frames.mp4", walk(6), **small)
    cut_off(write(folder / "cut_off.mkv", take, options={"bf": "0", "crf": "16"}), 0.8)
    damage(write(folder / "damaged.mp4", take, options={"g": "8", "bf": "0", "crf": "16"}), 11)
    write(folder / "frozen.mp4", [take[0]] * FRAMES, **small)
    write(folder / "turned.mp4", take, rotation_ccw_deg=90, **small)
    write(folder / "anamorphic.mp4", take, sar=Fraction(4, 3), **small)
    gaps = np.cumsum(np.where(np.arange(FRAMES) % 3, 17, 100))
    write(folder / "vfr.mp4", take, times_ms=[int(t) for t in gaps], **small)
    doubled = [picture for i, picture in enumerate(take) for picture in [picture] * (1 + (i % 5 == 4))]
    write(folder / "doubled.mp4", doubled, **small)
    long = walk(FRAMES + 10)
    kept = [i for i in range(FRAMES + 10) if not 10 <= i < 20]
    write(folder / "dropped.mp4", [long[i] for i in kept], times_ms=[40 * i for i in kept], **small)
    retagged(write(folder / "fps_0.mkv", take, **small), "4000000000")
    retagged(write(folder / "fps_1000.mkv", take, **small), "1000000")
    write(folder / "odd.avi", [p[: HEIGHT - 1, : WIDTH - 1] for p in take], codec="ffv1", pix_fmt="bgr0")
    write(folder / "tiny.mp4", walk(12, 64, 48), **small)
    write(folder / "hevc10.mp4", take, codec="libx265", pix_fmt="yuv420p10le")
    write(folder / "vp9.webm", take, codec="libvpx-vp9", options={"crf": "20", "b": "0", "deadline": "realtime"})
    write(folder / "av1.webm", take, codec="libsvtav1", options={"preset": "12", "crf": "20", "svtav1-params": "lp=1"})
    write(folder / "gray.mkv", [p[..., 1] for p in take], codec="ffv1", pix_fmt="gray", source_format="gray")
    write(folder / "日本 'walk' [1].mp4", walk(seed=1), **small)
    write(folder / ("n" * 246 + ".mp4"), walk(seed=2), **small)
    for i, name in enumerate(("a", "b")):
        (folder / name).mkdir()
        write(folder / name / "twin.mp4", walk(16, seed=3 + i), **small)

    other = walk(seed=5)
    write(folder / "cut.mp4", take + other, **small)
    shares = np.linspace(0, 1, FRAMES)
    mixed = [np.rint(a * (1 - s) + b * s).astype(np.uint8) for a, b, s in zip(take, other, shares, strict=True)]
    write(folder / "dissolve.mp4", take + mixed + other, fps=24, **small)
    dim = [np.rint(take[-1] * s).astype(np.uint8) for s in np.linspace(1, 0, 12)]
    rise = [np.rint(other[0] * s).astype(np.uint8) for s in np.linspace(0, 1, 12)]
    write(folder / "fade.mp4", take + dim + [np.zeros_like(take[0])] * 10 + rise + other, **small)
    barred = [p.copy() for p in take]
    for picture in barred[FRAMES // 2 :]:
        picture[:16] = picture[-16:] = 0
    write(folder / "letterbox.mp4", barred, **small)
    marked = [p.copy() for p in long]
    pattern = rng.integers(0, 2, (4, 8, 1), np.uint8).repeat(6, 0).repeat(6, 1) * 255
    for picture in marked:
        picture[8:32, 104:152] = pattern
    write(folder / "watermark.mp4", marked, **small)
    letters = rng.integers(0, 2, (4, 200, 1), np.uint8).repeat(5, 0).repeat(5, 1) * 255
    for i, picture in enumerate(long):
        picture[-20:] = letters[:, 4 * i : 4 * i + WIDTH]
    write(folder / "ticker.mp4", long, **small)


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))


def longtake(*words: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "longtake", *map(str, words)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, preexec_fn=limits, env=environment, **options
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    make_files(folder)
    return folder


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """The finished process, and its rows by the file's name from the folder on."""
    out = tmp_path_factory.mktemp("run") / "out"
    inputs = sorted(str(path) for path in files.rglob("*") if path.is_file())
    process = longtake("annotate", *inputs, "--out", out, "--no-report", "--json", "--quiet")
    manifest = open_manifest(out)
    assert manifest.validate() == []
    rows: dict[str, list[dict]] = {}
    for row in manifest.rows():
        rows.setdefault(os.path.relpath(row["source_uri"], files), []).append(row)
    for several in rows.values():
        several.sort(key=lambda row: row["frame_start"] or 0)
    return process, rows


def test_every_input_ends_in_rows_and_none_in_a_traceback(files, done):
    process, rows = done
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    counts = json.loads(process.stdout)
    assert counts["clips"] == counts["ok"] + counts["filtered"] + counts["failed"] == sum(map(len, rows.values()))
    failed = {name for name, several in rows.items() if any(row["status"] == "failed" for row in several)}
    assert failed - {"tiny.mp4"} == set(BROKEN)
    assert set(rows) == {os.path.relpath(path, files) for path in files.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "reason"), BROKEN.items())
def test_what_cannot_be_posed_says_why(done, name, reason):
    (row,) = done[1][name]
    assert (row["status"], list(row["filter_reasons"])) == ("failed", [reason])
    assert name in row["error"] and row["error_stage"] in ("probe", "shots", "track") and row["c2w"] is None


def only(done, name: str) -> dict:
    (row,) = done[1][name]
    assert (row["status"], row["error"]) == ("ok", None), row["error"]
    return row


def matrices(row: dict) -> NDArray:
    return np.array(row["c2w"], float).reshape(-1, 3, 4)


def times(row: dict) -> NDArray:
    """Seconds of every frame; rows of even pace state the pace alone."""
    if row["pts_s"] is not None:
        return np.array(row["pts_s"], float)
    return np.arange(row["num_frames"]) * row["fps_den"] / row["fps_num"]


WHOLE = {  # files that must give a pose for every frame, and how many frames
    "six_frames.mp4": 6,
    "turned.mp4": FRAMES,
    "anamorphic.mp4": FRAMES,
    "vfr.mp4": FRAMES,
    "doubled.mp4": FRAMES + 4,
    "dropped.mp4": FRAMES,
    "fps_0.mkv": FRAMES,
    "fps_1000.mkv": FRAMES,
    "odd.avi": FRAMES,
    "hevc10.mp4": FRAMES,
    "vp9.webm": FRAMES,
    "av1.webm": FRAMES,
    "gray.mkv": FRAMES,
    "日本 'walk' [1].mp4": FRAMES,
    "n" * 246 + ".mp4": FRAMES,
    "a/twin.mp4": 16,
    "b/twin.mp4": 16,
    "letterbox.mp4": FRAMES,
    "watermark.mp4": FRAMES + 10,
    "ticker.mp4": FRAMES + 10,
    "frozen.mp4": FRAMES,
}


@pytest.mark.parametrize(("name", "frames"), WHOLE.items())
def test_odd_but_whole_files_are_posed(done, name, frames):
    row = only(done, name)
    assert row["num_frames"] == frames and row["tracked_ratio"] == 1
    assert np.isfinite(matrices(row)).all() and np.all(np.diff(times(row)) > 0)
    assert row["motion_class"] == ("static" if name == "frozen.mp4" else "general")


def test_a_picture_of_64_by_48_is_posed_or_refused(done):
    (row,) = done[1]["tiny.mp4"]
    if row["status"] == "failed":
        assert list(row["filter_reasons"]) == ["no_reconstruction"]
    else:
        assert row["tracked_ratio"] == 1 and np.isfinite(matrices(row)).all()


def test_shapes_are_those_of_the_picture_shown(done):
    assert (only(done, "turned.mp4")["width"], only(done, "turned.mp4")["height"]) == (HEIGHT, WIDTH)
    wide = only(done, "anamorphic.mp4")
    assert wide["width"] / wide["height"] == pytest.approx(WIDTH / HEIGHT * 4 / 3, rel=0.02)
    odd = only(done, "odd.avi")
    assert (odd["width"], odd["height"]) == (WIDTH - 1, HEIGHT - 1)


def test_times_are_the_container_s(done):
    assert only(done, "vfr.mp4")["is_vfr"] and np.ptp(np.diff(only(done, "vfr.mp4")["pts_s"])) > 0.05
    steps = np.diff(times(only(done, "dropped.mp4")))
    assert steps.max() == pytest.approx(0.44, abs=1e-3) and np.median(steps) == pytest.approx(0.04, abs=1e-3)
    for name in ("fps_0.mkv", "fps_1000.mkv"):
        np.testing.assert_allclose(np.diff(times(only(done, name))), 0.04, atol=1.1e-3)


def test_doubled_frames_do_not_move(done):
    centre = matrices(only(done, "doubled.mp4"))[:, :3, 3]
    step = np.linalg.norm(np.diff(centre, axis=0), axis=1)
    twins = [4 + 6 * i for i in range(4)]
    assert np.median(step[twins]) < 0.3 * np.median(step)


def test_damage_costs_no_more_than_its_neighbourhood(done):
    row = only(done, "damaged.mp4")
    assert row["num_frames"] == FRAMES and row["pose_valid"][:8].all()
    assert 4 <= only(done, "cut_off.mkv")["num_frames"] < FRAMES


def test_takes_are_told_apart(done):
    for name, gap in (("cut.mp4", 0), ("dissolve.mp4", 12), ("fade.mp4", 12)):
        first, second = done[1][name]
        assert (first["status"], second["status"]) == ("ok", "ok"), name
        assert second["frame_start"] - first["frame_stop"] >= gap and first["frame_start"] == 0
        assert (
            first["frame_stop"] <= FRAMES + 12 and second["frame_stop"] == second["frame_start"] + second["num_frames"]
        )


def test_marks_on_the_picture_are_left_out(done):
    assert only(done, "letterbox.mp4")["crop"][3] <= HEIGHT - 32
    for name in ("watermark.mp4", "ticker.mp4"):
        step = np.linalg.norm(np.diff(matrices(only(done, name))[:, :3, 3], axis=0), axis=1)
        assert step.min() > 0.2 * np.median(step), "the camera never stands still with the mark"


def test_nothing_can_be_written(files, tmp_path):
    """A read-only folder and a file in the way: said before the work starts, nothing left behind."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    process = longtake("annotate", files / "six_frames.mp4", "--out", blocked / "out")
    assert process.returncode == 3 and "Traceback" not in process.stderr and "output" in process.stderr
    if os.geteuid() != 0:  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        process = longtake("annotate", files / "six_frames.mp4", "--out", locked / "out")
        assert process.returncode == 3 and not any(locked.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_output_of_the_command(files):
    """Printing to a full disk is an error in words too."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "longtake", "probe", str(files / "six_frames.mp4"), "--json"]
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    assert process.returncode == 3 and "No space left" in process.stderr


def test_a_disk_that_fills_up_leaves_nothing_half_written(files, tmp_path):
    """With files limited to 8 kB, the run stops in words; without the limit the same command finishes the work."""
    source = shutil.copy(files / "six_frames.mp4", tmp_path)
    out = tmp_path / "out"
    script = f"ulimit -f 8; exec {sys.executable} -m longtake annotate {source} --out {out} --no-report --quiet"
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=LIMIT_S)
    assert process.returncode in (1, 3) and "Traceback" not in process.stderr
    again = longtake("annotate", source, "--out", out, "--no-report", "--quiet", "--retry-failed")
    assert again.returncode == 0, again.stderr
    assert open_manifest(out).validate() == [] and len(open_manifest(out)) == 1
