"""Depth of a shot's frames in a file: written as it is computed, read frame by frame, never whole in memory.

The file is a zip of pictures that any tool can open:

    NNNNNN.png   16 bits: log depth of frame NNNNNN of the source video, see `MEANING`
    cNNNNNN.png  8 bits: how far its pixels are to be trusted, 255 fully
    meta.json    what the codes mean, each frame's factor, the cameras; written last: without it the file is unfinished

Codes are equal steps of log depth, so that a relative error of 0.014 % at most is all that is lost from 1 mm to 100 km.
Files may come from anywhere: sizes are checked before anything is unpacked.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import nearest_rotation
from ..records import BadMedia, check_shape
from .scale import ScaleConfig, ScaleTrack, depth_edges

FORMAT = "longtake-depth/1"
MIN_DEPTH, MAX_DEPTH = 1e-3, 1e5  # that a file can hold
STEP = float(np.log(MAX_DEPTH / MIN_DEPTH)) / (2**16 - 2)
MEANING = (
    f"depth along the optical axis = factor[i] * {MIN_DEPTH:g} * exp((code - 1) * {STEP:.12g}) for frame "
    "frame_index[i]; code 0: unknown; confidence = code / 255. Maps cover crop = x, y, w, h of the upright picture: "
    "map pixel (u, v), centres at integers, lies at x + (u + 0.5) * w / width - 0.5, y + (v + 0.5) * h / height - 0.5"
)
MAX_PIXELS = 1 << 24  # of a map
MAX_META_BYTES = 1 << 26
GIVEN_SIGMA = 0.01  # standard deviation that the logarithm of given depth is taken to have
SOURCES = ("pi3x+moge2", "pi3x", "moge2", "given", "given+moge2", "rendered")
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthClip:
    """Depth of a shot's frames in a file that is read frame by frame.

    Frames that could not be decoded, or that depth was not asked of, are absent.
    """

    path: Path
    frame_index: NDArray[np.int64]  # [T] frames of the source video, increasing
    width: int  # of the maps
    height: int
    crop: tuple[int, int, int, int]  # x, y, w, h in display pixels: what the maps cover
    factor: NDArray[np.float64]  # [T] that stored depth is multiplied by
    world_from_cam: NDArray[np.float64] | None  # [T, 4, 4] rigid, in the unit of depth; None: the source has no cameras
    focal_px: NDArray[np.float64] | None  # [T, 2] fx, fy in display pixels as the network says; nan: it says nothing
    metric: bool  # depth is in metres
    source: str  # one of SOURCES
    scale: ScaleTrack | None  # how the factors came about; None where nothing was fused
    relative_sigma: float  # standard deviation of log depth at confidence 1
    flags: tuple[str, ...] = ()  # snake_case remarks on how it was made

    def __post_init__(self) -> None:
        n = len(self.frame_index)
        check_shape(self, "factor", (n,))
        for name, shape in {"world_from_cam": (n, 4, 4), "focal_px": (n, 2)}.items():
            if getattr(self, name) is not None:
                check_shape(self, name, shape)
        if not n or self.frame_index[0] < 0 or (np.diff(self.frame_index) <= 0).any():
            raise ValueError("a depth clip has at least one frame, and their numbers increase")
        if not (np.isfinite(self.factor) & (self.factor > 0)).all():
            raise ValueError("factors of depth must be finite and positive")
        if not (0 < self.width and 0 < self.height and self.width * self.height <= MAX_PIXELS):
            raise ValueError(f"depth maps of {self.width} x {self.height} are not read: up to {MAX_PIXELS} pixels are")
        if len(self.crop) != 4 or min(self.crop[:2]) < 0 or min(self.crop[2:]) <= 0:
            raise ValueError(f"crop {self.crop} is no x, y, width, height of a picture")
        if self.world_from_cam is not None:
            check_rigid(self.world_from_cam)
        if self.focal_px is not None and (np.isinf(self.focal_px) | (self.focal_px <= 0)).any():
            raise ValueError("focal lengths must be positive, or nan where unknown")
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r} is none of {', '.join(SOURCES)}")
        if not 0 < self.relative_sigma < 10:
            raise ValueError(f"a relative deviation of {self.relative_sigma} is none")

    def read(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Depth [height, width], nan where unknown, and confidence [height, width] in 0 .. 1 of the row's frame.

        Raises:
            BadMedia: depth_unreadable, where the file does not hold what it should.
        """
        log, confidence = self._codes(row)
        depth = np.exp(log + np.float32(np.log(self.factor[row])))
        confidence[np.isnan(depth)] = 0
        return depth, confidence

    def sample(self, row: int, xy: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Depth [N] and confidence [N] at display pixels [N, 2] (x, y; centres at integers) of the row's frame.

        Bilinear in log depth. nan and 0 outside of the maps, and where one of the four map pixels around is unknown or
        lies on an edge of depth (`scale`): interpolated between two surfaces, it would lie on neither.
        """
        log, confidence = self._codes(row)
        log[depth_edges(np.nan_to_num(np.exp(log)), ScaleConfig())] = np.nan
        size = np.array([self.width, self.height])
        at = (np.asarray(xy, np.float64) - self.crop[:2] + 0.5) * size / self.crop[2:] - 0.5
        with np.errstate(invalid="ignore"):
            inside = np.asarray(((at >= -0.5) & (at <= size - 0.5)).all(-1))
        at = np.where(inside[:, None], at.clip(0, size - 1), 0)
        left = np.minimum(at.astype(np.int64), np.maximum(size - 2, 0))
        right = np.minimum(left + 1, size - 1)
        (u, v), (u0, v0), (u1, v1) = (at - left).T, left.T, right.T
        share = ((1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v)
        around = ((v0, u0), (v0, u1), (v1, u0), (v1, u1))
        depth = np.exp(sum(w * log[p] for w, p in zip(share, around, strict=True))) * self.factor[row]
        trust = sum((w * confidence[p] for w, p in zip(share, around, strict=True)), np.zeros(len(at)))
        known = inside & np.isfinite(depth)
        return np.where(known, depth, np.nan), np.where(known, trust, 0.0)

    def _codes(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log of stored depth, nan where unknown, and confidence."""
        frame = int(self.frame_index[row])
        codes, trust = self._picture(_depth_name(frame), np.uint16), self._picture(_trust_name(frame), np.uint8)
        return log_depth(codes), trust.astype(np.float32) / np.float32(255)

    def _picture(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        most = 2 * self.width * self.height * np.dtype(dtype).itemsize + 4096
        return decode_png(_entry(self._archive, name, most), (self.height, self.width), dtype, f"{self.path}: {name}")

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return _opened(self.path)


# ---- codes -------------------------------------------------------------------------------------------------------


def codes_from_depth(depth: NDArray) -> NDArray[np.uint16]:
    """The codes of depths [...]; what is not finite, or not within MIN_DEPTH .. MAX_DEPTH, is unknown."""
    with np.errstate(invalid="ignore", divide="ignore"):
        code = np.rint(np.log(np.asarray(depth, np.float64) / MIN_DEPTH) / STEP) + 1
    return np.where((code >= 1) & (code <= 2**16 - 1), code, 0).astype(np.uint16)


def log_depth(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Log of the depths [...] of codes; nan where unknown."""
    return _LOG_DEPTH[codes]


_LOG_DEPTH = (np.log(MIN_DEPTH) + (np.arange(2**16) - 1.0) * STEP).astype(np.float32)
_LOG_DEPTH[0] = np.nan


def check_rigid(world_from_cam: NDArray[np.float64]) -> None:
    """Raise ValueError unless all of [..., 4, 4] are rigid motions."""
    rotation = world_from_cam[..., :3, :3]
    good = np.isfinite(world_from_cam).all() and (world_from_cam[..., 3, :] == [0, 0, 0, 1]).all()
    if not good or np.abs(rotation - nearest_rotation(rotation)).max() > 1e-5:
        raise ValueError("cameras must be rigid motions")


# ---- writing -----------------------------------------------------------------------------------------------------


class DepthWriter:
    """Writes the frames of a depth file one after another; `finish_depth` makes it a whole one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frame_index: list[int] = []
        self.shape: tuple[int, int] = (0, 0)  # height, width
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> DepthWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def add(self, frame: int, depth: NDArray, confidence: NDArray) -> int:
        """The next frame of the source video: depth [H, W], not positive or not finite where unknown; trust [H, W].

        Returns: of how many pixels the depth is known.
        """
        codes = codes_from_depth(depth)
        trust = np.where(codes > 0, np.rint(255 * np.asarray(confidence, np.float64)), 0).astype(np.uint8)
        for name, picture in ((_depth_name(frame), codes), (_trust_name(frame), trust)):
            self._zip.writestr(zipfile.ZipInfo(name), _png(picture))
        self.frame_index.append(frame)
        self.shape = (codes.shape[0], codes.shape[1])
        return int(np.count_nonzero(trust))


def finish_depth(clip: DepthClip) -> DepthClip:
    """Add to the file of a clip what its codes mean and what is known of its frames, so that it can stand alone."""
    cameras, focal = clip.world_from_cam, clip.focal_px
    tree = {
        "format": FORMAT,
        "meaning": MEANING,
        "unit": "m" if clip.metric else "arbitrary, one for all frames",
        "metric": clip.metric,
        "source": clip.source,
        "relative_sigma": clip.relative_sigma,
        "width": clip.width,
        "height": clip.height,
        "crop": list(clip.crop),
        "frame_index": clip.frame_index.tolist(),
        "factor": clip.factor.tolist(),
        "world_from_cam": None if cameras is None else cameras.tolist(),
        "focal_px": None if focal is None else [[v if np.isfinite(v) else None for v in f] for f in focal.tolist()],
    }
    with zipfile.ZipFile(clip.path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("meta.json"), json.dumps(tree, allow_nan=False))
    with open(clip.path, "rb") as file:
        os.fsync(file.fileno())
    return clip


def _depth_name(frame: int) -> str:
    return f"{frame:06d}.png"


def _trust_name(frame: int) -> str:
    return f"c{frame:06d}.png"


def _png(picture: NDArray[Any]) -> bytes:
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return data.tobytes()


# ---- reading -----------------------------------------------------------------------------------------------------


def open_depth(path: Path) -> DepthClip:
    """The clip of a finished depth file.

    Raises:
        BadMedia: depth_unreadable, where it is none.
    """
    with _opened(path) as archive:
        text = _entry(archive, "meta.json", MAX_META_BYTES)
        names = set(archive.namelist())
    try:
        tree = json.loads(text)
        if not isinstance(tree, Mapping) or tree["format"] != FORMAT:
            raise _bad(path, f"its meta.json is not of the form {FORMAT}")
        cameras, focal = tree["world_from_cam"], tree["focal_px"]
        clip = DepthClip(
            path=path,
            frame_index=_numbers(tree["frame_index"]).astype(np.int64),
            width=int(tree["width"]),
            height=int(tree["height"]),
            crop=tuple(int(v) for v in tree["crop"]),  # type: ignore[arg-type]
            factor=_numbers(tree["factor"]),
            world_from_cam=None if cameras is None else _numbers(cameras),
            focal_px=None if focal is None else _numbers(focal),
            metric=bool(tree["metric"]),
            source=str(tree["source"]),
            scale=None,
            relative_sigma=float(tree["relative_sigma"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise _bad(path, f"its meta.json does not hold what it should ({error})") from error
    frames = clip.frame_index.tolist()
    lacking = [name for f in frames for name in (_depth_name(f), _trust_name(f)) if name not in names]
    if lacking:
        raise _bad(path, f"it has no {lacking[0]}")
    return clip


def _numbers(tree: Any) -> NDArray[np.float64]:
    return np.array(tree, np.float64)  # None becomes nan


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _bad(path, f"it is no zip, or was cut off ({error})") from error


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The bytes of an entry, which are stored as they are and no more than `most`."""
    path = Path(archive.filename or "")
    try:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > most:
            raise _bad(path, f"its {name} is packed or larger than {most} bytes")
        return archive.read(info)
    except KeyError as error:
        unfinished = "; it was not finished" if name == "meta.json" else ""
        raise _bad(path, f"it has no {name}{unfinished}") from error
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, struct.error) as error:
        raise _bad(path, f"its {name} cannot be read ({error})") from error


def decode_png(data: bytes, shape: tuple[int, int] | None, dtype: type[np.generic], where: str) -> NDArray[Any]:
    """A gray PNG as [H, W] of uint8 or uint16, whose header is checked before its pixels are unpacked.

    Args:
        shape: (H, W) that it must have; None for any up to MAX_PIXELS.
        where: what errors call it.

    Raises:
        BadMedia: depth_unreadable.
    """
    bits = 8 * np.dtype(dtype).itemsize
    header = re.match(re.escape(_PNG) + rb"(.{4})(.{4})(.)\0", data, re.DOTALL)  # \0: gray
    if header is None or header[3][0] != bits:
        raise BadMedia("depth_unreadable", f"{where} is no gray PNG of {bits} bits")
    width, height = (int.from_bytes(header[i], "big") for i in (1, 2))
    if (shape is not None and (height, width) != shape) or not 0 < width * height <= MAX_PIXELS:
        wanted = f"{shape[1]} x {shape[0]}" if shape else f"up to {MAX_PIXELS} pixels"
        raise BadMedia("depth_unreadable", f"{where} has {width} x {height} pixels, not {wanted}")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadMedia("depth_unreadable", f"{where} cannot be decoded ({error.err})") from error
    if picture is None or picture.shape != (height, width) or picture.dtype != dtype:
        raise BadMedia("depth_unreadable", f"{where} cannot be decoded")
    return picture


def _bad(path: Path, words: str) -> BadMedia:
    return BadMedia("depth_unreadable", f"{path} is no depth file of longtake: {words}")
