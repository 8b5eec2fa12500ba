"""The config of the autoencoder, which turns videos into latents and back."""

from dataclasses import field
from enum import StrEnum
from typing import ClassVar

from opensora_launch.schema.settings import key, settings


class VaeKind(StrEnum):
    causal = "causal"  # Hunyuan's: 8 in space, 4 in time, of which the first frame is a latent of its own
    dc_ae = "dc_ae"  # the high-compression one: 32 in space (2 between two stages), 4 in time
    image = "image"  # Flux's: 8 in space, for one frame


@settings
class DcAeConfig:
    """The Video DC-AE's stages, from the pixels to the latents: channels, blocks of the encoder and of the decoder."""

    widths: list[int] = key([128, 256, 512, 512, 1024, 1024], "channels of each stage")
    encoder_depths: list[int] = key([2, 2, 2, 3, 3, 3], "blocks of each stage of the encoder")
    decoder_depths: list[int] = key([3, 3, 3, 3, 3, 3], "blocks of each stage of the decoder")

    def halves_time(self, stage: int) -> bool:
        """Whether the step between this stage and the next one halves time too: the last two do; all halve space."""
        return stage >= len(self.widths) - 3


@settings
class VaeConfig:
    """The autoencoder. A video that is smaller than a tile is not tiled."""

    stride_frames: ClassVar[int] = 4  # frames per latent, of every kind
    kind: VaeKind = key(
        VaeKind.causal,
        "causal: Hunyuan's; dc_ae: the high-compression one, whose stages `dc_ae` has; image: Flux's, for images",
    )
    dc_ae: DcAeConfig = field(default_factory=DcAeConfig)
    in_channels: int = key(3, "channels of the pixels that are encoded")
    out_channels: int = key(3, "channels of the pixels that are decoded")
    latent_channels: int = key(16, "channels of the latents")
    layers_per_block: int = key(2, "residual layers of a block; not dc_ae")
    norm_num_groups: int = key(32, "groups of the group norms; not dc_ae")
    block_out_channels: list[int] = key([128, 256, 512, 512], "channels of each block; not dc_ae")
    scale_factor: float = key(0.476986, "latents are multiplied by it")
    shift_factor: float = key(0.0, "subtracted from latents before that")
    tile_px: int | None = key(256, "side of a tile; null: no tiles in space; approximate with image")
    tile_frames: int | None = key(
        None, "tiles are cut in time too, for videos too long for a GPU; approximate with causal: Open-Sora can use 64"
    )
    tile_overlap: float = key(0.25, "share of a tile that overlaps the next one")

    @property
    def stride_px(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.dc_ae.widths) - 1) if self.kind is VaeKind.dc_ae else 8

    @property
    def is_causal(self) -> bool:
        """Whether the first frame has a latent of its own, so that videos have 4 n + 1 frames instead of 4 n."""
        return self.kind is not VaeKind.dc_ae
