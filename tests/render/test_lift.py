"""Lifted pictures: drawn back from where they were taken they are the picture; fused, nothing is counted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longtake.geometry import pose, rotation_from_quaternion, rotation_from_vector
from longtake.records import LongtakeError
from longtake.render.lift import (
    Fusion,
    LiftConfig,
    RgbdFrame,
    discs_of,
    fly,
    lift,
    lift_frame,
    register_depth,
    sky_shell,
    usable_depth,
)
from longtake.render.rasterize import Rasterizer
from longtake.render.room import Room, camera_path, render_room, room_depth

W, H = 320, 240
PLAIN = (255, 0, 255)


@pytest.fixture(scope="module")
def room() -> Room:
    return Room(0)


def taken(room: Room, world_from_cam, k, name="room", **changes) -> RgbdFrame:
    frame = RgbdFrame(
        name=name,
        rgb=render_room(room, world_from_cam, k, W, H),
        depth=room_depth(room, world_from_cam, k, W, H),
        intrinsics=k,
        world_from_cam=world_from_cam,
    )
    return replace(frame, **changes)


@pytest.fixture(scope="module")
def walk(room: Room) -> list[RgbdFrame]:
    """Three frames, each a few centimetres on; a pixel is a little smaller than the textures' grain."""
    poses, intrinsics = camera_path("walk", 40, width=W, height=H, fov_x_deg=17, shake=0)
    return [taken(room, poses[i], intrinsics[i], f"frame {i}") for i in (20, 21, 23)]


def psnr(a, b, where) -> float:
    return float(10 * np.log10(255**2 / ((a[where].astype(float) - b[where]) ** 2).mean()))


def flat(depth, **changes) -> RgbdFrame:
    """A gray picture of 40 x 30 with this depth, or depth of every pixel."""
    frame = RgbdFrame(
        name="flat",
        rgb=np.full((30, 40, 3), 128, np.uint8),
        depth=np.broadcast_to(np.float32(depth), (30, 40)).astype(np.float32),
        intrinsics=np.array([50.0, 50.0, 19.5, 14.5]),
        world_from_cam=np.eye(4),
    )
    return replace(frame, **changes)


# ---- one frame -------------------------------------------------------------------------------------------------------


def test_seen_from_where_it_was_taken_it_is_the_picture(walk):
    frame = walk[0]
    (flown,) = fly(lift_frame(frame), frame.world_from_cam[None], frame.intrinsics, W, H, hole_rgb=PLAIN)
    shown = (flown.rgb != PLAIN).any(-1)
    assert flown.hole_share == pytest.approx((~shown).mean(), abs=1e-3) and shown.mean() > 0.97
    assert psnr(flown.rgb, frame.rgb, shown) > 30
    drawn = Rasterizer(lift_frame(frame)).draw(frame.world_from_cam, frame.intrinsics, W, H)
    wrong = np.abs(drawn.depth - frame.depth)[shown] / frame.depth[shown]
    assert np.quantile(wrong, 0.99) < 0.01 and np.median(wrong) < 0.001


def test_seen_from_elsewhere_it_is_what_is_there(walk):
    first, _, other = walk
    (flown,) = fly(lift_frame(first), other.world_from_cam[None], other.intrinsics, W, H, hole_rgb=PLAIN)
    shown = (flown.rgb != PLAIN).any(-1)
    assert 0.3 < shown.mean() < 0.95  # it moved: some of what it sees was not in the first picture
    assert psnr(flown.rgb, other.rgb, shown) > 27
    shifted = np.roll(other.rgb, 2, axis=1)
    assert psnr(flown.rgb, shifted, shown) < psnr(flown.rgb, other.rgb, shown) - 3


