"""What a generated clip is asked to be, from what a user gives: a picture, a prompt, and where the camera goes.

Everything is read and checked here, before any network is loaded: the rest of the pipeline trusts what it gets.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..annotate.video import VideoConfig, probe, read_rgb
from ..datasets import safe
from ..datasets.readers import read_clip
from ..datasets.row_files import local_file
from ..geometry import invert_pose
from ..model import intrinsics as cameras
from ..model.intrinsics import MAX_FOV_DEG, MIN_FOV_DEG, Reading
from ..model.sana_wm.actions import ACTION_MAPS, held_keys, steer
from ..model.sana_wm.camera import STRIDE
from ..model.sana_wm.path import CameraPath, backwards, faster, first_frames, given_path, path_of_clip, there_and_back
from ..records import BadMedia, LongtakeError, VideoInfo
from .annotate import read_intrinsics
from .clips import row_of_clip
from .config import UsageError, digest, to_tree

MIN_FRAMES = STRIDE + 1  # of the shortest video
MIN_SIDE = 32  # pixels of a picture that there is something to see in
MAX_SIDE = 16384
MAX_ARRAY_BYTES = 256 << 20  # of a .npy file
MAX_PROMPT_BYTES = 64 << 10
ALL_OK = "status == 'ok'"
FILE_COLUMNS = ("uri", "image_uris", "sha256", "bytes")  # where the clip's file is
ROW_COLUMNS = (
    "clip_id status source_uri source_sha256 source_dataset license split group_id uri image_uris sha256 bytes width "
    "height num_frames frame_start start_s fps_num fps_den pts_s crop c2w pose_valid intrinsics focal_status "
    "distortion scale_kind caption"
).split()


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """Where the camera goes. One of action and camera; neither where a manifest's rows have paths of their own."""

    action: str | None = None  # such as "w-40,wd-20"
    action_map: Literal["current", "first"] = "current"
    translation_speed: float | None = None  # metres a frame; None: the map's
    rotation_speed_deg: float | None = None  # a frame; None: the map's
    camera: str | None = None  # .npy of poses, or the folder of a manifest
    camera_clip: str | None = None  # of that manifest; None: its only one
    camera_convention: Literal["c2w", "w2c"] = "c2w"  # of the .npy
    metres_per_unit: float | None = None  # of a clip of relative scale
    intrinsics: str | None = None  # .npy, a file, or f or fx,fy,cx,cy
    speed: float = 1.0  # the same way so many times as fast
    reverse: bool = False
    loop: bool = False  # there, and the same way back

    def __post_init__(self) -> None:
        if self.action is not None and self.camera is not None:
            raise UsageError("--action and --camera both say where the camera goes: give one of them")
        if self.camera_clip is not None and self.camera is None:
            raise UsageError("--camera-clip names a clip of the manifest that --camera names: give that too")
        if self.action is None and (self.translation_speed is not None or self.rotation_speed_deg is not None):
            raise UsageError("--translation-speed and --rotation-speed-deg are of --action's keys: give --action too")
        for name, value in (
            ("translation_speed", self.translation_speed),
            ("rotation_speed_deg", self.rotation_speed_deg),
            ("metres_per_unit", self.metres_per_unit),
        ):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} {value} is not a positive number")

        if not 0.01 <= self.speed <= 100:
            raise UsageError(f"--speed {self.speed:g}: 0.01 to 100 times as fast")

    @property
    def edited(self) -> bool:
        return self.speed != 1 or self.reverse or self.loop


