"""Reference phase: turn the reference images and videos of a video into latents (C T H W)."""

import socket

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opensora_launch.errors import UserError
from opensora_launch.media.references import load_references
from opensora_launch.model.vae import Autoencoder, encode_pixels, posterior_sample
from opensora_launch.parallel.collectives import broadcast
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.runs.finished_videos import failed_videos, sample_file
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.decode_videos import vae_hint
from opensora_launch.worker.failures import VideoFailed

REF_SEED_OFFSET = 1 << 32  # keeps the posterior draw of a reference apart from the noise of the video


def encode_references(ctx: RankContext, vae: Autoencoder, video: VideoRequest) -> list[Float[Tensor, "C T H W"]]:
    """Return the latents of a video's references, drawn with its seed if they are random, on every rank of the group.

    The list is empty if the video has no condition, or is a single image. Raises VideoFailed on all ranks of the group
    if any of them cannot read a file, or if latents are not finite.
    """
    if video.cond_type == "t2v" or ctx.plan.geometry.latent_frames == 1:
        return []
    cfg, axis = ctx.plan.model.vae, ctx.mesh.video
    with ctx.recorder.span("vae", video=video.name):
        latents = []
        for k, pixels in enumerate(_load_on_all(ctx, video)):
            moments = encode_pixels(vae, cfg, pixels, spread_tiles(axis))
            sample = None
            if moments is not None:
                generator = torch.Generator().manual_seed((video.seed + (k + 1) * REF_SEED_OFFSET) % 2**63)
                sample = posterior_sample(cfg, moments.float(), generator)[0]
            latents.append(broadcast(axis, sample, ctx.device))
    if not all(torch.isfinite(latent).all() for latent in latents):
        raise VideoFailed(f"the latents of its references are not finite{vae_hint(ctx.plan)}")
    return latents


def _load_on_all(ctx: RankContext, video: VideoRequest) -> tuple[Float[Tensor, "1 3 T Y X"], ...]:
    """Return the pixels of a video's references. Raises VideoFailed on all ranks of the group if one cannot read them.

    They were read before the start, perhaps on another host. The one that the image stage made was not.
    """
    shape, axis, problem = ctx.plan.geometry, ctx.mesh.video, ""
    try:
        refs, rescaled = video.refs, None
        if video.image:
            refs, rescaled = (_made_image(ctx, video),), ctx.plan.first_frame_px
        loaded = load_references(refs, video.cond_type, shape.height_px, shape.width_px, rescaled)
    except UserError as error:
        problem = f"{error} (on {socket.gethostname()})"
    problems = [problem] * axis.size
    if axis.size > 1:
        with axis.exchange(0):
            dist.all_gather_object(problems, problem, group=axis.group)
    if found := next(filter(None, problems), ""):
        raise VideoFailed(found)
    return loaded


def _made_image(ctx: RankContext, video: VideoRequest) -> str:
    """Return the path of a video's first frame. Raises UserError if the image stage has not made it."""
    images = ctx.run_dir.images
    if path := sample_file(images, video.name):
        return str(path)
    why = failed_videos(images).get(video.name, f"there is no {images.record(video.name)}")
    raise UserError(f"its first frame could not be made: {why}")
