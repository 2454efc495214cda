"""Does a video follow the camera that it was asked for? `longtake annotate`'s engine says what it shows.

Every clip is tracked as any video is, with the focal length that was asked for where it is one and the same, and its
camera is compared with the asked one, both taken from their first frames. Beside it stands the camera that never moves,
scored by the same formulas: a video that follows is better by a factor. A video's unit of length is unknown, so the
tracked path gets the one scale that fits best; a video that moves too little or too much everywhere is not told apart.

A frame that cannot be posed counts as if the camera had stayed where it was last seen, a clip that cannot be tracked as
one that stands still: both are counted, nothing is left out of a mean.

Source of the measures: SANA-WM-Bench (arXiv 2605.15178): RotErr, TransErr, CamMC. It tracks with Pi3, on every fourth
frame, and aligns with a whole similarity before; `aligned_trans` is its distance, by our track of every frame. Angles
after such an alignment are left out: on a straight path nothing but noise says how it turns about the path.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..annotate.given import read_poses
from ..annotate.track import TrackConfig, estimate_track
from ..annotate.video import encode_rgb, expand_inputs, pictures, probe
from ..datasets.manifest import open_manifest
from ..datasets.readers import CLIP_COLUMNS, read_clip
from ..datasets.row_files import local_file
from ..geometry import align_similarity, angle_between_deg, invert_pose, pose
from ..records import BadMedia, LongtakeError, Rejected, Shot, VideoInfo
from .config import UsageError
from .run import given_file
from .stages import write_atomic

ORIGINS = ("generated", "rendered")  # rows whose camera was there before the video
LEAST_SIDE = 256  # px that smaller videos are enlarged to: the tracker's features have a size of their own
SAME_FOCAL = 1e-3  # relative range of focal lengths that are one
STANDS_STILL = 1e-6  # of turns and moves asked for, below which there is nothing to be better at


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """A video, and the camera that it should show."""

    name: str
    video: str
    start: int  # its first frame in the video
    world_from_cam: NDArray[np.float64]  # [F, 4, 4]
    intrinsics: NDArray[np.float64] | None  # [F, 4] pixels of the video; None: unknown


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Means over a clip's frames; lengths in the asked path's unit."""

    rot_deg: float  # angle between the two rotations
    trans: float  # distance between the two centres
    cam_mc: float  # Frobenius norm of the difference of the two 3x4 matrices


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of one clip."""

    name: str
    frames: int
    posed: int  # frames that the track has a pose for; 0 where there is none
    reason: str  # why the clip has no track; "" where it has
    focal: str  # "given" to the track, or "estimated" by it
    scale: float  # asked unit per unit of the track
    errors: Errors
    static: Errors  # of the camera that never moves
    aligned: Errors  # of both after the best similarity
    aligned_static: Errors


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    clips: tuple[Scored, ...]
    failed: tuple[tuple[str, str], ...]  # clips without a video or with another number of frames: name and why

    @property
    def untracked(self) -> int:
        return sum(clip.posed == 0 for clip in self.clips)

    def rows(self) -> list[dict[str, Any]]:
        """One of each clip, then their mean; `x` is how many times better than the camera that never moves."""
        rows = [_row(clip) for clip in self.clips]
        if rows:
            means = {what: _mean(getattr(clip, what) for clip in self.clips) for what in _MEASURED}
            frames, posed = (sum(getattr(clip, what) for clip in self.clips) for what in ("frames", "posed"))
            rows.append({"clip": f"mean of {len(rows)}", "frames": frames, "posed": posed} | _figures(means))
        return rows

    def tree(self) -> dict[str, Any]:
        """All of it, for JSON."""
        *clips, mean = self.rows() or [None]
        return {
            "clips": clips,
            "mean": mean,
            "untracked": self.untracked,
            "failed": [{"clip": name, "why": why} for name, why in self.failed],
        }


_MEASURED = ("errors", "static", "aligned", "aligned_static")


def evaluate(
    *inputs: str | os.PathLike[str],
    poses: str | None = None,
    intrinsics: tuple[float, ...] | None = None,
    jobs: int = 1,
) -> Evaluation:
    """Score the generated (and rendered) clips of manifests, or videos beside the poses they were asked for.

    Args:
        inputs: folders of manifests; with `poses`, videos.
        poses: a file of world_from_cam for each video, see `annotate.given.read_poses`; {folder} and {stem} stand for
            the video's.
        intrinsics: (f,) or (fx, fy, cx, cy) in pixels of the videos where they are known.
        jobs: clips tracked at the same time.

    Raises:
        LongtakeError: no such input, or a manifest without clips whose camera was asked for.
    """
    if not inputs:
        raise UsageError("nothing to evaluate: give the folder of a manifest, or videos and --poses")
    if poses is None and intrinsics is not None:
        raise UsageError("--intrinsics are of videos with --poses: a manifest's rows have their own")
    wanted: list[Wanted] = []
    failed: list[tuple[str, str]] = []
    for item in map(str, inputs):
        wants = _of_manifest(item, failed) if poses is None else _of_videos(item, poses, intrinsics, failed)
        wanted.extend(wants)
    if jobs == 1 or len(wanted) < 2:
        found = [score_clip(w) for w in wanted]
    else:
        with ProcessPoolExecutor(min(jobs, len(wanted)), mp_context=get_context("spawn")) as pool:
            found = list(pool.map(score_clip, wanted))
    failed += [(w.name, x.message) for w, x in zip(wanted, found, strict=True) if isinstance(x, Rejected)]
    return Evaluation(clips=tuple(x for x in found if isinstance(x, Scored)), failed=tuple(failed))


def _of_manifest(folder: str, failed: list[tuple[str, str]]) -> list[Wanted]:
    manifest, wanted, seen = open_manifest(folder), [], 0
    for row in manifest.rows(columns=[*CLIP_COLUMNS, "origin", "error"]):
        if row["origin"] not in ORIGINS:
            continue
        seen += 1
        if row["c2w"] is None or row["uri"] is None:
            failed.append((row["clip_id"], f"status {row['status']}: {row['error']}"))
            continue
        clip = read_clip(row)
        if not clip.pose_valid.all():
            failed.append((clip.clip_id, "frames without an asked pose"))
            continue
        try:
            video = local_file(Path(folder), row)
        except BadMedia as error:
            failed.append((clip.clip_id, str(error)))
            continue
        wanted.append(
            Wanted(
                name=clip.clip_id,
                video=str(video),
                start=clip.frame_start,
                world_from_cam=clip.world_from_cam,
                intrinsics=clip.intrinsics,
            )
        )
    if not seen:
        raise LongtakeError(
            f"{folder}: no clip was {' or '.join(ORIGINS)}: only such have a camera that their video was to show. Two "
            "tracks of one video are compared by longtake score"
        )
    return wanted


def _of_videos(
    item: str, poses: str, intrinsics: tuple[float, ...] | None, failed: list[tuple[str, str]]
) -> Iterable[Wanted]:
    for video in map(str, expand_inputs([item])):
        try:
            info = probe(video)
            given = read_poses(given_file(poses, video), info.num_frames, info.pts_ns, metric=False)
        except BadMedia as error:
            failed.append((Path(video).name, str(error)))
            continue
        if not np.isfinite(given.world_from_cam).all():
            failed.append((Path(video).name, "frames without an asked pose"))
            continue
        k = None
        if intrinsics is not None:
            f = intrinsics[0]
            whole = intrinsics if len(intrinsics) == 4 else (f, f, (info.width - 1) / 2, (info.height - 1) / 2)
            k = np.tile(np.array(whole, float), (info.num_frames, 1))
        yield Wanted(name=Path(video).name, video=video, start=0, world_from_cam=given.world_from_cam, intrinsics=k)


# ---- one clip ----------------------------------------------------------------------------------------------------


def score_clip(wanted: Wanted) -> Scored | Rejected:
    """Track a video and compare; a refusal where it cannot be read or has fewer frames than were asked for."""
    count = len(wanted.world_from_cam)
    try:
        info = probe(wanted.video)
        stop = wanted.start + count
        if info.num_frames < stop:
            message = f"{wanted.video} has {info.num_frames} frames, not {stop}"
            return Rejected(stage="evaluate", reason="poses_do_not_fit", message=message)
        found, focal, reason = _track(info, wanted, stop)
    except BadMedia as error:
        return Rejected(stage="evaluate", reason=error.reason, message=str(error))
    asked = from_first(wanted.world_from_cam)
    still = np.tile(np.eye(4), (count, 1, 1))
    held = still if found is None else hold(found)
    scale = scale_between(held[:, :3, 3], asked[:, :3, 3])
    return Scored(
        name=wanted.name,
        frames=count,
        posed=_count(found),
        reason=reason,
        focal=focal,
        scale=scale,
        errors=errors(scaled(held, scale), asked),
        static=errors(still, asked),
        aligned=errors(aligned(held, asked), asked),
        aligned_static=errors(aligned(still, asked), asked),
    )


def _track(info: VideoInfo, wanted: Wanted, stop: int) -> tuple[NDArray[np.float64] | None, str, str]:
    """Poses [F, 4, 4] as the video shows them (nan where not), whether the focal length was given, and why none.

    A small video is tracked enlarged, and where not all of its frames can be posed so, as it is; what poses more frames
    counts.
    """
    k = wanted.intrinsics
    if k is not None and np.ptp(k[:, :2], axis=0).max() > SAME_FOCAL * k[:, :2].min():
        k = None  # a zoom: the focal lengths are not given
    times = math.ceil(LEAST_SIDE / min(info.width, info.height))
    found, reason = None, ""
    if times > 1:
        larger = None if k is None else tuple((k[0] + [0, 0, 0.5, 0.5]) * times - [0, 0, 0.5, 0.5])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "enlarged.mp4"
            size = (times * info.width, times * info.height)
            enlarged = (cv2.resize(x, size, interpolation=cv2.INTER_CUBIC) for x in _all(info, wanted.start, stop))
            # without loss: what an encoder loses is not the same twice
            encode_rgb(file, (np.asarray(x, np.uint8) for x in enlarged), info.fps, crf=0)
            found, reason = _posed(probe(file), 0, stop - wanted.start, larger)
    if _count(found) < stop - wanted.start:
        second, why = _posed(info, wanted.start, stop, None if k is None else tuple(k[0]))
        if times == 1 or _count(second) > _count(found):
            found, reason = second, why
    return found, "estimated" if k is None else "given", reason


def _posed(
    info: VideoInfo, start: int, stop: int, intrinsics: tuple[float, ...] | None
) -> tuple[NDArray[np.float64] | None, str]:
    crop = (0, 0, info.width, info.height)
    shot = Shot(index=0, start=start, stop=stop, crop=crop, overlay=None, boundary="start")
    track = estimate_track(info, shot, TrackConfig(), intrinsics=intrinsics)
    if isinstance(track, Rejected):
        return None, track.reason
    return (track.world_from_cam, "") if track.pose_valid.any() else (None, "no_pose")


def _count(found: NDArray | None) -> int:
    """Frames with a pose."""
    return 0 if found is None else int(np.isfinite(found).all((1, 2)).sum())


def _all(info: VideoInfo, start: int, stop: int) -> Iterable[NDArray[np.uint8]]:
    """Frames start .. stop-1.

    Raises:
        BadMedia: one cannot be decoded.
    """
    expected = start
    for index, rgb in pictures(info, start=start, stop=stop):
        if index != expected:
            break
        expected += 1
        yield rgb
    if expected != stop:
        raise BadMedia("undecodable", f"{info.path}: frame {expected} cannot be decoded")


# ---- the measures ------------------------------------------------------------------------------------------------


def from_first(world_from_cam: NDArray) -> NDArray[np.float64]:
    """Poses [F, 4, 4] in the first one's camera."""
    return invert_pose(world_from_cam[0]) @ world_from_cam


