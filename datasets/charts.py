"""Small SVG drawings for the report: lines over time, a camera path seen from a side, bars.

They carry no fonts, scripts or colours of their own: strokes and fills come from the page's classes. Sizes are in CSS
pixels at the width for which they are laid out, about that of a phone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH = 360
_LINE_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 140, 42, 15, 8, 20
_VIEW_HEIGHT, _GROUND_HEIGHT, _VIEW_MARGIN = 260, 320, 26
_MAX_POINTS = 320  # of one line; longer ones keep the extremes of each bucket


def escape(text: object) -> str:
    """Text that is safe inside an element and inside a quoted attribute."""
    return html.escape(str(text), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits without an exponent where that stays short; an en dash for no value."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{max(0, digits - 1 - size)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def lines(
    times_s: NDArray[np.float64],
    series: Sequence[tuple[str, NDArray[np.float64]]],
    *,
    label: str,
    zero: bool = True,
    ceiling: float | None = None,
    band: NDArray[np.float64] | None = None,
    missing: NDArray[np.bool_] | None = None,
) -> str:
    """Values over time; a line breaks where values are NaN.

    Args:
        times_s: [T].
        series: (name, [T] values) in the order of the colours s0, s1, s2.
        label: what an assistive reader says instead of the drawing.
        zero: the axis begins at 0.
        ceiling: the axis ends here.
        band: [T] half-width of a band about the first series.
        missing: [T] frames to shade, having no pose.
    """
    stacked = [v for _, v in series]
    if band is not None:
        stacked += [stacked[0] - band, stacked[0] + band]
    values = np.concatenate(stacked)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    ticks = _ticks(0.0 if zero else low, high if ceiling is None else ceiling, zero)
    low, high = ticks[0], ticks[-1]
    t0, t1 = float(times_s[0]), float(times_s[-1])
    t1 = t1 if t1 > t0 else t0 + 1.0

    def x(t: NDArray | float) -> NDArray:
        return _LEFT + (np.asarray(t) - t0) / (t1 - t0) * (WIDTH - _LEFT - _RIGHT)

    def y(v: NDArray | float) -> NDArray:
        return _TOP + (high - np.asarray(v)) / (high - low) * (_LINE_HEIGHT - _TOP - _BOTTOM)

    parts, floor = [], _LINE_HEIGHT - _BOTTOM
    if missing is not None and missing.any():
        half = np.median(np.diff(times_s)) / 2 if len(times_s) > 1 else 0.5
        for first, last in _runs(missing):
            a, b = np.clip(x(times_s[[first, last]] + [-half, half]), _LEFT, WIDTH - _RIGHT)
            size = f'width="{max(b - a, 1):.1f}" height="{floor - _TOP}"'
            parts.append(f'<rect class="gap" x="{a:.1f}" y="{_TOP}" {size}/>')
    for tick in ticks:
        at = float(y(tick))
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in _ticks(t0, t1, False, inside=True):
        at = float(x(tick))
        parts.append(f'<path class="grid" d="M{at:.1f} {_LINE_HEIGHT - _BOTTOM}v4"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{_LINE_HEIGHT - 5}" text-anchor="middle">{number(tick)} s</text>'
        )
    if band is not None and np.isfinite(band).any():
        keep = np.flatnonzero(np.isfinite(band) & np.isfinite(stacked[0]))
        keep = keep[:: max(1, len(keep) // _MAX_POINTS)]
        middle, half_width = stacked[0][keep], band[keep]
        edge = [*zip(x(times_s[keep]), y(middle + half_width), strict=True)]
        edge += [*zip(x(times_s[keep]), y(middle - half_width), strict=True)][::-1]
        parts.append(f'<polygon class="band" points="{_points(edge)}"/>')
    for index, (_, v) in enumerate(series):
        shown = np.clip(v, low, high)
        for first, last in _runs(np.isfinite(v)):
            t, u = _thinned(times_s[first : last + 1], shown[first : last + 1])
            points = [*zip(x(t), y(u), strict=True)]
            if len(points) == 1:
                parts.append(f'<circle class="dot s{index}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="1.5"/>')
            else:
                parts.append(f'<polyline class="line s{index}" points="{_points(points)}"/>')
    return _svg(_LINE_HEIGHT, label, parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """A picture of what lies below a path, in the path's coordinates on the page."""

    href: str  # of the picture, such as a data URI
    corner: NDArray[np.float64]  # [2] where its lower left corner lies
    right: NDArray[np.float64]  # [2] from there to its lower right corner
    up: NDArray[np.float64]  # [2] and to its upper left one
    dots: NDArray[np.float64]  # [N, 2] places to mark

    def border(self) -> NDArray[np.float64]:
        """[4, 2] the picture's corners, around."""
        return self.corner + np.stack([0 * self.right, self.right, self.right + self.up, self.up])


