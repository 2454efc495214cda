"""Training of splats without a GPU: the loop over a dense renderer in PyTorch, its schedules, checkpoints and hooks."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from longtake.errors import BadMedia, LongtakeError, MissingPart
from longtake.geometry import invert_pose
from longtake.render import fit as fitting
from longtake.render.fit import FitConfig, Training, first_params, fit, psnr, split, ssim
from longtake.render.fit_gsplat import check_gpu, gsplat_densify, gsplat_rasterize
from longtake.render.gaussians import SH0, Gaussians
from longtake.render.harmonics import sh_basis
from longtake.render.rasterize import BLUR, CUTOFF, rasterize
from longtake.render.room import look_at
from longtake.render.views import Points, Views, colmap_points, depth_points, random_points

WIDTH, HEIGHT = 48, 32
SHORT = FitConfig(steps=24, save_every=8, sh_degree=1)


def dense(params, camera, sh_degree):
    """`Rasterize` in plain PyTorch: every Gaussian at every pixel, as section by section `reference.py` does it."""
    r, t = camera.cam_from_world[:3, :3], camera.cam_from_world[:3, 3]
    p = params["means"] @ r.T + t
    z = p[:, 2].clamp(min=fitting.NEAR)
    f, centre = camera.k.diagonal()[:2], camera.k[:2, 2]
    size = torch.tensor([camera.width, camera.height])
    slope = p[:, :2] / z[:, None]
    means2d = (f * slope + centre)[None]
    a = torch.minimum(torch.maximum(slope, (-centre - 0.15 * size) / f), (size - centre + 0.15 * size) / f)
    jacobian = torch.cat([torch.eye(2).expand(len(z), 2, 2), -a[..., None]], 2) * (f / z[:, None])[..., None]
    w, x, y, q = torch.nn.functional.normalize(params["quats"], dim=1).T
    rows = (1 - 2 * (y * y + q * q), 2 * (x * y - w * q), 2 * (x * q + w * y))
    rows += (2 * (x * y + w * q), 1 - 2 * (x * x + q * q), 2 * (y * q - w * x))
    rows += (2 * (x * q - w * y), 2 * (y * q + w * x), 1 - 2 * (x * x + y * y))
    m = jacobian @ r @ (torch.stack(rows, 1).reshape(-1, 3, 3) * params["scales"].exp()[:, None])
    cov = m @ m.transpose(1, 2) + BLUR * torch.eye(2)
    conic = torch.linalg.inv(cov)
    grid = torch.stack(torch.meshgrid(torch.arange(camera.width), torch.arange(camera.height), indexing="xy"), -1) + 0.5
    d = means2d[0, :, None] - grid.reshape(-1, 2)  # [N, pixels, 2]
    opacity = params["opacities"].sigmoid()
    alpha = opacity[:, None] * torch.exp(-0.5 * ((d @ conic) * d).sum(-1))
    alpha = alpha.clamp(max=0.999) * (alpha >= CUTOFF) * (p[:, 2:] >= fitting.NEAR)
    alpha = alpha[order := p[:, 2].argsort(stable=True)]
    light = torch.cat([torch.ones(1, alpha.shape[1]), (1 - alpha).cumprod(0)])
    direction = torch.nn.functional.normalize(params["means"] + r.T @ t, dim=1)
    basis = torch.from_numpy(sh_basis(direction.detach().numpy(), sh_degree))
    sh = torch.cat([params["sh0"], params["shN"]], 1)[:, : (sh_degree + 1) ** 2]
    colour = (0.5 + torch.einsum("nk,nkc->nc", basis, sh)).clamp(min=0)[order]
    rgb = torch.einsum("np,nc->pc", alpha * light[:-1], colour).reshape(camera.height, camera.width, 3)
    seen = (p[:, 2] > fitting.NEAR) & (means2d[0] > 0).all(1) & (means2d[0] < size).all(1)
    radii = (3.33 * cov.diagonal(dim1=1, dim2=2).sqrt()).ceil() * seen[:, None]
    facts = {"width": camera.width, "height": camera.height, "n_cameras": 1, "gaussian_ids": None}
    return rgb, (1 - light[-1]).reshape(rgb.shape[:2]), {"means2d": means2d, "radii": radii[None], **facts}


class Recorder:
    """`Densify` that writes down what it is called with, and once adds a Gaussian drawn by chance."""

    def __init__(self):
        self.calls = []

    def start(self):
        return {"seen": torch.zeros(()), "note": 0}

    def before_backward(self, params, optimizers, state, step, info):
        info["means2d"].retain_grad()
        self.calls.append(("before", step))

    def after_step(self, params, optimizers, state, step, info, means_rate):
        state["seen"] += info["means2d"].grad.abs().sum()
        state["note"] = step
        self.calls.append(("after", step, means_rate))
        with torch.no_grad():
            params["means"].add_(1e-3 * torch.randn_like(params["means"]))


def truth(n: int = 60, seed: int = 1) -> Gaussians:
    rng = np.random.default_rng(seed)
    sh = np.concatenate([rng.uniform(-1.5, 1.5, (n, 1, 3)), rng.normal(0, 0.1, (n, 3, 3))], 1)
    fields = {
        "means": rng.uniform(-1, 1, (n, 3)),
        "scales": np.exp(rng.uniform(-2.5, -1.2, (n, 3))),
        "quaternions": rng.normal(size=(n, 4)),
        "opacities": rng.uniform(0.5, 0.95, n),
        "sh": sh,
    }
    return Gaussians(**{name: value.astype(np.float32) for name, value in fields.items()})


def ring(n: int) -> np.ndarray:
    """world_from_cam [n, 4, 4] of cameras around the origin that look at it."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    eyes = np.column_stack([3 * np.cos(angle), 3 * np.sin(angle), 0.5 * np.sin(3 * angle)])
    return look_at(eyes, np.zeros_like(eyes))


