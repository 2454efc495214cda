"""Windows of clips as PyTorch datasets: pictures, and the camera of each, from the manifest and the files it names.

The order of an epoch, and where in its clip a window begins, follow from (seed, epoch, clip_id) alone: every process
that is told these three finds the same, without a word to the others and without reading more than the ids.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..geometry import invert_pose
from ..records import LongtakeError
from .readers import CLIP_COLUMNS, PICTURE_COLUMNS, Selection, frame_times_s, read_clip
from .storage import Local, Storage

SLACK_S = 1e-6  # rounding of times
PLAN_COLUMNS = "clip_id num_frames pose_valid start_s fps_num fps_den pts_s".split()
SAMPLE_COLUMNS = list(dict.fromkeys([*CLIP_COLUMNS, *PICTURE_COLUMNS, "crop", "caption", "scale_kind"]))


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a sample is cut out of its clip."""

    frames: int  # 8k + 1
    fps: float
    size: tuple[int, int]  # height, width
    seed: int = 0
    pictures: bool = True

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.frames - 1) % 8:
            near = max(1, round((self.frames - 1) / 8) * 8 + 1)
            raise LongtakeError(f"frames={self.frames}: a window has 8k + 1 frames, such as {near} or {near + 8}.")
        if not self.fps > 0 or min(self.size) < 1:
            raise LongtakeError(f"fps={self.fps}, size={self.size}: must be positive; size is (height, width).")


# ---- which frames ------------------------------------------------------------------------------------------------


def window_frames(
    times_s: NDArray[np.float64], pose_valid: NDArray[np.bool_], frames: int, fps: float
) -> tuple[NDArray[np.int64], str | None]:
    """The frames of every window that a clip has.

    A window that begins at frame i wants pictures at times_s[i] + k / fps, and takes for each the frame shown nearest
    to it (the earlier of two as near). It counts if each is at most half a step off, no frame is taken twice, and all
    have poses.

    Args:
        times_s: [N] increasing.
        pose_valid: [N].

    Returns:
        [S, frames] indices, window by window in the order of their beginnings; and where there is none, why: too_short,
        too_few_frames_per_second or frames_without_pose.
    """
    starts = _starts(times_s, frames, fps)
    indices, near = _frames_from(times_s, starts, frames, fps)
    good = near & pose_valid[indices].all(1)
    if good.any():
        return indices[good], None
    if not starts.size:
        return indices, "too_short"
    return indices[:0], "frames_without_pose" if near.any() else "too_few_frames_per_second"


def window_problem(times_s: NDArray[np.float64], pose_valid: NDArray[np.bool_], frames: int, fps: float) -> str | None:
    """Why a clip has no window, as `window_frames` says it; None for one that has. Looks no further than needed."""
    starts = _starts(times_s, frames, fps)
    for some in (starts[:1], starts[1:32]):
        indices, near = _frames_from(times_s, some, frames, fps)
        if (near & pose_valid[indices].all(1)).any():
            return None
    return window_frames(times_s, pose_valid, frames, fps)[1]


def _starts(times_s: NDArray[np.float64], frames: int, fps: float) -> NDArray[np.int64]:
    """Frames after which the clip is long enough."""
    return np.flatnonzero(times_s + (frames - 1) / fps <= times_s[-1] + 0.5 / fps + SLACK_S)


