"""`longtake lift` and `longtake preview` as a person meets them: every source of depth, and each refusal once.

The footage is the synthetic room, whose depth is exact. Networks here are functions that state it.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from longtake.annotate.depth import SingleGeometry
from longtake.annotate.depth_clip import DepthClip, DepthWriter, finish_depth
from longtake.annotate.shot_depth import Backends
from longtake.annotate.video import probe
from longtake.datasets.manifest import create_manifest
from longtake.datasets.schema import annotate_row
from longtake.geometry import pose
from longtake.pipelines.lifting import Inputs, lift_source, open_source, preview
from longtake.render.room import Room, camera_path, render_room, room_depth
from longtake.render.scene import read_scene

from ..datasets import conftest as made

W, H = 96, 64


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Three pictures with the depth of the first and the last, their poses and the lens."""
    folder = tmp_path_factory.mktemp("recording")
    room, (poses, intrinsics) = Room(0), camera_path("walk", 20, width=W, height=H, fov_x_deg=50)
    (folder / "pictures").mkdir()
    (folder / "depth").mkdir()
    for i in range(3):
        rgb = render_room(room, poses[i], intrinsics[i], W, H)
        cv2.imwrite(str(folder / "pictures" / f"{i:06d}.png"), rgb[..., ::-1])
        depth = room_depth(room, poses[i], intrinsics[i], W, H)
        np.save(folder / f"exact{i}.npy", depth)
        if i != 1:
            cv2.imwrite(str(folder / "depth" / f"{i:06d}.png"), np.rint(1000 * depth).astype(np.uint16))
    np.save(folder / "poses.npy", poses[:3])
    np.save(folder / "lens.npy", intrinsics[0])
    return folder


def lens(recording: Path) -> str:
    return ",".join(map(str, np.load(recording / "lens.npy")))


