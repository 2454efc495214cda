"""Scores of tracks whose errors are known by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtake.datasets.score import score as _score
from longtake.datasets.score import score_files
from longtake.geometry import pose, rotation_from_vector
from longtake.records import LongtakeError

S, R, T = 2.5, rotation_from_vector(np.array([0.3, -0.8, 0.5])), np.array([1.0, -2.0, 3.0])


def score(prediction: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    return _score(prediction, truth)


def truth(n: int = 120) -> dict[str, np.ndarray]:
    s = np.linspace(0, 1, n)
    c2w = pose(
        rotation_from_vector(np.column_stack([0.2 * s, 0.9 * s, -0.1 * s])),
        np.column_stack([np.cos(4 * s), np.sin(4 * s), 0.5 * s]),
    )
    k = np.tile(np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]), (n, 1, 1))
    return {"c2w": c2w, "K": k}


def moved(track: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same track in another frame and unit: truth = S R p + T."""
    c2w = track["c2w"].copy()
    c2w[:, :3, 3] = (c2w[:, :3, 3] - T) @ R / S
    c2w[:, :3, :3] = R.T @ c2w[:, :3, :3]
    return {"c2w": c2w, "K": track["K"].copy()}


def test_another_frame_and_unit_are_no_error():
    gt = truth()
    found = score(moved(gt), gt)
    assert found["coverage_pct"] == 100 and found["frames"] == 120
    assert found["scale"] == pytest.approx(S)
    assert found["path_length"] == pytest.approx(np.hypot(4, 0.5), rel=1e-3)
    for name in (
        "ate_rmse ate_pct_of_path scale_drift_max_log rpe_rot_deg_median rpe_rot_deg_rmse rpe_trans_median "
        "rpe_trans_rmse rot_err_deg_mean rot_err_deg_max focal_err_pct_median focal_err_pct_p90 pp_err_pct_median"
    ).split():
        assert found[name] == pytest.approx(0, abs=1e-6), name
    # without a scale the best fit leaves (1 - 1/S) of the spread about the centre
    centred = gt["c2w"][:, :3, 3] - gt["c2w"][:, :3, 3].mean(0)
    expected = (1 - 1 / S) * np.sqrt((centred**2).sum(1).mean())
    assert found["ate_se3_rmse"] == pytest.approx(expected)


def test_position_error():
    gt = truth(120)
    pred = moved(gt)
    # an error of d along a direction, alternating so that no similarity explains it
    d = 0.01 * np.where(np.arange(120) % 2, 1, -1)[:, None] * np.array([0, 0, 1.0])
    pred["c2w"][:, :3, 3] += d
    found = score(pred, gt)
    assert found["ate_rmse"] == pytest.approx(0.01 * S, rel=1e-3)
    assert found["ate_pct_of_path"] == pytest.approx(100 * found["ate_rmse"] / found["path_length"])
    assert found["rpe_trans_median"] == pytest.approx(0.02 * S, rel=1e-3)


def test_rotation_error():
    gt = truth(61)
    pred = moved(gt)
    turn = np.radians(0.1) * np.arange(61)  # 0.1 degrees more each frame, about the camera's axis
    pred["c2w"][:, :3, :3] = pred["c2w"][:, :3, :3] @ rotation_from_vector(turn[:, None] * np.array([0, 0, 1.0]))
    found = score(pred, gt)
    assert found["rot_err_deg_max"] == pytest.approx(6.0) and found["rot_err_deg_mean"] == pytest.approx(3.0)
    # turned along the axis that the step itself turns about at an angle: the step's own error is 0.1 degrees
    assert found["rpe_rot_deg_median"] == pytest.approx(0.1, rel=0.2)


def test_step_rotation_error_is_exact():
    gt = truth(61)
    gt["c2w"][:, :3, :3] = rotation_from_vector(0.02 * np.arange(61)[:, None] * np.array([0, 0, 1.0]))
    pred = {"c2w": gt["c2w"].copy(), "K": gt["K"]}
    errors = np.where(np.arange(61) == 30, 0.5, 0.1)  # degrees, of the step into each frame
    turn = np.radians(np.cumsum(errors))
    pred["c2w"][:, :3, :3] = pred["c2w"][:, :3, :3] @ rotation_from_vector(turn[:, None] * np.array([0, 0, 1.0]))
    found = score(pred, gt)
    assert found["rpe_rot_deg_median"] == pytest.approx(0.1)
    assert found["rpe_rot_deg_rmse"] == pytest.approx(np.sqrt((59 * 0.01 + 0.25) / 60))


