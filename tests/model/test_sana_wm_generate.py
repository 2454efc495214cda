"""Stage 1 from a picture, a path and a prompt to frames, with small random networks on the CPU."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longtake.errors import LongtakeError, MissingPart
from longtake.model.sana_wm.actions import FIRST, steer
from longtake.model.sana_wm.generate import Generated, Parts, Settings, fetched_parts, generate, video
from longtake.model.sana_wm.network import SanaWM
from longtake.model.sana_wm.path import CameraPath, given_path
from longtake.model.sana_wm.text import TOKENS, Text
from longtake.model.sana_wm.vae import Vae

from ..tiny_sana_wm import NET, VAE, seeded

SETTINGS = Settings(frames=17, width=128, height=96, steps=3)
K = np.array([110.0, 110.0, 70.0, 50.0])


class Words:
    """In the text encoder's place: numbers drawn from the text itself."""

    def prompt(self, text: str) -> Text:
        return self._drawn("prompt " + text)

    def negative(self, text: str) -> Text:
        return self._drawn(text)

    def _drawn(self, text: str) -> Text:
        states = torch.zeros(1, TOKENS, NET.text_width)
        count = len(text) + 1
        g = torch.Generator().manual_seed(sum(map(ord, text)))
        states[:, :count] = torch.randn(1, count, NET.text_width, generator=g)
        return Text(states=states, mask=torch.arange(TOKENS)[None] < count, lost_tokens=0)


@pytest.fixture(scope="module")
def vae() -> Vae:
    torch.manual_seed(0)
    return Vae(VAE).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def parts(vae) -> Parts:
    net = seeded(SanaWM(NET))
    return Parts(text=Words, vae=lambda: vae, net=lambda: net)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (104, 143, 3), np.uint8)


def ahead(actions: str = "w-16", k: np.ndarray = K) -> CameraPath:
    return given_path(steer(actions), k, width=143, height=104)


def frames_of(made: Generated, vae: Vae) -> np.ndarray:
    return np.stack(list(video(made, vae)))


class TestParity:
    def test_the_published_sample(self, shared_parity):
        """Case g2 from its picture, actions and intrinsics to its video, given the prompt's states and the noise."""
        t = load_file(shared_parity / "sana_wm" / "g2_sampling.safetensors")
        net, vae = SanaWM(NET), Vae(VAE)
        net.load_state_dict({k.removeprefix("sd.dit."): v for k, v in t.items() if k.startswith("sd.dit.")})
        i = load_file(shared_parity / "sana_wm" / "i_ltx2_vae.safetensors")
        vae.load_state_dict({k.removeprefix("sd."): v for k, v in i.items() if k.startswith("sd.")})

        class Given:
            def prompt(self, text: str) -> Text:
                return Text(states=t["in.prompt_embeds"][:, 0], mask=t["in.prompt_mask"].bool(), lost_tokens=0)

            def negative(self, text: str) -> Text:
                return Text(states=t["in.negative_embeds"][:, 0], mask=t["in.negative_mask"].bool(), lost_tokens=0)

        class Noise:
            def randn(self, *_args, **_kwargs) -> Tensor:
                return t["in.noise"]

        parts = Parts(
            text=Given,  # pyright: ignore[reportArgumentType]
            vae=lambda: vae.eval().requires_grad_(False),
            net=lambda: net.eval().requires_grad_(False),
        )
        path = given_path(steer("w-8,jl-4,dw-4", FIRST), t["in.intrinsics"].numpy(), width=143, height=104)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", Noise().randn)
            made = generate(parts, t["in.image"].numpy(), path, "", settings=replace(SETTINGS, steps=4, shift=9.95))
        # the picture is scaled by another implementation of Lanczos' filter: up to a grey level apart
        want = t["out.latents_final"]
        torch.testing.assert_close(made.latents, want, rtol=0, atol=1e-3 * float(want.abs().max()))
        got = torch.cat(list(vae.decode(made.latents)), 2)[:, :, :, ::4, ::4]
        want = t["out.video_sub4"]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3 * float(want.abs().max()))


