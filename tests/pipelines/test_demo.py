"""The demonstration's film is what its truth says, and its result is near the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from longtake.annotate.video import probe, read_rgb
from longtake.geometry import invert_pose, skew
from longtake.pipelines.config import MissingPart
from longtake.pipelines.demo import RENDER, film, run_demo
from longtake.pipelines.render import FilmConfig


def test_the_film_and_its_truth_belong_together(tmp_path: Path) -> None:
    """Features found in two frames obey the epipolar geometry of the truth, zoom included."""
    clip = film(tmp_path, config=replace(RENDER, film=FilmConfig(depth_every=0)), splats=200_000)
    info = probe(tmp_path / "rendered" / clip.uri)
    assert (info.num_frames, info.width, info.height) == (144, 640, 352)
    c2w, k = clip.world_from_cam, clip.k
    i, j = 30, 34
    assert k[j, 0, 0] / k[i, 0, 0] > 1.03
    a, b = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in read_rgb(info, [i, j]))
    sift = cv2.SIFT.create(600)
    (ka, da), (kb, db) = sift.detectAndCompute(a, None), sift.detectAndCompute(b, None)  # type: ignore[call-overload]
    pairs = cv2.BFMatcher(crossCheck=True).match(da, db)
    x = np.array([(*ka[p.queryIdx].pt, 1) for p in pairs])
    y = np.array([(*kb[p.trainIdx].pt, 1) for p in pairs])
    b_from_a = invert_pose(c2w[j]) @ c2w[i]
    fundamental = np.linalg.inv(k[j]).T @ skew(b_from_a[:3, 3]) @ b_from_a[:3, :3] @ np.linalg.inv(k[i])
    lines = x @ fundamental.T
    distance = np.abs((lines * y).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)
    assert len(pairs) > 150
    assert np.mean(distance < 1.0) > 0.75 and np.median(distance) < 0.3


def test_a_folder_that_cannot_be_made_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingPart, match="Cannot write"):
        run_demo(tmp_path / "file" / "demo", quiet=True)
