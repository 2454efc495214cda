"""Bundle adjustment: Levenberg-Marquardt on camera poses, scene points and intrinsics, and batched resection.

Points are eliminated by the Schur complement (Triggs et al., "Bundle Adjustment - A Modern Synthesis", 1999, sec. 6);
the reduced camera system is factored in blocks, only those that fill, or where even they are too many solved by
preconditioned conjugate gradients on the implicit Schur complement (Agarwal et al., "Bundle Adjustment in the Large",
2010). Views numbered along a path keep the fill small. float64 throughout; one code for CPU and CUDA. On a CPU the same
input gives the same bytes; on CUDA sums are atomic and the last digits may differ.

Camera model: with (X, Y, Z) = R p + t, n = (X, Y) / Z and r = |n|, pixel = (fx, fy) n (1 + k1 r^2 + k2 r^4) + (cx, cy).
A pose moves by x_cam <- exp([w]) x_cam + v, so that w alone turns a camera about its own centre. Intrinsics are the six
numbers (log fx, log fy/fx, cx, cy, k1, k2) of a group of views; which of them are free, shared or tied is one table of
parameter indices per view. Observations are kept structure-of-arrays, [rows, O], sorted by view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import nearest_rotation

INTRINSICS = ("f", "aspect", "cx", "cy", "k1", "k2")
Loss = Literal["none", "huber", "cauchy"]

_MIN_COSINE = 1e-3  # a point less than this (cosine to the optical axis) in front of a camera counts as behind it
_MAX_PAIRS = 10_000_000  # of observations that make tiles; beyond, the reduced system is not formed
CPU_VIEWS = 32  # whose observations fit in a cache together, resected at once
_MIN_DAMPING, _MAX_DAMPING = 1e-10, 1e16
_SYM = ((0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2))  # the upper triangle of a symmetric 3 x 3 matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """Cameras, points and what the cameras saw of them: the problem, and its solution."""

    cam_from_world: NDArray  # [V, 4, 4] OpenCV axes
    points: NDArray  # [P, 3] world
    intrinsics: NDArray  # [G, 6] fx, fy, cx, cy (pixels), k1, k2
    view_group: NDArray  # [V] the row of `intrinsics` that a view uses
    obs_view: NDArray  # [O]
    obs_point: NDArray  # [O]
    obs_xy: NDArray  # [O, 2] pixels
    obs_weight: NDArray | None = None  # [O] 1 / sigma in 1 / pixel; None means 1
    obs_log_depth: NDArray | None = None  # [O] log of the point's depth along the optical axis, as something else says
    obs_depth_weight: NDArray | None = None  # [O] 1 / sigma of that, in the units of the pixels' cost; 0: unknown

    def __post_init__(self) -> None:
        num_views, num_obs = len(self.cam_from_world), len(self.obs_view)
        shapes = {
            "cam_from_world": (num_views, 4, 4),
            "points": (len(self.points), 3),
            "intrinsics": (len(self.intrinsics), 6),
            "view_group": (num_views,),
            "obs_view": (num_obs,),
            "obs_point": (num_obs,),
            "obs_xy": (num_obs, 2),
        }
        for name in ("obs_weight", "obs_log_depth", "obs_depth_weight"):
            if getattr(self, name) is not None:
                shapes[name] = (num_obs,)
        if (self.obs_log_depth is None) != (self.obs_depth_weight is None):
            raise ValueError("Bundle.obs_log_depth and obs_depth_weight belong together: give both or neither")
        for name, shape in shapes.items():
            value = getattr(self, name)
            if np.shape(value) != shape:
                raise ValueError(f"Bundle.{name} has shape {np.shape(value)}, not {shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"Bundle.{name} is not finite everywhere. Leave out views and points without a value.")
        for name, end in (
            ("view_group", len(self.intrinsics)),
            ("obs_view", num_views),
            ("obs_point", len(self.points)),
        ):
            value = getattr(self, name)
            if len(value) and not (0 <= np.min(value) and np.max(value) < end):
                raise ValueError(f"Bundle.{name} holds {np.min(value)} .. {np.max(value)}, outside 0 .. {end - 1}")


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """How to iterate. `loss_px` is where the robust kernel bends, in weighted residuals (pixels at weight 1)."""

    max_iterations: int = 50
    loss: Loss = "none"
    loss_px: float = 1.0
    depth_loss: float = 0.6  # where a Cauchy kernel bends the weighted residuals of depth
    cost_tolerance: float = 1e-6  # stop where an accepted step lowers the cost by less than this share
    cheirality: bool = True  # False lets points project from behind a camera, as the BAL benchmark's cost does
    initial_damping: float = 1e-4  # of the diagonal of J^T J
    num_threads: int = (
        1  # on a CPU. More change the last digits, and want OMP_WAIT_POLICY=PASSIVE where cores are shared
    )
    direct_limit: int = 50_000_000  # entries up to which the reduced system is factored rather than iterated on
    cg_iterations: int = 200
    cg_tolerance: float = 1e-3  # of the reduced gradient's norm


@dataclass(frozen=True, kw_only=True, eq=False)
class Adjusted:
    """What `adjust` found."""

    bundle: Bundle
    residuals: NDArray  # [O, 2] pixels, predicted - observed, unweighted, in the order of the problem
    initial_cost: float  # 0.5 sum of (robust) squares, priors included
    final_cost: float
    iterations: int  # linear systems solved
    converged: bool
    focal_sigma: NDArray | None = None  # [G] standard deviation of log f (relative, of f), priors included
    condition: float | None = None  # the largest ratio of that to the deviation if nothing else were unknown


def adjust(
    problem: Bundle,
    config: BundleConfig,
    *,
    free_intrinsics: frozenset[str] = frozenset({"f"}),
    tied_intrinsics: frozenset[str] = frozenset(),
    fixed_views: NDArray | None = None,
    fixed_points: NDArray | None = None,
    fixed_translation: bool = False,
    log_focal_prior: tuple[NDArray, NDArray] | None = None,
    log_focal_smooth: NDArray | None = None,
    log_focal_step: NDArray | None = None,
    pp_prior: tuple[float, float, float] | None = None,
    distortion_prior_sigma: float | None = None,
    aspect_prior_sigma: float | None = None,
    covariance: bool = False,
    device: str | torch.device = "cpu",
) -> Adjusted:
    """Minimise 0.5 sum rho(|weight (predicted - observed)|^2) + priors over poses, points and free intrinsics.

    Where the problem has depths, rho'((depth weight (log z - log depth))^2) is added for each, rho' that of Cauchy.

    Args:
        free_intrinsics: which of "f", "aspect", "cx", "cy", "k1", "k2" may move, in every group.
        tied_intrinsics: those of them that move alike in all groups (start them equal): one k1 for a zooming camera.
        fixed_views: [V] True where a pose must stay. Without it the gauge is free, which damping bears.
        fixed_points: [P] True where a point must stay.
        fixed_translation: camera centres stay (rotation only). Where all centres are the origin, points are directions
            and come back with unit length.
        log_focal_prior: mean and standard deviation [G] of log fx; an infinite deviation means none.
        log_focal_smooth: [G - 1] standard deviation of log f of a group less that of the one before it,
        log_focal_step: [G - 1] and the mean of that difference; None means 0.
        pp_prior: cx, cy and their standard deviation, pixels.
        distortion_prior_sigma: standard deviation of k1 and k2 about 0.
        aspect_prior_sigma: standard deviation of log fy / fx about 0.
        covariance: also find `focal_sigma` and `condition`; the noise is measured from the residuals.

    An observation of a point behind its camera pulls nothing and costs as much as one that is off by sqrt(2) f; a point
    that a step would take behind a camera stays where it is for that step.

    Raises:
        ValueError: names that are no intrinsics, or priors of the wrong length.
    """
    for name in (*free_intrinsics, *tied_intrinsics):
        if name not in INTRINSICS:
            raise ValueError(f"{name!r} is none of the intrinsics {', '.join(INTRINSICS)}")
    with torch.no_grad(), torch_threads(config.num_threads):
        layout = _Layout(
            problem, config, free_intrinsics, tied_intrinsics, fixed_views, fixed_points, fixed_translation, device
        )
        priors = _Priors(
            layout,
            problem,
            log_focal_prior,
            log_focal_smooth,
            log_focal_step,
            pp_prior,
            distortion_prior_sigma,
            aspect_prior_sigma,
        )
        state = layout.start(problem)
        now = _evaluate(layout, priors, config, state)
        initial_cost, damping, growth, converged, iterations = now.cost, config.initial_damping, 2.0, False, 0
        nothing = 1e-22 * layout.num_obs
        system = None
        while iterations < config.max_iterations and now.cost > nothing:
            iterations += 1
            system = system or _linearise(layout, priors, config, state, now)
            step = _solve(layout, priors, config, system, damping)
            if step is not None:
                trial = layout.move(state, step)
                then = _evaluate(layout, priors, config, trial)
                lost = now.projection.front & ~then.projection.front
                if config.cheirality and bool(lost.any()):  # points that would go behind a camera wait a step
                    stay = torch.zeros(layout.num_points, dtype=torch.bool, device=layout.device)
                    stay[layout.point[lost]] = True
                    trial = replace(trial, points=torch.where(stay, state.points, trial.points))
                    then = _evaluate(layout, priors, config, trial)
                fall = now.cost - then.cost
                gain = fall / step.predicted if step.predicted > 0 else 0.0
                if fall > 0 and gain > 1e-4:
                    converged = fall <= config.cost_tolerance * now.cost
                    state, now, system = trial, then, None
                    damping, growth = max(_MIN_DAMPING, damping * max(1 / 3, 1 - (2 * gain - 1) ** 3)), 2.0
                    if converged:
                        break
                    continue
                if step.predicted <= 0.1 * config.cost_tolerance * now.cost:
                    converged = True
                    break
            damping, growth = damping * growth, growth * 2
            if damping > _MAX_DAMPING:
                break
        focal_sigma = condition = None
        if covariance:
            focal_sigma, condition = _focal_sigma(layout, priors, config, state, now)
        residuals = np.empty((layout.num_obs, 2))
        residuals[layout.order] = now.projection.residual.T.cpu().numpy()
        return Adjusted(
            bundle=layout.finish(problem, state),
            residuals=residuals,
            initial_cost=initial_cost,
            final_cost=now.cost,
            iterations=iterations,
            converged=converged or now.cost <= nothing,
            focal_sigma=focal_sigma,
            condition=condition,
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """While open, torch computes with so many CPU threads, in every thread that begins meanwhile too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class _State:
    rotation: Tensor  # [V, 3, 3]
    translation: Tensor  # [V, 3]
    points: Tensor  # [3, P] those that are observed, in the layout's order
    theta: Tensor  # [6, G]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Points seen by much the same views: their part of the Schur complement is one dense product."""

    obs: Tensor  # [O_chunk]
    num_points: int
    num_rows: int  # R camera parameters that these observations touch
    places: Tensor  # [O_chunk * 3 * L] where a row of Z lies in [P_chunk, 3, R], flat
    cells: Tensor  # [R * R] where the product belongs


