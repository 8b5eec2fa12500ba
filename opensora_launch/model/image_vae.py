"""Flux's image autoencoder: the layers are those of diffusers, the names in weight files are the public ones.

    B images   C channels   H height   W width, all at the level of the layer; one frame where videos have T

Attention in the middle is global, and the norms are over whole groups, so tiles change the picture: it is cut only if
the config asks for that (black-forest-labs/flux, modules/autoencoder.py).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.shapes import image_vae_shapes
from opensora_launch.schema.autoencoder import VaeConfig


class ImageVae(nn.Module):
    """Map pixels in [-1, 1] of one frame to moments of latents (mean, then log variance) and back, unscaled."""

    def __init__(self, cfg: VaeConfig) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        levels = len(cfg.block_out_channels)
        self.layers = AutoencoderKL(
            in_channels=cfg.in_channels,
            out_channels=cfg.out_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(cfg.block_out_channels),
            layers_per_block=cfg.layers_per_block,
            latent_channels=cfg.latent_channels,
            norm_num_groups=cfg.norm_num_groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )

    @property
    def like(self) -> Tensor:
        """A weight, of the dtype and device that it computes in."""
        weight: Tensor = self.layers.decoder.conv_in.weight
        return weight

    def encode(self, pixels: Float[Tensor, "B 3 1 H W"]) -> Float[Tensor, "B M 1 h w"]:
        out: Tensor = self.layers.encoder(pixels[:, :, 0])
        return out[:, :, None]

    def decode(self, z: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B 3 1 H W"]:
        out: Tensor = self.layers.decoder(z[:, :, 0])
        return out[:, :, None]


def image_vae_names(cfg: VaeConfig) -> dict[str, str]:
    """Return the public name of each weight of an `ImageVae`, by its name in the module."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    public = list(image_vae_shapes(cfg))
    numbered = {name: torch.tensor([i]) for i, name in enumerate(public)}
    levels = [""] * len(cfg.block_out_channels)
    renamed = convert_ldm_vae_checkpoint(numbered, {"down_block_types": levels, "up_block_types": levels})
    return {f"layers.{name}": public[int(i)] for name, i in renamed.items()}


def renamed_weights(vae: ImageVae, cfg: VaeConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a public file as the module does; other names stay. Attention is linear in the module."""
    own, state = {public: name for name, public in image_vae_names(cfg).items()}, vae.state_dict()
    renamed = {own.get(name, name): tensor for name, tensor in tensors.items()}
    return {
        name: x.flatten(1) if name in state and x.ndim == 4 and state[name].ndim == 2 else x
        for name, x in renamed.items()
    }
