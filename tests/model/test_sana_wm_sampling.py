"""What SANA-WM is given and how its flow is followed: the published code's numbers, and problems with known answers."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longtake.model.sana_wm import sampler
from longtake.model.sana_wm.camera import Crop, pack, plucker_rays, snap_frames
from longtake.model.sana_wm.network import Conditions, SanaWM

from ..tiny_sana_wm import NET as TINY


@pytest.fixture(scope="module")
def folder(shared_parity):
    return shared_parity / "sana_wm"


def assert_near(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value; the published code computes in float32 throughout."""
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.abs().max()))


class TestCamera:
    @pytest.fixture
    def tensors(self, folder) -> dict[str, Tensor]:
        return load_file(folder / "d_camera_pack.safetensors")

    @pytest.mark.parametrize("case, size, grid", [("c1", (1280, 704), (22, 40)), ("c2", (96, 64), (4, 6))])
    def test_pack(self, tensors, case, size, grid):
        poses, intrinsics = tensors[f"{case}.in.c2w"], tensors[f"{case}.in.intrinsics"]
        camera, plucker = pack(poses, intrinsics, width=size[0], height=size[1], rows=grid[0], cols=grid[1])
        assert_near(camera, tensors[f"{case}.out.raymap"])
        assert_near(plucker, tensors[f"{case}.out.chunk_plucker"])

    def test_rays(self, tensors):
        rays = plucker_rays(tensors["c3.in.c2w"], tensors["c3.in.intrinsics"], 4, 6)
        assert_near(rays.movedim(1, -1), tensors["c3.out.plucker"])

    def test_the_first_latent_frame_sees_the_first_eight_frames(self):
        poses = torch.eye(4).repeat(17, 1, 1)
        poses[:, 0, 3] = torch.arange(17)  # along x: the moment of a ray ahead is (0, -x, 0)
        ahead = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(17, 1)
        camera, plucker = pack(poses, ahead, width=1, height=1, rows=1, cols=1)
        assert camera[:, 3].tolist() == [0, 8, 16]
        frames = -plucker.unflatten(0, (8, 6))[:, 4, :, 0, 0].T
        assert frames.tolist() == [list(range(8)), list(range(1, 9)), list(range(9, 17))]

    def test_one_frame(self):
        camera, plucker = pack(torch.eye(4)[None], torch.ones(1, 4), width=32, height=32, rows=1, cols=1)
        assert camera.shape == (1, 20) and plucker.shape == (48, 1, 1, 1)
        assert torch.equal(plucker[:6], plucker[-6:])

    def test_poses_are_relative_to_the_first(self, tensors):
        poses, intrinsics = tensors["c1.in.c2w"], tensors["c1.in.intrinsics"]
        moved = torch.eye(4)
        moved[:3, :3], moved[:3, 3] = poses[5, :3, :3], torch.tensor([3.0, -2.0, 1.0])
        size = {"width": 1280, "height": 704, "rows": 22, "cols": 40}
        for a, b in zip(pack(moved @ poses, intrinsics, **size), pack(poses, intrinsics, **size), strict=True):
            assert_near(a, b)
        assert torch.equal(pack(poses, intrinsics, **size)[0][0, :16], torch.eye(4).flatten())

    def test_snap_frames(self, folder):
        table = json.loads((folder / "d_camera_pack.json").read_text())["snap_num_frames"]["rows"]
        assert len(table) > 20
        for count, nearest, at_most in table:
            assert (snap_frames(count), snap_frames(count, most=count)) == (nearest, at_most)

    def test_refusals(self):
        size = {"width": 1280, "height": 704, "rows": 22, "cols": 40}
        with pytest.raises(ValueError, match=r"world_from_cam is \[8, 4, 4\] .* of F = 8 k \+ 1 frames; snap_frames"):
            pack(torch.eye(4).repeat(8, 1, 1), torch.ones(8, 4), **size)
        poses = torch.eye(4).repeat(9, 1, 1)
        poses[4] = torch.nan
        with pytest.raises(ValueError, match="a pose that is not finite"):
            pack(poses, torch.ones(9, 4), **size)