@dataclass(frozen=True, eq=False)
class _Tiles:
    """All other pairs of observations of one point, by pairs of views, in tiles of equal size padded with nothing."""

    first: Tensor  # [T, K] observations; O is padding
    second: Tensor  # [T, K]
    cells: Tensor  # [T * L * L] where a tile's product belongs


@dataclass(frozen=True, eq=False)
class _Step:
    camera: Tensor  # [n + 1]
    points: Tensor  # [3, P]
    predicted: float  # decrease of the cost by the quadratic model


class _Blocks:
    """The reduced matrix's lower triangle in square blocks: where they are stored, and how to factor and solve.

    Stored is one flat tensor: the blocks that factoring fills, and a last cell that takes what belongs nowhere.
    """

    def __init__(self, size: int, width: int, pattern: NDArray, device: torch.device) -> None:
        """For `size` parameters and a boolean pattern [N, N] of blocks, of which the lower triangle counts."""
        self.size, self.width, self.count = size, width, len(pattern)
        filled = np.tril(pattern | pattern.T | np.eye(len(pattern), dtype=bool))
        for k in range(self.count):
            below = np.flatnonzero(filled[k + 1 :, k]) + k + 1
            filled[below[:, None], below] |= np.tril(np.ones((len(below), len(below)), bool))
        rows, cols = np.nonzero(filled)
        self.num_blocks = len(rows)
        self.slot = np.full(pattern.shape, -1)
        self.slot[rows, cols] = np.arange(len(rows))
        self.rows, self.cols = torch.tensor(rows, device=device), torch.tensor(cols, device=device)
        self.diagonal = torch.tensor(self.cells(np.arange(size), np.arange(size)), device=device)
        padding = np.arange(size, self.count * width)
        block, within = np.divmod(padding, width)
        self.padding = torch.tensor(self.slot[block, block] * width**2 + within * (width + 1), device=device)
        below = [np.flatnonzero(filled[k + 1 :, k]) + k + 1 for k in range(self.count)]
        self.below = [torch.tensor(b, device=device) for b in below]
        self.below_slots = [torch.tensor(self.slot[b, k], device=device) for k, b in enumerate(below)]
        self.targets = [[torch.tensor(self.slot[b[i:], b[i]], device=device) for i in range(len(b))] for b in below]

    @property
    def num_cells(self) -> int:
        return self.num_blocks * self.width**2 + 1

    def cells(self, row: NDArray, col: NDArray) -> NDArray:
        """Flat positions of matrix entries; those above the diagonal, outside or not stored get the last cell."""
        inside = (row >= col) & (row < self.size)
        row, col = np.where(inside, row, 0), np.where(inside, col, 0)
        slot = self.slot[row // self.width, col // self.width]
        place = slot * self.width**2 + row % self.width * self.width + col % self.width
        return np.where(inside & (slot >= 0), place, self.num_cells - 1)

    def factor(self, flat: Tensor) -> bool:
        """Cholesky factor in place; False where the matrix is not positive definite."""
        flat[self.padding] = 1.0
        blocks = flat[:-1].view(-1, self.width, self.width)
        for k in range(self.count):
            pivot = blocks[int(self.slot[k, k])]
            lower, failed = torch.linalg.cholesky_ex(pivot)
            if int(failed):
                return False
            pivot.copy_(lower)
            if len(self.below[k]):
                column = blocks.index_select(0, self.below_slots[k])
                column = torch.linalg.solve_triangular(lower.mT, column.flatten(0, 1), upper=True, left=False)
                column = column.view(-1, self.width, self.width)
                blocks.index_copy_(0, self.below_slots[k], column)
                for i, target in enumerate(self.targets[k]):
                    product = column[i:].flatten(0, 1) @ column[i].T
                    blocks.view(self.num_blocks, -1).index_add_(0, target, product.view(len(target), -1), alpha=-1)
        return True

    def forward(self, flat: Tensor, rhs: Tensor) -> Tensor:
        """L^-1 rhs, for rhs [size, C]; the result is padded, [N, width, C]."""
        blocks = flat[:-1].view(-1, self.width, self.width)
        x = rhs.new_zeros(self.count * self.width, rhs.shape[1])
        x[: self.size] = rhs
        x = x.view(self.count, self.width, -1)
        for k in range(self.count):
            x[k] = torch.linalg.solve_triangular(blocks[int(self.slot[k, k])], x[k], upper=False)
            if len(self.below[k]):
                x.index_add_(0, self.below[k], blocks.index_select(0, self.below_slots[k]) @ x[k], alpha=-1)
        return x

    def solve(self, flat: Tensor, rhs: Tensor) -> Tensor:
        """A^-1 rhs of the factored matrix, for rhs [size]."""
        blocks = flat[:-1].view(-1, self.width, self.width)
        x = self.forward(flat, rhs[:, None])
        for k in range(self.count - 1, -1, -1):
            if len(self.below[k]):
                column = blocks.index_select(0, self.below_slots[k])
                x[k] -= (column.mT @ x.index_select(0, self.below[k])).sum(0)
            x[k] = torch.linalg.solve_triangular(blocks[int(self.slot[k, k])].mT, x[k], upper=True)
        return x.view(-1)[: self.size]


class _Layout:
    """All index structure of one problem, computed once: orders, parameter numbers and chunks of points."""

    def __init__(
        self,
        problem: Bundle,
        config: BundleConfig,
        free: frozenset[str],
        tied: frozenset[str],
        fixed_views: NDArray | None,
        fixed_points: NDArray | None,
        fixed_translation: bool,
        device: str | torch.device,
    ) -> None:
        self.device = torch.device(device)
        num_views, self.num_groups = len(problem.cam_from_world), len(problem.intrinsics)
        self.num_views, self.num_obs = num_views, len(problem.obs_view)
        self.pose_dof = 3 if fixed_translation else 6
        self.free = [i for i, name in enumerate(INTRINSICS) if name in free]
        self.num_local = self.pose_dof + len(self.free)
        self.directions = fixed_translation and not np.any(problem.cam_from_world[:, :3, 3])

        # Camera parameters are numbered view by view, a group's after its last view and tied ones at the end, so that
        # the reduced matrix fills little. What is fixed gets the last number, which is thrown away.
        group = np.asarray(problem.view_group, np.int64)
        moving = np.ones(num_views, bool) if fixed_views is None else ~np.asarray(fixed_views, bool)
        after = np.zeros(self.num_groups)
        np.maximum.at(after, group, np.arange(num_views) + 0.5)
        pose_key = np.where(moving, np.arange(num_views), np.nan)[:, None].repeat(self.pose_dof, 1)
        theta_key = np.full((6, self.num_groups), np.nan)
        for i in self.free:
            theta_key[i] = after
            if INTRINSICS[i] in tied:
                theta_key[i] = np.nan
                theta_key[i, 0] = num_views
        key = np.concatenate([pose_key.ravel(), theta_key.ravel()])
        self.num_parameters = n = int(np.isfinite(key).sum())
        number = np.full(len(key), n)
        number[np.argsort(key, kind="stable")[:n]] = np.arange(n)
        self.theta_index = number[pose_key.size :].reshape(6, self.num_groups)
        for i in self.free:
            if INTRINSICS[i] in tied:
                self.theta_index[i] = self.theta_index[i, 0]
        pose_index = number[: pose_key.size].reshape(num_views, self.pose_dof)
        local = np.concatenate([pose_index, self.theta_index[self.free][:, group].T], 1)  # [V, L]

        obs_view = np.asarray(problem.obs_view, np.int64)
        self.used, obs_point = np.unique(np.asarray(problem.obs_point, np.int64), return_inverse=True)
        self.num_points = len(self.used)
        self.order = order = np.lexsort((obs_point, obs_view))
        obs_view, obs_point = obs_view[order], obs_point[order]
        self.view = self.to_device(obs_view)
        self.point = self.to_device(obs_point)
        self.xy = self.to_device(np.asarray(problem.obs_xy, np.float64)[order].T)
        weight = problem.obs_weight
        self.weight = None if weight is None else self.to_device(np.asarray(weight, np.float64)[order])
        self.depth = None  # log depth and its weight
        if problem.obs_log_depth is not None and problem.obs_depth_weight is not None:
            both = np.stack([problem.obs_log_depth, problem.obs_depth_weight]).astype(np.float64)
            self.depth = self.to_device(both[:, order])
        self.group = self.to_device(group)
        self.local = self.to_device(local)
        self.theta_parameter = self.to_device(self.theta_index)
        self.view_bounds = np.searchsorted(obs_view, np.arange(num_views + 1)).tolist()
        self.point_free = None
        if fixed_points is not None:
            self.point_free = self.to_device(~np.asarray(fixed_points, bool)[self.used]).double()
        self.chunks: list[_Chunk] = []
        self.tiles: _Tiles | None = None
        self.blocks: _Blocks | None = None
        if config.direct_limit and self.num_obs and n:
            matters = np.asarray((local < n).any(1))[obs_view]
            if fixed_points is not None:
                matters &= ~np.asarray(fixed_points, bool)[self.used[obs_point]]
            self._plan(np.flatnonzero(matters), obs_view, obs_point, local, config.direct_limit)

    def _plan(self, obs_ids: NDArray, obs_view: NDArray, obs_point: NDArray, local: NDArray, direct_limit: int) -> None:
        """Choose, for points taken together by the span and start of their tracks, dense products or tiles.

        Only the observations `obs_ids` tie free points to free camera parameters.

        Dense products waste work on parameters that a point does not touch, but run at the speed of large matrix
        products; the constants are seconds on one core with AVX-512 and only steer the choice.
        """
        num_local, n, num_obs = self.num_local, self.num_parameters, len(obs_ids)
        points, obs_point = np.unique(obs_point[obs_ids], return_inverse=True)
        obs_view, num_points = obs_view[obs_ids], len(points)
        by_point = np.argsort(obs_point, kind="stable")  # and by view within a point
        starts = np.searchsorted(obs_point[by_point], np.arange(num_points + 1))
        length = np.diff(starts)
        first, last = obs_view[by_point[starts[:-1]]], obs_view[by_point[starts[1:] - 1]]
        span_class = np.ceil(np.log2(last - first + 1.0))
        rank = np.empty(num_points, np.int64)
        rank[np.lexsort((last, first, span_class))] = np.arange(num_points)
        obs_rank = rank[obs_point]
        size = 32
        pairs = np.bincount(rank // size, length * (length - 1) / 2)
        seen = np.zeros((len(pairs), len(local)), bool)
        seen[obs_rank // size, obs_view] = True

        def dense_seconds(num_views: int, num_points: int) -> float:
            touched = num_views * num_local
            return touched**2 * (6 * num_points / 4e10 + 5e-9) + 5e-5

        # neighbouring chunks become one where that is cheaper
        chunks: list[tuple[int, int, NDArray, float]] = []  # first and last chunk but one, views, seconds
        for i in range(len(pairs)):
            begin, views, seconds = i, seen[i], dense_seconds(int(seen[i].sum()), size)
            if chunks and (i + 1 - chunks[-1][0]) * size <= 1024:
                both = chunks[-1][2] | views
                merged = dense_seconds(int(both.sum()), (i + 1 - chunks[-1][0]) * size)
                if merged <= chunks[-1][3] + seconds:
                    begin, views, seconds = chunks.pop()[0], both, merged
            chunks.append((begin, i + 1, views, seconds))

        pair_seconds = (4 * num_local + 0.5 * num_local**2) * 1e-9
        tiled = np.ones(len(pairs), bool)
        by_rank = np.argsort(obs_rank, kind="stable")
        width = n + 1 if n < 512 else 128
        pattern = np.zeros((n // width + 1, n // width + 1), bool)
        dense = []
        for begin, end, views, seconds in chunks:
            if pairs[begin:end].sum() * pair_seconds < seconds:
                continue
            tiled[begin:end] = False
            first_point, end_point = begin * size, min(end * size, num_points)
            obs = by_rank[slice(*np.searchsorted(obs_rank[by_rank], [first_point, end_point]))]
            rows, place = np.unique(local[views], return_inverse=True)
            place_of_view = np.empty(local.shape, np.int64)
            place_of_view[views] = place.reshape(-1, num_local)
            point_row = (obs_rank[obs] - first_point)[:, None] * 3 + np.arange(3)
            places = point_row[:, :, None] * len(rows) + place_of_view[obs_view[obs]][:, None]
            dense.append((obs_ids[obs], end_point - first_point, rows, places.astype(np.int32)))
            touched_blocks = np.unique(rows // width)
            pattern[touched_blocks[:, None], touched_blocks] = True

        if pairs[tiled].sum() > _MAX_PAIRS:
            return
        later = np.where(tiled[obs_rank[by_point] // size], np.repeat(starts[1:], length) - np.arange(num_obs) - 1, 0)
        left = np.repeat(np.arange(num_obs), later)
        right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(later) - later, later)
        left, right = by_point[left], by_point[right]
        key = obs_view[left] * len(local) + obs_view[right]
        order = np.argsort(key, kind="stable")
        view_pairs, counts = np.unique(key[order], return_counts=True)
        i, j = local[view_pairs // len(local)], local[view_pairs % len(local)]  # [pairs of views, L]
        for a, b in ((i, j), (local, local), (self.theta_index[:1, 1:].T, self.theta_index[:1, :-1].T)):
            pattern[a[:, :, None] // width, b[:, None] // width] = True
        blocks = _Blocks(n, width, pattern, self.device)
        if blocks.num_cells > direct_limit:
            return
        self.blocks = blocks

        def cells(row: NDArray, col: NDArray) -> NDArray:
            return blocks.cells(row, col).astype(np.int32)

        self.view_cells = self.to_device(cells(local[:, :, None], local[:, None, :]).ravel())
        known: dict[bytes, Tensor] = {}  # chunks of long tracks tend to touch the same rows
        for obs, chunk_points, rows, places in dense:
            name = rows.tobytes()
            if name not in known:
                known[name] = self.to_device(cells(rows[:, None], rows).ravel())
            self.chunks.append(
                _Chunk(self.to_device(obs), chunk_points, len(rows), self.to_device(places.ravel()), known[name])
            )
        if len(view_pairs):
            tile = 16
            tiles = -(-counts // tile)
            tile_start = np.cumsum(tiles) - tiles
            place = np.arange(len(order)) + np.repeat(tile_start * tile - (np.cumsum(counts) - counts), counts)
            sides = np.full((2, int(tiles.sum()) * tile), self.num_obs, np.int32)
            sides[0, place], sides[1, place] = obs_ids[left[order]], obs_ids[right[order]]
            low, high = np.minimum(i[:, :, None], j[:, None]), np.maximum(i[:, :, None], j[:, None])
            tile_cells = np.repeat(cells(high, low), tiles, 0)
            first, second = self.to_device(sides)
            self.tiles = _Tiles(first.view(-1, tile), second.view(-1, tile), self.to_device(tile_cells.ravel()))

    def to_device(self, array: NDArray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), device=self.device)

    def start(self, problem: Bundle) -> _State:
        k = np.asarray(problem.intrinsics, np.float64)
        theta = np.stack([np.log(k[:, 0]), np.log(k[:, 1] / k[:, 0]), k[:, 2], k[:, 3], k[:, 4], k[:, 5]])
        poses = np.asarray(problem.cam_from_world, np.float64)
        points = np.asarray(problem.points, np.float64)[self.used]
        if self.directions:
            points = points / np.linalg.norm(points, axis=1, keepdims=True)
        return _State(
            self.to_device(poses[:, :3, :3]),
            self.to_device(poses[:, :3, 3]),
            self.to_device(points.T),
            self.to_device(theta),
        )

    def move(self, state: _State, step: _Step) -> _State:
        """The state after a step."""
        delta = step.camera[self.local]  # [V, L]
        turn = _rotation(delta[:, :3])
        translation = (turn @ state.translation[:, :, None])[:, :, 0]
        if self.pose_dof == 6:
            translation = translation + delta[:, 3:6]
        points = state.points + step.points
        if self.directions:
            points = points / (points * points).sum(0).sqrt()
        theta = state.theta + step.camera[self.theta_parameter]
        return _State(turn @ state.rotation, translation, points, theta)

    def finish(self, problem: Bundle, state: _State) -> Bundle:
        poses = np.tile(np.eye(4), (self.num_views, 1, 1))
        poses[:, :3, :3] = nearest_rotation(state.rotation.cpu().numpy())
        poses[:, :3, 3] = state.translation.cpu().numpy()
        points = np.array(problem.points, np.float64)
        points[self.used] = state.points.T.cpu().numpy()
        theta = state.theta.cpu().numpy()
        fx = np.exp(theta[0])
        intrinsics = np.stack([fx, fx * np.exp(theta[1]), *theta[2:]], 1)
        return replace(problem, cam_from_world=poses, points=points, intrinsics=intrinsics)

    def per_point(self, rows: Tensor) -> Tensor:
        """Sums over the observations of each point: [k, O] -> [k, P]."""
        out = rows.new_zeros(len(rows), self.num_points)
        return out.scatter_add_(1, self.point.expand(len(rows), -1), rows)


class _Priors:
    """Gaussian priors on intrinsics, as (theta - mean) * weight, and on the steps of log f between groups."""

    def __init__(
        self,
        layout: _Layout,
        problem: Bundle,
        log_focal: tuple[NDArray, NDArray] | None,
        smooth: NDArray | None,
        step: NDArray | None,
        pp: tuple[float, float, float] | None,
        distortion_sigma: float | None,
        aspect_sigma: float | None,
    ) -> None:
        groups, n = layout.num_groups, layout.num_parameters
        mean, weight = np.zeros((6, groups)), np.zeros((6, groups))
        if log_focal is not None:
            mean[0] = np.broadcast_to(np.asarray(log_focal[0], np.float64), groups)
            weight[0] = 1 / np.broadcast_to(np.asarray(log_focal[1], np.float64), groups)
        if aspect_sigma is not None:
            weight[1] = 1 / aspect_sigma
        if pp is not None:
            mean[2], mean[3], weight[2:4] = pp[0], pp[1], 1 / pp[2]
        if distortion_sigma is not None:
            weight[4:6] = 1 / distortion_sigma
        weight[layout.theta_index == n] = 0  # a constant would not change the solution, only the cost
        for i in range(6):  # a parameter that groups share has one prior
            if groups > 1 and layout.theta_index[i, 0] == layout.theta_index[i, 1]:
                weight[i, 1:] = 0
        if smooth is None or layout.theta_index[0, 0] == n or groups == 1:
            step_weight = np.zeros(max(groups - 1, 0))
        else:
            step_weight = 1 / np.broadcast_to(np.asarray(smooth, np.float64), groups - 1)
        self.mean, self.weight = layout.to_device(mean), layout.to_device(weight)
        self.step_weight = layout.to_device(step_weight)
        self.step_mean = layout.to_device(np.broadcast_to(0.0 if step is None else step, step_weight.shape) + 0.0)
        # the priors' constant Hessian: a diagonal, and pairs of neighbours
        information = layout.to_device(weight**2)
        information[0, 1:] += self.step_weight**2
        information[0, :-1] += self.step_weight**2
        self.index = layout.to_device(layout.theta_index)
        self.diagonal = information.new_zeros(n + 1).index_add_(0, self.index.ravel(), information.ravel())
        self.pairs = self.index[0, :-1], self.index[0, 1:]
        self.any = bool(weight.any() or step_weight.any())

    def residuals(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta - self.mean) * self.weight, (theta[0].diff() - self.step_mean) * self.step_weight

    def gradient(self, theta: Tensor) -> Tensor:
        """[n + 1]"""
        own, steps = self.residuals(theta)
        out = own * self.weight
        out[0, 1:] += steps * self.step_weight
        out[0, :-1] -= steps * self.step_weight
        return out.new_zeros(len(self.diagonal)).index_add_(0, self.index.ravel(), out.ravel())

    def add_to(self, flat: Tensor, blocks: _Blocks) -> None:
        """Add the Hessian to a reduced matrix."""
        flat.index_add_(0, blocks.diagonal, self.diagonal[:-1])
        i, j = (index.cpu().numpy() for index in self.pairs)
        cells = torch.tensor(blocks.cells(np.maximum(i, j), np.minimum(i, j)), device=flat.device)
        flat.index_add_(0, cells, -(self.step_weight**2))

    def times(self, x: Tensor) -> Tensor:
        """The Hessian times x [n + 1]."""
        i, j = self.pairs
        square = self.step_weight**2
        out = self.diagonal * x
        return out.index_add_(0, i, -square * x[j]).index_add_(0, j, -square * x[i])


def _rotation(w: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3], by Rodrigues' formula."""
    angle2 = (w * w).sum(-1)[..., None, None]
    angle = angle2.sqrt()
    small = angle < 1e-4
    a = torch.where(small, 1 - angle2 / 6, torch.sinc(angle / torch.pi))
    b = torch.where(small, 0.5 - angle2 / 24, (1 - angle.cos()) / torch.where(small, 1.0, angle2))
    zero = torch.zeros_like(w[..., 0])
    x, y, z = w.unbind(-1)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=w.dtype, device=w.device) + a * k + b * (k @ k)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[:, index], several times faster on a CPU."""
    return rows.gather(1, index.expand(len(rows), -1))


def _camera_table(state: _State, group: Tensor) -> Tensor:
    """[18, V]: rotation (9), translation (3), fx, fy, cx, cy, k1, k2 of every view."""
    theta = state.theta
    intrinsics = torch.cat([theta[:1].exp(), (theta[:1] + theta[1:2]).exp(), theta[2:]])
    return torch.cat([state.rotation.flatten(1).T, state.translation.T, intrinsics[:, group]])


@dataclass(frozen=True, eq=False)
class _Projection:
    x_cam: Tensor  # [3, O]
    front: Tensor  # [O] bool
    depth: Tensor  # [O] 1 where not in front
    n: Tensor  # [2, O] normalised, undistorted
    r2: Tensor  # [O]
    factor: Tensor  # [O] of the distortion
    residual: Tensor  # [2, O] pixels


def _project(camera: Tensor, points: Tensor, xy: Tensor, cheirality: bool = True) -> _Projection:
    """Project points [3, O] by cameras [18, O]; residuals are predicted - xy."""
    x_cam = (camera[:9].view(3, 3, -1) * points).sum(1).add_(camera[9:12])
    front = (x_cam[2] if cheirality else x_cam[2].abs()) > _MIN_COSINE * (x_cam * x_cam).sum(0).sqrt()
    depth = torch.where(front, x_cam[2], 1.0)
    n = x_cam[:2] / depth
    r2 = (n * n).sum(0)
    factor = (camera[17] * r2 + camera[16]) * r2 + 1
    residual = torch.addcmul(camera[14:16] - xy, camera[12:14], n * factor)
    residual = torch.where(front, residual, camera[12:14])
    return _Projection(x_cam, front, depth, n, r2, factor, residual)


def _robust(loss: Loss, width: float, square: Tensor) -> tuple[Tensor, Tensor]:
    """rho(square) and its derivative, the weight of iteratively reweighted least squares."""
    c2 = width * width
    if loss == "huber":
        ratio = (c2 / square.clamp(min=c2)).sqrt()
        return torch.where(square <= c2, square, 2 * c2 / ratio - c2), ratio
    if loss == "cauchy":
        return c2 * torch.log1p(square / c2), c2 / (c2 + square)
    return square, torch.ones_like(square)


def _robust_slopes(config: BundleConfig, square: Tensor) -> tuple[Tensor, Tensor]:
    """The weight w of a residual r in psi = w r, and half the divergence of psi over the image plane."""
    weight = _robust(config.loss, config.loss_px, square)[1]
    if config.loss == "cauchy":
        return weight, weight * weight
    if config.loss == "huber":
        return weight, torch.where(weight < 1, 0.5 * weight, weight)
    return weight, weight


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """A state projected into all its views."""

    cost: float
    camera: Tensor  # [18, O]
    projection: _Projection
    square: Tensor  # [O] weighted squared residual
    off_depth: Tensor | None  # [O] weighted residual of log depth


def _evaluate(layout: _Layout, priors: _Priors, config: BundleConfig, state: _State) -> _Evaluation:
    camera = _take(_camera_table(state, layout.group), layout.view)
    projection = _project(camera, _take(state.points, layout.point), layout.xy, config.cheirality)
    square = (projection.residual * projection.residual).sum(0)
    if layout.weight is not None:
        square = square * layout.weight**2
    cost = _robust(config.loss, config.loss_px, square)[0].sum()
    off_depth = None
    if layout.depth is not None:
        off_depth = (projection.depth.log() - layout.depth[0]) * (layout.depth[1] * projection.front)
        cost = cost + _robust("cauchy", config.depth_loss, off_depth * off_depth)[0].sum()
    if priors.any:
        own, steps = priors.residuals(state.theta)
        cost = cost + (own * own).sum() + (steps * steps).sum()
    return _Evaluation(0.5 * float(cost), camera, projection, square, off_depth)


@dataclass(frozen=True, eq=False)
class _System:
    """The normal equations of one linearisation, before damping."""

    camera_jacobian: Tensor  # [2, L, O], or 3 with the row of log depth
    point_jacobian: Tensor  # [2, 3, O], likewise
    blocks: Tensor  # [V, L, L] J^T J of each view's local parameters
    camera_diagonal: Tensor  # [n + 1] priors included
    camera_gradient: Tensor  # [n + 1]
    point_hessian: Tensor  # [6, P] upper triangles
    point_gradient: Tensor  # [3, P]


def _jacobians(camera: Tensor, p: _Projection, scale: Tensor, pose_dof: int, free: list[int]) -> tuple[Tensor, Tensor]:
    """Derivatives of scale * residual by pose and free intrinsics [2, L, O] and by the point [2, 3, O]."""
    num_obs = p.n.shape[1]
    slope = 2 * (camera[16] + 2 * camera[17] * p.r2)  # 2 d factor / d r^2
    focal = camera[12:14] * (scale * p.front)  # [2, O]; zero behind a camera
    by_cam = p.n.new_empty(2, 3, num_obs)  # by the point in camera axes
    over_depth = focal / p.depth
    torch.mul((p.n * (slope * over_depth))[:, None], p.n[None], out=by_cam[:, :2])
    by_cam[0, 0] += over_depth[0] * p.factor
    by_cam[1, 1] += over_depth[1] * p.factor
    torch.sum(by_cam[:, :2] * p.n, 1, out=by_cam[:, 2]).neg_()

    jacobian = p.n.new_empty(2, pose_dof + len(free), num_obs)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):  # x_cam x by_cam
        torch.mul(by_cam[:, j], p.x_cam[i], out=jacobian[:, axis]).addcmul_(by_cam[:, i], p.x_cam[j], value=-1)
    if pose_dof == 6:
        jacobian[:, 3:6] = by_cam
    for row, i in enumerate(free, pose_dof):
        if INTRINSICS[i] == "f":
            torch.mul(focal, p.n * p.factor, out=jacobian[:, row])
        elif INTRINSICS[i] == "aspect":
            jacobian[0, row] = 0
            torch.mul(focal[1], p.n[1] * p.factor, out=jacobian[1, row])
        elif INTRINSICS[i] in ("cx", "cy"):
            axis = 0 if INTRINSICS[i] == "cx" else 1
            jacobian[axis, row] = scale * p.front
            jacobian[1 - axis, row] = 0
        else:
            power = p.r2 if INTRINSICS[i] == "k1" else p.r2 * p.r2
            torch.mul(focal, p.n * power, out=jacobian[:, row])
    by_world = (by_cam[:, :, None] * camera[:9].view(3, 3, -1)).sum(1)
    return jacobian, by_world


def _depth_jacobians(
    camera: Tensor, p: _Projection, scale: Tensor, num_local: int, pose_dof: int
) -> tuple[Tensor, Tensor]:
    """Derivatives of scale * log depth by pose and free intrinsics [L, O] and by the point [3, O]."""
    over_depth = scale * p.front / p.depth
    jacobian = p.n.new_zeros(num_local, p.n.shape[1])
    jacobian[0], jacobian[1] = p.x_cam[1] * over_depth, -p.x_cam[0] * over_depth
    if pose_dof == 6:
        jacobian[5] = over_depth
    return jacobian, camera[6:9] * over_depth


def _linearise(
    layout: _Layout, priors: _Priors, config: BundleConfig, state: _State, evaluation: _Evaluation
) -> _System:
    camera, p = evaluation.camera, evaluation.projection
    scale = _robust(config.loss, config.loss_px, evaluation.square)[1].sqrt()
    if layout.weight is not None:
        scale = scale * layout.weight
    jacobian, by_point = _jacobians(camera, p, scale, layout.pose_dof, layout.free)
    residual = p.residual * scale
    if layout.depth is not None and evaluation.off_depth is not None:
        pull = _robust("cauchy", config.depth_loss, evaluation.off_depth**2)[1].sqrt()
        by_pose, by_xyz = _depth_jacobians(camera, p, layout.depth[1] * pull, layout.num_local, layout.pose_dof)
        jacobian, by_point = torch.cat([jacobian, by_pose[None]]), torch.cat([by_point, by_xyz[None]])
        residual = torch.cat([residual, (evaluation.off_depth * pull)[None]])
    if layout.point_free is not None:
        by_point *= layout.point_free.index_select(0, layout.point)

    products = (by_point[:, _SYM[0]] * by_point[:, _SYM[1]]).sum(0)
    sums = layout.per_point(torch.cat([products, (by_point * residual[:, None]).sum(0)]))
    point_hessian, point_gradient = sums[:6], sums[6:]
    if layout.directions:  # the length of a direction is no unknown: hold it
        i, j = state.points[_SYM[0], :], state.points[_SYM[1], :]
        point_hessian = point_hessian + i * j * point_hessian[[0, 3, 5]].sum(0)

    blocks = _view_blocks(jacobian, residual, layout.view_bounds)
    num_local, size = layout.num_local, layout.num_parameters + 1
    gradient = jacobian.new_zeros(size).index_add_(
        0, layout.local.ravel(), blocks[:, :num_local, num_local].reshape(-1)
    )
    blocks = blocks[:, :num_local, :num_local]
    diagonal = jacobian.new_zeros(size).index_add_(0, layout.local.ravel(), blocks.diagonal(dim1=1, dim2=2).reshape(-1))
    if priors.any:
        gradient += priors.gradient(state.theta)
        diagonal += priors.diagonal
    return _System(jacobian, by_point, blocks, diagonal, gradient, point_hessian, point_gradient)


def _view_blocks(jacobian: Tensor, residual: Tensor, bounds: list[int]) -> Tensor:
    """[V, L + 1, L + 1]: J^T J of each view, bordered by J^T r."""
    both = torch.cat([jacobian, residual[:, None]], 1)
    out = both.new_zeros(len(bounds) - 1, both.shape[1], both.shape[1])
    for block, begin, end in zip(out, bounds[:-1], bounds[1:], strict=True):
        for row in both[:, :, begin:end]:
            block.addmm_(row, row.T)
    return out


def _inverse_factors(hessian: Tensor, damping: float) -> Tensor:
    """Rows (m11, m21, m22, m31, m32, m33) of M [6, P], lower triangular, with M^T M = (H + damping diag H)^-1.

    Zero where H is zero (a fixed point), and bounded where it has a null direction.
    """
    trace = hessian[[0, 3, 5]].sum(0)
    floor = (1e-13 * trace).clamp(min=1e-300)
    a11, a12, a13, a22, a23, a33 = hessian.unbind(0)
    grow = 1 + damping
    l11 = (a11 * grow).maximum(floor).sqrt()
    l21, l31 = a12 / l11, a13 / l11
    l22 = (a22 * grow - l21 * l21).maximum(floor).sqrt()
    l32 = (a23 - l31 * l21) / l22
    l33 = (a33 * grow - l31 * l31 - l32 * l32).maximum(floor).sqrt()
    m11, m22, m33 = 1 / l11, 1 / l22, 1 / l33
    m21 = -l21 * m11 * m22
    m32 = -l32 * m22 * m33
    m31 = -(l31 * m11 + l32 * m21) * m33
    return torch.where(trace > 0, torch.stack([m11, m21, m22, m31, m32, m33]), 0.0)


def _lower(m: Tensor, v: Tensor) -> Tensor:
    """M v over the second last dimension: m [6, N], v [..., 3, N]."""
    x, y, z = v.unbind(-2)
    out = torch.empty_like(v)
    torch.mul(m[0], x, out=out[..., 0, :])
    torch.mul(m[1], x, out=out[..., 1, :]).addcmul_(m[2], y)
    torch.mul(m[3], x, out=out[..., 2, :]).addcmul_(m[4], y).addcmul_(m[5], z)
    return out


def _lower_transposed(m: Tensor, v: Tensor) -> Tensor:
    """M^T v: m [6, N], v [3, N]."""
    x, y, z = v
    return torch.stack([m[0] * x + m[1] * y + m[3] * z, m[2] * y + m[4] * z, m[5] * z])


def _reduced(layout: _Layout, system: _System, white: Tensor) -> Tensor:
    """The Schur complement without damping or priors, as `_Blocks` stores it."""
    num_local, num_obs = layout.num_local, layout.num_obs
    j = system.camera_jacobian
    z = j.new_empty(num_obs + 1, 3, num_local)  # J_camera^T white, per observation; the last is the tiles' padding
    z[num_obs] = 0
    by_row = z[:num_obs].permute(1, 2, 0)
    torch.mul(j[0][None], white[0][:, None], out=by_row)
    for row, white_row in zip(j[1:], white[1:], strict=True):
        by_row.addcmul_(row[None], white_row[:, None])
    z = z.view(num_obs + 1, -1)
    blocks = layout.blocks
    assert blocks is not None
    flat = j.new_zeros(blocks.num_cells)
    if layout.tiles is not None:
        tiles, step, square = layout.tiles, 256, num_local * num_local  # 256 tiles stay in cache
        for i in range(0, len(tiles.first), step):
            sides = [
                z.index_select(0, side[i : i + step].reshape(-1)).view(-1, 3 * side.shape[1], num_local)
                for side in (tiles.first, tiles.second)
            ]
            product = sides[0].mT @ sides[1]
            flat.index_add_(0, tiles.cells[i * square : (i + step) * square], product.view(-1), alpha=-1)
        flat[blocks.diagonal] *= 2  # a pair stands for both its orders, which fall in two triangles or on the diagonal
    for chunk in layout.chunks:
        e = z.new_zeros(chunk.num_points * 3, chunk.num_rows)
        e.view(-1).index_add_(0, chunk.places, z.index_select(0, chunk.obs).view(-1))
        flat.index_add_(0, chunk.cells, (e.T @ e).view(-1), alpha=-1)
        z.index_fill_(0, chunk.obs, 0.0)
    own = system.blocks
    if layout.tiles is not None:  # an observation with itself
        own = own.clone()
        for block, begin, end in zip(own, layout.view_bounds[:-1], layout.view_bounds[1:], strict=True):
            rows = z[begin:end].view(-1, num_local)
            block.addmm_(rows.T, rows, alpha=-1)
    return flat.index_add_(0, layout.view_cells, own.reshape(-1))


def _solve(layout: _Layout, priors: _Priors, config: BundleConfig, system: _System, damping: float) -> _Step | None:
    """The damped step, or None where the system is numerically indefinite."""
    n = layout.num_parameters
    m = _inverse_factors(system.point_hessian, damping)
    d = system.camera_diagonal
    d = damping * torch.where(d > 0, d, 1.0 / damping)  # parameters that nothing sees stay where they are
    white = _lower(_take(m, layout.point), system.point_jacobian)  # [2, 3, O]
    q = _lower(m, system.point_gradient)
    back = (white * _take(q, layout.point)).sum(1)
    rhs = _to_cameras(layout, (system.camera_jacobian * back[:, None]).sum(0)) - system.camera_gradient
    leftover = 0.0
    if layout.blocks is not None:
        matrix = _reduced(layout, system, white)
        if priors.any:
            priors.add_to(matrix, layout.blocks)
        matrix.index_add_(0, layout.blocks.diagonal, d[:n])
        if not layout.blocks.factor(matrix):
            return None
        delta = torch.zeros_like(rhs)
        delta[:n] = layout.blocks.solve(matrix, rhs[:n])
    else:
        delta, leftover = _conjugate_gradients(layout, priors, config, system, white, d, rhs)
    moved = (system.camera_jacobian * _take(delta[layout.local].T, layout.view)).sum(1)  # [2, O]
    along = layout.per_point((white * moved[:, None]).sum(0)) + q
    points = -_lower_transposed(m, along)

    slope = torch.dot(system.camera_gradient, delta) + (system.point_gradient * points).sum()
    damp = (d * delta * delta).sum() + damping * (system.point_hessian[[0, 3, 5]] * points * points).sum()
    predicted = float(0.5 * (damp - slope)) - 0.5 * leftover
    return _Step(delta, points, predicted) if np.isfinite(predicted) else None


def _to_cameras(layout: _Layout, rows: Tensor) -> Tensor:
    """Sums over the observations of each camera parameter: [L, O] -> [n + 1], the last zero."""
    n, num_local = layout.num_parameters, layout.num_local
    per_view = rows.new_zeros(num_local, layout.num_views)
    per_view.scatter_add_(1, layout.view.expand(num_local, -1), rows)
    out = rows.new_zeros(n + 1).index_add_(0, layout.local.ravel(), per_view.T.reshape(-1))
    out[n] = 0
    return out


def _conjugate_gradients(
    layout: _Layout, priors: _Priors, config: BundleConfig, system: _System, white: Tensor, d: Tensor, rhs: Tensor
) -> tuple[Tensor, float]:
    """Solve the reduced system without forming it; returns the step [n + 1] and step . (S step - rhs)."""
    jacobian = system.camera_jacobian

    def times(x: Tensor) -> Tensor:  # J_camera^T (I - white white^T) J_camera x, and the diagonal and priors
        obs = (jacobian * _take(x[layout.local].T, layout.view)).sum(1)
        back = _take(layout.per_point((white * obs[:, None]).sum(0)), layout.point)
        left = obs - (white * back).sum(1)
        out = _to_cameras(layout, (jacobian * left[:, None]).sum(0)) + d * x
        return out + priors.times(x) if priors.any else out

    precondition = _block_jacobi(layout, priors, system, white, d)
    x = torch.zeros_like(rhs)
    r = rhs
    z = precondition(r)
    p, rz = z, float(torch.dot(r, z))
    limit = config.cg_tolerance**2 * rz
    for _ in range(config.cg_iterations):
        if rz <= limit:
            break
        sp = times(p)
        alpha = rz / float(torch.dot(p, sp))
        x, r = x + alpha * p, r - alpha * sp
        z = precondition(r)
        before, rz = rz, float(torch.dot(r, z))
        p = z + (rz / before) * p
    return x, -float(torch.dot(x, r))


def _block_jacobi(
    layout: _Layout, priors: _Priors, system: _System, white: Tensor, d: Tensor
) -> Callable[[Tensor], Tensor]:
    """The inverse of the reduced system's diagonal: blocks of one view's own parameters, scalars for shared ones."""
    n, local = layout.num_parameters, layout.local
    blocks = system.blocks.clone()
    for k in range(3):
        z = (system.camera_jacobian * white[:, k][:, None]).sum(0)  # [L, O]
        for block, begin, end in zip(blocks, layout.view_bounds[:-1], layout.view_bounds[1:], strict=True):
            own = z[:, begin:end]
            block.addmm_(own, own.T, alpha=-1)
    uses = torch.bincount(local.ravel(), minlength=n + 1)
    own = (uses == 1)[local] & (local < n)  # [V, L]
    diagonal = d.new_zeros(n + 1).index_add_(0, local.ravel(), blocks.diagonal(dim1=1, dim2=2).reshape(-1))
    diagonal = diagonal.maximum(1e-6 * system.camera_diagonal) + d + priors.diagonal
    blocks = blocks * (own[:, :, None] & own[:, None, :])
    extra = torch.where(own, (d + priors.diagonal)[local], 1.0)
    blocks.diagonal(dim1=1, dim2=2).add_(extra)
    factor, failed = torch.linalg.cholesky_ex(blocks)
    diagonal_factor = torch.diag_embed(diagonal[local].sqrt())
    factor = torch.where((failed > 0)[:, None, None], diagonal_factor, factor)
    mine = torch.where(own, local, n)
    shared = 1 / diagonal
    shared[mine.ravel()] = 0
    shared[n] = 0

    def apply(r: Tensor) -> Tensor:
        out = torch.cholesky_solve(r[mine][:, :, None], factor)[:, :, 0]
        result = shared * r
        result[mine.ravel()] += out.ravel()
        result[n] = 0
        return result

    return apply


def _focal_sigma(
    layout: _Layout, priors: _Priors, config: BundleConfig, state: _State, evaluation: _Evaluation
) -> tuple[NDArray | None, float | None]:
    """Deviation of log f per group, and the largest ratio to its deviation with all else known.

    The noise is that of an M-estimator (Huber, Robust Statistics, 1981, section 7.6): E[psi^2] / E[psi']^2.
    """
    n = layout.num_parameters
    focal = layout.theta_index[0]
    blocks = layout.blocks
    if blocks is None or focal[0] == n:
        return None, None
    system = _linearise(layout, priors, config, state, evaluation)
    m = _inverse_factors(system.point_hessian, 0.0)
    matrix = _reduced(layout, system, _lower(_take(m, layout.point), system.point_jacobian))
    square = evaluation.square
    weight, slope = _robust_slopes(config, square)
    points = layout.num_points if layout.point_free is None else float(layout.point_free.sum())
    unknowns = n + (2 if layout.directions else 3) * points
    psi2 = float((weight * weight * square).sum()) / max(2 * layout.num_obs - unknowns, 1.0)
    noise = psi2 * float(weight.mean()) / float(slope.mean()) ** 2
    matrix /= max(noise, 1e-30)
    known = (system.camera_diagonal - priors.diagonal) / max(noise, 1e-30) + priors.diagonal
    if priors.any:
        priors.add_to(matrix, blocks)
    scale = matrix.new_ones(blocks.count * blocks.width)
    scale[:n] = matrix[blocks.diagonal].clamp(min=1e-300).rsqrt()
    by_block = scale.view(blocks.count, blocks.width)
    scaled = matrix[:-1].view(-1, blocks.width, blocks.width)
    scaled *= by_block[blocks.rows][:, :, None] * by_block[blocks.cols][:, None]
    damping = 1e-14
    while True:  # the free gauge makes the matrix singular; f does not depend on it
        factored = matrix.clone()
        factored[blocks.diagonal] += damping
        if blocks.factor(factored):
            break
        damping *= 10
    columns = np.unique(focal)
    unit = matrix.new_zeros(n, len(columns))
    unit[layout.to_device(columns), torch.arange(len(columns), device=unit.device)] = 1
    half = blocks.forward(factored, unit)
    sigma = (half * half).sum((0, 1)).sqrt() * scale[layout.to_device(columns)]
    condition = float((sigma * known[layout.to_device(columns)].sqrt()).max())
    return sigma.cpu().numpy()[np.searchsorted(columns, focal)], condition


@dataclass(frozen=True, kw_only=True, eq=False)
class Resected:
    """What `batch_resect` found of every view."""

    cam_from_world: NDArray  # [V, 4, 4]
    intrinsics: NDArray  # [V, 6] as they came, fx and fy scaled where the focal length was free
    rmse_px: NDArray  # [V] over the inliers; nan where there is none
    num_inliers: NDArray  # [V]
    num_obs: NDArray  # [V]
    converged: NDArray  # [V] bool
    focal_sigma: NDArray | None = None  # [V] deviation of log f where it was free, from the view's own residuals


def batch_resect(
    points: NDArray,
    cam_from_world: NDArray,
    intrinsics: NDArray,
    obs_view: NDArray,
    obs_point: NDArray,
    obs_xy: NDArray,
    obs_weight: NDArray | None = None,
    *,
    config: BundleConfig,
    inlier_px: float,
    free_focal: bool = False,
    log_focal_prior: tuple[NDArray, NDArray] | None = None,
    fixed_translation: bool = False,
    device: str | torch.device = "cpu",
) -> Resected:
    """Refine many views, each on its own, against points that stay: one batch of small Levenberg-Marquardt problems.

    Args:
        points: [P, 3] world; directions where `fixed_translation` and all centres are the origin.
        cam_from_world: [V, 4, 4] where to start.
        intrinsics: [V, 6] fx, fy, cx, cy, k1, k2 of every view.
        obs_view, obs_point, obs_xy, obs_weight: [O], [O], [O, 2] pixels, [O] 1 / sigma as in `Bundle`.
        config: iterations, loss and tolerance (here: every view's own relative decrease).
        inlier_px: an observation with a smaller weighted residual is an inlier.
        free_focal: also refine log f (fx and fy together), with `log_focal_prior`, mean and deviation [V] of log fx.
        fixed_translation: only turn the cameras.

    A view that nothing constrains keeps its pose; look at `num_inliers`.
    """
    problem = Bundle(
        cam_from_world=cam_from_world,
        points=points,
        intrinsics=intrinsics,
        view_group=np.arange(len(cam_from_world)),
        obs_view=obs_view,
        obs_point=obs_point,
        obs_xy=obs_xy,
        obs_weight=obs_weight,
    )
    device, num_views = torch.device(device), len(cam_from_world)
    order = np.argsort(problem.obs_view, kind="stable")
    start = np.searchsorted(problem.obs_view[order], np.arange(num_views + 1))
    at_once = CPU_VIEWS if device.type == "cpu" else max(1, num_views)
    parts = []
    with torch.no_grad(), torch_threads(config.num_threads):
        for low in range(0, max(1, num_views), at_once):
            views = slice(low, min(low + at_once, num_views))
            o = order[start[low] : start[views.stop]]
            part = replace(
                problem,
                cam_from_world=problem.cam_from_world[views],
                intrinsics=problem.intrinsics[views],
                view_group=np.arange(views.stop - low),
                obs_view=problem.obs_view[o] - low,
                obs_point=problem.obs_point[o],
                obs_xy=problem.obs_xy[o],
                obs_weight=None if problem.obs_weight is None else problem.obs_weight[o],
            )
            prior = None
            if log_focal_prior is not None:
                mean, sigma = (np.broadcast_to(np.asarray(p, np.float64), num_views)[views] for p in log_focal_prior)
                prior = (mean, sigma)
            parts.append(_batch_resect(part, config, inlier_px, free_focal, prior, fixed_translation, device))
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Resected)
        if field.name != "focal_sigma" or free_focal
    }
    return Resected(**joined)


def _batch_resect(
    problem: Bundle,
    config: BundleConfig,
    inlier_px: float,
    free_focal: bool,
    log_focal_prior: tuple[NDArray, NDArray] | None,
    fixed_translation: bool,
    device: torch.device,
) -> Resected:
    """`batch_resect` of views at once; observations are sorted by view."""
    num_views = len(problem.cam_from_world)

    def to_device(array: NDArray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), device=device)

    all_counts = np.bincount(problem.obs_view, minlength=num_views)
    counts = to_device(all_counts)
    xyz = to_device(np.asarray(problem.points, np.float64)[problem.obs_point].T)
    xy = to_device(np.asarray(problem.obs_xy, np.float64).T)
    weight = to_device(
        np.ones(len(problem.obs_xy)) if problem.obs_weight is None else np.asarray(problem.obs_weight, np.float64)
    )
    pose = np.asarray(problem.cam_from_world, np.float64)
    intrinsics = np.asarray(problem.intrinsics, np.float64)
    dof, free = (3, [0] if free_focal else []) if fixed_translation else (6, [0] if free_focal else [])
    size = dof + len(free)
    mean, precision = torch.zeros(num_views, device=device).double(), torch.zeros(num_views, device=device).double()
    if log_focal_prior is not None and free_focal:
        mean, precision = to_device(log_focal_prior[0]), to_device(log_focal_prior[1]) ** -2

    rotation, translation = to_device(pose[:, :3, :3]), to_device(pose[:, :3, 3])
    log_f = to_device(np.log(intrinsics[:, 0]))
    ratio = to_device(intrinsics[:, 1] / intrinsics[:, 0])
    rest = to_device(intrinsics[:, 2:].T)

    def table(r: Tensor, t: Tensor, f: Tensor) -> Tensor:
        return torch.cat([r.flatten(1).T, t.T, f.exp()[None], (f.exp() * ratio)[None], rest])

    def spread(rows: Tensor, counts: Tensor) -> Tensor:
        return torch.repeat_interleave(rows, counts, dim=-1, output_size=xyz.shape[1])

    def costs(p: _Projection, owner: Tensor, f: Tensor) -> Tensor:
        square = (p.residual * p.residual).sum(0) * weight**2
        rho = _robust(config.loss, config.loss_px, square)[0]
        total = rho.new_zeros(num_views).scatter_add_(0, owner, rho)
        return 0.5 * (total + precision * (f - mean) ** 2)

    owner = torch.repeat_interleave(torch.arange(num_views, device=device), counts)
    bounds = [0, *np.cumsum(all_counts).tolist()]
    camera = spread(table(rotation, translation, log_f), counts)
    p = _project(camera, xyz, xy, config.cheirality)
    cost = costs(p, owner, log_f)
    damping = torch.full_like(cost, config.initial_damping)
    growth = torch.full_like(cost, 2.0)
    done = counts == 0

    def normal_equations(camera: Tensor, p: _Projection, f: Tensor) -> tuple[Tensor, Tensor]:
        square = (p.residual * p.residual).sum(0) * weight**2
        scale = _robust(config.loss, config.loss_px, square)[1].sqrt() * weight
        jacobian, _ = _jacobians(camera, p, scale, dof, free)
        blocks = _view_blocks(jacobian, p.residual * scale, bounds)
        hessian, gradient = blocks[:, :size, :size], blocks[:, :size, size].clone()
        if free_focal:
            hessian[:, dof, dof] += precision
            gradient[:, dof] += precision * (f - mean)
        return hessian, gradient

    hessian, gradient = normal_equations(camera, p, log_f)
    for _ in range(config.max_iterations):
        if bool(done.all()):
            break
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        d = damping[:, None] * diagonal + 1e-12 * diagonal.amax(1, keepdim=True) + 1e-300
        factor, failed = torch.linalg.cholesky_ex(hessian + torch.diag_embed(d))
        delta = -torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
        delta = torch.where(((failed > 0) | done | ~delta.isfinite().all(1))[:, None], 0.0, delta)
        turn = _rotation(delta[:, :3])
        trial_r = turn @ rotation
        trial_t = (turn @ translation[:, :, None])[:, :, 0]
        if dof == 6:
            trial_t = trial_t + delta[:, 3:6]
        trial_f = log_f + delta[:, dof] if free_focal else log_f
        trial_camera = spread(table(trial_r, trial_t, trial_f), counts)
        trial_p = _project(trial_camera, xyz, xy, config.cheirality)
        trial_cost = costs(trial_p, owner, trial_f)
        predicted = 0.5 * ((d * delta * delta).sum(1) - (gradient * delta).sum(1))
        gain = (cost - trial_cost) / predicted.clamp(min=1e-300)
        accept = (trial_cost < cost) & (gain > 1e-4) & ~done
        settled = bool((accept | done).all())  # the trial is the state: a view that is done does not move
        small = torch.where(accept, cost - trial_cost, predicted * 10) <= config.cost_tolerance * cost
        damping = torch.where(
            accept, damping * (1 - (2 * gain.clamp(0, 2) - 1) ** 3).clamp(min=1 / 3), damping * growth
        ).clamp(min=_MIN_DAMPING)
        growth = torch.where(accept, 2.0, growth * 2).clamp(max=1e6)
        done = done | (small & (failed == 0)) | (damping > _MAX_DAMPING)
        rotation = torch.where(accept[:, None, None], trial_r, rotation)
        translation = torch.where(accept[:, None], trial_t, translation)
        log_f = torch.where(accept, trial_f, log_f)
        cost = torch.where(accept, trial_cost, cost)
        if settled:
            camera, p = trial_camera, trial_p
        else:
            camera = spread(table(rotation, translation, log_f), counts)
            p = _project(camera, xyz, xy, config.cheirality)
        hessian, gradient = normal_equations(camera, p, log_f)

    square = (p.residual * p.residual).sum(0)
    inlier = ((square * weight**2 < inlier_px**2) & p.front).double()
    num_inliers = inlier.new_zeros(num_views).scatter_add_(0, owner, inlier)
    total = inlier.new_zeros(num_views).scatter_add_(0, owner, square * inlier)
    rmse = torch.where(num_inliers > 0, (total / num_inliers.clamp(min=1)).sqrt(), torch.nan)
    sigma = None
    if free_focal:
        weighted = square * weight**2
        w, slope = _robust_slopes(config, weighted)
        per_view = torch.stack([w * w * weighted, w, slope])
        sums = per_view.new_zeros(3, num_views).scatter_add_(1, owner.expand(3, -1), per_view)
        many = counts.clamp(min=1)
        noise = sums[0] / (2 * counts - size).clamp(min=1) * (sums[1] / many) / (sums[2] / many).clamp(min=1e-3) ** 2
        information = hessian / noise.clamp(min=1e-30)[:, None, None]
        information[:, dof, dof] += precision * (1 - 1 / noise.clamp(min=1e-30))
        diagonal = information.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
        scaled = information * diagonal[:, :, None] * diagonal[:, None]
        scaled.diagonal(dim1=1, dim2=2).add_(1e-13)
        factor, failed = torch.linalg.cholesky_ex(scaled)
        inverse = torch.cholesky_inverse(factor)[:, dof, dof].sqrt() * diagonal[:, dof]
        sigma = torch.where((failed > 0) | (counts == 0), torch.inf, inverse).cpu().numpy()
    out = np.tile(np.eye(4), (num_views, 1, 1))
    out[:, :3, :3] = nearest_rotation(rotation.cpu().numpy())
    out[:, :3, 3] = translation.cpu().numpy()
    refined = intrinsics.copy()
    if free_focal:
        refined[:, 0] = log_f.exp().cpu().numpy()
        refined[:, 1] = refined[:, 0] * ratio.cpu().numpy()
    return Resected(
        cam_from_world=out,
        intrinsics=refined,
        rmse_px=rmse.cpu().numpy(),
        num_inliers=num_inliers.long().cpu().numpy(),
        num_obs=all_counts,
        converged=done.cpu().numpy(),
        focal_sigma=sigma,
    )
