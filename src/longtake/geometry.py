"""Rigid motions, similarities and pinhole projection: the leaf that every folder may import.

Conventions: `world_from_cam` = c2w, OpenCV camera axes (x right, y down, z forward), pixel centres at integer
coordinates, float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotation_from_vector(w: NDArray) -> NDArray:
    """Rotation matrices [..., 3, 3] of the rotation vectors w [..., 3] (radians), by Rodrigues' formula."""
    w = np.asarray(w, np.float64)
    angle2 = (w * w).sum(-1)[..., None, None]
    angle = np.sqrt(angle2)
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 1 - angle2 / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - angle2 / 24, (1 - np.cos(safe)) / (safe * safe))
    k = skew(w)
    return np.eye(3) + a * k + b * (k @ k)


def skew(w: NDArray) -> NDArray:
    """[w]_x [..., 3, 3], so that skew(w) @ v = w x v."""
    out = np.zeros((*w.shape[:-1], 3, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -w[..., 2], w[..., 1], -w[..., 0]
    return out - np.swapaxes(out, -1, -2)


def vector_from_rotation(r: NDArray) -> NDArray:
    """Rotation vectors [..., 3] (radians, norm at most pi) of the rotation matrices r [..., 3, 3]."""
    q = quaternion_from_rotation(r)
    w, v = q[..., 0], q[..., 1:]
    norm = np.linalg.norm(v, axis=-1)
    factor = np.where(norm < 1e-12, 2.0, 2 * np.arctan2(norm, w) / np.where(norm < 1e-12, 1.0, norm))
    return v * factor[..., None]


def quaternion_from_rotation(r: NDArray) -> NDArray:
    """Unit quaternions (w, x, y, z) with w >= 0 of the rotation matrices r [..., 3, 3] (Shepperd, 1978)."""
    r = np.asarray(r, np.float64)
    d = np.stack([r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]], -1)
    trace = d.sum(-1)
    # four candidate quaternions, one per largest component; the best conditioned is taken
    c = np.empty((*r.shape[:-2], 4, 4))
    c[..., 0, 0] = 1 + trace
    c[..., 0, 1] = c[..., 1, 0] = r[..., 2, 1] - r[..., 1, 2]
    c[..., 0, 2] = c[..., 2, 0] = r[..., 0, 2] - r[..., 2, 0]
    c[..., 0, 3] = c[..., 3, 0] = r[..., 1, 0] - r[..., 0, 1]
    for i in range(3):
        c[..., i + 1, i + 1] = 1 + 2 * d[..., i] - trace
        for j in range(i + 1, 3):
            c[..., i + 1, j + 1] = c[..., j + 1, i + 1] = r[..., i, j] + r[..., j, i]
    best = np.argmax(np.stack([c[..., i, i] for i in range(4)], -1), -1)
    q = np.take_along_axis(c, best[..., None, None], -2)[..., 0, :]
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., :1] < 0, -q, q)


def rotation_from_quaternion(q: NDArray) -> NDArray:
    """Rotation matrices [..., 3, 3] of the quaternions q [..., 4] (w, x, y, z), which need not have unit norm."""
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )


def nearest_rotation(m: NDArray) -> NDArray:
    """The rotation nearest to m [..., 3, 3] in the Frobenius norm."""
    u, _, vt = np.linalg.svd(m)
    u[..., :, 2] *= np.linalg.det(u @ vt)[..., None]
    return u @ vt


def angle_between_deg(a: NDArray, b: NDArray) -> NDArray:
    """The angle of a^T b in degrees, for rotations a, b [..., 3, 3]."""
    return np.degrees(np.linalg.norm(vector_from_rotation(np.swapaxes(a, -1, -2) @ b), axis=-1))


def invert_pose(m: NDArray) -> NDArray:
    """The inverse of the rigid motions m [..., 4, 4]."""
    rt = np.swapaxes(m[..., :3, :3], -1, -2)
    return pose(rt, -(rt @ m[..., :3, 3:])[..., 0])


def pose(rotation: NDArray, translation: NDArray) -> NDArray:
    """Rigid motions [..., 4, 4] from rotation [..., 3, 3] and translation [..., 3]."""
    out = np.zeros((*rotation.shape[:-2], 4, 4))
    out[..., :3, :3], out[..., :3, 3], out[..., 3, 3] = rotation, translation, 1.0
    return out


def camera_centres(cam_from_world: NDArray) -> NDArray:
    """[..., 3] where the cameras [..., 4, 4] stand in the world."""
    return -(np.swapaxes(cam_from_world[..., :3, :3], -1, -2) @ cam_from_world[..., :3, 3:])[..., 0]


def interpolate_pose(a: NDArray, b: NDArray, s: NDArray) -> NDArray:
    """Rigid motions at fractions s [N] from a to b [4, 4]: constant angular velocity, straight translation."""
    s = np.asarray(s, np.float64)
    step = vector_from_rotation(a[:3, :3].T @ b[:3, :3])
    rotation = a[:3, :3] @ rotation_from_vector(s[:, None] * step)
    return pose(rotation, a[:3, 3] + s[:, None] * (b[:3, 3] - a[:3, 3]))


def distort(xy: NDArray, k1: NDArray | float, k2: NDArray | float) -> NDArray:
    """Radial distortion of normalised image points xy [..., 2]: xy (1 + k1 r^2 + k2 r^4) (OpenCV's k1, k2)."""
    r2 = (xy * xy).sum(-1)
    return xy * (1 + k1 * r2 + k2 * r2 * r2)[..., None]


def undistort(xy: NDArray, k1: NDArray | float, k2: NDArray | float, iterations: int = 10) -> NDArray:
    """The inverse of `distort`, by Newton's method on the radius; points past where it folds stay at the fold."""
    rd = np.linalg.norm(xy, axis=-1)
    r = rd.copy()
    for _ in range(iterations):
        r2 = r * r
        slope = 1 + 3 * k1 * r2 + 5 * k2 * r2 * r2
        r -= (r * (1 + k1 * r2 + k2 * r2 * r2) - rd) / np.where(np.abs(slope) < 0.1, 0.1, slope)
        r = np.clip(r, 0.0, 4 * rd + 1e-12)
    return xy * (r / np.where(rd < 1e-12, 1.0, rd))[..., None] if xy.size else xy


def align_similarity(
    source: NDArray, target: NDArray, *, with_scale: bool = True, weight: NDArray | None = None
) -> tuple[float, NDArray, NDArray]:
    """The similarity s > 0, R, t that minimises sum weight_i |target_i - (s R source_i + t)|^2.

    Args:
        source, target: [N, 3] corresponding points.
        with_scale: False keeps s = 1 (a rigid motion).
        weight: [N] of each pair, at least 0; all equal where None.

    Source: Umeyama, TPAMI 13(4), 1991, eqs. 34-43.
    """
    mu_s, mu_t = np.average(source, 0, weight), np.average(target, 0, weight)
    a, b = source - mu_s, target - mu_t
    if weight is not None:
        root = np.sqrt(weight / weight.mean())[:, None]
        a, b = root * a, root * b
    u, d, vt = np.linalg.svd(b.T @ a / len(source))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    variance = (a * a).sum() / len(source)
    s = float((d * sign).sum() / variance) if with_scale and variance > 0 else 1.0
    return s, rotation, mu_t - s * rotation @ mu_s


def unit_px(width: int, height: int) -> float:
    """Pixels of such a picture that are one where the diagonal has 800: limits are told for that size."""
    return float(np.hypot(width, height)) / 800
