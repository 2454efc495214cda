"""Sub-pixel positions for all observations of a point, by aligning their pixels with one reference view.

Once a map exists, its geometry says how a small patch around a point should look in every view: the patch lies on a
plane through the point facing the reference view. What is left is a shift, and some slant, found by
inverse-compositional Gauss-Newton on patches normalised to zero mean and unit variance. This takes out the drift of
frame-to-frame tracking and the pixel grid of learned keypoints. Baker & Matthews, IJCV 56(3), 2004; Furukawa & Ponce,
TPAMI 32(8), 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import camera_centres, distort, undistort


@dataclass(frozen=True)
class RefineConfig:
    radius_px: int = 6  # of the square patch
    iterations: int = 6
    max_shift_px: float = 3.0
    min_correlation: float = 0.75  # normalised cross-correlation of an accepted alignment
    settled_px: float = 0.01  # a smaller step ends an alignment
    stiffness: float = 0.05  # of the patch against slanting, as a share of its texture


@dataclass(frozen=True, kw_only=True, eq=False)
class _Templates:
    """What reference patches look like, and how they change: S pixels a patch."""

    patch: NDArray[np.float32]  # [R, S] zero mean, unit variance
    gradient: NDArray[np.float32]  # [R, 2, S] by a shift in x and in y
    inverse: NDArray[np.float64]  # [R, 6, 6] of the Hessian of shift and slant
    inverse_shift: NDArray[np.float64]  # [R, 2, 2] of that of the shift alone
    weak: NDArray[np.bool_]  # [R] no texture to align with


def refine_observations(
    images: list[NDArray[np.uint8]],
    *,
    view: NDArray[np.int64],
    track: NDArray[np.int64],
    xy: NDArray[np.float64],
    points: NDArray[np.float64],
    cam_from_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    reference: NDArray[np.int64],
    config: RefineConfig,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Align every observation of a point with a reference observation of the point.

    Args:
        images: [V] gray, all of one size.
        view, track, xy: the observations [O] (xy [O, 2]).
        points: [N, 3] by track; cam_from_world [V, 4, 4]; intrinsics [V, 6] fx, fy, cx, cy, k1, k2.
        reference: [O] index of the observation to look like; that of a reference is its own.

    Returns: positions [O, 2], and the correlation [O] with the reference patch: 1 for the reference itself, nan where
    no alignment was found (the position is then the old one).
    """
    moved, correlation = xy.copy(), np.full(len(view), np.nan)
    if not len(view):
        return moved, correlation
    warp = _local_warp(view, xy, reference, track, points, cam_from_world, intrinsics)
    smooth = [cv2.GaussianBlur(image, (0, 0), 0.7).astype(np.float32) for image in images]
    alone, template = np.unique(reference, return_inverse=True)
    known = _templates(smooth, view[alone], xy[alone], config)
    correlation[alone] = 1.0
    to_align = (reference != np.arange(len(view))) & ~known.weak[template]
    for v, image in enumerate(smooth):
        o = np.flatnonzero((view == v) & to_align)
        if len(o):
            moved[o], correlation[o] = _align(image, xy[o], warp[o], template[o], known, config)
    return moved, correlation


def _grid(config: RefineConfig) -> NDArray[np.float32]:
    """[2, S] pixels of a patch, from its centre."""
    r = np.arange(-config.radius_px, config.radius_px + 1, dtype=np.float32)
    return np.stack([np.tile(r, len(r)), np.repeat(r, len(r))])


def _sample(image: NDArray, at: NDArray, spread: NDArray, grid: NDArray) -> NDArray[np.float32]:
    """Pixels [n, S] of the patches at `at` [n, 2], spread by `spread` [n, 2, 2]; nan outside the image."""
    where = at[:, :, None].astype(np.float32) + spread.astype(np.float32) @ grid
    x, y = np.ascontiguousarray(where[:, 0]), np.ascontiguousarray(where[:, 1])
    patches = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan)
    return np.asarray(patches, np.float32)


def _templates(images: list[NDArray], view: NDArray, xy: NDArray, config: RefineConfig) -> _Templates:
    """The reference patches at `xy` [R, 2] of the views [R]."""
    grid = _grid(config)
    num, size = len(view), grid.shape[1]
    patch, gradient = np.empty((num, size), np.float32), np.empty((num, 2, size), np.float32)
    hessian = np.empty((num, 6, 6))
    u = grid / config.radius_px
    for v, image in enumerate(images):
        o = np.flatnonzero(view == v)
        if not len(o):
            continue
        eye = np.broadcast_to(np.eye(2, dtype=np.float32), (len(o), 2, 2))
        own = _sample(image, xy[o], eye, grid)
        contrast = np.maximum(own.std(1), 1e-3)[:, None]
        patch[o] = (own - own.mean(1, keepdims=True)) / contrast
        for axis, half in enumerate(0.5 * np.eye(2)):
            slope = _sample(image, xy[o] + half, eye, grid) - _sample(image, xy[o] - half, eye, grid)
            gradient[o, axis] = np.nan_to_num(slope / contrast)
        g = gradient[o]
        # by the shift, then by the four entries of a linear map about the patch's centre, in units of its radius
        jac = np.concatenate([g, g[:, :1] * u[0], g[:, :1] * u[1], g[:, 1:] * u[0], g[:, 1:] * u[1]], 1)
        jac -= jac.mean(2, keepdims=True)
        hessian[o] = jac @ np.swapaxes(jac, 1, 2)
    texture = np.trace(hessian[:, :2, :2], axis1=1, axis2=2)
    weak = ~(np.linalg.det(hessian[:, :2, :2]) > 1e-3 * np.maximum(texture, 1e-9) ** 2) | np.isnan(patch).any(1)
    hessian[weak] = np.eye(6)
    hessian += np.diag([0, 0, 1, 1, 1, 1]) * (config.stiffness * texture)[:, None, None] + 1e-9 * np.eye(6)
    return _Templates(
        patch=patch,
        gradient=gradient,
        inverse=np.linalg.inv(hessian),
        inverse_shift=np.linalg.inv(hessian[:, :2, :2]),
        weak=weak,
    )


