"""From solved chunks to one track: chunks joined in one world, per-frame figures in pixels of the display picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..geometry import align_similarity, invert_pose, undistort
from ..records import Shot, Track, VideoInfo
from .depth_prior import Units
from .klt import FeatureTracks
from .solved import HELD_OUT, Solved, TrackConfig
from .twoview import sampson


def join(solved: list[Solved]) -> bool:
    """Move every chunk into the world of the first, in place of its `world_from_cam` and `points`.

    Chunks share points: a similarity found robustly from those; where one has none (a camera that turns or stays) the
    poses of shared frames give a rigid motion. What cannot be joined to the longest run of chunks loses its poses.
    False where no frame has a pose.
    """
    runs: list[list[int]] = [[0]]
    for k in range(1, len(solved)):
        if _attach(solved[k - 1], solved[k]):
            runs[-1].append(k)
        else:
            runs.append([k])
    posed = [sum(np.isfinite(solved[k].world_from_cam[:, 0, 0]).sum() for k in run) for run in runs]
    best = set(runs[int(np.argmax(posed))])
    for k, s in enumerate(solved):
        if k not in best:
            s.world_from_cam[:] = np.nan
    return max(posed) > 0


def _attach(a: Solved, b: Solved) -> bool:
    """Move chunk b, in place, to where it continues chunk a; False where nothing ties them."""
    _, ia, ib = np.intersect1d(a.point_track, b.point_track, return_indices=True)
    if len(ia) >= 20:
        source, target = b.points[ib], a.points[ia]
        keep = np.ones(len(ia), bool)
        s, rotation, t = align_similarity(source, target)
        for _ in range(10):
            error = np.linalg.norm(target - (s * source @ rotation.T + t), axis=1)
            keep = error <= max(2.5 * float(np.median(error[keep])), 1e-12)
            s, rotation, t = align_similarity(source[keep], target[keep])
        if keep.sum() < 15:
            return False
    else:
        _, fa, fb = np.intersect1d(a.tracks.frame_index, b.tracks.frame_index, return_indices=True)
        both = np.isfinite(a.world_from_cam[fa, 0, 0]) & np.isfinite(b.world_from_cam[fb, 0, 0])
        if not both.any() or (len(a.points) and len(b.points)):
            return False
        i = np.flatnonzero(both)[-1]
        move = a.world_from_cam[fa[i]] @ invert_pose(b.world_from_cam[fb[i]])
        s, rotation, t = 1.0, move[:3, :3], move[:3, 3]
    b.world_from_cam[:, :3, 3] = s * b.world_from_cam[:, :3, 3] @ rotation.T + t
    b.world_from_cam[:, :3, :3] = rotation @ b.world_from_cam[:, :3, :3]
    b.points[:] = s * b.points @ rotation.T + t
    return True


def assemble(
    info: VideoInfo,
    shot: Shot,
    solved: list[Solved],
    scale: float,
    given: bool,
    units: Units,
    config: TrackConfig,
) -> Track:
    """One record for the shot from its chunks; frames that were not decoded have no pose."""
    num = shot.num_frames
    per_frame: dict[str, NDArray] = {
        "world_from_cam": np.full((num, 4, 4), np.nan),
        "intrinsics": np.full((num, 6), np.nan),
        "focal_sigma": np.full(num, np.nan),
        "is_keyframe": np.zeros(num, bool),
        "reproj_rmse_px": np.full(num, np.nan),
        "sampson_px": np.full(num, np.nan),
        "num_tracked": np.zeros(num, np.int32),
        "inlier_ratio": np.full(num, np.nan),
        "coverage": np.full(num, np.nan),
        "dyn_ratio": np.full(num, np.nan),
        "step_px": np.full(num, np.nan),
    }
    examples = []
    for s in solved:
        rows = s.tracks.frame_index - shot.start
        new = np.isnan(per_frame["intrinsics"][rows, 0])  # what two chunks share is the earlier one's
        for name, values in _measure(s, scale, shot.photographs).items():
            per_frame[name][rows[new]] = values[new]
        examples.append(_examples(s, rows, new))
    pose = per_frame["world_from_cam"]
    valid: NDArray[np.bool_] = np.asarray(np.isfinite(pose).all((1, 2)))
    pose[~valid] = np.nan
    unit = 1.0
    if valid.any():
        first = invert_pose(pose[np.flatnonzero(valid)[0]])
        pose[valid] = first @ pose[valid]
        unit = _unit(solved, first) if units.factor is None else 1 / units.factor
        pose[valid, :3, 3] /= unit
    intrinsics = _fill(per_frame["intrinsics"])
    k = intrinsics[:, :4] * scale
    k[:, 2] += (scale - 1) / 2 + shot.crop[0]
    k[:, 3] += (scale - 1) / 2 + shot.crop[1]
    distortion = tuple(float(x) for x in intrinsics[0, 4:6])
    per_view = any(s.per_view for s in solved) or bool(np.ptp(k[:, 0]) > 1e-9 * k[0, 0])
    sigma = per_frame.pop("focal_sigma")
    known = sigma[np.isfinite(sigma)]
    if given:
        status = "given"
    elif len(known) and float(np.median(known)) <= config.undetermined_above:
        status = "estimated"
    else:
        status = "predicted" if units.focal_known else "undetermined"
    classes = [s.motion_class for s in solved]
    motion = next(c for c in ("general", "planar", "rotation", "static") if c in classes)
    flags = set().union(*(s.flags for s in solved))
    if not valid.all():
        flags.add("frames_without_pose")
    flags |= units.flags
    if status in ("undetermined", "predicted"):
        flags.add("focal_undetermined")
    if len(solved) > 1:
        flags.add("joined_chunks")
    stats = {"num_chunks": float(len(solved)), "unit": unit, **units.stats}
    scale_raw = scale_smoothed = None
    if units.scale is not None:
        rows = units.scale_frames - shot.start
        scale_raw, scale_smoothed = np.full((2, num), np.nan)
        scale_raw[rows], scale_smoothed[rows] = units.scale.raw, units.scale.smoothed
        stats["scale_std_ratio"], stats["scale_drift_log"] = units.scale.std_ratio, units.scale.drift_log
        stats["scale_dispersion"] = float(np.nanmedian(units.scale.dispersion))
    for name in ("num_points", "num_keyframes"):
        stats[name] = float(sum(s.stats.get(name, 0.0) for s in solved))
    rmse = [s.stats["ba_rmse_px"] for s in solved if "ba_rmse_px" in s.stats]
    if rmse:
        stats["ba_rmse_px"] = scale * float(np.sqrt(np.mean(np.square(rmse))))
    del per_frame["world_from_cam"], per_frame["intrinsics"]
    return Track(
        pts_ns=info.pts_ns[shot.start : shot.stop],
        width=info.width,
        height=info.height,
        world_from_cam=pose,
        pose_valid=valid,
        intrinsics=k,
        intrinsics_mode="per_frame" if per_view else "static",
        focal_status=status,
        focal_sigma=np.where(np.isfinite(sigma), sigma, np.nan),
        distortion_model="opencv_radial" if any(distortion) else "none",
        distortion=distortion if any(distortion) else (),
        motion_class=motion,
        flags=tuple(sorted(flags)),
        scale_kind="metric" if units.metric else "relative",
        pose_source=units.pose_source,
        scale_raw=scale_raw,
        scale_smoothed=scale_smoothed,
        stats=stats,
        examples=np.concatenate(examples) * [1, 1, scale, scale] + _offset(shot, scale),
        **per_frame,
    )


def _offset(shot: Shot, scale: float) -> NDArray[np.float32]:
    """What turns scaled working pixels (row, track, x, y) into display pixels."""
    return np.array([0, 0, (scale - 1) / 2 + shot.crop[0], (scale - 1) / 2 + shot.crop[1]], np.float32)


def _fill(intrinsics: NDArray) -> NDArray:
    """Intrinsics of frames without any, from the nearest frame that has them."""
    known = np.flatnonzero(np.isfinite(intrinsics[:, 0]))
    after = known[np.searchsorted(known, np.arange(len(intrinsics))).clip(0, len(known) - 1)]
    before = known[(np.searchsorted(known, np.arange(len(intrinsics)), side="right") - 1).clip(0)]
    here = np.arange(len(intrinsics))
    return intrinsics[np.where(np.abs(after - here) < np.abs(here - before), after, before)]


def _unit(solved: list[Solved], first_cam_from_world: NDArray) -> float:
    """Length that becomes 1: the median depth of the points in front of the first posed camera; 1 without points."""
    for s in solved:
        if len(s.points):
            depth = s.points @ first_cam_from_world[2, :3] + first_cam_from_world[2, 3]
            depth = depth[depth > 0]
            if len(depth):
                return float(np.median(depth))
    return 1.0


def _measure(s: Solved, scale: float, photographs: bool) -> dict[str, NDArray]:
    """Per-frame arrays of one chunk, in display pixels."""
    tracks = s.tracks
    num = len(tracks.frame_index)
    row, good = tracks.row, s.inlier
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.bincount(row, minlength=num)
        pointed = np.bincount(row[np.isfinite(s.residual)], minlength=num)
        inliers = np.bincount(row[good], minlength=num)
        square = np.bincount(row[good], s.residual[good] ** 2, num)
        cell = np.floor(tracks.xy / [tracks.width, tracks.height] * 8).clip(0, 7).astype(int)
        cells = np.unique((row * 64 + cell[:, 1] * 8 + cell[:, 0])[good]) // 64
        posed = np.isfinite(s.world_from_cam[:, 0, 0])
        keyframe = np.zeros(num, bool)
        keyframe[tracks.keyframes] = True
        return {
            "world_from_cam": s.world_from_cam,
            "intrinsics": s.intrinsics,
            "focal_sigma": s.focal_sigma,
            "is_keyframe": keyframe,
            "num_tracked": seen.astype(np.int32),
            "reproj_rmse_px": scale * np.sqrt(square / np.where(inliers, inliers, np.nan)),
            "inlier_ratio": inliers / np.where(pointed, pointed, np.nan),
            "coverage": np.where(posed, np.bincount(cells, minlength=num) / 64, np.nan),
            "dyn_ratio": _moving_share(s),
            "sampson_px": scale * _held_out_sampson(s, photographs),
            "step_px": np.full(num, np.nan) if photographs else scale * _step(tracks),
        }


def _moving_share(s: Solved) -> NDArray:
    """[F] share of the tracks longer than two keyframes that do not move with the scene."""
    tracks = s.tracks
    num = len(tracks.frame_index)
    life = np.unique(tracks.track, return_inverse=True, return_counts=True)
    gap = max(2, int(np.median(np.diff(tracks.keyframes))) if len(tracks.keyframes) > 1 else 2)
    long = (life[2] >= gap)[life[1]] & (tracks.track % HELD_OUT != HELD_OUT - 1)
    posed = np.isfinite(s.world_from_cam[tracks.row, 0, 0])
    seen = np.bincount(tracks.row[long & posed], minlength=num)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(tracks.row[long & posed & ~s.inlier], minlength=num) / np.where(seen, seen, np.nan)


def _held_out_sampson(s: Solved, photographs: bool) -> NDArray:
    """[F] median Sampson distance (px) of the tracks that took no part, to the keyframe before (of photographs: to the
    photograph that shares most of them). Source: Hartley & Zisserman, 2nd ed., eq. 11.9."""
    tracks = s.tracks
    num = len(tracks.frame_index)
    out = np.full(num, np.nan)
    held = np.flatnonzero(tracks.track % HELD_OUT == HELD_OUT - 1)
    bounds = np.searchsorted(tracks.row[held], np.arange(num + 1))
    sets = [held[bounds[r] : bounds[r + 1]] for r in range(num)]
    moved = len(s.points) > 0
    for r in range(num):
        if not np.isfinite(s.world_from_cam[r, 0, 0]) or not len(sets[r]):
            continue
        if photographs:
            shared = [
                len(np.intersect1d(tracks.track[sets[r]], tracks.track[o])) if q != r else 0 for q, o in enumerate(sets)
            ]
            q = int(np.argmax(shared))
        else:
            q = int(tracks.keyframes[max(0, np.searchsorted(tracks.keyframes, r) - 1)])
        if q == r or not np.isfinite(s.world_from_cam[q, 0, 0]):
            continue
        _, i, j = np.intersect1d(tracks.track[sets[r]], tracks.track[sets[q]], return_indices=True)
        if len(i) < 5:
            continue
        a, b = _pinhole(s, r, sets[r][i]), _pinhole(s, q, sets[q][j])
        rel = invert_pose(s.world_from_cam[q]) @ s.world_from_cam[r]
        if moved:
            distance = sampson(a, b, rel)
        else:
            turned = a @ rel[:3, :3].T
            distance = np.linalg.norm(turned[:, :2] / turned[:, 2:] - b[:, :2], axis=1)
        out[r] = np.median(distance) * s.intrinsics[r, 0]
    return out


def _pinhole(s: Solved, row: int, o: NDArray) -> NDArray:
    """Homogeneous undistorted image points [n, 3] of observations o of a frame."""
    k = s.intrinsics[row]
    n = undistort((s.obs_xy[o] - k[2:4]) / k[:2], k[4], k[5])
    return np.concatenate([n, np.ones((len(n), 1))], 1)


def _step(tracks: FeatureTracks) -> NDArray:
    """[F] median displacement (px) of tracks from the frame before; nan at the first."""
    out = np.full(len(tracks.frame_index), np.nan)
    bounds = np.searchsorted(tracks.row, np.arange(len(out) + 1))
    for r in range(1, len(out)):
        a, b = slice(bounds[r - 1], bounds[r]), slice(bounds[r], bounds[r + 1])
        _, i, j = np.intersect1d(tracks.track[a], tracks.track[b], assume_unique=True, return_indices=True)
        if len(i):
            out[r] = np.median(np.linalg.norm(tracks.xy[b][j] - tracks.xy[a][i], axis=1))
    return out


def _examples(s: Solved, rows: NDArray, new: NDArray, *, count: int = 8, points: int = 150) -> NDArray[np.float32]:
    """[M, 4] (frame of the shot, track, x, y) of inliers in a few keyframes."""
    mine = [k for k in s.tracks.keyframes if new[k]]
    chosen = (
        [mine[i] for i in np.unique(np.linspace(0, len(mine) - 1, min(count, len(mine))).round().astype(int))]
        if mine
        else []
    )
    out = []
    for k in chosen:
        o = np.flatnonzero((s.tracks.row == k) & s.inlier)
        o = o[np.argsort(s.tracks.track[o].astype(np.int64) * 2654435761 % 4294967296)][:points]
        out.append(np.column_stack([np.full(len(o), rows[k]), s.tracks.track[o], s.obs_xy[o]]))
    return np.concatenate(out).astype(np.float32) if out else np.zeros((0, 4), np.float32)
