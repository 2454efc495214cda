"""Bundle adjustment: a public benchmark's optimum, recovery of synthetic scenes, and the laws of the solver."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longtake.annotate import bundle
from longtake.annotate.bundle import Bundle, BundleConfig, adjust, batch_resect
from longtake.geometry import align_similarity, angle_between_deg, distort, invert_pose, pose, rotation_from_vector

ALL = frozenset({"f", "aspect", "cx", "cy", "k1", "k2"})


def read_bal(path: Path) -> Bundle:
    """A problem of "Bundle Adjustment in the Large", its axes (y up, looking along -z) turned to OpenCV's."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        views, points, obs = map(int, file.readline().split())
        numbers = np.array(file.read().split(), np.float64)
    seen = numbers[: 4 * obs].reshape(obs, 4)
    cameras = numbers[4 * obs : 4 * obs + 9 * views].reshape(views, 9)
    flip = np.diag([1.0, -1.0, -1.0])
    zero = np.zeros(views)
    return Bundle(
        cam_from_world=pose(flip @ rotation_from_vector(cameras[:, :3]), cameras[:, 3:6] @ flip),
        points=numbers[4 * obs + 9 * views :].reshape(points, 3),
        intrinsics=np.stack([cameras[:, 6], cameras[:, 6], zero, zero, cameras[:, 7], cameras[:, 8]], 1),
        view_group=np.arange(views),
        obs_view=seen[:, 0].astype(np.int64),
        obs_point=seen[:, 1].astype(np.int64),
        obs_xy=seen[:, 2:] * [1, -1],
    )


def camera_path(views: int, kind: str) -> NDArray:
    """cam_from_world [V, 4, 4] of a camera that looks along z and moves, walks straight ahead, or only turns."""
    s = np.linspace(0, 1, views)
    turn = np.stack([0.1 * np.sin(5 * s), -0.3 * (s - 0.5), 0.1 * s], 1)
    if kind == "general":
        centre = np.stack([3 * s - 1.5, 0.3 * np.sin(6 * s), 0.5 * s], 1)
    elif kind == "forward":
        turn, centre = np.zeros((views, 3)), np.stack([0 * s, 0 * s, 2 * s], 1)
    else:
        turn, centre = np.stack([0.1 * np.sin(5 * s), -0.8 * (s - 0.5), 0.1 * s], 1), np.zeros((views, 3))
    rotation = np.swapaxes(rotation_from_vector(turn), 1, 2)
    return pose(rotation, -(rotation @ centre[:, :, None])[:, :, 0])


