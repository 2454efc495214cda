"""LTX-2's autoencoder against the published code's outputs on small random weights, and laws of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.errors import BadWeights
from longtake.model.sana_wm.vae import LTX2_VAE, Conv, Vae, VaeConfig, load_vae, pictures, read_config
from longtake.model.tensor_memory import TensorMemory

from ..tiny_sana_wm import VAE as TINY

# Of the largest value: both sides are float32.
TOLERANCE = 1e-5


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE * float(want.abs().max()))


@pytest.fixture(scope="module")
def case(shared_parity) -> dict[str, Tensor]:
    return load_file(shared_parity / "sana_wm" / "i_ltx2_vae.safetensors")


def published(case: dict[str, Tensor], config: VaeConfig = TINY) -> Vae:
    vae = Vae(config)
    vae.load_state_dict({k.removeprefix("sd."): v for k, v in case.items() if k.startswith("sd.")})
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae() -> Vae:
    """For the laws, which hold for any weights."""
    torch.manual_seed(0)
    return Vae(TINY).eval().requires_grad_(False)


def whole(vae: Vae, latents: Tensor, at_once: int = 1) -> Tensor:
    return torch.cat(list(vae.decode(latents, at_once=at_once)), 2)


def unnormalised(vae: Vae, z: Tensor) -> Tensor:
    """What `decode` takes for raw latents."""
    return (z - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)


class TestParity:
    def test_encode(self, case):
        vae = published(case)
        moments = vae.encoder(case["in.x"])
        assert_near(moments[:, :8], case["out.enc_mode"])
        assert_near(moments[:, 8:].expand(-1, 8, -1, -1, -1), case["out.enc_moments"][:, 8:])
        assert_near(vae.encoder(case["in.x"][:, :, :1])[:, :8], case["out.enc_image_mode"])

    def test_normalised(self, case):
        assert_near(published(case).encode(case["in.x"][:, :, :1]), case["out.norm_first_latent"])

    @pytest.mark.parametrize("causal, name", [(False, "out.dec_noncausal"), (True, "out.dec_causal")])
    def test_decode(self, case, causal, name):
        vae = published(case, replace(TINY, decoder_causal=causal))
        assert_near(whole(vae, unnormalised(vae, case["in.z"])), case[name])

    def test_from_a_picture_to_a_video(self, case, shared_parity):
        """The last steps of case g2: its latents, decoded."""
        t = load_file(shared_parity / "sana_wm" / "g2_sampling.safetensors")
        got = whole(published(case), t["out.latents_final"])[:, :, :, ::4, ::4]
        want = t["out.video_sub4"]
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE * float(want.abs().max()))

    def test_published_tiles_in_time(self, case):
        """Tiles of 3 latent frames every 1, each decoded as a clip and blended, are what the published code gives."""
        vae = published(case)
        z = unnormalised(vae, case["in.z2"])
        tiles = [whole(vae, z[:, :, i : i + 3]) for i in range(5)]  # a sixth would have no frame of its own
        tiles[1:] = [tile[:, :, :-1] for tile in tiles[1:]]
        kept = [tiles[0][:, :, :9]]
        for before, tile in pairwise(tiles):
            n = min(8, before.shape[2], tile.shape[2])
            ramp = torch.arange(n)[:, None, None] / n
            tile[:, :, :n] = before[:, :, -n:] * (1 - ramp) + tile[:, :, :n] * ramp
            kept.append(tile[:, :, :8])
        got = torch.cat(kept, 2)
        assert_near(got[:, :, :, ::4, ::4], case["out.dec_tiled_time_16_8_sub4"])
        # and that is not the whole: a tile lacks the frames around it, which is why `decode` makes none
        assert float((got - whole(vae, z)).abs().max()) > 0.1

    def test_published_tiles_in_space(self, case):
        """Tiles of 3 x 3 latent pixels every 2, blended over one's width."""
        vae = published(case)
        z = unnormalised(vae, case["in.z3"])
        ramp = torch.arange(32) / 32
        rows = [[whole(vae, z[..., i : i + 3, j : j + 3]) for j in (0, 2)] for i in (0, 2)]
        for i, row in enumerate(rows):
            for j, tile in enumerate(row):
                if i:
                    tile[..., :32, :] = (
                        rows[0][j][..., -32:, :] * (1 - ramp[:, None]) + tile[..., :32, :] * ramp[:, None]
                    )
                if j:
                    tile[..., :32] = row[0][..., -32:] * (1 - ramp) + tile[..., :32] * ramp
        got = torch.cat([torch.cat([tile[..., :64, :64] for tile in row], -1) for row in rows], -2)
        assert_near(got, case["out.dec_tiled_spatial_96_64"])


