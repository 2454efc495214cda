"""From feature observations in a few hundred views to cameras and points: incremental structure from motion.

`reconstruct` tries focal lengths and starting pairs, `Map.grow` adds views one after another (resection, triangulation,
bundle adjustment), `Map.polish` frees the lens and aligns observations to a fraction of a pixel. Minimal solvers and
RANSAC are poselib's; the bundle adjustment is ours. Snavely et al. 2006; Schoenberger & Frahm 2016.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import poselib
from numpy.typing import NDArray

from ..geometry import camera_centres, distort, undistort, unit_px
from .bundle import Adjusted, Bundle, BundleConfig, adjust
from .refine import RefineConfig, reference_observations, refine_observations


@dataclass(frozen=True)
class MapperConfig:
    """Pixel thresholds are for an image diagonal of 800 px and scale with it."""

    inlier_px: float = 4.0  # while the map grows
    final_px: float = 0.6  # of an observation kept in the last bundle adjustment, twice that in the one before
    noise_px: float = 0.3  # of an observation, where it is weighed against something else
    min_angle_deg: float = 1.0  # between rays, for a point to count in resection
    min_pose_inliers: int = 15
    min_pose_ratio: float = 0.25
    distortion_sigma: float = 0.1  # prior on k1, k2
    principal_sigma_px: float = 5.0  # prior on the principal point about the image centre
    focal_guesses: tuple[float, ...] = (0.6, 0.85, 1.2, 1.8, 2.7)  # of the longer side, tried beside the votes
    again_every: int = 4  # of the places where a point should be seen but was not tracked, looked at
    again_deg: float = 35.0  # widest turn of the line of sight there
    again_size: float = 1.6  # largest change of size there
    again_correlation: float = 0.9
    refine: RefineConfig = field(default_factory=RefineConfig)
    smooth_log_focal: float = 0.15  # standard deviation of the change of log f over one second
    smooth_expected: float = 0.3  # of that, where a network says how it changes


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """What the views saw: observation o is track `track[o]` in view `view[o]`; sorted by track, then view."""

    width: int
    height: int
    px: float  # that tracks' errors count as one, see `klt.error_px`
    num_views: int
    num_tracks: int
    view: NDArray[np.int64]  # [O]
    track: NDArray[np.int64]  # [O]
    xy: NDArray[np.float64]  # [O, 2] pixels, centres at integer coordinates
    time_s: NDArray[np.float64] | None  # [V] when each view was taken; None for photographs
    log_depth: NDArray[np.float64]  # [O] of the point along the optical axis, as something else says; 0 where unknown
    depth_weight: NDArray[np.float64]  # [O] 1 / sigma of that, times the pixels' sigma; 0 where unknown

    @classmethod
    def sorted(
        cls,
        *,
        view: NDArray,
        track: NDArray,
        xy: NDArray,
        log_depth: NDArray | None = None,
        depth_weight: NDArray | None = None,
        **rest,
    ) -> Observations:
        order, unknown = np.lexsort((view, track)), np.zeros(len(view))
        return cls(
            view=view[order].astype(np.int64),
            track=track[order].astype(np.int64),
            xy=xy[order].astype(float),
            log_depth=unknown if log_depth is None else log_depth[order],
            depth_weight=unknown if depth_weight is None else depth_weight[order],
            **rest,
        )

    @property
    def has_depth(self) -> bool:
        return bool(self.depth_weight.any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Intrinsics:
    """What is known beforehand: None to estimate, or fx, fy, cx, cy (and k1, k2) in pixels of the observations."""

    given: tuple[float, ...] | None = None
    per_view: bool = False  # one focal length a view, smooth in time, instead of one for all
    expected: NDArray | None = None  # [V] focal lengths that a network expects, pixels
    expected_sigma: float = np.inf  # relative standard deviation of them, one error for all


def project(cam_from_world: NDArray, intrinsics: NDArray, points: NDArray) -> tuple[NDArray, NDArray]:
    """Pixels [n, 2] and depths [n] of points [n, 3] in cameras [n, 4, 4] with intrinsics [n, 6], or in a single one."""
    x = (cam_from_world[..., :3, :3] @ points[..., None])[..., 0] + cam_from_world[..., :3, 3]
    k = intrinsics
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        xy = distort(x[:, :2] / x[:, 2:], k[..., 4], k[..., 5]) * k[..., :2] + k[..., 2:4]
    return xy, x[:, 2]


def reprojection_px(cam_from_world: NDArray, intrinsics: NDArray, points: NDArray, xy: NDArray) -> NDArray:
    """Distance [n] of points [n, 3], seen by cameras [n, 4, 4] with intrinsics [n, 6], from where they were seen.

    inf behind the camera, nan without a point or a pose.
    """
    predicted, depth = project(cam_from_world, intrinsics, points)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.linalg.norm(predicted - xy, axis=1)
    return np.where(depth > 0, error, np.where(np.isnan(depth), np.nan, np.inf))


class Map:
    """A reconstruction while it grows."""

    def __init__(self, obs: Observations, config: MapperConfig, intrinsics: Intrinsics, focal: float) -> None:
        self.obs, self.config, self.setting = obs, config, intrinsics
        v = obs.num_views
        self.px = unit_px(obs.width, obs.height)
        if intrinsics.given is None:
            row = np.array([focal, focal, (obs.width - 1) / 2, (obs.height - 1) / 2, 0.0, 0.0])
        else:
            row = np.zeros(6)
            row[: len(intrinsics.given)] = intrinsics.given
        self.intrinsics = np.tile(row, (v, 1))
        if intrinsics.per_view and intrinsics.given is None and intrinsics.expected is not None:
            self.intrinsics[:, :2] = intrinsics.expected[:, None]
        self.pose = np.full((v, 4, 4), np.nan)
        self.registered = np.zeros(v, bool)
        self.points = np.full((obs.num_tracks, 3), np.nan)
        self.inlier = np.zeros(len(obs.view), bool)
        self.aligned = np.ones(len(obs.view), bool)
        self.failed_at = np.full(v, -1)  # number of points visible when resection last failed
        self.fixed = False  # the poses are given and stay
        self.in_depth_unit = False  # lengths are those of the known depths
        self.turning = False  # all cameras in one place: points are directions
        self.label = np.arange(obs.num_tracks)  # what each track of the beginning is called after joins
        self.focal_sigma = np.full(v, np.inf)  # relative, of the last bundle adjustment with covariance
        self.free_lens = False  # principal point and distortion stay until the map is complete
        self._index()

    def _index(self) -> None:
        """Observations by view: those of view v are by_view[start[v]:start[v + 1]]."""
        self.by_view = np.argsort(self.obs.view, kind="stable")
        self.start = np.searchsorted(self.obs.view[self.by_view], np.arange(self.obs.num_views + 1))

    def take_cameras(self, other: Map) -> None:
        """Begin with the cameras of another map of the same views, and points for what they see."""
        self.pose, self.registered = other.pose.copy(), other.registered.copy()
        self.intrinsics, self.free_lens = other.intrinsics.copy(), other.free_lens
        self.in_depth_unit = other.in_depth_unit
        self.triangulate()

    # ---- looking things up -------------------------------------------------------------------------------------

    def of_view(self, v: int) -> NDArray[np.int64]:
        return self.by_view[self.start[v] : self.start[v + 1]]

    @property
    def has_point(self) -> NDArray[np.bool_]:
        return np.isfinite(self.points[:, 0])

    def seen_twice(self) -> NDArray[np.bool_]:
        """[O] observations of tracks that two or more registered views see."""
        seen = self.registered[self.obs.view]
        return seen & (np.bincount(self.obs.track[seen], minlength=self.obs.num_tracks) >= 2)[self.obs.track]

    def rays(self, o: NDArray) -> NDArray:
        """Undistorted normalised image points [n, 2] of observations o."""
        k = self.intrinsics[self.obs.view[o]]
        return undistort((self.obs.xy[o] - k[:, 2:4]) / k[:, :2], k[:, 4], k[:, 5])

    def residual_px(self, o: NDArray) -> NDArray:
        """Reprojection error [n] of observations o; inf behind the camera, nan without a point or a pose."""
        v = self.obs.view[o]
        return reprojection_px(self.pose[v], self.intrinsics[v], self.points[self.obs.track[o]], self.obs.xy[o])

    def centre(self) -> NDArray:
        """Camera centres [V, 3]."""
        return camera_centres(self.pose)

    # ---- growing -----------------------------------------------------------------------------------------------

    def start_pair(self, a: int, b: int) -> bool:
        """Pose two views from their common tracks (five-point RANSAC) and triangulate; where depth is known, pose the
        second from the points of the first."""
        if (self.obs.depth_weight[self.of_view(a)] > 0).sum() >= self.config.min_pose_inliers:
            return self._start_from_depth(a, b)
        oa, ob = common(self, a, b)
        if len(oa) < self.config.min_pose_inliers:
            return False
        ra, rb = self.rays(oa), self.rays(ob)
        f = self.intrinsics[a, 0]
        camera = {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [f, 0, 0]}
        rel, info = poselib.estimate_relative_pose(
            ra * f, rb * f, camera, camera, {"max_epipolar_error": self.config.inlier_px * self.px / 2, "seed": 0}, {}
        )
        if info["num_inliers"] < self.config.min_pose_inliers:
            return False
        self.pose[a] = np.eye(4)
        self.pose[b] = np.eye(4)
        self.pose[b, :3] = rel.Rt
        self.registered[[a, b]] = True
        self.triangulate()
        return int(self.has_point.sum()) >= self.config.min_pose_inliers

    def _start_from_depth(self, a: int, b: int) -> bool:
        self.in_depth_unit = True
        self.pose[a] = np.eye(4)
        self.registered[a] = True
        o = self.of_view(a)
        o = o[self.obs.depth_weight[o] > 0]
        self.points[self.obs.track[o]] = self._unprojected(o)
        self.inlier[o] = True
        if not self.resect(b):
            return False
        self.triangulate(again=True)
        return int(self.has_point.sum()) >= self.config.min_pose_inliers

    def start_cameras(self, cam_from_world: NDArray) -> bool:
        """Begin with cameras [V, 4, 4] that something else found (NaN: unknown), in the unit of the depths, and points
        at these depths; then adjust, first gently."""
        self.in_depth_unit = True
        self.registered = np.isfinite(cam_from_world[:, 0, 0])
        self.pose[self.registered] = cam_from_world[self.registered]
        for looseness in (8.0, 4.0, 2.0, 1.0):
            limit = looseness * self.config.inlier_px
            self.triangulate(again=True, limit=limit)
            if self.bundle(iterations=10, loss_px=looseness) is None:
                return False
            self.select(limit)
        self.triangulate()
        weak = np.bincount(self.obs.view[self.inlier], minlength=self.obs.num_views) < self.config.min_pose_inliers
        self.pose[weak] = np.nan
        self.registered &= ~weak
        self.inlier &= self.registered[self.obs.view]
        return int(self.registered.sum()) >= 2

    def _unprojected(self, o: NDArray) -> NDArray:
        """World points [n, 3] of observations o at their known depths."""
        v = self.obs.view[o]
        rays = np.concatenate([self.rays(o), np.ones((len(o), 1))], 1)
        in_camera = rays * np.exp(self.obs.log_depth[o])[:, None] - self.pose[v, :3, 3]
        return (np.swapaxes(self.pose[v, :3, :3], 1, 2) @ in_camera[..., None])[..., 0]

    def triangulate(self, *, again: bool = False, limit: float | None = None) -> None:
        """Points for tracks seen by two or more registered views; `again` also for those that have one.

        Weighted midpoint of the rays, the worst ray left out while it disagrees, then the inliers of every track. Where
        the rays leave the distance open, known depths give it.
        """
        limit_px = (limit or self.config.inlier_px) * self.px
        obs = self.obs
        if self.turning:
            self._directions(limit_px)
            return
        use = self.registered[obs.view] & (again | ~self.has_point[obs.track])
        o = np.flatnonzero(use)
        o = o[np.bincount(obs.track[o], minlength=obs.num_tracks)[obs.track[o]] >= 2]
        if not len(o):
            return
        tracks, t = np.unique(obs.track[o], return_inverse=True)
        v = obs.view[o]
        rays = np.concatenate([self.rays(o), np.ones((len(o), 1))], 1)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        d = (np.swapaxes(self.pose[v, :3, :3], 1, 2) @ rays[..., None])[..., 0]
        c = self.centre()[v]
        keep = np.ones(len(o), bool)
        first = np.searchsorted(t, np.arange(len(tracks)))
        points = np.full((len(tracks), 3), np.nan)
        weight = np.ones(len(o))
        for attempt in range(5):
            m = np.eye(3) - d[:, :, None] * d[:, None, :]
            m *= (weight * keep)[:, None, None]
            a = np.add.reduceat(m, first, axis=0)
            b = np.add.reduceat((m @ c[..., None])[..., 0], first, axis=0)
            a += 1e-12 * np.trace(a, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-300 * np.eye(3)
            points = np.linalg.solve(a, b[..., None])[..., 0]
            self.points[tracks] = points
            weight = 1 / np.maximum(((points[t] - c) ** 2).sum(1), 1e-12)
            if attempt == 0:
                continue  # the first solution weighs near and far views alike
            error = np.nan_to_num(self.residual_px(o), nan=np.inf)
            worst = np.maximum.reduceat(np.where(keep, error, 0), first)
            drop = keep & (error >= worst[t]) & (worst[t] > limit_px) & (np.add.reduceat(keep, first)[t] > 2)
            if not drop.any():
                break
            keep &= ~drop
        error = np.nan_to_num(self.residual_px(o), nan=np.inf)
        good = error < limit_px
        self.inlier[o] = good
        angle = self._angle(d, good, first, t)
        bad = (np.add.reduceat(good, first) < 2) | (angle < np.radians(self.config.min_angle_deg))
        self.points[tracks[bad]] = np.nan
        self.inlier[o[bad[t]]] = False
        if obs.has_depth and not self.in_depth_unit:
            self._take_depth_unit()
        if self.in_depth_unit:
            weight = obs.depth_weight[o] * bad[t]
            total = np.add.reduceat(weight, first)
            mean = (
                np.add.reduceat(self._unprojected(o) * weight[:, None], first, axis=0)
                / np.maximum(total, 1e-12)[:, None]
            )
            deep = total > 0
            self.points[tracks[deep]] = mean[deep]
            good = deep[t] & (np.nan_to_num(self.residual_px(o), nan=np.inf) < limit_px)
            lost = deep & (np.add.reduceat(good, first) < 2)
            self.inlier[o[deep[t]]] = (good & ~lost[t])[deep[t]]
            self.points[tracks[lost]] = np.nan

    def _take_depth_unit(self) -> None:
        """Scale the map to the known depths, where enough of what it has seen so far has one."""
        _, ratio = self._depth_ratios()
        if len(ratio) >= self.config.min_pose_inliers and not self.fixed:
            scale = float(np.exp(np.median(ratio)))
            self.points *= scale
            self.pose[:, :3, 3] *= scale
            self.in_depth_unit = True

    def depth_wander(self) -> float:
        """Range, from 5 to 95 % of the views, of the median log ratio of known depths to the map's; 0 without depths.

        A zoom that is taken for a dolly shows here: the map's depths change where the known ones do not.
        """
        view, ratio = self._depth_ratios()
        views = np.flatnonzero(np.bincount(view, minlength=self.obs.num_views) >= self.config.min_pose_inliers)
        medians = [np.median(ratio[view == v]) for v in views]
        return float(np.quantile(medians, 0.95) - np.quantile(medians, 0.05)) if medians else 0.0

    def _depth_ratios(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """View and log of known depth by the map's own [n], of the inliers that have both."""
        obs = self.obs
        o = np.flatnonzero(self.inlier & self.registered[obs.view] & (obs.depth_weight > 0))
        v = obs.view[o]
        depth = (self.pose[v, 2, :3] * self.points[obs.track[o]]).sum(1) + self.pose[v, 2, 3]
        known = depth > 0
        return v[known], obs.log_depth[o[known]] - np.log(depth[known])

    def _directions(self, limit_px: float) -> None:
        """For cameras in one place: the mean direction of every track's rays, those left out that disagree."""
        obs = self.obs
        o = np.flatnonzero(self.registered[obs.view])
        rays = np.concatenate([self.rays(o), np.ones((len(o), 1))], 1)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        d = (np.swapaxes(self.pose[obs.view[o], :3, :3], 1, 2) @ rays[..., None])[..., 0]
        keep = np.ones(len(o), bool)
        error = np.zeros(len(o))
        for _ in range(3):
            total = np.stack([np.bincount(obs.track[o], d[:, c] * keep, obs.num_tracks) for c in range(3)], 1)
            count = np.bincount(obs.track[o], keep, obs.num_tracks)
            self.points = np.where(
                count[:, None] >= 2, total / np.maximum(np.linalg.norm(total, axis=1), 1e-12)[:, None], np.nan
            )
            error = np.nan_to_num(self.residual_px(o), nan=np.inf)
            keep = error < 2 * limit_px
        self.inlier[:] = False
        self.inlier[o] = error < limit_px
        lost = np.bincount(obs.track[self.inlier], minlength=obs.num_tracks) < 2
        self.points[lost] = np.nan
        self.inlier &= ~lost[obs.track]

    def copy(self, *, per_view: bool) -> Map:
        """The same map, to try something on."""
        other = Map(self.obs, self.config, replace(self.setting, per_view=per_view), 1.0)
        for name in ("intrinsics", "pose", "registered", "points", "inlier", "aligned", "label"):
            setattr(other, name, getattr(self, name).copy())
        other.free_lens, other.turning = self.free_lens, self.turning
        other.fixed, other.in_depth_unit = self.fixed, self.in_depth_unit
        return other

    def _angle(self, d: NDArray, good: NDArray, first: NDArray, t: NDArray) -> NDArray:
        """Widest angle (rad) between the first good ray of each track and its others."""
        at = np.where(good, np.arange(len(d)), len(d))
        lead = np.minimum.reduceat(at, first)
        lead = np.where(lead == len(d), first, lead)
        cosine = np.clip((d * d[lead[t]]).sum(1), -1, 1)
        return np.arccos(np.minimum.reduceat(np.where(good, cosine, 1.0), first))

    def visible(self) -> NDArray[np.int64]:
        """[V] how many points each view sees."""
        seen = self.has_point[self.obs.track]
        return np.bincount(self.obs.view[seen], minlength=self.obs.num_views)

    def resect(self, v: int) -> bool:
        """Pose one view from the points it sees."""
        o = self.of_view(v)
        o = o[self.has_point[self.obs.track[o]]]
        if len(o) < self.config.min_pose_inliers:
            return False
        if self.setting.per_view:
            near = np.flatnonzero(self.registered)
            near = near[np.argmin(np.abs(near - v))]
            self.intrinsics[v] = self.intrinsics[near]
            if self.setting.expected is not None and self.setting.given is None:
                self.intrinsics[v, :2] *= self.setting.expected[v] / self.setting.expected[near]
        k = self.intrinsics[v]
        camera = {"model": "PINHOLE", "width": 0, "height": 0, "params": [k[0], k[1], 0, 0]}
        px = self.config.inlier_px * self.px
        found, info = poselib.estimate_absolute_pose(
            self.rays(o) * k[:2], self.points[self.obs.track[o]], camera, {"max_reproj_error": 1.5 * px, "seed": 0}, {}
        )
        count = info["num_inliers"]
        if count < self.config.min_pose_inliers or count < self.config.min_pose_ratio * len(o):
            return False
        self.pose[v] = np.eye(4)
        self.pose[v, :3] = found.Rt
        self.registered[v] = True
        self.inlier[o] = np.array(info["inliers"], bool)
        return True

    def bundle(
        self,
        views: NDArray | None = None,
        *,
        iterations: int = 10,
        loss_px: float = 1.0,
        tolerance: float = 1e-4,
        covariance: bool = False,
    ) -> Adjusted | None:
        """Adjust all registered views, or only `views` with the others and the intrinsics they share held still."""
        obs = self.obs
        o = np.flatnonzero(self.inlier & self.registered[obs.view])
        free = np.ones(obs.num_views, bool)
        if views is not None:
            free[:] = False
            free[views] = True
            touched = np.zeros(obs.num_tracks, bool)
            touched[obs.track[o[free[obs.view[o]]]]] = True
            o = o[touched[obs.track[o]]]
        if len(o) < 20:
            return None
        view_ids, ov = np.unique(obs.view[o], return_inverse=True)
        track_ids, ot = np.unique(obs.track[o], return_inverse=True)
        shared = not self.setting.per_view
        names: set[str] = set()
        smooth = step = prior = None
        if self.setting.given is None and (views is None or not shared):
            names = {"f"}
            if not shared:
                smooth = self._smoothness(view_ids)
                if smooth is None:  # photographs: each focal length near the common one
                    log_f = np.log(self.intrinsics[view_ids, 0])
                    prior = (np.full(len(view_ids), np.median(log_f)), np.full(len(view_ids), 0.1))
        if names and prior is None and self.setting.expected is not None:
            prior = self._expected_focal(view_ids)
            if smooth is not None:  # how it changes is known better than how long it is
                step = np.diff(np.log(self.setting.expected[view_ids]))
                smooth = smooth * self.config.smooth_expected
        lens = self.free_lens and views is None and self.setting.given is None
        if lens:
            names |= {"cx", "cy", "k1", "k2"}
        deep = self.in_depth_unit and not self.turning
        fixed = ~free[view_ids]
        if views is None:
            fixed[0] = True
        if self.fixed:
            fixed[:] = True
        result = adjust(
            Bundle(
                cam_from_world=self.pose[view_ids],
                points=self.points[track_ids],
                intrinsics=self.intrinsics[view_ids[:1]] if shared else self.intrinsics[view_ids],
                view_group=np.zeros(len(view_ids), np.int64) if shared else np.arange(len(view_ids)),
                obs_view=ov,
                obs_point=ot,
                obs_xy=obs.xy[o],
                obs_weight=None,
                obs_log_depth=obs.log_depth[o] if deep else None,
                obs_depth_weight=obs.depth_weight[o] if deep else None,
            ),
            BundleConfig(
                max_iterations=iterations,
                loss="cauchy",
                loss_px=loss_px * self.px,
                depth_loss=3 * loss_px,  # wide while the map grows: what it still gets wrong is more than noise
                cost_tolerance=tolerance,
            ),
            free_intrinsics=frozenset(names),
            tied_intrinsics=frozenset(names - {"f"}) if not shared else frozenset(),
            fixed_views=fixed,
            fixed_translation=self.turning,
            log_focal_smooth=smooth,
            log_focal_step=step,
            log_focal_prior=prior,
            pp_prior=((obs.width - 1) / 2, (obs.height - 1) / 2, self.config.principal_sigma_px * self.px)
            if lens
            else None,
            distortion_prior_sigma=self.config.distortion_sigma if lens else None,
            covariance=covariance,
        )
        self.pose[view_ids] = result.bundle.cam_from_world
        self.points[track_ids] = result.bundle.points
        if shared and views is None:
            self.intrinsics[:] = result.bundle.intrinsics[0]
        elif not shared:
            self.intrinsics[view_ids] = result.bundle.intrinsics
        if result.focal_sigma is not None and names:
            self.focal_sigma[view_ids] = result.focal_sigma
        return result

    def _smoothness(self, view_ids: NDArray) -> NDArray | None:
        """Standard deviation of the change of log f between successive views."""
        if self.obs.time_s is None:
            return None
        dt = np.maximum(np.diff(self.obs.time_s[view_ids]), 1e-3)
        return self.config.smooth_log_focal * np.sqrt(dt)

    def _expected_focal(self, view_ids: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and standard deviation of log f as a network expects it, for every view or the one they share.

        In the cost pixels weigh as if their sigma were 1, so a deviation is widened by as much as theirs is smaller.
        The views' errors are one, so that together they weigh as one.
        """
        assert self.setting.expected is not None
        expected = np.log(self.setting.expected[view_ids])
        sigma = self.setting.expected_sigma / (self.config.noise_px * self.px)
        if not self.setting.per_view:
            return np.array([np.median(expected)]), np.array([sigma])
        return expected, np.full(len(expected), sigma * np.sqrt(len(expected)))

    def select(self, limit: float) -> None:
        """Take as inliers the observations within `limit` px of diagonal 800; drop points left with one.

        Once observations have been aligned, only the aligned ones count. Where this leaves a few views with too little
        to hold them, these keep their best, up to `inlier_px`; where it leaves many, the map is no good.
        """
        obs, enough = self.obs, self.config.min_pose_inliers
        error = self.residual_px(np.arange(len(obs.view)))
        self.inlier = (error < limit * self.px) & self.aligned
        weak = self.registered & (np.bincount(obs.view[self.inlier], minlength=obs.num_views) < enough)
        for v in np.flatnonzero(weak) if weak.sum() <= 0.2 * self.registered.sum() else ():
            o = self.of_view(int(v))
            o = o[error[o] < self.config.inlier_px * self.px]
            self.inlier[o[np.argsort(error[o], kind="stable")[:enough]]] = True
        lost = self.has_point & (np.bincount(obs.track[self.inlier], minlength=obs.num_tracks) < 2)
        self.points[lost] = np.nan
        self.inlier &= ~lost[obs.track]

    def grow(self, max_views: int | None = None) -> None:
        """Add views until none is left that sees enough points, adjusting on the way."""
        grown_at = int(self.registered.sum())
        while max_views is None or self.registered.sum() < max_views:
            seen = self.visible()
            seen[self.registered] = 0
            seen[seen <= self.failed_at] = 0
            best = int(seen.max())
            if best < self.config.min_pose_inliers:
                break
            batch = [
                v
                for v in np.argsort(-seen, kind="stable")[:3]
                if seen[v] >= max(0.8 * best, self.config.min_pose_inliers)
            ]
            added = []
            for v in batch:
                if self.resect(int(v)):
                    added.append(int(v))
                else:
                    self.failed_at[v] = seen[v]
            if not added:
                continue
            self.triangulate()
            count = int(self.registered.sum())
            if count < 12 or count >= 1.25 * grown_at:
                self.adjust_all(iterations=8 if count >= 12 else 6)
                grown_at = count
            else:
                self.bundle(self._neighbourhood(added), iterations=5)
        self.adjust_all()

    def adjust_all(self, iterations: int = 15) -> None:
        self.bundle(iterations=iterations)
        self.select(self.config.inlier_px)
        self.triangulate()

    def polish(self, images: list[NDArray[np.uint8]], *, rounds: int) -> None:
        """Free the lens, then align all observations by their pixels and adjust, `rounds` times."""
        self.free_lens = True
        self.bundle(iterations=12)
        for k in range(rounds):
            self.align(images)
            self.select(2 * self.config.final_px)
            self.bundle(iterations=15, loss_px=0.5)
            self.select(self.config.final_px)
            last = k == rounds - 1
            self.bundle(iterations=20, loss_px=0.3, tolerance=1e-5 if last else 1e-4, covariance=last)

    def align(self, images: list[NDArray[np.uint8]]) -> None:
        """Sub-pixel positions for the observations of all points."""
        obs = self.obs
        near = self.residual_px(np.arange(len(obs.view))) < 1.5 * self.config.inlier_px * self.px
        o = np.flatnonzero(near & self.has_point[obs.track])
        xy, correlation = refine_observations(
            images,
            view=obs.view[o],
            track=obs.track[o],
            xy=obs.xy[o],
            points=self.points,
            cam_from_world=self.pose,
            intrinsics=self.intrinsics,
            reference=reference_observations(obs.view[o], obs.track[o], self.points, self.pose),
            config=self.config.refine,
        )
        moved = obs.xy.copy()
        moved[o] = xy
        self.obs = replace(obs, xy=moved)
        self.aligned = np.zeros(len(obs.view), bool)
        self.aligned[o] = np.isfinite(correlation)

    def look_again(self, images: list[NDArray[np.uint8]]) -> int:
        """Find points in views that should show them but where no track saw them; returns how many were found.

        A track ends where a patch was lost for one frame. The map knows where the point must be afterwards, and what
        its patch should look like there; such late observations tie together what drift has taken apart. Of the many
        places every `again_every`-th is looked at.
        """
        obs, config = self.obs, self.config
        good = np.flatnonzero(self.inlier & self.registered[obs.view])
        tracks = np.flatnonzero(np.bincount(obs.track[good], minlength=obs.num_tracks) >= 3)
        if not len(tracks):
            return 0
        first = np.zeros(obs.num_tracks, np.int64)  # the reference observation of each track
        first[obs.track[good]] = good[reference_observations(obs.view[good], obs.track[good], self.points, self.pose)]
        first = first[tracks]
        seen = np.zeros((obs.num_views, obs.num_tracks), bool)
        seen[obs.view, obs.track] = True
        points, centre, home = self.points[tracks], self.centre(), obs.view[first]
        ray_home = points - centre[home]
        far_home = np.linalg.norm(ray_home, axis=1)
        found_view, found_rank, found_xy = [], [], []
        for v in np.flatnonzero(self.registered):
            xy, depth = project(self.pose[v], self.intrinsics[v], points)
            ray = points - centre[v]
            far = np.linalg.norm(ray, axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                cosine = (ray * ray_home).sum(1) / (far * far_home)
                size = np.abs(np.log(self.intrinsics[v, 0] / self.intrinsics[home, 0] * far_home / far))
                inside = ((xy > 8) & (xy < [obs.width - 9, obs.height - 9])).all(1)
                alike = (cosine > np.cos(np.radians(config.again_deg))) & (size < np.log(config.again_size))
            o = np.flatnonzero(
                inside & alike & (depth > 0) & ~seen[v, tracks] & ((v + tracks) % config.again_every == 0)
            )
            found_view.append(np.full(len(o), v))
            found_rank.append(o)
            found_xy.append(xy[o])
        rank = np.concatenate(found_rank)
        view = np.concatenate([home, *found_view])
        track = np.concatenate([tracks, tracks[rank]])
        xy, correlation = refine_observations(
            images,
            view=view,
            track=track,
            xy=np.concatenate([obs.xy[first], *found_xy]),
            points=self.points,
            cam_from_world=self.pose,
            intrinsics=self.intrinsics,
            reference=np.concatenate([np.arange(len(tracks)), rank]),
            config=config.refine,
        )
        new = len(tracks) + np.flatnonzero(correlation[len(tracks) :] >= config.again_correlation)
        view, track = np.concatenate([obs.view, view[new]]), np.concatenate([obs.track, track[new]])
        order = np.lexsort((view, track))
        none = np.zeros(len(new))
        self.obs = replace(
            obs,
            view=view[order],
            track=track[order],
            xy=np.concatenate([obs.xy, xy[new]])[order],
            log_depth=np.concatenate([obs.log_depth, none])[order],
            depth_weight=np.concatenate([obs.depth_weight, none])[order],
        )
        self.inlier = np.concatenate([self.inlier, np.ones(len(new), bool)])[order]
        self.aligned = np.concatenate([self.aligned, np.ones(len(new), bool)])[order]
        self._index()
        return len(new)

    def join_tracks(self, label: NDArray[np.int64]) -> None:
        """Give tracks new numbers (`label` [num_tracks], from `merge_tracks`); joined tracks get one point anew."""
        obs = self.obs
        track = label[obs.track]
        order = np.lexsort((obs.view, track))
        joined = np.bincount(label, minlength=obs.num_tracks) > 1
        self.obs = replace(
            obs,
            view=obs.view[order],
            track=track[order],
            xy=obs.xy[order],
            log_depth=obs.log_depth[order],
            depth_weight=obs.depth_weight[order],
        )
        self.inlier, self.aligned = self.inlier[order], self.aligned[order]
        self.label = label[self.label]
        self._index()
        self.points[joined] = np.nan
        self.points[label != np.arange(obs.num_tracks)] = np.nan

    def _neighbourhood(self, added: list[int], count: int = 6) -> NDArray[np.int64]:
        """The added views and those that share most points with them."""
        obs = self.obs
        mine = np.zeros(obs.num_tracks, bool)
        for v in added:
            o = self.of_view(v)
            mine[obs.track[o[self.inlier[o]]]] = True
        share = np.bincount(obs.view[self.inlier & mine[obs.track]], minlength=obs.num_views)
        share[added] = 0
        return np.unique(np.concatenate([np.array(added), np.argsort(-share, kind="stable")[:count]]))

    def score(self) -> float:
        """How much the map explains: inlier observations, each worth less the worse it fits."""
        error = self.residual_px(np.flatnonzero(self.inlier)) / self.px
        return float((1 / (1 + error**2)).sum())


def common(m: Map, a: int, b: int) -> tuple[NDArray, NDArray]:
    """Observations of the tracks that two views share."""
    oa, ob = m.of_view(a), m.of_view(b)
    _, ia, ib = np.intersect1d(m.obs.track[oa], m.obs.track[ob], assume_unique=True, return_indices=True)
    return oa[ia], ob[ib]


def reconstruct(
    obs: Observations, config: MapperConfig, intrinsics: Intrinsics, focals: list[float], pairs: list[tuple[int, int]]
) -> Map | None:
    """Grow small maps from several focal lengths and starting pairs, and finish the best.

    Args:
        focals: candidate focal lengths in pixels (one if it is known).
        pairs: starting pairs, best first.
    """

    def start(pair: tuple[int, int], focal: float) -> Map | None:
        m = Map(obs, config, intrinsics, focal)
        if not m.start_pair(*pair):
            return None
        m.bundle(iterations=10)
        m.select(config.inlier_px)
        m.triangulate()
        m.grow(max_views=min(8, obs.num_views))
        return m

    maps = [m for pair in pairs[:1] for focal in focals if (m := start(pair, focal))]
    known = [m.intrinsics[0, 0] for m in sorted(maps, key=Map.score)[-1:]] or focals
    maps += [m for pair in pairs[1:] for focal in known if (m := start(pair, focal))]
    if not maps:
        return None
    best = max(maps, key=Map.score)
    best.grow()
    return best
