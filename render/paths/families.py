"""Ten families of camera paths: what a cinematographer would call by these names.

A family takes the survey of a scene, a random generator and an extent in (0, 1], and says where the camera goes and
looks, before it is timed. The same generator state with a smaller extent gives the same move, made smaller: that is
how a path that failed a check is shortened. Every path is anchored at a training camera that stands free. Views are
roll-free by construction (`motion.upright`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from .motion import Leg, eased, turned, unit
from .record import NoPath, Parameter
from .survey import Survey

_SAMPLES = 600  # of a way
_LEASH_DEG = 40.0  # that a travelling camera may look away from what the training cameras around it look at
_THIRD = 1 / 3  # of the depth ahead that a dolly may go


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """A path before it is timed. `drawn` are the parameters that came from the seed."""

    legs: tuple[Leg, ...]
    anchor: int  # training camera
    drawn: dict[str, Parameter] = field(default_factory=dict)
    ramp: float = 0.08  # share of a leg's time in which its speed rises, and falls


@dataclass(frozen=True, eq=False)
class _Anchor:
    camera: int
    eye: NDArray[np.float64]  # [3]
    forward: NDArray[np.float64]  # [3] unit; towards the scene's centre in forward-facing scenes
    depth: float  # ahead


Family = Callable[[Survey, Generator, float], Track]


def near_training(survey: Survey, rng: Generator, extent: float) -> Track:
    """A B-spline of positions and look-at points whose control points are 8 to 20 training cameras near each other."""
    anchor = _anchor(survey, rng)
    if len(survey.usable) < 4:
        raise NoPath("few_cameras", "a spline of training cameras needs four that stand free")
    count = min(int(rng.integers(8, 21)), len(survey.usable))
    eye, forward = survey.world_from_cam[:, :3, 3], survey.world_from_cam[:, :3, 2]

    def distance(i: int, others: NDArray) -> NDArray:  # 60 degrees count as one radius
        turn = np.arccos(np.clip(forward[others] @ forward[i], -1, 1))
        return np.linalg.norm(eye[others] - eye[i], axis=1) / survey.radius + turn / np.radians(60)

    others = survey.usable[survey.usable != anchor.camera]
    left = list(rng.permutation(others)[: max(len(others) * 2 // 3, count - 1)])
    order = [anchor.camera]
    while len(order) < count:
        rank = distance(order[-1], np.array(left))
        if len(order) > 1:  # going on counts as nearer than going back
            last = unit(eye[order[-1]] - eye[order[-2]] + 1e-12)
            rank = rank * (2 - unit(eye[left] - eye[order[-1]] + 1e-12) @ last)
        order.append(left.pop(int(rank.argmin())))
    degree = 3
    knots = np.concatenate([np.zeros(degree), np.linspace(0, 1, count - degree + 1), np.ones(degree)])
    u = np.linspace(0, extent, _SAMPLES)
    place = BSpline(knots, eye[order], degree)(u)
    target = BSpline(knots, eye[order] + survey.depth * forward[order], degree)(u)
    if survey.forward_facing:
        target = np.broadcast_to(survey.scene_centre, place.shape)
    return Track(legs=(Leg(eye=place, forward=target - place),), anchor=anchor.camera, drawn={"cameras": count})


def orbit(survey: Survey, rng: Generator, extent: float) -> Track:
    """A full circle, or an arc of 60 to 180 degrees, around a focus in view; at one height or rising and falling."""
    anchor = _anchor(survey, rng)
    focus = _focus(survey, rng, anchor)
    full = bool(rng.random() < 0.35)
    sweep = (360.0 if full else rng.uniform(60, 180)) * extent * _side(rng)
    wave = rng.uniform(0.3, 1.0) * int(rng.random() < 0.5)
    u = np.linspace(0, 1, _SAMPLES)
    rise = wave * _headroom(survey, anchor, 0.25 * survey.radius) * np.sin(np.pi * u) ** 2
    eye = _around(survey, anchor, focus, sweep * u, rise=rise)
    drawn: dict[str, Parameter] = {"sweep_deg": sweep, "height_change": float(rise[np.abs(rise).argmax()]) + 0.0}
    return _facing(eye, focus, anchor, drawn | {"variant": "circle" if abs(sweep) == 360 else "arc"})


def spiral(survey: Survey, rng: Generator, extent: float) -> Track:
    """Around a focus, radius and height changing together; or a lemniscate of 60 degrees that returns to its start."""
    anchor = _anchor(survey, rng)
    focus = _focus(survey, rng, anchor)
    lemniscate = bool(rng.random() < 0.5)
    side = _side(rng)
    u = np.linspace(0, 1, _SAMPLES)
    if lemniscate:
        width = 60 * extent * side
        distance = np.linalg.norm(anchor.eye - focus)
        lobe = np.radians(abs(width)) * distance / 4  # half the height of the eight
        low, high = survey.height_limits
        at = float(survey.height(anchor.eye))
        tall = max(min(0.9 * (high - at), 0.9 * (at - low), lobe), 0.0)  # it stands as far as the heights allow
        azimuth = width / 2 * np.sin(2 * np.pi * u)
        eight = np.sin(4 * np.pi * u)
        scale = 1 - (lobe - tall) / distance * eight  # and lies for the rest
        eye = _around(survey, anchor, focus, azimuth, scale=scale, rise=tall * eight)
        return _facing(eye, focus, anchor, {"variant": "lemniscate", "width_deg": abs(width), "height": 2 * tall})
    sweep = rng.uniform(180, 450) * extent * side
    last = 1 - extent * (1 - rng.uniform(0.5, 0.75))
    rise = _headroom(survey, anchor, 0.5 * survey.radius) * rng.uniform(0.6, 1.0) * extent
    eye = _around(survey, anchor, focus, sweep * u, scale=1 + (last - 1) * u, rise=rise * u)
    drawn: dict[str, Parameter] = {"sweep_deg": sweep, "last_radius": last, "rise": rise}
    return _facing(eye, focus, anchor, {"variant": "spiral"} | drawn)


def dolly(survey: Survey, rng: Generator, extent: float) -> Track:
    """Along the view ray, in, out, or in and out again, by at most a third of the depth ahead."""
    anchor = _anchor(survey, rng)
    variant = str(rng.choice(["in", "out", "in_out"]))
    wanted = _THIRD * anchor.depth * rng.uniform(0.6, 1.0) * extent
    sign = -1.0 if variant == "out" else 1.0
    travel = sign * 0.95 * survey.reach(anchor.eye, sign * anchor.forward, wanted)
    if abs(travel) < 0.05 * survey.radius:
        raise NoPath("no_room", f"no room to dolly {variant}")
    eye = anchor.eye + np.linspace(0, travel, _SAMPLES)[:, None] * anchor.forward
    legs = (_looking(eye, anchor.forward),)
    if variant == "in_out":
        legs += (_looking(eye[::-1], anchor.forward),)
    return Track(legs=legs, anchor=anchor.camera, drawn={"variant": variant, "travel": travel}, ramp=0.25)


def fly_through(survey: Survey, rng: Generator, extent: float) -> Track:
    """The shortest free way through 2 to 4 training cameras far apart, rounded off, looking where it goes."""
    anchor = _anchor(survey, rng)
    eye = survey.world_from_cam[:, :3, 3]
    far = [anchor.camera]
    for _ in range(int(rng.integers(1, 4))):
        some = rng.permutation(survey.usable)[: max(len(survey.usable) // 2, 2)]
        gap = np.linalg.norm(eye[some, None] - eye[far], axis=2).min(1)
        far.append(int(some[gap.argmax()]))
    stops, left = far[:1], far[1:]
    while left:  # nearest next, so that the way does not run to and fro
        stops.append(left.pop(int(np.linalg.norm(eye[left] - eye[stops[-1]], axis=1).argmin())))
    parts = [survey.route(eye[a], eye[b]) for a, b in pairwise(stops)]
    way = _evenly(np.concatenate(parts), _SAMPLES)
    way = _evenly(way[: max(int(extent * len(way)), 2)], _SAMPLES)
    way = _until_it_turns_back(way, 0.3 * survey.radius)
    if np.linalg.norm(np.diff(way, axis=0), axis=1).sum() < 0.3 * survey.radius:
        raise NoPath("no_far_camera", "the free way ends too soon")
    way = _rounded(survey, way)
    forward = _ahead(survey, way, 0.35 * survey.radius)
    return Track(legs=(Leg(eye=way, forward=forward),), anchor=anchor.camera, drawn={"cameras": len(stops)})


def random_walk(survey: Survey, rng: Generator, extent: float) -> Track:
    """A stroll whose heading drifts, turns away before the allowed space ends, and is reflected where it must be."""
    anchor = _anchor(survey, rng)
    length = rng.uniform(2.0, 4.0) * survey.radius
    steps = 400
    step = length / steps
    noise = rng.normal(size=(steps, 2))
    if survey.room(anchor.eye[None])[0] <= 0:
        raise NoPath("no_room", "the anchor has no room to walk")
    e1, e2 = survey.axes[:2]
    yaw = float(np.arctan2(anchor.forward @ e2, anchor.forward @ e1))
    turn = climb = 0.0
    places, yaws = [anchor.eye], [yaw]
    memory = np.exp(-step / (0.5 * survey.radius))  # headings are correlated over half a radius
    kick = np.sqrt(1 - memory**2)
    sharpest = step / (0.25 * survey.radius)  # radians a step: a circle of a quarter radius

    def heading(angle: float | NDArray) -> NDArray:
        level = np.cos(angle)[..., None] * e1 + np.sin(angle)[..., None] * e2
        return unit(level + climb * survey.up)

    feelers = np.array([0.0, 0.7, -0.7])
    for i in range(steps):
        turn = memory * turn + kick * noise[i, 0] * 0.35 * sharpest
        climb = memory * climb + kick * noise[i, 1] * 0.15
        p = places[-1]
        ahead, left, right = survey.room(p + 0.3 * survey.radius * heading(yaw + feelers))
        if ahead <= 0:  # steer to the freer side before the wall
            turn = float(np.clip(turn + (0.3 if left >= right else -0.3) * sharpest, -sharpest, sharpest))
        yaw += turn
        move = step * heading(np.array(yaw))
        if survey.room((p + move)[None])[0] <= 0:
            wall = _inward(survey, p)
            move = move - 2 * min(float(move @ wall), 0.0) * wall
            bounced = float(np.arctan2(move @ e2, move @ e1))
            yaw += (bounced - yaw + np.pi) % (2 * np.pi) - np.pi
            climb = -climb if abs(wall @ survey.up) > 0.5 else climb
            turn = 0.0
        if survey.room((p + move)[None])[0] > 0:
            p = p + move
        places.append(p)
        yaws.append(yaw)
    kept = max(int(extent * steps), 10)
    blur = 0.08 * survey.radius / step
    eye = _blurred(np.array(places)[:kept], blur)
    angle = gaussian_filter1d(np.array(yaws)[:kept], 2 * blur, mode="nearest")[:, None]
    pitch = float(anchor.forward @ survey.up)
    forward = np.cos(angle) * e1 + np.sin(angle) * e2 + np.clip(pitch, -0.4, 0.4) * survey.up
    forward = _leashed(survey, eye, forward)
    return Track(legs=(Leg(eye=eye, forward=forward),), anchor=anchor.camera, drawn={"length": length * kept / steps})


def crane(survey: Survey, rng: Generator, extent: float) -> Track:
    """A crane that rises and tilts down on its subject, swinging a little; or a pendulum, left and right of it."""
    pendulum = bool(rng.random() < 0.5)
    some = [_anchor(survey, rng) for _ in range(4)]
    anchor = some[0] if pendulum else min(some, key=lambda a: float(survey.height(a.eye)))  # a crane starts low
    focus = _focus(survey, rng, anchor)
    u = np.linspace(0, 1, _SAMPLES)
    if pendulum:
        reach = rng.uniform(15, 40) * extent
        swings = int(rng.integers(2, 4))
        azimuth = _side(rng) * reach * np.sin(2 * np.pi * swings * eased(u, 0.1))
        eye = _around(survey, anchor, focus, azimuth)
        leg = Leg(eye=eye, forward=focus - eye, in_time=True)
        drawn: dict[str, Parameter] = {"variant": "pendulum", "reach_deg": reach, "swings": swings}
        return Track(legs=(leg,), anchor=anchor.camera, drawn=drawn)
    room = survey.height_limits[1] - float(survey.height(anchor.eye))
    rise = min(room, 0.8 * survey.radius) * rng.uniform(0.7, 0.95) * extent
    if rise < 0.05 * survey.radius:
        raise NoPath("no_headroom", "the training cameras leave no height to crane through")
    swing = rng.uniform(0, 30) * extent * _side(rng)
    eye = _around(survey, anchor, focus, swing * u, rise=rise * u)
    return _facing(eye, focus, anchor, {"variant": "crane", "rise": rise, "swing_deg": swing}, ramp=0.2)


def compound(survey: Survey, rng: Generator, extent: float) -> Track:
    """Three to six of forward, backward, truck, pan, tilt and pause, each gliding into the next."""
    anchor = _anchor(survey, rng)
    names: list[str] = []
    for _ in range(int(rng.integers(3, 7))):
        options = [n for n in ("forward", "backward", "truck", "pan", "tilt", "pause") if n not in names[-1:]]
        names.append(str(rng.choice(options)))
    if not set(names) & {"forward", "backward", "truck"}:
        names[int(rng.integers(len(names)))] = "truck"
    draws = rng.uniform(size=(len(names), 2))
    grain = 2000  # samples of the clip
    glide = grain // 20  # over which one primitive's velocity gives way to the next
    eye, yaw, pitch = anchor.eye, 0.0, 0.0
    plan: list[tuple[float, NDArray]] = []  # weight in time, amounts of (forward, right, yaw, pitch)
    for name, (size, sign) in zip(names, draws, strict=True):
        amount = np.zeros(4)
        side = 1.0 if sign < 0.5 else -1.0
        forward = turned(anchor.forward, survey.up, yaw, pitch)[0]
        if name in ("forward", "backward", "truck"):
            right = unit(np.cross(forward, survey.up))
            axis = {"forward": forward, "backward": -forward, "truck": side * right}[name]
            wanted = (0.25 + 0.45 * size) * min(survey.radius, anchor.depth / 2) * extent
            travel = 0.85 * survey.reach(eye, axis, wanted)
            if name == "truck" and travel < 0.5 * wanted:
                side, axis = -side, -axis
                travel = 0.85 * survey.reach(eye, axis, wanted)
            amount[1 if name == "truck" else 0] = travel * (side if name == "truck" else 1 - 2 * (name == "backward"))
            eye = eye + travel * axis
            weight = travel / survey.radius
        elif name == "pan":
            amount[2] = side * (20 + 40 * size) * extent
            weight = abs(amount[2]) / 60
        elif name == "tilt":
            amount[3] = (-np.sign(pitch) if pitch else side) * (8 + 12 * size) * extent
            weight = abs(amount[3]) / 40
        else:
            weight = 0.15
        yaw, pitch = yaw + amount[2], pitch + amount[3]
        plan.append((max(weight, 0.05), amount))
    weights = np.array([w for w, _ in plan])
    lengths = np.maximum((weights / weights.sum() * (grain - 2 * glide)).astype(int), glide)
    velocity = np.concatenate([np.tile(a / n, (n, 1)) for (_, a), n in zip(plan, lengths, strict=True)])
    window = np.hanning(2 * glide + 1)[1:-1]
    window /= window.sum()
    velocity = np.stack([np.convolve(np.pad(v, glide), window, "same") for v in velocity.T], 1)
    angles = np.cumsum(velocity[:, 2:], axis=0)
    forward = turned(anchor.forward, survey.up, angles[:, 0], angles[:, 1])
    right = unit(np.cross(forward, survey.up))
    eye = anchor.eye + np.cumsum(velocity[:, :1] * forward + velocity[:, 1:2] * right, axis=0)
    leg = Leg(eye=eye, forward=forward, in_time=True)
    return Track(legs=(leg,), anchor=anchor.camera, drawn={"primitives": " ".join(names)})


def revisit(survey: Survey, rng: Generator, extent: float) -> Track:
    """Back to a place seen before: the same track back, the same track at another heading, a closed loop that keeps its
    subject in view, or a look away and back."""
    anchor = _anchor(survey, rng)
    variant = str(rng.choice(["out_and_back", "other_heading", "loop", "look_away"]))
    side = _side(rng)
    drawn: dict[str, Parameter] = {"variant": variant}
    if variant == "look_away":
        turn = rng.uniform(60, 120) * extent * side
        away = turned(anchor.forward, survey.up, np.linspace(0, turn, _SAMPLES))
        here, there = _looking(anchor.eye[None], anchor.forward, 0.12), _looking(anchor.eye[None], away[-1], 0.12)
        eye = np.tile(anchor.eye, (_SAMPLES, 1))
        legs = (here, Leg(eye=eye, forward=away), there, Leg(eye=eye, forward=away[::-1]), here)
        return Track(legs=legs, anchor=anchor.camera, drawn=drawn | {"turn_deg": turn}, ramp=0.3)
    focus = _focus(survey, rng, anchor)
    if variant == "loop":
        size = rng.uniform(0.15, 0.35) * survey.radius * extent
        right = unit(np.cross(anchor.forward, survey.up)) * side
        level = unit(np.cross(survey.up, np.cross(anchor.forward, survey.up)))
        u = np.linspace(0, 2 * np.pi, _SAMPLES)[:, None]
        eye = survey.clamp(anchor.eye + size * (1.5 * np.sin(u) * right + (1 - np.cos(u)) * level))
        return _facing(eye, focus, anchor, drawn | {"length": 2 * np.pi * size})
    sweep = rng.uniform(30, 80) * extent * side
    eye = _around(survey, anchor, focus, np.linspace(0, sweep, _SAMPLES))
    out = Leg(eye=eye, forward=focus - eye)
    drawn["sweep_deg"] = sweep
    if variant == "out_and_back":
        back = Leg(eye=eye[::-1], forward=out.forward[::-1])
        return Track(legs=(out, back), anchor=anchor.camera, drawn=drawn, ramp=0.15)
    turn = rng.uniform(25, 45) * -side * extent
    at_end = turned(out.forward[-1], survey.up, np.linspace(0, turn, _SAMPLES))
    pivot = Leg(eye=np.tile(eye[-1], (_SAMPLES, 1)), forward=at_end, share=0.12)
    back = Leg(eye=eye[::-1], forward=turned(out.forward[::-1], survey.up, np.full(_SAMPLES, turn)))
    return Track(legs=(out, pivot, back), anchor=anchor.camera, drawn=drawn | {"turn_deg": turn}, ramp=0.15)


def in_place(survey: Survey, rng: Generator, extent: float) -> Track:
    """Turning on the spot: a pan to the left or right, or a look around that returns, never rolling."""
    anchor = _anchor(survey, rng)
    pan = bool(rng.random() < 0.5)
    u = np.linspace(0, 1, _SAMPLES)
    sign = _side(rng)
    eye = np.tile(anchor.eye, (_SAMPLES, 1))
    if pan:
        sweep = sign * rng.uniform(60, 360) * extent
        leg = Leg(eye=eye, forward=turned(anchor.forward, survey.up, sweep * (u - 0.5)))
        drawn: dict[str, Parameter] = {"variant": "pan", "sweep_deg": sweep}
    else:
        wide, tall = rng.uniform(30, 75) * extent, rng.uniform(5, 20) * extent
        phase = 2 * np.pi * eased(u, 0.15)
        yaw, pitch = sign * wide * np.sin(phase), tall * np.sin(2 * phase)
        leg = Leg(eye=eye, forward=turned(anchor.forward, survey.up, yaw, pitch), in_time=True)
        drawn = {"variant": "look_around", "yaw_deg": wide, "pitch_deg": tall}
    return Track(legs=(leg,), anchor=anchor.camera, drawn=drawn, ramp=0.15)


FAMILIES: dict[str, Family] = {
    f.__name__: f
    for f in (
        near_training,
        orbit,
        spiral,
        dolly,
        fly_through,
        random_walk,
        crane,
        compound,
        revisit,
        in_place,
    )
}


# ---- parts -----------------------------------------------------------------------------------------------------------


def _side(rng: Generator) -> float:
    return float(rng.choice([-1, 1]))


def _anchor(survey: Survey, rng: Generator) -> _Anchor:
    camera = int(rng.choice(survey.usable))
    eye, forward = survey.world_from_cam[camera, :3, 3], survey.world_from_cam[camera, :3, 2]
    depth = survey.depth_ahead(camera)
    if survey.forward_facing:
        forward = survey.scene_centre - eye
        depth = float(np.linalg.norm(forward))
    return _Anchor(camera, eye, unit(forward), depth)


def _focus(survey: Survey, rng: Generator, anchor: _Anchor) -> NDArray[np.float64]:
    """What a path turns around: the scene's centre in forward-facing scenes, else the point where the cameras' axes
    meet if it is in view, else a point on the anchor's view ray before the surface."""
    share = rng.uniform(0.4, 0.9)
    if survey.forward_facing:
        return survey.scene_centre
    if survey.focus is not None and unit(survey.focus - anchor.eye) @ anchor.forward > 0.5:
        return survey.focus
    return anchor.eye + share * anchor.depth * anchor.forward


