"""What a manifest holds, for a person: counts, histograms as pictures, and a dataset card in Markdown.

Texts in rows are other people's: whatever of them is shown is escaped.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .charts import escape, number
from .schema import CONVENTIONS, SCHEMA_ID
from .storage import Local

if TYPE_CHECKING:
    from .manifest import Manifest

COUNTED = "origin license source_dataset scale_kind motion_class focal_status pose_source".split()
COLUMNS = (
    "status filter_reasons filter_profile num_frames duration_s width height fov_x_median_deg fov_y_median_deg "
    "trans_total_m max_speed_m_s model_licenses caption group_id split"
).split()
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 480, 220, 46, 34, 28
STYLE = (
    "text{font:12px sans-serif;fill:#444}.h{font-weight:600;fill:#222}.b{fill:#3b76b0}.g{stroke:#ddd}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.h{fill:#eee}.g{stroke:#444}}"
)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the rows of a manifest come to."""

    facts: dict[str, Any]  # counts, and tables of counts
    values: dict[str, NDArray[np.float64]]  # picture -> one number a clip
    units: dict[str, str]
    reasons: dict[str, int]  # why clips are not ok -> how many


def survey(manifest: Manifest) -> Contents:
    """Look at every row once, one part in memory at a time."""
    status: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    counted: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    nets: Counter[str] = Counter()
    profiles: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    groups: set[str] = set()
    frames, seconds, captions = 0, 0.0, 0
    found: dict[str, list[float]] = {}
    for row in manifest.rows([*COUNTED, *COLUMNS]):
        status[row["status"]] += 1
        reasons.update(row["filter_reasons"] or ())
        for name in COUNTED:
            if row[name] is not None or name == "license":
                counted[name][row[name] or "not stated"] += 1
        nets.update(f"{n}: {words}" for n, words in _table(row["model_licenses"]).items())
        for into, value in ((profiles, row["filter_profile"]), (splits, row["split"])):
            into.update([value] if value is not None else [])
        if row["width"] is not None:
            sizes[f"{row['width']} x {row['height']}"] += 1
        groups.update([row["group_id"]] if row["group_id"] is not None else [])
        frames += row["num_frames"] or 0
        seconds += row["duration_s"] or 0.0
        captions += row["caption"] is not None
        unit = "metres" if row["scale_kind"] == "metric" else "units of each clip"
        for name, value in (
            ("horizontal field of view, degrees", row["fov_x_median_deg"]),
            ("vertical field of view, degrees", row["fov_y_median_deg"]),
            (f"path length, {unit}", row["trans_total_m"]),
            (f"largest speed, {unit} a second", row["max_speed_m_s"]),
            ("duration, seconds", row["duration_s"]),
        ):
            if value is not None and math.isfinite(value):
                found.setdefault(name, []).append(value)
    facts: dict[str, Any] = {
        "clips": sum(status.values()),
        **{name: status[name] for name in ("ok", "filtered", "failed")},
        "recordings": len(groups),
        "frames": frames,
        "hours": round(seconds / 3600, 4),
        "captions": captions,
        "megabytes": round(sum(part.bytes for part in manifest.snapshot().parts) / 1e6, 3),
        **{name: dict(counts.most_common()) for name, counts in counted.items()},
        "size": dict(sizes.most_common(10)),
        "split": dict(splits.most_common()),
        "filter_profile": dict(profiles.most_common()),
        "filter_reasons": dict(reasons.most_common()),
        "model_licenses": dict(nets.most_common()),
    }
    values = {name: np.array(v) for name, v in sorted(found.items())}
    units = {name: name.rpartition(", ")[2] for name in values}
    return Contents(facts=facts, values=values, units=units, reasons=dict(reasons.most_common()))