class TestVideo:
    def test_shapes(self, parts, vae, picture):
        steps = []
        made = generate(
            parts, picture, ahead(), "a house", settings=SETTINGS, on_step=lambda done, of: steps.append((done, of))
        )
        assert made.latents.shape == (1, 8, 3, 3, 4) and made.latents.dtype == torch.float32
        assert bool(made.latents.isfinite().all()) and steps == [(1, 3), (2, 3), (3, 3)]
        frames = frames_of(made, vae)
        assert frames.shape == (17, 96, 128, 3) and frames.dtype == np.uint8 and frames.std() > 1
        assert (made.path.num_frames, made.path.width, made.path.height) == (17, 128, 96)
        # 143 x 104 is scaled to 132 x 96 and loses 2 columns on the left
        np.testing.assert_allclose(made.path.intrinsics[0], K * ([132 / 143, 96 / 104] * 2) - [0, 0, 2, 0])

    def test_begins_with_the_picture(self, parts, vae, picture):
        made = generate(parts, picture, ahead(), "a house", settings=SETTINGS)
        other = generate(parts, picture, ahead("a-16"), "a cat", settings=replace(SETTINGS, seed=1))
        assert torch.equal(made.latents[:, :, 0], other.latents[:, :, 0])
        assert not torch.equal(made.latents[:, :, 1:], other.latents[:, :, 1:])

    @pytest.mark.parametrize("sampler", ["euler", "dpm"])
    def test_a_seed_is_a_video(self, parts, picture, sampler):
        settings = replace(SETTINGS, sampler=sampler)
        torch.manual_seed(1)
        made = generate(parts, picture, ahead(), "a house", settings=settings)
        torch.manual_seed(2)
        assert torch.equal(generate(parts, picture, ahead(), "a house", settings=settings).latents, made.latents)

    @pytest.mark.parametrize(
        "change",
        [
            {"settings": replace(SETTINGS, seed=43)},
            {"settings": replace(SETTINGS, guidance=2.0)},
            {"settings": replace(SETTINGS, shift=3.0)},
            {"settings": replace(SETTINGS, sampler="dpm")},
            {"prompt": "a hut"},
            {"negative": "blurred"},
            {"path": ahead("s-16")},
            {"path": ahead(k=K * (2, 2, 1, 1))},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_everything_matters(self, parts, picture, change):
        given = {"path": ahead(), "prompt": "a house", "settings": SETTINGS}
        made = generate(parts, picture, **given)
        other = generate(parts, picture, **(given | change))
        assert float((made.latents - other.latents).abs().max()) > 1e-3

    def test_without_guidance_the_negative_prompt_is_not_read(self, parts, picture):
        settings = replace(SETTINGS, guidance=1.0)

        class OnlyPrompts(Words):
            negative = None  # pyright: ignore[reportAssignmentType]

        made = generate(replace(parts, text=OnlyPrompts), picture, ahead(), "a house", settings=settings)
        same = generate(parts, picture, ahead(), "a house", negative="blurred", settings=settings)
        assert torch.equal(made.latents, same.latents)

    def test_a_short_path_is_a_short_video(self, parts, picture):
        made = generate(parts, picture, ahead("w-13"), "a house", settings=SETTINGS)
        assert made.latents.shape[2] == 2 and made.path.num_frames == 9

    def test_one_network_is_in_memory_at_once(self, parts, picture):
        alive: list[weakref.ref] = []
        most = []

        def counted(make):
            def made():
                gc.collect()
                thing = make()
                alive.append(weakref.ref(thing))
                most.append(sum(ref() is not None for ref in alive))
                return thing

            return made

        own = Parts(
            text=counted(Words),
            vae=counted(lambda: Vae(VAE).requires_grad_(False)),
            net=counted(lambda: seeded(SanaWM(NET))),
        )
        generate(own, picture, ahead(), "a house", settings=SETTINGS)
        assert most == [1, 1, 1]


class TestRefusals:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"frames": 0}, "frames 0 and steps"),
            ({"width": 1270}, "sides are multiples of 32"),
            ({"height": 32}, "64 or more"),
            ({"guidance": 0.5}, "guidance 0.5 must be at least 1"),
            ({"shift": float("nan")}, "shift nan"),
            ({"sampler": "heun"}, "no sampler 'heun': euler, dpm"),
        ],
    )
    def test_settings(self, change, message):
        with pytest.raises(LongtakeError, match=message):
            Settings(**change)

    def test_pictures(self, parts, picture):
        with pytest.raises(LongtakeError, match=r"the picture is float64 \[104, 143, 3\]"):
            generate(parts, picture / 255, ahead(), "", settings=SETTINGS)
        with pytest.raises(LongtakeError, match="the picture is 104x143 and the camera path's intrinsics"):
            generate(parts, np.ascontiguousarray(picture.swapaxes(0, 1)), ahead(), "", settings=SETTINGS)

    def test_a_single_frame(self, parts, picture):
        with pytest.raises(LongtakeError, match="9 frames or more"):
            generate(parts, picture, ahead("w-5"), "", settings=SETTINGS)

    def test_networks_that_were_not_fetched(self, tmp_path, monkeypatch):
        monkeypatch.setenv("LONGTAKE_HOME", str(tmp_path))
        parts = fetched_parts("cpu", torch.float32)
        for part, name in ((parts.net, "sana-wm"), (parts.vae, "ltx2-vae"), (parts.text, "gemma2-2b")):
            with pytest.raises(MissingPart, match=f"longtake weights fetch {name}"):
                part()