def _align(
    image: NDArray, xy: NDArray, warp: NDArray, template: NDArray, known: _Templates, config: RefineConfig
) -> tuple[NDArray, NDArray]:
    """Positions [n, 2] and correlations [n] (nan where refused) of observations in one view."""
    grid = _grid(config)
    design = np.concatenate([np.ones((1, grid.shape[1]), np.float32), grid / config.radius_px]).T  # [S, 3]
    target, gradient = known.patch[template], known.gradient[template]
    shift, linear = np.zeros((len(xy), 2)), np.tile(np.eye(2), (len(xy), 1, 1))
    correlation = np.full(len(xy), np.nan)
    live = np.arange(len(xy))  # those that still move
    for iteration in range(config.iterations + 1):
        patch = _sample(image, xy[live] + (warp[live] @ shift[live, :, None])[..., 0], warp[live] @ linear[live], grid)
        patch -= patch.mean(1, keepdims=True)
        patch /= np.maximum(np.sqrt((patch * patch).mean(1, keepdims=True)), 1e-3)
        correlation[live] = (patch * target[live]).mean(1)
        if iteration == config.iterations:
            break
        error = np.nan_to_num(target[live] - patch)
        slope = (gradient[live] * error[:, None]) @ design  # [n, 2, 3]: x and y, by the shift and by the slants
        slant = iteration >= config.iterations // 2  # the shift first, then what the plane's slant adds
        if slant:
            step = (
                known.inverse[template[live]]
                @ np.concatenate([slope[:, :, 0], slope[:, :, 1:].reshape(-1, 4)], 1)[..., None]
            )[..., 0]
            tilt = np.clip(step[:, 2:].reshape(-1, 2, 2) / config.radius_px, -0.2, 0.2)
            linear[live] = linear[live] @ np.linalg.inv(np.eye(2) - tilt)
        else:
            step = (known.inverse_shift[template[live]] @ slope[:, :, :1])[..., 0]
        shift[live] += (linear[live] @ np.clip(step[:, :2], -1.5, 1.5)[..., None])[..., 0]
        if slant:
            live = live[np.linalg.norm(step[:, :2], axis=1) > config.settled_px]
            if not len(live):
                break
    moved = (warp @ shift[..., None])[..., 0]
    good = (correlation >= config.min_correlation) & (np.linalg.norm(moved, axis=1) <= config.max_shift_px)
    return np.where(good[:, None], xy + moved, xy), np.where(good, correlation, np.nan)


def reference_observations(
    view: NDArray, track: NDArray, points: NDArray, cam_from_world: NDArray
) -> NDArray[np.int64]:
    """For each observation [O], the observation of its track seen from nearest to the track's mean direction."""
    if not len(view):
        return np.zeros(0, np.int64)
    ray = points[track] - camera_centres(cam_from_world)[view]
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    mean = np.stack([np.bincount(track, ray[:, i], len(points)) for i in range(3)], 1)[track]
    score = (ray * mean).sum(1)
    order = np.lexsort((-score, track))
    head = np.r_[True, np.diff(track[order]) != 0]
    best = np.zeros(len(points), np.int64)
    best[track[order[head]]] = order[head]
    return best[track]


def _local_warp(view, xy, reference, track, points, cam_from_world, intrinsics) -> NDArray[np.float64]:
    """[O, 2, 2]: how a pixel step in the reference view moves the picture in the observation's view."""
    rv = view[reference]
    k = intrinsics[rv]
    pose = cam_from_world[rv]
    depth = (pose[:, 2, :3] * points[track]).sum(1) + pose[:, 2, 3]
    step = 2.0

    def project(offset: NDArray) -> NDArray:
        n = undistort((xy[reference] + offset - k[:, 2:4]) / k[:, :2], k[:, 4], k[:, 5])
        x = np.concatenate([n, np.ones((len(n), 1))], 1) * depth[:, None]  # the plane faces the reference view
        world = (np.swapaxes(pose[:, :3, :3], 1, 2) @ (x - pose[:, :3, 3])[..., None])[..., 0]
        there = cam_from_world[view]
        y = (there[:, :3, :3] @ world[..., None])[..., 0] + there[:, :3, 3]
        q = intrinsics[view]
        return distort(y[:, :2] / np.maximum(y[:, 2:], 1e-9), q[:, 4], q[:, 5]) * q[:, :2] + q[:, 2:4]

    columns = [(project(step * e) - project(-step * e)) / (2 * step) for e in np.eye(2)]
    warp = np.stack(columns, 2)
    wild = ~np.isfinite(warp).all((1, 2)) | (np.abs(warp).max((1, 2)) > 4)
    warp[wild] = np.eye(2)
    return warp
