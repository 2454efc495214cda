"""Depth for a clip: joins, loops, memory, refusals, and the networks themselves on small random weights.

`Known` is no network: its answers are known geometry, moved and scaled at random window by window, with controlled
errors. What is proven with it is the geometry around a network, not a network's accuracy.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares

from longtake.annotate.depth import (
    DepthConfig,
    DepthTrack,
    FrameDepth,
    Precision,
    Similarity,
    SingleDepth,
    SingleGeometry,
    WindowGeometry,
    clip_depth,
    close_loops,
    metric_disagreement,
    moge2_backend,
    pi3x_backend,
    pi3x_bytes,
    pi3x_frames,
    robust_similarity,
    shrunk,
    single_depths,
)
from longtake.geometry import angle_between_deg, invert_pose, pose, rotation_from_vector
from longtake.model import dinov2
from longtake.model.moge2 import config as moge2_config
from longtake.model.moge2.infer import infer
from longtake.model.moge2.network import MoGe2
from longtake.model.pi3x.config import PI3X
from longtake.model.pi3x.load import load
from longtake.model.pi3x.network import Pi3X
from longtake.model.tensor_memory import peak_bytes
from longtake.records import LongtakeError, Rejected

from ..model.test_pi3x import TINY

HEIGHT, WIDTH = 28, 42
FOCAL = 30.0
CONFIG = DepthConfig(length=8, overlap=3)
UNEDGED = DepthConfig(min_confidence=0.0, edge_jump=np.inf)  # random weights see edges everywhere
IDENTITY = Similarity(1.0, np.eye(3), np.zeros(3))


def picture(frame: int) -> NDArray[np.uint8]:
    """A picture that says which frame it is."""
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    out[0, 0, :2] = divmod(frame, 256)
    return out


def path(frames: int, turn_deg: float = 3.0) -> NDArray[np.float64]:
    """Cameras [T, 4, 4] that walk a circle, the first at the origin, in a world at an angle."""
    angle = np.radians(turn_deg) * np.arange(frames)
    rotation = rotation_from_vector(np.stack([0.1 * np.sin(angle), angle, 0 * angle], -1))
    place = np.stack([3 * np.sin(angle), 0.2 * np.sin(2 * angle), 3 - 3 * np.cos(angle)], -1)
    return pose(rotation, place)


def depth_map(frame: int) -> NDArray[np.float64]:
    """Smooth, 3.4 to 6.6 deep; every frame its own."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return 5 + np.sin(u / 25 + 0.3 * frame) + 0.6 * np.cos(v / 20 - 0.2 * frame)


def rays() -> NDArray[np.float64]:
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([(u - (WIDTH - 1) / 2) / FOCAL, (v - (HEIGHT - 1) / 2) / FOCAL, np.ones_like(u)], -1)


def random_similarity(rng: np.random.Generator) -> Similarity:
    return Similarity(float(np.exp(rng.normal(0, 0.3))), rotation_from_vector(rng.normal(0, 1, 3)), rng.normal(0, 5, 3))


@dataclass
class Known:
    """Answers from known geometry (see the top of this module)."""

    cameras: NDArray[np.float64]
    noise: float = 0.0  # relative, of each pixel's depth
    bad: float = 0.0  # share of every picture's rows, their depth wrong by a factor of the window's own, confidently
    drift: float = 0.0  # log scale that each frame's own step grows by; two frames far apart show no drift
    seed: int = 0
    requests: list[list[int]] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def __call__(self, pictures: NDArray[np.uint8]) -> WindowGeometry:
        frames = [256 * int(p[0, 0, 0]) + int(p[0, 0, 1]) for p in pictures]
        rng = np.random.default_rng([self.seed, *frames])
        self.requests.append(frames)
        move = random_similarity(rng)
        self.scales.append(move.scale)
        near = np.ptp(frames) < 2 * len(frames)
        growth = np.exp(self.drift * np.array(frames) * near)
        cameras = drifted(self.cameras, self.drift)[frames] if near else self.cameras[frames]
        depth = np.stack([depth_map(f) for f in frames]) * growth[:, None, None] * move.scale
        depth *= 1 + self.noise * rng.standard_normal(depth.shape)
        rows = round(self.bad * HEIGHT)
        if rows:
            depth[:, 9 : 9 + rows] *= rng.choice([0.4, 0.6, 1.5, 2.5]) * rng.uniform(0.9, 1.1)
        return WindowGeometry(
            cam_points=(rays() * depth[..., None]).astype(np.float32),
            world_from_cam=move.moved_pose(cameras),
            confidence=rng.uniform(0.3, 1, depth.shape).astype(np.float32),
        )


