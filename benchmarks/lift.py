"""Lifted scenes against held-out frames of real recordings, beside plain points and, where installed, Open3D's TSDF.

    python benchmarks/lift.py                       # needs the test footage; PYTHONPATH may add Open3D

A scene is lifted from one frame with sensor depth, or from all of them, and drawn where other frames were taken. Errors
count where a method draws something (`psnr`, `ssim`, `covered`), and once more where all of them do (`psnr_common`).
Frames beside the lifted ones show what the lifted ones show; the recordings' own errors (poses, exposure, and for
sevenscenes a nominal calibration between its two cameras) are in all figures alike.

Then single steps on the room drawn by `render.room`, whose truth is exact: normals, voxel fusion, outliers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import RESULTS, machine, number, print_table, sequences, write_result
from numpy.typing import NDArray
from scipy.spatial import KDTree

from longtake.annotate.video import probe, read_rgb
from longtake.geometry import invert_pose, pose
from longtake.render.gaussians import Gaussians
from longtake.render.lift import Fusion, LiftConfig, RgbdFrame, discs_of, fly, lift_frame, register_depth
from longtake.render.room import Room, camera_path, render_room, room_depth
from longtake.render.tsdf import TsdfFusion

NEAR = {"sevenscenes_handheld": (10, 20), "tum_fr3_cabinet_keyframes": (1, 2)}  # held-out frames, from the lifted one
COLOUR_FROM_DEPTH_M = (-0.025, 0.0, 0.0)  # sevenscenes: a Kinect's two cameras stand about 2.5 cm apart
VOXEL_M = 0.01  # of the TSDF

View = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # picture [H, W, 3] and what of it [H, W] is drawn
Draw = Callable[[NDArray, NDArray], View]  # of world_from_cam [4, 4] and intrinsics [4]
Method = Callable[[list[RgbdFrame]], tuple[Draw, int]]  # prepared from frames; how many primitives it has


# ---- footage -----------------------------------------------------------------------------------------------------


class Recording:
    """A sequence with sensor depth for some frames."""

    def __init__(self, name: str) -> None:
        self.folder = sequences() / name
        truth = np.load(self.folder / "gt.npz")
        meta = json.loads((self.folder / "meta.json").read_text())
        self.info = probe(self.folder / "video.mp4")
        self.poses = truth["c2w"]
        k = truth["K"][0]
        self.intrinsics = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
        self.depth_frames: list[int] = meta["depth"]["frames"]
        self.depth_intrinsics = None
        if "K" in meta["depth"]:  # depth is of a camera of its own, and the poses are that camera's
            k = np.array(meta["depth"]["K"])
            self.depth_intrinsics = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
            self.colour_from_depth = pose(np.eye(3), np.array(COLOUR_FROM_DEPTH_M))
            self.poses = self.poses @ invert_pose(self.colour_from_depth)
        offsets = NEAR[name]
        near = {f: [f + o for o in offsets if 0 <= f + o < len(self.poses)] for f in self.depth_frames}
        self.held_out = {f: [i for i in views if i not in self.depth_frames] for f, views in near.items()}

    @cache  # noqa: B019  # one recording lives as long as the program
    def picture(self, frame: int) -> NDArray[np.uint8]:
        return read_rgb(self.info, [frame])[0]

    def frame(self, index: int) -> RgbdFrame:
        rgb = self.picture(index)
        depth = cv2.imread(str(self.folder / "depth" / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED) / np.float32(1000)
        if self.depth_intrinsics is not None:
            to = (self.intrinsics, rgb.shape[1], rgb.shape[0])
            depth = register_depth(depth, self.depth_intrinsics, self.colour_from_depth, *to)
        return RgbdFrame(
            name=f"frame {index}",
            rgb=rgb,
            depth=depth,
            intrinsics=self.intrinsics,
            world_from_cam=self.poses[index],
        )


# ---- methods -----------------------------------------------------------------------------------------------------


def drawn_by_splats(gaussians: Gaussians, width: int, height: int) -> Draw:
    def draw(world_from_cam: NDArray, intrinsics: NDArray) -> View:
        plain = (255, 0, 255)
        (flown,) = fly(gaussians, world_from_cam[None], intrinsics, width, height, hole_rgb=plain)
        return flown.rgb, (flown.rgb != plain).any(-1)

    return draw


def splats(config: LiftConfig) -> Method:
    def prepare(frames: list[RgbdFrame]) -> tuple[Draw, int]:
        if len(frames) == 1:
            gaussians = lift_frame(frames[0], config)
        else:
            fusion = Fusion(config)
            for frame in frames:
                fusion.add(frame)
            gaussians = fusion.gaussians()
        return drawn_by_splats(gaussians, *frames[0].depth.shape[::-1]), len(gaussians)

    return prepare


def tsdf_splats(frames: list[RgbdFrame]) -> tuple[Draw, int]:
    """What `longtake lift --fuse tsdf` makes: splats on the surface of Open3D's field."""
    fusion = TsdfFusion(LiftConfig(cell=3.0))
    for frame in frames:
        fusion.add(frame)
    gaussians = fusion.lifted().gaussians
    return drawn_by_splats(gaussians, *frames[0].depth.shape[::-1]), len(gaussians)


