"""A run accounts for every input, repeats nothing that is done, and survives what befalls single clips.

The first part puts quick stand-ins in the place of shot finding and tracking, to count calls and to fail on purpose;
the second runs the real stages on a short video.
"""

from __future__ import annotations

import errno
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from longtake.annotate.quality import Quality, QualityConfig, measure, measure_track
from longtake.annotate.track import TrackConfig
from longtake.annotate.video import VideoConfig, encode_rgb, probe
from longtake.pipelines import annotate as pipeline
from longtake.pipelines import ledger
from longtake.pipelines.annotate import AnnotateConfig, Config, annotate, known_camera, read_intrinsics
from longtake.pipelines.config import MissingPart, RunStopped, UsageError, resolve
from longtake.pipelines.stages import Artifacts
from longtake.records import BadMedia, Rejected, Shot, Track, VideoInfo

FRAMES, WIDTH, HEIGHT = 12, 160, 120


def write_video(path: Path, seed: int = 0, frames: int = FRAMES) -> Path:
    """A window that moves over a random texture."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (HEIGHT // 4, WIDTH // 2, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_rgb(path, [texture[:, 4 * i : 4 * i + WIDTH] for i in range(frames)], 10)
    return path


def still_track(info: VideoInfo, shot: Shot) -> Track:
    n = shot.num_frames
    zeros, nans = np.zeros(n), np.full(n, np.nan)
    return Track(
        pts_ns=info.pts_ns[shot.start : shot.stop],
        width=info.width,
        height=info.height,
        world_from_cam=np.tile(np.eye(4), (n, 1, 1)),
        pose_valid=np.ones(n, bool),
        intrinsics=np.tile([150.0, 150.0, 79.5, 59.5], (n, 1)),
        intrinsics_mode="static",
        focal_status="undetermined",
        focal_sigma=nans,
        distortion_model="none",
        distortion=(),
        motion_class="static",
        flags=(),
        scale_kind="relative",
        pose_source="test",
        is_keyframe=np.ones(n, bool),
        reproj_rmse_px=zeros,
        sampson_px=nans,
        num_tracked=np.full(n, 100, np.int32),
        inlier_ratio=zeros,
        coverage=zeros,
        dyn_ratio=zeros,
        step_px=nans,
    )


class Tracker:
    """Takes the place of tracking: says what it was called for, and fails as it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, object] = {}  # file name -> exception or Rejected

    def __call__(self, info: VideoInfo, shot: Shot, config: TrackConfig, **_: object) -> Track | Rejected:
        name = Path(info.path).name
        self.calls.append(name)
        answer = self.fail.get(name)
        if answer == "large" and config.max_side > 500:
            raise MemoryError
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Rejected) else still_track(info, shot)


@pytest.fixture
def tracker(monkeypatch):
    """Every video is one shot, its track is the stand-in's, and no pictures are measured."""

    def one_shot(info: VideoInfo, *_: object, **__: object) -> list[Shot]:
        crop = (0, 0, info.width, info.height)
        return [Shot(index=0, start=0, stop=info.num_frames, crop=crop, overlay=None, boundary="start")]

    def camera_only(info: VideoInfo, shot: Shot, track: Track | None, config: QualityConfig, **_: object) -> Quality:
        return Quality(clip=measure_track(track, config) if track else {}, frames={})

    stand_in = Tracker()
    monkeypatch.setattr(pipeline, "measure", camera_only)
    monkeypatch.setattr(pipeline, "find_shots", one_shot)
    monkeypatch.setattr(pipeline, "estimate_track", stand_in)
    return stand_in


def run(*inputs: Path, out: Path, **options):
    return annotate(*inputs, out=out, jobs=0, **{"report": False, **options})


def statuses(result: ledger.Run) -> dict[str, str]:
    rows = result.manifest.rows(["source_uri", "status", "filter_reasons"])
    return {Path(r["source_uri"]).name: " ".join([r["status"], *(r["filter_reasons"])]) for r in rows}