def drifted(cameras: NDArray[np.float64], drift: float) -> NDArray[np.float64]:
    """The same walk, its steps growing by exp(drift) each."""
    out = [cameras[0]]
    for t, step in enumerate(invert_pose(cameras[:-1]) @ cameras[1:]):
        out.append(out[-1] @ pose(step[:3, :3], step[:3, 3] * np.exp(drift * t)))
    return np.stack(out)


def run(
    backend, frames: int, config: DepthConfig = CONFIG, loops: Sequence[tuple[int, int]] = ()
) -> tuple[list[FrameDepth], DepthTrack]:
    *depths, track = clip_depth((picture(i) for i in range(frames)), backend, config, loops=loops)
    assert isinstance(track, DepthTrack), track
    assert [d.index for d in depths if isinstance(d, FrameDepth)] == list(range(frames))
    return [d for d in depths if isinstance(d, FrameDepth)], track


def errors(cameras, depths: list[FrameDepth], track: DepthTrack, scale: float) -> tuple[float, float, float]:
    """Largest errors of depth (relative), place (in depths of 5) and rotation (degrees), given the one scale."""
    want = invert_pose(cameras[0]) @ cameras
    got = track.world_from_cam
    ratio = [np.nanmedian(d.depth * track.correction[d.index] / depth_map(d.index)) / scale - 1 for d in depths]
    place = np.linalg.norm(got[:, :3, 3] / scale - want[:, :3, 3], axis=1).max() / 5
    return np.abs(ratio).max(), place, angle_between_deg(got[:, :3, :3], want[:, :3, :3]).max()


# ---- joins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 13, 14, 40])  # within a window, one full, one frame more, and so on
def test_windows_join_to_the_truth_up_to_one_similarity(frames):
    cameras = path(frames)
    backend = Known(cameras)
    depths, track = run(backend, frames)
    # float32 points
    assert max(errors(cameras, depths, track, backend.scales[0])) < 1e-5
    for d in depths:
        np.testing.assert_allclose(d.depth, depth_map(d.index) * backend.scales[0], rtol=1e-5)
    np.testing.assert_allclose(depths[-1].focal_px, FOCAL, rtol=1e-5)
    np.testing.assert_allclose(track.window_scale, backend.scales[0] / np.array(backend.scales), rtol=1e-5)
    assert (track.correction == 1).all()
    rotation = track.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, 1, 2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-9
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_third_of_wrong_pixels_do_not_bend_the_join(seed):
    cameras = path(33)
    backend = Known(cameras, noise=0.001, bad=0.3, seed=seed)
    depths, track = run(backend, 33)
    assert max(errors(cameras, depths, track, backend.scales[0])[1:]) < 0.1
    # six joins, and the median depth of a frame of which 30 % are wrong
    ratio = np.array(track.window_scale) * backend.scales / backend.scales[0]
    assert np.abs(np.log(ratio)).max() < 3e-3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.45])
def test_robust_similarity_ignores_scattered_outliers(share):
    rng = np.random.default_rng(1)
    truth = random_similarity(rng)
    source = rng.normal([0, 0, 6], 2, (3000, 3))
    target, depth = truth.moved(source), np.full(3000, 6 * truth.scale)
    target += rng.normal(0, 0.01, target.shape) * depth[:, None]
    wrong = rng.random(3000) < share
    target[wrong] += rng.normal(3, 5, (wrong.sum(), 3)) * truth.scale
    start = Similarity(truth.scale * 1.2, truth.rotation @ rotation_from_vector(np.full(3, 0.1)), truth.translation)
    found = robust_similarity(source, target, np.ones(3000), depth, start)
    assert found is not None
    # 3000 points of standard deviation 2, relative noise 1 % of 6: 0.06 / 2 / sqrt(3000 / 3 of them) is 1e-3
    assert abs(np.log(found[0].scale / truth.scale)) < 3e-3
    assert angle_between_deg(found[0].rotation, truth.rotation) < 0.2
    assert share > 0 or found[1] == pytest.approx(0.01, rel=0.1)


