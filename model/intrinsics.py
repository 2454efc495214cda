"""A picture's pinhole camera as different sources state it, whether the generator takes it, and cameras over time.

Without intrinsics SANA-WM asks Pi3X about the first frame and stops where a field of view is not within 25 to 120
degrees. Here the same reading stands beside others: MoGe-2, whose weights may be used freely, EXIF, known numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import LongtakeError
from . import exif, hub
from .networks import NETWORKS

if TYPE_CHECKING:
    import torch

    from .moge2.network import MoGe2
    from .pi3x.config import Pi3XConfig
    from .pi3x.network import Pi3X

MIN_FOV_DEG, MAX_FOV_DEG = 25.0, 120.0
MOGE2 = ("moge2-vitl-normal", "moge2-vitl", "moge2-vitb-normal", "moge2-vits-normal")  # the first that is here answers
_FILM_DIAGONAL_MM = math.hypot(36, 24)
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The camera of a width x height picture, as one source states it."""

    source: str  # "given", "manifest", "pi3x", "moge2", "exif_sensor" or "exif_35mm"
    width: int
    height: int
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy pixels, pixel centres at integer coordinates
    focal_sigma: float | None = None  # relative standard deviation; None where the source states none
    remark: str = ""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.intrinsics).all() and self.intrinsics[0] > 0 and self.intrinsics[1] > 0):
            values = ", ".join(f"{value:.6g}" for value in self.intrinsics)
            raise LongtakeError(f"{self.source}: fx, fy, cx, cy = {values} are no camera's: focal lengths are above 0")

    @property
    def fov_deg(self) -> tuple[float, float]:
        """Horizontal and vertical, 2 atan(size / 2f), wherever the principal point is."""
        fx, fy = self.intrinsics[:2]
        return 2 * math.degrees(math.atan(self.width / (2 * fx))), 2 * math.degrees(math.atan(self.height / (2 * fy)))

    @property
    def in_range(self) -> bool:
        """Both fields of view lie strictly between 25 and 120 degrees."""
        return all(MIN_FOV_DEG < fov < MAX_FOV_DEG for fov in self.fov_deg)

    @property
    def argument(self) -> str:
        """As --intrinsics takes it."""
        return ",".join(f"{value:.6g}" for value in self.intrinsics)

    def focal_over(self, other: Reading) -> float:
        """This focal length over the other's: 1.1 is 10 % longer."""
        return math.sqrt(math.prod(self.intrinsics[:2]) / math.prod(other.intrinsics[:2]))


def check_fov(reading: Reading, others: Iterable[Reading] = ()) -> None:
    """Raises LongtakeError with the values and the ways out, unless the reading is in range; `others` may be ways."""
    if reading.in_range:
        return
    fov_x, fov_y = reading.fov_deg
    fx, fy = reading.intrinsics[:2]
    ways = [f"{r.source} says {r.fov_deg[0]:.2f} x {r.fov_deg[1]:.2f}: --intrinsics {r.argument}" for r in others]
    if reading.source != "given":
        ways.insert(0, "where the camera is known, give it: --intrinsics f or fx,fy,cx,cy in pixels")
    ways.append("take the middle of the picture" if max(fov_x, fov_y) >= MAX_FOV_DEG else "take a wider picture")
    raise LongtakeError(
        f"the field of view is {fov_x:.2f} x {fov_y:.2f} degrees by {reading.source} (fx {fx:.6g}, fy {fy:.6g} pixels "
        f"of {reading.width} x {reading.height}); both must lie between {MIN_FOV_DEG:g} and {MAX_FOV_DEG:g}. "
        f"Ways out: {'; '.join(ways)}"
    )


# ---- sources ------------------------------------------------------------------------------------------------------


def given(numbers: Sequence[float], width: int, height: int) -> Reading:
    """The camera of (f,), with the principal point in the centre, or of (fx, fy, cx, cy)."""
    fx, fy, cx, cy = (*numbers, *numbers, (width - 1) / 2, (height - 1) / 2) if len(numbers) == 1 else numbers
    return Reading(source="given", width=width, height=height, intrinsics=(fx, fy, cx, cy))


def from_exif(tags: Mapping[int, float], width: int, height: int, *, turned: bool) -> list[Reading]:
    """What a picture's tags say: by focal length and sensor, by 35 mm equivalent, by both or not at all.

    The equivalent has the same angle along the diagonal (CIPA DCG-001) and is stated in whole millimetres.

    Args:
        tags: of `exif.read_exif`.
        width, height: upright.
        turned: upright is a quarter turn from how the camera stored it.

    Raises:
        LongtakeError: the picture was cropped since the camera wrote it, so its tags are another picture's.
    """
    stored = np.array([height, width] if turned else [width, height], np.float64)
    written = np.array([tags.get(exif.WIDTH, 0), tags.get(exif.HEIGHT, 0)]) if exif.HEIGHT in tags else stored
    scale = stored / np.where(written > 0, written, stored)
    if max(scale) / min(scale) > 1.01:
        raise LongtakeError(
            f"EXIF is of a picture of {written[0]:g} x {written[1]:g}, and this one of {stored[0]:g} x {stored[1]:g} "
            "was cropped from it or stretched"
        )
    found: dict[str, tuple[float, float]] = {}
    unit_mm = _UNIT_MM.get(int(tags.get(exif.UNIT, 2)))
    focal_mm, x_per_unit = tags.get(exif.FOCAL_MM, 0), tags.get(exif.X_PER_UNIT, 0)
    if focal_mm > 0 and x_per_unit > 0 and unit_mm is not None:
        per_unit = np.array([x_per_unit, tags.get(exif.Y_PER_UNIT) or x_per_unit])
        fx, fy = focal_mm * per_unit / unit_mm * scale
        found["exif_sensor"] = (fy, fx) if turned else (fx, fy)
    if (focal_35mm := tags.get(exif.FOCAL_35MM, 0)) > 0:
        f = focal_35mm / _FILM_DIAGONAL_MM * math.hypot(width, height)
        found["exif_35mm"] = (f, f)
    return [_centred(source, width, height, fx, fy) for source, (fx, fy) in found.items()]


