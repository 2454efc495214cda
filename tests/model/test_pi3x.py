"""Pi3X against the published code's outputs on small random weights, and against laws of its own."""

from __future__ import annotations

import json
import struct
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.errors import LongtakeError
from longtake.model.pi3x import geometry, heads
from longtake.model.pi3x.conditions import Conditions
from longtake.model.pi3x.config import PI3X, Pi3XConfig
from longtake.model.pi3x.load import MULTIMODAL, load
from longtake.model.pi3x.network import Pi3X, Reconstruction
from longtake.model.pi3x.windows import align_points, reconstruct_in_windows
from longtake.model.tensor_memory import TensorMemory

TINY = Pi3XConfig(
    width=32,
    heads=2,
    grid=5,
    encoder_depth=2,
    encoder_registers=4,
    decoder_depth=36,
    decoder_registers=5,
    pose_blocks=(1, 9, 17, 25, 33),
    head_depth=5,
    camera_width=16,
    metric_width=16,
    metric_heads=1,
    conv_widths=(32, 16, 16),
    conv_blocks=2,
    conv_last=8,
)
CASES = (
    "rgb_only",
    "intrinsics",
    "depth",
    "poses",
    "intrinsics_poses",
    "all",
    "rays_partial_masks",
    "static_poses",
    "batch2_mixed",
    "single_frame_square_native_grid",
)
OUTPUTS = {
    "points": "world_points",
    "local_points": "cam_points",
    "camera_poses": "world_from_cam",
    "conf": "confidence_logit",
    "rays": "rays",
    "metric": "metric",
}
INPUTS = {
    "poses": "world_from_cam",
    "mask_add_pose": "pose_frames",
    "mask_add_depth": "depth_frames",
    "mask_add_ray": "ray_frames",
}
# Of the largest value of a tensor. Both sides are float32 over 50 blocks: against float64 the published code is off by
# up to 7e-6 of it, and the two differ by as much as they differ from the truth.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(shared_parity):
    return shared_parity / "pi3x"


@pytest.fixture(scope="module")
def net(folder) -> Pi3X:
    return load(folder / "weights_tiny.safetensors", config=TINY, multimodal=True, device="cpu")


@pytest.fixture(scope="module")
def small() -> Pi3X:
    """A network for the laws, which hold for any weights: few blocks, seeded."""
    torch.manual_seed(0)
    net = Pi3X(replace(TINY, encoder_depth=1, decoder_depth=4, pose_blocks=(1,), head_depth=1), multimodal=True).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.1)
    return net


def case(folder, name: str) -> tuple[Tensor, Conditions | None, dict[str, Tensor]]:
    """Images, conditions and expected outputs, under our names."""
    tensors = load_file(folder / f"case_{name}.safetensors")
    given = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
    images = given.pop("imgs")
    conditions = Conditions(**{INPUTS.get(k, k): v for k, v in given.items()}) if given else None
    want = {ours: tensors[f"out.{theirs}"] for theirs, ours in OUTPUTS.items()}
    want["confidence_logit"] = want["confidence_logit"][..., 0]
    return images, conditions, want


def run(net: Pi3X, images: Tensor, conditions: Conditions | None = None) -> Reconstruction:
    with torch.inference_mode():
        return net(images, conditions)


def assert_near(got: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.abs().max()))


def assert_same(a: Reconstruction, b: Reconstruction, tolerance: float = TOLERANCE) -> None:
    for name in OUTPUTS.values():
        assert_near(getattr(a, name), getattr(b, name), tolerance)


def scene(batch: int = 1, frames: int = 3, seed: int = 0) -> tuple[Tensor, Conditions]:
    """Seeded images of 28 x 42 and conditions for every frame."""
    g = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(batch, frames, 1, 1)
    poses[..., :3, :3] = heads.nearest_rotation(torch.randn(batch, frames, 3, 3, generator=g))
    poses[..., :3, 3] = torch.randn(batch, frames, 3, generator=g)
    intrinsics = torch.tensor([[40.0, 0, 21], [0, 44, 14], [0, 0, 1]]).repeat(batch, frames, 1, 1)
    depths = 1 + torch.rand(batch, frames, 28, 42, generator=g)
    images = torch.rand(batch, frames, 3, 28, 42, generator=g)
    return images, Conditions(intrinsics=intrinsics, depths=depths, world_from_cam=poses)


