"""The project's networks: which files of which repository at which commit, under which licence, and what they ask for.

Exactly the files that are needed: whole repositories have several times as much.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import LongtakeError


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What the weights may be used for; `must_accept` where it restricts the use."""

    name: str  # with its version
    url: str
    words: str
    must_accept: bool


@dataclass(frozen=True)
class File:
    """A file of a repository."""

    path: str
    num_bytes: int
    sha256: str | None = None  # none known: the hub's own is taken when fetching
    exact: bool = True  # False: `num_bytes` is an estimate, the hub knows better


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network's weights on the hub, and what they ask of a machine."""

    name: str
    use: str
    repo: str
    revision: str  # the commit
    files: tuple[File, ...]
    licence: Licence
    memory_bytes: int  # of a GPU, or else of the machine, to run it on the smallest useful input; an estimate

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


CC_BY_NC = Licence(
    name="CC-BY-NC-4.0",
    url="https://creativecommons.org/licenses/by-nc/4.0/",
    words="non-commercial use only, with attribution",
    must_accept=True,
)
GEMMA = Licence(
    name="Gemma Terms of Use",
    url="https://ai.google.dev/gemma/terms",
    words="use is bound to Google's terms and its prohibited-use policy",
    must_accept=True,
)
MIT = Licence(
    name="MIT",
    url="https://opensource.org/license/mit",
    words="free use; the repository's card says so, its code repository does not state it for the weights",
    must_accept=False,
)
APACHE = Licence(
    name="Apache-2.0",
    url="https://www.apache.org/licenses/LICENSE-2.0",
    words="free use, as the repository's card says",
    must_accept=False,
)
LTX_2 = Licence(
    name="Apache-2.0, derived from LTX-2",
    url="https://huggingface.co/Lightricks/LTX-2",
    words="the repository's card says Apache-2.0; LTX-2, from which it derives, has a licence of its own: read it",
    must_accept=True,
)
NVIDIA = Licence(
    name="NVIDIA License (DiFix) and Stability AI Community License",
    url="https://huggingface.co/nvidia/difix",
    words="research and evaluation only, non-commercial; derived from SD-Turbo, whose licence applies too",
    must_accept=True,
)

GB = 1_000_000_000
_SANA_WM = {
    "repo": "Efficient-Large-Model/SANA-WM_bidirectional",
    "revision": "90e0ff3b8f1f9b54a92b4b707edeaa27073aec84",
}


def _about(path: str, num_bytes: float) -> File:
    return File(path, round(num_bytes), exact=False)


def _moge2(size: str, revision: str, num_bytes: int, sha256: str, memory_gb: float) -> Network:
    return Network(
        name=f"moge2-{size}",
        use="metric depth, intrinsics" + (", normals" if size.endswith("normal") else ""),
        repo=f"Ruicheng/moge-2-{size}",
        revision=revision,
        files=(File("model.pt", num_bytes, sha256),),
        licence=MIT,
        memory_bytes=round(memory_gb * GB),
    )


