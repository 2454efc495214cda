"""Queries and keys of linear attention: against the filter and the norm written out, and laws. See conftest.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.kernels.features import features, short_conv

pytestmark = pytest.mark.usefixtures("device")

EPS = 1e-5


def sample(B: int, T: int, S: int, C: int, K: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator("cpu").manual_seed(0)
    drawn = (torch.randn(*shape, generator=g, device="cpu") for shape in ((B, T, S, C), (C,), (C, K)))
    x, weight, taps = (x.to(torch.get_default_device()) for x in drawn)
    return x, weight, taps


def written_out(x: Tensor, weight: Tensor, taps: Tensor | None, scale: float) -> Tensor:
    """Backward taps, the same on reversed time, less what both count, as the published code has it."""

    def causal(x: Tensor, taps: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for j in range(taps.shape[-1]):
            late = taps.shape[-1] - 1 - j
            y[:, late:] += taps[:, j] * x[:, : x.shape[1] - late]
        return y

    if taps is not None:
        x = causal(x, taps) + causal(x.flip(1), taps).flip(1) - taps[:, -1] * x
    return (x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight).relu() * scale


def assert_near(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value: other orders of float32 sums over the channels."""
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 5, 3, 17), (1, 9, 2, 40)])
@pytest.mark.parametrize("filtered", [False, True])
def test_values_and_gradients(shape, filtered):
    x, weight, taps = sample(*shape)
    inputs = [y.requires_grad_() for y in ((x, weight, taps) if filtered else (x, weight))]
    exact = [y.detach().double().requires_grad_() for y in inputs]
    got = features(x, weight, eps=EPS, scale=0.3, taps=taps if filtered else None)
    want = written_out(exact[0], exact[1], exact[2] if filtered else None, 0.3)
    assert got.dtype == torch.float32
    assert_near(got.double(), want)
    push = torch.randn(got.shape, generator=torch.Generator("cpu").manual_seed(1), device="cpu").to(got)
    for a, b in zip(
        torch.autograd.grad(got, inputs, push), torch.autograd.grad(want, exact, push.double()), strict=True
    ):
        assert_near(a.double(), b)


def test_half_precision_in_float32_out():
    """What is between may be rounded to the inputs' type three times, 2^-9 each."""
    x, weight, taps = (y.bfloat16() for y in sample(1, 5, 3, 16))
    got = features(x, weight, eps=EPS, taps=taps)
    assert got.dtype == torch.float32
    assert_near(got, written_out(x.float(), weight.float(), taps.float(), 1.0), tolerance=2**-7)


def test_a_view_of_channels_is_taken_as_it_is_seen():
    x, weight, taps = sample(1, 5, 3, 16)
    wide = torch.cat([x, -x], -1)
    assert_near(features(wide[..., :16], weight, eps=EPS, taps=taps), features(x, weight, eps=EPS, taps=taps))


class TestLaws:
    def test_the_filter_is_the_same_in_reversed_time(self):
        x, weight, taps = sample(1, 6, 2, 8)
        assert_near(features(x.flip(1), weight, eps=EPS, taps=taps).flip(1), features(x, weight, eps=EPS, taps=taps))

    def test_one_frame_meets_the_last_tap_alone(self):
        x, weight, taps = sample(2, 1, 3, 8)
        assert_near(features(x, weight, eps=EPS, taps=taps), features(x * taps[:, -1], weight, eps=EPS))
        assert_near(short_conv(x, taps), x * taps[:, -1])

    def test_frames_of_zeros_are_no_frames(self):
        x, _, taps = sample(1, 5, 2, 8)
        x[:, 3:] = 0
        assert_near(short_conv(x, taps)[:, :3], short_conv(x[:, :3], taps))

    def test_length_does_not_matter(self):
        x, weight, taps = sample(1, 5, 2, 8)
        assert_near(features(7 * x, weight, eps=0, taps=taps), features(x, weight, eps=0, taps=taps))


@pytest.mark.parametrize(
    "shapes", [((2, 3, 8), (8,), (8, 4)), ((1, 2, 3, 8), (7,), (7, 4)), ((1, 2, 3, 8), (8,), (7, 4))]
)
def test_shapes_are_checked(shapes):
    x, weight, taps = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="x, weight and taps have shapes"):
        features(x, weight, eps=EPS, taps=taps)
