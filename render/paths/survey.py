"""What a scene's capture allows a camera: where its training cameras stood, what is free, what is seen from where.

Space is free only where a training camera has been or has looked through: rays are cast from the cameras to the
Gaussians they see and end at the first occupied cell. Space that no ray crossed is unknown, and unknown is not free.

A cell's accumulated opacity is the sum over Gaussians of o times the share of their volume in the cell, times their
area (2 pi of the two larger standard deviations) in units of the cell's face. It is what a ray that crosses the cell
meets, whatever size the Gaussians have: small ones add up, and a wall drawn by one large disc is as solid as a wall
drawn by a thousand.

Scenes without training cameras get cameras derived from the Gaussians, looking at the scene from around it or about
from within it. They take the training cameras' place everywhere, and `Survey.anchors` says so: the "captured" zone
is then a supposition, and quality away from the real captures is not known. What they see nothing in counts as free.
An object alone before an empty background fails the published limits on empty tiles and blank frames: loosen them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_closing, distance_transform_edt
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from ...geometry import invert_pose, pose, rotation_from_quaternion
from ...records import LongtakeError
from ..gaussians import Gaussians
from .motion import unit, upright
from .record import NoPath

Anchors = Literal["training", "derived_outside", "derived_inside"]

CELLS_PER_RADIUS = 64
OCCUPIED = 0.1  # accumulated opacity from which a cell is solid
MARGIN = 0.05  # distance kept from solid cells, in scene radii
BODY = 0.1  # distance around a training camera that it and who held it took up, hence free, in scene radii
ZONE = 0.35  # distance from the nearest training camera that counts as captured, in scene radii
HEIGHT_SLACK = 0.1  # of the range of training heights, above and below it
LEAST_HEIGHT_SLACK = 0.05  # scene radii: a tripod at one height still has a hair's breadth
_CENTRES = 20_000  # subsampled Gaussians that coverage and sight are judged by
_SOLID = 0.3  # opacity from which a Gaussian counts as surface there
_BINS = 24  # of a view's coarse depth map, each way
_MOST_CELLS = 16_000_000  # a larger grid gets larger cells
_RAYS = 150_000
_FORWARD_FACING = 0.9  # mean resultant length of the look directions from which a capture faces one way
_ROUTE_STRIDE = 3  # cells between the places that routes are searched over


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What one view sees of the subsampled Gaussians."""

    count: int  # centres inside the picture
    points: NDArray[np.float64]  # [K, 3] the nearest centre of each bin of the picture, world
    depth: NDArray[np.float64]  # [K] theirs, along the optical axis


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """Scene statistics; made by `survey`. World frame and units are the scene's own."""

    anchors: Anchors
    world_from_cam: NDArray[np.float64]  # [N, 4, 4] training (or derived) cameras
    intrinsics: NDArray[np.float64]  # [N, 4] fx, fy, cx, cy; pixel centres at integer coordinates
    sizes: NDArray[np.int64]  # [N, 2] width, height of each camera's picture
    usable: NDArray[np.int64]  # [M] cameras that stand in free space: paths start at one of them
    centroid: NDArray[np.float64]  # [3] mean of the camera positions
    radius: float  # median distance of cameras to it, but at least 5 % of the median depth (tripod captures)
    up: NDArray[np.float64]  # [3] unit
    axes: NDArray[np.float64]  # [3, 3] rows: principal horizontal directions of the camera positions, and up
    height_range: tuple[float, float]  # lowest and highest camera along up, from the centroid
    surface_distance: float  # median over cameras of the distance to the nearest solid Gaussian's centre
    depth: float  # median depth that the cameras see
    scene_centre: NDArray[np.float64]  # [3] median of the solid Gaussians
    forward_facing: bool
    focus: NDArray[np.float64] | None  # [3] where the cameras' axes meet, None where they do not
    centres: NDArray[np.float64]  # [P, 3] subsampled solid Gaussians
    training_count: float  # median over cameras of the number of `centres` they see
    depth_maps: NDArray[np.float32]  # [N, 24, 24] nearest centre's depth in each bin of the picture, inf where none
    origin: NDArray[np.float64]  # [3] corner of the grid
    cell: float  # edge of a cell
    opacity: NDArray[np.float32]  # [X, Y, Z] accumulated
    seen: NDArray[np.bool_]  # [X, Y, Z] a ray from a camera passed through
    clearance_map: NDArray[np.float32]  # [X, Y, Z] distance to the nearest solid cell, 0 in it and where unknown
    slack: NDArray[np.float32]  # [X, Y, Z] how deep inside the allowed space a cell lies; at most 0 outside

    # ---- places ------------------------------------------------------------------------------------------------

    def height(self, points: NDArray) -> NDArray[np.float64]:
        """Height [...] of points [..., 3] along up, from the centroid."""
        return (points - self.centroid) @ self.up

    @property
    def height_limits(self) -> tuple[float, float]:
        """The heights a path may have."""
        low, high = self.height_range
        slack = max(HEIGHT_SLACK * (high - low), LEAST_HEIGHT_SLACK * self.radius)
        return low - slack, high + slack

    def distance_to_cameras(self, points: NDArray) -> NDArray[np.float64]:
        """Distance [K] of points [K, 3] to the nearest training camera."""
        return self._tree.query(points)[0]

    def clearance(self, points: NDArray) -> NDArray[np.float64]:
        """Distance [K] of points [K, 3] to the nearest solid cell, to about a cell; 0 where solid or unknown."""
        return self._lookup(self.clearance_map, points, 0.0)

    def solid(self, points: NDArray) -> NDArray[np.bool_]:
        """Whether points [K, 3] lie in solid cells; False outside the grid."""
        return self._lookup(self.opacity, points, 0.0) >= OCCUPIED

    def cells(self, points: NDArray) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Accumulated opacity [...] at points [..., 3] and whether a ray passed there; 0 and False off the grid."""
        flat = points.reshape(-1, 3)
        opacity, seen = self._lookup(self.opacity, flat, 0.0), self._lookup(self.seen, flat, 0.0) > 0
        return opacity.reshape(points.shape[:-1]), seen.reshape(points.shape[:-1])

    def room(self, points: NDArray) -> NDArray[np.float64]:
        """How far points [K, 3] are inside the allowed space, to about a cell; not positive outside."""
        return self._lookup(self.slack, points, -np.inf)

    def clamp(self, points: NDArray) -> NDArray[np.float64]:
        """Points [K, 3] bent into the captured zone: unchanged inside the box of the cameras along `axes`, pressed
        smoothly together beyond it, never past 0.3 radii outside nor past the height limits."""
        local = (points - self.centroid) @ self.axes.T
        cameras = (self.world_from_cam[:, :3, 3] - self.centroid) @ self.axes.T
        low, high = cameras.min(0), cameras.max(0)
        bottom, top = self.height_limits
        knee = np.array([0.3 * self.radius, 0.3 * self.radius, 0.95 * min(low[2] - bottom, top - high[2])])
        inside = np.clip(local, low, high)
        return self.centroid + (inside + knee * np.tanh((local - inside) / knee)) @ self.axes

    def reach(self, start: NDArray, direction: NDArray, most: float) -> float:
        """How far one may go from start [3] along the unit vector before the allowed space ends, at most `most`."""
        along = np.arange(1, max(int(most / (self.cell / 2)), 1) + 1) * self.cell / 2
        blocked = self.room(start + along[:, None] * direction) <= 0
        return float(along[blocked.argmax()] - self.cell / 2) if blocked.any() else most

    def route(self, start: NDArray, stop: NDArray) -> NDArray[np.float64]:
        """The shortest free way between two places: [K, 3], a few cells apart, that shuns walls.

        Raises:
            NoPath: a place is not near free space, or free space does not join them.
        """
        nodes, graph, tree = self._graph
        off, nearest = tree.query(np.stack([start, stop]))
        if not len(nodes) or off.max() > 3 * _ROUTE_STRIDE * self.cell:
            raise NoPath("no_route", "a camera stands too far from free space")
        i, j = (int(n) for n in np.asarray(nearest))
        length, before = dijkstra(graph, indices=i, return_predecessors=True)
        if not np.isfinite(length[j]):
            raise NoPath("no_route", "free space does not join the two cameras")
        way = [j]
        while way[-1] != i:
            way.append(int(before[way[-1]]))
        return np.concatenate([start[None], nodes[way[::-1]][1:-1], stop[None]])

    # ---- views -------------------------------------------------------------------------------------------------

    def sight(self, world_from_cam: NDArray, intrinsics: NDArray, width: int, height: int) -> Sight:
        """What the view [4, 4], [4] of width x height pixels sees of the subsampled Gaussians."""
        rows, z, bins = _project(self.centres, world_from_cam, intrinsics, width, height)
        order = np.lexsort((z, bins))
        first = order[np.unique(bins[order], return_index=True)[1]]
        return Sight(count=len(rows), points=self.centres[rows[first]], depth=z[first])

    def depth_ahead(self, camera: int) -> float:
        """Median depth in the middle ninth of a training camera's picture; the whole scene's where nothing is there."""
        third = slice(_BINS // 3, 2 * _BINS // 3)
        middle = self.depth_maps[camera, third, third]
        middle = middle[np.isfinite(middle)]
        return float(np.median(middle)) if middle.size else self.depth

    def sees(self, camera: int, points: NDArray) -> NDArray[np.bool_]:
        """Which points [K, 3] a training camera has in its picture, not hidden behind what it sees there."""
        width, height = self.sizes[camera]
        rows, z, bins = _project(points, self.world_from_cam[camera], self.intrinsics[camera], width, height)
        out = np.zeros(len(points), bool)
        out[rows] = z <= 1.15 * self.depth_maps[camera].reshape(-1)[bins]
        return out

    def local_view(self, points: NDArray) -> NDArray[np.float64]:
        """[K, 3] mean look direction of the training cameras around each of the points [K, 3]: short where they
        disagree. Cameras count by a Gaussian of a quarter radius, the nearest one always."""
        squared = cdist(points, self.world_from_cam[:, :3, 3], "sqeuclidean")
        squared -= squared.min(1, keepdims=True)
        weight = np.exp(-0.5 * squared / (0.25 * self.radius) ** 2)
        return weight @ self.world_from_cam[:, :3, 2] / weight.sum(1, keepdims=True)

    # ---- inside ------------------------------------------------------------------------------------------------

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.world_from_cam[:, :3, 3])

    @cached_property
    def _graph(self) -> tuple[NDArray[np.float64], csr_array, KDTree]:
        """Allowed places every third cell, edges to their 26 neighbours; an edge near a wall costs up to twice."""
        coarse = self.slack[1::_ROUTE_STRIDE, 1::_ROUTE_STRIDE, 1::_ROUTE_STRIDE]
        ids = np.full(coarse.shape, -1)
        free = coarse > 0
        ids[free] = np.arange(free.sum())
        nodes = self.origin + (np.argwhere(free) * _ROUTE_STRIDE + 1.5) * self.cell
        cost = 1 + 1 / (1 + coarse[free] / (MARGIN * self.radius))
        rows, cols, weights = [], [], []
        for d in np.ndindex(3, 3, 3):
            step = np.array(d) - 1
            if tuple(step) <= (0, 0, 0):
                continue  # each pair once
            a = tuple(slice(max(-s, 0), min(n, n - s)) for s, n in zip(step, ids.shape, strict=True))
            b = tuple(slice(max(s, 0), min(n, n + s)) for s, n in zip(step, ids.shape, strict=True))
            i, j = ids[a].ravel(), ids[b].ravel()
            both = (i >= 0) & (j >= 0)
            rows.append(i[both])
            cols.append(j[both])
            weights.append(np.linalg.norm(step) * self.cell * _ROUTE_STRIDE * (cost[i[both]] + cost[j[both]]) / 2)
        i, j, w = np.concatenate(rows), np.concatenate(cols), np.concatenate(weights)
        n = len(nodes)
        graph = coo_array((np.r_[w, w], (np.r_[i, j], np.r_[j, i])), shape=(n, n)).tocsr()
        return nodes, graph, KDTree(nodes if n else np.zeros((1, 3)))

    def _lookup(self, grid: NDArray, points: NDArray, outside: float) -> NDArray:
        index = np.floor((points - self.origin) / self.cell).astype(np.int64)
        inside = ((index >= 0) & (index < grid.shape)).all(-1)
        out = np.full(len(points), outside, np.float64)
        out[inside] = grid[tuple(index[inside].T)]
        return out


def survey(
    scene: Gaussians,
    world_from_cam: NDArray,
    intrinsics: NDArray,
    sizes: ArrayLike,
    *,
    up: NDArray | None = None,
    anchors: Anchors = "training",
) -> Survey:
    """Scene statistics, free space and coarse views of a scene and the cameras it was captured with.

    Args:
        world_from_cam: [N, 4, 4] training cameras, axes x right, y down, z forward.
        intrinsics: [N, 4] fx, fy, cx, cy in pixels, pixel centres at integer coordinates.
        sizes: (width, height) of all pictures, or [N, 2].
        up: [3] where it is known; by default the mean of the cameras' -y axes.
        anchors: what the cameras are; `derive_cameras` makes the derived ones.

    Raises:
        LongtakeError: there is no camera or no solid Gaussian, the cameras have no common up, or none stands free.
    """
    world_from_cam, intrinsics = np.asarray(world_from_cam, np.float64), np.asarray(intrinsics, np.float64)
    n = len(world_from_cam)
    if n == 0:
        raise LongtakeError("survey: no cameras; derive some from the Gaussians with derive_cameras")
    if intrinsics.shape != (n, 4) or world_from_cam.shape != (n, 4, 4):
        raise LongtakeError(f"survey: cameras {world_from_cam.shape} and intrinsics {intrinsics.shape} do not match")
    sizes = np.broadcast_to(np.asarray(sizes, np.int64), (n, 2)).copy()
    up = _common_up(world_from_cam) if up is None else unit(np.asarray(up, np.float64))
    eye, forward = world_from_cam[:, :3, 3], world_from_cam[:, :3, 2]
    centroid = eye.mean(0)

    solid = scene.means[scene.opacities >= _SOLID].astype(np.float64)
    if len(solid) < 100:
        raise LongtakeError(f"survey: only {len(solid)} Gaussians have an opacity of {_SOLID} or more: nothing to see")
    rng = np.random.default_rng(0)
    centres = rng.permutation(solid)[:_CENTRES]
    depth_maps = np.full((n, _BINS * _BINS), np.inf, np.float32)
    counts = np.zeros(n)
    for i in range(n):
        rows, z, bins = _project(centres, world_from_cam[i], intrinsics[i], *sizes[i])
        counts[i] = len(rows)
        np.minimum.at(depth_maps[i], bins, z.astype(np.float32))
    known = np.isfinite(depth_maps)
    if not known.any():
        raise LongtakeError("survey: no camera sees a Gaussian: are the poses world_from_cam, in the scene's frame?")
    depth = float(np.median(depth_maps[known]))
    radius = max(float(np.median(np.linalg.norm(eye - centroid, axis=1))), 0.05 * depth)

    heights = (eye - centroid) @ up
    low, high = float(heights.min()), float(heights.max())
    cell, origin, shape = _grid(eye, radius)
    opacity = _accumulate(scene, origin, cell, shape)
    occupied = opacity >= OCCUPIED
    to_camera = _distance_to(eye, origin, cell, shape)
    seen = _carve(occupied, origin, cell, scene, world_from_cam, intrinsics, sizes, anchors != "training")
    seen |= to_camera <= BODY * radius
    seen &= ~occupied
    clearance = np.asarray(distance_transform_edt(~occupied), np.float32) * np.float32(cell)
    if not occupied.any():
        clearance = np.full(shape, np.inf, np.float32)
    grid_height = sum(
        (origin[k] + (np.arange(shape[k]) + 0.5) * cell - centroid[k]).reshape([-1 if j == k else 1 for j in range(3)])
        * up[k]
        for k in range(3)
    )
    hair = max(HEIGHT_SLACK * (high - low), LEAST_HEIGHT_SLACK * radius)
    slack = np.minimum(clearance - MARGIN * radius, 0.9 * ZONE * radius - to_camera)
    slack = np.minimum(slack, np.minimum(grid_height - (low - hair), high + hair - grid_height) - cell)
    slack = slack.astype(np.float32)
    slack[~seen] = -cell
    clearance[~seen] = 0

    index = tuple(np.floor((eye - origin) / cell).astype(int).T)
    usable = np.flatnonzero(clearance[index] >= MARGIN * radius)
    if not usable.size:
        raise LongtakeError(
            f"survey: none of {n} cameras stands {MARGIN * radius:.3g} or more from solid cells: are the cameras in "
            "the scene's frame and unit?"
        )
    resultant = float(np.linalg.norm(forward.mean(0)))
    return Survey(
        anchors=anchors,
        world_from_cam=world_from_cam,
        intrinsics=intrinsics,
        sizes=sizes,
        usable=usable,
        centroid=centroid,
        radius=radius,
        up=up,
        axes=_axes(eye, forward, up),
        height_range=(low, high),
        surface_distance=float(np.median(KDTree(solid[:: max(1, len(solid) // 200_000)]).query(eye)[0])),
        depth=depth,
        scene_centre=np.median(solid, axis=0),
        forward_facing=resultant >= _FORWARD_FACING,
        focus=_meeting_point(eye, forward),
        centres=centres,
        training_count=float(np.median(counts)),
        depth_maps=depth_maps.reshape(n, _BINS, _BINS),
        origin=origin,
        cell=cell,
        opacity=opacity,
        seen=seen,
        clearance_map=clearance,
        slack=slack,
    )


def derive_cameras(
    scene: Gaussians,
    where: Literal["outside", "inside"],
    *,
    up: ArrayLike = (0.0, -1.0, 0.0),
    width: int = 1280,
    height: int = 704,
    fov_x_deg: float = 70.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cameras for a scene that came without: world_from_cam [N, 4, 4] and intrinsics [N, 4].

    Geometry alone does not tell an object, to be seen from around it, from a room, to be seen from within: the caller
    says which. "outside": three rings at the distance from which the middle 80 % of the solid Gaussians fill the
    picture, looking at their centre. "inside": up to 40 places in the middle of the scene that keep a tenth of its
    size from every solid Gaussian, at half its height, six directions each.

    Args:
        up: the scene's up; -y, as in files whose y axis points down, unless something better is known.

    Raises:
        LongtakeError: nothing solid, or (inside) no place is free.
    """
    up = unit(np.asarray(up, np.float64))
    solid = scene.means[scene.opacities >= _SOLID].astype(np.float64)
    if len(solid) < 100:
        raise LongtakeError(f"derive_cameras: only {len(solid)} Gaussians have an opacity of {_SOLID} or more")
    centre = np.median(solid, axis=0)
    e1, e2 = _level_axes(up)
    rng = np.random.default_rng(0)
    if where == "outside":
        size = float(np.quantile(np.linalg.norm(solid - centre, axis=1), 0.8))
        narrow = np.arctan(np.tan(np.radians(fov_x_deg) / 2) * min(1.0, height / width))
        distance = size / np.sin(narrow)
        azimuth, elevation = np.meshgrid(np.radians(np.arange(0, 360, 10)), np.radians([5.0, 20.0, 35.0]))
        ring = np.cos(azimuth)[..., None] * e1 + np.sin(azimuth)[..., None] * e2
        eye = centre + distance * (np.cos(elevation)[..., None] * ring + np.sin(elevation)[..., None] * up)
        eye = eye.reshape(-1, 3)
        forward = centre - eye
    else:
        local = (solid - centre) @ np.stack([e1, e2, up]).T
        low, high = np.quantile(local, [0.05, 0.95], axis=0)
        places = low + (high - low) * rng.uniform([0.2, 0.2, 0.4], [0.8, 0.8, 0.6], (4000, 3))
        places = centre + places @ np.stack([e1, e2, up])
        free = places[KDTree(solid).query(places)[0] >= 0.1 * float(np.median(high - low))]
        if not len(free):
            raise LongtakeError("derive_cameras: no free place within the scene: an object is looked at from outside")
        eye = free[_spread(free, 40)]
        yaw = np.radians(np.arange(0, 360, 60))
        forward = np.tile(np.cos(yaw)[:, None] * e1 + np.sin(yaw)[:, None] * e2, (len(eye), 1))
        eye = np.repeat(eye, len(yaw), 0)
    focal = width / 2 / np.tan(np.radians(fov_x_deg) / 2)
    intrinsics = np.tile([focal, focal, (width - 1) / 2, (height - 1) / 2], (len(eye), 1))
    return pose(upright(forward, up), eye), intrinsics


