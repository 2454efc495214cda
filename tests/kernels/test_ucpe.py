"""Channels turned and moved: against their plain reference, values and gradients, and laws. See conftest.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.kernels import ucpe, ucpe_reference

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [
    (1, 1, 1, 1, 8),
    (2, 3, 5, 3, 24),
    (1, 2, 7, 1, 112),
]  # heads of 3 points and 6 pairs: odd sizes reach the masks


def sample(B: int, T: int, S: int, H: int, D: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, matrices that lengthen some tokens, and unit complex numbers for whole and for half heads."""
    g = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cpu").to(torch.get_default_device())

    motion = draw(B, T, S, 4, 4) * draw(B, T, S, 1, 1).exp() / 2
    whole, half = (torch.polar(torch.ones(T, S, 1, n), draw(T, S, 1, n)) for n in (D // 2, D // 4))
    return draw(B, T, S, H, D), motion, whole, half


def assert_near(got: Tensor, want: Tensor, tolerance: float = 2e-6) -> None:
    """Relative to the largest value: other orders of sums of four to 112 float32 numbers."""
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def gradient(op, x: Tensor, *rest, **options) -> Tensor:
    x = x.detach().requires_grad_()
    out = op(x, *rest, **options)
    weight = torch.randn(out.shape, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    return torch.autograd.grad(out, x, weight.to(out))[0]


class TestAgainstTheReference:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_turn(self, shape):
        x, _, by, _ = sample(*shape)
        assert_near(ucpe.turn(x, by), ucpe_reference.turn(x, by))
        assert_near(gradient(ucpe.turn, x, by), gradient(ucpe_reference.turn, x, by))

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("shorten", [False, True])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_move(self, shape, shorten, transposed):
        x, motion, _, by = sample(*shape)
        motion, by = (motion.mT, by.conj()) if transposed else (motion, by)
        want = ucpe_reference.move(x, motion, by, shorten=shorten)
        assert_near(ucpe.move(x, motion, by, shorten=shorten), want)
        if min(shape[:3]) > 1 and shorten:  # both sides of the clamp are there
            same = (want == ucpe_reference.move(x, motion, by)).all(-1)
            assert same.any() and not same.all()
        want = gradient(ucpe_reference.move, x, motion, by, shorten=shorten)
        assert_near(gradient(ucpe.move, x, motion, by, shorten=shorten), want, tolerance=1e-5)

    def test_half_precision_in_float32_out(self):
        x, motion, _, by = sample(1, 2, 3, 2, 24)
        x = x.bfloat16()
        assert_near(ucpe.move(x, motion, by, shorten=True), ucpe.move(x.float(), motion, by, shorten=True))
        got = gradient(ucpe.move, x, motion, by, shorten=True)
        want = gradient(ucpe.move, x.float(), motion, by, shorten=True)
        assert got.dtype == torch.bfloat16
        assert_near(got.float(), want, tolerance=2**-8)

    def test_views_are_taken_as_they_are_seen(self):
        x, motion, by, half = sample(1, 2, 3, 2, 24)
        views = x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([x, x], -1)[..., 24:]
        for view in (*views, torch.cat([x[..., :1], x], -1)[..., 1:]):
            assert not view.is_contiguous()
            assert_near(ucpe.turn(view, by), ucpe.turn(x, by))
            assert_near(ucpe.move(view, motion, half), ucpe.move(x, motion, half))


class TestLaws:
    def test_turning_back(self):
        x, _, by, _ = sample(2, 3, 5, 3, 24)
        assert_near(ucpe.turn(ucpe.turn(x, by), by.conj()), x)

    def test_moving_back(self):
        x, motion, _, by = sample(1, 2, 3, 2, 24)
        motion = motion + 4 * torch.eye(4)  # far from singular
        assert_near(ucpe.move(ucpe.move(x, motion, by), motion.inverse(), by.conj()), x, tolerance=1e-4)

    def test_scores_know_only_the_way_between_two_places(self):
        """Transposed for queries and inverted for keys: q^T A B^-1 k is the same after both cameras move as one."""
        x, motion, _, by = sample(1, 2, 3, 2, 24)
        motion, common = motion + 4 * torch.eye(4), torch.eye(4) + 0.3 * motion[:, :1, :1]
        q, k = x[:, :1], x[:, 1:]

        def scores(motion: Tensor) -> Tensor:
            seen = ucpe.move(q, motion[:, :1].mT, by[:1]), ucpe.move(k, motion[:, 1:].inverse(), by[1:])
            return torch.einsum("btshd,buzhd->bszh", *seen)

        assert_near(scores(motion @ common), scores(motion), tolerance=1e-4)

    def test_never_longer(self):
        x, motion, _, by = sample(2, 3, 5, 3, 24)
        got = ucpe.move(x, motion, by, shorten=True).norm(dim=-1)
        assert bool((got <= x.norm(dim=-1) * (1 + 1e-5)).all())

    def test_nothing_stays_nothing(self):
        _, motion, _, by = sample(1, 2, 3, 2, 24)
        zero = torch.zeros(1, 2, 3, 2, 24)
        assert not ucpe.move(zero, motion, by, shorten=True).any()
        assert gradient(ucpe.move, zero, motion, by, shorten=True).isfinite().all()


@pytest.mark.parametrize("shorten", [False, True])
def test_gradients_are_differences(shorten):
    """In float64, which is always torch's."""
    x, motion, _, by = (y.to(torch.promote_types(y.dtype, torch.float64)) for y in sample(2, 2, 2, 2, 8))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: ucpe.move(y, motion, by, shorten=shorten), x)


class TestRefusals:
    @pytest.mark.parametrize(
        "index, shape, name",
        [(0, (2, 3, 4, 8), "x"), (0, (2, 3, 4, 2, 12), "x"), (1, (2, 3, 4, 4), "motion"), (2, (3, 4, 1, 4), "by")],
    )
    def test_shapes(self, index, shape, name):
        x, motion, _, by = sample(2, 3, 4, 2, 8)
        inputs = [x, motion, by]
        inputs[index] = torch.zeros(shape)
        with pytest.raises(ValueError, match=f"^{name} has shape "):
            ucpe.move(*inputs)

    def test_gradients_that_there_are_not(self):
        x, motion, _, by = sample(2, 3, 4, 2, 8)
        with pytest.raises(ValueError, match="motion requires a gradient"):
            ucpe.move(x, motion.requires_grad_(), by)
        with torch.no_grad():
            ucpe.move(x, motion, by)
