"""The package gsplat on a CUDA device; it is imported only after torch has found one."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import numpy as np

from ..errors import LongtakeError, MissingPart
from .gaussians import Gaussians
from .rasterize import GSPLAT_1_5, GSPLAT_1_6, Profile, Rendered, View

WHEELS = "https://docs.gsplat.studio/whl"  # gsplat with its kernels, by versions of PyTorch and CUDA


def device_found() -> bool:
    import torch

    return torch.cuda.is_available()


def installed_profile() -> Profile:
    """The constants of the gsplat that is installed.

    Raises:
        MissingPart: gsplat is not installed, or older than 1.5.3.
    """
    try:
        version = metadata.version("gsplat")
    except metadata.PackageNotFoundError as error:
        raise MissingPart("the package gsplat is not installed: pip install 'longtake[gsplat]'") from error
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers < (1, 5):
        raise MissingPart(f"gsplat {version} is too old, its constants are not on record: pip install 'gsplat>=1.5.3'")
    return GSPLAT_1_5 if numbers == (1, 5) else GSPLAT_1_6


def check_kernels() -> str:
    """Where gsplat has its kernels from, in words. PyPI's wheel has none, and compiles them on first use.

    Raises:
        MissingPart: gsplat is not installed or too old, or has no kernels and cannot compile them; says what to do.
    """
    installed_profile()
    spec = importlib.util.find_spec("gsplat")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or () if spec else ())]
    if any(found for folder in folders for found in folder.glob("csrc*.so")):
        return "kernels in the wheel"
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").is_file():
        return f"compiles its kernels on first use, for minutes, with {CUDA_HOME}/bin/nvcc"
    import torch

    release = "".join(torch.__version__.split(".")[:2])
    wheel = f"pt{release}cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "ptXXcuYYY"
    raise MissingPart(
        "gsplat is installed without kernels, as PyPI has it, and there is no nvcc to compile them: install the CUDA "
        "toolkit of PyTorch's version and set CUDA_HOME, or a wheel that has them, where there is one: "
        f"pip install gsplat --index-url {WHEELS}/{wheel}"
    )


class CudaRasterizer:
    """A scene on the CUDA device, drawn by gsplat. There is no median depth: gsplat has none for 3D Gaussians."""

    def __init__(self, gaussians: Gaussians, profile: Profile) -> None:
        installed = installed_profile()
        if not device_found():
            raise MissingPart("gsplat needs a CUDA device, and torch finds none; use the backend cpu")
        check_kernels()
        if profile != installed:
            raise LongtakeError(
                f"the installed gsplat has the constants of {installed.name}, not {profile.name}: use the backend cpu"
            )
        import torch

        names = {"means": "means", "quats": "quaternions", "scales": "scales", "opacities": "opacities", "colors": "sh"}
        self._scene = {
            theirs: torch.from_numpy(np.ascontiguousarray(getattr(gaussians, ours))).cuda()
            for theirs, ours in names.items()
        }
        self._degree = gaussians.sh_degree

    def draw(self, view: View) -> Rendered:
        import torch
        from gsplat import rasterization  # pyright: ignore[reportMissingImports]

        camera = np.array([[view.fx, 0, view.cx], [0, view.fy, view.cy], [0, 0, 1]])
        viewmats, ks, background = (
            torch.from_numpy(a.astype(np.float32))[None].cuda() for a in (view.cam_from_world, camera, view.background)
        )
        with torch.inference_mode():
            colours, alpha, _ = rasterization(
                **self._scene,
                viewmats=viewmats,
                Ks=ks,
                width=view.width,
                height=view.height,
                near_plane=view.near,
                far_plane=view.far,
                sh_degree=self._degree,
                backgrounds=background,
                render_mode="RGB+ED",
                rasterize_mode="antialiased" if view.antialiased else "classic",
                packed=False,
            )
        picture = colours[0].cpu().numpy()  # [H, W, 4] rgb and expected depth
        return Rendered(
            rgb=np.ascontiguousarray(picture[..., :3]),
            alpha=alpha[0, ..., 0].cpu().numpy(),
            depth=np.ascontiguousarray(picture[..., 3]),
            median_depth=None,
        )