def _headroom(survey: Survey, anchor: _Anchor, most: float) -> float:
    """The longer of the ways up (positive) and down (negative) that the heights allow, at most `most`."""
    low, high = survey.height_limits
    at = float(survey.height(anchor.eye))
    up, down = min(high - at, most), min(at - low, most)
    return 0.95 * (up if up >= down else -down)


def _around(
    survey: Survey,
    anchor: _Anchor,
    focus: NDArray,
    azimuth_deg: NDArray,
    *,
    scale: NDArray | float = 1.0,
    rise: NDArray | float = 0.0,
) -> NDArray[np.float64]:
    """The anchor's place turned about the vertical through the focus, [M, 3], bent into the captured zone.

    scale: [M] of the horizontal distance; rise: [M] added to the height.
    """
    offset = anchor.eye - focus
    upward = (offset @ survey.up) * survey.up
    level = Rotation.from_rotvec(np.radians(azimuth_deg)[:, None] * survey.up).apply(offset - upward)
    eye = focus + upward + np.reshape(scale, (-1, 1)) * level + np.reshape(rise, (-1, 1)) * survey.up
    return survey.clamp(eye)


def _facing(eye: NDArray, focus: NDArray, anchor: _Anchor, drawn: dict[str, Parameter], ramp: float = 0.08) -> Track:
    where = {f"focus_{axis}": float(v) for axis, v in zip("xyz", focus, strict=True)}
    return Track(legs=(Leg(eye=eye, forward=focus - eye),), anchor=anchor.camera, drawn=drawn | where, ramp=ramp)


