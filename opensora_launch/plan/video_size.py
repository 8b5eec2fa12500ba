"""The size of a video, the VAE's tiles of it, and how many of their pixels the busiest rank decodes. Pure."""

import math
from dataclasses import dataclass
from functools import cache

from opensora_launch.plan.geometry import Geometry
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.tile_shares import EXCHANGE, deal_tiles, deal_whole
from opensora_launch.schema.tiles import Tile, decode_grid, tile_cost


@dataclass(frozen=True)
class VideoSize:
    """The video that the VAE decodes. `tile_px` None: in one piece; `tile_frames` None: all frames at once."""

    width_px: int
    height_px: int
    num_frames: int
    tile_px: int | None
    tile_frames: int | None = None
    lead: int = 1  # frames with a latent of their own: 1 with a causal VAE, 0 with the DC-AE
    cut: tuple[Tile, ...] = ()  # the tiles, if the autoencoder is one that this package has

    @property
    def length(self) -> str:
        return "an image" if self.num_frames == 1 else f"{self.num_frames} frames"

    @property
    def tiles(self) -> int:
        """Number of tiles in Open-Sora's grid, with a stride of 3/4 of a tile (autoencoder_kl_causal_3d.py)."""
        in_time = 1
        if self.tile_frames is not None and self.num_frames > self.tile_frames:
            in_time = math.ceil((self.num_frames - self.lead) / (self.tile_frames * 3 // 4))
        if self.tile_px is None or max(self.width_px, self.height_px) <= self.tile_px:
            return in_time
        stride = self.tile_px * 3 // 4
        return math.ceil(self.width_px / stride) * math.ceil(self.height_px / stride) * in_time

    @property
    def tile_pixels(self) -> int:
        """Pixels of the largest tile over all its frames. Tiles that are cut in time have `lead` frames more."""
        frames = min(self.num_frames, self.tile_frames + self.lead) if self.tile_frames else self.num_frames
        return self.tile_area * frames

    @property
    def tile_area(self) -> int:
        """Pixels of a frame of the largest tile."""
        most = self.tile_px or max(self.width_px, self.height_px)
        return min(self.width_px, most) * min(self.height_px, most)


def video_size(shape: Geometry, vae: VaeConfig) -> VideoSize:
    """Return what the autoencoder of a run decodes."""
    sides = (shape.width_px, shape.height_px)
    latents = (shape.latent_frames, shape.latent_height, shape.latent_width)
    cut = decode_grid(vae, latents).tiles
    return VideoSize(*sides, shape.num_frames, vae.tile_px, vae.tile_frames, int(vae.is_causal), cut)


@cache
def busiest_pixels(video: VideoSize, ranks: int, *, whole: bool = False) -> float:
    """Return the pixels of the busiest rank's tiles, which overlap; `whole`: if ranks shared none.

    Shared tiles count EXCHANGE more. Of a model whose tiles are not known, they are as large as the largest.
    """
    if not video.cut:
        return float(math.ceil(video.tiles / ranks) * video.tile_pixels)
    deal = (deal_whole if whole else deal_tiles)(video.cut, ranks)
    return max(deal.loads) + EXCHANGE * sum(tile_cost(video.cut[i]) for i in deal.shared) / ranks
