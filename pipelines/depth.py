"""What the stage `depth` takes: which networks a run needs and whether they are here, their loading, a clip's file.

Networks are loaded once in each process that works on clips, and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..annotate.depth import Precision, SingleBackend, moge2_backend, pi3x_backend, pi3x_frames
from ..annotate.depth_clip import MEANING, DepthClip
from ..annotate.shot_depth import Backends, DepthStageConfig
from ..model import hub
from ..model.intrinsics import MOGE2
from ..model.networks import NETWORKS
from .config import MissingPart, UsageError
from .stages import keep_file

if TYPE_CHECKING:
    import torch

    from ..model.moge2.network import MoGe2
    from ..model.pi3x.network import Pi3X

ROOM = 0.9  # of memory that tensors may take: libraries take some beside them
Facts = Mapping[str, str | None]  # of a network: `hub.provenance`


def needed_networks(engine: str, metric: str) -> list[Facts]:
    """The networks that a run needs, as the manifest tells of them; of MoGe-2's the largest that is here.

    Raises:
        MissingPart: weights are not here, or their licence was not accepted; names the commands that help.
    """
    names = ["pi3x"] if engine == "pi3x" else []
    if metric == "moge2":
        names.append(next((name for name in MOGE2 if hub.record(NETWORKS[name])), MOGE2[0]))
    found, lacking = [], []
    for name in names:
        try:
            found.append(hub.provenance(name))
        except MissingPart as error:
            lacking.append(str(error))
    if lacking:
        without = "Without networks: --engine classical, and no --metric"
        raise MissingPart(f"{'; '.join(lacking)}. {without}")
    return found


def check_device(name: str) -> None:
    """Raises MissingPart where this machine does not have the device, UsageError where there is no such kind."""
    import torch

    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"--device is auto, cpu, cuda or cuda:1, not {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device is auto, cpu, cuda or cuda:1, not {name!r}")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise MissingPart(
            f"--device {name}: PyTorch finds {torch.cuda.device_count()} GPUs here. Without: --device cpu"
        )


def uses_gpu(name: str) -> bool:
    """Whether networks on this device take a GPU, as far as this machine tells."""
    import torch

    return torch.cuda.is_available() if name == "auto" else torch.device(name).type == "cuda"


def remarks(networks: Sequence[Facts]) -> list[str]:
    """What a user must know of the networks that are used."""
    return [
        f"{facts['network']}: weights under {facts['licence']}, {NETWORKS[str(facts['network'])].licence.words}"
        for facts in networks
    ]


def revisions(networks: Sequence[Facts]) -> dict[str, str]:
    """Network -> commit of its weights, or their hash where that is not known."""
    return {str(f["network"]): f["revision"] or f"sha256:{f['sha256']}" for f in networks}


def licences(networks: Sequence[Facts]) -> dict[str, str]:
    """Network -> licence of its weights, and when it was accepted."""
    return {
        str(f["network"]): str(f["licence"])
        + (f", accepted {f['licence_accepted_at']}" if f["licence_accepted_at"] else "")
        for f in networks
    }


# ---- loading -----------------------------------------------------------------------------------------------------


def load_backends(networks: Sequence[str], config: DepthStageConfig) -> Backends:
    """The networks of these names, loaded unless they are, on the device and in the precision of the configuration."""
    if not networks:
        return Backends()
    import torch

    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    )
    precision = _precision(config.precision, device)
    window: Pi3X | None = None
    single: MoGe2 | None = None
    for name in networks:
        (path,) = hub.locate(name).values()
        if name == "pi3x":
            window = _load_pi3x(path, str(device))
        else:
            single = _load_moge2(path, str(device))

    def longest(width: int, height: int) -> int:
        vram = _memory(config.vram_gib, device, beside=single)
        if vram is None:
            return config.window.length
        return pi3x_frames(width, height, vram, precision=precision, multimodal=False)

    def metric(net: MoGe2) -> Callable[[tuple[int, int], float | None], SingleBackend]:
        return lambda size, fov: moge2_backend(net, precision=precision, size=size, fov_x_deg=fov)

    return Backends(
        window=None if window is None else pi3x_backend(window, precision=precision),
        longest=longest,
        single=None if single is None else metric(single),
    )


@lru_cache(maxsize=1)
def _load_pi3x(path: Path, device: str) -> Pi3X:
    from ..model.pi3x import config
    from ..model.pi3x.load import load

    return load(path, multimodal=False, device=device, config=config.PI3X)


@lru_cache(maxsize=1)
def _load_moge2(path: Path, device: str) -> MoGe2:
    from ..model.moge2.load import load

    return load(path, device=device)


def _precision(asked: str, device: torch.device) -> Precision:
    import torch

    if asked != "auto":
        return asked  # type: ignore[return-value]
    if device.type == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"


def _memory(vram_gib: float | None, device: torch.device, *, beside: MoGe2 | None) -> int | None:
    """Bytes that Pi3X may take, its weights included, beside the other network; None: no limit is known."""
    import torch

    if vram_gib is not None:
        vram = vram_gib * 2**30
    elif device.type == "cuda":  # what this process holds already is Pi3X's, the other's, or free for either
        vram = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    else:
        return None
    other = 0 if beside is None else sum(p.numel() * p.element_size() for p in beside.parameters())
    return max(int(ROOM * vram) - other, 0)


# ---- the clip's file ---------------------------------------------------------------------------------------------


def keep_depth(clip: DepthClip, out: Path, clip_id: str) -> dict[str, Any]:
    """Put the clip's depth file beside its other files below `out`; the columns of its row that tell of it."""
    uri = Path("sidecars") / clip_id / "depth.zip"
    keep_file(clip.path, out / uri)
    unit = "metres" if clip.metric else "a unit of its own, not that of c2w"
    return {"depth_uri": str(uri), "depth_encoding": f"zip of PNGs, from {clip.source}, in {unit}: {MEANING}"}
