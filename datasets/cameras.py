"""Cameras as files of other tools state them, and the way from there to `world_from_cam` with OpenCV axes.

A pose file does not say of itself which way its matrices lead, nor where the camera's axes point; a wrong guess looks
as good as a right one until something is trained on it. So a format either defines both, and then flags that say
otherwise are refused; or it does not, and then both flags are asked for. Poses are looked at as well, for signs that
what was said cannot be so (`signs`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import BadMedia, LongtakeError
from ..geometry import angle_between_deg, invert_pose, nearest_rotation
from ..records import check_shape

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # camera axes x right, y up, z backward
ROUNDING = 1e-3  # by which a rotation may be off for digits that were left out
CORNER = np.array(
    [0.0, 0.0, 0.5, 0.5]
)  # of fx, fy, cx, cy: from a picture's corner rather than its first pixel's centre
EXACT = 1e-6  # below it, a rotation is left as it is, bit for bit
MAX_FRAMES = 2_000_000
DIRECTIONS = ("c2w", "w2c")
CONVENTIONS = ("opencv", "opengl")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras:
    """The cameras of one clip, T rows in order of time, as a file states them; only pixel centres are ours already."""

    name: str  # of the clip within its collection, such as a scene's folder
    poses: NDArray[np.float64]  # [T, 4, 4] in the file's direction and axes; NaN where a frame has none
    intrinsics: NDArray[np.float64] | None = None  # [T, 4] fx, fy, cx, cy; pixel centres at integers
    normalized: bool = False  # fx and cx are shares of the width, fy and cy of the height, from the picture's corner
    size: tuple[int, int] | None = None  # width, height of the pictures that the intrinsics are of
    times_s: NDArray[np.float64] | None = None  # [T]
    frames: NDArray[np.int64] | None = None  # [T] which frame of the video each row is of; None: row i of frame i
    image_names: tuple[str, ...] = ()  # [T] of the pictures, below `media`
    media: str | None = None  # video file or image folder, relative to the collection
    distortion: tuple[float, float] | tuple[()] = ()  # k1, k2
    depth: str | None = None  # depth and masks of the clip in files of the format, relative to the collection
    masks: str | None = None
    caption: str | None = None
    metres_per_unit: float | None = None  # where the file says so
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.poses)
        if n > MAX_FRAMES:
            raise BadMedia("too_many_frames", f"{self.name}: {n} frames, more than {MAX_FRAMES}.")
        check_shape(self, "poses", (n, 4, 4))
        for name, shape in {"intrinsics": (n, 4), "times_s": (n,), "frames": (n,)}.items():
            if getattr(self, name) is not None:
                check_shape(self, name, shape)
        if self.image_names and len(self.image_names) != n:
            raise ValueError(f"{len(self.image_names)} pictures for {n} poses")
        for name, values in (("times", self.times_s), ("frame numbers", self.frames)):
            if values is not None and n > 1 and not (np.diff(values) > 0).all():
                raise BadMedia("broken_cameras", f"{self.name}: its {name} do not increase from row to row.")
        if self.frames is not None and n and (self.frames[0] < 0 or self.frames[-1] >= MAX_FRAMES):
            raise BadMedia("broken_cameras", f"{self.name}: it has frame {self.frames.min()} .. {self.frames.max()}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Refused:
    """One clip of a collection whose files do not do."""

    name: str
    error: BadMedia


def each(names: Iterable[str], read: Callable[[str], Cameras]) -> Iterator[Cameras | Refused]:
    """Read clip after clip; one that is damaged is refused by itself and leaves the others be."""
    for name in names:
        try:
            yield read(name)
        except BadMedia as error:
            yield Refused(name=name, error=error)


def settle(said: str | None, defined: str | None, flag: str, choices: tuple[str, ...], form: str) -> str:
    """What holds, of what the user says and what a format defines.

    Raises:
        LongtakeError: neither says it, or they differ.
    """
    if said is not None and said not in choices:
        raise LongtakeError(f"{flag} {said}: choose one of {', '.join(choices)}.")
    if defined is None:
        if said is None:
            raise LongtakeError(
                f"The format {form} does not say it, and poses look as good either way: pass {flag}, one of "
                f"{', '.join(choices)}.",
            )
        return said
    if said is not None and said != defined:
        raise LongtakeError(
            f"{flag} {said} contradicts the format {form}, which defines {defined}. If these files hold {said} all the "
            "same, whoever wrote them did not keep to the format: read their poses as .npz or .npy instead.",
        )
    return defined


def rigid(poses: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The poses with exact rotations; those that are exact to `EXACT` stay as they are.

    Raises:
        BadMedia: mirrored (determinant -1), scaled, or no rigid motions for another reason.
    """
    there = np.isfinite(poses).all((1, 2))
    if (half := np.isfinite(poses[:, :3]).any((1, 2)) & ~there).any():
        raise BadMedia("not_rigid", f"{where}: the pose of row {int(half.argmax())} has numbers that are not finite.")
    if not there.any():
        raise BadMedia("no_poses", f"{where}: no row has a pose.")
    m = poses[there]
    if (odd := np.flatnonzero((np.abs(m[:, 3] - [0, 0, 0, 1]) > EXACT).any(1))).size:
        words = "are its matrices stored in columns, that is transposed?"
        raise BadMedia("not_rigid", f"{where}: a pose has the last row {m[odd[0], 3]} instead of 0 0 0 1; {words}")
    r = m[:, :3, :3]
    for what, values, most in (("rotation", r, 1e6), ("position", m[:, :3, 3], 1e12)):
        if np.abs(values).max() > most:
            raise BadMedia("not_rigid", f"{where}: a pose has a {what} with numbers like {np.abs(values).max():.3g}.")
    if (np.linalg.det(r) < 0).any():
        raise BadMedia(
            "mirrored",
            f"{where}: row {int(np.flatnonzero(there)[np.linalg.det(r).argmin()])} is mirrored (determinant "
            f"{np.linalg.det(r).min():.3g}): an odd number of axes was flipped, or a left-handed world written as it "
            "is. No choice of --pose or --convention mends that: turn the poses to a right-handed world first.",
        )
    nearest = nearest_rotation(r)
    off = np.abs(r - nearest).max((1, 2))
    if (off > ROUNDING).any():
        size = float(np.cbrt(np.linalg.det(r[off.argmax()])))
        raise BadMedia(
            "not_rigid",
            f"{where}: the rotation of row {int(np.flatnonzero(there)[off.argmax()])} is off by {off.max():.3g}; it "
            f"scales lengths by {size:.3g}. Divide the scale out and pass it as --metres-per-unit instead.",
        )
    out = poses.copy()
    rough = np.flatnonzero(there)[off > EXACT]
    out[rough, :3, :3] = nearest[off > EXACT]
    return out


