"""What every reader of splat files gives, and what readers share: refusals, limits, packed quaternions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...records import BadMedia

MAX_SPLATS = 32_000_000  # 59 float32 each at degree 3: 7.6 GB
MAX_RATIO, RATIO_SLACK = 100, 1 << 24  # real scenes unpack to at most ten times their size


@dataclass(frozen=True, kw_only=True, eq=False)
class RawScene:
    """What a file says, in the terms of `Gaussians` (linear scales and opacities, axes as in PLY), nothing checked."""

    fields: dict[str, NDArray[np.float32]]  # by the names of Gaussians' fields; values may be NaN, zero, out of range
    antialiased: bool | None = None  # trained for antialiased drawing; None where the format does not tell
    remarks: tuple[str, ...] = ()  # what a user should know: extensions left out, values folded in


def check_count(path: Path, count: int, max_splats: int) -> int:
    """The number of splats that a header states, before anything is allocated for them."""
    if count == 0:
        raise BadMedia("empty_scene", f"{path}: holds 0 splats, so there is nothing to draw")
    if not 0 < count <= max_splats:
        raise BadMedia(
            "too_large",
            f"{path}: its header says {count} splats, more than the {max_splats} allowed. If that is true, raise "
            "max_splats (a splat takes up to 236 bytes of memory), or thin the scene out.",
        )
    return count


def check_ratio(path: Path, packed: int, unpacked: int) -> None:
    """Refuse a compressed file that says it unpacks to far more than any real scene does."""
    if unpacked > MAX_RATIO * packed + RATIO_SLACK:
        raise BadMedia(
            "too_large",
            f"{path}: {packed} compressed bytes say they unpack to {unpacked}; no scene compresses like that, so the "
            "file is broken or made to exhaust memory. Write it again as PLY with the program that made it.",
        )


def truncated(path: Path, what: str, want: int, got: int) -> BadMedia:
    return BadMedia("truncated", f"{path}: {what} takes {want} bytes, but {got} are there. Copy the file again.")


def broken(path: Path, what: str) -> BadMedia:
    return BadMedia("broken_scene", f"{path}: {what}. Copy the file again, or write it again as PLY.")


def unsupported(path: Path, what: str) -> BadMedia:
    return BadMedia("unsupported_scene", f"{path}: {what}")


def unit(codes: NDArray, most: int = 255) -> NDArray[np.float32]:
    """Codes 0 .. most spread over 0 .. 1."""
    return codes.astype(np.float32) / np.float32(most)


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Opacities of logits; an infinite logit is an opacity of exactly 0 or 1, as converters write them."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def logit(opacities: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of `sigmoid`; 0 and 1 become finite values that come back as exactly 0 and 1."""
    p = opacities.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(p) - np.log1p(-p), -110, 20).astype(np.float32)


def linear_scales(logs: NDArray[np.floating]) -> NDArray[np.float32]:
    """The exponential of the logarithms that files store."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is counted as not finite
        return np.exp(logs.astype(np.float32, copy=False))


def unpack_quaternions(three: NDArray[np.floating], largest: NDArray) -> NDArray[np.float32]:
    """Unit quaternions [N, 4] from three components [N, 3] and which of the four was the largest, and left out [N]."""
    out = np.empty((len(three), 4), np.float32)
    np.put_along_axis(out, _OTHERS[largest], three, 1)
    rest = np.sqrt(np.maximum(0, 1 - np.square(three).sum(1)))
    np.put_along_axis(out, largest[:, None].astype(np.intp), rest[:, None], 1)
    return out


def pack_quaternions(quaternions: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """The inverse of `unpack_quaternions`: three components in +-sqrt(1/2), and the index of the largest."""
    q = quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)
    largest = np.abs(q).argmax(1)
    q *= np.where(np.take_along_axis(q, largest[:, None], 1) < 0, np.float32(-1), np.float32(1))
    return np.take_along_axis(q, _OTHERS[largest], 1), largest


_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]], np.intp)
