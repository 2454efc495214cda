"""longtake on clips that it rendered itself: exact poses, zooms and depth, for every kind of motion.

    python benchmarks/annotate_rendered.py [--motions walk,pan,...] [--splats N] [--frames N] [--out FILE.json]

A room of Gaussian splats is drawn along known paths and encoded as users' films are (H.264); `longtake annotate` then
sees the film alone, once with its defaults, and once with the exact depth given, in metres. What a motion should be
called stands beside what it is called. Errors of position are after the best similarity, as shares of the path's
length; with depth also the scale, which should be 1. A path of no length has no such share.
Drawn footage is cleaner than a camera's: no noise, no blur, no rolling shutter, nothing that moves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, annotate_and_score, machine, number, print_table, write_result
from numpy.typing import NDArray

from longtake.annotate.depth_clip import DepthClip, DepthWriter, finish_depth
from longtake.annotate.video import encode_rgb
from longtake.geometry import pose, rotation_from_vector
from longtake.render.rasterize import Rasterizer
from longtake.render.room import camera_path
from longtake.render.splat_room import splat_room

WIDTH, HEIGHT, FPS = 960, 528, 30
DEPTH_SHRINK = 3  # depth maps are so many times smaller than the film


@dataclass(frozen=True)
class Motion:
    kind: str  # of `room.camera_path`
    called: tuple[str, ...]  # the motion classes that are right
    zooms: bool = False
    shake: float = 1.0
    extent: float = 1.0
    roll_deg: float = 0.0  # turned so far about the optical axis by the end


MOTIONS = {
    "orbit": Motion("walk", ("general",), shake=0.0),
    "orbit, unsteady hand": Motion("walk", ("general",), shake=4.0),
    "orbit, slow (40 cm)": Motion("walk", ("general",), shake=0.5, extent=0.11),
    "orbit with zoom": Motion("orbit_zoom", ("general",), zooms=True),
    "full circle, looking out": Motion("loop", ("general",)),
    "dolly ahead": Motion("forward", ("general",)),
    "dolly zoom": Motion("dolly_zoom", ("general",), zooms=True),
    "sideways before a wall": Motion("planar", ("general", "planar")),
    "pan": Motion("pan", ("rotation",)),
    "roll": Motion("static", ("rotation",), roll_deg=40.0),
    "zoom": Motion("zoom_only", ("rotation", "static"), zooms=True),
    "still": Motion("static", ("static",)),
}


def film(motion: Motion, rasterizer: Rasterizer, frames: int, folder: Path) -> dict[str, NDArray]:
    """Draw and encode film.mp4 and depth.zip; returns the truth: c2w [N, 4, 4] in metres, K [N, 3, 3]."""
    size = {"width": WIDTH, "height": HEIGHT}
    cameras, k = camera_path(motion.kind, frames, **size, extent=motion.extent, shake=motion.shake)
    turn = np.radians(motion.roll_deg) * np.linspace(0, 1, frames)
    cameras = cameras @ pose(rotation_from_vector(np.stack([0 * turn, 0 * turn, turn], 1)), np.zeros((frames, 3)))

    with DepthWriter(folder / "depth.zip") as writer:

        def pictures() -> Iterator[NDArray[np.uint8]]:
            for i in range(frames):
                drawn = rasterizer.draw(cameras[i], k[i], WIDTH, HEIGHT)
                assert drawn.median_depth is not None
                middle = slice(DEPTH_SHRINK // 2, None, DEPTH_SHRINK)
                depth = drawn.median_depth[middle, middle]
                writer.add(i, depth, np.isfinite(depth))
                yield np.rint(255 * drawn.rgb.clip(0, 1)).astype(np.uint8)

        encode_rgb(folder / "film.mp4", pictures(), FPS)
    finish_depth(
        DepthClip(
            path=folder / "depth.zip",
            frame_index=np.arange(frames),
            width=WIDTH // DEPTH_SHRINK,
            height=HEIGHT // DEPTH_SHRINK,
            crop=(0, 0, WIDTH, HEIGHT),
            factor=np.ones(frames),
            world_from_cam=None,
            focal_px=None,
            metric=True,
            source="given",
            scale=None,
            relative_sigma=0.01,
        )
    )
    matrices = np.tile(np.eye(3), (frames, 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 0, 2], matrices[:, 1, 2] = k.T
    return {"c2w": cameras, "K": matrices}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, default=list(MOTIONS), metavar="MOTION")
    parser.add_argument("--splats", type=int, default=400_000)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--out", type=Path, default=RESULTS / "annotate_rendered.json")
    args = parser.parse_args()
    started, rows = machine(), []
    rasterizer = Rasterizer(splat_room(args.splats, sheen=0.01))
    for name in args.motions:
        with tempfile.TemporaryDirectory() as there:
            folder = Path(there)
            truth = film(MOTIONS[name], rasterizer, args.frames, folder)
            depth = ("--depth", str(folder / "depth.zip"), "--depth-scale", "metric")
            for mode, options in (("defaults", ()), ("depth given", depth)):
                found = annotate_and_score(folder / "film.mp4", folder / mode, truth, *options)
                path_length = float(np.linalg.norm(np.diff(truth["c2w"][:, :3, 3], axis=0), axis=1).sum())
                about = {"motion": name, "mode": mode, "path_m": path_length}
                rows.append(about | {"should_be": MOTIONS[name].called, "zooms": MOTIONS[name].zooms} | found)
                write_result(args.out, rows, started)
    table(rows)
    right = sum(row.get("motion_class") in row["should_be"] for row in rows)
    zooms = sum((row.get("intrinsics_mode") == "per_frame") == row["zooms"] for row in rows)
    print(f"motion called by its name: {right} of {len(rows)}; zoom seen where there is one, only there: {zooms}")


def table(rows: list[dict[str, Any]]) -> None:
    head = ["motion", "mode", "path, m", "called", "posed %", "ATE, % of path", "turn, deg", "scale", "focal %"]
    lines = []
    for row in rows:
        s = row["score"]
        ate = s.get("ate_pct_of_path") if row["path_m"] > 1e-6 else None
        scale = s.get("scale") if row["mode"] == "depth given" and ate is not None else None
        cells = (s.get("coverage_pct"), ate, s.get("rot_err_deg_mean"), scale, s.get("focal_err_pct_median"))
        called = f"{row.get('motion_class')}, {row.get('intrinsics_mode')}, focal {row.get('focal_status')}"
        digits = (1, 3, 3, 4, 2)
        figures = [number(cell, places) for cell, places in zip(cells, digits, strict=True)]
        lines.append([row["motion"], row["mode"], number(row["path_m"]), called, *figures])
    print_table(head, lines)


if __name__ == "__main__":
    main()
