"""Collections of other tools into a manifest: cameras read and checked, media probed, paths measured."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..annotate.depth_clip import GIVEN_SIGMA, DepthClip, DepthWriter, finish_depth, open_depth
from ..annotate.quality import QualityConfig, measure_track
from ..annotate.video import VideoConfig, probe
from ..datasets.formats import vipe
from ..datasets.importers import ImportConfig, Imported, imported_row, read_collection
from ..datasets.manifest import create_manifest
from ..datasets.schema import Provenance
from ..errors import BadMedia
from ..records import Rejected, VideoInfo
from .depth import keep_depth

VERSION = "1"  # of the stage
BATCH = 256  # clips committed at once


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What became of a collection's clips."""

    manifest: str
    clips: int
    ok: int
    failed: int
    frames: int  # with a pose
    reasons: dict[str, int]  # of the failed ones
    first_errors: dict[str, str]  # reason -> the words of the first


def import_collection(
    source: str | os.PathLike[str],
    out: Path,
    config: ImportConfig,
    progress: Callable[[str], None] = lambda words: None,
) -> ImportSummary:
    """Import every clip of a collection into the manifest `out`, which is made where there is none.

    The same clip imported again takes the place of its row. Clips that do not pass have a row with the reason.

    Raises:
        LongtakeError: nothing to import, or the manifest cannot be written.
    """
    known = asdict(config)
    manifest = create_manifest(out)
    provenance = Provenance(
        run_id=f"import-{datetime.now(UTC):%Y%m%dT%H%M%S}",
        config_hash=hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16],
        software_version=metadata.version("longtake"),
        stage_versions={"import": VERSION},
    )
    ids: set[str] = set()
    reasons: Counter[str] = Counter()
    errors: dict[str, str] = {}
    waiting: dict[str, dict[str, Any]] = {}
    frames = 0
    for clip in read_collection(source, config, _probe):
        clip, row = _row(clip, config, provenance, manifest.folder)
        waiting[row["clip_id"]] = row
        ids.add(row["clip_id"])
        if clip.rejected is not None:
            reasons[clip.rejected.reason] += 1
            errors.setdefault(clip.rejected.reason, clip.rejected.message)
        else:
            assert clip.track is not None
            frames += int(clip.track.pose_valid.sum())
        if len(waiting) >= BATCH:
            manifest.append(waiting.values())
            waiting = {}
            progress(f"{len(ids)} clips")
    manifest.append(waiting.values())
    manifest.compact()
    failed = sum(reasons.values())
    return ImportSummary(
        manifest=str(out),
        clips=len(ids),
        ok=len(ids) - failed,
        failed=failed,
        frames=frames,
        reasons=dict(reasons.most_common()),
        first_errors=errors,
    )


def _row(clip: Imported, config: ImportConfig, provenance: Provenance, folder: Path) -> tuple[Imported, dict[str, Any]]:
    """The clip's row, with its depth below the manifest; a failed one where its depth is damaged."""
    depth = None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            depth = _depth(clip, Path(scratch) / "depth.zip")
        except BadMedia as error:  # before anything of the clip is put into its place
            rejected = Rejected(stage="import", reason=error.reason, message=str(error))
            clip = replace(clip, track=None, video=None, media=None, masks=None, rejected=rejected)
        row = imported_row(clip, config, provenance, folder, _measured(clip, config))
        if depth is not None:
            row |= keep_depth(depth, folder, row["clip_id"])
    return clip, row


def _depth(clip: Imported, to: Path) -> DepthClip | None:
    """The clip's depth as a file of ours; None where it has none."""
    if clip.depth is None or clip.track is None:
        return None
    with DepthWriter(to) as writer:
        for frame, depth in vipe.read_depth(clip.depth, *clip.span):
            if writer.frame_index and depth.shape != writer.shape:
                raise BadMedia("depth_unreadable", f"{clip.depth}: its pictures have several sizes.")
            writer.add(frame, depth, np.ones(depth.shape))
    if not writer.frame_index:
        return None
    return finish_depth(
        DepthClip(
            path=to,
            frame_index=np.array(writer.frame_index),
            width=writer.shape[1],
            height=writer.shape[0],
            crop=(0, 0, clip.track.width, clip.track.height),
            factor=np.full(len(writer.frame_index), clip.metres_per_unit),
            world_from_cam=None,
            focal_px=None,
            metric=clip.track.scale_kind == "metric",
            source="given",
            scale=None,
            relative_sigma=GIVEN_SIGMA,
        )
    )


def depth_maps(path: Path, width: int, height: int) -> Iterator[tuple[int, NDArray[np.float32]]] | None:
    """Frames of a depth file and their depth [height, width] in metres, nan where unknown; None where it has none.

    Every pixel takes the depth of the map's pixel that it lies in; outside of what the maps cover it is unknown.

    Raises:
        BadMedia: depth_unreadable.
    """
    clip = open_depth(path)
    return _maps(clip, width, height) if clip.metric else None


def _maps(clip: DepthClip, width: int, height: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    x, y, w, h = clip.crop
    u = np.floor((np.arange(width) + 0.5 - x) * clip.width / w).astype(int)
    v = np.floor((np.arange(height) + 0.5 - y) * clip.height / h).astype(int)
    across, down = (u >= 0) & (u < clip.width), (v >= 0) & (v < clip.height)
    for row, frame in enumerate(clip.frame_index.tolist()):
        out = np.full((height, width), np.nan, np.float32)
        out[np.ix_(down, across)] = clip.read(row)[0][np.ix_(v[down], u[across])]
        yield frame, out


def _probe(path: Path, stills: bool, fps: float | None) -> VideoInfo:
    return probe(path, stills=stills, config=VideoConfig() if fps is None else VideoConfig(images_fps=fps))


def _measured(clip: Imported, config: ImportConfig) -> dict[str, float]:
    """Path length, turns and speeds of a clip's cameras."""
    return {} if clip.track is None else measure_track(clip.track, QualityConfig(), photographs=config.stills)