def path_view(
    right: NDArray[np.float64],
    up: NDArray[np.float64],
    keyframes: NDArray[np.bool_],
    frustums: Sequence[NDArray[np.float64]],
    *,
    unit: str | None,
    label: str,
    ground: Ground | None = None,
) -> str:
    """A path on the page with equal axes, its start and end, its keyframes, a few cameras and a scale bar.

    Args:
        right, up: [T] coordinates, NaN where there is no pose; the line is dotted across such gaps.
        frustums: [n, 2] outlines of cameras in the same coordinates.
        unit: of the scale bar; None for a camera that stays in one place, which needs none.
        ground: drawn below the path, and shown whole.
    """
    view_height = _VIEW_HEIGHT if ground is None else _GROUND_HEIGHT
    posed = np.flatnonzero(np.isfinite(right) & np.isfinite(up))
    if not posed.size:
        return _svg(60, label, [f'<text class="tick" x="{WIDTH / 2}" y="34" text-anchor="middle">no poses</text>'])
    every = np.concatenate([np.stack([right[posed], up[posed]], 1), *frustums])
    if ground is not None:
        every = np.concatenate([every, ground.border()])
    low, high = every.min(0), every.max(0)
    margin = _VIEW_MARGIN if ground is None else 4
    span = np.array([WIDTH - 2 * margin, view_height - 2 * margin - 12])
    scale = float(np.min(span / np.maximum(high - low, 1e-12)))
    if not math.isfinite(scale) or (high - low).max() < 1e-9:
        scale = 1.0
    centre = (low + high) / 2

    def place(r: NDArray | float, u: NDArray | float) -> tuple[NDArray, NDArray]:
        return WIDTH / 2 + (np.asarray(r) - centre[0]) * scale, (view_height - 12) / 2 - (
            np.asarray(u) - centre[1]
        ) * scale

    parts = []
    if ground is not None:
        a, b, c, d = scale * np.array([ground.right[0], -ground.right[1], -ground.up[0], ground.up[1]])
        e, f = (float(v) for v in place(*(ground.corner + ground.up)))
        matrix = " ".join(f"{v:.4f}" for v in (a, b, c, d, e, f))
        size = 'width="1" height="1" preserveAspectRatio="none"'
        parts.append(f'<image class="ground" href="{ground.href}" {size} transform="matrix({matrix})"/>')
        border = zip(*place(*ground.border().T), strict=True)
        parts.append(f'<polygon class="grid border" points="{_points(border)}"/>')
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in zip(*place(*ground.dots.T), strict=True))
        parts.append(f'<path class="dots" d="{dots}"/>')
    for outline in frustums:
        parts.append(
            f'<polygon class="frustum" points="{_points(zip(*place(outline[:, 0], outline[:, 1]), strict=True))}"/>'
        )
    x, y = place(right, up)
    step = max(1, len(posed) // 1500)
    for (_, before), (after, _) in zip(runs := _runs(np.isfinite(right)), runs[1:], strict=False):
        parts.append(f'<path class="bridge" d="M{x[before]:.1f} {y[before]:.1f}L{x[after]:.1f} {y[after]:.1f}"/>')
    for first, last in runs:
        at = [*range(first, last, step), last]
        parts.append(f'<polyline class="line s0" points="{_points(zip(x[at], y[at], strict=True))}"/>')
    keys = posed[keyframes[posed]]
    dots = [f"M{x[i]:.1f} {y[i]:.1f}h0" for i in keys[:: max(1, len(keys) // 400)]]
    if dots:
        parts.append(f'<path class="keys" d="{"".join(dots)}"/>')
    a, b = posed[0], posed[-1]
    parts.append(f'<rect class="end" x="{x[b] - 5:.1f}" y="{y[b] - 5:.1f}" width="10" height="10"/>')
    parts.append(f'<circle class="start" cx="{x[a]:.1f}" cy="{y[a]:.1f}" r="5.5"/>')
    if unit is not None:
        bar, foot = _nice_below(90 / scale), view_height - 8
        words = f"{number(bar)} {escape(unit.removesuffix('s') if bar == 1 else unit)}"
        parts.append(f'<path class="bar" d="M{_VIEW_MARGIN} {foot - 4}v4h{bar * scale:.1f}v-4"/>')
        parts.append(f'<text class="tick" x="{_VIEW_MARGIN + bar * scale + 6:.1f}" y="{foot}">{words}</text>')
    return _svg(view_height, label, parts)


def bars(items: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars as an HTML list: (name, value, the value in words)."""
    most = max((value for _, value, _ in items), default=0.0) or 1.0
    rows = (
        f'<li><span class="name">{escape(name)}</span><span class="track"><span class="fill" '
        f'style="width:{100 * value / most:.1f}%"></span></span><span class="num">{escape(words)}</span></li>'
        for name, value, words in items
    )
    return f'<ul class="bars">{"".join(rows)}</ul>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _points(points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of every run of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _thinned(t: NDArray, v: NDArray) -> tuple[NDArray, NDArray]:
    """At most about _MAX_POINTS of a line's points, with the least and the greatest of every stretch."""
    if len(v) <= _MAX_POINTS:
        return t, v
    keep = []
    for stretch in np.array_split(np.arange(len(v)), _MAX_POINTS // 2):
        keep += sorted({int(stretch[v[stretch].argmin()]), int(stretch[v[stretch].argmax()])})
    keep = np.array(sorted({0, *keep, len(v) - 1}))
    return t[keep], v[keep]


def _nice_below(value: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(m for m in (1, 2, 5) if m <= value / power * (1 + 1e-9)) * power


def _ticks(low: float, high: float, zero: bool, inside: bool = False) -> list[float]:
    """Three to six round numbers that enclose low..high, or that lie inside it."""
    if not high > low:
        pad = abs(low) * 0.05 or 1.0
        low, high = (low, low + pad) if zero else (low - pad, high + pad)
    step = _nice_below((high - low) / 3 * (1 + 1e-9))
    if inside:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        step *= math.ceil((last - first + 1) / 6)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]
