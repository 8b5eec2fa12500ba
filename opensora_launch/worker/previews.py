"""Previews while a batch is denoised: a projection of the expected latents to RGB, without the VAE.

The group's first rank makes them. It has the whole latents after each step, as all ranks of the group do, so it asks
no other rank for anything, and it changes nothing: the video is the same with and without previews.

Shapes: C latent channels, T latent frames, H x W latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from opensora_launch.media.video import to_frames
from opensora_launch.model.vae import Autoencoder, decode_latents
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import RunDir, aside
from opensora_launch.sampling.latents import unpack
from opensora_launch.schema.autoencoder import VaeConfig, VaeKind

SEED, CLIPS, FRAMES, SIDE = 0, 8, 2, 8  # of the latents that the projection is fitted to
MOST_FRAMES = 4  # of a preview, side by side
FRAME_PX = 192  # width of a frame, about

Projection = Float[Tensor, "C1 3"]  # C1 is C + 1: the last row is a constant for each colour


def fit_projection(vae: Autoencoder, cfg: VaeConfig) -> Projection:
    """Fit RGB in [-1, 1] to latents by least squares, on the VAE's decode of eight short clips of seeded noise.

    Noise fits better than smooth latents do: measured on clips of the demo model.
    """
    generator = torch.Generator().manual_seed(SEED)
    frames = 1 if cfg.kind is VaeKind.image else FRAMES
    latents = torch.randn(CLIPS, cfg.latent_channels, frames, SIDE, SIDE, generator=generator)
    pixels = decode_latents(vae, cfg, latents.to(vae.like.device))
    assert pixels is not None, "all tiles are decoded here"
    apart = max(1, (pixels.shape[2] - 1) // max(1, frames - 1))
    own = pixels[:, :, ::apart].float().cpu()  # one frame of pixels for each of latents
    means = functional.adaptive_avg_pool3d(own, (frames, SIDE, SIDE))
    colours = means.movedim(1, -1).reshape(-1, 3).double()
    channels = latents.movedim(1, -1).reshape(-1, cfg.latent_channels).double()
    solution: Tensor = torch.linalg.lstsq(functional.pad(channels, (0, 1), value=1.0), colours).solution
    return solution.float()


def projected(latents: Float[Tensor, "C T H W"], projection: Projection) -> UInt8[np.ndarray, "T H W 3"]:
    """Return one pixel of 8 bits per latent; what is not finite is grey. Both are on one device."""
    rgb = torch.einsum("cthw,cr->rthw", latents.float(), projection[:-1]) + projection[-1][:, None, None, None]
    return to_frames(torch.nan_to_num(rgb, nan=0.0, posinf=1.0, neginf=-1.0))


def side_by_side(frames: UInt8[np.ndarray, "T H W 3"]) -> Image.Image:
    """Up to four frames of the whole time side by side, enlarged."""
    chosen = frames[np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int))]
    sheet = Image.fromarray(np.concatenate(list(chosen), axis=1))
    times = max(1, round(FRAME_PX / frames.shape[2]))
    return sheet.resize((sheet.width * times, sheet.height * times), Image.Resampling.BICUBIC)


@dataclass
class Previews:
    """The previews of one batch after another, every so many steps. `before`: the latents before the current step."""

    plan: Plan
    run_dir: RunDir
    projection: Projection
    before: Tensor | None = None

    def begin(self, latents: Float[Tensor, "V S Cpp"]) -> None:
        self.before = latents

    def after_step(
        self, videos: Sequence[VideoRequest], times: Sequence[float], done: int, latents: Float[Tensor, "V S Cpp"]
    ) -> bool:
        """Write a preview of each video if one is due, and return whether it was. The finished video needs none."""
        before, self.before = self.before, latents
        if before is None or done % self.plan.preview_every_steps or done == len(times) - 1:
            return False
        # Along a straight line from noise (t = 1) to the video (t = 0), the last step shows where it ends.
        speed = (latents.float() - before.float()) / (times[done] - times[done - 1])
        expected = latents.float() - times[done] * speed
        shape, patch = self.plan.geometry, self.plan.model.mmdit.patch_size
        whole = unpack(expected, shape.latent_frames, shape.latent_height, shape.latent_width, patch)
        for video, latent in zip(videos, whole, strict=True):
            path = self.run_dir.preview(video.name, done)
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside(path) as beside:
                side_by_side(projected(latent, self.projection)).save(beside, format="PNG")
        return True
