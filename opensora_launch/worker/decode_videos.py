"""Decode phase: from latents (C T H W) to frames (F Y X 3)."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from opensora_launch.media.video import room_for_frames, to_frames
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.tiles import TileGrid, tiles_of
from opensora_launch.model.vae import Region, decode_regions
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.worker.context import RankContext


def decode_video(
    ctx: RankContext, vae: CausalVae, video: VideoRequest, latent: Float[Tensor, "C T H W"]
) -> UInt8[np.ndarray, "F Y X 3"] | None:
    """Return the frames on the group's first rank, None on the others. The device holds one tile's output at a time."""
    with ctx.recorder.span("vae", video=video.name):
        grid, regions = decode_latent(ctx, vae, latent)
        if regions is None:
            return None
        frames = room_for_frames(*grid.out_shape)
        for region in regions:
            frames[region.frames, region.y, region.x] = to_frames(region.values[0])
    return frames[: ctx.plan.geometry.num_frames]


def decode_latent(
    ctx: RankContext, vae: CausalVae, latent: Float[Tensor, "C T H W"]
) -> tuple[TileGrid, Iterator[Region] | None]:
    """Yield regions of the video's pixels as they are finished, on the group's first rank; None on the others."""
    cfg = ctx.plan.model.vae
    return decode_regions(vae, cfg, latent[None], tiles_of(cfg), spread_tiles(ctx.mesh.video))