def unfused_splats(frames: list[RgbdFrame]) -> tuple[Draw, int]:
    """Every pixel of every frame."""
    parts = [lift_frame(frame) for frame in frames]
    names = "means scales quaternions opacities sh".split()
    whole = Gaussians(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    return drawn_by_splats(whole, *frames[0].depth.shape[::-1]), len(whole)


def points(frames: list[RgbdFrame]) -> tuple[Draw, int]:
    """The same pixels as points of one pixel with a depth test."""
    parts = [discs_of(frame, LiftConfig()) for frame in frames]
    xyz, rgb = np.concatenate([p.points for p in parts]), np.concatenate([p.colours for p in parts])
    height, width = frames[0].depth.shape

    def draw(world_from_cam: NDArray, intrinsics: NDArray) -> View:
        back = invert_pose(world_from_cam)
        p = xyz @ back[:3, :3].T + back[:3, 3]
        at = np.rint(p[:, :2] / p[:, 2:] * intrinsics[:2] + intrinsics[2:]).astype(np.int64)
        kept = (p[:, 2] > 0.01) & (at >= 0).all(1) & (at < [width, height]).all(1)
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(-p[rows, 2], kind="stable")]  # the nearest is written last
        picture, seen = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
        picture[at[rows, 1], at[rows, 0]] = np.rint(255 * rgb[rows])
        seen[at[rows, 1], at[rows, 0]] = True
        return picture, seen

    return draw, len(xyz)


def tsdf(frames: list[RgbdFrame]) -> tuple[Draw, int]:
    """Open3D: a truncated signed distance field, its triangles, rays cast at them."""
    import open3d as o3d

    core, (height, width) = o3d.core, frames[0].depth.shape
    kinds, shapes = (core.float32,) * 3, (1, 1, 3)
    grid = o3d.t.geometry.VoxelBlockGrid(("tsdf", "weight", "color"), kinds, shapes, VOXEL_M, 8, 60_000)
    for frame in frames:
        depth = o3d.t.geometry.Image(core.Tensor(np.nan_to_num(frame.depth, posinf=0).astype(np.float32)))
        colour = o3d.t.geometry.Image(core.Tensor(frame.rgb.astype(np.float32) / 255))
        fx, fy, cx, cy = frame.intrinsics
        camera = core.Tensor(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
        extrinsic = core.Tensor(np.ascontiguousarray(invert_pose(frame.world_from_cam)))
        scale, furthest, reach = 1.0, 20.0, 4.0  # depth is in metres; truncated at four voxels
        blocks = grid.compute_unique_block_coordinates(depth, camera, extrinsic, scale, furthest, reach)
        grid.integrate(blocks, depth, colour, camera, camera, extrinsic, scale, furthest, reach)
    mesh = grid.extract_triangle_mesh(weight_threshold=0.5)
    colours, triangles = mesh.vertex.colors.numpy(), mesh.triangle.indices.numpy()
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(mesh)

    def draw(world_from_cam: NDArray, intrinsics: NDArray) -> View:
        u, v = np.meshgrid(np.arange(width), np.arange(height))
        fx, fy, cx, cy = intrinsics
        rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], -1) @ world_from_cam[:3, :3].T
        eye = np.broadcast_to(world_from_cam[:3, 3], rays.shape)
        hit = scene.cast_rays(o3d.core.Tensor(np.concatenate([eye, rays], -1).astype(np.float32)))
        seen = np.isfinite(hit["t_hit"].numpy())
        corners = triangles[hit["primitive_ids"].numpy()[seen]]
        b = hit["primitive_uvs"].numpy()[seen]
        weights = np.stack([1 - b.sum(1), b[:, 0], b[:, 1]], 1)
        picture = np.zeros((height, width, 3), np.uint8)
        picture[seen] = np.rint(255 * (colours[corners] * weights[..., None]).sum(1).clip(0, 1))
        return picture, seen

    return draw, len(triangles)


# ---- scores ------------------------------------------------------------------------------------------------------


def psnr(picture: NDArray[np.uint8], truth: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    error = picture[where].astype(np.float64) - truth[where]
    return float(10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9)))


def ssim(picture: NDArray[np.uint8], truth: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    """Mean over `where` of the structural similarity of luma (Wang et al. 2004); elsewhere the truth stands in."""
    a, b = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(np.float64) for x in (picture, truth))
    a[~where] = b[~where]
    blur = lambda x: cv2.GaussianBlur(x, (11, 11), 1.5)  # noqa: E731
    ma, mb = blur(a), blur(b)
    va, vb, vab = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    maps = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return float(maps[where].mean())


