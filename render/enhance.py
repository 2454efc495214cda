"""Rendered pictures made better before they are filmed, and how much that makes them flicker.

An enhancer takes a picture as it was drawn and says which pixels it changed. `fill_holes` needs nothing; `difix` is a
network, which changes every pixel. What either does from picture to picture is for `flicker` to tell: surfaces are
followed by depth and camera, so whatever changes on them is none of the motion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import invert_pose
from .rasterize import Rendered

if TYPE_CHECKING:
    from ..model.difix import Difix

OPAQUE, HOLE = 0.95, 0.5  # alpha from which a pixel shows a surface, and below which it shows a hole
_DIRECTIONS = 16  # in which a surface is looked for around a hole
_RIM = 2  # pixels around a hole that are drawn thin, and filled with it
_SAME_DEPTH = 0.1  # relative: surfaces that differ by less are one
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Enhanced:
    """A picture after enhancement."""

    rgb: NDArray[np.float32]  # [H, W, 3]
    changed: NDArray[np.bool_]  # [H, W]
    depth: NDArray[np.float32]  # [H, W] scene units, with what is behind the holes as it was supposed


Enhance = Callable[[Rendered], Enhanced]


def fill_holes(picture: Rendered, *, max_px: int) -> Enhanced:
    """Fill holes and cracks that are nowhere wider than `max_px` with the surface that ends farther away around them.

    A hole is where what lies behind was never captured, so what is in front of it says nothing of its colour. In each
    of 16 directions the first opaque pixel is looked up; of those the farther surface counts, weighted by 1 / distance
    squared. Wider holes stay: nothing is known of them.

    Args:
        picture: drawn over a black background.
    """
    alpha = picture.alpha
    hole = (alpha < HOLE).view(np.uint8)
    wide = cv2.morphologyEx(hole, cv2.MORPH_OPEN, np.ones((max_px + 1, max_px + 1), np.uint8))
    thin = hole * (1 - wide)
    rim = cv2.dilate(thin, np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8)).view(np.bool_)
    rows, columns = np.nonzero(rim & (wide == 0) & (alpha < OPAQUE))
    h, w = alpha.shape
    n = len(rows)
    colour, depth = np.zeros((_DIRECTIONS, n, 3), np.float32), np.full((_DIRECTIONS, n), np.nan, np.float32)
    weight = np.zeros((_DIRECTIONS, n), np.float32)
    for i, angle in enumerate(np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)):
        left = np.arange(n)  # pixels that have met nothing yet
        for step in range(1, max_px + 2 * _RIM + 1):
            y, x = (
                np.rint(a + step * s).astype(int)
                for a, s in ((rows[left], np.sin(angle)), (columns[left], np.cos(angle)))
            )
            inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
            left, y, x = left[inside], y[inside], x[inside]
            met = alpha[y, x] >= OPAQUE
            at, y, x = left[met], y[met], x[met]
            colour[i, at] = picture.rgb[y, x] / alpha[y, x, None]
            depth[i, at], weight[i, at] = picture.depth[y, x], 1 / step**2
            left = left[~met]
    known = weight.any(0)
    rows, columns, colour, depth, weight = (
        rows[known],
        columns[known],
        colour[:, known],
        depth[:, known],
        weight[:, known],
    )
    changed = np.zeros((h, w), np.bool_)
    rgb, behind = picture.rgb.copy(), picture.depth.copy()
    if known.any():
        far = np.nanquantile(depth, 0.75, axis=0)
        weight = np.where(depth >= (1 - _SAME_DEPTH) * far, weight, 0)
        weight /= weight.sum(0)
        rgb[rows, columns] += (1 - alpha[rows, columns, None]) * (weight[..., None] * colour).sum(0)
        filled = (weight * np.nan_to_num(depth)).sum(0)
        behind[rows, columns] = np.where(alpha[rows, columns] < HOLE, filled, behind[rows, columns])
        changed[rows, columns] = True
    return Enhanced(rgb=rgb, changed=changed, depth=behind)


def difix(picture: Rendered) -> Enhanced:
    """The picture through DiFix (`model.difix`), whose weights must have been fetched; on the GPU where there is one.

    Raises:
        MissingPart: the weights are not here, their licence was not accepted, or a package is missing.
        BadWeights: the weights are not what they should be.
        LongtakeError: the picture is too large.
    """
    rgb = _difix().enhance(np.clip(picture.rgb, 0, 1))
    return Enhanced(rgb=rgb, changed=np.ones(rgb.shape[:2], np.bool_), depth=picture.depth)


@lru_cache(maxsize=1)
def _difix() -> Difix:
    import torch

    from ..model import hub
    from ..model.difix import load

    cuda = torch.cuda.is_available()
    files = hub.locate("difix")
    return load(files, device="cuda" if cuda else "cpu", dtype=torch.float16 if cuda else torch.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A picture with what is needed to follow its surfaces into another."""

    rgb: NDArray[np.float32]  # [H, W, 3]
    depth: NDArray[np.float32]  # [H, W] scene units
    world_from_cam: NDArray[np.float64]  # [4, 4]
    intrinsics: NDArray[np.float64]  # [4] fx, fy, cx, cy, pixel centres at integers


def flicker(before: Seen, now: Seen, where: NDArray[np.bool_]) -> float:
    """Mean change of luma, 0 .. 255, of the surfaces that pixels `where` [H, W] of a picture show since the one before.

    Surfaces that the picture before did not show do not count; nan where none is left.
    """
    rows, columns = np.nonzero(where & (now.depth > 0))
    fx, fy, cx, cy = now.intrinsics
    z = now.depth[rows, columns].astype(np.float64)
    points = np.stack([(columns - cx) / fx * z, (rows - cy) / fy * z, z], 1)
    before_from_now = invert_pose(before.world_from_cam) @ now.world_from_cam
    x, y, z = before_from_now[:3, :3] @ points.T + before_from_now[:3, 3:]
    fx, fy, cx, cy = before.intrinsics
    z = np.where(z > 0, z, np.nan)
    u, v = (fx * x / z + cx).astype(np.float32), (fy * y / z + cy).astype(np.float32)
    h, w = before.depth.shape
    inside = (u >= 0) & (u <= w - 1) & (v >= 0) & (v <= h - 1)  # False for nan
    rows, columns, u, v, z = rows[inside], columns[inside], u[inside], v[inside], z[inside]
    depth = before.depth[np.rint(v).astype(int), np.rint(u).astype(int)]
    same = np.abs(depth / z - 1) < _SAME_DEPTH
    if not same.any():
        return float("nan")
    rows, columns, u, v = rows[same], columns[same], u[same], v[same]
    was = _bilinear(before.rgb @ _LUMA, u, v)
    return float(255 * np.abs(now.rgb[rows, columns] @ _LUMA - was).mean())


def _bilinear(picture: NDArray, u: NDArray, v: NDArray) -> NDArray:
    h, w = picture.shape
    left, top = np.minimum(u.astype(int), w - 2), np.minimum(v.astype(int), h - 2)
    a, b = u - left, v - top
    above = (1 - a) * picture[top, left] + a * picture[top, left + 1]
    below = (1 - a) * picture[top + 1, left] + a * picture[top + 1, left + 1]
    return (1 - b) * above + b * below
