"""One HTML page that shows a run: what became of its clips, and each clip's camera and quality.

The page stands alone: style, drawings and pictures lie inside it, it has no script and its content-security policy
allows none, and every text that came from outside (file names, captions, errors) is escaped. For a picture of it:
`chromium --headless --no-sandbox --hide-scrollbars --window-size=1200,1600 --screenshot=report.png report.html`.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import angle_between_deg
from ..records import LongtakeError
from .charts import Ground, bars, escape, lines, number, path_view
from .manifest import Manifest, open_manifest
from .readers import read_clip
from .schema import CONVENTIONS, PER_FRAME, SCHEMA

Row = Mapping[str, Any]
ContactSheet = Callable[[Row], Sequence[tuple[int, bytes]]]  # row -> (frame of the clip, JPEG)

MAX_TABLE_CLIPS = 2000  # rows of the table; a page of more is no longer read by anyone
FRUSTUMS = 14  # cameras drawn along a path
_TABLE_COLUMNS = [f.name for f in SCHEMA if f.name not in PER_FRAME]


def write_report(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    clip_ids: Sequence[str] | None = None,
    max_details: int = 50,
    contact_sheet: ContactSheet | None = None,
) -> Path:
    """Write the report of a manifest.

    Args:
        manifest: its folder.
        out: the page to write; None for report.html inside that folder.
        clip_ids: the clips to show in full; None for the first `max_details`.
        contact_sheet: gives the pictures of a clip; None takes sidecars/<clip_id>/contact_<frame>.jpg of the manifest.

    Returns:
        The page's path.

    Raises:
        LongtakeError: no manifest, no such clip, or the page cannot be written.
    """
    source = open_manifest(manifest)
    rows = sorted(source.rows(_TABLE_COLUMNS), key=lambda r: (r["source_uri"], r["frame_start"] or 0))
    shown = list(clip_ids) if clip_ids is not None else [r["clip_id"] for r in rows[:max_details]]
    sheet = contact_sheet or (lambda row: sidecar_pictures(source.folder, row))
    details = [_clip(row, sheet(row), source.folder) for row in (source.row(clip_id) for clip_id in shown)]
    page = _PAGE.format(
        title=escape(f"{source.folder.resolve().name}: longtake report"),
        style=_STYLE,
        body=_overview(source, rows) + _table(rows, set(shown)) + "".join(details) + _conventions(),
    )
    target = Path(out) if out is not None else source.folder / "report.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.tmp")
        draft.write_text(page, encoding="utf-8", errors="backslashreplace")
        draft.replace(target)
    except OSError as error:
        raise LongtakeError(f"Cannot write the report to {target}: {error.strerror}. Choose another place.") from error
    return target


def sidecar_pictures(folder: Path, row: Row, kind: str = "contact") -> list[tuple[int, bytes]]:
    """The pictures that a run left beside its manifest: (frame of the clip, JPEG), in order.

    Args:
        kind: "contact" for the clip's own, "depth" for a rendered clip's depth in colours.
    """
    found = sorted((folder / "sidecars" / row["clip_id"]).glob(f"{kind}_*.jpg"))
    named = ((path.stem.removeprefix(f"{kind}_"), path) for path in found)
    return [(int(frame), path.read_bytes()) for frame, path in named if frame.isdecimal()]


# --- the run ----------------------------------------------------------------------------------------------------------


def _overview(source: Manifest, rows: Sequence[Row]) -> str:
    status = Counter(r["status"] for r in rows)
    frames = sum(r["num_frames"] or 0 for r in rows if r["status"] != "failed")
    posed = sum((r["num_frames"] or 0) * (r["tracked_ratio"] or 0) for r in rows if r["status"] != "failed")
    seconds = sum(r["duration_s"] or 0 for r in rows)
    tiles = [
        ("clips", str(len(rows)), ""),
        *((name, str(status[name]), name) for name in ("ok", "filtered", "failed")),
        ("footage", _duration(seconds), ""),
        ("frames posed", f"{100 * posed / frames:.1f} %" if frames else "–", ""),
    ]
    out = [f"<header><h1><bdi>{escape(source.folder.resolve().name)}</bdi></h1>", _run_line(rows)]
    out += [
        '<dl class="tiles">',
        *(f'<div class="{c}"><dt>{n}</dt><dd>{v}</dd></div>' for n, v, c in tiles),
        "</dl></header>",
    ]
    panels = []
    reasons = Counter(
        reason for r in rows for reason in (r["filter_reasons"] if r["filter_reasons"] is not None else ())
    )
    if reasons:
        items = [(_words(name), count, _count(count, "clip")) for name, count in reasons.most_common()]
        panels.append(f"<figure><figcaption>Why clips were filtered or failed</figcaption>{bars(items)}</figure>")
    timings: Counter[str] = Counter()
    for r in rows:
        timings.update(json.loads(r["timings_s"] or "{}"))
    if timings:
        panels.append(f"<figure><figcaption>Time by stage, all clips</figcaption>{_timing_bars(timings)}</figure>")
    if panels:
        out.append(f'<section class="grid wide">{"".join(panels)}</section>')
    return "".join(out)


def _run_line(rows: Sequence[Row]) -> str:
    if not rows:
        return '<p class="quiet">The manifest has no clips.</p>'
    newest = max(rows, key=lambda r: r["created_at"])
    runs = len({r["run_id"] for r in rows})
    words = [
        f"longtake {newest['software_version']}",
        f"run {newest['run_id']}" if runs == 1 else f"{runs} runs, the last {newest['run_id']}",
        f"configuration {newest['config_hash']}",
        f"{newest['created_at']:%Y-%m-%d %H:%M} UTC",
    ]
    return f'<p class="quiet">{" · ".join(map(escape, words))}</p>'


def _table(rows: Sequence[Row], detailed: set[str]) -> str:
    heads = ("clip", "status", "length", "camera", "frames posed", "reprojection", "field of view", "reasons")
    body = []
    for row in rows[:MAX_TABLE_CLIPS]:
        name = f"<bdi>{escape(_title(row))}</bdi>"
        if row["clip_id"] in detailed:
            name = f'<a href="#{escape(row["clip_id"])}">{name}</a>'
        fov_x, fov_y = row["fov_x_median_deg"], row["fov_y_median_deg"]
        cells = (
            f'{name}<span class="quiet"> {escape(_span(row))}</span>',
            _badge(row["status"]),
            f"{number(row['duration_s'])} s" if row["duration_s"] else "",
            escape(row["motion_class"] or ""),
            f"{100 * row['tracked_ratio']:.1f} %" if row["tracked_ratio"] is not None else "",
            f"{number(row['reproj_rmse_px'], 2)} px" if row["reproj_rmse_px"] is not None else "",
            f"{number(fov_x)}° × {number(fov_y)}°" if fov_x else "",
            escape(", ".join(map(_words, _list(row["filter_reasons"])))),
        )
        body.append(
            "<tr>" + "".join(f'<td data-of="{h}">{c}</td>' for h, c in zip(heads, cells, strict=True)) + "</tr>"
        )
    head = "".join(f"<th>{h}</th>" for h in heads)
    notes = []
    if len(rows) > MAX_TABLE_CLIPS:
        notes.append(f"The table shows the first {MAX_TABLE_CLIPS} of {len(rows)} clips.")
    if len(detailed) < len(rows):
        notes.append(f"{len(detailed)} of {len(rows)} clips are shown in full below.")
    note = f'<p class="quiet">{" ".join(notes)}</p>' if notes else ""
    table = f'<table class="clips"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f"<section>{table}{note}</section>"


# --- one clip ---------------------------------------------------------------------------------------------------------


def _clip(row: Row, pictures: Sequence[tuple[int, bytes]], folder: Path) -> str:
    parts = [
        f'<section class="clip" id="{escape(row["clip_id"])}">',
        f"<h2><bdi>{escape(_title(row))}</bdi> {_badge(row['status'])}</h2>",
        f'<p class="quiet">{escape(_span(row))}</p>',
    ]
    if row["error"]:
        parts.append(f'<p class="error"><b>{escape(row["error_stage"] or "error")}</b>: {escape(row["error"])}</p>')
    if words := row["caption"] or row["prompt"]:
        parts.append(f"<blockquote>{escape(words)}</blockquote>")
    has_track, rendered = row["c2w"] is not None, row["origin"] == "rendered"
    parts.append(_facts(row))
    if has_track:
        parts.append(_path(row, _read_plan(folder, row)))
    if pictures:
        parts.append(
            _contact_sheet(row, "Frames and feature tracks" if row["origin"] == "annotated" else "Frames", pictures)
        )
    if rendered and (depths := sidecar_pictures(folder, row, "depth")):
        parts.append(_contact_sheet(row, f"Depth{_depth_range(row)}", depths))
    if has_track:
        parts.append(_series(row))
    parts.append(_path_checks(row))
    parts.append(_verdict(row))
    parts.append(_provenance(row))
    return "".join(parts) + "</section>"


def _facts(row: Row) -> str:
    unit = _unit(row)
    rate = row["fps_num"] / row["fps_den"] if row["fps_num"] else None
    turned = f", turned {row['rotation_deg']}°" if row["rotation_deg"] else ""
    focal = _focal_words(row)
    facts = [
        ("picture", f"{row['width']} × {row['height']} px{turned}" if row["width"] else None),
        ("rate", f"{number(rate, 4)} frames/s{', variable' if row['is_vfr'] else ''}" if rate else None),
        ("stream", ", ".join(filter(None, (row["codec"], row["pix_fmt"], row["container"])))),
        ("camera", row["motion_class"]),
        ("camera path", f"{_words(row['path_family'])}, seed {row['seed']}" if row["path_family"] else None),
        ("places shown twice", _count(len(row["revisit_pairs"]) // 2, "pair") if _has(row["revisit_pairs"]) else None),
        ("opaque", f"{100 * row['render_coverage']:.1f} % of pixels" if row["render_coverage"] is not None else None),
        ("holes", f"{100 * row['hole_ratio']:.2f} % of pixels" if row["hole_ratio"] is not None else None),
        ("focal length", focal),
        ("field of view", _range(row, "fov_x") and f"{_range(row, 'fov_x')} × {_range(row, 'fov_y')}"),
        ("distortion", _distortion(row)),
        ("path", f"{number(row['trans_total_m'])} {unit}" if row["trans_total_m"] is not None else None),
        ("turned in all", f"{number(row['rot_total_deg'])}°" if row["rot_total_deg"] is not None else None),
        ("greatest speed", f"{number(row['max_speed_m_s'])} {unit}/s" if row["max_speed_m_s"] is not None else None),
        ("greatest turn rate", f"{number(row['max_rot_deg_s'])} °/s" if row["max_rot_deg_s"] is not None else None),
        ("pose jumps", number(row["jump_count"]) if row["jump_count"] is not None else None),
        ("frames posed", f"{100 * row['tracked_ratio']:.1f} %" if row["tracked_ratio"] is not None else None),
        ("reprojection", f"{number(row['reproj_rmse_px'], 2)} px" if row["reproj_rmse_px"] is not None else None),
        ("held-out Sampson", f"{number(row['sampson_px'], 2)} px" if row["sampson_px"] is not None else None),
        ("VMAF motion", number(row["vmaf_motion"]) if row["vmaf_motion"] is not None else None),
        ("flow in 0.5 s", f"{number(row['flow_px'])} px" if row["flow_px"] is not None else None),
        ("saturation", f"{number(row['saturation'])} of 255" if row["saturation"] is not None else None),
        ("luma", f"{number(row['luma'])} of 255" if row["luma"] is not None else None),
        ("remarks", ", ".join(map(_words, _list(row["flags"])))),
    ]
    items = (f"<div><dt>{n}</dt><dd>{escape(v)}</dd></div>" for n, v in facts if v)
    return f'<dl class="facts">{"".join(items)}</dl>'


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """What a rendering run left of the scene around a path, seen from above; frame and unit are the poses'."""

    png: bytes
    corner: NDArray[np.float64]  # [3] lower left corner of the picture
    right: NDArray[np.float64]  # [3] unit
    ahead: NDArray[np.float64]  # [3] unit
    up: NDArray[np.float64]  # [3] unit
    size: tuple[float, float]  # along right and ahead
    heights: tuple[float, float]  # along up, of what is shown
    cameras: NDArray[np.float64]  # [N, 3] that paths were designed from


