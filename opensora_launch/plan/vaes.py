"""Costs of the public models' video decoders, under the names that `networks` uses.

If diffusers has the module, a test compares parameters, FLOPs and live numbers with it, with its default number of
frames decoded together.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vae:
    """Costs of a decoder. `live` numbers, of the size of an element, exist at the memory peak per pixel of a tile."""

    parameters: float  # including the encoder, which is loaded too
    flops: float  # to decode one pixel of one frame
    live: float = 0.0  # independent of the number of frames
    live_per_frame: float = 0.0  # in addition, for each frame that is decoded together with others
    frames: int | None = None  # decoded together; None: all
    tile_px: int | None = None  # side of the tiles in the model's own demo; None: in one piece
    # FLOP rate relative to Hunyuan's decoder: narrow layers at full size wait for memory, wide layers at half the size
    # do not. Set together with the fit of docs/prediction.md.
    reach: float = 1.0

    @property
    def equal_flops(self) -> float:
        """The FLOPs per pixel and frame that take Hunyuan's decoder the same time."""
        return self.flops / self.reach

    def live_bytes(self, pixels: int, num_frames: int, element_bytes: int) -> float:
        """Return the bytes at the peak for a picture or tile of `pixels`, including finished frames."""
        together = min(num_frames, self.frames or num_frames)
        return pixels * element_bytes * (self.live + self.live_per_frame * together + 3.0 * num_frames)


VAES = {
    "hunyuan": Vae(246_478_803, 17.2e6, tile_px=256),  # 145 TFLOP per tile of 129 frames; bytes: memory.tile_bytes
    "sd": Vae(83_653_863, 9.5e6, live_per_frame=768, frames=14),  # frames per batch in Latte's pipeline
    "flux": Vae(83_819_683, 9.5e6, live_per_frame=768),
    "wan": Vae(
        126_892_531, 8.5e6, live=5060, reach=0.85
    ),  # four frames at a time, and what each layer keeps of earlier ones
    "wan2.2": Vae(704_688_668, 18.5e6, live=5390, reach=3.0),
    "cogvideox": Vae(215_583_907, 18.6e6, live=22_800, tile_px=256),  # eight frames at a time
    "mochi": Vae(459_748_611, 17.4e6, live_per_frame=710, tile_px=256),
    # Counted from the layers in hpcaitech/Open-Sora. v1.2: a temporal decoder, then SD's, four frames at a time.
    # DC-AE f32t4c128: tiles of 32 frames that overlap by a quarter, with five live tensors of 128 channels.
    "open_sora_1_2": Vae(393.3e6, 11.4e6, live_per_frame=768, frames=4),
    "dcae": Vae(459e6, 28.8e6, live_per_frame=640, frames=32, tile_px=256),
    "step": Vae(246_478_803, 22e6, live=19_700),  # assumed: Hunyuan's decoder as diffusers runs it
}
