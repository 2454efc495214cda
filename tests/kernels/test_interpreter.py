"""The other modules of this folder once more, with Triton's interpreter in place of torch.

In a process of its own: whether a kernel is interpreted is settled when Triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_in_the_interpreter():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the interpreter")
    pytest.importorskip("triton", reason="triton is not installed; the extra `test` brings it")
    modules = [str(path) for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *modules],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-10000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
