"""The Open-Sora 2.0 diffusion transformer (Flux's blocks with video positions), written as for one device.

Only attention mixes tokens, and attention is an argument. A rank that holds a slice of the sequence runs the
same module on its slice, with an `attend` that reaches the other ranks; the module cannot tell the difference.
Parameter names are those of the public checkpoint.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.block_parts import EAGER, BlockContext, Parts
from opensora_launch.model.blocks import DoubleBlock, SingleBlock
from opensora_launch.model.kernels import Attend, attend_alone
from opensora_launch.model.layers import LastLayer, MLPEmbedder, Rotary, timestep_embedding
from opensora_launch.schema.config import MmditConfig
from opensora_launch.schema.model_constants import TIME_CHANNELS


class MMDiT(nn.Module):
    """The network that predicts the velocity of packed video latents. See `forward` for the shapes."""

    def __init__(self, cfg: MmditConfig) -> None:
        super().__init__()
        self.cfg = cfg
        width = cfg.hidden_size
        self.rotary = Rotary(cfg.axes_dim, cfg.theta, cfg.use_liger_rope)
        self.img_in = nn.Linear(cfg.in_channels, width)
        self.time_in = MLPEmbedder(TIME_CHANNELS, width)
        self.vector_in = MLPEmbedder(cfg.vec_in_dim, width)
        if cfg.guidance_embed:
            self.guidance_in = MLPEmbedder(TIME_CHANNELS, width)
        if cfg.cond_embed:
            self.cond_in = nn.Linear(cfg.in_channels + cfg.patch_size**2, width)
        self.txt_in = nn.Linear(cfg.context_in_dim, width)
        self.double_blocks = nn.ModuleList(DoubleBlock(cfg) for _ in range(cfg.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(cfg) for _ in range(cfg.depth_single_blocks))
        self.final_layer = LastLayer(width, cfg.in_channels)

    def forward(
        self,
        *,
        img: Float[Tensor, "B S in_channels"],
        img_ids: Float[Tensor, "R S A"],
        txt: Float[Tensor, "B T context"],
        txt_ids: Float[Tensor, "R T A"],
        timesteps: Float[Tensor, "B"],
        y_vec: Float[Tensor, "B vec"],
        cond: Float[Tensor, "B S cond_channels"] | None = None,
        guidance: Float[Tensor, "B"] | None = None,
        attend: Attend = attend_alone,
        parts: Parts = EAGER,
    ) -> Float[Tensor, "B S in_channels"]:
        """Predict the velocity of the given video tokens: all of them, or one rank's slice with the matching `attend`.

        There are S video and T text tokens; either may be 0. R is B, or 1 if all rows have the same positions.
        Timesteps lie in [0, 1], and 1 is noise. Models with an image condition need `cond`. Distilled models need
        `guidance` (the scale itself); others ignore it. `parts` computes what lies before and after attention.
        """
        dtype = self.img_in.weight.dtype
        x = self.img_in(img.to(dtype))
        if self.cfg.cond_embed:
            assert cond is not None, "this model has an image condition: pass cond, zeros where there is none"
            x = x + self.cond_in(cond.to(dtype))
        vec = self.time_in(timestep_embedding(timesteps).to(dtype)) + self.vector_in(y_vec.to(dtype))
        if self.cfg.guidance_embed:
            assert guidance is not None, "this model is distilled: pass guidance"
            vec = vec + self.guidance_in(timestep_embedding(guidance).to(dtype))
        text = self.txt_in(txt.to(dtype))
        table = self.rotary(torch.cat([txt_ids, img_ids], dim=1))
        shared = BlockContext(vec, self.rotary, table, attend, parts)
        for block in self.double_blocks:
            x, text = block(x, text, shared)
        num_text, joint = text.shape[1], torch.cat([text, x], dim=1)
        del x, text
        for block in self.single_blocks:
            joint = block(joint, shared)
        out: Tensor = self.final_layer(joint[:, num_text:], vec)
        return out