def from_pi3x(net: Pi3X, rgb: NDArray[np.uint8]) -> Reading:
    """SANA-WM's reading: Pi3X on one picture rgb [H, W, 3], whole, focal lengths by centred least squares on its rays.

    The principal point is the picture's centre, (W - 1) / 2; published code scales that of the smaller picture
    instead, which ends up a pixel or so beside it.
    """
    import torch

    from .pi3x.geometry import intrinsics_from_points, resize, target_size

    height, width = rgb.shape[:2]
    small_width, small_height = target_size(width, height)
    device = next(net.parameters()).device
    image = resize(torch.tensor(rgb, device=device), small_width, small_height)
    cuda = device.type == "cuda"
    with torch.inference_mode(), torch.autocast(device.type, _half(device) if cuda else torch.bfloat16, enabled=cuda):
        rays = net(image[None, None]).rays[0, 0]
    k = intrinsics_from_points(rays.double(), centred=True).cpu().numpy()
    remark = f"weights: {NETWORKS['pi3x'].licence.name}"
    return _centred("pi3x", width, height, k[0, 0] * width / small_width, k[1, 1] * height / small_height, None, remark)


def from_moge2(net: MoGe2, rgb: NDArray[np.uint8]) -> Reading:
    """MoGe-2's reading of one picture rgb [H, W, 3]: square pixels.

    Raises:
        LongtakeError: its points do not tell the focal length.
    """
    import torch

    from .moge2.infer import infer

    height, width = rgb.shape[:2]
    device = next(net.parameters()).device
    image = torch.tensor(rgb, device=device).movedim(-1, 0) / 255
    found = infer(net, image, precision=torch.float16 if device.type == "cuda" else torch.float32)
    if not found.focal_determined:
        raise LongtakeError("moge2: the points that it sees do not tell the focal length (too flat, or too few)")
    focal = float(found.intrinsics[0, 0]) * width
    remark = f"weights: {NETWORKS[MOGE2[0]].licence.name}"
    return _centred("moge2", width, height, focal, focal, float(found.focal_sigma), remark)


def ask_pi3x(rgb: NDArray[np.uint8], *, config: Pi3XConfig | None = None) -> Reading:
    """`from_pi3x` with the fetched weights; raises MissingPart where there are none, with the command to fetch them."""
    path = hub.locate("pi3x")["model.safetensors"]
    from .pi3x.config import PI3X
    from .pi3x.load import load

    return from_pi3x(load(path, multimodal=False, device=_device(), config=config or PI3X), rgb)


def ask_moge2(rgb: NDArray[np.uint8]) -> Reading:
    """`from_moge2` with the largest of the fetched networks; raises MissingPart as `ask_pi3x`."""
    here = next((name for name in MOGE2 if hub.record(NETWORKS[name])), MOGE2[0])
    path = hub.locate(here)["model.pt"]
    from .moge2.load import load

    return from_moge2(load(path, device=_device()), rgb)


def _centred(
    source: str, width: int, height: int, fx: float, fy: float, sigma: float | None = None, remark: str = ""
) -> Reading:
    numbers = (float(fx), float(fy), (width - 1) / 2, (height - 1) / 2)
    return Reading(source=source, width=width, height=height, intrinsics=numbers, focal_sigma=sigma, remark=remark)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _half(device: torch.device) -> torch.dtype:
    """bfloat16 from Ampere on, as published."""
    import torch

    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


# ---- over time ----------------------------------------------------------------------------------------------------


def resample(intrinsics: NDArray, times_s: NDArray, at_s: NDArray) -> NDArray[np.float64]:
    """Intrinsics [N, 4] at other times at_s [N]: log f straight between neighbours, as a zoom runs, and cx, cy too.

    Args:
        intrinsics: [T, 4] fx, fy, cx, cy; where T is 1, at all times.
        times_s: [T] strictly increasing.

    Raises:
        ValueError: times go back, or some of `at_s` lie outside of them by more than a microsecond.
    """
    k, times, at = (np.asarray(x, np.float64) for x in (intrinsics, times_s, at_s))
    if k.shape != (len(times), 4) or not np.isfinite(k).all() or (k[:, :2] <= 0).any():
        raise ValueError(f"intrinsics {list(k.shape)} are not [{len(times)}, 4], finite, with focal lengths above 0")
    if (np.diff(times) <= 0).any():
        raise ValueError("times_s must increase strictly: sort the frames by time")
    if len(times) == 1:
        return np.tile(k, (len(at), 1))
    outside = at[~((at >= times[0] - 1e-6) & (at <= times[-1] + 1e-6))]
    if outside.size:
        raise ValueError(f"{outside[0]:g} s lies outside of the intrinsics' times, {times[0]:g} to {times[-1]:g} s")
    straight = np.concatenate([np.log(k[:, :2]), k[:, 2:]], axis=1)
    out = np.stack([np.interp(at, times, column) for column in straight.T], axis=1)
    out[:, :2] = np.exp(out[:, :2])
    return out
