"""One suite for every rasteriser: parity with gsplat's published semantics, closed forms, edges, how it is built."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file

from longtake.errors import LongtakeError, MissingPart
from longtake.geometry import invert_pose, pose, rotation_from_vector
from longtake.render import cpu, cuda
from longtake.render.gaussians import SH0, Gaussians
from longtake.render.rasterize import GSPLAT_1_5, GSPLAT_1_6, INRIA, PROFILES, Rasterizer, rasterize

BACKENDS = ["reference", "cpu", "gsplat"]
PARITY = {  # scene -> cameras, profiles
    "basic_sh0": (2, ["v1.5.3"]),
    "aniso_sh3_offcentre": (3, ["v1.5.3"]),
    "near_plane_sh2": (2, ["v1.5.3"]),
    "large_tiny_opacity_sh1": (2, ["v1.5.3", "v1.6"]),
    "opaque_stack_sh0": (1, ["v1.5.3", "v1.6"]),
    "depth_ties_sh0": (1, ["v1.5.3"]),
}
CASES = [
    (scene, camera, profile, mode)
    for scene, (cameras, profiles) in PARITY.items()
    for camera in range(cameras)
    for profile in profiles
    for mode in ("classic", "antialiased")
]
PARITY_PROFILES = {"v1.5.3": GSPLAT_1_5, "v1.6": GSPLAT_1_6}
EYE = np.eye(4)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "gsplat":
        try:
            installed = cuda.installed_profile()
        except MissingPart as error:
            pytest.skip(str(error))
        if not cuda.device_found():
            pytest.skip(f"{installed.name} is installed, but there is no CUDA device")
    return request.param


def scene(**fields) -> Gaussians:
    """Gaussians from plain numbers: round, of opacity 0.5 and white unless told otherwise."""
    n = len(fields["means"])
    default = {
        "scales": np.full((n, 3), 0.1),
        "quaternions": np.tile([1.0, 0, 0, 0], (n, 1)),
        "opacities": np.full(n, 0.5),
        "colours": np.ones((n, 3)),
    } | fields
    colours = np.asarray(default.pop("colours"), float)
    default["sh"] = default.get("sh", (colours[:, None] - 0.5) / SH0)
    return Gaussians(**{name: np.asarray(values, np.float32) for name, values in default.items()})


def cloud(n: int, *, seed: int = 0, degree: int = 0, log_scale: tuple[float, float] = (-4.5, -1.0)) -> Gaussians:
    """Random Gaussians about (0, 0, 4), some of them needles and some behind a camera at the origin."""
    rng = np.random.default_rng(seed)
    return scene(
        means=rng.uniform([-3, -2, -1], [3, 2, 9], (n, 3)),
        scales=np.exp(rng.uniform(*log_scale, (n, 3))),
        quaternions=rng.normal(size=(n, 4)) * 2,
        opacities=rng.uniform(0, 1, n),
        sh=rng.normal(size=(n, (degree + 1) ** 2, 3)) * 0.4,
    )


def assert_close(got, want, *, most=1e-4, all_within=1e-2, share=0.998):
    """The parity tolerance: 99.8 % of the pixels within 1e-4 in every channel (depth: relative above 1), the rest
    within 1e-2, because a splat's alpha may lie within rounding of 1/255, or a transmittance of 1e-4."""
    for name in ("rgb", "alpha", "depth"):
        a, b = getattr(got, name), want[name]
        error = np.abs(a - b) / (np.maximum(1, np.abs(b)) if name == "depth" else 1)
        error = error.reshape(*a.shape[:2], -1).max(-1)
        assert (error <= most).mean() >= share, f"{name}: {100 * (error <= most).mean():.2f} % within {most}"
        assert error.max() <= all_within, f"{name}: {error.max()}"


# ---- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, camera, profile, mode", CASES, ids=lambda v: str(v))
def test_parity(name, camera, profile, mode, backend, shared_parity):
    t = load_file(shared_parity / "gsplat" / f"{name}.safetensors")
    if backend == "gsplat" and cuda.installed_profile() != PARITY_PROFILES[profile]:
        pytest.skip(f"the installed gsplat has not the constants of {profile}")
    fields = {"means": "means", "scales": "scales", "quaternions": "quats_wxyz", "opacities": "opacities"}
    gaussians = Gaussians(**{ours: t[theirs] for ours, theirs in fields.items()}, sh=t["sh_coeffs"])
    k = t["Ks"][camera].astype(float)
    got = Rasterizer(gaussians, backend=backend, profile=PARITY_PROFILES[profile]).draw(
        np.linalg.inv(t["viewmats"][camera].astype(float)),
        [k[0, 0], k[1, 1], k[0, 2] - 0.5, k[1, 2] - 0.5],
        96,
        64,
        antialiased=mode == "antialiased",
        background=t.get("background", np.zeros(3)),
    )
    out = {key: t[f"out.{profile}.{mode}.{key}"][camera] for key in ("rgb", "alpha", "depth_expected")}
    assert_close(got, {"rgb": out["rgb"], "alpha": out["alpha"][..., 0], "depth": out["depth_expected"][..., 0]})


