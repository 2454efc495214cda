"""Takes, bars and overlays, on synthesised clips and on real footage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.annotate.shots import find_shots
from longtake.annotate.video import probe
from longtake.records import Shot

from ..videos import walk, write

WIDTH, HEIGHT, FPS = 192, 128, 25
Clip = list[NDArray]


def take(seed: int, count: int = 40, **motion) -> Clip:
    return [*walk(seed, count, WIDTH, HEIGHT, **motion)]


def shots_of(folder: Path, pictures: Clip, *, stills: bool = False, **settings) -> list[Shot]:
    path = write(folder / "clip.mp4", pictures, **{"fps": FPS, **settings})
    return find_shots(probe(path, stills=stills), stills=stills)


def spans(shots: list[Shot]) -> list[tuple[int, int, str]]:
    return [(s.start, s.stop, s.boundary) for s in shots]


def mixed(a: NDArray, b: NDArray, share: float) -> NDArray:
    return np.rint(a * (1 - share) + b.astype(float) * share).astype(np.uint8)


def dissolve(a: Clip, b: Clip, length: int) -> Clip:
    """The last `length` frames of a turn into the first of b."""
    between = [
        mixed(x, y, (i + 1) / (length + 1)) for i, (x, y) in enumerate(zip(a[-length:], b[:length], strict=True))
    ]
    return a[:-length] + between + b[length:]


def fade(a: Clip, b: Clip, length: int, black: int) -> Clip:
    dark = np.zeros_like(a[0])
    out = [mixed(x, dark, (i + 1) / length) for i, x in enumerate(a[-length:])]
    in_ = [mixed(dark, x, (i + 1) / length) for i, x in enumerate(b[:length])]
    return a[:-length] + out + [dark] * black + in_ + b[length:]


def test_cuts_are_exact(tmp_path):
    clip = take(1, 30) + take(2, 20, step=(6, 3)) + take(3, 35)
    assert spans(shots_of(tmp_path, clip)) == [(0, 30, "start"), (30, 50, "cut"), (50, 85, "cut")]


def flash(clip: Clip) -> Clip:
    clip[20] = np.full_like(clip[20], 255)
    clip[21] = mixed(clip[21], clip[20], 0.6)
    return clip


def whip(clip: Clip) -> Clip:
    """A pan by a fifth of the width a frame, blurred as such."""
    fast = walk(5, 8, WIDTH, HEIGHT, step=(38, 0))
    return clip[:20] + [cv2.blur(p, (38, 1)) for p in fast] + walk(5, 20, WIDTH, HEIGHT, step=(1, 0), start=270)


def blurred(clip: Clip) -> Clip:
    return [cv2.GaussianBlur(p, (0, 0), 1 + 6 * abs(np.sin(i / 5))) for i, p in enumerate(clip)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: take(4, 60, step=(9, 5), turn_deg=1.5),
        lambda: take(4, 60, step=(0, 0), zoom=1.02),
        lambda: flash(take(4, 45)),
        lambda: whip(walk(5, 20, WIDTH, HEIGHT, step=(1, 0), start=-20)),
        lambda: blurred(take(4, 45, step=(3, 1))),
        lambda: [p for i, p in enumerate(take(4, 60, step=(4, 1))) for _ in range(1 + (i % 5 == 4))],  # every 5th twice
        lambda: take(4, 20, step=(3, 1)) + take(4, 20, step=(3, 1), start=30),  # ten frames dropped
        lambda: [take(4, 1)[0]] * 40,  # frozen
        lambda: list(np.random.default_rng(0).integers(0, 256, (30, HEIGHT, WIDTH, 3), np.uint8)),  # noise
        lambda: [mixed(p, np.zeros_like(p), 0.4 + 0.4 * np.sin(i / 6)) for i, p in enumerate(take(4, 60))],  # exposure
    ],
    ids="motion zoom flash whip_pan blur doubled dropped frozen noise exposure".split(),
)
def test_one_take_is_one_shot(tmp_path, make: Callable[[], Clip]):
    clip = make()
    shots = shots_of(tmp_path, clip)
    assert spans(shots) == [(0, len(clip), "start")]
    assert shots[0].crop == (0, 0, WIDTH, HEIGHT)
    assert shots[0].overlay is None


@pytest.mark.parametrize(("length", "moving"), [(6, True), (12, False), (25, True), (40, False)])
def test_dissolves_are_cut_out_with_a_margin(tmp_path, length, moving):
    motion = {"step": (2.0, 0.7)} if moving else {"step": (0.0, 0.0)}
    clip = dissolve(take(6, 70, **motion), take(7, 70, **motion), length)
    first, second = shots_of(tmp_path, clip)
    trim = round(0.3 * FPS)
    begin, end = 70 - length, 70
    assert (first.start, second.stop) == (0, len(clip))
    assert second.boundary == "dissolve"
    assert begin - trim - 4 <= first.stop <= begin + 2
    assert end - 2 <= second.start <= end + trim + 4


def test_fade_through_black(tmp_path):
    clip = fade(take(6, 50), take(7, 50), 12, 8)
    first, second = shots_of(tmp_path, clip)
    assert (first.start, second.stop, second.boundary) == (0, len(clip), "fade")
    trim = round(0.3 * FPS)
    assert 38 - trim - 3 <= first.stop <= 40
    assert 68 <= second.start <= 70 + trim + 3


def test_black_belongs_to_no_shot(tmp_path):
    black = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 12
    assert shots_of(tmp_path, black) == []
    assert spans(shots_of(tmp_path, take(1, 30) + black + take(2, 30))) == [(0, 30, "start"), (42, 72, "cut")]
    assert spans(shots_of(tmp_path, black + take(1, 30))) == [(12, 42, "start")]


def test_a_single_frame_is_left_out_but_keeps_its_number(tmp_path):
    clip = take(1, 25) + take(2, 1) + take(3, 25)
    assert [(s.index, s.start, s.stop) for s in shots_of(tmp_path, clip)] == [(0, 0, 25), (2, 26, 51)]
    assert shots_of(tmp_path, take(1, 1)) == []


def test_stills_are_one_shot_of_photographs(tmp_path):
    clip = [take(seed, 1)[0] for seed in range(6)]
    (shot,) = shots_of(tmp_path, clip, stills=True, fps=2)
    assert (shot.start, shot.stop, shot.photographs, shot.overlay) == (0, 6, True, None)


def bars(clip: Clip, top: int, side: int) -> Clip:
    clip = [p.copy() for p in clip]
    for picture in clip:
        for edge in (picture[:top], picture[HEIGHT - top :], picture[:, :side], picture[:, WIDTH - side :]):
            edge[:] = 0
    return clip


def test_bars_are_cropped(tmp_path):
    for top, side in ((16, 0), (0, 30), (16, 30)):
        ((x, y, w, h),) = [s.crop for s in shots_of(tmp_path, bars(take(1, 30), top, side))]
        assert 0 <= x - side <= 4 * (side > 0) and 0 <= y - top <= 4 * (top > 0)
        assert 0 <= WIDTH - side - (x + w) <= 4 * (side > 0) and 0 <= HEIGHT - top - (y + h) <= 4 * (top > 0)


def test_bars_that_change_leave_the_part_always_free(tmp_path):
    clip = take(1, 50)
    (shot,) = shots_of(tmp_path, clip[:25] + bars(clip[25:], 20, 0))
    assert 20 <= shot.crop[1] <= 24 and shot.crop[2] == WIDTH
    first, second = shots_of(tmp_path, clip[:25] + bars(take(2, 25), 20, 0))
    assert first.crop == (0, 0, WIDTH, HEIGHT) and second.crop[1] >= 20


def test_dark_scenes_are_not_bars(tmp_path):
    """An object on black: its outline is no straight edge."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    lit = ((x - 96) ** 2 + (y - 64) ** 2 < 45**2)[..., None]
    (shot,) = shots_of(tmp_path, [p * lit for p in take(1, 30)])
    assert shot.crop == (0, 0, WIDTH, HEIGHT)


