"""Motion of a camera: upright views, timing by arc length with eased ends, smoothing and splines on SE(3).

Rotations are never interpolated entry by entry: they come from a look direction and the scene's up, from slerp, from
Squad, or from a mean of unit quaternions that lie close together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation, Slerp

from ...geometry import angle_between_deg, pose, rotation_from_vector, vector_from_rotation
from .record import NoPath

_STEEPEST_DEG = 80.0  # elevation beyond which an upright view would spin


@dataclass(frozen=True, kw_only=True, eq=False)
class Leg:
    """A way without stops: M places and where the camera looks from each, not yet timed.

    A leg begins and ends at rest. By default it is timed by arc length with eased ends and gets time by its length;
    `share` gives it a share of the clip instead, and `in_time` says that its samples are evenly spaced in time already.
    """

    eye: NDArray[np.float64]  # [M, 3]
    forward: NDArray[np.float64]  # [M, 3] of any length but zero
    share: float | None = None
    in_time: bool = False


def unit(v: NDArray) -> NDArray[np.float64]:
    """v [..., 3] at length 1."""
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def upright(forward: NDArray, up: NDArray) -> NDArray[np.float64]:
    """Rotations world_from_cam [..., 3, 3] that look along forward [..., 3] without roll.

    Directions within 10 degrees of the vertical are bent to 80 degrees of elevation, where "without roll" still has
    a meaning; a direction exactly along `up` has none and raises NoPath.
    """
    forward = unit(np.asarray(forward, np.float64))
    rise = np.clip(forward @ up, -1, 1)[..., None]
    level = forward - rise * up
    length = np.linalg.norm(level, axis=-1, keepdims=True)
    if (length < 1e-9).any():
        raise NoPath(
            "vertical_view", "a view straight up or down has no heading: move the focus off the camera's vertical"
        )
    top = np.sin(np.radians(_STEEPEST_DEG))
    rise = np.clip(rise, -top, top)
    forward = level / length * np.sqrt(1 - rise**2) + rise * up
    right = unit(np.cross(forward, up))
    return np.stack([right, np.cross(forward, right), forward], -1)


def turned(forward: NDArray, up: NDArray, yaw_deg: NDArray | float, pitch_deg: NDArray | float = 0.0) -> NDArray:
    """forward [3] or [M, 3] turned by yaw (to the right) about `up`, then by pitch (upwards), degrees [M] each."""
    forward = np.tile(unit(forward), (np.size(yaw_deg), 1)) if np.ndim(forward) == 1 else unit(forward)
    yaw = Rotation.from_rotvec(-np.radians(np.reshape(yaw_deg, (-1, 1))) * up)
    forward = yaw.apply(forward)
    elevation = np.arcsin(np.clip(forward @ up, -1, 1)) + np.radians(pitch_deg)
    elevation = np.clip(elevation, -np.radians(_STEEPEST_DEG), np.radians(_STEEPEST_DEG))[:, None]
    level = unit(forward - (forward @ up)[:, None] * up)
    return np.cos(elevation) * level + np.sin(elevation) * up


def eased(t: NDArray, ramp: float) -> NDArray[np.float64]:
    """Distance 0 .. 1 at times t in 0 .. 1: the speed rises over `ramp` of the time, holds, and falls likewise.

    The ramps are raised cosines, so speed and acceleration are continuous and both are zero at the ends (ramp <= 0.5).
    """
    t = np.clip(t, 0.0, 1.0)
    s = np.minimum(t, 1 - t)
    rising = s / 2 - ramp / (2 * np.pi) * np.sin(np.pi * s / ramp)
    half = np.where(s < ramp, rising, s - ramp / 2) / (1 - ramp)
    return np.where(t <= 0.5, half, 1 - half)


def arc_length(eye: NDArray, rotation: NDArray, per_radian: float) -> NDArray[np.float64]:
    """Length [M] along a way in which a radian of turning counts as `per_radian` of travel."""
    travel = np.linalg.norm(np.diff(eye, axis=0), axis=1)
    turn = np.radians(angle_between_deg(rotation[:-1], rotation[1:]))
    return np.concatenate([[0.0], np.cumsum(np.hypot(travel, per_radian * turn))])


def timed(
    legs: tuple[Leg, ...], up: NDArray, num_frames: int, *, per_radian: float, ramp: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Legs, each beginning where the one before ends, as places [T, 3] and rotations [T, 3, 3] evenly spaced in time.

    Args:
        per_radian: scene units of travel that a radian of turning counts as.
        ramp: share of each leg's time in which its speed rises, and falls.
    """
    rotations = [upright(leg.forward, up) for leg in legs]
    lengths = [arc_length(leg.eye, r, per_radian) for leg, r in zip(legs, rotations, strict=True)]
    free = [s[-1] if leg.share is None else 0.0 for leg, s in zip(legs, lengths, strict=True)]
    left = 1 - sum(leg.share or 0.0 for leg in legs)
    shares = np.array(
        [
            left * length / max(sum(free), 1e-300) if leg.share is None else leg.share
            for leg, length in zip(legs, free, strict=True)
        ]
    )
    ends = np.cumsum(shares / shares.sum())
    t = np.linspace(0.0, 1.0, num_frames)
    which = np.minimum(np.searchsorted(ends, t, side="left"), len(legs) - 1)
    eye, rotation = np.empty((num_frames, 3)), np.empty((num_frames, 3, 3))
    for k, (leg, r, s) in enumerate(zip(legs, rotations, lengths, strict=True)):
        rows = np.flatnonzero(which == k)
        if not rows.size:
            continue
        begin = ends[k] - shares[k] / shares.sum()
        tau = np.clip((t[rows] - begin) / (ends[k] - begin), 0, 1)
        if leg.in_time:
            knots, at = np.linspace(0.0, 1.0, len(s)), tau
        elif s[-1] > 0:
            knots = np.linspace(0.0, 1e-9, len(s)) + s / s[-1]  # strictly increasing, also where the way stands still
            at = eased(tau, ramp) * knots[-1]
        else:
            eye[rows], rotation[rows] = leg.eye[0], r[0]
            continue
        eye[rows] = CubicSpline(knots, leg.eye)(at)
        rotation[rows] = Slerp(knots, Rotation.from_matrix(r))(np.clip(at, knots[0], knots[-1])).as_matrix()
    return eye, rotation


