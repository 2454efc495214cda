"""Rows: what annotate knows lands in its column, ids are stable, and a malformed row is refused by name."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longtake.datasets.readers import frame_times_s, read_clip
from longtake.datasets.schema import (
    PER_FRAME,
    SCHEMA,
    annotate_row,
    clip_id,
    frame_rate,
    row_problem,
    to_table,
)
from longtake.records import Rejected


def test_every_field_is_described():
    for field in SCHEMA:
        assert field.metadata[b"about"], field.name
        assert field.name.islower()
        if pa.types.is_list(field.type):
            assert field.type.value_field.name == "element"  # what Parquet reads back
    assert PER_FRAME["c2w"] == 12 and PER_FRAME["intrinsics"] == 4 and PER_FRAME["pose_valid"] == 1
    assert b"longtake.clips/" in SCHEMA.metadata[b"longtake.schema"]


def test_a_track_round_trips_through_its_row(made):
    info, of = made.video(), made.shot()
    given = made.track(info, of, unposed=(3, 7), zoom=True, distortion_model="opencv_radial", distortion=(-0.1, 0.02))
    row = annotate_row(path=info.path, provenance=made.provenance, video=info, shot=of, track=given)
    clip = read_clip(row)
    np.testing.assert_allclose(clip.world_from_cam, given.world_from_cam, atol=1e-6)  # float32 storage
    np.testing.assert_array_equal(clip.pose_valid, given.pose_valid)
    assert np.isnan(clip.world_from_cam[3]).all()
    np.testing.assert_allclose(clip.intrinsics, given.intrinsics, rtol=1e-7)
    np.testing.assert_allclose(
        clip.k[5], [[given.intrinsics[5, 0], 0, 319.5], [0, given.intrinsics[5, 1], 239.5], [0, 0, 1]]
    )
    np.testing.assert_allclose(clip.times_s, given.pts_ns / 1e9, atol=3e-9)
    assert clip.distortion == (-0.1, 0.02)
    assert (clip.frame_start, clip.num_frames, clip.image_names[0]) == (5, 20, "frame_000005.png")


def test_what_is_derived_from_the_track(made):
    info, of = made.video(), made.shot()
    row = annotate_row(
        path="x", provenance=made.provenance, video=info, shot=of, track=made.track(info, of, unposed=(0, 1))
    )
    assert row["tracked_ratio"] == 0.9
    assert row["reproj_rmse_px"] == pytest.approx(0.5) and row["sampson_px"] == pytest.approx(0.3)
    assert row["ba_rmse_px"] == 0.4 and json.loads(row["track_stats"])["num_points"] == 900
    assert row["fov_x_median_deg"] == pytest.approx(np.degrees(2 * np.arctan(640 / 1000)))
    assert row["status"] == "ok" and row["origin"] == "annotated" and row["group_id"] == info.sha256
    assert (row["camera_convention"], row["pixel_center"]) == ("opencv_c2w", "integer")


def test_the_metric_scale_lands_in_its_columns(made):
    info, of = made.video(), made.shot()
    raw = np.where(np.arange(of.num_frames) % 2, 1.5, np.nan)
    figures = {"scale_std_ratio": 0.2, "scale_drift_log": float("nan"), "scale_dispersion": 0.07}
    changes = {"scale_kind": "metric", "focal_status": "predicted", "stats": figures}
    given = made.track(info, of, scale_raw=raw, scale_smoothed=np.full(of.num_frames, 1.4), **changes)
    row = annotate_row(path="x", provenance=made.provenance, video=info, shot=of, track=given)
    np.testing.assert_array_equal(row["scale_raw"], raw)
    assert row["scale_smoothed"][0] == 1.4 and row["focal_status"] == "predicted"
    assert (row["scale_std_ratio"], row["scale_drift_log"], row["scale_dispersion"]) == (0.2, None, 0.07)
    to_table([row])
    for wrong, words in ((np.ones(3), "scale_raw has shape"), (0 * raw, "scale_raw must be positive")):
        with pytest.raises(ValueError, match=words):
            made.track(info, of, scale_raw=wrong)


def test_quality_lands_in_its_columns(made):
    info, of = made.video(), made.shot()
    row = annotate_row(
        path="x",
        provenance=made.provenance,
        video=info,
        shot=of,
        track=made.track(info, of),
        quality={"blur": 0.25, "jump_count": 2.0, "flow_px": float("nan"), "sampson_px": 9.0},
        frames={"luma": np.full(20, 90.0), "frame_blur": np.full(20, 0.25)},
    )
    assert (row["blur"], row["jump_count"], row["flow_px"], row["sampson_px"]) == (0.25, 2, None, 9.0)
    assert row["frame_luma"][0] == 90 and row["frame_blur"][0] == 0.25
    to_table([row])


@pytest.mark.parametrize(
    "quality, frames, message",
    [
        ({"sharpness": 1.0}, {}, "no column for the clip's 'sharpness'"),
        ({"codec": 1.0}, {}, "no column for the clip's 'codec'"),
        ({}, {"gloss": np.zeros(20)}, "no column for the frames' 'gloss'"),
        ({}, {"luma": np.zeros(19)}, "19 values for 20 frames"),
    ],
)
def test_numbers_without_a_column_are_refused(made, quality, frames, message):
    info, of = made.video(), made.shot()
    with pytest.raises(ValueError, match=message):
        annotate_row(
            path="x",
            provenance=made.provenance,
            video=info,
            shot=of,
            track=made.track(info, of),
            quality=quality,
            frames=frames,
        )


def test_a_file_that_could_not_be_read_has_a_row(made, tmp_path):
    refused = Rejected(stage="probe", reason="not_media", message="no known container")
    row = annotate_row(path=str(tmp_path / "a.mp4"), provenance=made.provenance, rejected=refused)
    assert (row["status"], row["filter_reasons"], row["error_stage"]) == ("failed", ["not_media"], "probe")
    assert row["source_uri"] == str(tmp_path / "a.mp4") and row["source_sha256"] is None
    other = annotate_row(path=str(tmp_path / "sub" / "a.mp4"), provenance=made.provenance, rejected=refused)
    assert row["clip_id"] != other["clip_id"]  # one stem in two folders
    assert to_table([row, other])["error"].to_pylist() == ["no known container"] * 2


def test_file_names_that_are_no_unicode(made):
    refused = Rejected(stage="probe", reason="not_media", message="bad /tmp/\udcff.mp4")
    row = annotate_row(path="/tmp/\udcff.mp4", provenance=made.provenance, rejected=refused)
    assert row["source_uri"] == "/tmp/\\xff.mp4"
    to_table([row])


def test_records_must_belong_together(made):
    info, of = made.video(), made.shot()
    refused = Rejected(stage="probe", reason="not_media", message="no known container")
    with pytest.raises(ValueError, match="either a track or the reason"):
        annotate_row(path="x", provenance=made.provenance, video=info, shot=of)
    with pytest.raises(ValueError, match="a shot needs its video"):
        annotate_row(path="x", provenance=made.provenance, shot=of, rejected=refused)
    with pytest.raises(ValueError, match="20 frames and its shot 19"):
        annotate_row(
            path="x", provenance=made.provenance, video=info, shot=made.shot(5, 24), track=made.track(info, of)
        )


def test_clip_id_is_what_the_clip_is_cut_from():
    def id_of(**change: Any) -> str:
        known: dict[str, Any] = {"sha256": "ab" * 32, "path": "/a/b.mp4", "span": (0, 10), "crop": (0, 0, 64, 48)}
        return clip_id(**{**known, **change})

    first = id_of()
    assert first == id_of(path="/elsewhere/c.mp4") and len(first) == 36
    others = {
        id_of(sha256="cd" * 32),
        id_of(span=(0, 11)),
        id_of(span=None),
        id_of(crop=(0, 8, 64, 32)),
        id_of(rotation_deg=90),
        id_of(sha256=None),
    }
    assert len(others - {first}) == 6


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(1, 2)])
@pytest.mark.parametrize("start", [0, 17])
def test_constant_frame_rates_are_found_exactly(rate, start):
    pts = np.array([round(i * 10**9 / rate) for i in range(start, start + 500)])
    assert frame_rate(pts) == (rate, True)


@pytest.mark.parametrize(
    "pts_ns, rate",
    [
        ([i * 10**9 // 30 // 10**6 * 10**6 for i in range(100)], Fraction(1000, 33)),  # a container that counts ms
        ([i * 40_000_000 for i in range(50) if i != 20], Fraction(25)),  # a dropped frame
    ],
)
def test_uneven_times_are_kept(made, pts_ns, rate):
    found, even = frame_rate(np.array(pts_ns))
    assert not even and found == rate
    info = made.video(pts_ns=pts_ns)
    of = made.shot(10, 40)
    row = annotate_row(path="x", provenance=made.provenance, video=info, shot=of, track=made.track(info, of))
    np.testing.assert_array_equal(frame_times_s(row), info.pts_ns[10:40] / 1e9)
    assert row["start_s"] == info.pts_ns[10] / 1e9


def test_times_that_are_even_are_not_stored(made):
    info, of = made.video(), made.shot()
    row = annotate_row(path="x", provenance=made.provenance, video=info, shot=of, track=made.track(info, of))
    assert row["pts_s"] is None and (row["fps_num"], row["fps_den"]) == (30, 1)
    assert row["duration_s"] == pytest.approx(20 / 30) and row["end_s"] == pytest.approx(25 / 30)


def test_one_frame_has_a_time_and_no_rate(made):
    info, of = made.video(frames=1), made.shot(0, 1)
    row = annotate_row(path="x", provenance=made.provenance, video=info, shot=of, track=made.track(info, of))
    assert row["fps_num"] is None and row["duration_s"] is None and frame_times_s(row).tolist() == [0.0]
    to_table([row])


def test_images_name_their_frames(made):
    info = made.video(is_images=True, image_paths=tuple(f"/stills/set/{i}/p {i}.jpg" for i in range(40)))
    of = made.shot(3, 9, photographs=True)
    row = annotate_row(path="x", provenance=made.provenance, video=info, shot=of, track=made.track(info, of))
    assert row["image_uris"][0] == "/stills/set/3/p 3.jpg" and row["num_cuts"] is None
    assert read_clip(row).image_names[:2] == ["3/p 3.jpg", "4/p 4.jpg"]


def test_arrow_round_trip(made, make_row):
    rows = [make_row("a.mp4", unposed=(2,)), make_row("b.mp4", failed=True)]
    table = to_table(rows)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    c2w = np.array(table["c2w"][0].as_py(), np.float32)
    np.testing.assert_array_equal(c2w, rows[0]["c2w"])  # NaN stays NaN
    assert table["c2w"][1].as_py() is None
    assert table["created_at"][0].as_py() == made.provenance.created_at


def flipped(row):
    c2w = row["c2w"].reshape(-1, 3, 4).copy()
    c2w[4, :, 0] *= -1
    return c2w.ravel()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda row: {"colour": 1}, "has no column colour"),
        (lambda row: {"run_id": None}, "no value for run_id"),
        (lambda row: {"status": "fine"}, "status 'fine'"),
        (lambda row: {"status": "filtered"}, "status filtered with filter_reasons"),
        (lambda row: {"filter_reasons": ["blurred"]}, "status ok with filter_reasons"),
        (lambda row: {"status": "failed", "filter_reasons": ["x"]}, "failed without an error"),
        (lambda row: {"c2w": row["c2w"][:-12]}, "c2w has 228 values, but 20 frames of 12"),
        (lambda row: {"c2w": None}, "neither poses"),
        (lambda row: {"intrinsics": None}, "c2w without intrinsics"),
        (lambda row: {"pose_valid": np.zeros(20, bool)}, "frame 0: pose_valid is False, its pose finite"),
        (lambda row: {"c2w": flipped(row)}, "frame 4: the rotation of its pose is no rotation"),
        (lambda row: {"c2w": row["c2w"] * np.float32(1.01)}, "frame 0: the rotation"),
        (lambda row: {"intrinsics": -row["intrinsics"]}, "are no camera's"),
    ],
)
def test_malformed_rows_are_refused(make_row, change, message):
    row = make_row()
    assert row_problem(row) is None
    with pytest.raises(ValueError, match=message):
        to_table([row | change(row)])
