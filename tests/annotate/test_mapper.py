"""The map of a rendered shot with everything known but what is tested: points found again, views that keep a hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longtake.annotate.klt import KltConfig, feature_tracks
from longtake.annotate.mapper import Intrinsics, Map, MapperConfig, Observations
from longtake.annotate.refine import RefineConfig, reference_observations, refine_observations
from longtake.geometry import invert_pose
from longtake.records import Frame
from longtake.render.room import Room, camera_path, render_clip

WIDTH, HEIGHT, FRAMES = 320, 240, 40


@pytest.fixture(scope="module")
def shot():
    """Keyframes of a walk: their pictures, what KLT saw in them, and the true cameras."""
    cameras, intrinsics = camera_path("walk", FRAMES, width=WIDTH, height=HEIGHT)
    pictures = [
        rgb.mean(2).round().astype(np.uint8) for rgb in render_clip(Room(0), cameras, intrinsics, WIDTH, HEIGHT)
    ]
    frames = (
        Frame(index=i, pts_ns=i, gray=gray, thumb=np.zeros((1, 1, 3), np.uint8)) for i, gray in enumerate(pictures)
    )
    (tracks,) = feature_tracks(frames, KltConfig())
    keys = tracks.keyframes
    at = np.isin(tracks.row, keys)
    obs = Observations.sorted(
        view=np.searchsorted(keys, tracks.row[at]),
        track=tracks.track[at],
        xy=tracks.xy[at],
        width=WIDTH,
        height=HEIGHT,
        px=tracks.px,
        num_views=len(keys),
        num_tracks=int(tracks.track.max()) + 1,
        time_s=keys / 30,
    )
    return tracks.images, obs, invert_pose(cameras[keys]), intrinsics[keys]


def true_map(obs: Observations, cam_from_world, intrinsics) -> Map:
    m = Map(obs, MapperConfig(again_every=1), Intrinsics(given=tuple(intrinsics[0])), 1.0)
    m.pose, m.intrinsics[:, :4] = cam_from_world.copy(), intrinsics
    m.registered[:] = True
    m.triangulate()
    return m


def test_points_are_found_again_where_they_are(shot):
    images, obs, cam_from_world, intrinsics = shot
    length = np.bincount(obs.track, minlength=obs.num_tracks)[obs.track]
    rank = np.arange(len(obs.track)) - np.searchsorted(obs.track, obs.track)
    hidden = (length >= 6) & (rank >= length - 2)  # the ends of long tracks
    assert hidden.sum() > 100
    seen = replace(obs, view=obs.view[~hidden], track=obs.track[~hidden], xy=obs.xy[~hidden])
    m = true_map(seen, cam_from_world, intrinsics)
    before = len(m.obs.view)
    count = m.look_again(images)
    assert len(m.obs.view) == before + count and (np.diff(m.obs.track * 1000 + m.obs.view) > 0).all()
    name = m.obs.track * 1000 + m.obs.view
    wanted = obs.track[hidden] * 1000 + obs.view[hidden]
    of_points = m.has_point[obs.track[hidden]]
    at = np.searchsorted(name, wanted).clip(0, len(name) - 1)
    found = (name[at] == wanted) & of_points
    assert found.sum() > 0.6 * of_points.sum()
    off = np.linalg.norm(m.obs.xy[at[found]] - obs.xy[hidden][found], axis=1)
    assert np.median(off) < 0.7  # the tracks have drifted by then themselves
    new = ~np.isin(name, seen.track * 1000 + seen.view)
    error = m.residual_px(np.flatnonzero(new))
    assert np.median(error) < 0.4  # true cameras: what was found lies where the point is


def test_nothing_is_found_in_other_pictures(shot):
    images, obs, cam_from_world, intrinsics = shot
    half = obs.view < obs.num_views // 2
    m = true_map(replace(obs, view=obs.view[half], track=obs.track[half], xy=obs.xy[half]), cam_from_world, intrinsics)
    noise = np.random.default_rng(0)
    others = [
        noise.integers(0, 255, i.shape, dtype=np.uint8) if v >= obs.num_views // 2 else i for v, i in enumerate(images)
    ]
    before = np.bincount(m.obs.view, minlength=obs.num_views)
    m.look_again(others)
    gained = np.bincount(m.obs.view, minlength=obs.num_views) - before
    assert gained[obs.num_views // 2 :].sum() <= 1


def test_a_view_with_little_keeps_its_best(shot):
    _, obs, cam_from_world, intrinsics = shot
    m = true_map(obs, cam_from_world, intrinsics)
    v = obs.num_views // 2
    shifted = obs.xy.copy()
    shifted[obs.view == v] += 1.1  # px: beyond the limit below, within that of growing
    m.obs = replace(obs, xy=shifted)
    m.select(1.0)
    enough = m.config.min_pose_inliers  # but for points that no other view sees sharply
    assert 0.7 * enough < np.bincount(m.obs.view[m.inlier], minlength=obs.num_views)[v] <= enough
    m.aligned[:] = False
    shifted[obs.view == v] += 100
    m.select(0.6)
    assert not m.inlier[m.obs.view == v].any()


def test_alignment_takes_out_a_shift(shot):
    images, obs, cam_from_world, intrinsics = shot
    m = true_map(obs, cam_from_world, intrinsics)
    o = np.flatnonzero(m.inlier)
    view, track = obs.view[o], obs.track[o]
    reference = reference_observations(view, track, m.points, m.pose)
    own = reference == np.arange(len(o))
    shift = np.random.default_rng(1).uniform(-1, 1, (len(o), 2)) * ~own[:, None]
    known = {"view": view, "track": track, "points": m.points, "cam_from_world": m.pose, "intrinsics": m.intrinsics}
    straight, _ = refine_observations(images, xy=obs.xy[o], reference=reference, config=RefineConfig(), **known)
    moved, correlation = refine_observations(
        images, xy=obs.xy[o] + shift, reference=reference, config=RefineConfig(), **known
    )
    good = np.isfinite(correlation)
    assert good.mean() > 0.7 and (moved[own] == obs.xy[o][own]).all()
    assert np.median(np.linalg.norm(moved - straight, axis=1)[good & ~own]) < 0.02
    np.testing.assert_array_equal(moved[~good], (obs.xy[o] + shift)[~good])
