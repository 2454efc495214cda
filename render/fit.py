"""Training of 3D Gaussians on posed pictures: the loop, its schedules, and checkpoints that go on where they stopped.

    fitted = fit(views, points, config, rasterize=gsplat_rasterize, densify=gsplat_densify(config), device="cuda")
    write_scene(fitted.gaussians, "scene.ply")

The loop knows its renderer as a function and its densification as two hooks (fit_gsplat.py has both), so it runs
wherever these do. Constants are those of gsplat's trainer, which hold for a world of about unit size: training has one
of its own, with the cameras' centre at 0, and the splats are taken back to the scene's.

Source: Kerbl et al., SIGGRAPH 2023 (default); Kheradmand et al., NeurIPS 2024 (mcmc); gsplat's simple_trainer.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from ..errors import LongtakeError
from ..geometry import invert_pose
from .gaussians import SH0, Gaussians
from .views import MIN_SIDE, Points, Views

FORMAT = "longtake.fit/1"
PUBLISHED_STEPS = 30_000  # that the constants below were published for
RATES = {"means": 1.6e-4, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 2.5e-3 / 20}
MEANS_RATE_END = 0.01  # of the rate of means at the last step, of that at the first
SCENE_SCALE = 1.1  # of the training world, whose cameras reach at most 1
NEAR = 0.01  # nearest depth drawn, in the training world
FIRST = {"default": (0.1, 1.0), "mcmc": (0.5, 0.1)}  # opacity, and size in distances to the neighbours
MCMC_WEIGHT = 0.01  # in the loss, of the mean opacity and of the mean scale
WINDOW = np.exp(-((np.arange(MIN_SIDE) - MIN_SIDE // 2) ** 2) / (2 * 1.5**2))  # of SSIM
WINDOW = (WINDOW / WINDOW.sum()).tolist()

Params = dict[
    str, torch.nn.Parameter
]  # means, scales (log), quats, opacities (logit), sh0 [N, 1, 3], shN [N, K - 1, 3]
Optimizers = dict[str, torch.optim.Optimizer]
State = dict[str, Any]  # of a strategy: tensors and plain numbers


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    steps: int = PUBLISHED_STEPS  # pictures trained on, one a step
    strategy: Literal["default", "mcmc"] = "default"  # how splats are added and taken away
    max_gaussians: int = 1_000_000  # with mcmc; the default strategy takes what it needs
    sh_degree: int = 3  # of colour's dependence on the view
    hold_out_every: int = 8  # the first of so many views is measured on, not trained on; 0: none is
    ssim_weight: float = 0.2  # of 1 - SSIM in the loss, the rest being mean absolute difference
    save_every: int = 1000  # steps between checkpoints, which are measured
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("steps", 1, 2**31),
            ("max_gaussians", 4, 2**31),
            ("sh_degree", 0, 3),
            ("hold_out_every", 0, 2**31),
            ("ssim_weight", 0, 1),
            ("save_every", 1, 2**31),
            ("seed", 0, 2**31),
        ):
            if not least <= getattr(self, name) <= most:
                raise LongtakeError(f"{name} = {getattr(self, name)}: it is {least} to {most}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A camera as gsplat takes it: the centre of pixel (i, j) is (j + 0.5, i + 0.5)."""

    cam_from_world: Tensor  # [4, 4] float32, of the training world
    k: Tensor  # [3, 3] float32
    width: int
    height: int


class Rasterize(Protocol):
    """A differentiable renderer."""

    def __call__(self, params: Params, camera: Camera, sh_degree: int) -> tuple[Tensor, Tensor, State]:
        """rgb [H, W, 3], alpha [H, W], and what strategies read: means2d [1, N, 2] in the graph, radii [1, N, 2],
        width, height, n_cameras and gaussian_ids."""
        ...