def world_from_cam(poses: NDArray[np.float64], direction: str, convention: str) -> NDArray[np.float64]:
    """[T, 4, 4] camera to world with OpenCV axes, of rigid poses in a direction of `DIRECTIONS` and `CONVENTIONS`.

    c2w in OpenCV axes goes through bit for bit, and so does c2w in OpenGL axes, whose signs alone change.
    """
    c2w = invert_pose(poses) if direction == "w2c" else poses
    return c2w @ OPENGL_FROM_OPENCV if convention == "opengl" else c2w


def signs(poses: NDArray[np.float64], direction: str, convention: str) -> tuple[int, str]:
    """Whether the poses of one clip look like what was said.

    Two things are looked at, under what was said and under the three other readings. Cameras that film one thing from
    around look at one place, in front of them. And a camera that travels straight on looks to where it goes far more
    often than back. Neither holds of every film (whoever turns with a camera held out films from one place outward),
    so one clip proves nothing: a collection has one reading, and most of its clips that show anything decide.

    Returns:
        1 where they look so, -1 where another reading fits plainly and this one does not, 0 where nothing is to be
        seen; and words for -1.
    """
    posed = poses[np.isfinite(poses).all((1, 2))]
    if len(posed) < 5:
        return 0, ""
    posed = posed[:: max(1, len(posed) // 500)]
    said = (direction, convention)
    readings = {(d, c): world_from_cam(posed, d, c) for d in DIRECTIONS for c in CONVENTIONS}
    around = {k: _looks_at_one_place(v) for k, v in readings.items()}
    fits = [k for k, v in around.items() if v == 1]
    if around[said] == 1 or fits:
        words = "look away from" if around[said] == -1 else "do not look at"
        other = " or ".join(" ".join(k) for k in fits)
        return (1, "") if around[said] == 1 else (-1, f"the cameras {words} any one place; as {other} they look at one")
    ahead = {k: _looks_ahead(v) for k, v in readings.items()}
    other = " or ".join(" ".join(k) for k, v in ahead.items() if v > 0.9)
    if ahead[said] < -0.9 and other:
        return -1, f"the camera travels backward all the way; as {other} forward"
    return int(ahead[said] > 0.9), ""


def _looks_at_one_place(c2w: NDArray[np.float64]) -> int:
    """1 where cameras around a place look at it, -1 where all look away from it, 0 for anything else."""
    z, centre = c2w[:, :3, 2], c2w[:, :3, 3]
    if np.linalg.norm(z.mean(0)) > 0.9:  # they all look much the same way: a place far off would do for any of them
        return 0
    across = np.eye(3) - z[:, :, None] * z[:, None, :]
    place, *_ = np.linalg.lstsq(across.sum(0), (across @ centre[:, :, None]).sum(0)[:, 0], rcond=None)
    to = place - centre
    distance = np.linalg.norm(to, axis=1)
    spread = np.linalg.norm(centre - centre.mean(0), axis=1)
    if not np.median(distance) > 1e-9 or np.median(spread) < 0.3 * np.median(distance):
        return 0
    cosine = (to * z).sum(1) / np.maximum(distance, 1e-12)
    return int((cosine > 0.95).all()) - int((cosine < -0.95).all())


def _looks_ahead(c2w: NDArray[np.float64]) -> float:
    """How well the camera looks to where it goes: the mean cosine over its path, -1 .. 1; 0 where it goes nowhere."""
    step = c2w[1:, :3, 3] - c2w[:-1, :3, 3]
    length = np.linalg.norm(step, axis=1)
    if length.sum() <= 1e-9 or angle_between_deg(c2w[:1, :3, :3], c2w[:, :3, :3]).max() > 60:
        return 0.0
    return float((step * (c2w[:-1, :3, 2] + c2w[1:, :3, 2]) / 2).sum() / length.sum())


def intrinsics_problem(k: NDArray[np.float64], size: tuple[int, int]) -> str | None:
    """Words where intrinsics [T, 4] cannot be in pixels of pictures of this size, or None.

    A principal point lies near the middle of its picture. Where it lies near the middle of a picture of another size
    and the same shape, the intrinsics are that picture's.
    """
    odd = ~(np.abs(k) < 1e9).all(1) | ~(k[:, :2] > 1e-6).all(1)  # float32 holds what lies between
    if odd.any():
        row = int(odd.argmax())
        return f"row {row} has the intrinsics {k[row].tolist()}, which are no camera's"
    width, height = size
    if (np.abs(k) <= 4).all():
        return (
            f"focal lengths and principal points of {k[0].tolist()} are no pixels: shares of width and height? "
            "Then pass --normalized"
        )
    ratio = np.median(2 * (k[:, 2:] + 0.5) / [width, height], axis=0)
    if (np.abs(ratio - 1) > 0.2).all() and abs(ratio[0] / ratio[1] - 1) < 0.05:
        return (
            f"the principal point lies in the middle of a picture of about {width * ratio[0]:.0f} x "
            f"{height * ratio[1]:.0f}, but the pictures have {width} x {height}: the intrinsics are of another size. "
            f"Scale them by {1 / ratio.mean():.4g}, or pass the pictures they belong to"
        )
    turned = ratio * [width, height] / [height, width]
    if (np.abs(turned - 1) < 0.05).all() and abs(width - height) > 0.1 * width:
        return f"the principal point lies in the middle of a picture of {height} x {width}: one that was turned?"
    outside = ((k[:, 2:] < -0.5) | (k[:, 2:] > np.array(size) - 0.5)).any(1)
    if outside.any():
        row = int(outside.argmax())
        return (
            f"the principal point {k[row, 2:].tolist()} of row {row} lies outside the {width} x {height} picture: the "
            "intrinsics are of another size"
        )
    return None


def numbered(names: tuple[str, ...], first: int) -> NDArray[np.int64] | None:
    """[T] frames by the last number in their pictures' names, where all names are alike but for it; else None."""
    found = [re.fullmatch(r"(.*?)([0-9]{1,9})(\.[A-Za-z0-9]+)", name) for name in names]
    if not names or not all(found) or len({(m[1], m[3]) for m in found if m}) > 1:
        return None
    frames = np.array([int(m[2]) for m in found if m], np.int64) - first
    return frames if frames[0] >= 0 and (np.diff(frames) > 0).all() and frames[-1] < MAX_FRAMES else None


def to_pixels(cameras: Cameras, size: tuple[int, int]) -> Cameras:
    """The same cameras with intrinsics in pixels of `size`, where they were shares of it."""
    if not cameras.normalized or cameras.intrinsics is None:
        return cameras
    scale = np.array([size[0], size[1], size[0], size[1]], np.float64)
    return replace(cameras, intrinsics=cameras.intrinsics * scale - CORNER, normalized=False, size=size)


def unit_quaternions(q: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Quaternions [T, 4], as they are.

    Raises:
        BadMedia: broken_cameras, where one has not the length 1.
    """
    if q.ndim != 2 or q.shape[1] != 4:
        raise BadMedia("broken_cameras", f"{where}: quaternions of the shape {q.shape}.")
    length = np.linalg.norm(q, axis=1)
    if not (np.abs(length - 1) < 1e-2).all():
        row = int((~(np.abs(length - 1) < 1e-2)).argmax())
        raise BadMedia(
            "broken_cameras", f"{where}: the quaternion of row {row} has the length {length[row]:.3g}, not 1."
        )
    return q
