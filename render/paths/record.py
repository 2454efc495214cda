"""What a path is: poses, intrinsics, how it was made, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...records import LongtakeError, check_shape

Parameter = float | int | str | bool


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One measured value beside its limit."""

    name: str  # snake_case: also the reason a path is rejected for
    value: float
    limit: float
    bound: Literal["at_most", "at_least"]

    @property
    def passed(self) -> bool:
        """False also where the value is nan."""
        return bool(self.value <= self.limit if self.bound == "at_most" else self.value >= self.limit)


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraPath:
    """T poses of a camera, evenly spaced in time, in the frame and unit of the scene they were designed in.

    Raises:
        ValueError: shapes disagree, a value is not finite, or a pose is not a rigid motion.
    """

    world_from_cam: NDArray[np.float64]  # [T, 4, 4] camera axes x right, y down, z forward
    intrinsics: NDArray[np.float64]  # [T, 4] fx, fy, cx, cy of width x height, pixel centres at integer coordinates
    width: int
    height: int
    fps: float
    family: str
    seed: int
    parameters: dict[str, Parameter]  # what was drawn from the seed, in scene units, degrees and shares
    checks: tuple[CheckResult, ...] = ()
    revisit_pairs: NDArray[np.int64]  # [K, 2] earlier frame, later frame that shows the same place

    def __post_init__(self) -> None:
        n = len(self.world_from_cam)
        check_shape(self, "world_from_cam", (n, 4, 4))
        check_shape(self, "intrinsics", (n, 4))
        check_shape(self, "revisit_pairs", (len(self.revisit_pairs), 2))
        if not (np.isfinite(self.world_from_cam).all() and np.isfinite(self.intrinsics).all()):
            raise ValueError(f"path {self.family}, seed {self.seed}: a pose or intrinsics are not finite")
        r = self.world_from_cam[:, :3, :3]
        off = np.abs(np.swapaxes(r, 1, 2) @ r - np.eye(3)).max((1, 2))
        if (off > 1e-6).any() or (np.linalg.det(r) < 0).any():
            raise ValueError(f"path {self.family}, seed {self.seed}: frame {int(off.argmax())} is not a rigid motion")

    @property
    def num_frames(self) -> int:
        return len(self.world_from_cam)


class NoPath(LongtakeError):
    """A family has no path here; `reason` is counted like a failed check."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
