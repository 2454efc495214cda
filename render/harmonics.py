"""Real spherical harmonics of colour: the basis as 3DGS files order it, and how coefficients turn with the world."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..records import LongtakeError


def sh_basis(directions: NDArray, degree: int) -> NDArray:
    """The real spherical harmonics of degrees 0 .. degree (at most 3) at unit directions.

    Args:
        directions: [..., 3] unit vectors from the camera to the Gaussian.

    Returns:
        [..., (degree + 1)^2] in the type of `directions`; colour = max(0, 0.5 + basis @ coefficients).

    Source: Kerbl et al., 3D Gaussian Splatting, 2023 (its order and signs).
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    xx, yy, zz = x * x, y * y, z * z
    basis = [
        np.full_like(x, 0.28209479177387814),
        -0.48860251190291987 * y,
        0.48860251190291987 * z,
        -0.48860251190291987 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * zz - xx - yy),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        -0.5900435899266435 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (4 * zz - xx - yy),
        0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
        -0.4570457994644658 * x * (4 * zz - xx - yy),
        1.445305721320277 * z * (xx - yy),
        -0.5900435899266435 * x * (xx - 3 * yy),
    ]
    return np.stack(basis[: (degree + 1) ** 2], -1)


def rotate_sh(sh: NDArray[np.float32], rotation: NDArray) -> NDArray[np.float32]:
    """Coefficients of the turned function: f'(R d) = f(d), so a Gaussian keeps its colours when the world turns.

    Args:
        sh: [N, (degree + 1)^2, C].
        rotation: [3, 3]; each band of 2l + 1 coefficients is mixed by a matrix of its own.

    Raises:
        LongtakeError: the matrix is no rotation.
    """
    rotation = check_rotation(rotation)
    degree = int(np.sqrt(sh.shape[1])) - 1
    directions = _spread(64)
    here, there = sh_basis(directions, degree), sh_basis(directions @ rotation.T, degree)  # Y(d), Y(R d)
    out = np.empty_like(sh)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
        for band in range(degree + 1):
            own = slice(band * band, (band + 1) ** 2)
            # Y(R d) c' = Y(d) c in every direction; a band is closed under rotation, so this fit is exact
            turn = np.linalg.lstsq(there[:, own], here[:, own], rcond=None)[0].astype(np.float32)
            turn[np.abs(turn) < 1e-7] = 0  # so that flips of axes only change signs
            out[:, own] = np.einsum("ij,njc->nic", turn, sh[:, own])
    return out


def check_rotation(rotation: NDArray) -> NDArray[np.float64]:
    """The matrix in float64; raises LongtakeError unless it is a rotation to 1e-5."""
    matrix = np.asarray(rotation, np.float64)
    if matrix.shape != (3, 3) or not np.abs(matrix @ matrix.T - np.eye(3)).max() < 1e-5:
        raise LongtakeError(f"not a rotation: {matrix.tolist()}")
    if np.linalg.det(matrix) < 0:
        raise LongtakeError(
            f"a reflection, not a rotation: {matrix.tolist()}. Axes of the other hand need the scene mirrored, "
            "which quaternions cannot express: convert it with the program that made it."
        )
    return matrix


def _spread(count: int) -> NDArray[np.float64]:
    """[count, 3] unit vectors spread evenly over the sphere (a Fibonacci spiral)."""
    k = np.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    return np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], -1)
