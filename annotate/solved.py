"""How a camera track is estimated, and what is known of one chunk once it is solved."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .klt import FeatureTracks, KltConfig
from .loops import LoopConfig
from .mapper import MapperConfig
from .matching import MatchConfig
from .motion import MotionConfig
from .scale import ScaleConfig

HELD_OUT = 10  # every tenth track takes no part in estimation and measures it


@dataclass(frozen=True)
class DepthPriorConfig:
    """How depth from elsewhere is weighed. Each clip of depth says its own relative deviation."""

    independent: float = 30.0  # samples that the depth of one picture counts as at most
    focal_sigma: float = 0.05  # relative deviation of the focal lengths that networks say
    expected_zoom: float = 0.15  # range of their logs, smoothed, from which on they say that the camera zooms
    wander: float = 0.1  # of a map's depths against those known that asks for focal lengths of their own
    scales_agree: float = 0.1  # difference of the logs of two measures of one scale
    min_points: int = 20  # of all, that a scale may come from
    min_agreeing: float = 0.7  # share of what was seen that cameras which came with the depth must explain


@dataclass(frozen=True)
class TrackConfig:
    """How a camera track is estimated. Pixel thresholds of the parts are for an image diagonal of 800."""

    max_side: int = 960  # frames are tracked at most this large
    intrinsics_mode: str = "auto"  # "shared", "per_frame", or what the data ask for
    klt: KltConfig = field(default_factory=KltConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig)
    loops: LoopConfig = field(default_factory=LoopConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    depth: DepthPriorConfig = field(default_factory=DepthPriorConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    zoom_evidence: float = 1.01  # times what one focal length explains, that per-frame focal lengths must explain,
    zoom_spread: float = 0.03  # and the spread (5 to 95 %) of log f they must show
    undetermined_above: float = 0.04  # relative standard deviation of a focal length that is not worth reporting
    frame_px: float = 3.0  # of an inlier of a frame between keyframes
    much_unexplained: float = 0.35  # share of tracks a map leaves over from which on a second scene is looked for,
    farther_out: float = 1.25  # which is the world if it covers so much more of the picture's border
    barrel: float = -0.12  # k1 beyond which, as where much is unexplained, the lens may be a fisheye
    min_frame_inliers: int = 12
    min_frame_ratio: float = 0.3

    def __post_init__(self) -> None:
        if self.intrinsics_mode not in ("auto", "shared", "per_frame"):
            raise ValueError(f"intrinsics_mode is auto, shared or per_frame, not {self.intrinsics_mode!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """A chunk's cameras in its own world, in pixels of the frames tracked."""

    tracks: FeatureTracks
    world_from_cam: NDArray[np.float64]  # [F, 4, 4] NaN where not posed
    intrinsics: NDArray[np.float64]  # [F, 6]
    per_view: bool
    focal_sigma: NDArray[np.float64]  # [F] relative
    motion_class: str
    flags: frozenset[str]
    point_track: NDArray[np.int64]  # [N] track numbers of the points
    points: NDArray[np.float64]  # [N, 3]
    obs_xy: NDArray[np.float64]  # [O, 2] positions of the chunk's observations, drift taken out
    residual: NDArray[np.float64]  # [O] px; nan without a point
    inlier: NDArray[np.bool_]  # [O]
    stats: dict[str, float]