def pick(conditions: Conditions, index: tuple) -> Conditions:
    """The conditions of some sequences and frames."""
    parts = {f.name: getattr(conditions, f.name) for f in fields(conditions)}
    return Conditions(**{name: part[index] for name, part in parts.items() if part is not None})


class TestParity:
    @pytest.mark.parametrize("name", CASES)
    def test_forward(self, folder, net, name):
        images, conditions, want = case(folder, name)
        got = run(net, images, conditions)
        for output, value in want.items():
            assert_near(getattr(got, output), value)

    def test_without_the_multimodal_part(self, folder):
        net = load(folder / "weights_tiny.safetensors", config=TINY, multimodal=False, device="cpu")
        images, _, want = case(folder, "rgb_only")
        got = run(net, images)
        for output, value in want.items():
            assert_near(getattr(got, output), value)

    def test_activations(self, folder, net):
        want = load_file(folder / "activations_all.safetensors")
        got: dict[str, Tensor] = {}

        def keep(name: str):
            def hook(_module, _inputs, output):
                got[name] = output[0][0] if name.endswith("patchtokens") else output

            return hook

        hooks = [
            net.get_submodule(name.removesuffix(".patchtokens")).register_forward_hook(keep(name)) for name in want
        ]
        images, conditions, _ = case(folder, "all")
        run(net, images, conditions)
        for hook in hooks:
            hook.remove()
        for name, value in want.items():
            assert_near(got[name].reshape(value.shape), value)

    def test_every_case_is_tested(self, folder):
        index = json.loads((folder / "pi3x_forward.json").read_text())
        assert set(index["cases"]) == set(CASES)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    @pytest.mark.parametrize("name", ["rgb_only", "all", "rays_partial_masks"])
    def test_on_a_gpu(self, folder, name):
        net = load(folder / "weights_tiny.safetensors", config=TINY, multimodal=True, device="cuda")
        images, conditions, want = case(folder, name)
        if conditions is not None:
            parts = {f.name: getattr(conditions, f.name) for f in fields(conditions)}
            conditions = Conditions(**{k: v.cuda() for k, v in parts.items() if v is not None})
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            got = run(net, images.cuda(), conditions)
        for output, value in want.items():  # as on a CPU: float32, summed in another order
            assert_near(getattr(got, output).cpu(), value, 5 * TOLERANCE)


class TestCheckpoint:
    @pytest.mark.parametrize("multimodal, count", [(True, 1_360_032_433), (False, 992_465_329)])
    def test_full_size_names_and_shapes(self, folder, multimodal, count):
        keys = json.loads((folder / "checkpoint_keys.json").read_text())["keys"]
        want = {k: shape for k, (shape, _) in keys.items() if multimodal or not k.startswith(MULTIMODAL)}
        with torch.device("meta"):
            net = Pi3X(PI3X, multimodal=multimodal)
        assert {key: list(value.shape) for key, value in net.state_dict().items()} == want
        assert sum(p.numel() for p in net.parameters()) == count

    def test_loaded_network_is_float32_and_frozen(self, net):
        assert {p.dtype for p in net.state_dict().values()} == {torch.float32}
        assert not any(p.requires_grad for p in net.parameters()) and not net.training


SHALLOW = replace(TINY, encoder_depth=1, decoder_depth=2, pose_blocks=(1,), head_depth=1)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Pi3X(SHALLOW, multimodal=True).state_dict()


