"""From pictures with depth to Gaussians, without training: one for each pixel of a frame, fused over many frames.

    gaussians = lift_frame(frame)                 # one picture: enough to fly a path through it (`fly`)
    lifted = lift(frames)                         # many: streamed, each adds what the model does not show yet

A pixel becomes a flat disc on the plane through its neighbours' points that looks, from where it was taken, like a
round blob of `size` pixels. A plane has inverse depth that is affine in the pixel, so the plane is a least-squares fit
of 1 / z over 5 x 5 pixels, and a disc's axes are the steps along it that one pixel right and one pixel down make.

Fusion: the model so far is drawn at the new frame; pixels where it stands already, opaque and at the same depth, are
left out. The others join cells of a voxel hash whose edge is the power of two below `cell` pixels at their depth, so
that near and far surfaces keep the detail they were seen with; a cell is the mean of what it was given, by confidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..geometry import invert_pose, quaternion_from_rotation
from ..records import LongtakeError
from .gaussians import SH0, Gaussians
from .rasterize import Backend, Rasterizer, Rendered

HOLE = 0.5  # a pixel that the model covers with less alpha is a hole
_MAX_STRETCH = 4.0  # of a disc that is seen at a slant
_REACH = 2  # pixels about a pixel that its plane is fitted to: no more than what an edge takes away


@dataclass(frozen=True, kw_only=True)
class LiftConfig:
    """How pixels become Gaussians."""

    size: float = 0.5  # standard deviation on the picture that the depth was seen in, pixels
    thickness: float = 0.2  # standard deviation along the normal, of that across it
    opacity: float = 0.95
    edge_step: float = 0.04  # of depth to a neighbour, as a share of it, from which both are left out
    min_confidence: float = 0.1  # pixels below it are left out
    sky_distance: float = 20.0  # radius of the shell for sky, in 95th percentiles of the first frame's depth
    cell: float = 2.0  # largest edge of a voxel, pixels at its depth; the smallest is half of it
    agree: float = 0.02  # difference of depth, as a share of it, up to which the model shows a pixel already,
    opaque: float = 0.95  # where its alpha is above this

    def __post_init__(self) -> None:
        if not (0 < self.size and 0 < self.thickness and 0 < self.opacity <= 1):
            raise LongtakeError(f"{self}: size and thickness are above 0, opacity within 0 .. 1")
        if not (0 < self.edge_step and 0 < self.agree and 0 < self.cell and self.sky_distance > 1):
            raise LongtakeError(f"{self}: edge_step, agree and cell are above 0, sky_distance above 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class RgbdFrame:
    """A picture, the depth of its pixels, and the pinhole that took both.

    Raises:
        LongtakeError: a shape, a type or a number is not what it should be.
    """

    name: str  # what errors call it
    rgb: NDArray[np.uint8]  # [H, W, 3]
    depth: NDArray[np.float32]  # [H, W] along the optical axis; not positive or not finite: unknown
    intrinsics: NDArray[np.float64]  # [4] fx, fy, cx, cy in pixels of these maps, pixel centres at integer coordinates
    world_from_cam: NDArray[np.float64]  # [4, 4] in the unit of depth; camera axes x right, y down, z forward
    confidence: NDArray[np.float32] | None = None  # [H, W] in 0 .. 1; None: 1 everywhere
    sky: NDArray[np.bool_] | None = None  # [H, W] pixels to put on a far shell; None: none
    moving: NDArray[np.bool_] | None = None  # [H, W] pixels of things that move, left out; None: none

    def __post_init__(self) -> None:
        shape = np.shape(self.depth)
        if len(shape) != 2 or np.shape(self.rgb) != (*shape, 3) or self.rgb.dtype != np.uint8:
            got = f"rgb is {self.rgb.dtype} {list(np.shape(self.rgb))} and depth {list(shape)}"
            raise LongtakeError(f"{self.name}: {got}: they must be uint8 [H, W, 3] and [H, W]; resize one to the other")
        for what in ("confidence", "sky", "moving"):
            extra = getattr(self, what)
            if extra is not None and np.shape(extra) != shape:
                raise LongtakeError(f"{self.name}: {what} is {list(np.shape(extra))}, but depth {list(shape)}")
            if what != "confidence" and extra is not None and extra.dtype != bool:
                raise LongtakeError(
                    f"{self.name}: {what} has dtype {extra.dtype}: a mask is boolean, True: it is {what}"
                )
        k, pose = np.asarray(self.intrinsics), np.asarray(self.world_from_cam)
        if k.shape != (4,) or not np.isfinite(k).all() or (k[:2] <= 0).any():
            raise LongtakeError(f"{self.name}: intrinsics {k} are not fx, fy, cx, cy with positive focal lengths")
        rigid = pose.shape == (4, 4) and np.isfinite(pose).all()
        if not rigid or np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-3:
            raise LongtakeError(f"{self.name}: world_from_cam is no rigid motion:\n{pose}")

    @property
    def known(self) -> NDArray[np.bool_]:
        """[H, W] where depth has a value."""
        with np.errstate(invalid="ignore"):
            return np.isfinite(self.depth) & (self.depth > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Discs:
    """N pixels as pieces of surface, in the world."""

    pixel: NDArray[np.int64]  # [N] row * W + column
    points: NDArray[np.float64]  # [N, 3]
    axes: NDArray[np.float64]  # [N, 3, 3] columns: two along the surface, its normal
    scales: NDArray[np.float64]  # [N, 3] standard deviations along them
    footprint: NDArray[np.float64]  # [N] edge of a pixel at this depth
    colours: NDArray[np.float64]  # [N, 3] 0 .. 1
    confidence: NDArray[np.float64]  # [N] above 0

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: NDArray) -> Discs:
        return replace(self, **{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True, eq=False)
class Lifted:
    """A scene made from frames."""

    gaussians: Gaussians
    counts: NDArray[np.int64]  # [N] pixels that each Gaussian is the mean of
    frames: int  # that gave pixels, or showed only what was there
    without_depth: tuple[str, ...]  # names of frames that had no usable depth
    pixels: int  # with usable depth, of all frames
    shown_already: int  # of these, left out because the model had them


# ---- one frame ---------------------------------------------------------------------------------------------------


def lift_frame(frame: RgbdFrame, config: LiftConfig | None = None) -> Gaussians:
    """A Gaussian for each pixel with usable depth, and for each of the sky, in the world of the frame's pose.

    Raises:
        LongtakeError: no pixel has usable depth.
    """
    config = config or LiftConfig()
    discs = discs_of(frame, config, sky_shell(frame, config))
    if not len(discs):
        raise LongtakeError(_no_depth(frame))
    return _gaussians(discs, config)


def discs_of(frame: RgbdFrame, config: LiftConfig, shell: tuple[NDArray[np.float64], float] | None = None) -> Discs:
    """The usable pixels of a frame as discs, perhaps none.

    Args:
        shell: centre [3] and radius of the sphere that pixels of the sky are put on; None: they are left out.
    """
    usable = usable_depth(frame, config)
    inverse = np.where(usable, 1 / np.where(usable, frame.depth, 1).astype(np.float64), 0.0)
    slope_u, slope_v, inverse = _planes(inverse, usable)
    sky = np.zeros_like(usable)
    if shell is not None and frame.sky is not None:
        sky = frame.sky if frame.moving is None else frame.sky & ~frame.moving
    v, u = np.nonzero(usable | sky)
    fx, fy, cx, cy = np.asarray(frame.intrinsics, np.float64)
    ray = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(len(u))], 1)  # [N, 3] of depth 1
    pose = np.asarray(frame.world_from_cam, np.float64)
    is_sky = sky[v, u]
    depth = np.where(is_sky, 1.0, frame.depth[v, u].astype(np.float64))
    slopes = np.where(is_sky[:, None], 0.0, np.stack([slope_u[v, u], slope_v[v, u]], 1))  # of 1 / z, a pixel
    if shell is not None and is_sky.any():
        depth[is_sky] = _to_sphere(ray[is_sky] @ pose[:3, :3].T, pose[:3, 3], *shell)
    smooth = np.where(is_sky, 1 / depth, inverse[v, u])
    axes, scales = _frames_of_reference(ray, depth, slopes / smooth[:, None], fx, fy, config)
    confidence = np.ones(len(u)) if frame.confidence is None else frame.confidence[v, u].astype(np.float64)
    return Discs(
        pixel=v * usable.shape[1] + u,
        points=(depth[:, None] * ray) @ pose[:3, :3].T + pose[:3, 3],
        axes=pose[:3, :3] @ axes,
        scales=scales,
        footprint=depth / np.sqrt(fx * fy),
        colours=frame.rgb[v, u] / 255.0,
        confidence=np.where(is_sky, 1.0, confidence),
    )


def usable_depth(frame: RgbdFrame, config: LiftConfig) -> NDArray[np.bool_]:
    """[H, W] pixels whose depth is known and trusted, neither sky nor moving, and not at an edge of depth."""
    usable = frame.known
    if frame.confidence is not None:
        usable &= frame.confidence >= config.min_confidence
    for mask in (frame.sky, frame.moving):
        if mask is not None:
            usable &= ~mask
    log = np.log(np.where(usable, frame.depth, 1).astype(np.float64))
    edge = np.zeros_like(usable)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        jump = usable[a] & usable[b] & (np.abs(log[a] - log[b]) > np.log1p(config.edge_step))
        edge[a] |= jump
        edge[b] |= jump
    return usable & ~edge


def sky_shell(frame: RgbdFrame, config: LiftConfig) -> tuple[NDArray[np.float64], float] | None:
    """Centre [3] and radius of the sphere for the sky, about this frame's camera; None where it has no depth.

    A frame of nothing but sky says nothing of how far things are.
    """
    usable = usable_depth(frame, config)
    if not usable.any():
        return None
    return frame.world_from_cam[:3, 3], config.sky_distance * float(np.quantile(frame.depth[usable], 0.95))


def register_depth(
    depth: NDArray,
    depth_intrinsics: ArrayLike,
    cam_from_depth_cam: NDArray,
    intrinsics: ArrayLike,
    width: int,
    height: int,
) -> NDArray[np.float32]:
    """Depth of one camera as another one beside it sees it: [height, width], nan where unknown.

    Points are splatted to the 2 x 2 nearest pixels, the nearest one wins; what they hide is hidden.

    Args:
        depth: [h, w] along the depth camera's axis; not positive or not finite: unknown.
        depth_intrinsics, intrinsics: fx, fy, cx, cy of the depth camera and of the other.
        cam_from_depth_cam: [4, 4] rigid, in the unit of depth.
    """
    with np.errstate(invalid="ignore"):
        v, u = np.nonzero(np.isfinite(depth) & (depth > 0))
    fx, fy, cx, cy = np.asarray(depth_intrinsics, np.float64)
    z = depth[v, u].astype(np.float64)
    points = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], 1) @ cam_from_depth_cam[:3, :3].T
    points += cam_from_depth_cam[:3, 3]
    points = points[points[:, 2] > 0]
    fx, fy, cx, cy = np.asarray(intrinsics, np.float64)
    at = np.floor(points[:, :2] / points[:, 2:] * [fx, fy] + [cx, cy]).astype(np.int64)
    out = np.full((height, width), np.inf, np.float32)
    for du, dv in np.ndindex(2, 2):
        x, y = at[:, 0] + du, at[:, 1] + dv
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        np.minimum.at(out, (y[inside], x[inside]), points[inside, 2].astype(np.float32))
    return np.where(np.isfinite(out), out, np.float32(np.nan))


def _planes(
    inverse: NDArray[np.float64], known: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Least-squares planes of inverse depth [H, W] about each pixel: steps a column and a row, and the value there.

    Where too few neighbours are known: no slope, and the pixel's own value.
    """
    height, width = inverse.shape
    m = known.astype(np.float64)
    u, v = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    side = (2 * _REACH + 1, 2 * _REACH + 1)

    def total(x: NDArray) -> NDArray[np.float64]:
        box = cv2.boxFilter(x, cv2.CV_64F, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(box, np.float64)

    n, w = total(m), total(m * inverse)
    su, sv, wu, wv = total(m * u), total(m * v), total(m * inverse * u), total(m * inverse * v)
    suu, suv, svv = total(m * u * u), total(m * u * v), total(m * v * v)
    count = np.maximum(n, 1)
    uu, uv, vv = suu - su * su / count, suv - su * sv / count, svv - sv * sv / count
    a, b = wu - su * w / count, wv - sv * w / count
    det = uu * vv - uv * uv
    fitted = known & (n >= 6) & (det > 0.1 * n * n)
    safe = np.where(fitted, det, 1.0)
    slope_u = np.where(fitted, (vv * a - uv * b) / safe, 0.0)
    slope_v = np.where(fitted, (uu * b - uv * a) / safe, 0.0)
    middle = w / count + slope_u * (u - su / count) + slope_v * (v - sv / count)
    return slope_u, slope_v, np.where(fitted & (middle > 0), middle, inverse)


def _frames_of_reference(
    ray: NDArray[np.float64],
    depth: NDArray[np.float64],
    slopes: NDArray[np.float64],
    fx: float,
    fy: float,
    config: LiftConfig,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axes [N, 3, 3] as columns, camera frame, and scales [N, 3] of discs of `size` pixels on their planes.

    slopes: [N, 2] change of log inverse depth a pixel.
    """
    steps = -slopes[:, None, :] * ray[:, :, None]  # [N, 3, 2] how the point moves with one pixel right, and one down,
    steps[:, 0, 0] += 1 / fx  # in units of depth
    steps[:, 1, 1] += 1 / fy
    a, b = steps[:, :, 0], steps[:, :, 1]
    half = 0.5 * np.arctan2(2 * (a * b).sum(1), (a * a).sum(1) - (b * b).sum(1))[:, None]  # one turn makes them square
    a, b = np.cos(half) * a + np.sin(half) * b, np.cos(half) * b - np.sin(half) * a
    long_a, long_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    a, b = a / long_a[:, None], b / long_b[:, None]
    pixel = 1 / np.sqrt(fx * fy)
    most = _MAX_STRETCH * pixel
    size = config.size * depth
    scales = np.stack(
        [np.minimum(long_a, most), np.minimum(long_b, most), np.full(len(a), config.thickness * pixel)], 1
    )
    return np.stack([a, b, np.cross(a, b)], 2), scales * size[:, None]


def _to_sphere(
    ray: NDArray[np.float64], eye: NDArray[np.float64], centre: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Depth [N] at which rays [N, 3] of depth 1 from the eye, well inside the sphere, meet it."""
    offset = eye - centre
    if np.linalg.norm(offset) > 0.5 * radius:
        raise LongtakeError(
            f"a camera stands {np.linalg.norm(offset):.3g} from the first one, but the sky was put only {radius:.3g} "
            "away: raise sky_distance, or leave the sky out"
        )
    a, b, c = (ray * ray).sum(1), ray @ offset, offset @ offset - radius**2
    return (-b + np.sqrt(b * b - a * c)) / a


def _gaussians(discs: Discs, config: LiftConfig) -> Gaussians:
    return Gaussians(
        means=discs.points.astype(np.float32),
        scales=np.maximum(discs.scales, 1e-30).astype(np.float32),
        quaternions=quaternion_from_rotation(discs.axes).astype(np.float32),
        opacities=np.full(len(discs), config.opacity, np.float32),
        sh=((discs.colours - 0.5) / SH0).astype(np.float32)[:, None],
    )


def _no_depth(frame: RgbdFrame) -> str:
    known = frame.known.mean()
    why = "no pixel has a depth" if not known else f"{known:.0%} have a depth, but at edges, in masks or untrusted"
    return f"{frame.name}: nothing can be lifted: {why}. Give depth along the optical axis, above 0, in a smooth map."


# ---- many frames -------------------------------------------------------------------------------------------------


class Fusion:
    """A model that grows frame by frame. Memory goes with the model, not with the number of frames."""

    def __init__(self, config: LiftConfig | None = None, *, backend: Backend = "auto") -> None:
        self.config = config or LiftConfig()
        self.backend: Backend = backend
        self.pixels = self.shown_already = self.frames = 0
        self.without_depth: list[str] = []
        self._shell: tuple[NDArray[np.float64], float] | None = None
        self._keys = np.zeros(0, np.uint64)  # of cells, sorted,
        self._rows = np.zeros(0, np.int64)  # and where each lies in what follows
        self._count = np.zeros(0, np.int64)
        self._first: Discs | None = None  # the first disc of each cell
        self._cell = np.zeros(0)  # edge
        self._sums = np.zeros((0, 11))  # weight; offset from the first disc, its square; colour; normal, all by weight

    def __len__(self) -> int:
        return len(self._count)

    def add(self, frame: RgbdFrame) -> None:
        """Take in what the model does not show yet. A frame without usable depth is only written down."""
        if self._shell is None:
            self._shell = sky_shell(frame, self.config)
        discs = discs_of(frame, self.config, self._shell)
        if not len(discs):
            self.without_depth.append(frame.name)
            return
        self.frames += 1
        self.pixels += len(discs)
        if len(self):
            drawn = Rasterizer(self.gaussians(), backend=self.backend).draw(
                frame.world_from_cam, frame.intrinsics, frame.depth.shape[1], frame.depth.shape[0]
            )
            back = invert_pose(np.asarray(frame.world_from_cam, np.float64))
            depth = discs.points @ back[2, :3] + back[2, 3]
            there, alpha = drawn.depth.ravel()[discs.pixel], drawn.alpha.ravel()[discs.pixel]
            new = ~((alpha > self.config.opaque) & (np.abs(there - depth) <= self.config.agree * depth))
            self.shown_already += int((~new).sum())
            discs = discs[new]
        self._merge(discs)

    def gaussians(self) -> Gaussians:
        """The model: cells of one pixel are that pixel's disc; of more, round discs that fill the cell."""
        if self._first is None:
            raise LongtakeError("nothing was lifted: no frame had usable depth")
        weight = self._sums[:, 0]
        mean = self._sums[:, 1:4] / weight[:, None]
        spread = np.sqrt(np.maximum(self._sums[:, 4] / weight - (mean * mean).sum(1), 0) / 3)
        merged = np.flatnonzero(self._count > 1)
        scales, axes = self._first.scales.copy(), self._first.axes.copy()
        side = np.maximum(self._cell[merged] / 2, spread[merged])
        scales[merged] = side[:, None] * [1, 1, self.config.thickness]
        axes[merged] = _about(self._sums[merged, 8:11])
        return _gaussians(
            replace(
                self._first,
                points=self._first.points + mean,
                axes=axes,
                scales=scales,
                colours=self._sums[:, 5:8] / weight[:, None],
            ),
            self.config,
        )

    def lifted(self) -> Lifted:
        """The model, and how it came about.

        Raises:
            LongtakeError: no frame had usable depth.
        """
        if self._first is None:
            some = ", ".join(self.without_depth[:3]) or "there were none"
            raise LongtakeError(f"nothing was lifted: no frame had usable depth ({some})")
        return Lifted(
            gaussians=self.gaussians(),
            counts=self._count.copy(),
            frames=self.frames,
            without_depth=tuple(self.without_depth),
            pixels=self.pixels,
            shown_already=self.shown_already,
        )

    def _merge(self, discs: Discs) -> None:
        """Discs join the cells that they lie in, or found new ones."""
        level = np.floor(np.log2(self.config.cell * discs.footprint))
        edge = np.exp2(level)
        keys = _hash(np.concatenate([level[:, None], np.floor(discs.points / edge[:, None])], 1).astype(np.int64))
        at = np.searchsorted(self._keys, keys)
        found = np.zeros(len(keys), bool)
        inside = at < len(self._keys)
        found[inside] = self._keys[at[inside]] == keys[inside]
        fresh, first, which = np.unique(keys[~found], return_index=True, return_inverse=True)
        rows = np.empty(len(keys), np.int64)
        rows[found] = self._rows[at[found]]
        rows[~found] = len(self) + which
        founders = np.flatnonzero(~found)[first]
        self._first = discs[founders] if self._first is None else _joined(self._first, discs[founders])
        self._cell = np.concatenate([self._cell, edge[founders]])
        self._count = np.concatenate([self._count, np.zeros(len(fresh), np.int64)])
        self._sums = np.concatenate([self._sums, np.zeros((len(fresh), 11))])
        order = np.argsort(np.concatenate([self._keys, fresh]), kind="stable")
        self._rows = np.concatenate([self._rows, np.arange(len(self) - len(fresh), len(self))])[order]
        self._keys = np.concatenate([self._keys, fresh])[order]
        offset = discs.points - self._first.points[rows]
        added = np.concatenate(
            [np.ones((len(rows), 1)), offset, (offset * offset).sum(1)[:, None], discs.colours, discs.axes[:, :, 2]], 1
        )
        added *= discs.confidence[:, None]
        for column in range(added.shape[1]):
            self._sums[:, column] += np.bincount(rows, added[:, column], len(self))
        self._count += np.bincount(rows, minlength=len(self))


def lift(frames: Iterable[RgbdFrame], config: LiftConfig | None = None, *, backend: Backend = "auto") -> Lifted:
    """One scene from many frames, which are asked for one at a time.

    Args:
        backend: the rasteriser that draws the model at each new frame.

    Raises:
        LongtakeError: no frame has usable depth.
    """
    fusion = Fusion(config, backend=backend)
    for frame in frames:
        fusion.add(frame)
    return fusion.lifted()


def _hash(cells: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 bits of cells [N, 4]: two of a million cells meet once in 10^7 scenes. Source: splitmix64, Steele 2014."""
    out = np.zeros(len(cells), np.uint64)
    for column in cells.T:
        out += column.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out


def _about(normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right-handed axes [N, 3, 3] whose third column is along the normals [N, 3], of any length.

    Source: Duff et al., Building an orthonormal basis, revisited, JCGT 6(1), 2017.
    """
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    x, y, z = np.where(length > 0, normal / np.where(length > 0, length, 1), [0.0, 0.0, 1.0]).T
    sign = np.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    first = np.stack([1 + sign * x * x * a, sign * b, -sign * x], 1)
    second = np.stack([b, sign + y * y * a, -y], 1)
    return np.stack([first, second, np.stack([x, y, z], 1)], 2)


def _joined(a: Discs, b: Discs) -> Discs:
    return Discs(**{name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in Discs.__dataclass_fields__})


# ---- preview -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Flown:
    """One frame of a preview."""

    rgb: NDArray[np.uint8]  # [H, W, 3] holes in a plain colour
    hole_share: float  # of the pixels
    nearest: float  # 1st percentile of the depth of what is no hole, scene units; nan where all is hole


def fly(
    gaussians: Gaussians,
    world_from_cam: NDArray,
    intrinsics: NDArray,
    width: int,
    height: int,
    *,
    hole_rgb: tuple[int, int, int] = (255, 0, 255),
    backend: Backend = "auto",
) -> Iterator[Flown]:
    """Pictures along a path with all that the scene does not show in a plain colour.

    A lifted surface has no back: a camera that goes through one sees it from behind, and `nearest` drops to 0 there.

    Args:
        world_from_cam: [T, 4, 4]; intrinsics: [T, 4], or [4] for all; pixel centres at integer coordinates.
    """
    rasterizer = Rasterizer(gaussians, backend=backend)
    cameras = np.broadcast_to(np.asarray(intrinsics, np.float64), (len(world_from_cam), 4))
    for pose, k in zip(world_from_cam, cameras, strict=True):
        drawn = rasterizer.draw(pose, k, width, height)
        hole = drawn.alpha < HOLE
        near = drawn.depth[~hole]
        yield Flown(
            rgb=_shown(drawn, hole, hole_rgb),
            hole_share=float(hole.mean()),
            nearest=float(np.quantile(near, 0.01)) if near.size else float("nan"),
        )


def _shown(drawn: Rendered, hole: NDArray[np.bool_], hole_rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Colours as if what is no hole were opaque."""
    rgb = 255 * drawn.rgb / np.maximum(drawn.alpha, HOLE)[..., None]
    rgb[hole] = hole_rgb
    return np.rint(np.clip(rgb, 0, 255)).astype(np.uint8)