@pytest.fixture(scope="module")
def scene() -> tuple[Views, Points]:
    """17 pictures of `truth`, drawn by the reference, and points near its Gaussians."""
    gaussians, poses, k = truth(), ring(17), np.array([40.0, 42.0, 24.0, 15.0])
    drawn = rasterize(gaussians, poses, k, WIDTH, HEIGHT, backend="reference")
    pictures = tuple(np.rint(255 * picture.rgb.clip(0, 1)).astype(np.uint8) for picture in drawn)
    views = Views(
        names=tuple(f"{i:02d}.png" for i in range(17)),
        pictures=pictures,
        world_from_cam=poses,
        intrinsics=np.tile(k, (17, 1)),
    )
    noise = np.random.default_rng(2).normal(0, 0.05, gaussians.means.shape).astype(np.float32)
    grey = np.full(gaussians.means.shape, 0.5, np.float32)
    return views, Points(xyz=gaussians.means + noise, rgb=grey, source="colmap")


def run(scene, config=SHORT, **options):
    given: dict[str, Any] = {"rasterize": dense, "densify": Recorder(), "device": "cpu"}
    return fit(*scene, config=config, **given | options)


def gained_db(fitted) -> float:
    """By how many dB views held out are drawn better at the end than at the start."""
    return fitted.history[-1]["psnr"] - fitted.history[0]["psnr"]


@pytest.fixture
def fast(monkeypatch):
    """Rates for trainings of a hundred steps; those that are published are for 30,000."""
    monkeypatch.setattr(fitting, "RATES", {name: 4 * rate for name, rate in fitting.RATES.items()})


# --- the loop --------------------------------------------------------------------------------------------------------


def test_the_renderer_of_these_tests_draws_what_the_reference_draws():
    gaussians, pose = truth(), ring(5)[2]
    k = np.array([40.0, 42.0, 24.0, 15.0])
    (wanted,) = rasterize(gaussians, pose[None], k, WIDTH, HEIGHT, backend="reference")
    params = {
        "means": gaussians.means,
        "scales": np.log(gaussians.scales),
        "quats": gaussians.quaternions,
        "opacities": np.log(gaussians.opacities / (1 - gaussians.opacities)),
        "sh0": gaussians.sh[:, :1],
        "shN": gaussians.sh[:, 1:],
    }
    matrix = np.array([[k[0], 0, k[2] + 0.5], [0, k[1], k[3] + 0.5], [0, 0, 1]], np.float32)
    camera = fitting.Camera(
        cam_from_world=torch.from_numpy(invert_pose(pose).astype(np.float32)),
        k=torch.from_numpy(matrix),
        width=WIDTH,
        height=HEIGHT,
    )
    rgb, alpha, _ = dense({name: torch.from_numpy(value) for name, value in params.items()}, camera, 1)
    np.testing.assert_allclose(rgb, wanted.rgb, atol=2e-3)  # the dense one does not stop at a transmittance of 1e-4
    np.testing.assert_allclose(alpha, wanted.alpha, atol=2e-3)


