"""Metric scale: depth that is consistent over frames but of unknown scale, fused with metric depth of single frames.

`a` is the first (Pi3X), `b` the second (MoGe-2); both depths along the optical axis. A frame's factor s is the one that
takes a to b; after smoothing over time, s a is the fused depth. Three steps, arrays in and arrays out:

    factors = [frame_factor(a, b, usable_pixels(a, b, ...), config) for each frame]
    scale = scale_track(factors, pts_ns, config)
    depth = scale.metric_depth(t, a)

What the errors are taken to be: a shares one scale that drifts slowly (windows joined by similarities: Strasdat et al.,
"Scale drift-aware large scale monocular SLAM", RSS 2010), each b errs by a factor of its own, here and there grossly.
Nothing here can tell a slow drift of a from a slow wobble of b.

`mode="robust"`, per frame: the median of b / a over the pixels that agree with it. If a = d (1 + e) and
b = s d (1 + e'), e and e' independent, each symmetric about 0 or none, then P(b < s a) = P(e' < e) = 1/2 and the median
is unbiased whatever their spread; least squares with w = 1/b, the mean of log b / a and M-estimators on log b / a are
not. It is the median of log b / a and of a / b as well, so it does not matter which is divided by which. One-sided
outliers pull a median (20 % of them by 0.32 sigma), so it is repeated without the pixels whose residual b - s a stands
out by `clip_sigmas`. The residual is taken relative to s times the mean of a around the pixel: that is symmetric for
the errors above (but for those of a that are as smooth as that mean), where one relative to the pixel's own a, or the
log, is skewed, and clipping would bias.

Over time, per shot: a curve x on nodes at equal steps that minimises sum_t rho(log s_t - x(t)) / n + lambda sum (second
differences of x)^2 + mu sum (differences of x)^2 (Whittaker 1923; Eilers, "A perfect smoother", Anal. Chem. 75, 2003):
the second term keeps the growth of s steady, the third keeps it small. lambda and mu are those of the largest
restricted likelihood (Wahba, Ann. Stat. 13, 1985), lambda with a memory of at least `memory_s`: a steady scale is
averaged over the shot, steady growth followed to both ends. rho is Tukey's biweight, by reweighting; n successive
frames count as one, by the autocorrelation of what the curve of least memory leaves (Geyer, Stat. Sci. 7, 1992), so
that errors of b that last a second are not taken for drift.

`mode="paper"` is the SANA-WM paper's rule (arXiv 2605.15178, sec. 4): weighted least squares per frame, then an
exponential moving average. The paper leaves open which depth the weight 1/d means (`paper_weight`), which pixels count
and how the average starts; here: the same pixels, and the first defined frame.

`benchmarks/scale_fusion.py` measures both, and the alternatives that were tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded

from ..records import LongtakeError, Rejected, check_shape

_MAD_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation of a normal distribution (Hampel 1974)
_TUKEY = 4.685  # biweight constant: 95 % efficiency at the normal distribution (Holland & Welsch 1977)
_EXACT = 1e-6  # relative: errors smaller than this count as none
_MIN_CURVE_FRAMES = 5  # fewer defined frames, or less than _MIN_CURVE_S of them, have their median for a curve
_MIN_CURVE_S = 1.0
_START_S = 2.0  # the curve starts from the running median of so much time to either side, at the ends of less
_MEMORIES = 8  # lambdas tried, up to max_memory_s
_RESTS_S = tuple(np.geomspace(0.1, 300, 8))  # mu tried, as time constants: from no hold to none but a constant
_DRIFT_ALPHA = 0.01  # of steady clips that may be called drifting for their jitter


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How factors are estimated and smoothed."""

    mode: Literal["robust", "paper"] = "robust"
    min_confidence: float = 0.1  # of a's pixels, a probability
    edge_ratio: float = 0.04  # where a's 3 x 3 neighbourhood spans more than this share of its depth, it is an edge ...
    edge_prominence: float = 3.0  # ... if that is also so many times the frame's median: rough and slanted is no edge
    min_pixels: int = 100  # usable pixels below which a frame has no factor ...
    min_share: float = 0.01  # ... or this share of the picture
    clip_sigmas: float = 3.0
    clip_window_px: int = 9  # side of the square whose mean depth scales a residual
    memory_s: float = 3.0  # least time constant of the curve
    max_memory_s: float = 60.0
    node_s: float = 0.25  # spacing of the curve's nodes
    drift_log: float = 0.1  # range of the 1-second medians of log s above which a shot drifts, if noise is not enough
    paper_weight: Literal["1/a", "1/b"] = "1/a"
    paper_momentum: float = 0.99