@dataclass(frozen=True, kw_only=True)
class Source:
    """Whose picture it is, for the manifest."""

    uri: str  # the picture, or the parent's recording
    sha256: str | None
    parent: str | None = None  # clip_id
    group_id: str | None = None
    split: str | None = None
    license: str | None = None
    source_dataset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One clip that is asked for, before anything is read: small, and tells whether the same was asked for before."""

    source: Source
    image: str | None  # a file; None: the first frame of `row`
    row: Mapping[str, Any] | None  # of a manifest
    folder: str  # of that manifest
    prompt: str | None  # None: the row's caption
    path: PathConfig
    frames: int  # at most
    lens: tuple[str, tuple[float, ...]] | None = None  # source and fx, fy, cx, cy, where an estimate says it

    @property
    def name(self) -> str:
        return Path(self.image or self.source.uri).name + (f" {self.row['clip_id'][:8]}" if self.row else "")

    def digest(self) -> str:
        """The same for the same picture, prompt and path, whatever their files are called."""
        row = {}
        if self.row is not None:
            row = {name: _hashed(value) for name, value in self.row.items() if name not in FILE_COLUMNS}
        path = to_tree(self.path)
        for name in ("camera", "intrinsics"):
            if path[name] is not None and os.path.isfile(path[name]):
                path[name] = file_sha256(Path(path[name]))
        if self.path.camera is not None and os.path.isdir(self.path.camera):
            path["camera"] = _hashed(manifest_row(Path(self.path.camera), self.path.camera_clip))
        return digest([asdict(self.source) | {"uri": None}, row, self.prompt, path, self.frames, self.lens])


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What a clip is to be: checked, and all in memory."""

    picture: NDArray[np.uint8]  # [H, W, 3] RGB, upright, without bars and lens distortion
    path: CameraPath  # with the intrinsics of that picture; as many frames as are to be made
    keys: tuple[str, ...]  # held before each frame; empty where the path is not that of an action string
    prompt: str
    lens: str  # what the intrinsics come from: "given", "manifest", "pi3x", "moge2", "exif_..."
    remarks: tuple[str, ...]  # what a user should know


def ask(request: Request, *, lens_needed: bool = True) -> Asked:
    """Read and check everything that a clip is made from.

    Args:
        lens_needed: False leaves `Asked.lens` empty where nothing tells the intrinsics; those of the path then mean
            nothing, and only its poses count.

    Raises:
        BadMedia: the picture, or the path of a manifest's row, will not do.
        UsageError: what was given by hand will not do, or is not enough.
    """
    remarks: list[str] = []
    if request.image is not None:
        picture, own = read_picture(request.image), None
    else:
        assert request.row is not None
        own = _row_camera(request.row)
        picture, own, words = _first_frame(request.row, own, Path(request.folder))
        remarks += words
    prompt = request.prompt if request.prompt is not None else (request.row or {}).get("caption")
    if prompt is None:
        raise BadMedia("no_prompt", f"{request.name} has no caption: annotate one, or give --prompt")
    height, width = picture.shape[:2]
    poses, zoom, keys, words = _poses(request.path, own, request.row)
    remarks += words
    lens, k = _lens(request, own, len(poses), width, height)
    if k is None:
        if lens_needed:
            raise UsageError(
                f"nothing tells the camera of {request.name}. Where it is known, give it: --intrinsics f, or "
                "fx,fy,cx,cy, in pixels, or a .npy of (4,), (3, 3), (F, 4) or (F, 3, 3). Or have it estimated: "
                "longtake weights fetch pi3x, or moge2-vitl-normal, and the same command again"
            )
        k = np.array([width, width, (width - 1) / 2, (height - 1) / 2])
    if k.ndim == 1 or len(k) == 1:
        k = np.tile(k.reshape(1, 4), (len(poses), 1)) * zoom
    try:
        path = _edited(given_path(poses, k, width=width, height=height), request.path)
    except LongtakeError as error:
        raise UsageError(f"{_which(request.path)}: {error}") from error
    if path.num_frames < MIN_FRAMES:
        raise BadMedia(
            "path_too_short",
            f"{_which(request.path)} has {path.num_frames} frames, and the shortest video {MIN_FRAMES}: give a longer "
            "path (an action string has one frame more than it says, 16 frames are a second)",
        )
    if path.num_frames < request.frames:
        remarks.append(f"the path has {path.num_frames} frames: fewer than the {request.frames} that there could be")
    path = first_frames(path, request.frames)
    if path.num_frames < MIN_FRAMES:
        raise UsageError(f"--num-frames {request.frames}: a video has {MIN_FRAMES} frames or more")
    if lens:
        _check_fov(path, lens)
    kept = keys[: path.num_frames] if not request.path.edited else ()
    return Asked(picture=picture, path=path, keys=kept, prompt=prompt, lens=lens, remarks=tuple(remarks))