class TestLoading:
    def load(self, tmp_path, weights: dict[str, Tensor], *, multimodal: bool = True) -> Pi3X:
        save_file(weights, tmp_path / "w.safetensors")
        return load(tmp_path / "w.safetensors", config=SHALLOW, multimodal=multimodal, device="cpu")

    def test_round_trip(self, tmp_path, weights):
        loaded = self.load(tmp_path, weights).state_dict()
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[key], weights[key]) for key in weights)

    def test_multimodal_part_may_be_absent_where_unused(self, tmp_path, weights):
        rest = {key: value for key, value in weights.items() if not key.startswith(MULTIMODAL)}
        assert self.load(tmp_path, rest, multimodal=False).state_dict().keys() == rest.keys()
        with pytest.raises(LongtakeError, match=r"depth_emb is missing.* and \d+ more"):
            self.load(tmp_path, rest)

    def test_missing(self, tmp_path, weights):
        del weights["metric_token"]
        with pytest.raises(LongtakeError, match=r"w\.safetensors does not hold .* metric_token is missing\."):
            self.load(tmp_path, weights)

    def test_unknown(self, tmp_path, weights):
        weights["encoder.mask_token"] = torch.zeros(1, 32)
        with pytest.raises(LongtakeError, match=r"encoder\.mask_token is unknown"):
            self.load(tmp_path, weights)

    def test_wrong_shape(self, tmp_path, weights):
        weights["metric_head.weight"] = torch.zeros(1, 8)
        with pytest.raises(LongtakeError, match=r"metric_head\.weight has shape \[1, 8\], not \[1, 16\]"):
            self.load(tmp_path, weights)

    def test_wrong_type(self, tmp_path, weights):
        weights["metric_head.weight"] = torch.zeros(1, 16, dtype=torch.int8)
        with pytest.raises(LongtakeError, match=r"metric_head\.weight has type I8, not F32, F16 or BF16"):
            self.load(tmp_path, weights)

    def test_truncated(self, tmp_path, weights):
        save_file(weights, tmp_path / "whole.safetensors")
        whole = (tmp_path / "whole.safetensors").read_bytes()
        (header,) = struct.unpack("<Q", whole[:8])
        path = tmp_path / "w.safetensors"
        for size in (0, 100, 8 + header, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(LongtakeError, match=r"w\.safetensors cannot be read as safetensors .*; fetch it again"):
                load(path, config=SHALLOW, multimodal=True, device="cpu")

    def test_absent(self, tmp_path):
        with pytest.raises(LongtakeError, match=r"none\.safetensors cannot be read"):
            load(tmp_path / "none.safetensors", config=SHALLOW, multimodal=True, device="cpu")


class TestLaws:
    # Law tests compare one float32 computation with another in a different order: TOLERANCE's reason holds.

    @pytest.mark.parametrize("known", [False, True])
    def test_permuted_frames_permute_the_outputs(self, small, known):
        images, conditions = scene()
        conditions = replace(conditions, world_from_cam=None)  # poses are told relative to the first
        order = (slice(None), [2, 0, 1])
        whole = run(small, images, conditions if known else None)
        permuted = run(small, images[order], pick(conditions, order) if known else None)
        for name in OUTPUTS.values():
            value = getattr(whole, name)
            assert_near(getattr(permuted, name), value if name == "metric" else value[order])
        assert float((whole.cam_points[:, 0] - whole.cam_points[:, 1]).abs().max()) > 1e-3

    def test_a_batch_is_its_items(self, small):
        images, conditions = scene(batch=3)
        known = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
        conditions = replace(conditions, pose_frames=known, depth_frames=known.flip(0), ray_frames=known)
        whole = run(small, images, conditions)
        for b in range(3):
            one = run(small, images[b : b + 1], pick(conditions, (slice(b, b + 1),)))
            for name in OUTPUTS.values():
                assert_near(getattr(whole, name)[b : b + 1], getattr(one, name))

    def test_maps_are_the_same_however_many_frames_are_made_at_once(self, small, monkeypatch):
        images, _ = scene()
        one_by_one = run(small, images)
        monkeypatch.setattr(heads, "FRAMES_AT_ONCE", 2)
        assert_same(run(small, images), one_by_one)

    def test_memory_of_maps_does_not_grow_with_the_window(self, small):
        def needs(frames: int) -> int:  # beside what goes in and what comes out, for a moment twice
            tokens = torch.zeros(frames, TINY.width, 4, 6)
            with torch.inference_mode(), TensorMemory() as memory:
                maps = small.point_head(tokens, 56, 84)
            return memory.peak - 2 * maps.nbytes

        assert needs(1) > 56 * 84 * 4 * TINY.conv_widths[-1]  # one frame's last channels at least
        assert needs(32) <= needs(1)

    def test_without_conditions_the_multimodal_part_does_nothing(self, small):
        images, conditions = scene()
        plain = run(small, images)
        assert_same(run(small, images, Conditions()), plain, 0)
        nowhere = torch.zeros(1, 3, dtype=torch.bool)
        told = replace(conditions, ray_frames=nowhere, depth_frames=nowhere, pose_frames=nowhere)
        assert_same(run(small, images, told), plain, 0)
        one = torch.tensor([[False, True, False]])  # a pose says nothing alone
        assert_same(run(small, images, replace(told, pose_frames=one)), plain, 0)

    @pytest.mark.parametrize("part", ["intrinsics", "depths", "world_from_cam"])
    def test_each_condition_matters(self, small, part):
        images, conditions = scene()
        only = Conditions(**{part: getattr(conditions, part)})
        change = (run(small, images, only).cam_points - run(small, images).cam_points).abs().max()
        assert float(change) > 1e-3

    def test_the_world_and_the_unit_of_conditions_do_not_matter(self, small):
        images, conditions = scene()
        assert conditions.world_from_cam is not None and conditions.depths is not None
        other = scene(seed=5)[1].world_from_cam
        assert other is not None
        moved = other[:, :1] @ conditions.world_from_cam
        assert_same(run(small, images, replace(conditions, world_from_cam=moved)), run(small, images, conditions))
        scaled = conditions.world_from_cam.clone()
        scaled[..., :3, 3] *= 7
        whole = replace(conditions, world_from_cam=scaled, depths=7 * conditions.depths)
        assert_same(run(small, images, whole), run(small, images, conditions))
        alone = run(small, images, Conditions(world_from_cam=conditions.world_from_cam))
        assert_same(run(small, images, Conditions(world_from_cam=scaled)), alone)

    def test_depths_that_are_none_are_unknown(self, small):
        images, conditions = scene()
        assert conditions.depths is not None
        holes = [conditions.depths.clone() for _ in range(2)]
        holes[0][:, :, 5:9, 7:20] = 0
        holes[1][:, :, 5:9, 7:20] = torch.tensor([-1.0, torch.nan, torch.inf])[None, :, None, None]
        a, b = (run(small, images, replace(conditions, depths=d)) for d in holes)
        assert_same(a, b, 0)

    def test_rays_and_intrinsics_say_the_same(self, small):
        images, conditions = scene()
        assert conditions.intrinsics is not None
        v, u = torch.meshgrid(torch.arange(28) + 0.5, torch.arange(42) + 0.5, indexing="ij")
        rays = torch.stack([u, v, torch.ones_like(u)], -1) @ conditions.intrinsics[0, 0].inverse().T
        told = Conditions(rays=rays.repeat(1, 3, 1, 1, 1))
        # published rays are divided by z + 1e-6
        assert_same(run(small, images, told), run(small, images, Conditions(intrinsics=conditions.intrinsics)), 1e-4)

    def test_the_parts_of_a_reconstruction_agree(self, small):
        got = run(small, scene(batch=2)[0])
        rotation, centre = got.world_from_cam[..., :3, :3], got.world_from_cam[..., :3, 3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), rtol=0, atol=1e-5)
        assert bool((torch.linalg.det(rotation) > 0).all())
        world = (rotation[:, :, None, None] @ got.cam_points[..., None])[..., 0] + centre[:, :, None, None]
        assert_near(got.world_points, world)
        assert_near(torch.nn.functional.normalize(got.cam_points, dim=-1), got.rays)
        assert bool((got.cam_points[..., 2] > 0).all()) and bool((got.metric > 0).all())


