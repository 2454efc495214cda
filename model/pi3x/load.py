"""Published weights into a network, with nothing missing, left over or half read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...errors import LongtakeError
from .config import PI3X, Pi3XConfig
from .network import Pi3X

MULTIMODAL = ("depth_encoder.", "depth_emb", "ray_embed.", "pose_inject_blk.")  # prefixes of the names in that part


def load(path: Path, *, multimodal: bool, device: torch.device | str, config: Pi3XConfig = PI3X) -> Pi3X:
    """Pi3X with the weights of a safetensors file, for inference, in float32 on the device.

    Args:
        path: the file, such as `model.safetensors` of the hub repository yyfz233/Pi3X.
        multimodal: False leaves the part that reads conditions in the file: a quarter less memory.

    Raises:
        LongtakeError: the file is damaged, or is not the checkpoint of such a network.
    """
    with torch.device("meta"):
        net = Pi3X(config, multimodal=multimodal)
    load_weights(net, path, device=device, ignore=() if multimodal else MULTIMODAL)
    return net.eval().requires_grad_(False)


def load_weights(net: nn.Module, path: Path, *, device: torch.device | str, ignore: tuple[str, ...]) -> None:
    """Give a network made on the meta device the tensors of a safetensors file, one by one, straight on the device.

    Names and shapes are compared before anything is read. Halves become the network's own type; on a CPU, tensors that
    need no change stay mapped to the file.

    Args:
        ignore: prefixes of names that the file may have and the network has not.

    Raises:
        LongtakeError: the file cannot be read, or lacks a tensor, has one too many, of another shape, or not of floats.
    """
    from safetensors import SafetensorError, safe_open

    want = net.state_dict()
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = [name for name in file.keys() if not name.startswith(ignore) or name in want]
            problems = [f"{name} is missing" for name in want if name not in names]
            problems += [f"{name} is unknown" for name in names if name not in want]
            for name in names:
                stored = file.get_slice(name)
                if name in want and (shape := tuple(stored.get_shape())) != want[name].shape:
                    problems.append(f"{name} has shape {list(shape)}, not {list(want[name].shape)}")
                if stored.get_dtype() not in ("F32", "F16", "BF16"):
                    problems.append(f"{name} has type {stored.get_dtype()}, not F32, F16 or BF16")
            if problems:
                more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
                raise LongtakeError(
                    f"{path} does not hold the weights of this {type(net).__name__}: {'; '.join(problems[:5])}{more}. "
                    "Use the checkpoint that belongs to this configuration."
                )
            weights = {name: file.get_tensor(name).to(want[name].dtype) for name in names}
    except (SafetensorError, OSError) as error:
        raise LongtakeError(f"{path} cannot be read as safetensors ({error}); fetch it again") from error
    net.load_state_dict(weights, assign=True)
