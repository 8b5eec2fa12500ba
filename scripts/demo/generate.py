"""Clips from prompts, on one device, with the package's own functions: noise, times, guidance rows, loop, conditions.

Shapes: V videos, C latent channels, T latent frames, H = W = 64 pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from demo import clips
from demo.mmdit import LATENT_FRAMES, LATENT_SIDE, PATCH
from demo.vae import VAE_CONFIG, LatentScale
from opensora_launch.media.prompts import with_suffixes
from opensora_launch.plan.rows import Guidance
from opensora_launch.sampling.conditions import condition, pack_condition, restore_given
from opensora_launch.sampling.denoise import StepRow, denoise, equal_inputs, step_rows
from opensora_launch.sampling.latents import draw_noise, pack, position_ids, unpack
from opensora_launch.sampling.schedule import timesteps

Encode = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
POSTERIOR_SEED = 1


@dataclass(frozen=True)
class Networks:
    """All that generation needs; `encode` gives (txt, y_vec) of prompts."""

    mmdit: nn.Module
    vae: AutoencoderKLHunyuanVideo
    encode: Encode
    scale: LatentScale


@dataclass(frozen=True)
class Request:
    """One clip: prompt without suffix, seed, and for i2v the reference images, each [3, H, W] in [-1, 1]."""

    prompt: str
    seed: int
    cond_type: str = "t2v"
    images: tuple[Tensor, ...] = ()


DEFAULTS = Guidance(num_steps=20, text_scale=3.0, image_scale=1.5, text_osci=True, image_osci=True, temporal_osci=False)


def encode_image(networks: Networks, image: Tensor) -> Tensor:
    """The scaled latent [C, 1, h, w] of an image [3, H, W]: a seeded draw from the posterior."""
    posterior = networks.vae.encode(image[None, :, None].to(networks.vae.dtype)).latent_dist
    latent = posterior.sample(torch.Generator().manual_seed(POSTERIOR_SEED)).float()
    scaled: Tensor = networks.scale.factor * (latent[0] - networks.scale.shift)
    return scaled


def decode(networks: Networks, latents: Tensor) -> Tensor:
    """Scaled latents [V, C, T, h, w] -> clips [V, 3, frames, H, W] in [-1, 1]."""
    raw = (latents / networks.scale.factor + networks.scale.shift).to(networks.vae.dtype)
    return torch.cat([networks.vae.decode(part).sample.float().clamp(-1, 1) for part in raw.split(8)])


@torch.no_grad()
def generate(networks: Networks, requests: Sequence[Request], guidance: Guidance = DEFAULTS) -> Tensor:
    """Clips [V, 3, 17, H, W] in [-1, 1] of requests that share one condition type, as one batch."""
    kind = requests[0].cond_type
    assert all(request.cond_type == kind for request in requests), "one condition type a batch"
    side = LATENT_SIDE // PATCH
    shape = (VAE_CONFIG["latent_channels"], LATENT_FRAMES, LATENT_SIDE, LATENT_SIDE)
    noise = draw_noise([r.seed for r in requests], shape, device=torch.device("cpu"), dtype=torch.float32)
    refs = [[encode_image(networks, image) for image in r.images] for r in requests]
    conds = torch.stack([pack_condition(*condition(kind, ref, noise[0]), PATCH) for ref in refs])
    txt, y_vec = networks.encode([with_suffixes(r.prompt, 24, "4") for r in requests])
    negative_txt, negative_vec = networks.encode([""])
    branches = [
        ((txt[i], y_vec[i], conds[i]), (negative_txt[0], negative_vec[0], conds[i]),
         (negative_txt[0], negative_vec[0], torch.zeros_like(conds[i])))
        for i in range(len(requests))
    ]  # fmt: skip
    equal = [equal_inputs(of_video) for of_video in branches]
    ids = position_ids(LATENT_FRAMES, side, side, noise.device)

    def predict(step: int, latents: Tensor, t: float, rows: Sequence[StepRow]) -> Tensor:
        count = len(rows)
        texts, vectors, given = (torch.stack([branches[v][row.branch][k] for v, row in rows]) for k in range(3))
        out: Tensor = networks.mmdit(
            img=latents[[v for v, _ in rows]],
            img_ids=ids.expand(count, -1, -1),
            txt=texts,
            txt_ids=torch.zeros(count, texts.shape[1], 3),
            timesteps=torch.full((count,), t),
            y_vec=vectors,
            cond=given,
        )
        return out.float()

    times = timesteps(guidance.num_steps, side**2, LATENT_FRAMES, shift=True, flow_shift=None)
    rows_at = [step_rows(guidance, step, LATENT_FRAMES, equal, prune=True) for step in range(guidance.num_steps)]
    tokens = denoise(pack(noise, PATCH), times, lambda step: rows_at[step], predict, side**2)
    latents = unpack(tokens, LATENT_FRAMES, LATENT_SIDE, LATENT_SIDE, PATCH)
    return decode(networks, torch.stack([restore_given(x, kind, ref) for x, ref in zip(latents, refs, strict=True)]))


def true_clip(combination: clips.Combination, seed: int) -> Tensor:
    """A drawn clip [3, 17, H, W] of the combination, to take reference images from."""
    paths = clips.draw_paths([combination], torch.Generator().manual_seed(seed))
    return clips.render([combination], paths, range(clips.FRAMES))[0][0]