class Densify(Protocol):
    """How Gaussians are added and taken away: changes parameters, their optimizers and its state in place."""

    def start(self) -> State: ...
    def before_backward(self, params: Params, optimizers: Optimizers, state: State, step: int, info: State) -> None: ...
    def after_step(
        self, params: Params, optimizers: Optimizers, state: State, step: int, info: State, means_rate: float
    ) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A trained scene."""

    gaussians: Gaussians  # in the views' world
    history: tuple[dict[str, float | None], ...]  # of step 0 and each checkpoint: step, gaussians, loss, psnr, ssim
    near: float  # nearest depth that training drew, scene units


def fit(
    views: Views,
    points: Points,
    config: FitConfig,
    *,
    rasterize: Rasterize,
    densify: Densify,
    device: str,
    folder: Path | None = None,
    progress: Callable[[Mapping[str, float | None]], None] = lambda entry: None,
) -> Fitted:
    """Train splats on the views. The same call again goes on from the checkpoint in `folder`.

    Everything random is drawn from the seed and the step, so a run that was stopped ends as one that was not: to the
    bit where the renderer repeats itself to the bit, which gsplat's gradients (sums in no fixed order) do not.

    Args:
        folder: where checkpoints are kept, at most two at a time; None: nowhere.
        progress: told the last entry of the history whenever there is one.

    Raises:
        LongtakeError: no view is left to train on, training diverges, or the checkpoint is of other views or settings.
    """
    training = Training(views, points, config, rasterize=rasterize, densify=densify, device=device)
    if folder is not None and (folder / "checkpoint.json").is_file():
        training.load(folder)
    else:
        training.measure()
    progress(training.history[-1])
    while training.step < config.steps:
        training.advance()
        if training.step % config.save_every == 0 or training.step == config.steps:
            training.measure()
            if folder is not None:
                training.save(folder)
            progress(training.history[-1])
    return Fitted(gaussians=training.gaussians(), history=tuple(training.history), near=NEAR * training.size)


def split(count: int, hold_out_every: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the views that are trained on, and of those held out: the first of every `hold_out_every`."""
    number = np.arange(count)
    held_out = number % hold_out_every == 0 if hold_out_every else np.zeros(count, bool)
    return number[~held_out], number[held_out]


