"""Manifest rows as the files that other tools read; `formats/table.py` lists what there is.

Formats that have no word for a frame without a pose leave such frames out, or the whole clip where their readers count
rows; the summary counts both. No pose is made up. Frames are named as `readers.Clip.image_names` says.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import LongtakeError
from .formats import lerobot, sana_wm, vipe, webdataset
from .formats.output import Media, Output, ReadDepth
from .formats.table import FORMATS
from .readers import CLIP_COLUMNS, Clip, read_clip
from .safe import safe_id
from .storage import Local

if TYPE_CHECKING:
    import pyarrow.compute as pc

    from .manifest import Manifest

WRITERS = {name: form for name, form in FORMATS.items() if form.write is not None}
COLUMNS = (*CLIP_COLUMNS, *dict.fromkeys((*lerobot.COLUMNS, *sana_wm.COLUMNS, *vipe.COLUMNS, *webdataset.COLUMNS)))


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export wrote and what it could not."""

    format: str
    manifest: str
    snapshot: int
    clips: int  # written
    frames: int  # written with a pose
    frames_without_pose: int  # left out, or marked where the format can say so
    clips_failed: int  # no camera: skipped
    clips_without_pose: int  # not one frame with a pose, in a format that cannot say so: skipped
    clips_left_out: dict[str, int]  # why the format has no place for them
    clips_distorted: int  # written, but the format has no place for their k1 and k2


def export(
    manifest: Manifest,
    to: str,
    out: str | os.PathLike[str],
    where: pc.Expression | None = None,
    *,
    media: Media = "none",
    read_depth: ReadDepth | None = None,
) -> ExportSummary:
    """Write the clips of a manifest into the folder `out`, filtered ones too unless `where` says otherwise.

    Args:
        to: a name of WRITERS.
        where: such as `pyarrow.compute.field("status") == "ok"`.
        media: hard-link or copy the clips' videos too, in the formats that have a place for them.
        read_depth: with media, write depth too where the format has a place for it: how its files are read, which is
            `pipelines.interchange.depth_maps`.

    Returns:
        The counts, which `out/export.json` holds too.

    Raises:
        LongtakeError: unknown format, `out` holds other things than an earlier export of the same, or a clip's id
            cannot name a file.
    """
    if to not in WRITERS:
        raise LongtakeError(f"There is no export format {to!r}. Choose one of: {', '.join(WRITERS)}.")
    folder, form, place = Path(out), WRITERS[to], _place(manifest)
    target = Output(
        folder=folder, files=manifest.files if media != "none" else None, media=media, read_depth=read_depth
    )
    _claim(folder, to, place)
    snapshot = manifest.snapshot().number
    counts: Counter[str] = Counter()
    posed: dict[str, int] = {}
    left: dict[str, str] = {}
    distorted: set[str] = set()

    def samples() -> Iterator[tuple[Clip, Mapping[str, Any]]]:
        for row in manifest.rows(list(dict.fromkeys(COLUMNS)), where):
            if row["c2w"] is None:
                counts["failed"] += 1
                continue
            clip = read_clip(row)
            safe_id(clip.clip_id, f"the manifest {place}")
            count = int(clip.pose_valid.sum())
            counts["unposed"] += clip.num_frames - count
            if count == 0 and form.unposed != "marked":
                counts["empty"] += 1
            elif count < clip.num_frames and form.unposed == "refused":
                left[clip.clip_id] = "frames_without_pose"
            else:
                posed[clip.clip_id] = count
                if clip.distortion and not form.distortion:
                    distorted.add(clip.clip_id)
                yield clip, row

    assert form.write is not None
    with _told(folder):
        left |= form.write(samples(), target)
    written = posed.keys() - left.keys()
    summary = ExportSummary(
        format=to,
        manifest=place,
        snapshot=snapshot,
        clips=len(written),
        frames=sum(posed[i] for i in written),
        frames_without_pose=counts["unposed"],
        clips_failed=counts["failed"],
        clips_without_pose=counts["empty"],
        clips_left_out=dict(Counter(left.values())),
        clips_distorted=len(distorted & written),
    )
    with _told(folder):
        target.json("export.json", asdict(summary))
    return summary


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LongtakeError(
            f"Cannot write the export to {folder}: {error.strerror or error}. "
            "Make room or choose another folder, and run it again."
        ) from error


def _place(manifest: Manifest) -> str:
    """Where the manifest lies: an absolute path, or its address in an object store."""
    return str(manifest.folder.resolve()) if isinstance(manifest.storage, Local) else manifest.url


def _claim(folder: Path, to: str, place: str) -> None:
    """Make the output folder ours, unless something else is in it."""
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        return
    try:
        before = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        before = (before["format"], before["manifest"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        before = None
    if before != (to, place):
        what = "other files" if before is None else f"the export of {before[1]} to {before[0]}"
        raise LongtakeError(f"{folder} holds {what}. Empty it, or choose another folder; nothing was written.")
