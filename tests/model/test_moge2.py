"""MoGe-2: the published network's outputs, its checkpoints' names and shapes, and files that are none of those."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.model.dinov2 import DinoV2Config
from longtake.model.moge2 import config as config_module
from longtake.model.moge2 import focal as focal_module
from longtake.model.moge2 import infer as infer_module
from longtake.model.moge2.config import parse_config, published_config
from longtake.model.moge2.focal import FocalShift, view_plane
from longtake.model.moge2.infer import Prediction, infer
from longtake.model.moge2.load import build, load
from longtake.model.moge2.network import ConvStack, MoGe2, remap, token_grid
from longtake.records import LongtakeError

TINY = DinoV2Config(channels=3, width=32, depth=5, heads=2, grid=5, registers=0, mask_token=True)
VARIANTS = ("vitl-normal", "vitl", "vitb-normal", "vits-normal")
FORWARD = [("a", "wide"), ("a", "tall_batch2"), ("a", "native_grid"), ("b", "wide")]
INFER = [
    *[("wide", v) for v in ("default", "fov", "noproj", "nomask", "level5_unbatched")],
    *[("tall_batch2", v) for v in ("default", "fov", "noproj", "nomask")],
    ("native_grid", "default"),
]


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(config_module.BACKBONES, "dinov2_tiny14", TINY)


def tiny_config() -> dict[str, Any]:
    """A `model_config` with every head, as a file would hold it."""
    stack = {
        "dim_res_blocks": [32, 16, 8],
        "num_res_blocks": [0, 1, 0],
        "res_block_in_norm": "none",
        "res_block_hidden_norm": "none",
        "resamplers": ["conv_transpose", "bilinear"],
    }
    head = {**stack, "dim_in": [32, 16, 8]}
    return {
        "encoder": {"backbone": "dinov2_tiny14", "intermediate_layers": [1, 4], "dim_out": 32},
        "neck": {**stack, "dim_in": [34, 2, 2], "dim_out": None},
        "points_head": {**head, "dim_out": [None, None, 3]},
        "normal_head": {**head, "dim_out": [None, None, 3]},
        "mask_head": {**head, "dim_out": [None, None, 1]},
        "scale_head": {"dims": [32, 16, 1]},
        "remap_output": "exp",
        "num_tokens_range": [20, 60],
    }


@pytest.fixture(scope="module")
def tiny() -> MoGe2:
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setitem(config_module.BACKBONES, "dinov2_tiny14", TINY)
        torch.manual_seed(0)
        model = MoGe2(parse_config(tiny_config())).eval()
        with torch.no_grad():  # differences from place to place, and a mask of both kinds
            model.encoder.backbone.pos_embed.normal_()
            assert model.mask_head is not None
            for p in model.mask_head.output_blocks.parameters():
                p.mul_(5)
            mask = model(image(), 24).mask
            for p in list(model.mask_head.output_blocks.parameters())[1:]:
                p.sub_(mask.logit().median())
        return model


def image(height: int = 42, width: int = 70, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# What the published network computes ---------------------------------------------------------------------------------


class Published:
    """The reference's tiny networks and outputs."""

    def __init__(self, folder: Path) -> None:
        self.st = pytest.importorskip("safetensors.torch", reason="reference outputs are safetensors files")
        self.folder = folder
        self.facts = json.loads((folder / "moge2_forward.json").read_text())

    def model(self, config: str) -> MoGe2:
        weights = self.st.load_file(self.folder / f"weights_tiny_{config}.safetensors")
        return build(parse_config(self.facts[f"config_{config}"]), weights, source=f"weights_tiny_{config}")

    def case(self, config: str, name: str) -> dict[str, Tensor]:
        return self.st.load_file(self.folder / f"case_{config}_{name}.safetensors")


@pytest.fixture(scope="module")
def published(shared_parity: Path) -> Published:
    return Published(shared_parity / "moge2")


