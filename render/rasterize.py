"""Pictures of 3D Gaussians: one interface, three rasterisers that draw the same.

    rasterizer = Rasterizer(gaussians)                       # prepared once
    for pose, camera in zip(world_from_cam, intrinsics):     # 961 frames of a clip
        picture = rasterizer.draw(pose, camera, 1280, 704)

| backend   | file         | for                                                              |
|-----------|--------------|------------------------------------------------------------------|
| reference | reference.py | reading, and wherever nothing else runs: seconds a picture       |
| cpu       | cpu.cpp      | C++ on all cores, compiled on first use: about 0.1 s a picture   |
| gsplat    | cuda.py      | the package gsplat on a CUDA device; it has no median depth      |

Intrinsics are longtake's: the centre of the pixel in row i and column j is (j, i). The splat world, and everything
behind this file, puts it at (j + 0.5, i + 0.5); `Rasterizer.draw` is the one place where that is converted.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import LongtakeError, MissingPart
from ..geometry import invert_pose
from .gaussians import Gaussians

Backend = Literal["auto", "reference", "cpu", "gsplat"]
CUTOFF = 1 / 255  # a smaller alpha is skipped
STOP = 1e-4  # a pixel whose transmittance would fall to this is finished
BLUR = 0.3  # variance in pixels^2 that every splat gains on the image
MAX_SIDE = 32767  # pixels


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a published renderer does in its own way. A scene looks best with the constants that it was trained with."""

    name: str
    max_alpha: float
    min_compensation: float  # least factor on opacity in the antialiased mode
    near: float  # nearest depth drawn, scene units
    clip_about_centre: bool = False  # the Jacobian's limits lie about the image centre, not the principal point
    square_reach: bool = False  # splats end at 3 sigma of the longer axis, in whole 16 x 16 tiles


