"""`.splat`: 32 bytes a splat, no header: float32 position and scale, RGBA and a quaternion in bytes, no harmonics.

Source: github.com/antimatter15/splat, convert.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..gaussians import SH0, Gaussians
from .raw import RawScene, broken, check_count, unit

SPLAT = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def looks_like_splat(start: bytes, size: int) -> bool:
    """Whether a file of `size` bytes, of which these are the first, can be a .splat: the format has no magic number.

    Whole records, and in the first of them finite moderate positions and scales that are not negative.
    """
    if size == 0 or size % SPLAT.itemsize:
        return False
    rows = np.frombuffer(start[: len(start) // SPLAT.itemsize * SPLAT.itemsize], SPLAT)
    with np.errstate(invalid="ignore"):
        sound = (np.abs(rows["mean"]) < 1e7).all(1) & (rows["scale"] >= 0).all(1) & (rows["scale"] < 1e6).all(1)
    return len(rows) > 0 and sound.mean() > 0.9


def read_splat(path: Path, max_splats: int) -> RawScene:
    """A `.splat` file; raises BadMedia where its size is no whole number of splats."""
    size = path.stat().st_size
    if size % SPLAT.itemsize:
        raise broken(path, f"{size} bytes are no whole number of splats of {SPLAT.itemsize} bytes")
    check_count(path, size // SPLAT.itemsize, max_splats)
    rows = np.fromfile(path, SPLAT)
    rgba = unit(rows["rgba"])
    return RawScene(
        fields={
            "means": np.ascontiguousarray(rows["mean"], np.float32),
            "scales": np.ascontiguousarray(rows["scale"], np.float32),
            "quaternions": unit(rows["rotation"], 128) - 1,
            "opacities": np.ascontiguousarray(rgba[:, 3]),
            "sh": (rgba[:, None, :3] - 0.5) / np.float32(SH0),
        }
    )


def write_splat(path: Path, gaussians: Gaussians) -> None:
    """A `.splat` file: colours and opacities to 1/255 within 0 .. 1, quaternions to 1/128, and no view-dependence.

    Of the spherical harmonics only the constant colour is kept: the format holds no more.
    """
    rows = np.empty(len(gaussians), SPLAT)
    rows["mean"], rows["scale"] = gaussians.means, gaussians.scales
    rows["rgba"][:, :3] = _byte((0.5 + SH0 * gaussians.sh[:, 0]) * 255)
    rows["rgba"][:, 3] = _byte(gaussians.opacities * 255)
    unit = gaussians.quaternions / np.linalg.norm(gaussians.quaternions, axis=1, keepdims=True)
    rows["rotation"] = _byte(unit * 128 + 128)
    rows.tofile(path)


def _byte(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
