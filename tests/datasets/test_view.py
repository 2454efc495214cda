"""The Rerun recording holds the clip's cameras, or says what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from longtake.datasets.manifest import create_manifest
from longtake.datasets.schema import Provenance, annotate_row
from longtake.datasets.view import write_rrd
from longtake.geometry import pose, rotation_from_vector
from longtake.records import LongtakeError, Rejected, Shot, Track, VideoInfo

PROVENANCE = Provenance(run_id="r", config_hash="0" * 16, software_version="0.1.0", stage_versions={})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A manifest with a clip of ten frames, the fifth without a pose, and a failed one."""
    n = 10
    pts_ns = np.arange(n) * 40_000_000
    info = VideoInfo(
        path="/films/a.mp4", is_images=False, image_paths=(), sha256="ab" * 32, num_bytes=1, container="mov",
        codec="h264", pix_fmt="yuv420p", coded_width=64, coded_height=48, width=64, height=48,
        rotation_deg=0, sar_num=1, sar_den=1,
        color_range="tv", interlaced=False, pts_ns=pts_ns, is_vfr=False, tagged_fps=25.0,
    )  # fmt: skip
    world_from_cam = pose(
        rotation_from_vector(np.outer(np.arange(n), [0, 0.1, 0])), np.outer(np.arange(n), [1.0, 0, 2])
    )
    world_from_cam[4] = np.nan
    nothing, valid = np.full(n, np.nan), np.arange(n) != 4
    track = Track(
        pts_ns=pts_ns, width=64, height=48, world_from_cam=world_from_cam, pose_valid=valid,
        intrinsics=np.tile([50.0, 50, 31.5, 23.5], (n, 1)), intrinsics_mode="static", focal_status="given",
        focal_sigma=nothing, distortion_model="none", distortion=(), motion_class="general", flags=(),
        scale_kind="relative", pose_source="test", is_keyframe=np.arange(n) % 3 == 0, reproj_rmse_px=nothing,
        sampson_px=nothing, num_tracked=np.full(n, 7, np.int32), inlier_ratio=nothing, coverage=nothing,
        dyn_ratio=nothing, step_px=nothing,
    )  # fmt: skip
    shot = Shot(index=0, start=0, stop=n, crop=(0, 0, 64, 48), overlay=None, boundary="start")
    refusal = Rejected(stage="probe", reason="empty_file", message="b.mp4 is empty")
    rows = [
        annotate_row(path="/films/a.mp4", provenance=PROVENANCE, video=info, shot=shot, track=track),
        annotate_row(path="/films/b.mp4", provenance=PROVENANCE, rejected=refusal),
    ]
    create_manifest(tmp_path / "m").append(rows)
    return tmp_path / "m"


def test_a_recording_is_written(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    recording = write_rrd(run)
    assert recording.parent == run and recording.suffix == ".rrd"
    content = recording.read_bytes()
    assert content[:3] == b"RRF" and len(content) > 2000
    elsewhere = write_rrd(run, tmp_path / "new" / "a.rrd")
    assert elsewhere.is_file() and not list(elsewhere.parent.glob(".*"))


def test_what_cannot_be_shown_is_said(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    with pytest.raises(LongtakeError, match="no clip nothing"):
        write_rrd(run, clip_id="nothing")
    failed = next(r["clip_id"] for r in _rows(run) if r["status"] == "failed")
    with pytest.raises(LongtakeError, match=r"no poses to show.*b\.mp4 is empty"):
        write_rrd(run, clip_id=failed)
    (tmp_path / "file").write_text("")
    with pytest.raises(LongtakeError, match="Cannot write"):
        write_rrd(run, tmp_path / "file" / "a.rrd")


def test_without_rerun_it_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(LongtakeError, match="pip install 'longtake\\[rerun\\]'"):
        write_rrd(run)


def _rows(folder: Path) -> list[dict]:
    return create_manifest(folder).table(["clip_id", "status"]).to_pylist()
