"""The camera path that a clip is generated along: given, or that of a real clip, edited or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import LongtakeError
from ...geometry import invert_pose, nearest_rotation, pose, rotation_from_vector, vector_from_rotation
from .actions import FPS
from .camera import snap_frames

MAX_GAP_S = 0.5  # without a pose that is bridged
_RIGID = 1e-3  # largest number of R^T R - 1 in poses that have gone through single precision and text


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraPath:
    """F frames of a camera, 16 a second, beginning where the first picture was taken.

    Raises:
        LongtakeError: shapes disagree, a number is not finite, or a pose is not a rigid motion.
    """

    world_from_cam: NDArray[np.float64]  # [F, 4, 4] metres, relative to frame 0; camera axes x right, y down, z forward
    intrinsics: NDArray[np.float64]  # [F, 4] fx, fy, cx, cy in pixels of the first picture, whole, of width x height
    width: int
    height: int

    def __post_init__(self) -> None:
        count = len(self.world_from_cam)
        if self.world_from_cam.shape != (count, 4, 4) or self.intrinsics.shape != (count, 4) or count == 0:
            raise LongtakeError(
                f"a camera path of poses {self.world_from_cam.shape} and intrinsics {self.intrinsics.shape}: give "
                "[F, 4, 4] and [F, 4] of the same F frames"
            )
        bad = ~(np.isfinite(self.world_from_cam).all((1, 2)) & np.isfinite(self.intrinsics).all(1))
        if bad.any():
            raise LongtakeError(f"the camera path's frame {int(bad.argmax())} has a number that is not finite")
        r = self.world_from_cam[:, :3, :3]
        off = np.abs(np.swapaxes(r, 1, 2) @ r - np.eye(3)).max((1, 2)) > _RIGID
        off |= (np.linalg.det(r) < 0) | (self.world_from_cam[:, 3] != (0, 0, 0, 1)).any(1)
        if off.any():
            raise LongtakeError(
                f"the camera path's frame {int(off.argmax())} is not a rigid motion: give world_from_cam (c2w), the "
                "upper left 3x3 a rotation without scale, the last row 0 0 0 1"
            )
        if (self.intrinsics[:, :2] <= 0).any():
            raise LongtakeError("the camera path has a focal length that is not positive")

    @property
    def num_frames(self) -> int:
        return len(self.world_from_cam)


def given_path(world_from_cam: NDArray, intrinsics: NDArray, *, width: int, height: int) -> CameraPath:
    """A path of poses in any frame, in metres, 16 a second.

    Args:
        world_from_cam: [F, 4, 4].
        intrinsics: (fx, fy, cx, cy) [4], a camera matrix [3, 3], or one of them for each frame [F, 4], [F, 3, 3], in
            pixels of the first picture of width x height.

    Raises:
        LongtakeError: as `CameraPath`, or the intrinsics have another shape.
    """
    poses = np.asarray(world_from_cam, np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise LongtakeError(f"poses have shape {poses.shape}, not [F, 4, 4]")
    rows = _intrinsics(np.asarray(intrinsics, np.float64), len(poses))
    checked = CameraPath(world_from_cam=poses, intrinsics=rows, width=width, height=height)
    relative = invert_pose(poses[0]) @ poses
    relative[0] = np.eye(4)
    return replace(checked, world_from_cam=relative)


def _intrinsics(k: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    if k.shape[-2:] == (3, 3):
        if (k[..., (0, 1, 2, 2), (1, 0, 0, 1)] != 0).any() or (k[..., 2, 2] != 1).any():
            raise LongtakeError("a camera matrix is not (fx 0 cx; 0 fy cy; 0 0 1): skew is not supported")
        k = k[..., (0, 1, 0, 1), (0, 1, 2, 2)]
    if k.shape not in ((4,), (frames, 4)):
        raise LongtakeError(
            f"intrinsics of shape {k.shape} for {frames} frames: give fx, fy, cx, cy or a 3x3 matrix, once or for each"
        )
    return np.broadcast_to(k, (frames, 4)).copy()


def path_of_clip(
    world_from_cam: NDArray,
    intrinsics: NDArray,
    times_s: NDArray,
    *,
    width: int,
    height: int,
    metres_per_unit: float,
) -> CameraPath:
    """The path of a real clip, at 16 frames a second whatever its own rate.

    Args:
        world_from_cam: [T, 4, 4], NaN where a frame has no pose. The path ends at the last pose.
        intrinsics: [T, 4] in pixels of width x height.
        times_s: [T], increasing.
        metres_per_unit: of the poses' translations: 1 where a manifest's scale_kind is metric.

    Raises:
        LongtakeError: the first frame, or more than half a second, has no pose; the scale is no positive number.
    """
    posed = np.flatnonzero(np.isfinite(world_from_cam).all((1, 2)))
    if len(posed) == 0 or posed[0] != 0:
        raise LongtakeError("the clip's first frame has no pose: begin at one that has")
    if not (np.isfinite(metres_per_unit) and metres_per_unit > 0):
        raise LongtakeError(f"metres_per_unit is {metres_per_unit}: a clip of relative scale needs a positive number")
    times = np.asarray(times_s, np.float64)[posed]
    gaps = np.diff(times)
    if (gaps > MAX_GAP_S).any():
        i = int((gaps > MAX_GAP_S).argmax())
        raise LongtakeError(
            f"the clip has no pose for {gaps[i]:.2f} s after its frame {posed[i]}: end it there or begin after that"
        )
    poses = np.asarray(world_from_cam, np.float64)[posed].copy()
    poses[:, :3, 3] *= metres_per_unit
    whole = given_path(poses, np.asarray(intrinsics)[posed], width=width, height=height)
    wanted = times[0] + np.arange(int((times[-1] - times[0]) * FPS + 1e-6) + 1) / FPS
    return _at(whole, np.interp(wanted, times, np.arange(len(times))))


def faster(path: CameraPath, speed: float) -> CameraPath:
    """The same way in 1 / speed of the time."""
    if not (np.isfinite(speed) and speed > 0):
        raise LongtakeError(f"speed is {speed}, not a positive number; to go back use reverse")
    count = int((path.num_frames - 1) / speed + 1e-6) + 1
    return _at(path, np.minimum(np.arange(count) * speed, path.num_frames - 1))


def backwards(path: CameraPath) -> CameraPath:
    """The motion from the last pose to the first, begun where the first picture was taken.

    The lens stays that of the picture: intrinsics are reversed as a ratio to what they begin with.
    """
    poses = path.world_from_cam[::-1]
    zoom = path.intrinsics[::-1, :2] / path.intrinsics[-1, :2]
    intrinsics = path.intrinsics.copy()
    intrinsics[:, :2] = zoom * path.intrinsics[0, :2]
    intrinsics[:, 2:] = path.intrinsics[0, 2:] + path.intrinsics[::-1, 2:] - path.intrinsics[-1, 2:]
    return given_path(poses, intrinsics, width=path.width, height=path.height)


def there_and_back(path: CameraPath) -> CameraPath:
    """The path, and the same way back to its beginning: 2 F - 1 frames."""
    poses = np.concatenate([path.world_from_cam, path.world_from_cam[-2::-1]])
    return replace(path, world_from_cam=poses, intrinsics=np.concatenate([path.intrinsics, path.intrinsics[-2::-1]]))


def first_frames(path: CameraPath, count: int) -> CameraPath:
    """The first frames of a path: 8 k + 1 of them, as near to `count` as that number and the path allow."""
    kept = snap_frames(min(count, path.num_frames), most=path.num_frames)
    return replace(path, world_from_cam=path.world_from_cam[:kept], intrinsics=path.intrinsics[:kept])


def for_picture(path: CameraPath, width: int, height: int) -> CameraPath:
    """The path with intrinsics of the same picture at another size.

    Raises:
        LongtakeError: the shape is another, so it is not the whole of the same picture.
    """
    x, y = width / path.width, height / path.height
    if abs(x - y) * max(path.width, path.height) > 2:  # pixels, from rounding both sides
        raise LongtakeError(
            f"the picture is {width}x{height} and the camera path's intrinsics are for {path.width}x{path.height}, "
            "another shape: give the picture they belong to, or its own intrinsics"
        )
    return replace(path, intrinsics=path.intrinsics * (x, y, x, y), width=width, height=height)


def _at(path: CameraPath, index: NDArray[np.float64]) -> CameraPath:
    """The path at fractional frames [N]: constant angular velocity and straight between two frames."""
    a = np.floor(index).astype(int)
    b = np.minimum(a + 1, path.num_frames - 1)
    s = (index - a)[:, None]
    r, t = nearest_rotation(path.world_from_cam[:, :3, :3]), path.world_from_cam[:, :3, 3]
    turn = vector_from_rotation(np.swapaxes(r[a], 1, 2) @ r[b])
    return replace(
        path,
        world_from_cam=pose(r[a] @ rotation_from_vector(s * turn), t[a] + s * (t[b] - t[a])),
        intrinsics=path.intrinsics[a] + s * (path.intrinsics[b] - path.intrinsics[a]),
    )
