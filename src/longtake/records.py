"""The records that stages hand to each other. Frozen, checked once where they are made.

One video file gives a `VideoInfo`; its uninterrupted takes are `Shot`s; a shot's camera is a `Track`; what a clip
was refused for is a `Rejected`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import BadMedia as BadMedia
from .errors import LongtakeError as LongtakeError
from .geometry import angle_between_deg

MOTION_CLASSES = ("general", "rotation", "static", "planar")


def check_shape(record: object, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the array `record.name` has this shape."""
    got = np.shape(getattr(record, name))
    if got != shape:
        raise ValueError(f"{type(record).__name__}.{name} has shape {got}, not {shape}")


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A counted refusal: the stage that refused, a snake_case reason, and words for a person."""

    stage: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """What is known of a video file, or of a folder of images, before its pixels are decoded.

    `width` x `height` are what a viewer sees: display matrix and sample aspect ratio applied (the wider side is kept,
    the other stretched, so no pixel is thrown away).
    """

    path: str  # absolute; for images the folder or the pattern
    is_images: bool
    image_paths: tuple[str, ...]  # empty for a video file
    sha256: str
    num_bytes: int
    container: str
    codec: str
    pix_fmt: str
    coded_width: int
    coded_height: int
    width: int
    height: int
    rotation_deg: int  # clockwise, 0, 90, 180 or 270: what the display matrix asks for
    mirrored: bool = False  # the display matrix also asks for a left-right flip, before the rotation
    sar_num: int
    sar_den: int
    color_range: str  # "tv", "pc" or "unknown"
    interlaced: bool
    pts_ns: NDArray[np.int64]  # [N] presentation times from the first frame, strictly increasing
    is_vfr: bool
    tagged_fps: float  # what the container claims; nan where it claims nothing
    origin_ns: int = 0  # the first frame's time on the container's own clock

    def __post_init__(self) -> None:
        late = np.flatnonzero(np.diff(self.pts_ns) <= 0) + 1
        if late.size:
            raise ValueError(
                f"{self.path}: frame {late[0]} is shown at {self.pts_ns[late[0]]} ns, not after the frame before it at "
                f"{self.pts_ns[late[0] - 1]} ns. Sort frames by presentation time when probing."
            )

    @property
    def num_frames(self) -> int:
        return len(self.pts_ns)

    @property
    def fps(self) -> float:
        """Frames per second from the time stamps (their median step); nan for fewer than two frames."""
        return float(1e9 / np.median(np.diff(self.pts_ns))) if len(self.pts_ns) > 1 else float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One decoded frame, upright, square pixels, full range; `gray` may be smaller than the video."""

    index: int  # in the source video
    pts_ns: int
    gray: NDArray[np.uint8]  # [h, w]
    thumb: NDArray[np.uint8]  # [h', w', 3] RGB, long side at most 160


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """An uninterrupted take: frames start .. stop-1 of the source, and the part of the picture that is scene."""

    index: int
    start: int
    stop: int
    crop: tuple[int, int, int, int]  # x, y, width, height in display pixels; the whole picture without bars
    overlay: NDArray[np.bool_] | None  # [h, w] over the whole picture, True where a watermark or HUD never changes
    boundary: str  # what ended the shot before it: "start", "cut", "fade", "dissolve"
    photographs: bool = False  # separate photographs: no continuity from frame to frame

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """One shot's camera track, as every stage after pose estimation reads it.

    Poses of frames that could not be posed are NaN and `pose_valid` is False there. Intrinsics are in pixels of
    `width` x `height`, the full display picture (bars included), pixel centres at integer coordinates.
    """

    pts_ns: NDArray[np.int64]  # [T] from the first frame of the source video
    width: int
    height: int
    world_from_cam: NDArray[np.float64]  # [T, 4, 4]; metres where scale_kind is "metric"
    pose_valid: NDArray[np.bool_]  # [T]
    intrinsics: NDArray[np.float64]  # [T, 4] fx, fy, cx, cy
    intrinsics_mode: str  # "static" (one set for the shot) or "per_frame"
    focal_status: str  # "estimated" from the motion, "given", "predicted" (a network's word for it, the motion does not
    # determine it), or "undetermined" (nothing does: value is a prior)
    focal_sigma: NDArray[np.float64]  # [T] relative standard deviation of the focal length; nan where not estimated
    distortion_model: str  # "none" or "opencv_radial"
    distortion: tuple[float, ...]  # (k1, k2) or ()
    motion_class: str  # one of MOTION_CLASSES
    flags: tuple[str, ...]  # snake_case remarks: "low_parallax", "few_tracks", "loop_closed", ...
    scale_kind: str  # "metric" or "relative"
    pose_source: str  # which engine made the poses
    is_keyframe: NDArray[np.bool_]  # [T]
    reproj_rmse_px: NDArray[np.float64]  # [T] over inlier tracks, pixels of width x height; nan where none
    sampson_px: NDArray[np.float64]  # [T] median Sampson distance of held-out matches to the frame before; nan
    num_tracked: NDArray[np.int32]  # [T] feature tracks seen
    inlier_ratio: NDArray[np.float64]  # [T] of the tracks that have a scene point
    coverage: NDArray[np.float64]  # [T] share of an 8 x 8 grid of the picture with an inlier
    dyn_ratio: NDArray[np.float64]  # [T] share of the tracks that move against the scene
    step_px: NDArray[np.float64]  # [T] median displacement of tracks from the frame before, pixels; nan at frame 0
    stats: dict[str, float] = field(default_factory=dict)  # whole-track numbers: ba_rmse_px, num_points, seconds_...
    scale_raw: NDArray[np.float64] | None = None  # [T] metric scale as measured in each frame; nan where undefined
    scale_smoothed: NDArray[np.float64] | None = None  # [T] the same as used; nan where undefined
    examples: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    # [M, 4] (frame row, feature track id, x, y) for a few frames: what a report draws over its contact sheet

    def __post_init__(self) -> None:
        n = len(self.pts_ns)
        for name, shape in {"world_from_cam": (n, 4, 4), "intrinsics": (n, 4)}.items():
            check_shape(self, name, shape)
        for name in (
            "pose_valid focal_sigma is_keyframe reproj_rmse_px sampson_px num_tracked inlier_ratio coverage dyn_ratio "
            "step_px"
        ).split():
            check_shape(self, name, (n,))
        for name in ("scale_raw", "scale_smoothed"):
            values = getattr(self, name)
            if values is not None:
                check_shape(self, name, (n,))
                if (np.isinf(values) | (values <= 0)).any():
                    raise ValueError(f"{name} must be positive, or nan where a frame has none")
        if self.motion_class not in MOTION_CLASSES:
            raise ValueError(f"motion class {self.motion_class!r} is none of {', '.join(MOTION_CLASSES)}")
        posed = np.asarray(np.isfinite(self.world_from_cam).all((1, 2)))
        if (posed != self.pose_valid).any():
            bad = int(np.flatnonzero(posed != self.pose_valid)[0])
            raise ValueError(
                f"frame {bad}: pose_valid is {self.pose_valid[bad]} but its pose is {'finite' if posed[bad] else 'NaN'}"
            )
        if not np.isfinite(self.intrinsics).all() or (self.intrinsics[:, :2] <= 0).any():
            raise ValueError("intrinsics must be finite with positive focal lengths, also for frames without a pose")


