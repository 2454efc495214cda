"""SANA-WM's first stage against the published code's outputs on small random weights, and against laws of its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.errors import BadWeights
from longtake.kernels.ucpe import move, turn
from longtake.model.sana_wm import attention, encoding, network
from longtake.model.sana_wm.attention import Places, SelfAttention
from longtake.model.sana_wm.config import SANA_WM, SanaWMConfig
from longtake.model.sana_wm.load import load
from longtake.model.sana_wm.network import Conditions, ConvMlp, Prepared, SanaWM

from ..tiny_sana_wm import NET

NARROW = replace(NET, latent_channels=16)  # case a1
WIDE = replace(
    NARROW, heads=1, head_dim=112, text_heads=2, depth=2, softmax_blocks=(1,), plucker_blocks=2, ffn_width=112
)
CASES = {"a1_dit_hd24": NARROW, "a2_dit_hd112": WIDE}
# Of the largest value of a tensor: both sides are float32, and 5e-7 is what they differ by here.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(shared_parity):
    return shared_parity / "sana_wm"


@pytest.fixture(scope="module", params=CASES)
def case(folder, request) -> tuple[SanaWMConfig, dict[str, Tensor]]:
    return CASES[request.param], load_file(folder / f"{request.param}.safetensors")


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def built(config: SanaWMConfig, weights: dict[str, Tensor], attention_dtype: torch.dtype | None = None) -> SanaWM:
    net = SanaWM(config, attention_dtype=attention_dtype)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def given(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Conditions]:
    """Latents, timesteps and conditions of a case, without its frame mask."""
    t = part(tensors, "in.")
    conditions = Conditions(
        text=t["encoder_hidden_states"][:, 0],
        text_mask=t["mask"].bool(),
        camera=t["camera_conditions"],
        plucker=t["chunk_plucker"],
    )
    return t["hidden_states"], t["timestep"][:, 0], conditions


def each(conditions: Conditions, change: Callable[[Tensor], Tensor]) -> Conditions:
    parts = {f.name: getattr(conditions, f.name) for f in fields(conditions)}
    return replace(conditions, **{name: change(value) for name, value in parts.items() if value is not None})


def assert_near(got: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.abs().max()))


class TestParity:
    def test_forward_and_every_block(self, case):
        config, tensors = case
        net = built(config, part(tensors, "sd."))
        got: list[Tensor] = []
        for block in net.blocks:
            block.register_forward_hook(lambda _m, _i, out: got.append(out))  # pyright: ignore[reportArgumentType]
        assert_near(net(*given(tensors)), tensors["out.fp32_sdpa"])
        assert len(got) == config.depth
        for i, x in enumerate(got):
            assert_near(x.flatten(1, 2), tensors[f"out.block{i}_fp32_sdpa"])

    def test_attention_rounded_to_bfloat16(self, case):
        config, tensors = case
        net = built(config, part(tensors, "sd."), torch.bfloat16)
        # a last bit of float32 may round a number to its neighbour in bfloat16; unrounded, it differs by 4e-4 or more
        assert_near(net(*given(tensors)), tensors["out.ref_bf16_sdpa"], 3e-4)

    def test_without_a_camera(self, case):
        config, tensors = case
        latents, timesteps, conditions = given(tensors)
        conditions = replace(conditions, camera=None, plucker=None)
        assert_near(
            built(config, part(tensors, "sd."))(latents, timesteps, conditions), tensors["out.fp32_sdpa_no_camera"]
        )

    def test_all_frames_at_one_time(self, case):
        config, tensors = case
        latents, timesteps, conditions = given(tensors)
        got = built(config, part(tensors, "sd."))(latents, torch.full_like(timesteps, 500), conditions)
        assert_near(got, tensors["out.fp32_sdpa_uniform_t500"])

    def test_padded_frames(self, case):
        config, tensors = case
        latents, timesteps, conditions = given(tensors)
        conditions = replace(conditions, valid=tensors["in.frame_valid_mask"].bool())
        got = built(config, part(tensors, "sd."))(latents, timesteps, conditions)
        assert_near(got, tensors["out.fp32_sdpa_frame_masked"])

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_a_gpu(self, case):
        config, tensors = case
        latents, timesteps, conditions = given(tensors)
        conditions = each(conditions, Tensor.cuda)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            got = built(config, part(tensors, "sd.")).cuda()(latents.cuda(), timesteps.cuda(), conditions)
        assert_near(got.cpu(), tensors["out.fp32_sdpa"], 5 * TOLERANCE)  # summed in another order


class TestAttentionParity:
    """The operators alone, and modules at another size."""

    @pytest.fixture
    def ops(self, folder) -> dict[str, Tensor]:
        return load_file(folder / "b_gdn_ops.safetensors")

    def heads(self, ops: dict[str, Tensor], *, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (ops[f"in.{name}"].unflatten(1, (5, 6)) for name in "qkv")
        return q, k * (24 * 6) ** -0.5 if scaled else k, v

    def turns(self, ops: dict[str, Tensor]) -> Tensor:
        return torch.complex(ops["in.rope_real"], ops["in.rope_imag"]).reshape(5, 6, 1, 12)

    def rays(self, ops: dict[str, Tensor]) -> encoding.RayEncoding:
        rays = encoding.RayEncoding.of(ops["in.camera_conditions"], (5, 2, 3), encoding.turns((5, 2, 3), 24, "cpu")[1])
        assert_near(rays.from_world.flatten(1, 2), ops["cam.P"])
        assert_near(rays.to_world.flatten(1, 2), ops["cam.P_inv"])
        assert_near(rays.turns.real.reshape(1, 1, 30, 6), ops["cam.rope_real"])
        assert_near(rays.turns.imag.reshape(1, 1, 30, 6), ops["cam.rope_imag"])
        return rays

    def gates(self, ops: dict[str, Tensor]) -> attention.Gates:
        return ops["in.beta"].permute(0, 2, 3, 1), ops["in.decay"].transpose(1, 2)

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).flatten(2)

    def test_linear(self, ops):
        got = attention.linear_attention(*self.heads(ops, scaled=True), self.gates(ops), self.turns(ops))
        assert_near(self.flat(got), ops["out.main"])
        still = attention.linear_attention(
            *self.heads(ops, scaled=True), self.gates(ops), torch.ones(5, 6, 1, 12, dtype=torch.complex64)
        )
        assert_near(self.flat(still), ops["out.main_no_rope"])

    def test_linear_from_rays(self, ops):
        (q, k, v), rays, gates = self.heads(ops, scaled=True), self.rays(ops), self.gates(ops)
        seen = rays.key(k)
        assert_near(seen.flatten(1, 2).permute(0, 2, 3, 1), ops["cam.k_ucpe_downscaled"])
        assert_near(attention.ray_beta(gates[0], k, seen).permute(0, 3, 1, 2), ops["cam.beta_effective"])
        assert_near(self.flat(attention.linear_ray_attention(q, k, v, gates, rays)), ops["out.cam"])

    def test_softmax(self, ops):
        q, k, v = self.heads(ops, scaled=False)
        by = self.turns(ops)
        got = attention.softmax_attention(turn(q, by), turn(k, by), v, scale=24**-0.5, dtype=None)
        assert_near(self.flat(got), ops["out.softmax_main_fp32"])
        got = attention.softmax_ray_attention(q, k, v, self.rays(ops), valid=None, dtype=None)
        assert_near(self.flat(got), ops["out.softmax_cam_fp32"])

    @pytest.mark.parametrize("name, softmax", [("gdn", False), ("softmax", True)])
    def test_modules(self, folder, name, softmax):
        tensors = load_file(folder / "b2_streaming_attention.safetensors")
        module = SelfAttention(NARROW, softmax=softmax, attention_dtype=None)
        module.load_state_dict(part(tensors, f"sd.{name}."))
        whole, half = encoding.turns((10, 2, 3), 24, "cpu")
        rays = encoding.RayEncoding.of(tensors["in.camera_conditions"], (10, 2, 3), half)
        with torch.inference_mode():
            got = module(tensors["in.x"].unflatten(1, (10, 6)), Places(turns=whole, rays=rays, valid=None))
        assert_near(got.flatten(1, 2), tensors[f"out.{name}_bidirectional"])

    def test_mlp(self, folder):
        tensors = load_file(folder / "b2_streaming_attention.safetensors")
        module = ConvMlp(48, 96)
        module.load_state_dict(part(tensors, "sd.ffn."))
        with torch.inference_mode():
            got = module(tensors["in.x"].unflatten(1, (10, 6)), (10, 2, 3))
        assert_near(got.flatten(1, 2), tensors["out.ffn_bidirectional"])


class TestRays:
    @pytest.fixture
    def ucpe(self, folder) -> dict[str, Tensor]:
        return load_file(folder / "c_ucpe.safetensors")

    def test_parity(self, ucpe):
        grid = (3, 4, 6)
        whole, half = encoding.turns(grid, 112, "cpu")
        for got, name, pairs in ((whole, "rope", 56), (half, "cam_rope", 28)):
            assert_near(got.real.reshape(1, 1, 72, pairs), ucpe[f"out.{name}_real"])
            assert_near(got.imag.reshape(1, 1, 72, pairs), ucpe[f"out.{name}_imag"])
        rays = encoding.RayEncoding.of(ucpe["in.camera_conditions"], grid, half)
        assert_near(rays.from_world.reshape(2, 3, 4, 6, 4, 4), ucpe["out.raymats"])
        assert_near(rays.to_world.flatten(1, 2), ucpe["out.P_inv"])
        x = ucpe["in.feats"].transpose(1, 2).unflatten(1, (3, 24))
        for got, name in (
            (move(x, rays.from_world.mT, half), "q_encoded"),
            (move(x, rays.to_world, half), "kv_encoded"),
            (rays.key(x), "kv_rms_clamped"),
            (rays.decode(x), "o_decoded"),
        ):
            assert_near(got.flatten(1, 2).transpose(1, 2), ucpe[f"out.{name}"])

    def test_a_ray_is_the_z_axis_of_its_frame(self, ucpe):
        camera = ucpe["in.camera_conditions"]
        motion = encoding.ray_from_world(camera, 4, 6).unflatten(2, (4, 6))
        world_from_cam, (fx, fy, cx, cy) = camera[0, 2, :16].reshape(4, 4), camera[0, 2, 16:]
        point = world_from_cam @ torch.tensor([3 * (5 - cx) / fx, 3 * (1 - cy) / fy, 3.0, 1.0])
        got = motion[0, 2, 1, 5] @ point
        want = torch.stack([torch.tensor(0.0), torch.tensor(0.0), (point - world_from_cam[:, 3]).norm(), got[3]])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert float(got[3]) == 1 and float((motion[0, 2, 1, 5] @ world_from_cam[:, 1])[1]) > 0  # y is down

    def test_rays_without_a_frame_are_left_alone(self):
        camera = torch.eye(4).flatten().repeat(1, 1, 1)
        straight_down = torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(1, 1, 4)  # fy is 0
        got = encoding.ray_from_world(torch.cat([camera, straight_down], -1), 2, 2)
        assert bool(got.isfinite().all()) and torch.equal(got[0, 0, 1], torch.eye(4))

    def test_undoing_an_encoding(self, ucpe):
        _, half = encoding.turns((3, 4, 6), 112, "cpu")
        rays = encoding.RayEncoding.of(ucpe["in.camera_conditions"], (3, 4, 6), half)
        x = ucpe["in.feats"].transpose(1, 2).unflatten(1, (3, 24))
        assert_near(rays.decode(move(x, rays.to_world, half)), x)

    def test_nothing_grows(self, ucpe):
        _, half = encoding.turns((3, 4, 6), 112, "cpu")
        rays = encoding.RayEncoding.of(ucpe["in.camera_conditions"], (3, 4, 6), half)
        x = ucpe["in.feats"].transpose(1, 2).unflatten(1, (3, 24))
        assert bool((move(x, rays.to_world, half).norm(dim=-1) > 1.05 * x.norm(dim=-1)).any())
        for y in (rays.query(x), rays.key(x)):
            assert bool((y.norm(dim=-1) <= x.norm(dim=-1) * (1 + 1e-4)).all())


class TestCheckpoint:
    @pytest.fixture
    def keys(self, folder) -> dict:
        return json.loads((folder / "checkpoint_keys.json").read_text())

    def test_full_size_names_and_shapes(self, keys):
        with torch.device("meta"):
            net = SanaWM(SANA_WM)
        want = {name: shape for name, (shape, _) in keys["stage1_dit"].items()}
        assert {name: list(value.shape) for name, value in net.state_dict().items()} == want
        assert sum(p.numel() for p in net.parameters()) == 2_661_800_448
        assert sum(p.numel() for p in net.blocks[0].parameters()) == 130_764_560
        assert sum(p.numel() for p in net.blocks[3].parameters()) == 130_746_640

    def test_original_names(self, keys):
        from longtake.model.sana_wm.load import LEFT_OUT, _renamed

        for original, ours in keys["original_to_diffusers_renames"].items():
            assert _renamed(original) == ours
        assert [_renamed(name) for name in keys["stage1_dit_original_names"]] == list(keys["stage1_dit"])
        assert set(keys["original_only"]) == set(LEFT_OUT)


TINY = replace(NARROW, depth=2, softmax_blocks=(1,), plucker_blocks=2)


def weights(config: SanaWMConfig = TINY, *, original: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {name: torch.randn_like(value) / 8 for name, value in SanaWM(config).state_dict().items()}
    if original:
        tensors = {
            name.replace("linear_1", "mlp.0").replace("linear_2", "mlp.2"): value for name, value in tensors.items()
        }
        tensors["pos_embed"] = torch.zeros(1, 77, config.width)
        tensors["y_embedder.y_embedding"] = torch.zeros(9, config.text_width)
    return tensors


MEASURE = """
import sys
from pathlib import Path

