"""Collections of other tools as manifest rows: whatever direction and axes they have, rows have one.

What can be checked is: rotations are rotations, intrinsics belong to pictures of this size, poses are not plainly the
inverse of what was said, names stay below the collection. What cannot be is asked for. A clip that does not pass
becomes a failed row with its reason, as a bad video does; the others are imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BadMedia, LongtakeError
from ..records import Rejected, Track, VideoInfo, known_track
from . import schema
from .cameras import (
    CONVENTIONS,
    CORNER,
    DIRECTIONS,
    Cameras,
    Refused,
    intrinsics_problem,
    numbered,
    rigid,
    settle,
    signs,
    to_pixels,
)
from .cameras import world_from_cam as turned
from .formats import vipe
from .formats.output import put_file
from .formats.table import FORMATS
from .safe import below, confined

READERS = {name: form for name, form in FORMATS.items() if form.read is not None}
NS = 1_000_000_000
LOOKED_AT = 200  # clips by which a collection's direction and axes are judged


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What a collection does not say of itself."""

    format: str
    license: str | None  # of the collection; None: stated to be unknown
    direction: str | None = None  # of its poses, c2w or w2c; None where the format defines it
    convention: str | None = None  # of its camera axes, opencv or opengl; None where the format defines it
    scale: Literal["metric", "relative"] | None = None
    metres_per_unit: float | None = None
    source_dataset: str | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None  # width, height of pictures that are not there
    intrinsics: tuple[float, float, float, float] | None = None  # where the files hold none
    intrinsics_scale: float = 1.0  # the pictures' size, divided by that of the intrinsics
    normalized: bool = False  # intrinsics are shares of width and height
    pixel_center: Literal["integer", "half"] = "integer"  # of formats that do not define it
    pose_column: str | None = None  # of a LeRobot dataset's cameras; None: that which we write
    video_column: str | None = None  # and their video, where there are several
    first_number: int | None = None  # in the names of pictures that are a video's frames: that of its first
    stills: bool = False  # separate photographs, not one take
    media: Literal["none", "link", "copy", "keep"] = "none"
    media_folder: Path | None = None  # <name>.mp4 or a folder <name>, where the collection itself has none
    trust: bool = False  # take poses as they are said to be, whatever they look like

    def __post_init__(self) -> None:
        if self.format not in READERS:
            raise LongtakeError(f"There is no import format {self.format!r}. Choose one of: {', '.join(READERS)}.")
        _reading(self)
        _reader(self)
        for name in ("fps", "metres_per_unit", "intrinsics_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise LongtakeError(f"{name} is {value}: it must be positive.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """One clip of a collection as the manifest has it, or why it is refused."""

    name: str
    source: Path
    track: Track | None = None
    video: VideoInfo | None = None  # of its media, where they were looked at
    media: Path | None = None
    span: tuple[int, int] = (0, 0)  # frames of the media
    depth: Path | None = None  # and what the collection has beside them, where media are wanted
    masks: Path | None = None
    metres_per_unit: float = 1.0  # what lengths were multiplied by
    caption: str | None = None
    rejected: Rejected | None = None
    sha256: str | None = None  # of the cameras, as read


def read_collection(
    source: str | os.PathLike[str], config: ImportConfig, probe: Callable[[Path, bool, float | None], VideoInfo]
) -> Iterator[Imported]:
    """Every clip of a collection, checked and turned; those that do not pass with the reason why.

    Args:
        source: its folder or file.
        probe: what is known of a video file or image folder, given whether its pictures are separate photographs and
            their rate; called where media are wanted.

    Raises:
        LongtakeError: there is no such folder, something that nothing says is not stated either, or most clips look as
            if their direction or axes were others.
        BadMedia: nothing of the format is there, or a file that many clips stand in is damaged.
    """
    root = Path(source)
    if not root.exists():
        raise LongtakeError(f"{root}: no such file or folder.")
    read = _reader(config)
    if not config.trust:
        _check_reading(root, read(root), config)
    for cameras in read(root):
        name = cameras.name or root.absolute().name
        if isinstance(cameras, Refused):
            rejected = Rejected(stage="import", reason=cameras.error.reason, message=str(cameras.error))
            yield Imported(name=name, source=root, rejected=rejected)
            continue
        sha256 = _digest(cameras)
        try:
            yield replace(_clip(root, cameras, config, probe), name=name, sha256=sha256)
        except BadMedia as error:
            rejected = Rejected(stage="import", reason=error.reason, message=str(error))
            yield Imported(name=name, source=root, rejected=rejected, sha256=sha256)


def _check_reading(root: Path, found: Iterator[Cameras | Refused], config: ImportConfig) -> None:
    """Refuse a collection whose first clips look plainly like another direction or other axes than were said."""
    direction, convention = _reading(config)
    votes: list[int] = []
    words = ""
    for cameras in islice(found, LOOKED_AT):
        if isinstance(cameras, Refused):
            continue
        try:
            poses = rigid(cameras.poses, cameras.name)
        except BadMedia:  # it gets a row that says so
            continue
        vote, what = signs(poses, direction, convention)
        votes.append(vote)
        words = words or what
    wrong, right = votes.count(-1), votes.count(1)
    if wrong > right:
        raise LongtakeError(
            f"{root}: read as {direction} {convention}, {wrong} of {len(votes)} clips look wrong and {right} right. In "
            f"the first of them {words}. If they are right as they are, pass --trust-convention."
        )


def _reading(config: ImportConfig) -> tuple[str, str]:
    form = READERS[config.format]
    return (
        settle(config.direction, form.direction, "--pose", DIRECTIONS, config.format),
        settle(config.convention, form.convention, "--convention", CONVENTIONS, config.format),
    )


def _reader(config: ImportConfig) -> Callable[[Path], Iterator[Cameras | Refused]]:
    read = READERS[config.format].read
    assert read is not None
    given = {name: value for name in ("pose_column", "video_column") if (value := getattr(config, name)) is not None}
    if given and config.format != "lerobot":
        raise LongtakeError(f"--pose-column and --video-column are for the format lerobot, not for {config.format}.")
    return partial(read, **given)


def _clip(
    root: Path, cameras: Cameras, config: ImportConfig, probe: Callable[[Path, bool, float | None], VideoInfo]
) -> Imported:
    where = f"{root}: {cameras.name or root.name}"
    direction, convention = _reading(config)
    poses = rigid(cameras.poses, where)
    media = _media(root, cameras, config)
    video = None
    if media is not None:
        video = probe(media, config.stills, config.fps)
    size = _size(cameras, video, config, where)
    k = _intrinsics(cameras, size, config, where)
    if problem := intrinsics_problem(k, size):
        raise BadMedia("intrinsics_of_another_size", f"{where}: {problem}.")
    frames = _frames(cameras, video, media, config, where)
    posed: NDArray[np.bool_] = np.asarray(np.isfinite(poses).all((1, 2)))
    first, last = int(frames[posed][0]), int(frames[posed][-1])
    if READERS[config.format].unposed == "marked":  # what has no pose is in it, too: its rows are the clip
        first, last = int(frames[0]), int(frames[-1])
    c2w = turned(np.where(posed[:, None, None], poses, np.eye(4)), direction, convention)
    if masks := _beside(root, cameras.masks, config):
        vipe.check_masks(masks)
    scale_kind, factor = _scale(cameras, config, where)
    if factor != 1.0:
        c2w[:, :3, 3] *= factor
    inside = (frames >= first) & (frames <= last)
    at = frames[inside] - first
    n = last - first + 1
    every = np.full((n, 4, 4), np.nan)
    every[at[posed[inside]]] = c2w[inside][posed[inside]]
    nearest = at[np.searchsorted((at[1:] + at[:-1]) / 2, np.arange(n))]
    lens = np.zeros((n, 4))
    lens[at] = k[inside]
    return Imported(
        name=cameras.name,
        source=root,
        track=known_track(
            pts_ns=_times(cameras, video, config, first, last, frames, where),
            world_from_cam=every,
            intrinsics=lens[nearest],
            width=size[0],
            height=size[1],
            motion_class="general",  # nothing says; the row leaves it open
            scale_kind=scale_kind,
            pose_source="imported",
            distortion=cameras.distortion,
            flags=cameras.remarks,
            same_px=0.0,  # what a file says differs where it says so
        ),
        video=video,
        media=media,
        span=(first, last + 1),
        depth=_beside(root, cameras.depth, config),
        masks=masks,
        metres_per_unit=factor,
        caption=cameras.caption,
    )


def _beside(root: Path, name: str | None, config: ImportConfig) -> Path | None:
    """A file of the clip besides its media, where these are wanted."""
    return None if name is None or config.media == "none" else confined(root, name)


def _media(root: Path, cameras: Cameras, config: ImportConfig) -> Path | None:
    """The clip's video or image folder, confined to where the user said that it lies; None where none is wanted."""
    if config.media == "none":
        return None
    if config.media_folder is not None:
        name = cameras.name or root.absolute().name
        places = [confined(config.media_folder, f"{name}{suffix}") for suffix in ("", ".mp4", ".mkv", ".webm", ".mov")]
        if (found := next((p for p in places if p.exists()), None)) is None:
            raise BadMedia("no_media", f"{config.media_folder}: neither a video {name}.mp4 nor a folder {name}.")
        return found
    if cameras.media is None:
        raise BadMedia(
            "no_media",
            f"{root}: {cameras.name or 'the clip'} names no video or pictures. Pass --media-folder, or --media none.",
        )
    base = root if root.is_dir() else root.parent
    place = confined(base, cameras.media) if cameras.media not in ("", ".") else base.resolve()
    if cameras.image_names:
        parents = {os.path.dirname(name) for name in cameras.image_names}
        if len(parents) != 1:
            raise BadMedia("no_media", f"{place}: its pictures lie in several folders ({len(parents)}).")
        if parents != {""}:
            place = confined(place, parents.pop())
    if not place.exists():
        raise BadMedia("no_media", f"{place}: no such file or folder. Pass --media-folder, or --media none.")
    return place


def _size(cameras: Cameras, video: VideoInfo | None, config: ImportConfig, where: str) -> tuple[int, int]:
    if video is not None:
        size = (video.width, video.height)
        if cameras.size is not None and cameras.size != size and config.intrinsics_scale == 1:
            ratio = size[0] / cameras.size[0]
            raise BadMedia(
                "intrinsics_of_another_size",
                f"{where}: its intrinsics are for pictures of {cameras.size[0]} x {cameras.size[1]}, but they have "
                f"{size[0]} x {size[1]}. If these are the same pictures, smaller, pass --intrinsics-scale {ratio:.6g}.",
            )
        return size
    size = config.size or cameras.size
    if size is None:
        raise LongtakeError(f"{where}: nothing says how large the pictures are. Pass --size WIDTHxHEIGHT.")
    if cameras.size is not None and config.size not in (None, cameras.size) and config.intrinsics_scale == 1:
        raise BadMedia(
            "intrinsics_of_another_size",
            f"{where}: --size {size[0]}x{size[1]}, but its intrinsics are for {cameras.size[0]} x {cameras.size[1]}. "
            f"If these are the same pictures, pass --intrinsics-scale {size[0] / cameras.size[0]:.6g}.",
        )
    return size


def _intrinsics(cameras: Cameras, size: tuple[int, int], config: ImportConfig, where: str) -> NDArray[np.float64]:
    n = len(cameras.poses)
    if cameras.intrinsics is None:
        if config.intrinsics is None:
            raise LongtakeError(f"{where}: the format holds no intrinsics. Pass --intrinsics fx,fy,cx,cy.")
        cameras = replace(cameras, intrinsics=np.tile(np.array(config.intrinsics), (n, 1)))
    shares = cameras.normalized or config.normalized
    k = to_pixels(replace(cameras, normalized=shares), size).intrinsics
    assert k is not None
    if not shares and config.pixel_center == "half":
        k = k - CORNER
    if (s := config.intrinsics_scale) != 1:  # about the corner, half a pixel from the first centre
        k = (k + CORNER) * s - CORNER
    return k


def _frames(
    cameras: Cameras, video: VideoInfo | None, media: Path | None, config: ImportConfig, where: str
) -> NDArray[np.int64]:
    """[T] the frame of the media that each row is of."""
    n = len(cameras.poses)
    if video is None:
        by_name = None if config.stills else numbered(cameras.image_names, config.first_number or 0)
        return next(v for v in (cameras.frames, by_name, np.arange(n)) if v is not None)
    if video.is_images and cameras.image_names:
        index = {os.path.basename(path): i for i, path in enumerate(video.image_paths)}
        names = [os.path.basename(name) for name in cameras.image_names]
        if missing := [name for name in names if name not in index]:
            raise BadMedia(
                "no_media", f"{where}: {media} has no picture {missing[0][:80]} ({len(missing)} are missing)."
            )
        frames = np.array([index[name] for name in names])
        if n > 1 and not (np.diff(frames) > 0).all():
            raise BadMedia("no_media", f"{where}: its pictures are in another order than their names in {media}.")
        return frames
    frames = cameras.frames
    if frames is None and config.first_number is not None:
        frames = numbered(cameras.image_names, config.first_number)
    elif frames is None and cameras.image_names:
        raise LongtakeError(
            f"{where}: its pictures are frames of a video. Pass --first-number, the number of its first."
        )
    elif frames is None and n == video.num_frames:
        frames = np.arange(n)
    if frames is None:
        raise BadMedia(
            "other_frame_count",
            f"{where}: {n} poses for the {video.num_frames} frames of {media}, and nothing says which are which.",
        )
    if frames[-1] >= video.num_frames:
        raise BadMedia(
            "other_frame_count", f"{where}: a pose of frame {frames[-1]}, but {media} has {video.num_frames} frames."
        )
    return frames


def _times(
    cameras: Cameras,
    video: VideoInfo | None,
    config: ImportConfig,
    first: int,
    last: int,
    frames: NDArray[np.int64],
    where: str,
) -> NDArray[np.int64]:
    if video is not None:
        return video.pts_ns[first : last + 1]
    n = last - first + 1
    if cameras.times_s is not None:
        times = cameras.times_s
        if not np.isfinite(times).all() or np.abs(times).max(initial=0) > 9e9:
            raise BadMedia("broken_cameras", f"{where}: its times are no seconds.")
        inside = (frames >= first) & (frames <= last)
        pts = np.rint(np.interp(np.arange(first, last + 1), frames[inside], times[inside]) * NS).astype(np.int64)
    elif config.fps is not None or config.stills:
        step = NS if config.fps is None else NS / config.fps
        pts = np.rint(np.arange(first, last + 1) * step).astype(np.int64)
    else:
        raise LongtakeError(f"{where}: nothing says when its frames were taken. Pass --fps, or --stills.")
    if n > 1 and not (np.diff(pts) > 0).all():
        raise BadMedia("broken_cameras", f"{where}: two of its frames are less than a nanosecond apart.")
    return pts


def _scale(cameras: Cameras, config: ImportConfig, where: str) -> tuple[str, float]:
    factor = config.metres_per_unit if config.metres_per_unit is not None else cameras.metres_per_unit
    if factor is not None:
        if config.scale == "relative":
            raise LongtakeError(f"{where}: --scale relative, but a factor to metres of {factor} is known.")
        return "metric", factor
    if config.scale is None:
        raise LongtakeError(f"{where}: nothing says whether its lengths are metres. Pass --scale.")
    return config.scale, 1.0


def imported_row(
    clip: Imported,
    config: ImportConfig,
    provenance: schema.Provenance,
    manifest: Path,
    quality: dict[str, float] | None = None,
) -> dict[str, Any]:
    """The manifest's row of a clip; its media are linked or copied below the manifest where that is wanted."""
    row = schema.imported_row(
        source=str(clip.source.absolute()),
        name=clip.name,
        sha256=clip.sha256,
        span=clip.span if clip.track is not None else None,
        provenance=provenance,
        video=clip.video,
        track=clip.track,
        rejected=clip.rejected,
        caption=clip.caption,
        quality=quality or {},
        source_dataset=config.source_dataset,
        license=config.license,
    )
    if clip.video is not None and clip.media is not None:
        row |= _placed(clip.video, clip.media, row, config, manifest)
    if clip.masks is not None:
        row |= {"mask_uri": _masks(clip.masks, manifest, Path("sidecars") / row["clip_id"], config)}
    return row


def _masks(masks: Path, manifest: Path, folder: Path, config: ImportConfig) -> str:
    """Put masks and their phrases below the manifest; rows name nothing without a hash elsewhere."""
    how = "copy" if config.media == "keep" else config.media
    put_file(masks, manifest / folder / "masks.zip", how)
    if (phrases := masks.with_suffix(".txt")).is_file():
        put_file(confined(masks.parent, phrases.name), manifest / folder / "masks.txt", how)
    return str(folder / "masks.zip")


def _placed(video: VideoInfo, media: Path, row: dict[str, Any], config: ImportConfig, manifest: Path) -> dict[str, Any]:
    """Columns of the clip's media: relative to the manifest, unless the user wants them kept where they are."""
    if config.media == "keep":
        return {}
    span = slice(row["frame_start"], row["frame_stop"])
    inside = below(manifest, media)
    if inside is None:
        inside = f"clips/{row['clip_id']}{'' if video.is_images else media.suffix.lower()}"
        if video.is_images:
            for path in video.image_paths:
                put_file(Path(path), manifest / inside / os.path.basename(path), config.media)
        else:
            put_file(media, manifest / inside, config.media)
    images = [f"{inside}/{os.path.basename(path)}" for path in video.image_paths[span]] if video.is_images else None
    return {"uri": inside, "image_uris": images}


def _digest(cameras: Cameras) -> str:
    """sha256 of what was read: the same cameras are the same clip, wherever their files lie."""
    digest = hashlib.sha256(json.dumps([cameras.name, cameras.size, cameras.image_names]).encode())
    for values in (cameras.poses, cameras.intrinsics, cameras.times_s, cameras.frames):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
