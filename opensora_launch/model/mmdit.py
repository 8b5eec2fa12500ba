"""The Open-Sora 2.0 diffusion transformer (Flux's blocks with video positions), written as for one device.

Only attention mixes tokens, and attention is an argument. A rank that holds a slice of the sequence runs the
same module on its slice, with an `attend` that reaches the other ranks; the module cannot tell.
Parameter names are the public checkpoint's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.config import MmditConfig
from opensora_launch.model.attention import Attend, attend_alone
from opensora_launch.model.layers import (
    TIME_CHANNELS,
    LastLayer,
    MLPEmbedder,
    Modulation,
    QKNorm,
    Rotary,
    modulate,
    timestep_embedding,
)


class JointAttention(nn.Module):
    """Weights of one stream (text or video) around the attention that both streams share."""

    def __init__(self, cfg: MmditConfig) -> None:
        super().__init__()
        width = cfg.hidden_size
        self.num_heads, self.fused = cfg.num_heads, cfg.fused_qkv
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width, bias=cfg.qkv_bias)
        else:
            self.q_proj = nn.Linear(width, width, bias=cfg.qkv_bias)
            self.k_proj = nn.Linear(width, width, bias=cfg.qkv_bias)
            self.v_proj = nn.Linear(width, width, bias=cfg.qkv_bias)
        self.norm = QKNorm(width // cfg.num_heads)
        self.proj = nn.Linear(width, width)

    def project(self, x: Float[Tensor, "B S C"]) -> tuple[Tensor, Tensor, Tensor]:
        """q and k (normalised) and v of the stream's tokens, each B S N D."""
        parts = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (p.unflatten(-1, (self.num_heads, -1)) for p in parts)
        return self.norm.query_norm(q), self.norm.key_norm(k), v


def feed_forward(cfg: MmditConfig) -> nn.Sequential:
    wide = int(cfg.hidden_size * cfg.mlp_ratio)
    return nn.Sequential(
        nn.Linear(cfg.hidden_size, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, cfg.hidden_size)
    )


class DoubleBlock(nn.Module):
    """Text and video have weights of their own and attend to each other."""

    def __init__(self, cfg: MmditConfig) -> None:
        super().__init__()
        self.img_mod = Modulation(cfg.hidden_size, 6)
        self.img_attn = JointAttention(cfg)
        self.img_mlp = feed_forward(cfg)
        self.txt_mod = Modulation(cfg.hidden_size, 6)
        self.txt_attn = JointAttention(cfg)
        self.txt_mlp = feed_forward(cfg)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, rotary: Rotary, table: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        img_mod, txt_mod = self.img_mod(vec), self.txt_mod(vec)
        qkv_txt = self.txt_attn.project(modulate(txt, *txt_mod[:2]))
        qkv_img = self.img_attn.project(modulate(img, *img_mod[:2]))
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(qkv_txt, qkv_img, strict=True))
        out = attend(rotary.rotate(q, table), rotary.rotate(k, table), v).flatten(2)
        txt_out, img_out = out.split([txt.shape[1], img.shape[1]], dim=1)
        img = self._finish(img, img_out, img_mod, self.img_attn, self.img_mlp)
        txt = self._finish(txt, txt_out, txt_mod, self.txt_attn, self.txt_mlp)
        return img, txt

    @staticmethod
    def _finish(x: Tensor, out: Tensor, mod: tuple[Tensor, ...], attn: JointAttention, mlp: nn.Sequential) -> Tensor:
        _, _, gate, shift, scale, gate_mlp = mod
        x = torch.addcmul(x, gate, attn.proj(out))
        return torch.addcmul(x, gate_mlp, mlp(modulate(x, shift, scale)))


class SingleBlock(nn.Module):
    """One stream; attention and feed-forward side by side."""

    def __init__(self, cfg: MmditConfig) -> None:
        super().__init__()
        width, self.wide = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
        self.num_heads, self.fused = cfg.num_heads, cfg.fused_qkv
        if self.fused:
            self.linear1 = nn.Linear(width, 3 * width + self.wide)
        else:
            self.q_proj = nn.Linear(width, width)
            self.k_proj = nn.Linear(width, width)
            self.v_mlp = nn.Linear(width, width + self.wide)
        self.linear2 = nn.Linear(width + self.wide, width)
        self.norm = QKNorm(width // cfg.num_heads)
        self.modulation = Modulation(width, 3)

    def forward(
        self, x: Float[Tensor, "B S C"], vec: Tensor, rotary: Rotary, table: Tensor, attend: Attend
    ) -> Float[Tensor, "B S C"]:
        shift, scale, gate = self.modulation(vec)
        normed = modulate(x, shift, scale)
        width = x.shape[-1]
        if self.fused:
            q, k, v, mlp = self.linear1(normed).split([width, width, width, self.wide], dim=-1)
        else:
            q, k = self.q_proj(normed), self.k_proj(normed)
            v, mlp = self.v_mlp(normed).split([width, self.wide], dim=-1)
        q, k, v = (p.unflatten(-1, (self.num_heads, -1)) for p in (q, k, v))
        q, k = self.norm.query_norm(q), self.norm.key_norm(k)
        out = attend(rotary.rotate(q, table), rotary.rotate(k, table), v).flatten(2)
        return torch.addcmul(x, gate, self.linear2(torch.cat([out, F.gelu(mlp, approximate="tanh")], dim=-1)))


class MMDiT(nn.Module):
    """Predicts the velocity of packed video latents. See `forward` for the shapes."""

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
        img_ids: Float[Tensor, "B S A"],
        txt: Float[Tensor, "B T context"],
        txt_ids: Float[Tensor, "B T A"],
        timesteps: Float[Tensor, "B"],
        y_vec: Float[Tensor, "B vec"],
        cond: Float[Tensor, "B S cond_channels"] | None = None,
        guidance: Float[Tensor, "B"] | None = None,
        attend: Attend = attend_alone,
    ) -> Float[Tensor, "B S in_channels"]:
        """Velocity of every video token given: all of them, or one rank's slice with the matching `attend`.

        S video and T text tokens, either may be 0; timesteps in [0, 1], 1 is noise; `cond` is needed by models
        with an image condition, `guidance` (the scale itself) by distilled ones and ignored by others.
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
        for block in self.double_blocks:
            x, text = block(x, text, vec, self.rotary, table, attend)
        joint = torch.cat([text, x], dim=1)
        for block in self.single_blocks:
            joint = block(joint, vec, self.rotary, table, attend)
        out: Tensor = self.final_layer(joint[:, text.shape[1] :], vec)
        return out