def _read_plan(folder: Path, row: Row) -> _Plan | None:
    """The plan of a rendered clip, or None where none lies beside it."""
    file = folder / "sidecars" / row["clip_id"] / "plan.json"
    if row["origin"] != "rendered" or not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        arrays = {name: np.array(facts[name], np.float64) for name in ("corner", "right", "ahead", "up", "cameras")}
        png = file.with_suffix(".png").read_bytes()
        return _Plan(png=png, size=tuple(facts["size"]), heights=tuple(facts["heights"]), **arrays)
    except (OSError, ValueError, KeyError) as error:
        raise LongtakeError(f"{file} is broken ({error}): render the clip again, or remove the file") from error


def _path(row: Row, plan: _Plan | None) -> str:
    """Top and side view. Up is the mean of the cameras' up, the page's right and depth follow from the first camera.

    With a plan of the scene up is the scene's, and the page's edges are the plan's.
    """
    clip = read_clip(row)
    pose, valid = clip.world_from_cam, clip.pose_valid
    if not valid.any():
        return ""
    up = -pose[valid, :3, 1].sum(0)
    first = pose[valid][0, :3, :3]
    if plan is not None:
        up = plan.up
    up = -first[:, 1] if np.linalg.norm(up) < 1e-6 else up / np.linalg.norm(up)
    ahead = first[:, 2] - up * (first[:, 2] @ up)
    ahead = first[:, 1] if np.linalg.norm(ahead) < 1e-6 else ahead / np.linalg.norm(ahead)
    if plan is not None:  # the edge that the first camera looks along, more than along the others
        ahead = max((plan.right, plan.ahead, -plan.right, -plan.ahead), key=lambda edge: float(edge @ ahead))
    right = np.cross(ahead, up)
    page = np.stack([right, ahead, up])  # [3, 3] rows
    origin = pose[valid][0, :3, 3]
    where = (pose[:, :3, 3] - origin) @ page.T  # [T, 3]
    size = float(np.ptp(where[valid], axis=0).max())
    chosen = np.unique(np.flatnonzero(valid)[np.linspace(0, valid.sum() - 1, FRUSTUMS).round().astype(int)])
    moves = size > 1e-9
    cones = [_frustum(clip.width, clip.height, clip.intrinsics[i], 0.09 * size if moves else 1.0) for i in chosen]
    outlines = [where[i] + cone @ (page @ pose[i, :3, :3]).T for i, cone in zip(chosen, cones, strict=True)]
    keys = np.zeros(len(pose), bool)
    if row["frame_is_keyframe"] is not None:
        keys = np.asarray(row["frame_is_keyframe"], bool)
    views, unit = [], _unit(row) if moves or plan is not None else None
    about = "about " if plan is not None else ""
    for name, note, (a, b) in (
        ("from above", f"the first camera looks {about}up the page", (0, 1)),
        ("from the side", f"the first camera looks {about}right", (1, 2)),
    ):
        cameras = [_hull(outline[:, [a, b]]) for outline in outlines]
        ground = None
        if plan is not None and (a, b) == (0, 1):
            flat = page[[a, b]]  # [2, 3]
            ground = Ground(
                href=f"data:image/png;base64,{base64.b64encode(plan.png).decode('ascii')}",
                corner=flat @ (plan.corner - origin),
                right=flat @ plan.right * plan.size[0],
                up=flat @ plan.ahead * plan.size[1],
                dots=(plan.cameras - origin) @ flat.T,
            )
        label = f"camera path {name}"
        drawing = path_view(where[:, a], where[:, b], keys, cameras, unit=unit, label=label, ground=ground)
        caption = f'<figcaption>Path {name} <span class="quiet">{note}</span></figcaption>'
        views.append(f"<figure>{caption}{drawing}</figure>")
    marks = '<span class="mark start"></span>start <span class="mark end"></span>end '
    if plan is None:
        words = '<span class="mark key"></span>keyframe; dotted: no pose. Up is the cameras’ mean up.'
    else:
        who = "training camera" if _stats(row).get("cameras") == "training" else "view derived from the scene"
        low, high = (height - float(plan.up @ origin) for height in plan.heights)
        words = (
            f'<span class="mark camera"></span>{who} <span class="mark solid"></span>solid '
            '<span class="mark below"></span>solid below <span class="mark unseen"></span>never seen. '
            f"The checks’ grid, {number(low)} to {number(high)} {_unit(row)} above the start."
        )
    still = "" if moves else " The camera turns in one place, or stands still."
    legend = f'<p class="quiet legend">{marks}{words}{still}</p>'
    return f'<div class="grid wide">{"".join(views)}</div>{legend}'


