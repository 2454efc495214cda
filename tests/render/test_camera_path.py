"""Camera paths: motion is smooth and timed as said, families are what they are called, each check fails when it should.

The scene is a closed room of 6 x 5 x 2.8 with a table in the middle, all drawn by flat Gaussians, and a ring of
training cameras that look at the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.geometry import angle_between_deg, invert_pose, pose, quaternion_from_rotation, rotation_from_vector
from longtake.records import LongtakeError, Rejected
from longtake.render.camera_path import (
    FAMILIES,
    CameraPath,
    CheckResult,
    NoPath,
    PathConfig,
    PathLimits,
    Survey,
    attempt,
    benchmark_path,
    derive_cameras,
    design,
    propose,
    run_checks,
    survey,
)
from longtake.render.gaussians import Gaussians
from longtake.render.paths import motion
from longtake.render.paths.benchmark import BenchmarkRules
from longtake.render.paths.revisits import revisit_pairs
from longtake.render.room import look_at

TABLE = np.array([[2.6, 2.2, 0.0], [3.4, 2.8, 0.8]])  # low and high corner
CENTRE = np.array([3.0, 2.5, 0.9])
UP = np.array([0.0, 0.0, 1.0])
SHORT = PathConfig(num_frames=161, fps=16.0)


def panel(corner: NDArray, a: NDArray, b: NDArray, spacing: float) -> tuple[NDArray, NDArray, NDArray]:
    """Flat Gaussians on the rectangle with edges a and b: means, scales, quaternions."""
    la, lb = np.linalg.norm(a), np.linalg.norm(b)
    u, v = ((np.arange(max(int(n / spacing), 1)) + 0.5) * spacing for n in (la, lb))
    grid = np.stack(np.meshgrid(u, v, indexing="ij"), -1).reshape(-1, 2)
    axes = np.stack([a / la, b / lb, np.cross(a / la, b / lb)], 1)
    means = corner + grid @ axes[:, :2].T
    scales = np.tile([spacing / 2, spacing / 2, 0.004], (len(means), 1))
    return means, scales, np.tile(quaternion_from_rotation(axes), (len(means), 1))


def box(low: NDArray, high: NDArray, spacing: float) -> list[tuple[NDArray, NDArray, NDArray]]:
    x, y, z = np.diag(np.asarray(high, float) - low)
    sides = [(low, x, y), (low, x, z), (low, y, z), (low + z, x, y), (low + y, x, z), (low + x, y, z)]
    return [panel(corner, a, b, spacing) for corner, a, b in sides]


def scene_of(parts: list[tuple[NDArray, NDArray, NDArray]], opacity: float = 0.9) -> Gaussians:
    means, scales, quaternions = (np.concatenate(p).astype(np.float32) for p in zip(*parts, strict=True))
    n = len(means)
    return Gaussians(
        means=means,
        scales=scales,
        quaternions=quaternions,
        opacities=np.full(n, opacity, np.float32),
        sh=np.zeros((n, 1, 3), np.float32),
    )


def ring_of_cameras(count: int = 48) -> NDArray[np.float64]:
    a = np.linspace(0, 2 * np.pi, count, endpoint=False)
    eye = np.stack([3 + 1.6 * np.cos(a), 2.5 + 1.4 * np.sin(a), 1.4 + 0.25 * np.sin(4 * a)], 1)
    return look_at(eye, np.tile(CENTRE, (count, 1)))


def intrinsics(count: int) -> NDArray[np.float64]:
    return np.tile([450.0, 450.0, 319.5, 239.5], (count, 1))


@pytest.fixture(scope="module")
def scene() -> Gaussians:
    return scene_of(box(np.zeros(3), np.array([6, 5, 2.8]), 0.1) + box(TABLE[0], TABLE[1], 0.1))


@pytest.fixture(scope="module")
def room(scene: Gaussians) -> Survey:
    return survey(scene, ring_of_cameras(), intrinsics(48), (640, 480))


@pytest.fixture(scope="module")
def arc(room: Survey) -> CameraPath:
    """A path that passes everything."""
    path = attempt(room, "orbit", 2, extent=0.7, config=SHORT)
    assert isinstance(path, CameraPath)
    return path


def draw_points(scene: Gaussians) -> Callable[..., tuple[NDArray, NDArray]]:
    """Square splats as large as the Gaussians are on the picture, nearest first."""

    def draw(world_from_cam: NDArray, k: NDArray, width: int, height: int) -> tuple[NDArray, NDArray]:
        inverse = invert_pose(world_from_cam)
        x, y, z = inverse[:3, :3] @ scene.means.T + inverse[:3, 3:]
        front = z > 0.01
        u, v = k[0] * x[front] / z[front] + k[2], k[1] * y[front] / z[front] + k[3]
        z, half = z[front], np.minimum(k[0] * 0.08 / z[front], 6)
        depth = np.full((height, width), np.inf)
        for dy in range(-6, 7):
            for dx in range(-6, 7):
                col, row = np.rint(u + dx).astype(int), np.rint(v + dy).astype(int)
                hit = (max(abs(dx), abs(dy)) <= half) & (col >= 0) & (col < width) & (row >= 0) & (row < height)
                np.minimum.at(depth, (row[hit], col[hit]), z[hit])
        alpha = np.isfinite(depth).astype(float)
        return alpha, np.where(alpha > 0, depth, 0.0)

    return draw


def find(room: Survey, family: str, variant: str, **options: float) -> CameraPath:
    for seed in range(80):
        path = propose(room, family, seed, config=SHORT, **options)  # type: ignore[arg-type]
        if path.parameters["variant"] == variant:
            return path
    raise AssertionError(f"no {variant} among 80 seeds of {family}")


def eyes(path: CameraPath) -> NDArray[np.float64]:
    return path.world_from_cam[:, :3, 3]


def forwards(path: CameraPath) -> NDArray[np.float64]:
    return path.world_from_cam[:, :3, 2]


def travelled(path: CameraPath) -> NDArray[np.float64]:
    return np.linalg.norm(np.diff(eyes(path), axis=0), axis=1)


def focus_of(path: CameraPath) -> NDArray[np.float64]:
    return np.array([float(path.parameters[f"focus_{axis}"]) for axis in "xyz"])


def off_focus_deg(path: CameraPath, focus: NDArray) -> NDArray[np.float64]:
    return np.degrees(np.arccos(np.clip((motion.unit(focus - eyes(path)) * forwards(path)).sum(1), -1, 1)))


# ---- motion ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ramp", [0.05, 0.25, 0.5])
def test_eased_ends_are_at_rest_and_the_middle_is_steady(ramp: float) -> None:
    t = np.linspace(0, 1, 10_001)
    s = motion.eased(t, ramp)
    speed = np.diff(s) / np.diff(t)
    assert s[0] == 0 and s[-1] == 1
    assert speed[0] < 1e-4 and speed[-1] < 1e-4 and (speed >= 0).all()
    np.testing.assert_allclose(s + s[::-1], 1, atol=1e-12)
    steady = (t[:-1] > ramp) & (t[1:] < 1 - ramp)
    np.testing.assert_allclose(speed[steady], 1 / (1 - ramp), rtol=1e-8)
    assert np.abs(np.diff(speed)).max() < 20 * (t[1] - t[0]) / ramp  # no jump of the speed


def test_a_way_is_timed_by_its_length_however_it_was_sampled() -> None:
    u = np.linspace(0, 1, 400) ** 3  # dense at its beginning
    leg = motion.Leg(eye=np.stack([4 * u, 0 * u, 0 * u], 1), forward=np.tile([0, 1.0, 0], (400, 1)))
    eye, rotation = motion.timed((leg,), UP, 501, per_radian=1.0, ramp=0.1)
    steps = np.linalg.norm(np.diff(eye, axis=0), axis=1)
    np.testing.assert_allclose(steps[60:-60], 4 / 500 / 0.9, rtol=1e-6)
    np.testing.assert_allclose(eye[[0, -1]], [[0, 0, 0], [4, 0, 0]], atol=1e-9)
    assert angle_between_deg(rotation[:1], rotation).max() < 1e-6


def test_legs_join_at_rest_and_a_share_is_kept() -> None:
    a, b, c = np.zeros(3), np.array([1.0, 0, 0]), np.array([1.0, 3.0, 0])
    ahead = np.tile([0, 1.0, 0], (50, 1))
    first = motion.Leg(eye=np.linspace(a, b, 50), forward=ahead)
    wait = motion.Leg(eye=b[None], forward=ahead[:1], share=0.2)
    last = motion.Leg(eye=np.linspace(b, c, 50), forward=ahead)
    eye, _ = motion.timed((first, wait, last), UP, 1001, per_radian=1.0, ramp=0.1)
    np.testing.assert_allclose(eye[200:401], np.tile(b, (201, 1)), atol=1e-9)  # 1 : 3 of what the wait leaves
    np.testing.assert_allclose(eye[-1], c, atol=1e-9)
    assert np.linalg.norm(eye[199] - b) > 0 and np.linalg.norm(eye[402] - b) > 0


def test_smoothing_keeps_ends_and_steady_motion_and_rounds_corners() -> None:
    t = np.linspace(0, 1, 200)
    eye = np.stack([t, 2 * t, -t], 1)
    rotation = rotation_from_vector(t[:, None] * [0.3, 1.0, -0.2])
    eye2, rotation2 = motion.smoothed(eye, rotation, 4.0)
    np.testing.assert_allclose(eye2, eye, atol=1e-9)
    assert angle_between_deg(rotation, rotation2).max() < 1e-5
    corner = np.where(t[:, None] < 0.5, [1.0, 0, 0] * t[:, None], [0.5, 0, 0] + (t[:, None] - 0.5) * [0, 1.0, 0])
    round_, _ = motion.smoothed(corner, rotation, 4.0)
    np.testing.assert_allclose(round_[[0, -1]], corner[[0, -1]], atol=1e-12)
    assert (
        np.linalg.norm(np.diff(round_, 2, axis=0), axis=1).max()
        < 0.2 * np.linalg.norm(np.diff(corner, 2, axis=0), axis=1).max()
    )


def test_splines_go_through_their_knots_without_kinks() -> None:
    rng = np.random.default_rng(0)
    points, turns = rng.normal(size=(8, 3)), rotation_from_vector(rng.normal(size=(8, 3)) * 0.6)
    n = 2000
    way, rotation = motion.centripetal_catmull_rom(points, n), motion.squad(turns, n)
    np.testing.assert_allclose(way[::n], points, atol=1e-9)
    assert angle_between_deg(rotation[::n], turns).max() < 1e-5
    spin = np.einsum("tji,tjk->tik", rotation[:-1], rotation[1:])  # frame to frame
    w = np.stack([spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]], 1)
    jumps = np.linalg.norm(np.diff(w, axis=0), axis=1)
    assert jumps[n - 1 :: n].max() < 0.02 * np.linalg.norm(w, axis=1).max()  # the angular velocity at the knots


def test_upright_views_have_no_roll_and_refuse_the_vertical() -> None:
    rng = np.random.default_rng(1)
    forward = motion.unit(rng.normal(size=(200, 3)))
    r = motion.upright(forward, UP)
    np.testing.assert_allclose(np.swapaxes(r, 1, 2) @ r, np.tile(np.eye(3), (200, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(r), 1)
    np.testing.assert_allclose(r[:, 2, 0], 0, atol=1e-12)  # x axes are level
    assert (r[:, 2, 1] < 0).all()  # y axes point down
    gentle = np.abs(forward[:, 2]) < np.sin(np.radians(80))
    np.testing.assert_allclose(r[gentle, :, 2], forward[gentle], atol=1e-12)
    with pytest.raises(NoPath, match="no heading"):
        motion.upright(UP[None], UP)


def test_turned_yaws_to_the_right_and_pitches_up() -> None:
    ahead = np.array([0, 1.0, 0])
    np.testing.assert_allclose(motion.turned(ahead, UP, 90.0)[0], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(motion.turned(ahead, UP, 0.0, 30.0)[0], [0, np.sqrt(0.75), 0.5], atol=1e-12)


# ---- the survey ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_cameras(room: Survey) -> None:
    eye = ring_of_cameras()[:, :3, 3]
    np.testing.assert_allclose(room.centroid, eye.mean(0))
    assert room.radius == pytest.approx(np.median(np.linalg.norm(eye - eye.mean(0), axis=1)))
    np.testing.assert_allclose(room.up, UP, atol=1e-6)
    np.testing.assert_allclose(np.abs(room.axes[0]), [1, 0, 0], atol=1e-3)  # the longer half axis of the ring
    assert room.height_range == pytest.approx((-0.25, 0.25), abs=1e-6)
    assert room.focus is not None
    np.testing.assert_allclose(room.focus, CENTRE, atol=1e-6)
    assert room.cell == pytest.approx(room.radius / 64)
    assert not room.forward_facing and len(room.usable) == 48


def test_only_space_that_cameras_looked_through_is_free(room: Survey) -> None:
    inside_table, above_table = CENTRE - 0.5 * UP, CENTRE + 0.3 * UP
    behind_a_wall, between_cameras = np.array([3.0, 5.2, 1.4]), np.array([3.0, 4.0, 1.4])
    points = np.stack([inside_table, behind_a_wall, above_table, between_cameras])
    assert (room.clearance(points) > 0).tolist() == [False, False, True, True]
    top = np.array([3.0, 2.5, 0.8])
    assert room.solid(top[None])[0]
    for up in (0.2, 0.3, 0.4):
        assert room.clearance((top + up * UP)[None])[0] == pytest.approx(up, abs=2 * room.cell)
    blind = np.array([[3.0, 2.5, 2.75]])  # close under the ceiling nobody looked
    assert room.clearance(blind)[0] == 0


def test_a_large_disc_is_as_solid_as_many_small_ones() -> None:
    from longtake.render.paths.survey import _accumulate

    corner, a, b = np.zeros(3), np.array([4.0, 0, 0]), np.array([0, 4.0, 0])
    means, _, quaternions = panel(corner, a, b, 0.05)
    many = scene_of([(means, np.tile([0.04, 0.04, 0.002], (len(means), 1)), quaternions)], 0.5)
    one = scene_of([(np.array([[2.0, 2, 0]]), np.array([[3.0, 3.0, 0.002]]), quaternions[:1])], 0.5)
    origin, cell, shape = np.array([1.5, 1.5, -0.5]), 0.1, (10, 10, 10)
    for scene in (many, one):
        total = _accumulate(scene, origin, cell, shape)
        assert total[:, :, [0, 1, 2, 3, 7, 8, 9]].max() == 0
        assert total.sum(2).min() > 0.3  # every column holds a wall
    small = scene_of([(means[::40], np.tile([0.004, 0.004, 0.002], (len(means[::40]), 1)), quaternions[::40])], 0.5)
    assert _accumulate(small, origin, cell, shape).max() < 0.02  # a few specks are none


def test_clamping_leaves_the_captured_box_alone_and_never_leaves_the_zone(room: Survey) -> None:
    eye = ring_of_cameras()[:, :3, 3]
    np.testing.assert_allclose(room.clamp(eye), eye, atol=1e-9)
    far = room.clamp(CENTRE + 50 * motion.unit(np.random.default_rng(0).normal(size=(300, 3))))
    low, high = room.height_limits
    assert (room.height(far) > low).all() and (room.height(far) < high).all()
    assert (np.abs((far - room.centroid) @ room.axes[0]) <= 1.6 + 0.3 * room.radius + 1e-9).all()


def test_a_route_goes_round_what_is_in_the_way(room: Survey) -> None:
    cameras = ring_of_cameras()[:, :3, 3]
    way = room.route(cameras[0], cameras[24])
    assert (room.room(way[1:-1]) > 0).all() and not room.solid(way).any()
    np.testing.assert_allclose(way[[0, -1]], cameras[[0, 24]])
    with pytest.raises(NoPath, match="too far from free space"):
        room.route(cameras[0], np.array([3.0, 20.0, 1.0]))


def test_scenes_without_cameras_get_derived_ones(scene: Gaussians) -> None:
    ball = motion.unit(np.random.default_rng(0).normal(size=(4000, 3)))
    thing = scene_of([(ball, np.full((4000, 3), 0.03), np.tile([1.0, 0, 0, 0], (4000, 1)))])
    cameras, k = derive_cameras(thing, "outside")
    assert (np.linalg.norm(cameras[:, :3, 3], axis=1) > 2).all()
    assert (motion.unit(-cameras[:, :3, 3]) * cameras[:, :3, 2]).sum(1).min() > 0.999
    made = survey(thing, cameras, k, (1280, 704), anchors="derived_outside")
    beside = np.array([[0.0, 0.0, 0.6 * np.linalg.norm(cameras[0, :3, 3])]])  # where cameras see past the ball
    assert made.clearance(beside)[0] > 0.5
    path = attempt(made, "orbit", 0)
    assert isinstance(path, CameraPath)
    assert path.parameters["anchors"] == "derived_outside"
    np.testing.assert_allclose(made.up, [0, -1, 0], atol=1e-6)
    within, _ = derive_cameras(scene, "inside", up=UP)
    assert ((within[:, :3, 3] > 0) & (within[:, :3, 3] < [6, 5, 2.8])).all()
    nearest = np.linalg.norm(within[:, None, :3, 3] - scene.means[None, ::7], axis=2).min()
    assert nearest > 0.2


def test_a_survey_says_what_it_cannot_use(scene: Gaussians) -> None:
    cameras, k = ring_of_cameras(), intrinsics(48)
    with pytest.raises(LongtakeError, match="no cameras"):
        survey(scene, cameras[:0], k[:0], (640, 480))
    with pytest.raises(LongtakeError, match="do not match"):
        survey(scene, cameras, k[:5], (640, 480))
    with pytest.raises(LongtakeError, match="sees a Gaussian"):
        survey(scene, pose(cameras[:, :3, :3], cameras[:, :3, 3] + [0, 0, 90.0]) @ np.diag([1, -1, -1, 1]), k, (9, 9))
    tumbling = cameras.copy()
    tumbling[::2] = tumbling[::2] @ np.diag([-1.0, -1, 1, 1])
    with pytest.raises(LongtakeError, match="no up"):
        survey(scene, tumbling, k, (640, 480))
    clear = replace(scene, opacities=np.full(len(scene), 0.1, np.float32))
    with pytest.raises(LongtakeError, match="nothing to see"):
        survey(clear, cameras, k, (640, 480))


# ---- families --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_smooth_anchored_paths_that_a_seed_repeats(room: Survey, family: str) -> None:
    path, again, other = (propose(room, family, seed, config=SHORT) for seed in (5, 5, 6))
    np.testing.assert_array_equal(path.world_from_cam, again.world_from_cam)
    assert path.parameters == again.parameters and path.family == family
    assert np.abs(path.world_from_cam - other.world_from_cam).max() > 1e-3
    anchor = room.world_from_cam[int(path.parameters["anchor"]), :3, 3]
    assert np.linalg.norm(eyes(path) - anchor, axis=1).min() < 0.02 * room.radius
    results = {c.name: c for c in run_checks(path, room, PathLimits())}
    assert results["acceleration"].passed and results["roll"].value < 1e-6 and results["free_steps"].passed
    steps = travelled(path)
    assert steps[0] <= 0.25 * steps.max() + 1e-12 and steps[-1] <= 0.25 * steps.max() + 1e-12  # eased ends


@pytest.mark.parametrize("family", ["orbit", "dolly", "in_place", "revisit"])
def test_a_smaller_extent_is_the_same_move_made_smaller(room: Survey, family: str) -> None:
    large, small = (propose(room, family, 3, extent=e, config=SHORT) for e in (1.0, 0.5))
    assert large.parameters.get("variant") == small.parameters.get("variant") or family == "orbit"
    assert large.parameters["anchor"] == small.parameters["anchor"]

    def size(path: CameraPath) -> float:
        turn = angle_between_deg(path.world_from_cam[:-1, :3, :3], path.world_from_cam[1:, :3, :3])
        return float(travelled(path).sum() + np.radians(turn.sum()))

    assert 0.3 < size(small) / size(large) < 0.75


def test_an_orbit_looks_at_its_focus_from_one_distance(room: Survey) -> None:
    path = find(room, "orbit", "circle")
    focus = focus_of(path)
    assert off_focus_deg(path, focus).max() < 0.5
    level = np.linalg.norm((eyes(path) - focus)[:, :2], axis=1)
    assert np.ptp(level) < 0.2 * level.mean()  # the captured zone bends it a little
    np.testing.assert_allclose(eyes(path)[0], eyes(path)[-1], atol=1e-6)
    yaw = np.unwrap(np.arctan2(*(eyes(path) - focus)[:, 1::-1].T))
    assert abs(yaw[-1] - yaw[0]) == pytest.approx(2 * np.pi, abs=1e-3)


def test_a_spiral_changes_radius_and_height_together(room: Survey) -> None:
    path = find(room, "spiral", "spiral")
    focus = focus_of(path)
    level = np.linalg.norm((eyes(path) - focus)[:, :2], axis=1)
    assert level[-1] < 0.85 * level[0] and abs(eyes(path)[-1, 2] - eyes(path)[0, 2]) > 0.05
    assert off_focus_deg(path, focus).max() < 0.5


def test_a_lemniscate_crosses_itself_and_returns(room: Survey) -> None:
    path = find(room, "spiral", "lemniscate")
    start = eyes(path)[0]
    np.testing.assert_allclose(eyes(path)[-1], start, atol=1e-6)
    middle = slice(60, 101)
    assert np.linalg.norm(eyes(path)[middle] - start, axis=1).min() < 0.03  # through the crossing half-way
    azimuth = np.degrees(np.unwrap(np.arctan2(*(eyes(path) - focus_of(path))[:, 1::-1].T)))
    assert np.ptp(azimuth) == pytest.approx(60, abs=6)


@pytest.mark.parametrize("variant", ["in", "out", "in_out"])
def test_a_dolly_keeps_to_the_view_ray_and_a_third_of_the_depth(room: Survey, variant: str) -> None:
    path = find(room, "dolly", variant)
    forward = forwards(path)[0]
    assert angle_between_deg(path.world_from_cam[:1, :3, :3], path.world_from_cam[:, :3, :3]).max() < 1e-5
    along = (eyes(path) - eyes(path)[0]) @ forward
    across = eyes(path) - eyes(path)[0] - along[:, None] * forward
    assert np.linalg.norm(across, axis=1).max() < 1e-9
    farthest = along[np.abs(along).argmax()]
    assert (farthest < 0) == (variant == "out")
    assert abs(farthest) <= room.depth_ahead(int(path.parameters["anchor"])) / 3
    if variant == "in_out":
        np.testing.assert_allclose(along[-1], 0, atol=1e-6)
        assert len(path.revisit_pairs) > 40


def test_a_fly_through_stays_free_and_goes_far(room: Survey) -> None:
    path = propose(room, "fly_through", 1, config=SHORT)
    assert (room.clearance(eyes(path)) > 0.05 * room.radius).all()
    assert np.linalg.norm(eyes(path) - eyes(path)[0], axis=1).max() > room.radius
    level = motion.unit(np.gradient(eyes(path), axis=0)[20:-20])
    assert np.median((level * forwards(path)[20:-20]).sum(1)) > 0.4  # it looks ahead, as far as the ring allows


def test_a_random_walk_stays_inside_the_allowed_space(room: Survey) -> None:
    walks = [propose(room, "random_walk", seed, config=SHORT) for seed in range(4)]
    for path in walks:
        assert (room.clearance(eyes(path)) > 0).all()
        assert room.distance_to_cameras(eyes(path)).max() < 0.35 * room.radius
    turns = [angle_between_deg(p.world_from_cam[:1, :3, :3], p.world_from_cam[-1:, :3, :3])[0] for p in walks]
    assert np.ptp(turns) > 5


def test_a_crane_rises_and_tilts_down_on_its_subject(room: Survey) -> None:
    path = find(room, "crane", "crane")
    height, pitch = eyes(path)[:, 2], np.degrees(np.arcsin(forwards(path)[:, 2]))
    assert (np.diff(height) > -1e-9).all() and height[-1] - height[0] > 0.05 * room.radius
    assert pitch[-1] < pitch[0] - 2
    assert off_focus_deg(path, focus_of(path)).max() < 0.5


def test_a_pendulum_swings_evenly_to_both_sides(room: Survey) -> None:
    path = find(room, "crane", "pendulum")
    azimuth = np.degrees(np.unwrap(np.arctan2(*(eyes(path) - CENTRE)[:, 1::-1].T)))
    azimuth -= azimuth[0]
    assert azimuth.max() == pytest.approx(-azimuth.min(), rel=0.15)
    crossings = (np.diff(np.sign(azimuth[5:-5])) != 0).sum()
    assert crossings >= 2 * int(path.parameters["swings"]) - 1
    assert azimuth[-1] == pytest.approx(0, abs=0.01)


def test_a_compound_move_glides_from_one_primitive_into_the_next(room: Survey) -> None:
    for seed in range(3):
        path = propose(room, "compound", seed, config=SHORT)
        assert 3 <= len(str(path.parameters["primitives"]).split()) <= 6
        velocity = np.diff(eyes(path), axis=0)
        spin = np.diff(forwards(path), axis=0)
        for v in (velocity, spin):
            fastest = np.linalg.norm(v, axis=1).max()
            assert np.linalg.norm(np.diff(v, axis=0), axis=1).max() < 0.35 * fastest  # spread over many frames
        assert np.linalg.norm(velocity, axis=1).max() > 0


def test_out_and_back_shows_every_place_twice(room: Survey) -> None:
    path = find(room, "revisit", "out_and_back")
    back = path.world_from_cam[::-1]
    np.testing.assert_allclose(eyes(path), back[:, :3, 3], atol=1e-6)
    assert angle_between_deg(path.world_from_cam[:, :3, :3], back[:, :3, :3]).max() < 1e-3
    assert len(path.revisit_pairs) > 40
    i, j = path.revisit_pairs.T
    assert (i < j).all()
    assert np.linalg.norm(eyes(path)[i] - eyes(path)[j], axis=1).max() <= 0.02 * room.radius
    assert angle_between_deg(path.world_from_cam[i, :3, :3], path.world_from_cam[j, :3, :3]).max() <= 3


def test_another_heading_comes_back_to_the_same_places_turned(room: Survey) -> None:
    path = find(room, "revisit", "other_heading")
    turn = abs(float(path.parameters["turn_deg"]))
    i, j = path.revisit_pairs.T
    assert len(i) > 40
    assert np.linalg.norm(eyes(path)[i] - eyes(path)[j], axis=1).max() <= 0.02 * room.radius
    angle = angle_between_deg(path.world_from_cam[0, None, :3, :3], path.world_from_cam[-1, None, :3, :3])[0]
    assert 0.8 * turn < angle <= turn + 0.1  # a yaw turns a view that looks down by less


def test_a_loop_closes_in_place_and_heading(room: Survey) -> None:
    path = find(room, "revisit", "loop")
    first, last = path.world_from_cam[0], path.world_from_cam[-1]
    np.testing.assert_allclose(first, last, atol=1e-6)
    assert len(path.revisit_pairs) and travelled(path).sum() > 0.3 * room.radius


def test_look_away_returns_to_what_it_saw(room: Survey) -> None:
    path = find(room, "revisit", "look_away")
    assert np.ptp(eyes(path), axis=0).max() < 1e-9
    angle = angle_between_deg(path.world_from_cam[:1, :3, :3], path.world_from_cam[:, :3, :3])
    assert angle.max() > 30 and angle[-1] < 1e-4
    assert len(path.revisit_pairs) > 10


@pytest.mark.parametrize("variant", ["pan", "look_around"])
def test_turning_in_place_has_no_translation(room: Survey, variant: str) -> None:
    path = find(room, "in_place", variant)
    assert np.ptp(eyes(path), axis=0).max() < 1e-12
    yaw = np.degrees(np.unwrap(np.arctan2(forwards(path)[:, 1], forwards(path)[:, 0])))
    if variant == "pan":
        assert abs(yaw[-1] - yaw[0]) == pytest.approx(abs(float(path.parameters["sweep_deg"])), abs=0.01)
    else:
        assert np.ptp(yaw) == pytest.approx(2 * float(path.parameters["yaw_deg"]), rel=0.05)
        np.testing.assert_allclose(path.world_from_cam[0], path.world_from_cam[-1], atol=1e-6)


def test_a_path_near_training_cameras_stays_near_them(room: Survey) -> None:
    path = propose(room, "near_training", 4, config=SHORT)
    assert room.distance_to_cameras(eyes(path)).max() < 0.35 * room.radius
    assert 8 <= int(path.parameters["cameras"]) <= 20
    assert off_focus_deg(path, CENTRE).max() < 30  # as the training cameras do


def test_forward_facing_scenes_are_looked_at_in_their_centre() -> None:
    wall = scene_of([panel(np.array([0.0, 4, 0]), np.array([6.0, 0, 0]), np.array([0, 0, 3.0]), 0.1)])
    x, z = (g.ravel() for g in np.meshgrid(np.linspace(2.4, 3.6, 6), np.linspace(1.2, 1.8, 4)))
    eye = np.stack([x, 0 * x, z], 1)
    front = survey(wall, look_at(eye, eye + np.array([0, 4.0, 0])), intrinsics(24), (640, 480))
    assert front.forward_facing and front.focus is None
    np.testing.assert_allclose(front.scene_centre, [3, 4, 1.5], atol=0.06)
    path = propose(front, "random_walk", 0, config=SHORT)
    assert off_focus_deg(path, front.scene_centre).max() < 1


def test_zoom_is_smooth_in_the_logarithm_and_roll_only_when_asked(room: Survey) -> None:
    zoomed = propose(room, "orbit", 2, config=replace(SHORT, zoom=(1.5, 2.0)))
    plain = propose(room, "orbit", 2, config=SHORT)
    np.testing.assert_array_equal(zoomed.world_from_cam, plain.world_from_cam)
    log_f = np.log(zoomed.intrinsics[:, 0])
    assert np.ptp(log_f) == pytest.approx(np.log(float(zoomed.parameters["zoom"])), abs=1e-3)
    assert 1.5 <= float(zoomed.parameters["zoom"]) <= 2.0
    assert np.abs(np.diff(log_f, 2)).max() < 0.1 * np.abs(np.diff(log_f)).max()
    np.testing.assert_array_equal(zoomed.intrinsics[:, 2:], plain.intrinsics[:, 2:])
    lean = propose(room, "orbit", 2, config=replace(SHORT, roll_deg=12.0))
    results = {c.name: c for c in run_checks(lean, room, PathLimits())}
    assert results["roll"].value == pytest.approx(12, abs=0.1) and results["roll"].passed
    np.testing.assert_allclose(plain.intrinsics[0, 2:], [639.5, 351.5])  # the middle, pixel centres at integers


def test_wrong_requests_are_named(room: Survey) -> None:
    with pytest.raises(LongtakeError, match="'orbits' is none of near_training, orbit"):
        propose(room, "orbits", 0)
    with pytest.raises(LongtakeError, match="no path"):
        PathConfig(num_frames=3)
    with pytest.raises(LongtakeError, match="zoom"):
        PathConfig(zoom=(0.0, 2.0))
    with pytest.raises(ValueError, match="not a rigid motion"):
        replace(propose(room, "orbit", 0, config=SHORT), world_from_cam=np.tile(2 * np.eye(4), (161, 1, 1)))


# ---- checks ----------------------------------------------------------------------------------------------------------


def moved(path: CameraPath, eye: NDArray) -> CameraPath:
    return replace(path, world_from_cam=pose(path.world_from_cam[:, :3, :3], eye))


def spun(path: CameraPath, vector: NDArray) -> CameraPath:
    """Turned in the camera's own axes by rotation vectors [T, 3] or [3], degrees."""
    turn = rotation_from_vector(np.broadcast_to(np.radians(vector), (path.num_frames, 3)))
    return replace(path, world_from_cam=path.world_from_cam @ pose(turn, np.zeros((path.num_frames, 3))))


