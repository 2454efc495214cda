"""Published weights of SANA-WM's parts into their networks, with nothing missing, left over or half read.

Of the first stage two layouts are known: the original one, and that of diffusers, which is the network's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...errors import BadWeights
from ..tensor_file import DTYPE_BYTES, read_safetensors_header
from .config import SANA_WM, SanaWMConfig
from .fp8 import to_fp8
from .network import SanaWM

RENAMED = {"t_embedder.mlp.0.": "t_embedder.linear_1.", "t_embedder.mlp.2.": "t_embedder.linear_2."}
LEFT_OUT = ("pos_embed", "y_embedder.y_embedding")  # of the original layout; nothing uses them
KEPT_FLOAT32 = (".A_log", ".dt_bias")  # a frame's decay, taken to the power of the clip's length

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_Header = Mapping[str, tuple[str, tuple[int, ...]]]
_Net = TypeVar("_Net", bound=nn.Module)


def load(
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    attention_dtype: torch.dtype | None = None,
    fp8: bool = False,
    config: SanaWMConfig = SANA_WM,
) -> SanaWM:
    """SANA-WM with the weights of a checkpoint, for inference, read onto the device one tensor at a time.

    Args:
        path: a safetensors file, or the `.safetensors.index.json` beside the parts of one, in either layout.
        dtype: what the weights become, and the network computes in; gates' decays stay float32.
        attention_dtype: see `SanaWM`.
        fp8: large linear layers in eight bits, made of those in `dtype` one after the other; see fp8.py.

    Raises:
        BadWeights: a file cannot be read, is damaged, or is not the checkpoint of such a network.
    """
    with torch.device("meta"):
        net = SanaWM(config, attention_dtype=attention_dtype)
    read_weights(net, path, device=device, dtype=dtype, float32=KEPT_FLOAT32, renamed=RENAMED, left_out=LEFT_OUT)
    return to_fp8(net) if fp8 else net


def read_weights(
    net: _Net,
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    float32: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
    left_out: tuple[str, ...] = (),
) -> _Net:
    """A network without memory of its own, with the weights of a checkpoint, for inference.

    Args:
        path: as in `load`.
        dtype: what the weights become, apart from those whose names end in one of `float32`.
        renamed: how names begin in the file, and in the network.
        left_out: names in the file that nothing uses.

    Raises:
        BadWeights: as `load`.
    """
    want, renamed = net.state_dict(), renamed or {}
    try:
        headers = {file: read_safetensors_header(file) for file in _files(path)}
        _check(path, type(net).__name__, headers, want, renamed, left_out)
        weights = {
            name: tensor.to(device).to(torch.float32 if name.endswith(float32) else dtype)
            for file, header in headers.items()
            for name, tensor in _tensors(file, header, renamed, left_out)
        }
    except OSError as error:
        raise BadWeights(f"{path} cannot be read ({error}); fetch it again with longtake weights fetch") from error
    net.load_state_dict(weights, assign=True)
    return net.eval().requires_grad_(False)


def _files(path: Path) -> list[Path]:
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadWeights(f"{path}: no index of safetensors files: {error!r}") from error
    if wrong := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise BadWeights(f"{path}: {wrong[0]!r} is no file beside it")
    return [path.parent / name for name in sorted(names)]


def _check(
    path: Path,
    net: str,
    headers: Mapping[Path, _Header],
    want: Mapping[str, Tensor],
    renamed: Mapping[str, str],
    left_out: tuple[str, ...],
) -> None:
    """Raises BadWeights unless the files have exactly the tensors that are wanted, and at most `left_out` besides."""
    problems, seen = [], set[str]()
    for header in headers.values():
        for stored, (dtype, shape) in header.items():
            name = _renamed(stored, renamed)
            if name in seen:
                problems.append(f"{stored} is there twice")
            seen.add(name)
            if name not in want:
                if name not in left_out:
                    problems.append(f"{stored} is unknown")
                continue
            if shape != want[name].shape:
                problems.append(f"{stored} has shape {list(shape)}, not {list(want[name].shape)}")
            if dtype not in _DTYPES:
                problems.append(f"{stored} has type {dtype}, not {', '.join(_DTYPES)}")
    problems += [f"{name} is missing" for name in want if name not in seen]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BadWeights(
            f"{path} does not hold the weights of this {net}: {'; '.join(problems[:5])}{more}. "
            "Use the checkpoint that belongs to this configuration."
        )


def _renamed(stored: str, renamed: Mapping[str, str] = RENAMED) -> str:
    for original, ours in renamed.items():
        if stored.startswith(original):
            return ours + stored.removeprefix(original)
    return stored


def _tensors(
    file: Path, header: _Header, renamed: Mapping[str, str], left_out: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file whose header is sound, by our names, each read when it is asked for.

    Reading, where mapping would keep the pages of what is converted or on another device in memory as well.
    """
    sizes = {name: torch.Size(shape).numel() * DTYPE_BYTES[dtype] for name, (dtype, shape) in header.items()}
    with open(file, "rb") as stream:
        stream.seek(file.stat().st_size - sum(sizes.values()))  # the tensors are the end of it, in the header's order
        for name, (dtype, shape) in header.items():
            if name in left_out:
                stream.seek(sizes[name], 1)
                continue
            raw = torch.empty(sizes[name], dtype=torch.uint8)
            if stream.readinto(raw.numpy().data) != sizes[name]:
                raise BadWeights(f"{file}: ends within {name}; it changed while it was read")
            yield _renamed(name, renamed), raw.view(_DTYPES[dtype]).reshape(shape)
