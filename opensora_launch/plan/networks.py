"""Diffusion transformers described by the sizes from which FLOPs, bytes and traffic of a video or image follow.

Transformers that can be run come from their config (`network_of`). The others can be estimated only; their numbers come
from the published config files or papers named below.
"""

from dataclasses import dataclass, replace

from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.config import MmditConfig, ModelConfig
from opensora_launch.schema.model_constants import TIME_CHANNELS


@dataclass(frozen=True)
class Network:
    """A stack of transformer blocks over the tokens of a video.

    `joint` blocks attend over text and video tokens together. `cross` blocks attend over the video and read the text
    by cross-attention (not if `text_tokens` is 0). `spatial` and `temporal` blocks are cross blocks whose attention is
    limited to one latent frame, or to one position over time.
    """

    name: str
    hidden: int
    heads: int
    head_dim: int
    feed_forward: int  # inner width
    joint_blocks: int = 0
    cross_blocks: int = 0
    spatial_blocks: int = 0
    temporal_blocks: int = 0
    feed_forward_matrices: int = 2  # 3 if it is gated
    mixes_text: bool = True  # spatial and temporal blocks also read the text
    two_streams: int = 0  # joint blocks with separate weights for the text
    text_tokens: int = 0
    stride_frames: int = 4  # pixel frames per latent frame; if `causal`, after the first frame
    stride_px: int = 16  # side of a token in pixels: VAE stride times patch size
    causal: bool = True
    rows: int = 2  # guidance rows per step
    steps: int = 50
    parameters: float | None = None  # as published, if the blocks alone are not all
    vae: str = ""  # a name in plan/vaes.py
    text_gib: float = 0.0  # size of the text encoders in bf16
    tokens_in: int = 64  # channels of a token, at input and output
    text_width: int = 4096  # channels of the text states
    fp8_share: float = 0.0  # of the products of all blocks, computed in fp8
    networks: int = 1  # of this size, used one after the other; all are kept

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def matrices(self) -> int:
        """Numbers in the matrices of a block with one stream: 4 H A for attention, m H F for the feed-forward."""
        return 4 * self.hidden * self.attention_width + self.feed_forward_matrices * self.hidden * self.feed_forward

    @property
    def blocks(self) -> int:
        return self.joint_blocks + self.cross_blocks + self.spatial_blocks + self.temporal_blocks


@dataclass(frozen=True)
class TokenGrid:
    """The tokens of one row of a forward."""

    latent_frames: int
    tokens_per_frame: int
    text_tokens: int

    @property
    def video_tokens(self) -> int:
        return self.latent_frames * self.tokens_per_frame

    @property
    def total_tokens(self) -> int:
        return self.text_tokens + self.video_tokens


