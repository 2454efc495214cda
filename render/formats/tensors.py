"""Our own lossless form: a safetensors file whose tensors are the fields of `Gaussians`, float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...model.tensor_file import read_safetensors_header
from ..gaussians import FIELDS, SH_COUNTS, Gaussians
from .raw import RawScene, broken, check_count, unsupported

FORMAT = "longtake.gaussians/1"


def read_tensors(path: Path, max_splats: int) -> RawScene:
    """A scene in safetensors.

    Raises:
        LongtakeError: a broken header, other tensors than the fields of Gaussians, or shapes that disagree.
    """
    header = read_safetensors_header(path)
    if header.keys() != set(FIELDS):
        raise unsupported(path, f"tensors {', '.join(sorted(header))[:200]}; a scene has {', '.join(FIELDS)}")
    n = header["means"][1][0] if header["means"][1] else 0
    coefficients = header["sh"][1][1] if len(header["sh"][1]) == 3 else 0
    want = {"means": (n, 3), "scales": (n, 3), "quaternions": (n, 4), "opacities": (n,), "sh": (n, coefficients, 3)}
    for name, shape in want.items():
        if header[name] != ("F32", shape) or coefficients not in SH_COUNTS.values():
            raise broken(path, f"{name} is {header[name][0]} {list(header[name][1])}, not F32 {list(shape)}")
    check_count(path, n, max_splats)
    from safetensors.numpy import load_file

    return RawScene(fields=load_file(path))


def write_tensors(path: Path, gaussians: Gaussians) -> None:
    """Every field bit for bit."""
    from safetensors.numpy import save_file

    save_file(
        {name: np.ascontiguousarray(getattr(gaussians, name)) for name in FIELDS}, path, metadata={"format": FORMAT}
    )
