"""How the nano network's weights were made: clips of a procedural room, an autoencoder, then the network; on one core.

    python benchmarks/train_nano.py clips FOLDER                      # drawn by longtake, with exact cameras
    python benchmarks/train_nano.py clips FOLDER --manifest MANIFEST  # or: of videos that have poses
    python benchmarks/train_nano.py train FOLDER

Training goes on where it was cut off, and writes the weights where the package has them. The clips are of one room
(`longtake.render.painted_room`), seen from its open half: trained on others, the network knows those instead.

The weights that are shipped took some two and a half hours of one core (AMD EPYC with AVX512-BF16), with detours that
the defaults here leave out. Autoencoder: 2000 steps on the same paths in the room's own, finer paint (crops of 64 x 96,
two a step), 1200 on the painted room with a blur of 1.5 pixels (the same crops), 1000 with one of 4 (rate 0.01), 450 on
whole pictures (rate 0.01); each began with the weights before it (--begin-with). Network: 1700 steps on 120 clips, 900
more from a rate of 0.007, then on 306 clips to 4100, 5600 and 7000 (--net-steps: each begins where the rate of so many
would be). Decoder: 900 steps, and 500 more from a rate of 0.005.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from longtake import open_manifest
from longtake.annotate.video import probe, read_rgb
from longtake.datasets.readers import read_clip
from longtake.model.sana_wm.camera import Crop
from longtake.model.sana_wm.nano import NANO, NANO_SETTINGS, NANO_VAE, NET_FILE, VAE_FILE, HashedWords
from longtake.model.sana_wm.network import SanaWM
from longtake.model.sana_wm.train import (
    LatentClips,
    NetRecipe,
    PosedClip,
    VaeRecipe,
    begin,
    begin_vae,
    encode_clips,
    read_clips,
    save_clip,
    train_net,
    train_vae,
)
from longtake.model.sana_wm.vae import Vae
from longtake.model.sana_wm.vae import pictures as from_unit
from longtake.render.painted_room import filmed, intrinsics, painted_room, random_path

FRAMES = 49  # of a training clip; training takes parts of it, forwards and backwards
LATENTS_EVERY = 8  # frames between the beginnings of these parts
PROMPT = "a furnished room with pictures on its walls"


def draw_clips(folder: Path, count: int) -> None:
    size = (NANO_SETTINGS.width, NANO_SETTINGS.height)
    room, k = painted_room(), np.tile(intrinsics(*size), (FRAMES, 1))
    for seed in range(count):
        file = folder / f"{seed:05d}.npz"
        if not file.exists():
            path = random_path(seed, FRAMES)
            frames = filmed(room, path, k, *size)
            save_clip(file, PosedClip(frames=frames, world_from_cam=path, intrinsics=k, prompt=PROMPT))


def take_clips(folder: Path, manifest: str) -> None:
    """The posed clips of a manifest, cropped to nano's shape; those with frames without a pose are left out."""
    size = {"out_width": NANO_SETTINGS.width, "out_height": NANO_SETTINGS.height}
    for row in open_manifest(manifest).rows():
        clip = read_clip(row) if row["status"] == "ok" and row["c2w"] is not None else None
        if clip is None or not clip.pose_valid.all():
            print(f"left out: {row['clip_id']}")
            continue
        video = probe(Path(manifest) / clip.uri)
        pictures = read_rgb(video, range(clip.frame_start, clip.frame_start + clip.num_frames))
        crop = Crop.to_cover(clip.width, clip.height, **size)
        k = crop.intrinsics(torch.from_numpy(clip.intrinsics), clip.width, clip.height).numpy()
        frames = np.stack([from_unit(crop.picture(torch.from_numpy(rgb))[:, None])[0] for rgb in pictures])
        posed = PosedClip(frames=frames, world_from_cam=clip.world_from_cam, intrinsics=k, prompt=row["caption"] or "")
        save_clip(folder / f"{clip.clip_id}.npz", posed)


def train_all(folder: Path, vae_steps: int, net_steps: int, decoder_steps: int, begin_with: Path | None) -> None:
    """The autoencoder, the clips' latents, the network, the decoder again: what is done already is read."""
    clips, recipe = read_clips(folder), VaeRecipe(steps=vae_steps)
    torch.manual_seed(0)
    vae = begin_vae(Vae(NANO_VAE))
    if begin_with is not None:
        vae.load_state_dict(torch.load(begin_with, weights_only=True)["mean"], strict=False)
        recipe = replace(recipe, still_steps=0, rate=recipe.rate / 2)
    train_vae(vae, clips, recipe, checkpoint=folder / "vae.pt", log=Log("autoencoder", recipe.steps))
    if not (folder / "latents.pt").exists():
        latents = encode_clips(vae, clips, frames=NANO_SETTINGS.frames, every=LATENTS_EVERY)
        torch.save(vars(latents), folder / "latents.pt")
    latents = LatentClips(**torch.load(folder / "latents.pt", weights_only=True))
    torch.manual_seed(1)
    net, words, plan = begin(SanaWM(NANO)), HashedWords(), NetRecipe(steps=net_steps)
    train_net(net, latents, words.prompt, plan, checkpoint=folder / "net.pt", log=Log("network", plan.steps))
    more = replace(recipe, steps=decoder_steps, still_steps=0, frames=NANO_SETTINGS.frames, encoder=False, seed=1)
    more = replace(more, rate=0.01, noise=0.04)  # the network is off by more than the encoder
    vae.requires_grad_(True)
    train_vae(vae, clips, more, checkpoint=folder / "decoder.pt", log=Log("decoder", more.steps))
    pack_weights(vae, VAE_FILE)
    pack_weights(net, NET_FILE)


def pack_weights(net: torch.nn.Module, file: Path) -> None:
    """In half precision, as they are shipped."""
    save_file({name: value.detach().half().contiguous() for name, value in net.state_dict().items()}, file)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


class Log:
    """The mean loss of every 100 steps, with the seconds since the beginning."""

    def __init__(self, what: str, steps: int) -> None:
        self.what, self.steps, self.losses, self.began = what, steps, [], time.perf_counter()

    def __call__(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == 100 or step + 1 == self.steps:
            seconds = time.perf_counter() - self.began
            print(f"{self.what} {step + 1}/{self.steps}: {np.mean(self.losses):.4f}, {seconds:.0f} s", flush=True)
            self.losses = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clips", "train"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=140)
    parser.add_argument("--manifest")
    parser.add_argument("--vae-steps", type=int, default=VaeRecipe.steps)
    parser.add_argument("--net-steps", type=int, default=NetRecipe.steps)
    parser.add_argument("--decoder-steps", type=int, default=1700)
    parser.add_argument("--begin-with", type=Path, help="vae.pt of a training on other clips")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == "train":
        train_all(args.folder, args.vae_steps, args.net_steps, args.decoder_steps, args.begin_with)
    elif args.manifest:
        take_clips(args.folder, args.manifest)
    else:
        draw_clips(args.folder, args.count)


if __name__ == "__main__":
    main()