def shifted(path: CameraPath, *by: float) -> CameraPath:
    return moved(path, eyes(path) + np.array(by))


def with_zoom(path: CameraPath) -> CameraPath:
    k = path.intrinsics.copy()
    k[:, :2] *= np.linspace(1, 1.2, len(k))[:, None]
    return replace(path, intrinsics=k)


def with_focal(path: CameraPath, factor: float) -> CameraPath:
    return replace(path, intrinsics=path.intrinsics * [factor, factor, 1, 1])


def shaken(path: CameraPath) -> CameraPath:
    step = np.median(travelled(path))
    return moved(path, eyes(path) + np.where(np.arange(path.num_frames) % 2, 1.0, 0.0)[:, None] * [0, 0, step])


def placed(path: CameraPath, *places: tuple[float, float, float]) -> CameraPath:
    eye = eyes(path).copy()
    eye[80 : 80 + len(places)] = places
    return moved(path, eye)


def turned_round(path: CameraPath) -> CameraPath:
    return spun(path, np.array([0, 180.0, 0]))


def jolted(path: CameraPath) -> CameraPath:
    return spun(path, np.where(np.arange(path.num_frames) == 80, 5.0, 0.0)[:, None] * [0, 1.0, 0])


BREAKERS: dict[str, Callable[[CameraPath], CameraPath]] = {
    "unasked_zoom": with_zoom,
    "field_of_view": lambda p: with_focal(p, 3.0),
    "roll": lambda p: spun(p, np.array([0, 0, 6.0])),
    "rotation_speed": jolted,
    "acceleration": shaken,
    "captured_zone": lambda p: shifted(p, 0.8, 0, 0),
    "height": lambda p: shifted(p, 0, 0, 0.5),
    "free_space": lambda p: placed(p, (3.0, 2.5, 0.84)),
    "free_steps": lambda p: placed(p, (2.2, 2.5, 0.5), (3.8, 2.5, 0.5)),
    "coverage": lambda p: turned_round(shifted(p, 0, 0, 40.0)),
    "translation_speed": lambda p: replace(p, fps=p.fps * 20),
    "view_support": turned_round,
}