import torch
from longtake.model.sana_wm.config import SanaWMConfig
from longtake.model.sana_wm.load import load

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

def load_all(path, config, dtype):
    net = load(Path(path), device="cpu", dtype=dtype, config=SanaWMConfig(**eval(config)))
    sum(p.sum().item() for p in net.parameters())  # not merely mapped

small, small_config, large, large_config = sys.argv[1:]
for dtype in (torch.float32, torch.bfloat16):
    load_all(small, small_config, dtype)  # the code's own memory
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
    load_all(large, large_config, dtype)
    print(status("VmHWM") - before)
"""


class TestLoading:
    def load(self, tmp_path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> SanaWM:
        save_file(tensors, tmp_path / "w.safetensors")
        return load(tmp_path / "w.safetensors", config=TINY, device="cpu", dtype=dtype)

    @pytest.mark.parametrize("original", [False, True])
    def test_both_layouts(self, tmp_path, original):
        net = self.load(tmp_path, weights(original=original))
        got, want = net.state_dict(), weights()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
        assert not any(p.requires_grad for p in net.parameters()) and not net.training

    def test_in_parts(self, tmp_path):
        tensors = weights()
        names = list(tensors)
        files = {"a-1.safetensors": names[:30], "a-2.safetensors": names[30:]}
        for file, part_names in files.items():
            save_file({name: tensors[name] for name in part_names}, tmp_path / file)
        index = tmp_path / "a.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {name: file for file, part in files.items() for name in part}}))
        got = load(index, config=TINY, device="cpu", dtype=torch.float32).state_dict()
        assert all(torch.equal(got[name], tensors[name]) for name in tensors)
        save_file({name: tensors[name] for name in names[29:]}, tmp_path / "a-2.safetensors")
        with pytest.raises(BadWeights, match=f"{names[29]} is there twice"):
            load(index, config=TINY, device="cpu", dtype=torch.float32)
        (tmp_path / "a-2.safetensors").unlink()
        with pytest.raises(BadWeights, match=r"a\.safetensors\.index\.json cannot be read .*a-2"):
            load(index, config=TINY, device="cpu", dtype=torch.float32)
        for text, message in (("{", "no index"), ("[]", "no index"), ('{"weight_map": {"a": "../b"}}', "no file")):
            index.write_text(text)
            with pytest.raises(BadWeights, match=rf"index\.json: .*{message}"):
                load(index, config=TINY, device="cpu", dtype=torch.float32)

    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_types(self, tmp_path, stored, dtype):
        tensors = {name: value.to(stored) for name, value in weights().items()}
        got = self.load(tmp_path, tensors, dtype).state_dict()
        for name, value in tensors.items():
            kept = torch.float32 if name.endswith(("A_log", "dt_bias")) else dtype
            assert got[name].dtype == kept and torch.equal(got[name], value.to(kept)), name

    def test_missing(self, tmp_path):
        tensors = weights()
        del tensors["blocks.1.attn.proj.bias"]
        with pytest.raises(
            BadWeights, match=r"w\.safetensors does not hold .* blocks\.1\.attn\.proj\.bias is missing\."
        ):
            self.load(tmp_path, tensors)

    def test_unknown(self, tmp_path):
        with pytest.raises(BadWeights, match=r"blocks\.2\.attn\.A_log is unknown"):
            self.load(tmp_path, {**weights(), "blocks.2.attn.A_log": torch.zeros(2)})

    def test_both_layouts_at_once(self, tmp_path):
        tensors = weights()
        tensors["t_embedder.mlp.0.bias"] = tensors["t_embedder.linear_1.bias"].clone()
        with pytest.raises(BadWeights, match=r"t_embedder\.\S+\.bias is there twice"):
            self.load(tmp_path, tensors)

    def test_another_networks_file(self, tmp_path):
        with pytest.raises(BadWeights, match=r"a is unknown; .* is missing; .*, and \d+ more\. Use the checkpoint"):
            self.load(tmp_path, {"a": torch.zeros(1)})

    def test_wrong_shape(self, tmp_path):
        with pytest.raises(BadWeights, match=r"blocks\.0\.attn\.conv_k\.weight has shape \[48, 4\], not \[48, 1, 4\]"):
            self.load(tmp_path, {**weights(), "blocks.0.attn.conv_k.weight": torch.zeros(48, 4)})

    def test_wrong_type(self, tmp_path):
        with pytest.raises(BadWeights, match=r"final_layer\.linear\.bias has type I8, not F32, F16, BF16"):
            self.load(tmp_path, {**weights(), "final_layer.linear.bias": torch.zeros(16, dtype=torch.int8)})

    def test_damaged(self, tmp_path):
        path = tmp_path / "w.safetensors"
        save_file(weights(), path)
        whole = path.read_bytes()
        (header,) = struct.unpack("<Q", whole[:8])
        for raw in (b"", whole[:100], whole[: 8 + header], whole[:-1], whole + b"0", b"\xff" * 8 + whole[8:]):
            path.write_bytes(raw)
            with pytest.raises(BadWeights, match=r"w\.safetensors: (no|broken) safetensors"):
                load(path, config=TINY, device="cpu", dtype=torch.float32)

    def test_absent(self, tmp_path):
        with pytest.raises(BadWeights, match=r"none\.safetensors cannot be read .*No such file"):
            load(tmp_path / "none.safetensors", config=TINY, device="cpu", dtype=torch.float32)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured in Linux's /proc")
    def test_peak_memory(self, tmp_path):
        """Under 1.1 times the file, whatever the weights become, with every one of them in memory at the end."""
        arguments = []
        for name, config in (("small", TINY), ("large", replace(TINY, heads=20, text_heads=2, ffn_width=1440))):
            save_file(weights(config), tmp_path / name)
            arguments += [str(tmp_path / name), repr({f.name: getattr(config, f.name) for f in fields(config)})]
        command = [sys.executable, "-c", MEASURE, *arguments]
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back, not kept for the next
        child = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        full, half = map(int, child.stdout.split())
        size = (tmp_path / "large").stat().st_size
        assert size > 50e6
        assert 0.95 * size < full < 1.1 * size
        assert 0.45 * size < half < 0.6 * size


@pytest.fixture(scope="module")
def net() -> SanaWM:
    """For the laws, which hold for any weights."""
    return built(TINY, weights())


def clip(batch: int = 1, frames: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Conditions]:
    """Seeded latents of 3 x 5, timesteps with a clean first frame, and conditions."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    pose = torch.eye(4).repeat(batch, frames, 1, 1)
    pose[..., :3, :3] = torch.linalg.qr(draw(batch, frames, 3, 3))[0]
    pose[..., :3, 3] = draw(batch, frames, 3)
    camera = torch.cat([pose.flatten(2), torch.tensor([4.0, 4.0, 2.0, 1.0]).expand(batch, frames, 4)], -1)
    conditions = Conditions(
        text=draw(batch, 7, 20),
        text_mask=torch.arange(7).expand(batch, 7) < 5,
        camera=camera,
        plucker=draw(batch, 48, frames, 3, 5),
    )
    timesteps = torch.full((batch, frames), 700.0)
    timesteps[:, 0] = 0
    return draw(batch, 16, frames, 3, 5), timesteps, conditions


