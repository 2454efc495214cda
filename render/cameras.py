"""Training cameras that come with a scene: COLMAP models, nerfstudio's transforms.json, 3DGS training's cameras.json.

World frame and unit are the file's own. Cameras are turned to OpenCV axes (x right, y down, z forward), and principal
points to pixel centres at integer coordinates: all three formats put the centre of the first pixel at (0.5, 0.5).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..geometry import invert_pose, nearest_rotation, pose, rotation_from_quaternion
from ..records import BadMedia, check_shape

MAX_CAMERAS = 1_000_000
MAX_JSON_BYTES = 1 << 28
MAX_NAME_BYTES = 4096
UNDISTORT = "Undistort the pictures first (colmap image_undistorter, or ns-process-data) and pass that model"
# COLMAP's models: number -> (name, parameters, one focal length for both axes). What follows focal length(s) and
# principal point is distortion; the models that are no perspective at all have no parameters here.
MODELS: dict[int, tuple[str, int, bool]] = {
    0: ("SIMPLE_PINHOLE", 3, True),
    1: ("PINHOLE", 4, False),
    2: ("SIMPLE_RADIAL", 4, True),
    3: ("RADIAL", 5, True),
    4: ("OPENCV", 8, False),
    5: ("OPENCV_FISHEYE", 0, False),
    6: ("FULL_OPENCV", 12, False),
    7: ("FOV", 5, False),
    8: ("SIMPLE_RADIAL_FISHEYE", 0, False),
    9: ("RADIAL_FISHEYE", 0, False),
    10: ("THIN_PRISM_FISHEYE", 0, False),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 0, False),
    12: ("SIMPLE_DIVISION", 4, True),
    13: ("DIVISION", 5, False),
    14: ("SIMPLE_FISHEYE", 0, False),
    15: ("FISHEYE", 0, False),
    16: ("EUCM", 0, False),
    17: ("EQUIRECTANGULAR", 0, False),
}
MODEL_NUMBERS = {name: number for number, (name, _, _) in MODELS.items()}
NS_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingCameras:
    """N pinhole cameras of the pictures that a scene was trained on."""

    path: str  # absolute, of the file or folder they were read from
    format: str  # "colmap", "nerfstudio" or "3dgs"
    names: tuple[str, ...]  # of the pictures, as the file names them
    world_from_cam: NDArray[np.float64]  # [N, 4, 4] scene units; camera axes x right, y down, z forward
    intrinsics: NDArray[np.float64]  # [N, 4] fx, fy, cx, cy in pixels; pixel centres at integer coordinates
    sizes: NDArray[np.int64]  # [N, 2] width, height of the pictures
    distorted: NDArray[np.bool_]  # [N] the lens has a distortion that `intrinsics` leave out
    remarks: tuple[str, ...] = ()  # what a user should know

    def __post_init__(self) -> None:
        n = len(self.names)
        for name, shape in {
            "world_from_cam": (n, 4, 4),
            "intrinsics": (n, 4),
            "sizes": (n, 2),
            "distorted": (n,),
        }.items():
            check_shape(self, name, shape)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class _Lens:
    """One lens as a file states it: COLMAP's pixel coordinates."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distorted: bool


def find_cameras(scene: str | Path) -> Path | None:
    """Where the training cameras of a scene file or folder are, or None where nothing is known to hold them.

    Looked for in the scene's folder (or, for <out>/point_cloud/iteration_*/..., in <out>): transforms.json,
    cameras.json, and a COLMAP model there or in sparse/0, sparse or colmap/sparse/0.

    Raises:
        BadMedia: there are two, whose worlds may differ.
    """
    scene = Path(scene).absolute()
    folder = scene if scene.is_dir() else scene.parent
    if folder.name.startswith("iteration_") and folder.parent.name == "point_cloud":
        folder = folder.parent.parent
    found = [file for name in ("transforms.json", "cameras.json") if (file := folder / name).is_file()]
    models = [folder / name for name in ("", "sparse/0", "sparse", "colmap/sparse/0")]
    found += [model for model in models if _colmap_suffix(model)][:1]
    if len(found) > 1:
        raise BadMedia(
            "ambiguous_cameras",
            f"{folder}: holds cameras twice, in {' and '.join(str(f.relative_to(folder)) or '.' for f in found)}, "
            "whose worlds may differ. Name the one that the splats were trained with.",
        )
    return found[0] if found else None


