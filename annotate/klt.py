"""Feature tracks through a video: pyramidal Lucas-Kanade from frame to frame, anchored at keyframes.

Tracks are born on XFeat keypoints (so that keyframes can be matched again by descriptor) and on corners where XFeat
found none. Between frames a track must come back to where it started when followed backwards; at a keyframe it is
aligned once more with its appearance in the keyframe before, so drift adds up per keyframe, not per frame. When a fast
turn or blur breaks most tracks, LighterGlue bridges the step. Lucas & Kanade 1981; Bouguet 2001; Shi & Tomasi 1994.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import unit_px
from ..records import Frame
from .features import Features, extract, match


@dataclass(frozen=True)
class KltConfig:
    max_tracks: int = 1200
    min_distance_px: float = 7.0  # between tracks where they are born
    window_px: int = 17
    window_softness: float = 5.0  # or wider: of the standard deviation of the picture's blur
    levels: int = 4
    max_return_px: float = 1.0  # forward-backward distance
    keyframe_motion: float = 0.045  # median displacement since the last keyframe, of the image diagonal
    keyframe_survival: float = 0.75  # or fewer tracks than this share have survived
    turned_patch: float = 0.05  # norm of turn and zoom above which patches are turned before they are aligned
    bridge_below: float = 0.35  # share of tracks surviving one step below which learned matches bridge it
    chunk_keyframes: int = 120  # a long shot is handed on in chunks of this many keyframes,
    chunk_overlap: int = 12  # of which this many belong to two chunks


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTracks:
    """Where scene points were seen: observation o is track `track[o]` in frame `row[o]` at `xy[o]`.

    Rows count the frames of the chunk from 0; `frame_index` names them in the source video.
    """

    width: int  # of the frames tracked in
    height: int
    px: float  # that tracks' errors count as one, see `error_px`
    frame_index: NDArray[np.int64]  # [F]
    row: NDArray[np.int32]  # [O] ascending
    track: NDArray[np.int32]  # [O] numbers that mean the same track in the next chunk
    xy: NDArray[np.float32]  # [O, 2] pixels, centres at integer coordinates
    keyframes: NDArray[np.int64]  # [K] frame rows, ascending; the first and last row are keyframes
    images: list[NDArray[np.uint8]]  # [K] the keyframes' pixels
    features: list[Features]  # [K]
    keypoint_track: list[NDArray[np.int32]]  # [K] the track each keypoint of `features` lies on, -1 for none


def without_pictures(tracks: FeatureTracks) -> FeatureTracks:
    """What is kept of a chunk once it is solved: pictures and descriptors take most of the memory."""
    return replace(tracks, images=[], features=[], keypoint_track=[])


SOFT_PX = 2.0  # standard deviation of the blur before softness is measured: compression's noise looks sharp
SOFT_ERROR = 0.33  # of a picture's softness, that counts as a pixel


def softness(gray: NDArray[np.uint8]) -> float:
    """Standard deviation (px) of the blur that makes steps the edges of a picture; 0 of a sharp one, or one without.

    A step after a Gaussian of deviation s has twice s^2 times more energy in its slope than in the change of its slope.
    """
    picture = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), SOFT_PX)

    def slopes(of: NDArray) -> tuple[NDArray, NDArray]:
        return cv2.Sobel(of, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(of, cv2.CV_32F, 0, 1, scale=1 / 8)

    first = slopes(picture)
    second = [s for slope in first for s in slopes(slope)]
    bend = sum(float(np.square(s).sum()) for s in second)
    if bend == 0:
        return 0.0
    return float(np.sqrt(max(0.0, sum(float(np.square(s).sum()) for s in first) / bend / 2 - SOFT_PX**2)))


def error_px(width: int, height: int, soft: float) -> float:
    """Pixels that tracks err by where in a sharp picture with a diagonal of 800 they err by one: in a soft picture it
    is not the pixels that matter, but a share of its blur."""
    return max(unit_px(width, height), SOFT_ERROR * soft)


class _Tracker:
    """The state of the loop: the last frame, the last keyframe, the live tracks and the chunk so far."""

    def __init__(self, config: KltConfig, mask: NDArray[np.bool_] | None) -> None:
        self.config, self.mask = config, mask
        self.lk: dict[str, Any] = {
            "winSize": (config.window_px, config.window_px),
            "maxLevel": config.levels,
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 0.02),
            "minEigThreshold": 1e-4,
        }
        self.num_tracks = 0
        self.ids = np.zeros(0, np.int32)
        self.xy = np.zeros((0, 2), np.float32)
        self.velocity = np.zeros(2, np.float32)
        self.index: list[int] = []
        self.tracks: list[NDArray] = []
        self.points: list[NDArray] = []
        self.keyframes: list[int] = []
        self.images: list[NDArray] = []
        self.soft: list[float] = []
        self.features: list[Features] = []
        self.keypoint_track: list[NDArray] = []

    def follow(self, a: NDArray, b: NDArray, xy: NDArray, guess: NDArray) -> tuple[NDArray, NDArray]:
        """Positions in b of points in a, and whether they came back."""
        flags = cv2.OPTFLOW_USE_INITIAL_FLOW
        there, ok, _ = cv2.calcOpticalFlowPyrLK(a, b, xy, guess.copy(), flags=flags, **self.lk)
        # the way back starts where it should end: coarse levels would find nothing new
        home: dict[str, Any] = {**self.lk, "maxLevel": 1}
        back, ok_back, _ = cv2.calcOpticalFlowPyrLK(b, a, there, xy.copy(), flags=flags, **home)
        h, w = a.shape
        inside = ((there > 1) & (there < [w - 2, h - 2])).all(1)
        distance = np.linalg.norm(back - xy, axis=1)
        return there, (ok[:, 0] == 1) & (ok_back[:, 0] == 1) & inside & (distance < self.config.max_return_px)

    def step(self, index: int, gray: NDArray) -> None:
        if len(self.ids):
            xy, good = self.follow(self.last, gray, self.xy, self.xy + self.velocity)
            if good.mean() < self.config.bridge_below:
                xy, good = self.bridge(gray, xy, good)
            if good.any():
                self.velocity = np.median(xy[good] - self.xy[good], axis=0).astype(np.float32)
            self.ids, self.xy = self.ids[good], xy[good]
        self.last = gray
        if self.wants_keyframe(gray):
            self.keyframe(len(self.index), gray)
        self.index.append(index)
        self.tracks.append(self.ids.copy())
        self.points.append(self.xy.copy())

    def bridge(self, gray: NDArray, xy: NDArray, good: NDArray) -> tuple[NDArray, NDArray]:
        """After a step too wide for Lucas-Kanade: start it again where learned matches say the surroundings went."""
        a, b = extract(self.last, self.mask, count=1024), extract(gray, self.mask, count=1024)
        pairs = match(a, b)
        if len(pairs) < 15:
            return xy, good
        here, moved = a.xy[pairs[:, 0]], b.xy[pairs[:, 1]] - a.xy[pairs[:, 0]]
        near = np.argsort(((self.xy[:, None] - here) ** 2).sum(2), axis=1)[:, :3]
        again, came_back = self.follow(
            self.last, gray, self.xy, self.xy + np.median(moved[near], axis=1).astype(np.float32)
        )
        return (again, came_back) if came_back.sum() > good.sum() else (xy, good)

    def wants_keyframe(self, gray: NDArray) -> bool:
        if not self.keyframes:
            return True
        shared = np.flatnonzero(np.isin(self.ids, self.key_ids))
        if len(shared) < self.config.keyframe_survival * len(self.key_ids):
            return True
        at = np.searchsorted(self.key_ids, self.ids[shared])
        moved = np.median(np.linalg.norm(self.xy[shared] - self.key_xy[at], axis=1))
        return moved > self.config.keyframe_motion * np.hypot(*gray.shape)

    def keyframe(self, row: int, gray: NDArray) -> None:
        if self.keyframes and len(self.ids):
            self.anchor(gray)
        features = extract(gray, self.mask)
        self.keyframes.append(row)
        self.images.append(gray)
        self.soft.append(softness(gray))
        size = max(self.config.window_px, 2 * round(self.config.window_softness * self.soft[-1] / 2) + 1)
        self.lk["winSize"] = (size, size)
        self.features.append(features)
        self.keypoint_track.append(self.grow(gray, features))
        self.key_ids, self.key_xy = self.ids.copy(), self.xy.copy()

    def anchor(self, gray: NDArray) -> None:
        """Align live tracks with their patch in the keyframe before, turned and zoomed as the picture has been."""
        shared = np.flatnonzero(np.isin(self.ids, self.key_ids))
        if not len(shared):
            return
        image, start = self.images[-1], self.key_xy[np.searchsorted(self.key_ids, self.ids[shared])]
        moved, _ = cv2.estimateAffinePartial2D(start, self.xy[shared], ransacReprojThreshold=3.0)
        if moved is not None and np.linalg.norm(moved[:, :2] - np.eye(2)) > self.config.turned_patch:
            image = cv2.warpAffine(image, moved, gray.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
            start = (start @ moved[:, :2].T + moved[:, 2]).astype(np.float32)
        lk: dict[str, Any] = {**self.lk, "maxLevel": 1}
        flags = cv2.OPTFLOW_USE_INITIAL_FLOW
        xy, ok, _ = cv2.calcOpticalFlowPyrLK(image, gray, start, self.xy[shared], flags=flags, **lk)
        take = (ok[:, 0] == 1) & (np.linalg.norm(xy - self.xy[shared], axis=1) < 1.5)
        self.xy[shared[take]] = xy[take]

    def grow(self, gray: NDArray, features: Features) -> NDArray[np.int32]:
        """New tracks on keypoints away from live ones; returns the track of each keypoint."""
        h, w = gray.shape
        nearest = np.full((h, w), -1, np.int32)  # which live track owns a pixel's surroundings
        r = round(self.config.min_distance_px)
        occupied = np.zeros((h, w), np.uint8) if self.mask is None else (~self.mask).astype(np.uint8)
        for k, (x, y) in zip(self.ids.tolist(), np.round(self.xy).astype(int).tolist(), strict=True):
            nearest[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = k
            cv2.circle(occupied, (x, y), r, 1, -1)
        room = self.config.max_tracks - len(self.ids)
        born: list[NDArray] = []
        owner = np.full(len(features.xy), -1, np.int32)
        strength: NDArray = np.asarray(cv2.cornerMinEigenVal(gray, 5))
        floor = 0.002 * float(np.quantile(strength, 0.999))
        for i, (x, y) in enumerate(np.round(features.xy).astype(int).tolist()):
            if nearest[y, x] >= 0:
                owner[i] = nearest[y, x]
            elif len(born) < room and not occupied[y, x] and strength[y, x] > floor:
                owner[i] = self.num_tracks + len(born)
                born.append(features.xy[i])
                cv2.circle(occupied, (x, y), r, 1, -1)
        if len(born) < room:
            corners = cv2.goodFeaturesToTrack(
                gray, room - len(born), 0.01, self.config.min_distance_px, mask=1 - occupied, blockSize=5
            )
            if corners is not None:
                born += list(corners[:, 0])
        self.ids = np.concatenate([self.ids, np.arange(self.num_tracks, self.num_tracks + len(born), dtype=np.int32)])
        self.xy = np.concatenate([self.xy, np.array(born, np.float32).reshape(-1, 2)])
        self.num_tracks += len(born)
        return owner

    def chunk(self) -> FeatureTracks:
        """Everything since the chunk began; its last frame becomes a keyframe."""
        last = len(self.index) - 1
        if self.keyframes[-1] != last:
            self.keyframe(last, self.last)
            self.tracks[-1], self.points[-1] = self.ids.copy(), self.xy.copy()
        return FeatureTracks(
            width=self.last.shape[1],
            height=self.last.shape[0],
            px=error_px(self.last.shape[1], self.last.shape[0], float(np.median(self.soft))),
            frame_index=np.array(self.index, np.int64),
            row=np.repeat(np.arange(last + 1, dtype=np.int32), [len(t) for t in self.tracks]),
            track=np.concatenate(self.tracks),
            xy=np.concatenate(self.points),
            keyframes=np.array(self.keyframes, np.int64),
            images=list(self.images),
            features=list(self.features),
            keypoint_track=list(self.keypoint_track),
        )

    def begin_chunk(self) -> None:
        """Forget all but the last keyframes, with which the next chunk begins."""
        keep = self.config.chunk_overlap
        first = self.keyframes[-keep]
        self.keyframes = [k - first for k in self.keyframes[-keep:]]
        for name in ("images", "soft", "features", "keypoint_track"):
            setattr(self, name, getattr(self, name)[-keep:])
        for name in ("index", "tracks", "points"):
            setattr(self, name, getattr(self, name)[first:])


def feature_tracks(
    frames: Iterable[Frame], config: KltConfig, mask: NDArray[np.bool_] | None = None
) -> Iterator[FeatureTracks]:
    """Follow features through all frames of a shot, in overlapping chunks so that memory stays bounded.

    Args:
        frames: the shot's frames in order; `gray` of one size.
        mask: [h, w] in that size, False where no feature may be born (overlays).
    """
    tracker = _Tracker(config, mask)
    pending = False
    for frame in frames:
        tracker.step(frame.index, frame.gray)
        pending = True
        if len(tracker.keyframes) >= config.chunk_keyframes and tracker.keyframes[-1] == len(tracker.index) - 1:
            yield tracker.chunk()
            tracker.begin_chunk()
            pending = False
    if pending:
        yield tracker.chunk()
