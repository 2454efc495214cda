"""Camera paths for SANA-WM: action strings against the published code, and what edits must keep."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from longtake.errors import LongtakeError
from longtake.geometry import pose, rotation_from_vector
from longtake.model.sana_wm.actions import ACTION_MAPS, CURRENT, FIRST, held_keys, steer
from longtake.model.sana_wm.path import (
    CameraPath,
    backwards,
    faster,
    first_frames,
    for_picture,
    given_path,
    path_of_clip,
    there_and_back,
)


@pytest.fixture(scope="module")
def folder(shared_parity):
    return shared_parity / "sana_wm"


def near(got, want) -> None:
    # metres and cosines; the published first release normalises axes without the 1e-6 of the present code
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


class TestActions:
    def test_first_release(self, folder):
        cases = json.loads((folder / "e_actions_first_release.json").read_text())
        want = load_file(folder / "e_actions_first_release.safetensors")
        assert len(cases["cases"]) == 10
        for case in cases["cases"]:
            near(steer(case["action"], FIRST), want[f"c2w.{case['index']}"])
        near(steer(cases["custom"]["action"], custom(FIRST, cases["custom"])), want["c2w.custom"])

    @pytest.mark.parametrize("kind", ["smooth", "plain"])
    def test_current(self, folder, kind):
        cases = json.loads((folder / "e2_actions_current.json").read_text())
        want = load_file(folder / "e2_actions_current.safetensors")
        mapping = replace(CURRENT, inertia=kind == "smooth")
        assert len(cases["cases"]) == 10
        for case in cases["cases"]:
            near(steer(case["action"], mapping), want[f"{kind}.{case['index']}"])
        if kind == "smooth":
            near(steer(cases["custom"]["action"], custom(CURRENT, cases["custom"])), want["custom.smooth"])

    def test_released_demos(self, folder):
        demos = json.loads((folder / "e2_actions_current.json").read_text())["demos"]
        want = load_file(folder / "e2_actions_current.safetensors")
        assert len(demos) == 5
        for demo in demos:
            got = steer(demo["action"], CURRENT.moving(step=demo["kw"].get("translation_speed")))
            assert len(got) == demo["frames"]
            near(got[::20], want[f"demo{demo['demo']}.smooth_every20"])
            near(got[-1], demo["last_pose"])

    def test_the_maps_differ_in_two_pairs_of_keys(self):
        assert steer("d-5", CURRENT)[-1, 0, 3] == 0 and steer("d-5", FIRST)[-1, 0, 3] > 0
        assert steer("l-5", CURRENT)[-1, 0, 3] > 0 and steer("l-5", FIRST)[-1, 0, 3] == 0
        swapped = replace(CURRENT, keys={**CURRENT.keys, **{k: FIRST.keys[k] for k in "adjl"}})
        np.testing.assert_array_equal(steer("wd-9,aj-9", CURRENT), steer("wl-9,ja-9", swapped))
        assert list(ACTION_MAPS) == ["current", "first"]

    def test_up_and_right_are_what_they_say(self):
        up, right = steer("i-5")[-1][:3, 2], steer("d-5")[-1][:3, 2]
        assert up[1] < 0 and right[0] > 0  # y is down

    def test_a_key_let_go_coasts(self):
        path = steer("wd-6,w-6")
        yaw = np.degrees(np.arctan2(path[:, 0, 2], path[:, 2, 2]))
        steps = np.diff(yaw)
        np.testing.assert_allclose(steps[:6], 0.6, atol=1e-9)
        assert (steps[6:] > 0).all() and (np.diff(steps[5:]) < 0).all()
        np.testing.assert_allclose(steps[6] / 0.6, np.exp(-1 / 16), atol=1e-9)

    @pytest.mark.parametrize("text", ["", "w", "w-0", "w--3", "x-3", "w-1.5", "w-3,,s-2", "none-0", "w-a", "nonew-3"])
    def test_no_actions(self, text):
        with pytest.raises(LongtakeError, match="is not KEYS-FRAMES"):
            held_keys(text)

    def test_spelling(self):
        assert held_keys(" WD - 2，none-1 ,-1") == [frozenset("wd")] * 2 + [frozenset()] * 2


def custom(mapping, case):
    mapping = mapping.moving(step=case["translation_speed"], turn_deg=case["rotation_speed_deg"])
    return replace(mapping, pitch_limit_deg=case["pitch_limit_deg"])


def curve(count: int = 33, fps: float = 16.0, seed: int = 0):
    """Times and poses of a smooth path in an arbitrary frame."""
    t = np.arange(count) / fps
    r = rotation_from_vector(np.stack([0.2 * np.sin(t), 0.5 * t, 0.1 * t * t], -1))
    poses = pose(r, np.stack([t, 0.3 * np.cos(t), t * t], -1))
    rng = np.random.default_rng(seed)
    return t, pose(rotation_from_vector(rng.normal(size=3)), rng.normal(size=3)) @ poses


K = np.array([500.0, 510.0, 320.0, 180.0])


def path(count: int = 33) -> CameraPath:
    _, poses = curve(count)
    zoom = np.linspace(1, 1.4, count)[:, None] * K * (1, 1, 0, 0) + K * (0, 0, 1, 1)
    return given_path(poses, zoom, width=640, height=360)


class TestPath:
    def test_begins_at_the_identity(self):
        _, poses = curve()
        got = given_path(poses, K, width=640, height=360)
        np.testing.assert_array_equal(got.world_from_cam[0], np.eye(4))
        np.testing.assert_allclose(poses[0] @ got.world_from_cam, poses, atol=1e-12)

    def test_intrinsics_in_every_form(self):
        _, poses = curve(5)
        matrix = np.array([[500, 0, 320], [0, 510, 180], [0, 0, 1.0]])
        for k in (K, np.tile(K, (5, 1)), matrix, np.tile(matrix, (5, 1, 1))):
            got = given_path(poses, k, width=640, height=360)
            np.testing.assert_array_equal(got.intrinsics, np.tile(K, (5, 1)))

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda p, k: (p[:, :3], k), r"poses have shape \(5, 3, 4\)"),
            (lambda p, k: (2 * p, k), "frame 0 is not a rigid motion"),
            (lambda p, k: (p * np.where(np.arange(5) == 3, np.nan, 1)[:, None, None], k), "frame 3 .* not finite"),
            (lambda p, k: (p, np.tile(k, (4, 1))), r"intrinsics of shape \(4, 4\) for 5 frames"),
            (lambda p, k: (p, -k), "not positive"),
            (lambda p, k: (p, np.ones((3, 3))), "skew is not supported"),
        ],
    )
    def test_refusals(self, change, message):
        _, poses = curve(5)
        with pytest.raises(LongtakeError, match=message):
            given_path(*change(poses, K), width=640, height=360)

    def test_the_first_frames(self):
        whole = path(33)
        got = first_frames(whole, 20)
        assert got.num_frames == 17 and len(got.intrinsics) == 17
        assert first_frames(whole, 999).num_frames == 33 and first_frames(path(32), 999).num_frames == 25

    def test_the_same_picture_at_another_size(self):
        got = for_picture(path(), 320, 180)
        np.testing.assert_allclose(got.intrinsics, path().intrinsics / 2)
        with pytest.raises(LongtakeError, match=r"the picture is 360x640 and .* for 640x360, another shape"):
            for_picture(path(), 360, 640)


class TestClips:
    def follow(self, t, poses, **changes):
        arguments = {"width": 640, "height": 360, "metres_per_unit": 1.0} | changes
        return path_of_clip(poses, np.tile(K, (len(t), 1)), t, **arguments)

    @pytest.mark.parametrize("fps", [16.0, 30.0, 60.0])
    def test_any_frame_rate(self, fps):
        t, poses = curve(int(2 * fps) + 1, fps)
        got = self.follow(t + 7.0, poses)
        want = given_path(curve(33)[1], K, width=640, height=360)
        # straight and at constant angular velocity between frames: off by acceleration times step^2 / 8
        np.testing.assert_allclose(got.world_from_cam, want.world_from_cam, atol=3e-4 if fps != 16 else 1e-9)

    def test_units(self):
        t, poses = curve()
        far, near_ = self.follow(t, poses, metres_per_unit=2.5), self.follow(t, poses)
        np.testing.assert_allclose(far.world_from_cam[:, :3, 3], 2.5 * near_.world_from_cam[:, :3, 3], atol=1e-9)
        np.testing.assert_allclose(far.world_from_cam[:, :3, :3], near_.world_from_cam[:, :3, :3], atol=1e-12)

    def test_frames_without_a_pose(self):
        t, poses = curve(49)
        holed = poses.copy()
        holed[[3, 10, 11, 40, 41, 42, 43, 44, 45, 46, 47, 48]] = np.nan
        got = self.follow(t, holed)
        assert got.num_frames == 40
        # acceleration 2 m/s^2 over a gap of 3/16 s: 2 / 8 (3/16)^2
        np.testing.assert_allclose(got.world_from_cam, self.follow(t, poses).world_from_cam[:40], atol=9e-3)

    @pytest.mark.parametrize(
        "lost, scale, message",
        [
            ([0], 1.0, "first frame has no pose"),
            (range(10, 19), 1.0, r"no pose for 0\.62 s after its frame 9"),
            ([], float("nan"), "metres_per_unit is nan"),
        ],
    )
    def test_refusals(self, lost, scale, message):
        t, poses = curve()
        poses[list(lost)] = np.nan
        with pytest.raises(LongtakeError, match=message):
            self.follow(t, poses, metres_per_unit=scale)


class TestEdits:
    def test_twice_as_fast(self):
        got = faster(path(), 2)
        assert got.num_frames == 17
        np.testing.assert_allclose(got.world_from_cam, path().world_from_cam[::2], atol=1e-12)
        np.testing.assert_allclose(got.intrinsics, path().intrinsics[::2])

    def test_slower_and_faster_again(self):
        slow = faster(path(), 0.25)
        assert slow.num_frames == 129
        np.testing.assert_allclose(faster(slow, 4).world_from_cam, path().world_from_cam, atol=1e-9)

    def test_backwards(self):
        once = backwards(path())
        np.testing.assert_array_equal(once.world_from_cam[0], np.eye(4))
        steps = np.linalg.inv(path().world_from_cam[:-1]) @ path().world_from_cam[1:]
        undone = np.linalg.inv(once.world_from_cam[:-1]) @ once.world_from_cam[1:]
        np.testing.assert_allclose(undone[::-1] @ steps, np.broadcast_to(np.eye(4), steps.shape), atol=1e-9)
        np.testing.assert_array_equal(once.intrinsics[0], path().intrinsics[0])
        twice = backwards(once)
        np.testing.assert_allclose(twice.world_from_cam, path().world_from_cam, atol=1e-9)
        np.testing.assert_allclose(twice.intrinsics, path().intrinsics, atol=1e-9)

    def test_there_and_back(self):
        got = there_and_back(path())
        assert got.num_frames == 65
        np.testing.assert_array_equal(got.world_from_cam, got.world_from_cam[::-1])
        np.testing.assert_array_equal(got.world_from_cam[:33], path().world_from_cam)

    @pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
    def test_no_speed(self, speed):
        with pytest.raises(LongtakeError, match="not a positive number"):
            faster(path(), speed)