def read_cameras(path: str | Path, *, allow_distorted: bool = False) -> TrainingCameras:
    """The cameras of a COLMAP model folder (binary or text), a transforms.json, or 3DGS training's cameras.json.

    Args:
        path: that file or folder, or a scene's file or folder for `find_cameras` to look in.
        allow_distorted: take the pinhole part of distorted lenses and flag them; enough for where cameras stood and
            looked, wrong for drawing their pictures. Otherwise they are refused. Fisheye lenses always are.

    Returns:
        COLMAP's cameras in the order of their pictures' names, the others' in the order of the file.

    Raises:
        BadMedia: nothing there, a broken file, a lens that is no pinhole, no camera.
    """
    path = Path(path).absolute()
    try:
        if path.is_dir() and (suffix := _colmap_suffix(path)):
            cameras = _read_colmap(path, suffix)
        elif path.suffix == ".json" and path.is_file():
            cameras = _read_json(path)
        else:
            found = find_cameras(path) if path.exists() else None
            if found is None:
                raise BadMedia(
                    "no_cameras",
                    f"{path}: no training cameras there. Pass a COLMAP model folder (cameras.bin and images.bin, or "
                    ".txt), a transforms.json or a cameras.json.",
                )
            return read_cameras(found, allow_distorted=allow_distorted)
    except OSError as error:
        raise BadMedia("unreadable", f"{path}: {error.strerror or error}") from error
    if cameras.distorted.any() and not allow_distorted:
        first = cameras.names[int(cameras.distorted.argmax())]
        raise BadMedia(
            "distorted_lens",
            f"{path}: the lens of {cameras.distorted.sum()} of {len(cameras)} pictures is distorted (the first is "
            f"{first}), but splats are drawn by a pinhole. {UNDISTORT}; or allow distorted lenses where only the "
            "places of the cameras matter.",
        )
    return cameras


def _assemble(
    path: Path, form: str, names: list[str], poses: NDArray, lenses: list[_Lens], remarks: tuple[str, ...] = ()
) -> TrainingCameras:
    """Cameras from checked parts; `poses` is world_from_cam [N, 4, 4], its rotations to be made exact."""
    if not names:
        raise BadMedia("no_cameras", f"{path}: holds no camera with a pose")
    off = np.abs(poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2) - np.eye(3)).max((1, 2))
    bad = ~np.isfinite(poses).all((1, 2)) | ~(off < 1e-2) | ~(np.linalg.det(poses[:, :3, :3]) > 0)
    if bad.any():
        first = int(bad.argmax())
        raise _broken(path, f"the pose of {names[first]} is no rotation and place ({bad.sum()} are like it)")
    exact = pose(nearest_rotation(poses[:, :3, :3]), poses[:, :3, 3])
    if any(lens.distorted for lens in lenses):
        remarks = (
            *remarks,
            f"{sum(lens.distorted for lens in lenses)} lenses are distorted; only their pinhole is kept",
        )
    return TrainingCameras(
        path=str(path),
        format=form,
        names=tuple(names),
        world_from_cam=exact,
        intrinsics=np.array([(lens.fx, lens.fy, lens.cx - 0.5, lens.cy - 0.5) for lens in lenses]),
        sizes=np.array([(lens.width, lens.height) for lens in lenses], np.int64),
        distorted=np.array([lens.distorted for lens in lenses]),
        remarks=remarks,
    )


def _broken(path: Path, what: str) -> BadMedia:
    return BadMedia("broken_cameras", f"{path}: {what}. Copy it again, or export it again.")


