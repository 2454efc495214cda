"""Camera tracks of rendered footage against the truth: what each kind of motion must give, what must be refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.annotate.klt import error_px, softness
from longtake.annotate.track import TrackConfig, estimate_track
from longtake.annotate.video import probe
from longtake.geometry import align_similarity, pose, rotation_from_vector
from longtake.records import Rejected, Shot, Track
from longtake.render.painted_room import filmed, intrinsics, painted_room, random_path
from longtake.render.room import Room, camera_path, render_clip

from ..videos import write

WIDTH, HEIGHT = 320, 240
ROOM, PAINTED = Room(0), painted_room()


def track_of(path: Path, *, overlay: NDArray | None = None, **options) -> Track | Rejected:
    """The whole file as one shot."""
    info = probe(path)
    crop = (0, 0, info.width, info.height)
    shot = Shot(index=0, start=0, stop=info.num_frames, crop=crop, overlay=overlay, boundary="start")
    return estimate_track(info, shot, TrackConfig(), **options)


def posed(track: Track | Rejected) -> Track:
    """A track that keeps its rules: finite and proper where it says so, nothing elsewhere, the first at the origin."""
    assert isinstance(track, Track)
    good = track.pose_valid
    assert good.any() and np.isfinite(track.world_from_cam[good]).all() and np.isnan(track.world_from_cam[~good]).all()
    rotation = track.world_from_cam[good, :3, :3]
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, 1, 2), np.tile(np.eye(3), (good.sum(), 1, 1)), atol=1e-9
    )
    assert (np.linalg.det(rotation) > 0).all()
    np.testing.assert_allclose(track.world_from_cam[np.flatnonzero(good)[0]], np.eye(4), atol=1e-9)
    assert np.isfinite(track.intrinsics).all() and (track.intrinsics[:, :2] > 0).all()
    return track


def clip(
    folder: Path,
    kind: str,
    frames: int,
    *,
    moving_share: float = 0.0,
    distortion: tuple[float, float] = (0.0, 0.0),
    **options,
) -> tuple[Path, NDArray, NDArray]:
    """A film of the room, its cameras [T, 4, 4] and intrinsics [T, 4]."""
    cameras, k = camera_path(kind, frames, width=WIDTH, height=HEIGHT, **options)
    pictures = render_clip(ROOM, cameras, k, WIDTH, HEIGHT, moving_share=moving_share, distortion=distortion)
    return write(folder / f"{kind}.mp4", pictures, options={"crf": "14"}), cameras, k


def rotation_error_deg(track: Track, cameras: NDArray) -> float:
    """The largest difference of a frame's rotation from the first posed frame."""
    good = track.pose_valid
    a, b = track.world_from_cam[good, :3, :3], cameras[good, :3, :3]
    a, b = a[0].T @ a, b[0].T @ b
    cosine = (np.trace(np.swapaxes(a, 1, 2) @ b, axis1=1, axis2=2) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).max())


def position_error(track: Track, cameras: NDArray) -> float:
    """Root mean square distance of the centres after a similarity, as a share of the path's extent."""
    good = track.pose_valid
    a, b = track.world_from_cam[good, :3, 3], cameras[good, :3, 3]
    s, rotation, t = align_similarity(a, b)
    off = np.linalg.norm(b - (s * a @ rotation.T + t), axis=1)
    return float(np.sqrt((off**2).mean()) / np.linalg.norm(np.ptp(b, axis=0)))


def focal_error(track: Track, k: NDArray) -> float:
    return float(np.median(np.abs(track.intrinsics[:, 0] / k[:, 0] - 1)))


# ---- cameras that stay in one place ------------------------------------------------------------------------------


@pytest.mark.parametrize("moving_share", [0.0, 0.3, 0.6])
def test_a_camera_that_stands_still(tmp_path, moving_share):
    path, _, _ = clip(tmp_path, "static", 30, moving_share=moving_share)
    track = posed(track_of(path))
    assert (track.motion_class, track.focal_status, track.intrinsics_mode) == ("static", "undetermined", "static")
    assert track.pose_valid.all() and np.array_equal(track.world_from_cam, np.tile(np.eye(4), (30, 1, 1)))
    assert "focal_undetermined" in track.flags


def test_a_frozen_frame_is_static(tmp_path):
    picture = next(iter(render_clip(ROOM, *camera_path("static", 1, width=WIDTH, height=HEIGHT), WIDTH, HEIGHT)))
    track = posed(track_of(write(tmp_path / "frozen.mp4", [picture] * 20)))
    assert (track.motion_class, track.focal_status) == ("static", "undetermined")
    assert np.array_equal(track.world_from_cam, np.tile(np.eye(4), (20, 1, 1)))