# ---- statistics ------------------------------------------------------------------------------------------------------


def _common_up(world_from_cam: NDArray) -> NDArray[np.float64]:
    mean = -world_from_cam[:, :3, 1].mean(0)
    length = np.linalg.norm(mean)
    if length < 0.2:
        raise LongtakeError("survey: the cameras' upward axes point everywhere, so the scene has no up: give `up`")
    return mean / length


def _level_axes(up: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    e1 = unit(np.cross(up, np.eye(3)[np.abs(up).argmin()]))
    return e1, np.cross(up, e1)


def _axes(eye: NDArray, forward: NDArray, up: NDArray) -> NDArray[np.float64]:
    """Rows: the longer and the shorter horizontal direction of the camera positions, and up."""
    e1, e2 = _level_axes(up)
    flat = (eye - eye.mean(0)) @ np.stack([e1, e2], 1)
    if np.abs(flat).max() < 1e-12:
        flat = forward @ np.stack([e1, e2], 1)
    direction = np.linalg.svd(flat, full_matrices=False)[2][0]
    major = direction[0] * e1 + direction[1] * e2
    return np.stack([major, np.cross(up, major), up])


def _meeting_point(eye: NDArray, forward: NDArray) -> NDArray[np.float64] | None:
    """The point nearest to all optical axes, if it lies within 25 degrees of the axes of 80 % of the cameras."""
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # [N, 3, 3]
    total = across.sum(0)
    if len(eye) < 3 or np.linalg.cond(total) > 1e3:
        return None
    point = np.linalg.solve(total, (across @ eye[:, :, None])[..., 0].sum(0))
    facing = (unit(point - eye + 1e-12) * forward).sum(1) > np.cos(np.radians(25))
    return point if facing.mean() >= 0.8 else None


def _spread(points: NDArray, count: int) -> NDArray[np.int64]:
    """Indices of up to `count` points, each the farthest from those before it."""
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)


