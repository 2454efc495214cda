"""The keys that steer a camera, drawn over its video: WASD in the lower left corner, IJKL in the lower right."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import vector_from_rotation
from ..model.sana_wm.actions import CURRENT, ActionMap
from ..model.sana_wm.path import CameraPath

FINE = 8  # keys are drawn so many times as large, then shrunk: letters stay readable in small videos
ENOUGH = 0.25  # of a key's speed: from there on a motion is shown as that key
SMOOTH = 5  # frames over which a motion is averaged before it is told in keys
_CLUSTERS = (("w", "asd"), ("i", "jkl"))
_UP, _DOWN = (32, 34, 38), (246, 247, 249)  # colours of a key, RGB
_LETTER_UP, _LETTER_DOWN = (226, 228, 232), (18, 20, 24)


def shown_keys(path: CameraPath, keys: Sequence[str], mapping: ActionMap = CURRENT) -> list[frozenset[str]]:
    """The keys to show in each frame: those that were held, or of a path from elsewhere those that would do as it does.

    Args:
        keys: held before each frame, as an action string says; empty for a path from elsewhere.
    """
    if keys:
        return [frozenset(held) for held in (*keys[1:2], *keys[1:])]  # the first frame shows what is about to happen
    poses = path.world_from_cam
    turn = np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3]
    moved = np.einsum("fji,fj->fi", poses[:-1, :3, :3], np.diff(poses[:, :3, 3], axis=0))
    angle = np.degrees(vector_from_rotation(turn))
    motion = {"forward": moved[:, 2], "right": moved[:, 0], "yaw": angle[:, 1], "pitch": angle[:, 0]}
    window = np.ones(min(SMOOTH, len(moved))) / min(SMOOTH, len(moved))
    held: list[set[str]] = [set() for _ in range(len(moved))]
    for axis, values in motion.items():
        full = mapping.turn_deg if axis in ("yaw", "pitch") else mapping.step
        level = np.convolve(values, window, mode="same") / full
        for key, (of, sign) in mapping.keys.items():
            if of == axis:
                for i in np.flatnonzero(sign * level > ENOUGH):
                    held[i].add(key)
    return [frozenset(h) for h in (*held[:1], *held)]


class Keys:
    """Draws held keys over frames of one size."""

    def __init__(self, width: int, height: int) -> None:
        self.size = max(7, round(min(0.075 * height, 0.045 * width)))  # of a key, pixels
        self.gap = max(1, round(0.12 * self.size))
        self.margin = max(2, round(0.45 * self.size))
        self.drawn: dict[frozenset[str], list[tuple[int, int, NDArray[np.float32]]]] = {}
        self.width, self.height = width, height

    def draw(self, frame: NDArray[np.uint8], held: frozenset[str]) -> NDArray[np.uint8]:
        """The frame [H, W, 3] RGB with both groups of keys; it is not changed itself."""
        if held not in self.drawn:
            self.drawn[held] = [self._cluster(i, held) for i in range(2)]
        out = frame.copy()
        for x, y, rgba in self.drawn[held]:
            h, w = rgba.shape[:2]
            under = out[y : y + h, x : x + w]
            rgba = rgba[: under.shape[0], : under.shape[1]]
            alpha = rgba[..., 3:]
            under[:] = np.rint(rgba[..., :3] * alpha + under * (1 - alpha)).astype(np.uint8)
        return out

    def _cluster(self, index: int, held: frozenset[str]) -> tuple[int, int, NDArray[np.float32]]:
        """Left, top and RGBA picture (alpha 0 to 1) of one group of four keys."""
        step = self.size + self.gap
        width, height = 3 * step - self.gap, 2 * step - self.gap
        big = np.zeros((height * FINE, width * FINE, 4), np.float32)
        top, row = _CLUSTERS[index]
        for letter, column, line in ((top, 1, 0), *((key, i, 1) for i, key in enumerate(row))):
            self._key(big, letter, column * step, line * step, letter in held)
        small = np.asarray(cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA), np.float32)
        small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
        x = self.margin if index == 0 else self.width - self.margin - width
        return max(0, x), max(0, self.height - self.margin - height), small

    def _key(self, big: NDArray[np.float32], letter: str, x: int, y: int, down: bool) -> None:
        """Draw a key in place; colours are multiplied by alpha."""
        side = self.size * FINE
        tile = np.zeros((side, side), np.uint8)
        r = round(0.2 * side)
        cv2.rectangle(tile, (r, 0), (side - 1 - r, side - 1), 255, -1)
        cv2.rectangle(tile, (0, r), (side - 1, side - 1 - r), 255, -1)
        for cx in (r, side - 1 - r):
            for cy in (r, side - 1 - r):
                cv2.circle(tile, (cx, cy), r, 255, -1, cv2.LINE_AA)
        word = np.zeros_like(tile)
        scale, thick = 0.024 * side, max(2, round(0.085 * side))
        cv2.putText(
            word, letter.upper(), (side // 4, 3 * side // 4), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA
        )
        left, above, w, h = cv2.boundingRect(word)
        word = np.roll(word, ((side - h) // 2 - above, (side - w) // 2 - left), (0, 1))
        face, ink = (_DOWN, _LETTER_DOWN) if down else (_UP, _LETTER_UP)
        cover = tile.astype(np.float32) / 255 * (0.94 if down else 0.55)
        mark = word.astype(np.float32)[..., None] / 255
        colour = np.array(face, np.float32) * (1 - mark) + np.array(ink, np.float32) * mark
        alpha = np.maximum(cover[..., None], mark * (0.94 if down else 0.85))
        place = np.s_[y * FINE : y * FINE + side, x * FINE : x * FINE + side]
        big[place] = np.concatenate([colour * alpha, alpha], axis=-1)
