"""Made-up records of known numbers, and the rows they give."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from longtake.datasets.schema import Provenance, annotate_row
from longtake.geometry import pose, rotation_from_vector
from longtake.records import Rejected, Shot, Track, VideoInfo

PROVENANCE = Provenance(
    run_id="run-1",
    config_hash="0123456789abcdef",
    software_version="0.1.0",
    stage_versions={"probe": "1", "track": "2"},
    timings_s={"probe": 0.25},
    created_at=datetime(2025, 1, 2, 3, 4, 5, 600, tzinfo=UTC),
)


def video(name: str = "a.mp4", *, pts_ns: Any = None, frames: int = 40, **changes: Any) -> VideoInfo:
    known: dict[str, Any] = {
        "path": f"/videos/{name}",
        "is_images": False,
        "image_paths": (),
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "num_bytes": 12345,
        "container": "mov,mp4",
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "coded_width": 640,
        "coded_height": 480,
        "width": 640,
        "height": 480,
        "rotation_deg": 0,
        "sar_num": 1,
        "sar_den": 1,
        "color_range": "tv",
        "interlaced": False,
        "pts_ns": np.array([round(i * 1e9 / 30) for i in range(frames)]) if pts_ns is None else np.asarray(pts_ns),
        "is_vfr": pts_ns is not None,
        "tagged_fps": 30.0,
    }
    return VideoInfo(**known | changes)


def shot(start: int = 5, stop: int = 25, **changes: Any) -> Shot:
    known: dict[str, Any] = {"index": 0, "crop": (0, 0, 640, 480), "overlay": None, "boundary": "start"}
    return Shot(start=start, stop=stop, **known | changes)


def track(info: VideoInfo, of: Shot, *, unposed: tuple[int, ...] = (), zoom: bool = False, **changes: Any) -> Track:
    """A camera that turns and moves along an arc; frames `unposed` have no pose."""
    n = of.num_frames
    s = np.linspace(0, 1, n)
    world_from_cam = pose(
        rotation_from_vector(np.column_stack([0.1 * s, 0.5 * s, -0.2 * s])),
        np.column_stack([s, 0.3 * s**2, np.sin(3 * s)]),
    )
    world_from_cam[list(unposed)] = np.nan
    posed = np.isfinite(world_from_cam).all((1, 2))
    focal = 500 * (1 + 0.8 * s) if zoom else np.full(n, 500.0)
    known: dict[str, Any] = {
        "pts_ns": info.pts_ns[of.start : of.stop],
        "width": info.width,
        "height": info.height,
        "world_from_cam": world_from_cam,
        "pose_valid": posed,
        "intrinsics": np.column_stack([focal, focal, np.full(n, 319.5), np.full(n, 239.5)]),
        "intrinsics_mode": "per_frame" if zoom else "static",
        "focal_status": "estimated",
        "focal_sigma": np.full(n, 0.01),
        "distortion_model": "none",
        "distortion": (),
        "motion_class": "general",
        "flags": ("loop_closed",),
        "scale_kind": "relative",
        "pose_source": "longtake",
        "is_keyframe": np.arange(n) % 5 == 0,
        "reproj_rmse_px": np.where(posed, 0.5, np.nan),
        "sampson_px": np.where(np.arange(n) > 0, 0.3, np.nan),
        "num_tracked": np.full(n, 400, np.int32),
        "inlier_ratio": np.full(n, 0.9),
        "coverage": np.full(n, 0.8),
        "dyn_ratio": np.full(n, 0.05),
        "step_px": np.full(n, 3.0),
        "stats": {"ba_rmse_px": 0.4, "num_points": 900.0},
    }
    return Track(**known | changes)


@pytest.fixture
def hugging_face() -> Any:
    """The package `datasets`. Where it is not installed, that name may be our own folder, which it never is else."""
    try:
        metadata.version("datasets")
    except metadata.PackageNotFoundError:
        pytest.skip("the package datasets is not installed")
    package = importlib.import_module("datasets")
    assert hasattr(package, "load_dataset"), f"`import datasets` gives {package!r}"
    return package


@pytest.fixture
def made() -> SimpleNamespace:
    """The makers of this file, for tests that want the records themselves."""
    return SimpleNamespace(video=video, shot=shot, track=track, provenance=PROVENANCE)


@pytest.fixture
def make_row() -> Callable[..., dict[str, Any]]:
    """An ok row; `unposed=`, `zoom=` and fields of Track change its track, `failed=True` fails it."""

    def make(name: str = "a.mp4", *, failed: bool = False, run_id: str = "run-1", **changes: Any) -> dict[str, Any]:
        info, of = video(name), shot()
        if failed:
            refused = Rejected(stage="track", reason="too_few_tracks", message="only 3 features could be followed")
            row = annotate_row(path=info.path, provenance=PROVENANCE, video=info, shot=of, rejected=refused)
        else:
            row = annotate_row(
                path=info.path, provenance=PROVENANCE, video=info, shot=of, track=track(info, of, **changes)
            )
        return row | {"run_id": run_id}

    return make
