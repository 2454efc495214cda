"""Depth and cameras for a clip of any length, from networks that see a window of frames, or one frame, at a time.

`clip_depth` gives overlapping windows to a network that reconstructs a few frames at once (Pi3X) and joins them: each
window has a frame and a scale of its own; a similarity, fitted to the pixels of the frames it shares with the window
before, takes it there. Frames stream through: what is held is one window of pictures, a sample of its overlap's points,
and for each loop a picture and such a sample. `single_depths` works frame by frame (MoGe-2); `scale` fuses the two.

A join is fitted to the shared pixels that are confident and off the edges, by reweighting (Tukey's biweight) the closed
form of `align_similarity`. Errors of depth grow with depth, so residuals are relative to it. It starts from what nearly
half of the pixels may be wrong in: the median ratio of depths, the mean of the cameras' rotations, the median shift.

A loop, two frames that show the same place, is a network pass over these two, joined to the windows of both. The joins
then share out what the loops contradict: join Z_k becomes Z_k exp(y_k), with the y that minimise sum |y_k|^2 + sum over
loops |log(M^-1 Z exp(y) Z exp(y) ...)|^2 / 2, by Gauss-Newton on sim(3) (Strasdat et al., RSS 2010). 2: a loop is two
joins; y in radians, logs of scale, and shares of a window's median depth. Without loops y = 0: the chain as it is.

Similarities keep scale and rotation apart, so cameras stay rigid. `model.pi3x.windows` is the published way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from ..geometry import align_similarity, invert_pose, nearest_rotation, pose, skew, vector_from_rotation
from ..records import LongtakeError, Rejected

if TYPE_CHECKING:
    from ..model.moge2.network import MoGe2
    from ..model.pi3x.network import Pi3X

Precision = Literal["float32", "bfloat16", "float16"]
_TUKEY = 4.685  # biweight constant: 95 % efficiency at the normal distribution (Holland & Welsch 1977)
_NORM_TO_SIGMA = 1.538  # median length of a vector of three standard normal numbers
_EXACT = 1e-9  # relative residuals below this are rounding
_FURTHEST = 10.0  # times that two claims of one scale may differ

# Memory of Pi3X at full size, as `model.tensor_memory` counts it: all is in float32 but what autocast makes smaller.
_PARAMETERS = 992_465_329
_MULTIMODAL_PARAMETERS = 367_567_104
_TOKEN_BYTES = {"float32": 61_445, "bfloat16": 43_269, "float16": 43_269}  # of each patch and register of the window
_REGISTERS = 5  # a frame
_PICTURE_BYTES = 12  # a pixel of the window
_MAP_BYTES = 656  # a pixel of the one frame whose maps are being made


@dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """How windows are cut and joined."""

    length: int = 16  # frames of a window
    overlap: int = 6  # frames that neighbouring windows share
    min_confidence: float = 0.1  # of the pixels that windows are joined by, a probability
    edge_jump: float = 0.03  # of depth within 3 x 3 pixels, as a share of it, that makes an edge where normals turn too
    min_pixels: int = 100  # that a join needs
    max_pixels: int = 30_000  # that a join is fitted to, drawn from all
    max_spread: float = 0.1  # relative standard deviation of a join's residuals above which the windows disagree
    max_loop_drift: float = 0.15  # correction that a loop may ask of each join it spans
    max_unknown: float = 0.9  # share of a window's pixels that may have no point in front of the camera

    def __post_init__(self) -> None:
        if not 1 <= self.overlap < self.length:
            raise LongtakeError(
                f"an overlap of {self.overlap} does not fit windows of {self.length} frames: give fewer"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowGeometry:
    """What a network says of T frames together, in a world frame and a scale of its own choice."""

    cam_points: NDArray[np.float32]  # [T, H, W, 3] camera axes x right, y down, z forward; not finite: unknown
    world_from_cam: NDArray[np.float64]  # [T, 4, 4] rigid
    confidence: NDArray[np.float32]  # [T, H, W] in [0, 1]


@dataclass(frozen=True, kw_only=True, eq=False)
class SingleGeometry:
    """What a network says of T frames, each by itself."""

    depth: NDArray[np.float32]  # [T, H, W] metres along the optical axis; not finite: unknown
    focal_widths: NDArray[np.float64]  # [T] focal length in widths of the picture


class OutOfDeviceMemory(LongtakeError):
    """A network's device has no memory for what it was asked at once: less may do."""