@pytest.mark.parametrize("name", BREAKERS)
def test_a_check_fails_when_it_should(room: Survey, arc: CameraPath, name: str) -> None:
    broken = {c.name: c for c in run_checks(BREAKERS[name](arc), room, PathLimits())}
    assert not broken[name].passed, broken[name]
    if name != "unasked_zoom":
        whole = {c.name: c for c in run_checks(arc, room, PathLimits())}
        assert whole[name].passed, whole[name]


def test_a_wide_view_fails_as_well_as_a_narrow_one(room: Survey, arc: CameraPath) -> None:
    wide = next(run_checks(with_focal(arc, 0.2), room, PathLimits()))
    assert wide.name == "field_of_view" and wide.bound == "at_most" and not wide.passed and wide.value > 120


def test_unknown_space_is_refused_like_solid_space(room: Survey, arc: CameraPath) -> None:
    inside_table = {c.name: c for c in run_checks(placed(arc, (3.0, 2.5, 0.4)), room, PathLimits())}
    assert inside_table["free_space"].value == 0


@pytest.fixture(scope="module")
def drawn(room: Survey, scene: Gaussians, arc: CameraPath) -> dict[str, CheckResult]:
    return {c.name: c for c in run_checks(arc, room, PathLimits(every=40), draw_points(scene))}