def stamp(clip: Clip, opacity: float) -> Clip:
    ink = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.putText(ink, "LOGO", (125, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2)
    share = (ink / 255 * opacity)[..., None]
    return [np.rint(p * (1 - share) + 250 * share).astype(np.uint8) for p in clip]


@pytest.mark.parametrize("opacity", [1.0, 0.6])
def test_a_watermark_is_masked(tmp_path, opacity):
    (shot,) = shots_of(tmp_path, stamp(take(3, 60, step=(3, 1)), opacity))
    assert shot.overlay is not None and shot.overlay.shape == (HEIGHT, WIDTH)
    ink = np.zeros((HEIGHT, WIDTH), bool)
    ink[8:28, 122:185] = True
    assert (shot.overlay & ink).sum() > 0.5 * ink.sum()
    assert (shot.overlay & ~ink).sum() < 0.4 * ink.sum()


def test_a_ticker_is_masked(tmp_path):
    """White text that scrolls over a blue band under a bright line."""
    text = np.zeros((20, 1200, 3), np.uint8)
    text[:] = (20, 30, 120)
    cv2.putText(text, "breaking news " * 8, (0, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    clip = take(3, 60, step=(3, 1))
    for i, picture in enumerate(clip):
        picture[HEIGHT - 23 : HEIGHT - 20] = 240
        picture[HEIGHT - 20 :] = text[:, 4 * i : 4 * i + WIDTH]
    (shot,) = shots_of(tmp_path, clip)
    assert shot.overlay is not None
    assert shot.overlay[HEIGHT - 18 :].mean() > 0.9
    assert shot.overlay[: HEIGHT - 32].mean() < 0.02


def test_a_static_camera_has_no_overlay(tmp_path):
    clip = [p.copy() for p in take(3, 1) * 60]
    for i, picture in enumerate(clip):  # somebody walks by
        picture[40:90, 2 * i : 2 * i + 20] = (180, 40, 40)
    (shot,) = shots_of(tmp_path, stamp(clip, 1.0))
    assert shot.overlay is None


def test_real_footage(shared_data):
    for name in ("backpack_phone", "dog_moving_subject", "static_camera_pedestrians"):
        info = probe(shared_data / "videos" / f"{name}.mp4")
        (shot,) = find_shots(info)
        assert (shot.start, shot.stop, shot.overlay) == (0, info.num_frames, None)
        assert shot.crop == (0, 0, info.width, info.height)
    for name in ("kitti_drive_1", "sevenscenes_digital_zoom"):
        info = probe(shared_data / "sequences" / name / "video.mp4")
        (shot,) = find_shots(info)
        assert (shot.start, shot.stop) == (0, info.num_frames)
    shots = find_shots(probe(shared_data / "videos" / "shot_cuts.mp4"))
    assert spans(shots) == [(0, 50, "start"), (50, 100, "cut"), (100, 150, "cut")]
    x, _, width, _ = shots[1].crop  # pillarboxed
    assert 182 <= x <= 188 and 268 <= width <= 276
