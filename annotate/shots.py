"""Where one take ends and the next begins, and which part of the picture is scene.

One pass over the frames. A place is suspected of a cut where the picture changes far more than around it, of a
dissolve where frames lie midway between what was shown before and after; whether both sides show the same scene is
then decided by matching features, so that neither fast motion nor a flash splits a take. Near-constant stretches
(black, white, colour) belong to no shot.

Bars are dark rows and columns along the border that end at a straight bright edge. If they change within a shot its
crop is what they leave free at all times. An overlay (watermark, HUD, caption, ticker) is texture that stays in place
while most other texture moves; where most of it stays, the camera does, and nothing can be told apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from ..records import Shot, VideoInfo
from .video import VideoConfig, frames

SIDE = 480  # long side of the pictures looked at
LUMA_CELLS = (48, 27)  # for changes from frame to frame
COLOUR_CELLS = (8, 5)  # for dissolves: coarse, so that motion matters less
AROUND = 8  # frames on either side that a suspected cut is compared with
MAX_SAMPLES = 4096  # pictures kept (as JPEG, some 25 kB each) for the decisions after the pass
BAR_LUMA = 20  # at most this bright is a bar


@dataclass(frozen=True)
class ShotsConfig:
    """Thresholds; lengths in seconds of presentation time, luma and colour on a scale of 0 to 255."""

    min_frames: int = 2
    soft_trim_s: float = 0.3  # cut away beyond either end of a fade or dissolve
    cut_change: float = 5.0  # mean change of luma cells
    cut_ratio: float = 1.8  # over the 80th percentile of the changes around
    blind_cut_ratio: float = 4.0  # where there are too few features to compare the two sides
    flat_spread: float = 8.0  # luma cells of a near-constant picture lie this close together (5th to 95th percentile)
    flash_s: float = 0.25  # a near-constant stretch up to this long is a flash if the scene goes on after it
    dissolve_change: float = 8.0  # half the colour change from before to after
    dissolve_ratio: float = 0.6  # distance of the frame from midway, over that
    dissolve_share: float = 0.75  # the weight in the middle frame of what it has in common with either side
    blind_ratio: float = 0.25  # where nothing can be matched; twice that where the change is larger than
    blind_change: float = 20.0
    next_share: float = 0.85  # least weight in a frame of what it has in common with the one before, and back
    same_scene_matches: int = 20  # feature matches that agree on one homography
    min_features: int = 60
    overlay_steadiness: float = 0.85  # |mean gradient| / mean |gradient| over time
    overlay_moving: float = 0.8  # share of the texture that must move
    overlay_samples: int = 12


@dataclass
class _Scan:
    """What the pass over the frames leaves behind; row i is the i-th frame that could be decoded."""

    index: list[int] = field(default_factory=list)  # of the frame in the source
    change: list[float] = field(default_factory=list)  # mean luma change from the row before
    contrast: list[float] = field(default_factory=list)  # standard deviation of luma cells
    flat: list[bool] = field(default_factory=list)
    colour: list[NDArray] = field(default_factory=list)  # COLOUR_CELLS x 3, flattened
    cuts: list[int] = field(default_factory=list)  # the first row of what follows
    samples: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # row -> JPEG of the gray picture


def find_shots(
    info: VideoInfo,
    config: ShotsConfig = ShotsConfig(),
    video_config: VideoConfig = VideoConfig(),  # noqa: B008
    progress: Callable[[int, int], None] | None = None,
    *,
    stills: bool = False,
) -> list[Shot]:
    """The uninterrupted takes of a video, in order; none where every picture is near-constant.

    `stills` says that the frames are separate photographs: they make one shot, whatever they show. A take shorter than
    `config.min_frames` is left out, and the number it would have had is not given to another. Frames inside a shot may
    be undecodable.

    Raises:
        BadMedia: as `video.frames`.
    """
    scan = _scan(info, config, video_config, progress, look_for_cuts=not stills)
    count = len(scan.index)
    takes = [(0, count, "start")] if stills else _takes(info, scan, config)
    shots = []
    for i, (start, stop, boundary) in enumerate(takes):
        if stop - start < config.min_frames:
            continue
        rows = [row for row in scan.samples if start <= row < stop] or [min(scan.samples, key=lambda r: abs(r - start))]
        rows = [rows[j] for j in np.unique(np.linspace(0, len(rows) - 1, 64).round().astype(int))]
        pictures = np.stack([_unpack(scan.samples[row]) for row in rows])
        x, y, w, h = _inside_bars(pictures)
        overlay = _overlay(pictures[:, y : y + h, x : x + w], config)
        shots.append(
            Shot(
                index=i,
                start=scan.index[start],
                stop=scan.index[stop - 1] + 1,
                crop=_to_display((x, y, w, h), pictures.shape[2:0:-1], info),
                overlay=None if overlay is None else _mask_to_display(overlay, (x, y), pictures.shape[1:], info),
                boundary=boundary,
                photographs=stills,
            )
        )
    return shots


# ---- the pass ----------------------------------------------------------------------------------------------------


def _scan(
    info: VideoInfo,
    config: ShotsConfig,
    video_config: VideoConfig,
    progress: Callable[[int, int], None] | None,
    *,
    look_for_cuts: bool,
) -> _Scan:
    scan = _Scan()
    tenth = round(0.1 * info.fps) if info.num_frames > 1 else 1
    stride = max(1, min(tenth, info.num_frames // 64), -(-info.num_frames // MAX_SAMPLES))
    recent: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=2 * AROUND + 2)
    before = None
    for row, frame in enumerate(frames(info, max_side=SIDE, progress=progress, config=video_config)):
        luma = cv2.resize(frame.gray, LUMA_CELLS, interpolation=cv2.INTER_AREA)
        scan.index.append(frame.index)
        scan.change.append(0.0 if before is None else float(cv2.absdiff(luma, before).mean()))
        scan.contrast.append(float(luma.std()))
        low, high = np.percentile(luma, (5, 95))
        scan.flat.append(bool(high - low < config.flat_spread and frame.gray.std() < 2 * config.flat_spread))
        scan.colour.append(cv2.resize(frame.thumb, COLOUR_CELLS, interpolation=cv2.INTER_AREA).ravel())
        if row % stride == 0:
            scan.samples[row] = _pack(frame.gray)
        before = luma
        recent.append((row, frame.gray))
        if look_for_cuts and row >= AROUND:
            _check_cut(scan, row - AROUND, dict(recent), config)
    if look_for_cuts:
        for row in range(max(0, len(scan.index) - AROUND), len(scan.index)):
            _check_cut(scan, row, dict(recent), config)
    return scan


def _check_cut(scan: _Scan, row: int, pictures: dict[int, NDArray[np.uint8]], config: ShotsConfig) -> None:
    """Add a cut before `row` if the change is sudden and the scene is not the same on both sides of it."""
    change = scan.change[row]
    if row == 0 or change < config.cut_change or (scan.flat[row - 1] and scan.flat[row]):
        return
    around = np.array(scan.change[max(1, row - AROUND) : row] + scan.change[row + 1 : row + 1 + AROUND])
    around = around[around > 0.1 * change]  # doubled frames do not change at all
    # Less than four: a cut stands out among few neighbours too
    usual = float(np.percentile(around, 80)) if around.size >= 4 else float(np.min(around, initial=change / 10))
    if change < config.cut_ratio * usual:
        return
    befores, afters = (
        [_Look(pictures[r]) for r in rows if r in pictures] for rows in ((row - 3, row - 6), (row + 2, row + 5))
    )
    same = _same_scene(befores, afters, config)  # apart, so that neither a flash nor a mixed frame misleads
    if not same and min(_shares(_Look(pictures[row - 1]), _Look(pictures[row])), default=0.0) > config.next_share:
        return
    if same is False or (same is None and change > config.blind_cut_ratio * usual):
        scan.cuts.append(row)


def _pack(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]  # type: ignore[return-value]


def _unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE)  # type: ignore[return-value]


class _Look:
    """A picture at 240 pixels with its features."""

    sift = cv2.SIFT_create(nfeatures=400, contrastThreshold=0.02)  # type: ignore[attr-defined]
    matcher = cv2.BFMatcher()

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        scale = min(1.0, 240 / max(picture.shape))
        self.small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        contrast = 50 / max(2.0, float(self.small.std()))  # the same features in the dark
        even = cv2.addWeighted(self.small, contrast, self.small, 0, 128 - contrast * float(self.small.mean()))
        self.points, self.about = self.sift.detectAndCompute(even, None)

    def band(self) -> NDArray:
        """Detail coarse enough that a pixel of misalignment does not matter."""
        picture = self.small.astype(np.float32)
        return cv2.GaussianBlur(picture, (0, 0), 1.5) - cv2.GaussianBlur(picture, (0, 0), 5)

    def homography(self, other: _Look) -> tuple[NDArray | None, NDArray]:
        """What takes this picture to the other, None if nothing does; and the points [n, 2] there that agree."""
        nothing = None, np.zeros((0, 2))
        if min(len(self.points), len(other.points)) < 8:
            return nothing
        back = {m.queryIdx: m.trainIdx for m in self.matcher.match(other.about, self.about)}
        pairs = [p for p in self.matcher.knnMatch(self.about, other.about, k=2) if len(p) == 2]
        good = [p for p, q in pairs if p.distance < 0.8 * q.distance and back[p.trainIdx] == p.queryIdx]
        if len(good) < 8:
            return nothing
        here = np.array([self.points[m.queryIdx].pt for m in good])
        there = np.array([other.points[m.trainIdx].pt for m in good])
        cv2.setRNGSeed(0)
        taken, agree = cv2.findHomography(here, there, cv2.RANSAC, 3.0, maxIters=500)
        return nothing if taken is None else (taken, there[agree.ravel() > 0])


def _same_scene(befores: list[_Look], afters: list[_Look], config: ShotsConfig) -> bool | None:
    """Whether any picture before shows the scene of any picture after; None where features are too few to tell."""
    verdict = None
    for b in afters:
        for a in befores:
            if len(a.homography(b)[1]) >= config.same_scene_matches:
                return True
            if min(len(a.points), len(b.points)) >= config.min_features:
                verdict = False
    return verdict


def _shares(a: _Look, b: _Look) -> list[float]:
    """The weight in `b` of what it has in common with `a`, and the other way round: 1 within a take; 0.5 and 2 where b
    is the middle of a dissolve from a. Empty where too little matches."""
    taken, points = a.homography(b)
    if taken is None or len(points) < 10:
        return []
    near = np.zeros(b.small.shape, np.uint8)
    for x, y in points:
        cv2.circle(near, (round(x), round(y)), 6, 1, -1)
    size = b.small.shape[::-1]
    at = (near > 0) & (cv2.warpPerspective(np.ones(a.small.shape, np.uint8), taken, size) > 0)
    in_a, in_b = cv2.warpPerspective(a.band(), taken, size)[at], b.band()[at]
    product = float(in_a @ in_b)
    return [product / max(float(v @ v), 1e-6) for v in (in_a, in_b)]


# ---- from suspicions to takes --------------------------------------------------------------------------------------


def _takes(info: VideoInfo, scan: _Scan, config: ShotsConfig) -> list[tuple[int, int, str]]:
    """(first row, row after the last, boundary before it) of each take."""
    count = len(scan.index)
    seconds = info.pts_ns[scan.index] / 1e9
    contrast = np.array(scan.contrast)
    gone = np.zeros(count, bool)  # rows that belong to no shot
    label = np.full(count, "", object)  # at gone rows, and at the first row after a cut
    cuts = set(scan.cuts)
    label[sorted(cuts)] = "cut"

    for start, stop in _runs(np.array(scan.flat)):
        if start > 0 and stop < count and seconds[stop] - seconds[start - 1] <= config.flash_s:
            if _same_scene(_nearest(scan, start - 1, -1), _nearest(scan, stop, 1), config):
                cuts -= set(range(start, stop + 1))
                continue
        label[start:stop] = "cut"
        for edge, step in ((start - 1, -1), (stop, 1)):
            end = _ramp(contrast, seconds, edge, step)
            if end != edge:
                low, high = sorted((seconds[edge], seconds[end] + step * config.soft_trim_s))
                fade = (seconds >= low) & (seconds <= high)
                gone |= fade
                label[fade] = "fade"
                label[start:stop] = "fade"
        gone[start:stop] = True

    for start, stop in _dissolves(info, scan, gone, cuts, config):
        soft = (seconds >= seconds[start] - config.soft_trim_s) & (seconds <= seconds[stop] + config.soft_trim_s)
        gone |= soft
        label[soft] = "dissolve"

    takes = []
    boundary = "start"
    for start, stop in _runs(~gone):
        edges = [start, *sorted(c for c in cuts if start < c < stop), stop]
        if takes:
            boundary = label[start - 1] or "cut"
        for a, b in pairwise(edges):
            takes.append((a, b, boundary))
            boundary = "cut"
    return takes


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _nearest(scan: _Scan, row: int, side: int, count: int = 2) -> list[_Look]:
    """The kept pictures nearest to `row`: at it, or on its `side` (-1 before, 1 after)."""
    rows = sorted((r for r in scan.samples if (r - row) * side >= 0), key=lambda r: abs(r - row))
    return [_Look(_unpack(scan.samples[r])) for r in rows[:count]]


def _ramp(contrast: NDArray, seconds: NDArray, edge: int, step: int) -> int:
    """The last row of a fade that begins beside a flat stretch, at `edge`, and goes on in the direction `step`."""
    rows = np.arange(edge, len(contrast) if step > 0 else -1, step)
    rows = rows[np.abs(seconds[rows] - seconds[edge]) <= 3.0] if rows.size else rows
    if rows.size < 3:
        return edge
    full = 0.85 * float(np.median(contrast[rows]))
    reached = np.flatnonzero(contrast[rows] >= full)
    length = int(reached[0]) if reached.size else 0
    rising = np.diff(contrast[rows[: length + 1]])
    if length < 2 or (rising < -0.5).any():  # at once, or not a fade
        return edge
    return int(rows[length])


def _dissolves(
    info: VideoInfo, scan: _Scan, gone: NDArray[np.bool_], cuts: set[int], config: ShotsConfig
) -> list[tuple[int, int]]:
    """(first, last) row of each dissolve."""
    count = len(scan.index)
    halves = sorted({round(s * info.fps) for s in (0.16, 0.32, 0.5, 0.72, 1.0)} if count > 1 else set())
    colour = np.array(scan.colour, np.float32).reshape(count, -1)
    ordered = np.sort(colour.reshape(count, -1, 3), axis=1)
    broken = gone.copy()
    broken[sorted(cuts)] = True
    broken_before = np.concatenate([[0], np.cumsum(broken)])
    suspected: list[tuple[float, int, int, float]] = []
    for half in halves:
        if half < 3 or count < 2 * half + 1:
            continue
        ends = colour[2 * half :], colour[: -2 * half]
        off = np.abs(colour[half:-half] - (ends[0] + ends[1]) / 2).mean(1)
        change = np.abs(ends[0] - ends[1]).mean(1) / 2
        ratio = off / np.maximum(change, 1e-3)
        whole = broken_before[2 * half + 1 :] == broken_before[1 : count - 2 * half + 1]  # no cut inside
        # The same cells in another order are the same scene from elsewhere
        other = np.abs(ordered[2 * half :] - ordered[: -2 * half]).mean((1, 2)) > config.dissolve_change
        hit = (change > config.dissolve_change) & (ratio < config.dissolve_ratio) & other & whole
        suspected += [(float(ratio[i]), int(i) + half, half, float(change[i])) for i in np.flatnonzero(hit)]

    found: list[tuple[int, int]] = []
    cleared: list[tuple[int, int]] = []
    for ratio, row, half, change in sorted(suspected):
        if any(first - half <= row <= last + half for first, last in found):
            continue
        if any(abs(row - other) <= half // 2 and half <= size for other, size in cleared):
            continue
        reach = half + max(2, half // 4)
        middle = _Look(_unpack(scan.samples[min(scan.samples, key=lambda r: abs(r - row))]))
        before, after = _nearest(scan, row - reach, -1, 1), _nearest(scan, row + reach, 1, 1)
        shares = []
        for side in before + after:
            shares += _shares(side, middle)[:1]
            if shares and shares[-1] > config.dissolve_share:
                break
        if shares:
            mixed = max(shares) <= config.dissolve_share
        else:
            mixed = ratio < config.blind_ratio or (ratio < config.blind_ratio * 2 and change > config.blind_change)
        if mixed and not _same_scene(before, after, config):
            found.append(_extent(colour, row, half))
        else:
            cleared.append((row, half))
    return found


def _extent(colour: NDArray[np.float32], row: int, half: int) -> tuple[int, int]:
    """First and last row of the dissolve around `row`: where the mixture is 5 % and 95 %."""
    low, high = max(0, row - 2 * half), min(len(colour) - 1, row + 2 * half)
    before = colour[low : max(low + 1, row - 3 * half // 2)].mean(0)
    after = colour[min(high, row + 3 * half // 2) : high + 1].mean(0)
    step = after - before
    share = (colour[low : high + 1] - before) @ step / max(float(step @ step), 1e-6)
    middle = row - low
    first = next((i for i in range(middle, -1, -1) if share[i] < 0.05), 0)
    last = next((i for i in range(middle, high - low + 1) if share[i] > 0.95), high - low)
    return low + first, low + last


# ---- bars and overlays -----------------------------------------------------------------------------------------------


def _inside_bars(pictures: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """x, y, width, height of what no bar covers at any time, in pixels of the pictures [n, h, w]."""
    _, h, w = pictures.shape
    top, bottom = _bar(pictures), _bar(pictures[:, ::-1])
    turned = pictures[:, top : h - bottom].transpose(0, 2, 1)
    left, right = _bar(turned), _bar(turned[:, ::-1])
    if top + bottom > 0.7 * h or left + right > 0.7 * w:
        return 0, 0, w, h
    return left, top, w - left - right, h - top - bottom


def _bar(pictures: NDArray[np.uint8]) -> int:
    """Rows of a bar at the top that at least a tenth of the pictures show."""
    h = pictures.shape[1]
    heights = []
    for picture in pictures:
        dark = np.percentile(picture[: h // 2], 98, axis=1) <= BAR_LUMA
        height = int(np.argmin(dark)) if not dark.all() else h // 2
        edge = picture[height : height + 4].max(0)  # a straight edge: most columns turn bright at once
        straight = (edge > BAR_LUMA + 8).mean() > 0.5
        heights.append(height if straight and height >= max(2, 0.01 * h) else 0)
    needed = max(2, -(-len(heights) // 10))
    ordered = sorted(heights, reverse=True)
    return ordered[needed - 1] if len(ordered) >= needed else 0


def _overlay(pictures: NDArray[np.uint8], config: ShotsConfig) -> NDArray[np.bool_] | None:
    """[h, w] True on texture that stays in place while the rest moves; None if there is none or nothing moves."""
    if len(pictures) < config.overlay_samples:
        return None
    h, w = pictures.shape[1:]
    mean_x, mean_y, strength = (np.zeros((h, w), np.float32) for _ in range(3))
    for picture in pictures:
        smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.8)
        x = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
        y = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
        mean_x += x
        mean_y += y
        strength += cv2.magnitude(x, y)
    steady = cv2.magnitude(mean_x, mean_y) / np.maximum(strength, 1e-6)
    lasting = cv2.magnitude(mean_x, mean_y) / len(pictures)
    textured = strength / len(pictures) > 3
    if not textured.any() or (steady[textured] < 0.5).mean() < config.overlay_moving:
        return None
    fixed = ((steady > config.overlay_steadiness) & (lasting > 3)).astype(np.uint8)
    mask = np.zeros((h, w), bool)
    near = cv2.dilate(fixed, np.ones((5, 5), np.uint8))
    number, part_of, stats, _ = cv2.connectedComponentsWithStats(near, connectivity=8)
    for part in range(1, number):
        x, y, pw, ph = (int(v) for v in stats[part, :4])
        box = np.s_[max(0, y - 8) : y + ph + 8, max(0, x - 8) : x + pw + 8]
        inside = part_of[box] == part
        if fixed[box][inside].sum() < 40:
            continue
        certain = np.median(steady[box][inside & (fixed[box] > 0)]) > 0.96
        # What lies around an overlay moves as the rest does; around the goal of forward motion it moves little
        close = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        around = (cv2.dilate(inside.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0) & ~close & textured[box]
        if around.sum() >= 10 and np.median(steady[box][around]) > (0.5 if certain else 0.3):
            continue
        mask[box] |= inside
    for first, last in _bands(mask, pictures):
        mask[first:last] = True
    return mask if mask.any() else None


def _bands(mask: NDArray[np.bool_], pictures: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Rows of tickers: between steady lines over the whole width, or such a line and the border, where something
    scrolls on plain ground."""
    h = mask.shape[0]
    lines = _runs(mask.mean(1) > 0.7)
    bands = []
    for (_, first), (last, _) in zip([(0, 0), *lines], [*lines, (h, h)], strict=True):
        if lines and 0 < last - first <= 0.2 * h:
            grounds = np.percentile(pictures[:, first:last], (10, 90), axis=0)  # dark ground, bright ground
            if grounds.std(axis=2).mean(axis=1).min() < 6:
                bands.append((first, last))
    return bands


def _to_display(crop: tuple[int, int, int, int], size: tuple[int, ...], info: VideoInfo) -> tuple[int, int, int, int]:
    """The crop in display pixels, two pixels inside where a bar was found."""
    x, y, w, h = crop
    sides = []
    for low, length, small, full in ((x, w, size[0], info.width), (y, h, size[1], info.height)):
        first = 0 if low == 0 else int(np.ceil(low * full / small)) + 2
        last = full if low + length == small else int((low + length) * full / small) - 2
        sides.append((first, last - first))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def _mask_to_display(
    mask: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, ...], info: VideoInfo
) -> NDArray[np.bool_]:
    whole = np.zeros(size, np.uint8)
    x, y = corner
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return cv2.resize(whole, (info.width, info.height), interpolation=cv2.INTER_NEAREST) > 0