def test_parity_covers_every_image_set(shared_parity):
    scenes = json.loads((shared_parity / "gsplat" / "index.json").read_text())["scenes"]
    assert {name: (s["cameras"], s["profiles"]) for name, s in scenes.items()} == PARITY
    assert len(CASES) == 28


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("width, height", [(1, 1), (33, 31), (97, 70), (5, 130)])
def test_cpu_draws_as_the_reference(width, height, antialiased, profile):
    gaussians = cloud(700, degree=3, seed=width)
    camera = pose(rotation_from_vector(np.array([0.1, -0.2, 0.3])), np.array([0.3, -0.2, 0.5]))
    k = [0.8 * width, 0.9 * width, 0.31 * width, 0.66 * height]
    slow, fast = (
        Rasterizer(gaussians, backend=name, profile=profile).draw(
            camera, k, width, height, antialiased=antialiased, background=(0.1, 0.5, 0.9)
        )
        for name in ("reference", "cpu")
    )
    assert slow.median_depth is not None and fast.median_depth is not None
    assert_close(fast, {"rgb": slow.rgb, "alpha": slow.alpha, "depth": slow.depth}, share=0.998 if width > 1 else 1)
    same = np.isclose(fast.median_depth, slow.median_depth, rtol=1e-5, equal_nan=True)
    assert same.mean() >= 0.998


def test_profiles_differ_where_they_should():
    """Stacked opaque splats stop sooner with 0.999; INRIA's ends splats at 3 sigma and begins at 0.2."""
    stack = scene(means=[[0, 0, 2], [0, 0, 3], [0, 0, 0.1]], scales=np.full((3, 3), 0.4), opacities=[1, 1, 1])
    k = [20, 20, 20, 20]
    alpha = {p.name: Rasterizer(stack, backend="cpu", profile=p).draw(EYE, k, 200, 41).alpha for p in PROFILES.values()}
    far = scene(means=[[0, 0, 2], [0, 0, 3]], scales=np.full((2, 3), 0.4), opacities=[1, 1])
    without_near = Rasterizer(far, backend="cpu", profile=INRIA).draw(EYE, k, 200, 41).alpha
    np.testing.assert_array_equal(alpha["inria"], without_near)
    assert (alpha["gsplat 1.5.3"] > 0).sum() > (alpha["inria"] > 0).sum() > 0


# ---- closed forms ----------------------------------------------------------------------------------------------------


def test_a_splat_lies_where_longtakes_pixels_say(backend):
    """Pixel centres at integers: the centroid of a small splat is fx x/z + cx, at any zoom and off-centre."""
    mean = np.array([0.21, -0.13, 2.0])
    dot = scene(means=[mean], scales=[[0.01] * 3])
    yy, xx = np.mgrid[:60, :80]
    rasterizer = Rasterizer(dot, backend=backend)
    for k in ([100, 120, 40, 30], [150.5, 150.5, 22.3, 41.7]):
        alpha = rasterizer.draw(EYE, k, 80, 60).alpha.astype(float)
        x, y = k[0] * mean[0] / mean[2] + k[2], k[1] * mean[1] / mean[2] + k[3]
        assert abs((alpha * xx).sum() / alpha.sum() - x) < 0.01
        assert abs((alpha * yy).sum() / alpha.sum() - y) < 0.01


