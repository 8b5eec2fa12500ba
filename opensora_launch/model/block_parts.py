"""What a transformer block does to some of the tokens before attention and after it: `Parts`, eager or compiled.

A block holds the weights (`blocks.py`) and calls these functions for one chunk of tokens after another, so that the
widened activations of a long video never exist all at once: of 76,544 tokens x 3072 channels, four activations are
alive instead of twenty. The results of a chunk are written to where they belong: q, k and v among those of all tokens,
and finished tokens over the old ones. Compiled, the last kernel writes there, and nothing is copied.

They do not count heads: a rank may hold the weights of some heads only (`cuts.py`), so inner sizes are those of the
weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from opensora_launch.model.frame_norms import EAGER_NORMS, Norms, activated, moments
from opensora_launch.model.kernels import QKV, Attend, AttentionAtOnce, BegunAttention, Place, SpanAttend
from opensora_launch.model.layers import QKNorm, Rotary, modulate
from opensora_launch.schema.even_shares import chunk_counts, share_slices
from opensora_launch.schema.model_constants import TOKENS_AT_ONCE

RECOMPILES = 32  # of a function: for two models, one row or several, one token or several, and each kind of block


@runtime_checkable
class Projections(Protocol):
    """The weights in front of attention, of a stream of a double block or of a single block."""

    head_dim: int
    norm: QKNorm

    def flat_qkv(self, x: Float[Tensor, "B S C"]) -> Sequence[Float[Tensor, "B S c"]]:
        """Compute q, k and v before they are split into heads."""


@runtime_checkable
class FeedForward(Protocol):
    """The weights of a single block behind attention."""

    linear2: nn.Module

    def widen(self, x: Float[Tensor, "B S C"]) -> Float[Tensor, "B S wide"]:
        """Compute the first product of the feed-forward."""


def chunks(x: Float[Tensor, "B S C"]) -> list[Place]:
    """Divide rows and tokens into the chunks of `chunk_places`."""
    return chunk_places(x.shape[0], x.shape[1])


def chunk_places(rows: int, tokens: int) -> list[Place]:
    """Divide rows and tokens evenly into chunks of at most TOKENS_AT_ONCE tokens; none if there are no tokens.

    A chunk is whole rows or a part of one row, so its tokens lie one after another in memory. A product of tokens with
    gaps between them would be computed row by row, and its bias by a kernel of its own.
    """
    if tokens == 0:
        return []
    of_rows, of_tokens = chunk_counts(rows, tokens, TOKENS_AT_ONCE)
    return [(r, s) for r in share_slices(rows, of_rows) for s in share_slices(tokens, of_tokens)]


def some(x: Float[Tensor, "B S *inner"], place: Place) -> Float[Tensor, "b s *inner"]:
    """Return a chunk, one token after another in memory; a part of one row looks like a whole one."""
    chunk = x[place]
    return chunk[0][None] if len(chunk) == 1 else chunk.contiguous()


def project(
    weights: Projections,
    x: Float[Tensor, "B S C"],
    mod: Sequence[Float[Tensor, "B 1 C"]],
    rotary: Rotary,
    table: Sequence[Float[Tensor, "R S 1 D"]],
    into: QKV,
) -> None:
    """Compute q and k (normalised, rotated) and v of some tokens. mod: shift and scale."""
    flat = weights.flat_qkv(modulate(x, *mod))
    q, k, v = (part.unflatten(-1, (-1, weights.head_dim)) for part in flat)
    into[0].copy_(rotary.rotate(weights.norm.query_norm(q), table))
    into[1].copy_(rotary.rotate(weights.norm.key_norm(k), table))
    into[2].copy_(v)


def finish_double(
    proj: nn.Module,
    mlp: nn.Module,
    x: Float[Tensor, "B S C"],
    attended: Float[Tensor, "B S c"],
    mod: Sequence[Float[Tensor, "B 1 C"]],
) -> Float[Tensor, "B S C"]:
    """Add what was attended to, then the feed-forward. mod: gate, and shift, scale and gate of the feed-forward."""
    gate, shift, scale, gate_mlp = mod
    mixed = torch.addcmul(x, gate, proj(attended))
    out = torch.addcmul(mixed, gate_mlp, mlp(modulate(mixed, shift, scale)))
    return out if torch.is_grad_enabled() else x.copy_(out)


def finish_single(
    weights: FeedForward,
    x: Float[Tensor, "B S C"],
    attended: Float[Tensor, "B S c"],
    mod: Sequence[Float[Tensor, "B 1 C"]],
) -> Float[Tensor, "B S C"]:
    """Add the product of what was attended to and of the widened tokens. mod: shift, scale and gate."""
    shift, scale, gate = mod
    wide = F.gelu(weights.widen(modulate(x, shift, scale)), approximate="tanh")
    both = torch.cat([attended, wide], dim=-1)
    del wide
    out = torch.addcmul(x, gate, weights.linear2(both))
    return out if torch.is_grad_enabled() else x.copy_(out)


@dataclass(frozen=True)
class Parts:
    """The three functions, eager or compiled. Blocks of a kind share them: they get the weights as an argument.

    `norms` is what the causal VAE computes around its convolutions.
    """

    project: Callable[..., None] = project
    finish_double: Callable[..., Tensor] = finish_double
    finish_single: Callable[..., Tensor] = finish_single
    norms: Norms = EAGER_NORMS


EAGER = Parts()


def compiled() -> Parts:
    """Compile the functions for any number of tokens. What was compiled before, for another model, is forgotten."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = RECOMPILES
    return Parts(
        project=_compiled(project),
        finish_double=_compiled(finish_double),
        finish_single=_compiled(finish_single),
        norms=Norms(moments=_compiled(moments), activated=_compiled(activated)),
    )


def _compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    """Compile one function. It gets views without their whole tensors, whose sizes it would be compiled for as well."""
    call = torch.compile(part, dynamic=True)
    return lambda *args: call(*tree_map_only(Tensor, lambda x: x.data, args))


@dataclass(frozen=True)
class BlockContext:
    """What all blocks of one forward share."""

    vec: Float[Tensor, "B C"]  # what modulates them
    rotary: Rotary
    table: tuple[Float[Tensor, "R S 1 D"], Float[Tensor, "R S 1 D"]]  # R = 1: all rows have the same positions
    attend: Attend
    parts: Parts

    def begin(self, qkv: QKV, *, one_stream: bool) -> BegunAttention:
        """Begin an attention whose q, k and v are written span by span."""
        if isinstance(self.attend, SpanAttend):
            return self.attend.begin(qkv, one_stream=one_stream)
        return AttentionAtOnce(self.attend, qkv)