@pytest.mark.parametrize("config, name", FORWARD)
def test_forward_is_the_published_one(published, config, name):
    model, case, facts = published.model(config), published.case(config, name), published.facts[f"cases_{config}"][name]
    assert sum(v.numel() for v in model.state_dict().values()) == published.facts["parameter_count"][config]
    height, width = case["in.image"].shape[2:]
    assert token_grid(height, width, facts["num_tokens"]) == tuple(facts["token_grid"])
    with torch.no_grad():
        maps = model(case["in.image"], facts["num_tokens"])
    for key, bound in facts["float32_vs_float64_max_abs"].items():
        # The reference itself is this far from float64 (up to 5e-5 in the normals, which are normalised): float32 sums
        # in another order may differ by as much. 1.1e-5 was seen.
        got, want = getattr(maps, key), case[f"forward.{key}"]
        assert got.shape == want.shape
        assert (got - want).abs().max() <= max(bound, 2e-6), key
    absent = {"points", "normal", "mask", "metric_scale"} - set(facts["float32_vs_float64_max_abs"])
    assert all(getattr(maps, key) is None for key in absent)


def test_every_level_is_the_published_one(published):
    model, case = published.model("a"), published.case("a", "wide")
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module, args, out):
            values = [out] if isinstance(out, Tensor) else list(out)
            seen.update({f"act.{name}.{i}": value for i, value in enumerate(values)})
            seen[f"act.{name}"] = seen[f"act.{name}.last"] = values[-1]

        return hook

    for name, module in model.named_children():
        module.register_forward_hook(keep(name))
    with torch.no_grad():
        model(case["in.image"], 40)
    expected = {key: value for key, value in case.items() if key.startswith("act.")}
    assert len(expected) == 11
    for key, value in expected.items():  # float32, sums in another order, over up to 5 blocks and 5 levels
        torch.testing.assert_close(seen[key], value, rtol=1e-5, atol=2e-5)


def infer_case(published: Published, name: str, variant: str) -> tuple[Prediction, dict[str, Tensor], dict[str, Any]]:
    facts = published.facts["infer_a"][f"{name}.infer_{variant}"]
    case = published.case("a", name)
    wanted = {
        "num_tokens": facts.get("num_tokens"),
        "fov_x_deg": facts.get("fov_x"),
        "force_projection": facts.get("force_projection", True),
        "apply_mask": facts.get("apply_mask", True),
    }
    if "resolution_level" in facts:
        wanted["resolution_level"] = facts["resolution_level"]
    given = case["in.image"][0] if "unbatched" in variant else case["in.image"]
    want = {key.split(".")[1]: value for key, value in case.items() if key.startswith(f"infer_{variant}.")}
    return infer(published.model("a"), given, **wanted), want, case


@pytest.mark.parametrize("name, variant", INFER)
def test_infer_is_the_published_one(published, monkeypatch, name, variant):
    # A random network's points fit no camera, and ours says so (below); the published solver answers all the same.
    monkeypatch.setattr(focal_module, "MAX_SIGMA", math.inf)
    got, want, case = infer_case(published, name, variant)
    assert torch.equal(got.mask, want["mask"].bool())
    assert got.normal is not None
    torch.testing.assert_close(got.normal, want["normal"], rtol=1e-4, atol=5e-5)  # as for forward
    # The published solver stops when the residual changes by less than 1e-3: on these shapeless points 1e-2 from the
    # minimum. With the focal length given the intrinsics are exact. The test after this one takes the solver out.
    torch.testing.assert_close(
        got.intrinsics,
        want["intrinsics"],
        rtol=1e-6 if variant == "fov" else 1e-2,
        atol=1e-6 if variant == "fov" else 0,
    )
    for key in ("depth", "points"):
        value, reference = getattr(got, key), want[key]
        assert value.shape == reference.shape
        assert torch.equal(value.isfinite(), reference.isfinite())
        seen = reference.isfinite()
        assert (value - reference)[seen].abs().max() <= 1e-2 * reference[seen].abs().max(), key
    # What differs is how far the solver went: ours leaves no more residual than the published one.
    for i, (points, mask) in enumerate(zip(case["forward.points"], case["forward.mask"] > 0.5, strict=True)):
        if "unbatched" in variant:
            break  # its forward pass, at another token budget, is not among the outputs
        assert residual(got, i, points, mask) <= residual_of(want, case, i, points, mask) * (1 + 1e-6)


def residual_of(want: dict[str, Tensor], case: dict[str, Tensor], i: int, points: Tensor, mask: Tensor) -> float:
    inside = want["mask"][i].bool()
    shift = (want["depth"][i] / case["forward.metric_scale"][i] - points[..., 2])[inside].double().mean()
    return projection_residual(points, mask, want["intrinsics"][i], shift)


