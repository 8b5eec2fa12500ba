"""Reference phase: turn the reference images and videos of a video into latents (C T H W)."""

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.media.references import load_references
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.tiles import tiles_of
from opensora_launch.model.vae import encode_pixels, posterior_sample
from opensora_launch.parallel.collectives import broadcast
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.worker.context import RankContext

REF_SEED_OFFSET = 1 << 32  # keeps the posterior draw of a reference apart from the noise of the video


def encode_references(ctx: RankContext, vae: CausalVae, video: VideoRequest) -> list[Float[Tensor, "C T H W"]]:
    """Return the latents of a video's references, drawn with the video's seed, on every rank of the group.

    The list is empty if the video has no condition, or is a single image.
    """
    if video.cond_type == "t2v" or ctx.plan.geometry.latent_frames == 1:
        return []
    shape, cfg, axis = ctx.plan.geometry, ctx.plan.model.vae, ctx.mesh.video
    with ctx.recorder.span("vae", video=video.name):
        latents = []
        for k, pixels in enumerate(load_references(video.refs, video.cond_type, shape.height_px, shape.width_px)):
            moments = encode_pixels(vae, pixels, tiles_of(cfg), spread_tiles(axis))
            sample = None
            if moments is not None:
                generator = torch.Generator().manual_seed((video.seed + (k + 1) * REF_SEED_OFFSET) % 2**63)
                sample = posterior_sample(cfg, moments.float(), generator)[0]
            latents.append(broadcast(axis, sample, ctx.device))
    return latents
