"""Probing and decoding of good, odd and broken files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from longtake.annotate.video import (
    VideoConfig,
    _Decoder,
    encode_rgb,
    expand_inputs,
    frames,
    pictures,
    probe,
    read_rgb,
)
from longtake.records import BadMedia, LongtakeError, VideoInfo

from ..videos import cut_off, damage, hide_start, number_of, numbered, size_changes, walk, write, write_audio

COUNT = 24


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain") / "plain.mp4", numbered(COUNT), options={"g": "8", "bf": "2"})


def numbers(video: Path | VideoInfo, **asked) -> list[int]:
    """The numbers painted on the frames that come, each checked against the index it comes with."""
    found = list(frames(video if isinstance(video, VideoInfo) else probe(video), **asked))
    assert [number_of(f.gray) for f in found] == [f.index for f in found]
    return [f.index for f in found]


def refused(path: Path | str, **asked) -> BadMedia:
    with pytest.raises(BadMedia) as caught:
        list(frames(probe(path, **asked)))
    assert str(path).split("/")[-1] in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("h264.mkv", {}),
        ("h264.ts", {"options": {"bf": "3"}}),
        ("reordered.avi", {"options": {"bf": "3"}}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("ten_bit_hevc.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("av1.webm", {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}}),
        ("gray.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
        ("gray_ten_bit.mkv", {"codec": "ffv1", "pix_fmt": "gray10le"}),
        ("rgb.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
        ("full_range.mp4", {"color_range": 2}),
        ("interlaced.mp4", {"options": {"x264-params": "interlaced=1"}}),
        ("one_fps_claimed_1000.mp4", {"fps": 1000}),
        ("edit_list.mp4", {"options": {"bf": "4"}, "container_options": {"movflags": "negative_cts_offsets"}}),
    ],
)
def test_formats_give_every_frame_at_its_index(tmp_path, name, settings):
    info = probe(write(tmp_path / name, numbered(COUNT), **settings))
    assert numbers(info) == list(range(COUNT))
    assert info.pts_ns[0] == 0 and not info.is_vfr
    assert info.interlaced == (name == "interlaced.mp4")


def test_ranges_are_exact(plain):
    info = probe(plain)
    for start, stop in ((0, 1), (3, 9), (23, 24), (24, 24)):
        assert numbers(info, start=start, stop=stop) == list(range(start, stop))
    with pytest.raises(ValueError, match=r"frames 3 \.\. 25 of 24"):
        numbers(info, start=3, stop=25)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_seeks_are_exact_in_a_long_file(tmp_path, name):
    """Far enough in for a seek, among B-frames, in containers that each seek in their own way."""
    info = probe(write(tmp_path / name, numbered(180), options={"bf": "3", "g": "25"}))
    for start in (75, 99, 178):
        found = list(frames(info, start=start, stop=start + 2))
        assert [number_of(f.gray) for f in found] == [f.index for f in found] == [start, start + 1]
    picked = [170, 3, 40, 3]
    assert [number_of(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)) for p in read_rgb(info, picked)] == picked


def test_time_comes_from_the_container(tmp_path):
    """Variable rate from 10 to 60 fps, a gap of ten frames, a late start: times are as written, in any container."""
    steps = np.resize([100, 17, 33, 16, 50], COUNT - 1)
    steps[12] = 400
    times = 700 + np.concatenate([[0], np.cumsum(steps)])
    for name in ("vfr.mp4", "vfr.mkv"):
        info = probe(write(tmp_path / name, numbered(COUNT), times_ms=times.tolist()))
        assert info.is_vfr
        np.testing.assert_allclose(info.pts_ns, (times - times[0]) * 1_000_000, atol=100_000)  # mp4: 16 kHz clock
        assert numbers(info) == list(range(COUNT))


@pytest.mark.parametrize(
    ("clockwise", "sar"), [(0, "4/3"), (90, "1"), (90, "4/3"), (180, "3/4"), (270, "1"), (270, "3/4")]
)
def test_rotation_square_pixels_and_crop(tmp_path, clockwise, sar):
    """A frame with a bright quarter at the top left, stored turned and squeezed."""
    picture = np.full((64, 96, 3), 40, np.uint8)
    picture[:32, :48] = 200
    row, column = {0: (0, 0), 90: (0, 1), 180: (1, 1), 270: (1, 0)}[clockwise]  # the half that is bright after the turn
    info = probe(write(tmp_path / "turned.mp4", [picture] * 3, sar=Fraction(sar), rotation_ccw_deg=-clockwise % 360))
    size = {"1": (96, 64), "4/3": (128, 64), "3/4": (96, 85)}[sar]
    assert (info.width, info.height) == (size[::-1] if clockwise in (90, 270) else size)
    assert (info.rotation_deg, info.mirrored, (info.coded_width, info.coded_height)) == (clockwise, False, (96, 64))
    frame = next(frames(info))
    assert frame.gray.shape == (info.height, info.width)
    for shown in (frame.gray, frame.thumb[..., 0], read_rgb(info, [1])[0][..., 1]):
        h, w = shown.shape
        half = shown[row * h // 2 : (row + 1) * h // 2, column * w // 2 : (column + 1) * w // 2]
        assert np.median(half) > 180 and np.median(shown) < 60
    crop = (column * info.width // 2 + 2, row * info.height // 2 + 2, info.width // 2 - 4, info.height // 2 - 4)
    cropped = next(frames(info, crop=crop, max_side=20))
    assert max(cropped.gray.shape) == 20 and cropped.gray.min() > 160
    assert cropped.thumb.min() > 150


def test_crop_and_shrink_of_a_pattern(tmp_path):
    """Gray pixel u of the crop lies where the docstring says."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:] = np.linspace(30, 220, 96)[None, :, None]
    info = probe(write(tmp_path / "ramp.mkv", [picture], codec="ffv1", pix_fmt="bgr0"))
    whole = next(frames(info)).gray[0].astype(float)
    frame = next(frames(info, crop=(10, 8, 60, 40), max_side=20))
    assert frame.gray.shape == (13, 20)
    at = 10 + 3.0 * (np.arange(20) + 0.5) - 0.5
    np.testing.assert_allclose(frame.gray[5], np.interp(at, np.arange(96), whole), atol=1.5)
    with pytest.raises(ValueError, match="does not lie in 96x64"):
        next(frames(info, crop=(50, 0, 60, 40)))