WindowBackend = Callable[[NDArray[np.uint8]], WindowGeometry]  # of RGB pictures [T, H, W, 3]
SingleBackend = Callable[[NDArray[np.uint8]], SingleGeometry]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameDepth:
    """One frame's depth, final but for `DepthTrack.correction`, which is 1 where no loop is closed."""

    index: int
    depth: NDArray[np.float32]  # [H, W] along the optical axis, in the scale of the clip's first window; nan: unknown
    confidence: NDArray[np.float32]  # [H, W] in [0, 1]; 0 at edges and where unknown
    focal_px: tuple[float, float]  # fx, fy of the picture as given, its principal point in the centre


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthTrack:
    """The clip's cameras, and how its K windows were joined."""

    world_from_cam: NDArray[np.float64]  # [T, 4, 4] rigid; the world is frame 0's camera, the scale its window's
    correction: NDArray[np.float64]  # [T] that a frame's depth is still to be multiplied by
    window: NDArray[np.int64]  # [T] that a frame's depth and pose come from
    window_scale: NDArray[np.float64]  # [K] that took each window's own lengths to the clip's
    spread: NDArray[np.float64]  # [K - 1] relative standard deviation of each join's residuals
    loops_closed: tuple[tuple[int, int], ...]
    loops_refused: tuple[tuple[int, int], ...]  # that ask for too much drift, or whose frames could not be joined


@dataclass(frozen=True, kw_only=True, eq=False)
class SingleDepth:
    """One frame's metric depth."""

    index: int
    depth: NDArray[np.float32]  # [H, W] metres along the optical axis; nan: unknown
    focal_widths: float