# Commits, sizes and hashes are those that several independent public projects have recorded for these repositories.
# Of SANA-WM's and DiFix's files no hashes and only rounded sizes are on record: both come from the hub when fetching.
_NETWORKS = (
    Network(
        name="pi3x",
        use="depth, poses and intrinsics of many frames at once",
        repo="yyfz233/Pi3X",
        revision="bb1deea4d7423de5b30691739cb451a3f57dc1d5",
        files=(
            File(
                "model.safetensors",
                5_440_325_620,
                "69972d6e1c4492cb4d737a84fe940e357087d81c52f5c9b7c160b49c1f41669a",
            ),
        ),
        licence=CC_BY_NC,
        memory_bytes=6 * GB,  # 3.8 GB and 0.07 GB a frame of 672x378
    ),
    _moge2(
        "vitl-normal",
        "b135031bae30b5ac2ae141a0e68717795ce38340",
        1_323_815_904,
        "280741fd09bc3f403ccff9967784c2a391b52d2c0742ae3efdb21d9f90cc1a01",
        memory_gb=4,
    ),
    _moge2(
        "vitl",
        "39c4d5e957afe587e04eec59dc2bcc3be5ecd968",
        1_305_030_700,
        "3eefd4abb2102f38f12b2d1992e5ff15e4923e5431c67dd494afe157e0111cd5",
        memory_gb=4,
    ),
    _moge2(
        "vitb-normal",
        "54ad3a693e61907ea4633d13dec6ee682fa09419",
        419_110_160,
        "16b8110e86d5dc5a849db120ca96ef3a223fd30b0c9146d1d81db504073da5f6",
        memory_gb=2.5,
    ),
    _moge2(
        "vits-normal",
        "679230677b4d282c6f304189a93e98e14f085902",
        140_550_416,
        "79a16621928c2bf0ed04659218c55c01075e950507f40bb3332fb4c873d3e1dc",
        memory_gb=2,
    ),
    Network(
        name="sana-wm",
        use="video from a first frame along a camera path",
        **_SANA_WM,
        files=(_about("dit/sana_wm_1600m_720p.safetensors", 10.6544e9),),
        licence=APACHE,
        memory_bytes=round(7.5 * GB),  # of 161 frames of 1280x704: 5.4 GB and 0.08 GB a latent frame, as counted: 7.1
    ),
    Network(
        name="ltx2-vae",
        use="latent frames to pictures and back",
        **_SANA_WM,
        files=(_about("vae/config.json", 2e3), _about("vae/diffusion_pytorch_model.safetensors", 2.45e9)),
        licence=LTX_2,
        memory_bytes=round(4.5 * GB),  # of however many frames of 1280x704, as counted: 4.2
    ),
    Network(
        name="gemma2-2b",
        use="prompts for sana-wm",
        repo="Efficient-Large-Model/gemma-2-2b-it",  # the weights of google/gemma-2-2b-it, without its gate
        revision="569d9809d0c8b6722d4d31b5a77a2ec7a400650a",
        files=(
            File("config.json", 881, "b3195cba8e4a8e637f15bc0bab6b48fd0f4e02967fac72925e2dfb02c4d5b8d7"),
            File(
                "gemma-2-2b-it.safetensors",
                5_228_717_512,
                "bf06a1e6cfe1610beb98a2975e5602e7fc108d902b3ff9dd62282d749c7a2394",
            ),
            File("special_tokens_map.json", 636, "baec30ea10906f16adb8c18af7a34023002c1746542612b8b41c9f09e1351351"),
            File("tokenizer.json", 17_525_357, "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922"),
            _about("tokenizer_config.json", 47e3),
        ),
        licence=GEMMA,
        memory_bytes=6 * GB,
    ),
    Network(
        name="difix",
        use="rendered frames without what splats do wrong",
        repo="nvidia/difix",
        revision="610dcfc6a33c88702e6c4af49336aa55606a7096",
        files=(
            _about("scheduler/scheduler_config.json", 1e3),
            _about("text_encoder/config.json", 1e3),
            _about("text_encoder/model.safetensors", 1.362e9),
            _about("tokenizer/merges.txt", 525e3),
            _about("tokenizer/special_tokens_map.json", 1e3),
            _about("tokenizer/tokenizer_config.json", 1e3),
            _about("tokenizer/vocab.json", 1.06e6),
            _about("unet/config.json", 2e3),
            _about("unet/diffusion_pytorch_model.safetensors", 3.464e9),
            _about("vae/config.json", 1e3),
            _about("vae/diffusion_pytorch_model.safetensors", 0.34e9),
        ),
        licence=NVIDIA,
        memory_bytes=8 * GB,
    ),
    Network(
        name="ltx2-refiner",
        use="detail for sana-wm's videos",
        **_SANA_WM,
        files=(
            _about("refiner/transformer/config.json", 2e3),
            _about("refiner/transformer/diffusion_pytorch_model.safetensors", 37.753e9),
            _about("refiner/connectors/config.json", 1e3),
            _about("refiner/connectors/diffusion_pytorch_model.safetensors", 2.87e9),
        ),
        licence=LTX_2,
        memory_bytes=30 * GB,
    ),
    Network(
        name="gemma3-12b",
        use="prompts for ltx2-refiner",
        **_SANA_WM,
        files=(
            *(_about(f"refiner/text_encoder/model-{i:05}-of-00011.safetensors", 4.432e9) for i in range(1, 12)),
            _about("refiner/text_encoder/model.safetensors.index.json", 110e3),
            _about("refiner/text_encoder/config.json", 2e3),
            _about("refiner/text_encoder/tokenizer.json", 33.4e6),
            _about("refiner/text_encoder/tokenizer_config.json", 1.16e6),
            _about("refiner/text_encoder/special_tokens_map.json", 1e3),
        ),
        licence=GEMMA,
        memory_bytes=28 * GB,
    ),
)
NETWORKS = {network.name: network for network in _NETWORKS}
GROUPS = {
    "annotate": ("pi3x", "moge2-vitl-normal"),
    "generate": ("sana-wm", "ltx2-vae", "gemma2-2b"),
    "refine": ("ltx2-refiner", "gemma3-12b"),
    "enhance": ("difix",),
}


def networks(names: Iterable[str]) -> list[Network]:
    """The networks by these names, or by those of groups, each once; raises LongtakeError for a name that is none."""
    found: dict[str, Network] = {}
    for name in names:
        for member in GROUPS.get(name, (name,)):
            if member not in NETWORKS:
                near = difflib.get_close_matches(member, [*NETWORKS, *GROUPS], n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                known = f"Networks: {', '.join(NETWORKS)}; groups: {', '.join(GROUPS)}"
                raise LongtakeError(f"there is no network {name!r}.{hint} {known}")
            found[member] = NETWORKS[member]
    return list(found.values())
