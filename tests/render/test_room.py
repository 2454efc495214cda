"""The synthetic room: pictures lie where the pinhole equations put them, paths are what their names say."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from longtake.geometry import angle_between_deg, distort, invert_pose
from longtake.render.room import PATH_KINDS, SIZE_M, Face, Room, camera_path, look_at, render_clip, render_room

W, H = 320, 240


@pytest.fixture(scope="module")
def room() -> Room:
    return Room(0)


def chessboard(squares: int = 10, texels: int = 64) -> Face:
    """A board 1 m wide, 1 m before the wall y = 0, that faces +y."""
    cells = np.indices((squares, squares)).sum(0) % 2
    texture = np.repeat(np.repeat(np.where(cells, 220, 30), texels, 0), texels, 1).astype(np.uint8)
    texture = np.dstack([texture] * 3)
    levels = [texture]
    while len(texture) > 20:
        texture = texture.reshape(len(texture) // 2, 2, -1, 2, 3).mean((1, 3)).astype(np.uint8)
        levels.append(texture)
    corner, right, down = np.array([3.5, 1.0, 1.9]), np.array([-1.0, 0, 0]), np.array([0, 0, -1.0])
    return Face(corner=corner, right=right, down=down, pyramid=tuple(levels))


@pytest.mark.parametrize("distortion", [(0.0, 0.0), (-0.2, 0.05), (0.1, 0.0)])
def test_corners_lie_where_the_camera_model_puts_them(room: Room, distortion: tuple[float, float]) -> None:
    board = chessboard()
    camera = look_at(np.array([[3.7, 2.3, 1.7]]), np.array([[3.0, 1.0, 1.4]]))[0]
    intrinsics = np.array([260.0, 250.0, 150.3, 118.6])
    image = render_room(room, camera, intrinsics, W, H, distortion=distortion, extra=(board,))
    steps = np.arange(1, 10) / 10
    a, b = (g.ravel()[:, None] for g in np.meshgrid(steps, steps))
    points = board.corner + a * board.right + b * board.down
    local = (points - camera[:3, 3]) @ camera[:3, :3]
    expected = distort(local[:, :2] / local[:, 2:], *distortion) * intrinsics[:2] + intrinsics[2:]
    inside = ((expected > 8) & (expected < [W - 9, H - 9])).all(1)
    assert inside.sum() > 50
    start = np.round(expected[inside]).astype(np.float32)[:, None].copy()
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
    found = cv2.cornerSubPix(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), start, (4, 4), (-1, -1), stop)[:, 0]
    error = found - expected[inside]
    assert np.abs(error.mean(0)).max() < 0.02  # no shift: pixel centres are at integer coordinates
    assert np.sqrt((error**2).sum(1).mean()) < 0.08


def test_a_nearer_face_hides_a_farther_one(room: Room) -> None:
    camera = look_at(np.array([[3.0, 2.3, 1.4]]), np.array([[3.0, 1.0, 1.4]]))[0]
    intrinsics = np.array([200.0, 200.0, (W - 1) / 2, (H - 1) / 2])
    plain = render_room(room, camera, intrinsics, W, H)
    board = render_room(room, camera, intrinsics, W, H, extra=(chessboard(),))
    behind = camera @ np.diag([-1.0, 1, -1, 1])  # turned about, the board is at its back
    assert (plain[H // 2] != board[H // 2]).any(-1).mean() > 0.4
    away = [render_room(room, behind, intrinsics, W, H, extra=extra) for extra in ((), (chessboard(),))]
    assert np.array_equal(away[0], away[1])


@pytest.mark.parametrize("kind", PATH_KINDS)
def test_paths_stay_in_the_room_and_show_it(room: Room, kind: str) -> None:
    poses, intrinsics = camera_path(kind, 30, width=W, height=H)
    assert poses.shape == (30, 4, 4) and intrinsics.shape == (30, 4)
    assert ((poses[:, :3, 3] > 0) & (poses[:, :3, 3] < SIZE_M)).all()
    assert np.allclose(poses @ invert_pose(poses), np.eye(4))
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1)
    for i in (0, 15, 29):
        image = render_room(room, poses[i], intrinsics[i], W, H)
        assert not (image == 0).all(-1).any()  # the room is closed: every pixel is covered
        corners = cv2.goodFeaturesToTrack(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1000, 0.01, 5)
        assert len(corners) > 60


def test_motion_is_what_the_path_is_called() -> None:
    def travel(kind: str) -> float:
        return float(np.ptp(camera_path(kind, 40)[0][:, :3, 3], axis=0).max())

    assert travel("pan") == travel("static") == travel("zoom_only") == 0
    assert min(travel(k) for k in ("walk", "orbit_zoom", "loop", "forward", "dolly_zoom", "planar")) > 0.9
    poses, intrinsics = camera_path("forward", 40)
    step = np.diff(poses[:, :3, 3], axis=0)
    assert np.allclose(step @ poses[0, :3, :2], 0)  # along the optical axis alone
    assert np.ptp(intrinsics[:, 0]) == 0
    assert angle_between_deg(*camera_path("pan", 2)[0][:, :3, :3]) > 70
    focal = camera_path("orbit_zoom", 41, zoom=1.6)[1][:, 0]
    assert focal[20] / focal[0] == pytest.approx(1.6) and focal[-1] == pytest.approx(focal[0])
    poses, intrinsics = camera_path("dolly_zoom", 20)
    depth = (np.array([2.9, 3.2, 1.35]) - poses[:, :3, 3])[:, 1]
    assert np.ptp(intrinsics[:, 0] / depth) / intrinsics[0, 0] < 1e-9  # an object at y = 3.2 keeps its size
    with pytest.raises(ValueError, match="spiral"):
        camera_path("spiral", 3)


def test_a_planar_path_sees_one_plane_only(room: Room) -> None:
    poses, intrinsics = camera_path("planar", 12)
    corners = np.array([[0, 0, 1], [639, 0, 1], [0, 479, 1], [639, 479, 1.0]])
    for camera, (fx, fy, cx, cy) in zip(poses, intrinsics, strict=True):
        rays = (corners - [cx, cy, 0]) / [fx, fy, 1] @ camera[:3, :3].T
        hits = camera[:3, 3] - rays * (camera[1, 3] / rays[:, 1])[:, None]
        assert (rays[:, 1] < 0).all() and (hits[:, [0, 2]] > 0).all() and (hits[:, [0, 2]] < [6.0, 2.8]).all()


def test_the_moving_box_covers_its_share(room: Room) -> None:
    poses, intrinsics = camera_path("walk", 120, width=W, height=H)
    poses, intrinsics = poses[::40], intrinsics[::40]
    plain = list(render_clip(room, poses, intrinsics, W, H))
    for share in (0.1, 0.6):
        moving = list(render_clip(room, poses, intrinsics, W, H, moving_share=share))
        changed = np.mean([(a != b).any(-1).mean() for a, b in zip(plain, moving, strict=True)])
        assert 0.75 * share < changed < 1.35 * share


def test_the_same_seed_gives_the_same_room_and_another_one_does_not(room: Room) -> None:
    poses, intrinsics = camera_path("static", 2, width=W, height=H)
    first, second = render_clip(room, poses, intrinsics, W, H)
    assert np.array_equal(first, second)
    assert np.array_equal(first, render_room(Room(0), poses[0], intrinsics[0], W, H))
    assert (first != render_room(Room(1), poses[0], intrinsics[0], W, H)).mean() > 0.5