class TestPieces:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("frames", [1, 2, 3, 7])
    def test_pieces_are_the_whole(self, frames, causal):
        torch.manual_seed(0)
        vae = Vae(replace(TINY, decoder_causal=causal)).requires_grad_(False)
        latents = torch.randn(2, 8, frames, 2, 3)
        want = whole(vae, latents, at_once=frames)
        assert want.shape == (2, 3, 8 * (frames - 1) + 1, 64, 96)
        for at_once in (1, 2, 5):
            assert_near(whole(vae, latents, at_once), want)

    @pytest.mark.parametrize("causal", [False, True])
    def test_a_filter_in_pieces(self, causal):
        torch.manual_seed(0)
        conv = Conv(3, 5, causal=causal, padding="zeros").requires_grad_(False)
        x = torch.randn(1, 3, 9, 4, 4)
        for pieces in ([9], [1] * 9, [2, 3, 4], [1, 8]):
            got = list(conv.stream(iter(x.split(pieces, 2))))
            assert_near(torch.cat(got, 2), conv(x))

    def test_the_whole_depends_on_later_frames(self, vae):
        """Otherwise the tests above would not tell a frame's wait from none."""
        latents = torch.randn(1, 8, 4, 2, 2)
        other = latents.clone()
        other[:, :, 2:] += 1
        assert not torch.equal(whole(vae, latents)[:, :, :9], whole(vae, other)[:, :, :9])

    def test_frames_come_before_the_last_latent_is_read(self, vae):
        """The first waits for the frames that filters look ahead, and no more."""
        read = []

        def chunks():
            for i in range(80):
                read.append(i)
                yield torch.randn(1, 8, 1, 2, 2)

        next(vae.decoder(chunks()))
        assert len(read) < 20

    def test_memory_does_not_grow_with_the_clip(self):
        vae = Vae(replace(TINY, decoder_layers=(1, 1, 0, 0))).requires_grad_(False)

        def peak(frames: int) -> int:
            latents = torch.zeros(1, 8, frames, 2, 2)
            with TensorMemory() as memory:
                for _ in vae.decode(latents):
                    pass
            return memory.peak

        latent_bytes = 8 * 2 * 2 * 4  # the latents themselves are there
        assert peak(24) - peak(12) == 12 * latent_bytes


class TestShapes:
    def test_full_size(self):
        with torch.device("meta"):
            vae = Vae(LTX2_VAE)
        assert vae.decoder.conv_out.conv.weight.shape == (48, 128, 3, 3, 3)
        assert vae.encoder.conv_out.conv.weight.shape == (129, 2048, 3, 3, 3)

    def test_a_picture_of_another_shape(self, vae):
        with pytest.raises(ValueError, match=r"1 frames of 60x64: give 8 k \+ 1, of sides in 32s"):
            vae.encode(torch.zeros(1, 3, 1, 64, 60))
        with pytest.raises(ValueError, match="8 frames"):
            vae.encode(torch.zeros(1, 3, 8, 64, 64))

    def test_latents_too_small_to_mirror(self, vae):
        with pytest.raises(ValueError, match="takes 2 x 2 or more"):
            vae.decode(torch.zeros(1, 8, 2, 1, 4))

    def test_pictures(self):
        frames = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).expand(3, 2, 1, 6)
        got = pictures(frames)
        assert got.shape == (2, 1, 6, 3) and got.dtype == torch.uint8
        assert got[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]

    def test_widths_that_are_none(self):
        with pytest.raises(ValueError, match="do not double"):
            replace(TINY, decoder_widths=(8, 16, 24))
        with pytest.raises(ValueError, match=r"\[3, 5, 3, 4\] widths and layers"):
            replace(TINY, encoder_widths=(8, 8, 16))


class TestLoading:
    def config(self, shared_parity, tmp_path, **changes):
        tree = json.loads((shared_parity / "sana_wm" / "i_ltx2_vae.json").read_text())["config"]
        path = tmp_path / "config.json"
        path.write_text(json.dumps(tree | changes))
        return path

    def test_configuration(self, shared_parity, tmp_path):
        assert read_config(self.config(shared_parity, tmp_path, _class_name="AutoencoderKLLTX2Video")) == TINY

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"timestep_conditioning": True}, "another kind of autoencoder: timestep_conditioning True"),
            ({"patch_size": 2}, "patch_size 2"),
            ({"layers_per_block": 3}, "no configuration of LTX-2's autoencoder"),
        ],
    )
    def test_other_configurations(self, shared_parity, tmp_path, changes, message):
        with pytest.raises(BadWeights, match=message):
            read_config(self.config(shared_parity, tmp_path, **changes))

    def test_no_configuration(self, tmp_path):
        with pytest.raises(BadWeights, match=r"config\.json: no configuration .*No such file"):
            read_config(tmp_path / "config.json")

    def test_weights(self, tmp_path, vae):
        save_file(vae.state_dict(), tmp_path / "vae.safetensors")
        got = load_vae(tmp_path / "vae.safetensors", TINY, device="cpu", dtype=torch.bfloat16)
        assert got.latents_std.dtype == torch.float32
        assert got.decoder.conv_in.conv.weight.dtype == torch.bfloat16
        frames = torch.cat(list(got.decode(torch.zeros(1, 8, 2, 2, 2))), 2)
        assert frames.dtype == torch.float32 and bool(frames.isfinite().all())

    def test_other_weights(self, tmp_path, vae):
        tensors = vae.state_dict()
        del tensors["latents_std"]
        save_file(tensors, tmp_path / "vae.safetensors")
        with pytest.raises(BadWeights, match=r"does not hold the weights of this Vae: latents_std is missing"):
            load_vae(tmp_path / "vae.safetensors", TINY, device="cpu", dtype=torch.float32)
