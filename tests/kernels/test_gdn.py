"""The frame-wise gated delta rule: against its formula, its plain reference and the published code's numbers, values
and gradients, and laws that any implementation keeps. See conftest.py for what runs where.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longtake.kernels import gdn, gdn_reference

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(1, 1, 1, 1, 1), (2, 2, 7, 2, 24), (1, 2, 65, 1, 17)]  # odd sizes reach the masks
Inputs = tuple[Tensor, ...]  # q, k, v, beta, decay


def sample(
    B: int, T: int, S: int, H: int, D: int, *, V: int | None = None, dtype: torch.dtype = torch.float32
) -> Inputs:
    """q, k, v, beta and decay, k scaled as the network scales it."""
    g = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu")

    q, k = draw(B, T, S, H, D), draw(B, T, S, H, D) * (D * S) ** -0.5
    v, beta = draw(B, T, S, H, D if V is None else V), draw(B, T, S, H).sigmoid()
    decay = (-draw(B, T, H).exp() / 4).exp()
    return tuple(x.to(torch.get_default_device(), dtype) for x in (q, k, v, beta, decay))


def frames(inputs: Inputs, index) -> Inputs:
    return tuple(x[:, index] for x in inputs)


def assert_near(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value: two orders of the same float32 sums over some hundred terms."""
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def by_transitions(inputs: Inputs, *, backward: bool) -> Tensor:
    """The recurrence in its other form, M_t = M_{t-1} W_t + U_t, in float64, term by term."""
    q, k, v, beta, decay = (x.double() for x in inputs)
    batch, count, _, heads, dim = q.shape
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            m = torch.zeros(v.shape[-1], dim, dtype=torch.float64)
            for t in reversed(range(count)) if backward else range(count):
                if backward:
                    out[b, t, :, h] = torch.einsum("vd,sd->sv", m, q[b, t, :, h])
                w = decay[b, t, h] * (
                    torch.eye(dim, dtype=torch.float64)
                    - torch.einsum("s,sd,se->de", beta[b, t, :, h], k[b, t, :, h], k[b, t, :, h])
                )
                m = m @ w + torch.einsum("s,sv,sd->vd", beta[b, t, :, h], v[b, t, :, h], k[b, t, :, h])
                if not backward:
                    out[b, t, :, h] = torch.einsum("vd,sd->sv", m, q[b, t, :, h])
    return out


class TestAgainstTheFormula:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("V", [None, 1, 3])
    @pytest.mark.parametrize("backward", [False, True])
    def test_transition_form(self, shape, V, backward):
        inputs = sample(*shape, V=V)
        got, _ = gdn.scan(*inputs, backward=backward)
        want = by_transitions(inputs, backward=backward)
        assert got.dtype == torch.float32
        assert_near(got.double(), want) if want.any() else torch.testing.assert_close(got.double(), want)

    def test_one_token_is_the_gated_delta_rule(self):
        q, k, v, beta, decay = sample(1, 6, 1, 1, 8)
        m = torch.zeros(8, 8)
        for t in range(6):  # Yang et al., eq. 10
            k_t, v_t, b, g = k[0, t, 0, 0], v[0, t, 0, 0], beta[0, t, 0, 0], decay[0, t, 0]
            m = g * m @ (torch.eye(8) - b * torch.outer(k_t, k_t)) + b * torch.outer(v_t, k_t)
        _, state = gdn.scan(q, k, v, beta, decay)
        assert_near(state[0, 0], m)

    def test_published_numbers(self, shared_parity):
        t = load_file(shared_parity / "sana_wm" / "b_gdn_ops.safetensors", device=str(torch.get_default_device()))
        q, k, v = (t[f"in.{name}"].unflatten(1, (5, 6)) for name in "qkv")
        k = k * (24 * 6) ** -0.5
        beta, decay = t["in.beta"].permute(0, 2, 3, 1), t["in.decay"].transpose(1, 2)
        angle = torch.complex(t["in.rope_real"], t["in.rope_imag"]).reshape(5, 6, 1, 12)

        def turn(x: Tensor) -> Tensor:
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * angle).flatten(-2)

        above, below = (turn(q), turn(k), v, beta, decay), (q, k, torch.ones_like(v[..., :1]), beta, decay)
        for name, backward in (("fwd", False), ("bwd", True)):
            num, den = (gdn.scan(*inputs, backward=backward)[0] for inputs in (above, below))
            assert_near(num.permute(0, 3, 1, 2, 4), t[f"{name}.num"])
            assert_near(den.permute(0, 3, 1, 2, 4)[..., 0], t[f"{name}.den"])
        m = z = None
        for i in range(5):
            _, m = gdn.scan(*frames(above, slice(i, i + 1)), state=m)
            _, z = gdn.scan(*frames(below, slice(i, i + 1)), state=z)
            assert_near(m, t["fwd.state_kv_per_frame"][:, :, i])
            assert_near(z[:, :, 0], t["fwd.state_z_per_frame"][:, :, i])
        out = gdn.both_ways(*above) / (gdn.both_ways(*below) + 1e-8)
        assert_near(out.flatten(1, 2).flatten(2), t["out.main"])
        plain = gdn.both_ways(q, k, v, beta, decay) / (gdn.both_ways(*below) + 1e-8)
        assert_near(plain.flatten(1, 2).flatten(2), t["out.main_no_rope"])


