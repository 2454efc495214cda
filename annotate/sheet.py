"""A clip's contact sheet: a few of its pictures with the feature points that the track rests on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..records import Shot, Track, VideoInfo
from .video import VideoConfig, read_rgb

NUM_PICTURES = 8
MAX_SIDE = 480  # pixels of a picture's long side
JPEG_QUALITY = 80


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Pictures of a clip as JPEG files."""

    frames: tuple[int, ...]  # rows of the clip
    jpegs: tuple[NDArray[np.uint8], ...]  # the bytes of each file

    def write(self, folder: Path, kind: str = "contact") -> None:
        """Put the files where reports look for them, the clip's folder of sidecars; made where there is none."""
        folder.mkdir(parents=True, exist_ok=True)
        for frame, data in zip(self.frames, self.jpegs, strict=True):
            (folder / f"{kind}_{frame:06d}.jpg").write_bytes(data.tobytes())


def pictured(num_frames: int) -> NDArray[np.int64]:
    """The frames of a clip that its sheet shows, spread over it."""
    return np.unique(np.linspace(0, num_frames - 1, NUM_PICTURES).round().astype(int))


def shrunk(picture: NDArray, interpolation: int = cv2.INTER_AREA) -> NDArray:
    """A picture or map as large as a sheet shows it."""
    scale = min(1.0, MAX_SIDE / max(picture.shape))
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation)


def jpeg(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of a picture's file."""
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.reshape(-1)


def draw_sheet(info: VideoInfo, shot: Shot, track: Track | None, *, video_config: VideoConfig) -> Sheet:
    """Pictures spread over the shot; where the track has examples, those frames with its feature points.

    Raises:
        BadMedia: one of the frames cannot be decoded.
    """
    with_points = np.unique(track.examples[:, 0]).astype(int) if track is not None else np.zeros(0, int)
    rows = with_points if len(with_points) else np.arange(shot.num_frames)
    rows = rows[pictured(len(rows))]
    pictures = read_rgb(info, [shot.start + int(row) for row in rows], max_side=MAX_SIDE, config=video_config)
    jpegs = []
    for row, picture in zip(rows, pictures, strict=True):
        if track is not None:
            _draw_points(picture, track.examples[track.examples[:, 0] == row], picture.shape[1] / info.width)
        jpegs.append(jpeg(picture))
    return Sheet(frames=tuple(int(row) for row in rows), jpegs=tuple(jpegs))


def _draw_points(picture: NDArray[np.uint8], points: NDArray[np.float32], scale: float) -> None:
    """Draw (frame, feature track, x, y) as ringed dots in place; a feature keeps its colour from picture to picture."""
    for _, feature, x, y in points:
        hue = np.array([[[int(feature) * 47 % 180, 220, 255]]], np.uint8)
        color = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        center = round(scale * (x + 0.5) - 0.5), round(scale * (y + 0.5) - 0.5)
        cv2.circle(picture, center, 4, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(picture, center, 3, color, -1, cv2.LINE_AA)
