"""Poses and depth that a user gives: every form is read, and what does not fit the video is refused with words."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from longtake.annotate.depth_clip import DepthClip, DepthWriter, finish_depth
from longtake.annotate.given import GivenPoses, cut_depth, open_given_depth, read_poses
from longtake.annotate.video import probe
from longtake.geometry import pose, quaternion_from_rotation, rotation_from_vector
from longtake.records import BadMedia, VideoInfo

N, WIDTH, HEIGHT = 12, 32, 24
PTS_NS = np.arange(N) * 40_000_000


def camera(n: int = N) -> np.ndarray:
    s = np.linspace(0, 1, n)
    turn = rotation_from_vector(np.column_stack([0.1 * s, 0.5 * s, -0.2 * s]))
    return pose(turn, np.column_stack([s, 2 * s, -s]))


def read(path: Path, *, metric: bool = True) -> np.ndarray:
    found = read_poses(path, N, PTS_NS, metric)
    assert found.metric is metric
    return found.world_from_cam


def refused(path: Path, reason: str, words: str) -> None:
    with pytest.raises(BadMedia, match=words) as caught:
        read(path)
    assert caught.value.reason == reason and str(path) in str(caught.value)


def tum(c2w: np.ndarray, times: np.ndarray) -> str:
    q = quaternion_from_rotation(c2w[:, :3, :3])
    table = np.column_stack([times, c2w[:, :3, 3], q[:, 1:], q[:, 0]])
    return "# time x y z qx qy qz qw\n" + "".join(" ".join(f"{v:.9g}" for v in row) + "\n" for row in table)


# ---- poses -------------------------------------------------------------------------------------------------------


def test_arrays(tmp_path):
    c2w = camera()
    np.save(tmp_path / "a.npy", c2w.astype(np.float32))
    assert read(tmp_path / "a.npy", metric=False) == pytest.approx(c2w, abs=1e-6)
    np.save(tmp_path / "b.npy", c2w[:, :3])
    assert read(tmp_path / "b.npy") == pytest.approx(c2w)
    np.savez(tmp_path / "a.npz", K=np.eye(3), c2w=c2w)
    assert read(tmp_path / "a.npz") == pytest.approx(c2w)


def test_frames_without_a_pose(tmp_path):
    c2w = camera()
    c2w[3] = np.nan
    np.save(tmp_path / "a.npy", c2w)
    assert np.flatnonzero(np.isnan(read(tmp_path / "a.npy")).any((1, 2))).tolist() == [3]
    np.savez(tmp_path / "ours.npz", c2w=camera(), pose_valid=np.arange(N) != 5)
    assert np.flatnonzero(np.isnan(read(tmp_path / "ours.npz")).any((1, 2))).tolist() == [5]
    np.savez(tmp_path / "vipe.npz", data=camera()[[0, 4, 8]], inds=np.array([0, 4, 8]))
    found = read(tmp_path / "vipe.npz")
    assert np.flatnonzero(np.isfinite(found).all((1, 2))).tolist() == [0, 4, 8]
    assert found[4] == pytest.approx(camera()[4])


def test_kitti(tmp_path):
    rows = camera()[:, :3].reshape(N, 12)
    (tmp_path / "k.txt").write_text("".join(" ".join(f"{v:.9e}" for v in row) + "\n" for row in rows))
    assert read(tmp_path / "k.txt") == pytest.approx(camera(), abs=1e-8)


def test_tum_by_the_nearest_time(tmp_path):
    c2w = camera()
    use = np.array([0, 1, 2, 5, 6, 11])
    (tmp_path / "t.txt").write_text(tum(c2w[use], PTS_NS[use] / 1e9 + 0.019))
    found = read(tmp_path / "t.txt")
    assert np.flatnonzero(np.isfinite(found).all((1, 2))).tolist() == use.tolist()
    assert found[use] == pytest.approx(c2w[use], abs=1e-7)
    # of two poses for one frame the nearer counts, whatever their order; those between frames of a gap are left out
    times = np.array([0.015, 0.001, 0.04, 0.9])
    (tmp_path / "u.txt").write_text(tum(c2w[[9, 0, 1, 2]], times))
    found = read(tmp_path / "u.txt")
    assert np.flatnonzero(np.isfinite(found).all((1, 2))).tolist() == [0, 1] and found[0] == pytest.approx(c2w[0])


def test_signs_of_quaternions_do_not_matter(tmp_path):
    words = [line.split() for line in tum(camera(), PTS_NS / 1e9).splitlines()[1:]]
    flipped = [
        " ".join([*row[:4], *(str(-float(v)) for v in row[4:])]) if i % 2 else " ".join(row)
        for i, row in enumerate(words)
    ]
    (tmp_path / "t.txt").write_text("\n".join(flipped))
    assert read(tmp_path / "t.txt") == pytest.approx(camera(), abs=1e-7)


def test_poses_that_do_not_fit_the_video(tmp_path):
    np.save(tmp_path / "few.npy", camera(N - 1))
    refused(tmp_path / "few.npy", "poses_do_not_fit", "has 11 poses, but the video 12 frames")
    (tmp_path / "t.txt").write_text(tum(camera(), PTS_NS / 1e9 + 1.3e9))
    refused(tmp_path / "t.txt", "poses_do_not_fit", "times count from the first frame")
    np.savez(tmp_path / "i.npz", data=camera(2), inds=np.array([0, N]))
    refused(tmp_path / "i.npz", "poses_do_not_fit", "numbers frame 12")
    np.savez(tmp_path / "j.npz", data=camera(2), inds=np.array([1, 1]))
    refused(tmp_path / "j.npz", "poses_do_not_fit", "frames twice")
    np.savez(tmp_path / "k.npz", data=camera(1), inds=np.array([1]))
    refused(tmp_path / "k.npz", "poses_do_not_fit", "fewer than two frames")


def test_poses_that_are_no_motions(tmp_path):
    for name, turn, words in (
        ("mirrored", np.diag([1.0, 1, -1, 1]), "pose 7 is mirrored"),
        ("scaled", np.diag([1.1, 1.1, 1.1, 1]), "pose 7 is no rigid motion: it scales by 1.1"),
        ("transposed", np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [3, 4, 5, 1]]), "has the last row"),
    ):
        c2w = camera()
        c2w[7] = turn
        np.save(tmp_path / f"{name}.npy", c2w)
        refused(tmp_path / f"{name}.npy", "poses_not_rigid", words)


def test_few_digits_are_forgiven_and_mended(tmp_path):
    np.save(tmp_path / "a.npy", camera().round(3))
    found = read(tmp_path / "a.npy")[:, :3, :3]
    assert np.abs(found @ found.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12


@pytest.mark.parametrize(
    "name, write, words",
    [
        ("a.npy", lambda p: np.save(p, np.array([{"a": 1}], object)), "cannot be read as poses"),
        ("b.npy", lambda p: np.save(p, np.zeros((N, 7))), r"holds float64 \[12, 7\]"),
        ("c.npy", lambda p: np.save(p, np.zeros((N, 4, 4), complex)), "holds complex128"),
        ("d.npy", lambda p: p.write_bytes(b"\x93NUMPY"), "cannot be read as poses"),
        ("e.npz", lambda p: np.savez(p, K=np.eye(3)), "it holds K, and none of c2w"),
        ("f.npz", lambda p: p.write_bytes(b"PK\x03\x04"), "cannot be read as poses"),
        ("g.txt", lambda p: p.write_text("1 2 3\n"), r"rows of \[3\] numbers"),
        ("h.txt", lambda p: p.write_text("x y\n"), "cannot be read as poses"),
        ("i.txt", lambda p: p.write_bytes(b"\xff\xfe\x00"), "cannot be read as poses"),
        ("j.txt", lambda p: p.write_text("0 0 0 0 0 0 0 2\n"), "row 1: the quaternion qx qy qz qw has the length 2"),
        ("k.txt", lambda p: None, "cannot be read as poses"),
        ("l.npz", lambda p: np.savez(p, c2w=camera(), pose_valid=np.ones(3, bool)), "pose_valid is bool"),
    ],
)
def test_files_that_hold_no_poses(tmp_path, name, write, words):
    write(tmp_path / name)
    refused(tmp_path / name, "poses_unreadable", words)


@pytest.mark.parametrize("claim", [b"(999999999999, 4, 4)", b"(12, 4, 4"])
def test_a_header_that_claims_what_is_not_there(tmp_path, claim):
    np.save(tmp_path / "a.npy", camera())
    old, new = b"(12, 4, 4), }".ljust(30), (claim + b", }").ljust(30)
    data = (tmp_path / "a.npy").read_bytes()
    assert data.count(old) == 1
    (tmp_path / "a.npy").write_bytes(data.replace(old, new))
    refused(tmp_path / "a.npy", "poses_unreadable", "cannot be read as poses")


def test_records_are_checked():
    with pytest.raises(ValueError, match="rigid"):
        GivenPoses(world_from_cam=2 * camera(), metric=True)


def test_measured_poses_and_depth(shared_data):
    """A recording with poses by motion capture, and depth for every sixth frame only."""
    folder = shared_data / "sequences" / "tum_fr3_cabinet_keyframes"
    info = probe(folder / "video.mp4")
    with np.load(folder / "gt.npz") as truth:
        c2w = truth["c2w"]
    found = read_poses(folder / "gt.npz", info.num_frames, info.pts_ns, True)
    there = np.isfinite(c2w).all((1, 2))
    assert there.sum() > 50 and found.world_from_cam[there] == pytest.approx(c2w[there], abs=1e-6)
    given = open_given_depth(folder / "depth", info)
    assert given.frame_index.tolist() == list(range(0, info.num_frames, 6))
    for row in range(len(given.frame_index)):
        depth, confidence = given.read(row)
        assert 0.5 < np.nanmedian(depth) < 10 and confidence.mean() > 0.2  # metres


# ---- depth -------------------------------------------------------------------------------------------------------


def video(frames: int = N, width: int = 2 * WIDTH, height: int = 2 * HEIGHT) -> VideoInfo:
    return VideoInfo(
        path="/v.mp4", is_images=False, image_paths=(), sha256="0", num_bytes=1, container="mp4", codec="h264",
        pix_fmt="yuv420p", coded_width=width, coded_height=height, width=width, height=height, rotation_deg=0,
        sar_num=1, sar_den=1, color_range="tv", interlaced=False, pts_ns=np.arange(frames) * 40_000_000, is_vfr=False,
        tagged_fps=25.0,
    )  # fmt: skip


def ramp() -> np.ndarray:
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return (1 + 0.1 * u + 0.01 * v).astype(np.float32)


def depth_refused(path: Path, reason: str, words: str, info: VideoInfo | None = None) -> None:
    with pytest.raises(BadMedia, match=words) as caught:
        given = open_given_depth(path, info or video())
        given.read(len(given.frame_index) - 1)
    assert caught.value.reason == reason and str(path) in str(caught.value)


def write_folder(folder: Path, frames=(0, 6), *, shape=(HEIGHT, WIDTH)) -> Path:
    folder.mkdir()
    millimetres = np.rint(1000 * cv2.resize(ramp(), shape[::-1])).astype(np.uint16)
    millimetres[0, 0] = 0
    for frame in frames:
        cv2.imwrite(str(folder / f"{frame:06d}.png"), millimetres)
    return folder


def test_a_folder_of_millimetres(tmp_path):
    folder = write_folder(tmp_path / "depth")
    (folder / "readme.txt").write_text("mm")
    given = open_given_depth(folder, video())
    assert given.frame_index.tolist() == [0, 6] and given.crop == (0, 0, 2 * WIDTH, 2 * HEIGHT)
    depth, confidence = given.read(1)
    assert np.isnan(depth[0, 0]) and confidence[0, 0] == 0 and confidence[3, 3] == 1
    assert depth[5:, 5:] == pytest.approx(ramp()[5:, 5:], abs=6e-4)


def test_floats(tmp_path):
    maps = np.tile(ramp(), (N, 1, 1))
    maps[2, 3, 4], maps[2, 3, 5], maps[2, 3, 6] = np.inf, -1, 0
    np.save(tmp_path / "d.npy", maps)
    given = open_given_depth(tmp_path / "d.npy", video())
    depth, confidence = given.read(2)
    assert np.isnan(depth[3, 4:7]).all() and not confidence[3, 4:7].any()
    np.testing.assert_array_equal(given.read(3)[0], ramp())


def test_our_own_file(tmp_path):
    path = tmp_path / "d.zip"
    with DepthWriter(path) as writer:
        writer.add(4, ramp(), np.full(ramp().shape, 0.5))
    finish_depth(
        DepthClip(
            path=path, frame_index=np.array([4]), width=WIDTH, height=HEIGHT, crop=(0, 4, 60, 40),
            factor=np.array([3.0]), world_from_cam=None, focal_px=None, metric=True, source="given", scale=None,
            relative_sigma=0.01,
        )
    )  # fmt: skip
    given = open_given_depth(path, video())
    assert given.frame_index.tolist() == [4] and given.crop == (0, 4, 60, 40)
    assert given.read(0)[0] == pytest.approx(3 * ramp(), rel=3e-4)
    depth_refused(path, "depth_does_not_fit", "has frame 4 and covers", video(frames=4))
    depth_refused(path, "depth_does_not_fit", "has frame 4 and covers", video(width=50))


def test_depth_that_does_not_fit_the_video(tmp_path):
    depth_refused(write_folder(tmp_path / "a", (0, N)), "depth_does_not_fit", "names a frame, but the video has 12")
    depth_refused(write_folder(tmp_path / "b", shape=(WIDTH, HEIGHT)), "depth_does_not_fit", "whole upright picture")
    mixed = write_folder(tmp_path / "c")
    cv2.imwrite(str(mixed / "000009.png"), np.ones((2 * HEIGHT, 2 * WIDTH), np.uint16))
    depth_refused(mixed, "depth_does_not_fit", "has maps of 32 x 24 and of 64 x 48")
    twice = write_folder(tmp_path / "d")
    cv2.imwrite(str(twice / "6.png"), np.ones((HEIGHT, WIDTH), np.uint16))
    depth_refused(twice, "depth_does_not_fit", "is not the only one with this number")
    np.save(tmp_path / "e.npy", np.ones((N + 1, HEIGHT, WIDTH), np.float32))
    depth_refused(tmp_path / "e.npy", "depth_does_not_fit", "has 13 maps, but the video has 12")


def test_depth_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    depth_refused(tmp_path / "empty", "depth_unreadable", "holds no PNG")
    eight = write_folder(tmp_path / "eight")
    cv2.imwrite(str(eight / "000007.png"), np.ones((HEIGHT, WIDTH), np.uint8))
    depth_refused(eight, "depth_unreadable", "000007.png is no gray PNG of 16 bits")
    np.save(tmp_path / "ints.npy", np.ones((N, HEIGHT, WIDTH), np.int32))
    depth_refused(tmp_path / "ints.npy", "depth_unreadable", "holds int32")
    np.savez(tmp_path / "d.npz", a=ramp())
    depth_refused(tmp_path / "d.npz", "depth_unreadable", "holds several arrays")
    np.save(tmp_path / "o.npy", np.array([None]), allow_pickle=True)
    depth_refused(tmp_path / "o.npy", "depth_unreadable", "cannot be read as depth")
    depth_refused(tmp_path / "none.npy", "depth_unreadable", "cannot be read as depth")
    (tmp_path / "x.zip").write_text("no")
    depth_refused(tmp_path / "x.zip", "depth_unreadable", "no depth file of longtake")


def test_a_cut_shows_the_same_pixels():
    whole, part = (0, 0, 2 * WIDTH, 2 * HEIGHT), (8, 4, 20, 30)
    cut = cut_depth(ramp(), whole, part)
    np.testing.assert_array_equal(cut, ramp()[2:17, 4:14])
    assert cut_depth(ramp(), whole, whole) is not None and cut_depth(ramp(), whole, whole).shape == ramp().shape
    grown = cut_depth(cut, part, whole)
    np.testing.assert_array_equal(grown[2:17, 4:14], cut)
    assert np.isnan(grown).sum() == grown.size - cut.size