def test_pixels_count_by_their_confidence():
    rng = np.random.default_rng(2)
    source = rng.normal(0, 1, (400, 3))
    target = source.copy()
    target[:200] *= 1.02  # two answers: near enough to each other that none is an outlier
    depth = np.full(400, 5.0)
    scales = []
    for weight in (np.repeat([1.0, 0.01], 200), np.repeat([0.01, 1.0], 200)):
        found = robust_similarity(source, target, weight, depth, IDENTITY)
        assert found is not None
        scales.append(found[0].scale)
    np.testing.assert_allclose(scales, [1.02, 1.0], atol=2e-3)


# ---- similarities and loops --------------------------------------------------------------------------------------


def test_similarities_obey_the_laws_of_their_group():
    rng = np.random.default_rng(3)
    for _ in range(10):
        a, b = random_similarity(rng), random_similarity(rng)
        v, x = rng.normal(0, 0.7, 7), rng.normal(0, 1, (4, 3))
        np.testing.assert_allclose((a @ b).moved(x), a.moved(b.moved(x)), atol=1e-12)
        np.testing.assert_allclose(a.inverse().moved(a.moved(x)), x, atol=1e-12)
        np.testing.assert_allclose(Similarity.exp(v).log(), v, atol=1e-12)
        np.testing.assert_allclose(
            (a @ Similarity.exp(v) @ a.inverse()).moved(x), Similarity.exp(a.adjoint() @ v).moved(x), atol=1e-10
        )


def chain_of(joins: list[Similarity]) -> list[Similarity]:
    out = [IDENTITY]
    for join in joins:
        out.append(out[-1] @ join)
    return out


def small(rng: np.random.Generator, size: float) -> Similarity:
    return Similarity.exp(rng.normal(0, size, 7))


def assert_same(a: list[Similarity], b: list[Similarity], tolerance: float) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose((x.inverse() @ y).log(), 0, atol=tolerance)


def test_without_loops_or_with_loops_that_agree_the_chain_stays():
    rng = np.random.default_rng(4)
    joins, depths = [random_similarity(rng) for _ in range(9)], rng.uniform(1, 9, 10)
    chain = chain_of(joins)
    for x, y in zip(close_loops(joins, [], depths), chain, strict=True):
        assert x.scale == y.scale and (x.rotation == y.rotation).all() and (x.translation == y.translation).all()
    agreeing = [(a, b, chain[a].inverse() @ chain[b]) for a, b in ((0, 9), (2, 7))]
    assert_same(close_loops(joins, agreeing, depths), chain, 1e-9)


def test_loops_are_shared_out_by_least_squares():
    """Against a general solver on the cost that the module states."""
    rng = np.random.default_rng(5)
    joins, depths = [random_similarity(rng) for _ in range(4)], rng.uniform(1, 4, 5)
    chain = chain_of(joins)
    loops = [(a, b, chain[a].inverse() @ chain[b] @ small(rng, 0.05)) for a, b in ((0, 4), (1, 3))]
    unit = np.array([[d, d, d, 1, 1, 1, 1] for d in depths])

    def moved(y: NDArray) -> list[Similarity]:
        return chain_of([z @ Similarity.exp(v) for z, v in zip(joins, y.reshape(4, 7) * unit[1:], strict=True)])

    def residual(y: NDArray) -> NDArray:
        now = moved(y)
        gaps = [(m.inverse() @ now[a].inverse() @ now[b]).log() / unit[b] / np.sqrt(2) for a, b, m in loops]
        return np.concatenate([y, *gaps])

    best = least_squares(residual, np.zeros(28), xtol=1e-12, ftol=1e-14, gtol=1e-12)
    # the Jacobian leaves out fourth-order terms of a gap of about 0.1
    assert_same(close_loops(joins, loops, depths), moved(best.x), 1e-5)


def test_loops_close_the_drift_of_scale():
    cameras = path(61, turn_deg=6)  # a full turn: the last frame stands where the first stood
    backend = Known(cameras, drift=0.008)
    depths, chain = run(backend, 61)
    open_depth, open_place, _ = errors(cameras, depths, chain, backend.scales[0])
    assert open_depth > 0.5  # exp(0.008 * 60) - 1: the chain alone follows the drift
    loops = [(0, 60), (2, 57), (1, 59)]
    backend = Known(cameras, drift=0.008)
    depths, track = run(backend, 61, loops=loops)
    closed_depth, closed_place, _ = errors(cameras, depths, track, backend.scales[0])
    assert sorted(track.loops_closed) == sorted(loops) and not track.loops_refused
    assert closed_place < open_place / 3
    last = np.nanmedian(depths[60].depth * track.correction[60] / depth_map(60)) / backend.scales[0]
    assert abs(np.log(last)) < 0.05  # of 0.48
    assert closed_depth < open_depth / 3