def token_grid(net: Network, width_px: int, height_px: int, num_frames: int) -> TokenGrid:
    """Return the tokens of a video. Sides are rounded down to whole tokens, as the models do."""
    latent = (num_frames - 1) // net.stride_frames + 1 if net.causal else max(1, num_frames // net.stride_frames)
    return TokenGrid(latent, (height_px // net.stride_px) * (width_px // net.stride_px), net.text_tokens)


def network_of(model: ModelConfig, *, fp8_products: bool = False) -> Network:
    """Describe the transformer of one of the models that can be run, with the strides of its autoencoder."""
    cfg, vae = model.mmdit, model.vae
    blocks = cfg.depth + cfg.depth_single_blocks
    return Network(
        name=model.name,
        hidden=cfg.hidden_size,
        heads=cfg.num_heads,
        head_dim=cfg.hidden_size // cfg.num_heads,
        feed_forward=int(cfg.hidden_size * cfg.mlp_ratio),
        joint_blocks=blocks,
        two_streams=cfg.depth,
        text_tokens=model.text.t5_max_length,
        stride_px=vae.stride_px * cfg.patch_size,
        causal=vae.is_causal,
        rows=1 if cfg.guidance_embed else 3,
        vae={VaeKind.causal: "hunyuan", VaeKind.dc_ae: "dcae", VaeKind.image: "flux"}[vae.kind],
        text_gib=9.1,
        parameters=float(mmdit_parameters(cfg)),
        tokens_in=cfg.in_channels,
        text_width=cfg.context_in_dim,
        fp8_share=max(0, blocks - 2) / blocks if fp8_products else 0.0,
    )


def mmdit_parameters(cfg: MmditConfig) -> int:
    """Count the parameters of Open-Sora's transformer: 11,891,390,528 with the released config. Tests compare it with
    the modules.
    """
    width, wide, head = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio), cfg.hidden_size // cfg.num_heads

    def linear(inputs: int, outputs: int, bias: bool = True) -> int:
        return inputs * outputs + bias * outputs

    mlp = linear(width, wide) + linear(wide, width)
    stream = linear(width, 6 * width) + linear(width, width) + mlp + 2 * head
    double = 2 * (stream + (linear(width, 3 * width, cfg.qkv_bias)))
    single = linear(width, 3 * width + wide) + linear(width + wide, width) + linear(width, 3 * width) + 2 * head
    embedders = [TIME_CHANNELS, cfg.vec_in_dim, *([TIME_CHANNELS] if cfg.guidance_embed else [])]
    ends = sum(linear(inputs, width) + linear(width, width) for inputs in embedders)
    ends += linear(cfg.in_channels, width) + linear(cfg.context_in_dim, width)
    ends += linear(cfg.in_channels + cfg.patch_size**2, width) if cfg.cond_embed else 0
    ends += linear(width, cfg.in_channels) + linear(width, 2 * width)
    return cfg.depth * double + cfg.depth_single_blocks * single + ends


OPEN_SORA_2 = network_of(ModelConfig())
# 4 x 32 x 32 autoencoder with 128 channels, patch 1 (docs/hcae.md of Open-Sora; configs/model/open_sora_v2_dc_ae.yaml)
OPEN_SORA_2_DC_AE = ModelConfig(
    name="open_sora_v2_dc_ae",
    mmdit=MmditConfig(in_channels=128, patch_size=1),
    vae=VaeConfig(VaeKind.dc_ae, latent_channels=128, scale_factor=1.0, tile_frames=32),
)
# configs/model/flux.yaml
FLUX = ModelConfig(
    name="flux1_dev",
    mmdit=MmditConfig(guidance_embed=True, cond_embed=False, fused_qkv=True, use_liger_rope=False),
    vae=VaeConfig(VaeKind.image, scale_factor=0.3611, shift_factor=0.1159, tile_px=None),
)
_HUNYUAN = replace(
    OPEN_SORA_2, parameters=12.8e9, joint_blocks=60, two_streams=20, text_tokens=256, rows=1, text_gib=14.9
)
_WAN = Network(
    "wan2.1_14b", 5120, 40, 128, 13824, cross_blocks=40, text_tokens=512, parameters=14.3e9, vae="wan", text_gib=10.6
)
_COG = Network(
    "cogvideox_5b", 3072, 48, 64, 12288, joint_blocks=42, text_tokens=226, parameters=5.57e9, vae="cogvideox",
    text_gib=8.87,
)  # fmt: skip
_FLUX = replace(network_of(FLUX), steps=28)
_DIT = Network("dit_xl_2", 1152, 16, 72, 4608, cross_blocks=28, rows=2, steps=250, parameters=675e6, vae="sd")

# Sources: configs of hpcaitech/Open-Sora (2.0; branch opensora/v1.2), Tencent-Hunyuan/HunyuanVideo, Wan-Video/Wan2.1
# and Wan2.2, THUDM/CogVideoX, genmoai/mochi, stepfun-ai/Step-Video-T2V, black-forest-labs/flux, Vchitect/Latte,
# Qwen/Qwen-Image, Tongyi-MAI/Z-Image; DiT: Peebles and Xie 2023, table 1. `sora_guess` is the Factorial Funds
# estimate of 2024: 20e9 parameters, 8 x 8 pixels and 8 frames per token as in DiT's VAE, 24 frames per second.
NETWORKS: dict[str, Network] = {
    net.name: net
    for net in (
        OPEN_SORA_2,
        network_of(OPEN_SORA_2_DC_AE),
        # factorised attention, 300 text tokens
        Network(
            "open_sora_v1_2", 1152, 16, 72, 4608, spatial_blocks=28, temporal_blocks=28, text_tokens=300, steps=30,
            parameters=1.12e9, vae="open_sora_1_2", text_gib=8.87,
        ),
        replace(_HUNYUAN, name="hunyuan_video"),
        _WAN,
        replace(
            _WAN, name="wan2.1_1.3b", hidden=1536, heads=12, feed_forward=8960, cross_blocks=30, parameters=1.42e9
        ),
        replace(_WAN, name="wan2.2_a14b", steps=40, networks=2),
        replace(
            _WAN, name="wan2.2_ti2v_5b", hidden=3072, heads=24, feed_forward=14336, cross_blocks=30, stride_px=32,
            parameters=5.0e9, vae="wan2.2",
        ),
        _COG,
        replace(
            _COG, name="cogvideox_2b", hidden=1920, heads=30, feed_forward=7680, joint_blocks=30, parameters=1.69e9
        ),
        # the text stream is 1536 wide, but counted as wide as the video's: 0.3% of the FLOPs
        Network(
            "mochi_1", 3072, 24, 128, 8192, joint_blocks=48, feed_forward_matrices=3, text_tokens=256,
            stride_frames=6, steps=64, parameters=10.0e9, vae="mochi", text_gib=8.87,
        ),
        Network(
            "step_video", 6144, 48, 128, 24576, cross_blocks=48, text_tokens=320, stride_frames=8, stride_px=16,
            causal=False, parameters=30.0e9, vae="step", text_gib=17.0,
        ),
        _FLUX,
        replace(
            _FLUX, name="flux2_dev", hidden=6144, heads=48, feed_forward=18432, feed_forward_matrices=3,
            joint_blocks=56, two_streams=8, parameters=32.0e9, steps=50, text_gib=45.0,
        ),
        Network(
            "qwen_image", 3072, 24, 128, 12288, joint_blocks=60, two_streams=60, text_tokens=128, parameters=20.4e9,
            vae="wan", text_gib=15.4,
        ),
        Network(
            "z_image", 3840, 30, 128, 10240, joint_blocks=32, feed_forward_matrices=3, text_tokens=128, rows=1,
            steps=9, parameters=6.15e9, vae="flux", text_gib=7.5,
        ),
        Network(
            "latte_1", 1152, 16, 72, 4608, spatial_blocks=28, temporal_blocks=28, text_tokens=120, stride_frames=1,
            mixes_text=False, parameters=1.06e9, vae="sd", text_gib=8.87,
        ),
        _DIT,
        replace(
            _DIT, name="sora_guess", hidden=6144, heads=48, head_dim=128, feed_forward=24576, cross_blocks=44,
            stride_frames=8, parameters=20e9,
        ),
    )
}  # fmt: skip


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
        return self.work_bytes(pixels, num_frames, element_bytes) + 3.0 * num_frames * pixels * element_bytes

    def work_bytes(self, pixels: int, num_frames: int, element_bytes: int) -> float:
        """Return these bytes without the finished frames."""
        together = min(num_frames, self.frames or num_frames)
        return pixels * element_bytes * (self.live + self.live_per_frame * together)


VAES = {
    "hunyuan": Vae(246_478_803, 17.2e6, tile_px=256),  # 145 TFLOP per tile of 129 frames; bytes: memory.tile_bytes
    "sd": Vae(83_653_863, 9.5e6, live_per_frame=768, frames=14),  # frames per batch in Latte's pipeline
    "flux": Vae(83_819_683, 9.5e6, live_per_frame=768),
    # four frames at a time, and what each layer keeps of earlier ones
    "wan": Vae(126_892_531, 8.5e6, live=5060, reach=0.85),
    "wan2.2": Vae(704_688_668, 18.5e6, live=5390, reach=3.0),
    "cogvideox": Vae(215_583_907, 18.6e6, live=22_800, tile_px=256),  # eight frames at a time
    "mochi": Vae(459_748_611, 17.4e6, live_per_frame=710, tile_px=256),
    # Counted from the layers in hpcaitech/Open-Sora: a temporal decoder, then SD's, four frames at a time.
    "open_sora_1_2": Vae(393.3e6, 11.4e6, live_per_frame=768, frames=4),
    "dcae": Vae(459_462_147, 21.6e6, live_per_frame=605, frames=32, tile_px=256),  # our decoder, a tile of 32 frames
    "step": Vae(246_478_803, 22e6, live=19_700),  # assumed: Hunyuan's decoder as diffusers runs it
}
