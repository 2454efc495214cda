"""How far an estimated camera track is from the truth.

Absolute errors are taken after the best similarity (monocular video has no scale) and after the best rigid motion,
which judges metric scale; a frame without a pose counts against coverage and nothing else, so read the two together.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..geometry import align_similarity, angle_between_deg
from ..records import LongtakeError

MAX_WINDOWS, MIN_WINDOW_FRAMES = 8, 10


def score_files(prediction: str | os.PathLike[str], truth: str | os.PathLike[str]) -> dict[str, float | None]:
    """`score` of two .npz files with c2w [N,4,4], K [N,3,3] and optionally pose_valid [N].

    Raises:
        LongtakeError: a file is missing, is no such .npz, or the two do not describe the same frames.
    """
    return score(_load(prediction), _load(truth))


def score(prediction: Mapping[str, NDArray], truth: Mapping[str, NDArray]) -> dict[str, float | None]:
    """Compare two tracks, row i of each being of frame i.

    Args:
        prediction, truth: c2w [N,4,4] camera to world, OpenCV axes; K [N,3,3] pixels; optionally pose_valid [N].
            A true pose may be a position alone, its rotation NaN.

    Returns:
        frames; coverage_pct: frames posed, of those whose truth is known. Where at least 3 are:
        ate_rmse, ate_pct_of_path, path_length, scale: after the similarity that fits best, in the truth's unit;
        ate_se3_rmse: after the rigid motion that fits best;
        scale_drift_max_log: largest |log s_w / s| of the scales s_w fitted to at most 8 equal windows of the track;
        None where the track is too short for two, or stands still in one;
        rpe_rot_deg_median, rpe_rot_deg_rmse: error of the rotation from each posed frame to the next;
        rpe_trans_median, rpe_trans_rmse: of the translation between them, in the camera's axes, scaled by `scale`;
        rot_err_deg_mean, rot_err_deg_max: error of the rotation from the first posed frame;
        focal_err_pct_median, focal_err_pct_p90: |f / f_true - 1|, f the mean of fx and fy;
        pp_err_pct_median: the larger component of the principal point's error, in % of twice the true cx.
        What needs rotations is left out where the truth has none.

    Raises:
        LongtakeError: the two do not have the same number of frames, or no frame's truth is known.
    """
    c2w, k = (np.asarray(prediction[name], np.float64) for name in ("c2w", "K"))
    true_c2w, true_k = (np.asarray(truth[name], np.float64) for name in ("c2w", "K"))
    if c2w.shape != true_c2w.shape or k.shape != true_k.shape:
        raise LongtakeError(
            f"The prediction has c2w {c2w.shape} and K {k.shape}, the truth c2w {true_c2w.shape} and K {true_k.shape}: "
            "row i of both must be of frame i of the same video."
        )
    posed = np.isfinite(c2w).all((1, 2)) & _valid(prediction, len(c2w))
    known = np.isfinite(true_c2w[:, :3, 3]).all(1) & _valid(truth, len(c2w))
    if not known.any():
        raise LongtakeError("The truth has no pose for any frame: there is nothing to compare with.")
    out: dict[str, float | None] = {"frames": len(c2w), "coverage_pct": 100.0 * float(posed[known].mean())}
    use = np.flatnonzero(posed & known)
    if len(use) < 3:
        return out
    p, g = c2w[use, :3, 3], true_c2w[use, :3, 3]
    path = float(np.linalg.norm(np.diff(g, axis=0), axis=1).sum())
    s, rotation, t = align_similarity(p, g)
    ate = _rms(np.linalg.norm(g - (s * p @ rotation.T + t), axis=1))
    _, rigid_rotation, rigid_t = align_similarity(p, g, with_scale=False)
    out |= {
        "ate_rmse": ate,
        "ate_pct_of_path": 100.0 * ate / path if path > 0 else None,
        "path_length": path,
        "scale": s,
        "ate_se3_rmse": _rms(np.linalg.norm(g - (p @ rigid_rotation.T + rigid_t), axis=1)),
        "scale_drift_max_log": _scale_drift(p, g, s),
    }
    r, true_r = c2w[use, :3, :3], true_c2w[use, :3, :3]
    if np.isfinite(true_r).all():
        step, true_step = _transpose(r[:-1]) @ r[1:], _transpose(true_r[:-1]) @ true_r[1:]
        turn_err = angle_between_deg(true_step, step)
        move = s * np.einsum("nji,nj->ni", r[:-1], np.diff(p, axis=0))
        move_err = np.linalg.norm(move - np.einsum("nji,nj->ni", true_r[:-1], np.diff(g, axis=0)), axis=1)
        from_first = angle_between_deg(_transpose(true_r[:1]) @ true_r, _transpose(r[:1]) @ r)
        out |= {
            "rpe_rot_deg_median": float(np.median(turn_err)),
            "rpe_rot_deg_rmse": _rms(turn_err),
            "rpe_trans_median": float(np.median(move_err)),
            "rpe_trans_rmse": _rms(move_err),
            "rot_err_deg_mean": float(from_first.mean()),
            "rot_err_deg_max": float(from_first.max()),
        }
    focal, true_focal = (m[use][:, [0, 1], [0, 1]].mean(1) for m in (k, true_k))
    focal_err = 100 * np.abs(focal / true_focal - 1)
    centre_err = 100 * np.abs(k[use, :2, 2] - true_k[use, :2, 2]).max(1) / (2 * true_k[use, 0, 2])
    return out | {
        "focal_err_pct_median": float(np.median(focal_err)),
        "focal_err_pct_p90": float(np.quantile(focal_err, 0.9)),
        "pp_err_pct_median": float(np.median(centre_err)),
    }


def _scale_drift(p: NDArray, g: NDArray, s: float) -> float | None:
    windows = min(MAX_WINDOWS, len(p) // MIN_WINDOW_FRAMES)
    if windows < 2 or s <= 0:
        return None
    scales = [
        align_similarity(p[w], g[w])[0] for w in np.array_split(np.arange(len(p)), windows) if np.ptp(p[w], 0).any()
    ]
    if len(scales) < windows or min(scales) <= 0:
        return None
    return float(np.abs(np.log(np.array(scales) / s)).max())


def _load(path: str | os.PathLike[str]) -> dict[str, NDArray]:
    if not os.path.isfile(path):
        raise LongtakeError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise LongtakeError(f"{path} is not an .npz archive. Export one with --to npz.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("c2w", "K", "pose_valid") if name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LongtakeError(f"{path} cannot be read: {error}. Export it again with --to npz.") from error
    if missing := {"c2w", "K"} - set(arrays):
        raise LongtakeError(f"{path} has no array {' and '.join(sorted(missing))}.")
    return arrays


def _valid(track: Mapping[str, NDArray], count: int) -> NDArray[np.bool_]:
    return np.asarray(track["pose_valid"], bool) if "pose_valid" in track else np.ones(count, bool)


def _rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(values * values)))


def _transpose(m: NDArray) -> NDArray:
    return np.swapaxes(m, -1, -2)
