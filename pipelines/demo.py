"""The demonstration: film a synthetic room along a known path with a zoom, annotate the film, score it by the truth."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..annotate.video import encode_rgb
from ..datasets.manifest import check_writable
from ..datasets.readers import Clip, read_clip
from ..datasets.score import score
from ..records import LongtakeError
from ..render.room import Room, camera_path, render_clip
from .annotate import AnnotateConfig, annotate
from .config import MissingPart
from .display import make_display

WIDTH, HEIGHT, FPS, NUM_FRAMES = 640, 480, 24, 144
FILM, TRUTH = "room.mp4", "truth.npz"


def run_demo(out: str | os.PathLike[str], *, quiet: bool = False) -> int:
    """Film, annotate, score and print: what a newcomer runs first.

    Args:
        out: a folder; gets room.mp4, truth.npz (c2w, K) and the manifest with its report.
        quiet: show no progress.

    Returns:
        The exit code: 0, or 1 where the room could not be annotated.

    Raises:
        MissingPart: the folder cannot be written.
    """
    folder = Path(out).absolute()
    try:
        check_writable(folder)
    except LongtakeError as error:
        raise MissingPart(str(error)) from error
    display = make_display(quiet)
    display.note(f"filming {NUM_FRAMES} frames of a synthetic room, the focal length going 1 - 1.6 - 1 on the way")
    display.close()
    truth = film(folder)
    run = annotate(folder / FILM, out=folder / "manifest", config=AnnotateConfig(profile="robust"), quiet=quiet)
    rows = [row for row in run.manifest.rows() if row["c2w"] is not None]
    for row in run.manifest.rows():
        if row["error"]:
            print(f"failed: {row['error']}")
    for clip in map(read_clip, rows):
        print(_table(clip, truth))
    print(f"film:     {folder / FILM}\nmanifest: {run.out}")
    if run.report:
        print(f"report:   {run.report}")
    return 0 if rows and not run.failed else 1


def film(folder: Path, *, num_frames: int = NUM_FRAMES) -> dict[str, NDArray[np.float64]]:
    """Render and encode the film, and store its truth: c2w [T, 4, 4] in metres and K [T, 3, 3] in pixels."""
    world_from_cam, intrinsics = camera_path("orbit_zoom", num_frames, width=WIDTH, height=HEIGHT)
    encode_rgb(folder / FILM, render_clip(Room(), world_from_cam, intrinsics, WIDTH, HEIGHT), FPS)
    k = np.tile(np.eye(3), (num_frames, 1, 1))
    k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2] = intrinsics.T
    truth = {"c2w": world_from_cam, "K": k}
    with open(folder / TRUTH, "wb") as file:
        np.savez_compressed(file, c2w=world_from_cam, K=k)
    return truth


def _table(clip: Clip, truth: dict[str, NDArray[np.float64]]) -> str:
    """The clip against the truth of its frames, in words."""
    frames = slice(clip.frame_start, clip.frame_start + clip.num_frames)
    estimate = {"c2w": clip.world_from_cam, "K": clip.k, "pose_valid": clip.pose_valid}
    found = score(estimate, {name: values[frames] for name, values in truth.items()})
    lines = [("frames posed", f"{found['coverage_pct']:.1f} % of {clip.num_frames}")]
    if "ate_rmse" in found:
        lines += [
            (
                "position error",
                f"{1000 * _of(found, 'ate_rmse'):.1f} mm rms over a path of {_of(found, 'path_length'):.2f} m",
            ),
            (
                "rotation error",
                f"{_of(found, 'rot_err_deg_mean'):.3f}° mean, {_of(found, 'rot_err_deg_max'):.3f}° at most",
            ),
            (
                "focal error",
                f"{_of(found, 'focal_err_pct_median'):.2f} % median, {_of(found, 'focal_err_pct_p90'):.2f} % p90",
            ),
        ]
    true_f, f = truth["K"][frames, 0, 0], clip.intrinsics[:, 0]
    lines.append(("zoom", f"{f.max() / f.min():.2f} x found, {true_f.max() / true_f.min():.2f} x true"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {words}" for name, words in lines)


def _of(found: dict[str, float | None], name: str) -> float:
    value = found[name]
    return float("nan") if value is None else value