# ---- which clips ---------------------------------------------------------------------------------------------------


def requests(
    prompt: str | None,
    path: PathConfig,
    frames: int,
    *,
    image: str | None = None,
    manifest: str | os.PathLike[str] | None = None,
    where: str | None = None,
    clip_ids: Sequence[str] = (),
    estimate: bool = True,
) -> list[Request]:
    """The clips that are asked for: one from a picture, or one from each row of a manifest.

    Args:
        prompt: None for the rows' captions.
        frames: at most.
        estimate: have networks that are here look at a picture whose intrinsics were not given.

    Raises:
        LongtakeError: a picture or a manifest that will not do, or nothing to do.
    """
    if (image is None) == (manifest is None):
        raise UsageError("give a first picture with --image, or first frames with --manifest, and not both")
    common: dict[str, Any] = {"prompt": prompt, "path": path, "frames": frames}
    if image is not None:
        if where is not None or clip_ids:
            raise UsageError("--where and --clip-id choose rows of --manifest")
        if prompt is None:
            raise UsageError("--prompt is missing: say what is seen, as a text or a text file")
        if path.action is None and path.camera is None:
            raise UsageError("where does the camera go? Give --action, such as w-80,wd-80, or --camera")
        lens = None
        if path.intrinsics is None:
            read_picture(image)  # what is wrong with it is said here, and of its camera later
            lens = _estimated(image, estimate)
        source = Source(uri=str(Path(image).absolute()), sha256=file_sha256(Path(image)))
        return [Request(source=source, image=str(Path(image).absolute()), row=None, folder="", lens=lens, **common)]
    assert manifest is not None
    from ..datasets.manifest import open_manifest

    if where is not None and clip_ids:
        raise UsageError("--where and --clip-id both choose rows: give one of them")
    if path.action is not None or path.camera is not None:
        _poses(path, None, None)  # what would be wrong with every clip is said once
    found = open_manifest(manifest)
    rows = _chosen(found, where, clip_ids)
    if not rows:
        raise UsageError(f"{manifest}: no clip with {where or ALL_OK}")
    return [_of_row(row, found.folder.absolute(), common) for row in rows]