@pytest.fixture(scope="module")
def posed(recording, tmp_path_factory) -> Path:
    """A manifest of one clip, whose video is the pictures, and whose depth file covers all but four of their rows."""
    out = tmp_path_factory.mktemp("posed")
    info = probe(recording / "pictures")
    shot = made.shot(0, 3, crop=(0, 4, W, H - 8))
    k = np.load(recording / "lens.npy")
    path = out / "depth.zip"
    with DepthWriter(path) as writer:
        for i in range(3):
            depth = np.load(recording / f"exact{i}.npy")[4:-4]
            writer.add(i, depth[::2, ::2], np.ones((H // 2 - 4, W // 2)))
    finish_depth(
        DepthClip(
            path=path,
            frame_index=np.arange(3),
            width=W // 2,
            height=H // 2 - 4,
            crop=shot.crop,
            factor=np.ones(3),
            world_from_cam=None,
            focal_px=None,
            metric=True,
            source="given",
            scale=None,
            relative_sigma=0.01,
        )
    )
    facts = {
        "world_from_cam": np.load(recording / "poses.npy"),
        "intrinsics": np.tile(k, (3, 1)),
        "width": W,
        "height": H,
    }
    manifest = create_manifest(out)
    rows = []
    for run, scale_kind in (("a", "metric"), ("b", "relative")):
        track = made.track(info, shot, scale_kind=scale_kind, **facts)
        row = annotate_row(path=info.path, provenance=made.PROVENANCE, video=info, shot=shot, track=track)
        name = f"{run}{row['clip_id'][1:]}"
        rows.append(row | {"clip_id": name, "depth_uri": "depth.zip", "depth_encoding": "zip of PNGs"})
    rows.append(rows[0] | {"clip_id": f"c{rows[0]['clip_id'][1:]}", "depth_uri": None, "depth_encoding": None})
    manifest.append(rows)
    return out


def moge2(recording: Path) -> Backends:
    """In place of MoGe-2: the exact depth of the first picture, at the size it is asked for."""
    depth = np.load(recording / "exact0.npy")

    def of_size(size, fov_x_deg):
        def predict(pictures):
            small = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
            focal = np.load(recording / "lens.npy")[0] / W
            return SingleGeometry(depth=np.stack([small] * len(pictures)), focal_widths=np.full(len(pictures), focal))

        return predict

    return Backends(single=of_size)


# ---- lift ------------------------------------------------------------------------------------------------------------


def test_a_recording_with_depth_becomes_a_scene(recording, longtake, tmp_path):
    out = tmp_path / "scene.ply"
    known = ["--depth", recording / "depth", "--poses", recording / "poses.npy", "--intrinsics", lens(recording)]
    code, printed, _ = longtake("lift", recording / "pictures", *known, "--out", out, "--json", "--quiet")
    facts = json.loads(printed)
    scene = read_scene(out).gaussians
    assert code == 0 and facts["frames"] == 2 and facts["unit"] == "m" and facts["gaussians"] == len(scene)
    assert facts["shown_already"] > 0.2 * facts["pixels"]
    camera, k = np.load(recording / "poses.npy")[0], np.load(recording / "lens.npy")
    local = (scene.means - camera[:3, 3]) @ camera[:3, :3]  # each lies on the surface that its pixel shows
    u, v = np.rint(local[:, :2] / local[:, 2:] * k[:2] + k[2:]).astype(int).T
    seen = (u >= 0) & (u < W) & (v >= 0) & (v < H) & (local[:, 2] > 0)
    wrong = np.abs(np.load(recording / "exact0.npy")[v[seen], u[seen]] / local[seen, 2] - 1)
    assert seen.sum() > 0.6 * W * H and np.median(wrong) < 0.01


def test_a_clip_of_a_manifest_becomes_a_scene(recording, posed, longtake, tmp_path):
    out = tmp_path / "scene.spz"
    code, printed, _ = longtake("lift", posed, "--clip", "a", "--frames", 2, "--out", out, "--json", "--quiet")
    facts = json.loads(printed)
    assert code == 0 and facts["frames"] == 2 and facts["gaussians"] == len(read_scene(out).gaussians)
    with open_source(str(posed), Inputs(clip="a", frame=2)) as source:
        (frame,) = source.read(source.frames)
    fx, fy, cx, cy = np.load(recording / "lens.npy")
    np.testing.assert_allclose(frame.intrinsics, [fx / 2, fy / 2, (cx - 0.5) / 2, (cy - 4.5) / 2], rtol=1e-5)
    np.testing.assert_allclose(frame.world_from_cam, np.load(recording / "poses.npy")[2], atol=1e-5)
    np.testing.assert_allclose(frame.depth, np.load(recording / "exact2.npy")[4:-4:2, ::2], rtol=1e-3)
    whole = cv2.imread(str(recording / "pictures" / "000002.png"))
    assert whole is not None
    whole = whole[4:-4, :, ::-1]
    np.testing.assert_array_equal(frame.rgb, cv2.resize(whole, (W // 2, H // 2 - 4), interpolation=cv2.INTER_AREA))


def test_a_bent_lens_is_straightened(recording, posed):
    """A pixel of the straightened maps shows what the bent picture has where the lens puts it."""
    from longtake.geometry import distort
    from longtake.pipelines.lifting import _straightened

    k = np.array([40.0, 42.0, 23.0, 13.0])
    v, u = np.meshgrid(np.arange(28.0), np.arange(48.0), indexing="ij")
    depth = (1 + u + 100 * v).astype(np.float32)
    rgb = np.zeros((28, 48, 3), np.uint8)
    got = _straightened(k, (-0.3, 0.1), rgb, depth, np.ones((28, 48), np.float32), np.ones((28, 48), bool))[1]
    at = distort(np.stack([(u - k[2]) / k[0], (v - k[3]) / k[1]], -1), -0.3, 0.1) * k[:2] + k[2:]
    known = np.isfinite(got)
    assert known.mean() > 0.9
    x, y = (got[known] - 1) % 100, (got[known] - 1) // 100
    assert np.abs(np.stack([x, y], 1) - at[known]).max() < 0.55  # the nearest pixel
    outwards = _straightened(k, (0.3, 0.1), rgb, depth, np.ones((28, 48), np.float32), np.ones((28, 48), bool))
    assert np.isnan(outwards[1][0, 0]) and outwards[2][0, 0] == 0 and not outwards[3][0, 0]  # past the border


def test_a_picture_with_a_networks_depth_becomes_a_scene(recording):
    picture = str(recording / "pictures" / "000000.png")
    with open_source(picture, Inputs(), backends=moge2(recording)) as source:
        lifted = lift_source(source, 1)
        (frame,) = source.read(source.frames)
    assert source.metric and frame.depth.shape[1] > 0.8 * W  # in about as many pixels as the picture has
    np.testing.assert_allclose(frame.intrinsics[0] / frame.depth.shape[1], np.load(recording / "lens.npy")[0] / W)
    depth = lifted.gaussians.means[:, 2]
    assert np.median(depth) == pytest.approx(np.median(np.load(recording / "exact0.npy")), rel=0.05)


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("lift", "{pictures}", "--depth", "{depth}", "--out", "a.ply"), 2, "give --intrinsics"),
        (("lift", "{pictures}", "--depth", "{depth}", "--intrinsics", "90", "--out", "a.ply"), 2, "give --poses"),
        (("lift", "{pictures}", "--out", "a.obj"), 2, "a scene is one of .ply"),
        (("lift", "{pictures}", "--poses", "{poses}", "--out", "a.ply"), 2, "--poses go with --depth"),
        (("lift", "{pictures}", "--clip", "a", "--out", "a.ply"), 2, "names a clip of a manifest"),
        (("lift", "{posed}", "--out", "a.ply"), 2, "has 3 clips: name one"),
        (("lift", "{posed}", "--clip", "b", "--out", "a.ply"), 2, "cannot be put together"),
        (("lift", "{posed}", "--clip", "c", "--out", "a.ply"), 2, "has no depth: annotate its video again"),
        (("lift", "{posed}", "--clip", "a", "--frame", "9", "--out", "a.ply"), 2, "no depth or no pose for frame 9"),
        (("lift", "{posed}", "--clip", "a", "--network", "moge2", "--out", "a.ply"), 2, "give no others"),
        (("lift", "{pictures}", "--out", "a.ply"), 3, "longtake weights fetch"),
        (("preview", "{posed}", "--clip", "a", "--path", "nowhere"), 2, "neither a file of poses"),
        (("preview", "{posed}", "--clip", "a", "--path", "lens.npy"), 1, "cannot be read as poses"),
        (("preview", "{posed}", "--clip", "a", "--path", "orbit", "--out", "a.gif"), 2, "is an .mp4"),
        (("preview", "{posed}", "--clip", "a", "--path", "orbit", "--size", "63x64"), 2, "both even"),
    ],
)
def test_refusals(words, code, complaint, recording, posed, longtake, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    places = {name: recording / name for name in ("pictures", "depth")}
    filled = [word.format(**places, poses=recording / "poses.npy", posed=posed) for word in words]
    got, _, said = longtake(*filled)
    assert (got, complaint in said) == (code, True), said


# ---- preview ---------------------------------------------------------------------------------------------------------


def test_a_path_is_flown_from_where_the_picture_was_taken(recording, posed, longtake, tmp_path):
    """Poses in a world of their own: here the recording's, moved away. The last one sees what picture 2 sees."""
    elsewhere = pose(np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]), np.array([5.0, 6, 7]))
    np.save(tmp_path / "path.npy", elsewhere @ np.load(recording / "poses.npy"))
    words = ["--clip", "a", "--path", tmp_path / "path.npy", "--out", tmp_path / "p.mp4", "--save", tmp_path / "s.npy"]
    code, printed, _ = longtake("preview", posed, *words, "--json")
    facts = json.loads(printed)
    assert code == 0 and facts["frames"] == 3 == len(facts["hole_share"])
    first, _, last = facts["hole_share"]
    assert 0 < first < 0.35 and first + 0.05 < last == pytest.approx(facts["holes_max"], abs=1e-4)  # much is edge
    relative = np.load(tmp_path / "s.npy")
    poses = np.load(recording / "poses.npy")
    np.testing.assert_allclose(relative, np.linalg.inv(poses[0]) @ poses, atol=1e-9)
    info = probe(tmp_path / "p.mp4")
    assert (info.num_frames, info.width, info.height) == (3, W // 2, H // 2 - 4)


def test_actions_and_families_are_flown(recording, posed, longtake, tmp_path):
    code, printed, _ = longtake("preview", posed, "--clip", "b", "--path", "s-8,d-8", "--every", 4, "--size", "32x48")
    assert code == 0 and "actions s-8,d-8" in printed and "holes_max_frame" in printed
    with open_source(str(posed), Inputs(clip="a", one=True)) as source:
        (frame,) = source.read(source.frames[:1])
    made = preview(frame, "in_place", out=None, seed=1, num_frames=33, every=8)
    assert made.drawn == (0, 8, 16, 24, 32) and made.relative.shape == (33, 4, 4)
    np.testing.assert_array_equal(made.relative[0], np.eye(4))
    assert made.hole_share[0] < 0.35 < made.hole_share.max()
    again = preview(frame, "in_place", out=None, seed=1, num_frames=33, every=16)
    np.testing.assert_array_equal(again.relative, made.relative)
    other = preview(frame, "dolly", out=None, seed=2, num_frames=33, every=16)
    assert other.path == "dolly, seed 2" and np.ptp(other.relative[:, 2, 3]) > 0.1
