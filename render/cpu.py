"""The fast rasteriser on the CPU: cpu.cpp, compiled on first use and kept, called through ctypes.

See docs/decisions/rasterizer.md for why it is made so. Any C++ compiler does; `pip install ziglang` brings one.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingPart
from ..geometry import camera_centres, rotation_from_quaternion
from .gaussians import Gaussians
from .rasterize import Profile, Rendered, View

FLAGS = "-O3 -std=c++17 -march=native -fno-math-errno -fno-trapping-math -fPIC -shared -pthread".split()
COMPILE_S = 300  # longer than any compiler took


class _Scene(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int64),
        ("sh_count", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("means", "axes", "largest", "opacities", "sh")),
    ]


class _View(ctypes.Structure):
    _fields_ = [
        ("cam_from_world", ctypes.c_double * 12),
        ("centre", ctypes.c_double * 3),
        *((name, ctypes.c_double) for name in ("fx", "fy", "cx", "cy")),
        ("slope_min", ctypes.c_double * 2),
        ("slope_max", ctypes.c_double * 2),
        *((name, ctypes.c_double) for name in ("near", "far")),
        *((name, ctypes.c_int32) for name in ("width", "height", "antialiased", "square_reach")),
        *((name, ctypes.c_float) for name in ("min_compensation", "max_alpha")),
        ("background", ctypes.c_float * 3),
        ("threads", ctypes.c_int32),
    ]


class _Picture(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("rgb", "alpha", "depth", "median")]


class CpuRasterizer:
    """A scene prepared for cpu.cpp. Safe to call from several threads, one of which draws at a time.

    Raises:
        MissingPart: there is no compiler, or it failed.
    """

    def __init__(self, gaussians: Gaussians, profile: Profile) -> None:
        self._library, self._profile, self._lock = library(), profile, threading.Lock()
        rotation = rotation_from_quaternion(gaussians.quaternions.astype(np.float64))
        self._arrays = {
            "means": gaussians.means,
            "axes": rotation * gaussians.scales[:, None],
            "largest": gaussians.scales.max(1, initial=0),
            "opacities": gaussians.opacities,
            "sh": gaussians.sh,
        }
        self._arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in self._arrays.items()}
        self._scene = _Scene(len(gaussians), gaussians.sh.shape[1], *(a.ctypes.data for a in self._arrays.values()))
        self._threads = int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or len(os.sched_getaffinity(0)))
        self._scratch = ctypes.c_void_p(self._library.longtake_new_scratch())

    def __del__(self) -> None:
        if hasattr(self, "_scratch"):
            self._library.longtake_free_scratch(self._scratch)

    def draw(self, view: View) -> Rendered:
        h, w = view.height, view.width
        low, high = view.slope_limits(self._profile)
        numbers = _View(
            cam_from_world=_filled(ctypes.c_double * 12, view.cam_from_world[:3]),
            centre=_filled(ctypes.c_double * 3, camera_centres(view.cam_from_world)),
            fx=view.fx,
            fy=view.fy,
            cx=view.cx,
            cy=view.cy,
            slope_min=_filled(ctypes.c_double * 2, low),
            slope_max=_filled(ctypes.c_double * 2, high),
            near=view.near,
            far=view.far,
            width=w,
            height=h,
            antialiased=view.antialiased,
            square_reach=self._profile.square_reach,
            min_compensation=self._profile.min_compensation,
            max_alpha=self._profile.max_alpha,
            background=_filled(ctypes.c_float * 3, view.background),
            threads=self._threads,
        )
        rgb, alpha = np.empty((h, w, 3), np.float32), np.empty((h, w), np.float32)
        depth, median = np.empty((h, w), np.float32), np.empty((h, w), np.float32)
        out = _Picture(*(a.ctypes.data for a in (rgb, alpha, depth, median)))
        with self._lock:
            failed = self._library.longtake_draw(
                self._scratch, ctypes.byref(self._scene), ctypes.byref(numbers), ctypes.byref(out)
            )
        if failed:
            raise MemoryError(f"no memory to draw {self._scene.count} Gaussians at {w} x {h}")
        return Rendered(rgb=rgb, alpha=alpha, depth=depth, median_depth=median)


def _filled(kind: type[ctypes.Array], values: NDArray) -> ctypes.Array:
    return kind(*np.ravel(values).tolist())


# ---- the library ---------------------------------------------------------------------------------------------------


@cache
def library() -> ctypes.CDLL:
    """cpu.cpp as a loaded library, compiled unless the user's cache folder has it for this source, compiler and CPU.

    Raises:
        MissingPart: there is no compiler, or it failed; its words are in the text.
    """
    source = Path(__file__).with_name("cpu.cpp").read_bytes()
    command = compiler()
    identity = repr((command, FLAGS, _version(command), _cpu())).encode()
    folder = cache_folder()
    path = folder / f"rasterizer-{hashlib.sha256(source + identity).hexdigest()[:20]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            (Path(work) / "cpu.cpp").write_bytes(source)
            made = Path(work) / "rasterizer.so"
            done = _run([*command, *FLAGS, "-o", str(made), str(Path(work) / "cpu.cpp")])
            if done.returncode:
                raise MissingPart(f"{shlex.join(command)} could not compile the rasterizer:\n{done.stderr[-2000:]}")
            os.replace(made, path)  # whole or not there, whoever else compiles
    loaded = ctypes.CDLL(str(path))
    loaded.longtake_new_scratch.restype = ctypes.c_void_p
    loaded.longtake_free_scratch.argtypes = [ctypes.c_void_p]
    loaded.longtake_draw.argtypes = [ctypes.c_void_p] * 4
    return loaded


def cache_folder() -> Path:
    """Where compiled libraries are kept: longtake in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longtake"


def compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, the system's, or the package ziglang; raises MissingPart."""
    if told := os.environ.get("CXX"):
        return shlex.split(told)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-nostdlib++"]  # building its own takes minutes
    raise MissingPart("no C++ compiler was found: apt-get install g++, or pip install ziglang, or set CXX")


def _version(command: list[str]) -> str:
    done = _run([*command, "--version"])
    if done.returncode:
        raise MissingPart(f"{shlex.join(command)} --version failed: {done.stderr[-500:]}")
    return done.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
    except OSError as error:
        raise MissingPart(f"the C++ compiler {shlex.join(command)} cannot be run: {error}; set CXX") from error


def _cpu() -> str:
    """What the CPU can do: a library made for another one in a shared home may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