def residual(got: Prediction, i: int, points: Tensor, mask: Tensor) -> float:
    assert got.metric_scale is not None
    shift = (got.depth[i] / got.metric_scale[i] - points[..., 2])[got.mask[i]].double().mean()
    return projection_residual(points, mask, got.intrinsics[i], shift)


def projection_residual(points: Tensor, mask: Tensor, intrinsics: Tensor, shift: Tensor) -> float:
    """Sum of squares over the samples that the solver sees, in half diagonals."""
    height, width = mask.shape
    rows, cols = torch.arange(64) * height // 64, torch.arange(64) * width // 64
    p, uv = points.double()[rows][:, cols], view_plane(height, width)[rows][:, cols]
    focal = 2 * intrinsics[1, 1].double() / math.hypot(width / height, 1)
    error = focal * p[..., :2] / (p[..., 2:] + shift) - uv
    return float(error.square().sum(-1)[mask[rows][:, cols]].sum())


def published_solver(points: Tensor, mask: Tensor | None = None, focal: Tensor | None = None) -> FocalShift:
    """What the published code minimises, with its method, start and stop."""
    from scipy.optimize import least_squares

    assert mask is not None
    height, width = mask.shape[1:]
    rows, cols = torch.arange(64)[:, None] * height // 64, torch.arange(64) * width // 64
    found = []
    for i in range(len(points)):
        valid = mask[i][rows, cols]
        p, uv = points[i][rows, cols][valid].numpy(), view_plane(height, width)[rows, cols][valid].float().numpy()

        def project(shift, p=p, uv=uv, i=i):
            q = p[:, :2] / (p[:, 2:] + shift)
            return q, (q * uv).sum() / (q * q).sum() if focal is None else focal[i].float().numpy()

        def error(shift, uv=uv, project=project):
            q, f = project(shift)
            return (f * q - uv).ravel()

        shift = least_squares(error, x0=0, ftol=1e-3, method="lm").x.item()
        found.append((float(project(shift)[1]), shift))
    f, shift = torch.tensor(found).T
    return FocalShift(focal=f, shift=shift, focal_sigma=torch.zeros_like(f), determined=torch.ones_like(f).bool())


@pytest.mark.parametrize("name, variant", INFER)
def test_with_the_published_solver_infer_is_the_same_to_rounding(published, monkeypatch, name, variant):
    monkeypatch.setattr(infer_module, "recover_focal_shift", published_solver)
    got, want, _ = infer_case(published, name, variant)
    for key in ("points", "depth", "intrinsics"):
        # forward's 2e-6, through a solver that is good to that, times depths of up to 4
        torch.testing.assert_close(getattr(got, key), want[key], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["wide", "tall_batch2", "native_grid"])
def test_points_of_a_random_network_determine_no_focal_length(published, name):
    got, _, _ = infer_case(published, name, "default")
    assert not got.focal_determined.any()
    assert (got.focal_sigma > focal_module.MAX_SIGMA).all()
    height, width = got.mask.shape[1:]
    expected = math.hypot(width, height) / (2 * width)  # fx / width of 90 degrees along the diagonal
    torch.testing.assert_close(got.intrinsics[:, 0, 0], torch.full((len(got.mask),), expected))


