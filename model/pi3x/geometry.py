"""From Pi3X's maps to what others need: image sizes, pinhole intrinsics, edges that no surface crosses.

Every rule here is the published code's (https://github.com/yyfz/Pi3), so that results compare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dinov2 import PATCH

PIXEL_LIMIT = 255_000


def target_size(width: int, height: int, pixel_limit: int = PIXEL_LIMIT) -> tuple[int, int]:
    """The (width, height) that images of width x height are stretched to: multiples of 14 of nearly the same aspect.

    Small images are enlarged. The two scales differ a little, and intrinsics scale with their own axis.
    """
    scale = math.sqrt(pixel_limit / (width * height)) / PATCH
    cols, rows = round(width * scale), round(height * scale)
    while cols * rows * PATCH**2 > pixel_limit:
        if cols / rows > width / height:
            cols -= 1
        else:
            rows -= 1
    return PATCH * max(cols, 1), PATCH * max(rows, 1)


def resize(images: Tensor, width: int, height: int) -> Tensor:
    """RGB images [..., H, W, 3] (uint8) stretched to [..., 3, height, width] in [0, 1], by Pillow's Lanczos filter."""
    x = images.movedim(-1, -3).float()
    x = (x @ _lanczos(x.shape[-1], width, x.device).mT).round().clamp(0, 255)
    x = (_lanczos(x.shape[-2], height, x.device) @ x).round().clamp(0, 255)
    return x / 255


def _lanczos(before: int, after: int, device: torch.device) -> Tensor:
    """Weights [after, before] of each old pixel in each new one: a windowed sinc of three lobes, widened to shrink."""
    scale = before / after
    centre = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    x = (torch.arange(before, dtype=torch.float64) + 0.5 - centre[:, None]) / max(scale, 1.0)
    weight = torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    return (weight / weight.sum(1, keepdim=True)).to(device, torch.float32)


def intrinsics_from_points(cam_points: Tensor, *, centred: bool, weight: Tensor | None = None) -> Tensor:
    """The pinhole camera that fits a map of points best, one an image: straight lines u = fx x / z + cx, v likewise.

    Args:
        cam_points: [..., H, W, 3] points, or rays, in camera axes.
        centred: keep the principal point in the image's centre.
        weight: [..., H, W] of each pixel; equal where None, as published.

    Returns:
        K [..., 3, 3] in pixels of the map, pixel centres at integer coordinates: the image's centre is (W - 1) / 2.
        `Conditions.intrinsics` has them at + 0.5: add 0.5 to cx and cy on the way there.
    """
    height, width = cam_points.shape[-3:-1]
    slope = cam_points[..., :2] / (cam_points[..., 2:].abs() + 1e-10)
    v, u = torch.meshgrid(*(torch.arange(n).to(slope) for n in (height, width)), indexing="ij")
    pixel = torch.stack([u, v], dim=-1).expand_as(slope)
    weights = torch.ones_like(slope) if weight is None else weight[..., None].expand_as(slope)

    def mean(x: Tensor) -> Tensor:
        return (x * weights).sum((-3, -2), keepdim=True) / weights.sum((-3, -2), keepdim=True)

    if centred:
        centre = pixel.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand_as(mean(slope))
        focal = mean(slope * (pixel - centre)) / mean(slope**2)
    else:
        offset = slope - mean(slope)
        focal = mean(offset * (pixel - mean(pixel))) / mean(offset**2)
        centre = mean(pixel) - focal * mean(slope)
    focal, centre = focal[..., 0, 0, :], centre[..., 0, 0, :]
    k = torch.diag_embed(F.pad(focal, (0, 1), value=1.0))
    k[..., :2, 2] = centre
    return k


def edges(cam_points: Tensor, mask: Tensor, *, jump: float = 0.03, bend_deg: float = 5.0) -> Tensor:
    """Pixels [B, H, W] where depth jumps and the surface bends: interpolated between two things, in neither of them.

    Args:
        cam_points: [B, H, W, 3].
        mask: [B, H, W] (bool) the valid pixels.
        jump: of depth within 3x3 pixels, relative to the depth.
        bend_deg: largest angle between normals of neighbours, within 3x3 pixels.
    """
    normal, has_normal = normals(cam_points, mask)
    return depth_edges(cam_points[..., 2], mask, jump) & normal_edges(normal, has_normal, bend_deg)


def depth_edges(depth: Tensor, mask: Tensor, jump: float) -> Tensor:
    """Pixels [B, H, W] around which valid depths [B, H, W] spread by more than `jump` of the depth."""
    nearest = -_max3x3((-depth).masked_fill(~mask, -torch.inf))
    return (_max3x3(depth.masked_fill(~mask, -torch.inf)) - nearest) / depth > jump


def normals(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals [B, H, W, 3] towards the camera, from valid neighbours' differences, and where there are any."""
    height, width = mask.shape[-2:]
    padded, valid = F.pad(points, (0, 0, 1, 1, 1, 1)), F.pad(mask, (1, 1, 1, 1))
    total, found = torch.zeros_like(points), torch.zeros_like(mask)
    around = [(0, 1), (1, 0), (2, 1), (1, 2)]  # up, left, down, right
    arms = [padded[:, i : i + height, j : j + width] - points for i, j in around]
    valid = [valid[:, i : i + height, j : j + width] & mask for i, j in around]
    for i in range(4):
        both = valid[i] & valid[(i + 1) % 4]
        total += F.normalize(torch.linalg.cross(arms[i], arms[(i + 1) % 4]), dim=-1) * both[..., None]
        found |= both
    return F.normalize(total, dim=-1), found


def normal_edges(normal: Tensor, mask: Tensor, bend_deg: float) -> Tensor:
    """Valid pixels [B, H, W] within 3x3 of one whose unit normal [B, H, W, 3] differs from a valid neighbour's by more.

    A pixel without a normal (zeros) is at 90 degrees to all: the rim of every hole is an edge.
    """
    height, width = mask.shape[-2:]
    padded = F.pad(normal.movedim(-1, 1), (1, 1, 1, 1), mode="replicate").movedim(1, -1)
    valid = F.pad(mask.float()[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] > 0
    angle = torch.zeros_like(normal[..., 0])
    for i in range(3):
        for j in range(3):
            cosine = (normal * padded[:, i : i + height, j : j + width]).sum(-1).clamp(-1, 1)
            seen = valid[:, i : i + height, j : j + width]
            angle = torch.where(seen, torch.maximum(angle, cosine.acos()), angle)
    return (_max3x3(angle) > math.radians(bend_deg)) & mask


def _max3x3(x: Tensor) -> Tensor:
    return F.max_pool2d(x[:, None], kernel_size=3, stride=1, padding=1)[:, 0]
