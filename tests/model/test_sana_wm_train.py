"""Training from nothing, with networks of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtake.errors import LongtakeError
from longtake.model.sana_wm.config import SanaWMConfig
from longtake.model.sana_wm.nano import HashedWords
from longtake.model.sana_wm.network import Conditions, SanaWM
from longtake.model.sana_wm.train import (
    LatentClips,
    NetRecipe,
    PosedClip,
    VaeRecipe,
    begin,
    begin_vae,
    encode_clips,
    flow_loss,
    noise_levels,
    orthogonal,
    read_clips,
    save_clip,
    train_net,
    train_vae,
)
from longtake.model.sana_wm.vae import Vae, VaeConfig

CONFIG = SanaWMConfig(
    latent_channels=4,
    text_width=64,
    plucker_channels=48,
    heads=2,
    head_dim=16,
    text_heads=2,
    depth=2,
    softmax_blocks=(1,),
    plucker_blocks=2,
    ffn_width=32,
)
VAE = VaeConfig(
    latent_channels=4,
    encoder_widths=(8, 8, 8, 8),
    encoder_layers=(0, 1, 0, 0, 0),
    decoder_widths=(8, 16, 32),
    decoder_layers=(1, 0, 0, 0),
    decoder_causal=False,
)


def clip(seed: int, frames: int = 17) -> PosedClip:
    """A coloured ramp that slides as the camera goes sideways."""
    rng = np.random.default_rng(seed)
    colour, x = rng.uniform(0.3, 1, 3), np.arange(64)[None, None, :] + 2 * np.arange(frames)[:, None, None]
    wave = np.broadcast_to(127 + 120 * np.sin(x / 15), (frames, 64, 64))
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, 0, 3] = 0.02 * np.arange(frames)
    return PosedClip(
        frames=(wave[..., None] * colour).astype(np.uint8),
        world_from_cam=pose,
        intrinsics=np.tile([50.0, 50.0, 31.5, 31.5], (frames, 1)),
        prompt=f"clip {seed % 2}",
    )


def latents() -> LatentClips:
    torch.manual_seed(0)
    return encode_clips(begin_vae(Vae(VAE)), [clip(0), clip(1)], frames=9, every=4, half=False)


def network() -> SanaWM:
    torch.manual_seed(1)
    return begin(SanaWM(CONFIG))


def test_clips_are_read_as_they_were_written(tmp_path: Path):
    for seed in (1, 0):
        save_clip(tmp_path / f"{seed}.npz", clip(seed))
    (tmp_path / "2.npz.part.npz").write_bytes(b"a run that was cut off")
    first, second = read_clips(tmp_path)
    assert (first.prompt, second.prompt) == ("clip 0", "clip 1")
    np.testing.assert_array_equal(second.frames, clip(1).frames)
    np.testing.assert_array_equal(second.world_from_cam, clip(1).world_from_cam)


def test_wrong_clips_are_named(tmp_path: Path):
    with pytest.raises(LongtakeError, match="no clips"):
        read_clips(tmp_path)
    good: dict[str, Any] = dict(vars(clip(0)))
    with pytest.raises(LongtakeError, match="has no camera"):
        PosedClip(**{**good, "world_from_cam": np.full((17, 4, 4), np.nan)})
    with pytest.raises(LongtakeError, match="multiples of 32"):
        PosedClip(**{**good, "frames": good["frames"][:, :40]})
    with pytest.raises(LongtakeError, match="none of the 1 clips has 25 frames"):
        encode_clips(Vae(VAE), [clip(0)], frames=25)


def test_the_autoencoder_learns_and_normalises_its_latents(tmp_path: Path):
    losses: list[float] = []
    recipe = VaeRecipe(steps=40, frames=9, crop=(64, 64), still_steps=10, half=False, average=0.5)
    torch.manual_seed(0)
    vae = begin_vae(Vae(VAE))
    clips = [clip(0), clip(1)]
    trained = train_vae(vae, clips, recipe, checkpoint=tmp_path / "vae.pt", log=lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[10:15])
    made = encode_clips(trained, clips, frames=9, every=2, half=False).latents
    assert abs(float(made.mean())) < 0.5 and 0.5 < float(made.std()) < 2
    again = train_vae(Vae(VAE), clips, recipe, checkpoint=tmp_path / "vae.pt", log=lambda *_: pytest.fail("a step"))
    torch.testing.assert_close(again.state_dict(), trained.state_dict())


def test_the_network_learns(tmp_path: Path):
    losses: list[float] = []
    recipe = NetRecipe(steps=60, batch=4)
    log = lambda _, loss: losses.append(loss)  # noqa: E731
    train_net(network(), latents(), HashedWords().prompt, recipe, checkpoint=tmp_path / "net.pt", log=log)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_a_training_that_was_cut_off_ends_the_same(tmp_path: Path):
    data, words, recipe = latents(), HashedWords().prompt, NetRecipe(steps=6, batch=2)
    whole = train_net(network(), data, words, recipe, checkpoint=tmp_path / "whole.pt")

    class CutOff(Exception):
        pass

    def stop(step: int, _: float) -> None:
        if step == 4:
            raise CutOff

    with pytest.raises(CutOff):
        train_net(network(), data, words, recipe, checkpoint=tmp_path / "cut.pt", save_every=3, log=stop)
    steps: list[int] = []
    log = lambda step, _: steps.append(step)  # noqa: E731
    rest = train_net(network(), data, words, recipe, checkpoint=tmp_path / "cut.pt", save_every=3, log=log)
    assert steps == [3, 4, 5]
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_noise_is_of_clips_and_of_frames():
    levels = noise_levels(NetRecipe(batch=400, own_times=0.25), 5, torch.Generator().manual_seed(0))
    assert (levels[:, 0] == 0).all() and ((levels[:, 1:] > 0) & (levels[:, 1:] < 1)).all()
    own = (levels[:, 1:] != levels[:, 1:2]).any(1).float().mean()
    assert 0.18 < own < 0.32


def test_the_given_frame_is_clean_and_not_asked_for():
    data = torch.randn(2, 4, 3, 2, 2)
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x, timesteps, conditions):
            seen.append((x, timesteps))
            out = noise - data
            return torch.cat([torch.full_like(out[:, :, :1], 1e6), out[:, :, 1:]], 2)

    noise, sigmas = torch.randn_like(data), torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.2, 0.9]])
    assert flow_loss(Net(), data, noise, sigmas, None) == 0  # type: ignore[arg-type]
    ((x, timesteps),) = seen
    torch.testing.assert_close(x[:, :, 0], data[:, :, 0])
    torch.testing.assert_close(x[1, :, 2], 0.1 * data[1, :, 2] + 0.9 * noise[1, :, 2])
    torch.testing.assert_close(timesteps, 1000 * sigmas)


def test_a_network_begins_without_its_rays():
    net, clips, words = network(), latents(), HashedWords().prompt("a room")
    torch.nn.init.normal_(net.final_layer.linear.weight)
    text = {"text": words.states, "text_mask": words.mask}
    given = Conditions(**text, camera=clips.camera[:1], plucker=clips.plucker[:1])
    none = Conditions(**text, camera=None, plucker=None)
    with torch.inference_mode():
        seen, blind = (net(clips.latents[:1], torch.full((1, 2), 500), c) for c in (given, none))
    torch.testing.assert_close(seen, blind)


def test_orthogonal_directions():
    made = torch.linalg.svdvals(orthogonal(torch.randn(20, 50, generator=torch.Generator().manual_seed(0))))
    assert 0.6 < made.min() and made.max() < 1.3