@pytest.mark.parametrize("extent", [1.0, 0.15])
def test_a_pan_has_no_translation(tmp_path, extent):
    path, cameras, k = clip(tmp_path, "pan", 30, extent=extent)
    track = posed(track_of(path))
    assert (track.motion_class, track.focal_status, track.intrinsics_mode) == ("rotation", "estimated", "static")
    assert track.pose_valid.all() and not track.world_from_cam[:, :3, 3].any()
    assert rotation_error_deg(track, cameras) < 0.1 and focal_error(track, k) < 0.01


def roll(frames: int, total_deg: float = 40.0) -> tuple[NDArray, NDArray]:
    cameras, k = camera_path("static", frames, width=WIDTH, height=HEIGHT)
    turn = np.radians(np.linspace(0, total_deg, frames))
    return cameras @ pose(rotation_from_vector(turn[:, None] * [0, 0, 1]), np.zeros(3)), k


def test_a_roll_has_no_translation_and_says_nothing_of_the_focal_length(tmp_path):
    cameras, k = roll(40)
    path = write(tmp_path / "roll.mp4", render_clip(ROOM, cameras, k, WIDTH, HEIGHT), options={"crf": "14"})
    track = posed(track_of(path))
    assert (track.motion_class, track.focal_status) == ("rotation", "undetermined")
    assert track.pose_valid.all() and not track.world_from_cam[:, :3, 3].any()
    assert rotation_error_deg(track, cameras) < 0.1


def test_a_zoom_is_no_translation(tmp_path):
    path, cameras, k = clip(tmp_path, "zoom_only", 40)
    track = posed(track_of(path))
    assert (track.motion_class, track.intrinsics_mode) == ("rotation", "per_frame")
    assert track.pose_valid.all() and not track.world_from_cam[:, :3, 3].any()
    assert rotation_error_deg(track, cameras) < 0.1
    assert track.focal_status == "undetermined"  # a zoom shows ratios alone,
    ratio = track.intrinsics[:, 0] / track.intrinsics[0, 0]
    np.testing.assert_allclose(ratio, k[:, 0] / k[0, 0], rtol=0.01)  # and these must be right


# ---- small, soft and short ---------------------------------------------------------------------------------------


def soft_film(folder: Path, seed: int) -> tuple[Path, NDArray, tuple[float, ...]]:
    """25 frames of 224x128 without any fine detail, their cameras [T, 4, 4] and fx, fy, cx, cy."""
    cameras, k = random_path(seed, 25), intrinsics(224, 128)
    pictures = filmed(PAINTED, cameras, np.tile(k, (25, 1)), 224, 128)
    return write(folder / f"{seed}.mp4", pictures, options={"crf": "0"}), cameras, tuple(k)


@pytest.mark.parametrize("seed, known", [(30005, True), (30031, True), (30005, False), (30015, False)])
def test_a_soft_turn_is_a_turn(tmp_path, seed, known):
    path, cameras, k = soft_film(tmp_path, seed)
    track = posed(track_of(path, intrinsics=k if known else None))
    assert track.motion_class == "rotation" and track.pose_valid.all() and not track.world_from_cam[:, :3, 3].any()
    assert rotation_error_deg(track, cameras) < (0.5 if known else 1.0)
    assert focal_error(track, np.array([k])) < (1e-9 if known else 0.05)


@pytest.mark.parametrize("seed", [30020, 30037, 30075])
def test_a_soft_glide_is_no_turn(tmp_path, seed):
    path, cameras, k = soft_film(tmp_path, seed)
    track = posed(track_of(path, intrinsics=k))
    assert track.motion_class != "rotation" and track.pose_valid.all()
    assert rotation_error_deg(track, cameras) < 1.5 and position_error(track, cameras) < 0.05


def test_how_soft_a_picture_is():
    step = np.zeros((128, 224), np.float32)
    step[:, 80:], step[:, 150:] = 200, 60
    assert softness(step.astype(np.uint8)) < 1 and softness(np.full((60, 80), 90, np.uint8)) == 0
    for blur in (3.0, 6.0):
        assert softness(cv2.GaussianBlur(step, (0, 0), blur).astype(np.uint8)) == pytest.approx(blur, rel=0.1)
    assert error_px(640, 480, 1.0) == 1.0 < error_px(640, 480, 6.0)


# ---- cameras that travel -----------------------------------------------------------------------------------------