def test_a_disc_is_round_and_of_its_size_where_it_was_seen():
    """J S J^T, the blob on the picture, is size^2 in pixels whatever the slant; the disc lies in its plane."""
    u, v = np.meshgrid(np.arange(40) - 19.5, np.arange(30) - 14.5)
    normal = np.array([0.5, -0.3, -0.8]) / np.linalg.norm([0.5, -0.3, -0.8])
    rays = np.stack([u / 50, v / 50, np.ones_like(u)], -1)
    depth = (normal @ [0, 0, 3.0]) / (rays @ normal)  # a slanted plane through (0, 0, 3)
    g = lift_frame(flat(depth), LiftConfig(size=0.6, thickness=0.01, edge_step=0.2))
    assert len(g) == 30 * 40
    axes = rotation_from_quaternion(g.quaternions.astype(np.float64))
    inner = (np.abs(u) < 15) & (np.abs(v) < 10)
    for i in np.flatnonzero(inner)[::37]:
        x, y, z = g.means[i].astype(np.float64)
        jacobian = np.array([[50 / z, 0, -50 * x / z**2], [0, 50 / z, -50 * y / z**2]])
        root = jacobian @ (axes[i] * g.scales[i])
        np.testing.assert_allclose(root @ root.T, 0.36 * np.eye(2), atol=0.002)
        assert abs(axes[i][:, 2] @ normal) > 0.9999
    np.testing.assert_allclose(g.scales[:, 2], 0.01 * 0.6 * g.means[:, 2] / 50, rtol=1e-5)


def test_colour_opacity_and_place_are_the_pixels():
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    g = lift_frame(flat(2.0, rgb=rgb), LiftConfig(opacity=0.9))
    np.testing.assert_allclose(0.5 + 0.28209479177387814 * g.sh[:, 0], rgb.reshape(-1, 3) / 255, atol=1e-6)
    np.testing.assert_allclose(g.opacities, 0.9, atol=1e-6)
    np.testing.assert_allclose(g.means[41], [(1 - 19.5) / 50 * 2, (1 - 14.5) / 50 * 2, 2], atol=1e-6)
    moved = pose(rotation_from_vector(np.array([0.1, 0.7, -0.2])), np.array([1.0, 2, 3]))
    h = lift_frame(flat(2.0, rgb=rgb, world_from_cam=moved))
    np.testing.assert_allclose(h.means, g.means @ moved[:3, :3].T + moved[:3, 3], atol=1e-5)


def test_edges_untrusted_unknown_and_moving_pixels_are_dropped():
    depth = np.full((30, 40), 2.0, np.float32)
    depth[:, 20:] = 3.0  # an edge between columns 19 and 20
    depth[3, 5], depth[4, 5], depth[5, 5], depth[6, 5] = np.nan, np.inf, 0, -1
    trust = np.ones((30, 40), np.float32)
    trust[10, 10] = 0.05
    moving = np.zeros((30, 40), bool)
    moving[20:, :4] = True
    dropped = ~usable_depth(flat(depth, confidence=trust, moving=moving), LiftConfig())
    want = moving.copy()
    want[:, 19:21] = want[10, 10] = want[3:7, 5] = True
    np.testing.assert_array_equal(dropped, want)
    slight = np.where(depth == 3, np.float32(2.05), np.float32(2))  # 2.5 %: no edge
    assert usable_depth(flat(slight), LiftConfig()).all()


def test_sky_lies_on_a_far_shell_from_every_camera():
    sky = np.zeros((30, 40), bool)
    sky[:10] = True
    depth = np.where(sky, np.nan, 2.0).astype(np.float32)
    first = flat(depth, sky=sky)
    shell = sky_shell(first, LiftConfig(sky_distance=50))
    assert shell is not None and shell[1] == pytest.approx(100)
    aside = flat(depth, sky=sky, world_from_cam=pose(np.eye(3), np.array([3.0, 1, -2])))
    for frame in (first, aside):
        discs = discs_of(frame, LiftConfig(), shell)
        assert len(discs) == 30 * 40
        far = np.linalg.norm(discs.points, axis=1) > 50
        assert (far == sky.ravel()).all()
        np.testing.assert_allclose(np.linalg.norm(discs.points[far], axis=1), 100, rtol=1e-6)
    assert len(discs_of(first, LiftConfig())) == 20 * 40  # without a shell it is left out
    beyond = flat(depth, sky=sky, world_from_cam=pose(np.eye(3), np.array([70.0, 0, 0])))
    with pytest.raises(LongtakeError, match="raise sky_distance"):
        discs_of(beyond, LiftConfig(), shell)


