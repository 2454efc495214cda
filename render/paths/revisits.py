"""Pairs of frames that show the same place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist


def revisit_pairs(
    world_from_cam: NDArray, *, max_distance: float, max_angle_deg: float, away: float = 2.0
) -> NDArray[np.int64]:
    """[K, 2] frames i < j whose poses are near each other although the camera was elsewhere in between.

    Elsewhere: at some frame between them more than `away` times max_distance, or max_angle_deg, from frame i.
    Each i is paired with its best j, the one whose distances in place and in angle, each over its limit, sum to least.
    """
    eye, axes = world_from_cam[:, :3, 3], world_from_cam[:, :3, :3].reshape(-1, 9)
    distance = cdist(eye, eye)
    angle = np.degrees(np.arccos(np.clip((axes @ axes.T - 1) / 2, -1, 1)))
    later = np.triu(np.ones(distance.shape, bool), 1)
    left = later & ((distance > away * max_distance) | (angle > away * max_angle_deg))
    back = np.logical_or.accumulate(left, axis=1) & later & (distance <= max_distance) & (angle <= max_angle_deg)
    score = np.where(back, distance / max_distance + angle / max_angle_deg, np.inf)
    i = np.flatnonzero(back.any(1))
    return np.stack([i, score[i].argmin(1)], 1)
