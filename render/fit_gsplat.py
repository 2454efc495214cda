"""The package gsplat for training: its differentiable renderer, its strategies, and whether it can run here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MissingPart
from .cuda import check_kernels
from .fit import NEAR, SCENE_SCALE, Camera, FitConfig, Optimizers, Params, State


def check_gpu(device: str) -> None:
    """Raises MissingPart where splats cannot be trained with gsplat here, with all that is lacking."""
    lacking = []
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        lacking.append(
            f"PyTorch {torch.__version__} (built for {built}) finds no NVIDIA GPU; on a machine with one install "
            "PyTorch for CUDA as https://pytorch.org/get-started/locally says"
        )
    elif torch.device(device).type != "cuda" or (torch.device(device).index or 0) >= torch.cuda.device_count():
        lacking.append(f"device {device!r} is none of its {torch.cuda.device_count()} GPUs: cuda, cuda:1 ...")
    try:
        check_kernels()
    except MissingPart as error:
        lacking.append(str(error))
    if lacking:
        raise MissingPart(f"splats are trained on an NVIDIA GPU with gsplat. {'; and '.join(lacking)}")


def gsplat_rasterize(params: Params, camera: Camera, sh_degree: int) -> tuple[Tensor, Tensor, State]:
    """The `Rasterize` of the package gsplat."""
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    rgb, alpha, info = rasterization(
        means=params["means"],
        quats=params["quats"],
        scales=params["scales"].exp(),
        opacities=params["opacities"].sigmoid(),
        colors=torch.cat([params["sh0"], params["shN"]], 1),
        viewmats=camera.cam_from_world[None],
        Ks=camera.k[None],
        width=camera.width,
        height=camera.height,
        near_plane=NEAR,
        sh_degree=sh_degree,
        packed=False,
    )
    return rgb[0], alpha[0, ..., 0], info


def gsplat_densify(config: FitConfig) -> DefaultDensify | McmcDensify:
    """The strategy of the package gsplat that the configuration names, as published.

    In a training of fewer steps it ends at the same share of them.
    """
    return DefaultDensify(config) if config.strategy == "default" else McmcDensify(config)


class DefaultDensify:
    """gsplat's DefaultStrategy: clones, splits, prunes, resets opacities."""

    def __init__(self, config: FitConfig) -> None:
        from gsplat.strategy import DefaultStrategy  # pyright: ignore[reportMissingImports]

        self.strategy = DefaultStrategy(
            refine_start_iter=min(500, config.steps // 10), refine_stop_iter=config.steps // 2
        )

    def start(self) -> State:
        return self.strategy.initialize_state(scene_scale=SCENE_SCALE)

    def before_backward(self, params: Params, optimizers: Optimizers, state: State, step: int, info: State) -> None:
        self.strategy.step_pre_backward(params, optimizers, state, step, info)

    def after_step(
        self, params: Params, optimizers: Optimizers, state: State, step: int, info: State, means_rate: float
    ) -> None:
        from gsplat.strategy.ops import reset_opa  # pyright: ignore[reportMissingImports]

        s = self.strategy
        s.step_post_backward(params, optimizers, state, step, info)
        if 0 < step < s.refine_stop_iter and step % s.reset_every == 0:
            # 1.5.3 never does it (its pull request 776); after a version that does, it changes nothing
            reset_opa(params=params, optimizers=optimizers, state=state, value=2 * s.prune_opa)


class McmcDensify:
    """gsplat's MCMCStrategy: moves dead Gaussians to living ones, adds up to a number, shakes them all."""

    def __init__(self, config: FitConfig) -> None:
        from gsplat.strategy import MCMCStrategy  # pyright: ignore[reportMissingImports]

        self.strategy = MCMCStrategy(
            cap_max=config.max_gaussians,
            refine_start_iter=min(500, config.steps // 10),
            refine_stop_iter=config.steps * 5 // 6,
        )

    def start(self) -> State:
        return self.strategy.initialize_state()

    def before_backward(self, params: Params, optimizers: Optimizers, state: State, step: int, info: State) -> None:
        self.strategy.step_pre_backward(params, optimizers, state, step, info)

    def after_step(
        self, params: Params, optimizers: Optimizers, state: State, step: int, info: State, means_rate: float
    ) -> None:
        self.strategy.step_post_backward(params, optimizers, state, step, info, lr=means_rate)