def _looking(eye: NDArray, forward: NDArray, share: float | None = None) -> Leg:
    return Leg(eye=eye, forward=np.broadcast_to(forward, eye.shape), share=share)


def _evenly(way: NDArray, count: int) -> NDArray[np.float64]:
    """`count` points evenly spaced along a polyline [K, 3]."""
    s = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
    t = np.linspace(0, s[-1], count)
    return np.stack([np.interp(t, s, w) for w in way.T], 1)


def _until_it_turns_back(way: NDArray, reach: float) -> NDArray[np.float64]:
    """The way [M, 3] up to the first place where the next `reach` of it leads back along the last."""
    step = max(np.linalg.norm(np.diff(way, axis=0), axis=1).mean(), 1e-12)
    n = max(int(reach / step), 1)
    if 2 * n >= len(way):
        return way
    last, following = unit(way[n:-n] - way[: -2 * n] + 1e-12), unit(way[2 * n :] - way[n:-n] + 1e-12)
    back = (last * following).sum(1) < -0.3
    return _evenly(way[: n + int(back.argmax()) + 1], len(way)) if back.any() else way


def _rounded(survey: Survey, way: NDArray) -> NDArray[np.float64]:
    """The way [M, 3] smoothed as far as it stays free: by a quarter of a radius, or by less."""
    step = max(np.linalg.norm(np.diff(way, axis=0), axis=1).mean(), 1e-12)
    for blur in (0.25, 0.18, 0.12, 0.08, 0.05):
        round_ = _blurred(way, blur * survey.radius / step)
        if (survey.room(round_) > 0).all():
            break
    return round_