def compare(recording: Recording, methods: dict[str, Method], *, several: bool) -> list[dict[str, Any]]:
    """Each method's scores over all held-out frames, lifted from the frame beside them or from all frames."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    sources = [list(recording.held_out)] if several else [[f] for f in recording.held_out]
    for lifted in sources:
        frames = [recording.frame(f) for f in lifted]
        draws: dict[str, Draw] = {}
        prepared: dict[str, dict[str, float]] = {}
        for name, prepare in methods.items():
            start = time.perf_counter()
            draws[name], size = prepare(frames)
            prepared[name] = {"lift_s": time.perf_counter() - start, "primitives": size}
        for index in [i for f in lifted for i in recording.held_out[f]]:
            truth = recording.picture(index)
            views: dict[str, View] = {}
            for name, draw in draws.items():
                start = time.perf_counter()
                views[name] = draw(recording.poses[index], recording.intrinsics)
                prepared[name]["draw_s"] = time.perf_counter() - start
            common = np.logical_and.reduce([seen for _, seen in views.values()])
            for name, (picture, seen) in views.items():
                scores = {
                    "psnr": psnr(picture, truth, seen),
                    "ssim": ssim(picture, truth, seen),
                    "covered": float(seen.mean()),
                    "psnr_common": psnr(picture, truth, common),
                }
                figures[name].append(prepared[name] | scores)
    return [
        {"method": name, "views": len(rows)} | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for name, rows in figures.items()
    ]


# ---- single steps ------------------------------------------------------------------------------------------------


def noisy_room(count: int, noise: float) -> Iterator[tuple[RgbdFrame, NDArray[np.float64]]]:
    """Frames of the room with relative noise of depth, and each pixel's true normal [H, W, 3], world axes."""
    room, (width, height) = Room(0), (640, 480)
    poses, intrinsics = camera_path("walk", count, width=width, height=height, extent=0.5)
    rng = np.random.default_rng(0)
    for camera, k in zip(poses, intrinsics, strict=True):
        depth = room_depth(room, camera, k, width, height)
        exact = RgbdFrame(
            name="room",
            rgb=render_room(room, camera, k, width, height),
            depth=depth,
            intrinsics=k,
            world_from_cam=camera,
        )
        discs = discs_of(exact, LiftConfig())
        normal = np.full((height * width, 3), np.nan)
        normal[discs.pixel] = discs.axes[:, :, 2]  # exact depth of planes: the fit is exact but at creases
        wrong = np.exp(noise * rng.standard_normal(depth.shape)).astype(np.float32)
        yield replace(exact, depth=depth * wrong), normal.reshape(height, width, 3)