# ---- similarities ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Similarity:
    """x -> scale rotation x + translation."""

    scale: float
    rotation: NDArray[np.float64]  # [3, 3]
    translation: NDArray[np.float64]  # [3]

    def __matmul__(self, other: Similarity) -> Similarity:
        return Similarity(self.scale * other.scale, self.rotation @ other.rotation, self.moved(other.translation))

    def moved(self, points: NDArray) -> NDArray[np.float64]:
        """Points [..., 3]."""
        return self.scale * points @ self.rotation.T + self.translation

    def moved_pose(self, world_from_cam: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rigid poses [..., 4, 4] in the other frame; lengths in the cameras' own frames grow by `scale`."""
        return pose(self.rotation @ world_from_cam[..., :3, :3], self.moved(world_from_cam[..., :3, 3]))

    def inverse(self) -> Similarity:
        back = self.rotation.T / self.scale
        return Similarity(1 / self.scale, self.rotation.T, -back @ self.translation)

    def log(self) -> NDArray[np.float64]:
        """[7] translation, rotation vector, log scale, such that exp(log) is the similarity."""
        w, log_scale = vector_from_rotation(self.rotation), np.log(self.scale)
        return np.concatenate([np.linalg.solve(_mean_motion(w, log_scale), self.translation), w, [log_scale]])

    @staticmethod
    def exp(v: NDArray[np.float64]) -> Similarity:
        return Similarity(float(np.exp(v[6])), nearest_rotation(expm(skew(v[3:6]))), _mean_motion(v[3:6], v[6]) @ v[:3])

    def adjoint(self) -> NDArray[np.float64]:
        """A [7, 7] such that self exp(v) self^-1 = exp(A v)."""
        out = np.zeros((7, 7))
        out[:3, :3], out[3:6, 3:6], out[6, 6] = self.scale * self.rotation, self.rotation, 1.0
        out[:3, 3:6], out[:3, 6] = skew(self.translation) @ self.rotation, -self.translation
        return out


def _mean_motion(w: NDArray[np.float64], log_scale: float) -> NDArray[np.float64]:
    """The integral over u from 0 to 1 of exp(u (log_scale I + [w]_x)), [3, 3]."""
    generator = np.zeros((6, 6))
    generator[:3, :3], generator[:3, 3:] = log_scale * np.eye(3) + skew(w), np.eye(3)
    return np.asarray(expm(generator), np.float64)[:3, 3:]


def robust_similarity(
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    depth: NDArray[np.float64],
    start: Similarity,
) -> tuple[Similarity, float] | None:
    """The similarity that takes most of the source onto the target, and the spread of what it leaves.

    Args:
        source, target: [N, 3] corresponding points.
        weight: [N] of each pair, such as its confidence.
        depth: [N] length in the target's unit that an error of a pair is relative to.
        start: roughly the answer; only the pairs near it count.

    Returns: the similarity and the robust relative standard deviation of a coordinate; None where the points that
    count lie on a line or in one place.
    """
    move, spread = start, np.inf
    for _ in range(50):
        residual = np.linalg.norm(move.moved(source) - target, axis=-1) / depth
        before, spread = spread, max(_weighted_median(residual, weight) / _NORM_TO_SIGMA, _EXACT)
        if abs(spread - before) <= 1e-6 * spread:
            break
        # the scale of the residuals is that of their length: three coordinates
        w = weight / depth**2 * (1 - np.minimum((residual / (np.sqrt(3) * _TUKEY * spread)) ** 2, 1)) ** 2
        centred = source - np.average(source, axis=0, weights=w)
        sizes = np.linalg.eigvalsh((w[:, None] * centred).T @ centred)
        if not sizes[1] > 1e-9 * sizes[2]:
            return None
        move = Similarity(*align_similarity(source, target, weight=w))
    return move, spread


def _weighted_median(values: NDArray, weight: NDArray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def close_loops(
    joins: Sequence[Similarity], loops: Sequence[tuple[int, int, Similarity]], depths: NDArray[np.float64]
) -> list[Similarity]:
    """Share out among the joins what the loops contradict (see the top of this module).

    Args:
        joins: [K - 1] from window k + 1's frame to window k's.
        loops: windows a < b, and from b's frame to a's as measured.
        depths: [K] median depth of each window, in its own unit.

    Returns: [K] from each window's frame to that of window 0.
    """
    num = len(joins)
    unit = np.array([[d, d, d, 1, 1, 1, 1] for d in depths])
    y = np.zeros((num, 7))
    for _ in range(50 if loops else 0):
        now = [z @ Similarity.exp(v) for z, v in zip(joins, y * unit[1:], strict=True)]
        residual, jacobian = np.zeros((len(loops), 7)), np.zeros((len(loops), 7, num, 7))
        brackets = [_bracket(v) for v in y * unit[1:]]
        steps = [np.eye(7) - ad / 2 + ad @ ad / 6 - ad @ ad @ ad / 24 for ad in brackets]  # exp(v + dv) by exp(step dv)
        for i, (a, b, measured) in enumerate(loops):
            tail = Similarity(1.0, np.eye(3), np.zeros(3))  # from window b's frame to window k + 1's
            for k in reversed(range(a, b)):
                jacobian[i, :, k] = tail.inverse().adjoint() @ steps[k] * unit[k + 1]
                tail = now[k] @ tail
            error = (measured.inverse() @ tail).log()
            ad = _bracket(error)
            turn = np.eye(7) + ad / 2 + ad @ ad / 12  # d log(exp(error) exp(dv)) / dv, but for fourth order
            jacobian[i] = np.tensordot(turn / unit[b][:, None], jacobian[i], 1)
            residual[i] = error / unit[b]
        j = jacobian.reshape(7 * len(loops), -1)
        wanted = np.linalg.solve(j @ j.T + 2 * np.eye(len(j)), j @ y.ravel() - residual.ravel())
        before, y = y, (j.T @ wanted).reshape(-1, 7)
        if np.abs(y - before).max() < 1e-12:
            break
    out = [Similarity(1.0, np.eye(3), np.zeros(3))]
    for z, v in zip(joins, y * unit[1:], strict=True):
        out.append(out[-1] @ z @ Similarity.exp(v) if loops else out[-1] @ z)
    return out


def _bracket(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Lie bracket with v, [7, 7]."""
    out = np.zeros((7, 7))
    out[:3, :3] = v[6] * np.eye(3) + skew(v[3:6])
    out[:3, 3:6], out[:3, 6], out[3:6, 3:6] = skew(v[:3]), -v[:3], skew(v[3:6])
    return out


# ---- the clip ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    """Pixels of a few frames of a window, and their points in the window's frame."""

    index: NDArray[np.int64]  # [N] in the frames' pixels, one after the other
    points: NDArray[np.float64]  # [N, 3]
    depth: NDArray[np.float64]  # [N]
    confidence: NDArray[np.float64]  # [N]
    rotations: NDArray[np.float64]  # [F, 3, 3] world_from_cam


def clip_depth(
    pictures: Iterable[NDArray[np.uint8]],
    backend: WindowBackend,
    config: DepthConfig = DepthConfig(),
    *,
    loops: Sequence[tuple[int, int]] = (),
) -> Iterator[FrameDepth | DepthTrack | Rejected]:
    """Each frame's depth in order as soon as its window is joined; last the clip's cameras, or a refusal.

    Args:
        pictures: RGB [H, W, 3], all of one size, as the backend needs it (see `shrunk`). No more than `config.length`
            are asked for ahead of what is yielded.
        loops: frames a < b that show the same place, such as a verified loop of the classical track.

    Raises:
        LongtakeError: a loop is not two frames of the clip.
    """
    wanted = {frame for pair in loops for frame in pair}
    for a, b in loops:
        if not 0 <= a < b:
            raise LongtakeError(f"loop ({a}, {b}) is not a pair of frames, the earlier first")
    stream = iter(pictures)
    held: list[NDArray[np.uint8]] = []
    first = known = 0  # index of the first frame held, and how many of those held an earlier window has shown
    tail: _Sample | None = None
    kept: dict[int, tuple[int, NDArray[np.uint8], _Sample]] = {}  # window, picture and points of frames in loops
    joins: list[Similarity] = []
    chain = [Similarity(1.0, np.eye(3), np.zeros(3))]
    poses: list[NDArray[np.float64]] = []
    window: list[int] = []
    depths: list[float] = []
    spreads: list[float] = []
    measured: list[tuple[int, int, Similarity]] = []
    closed: list[tuple[int, int]] = []
    refused: list[tuple[int, int]] = []
    while True:
        held.extend(islice(stream, config.length - len(held)))
        if len(held) == known:
            break
        found = _reconstruct(backend, held, config, f"frames {first} to {first + len(held) - 1}")
        if isinstance(found, Rejected):
            yield found
            return
        if tail is not None:
            join = _join(tail, found, slice(0, known), config)
            if isinstance(join, str):
                message = f"the windows that share frames {first} to {first + known - 1} cannot be joined: {join}"
                yield Rejected(stage="depth", reason="windows_disagree", message=message)
                return
            joins.append(join[0])
            spreads.append(join[1])
            chain.append(chain[-1] @ join[0])
        k = len(joins)
        depths.append(float(np.median(found.cam_points[..., 2][found.confidence > 0])))
        for i in range(known, len(held)):
            poses.append(found.world_from_cam[i])
            window.append(k)
            if first + i in wanted:
                kept[first + i] = (k, held[i], _sample(found, slice(i, i + 1), config))
            yield _frame(first + i, found, i, chain[-1].scale)
        for a, b in loops:
            if first + known <= b < first + len(held) and kept[a][0] < k:
                loop = _measure_loop(backend, kept[a], kept[b], config)
                drift = np.inf
                if loop is not None:
                    gap = (loop.inverse() @ chain[kept[a][0]].inverse() @ chain[k]).log()
                    drift = float(np.linalg.norm(gap / ([depths[k]] * 3 + [1] * 4)))
                if loop is None or drift > config.max_loop_drift * (k - kept[a][0]):
                    refused.append((a, b))
                else:
                    measured.append((kept[a][0], k, loop))
                    closed.append((a, b))
        done = first + len(held)
        kept = {f: v for f, v in kept.items() if any(f in pair and pair[1] >= done for pair in loops)}
        tail = _sample(found, slice(max(len(held) - config.overlap, 0), None), config)
        held = held[-config.overlap :]
        first, known = done - len(held), len(held)
        del found  # not while the next window is computed
    if not poses:
        yield Rejected(stage="depth", reason="no_frames", message="the clip has no frames")
        return
    if wanted and max(wanted) >= len(poses):
        raise LongtakeError(f"a loop names frame {max(wanted)}, but the clip has {len(poses)} frames")
    final = close_loops(joins, measured, np.array(depths))
    yield DepthTrack(
        world_from_cam=np.stack([final[k].moved_pose(p) for k, p in zip(window, poses, strict=True)]),
        correction=np.array([final[k].scale / chain[k].scale for k in window]),
        window=np.array(window),
        window_scale=np.array([s.scale for s in final]),
        spread=np.array(spreads),
        loops_closed=tuple(closed),
        loops_refused=tuple(refused),
    )


def _frame(index: int, found: WindowGeometry, i: int, scale: float) -> FrameDepth:
    import torch

    from ..model.pi3x.geometry import intrinsics_from_points

    confidence, points = found.confidence[i].copy(), found.cam_points[i]  # no view, which would hold the window
    known = np.where(confidence[..., None] > 0, points, np.array([0, 0, 1], np.float32))
    k = intrinsics_from_points(torch.from_numpy(known), centred=True, weight=torch.from_numpy(confidence))
    depth = np.where(np.isfinite(points).all(-1) & (points[..., 2] > 0), scale * points[..., 2], np.nan)
    return FrameDepth(
        index=index,
        depth=depth.astype(np.float32),
        confidence=confidence,
        focal_px=(float(k[0, 0]), float(k[1, 1])),
    )


def _sample(found: WindowGeometry, frames: slice, config: DepthConfig) -> _Sample:
    index = np.flatnonzero(found.confidence[frames] >= config.min_confidence)
    if len(index) > config.max_pixels:
        index = np.sort(np.random.default_rng(0).choice(index, config.max_pixels, replace=False))
    return _at(found, frames, index)


def _at(found: WindowGeometry, frames: slice, index: NDArray[np.int64]) -> _Sample:
    points = found.cam_points[frames].reshape(-1, 3)[index].astype(np.float64)
    cameras = found.world_from_cam[frames]
    each = cameras[index // found.confidence[0].size]
    return _Sample(
        index=index,
        points=(each[:, :3, :3] @ points[..., None])[..., 0] + each[:, :3, 3],
        depth=points[:, 2],
        confidence=found.confidence[frames].reshape(-1)[index].astype(np.float64),
        rotations=cameras[:, :3, :3],
    )


def _join(target: _Sample, found: WindowGeometry, frames: slice, config: DepthConfig) -> tuple[Similarity, float] | str:
    """From the window's frame to the target's, by these frames, which are the target's; or why not, in words."""
    source = _at(found, frames, target.index)
    use = source.confidence >= config.min_confidence
    if use.sum() < config.min_pixels:
        return f"both are confident of {use.sum()} pixels, not of {config.min_pixels}"
    a, b, depth = source.points[use], target.points[use], target.depth[use]
    weight = np.sqrt(source.confidence * target.confidence)[use]
    scale = float(np.exp(_weighted_median(np.log(depth / source.depth[use]), weight)))
    rotation = nearest_rotation((target.rotations @ np.swapaxes(source.rotations, 1, 2)).sum(0))
    shift = b - scale * a @ rotation.T
    start = Similarity(scale, rotation, np.array([_weighted_median(x, weight) for x in shift.T]))
    fit = robust_similarity(a, b, weight, depth, start)
    if fit is None:
        return "their common points lie on a line, so any turn about it fits"
    if fit[1] > config.max_spread:
        return f"their points differ by {fit[1]:.0%} of the depth, more than {config.max_spread:.0%}"
    if not 1 / _FURTHEST <= fit[0].scale <= _FURTHEST:
        return f"one is {fit[0].scale:.3g} times as large as the other, although both claim to be metric"
    return fit


def _measure_loop(
    backend: WindowBackend,
    a: tuple[int, NDArray[np.uint8], _Sample],
    b: tuple[int, NDArray[np.uint8], _Sample],
    config: DepthConfig,
) -> Similarity | None:
    """From the frame of b's window to that of a's, by a pass over one frame of each; None where these do not join."""
    found = _reconstruct(backend, [a[1], b[1]], config, "the frames of a loop")
    if isinstance(found, Rejected):
        return None
    to_a, to_b = _join(a[2], found, slice(0, 1), config), _join(b[2], found, slice(1, 2), config)
    return None if isinstance(to_a, str) or isinstance(to_b, str) else to_a[0] @ to_b[0].inverse()


# ---- one frame at a time -----------------------------------------------------------------------------------------


def single_depths(
    pictures: Iterable[NDArray[np.uint8]], backend: SingleBackend, *, batch: int = 2
) -> Iterator[SingleDepth | Rejected]:
    """Each frame's own depth in order, computed `batch` at a time; a refusal ends the stream."""
    stream, first = iter(pictures), 0
    while held := list(islice(stream, batch)):
        where = f"frames {first} to {first + len(held) - 1}"
        stacked = _stacked(held, where)
        if isinstance(stacked, Rejected):
            yield stacked
            return
        found = backend(stacked)
        depth, focal = np.asarray(found.depth), np.asarray(found.focal_widths)
        if depth.ndim != 3 or len(depth) != len(held) or focal.shape != (len(held),):
            shapes = f"depth {list(depth.shape)} and focal lengths {list(focal.shape)} of {len(held)} pictures"
            yield _rejected("depth_shape", f"{where}: the network returned {shapes}")
            return
        if (depth < 0).any():
            yield _rejected("depth_negative", f"{where}: depth is as low as {np.nanmin(depth):.3g} m")
            return
        if not (np.isfinite(focal) & (focal > 0)).all():
            yield _rejected("focal_not_positive", f"{where}: focal lengths {focal} widths; one is not positive")
            return
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32)
        for i in range(len(held)):
            yield SingleDepth(index=first + i, depth=depth[i], focal_widths=float(focal[i]))
        first += len(held)


def metric_disagreement(factors: NDArray[np.float64]) -> Rejected | None:
    """A refusal where the clip's two metric scales are more than ten times apart.

    Args:
        factors: [T] metres of the single frames' depth per metre of the windows' (`scale.FrameFactor`); nan: undefined.
    """
    defined = factors[np.isfinite(factors)]
    median = float(np.median(defined)) if defined.size else 1.0
    if 1 / _FURTHEST <= median <= _FURTHEST:
        return None
    message = (
        f"single frames say that the scene is {median:.3g} times as large as the windows say: one of the two networks "
        "is wrong about this clip, so its scale is unknown"
    )
    return _rejected("metric_disagreement", message)


# ---- what networks return ----------------------------------------------------------------------------------------


def _rejected(reason: str, message: str) -> Rejected:
    return Rejected(stage="depth", reason=reason, message=message)


def _stacked(held: Sequence[NDArray[np.uint8]], where: str) -> NDArray[np.uint8] | Rejected:
    kinds = sorted({(p.shape, str(p.dtype)) for p in held})
    if len(kinds) > 1 or kinds[0][1] != "uint8" or len(kinds[0][0]) != 3 or kinds[0][0][2] != 3:
        return _rejected("picture_shape", f"{where}: pictures are {kinds}, not uint8 (height, width, 3) of one size")
    return np.stack(held)


def _reconstruct(
    backend: WindowBackend, held: Sequence[NDArray[np.uint8]], config: DepthConfig, where: str
) -> WindowGeometry | Rejected:
    """A window as the backend sees it, checked; in its first camera's frame, confidence 0 at what is no surface."""
    pictures = _stacked(held, where)
    if isinstance(pictures, Rejected):
        return pictures
    found = backend(pictures)
    frames, height, width = pictures.shape[:3]
    wants = {
        "cam_points": (frames, height, width, 3),
        "world_from_cam": (frames, 4, 4),
        "confidence": (frames, height, width),
    }
    for name, want in wants.items():
        if np.shape(getattr(found, name)) != want:
            got = list(np.shape(getattr(found, name)))
            return _rejected("depth_shape", f"{where}: the network returned {name} {got}, not {list(want)}")
    points = np.asarray(found.cam_points, np.float32)
    confidence = np.asarray(found.confidence, np.float32)
    poses = np.asarray(found.world_from_cam, np.float64)
    if not np.isfinite(poses).all():
        return _rejected("pose_not_finite", f"{where}: the network returned a pose that is not finite")
    rotations = poses[:, :3, :3]
    off = np.abs(rotations @ np.swapaxes(rotations, 1, 2) - np.eye(3)).max((1, 2))
    wrong = np.flatnonzero((off > 1e-2) | (np.linalg.det(rotations) <= 0) | (poses[:, 3] != [0, 0, 0, 1]).any(1))
    if wrong.size:
        size = np.cbrt(np.linalg.det(rotations[wrong[0]]))
        text = f"{where}: pose {wrong[0]} is no rigid motion (its rotation scales by {size:.3g})"
        return _rejected("pose_not_rigid", text)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        return _rejected("confidence_range", f"{where}: a confidence is not within 0 .. 1; apply the sigmoid to logits")
    valid = np.isfinite(points).all(-1) & (points[..., 2] > 0)
    if not valid.mean() >= 1 - config.max_unknown:
        bad = "not finite" if np.isfinite(points).all(-1).mean() < 0.5 else "not in front of the camera"
        return _rejected("no_depth", f"{where}: {1 - valid.mean():.0%} of the points are unknown, most of them {bad}")
    confidence = np.where(valid & ~_edges(points, valid, confidence, config), confidence, np.float32(0))
    if not confidence.any():
        return _rejected("no_confidence", f"{where}: the network is confident of no pixel")
    poses = pose(nearest_rotation(rotations), poses[:, :3, 3])
    return WindowGeometry(cam_points=points, world_from_cam=invert_pose(poses[0]) @ poses, confidence=confidence)


def _edges(points: NDArray, valid: NDArray, confidence: NDArray, config: DepthConfig) -> NDArray[np.bool_]:
    """Where a surface ends, frame by frame: points there lie on neither."""
    import torch

    from ..model.pi3x.geometry import edges

    out = np.zeros(valid.shape, bool)
    for i in range(len(valid)):
        seen = torch.from_numpy(valid[i] & (confidence[i] >= config.min_confidence))
        out[i] = edges(torch.from_numpy(points[i])[None], seen[None], jump=config.edge_jump)[0].numpy()
    return out


# ---- the networks ------------------------------------------------------------------------------------------------


def shrunk(pictures: Iterable[NDArray[np.uint8]], *, pixel_limit: int) -> Iterator[NDArray[np.uint8]]:
    """RGB pictures [H, W, 3], one by one, at the size that Pi3X takes (see `pi3x.geometry.target_size`)."""
    import torch

    from ..model.pi3x.geometry import resize, target_size

    for picture in pictures:
        width, height = target_size(picture.shape[1], picture.shape[0], pixel_limit)
        small = resize(torch.from_numpy(picture), width, height) * 255
        yield small.round().to(torch.uint8).movedim(0, -1).contiguous().numpy()


def pi3x_backend(net: Pi3X, *, precision: Precision) -> WindowBackend:
    """Windows as Pi3X sees them, without conditions, on the network's device; pictures as `shrunk` makes them."""
    import torch

    device = net.image_mean.device

    def reconstruct(pictures: NDArray[np.uint8]) -> WindowGeometry:
        images = torch.from_numpy(pictures).to(device).movedim(-1, -3)[None].float() / 255
        lower = precision != "float32"
        try:
            with torch.inference_mode(), torch.autocast(device.type, getattr(torch, precision), enabled=lower):
                found = net(images)
        except torch.OutOfMemoryError as error:
            size = f"{len(pictures)} frames of {pictures.shape[2]} x {pictures.shape[1]}"
            raise OutOfDeviceMemory(f"{device} has no memory for {size} in Pi3X") from error
        return WindowGeometry(
            cam_points=found.cam_points[0].float().cpu().numpy(),
            world_from_cam=found.world_from_cam[0].double().cpu().numpy(),
            confidence=found.confidence_logit[0].float().sigmoid().cpu().numpy(),
        )

    return reconstruct


def moge2_backend(
    net: MoGe2, *, precision: Precision, size: tuple[int, int], fov_x_deg: float | None = None
) -> SingleBackend:
    """Frames as MoGe-2 sees them, on the network's device; depth is sampled at `size` (width, height).

    Pictures keep their own aspect, as the network assumes square pixels.

    Args:
        fov_x_deg: the camera's horizontal field of view, where it is known.

    Raises:
        LongtakeError: the network has no metric scale.
    """
    import torch

    from ..model.moge2.infer import infer

    device = next(net.parameters()).device

    def predict(pictures: NDArray[np.uint8]) -> SingleGeometry:
        images = torch.from_numpy(pictures).to(device).movedim(-1, -3).float() / 255
        try:
            found = infer(net, images, fov_x_deg=fov_x_deg, precision=getattr(torch, precision))
        except torch.OutOfMemoryError as error:
            what = f"{len(pictures)} pictures of {pictures.shape[2]} x {pictures.shape[1]}"
            raise OutOfDeviceMemory(f"{device} has no memory for {what} in MoGe-2") from error
        if found.metric_scale is None:
            raise LongtakeError("this MoGe-2 network has no scale head, so its depth is not metric: use one that has")
        depth = torch.nn.functional.interpolate(found.depth[:, None], size[::-1], mode="nearest-exact")[:, 0]
        return SingleGeometry(depth=depth.cpu().numpy(), focal_widths=found.intrinsics[:, 0, 0].double().cpu().numpy())

    return predict


def pi3x_bytes(width: int, height: int, frames: int, *, precision: Precision, multimodal: bool) -> int:
    """Predicted peak device memory of Pi3X for a window of pictures of width x height, its weights included.

    It is what tensors take. Not in it is what a GPU's context and libraries take beside them: leave them some room.
    Its authors measured 10.7 MiB a frame of 224 x 224 on an A800 in bfloat16, and 68.9 of 672 x 378, in windows of
    thousands and hundreds (https://github.com/yyfz/Pi3); the prediction is 11.3 and 56.6, as maps are made one by one.
    """
    weights = 4 * (_PARAMETERS + (_MULTIMODAL_PARAMETERS if multimodal else 0))
    pixels = width * height
    frame = _TOKEN_BYTES[precision] * (pixels / 14**2 + _REGISTERS) + _PICTURE_BYTES * pixels
    return math.ceil(weights + frames * frame + _MAP_BYTES * pixels)


def pi3x_frames(width: int, height: int, vram: int, *, precision: Precision, multimodal: bool) -> int:
    """The longest window that `pi3x_bytes` predicts to fit into `vram` bytes.

    Raises:
        OutOfDeviceMemory: not even two frames fit.
    """

    def needs(frames: int) -> int:
        return pi3x_bytes(width, height, frames, precision=precision, multimodal=multimodal)

    frames = max((vram - needs(0)) // max(needs(1) - needs(0), 1), 0)
    while needs(frames + 1) <= vram:
        frames += 1
    while frames > 0 and needs(frames) > vram:
        frames -= 1
    if frames < 2:
        raise OutOfDeviceMemory(
            f"Pi3X needs about {needs(2) / 2**30:.1f} GiB for two frames of {width} x {height} in {precision}, more "
            f"than the {vram / 2**30:.1f} GiB allowed: allow more, or use smaller pictures"
        )
    return frames