def _chosen(found: Any, where: str | None, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
    from ..datasets.where import parse_where

    if not clip_ids:
        return sorted(found.rows(ROW_COLUMNS, parse_where(where or ALL_OK)), key=lambda row: row["clip_id"])
    every, wanted = found.ids(), []
    for name in clip_ids:
        matches = [clip_id for clip_id in every if clip_id.startswith(name)]
        if len(matches) != 1:
            raise UsageError(f"--clip-id {name}: {found.folder} has {len(matches)} clips with such an id")
        wanted += matches
    return [{name: row[name] for name in ROW_COLUMNS} for row in map(found.row, dict.fromkeys(wanted))]


def _of_row(row: Mapping[str, Any], folder: Path, common: Mapping[str, Any]) -> Request:
    source = Source(
        uri=row["source_uri"],
        sha256=row["source_sha256"],
        parent=row["clip_id"],
        group_id=row["group_id"] or row["source_sha256"],
        split=row["split"],
        license=row["license"],
        source_dataset=row["source_dataset"],
    )
    return Request(source=source, image=None, row=row, folder=str(folder), **common)


def _estimated(image: str, estimate: bool) -> tuple[str, tuple[float, ...]] | None:
    """What networks that are here, or EXIF, say of a picture's camera; None where nothing says anything."""
    from . import fov

    try:
        answer = fov.examine(image, networks=fov.NETWORKS if estimate else {})
    except LongtakeError:  # nothing does; `ask` says what to give
        return None
    first = answer.readings[0]
    return first.source, first.intrinsics


# ---- the prompt --------------------------------------------------------------------------------------------------


def read_prompt(text: str, option: str = "--prompt") -> str:
    """A prompt: the text itself, or that of a file of this name.

    Raises:
        UsageError: it is empty, too long or not UTF-8, or a file of that name is not there.
    """
    path = Path(text)
    try:
        is_file = len(text) < 4096 and "\n" not in text and "\0" not in text and path.is_file()
    except OSError:  # too long a name is a prompt
        is_file = False
    if not is_file:
        try:
            data = os.fsencode(text)
        except UnicodeEncodeError as error:
            raise UsageError(f"{option}: {error}") from error
        if text.endswith(".txt") and not any(c.isspace() for c in text):
            raise UsageError(f"{option} {text}: no such file. A prompt is a text, or a text file")
        where = option
    else:
        if path.stat().st_size > MAX_PROMPT_BYTES:
            raise UsageError(f"{option} {text}: the file has {path.stat().st_size} bytes, and prompts a few hundred")
        data, where = path.read_bytes(), f"{option} {text}"
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"{where}: the prompt has {len(data)} bytes; the generator sees some 1200 characters of it")
    try:
        prompt = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise UsageError(f"{where}: not UTF-8 ({wrong}): save it as UTF-8") from error
    if not prompt:
        raise UsageError(f"{where}: the prompt is empty. Say what is seen, not how the camera moves")
    if bad := next((c for c in prompt if ord(c) < 32 and c not in "\t\n\r"), None):
        raise UsageError(f"{where}: the prompt has the control character {bad!r}: is it a text?")
    return prompt


# ---- the picture -------------------------------------------------------------------------------------------------


