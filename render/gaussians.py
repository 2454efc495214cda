"""A scene of 3D Gaussians: what every format is read into and every rasteriser draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..records import LongtakeError

SH_COUNTS = {0: 1, 1: 4, 2: 9, 3: 16}  # degree -> coefficients a channel
SH0 = 0.28209479177387814  # the constant basis function, so that colour = 0.5 + SH0 c0


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussians:
    """N Gaussians in a world of their own unit and axes.

    Raises:
        LongtakeError: shapes disagree, a value is not finite, a scale is not positive, a quaternion is zero, or an
            opacity lies outside 0 .. 1; the first such Gaussian is named.
    """

    means: NDArray[np.float32]  # [N, 3]
    scales: NDArray[np.float32]  # [N, 3] standard deviations along the Gaussian's own axes, linear, > 0
    quaternions: NDArray[np.float32]  # [N, 4] (w, x, y, z), world_from_gaussian, of any length but zero
    opacities: NDArray[np.float32]  # [N] in 0 .. 1
    sh: NDArray[np.float32]  # [N, (degree + 1)^2, 3] real spherical harmonics of colour, red green blue

    def __post_init__(self) -> None:
        n = len(self.means)
        want = {"means": (n, 3), "scales": (n, 3), "quaternions": (n, 4), "opacities": (n,)}
        for name, shape in want.items():
            if getattr(self, name).shape != shape:
                raise LongtakeError(f"Gaussians: {name} is {list(getattr(self, name).shape)}, not {list(shape)}")
        if self.sh.ndim != 3 or self.sh.shape[::2] != (n, 3) or self.sh.shape[1] not in SH_COUNTS.values():
            raise LongtakeError(f"Gaussians: sh is {list(self.sh.shape)}, not [{n}, 1 | 4 | 9 | 16, 3]")
        for name in (*want, "sh"):
            values = getattr(self, name)
            if values.dtype != np.float32:
                raise LongtakeError(f"Gaussians: {name} is {values.dtype}, not float32")
            self._refuse(~np.isfinite(values), name, "is not finite")
        self._refuse(self.scales <= 0, "scales", "is not positive")
        self._refuse((self.quaternions == 0).all(-1), "quaternions", "is zero")
        self._refuse((self.opacities < 0) | (self.opacities > 1), "opacities", "is outside 0 .. 1")

    def _refuse(self, bad: NDArray[np.bool_], name: str, what: str) -> None:
        if bad.any():
            rows = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
            value = getattr(self, name)[rows[0]]
            raise LongtakeError(f"Gaussians: {name} of number {rows[0]} {what} ({value}); {len(rows)} are like it")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return int(np.sqrt(self.sh.shape[1])) - 1
