"""Scale fusion against a known truth: the paper's rule with either weight, and our default, under every kind of error.

    python benchmarks/scale_fusion.py

The scenes are depth maps measured by depth cameras, holes included: ten of each sequence that has them, each held for a
tenth of the clip while a window of the picture pans over it. From a map d come the two depths: a = d / s(t) (1 + e), of
many frames, consistent, its factor s(t) known; b = d j(t) (1 + e'), of single frames, metric, each frame wrong by j(t).
What is wrong with them is made up, and is one line of the table; where a line does not say otherwise, b has 5 % of
noise per pixel and 5 % that is smooth over 16 pixels, a 2 % of the latter, and j jitters by 2 %. Noise lines have that
noise and nothing else. e is normal, j as often too large by a factor as too small by it. Clips are of 161 and 961
frames at 16 fps.

The paper (sec. 4) does not say which pixels count, nor what a frame without any gives, nor how the average starts. Here
its rule never sees a pixel without a value, holds its value through frames without any, and takes the first value there
is both to start and for frames before it. Two tables, in each of which all methods are given exactly the same pixels:
"values" all that have both depths; "masks" those that `usable_pixels` leaves: without depth edges, moving things (their
mask is the true one) and low confidence.

Error: |factor used / s(t) - 1| in percent, its median and its maximum over the frames of a clip, undefined ones
included; the tables have means over clips. Which way a scale grows, or a frame, thing or outlier is wrong (3x or 1/3),
is drawn for each clip, so that errors do not cancel by the choice of their signs. For every kind of error, ours must be
below the paper's with either weight, in median and maximum, with either set of pixels; where it is not, this ends with
exit code 1. A single clip can go the other way by luck (an average that starts with one frame is now and then right by
chance): "won" is the share of clips where ours has the smaller median, and the smaller maximum, against the better of
the paper's two. Where the mean over one sequence or one length goes the other way, it is listed.

The last two tables are alternatives to what ours does in a frame, and over time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import RESULTS, machine, number, print_table, sequences, write_result
from numpy.typing import NDArray

from longtake.annotate.scale import (
    FrameFactor,
    ScaleConfig,
    ScaleTrack,
    frame_factor,
    moving_average,
    scale_track,
    smooth,
    usable_pixels,
    weighted_factor,
)

FPS = 16.0
CLIPS = {161: 8, 961: 3}  # frames of a clip: clips of each sequence
SCALE = 2.5  # metres per unit of a at the start
STEP, WINDOW = 4, (60, 80)  # every 4th pixel of a map; the window that pans over it
CONFIG = ScaleConfig()
METHODS = {
    "paper 1/a": replace(CONFIG, mode="paper", paper_weight="1/a"),
    "paper 1/b": replace(CONFIG, mode="paper", paper_weight="1/b"),
    "robust": CONFIG,
}


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What is wrong with the two depths of a clip. Shares are of 1; noise is a relative standard deviation."""

    a_noise: float = 0.0  # each pixel by itself
    b_noise: float = 0.05
    a_patches: float = 0.02  # smooth over 16 pixels
    b_patches: float = 0.05
    b_jitter: float = 0.02  # one factor a frame, independent
    b_wobble: float = 0.0  # one factor a frame, correlated over a second
    a_growth: float = 1.0  # of a's scale over the clip, at a constant rate
    a_walk: float = 0.0  # of a's scale, a step of so much every second
    outliers: tuple[float, float] = (0.0, 1.0)  # share of b's pixels, and what they are multiplied by
    invalid: float = 0.0  # half of them a band at the top where b has no value, half single pixels where a has none
    unsure: float = 0.0  # patches of a that are nonsense and have low confidence
    moving: tuple[float, float] = (0.0, 1.0)  # share of the picture that a thing covers, what a is multiplied by there
    blur_px: int = 0  # b is a mean over such a square: depth bleeds over edges
    first: float = 1.0  # what b of the first frame is multiplied by
    bad_frames: float = 0.0  # share of frames whose b is multiplied by 0.6 or 1.8
    missing: float = 0.0  # share of frames, in runs and at the start, that are all sky