def steps(open3d: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def timed(step: str, by: str, work: Callable[[], Any], judge: Callable[[Any], dict[str, float]]) -> None:
        start = time.perf_counter()
        out = work()
        rows.append({"step": step, "by": by, "seconds": time.perf_counter() - start} | judge(out))

    for noise in (0.0, 0.002, 0.01):
        ((frame, truth),) = noisy_room(1, noise)
        config = LiftConfig(edge_step=0.04 + 4 * noise)
        discs = discs_of(frame, config)
        want = truth.reshape(-1, 3)[discs.pixel]
        good = np.isfinite(want).all(1)

        def judge(normal: NDArray, want: NDArray = want, good: NDArray = good) -> dict[str, float]:
            cosine = np.abs((normal[good] * want[good]).sum(1)).clip(0, 1)
            angle = np.degrees(np.arccos(cosine))
            return {"median_deg": float(np.median(angle)), "p90_deg": float(np.quantile(angle, 0.9))}

        step = f"normals, depth noise {noise:.1%}"
        timed(step, "plane fit of 1/z, 5x5", lambda d=discs: d.axes[:, :, 2], judge)
        rows[-1]["seconds"] = _seconds(lambda f=frame, c=config: discs_of(f, c))
        timed(step, "scipy KD-tree, 25 neighbours", lambda d=discs: kd_normals(d.points), judge)
        if open3d:
            timed(step, "Open3D, 25 neighbours", lambda d=discs: o3d_normals(d.points), judge)

    clouds = [discs_of(frame, LiftConfig()) for frame, _ in noisy_room(6, 0.002)]
    xyz = np.concatenate([c.points for c in clouds])
    rgb = np.concatenate([c.colours for c in clouds])
    count = lambda out: {"cells": float(len(out))}  # noqa: E731
    timed("voxels of 1 cm, 6 frames", "numpy: sort and bincount", lambda: numpy_voxels(xyz, rgb, 0.01), count)
    if open3d:
        timed("voxels of 1 cm, 6 frames", "Open3D", lambda: o3d_voxels(xyz, rgb, 0.01), count)
    cloud = numpy_voxels(xyz, rgb, 0.01)
    rng = np.random.default_rng(1)
    stray = np.zeros(len(cloud), bool)
    stray[rng.choice(len(cloud), len(cloud) // 100, replace=False)] = True
    cloud[stray] += rng.normal(0, 0.3, (int(stray.sum()), 3))

    def judge_outliers(kept: NDArray[np.bool_]) -> dict[str, float]:
        return {"stray_removed": float((~kept[stray]).mean()), "surface_lost": float((~kept[~stray]).mean())}

    timed("outliers, 20 neighbours, 2 sigma", "scipy KD-tree", lambda: kd_inliers(cloud), judge_outliers)
    if open3d:
        timed("outliers, 20 neighbours, 2 sigma", "Open3D", lambda: o3d_inliers(cloud), judge_outliers)
    return rows


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def kd_normals(xyz: NDArray) -> NDArray[np.float64]:
    _, near = KDTree(xyz).query(xyz, 25, workers=-1)
    out = np.empty_like(xyz)
    for part in np.array_split(np.arange(len(xyz)), max(1, len(xyz) // 50_000)):
        d = xyz[near[part]]
        d = d - d.mean(1, keepdims=True)
        out[part] = np.linalg.eigh(np.einsum("nki,nkj->nij", d, d))[1][:, :, 0]
    return out


def _o3d_cloud(xyz: NDArray) -> Any:
    import open3d as o3d

    return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz))


def o3d_normals(xyz: NDArray) -> NDArray[np.float64]:
    import open3d as o3d

    cloud = _o3d_cloud(xyz)
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(25))
    return np.asarray(cloud.normals)


def numpy_voxels(xyz: NDArray, rgb: NDArray, edge: float) -> NDArray[np.float64]:
    cell = np.floor(xyz / edge).astype(np.int64)
    cell -= cell.min(0)
    key = (cell[:, 0] * (cell[:, 1].max() + 1) + cell[:, 1]) * (cell[:, 2].max() + 1) + cell[:, 2]
    _, which, number_of = np.unique(key, return_inverse=True, return_counts=True)
    columns = np.concatenate([xyz, rgb], 1).T
    return np.stack([np.bincount(which, column) / number_of for column in columns], 1)[:, :3]


def o3d_voxels(xyz: NDArray, rgb: NDArray, edge: float) -> NDArray[np.float64]:
    import open3d as o3d

    cloud = _o3d_cloud(xyz)
    cloud.colors = o3d.utility.Vector3dVector(rgb)
    return np.asarray(cloud.voxel_down_sample(edge).points)


def kd_inliers(xyz: NDArray) -> NDArray[np.bool_]:
    distance = KDTree(xyz).query(xyz, 21, workers=-1)[0][:, 1:].mean(1)
    return distance < distance.mean() + 2 * distance.std()


def o3d_inliers(xyz: NDArray) -> NDArray[np.bool_]:
    _, rows = _o3d_cloud(xyz).remove_statistical_outlier(20, 2.0)
    out = np.zeros(len(xyz), bool)
    out[np.asarray(rows)] = True
    return out


# ---- the run -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "lift.json")
    parser.add_argument("--only", default="", help="a part of a recording's name, or steps")
    options = parser.parse_args()
    started = machine()
    open3d = importlib.util.find_spec("open3d") is not None
    rows: list[dict[str, Any]] = []
    for name in NEAR:
        if options.only not in name:
            continue
        recording = Recording(name)
        for several in (False, True):
            methods: dict[str, Method] = {"splats": splats(LiftConfig()), "points": points}
            if several:
                methods["splats, cells of 1 px"] = splats(LiftConfig(cell=1.0))
                methods["splats, not fused"] = unfused_splats
            if open3d:
                methods["TSDF mesh (Open3D)"] = tsdf
            if open3d and several:
                methods["splats of a TSDF (Open3D)"] = tsdf_splats
            lifted = "all" if several else "one"
            rows += [
                {"recording": name, "lifted_from": lifted} | row for row in compare(recording, methods, several=several)
            ]
            write_result(options.out, rows, started)
    keys = "psnr ssim covered psnr_common".split()
    print_table(
        ["recording, lifted from, method", *keys, "primitives", "lift s", "draw s"],
        [
            [f"{r['recording']}, {r['lifted_from']}, {r['method']}"]
            + [number(r[k], 3 if k in ("ssim", "covered") else 2) for k in keys]
            + [f"{r['primitives']:.0f}", number(r["lift_s"]), number(r["draw_s"])]
            for r in rows
        ],
    )
    if options.only in "steps":
        single = steps(open3d)
        write_result(options.out, rows + single, started)
        for row in single:
            print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))


if __name__ == "__main__":
    main()
