"""Training SANA-WM's networks from nothing on posed clips: the autoencoder first, then the flow on its latents.

    clips = read_clips(folder)
    vae = train_vae(Vae(config), clips, VaeRecipe(), checkpoint=folder / "vae.pt")
    latents = encode_clips(vae, clips, frames=25)
    net = train_net(SanaWM(config), latents, words, NetRecipe(), checkpoint=folder / "net.pt")

A step's random numbers follow from the recipe's seed and the step's number, so a training that was cut off goes on as
if it had not been. Everything is on the CPU, in one process: this is for networks as small as `nano`.

Sources: Lipman et al., Flow Matching, arXiv 2210.02747; Esser et al., times drawn logit-normally, arXiv 2403.03206;
Chen et al., a noise level for every frame, Diffusion Forcing, arXiv 2407.01392; SANA-WM, arXiv 2605.15178.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import LongtakeError
from .camera import pack
from .network import Block, Conditions, SanaWM
from .text import Text
from .vae import SPACE, TIME, Resnet, Vae

Log = Callable[[int, float], None]  # of a step's number and its loss
_Net = TypeVar("_Net", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False)
class PosedClip:
    """Frames and the camera that took them."""

    frames: NDArray[np.uint8]  # [F, H, W, 3] RGB
    world_from_cam: NDArray[np.float64]  # [F, 4, 4] metres, OpenCV axes
    intrinsics: NDArray[np.float64]  # [F, 4] fx, fy, cx, cy in pixels
    prompt: str

    def __post_init__(self) -> None:
        count, height, width = self.frames.shape[:3]
        if self.frames.shape[3:] != (3,) or self.frames.dtype != np.uint8:
            raise LongtakeError(f"frames are {self.frames.dtype} {list(self.frames.shape)}, not uint8 [F, H, W, 3]")
        if self.world_from_cam.shape != (count, 4, 4) or self.intrinsics.shape != (count, 4):
            raise LongtakeError(
                f"{count} frames have poses {list(self.world_from_cam.shape)} and intrinsics "
                f"{list(self.intrinsics.shape)}, not [{count}, 4, 4] and [{count}, 4]"
            )
        if not (np.isfinite(self.world_from_cam).all() and np.isfinite(self.intrinsics).all()):
            raise LongtakeError("a frame has no camera: train on the part of the clip that has")
        if height % SPACE or width % SPACE:
            raise LongtakeError(f"frames of {width}x{height}: sides are multiples of {SPACE}")


def save_clip(path: Path, clip: PosedClip) -> None:
    """One .npz file, there whole or not at all."""
    part = path.with_name(path.name + ".part.npz")
    np.savez(part, **vars(clip))
    os.replace(part, path)


def read_clips(folder: Path) -> list[PosedClip]:
    """The clips of a folder, in the order of their names.

    Raises:
        LongtakeError: there are none, or they differ in size.
    """
    clips = []
    for path in sorted(folder.glob("*.npz")):
        if path.name.endswith(".part.npz"):
            continue
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("frames", "world_from_cam", "intrinsics")}
            clips.append(PosedClip(**arrays, prompt=str(file["prompt"])))
    if not clips:
        raise LongtakeError(f"{folder}: no clips (*.npz, written by save_clip)")
    if len(sizes := {clip.frames.shape[1:3] for clip in clips}) > 1:
        raise LongtakeError(f"{folder}: clips of {len(sizes)} sizes: {sorted(sizes)}; training takes one")
    return clips


# ---- the autoencoder -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VaeRecipe:
    """How the autoencoder is trained: absolute differences of pixels and of their slopes, on latents with noise."""

    steps: int = 4000
    batch: int = 1
    frames: int = 17
    crop: tuple[int, int] = (128, 224)  # rows and columns that a step sees: from small parts it learns their edges
    still_steps: int = 300  # first steps, which see whole single pictures
    rate: float = 0.02
    edges: float = 0.5  # weight of slopes
    noise: float = 0.02  # standard deviation added to latents, whose size is held near 1
    size: float = 1e-3  # weight of the latents' mean square
    average: float = 0.995  # how much of the running average of the weights a step keeps
    half: bool = True  # products in bfloat16
    encoder: bool = True  # train it too; without, latents keep their meaning for a network that knows them
    seed: int = 0


def train_vae(
    vae: Vae,
    clips: Sequence[PosedClip],
    recipe: VaeRecipe,
    *,
    checkpoint: Path,
    save_every: int = 200,
    log: Log = lambda step, loss: None,
) -> Vae:
    """The autoencoder trained; goes on where `checkpoint` stands.

    With the encoder, latents are normalised to mean 0 and deviation 1 in the end.
    """
    if recipe.frames % TIME != 1 or any(side % SPACE for side in recipe.crop):
        raise LongtakeError(f"frames {recipe.frames} are not {TIME} k + 1, or sides {recipe.crop} not in {SPACE}s")

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        frames = 1 if step < recipe.still_steps else recipe.frames
        parts = [_part(clips, frames, rng)[0] for _ in range(recipe.batch)]
        video = torch.stack([to_video(x if frames == 1 else _crop(x, recipe.crop, rng)) for x in parts])
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.half):
            mean = vae.encoder(video)[:, : vae.config.latent_channels]
            latents = mean.float() + recipe.noise * torch.randn(mean.shape, generator=draws)
            back = torch.cat(list(vae.decoder([latents])), 2).float()
        return reconstruction_loss(back, video, recipe.edges) + recipe.size * mean.float().square().mean()

    vae.encoder.requires_grad_(recipe.encoder)
    average = _train(vae, loss_of, recipe.steps, recipe.rate, recipe.average, checkpoint, save_every, log)
    if not recipe.encoder:
        return average
    with torch.inference_mode():
        latents = torch.cat(
            [average.encode(to_video(c.frames[: recipe.frames])[None]).transpose(0, 1).flatten(1) for c in clips[:64]],
            1,
        )
        average.latents_mean += latents.mean(1) * average.latents_std
        average.latents_std *= latents.std(1)
    return average


def reconstruction_loss(back: Tensor, video: Tensor, edges: float) -> Tensor:
    """Mean absolute difference of [B, 3, F, H, W], and `edges` times that of what changes along rows and columns."""
    off = back - video
    return off.abs().mean() + edges * (off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()) / 2


def to_video(frames: NDArray[np.uint8]) -> Tensor:
    """[F, H, W, 3] RGB -> [3, F, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 0).float() / 127.5 - 1