def test_a_walk_and_its_bytes(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", 40, extent=0.5)
    track = posed(track_of(path))
    assert (track.motion_class, track.focal_status, track.intrinsics_mode) == ("general", "estimated", "static")
    assert track.pose_valid.all() and track.distortion_model == "opencv_radial"
    assert position_error(track, cameras) < 0.003 and rotation_error_deg(track, cameras) < 0.2
    assert focal_error(track, k) < 0.01 and np.abs(track.distortion).max() < 0.02
    again = posed(track_of(path))
    assert track.world_from_cam.tobytes() == again.world_from_cam.tobytes()
    assert track.intrinsics.tobytes() == again.intrinsics.tobytes()


def test_a_known_camera_is_kept(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", 30, extent=0.4)
    track = posed(track_of(path, intrinsics=tuple(k[0])))
    assert track.focal_status == "given" and "focal_undetermined" not in track.flags
    np.testing.assert_allclose(track.intrinsics, k, rtol=1e-9)
    assert position_error(track, cameras) < 0.003 and rotation_error_deg(track, cameras) < 0.2


def test_zoom_while_moving(tmp_path):
    path, cameras, k = clip(tmp_path, "orbit_zoom", 50)
    track = posed(track_of(path))
    assert (track.motion_class, track.intrinsics_mode, track.focal_status) == ("general", "per_frame", "estimated")
    assert track.pose_valid.all() and position_error(track, cameras) < 0.01
    assert np.quantile(np.abs(track.intrinsics[:, 0] / k[:, 0] - 1), 0.9) < 0.03


def test_forward_motion_along_the_axis(tmp_path):
    """Translation alone leaves the focal length open (Sturm 1997): it must not be told as a number, the path must."""
    path, cameras, _ = clip(tmp_path, "forward", 40)
    track = posed(track_of(path))
    assert track.motion_class == "general" and track.focal_status == "undetermined"
    assert track.pose_valid.all() and rotation_error_deg(track, cameras) < 0.3
    assert position_error(track, cameras) < 0.01


def test_a_dolly_zoom_is_not_told_as_a_known_focal_length(tmp_path):
    """A focal length that goes with the distance is a projective change of the scene: a fixed one explains it too."""
    path, cameras, k = clip(tmp_path, "dolly_zoom", 40)
    track = track_of(path)
    assert isinstance(track, Rejected) or track.focal_status == "undetermined" or focal_error(track, k) < 0.05
    if isinstance(track, Track):
        assert rotation_error_deg(posed(track), cameras) < 1


def test_a_wall(tmp_path):
    path, cameras, k = clip(tmp_path, "planar", 30, extent=0.5)
    track = posed(track_of(path))
    assert track.motion_class == "planar" and track.pose_valid.all()
    assert position_error(track, cameras) < 0.02
    assert track.focal_status == "undetermined" or focal_error(track, k) < 0.05


def test_a_thing_that_covers_most_of_the_picture_is_not_the_world(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", 40, extent=0.8, moving_share=0.6)
    track = posed(track_of(path))
    assert "much_moves" in track.flags and np.nanmedian(track.dyn_ratio) > 0.2
    assert rotation_error_deg(track, cameras) < 1 and position_error(track, cameras) < 0.01
    assert focal_error(track, k) < 0.05


# ---- lenses ------------------------------------------------------------------------------------------------------


def test_radial_distortion_is_found(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", 36, extent=0.8, distortion=(-0.1, 0.0))
    track = posed(track_of(path))
    assert track.distortion_model == "opencv_radial" and abs(track.distortion[0] + 0.1) < 0.03
    assert focal_error(track, k) < 0.02 and position_error(track, cameras) < 0.005


def test_strong_barrel_distortion_is_modelled(tmp_path):
    path, cameras, k = clip(tmp_path, "walk", 36, extent=0.8, distortion=(-0.3, 0.05))
    track = posed(track_of(path))
    assert track.distortion[0] < -0.2 and focal_error(track, k) < 0.08 and position_error(track, cameras) < 0.01


def fisheye(frames: int, fov_deg: float = 150.0) -> tuple[list[NDArray], NDArray]:
    """A walk seen through an equidistant lens (radius = f * angle), resampled from pinhole views in five directions."""
    cameras, _ = camera_path("walk", frames, width=WIDTH, height=HEIGHT)
    f = WIDTH / np.radians(fov_deg)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    x, y = (x - (WIDTH - 1) / 2) / f, (y - (HEIGHT - 1) / 2) / f
    angle = np.maximum(np.hypot(x, y), 1e-9)
    ray = np.stack([x / angle * np.sin(angle), y / angle * np.sin(angle), np.cos(angle)], -1)  # [H, W, 3]
    side = 400
    k = np.array([side / 2, side / 2, (side - 1) / 2, (side - 1) / 2])  # 90 degrees
    turns = [rotation_from_vector(np.radians(v)) for v in ([0, 0, 0], [0, 75, 0], [0, -75, 0], [75, 0, 0], [-75, 0, 0])]
    views = [ray @ turn for turn in turns]
    nearest = np.argmax([view[..., 2] for view in views], 0)
    pictures = []
    for camera in cameras:
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for i, (turn, view) in enumerate(zip(turns, views, strict=True)):
            face = next(iter(render_clip(ROOM, [camera @ pose(turn, np.zeros(3))], [k], side, side)))  # type: ignore[arg-type]
            at = (view[..., :2] / np.maximum(view[..., 2:], 1e-3) * k[:2] + k[2:]).astype(np.float32)
            seen = cv2.remap(face, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            picture[nearest == i] = seen[nearest == i]
        pictures.append(picture)
    return pictures, cameras


def test_a_fisheye_is_not_taken_for_a_pinhole(tmp_path):
    # of 40 frames, rounding decides: 1.01 to 1.03 times as many matches agree with a bend, with 1.015 asked for
    pictures, cameras = fisheye(60)
    track = track_of(write(tmp_path / "fisheye.mp4", pictures, options={"crf": "14"}))
    assert (
        isinstance(track, Rejected)
        or "fisheye" in track.flags
        or (rotation_error_deg(track, cameras) < 0.5 and track.distortion and track.distortion[0] < -0.1)
    )


# ---- pictures without a camera in them ---------------------------------------------------------------------------


def test_noise_has_no_pose(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(20)]
    track = track_of(write(tmp_path / "noise.mp4", pictures))
    assert isinstance(track, Rejected) and track.reason == "no_reconstruction"


@pytest.mark.parametrize("level", [0, 128])
def test_a_plain_picture_has_no_pose(tmp_path, level):
    track = track_of(write(tmp_path / "plain.mp4", [np.full((120, 160, 3), level, np.uint8)] * 12))
    assert isinstance(track, Rejected) and track.reason == "no_reconstruction"


def test_one_frame_is_too_few(tmp_path):
    track = track_of(write(tmp_path / "one.mp4", [np.zeros((120, 160, 3), np.uint8)]))
    assert isinstance(track, Rejected) and track.reason == "too_few_frames"


def test_a_repeated_texture_gives_no_wrong_path(tmp_path):
    """Tiles all alike, seen from a camera that glides over them: a track may be refused, never wrong."""
    tile = np.random.default_rng(1).integers(40, 216, (20, 20, 3)).astype(np.uint8)
    floor = cv2.resize(np.tile(tile, (50, 50, 1)), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)  # type: ignore[call-overload]
    pictures = [floor[200 : 200 + HEIGHT, 100 + 5 * i : 100 + 5 * i + WIDTH] for i in range(40)]
    track = track_of(write(tmp_path / "tiles.mp4", pictures, options={"crf": "14"}))
    if isinstance(track, Track) and track.pose_valid.any():
        assert posed(track).motion_class in ("planar", "rotation")
        assert track.focal_status == "undetermined"


def test_a_dark_stretch_is_not_bridged_by_guesses(tmp_path):
    """Frames that show nothing have no pose, whatever lies before and after."""
    cameras, k = camera_path("walk", 40, width=WIDTH, height=HEIGHT, extent=0.4)
    pictures = list(render_clip(ROOM, cameras, k, WIDTH, HEIGHT))
    for i in range(18, 24):
        pictures[i] = np.zeros_like(pictures[i])
    track = posed(track_of(write(tmp_path / "dark.mp4", pictures, options={"crf": "14"})))
    assert not track.pose_valid[18:24].any() and "frames_without_pose" in track.flags
    assert track.pose_valid[:18].all() or track.pose_valid[24:].all()
    assert position_error(track, cameras) < 0.02


def test_an_overlay_does_not_hold_the_camera(tmp_path):
    """A mark that stays on the picture, masked as shots are: the same path as without it."""
    cameras, k = camera_path("walk", 30, width=WIDTH, height=HEIGHT, extent=0.4)
    mark = np.zeros((HEIGHT, WIDTH), bool)
    mark[20:110, 20:150] = True
    pattern = (
        np.random.default_rng(0).integers(0, 256, (HEIGHT // 5, WIDTH // 5, 3), np.uint8).repeat(5, 0).repeat(5, 1)
    )
    pictures = [np.where(mark[..., None], pattern, p) for p in render_clip(ROOM, cameras, k, WIDTH, HEIGHT)]
    path = write(tmp_path / "mark.mp4", pictures, options={"crf": "14"})
    track = posed(track_of(path, overlay=mark))
    assert position_error(track, cameras) < 0.005 and rotation_error_deg(track, cameras) < 0.2


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="auto, shared or per_frame"):
        replace(TrackConfig(), intrinsics_mode="zoom")
