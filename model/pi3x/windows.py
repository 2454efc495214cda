"""Long videos as the published driver does them: overlapping windows, each moved onto the one before by a similarity.

A reference to compare with. Nothing here is robust: one bad overlap bends all that follows, scale drifts from that of
the first window, and no loop is closed. Source: `Pi3XVO` in https://github.com/yyfz/Pi3.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...geometry import align_similarity
from . import geometry
from .conditions import Conditions
from .network import Pi3X, Reconstruction

Prior = Literal["pose", "depth", "ray"]
FEWEST = 10  # pixels that a window may be aligned by


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """B videos of T frames in the world and the scale of their first window."""

    cam_points: Tensor  # [B, T, H, W, 3]
    world_points: Tensor  # [B, T, H, W, 3]
    world_from_cam: Tensor  # [B, T, 4, 4] rigid
    scale: Tensor  # [B, T] of each frame's window against the first; already applied to the points and poses
    confidence: Tensor  # [B, T, H, W] in [0, 1]; 0 at edges


@dataclass(frozen=True, kw_only=True, eq=False)
class _Window:
    """A window moved into the common world."""

    found: Reconstruction  # as the network gave it
    world_points: Tensor  # [B, T, H, W, 3]
    poses: Tensor  # [B, T, 4, 4] world_from_cam with the window's scale in the rotation block
    scale: Tensor  # [B]
    confidence: Tensor  # [B, T, H, W]
    mask: Tensor  # [B, T, H, W] the pixels to align by


@torch.inference_mode()
def reconstruct_in_windows(
    net: Pi3X,
    images: Tensor,
    *,
    length: int = 16,
    overlap: int = 6,
    min_confidence: float = 0.05,
    priors: Collection[Prior] = (),
) -> Video:
    """Reconstruct videos [B, T, 3, H, W] (as for `Pi3X.forward`) in windows of `length` frames.

    Args:
        overlap: frames that neighbouring windows share.
        min_confidence: pixels below are not aligned by, nor given as a depth prior.
        priors: what a window is told of its first `overlap` frames, as the window before saw them. As published, poses
            are told with the window's scale left in their rotations, and depths without it.

    Raises:
        ValueError: the overlap is not within 1..length - 1, or as `Pi3X.forward`.
    """
    if not 1 <= overlap < length:
        raise ValueError(f"an overlap of {overlap} frames does not fit windows of {length}; give 1 to {length - 1}")
    total = images.shape[1]
    windows: list[_Window] = []
    for start in range(0, max(total - overlap, 1), length - overlap):
        clip = images[:, start : start + length]
        told = _told(windows[-1], clip, overlap, priors, min_confidence) if windows and priors else None
        found = net(clip, told)
        confidence, mask = _confidence(found, min_confidence)
        move = torch.eye(4).to(found.world_points).repeat(len(images), 1, 1)
        if windows:
            before = windows[-1]
            both = mask[:, :overlap] & before.mask[:, -overlap:]
            move = align_points(found.world_points[:, :overlap], before.world_points[:, -overlap:], both)
        windows.append(
            _Window(
                found=found,
                world_points=found.world_points @ move[:, None, None, :3, :3].mT + move[:, None, None, None, :3, 3],
                poses=move[:, None] @ found.world_from_cam,
                scale=move[:, :3, 0].norm(dim=-1),
                confidence=confidence,
                mask=mask,
            )
        )

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat([parts[0], *(part[:, overlap:] for part in parts[1:])], dim=1)

    scale = joined([w.scale[:, None].expand(w.poses.shape[:2]) for w in windows])
    poses = joined([w.poses for w in windows])
    poses[..., :3, :3] /= scale[..., None, None]
    return Video(
        cam_points=joined([w.found.cam_points for w in windows]) * scale[..., None, None, None],
        world_points=joined([w.world_points for w in windows]),
        world_from_cam=poses,
        scale=scale,
        confidence=joined([w.confidence for w in windows]),
    )


def align_points(source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The similarity [B, 4, 4], scale in the rotation block, that moves source onto target best where mask.

    Points are [B, ..., 3], the mask [B, ...]. Identity where fewer than ten pairs are left.
    """
    moves = torch.eye(4, dtype=torch.float64).repeat(len(source), 1, 1)
    for move, a, b, m in zip(moves, source, target, mask, strict=True):
        if m.sum() >= FEWEST:
            scale, rotation, translation = align_similarity(a[m].double().cpu().numpy(), b[m].double().cpu().numpy())
            move[:3, :3] = torch.from_numpy(scale * rotation)
            move[:3, 3] = torch.from_numpy(translation)
    return moves.to(source)


def _confidence(found: Reconstruction, least: float) -> tuple[Tensor, Tensor]:
    """Confidence [B, T, H, W], 0 at edges, and the pixels to align by: the best tenth if hardly any reach `least`."""
    confidence = found.confidence_logit.sigmoid()
    points = found.cam_points
    valid = (confidence > least) & points.isfinite().all(-1) & (points[..., 2] > 0)
    edge = geometry.edges(points.flatten(0, 1), valid.flatten(0, 1)).reshape(valid.shape)
    confidence = confidence.masked_fill(edge, 0.0)
    mask = confidence > least
    for b in range(len(mask)):
        if mask[b].sum() < FEWEST:
            values = confidence[b].flatten()
            mask[b] = confidence[b] >= values.kthvalue(max(1, round(0.9 * len(values)))).values
    return confidence, mask


def _told(before: _Window, clip: Tensor, overlap: int, priors: Collection[Prior], least: float) -> Conditions:
    """What the window before knows of this one's first frames."""
    batch, frames, _, height, width = clip.shape
    known = torch.zeros(batch, frames, dtype=torch.bool, device=clip.device)
    known[:, :overlap] = True
    found = before.found
    poses = torch.eye(4).to(clip).repeat(batch, frames, 1, 1)
    poses[:, :overlap] = before.poses[:, -overlap:]
    depths = clip.new_zeros(batch, frames, height, width)
    depths[:, :overlap] = (found.cam_points[..., 2] * (before.confidence > least))[:, -overlap:]
    rays = clip.new_zeros(batch, frames, height, width, 3)
    rays[:, :overlap] = found.rays[:, -overlap:]
    return Conditions(
        world_from_cam=poses if "pose" in priors else None,
        pose_frames=known if "pose" in priors else None,
        depths=depths if "depth" in priors else None,
        depth_frames=known if "depth" in priors else None,
        rays=rays if "ray" in priors else None,
        ray_frames=known if "ray" in priors else None,
    )
