"""A furnished room made of textured rectangles, drawn along a known camera path: footage with exact truth.

Each rectangle reaches the picture through its own homography, with a depth test per pixel, trilinear texture lookup
and 2 x 2 samples a pixel, so a feature lies where the pinhole equations put it to a few hundredths of a pixel.
Textures are procedural and follow from one seed. The world is in metres, x and y along the walls, z up;
cameras are OpenCV's (x right, y down, z forward), pixel centres at integer coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import pose, rotation_from_vector, undistort

SIZE_M = (6.0, 5.0, 2.8)  # the room's extent along x, y, z
PATH_KINDS = ("orbit_zoom", "walk", "loop", "pan", "static", "zoom_only", "dolly_zoom", "forward", "planar")
_TEXELS_PER_M = 320
_LEVELS = 7  # of each texture's pyramid
_SAMPLES = 2  # per pixel and axis
_NEAR_M = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """A textured rectangle, seen from the side where its texture's columns run right and its rows run down."""

    corner: NDArray[np.float64]  # [3] metres, where the texture begins
    right: NDArray[np.float64]  # [3] metres, the whole edge along the texture's columns
    down: NDArray[np.float64]  # [3] metres, the whole edge along its rows
    pyramid: tuple[NDArray[np.uint8], ...]  # [h, w, 3] RGB, each level half the size of the one before

    def moved(self, world_from_face: NDArray) -> Face:
        """This face carried by a rigid motion [4, 4]."""
        r, t = world_from_face[:3, :3], world_from_face[:3, 3]
        return Face(corner=r @ self.corner + t, right=r @ self.right, down=r @ self.down, pyramid=self.pyramid)