def _frustum(width: int, height: int, k: NDArray[np.float64], depth: float) -> NDArray[np.float64]:
    """[5, 3] the camera's centre and the corners of its picture at this depth, camera frame."""
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)
    rays = np.concatenate([(corners - k[2:]) / k[:2], np.ones((4, 1))], 1)
    return np.concatenate([np.zeros((1, 3)), rays * depth])


def _hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The convex outline of a few points in the plane, by Andrew's monotone chain."""
    ordered = sorted(map(tuple, points))

    def half(sequence: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
        out: list[tuple[float, ...]] = []
        for p in sequence:
            while len(out) > 1 and np.linalg.det([np.subtract(out[-1], out[-2]), np.subtract(p, out[-1])]) <= 0:
                out.pop()
            out.append(p)
        return out[:-1]

    return np.array(half(ordered) + half(ordered[::-1])) if len(set(ordered)) > 1 else points


def _contact_sheet(row: Row, head: str, pictures: Sequence[tuple[int, bytes]]) -> str:
    times = read_clip(row).times_s if row["c2w"] is not None else None
    cells = []
    for frame, jpeg in pictures:
        caption = f"{number(times[frame], 4)} s" if times is not None and frame < len(times) else f"frame {frame}"
        data = base64.b64encode(jpeg).decode("ascii")
        picture = f'<img alt="frame {frame}" src="data:image/jpeg;base64,{data}">'
        cells.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return f'<h3>{head}</h3><div class="sheet">{"".join(cells)}</div>'


def _depth_range(row: Row) -> str:
    stats = _stats(row)
    if "depth_near" not in stats:
        return ""
    near, far = number(stats["depth_near"]), number(stats["depth_far"])
    return f' <span class="quiet">bright {near}, dark {far} {_unit(row)}; black: nothing there</span>'


def _series(row: Row) -> str:
    """Everything that changes from frame to frame, as lines over time."""
    clip = read_clip(row)
    t, valid = clip.times_s, clip.pose_valid
    if len(t) < 2:
        return ""
    unit = _unit(row)
    f, size = clip.intrinsics[:, :2], np.array([clip.width, clip.height])
    fov = np.degrees(2 * np.arctan(size / (2 * f)))
    step_s = np.diff(t)
    speed, rate = np.full(len(t), np.nan), np.full(len(t), np.nan)
    both = np.flatnonzero(valid[1:] & valid[:-1])
    speed[both + 1] = np.linalg.norm(np.diff(clip.world_from_cam[:, :3, 3], axis=0), axis=1)[both] / step_s[both]
    rotation = clip.world_from_cam[:, :3, :3]
    rate[both + 1] = angle_between_deg(rotation[both], rotation[both + 1]) / step_s[both]

    def column(name: str) -> NDArray[np.float64] | None:
        values = row[f"frame_{name}"]
        return None if values is None else np.asarray(values, np.float64)

    sigma = column("focal_sigma")
    focal = {"zero": False, "band": None if sigma is None else sigma * f[:, 0]}
    shade = {"missing": ~valid}
    errors = [("rmse", column("reproj_rmse_px")), ("held-out Sampson", column("sampson_px"))]
    shares = [("inliers", column("inlier_ratio")), ("coverage", column("coverage")), ("moving", column("dyn_ratio"))]
    figures = [
        _figure("Focal length", "px", t, [("fx", f[:, 0]), ("fy", f[:, 1])], **focal),
        _figure("Field of view", "°", t, [("horizontal", fov[:, 0]), ("vertical", fov[:, 1])], zero=False),
        _figure("Speed", f"{unit}/s", t, [("speed", speed)], **shade),
        _figure("Turn rate", "°/s", t, [("turn rate", rate)], **shade),
        _figure("Reprojection error", "px", t, errors, **shade),
        _figure("Feature tracks", "seen", t, [("tracks", column("num_tracked"))], **shade),
        _figure("Shares of tracks and picture", "", t, shares, ceiling=1.0, **shade),
        _figure("Tracks’ step from frame to frame", "px", t, [("median", column("step_px"))]),
        _figure("VMAF motion", "", t, [("motion", column("vmaf_motion"))]),
        _figure("Flow in 0.5 s", "px", t, [("flow", column("flow_px"))]),
        _figure("Blur", "0 sharp to 1", t, [("blur", column("blur"))], ceiling=1.0),
        _figure("Luma and saturation", "of 255", t, [("luma", column("luma")), ("saturation", column("saturation"))]),
    ]
    return f'<h3>Over time</h3><div class="grid">{"".join(figures)}</div>'


def _figure(
    title: str,
    unit: str,
    times_s: NDArray[np.float64],
    series: Sequence[tuple[str, NDArray[np.float64] | None]],
    **options: Any,
) -> str:
    """One drawing with its title, and a legend where it has several lines; nothing where nothing was measured."""
    shown = [(name, values) for name, values in series if values is not None and np.isfinite(values).any()]
    if not shown:
        return ""
    band = options.get("band")
    if band is not None and not np.isfinite(band).any():
        options = options | {"band": None}
    same = len(shown) == 2 and np.allclose(shown[0][1], shown[1][1], rtol=1e-4, equal_nan=True)
    if same:
        shown = [(f"{shown[0][0]} = {shown[1][0]}", shown[0][1])]
    keys = (
        "".join(f'<span class="key s{i}">{escape(name)}</span>' for i, (name, _) in enumerate(shown))
        if len(shown) > 1 or same
        else ""
    )
    drawing = lines(times_s, shown, label=f"{title} over time", **options)
    caption = f'<figcaption>{title} <span class="quiet">{escape(unit)}</span>{keys}</figcaption>'
    return f"<figure>{caption}{drawing}</figure>"


def _verdict(row: Row) -> str:
    if not row["filter_values"]:
        return ""
    checks = json.loads(row["filter_values"])
    order = {False: 0, None: 1, True: 2}
    body = []
    for name, check in sorted(checks.items(), key=lambda item: order[item[1]["passed"]]):
        low, high = check["min"], check["max"]
        wanted = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
        wanted = wanted or (f"≥ {number(low)}" if low is not None else f"≤ {number(high)}")
        kind, word = {False: ("failed", "failed"), None: ("none", "not measured"), True: ("ok", "passed")}[
            check["passed"]
        ]
        cells = (escape(name), number(check["value"]), wanted, f'<span class="badge {kind}">{word}</span>')
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    reasons = ", ".join(map(_words, _list(row["filter_reasons"])))
    told = f"filtered for {escape(reasons)}" if reasons else "passed"
    head = "".join(f"<th>{h}</th>" for h in ("metric", "value", "wanted", "verdict"))
    opened = " open" if reasons else ""
    return (
        f"<details{opened}><summary>Filter profile {escape(row['filter_profile'])}: {told}</summary>"
        f'<table class="checks"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></details>'
    )


def _path_checks(row: Row) -> str:
    """Of a rendered clip: what was measured of its path and film, each value beside the limit that it keeps."""
    if not row["path_checks"]:
        return ""
    body = []
    for name, check in json.loads(row["path_checks"]).items():
        sign = "≤" if check["bound"] == "at_most" else "≥"
        limit = "∞" if check["limit"] is None else number(check["limit"])
        cells = (escape(_words(name)), "∞" if check["value"] is None else number(check["value"]), f"{sign} {limit}")
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{h}</th>" for h in ("check", "value", "limit"))
    return (
        f"<details open><summary>Checks of the path and the film: {len(body)} passed</summary>"
        f'<table class="checks"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></details>'
    )


def _provenance(row: Row) -> str:
    crop, scale = row["crop"], " from ".join(filter(None, (row["scale_kind"], row["scale_source"])))
    items = [
        ("clip", row["clip_id"]),
        ("source", row["source_uri"]),
        ("sha256", row["source_sha256"]),
        ("licence", row["license"]),
        ("frames of the source", f"{row['frame_start']} to {row['frame_stop'] - 1}" if row["frame_stop"] else None),
        ("shot begins with", row["boundary"]),
        ("crop", f"{crop[2]} × {crop[3]} px at {crop[0]}, {crop[1]}" if crop is not None else None),
        ("poses from", row["pose_source"]),
        ("scale", scale),
        ("run", f"{row['run_id']}, configuration {row['config_hash']}, longtake {row['software_version']}"),
        ("stages", _pairs(row["stage_versions"], lambda v: str(v))),
        ("networks", _pairs(row["model_revisions"], lambda v: str(v))),
        ("networks’ licences", _pairs(row["model_licenses"], lambda v: str(v))),
        ("first frame of clip", row["parent_clip_id"]),
        ("actions", row["action_dsl"]),
        ("generated with", _pairs(row["generation_config"], str)),
        ("seed", str(row["seed"]) if row["generation_config"] else None),
        ("generator", _pairs(row["generation_stats"], str)),
        ("engine", _pairs(row["track_stats"], lambda v: number(v, 4))),
        (
            "drawn from the seed",
            _pairs(row["path_parameters"], lambda v: number(v) if isinstance(v, float) else str(v)),
        ),
        ("scene and rasteriser", _pairs(row["render_stats"], lambda v: number(v) if isinstance(v, float) else str(v))),
    ]
    facts = "".join(f"<div><dt>{n}</dt><dd><bdi>{escape(v)}</bdi></dd></div>" for n, v in items if v)
    timings = json.loads(row["timings_s"] or "{}")
    drawn = f"<h4>Time by stage</h4>{_timing_bars(timings)}" if timings else ""
    return f'<details><summary>Provenance and timings</summary><dl class="facts long">{facts}</dl>{drawn}</details>'


def _conventions() -> str:
    items = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in CONVENTIONS.items())
    return f'<footer><h3>Conventions</h3><dl class="facts long">{items}</dl></footer>'