def _project(
    points: NDArray, world_from_cam: NDArray, intrinsics: NDArray, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Rows of the points inside the picture, their depth, and the bin (of 24 x 24) that each falls into."""
    cam_from_world = invert_pose(world_from_cam)
    local = points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    rows = np.flatnonzero(local[:, 2] > 1e-6)
    x, y, z = local[rows].T
    fx, fy, cx, cy = intrinsics
    u, v = (fx * x / z + cx + 0.5) / width, (fy * y / z + cy + 0.5) / height
    inside = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    bins = (v[inside] * _BINS).astype(np.int64) * _BINS + (u[inside] * _BINS).astype(np.int64)
    return rows[inside], z[inside], bins


# ---- the grid --------------------------------------------------------------------------------------------------------


def _grid(eye: NDArray, radius: float) -> tuple[float, NDArray[np.float64], tuple[int, int, int]]:
    """Cell, corner and shape of a grid that holds everything within the captured zone and its margin."""
    cell = radius / CELLS_PER_RADIUS
    reach = (ZONE + 2 * MARGIN) * radius
    extent = np.ptp(eye, axis=0) + 2 * reach
    cell = max(cell, float((np.prod(extent) / _MOST_CELLS) ** (1 / 3)))
    shape = np.ceil(extent / cell).astype(int)
    return cell, eye.min(0) - reach, (int(shape[0]), int(shape[1]), int(shape[2]))


_LEVELS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256])  # samples along an axis


def _accumulate(scene: Gaussians, origin: NDArray, cell: float, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Accumulated opacity of each cell: each Gaussian sampled over 2 sigmas, at most a cell between samples.

    Gaussians with a sigma over 64 cells are sampled 256 times an axis; the gaps that leaves are closed by the margin.
    """
    top = origin + cell * np.array(shape)
    reach = 2 * scene.scales.max(1)[:, None]
    near = ((scene.means + reach > origin) & (scene.means - reach < top)).all(1) & (scene.opacities > 1 / 255)
    rows = np.flatnonzero(near)
    scales = scene.scales[rows].astype(np.float64)
    order = np.argsort(-scales, axis=1)  # longest axis first
    scales = np.take_along_axis(scales, order, 1)
    axes = rotation_from_quaternion(scene.quaternions[rows].astype(np.float64))  # columns: the Gaussian's axes
    axes = np.take_along_axis(axes, order[:, None, :], 2)
    mass = scene.opacities[rows] * 2 * np.pi * scales[:, 0] * scales[:, 1] / cell**2
    want = np.searchsorted(_LEVELS, np.minimum(4 * scales / cell, _LEVELS[-1]))  # level of each axis
    while (big := _LEVELS[want].prod(1) > 2**18).any():  # thick and large: its density is low everywhere
        want[big] = np.maximum(want[big] - 1, 0)
    total = np.zeros(int(np.prod(shape)))
    key = want @ [len(_LEVELS) ** 2, len(_LEVELS), 1]
    by_key = np.argsort(key, kind="stable")
    for group in np.split(by_key, np.flatnonzero(np.diff(key[by_key])) + 1):
        if not group.size:
            continue
        offsets, weights = _samples(*_LEVELS[want[group[0]]])
        for part in np.array_split(group, int(np.ceil(len(group) * len(weights) / 2**21))):
            steps = axes[part] * scales[part, None, :]  # [G, 3, 3] columns of one sigma
            points = scene.means[rows[part], None] + offsets @ np.swapaxes(steps, 1, 2)  # [G, S, 3]
            index = np.floor((points - origin) / cell).astype(np.int64)
            inside = ((index >= 0) & (index < shape)).all(-1)
            np.add.at(total, np.ravel_multi_index(tuple(index[inside].T), shape), (mass[part, None] * weights)[inside])
    return total.reshape(shape).astype(np.float32)


def _samples(a: int, b: int, c: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offsets [a b c, 3] in sigmas over -2 .. 2 and their shares of the volume, which sum to 1."""
    lines = [(np.arange(n) + 0.5) / n * 4 - 2 for n in (a, b, c)]
    offsets = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 3)
    weights = np.exp(-0.5 * (offsets**2).sum(1))
    return offsets, weights / weights.sum()


def _distance_to(points: NDArray, origin: NDArray, cell: float, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Distance [X, Y, Z] from each cell to the nearest point, to about two cells: found on cells twice as large."""
    half = tuple(-(-n // 2) for n in shape)
    here = np.zeros(half, bool)
    here[tuple(np.floor((points - origin) / (2 * cell)).astype(int).T)] = True
    distance = np.asarray(distance_transform_edt(~here), np.float32) * np.float32(2 * cell)
    for axis in range(3):
        distance = distance.repeat(2, axis)
    return distance[: shape[0], : shape[1], : shape[2]]


def _carve(
    occupied: NDArray[np.bool_],
    origin: NDArray,
    cell: float,
    scene: Gaussians,
    world_from_cam: NDArray,
    intrinsics: NDArray,
    sizes: NDArray,
    through_empty: bool,
) -> NDArray[np.bool_]:
    """Cells crossed by rays from the cameras to Gaussians they see, each ray ending at the first occupied cell.

    through_empty: cast rays also where no Gaussian is, to the end of the grid.
    """
    rng = np.random.default_rng(1)
    targets = scene.means[rng.permutation(np.flatnonzero(scene.opacities >= _SOLID))[:60_000]].astype(np.float64)
    n = len(world_from_cam)
    chosen = np.unique(np.linspace(0, n - 1, min(n, 512)).round().astype(int))
    bins = int(np.clip(np.sqrt(_RAYS / len(chosen)), 24, 160))
    starts, ends = [], []
    for i in chosen:
        width, height = sizes[i]
        scaled = (intrinsics[i] + [0, 0, 0.5, 0.5]) / [width, height, width, height] * bins
        local = (targets - world_from_cam[i, :3, 3]) @ world_from_cam[i, :3, :3]
        front = np.flatnonzero(local[:, 2] > 1e-6)
        uv = local[front, :2] / local[front, 2:] * scaled[:2] + scaled[2:]
        inside = ((uv >= 0) & (uv < bins)).all(1)
        rows, uv = front[inside], uv[inside].astype(int)
        order = np.lexsort((local[rows, 2], uv[:, 1] * bins + uv[:, 0]))
        filled, nearest = np.unique((uv[:, 1] * bins + uv[:, 0])[order], return_index=True)
        ends.append(targets[rows[order[nearest]]])
        empty = np.zeros(0, int)
        if through_empty:
            empty = np.setdiff1d(np.arange(bins * bins), filled)
            slopes = (np.stack([empty % bins, empty // bins], 1) + 0.5 - scaled[2:]) / scaled[:2]
            rays = unit(np.column_stack([slopes, np.ones(len(empty))]) @ world_from_cam[i, :3, :3].T)
            ends.append(world_from_cam[i, :3, 3] + 2 * cell * sum(occupied.shape) * rays)  # beyond the grid
        starts.append(np.tile(world_from_cam[i, :3, 3], (len(nearest) + len(empty), 1)))
    start, end = np.concatenate(starts), np.concatenate(ends)
    shape, strides = np.array(occupied.shape), np.array(occupied.strides)
    at = (start - origin) / cell
    way = (end - start) / cell
    length = np.linalg.norm(way, axis=1)
    step = way / np.maximum(length, 1e-12)[:, None] * 0.9  # cells
    with np.errstate(divide="ignore"):
        leaves = (np.where(step > 0, shape - 0.01, 0.01) - at) / step  # steps until a ray leaves the grid
    last = np.minimum((length - 1) / 0.9, np.where(step == 0, np.inf, leaves).min(1))  # or is a cell from its target
    solid, seen = occupied.reshape(-1), np.zeros(occupied.size, bool)
    order = np.argsort(-last)
    at, step, last = at[order].astype(np.float32), step[order].astype(np.float32), last[order]
    for k in range(int(last[0]) + 1 if len(last) else 0):
        alive = np.searchsorted(-last, -k, side="right")
        flat = at[:alive].astype(np.int32) @ strides
        clear = ~solid[flat]
        seen[flat[clear]] = True
        at, step, last = (v[:alive][clear] for v in (at, step, last))
        at += step
    seen = seen.reshape(occupied.shape)
    return np.asarray(binary_closing(seen, iterations=2)) | seen