def test_every_input_is_accounted_for(tmp_path, tracker):
    folder = tmp_path / "in"
    write_video(folder / "good.mp4", 1)
    write_video(folder / "refused.mp4", 2)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "copy of good.mp4").write_bytes((folder / "good.mp4").read_bytes())
    tracker.fail["refused.mp4"] = Rejected(stage="track", reason="fisheye", message="a circle")
    result = run(folder, folder / "good.mp4", out=tmp_path / "out")
    assert (result.state, result.inputs, result.duplicates) == ("finished", 6, 2)
    assert (result.clips, result.ok, result.filtered, result.failed, result.left) == (4, 1, 0, 3, 0)
    assert result.inputs_left == 0
    got = statuses(result)
    assert got.pop("refused.mp4") == "failed fisheye" and got.pop("empty.mp4") == "failed empty_file"
    assert got.pop("text.mp4") == "failed not_a_video" and list(got.values()) == ["ok"]
    assert result.manifest.validate() == []
    about = json.loads((result.folder / "run.json").read_text())
    assert about["state"] == "finished" and about["ok"] == 1 and len(about["duplicate_inputs"]) == 2
    assert set(about["timings_s"]) >= {"probe", "shots", "track", "quality"} and about["versions"]["longtake"]


def test_a_refused_clip_keeps_what_its_pictures_say(tmp_path, tracker, monkeypatch):
    monkeypatch.setattr(pipeline, "measure", measure)
    tracker.fail["a.mp4"] = Rejected(stage="track", reason="fisheye", message="a circle")
    (row,) = run(write_video(tmp_path / "a.mp4"), out=tmp_path / "out").manifest.rows()
    assert row["status"] == "failed" and row["error"] == "a circle" and row["error_stage"] == "track"
    assert row["luma"] > 0 and row["c2w"] is None and row["num_frames"] == FRAMES


def test_a_rerun_repeats_nothing(tmp_path, tracker):
    videos = [write_video(tmp_path / f"{i}.mp4", i) for i in range(3)]
    tracker.fail["2.mp4"] = Rejected(stage="track", reason="fisheye", message="a circle")
    first = run(*videos[:2], out=tmp_path / "out")
    second = run(*videos, out=tmp_path / "out")
    third = run(*videos, out=tmp_path / "out")
    assert (first.committed, second.committed, third.committed) == (2, 1, 0)
    assert (third.clips, third.ok, third.failed) == (3, 2, 1)
    assert sorted(tracker.calls) == ["0.mp4", "1.mp4", "2.mp4"]


def test_killed_between_artifact_and_manifest(tmp_path, tracker, monkeypatch):
    video = write_video(tmp_path / "a.mp4")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger.Ledger, "commit", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        run(video, out=tmp_path / "out")
    result = run(video, out=tmp_path / "out")
    assert (result.ok, result.committed, len(result.manifest), tracker.calls) == (1, 1, 1, ["a.mp4"])


def test_another_profile_replaces_rows_without_tracking_again(tmp_path, tracker):
    video = write_video(tmp_path / "a.mp4")
    assert run(video, out=tmp_path / "out").ok == 1
    judged = run(video, out=tmp_path / "out", config=AnnotateConfig(profile="robust"))
    assert (judged.filtered, judged.committed, len(judged.manifest)) == (1, 1, 1)
    assert "static_camera" in judged.reasons and tracker.calls == ["a.mp4"]


def test_a_changed_file_is_another_clip(tmp_path, tracker):
    video = write_video(tmp_path / "a.mp4", 1)
    run(video, out=tmp_path / "out")
    write_video(video, 2)
    os.utime(video, ns=(1, 1))
    assert len(run(video, out=tmp_path / "out").manifest) == 2


def test_same_name_in_two_folders(tmp_path, tracker):
    videos = [write_video(tmp_path / folder / "clip.mp4", i) for i, folder in enumerate(("one", "two"))]
    result = run(*videos, out=tmp_path / "out")
    assert {Path(r["source_uri"]).parent.name for r in result.manifest.rows(["source_uri"])} == {"one", "two"}


