"""How well cameras are estimated with depth, and without: every engine and mode on the same films.

    python benchmarks/depth_modes.py [--films room_forward,cabinet,...] [--errors typical,large] [--out FILE.json]

The networks themselves are not here: "pi3x" and "moge2" below are STAND-INS whose answers are the true depth and
cameras plus errors of a stated size, so that what is measured is the geometry around them. Films are
the procedural room, whose depth is exact, and recordings whose measured depth (ten maps each) is carried to all frames
by the measured poses; what no map saw is unknown. Errors, as relative standard deviations:

    window network (Pi3X): each window in a frame and scale of its own; depth with a smooth error over the picture that
    lasts, pixel noise, gross errors on patches; poses with errors of rotation and of translation; confidence that
    knows the errors only in part
    single-frame network (MoGe-2): each frame a scale error of its own, a smooth error over the picture, pixel noise;
    focal lengths with an error of the film and one of the frame

Modes: classical (no depth: what longtake does by default, the peer of the others); classical with metric scale from
single frames; pi3x (windows, fused with single frames); given depth (exact but for noise of 1 %), metric and of
unknown scale; given poses, of unknown scale. Compared: poses after the best similarity (ATE), and after the best rigid
motion (ATE in metres as they are, for what claims to be metric), the scale, the focal length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from zlib import crc32

import cv2
import numpy as np
from measure import RESULTS, machine, number, print_table, sequences, write_result
from numpy.typing import NDArray
from scipy.stats import norm

from longtake.annotate.depth import SingleGeometry, WindowGeometry, shrunk
from longtake.annotate.depth_clip import DepthClip, DepthWriter, finish_depth
from longtake.annotate.given import GivenPoses
from longtake.annotate.shot_depth import Backends, DepthStageConfig, Known, estimate_depth
from longtake.annotate.track import TrackConfig, estimate_track
from longtake.annotate.video import encode_rgb, pictures, probe
from longtake.datasets.score import score
from longtake.geometry import invert_pose, pose, rotation_from_vector
from longtake.records import Rejected, Shot, VideoInfo
from longtake.render.room import Room, camera_path, render_clip, room_depth

MAP_SIDE = 320  # of depth maps: their longer side
FOV_DEG = 65.0


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative standard deviations, unless said otherwise; of the window network and of the single-frame one."""

    window_scale: float  # of each window's lengths
    window_bend: float  # smooth over the picture, lasting
    window_pixel: float
    window_gross: float  # share of the picture with depth off by a factor
    window_turn_deg: float  # of each pose within its window
    window_shift: float  # of each pose, in median depths
    window_focal: float
    single_scale: float  # of each frame
    single_bend: float
    single_pixel: float
    single_focal: float  # of the film
    single_focal_jitter: float


NONE = Errors(**dict.fromkeys(Errors.__dataclass_fields__, 0.0))
TYPICAL = Errors(
    window_scale=0.1,
    window_bend=0.03,
    window_pixel=0.01,
    window_gross=0.02,
    window_turn_deg=0.2,
    window_shift=0.003,
    window_focal=0.02,
    single_scale=0.05,
    single_bend=0.04,
    single_pixel=0.02,
    single_focal=0.03,
    single_focal_jitter=0.02,
)
LARGE = Errors(**{name: 2 * value for name, value in vars(TYPICAL).items()})
LEVELS = {"none": NONE, "typical": TYPICAL, "large": LARGE}


