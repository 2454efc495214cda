"""Focal length and depth shift of a point map that is known up to a shift in depth.

A monocular network gives points (x, y, z) whose depth is z + s for an unknown s. Under a centred pinhole with square
pixels the true points project onto their own pixels, f (x, y) / (z + s) = (u, v): every sample constrains f and s. For
one s, with q = (x, y) / (z + s), the best f is sum(q . uv) / sum(q . q), which leaves one unknown. The residual has a
pole at s = -min z, and descent that starts on its wrong side ends at a field of view near 180 degrees; here all of
s > -min z is searched instead. Where the depths hardly differ, f and s explain each other away: then the focal length
is said to be undetermined.

Lengths on the picture are in half diagonals: (u, v) runs over the view plane, (0, 0) its centre, corners at distance 1.

Source: the problem as in MoGe, arXiv 2410.19115, sec. 3.1; search and uncertainty are our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_SIGMA = 0.2  # a focal length less certain than this (relative) is undetermined
PRIOR_FOCAL = 1.0  # what stands in for it: 90 degrees along the diagonal

_SIDE = 64  # samples along each side of the picture
_ALIKE = 16  # errors of neighbouring samples are alike over about so many of them along each side
_MIN_ERROR = 1e-3  # half diagonals: no network places points better, however well they fit
_NEAREST = (1e-6, 1e4)  # the search's ends for the nearest depth; 1: where typical points project right with focal 1


@dataclass(frozen=True, kw_only=True, eq=False)
class FocalShift:
    """What makes a point map metric up to scale, an image a row."""

    focal: Tensor  # [B] half diagonals; PRIOR_FOCAL where undetermined
    shift: Tensor  # [B] to be added to z
    focal_sigma: Tensor  # [B] relative standard deviation of the estimate; 0 where the focal length was given
    determined: Tensor  # [B] bool: given, or estimated with focal_sigma <= MAX_SIGMA


def view_plane(height: int, width: int, *, aspect: float | None = None) -> Tensor:
    """Pixel centres in half diagonals [height, width, 2], of a picture `aspect` (width / height) wide; float64, CPU."""
    aspect = width / height if aspect is None else aspect
    diagonal = math.hypot(aspect, 1)
    axes = [
        side / diagonal * (2 * torch.arange(n, dtype=torch.float64) + 1 - n) / n
        for side, n in ((aspect, width), (1, height))
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)


def recover_focal_shift(points: Tensor, mask: Tensor | None = None, focal: Tensor | None = None) -> FocalShift:
    """The focal length and depth shift under which points project closest to their own pixels, in least squares.

    Args:
        points: [B, H, W, 3] camera axes x right, y down, z forward, up to one scale and one z shift an image.
        mask: [B, H, W] bool, where points are valid; everywhere that they are finite if None.
        focal: [B] half diagonals, where the focal length is known: only the shift is solved for.

    Returns:
        float32 tensors on the device of `points`. Fewer than two samples give focal 1, undetermined, and shift 0.
    """
    height, width = points.shape[1:3]
    rows = torch.arange(_SIDE, device=points.device) * height // _SIDE  # nearest neighbours, as in the published code
    cols = torch.arange(_SIDE, device=points.device) * width // _SIDE
    p = points[:, rows[:, None], cols].flatten(1, 2).double()  # [B, N, 3]
    uv = view_plane(height, width).to(points.device)[rows[:, None], cols].flatten(0, 1)  # [N, 2]
    valid = p.isfinite().all(-1)
    if mask is not None:
        valid &= mask[:, rows[:, None], cols].flatten(1)

    # samples that are not valid lie at (0, 0, nearest z), where they have no say
    xy = p[..., :2].where(valid[..., None], 0.0)
    along, square = (xy * uv).sum(-1), xy.square().sum(-1)  # [B, N]
    target = (uv.square().sum(-1) * valid).sum(1)  # [B]
    enough = (valid.sum(1) >= 2) & (square.sum(1) > 0) & (target > 0)
    unit = (square.sum(1) / target).sqrt().where(enough, 1.0)  # [B]
    z = p[..., 2]
    near = z.masked_fill(~valid, math.inf).amin(1).where(enough, 0.0)
    z = z.where(valid, near[:, None])

    def inverse_depth(nearest: Tensor) -> Tensor:
        """1 / Z [B, G, N] of the samples, where the nearest of them lies at `nearest` [B, G] units."""
        return 1 / ((z - near[:, None])[:, None] + (unit[:, None] * nearest)[..., None])

    def total(weights: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("bgn,bn->bg", weights, values)

    def search(f: Tensor | None) -> Tensor:
        """The nearest depth [B] in units at which the residual is smallest, with focal f [B] or the best one."""
        low, high = (math.log(end) for end in _NEAREST)
        t = torch.linspace(low, high, 129, dtype=torch.float64, device=z.device).expand(len(z), -1)
        for _ in range(8):
            inverse = inverse_depth(t.exp())
            a, b = total(inverse, along), total(inverse**2, square)  # sum(q . uv), sum(q . q)
            gain = a.clamp(min=0) ** 2 / b if f is None else f[:, None] * (2 * a - f[:, None] * b)
            best = gain.nan_to_num(nan=0.0).argmax(1, keepdim=True)
            low, high = t.gather(1, (best - 1).clamp(min=0)), t.gather(1, (best + 1).clamp(max=t.shape[1] - 1))
            t = low + (high - low) * torch.linspace(0, 1, 17, dtype=torch.float64, device=z.device)
        return t[:, 8].exp()

    if focal is None:
        nearest = search(None)
        inverse = inverse_depth(nearest[:, None])
        a = total(inverse, along)[:, 0]
        b, c, d = (total(inverse**k, square)[:, 0] for k in (2, 3, 4))
        f, count = a / b, valid.sum(1)
        # Residuals move with f along q and with s along -f q / Z: f is told by what of q is across the latter. `one` is
        # the relative variance of f if one sample told it; noise in z also biases f by that, however many tell it.
        error = ((target - f * a) / (2 * count - 2)).clamp(min=_MIN_ERROR**2)
        one = error * count / (f * a * (1 - c * c / (b * d)).clamp(min=0))
        sigma = (one * _ALIKE**2 / count + one**2).sqrt().where(enough & (f > 0), math.inf)
        determined = sigma <= MAX_SIGMA
        f = f.where(determined, PRIOR_FOCAL)
        if not determined.all():
            nearest = nearest.where(determined, search(f))
    else:
        f, nearest = focal.double(), search(focal.double())
        determined, sigma = torch.ones_like(enough), torch.zeros_like(f)
    shift = (unit * nearest - near).where(enough, 0.0)
    return FocalShift(focal=f.float(), shift=shift.float(), focal_sigma=sigma.float(), determined=determined)
