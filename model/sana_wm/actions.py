"""Camera paths from action strings such as "w-40,wd-20,none-8": keys, and for how many frames they are held.

Two mappings from keys to motion are public, and are not the same: that of the present code, with inertia, and that of
its first release.

Source: SANA-WM, arXiv 2605.15178, and its published code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import LongtakeError
from ...geometry import pose

FPS = 16.0
PRESS_S = 0.45  # time constant of a component that is driven
COAST_S = 1.0  # and of one that is let go
_AXES = ("forward", "right", "yaw", "pitch")
MAX_FRAMES = 100_000  # of one string: more is a slip of the keyboard
_PART = re.compile(r"([a-z]*)-([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class ActionMap:
    """What keys do. Pitch is up where positive, yaw to the right."""

    keys: dict[str, tuple[str, int]]  # key -> axis of motion, direction
    step: float  # metres a frame
    turn_deg: float  # a frame
    pitch_limit_deg: float
    partial_pitch: bool  # a turn past the limit ends at it; else it is left out
    inertia: bool

    def moving(self, *, step: float | None = None, turn_deg: float | None = None) -> ActionMap:
        """The same keys at another speed."""
        return replace(
            self, step=self.step if step is None else step, turn_deg=self.turn_deg if turn_deg is None else turn_deg
        )


_ALWAYS = {"w": ("forward", 1), "s": ("forward", -1), "i": ("pitch", 1), "k": ("pitch", -1)}
CURRENT = ActionMap(
    keys=_ALWAYS | {"d": ("yaw", 1), "a": ("yaw", -1), "l": ("right", 1), "j": ("right", -1)},
    step=0.025,
    turn_deg=0.6,
    pitch_limit_deg=60.0,
    partial_pitch=True,
    inertia=True,
)
FIRST = ActionMap(
    keys=_ALWAYS | {"d": ("right", 1), "a": ("right", -1), "l": ("yaw", 1), "j": ("yaw", -1)},
    step=0.05,
    turn_deg=1.2,
    pitch_limit_deg=85.0,
    partial_pitch=False,
    inertia=False,
)
ACTION_MAPS = {"current": CURRENT, "first": FIRST}


def held_keys(actions: str) -> list[frozenset[str]]:
    """The keys that are held in each frame after the first.

    Args:
        actions: `<keys>-<frames>` separated by commas; keys are of w a s d i j k l, or the word none. Case, blanks and
            the width of a comma do not matter.

    Raises:
        LongtakeError: what part of it is no action.
    """
    held: list[frozenset[str]] = []
    for part in re.sub(r"\s", "", actions).lower().replace("，", ",").split(","):
        match = _PART.fullmatch(part)
        keys = set() if match and match[1] == "none" else set(match[1]) if match else {"?"}
        if match is None or keys - set("wasdijkl") or int(match[2]) < 1:
            raise LongtakeError(
                f"actions {actions!r}: {part!r} is not KEYS-FRAMES, with keys of w a s d i j k l or the word none, and "
                "at least one frame, such as wd-20"
            )
        if len(held) + int(match[2]) > MAX_FRAMES:
            raise LongtakeError(f"actions {actions[:80]!r}: more than {MAX_FRAMES} frames up to {part!r}")
        held += [frozenset(keys)] * int(match[2])
    return held


def steer(actions: str, mapping: ActionMap = CURRENT) -> NDArray[np.float64]:
    """The path that an action string steers, from the identity.

    Moving is along the ground: forward and right are level, however the camera is pitched.

    Returns:
        [N + 1, 4, 4] world_from_cam of N frames of actions, metres, camera axes x right, y down, z forward.

    Raises:
        LongtakeError: as `held_keys`.
    """
    speed = {"forward": mapping.step, "right": mapping.step}
    turn, limit = math.radians(mapping.turn_deg), math.radians(mapping.pitch_limit_deg)
    per_key = {
        key: sign * speed.get(axis, turn) * np.array([axis == name for name in _AXES], float)
        for key, (axis, sign) in mapping.keys.items()
    }
    velocity, before, pitch = np.zeros(4), frozenset[str](), 0.0
    rotation, centre = np.eye(3), np.zeros(3)
    poses = [np.eye(4)]
    for keys in held_keys(actions):
        target = sum((per_key[key] for key in keys), np.zeros(4))
        if mapping.inertia and not keys - before:
            tau = np.where(np.abs(target) > 1e-12, PRESS_S, COAST_S)
            velocity = velocity + (1 - np.exp(-1 / FPS / tau)) * (target - velocity)
        else:
            velocity = target  # a newly pressed key acts at once
        before = keys
        forward, right, yaw, up = velocity
        wanted = pitch + up
        if abs(wanted) > limit:
            wanted = math.copysign(limit, wanted) if mapping.partial_pitch else pitch
        rotation = _about_y(yaw) @ rotation @ _about_x(wanted - pitch)
        pitch = wanted
        centre = centre + forward * _level(rotation[:, 2]) + right * _level(rotation[:, 0])
        poses.append(pose(rotation, centre))
    return np.stack(poses)


def _level(axis: NDArray) -> NDArray:
    flat = axis * (1.0, 0.0, 1.0)
    return flat / (np.linalg.norm(flat) + 1e-6)


def _about_x(angle: float) -> NDArray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> NDArray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