def _lens(
    path: Path,
    where: str,
    size: tuple[float, float],
    focal: tuple[float, float],
    centre: tuple[float, float],
    rest: Any,
) -> _Lens:
    numbers = (*size, *focal, *centre, *rest)
    if not all(math.isfinite(v) for v in numbers) or min(focal) <= 0 or not all(1 <= v <= 1 << 20 for v in size):
        raise _broken(path, f"the lens of {where} is not sound: size {size}, focal length {focal}, centre {centre}")
    return _Lens(
        width=int(size[0]),
        height=int(size[1]),
        fx=focal[0],
        fy=focal[1],
        cx=centre[0],
        cy=centre[1],
        distorted=any(v != 0 for v in rest),
    )


# --- COLMAP ----------------------------------------------------------------------------------------------------------
# Source: colmap.github.io/format.html


def _colmap_suffix(folder: Path) -> str:
    """ ".bin" or ".txt" where the folder holds a COLMAP model, else ""."""
    return next((s for s in (".bin", ".txt") if all((folder / f"{n}{s}").is_file() for n in ("cameras", "images"))), "")


def _read_colmap(folder: Path, suffix: str) -> TrainingCameras:
    lenses: dict[int, _Lens] = {}
    cameras, images = folder / f"cameras{suffix}", folder / f"images{suffix}"
    binary = suffix == ".bin"
    for number, model, width, height, values in (_binary_cameras if binary else _text_cameras)(cameras):
        name, _, shared = MODELS[model]
        fx, fy, cx, cy, *rest = (values[0], *values) if shared else values
        lenses[number] = _lens(cameras, f"camera {number} ({name})", (width, height), (fx, fy), (cx, cy), rest)
    seen: list[tuple[str, int, tuple[float, ...]]] = []
    for name, camera, motion in (_binary_images if binary else _text_images)(images):
        if camera not in lenses:
            raise _broken(images, f"picture {name} was taken by camera {camera}, which {cameras.name} does not have")
        length = math.hypot(*motion[:4])
        if not 0.5 < length < 2 or not all(abs(v) < 1e100 for v in motion):
            raise _broken(images, f"the pose of {name} is not sound: its quaternion has length {length:g}")
        seen.append((name, camera, motion))
    seen.sort()
    motions = np.array([motion for _, _, motion in seen]).reshape(-1, 7)
    poses = invert_pose(pose(rotation_from_quaternion(motions[:, :4]), motions[:, 4:]))
    return _assemble(folder, "colmap", [name for name, _, _ in seen], poses, [lenses[camera] for _, camera, _ in seen])


def _model(path: Path, camera: int, model: int) -> int:
    """How many parameters a perspective model has; raises BadMedia for others."""
    name, count, _ = MODELS.get(model, (f"number {model}", 0, False))
    if not count:
        raise BadMedia(
            "distorted_lens", f"{path}: camera {camera} has the lens model {name}, which is no pinhole. {UNDISTORT}."
        )
    return count


