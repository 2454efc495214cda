"""Scale fusion: closed forms, published figures, laws of the smoother, shots, drift, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.annotate.scale import (
    FrameFactor,
    ScaleConfig,
    ScaleTrack,
    drift,
    frame_factor,
    moving_average,
    scale_track,
    smooth,
    usable_pixels,
    weighted_factor,
)
from longtake.records import LongtakeError, Rejected

CONFIG = ScaleConfig()
PAPER = replace(CONFIG, mode="paper")
FPS = 16


def scene(seed: int = 0, shape: tuple[int, int] = (48, 64)) -> NDArray[np.float32]:
    """A slanted ground, 2 to 6 deep, and a box that stands 1 m before what is behind it."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    depth = 6 - 4 * rows / shape[0] + 0.3 * np.sin(columns / 9 + seed)
    depth[10:25, 20:40] -= 1
    return depth.astype(np.float32)


def everywhere(depth: NDArray) -> NDArray[np.bool_]:
    return np.ones(depth.shape, bool)


def factors(values: NDArray[np.float64]) -> list[FrameFactor]:
    return [FrameFactor(factor=float(v), dispersion=0.1, pixels=1000 * bool(v > 0), inliers=1.0) for v in values]


def times(count: int, fps: float = FPS) -> NDArray[np.int64]:
    return (np.arange(count) * 1e9 / fps).astype(np.int64)


def tracked(
    values: NDArray[np.float64], config: ScaleConfig = CONFIG, shot_starts: tuple[int, ...] = (0,), fps: float = FPS
) -> ScaleTrack:
    scale = scale_track(factors(values), times(len(values), fps), config, shot_starts=shot_starts)
    assert isinstance(scale, ScaleTrack)
    return scale


