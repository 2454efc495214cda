"""Camera tracks of real footage against measured truth: a drive and ten photographs, with the defaults for all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from longtake.annotate.track import TrackConfig, estimate_track
from longtake.annotate.video import probe
from longtake.datasets.score import score
from longtake.records import Shot, Track


def _track(folder: Path) -> tuple[Track, dict[str, float]]:
    """The track of a sequence and its score."""
    stills = not json.loads((folder / "meta.json").read_text())["continuous_video"]
    info = probe(folder / "video.mp4", stills=stills)
    shot = Shot(
        index=0,
        start=0,
        stop=info.num_frames,
        crop=(0, 0, info.width, info.height),
        overlay=None,
        boundary="start",
        photographs=stills,
    )
    track = estimate_track(info, shot, TrackConfig())
    assert isinstance(track, Track), track
    k = np.tile(np.eye(3), (info.num_frames, 1, 1))
    k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2] = track.intrinsics.T
    with np.load(folder / "gt.npz", allow_pickle=False) as truth:
        found = {"c2w": track.world_from_cam, "K": k, "pose_valid": track.pose_valid}
        return track, {name: value for name, value in score(found, dict(truth)).items() if value is not None}


@pytest.mark.parametrize(
    "name, ate, focal_pct",
    [("kitti_drive_1", 0.05, 3.0), ("strecha_entry_p10", 0.02, 0.5)],  # metres; what the best peer reaches or better
)
def test_every_frame_is_posed_as_well_as_by_the_best_peer(shared_data: Path, name: str, ate: float, focal_pct: float):
    track, result = _track(shared_data / "sequences" / name)
    assert track.pose_valid.all()
    assert result["ate_rmse"] <= ate
    assert result["focal_err_pct_median"] <= focal_pct
    assert track.focal_status == "estimated"
    assert np.nanmedian(track.sampson_px) < 1.0  # of matches that took no part