class TestLaws:
    @pytest.mark.parametrize("cut", [1, 4])
    @pytest.mark.parametrize("backward", [False, True])
    def test_carried_state_equals_one_pass(self, cut, backward):
        inputs = sample(1, 6, 5, 1, 8)
        whole, last = gdn.scan(*inputs, backward=backward)
        first, second = slice(0, cut), slice(cut, None)
        if backward:
            first, second = second, first
        a, carried = gdn.scan(*frames(inputs, first), backward=backward)
        b, end = gdn.scan(*frames(inputs, second), state=carried, backward=backward)
        assert_near(torch.cat([b, a] if backward else [a, b], dim=1), whole)
        assert_near(end, last)

    def test_time_reversal(self):
        """Backward, frame t reads what forward over the reversed clip holds one frame before it."""
        q, k, v, beta, decay = sample(1, 6, 5, 1, 8)
        want, state = gdn.scan(q, k, v, beta, decay, backward=True)
        shifted = torch.cat([q[:, :-1].flip(1), q[:, :1]], dim=1)  # frame i of the reversed clip asks for frame i + 1
        got, end = gdn.scan(shifted, k.flip(1), v.flip(1), beta.flip(1), decay.flip(1))
        assert_near(got[:, :-1].flip(1), want[:, :-1])
        assert not want[:, -1].any()
        assert_near(end, state)

    def test_one_frame_has_no_past_and_no_future(self):
        q, k, v, beta, decay = sample(2, 1, 9, 2, 8)
        want = torch.einsum("btshd,btuhd,btuh,btuhv->btshv", q, k, beta, v)
        assert_near(gdn.both_ways(q, k, v, beta, decay), want)
        assert_near(gdn.both_ways(q, k, v, beta, torch.zeros_like(decay)), want)

    @pytest.mark.parametrize("padding", [[2, 3], [0, 5]])
    def test_a_masked_frame_is_no_frame(self, padding):
        """beta 0 and decay 1 leave the memory alone, whatever the frame's keys and values are."""
        q, k, v, beta, decay = sample(1, 6, 5, 1, 8)
        beta[:, padding], decay[:, padding] = 0, 1
        valid = [t for t in range(6) if t not in padding]
        whole = gdn.both_ways(q, k, v, beta, decay)
        assert_near(whole[:, valid], gdn.both_ways(*frames((q, k, v, beta, decay), valid)))
        _, state = gdn.scan(q, k, v, beta, decay)
        assert_near(state, gdn.scan(*frames((q, k, v, beta, decay), valid))[1])

    def test_the_order_of_a_frames_tokens_does_not_matter(self):
        inputs = sample(1, 4, 6, 2, 8)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        q, k, v, beta, decay = inputs
        got = gdn.both_ways(q[:, :, order], k[:, :, order], v[:, :, order], beta[:, :, order], decay)
        assert_near(got, gdn.both_ways(*inputs)[:, :, order])

    def test_linear_in_values_and_in_queries(self):
        q, k, v, beta, decay = sample(1, 4, 6, 2, 8)
        assert_near(gdn.both_ways(q, k, 3 * v, beta, decay), 3 * gdn.both_ways(q, k, v, beta, decay))
        assert_near(gdn.both_ways(-2 * q, k, v, beta, decay), -2 * gdn.both_ways(q, k, v, beta, decay))

    def test_a_key_with_beta_1_is_replaced(self):
        """The delta rule: a unit key told twice answers with what it was told last."""
        k = torch.nn.functional.normalize(torch.ones(1, 2, 1, 1, 4), dim=-1)
        v = torch.tensor([[1.0, 2.0], [5.0, -7.0]]).reshape(1, 2, 1, 1, 2)
        out, _ = gdn.scan(k, k, v, torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1))
        torch.testing.assert_close(out, v)

    def test_the_inputs_stay_as_they_are(self):
        inputs = sample(1, 3, 4, 2, 8)
        before = [x.clone() for x in inputs]
        state = torch.ones(1, 2, 8, 8)
        gdn.scan(*inputs, state=state)
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True)) and bool((state == 1).all())

    def test_half_precision_in_float32_out(self):
        inputs = sample(1, 3, 40, 2, 16, dtype=torch.bfloat16)
        assert_near(gdn.both_ways(*inputs), gdn.both_ways(*(x.float() for x in inputs)))