class TestLowerPrecision:
    def test_bfloat16(self, folder, net):
        images, conditions, want = case(folder, "all")
        seen: dict[str, torch.dtype] = {}
        names = ("decoder.3.attn.qkv", "point_decoder.linear_out", "point_head", "conf_head", "camera_head")
        hooks = [
            net.get_submodule(n).register_forward_hook(lambda _m, _i, out, n=n: seen.update({n: out.dtype}))
            for n in names
        ]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = run(net, images, conditions)
        for hook in hooks:
            hook.remove()
        low, full = torch.bfloat16, torch.float32
        assert [seen[name] for name in names] == [low, low, full, full, full]
        for output, value in want.items():
            assert getattr(got, output).dtype == full
            # bfloat16 keeps 8 bits (4e-3), and random weights do not damp what 36 blocks add to it
            assert_near(getattr(got, output), value, 0.06)


class TestRefusals:
    def test_conditions_for_a_network_without_them(self):
        net = Pi3X(SHALLOW, multimodal=False)
        with pytest.raises(ValueError, match="built without its multimodal part"):
            net(*scene())

    @pytest.mark.parametrize("images", [torch.zeros(2, 3, 28, 42), torch.zeros(1, 2, 3, 28, 42, dtype=torch.uint8)])
    def test_images_that_are_none(self, small, images):
        with pytest.raises(ValueError, match=r"images are torch\..*, not floats \[B, T, 3, H, W\]"):
            run(small, images)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"depths": torch.ones(1, 3, 28, 28)}, r"depths has shape \[1, 3, 28, 28\]; these images need"),
            ({"pose_frames": torch.ones(3, dtype=torch.bool)}, r"pose_frames has shape \[3\]; .* \[1, 3\]"),
            ({"pose_frames": torch.ones(1, 3)}, r"pose_frames is torch\.float32, not bool"),
            ({"rays": torch.ones(1, 3, 28, 42, 3)}, "intrinsics and rays say the same thing"),
            ({"depths": None, "depth_frames": torch.ones(1, 3, dtype=torch.bool)}, "depth_frames says where"),
        ],
    )
    def test_conditions_that_do_not_fit(self, small, change, message):
        images, conditions = scene()
        with pytest.raises(ValueError, match=message):
            run(small, images, replace(conditions, **change))

    def test_windows(self, small):
        with pytest.raises(ValueError, match="overlap of 4 frames does not fit windows of 4; give 1 to 3"):
            reconstruct_in_windows(small, scene()[0], length=4, overlap=4)


