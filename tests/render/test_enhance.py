"""Holes are filled with what is farther away around them; flicker is what changes on surfaces that stay the same."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.render.enhance import Seen, fill_holes, flicker
from longtake.render.rasterize import Rasterizer, Rendered
from longtake.render.splat_room import ring_cameras, splat_room

H, W = 40, 60
NEAR, FAR = np.array([0.9, 0.1, 0.1]), np.array([0.1, 0.2, 0.8])


def two_walls(hole: NDArray[np.bool_], alpha_in_hole: float = 0.0) -> Rendered:
    """Red at depth 1 on the left, blue at depth 5 on the right; drawn over black."""
    right = np.arange(W) >= W // 2
    colour = np.where(right[:, None], FAR, NEAR)
    alpha = np.where(hole, alpha_in_hole, 1.0)
    depth = np.where(hole & (alpha_in_hole == 0), 0.0, np.broadcast_to(np.where(right, 5.0, 1.0), (H, W)))
    rgb = np.broadcast_to(colour, (H, W, 3)) * alpha[..., None]
    return Rendered(
        rgb=rgb.astype(np.float32), alpha=alpha.astype(np.float32), depth=depth.astype(np.float32), median_depth=None
    )


def region(rows: slice, columns: slice) -> NDArray[np.bool_]:
    out = np.zeros((H, W), bool)
    out[rows, columns] = True
    return out


def test_a_crack_beside_an_edge_shows_what_is_behind():
    crack = region(slice(0, H), slice(W // 2 - 4, W // 2))
    filled = fill_holes(two_walls(crack), max_px=6)
    np.testing.assert_array_equal(filled.changed, crack)
    np.testing.assert_allclose(filled.rgb[crack], np.tile(FAR, (crack.sum(), 1)), atol=1e-5)
    np.testing.assert_allclose(filled.depth[crack], 5, rtol=1e-5)
    np.testing.assert_array_equal(filled.rgb[~crack], two_walls(crack).rgb[~crack])


def test_a_pinhole_in_a_surface_gets_its_colour_and_thin_pixels_only_what_they_lack():
    pinhole = region(slice(10, 13), slice(8, 11))
    filled = fill_holes(two_walls(pinhole, alpha_in_hole=0.4), max_px=6)
    np.testing.assert_allclose(filled.rgb[pinhole], np.tile(NEAR, (9, 1)), atol=1e-5)


@pytest.mark.parametrize("width, stays", [(6, False), (7, True)])
def test_wide_holes_stay(width, stays):
    hole = region(slice(5, 5 + width), slice(40, 40 + width))
    filled = fill_holes(two_walls(hole), max_px=6)
    assert filled.changed.any() != stays
    assert np.array_equal(filled.rgb, two_walls(hole).rgb) == stays


def test_a_picture_without_holes_or_without_anything_is_left_alone():
    whole, nothing = two_walls(np.zeros((H, W), bool)), two_walls(np.ones((H, W), bool))
    for picture in (whole, nothing):
        filled = fill_holes(picture, max_px=6)
        np.testing.assert_array_equal(filled.rgb, picture.rgb)
        assert not filled.changed.any()


@pytest.fixture(scope="module")
def pair() -> tuple[Seen, Seen]:
    """Two neighbouring views of the room of splats."""
    rasterizer = Rasterizer(splat_room(8_000, sheen=0.0))
    poses, _ = ring_cameras(400)
    k = np.array([110.0, 110.0, 79.5, 43.5])
    views = [rasterizer.draw(pose, k, 160, 88) for pose in poses[:2]]
    return tuple(
        Seen(rgb=v.rgb, depth=v.depth, world_from_cam=p, intrinsics=k) for v, p in zip(views, poses[:2], strict=True)
    )  # type: ignore[return-value]


def test_the_cameras_motion_is_no_flicker(pair):
    before, now = pair
    everywhere = np.ones(now.depth.shape, bool)
    followed = flicker(before, now, everywhere)
    standing = Seen(rgb=before.rgb, depth=before.depth, world_from_cam=now.world_from_cam, intrinsics=now.intrinsics)
    assert followed < 0.5 * flicker(standing, now, everywhere)
    assert flicker(now, now, everywhere) == pytest.approx(0, abs=1e-3)


def test_flicker_is_in_levels_of_luma_and_counts_only_where_it_is_asked(pair):
    _, now = pair
    brighter = Seen(rgb=now.rgb + 0.1, depth=now.depth, world_from_cam=now.world_from_cam, intrinsics=now.intrinsics)
    half = np.zeros(now.depth.shape, bool)
    half[:, :80] = True
    assert flicker(brighter, now, half) == pytest.approx(25.5, rel=1e-3)
    assert np.isnan(flicker(brighter, now, np.zeros_like(half)))


def test_what_was_hidden_does_not_count(pair):
    _, now = pair
    elsewhere = Seen(rgb=now.rgb, depth=now.depth * 1.5, world_from_cam=now.world_from_cam, intrinsics=now.intrinsics)
    assert np.isnan(flicker(elsewhere, now, np.ones(now.depth.shape, bool)))