@dataclass(frozen=True, kw_only=True)
class FrameFactor:
    """One frame's factor as measured: nan, with the pixels that there were, where too few are usable."""

    factor: float  # b per a: metres per unit of a
    dispersion: float  # robust standard deviation of log b / (s a) over the usable pixels
    pixels: int  # usable
    inliers: float  # share of the usable pixels that the factor comes from


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleTrack:
    """The scale of a clip's depth, frame by frame."""

    mode: str  # "robust" or "paper"
    raw: NDArray[np.float64]  # [T] metres per unit of a, as measured in each frame; nan where undefined
    smoothed: NDArray[np.float64]  # [T] as used; where a frame is undefined, carried from its neighbours
    defined: NDArray[np.bool_]  # [T] the frame has a factor of its own
    trusted: NDArray[np.bool_]  # [T] defined, and the curve counts it: not an outlier in time
    dispersion: NDArray[np.float64]  # [T] robust standard deviation of log b / (s a) over pixels; nan where undefined
    inliers: NDArray[np.float64]  # [T] share of usable pixels that the factor comes from; nan where undefined
    shot_starts: tuple[int, ...]  # first frame of each shot
    drift_log: float  # range of the 1-second medians of log raw within a shot, the largest; nan: no shot has two
    drift: str  # "steady", "drifting" or "undetermined"

    def __post_init__(self) -> None:
        n = len(self.raw)
        for name in "smoothed defined trusted dispersion inliers".split():
            check_shape(self, name, (n,))
        if (np.isfinite(self.raw) != self.defined).any():
            bad = int(np.flatnonzero(np.isfinite(self.raw) != self.defined)[0])
            raise ValueError(f"frame {bad}: defined is {self.defined[bad]} but its raw factor is {self.raw[bad]}")
        if not (np.isfinite(self.smoothed) & (self.smoothed > 0)).all():
            raise ValueError("smoothed factors must be finite and positive, also for frames without a factor")

    @property
    def std_ratio(self) -> float:
        """std / mean of the raw factors: the paper's rule for scale (App. B.3), nearly blind to drift."""
        return float(self.raw[self.defined].std() / self.raw[self.defined].mean())

    @property
    def flags(self) -> tuple[str, ...]:
        """snake_case remarks for the manifest."""
        remarks = {
            "scale_carried": not self.defined.all(),
            "scale_outliers": bool((self.defined & ~self.trusted).any()),
            "scale_drift": self.drift == "drifting",
        }
        return tuple(name for name, holds in remarks.items() if holds)

    def metric_depth(self, frame: int, a: NDArray) -> NDArray[np.float32]:
        """Fused depth [H, W] in metres of a frame: its depth a, scaled; nan where a has none."""
        a = _checked_depth(a, f"depth a of frame {frame}")
        return np.where(_has_value(a), self.smoothed[frame] * a, np.nan).astype(np.float32)


# ---- pixels ------------------------------------------------------------------------------------------------------