class Training:
    """A training and where it stands."""

    def __init__(
        self, views: Views, points: Points, config: FitConfig, *, rasterize: Rasterize, densify: Densify, device: str
    ) -> None:
        self.views, self.config, self.rasterize, self.densify, self.device = views, config, rasterize, densify, device
        self.train, self.held_out = split(len(views), config.hold_out_every)
        if not len(self.train):
            raise LongtakeError(f"of {len(views)} views every one is held out: give more, or hold_out_every=0")
        if config.strategy == "mcmc" and len(points) > config.max_gaussians:
            raise LongtakeError(f"max_gaussians is {config.max_gaussians}, and there are {len(points)} first points")
        self.centre = views.centre
        self.size = max(views.reach, float(np.median(np.linalg.norm(points.xyz - self.centre, axis=1))))
        self.cameras = [self._camera(i) for i in range(len(views))]
        self.step, self.history, self.loss_sum = 0, [], torch.zeros((), device=device)
        self.fingerprint = f"{views.fingerprint} {hash_points(points)}"
        first = first_params((points.xyz - self.centre) / self.size, points.rgb, config)
        self.params: Params = {name: torch.nn.Parameter(value.to(device)) for name, value in first.items()}
        self.optimizers = adam(self.params)
        self.state = densify.start()

    def _camera(self, i: int) -> Camera:
        pose, (fx, fy, cx, cy) = self.views.world_from_cam[i].copy(), self.views.intrinsics[i]
        pose[:3, 3] = (pose[:3, 3] - self.centre) / self.size
        k = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])
        height, width = self.views.pictures[i].shape[:2]
        matrices = (torch.from_numpy(m.astype(np.float32)).to(self.device) for m in (invert_pose(pose), k))
        return Camera(**dict(zip(("cam_from_world", "k"), matrices, strict=True)), width=width, height=height)

    def _picture(self, i: int) -> Tensor:
        """[H, W, 3] in 0 .. 1."""
        return torch.from_numpy(np.ascontiguousarray(self.views.pictures[i])).to(self.device).float() / 255

    def advance(self) -> None:
        """One step on one view; all are seen once, in a new order, before one is seen again."""
        config, step, params = self.config, self.step, self.params
        turn, position = divmod(step, len(self.train))
        view = int(np.random.default_rng((config.seed, turn)).permutation(self.train)[position])
        rgb, _, info = self.rasterize(params, self.cameras[view], self.sh_degree)
        picture = self._picture(view)
        loss = (1 - config.ssim_weight) * (rgb - picture).abs().mean() + config.ssim_weight * (1 - ssim(rgb, picture))
        if config.strategy == "mcmc":
            loss = loss + MCMC_WEIGHT * (params["opacities"].sigmoid().mean() + params["scales"].exp().mean())
        self.densify.before_backward(params, self.optimizers, self.state, step, info)
        loss.backward()
        self.loss_sum += loss.detach()
        means_rate = SCENE_SCALE * RATES["means"] * MEANS_RATE_END ** (step / config.steps)
        self.optimizers["means"].param_groups[0]["lr"] = means_rate
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[] if self.device == "cpu" else [torch.device(self.device)]):
            torch.manual_seed(config.seed << 32 | step)
            self.densify.after_step(params, self.optimizers, self.state, step, info, means_rate)
        if not len(params["means"]):
            raise LongtakeError(f"step {step}: not one Gaussian is left. Do the poses belong to these pictures?")
        self.step += 1

    @property
    def sh_degree(self) -> int:
        """The degree in use: one more each thirtieth of the training."""
        return min(self.config.sh_degree, 30 * self.step // self.config.steps)

    @torch.no_grad()
    def measure(self) -> None:
        """Write down where training stands: mean loss since the last time, PSNR and SSIM of the views held out."""
        since = self.step - (self.history[-1]["step"] if self.history else 0)
        loss = float(self.loss_sum) / since if since else None
        self.loss_sum.zero_()
        if loss is not None and not np.isfinite(loss):
            raise LongtakeError(f"training diverged before step {self.step}: poses or intrinsics may be wrong")
        scores = []
        for i in self.held_out.tolist():
            rgb, picture = self.rasterize(self.params, self.cameras[i], self.sh_degree)[0].clamp(0, 1), self._picture(i)
            scores.append((psnr(rgb, picture), float(ssim(rgb, picture))))
        means = np.mean(scores, axis=0).tolist() if scores else (None, None)
        entry = {"step": self.step, "gaussians": len(self.params["means"]), "loss": loss}
        self.history.append({**entry, "psnr": means[0], "ssim": means[1]})

    def gaussians(self) -> Gaussians:
        """As they are, in the views' world."""
        p = {name: value.detach().double() for name, value in self.params.items()}
        least = float(np.finfo(np.float32).tiny)
        fields = {
            "means": p["means"] * self.size + torch.from_numpy(self.centre).to(self.device),
            "scales": (p["scales"].exp() * self.size).clamp(min=least),
            "quaternions": p["quats"],
            "opacities": p["opacities"].sigmoid(),
            "sh": torch.cat([p["sh0"], p["shN"]], 1),
        }
        return Gaussians(**{name: value.float().cpu().numpy() for name, value in fields.items()})

    def save(self, folder: Path) -> None:
        """A checkpoint: tensors first, then the JSON that names them takes the old one's place in one stroke."""
        from safetensors.torch import save_file

        tensors = {f"param.{name}": p.detach() for name, p in self.params.items()}
        for name, optimizer in self.optimizers.items():
            tensors |= {f"adam.{name}.{key}": v for key, v in optimizer.state[self.params[name]].items()}
        tensors |= {f"strategy.{key}": v for key, v in self.state.items() if isinstance(v, Tensor)}
        facts = {
            "format": FORMAT,
            "tensors": f"step-{self.step:08d}.safetensors",
            "step": self.step,
            "fingerprint": self.fingerprint,
            "config": asdict(self.config),
            "strategy": {key: v for key, v in self.state.items() if not isinstance(v, Tensor)},
            "history": self.history,
        }
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{os.getpid()}.partial"
        try:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, partial)
            _place(partial, folder / facts["tensors"])
            partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            _place(partial, folder / "checkpoint.json")
        finally:
            partial.unlink(missing_ok=True)
        for old in folder.glob("step-*.safetensors"):
            if old.name != facts["tensors"]:
                old.unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            LongtakeError: it is broken, or of other views or settings.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            facts = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise KeyError(f"format {facts['format']!r}")
            mine = asdict(self.config)
            other = [f"{k}={v} (now {mine.get(k)})" for k, v in facts["config"].items() if mine.get(k) != v]
            if facts["fingerprint"] != self.fingerprint:
                other.append("other pictures, cameras or points")
            if other:
                raise LongtakeError(
                    f"{folder} has a training with {', '.join(other)}. Go on with those, or remove the folder"
                )
            tensors = load_file(folder / Path(facts["tensors"]).name)
            self.step, self.history = facts["step"], facts["history"]
            self.params = {name: torch.nn.Parameter(tensors[f"param.{name}"].to(self.device)) for name in RATES}
            self.optimizers = adam(self.params)
            for name, optimizer in self.optimizers.items():
                moments = {key: tensors[f"adam.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": {0: moments}, "param_groups": groups})
            of_strategy = {k.removeprefix("strategy."): v for k, v in tensors.items() if k.startswith("strategy.")}
            self.state = facts["strategy"] | {k: v.to(self.device) for k, v in of_strategy.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise LongtakeError(f"{folder}: its checkpoint cannot be read ({error}). Remove the folder") from error


def _place(partial: Path, target: Path) -> None:
    """Give a file its name once it is on the disk."""
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)


