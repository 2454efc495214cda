"""What training of splats starts from: posed pictures, and first points from COLMAP, from depth, or from chance."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..records import BadMedia, LongtakeError
from .cameras import _U64, _broken, _open

MIN_SIDE = 11  # pixels: the window of SSIM
NEAREST, FARTHEST = 0.1, 10.0  # depths of random points, in units of `Views.reach`
_POINT = struct.Struct("<Q3d3BdQ")  # number, place, colour, error, observations that follow
_SEEN_BYTES = 8  # of an observation in points3D.bin


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """T posed pictures of one scene that stands still.

    Raises:
        LongtakeError: shapes disagree, a pose is not rigid, a number is not finite, a picture is too small.
    """

    names: tuple[str, ...]
    pictures: tuple[NDArray[np.uint8], ...]  # each [H, W, 3] RGB, of a pinhole; sizes may differ
    world_from_cam: NDArray[np.float64]  # [T, 4, 4] scene units; camera axes x right, y down, z forward
    intrinsics: NDArray[np.float64]  # [T, 4] fx, fy, cx, cy in pixels of the picture; pixel centres at integers

    def __post_init__(self) -> None:
        n = len(self.names)
        shapes = len(self.pictures), np.shape(self.world_from_cam), np.shape(self.intrinsics)
        if not n or shapes != (n, (n, 4, 4), (n, 4)):
            raise LongtakeError(f"{n} views with pictures, poses and intrinsics of {shapes}: one of each a view")
        for i, picture in enumerate(self.pictures):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise LongtakeError(f"{self.names[i]} is {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3]")
            if min(picture.shape[:2]) < MIN_SIDE:
                raise LongtakeError(
                    f"{self.names[i]} is {picture.shape[1]} x {picture.shape[0]}: too small to train on"
                )
        turn = self.world_from_cam[:, :3, :3]
        rigid = np.isclose(turn @ turn.swapaxes(1, 2), np.eye(3), atol=1e-3).all((1, 2))
        good = rigid & np.isfinite(self.world_from_cam).all((1, 2)) & np.isfinite(self.intrinsics).all(1)
        if not (good & (self.intrinsics[:, :2] > 0).all(1)).all():
            raise LongtakeError(
                f"{self.names[int(good.argmin())]} has no rigid pose, or intrinsics that are no camera's"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def centre(self) -> NDArray[np.float64]:
        """[3] the mean of where the cameras stand."""
        return self.world_from_cam[:, :3, 3].mean(0)

    @property
    def reach(self) -> float:
        """How far the cameras stand from their centre at most, scene units; 1 where they stand in one place."""
        return float(np.linalg.norm(self.world_from_cam[:, :3, 3] - self.centre, axis=1).max()) or 1.0

    @cached_property
    def fingerprint(self) -> str:
        """Digits that change when a picture or a camera does."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.world_from_cam, self.intrinsics, *self.pictures):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """N coloured points, where the first Gaussians are put."""

    xyz: NDArray[np.float32]  # [N, 3] scene units
    rgb: NDArray[np.float32]  # [N, 3] in 0 .. 1
    source: Literal["colmap", "depth", "random"]

    def __post_init__(self) -> None:
        if self.xyz.shape != self.rgb.shape or self.xyz.shape[1:] != (3,) or not np.isfinite(self.xyz).all():
            raise LongtakeError(f"points {self.xyz.shape} with colours {self.rgb.shape}: finite [N, 3] are needed")
        if len(self.xyz) < 4:
            raise LongtakeError(f"{len(self.xyz)} points from {self.source}: training starts from at least 4")

    def __len__(self) -> int:
        return len(self.xyz)


def colmap_points(model: Path) -> Points | None:
    """The sparse points of a COLMAP model folder (points3D.bin or .txt), or None where it has none.

    Raises:
        BadMedia: the file is broken.

    Source: colmap.github.io/format.html
    """
    for name, read in (("points3D.bin", _binary_points), ("points3D.txt", _text_points)):
        if (path := model / name).is_file() and path.stat().st_size:
            table = np.array(read(path), np.float64).reshape(-1, 6)
            if not np.isfinite(table).all() or (np.abs(table) > 1e30).any():
                raise _broken(path, f"point {int((~(np.abs(table) <= 1e30)).any(1).argmax())} has no finite place")
            if len(table) < 4:
                return None
            return Points(
                xyz=table[:, :3].astype(np.float32), rgb=(table[:, 3:] / 255).astype(np.float32), source="colmap"
            )
    return None


def _binary_points(path: Path) -> list[tuple[Any, ...]]:
    cursor, rows = _open(path), []
    (count,) = cursor.take(_U64)
    if count > len(cursor.data) // _POINT.size:
        raise _broken(path, f"says it holds {count} points, more than fit in its {len(cursor.data)} bytes")
    for _ in range(count):
        _, *place_and_colour, _, seen = cursor.take(_POINT)
        cursor.skip(_SEEN_BYTES * seen)
        rows.append(place_and_colour)
    cursor.end()
    return rows


def _text_points(path: Path) -> list[list[float]]:
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                try:
                    rows.append([float(word) for word in line.split(maxsplit=7)[1:7]])
                except ValueError as error:
                    raise _broken(path, f"line {number} is no point: {line[:80]!r}") from error
                if len(rows[-1]) != 6:
                    raise _broken(path, f"line {number} is no point: {line[:80]!r}")
    return rows


def depth_points(views: Views, maps: Iterable[tuple[int, NDArray]], *, count: int, seed: int = 0) -> Points:
    """Points on the surfaces that depth maps show, drawn evenly from all maps.

    Args:
        maps: (number of the view, depth [h, w] along the optical axis in scene units; not finite or <= 0: unknown).
            A map covers its view's whole picture, at a size of its own.

    Raises:
        BadMedia: no map has depth.
    """
    rng = np.random.default_rng(seed)
    known = [(i, depth, np.flatnonzero(np.isfinite(depth) & (depth > 0))) for i, depth in maps]
    known = [entry for entry in known if len(entry[2])]
    if not known:
        raise BadMedia("no_depth", "not one of the depth maps has a depth: leave depth out, or give other maps")
    parts = []
    for (i, depth, pixels), share in zip(known, np.array_split(np.arange(count), len(known)), strict=True):
        chosen = rng.choice(pixels, min(len(share), len(pixels)), replace=False)
        v, u = np.divmod(chosen, depth.shape[1])
        height, width = views.pictures[i].shape[:2]
        xy = (np.column_stack([u, v]) + 0.5) * [width / depth.shape[1], height / depth.shape[0]] - 0.5
        parts.append(_seen_at(views, i, xy, depth.ravel()[chosen]))
    xyz, rgb = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Points(xyz=xyz, rgb=rgb, source="depth")


def random_points(views: Views, *, count: int, seed: int = 0) -> Points:
    """Points of which each lies somewhere in one camera's view, in that pixel's colour, at a depth drawn by its log."""
    rng = np.random.default_rng(seed)
    depth = views.reach * np.exp(rng.uniform(np.log(NEAREST), np.log(FARTHEST), count))
    parts = []
    for i, own in enumerate(np.array_split(depth, len(views))):
        height, width = views.pictures[i].shape[:2]
        parts.append(_seen_at(views, i, rng.uniform(-0.5, [width - 0.5, height - 0.5], (len(own), 2)), own))
    xyz, rgb = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Points(xyz=xyz, rgb=rgb, source="random")


def _seen_at(views: Views, i: int, xy: NDArray, depth: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Place and colour [n, 3] of what view i shows at pixels xy [n, 2] at depths [n]."""
    fx, fy, cx, cy = views.intrinsics[i]
    p = np.column_stack([(xy[:, 0] - cx) / fx, (xy[:, 1] - cy) / fy, np.ones(len(xy))]) * depth[:, None]
    pose, picture = views.world_from_cam[i], views.pictures[i]
    column, row = np.clip(np.rint(xy).astype(int), 0, [picture.shape[1] - 1, picture.shape[0] - 1]).T
    xyz = (p @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)
    return xyz, (picture[row, column] / 255).astype(np.float32)
