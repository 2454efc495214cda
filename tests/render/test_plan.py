"""The plan says of a place what the survey's grid says of it, seen from above."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longtake.render.camera_path import CameraPath, PathConfig, Survey, draw_plan, propose, survey
from longtake.render.cameras import read_cameras
from longtake.render.paths.survey import OCCUPIED
from longtake.render.scene import read_scene
from longtake.render.splat_room import write_room


@pytest.fixture(scope="module")
def allowed(tmp_path_factory) -> Survey:
    room = write_room(tmp_path_factory.mktemp("room"), 12_000)
    cameras = read_cameras(room.parent)
    return survey(read_scene(room).gaussians, cameras.world_from_cam, cameras.intrinsics, cameras.sizes)


@pytest.fixture(scope="module")
def path(allowed: Survey) -> CameraPath:
    return propose(allowed, "orbit", 3, config=PathConfig(num_frames=40))


def test_columns_are_the_grids(allowed: Survey, path: CameraPath) -> None:
    plan = draw_plan(allowed, path)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, n, 30_000) for n in plan.opacity.shape)
    height = rng.uniform(*plan.heights, 30_000)
    at = plan.corner + np.outer((a + 0.5) * plan.cell, plan.right) + np.outer((b + 0.5) * plan.cell, plan.ahead)
    inside = allowed.solid(at + np.outer(height, plan.up))
    drawn = plan.opacity[a, b] >= OCCUPIED
    assert inside.sum() > 20 and drawn[inside].mean() > 0.98, "a column is as solid as its cells, to half a cell"
    free = allowed.clearance(at + np.outer(np.mean(plan.heights), plan.up)) > np.diff(plan.heights)[0]
    assert free.sum() > 20 and not drawn[free].any()
    assert plan.seen[a, b][free].all()


def test_ink_orders_what_is_shown(allowed: Survey, path: CameraPath) -> None:
    plan = draw_plan(allowed, path)
    ink = plan.picture()[::-1, :, 3].T.astype(int)
    solid = plan.opacity >= OCCUPIED
    assert solid.any() and (plan.below & ~solid).any()
    assert ink[solid].min() > ink[plan.below & ~solid].max() > ink[~solid & ~plan.below].max() > 0
    assert not ink[~solid & ~plan.below & plan.seen].any()
    higher = np.zeros_like(path.world_from_cam)
    higher[:, :3, 3] = 0.3 * plan.up
    assert not np.array_equal(draw_plan(allowed, _moved(path, higher)).below, plan.below), "below is below the path"


def test_facts_are_in_the_poses_unit(allowed: Survey, path: CameraPath) -> None:
    plan = draw_plan(allowed, path)
    once, twice = plan.facts(), plan.facts(2.0)
    for name in ("corner", "size", "heights", "cameras"):
        np.testing.assert_allclose(np.asarray(twice[name]), 2 * np.asarray(once[name]), atol=2e-6)
    assert once["right"] == twice["right"]
    np.testing.assert_allclose(np.cross(plan.right, plan.ahead), plan.up, atol=1e-9)


def _moved(path: CameraPath, by: np.ndarray) -> CameraPath:
    return replace(path, world_from_cam=path.world_from_cam + by)