def test_loss_falls_and_views_held_out_are_drawn_better(scene, fast):
    told = []
    fitted = run(scene, FitConfig(steps=120, save_every=30, sh_degree=1), progress=told.append)
    history: Any = fitted.history
    first, second, *_, last = history
    assert [entry["step"] for entry in fitted.history] == [0, 30, 60, 90, 120]
    assert told == list(fitted.history)
    assert last["loss"] < 0.65 * second["loss"]
    assert gained_db(fitted) > 4 and last["ssim"] > first["ssim"] + 0.2
    # the scene that is handed over draws the same, in the views' world and conventions
    views = scene[0]
    held_out = range(0, 17, 8)
    drawn = rasterize(
        fitted.gaussians, views.world_from_cam[held_out], views.intrinsics[0], WIDTH, HEIGHT, backend="reference"
    )
    found = [
        psnr(torch.from_numpy(d.rgb.clip(0, 1)), torch.from_numpy(views.pictures[i]).float() / 255)
        for i, d in zip(held_out, drawn, strict=True)
    ]
    assert np.mean(found) == pytest.approx(last["psnr"], abs=0.05)


def test_first_of_every_eight_views_is_held_out_and_never_trained_on(scene):
    train, held_out = split(17, 8)
    assert held_out.tolist() == [0, 8, 16]
    assert sorted([*train, *held_out]) == list(range(17))
    assert [len(part) for part in split(5, 0)] == [5, 0]
    asked = []
    views, points = scene
    training = Training(views, points, SHORT, rasterize=dense, densify=Recorder(), device="cpu")
    look = training._picture
    training._picture = lambda i: asked.append(i) or look(i)
    for _ in range(14):
        training.advance()
    assert sorted(asked) == train.tolist()  # all of them once
    again = list(asked)
    for _ in range(14):
        training.advance()
    assert sorted(asked[14:]) == train.tolist() and asked[14:] != again  # once more, in another order


def test_a_run_that_was_stopped_ends_as_one_that_was_not(scene, tmp_path):
    whole = run(scene)
    assert whole.history[-1]["step"] == 24

    class Stopped(Exception):
        pass

    def stop(entry):
        if entry["step"] == 16:
            raise Stopped

    with pytest.raises(Stopped):
        run(scene, folder=tmp_path, progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "step-00000016.safetensors"]
    recorder = Recorder()
    torch.manual_seed(77)  # what others draw in the meantime does not matter
    resumed = run(scene, folder=tmp_path, densify=recorder)
    assert recorder.calls[0] == ("before", 16)
    assert resumed.history == whole.history
    for name in ("means", "scales", "quaternions", "opacities", "sh"):
        np.testing.assert_array_equal(getattr(resumed.gaussians, name), getattr(whole.gaussians, name), err_msg=name)
    recorder.calls.clear()
    assert run(scene, folder=tmp_path, densify=recorder).history == whole.history  # done: nothing is trained
    assert not recorder.calls


def test_training_leaves_the_random_numbers_of_others_alone(scene):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    run(scene, replace(SHORT, steps=2))
    assert torch.equal(torch.rand(3), wanted)