# --- words ------------------------------------------------------------------------------------------------------------


def _title(row: Row) -> str:
    name = row["source_uri"].rstrip("/").rsplit("/", 1)[-1] or row["source_uri"]
    return f"{name}: {_words(row['path_family'])} {row['seed']}" if row["path_family"] else name


def _span(row: Row) -> str:
    if row["num_frames"] is None:
        return ""
    frames = _count(row["num_frames"], "frame")
    if row["start_s"] is None or row["end_s"] is None:
        return frames
    return f"{number(row['start_s'], 4)}–{number(row['end_s'], 4)} s, {frames}"


def _stats(row: Row) -> dict[str, Any]:
    """Of a rendered clip: the scene, its cameras, the rasteriser."""
    return json.loads(row["render_stats"] or "{}")


def _unit(row: Row) -> str:
    return "m" if row["scale_kind"] == "metric" else "units"


def _focal_words(row: Row) -> str | None:
    if row["intrinsics"] is None:
        return None
    f = np.asarray(row["intrinsics"], np.float64).reshape(-1, 4)[:, 0]
    low, high = f.min(), f.max()
    value = number(low, 4) if high - low < 1e-3 * low else f"{number(low, 4)} to {number(high, 4)}"
    mode = {"static": "one for the clip", "per_frame": "one a frame"}.get(
        row["intrinsics_mode"], row["intrinsics_mode"]
    )
    return f"{value} px, {row['focal_status']}, {mode}"