# Published sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_size_names_and_shapes_are_those_of_the_checkpoint(shared_parity, variant):
    variants = json.loads((shared_parity / "moge2" / "checkpoint_keys.json").read_text())["variants"]
    assert set(variants) == {f"Ruicheng/moge-2-{v}" for v in VARIANTS}
    facts = variants[f"Ruicheng/moge-2-{variant}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every key of the published configuration is known
        config = parse_config(facts["model_config"])
    with torch.device("meta"):
        model = MoGe2(config)
    state = {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in model.state_dict().items()}
    assert state == facts["keys"]
    assert sum(p.numel() for p in model.parameters()) == facts["parameters_total"]
    for name, count in facts["parameters_by_module"].items():
        assert sum(p.numel() for p in getattr(model, name).parameters()) == count
    assert config == published_config(variant[:4], normal="normal" in variant)


# Laws ----------------------------------------------------------------------------------------------------------------


def test_a_batch_is_its_images(tiny):
    images = image(batch=3)
    batch = infer(tiny, images, num_tokens=24, fov_x_deg=torch.tensor([40.0, 60.0, 80.0]), apply_mask=False)
    for i, fov in enumerate((40.0, 60.0, 80.0)):
        one = infer(tiny, images[i], num_tokens=24, fov_x_deg=fov, apply_mask=False)
        for key in ("points", "depth", "normal", "intrinsics", "metric_scale"):
            torch.testing.assert_close(getattr(batch[i], key), getattr(one, key), rtol=1e-4, atol=1e-5)
        assert (batch.mask[i] != one.mask).float().mean() < 1e-3  # a probability may sit on the threshold


@pytest.mark.parametrize("height, width", [(1, 1), (14, 300), (301, 17), (33, 34), (70, 70)])
def test_any_image_size(tiny, height, width):
    got = infer(tiny, image(height, width), num_tokens=20)
    assert got.points.shape == (1, height, width, 3)
    assert got.depth.shape == got.mask.shape == (1, height, width)
    assert got.intrinsics.isfinite().all()
    assert got.depth[got.mask].isfinite().all()


def test_infer_keeps_its_promises(tiny):
    got = infer(tiny, image(60, 90), num_tokens=24, fov_x_deg=70)
    assert got.intrinsics[0, 0, 0].item() == pytest.approx(0.5 / math.tan(math.radians(35)), rel=1e-6)
    fx, fy = got.intrinsics[0, 0, 0] * 90, got.intrinsics[0, 1, 1] * 60
    assert fx.item() == pytest.approx(fy.item(), rel=1e-6)  # square pixels
    assert bool(got.focal_determined) and got.focal_sigma.item() == 0
    inside = got.mask[0]
    assert 0 < inside.float().mean() < 1
    assert got.normal is not None
    assert torch.isinf(got.depth[0][~inside]).all() and torch.isinf(got.points[0][~inside]).all()
    assert (got.normal[0][~inside] == 0).all()
    torch.testing.assert_close(got.normal[0][inside].norm(dim=-1), torch.ones(int(inside.sum())))
    # every point on its own pixel's ray, pixel centres at +0.5
    v, u = torch.meshgrid((torch.arange(60) + 0.5) / 60, (torch.arange(90) + 0.5) / 90, indexing="ij")
    pixel = got.points[0] @ got.intrinsics[0].T
    torch.testing.assert_close((pixel[..., 0] / pixel[..., 2])[inside], u[inside], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((pixel[..., 1] / pixel[..., 2])[inside], v[inside], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.points[0, ..., 2][inside], got.depth[0][inside])
    assert (got.depth[0][inside] > 0).all()


def test_resolution_level_is_a_token_budget(tiny):
    low, mid = infer(tiny, image(), resolution_level=0), infer(tiny, image(), resolution_level=4.5)
    torch.testing.assert_close(low.depth, infer(tiny, image(), num_tokens=20).depth)
    torch.testing.assert_close(mid.depth, infer(tiny, image(), num_tokens=40).depth)
    assert not torch.equal(low.depth, mid.depth)


def test_absent_heads_are_absent():
    raw = tiny_config()
    for name in ("normal_head", "mask_head", "scale_head"):
        del raw[name]
    got = infer(MoGe2(parse_config(raw)).eval(), image(), num_tokens=20)
    assert got.normal is None and got.metric_scale is None
    assert torch.equal(got.mask, got.depth.isfinite())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(tiny, precision):
    whole = infer(tiny, image(60, 90), num_tokens=24, fov_x_deg=60, apply_mask=False)
    half = infer(tiny, image(60, 90), num_tokens=24, fov_x_deg=60, apply_mask=False, precision=precision)
    assert half.depth.dtype == torch.float32
    difference = ((half.depth - whole.depth).abs() / whole.depth.abs().mean()).max().item()
    # 5 blocks and 3 levels, 2^-8 (bfloat16) or 2^-11 of each value lost at every step
    assert 0 < difference < (0.05 if precision == torch.bfloat16 else 0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_agrees_with_the_cpu(tiny, precision):
    here = infer(tiny, image(60, 90), num_tokens=24, fov_x_deg=60, apply_mask=False)
    there = infer(
        deepcopy(tiny).cuda(), image(60, 90).cuda(), num_tokens=24, fov_x_deg=60, apply_mask=False, precision=precision
    )
    difference = ((there.depth.cpu() - here.depth).abs() / here.depth.abs().mean()).max().item()
    # float32 convolutions may use TF32 (2^-11), the halves as on the CPU
    assert difference < {torch.float32: 0.01, torch.bfloat16: 0.05, torch.float16: 0.01}[precision]


@pytest.mark.parametrize("kind", ["linear", "sinh", "exp", "sinh_exp"])
def test_remap(kind):
    x, y, z = 0.3, -1.2, 0.7
    want = {
        "linear": (x, y, z),
        "sinh": (math.sinh(x), math.sinh(y), math.sinh(z)),
        "exp": (x * math.exp(z), y * math.exp(z), math.exp(z)),
        "sinh_exp": (math.sinh(x), math.sinh(y), math.exp(z)),
    }[kind]
    torch.testing.assert_close(remap(torch.tensor([x, y, z]), kind), torch.tensor(want))


def test_view_plane_reaches_the_corners_at_distance_one():
    uv = view_plane(30, 40)
    step = uv[1, 1] - uv[0, 0]
    assert (uv[0, 0] - step / 2).norm().item() == pytest.approx(1)
    assert (uv[-1, -1] + step / 2).norm().item() == pytest.approx(1)
    assert step[0].item() == pytest.approx(step[1].item())
    torch.testing.assert_close(uv.mean((0, 1)), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}, "uint8"),
        ({"image": torch.zeros(8, 8, 3)}, r"\[1, 8, 8, 3\]"),
        ({"image": torch.full((3, 8, 8), 255.0)}, "divide by 255"),
        ({"image": torch.full((3, 8, 8), math.nan)}, "nan"),
        ({"resolution_level": 10}, "resolution_level 10"),
        ({"num_tokens": 0}, "num_tokens 0"),
        ({"fov_x_deg": 180.0}, "fov_x_deg 180"),
        ({"fov_x_deg": math.nan}, "fov_x_deg nan"),
    ],
)
def test_infer_refuses_what_it_cannot_use(tiny, wanted, message):
    with pytest.raises(ValueError, match=message):
        infer(tiny, wanted.pop("image", image()), **wanted)


