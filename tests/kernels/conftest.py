"""Kernel tests run on the CPU in torch, in Triton's interpreter (test_interpreter.py), and on a GPU where there is one.

`TRITON_INTERPRET=1 pytest tests/kernels` runs them all through Triton's interpreter directly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> Iterator[str]:
    """The default device of a test's tensors."""
    if request.param == "cuda":
        if os.environ.get("TRITON_INTERPRET") == "1":
            pytest.skip("the interpreter runs on the CPU")
        if not torch.cuda.is_available():
            pytest.skip("no GPU: here the kernels are tested in Triton's interpreter only, by test_interpreter.py")
        pytest.importorskip("triton", reason="triton is not installed, so that nothing would be tested")
    with torch.device(request.param):
        yield request.param
