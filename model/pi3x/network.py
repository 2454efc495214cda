"""Pi3X: images of one scene, in any order, to cameras, point maps and a metric scale, in one pass.

Written for inference from a description of the published network; names in the state dict are the checkpoint's.
Source: Wang et al., pi^3: Permutation-Equivariant Visual Geometry Learning, arXiv 2507.13347.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dinov2 import PATCH, Attention, Block, DinoV2, DinoV2Config, LayerScale, Mlp, PatchEmbed, Rotate
from .conditions import Conditions, Known, invert_rigid, normalise
from .config import Pi3XConfig
from .heads import CameraHead, MapHead, MetricDecoder, TokenHead
from .rotary import grid_positions, rotary

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """What Pi3X says of B sequences of T frames. Lengths in metres, roughly; OpenCV camera axes; float32.

    The world frame is arbitrary: no frame is its origin.
    """

    cam_points: Tensor  # [B, T, H, W, 3] every pixel's point in its camera's frame; z is the depth
    world_points: Tensor  # [B, T, H, W, 3]
    world_from_cam: Tensor  # [B, T, 4, 4]
    confidence_logit: Tensor  # [B, T, H, W] its sigmoid ranks pixels; it is no calibrated probability
    rays: Tensor  # [B, T, H, W, 3] unit; no pinhole binds them, see geometry.intrinsics_from_points
    metric: Tensor  # [B] the scale that the lengths above were multiplied by


class Pi3X(nn.Module):
    """The network. Without `multimodal` it has no use for conditions, and no weights for them.

    Weights are float32, and so is the arithmetic; under `torch.autocast` the transformers run in the lower precision,
    the convolutions and the camera head do not.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: Pi3XConfig, *, multimodal: bool) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.register_buffer("image_mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(STD).reshape(1, 3, 1, 1))
        self.encoder = DinoV2(_encoder_config(config, channels=3))
        self.register_token = nn.Parameter(torch.zeros(1, 1, config.decoder_registers, width))
        self.decoder = nn.ModuleList(
            Block(width, heads, layer_scale=True, qk_norm=True) for _ in range(config.decoder_depth)
        )
        self.multimodal = multimodal
        if multimodal:
            self.ray_embed = PatchEmbed(2, width)
            self.depth_encoder = DinoV2(_encoder_config(config, channels=2))
            self.depth_emb = nn.Parameter(torch.zeros(1, 1, width))
            self.pose_inject_blk = nn.ModuleList(PoseBlock(width, heads) for _ in config.pose_blocks)
        self.point_decoder = TokenHead(config, width)
        self.point_head = MapHead(config, (2, 1))
        self.conf_decoder = TokenHead(config, width)
        self.conf_head = MapHead(config, (1,))
        self.camera_decoder = TokenHead(config, config.camera_width)
        self.camera_head = CameraHead(config.camera_width)
        self.metric_token = nn.Parameter(torch.zeros(1, 1, 2 * width))
        self.metric_decoder = MetricDecoder(config)
        self.metric_head = nn.Linear(config.metric_width, 1)

    def forward(self, images: Tensor, conditions: Conditions | None = None) -> Reconstruction:
        """Reconstruct B scenes from T images each; the order of the images does not matter.

        Args:
            images: [B, T, 3, H, W] RGB in [0, 1], H and W multiples of 14 (see geometry.target_size).
            conditions: what is known beforehand.

        Raises:
            ValueError: the sizes do not fit, or conditions are given to a network without `multimodal`.
        """
        if images.ndim != 5 or images.shape[2] != 3 or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, not floats [B, T, 3, H, W]")
        batch, frames, _, height, width = images.shape
        rows, cols = height // PATCH, width // PATCH
        if conditions is not None and not self.multimodal:
            raise ValueError("this network was built without its multimodal part, which conditions need")
        with torch.autocast(images.device.type, enabled=False):
            known = None if conditions is None else normalise(conditions, images)

        skip = self.config.decoder_registers
        positions = F.pad(grid_positions(rows, cols, images.device) + 1, (0, 0, skip, 0))  # registers are at (0, 0)
        features = self._decode(self._embed(images, known), positions, rows, cols, known)  # [B, T, N, 2 width]

        rotate = rotary(positions, self.config.width // self.config.heads)
        points = self.point_decoder(features.flatten(0, 1), rotate)[:, skip:]
        confidence = self.conf_decoder(features.flatten(0, 1), rotate)[:, skip:]
        camera = self.camera_decoder(features.flatten(0, 1), rotate)[:, skip:]
        rotate = rotary(positions.repeat(frames, 1), self.config.metric_width // self.config.metric_heads)
        metric = self.metric_decoder(self.metric_token.expand(batch, -1, -1), features.flatten(1, 2), rotate)

        def as_grid(tokens: Tensor) -> Tensor:
            return tokens.float().transpose(1, 2).unflatten(-1, (rows, cols))

        with torch.autocast(images.device.type, enabled=False):
            xyz = self.point_head(as_grid(points), height, width)
            confidence = self.conf_head(as_grid(confidence), height, width)
            pose = self.camera_head(camera.float())
            metric = self.metric_head(metric.float()).exp().reshape(batch)
            return _reconstruction(xyz, confidence, pose, metric)

    def _embed(self, images: Tensor, known: Known | None) -> Tensor:
        """Patch tokens [B, T, rows * cols, width], with what is known of rays and depths added."""
        frames = images.shape[:2]
        [(x, _)] = self.encoder(((images - self.image_mean) / self.image_std).flatten(0, 1))
        x = x.unflatten(0, frames)
        if known is not None and known.slopes is not None:
            rays = self.ray_embed(known.slopes.flatten(0, 1)).unflatten(0, frames)
            x = x + rays * known.ray_frames[..., None, None]
        if known is not None and known.depths is not None:
            [(depths, _)] = self.depth_encoder(known.depths.flatten(0, 1))
            x = x + (depths + self.depth_emb).unflatten(0, frames) * known.depth_frames[..., None, None]
        return x

    def _decode(self, patches: Tensor, positions: Tensor, rows: int, cols: int, known: Known | None) -> Tensor:
        """Attention within each frame and across all frames in turn: the last two blocks' outputs, side by side."""
        batch, frames = patches.shape[:2]
        skip, dim = self.config.decoder_registers, self.config.width // self.config.heads
        within, across = rotary(positions, dim), rotary(positions.repeat(frames, 1), dim)
        poses = None if known is None or known.world_from_cam is None else _PoseFrames(known, rows, cols, dim)
        x = torch.cat([self.register_token.expand(batch, frames, -1, -1), patches], dim=2)  # [B, T, N, width]
        last: list[Tensor] = []
        for i, block in enumerate(self.decoder):
            y = block(x.flatten(0, 1), within) if i % 2 == 0 else block(x.flatten(1, 2), across)
            x = y.reshape(x.shape)
            last = [*last[-1:], x]
            if poses is not None and i in self.config.pose_blocks:
                inject = self.pose_inject_blk[self.config.pose_blocks.index(i)]
                update = inject(x[:, :, skip:].flatten(1, 2), poses).unflatten(1, (frames, -1))
                x = torch.cat([x[:, :, :skip], x[:, :, skip:] + update * poses.known[..., None, None]], dim=2)
        return torch.cat(last, dim=-1)


def _encoder_config(config: Pi3XConfig, channels: int) -> DinoV2Config:
    return DinoV2Config(
        channels=channels,
        width=config.width,
        depth=config.encoder_depth,
        heads=config.heads,
        grid=config.grid,
        registers=config.encoder_registers,
        mask_token=False,
    )


def _reconstruction(xyz: Tensor, confidence: Tensor, pose: Tensor, metric: Tensor) -> Reconstruction:
    """Maps [B * T, C, H, W] and poses [B * T, 4, 4] in the network's units, metric [B] -> everything in metres."""
    batch = len(metric)
    xyz, confidence, pose = (t.unflatten(0, (batch, -1)) for t in (xyz, confidence, pose))
    slope = F.pad(xyz[:, :, :2].movedim(2, -1), (0, 1), value=1.0)  # (x / z, y / z, 1)
    cam_points = slope * xyz[:, :, 2, ..., None].clamp(max=15.0).exp()
    cam_points = cam_points * metric[:, None, None, None, None]
    world_from_cam = pose.clone()
    world_from_cam[..., :3, 3] *= metric[:, None, None]
    rotation, centre = world_from_cam[..., :3, :3], world_from_cam[..., None, None, :3, 3]
    world_points = (cam_points.flatten(2, 3) @ rotation.mT).unflatten(2, cam_points.shape[2:4]) + centre
    return Reconstruction(
        cam_points=cam_points,
        world_points=world_points,
        world_from_cam=world_from_cam,
        confidence_logit=confidence[:, :, 0],
        rays=F.normalize(slope, dim=-1),
        metric=metric,
    )


class _PoseFrames:
    """What `PoseBlock` needs of the known poses: the same for every block."""

    def __init__(self, known: Known, rows: int, cols: int, dim: int) -> None:
        assert known.world_from_cam is not None
        self.known = known.pose_frames  # [B, T]
        with torch.autocast(self.known.device.type, enabled=False):
            self.cam_from_world = invert_rigid(known.world_from_cam)
            # the known poses again, unless their rotations hold a scale, as what the published video driver feeds back
            self.world_from_cam = invert_rigid(self.cam_from_world)
        positions = grid_positions(rows, cols, self.known.device).flip(-1).repeat(self.known.shape[1], 1)
        self.turn, self.turn_back = rotary(-positions, dim // 2), rotary(positions, dim // 2)
        # only frames with a pose are looked at; where a sequence has none, all are, and the result is dropped
        seen = self.known | ~self.known.any(1, keepdim=True)
        self.seen = None if bool(seen.all()) else seen.repeat_interleave(rows * cols, dim=1)[:, None, None]


class PoseBlock(nn.Module):
    """Attention across frames in which known cameras are the position encoding: what known poses add to tokens.

    Half of a head's channels are taken, four by four, as homogeneous points that a key's camera moves to the world and
    the query's camera takes back; the other half is turned by column and row. Source: PRoPE, arXiv 2507.10496,
    without intrinsics.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, qk_norm=True)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, poses: _PoseFrames) -> Tensor:
        """x [B, T * rows * cols, width] -> what to add to it, in frames whose pose is known."""
        q, k, v = self.attn.split_heads(self.norm1(x))
        q = _move(q, poses.cam_from_world.mT, poses.turn).to(v.dtype)
        k = _move(k, poses.world_from_cam, poses.turn).to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, _move(v, poses.world_from_cam, poses.turn), attn_mask=poses.seen)
        out = _move(out, poses.cam_from_world, poses.turn_back)
        return self.ls1(self.attn.proj(out.transpose(1, 2).flatten(2))) + self.ls2(self.mlp(self.norm2(x)))


def _move(x: Tensor, motion: Tensor, turn: Rotate) -> Tensor:
    """The first half of x's channels [B, heads, T * N, D] moved by its frame's motion [B, T, 4, 4], the rest turned."""
    half = x.shape[-1] // 2
    with torch.autocast(x.device.type, enabled=False):  # coordinates, not activations
        points = x[..., :half].float().unflatten(2, (motion.shape[1], -1)).unflatten(-1, (-1, 4))
        moved = points.flatten(3, 4) @ motion[:, None].mT
        return torch.cat([moved.reshape(*x.shape[:-1], half).to(x.dtype), turn(x[..., half:])], dim=-1)
