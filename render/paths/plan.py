"""The floor plan that a path is shown on: what a camera at the path's heights would run into, seen from above.

It is made of the very grid that the checks look at (`survey.Survey`), and small enough to lie beside the clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .record import CameraPath
from .survey import MARGIN, OCCUPIED, ZONE, Survey

MOST_CELLS = 400  # along a side; a larger grid gets larger cells
MOST_CAMERAS = 200
_INK = 128  # grey that shows on white paper and on black
_UNKNOWN, _BELOW, _FAINTEST, _DARKEST = 30, 80, 160, 240  # of 255, the ink of: never seen, solid below, solid cells


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Cells of one height range seen from above. World frame and unit are the scene's own, until `scaled`."""

    opacity: NDArray[np.float32]  # [A, B] the most that a cell in the height range has accumulated; b runs ahead
    below: NDArray[np.bool_]  # [A, B] a cell of the grid under the height range is solid
    seen: NDArray[np.bool_]  # [A, B] a training camera has been or looked through at some height in the range
    corner: NDArray[np.float64]  # [3] of the first cell, at height 0 of `up`
    right: NDArray[np.float64]  # [3] unit, along a
    ahead: NDArray[np.float64]  # [3] unit, along b
    up: NDArray[np.float64]  # [3] unit
    cell: float  # edge of a cell
    heights: tuple[float, float]  # range along up
    cameras: NDArray[np.float64]  # [N, 3] where the training (or derived) cameras stood, at most `MOST_CAMERAS`

    def facts(self, scale: float = 1.0) -> dict[str, object]:
        """What one must know to lay `picture` under a path, as JSON has it; lengths times `scale`."""
        a, b = self.opacity.shape
        return {
            "corner": (scale * self.corner).tolist(),
            "right": self.right.tolist(),
            "ahead": self.ahead.tolist(),
            "up": self.up.tolist(),
            "size": [scale * a * self.cell, scale * b * self.cell],
            "heights": [scale * height for height in self.heights],
            "cameras": np.round(scale * self.cameras, 6).tolist(),
            "meaning": "row 0 of the picture is farthest ahead, column 0 leftmost. Ink, from dark to faint: "
            "solid in the height range, solid below it, never seen; none: free",
        }

    def picture(self) -> NDArray[np.uint8]:
        """[B, A, 4] BGRA: solid cells grey, the darker the more opaque; those below and unseen space faint."""
        ink = np.where(self.seen, 0.0, _UNKNOWN)
        ink[self.below] = _BELOW
        solid = self.opacity >= OCCUPIED
        ink[solid] = _FAINTEST + (_DARKEST - _FAINTEST) * np.minimum(self.opacity[solid], 1)
        out = np.full((*self.opacity.T.shape, 4), _INK, np.uint8)
        out[..., 3] = np.rint(ink.T[::-1])
        return out

    def png(self) -> bytes:
        """`picture` as a file."""
        return cv2.imencode(".png", self.picture())[1].tobytes()


def draw_plan(survey: Survey, path: CameraPath) -> Plan:
    """The plan of what the survey's cameras reach, between the heights that the path keeps to and its margin."""
    right, ahead, up = survey.axes
    margin, reach = MARGIN * survey.radius, (ZONE + 2 * MARGIN) * survey.radius
    eye = survey.world_from_cam[:, :3, 3]
    places, height = eye @ np.stack([right, ahead], 1), path.world_from_cam[:, :3, 3] @ up
    first, last = places.min(0) - reach, places.max(0) + reach
    heights = float(height.min() - margin), float(height.max() + margin)
    cell = max(survey.cell, float((last - first).max()) / MOST_CELLS)
    counts = np.ceil((last - first) / cell).astype(int)
    a, b = (first[k] + (np.arange(counts[k]) + 0.5) * cell for k in (0, 1))
    flat = a[:, None, None] * right + b[None, :, None] * ahead  # [A, B, 3]
    opacity, below, seen = np.zeros(counts, np.float32), np.zeros(counts, bool), np.zeros(counts, bool)
    for level in np.arange((eye @ up).min() - reach, heights[1], survey.cell) + survey.cell / 2:
        found, known = survey.cells(flat + level * up)
        if level < heights[0]:
            below |= found >= OCCUPIED
        else:
            np.maximum(opacity, found, out=opacity)
            seen |= known
    return Plan(
        opacity=opacity,
        below=below,
        seen=seen,
        corner=first[0] * right + first[1] * ahead,
        right=right,
        ahead=ahead,
        up=up,
        cell=cell,
        heights=heights,
        cameras=eye[:: -(-len(eye) // MOST_CAMERAS)],
    )
