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

from ..geometry import distort, undistort


@dataclass(frozen=True)
class RefineConfig:
    radius_px: int = 6  # of the square patch
    iterations: int = 6
    max_shift_px: float = 3.0
    min_correlation: float = 0.75  # normalised cross-correlation of an accepted alignment
    stiffness: float = 0.05  # of the patch against slanting, as a share of its texture


def refine_observations(
    images: list[NDArray[np.uint8]],
    *,
    view: NDArray[np.int64],
    track: NDArray[np.int64],
    xy: NDArray[np.float64],
    points: NDArray[np.float64],
    cam_from_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    config: RefineConfig,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Align every observation of a point with the point's reference observation.

    Args:
        images: [V] gray, all of one size.
        view, track, xy: the observations [O] (xy [O, 2]), sorted by track.
        points: [N, 3] by track; cam_from_world [V, 4, 4]; intrinsics [V, 6] fx, fy, cx, cy, k1, k2.

    Returns: positions [O, 2], and the correlation [O] with the reference patch: 1 for the reference itself, nan where
    no alignment was found (the position is then the old one).
    """
    if not len(view):
        return xy.copy(), np.zeros(0)
    reference = _reference(view, track, points, cam_from_world)  # [O] index of the observation to align with
    warp = _local_warp(view, xy, reference, track, points, cam_from_world, intrinsics)
    r = config.radius_px
    gx, gy = np.meshgrid(np.arange(-r, r + 1.0), np.arange(-r, r + 1.0))
    grid = np.stack([gx.ravel(), gy.ravel()])  # [2, S]
    smooth = [cv2.GaussianBlur(image, (0, 0), 0.7).astype(np.float32) for image in images]
    by_view = [np.flatnonzero(view == v) for v in range(len(images))]

    def sample(at: NDArray, spread: NDArray) -> NDArray:
        """Pixels [O, S] of the patches at `at` [O, 2] spread by `spread` [O, 2, 2]; nan outside the image."""
        out = np.full((len(at), grid.shape[1]), np.nan, np.float32)
        for v, o in enumerate(by_view):
            if len(o):
                where = (at[o, :, None] + spread[o] @ grid).astype(np.float32)
                out[o] = cv2.remap(
                    smooth[v],
                    where[:, 0],
                    where[:, 1],
                    cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_CONSTANT,
                    borderValue=np.nan,
                )
        return out

    eye = np.broadcast_to(np.eye(2), (len(xy), 2, 2))
    own = sample(xy, eye)
    template = _normalise(own)[reference]
    slope = [sample(xy + 0.5 * e, eye) - sample(xy - 0.5 * e, eye) for e in np.eye(2)]
    scale = np.maximum(own.std(1, keepdims=True), 1e-3)
    gradient = np.stack([s / scale for s in slope], 2)[reference]  # [O, S, 2] of the template by a shift
    gradient = np.nan_to_num(gradient)
    # columns: the shift, then the four entries of a linear map about the patch's centre, in units of its radius
    u = (grid.T / r).astype(np.float32)
    jac = np.concatenate([gradient, *(gradient[..., i : i + 1] * u[:, j : j + 1] for i in (0, 1) for j in (0, 1))], 2)
    jac -= jac.mean(1, keepdims=True)
    hessian = np.swapaxes(jac, 1, 2) @ jac
    texture = np.trace(hessian[:, :2, :2], axis1=1, axis2=2)
    weak = ~(np.linalg.det(hessian[:, :2, :2]) > 1e-3 * np.maximum(texture, 1e-9) ** 2)
    hessian[weak] = np.eye(6)
    hessian += np.diag([0, 0, 1, 1, 1, 1]) * (config.stiffness * texture)[:, None, None] + 1e-9 * np.eye(6)
    inverse = np.linalg.inv(hessian)
    inverse_shift = np.linalg.inv(hessian[:, :2, :2])
    shift, linear = np.zeros_like(xy), np.tile(np.eye(2), (len(xy), 1, 1))
    correlation = np.full(len(xy), np.nan)
    for iteration in range(config.iterations + 1):
        patch = _normalise(sample(xy + (warp @ shift[..., None])[..., 0], warp @ linear))
        correlation = (patch * template).mean(1)
        if iteration == config.iterations:
            break
        slant = iteration >= config.iterations // 2  # the shift first, then what the plane's slant adds
        error = np.swapaxes(jac, 1, 2) @ np.nan_to_num(template - patch)[..., None]
        step = (inverse @ error)[..., 0] if slant else (inverse_shift @ error[:, :2])[..., 0]
        if slant:
            tilt = np.clip(step[:, 2:].reshape(-1, 2, 2) / r, -0.2, 0.2)
            linear = linear @ np.linalg.inv(np.eye(2) - tilt)
        shift += (linear @ np.clip(step[:, :2], -1.5, 1.5)[..., None])[..., 0]
    moved = (warp @ shift[..., None])[..., 0]
    good = (correlation >= config.min_correlation) & (np.linalg.norm(moved, axis=1) <= config.max_shift_px) & ~weak
    alone = reference == np.arange(len(xy))
    good |= alone
    moved[alone | ~good] = 0
    return xy + moved, np.where(alone, 1.0, np.where(good, correlation, np.nan))


def _normalise(patch: NDArray) -> NDArray:
    centred = patch - patch.mean(1, keepdims=True)
    return centred / np.maximum(centred.std(1, keepdims=True), 1e-3)


def _reference(view: NDArray, track: NDArray, points: NDArray, cam_from_world: NDArray) -> NDArray[np.int64]:
    """For each observation, the observation of its track seen from nearest to the track's mean direction."""
    centre = -(np.swapaxes(cam_from_world[:, :3, :3], 1, 2) @ cam_from_world[:, :3, 3:])[..., 0]
    ray = points[track] - centre[view]
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