# Configurations ------------------------------------------------------------------------------------------------------


def test_unknown_keys_are_warned_about():
    raw = tiny_config()
    raw["new_field"] = 1
    raw["encoder"]["other"] = 2
    raw["mask_head"]["third"] = 3
    with pytest.warns(UserWarning) as seen:
        config = parse_config(raw)
    text = " ".join(str(w.message) for w in seen)
    assert len(seen) == 3 and all(word in text for word in ("new_field", "model_config.encoder", "other", "third"))
    assert config == parse_config(tiny_config())


def test_scalars_and_defaults():
    raw = tiny_config()
    raw["encoder"]["intermediate_layers"] = 2  # the last two
    for key in ("num_res_blocks", "res_block_in_norm", "res_block_hidden_norm"):
        del raw["neck"][key]
    raw["neck"]["num_res_blocks"] = 1
    raw["neck"] |= {"dim_res_blocks": [32, 32, 32], "resamplers": ["nearest", "pixel_shuffle"], "dim_out": 32}
    for name in ("points_head", "normal_head", "mask_head"):
        raw[name]["dim_in"] = 32
    config = parse_config(raw)
    assert config.taps == (3, 4)
    assert config.neck.num_blocks == (1, 1, 1) and config.points_head.dim_in == (32, 32, 32)
    assert (config.neck.in_norm, config.neck.hidden_norm, config.neck.activation) == (
        "layer_norm",
        "group_norm",
        "relu",
    )
    assert infer(MoGe2(config).eval(), image(), num_tokens=20).depth.shape == (1, 42, 70)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "elu"])