class _Cursor:
    """Reads a binary file from its start; what it lacks is told in words."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        if self.at + form.size > len(self.data):
            raise self.cut_off()
        values = form.unpack_from(self.data, self.at)
        self.at += form.size
        return values

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise self.cut_off()

    def cut_off(self) -> BadMedia:
        return BadMedia("truncated", f"{self.path}: ends at byte {len(self.data)}, within a record. Copy it again.")

    def count(self, least: int) -> int:
        """How many records follow, each of at least so many bytes."""
        (count,) = self.take(_U64)
        if count > min(MAX_CAMERAS, (len(self.data) - self.at) // least):
            raise _broken(self.path, f"says it holds {count} records, more than fit in its {len(self.data)} bytes")
        return count

    def end(self) -> None:
        if self.at != len(self.data):
            raise _broken(self.path, f"has {len(self.data) - self.at} bytes after its last record")


_U64, _CAMERA, _IMAGE = struct.Struct("<Q"), struct.Struct("<IiQQ"), struct.Struct("<I7dI")
POINT_BYTES = 24  # of an observation: x, y, and the number of its point


def _open(path: Path) -> _Cursor:
    if not path.stat().st_size:
        raise BadMedia("empty_file", f"{path}: the file is empty")
    with open(path, "rb") as file:
        return _Cursor(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _binary_cameras(path: Path) -> Iterator[tuple[int, int, int, int, tuple[float, ...]]]:
    cursor = _open(path)
    for _ in range(cursor.count(_CAMERA.size + 3 * 8)):
        number, model, width, height = cursor.take(_CAMERA)
        yield number, model, width, height, cursor.take(struct.Struct(f"<{_model(path, number, model)}d"))
    cursor.end()


def _binary_images(path: Path) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    cursor = _open(path)
    for i in range(cursor.count(_IMAGE.size + 1 + _U64.size)):
        _, *motion, camera = cursor.take(_IMAGE)
        stop = cursor.data.find(b"\0", cursor.at, cursor.at + MAX_NAME_BYTES)
        if stop < 0:
            raise _broken(path, f"the name of picture {i} does not end")
        name = cursor.data[cursor.at : stop].decode("utf-8", "replace")
        cursor.at = stop + 1
        cursor.skip(POINT_BYTES * cursor.take(_U64)[0])
        yield name, camera, tuple(motion)
    cursor.end()


def _text_cameras(path: Path) -> Iterator[tuple[int, int, int, int, tuple[float, ...]]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for words in (line.split() for line in file if line.strip() and not line.startswith("#")):
            try:
                number, name, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
                values = tuple(float(word) for word in words[4:])
            except (ValueError, IndexError) as error:
                raise _broken(path, f"no camera: {' '.join(words)[:80]!r}") from error
            model = MODEL_NUMBERS.get(name)
            if model is None:
                raise _broken(path, f"camera {number} has the unknown lens model {name[:40]!r}")
            if len(values) != _model(path, number, model):
                raise _broken(path, f"camera {number} has {len(values)} parameters, which are not those of {name}")
            yield number, model, width, height, values


def _text_images(path: Path) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = (line for line in file if not line.startswith("#"))
        for line in lines:
            words = line.split(maxsplit=9)
            try:
                motion, camera, name = tuple(float(word) for word in words[1:8]), int(words[8]), words[9].rstrip()
            except (ValueError, IndexError) as error:
                raise _broken(path, f"no picture: {line[:80]!r}") from error
            next(lines, None)  # its observations, on a line that may be empty
            yield name, camera, motion


# --- JSON ------------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> TrainingCameras:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise BadMedia("too_large", f"{path}: {size} bytes, more than the {MAX_JSON_BYTES} that cameras may take")
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"no JSON ({str(error)[:120] or 'nested too deep'})") from error
    if isinstance(tree, dict) and isinstance(tree.get("frames"), list):
        return _nerfstudio(path, tree)
    if isinstance(tree, list) and all(isinstance(entry, dict) for entry in tree):
        return _training_output(path, tree)
    raise BadMedia("no_cameras", f"{path}: neither a transforms.json (with `frames`) nor a cameras.json (a list)")


def _nerfstudio(path: Path, tree: dict[str, Any]) -> TrainingCameras:
    """Source: docs.nerf.studio/quickstart/data_conventions.html; instant-ngp's older form with angles is read too."""
    names, poses, lenses = [], [], []
    for i, frame in enumerate(tree["frames"]):
        if not isinstance(frame, dict):
            raise _broken(path, f"frame {i} is no table")
        name = str(frame.get("file_path", f"frame {i}"))
        own = {**tree, **frame}
        model = own.get("camera_model", "PINHOLE")
        if own.get("is_fisheye") or MODELS.get(MODEL_NUMBERS.get(str(model), -1), ("", 0))[1] == 0:
            raise BadMedia(
                "distorted_lens",
                f"{path}: {name} has the lens model {str(model)[:40]}{' (fisheye)' if own.get('is_fisheye') else ''}, "
                f"which is no pinhole. {UNDISTORT}.",
            )
        width, height = _number(path, name, own, "w"), _number(path, name, own, "h")
        fx = (
            _number(path, name, own, "fl_x") if "fl_x" in own else _from_angle(path, name, own, "camera_angle_x", width)
        )
        if "fl_y" in own:
            fy = _number(path, name, own, "fl_y")
        else:
            fy = _from_angle(path, name, own, "camera_angle_y", height) if "camera_angle_y" in own else fx
        cx = _number(path, name, own, "cx") if "cx" in own else width / 2
        cy = _number(path, name, own, "cy") if "cy" in own else height / 2
        rest = tuple(_number(path, name, own, key) for key in NS_DISTORTION if key in own)
        names.append(name)
        poses.append(_matrix(path, name, frame.get("transform_matrix"), (4, 4), (3, 4)))
        lenses.append(_lens(path, name, (width, height), (fx, fy), (cx, cy), rest))
    remarks = tuple(
        f"{key} is left in: the world is that of transforms.json, which is not that of {other}"
        for key, other in (
            ("applied_transform", "the COLMAP model it was made from"),
            ("applied_scale", "the COLMAP model it was made from"),
        )
        if key in tree
    )
    remarks += (
        "nerfstudio trains in a world of its own (dataparser_transforms.json): these cameras fit splats only where "
        "training kept the world of transforms.json",
    )
    matrices = np.array(poses).reshape(-1, 4, 4) @ OPENCV_FROM_OPENGL
    return _assemble(path, "nerfstudio", names, matrices, lenses, remarks)


