"""The rasteriser to read: NumPy, one Gaussian after another, float32 where rounding decides what is drawn.

Projection: Zwicker et al., EWA volume splatting, 2001. Blending: Kerbl et al., SIGGRAPH 2023, as gsplat 1.5.3 has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..geometry import camera_centres, rotation_from_quaternion
from .gaussians import Gaussians
from .harmonics import sh_basis
from .rasterize import BLUR, CUTOFF, STOP, Profile, Rendered, View


@dataclass(frozen=True, kw_only=True, eq=False)
class Splats:
    """The M Gaussians that a picture may show, nearest first."""

    mean: NDArray[np.float32]  # [M, 2] pixels, the centre of pixel (i, j) at (j + 0.5, i + 0.5)
    conic: NDArray[np.float32]  # [M, 3] inverse covariance on the image: xx, xy, yy
    opacity: NDArray[np.float32]  # [M]
    colour: NDArray[np.float32]  # [M, 3]
    depth: NDArray[np.float32]  # [M]
    box: NDArray[np.int64]  # [M, 4] columns and rows that it may touch: x0, x1, y0, y1, upper ends excluded


class ReferenceRasterizer:
    """Draws a scene slowly and plainly."""

    def __init__(self, gaussians: Gaussians, profile: Profile) -> None:
        self.gaussians, self.profile = gaussians, profile

    def draw(self, view: View) -> Rendered:
        return blend(project(self.gaussians, view, self.profile), view, self.profile)


def project(g: Gaussians, view: View, profile: Profile) -> Splats:
    """The Gaussians as splats on the image, sorted by depth; those that cannot be seen are left out."""
    r, t = view.cam_from_world[:3, :3], view.cam_from_world[:3, 3]
    index = np.arange(len(g))
    p = g.means.astype(np.float64) @ r.T + t
    index = index[(p[:, 2] >= view.near) & (p[:, 2] <= view.far)]
    p, z = p[index], p[index, 2]
    slope = p[:, :2] / z[:, None]
    f = np.array([view.fx, view.fy])
    mean = f * slope + [view.cx, view.cy]

    # covariance on the image: M = J R Q diag(s), two rows; det(M M^T) = |e x f|^2 does not cancel
    a = np.clip(slope, *view.slope_limits(profile))
    jacobian = np.zeros((len(p), 2, 3))
    jacobian[:, 0, 0] = jacobian[:, 1, 1] = 1
    jacobian[:, :, 2] = -a
    jacobian *= (f / z[:, None])[..., None]
    m = jacobian @ r @ (rotation_from_quaternion(g.quaternions[index].astype(np.float64)) * g.scales[index, None])
    xx, xy, yy = (m[:, 0] ** 2).sum(1), (m[:, 0] * m[:, 1]).sum(1), (m[:, 1] ** 2).sum(1)
    sharp = (np.cross(m[:, 0], m[:, 1]) ** 2).sum(1)
    det = sharp + BLUR * (xx + yy) + BLUR**2
    xx, yy = xx + BLUR, yy + BLUR
    opacity = g.opacities[index]
    if view.antialiased:
        opacity = opacity * np.maximum(profile.min_compensation, np.sqrt(sharp / det)).astype(np.float32)

    # beyond this many sigmas alpha is below the cut-off: the box never changes a pixel
    sigmas = np.sqrt(2 * np.log(np.maximum(1, 255.0 * opacity)))
    radius = sigmas[:, None] * np.sqrt(np.stack([xx, yy], 1))
    low, high = np.floor(mean - radius), np.ceil(mean + radius)
    if profile.square_reach:
        radius = np.ceil(3 * np.sqrt((xx + yy) / 2 + np.sqrt(np.maximum(0.1, (xx + yy) ** 2 / 4 - det))))[:, None]
        low = np.maximum(low, 16 * np.floor((mean - 0.5 - radius) / 16))
        high = np.minimum(high, 16 * np.floor((mean + 14.5 + radius) / 16))
    low, high = np.maximum(low, 0), np.minimum(high, [view.width, view.height])
    seen = (opacity >= np.float32(CUTOFF)) & (low < high).all(1)
    depth = z.astype(np.float32)
    order = np.flatnonzero(seen)[np.argsort(depth[seen], kind="stable")]
    direction = g.means[index[order]] - camera_centres(view.cam_from_world)
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-30)
    basis = sh_basis(direction, g.sh_degree)
    return Splats(
        mean=mean[order].astype(np.float32),
        conic=(np.stack([yy, -xy, xx], 1) / det[:, None])[order].astype(np.float32),
        opacity=opacity[order],
        colour=np.maximum(0, 0.5 + np.einsum("nk,nkc->nc", basis, g.sh[index[order]])).astype(np.float32),
        depth=depth[order],
        box=np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)[order].astype(np.int64),
    )


def blend(splats: Splats, view: View, profile: Profile) -> Rendered:
    """The splats over each other, front to back."""
    h, w = view.height, view.width
    light = np.ones((h, w), np.float32)  # transmittance
    done = np.zeros((h, w), bool)
    rgb, depth = np.zeros((h, w, 3), np.float32), np.zeros((h, w), np.float32)
    median = np.full((h, w), np.nan, np.float32)
    for i, (x0, x1, y0, y1) in enumerate(splats.box):
        part = np.s_[y0:y1, x0:x1]
        if done[part].all():
            continue
        dx = splats.mean[i, 0] - (np.arange(x0, x1, dtype=np.float32) + np.float32(0.5))
        dy = (splats.mean[i, 1] - (np.arange(y0, y1, dtype=np.float32) + np.float32(0.5)))[:, None]
        xx, xy, yy = splats.conic[i]
        sigma = np.float32(0.5) * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
        alpha = np.minimum(np.float32(profile.max_alpha), splats.opacity[i] * np.exp(-sigma))
        seen = (sigma >= 0) & (alpha >= np.float32(CUTOFF)) & ~done[part]
        before = light[part]
        after = before * (np.float32(1) - alpha)
        done[part] |= seen & (after <= np.float32(STOP))
        seen &= after > np.float32(STOP)
        weight = np.where(seen, alpha * before, np.float32(0))
        rgb[part] += weight[..., None] * splats.colour[i]
        depth[part] += weight * splats.depth[i]
        median[part][seen & (before > 0.5) & (after <= 0.5)] = splats.depth[i]
        light[part] = np.where(seen, after, before)
    alpha = np.float32(1) - light
    return Rendered(
        rgb=(rgb + light[..., None] * view.background).astype(np.float32),
        alpha=alpha,
        depth=(depth / np.maximum(alpha, np.float32(1e-10))).astype(np.float32),
        median_depth=median,
    )
