"""Damaged and hostile files against everything that reads files of others: how many were tried, and what got through.

    python benchmarks/fuzz.py                    # the numbers of results/fuzz.json
    python benchmarks/fuzz.py --only video --inputs 50 --seed 7

Each input is a sound collection, manifest or video with one to three things wrong: bytes flipped, cut or repeated,
JSON values replaced, rows that name other files, array headers that speak of terabytes or of pickled objects, archives
whose members lead elsewhere, links and pipes in the place of files, text that names other files. An input may be read,
or refused, as a whole or in part, with LongtakeError. It has crashed where anything else is raised or the process
dies; it has escaped where what lies outside its folder was shown, changed or added to. Inputs follow from target and
seed, so each can be tried again by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.exporters import export
from longtake.datasets.filters import load_profile
from longtake.datasets.formats import exr, vipe
from longtake.datasets.formats.table import FORMATS
from longtake.datasets.importers import READERS, ImportConfig, imported_row, read_collection
from longtake.datasets.manifest import Manifest, create_manifest, open_manifest
from longtake.datasets.refilter import read_scores
from longtake.datasets.row_files import path_of
from longtake.datasets.schema import Provenance, to_table
from longtake.errors import LongtakeError
from longtake.geometry import invert_pose, pose, quaternion_from_rotation, rotation_from_vector
from longtake.records import VideoInfo

CANARY = "canary-that-must-not-be-seen"
MEDIA = ("none", "none", "copy", "link", "keep")  # what imports do with films and pictures
STRAY = f"part-{0:032x}.parquet"
STUCK_S = 30.0  # an input that takes longer counts as a crash
PROVENANCE = Provenance(
    run_id="fuzz",
    config_hash="0" * 16,
    software_version="0",
    stage_versions={"fuzz": "1"},
    created_at=datetime(2025, 1, 1, tzinfo=UTC),
)
NASTY: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    2**63,
    2**64,
    10**400,
    "",
    "../../outside/canary.txt",
    f"../outside/{STRAY}",
    "/etc/hostname",
    "file:///etc/hostname",
    "a" * 100_000,
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    "NaN",
]
TARGETS = ("manifest", "rows", "scores", "profile", "video", *READERS)
Fault = tuple[int, str, str]  # seed, crashed or escaped, what


# ---- sound inputs ------------------------------------------------------------------------------------------------


def sound(target: str, folder: Path) -> None:
    """Write the sound input of a target into `folder`."""
    folder.mkdir(parents=True)
    if target == "video":
        _films(folder)
    elif target == "scores":
        _scores(folder)
    elif target == "profile":
        source = Path(load_profile.__code__.co_filename).parent / "profiles"
        for path in source.glob("*.toml"):
            shutil.copy(path, folder)
    elif target == "spatialvid":
        c2w = _path()
        w2c = invert_pose(c2w)
        q = quaternion_from_rotation(w2c[:, :3, :3])
        clip = folder / "annotations" / "group_0001" / "a-clip"
        clip.mkdir(parents=True)
        np.save(clip / "poses.npy", np.column_stack([w2c[:, :3, 3], q[:, 1:], q[:, 0]]).astype(np.float32))
        np.save(clip / "intrinsics.npy", np.tile(np.float32([0.8, 1.4, 0.5, 0.5]), (len(c2w), 1)))
        (clip / "indexes.txt").write_text("".join(f"{5 * i}\n" for i in range(len(c2w))))
    elif target == "omniworld":
        w2c = invert_pose(_path())
        cameras = {"quats": quaternion_from_rotation(w2c[:, :3, :3]).tolist(), "trans": w2c[:, :3, 3].tolist()}
        cameras |= {"focals": [500.0] * len(w2c), "cx": 320.0, "cy": 240.0}
        (folder / "scene" / "camera").mkdir(parents=True)
        (folder / "scene" / "split_info.json").write_text(json.dumps({"split": [list(range(len(w2c)))]}))
        (folder / "scene" / "camera" / "split_0.json").write_text(json.dumps(cameras))
    else:
        shutil.rmtree(folder)
        manifest = _manifest(folder if target in ("manifest", "rows") else folder.with_name("manifest"))
        if target == "rows":
            _named_files(manifest)
        elif target != "manifest":
            export(manifest, target, folder)
            shutil.rmtree(manifest.folder)
        if target == "colmap":
            _binary_colmap(folder)
        for clip in [p for p in folder.iterdir() if p.is_dir()] if target in ("colmap", "nerfstudio") else []:
            (clip / "images").mkdir()
            for i in range(12):
                (clip / "images" / f"frame_{i:06d}.png").write_bytes(b"not looked into")
        if target == "vipe":
            (folder / "rgb").mkdir()
            for clip in sorted((folder / "pose").iterdir()):
                (folder / "rgb" / f"{clip.stem}.mp4").write_bytes(b"not looked into")
                _depth_and_masks(folder, clip.stem)


def _path(count: int = 12) -> NDArray[np.float64]:
    s = np.linspace(0, 1, count)
    turn = rotation_from_vector(np.column_stack([0.1 * s, 0.5 * s, -0.2 * s]))
    return pose(turn, np.column_stack([s, 0.3 * s**2, np.sin(3 * s)]))


def _manifest(folder: Path) -> Manifest:
    manifest = create_manifest(folder)
    cameras = folder.with_name("cameras")
    cameras.mkdir()
    for i in range(3):
        k = np.array([[500.0 + i, 0, 319.5], [0, 500, 239.5], [0, 0, 1]])
        np.savez(cameras / f"clip{i}.npz", c2w=_path(), K=k, times_s=np.arange(12) / 30)
    config = _config("npz", size=(640, 480), scale="metric")
    rows = [imported_row(c, config, PROVENANCE, folder) for c in read_collection(cameras, config, _no_probe)]
    manifest.append(rows[:2])
    manifest.append(rows[2:])
    shutil.rmtree(cameras)
    return manifest


def _named_files(manifest: Manifest) -> None:
    """Films and depth of the rows, below the manifest."""
    rows = list(manifest.rows())
    for row in rows:
        folder = manifest.folder / "clips" / row["clip_id"]
        folder.mkdir(parents=True)
        names = {name: f"clips/{row['clip_id']}/{name}" for name in ("a.mp4", "depth.zip")}
        for name in names.values():
            (manifest.folder / name).write_bytes(b"film")
        row |= {"uri": names["a.mp4"], "depth_uri": names["depth.zip"], "depth_encoding": ""}
        row |= {"sha256": hashlib.sha256(b"film").hexdigest(), "bytes": 4}
    manifest.append(rows)


def _depth_and_masks(folder: Path, name: str) -> None:
    import cv2

    for kind in ("depth", "mask"):
        (folder / kind).mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / kind / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for frame in range(0, 12, 3):
                if kind == "depth":
                    archive.writestr(f"{frame:05d}.exr", exr.write_depth(np.linspace(1, 9, 20 * 30).reshape(20, 30)))
                else:
                    png = cv2.imencode(".png", np.full((20, 30), frame, np.uint8))[1]
                    archive.writestr(f"{frame:05d}.png", png.tobytes())
    (folder / "mask" / f"{name}.txt").write_text("3: a dog\n")


def _config(target: str, **known: Any) -> ImportConfig:
    form = FORMATS[target]
    stated: dict[str, Any] = {
        "direction": form.direction or "c2w",
        "convention": form.convention or "opencv",
        "fps": 30.0,
        "intrinsics": (500.0, 500.0, 319.5, 239.5),
    }
    return ImportConfig(format=target, license="CC0-1.0", **stated | known)


def _binary_colmap(folder: Path) -> None:
    """Half of the models as binary ones, with points."""
    import struct

    for scene in sorted(p for p in folder.iterdir() if p.is_dir())[:2]:
        lines = [line.split() for line in (scene / "images.txt").read_text().splitlines() if line.strip()]
        with open(scene / "cameras.bin", "wb") as file:
            file.write(struct.pack("<QiiQQ4d", 1, 1, 1, 640, 480, 500, 500, 320, 240))
        with open(scene / "images.bin", "wb") as file:
            file.write(struct.pack("<Q", len(lines)))
            for i, words in enumerate(lines):
                file.write(struct.pack("<i7di", i + 1, *map(float, words[1:8]), 1) + words[9].encode() + b"\0")
                file.write(struct.pack("<Q", 2) + struct.pack("<ddqddq", 10.0, 20.0, 1, 30.0, 40.0, -1))
        with open(scene / "points3D.bin", "wb") as file:
            file.write(struct.pack("<QQdddBBBdQii", 1, 1, 0.0, 0.0, 5.0, 1, 2, 3, 0.5, 1, 1, 0))


def _scores(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [f"clip-{i}" for i in range(20)]
    pq.write_table(pa.table({"clip_id": ids, "dover": [0.5] * 20, "caption": ["a room"] * 20}), folder / "a.parquet")
    (folder / "b.jsonl").write_text("".join(json.dumps({"id": i, "entity_count": 3}) + "\n" for i in ids))
    (folder / "c_vmafmotion_score.json").write_text(json.dumps(dict.fromkeys(ids, 4.5)))


def _films(folder: Path) -> None:
    import av

    for name, codec in (("a.mp4", "mpeg4"), ("b.mkv", "mpeg4"), ("c.avi", "mpeg4"), ("d.ts", "mpeg2video")):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(8):
                picture = np.full((48, 64, 3), 30 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())


# ---- damage ------------------------------------------------------------------------------------------------------


def damage(folder: Path, rng: np.random.Generator) -> None:
    """One to three things wrong in the files of a folder."""
    for _ in range(rng.integers(1, 4)):
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        if not files:
            return
        path = files[rng.integers(len(files))]
        kinds: list[Callable[[Path, np.random.Generator], None]] = [_bytes, _bytes, _planted]
        if path.suffix in (".json", ".jsonl"):
            kinds += [_json] * 4
        elif path.suffix in (".npz", ".zip"):
            kinds += [_archive] * 3
        elif path.suffix == ".npy":
            kinds += [_array] * 3
        elif path.suffix in (".txt", ".toml"):
            kinds += [_words] * 3
        kinds[rng.integers(len(kinds))](path, rng)


def _bytes(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    n = len(data)
    match rng.integers(7):
        case 0:
            data = data[: rng.integers(n + 1)]
        case 1:
            for _ in range(rng.integers(1, 9)):
                if n:
                    data[rng.integers(n)] ^= 1 << int(rng.integers(8))
        case 2:
            at = int(rng.integers(n + 1))
            data[at:at] = rng.bytes(int(rng.integers(1, 64)))
        case 3:
            at = int(rng.integers(n + 1))
            data[at : at + 8] = b"\xff" * 8
        case 4:
            a, b = sorted(int(i) for i in rng.integers(n + 1, size=2))
            data[a:b] = data[a:b] * 3
        case 5:
            data = bytearray(rng.bytes(int(rng.integers(512))))
        case _:
            words = [b"#EXTM3U\nfile:///etc/hostname\n", b"ffconcat version 1.0\nfile ../outside/canary.txt\n", b""]
            data = bytearray(words[rng.integers(len(words))])
    path.write_bytes(bytes(data))


def _planted(path: Path, rng: np.random.Generator) -> None:
    """A link, a pipe or a folder in the place of a file."""
    path.unlink()
    match rng.integers(4):
        case 0:
            path.symlink_to("/etc/hostname")
        case 1:
            path.symlink_to(path.name)
        case 2:
            os.mkfifo(path)
        case _:
            path.mkdir()


def _json(path: Path, rng: np.random.Generator) -> None:
    text = path.read_text(errors="replace")
    if rng.integers(12) == 0:
        path.write_text("[" * 100_000)
        return
    try:
        trees = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    except (ValueError, RecursionError):
        _bytes(path, rng)
        return
    places = [place for tree in trees for place in _places(tree)]
    if not places:
        return
    holder, key = places[rng.integers(len(places))]
    if isinstance(holder, dict) and rng.integers(6) == 0:
        del holder[key]
    else:
        holder[key] = NASTY[rng.integers(len(NASTY))]
    if len(str(trees)) < 1 << 22:
        lines = "\n".join(json.dumps(tree) for tree in trees)
        path.write_text(lines, encoding="utf-8", errors="surrogatepass")


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [tree]
    while waiting and len(found) < 2000:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def _words(path: Path, rng: np.random.Generator) -> None:
    words = path.read_text(errors="replace").split(" ")
    for _ in range(rng.integers(1, 4)):
        value = NASTY[rng.integers(len(NASTY))]
        words[rng.integers(len(words))] = str(value)
    path.write_text(" ".join(words), encoding="utf-8", errors="surrogatepass")


def _header(data: bytes, rng: np.random.Generator) -> bytes:
    """An .npy file whose header speaks of something else than it holds."""
    kinds = ["<f8", "|O", "<U4000000000", "|V8", "<c16", "<M8[ns]", "<f4", "|S0", "<f2"]
    shapes = ["(12, 4, 4)", "(1000000000000,)", "(-1, 4, 4)", "()", "(0, 4, 4)", "(12, 3, 4)", "(2**70,)", "(4,) * 99"]
    kind, shape = kinds[rng.integers(len(kinds))], shapes[rng.integers(len(shapes))]
    head = f"{{'descr': '{kind}', 'fortran_order': {bool(rng.integers(2))}, 'shape': {shape}}}\n".encode()
    length = len(head) if rng.integers(8) else int(rng.integers(1 << 16))
    return b"\x93NUMPY" + bytes([int(rng.integers(1, 4)), 0]) + length.to_bytes(2, "little") + head + data[128:]


def _array(path: Path, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    if rng.integers(2):
        path.write_bytes(_header(data, rng))
        return
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, MemoryError, TokenError):
        return
    if values.size and values.dtype.kind in "fiu":
        flat = values.ravel().copy()
        with np.errstate(all="ignore"):
            flat[rng.integers(flat.size, size=3)] = np.array([1e30, -1, 0]).astype(flat.dtype)
        values = flat.reshape(values.shape)
    np.save(path, values if rng.integers(3) else np.array([{"a": 1}], object), allow_pickle=True)


def _archive(path: Path, rng: np.random.Generator) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, OSError, EOFError, RuntimeError):
        return
    names = list(parts)
    if not names:
        return
    name = names[rng.integers(len(names))]
    match rng.integers(8):
        case 0:
            parts[name] = _header(parts[name], rng)
        case 1:
            parts["../../outside/planted.txt"] = parts.pop(name)
        case 2:
            parts["/tmp/planted-by-fuzz.npy"] = b"x"
        case 3:
            parts[name] = parts[name][: rng.integers(len(parts[name]) + 1)]
        case 4:
            del parts[name]
        case 5 | 6 if parts[name]:
            data = bytearray(parts[name])
            for _ in range(rng.integers(1, 9)):  # most in what stands first: headers
                data[rng.integers(min(len(data), 400))] = rng.integers(256)
            parts[name] = bytes(data)
        case _:
            parts[name] = b"\0" * (1 << 24)  # a small bomb: 16 MiB of nothing
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, data in parts.items():
            archive.writestr(key, data)


# ---- one input ---------------------------------------------------------------------------------------------------


def try_one(target: str, seed: int, template: Path, workspace: Path) -> str:
    """Try one input: "read" or "refused".

    Args:
        template: what `sound` wrote for the target.
        workspace: an empty folder of its own.

    Raises:
        Escaped: something outside the input was shown, changed or added.
        anything but LongtakeError: it crashed.
    """
    inside, outside = workspace / "in", workspace / "outside"
    shutil.copytree(template, inside, symlinks=True)
    outside.mkdir()
    for name in ("canary.txt", "a"):
        (outside / name).write_text(CANARY)
    if target == "manifest":
        _stray_parts(inside, outside)
    before = _fingerprint(outside)
    rng = np.random.default_rng([seed, *target.encode()])
    if target == "rows":
        _rename(inside, outside, rng)
    else:
        damage(inside, rng)
    try:
        shown, whole = _read(target, inside, workspace / "out", rng, MEDIA[rng.integers(len(MEDIA))])
        answer = "read" if whole else "refused"
    except LongtakeError as error:
        shown, answer = str(error), "refused"
    if CANARY in shown:
        raise Escaped("what lies outside was shown")
    if _fingerprint(outside) != before or {p.name for p in workspace.iterdir()} - {"in", "outside", "out"}:
        raise Escaped("files outside were changed or added")
    return answer


class Escaped(Exception):
    """An input reached out of its folder."""


def _stray_parts(inside: Path, outside: Path) -> None:
    """A part beside the manifest that some damaged snapshots name."""
    manifest = Manifest(inside)
    rows = list(manifest.rows())
    stray = create_manifest(outside / "stray")
    stray.append([rows[0] | {"caption": CANARY}])
    shutil.copy(next((outside / "stray").glob("part-*.parquet")), outside / STRAY)


def _rename(inside: Path, outside: Path, rng: np.random.Generator) -> None:
    """Let rows name other files than their own, and put links in the place of files."""
    canary = outside / "canary.txt"
    uris = [*(uri for uri in NASTY if isinstance(uri, str) and "\ud800" not in uri), str(canary), f"file://{canary}"]
    uris += [
        "../outside/canary.txt",
        "clips/../../outside/canary.txt",
        f"file:{canary}",
        f"s3://{canary}",
        "link",
        "links/a",
    ]
    (inside / "link").symlink_to(canary)
    (inside / "links").symlink_to(outside)
    manifest = Manifest(inside)
    rows = list(manifest.rows())
    for row in rows[: rng.integers(1, len(rows) + 1)]:
        uri = uris[rng.integers(len(uris))]
        match rng.integers(4):
            case 0:
                row["uri"] = uri
            case 1:
                row["depth_uri"] = uri
            case 2:
                row["image_uris"] = [uri, *[row["uri"]] * (row["num_frames"] - 1)]
            case _:
                path = inside / row["uri"]
                path.unlink()
                path.symlink_to(canary if rng.integers(2) else path.name)
    manifest.append(rows)


def _read(target: str, inside: Path, out: Path, rng: np.random.Generator, media: Any) -> tuple[str, bool]:
    """All that a user would be shown, and whether nothing was refused."""
    if target == "manifest":
        manifest = open_manifest(inside)
        words = repr([row["caption"] for row in manifest.rows()])
        problems = manifest.validate()
        return words + repr(problems), not problems
    if target == "rows":
        return _files_of_rows(open_manifest(inside))
    if target == "scores":
        return repr([read_scores([path]) for path in sorted(inside.iterdir())]), True
    if target == "profile":
        return repr([load_profile(path) for path in sorted(inside.iterdir())]), True
    if target == "video":
        from longtake.annotate.video import probe

        files = sorted(inside.iterdir())
        return repr(probe(files[rng.integers(len(files))])), True
    config = _config(target, size=(640, 480), scale=None if target == "sana_wm" else "relative", media=media)
    rows = []
    for clip in read_collection(inside, config, _some_probe):
        if clip.depth is not None:
            sum(depth.size for _, depth in vipe.read_depth(clip.depth, *clip.span))
        rows.append(imported_row(clip, config, PROVENANCE, out))
    to_table(rows)  # checks each
    return repr([(row["uri"], row["error"], row["caption"]) for row in rows]), all(r["error"] is None for r in rows)


def _files_of_rows(manifest: Manifest) -> tuple[str, bool]:
    """What stands in the files that are found for the rows of a manifest."""
    shown, whole = [repr(manifest.validate(hashes=True))], True
    for row in manifest.rows():
        for column in ("uri", "depth_uri", "image_uris"):
            if row[column] is None:
                continue
            try:
                found = [path_of(place) for place in manifest.files.find(row, column)]
            except LongtakeError as error:
                shown, whole = [*shown, str(error)], False
                continue
            shown += [path.read_bytes().decode() for path in found if os.path.isfile(path)]
    return "".join(shown), whole


def _no_probe(path: Path, stills: bool, fps: float | None) -> VideoInfo:
    raise AssertionError(f"{path} was looked at")


def _some_probe(path: Path, stills: bool, fps: float | None) -> VideoInfo:
    """What a film of 40 frames would say: the reading of videos is a target of its own."""
    images = tuple(str(p) for p in sorted(path.iterdir()) if p.is_file()) if path.is_dir() else ()
    return VideoInfo(
        path=str(path),
        is_images=path.is_dir(),
        image_paths=images,
        sha256=hashlib.sha256(str(path).encode()).hexdigest(),
        num_bytes=1,
        container="mov",
        codec="h264",
        pix_fmt="yuv420p",
        coded_width=640,
        coded_height=480,
        width=640,
        height=480,
        rotation_deg=0,
        sar_num=1,
        sar_den=1,
        color_range="tv",
        interlaced=False,
        pts_ns=np.arange(len(images) if path.is_dir() else 40) * 40_000_000,
        is_vfr=False,
        tagged_fps=25.0,
    )


def _fingerprint(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if not p.is_dir()
    }


# ---- many inputs -------------------------------------------------------------------------------------------------


def run(target: str, seeds: range) -> tuple[Counter[str], list[Fault], float]:
    """Try inputs in child processes, so that one that dies takes none of the others along.

    Returns:
        How many were read and refused, the faults, and the seconds of the slowest input.
    """
    counts: Counter[str] = Counter()
    faults: list[Fault] = []
    slowest, seed = 0.0, seeds.start
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "sound"
        sound(target, template)
        while seed < seeds.stop:
            here, there = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(
                target=_work, args=(target, range(seed, seeds.stop), template, Path(folder), there)
            )
            child.start()
            there.close()
            while seed < seeds.stop:
                if not here.poll(STUCK_S):
                    faults.append((seed, "crashed", f"nothing for {STUCK_S:.0f} s"))
                    break
                try:
                    answer, what, seconds = here.recv()
                except EOFError:
                    faults.append((seed, "crashed", "the process died"))
                    break
                slowest = max(slowest, seconds)
                counts[answer] += 1
                if answer in ("crashed", "escaped"):
                    faults.append((seed, answer, what))
                seed += 1
            else:
                child.join()
                break
            counts["crashed"] += 1
            seed += 1
            child.kill()
            child.join()
    return counts, faults, slowest


def _work(target: str, seeds: range, template: Path, folder: Path, answers: Any) -> None:
    for seed in seeds:
        workspace = Path(tempfile.mkdtemp(dir=folder))
        start = time.perf_counter()
        try:
            answer, what = try_one(target, seed, template, workspace), ""
        except Escaped as error:
            answer, what = "escaped", str(error)
        except Exception as error:  # the point of the exercise: whatever it is
            frames = traceback.extract_tb(error.__traceback__)
            where = next(
                (f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames) if "longtake" in f.filename), ""
            )
            answer, what = "crashed", f"{type(error).__name__} at {where}: {str(error)[:200]}"
        answers.send((answer, what, time.perf_counter() - start))
        shutil.rmtree(workspace, ignore_errors=True)


def main() -> None:
    """Try all targets and write the counts."""
    from measure import RESULTS, machine, print_table, write_result

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000, help="for each target; a tenth for video, which is slow")
    parser.add_argument("--only", choices=TARGETS, help="this target alone; nothing is written then")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    args = parser.parse_args()
    before, rows = machine(), []
    for target in (args.only,) if args.only else TARGETS:
        count = args.inputs // 10 if target == "video" and not args.only else args.inputs
        counts, faults, slowest = run(target, range(args.seed, args.seed + count))
        row = {"target": target, "inputs": count} | {n: counts[n] for n in ("read", "refused", "crashed", "escaped")}
        rows.append(row | {"slowest_s": round(slowest, 2), "faults": faults[:20], "first_seed": args.seed})
        print_table(list(row), [[str(v) for v in row.values()]])
        for seed, kind, what in faults[:10]:
            print(f"  seed {seed} {kind}: {what}")
        sys.stdout.flush()
    if not args.only:
        write_result(RESULTS / "fuzz.json", rows, before)
    if any(row["crashed"] or row["escaped"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