def test_blending_of_three_sheets(backend):
    """Splats so large that they are flat: colours, alpha, expected and median depth in closed form."""
    sheets = scene(
        means=[[0, 0, 4], [0, 0, 2], [0, 0, 3]],
        scales=np.full((3, 3), 50.0),
        opacities=[0.5, 0.4, 0.5],
        colours=[[1, 0, 0], [0, 1, 0], [0, 0, 2]],
    )
    got = Rasterizer(sheets, backend=backend).draw(EYE, [20, 20, 4, 3], 9, 7, background=(0.5, 0.5, 0.5))
    weight = np.array([0.4, 0.6 * 0.5, 0.3 * 0.5])  # at z = 2, 3, 4
    rgb = weight @ [[0, 1, 0], [0, 0, 2], [1, 0, 0]] + 0.15 * 0.5
    centre = np.s_[3, 4]
    np.testing.assert_allclose(got.rgb[centre], rgb, atol=1e-5)
    np.testing.assert_allclose(got.alpha[centre], 0.85, atol=1e-5)
    np.testing.assert_allclose(got.depth[centre], weight @ np.array([2, 3, 4]) / 0.85, rtol=1e-5)
    if got.median_depth is not None:
        assert got.median_depth[centre] == 3
    else:
        assert backend == "gsplat"


def test_where_nothing_is_drawn(backend):
    """Background, alpha 0, depth 0, no median; also with no Gaussian at all, and with one behind the camera."""
    for means in (np.zeros((0, 3)), [[0, 0, -2]], [[0, 0, 0.005]], [[500, 0, 1]]):
        if backend == "gsplat" and not len(means):
            continue
        got = Rasterizer(scene(means=means), backend=backend).draw(EYE, [9, 9, 3, 3], 7, 7, background=(0.25, 0.5, 2))
        np.testing.assert_array_equal(got.rgb, np.tile(np.array([0.25, 0.5, 2], np.float32), (7, 7, 1)))
        assert not got.alpha.any() and not got.depth.any()
        assert got.median_depth is None or np.isnan(got.median_depth).all()


def test_antialiasing_keeps_the_light_of_a_small_splat(backend):
    """The blur spreads a splat smaller than a pixel; the factor on opacity keeps opacity times area."""
    sigma_px = 0.2
    dot = scene(means=[[0, 0, 2]], scales=[[sigma_px / 50] * 3], opacities=[0.9])
    draw = Rasterizer(dot, backend=backend).draw
    sums = [float(draw(EYE, [100, 100, 8, 8], 17, 17, antialiased=a).alpha.sum()) for a in (False, True)]
    assert sums[1] / sums[0] == pytest.approx(sigma_px**2 / (sigma_px**2 + 0.3), rel=0.1)  # the cut-off takes a little