class Room:
    """Four walls hung with pictures, floor, ceiling and furniture that stands away from the wall y = 0.

    Attributes:
        faces: every rectangle of the scene, world coordinates.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        x, y, z = SIZE_M
        walls = [
            ((0, y, z), (x, 0, 0), (0, 0, -z)),
            ((x, y, z), (0, -y, 0), (0, 0, -z)),
            ((x, 0, z), (-x, 0, 0), (0, 0, -z)),
            ((0, 0, z), (0, y, 0), (0, 0, -z)),
        ]
        faces = [_face(rng, *wall, paint=_wallpaper) for wall in walls]
        faces.append(_face(rng, (0, y, 0), (x, 0, 0), (0, -y, 0), paint=_planks))
        faces.append(_face(rng, (0, 0, z), (x, 0, 0), (0, y, 0), paint=_plaster))
        for centre, size, yaw_deg in _FURNITURE:
            yaw = pose(rotation_from_vector(np.array([0, 0, np.radians(yaw_deg)])), np.array(centre, float))
            faces += [face.moved(yaw) for face in box_faces(rng, size)]
        self.faces = tuple(faces)


_FURNITURE = [  # centre, size in metres, yaw in degrees
    ((3.0, 3.0, 0.74), (1.5, 0.8, 0.06), 12),  # a table: top and legs
    ((2.45, 2.55, 0.355), (0.08, 0.08, 0.71), 12),
    ((3.72, 2.82, 0.355), (0.08, 0.08, 0.71), 12),
    ((2.28, 3.18, 0.355), (0.08, 0.08, 0.71), 12),
    ((3.55, 3.45, 0.355), (0.08, 0.08, 0.71), 12),
    ((2.7, 3.0, 0.89), (0.3, 0.22, 0.24), -20),  # on it: boxes
    ((3.25, 3.1, 0.84), (0.22, 0.3, 0.14), 35),
    ((3.3, 3.12, 0.97), (0.14, 0.14, 0.12), 60),
    ((1.0, 4.72, 0.95), (1.3, 0.4, 1.9), 0),  # a bookcase
    ((4.6, 4.55, 0.4), (1.8, 0.7, 0.8), 0),  # a chest
    ((4.3, 4.55, 1.0), (0.4, 0.35, 0.4), 25),
    ((5.55, 3.1, 0.45), (0.7, 1.1, 0.9), -4),  # a cabinet
    ((0.55, 2.9, 0.3), (0.7, 0.6, 0.6), 15),  # crates
    ((0.6, 2.9, 0.75), (0.4, 0.4, 0.3), 50),
    ((1.7, 2.2, 0.22), (0.45, 0.45, 0.44), 33),  # stools
    ((4.5, 2.3, 0.22), (0.45, 0.45, 0.44), -18),
]


def camera_path(
    kind: str,
    num_frames: int,
    *,
    width: int = 640,
    height: int = 480,
    fov_x_deg: float = 65.0,
    zoom: float = 1.6,
    extent: float = 1.0,
    shake: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A camera's true path through the room.

    Args:
        kind: orbit_zoom (an arc past the furniture while the focal length goes 1 - `zoom` - 1), walk (the same arc,
            fixed focal), loop (a full circle that looks outwards and closes), pan (pure rotation), static,
            zoom_only (static, 1 - `zoom`), dolly_zoom (backwards while zooming in, so that the table keeps its size),
            forward (along the optical axis), planar (sideways before the bare wall y = 0).
        fov_x_deg: horizontal field of view at zoom 1.
        extent: share of the path that is travelled, so that a short clip need not move fast.
        shake: amplitude of the hand's tremor in walk, orbit_zoom, loop and planar; 1 is about 0.4 degrees and 8 mm.

    Returns:
        world_from_cam [T, 4, 4] (metres) and intrinsics [T, 4] (fx, fy, cx, cy in pixels).
    """
    if kind not in PATH_KINDS:
        raise ValueError(f"path kind {kind!r} is none of {', '.join(PATH_KINDS)}")
    s = np.linspace(0.0, 1.0, num_frames) * extent if num_frames > 1 else np.zeros(num_frames)  # [T]
    one, bump = np.ones_like(s), np.sin(np.pi * s) ** 2
    scale = one
    if kind in ("orbit_zoom", "walk"):
        angle = np.radians(-140 + 100 * s)
        eye = np.stack([3.0 + 2.1 * np.cos(angle), 3.0 + 2.1 * np.sin(angle), 1.45 + 0.2 * np.sin(2 * np.pi * s)], 1)
        target = np.stack([2.8 + 0.5 * s, 3.3 * one, 0.95 + 0.1 * bump], 1)
        scale = 1 + (zoom - 1) * bump if kind == "orbit_zoom" else one
    elif kind == "loop":
        angle = 2 * np.pi * s - np.pi / 2
        ring = np.stack([np.cos(angle), np.sin(angle), 0 * s], 1)
        eye = [3.0, 1.6, 1.4] + 0.55 * ring
        target = eye + ring - [0, 0, 0.12]
    elif kind == "pan":
        angle = np.radians(130 - 80 * s)
        eye = np.tile([3.0, 1.2, 1.5], (num_frames, 1))
        target = eye + np.stack([np.cos(angle), np.sin(angle), -0.15 + 0.05 * bump], 1)
    elif kind == "forward":
        eye = np.stack([2.0 * one, 0.7 + 1.6 * s, 1.5 * one], 1)
        target = np.tile([2.0, 5.0, 1.5], (num_frames, 1))
    elif kind == "dolly_zoom":
        eye = np.stack([2.9 * one, 1.7 - 1.2 * s, 1.35 * one], 1)
        target = np.tile([2.9, 5.0, 1.35], (num_frames, 1))
        scale = (3.2 - eye[:, 1]) / (3.2 - 1.7)
    elif kind == "planar":
        eye = np.stack([4.6 - 3.2 * s, 1.6 - 0.25 * bump, 1.4 + 0.1 * np.sin(2 * np.pi * s)], 1)
        target = eye - [0, 1, 0] + np.stack([0.1 * np.sin(2 * np.pi * s), 0 * s, 0 * s], 1)
    else:
        eye, target = np.tile([1.6, 1.3, 1.5], (num_frames, 1)), np.tile([3.1, 3.4, 0.9], (num_frames, 1))
        scale = 1 + (zoom - 1) * s if kind == "zoom_only" else one
    world_from_cam = look_at(eye, target)
    if shake and kind in ("walk", "orbit_zoom", "loop", "planar"):
        world_from_cam = world_from_cam @ _tremor(num_frames, shake)
    f = width / 2 / np.tan(np.radians(fov_x_deg) / 2) * scale
    centre_x, centre_y = (width - 1) / 2 * one, (height - 1) / 2 * one
    return world_from_cam, np.stack([f, f, centre_x, centre_y], 1)