def test_a_stop_while_a_checkpoint_is_written_leaves_the_one_before(scene, tmp_path, monkeypatch):
    run(scene, replace(SHORT, steps=8), folder=tmp_path)
    before = (tmp_path / "checkpoint.json").read_bytes()
    training = Training(*scene, config=replace(SHORT, steps=8), rasterize=dense, densify=Recorder(), device="cpu")
    training.load(tmp_path)
    training.step = 9

    def fail(source, target):
        if target.name == "checkpoint.json":
            raise KeyboardInterrupt
        move(source, target)

    move = fitting.os.replace
    monkeypatch.setattr(fitting.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        training.save(tmp_path)
    assert (tmp_path / "checkpoint.json").read_bytes() == before
    training.load(tmp_path)
    assert training.step == 8
    assert not list(tmp_path.glob(".*.partial"))


def test_a_checkpoint_of_other_settings_views_or_points_is_refused(scene, tmp_path):
    views, points = scene
    run(scene, replace(SHORT, steps=1), folder=tmp_path)
    with pytest.raises(LongtakeError, match=r"steps=1 \(now 24\).*remove the folder"):
        run(scene, SHORT, folder=tmp_path)
    dark = replace(views, pictures=(np.zeros_like(views.pictures[0]), *views.pictures[1:]))
    with pytest.raises(LongtakeError, match="other pictures, cameras or points"):
        run((dark, points), replace(SHORT, steps=1), folder=tmp_path)
    with pytest.raises(LongtakeError, match="other pictures, cameras or points"):
        run((views, replace(points, xyz=points.xyz + 1)), replace(SHORT, steps=1), folder=tmp_path)


@pytest.mark.parametrize("damage", ["json", "tensors", "key"])
def test_a_broken_checkpoint_is_told(scene, tmp_path, damage):
    run(scene, replace(SHORT, steps=1), folder=tmp_path)
    file = tmp_path / "checkpoint.json"
    if damage == "json":
        file.write_text("{")
    elif damage == "key":
        file.write_text(json.dumps({"format": "longtake.fit/1"}))
    else:
        (tmp_path / "step-00000001.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0")
    with pytest.raises(LongtakeError, match=r"checkpoint cannot be read .*Remove the folder"):
        run(scene, replace(SHORT, steps=1), folder=tmp_path)


def test_hooks_are_called_around_each_step_with_the_rate_of_means(scene):
    recorder = Recorder()
    run(scene, densify=recorder)
    assert [call[:2] for call in recorder.calls] == [(w, i) for i in range(24) for w in ("before", "after")]
    rates = [call[2] for call in recorder.calls if call[0] == "after"]
    np.testing.assert_allclose(rates, 1.1 * 1.6e-4 * 0.01 ** (np.arange(24) / 24), rtol=1e-6)


def test_colour_gains_one_degree_each_thirtieth_of_the_training(scene):
    training = Training(*scene, config=FitConfig(steps=3000), rasterize=dense, densify=Recorder(), device="cpu")
    found = []
    for training.step in (0, 99, 100, 199, 200, 299, 300, 2999):
        found.append(training.sh_degree)
    assert found == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("degree", [0, 3])
def test_every_degree_can_be_trained(scene, degree):
    assert run(scene, replace(SHORT, steps=3, sh_degree=degree)).gaussians.sh_degree == degree


def test_scene_in_another_place_and_unit_trains_the_same(scene):
    views, points = scene
    offset, scale = np.array([100.0, -50.0, 30.0]), 8.0
    moved = views.world_from_cam.copy()
    moved[:, :3, 3] = scale * moved[:, :3, 3] + offset
    far = replace(points, xyz=(scale * points.xyz + offset).astype(np.float32))
    here, there = run(scene), run((replace(views, world_from_cam=moved), far))
    # float32 points so far from 0 are rounded to 1e-5, and Adam makes a small gradient's sign a whole step
    assert there.history[-1]["psnr"] == pytest.approx(here.history[-1]["psnr"], abs=0.1)
    np.testing.assert_allclose((there.gaussians.means - offset) / scale, here.gaussians.means, atol=0.02)
    assert there.near == pytest.approx(scale * here.near)


def test_training_that_diverges_or_has_nothing_left_is_told(scene):
    views, points = scene

    def wrong(params, camera, sh_degree):
        rgb, alpha, info = dense(params, camera, sh_degree)
        return rgb * math.nan, alpha, info

    with pytest.raises(LongtakeError, match=r"diverged before step 8: poses or intrinsics"):
        run(scene, rasterize=wrong)

    class Empty(Recorder):
        def after_step(self, params, optimizers, state, step, info, means_rate):
            params["means"] = torch.nn.Parameter(params["means"][:0].detach())

    with pytest.raises(LongtakeError, match=r"step 0: not one Gaussian is left"):
        run(scene, densify=Empty())
    one = Views(
        names=views.names[:1],
        pictures=views.pictures[:1],
        world_from_cam=views.world_from_cam[:1],
        intrinsics=views.intrinsics[:1],
    )
    with pytest.raises(LongtakeError, match=r"of 1 views every one is held out"):
        run((one, points))
    with pytest.raises(LongtakeError, match=r"max_gaussians is 59, and there are 60 first points"):
        run(scene, replace(SHORT, strategy="mcmc", max_gaussians=59))


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"sh_degree": 4}, {"ssim_weight": 1.5}, {"seed": -1}, {"max_gaussians": 1}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(LongtakeError, match=next(iter(change))):
        FitConfig(**change)