def test_one_surprise_is_one_row(tmp_path, tracker):
    videos = [write_video(tmp_path / f"{i}.mp4", i) for i in range(3)]
    tracker.fail = {"0.mp4": ZeroDivisionError("0/0"), "1.mp4": MemoryError()}
    result = run(*videos, out=tmp_path / "out")
    assert statuses(result) == {"0.mp4": "failed internal_error", "1.mp4": "failed out_of_memory", "2.mp4": "ok"}
    assert "ZeroDivisionError: 0/0" in (result.folder / "log.txt").read_text()
    run(*videos, out=tmp_path / "out")
    assert len(tracker.calls) == 4, "a failed clip is left alone"
    tracker.fail = {}
    again = run(*videos, out=tmp_path / "out", retry_failed=True)
    assert (again.ok, again.failed, again.committed, len(tracker.calls)) == (3, 0, 2, 6)
    retried = {Path(r["source_uri"]).name: r for r in again.manifest.rows()}
    assert retried["0.mp4"]["rot_total_deg"] == 0, "the camera is measured too, now that there is one"


def test_memory_that_runs_out_is_answered_with_smaller_pictures(tmp_path, tracker):
    video = write_video(tmp_path / "a.mp4")
    tracker.fail["a.mp4"] = "large"
    (row,) = run(video, out=tmp_path / "out").manifest.rows()
    assert row["status"] == "ok" and list(row["flags"]) == ["reduced_for_memory"] and len(tracker.calls) == 2
    run(video, out=tmp_path / "out", config=AnnotateConfig(profile="robust"))
    assert len(tracker.calls) == 2, "what was learnt about the clip is on record"


def test_the_same_surprise_everywhere_stops_the_run(tmp_path, tracker):
    videos = [write_video(tmp_path / f"{i}.mp4", i) for i in range(8)]
    tracker.fail = {video.name: ZeroDivisionError("0/0") for video in videos}
    with pytest.raises(RunStopped, match="ZeroDivisionError at test_annotate"):
        run(*videos, out=tmp_path / "out")
    assert len(tracker.calls) < len(videos)
    tracker.fail = {}
    assert run(*videos, out=tmp_path / "out", retry_failed=True).ok == len(videos)


def test_a_disk_that_fills_up_is_told(tmp_path, tracker, monkeypatch):
    video = write_video(tmp_path / "a.mp4")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(MissingPart, match="No space left"):
        patch.setattr(Artifacts, "save", full)
        run(video, out=tmp_path / "out")
    result = run(video, out=tmp_path / "out")
    assert (result.ok, len(result.manifest)) == (1, 1)


def test_an_output_that_cannot_be_is_told_before_work_starts(tmp_path, tracker):
    video = write_video(tmp_path / "a.mp4")
    with pytest.raises(MissingPart, match="Choose another output folder"):
        run(video, out=video / "out")
    assert tracker.calls == []


def test_shots_keep_their_numbers(tmp_path, tracker, monkeypatch):
    """A shot that is too short is left out of the list, and its number is not given to another."""

    def second_half(info: VideoInfo, *_: object, **__: object) -> list[Shot]:
        crop = (0, 0, info.width, info.height)
        return [Shot(index=3, start=6, stop=info.num_frames, crop=crop, overlay=None, boundary="cut")]

    monkeypatch.setattr(pipeline, "find_shots", second_half)
    (row,) = run(write_video(tmp_path / "a.mp4"), out=tmp_path / "out", report=True).manifest.rows()
    assert (row["status"], row["frame_start"], row["num_frames"]) == ("ok", 6, FRAMES - 6)