def known_track(
    *,
    pts_ns: NDArray[np.int64],
    world_from_cam: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    width: int,
    height: int,
    motion_class: str,
    scale_kind: str,
    pose_source: str,
    distortion: tuple[float, ...] = (),
    flags: tuple[str, ...] = (),
    same_px: float = 1e-6,
) -> Track:
    """The track of a camera that was there before its pictures, or is taken as it is told: nothing is estimated.

    Args:
        world_from_cam: [T, 4, 4] nan in frames whose pose nobody tells.
        intrinsics: [T, 4] fx, fy, cx, cy.
        same_px: frames whose intrinsics differ by no more have one set.
    """
    n = len(pts_ns)
    unknown, none = np.full(n, np.nan), np.zeros(n)
    return Track(
        pts_ns=pts_ns,
        width=width,
        height=height,
        world_from_cam=world_from_cam,
        pose_valid=np.asarray(np.isfinite(world_from_cam).all((1, 2))),
        intrinsics=intrinsics,
        intrinsics_mode="per_frame" if np.ptp(intrinsics, axis=0).max() > same_px else "static",
        focal_status="given",
        focal_sigma=unknown,
        distortion_model="opencv_radial" if distortion else "none",
        distortion=distortion,
        motion_class=motion_class,
        flags=flags,
        scale_kind=scale_kind,
        pose_source=pose_source,
        is_keyframe=np.zeros(n, bool),
        reproj_rmse_px=unknown,
        sampson_px=unknown,
        num_tracked=none.astype(np.int32),
        inlier_ratio=none,
        coverage=none,
        dyn_ratio=none,
        step_px=unknown,
    )


def motion_of(world_from_cam: NDArray[np.float64]) -> str:
    """What the camera does along exact poses [T, 4, 4]: general, or rotation or static where it does not travel."""
    places, turns = world_from_cam[:, :3, 3], world_from_cam[:, :3, :3]
    if np.ptp(places, axis=0).max() > 1e-6 * max(1.0, float(np.abs(places).max())):
        return "general"
    return "rotation" if angle_between_deg(turns[:1], turns).max() > 1e-3 else "static"
