"""The demo's three autoencoders, as training sees them: clips [B, 3, T, H, W] to latents [B, C, t, h, w] and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file
from torch import Tensor, nn

from demo import clips
from opensora_launch.model.image_vae import ImageVae
from opensora_launch.model.video_dc_ae import Conv, VideoDcAe
from opensora_launch.schema.autoencoder import DcAeConfig, VaeConfig, VaeKind

CAUSAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "block_out_channels": [16, 16, 32, 48],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
DC_AE: dict[str, Any] = {
    "kind": "dc_ae",
    "latent_channels": 32,
    "dc_ae": {
        "widths": [16, 32, 64, 64, 128],
        "encoder_depths": [1, 1, 1, 1, 1],
        "decoder_depths": [1, 1, 1, 1, 1],
    },
}
IMAGE: dict[str, Any] = {**CAUSAL, "kind": "image"}
SMALL = 0.2  # first weight of the DC-AE's norms; with 1, its latents grow without end
LOG_VARIANCE = -3.0  # of the DC-AE's latents in training: it has no posterior of its own
SHIPPED = Path(__file__).resolve().parents[2] / "opensora_launch" / "demo" / "ckpts" / "hunyuan_vae.safetensors"


def vae_config(config: Mapping[str, Any]) -> VaeConfig:
    """Return the package's config of an autoencoder."""
    kind, stages = VaeKind(config.get("kind", "causal")), DcAeConfig(**config.get("dc_ae", {}))
    return VaeConfig(**{**config, "kind": kind, "dc_ae": stages})


class Coder(ABC):
    """An autoencoder in bf16 whose clips have `frames` frames."""

    network: Any  # nn.Module
    frames: int

    @abstractmethod
    def posterior(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents, in fp32."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Return the clip, in fp32."""

    @property
    def decoder(self) -> list[nn.Module]:
        """Return the parts that decode."""
        return [self.network.decoder]

    def mean(self, clip: Tensor) -> Tensor:
        """Return the latents without a draw."""
        return self.posterior(clip)[0]

    def draw(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents as generation has them."""
        mean, log_variance = self.posterior(clip)
        return mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)


class Causal(Coder):
    """A narrow version of Hunyuan's VAE, with new seeded weights, without temporal tiling, with narrow posteriors."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        vae = AutoencoderKLHunyuanVideo(**CAUSAL)
        vae.use_framewise_encoding = vae.use_framewise_decoding = False
        channels = CAUSAL["latent_channels"]
        with torch.no_grad():
            vae.quant_conv.weight[channels:] *= 0.1
            vae.quant_conv.bias[channels:] = -4.0
        self.network, self.frames = vae.bfloat16(), clips.FRAMES

    def posterior(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.network.encode(clip.bfloat16()).latent_dist
        return latents.mean.float(), latents.logvar.float()

    def decode(self, latent: Tensor) -> Tensor:
        out: Tensor = self.network.decode(latent.bfloat16()).sample
        return out.float()

    @property
    def decoder(self) -> list[nn.Module]:
        return [self.network.decoder, self.network.post_quant_conv]


class DcAe(Coder):
    """A narrow version of the Video DC-AE: 4 x 16 x 16."""

    def __init__(self) -> None:
        torch.manual_seed(17)
        self.network = VideoDcAe(vae_config(DC_AE)).bfloat16()
        self.frames = clips.FRAMES - 1
        for module in self.network.modules():
            if isinstance(module, Conv) and module.norm is not None:  # of what is added to a residual stream
                nn.init.constant_(module.norm.weight, SMALL)

    def posterior(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.network.encode(clip.bfloat16()).float()
        return mean, torch.full_like(mean, LOG_VARIANCE)

    def decode(self, latent: Tensor) -> Tensor:
        out: Tensor = self.network.decode(latent.bfloat16())
        return out.float()

    def draw(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        return self.mean(clip)

    @cached_property
    def teacher(self) -> Causal:
        """Return the shipped VAE, whose latents the encoder learns to make."""
        vae = Causal()
        vae.network.load_state_dict(load_file(SHIPPED))
        return vae


class Image(Coder):
    """A narrow version of Flux's autoencoder, for clips of one frame. It starts as the shipped VAE of one frame."""

    def __init__(self) -> None:
        vae = ImageVae(vae_config(IMAGE))
        vae.layers.load_state_dict(of_one_frame(load_file(SHIPPED)))
        self.network, self.frames = vae.bfloat16(), 1

    def posterior(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.network.encode(clip.bfloat16()).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        out: Tensor = self.network.decode(latent.bfloat16())
        return out.float()

    @property
    def decoder(self) -> list[nn.Module]:
        return [self.network.layers.decoder]


def of_one_frame(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a causal VAE's weights for one frame as those of a network of images.

    Before its first frame, a clip repeats it, so the taps in time add up. Flux's downsampling starts one pixel further
    right and lower: its kernels move, and lose a row and a column. Borders differ too, so training has to continue.
    """
    wide = {name.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias"): x for name, x in tensors.items()}
    flat = {name: x.float().sum(2) if x.ndim == 5 else x.float() for name, x in wide.items()}
    after, after_bias = flat.pop("quant_conv.weight")[..., 0, 0], flat.pop("quant_conv.bias")
    before, before_bias = flat.pop("post_quant_conv.weight")[..., 0, 0], flat.pop("post_quant_conv.bias")
    last, first = flat["encoder.conv_out.weight"], flat["decoder.conv_in.weight"]
    flat["encoder.conv_out.weight"] = torch.einsum("po,oihw->pihw", after, last)
    flat["encoder.conv_out.bias"] = after @ flat["encoder.conv_out.bias"] + after_bias
    flat["decoder.conv_in.weight"] = torch.einsum("oihw,ip->ophw", first, before)
    flat["decoder.conv_in.bias"] = flat["decoder.conv_in.bias"] + first.sum((2, 3)) @ before_bias
    for name in (n for n in flat if "downsamplers" in n and n.endswith("weight")):
        flat[name] = nn.functional.pad(flat[name][:, :, 1:, 1:], (0, 1, 0, 1))
    return flat
