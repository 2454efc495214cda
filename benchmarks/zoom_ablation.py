"""Shared against per-frame intrinsics on footage that zooms, and on the same footage without.

    python benchmarks/zoom_ablation.py
    python benchmarks/zoom_ablation.py --only kitti_drive_1 room --frames 60

The zooms are made here: every frame of a recording is cropped about its centre and resampled (Lanczos) to its old
size, by a factor that goes smoothly 1 - 1.8 - 1. So the truth is exact up to the recording's own: fx and fy times the
factor z, and c' = z (c - m) + m for a principal point c and the middle m of the picture. Each recording is also
encoded as it is, as control. sevenscenes_digital_zoom comes as a zoom and is taken as it lies there.
Errors are of `longtake annotate --intrinsics-mode MODE`, all else by default; positions after the best similarity.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from measure import RESULTS, annotate_and_score, machine, number, print_table, read_truth, sequences, write_result
from numpy.typing import NDArray

from longtake.annotate.video import encode_rgb
from longtake.render.room import Room, camera_path, render_clip

MODES = ("auto", "shared", "per_frame")
ZOOM = 1.8
SOURCES = ("sevenscenes_digital_zoom", "sevenscenes_handheld", "kitti_drive_1", "room")
CRF = 14  # little is lost by encoding a recording again


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """A video to annotate, with its truth."""

    source: str
    zoomed: bool
    path: Path
    truth: dict[str, NDArray]


def zoom_factors(count: int) -> NDArray[np.float64]:
    """1 at both ends, ZOOM in the middle, smooth."""
    return 1 + (ZOOM - 1) * np.sin(np.pi * np.linspace(0, 1, count)) ** 2


def zoom_picture(picture: NDArray[np.uint8], z: float) -> NDArray[np.uint8]:
    """Enlarged z times about its middle, cropped to its old size."""
    height, width = picture.shape[:2]
    mx, my = (width - 1) / 2, (height - 1) / 2
    old_from_new = np.array([[1 / z, 0, mx - mx / z], [0, 1 / z, my - my / z]])
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    new = cv2.warpAffine(picture, old_from_new, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return new.astype(np.uint8, copy=False)


def zoom_k(k: NDArray[np.float64], z: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """Camera matrices [N, 3, 3] of pictures zoomed by z [N]."""
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    out = k.copy()
    out[:, :2, :2] *= z[:, None, None]
    out[:, :2, 2] = z[:, None] * (k[:, :2, 2] - middle) + middle
    return out


def films_of(source: str, max_frames: int, folder: Path) -> Iterator[Film]:
    """The recording as it is, and zoomed."""
    if source == "sevenscenes_digital_zoom":
        path = sequences() / source
        yield Film(source=source, zoomed=True, path=path / "video.mp4", truth=read_truth(path))
        return
    if source == "room":
        pictures, truth, fps = _room(max_frames)
    else:
        pictures, truth, fps = _recording(sequences() / source, max_frames)
    height, width = pictures[0].shape[:2]
    original, zoomed = folder / f"{source}.mp4", folder / f"{source}_zoom.mp4"
    encode_rgb(original, pictures, fps, crf=CRF)
    yield Film(source=source, zoomed=False, path=original, truth=truth)
    z = zoom_factors(len(pictures))
    encode_rgb(zoomed, (zoom_picture(p, s) for p, s in zip(pictures, z, strict=True)), fps, crf=CRF)
    yield Film(source=source, zoomed=True, path=zoomed, truth=truth | {"K": zoom_k(truth["K"], z, width, height)})


def _room(max_frames: int) -> tuple[list[NDArray[np.uint8]], dict[str, NDArray], float]:
    """A walk through the synthetic room, at most 150 frames of 640 x 480."""
    count = min(150, max_frames)
    c2w, intrinsics = camera_path("walk", count)
    k = np.tile(np.eye(3), (count, 1, 1))
    k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2] = intrinsics.T
    return list(render_clip(Room(), c2w, intrinsics, 640, 480)), {"c2w": c2w, "K": k}, 24.0


def _recording(sequence: Path, max_frames: int) -> tuple[list[NDArray[np.uint8]], dict[str, NDArray], float]:
    """The first frames of a sequence."""
    with av.open(str(sequence / "video.mp4")) as container:
        decoded = itertools.islice(container.decode(video=0), max_frames)
        pictures = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in decoded]
    truth = {name: values[: len(pictures)] for name, values in read_truth(sequence).items()}
    fps = float(json.loads((sequence / "meta.json").read_text())["fps"])
    return pictures, truth, fps


HEAD = "film|frames|mode|posed %|ATE|ATE % of path|focal % median|focal % p90|chosen|focal|s".split("|")


def line(row: dict[str, Any]) -> list[str]:
    """A row as a line of the table."""
    s = row["score"]
    return [
        f"{row['source']}, {'zoom' if row['zoomed'] else 'original'}",
        str(row["frames"]),
        row["mode"],
        number(s["coverage_pct"], 1),
        number(s.get("ate_rmse"), 4),
        number(s.get("ate_pct_of_path")),
        number(s.get("focal_err_pct_median")),
        number(s.get("focal_err_pct_p90")),
        row.get("intrinsics_mode") or "-",
        row.get("focal_status") or "-",
        number(row["seconds"], 1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=SOURCES, metavar="NAME")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE")
    parser.add_argument("--frames", type=int, default=150, help="of each recording that is zoomed here, at most")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoom_ablation.json")
    args = parser.parse_args()
    started, rows = machine(), []
    folder = Path(tempfile.mkdtemp(prefix="zoom-"))
    try:
        for source in args.only:
            for film in films_of(source, args.frames, folder):
                for mode in args.modes:
                    out = folder / f"{film.path.parent.name}-{film.path.stem}-{mode}"
                    found = annotate_and_score(film.path, out, film.truth, "--intrinsics-mode", mode)
                    about = {"source": source, "zoomed": film.zoomed, "frames": len(film.truth["c2w"]), "mode": mode}
                    rows.append(about | found)
                    write_result(args.out, rows, started)
                    print("  ".join(line(rows[-1])), file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    print_table(HEAD, [line(row) for row in rows])
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