def run(net: SanaWM, latents: Tensor, timesteps: Tensor, conditions: Conditions | Prepared) -> Tensor:
    with torch.inference_mode():
        return net(latents, timesteps, conditions)


class TestLaws:
    def test_a_batch_is_its_items(self, net):
        latents, timesteps, conditions = clip(batch=3)
        whole = run(net, latents, timesteps, conditions)
        for b in range(3):
            pick = slice(b, b + 1)
            one = each(conditions, lambda tensor, pick=pick: tensor[pick])
            assert_near(run(net, latents[pick], timesteps[pick], one), whole[pick])

    @pytest.mark.parametrize("frames", [1, 2, 9])
    def test_any_number_of_frames(self, net, frames):
        latents, timesteps, conditions = clip(frames=frames)
        got = run(net, latents, timesteps, conditions)
        assert got.shape == latents.shape and got.dtype == torch.float32 and bool(got.isfinite().all())

    @pytest.mark.parametrize("changed, seen", [(0, 8), (8, 0)])
    def test_every_frame_sees_every_other(self, net, changed, seen):
        latents, timesteps, conditions = clip(frames=9)
        before = run(net, latents, timesteps, conditions)
        latents = latents.clone()
        latents[:, :, changed] += 1
        assert float((run(net, latents, timesteps, conditions) - before)[:, :, seen].abs().max()) > 1e-4

    def test_words_that_are_masked_do_not_matter(self, net):
        latents, timesteps, conditions = clip()
        text = conditions.text.clone()
        text[:, 5:] = 100
        got = run(net, latents, timesteps, replace(conditions, text=text))
        assert torch.equal(got, run(net, latents, timesteps, conditions))
        text[:, 4] = 1
        assert not torch.equal(run(net, latents, timesteps, replace(conditions, text=text)), got)

    @pytest.mark.parametrize("part", ["camera", "plucker"])
    def test_each_condition_matters(self, net, part):
        latents, timesteps, conditions = clip()
        without = run(net, latents, timesteps, replace(conditions, **{part: None}))
        assert float((without - run(net, latents, timesteps, conditions)).abs().max()) > 1e-3

    def test_the_worlds_axes_do_not_matter(self, net):
        latents, timesteps, conditions = clip()
        assert conditions.camera is not None
        turned = torch.eye(4)
        turned[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
        turned[:3, :3] *= turned[:3, :3].det()
        pose = turned @ conditions.camera[..., :16].unflatten(-1, (4, 4))
        camera = torch.cat([pose.flatten(2), conditions.camera[..., 16:]], -1)
        got = run(net, latents, timesteps, replace(conditions, camera=camera))
        assert_near(got, run(net, latents, timesteps, conditions))

    def test_timesteps_are_truncated(self, net):
        latents, timesteps, conditions = clip()
        got = run(net, latents, timesteps + 0.99, conditions)
        assert torch.equal(got, run(net, latents, timesteps, conditions))
        assert not torch.equal(run(net, latents, timesteps + 1, conditions), got)

    def test_what_no_frame_lacks_is_no_mask(self, net):
        latents, timesteps, conditions = clip()
        everything = replace(conditions, valid=torch.ones(1, 4, dtype=torch.bool))
        assert_near(run(net, latents, timesteps, everything), run(net, latents, timesteps, conditions))

    def test_what_is_in_padding_does_not_matter(self, net):
        latents, timesteps, conditions = clip()
        conditions = replace(conditions, valid=torch.tensor([[True, True, True, False]]))
        other = latents.clone()
        other[:, :, 3] = 5
        got = run(net, other, timesteps, conditions)[:, :, :3]
        want = run(net, latents, timesteps, conditions)[:, :, :3]
        assert_near(got, want)

    def test_conditions_serve_many_steps(self, net):
        latents, timesteps, conditions = clip(batch=2)
        with torch.inference_mode():
            prepared = net.prepare(conditions, latents)
        for seed in (0, 1):
            latents, timesteps, _ = clip(batch=2, seed=seed)
            assert torch.equal(run(net, latents, timesteps, prepared), run(net, latents, timesteps, conditions))
        with pytest.raises(ValueError, match=r"latents are \[1, 16, 4, 3, 5\], the prepared .* for \[2, 16, 4, 3, 5\]"):
            run(net, latents[:1], timesteps[:1], prepared)

    def test_places_without_words_can_be_left_out(self, net):
        latents, timesteps, conditions = clip(batch=2)
        lengths = replace(conditions, text_mask=torch.tensor([[True] * 3 + [False] * 4, [True] * 5 + [False] * 2]))
        trimmed = lengths.trimmed()
        assert trimmed.text.shape == (2, 5, 20) and trimmed.text_mask is not None
        assert_near(run(net, latents, timesteps, trimmed), run(net, latents, timesteps, lengths))
        trimmed = conditions.trimmed()
        assert trimmed.text.shape == (2, 5, 20) and trimmed.text_mask is None and trimmed.trimmed() is trimmed
        assert_near(run(net, latents, timesteps, trimmed), run(net, latents, timesteps, conditions))
        silent = replace(conditions, text_mask=torch.zeros(2, 7, dtype=torch.bool))
        with pytest.raises(ValueError, match="a text has no word"):
            silent.trimmed()

    def test_the_mlp_is_the_same_however_many_frames_are_made_at_once(self, net, monkeypatch):
        inputs = clip(batch=2)
        whole = run(net, *inputs)
        monkeypatch.setitem(network.MLP_NUMBERS, "cpu", 1)
        for frames in (1, 2, 3):
            monkeypatch.setattr(network, "CONV_NUMBERS", frames * 2 * 15 * 48)
            assert_near(run(net, *inputs), whole)


class TestLowerPrecision:
    def test_bfloat16(self, tmp_path):
        save_file(weights(), tmp_path / "w.safetensors")
        low = load(tmp_path / "w.safetensors", config=TINY, device="cpu", dtype=torch.bfloat16)
        types: dict[str, torch.dtype] = {}

        def keep(name: str):
            def hook(_module, _inputs, output):
                types[name] = output.dtype

            return hook

        for name in ("blocks.0.attn.qkv", "blocks.0.attn", "blocks.1.attn.out_proj_cam", "blocks.1.mlp", "final_layer"):
            low.get_submodule(name).register_forward_hook(keep(name))
        inputs = clip()
        got = run(low, *inputs)
        assert set(types.values()) == {torch.bfloat16} and len(types) == 5 and got.dtype == torch.float32
        full = load(tmp_path / "w.safetensors", config=TINY, device="cpu", dtype=torch.float32)
        assert_near(got, run(full, *inputs), 0.05)  # two blocks of 8-bit mantissas

    def test_a_long_path_keeps_its_precision(self, tmp_path):
        """Cameras are not rounded with the weights: a step of 1 mm at 100 m, less than a bfloat16 can tell."""
        save_file(weights(), tmp_path / "w.safetensors")
        low = load(tmp_path / "w.safetensors", config=TINY, device="cpu", dtype=torch.bfloat16)
        seen: list[Tensor] = []

        def keep(_module, inputs, _output):
            seen.append(inputs[1].rays.to_world[..., 0, 3])

        low.get_submodule("blocks.0.attn").register_forward_hook(keep)
        latents, timesteps, conditions = clip()
        assert conditions.camera is not None
        camera = conditions.camera.clone()
        camera[..., 3] = 100 + 0.001 * torch.arange(4)
        run(low, latents, timesteps, replace(conditions, camera=camera))
        torch.testing.assert_close(seen[0][0, :, 0], camera[0, :, 3], rtol=0, atol=1e-4)


class TestRefusals:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"head_dim": 20}, "head_dim is 20"),
            ({"softmax_blocks": (1, 4)}, r"softmax_blocks \[4\] are not among the 4 blocks"),
            ({"plucker_blocks": 5}, "plucker_blocks is 5, of 4 blocks"),
            ({"text_heads": 5}, "text_heads is 5, which does not divide the width 48"),
        ],
    )
    def test_configurations(self, change, message):
        with pytest.raises(ValueError, match=message):
            replace(NARROW, **change)

    def test_no_size_has_a_default(self):
        with pytest.raises(TypeError, match="latent_channels"):
            SanaWMConfig()  # pyright: ignore[reportCallIssue]

    @pytest.mark.parametrize(
        "latents", [torch.zeros(1, 15, 4, 3, 5), torch.zeros(1, 16, 3, 5), torch.zeros(1, 16, 4, 3, 5).int()]
    )
    def test_latents_that_are_none(self, net, latents):
        _, timesteps, conditions = clip()
        with pytest.raises(ValueError, match=r"latents are torch\..*, not floats \[B, 16, T, rows, cols\]"):
            run(net, latents, timesteps, conditions)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"camera": torch.zeros(1, 5, 20)}, r"camera has shape \[1, 5, 20\]; .* it takes \[1, 4, 20\]"),
            ({"plucker": torch.zeros(1, 6, 4, 3, 5)}, r"plucker has shape \[1, 6, 4, 3, 5\]"),
            ({"valid": torch.ones(4, dtype=torch.bool)}, r"valid has shape \[4\]"),
            ({"text": torch.zeros(2, 7, 20), "text_mask": torch.ones(2, 7).bool()}, r"text has shape \[2, 7, 20\]"),
        ],
    )
    def test_conditions_that_do_not_fit(self, net, change, message):
        latents, timesteps, conditions = clip()
        with pytest.raises(ValueError, match=message):
            run(net, latents, timesteps, replace(conditions, **change))

    def test_timesteps_that_do_not_fit(self, net):
        latents, _, conditions = clip()
        with pytest.raises(ValueError, match=r"timesteps has shape \[1\]; .* it takes \[1, 4\]"):
            run(net, latents, torch.tensor([5.0]), conditions)

    def test_masks_that_are_none(self):
        conditions = clip()[2]
        with pytest.raises(ValueError, match=r"its mask torch\.float32 \[1, 7\], not"):
            replace(conditions, text_mask=torch.ones(1, 7))