GSPLAT_1_5 = Profile(name="gsplat 1.5.3", max_alpha=0.999, min_compensation=0.0, near=0.01)
GSPLAT_1_6 = Profile(name="gsplat 1.6", max_alpha=0.99, min_compensation=0.005, near=0.01)
INRIA = Profile(
    name="inria", max_alpha=0.99, min_compensation=0.005, near=0.2, clip_about_centre=True, square_reach=True
)
PROFILES = {profile.name: profile for profile in (GSPLAT_1_5, GSPLAT_1_6, INRIA)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rendered:
    """One picture."""

    rgb: NDArray[np.float32]  # [H, W, 3] over the background; not limited to 1 above
    alpha: NDArray[np.float32]  # [H, W] opacity gathered
    depth: NDArray[np.float32]  # [H, W] expected depth along the optical axis, scene units; 0 where nothing was drawn
    median_depth: NDArray[np.float32] | None  # [H, W] where half of the light is gone, nan where less; None: not had


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One picture to draw, checked, as the rasterisers take it: the centre of pixel (i, j) is (j + 0.5, i + 0.5)."""

    cam_from_world: NDArray[np.float64]  # [4, 4]
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    near: float
    far: float
    antialiased: bool
    background: NDArray[np.float32]  # [3]

    def slope_limits(self, profile: Profile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and greatest (x/z, y/z) for the Jacobian: the picture and 15 % of it on either side."""
        size, f = np.array([self.width, self.height], float), np.array([self.fx, self.fy])
        centre = size / 2 if profile.clip_about_centre else np.array([self.cx, self.cy])
        return (-centre - 0.15 * size) / f, (size - centre + 0.15 * size) / f


class Engine(Protocol):
    """What a backend's file offers: prepared from (gaussians, profile)."""

    def draw(self, view: View) -> Rendered: ...


class Rasterizer:
    """A scene prepared for drawing.

    Args:
        backend: "auto" takes gsplat where it is installed and there is a CUDA device, else (with a warning where only
            gsplat's kernels are missing) cpu, else (with a warning) reference.
        profile: whose constants hold; by default those of gsplat 1.5.3, and for the backend gsplat those of the
            version that is installed.

    Attributes:
        backend: the one taken.
        profile: the constants that hold.

    Raises:
        MissingPart: the backend that was asked for cannot run here; it is said why and what to do.
        LongtakeError: the gsplat that is installed has other constants than `profile`.
    """

    def __init__(self, gaussians: Gaussians, *, backend: Backend = "auto", profile: Profile | None = None) -> None:
        if backend not in ("auto", "reference", "cpu", "gsplat"):
            raise LongtakeError(f"rasterizer {backend!r} is none of auto, reference, cpu, gsplat")
        if backend == "auto" and importlib.util.find_spec("gsplat"):
            from . import cuda

            if cuda.device_found() and profile in (None, cuda.installed_profile()):
                try:
                    cuda.check_kernels()
                    backend = "gsplat"
                except MissingPart as error:
                    warnings.warn(f"Gaussians are drawn on the CPU: {error}", stacklevel=2)
        if backend == "gsplat":
            from . import cuda

            self.backend, self.profile = "gsplat", profile or cuda.installed_profile()
            self._engine: Engine = cuda.CudaRasterizer(gaussians, self.profile)
            return
        self.profile = profile or GSPLAT_1_5
        if backend in ("auto", "cpu"):
            from . import cpu

            try:
                self._engine, self.backend = cpu.CpuRasterizer(gaussians, self.profile), "cpu"
                return
            except MissingPart as error:
                if backend == "cpu":
                    raise
                warnings.warn(f"Gaussians are drawn by the slow reference: {error}", stacklevel=2)
        from . import reference

        self._engine, self.backend = reference.ReferenceRasterizer(gaussians, self.profile), "reference"

    def draw(
        self,
        world_from_cam: NDArray,
        intrinsics: ArrayLike,
        width: int,
        height: int,
        *,
        antialiased: bool = False,
        background: ArrayLike = (0.0, 0.0, 0.0),
        near: float | None = None,
        far: float = 1e10,
    ) -> Rendered:
        """The picture of one camera.

        Args:
            world_from_cam: [4, 4] rigid, OpenCV axes (x right, y down, z forward), scene units.
            intrinsics: [4] fx, fy, cx, cy in pixels, pixel centres at integer coordinates.
            antialiased: dim splats that are smaller than a pixel, as scenes trained with this mode want it.
            background: rgb behind the scene.
            near, far: depths drawn, scene units; near is the profile's by default.

        Raises:
            LongtakeError: an argument is not what it should be.
        """
        world_from_cam, k = np.asarray(world_from_cam, np.float64), np.asarray(intrinsics, np.float64)
        near = self.profile.near if near is None else near
        if world_from_cam.shape != (4, 4) or k.shape != (4,):
            raise LongtakeError(
                f"draw takes one pose [4, 4] and one set of intrinsics [4], not {list(world_from_cam.shape)} and "
                f"{list(k.shape)}; `rasterize` takes many"
            )
        rotation = world_from_cam[:3, :3]
        if not np.isfinite(world_from_cam).all() or np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3:
            raise LongtakeError(f"world_from_cam is no rigid motion:\n{world_from_cam}")
        if not np.isfinite(k).all() or (k[:2] <= 0).any():
            raise LongtakeError(f"intrinsics {k} are not finite with positive focal lengths")
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise LongtakeError(f"a picture of {width} x {height} pixels: each side must be 1 to {MAX_SIDE}")
        if not 0 < near < far:
            raise LongtakeError(f"near {near} and far {far}: they must be positive and in this order")
        colour = np.asarray(background, np.float32)
        if colour.shape != (3,) or not np.isfinite(colour).all():
            raise LongtakeError(f"background {background} is not three finite numbers")
        view = View(
            cam_from_world=invert_pose(world_from_cam),
            fx=float(k[0]),
            fy=float(k[1]),
            cx=float(k[2]) + 0.5,  # from pixel centres at integers to the splat world's
            cy=float(k[3]) + 0.5,
            width=int(width),
            height=int(height),
            near=float(near),
            far=float(far),
            antialiased=antialiased,
            background=colour,
        )
        return self._engine.draw(view)


def rasterize(
    gaussians: Gaussians,
    world_from_cam: NDArray,
    intrinsics: ArrayLike,
    width: int,
    height: int,
    *,
    backend: Backend = "auto",
    profile: Profile | None = None,
    antialiased: bool = False,
    background: ArrayLike = (0.0, 0.0, 0.0),
    near: float | None = None,
    far: float = 1e10,
) -> Iterator[Rendered]:
    """Pictures along a path, one at a time: see `Rasterizer` and `Rasterizer.draw`.

    Args:
        world_from_cam: [C, 4, 4].
        intrinsics: [C, 4], or [4] for all; pixel centres at integer coordinates.
    """
    world_from_cam, intrinsics = np.asarray(world_from_cam), np.asarray(intrinsics)
    if world_from_cam.ndim != 3 or intrinsics.shape not in ((4,), (len(world_from_cam), 4)):
        raise LongtakeError(
            f"rasterize takes poses [C, 4, 4] and intrinsics [C, 4] or [4], not {list(world_from_cam.shape)} and "
            f"{list(intrinsics.shape)}"
        )
    rasterizer = Rasterizer(gaussians, backend=backend, profile=profile)
    cameras = np.broadcast_to(intrinsics, (len(world_from_cam), 4))
    return (
        rasterizer.draw(p, k, width, height, antialiased=antialiased, background=background, near=near, far=far)
        for p, k in zip(world_from_cam, cameras, strict=True)
    )