# --- measures --------------------------------------------------------------------------------------------------------


def test_ssim_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    a = rng.random((14, 13, 3))
    b = (0.7 * a + 0.3 * rng.random(a.shape)).clip(0, 1)
    w = np.exp(-((np.arange(11) - 5.0) ** 2) / 4.5)
    w = np.outer(w, w) / w.sum() ** 2
    values = []
    for c in range(3):
        for i in range(4):
            for j in range(3):
                x, y = a[i : i + 11, j : j + 11, c], b[i : i + 11, j : j + 11, c]
                mx, my = (w * x).sum(), (w * y).sum()
                vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
                top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert float(ssim(torch.from_numpy(a), torch.from_numpy(b))) == pytest.approx(np.mean(values), rel=1e-9)
    assert float(ssim(torch.from_numpy(a), torch.from_numpy(a))) == pytest.approx(1)


def test_psnr_of_a_tenth_is_20_db():
    assert psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)) == pytest.approx(20, abs=1e-4)


# --- where training starts -------------------------------------------------------------------------------------------


def test_first_gaussians_are_as_large_as_their_neighbours_are_far():
    xyz = np.stack(np.meshgrid(*[np.arange(4.0) * 0.5] * 3), -1).reshape(-1, 3)
    rgb = np.full(xyz.shape, 0.75)
    default, mcmc = (first_params(xyz, rgb, FitConfig(strategy=s)) for s in ("default", "mcmc"))
    np.testing.assert_allclose(default["scales"].exp(), 0.5, rtol=1e-5)
    np.testing.assert_allclose(mcmc["scales"].exp(), 0.05, rtol=1e-5)
    np.testing.assert_allclose(default["opacities"].sigmoid(), 0.1, rtol=1e-5)
    np.testing.assert_allclose(0.5 + SH0 * default["sh0"], 0.75, rtol=1e-5)
    assert default["shN"].shape == (64, 15, 3) and not default["shN"].any()
    assert torch.isfinite(first_params(np.zeros((5, 3)), np.zeros((5, 3)), FitConfig())["scales"]).all()