@pytest.mark.parametrize("resampler", ["conv_transpose", "bilinear", "nearest", "pixel_shuffle"])
def test_every_resampler_doubles_the_resolution(resampler, activation):
    raw = tiny_config()
    raw["neck"] |= {"resamplers": [resampler] * 2, "activation": activation, "res_block_in_norm": "layer_norm"}
    stack = ConvStack(parse_config(raw).neck)
    out = stack([torch.randn(2, 34, 3, 4), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 12, 16)])
    assert [tuple(x.shape) for x in out] == [(2, 32, 3, 4), (2, 16, 6, 8), (2, 8, 12, 16)]


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("encoder", ..., "no 'encoder'"),
        ("points_head", ..., "no 'points_head'"),
        ("remap_output", ..., "no 'remap_output'"),
        ("encoder", 3, "int, not a mapping"),
        ("encoder.backbone", "resnet50", "resnet50.*dinov2_vits14"),
        ("encoder.intermediate_layers", [1, 5], "not among 5 blocks"),
        ("encoder.intermediate_layers", [4, 1], "not among 5 blocks"),
        ("encoder.intermediate_layers", 0, "not among 5 blocks"),
        ("encoder.dim_out", 33, "34, 2, 2.*35, 2, 2"),
        ("neck.resamplers", "bilinear", "not a list"),
        ("neck.resamplers", ["bilinear"], "not 2 entries"),
        ("neck.resamplers", ["bilinear", "magic"], "magic"),
        ("neck.dim_res_blocks", [32, 16.0, 8], "16.0"),
        ("neck.dim_res_blocks", [32, 16, 10**9], "from 1 to"),
        ("neck.num_res_blocks", [1, 1], "2 entries instead of 3"),
        ("neck.num_res_blocks", 10**9, "from 0 to"),
        ("neck.res_block_in_norm", "batch_norm", "batch_norm"),
        ("neck.res_block_hidden_norm", "group_norm", "groups of 32"),
        ("mask_head.dim_out", [None, None, 2], "mask_head ends in 2"),
        ("normal_head.dim_in", [32, 16, 9], "normal_head takes"),
        ("scale_head", {"dims": [31, 1]}, "scale_head"),
        ("scale_head", {"dims": [32] * 10_000 + [1]}, "10001 entries"),
        ("scale_head", {"dims": [32, 2]}, "scale_head"),
        ("remap_output", "cube", "cube"),
        ("num_tokens_range", [20], "1 entries"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(path, value, message):
    raw = tiny_config()
    *parents, key = path.split(".")
    at = raw
    for parent in parents:
        at = at[parent]
    if value is ...:
        del at[key]
    else:
        at[key] = value
    with pytest.raises(LongtakeError, match=message):
        parse_config(raw)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tiny, tmp_path) -> Path:
    path = tmp_path / "model.pt"
    torch.save({"model_config": tiny_config(), "model": tiny.state_dict()}, path)
    return path


def resave(path: Path, change) -> Path:
    raw = torch.load(path, weights_only=True)
    change(raw)
    torch.save(raw, path)
    return path


