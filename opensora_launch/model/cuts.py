"""Along which dim each weight of the diffusion transformer may be cut, by heads and by channels of the feed-forward.

A product whose outputs are cut gives a part of the heads; one whose inputs are cut takes such a part and gives a
summand of the whole. Arithmetic on the config, no torch: who cuts, and into how many parts, is not said here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from opensora_launch.schema.config import MmditConfig


class Kind(StrEnum):
    outputs = "outputs"  # weight and bias are cut; what follows works on the part
    inputs = "inputs"  # the weight is cut, the bias is not; results are summed
    gathered = "gathered"  # weight and bias are cut; results are put together again


@dataclass(frozen=True)
class Piece:
    """`count` things of `size` channels that lie one after another: heads, or channels themselves."""

    count: int
    size: int


@dataclass(frozen=True)
class Cut:
    """Of one linear layer. Its outputs or inputs are the pieces one after another, and each is cut by itself."""

    kind: Kind
    pieces: tuple[Piece, ...]


def mmdit_cuts(cfg: MmditConfig) -> dict[str, Cut]:
    """Cuts by the layers' names; layers that are not there stay whole."""
    doubles, singles = dict(_double(cfg)), dict(_single(cfg))
    cuts = {f"double_blocks.{i}.{name}": cut for i in range(cfg.depth) for name, cut in doubles.items()}
    return cuts | {
        f"single_blocks.{i}.{name}": cut for i in range(cfg.depth_single_blocks) for name, cut in singles.items()
    }


def _sizes(cfg: MmditConfig) -> tuple[Piece, Piece]:
    heads = Piece(cfg.num_heads, cfg.hidden_size // cfg.num_heads)
    return heads, Piece(int(cfg.hidden_size * cfg.mlp_ratio), 1)


def _double(cfg: MmditConfig) -> Iterator[tuple[str, Cut]]:
    heads, wide = _sizes(cfg)
    for stream in ("img", "txt"):
        yield f"{stream}_mod.lin", Cut(Kind.gathered, (Piece(6 * cfg.hidden_size, 1),))
        if cfg.fused_qkv:
            yield f"{stream}_attn.qkv", Cut(Kind.outputs, (heads,) * 3)
        else:
            for part in ("q_proj", "k_proj", "v_proj"):
                yield f"{stream}_attn.{part}", Cut(Kind.outputs, (heads,))
        yield f"{stream}_attn.proj", Cut(Kind.inputs, (heads,))
        yield f"{stream}_mlp.0", Cut(Kind.outputs, (wide,))
        yield f"{stream}_mlp.2", Cut(Kind.inputs, (wide,))


def _single(cfg: MmditConfig) -> Iterator[tuple[str, Cut]]:
    heads, wide = _sizes(cfg)
    if cfg.fused_qkv:
        yield "linear1", Cut(Kind.outputs, (heads, heads, heads, wide))
    else:
        yield "q_proj", Cut(Kind.outputs, (heads,))
        yield "k_proj", Cut(Kind.outputs, (heads,))
        yield "v_mlp", Cut(Kind.outputs, (heads, wide))
    yield "linear2", Cut(Kind.inputs, (heads, wide))
    yield "modulation.lin", Cut(Kind.gathered, (Piece(3 * cfg.hidden_size, 1),))
