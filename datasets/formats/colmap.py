"""COLMAP's sparse models: written as text, read as text or binary. Poses are world to camera by definition.

Pixel corners lie at integers there, so that a centre lies half a pixel further. Rotations are quaternions, and
positions go through an inverse: a round trip is good to float32 rounding (2e-7 of the lengths).

Source: COLMAP's documentation, "Output Format"; src/colmap/sensor/models.h for the models' parameters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadMedia
from ...geometry import invert_pose, pose, quaternion_from_rotation, rotation_from_quaternion
from ..cameras import MAX_FRAMES, Cameras, Refused, each, unit_quaternions
from ..readers import Clip
from ..safe import MAX_ARRAY_BYTES, read_bytes, read_text, told
from .output import Output

# model -> (number of parameters, one focal length, where k1 and k2 are). Others have lenses that the manifest has no
# words for.
MODELS: dict[str, tuple[int, bool, tuple[int, ...]]] = {
    "SIMPLE_PINHOLE": (3, True, ()),
    "PINHOLE": (4, False, ()),
    "SIMPLE_RADIAL": (4, True, (3,)),
    "RADIAL": (5, True, (3, 4)),
    "OPENCV": (8, False, (4, 5)),
}
MODEL_IDS = {0: "SIMPLE_PINHOLE", 1: "PINHOLE", 2: "SIMPLE_RADIAL", 3: "RADIAL", 4: "OPENCV"}
SAMPLED = 4000  # observations that the direction of the poses is judged by


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """Filled as its files are read."""

    cameras: dict[int, tuple[str, int, int, list[float]]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    camera_ids: list[int] = field(default_factory=list)
    quaternions: list[list[float]] = field(default_factory=list)
    translations: list[list[float]] = field(default_factory=list)
    seen: list[tuple[int, float, float, int]] = field(default_factory=list)  # picture, x, y, point
    points: dict[int, tuple[float, float, float]] = field(default_factory=dict)


def write(samples: Iterable[tuple[Clip, Mapping[str, Any]]], out: Output) -> dict[str, str]:
    """`<id>/` {cameras,images,points3D}.txt; one camera for each picture where intrinsics vary."""
    for clip, _ in samples:
        posed = np.flatnonzero(clip.pose_valid)
        cam_from_world = invert_pose(clip.world_from_cam[posed])
        q, t = quaternion_from_rotation(cam_from_world[:, :3, :3]), cam_from_world[:, :3, 3]
        shared = bool((clip.intrinsics[posed] == clip.intrinsics[posed[0]]).all())
        model, tail = ("OPENCV", [*clip.distortion, 0.0, 0.0]) if clip.distortion else ("PINHOLE", [])
        names = clip.image_names
        cameras, images = [], []
        for i, frame in enumerate(posed):
            camera = 1 if shared else i + 1
            if camera == i + 1:
                fx, fy, cx, cy = clip.intrinsics[frame].tolist()
                numbers = " ".join(map(repr, (fx, fy, cx + 0.5, cy + 0.5, *tail)))
                cameras.append(f"{camera} {model} {clip.width} {clip.height} {numbers}\n")
            numbers = " ".join(map(repr, (*q[i].tolist(), *t[i].tolist())))
            images.append(f"{i + 1} {numbers} {camera} {names[frame]}\n\n")  # the empty line: no 2D points
        out.text(f"{clip.clip_id}/cameras.txt", "".join(cameras))
        out.text(f"{clip.clip_id}/images.txt", "".join(images))
        out.text(f"{clip.clip_id}/points3D.txt", "")
    return {}


def read(source: Path) -> Iterator[Cameras | Refused]:
    """One clip for each model: in the folder, its sparse/0 or sparse, or those of its subfolders.

    Pictures are ordered by name; those of a scene lie in its `images` folder.

    Raises:
        BadMedia: no model, a broken one, a lens beyond two radial terms, or poses under which its points do not lie
            where they were seen.
    """
    scenes = [source] if _model_folder(source) else sorted(p for p in source.glob("*") if _model_folder(p))
    if not scenes:
        raise BadMedia("no_cameras", f"{source}: there is no COLMAP model (images.txt or images.bin).")

    def read_scene(name: str) -> Cameras:
        scene = source / name
        folder = _model_folder(scene)
        assert folder is not None
        return _cameras(source, scene, folder, _binary(folder) if (folder / "images.bin").is_file() else _text(folder))

    return each(("" if scene == source else scene.name for scene in scenes), read_scene)


def _model_folder(scene: Path) -> Path | None:
    for name in ("", "sparse/0", "sparse", "colmap/sparse/0"):
        if any((scene / name / f"images.{suffix}").is_file() for suffix in ("bin", "txt")):
            return scene / name
    return None


def _cameras(source: Path, scene: Path, folder: Path, model: _Model) -> Cameras:
    if not model.names:
        raise BadMedia("no_cameras", f"{folder}: the model has no picture.")
    if unknown := set(model.camera_ids) - set(model.cameras):
        raise BadMedia("broken_cameras", f"{folder}: pictures of camera {min(unknown)}, which the model does not have.")
    order = sorted(range(len(model.names)), key=lambda i: model.names[i])
    if len(set(model.names)) != len(order):
        raise BadMedia("broken_cameras", f"{folder}: two pictures of one name.")
    q = unit_quaternions(np.array(model.quaternions), str(folder))
    cam_from_world = pose(rotation_from_quaternion(q), np.array(model.translations))
    lenses = {i: _lens(camera, folder) for i, camera in model.cameras.items() if i in set(model.camera_ids)}
    if len({lens[1:] for lens in lenses.values()}) > 1:
        raise BadMedia(
            "mixed_lenses", f"{folder}: pictures of several sizes or distortions; a clip has one of each. Split it."
        )
    _check_points(folder, cam_from_world, np.array([lenses[i][0] for i in model.camera_ids]), model)
    _, size, distortion = next(iter(lenses.values()))
    images = scene / "images"
    return Cameras(
        name="" if scene == source else scene.name,
        poses=cam_from_world[order],
        intrinsics=np.array([lenses[model.camera_ids[i]][0] for i in order]),
        size=size,
        image_names=tuple(model.names[i] for i in order),
        media=images.relative_to(source).as_posix() if images.is_dir() else None,
        distortion=distortion,
    )


def _lens(
    camera: tuple[str, int, int, list[float]], folder: Path
) -> tuple[tuple[float, ...], tuple[int, int], tuple[float, float] | tuple[()]]:
    name, width, height, p = camera
    if name not in MODELS:
        raise BadMedia(
            "distorted_lens",
            f"{folder}: the camera model {name} has more than two radial terms. Undistort the pictures first: "
            "colmap image_undistorter.",
        )
    count, single, where = MODELS[name]
    if len(p) != count or not np.isfinite(p).all() or not (0 < width < 1 << 20 and 0 < height < 1 << 20):
        raise BadMedia("broken_cameras", f"{folder}: a {name} of {width} x {height} with the parameters {p[:8]}.")
    fx, fy, cx, cy = (p[0], p[0], p[1], p[2]) if single else p[:4]
    k = [p[i] for i in where]
    if name == "OPENCV" and (p[6] or p[7]):
        raise BadMedia("distorted_lens", f"{folder}: tangential distortion {p[6:]}; undistort the pictures first.")
    k1, k2 = [*k, 0.0, 0.0][:2]
    return (fx, fy, cx - 0.5, cy - 0.5), (width, height), (k1, k2) if k1 or k2 else ()


def _check_points(folder: Path, cam_from_world: NDArray, intrinsics: NDArray, model: _Model) -> None:
    """Refuse a model whose points do not lie where they were seen, and say so where they would under the inverse."""
    seen = [s for s in model.seen if s[3] in model.points]
    seen = seen[:: max(1, len(seen) // SAMPLED)]
    if len(seen) < 50:
        return
    at = np.array([s[0] for s in seen])
    xy = np.array([s[1:3] for s in seen]) - 0.5
    points = np.array([model.points[s[3]] for s in seen])
    error = {}
    for name, m in (("w2c", cam_from_world), ("c2w", invert_pose(cam_from_world))):
        x = (m[at, :3, :3] @ points[:, :, None])[:, :, 0] + m[at, :3, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            projected = intrinsics[at, :2] * x[:, :2] / x[:, 2:] + intrinsics[at, 2:]
        off = np.where(x[:, 2] > 0, np.linalg.norm(projected - xy, axis=1), np.inf)
        error[name] = float(np.median(np.nan_to_num(off, nan=np.inf)))
    limit = 0.05 * float(np.max(intrinsics[:, 0]))
    if error["w2c"] > limit:
        hint = (
            f"Under the inverse the median is {error['c2w']:.1f} px: whoever wrote it stored c2w, "
            "which COLMAP's format does not. Invert the poses."
            if error["c2w"] < limit
            else "Its poses or intrinsics are not those of its points."
        )
        raise BadMedia(
            "points_elsewhere",
            f"{folder}: the model's points lie {error['w2c']:.1f} px (median) from where they were seen. {hint}",
        )


# ---- text --------------------------------------------------------------------------------------------------------


def _text(folder: Path) -> _Model:
    model = _Model()
    try:
        for words in _lines(folder / "cameras.txt"):
            model.cameras[int(words[0])] = (words[1], int(words[2]), int(words[3]), [float(w) for w in words[4:]])
        rows = iter(read_text(folder / "images.txt").splitlines())
        for line in rows:
            if not line.strip() or line.startswith("#"):
                continue
            words = line.split(maxsplit=9)
            model.quaternions.append([float(w) for w in words[1:5]])
            model.translations.append([float(w) for w in words[5:8]])
            model.camera_ids.append(int(words[8]))
            model.names.append(words[9].strip())
            found = next(rows, "").split()
            model.seen.extend(
                (len(model.names) - 1, float(x), float(y), int(p))
                for x, y, p in zip(found[::3], found[1::3], found[2::3], strict=True)
                if p != "-1"
            )
        if (folder / "points3D.txt").is_file():
            for words in _lines(folder / "points3D.txt"):
                x, y, z = map(float, words[1:4])
                model.points[int(words[0])] = (x, y, z)
    except (ValueError, IndexError, OverflowError) as error:
        raise BadMedia("broken_cameras", f"{folder}: the model's text cannot be read: {error}.") from error
    return model


def _lines(path: Path) -> Iterator[list[str]]:
    for line in read_text(path).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.split()


# ---- binary ------------------------------------------------------------------------------------------------------


class _Bytes:
    """A file's bytes, read from front to back; what is asked for beyond the end is an error, never a wait."""

    def __init__(self, path: Path) -> None:
        self.data, self.at, self.path = read_bytes(path, MAX_ARRAY_BYTES), 0, path

    def take(self, form: str) -> tuple:
        size = struct.calcsize("<" + form)
        if self.at + size > len(self.data):
            raise BadMedia("broken_cameras", f"{self.path} ends early.")
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += size
        return values

    def count(self, least_bytes: int, most: int = 1 << 40) -> int:
        (n,) = self.take("Q")
        if n > most or n * least_bytes > len(self.data) - self.at:
            raise BadMedia("broken_cameras", f"{self.path} speaks of {n} entries, but is too short for them.")
        return n

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise BadMedia("broken_cameras", f"{self.path}: a name without an end.")
        name, self.at = self.data[self.at : end], end + 1
        with told(self.path):
            return name.decode("utf-8")