# ---- films with truth --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Film:
    """A video, its cameras, and depth maps [H, W] of its frames, nan where unknown."""

    path: Path
    world_from_cam: NDArray[np.float64]  # [N, 4, 4] metres
    intrinsics: NDArray[np.float64]  # [N, 4] fx, fy, cx, cy in pixels of the video
    width: int
    height: int
    depth_of: Callable[[int], NDArray[np.float32]]
    stills: bool = False

    @cached_property
    def map_size(self) -> tuple[int, int]:
        s = MAP_SIDE / max(self.width, self.height)
        return round(self.width * s), round(self.height * s)

    def map_intrinsics(self, i: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """fx, fy, cx, cy of frame i in pixels of a map of this size."""
        sx, sy = size[0] / self.width, size[1] / self.height
        fx, fy, cx, cy = self.intrinsics[i]
        return np.array([fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5])

    @cached_property
    def depths(self) -> NDArray[np.float32]:
        """[N, H, W] at `map_size`."""
        return np.stack([self.depth_of(i) for i in range(len(self.world_from_cam))])

    def depth(self, i: int, size: tuple[int, int]) -> NDArray[np.float32]:
        return cv2.resize(self.depths[i], size, interpolation=cv2.INTER_NEAREST_EXACT)


def room_film(kind: str, folder: Path, frames: int = 120, **path: float) -> Film:
    width, height, room = 640, 480, Room(0)
    world_from_cam, k = camera_path(kind, frames, width=width, height=height, fov_x_deg=FOV_DEG, **path)
    file = folder / f"{kind}_{'_'.join(map(str, path.values()))}.mp4"
    encode_rgb(file, render_clip(room, world_from_cam, k, width, height), 30, crf=12)
    film = Film(file, world_from_cam, k, width, height, lambda i: np.zeros((0, 0), np.float32))
    return replace(
        film,
        depth_of=lambda i: room_depth(room, world_from_cam[i], film.map_intrinsics(i, film.map_size), *film.map_size),
    )


def recorded_film(name: str, frames: int | None = None) -> Film:
    """A recording: a frame has the depth of the three measured maps nearest to its view, carried there by the poses."""
    root = sequences() / name
    about, truth = json.loads((root / "meta.json").read_text()), np.load(root / "gt.npz")
    c2w, k = truth["c2w"][:frames], truth["K"][:frames]
    intrinsics = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], 1)
    k_depth = np.array(about["depth"].get("K", k[0]))
    cameras, clouds = [], []
    for i in about["depth"]["frames"]:
        z = cv2.imread(str(root / "depth" / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED) / 1000.0
        v, u = np.nonzero(z)
        z = z[v, u]
        in_camera = np.stack([(u - k_depth[0, 2]) / k_depth[0, 0] * z, (v - k_depth[1, 2]) / k_depth[1, 1] * z, z], 1)
        pose_i = truth["c2w"][i]
        cameras.append(pose_i)
        clouds.append((in_camera @ pose_i[:3, :3].T + pose_i[:3, 3]).astype(np.float32))
    film = Film(
        root / "video.mp4",
        c2w,
        intrinsics,
        about["width"],
        about["height"],
        lambda i: np.zeros((0, 0), np.float32),
        stills=not about["continuous_video"],
    )

    def carried(i: int) -> NDArray[np.float32]:
        width, height = film.map_size
        view = invert_pose(c2w[i])
        turn = [np.arccos(np.clip((np.trace(view[:3, :3] @ c[:3, :3]) - 1) / 2, -1, 1)) for c in cameras]
        away = [np.linalg.norm(c[:3, 3] - c2w[i][:3, 3]) for c in cameras]
        fx, fy, cx, cy = film.map_intrinsics(i, film.map_size)
        out = np.full(height * width, np.inf, np.float32)
        for j in np.argsort(np.array(turn) + np.array(away))[:3]:
            p = clouds[j] @ view[:3, :3].T.astype(np.float32) + view[:3, 3].astype(np.float32)
            p = p[p[:, 2] > 0.1]
            u, v = np.rint(fx * p[:, 0] / p[:, 2] + cx).astype(int), np.rint(fy * p[:, 1] / p[:, 2] + cy).astype(int)
            inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            np.minimum.at(out, v[inside] * width + u[inside], p[inside, 2])
        found = out.reshape(height, width)
        near = cv2.erode(found, np.ones((5, 5), np.uint8))  # what lies behind a nearer surface shines through its gaps
        found[found > 1.05 * np.minimum(near, 1e9)] = np.inf
        return np.where(np.isfinite(found), found, np.nan)

    return replace(film, depth_of=carried)


# ---- stand-ins for networks --------------------------------------------------------------------------------------


class Numbers:
    """Tells which frame of a film a picture is, by its bytes."""

    def __init__(self, pictures: Iterable[NDArray[np.uint8]]) -> None:
        self.of: dict[int, int] = {}
        for i, picture in enumerate(pictures):
            self.of.setdefault(crc32(picture.tobytes()), i)  # frames that are alike show the same

    def __call__(self, pictures: NDArray[np.uint8]) -> list[int]:
        return [self.of[crc32(p.tobytes())] for p in pictures]


def _bend(grid: NDArray, size: tuple[int, int]) -> NDArray[np.float32]:
    """A smooth field [H, W] through the grid."""
    return cv2.resize(grid.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)


def window_network(
    film: Film, errors: Errors, numbers: Numbers, seed: int = 0
) -> Callable[[NDArray[np.uint8]], WindowGeometry]:
    """Stands in for Pi3X (see the top)."""
    lasting = np.random.default_rng([seed, 1])
    bends = lasting.normal(size=(2, 5, 6)).astype(np.float32)
    focal = np.exp(errors.window_focal * lasting.normal())
    typical_depth = float(np.nanmedian(film.depths))

    def reconstruct(pictures: NDArray[np.uint8]) -> WindowGeometry:
        frames = numbers(pictures)
        rng = np.random.default_rng([seed, 2, *frames])
        height, width = pictures.shape[1:3]
        scale = np.exp(errors.window_scale * rng.normal())
        points = np.full((len(frames), height, width, 3), np.nan, np.float32)
        confidence = np.zeros((len(frames), height, width), np.float32)
        for row, i in enumerate(frames):
            turn = 2 * np.pi * i / 200  # the bend changes slowly from frame to frame
            bend = errors.window_bend * _bend(np.cos(turn) * bends[0] + np.sin(turn) * bends[1], (width, height))
            error = bend + errors.window_pixel * rng.normal(size=bend.shape)
            gross = _bend(rng.normal(size=(5, 6)), (width, height)) > norm.isf(max(errors.window_gross, 1e-9))
            if errors.window_gross:
                error = error + np.where(gross, rng.choice([-0.4, 0.5]), 0)
            depth = film.depth(i, (width, height)) * scale * np.exp(error)
            fx, fy, cx, cy = film.map_intrinsics(i, (width, height)) * [focal, focal, 1, 1]
            v, u = np.mgrid[:height, :width]
            points[row] = np.stack([(u - cx) / fx * depth, (v - cy) / fy * depth, depth], -1)
            guess = 0.9 * np.exp(-3 * np.abs(bend)) * np.where(gross & (rng.random() < 0.7), 0.05, 1)
            confidence[row] = np.where(np.isnan(depth), 0, guess)
        cameras = film.world_from_cam[frames].copy()
        noise = rng.normal(size=(len(frames), 6))
        cameras[:, :3, :3] @= rotation_from_vector(np.radians(errors.window_turn_deg) * noise[:, :3])
        cameras[:, :3, 3] += errors.window_shift * typical_depth * noise[:, 3:]
        cameras[:, :3, 3] *= scale
        move = pose(rotation_from_vector(rng.normal(size=3)), rng.normal(size=3))
        return WindowGeometry(cam_points=points, world_from_cam=move @ cameras, confidence=confidence)

    return reconstruct


def single_network(
    film: Film, errors: Errors, numbers: Numbers, size: tuple[int, int], seed: int = 0
) -> Callable[[NDArray[np.uint8]], SingleGeometry]:
    """Stands in for MoGe-2 (see the top)."""
    focal = np.exp(errors.single_focal * np.random.default_rng([seed, 3]).normal())

    def predict(pictures: NDArray[np.uint8]) -> SingleGeometry:
        depths, focals = [], []
        for i in numbers(pictures):
            rng = np.random.default_rng([seed, 4, i])
            error = errors.single_scale * rng.normal() + errors.single_bend * _bend(rng.normal(size=(5, 6)), size)
            error = error + errors.single_pixel * rng.normal(size=error.shape)
            depths.append(film.depth(i, size) * np.exp(error))
            jitter = np.exp(errors.single_focal_jitter * rng.normal())
            focals.append(film.intrinsics[i, 0] / film.width * focal * jitter)
        return SingleGeometry(depth=np.stack(depths).astype(np.float32), focal_widths=np.array(focals))

    return predict


# ---- modes -------------------------------------------------------------------------------------------------------

MODES = ("classical", "classical + moge2", "pi3x + moge2", "given depth", "given depth of unknown scale + moge2",
         "given poses of unknown scale, pi3x + moge2", "given poses of unknown scale, moge2")  # fmt: skip
UNKNOWN_SCALE = 2.7  # that given poses and depth are divided by where their scale is to be unknown
GIVEN_NOISE = 0.01  # of given depth, relative
CONFIG = DepthStageConfig(pixel_limit=80_000, single_side=480)


def depth_of(film: Film, info: VideoInfo, shot: Shot, mode: str, errors: Errors, folder: Path) -> DepthClip | Rejected:
    """What longtake makes of the stand-ins' answers, or of given depth."""
    known = None
    if "given depth" in mode:
        metric = "unknown" not in mode
        known = Known(path=folder / "given.zip", metric=metric)
        rng = np.random.default_rng(9)
        with DepthWriter(known.path) as writer:
            for i, depth in enumerate(film.depths):
                noise = np.exp(GIVEN_NOISE * rng.normal(size=depth.shape))
                writer.add(i, depth * noise / (1 if metric else UNKNOWN_SCALE), np.ones(depth.shape))
        width, height = film.map_size
        count = len(film.depths)
        finish_depth(
            DepthClip(
                path=known.path,
                frame_index=np.arange(count),
                width=width,
                height=height,
                crop=shot.crop,
                factor=np.ones(count),
                world_from_cam=None,
                focal_px=None,
                metric=metric,
                source="given",
                scale=None,
                relative_sigma=GIVEN_NOISE,
            )
        )
    shown = partial(pictures, info, crop=shot.crop)
    window = single = None
    if "pi3x" in mode:
        stream = (picture for _, picture in shown())
        window = window_network(film, errors, Numbers(shrunk(stream, pixel_limit=CONFIG.pixel_limit)))
    if "moge2" in mode:
        numbers = Numbers(picture for _, picture in shown(max_side=CONFIG.single_side))

        def single(size: tuple[int, int], fov_x_deg: float | None):
            return single_network(film, errors, numbers, size)

    backends = Backends(window=window, single=single)
    return estimate_depth(info, shot, CONFIG, backends, folder / "depth.zip", known=known)


def run(film: Film, mode: str, errors: Errors) -> dict[str, Any]:
    """One film in one mode, scored."""
    info, count = probe(str(film.path), stills=film.stills), len(film.world_from_cam)
    crop = (0, 0, film.width, film.height)
    shot = Shot(index=0, start=0, stop=count, crop=crop, overlay=None, boundary="start", photographs=film.stills)
    poses = depth = None
    with tempfile.TemporaryDirectory() as folder:
        if "given poses" in mode:
            given = film.world_from_cam.copy()
            given[:, :3, 3] /= UNKNOWN_SCALE
            absent = np.full((info.num_frames - count, 4, 4), np.nan)
            poses = GivenPoses(world_from_cam=np.concatenate([given, absent]), metric=False)
        if mode != "classical":
            depth = depth_of(film, info, shot, mode, errors, Path(folder))
        if isinstance(depth, Rejected):
            return {"refused": depth.reason}
        started = time.perf_counter()
        track = estimate_track(info, shot, TrackConfig(), depth=depth, poses=poses)
    if isinstance(track, Rejected):
        return {"refused": track.reason}
    found = {"c2w": track.world_from_cam, "K": _matrices(track.intrinsics), "pose_valid": track.pose_valid}
    figures = score(found, {"c2w": film.world_from_cam, "K": _matrices(film.intrinsics)})
    names = "coverage_pct path_length ate_rmse ate_se3_rmse scale rot_err_deg_mean focal_err_pct_median"
    return (
        {name: figures.get(name) for name in names.split()}
        | {
            "motion_class": track.motion_class,
            "scale_kind": track.scale_kind,
            "focal_status": track.focal_status,
            "intrinsics_mode": track.intrinsics_mode,
            "flags": list(track.flags),
            "seconds": round(time.perf_counter() - started, 1),
        }
        | {name: value for name, value in track.stats.items() if name.startswith("scale_")}
    )


def _matrices(k: NDArray) -> NDArray[np.float64]:
    out = np.tile(np.eye(3), (len(k), 1, 1))
    out[:, 0, 0], out[:, 1, 1], out[:, 0, 2], out[:, 1, 2] = k.T
    return out


FILMS: dict[str, Callable[[Path], Film]] = {
    "room: walk": partial(room_film, "walk"),
    "room: walk of 6 cm": partial(room_film, "walk", extent=0.01, shake=0.0),
    "room: straight ahead": partial(room_film, "forward"),
    "room: dolly zoom": partial(room_film, "dolly_zoom"),
    "room: orbit with zoom": partial(room_film, "orbit_zoom"),
    "room: turn on the spot": partial(room_film, "pan"),
    "room: still": partial(room_film, "static"),
    "sevenscenes_handheld, 300 frames": lambda folder: recorded_film("sevenscenes_handheld", 300),
    "tum_fr3_cabinet": lambda folder: recorded_film("tum_fr3_cabinet_keyframes"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", nargs="+", choices=FILMS, default=list(FILMS), metavar="FILM")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    parser.add_argument("--errors", nargs="+", choices=LEVELS, default=["typical"], metavar="LEVEL")
    parser.add_argument("--out", type=Path, default=RESULTS / "depth_modes.json")
    args = parser.parse_args()
    started, rows = machine(), []
    for name in args.films:
        with tempfile.TemporaryDirectory() as folder:
            film = FILMS[name](Path(folder))
            for level in args.errors:
                for mode in args.modes:
                    if mode != "classical" or level == args.errors[0]:  # there nothing has errors
                        rows.append({"film": name, "errors": level, "mode": mode} | run(film, mode, LEVELS[level]))
                        write_result(args.out, rows, started)
    table(rows)


def table(rows: list[dict[str, Any]]) -> None:
    head = [
        "film",
        "errors",
        "mode",
        "posed %",
        "ATE",
        "ATE as is, m",
        "scale",
        "turn, deg",
        "focal %",
        "focal is",
        "s",
    ]
    columns = "coverage_pct ate_rmse ate_se3_rmse scale rot_err_deg_mean focal_err_pct_median".split()
    digits = dict(zip(columns, (1, 4, 4, 3, 3, 2), strict=True))
    lines = []
    for row in rows:
        if "refused" in row:
            lines.append([row["film"], row["errors"], row["mode"], row["refused"], *[""] * 7])
            continue
        cells = {name: number(row[name], digits[name]) for name in columns}
        if row["scale_kind"] != "metric":
            cells |= {"ate_se3_rmse": "-", "scale": "-"}
        lines.append(
            [row["film"], row["errors"], row["mode"], *cells.values(), row["focal_status"], str(row["seconds"])]
        )
    print_table(head, lines)


if __name__ == "__main__":
    main()
