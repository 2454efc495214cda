"""The room that nano knows: that of seed 0 in plain colours with large patches, which so small a network can keep.

World in metres, z up; cameras are OpenCV's. What is drawn here is what nano was trained on, and what it can begin from.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from .room import Room, look_at, render_clip

ROOM = 0  # seed
FOV_X_DEG = 70.0
LOW = np.array([2.0, 1.1, 1.3, 60.0, -18.0])  # of where cameras are: x, y, z in metres, heading and tilt in degrees
HIGH = np.array([4.0, 2.1, 1.6, 120.0, -2.0])
BEYOND = np.array([0.3, 0.3, 0.1, 10.0, 4.0])  # how far a path may swing out of that
TURN_FRAMES = 40  # from one drawn camera to the next
TEXELS_PER_M = 320  # of the room's textures
SOFT_PX = 4.0  # standard deviation of the lens' blur: finer detail than nano's autoencoder keeps is left out
KINDS = ("free", "free", "move", "turn")  # what a path does; free: both


def intrinsics(width: int, height: int) -> NDArray[np.float64]:
    """[4] of the camera that all clips are drawn with."""
    focal = width / 2 / np.tan(np.radians(FOV_X_DEG) / 2)
    return np.array([focal, focal, (width - 1) / 2, (height - 1) / 2])


def random_path(seed: int, frames: int) -> NDArray[np.float64]:
    """A smooth path [T, 4, 4] through the open half of the room, a function of its seed."""
    rng = np.random.default_rng([seed, 11])
    stops = np.arange(0, frames + TURN_FRAMES, TURN_FRAMES)
    drawn = rng.uniform(LOW, HIGH, (len(stops), 5))
    kind = KINDS[rng.integers(len(KINDS))]
    if kind == "move":
        drawn[:, 3:] = drawn[:1, 3:]
    if kind == "turn":
        drawn[:, :3] = drawn[:1, :3]
    state = CubicSpline(stops, drawn, bc_type="natural")(np.arange(frames))
    return cameras(np.clip(state, LOW - BEYOND, HIGH + BEYOND))


def cameras(state: NDArray) -> NDArray[np.float64]:
    """[T, 4, 4] of rows x, y, z, heading, tilt."""
    heading, tilt = np.radians(state[:, 3]), np.radians(state[:, 4])
    ahead = np.stack([np.cos(heading) * np.cos(tilt), np.sin(heading) * np.cos(tilt), np.sin(tilt)], 1)
    return look_at(state[:, :3], state[:, :3] + ahead)


def first_picture(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """[H, W, 3] that nano can begin from: where `random_path` of the seed begins, seen with `intrinsics`."""
    return filmed(painted_room(), random_path(seed, 1), intrinsics(width, height)[None], width, height)[0]


def painted_room() -> Room:
    """The room with other paint: flat colours and large patches, which so small an autoencoder can keep."""
    room, rng = Room(ROOM), np.random.default_rng([ROOM, 5])
    room.faces = tuple(
        replace(face, pyramid=_pyramid(_patches(rng, *face.pyramid[0].shape[:2]), len(face.pyramid)))
        for face in room.faces
    )
    return room


def _patches(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.uint8]:
    """A plain picture with regular patches, 30 to 80 cm wide: one at least, one and a half on a square metre."""
    picture = np.empty((rows, cols, 3), np.uint8)
    picture[:] = rng.integers(60, 200, 3)
    for _ in range(max(1, round(1.5 * rows * cols / TEXELS_PER_M**2))):
        sides = int(rng.integers(3, 6))
        angle = 2 * np.pi * np.arange(sides) / sides + rng.uniform(0, 2 * np.pi)
        size = TEXELS_PER_M * rng.uniform(0.15, 0.4)
        corners = rng.uniform(0, (cols, rows)) + size * np.stack([np.cos(angle), np.sin(angle)], 1)
        cv2.fillPoly(picture, [corners.round().astype(np.int32)], [int(c) for c in rng.integers(0, 256, 3)])
    return picture


def _pyramid(picture: NDArray[np.uint8], levels: int) -> tuple[NDArray[np.uint8], ...]:
    out = [picture]
    while len(out) < levels:
        rows, cols = out[-1].shape[:2]
        out.append(np.asarray(cv2.resize(out[-1], (cols // 2, rows // 2), interpolation=cv2.INTER_AREA), np.uint8))
    return tuple(out)


def filmed(room: Room, path: NDArray, k: NDArray, width: int, height: int) -> NDArray[np.uint8]:
    """[T, H, W, 3] of the room through a soft lens: detail that so small an autoencoder could not keep is left out."""
    soft = [cv2.GaussianBlur(rgb, (0, 0), SOFT_PX) for rgb in render_clip(room, path, k, width, height)]
    return np.stack(soft).astype(np.uint8)