def smoothed(eye: NDArray, rotation: NDArray, sigma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A Gaussian mean over time, sigma in frames; the first and the last pose stay as they are.

    Rotations: the mean of unit quaternions of one sign, normalised (the chordal mean, good for nearby rotations).
    The ends are kept by reflecting the motion through them, point by point and rotation by rotation.
    """
    pad = min(int(np.ceil(4 * sigma)), len(eye) - 1)
    if sigma <= 0 or pad == 0:
        return eye, rotation
    back, fore = slice(pad, 0, -1), slice(-2, -pad - 2, -1)
    long_eye = np.concatenate([2 * eye[0] - eye[back], eye, 2 * eye[-1] - eye[fore]])
    first, last = rotation[0], rotation[-1]
    before = first @ np.swapaxes(rotation[back], 1, 2) @ first
    after = last @ np.swapaxes(rotation[fore], 1, 2) @ last
    q = _one_sign(Rotation.from_matrix(np.concatenate([before, rotation, after])).as_quat())
    mean = gaussian_filter1d(q, sigma, axis=0, mode="nearest")[pad:-pad]
    return gaussian_filter1d(long_eye, sigma, axis=0, mode="nearest")[pad:-pad], Rotation.from_quat(mean).as_matrix()


def laplacian_smoothed(eye: NDArray, rotation: NDArray, rounds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each pose moved halfway to the mean of its two neighbours, `rounds` times; the ends stay."""
    eye, q = eye.copy(), _one_sign(Rotation.from_matrix(rotation).as_quat())
    for _ in range(rounds):
        eye[1:-1] += 0.5 * ((eye[:-2] + eye[2:]) / 2 - eye[1:-1])
        q[1:-1] += 0.5 * ((q[:-2] + q[2:]) / 2 - q[1:-1])
        q /= np.linalg.norm(q, axis=1, keepdims=True)
    return eye, Rotation.from_quat(q).as_matrix()


def zoomed(intrinsics: NDArray, num_frames: int, zoom: float, *, there_and_back: bool) -> NDArray[np.float64]:
    """Intrinsics [T, 4]: the focal length goes from its own to `zoom` times it, evenly in its logarithm, with ease."""
    t = np.linspace(0.0, 1.0, num_frames)
    s = eased(1 - np.abs(2 * t - 1) if there_and_back else t, 0.5)
    out = np.tile(np.asarray(intrinsics, np.float64), (num_frames, 1))
    out[:, :2] *= np.exp(np.log(zoom) * s)[:, None]
    return out


def rolled(world_from_cam: NDArray, roll_deg: float) -> NDArray[np.float64]:
    """Poses [T, 4, 4] leaned to the right: upright at both ends, by `roll_deg` halfway."""
    t = np.linspace(0.0, 1.0, len(world_from_cam))
    lean = np.radians(roll_deg) * np.sin(np.pi * t) ** 2
    return world_from_cam @ pose(Rotation.from_rotvec(lean[:, None] * [0, 0, 1.0]).as_matrix(), np.zeros((len(t), 3)))


def centripetal_catmull_rom(points: NDArray, per_span: int) -> NDArray[np.float64]:
    """[(n - 1) per_span + 1, 3] samples of the centripetal Catmull-Rom spline through points [n, 3].

    The neighbours that the ends lack are reflections. Source: Barry & Goldman, SIGGRAPH 1988, with alpha = 1/2 (Yuksel,
    Schaefer & Keyser, 2011: no cusps and no loops within a span).
    """
    p = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    knots = np.concatenate([[0.0], np.cumsum(np.maximum(np.linalg.norm(np.diff(p, axis=0), axis=1), 1e-12) ** 0.5)])
    out = []
    for i in range(1, len(p) - 2):
        k0, k1, k2, k3 = knots[i - 1 : i + 3]
        t = np.linspace(k1, k2, per_span, endpoint=False)[:, None]
        a1 = ((k1 - t) * p[i - 1] + (t - k0) * p[i]) / (k1 - k0)
        a2 = ((k2 - t) * p[i] + (t - k1) * p[i + 1]) / (k2 - k1)
        a3 = ((k3 - t) * p[i + 1] + (t - k2) * p[i + 2]) / (k3 - k2)
        b1 = ((k2 - t) * a1 + (t - k0) * a2) / (k2 - k0)
        b2 = ((k3 - t) * a2 + (t - k1) * a3) / (k3 - k1)
        out.append(((k2 - t) * b1 + (t - k1) * b2) / (k2 - k1))
    return np.concatenate([*out, points[-1:]])


def squad(rotations: NDArray, per_span: int) -> NDArray[np.float64]:
    """[(n - 1) per_span + 1, 3, 3] samples of Squad through rotations [n, 3, 3]: C1 on the group.

    Source: Shoemake, "Quaternion calculus and fast animation", SIGGRAPH course, 1987.
    """
    r = Rotation.from_matrix(rotations)
    ahead = (r[:-1].inv() * r[1:]).as_rotvec()  # log(q_i^-1 q_i+1)
    to_next = np.concatenate([ahead, ahead[-1:]])
    to_last = np.concatenate([-ahead[:1], -ahead])
    inner = (r * Rotation.from_rotvec(-(to_next + to_last) / 4)).as_matrix()
    i = np.append(np.repeat(np.arange(len(rotations) - 1), per_span), len(rotations) - 2)
    t = np.append(np.tile(np.arange(per_span) / per_span, len(rotations) - 1), 1.0)
    outer, middle = _slerp(rotations[i], rotations[i + 1], t), _slerp(inner[i], inner[i + 1], t)
    return _slerp(outer, middle, 2 * t * (1 - t))


def _slerp(a: NDArray, b: NDArray, t: NDArray) -> NDArray[np.float64]:
    return a @ rotation_from_vector(t[:, None] * vector_from_rotation(np.swapaxes(a, 1, 2) @ b))


def _one_sign(q: NDArray) -> NDArray[np.float64]:
    """Quaternions [T, 4] with signs chosen so that neighbours lie on the same side."""
    flips = np.cumsum((q[1:] * q[:-1]).sum(1) < 0) % 2 == 1
    q = q.copy()
    q[1:][flips] *= -1
    return q