def test_a_loop_that_asks_for_too_much_is_refused():
    cameras = path(60)
    truth = run(Known(cameras), 60)[1]

    class Wrong(Known):
        def __call__(self, pictures):
            found = super().__call__(pictures)
            if len(pictures) != 2:
                return found
            flip = np.stack([np.eye(4), pose(rotation_from_vector(np.array([0, 2.5, 0])), np.array([80.0, 0, 0]))])
            return replace(found, world_from_cam=found.world_from_cam @ flip)

    track = run(Wrong(cameras), 60, loops=[(0, 30), (3, 5)])[1]
    assert track.loops_refused == ((0, 30),)
    assert not track.loops_closed  # frames 3 and 5 share a window: nothing to tie
    np.testing.assert_array_equal(track.world_from_cam, truth.world_from_cam)


@pytest.mark.parametrize("loop", [(5, 5), (7, 2), (-1, 3), (2, 99)])
def test_a_loop_must_be_two_frames_of_the_clip(loop):
    with pytest.raises(LongtakeError, match="loop"):
        run(Known(path(20)), 20, loops=[loop])


# ---- memory ------------------------------------------------------------------------------------------------------


def test_frames_stream_through():
    """Never more than a window of pictures is held, nor a window's maps while the next is computed."""
    alive, most, given = weakref.WeakSet(), 0, 0
    maps: list[weakref.ref] = []
    backend = Known(path(30))

    class Picture(np.ndarray):
        pass  # can be in a set, by identity

    Picture.__hash__ = object.__hash__  # type: ignore[method-assign]
    Picture.__eq__ = object.__eq__  # type: ignore[method-assign]

    def pictures() -> Iterator[NDArray[np.uint8]]:
        nonlocal most, given
        for i in range(30):
            given += 1
            yield tracked(i)
            most = max(most, len(alive))

    def tracked(i: int) -> NDArray[np.uint8]:
        out = picture(i).view(Picture)
        alive.add(out)
        return out

    def reconstruct(stack: NDArray[np.uint8]) -> WindowGeometry:
        assert not any(ref() is not None for ref in maps)
        found = backend(stack)
        maps.extend([weakref.ref(found.cam_points), weakref.ref(found.confidence)])
        return found

    count = 0
    for count, item in enumerate(clip_depth(pictures(), reconstruct, CONFIG), start=1):
        assert isinstance(item, DepthTrack) or given < count + CONFIG.length
    assert count == 31
    assert most <= CONFIG.length
    assert max(len(frames) for frames in backend.requests) <= CONFIG.length


@pytest.mark.parametrize(
    "size, frames, precision",
    [
        ((672, 378), 2, "bfloat16"),  # the maps of one frame decide
        ((672, 378), 64, "bfloat16"),  # the window decides
        ((224, 224), 64, "float32"),
    ],
)
def test_prediction_is_what_the_network_holds(size, frames, precision: Precision):
    """Weights apart, which are a number of parameters: the published widths with few blocks, as all hold the same."""
    width, height = size
    config = replace(PI3X, encoder_depth=1, decoder_depth=4, pose_blocks=(1,), head_depth=1)
    weights = 0

    def build() -> Pi3X:
        nonlocal weights
        net = Pi3X(config, multimodal=False)
        weights = sum(p.nbytes for p in net.parameters())
        return net

    def run(net: Pi3X) -> object:
        return net(torch.zeros(1, frames, 3, height, width))

    held = peak_bytes(build, run, precision=getattr(torch, precision)) - weights
    predicted = pi3x_bytes(width, height, frames, precision=precision, multimodal=False) - 4 * 992_465_329
    assert held <= predicted <= 1.3 * held  # tokens and maps, which are not all held at once, are added up


@pytest.mark.parametrize("width, height, frames, mib", [(224, 224, 4096, 47755), (504, 336, 1024, 40632)])
def test_prediction_is_near_the_published_figures(width, height, frames, mib):
    """https://github.com/yyfz/Pi3: peak MB in bfloat16, where the window decides and not the maps, of 64 frames there.

    Ours is above by up to 6 %, of which the pictures in float32, held throughout, are 5 %.
    """
    got = pi3x_bytes(width, height, frames, precision="bfloat16", multimodal=False) / 2**20
    assert mib <= got <= 1.06 * mib