@pytest.mark.parametrize(
    ("depth", "words"),
    [(np.nan, "no pixel has a depth"), (0.0, "no pixel has a depth"), (-2.0, "no pixel has a depth")],
)
def test_nothing_to_lift_is_refused_with_words(depth, words):
    with pytest.raises(LongtakeError, match=words):
        lift_frame(flat(depth))


def test_depth_that_is_all_edges_is_refused_with_words():
    rough = np.random.default_rng(0).uniform(1, 9, (30, 40)).astype(np.float32)
    with pytest.raises(LongtakeError, match="100% have a depth, but at edges"):
        lift_frame(flat(rough, confidence=np.zeros((30, 40), np.float32)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rgb": np.zeros((30, 41, 3), np.uint8)}, "resize one to the other"),
        ({"confidence": np.ones((3, 4), np.float32)}, "confidence is"),
        ({"moving": np.ones((30, 40), np.uint8)}, "a mask is boolean"),
        ({"intrinsics": np.array([50.0, 0, 20, 15])}, "positive focal lengths"),
        ({"world_from_cam": 2 * np.eye(4)}, "no rigid motion"),
    ],
)
def test_broken_frames_are_refused_with_words(changes, words):
    with pytest.raises(LongtakeError, match=words):
        flat(2.0, **changes)


# ---- many frames -----------------------------------------------------------------------------------------------------


def test_the_same_frame_again_adds_hardly_anything(walk):
    once, twice = lift(walk[:1]), lift([walk[0], walk[0]])
    assert twice.frames == 2 and twice.pixels == 2 * once.pixels
    assert twice.shown_already > 0.95 * once.pixels  # all but the rims of surfaces
    assert len(twice.gaussians) < 1.01 * len(once.gaussians)
    assert twice.counts.sum() == twice.pixels - twice.shown_already


def test_two_views_are_not_counted_twice(walk):
    first, _, other = walk
    alone, both = lift([first]), lift([first, other])
    (flown,) = fly(lift_frame(first), other.world_from_cam[None], other.intrinsics, W, H)
    unseen = flown.hole_share * W * H
    assert 0.7 * unseen < both.pixels - both.shown_already - alone.pixels < 1.6 * unseen  # hardly more
    (seen,) = fly(both.gaussians, other.world_from_cam[None], other.intrinsics, W, H, hole_rgb=PLAIN)
    assert seen.hole_share < 0.05 < flown.hole_share
    assert psnr(seen.rgb, other.rgb, (seen.rgb != PLAIN).any(-1)) > 24


def test_a_cell_is_the_mean_by_confidence():
    """Two depths of one wall, too far apart to agree, near enough to share cells."""
    config = LiftConfig(agree=1e-6, cell=64.0)
    dark = flat(2.0, rgb=np.full((30, 40, 3), 51, np.uint8), confidence=np.full((30, 40), 0.25, np.float32))
    light = flat(2.001, rgb=np.full((30, 40, 3), 255, np.uint8), confidence=np.full((30, 40), 0.75, np.float32))
    lifted = lift([dark, light], config)
    assert lifted.shown_already == 0 and lifted.counts.sum() == 2 * 30 * 40
    colour = 0.5 + 0.28209479177387814 * lifted.gaussians.sh[:, 0, 0]
    both = lifted.counts > 1
    np.testing.assert_allclose(colour[both], 0.25 * 0.2 + 0.75 * 1.0, atol=1e-3)
    z = lifted.gaussians.means[both, 2]
    np.testing.assert_allclose(z, 0.25 * 2.0 + 0.75 * 2.001, atol=1e-5)
    np.testing.assert_allclose(lifted.gaussians.scales[both, :2], 1.0, rtol=1e-6)  # half a cell of 2 m, below 64 px
    turned = rotation_from_quaternion(lifted.gaussians.quaternions[both].astype(np.float64))
    assert (np.abs(turned[:, 2, 2]) > 0.999).all()  # the wall's normal


