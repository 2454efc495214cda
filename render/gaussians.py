"""A scene of 3D Gaussians: what every format is read into and every rasteriser draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..geometry import quaternion_from_rotation
from ..records import LongtakeError
from .harmonics import check_rotation, rotate_sh

SH_COUNTS = {0: 1, 1: 4, 2: 9, 3: 16}  # degree -> coefficients a channel
SH0 = 0.28209479177387814  # the constant basis function, so that colour = 0.5 + SH0 c0
FIELDS = ("means", "scales", "quaternions", "opacities", "sh")


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
        fields = {name: getattr(self, name) for name in FIELDS}
        for name, values in fields.items():
            if values.dtype != np.float32:
                raise LongtakeError(f"Gaussians: {name} is {values.dtype}, not float32")
        for name, what, bad in faults(fields):
            first = int(np.flatnonzero(bad)[0])
            raise LongtakeError(
                f"Gaussians: {name} of number {first} {what} ({fields[name][first]}); {bad.sum()} are like it"
            )

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return int(np.sqrt(self.sh.shape[1])) - 1

    def rotated(self, rotation: NDArray) -> Gaussians:
        """The same Gaussians in a world turned by rotation [3, 3]: means, quaternions and spherical harmonics."""
        return Gaussians(**rotate_fields({name: getattr(self, name) for name in FIELDS}, rotation))


def faults(fields: Mapping[str, NDArray[np.float32]]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(field, what is wrong, which Gaussians [N]) for each rule that some Gaussian breaks; `fields` by name, of N each.

    A Gaussian may break several rules.
    """
    scales, quaternions, opacities = (fields[name] for name in ("scales", "quaternions", "opacities"))
    for name in FIELDS:
        values = fields[name]
        # sums first: a sum of finite float32 in float64 is finite, so sound fields need no mask of their own size
        if not np.isfinite(values.sum(dtype=np.float64)):
            yield name, "is not finite", np.any(~np.isfinite(values.reshape(len(values), -1)), axis=1)
    for name, what, bad in (
        ("scales", "is not positive", np.any(scales <= 0, axis=1)),
        ("quaternions", "is zero", np.all(quaternions == 0, axis=1)),
        ("opacities", "is outside 0 .. 1", np.isfinite(opacities) & ((opacities < 0) | (opacities > 1))),
    ):
        if bad.any():
            yield name, what, bad


def rotate_fields(fields: Mapping[str, NDArray[np.float32]], rotation: NDArray) -> dict[str, NDArray[np.float32]]:
    """The fields of Gaussians in a world turned by rotation [3, 3]: x' = R x, q' = R q, bands of the harmonics too.

    Raises:
        LongtakeError: the matrix is no rotation (a reflection has no quaternion).
    """
    rotation = check_rotation(rotation)
    w, x, y, z = quaternion_from_rotation(rotation).astype(np.float32)
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], np.float32)  # q -> R q
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so, for `faults` to count
        return {
            **fields,
            "means": fields["means"] @ rotation.T.astype(np.float32),
            "quaternions": fields["quaternions"] @ left.T,
            "sh": rotate_sh(fields["sh"], rotation),
        }