def look_at(eye: NDArray, target: NDArray) -> NDArray[np.float64]:
    """Upright cameras world_from_cam [T, 4, 4] at eye [T, 3] that look at target [T, 3]; z is up."""
    forward = target - eye
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return pose(np.stack([right, np.cross(forward, right), forward], -1), np.asarray(eye, float))


def render_clip(
    room: Room,
    world_from_cam: NDArray,
    intrinsics: NDArray,
    width: int,
    height: int,
    *,
    moving_share: float = 0.0,
    distortion: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> Iterator[NDArray[np.uint8]]:
    """The frames [H, W, 3] RGB of a path, one at a time.

    Args:
        moving_share: share of the picture, 0 to 0.9, covered by a box that wanders about on its own.
        distortion: k1, k2 of OpenCV's radial model.
        seed: of the moving box's texture and path.
    """
    box = box_faces(np.random.default_rng([seed, 7]), (1.0, 1.0, 1.0)) if moving_share else ()
    for i, (camera, k) in enumerate(zip(world_from_cam, intrinsics, strict=True)):
        extra = _wandering_box(box, i, camera, k, width, height, moving_share, seed) if box else ()
        yield render_room(room, camera, k, width, height, distortion=distortion, extra=extra)


def render_room(
    room: Room,
    world_from_cam: NDArray,
    intrinsics: NDArray,
    width: int,
    height: int,
    *,
    distortion: tuple[float, float] = (0.0, 0.0),
    extra: tuple[Face, ...] = (),
) -> NDArray[np.uint8]:
    """One picture [H, W, 3] RGB of the room.

    Args:
        world_from_cam: [4, 4], inside the room.
        intrinsics: [4] fx, fy, cx, cy in pixels of width x height.
        distortion: k1, k2 of OpenCV's radial model.
        extra: more faces to draw, world coordinates.
    """
    n = _SAMPLES
    fx, fy, cx, cy = (float(v) for v in intrinsics)
    # a fine grid of samples: sample i of a pixel row lies at (i + 0.5) / n - 0.5 pixels
    fine = np.array([[fx * n, 0, (cx + 0.5) * n - 0.5], [0, fy * n, (cy + 0.5) * n - 0.5], [0, 0, 1]])
    if not any(distortion):
        picture = _rasterise((*room.faces, *extra), world_from_cam, fine, width * n, height * n)
    else:
        grid = np.stack(np.meshgrid(np.arange(width * n), np.arange(height * n)), -1).astype(float)
        xy = undistort((grid - fine[:2, 2]) / fine[[0, 1], [0, 1]], *distortion)
        source = xy * fine[[0, 1], [0, 1]] + fine[:2, 2]
        low = np.floor(source.min((0, 1))) - 2
        wide, high = (np.ceil(source.max((0, 1))) + 3 - low).astype(int)
        shifted = fine.copy()
        shifted[:2, 2] -= low
        picture = _rasterise((*room.faces, *extra), world_from_cam, shifted, int(wide), int(high))
        picture = cv2.remap(picture, (source - low).astype(np.float32), None, cv2.INTER_LINEAR)  # type: ignore[arg-type]
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def room_depth(
    room: Room, world_from_cam: NDArray, intrinsics: NDArray, width: int, height: int
) -> NDArray[np.float32]:
    """Depth [H, W] along the optical axis, metres, of what `render_room` draws without distortion."""
    fx, fy, cx, cy = (float(v) for v in intrinsics)
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    with np.errstate(divide="ignore"):
        return np.float32(1) / _visible(room.faces, world_from_cam, k, width, height)[0]


def box_faces(rng: np.random.Generator, size: tuple[float, float, float]) -> tuple[Face, ...]:
    """The six outer faces of a box about the origin, each with a texture of its own."""
    x, y, z = np.array(size) / 2
    w, d, h = size
    sides = [
        ((-x, -y, z), (w, 0, 0), (0, 0, -h)),
        ((x, y, z), (-w, 0, 0), (0, 0, -h)),
        ((-x, y, z), (0, -d, 0), (0, 0, -h)),
        ((x, -y, z), (0, d, 0), (0, 0, -h)),
        ((-x, y, z), (w, 0, 0), (0, -d, 0)),
        ((-x, -y, -z), (w, 0, 0), (0, d, 0)),
    ]
    base = 0.45 * rng.uniform(40, 220, 3) + 0.55 * rng.uniform(90, 190)
    return tuple(
        _face(rng, *side, paint=lambda r, hh, ww: _marks(r, _grain(r, hh, ww, base, 26), 26)) for side in sides
    )


def _rasterise(
    faces: tuple[Face, ...], world_from_cam: NDArray, k: NDArray, width: int, height: int
) -> NDArray[np.uint8]:
    """The faces through a pinhole camera, one sample per pixel of width x height, colours by trilinear lookup."""
    _, owner, drawn = _visible(faces, world_from_cam, k, width, height)
    picture = np.zeros((height, width, 3), np.uint8)
    for index, (face, (x0, y0, x1, y1), face_from_pixel, near) in enumerate(drawn):
        mask = (owner[y0:y1, x0:x1] == index).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        if w and h:
            mask, near = mask[y : y + h, x : x + w], near[y : y + h, x : x + w]
            shift = np.array([[1, 0, x0 + x], [0, 1, y0 + y], [0, 0, 1.0]])
            colour = _textured(face, face_from_pixel @ shift, near, mask)
            cv2.copyTo(colour, mask, picture[y0 + y : y0 + y + h, x0 + x : x0 + x + w])
    return picture


def _visible(
    faces: tuple[Face, ...], world_from_cam: NDArray, k: NDArray, width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[tuple[Face, tuple[int, int, int, int], NDArray, NDArray]]]:
    """A depth test: inverse depth [H, W], 0 for none; which drawn face each pixel [H, W] shows; and these faces, each
    with its window, the homography from pixels to it and its inverse depth there."""
    r, centre = world_from_cam[:3, :3], world_from_cam[:3, 3]
    inverse_depth = np.zeros((height, width), np.float32)
    owner = np.full((height, width), 255, np.uint8)
    drawn: list[tuple[Face, tuple[int, int, int, int], NDArray, NDArray]] = []
    for face in faces:
        if np.cross(face.right, face.down) @ (centre - face.corner) >= 0:
            continue  # seen from behind
        edges = np.stack([face.right, face.down, face.corner - centre], 1)  # [3, 3]
        window = _window(r.T @ edges, k, width, height)
        if window is None:
            continue
        x0, y0, x1, y1 = window
        face_from_pixel = np.linalg.inv(k @ r.T @ edges)  # (a, b, 1) / depth = this (u, v, 1), a and b in 0..1
        u, v = np.arange(x0, x1, dtype=np.float64), np.arange(y0, y1, dtype=np.float64)[:, None]
        a, b, near = (
            (row[0] * u + (row[1] * v + row[2])).astype(np.float32) for row in face_from_pixel
        )  # affine in the pixel, [h, w]
        front = inverse_depth[y0:y1, x0:x1]
        slack = near * np.float32(1e-6)  # neighbours share their edges: no cracks from rounding
        mask = (near > front) & (a >= -slack) & (b >= -slack) & (a <= near + slack) & (b <= near + slack)
        np.copyto(front, near, where=mask)
        np.copyto(owner[y0:y1, x0:x1], np.uint8(len(drawn)), where=mask)
        drawn.append((face, window, face_from_pixel, near))
    return inverse_depth, owner, drawn


def _window(cam_from_face: NDArray, k: NDArray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The pixel box x0, y0, x1, y1 that holds what lies before the camera of the unit square; None if nothing does."""
    corners = (cam_from_face @ np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1.0]])).T  # [4, 3] camera frame
    kept = [p for p in corners if p[2] >= _NEAR_M]
    for p, q in zip(corners, np.roll(corners, -1, 0), strict=True):
        if (p[2] - _NEAR_M) * (q[2] - _NEAR_M) < 0:
            kept.append(p + (q - p) * (_NEAR_M - p[2]) / (q[2] - p[2]))
    if not kept:
        return None
    uv = np.array(kept) @ k.T
    uv = uv[:, :2] / uv[:, 2:]
    (x0, y0), (x1, y1) = np.floor(uv.min(0)), np.ceil(uv.max(0)) + 1
    x0, y0, x1, y1 = (int(np.clip(e, 0, m)) for e, m in ((x0, width), (y0, height), (x1, width), (y1, height)))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _textured(face: Face, face_from_pixel: NDArray, near: NDArray, mask: NDArray) -> NDArray[np.uint8]:
    """The face's colours [h, w, 3] where mask is 1, blended between the two pyramid levels that fit each pixel."""
    h, w = near.shape
    rows, cols = face.pyramid[0].shape[:2]
    # texels per pixel = sqrt |d(texel) / d(pixel)|, whose determinant is det(H) / w^3 for the homography H
    determinant = abs(np.linalg.det(face_from_pixel)) * rows * cols
    farthest, nearest, _, _ = cv2.minMaxLoc(near, mask)  # inverse depths
    last = len(face.pyramid) - 1
    finest = int(np.clip(np.floor(0.5 * np.log2(determinant / nearest**3)), 0, last))
    coarsest = int(np.clip(np.ceil(0.5 * np.log2(determinant / farthest**3)), finest, last))

    def layer(level: int) -> NDArray:
        texture = face.pyramid[level]
        size = texture.shape[1], texture.shape[0]
        texel_from_face = np.array([[size[0], 0, -0.5], [0, size[1], -0.5], [0, 0, 1.0]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpPerspective(
            texture, texel_from_face @ face_from_pixel, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )

    colour = layer(finest)
    if coarsest > finest:
        log2_near = cv2.log(np.maximum(near, 1e-9)) * np.float32(1 / np.log(2))
        level_of = np.float32(0.5 * np.log2(determinant)) - np.float32(1.5) * log2_near  # [h, w]
        for level in range(finest + 1, coarsest + 1):
            weight = np.clip(level_of - (level - 1), 0, 1)
            colour = cv2.blendLinear(colour, layer(level), 1 - weight, weight)
    return np.asarray(colour, np.uint8)


def _wandering_box(
    box: tuple[Face, ...],
    frame: int,
    camera: NDArray,
    k: NDArray,
    width: int,
    height: int,
    share: float,
    seed: int,
) -> tuple[Face, ...]:
    """The unit box stretched and placed so that its near side fills about `share` of the picture, half a metre away."""
    depth, side = 0.5, np.sqrt(share)
    w, h = side * width * depth / k[0], side * height * depth / k[1]
    phase = np.random.default_rng([seed, 8]).uniform(0, 2 * np.pi, 5)
    swing = np.sin(phase + frame * np.array([0.11, 0.083, 0.05, 0.061, 0.043]))
    room = (1 - side) / 2
    across, along = swing[:2] * room * np.array([width / k[0], height / k[1]]) * depth
    turn = rotation_from_vector(np.radians([14, 10, 8]) * swing[2:])
    axes = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0.0]]).T  # box x, y, z are the camera's x, z, -y
    place = camera @ pose(turn @ axes, np.array([across, along, depth + 0.1]))
    stretch = np.array([w, 0.2, h])
    return tuple(
        Face(corner=f.corner * stretch, right=f.right * stretch, down=f.down * stretch, pyramid=f.pyramid).moved(place)
        for f in box
    )


def _tremor(num_frames: int, amplitude: float) -> NDArray[np.float64]:
    """Small smooth motions [T, 4, 4] of a hand, a function of the frame number alone."""
    t = np.arange(num_frames)[:, None]
    waves = np.sin(t * np.array([0.31, 0.23, 0.17, 0.27, 0.19, 0.37]) + np.array([0.3, 1.9, 4.1, 2.6, 5.0, 3.3]))
    return pose(
        rotation_from_vector(np.radians(0.4) * amplitude * waves[:, :3]),
        0.008 * amplitude * waves[:, 3:],
    )


# --- textures: RGB float pictures of h x w texels ---------------------------------------------------------------------


def _face(rng: np.random.Generator, corner, right, down, *, paint) -> Face:
    corner, right, down = (np.asarray(v, np.float64) for v in (corner, right, down))
    step = 2 ** (_LEVELS - 1)
    rows, cols = (max(step, round(float(np.linalg.norm(edge)) * _TEXELS_PER_M / step) * step) for edge in (down, right))
    pyramid = [np.clip(paint(rng, rows, cols), 4, 255).astype(np.uint8)]
    while len(pyramid) < _LEVELS:
        h, w = pyramid[-1].shape[:2]
        pyramid.append(cv2.resize(pyramid[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA))
    return Face(corner=corner, right=right, down=down, pyramid=tuple(pyramid))


def _grain(rng: np.random.Generator, h: int, w: int, base: NDArray, strength: float) -> NDArray[np.float32]:
    """A colour with noise of about equal power in every octave from 4 texels up."""
    out = np.zeros((h, w), np.float32)
    cell = 4
    while cell < max(h, w):
        noise = rng.normal(size=(h // cell + 2, w // cell + 2)).astype(np.float32)
        big = cv2.resize(noise, (noise.shape[1] * cell, noise.shape[0] * cell), interpolation=cv2.INTER_CUBIC)
        out += big[:h, :w]
        cell *= 2
    return np.asarray(base + strength * 0.6 * out[..., None], np.float32)


def _marks(rng: np.random.Generator, picture: NDArray, per_m2: float) -> NDArray:
    """Scattered spots, bars and triangles, 1 to 10 cm wide, in colours of their own."""
    h, w = picture.shape[:2]
    picture = np.ascontiguousarray(picture)
    for _ in range(int(per_m2 * h * w / _TEXELS_PER_M**2) + 3):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        size = _TEXELS_PER_M * 0.1 * rng.uniform(0.12, 1.0) ** 2 + 2
        colour = tuple(float(c) for c in 0.5 * rng.uniform(0, 255, 3) + 0.5 * rng.uniform(0, 255))
        angle = np.linspace(0, 2 * np.pi, int(rng.integers(3, 7)), endpoint=False) + rng.uniform(0, 6)
        points = np.stack([x + size * np.cos(angle), y + size * rng.uniform(0.4, 1) * np.sin(angle)], 1)
        cv2.fillPoly(picture, [np.round(points * 16).astype(np.int32)], colour, cv2.LINE_8, 4)
    return picture


def _wallpaper(rng: np.random.Generator, h: int, w: int) -> NDArray:
    """Stained plaster with framed pictures, no two alike."""
    picture = _marks(rng, _grain(rng, h, w, rng.uniform(120, 210, 3), 13), 8)
    m = _TEXELS_PER_M
    for left in np.arange(0.25, w / m - 0.6, 1.0):
        pw, ph = rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8)
        x, y = int((left + rng.uniform(0, 0.15)) * m), int(rng.uniform(0.35, 0.95) * m)
        x1, y1 = min(x + int(pw * m), w - 8), min(y + int(ph * m), h - 8)
        frame = tuple(float(c) for c in rng.uniform(20, 110, 3))
        cv2.rectangle(picture, (x, y), (x1, y1), frame, -1)
        inner = _grain(rng, y1 - y - 24, x1 - x - 24, rng.uniform(60, 220, 3), 30)
        picture[y + 12 : y1 - 12, x + 12 : x1 - 12] = _marks(rng, inner, 160)
    return picture


def _planks(rng: np.random.Generator, h: int, w: int) -> NDArray:
    """Floor boards 16 cm wide, knots, and a rug in the middle."""
    picture = _grain(rng, h, w, np.array([150, 105, 70]), 12)
    board = int(0.16 * _TEXELS_PER_M)
    for y in range(0, h, board):
        picture[y : y + board] += rng.uniform(-28, 28)
        picture[y : y + 3] -= 55
        for x in rng.integers(0, w, w // 400 + 1):
            picture[y : y + board, x : x + 4] -= 30
    picture = _marks(rng, picture, 6)
    y0, y1, x0, x1 = int(0.3 * h), int(0.8 * h), int(0.25 * w), int(0.75 * w)
    picture[y0:y1, x0:x1] = _marks(rng, _grain(rng, y1 - y0, x1 - x0, np.array([150, 60, 55]), 20), 60)
    return picture


def _plaster(rng: np.random.Generator, h: int, w: int) -> NDArray:
    """A ceiling: pale, with blotches and a few marks."""
    return _marks(rng, _grain(rng, h, w, np.array([215, 212, 205]), 9), 5)