def test_prediction_grows_with_all_it_depends_on_and_its_inverse_fits():
    sizes = [(14 * k, 14 * k) for k in range(4, 60, 5)]
    for size in sizes:
        for multimodal in (False, True):
            low, high = (
                [pi3x_bytes(*size, n, precision=p, multimodal=multimodal) for n in (1, 2, 16, 300)]
                for p in ("bfloat16", "float32")
            )
            assert low == sorted(set(low)) and all(a < b for a, b in zip(low, high, strict=True))
            for vram in (9 * 2**30, 24 * 2**30, 24 * 2**30 + 1, high[3]):
                n = pi3x_frames(*size, vram, precision="float32", multimodal=multimodal)
                assert pi3x_bytes(*size, n, precision="float32", multimodal=multimodal) <= vram
                assert pi3x_bytes(*size, n + 1, precision="float32", multimodal=multimodal) > vram
    one = [pi3x_bytes(*size, 1, precision="bfloat16", multimodal=False) for size in sizes]
    assert one == sorted(set(one))
    with pytest.raises(LongtakeError, match=r"4\.0 GiB for two frames of 672 x 378 .* 2\.0 GiB allowed"):
        pi3x_frames(672, 378, 2 * 2**30, precision="bfloat16", multimodal=False)


# ---- refusals ----------------------------------------------------------------------------------------------------


def no_depth(found: WindowGeometry) -> WindowGeometry:
    return replace(found, cam_points=np.full_like(found.cam_points, np.nan))


def behind(found: WindowGeometry) -> WindowGeometry:
    return replace(found, cam_points=-found.cam_points)


def infinite_pose(found: WindowGeometry) -> WindowGeometry:
    return replace(found, world_from_cam=np.full_like(found.world_from_cam, np.inf))


def scaled_rotation(found: WindowGeometry) -> WindowGeometry:
    return replace(found, world_from_cam=found.world_from_cam @ np.diag([0.5, 0.5, 0.5, 1]))


def mirrored(found: WindowGeometry) -> WindowGeometry:
    return replace(found, world_from_cam=found.world_from_cam @ np.diag([1, 1, -1, 1]))


def logits(found: WindowGeometry) -> WindowGeometry:
    return replace(found, confidence=4 * found.confidence)


def nan_confidence(found: WindowGeometry) -> WindowGeometry:
    return replace(found, confidence=found.confidence * np.nan)


def unsure(found: WindowGeometry) -> WindowGeometry:
    return replace(found, confidence=0 * found.confidence)


def cropped(found: WindowGeometry) -> WindowGeometry:
    return replace(found, cam_points=found.cam_points[:, 1:])


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (no_depth, "no_depth", r"frames 5 to 12: 100% .* not finite"),
        (behind, "no_depth", "not in front of the camera"),
        (infinite_pose, "pose_not_finite", "not finite"),
        (scaled_rotation, "pose_not_rigid", r"scales by 0\.5"),
        (mirrored, "pose_not_rigid", "scales by -1"),
        (logits, "confidence_range", "sigmoid"),
        (nan_confidence, "confidence_range", "sigmoid"),
        (unsure, "no_confidence", "confident of no pixel"),
        (cropped, "depth_shape", r"cam_points \[8, 27, 42, 3\], not \[8, 28, 42, 3\]"),
    ],
)
def test_what_a_network_may_not_return(spoil, reason, words):
    """The second window is spoilt: what the first gave stays given, then the stream ends."""
    backend = Known(path(40))
    *depths, last = clip_depth(
        (picture(i) for i in range(40)),
        lambda stack: spoil(backend(stack)) if backend.requests else backend(stack),
        CONFIG,
    )
    assert isinstance(last, Rejected) and last.reason == reason
    assert re.search(words, last.message), last.message
    assert len(depths) == CONFIG.length


def test_unknown_points_are_left_out():
    cameras = path(20)
    backend = Known(cameras)

    def holes(stack: NDArray[np.uint8]) -> WindowGeometry:
        found = backend(stack)
        found.cam_points[:, :9] = np.nan
        found.cam_points[:, 9:11, :, 2] *= -1
        return found

    depths, track = run(holes, 20)
    assert max(errors(cameras, depths, track, backend.scales[0])) < 1e-5
    for d in depths:
        assert np.isnan(d.depth[:11]).all() and (d.confidence[:11] == 0).all()
        assert np.isfinite(d.depth[11:]).all()
        np.testing.assert_allclose(d.focal_px, FOCAL, rtol=1e-5)