def _binary(folder: Path) -> _Model:
    model = _Model()
    file = _Bytes(folder / "cameras.bin")
    for _ in range(file.count(24)):
        camera, kind, width, height = file.take("iiQQ")
        if kind not in MODEL_IDS:
            raise BadMedia("distorted_lens", f"{folder}: camera model {kind} has more than two radial terms.")
        parameters = file.take(f"{MODELS[MODEL_IDS[kind]][0]}d")
        model.cameras[camera] = (MODEL_IDS[kind], width, height, list(parameters))
    file = _Bytes(folder / "images.bin")
    for _ in range(file.count(64, MAX_FRAMES)):
        _, *numbers, camera = file.take("i7di")
        model.quaternions.append(numbers[:4])
        model.translations.append(numbers[4:])
        model.camera_ids.append(camera)
        model.names.append(file.name())
        for _ in range(n := file.count(24)):
            x, y, point = file.take("ddq")
            if point >= 0 and (n < 64 or len(model.seen) < 50 * SAMPLED):
                model.seen.append((len(model.names) - 1, x, y, point))
    if (folder / "points3D.bin").is_file():
        file = _Bytes(folder / "points3D.bin")
        for _ in range(file.count(43)):
            point, x, y, z, *_ = file.take("QdddBBBd")
            model.points[point] = (x, y, z)
            length = file.count(8)
            file.take(f"{8 * length}x")
    return model