def _range(row: Row, name: str) -> str | None:
    low, high = row[f"{name}_min_deg"], row[f"{name}_max_deg"]
    if low is None or high is None:
        return None
    return f"{number(low)}°" if high - low < 0.05 else f"{number(low)}–{number(high)}°"


def _distortion(row: Row) -> str | None:
    if row["distortion_model"] in (None, "none"):
        return row["distortion_model"]
    return f"{row['distortion_model']} {', '.join(number(float(k)) for k in row['distortion'])}"


def _pairs(text: str | None, words: Callable[[Any], str]) -> str:
    return ", ".join(f"{name} {words(value)}" for name, value in json.loads(text or "{}").items())


def _timing_bars(timings: Mapping[str, float]) -> str:
    ordered = sorted(timings.items(), key=lambda item: -item[1])
    return bars([(_words(name), value, _duration(value)) for name, value in ordered])


def _has(values: Sequence[Any] | None) -> bool:
    return values is not None and len(values) > 0


def _list(values: Sequence[str] | None) -> Sequence[str]:
    return () if values is None else values


def _badge(status: str) -> str:
    return f'<span class="badge {escape(status)}">{escape(status)}</span>'


def _words(code: str) -> str:
    return str(code).replace("_", " ")


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}".replace(",", "\u202f")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style></head>
<body><main>{body}</main></body></html>
"""

_STYLE = """
:root { --paper:#fcfcfa; --card:#fff; --ink:#1f2328; --quiet:#636b74; --rule:#e3e3de;
  --s0:#2166a8; --s1:#b85c0b; --s2:#27805a; --ok:#1f7a4d; --filtered:#9a6200; --failed:#b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper:#15181c; --card:#1c2025; --ink:#e4e6e8; --quiet:#98a0a9;
  --rule:#31363d; --s0:#6fb1ee; --s1:#f0a35b; --s2:#63c79b; --ok:#63c79b; --filtered:#e5b04d; --failed:#f28b82; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;
  font-variant-numeric:tabular-nums; }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px; }
