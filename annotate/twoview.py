"""Two views at a time: verification of matches, starting pairs and votes for the focal length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import poselib
from numpy.typing import NDArray

from ..geometry import skew


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two views, what they share, and how far a single homography is from explaining it."""

    a: int
    b: int
    num_shared: int
    num_epipolar: int  # inliers of the fundamental matrix
    parallax_px: float  # distance of these from the best homography: the median, or up to the limit the mean
    off_plane: float  # share of these farther than twice the limit from the best homography
    fundamental: NDArray[np.float64]  # [3, 3], x_b^T F x_a = 0, pixels from the image centre
    inlier: NDArray[np.bool_]  # [num_shared] of the fundamental matrix


def relate(a: int, b: int, xy_a: NDArray, xy_b: NDArray, *, limit_px: float) -> Pair | None:
    """Fundamental matrix and homography (RANSAC) of matched points [n, 2] measured from the image centre; None where
    fewer than 15 agree with an epipolar geometry."""
    if len(xy_a) < 15:
        return None
    options = {"max_epipolar_error": limit_px, "seed": 0, "max_iterations": 2000}
    fundamental, info = poselib.estimate_fundamental(xy_a, xy_b, options, {})
    inlier = np.array(info["inliers"], bool)
    if inlier.sum() < 15:
        return None
    options = {"max_reproj_error": 2 * limit_px, "seed": 0, "max_iterations": 500}
    homography, _ = poselib.estimate_homography(xy_a[inlier], xy_b[inlier], options, {})
    moved = np.concatenate([xy_a[inlier], np.ones((inlier.sum(), 1))], 1) @ homography.T
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm(moved[:, :2] / moved[:, 2:] - xy_b[inlier], axis=1)
    distance = np.nan_to_num(distance, nan=1e3, posinf=1e3)
    beside_plane = min(
        float(np.minimum(distance, 10 * limit_px).mean()), limit_px
    )  # where a plane fills most of the view
    return Pair(
        a=a,
        b=b,
        num_shared=len(xy_a),
        num_epipolar=int(inlier.sum()),
        parallax_px=max(float(np.median(distance)), beside_plane),
        off_plane=float(1 - (distance < 2 * limit_px).mean()),
        fundamental=fundamental,
        inlier=inlier,
    )


def sampson(a: NDArray, b: NDArray, b_from_a: NDArray) -> NDArray[np.float64]:
    """First-order distance [n] of matches from the epipolar geometry of two posed cameras.

    Args:
        a, b: [n, 3] homogeneous normalised image points; the distance is in their units.
        b_from_a: [4, 4] camera b from camera a.

    Source: Hartley & Zisserman, 2nd ed., eq. 11.9.
    """
    essential = skew(b_from_a[:3, 3]) @ b_from_a[:3, :3]
    line_b, line_a = a @ essential.T, b @ essential
    slope = (line_b[:, :2] ** 2).sum(1) + (line_a[:, :2] ** 2).sum(1)
    return np.abs((b * line_b).sum(1)) / np.sqrt(np.maximum(slope, 1e-18))


def focal_votes(pairs: list[Pair], size: float, *, count: int = 3) -> list[float]:
    """Focal lengths that make the fundamental matrices essential, best first (at most `count`).

    K^T F K of the right focal has two equal singular values; every pair votes on a grid of 0.35 .. 3.5 image sizes
    with a bounded loss of their relative difference, weighed by its inliers and its parallax (a pair that a homography
    explains says nothing). Source: Sturm 2001; Sweeney et al., ICCV 2015, "Optimizing the viewing graph".
    """
    grid = size * np.geomspace(0.35, 3.5, 93)
    total = np.zeros(len(grid))
    for pair in pairs:
        k = np.zeros((len(grid), 3, 3))
        k[:, 0, 0] = k[:, 1, 1] = grid
        k[:, 2, 2] = 1
        s = np.linalg.svd(k @ pair.fundamental @ k, compute_uv=False)
        error = (s[:, 0] - s[:, 1]) / (s[:, 0] + s[:, 1])
        weight = np.sqrt(pair.num_epipolar) * min(pair.parallax_px / 4, 1.0)
        total += weight * np.exp(-((error / 0.02) ** 2))
    inner = (total[1:-1] >= total[:-2]) & (total[1:-1] >= total[2:])
    peaks = np.flatnonzero(inner) + 1
    peaks = peaks[np.argsort(-total[peaks], kind="stable")]
    return [float(grid[p]) for p in peaks[:count] if total[p] > 0.3 * total[peaks[0]]]


def strongly_bent(matches: list[tuple[NDArray, NDArray]], radius: float, *, limit_px: float) -> bool:
    """Whether matched points ([n, 2] and [n, 2] px from the image centre) agree better with an epipolar geometry after
    a strong barrel distortion is taken out than after a weak one or none.

    The division model x / (1 + b |x|^2 / radius^2) bends: b = -0.1 is a wide-angle lens, an equidistant fisheye of 100
    degrees -0.35, of 150 degrees -0.8. Source: Fitzgibbon, CVPR 2001, "Simultaneous linear estimation of multiple view
    geometry and lens distortion".
    """
    bends = (0.0, -0.1, -0.2, -0.4, -0.6, -0.8)
    agree = np.zeros(len(bends))
    options = {"max_epipolar_error": limit_px, "seed": 0, "max_iterations": 1000}
    for xy_a, xy_b in matches:
        ra, rb = ((xy**2).sum(1, keepdims=True) / radius**2 for xy in (xy_a, xy_b))
        if len(xy_a) < 80:
            continue
        for i, b in enumerate(bends):
            _, info = poselib.estimate_fundamental(xy_a / (1 + b * ra), xy_b / (1 + b * rb), options, {})
            agree[i] += info["num_inliers"]
    weak, strong = agree[:3].max(), agree[3:].max()
    return bool(agree.any() and strong > 1.015 * weak)