def _frames_from(
    times_s: NDArray[np.float64], starts: NDArray[np.int64], frames: int, fps: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The frames [S, frames] nearest to the times wanted from each start, and whether they are near enough, and new."""
    wanted = times_s[starts, None] + np.arange(frames) / fps
    after = np.minimum(np.maximum(np.searchsorted(times_s, wanted), 1), len(times_s) - 1)
    before = np.maximum(after - 1, 0)
    indices = np.where(wanted - times_s[before] <= times_s[after] - wanted + SLACK_S, before, after)
    near = (np.abs(times_s[indices] - wanted) <= 0.5 / fps + SLACK_S).all(1)
    return indices, np.asarray(near & (np.diff(indices, axis=1) > 0).all(1))


@lru_cache(maxsize=65536)
def _even_clip_problem(num_frames: int, fps_num: int, fps_den: int, frames: int, fps: float) -> str | None:
    """Why a clip of constant rate whose frames all have poses has no window; most clips are such, and few differ."""
    times_s = np.arange(num_frames, dtype=np.float64) * (fps_den / fps_num)
    return window_problem(times_s, np.ones(num_frames, bool), frames, fps)


def plan(selection: Selection, window: Window) -> tuple[tuple[str, ...], Counter[str]]:
    """The clips of a selection that have such a window, in its order; and how many have none, by reason.

    Reads the frames' times and which of them have poses, part by part.
    """
    rank = {clip_id: i for i, clip_id in enumerate(selection.clip_ids)}
    good: list[str] = []
    skipped: Counter[str] = Counter()
    for row in selection.manifest.rows(PLAN_COLUMNS):
        if row["clip_id"] not in rank:
            continue
        if row["pose_valid"] is None:
            problem = "no_camera"
        elif row["pts_s"] is None and row["fps_num"] and row["pose_valid"].all():
            problem = _even_clip_problem(row["num_frames"], row["fps_num"], row["fps_den"], window.frames, window.fps)
        else:
            times_s = frame_times_s(row) if row["pts_s"] is not None or row["fps_num"] else np.zeros(1)
            problem = window_problem(times_s, row["pose_valid"], window.frames, window.fps)
        if problem is None:
            good.append(row["clip_id"])
        else:
            skipped[problem] += 1
    return tuple(sorted(good, key=rank.__getitem__)), skipped


def crop_and_scale(
    scene: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[tuple[int, int, int, int], tuple[float, float]]:
    """The largest part of a scene, about its middle, that has the shape of `size`; and the scale of x and y to fit it.

    Args:
        scene: x, y, width, height in the picture.
        size: height, width.
    """
    x, y, width, height = scene
    scale = max(size[1] / width, size[0] / height)
    w, h = min(width, max(1, round(size[1] / scale))), min(height, max(1, round(size[0] / scale)))
    return (x + (width - w) // 2, y + (height - h) // 2, w, h), (size[1] / w, size[0] / h)


def scaled_intrinsics(
    intrinsics: NDArray[np.float64], crop: tuple[int, int, int, int], scale: tuple[float, float]
) -> NDArray[np.float64]:
    """Intrinsics [T, 4] of the picture after cropping and scaling; pixel centres at integers before and after."""
    fx, fy, cx, cy = intrinsics.T
    return np.stack(
        [
            fx * scale[0],
            fy * scale[1],
            (cx - crop[0] + 0.5) * scale[0] - 0.5,
            (cy - crop[1] + 0.5) * scale[1] - 0.5,
        ],
        1,
    )


# ---- chance that is the same everywhere --------------------------------------------------------------------------


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number's bits stirred (the last step of splitmix64), so that neighbours have nothing in common."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _key(*words: object) -> NDArray[np.uint64]:
    """[1] a number of these words."""
    return np.frombuffer(hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest(), "<u8")


# ---- datasets ----------------------------------------------------------------------------------------------------


class TrainingClips(Dataset[dict[str, Any]]):
    """One window of each clip, map-style. A sample is a dictionary:

        clip_id      str
        frames       uint8 [T, 3, H, W] RGB; absent without pictures
        c2w          float32 [T, 4, 4] first camera from camera: row 0 is the identity; OpenCV axes
        intrinsics   float32 [T, 4] fx, fy, cx, cy in pixels of H x W, pixel centres at integers
        distortion   float32 [2] k1, k2 of opencv_radial, zeros where the clip has none
        times_s      float64 [T] when each frame is shown, from the first frame of the source
        indices      int64 [T] which frames of the clip they are
        metric       bool: lengths are metres
        caption      str, empty where the clip has none

    Where a window begins changes with the epoch (`set_epoch`).
    """

    def __init__(self, selection: Selection, window: Window) -> None:
        self.manifest, self.window, self.epoch = selection.manifest, window, 0
        self.clip_ids, self.skipped = plan(selection, window)
        if not self.clip_ids:
            why = ", ".join(f"{n} {reason}" for reason, n in self.skipped.most_common()) or "the selection is empty"
            raise LongtakeError(
                f"No clip has {window.frames} posed frames at {window.fps:g} fps: {why}. Ask for fewer, or for less."
            )
        if window.pictures and self.manifest.read_pictures is None:
            raise LongtakeError(
                "This manifest cannot decode: open it with longtake.open_manifest, or ask for pictures=False."
            )
        self.keys = np.concatenate([_key(clip_id) for clip_id in self.clip_ids])

    def __len__(self) -> int:
        return len(self.clip_ids)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """[N] the shuffle of an epoch."""
        return np.argsort(_mixed(self.keys ^ _key("order", self.window.seed, epoch)), kind="stable")

    @property
    def fingerprint(self) -> str:
        """Of the clips and of how they are cut: what a saved position is a position in."""
        digest = hashlib.blake2b(repr(asdict(self.window)).encode(), digest_size=8)
        digest.update(self.keys.tobytes())
        return digest.hexdigest()

    def __getitem__(self, i: int) -> dict[str, Any]:
        window, row = self.window, self.manifest.row(self.clip_ids[i], SAMPLE_COLUMNS)
        clip = read_clip(row)
        windows, problem = window_frames(clip.times_s, clip.pose_valid, window.frames, window.fps)
        if problem:
            raise LongtakeError(f"Clip {clip.clip_id} was replaced, and is now {problem}: make the dataset anew.")
        draw = _mixed(self.keys[i : i + 1] ^ _key("window", window.seed, self.epoch))[0]
        indices = windows[int(draw % np.uint64(len(windows)))]
        scene = tuple(map(int, row["crop"])) if row["crop"] is not None else (0, 0, clip.width, clip.height)
        crop, scale = crop_and_scale(scene, window.size)  # pyright: ignore[reportArgumentType]
        world_from_cam = clip.world_from_cam[indices]
        sample = {
            "clip_id": clip.clip_id,
            "c2w": torch.from_numpy((invert_pose(world_from_cam[:1]) @ world_from_cam).astype(np.float32)),
            "intrinsics": torch.from_numpy(scaled_intrinsics(clip.intrinsics[indices], crop, scale).astype(np.float32)),
            "distortion": torch.tensor(clip.distortion or (0.0, 0.0), dtype=torch.float32),
            "times_s": torch.from_numpy(clip.times_s[indices]),
            "indices": torch.from_numpy(indices),
            "metric": row["scale_kind"] == "metric",
            "caption": row["caption"] or "",
        }
        sample["c2w"][0] = torch.eye(4)  # exactly, whatever the rounding
        if window.pictures:
            sample["frames"] = torch.from_numpy(self._pictures(row, clip.times_s, indices, crop)).permute(0, 3, 1, 2)
        return sample

    def _pictures(
        self, row: dict[str, Any], times_s: NDArray[np.float64], indices: NDArray[np.int64], crop: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        read = self.manifest.read_pictures
        assert read is not None  # looked at when the dataset was made
        with tempfile.TemporaryDirectory() as scratch:  # used for what lies in an object store
            files = row["image_uris"] if row["image_uris"] is not None else [row["uri"]]
            wanted = [files[i] for i in indices] if row["image_uris"] is not None else files
            places = self.manifest.files.find(row, "uri" if row["image_uris"] is None else "image_uris", wanted)
            local = {uri: _local(*place, scratch) for uri, place in zip(wanted, places, strict=True)}
            if row["image_uris"] is not None:
                row = {**row, "image_uris": [local.get(uri, uri) for uri in files]}
            path = local.get(row["uri"], "")
            return read(path, row, times_s, indices, crop=crop, size=self.window.size)  # pyright: ignore


def _local(storage: Storage, name: str, scratch: str) -> str:
    """A file of this machine with what lies there."""
    if isinstance(storage, Local):
        return storage.path(name)
    target = Path(scratch) / f"{len(os.listdir(scratch))}{Path(name).suffix}"
    with storage.open(name) as source, open(target, "wb") as copy:
        while data := source.read(1 << 22):
            copy.write(data)
    return str(target)


class TrainingStream(IterableDataset[dict[str, Any]]):
    """The same samples as an iterable dataset, shuffled, that every rank and worker reads its own share of.

    Over all ranks of `world` and their workers every clip comes once in an epoch. A pass that is read to its end is an
    epoch; one that was left in its middle is gone on with by the next. With workers use `TrainingLoader`, which keeps
    count for them.
    """

    def __init__(
        self, clips: TrainingClips, *, rank: int | None = None, world: int | None = None, drop_uneven: bool = False
    ) -> None:
        """Args:
        rank, world: those of `torch.distributed` where it runs, else 0 of 1.
        drop_uneven: leave the last few clips of an epoch out, so that every rank gets the same number; otherwise
            some get one more.
        """
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.clips = clips
        self.rank = rank if rank is not None else torch.distributed.get_rank() if running else 0
        self.world = world if world is not None else torch.distributed.get_world_size() if running else 1
        if not 0 <= self.rank < self.world:
            raise LongtakeError(f"rank {self.rank} of {self.world}: ranks count from 0.")
        self.drop_uneven = drop_uneven
        self.epoch = 0
        self.passed: list[tuple[int, int, int, int]] = []  # (world, workers, batch, batches) of each sitting so far
        self.taken = 0  # samples of this sitting, in this process

    @property
    def skipped(self) -> Counter[str]:
        """Clips without such a window, by reason."""
        return self.clips.skipped

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch."""
        self.epoch, self.passed, self.taken = epoch, [], 0

    def left(self) -> NDArray[np.int64]:
        """The clips of this epoch that no sitting has come to yet, of all ranks, in order."""
        order = self.clips.order(self.epoch)
        for sitting in self.passed:
            order = np.delete(order, positions_read(len(order), *sitting))
        return order

    def share(self, worker: int = 0, workers: int = 1) -> NDArray[np.int64]:
        """What this rank's worker reads of `left`."""
        left = self.left()
        if self.drop_uneven:
            left = left[: len(left) // self.world * self.world]
        return left[self.rank :: self.world][worker::workers]

    def __len__(self) -> int:
        return len(self.share())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.taken:  # of a pass that was left
            self.passed, self.taken = [*self.passed, (self.world, 1, 1, self.taken)], 0
        info = get_worker_info()
        share = self.share(info.id, info.num_workers) if info else self.share()
        self.clips.set_epoch(self.epoch)
        for i in share.tolist():
            sample = self.clips[i]
            self.taken += 1
            yield sample
        self.set_epoch(self.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where this process is, for `load_state_dict`; every rank has the same if they are in step.

        It counts what was read in this process: with workers, ask the `TrainingLoader`.
        """
        here = [(self.world, 1, 1, self.taken)] if self.taken else []
        return {
            "fingerprint": self.clips.fingerprint,
            "epoch": self.epoch,
            "passed": [list(sitting) for sitting in (*self.passed, *here)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, also with another number of ranks, workers or clips a batch.

        Raises:
            LongtakeError: the state is of other clips or windows.
        """
        if state["fingerprint"] != self.clips.fingerprint:
            raise LongtakeError(
                "The saved position is one in other clips, or other windows of them: it cannot be gone on from. "
                "Select the same clips with the same frames, fps, size and seed, or begin anew."
            )
        self.set_epoch(state["epoch"])
        self.passed = [tuple(sitting) for sitting in state["passed"]]  # pyright: ignore[reportAttributeAccessIssue]


def positions_read(count: int, world: int, workers: int, batch: int, batches: int) -> NDArray[np.int64]:
    """Which of `count` clips in order have been read when each of `world` ranks has had so many batches of its workers.

    Clip i is of rank i % world, and there of worker (i // world) % workers; workers hand in batches in turn.
    """
    i = np.arange(count)
    worker, place = i // world % workers, i // world // workers
    handed_in = batches // workers + (worker < batches % workers)
    return np.flatnonzero(place < handed_in * batch)


class TrainingLoader(DataLoader[Any]):
    """A DataLoader of a `TrainingStream` that knows which clips it has handed out, whatever its workers read ahead."""

    def __init__(self, stream: TrainingStream, *, batch_size: int = 1, num_workers: int = 0, **options: Any) -> None:
        """options: those of `torch.utils.data.DataLoader`, but for what would change the order of batches."""
        for name in ("persistent_workers", "in_order", "sampler", "batch_sampler", "shuffle", "drop_last"):
            if name in options:
                raise LongtakeError(f"{name}: a TrainingLoader's order is the stream's own.")
        super().__init__(stream, batch_size=batch_size, num_workers=num_workers, **options)
        self.stream = stream
        self.batches = 0  # of this sitting

    def __len__(self) -> int:
        """Batches that are left of this epoch."""
        workers = max(1, self.num_workers)
        shares = (len(self.stream.share(worker, workers)) for worker in range(workers))
        return sum(-(-share // (self.batch_size or 1)) for share in shares) - self.batches

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.batches:  # of a pass that was left
            self.load_state_dict(self.state_dict())
        for batch in super().__iter__():
            self.batches += 1
            yield batch
        self.batches = 0
        if self.num_workers:
            self.stream.set_epoch(self.stream.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop over this loader is, for `load_state_dict`."""
        state = self.stream.state_dict()
        if self.num_workers and self.batches:
            sitting = [self.stream.world, self.num_workers, self.batch_size or 1, self.batches]
            state["passed"] = [*state["passed"], sitting]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TrainingStream.load_state_dict`."""
        self.stream.load_state_dict(state)
        self.batches = 0
