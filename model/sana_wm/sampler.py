"""From noise to latent frames: SANA-WM's flow followed from sigma 1 to 0, the first frame given.

A sample at sigma is (1 - sigma) data + sigma noise, and the network tells its velocity, noise minus data. Samplers
yield the latents after every step: the last are the result. Between steps they are float32, whatever the network is.

Sources: Lipman et al., Flow Matching, arXiv 2210.02747; Ho and Salimans, Classifier-Free Guidance, arXiv 2207.12598; Lu
et al., DPM-Solver++, arXiv 2211.01095.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from .network import Conditions, Prepared, SanaWM

Velocity = Callable[[Tensor, Tensor], Tensor]  # of latents [B, C, T, rows, cols], at timesteps [B, T]


def euler_sigmas(steps: int, shift: float) -> Tensor:
    """[steps + 1] sigmas from 1 to 0, float32: the published schedule, whose lower end is shifted twice."""
    last = _shifted(torch.tensor(1e-3), shift)
    nodes = torch.linspace(1.0, float(last), steps, dtype=torch.float64)
    return torch.cat([_shifted(nodes, shift), torch.zeros(1)]).float()


def dpm_sigmas(steps: int, shift: float) -> Tensor:
    """[steps + 1] sigmas from 1 to 0, float32: uniform in time, shifted once."""
    return _shifted(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift).float()


def _shifted(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)


def guided(net: SanaWM, conditions: Conditions, negative: Conditions | None, guidance: float) -> Velocity:
    """The network's velocity, away from what `negative` leads to: v_neg + guidance (v - v_neg); alone where it is None.

    The two are computed one after the other, which takes half the memory of a doubled batch. Conditions are prepared
    once, so all latents must have the shape of the first.
    """
    if negative is None and guidance != 1:
        raise ValueError(
            f"guidance is {guidance}, but there is nothing to lead away from: give negative, or guidance 1"
        )

    both = [c.trimmed() for c in (conditions, negative) if c is not None]
    prepared: list[Prepared] = []  # when the latents' shape is known

    def velocity(latents: Tensor, timesteps: Tensor) -> Tensor:
        if not prepared:
            prepared.extend(net.prepare(c, latents) for c in both)
        v = net(latents, timesteps, prepared[0])
        if len(prepared) == 1:
            return v
        away = net(latents, timesteps, prepared[1])
        return away + guidance * (v - away)

    return velocity


def negative_of(conditions: Conditions, text: Tensor, text_mask: Tensor) -> Conditions:
    """The same camera under another text."""
    return replace(conditions, text=text, text_mask=text_mask)


def start(noise: Tensor, first_frame: Tensor) -> Tensor:
    """Noise [B, C, T, rows, cols] after a clean first latent frame [B, C, 1, rows, cols]."""
    return torch.cat([first_frame.float(), noise[:, :, 1:].float()], dim=2)


def euler(velocity: Velocity, latents: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Euler's steps along `sigmas`; the first latent frame is clean and stays as it is."""
    for now, after in pairwise(sigmas.tolist()):
        v = velocity(latents, _timesteps(latents, now))
        latents = _keep_first(latents - (now - after) * v, latents)
        yield latents


def dpm_solver(velocity: Velocity, latents: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Second-order multistep DPM-Solver++ along `sigmas`; the first latent frame is clean and stays as it is.

    The step onto sigma 0 and those that have no second estimate of the data beside them are of first order.
    """
    before: tuple[float, Tensor] | None = None  # log signal-to-noise and estimate of the data of the step before
    for now, after in pairwise(sigmas.tolist()):
        data = latents - now * velocity(latents, _timesteps(latents, now))
        estimate = data
        snr = _log_snr(now)
        if before is not None and before[0] > -torch.inf and after > 0:
            ratio = (snr - before[0]) / (_log_snr(after) - snr)
            estimate = data + (data - before[1]) / (2 * ratio)
        # with h the step in log signal-to-noise, exp(-h) = after (1 - now) / (now (1 - after))
        moved = (after / now) * latents + ((1 - after) - after * (1 - now) / now) * estimate
        before = (snr, data)
        latents = _keep_first(moved, latents)
        yield latents


def _log_snr(sigma: float) -> float:
    """log((1 - sigma) / sigma), -inf at 1."""
    return float(torch.logit(torch.tensor(1 - sigma, dtype=torch.float64)))


def _timesteps(latents: Tensor, sigma: float) -> Tensor:
    timesteps = torch.full((latents.shape[0], latents.shape[2]), 1000 * sigma, device=latents.device)
    timesteps[:, 0] = 0
    return timesteps


def _keep_first(moved: Tensor, latents: Tensor) -> Tensor:
    return torch.cat([latents[:, :, :1], moved[:, :, 1:]], dim=2)
