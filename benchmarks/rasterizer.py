"""Milliseconds a picture of the rasterisers of 3D Gaussians, in a furnished room of 50 thousand to a million splats.

    python benchmarks/rasterizer.py
    python benchmarks/rasterizer.py --splats 50000 --frames 6

Scene and camera are those of `longtake.render.room`: splats lie on its faces, coloured by their textures, about 46 of
them over each other where a pixel is finished; a handheld walk looks at the furniture. Every row draws whole pictures,
from prepared scene to rgb, alpha, expected and median depth: projection, colour from spherical harmonics, sorting,
binning, blending. cpu ms is processor time over all threads, which says more on a busy machine.

"torch tiles" is the peer: blending as PyTorch code has it, 16 x 16 pixels at a time, after the reference's projection.
It and the reference draw one small picture of the smallest scene, where all must draw the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from measure import RESULTS, machine, number, print_table, write_result
from numpy.typing import NDArray

from longtake.geometry import invert_pose, quaternion_from_rotation
from longtake.render import reference
from longtake.render.gaussians import SH0, Gaussians
from longtake.render.rasterize import CUTOFF, GSPLAT_1_5, STOP, Rasterizer, View
from longtake.render.room import Room, camera_path

SIZES = ((640, 352), (1280, 704))
GOAL_MS = {50_000: 70, 300_000: 130, 1_000_000: 220}  # at 1280 x 704, two cores, harmonics not counted
PUBLISHED = [  # by others, C++ with AVX2 on two cores, harmonics not counted: quoted, not measured here
    {"splats": n, "width": w, "height": h, "implementation": "quoted: C++ AVX2", "ms": ms}
    for (w, h), times in (((640, 352), (24, 55, 115)), ((1280, 704), (59, 108, 181)))
    for n, ms in zip(GOAL_MS, times, strict=True)
]


def room_splats(count: int, seed: int = 0) -> Gaussians:
    """Splats of degree 3, flat on the faces of the room, one sigma about the distance between them, in random order."""
    rng = np.random.default_rng(seed)
    faces = Room(seed).faces
    area = np.array([np.linalg.norm(np.cross(face.right, face.down)) for face in faces])
    spacing = np.sqrt(area.sum() / count)
    means, rotations, colours = [], [], []
    for face, n in zip(faces, rng.multinomial(count, area / area.sum()), strict=True):
        at = rng.random((n, 2))
        means.append(face.corner + at[:, :1] * face.right + at[:, 1:] * face.down)
        right, down = (edge / np.linalg.norm(edge) for edge in (face.right, face.down))
        turn = rng.uniform(0, np.pi, n)[:, None]
        first, second = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
        rotations.append(np.stack([first, second, np.cross(first, second)], -1))
        texture = face.pyramid[0]
        row, column = (at[:, ::-1] * texture.shape[:2]).astype(int).T
        colours.append(texture[row, column] / 255)
    sh = 0.05 * rng.standard_normal((count, 16, 3), np.float32)
    sh[:, 0] = (np.concatenate(colours) - 0.5) / SH0
    fields = {
        "means": np.concatenate(means),
        "scales": spacing * np.exp(0.4 * rng.standard_normal((count, 3))) * [1, 1, 0.2],
        "quaternions": quaternion_from_rotation(np.concatenate(rotations)),
        "opacities": rng.uniform(0.3, 0.99, count),
        "sh": sh,
    }
    order = rng.permutation(count)
    return Gaussians(**{name: a[order].astype(np.float32) for name, a in fields.items()})


def torch_tiles(splats: reference.Splats, view: View, tile: int = 16) -> NDArray[np.float32]:
    """rgb [H, W, 3] of sorted splats, one tile after another."""
    rgb = torch.zeros(view.height, view.width, 3)
    mean, conic, opacity, colour = map(torch.from_numpy, (splats.mean, splats.conic, splats.opacity, splats.colour))
    box = torch.from_numpy(splats.box)
    for top in range(0, view.height, tile):
        band = torch.nonzero((box[:, 2] < top + tile) & (box[:, 3] > top))[:, 0]
        for left in range(0, view.width, tile):
            i = band[(box[band, 0] < left + tile) & (box[band, 1] > left)]
            h, w = min(tile, view.height - top), min(tile, view.width - left)
            y, x = torch.meshgrid(torch.arange(h) + top + 0.5, torch.arange(w) + left + 0.5, indexing="ij")
            dx, dy = mean[i, 0] - x[..., None], mean[i, 1] - y[..., None]  # [h, w, K]
            a, b, c = conic[i].T
            sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
            alpha = (opacity[i] * torch.exp(-sigma)).clamp(max=GSPLAT_1_5.max_alpha)
            alpha = torch.where((sigma >= 0) & (alpha >= CUTOFF), alpha, 0)
            after = torch.cumprod(1 - alpha, -1)
            before = torch.cat([torch.ones(h, w, 1), after[..., :-1]], -1)
            rgb[top : top + h, left : left + w] = (alpha * before * (after > STOP)) @ colour[i]
    return rgb.numpy()


def timed(draw: Callable[[int], Any], frames: int) -> dict[str, float]:
    """Best and median wall time and least processor time of draw(0) .. draw(frames - 1), milliseconds."""
    wall, busy = [], []
    for i in range(frames):
        start, cpu = time.perf_counter(), time.process_time()
        draw(i)
        wall.append(1e3 * (time.perf_counter() - start))
        busy.append(1e3 * (time.process_time() - cpu))
    return {"ms": min(wall), "median_ms": float(np.median(wall)), "cpu_ms": min(busy), "frames": frames}


def measure(full: Gaussians, width: int, height: int, frames: int, *, peers: bool) -> list[dict[str, Any]]:
    """The cpu rasteriser on one scene at one size; with `peers` the slow ones too."""
    flat = replace(full, sh=full.sh[:, :1])
    poses, cameras = camera_path("walk", frames, width=width, height=height)
    rows: list[dict[str, Any]] = []

    def add(implementation: str, found: dict[str, Any]) -> None:
        size = {"splats": len(full), "visible": len(splats.depth), "width": width, "height": height}
        rows.append({**size, "implementation": implementation, **found})

    fx, fy, cx, cy = cameras[0]
    view = View(
        cam_from_world=invert_pose(poses[0]),
        fx=fx,
        fy=fy,
        cx=cx + 0.5,
        cy=cy + 0.5,
        width=width,
        height=height,
        near=GSPLAT_1_5.near,
        far=1e10,
        antialiased=False,
        background=np.zeros(3, np.float32),
    )
    splats = reference.project(flat, view, GSPLAT_1_5)
    pictures: dict[str, NDArray[np.float32]] = {}
    for gaussians, antialiased in ((full, False), (flat, True), (flat, False)):
        rasterizer = Rasterizer(gaussians, backend="cpu")

        def draw(i: int, rasterizer=rasterizer, antialiased=antialiased) -> NDArray[np.float32]:
            return rasterizer.draw(poses[i], cameras[i], width, height, antialiased=antialiased).rgb

        pictures["cpu"] = draw(0)  # memory is had, and the library compiled
        add(f"cpu, degree {gaussians.sh_degree}{', antialiased' * antialiased}", timed(draw, frames))
    if not peers:
        return rows

    def by_reference(_: int) -> None:
        pictures["reference"] = reference.ReferenceRasterizer(flat, GSPLAT_1_5).draw(view).rgb

    def by_torch(_: int) -> None:
        pictures["torch tiles"] = torch_tiles(reference.project(flat, view, GSPLAT_1_5), view)

    add("reference", timed(by_reference, 1))
    add("torch tiles", timed(by_torch, 1))
    for name, picture in pictures.items():
        error = np.abs(picture - pictures["reference"]).max(-1)
        if (error <= 1e-4).mean() < 0.998 or error.max() > 1e-2:
            raise SystemExit(f"{name} does not draw the picture that reference draws: {error.max()}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, nargs="+", default=list(GOAL_MS))
    parser.add_argument("--frames", type=int, default=24, help="pictures that the cpu rasteriser draws (24)")
    arguments = parser.parse_args()
    started, rows = machine(), []
    for count in arguments.splats:
        gaussians = room_splats(count)
        for width, height in SIZES:
            rows += measure(
                gaussians, width, height, arguments.frames, peers=(count, width) == (min(arguments.splats), SIZES[0][0])
            )
    head = ("implementation", "splats", "visible", "size", "best ms", "median ms", "cpu ms", "goal")
    table = []
    for row in [*rows, *PUBLISHED]:
        goal = GOAL_MS.get(row["splats"]) if (row["width"], row["implementation"][:3]) == (1280, "cpu") else None
        numbers = [number(row.get(name), 1) for name in ("ms", "median_ms", "cpu_ms")]
        size = f"{row['height']}x{row['width']}"
        table.append(
            (row["implementation"], str(row["splats"]), str(row.get("visible", "-")), size, *numbers, number(goal, 0))
        )
    print_table(head, table)
    print("load before and after:", started["load"], machine()["load"])
    write_result(RESULTS / "rasterizer.json", [*rows, *PUBLISHED], started | {"load_after": machine()["load"]})


if __name__ == "__main__":
    main()
