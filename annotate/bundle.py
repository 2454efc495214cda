"""Bundle adjustment: Levenberg-Marquardt on camera poses, scene points and intrinsics, and batched resection.

Points are eliminated by the Schur complement (Triggs et al., "Bundle Adjustment - A Modern Synthesis", 1999, section 6);
the reduced camera system is factored densely while it is small and solved by preconditioned conjugate gradients on the
implicit Schur complement (Agarwal et al., "Bundle Adjustment in the Large", 2010) beyond. float64 throughout; one code
for CPU and CUDA. On a CPU the same input gives the same bytes; on CUDA sums are atomic and the last digits may differ.

Camera model: with (X, Y, Z) = R p + t, n = (X, Y) / Z and r = |n|, pixel = (fx, fy) n (1 + k1 r^2 + k2 r^4) + (cx, cy).
A pose moves by x_cam <- exp([w]) x_cam + v, so that w alone turns a camera about its own centre. Intrinsics are the six
numbers (log fx, log fy/fx, cx, cy, k1, k2) of a group of views; which of them are free, shared or tied is one table of
parameter indices per view. Observations are kept structure-of-arrays, [rows, O], sorted by (chunk of points, view).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import nearest_rotation

INTRINSICS = ("f", "aspect", "cx", "cy", "k1", "k2")
Loss = Literal["none", "huber", "cauchy"]

_MIN_COSINE = 1e-3  # a point less than this (cosine to the optical axis) in front of a camera counts as behind it
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
        if self.obs_weight is not None:
            shapes["obs_weight"] = (num_obs,)
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
    """How to iterate. `loss_px` is where the robust kernel bends, in units of a weighted residual (pixels at weight 1)."""

    max_iterations: int = 50
    loss: Loss = "none"
    loss_px: float = 1.0
    cost_tolerance: float = 1e-6  # stop where an accepted step lowers the cost by less than this share
    cheirality: bool = True  # False lets points project from behind a camera, as the BAL benchmark's cost does
    initial_damping: float = 1e-4  # of the diagonal of J^T J
    dense_limit: int = 3000  # camera parameters up to which the reduced system is factored rather than iterated on
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
    condition: float | None = None  # the largest ratio of that to the deviation if no other camera parameter moved


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
    pp_prior: tuple[float, float, float] | None = None,
    distortion_prior_sigma: float | None = None,
    aspect_prior_sigma: float | None = None,
    covariance: bool = False,
    device: str | torch.device = "cpu",
) -> Adjusted:
    """Minimise 0.5 sum rho(|weight (predicted - observed)|^2) + priors over poses, points and free intrinsics.

    Args:
        free_intrinsics: which of "f", "aspect", "cx", "cy", "k1", "k2" may move, in every group.
        tied_intrinsics: those of them that move alike in all groups (start them equal): one k1 for a zooming camera.
        fixed_views: [V] True where a pose must stay. Without it the gauge is free, which damping bears.
        fixed_points: [P] True where a point must stay.
        fixed_translation: camera centres stay (rotation only). Where all centres are the origin, points are directions
            and come back with unit length.
        log_focal_prior: mean and standard deviation [G] of log fx; an infinite deviation means none.
        log_focal_smooth: [G - 1] standard deviation of log f of a group less that of the one before it.
        pp_prior: cx, cy and their standard deviation, pixels.
        distortion_prior_sigma: standard deviation of k1 and k2 about 0.
        aspect_prior_sigma: standard deviation of log fy / fx about 0.
        covariance: also find `focal_sigma` and `condition`; the noise is measured from the residuals.

    An observation of a point behind its camera pulls nothing and costs as much as one that is off by sqrt(2) f, so a
    step that takes points behind cameras has to earn it elsewhere.

    Raises:
        ValueError: names that are no intrinsics, or priors of the wrong length.
    """
    for name in (*free_intrinsics, *tied_intrinsics):
        if name not in INTRINSICS:
            raise ValueError(f"{name!r} is none of the intrinsics {', '.join(INTRINSICS)}")
    with torch.no_grad():
        layout = _Layout(
            problem, config, free_intrinsics, tied_intrinsics, fixed_views, fixed_points, fixed_translation, device
        )
        priors = _Priors(
            layout,
            problem,
            log_focal_prior,
            log_focal_smooth,
            pp_prior,
            distortion_prior_sigma,
            aspect_prior_sigma,
        )
        state = layout.start(problem)
        cost, raw = _cost(layout, priors, config, state)
        initial_cost, damping, growth, converged, iterations = cost, config.initial_damping, 2.0, False, 0
        system = None
        while iterations < config.max_iterations and layout.num_obs and cost > 1e-22 * layout.num_obs:
            iterations += 1
            system = system or _linearise(layout, priors, config, state)
            step = _solve(layout, priors, config, system, damping)
            gain = -np.inf
            if step is not None:
                trial = layout.move(state, step)
                trial_cost, trial_raw = _cost(layout, priors, config, trial)
                gain = (cost - trial_cost) / step.predicted if step.predicted > 0 else -np.inf
                if trial_cost < cost and gain > 1e-4:
                    fall = cost - trial_cost
                    state, cost, raw, system = trial, trial_cost, trial_raw, None
                    damping = max(_MIN_DAMPING, damping * max(1 / 3, 1 - (2 * gain - 1) ** 3))
                    growth = 2.0
                    if fall <= config.cost_tolerance * cost:
                        converged = True
                        break
                    continue
                if step.predicted <= 0.1 * config.cost_tolerance * cost:
                    converged = True
                    break
            damping, growth = damping * growth, growth * 2
            if damping > _MAX_DAMPING:
                break
        focal_sigma = condition = None
        if covariance:
            focal_sigma, condition = _focal_sigma(layout, priors, config, state)
        residuals = np.empty((layout.num_obs, 2))
        residuals[layout.order] = raw.T.cpu().numpy()
        return Adjusted(
            bundle=layout.finish(problem, state),
            residuals=residuals,
            initial_cost=initial_cost,
            final_cost=cost,
            iterations=iterations,
            converged=converged or cost <= 1e-22 * layout.num_obs,
            focal_sigma=focal_sigma,
            condition=condition,
        )


@dataclass(frozen=True, eq=False)
class _State:
    rotation: Tensor  # [V, 3, 3]
    translation: Tensor  # [V, 3]
    points: Tensor  # [3, P] those that are observed, in the layout's order
    theta: Tensor  # [6, G]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Points whose observations touch the camera parameters `rows`, and no others."""

    obs: slice
    points: slice
    rows: Tensor  # [R] camera parameters
    cells: Tensor  # [L * O_chunk] where (local parameter, observation) lies in [R, P_chunk], flat