def gradients(outputs: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor, ...]:
    g = torch.Generator("cpu").manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, device="cpu").to(x) for x in outputs]
    return torch.autograd.grad(outputs, inputs, weights)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(gdn, "CHUNK", 2)


@pytest.mark.usefixtures("short_chunks")
class TestChunks:
    """Clips of several chunks, the last of them shorter; gradients against those of the reference in float64."""

    @pytest.mark.parametrize("shape, V", [((2, 5, 3, 1, 24), None), ((1, 3, 33, 1, 17), 1)])
    def test_both_ways(self, shape, V):
        inputs = tuple(x.requires_grad_() for x in sample(*shape, V=V))
        exact = tuple(x.detach().double().requires_grad_() for x in inputs)
        got, want = gdn.both_ways(*inputs), gdn_reference.both_ways(*exact)
        assert_near(got.double(), want)
        for a, b in zip(gradients((got,), inputs), gradients((want,), exact), strict=True):
            assert_near(a.double(), b)

    @pytest.mark.parametrize("backward", [False, True])
    def test_scan_with_a_state(self, backward):
        state = torch.randn(1, 2, 8, 24, generator=torch.Generator("cpu").manual_seed(2), device="cpu")
        inputs = (*sample(1, 5, 7, 2, 24, V=8), state.to(torch.get_default_device()))
        inputs = tuple(x.requires_grad_() for x in inputs)
        exact = tuple(x.detach().double().requires_grad_() for x in inputs)
        got, want = (op.scan(*x, backward=backward) for op, x in ((gdn, inputs), (gdn_reference, exact)))
        for a, b in zip(got, want, strict=True):
            assert_near(a.double(), b)
        for a, b in zip(gradients(got, inputs), gradients(want, exact), strict=True):
            assert_near(a.double(), b)

    def test_gradients_of_half_precision(self):
        """They are those of the rounded numbers, rounded: 2^-8 of each."""
        inputs = tuple(x.requires_grad_() for x in sample(1, 3, 5, 1, 16, dtype=torch.bfloat16))
        exact = tuple(x.detach().double().requires_grad_() for x in inputs)
        got = gradients((gdn.both_ways(*inputs),), inputs)
        for a, b in zip(got, gradients((gdn_reference.both_ways(*exact),), exact), strict=True):
            assert a.dtype == torch.bfloat16
            assert_near(a.double(), b, tolerance=2**-8)

    def test_a_forgotten_past_has_no_gradient(self):
        """decay 0: not even one of the state; and a masked frame's keys and values have none."""
        q, k, v, beta, decay = sample(1, 5, 5, 1, 16)
        decay[:, 2] = 0
        beta[:, 3], decay[:, 3] = 0, 1
        state = torch.ones(1, 1, 16, 16)
        inputs = tuple(x.requires_grad_() for x in (q, k, v, beta, decay, state))
        d_k, d_v, d_state = torch.autograd.grad(gdn.scan(*inputs)[0][:, 2:].sum(), (k, v, state))
        assert not d_state.any() and not d_k[:, :2].any() and not d_k[:, 3].any() and not d_v[:, 3].any()
        assert d_k[:, 2].any() and d_v[:, 4].any()


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("ways", ["both", "forward", "backward"])
def test_gradients_are_differences(ways):
    """In float64, which is always torch's."""
    inputs = [x.requires_grad_() for x in sample(2, 3, 2, 2, 3, V=2, dtype=torch.float64)]
    state = torch.ones(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    if ways == "both":
        assert torch.autograd.gradcheck(gdn.both_ways, inputs)
    else:
        assert torch.autograd.gradcheck(lambda *x: gdn.scan(*x, backward=ways == "backward"), [*inputs, state])


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that are still there: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.users: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor)):
            storage = tensor.untyped_storage()
            self.now += storage.nbytes() if not self.users[storage.data_ptr()] else 0
            self.users[storage.data_ptr()] += 1
            weakref.finalize(tensor, self.free, storage.data_ptr(), storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def free(self, pointer: int, nbytes: int) -> None:
        self.users[pointer] -= 1
        self.now -= nbytes if not self.users[pointer] else 0


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="what is kept is the same, and counted in torch")
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("ways, borders", [("forward", 8), ("backward", 8), ("both, with gradients", 24)])
def test_no_history_of_states_is_kept(ways, borders):
    """What lives at once hardly grows with the number of frames: by answers, and a state for each chunk of two."""

    def peak(frames: int) -> int:
        inputs = sample(1, frames, 1, 1, 64)
        with Live() as live:
            if ways == "both, with gradients":
                gradients((gdn.both_ways(*(x.requires_grad_() for x in inputs)),), inputs)
            else:
                gdn.scan(*inputs, backward=ways == "backward")
        return live.most

    state = 64 * 64 * 4  # bytes
    assert peak(4) > state  # the count counts
    assert peak(20) - peak(4) < (borders + 6) * state  # histories of P, U and M alone would add 48


class TestRefusals:
    @pytest.mark.parametrize(
        "index, shape, name",
        [
            (1, (2, 3, 4, 2, 7), "k"),
            (2, (2, 3, 5, 2, 8), "v"),
            (3, (2, 3, 4), "beta"),
            (4, (2, 3), "decay"),
            (5, (2, 2, 8, 7), "state"),
        ],
    )
    def test_shapes(self, index, shape, name):
        inputs = [*sample(2, 3, 4, 2, 8), torch.zeros(2, 2, 8, 8)]
        inputs[index] = torch.zeros(shape)
        with pytest.raises(ValueError, match=f"^{name} has shape "):
            gdn.scan(*inputs)

    def test_nothing(self):
        with pytest.raises(ValueError, match="at least one of each"):
            gdn.scan(*(x[:, :0] for x in sample(1, 1, 1, 1, 1)))