def first_params(xyz: NDArray, rgb: NDArray, config: FitConfig) -> dict[str, Tensor]:
    """Round Gaussians on points [N, 3] with colours [N, 3], each as large as the root mean square distance to the
    nearest three others."""
    opacity, size = FIRST[config.strategy]
    n = len(xyz)
    distance, _ = KDTree(xyz).query(xyz, k=4)
    spacing = np.sqrt((np.asarray(distance)[:, 1:] ** 2).mean(1)).clip(min=1e-6)
    values = {
        "means": xyz,
        "scales": np.log(size * spacing)[:, None].repeat(3, 1),
        "quats": np.random.default_rng(config.seed).normal(size=(n, 4)),
        "opacities": np.full(n, np.log(opacity / (1 - opacity))),
        "sh0": (rgb[:, None] - 0.5) / SH0,
        "shN": np.zeros((n, (config.sh_degree + 1) ** 2 - 1, 3)),
    }
    return {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in values.items()}


def adam(params: Params) -> Optimizers:
    """One for each parameter, as gsplat's strategies want it."""
    return {name: torch.optim.Adam([{"params": [p], "lr": RATES[name]}], eps=1e-15) for name, p in params.items()}


def hash_points(points: Points) -> str:
    """16 digits that change when a point does."""
    from hashlib import blake2b

    return blake2b(points.xyz.tobytes() + points.rgb.tobytes(), digest_size=8).hexdigest()


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0 .. 1; infinite where they are the same."""
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of pictures [H, W, 3] in 0 .. 1, where the 11 x 11 Gaussian window lies within.

    Source: Wang et al., IEEE TIP 13(4), 2004, eq. 13.
    """
    x, y = a.permute(2, 0, 1), b.permute(2, 0, 1)
    mx, my, xx, yy, xy = _smooth(torch.stack([x, y, x * x, y * y, x * y]))
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return ((2 * mx * my + c1) / (mx * mx + my * my + c1) * structure).mean()


def _smooth(x: Tensor) -> Tensor:
    """By SSIM's window along the last two axes, in plain float32: convolutions on a GPU may round to 10 bits."""
    for axis in (-1, -2):
        length = x.shape[axis] - MIN_SIDE + 1
        x = sum((w * x.narrow(axis, i, length) for i, w in enumerate(WINDOW)), start=x.new_zeros(()))
    return x