PURE = Errors(b_noise=0, a_patches=0, b_patches=0, b_jitter=0)
KINDS = {
    "noise of b 10 %": replace(PURE, b_noise=0.1),
    "noise of b 20 %": replace(PURE, b_noise=0.2),
    "noise of b 30 %": replace(PURE, b_noise=0.3),
    "noise of a and b 10 %": replace(PURE, a_noise=0.1, b_noise=0.1),
    "noise of a and b 20 %": replace(PURE, a_noise=0.2, b_noise=0.2),
    "noise of a and b 30 %": replace(PURE, a_noise=0.3, b_noise=0.3),
    "smooth noise of a 10 %, b 20 %": replace(PURE, a_patches=0.1, b_patches=0.2),
    "frames of b jitter 5 %": Errors(b_jitter=0.05),
    "frames of b jitter 20 %": Errors(b_jitter=0.2),
    "b wobbles 5 %, over 1 s": Errors(b_wobble=0.05),
    "a's scale grows 1.5x": Errors(a_growth=1.5),
    "a's scale grows 3x": Errors(a_growth=3.0),
    "a's scale steps 3 % a second": Errors(a_walk=0.03),
    "outliers 20 %, 3x": Errors(outliers=(0.2, 3.0)),
    "outliers 20 %, 1.5x": Errors(outliers=(0.2, 1.5)),
    "invalid pixels 30 %": Errors(invalid=0.3),
    "nonsense of low confidence 30 %": Errors(unsure=0.3),
    "moving thing on 25 %, 1.5x": Errors(moving=(0.25, 1.5)),
    "edges bleed 7 pixels": Errors(blur_px=7),
    "first frame 1.5x": Errors(first=1.5),
    "bad frames 10 %": Errors(bad_frames=0.1),
    "missing frames 20 %": Errors(missing=0.2),
    "missing frames 20 %, growth 1.5x": Errors(missing=0.2, a_growth=1.5),
    "all of it": Errors(
        b_noise=0.2, b_jitter=0.05, a_growth=1.5, outliers=(0.1, 3.0), invalid=0.3, moving=(0.15, 1.5), first=1.5,
        bad_frames=0.05, missing=0.1,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One frame of a made clip."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    confidence: NDArray[np.float32]
    moving: NDArray[np.bool_]
    factor: float  # the truth: what takes a's scale to metres
    of_b: float  # what takes a's scale to that of this frame's b


def depth_maps() -> dict[str, list[NDArray[np.float32]]]:
    """Measured depth in metres, 0 where there is none, of the sequences that have it."""
    out = {}
    for folder in sorted(sequences().iterdir()):
        if not (folder / "depth").is_dir():
            continue
        frames = json.loads((folder / "meta.json").read_text())["depth"]["frames"]
        maps = [cv2.imread(str(folder / "depth" / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED) for i in frames]
        out[folder.name] = [np.asarray(m[::STEP, ::STEP] / 1000, np.float32) for m in maps if m is not None]
    return out


def views(maps: list[NDArray[np.float32]], e: Errors, count: int, rng: np.random.Generator) -> Iterator[View]:
    """A clip of so many frames with these errors."""
    h, w = WINDOW
    seconds = np.arange(count) / FPS
    grown, first, outlier, moved = (
        factor ** rng.choice([-1, 1]) for factor in (e.a_growth, e.first, e.outliers[1], e.moving[1])
    )
    log_scale = np.log(grown) * np.arange(count) / count
    log_scale += np.cumsum(np.where(np.arange(count) % int(FPS) == 0, rng.normal(0, 1, count) * e.a_walk, 0))
    of_b = np.exp(e.b_jitter * rng.normal(size=count) + e.b_wobble * correlated(count, FPS, rng))
    bad = rng.random(count) < e.bad_frames
    of_b[bad] *= rng.choice([0.6, 1.8], bad.sum())
    of_b[0] *= first
    missing = runs(count, e.missing, rng)
    for t in range(count):
        source = maps[t * len(maps) // count]
        y, x = (round((n - m) * (0.5 + 0.5 * np.sin(s * seconds[t]))) for n, m, s in zip(
            source.shape, WINDOW, (0.31, 0.47), strict=True))  # fmt: skip
        d = source[y : y + h, x : x + w]
        factor = SCALE * float(np.exp(log_scale[t]))
        a = d / factor * (1 + e.a_noise * rng.normal(size=d.shape) + patches(e.a_patches, rng))
        b = cv2.blur(d, (e.blur_px, e.blur_px)) * (d > 0) if e.blur_px else d
        b = b * of_b[t] * (1 + e.b_noise * rng.normal(size=d.shape) + patches(e.b_patches, rng))
        b = np.where(rng.random(d.shape) < e.outliers[0], outlier * b, b)
        moving = np.zeros(d.shape, bool)
        wide = round(w * e.moving[0])
        left = round((w - wide) * (t / count))
        moving[:, left : left + wide] = True
        a = np.where(moving, moved * a, a)
        unsure = np.zeros(d.shape, bool)
        if e.unsure:
            field = patches(1.0, rng)
            unsure = field > np.quantile(field, 1 - e.unsure)
            a = np.where(unsure, a * np.exp(0.5 + 0.5 * rng.normal(size=d.shape)), a)
        a = np.where(rng.random(d.shape) < e.invalid / 2, np.nan, a)
        b[: round(h * e.invalid / 2)] = np.inf
        if missing[t]:
            b = np.full(d.shape, np.inf)
        yield View(
            a=np.where(a > 0, a, 0).astype(np.float32),
            b=np.where(b > 0, b, 0).astype(np.float32),
            confidence=np.where(unsure, 0.03, 0.8).astype(np.float32),
            moving=moving,
            factor=factor,
            of_b=factor * of_b[t],
        )


def patches(sigma: float, rng: np.random.Generator, cell: int = 16) -> NDArray[np.float64]:
    """Noise over the window that is smooth over so many pixels."""
    coarse = rng.normal(size=(WINDOW[0] // cell + 2, WINDOW[1] // cell + 2))
    fine = cv2.resize(coarse, (WINDOW[1], WINDOW[0]), interpolation=cv2.INTER_CUBIC)
    return sigma * fine / 0.75  # cubic interpolation takes a quarter of the standard deviation


def correlated(count: int, frames: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A first-order autoregression of unit variance whose correlation falls by e in so many frames."""
    keep = np.exp(-1 / frames)
    out = rng.normal(size=count)
    for t in range(1, count):
        out[t] = keep * out[t - 1] + np.sqrt(1 - keep**2) * out[t]
    return out


def runs(count: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """So many frames of a clip, in runs of a second: the first frames and others."""
    out, length = np.zeros(count, bool), int(FPS)
    while share and out.mean() < share:
        start = 0 if not out.any() else int(rng.integers(count - length))
        out[start : start + length] = True
    return out


# ---- alternatives ------------------------------------------------------------------------------------------------


def m_estimate(ratio: NDArray, weigh: Callable[[NDArray], NDArray]) -> float:
    """exp of the location of log ratios by reweighting, from the median and with its absolute deviation for a scale."""
    values = np.log(ratio)
    at = np.median(values)
    sigma = 1.4826 * np.median(np.abs(values - at))
    for _ in range(30):
        weight = weigh((values - at) / sigma)
        at = (weight * values).sum() / weight.sum()
    return float(np.exp(at))


def clipped_log_median(ratio: NDArray) -> float:
    """The median of log ratios within 3 deviations of it."""
    values = np.log(ratio)
    keep, at = np.ones(len(values), bool), np.median(values)
    for _ in range(20):
        keep = np.abs(values - at) <= 3 * 1.4826 * np.median(np.abs(values[keep] - at))
        at = np.median(values[keep])
    return float(np.exp(at))


IN_A_FRAME: dict[str, Callable[[NDArray, NDArray], float]] = {
    "paper 1/a": lambda a, b: weighted_factor(a, b, 1 / a),
    "paper 1/b": lambda a, b: weighted_factor(a, b, 1 / b),
    "mean of logs": lambda a, b: float(np.exp(np.log(b / a).mean())),
    "median": lambda a, b: float(np.median(b / a)),
    "Huber of logs": lambda a, b: m_estimate(b / a, lambda u: 1 / np.maximum(np.abs(u) / 1.345, 1)),
    "Tukey of logs": lambda a, b: m_estimate(b / a, lambda u: (1 - np.minimum((u / 4.685) ** 2, 1)) ** 2),
    "median, logs clipped": lambda a, b: clipped_log_median(b / a),
}


def corrected_average(values: NDArray[np.float64], momentum: float) -> NDArray[np.float64]:
    """An exponential moving average that starts with nothing and is divided by the weights so far."""
    weights = momentum ** np.arange(len(values))
    total = np.array([(weights[: t + 1][::-1] * values[: t + 1]).sum() for t in range(len(values))])
    return total / np.cumsum(weights)


def _curve(memory_s: float) -> Callable[[NDArray, NDArray], NDArray]:
    config = replace(CONFIG, memory_s=memory_s)
    return lambda seconds, values: np.exp(smooth(seconds, np.log(values), config)[0])


OVER_TIME: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "none": lambda seconds, values: values,
    "average 0.99": lambda seconds, values: moving_average(values, 0.99),
    "same, start corrected": lambda seconds, values: corrected_average(values, 0.99),
    "one median": lambda seconds, values: np.full(len(values), np.median(values)),
    "curve, 1 s": _curve(1),
    "curve, 3 s (ours)": _curve(3),
    "curve, 6 s": _curve(6),
}


# ---- the runs ----------------------------------------------------------------------------------------------------


def run(maps: list[NDArray[np.float32]], errors: Errors, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """One clip by every method with either set of pixels, and by the alternatives, which have the masks."""
    found = {(pixels, method): [] for pixels in ("values", "masks") for method in METHODS}
    truth, of_b, in_a_frame = [], [], {name: [] for name in (*IN_A_FRAME, "ours")}
    for t, view in enumerate(views(maps, errors, count, rng)):
        truth.append(view.factor)
        of_b.append(view.of_b)
        masked = usable_pixels(view.a, view.b, CONFIG, confidence=view.confidence, moving=view.moving)
        for (pixels, method), factors in found.items():
            usable = masked if pixels == "masks" else np.ones(WINDOW, bool)
            factors.append(frame_factor(view.a, view.b, usable, METHODS[method]))
        if t % 10 == 0 and np.isfinite(factor_now := found["masks", "robust"][-1].factor):
            a, b = view.a[masked].astype(np.float64), view.b[masked].astype(np.float64)
            for name in in_a_frame:
                factor = factor_now if name == "ours" else IN_A_FRAME[name](a, b)
                in_a_frame[name].append(100 * (factor / view.of_b - 1))
    pts_ns = (np.arange(count) * 1e9 / FPS).astype(np.int64)
    scales = {key: tracked(factors, pts_ns, METHODS[key[1]]) for key, factors in found.items()}
    out: dict[str, Any] = {"values": {}, "masks": {}, "over_time": {}}
    for (pixels, method), scale in scales.items():
        out[pixels][method] = error_pct(scale.smoothed, np.array(truth))
    out["in_a_frame"] = {name: float(np.sqrt(np.mean(np.square(errors)))) for name, errors in in_a_frame.items()}
    ours = scales["masks", "robust"]
    ok = ours.defined
    seconds = np.arange(count) / FPS
    for name, method in OVER_TIME.items():
        out["over_time"][name] = error_pct(method(seconds[ok], ours.raw[ok]), np.array(truth)[ok])
    return out | {"drift_log": ours.drift_log, "drift": ours.drift, "undefined": int((~ours.defined).sum())}


def tracked(factors: list[FrameFactor], pts_ns: NDArray[np.int64], config: ScaleConfig) -> ScaleTrack:
    scale = scale_track(factors, pts_ns, config)
    if not isinstance(scale, ScaleTrack):
        raise SystemExit(scale.message)
    return scale


def error_pct(factors: NDArray[np.float64], truth: NDArray[np.float64]) -> list[float]:
    """Median and maximum over frames."""
    error = 100 * np.abs(factors / truth - 1)
    return [float(np.median(error)), float(error.max())]


def defeats(rows: list[dict[str, Any]], *parts: str) -> list[str]:
    """Where ours is not below the paper's, as a mean over the clips of a kind of error that agree in these columns."""
    out = []
    for key in dict.fromkeys(tuple(row[part] for part in ("kind", *parts)) for row in rows):
        same = [row for row in rows if tuple(row[part] for part in ("kind", *parts)) == key]
        for pixels in ("values", "masks"):
            ours = np.mean([row[pixels]["robust"] for row in same], 0)
            for name in ("paper 1/a", "paper 1/b"):
                theirs = np.mean([row[pixels][name] for row in same], 0)
                if (ours >= theirs).any():
                    out.append(f"{', '.join(map(str, key))}, {pixels}: {name} {theirs.round(3)}, ours {ours.round(3)}")
    return out


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind of error, sequence and length: means over its clips, and how many of them drift."""
    out = []
    for key in dict.fromkeys((row["kind"], row["sequence"], row["frames"]) for row in rows):
        same = [row for row in rows if (row["kind"], row["sequence"], row["frames"]) == key]
        out.append(dict(zip(("kind", "sequence", "frames"), key, strict=True)) | {"clips": len(same)})
        for part in ("values", "masks", "in_a_frame", "over_time"):
            out[-1][part] = {name: np.mean([row[part][name] for row in same], 0).round(4) for name in same[0][part]}
        out[-1]["drift_log"] = np.mean([row["drift_log"] for row in same]).round(4)
        out[-1]["drifting"] = sum(row["drift"] == "drifting" for row in same)
        out[-1]["undefined"] = sum(row["undefined"] for row in same)
    return out


def with_wins(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose `values` and `masks` say too whether ours won: 100 or 0 for the median, and for the maximum."""
    out = dict(row)
    for pixels in ("values", "masks"):
        theirs = np.minimum(row[pixels]["paper 1/a"], row[pixels]["paper 1/b"])
        out[pixels] = row[pixels] | {"won %": (100.0 * (np.array(row[pixels]["robust"]) < theirs)).tolist()}
    return out


def table(title: str, part: str, rows: list[dict[str, Any]]) -> None:
    """A line for each kind of error, a column for each method: means over clips."""
    print(f"\n{title}")
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        same = [row[part] for row in rows if row["kind"] == kind]
        cells = [np.atleast_1d(np.mean([clip[name] for clip in same], 0)) for name in same[0]]
        lines.append([kind, *(" ".join(number(float(v)) for v in cell) for cell in cells)])
    print_table(["error", *rows[0][part]], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="ERROR")
    parser.add_argument("--frames", nargs="+", type=int, choices=CLIPS, default=list(CLIPS), metavar="LENGTH")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale_fusion.json")
    args = parser.parse_args()
    started, rows, scenes = machine(), [], depth_maps()
    for kind in args.only:
        for sequence, maps in scenes.items():
            for frames in args.frames:
                for seed in range(CLIPS[frames]):
                    rng = np.random.default_rng([seed, frames, list(KINDS).index(kind), list(scenes).index(sequence)])
                    about = {"kind": kind, "sequence": sequence, "frames": frames, "seed": seed}
                    rows.append(with_wins(about | run(maps, KINDS[kind], frames, rng)))
        write_result(args.out, summary(rows), started)
        print(kind, file=sys.stderr)
    table("Error of the factor in %, median and maximum over frames: all pixels with both values", "values", rows)
    table("The same with masks: moving things, depth edges and low confidence left out for all", "masks", rows)
    table("Alternatives in a frame, with masks: RMS error in % against that frame's own factor", "in_a_frame", rows)
    table("Alternatives over time, on our factors: median and maximum over defined frames", "over_time", rows)
    print(f"written: {args.out}")
    for part in ("sequence", "frames"):
        if lost := defeats(rows, part):
            print("\n".join([f"by {part} alone, ours is not the better one:", *lost]))
    if lost := defeats(rows):
        print("\n".join(["ours is not the better one:", *lost]))
        raise SystemExit(1)
    print("over all clips ours is the better one for every kind of error, either set of pixels and either weight")


if __name__ == "__main__":
    main()