def test_no_shot_is_a_row(tmp_path, tracker, monkeypatch):
    monkeypatch.setattr(pipeline, "find_shots", lambda *_, **__: [])
    assert statuses(run(write_video(tmp_path / "a.mp4"), out=tmp_path / "out")) == {"a.mp4": "failed no_shots"}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"executor": "rya"}, "executor is local or ray"),
        ({"address": "auto"}, "address is of a Ray cluster"),
        ({"jobs": -1}, "cannot run -1 jobs"),
    ],
)
def test_wrong_options(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        annotate(write_video(tmp_path / "a.mp4"), out=tmp_path / "out", **options)
    with pytest.raises(UsageError, match="nothing to annotate"):
        annotate(out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, text, camera",
    [
        (None, "500", (500.0,)),
        (None, "500, 501,320,240", (500.0, 501.0, 320.0, 240.0)),
        ("k.txt", "500 0 320\n0 501 240\n0 0 1\n", (500.0, 501.0, 320.0, 240.0)),
        ("k.json", '{"fl_x": 500, "fl_y": 501, "cx": 320, "cy": 240, "w": 640}', (500.0, 501.0, 320.0, 240.0)),
        ("k.json", '{"K": [[500, 0, 320], [0, 501, 240], [0, 0, 1]]}', (500.0, 501.0, 320.0, 240.0)),
    ],
)
def test_known_cameras_are_read(tmp_path, name, text, camera):
    if name:
        (tmp_path / name).write_text(text)
    assert read_intrinsics(str(tmp_path / name) if name else text) == camera


@pytest.mark.parametrize("text", ["", "1,2", "f", "500,0,320,0,501,240,0,1,1", "none.json"])
def test_other_cameras_are_refused(text):
    with pytest.raises(UsageError):
        read_intrinsics(text)


def test_known_camera_must_fit_the_picture(tmp_path):
    info = probe(write_video(tmp_path / "a.mp4"), config=VideoConfig())
    assert known_camera((150.0,), info) == (150, 150, 79.5, 59.5)
    with pytest.raises(BadMedia, match="another resolution"):
        known_camera((600.0, 600.0, 320.0, 240.0), info)
    with pytest.raises(UsageError, match="focal lengths above 0"):
        resolve(Config, sets=["annotate.intrinsics=[-1]"])


# ---- the real stages ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a b'é.mp4", frames=30)


def test_real_stages_end_in_a_row_and_a_report(short_video, tmp_path):
    result = annotate(short_video, out=tmp_path / "out")
    (row,) = result.manifest.rows()
    assert (row["status"], row["error"], row["num_frames"]) == ("ok", None, 30)
    assert result.report is not None and result.report.is_file()
    assert list((tmp_path / "out" / "sidecars" / row["clip_id"]).glob("contact_*.jpg"))
    assert result.manifest.validate() == []


def test_both_executors_give_the_same_rows(short_video, tmp_path):
    if not find_spec("ray"):  # importing it here would be with other settings
        pytest.skip("Ray is not installed")
    rows = []
    for executor in ("local", "ray"):
        result = annotate(short_video, out=tmp_path / executor, executor=executor, jobs=1, report=False)
        (row,) = result.manifest.rows()
        rows.append({name: value for name, value in row.items() if name not in ("run_id", "created_at", "timings_s")})
    assert rows[0]["status"] == rows[1]["status"]
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name], err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        "n" * 246 + ".mp4",
        "[bold]a 'b' é日本.mp4",
        "%s{x}\n.mp4",
        b"\xff\xfe.mp4".decode("utf-8", "surrogateescape"),
    ],
)
def test_any_file_name_will_do(tmp_path, tracker, name, capsys):
    video = write_video(tmp_path / "in" / "x.mp4")
    odd = video.rename(video.parent / name)
    result = run(odd, out=tmp_path / "out", report=True, quiet=False)
    assert (result.ok, result.failed) == (1, 0)
    assert json.loads((result.folder / "run.json").read_text())["input_paths"] == [str(odd)]
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(event["clip"], event["status"]) for event in events if event["event"] == "clip"] == [(name, "ok")]
