"""Filter profiles: thresholds, their edges, and that nothing passes or vanishes unseen."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from longtake.datasets import filters
from longtake.datasets.filters import (
    PROFILES,
    Summary,
    camera_values,
    judge,
    judged,
    load_profile,
    row_values,
    rules,
    summarize,
)
from longtake.datasets.schema import SCHEMA
from longtake.records import LongtakeError

SOURCES = load_profile(Path(filters.__file__).with_name("profiles") / "sana_wm.toml").sources
GOOD = {
    "fov_x_min_deg": 60.0,
    "fov_x_max_deg": 60.0,
    "fov_y_min_deg": 40.0,
    "fov_y_max_deg": 40.0,
    "focal_anisotropy": 0.0,
    "vmaf_motion": 8.0,
    "flow_px": 20.0,
    "saturation": 80.0,
    "num_cuts": 0.0,
}


def focal_of(fov_deg: float, size: int) -> float:
    return size / (2 * math.tan(math.radians(fov_deg) / 2))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("fov, passed", [(24.9, False), (25.0, True), (120.0, True), (120.1, False)])
@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("stored", [np.float64, np.float32])
def test_fov_edges(source, fov, passed, axis, stored):
    # the other axis at 60 degrees, and no anisotropy rule in the way: only the fov rules may speak
    fx, fy = (focal_of(fov, 1280), focal_of(60, 720)) if axis == "x" else (focal_of(60, 1280), focal_of(fov, 720))
    intrinsics = np.array([[focal_of(60, 1280), focal_of(60, 720), 640, 360], [fx, fy, 640, 360]], stored)
    verdict = judge("sana_wm", source, GOOD | camera_values(intrinsics, 1280, 720) | {"focal_anisotropy": 0.0})
    side = f"fov_{axis}_min_deg_low" if fov < 60 else f"fov_{axis}_max_deg_high"
    assert verdict.reasons == (() if passed else (side,))


@pytest.mark.parametrize("stored", [np.float64, np.float32])
@pytest.mark.parametrize("fx, fy, passed", [(1.1, 0.9, True), (0.9, 1.1, True), (1.1001, 0.9, False), (550, 450, True)])
def test_anisotropy_of_exactly_a_fifth_passes(stored, fx, fy, passed):
    values = camera_values(np.array([[fx, fy, 0, 0]], stored), 1, 1)
    verdict = judge("sana_wm", "miradata", GOOD | {"focal_anisotropy": values["focal_anisotropy"]})
    assert verdict.passed is passed


# annotation facts, SANA-WM App. B.3: source, metric, lowest and highest value that passes
TABLE = [
    ("omniworld", "vmaf_motion", 0.5, 100),
    ("omniworld", "flow_px", 3, 100),
    ("omniworld", "dover", 0.35, 1),
    ("omniworld", "num_entities", 0, 10),
    ("omniworld", "vlm_quality", 0.5, 1.5),
    ("sekai_game", "vmaf_motion", 0.5, 50),
    ("sekai_game", "flow_px", 3, 80),
    ("sekai_game", "dover", 0.25, 1),
    ("sekai_game", "num_entities", 0, 10),
    ("sekai_game", "vlm_quality", 0.5, 1.5),
    ("sekai_walking", "vmaf_motion", 0.5, 50),
    ("sekai_walking", "flow_px", 3, 50),
    ("sekai_walking", "dover", 0.35, 1),
    ("sekai_walking", "saturation", 0, 180),
    ("sekai_walking", "num_entities", 0, 25),
    ("sekai_walking", "vlm_quality", 0.5, 1.5),
    ("miradata", "vmaf_motion", 0.5, 50),
    ("miradata", "flow_px", 3, 80),
    ("miradata", "dover", 0.4, 1),
    ("miradata", "saturation", 0, 180),
    ("miradata", "num_cuts", -math.inf, 1),
    ("dl3dv_gs", "vmaf_motion", 6, 50),
    ("dl3dv_gs", "flow_px", 3, 80),
    ("dl3dv_gs", "dover", 0.4, 1),
    ("dl3dv_gs", "saturation", 0, 180),
    ("dl3dv_gs", "num_cuts", -math.inf, 1),
    ("spatialvid", "vmaf_motion", 0.5, 50),
    ("spatialvid", "flow_px", 3, 80),
    ("spatialvid", "dover", 0.35, 1),
    ("spatialvid", "saturation", 0, 180),
    ("spatialvid", "num_entities", 0, 10),
    ("spatialvid", "vlm_quality", 0.5, 1.5),
]


@pytest.mark.parametrize("source, metric, low, high", TABLE)
def test_visual_filters_as_in_the_paper(source, metric, low, high):
    for bound, off, word in ((low, -0.01, "low"), (high, 0.01, "high")):
        if not math.isfinite(bound):
            continue
        assert judge("sana_wm", source, GOOD | {metric: bound}).passed
        assert judge("sana_wm", source, GOOD | {metric: bound + off}).reasons == (f"{metric}_{word}",)


@pytest.mark.parametrize("source", SOURCES)
def test_no_rule_beyond_the_papers(source):
    camera = {"fov_x_min_deg", "fov_x_max_deg", "fov_y_min_deg", "fov_y_max_deg", "focal_anisotropy", "scale_std_ratio"}
    assert {r.metric for r in rules("sana_wm", source)} == camera | {m for s, m, *_ in TABLE if s == source}


def test_scale_rule():
    assert judge("sana_wm", "miradata", GOOD | {"scale_std_ratio": 2.0}).passed
    assert judge("sana_wm", "miradata", GOOD | {"scale_std_ratio": 2.1}).reasons == ("scale_std_ratio_high",)


def test_what_no_network_measured_is_said():
    verdict = judge("sana_wm", "spatialvid", GOOD)
    assert verdict.passed
    assert set(verdict.not_measured) == {"dover", "num_entities", "vlm_quality", "scale_std_ratio"}
    assert json.loads(verdict.to_json())["dover"] == {"value": None, "min": 0.35, "max": 1.0, "passed": None}


@pytest.mark.parametrize("missing", [None, math.nan, "absent"])
def test_what_could_have_been_measured_and_was_not_fails(missing):
    values = {k: v for k, v in GOOD.items() if k != "flow_px"} if missing == "absent" else GOOD | {"flow_px": missing}
    assert judge("sana_wm", "spatialvid", values).reasons == ("flow_px_unknown",)


def test_every_rule_reads_a_column():
    words = {"is_static", "focal_undetermined"}  # said in words by motion_class and focal_status
    for source in SOURCES:
        assert {r.metric for r in rules("sana_wm", source)} <= set(SCHEMA.names)
    assert {r.metric for r in rules("robust")} - words <= set(SCHEMA.names)


def good_row(make_row, **changes):
    measured = {"luma": 100.0, "blur": 0.3, "jump_count": 0, "vmaf_motion": 5.0, "flow_px": 10.0, "saturation": 50.0}
    return make_row() | measured | changes


def test_robust_passes_a_good_row(make_row):
    row = judged(good_row(make_row), "robust")
    assert (row["status"], row["filter_reasons"]) == ("ok", [])
    assert row["filter_not_measured"] == ["scale_drift_log"]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"tracked_ratio": 0.89}, "frames_without_pose"),
        ({"reproj_rmse_px": 1.26}, "reproj_rmse_px_high"),  # 2.5 px at 1280 are 1.25 px at 640
        ({"sampson_px": 0.76}, "sampson_px_high"),
        ({"num_tracked": 49.0}, "few_tracks"),
        ({"inlier_ratio": 0.29}, "inlier_ratio_low"),
        ({"coverage": 0.09}, "coverage_low"),
        ({"dyn_ratio": 0.51}, "mostly_moving_objects"),
        ({"jump_count": 1}, "pose_jumps"),
        ({"scale_drift_log": 0.41}, "scale_drift"),
        ({"luma": 19.0}, "luma_low"),
        ({"luma": 201.0}, "luma_high"),
        ({"luma": None}, "luma_unknown"),
        ({"blur": 0.81}, "blurred"),
        ({"fov_x_min_deg": 14.0}, "fov_x_min_deg_low"),
        ({"fov_x_max_deg": 131.0}, "fov_x_max_deg_high"),
        ({"focal_status": "undetermined"}, "focal_undetermined"),
        ({"motion_class": "static"}, "static_camera"),
    ],
)
def test_robust_says_why(make_row, change, reason):
    row = judged(good_row(make_row, **change), "robust")
    assert (row["status"], row["filter_reasons"]) == ("filtered", [reason])
    assert row["c2w"] is not None  # it keeps its data
    failed = [name for name, check in json.loads(row["filter_values"]).items() if check["passed"] is False]
    assert len(failed) == 1


def test_judging_again_replaces_the_verdict(make_row):
    row = judged(good_row(make_row, blur=0.95), "robust")
    assert row["status"] == "filtered"
    row = judged(row, "sana_wm", "spatialvid")
    assert (row["status"], row["filter_profile"]) == ("ok", "sana_wm/spatialvid")


def test_failed_rows_stay_failed(make_row):
    row = make_row(failed=True)
    assert judged(row, "robust") == row


def test_row_values_are_numbers_only(make_row):
    values = row_values(make_row() | {"blur": math.nan})
    assert values["width"] == 640.0 and values["is_static"] == 0.0 and values["blur"] is None
    assert "interlaced" not in values and "c2w" not in values


def test_unknown_profile_and_source():
    with pytest.raises(LongtakeError, match=f"no filter profile 'strict'.*{PROFILES[0]}"):
        judge("strict", None, GOOD)
    with pytest.raises(LongtakeError, match=r"no thresholds for source 'youtube'.*spatialvid"):
        judge("sana_wm", "youtube", GOOD)
    with pytest.raises(LongtakeError, match="needs to know the source"):
        judge("sana_wm", None, GOOD)


def test_pixel_thresholds_need_the_picture():
    with pytest.raises(ValueError, match="width and height"):
        judge("robust", None, {"reproj_rmse_px": 1.0})


def test_summary_adds_up():
    rows = [
        {"status": "ok", "filter_reasons": []},
        {"status": "filtered", "filter_reasons": ["blurred", "few_tracks"]},
        {"status": "filtered", "filter_reasons": ["blurred"]},
        {"status": "failed", "filter_reasons": ["no_video"]},
    ]
    assert summarize(rows, num_in=4) == Summary(
        num_in=4, ok=1, filtered=2, failed=1, reasons={"blurred": 2, "few_tracks": 1, "no_video": 1}
    )
    with pytest.raises(ValueError, match=r"5 clips went in.*4 came out"):
        summarize(rows, num_in=5)
    with pytest.raises(ValueError, match="unknown status"):
        summarize([{"status": "done", "filter_reasons": None}], num_in=1)