def _blurred(way: NDArray, sigma: float) -> NDArray[np.float64]:
    """The way [M, 3] under a Gaussian of `sigma` samples; its ends stay, for it is reflected through them."""
    pad = min(int(4 * sigma) + 1, len(way) - 1)
    long = np.concatenate([2 * way[0] - way[pad:0:-1], way, 2 * way[-1] - way[-2 : -pad - 2 : -1]])
    return gaussian_filter1d(long, sigma, axis=0, mode="nearest")[pad : len(long) - pad]


def _ahead(survey: Survey, way: NDArray, look_ahead: float) -> NDArray[np.float64]:
    """Where a camera on the way [M, 3] looks: to the place a little further on, less up and down than it goes."""
    step = max(np.linalg.norm(np.diff(way, axis=0), axis=1).mean(), 1e-12)
    skip = max(int(look_ahead / step), 1)
    end = unit(way[-1] - way[max(len(way) - 1 - skip, 0)] + 1e-12)
    longer = np.concatenate([way, way[-1] + np.arange(1, skip + 1)[:, None] * step * end])
    forward = unit(longer[skip:] - way + 1e-12)
    forward = forward - 0.5 * (forward @ survey.up)[:, None] * survey.up
    forward = unit(gaussian_filter1d(forward, skip / 2, axis=0, mode="nearest") + 1e-12)
    return _leashed(survey, way, forward)


