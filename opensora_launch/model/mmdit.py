"""The Open-Sora 2.0 diffusion transformer (Flux's blocks with video positions), written as for one device.

Only attention mixes tokens, and attention is an argument. A rank that holds a slice of the sequence runs the
same module on its slice, with an `attend` that reaches the other ranks; the module cannot tell the difference. It does
not count heads either: a rank may hold the weights of some heads only (`cuts.py`), so inner sizes are those of the
weights. Parameter names are those of the public checkpoint.

Everything but attention runs on TOKENS_AT_ONCE tokens at a time, so that the widened activations of a long video never
exist all at once: of 76,544 tokens x 3072 channels, five activations are alive instead of twenty.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.kernels import Attend, attend_alone
from opensora_launch.model.layers import (
    LastLayer,
    MLPEmbedder,
    Modulation,
    QKNorm,
    Rotary,
    modulate,
    timestep_embedding,
)
from opensora_launch.schema.config import MmditConfig
from opensora_launch.schema.model_constants import TIME_CHANNELS, TOKENS_AT_ONCE

QKV = tuple[Tensor, Tensor, Tensor]  # each B S N D


def token_chunks(x: Float[Tensor, "B S C"]) -> Iterator[slice]:
    """Yield slices of the tokens, each with TOKENS_AT_ONCE of all rows together; one slice if there are no tokens."""
    at_once = max(1, TOKENS_AT_ONCE // x.shape[0])
    yield from (slice(first, first + at_once) for first in range(0, max(1, x.shape[1]), at_once))


def cat_qkv_and_clear(chunks: list[QKV]) -> QKV:
    """Concatenate q, k and v along the tokens. Empties the list, so that at most one of the three exists twice."""
    if len(chunks) == 1:
        return chunks.pop()
    each = [list(one) for one in zip(*chunks, strict=True)]
    chunks.clear()
    return cat_and_clear(each[0]), cat_and_clear(each[1]), cat_and_clear(each[2])


def cat_and_clear(chunks: list[Tensor]) -> Tensor:
    """Concatenate the tensors along the tokens, and empty the list."""
    whole = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)
    chunks.clear()
    return whole


class JointAttention(nn.Module):
    """Hold the weights of one stream (text or video) around the attention that both streams share."""

    def __init__(self, cfg: MmditConfig) -> None:
        super().__init__()
        width = cfg.hidden_size
        self.head_dim, self.fused = width // cfg.num_heads, cfg.fused_qkv
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width, bias=cfg.qkv_bias)
        else:
            self.q_proj = nn.Linear(width, width, bias=cfg.qkv_bias)
            self.k_proj = nn.Linear(width, width, bias=cfg.qkv_bias)
            self.v_proj = nn.Linear(width, width, bias=cfg.qkv_bias)
        self.norm = QKNorm(self.head_dim)
        self.proj = nn.Linear(width, width)

    def project(self, x: Float[Tensor, "B S C"], rotary: Rotary, table: Tensor) -> QKV:
        """Compute q and k (normalised, rotated) and v of the stream's tokens."""
        flat = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        return heads(flat, self.head_dim, self.norm, rotary, table)


def heads(flat: Sequence[Tensor], head_dim: int, norm: QKNorm, rotary: Rotary, table: Tensor) -> QKV:
    """Split q, k and v into heads; normalise and rotate q and k."""
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in flat)
    return rotary.rotate(norm.query_norm(q), table), rotary.rotate(norm.key_norm(k), table), v


def feed_forward(cfg: MmditConfig) -> nn.Sequential:
    wide = int(cfg.hidden_size * cfg.mlp_ratio)
    return nn.Sequential(
        nn.Linear(cfg.hidden_size, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, cfg.hidden_size)
    )


class DoubleBlock(nn.Module):
    """A block in which text and video have weights of their own and attend to each other."""

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
        streams = ((txt, self.txt_mod(vec), self.txt_attn), (img, self.img_mod(vec), self.img_attn))
        chunks, first = list[QKV](), 0
        for x, mod, attn in streams:
            angles = table[:, :, first : first + x.shape[1]]
            chunks += [attn.project(modulate(x[:, s], *mod[:2]), rotary, angles[:, :, s]) for s in token_chunks(x)]
            first += x.shape[1]
        out = attend(*cat_qkv_and_clear(chunks)).flatten(2)
        txt_out, img_out = out.split([txt.shape[1], img.shape[1]], dim=1)
        img = self._finish(img, img_out, streams[1][1], self.img_attn, self.img_mlp)
        txt = self._finish(txt, txt_out, streams[0][1], self.txt_attn, self.txt_mlp)
        return img, txt

    @staticmethod
    def _finish(x: Tensor, out: Tensor, mod: tuple[Tensor, ...], attn: JointAttention, mlp: nn.Sequential) -> Tensor:
        _, _, gate, shift, scale, gate_mlp = mod
        done = []
        for s in token_chunks(x):
            mixed = torch.addcmul(x[:, s], gate, attn.proj(out[:, s]))
            done.append(torch.addcmul(mixed, gate_mlp, mlp(modulate(mixed, shift, scale))))
        return cat_and_clear(done)