def _part(
    clips: Sequence[PosedClip], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """Frames, poses and intrinsics of a random part of a random clip, forwards or backwards: the scene stands still."""
    clip = clips[int(rng.integers(len(clips)))]
    if len(clip.frames) < count:
        raise LongtakeError(f"a clip of {len(clip.frames)} frames, where training takes {count}")
    start = rng.integers(len(clip.frames) - count + 1)
    order = np.arange(start, start + count)[:: rng.choice([-1, 1])]
    return clip.frames[order], clip.world_from_cam[order], clip.intrinsics[order]


def _crop(frames: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of the picture [F, H, W, 3], the same in every frame; at most the whole."""
    rows, cols = (min(a, b) for a, b in zip(size, frames.shape[1:3], strict=True))
    top, left = rng.integers(frames.shape[1] - rows + 1), rng.integers(frames.shape[2] - cols + 1)
    return frames[:, top : top + rows, left : left + cols]


# ---- the flow --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentClips:
    """Clips as the network is trained on them. Frame 0 of each is the given first picture."""

    latents: Tensor  # [N, C, T, rows, cols] normalised
    camera: Tensor  # [N, T, 20]
    plucker: Tensor  # [N, 48, T, rows, cols]
    prompts: tuple[str, ...]  # [N]


def encode_clips(
    vae: Vae, clips: Sequence[PosedClip], *, frames: int, every: int = 4, half: bool = True
) -> LatentClips:
    """Parts of `frames` frames, one from each `every`-th frame on, forwards and backwards: the scenes stand still.

    Raises:
        LongtakeError: no clip has so many frames.
    """
    latents, camera, plucker, prompts = [], [], [], []
    for clip in clips:
        height, width = clip.frames.shape[1:3]
        for start in range(0, len(clip.frames) - frames + 1, every):
            for order in (np.arange(start, start + frames), np.arange(start + frames - 1, start - 1, -1)):
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                    latents.append(vae.encode(to_video(clip.frames[order])[None])[0])
                rows, cols = latents[-1].shape[-2:]
                poses, k = torch.from_numpy(clip.world_from_cam[order]), torch.from_numpy(clip.intrinsics[order])
                seen, rays = pack(poses, k, width=width, height=height, rows=rows, cols=cols)
                camera.append(seen)
                plucker.append(rays)
                prompts.append(clip.prompt)
    if not latents:
        raise LongtakeError(f"none of the {len(clips)} clips has {frames} frames")
    return LatentClips(
        latents=torch.stack(latents).clone(),
        camera=torch.stack(camera),
        plucker=torch.stack(plucker),
        prompts=tuple(prompts),
    )


@dataclass(frozen=True, kw_only=True)
class NetRecipe:
    """How the network is trained: the squared error of the flow's velocity in all frames but the given one."""

    steps: int = 2600
    batch: int = 8
    rate: float = 0.02
    noisier: float = 1.0  # times are logistic of a normal number with this mean and deviation 1; 1 is noise alone
    own_times: float = 0.25  # share of clips in which every frame has a time of its own
    no_text: float = 0.1  # share of clips trained with the empty prompt
    average: float = 0.99
    seed: int = 0


def train_net(
    net: SanaWM,
    clips: LatentClips,
    text: Callable[[str], Text],
    recipe: NetRecipe,
    *,
    checkpoint: Path,
    save_every: int = 200,
    log: Log = lambda step, loss: None,
) -> SanaWM:
    """The network trained; goes on where `checkpoint` stands. Begin with `begin(net)`.

    Args:
        text: of a prompt; asked once for each.
    """
    read = {prompt: text(prompt) for prompt in {"", *clips.prompts}}

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        chosen = rng.integers(len(clips.latents), size=recipe.batch)
        words = [read["" if rng.random() < recipe.no_text else clips.prompts[i]] for i in chosen]
        data = clips.latents[chosen]
        sigmas = noise_levels(recipe, data.shape[2], draws)
        conditions = Conditions(
            text=torch.cat([w.states for w in words]),
            text_mask=torch.cat([w.mask for w in words]),
            camera=clips.camera[chosen],
            plucker=clips.plucker[chosen],
        )
        return flow_loss(net, data, torch.randn(data.shape, generator=draws), sigmas, conditions)

    return _train(net, loss_of, recipe.steps, recipe.rate, recipe.average, checkpoint, save_every, log)


def noise_levels(recipe: NetRecipe, frames: int, draws: torch.Generator) -> Tensor:
    """[batch, frames] from 0, data, to 1, noise: 0 in the first frame, in most clips one and the same in the others."""
    normal = torch.randn(recipe.batch, frames, generator=draws)
    own = torch.rand(recipe.batch, 1, generator=draws) < recipe.own_times
    sigmas = torch.sigmoid(torch.where(own, normal, normal[:, :1]) + recipe.noisier)
    sigmas[:, 0] = 0
    return sigmas


def flow_loss(net: SanaWM, data: Tensor, noise: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
    """Mean squared error of the velocity, noise minus data, over the frames that are not given.

    Args:
        data, noise: [B, C, T, rows, cols].
        sigmas: [B, T]; frames at 0 are given.
    """
    level = sigmas[:, None, :, None, None]
    velocity = net((1 - level) * data + level * noise, 1000 * sigmas, conditions)
    asked = (sigmas > 0)[:, None, :, None, None].expand_as(data)
    return (velocity - (noise - data)).square()[asked].mean()


def begin_vae(vae: Vae) -> Vae:
    """Values that training starts from: layers that keep the size pass their input on."""
    for module in vae.modules():
        if isinstance(module, Resnet):
            nn.init.zeros_(module.conv2.conv.weight)
            nn.init.zeros_(module.conv2.conv.bias)  # type: ignore[arg-type]
    return vae


def begin(net: SanaWM) -> SanaWM:
    """Values that training starts from: filters over frames and gates do nothing yet, rays do not enter yet."""
    for block in net.blocks:
        assert isinstance(block, Block)
        attn = block.attn
        for gate in (attn.beta_proj, attn.gate_proj, attn.output_gate):
            nn.init.zeros_(gate.weight)
        nn.init.constant_(attn.beta_proj.bias, 5.0)  # 0.993: a token corrects the memory fully
        nn.init.zeros_(attn.gate_proj.bias)
        nn.init.constant_(attn.dt_bias, -5.0)  # a frame keeps 0.993 of the memory
        nn.init.constant_(attn.output_gate.bias, 1.278464542761074)  # its SiLU is 1
        if not attn.softmax:
            for conv in (attn.conv_k, attn.conv_k_cam):
                nn.init.zeros_(conv.weight)
                conv.weight.data[..., -1] = 1.0
        attn.q_proj_cam.weight.data.copy_(attn.qkv.weight[: net.config.width])
        attn.k_proj_cam.weight.data.copy_(attn.qkv.weight[net.config.width : 2 * net.config.width])
        attn.v_proj_cam.weight.data.copy_(attn.qkv.weight[2 * net.config.width :])
        nn.init.zeros_(attn.out_proj_cam.weight)
        nn.init.zeros_(attn.out_proj_cam.bias)
        for linear in (attn.q_proj_cam, attn.k_proj_cam, attn.v_proj_cam, block.plucker_proj):
            if linear is not None:
                nn.init.zeros_(linear.bias)
        if block.plucker_proj is not None:
            nn.init.zeros_(block.plucker_proj.weight)
        block.scale_shift_table.data[[2, 5]] = 0.5  # attention and MLP enter half
    last = net.t_block[1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    nn.init.constant_(net.attention_y_norm.weight, 0.01)
    nn.init.zeros_(net.final_layer.linear.weight)
    nn.init.zeros_(net.final_layer.linear.bias)
    return net


# ---- both ------------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for matrices and filters, Adam for all else.

    Nets of this kind took an eighth of AdamW's steps. Source: Jordan et al., github.com/KellerJordan/Muon (2024).

    Args:
        rate: of matrices; Adam's is a twentieth of it.
    """

    def __init__(self, weights: Iterable[nn.Parameter], rate: float) -> None:
        super().__init__(weights, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:  # a part that nothing uses
                    continue
                grad, state = weight.grad, self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                    state["square"] = torch.zeros_like(weight) if weight.ndim < 2 else torch.zeros(0)
                    state["steps"] = 0
                state["steps"] += 1
                if weight.ndim < 2:
                    state["mean"].lerp_(grad, 0.1)
                    state["square"].lerp_(grad.square(), 0.02)
                    mean, square = (state[x] / (1 - b ** state["steps"]) for x, b in (("mean", 0.9), ("square", 0.98)))
                    weight.sub_(mean / (square.sqrt() + 1e-8), alpha=group["lr"] / 20)
                else:
                    state["mean"].lerp_(grad, 0.05)
                    matrix = grad.lerp(state["mean"], 0.95).flatten(1)
                    size = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                    weight.sub_(orthogonal(matrix).view_as(weight), alpha=group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are 1, by five steps of Newton and Schulz; float32."""
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.bfloat16().mT
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.mT).float()


def _train(
    net: _Net,
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: float,
    average: float,
    checkpoint: Path,
    save_every: int,
    log: Log,
) -> _Net:
    """`steps` steps, the rate falling to nothing; returns `net` with the running average of its weights."""
    weights = dict(net.named_parameters())
    mean = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = Muon(net.parameters(), rate)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        mean, done = state["mean"], state["done"]
    net.train()
    for step in range(done, steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.02 + 0.98 * (1 - step / steps))
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([w for w in net.parameters() if w.grad is not None], 1.0)
        optimizer.step()
        keep = min(average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, weight in weights.items():
                mean[name].lerp_(weight, 1 - keep)
        log(step, loss.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            part = checkpoint.with_name(checkpoint.name + ".part")
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean, "done": step + 1}
            torch.save(state, part)
            os.replace(part, checkpoint)
    net.load_state_dict(mean, strict=False)  # buffers stay
    return net.eval().requires_grad_(False)
