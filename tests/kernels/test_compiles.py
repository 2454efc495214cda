"""Triton compiles every kernel for GPUs at the network's sizes, and they fit. No GPU is needed, and nothing is run."""

from __future__ import annotations

import os

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed; the extra `test` brings it")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("what is interpreted cannot be compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from longtake.kernels import features_triton, gdn_triton, ucpe_triton  # noqa: E402

SHARED_MEMORY = (
    99 * 1024
)  # bytes that a program may take on the smallest of them, of compute capability 8.6, 8.9 and 12.0

KERNELS = [  # kernel, its tensors, its compile-time arguments
    (gdn_triton._products_kernel, "x y beta out", {"WEIGHTED": True, "BS": 32, "BX": 128, "BY": 128}),
    (gdn_triton._products_kernel, "x y beta out", {"WEIGHTED": False, "BS": 32, "BX": 128, "BY": 16}),
    (gdn_triton._read_kernel, "x states out", {"BS": 64, "BX": 32, "BY": 128}),
    (gdn_triton._walk_kernel, "p u decay history", {"BACKWARD": True, "BD": 128, "BK": 32, "BV": 16}),
    (features_triton._features_kernel, "x weight taps out", {"C": 2240, "TAPS": 4, "BC": 4096}),
    (
        ucpe_triton._move_kernel,
        "x motion by out",
        {"D": 112, "POINTS": 14, "CONJUGATE": False, "SHORTEN": True, "BR": 16, "BG": 16, "BP": 32},
    ),
]


@pytest.mark.parametrize("kernel, tensors, constants", KERNELS)
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_compiles(kernel, tensors, constants, capability):
    types = {name: "fp32" if name in ("eps", "scale") else "i32" for name in kernel.arg_names}
    types |= {name: "*fp32" for name in tensors.split()} | {name: "constexpr" for name in constants}
    source = ASTSource(kernel, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=gdn_triton.LAUNCH)
    assert compiled.asm["cubin"]
    assert 0 <= compiled.metadata.shared <= SHARED_MEMORY