def _training_output(path: Path, entries: list[dict[str, Any]]) -> TrainingCameras:
    """cameras.json of the original 3DGS training: OpenCV axes, principal point in the picture's middle."""
    names, poses, lenses = [], [], []
    for i, entry in enumerate(entries):
        name = str(entry.get("img_name", f"camera {i}"))
        width, height, fx, fy = (_number(path, name, entry, key) for key in ("width", "height", "fx", "fy"))
        matrix = np.eye(4)
        matrix[:3, :3] = _matrix(path, name, entry.get("rotation"), (3, 3))
        matrix[:3, 3] = _matrix(path, name, [entry.get("position")], (1, 3))
        names.append(name)
        poses.append(matrix)
        lenses.append(_lens(path, name, (width, height), (fx, fy), (width / 2, height / 2), ()))
    return _assemble(path, "3dgs", names, np.array(poses).reshape(-1, 4, 4), lenses)


def _number(path: Path, where: str, table: dict[str, Any], key: str) -> float:
    value = table.get(key)
    if not _is_number(value):
        advice = " (add the pictures' size)" if key in ("w", "h") else ""
        raise _broken(path, f"{key} of {where} is {str(value)[:40]}, not a number{advice}")
    return float(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e100  # no NaN, no endless integer


def _from_angle(path: Path, where: str, table: dict[str, Any], key: str, size: float) -> float:
    """The focal length in pixels of an angle of view in radians."""
    angle = _number(path, where, table, key)
    if not 0 < angle < math.pi:
        raise _broken(path, f"{key} of {where} is {angle:g} rad, no angle of view")
    return size / 2 / math.tan(angle / 2)


def _matrix(path: Path, where: str, rows: Any, *shapes: tuple[int, int]) -> NDArray[np.float64]:
    """A matrix of JSON of one of these shapes; [3, 4] is completed to [4, 4]."""
    for shape in shapes:
        if (
            isinstance(rows, list)
            and [len(row) if isinstance(row, list) else -1 for row in rows] == [shape[1]] * shape[0]
        ):
            if all(_is_number(value) for row in rows for value in row):
                matrix = np.array(rows, np.float64)
                return np.concatenate([matrix, [[0, 0, 0, 1]]]) if shape == (3, 4) else matrix
    raise _broken(path, f"the pose of {where} is no matrix of {' or '.join(f'{a} x {b}' for a, b in shapes)} numbers")