def test_points_of_depth_lie_where_the_pixels_look(scene):
    views = scene[0]
    maps = [(3, np.full((HEIGHT // 2, WIDTH // 2), 2.5)), (5, np.full((HEIGHT, WIDTH), np.nan))]
    maps[0][1][:, : WIDTH // 4] = 0  # unknown
    points = depth_points(views, maps, count=50, seed=1)
    assert len(points) == 50 and points.source == "depth"
    p = (points.xyz - views.world_from_cam[3, :3, 3]) @ views.world_from_cam[3, :3, :3]
    np.testing.assert_allclose(p[:, 2], 2.5, rtol=1e-5)
    fx, fy, cx, cy = views.intrinsics[3]
    u, v = fx * p[:, 0] / p[:, 2] + cx, fy * p[:, 1] / p[:, 2] + cy
    np.testing.assert_allclose((u - 0.5) % 2 % 1.999, 0, atol=2e-3)  # a map half as large: centres between two pixels
    assert u.min() > WIDTH / 2 - 0.51 and v.min() > 0
    with pytest.raises(BadMedia, match="not one of the depth maps"):
        depth_points(views, maps[1:], count=50)


def test_random_points_are_seen_by_a_camera(scene):
    views = scene[0]
    points = random_points(views, count=400, seed=3)
    assert len(points) == 400
    seen = np.zeros(400, bool)
    nearest = np.full(400, np.inf)
    for pose, (fx, fy, cx, cy) in zip(views.world_from_cam, views.intrinsics, strict=True):
        p = (points.xyz - pose[:3, 3]) @ pose[:3, :3]
        u, v = fx * p[:, 0] / p[:, 2] + cx, fy * p[:, 1] / p[:, 2] + cy
        inside = (p[:, 2] > 0) & (np.abs(u - cx) <= WIDTH / 2 + 1) & (np.abs(v - cy) <= HEIGHT / 2 + 2)
        seen |= inside
        nearest[inside] = np.minimum(nearest[inside], p[inside, 2])
    assert seen.all()
    assert nearest.max() <= 10 * views.reach * 1.001
    np.testing.assert_array_equal(points.xyz, random_points(views, count=400, seed=3).xyz)


def write_points(folder, rows, *, text: bool, more: bytes = b"") -> None:
    if text:
        lines = [f"{i} {' '.join(map(str, row))} 0.5 1 2 3 4" for i, row in enumerate(rows)]
        (folder / "points3D.txt").write_text("# 3D points\n" + "\n".join(lines) + "\n")
    else:
        data = b"".join(
            struct.pack("<Q3d3BdQ", i, *row[:3], *row[3:], 0.5, i % 3) + bytes(8 * (i % 3))
            for i, row in enumerate(rows)
        )
        (folder / "points3D.bin").write_bytes(struct.pack("<Q", len(rows)) + data + more)


@pytest.mark.parametrize("text", [False, True])
def test_points_of_colmap(tmp_path, text):
    assert colmap_points(tmp_path) is None
    rows = [(0.5 * i, -i, 2.25 + i, 255, i, 0) for i in range(6)]
    write_points(tmp_path, rows, text=text)
    points = colmap_points(tmp_path)
    assert points is not None
    np.testing.assert_array_equal(points.xyz, np.array(rows, np.float32)[:, :3])
    np.testing.assert_allclose(points.rgb, np.array(rows)[:, 3:] / 255, atol=1e-7)


def test_points_as_pycolmap_writes_them(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction()
    for i in range(7):
        model.add_point3D(np.array([i, 2.0 * i, -1.0]), pycolmap.Track(), np.array([10, 20, i], np.uint8))
    model.write_binary(str(tmp_path))
    points = colmap_points(tmp_path)
    assert points is not None and len(points) == 7
    order = np.argsort(points.xyz[:, 0])
    np.testing.assert_allclose(points.xyz[order], [(i, 2 * i, -1) for i in range(7)])
    np.testing.assert_allclose(255 * points.rgb[order], [(10, 20, i) for i in range(7)], atol=1e-4)


def test_broken_points_are_told(tmp_path):
    rows = [(1.0, 2.0, 3.0, 4, 5, 6)] * 5
    write_points(tmp_path, rows, text=False, more=b"x")
    with pytest.raises(BadMedia, match=r"1 bytes after its last record"):
        colmap_points(tmp_path)
    file = tmp_path / "points3D.bin"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BadMedia, match=r"ends at byte"):
        colmap_points(tmp_path)
    file.write_bytes(struct.pack("<Q", 1 << 60) + bytes(51))
    with pytest.raises(BadMedia, match=r"more than fit"):
        colmap_points(tmp_path)
    write_points(tmp_path, [(math.nan, 2.0, 3.0, 4, 5, 6)] * 5, text=False)
    with pytest.raises(BadMedia, match=r"point 0 has no finite place"):
        colmap_points(tmp_path)
    file.unlink()
    (tmp_path / "points3D.txt").write_text("1 2 3\n")
    with pytest.raises(BadMedia, match=r"line 1 is no point"):
        colmap_points(tmp_path)


def test_views_that_are_none_are_refused(scene):
    views = scene[0]
    with pytest.raises(LongtakeError, match="one of each a view"):
        replace(views, intrinsics=views.intrinsics[:3])
    with pytest.raises(LongtakeError, match=r"02.png has no rigid pose"):
        poses = views.world_from_cam.copy()
        poses[2, 0] *= 1.1
        replace(views, world_from_cam=poses)
    with pytest.raises(LongtakeError, match=r"00.png is 48 x 10: too small"):
        replace(views, pictures=(views.pictures[0][:10], *views.pictures[1:]))
    with pytest.raises(LongtakeError, match=r"3 points from random"):
        Points(xyz=np.zeros((3, 3), np.float32), rgb=np.zeros((3, 3), np.float32), source="random")


# --- gsplat ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gsplat():
    """The package, whose strategies need no GPU but for single operations."""
    return pytest.importorskip("gsplat", reason="the package gsplat is not installed")


def often(config):
    """The strategy of a configuration that refines every 10 steps instead of every 100."""
    densify = gsplat_densify(config)
    densify.strategy.refine_every = 10
    return densify


def test_default_strategy_clones_splits_and_prunes(gsplat, scene, fast):
    config = FitConfig(steps=80, save_every=40, sh_degree=1)
    views, points = scene
    few = replace(points, xyz=points.xyz[::3], rgb=points.rgb[::3])
    fitted = run((views, few), config, densify=often(config))
    history: Any = fitted.history
    first, middle, last = history
    assert first["gaussians"] == 20
    assert middle["gaussians"] > 25
    assert last["gaussians"] == middle["gaussians"]  # half of the training is its end
    assert gained_db(fitted) > 3


def test_default_strategy_resumes_in_the_middle_of_its_statistics(gsplat, scene, tmp_path):
    config = FitConfig(steps=50, save_every=15, sh_degree=0)
    whole = run(scene, config, densify=often(config))

    def stop(entry):
        if entry["step"] == 15:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(scene, config, densify=often(config), folder=tmp_path, progress=stop)
    resumed = run(scene, config, densify=often(config), folder=tmp_path)
    assert resumed.history == whole.history
    assert len(whole.gaussians) != len(scene[1])
    np.testing.assert_array_equal(resumed.gaussians.means, whole.gaussians.means)


def test_opacities_are_reset_whether_or_not_gsplat_does_it(gsplat, scene):
    config = FitConfig(steps=60, sh_degree=0)
    densify = gsplat_densify(config)
    densify.strategy.reset_every = 20
    training = Training(*scene, config=config, rasterize=dense, densify=densify, device="cpu")
    highest = []
    for _ in range(31):
        training.advance()
        highest.append(float(training.params["opacities"].detach().sigmoid().max()))
    assert highest[0] == pytest.approx(0.1, abs=0.01)  # not after the first step
    assert highest[19] > 0.1
    assert highest[20] == pytest.approx(0.01, rel=1e-4)
    assert highest[30] > 0.01


def test_mcmc_strategy_moves_dead_gaussians_and_adds_up_to_a_number(gsplat, scene, fast, monkeypatch):
    """gsplat's own code, its two CUDA operations replaced: one by its own PyTorch, one by the paper's equation 9."""
    covariance = pytest.importorskip("gsplat.cuda._torch_impl")._quat_scale_to_covar_preci
    ops = pytest.importorskip("gsplat.strategy.ops")

    def relocation(opacities, scales, ratios, binoms):
        ratios = ratios.clamp(1, len(binoms))
        new = 1 - (1 - opacities) ** (1 / ratios)
        total = [
            sum(
                float(binoms[i - 1, k]) * (-1) ** k * o ** (k + 1) / math.sqrt(k + 1)
                for i in range(1, n + 1)
                for k in range(i)
            )
            for o, n in zip(new.tolist(), ratios.tolist(), strict=True)
        ]
        return new, scales * (opacities / torch.tensor(total))[:, None]

    monkeypatch.setattr(ops, "compute_relocation", relocation)
    monkeypatch.setattr(ops, "quat_scale_to_covar_preci", covariance)
    config = FitConfig(steps=80, save_every=40, sh_degree=1, strategy="mcmc", max_gaussians=62)
    fitted = run(scene, config, densify=often(config))
    assert [entry["gaussians"] for entry in fitted.history] == [60, 62, 62]
    assert gained_db(fitted) > 3


def test_no_training_without_a_gpu_and_all_that_lacks_is_said(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MissingPart, match=r"finds no NVIDIA GPU.*pytorch.org"):
        check_gpu("cuda")


def test_gsplat_trains_on_a_gpu(gsplat, scene):
    try:
        check_gpu("cuda")
    except MissingPart as error:
        pytest.skip(str(error))
    for strategy in ("default", "mcmc"):
        config = FitConfig(steps=300, save_every=100, sh_degree=1, strategy=strategy)
        fitted = fit(
            *scene,
            config=config,
            rasterize=gsplat_rasterize,
            densify=gsplat_densify(config),
            device="cuda",
        )
        assert gained_db(fitted) > 4