def hold(found: NDArray) -> NDArray[np.float64]:
    """Poses [F, 4, 4] in the first one's camera; a frame without one (nan) has that of the frame before."""
    known = np.isfinite(found).all((1, 2))
    last = np.maximum.accumulate(np.where(known, np.arange(len(found)), int(known.argmax())))
    return from_first(found[last])


def scale_between(found: NDArray, asked: NDArray) -> float:
    """The factor, at least 0, that brings centres [F, 3] nearest to those asked for; 1 where they do not move."""
    size = float((found * found).sum())
    return max(0.0, float((found * asked).sum()) / size) if size > 0 else 1.0


def scaled(world_from_cam: NDArray, scale: float) -> NDArray[np.float64]:
    return pose(world_from_cam[:, :3, :3], scale * world_from_cam[:, :3, 3])


def aligned(found: NDArray, asked: NDArray) -> NDArray[np.float64]:
    """Poses [F, 4, 4] after the similarity that brings their centres nearest to those asked for.

    Where the centres of one do not move there is nothing to turn by, and they are only shifted.
    """
    p, a = found[:, :3, 3], asked[:, :3, 3]
    if min(np.ptp(p, axis=0).max(), np.ptp(a, axis=0).max()) <= STANDS_STILL:
        return pose(found[:, :3, :3], p - p.mean(0) + a.mean(0))
    s, r, t = align_similarity(p, a)
    return pose(r @ found[:, :3, :3], s * p @ r.T + t)