def test_cells_grow_with_depth_and_split_equals_whole(walk):
    whole = lift(walk)
    parts = Fusion()
    for frame in walk:
        parts.add(frame)
    np.testing.assert_array_equal(parts.lifted().gaussians.means, whole.gaussians.means)
    coarse = lift(walk[:1], LiftConfig(cell=4.0))
    fine = lift(walk[:1], LiftConfig(cell=1.0))
    assert len(coarse.gaussians) < 0.5 * len(fine.gaussians) and coarse.pixels == fine.pixels


def test_frames_without_depth_are_written_down(walk):
    blind = replace(walk[0], name="blind", depth=np.full((H, W), np.nan, np.float32))
    lifted = lift([blind, walk[0]])
    assert lifted.without_depth == ("blind",) and lifted.frames == 1
    with pytest.raises(LongtakeError, match=r"no frame had usable depth \(blind\)"):
        lift([blind])
    with pytest.raises(LongtakeError, match="there were none"):
        lift([])


# ---- two cameras, previews -------------------------------------------------------------------------------------------


def test_registered_depth_is_what_the_other_camera_measures(room):
    poses, (k, *_) = camera_path("walk", 2, width=W, height=H, shake=0)
    beside = poses[0] @ pose(rotation_from_vector(np.array([0, 0.01, 0])), np.array([0.05, 0, 0]))
    narrow = np.array([300.0, 300.0, W / 2, H / 2])
    cam_from_depth_cam = np.linalg.inv(beside) @ poses[0]
    got = register_depth(room_depth(room, poses[0], k, W, H), k, cam_from_depth_cam, narrow, W, H)
    want = room_depth(room, beside, narrow, W, H)
    known = np.isfinite(got)
    assert known.mean() > 0.8
    wrong = np.abs(got - want)[known] / want[known]
    assert np.median(wrong) < 0.005 and np.quantile(wrong, 0.9) < 0.03


def test_holes_are_plain_and_counted():
    g = lift_frame(flat(2.0))
    k = np.array([50.0, 50.0, 19.5, 14.5])
    away = pose(rotation_from_vector(np.array([0, np.pi, 0])), np.zeros(3))
    half = pose(np.eye(3), np.array([0.8, 0, 0]))  # half of the wall's 1.6 m
    here, aside, back = fly(g, np.stack([np.eye(4), half, away]), k, 40, 30, hole_rgb=(0, 255, 0))
    assert here.hole_share == 0 and here.nearest == pytest.approx(2, rel=1e-3)
    assert np.abs(here.rgb.astype(int) - 128).max() <= 1
    assert aside.hole_share == pytest.approx(0.5, abs=0.03)
    assert (aside.rgb[:, 25:] == [0, 255, 0]).all()
    assert back.hole_share == 1 and np.isnan(back.nearest) and (back.rgb == [0, 255, 0]).all()


def test_a_recorded_frame_is_seen_again(shared_data):
    """A real depth camera: from a tenth of a second later the lifted frame shows what the video shows."""
    from longtake.annotate.given import open_given_depth
    from longtake.annotate.video import probe, read_rgb

    folder = shared_data / "sequences" / "tum_fr3_cabinet_keyframes"
    info, truth = probe(folder / "video.mp4"), np.load(folder / "gt.npz")
    depth = open_given_depth(folder / "depth", info).read(0)[0]
    rgb, later = read_rgb(info, [0, 1])
    matrix = truth["K"][0]
    k = np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])
    frame = RgbdFrame(name="0", rgb=rgb, depth=depth, intrinsics=k, world_from_cam=truth["c2w"][0])
    (flown,) = fly(lift_frame(frame), truth["c2w"][1:2], k, 640, 480, hole_rgb=PLAIN)
    shown = (flown.rgb != PLAIN).any(-1)
    assert shown.mean() > 0.6
    assert psnr(flown.rgb, later, shown) > psnr(rgb, later, shown) + 1  # better than if the camera had not moved
