"""Training windows: the right frames by their times, their cameras exact, every clip once, resumed to the sample."""

from __future__ import annotations

import hashlib
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch.utils.data import DataLoader

import longtake
from longtake.annotate.video import probe
from longtake.datasets.manifest import create_manifest
from longtake.datasets.readers import read_clip
from longtake.datasets.schema import annotate_row
from longtake.datasets.training import (
    TrainingLoader,
    TrainingStream,
    crop_and_scale,
    plan,
    positions_read,
    scaled_intrinsics,
    window_frames,
)
from longtake.records import LongtakeError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
BITS, CELL = 8, 16  # a frame's number as a row of black and white squares


def write_numbered(path: Path, times_ms: list[int], *, rotation: int = 0, size: tuple[int, int] = (160, 96)) -> Path:
    """A film whose frame i shows the number i, at times_ms[i]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000), options={"crf": "10", "g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, at in enumerate(times_ms):
            picture = np.full((size[1], size[0], 3), 128, np.uint8)
            for bit in range(BITS):
                x = 16 + bit * CELL
                picture[40:56, x : x + CELL] = 255 * (i >> bit & 1)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def number_in(picture: np.ndarray, crop: tuple[int, int, int, int] = (0, 0, 160, 96)) -> int:
    """The number that a picture [3, h, w] shows, which was cut out of a numbered film and scaled."""
    scale = np.array([picture.shape[2] / crop[2], picture.shape[1] / crop[3]])
    number = 0
    for bit in range(BITS):
        u, v = (np.array([16 + (bit + 0.5) * CELL - crop[0], 48 - crop[1]]) * scale).astype(int)
        level = picture[:, v, u].mean()
        assert abs(level - 127.5) > 90, "not readable"
        number |= int(level > 127) << bit
    return number


@pytest.fixture
def uneven(tmp_path, made) -> tuple[longtake.datasets.manifest.Manifest, np.ndarray]:  # type: ignore[name-defined]
    """A manifest with a clip of a film with very uneven times: frames 10 .. 170 of it, two without a pose."""
    rng = np.random.default_rng(3)
    times_ms = np.cumsum(np.r_[0, rng.integers(15, 50, 180)])
    info = probe(write_numbered(tmp_path / "uneven.mp4", times_ms.tolist()))
    assert info.is_vfr and info.num_frames == 181
    of = made.shot(10, 170, crop=(0, 8, 160, 80))
    track = made.track(info, of, unposed=(70, 71), zoom=True)
    row = annotate_row(path=info.path, provenance=made.provenance, video=info, shot=of, track=track)
    create_manifest(tmp_path / "m").append([row | {"caption": "numbers", "filter_reasons": []}])
    return longtake.open_manifest(tmp_path / "m"), info.pts_ns / 1e9


# ---- which frames


def slow_windows(times, valid, frames, fps):
    """The definition, in plain loops."""
    out = []
    for start in range(len(times)):
        chosen = []
        for k in range(frames):
            wanted = times[start] + k / fps
            best = min(range(len(times)), key=lambda i: (round(abs(times[i] - wanted), 9), i))
            if abs(times[best] - wanted) <= 0.5 / fps + 1e-6 and valid[best] and best not in chosen:
                chosen.append(best)
        if len(chosen) == frames:
            out.append(chosen)
    return np.array(out, np.int64).reshape(-1, frames)


@pytest.mark.parametrize("fps", [4.0, 7.5, 12.0, 16.0, 24.0, 30.0])
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_windows_are_those_of_the_definition(frames, fps):
    rng = np.random.default_rng(round(frames * 100 + fps))
    times = np.cumsum(rng.uniform(0.02, 0.06, 60)).round(3)
    valid = rng.random(60) > 0.03
    found, problem = window_frames(times, valid, frames, fps)
    np.testing.assert_array_equal(found, slow_windows(times, valid, frames, fps))
    assert (problem is None) == (len(found) > 0)


@pytest.mark.parametrize(
    "num, rate, frames, fps, windows, problem",
    [
        (81, 16, 81, 16, 1, None),
        (80, 16, 81, 16, 0, "too_short"),
        (161, 32, 81, 16, 1, None),
        (97, 24, 65, 16, 1, None),
        (200, 12, 81, 24, 0, "too_few_frames_per_second"),
        (1100, Fraction(30000, 1001), 1017, 30, 0, "too_few_frames_per_second"),  # one frame would have to come twice
        (1, 30, 1, 30, 1, None),
    ],
)
def test_windows_of_even_clips(num, rate, frames, fps, windows, problem):
    found, why = window_frames(np.arange(num) / float(rate), np.ones(num, bool), frames, fps)
    assert (len(found) >= 1, why) == (windows == 1, problem)
    if windows:
        np.testing.assert_array_equal(found[0], np.round(np.arange(frames) * float(rate) / fps - 1e-9).astype(int))


def test_windows_around_frames_without_a_pose():
    valid = np.ones(100, bool)
    valid[[30, 60]] = False
    found, _ = window_frames(np.arange(100) / 30, valid, 17, 30)
    assert found[:, 0].tolist() == [*range(14), *range(31, 44), *range(61, 84)]
    found, why = window_frames(np.arange(100) / 30, valid, 49, 30)
    assert len(found) == 0 and why == "frames_without_pose"


# ---- samples


def test_frames_of_an_uneven_film_are_those_shown_nearest_to_the_wanted_times(uneven):
    manifest, times_s = uneven
    clips = manifest.filter("status == 'ok'").to_torch(frames=33, fps=16, size=(40, 80))
    clip = read_clip(next(iter(manifest.rows())))
    begun = set()
    for epoch in range(6):
        clips.set_epoch(epoch)
        sample = clips[0]
        assert sample["frames"].shape == (33, 3, 40, 80) and sample["frames"].dtype == torch.uint8
        numbers = [number_in(picture, (0, 8, 160, 80)) for picture in sample["frames"].numpy()]
        start = times_s[numbers[0]]
        wanted = start + np.arange(33) / 16
        np.testing.assert_array_equal(numbers, np.abs(times_s[:, None] - wanted).argmin(0))
        np.testing.assert_allclose(sample["times_s"], times_s[numbers], atol=1e-9)
        indices = np.array(numbers) - 10
        np.testing.assert_array_equal(sample["indices"], indices)
        assert clip.pose_valid[indices].all() and sample["caption"] == "numbers" and not sample["metric"]
        begun.add(numbers[0])
        # the pictures' cameras, seen from the first
        again = clip.world_from_cam[indices[0]] @ sample["c2w"].double().numpy()
        np.testing.assert_allclose(again, clip.world_from_cam[indices], atol=1e-5)
        assert (sample["c2w"][0] == torch.eye(4)).all()
        focal = clip.intrinsics[indices] * 0.5  # 160 x 80 of the scene to 80 x 40
        np.testing.assert_allclose(sample["intrinsics"][:, :2], focal[:, :2], rtol=1e-6)
        np.testing.assert_allclose(sample["intrinsics"][:, 2], (319.5 + 0.5) / 2 - 0.5, rtol=1e-6)
        np.testing.assert_allclose(sample["intrinsics"][:, 3], (239.5 - 8 + 0.5) / 2 - 0.5, rtol=1e-6)
    assert len(begun) > 2  # another window in other epochs


@pytest.mark.parametrize("suffix, rotation", [("mkv", 0), ("avi", 0), ("mp4", 90)])
def test_frames_deep_in_a_film(tmp_path, made, suffix, rotation):
    size = (160, 96)
    path = write_numbered(tmp_path / f"film.{suffix}", (np.arange(200) * 40).tolist(), size=size)
    if rotation:
        turned = tmp_path / "turned.mp4"
        with av.open(str(path)) as source, av.open(str(turned), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            stream.set_display_rotation(-rotation) if hasattr(stream, "set_display_rotation") else pytest.skip(
                "this PyAV cannot write display matrices"
            )
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = turned
    info = probe(path)
    of = made.shot(120, 190, crop=(0, 0, info.width, info.height))
    row = annotate_row(path=info.path, provenance=made.provenance, video=info, shot=of, track=made.track(info, of))
    create_manifest(tmp_path / "m").append([row])
    clips = longtake.open_manifest(tmp_path / "m").filter().to_torch(frames=9, fps=12.5, size=(info.height, info.width))
    sample = clips[0]
    pictures = sample["frames"].numpy()
    if rotation:
        pictures = np.rot90(pictures, 1, (2, 3))  # back to how it was drawn
    assert [number_in(picture) for picture in pictures] == (120 + sample["indices"]).tolist()


def test_image_folders(tmp_path, made):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        cv2.imwrite(str(folder / f"{i:03d}.png"), np.full((96, 160, 3), (0, 0, 10 * i), np.uint8))
    info = probe(folder)
    of = made.shot(3, 20, crop=(0, 0, 160, 96))
    row = annotate_row(path=info.path, provenance=made.provenance, video=info, shot=of, track=made.track(info, of))
    create_manifest(tmp_path / "m").append([row])
    sample = longtake.open_manifest(tmp_path / "m").filter().to_torch(frames=17, fps=30, size=(48, 80))[0]
    assert sample["frames"][:, 0].float().mean((1, 2)).tolist() == [10 * i for i in range(3, 20)]
    assert (sample["frames"][:, 1:] == 0).all()


def test_a_film_that_is_not_what_it_was_is_told(uneven, tmp_path):
    manifest, _ = uneven
    clips = manifest.filter().to_torch(frames=33, fps=16, size=(40, 80))
    write_numbered(tmp_path / "uneven.mp4", (np.arange(30) * 40).tolist())
    with pytest.raises(LongtakeError, match="is not what the row was made from"):
        clips[0]
    believing = longtake.open_manifest(manifest.folder, files_in=[tmp_path])
    clips = believing.filter().to_torch(frames=33, fps=16, size=(40, 80))
    with pytest.raises(LongtakeError, match=r"missing or cannot be decoded|it ends before frame"):
        clips[0]


def test_cropped_and_scaled_cameras_see_what_the_picture_shows():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = (int(rng.integers(0, 9)), int(rng.integers(0, 9)), *rng.integers(60, 200, 2).tolist())
        size = tuple(rng.integers(16, 90, 2).tolist())
        crop, scale = crop_and_scale(scene, size)
        assert scene[0] <= crop[0] and crop[0] + crop[2] <= scene[0] + scene[2]
        assert scene[1] <= crop[1] and crop[1] + crop[3] <= scene[1] + scene[3]
        assert crop[2] == scene[2] or crop[3] == scene[3]  # no larger part has that shape
        assert abs(crop[2] / crop[3] / (size[1] / size[0]) - 1) < 1 / min(crop[2:]) + 1e-9
        k = np.array([[300.0, 310.0, 80.0, 60.0]])
        fx, fy, cx, cy = scaled_intrinsics(k, crop, scale)[0]
        # the crop's outer edges are the picture's, half a pixel beyond the centres of the outermost
        for u, v in ((0, 0), (size[1], size[0])):
            x, y = crop[0] + u / scale[0] - 0.5, crop[1] + v / scale[1] - 0.5
            np.testing.assert_allclose((u - 0.5 - cx) / fx, (x - 80) / 300, atol=1e-12)
            np.testing.assert_allclose((v - 0.5 - cy) / fy, (y - 60) / 310, atol=1e-12)


# ---- many clips


@pytest.fixture
def many(tmp_path, made, make_row) -> longtake.datasets.manifest.Manifest:  # type: ignore[name-defined]
    """A manifest of 47 clips of 20 frames at 30 fps, of which 41 have a window of 17."""
    manifest = create_manifest(tmp_path / "many")
    rows = [make_row(f"{i}.mp4") for i in range(41)]
    rows += [make_row(f"hole{i}.mp4", unposed=(10,)) for i in range(3)]
    rows += [make_row(f"failed{i}.mp4", failed=True) for i in range(2)]
    info, of = made.video("short.mp4"), made.shot(0, 9)
    rows.append(
        annotate_row(path=info.path, provenance=made.provenance, video=info, shot=of, track=made.track(info, of))
    )
    for part in range(0, 47, 25):
        manifest.append(rows[part : part + 25])
    return longtake.open_manifest(tmp_path / "many")


CAMERAS = {"frames": 17, "fps": 30.0, "size": (48, 64), "pictures": False}


def test_clips_without_a_window_are_counted(many):
    clips = many.filter().to_torch(**CAMERAS)
    assert len(clips) == 41
    assert clips.skipped == Counter(frames_without_pose=3, no_camera=2, too_short=1)
    assert "frames" not in clips[0] and clips[0]["c2w"].shape == (17, 4, 4)
    with pytest.raises(LongtakeError, match="No clip has 17 posed frames at 30 fps: 2 no_camera"):
        many.filter(pc.field("status") == "failed").to_torch(**CAMERAS)
    with pytest.raises(LongtakeError, match="8k \\+ 1 frames, such as 81 or 89"):
        many.filter().to_torch(frames=80, fps=16, size=(8, 8))


def test_filters(many):
    pytest.importorskip("duckdb", exc_type=ImportError)
    assert len(many.filter()) == 47 and len(many.filter("status == 'failed'")) == 2
    assert len(many.filter(pc.field("num_frames") < 10)) == 1
    odd = many.filter("num_frames >= 10", sql="status = 'ok' and source_uri like '%hole%' -- and no more")
    assert len(odd) == 3 and len(plan(odd, many.filter().to_torch(**CAMERAS).window)[0]) == 0
    assert [clip.num_frames for clip in odd] == [20, 20, 20]
    assert odd.table(["clip_id"])["clip_id"].to_pylist() == list(odd.clip_ids)
    with pytest.raises(LongtakeError, match="DuckDB cannot answer"):
        many.filter(sql="nothing = 1")


def ids_of(batches) -> list[str]:
    return [clip_id for batch in batches for clip_id in batch["clip_id"]]


def test_every_clip_once_over_two_ranks_of_three_workers(many):
    clips = many.filter().to_torch(**CAMERAS)
    epochs = []
    loaders = [
        TrainingLoader(TrainingStream(clips, rank=rank, world=2), batch_size=4, num_workers=3) for rank in range(2)
    ]
    for _ in range(2):
        shares = []
        for loader in loaders:
            length, batches = len(loader), list(loader)
            assert len(batches) == length and batches[0]["c2w"].shape == (4, 17, 4, 4)
            shares.append(ids_of(batches))
        assert abs(len(shares[0]) - len(shares[1])) <= 1
        assert sorted(shares[0] + shares[1]) == sorted(clips.clip_ids)
        epochs.append(shares)
    assert epochs[0] != epochs[1]
    plain = [
        ids_of(DataLoader(TrainingStream(clips, rank=rank, world=2), batch_size=4, num_workers=3)) for rank in range(2)
    ]
    assert plain == epochs[0]  # the same again, whoever loads
    even = [TrainingStream(clips, rank=rank, world=2, drop_uneven=True) for rank in range(2)]
    assert [len(stream) for stream in even] == [20, 20]


@pytest.mark.parametrize("workers, stop", [(0, 3), (0, 11), (2, 3), (2, 11)])
def test_resumes_to_the_sample(many, workers, stop):
    def loader():
        return TrainingLoader(many.filter().to_torch(**CAMERAS, seed=5, stream=True), batch_size=4, num_workers=workers)

    whole = loader()
    epochs = [ids_of(whole), ids_of(whole)]
    first = loader()
    taken, state = [], {}
    for n, batch in enumerate(first, 1):
        taken += batch["clip_id"]
        if n == stop:
            state = first.state_dict()
            break
    second = loader()
    second.load_state_dict(state)
    rest = ids_of(second)
    if not workers and stop == 11:  # the last batch: without workers, the next epoch has begun
        assert taken == epochs[0] and rest == epochs[1]
        return
    assert len(taken) == min(41, 4 * stop) and sorted(taken + rest) == sorted(epochs[0])
    if not workers:
        assert taken + rest == epochs[0]
    assert ids_of(second) == epochs[1]


def test_resumes_with_another_number_of_workers_and_ranks(many):
    clips = many.filter().to_torch(**CAMERAS)
    read = []
    states = []
    for rank in range(2):
        loader = TrainingLoader(TrainingStream(clips, rank=rank, world=2), batch_size=2, num_workers=3)
        for n, batch in enumerate(loader, 1):
            read += batch["clip_id"]
            if n == 5:
                break
        states.append(loader.state_dict())
    assert states[0] == states[1] and len(read) == 20
    for rank in range(3):
        loader = TrainingLoader(TrainingStream(clips, rank=rank, world=3), batch_size=3, num_workers=2)
        loader.load_state_dict(states[0])
        for batch in loader:
            read += batch["clip_id"]
            break
        read += ids_of(loader)  # goes on where it was left
    assert sorted(read) == sorted(clips.clip_ids)


def test_a_position_in_other_clips_is_refused(many):
    stream = many.filter().to_torch(**CAMERAS, stream=True)
    state = stream.state_dict()
    for other in (
        many.filter("source_uri != '/videos/3.mp4'").to_torch(**CAMERAS, stream=True),
        many.filter().to_torch(**CAMERAS | {"fps": 29.0}, stream=True),
        many.filter().to_torch(**CAMERAS, seed=1, stream=True),
    ):
        with pytest.raises(LongtakeError, match="position is one in other clips"):
            other.load_state_dict(state)
    with pytest.raises(LongtakeError, match="order is the stream's own"):
        TrainingLoader(stream, shuffle=True)
    with pytest.raises(LongtakeError, match="ranks count from 0"):
        TrainingStream(stream.clips, rank=2, world=2)


def test_the_order_is_the_same_everywhere_and_for_ever(many):
    """Written down once: a saved position must mean the same in later versions and on other machines."""
    clips = many.filter().to_torch(**CAMERAS, seed=5)
    names = [many.row(clips.clip_ids[i], ["source_uri"])["source_uri"] for i in clips.order(2)]
    assert hashlib.sha256(" ".join(names).encode()).hexdigest()[:16] == "5c5c5c9cd0c0a35d"
    first = Counter(int(clips.order(epoch)[0]) for epoch in range(410))
    assert len(first) > 38 and max(first.values()) < 30  # each clip leads about ten epochs


def test_what_workers_hand_in():
    for count, world, workers, batch in ((41, 2, 3, 4), (10, 1, 1, 3), (7, 3, 2, 2)):
        total = 0
        shares = [[np.arange(count)[r::world][w::workers] for w in range(workers)] for r in range(world)]
        for batches in range(20):
            read = positions_read(count, world, workers, batch, batches)
            wanted = []
            for rank in shares:
                for n in range(batches):  # in turn
                    wanted += rank[n % workers][n // workers * batch :][:batch].tolist()
            assert read.tolist() == sorted(wanted)
            assert len(read) >= total
            total = len(read)
        assert total == count


def test_reading_goes_on_while_the_manifest_is_compacted(many):
    stream = many.filter().to_torch(**CAMERAS, stream=True)
    samples = iter(stream)
    seen = [next(samples)["clip_id"] for _ in range(5)]
    create_manifest(many.folder).compact()
    seen += [sample["clip_id"] for sample in samples]
    assert sorted(seen) == sorted(stream.clips.clip_ids)


def test_without_a_decoder_pictures_are_refused(many):
    from longtake.datasets.manifest import open_manifest

    with pytest.raises(LongtakeError, match=r"open it with longtake.open_manifest"):
        open_manifest(many.folder).filter().to_torch(frames=17, fps=30, size=(48, 64))