@pytest.mark.parametrize("name", ["surface_distance", "empty_tiles", "blank_frames"])
def test_a_check_of_drawn_views_fails_when_it_should(
    room: Survey, arc: CameraPath, drawn: dict[str, CheckResult], name: str
) -> None:
    assert len(drawn) == 14
    assert drawn[name].passed, drawn[name]
    count = 0

    def draw(world_from_cam: NDArray, k: NDArray, width: int, height: int) -> tuple[NDArray, NDArray]:
        nonlocal count
        count += 1
        alpha, depth = np.ones((height, width)), np.full((height, width), 3.0)
        if name == "surface_distance":
            depth[: height // 10] = 0.05
        if name == "empty_tiles":
            alpha[height // 4 :] = 0
        if name == "blank_frames" and count % 2:
            alpha[:] = 0.4
        return alpha, depth

    results = {c.name: c for c in run_checks(arc, room, PathLimits(), draw)}
    assert not results[name].passed, results[name]
    others = {"surface_distance", "empty_tiles", "blank_frames"} - {name}
    assert results["translation_speed"].limit == pytest.approx(0.25 * 3.0, abs=0.01)  # of the drawn median depth
    if name == "surface_distance":
        assert all(results[other].passed for other in others)


def test_checks_stop_at_the_first_failure(room: Survey, arc: CameraPath) -> None:
    limits = PathLimits(max_turn_deg_s=1e-3)
    result = attempt(room, arc.family, arc.seed, extent=0.7, config=SHORT, limits=limits, draw=None)
    assert isinstance(result, Rejected) and result.reason == "rotation_speed" and "above its limit" in result.message
    assert not CheckResult(name="x", value=float("nan"), limit=1.0, bound="at_most").passed


# ---- design and benchmark --------------------------------------------------------------------------------------------


def test_design_follows_the_recipe_and_counts_what_it_rejects(room: Survey) -> None:
    config = PathConfig(num_frames=241)
    made = design(room, 40, seed=1, config=config)
    assert len(made.outcomes) == 40
    assert made.table["near_training"]["candidates"] == 10 and set(made.table) == set(FAMILIES)
    assert all(3 <= row["candidates"] <= 4 for name, row in made.table.items() if name != "near_training")
    assert len(made.paths) >= 30  # an easy room
    assert len(made.paths) + sum(made.rejected.values()) == 40
    assert {p.family for p in made.paths} == set(FAMILIES)
    for path in made.paths:
        assert path.num_frames == 241 and len(path.checks) == 11 and all(c.passed for c in path.checks)
    kept = made.paths[3]
    one = propose(room, kept.family, kept.seed, extent=float(kept.parameters["extent"]), config=config)
    np.testing.assert_array_equal(one.world_from_cam, kept.world_from_cam)


def test_design_rejects_and_says_why(room: Survey) -> None:
    made = design(room, 6, seed=0, config=SHORT, limits=PathLimits(min_supporters=99))
    assert made.rejected == {"view_support": 6} and not made.paths
    assert all("view_support is" in o.message and o.extent < 0.5 for o in made.outcomes)


def test_benchmark_paths_keep_the_published_rules(room: Survey) -> None:
    rules = BenchmarkRules()
    paths = [benchmark_path(room, seed, metres_per_unit=1.0) for seed in (0, 1, 2)]
    for path in paths:
        assert path.num_frames == 961 and path.fps == 16 and 11 <= int(path.parameters["waypoints"]) <= 15
        turn = angle_between_deg(path.world_from_cam[:-1, :3, :3], path.world_from_cam[1:, :3, :3])
        assert turn.max() * 16 <= 12 and travelled(path).max() * 16 <= 0.4
        depth = room.depth_ahead(int(path.parameters["anchor"]))
        assert np.linalg.norm(eyes(path) - eyes(path)[0], axis=1).max() <= 0.6 * depth
        assert room.clearance(eyes(path)).min() >= 0.3
        i, j = path.revisit_pairs.T
        assert len(i) > 50 and np.linalg.norm(eyes(path)[i] - eyes(path)[j], axis=1).max() <= rules.revisit_m
        assert angle_between_deg(path.world_from_cam[i, :3, :3], path.world_from_cam[j, :3, :3]).max() <= 20
        assert np.median(j - i) > 400  # seen again much later
        assert all(c.passed for c in path.checks) and len(path.checks) == 5
    again = benchmark_path(room, 2, metres_per_unit=1.0)
    np.testing.assert_array_equal(again.world_from_cam, paths[2].world_from_cam)


def test_benchmark_paths_slow_down_on_a_hit_and_give_up_after_three(room: Survey) -> None:
    free = benchmark_path(room, 0, metres_per_unit=1.0, rules=BenchmarkRules(margin_m=0.0))
    nearest = room.clearance(eyes(free)).min()
    careful = benchmark_path(room, 0, metres_per_unit=1.0, rules=BenchmarkRules(margin_m=nearest + 0.02))
    hits = int(careful.parameters["hits"])
    assert free.parameters["hits"] == 0 and hits >= 1
    assert travelled(careful).sum() == pytest.approx(0.7**hits * travelled(free).sum(), rel=0.05)
    with pytest.raises(NoPath, match="after 3 slower tries"):
        benchmark_path(room, 0, metres_per_unit=1.0, rules=BenchmarkRules(margin_m=3.0))


def test_revisit_pairs_need_a_leave_and_a_return() -> None:
    x = np.concatenate([np.zeros(30), np.linspace(0, 1, 30), np.linspace(1, 0, 30)])
    poses = pose(np.tile(np.eye(3), (90, 1, 1)), np.stack([x, 0 * x, 0 * x], 1))
    pairs = revisit_pairs(poses, max_distance=0.05, max_angle_deg=5)
    assert len(pairs) and (pairs[:, 1] >= 60).all()  # standing still at first is no return
    assert not len(revisit_pairs(poses[:60], max_distance=0.05, max_angle_deg=5))
    turned = pose(rotation_from_vector(np.linspace(0, 3, 90)[:, None] * [0, 1.0, 0]), poses[:, :3, 3])
    assert not len(revisit_pairs(turned, max_distance=0.05, max_angle_deg=5))  # the same place, but another view