def test_the_rim_of_a_thing_is_no_surface():
    """Where depth jumps, points lie between two things, and no window is joined by them."""
    backend = Known(path(3))

    def box(stack: NDArray[np.uint8]) -> WindowGeometry:
        found = backend(stack)
        found.cam_points[:, 10:18, 12:30] *= 0.5
        return found

    depths, _ = run(box, 3)
    rim = np.zeros((HEIGHT, WIDTH), bool)
    rim[9:19, 11:31] = True
    rim[11:17, 13:29] = False
    for d in depths:
        assert (d.confidence[rim] == 0).all()
        assert (d.confidence[~rim] > 0).mean() > 0.85
        assert np.isfinite(d.depth).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, k: replace(f, cam_points=f.cam_points * np.float32(30**k)), "times as large"),
        (lambda f, k: replace(f, confidence=np.where(np.arange(WIDTH) % 20 == k, f.confidence, 0)), "not of 100"),
        (lambda f, k: replace(f, world_from_cam=f.world_from_cam[:: -1 if k else 1]), "differ by"),
        (lambda f, k: replace(f, cam_points=f.cam_points * np.array([1e-8, 1e-8, 1], np.float32)), "on a line"),
    ],
)
def test_windows_that_cannot_be_joined(change, words):
    backend = Known(path(20, turn_deg=20 if words == "differ by" else 0))
    config = replace(CONFIG, max_spread=1e9) if words == "times as large" else CONFIG
    *_, last = clip_depth(
        (picture(i) for i in range(20)), lambda stack: change(backend(stack), len(backend.requests) - 1), config
    )
    assert isinstance(last, Rejected) and last.reason == "windows_disagree"
    assert words in last.message and "frames 5 to 7" in last.message


def test_pictures_of_two_sizes_and_no_pictures():
    [last] = clip_depth([picture(0), picture(1)[1:]], Known(path(2)), CONFIG)
    assert isinstance(last, Rejected) and last.reason == "picture_shape"
    [last] = clip_depth([], Known(path(2)), CONFIG)
    assert isinstance(last, Rejected) and last.reason == "no_frames"
    with pytest.raises(LongtakeError, match="an overlap of 6 does not fit windows of 6 frames"):
        DepthConfig(length=6, overlap=6)


def test_two_metric_scales_ten_times_apart():
    for factor in (0.09, 11.0):
        found = metric_disagreement(np.array([factor, factor * 1.1, np.nan, 1.0, factor]))
        assert found is not None and found.reason == "metric_disagreement" and f"{factor:.3g}"[:3] in found.message
    assert metric_disagreement(np.array([0.11, 9.0, 3.0, 40.0, np.nan])) is None
    assert metric_disagreement(np.array([np.nan])) is None


# ---- one frame at a time -----------------------------------------------------------------------------------------


def single(stack: NDArray[np.uint8]) -> SingleGeometry:
    frames = [int(p[0, 0, 1]) for p in stack]
    depth = np.stack([depth_map(f) for f in frames]).astype(np.float32)
    depth[:, 0] = np.inf
    return SingleGeometry(depth=depth, focal_widths=np.array([1.0 + f for f in frames]))


@pytest.mark.parametrize("batch", [1, 4, 20])
def test_single_frames_come_in_order_whatever_the_batch(batch):
    found = list(single_depths((picture(i) for i in range(10)), single, batch=batch))
    assert len(found) == 10
    for i, item in enumerate(found):
        assert isinstance(item, SingleDepth) and item.index == i and item.focal_widths == 1 + i
        assert np.isnan(item.depth[0]).all()
        np.testing.assert_array_equal(item.depth[1:], depth_map(i).astype(np.float32)[1:])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: replace(f, depth=f.depth[0]), "depth_shape"),
        (lambda f: replace(f, focal_widths=f.focal_widths[:1]), "depth_shape"),
        (lambda f: replace(f, depth=-f.depth), "depth_negative"),
        (lambda f: replace(f, focal_widths=f.focal_widths * np.nan), "focal_not_positive"),
    ],
)
def test_what_a_single_frame_network_may_not_return(spoil, reason):
    [last] = single_depths((picture(i) for i in range(3)), lambda stack: spoil(single(stack)))
    assert isinstance(last, Rejected) and last.reason == reason and last.message.startswith("frames 0 to 1: ")


