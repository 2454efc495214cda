"""What `longtake fov` does: one picture's camera by every source at hand, the one that counts, and the check of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..annotate.video import probe, read_rgb
from ..errors import BadMedia, LongtakeError, MissingPart
from ..model import intrinsics as cameras
from ..model.exif import read_exif
from ..model.intrinsics import Reading
from ..records import VideoInfo
from .clips import row_of_clip
from .config import UsageError

Network = Callable[[NDArray[np.uint8]], Reading]
NETWORKS: Mapping[str, Network] = {"pi3x": cameras.ask_pi3x, "moge2": cameras.ask_moge2}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A picture's camera: the first reading counts, the others stand beside it."""

    readings: tuple[Reading, ...]  # in order of precedence: given, manifest, pi3x, moge2, exif
    left_out: Mapping[str, str]  # why a source says nothing

    @property
    def problem(self) -> str | None:
        """Why the generator does not take the camera, and the ways out; None where it does."""
        first, *others = self.readings
        try:
            cameras.check_fov(first, [reading for reading in others if reading.in_range])
        except LongtakeError as error:
            return str(error)
        return None

    def rows(self) -> list[dict[str, Any]]:
        """A row for each reading; `focal_pct` is how much longer its focal length is than the one that counts."""
        first = self.readings[0]
        return [
            {
                "source": reading.source,
                "fov_x_deg": reading.fov_deg[0],
                "fov_y_deg": reading.fov_deg[1],
                "in_range": reading.in_range,
                "focal_pct": 100 * (reading.focal_over(first) - 1),
                "focal_sigma": reading.focal_sigma,
                "intrinsics": reading.argument,
                "remark": reading.remark or None,
            }
            for reading in self.readings
        ]


def examine(
    image: str,
    *,
    numbers: Sequence[float] | None = None,
    manifest: Path | None = None,
    clip: str | None = None,
    frame: int = 0,
    networks: Mapping[str, Network] = NETWORKS,
) -> Answer:
    """The camera of a picture, or of a video's first frame, by all sources.

    Args:
        numbers: known intrinsics, (f,) or (fx, fy, cx, cy).
        manifest, clip, frame: the picture is this frame of this clip, perhaps at another size.

    Raises:
        MissingPart: no source says anything, and weights that would are not here.
        BadMedia: the picture cannot be read, or no source says anything of it.
        UsageError: the manifest has no such frame, or not of this picture's shape.
    """
    if manifest is None and (clip is not None or frame != 0):
        raise UsageError("--clip and --frame say where in a manifest: name it with --row MANIFEST")
    info = probe(image)
    width, height = info.width, info.height
    readings = [] if numbers is None else [cameras.given(numbers, width, height)]
    left_out: dict[str, str] = {}
    lacking = False
    sources: dict[str, Callable[[], list[Reading]]] = {}
    if manifest is not None:
        row = row_of_clip(manifest, clip)
        sources["manifest"] = lambda: [_from_row(row, frame, width, height)]
    (rgb,) = read_rgb(info, [0])
    sources |= {name: lambda ask=ask: [ask(rgb)] for name, ask in networks.items()}
    sources["exif"] = lambda: _from_exif(info)
    for name, ask in sources.items():
        try:
            readings += ask()
        except UsageError:
            raise
        except LongtakeError as error:
            left_out[name] = str(error)
            lacking |= isinstance(error, MissingPart)
    if not readings:
        words = "; ".join(left_out.values())
        known = "Or give the camera, where it is known: --intrinsics f or fx,fy,cx,cy in pixels"
        if lacking:
            raise MissingPart(f"{image}: nothing tells its camera. {words}. {known}")
        raise BadMedia("no_intrinsics", f"{image}: nothing tells its camera. {words}. {known}")
    return Answer(readings=tuple(readings), left_out=left_out)


def _from_exif(info: VideoInfo) -> list[Reading]:
    path = info.image_paths[0] if info.is_images else info.path
    readings = []
    if info.is_images:
        turned = info.rotation_deg in (90, 270)
        readings = cameras.from_exif(read_exif(Path(path)), info.width, info.height, turned=turned)
    if not readings:
        raise LongtakeError(f"{path} has no EXIF that tells a focal length in pixels")
    return readings


def _from_row(row: Mapping[str, Any], frame: int, width: int, height: int) -> Reading:
    """The row's camera at a frame, for a picture of this size."""
    name = row["clip_id"]
    if row["c2w"] is None:
        raise UsageError(f"clip {name} has status {row['status']} and no camera")
    if not 0 <= frame < row["num_frames"]:
        raise UsageError(f"clip {name} has frames 0 .. {row['num_frames'] - 1}, and no frame {frame}")
    scale = np.array([width / row["width"], height / row["height"]])
    if abs(scale[0] / scale[1] - 1) > 0.01:
        raise UsageError(
            f"clip {name} is {row['width']} x {row['height']} and the picture {width} x {height}: it was cropped or "
            "stretched, and the clip's camera is not its own"
        )
    if row["focal_status"] == "undetermined":
        raise LongtakeError(f"clip {name} has a focal length that its motion did not determine: a guess")
    k = np.asarray(row["intrinsics"], np.float64).reshape(-1, 4)[frame].reshape(2, 2)  # (fx, fy), (cx, cy)
    fx, fy, cx, cy = np.concatenate([k[0] * scale, (k[1] + 0.5) * scale - 0.5]).tolist()
    sigma = float((row["frame_focal_sigma"] if row["frame_focal_sigma"] is not None else [np.nan] * (frame + 1))[frame])
    bent = row["distortion"] is not None and bool(np.any(np.asarray(row["distortion"], np.float64)))
    return Reading(
        source="manifest",
        width=width,
        height=height,
        intrinsics=(fx, fy, cx, cy),
        focal_sigma=sigma if np.isfinite(sigma) else None,
        remark=f"clip {name[:8]}, focal length {row['focal_status']}" + (", lens distortion left out" if bent else ""),
    )