def test_near_and_far(backend):
    two = scene(means=[[0, 0, 1], [0, 0, 3]], scales=np.full((2, 3), 20.0))
    draw = Rasterizer(two, backend=backend).draw
    for near, far, depth in ((2, 9, 3), (0.5, 2, 1), (1, 3, 1 * 2 / 3 + 3 / 3)):
        assert draw(EYE, [9, 9, 3, 3], 7, 7, near=near, far=far).depth[3, 3] == pytest.approx(depth, rel=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_hostile_values(backend):
    """Opacity 0 and 1, needles of a million to one, splats that swallow the camera, means and scales near the end of
    float32: no exception, nothing that is not finite, and what is ordinary is drawn as without them."""
    rng = np.random.default_rng(3)
    ordinary = cloud(60, seed=5)
    n = 300
    means = np.concatenate(
        [rng.uniform(-2, 4, (n - 4, 3)), [[1e30, 1, 1e-2], [1e30, 1e30, 1e30], [0, 0, 0.0101], [-1e9, 0, 1]]]
    )
    scales = 10.0 ** rng.uniform(-12, 6, (n, 3))
    scales[-4:] = [[1e18] * 3, [1e-30] * 3, [1e18, 1e-30, 1], [1e-20, 1, 1e9]]
    wild = scene(means=means, scales=scales, quaternions=rng.normal(size=(n, 4)), opacities=rng.integers(0, 2, n))
    got = Rasterizer(wild, backend=backend).draw(EYE, [50, 60, 20, 40], 70, 45, antialiased=True)
    for values in (got.rgb, got.alpha, got.depth):
        assert np.isfinite(values).all()
    assert 0 <= got.alpha.min() and got.alpha.max() <= 1
    invisible = scene(means=means, scales=scales, opacities=np.zeros(n))
    both = Gaussians(**{f: np.concatenate([getattr(s, f) for s in (invisible, ordinary)]) for f in vars(ordinary)})
    alone, among = (Rasterizer(s, backend=backend).draw(EYE, [50, 60, 20, 40], 70, 45) for s in (ordinary, both))
    np.testing.assert_array_equal(alone.rgb, among.rgb)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_equal_depths_keep_the_order_of_the_scene(backend):
    for colours in ([[1, 0, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0]]):
        pair = scene(means=[[0, 0, 2], [0, 0, 2]], scales=np.full((2, 3), 20.0), opacities=[0.8, 0.8], colours=colours)
        np.testing.assert_allclose(
            Rasterizer(pair, backend=backend).draw(EYE, [9, 9, 3, 3], 7, 7).rgb[3, 3],
            0.8 * np.array(colours[0]) + 0.16 * np.array(colours[1]),
            atol=1e-4,
        )


# ---- many frames, any layout, any number of threads --------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_clip_is_its_frames(backend):
    """Poses and intrinsics that change from frame to frame; one prepared scene keeps nothing from frame to frame."""
    gaussians = cloud(200, seed=1)
    poses = np.stack(
        [pose(rotation_from_vector(np.array([0, 0.1 * i, 0])), np.array([0.1 * i, 0, 0])) for i in range(4)]
    )
    cameras = np.array([[40 + 10 * i, 42, 20 + i, 17] for i in range(4)], float)
    frames = list(rasterize(gaussians, poses, cameras, 45, 37, backend=backend, background=(1, 0, 0)))
    assert len(frames) == 4
    for i in (3, 1):
        alone = Rasterizer(gaussians, backend=backend).draw(poses[i], cameras[i], 45, 37, background=(1, 0, 0))
        for name in ("rgb", "alpha", "depth", "median_depth"):
            np.testing.assert_array_equal(getattr(frames[i], name), getattr(alone, name))
    (one,) = rasterize(gaussians, poses[:1], cameras[0], 45, 37, backend=backend, background=(1, 0, 0))
    np.testing.assert_array_equal(one.rgb, frames[0].rgb)


def test_layout_of_the_arrays_does_not_matter(backend):
    gaussians = cloud(150, degree=1, seed=2)
    strided = Gaussians(
        means=np.asfortranarray(gaussians.means),
        scales=np.repeat(gaussians.scales, 2, 0)[::2],
        quaternions=np.ascontiguousarray(gaussians.quaternions[:, ::-1])[:, ::-1],
        opacities=np.repeat(gaussians.opacities, 3)[::3],
        sh=np.asfortranarray(gaussians.sh),
    )
    camera = np.asfortranarray(pose(rotation_from_vector(np.array([0.1, 0.2, 0])), np.zeros(3)))
    a, b = (
        Rasterizer(g, backend=backend).draw(camera, np.array([40.0, 0, 40, 0, 20, 0, 16, 0])[::2], 41, 33)
        for g in (gaussians, strided)
    )
    np.testing.assert_array_equal(a.rgb, b.rgb)


def test_threads_do_not_change_a_pixel(monkeypatch):
    """Sorting and binning in parts keep the order: 1, 2 and 7 threads, and calls from several threads at once."""
    gaussians, k = cloud(5000, degree=1, seed=4), [90, 90, 60, 50]
    pictures = []
    for threads in ("1", "2", "7"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        rasterizer = Rasterizer(gaussians, backend="cpu")
        pictures.append(rasterizer.draw(EYE, k, 130, 100).rgb)
    with ThreadPoolExecutor(4) as pool:
        pictures += pool.map(lambda _: rasterizer.draw(EYE, k, 130, 100).rgb, range(8))
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_a_large_world_does_not_blur():
    """Cameras and scene a million units from the origin of a map grid: drawn as near it."""
    offset = np.array([2.0**20, -(2.0**20), 2.0**19])
    rng = np.random.default_rng(6)
    means = np.round(rng.uniform([-2, -1, 2], [2, 1, 6], (200, 3)) * 4) / 4  # exact in float32 also far away
    here = scene(means=means, scales=np.full((200, 3), 0.2), colours=rng.random((200, 3)))
    there = scene(means=means + offset, scales=np.full((200, 3), 0.2), colours=rng.random((200, 3)))
    there = Gaussians(**{**vars(there), "sh": here.sh})
    k = [60, 60, 40, 30]
    near = Rasterizer(here, backend="cpu").draw(EYE, k, 81, 61).rgb
    far = Rasterizer(there, backend="cpu").draw(pose(np.eye(3), offset), k, 81, 61).rgb
    np.testing.assert_allclose(far, near, atol=1e-4)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"world_from_cam": np.zeros((2, 4, 4))}, r"one pose \[4, 4\].*\[2, 4, 4\]"),
        ({"world_from_cam": 2 * np.eye(4)}, "no rigid motion"),
        ({"world_from_cam": np.full((4, 4), np.nan)}, "no rigid motion"),
        ({"intrinsics": [0, 9, 3, 3]}, "positive focal lengths"),
        ({"width": 0}, "0 x 7 pixels"),
        ({"height": 40000}, "each side must be 1 to 32767"),
        ({"near": 0}, "near 0"),
        ({"far": 0.001}, "far 0.001"),
        ({"background": (0, np.inf, 0)}, "three finite numbers"),
    ],
)
def test_refusals(change, words):
    arguments = {"world_from_cam": EYE, "intrinsics": [9, 9, 3, 3], "width": 7, "height": 7} | change
    with pytest.raises(LongtakeError, match=words):
        Rasterizer(cloud(3), backend="reference").draw(**arguments)


