"""The DINOv2 encoder: its checkpoint names, the resampling of its position embedding, what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from longtake.model.dinov2 import VITB14, VITL14, VITS14, DinoV2, DinoV2Config

TINY = DinoV2Config(channels=3, width=8, depth=3, heads=2, grid=5, registers=2, mask_token=False)


def seeded(config: DinoV2Config) -> DinoV2:
    torch.manual_seed(0)
    net = DinoV2(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize("name, config", [("vits", VITS14), ("vitb", VITB14), ("vitl", VITL14)])
def test_names_and_shapes_are_the_checkpoints(shared_parity, name, config):
    variants = json.loads((shared_parity / "moge2" / "checkpoint_keys.json").read_text())["variants"]
    keys = variants[f"Ruicheng/moge-2-{name}-normal"]["keys"]
    prefix = "encoder.backbone."
    with torch.device("meta"):
        net = DinoV2(config)
    ours = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert ours == {key.removeprefix(prefix): shape for key, (shape, _) in keys.items() if key.startswith(prefix)}


def cubic(t: Tensor) -> Tensor:
    """PyTorch's cubic convolution kernel (a = -0.75)."""
    a, t = -0.75, t.abs()
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return torch.where(t <= 1, (a + 2) * t**3 - (a + 3) * t**2 + 1, torch.where(t < 2, far, 0.0))


def test_position_embedding_is_sampled_by_scale_factor():
    net = DinoV2(DinoV2Config(channels=3, width=8, depth=1, heads=2, grid=12, registers=0, mask_token=False))
    ramp = torch.arange(12.0)
    with torch.no_grad():
        net.pos_embed[0, 1:, 0] = ramp.repeat_interleave(12)
        net.pos_embed[0, 1:, 1] = ramp.repeat(12)
    grid = net.position_embedding(7, 20)[0, 1:].reshape(7, 20, -1)
    rows = (torch.arange(7) + 0.5) * 12 / 7.1 - 0.5
    cols = (torch.arange(20) + 0.5) * 12 / 20.1 - 0.5
    # away from the border, where samples are repeated; float32 rounding of values up to 12
    torch.testing.assert_close(grid[2:-2, 10, 0], (cubic(rows[:, None] - ramp) @ ramp)[2:-2], rtol=0, atol=1e-5)
    torch.testing.assert_close(grid[3, 4:-4, 1], (cubic(cols[:, None] - ramp) @ ramp)[4:-4], rtol=0, atol=1e-5)


def test_position_embedding_of_the_native_grid_is_the_learned_one():
    net = seeded(TINY)
    assert net.position_embedding(5, 5) is net.pos_embed
    assert net.position_embedding(5, 6).shape == (1, 31, 8)


def test_taps_are_the_outputs_on_the_way():
    net, images = seeded(TINY), torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        first, last = net(images, [0, 2])
        [only] = net(images)
        net.blocks = net.blocks[:1]
        [early] = net(images)
    assert first[0].shape == (2, 6, 8) and first[1].shape == (2, 8)
    for a, b in zip((*last, *first), (*only, *early), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)  # the very same operations


def test_refusals():
    net = seeded(TINY)
    with pytest.raises(ValueError, match="43x28 has no whole number of 14x14 patches"):
        net(torch.zeros(1, 3, 28, 43))
    with pytest.raises(ValueError, match=r"taps \[-1, 3\] are not among the encoder's 3 blocks"):
        net(torch.zeros(1, 3, 28, 42), [-1, 0, 3])
