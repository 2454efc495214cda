"""The formats that longtake reads and writes: what each defines, and what has a place in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..cameras import Cameras, Refused
from ..readers import Clip
from . import arrays, colmap, lerobot, nerfstudio, omniworld, sana_wm, spatialvid, trajectories, vipe, webdataset
from .output import Output

Write = Callable[[Iterable[tuple[Clip, Mapping[str, Any]]], Output], dict[str, str]]  # clip_id -> why it was left out
Read = Callable[[Path], Iterator[Cameras | Refused]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format. `direction` and `convention` are what it defines; None where its files may hold either."""

    about: str
    write: Write | None = None
    read: Read | None = None
    unposed: Literal["marked", "left_out", "refused"] = "left_out"  # frames without a pose; refused: the whole clip
    distortion: bool = False  # k1 and k2 have a place in it
    direction: Literal["c2w", "w2c"] | None = None
    convention: Literal["opencv", "opengl"] | None = None


FORMATS: dict[str, Format] = {
    "npz": Format(
        about="<id>.npz {c2w [N,4,4], K [N,3,3], pose_valid [N], times_s [N]}, row i for frame i of the clip",
        write=arrays.write_npz,
        read=arrays.read_npz_folder,
        unposed="marked",
    ),
    "npy": Format(
        about="<id>_c2w.npy [F,4,4], <id>_intrinsics.npy [F,4], <id>_frames.npy [F]: what SANA-WM takes",
        write=arrays.write_npy,
        read=arrays.read_npy_folder,
    ),
    "tum": Format(
        about="<id>.txt, rows of t tx ty tz qx qy qz qw, camera to world, seconds from the source's first frame",
        write=trajectories.write_tum,
        read=trajectories.read_tum,
    ),
    "kitti": Format(
        about="poses/<id>.txt, rows of 3x4 camera to world; sequences/<id>/{calib,times}.txt",
        write=trajectories.write_kitti,
        read=trajectories.read_kitti,
        unposed="refused",
        direction="c2w",
        convention="opencv",
    ),
    "colmap": Format(
        about="<id>/{cameras,images,points3D}.txt (read: .bin too), one camera a picture where intrinsics vary",
        write=colmap.write,
        read=colmap.read,
        distortion=True,
        direction="w2c",
        convention="opencv",
    ),
    "nerfstudio": Format(
        about="<id>/transforms.json, as DL3DV has it",
        write=nerfstudio.write,
        read=nerfstudio.read,
        distortion=True,
        direction="c2w",
        convention="opengl",
    ),
    "sana_wm": Format(
        about="clips.zip of <id>.json, clips_camera.npz, clips_metric_scale_stats.json, scores: SANA-WM's trainer",
        write=sana_wm.write,
        read=sana_wm.read,
        unposed="refused",
        direction="c2w",
        convention="opencv",
    ),
    "vipe": Format(
        about="pose/<id>.npz, intrinsics/<id>.npz and <id>_camera.txt, with media rgb/<id>.mp4",
        write=vipe.write,
        read=vipe.read,
        direction="c2w",
        convention="opencv",
    ),
    "webdataset": Format(
        about="clips-000000.tar of <id>.{json,c2w.npy,intrinsics.npy,pose_valid.npy,times_s.npy}, with media <id>.mp4",
        write=webdataset.write,
        read=webdataset.read,
        unposed="marked",
        distortion=True,
        direction="c2w",
        convention="opencv",
    ),
    "lerobot": Format(
        about="LeRobot's v3.0 layout: data/, meta/ and with media videos/; one episode a clip",
        write=lerobot.write,
        read=lerobot.read,
        unposed="marked",
    ),
    "spatialvid": Format(
        about="SpatialVID: annotations/**/<id>/{poses,intrinsics}.npy and indexes.txt, videos/**/<id>.mp4",
        read=spatialvid.read,
        direction="w2c",
        convention="opencv",
    ),
    "omniworld": Format(
        about="OmniWorld-Game: <scene>/{split_info.json,camera/split_<k>.json,color/}",
        read=omniworld.read,
        direction="w2c",
        convention="opencv",
    ),
}