class TestCrop:
    def test_table(self, folder):
        table = json.loads((folder / "f_crop.json").read_text())["table_704x1280"]
        assert len(table) > 5
        for row in table:
            crop = Crop.to_cover(*row["src"], out_width=1280, out_height=704)
            assert [crop.width, crop.height] == row["resized"]
            assert [crop.left, crop.top] == row["crop_left_top"]
            assert_near(crop.intrinsics(torch.tensor(row["K_in"]), *row["src"]).float(), torch.tensor(row["K_out"]))

    def test_picture(self, folder):
        tensors = load_file(folder / "f_crop.safetensors")
        image, want = tensors["in.image"], tensors["out.pixel_values"][0]
        crop = Crop.to_cover(image.shape[1], image.shape[0], out_width=64, out_height=32)
        apart = (crop.picture(image) - want).abs() * 127.5  # Pillow computes in fixed point
        assert float(apart.max()) < 1.01 and float((apart > 0.01).float().mean()) < 1e-3
        assert_near(crop.intrinsics(tensors["in.K"], image.shape[1], image.shape[0]).float(), tensors["out.K"])

    @pytest.mark.parametrize("width, height", [(333, 777), (1690, 928), (41, 4000)])
    def test_a_crop_covers_and_is_in_the_middle(self, width, height):
        crop = Crop.to_cover(width, height, out_width=1280, out_height=704)
        over = crop.width - 1280, crop.height - 704
        assert min(over) >= 0 and min(over) <= 2
        assert (crop.left, crop.top) == (over[0] // 2, over[1] // 2)
        centre = crop.intrinsics(torch.tensor([1.0, 1.0, width / 2, height / 2]), width, height)[2:]
        assert float((centre - torch.tensor([640, 352])).abs().max()) <= 0.5


class TestSchedule:
    def test_parity(self, folder):
        tensors = load_file(folder / "g1_schedules.safetensors")
        count = 0
        for shift in (1.0, 8.0, 9.8, 9.95):
            for steps in (4, 30, 60):
                want = tensors[f"sched.shift{shift}.n{steps}.sigmas"]
                torch.testing.assert_close(sampler.euler_sigmas(steps, shift), want, rtol=0, atol=1e-6)
                count += 1
        assert 2 * count == len(tensors)

    def test_the_lower_end_is_shifted_twice(self):
        assert sampler.euler_sigmas(4, 9.8).tolist() == pytest.approx([1, 0.952127, 0.834552, 0.087705, 0], abs=1e-6)

    @pytest.mark.parametrize("sigmas", [sampler.euler_sigmas, sampler.dpm_sigmas])
    def test_from_noise_to_data(self, sigmas):
        for steps in (1, 2, 20):
            s = sigmas(steps, 9.8)
            assert len(s) == steps + 1 and float(s[0]) == 1 and float(s[-1]) == 0 and bool((s.diff() < 0).all())


class TestSampling:
    def test_parity(self, folder):
        """A whole trajectory, from the picture and the path to the latents, but for the picture's own latent."""
        t = load_file(folder / "g2_sampling.safetensors")
        net = SanaWM(TINY)
        net.load_state_dict({k.removeprefix("sd.dit."): v for k, v in t.items() if k.startswith("sd.dit.")})
        crop = Crop.to_cover(t["in.image"].shape[1], t["in.image"].shape[0], out_width=128, out_height=96)
        intrinsics = crop.intrinsics(t["in.intrinsics"], t["in.image"].shape[1], t["in.image"].shape[0])
        camera, plucker = pack(t["in.c2w"], intrinsics.expand(17, 4), width=128, height=96, rows=3, cols=4)
        conditions = Conditions(
            text=t["in.prompt_embeds"][:, 0],
            text_mask=t["in.prompt_mask"].bool(),
            camera=camera[None],
            plucker=plucker[None],
        )
        negative = sampler.negative_of(conditions, t["in.negative_embeds"][:, 0], t["in.negative_mask"].bool())
        sigmas = sampler.euler_sigmas(4, 9.95)
        torch.testing.assert_close(sigmas, t["out.sigmas"], rtol=0, atol=1e-6)
        calls: list[tuple[Tensor, Tensor]] = []

        def velocity(latents: Tensor, timesteps: Tensor) -> Tensor:
            calls.append((latents, timesteps))
            return sampler.guided(net, conditions, negative, 5.0)(latents, timesteps)

        with torch.inference_mode():
            steps = list(sampler.euler(velocity, sampler.start(t["in.noise"], t["out.first_latent"]), sigmas))
        assert len(steps) == len(calls) == 4
        for i, (latents, (seen, timesteps)) in enumerate(zip(steps, calls, strict=True)):
            torch.testing.assert_close(timesteps, t[f"step{i}.timestep"][0], rtol=1e-6, atol=0)
            assert_near(seen, t[f"step{i}.model_in"][:1])
            assert_near(latents, t[f"out.latents_after_step{i}"])
        assert torch.equal(steps[-1][:, :, :1], t["out.first_latent"])
        assert_near(steps[-1], t["out.latents_final"])

    def test_no_guidance_is_one_pass(self):
        torch.manual_seed(0)
        net = SanaWM(TINY)
        conditions = Conditions(
            text=torch.randn(1, 3, 20), text_mask=torch.ones(1, 3).bool(), camera=None, plucker=None
        )
        latents, timesteps = torch.randn(1, 8, 2, 2, 2), torch.tensor([[0.0, 500.0]])
        with torch.inference_mode():
            alone = sampler.guided(net, conditions, None, 1.0)(latents, timesteps)
            assert torch.equal(alone, net(latents, timesteps, conditions))
            assert_near(sampler.guided(net, conditions, conditions, 7.0)(latents, timesteps), alone)
        with pytest.raises(ValueError, match="guidance is 5"):
            sampler.guided(net, conditions, None, 5.0)


SAMPLERS = [(sampler.euler, 1), (sampler.dpm_solver, 2)]


class TestKnownFlows:
    """Flows whose velocity is known in closed form, [1, 1, 3, 1, 8] latents of which the first frame is given."""

    noise = torch.randn(1, 1, 3, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    @pytest.mark.parametrize("method, _order", SAMPLERS)
    def test_a_single_sample_is_reached_exactly(self, method, _order):
        """All noise leads straight to the one sample there is: velocity (x - data) / sigma."""
        data = torch.arange(8.0).expand(1, 1, 3, 1, 8)

        def velocity(x: Tensor, timesteps: Tensor) -> Tensor:
            return (x - data) / (timesteps[0, 1] / 1000)

        first = torch.full((1, 1, 1, 1, 8), 9.0)
        *_, end = method(velocity, sampler.start(self.noise, first), sampler.dpm_sigmas(5, 3.0))
        assert torch.equal(end[:, :, :1], first)
        torch.testing.assert_close(end[:, :, 1:], data[:, :, 1:], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("method, order", SAMPLERS)
    def test_order_of_convergence(self, method, order):
        """Data N(2, 0.5^2): x at sigma is 2 (1 - sigma) + s(sigma) z, with s^2 = 0.25 (1 - sigma)^2 + sigma^2.

        From 0.9 to 0.1: at 1 and 0 the signal-to-noise ratio, in which the solver's steps are small, is infinite.
        """

        def variance(sigma: float) -> float:
            return 0.25 * (1 - sigma) ** 2 + sigma**2

        def x(sigma: float) -> Tensor:
            return 2 * (1 - sigma) + variance(sigma) ** 0.5 * self.noise

        def velocity(x: Tensor, timesteps: Tensor) -> Tensor:
            sigma = float(timesteps[0, 1]) / 1000
            return -2 + (sigma - 0.25 * (1 - sigma)) / variance(sigma) * (x - 2 * (1 - sigma))

        errors = []
        for steps in (20, 40, 80):
            *_, end = method(velocity, x(0.9), torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64))
            errors.append(float((end - x(0.1))[:, :, 1:].abs().max()))
        for coarse, fine in pairwise(errors):
            assert 0.8 * 2**order < coarse / fine < 1.4 * 2**order, errors

    @pytest.mark.parametrize("method, _order", SAMPLERS)
    def test_the_first_frame_is_at_time_0(self, method, _order):
        seen: list[Tensor] = []

        def velocity(x: Tensor, timesteps: Tensor) -> Tensor:
            seen.append(timesteps)
            return torch.ones_like(x)

        list(method(velocity, self.noise.float(), sampler.euler_sigmas(4, 9.8)))
        assert all(t.shape == (1, 3) and float(t[0, 0]) == 0 and float(t[0, 1]) == float(t[0, 2]) > 0 for t in seen)