def make_scene(
    *,
    views: int = 8,
    points: int = 120,
    noise: float = 0.3,
    seed: int = 0,
    kind: str = "general",
    zoom: bool = False,
    outliers: float = 0.0,
    track: int = 6,
    k1: float = -0.1,
    k2: float = 0.02,
) -> Bundle:
    """A true scene seen with noise: 640 x 480, f = 600 (growing by half where `zoom`), tracks `track` views long."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform([-4, -3, 4], [4, 3, 12], (points, 3))
    poses = camera_path(views, kind)
    f = 600 * (1 + 0.5 * np.linspace(0, 1, views)) if zoom else np.array([600.0])
    intrinsics = np.stack([f, f, 0 * f + 320, 0 * f + 240, 0 * f + k1, 0 * f + k2], 1)
    group = np.arange(views) if zoom else np.zeros(views, np.int64)
    view, point = np.divmod(np.arange(views * points), points)
    in_camera = np.einsum("oij,oj->oi", poses[view, :3, :3], xyz[point]) + poses[view, :3, 3]
    k = intrinsics[group[view]]
    n = in_camera[:, :2] / in_camera[:, 2:]
    xy = n * (1 + k[:, 4] * (n * n).sum(1) + k[:, 5] * (n * n).sum(1) ** 2)[:, None] * k[:, :2] + k[:, 2:4]
    keep = (in_camera[:, 2] > 0.5) & (np.abs(xy - [320, 240]) < [400, 300]).all(1)
    keep &= np.abs(point % views - view) <= track
    view, point, xy = view[keep], point[keep], xy[keep]
    xy = xy + noise * rng.normal(size=xy.shape)
    bad = rng.random(len(xy)) < outliers
    xy[bad] += 40 * rng.normal(size=(bad.sum(), 2))
    return Bundle(
        cam_from_world=poses,
        points=xyz,
        intrinsics=intrinsics,
        view_group=group,
        obs_view=view,
        obs_point=point,
        obs_xy=xy,
    )


def disturb(scene: Bundle, *, seed: int = 1, focal: float = 1.1, turn: float = 0.01, shift: float = 0.1) -> Bundle:
    """A start some way off: poses, points and focal lengths wrong, no distortion."""
    rng = np.random.default_rng(seed)
    poses, intrinsics = scene.cam_from_world.copy(), scene.intrinsics.copy()
    poses[:, :3, :3] = rotation_from_vector(turn * rng.normal(size=(len(poses), 3))) @ poses[:, :3, :3]
    poses[:, :3, 3] += shift * rng.normal(size=(len(poses), 3))
    intrinsics[:, :2] *= focal
    intrinsics[:, 4:] = 0
    points = scene.points + shift * rng.normal(size=scene.points.shape)
    return replace(scene, cam_from_world=poses, points=points, intrinsics=intrinsics)


def sigma(found: bundle.Adjusted | bundle.Resected) -> NDArray:
    assert found.focal_sigma is not None
    return found.focal_sigma


def pose_errors(found: Bundle, truth: Bundle) -> tuple[float, float]:
    """Largest errors of orientation (degrees) and of the camera centres, after the best similarity."""
    a, b = invert_pose(found.cam_from_world), invert_pose(truth.cam_from_world)
    s, rotation, t = align_similarity(a[:, :3, 3], b[:, :3, 3])
    centres = np.linalg.norm(s * a[:, :3, 3] @ rotation.T + t - b[:, :3, 3], axis=1)
    return float(angle_between_deg(rotation @ a[:, :3, :3], b[:, :3, :3]).max()), float(centres.max())


def test_reaches_the_optimum_of_ladybug(shared_data):
    problem = read_bal(shared_data / "bal" / "ladybug-49-7776-pre.txt.gz")
    config = BundleConfig(max_iterations=100, cost_tolerance=1e-7, cheirality=False)  # BAL's cost has no front
    found = adjust(problem, config, free_intrinsics=frozenset({"f", "k1", "k2"}))
    assert found.initial_cost == pytest.approx(850912.46, rel=1e-6)
    assert found.final_cost == pytest.approx(13344.256, rel=1e-4)
    assert found.converged
    assert 0.5 * (found.residuals**2).sum() == pytest.approx(found.final_cost, rel=1e-9)
    assert np.sqrt((found.residuals**2).sum(1).mean()) == pytest.approx(0.9155, rel=1e-3)


def test_fits_dubrovnik_exactly(shared_data):
    problem = read_bal(shared_data / "bal" / "dubrovnik-3-7-pre.txt")
    found = adjust(problem, BundleConfig(max_iterations=200), free_intrinsics=frozenset({"f", "k1", "k2"}))
    assert found.initial_cost == pytest.approx(2764.220, rel=1e-6)
    assert found.final_cost < 1e-6


@pytest.mark.parametrize("pose_dof", [3, 6])
def test_jacobians_match_finite_differences(pose_dof):
    scene = make_scene(views=3, points=20, noise=0)
    free = list(range(6))
    rng = np.random.default_rng(0)
    rotation = torch.tensor(scene.cam_from_world[scene.obs_view, :3, :3])
    translation = torch.tensor(scene.cam_from_world[scene.obs_view, :3, 3])
    points = torch.tensor(scene.points[scene.obs_point].T)
    theta = torch.tensor([np.log(600), 0.02, 320, 240, -0.1, 0.02], dtype=torch.float64)[:, None].repeat(
        1, len(points.T)
    )
    xy = torch.tensor(scene.obs_xy.T)
    scale = torch.tensor(rng.uniform(0.5, 2, len(scene.obs_view)))

    def project(step: torch.Tensor, step_point: torch.Tensor) -> tuple[torch.Tensor, bundle._Projection]:
        turn = bundle._rotation(step[:3].T.contiguous())
        moved = (turn @ translation[:, :, None])[:, :, 0] + (step[3:6].T if pose_dof == 6 else 0)
        state = bundle._State(turn @ rotation, moved, points + step_point, theta + step[pose_dof:])
        camera = bundle._camera_table(state, torch.arange(len(xy.T)))
        return camera, bundle._project(camera, state.points, xy)

    zero, zero_point = torch.zeros(pose_dof + 6, len(xy.T)).double(), torch.zeros_like(points)
    camera, projection = project(zero, zero_point)
    by_camera, by_point = bundle._jacobians(camera, projection, scale, pose_dof, free)
    h = 1e-6
    for row in range(pose_dof + 6):
        step = zero.clone()
        step[row] = h
        slope = scale * (project(step, zero_point)[1].residual - project(-step, zero_point)[1].residual) / (2 * h)
        # central differences: h^2 truncation, 1e-13 / h rounding, on slopes up to 1e3
        torch.testing.assert_close(by_camera[:, row], slope, rtol=1e-6, atol=1e-5)
    for row in range(3):
        step = zero_point.clone()
        step[row] = h
        slope = scale * (project(zero, step)[1].residual - project(zero, -step)[1].residual) / (2 * h)
        torch.testing.assert_close(by_point[:, row], slope, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("views", "track", "zoom", "uses"),
    [(8, 8, False, "chunks"), (8, 1, True, "tiles"), (100, 2, False, "tiles"), (20, 12, True, "chunks")],
)
def test_reduced_system_is_the_schur_complement(views, track, zoom, uses):
    scene = make_scene(views=views, points=200, track=track, zoom=zoom)
    repeated = np.r_[np.arange(len(scene.obs_view)), 5, 6, 7]  # a view that sees a point twice is no special case
    scene = replace(
        scene,
        obs_view=scene.obs_view[repeated],
        obs_point=scene.obs_point[repeated],
        obs_xy=scene.obs_xy[repeated],
    )
    fixed = np.arange(views) == 2
    free = frozenset({"f", "k1"})
    config = BundleConfig()
    layout = bundle._Layout(scene, config, free, frozenset({"k1"}), fixed, None, False, "cpu")
    priors = bundle._Priors(layout, scene, None, None, None, None, None, None)
    assert (layout.chunks if uses == "chunks" else layout.tiles) not in (None, [])
    start = layout.start(scene)
    system = bundle._linearise(layout, priors, config, start, bundle._evaluate(layout, priors, config, start))
    m = bundle._inverse_factors(system.point_hessian, 1e-3)
    found = bundle._reduced(layout, system, bundle._lower(m[:, layout.point], system.point_jacobian))

    n, num_obs = layout.num_parameters, layout.num_obs
    camera, point = np.zeros((2, num_obs, n + 1)), np.zeros((2, num_obs, 3 * layout.num_points))
    for o in range(num_obs):
        np.add.at(camera[:, o].T, layout.local[layout.view[o]].numpy(), system.camera_jacobian[:, :, o].T.numpy())
        point[:, o, 3 * layout.point[o] : 3 * layout.point[o] + 3] = system.point_jacobian[:, :, o].numpy()
    camera, point = camera.reshape(-1, n + 1), point.reshape(2 * num_obs, -1)
    h = point.T @ point
    h += 1e-3 * np.diag(np.diag(h))
    expected = camera.T @ camera - camera.T @ point @ np.linalg.solve(h, point.T @ camera)
    row, col = np.tril_indices(n)
    assert layout.blocks is not None
    found[-1] = 0  # what is not stored
    scale = np.sqrt(np.diag(camera.T @ camera))
    error = np.abs(found[layout.blocks.cells(row, col)].numpy() - expected[row, col]) / (scale[row] * scale[col])
    assert error.max() < 1e-11


def test_block_factorisation_solves():
    rng = np.random.default_rng(0)
    n, width = 53, 10
    a = np.zeros((n, n))
    for i in range(0, n - 3):  # a band, a loop closure and an arrow
        a[i : i + 4, i : i + 4] += np.eye(4) + 0.3
    a[40:44, 3:7], a[50:, :] = 0.2, 0.1
    a = np.tril(a) + np.tril(a, -1).T + 5 * np.eye(n)
    pattern = np.zeros((6, 6), bool)
    np.logical_or.at(pattern, (np.arange(n)[:, None] // width, np.arange(n) // width), a != 0)
    blocks = bundle._Blocks(n, width, pattern, torch.device("cpu"))
    assert blocks.num_blocks < 21  # of the lower triangle
    flat = torch.zeros(blocks.num_cells, dtype=torch.float64)
    flat[torch.tensor(blocks.cells(*np.indices((n, n))))] = torch.tensor(a)
    rhs = rng.normal(size=n)
    assert blocks.factor(flat)
    np.testing.assert_allclose(blocks.solve(flat, torch.tensor(rhs)).numpy(), np.linalg.solve(a, rhs), rtol=1e-10)
    indefinite = torch.zeros_like(flat)
    indefinite[blocks.diagonal[:-1]] = 1.0
    assert not blocks.factor(indefinite)


def test_recovers_focal_length_distortion_and_poses():
    scene = make_scene(points=300)
    found = adjust(disturb(scene), BundleConfig(), free_intrinsics=frozenset({"f", "k1", "k2"}), covariance=True)
    assert found.converged
    assert sigma(found)[0] < 0.005
    assert abs(np.log(found.bundle.intrinsics[0, 0] / 600)) < 4 * sigma(found)[0]
    assert found.bundle.intrinsics[0, 4] == pytest.approx(-0.1, abs=0.02)
    turn, shift = pose_errors(found.bundle, scene)
    assert turn < 0.1 and shift < 0.02  # noise 0.3 px = 0.03 degrees a feature, at 8 m 4 mm
    assert np.sqrt((found.residuals**2).mean()) == pytest.approx(0.3, rel=0.15)


def test_recovers_a_zoom_with_smoothness_and_one_distortion():
    scene = make_scene(views=12, points=300, zoom=True)
    start = disturb(scene)
    flat = start.intrinsics.copy()
    flat[:, :2] = 750
    found = adjust(
        replace(start, intrinsics=flat),
        BundleConfig(),
        free_intrinsics=frozenset({"f", "k1"}),
        tied_intrinsics=frozenset({"k1"}),
        log_focal_smooth=np.full(11, 0.05),
        distortion_prior_sigma=0.3,
        covariance=True,
    )
    f = found.bundle.intrinsics
    assert np.abs(np.log(f[:, 0] / scene.intrinsics[:, 0])).max() < 0.02
    assert np.ptp(f[:, 4]) == 0 and f[0, 4] < -0.03  # k2 is held at 0, so k1 takes its share
    assert sigma(found).shape == (12,) and sigma(found).max() < 0.02


@pytest.mark.parametrize("loss", ["huber", "cauchy"])
def test_robust_loss_bears_outliers(loss):
    scene = make_scene(points=300, outliers=0.1)
    free = frozenset({"f", "k1", "k2"})
    plain = adjust(disturb(scene), BundleConfig(), free_intrinsics=free)
    robust = adjust(disturb(scene), BundleConfig(loss=loss, loss_px=1.0), free_intrinsics=free)
    assert pose_errors(robust.bundle, scene)[1] < 0.03 < 0.06 < pose_errors(plain.bundle, scene)[1]
    assert abs(robust.bundle.intrinsics[0, 0] / 600 - 1) < 0.01


def test_rotation_only():
    scene = make_scene(kind="turning", points=200, k1=0.0, k2=0.0)
    found = adjust(
        disturb(scene, shift=0.0),
        BundleConfig(),
        fixed_translation=True,
        free_intrinsics=frozenset({"f"}),
        covariance=True,
    )
    assert found.converged
    assert not found.bundle.cam_from_world[:, :3, 3].any()
    seen = np.unique(scene.obs_point)
    np.testing.assert_allclose(np.linalg.norm(found.bundle.points[seen], axis=1), 1, rtol=1e-12)
    assert abs(np.log(found.bundle.intrinsics[0, 0] / 600)) < 4 * sigma(found)[0] < 0.02
    first = found.bundle.cam_from_world[:, :3, :3] @ found.bundle.cam_from_world[0, :3, :3].T
    truth = scene.cam_from_world[:, :3, :3] @ scene.cam_from_world[0, :3, :3].T
    assert angle_between_deg(first, truth).max() < 0.2


def test_fixed_translation_keeps_every_centre():
    scene = make_scene(points=60)
    start = disturb(scene, shift=0.0)
    found = adjust(start, BundleConfig(), fixed_translation=True)
    np.testing.assert_allclose(
        invert_pose(found.bundle.cam_from_world)[:, :3, 3], invert_pose(start.cam_from_world)[:, :3, 3], atol=1e-12
    )
    assert found.final_cost < 0.1 * found.initial_cost


def test_cost_does_not_depend_on_the_world_frame():
    scene = disturb(make_scene())
    move = pose(rotation_from_vector(np.array([0.5, -1.0, 0.3])), np.array([3.0, -2.0, 7.0]))
    poses = scene.cam_from_world @ invert_pose(move)
    poses[:, :3, 3] *= 2.5
    moved = replace(scene, cam_from_world=poses, points=2.5 * (scene.points @ move[:3, :3].T + move[:3, 3]))
    a, b = adjust(scene, BundleConfig(cost_tolerance=1e-9)), adjust(moved, BundleConfig(cost_tolerance=1e-9))
    assert b.initial_cost == pytest.approx(a.initial_cost, rel=1e-9)
    assert b.final_cost == pytest.approx(a.final_cost, rel=1e-6)
    assert b.bundle.intrinsics[0, 0] == pytest.approx(a.bundle.intrinsics[0, 0], rel=1e-4)


def test_conjugate_gradients_agree_with_the_factorisation():
    start = disturb(make_scene(zoom=True, points=200))
    free = {"free_intrinsics": frozenset({"f", "k1"}), "tied_intrinsics": frozenset({"k1"})}
    priors = {"log_focal_smooth": np.full(7, 0.02), "log_focal_prior": (np.log(700.0) * np.ones(8), 0.5 * np.ones(8))}
    dense = adjust(start, BundleConfig(cost_tolerance=1e-10), **free, **priors)
    sparse = adjust(start, BundleConfig(cost_tolerance=1e-10, direct_limit=0, cg_tolerance=1e-6), **free, **priors)
    assert sparse.final_cost == pytest.approx(dense.final_cost, rel=1e-8)
    np.testing.assert_allclose(sparse.bundle.intrinsics, dense.bundle.intrinsics, rtol=1e-4)


def test_too_many_pairs_to_list_fall_back_to_conjugate_gradients(monkeypatch):
    start = disturb(make_scene(views=16, points=200, track=1))  # short tracks, no dense products
    tiled = adjust(start, BundleConfig(cost_tolerance=1e-10))
    monkeypatch.setattr(bundle, "_MAX_PAIRS", 10)
    layout = bundle._Layout(start, BundleConfig(), frozenset({"f"}), frozenset(), None, None, False, "cpu")
    assert layout.blocks is None
    listless = adjust(start, BundleConfig(cost_tolerance=1e-10, cg_tolerance=1e-6, cg_iterations=2000))
    assert listless.final_cost == pytest.approx(tiled.final_cost, rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    start = disturb(make_scene(views=30, points=300, zoom=True, outliers=0.05))
    config = BundleConfig(loss="cauchy", cost_tolerance=1e-8)
    options = {"free_intrinsics": frozenset({"f", "k1"}), "tied_intrinsics": frozenset({"k1"}), "covariance": True}
    for direct_limit in (10**7, 0):
        here = adjust(start, replace(config, direct_limit=direct_limit), **options)
        there = adjust(start, replace(config, direct_limit=direct_limit), **options, device="cuda")
        assert there.final_cost == pytest.approx(here.final_cost, rel=1e-5)
        np.testing.assert_allclose(there.bundle.intrinsics, here.bundle.intrinsics, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("direct_limit", [10**7, 0])
def test_same_input_gives_the_same_bytes(direct_limit):
    start = disturb(make_scene(views=30, points=400, outliers=0.05))
    config = BundleConfig(loss="cauchy", max_iterations=8, direct_limit=direct_limit)
    first, again = (adjust(start, config, free_intrinsics=ALL, pp_prior=(320, 240, 20)).bundle for _ in range(2))
    for name in ("cam_from_world", "points", "intrinsics"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


def test_focal_sigma_is_calibrated():
    z = []
    for seed in range(40):
        scene = make_scene(views=5, points=60, noise=0.5, seed=seed, k1=0.0, k2=0.0)
        found = adjust(scene, BundleConfig(cost_tolerance=1e-8), covariance=True)
        z.append(np.log(found.bundle.intrinsics[0, 0] / 600) / sigma(found)[0])
    # 40 standard normal draws: root mean square 1 +- 0.11, mean 0 +- 0.16; three deviations
    assert 0.66 < np.sqrt(np.mean(np.square(z))) < 1.34
    assert abs(np.mean(z)) < 0.5


def test_focal_sigma_tells_a_motion_that_does_not_determine_it():
    across = adjust(make_scene(k1=0.0, k2=0.0), BundleConfig(), covariance=True)
    ahead = adjust(make_scene(k1=0.0, k2=0.0, kind="forward"), BundleConfig(), covariance=True)
    assert sigma(across)[0] < 0.01 < 0.1 < sigma(ahead)[0]
    assert across.condition and ahead.condition and across.condition < 100 < ahead.condition
    # a prior is what then decides
    held = adjust(
        make_scene(k1=0.0, k2=0.0, kind="forward"),
        BundleConfig(),
        log_focal_prior=(np.log([600.0]), np.array([0.05])),
        covariance=True,
    )
    assert sigma(held)[0] == pytest.approx(0.05, rel=0.1)
    assert held.bundle.intrinsics[0, 0] == pytest.approx(600, rel=0.02)


def test_priors_decide_what_nothing_else_does():
    scene = make_scene(points=40)
    alone = replace(scene, obs_view=scene.obs_view[:0], obs_point=scene.obs_point[:0], obs_xy=scene.obs_xy[:0])
    assert adjust(alone, BundleConfig(), free_intrinsics=ALL).iterations == 0
    weak = replace(scene, obs_weight=np.full(len(scene.obs_view), 1e-6))
    found = adjust(
        disturb(weak),
        BundleConfig(cost_tolerance=1e-12),
        free_intrinsics=ALL,
        log_focal_prior=(np.log([500.0]), np.array([0.01])),
        pp_prior=(300.0, 250.0, 1.0),
        distortion_prior_sigma=0.01,
        aspect_prior_sigma=0.001,
    )
    np.testing.assert_allclose(found.bundle.intrinsics[0], [500, 500, 300, 250, 0, 0], rtol=1e-4, atol=1e-4)


def test_what_is_fixed_stays():
    scene = disturb(make_scene())
    fixed_views, fixed_points = np.arange(8) < 2, np.arange(len(scene.points)) % 3 == 0
    found = adjust(
        scene, BundleConfig(), free_intrinsics=frozenset(), fixed_views=fixed_views, fixed_points=fixed_points
    )
    np.testing.assert_allclose(found.bundle.cam_from_world[fixed_views], scene.cam_from_world[fixed_views], atol=1e-14)
    assert (found.bundle.points[fixed_points] == scene.points[fixed_points]).all()
    np.testing.assert_allclose(found.bundle.intrinsics, scene.intrinsics, rtol=1e-14)
    assert (np.abs(found.bundle.cam_from_world - scene.cam_from_world).reshape(8, -1).max(1) > 1e-4).sum() == 6
    assert found.final_cost < 0.5 * found.initial_cost
    iterated = adjust(
        scene,
        BundleConfig(direct_limit=0),
        free_intrinsics=frozenset(),
        fixed_views=fixed_views,
        fixed_points=fixed_points,
    )
    assert iterated.final_cost == pytest.approx(found.final_cost, rel=1e-4)


@pytest.mark.parametrize("loss", ["none", "cauchy"])
def test_points_behind_a_camera_do_not_blow_up(loss):
    scene = make_scene(points=200, track=8)
    points = disturb(scene).points
    points[::20] *= -1  # behind every camera
    points[1::20, 2] = scene.points[1::20, 2] * 0 + 0.3  # nearly in the first cameras' plane
    found = adjust(replace(disturb(scene), points=points), BundleConfig(loss=loss), free_intrinsics=frozenset({"f"}))
    assert np.isfinite(found.bundle.points).all() and np.isfinite(found.final_cost)
    good = ~np.isin(scene.obs_point % 20, [0, 1])
    assert found.final_cost <= found.initial_cost
    if loss == "cauchy":  # squares alone let a few hopeless points bend everything
        assert np.median(np.abs(found.residuals[good])) < 1.0


def test_views_and_points_without_observations_stay():
    scene = make_scene()
    keep = (scene.obs_view != 3) & (scene.obs_point != 7)
    start = disturb(
        replace(scene, obs_view=scene.obs_view[keep], obs_point=scene.obs_point[keep], obs_xy=scene.obs_xy[keep])
    )
    for direct_limit in (10**7, 0):
        found = adjust(start, BundleConfig(direct_limit=direct_limit))
        np.testing.assert_allclose(found.bundle.cam_from_world[3], start.cam_from_world[3], atol=1e-14)
        assert (found.bundle.points[7] == start.points[7]).all()
        assert found.converged


def test_batch_resect_finds_every_view():
    scene = make_scene(views=20, points=150, zoom=True, outliers=0.1, noise=0.5, track=20)
    start = disturb(scene, focal=1.05, shift=0.05)
    start = replace(start, intrinsics=np.c_[start.intrinsics[:, :4], scene.intrinsics[:, 4:]])
    keep = scene.obs_view != 4
    obs = scene.obs_view[keep], scene.obs_point[keep], scene.obs_xy[keep]
    config = BundleConfig(loss="cauchy", loss_px=1.0, max_iterations=50)
    found = batch_resect(
        scene.points, start.cam_from_world, start.intrinsics, *obs, config=config, inlier_px=3.0, free_focal=True
    )
    seen = np.arange(20) != 4
    assert found.converged.all()
    error = np.log(found.intrinsics[:, 0] / scene.intrinsics[:, 0])[seen]
    assert np.abs(error).max() < 0.02 and 0.5 < np.std(error / sigma(found)[seen]) < 1.6
    assert angle_between_deg(found.cam_from_world[:, :3, :3], scene.cam_from_world[:, :3, :3])[seen].max() < 0.3
    assert np.abs(found.cam_from_world - scene.cam_from_world)[seen].max() < 0.1
    ratio = found.num_inliers[seen] / found.num_obs[seen]
    assert (ratio > 0.75).all() and (ratio < 1).all()
    np.testing.assert_allclose(found.rmse_px[seen], 0.5 * np.sqrt(2), rtol=0.25)
    # nothing is seen by view 4
    np.testing.assert_allclose(found.cam_from_world[4], start.cam_from_world[4], atol=1e-14)
    assert found.num_inliers[4] == 0 and np.isnan(found.rmse_px[4]) and np.isinf(sigma(found)[4])


@pytest.mark.parametrize("at_once", [1, 7, 20])
def test_batch_resect_in_blocks_equals_all_at_once(at_once, monkeypatch):
    scene = make_scene(views=20, points=150, zoom=True, noise=0.5, track=20)
    start = disturb(scene, focal=1.05, shift=0.05)
    shuffle = np.random.default_rng(0).permutation(len(scene.obs_view))
    obs = scene.obs_view[shuffle], scene.obs_point[shuffle], scene.obs_xy[shuffle]
    prior = (np.log(start.intrinsics[:, 0]), np.linspace(0.1, 0.3, 20))

    def resect(views: int):
        monkeypatch.setattr("longtake.annotate.bundle.CPU_VIEWS", views)
        return batch_resect(
            scene.points,
            start.cam_from_world,
            start.intrinsics,
            *obs,
            config=BundleConfig(loss="cauchy"),
            inlier_px=3.0,
            free_focal=True,
            log_focal_prior=prior,
        )

    whole, parts = resect(1000), resect(at_once)
    for name in ("cam_from_world", "intrinsics", "rmse_px", "num_inliers", "num_obs", "focal_sigma"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-12, err_msg=name)


def test_batch_resect_agrees_with_adjust():
    scene = make_scene(views=4, points=80)
    start = disturb(scene, focal=1.0)
    config = BundleConfig(loss="huber", cost_tolerance=1e-12)
    joint = adjust(
        replace(start, points=scene.points),
        config,
        free_intrinsics=frozenset(),
        fixed_points=np.ones(len(scene.points), bool),
    )
    each = batch_resect(
        scene.points,
        start.cam_from_world,
        np.tile(start.intrinsics, (4, 1)),
        scene.obs_view,
        scene.obs_point,
        scene.obs_xy,
        config=config,
        inlier_px=3.0,
    )
    np.testing.assert_allclose(each.cam_from_world, joint.bundle.cam_from_world, atol=1e-6)


def test_batch_resect_prior_holds_the_focal_length():
    scene = make_scene(views=4, points=80, noise=0.0)
    intrinsics = np.tile(scene.intrinsics, (4, 1))
    found = batch_resect(
        scene.points,
        scene.cam_from_world,
        intrinsics,
        scene.obs_view,
        scene.obs_point,
        scene.obs_xy,
        np.full(len(scene.obs_view), 1e-4),
        config=BundleConfig(cost_tolerance=1e-12),
        inlier_px=3.0,
        free_focal=True,
        log_focal_prior=(np.full(4, np.log(500.0)), np.full(4, 1e-3)),
    )
    np.testing.assert_allclose(found.intrinsics[:, 0], 500, rtol=1e-3)


def test_distortion_is_that_of_geometry():
    scene = make_scene(noise=0.0)
    found = adjust(scene, BundleConfig(max_iterations=0))
    assert found.final_cost < 1e-18
    n = np.array([[0.3, -0.2]])
    np.testing.assert_allclose(distort(n, -0.1, 0.02), n * (1 - 0.1 * 0.13 + 0.02 * 0.13**2))


def test_errors_say_what_was_wrong():
    scene = make_scene(points=20)
    with pytest.raises(ValueError, match="'focal' is none of the intrinsics f, aspect"):
        adjust(scene, BundleConfig(), free_intrinsics=frozenset({"focal"}))
    with pytest.raises(ValueError, match=r"Bundle.obs_xy has shape"):
        replace(scene, obs_xy=scene.obs_xy[:-1])
    with pytest.raises(ValueError, match=r"Bundle.obs_point holds 0 .. 99, outside 0 .. 19"):
        replace(scene, obs_point=np.where(np.arange(len(scene.obs_point)) == 3, 99, scene.obs_point))
    with pytest.raises(ValueError, match=r"Bundle.points is not finite"):
        replace(scene, points=np.full_like(scene.points, np.nan))


def with_depth(scene: Bundle, *, noise: float = 0.0, sigma: float = 0.03, seed: int = 2) -> Bundle:
    """The scene with what a depth sensor says of every second observation, its relative errors of this size."""
    in_camera = np.einsum("oij,oj->oi", scene.cam_from_world[scene.obs_view, :3, :3], scene.points[scene.obs_point])
    depth = in_camera[:, 2] + scene.cam_from_world[scene.obs_view, 2, 3]
    errors = noise * np.random.default_rng(seed).normal(size=len(depth))
    known = np.arange(len(depth)) % 2 == 0
    return replace(
        scene,
        obs_log_depth=np.where(known, np.log(depth) + errors, 0.0),
        obs_depth_weight=np.where(known, 0.3 / sigma, 0.0),
    )


@pytest.mark.parametrize("direct_limit", [50_000_000, 0])
def test_depth_holds_the_scale_that_pictures_leave_open(direct_limit: int) -> None:
    scene = with_depth(make_scene(noise=0.0))
    start = disturb(scene)
    start = replace(start, points=1.3 * start.points)
    start.cam_from_world[:, :3, 3] *= 1.3
    config = BundleConfig(max_iterations=60, cost_tolerance=1e-12, direct_limit=direct_limit, cg_tolerance=1e-8)
    found = adjust(start, config, free_intrinsics=frozenset({"f", "k1", "k2"}))
    between = found.bundle.cam_from_world[1:] @ invert_pose(found.bundle.cam_from_world[:1])
    truth = scene.cam_from_world[1:] @ invert_pose(scene.cam_from_world[:1])
    assert np.abs(between - truth).max() < 1e-5
    assert found.iterations < 40
    without = adjust(
        replace(start, obs_log_depth=None, obs_depth_weight=None), config, free_intrinsics=frozenset({"f", "k1", "k2"})
    )
    scale = np.linalg.norm(without.bundle.cam_from_world[-1, :3, 3]) / np.linalg.norm(scene.cam_from_world[-1, :3, 3])
    assert abs(scale - 1) > 0.1


def test_depth_makes_little_parallax_enough() -> None:
    scene = make_scene(noise=0.2, k1=0.0, k2=0.0, points=200)
    poses = invert_pose(scene.cam_from_world)
    poses[:, :3, 3] *= 0.01  # less than a degree of parallax
    scene = replace(scene, cam_from_world=invert_pose(poses))
    in_camera = np.einsum("oij,oj->oi", scene.cam_from_world[scene.obs_view, :3, :3], scene.points[scene.obs_point])
    in_camera += scene.cam_from_world[scene.obs_view, :3, 3]
    rng = np.random.default_rng(5)
    xy = 600 * in_camera[:, :2] / in_camera[:, 2:] + [320, 240] + 0.2 * rng.normal(size=(len(in_camera), 2))
    scene = replace(scene, obs_xy=xy)
    known = with_depth(scene, noise=0.03)
    errors = []
    for problem in (scene, known):
        start = disturb(problem, focal=1.0, turn=0.001, shift=0.003)
        found = adjust(start, BundleConfig(max_iterations=50), free_intrinsics=frozenset())
        seen = np.bincount(scene.obs_point, minlength=len(scene.points)) > 1
        move = invert_pose(scene.cam_from_world[0]) @ found.bundle.cam_from_world[0]
        points = found.bundle.points @ move[:3, :3].T + move[:3, 3]
        errors.append(float(np.median(np.abs(np.log(points[seen, 2] / scene.points[seen, 2])))))
    assert errors[1] < 0.02 < 0.05 < errors[0]


def test_depth_that_is_wrong_here_and_there_is_left_out() -> None:
    scene = with_depth(make_scene(noise=0.2), noise=0.02)
    rng = np.random.default_rng(7)
    assert scene.obs_log_depth is not None
    off = np.where(rng.random(len(scene.obs_xy)) < 0.2, np.log(3.0), 0.0)
    wrong = replace(scene, obs_log_depth=scene.obs_log_depth + off)
    lens = frozenset({"f", "k1", "k2"})
    found = adjust(disturb(wrong), BundleConfig(max_iterations=50, loss="cauchy"), free_intrinsics=lens)
    a, b = invert_pose(found.bundle.cam_from_world), invert_pose(scene.cam_from_world)
    scale, _, _ = align_similarity(a[:, :3, 3], b[:, :3, 3])
    assert abs(scale - 1) < 0.02


def test_depth_needs_its_weights() -> None:
    scene = with_depth(make_scene())
    with pytest.raises(ValueError, match="belong together"):
        replace(scene, obs_depth_weight=None)
