"""The demonstration: render a scene of splats along a path with a zoom, annotate the film, score it by the truth, and
fly the same path through what its first frame alone shows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets.manifest import check_writable
from ..datasets.readers import Clip, read_clip
from ..datasets.score import score
from ..geometry import invert_pose
from ..records import LongtakeError
from ..render.camera_path import PathConfig
from ..render.splat_room import write_room
from .annotate import AnnotateConfig, annotate
from .config import MissingPart
from .display import make_display
from .lifting import Inputs, open_source, preview
from .render import RenderConfig, render

SPLATS = 300_000
RENDER = RenderConfig(
    design=1,
    families=("orbit",),
    seed=11,  # an orbit that passes the checks, with a zoom there and back
    scene_scale=1.0,
    license="Apache-2.0",
    path=PathConfig(num_frames=144, fps=24, width=640, height=352, zoom=(1.5, 1.6)),
)


def run_demo(out: str | os.PathLike[str], *, quiet: bool = False) -> int:
    """Render, annotate, score, preview and print: what a newcomer runs first.

    Args:
        out: a folder; gets the scene, the manifests of what was rendered and of its annotation, and preview.mp4.
        quiet: show no progress.

    Returns:
        The exit code: 0, or 1 where the film could not be annotated.

    Raises:
        MissingPart: the folder cannot be written.
    """
    folder = Path(out).absolute()
    try:
        check_writable(folder)
    except LongtakeError as error:
        raise MissingPart(str(error)) from error
    truth = film(folder, quiet=quiet)
    video = folder / "rendered" / truth.uri
    run = annotate(video, out=folder / "annotated", config=AnnotateConfig(profile="robust"), quiet=quiet)
    rows = [row for row in run.manifest.rows() if row["c2w"] is not None]
    for row in run.manifest.rows():
        if row["error"]:
            print(f"failed: {row['error']}")
    for clip in map(read_clip, rows):
        print(_table(clip, {"c2w": truth.world_from_cam, "K": truth.k}))
    holes = _preview(folder, truth)
    print(f"preview         {holes:.0%} of the picture is hole at the end of the path, seen from the first frame alone")
    print(f"film:     {video}\npreview:  {folder / 'preview.mp4'}\nmanifest: {run.out}")
    if run.report:
        print(f"report:   {run.report}")
    return 0 if rows and not run.failed else 1


def film(folder: Path, *, config: RenderConfig = RENDER, splats: int = SPLATS, quiet: bool = True) -> Clip:
    """Render a clip of the room into the manifest `rendered`; the clip, its cameras those of the path."""
    make_display(quiet).note(f"a room of {splats} splats, filmed along an orbit, the focal length growing on the way")
    run = render(write_room(folder / "scene", splats), out=folder / "rendered", config=config, quiet=quiet)
    return read_clip(next(iter(run.manifest.rows())))


def _preview(folder: Path, truth: Clip) -> float:
    """Fly the clip's path through its lifted first frame; the share of holes in the last picture."""
    path = folder / "path.npy"
    np.save(path, invert_pose(truth.world_from_cam[0]) @ truth.world_from_cam)
    with open_source(str(folder / "rendered"), Inputs(frame=0, one=True)) as source:
        frame = next(source.read([source.frames[0]]))
        made = preview(frame, str(path), out=folder / "preview.mp4", every=4)
    return float(made.hole_share[-1])


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
