"""The blocks of the diffusion transformer: their weights, and the order in which chunks of tokens pass them."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.block_parts import BlockContext, chunks, some
from opensora_launch.model.fp8_products import Fp8Linear, fp8_product
from opensora_launch.model.kernels import QKV, BegunAttention, Place
from opensora_launch.model.layers import Modulation, QKNorm
from opensora_launch.schema.config import MmditConfig


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

    @property
    def attended(self) -> int:
        """Count the channels of the heads that these weights make."""
        return self.proj.weight.shape[1]

    def flat_qkv(self, x: Float[Tensor, "B S C"]) -> Sequence[Float[Tensor, "B S c"]]:
        """Compute q, k and v before they are split into heads."""
        return self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))


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
        self, img: Float[Tensor, "B S C"], txt: Float[Tensor, "B T C"], shared: BlockContext
    ) -> tuple[Float[Tensor, "B S C"], Float[Tensor, "B T C"]]:
        """Return both streams. Without gradients, `img` and `txt` are overwritten."""
        num_text = txt.shape[1]
        txt_mod, img_mod = self.txt_mod(shared.vec), self.img_mod(shared.vec)
        begun = shared.begin(new_qkv(img, num_text + img.shape[1], self.img_attn), one_stream=False)
        for x, mod, attn, first in ((txt, txt_mod, self.txt_attn, 0), (img, img_mod, self.img_attn, num_text)):
            for r, s in chunks(x):
                there = r, slice(first + s.start, first + s.stop)
                write_qkv(attn, some(x, (r, s)), [vector[r] for vector in mod[:2]], shared, there, begun)
        out = begun.finish().flatten(2)
        del begun

        def finish(attn: JointAttention, mlp: nn.Sequential, mod: Sequence[Tensor]) -> Finish:
            return lambda x, attended, r: shared.parts.finish_double(
                attn.proj, mlp, x, attended, [vector[r] for vector in mod[2:]]
            )

        txt_out, img_out = out.split([num_text, img.shape[1]], dim=1)
        img = in_chunks(finish(self.img_attn, self.img_mlp, img_mod), img, img_out)
        txt = in_chunks(finish(self.txt_attn, self.txt_mlp, txt_mod), txt, txt_out)
        return img, txt


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

    def forward(self, x: Float[Tensor, "B S C"], shared: BlockContext) -> Float[Tensor, "B S C"]:
        """Return the stream. Without gradients, `x` is overwritten."""
        mod = self.modulation(shared.vec)
        begun = shared.begin(new_qkv(x, x.shape[1], self), one_stream=True)
        for r, s in chunks(x):
            write_qkv(self, some(x, (r, s)), [vector[r] for vector in mod[:2]], shared, (r, s), begun)
        out = begun.finish().flatten(2)
        del begun

        def finish(x: Tensor, attended: Tensor, r: slice) -> Tensor:
            return shared.parts.finish_single(self, x, attended, [vector[r] for vector in mod])

        return in_chunks(finish, x, out)

    @property
    def attended(self) -> int:
        """Count the channels of the heads that these weights make."""
        if not self.fused:
            return self.q_proj.weight.shape[0]
        return (self.linear1.weight.shape[0] - self.linear2.weight.shape[1]) // 2  # 3 widths and wide, less 1 and wide

    def flat_qkv(self, x: Float[Tensor, "B S C"]) -> Sequence[Float[Tensor, "B S c"]]:
        """Compute q, k and v before they are split into heads."""
        width = self.attended
        if self.fused:
            return some_outputs(self.linear1, slice(0, 3 * width), x).chunk(3, dim=-1)
        return self.q_proj(x), self.k_proj(x), some_outputs(self.v_mlp, slice(0, width), x)

    def widen(self, x: Float[Tensor, "B S C"]) -> Float[Tensor, "B S wide"]:
        """Compute the first product of the feed-forward, which shares a matrix with v."""
        if self.fused:
            return some_outputs(self.linear1, slice(3 * self.attended, None), x)
        return some_outputs(self.v_mlp, slice(self.attended, None), x)


def some_outputs(layer: nn.Module, part: slice, x: Tensor) -> Tensor:
    """Compute only that part of the outputs of a linear layer."""
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    product = fp8_product if isinstance(layer, Fp8Linear) else F.linear
    return product(x, weight[part], None if bias is None else bias[part])


def new_qkv(x: Float[Tensor, "B S C"], tokens: int, weights: JointAttention | SingleBlock) -> QKV:
    """Return memory for q, k and v of so many tokens."""
    shape = (x.shape[0], tokens, weights.attended // weights.head_dim, weights.head_dim)
    return x.new_empty(shape), x.new_empty(shape), x.new_empty(shape)


def write_qkv(
    weights: JointAttention | SingleBlock,
    x: Tensor,
    mod: Sequence[Tensor],
    shared: BlockContext,
    place: Place,
    begun: BegunAttention,
) -> None:
    """Write q, k and v of some tokens to their place among those of all tokens of an attention."""
    rows = slice(None) if len(shared.table[0]) == 1 else place[0]
    table = [some(each, (rows, place[1])) for each in shared.table]
    shared.parts.project(weights, x, mod, shared.rotary, table, tuple(each[place] for each in begun.qkv))
    begun.written(place)


Finish = Callable[[Tensor, Tensor, slice], Tensor]


def in_chunks(finish: Finish, x: Float[Tensor, "B S C"], out: Float[Tensor, "B S c"]) -> Float[Tensor, "B S C"]:
    """Finish the tokens chunk by chunk, each in its place; with gradients all at once, in new memory."""
    if torch.is_grad_enabled():
        return finish(x, out, slice(None))
    assert x.is_contiguous(), "a copy of a chunk would be finished instead of the chunk"
    for r, s in chunks(x):
        finish(some(x, (r, s)), some(out, (r, s)), r)
    return x
