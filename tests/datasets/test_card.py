"""The dataset card and its pictures: what is counted is there, and other people's text stays text."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from longtake.datasets.card import bars, histogram, survey, write_card, write_pictures
from longtake.datasets.manifest import create_manifest
from longtake.datasets.refilter import refilter


@pytest.fixture
def manifest(tmp_path, make_row):
    out = create_manifest(tmp_path / "run")
    rows = [make_row(f"{i}.mp4", zoom=i % 2 == 0) | {"trans_total_m": 1.0 + i, "max_speed_m_s": 0.5} for i in range(9)]
    for i, row in enumerate(rows):
        row["license"] = ("CC-BY-4.0", "<b>evil</b> | [x](y)\n# y", None)[i % 3]
    out.append([*rows, make_row("failed.mp4", failed=True)])
    refilter(out, "robust")
    return out


def test_the_card_counts_licences(manifest, tmp_path):
    path = write_card(manifest, tmp_path / "card" / ".." / "README.md", name="a *set*")
    text = path.read_text()
    assert text.startswith('---\npretty_name: "a *set*"\nlicense: "other"\n')
    assert "| CC\\-BY\\-4.0 | 3 |" in text and "| not stated | 4 |" in text
    assert "\\<b\\>evil\\</b\\> \\| \\[x\\](y) \\# y | 3 |" in text.replace("\\(", "(").replace("\\)", ")")
    assert "<b>" not in text and "\n# y" not in text and "10 clips (0 ok, 9 filtered, 1 failed)" in text
    assert 'data_files: "run/part-*.parquet"' in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (path.parent / line.rpartition("(")[2].rstrip(")")).is_file()


def test_pictures_of_all_that_is_asked_for(manifest, tmp_path):
    contents = survey(manifest)
    drawn = write_pictures(contents, tmp_path / "pictures")
    assert {name.split(",")[0] for name in drawn} == {
        "duration",
        "horizontal field of view",
        "vertical field of view",
        "path length",
        "largest speed",
        "why clips are not ok",
    }
    assert "path length, units of each clip" in drawn  # metres and other units are not mixed
    for path in drawn.values():
        ElementTree.parse(path)  # well-formed
    assert contents.facts["clips"] == 10 and contents.facts["recordings"] == 10
    assert contents.facts["filter_reasons"]["luma_unknown"] == 9


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-1.0, 5.0, 5.0], list(range(5000)), [1e-9, 1e9]])
def test_histograms_count_everything(values):
    tree = ElementTree.fromstring(histogram(np.array(values, float), "a <b> & c"))
    heights = [float(r.get("height", "nan")) for r in tree.iter("{http://www.w3.org/2000/svg}rect")]
    assert max(heights) > 100 and np.isfinite(heights).all()
    assert f"{len(values)} clips" in "".join(tree.itertext())


def test_bars_escape_names():
    assert "&lt;x&gt;" in bars([("<x>", 3)], "why")
