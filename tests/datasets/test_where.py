"""Conditions typed by a person select rows, and are never evaluated as code."""

from __future__ import annotations

import pyarrow as pa
import pytest

from longtake.datasets.where import parse_where
from longtake.records import LongtakeError

TABLE = pa.table(
    {
        "status": ["ok", "filtered", "failed", "ok"],
        "num_frames": pa.array([10, 200, None, 300], pa.int32()),
        "flow_px": pa.array([1.5, float("nan"), None, 4.0], pa.float32()),
        "is_vfr": [True, False, None, False],
    }
)


@pytest.mark.parametrize(
    "text, rows",
    [
        ("status == 'ok'", [0, 3]),
        ('status != "ok" and num_frames > 100', [1]),
        ("100 < num_frames <= 200 or flow_px < 2", [0, 1]),
        ("status in ('failed', 'filtered')", [1, 2]),
        ("status not in ['ok']", [1, 2]),
        ("not (num_frames < 250)", [3]),
        ("num_frames == None", [2]),
        ("flow_px is not None", [0, 3]),
        ("is_vfr", [0]),
        ("not is_vfr", [1, 3]),
        ("flow_px > -1", [0, 3]),
    ],
)
def test_selects(text, rows):
    table = TABLE.append_column("row", pa.array(range(4)))
    assert table.filter(parse_where(text))["row"].to_pylist() == rows


@pytest.mark.parametrize(
    "text, words",
    [
        ("status = 'ok'", "Write it like"),
        ("statsu == 'ok'", "Did you mean status?"),
        ("status == ok", "no column ok"),
        ("c2w == 1", "is a list in every row"),
        ("__import__('os').system('true')", "Cannot read"),
        ("status == __import__('os').name", "Cannot read"),
        ("1 == 1", "Cannot read"),
        ("", "Cannot read"),
    ],
)
def test_other_text_is_refused(text, words):
    with pytest.raises(LongtakeError) as error:
        parse_where(text)
    assert words in str(error.value)