def _leashed(survey: Survey, eye: NDArray, forward: NDArray) -> NDArray[np.float64]:
    """Look directions [M, 3]: forward, drawn towards what the training cameras around eye [M, 3] look at.

    Where these agree the view stays within 40 degrees of theirs, and where they look in all directions it is free:
    level directions are added, the cameras' by how much they agree (0 .. 1) and ours by sin 40 degrees. A camera that
    goes against the views around it thus backs away. In forward-facing scenes all look at the scene's centre.
    """
    if survey.forward_facing:
        return survey.scene_centre - eye
    local, up = survey.local_view(eye), survey.up
    agreement = np.linalg.norm(local, axis=1, keepdims=True)
    ours = np.sin(np.radians(_LEASH_DEG))
    rise = [np.arcsin(np.clip(v @ up, -1, 1))[:, None] for v in (unit(local + 1e-12), unit(forward))]
    elevation = (agreement * rise[0] + ours * rise[1]) / (agreement + ours)
    local_level, our_level = (v - (v @ up)[:, None] * up for v in (local, unit(forward)))
    level = unit(agreement * unit(local_level + 1e-12) + ours * unit(our_level + 1e-12) + 1e-12)
    return np.cos(elevation) * level + np.sin(elevation) * up


def _inward(survey: Survey, point: NDArray) -> NDArray[np.float64]:
    """The unit direction in which the room around a point [3] grows fastest."""
    h = 3 * survey.cell
    probes = np.concatenate([point + h * np.eye(3), point - h * np.eye(3)])
    room = np.maximum(survey.room(probes), -survey.radius)
    return unit(room[:3] - room[3:] + 1e-12)
