"""`kernels.linear` beside torch's own linear map."""

import pytest
import torch
from torch.nn import functional as F

from longtake.kernels.linear import linear


def sample(shape, out, *, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(out, shape[-1], generator=generator) / shape[-1] ** 0.5
    return x.to(dtype), weight.to(dtype), torch.randn(out, generator=generator).to(dtype) if bias else None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "out"), [((7,), 5), ((1, 8), 1), ((2, 3, 45), 33), ((0, 8), 5), ((2, 65, 3, 112), 448)]
)
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float64, 0.0)])
def test_is_torchs_linear_map(shape, out, bias, dtype, off):  # sums in another order; in bfloat16 rounded at the end
    x, weight, bias = sample(shape, out, bias=bias, dtype=dtype)
    with torch.inference_mode():
        got = linear(x, weight, bias)
        torch.testing.assert_close(got, F.linear(x, weight, bias), rtol=off, atol=off)


def test_takes_views():
    x, weight, bias = sample((4, 6, 32), 10)
    with torch.inference_mode():
        for view in (x[:, ::2], x.transpose(0, 1), x[..., 16:], x.expand(2, 4, 6, 32)):
            w = weight[:, : view.shape[-1]]
            torch.testing.assert_close(linear(view, w, bias), F.linear(view, w, bias), rtol=2e-6, atol=2e-6)


def test_has_gradients():
    given = [y.requires_grad_() for y in sample((3, 5), 4) if y is not None]
    of_ours, of_torch = (torch.autograd.grad(f(*given).square().sum(), given) for f in (linear, F.linear))
    for ours, theirs in zip(of_ours, of_torch, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_refuses_what_does_not_belong_together():
    with pytest.raises(RuntimeError), torch.inference_mode():
        linear(torch.randn(2, 8), torch.randn(5, 7))