def read_picture(image: str) -> NDArray[np.uint8]:
    """A picture file, or a video's first frame: RGB [H, W, 3], 8 bits, upright.

    Transparency is left out, as other readers of pictures for this network do; CMYK, grey and 16 bits become RGB of 8.

    Raises:
        BadMedia: it cannot be read, or is too small or too large to be a first frame.
    """
    if os.path.isdir(image):
        raise BadMedia("not_a_picture", f"--image {image} is a folder: name the picture in it")
    if not os.path.exists(image):
        raise BadMedia("unreadable", f"--image {image}: no such file")
    info = probe(image, config=VideoConfig(max_pixels=MAX_SIDE * MAX_SIDE // 4))
    return _only(info, 0)


def _only(info: VideoInfo, frame: int) -> NDArray[np.uint8]:
    if min(info.width, info.height) < MIN_SIDE or max(info.width, info.height) > MAX_SIDE:
        raise BadMedia(
            "picture_size",
            f"{info.path} is {info.width} x {info.height}: give a picture with sides of {MIN_SIDE} to {MAX_SIDE}",
        )
    (rgb,) = read_rgb(info, [frame])
    return rgb


def _row_camera(row: Mapping[str, Any]) -> CameraPath | None:
    """The row's camera at 16 frames a second, with lengths as they are; None where it has none."""
    if row["c2w"] is None:
        return None
    clip = read_clip(row)
    try:
        return path_of_clip(
            clip.world_from_cam,
            clip.intrinsics,
            clip.times_s,
            width=clip.width,
            height=clip.height,
            metres_per_unit=1.0,
        )
    except LongtakeError as error:
        raise BadMedia("no_path", f"clip {row['clip_id']}: {error}") from error


def _first_frame(
    row: Mapping[str, Any], own: CameraPath | None, folder: Path
) -> tuple[NDArray[np.uint8], CameraPath | None, list[str]]:
    """The clip's first frame without bars and lens distortion, and its camera with the intrinsics of that picture."""
    if row["uri"] is None:
        raise BadMedia("no_picture", f"clip {row['clip_id']} has status {row['status']} and no pictures")
    images = row["image_uris"]
    try:
        if images is not None and len(images):
            picture = _only(probe(local_file(folder, row, "image_uris", images[0])), 0)
        else:
            picture = _only(probe(local_file(folder, row)), row["frame_start"] or 0)
    except ValueError as error:
        raise BadMedia("no_picture", f"clip {row['clip_id']}: {error}") from error
    height, width = picture.shape[:2]
    words = []
    if own is not None:
        if abs(width * own.height - height * own.width) > 2 * max(own.width, own.height):
            raise BadMedia(
                "other_picture",
                f"clip {row['clip_id']} is {own.width} x {own.height}, and its first frame in {row['uri']} now "
                f"{width} x {height}: annotate the file again",
            )
        if (width, height) != (own.width, own.height):
            small = cv2.resize(picture, (own.width, own.height), interpolation=cv2.INTER_AREA)
            picture = np.asarray(small, np.uint8)
        bend = np.asarray(row["distortion"] if row["distortion"] is not None else [], np.float64)
        if bend.any():
            picture = _straight(picture, own.intrinsics[0], bend)
        if row["focal_status"] == "undetermined":
            words.append("the focal length is a guess: the clip's motion did not determine it")
    if row["crop"] is not None:
        x, y, w, h = (int(v) for v in row["crop"])
        picture = np.ascontiguousarray(picture[y : y + h, x : x + w])
        if own is not None:
            own = replace(own, intrinsics=own.intrinsics - (0, 0, x, y), width=w, height=h)
    return picture, own, words


def _straight(picture: NDArray[np.uint8], k: NDArray[np.float64], bend: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The picture as a pinhole with these intrinsics sees it."""
    matrix = np.array([[k[0], 0, k[2]], [0, k[1], k[3]], [0, 0, 1]])
    size = (picture.shape[1], picture.shape[0])
    maps = cv2.initUndistortRectifyMap(matrix, np.r_[bend, 0, 0], np.eye(3), matrix, size, cv2.CV_32FC1)
    straight = cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(straight, np.uint8)


# ---- the path ----------------------------------------------------------------------------------------------------


def _poses(
    config: PathConfig, own: CameraPath | None, row: Mapping[str, Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...], list[str]]:
    """world_from_cam [F, 4, 4] before any edit, in metres; how the lens changes along it [F, 4] (as factors); keys."""
    if config.action is not None:
        mapping = ACTION_MAPS[config.action_map].moving(
            step=config.translation_speed, turn_deg=config.rotation_speed_deg
        )
        try:
            poses = steer(config.action, mapping)
            keys = ("", *("".join(key for key in "wasdijkl" if key in held) for held in held_keys(config.action)))
        except LongtakeError as error:
            raise UsageError(f"--action: {error}") from error
        return poses, np.ones((len(poses), 4)), keys, []
    if config.camera is None:
        if own is None or row is None:
            raise BadMedia("no_camera", "there is no camera path: give --action or --camera")
        return in_metres(own.world_from_cam, row, config.metres_per_unit), _zoom(own), (), []
    path = Path(config.camera)
    if path.is_dir():
        row = manifest_row(path, config.camera_clip)
        other = _row_camera(row)
        if other is None:
            raise UsageError(f"--camera {path}: clip {row['clip_id']} has status {row['status']} and no camera path")
        poses = in_metres(other.world_from_cam, row, config.metres_per_unit)
        return poses, _zoom(other), (), []
    if config.camera_clip is not None:
        raise UsageError(f"--camera-clip names a clip of a manifest, and --camera {path} is none")
    poses = read_poses(path, config.camera_convention)
    words = []
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    if len(steps) and steps.max() > 1.0:
        i = int(steps.argmax())
        words.append(
            f"{path}: the camera jumps {steps[i]:.3g} m from frame {i} to {i + 1}: are these metres, and 16 frames a "
            "second?"
        )
    return poses, np.ones((len(poses), 4)), (), words


def in_metres(poses: NDArray, row: Mapping[str, Any], metres_per_unit: float | None) -> NDArray[np.float64]:
    """A row's poses with translations in metres.

    Raises:
        BadMedia: the clip has no metric scale, and none was given.
    """
    if metres_per_unit is None and row["scale_kind"] != "metric":
        raise BadMedia(
            "relative_scale",
            f"clip {row['clip_id']} is of relative scale, and the generator needs metres: give --metres-per-unit, or "
            "annotate it with --metric moge2",
        )
    out = poses.copy()
    out[:, :3, 3] *= metres_per_unit or 1.0
    return out


def _zoom(path: CameraPath) -> NDArray[np.float64]:
    """Focal lengths [F, 4] over those of the first frame; the principal point stays."""
    out = np.ones((path.num_frames, 4))
    out[:, :2] = path.intrinsics[:, :2] / path.intrinsics[0, :2]
    return out


def _edited(path: CameraPath, config: PathConfig) -> CameraPath:
    if config.speed != 1:
        path = faster(path, config.speed)
    if config.reverse:
        path = backwards(path)
    return there_and_back(path) if config.loop else path


def _which(config: PathConfig) -> str:
    if config.action is not None:
        return f"--action {config.action}"
    return f"--camera {config.camera}" if config.camera is not None else "the clip's own path"


def _lens(
    request: Request, own: CameraPath | None, frames: int, width: int, height: int
) -> tuple[str, NDArray[np.float64] | None]:
    """What tells the intrinsics, and them: (fx, fy, cx, cy) [4] of the first frame, or of each [frames, 4]."""
    if request.path.intrinsics is not None:
        return "given", read_lens(request.path.intrinsics, frames, width, height)
    if request.lens is not None:
        return request.lens[0], np.array(request.lens[1], np.float64)
    if own is not None:
        own_path = request.path.action is None and request.path.camera is None
        return "manifest", own.intrinsics if own_path else own.intrinsics[0]
    return "", None


def read_lens(text: str, frames: int, width: int, height: int) -> NDArray[np.float64]:
    """Intrinsics as --intrinsics gives them, in pixels of the picture: [4], or [frames, 4].

    One set for each frame of another number of frames is spread over the path, as published code does.

    Raises:
        UsageError: they cannot be read, or are no pinhole's.
    """
    if not text.lower().endswith(".npy"):
        return np.array(cameras.given(read_intrinsics(text), width, height).intrinsics)
    k = read_npy(Path(text), "--intrinsics")
    shape = list(k.shape)
    if k.shape[-2:] == (3, 3) and k.ndim in (2, 3):
        expected = (k[..., (0, 1, 2, 2), (1, 0, 0, 1)] == 0).all() and (k[..., 2, 2] == 1).all()
        if not expected:
            raise UsageError(f"--intrinsics {text}: a matrix is not (fx 0 cx; 0 fy cy; 0 0 1)")
        k = k[..., (0, 1, 0, 1), (0, 1, 2, 2)]
    if k.shape[-1:] != (4,) or k.ndim not in (1, 2) or len(k) == 0:
        raise UsageError(f"--intrinsics {text} has shape {shape}, not (4,), (3, 3), (F, 4) or (F, 3, 3)")
    if not np.isfinite(k).all() or (k[..., :2] <= 0).any():
        raise UsageError(f"--intrinsics {text}: focal lengths are not all finite and above 0")
    if (k[..., 2:] < -width).any() or (k[..., 2] > 2 * width).any() or (k[..., 3] > 2 * height).any():
        raise UsageError(
            f"--intrinsics {text}: the principal point lies far outside of the {width} x {height} picture: they must "
            "be in its pixels"
        )
    if k.ndim == 2 and len(k) not in (1, frames):
        k = cameras.resample(k, np.linspace(0, 1, len(k)), np.linspace(0, 1, frames))
    return k


def _check_fov(path: CameraPath, lens: str) -> None:
    """Raise BadMedia unless both fields of view lie within the range in every frame."""
    first, *others = (
        Reading(source=lens, width=path.width, height=path.height, intrinsics=tuple(path.intrinsics[i].tolist()))  # type: ignore[arg-type]
        for i in np.unique([0, *path.intrinsics[:, :2].argmin(0), *path.intrinsics[:, :2].argmax(0)])
    )
    try:
        cameras.check_fov(first)
    except LongtakeError as error:
        raise BadMedia("field_of_view", str(error)) from error
    for other in others:
        if not other.in_range:
            raise BadMedia(
                "field_of_view",
                f"along the path the lens reaches {other.fov_deg[0]:.2f} x {other.fov_deg[1]:.2f} degrees; both fields "
                f"of view must stay between {MIN_FOV_DEG:g} and {MAX_FOV_DEG:g} in every frame",
            )


# ---- arrays from files -------------------------------------------------------------------------------------------


def read_poses(path: Path, convention: str = "c2w") -> NDArray[np.float64]:
    """world_from_cam [F, 4, 4] from a .npy of camera-to-world (or with `w2c` world-to-camera) rigid motions.

    Whether a file holds the one or the other cannot be seen: both are rigid. What the plan says of the motion tells.

    Raises:
        UsageError: says what is wrong with the file.
    """
    poses = read_npy(path, "--camera")
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        hint = "; append the row 0 0 0 1 to each" if poses.shape[1:] == (3, 4) else ""
        raise UsageError(f"--camera {path} has shape {list(poses.shape)}, not [F, 4, 4]{hint}")
    if len(poses) < MIN_FRAMES:
        raise UsageError(f"--camera {path} has {len(poses)} poses; the shortest video has {MIN_FRAMES} frames")
    if (bad := ~np.isfinite(poses).all((1, 2))).any():
        raise UsageError(f"--camera {path}: frame {int(bad.argmax())} has a number that is not finite")
    if (poses[:, 3] != (0, 0, 0, 1)).any() and (poses[:, :, 3] == (0, 0, 0, 1)).all():
        raise UsageError(f"--camera {path}: the matrices are transposed: translation belongs into the last column")
    return invert_pose(poses) if convention == "w2c" else poses


def read_npy(path: Path, option: str) -> NDArray[np.float64]:
    """The numbers of a .npy file; its header is believed only after it was checked, and nothing in it is ever run.

    Raises:
        UsageError: it is none, holds no numbers, or claims other than it has or may have.
    """
    if not path.exists():
        raise UsageError(f"{option} {path}: no such file")
    try:
        array = safe.read_npy(path, MAX_ARRAY_BYTES)
    except BadMedia as error:
        raise UsageError(f"{option} {error}") from error
    if array.dtype.kind not in "fiu":
        raise UsageError(f"{option} {path} holds {array.dtype}, not numbers")
    return array.astype(np.float64)


def manifest_row(folder: Path, clip: str | None) -> Mapping[str, Any]:
    """The row of a clip, by the beginning of its id, or a manifest's only one; raises UsageError where it is none."""
    row = row_of_clip(folder, clip, ", by the beginning of its id")
    return {name: row[name] for name in ROW_COLUMNS}


def file_sha256(path: Path) -> str | None:
    """Of a file's content; None where it cannot be read, which whoever reads it tells."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _hashed(value: Any) -> Any:
    """A value of a row as plain JSON; arrays by their hash."""
    if isinstance(value, Mapping):
        return {name: _hashed(v) for name, v in value.items()}
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return value if value is None or isinstance(value, (str, int, float, bool)) else [_hashed(v) for v in value]
