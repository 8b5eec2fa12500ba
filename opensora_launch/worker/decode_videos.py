"""Decode phase: from latents (C T H W) to frames (F Y X 3)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from opensora_launch.media.video import room_for_frames, to_frames
from opensora_launch.model.vae import Autoencoder, Region, decode_regions
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.schema.config import Init
from opensora_launch.schema.tiles import TileGrid
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.failures import VideoFailed

Ready = Callable[[UInt8[np.ndarray, "F Y X 3"], int], None]  # all frames, and how many of them are there


def decode_video(
    ctx: RankContext, vae: Autoencoder, video: VideoRequest, latent: Float[Tensor, "C T H W"] | None, ready: Ready
) -> UInt8[np.ndarray, "F Y X 3"] | None:
    """Return the frames on the group's first rank, None on the others. The device holds one tile's output at a time.

    `ready` is called where tiles end in time, except for the last ones: until then, not all is known to be finite.
    Raises VideoFailed on all ranks if there are no latents (denoise_videos), and on the first rank if pixels are not
    finite: NaN would become black. By then the rank has taken the tiles of all others, so none of them waits.
    """
    if latent is None:
        other = "" if ctx.plan.precision == "fp32" else ", or start a new run with precision=fp32"
        raise VideoFailed(f"its latents are not finite: the transformer in {ctx.plan.precision}; check its file{other}")
    finite = torch.ones((), dtype=torch.bool, device=ctx.device)  # read once, at the end: each read waits for the GPU
    with ctx.recorder.span("vae", video=video.name):
        grid, regions = decode_latent(ctx, vae, latent)
        if regions is None:
            return None
        frames, count = room_for_frames(*grid.out_shape), ctx.plan.geometry.num_frames
        for region in regions:
            finite &= torch.isfinite(region.values).all()
            frames[region.frames, region.y, region.x] = to_frames(region.values[0])
            if (region.y.stop, region.x.stop) == grid.out_shape[1:] and region.frames.stop < count:
                ready(frames[:count], region.frames.stop)
    if not finite:
        raise VideoFailed(f"its decoded pixels are not finite{vae_hint(ctx.plan)}")
    return frames[:count]


def vae_hint(plan: Plan) -> str:
    """Return which VAE made numbers that are not finite, in which precision, and what to do."""
    name = plan.model.vae_file if plan.model.init is Init.checkpoint else "of random weights"
    other = "" if plan.precision == "fp32" else ", or start a new run with precision=fp32"
    return f": the VAE {name} in {plan.precision}; check the file{other}"


def decode_latent(
    ctx: RankContext, vae: Autoencoder, latent: Float[Tensor, "C T H W"]
) -> tuple[TileGrid, Iterator[Region] | None]:
    """Yield regions of the video's pixels as they are finished, on the group's first rank; None on the others."""
    return decode_regions(vae, ctx.plan.model.vae, latent[None], spread_tiles(ctx.mesh.video), ctx.parts.norms)
