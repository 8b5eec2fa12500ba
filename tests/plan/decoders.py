"""Print parameters, FLOPs and live numbers of our decoders and of those in diffusers, on the meta device, as JSON.

It runs in a separate process, because shape checks keep tensors alive. Keys are the names in plan/vaes.py.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderKLMochi, AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.image_vae import ImageVae
from opensora_launch.model.video_dc_ae import VideoDcAe
from opensora_launch.plan.networks import FLUX, OPEN_SORA_2_DC_AE
from opensora_launch.schema.autoencoder import VaeConfig
from tests.plan.peaks import LiveBytes

SIDE, FRAMES = 256, 49
IMAGE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
}  # fmt: skip
COG: dict[str, Any] = {
    "block_out_channels": (128, 256, 256, 512), "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4, "latent_channels": 16, "layers_per_block": 3,
}  # fmt: skip
WAN22: dict[str, Any] = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16,
    "temperal_downsample": [False, True, True],
}  # fmt: skip
LATENTS = (FRAMES - 1) // 4 + 1
CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "sd": (lambda: AutoencoderKL(**IMAGE), (1, 4, SIDE // 8, SIDE // 8)),
    "flux": (lambda: ImageVae(FLUX.vae), (1, 16, 1, SIDE // 8, SIDE // 8)),
    "wan": (AutoencoderKLWan, (1, 16, LATENTS, SIDE // 8, SIDE // 8)),
    "wan2.2": (lambda: AutoencoderKLWan(**WAN22), (1, 48, LATENTS, SIDE // 16, SIDE // 16)),
    "cogvideox": (lambda: AutoencoderKLCogVideoX(**COG), (1, 16, LATENTS, SIDE // 8, SIDE // 8)),
    "hunyuan": (lambda: CausalVae(VaeConfig()), (1, 16, 33, SIDE // 8, SIDE // 8)),  # a tile of our decoder
    "dcae": (lambda: VideoDcAe(OPEN_SORA_2_DC_AE.vae), (1, 128, 8, SIDE // 32, SIDE // 32)),  # a tile
    "mochi": (AutoencoderKLMochi, (1, 12, (FRAMES - 1) // 6 + 1, SIDE // 8, SIDE // 8)),
}


def measured(name: str) -> dict[str, float]:
    make, shape = CASES[name]
    with torch.device("meta"):
        vae, latent = make().bfloat16().eval(), torch.empty(shape, dtype=torch.bfloat16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, LiveBytes() as live:
        decoded = vae.decode(latent)
    pixels = decoded if isinstance(decoded, torch.Tensor) else decoded.sample
    frames = pixels.shape[2] if pixels.dim() == 5 else 1
    return {
        "parameters": sum(p.numel() for p in vae.parameters()),
        "flops": counter.get_total_flops() / (SIDE * SIDE * frames),
        "live": live.peak / 2 / (SIDE * SIDE),
        "frames": frames,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: measured(name) for name in CASES}))