h1,h2 { overflow-wrap:anywhere; line-height:1.25; font-weight:600; }
h1 { font-size:26px; margin:0; } h2 { font-size:20px; margin:0; }
h3,h4 { font-size:15px; font-weight:600; margin:22px 0 8px; }
p { margin:4px 0; } a { color:var(--s0); text-underline-offset:2px; }
.quiet { color:var(--quiet); font-weight:400; }
header .quiet { overflow-wrap:anywhere; }
section { margin-top:28px; }
.clip { border-top:1px solid var(--rule); padding-top:28px; margin-top:40px; scroll-margin-top:0; }
dl,dd,dt,figure,ul { margin:0; padding:0; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(130px,1fr)); gap:10px; margin-top:18px; }
.tiles div { background:var(--card); border:1px solid var(--rule); border-radius:8px; padding:10px 14px; }
.tiles dt { color:var(--quiet); font-size:13px; } .tiles dd { font-size:22px; font-weight:600; }
.tiles .ok dd { color:var(--ok); }
.tiles .filtered dd { color:var(--filtered); } .tiles .failed dd { color:var(--failed); }
.facts { display:grid; grid-template-columns:repeat(auto-fill,minmax(165px,1fr)); gap:10px 18px; margin:16px 0; }
.facts.long { grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr)); }
.facts dt { color:var(--quiet); font-size:12.5px; } .facts dd { overflow-wrap:anywhere; line-height:1.35; }
.grid { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr)); gap:14px; }
.grid.wide { grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr)); }
.grid > figure { background:var(--card); border:1px solid var(--rule); border-radius:8px;
  padding:10px 12px; min-width:0; }
