"""Published MoGe-2 weights: a file of `torch.save` with `model_config` and `model`, loaded without running any code."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import LongtakeError
from .config import MoGe2Config, parse_config
from .network import MoGe2

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OPTIONAL = ("normal_head", "mask_head", "scale_head")
# what torch raises for an archive with sound checksums whose pickle is malformed
_MALFORMED = (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, AssertionError, struct.error)


def load(path: Path, *, device: torch.device | str) -> MoGe2:
    """MoGe-2 with the sizes and weights of a checkpoint, for inference, in float32 on the device.

    A head that the configuration names but the file has no weights of is left out, with a warning; anything else that
    is missing, too many or of another shape or type is an error.

    Args:
        path: the file, such as `model.pt` of the hub repository Ruicheng/moge-2-vitl-normal.

    Raises:
        LongtakeError: no such file, truncated, corrupt, no MoGe-2 checkpoint, or one that would run code.
    """
    raw = _read(path)
    if not isinstance(raw, Mapping) or not {"model_config", "model"} <= set(raw):
        raise LongtakeError(f"{path}: holds no 'model_config' and 'model', so it is no MoGe-2 checkpoint")
    weights = raw["model"]
    if not isinstance(weights, Mapping) or not all(isinstance(k, str) for k in weights):
        raise LongtakeError(f"{path}: 'model' is no state dict, so it is no MoGe-2 checkpoint")
    try:
        config = parse_config(raw["model_config"])
    except LongtakeError as error:
        raise LongtakeError(f"{path}: {error}") from error
    for name in _OPTIONAL:
        if getattr(config, name) is not None and not any(key.startswith(f"{name}.") for key in weights):
            warnings.warn(f"{path}: configured with a {name} but without its weights; it is left out", stacklevel=2)
            config = replace(config, **{name: None})
    return build(config, weights, source=str(path)).to(device)


def build(config: MoGe2Config, weights: Mapping[str, Tensor], *, source: str) -> MoGe2:
    """The network with these weights, which must be exactly the configuration's and finite; float32, for inference."""
    with torch.device("meta"):
        model = MoGe2(config)
    expected = model.state_dict()
    wrong = [f"{key} is missing" for key in expected if key not in weights]
    for key, value in weights.items():
        if key not in expected:
            wrong.append(f"{key} is not part of the network")
        elif not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            wrong.append(f"{key} is no plain tensor")
        elif value.shape != expected[key].shape:
            wrong.append(f"{key} has shape {list(value.shape)}, not {list(expected[key].shape)}")
        elif value.dtype not in _DTYPES:
            wrong.append(f"{key} is {value.dtype}, not float32, float16 or bfloat16")
        elif not value.isfinite().all():
            wrong.append(f"{key} is not finite")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise LongtakeError(f"{source}: weights do not fit the file's own configuration: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> object:
    """What the file holds, after its checksums; only tensors and plain containers are let in."""
    again = "Download it again."
    if not path.is_file():
        raise LongtakeError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch stores entries as they are: a compressed one could unpack to any size
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise LongtakeError(f"{path}: has compressed entries, which torch.save does not write. {again}")
            if sum(e.file_size for e in entries) > path.stat().st_size:
                raise LongtakeError(f"{path}: its entries are larger than the file. {again}")
            bad = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        raise LongtakeError(f"{path}: truncated, corrupt or no torch checkpoint ({error}). {again}") from error
    if bad is not None:
        raise LongtakeError(f"{path}: corrupt, {bad} fails its checksum. {again}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        detail = str(error).partition("\n")[0]
        raise LongtakeError(f"{path}: holds more than weights, and may run code; refused ({detail})") from error
    except _MALFORMED as error:
        raise LongtakeError(f"{path}: malformed ({type(error).__name__}: {error}). {again}") from error