def usable_pixels(
    a: NDArray,
    b: NDArray,
    config: ScaleConfig,
    *,
    confidence: NDArray | None = None,
    sky: NDArray[np.bool_] | None = None,
    moving: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Where both depths can be compared: both have a value, off depth edges, confident, neither sky nor moving.

    Args:
        a, b: [H, W] depths; 0, nan and inf mean no value.
        confidence: [H, W] of a, as a probability (Pi3X: the sigmoid of its logit).
        sky, moving: [H, W] True where the picture shows sky, or things that move against the scene.

    Raises:
        LongtakeError: sizes differ, a depth is negative, a confidence is no probability.
    """
    a, b = _checked_pair(a, b)
    keep = _has_value(a) & _has_value(b)
    if confidence is not None:
        _check_size(confidence, a, "confidence")
        with np.errstate(invalid="ignore"):
            wrong = ~((confidence >= 0) & (confidence <= 1))
        if wrong.any():
            raise LongtakeError(
                f"confidence {confidence[wrong][0]} at {_where(wrong)} is no probability: apply the sigmoid to logits"
            )
        keep &= confidence >= config.min_confidence
    for mask, name in ((sky, "sky mask"), (moving, "mask of moving things")):
        if mask is not None:
            _check_size(mask, a, name)
            if np.asarray(mask).dtype != bool:
                raise LongtakeError(
                    f"the {name} has dtype {np.asarray(mask).dtype}: it must be boolean, True = leave out"
                )
            keep &= ~mask
    return keep & ~depth_edges(a, config)


def depth_edges(depth: NDArray[np.float32], config: ScaleConfig) -> NDArray[np.bool_]:
    """Where depth jumps between neighbours, by more than the rest of the frame is rough.

    Of the depth of many frames: it is the cleaner one, and to choose pixels by the errors of b would bias what is left.
    """
    valid = _has_value(depth)
    if not valid.any():
        return np.zeros(depth.shape, bool)
    kernel, known = np.ones((3, 3), np.uint8), depth[valid]
    high = cv2.dilate(np.where(valid, depth, known.min()), kernel)
    low = cv2.erode(np.where(valid, depth, known.max()), kernel)
    span = 2 * (high - low) / (high + low)  # of what has no value around it: of no meaning, and never looked at
    return valid & (span > max(config.edge_ratio, config.edge_prominence * float(np.median(span[valid]))))


def frame_factor(a: NDArray, b: NDArray, usable: NDArray[np.bool_], config: ScaleConfig) -> FrameFactor:
    """The factor s > 0 that takes depth a to depth b in one frame, by the method of `config.mode`.

    Args:
        a, b: [H, W] depths.
        usable: [H, W] the pixels to compare, see `usable_pixels`; those where a or b has no value never count.

    Returns: the factor; nan where too few pixels are usable (a frame of nothing but sky), for `scale_track` to carry.

    Raises:
        LongtakeError: sizes differ, or a depth is negative.
    """
    a, b = _checked_pair(a, b)
    _check_size(usable, a, "mask of usable pixels")
    usable = usable & _has_value(a) & _has_value(b)
    count = int(usable.sum())
    if count < max(config.min_pixels, config.min_share * a.size):
        return FrameFactor(factor=float("nan"), dispersion=float("nan"), pixels=count, inliers=float("nan"))
    x, y = a[usable].astype(np.float64), b[usable].astype(np.float64)
    if config.mode == "paper":
        s, inliers = weighted_factor(x, y, 1 / (x if config.paper_weight == "1/a" else y)), 1.0
    else:
        side = (config.clip_window_px,) * 2
        total = cv2.boxFilter(np.where(usable, a, 0), -1, side, normalize=False)
        number = cv2.boxFilter(usable.astype(np.float32), -1, side, normalize=False)
        s, inliers = _clipped_median(x, y, total[usable].astype(np.float64) / number[usable], config.clip_sigmas)
    dispersion = _MAD_TO_SIGMA * float(np.median(np.abs(np.log(y / (s * x)))))
    return FrameFactor(factor=s, dispersion=dispersion, pixels=count, inliers=inliers)


def factor_of_points(a: NDArray, b: NDArray, config: ScaleConfig, *, min_points: int = 20) -> FrameFactor:
    """The factor that takes depths a [N] of points to depths b [N] of the same, all positive: the clipped median."""
    if len(a) < min_points:
        return FrameFactor(factor=float("nan"), dispersion=float("nan"), pixels=len(a), inliers=float("nan"))
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    s, inliers = _clipped_median(a, b, a, config.clip_sigmas)
    dispersion = _MAD_TO_SIGMA * float(np.median(np.abs(np.log(b / (s * a)))))
    return FrameFactor(factor=s, dispersion=dispersion, pixels=len(a), inliers=inliers)


def weighted_factor(a: NDArray[np.float64], b: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """The s that minimises sum w (s a - b)^2: sum(w a b) / sum(w a^2), for positive a, b, w [N].

    With w = 1/a this is sum(b) / sum(a), unbiased for errors of zero mean; with w = 1/b it is too small by the variance
    of b's relative error: sum(a) / sum(a^2 / b).
    """
    return float((weight * a * b).sum() / (weight * a * a).sum())


def _clipped_median(
    a: NDArray[np.float64], b: NDArray[np.float64], around: NDArray[np.float64], sigmas: float
) -> tuple[float, float]:
    """The median of b / a over the pixels whose residual, relative to s `around`, is within `sigmas`; their share."""
    ratio, keep = b / a, np.ones(len(a), bool)
    s = float(np.median(ratio))
    for _ in range(20):
        residual = np.abs(b - s * a) / (s * around)
        sigma = max(_MAD_TO_SIGMA * float(np.median(residual[keep])), _EXACT)
        near = residual <= sigmas * sigma
        if (near == keep).all():
            break
        keep, s = near, float(np.median(ratio[near]))
    return s, float(keep.mean())


# ---- time --------------------------------------------------------------------------------------------------------


def scale_track(
    factors: Sequence[FrameFactor],
    pts_ns: NDArray[np.int64],
    config: ScaleConfig,
    *,
    shot_starts: Sequence[int] = (0,),
) -> ScaleTrack | Rejected:
    """Smooth the factors of a clip's frames over time, each shot by itself, and say whether they drift.

    Args:
        factors: [T] one for each frame.
        pts_ns: [T] presentation times, strictly increasing.
        shot_starts: the first frame of each shot, from 0 upwards: nothing is smoothed or carried over a cut.

    Returns: the scale; a refusal where a shot has no frame with a factor, as then nothing says its scale.

    Raises:
        LongtakeError: numbers of frames differ, times or shot starts are out of order, a factor is not positive.
    """
    raw = np.array([f.factor for f in factors], np.float64)
    _check_clip(raw, pts_ns, shot_starts)
    defined = np.isfinite(raw)
    smoothed, trusted = np.empty(len(raw)), np.zeros(len(raw), bool)
    drifts: list[tuple[float, float]] = []
    for start, stop in zip(shot_starts, (*shot_starts[1:], len(raw)), strict=True):
        shot, ok = slice(start, stop), defined[start:stop]
        if not ok.any():
            message = (
                f"frames {start} to {stop - 1}: no frame has {config.min_pixels} pixels where both depths are usable "
                "(all sky, moving or of low confidence), so nothing gives the scale"
            )
            return Rejected(stage="scale", reason="no_scale", message=message)
        seconds = (np.asarray(pts_ns[shot]) - pts_ns[start]) / 1e9
        if config.mode == "paper":
            values = moving_average(raw[shot][ok], config.paper_momentum)
            smoothed[shot] = values[np.maximum(np.cumsum(ok) - 1, 0)]
            trusted[shot] = ok
        else:
            curve, weight = smooth(seconds[ok], np.log(raw[shot][ok]), config)
            smoothed[shot] = np.exp(np.interp(seconds, seconds[ok], curve))
            trusted[np.flatnonzero(ok) + start] = weight > 0
        drifts.append(drift(seconds[ok], np.log(raw[shot][ok])))
    ranges = [found for found, _ in drifts if np.isfinite(found)]
    drifting = any(found > max(config.drift_log, noise) for found, noise in drifts)
    return ScaleTrack(
        mode=config.mode,
        raw=np.where(defined, raw, np.nan),
        smoothed=smoothed,
        defined=defined,
        trusted=trusted,
        dispersion=np.array([f.dispersion for f in factors]),
        inliers=np.array([f.inliers for f in factors]),
        shot_starts=tuple(int(start) for start in shot_starts),
        drift_log=max(ranges, default=float("nan")),
        drift="drifting" if drifting else "steady" if ranges else "undetermined",
    )


def moving_average(values: NDArray[np.float64], momentum: float) -> NDArray[np.float64]:
    """The exponential moving average m_t = momentum m_{t-1} + (1 - momentum) value_t of values [T], m_0 = value_0."""
    out = np.empty(len(values))
    m = values[0]
    for t, value in enumerate(values):
        m = m + (1 - momentum) * (value - m)
        out[t] = m
    return out


def smooth(
    seconds: NDArray[np.float64], values: NDArray[np.float64], config: ScaleConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A slow curve through the values of one shot, see the top of this module, and what each counts in it, 0 to 1.

    It looks both ways in time: the values in reverse order give the curve in reverse order.
    """
    if len(values) < _MIN_CURVE_FRAMES or seconds[-1] - seconds[0] < _MIN_CURVE_S:
        return np.full(len(values), np.median(values)), np.ones(len(values))
    nodes = _Nodes(seconds, config.node_s)
    reach = np.minimum(
        np.minimum(seconds - seconds[0], seconds[-1] - seconds), _START_S
    )  # even, so growth does not bias
    first = np.searchsorted(seconds, seconds - reach - 1e-9)
    last = np.searchsorted(seconds, seconds + reach + 1e-9, side="right")
    curve = np.array([np.median(values[i:j]) for i, j in zip(first, last, strict=True)])
    memories = np.geomspace(config.memory_s, config.max_memory_s, _MEMORIES)
    weight = np.ones(len(values))
    for _ in range(20):
        residual = values - curve
        sigma = max(_MAD_TO_SIGMA * float(np.median(np.abs(residual))), _EXACT)
        weight = (1 - np.minimum((residual / (_TUKEY * sigma)) ** 2, 1)) ** 2
        _, supple = nodes.fit(values, weight, 1.0, memories[0], _RESTS_S[0])
        alike = _frames_that_count_as_one(np.where(weight > 0, values - supple, 0))
        fits = (nodes.fit(values, weight, alike, memory, rest) for memory in memories for rest in _RESTS_S)
        before, curve = curve, min(fits, key=lambda fit: fit[0])[1]
        if np.abs(curve - before).max() < 0.01 * sigma:
            break
    return curve, weight


def _frames_that_count_as_one(residual: NDArray[np.float64]) -> float:
    """1 + 2 sum of autocorrelations up to the first that is not positive, at most half of all lags."""
    spectrum = np.fft.rfft(residual, 2 * len(residual))
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[: len(residual) // 2]
    if covariance[0] < _EXACT**2:
        return 1.0
    negative = np.flatnonzero(covariance <= 0)
    stop = negative[0] if negative.size else len(covariance)
    return 1.0 + 2.0 * float(covariance[1:stop].sum() / covariance[0])


class _Nodes:
    """Curves that are straight between nodes at equal steps of time, the first and last at the first and last time."""

    def __init__(self, seconds: NDArray[np.float64], spacing_s: float) -> None:
        span = seconds[-1] - seconds[0]
        steps = max(int(np.ceil(span / spacing_s)), 4)
        self.num, self.spacing_s = steps + 1, span / steps
        at = (seconds - seconds[0]) / self.spacing_s
        self.left = np.minimum(at.astype(np.int64), steps - 1)  # [T] the node before
        self.share = at - self.left  # [T] of the node after
        self.first, self.second = _squared_differences(self.num, 1), _squared_differences(self.num, 2)
        self.inner = _squared_differences(self.num - 1, 1)

    def fit(
        self, values: NDArray[np.float64], weight: NDArray[np.float64], alike: float, memory_s: float, rest_s: float
    ) -> tuple[float, NDArray[np.float64]]:
        """-2 log restricted likelihood (up to a constant) of two time constants, and their curve at the values' times.

        The curve's nodes x have the density exp(-(lambda |D D x|^2 + mu |D x|^2) / 2 sigma^2), D differences, lambda =
        (memory / spacing)^4, mu = (rest / spacing)^2; a value is normal about the curve with variance
        alike sigma^2 / weight. sigma^2 is at its best, the mean integrated out.
        """
        lam, mu = (memory_s / self.spacing_s) ** 4, (rest_s / self.spacing_s) ** 2
        weight = weight / alike
        after, before = self.share, 1 - self.share
        system = lam * self.second
        system[1:] += mu * self.first
        system[2] += np.bincount(self.left, weight * before**2, self.num)
        system[2] += np.bincount(self.left + 1, weight * after**2, self.num)
        system[1, 1:] += np.bincount(self.left, weight * before * after, self.num)[:-1]
        right = np.bincount(self.left, weight * values * before, self.num)
        right += np.bincount(self.left + 1, weight * values * after, self.num)
        factor = cholesky_banded(system)
        x = cho_solve_banded((factor, False), right)
        curve = x[self.left] * before + x[self.left + 1] * after
        squares = float((weight * (values - curve) ** 2).sum())
        squares += float(lam * (np.diff(x, 2) ** 2).sum() + mu * (np.diff(x) ** 2).sum())
        prior = lam * self.inner  # D' (this) D is the density's matrix
        prior[1] += mu
        log_det = 2 * float(np.log(factor[2]).sum() - np.log(cholesky_banded(prior)[1]).sum())
        count = max(float((weight > 0).sum()) / alike - 1, 1.0)
        return count * np.log(max(squares / count, _EXACT**2)) + log_det, curve


def _squared_differences(num: int, order: int) -> NDArray[np.float64]:
    """D'D [order + 1, num], upper banded, for differences D of this order of so many values."""
    c = np.diff(np.eye(order + 1), order, axis=0)[0]
    out = np.zeros((order + 1, num))
    for i in range(order + 1):
        for j in range(i, order + 1):
            out[order - (j - i), j : num - order + j] += c[i] * c[j]
    return out


def drift(seconds: NDArray[np.float64], log_factors: NDArray[np.float64]) -> tuple[float, float]:
    """How far one shot's scale wanders: the range of the 1-second medians of log s, and the range that jitter explains.

    The second is what medians of independent errors around a constant stay within, in 99 of 100 clips: the errors'
    standard deviation from successive frames, sqrt(pi / 2n) of it for a median of n, Bonferroni over the seconds. Both
    are nan where there are fewer than two seconds; seconds with less than half the usual number of frames are left out.
    """
    second = np.floor(seconds - seconds[0] + 1e-9).astype(np.int64)
    _, group, count = np.unique(second, return_inverse=True, return_counts=True)
    full = np.flatnonzero(2 * count >= np.median(count))
    if len(full) < 2:
        return float("nan"), float("nan")
    medians = [float(np.median(log_factors[group == g])) for g in full]
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(np.diff(log_factors)))) / np.sqrt(2)
    z = NormalDist().inv_cdf(1 - _DRIFT_ALPHA / (2 * len(full)))
    return max(medians) - min(medians), float(2 * z * sigma * np.sqrt(np.pi / (2 * count[full].min())))


