"""Collections of other tools into a manifest: cameras read and checked, media probed, paths measured."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..annotate.quality import QualityConfig, measure_track
from ..annotate.video import VideoConfig, probe
from ..datasets.importers import ImportConfig, Imported, imported_row, read_collection
from ..datasets.manifest import create_manifest
from ..datasets.schema import Provenance
from ..records import VideoInfo

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
        row = imported_row(clip, config, provenance, manifest.folder, _measured(clip, config))
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


def _probe(path: Path, stills: bool, fps: float | None) -> VideoInfo:
    return probe(path, stills=stills, config=VideoConfig() if fps is None else VideoConfig(images_fps=fps))


def _measured(clip: Imported, config: ImportConfig) -> dict[str, float]:
    """Path length, turns and speeds of a clip's cameras."""
    return {} if clip.track is None else measure_track(clip.track, QualityConfig(), photographs=config.stills)