class SingleBlock(nn.Module):
    """A block of one stream, with attention and feed-forward side by side."""

    def __init__(self, cfg: MmditConfig) -> None:
        super().__init__()
        width, wide = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
        self.head_dim, self.fused = width // cfg.num_heads, cfg.fused_qkv
        if self.fused:
            self.linear1 = nn.Linear(width, 3 * width + wide)
        else:
            self.q_proj = nn.Linear(width, width)
            self.k_proj = nn.Linear(width, width)
            self.v_mlp = nn.Linear(width, width + wide)
        self.linear2 = nn.Linear(width + wide, width)
        self.norm = QKNorm(self.head_dim)
        self.modulation = Modulation(width, 3)

    def forward(
        self, x: Float[Tensor, "B S C"], vec: Tensor, rotary: Rotary, table: Tensor, attend: Attend
    ) -> Float[Tensor, "B S C"]:
        shift, scale, gate = self.modulation(vec)
        chunks = [self._project(modulate(x[:, s], shift, scale), rotary, table[:, :, s]) for s in token_chunks(x)]
        out = attend(*cat_qkv_and_clear(chunks)).flatten(2)
        done = []
        for s in token_chunks(x):
            wide = F.gelu(self._widen(modulate(x[:, s], shift, scale)), approximate="tanh")
            both = torch.cat([out[:, s], wide], dim=-1)
            del wide  # or these names would hold the last chunk while the next one is computed
            done.append(torch.addcmul(x[:, s], gate, self.linear2(both)))
            del both
        return cat_and_clear(done)

    @property
    def _attended(self) -> int:
        """Count the channels of the heads that these weights make."""
        if not self.fused:
            return self.q_proj.weight.shape[0]
        return (self.linear1.weight.shape[0] - self.linear2.weight.shape[1]) // 2  # 3 widths and wide, less 1 and wide

    def _project(self, normed: Tensor, rotary: Rotary, table: Tensor) -> QKV:
        width = self._attended
        if self.fused:
            flat = some_outputs(self.linear1.weight, self.linear1.bias, slice(0, 3 * width), normed).chunk(3, dim=-1)
        else:
            v = some_outputs(self.v_mlp.weight, self.v_mlp.bias, slice(0, width), normed)
            flat = (self.q_proj(normed), self.k_proj(normed), v)
        return heads(flat, self.head_dim, self.norm, rotary, table)

    def _widen(self, normed: Tensor) -> Float[Tensor, "B S wide"]:
        """Compute the first product of the feed-forward, which shares a matrix with v."""
        if self.fused:
            return some_outputs(self.linear1.weight, self.linear1.bias, slice(3 * self._attended, None), normed)
        return some_outputs(self.v_mlp.weight, self.v_mlp.bias, slice(self._attended, None), normed)


def some_outputs(weight: Float[Tensor, "out C"], bias: Float[Tensor, "out"] | None, part: slice, x: Tensor) -> Tensor:
    """Compute only that part of the outputs of a linear layer."""
    return F.linear(x, weight[part], None if bias is None else bias[part])


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
        img_ids: Float[Tensor, "B S A"],
        txt: Float[Tensor, "B T context"],
        txt_ids: Float[Tensor, "B T A"],
        timesteps: Float[Tensor, "B"],
        y_vec: Float[Tensor, "B vec"],
        cond: Float[Tensor, "B S cond_channels"] | None = None,
        guidance: Float[Tensor, "B"] | None = None,
        attend: Attend = attend_alone,
    ) -> Float[Tensor, "B S in_channels"]:
        """Predict the velocity of the given video tokens: all of them, or one rank's slice with the matching `attend`.

        There are S video and T text tokens; either may be 0. Timesteps lie in [0, 1], and 1 is noise. Models with an
        image condition need `cond`. Distilled models need `guidance` (the scale itself); others ignore it.
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
        num_text, joint = text.shape[1], torch.cat([text, x], dim=1)
        del x, text
        for block in self.single_blocks:
            joint = block(joint, vec, self.rotary, table, attend)
        out: Tensor = self.final_layer(joint[:, num_text:], vec)
        return out