@dataclass(frozen=True, eq=False)
class _Step:
    camera: Tensor  # [n + 1]
    points: Tensor  # [3, P]
    predicted: float  # decrease of the cost by the quadratic model


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
        rotation, translation = problem.cam_from_world[:, :3, :3], problem.cam_from_world[:, :3, 3]
        self.directions = fixed_translation and not np.any(translation)
        del rotation

        # numbers of the camera parameters; what is fixed gets the last one, which is thrown away
        moving = np.ones(num_views, bool) if fixed_views is None else ~np.asarray(fixed_views, bool)
        pose_index = np.full((num_views, self.pose_dof), -1)
        count = int(moving.sum()) * self.pose_dof
        pose_index[moving] = np.arange(count).reshape(-1, self.pose_dof)
        theta_index = np.full((6, self.num_groups), -1)
        for i in self.free:
            size = 1 if INTRINSICS[i] in tied else self.num_groups
            theta_index[i] = count + np.arange(size)
            count += size
        self.num_parameters = n = count
        group = np.asarray(problem.view_group, np.int64)
        local = np.concatenate([pose_index, theta_index[self.free][:, group].T], 1)  # [V, L]
        local = np.where(local < 0, n, local)
        self.theta_index = np.where(theta_index < 0, n, theta_index)
        self.dense = n <= config.dense_limit

        # points in use, in an order that gives chunks of points few views: by the span of their track, then its start
        obs_view = np.asarray(problem.obs_view, np.int64)
        used, obs_point = np.unique(np.asarray(problem.obs_point, np.int64), return_inverse=True)
        by_point = np.lexsort((obs_view, obs_point))
        starts = np.searchsorted(obs_point[by_point], np.arange(len(used)))
        ends = np.append(starts[1:], self.num_obs)
        first, last = obs_view[by_point[starts]], obs_view[by_point[ends - 1]]
        span_class = np.ceil(np.log2(last - first + 1.0)).astype(np.int64)
        point_order = np.lexsort((last, first, span_class))
        rank = np.empty(len(used), np.int64)
        rank[point_order] = np.arange(len(used))
        self.used = used[point_order]
        self.num_points = len(used)
        obs_point = rank[obs_point]
        size = 128 if local.size > 300 else 512
        obs_chunk = obs_point // size
        self.order = order = np.lexsort((obs_point, obs_view, obs_chunk))
        obs_view, obs_point, obs_chunk = obs_view[order], obs_point[order], obs_chunk[order]

        self.view = self.to_device(obs_view)
        self.point = self.to_device(obs_point)
        self.xy = self.to_device(np.asarray(problem.obs_xy, np.float64)[order].T)
        weight = np.ones(self.num_obs) if problem.obs_weight is None else np.asarray(problem.obs_weight, np.float64)
        self.weight = None if problem.obs_weight is None else self.to_device(weight[order])
        self.group = self.to_device(group)
        self.local = self.to_device(local)
        self.block_cells = self.to_device((local[:, :, None] * (n + 1) + local[:, None, :]).ravel())
        self.by_view = self.to_device(_padded(obs_view, num_views))
        if fixed_points is None:
            self.point_free = None
        else:
            self.point_free = self.to_device(~np.asarray(fixed_points, bool)[self.used]).double()

        self.chunks: list[_Chunk] = []
        if self.dense:
            bounds = np.searchsorted(obs_chunk, np.arange(len(used) // size + 2))
            for i, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
                if begin == end:
                    continue
                points = slice(i * size, min((i + 1) * size, len(used)))
                width = points.stop - points.start
                seen = np.unique(obs_view[begin:end])
                rows, place = np.unique(local[seen], return_inverse=True)
                place_of_view = np.empty((num_views, self.num_local), np.int64)
                place_of_view[seen] = place.reshape(len(seen), self.num_local)
                cells = place_of_view[obs_view[begin:end]].T * width + (obs_point[begin:end] - points.start)
                self.chunks.append(
                    _Chunk(slice(begin, end), points, self.to_device(rows), self.to_device(cells.ravel()))
                )

    def to_device(self, array: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

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
            points = points / points.norm(dim=0)
        theta = state.theta + step.camera[self.to_device(self.theta_index)]
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
        # the priors' constant Hessian: a diagonal, and pairs of neighbours
        information = layout.to_device(weight**2)
        information[0, 1:] += self.step_weight**2
        information[0, :-1] += self.step_weight**2
        self.index = layout.to_device(layout.theta_index)
        self.diagonal = information.new_zeros(n + 1).index_add_(0, self.index.ravel(), information.ravel())
        self.pairs = self.index[0, :-1], self.index[0, 1:]
        self.any = bool(weight.any() or step_weight.any())

    def residuals(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta - self.mean) * self.weight, theta[0].diff() * self.step_weight

    def gradient(self, theta: Tensor) -> Tensor:
        """[n + 1]"""
        own, steps = self.residuals(theta)
        out = own * self.weight
        out[0, 1:] += steps * self.step_weight
        out[0, :-1] -= steps * self.step_weight
        return out.new_zeros(len(self.diagonal)).index_add_(0, self.index.ravel(), out.ravel())

    def add_to(self, matrix: Tensor) -> None:
        """Add the Hessian to a dense [n + 1, n + 1] matrix."""
        matrix.diagonal().add_(self.diagonal)
        i, j = self.pairs
        square = -(self.step_weight**2)
        matrix.index_put_((i, j), square, accumulate=True)
        matrix.index_put_((j, i), square, accumulate=True)

    def times(self, x: Tensor) -> Tensor:
        """The Hessian times x [n + 1]."""
        i, j = self.pairs
        square = self.step_weight**2
        out = self.diagonal * x
        return out.index_add_(0, i, -square * x[j]).index_add_(0, j, -square * x[i])


def _padded(owner: NDArray, count: int) -> NDArray:
    """[count, longest] the positions that each owner holds in `owner`, padded with len(owner)."""
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner, minlength=count)
    out = np.full((count, int(sizes.max(initial=0))), len(owner))
    within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    out[owner[order], within] = order
    return out


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


def _camera_table(state: _State, group: Tensor) -> Tensor:
    """[18, V]: rotation (9), translation (3), fx, fy, cx, cy, k1, k2 of every view."""
    theta = state.theta
    intrinsics = torch.cat([theta[:1].exp(), (theta[:1] + theta[1:2]).exp(), theta[2:]])
    return torch.cat([state.rotation.flatten(1).T, state.translation.T, intrinsics.index_select(1, group)])


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
    front = (x_cam[2] if cheirality else x_cam[2].abs()) > _MIN_COSINE * x_cam.norm(dim=0)
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


def _cost(layout: _Layout, priors: _Priors, config: BundleConfig, state: _State) -> tuple[float, Tensor]:
    """The cost, and the residuals [2, O] in pixels."""
    camera = _camera_table(state, layout.group).index_select(1, layout.view)
    raw = _project(camera, state.points.index_select(1, layout.point), layout.xy, config.cheirality).residual
    square = (raw * raw).sum(0)
    if layout.weight is not None:
        square = square * layout.weight**2
    cost = _robust(config.loss, config.loss_px, square)[0].sum()
    if priors.any:
        own, steps = priors.residuals(state.theta)
        cost = cost + (own * own).sum() + (steps * steps).sum()
    return 0.5 * float(cost), raw


@dataclass(frozen=True, eq=False)
class _System:
    """The normal equations of one linearisation, before damping."""

    camera_jacobian: Tensor  # [2, L, O]
    point_jacobian: Tensor  # [2, 3, O]
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
    jacobian[:, :3] = torch.linalg.cross(p.x_cam.expand_as(by_cam), by_cam, dim=1)
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


def _linearise(layout: _Layout, priors: _Priors, config: BundleConfig, state: _State) -> _System:
    camera = _camera_table(state, layout.group).index_select(1, layout.view)
    p = _project(camera, state.points.index_select(1, layout.point), layout.xy, config.cheirality)
    square = (p.residual * p.residual).sum(0)
    if layout.weight is not None:
        square = square * layout.weight**2
    scale = _robust(config.loss, config.loss_px, square)[1].sqrt()
    if layout.weight is not None:
        scale = scale * layout.weight
    jacobian, by_point = _jacobians(camera, p, scale, layout.pose_dof, layout.free)
    residual = p.residual * scale
    if layout.point_free is not None:
        by_point *= layout.point_free.index_select(0, layout.point)

    products = (by_point[:, _SYM[0]] * by_point[:, _SYM[1]]).sum(0)
    sums = layout.per_point(torch.cat([products, (by_point * residual[:, None]).sum(0)]))
    point_hessian, point_gradient = sums[:6], sums[6:]
    if layout.directions:  # the length of a direction is no unknown: hold it
        i, j = state.points[_SYM[0], :], state.points[_SYM[1], :]
        point_hessian = point_hessian + i * j * point_hessian[[0, 3, 5]].sum(0)

    blocks = _view_blocks(jacobian, residual, layout.by_view)
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


def _view_blocks(jacobian: Tensor, residual: Tensor, by_view: Tensor) -> Tensor:
    """[V, L + 1, L + 1]: J^T J of each view, bordered by J^T r."""
    num_local, num_obs = jacobian.shape[1:]
    both = jacobian.new_zeros(2, num_local + 1, num_obs + 1)  # the last observation is the padding
    both[:, :num_local, :num_obs] = jacobian
    both[:, num_local, :num_obs] = residual
    gathered = both.index_select(2, by_view.ravel()).view(2, num_local + 1, *by_view.shape).transpose(1, 2)
    return gathered[0] @ gathered[0].mT + gathered[1] @ gathered[1].mT


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
    out = m[[0, 2, 5]] * v
    out[..., 1, :] += m[1] * v[..., 0, :]
    out[..., 2, :] += m[3] * v[..., 0, :] + m[4] * v[..., 1, :]
    return out


def _lower_transposed(m: Tensor, v: Tensor) -> Tensor:
    """M^T v over the second last dimension: m [6, N], v [..., 3, N]."""
    out = m[[0, 2, 5]] * v
    out[..., 0, :] += m[1] * v[..., 1, :] + m[3] * v[..., 2, :]
    out[..., 1, :] += m[4] * v[..., 2, :]
    return out


def _reduced(layout: _Layout, system: _System, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The dense Schur complement [n + 1, n + 1] without damping or priors, E M^T M g [n + 1], and J_point M^T."""
    size = layout.num_parameters + 1
    jacobian = system.camera_jacobian
    matrix = jacobian.new_zeros(size, size)
    matrix.view(-1).index_add_(0, layout.block_cells, system.blocks.reshape(-1))
    q = _lower(m, system.point_gradient)
    white = _lower(m.index_select(1, layout.point), system.point_jacobian)  # [2, 3, O]
    shift = jacobian.new_zeros(size)
    for chunk in layout.chunks:
        j, w = jacobian[:, :, chunk.obs], white[:, :, chunk.obs]
        z = torch.mul(j[0][None], w[0][:, None]).addcmul_(j[1][None], w[1][:, None])  # [3, L, O_chunk]
        width, rows = chunk.points.stop - chunk.points.start, chunk.rows
        e = z.new_zeros(3, len(rows) * width)
        e.scatter_add_(1, chunk.cells.expand(3, -1), z.view(3, -1))
        e = e.view(3, len(rows), width)
        product = e[0] @ e[0].T
        product.addmm_(e[1], e[1].T).addmm_(e[2], e[2].T)
        matrix[rows[:, None], rows] -= product
        shift[rows] += (e @ q[:, chunk.points, None])[:, :, 0].sum(0)
    return matrix, shift, white


def _solve(layout: _Layout, priors: _Priors, config: BundleConfig, system: _System, damping: float) -> _Step | None:
    """The damped step, or None where the system is numerically indefinite."""
    n = layout.num_parameters
    m = _inverse_factors(system.point_hessian, damping)
    d = system.camera_diagonal
    d = damping * torch.where(d > 0, d, 1.0 / damping)  # parameters that nothing sees stay where they are
    leftover = 0.0
    delta = d.new_zeros(n + 1)
    if layout.dense:
        matrix, shift, white = _reduced(layout, system, m)
        if priors.any:
            priors.add_to(matrix)
        matrix.diagonal().add_(d)
        factor, failed = torch.linalg.cholesky_ex(matrix[:n, :n])
        if int(failed):
            return None
        rhs = (shift - system.camera_gradient)[:n]
        delta[:n] = torch.cholesky_solve(rhs[:, None], factor)[:, 0]
    else:
        white = _lower(m.index_select(1, layout.point), system.point_jacobian)
        delta, leftover = _conjugate_gradients(layout, priors, config, system, m, white, d)
    moved = (system.camera_jacobian * delta[layout.local].T.index_select(1, layout.view)).sum(1)  # [2, O]
    along = layout.per_point((white * moved[:, None]).sum(0)) + _lower(m, system.point_gradient)
    points = -_lower_transposed(m, along)

    slope = torch.dot(system.camera_gradient, delta) + (system.point_gradient * points).sum()
    damp = (d * delta * delta).sum() + damping * (system.point_hessian[[0, 3, 5]] * points * points).sum()
    predicted = float(0.5 * (damp - slope)) - 0.5 * leftover
    return _Step(delta, points, predicted) if np.isfinite(predicted) else None


def _conjugate_gradients(
    layout: _Layout, priors: _Priors, config: BundleConfig, system: _System, m: Tensor, white: Tensor, d: Tensor
) -> tuple[Tensor, float]:
    """Solve the reduced system without forming it; returns the step [n + 1] and delta . (S delta - rhs)."""
    n, jacobian = layout.num_parameters, system.camera_jacobian
    flat = layout.local.ravel()

    def to_views(rows: Tensor) -> Tensor:  # [L, O] -> [n + 1]
        per_view = rows.new_zeros(layout.num_local, layout.num_views)
        per_view.scatter_add_(1, layout.view.expand(layout.num_local, -1), rows)
        out = rows.new_zeros(n + 1).index_add_(0, flat, per_view.T.reshape(-1))
        out[n] = 0
        return out

    def eliminated(obs: Tensor) -> Tensor:  # [2, O] -> [n + 1]: J_camera^T (I - white white^T) of it
        back = layout.per_point((white * obs[:, None]).sum(0)).index_select(1, layout.point)
        return to_views((jacobian * (obs - (white * back).sum(1))[:, None]).sum(0))

    def times(x: Tensor) -> Tensor:
        obs = (jacobian * x[layout.local].T.index_select(1, layout.view)).sum(1)
        out = eliminated(obs) + d * x
        return out + priors.times(x) if priors.any else out

    q = _lower(m, system.point_gradient).index_select(1, layout.point)
    rhs = to_views((jacobian * (white * q).sum(1)[:, None]).sum(0)) - system.camera_gradient
    rhs[n] = 0
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


def _block_jacobi(layout: _Layout, priors: _Priors, system: _System, white: Tensor, d: Tensor):
    """The inverse of the reduced system's diagonal: blocks of one view's own parameters, scalars for shared ones."""
    n, num_local = layout.num_parameters, layout.num_local
    jacobian, local = system.camera_jacobian, layout.local
    blocks = system.blocks.clone()
    for k in range(3):
        seen = (jacobian * white[:, k][:, None]).sum(0)  # [L, O]; tracks seen twice by a view count as two
        padded = torch.cat([seen, seen.new_zeros(num_local, 1)], 1)
        z = padded.index_select(1, layout.by_view.ravel()).view(num_local, *layout.by_view.shape).transpose(0, 1)
        blocks -= z @ z.mT
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
    layout: _Layout, priors: _Priors, config: BundleConfig, state: _State
) -> tuple[NDArray | None, float | None]:
    """Deviation of log f per group, and the largest ratio to its deviation with all other camera parameters known.

    The noise is that of an M-estimator (Huber, Robust Statistics, 1981, section 7.6): E[psi^2] / E[psi']^2.
    """
    n = layout.num_parameters
    focal = layout.theta_index[0]
    if not layout.dense or not layout.num_obs or focal[0] == n:
        return None, None
    system = _linearise(layout, priors, config, state)
    matrix, _, _ = _reduced(layout, system, _inverse_factors(system.point_hessian, 0.0))
    _, raw = _cost(layout, priors, config, state)
    square = (raw * raw).sum(0)
    if layout.weight is not None:
        square = square * layout.weight**2
    weight = _robust(config.loss, config.loss_px, square)[1]
    if config.loss == "cauchy":
        slope = weight * weight
    elif config.loss == "huber":
        slope = torch.where(weight < 1, 0.5 * weight, weight)
    else:
        slope = weight
    points = layout.num_points if layout.point_free is None else float(layout.point_free.sum())
    unknowns = n + (2 if layout.directions else 3) * points
    psi2 = float((weight * weight * square).sum()) / max(2 * layout.num_obs - unknowns, 1.0)
    noise = psi2 * float(weight.mean()) / float(slope.mean()) ** 2
    matrix /= max(noise, 1e-30)
    if priors.any:
        priors.add_to(matrix)
    matrix = matrix[:n, :n]
    scale = matrix.diagonal().clamp(min=1e-300).rsqrt()
    matrix = matrix * scale * scale[:, None]
    damping = 1e-14
    while True:  # the free gauge makes the matrix singular; f does not depend on it
        factor, failed = torch.linalg.cholesky_ex(
            matrix + damping * torch.eye(n, dtype=matrix.dtype, device=matrix.device)
        )
        if not int(failed):
            break
        damping *= 10
    columns = np.unique(focal)
    unit = matrix.new_zeros(n, len(columns))
    unit[layout.to_device(columns), torch.arange(len(columns), device=unit.device)] = 1
    half = torch.linalg.solve_triangular(factor, unit, upper=False)
    inflation = (half * half).sum(0).sqrt()
    sigma = (inflation * scale[layout.to_device(columns)]).cpu().numpy()
    return sigma[np.searchsorted(columns, focal)], float(inflation.max())
