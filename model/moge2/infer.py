"""Images to metric points, depth and intrinsics: the network, then the focal length and depth shift it leaves open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .focal import recover_focal_shift, view_plane
from .network import MoGe2

_LEVELS = 9  # of resolution, 0 .. 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Geometry of a batch of images; without the B of an image that came alone.

    Lengths are metres where the network has a scale head (`metric_scale` is not None), else of an unknown unit.
    """

    points: Tensor  # [B, H, W, 3] camera axes x right, y down, z forward; inf outside the mask where it is applied
    depth: Tensor  # [B, H, W] the z of points
    mask: Tensor  # [B, H, W] bool: there is a surface, in front of the camera
    normal: Tensor | None  # [B, H, W, 3] unit vectors; 0 outside the mask where it is applied
    intrinsics: (
        Tensor  # [B, 3, 3] in widths and heights of the picture from its corner: fx width is in pixels, cx = cy = 0.5
    )
    focal_sigma: Tensor  # [B] relative standard deviation of the focal length; 0 where it was given
    focal_determined: Tensor  # [B] bool; where False the points do not tell the focal length and a prior stands in
    metric_scale: Tensor | None  # [B] metres per unit of the network, already in points and depth

    def __getitem__(self, i: int) -> Prediction:
        """One image's."""
        return Prediction(
            points=self.points[i],
            depth=self.depth[i],
            mask=self.mask[i],
            normal=None if self.normal is None else self.normal[i],
            intrinsics=self.intrinsics[i],
            focal_sigma=self.focal_sigma[i],
            focal_determined=self.focal_determined[i],
            metric_scale=None if self.metric_scale is None else self.metric_scale[i],
        )


@torch.no_grad()
def infer(
    model: MoGe2,
    image: Tensor,
    *,
    num_tokens: int | None = None,
    resolution_level: float = _LEVELS,
    fov_x_deg: float | Tensor | None = None,
    force_projection: bool = True,
    apply_mask: bool = True,
    precision: torch.dtype = torch.float32,
) -> Prediction:
    """Points, depth, normals and the focal length of images taken by a centred pinhole with square pixels.

    Args:
        model: on the device of the images.
        image: [B, 3, H, W] or [3, H, W] RGB in [0, 1], any size.
        num_tokens: about how many patches the encoder sees; from `resolution_level` if None.
        resolution_level: 0 .. 9, from the fewest to the most tokens that the network was trained with.
        fov_x_deg: horizontal field of view, one or [B], where it is known: only the depth shift is solved for.
        force_projection: put every point on the ray of its own pixel; else only its depth fits the pixel.
        apply_mask: set points and depth outside the mask to inf, normals to 0.
        precision: what the network computes in, float32, bfloat16 or float16 (autocast); everything after is float32.

    Raises:
        ValueError: the image, the level or the field of view is out of range.
    """
    alone = image.ndim == 3
    image = image[None] if alone else image
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(f"image is {image.dtype} {list(image.shape)}, not floating point [B, 3, H, W] in [0, 1]")
    if not (image.min() >= -0.5 and image.max() <= 1.5):  # resizing may overshoot a little
        raise ValueError(f"image runs from {image.min():.4g} to {image.max():.4g}, not within [0, 1]; divide by 255?")
    if not 0 <= resolution_level <= _LEVELS:
        raise ValueError(f"resolution_level {resolution_level} is not within 0 .. {_LEVELS}")
    if num_tokens is None:
        low, high = model.config.num_tokens_range
        num_tokens = int(low + resolution_level / _LEVELS * (high - low))
    if num_tokens < 1:
        raise ValueError(f"num_tokens {num_tokens} is not positive")
    batch, _, height, width = image.shape
    aspect = width / height
    diagonal = math.hypot(aspect, 1)

    focal = None
    if fov_x_deg is not None:
        half = torch.deg2rad(torch.as_tensor(fov_x_deg, dtype=torch.float64, device=image.device)) / 2
        if not ((half > 0) & (half < math.pi / 2)).all():
            raise ValueError(f"fov_x_deg {fov_x_deg} is not between 0 and 180")
        focal = (aspect / diagonal / half.tan()).expand(batch)

    with torch.autocast(image.device.type, precision, enabled=precision != torch.float32):
        maps = model(image.float(), num_tokens)

    mask = torch.ones_like(maps.points[..., 0], dtype=torch.bool) if maps.mask is None else maps.mask > 0.5
    found = recover_focal_shift(maps.points, mask, focal)
    intrinsics = torch.eye(3, device=image.device).repeat(batch, 1, 1)
    intrinsics[:, 0, 0] = found.focal / 2 * diagonal / aspect
    intrinsics[:, 1, 1] = found.focal / 2 * diagonal
    intrinsics[:, :2, 2] = 0.5

    depth = maps.points[..., 2] + found.shift[:, None, None]
    mask = mask & (depth > 0) & depth.isfinite()
    if force_projection:
        rays = view_plane(height, width).to(depth) / found.focal[:, None, None, None]  # [B, H, W, 2]
        points = torch.cat([rays * depth[..., None], depth[..., None]], -1)
    else:
        points = torch.cat([maps.points[..., :2], depth[..., None]], -1)
    if maps.metric_scale is not None:
        depth = depth * maps.metric_scale[:, None, None]
        points = points * maps.metric_scale[:, None, None, None]
    normal = maps.normal
    if apply_mask:
        depth = depth.masked_fill(~mask, math.inf)
        points = points.where(mask[..., None], math.inf)
        normal = None if normal is None else normal.where(mask[..., None], 0.0)
    prediction = Prediction(
        points=points,
        depth=depth,
        mask=mask,
        normal=normal,
        intrinsics=intrinsics,
        focal_sigma=found.focal_sigma,
        focal_determined=found.determined,
        metric_scale=maps.metric_scale,
    )
    return prediction[0] if alone else prediction