def test_refusals_of_a_path_and_a_name():
    with pytest.raises(LongtakeError, match=r"poses \[C, 4, 4\]"):
        rasterize(cloud(3), EYE, [9, 9, 3, 3], 7, 7, backend="reference")
    with pytest.raises(LongtakeError, match="'opengl' is none of"):
        Rasterizer(cloud(3), backend="opengl")  # pyright: ignore[reportArgumentType]


def test_gsplat_is_not_had_here():
    if cuda.device_found():
        pytest.skip("there is a CUDA device")
    with pytest.raises(MissingPart, match="gsplat"):
        Rasterizer(cloud(3), backend="gsplat")


# ---- how the C++ part is built ---------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu.library.cache_clear()
    yield tmp_path / "cache" / "longtake"
    cpu.library.cache_clear()


def test_compiled_once_and_kept(empty_cache, monkeypatch):
    cpu.library()
    (made,) = empty_cache.iterdir()
    runs = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: runs.append(command) or real(command, **rest))
    cpu.library.cache_clear()
    cpu.library()
    assert [made] == list(empty_cache.iterdir())
    assert all("--version" in run for run in runs)


def test_without_a_compiler_the_reference_serves(empty_cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPart, match=r"apt-get install g\+\+, or pip install ziglang"):
        Rasterizer(cloud(3), backend="cpu")
    with pytest.warns(UserWarning, match="slow reference: no C"):
        assert Rasterizer(cloud(3)).backend == "reference"


def test_a_compiler_that_fails_is_quoted(empty_cache, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no room' if '-o' in sys.argv else 0)\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(MissingPart, match=r"could not compile(.|\n)*no room"):
        Rasterizer(cloud(3), backend="cpu")
    assert list(empty_cache.iterdir()) == []
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with pytest.raises(MissingPart, match="cannot be run"):
        Rasterizer(cloud(3), backend="cpu")


def test_ziglang_will_do(empty_cache, monkeypatch):
    """The compiler that pip can install, where the system has none; it needs no C++ library."""
    pytest.importorskip("ziglang", reason="pip install ziglang")
    picture = Rasterizer(cloud(50), backend="cpu").draw(EYE, [30, 30, 20, 15], 41, 31)
    cpu.library.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(cpu.shutil, "which", lambda name: None)
    again = Rasterizer(cloud(50), backend="cpu").draw(EYE, [30, 30, 20, 15], 41, 31)
    assert len(list(empty_cache.glob("*.so"))) == 2
    np.testing.assert_allclose(again.rgb, picture.rgb, atol=1e-5)


def test_auto_takes_the_fastest_there_is():
    assert Rasterizer(cloud(3)).backend == ("gsplat" if cuda.device_found() and _gsplat_installed() else "cpu")


def _gsplat_installed() -> bool:
    try:
        cuda.installed_profile()
    except MissingPart:
        return False
    return True


def test_inverse_of_the_pose_is_taken_once():
    """A camera moved by a pose sees what the camera at the origin sees of the scene moved back."""
    motion = pose(rotation_from_vector(np.array([0.2, 0.4, -0.1])), np.array([0.5, -0.3, 0.2]))
    gaussians = cloud(100, seed=8)
    back = invert_pose(motion)
    moved = scene(
        means=gaussians.means @ back[:3, :3].T + back[:3, 3],
        scales=np.full((100, 3), 0.1),
        sh=gaussians.sh,
        opacities=gaussians.opacities,
    )
    gaussians = Gaussians(**{**vars(gaussians), "scales": moved.scales, "quaternions": moved.quaternions})
    k = [40, 40, 20, 15]
    a, b = (
        Rasterizer(gaussians, backend="cpu").draw(motion, k, 41, 31),
        Rasterizer(moved, backend="cpu").draw(EYE, k, 41, 31),
    )
    np.testing.assert_allclose(a.rgb, b.rgb, atol=1e-3)
