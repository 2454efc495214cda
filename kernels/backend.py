"""Which of an operator's two implementations runs."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor


def runs_triton(x: Tensor) -> bool:
    """True for tensors on a GPU where Triton is installed, and for any with TRITON_INTERPRET=1, which tests set.

    float64 is for torch: the kernels compute in float32. A kernel that fails raises; nothing falls back.
    """
    if x.dtype == torch.float64:
        return False
    return os.environ.get("TRITON_INTERPRET") == "1" or (x.is_cuda and find_spec("triton") is not None)
