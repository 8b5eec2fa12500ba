"""Decoders of the public models as counts: what making pixels from latents takes, by the names in `networks`.

Where diffusers has the module, a test holds parameters, FLOPs and live numbers to it, decoding frames together as it
comes.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vae:
    """A number is as large as an element; `live` ones are alive at the peak, for each pixel of the picture or tile."""

    parameters: float  # with the encoder's, which are loaded too
    flops: float  # to decode a pixel of a frame
    live: float = 0.0  # however many frames there are
    live_a_frame: float = 0.0  # more for each frame that is decoded together with others
    frames: int | None = None  # decoded together; None: all
    tile_px: int | None = None  # side of the tiles that the model's own demo cuts; None: in one piece
    # FLOPs a second over those that Hunyuan's decoder reaches: narrow layers at full size wait for memory, wide ones at
    # half of it do not. Set with the fit of docs/prediction.md.
    reach: float = 1.0

    @property
    def equal_flops(self) -> float:
        """Those of Hunyuan's decoder that take as long, for a pixel of a frame."""
        return self.flops / self.reach

    def live_bytes(self, pixels: int, num_frames: int, element_bytes: int) -> float:
        """At the peak, of a picture or tile of `pixels`, with the frames that are done."""
        together = min(num_frames, self.frames or num_frames)
        return pixels * element_bytes * (self.live + self.live_a_frame * together + 3.0 * num_frames)


VAES = {
    "hunyuan": Vae(246_478_803, 17.2e6, tile_px=256),  # 145 TFLOP a tile of 129 frames; its bytes: memory.tile_bytes
    "sd": Vae(83_653_863, 9.5e6, live_a_frame=768, frames=14),  # as many in a batch as Latte's pipeline takes
    "flux": Vae(83_819_683, 9.5e6, live_a_frame=768),
    "wan": Vae(
        126_892_531, 8.5e6, live=5060, reach=0.85
    ),  # four frames at a time, and what each layer keeps of those before
    "wan2.2": Vae(704_688_668, 18.5e6, live=5390, reach=3.0),
    "cogvideox": Vae(215_583_907, 18.6e6, live=22_800, tile_px=256),  # eight frames at a time
    "mochi": Vae(459_748_611, 17.4e6, live_a_frame=710, tile_px=256),
    # Counted from the layers in hpcaitech/Open-Sora: SD's decoder, four frames at a time, behind a temporal one (v1.2);
    # DC-AE f32t4c128, in tiles of 32 frames that overlap by a quarter, five tensors of 128 channels alive
    "open_sora_1_2": Vae(393.3e6, 11.4e6, live_a_frame=768, frames=4),
    "dcae": Vae(459e6, 28.8e6, live_a_frame=640, frames=32, tile_px=256),
    "step": Vae(246_478_803, 22e6, live=19_700),  # its layers were not looked up: Hunyuan's as diffusers decodes it
}