@pytest.fixture(scope="module")
def tensors(folder) -> dict[str, Tensor]:
    return load_file(folder / "geometry.safetensors")


class TestGeometry:
    def test_target_size(self, folder):
        table = json.loads((folder / "pi3x_geometry.json").read_text())["resize"]
        assert len(table) > 30
        for row in table:
            assert geometry.target_size(row["w"], row["h"], row["limit"]) == tuple(row["out"]), row

    @pytest.mark.parametrize("size, target", [((192, 108), (70, 42)), ((50, 40), (84, 70)), ((100, 100), (98, 112))])
    def test_resize_is_pillows(self, size, target):
        image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
        pixels = torch.randint(0, 256, (*size[::-1], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        want = torch.from_numpy(np.array(image.fromarray(pixels.numpy()).resize(target, image.LANCZOS)))
        got = (geometry.resize(pixels, *target) * 255).permute(1, 2, 0)
        apart = (got - want).abs()  # Pillow computes in fixed point: a value on the border of two may round otherwise
        assert float(apart.max()) < 1.01 and float((apart > 0.01).float().mean()) < 1e-3

    @pytest.mark.parametrize("i", range(4))
    @pytest.mark.parametrize("name, centred", [("K_centered", True), ("K_free", False)])
    def test_intrinsics(self, tensors, i, name, centred):
        got = geometry.intrinsics_from_points(tensors[f"K{i}.rays"], centred=centred)
        torch.testing.assert_close(got, tensors[f"K{i}.{name}"], rtol=1e-6, atol=0)  # sums of 3000 float32 terms

    @pytest.mark.parametrize("centred", [True, False])
    def test_weights_leave_pixels_out(self, tensors, centred):
        points = tensors["K0.rays"].clone()
        points[:, :, :10] = torch.randn(1, 42, 10, 3, generator=torch.Generator().manual_seed(0))
        weight = torch.ones(1, 42, 70)
        weight[:, :, :10] = 0
        got = geometry.intrinsics_from_points(points, centred=centred, weight=weight)
        torch.testing.assert_close(got, tensors["K0.K_free"], rtol=1e-5, atol=0)  # 80, 80, 34.5, 20.5 and no noise

    def test_edges(self, tensors):
        points, mask = tensors["edge.points"], tensors["edge.mask"].bool()
        depth = points[..., 2]
        normal, found = geometry.normals(points, mask)
        assert torch.equal(found, tensors["edge.normal_mask"].bool())
        torch.testing.assert_close(normal, tensors["edge.normals"], rtol=0, atol=1e-6)  # unit vectors in float32
        for name, got in {  # thresholds on the same float32 numbers: no pixel may differ
            "depth_edge_rtol0.03": geometry.depth_edges(depth, torch.ones_like(mask), 0.03),
            "depth_edge_rtol0.03_mask": geometry.depth_edges(depth, mask, 0.03),
            "normal_edge_5deg": geometry.normal_edges(normal, found, 5.0),
            "depth_normal_edge": geometry.edges(points, mask),
        }.items():
            assert torch.equal(got, tensors[f"edge.{name}"].bool()), name

    def test_align_points(self, tensors):
        source, target = tensors["sim3.src"], tensors["sim3.tgt"]
        mask = tensors["sim3.src_mask"].bool() & tensors["sim3.tgt_mask"].bool()
        move = align_points(source, target, mask)
        torch.testing.assert_close(move, tensors["sim3.transform"], rtol=0, atol=2e-6)  # float64 here, float32 there
        torch.testing.assert_close(move[:, None] @ tensors["sim3.poses"], tensors["sim3.poses_aligned"])
        few = align_points(source, target, tensors["sim3.few_mask"].bool())
        torch.testing.assert_close(few, tensors["sim3.few_transform"], rtol=0, atol=2e-6)
        assert torch.equal(few[1], torch.eye(4))  # 5 pairs


class TestWindows:
    @pytest.mark.parametrize("name, priors", [("plain", ()), ("pose", ("pose",)), ("all", ("pose", "depth", "ray"))])
    def test_parity(self, folder, net, name, priors):
        tensors = load_file(folder / "chunked_video.safetensors")
        got = reconstruct_in_windows(net, tensors["in.imgs"], length=4, overlap=2, priors=priors)
        published = got.world_from_cam.clone()
        published[..., :3, :3] *= got.scale[..., None, None]  # it leaves the window's scale in the rotations
        assert_near(published, tensors[f"{name}.camera_poses"])
        assert_near(got.world_points, tensors[f"{name}.points"])
        torch.testing.assert_close(got.confidence, tensors[f"{name}.conf"], rtol=0, atol=1e-5)
        rotation = got.world_from_cam[..., :3, :3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), rtol=0, atol=1e-5)
        world = (rotation[:, :, None, None] @ got.cam_points[..., None])[..., 0]
        assert_near(got.world_points, world + got.world_from_cam[:, :, None, None, :3, 3])

    def test_one_window_is_one_pass(self, small):
        images, _ = scene(frames=4)
        got, want = reconstruct_in_windows(small, images, length=4, overlap=2), run(small, images)
        assert torch.equal(got.scale, torch.ones(1, 4))
        assert_near(got.world_points, want.world_points)
        assert_near(got.world_from_cam, want.world_from_cam)

    @pytest.mark.parametrize("frames", [1, 4, 5, 6, 7])
    def test_every_frame_is_there_once(self, small, frames):
        images, _ = scene(batch=2, frames=frames)
        got = reconstruct_in_windows(small, images, length=4, overlap=2, priors=("pose",))
        assert got.world_from_cam.shape == (2, frames, 4, 4) and got.confidence.shape == (2, frames, 28, 42)