def test_a_checkpoint_round_trips(tiny, checkpoint):
    model = load(checkpoint, device="cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.config == tiny.config
    for key in ("points", "normal", "mask", "metric_scale"):
        assert torch.equal(getattr(model(image(), 24), key), getattr(tiny(image(), 24), key))


def test_halves_become_float32(checkpoint):
    path = resave(checkpoint, lambda raw: raw["model"].update({k: v.half() for k, v in raw["model"].items()}))
    assert {v.dtype for v in load(path, device="cpu").state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", ["normal_head", "mask_head", "scale_head"])
def test_an_optional_head_without_weights_is_left_out(checkpoint, name):
    def drop(raw):
        raw["model"] = {k: v for k, v in raw["model"].items() if not k.startswith(f"{name}.")}

    with pytest.warns(UserWarning, match=f"{name} but without its weights"):
        model = load(resave(checkpoint, drop), device="cpu")
    assert getattr(model, name) is None and getattr(model.config, name) is None
    assert infer(model, image(), num_tokens=20).depth.shape == (1, 42, 70)


NAME = "neck.input_blocks.1.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: raw["model"].pop(NAME), f"{NAME} is missing"),
        (lambda raw: raw["model"].pop("normal_head.input_blocks.0.bias"), "normal_head.input_blocks.0.bias is missing"),
        (
            lambda raw: [raw["model"].pop(k) for k in list(raw["model"]) if k.startswith("points_head.")],
            "points_head.* is missing.*and [0-9]+ more",
        ),
        (lambda raw: raw["model"].update(extra=torch.zeros(1)), "extra is not part of the network"),
        (lambda raw: raw["model_config"].pop("mask_head"), "mask_head.* is not part of the network"),
        (lambda raw: raw["model"].update({NAME: torch.zeros(16, 3, 1, 1)}), r"\[16, 3, 1, 1\], not \[16, 2, 1, 1\]"),
        (lambda raw: raw["model"].update({NAME: torch.zeros(16, 2, 1, 1, dtype=torch.int64)}), "int64, not float32"),
        (
            lambda raw: raw["model"].update({NAME: torch.zeros(16, 2, 1, 1, dtype=torch.float64)}),
            "float64, not float32",
        ),
        (lambda raw: raw["model"].update({NAME: torch.full((16, 2, 1, 1), math.nan)}), "not finite"),
        (lambda raw: raw["model"].update({NAME: [1.0]}), "no plain tensor"),
        (lambda raw: raw["model"].update({NAME: torch.zeros(16, 2, 1, 1).to_sparse()}), "no plain tensor"),
        (lambda raw: raw["model"].update({NAME: torch.zeros(16, 2, 1, 1, device="meta")}), "no plain tensor"),
        (lambda raw: raw["model_config"]["encoder"].update(dim_out="32"), "'32', not integers"),
        (lambda raw: raw.pop("model_config"), "no MoGe-2 checkpoint"),
        (lambda raw: raw.update(model=3), "no MoGe-2 checkpoint"),
        (lambda raw: raw.update(model={1: torch.zeros(1)}), "no MoGe-2 checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_refused(checkpoint, change, message):
    with pytest.raises(LongtakeError, match=message) as seen:
        load(resave(checkpoint, change), device="cpu")
    assert str(checkpoint) in str(seen.value)


def test_a_file_cut_off_anywhere_is_refused(checkpoint):
    whole = checkpoint.read_bytes()
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(LongtakeError, match=r"truncated.*Download it again"):
            load(checkpoint, device="cpu")


def test_a_changed_byte_is_noticed(checkpoint):
    whole = checkpoint.read_bytes()
    with zipfile.ZipFile(checkpoint) as archive:
        entries = [e for e in archive.infolist() if e.file_size > 64]
    assert len(entries) > 50
    for entry in entries[::7]:
        name, extra = struct.unpack("<HH", whole[entry.header_offset + 26 : entry.header_offset + 30])
        changed = bytearray(whole)
        changed[entry.header_offset + 30 + name + extra + entry.file_size // 2] ^= 0x10
        checkpoint.write_bytes(changed)
        with pytest.raises(LongtakeError, match=r"corrupt, .* fails its checksum"):
            load(checkpoint, device="cpu")


class Payload:
    """Pickles as a call that makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_that_would_run_code_does_not(checkpoint, tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # an ordinary loader runs it
    marker.unlink()
    torch.save({"model_config": tiny_config(), "model": {}, "payload": Payload(marker)}, checkpoint)
    with pytest.raises(LongtakeError, match="may run code; refused"):
        load(checkpoint, device="cpu")
    checkpoint.write_bytes(pickle.dumps(Payload(marker)))  # without the archive around it
    with pytest.raises(LongtakeError, match="no torch checkpoint"):
        load(checkpoint, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", b"\x80\x02]q\x00K\x01", b"not a pickle", b"\x80\x02cos\nsystem\n"]
)
def test_a_malformed_pickle_within_a_sound_archive_is_refused(checkpoint, content):
    source = zipfile.ZipFile(io.BytesIO(checkpoint.read_bytes()))
    with zipfile.ZipFile(checkpoint, "w") as out:
        for name in source.namelist():
            out.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(LongtakeError, match=r"malformed|refused|no MoGe-2 checkpoint"):
        load(checkpoint, device="cpu")


def test_other_files_are_refused(tiny, tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(LongtakeError, match="no such file"):
        load(path, device="cpu")
    path.write_text("<html>404</html>")
    with pytest.raises(LongtakeError, match="no torch checkpoint"):
        load(path, device="cpu")
    torch.save(tiny.state_dict(), path)
    with pytest.raises(LongtakeError, match="no MoGe-2 checkpoint"):
        load(path, device="cpu")
    torch.save({"model_config": tiny_config(), "model": tiny.state_dict()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(LongtakeError, match="no torch checkpoint"):
        load(path, device="cpu")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))  # unpacks to a thousand times its size
    with pytest.raises(LongtakeError, match="compressed"):
        load(path, device="cpu")