def test_focal_and_principal_point():
    gt = truth(101)
    pred = moved(gt)
    pred["K"][:, 0, 0] *= 1 + 0.04 * np.arange(101) / 100  # fx alone: half of it in the mean of fx and fy
    pred["K"][:, 0, 2] += 6.4
    found = score(pred, gt)
    assert found["focal_err_pct_median"] == pytest.approx(1.0) and found["focal_err_pct_p90"] == pytest.approx(1.8)
    assert found["pp_err_pct_median"] == pytest.approx(1.0)


def test_scale_drift():
    gt = truth(160)
    pred = {"c2w": gt["c2w"].copy(), "K": gt["K"]}
    steps = np.diff(gt["c2w"][:, :3, 3], axis=0)
    factor = np.exp(np.linspace(0, np.log(2), 159))  # steps grow to twice their length
    pred["c2w"][1:, :3, 3] = gt["c2w"][0, :3, 3] + np.cumsum(steps * factor[:, None], axis=0)
    drift = score(pred, gt)["scale_drift_max_log"]
    # half of log 2 to either side of the middle, less half a window, and the fit weighs the ends
    assert 0.2 < drift < 0.45
    assert score({"c2w": pred["c2w"][:19], "K": gt["K"][:19]}, truth(19))["scale_drift_max_log"] is None


def test_frames_without_a_pose_count_against_coverage_alone():
    gt = truth()
    pred = moved(gt)
    pred["c2w"][10:22] = np.nan
    pred["pose_valid"] = np.arange(120) >= 6
    pred["c2w"][:6, :3, 3] += 100  # not used: not valid
    found = score(pred, gt)
    assert found["coverage_pct"] == pytest.approx(100 * 102 / 120)
    assert found["ate_rmse"] == pytest.approx(0, abs=1e-9)


def test_truth_that_is_partly_known():
    gt = truth()
    pred = moved(gt)
    gt["c2w"][:60, :3, 3] = np.nan
    gt["pose_valid"] = np.arange(120) < 119
    pred["c2w"][:30] = np.nan
    assert score(pred, gt)["coverage_pct"] == 100  # unposed where nobody knows the truth
    gt["c2w"][:, :3, :3] = np.nan
    found = score(pred, gt)
    assert found["ate_rmse"] == pytest.approx(0, abs=1e-9) and "rpe_rot_deg_median" not in found


def test_too_little_to_fit():
    gt = truth()
    pred = moved(gt)
    pred["c2w"][2:] = np.nan
    assert score(pred, gt) == {"frames": 120, "coverage_pct": pytest.approx(100 * 2 / 120)}


def test_what_cannot_be_compared(tmp_path):
    gt = truth()
    with pytest.raises(LongtakeError, match="row i of both must be of frame i"):
        score({"c2w": gt["c2w"][:9], "K": gt["K"][:9]}, gt)
    with pytest.raises(LongtakeError, match="no pose for any frame"):
        score(gt, gt | {"pose_valid": np.zeros(120, bool)})
    with pytest.raises(LongtakeError, match="There is no file"):
        score_files(tmp_path / "a.npz", tmp_path / "b.npz")
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(LongtakeError, match=r"is not an [.]npz archive"):
        score_files(tmp_path / "a.npz", tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", c2w=gt["c2w"])
    with pytest.raises(LongtakeError, match="has no array K"):
        score_files(tmp_path / "b.npz", tmp_path / "b.npz")
    np.savez(tmp_path / "d.npz", c2w=np.array([{}], object), K=gt["K"])
    with pytest.raises(LongtakeError, match="cannot be read: Object arrays"):
        score_files(tmp_path / "d.npz", tmp_path / "d.npz")
    np.save(tmp_path / "c.npy", gt["c2w"])
    with pytest.raises(LongtakeError, match=r"is not an [.]npz archive"):
        score_files(tmp_path / "c.npy", tmp_path / "c.npy")