def wandering(count: int, seed: int, jitter: float = 0.05) -> NDArray[np.float64]:
    """Factors of a scale that grows and wobbles slowly, with jitter and a few bad frames."""
    rng = np.random.default_rng(seed)
    t = np.arange(count) / FPS
    values = np.exp(0.02 * t + 0.1 * np.sin(t / 9 + seed) + jitter * rng.normal(size=count))
    values[rng.integers(count, size=count // 20)] *= 1.7
    return values


# ---- one frame -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_closed_form_is_least_squares(seed):
    rng = np.random.default_rng(seed)
    a, b, w = rng.uniform(0.5, 5, (3, 200))
    expected = np.linalg.lstsq(np.sqrt(w)[:, None] * a[:, None], np.sqrt(w) * b, rcond=None)[0][0]
    assert weighted_factor(a, b, w) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weight", ["1/a", "1/b"])
def test_paper_mode_is_that_closed_form(weight):
    a = scene()
    b = 2 * a * np.random.default_rng(0).uniform(0.7, 1.3, a.shape).astype(np.float32)
    x, y = a.ravel().astype(float), b.ravel().astype(float)
    found = frame_factor(a, b, everywhere(a), replace(PAPER, paper_weight=weight))
    assert found.factor == pytest.approx(weighted_factor(x, y, 1 / (x if weight == "1/a" else y)), rel=1e-12)


@pytest.mark.parametrize("sigma, low_pct", [(0.1, 1.0), (0.2, 4.5), (0.3, 13.1)])
def test_bias_of_the_weights(sigma, low_pct):
    """Noise of b makes w = 1/b too small by these percentages, but neither w = 1/a nor ours.

    The last one hangs on how small b may become, as E[1/b] is infinite: here 0.05 of what it should be.
    """
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 5, (700, 1000)).astype(np.float32)
    b = (2.5 * a * np.maximum(1 + sigma * rng.normal(size=a.shape), 0.05)).astype(np.float32)

    def bias_pct(config: ScaleConfig) -> float:
        return 100 * (frame_factor(a, b, everywhere(a), config).factor / 2.5 - 1)

    assert bias_pct(replace(PAPER, paper_weight="1/b")) == pytest.approx(-low_pct, abs=0.3)
    assert abs(bias_pct(replace(PAPER, paper_weight="1/a"))) < 0.1
    assert abs(bias_pct(CONFIG)) < 0.1


@pytest.mark.parametrize("noisy", ["a", "b", "both"])
def test_clipping_does_not_bias(noisy):
    rng = np.random.default_rng(1)
    d = np.tile(scene(shape=(240, 320)), (2, 2))
    a, b = (d * (1 + 0.3 * np.clip(rng.normal(size=d.shape), -3, 3) * (noisy in (name, "both"))) for name in "ab")
    assert frame_factor(a, 3 * b, everywhere(d), CONFIG).factor == pytest.approx(3, rel=0.004)  # 0.0025 is one sigma


@pytest.mark.parametrize("share, by", [(0.3, 3.0), (0.3, 0.3), (0.2, 1.6)])
def test_outliers_are_left_out(share, by):
    rng = np.random.default_rng(2)
    a = scene(shape=(240, 320))
    b = 2 * a * (1 + 0.1 * rng.normal(size=a.shape))
    b[rng.random(a.shape) < share] *= by
    ours = frame_factor(a, b, everywhere(a), CONFIG)
    theirs = frame_factor(a, b, everywhere(a), PAPER)
    assert ours.factor == pytest.approx(2, rel=0.005)
    assert abs(theirs.factor - 2) > 0.1
    assert ours.inliers == pytest.approx(1 - share, abs=0.03) and theirs.inliers == 1


@pytest.mark.parametrize("config", [CONFIG, PAPER, replace(PAPER, paper_weight="1/b")], ids=["robust", "1/a", "1/b"])
@pytest.mark.parametrize("by_a, by_b", [(8.0, 1.0), (1.0, 0.25), (1000.0, 0.001)])
def test_factor_is_equivariant(config, by_a, by_b):
    """Scale a and the factor divides; scale b and it multiplies; the pixels that count stay the same."""
    rng = np.random.default_rng(3)
    a = scene()
    b = (2 * a * (1 + 0.1 * rng.normal(size=a.shape))).astype(np.float32)
    one = frame_factor(a, b, usable_pixels(a, b, CONFIG), config)
    other = frame_factor(by_a * a, by_b * b, usable_pixels(by_a * a, by_b * b, CONFIG), config)
    assert other.factor * by_a / by_b == pytest.approx(one.factor, rel=1e-5)  # float32 products
    assert (other.pixels, other.inliers) == (one.pixels, pytest.approx(one.inliers, abs=0.001))
    assert other.dispersion == pytest.approx(one.dispersion, rel=1e-3)


def test_dispersion_is_the_noise():
    a = scene(shape=(240, 320))
    b = a * np.exp(0.15 * np.random.default_rng(4).normal(size=a.shape))
    assert frame_factor(a, b, everywhere(a), CONFIG).dispersion == pytest.approx(0.15, rel=0.02)


def test_exact_depth_gives_the_exact_factor():
    a = scene()
    found = frame_factor(a, 4 * a, usable_pixels(a, 4 * a, CONFIG), CONFIG)
    assert (found.factor, found.dispersion, found.inliers) == (4, 0, 1)


@pytest.mark.parametrize("missing", [0, np.nan, np.inf])
def test_pixels_without_a_value_never_count(missing):
    a, b = scene(), 2 * scene()
    a[:10], b[:, :20] = missing, missing
    found = frame_factor(a, b, everywhere(a), CONFIG)
    assert found.factor == pytest.approx(2, rel=1e-6) and found.pixels == 38 * 44


def test_masks():
    a, b = scene(), 2 * scene()
    sky, moving, confidence = (np.zeros(a.shape, kind) for kind in (bool, bool, float))
    sky[:8], moving[:, :5], confidence[:40] = True, True, 0.5
    usable = usable_pixels(a, b, CONFIG, confidence=confidence, sky=sky, moving=moving)
    assert not usable[:8].any() and not usable[:, :5].any() and not usable[40:].any()
    inside = np.zeros(a.shape, bool)
    inside[11:24, 21:39] = True  # the box, without its outline
    assert usable[inside].all()
    outline = np.zeros(a.shape, bool)
    outline[10:25, [19, 20, 39, 40]] = True  # both sides of its left and right edge
    assert not usable[outline].any()
    assert usable[30:40, 6:].all()  # the slanted ground is no edge


def test_rough_depth_is_not_all_edges():
    a = scene() * (1 + 0.1 * np.random.default_rng(5).normal(size=(48, 64)))
    assert usable_pixels(a, a, CONFIG).mean() > 0.8


def test_a_mask_that_hides_the_error_restores_the_factor():
    a = scene()
    b, moving = 2 * a, np.zeros(a.shape, bool)
    moving[:, :38] = True  # 60 % of the picture
    a[moving] *= 1.5
    assert frame_factor(a, b, usable_pixels(a, b, CONFIG), CONFIG).factor < 1.5
    assert frame_factor(a, b, usable_pixels(a, b, CONFIG, moving=moving), CONFIG).factor == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("config", [CONFIG, PAPER], ids=["robust", "paper"])
def test_a_frame_of_sky_has_no_factor(config):
    a = scene()
    found = frame_factor(a, np.full(a.shape, np.inf), everywhere(a), config)
    assert np.isnan(found.factor) and np.isnan(found.dispersion) and found.pixels == 0


# ---- over time -----------------------------------------------------------------------------------------------------


def test_average_has_a_half_life_of_69_frames():
    step = moving_average(np.r_[1.5, np.ones(300)], 0.99) - 1
    assert step[0] == 0.5
    assert int(np.flatnonzero(step <= 0.25)[0]) == 69
    assert 1 + step[[16, 160]] == pytest.approx([1.43, 1.10], abs=0.005)


def test_paper_mode_is_that_average():
    values = wandering(200, 0)
    assert tracked(values, PAPER).smoothed == pytest.approx(moving_average(values, 0.99), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fps", [16, 7])
def test_reversed_in_time(seed, fps):
    values = wandering(160, seed)
    forward, backward = tracked(values, fps=fps), tracked(values[::-1], fps=fps)
    np.testing.assert_allclose(backward.smoothed[::-1], forward.smoothed, rtol=1e-6)
    assert (backward.trusted[::-1] == forward.trusted).all()
    assert not np.allclose(tracked(values[::-1], PAPER).smoothed[::-1], tracked(values, PAPER).smoothed, rtol=0.01)


@pytest.mark.parametrize("config", [CONFIG, PAPER], ids=["robust", "paper"])
@pytest.mark.parametrize("by", [1e-3, 0.1, 40.0])
def test_curve_is_equivariant(config, by):
    values = wandering(160, 1)
    one, other = tracked(values, config), tracked(by * values, config)
    np.testing.assert_allclose(other.smoothed, by * one.smoothed, rtol=1e-6)
    assert (other.drift, other.flags) == (one.drift, one.flags)
    assert other.drift_log == pytest.approx(one.drift_log, abs=1e-9)
    assert other.std_ratio == pytest.approx(one.std_ratio)


@pytest.mark.parametrize("config", [CONFIG, PAPER], ids=["robust", "paper"])
def test_shots_together_are_shots_apart(config):
    parts = [wandering(100, 2), 5 * wandering(37, 3), 0.2 * wandering(160, 4)]
    parts[1][:9] = parts[2][-4:] = np.nan
    whole = tracked(np.concatenate(parts), config, (0, 100, 137))
    apart = [tracked(part, config) for part in parts]
    np.testing.assert_allclose(whole.smoothed, np.concatenate([s.smoothed for s in apart]), rtol=1e-9)
    assert (whole.trusted == np.concatenate([s.trusted for s in apart])).all()
    assert whole.drift_log == pytest.approx(max(s.drift_log for s in apart))


def test_order_of_shots_does_not_matter():
    one, two = wandering(100, 5), 3 * wandering(60, 6)
    first, second = tracked(np.r_[one, two], shot_starts=(0, 100)), tracked(np.r_[two, one], shot_starts=(0, 60))
    np.testing.assert_allclose(np.r_[second.smoothed[60:], second.smoothed[:60]], first.smoothed, rtol=1e-9)


def test_steady_growth_is_followed_to_both_ends():
    """3x in ten seconds, with 2 % of jitter: a one-sided average is 30 % behind."""
    truth = np.exp(np.log(3) * np.arange(161) / 160)
    values = truth * np.exp(0.02 * np.random.default_rng(7).normal(size=161))
    assert np.abs(tracked(values).smoothed / truth - 1).max() < 0.02
    assert np.abs(tracked(values, PAPER).smoothed / truth - 1).max() > 0.3


def test_jitter_of_a_steady_scale_is_averaged_over_the_clip():
    """10 % of jitter: the mean of 961 frames is good to 0.3 %, and the curve is hardly worse anywhere."""
    worst = []
    for seed in range(5):
        values = np.exp(0.1 * np.random.default_rng(seed).normal(size=961))
        worst.append(np.abs(tracked(values).smoothed - 1).max())
    assert np.mean(worst) < 0.01


def test_a_wrong_first_frame_is_an_outlier():
    values = np.exp(0.02 * np.random.default_rng(8).normal(size=161))
    values[0] *= 1.5
    ours, theirs = tracked(values), tracked(values, PAPER)
    assert np.abs(ours.smoothed - 1).max() < 0.02
    assert theirs.smoothed[[0, 16, 160]] / values[0] * 1.5 == pytest.approx([1.5, 1.43, 1.10], abs=0.05)
    assert not ours.trusted[0] and ours.defined.all() and "scale_outliers" in ours.flags
    assert ours.trusted[1:].all()


@pytest.mark.parametrize("config", [CONFIG, PAPER], ids=["robust", "paper"])
def test_undefined_frames_are_carried_and_flagged(config):
    values = 3 * np.exp(0.01 * np.random.default_rng(9).normal(size=120))
    values[:10] = values[40:60] = values[110:] = np.nan
    scale = tracked(values, config)
    assert (scale.defined == np.isfinite(values)).all() and "scale_carried" in scale.flags
    assert np.isnan(scale.raw[~scale.defined]).all() and not scale.trusted[~scale.defined].any()
    assert (scale.smoothed[:10] == scale.smoothed[10]).all()
    assert (scale.smoothed[110:] == scale.smoothed[109]).all()
    assert np.abs(scale.smoothed / 3 - 1).max() < 0.03  # never 1
    low, high = sorted(scale.smoothed[[39, 60]])
    assert ((scale.smoothed[40:60] >= low * (1 - 1e-12)) & (scale.smoothed[40:60] <= high * (1 + 1e-12))).all()


def test_undefined_frames_change_nothing_for_the_others_but_their_time():
    """Leaving frames out of the list, or having them undefined, is the same."""
    values = wandering(160, 10)
    keep = np.ones(160, bool)
    keep[30:70] = False
    with_gap = tracked(np.where(keep, values, np.nan))
    left_out = scale_track(factors(values[keep]), times(160)[keep], CONFIG)
    assert isinstance(left_out, ScaleTrack)
    np.testing.assert_allclose(left_out.smoothed, with_gap.smoothed[keep], rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_frames_have_their_median(count):
    values = np.array([2.0, 2.4, 2.2, 9.0])[:count]
    assert tracked(values).smoothed == pytest.approx(np.full(count, np.exp(np.median(np.log(values)))))
    assert tracked(values).drift == "undetermined" and np.isnan(tracked(values).drift_log)


def test_variable_frame_rate_is_smoothed_in_time():
    """Growth that is steady in time, shown at 30 fps and then at 5."""
    seconds = np.r_[np.arange(150) / 30, 5 + np.arange(25) / 5]
    truth = np.exp(0.05 * seconds)
    values = truth * np.exp(0.01 * np.random.default_rng(11).normal(size=len(seconds)))
    curve, _ = smooth(seconds, np.log(values), CONFIG)
    assert np.abs(np.exp(curve) / truth - 1).max() < 0.015


# ---- drift ---------------------------------------------------------------------------------------------------------


def test_drift_is_the_range_of_medians_by_second():
    values = np.repeat(np.log([1.0, 1.2, 1.1, 0.9]), 5)
    values[7] = 9
    found, _ = drift(np.arange(20) / 5, values)
    assert found == pytest.approx(np.log(1.2 / 0.9))


@pytest.mark.parametrize("fps", [1.5, 16, 60])
@pytest.mark.parametrize("jitter", [0.0, 0.02, 0.1, 0.3])
def test_a_steady_scale_is_not_called_drift(jitter, fps):
    for seed in range(5):
        values = np.exp(jitter * np.random.default_rng(seed).normal(size=int(20 * fps)))
        scale = tracked(values, fps=fps)
        assert scale.drift == "steady" and "scale_drift" not in scale.flags


@pytest.mark.parametrize("growth", [1.2, 0.8, 10.0])
@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_drift_is_detected(growth, jitter):
    """The paper's own rule, std / mean <= 2, lets even 10x pass: 0.64."""
    noise = np.exp(jitter * np.random.default_rng(12).normal(size=321))
    scale = tracked(growth ** (np.arange(321) / 320) * noise)
    assert scale.drift == "drifting" and "scale_drift" in scale.flags
    assert scale.drift_log == pytest.approx(abs(np.log(growth)), rel=0.25)
    assert scale.std_ratio < 2
    if growth == 10 and jitter == 0:
        assert scale.std_ratio == pytest.approx(0.64, abs=0.01)


def test_a_cut_is_no_drift():
    values = np.r_[np.ones(80), np.full(80, 4.0)]
    assert tracked(values).drift == "drifting"
    assert tracked(values, shot_starts=(0, 80)).drift == "steady"


# ---- fused depth -----------------------------------------------------------------------------------------------------


def test_fused_depth_does_not_depend_on_the_scale_of_a():
    rng = np.random.default_rng(13)
    depths = [scene(seed) for seed in range(30)]
    metric = [2.5 * d * np.exp(0.05 * rng.normal()) for d in depths]
    fused = []
    for by in (1.0, 37.0):
        frames = [frame_factor(by * a, b, everywhere(a), CONFIG) for a, b in zip(depths, metric, strict=True)]
        scale = scale_track(frames, times(30), CONFIG)
        assert isinstance(scale, ScaleTrack)
        fused.append(np.stack([scale.metric_depth(t, by * a) for t, a in enumerate(depths)]))
    np.testing.assert_allclose(fused[1], fused[0], rtol=1e-5)
    np.testing.assert_allclose(fused[0], 2.5 * np.stack(depths), rtol=0.04)


def test_fused_depth_has_no_value_where_a_has_none():
    a = scene()
    a[0, 0], a[0, 1], a[0, 2] = 0, np.nan, np.inf
    fused = tracked(np.full(5, 2.0)).metric_depth(3, a)
    assert np.isnan(fused[0, :3]).all() and fused.dtype == np.float32
    np.testing.assert_allclose(fused[1:], 2 * a[1:], rtol=1e-6)


def test_measured_depth(shared_data: Path):
    """Maps of a depth camera, holes and all, as both depths: with 20 % noise, a tenth of outliers and a 30 % hole."""
    folder = shared_data / "sequences" / "sevenscenes_handheld"
    rng = np.random.default_rng(14)
    for index in json.loads((folder / "meta.json").read_text())["depth"]["frames"][::3]:
        image = cv2.imread(str(folder / "depth" / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert image is not None
        a = (image[::2, ::2] / 1000 / 0.4).astype(np.float32)
        b = (0.4 * a * (1 + 0.2 * np.clip(rng.normal(size=a.shape), -4, 4))).astype(np.float32)
        b[rng.random(a.shape) < 0.1] *= 3
        b[: int(0.3 * len(b))] = np.inf
        assert frame_factor(a, b, usable_pixels(a, b, CONFIG), CONFIG).factor == pytest.approx(0.4, rel=0.01)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_clip_without_any_factor_is_refused():
    refused = scale_track(factors(np.full(20, np.nan)), times(20), CONFIG)
    assert isinstance(refused, Rejected)
    assert (refused.stage, refused.reason) == ("scale", "no_scale")
    assert "frames 0 to 19" in refused.message


def test_a_shot_without_any_factor_is_refused_and_not_carried_over_the_cut():
    refused = scale_track(factors(np.r_[np.ones(10), np.full(5, np.nan)]), times(15), CONFIG, shot_starts=(0, 10))
    assert isinstance(refused, Rejected) and "frames 10 to 14" in refused.message


def negative(depth: NDArray) -> NDArray:
    depth[3, 4] = -1
    return depth


@pytest.mark.parametrize(
    "a, b, words",
    [
        (negative(scene()), scene(), "depth a is -1.0 at row 3, column 4"),
        (scene(), negative(scene()), "depth b is -1.0 at row 3, column 4"),
        (scene(), scene()[:-1], r"depth b is \(47, 64\) but depth a is \(48, 64\): resize"),
        (scene()[None], scene()[None], r"shape \(1, 48, 64\)"),
        (scene() > 3, scene(), "dtype bool"),
    ],
)
def test_wrong_depth_is_refused_in_words(a, b, words):
    with pytest.raises(LongtakeError, match=words):
        usable_pixels(a, b, CONFIG)
    with pytest.raises(LongtakeError, match=words):
        frame_factor(a, b, np.ones(a.shape, bool), CONFIG)


@pytest.mark.parametrize(
    "masks, words",
    [
        ({"confidence": np.full((48, 64), 3.0)}, "confidence 3.0 at row 0, column 0 is no probability"),
        ({"confidence": np.full((48, 64), np.nan)}, "is no probability"),
        ({"confidence": np.ones((4, 4))}, "confidence is"),
        ({"sky": np.zeros((4, 4), bool)}, "sky mask is"),
        ({"moving": np.zeros((48, 64), np.uint8)}, "must be boolean"),
    ],
)
def test_wrong_masks_are_refused_in_words(masks, words):
    with pytest.raises(LongtakeError, match=words):
        usable_pixels(scene(), scene(), CONFIG, **masks)


@pytest.mark.parametrize(
    "values, pts_ns, shot_starts, words",
    [
        (np.ones(0), times(0), (0,), "0 factors"),
        (np.ones(3), times(4), (0,), "3 factors for frames at 4 times"),
        (np.ones(3), np.array([0, 5, 5]), (0,), "frame 2 is shown at 5 ns"),
        (np.ones(3), times(3), (1,), "the first must be 0"),
        (np.ones(3), times(3), (0, 3), "lie below 3"),
        (np.ones(3), times(3), (), "the first must be 0"),
        (np.array([1, -2, 1.0]), times(3), (0,), "frame 1 has the factor -2.0"),
        (np.array([1, 2, np.inf]), times(3), (0,), "frame 2 has the factor inf"),
        (np.array([0, 2, 1.0]), times(3), (0,), "frame 0 has the factor 0.0"),
    ],
)
def test_wrong_clips_are_refused_in_words(values, pts_ns, shot_starts, words):
    with pytest.raises(LongtakeError, match=words):
        scale_track(factors(values), pts_ns, CONFIG, shot_starts=shot_starts)
