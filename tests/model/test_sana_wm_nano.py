"""The small network that comes with longtake: its words, its weights, and that it follows the camera."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longtake.geometry import invert_pose
from longtake.model.sana_wm.generate import generate, video
from longtake.model.sana_wm.nano import NANO_SETTINGS, NET_FILE, VAE_FILE, WORDS, HashedWords, nano_parts
from longtake.model.sana_wm.path import CameraPath
from longtake.render.painted_room import cameras, filmed, intrinsics, painted_room

PROMPT = "a furnished room with pictures on its walls"
FRAMES, WIDTH, HEIGHT = NANO_SETTINGS.frames, NANO_SETTINGS.width, NANO_SETTINGS.height


def test_words_are_directions_of_their_own():
    words = HashedWords()
    one, same, other = (words.prompt(text) for text in ("A room", "a ROOM!", "a chair"))
    torch.testing.assert_close(one.states, same.states)
    assert int(one.mask.sum()) == 3 and not bool(one.states[0, 3:].any())
    torch.testing.assert_close(one.states[0, :2], other.states[0, :2])
    assert float(torch.cosine_similarity(one.states[0, 2], other.states[0, 2], dim=0)) < 0.6
    assert int(words.negative("").mask.sum()) == 1
    assert words.prompt("room " * (WORDS + 4)).lost_tokens == 5


def test_the_weights_are_small():
    assert NET_FILE.stat().st_size + VAE_FILE.stat().st_size <= 16_000_000


@pytest.fixture(scope="module")
def moves() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Truth and what nano made of its first picture, each [F, H, W, 3], by what the camera does."""
    begin = np.array([3.0, 1.6, 1.45, 92.0, -10.0])
    ends = {
        "left": [0, 0, 0, 14, 0],
        "right": [0, 0, 0, -14, 0],
        "aside": [0.5, 0, 0, 0, 0],
        "back": [0, -0.4, 0, 0, 0],
    }
    parts, k = nano_parts(), np.tile(intrinsics(WIDTH, HEIGHT), (FRAMES, 1))
    made = {}
    for name, end in ends.items():
        path = cameras(begin + np.linspace(0, 1, FRAMES)[:, None] * np.array(end))
        truth = filmed(painted_room(), path, k, WIDTH, HEIGHT)
        asked = CameraPath(world_from_cam=invert_pose(path[0]) @ path, intrinsics=k, width=WIDTH, height=HEIGHT)
        shown = video(generate(parts, truth[0], asked, PROMPT, settings=NANO_SETTINGS), parts.vae())
        made[name] = truth, np.stack(list(shown))
    return made


def test_each_video_is_most_like_its_own_path(moves: dict[str, tuple[np.ndarray, np.ndarray]]):
    def off(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.square(a[-1].astype(float) - b[-1]).mean())

    for name, (truth, made) in moves.items():
        assert made.shape == truth.shape == (FRAMES, HEIGHT, WIDTH, 3)
        others = {other: off(made, moves[other][0]) for other in moves if other != name}
        still = float(np.square(made[-1].astype(float) - truth[0]).mean())
        assert off(made, truth) < 0.8 * min(*others.values(), still), (name, off(made, truth), others, still)