figcaption { font-size:14px; margin-bottom:4px; }
.key { margin-left:12px; font-size:13px; white-space:nowrap; }
.key::before { content:""; display:inline-block; width:14px;
  height:0; border-top:2.5px solid; vertical-align:middle; margin-right:5px; }
.key.s0,.dot.s0 { color:var(--s0); } .key.s1 { color:var(--s1); } .key.s2 { color:var(--s2); }
svg { display:block; width:100%; height:auto; overflow:hidden; }
svg text { font:11px system-ui,sans-serif; fill:var(--quiet); }
.grid path.grid, path.grid { stroke:var(--rule); fill:none; stroke-width:1; }
.line { fill:none; stroke-width:1.6; stroke-linejoin:round; stroke-linecap:round; }
.line.s0 { stroke:var(--s0); } .line.s1 { stroke:var(--s1); } .line.s2 { stroke:var(--s2); }
.dot.s0 { fill:var(--s0); } .dot.s1 { fill:var(--s1); } .dot.s2 { fill:var(--s2); }
.band { fill:var(--s0); opacity:.16; } .gap { fill:var(--failed); opacity:.14; }
.frustum { fill:var(--quiet); fill-opacity:.05; stroke:var(--quiet);
  stroke-opacity:.55; stroke-width:.8; stroke-linejoin:round; }
