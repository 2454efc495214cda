"""How much memory a network's tensors take, counted without the memory, the GPU or the arithmetic.

The network runs on tensors that have a shape and a type but no numbers; every storage counts from when it is made until
it is let go. Left out is what no tensor holds: a GPU's context, workspaces of its libraries, gaps that the allocator
leaves. Tests and benchmarks compare predictions with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(build: Callable[[], nn.Module], run: Callable[[Any], object], *, precision: torch.dtype) -> int:
    """The most bytes that tensors take at once while `run` runs the network that `build` makes, its weights included.

    Args:
        build: of any size; no memory is taken.
        run: makes its inputs itself. Autocast to `precision` is on around it, unless that is float32, with CUDA's
            rules; attention is taken to be fused, so its scores are never in memory.
    """
    with FakeTensorMode(), torch.no_grad():
        network = build().eval().requires_grad_(False)
        memory = TensorMemory()
        for held in (*network.parameters(), *network.buffers()):
            memory.add(held)
        with memory, _OnGpu(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            run(network)
    return memory.peak


class TensorMemory(TorchDispatchMode):
    """Counts the tensors that are made within it: `with TensorMemory() as memory: ...`, then `memory.peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0  # bytes
        self._storages = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that was made before, until it is let go."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._storages:  # a view, or made in place
            return
        self._storages.add(storage._cdata)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())

    def _let_go(self, key: int, size: int) -> None:
        self._storages.remove(key)
        self.held -= size


class _OnGpu(TorchFunctionMode):
    """What a CPU does in another way than a GPU, told in tensors as a GPU does it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if func is F.layer_norm:  # autocast takes it to float32 on CUDA, leaves it alone on a CPU
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))
