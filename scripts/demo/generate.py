"""Generate clips on one rank with the package's own networks, noise, times, guidance and loop.

Shapes: V videos, C latent channels, T latent frames, H = W = 64 pixels. An image is a video of one frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from demo import clips
from opensora_launch.media.prompts import with_suffixes
from opensora_launch.model import load_mmdit, vae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.text_encoders import TextEncoders, load_text_encoders
from opensora_launch.model.weights import read_tensors
from opensora_launch.plan.geometry import geometry_of
from opensora_launch.plan.rows import Guidance
from opensora_launch.sampling.conditions import condition, pack_condition, restore_given
from opensora_launch.sampling.denoise import StepRow, batch_rows, denoise, equal_inputs
from opensora_launch.sampling.latents import draw_noise, pack, position_ids, unpack
from opensora_launch.sampling.schedule import timesteps
from opensora_launch.schema.config import ModelConfig, VideoConfig

CPU = torch.device("cpu")
POSTERIOR_SEED = 1
FLOW_SHIFT = 0.6  # faint colours are settled late: half of the steps are below t = 0.375


@dataclass(frozen=True)
class Networks:
    """Hold everything that generation needs, in fp32, and the config it was loaded with."""

    config: ModelConfig
    mmdit: MMDiT
    vae: vae.Autoencoder
    text: TextEncoders


@dataclass(frozen=True)
class Request:
    """Describe one clip: prompt without suffix, seed, and for i2v the reference images, each [3, H, W] in [-1, 1]."""

    prompt: str
    seed: int
    cond_type: str = "t2v"
    images: tuple[Tensor, ...] = ()


StepModel = Callable[[int, Sequence[StepRow], dict[str, Tensor]], Tensor]  # step, its rows, MMDiT's arguments
DEFAULTS = Guidance(num_steps=20, text_scale=3.0, image_scale=1.5, text_osci=True, image_osci=True, temporal_osci=False)


def load(config: ModelConfig) -> Networks:
    """Load the networks from the files that the config names."""
    text = load_text_encoders(config, device=CPU, dtype=torch.float32)
    folder = Path(config.folder)
    tensors = [read_tensors(folder / f, device=CPU, dtype=torch.float32) for f in (config.mmdit_file, config.vae_file)]
    return Networks(config, load_mmdit(asdict(config.mmdit), tensors[0]), vae.load_vae(config.vae, tensors[1]), text)


def encode(networks: Networks, pixels: Tensor) -> Tensor:
    """Encode pixels [V, 3, frames, H, W] to latents [V, C, t, h, w]: a seeded draw from the posterior."""
    moments = vae.encode_pixels(networks.vae, networks.config.vae, pixels)
    assert moments is not None, "all tiles are computed here"
    return vae.posterior_sample(networks.config.vae, moments, torch.Generator().manual_seed(POSTERIOR_SEED))


def decode(networks: Networks, latents: Tensor) -> Tensor:
    """Decode latents [V, C, T, h, w] to clips [V, 3, frames, H, W] in [-1, 1]."""
    parts = []
    for part in latents.split(8):
        pixels = vae.decode_latents(networks.vae, networks.config.vae, part)
        assert pixels is not None, "all tiles are computed here"
        parts.append(pixels.clamp(-1, 1))
    return torch.cat(parts)


@torch.no_grad()
def generate(
    networks: Networks,
    requests: Sequence[Request],
    guidance: Guidance = DEFAULTS,
    model: StepModel | None = None,
) -> Tensor:
    """Generate clips [V, 3, frames, H, W] in [-1, 1] as one batch; the requests share one condition type.

    `model` predicts a step's rows in place of the networks' transformer.
    """
    kind = requests[0].cond_type
    assert all(request.cond_type == kind for request in requests), "one condition type a batch"
    config, patch = networks.config, networks.config.mmdit.patch_size
    video = VideoConfig(None, height_px=clips.SIDE, width_px=clips.SIDE, num_frames=config.trained_frames)
    size = geometry_of(video, config)
    frames, height, width = size.latent_frames, size.latent_height, size.latent_width
    shape = (config.vae.latent_channels, frames, height, width)
    noise = draw_noise([r.seed for r in requests], shape, device=CPU, dtype=torch.float32)
    refs = [[encode(networks, image[None, :, None])[0] for image in r.images] for r in requests]
    conds = torch.stack([pack_condition(*condition(kind, ref, noise[0]), patch) for ref in refs])
    of_video = config.trained_frames > 1
    *texts, empty = networks.text.encode(
        [*(with_suffixes(r.prompt, 24, "4") if of_video else r.prompt for r in requests), ""]
    )
    negative = (empty.t5, empty.clip)
    branches = [
        ((text.t5, text.clip, cond), (*negative, cond), (*negative, torch.zeros_like(cond)))
        for text, cond in zip(texts, conds, strict=True)
    ]
    equal = [equal_inputs(each) for each in branches]
    ids = position_ids(frames, height // patch, width // patch, CPU)

    def predict(step: int, latents: Tensor, t: float, rows: Sequence[StepRow]) -> Tensor:
        count = len(rows)
        texts, vectors, given = (torch.stack([branches[v][row.branch][k] for v, row in rows]) for k in range(3))
        inputs = {
            "img": latents[[v for v, _ in rows]],
            "img_ids": ids.expand(count, -1, -1),
            "txt": texts,
            "txt_ids": torch.zeros(count, texts.shape[1], 3),
            "timesteps": torch.full((count,), t),
            "y_vec": vectors,
        } | ({"cond": given} if config.mmdit.cond_embed else {})
        out: Tensor = model(step, rows, inputs) if model else networks.mmdit(**inputs)
        return out.float()

    times = timesteps(guidance.num_steps, size.tokens_per_frame, frames, shift=True, flow_shift=FLOW_SHIFT)
    tokens = denoise(pack(noise, patch), times, batch_rows(guidance, frames, equal, prune=True), predict)
    latents = unpack(tokens, frames, height, width, patch)
    return decode(networks, torch.stack([restore_given(x, kind, ref) for x, ref in zip(latents, refs, strict=True)]))


def true_clip(combination: clips.Combination, seed: int) -> Tensor:
    """Draw a clip [3, 17, H, W] of the combination, as a source of reference images."""
    paths = clips.draw_paths([combination], torch.Generator().manual_seed(seed))
    return clips.render([combination], paths, range(clips.FRAMES))[0][0]