# ---- the networks, on small random weights -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def net(shared_parity) -> Pi3X:
    return load(shared_parity / "pi3x" / "weights_tiny.safetensors", config=TINY, multimodal=False, device="cpu")


def noise(frames: int, height: int = 60, width: int = 90) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8))


def test_pi3x_in_one_window_is_one_pass(net):
    pictures = list(shrunk(noise(5), pixel_limit=6000))
    height, width = pictures[0].shape[:2]
    assert height % 14 == width % 14 == 0 and height * width <= 6000
    *depths, track = clip_depth(pictures, pi3x_backend(net, precision="float32"), UNEDGED)
    assert isinstance(track, DepthTrack)
    with torch.inference_mode():
        want = net(torch.from_numpy(np.stack(pictures)).movedim(-1, -3)[None].float() / 255)
    for i, item in enumerate(depths):
        assert isinstance(item, FrameDepth)
        np.testing.assert_array_equal(item.depth, want.cam_points[0, i, ..., 2])
        np.testing.assert_allclose(item.confidence, want.confidence_logit[0, i].sigmoid(), rtol=1e-6)
    poses = want.world_from_cam[0].double().numpy()
    np.testing.assert_allclose(track.world_from_cam, invert_pose(poses[0]) @ poses, atol=1e-5 * np.abs(poses).max())


def test_pi3x_in_windows(net):
    """Random weights see no scene, so the windows do not agree; the joins must hold all the same."""
    pictures = list(shrunk(noise(7), pixel_limit=3000))
    config = replace(UNEDGED, length=4, overlap=2, max_spread=1e9)
    backend = pi3x_backend(net, precision="float32")
    *depths, track = clip_depth(pictures, backend, config, loops=[(1, 6)])
    assert isinstance(track, DepthTrack), track
    assert len(depths) == len(track.world_from_cam) == 7
    assert track.window.tolist() == [0] * 4 + [1] * 2 + [2]
    assert np.isfinite(track.world_from_cam).all()
    np.testing.assert_allclose(np.linalg.det(track.world_from_cam[:, :3, :3]), 1, rtol=1e-9)
    assert len(track.loops_closed) + len(track.loops_refused) == 1


def test_moge2_in_batches_is_one_by_one(monkeypatch):
    """Any weights will do: seeded, with every head that matters."""
    encoder = dinov2.DinoV2Config(channels=3, width=32, depth=2, heads=2, grid=5, registers=0, mask_token=True)
    monkeypatch.setitem(moge2_config.BACKBONES, "dinov2_tiny14", encoder)
    stack = {
        "dim_res_blocks": [32, 16],
        "num_res_blocks": [0, 1],
        "res_block_in_norm": "none",
        "res_block_hidden_norm": "none",
        "resamplers": ["conv_transpose"],
    }
    heads = {name: {**stack, "dim_in": [32, 16], "dim_out": [None, n]} for name, n in (("points", 3), ("mask", 1))}
    stated = {
        "encoder": {"backbone": "dinov2_tiny14", "intermediate_layers": [0, 1], "dim_out": 32},
        "neck": {**stack, "dim_in": [34, 2], "dim_out": None},
        "points_head": heads["points"],
        "mask_head": heads["mask"],
        "scale_head": {"dims": [32, 16, 1]},
        "remap_output": "exp",
        "num_tokens_range": [20, 60],
    }
    torch.manual_seed(0)
    model = MoGe2(moge2_config.parse_config(stated)).eval()
    pictures = noise(5, height=42, width=70)
    found = list(single_depths(pictures, moge2_backend(model, precision="float32", size=(35, 21)), batch=2))
    assert len(found) == 5
    for item, source in zip(found, pictures, strict=True):
        assert isinstance(item, SingleDepth) and item.depth.shape == (21, 35)
        want = infer(model, torch.from_numpy(source).movedim(-1, 0).float() / 255)
        every_other = torch.nn.functional.interpolate(want.depth[None, None], (21, 35), mode="nearest-exact")[0, 0]
        expected = torch.where(every_other.isfinite(), every_other, torch.nan)
        # sums in another order
        np.testing.assert_allclose(item.depth, expected, rtol=1e-4)
        assert item.focal_widths == pytest.approx(float(want.intrinsics[0, 0]), rel=1e-4)
