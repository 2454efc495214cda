"""A furnished room of Gaussian splats with the cameras that could have captured it: a scene made by code from one seed.

The splats lie flat on the faces of `room.Room`, coloured by its textures. World in metres, z up; cameras are OpenCV's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..geometry import quaternion_from_rotation
from .gaussians import SH0, Gaussians
from .room import Face, Room, look_at
from .scene import write_scene

SCENE, CAMERAS = "room.ply", "cameras.json"
_OVERLAP = 0.6  # standard deviation of a splat in distances to the next


def splat_room(num_splats: int = 40_000, *, seed: int = 0, sheen: float = 0.03) -> Gaussians:
    """About `num_splats` Gaussians, in random order, as training leaves them.

    Args:
        sheen: standard deviation of the coefficients of degree 1, which make colours depend on the view.
    """
    rng = np.random.default_rng(seed)
    faces = Room(seed).faces
    area = sum(float(np.linalg.norm(np.cross(face.right, face.down))) for face in faces)
    spacing = np.sqrt(area / num_splats)
    parts = [_on_face(face, spacing, rng) for face in faces]
    means, rotations, colours = (np.concatenate(part) for part in zip(*parts, strict=True))
    n = len(means)
    sh = sheen * rng.standard_normal((n, 4, 3))
    sh[:, 0] = (colours - 0.5) / SH0
    fields = {
        "means": means,
        "scales": spacing * _OVERLAP * np.exp(0.15 * rng.standard_normal((n, 3))) * [1, 1, 0.1],
        "quaternions": quaternion_from_rotation(rotations),
        "opacities": rng.uniform(0.8, 0.99, n),
        "sh": sh,
    }
    order = rng.permutation(n)
    return Gaussians(**{name: values[order].astype(np.float32) for name, values in fields.items()})


def _on_face(face: Face, spacing: float, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
    """Places [N, 3], rotations [N, 3, 3] and colours [N, 3] in 0 .. 1 of splats on a jittered grid."""
    width, height = (float(np.linalg.norm(edge)) for edge in (face.right, face.down))
    columns, rows = (max(round(side / spacing), 1) for side in (width, height))
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    at = (grid + rng.uniform(0.2, 0.8, grid.shape)) / [columns, rows]
    means = face.corner + at[:, :1] * face.right + at[:, 1:] * face.down
    right, down = face.right / width, face.down / height
    turn = rng.uniform(0, np.pi, len(at))[:, None]
    first, second = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
    rotations = np.stack([first, second, np.cross(first, second)], -1)
    texels = [spacing * level.shape[1] / width for level in face.pyramid]  # between two splats
    texture = face.pyramid[int(np.abs(np.log(texels)).argmin())]
    row, column = (at[:, ::-1] * texture.shape[:2]).astype(int).T
    return means, rotations, texture[row, column] / 255


def ring_cameras(count: int = 72, *, width: int = 1280, height: int = 704) -> tuple[NDArray, NDArray]:
    """The capture: two thirds of the cameras walk round the table and look at it, the others look out at the walls.

    Returns:
        world_from_cam [count, 4, 4] in metres and intrinsics [count, 4] in pixels of width x height.
    """
    inward = 2 * count // 3
    a, b = (np.linspace(0, 2 * np.pi, n, endpoint=False) for n in (inward, count - inward))
    around = np.stack([3.0 + 1.75 * np.cos(a), 2.5 + 1.5 * np.sin(a), 1.5 + 0.2 * np.sin(3 * a)], 1)
    table = np.array([3.0, 2.9, 0.9])
    middle = np.stack([3.0 + 1.0 * np.cos(b), 2.4 + 0.9 * np.sin(b), 1.5 + 0.15 * np.cos(3 * b)], 1)
    outward = middle + np.stack([np.cos(b), np.sin(b), np.full_like(b, -0.2)], 1)
    eye = np.concatenate([around, middle])
    target = np.concatenate([np.tile(table, (inward, 1)), outward])
    focal = width / 2 / np.tan(np.radians(70) / 2)
    intrinsics = np.tile([focal, focal, (width - 1) / 2, (height - 1) / 2], (count, 1))
    return look_at(eye, target), intrinsics


def write_room(folder: Path, num_splats: int = 40_000, *, seed: int = 0) -> Path:
    """Write the scene and its cameras, as the original training of 3D Gaussians leaves them; the scene's path."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = 1280, 704
    poses, intrinsics = ring_cameras(width=width, height=height)
    entries = [
        {
            "id": i,
            "img_name": f"{i:05d}",
            "width": width,
            "height": height,
            "position": pose[:3, 3].tolist(),
            "rotation": pose[:3, :3].tolist(),
            "fx": k[0],
            "fy": k[1],
        }
        for i, (pose, k) in enumerate(zip(poses, intrinsics, strict=True))
    ]
    (folder / CAMERAS).write_text(json.dumps(entries), encoding="utf-8")
    write_scene(splat_room(num_splats, seed=seed), folder / SCENE)
    return folder / SCENE