def errors(found: NDArray, asked: NDArray) -> Errors:
    """Between poses [F, 4, 4] in one frame and unit."""
    return Errors(
        rot_deg=float(angle_between_deg(asked[:, :3, :3], found[:, :3, :3]).mean()),
        trans=float(np.linalg.norm(asked[:, :3, 3] - found[:, :3, 3], axis=1).mean()),
        cam_mc=float(np.linalg.norm(asked[:, :3] - found[:, :3], axis=(1, 2)).mean()),
    )


def _mean(several: Iterable[Errors]) -> Errors:
    found = list(several)
    return Errors(**{name: float(np.mean([getattr(e, name) for e in found])) for name in asdict(found[0])})


def _row(clip: Scored) -> dict[str, Any]:
    about = {"clip": clip.name, "frames": clip.frames, "posed": clip.posed, "reason": clip.reason or None}
    return about | {"focal": clip.focal, "scale": clip.scale} | _figures({w: getattr(clip, w) for w in _MEASURED})


def _figures(of: Mapping[str, Errors]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    both = [(name, asdict(of["errors"])[name], asdict(of["static"])[name]) for name in ("rot_deg", "trans", "cam_mc")]
    both.append(("aligned_trans", of["aligned"].trans, of["aligned_static"].trans))
    for name, value, base in both:
        out |= {name: value, f"{name}_static": base}
        out[f"{name}_x"] = base / value if base > STANDS_STILL and value > 0 else None
    return out


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines for people: error, that of the camera that never moves, and how many times better."""
    head = f"{'clip':38} {'posed':>9}  {'rot deg':>7} {'static':>7} {'x':>5}  {'trans':>7} {'static':>7} {'x':>5}"
    lines = [head]
    for row in rows:
        cells = f"{row['clip']:38} {row['posed']:>4}/{row['frames']:<4}"
        for name, digits in (("rot_deg", 2), ("trans", 3)):
            x = row[f"{name}_x"]
            cells += (
                f"  {row[name]:7.{digits}f} {row[f'{name}_static']:7.{digits}f} {'-' if x is None else f'{x:.1f}':>5}"
            )
        lines.append(cells + (f"  {row['reason']}" if row.get("reason") else ""))
    return lines


def write(evaluation: Evaluation, path: Path) -> None:
    """The whole as JSON; the file is there whole or not at all."""
    write_atomic(path, json.dumps(evaluation.tree(), indent=1) + "\n")
