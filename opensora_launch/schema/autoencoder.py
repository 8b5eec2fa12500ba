"""The config of the autoencoder, which turns videos into latents and back."""

from dataclasses import field
from enum import StrEnum

from opensora_launch.schema.settings import settings


class VaeKind(StrEnum):
    causal = "causal"  # Hunyuan's: 8 in space, 4 in time, of which the first frame is a latent of its own
    dc_ae = "dc_ae"  # the high-compression one: 32 in space, 4 in time


@settings
class DcAeConfig:
    """The Video DC-AE's stages, from the pixels to the latents: channels, blocks of the encoder and of the decoder."""

    widths: list[int] = field(default_factory=lambda: [128, 256, 512, 512, 1024, 1024])
    encoder_depths: list[int] = field(default_factory=lambda: [2, 2, 2, 3, 3, 3])
    decoder_depths: list[int] = field(default_factory=lambda: [3, 3, 3, 3, 3, 3])


@settings
class VaeConfig:
    """The autoencoder. A video that is smaller than a tile is not tiled."""

    kind: VaeKind = VaeKind.causal
    dc_ae: DcAeConfig = field(default_factory=DcAeConfig)  # if kind is dc_ae; the three keys of blocks are of causal
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    layers_per_block: int = 2
    norm_num_groups: int = 32
    block_out_channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
    scale_factor: float = 0.476986
    shift_factor: float = 0.0
    tile_px: int | None = 256
    # Tiles are cut in time too. Approximate with causal, for videos that are too long for a GPU: Open-Sora can use 64.
    tile_frames: int | None = None
    tile_overlap: float = 0.25

    @property
    def stride_px(self) -> int:
        """Pixels per latent."""
        return 32 if self.kind is VaeKind.dc_ae else 8

    @property
    def stride_frames(self) -> int:
        """Frames per latent."""
        return 4

    @property
    def is_causal(self) -> bool:
        """Whether the first frame has a latent of its own, so that videos have 4 n + 1 frames instead of 4 n."""
        return self.kind is VaeKind.causal
