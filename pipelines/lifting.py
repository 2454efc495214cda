"""What `longtake lift` and `longtake preview` do: frames with depth and cameras, wherever they are known, to a scene.

A source is one of
    a clip of a manifest      whose row names a depth file
    a video or pictures       with given depth, poses and intrinsics, such as a recording of a depth camera
    a picture or a video      that a network says the depth of: MoGe-2 of one frame, Pi3X of all
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..annotate.depth_clip import DepthClip, open_depth
from ..annotate.given import GivenDepth, open_given_depth, read_poses
from ..annotate.shot_depth import Backends, DepthStageConfig, estimate_depth
from ..annotate.video import encode_rgb, pictures, probe
from ..errors import BadMedia, LongtakeError
from ..geometry import invert_pose, pose
from ..records import Rejected, Shot, VideoInfo
from ..render.camera_path import FAMILIES, PathConfig, propose, survey
from ..render.gaussians import Gaussians
from ..render.lift import Fusion, LiftConfig, Lifted, RgbdFrame, fly, lift_frame
from ..render.tsdf import TsdfFusion
from .clips import row_of_clip
from .config import UsageError

Network = Literal["moge2", "pi3x", "pi3x+moge2"]
Sky = Literal["drop", "shell"]
FPS = 16.0  # of paths, as the generator takes them
PATH_FRAMES = 161  # of a family's path: ten seconds
MOST_PIXELS = 1280 * 720  # of a map that MoGe-2 alone is asked for
MOST_SIDE = 1280  # of a preview
_BESIDE = 0.3  # median depths that the cameras which a family's path is designed between stand apart


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Frames with depth and a camera, read when they are asked for."""

    name: str
    frames: tuple[int, ...]  # of the source video that can be lifted
    read: Callable[[Sequence[int]], Iterator[RgbdFrame]]
    metric: bool  # lengths are metres
    remarks: tuple[str, ...] = ()

    def chosen(self, count: int) -> list[int]:
        """So many of the frames, or all, evenly spread, the first among them."""
        if count < 1:
            raise UsageError(f"{count} frames cannot be lifted: give 1 or more")
        return (
            [self.frames[i * len(self.frames) // count] for i in range(count)]
            if count < len(self.frames)
            else [*self.frames]
        )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a user says of the source, beside where it lies."""

    clip: str | None = None
    depth: Path | None = None
    poses: Path | None = None
    intrinsics: tuple[float, ...] | None = None
    network: Network | None = None
    device: str = "auto"
    frame: int | None = None  # the only one that is wanted
    one: bool = False  # only one frame is wanted, whichever comes first
    sky: Sky = "drop"

    @property
    def single(self) -> bool:
        return self.one or self.frame is not None


@contextmanager
def open_source(path: str, inputs: Inputs, *, backends: Backends | None = None) -> Iterator[Source]:
    """The frames of a manifest's clip, of a video or of pictures.

    Args:
        backends: the networks, loaded; by default those of `inputs.network` are.

    Raises:
        UsageError: what was said does not go together, or does not say enough.
        BadMedia: a file cannot be used, or a network refuses the picture.
        MissingPart: a network's weights are not here.
    """
    with ExitStack() as stack:
        if (Path(path) / "_snapshots").is_dir():
            if inputs.depth or inputs.poses or inputs.network or inputs.intrinsics:
                raise UsageError(f"{path} is a manifest, whose rows say depth, poses and intrinsics: give no others")
            yield _of_row(Path(path), inputs)
            return
        if inputs.clip is not None:
            raise UsageError(f"--clip names a clip of a manifest, and {path} is none")
        if inputs.depth is not None:
            if inputs.network is not None:
                raise UsageError("depth is given or asked of a network: leave out --depth or --network")
            yield _of_recording(path, inputs)
            return
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="longtake-")))
        yield _of_network(path, inputs, scratch, backends)


# ---- the sources -------------------------------------------------------------------------------------------------


def _of_row(folder: Path, inputs: Inputs) -> Source:
    from ..datasets.readers import read_clip
    from ..datasets.row_files import local_file

    row = row_of_clip(folder, inputs.clip)
    name = f"clip {row['clip_id'][:8]}"
    if row["c2w"] is None:
        raise UsageError(f"{name} has status {row['status']} and no poses")
    if row["depth_uri"] is None:
        raise UsageError(
            f"{name} has no depth: annotate its video again with --engine pi3x, --metric moge2 or --depth FOLDER"
        )
    clip, depth = read_clip(row), open_depth(local_file(folder, row, "depth_uri"))
    info = probe(local_file(folder, row))
    if (info.width, info.height) != (clip.width, clip.height):
        raise BadMedia(
            "frame_size_changes",
            f"{info.path} is {info.width} x {info.height}, but {name} was annotated at {clip.width} x {clip.height}",
        )
    of_frame = depth.frame_index - clip.frame_start
    inside = (of_frame >= 0) & (of_frame < clip.num_frames)
    world_from_cam = np.full((len(of_frame), 4, 4), np.nan)
    world_from_cam[inside] = clip.world_from_cam[of_frame[inside]]
    metric, remarks = depth.metric and row["scale_kind"] == "metric", []
    if not metric:
        if depth.world_from_cam is not None:
            world_from_cam = np.where(np.isfinite(world_from_cam), depth.world_from_cam, np.nan)
            remarks.append(f"{name}: depth and poses have units of their own; cameras are those of the depth's network")
        elif not inputs.single and int(inside.sum()) > 1:
            raise UsageError(
                f"{name}: its depth is in {'metres' if depth.metric else 'a unit of its own'} and its poses are not "
                "in the same, so its frames cannot be put together: lift one with --frame N, or annotate with "
                "--metric moge2"
            )
    intrinsics = np.full((len(of_frame), 4), np.nan)
    intrinsics[inside] = clip.intrinsics[of_frame[inside]]
    return _source(
        name,
        info,
        _maps(depth),
        world_from_cam,
        intrinsics,
        inputs,
        metric=depth.metric,
        distortion=clip.distortion,
        remarks=tuple(remarks),
    )


def _of_recording(path: str, inputs: Inputs) -> Source:
    assert inputs.depth is not None
    info = probe(path)
    depth = open_given_depth(inputs.depth, info)
    if inputs.intrinsics is None:
        raise UsageError(f"{path}: the camera that took it is not known: give --intrinsics f or fx,fy,cx,cy in pixels")
    if inputs.poses is not None:
        every = read_poses(inputs.poses, info.num_frames, info.pts_ns, metric=True).world_from_cam
    elif inputs.single or info.num_frames == 1:
        every = np.tile(np.eye(4), (info.num_frames, 1, 1))
    else:
        raise UsageError(f"{path}: its frames' poses are not known: give --poses, or lift one with --frame N")
    k = np.tile(_lens(inputs.intrinsics, info), (len(depth.frame_index), 1))
    return _source(Path(path).name, info, depth, every[depth.frame_index], k, inputs, metric=True)


def _of_network(path: str, inputs: Inputs, scratch: Path, backends: Backends | None) -> Source:
    from .depth import check_device, load_backends, needed_networks, remarks

    network = inputs.network or "moge2"
    if inputs.poses is not None:
        raise UsageError("--poses go with --depth; a network's depth goes with its own cameras")
    info = probe(path)
    alone = network == "moge2"
    frame = inputs.frame or 0
    if not 0 <= frame < info.num_frames:
        raise UsageError(f"{path} has frames 0 .. {info.num_frames - 1}, and no frame {frame}")
    one = alone or inputs.single
    config, said = DepthStageConfig(device=inputs.device), ()
    if alone:
        config = replace(config, pixel_limit=max(14 * 14, min(MOST_PIXELS, info.width * info.height)))
    if backends is None:
        check_device(inputs.device)
        needed = needed_networks("classical" if alone else "pi3x", "none" if network == "pi3x" else "moge2")
        said = tuple(remarks(needed))
        backends = load_backends([str(facts["network"]) for facts in needed], config)
    if alone and info.num_frames > 1 and not inputs.single:
        said += (f"{path}: MoGe-2 sees one frame at a time, so only the first is lifted; --network pi3x takes all",)
    shot = Shot(
        index=0,
        start=frame if one else 0,
        stop=frame + 1 if one else info.num_frames,
        crop=(0, 0, info.width, info.height),
        overlay=None,
        boundary="start",
    )
    k = None if inputs.intrinsics is None else _lens(inputs.intrinsics, info)
    known = None if k is None else tuple(k.tolist())
    clip = estimate_depth(info, shot, config, backends, scratch / "depth.zip", intrinsics=known)
    if isinstance(clip, Rejected):
        raise BadMedia(clip.reason, f"{path}: {clip.message}")
    rows = len(clip.frame_index)
    if k is None:
        focal = np.full((rows, 2), np.nan) if clip.focal_px is None else clip.focal_px
        if not np.isfinite(focal).all():
            raise BadMedia("no_intrinsics", f"{path}: {network} does not tell its focal length: give --intrinsics")
        if not alone:  # one lens for all frames, as networks' words for it are rough
            focal = np.tile(np.median(focal, axis=0), (rows, 1))
        k_rows = np.concatenate([focal, np.tile([(info.width - 1) / 2, (info.height - 1) / 2], (rows, 1))], 1)
    else:
        k_rows = np.tile(k, (rows, 1))
    poses = np.tile(np.eye(4), (rows, 1, 1)) if clip.world_from_cam is None else clip.world_from_cam
    return _source(Path(path).name, info, _maps(clip), poses, k_rows, inputs, metric=clip.metric, remarks=said)


def _maps(clip: DepthClip) -> GivenDepth:
    return GivenDepth(frame_index=clip.frame_index, crop=clip.crop, read=clip.read)


def _lens(numbers: tuple[float, ...], info: VideoInfo) -> NDArray[np.float64]:
    """fx, fy, cx, cy from (f,), whose principal point is the middle, or from all four."""
    if len(numbers) == 1:
        return np.array([numbers[0], numbers[0], (info.width - 1) / 2, (info.height - 1) / 2])
    return np.array(numbers, np.float64)


def _source(
    name: str,
    info: VideoInfo,
    depth: GivenDepth,
    world_from_cam: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    inputs: Inputs,
    *,
    metric: bool,
    distortion: tuple[float, ...] = (),
    remarks: tuple[str, ...] = (),
) -> Source:
    """Frames that have depth, a pose and intrinsics; arrays have a row for each of `depth.frame_index`."""
    posed = np.asarray(np.isfinite(world_from_cam).all((1, 2)) & np.isfinite(intrinsics).all(1))
    row_of = {int(f): row for row, f in enumerate(depth.frame_index) if posed[row]}
    if inputs.frame is not None:
        if inputs.frame not in row_of:
            some = ", ".join(map(str, list(row_of)[:8])) + (", ..." if len(row_of) > 8 else "")
            raise UsageError(f"{name} has no depth or no pose for frame {inputs.frame}; it has for {some or 'none'}")
        row_of = {inputs.frame: row_of[inputs.frame]}
    if not row_of:
        raise BadMedia("no_depth", f"{name} has no frame with both depth and a pose")

    def read(frames: Sequence[int]) -> Iterator[RgbdFrame]:
        for index, rgb in pictures(info, only=list(frames), crop=depth.crop):
            row = row_of[index]
            maps = depth.read(row)
            yield _frame(f"{name}, frame {index}", rgb, maps, depth.crop, world_from_cam[row], intrinsics[row])

    def _frame(
        what: str,
        rgb: NDArray[np.uint8],
        maps: tuple[NDArray[np.float32], NDArray[np.float32]],
        crop: tuple[int, int, int, int],
        camera: NDArray[np.float64],
        k: NDArray[np.float64],
    ) -> RgbdFrame:
        z, trust = maps
        height, width = z.shape
        if rgb.shape[:2] != (height, width):
            shrinks = width < rgb.shape[1]
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # type: ignore[assignment]
        k = scaled(k, crop, width, height)
        sky = ~np.isfinite(z) if inputs.sky == "shell" else None
        if any(distortion):
            rgb, z, trust, sky = _straightened(k, distortion, rgb, z, trust, sky)
        return RgbdFrame(name=what, rgb=rgb, depth=z, confidence=trust, intrinsics=k, world_from_cam=camera, sky=sky)

    return Source(name=name, frames=tuple(row_of), read=read, metric=metric, remarks=remarks)


def scaled(
    intrinsics: NDArray[np.float64], crop: tuple[float, float, float, float], width: int, height: int
) -> NDArray[np.float64]:
    """Intrinsics [4] of a picture as those of its part `crop` (x, y, w, h) at width x height."""
    fx, fy, cx, cy = intrinsics
    x, y, w, h = crop
    across, down = width / w, height / h
    return np.array([fx * across, fy * down, (cx - x + 0.5) * across - 0.5, (cy - y + 0.5) * down - 0.5])


def _straightened(
    k: NDArray[np.float64],
    distortion: tuple[float, ...],
    rgb: NDArray[np.uint8],
    depth: NDArray[np.float32],
    trust: NDArray[np.float32],
    sky: NDArray[np.bool_] | None,
) -> tuple[Any, Any, Any, Any]:
    """The maps as a pinhole of the same intrinsics sees them; depth by its nearest pixels, unknown past the border."""
    matrix = np.array([[k[0], 0, k[2]], [0, k[1], k[3]], [0, 0, 1]])
    size = depth.shape[::-1]
    at = cv2.initUndistortRectifyMap(matrix, np.array([*distortion, 0, 0]), None, matrix, size, cv2.CV_32FC1)  # type: ignore[call-overload]

    def nearest(x: NDArray, beyond: float) -> NDArray:
        return cv2.remap(x, *at, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=beyond)

    return (
        cv2.remap(rgb, *at, cv2.INTER_LINEAR),
        nearest(depth, math.nan),
        nearest(trust, 0),
        None if sky is None else nearest(sky.astype(np.uint8), 0).astype(bool),
    )


# ---- lift --------------------------------------------------------------------------------------------------------


def lift_source(
    source: Source,
    count: int,
    config: LiftConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    fuse: Literal["cells", "tsdf"] = "cells",
) -> Lifted:
    """A scene from so many frames of the source, fused in voxels here or in Open3D's distance field.

    Raises:
        MissingPart: Open3D is asked for and not installed.
        LongtakeError: nothing could be lifted.
    """
    wanted, fusion = source.chosen(count), Fusion(config) if fuse == "cells" else TsdfFusion(config)
    for i, frame in enumerate(source.read(wanted)):
        fusion.add(frame)
        if progress is not None:
            progress(i + 1, len(wanted))
    return fusion.lifted()


# ---- preview -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """A path through what one frame shows."""

    path: str  # in words
    relative: NDArray[np.float64]  # [F, 4, 4] cam0_from_cam: the path as a generator takes it
    drawn: tuple[int, ...]  # frames of the path that were drawn
    hole_share: NDArray[np.float64]  # [D] of the pixels, of each drawn frame
    nearest: NDArray[np.float64]  # [D] 1st percentile of depth; nan where all is hole
    width: int
    height: int
    gaussians: int


def preview(
    frame: RgbdFrame,
    path: str,
    *,
    out: Path | None,
    seed: int = 0,
    num_frames: int = PATH_FRAMES,
    every: int = 1,
    size: tuple[int, int] | None = None,
    hole_rgb: tuple[int, int, int] = (255, 0, 255),
) -> Preview:
    """Fly a path through one lifted frame, from where it was taken.

    Args:
        path: a file of poses (.npy, .npz), a family of `render.camera_path`, or actions such as "w-40,wd-20".
        out: the video; None: only holes are counted.
        seed, num_frames: of a family's path.
        every: draw each so many-th frame.
        size: of the pictures, width and height; by default the frame's, at most MOST_SIDE.

    Raises:
        UsageError: there is no such path.
        LongtakeError: the frame has no depth, or the family finds no path in it.
    """
    if every < 1:
        raise UsageError(f"every {every}: draw each 1st frame or fewer")
    gaussians = lift_frame(frame)
    height, width = frame.depth.shape
    to_width, to_height = size or _even(width, height)
    relative, words = read_path(path, frame, gaussians, seed=seed, num_frames=num_frames)
    drawn = range(0, len(relative), every)
    k = _fitted(frame.intrinsics, width, height, to_width, to_height)
    poses = frame.world_from_cam @ relative[list(drawn)]
    flown = fly(gaussians, poses, k, to_width, to_height, hole_rgb=hole_rgb)
    shares: list[tuple[float, float]] = []

    def shown() -> Iterator[NDArray[np.uint8]]:
        for picture in flown:
            shares.append((picture.hole_share, picture.nearest))
            yield picture.rgb

    if out is None:
        for _ in shown():
            pass
    else:
        encode_rgb(out, shown(), FPS / every)
    holes, nearest = np.array(shares).T
    return Preview(
        path=words,
        relative=relative,
        drawn=tuple(drawn),
        hole_share=holes,
        nearest=nearest,
        width=to_width,
        height=to_height,
        gaussians=len(gaussians),
    )


def read_path(
    text: str, frame: RgbdFrame, gaussians: Gaussians, *, seed: int, num_frames: int
) -> tuple[NDArray[np.float64], str]:
    """Poses [F, 4, 4] relative to the frame's camera, the first the identity, and the path in words."""
    from ..model.sana_wm.actions import steer

    if Path(text).suffix in (".npy", ".npz"):
        poses, words = _poses_of(Path(text)), f"{text}, as it is"
    elif text in FAMILIES:
        poses, words = _of_family(text, frame, gaussians, seed, num_frames), f"{text}, seed {seed}"
    else:
        try:
            poses, words = steer(text), f"actions {text}"
        except LongtakeError as error:
            known = ", ".join(FAMILIES)
            raise UsageError(
                f"--path {text}: neither a file of poses (.npy, .npz) nor a family ({known}); and as actions: {error}"
            ) from error
    relative = invert_pose(poses[0]) @ poses
    relative[0] = np.eye(4)
    return relative, words


def _poses_of(path: Path) -> NDArray[np.float64]:
    """All poses of a file that holds nothing else but poses, one a frame."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            count = len(loaded)
        else:
            with loaded:
                count = max(len(loaded[name]) for name in loaded.files if loaded[name].ndim)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise BadMedia("poses_unreadable", f"{path} cannot be read as poses ({error})") from error
    times = np.arange(count, dtype=np.int64)
    poses = read_poses(path, count, times, metric=True).world_from_cam
    lacking = np.flatnonzero(~np.isfinite(poses).all((1, 2)))
    if lacking.size:
        raise BadMedia("poses_do_not_fit", f"{path}: frame {lacking[0]} of the path has no pose")
    return poses


def _of_family(family: str, frame: RgbdFrame, gaussians: Gaussians, seed: int, num_frames: int) -> NDArray[np.float64]:
    """A family's path from the frame's camera, among cameras that look the same way from places beside it.

    One picture was taken from one place: where else a camera may go is a supposition, of a few tenths of its depth.
    """
    camera = np.asarray(frame.world_from_cam, np.float64)
    depth = float(np.median((gaussians.means - camera[:3, 3]) @ camera[:3, 2]))
    grid = np.stack(np.meshgrid((0, -1, 1, -0.5, 0.5), (0, -0.4, 0.4), (0, 0.5, 1, -0.5), indexing="ij"), -1)
    beside = _BESIDE * depth * grid.reshape(-1, 3)  # the first is where the picture was taken
    cameras = camera @ pose(np.tile(np.eye(3), (len(beside), 1, 1)), beside)
    height, width = frame.depth.shape
    k = np.tile(np.asarray(frame.intrinsics, np.float64), (len(cameras), 1))
    allowed = survey(gaussians, cameras, k, (width, height), anchors="derived_inside")
    if 0 in allowed.usable and family not in ("near_training", "fly_through"):  # these two go from camera to camera
        allowed = replace(allowed, usable=np.zeros(1, np.int64))
    return propose(allowed, family, seed, config=PathConfig(num_frames=num_frames, fps=FPS)).world_from_cam


def _even(width: int, height: int) -> tuple[int, int]:
    shrink = min(1.0, MOST_SIDE / max(width, height))
    return max(2, 2 * round(width * shrink / 2)), max(2, 2 * round(height * shrink / 2))


def _fitted(k: NDArray, width: int, height: int, to_width: int, to_height: int) -> NDArray[np.float64]:
    """Intrinsics of the picture scaled to cover to_width x to_height, its middle kept, as generators crop."""
    scale = max(to_width / width, to_height / height)
    w, h = to_width / scale, to_height / scale
    return scaled(np.asarray(k, np.float64), ((width - w) / 2, (height - h) / 2, w, h), to_width, to_height)


def facts(made: Preview, source: Source, seconds: float) -> Mapping[str, Any]:
    """A preview in numbers."""
    worst = int(made.hole_share.argmax())
    return {
        "source": source.name,
        "path": made.path,
        "frames": len(made.relative),
        "drawn": len(made.drawn),
        "gaussians": made.gaussians,
        "width": made.width,
        "height": made.height,
        "unit": "m" if source.metric else "arbitrary",
        "holes_mean": float(made.hole_share.mean()),
        "holes_max": float(made.hole_share[worst]),
        "holes_max_frame": made.drawn[worst],
        "nearest_min": float(np.nanmin(made.nearest)) if np.isfinite(made.nearest).any() else None,
        "seconds": seconds,
    }