def write_pictures(contents: Contents, folder: Path) -> dict[str, Path]:
    """Histograms of field of view, path length, speed and duration and the bars of drop reasons, as SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: histogram(values, name) for name, values in contents.values.items()}
    if contents.reasons:
        drawn["why clips are not ok"] = bars(list(contents.reasons.items())[:20], "why clips are not ok")
    out = {}
    for name, svg in drawn.items():
        path = folder / (re.sub(r"[^a-z]+", "_", name.lower()).strip("_") + ".svg")
        path.write_text(svg, encoding="utf-8")
        out[name] = path
    return out


def write_card(manifest: Manifest, path: Path, *, name: str | None = None) -> Path:
    """A dataset card (README.md as the Hugging Face hub shows it), its pictures in the folder `card` beside it."""
    contents = survey(manifest)
    facts = contents.facts
    pictures = write_pictures(contents, path.parent / "card")
    local = isinstance(manifest.storage, Local)
    title = name or (manifest.folder.resolve() if local else PurePosixPath(manifest.url)).name
    stated = [text for text in facts["license"] if text != "not stated"]
    single = stated[0] if len(stated) == 1 and "not stated" not in facts["license"] else "other"
    head = [
        "---",
        f"pretty_name: {json.dumps(title)}",
        f"license: {json.dumps(single)}",
        "task_categories: [image-to-video, text-to-video]",
        "tags: [camera-pose, video, longtake]",
        "configs:",
        "- config_name: clips",
        f"  data_files: {json.dumps(_glob(manifest, path))}",
        "---",
        "",
        f"# {_plain(title)}",
        "",
        f"{facts['clips']} clips ({facts['ok']} ok, {facts['filtered']} filtered, {facts['failed']} failed), "
        f"{facts['hours']} hours, {facts['frames']} frames of {facts['recordings']} recordings. One row a clip: camera "
        "poses and intrinsics for every frame, quality, and why clips were refused.",
        "",
        "## Licences",
        "",
        "What the sources' licences are, as whoever ran longtake stated it; each row says its own.",
        "",
        *_rows(facts["license"], "licence", "clips"),
    ]
    if facts["model_licenses"]:
        head += ["", "Networks that made part of it, and what their weights may be used for:", ""]
        head += _rows(facts["model_licenses"], "network: licence", "clips")
    body = ["", "## What is in it", ""]
    body += [f"- {name}: {facts[name]}" for name in ("captions", "megabytes")]
    for key in (
        "origin",
        "source_dataset",
        "split",
        "scale_kind",
        "motion_class",
        "focal_status",
        "pose_source",
        "size",
    ):
        if facts[key]:
            body += ["", *_rows(facts[key], key, "clips")]
    for words, picture in pictures.items():
        body += ["", f"![{_plain(words)}]({os.path.relpath(picture, path.parent).replace(os.sep, '/')})"]
    if facts["filter_profile"]:
        body += ["", "## Filters", "", *_rows(facts["filter_profile"], "profile", "clips judged")]
    if facts["filter_reasons"]:
        body += ["", *_rows(facts["filter_reasons"], "why a clip is not ok", "clips")]
    body += ["", "## Conventions", "", f"Schema {SCHEMA_ID}; its fields say their units in the Parquet metadata.", ""]
    body += [f"- {key}: {words}" for key, words in CONVENTIONS.items()]
    path.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8")
    return path


def histogram(values: NDArray[np.float64], label: str) -> str:
    """A histogram as a picture of its own, with the median; the highest thousandth is counted in the last bar."""
    top = float(np.quantile(values, 0.999)) if len(values) > 1000 else float(values.max())
    low = float(values.min())
    if not top > low:
        low, top = low - 0.5 * max(1.0, abs(low)), low + 0.5 * max(1.0, abs(low))
    counts, edges = np.histogram(np.clip(values, low, top), bins=min(40, max(8, int(np.sqrt(len(values))))))
    across, up = WIDTH - LEFT - 12, HEIGHT - BOTTOM - TOP
    most = int(counts.max())
    parts = [
        f'<text class="h" x="{LEFT}" y="16">{escape(label)}: {len(values)} clips, median '
        f"{number(float(np.median(values)))}</text>"
    ]
    for share in (0.0, 0.5, 1.0):
        y = TOP + up * (1 - share)
        parts.append(f'<path class="g" d="M{LEFT} {y:.1f}h{across}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(most * share)}</text>')
    step = across / len(counts)
    for i, count in enumerate(counts.tolist()):
        size = up * count / most
        place = f'x="{LEFT + i * step:.1f}" y="{TOP + up - size:.1f}"'
        parts.append(f'<rect class="b" {place} width="{max(step - 1, 0.5):.1f}" height="{size:.1f}"/>')
    for share in (0.0, 0.5, 1.0):
        value = edges[0] + share * (edges[-1] - edges[0])
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        x = LEFT + share * across
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="{anchor}">{number(float(value))}</text>')
    return _picture(HEIGHT, label, parts)


def bars(items: Sequence[tuple[str, int]], label: str) -> str:
    """Horizontal bars with their names and counts, as a picture of its own."""
    most = max(count for _, count in items)
    parts = [f'<text class="h" x="8" y="16">{escape(label)}</text>']
    for i, (name, count) in enumerate(items):
        y = TOP + 20 * i
        parts.append(f'<text x="200" y="{y + 13}" text-anchor="end">{escape(name[:32])}</text>')
        parts.append(f'<rect class="b" x="208" y="{y}" width="{200 * count / most:.1f}" height="16"/>')
        parts.append(f'<text x="{214 + 200 * count / most:.1f}" y="{y + 13}">{count}</text>')
    return _picture(TOP + 20 * len(items) + 8, label, parts)


def _picture(height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(label)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _rows(counts: Mapping[str, int], name: str, value: str) -> list[str]:
    return [f"| {name} | {value} |", "|---|---|", *(f"| {_plain(key)} | {count} |" for key, count in counts.items())]


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~<>&-])", r"\\\1", " ".join(str(text).split()))[:400]


def _table(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return {"unreadable": "model_licenses of a row"}
    return tree if isinstance(tree, dict) else {}


def _glob(manifest: Manifest, path: Path) -> str:
    if not isinstance(manifest.storage, Local):
        return f"{manifest.url}/part-*.parquet"
    folder = os.path.relpath(manifest.folder.resolve(), path.resolve().parent).replace(os.sep, "/")
    return "part-*.parquet" if folder == "." else f"{folder}/part-*.parquet"