.bridge { stroke:var(--quiet); stroke-width:1.2; stroke-dasharray:1.5 4; fill:none; }
.keys { stroke:var(--s0); stroke-width:4.5; stroke-linecap:round; fill:none; }
.bar { stroke:var(--quiet); stroke-width:1.2; fill:none; }
svg .start { fill:var(--card); stroke:var(--ok); stroke-width:2.4; } svg .end { fill:var(--s1); }
.dots { stroke:var(--s2); stroke-width:3; stroke-linecap:round; fill:none; opacity:.8; }
.border { stroke:var(--rule); fill:none; }
.ground { image-rendering:pixelated; }
.legend { font-size:13px; margin-top:6px; }
.mark { display:inline-block; width:10px; height:10px; margin:0 5px 0 10px; vertical-align:-1px; }
.mark:first-child { margin-left:0; }
.mark.start { border:2.4px solid var(--ok); border-radius:50%; } .mark.end { background:var(--s1); }
.mark.key { background:var(--s0); border-radius:50%; width:6px; height:6px; vertical-align:1px; }
.mark.camera { background:var(--s2); border-radius:50%; width:6px; height:6px; vertical-align:1px; }
.mark.solid { background:rgb(128 128 128/.9); } .mark.below { background:rgb(128 128 128/.31); }
.mark.unseen { background:rgb(128 128 128/.12); }
.mark.key::before { display:none; }
.sheet { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(48%,250px),1fr)); gap:8px; }
.sheet img { display:block; width:100%; height:auto; border-radius:4px; background:var(--rule); }
.sheet figcaption { font-size:12.5px; color:var(--quiet); margin:2px 0 0; }
.bars { list-style:none; font-size:14px; }
.bars li { display:grid; grid-template-columns:minmax(90px,34%) 1fr auto; gap:10px; align-items:center; padding:2px 0; }
.bars .track { height:8px; background:var(--rule); border-radius:4px; overflow:hidden; }
.bars .fill { display:block; height:100%; background:var(--s0); border-radius:4px; }
.bars .name { overflow-wrap:anywhere; } .bars .num { color:var(--quiet); min-width:64px; text-align:right; }
table { border-collapse:collapse; width:100%; font-size:14px; }
th { text-align:left; font-weight:500; color:var(--quiet); font-size:12.5px; padding:4px 12px 4px 0;
  border-bottom:1px solid var(--rule); }
td { padding:7px 12px 7px 0; border-bottom:1px solid var(--rule); vertical-align:top; overflow-wrap:anywhere; }
.clips td:nth-child(n+2):nth-child(-n+7) { white-space:nowrap; }
.badge { font-size:12.5px; font-weight:600; white-space:nowrap; color:var(--quiet); }
.badge::before { content:"● "; font-size:10px; vertical-align:1px; }
.badge.ok { color:var(--ok); } .badge.filtered { color:var(--filtered); } .badge.failed { color:var(--failed); }
h2 .badge { margin-left:8px; vertical-align:2px; }
.error { border-left:3px solid var(--failed); padding:6px 0 6px 12px; margin:10px 0; overflow-wrap:anywhere; }
blockquote { margin:10px 0; padding-left:12px; border-left:3px solid var(--rule); overflow-wrap:anywhere; }
details { margin-top:14px; border-top:1px solid var(--rule); padding-top:8px; }
summary { cursor:pointer; font-weight:600; padding:4px 0; overflow-wrap:anywhere; }
details table { margin-top:6px; }
footer { margin-top:44px; border-top:1px solid var(--rule); }
@media (max-width:720px) {
  main { padding:18px 14px 44px; } h1 { font-size:22px; } .tiles { grid-template-columns:repeat(3,1fr); gap:8px; }
  .tiles div { padding:8px 10px; } .tiles dd { font-size:18px; }
  .facts { grid-template-columns:repeat(2,minmax(0,1fr)); }
  .facts.long { grid-template-columns:minmax(0,1fr); }
  .clips, .clips tbody, .clips tr { display:block; } .clips thead { display:none; }
  .clips tr { border-bottom:1px solid var(--rule); padding:8px 0; }
  .clips td { border:0; padding:1px 0; display:grid; grid-template-columns:110px minmax(0,1fr); gap:8px; }
  .clips td:nth-child(n) { white-space:normal; }
  .clips td::before { content:attr(data-of); color:var(--quiet); font-size:13px; }
  .clips td:empty { display:none; } .clips td:first-child { display:block; font-weight:600; }
  .clips td:first-child::before { content:none; }
  .checks { font-size:13px; } .checks td:nth-child(2), .checks td:nth-child(3) { white-space:nowrap; }
  .checks td { padding:5px 8px 5px 0; } .checks .badge { white-space:normal; }
}
@media print { .clip { break-inside:avoid-page; } }
"""