@pytest.mark.parametrize(("pix_fmt", "codec"), [("yuv420p", "libx264"), ("yuv420p10le", "libx265"), ("gray", "ffv1")])
@pytest.mark.parametrize("color_range", [1, 2])
def test_levels_are_full_range(tmp_path, pix_fmt, codec, color_range):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 32:64], picture[:, 64:] = 128, 255
    info = probe(write(tmp_path / "levels.mkv", [picture] * 2, codec=codec, pix_fmt=pix_fmt, color_range=color_range))
    frame = next(frames(info))
    for shown in (frame.gray, read_rgb(info, [0])[0].mean(2), frame.thumb.mean(2)):
        np.testing.assert_allclose([np.median(shown[:, x]) for x in (16, 48, 80)], [0, 128, 255], atol=3)


def test_odd_and_small_sizes(tmp_path):
    for name, size in {"odd.mp4": (97, 63), "small.mp4": (64, 48), "tiny.mp4": (16, 16)}.items():
        info = probe(write(tmp_path / name, walk(1, 3, *size), pix_fmt="yuv444p"))
        assert [f.gray.shape for f in frames(info)] == [size[::-1]] * 3


def test_edit_lists_and_missing_heads(tmp_path):
    """Frames that an edit list hides, or that no key frame lets decode, are not counted."""
    whole = write(tmp_path / "whole.ts", numbered(60), options={"bf": "3", "g": "20"})
    data = whole.read_bytes()
    (tmp_path / "no_head.ts").write_bytes(data[len(data) // 188 * 2 // 5 * 188 :])
    hide_start(write(tmp_path / "shown.mp4", numbered(COUNT), options={"bf": "2"}), frames=10, fps=25)
    for name, first, last in (("no_head.ts", 40, 59), ("shown.mp4", 10, COUNT - 1)):
        info = probe(tmp_path / name)
        found = [(f.index, number_of(f.gray)) for f in frames(info)]
        assert found == list(enumerate(range(first, last + 1))) and info.num_frames == last + 1 - first


def test_few_frames(tmp_path):
    for count in (1, 6):
        assert numbers(write(tmp_path / f"{count}.mp4", numbered(count))) == list(range(count))
    assert np.isnan(probe(tmp_path / "1.mp4").fps)


@pytest.mark.parametrize("name", ["日本 語 'quotes'.mp4", "x" * 246 + ".mp4", "100%[1]*?.mp4"])
def test_names(tmp_path, plain, name):
    path = tmp_path / name
    path.write_bytes(plain.read_bytes())
    assert expand_inputs([str(path)]) == [path]
    assert numbers(path, stop=2) == [0, 1]


def test_broken_files_are_refused_with_a_reason(tmp_path, plain):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("once upon a time\n" * 200)
    cut_off(write(tmp_path / "no_index.mp4", numbered(COUNT)), 0.7)
    write_audio(tmp_path / "audio.m4a")
    reasons = {
        "empty.mp4": "empty_file",
        "text.mp4": "not_a_video",
        "no_index.mp4": "truncated",
        "audio.m4a": "no_video_stream",
        "missing.mp4": "unreadable",
    }
    for name, reason in reasons.items():
        assert refused(tmp_path / name).reason == reason
    assert refused("/dev/null").reason == "unreadable"
    assert refused(plain, config=VideoConfig(max_file_gb=1e-6)).reason == "too_large"
    assert refused(plain, config=VideoConfig(max_pixels=6000)).reason == "resolution_too_large"
    assert refused(plain, config=VideoConfig(max_frames=20)).reason == "too_many_frames"


def test_playlists_and_protocols_are_refused(tmp_path, plain):
    """Neither a name nor a file's contents can make the reader open something else."""
    here = plain.parent
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{plain}\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {plain}\n")
    assert refused(tmp_path / "list.mp4").reason == "not_a_video"
    assert refused(tmp_path / "concat.mp4").reason == "not_a_video"
    for name in (
        f"concat:{plain}|{plain}",
        f"file:{plain}",
        "http://localhost/a.mp4",
        f"subfile,,start,0,end,0,,:{plain}",
    ):
        assert refused(name).reason == "unreadable"
    assert sorted(p.name for p in here.iterdir()) == [plain.name]


def test_truncated_data_give_the_frames_that_are_there(tmp_path):
    for name, container_options in {"fast.mp4": {"movflags": "faststart"}, "a.mkv": {}, "a.ts": {}}.items():
        path = cut_off(
            write(tmp_path / name, numbered(COUNT), options={"bf": "0"}, container_options=container_options), 0.7
        )
        found = numbers(path)
        assert 6 <= len(found) < COUNT
        assert found == list(range(len(found)))


def test_a_damaged_packet_costs_only_its_neighbourhood(tmp_path):
    path = damage(write(tmp_path / "damaged.mp4", numbered(COUNT), options={"g": "8", "bf": "0"}), 11)
    found = list(frames(probe(path)))
    good = {f.index for f in found if number_of(f.gray) == f.index}
    assert good >= set(range(11)) | set(range(16, COUNT))  # until the next key frame


def test_a_size_change_ends_with_a_reason_after_the_good_frames(tmp_path):
    path = size_changes(tmp_path / "grows.ts", numbered(12), numbered(12, 128, 96))
    found = []
    with pytest.raises(BadMedia, match="96x64 turn into 128x96") as caught:
        for frame in frames(probe(path)):
            found.append(frame.index)
    assert caught.value.reason == "frame_size_changes"
    assert found == list(range(12))


def test_joined_recordings_are_refused(tmp_path):
    path = write(tmp_path / "a.ts", numbered(60))
    path.write_bytes(path.read_bytes() * 2)
    assert refused(path).reason == "timestamps_go_back"


def test_a_killed_decoder_is_reported_and_good_frames_kept(plain, monkeypatch):
    started = []
    enter = _Decoder.__enter__
    monkeypatch.setattr(_Decoder, "__enter__", lambda self: started.append(enter(self)) or self)
    info = probe(plain)
    found = frames(info)
    assert next(found).index == 0
    os.kill(started[-1].process.pid, signal.SIGKILL)
    with pytest.raises(BadMedia, match="killed by signal 9") as caught:
        list(found)
    assert caught.value.reason == "decoder_crashed"


def test_a_stopped_decoder_runs_into_the_timeout(plain, monkeypatch):
    monkeypatch.setattr("longtake.annotate.video.sys.executable", _sleeper(plain.parent))
    with pytest.raises(BadMedia, match=r"stood still for 0\.2 s") as caught:
        probe(plain, config=VideoConfig(decode_timeout_s=0.2))
    assert caught.value.reason == "decode_timeout"


def _sleeper(folder: Path) -> str:
    script = folder / "sleeper.sh"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    return str(script)


def test_memory_is_limited(plain):
    error = refused(plain, config=VideoConfig(memory_mb=64))
    assert error.reason in ("out_of_memory", "decoder_crashed")


def test_leaving_early_ends_the_decoder(plain, monkeypatch):
    started = []
    enter = _Decoder.__enter__
    monkeypatch.setattr(_Decoder, "__enter__", lambda self: started.append(enter(self)) or self)
    found = frames(probe(plain))
    next(found)
    found.close()
    assert all(d.process.returncode is not None for d in started)


def test_the_worker_imports_little():
    heavy = "'torch', 'scipy', 'ray', 'pyarrow'"
    code = f"import sys, longtake.annotate.decoder; print(*(m for m in ({heavy}) if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_image_folders_and_patterns(tmp_path):
    pictures = numbered(12)
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"img{i}.png"), picture[..., ::-1])  # img10 must come after img9
    for path in (tmp_path, str(tmp_path / "*.png")):
        info = probe(path)
        assert (info.is_images, info.num_frames, info.width, info.height) == (True, 12, 96, 64)
        assert [number_of(f.gray) for f in frames(info)] == list(range(12))
    assert np.isclose(info.fps, 30) and np.isnan(info.tagged_fps)
    assert probe(tmp_path, stills=True).pts_ns.tolist() == [i * 10**9 for i in range(12)]
    np.testing.assert_array_equal(read_rgb(info, [5])[0], pictures[5])
    (tmp_path / "img3.png").write_bytes(b"not an image")
    assert [f.index for f in frames(probe(tmp_path))] == [0, 1, 2, *range(4, 12)]
    with pytest.raises(BadMedia, match="frame 3 cannot be decoded"):
        read_rgb(probe(tmp_path), [3])
    cv2.imwrite(str(tmp_path / "img4.png"), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(BadMedia, match=r"img4\.png: 32x32, but the first image is 96x64"):
        list(frames(probe(tmp_path)))


def test_inputs_are_expanded(tmp_path):
    videos, images, empty = tmp_path / "videos", tmp_path / "images", tmp_path / "empty"
    for folder in (videos, images, empty):
        folder.mkdir()
    for name in ("take10.mp4", "take9.MOV", "cover.jpg", "notes.txt"):
        (videos / name).touch()
    for name in ("a.png", "b.png"):
        (images / name).touch()
    takes: list[Path | str] = [videos / "take9.MOV", videos / "take10.mp4"]
    assert expand_inputs([str(videos)]) == takes
    assert expand_inputs([f"{videos}/take*"]) == takes
    assert expand_inputs([str(images), f"{images}/*.png"]) == [images, f"{images}/*.png"]
    assert expand_inputs([str(images / "a.png"), str(images / "b.png")]) == [images]
    with pytest.raises(LongtakeError, match="1 of its 2 images"):
        expand_inputs([str(images / "a.png")])
    with pytest.raises(LongtakeError, match="neither videos"):
        expand_inputs([str(empty)])
    with pytest.raises(LongtakeError, match="no such file"):
        expand_inputs([str(tmp_path / "missing.mp4")])


def test_progress_counts_to_the_end(plain):
    calls = []
    list(frames(probe(plain), start=4, stop=10, progress=lambda done, total: calls.append((done, total))))
    assert calls == [(i, 6) for i in range(1, 7)]


def test_encode_rgb_round_trip(tmp_path):
    pictures = numbered(10)
    path = tmp_path / "out.mp4"
    encode_rgb(path, pictures, 16)
    info = probe(path)
    assert (info.num_frames, info.fps) == (10, 16.0)
    assert numbers(info) == list(range(10))
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]

    def breaks():
        yield from pictures[:3]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        encode_rgb(tmp_path / "broken.mp4", breaks(), 16)
    with pytest.raises(ValueError, match="even sizes"):
        encode_rgb(tmp_path / "odd.mp4", walk(0, 1, 97, 63), 16)
    with pytest.raises(ValueError, match="no pictures"):
        encode_rgb(tmp_path / "none.mp4", [], 16)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_real_footage(shared_data):
    counts = {"backpack_phone": 87, "dog_moving_subject": 122, "static_camera_pedestrians": 100, "shot_cuts": 150}
    for name, count in counts.items():
        assert probe(shared_data / "videos" / f"{name}.mp4").num_frames == count
    upright = probe(shared_data / "videos" / "backpack_phone.mp4")
    turned = probe(shared_data / "videos" / "rotation_metadata_90.mp4")
    assert (turned.rotation_deg, turned.width, turned.height) == (270, upright.height, upright.width)
    a, b = next(frames(upright, start=50)), next(frames(turned, start=50))
    np.testing.assert_array_equal(np.rot90(a.gray), b.gray)


def test_pictures_stream_with_their_numbers(plain):
    info = probe(plain)
    found = list(pictures(info, start=3, stop=9))
    assert [i for i, _ in found] == list(range(3, 9))
    assert all(number_of(rgb[..., 1]) == i for i, rgb in found)
    np.testing.assert_array_equal(found[2][1], read_rgb(info, [5])[0])
    assert [i for i, _ in pictures(info, start=3, only=[0, 4, 20])] == [4, 20]
    ((_, small),) = pictures(info, stop=1, crop=(8, 8, 40, 20), max_side=20)
    assert small.shape == (10, 20, 3)
    with pytest.raises(ValueError, match=r"frames 3 .. 99"):
        next(pictures(info, start=3, stop=99))