# ---- what comes in -----------------------------------------------------------------------------------------------


def _has_value(depth: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.isfinite(depth) & (depth > 0)


def _checked_depth(depth: NDArray, name: str) -> NDArray[np.float32]:
    """As float32 [H, W]; 0, nan and +inf stay, as the ways to say that there is none."""
    depth = np.asarray(depth)
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "fiu":
        raise LongtakeError(
            f"{name} has shape {depth.shape} and dtype {depth.dtype}: one frame [H, W] of numbers is needed"
        )
    negative = depth < 0
    if negative.any():
        raise LongtakeError(
            f"{name} is {depth[negative][0]} at {_where(negative)}: depth along the optical axis is positive; mark "
            "pixels without a value as nan, inf or 0"
        )
    return depth.astype(np.float32)


def _checked_pair(a: NDArray, b: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = _checked_depth(a, "depth a"), _checked_depth(b, "depth b")
    _check_size(b, a, "depth b")
    return a, b


def _check_size(array: NDArray, a: NDArray, name: str) -> None:
    if np.shape(array) != a.shape:
        raise LongtakeError(f"the {name} is {np.shape(array)} but depth a is {a.shape}: resize one to the other")


def _where(mask: NDArray[np.bool_]) -> str:
    row, column = np.argwhere(mask)[0]
    return f"row {row}, column {column}"


def _check_clip(raw: NDArray[np.float64], pts_ns: NDArray[np.int64], shot_starts: Sequence[int]) -> None:
    if not len(raw) or np.shape(pts_ns) != raw.shape:
        raise LongtakeError(
            f"{len(raw)} factors for frames at {len(pts_ns)} times: there must be one of each per frame"
        )
    late = np.flatnonzero(np.diff(pts_ns) <= 0) + 1
    if late.size:
        raise LongtakeError(f"frame {late[0]} is shown at {pts_ns[late[0]]} ns, not after the frame before it")
    starts = np.asarray(shot_starts)
    if not starts.size or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= len(raw):
        raise LongtakeError(
            f"shots start at frames {list(shot_starts)}: the first must be 0, "
            f"the others increase and lie below {len(raw)}"
        )
    wrong = np.flatnonzero(~np.isnan(raw) & ~((raw > 0) & np.isfinite(raw)))
    if wrong.size:
        raise LongtakeError(
            f"frame {wrong[0]} has the factor {raw[wrong[0]]}: a factor is positive, or nan where undefined"
        )
