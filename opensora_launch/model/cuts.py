"""Say along which dim each weight of the diffusion transformer may be cut: by heads, and by feed-forward channels.

A product whose outputs are cut gives some of the heads. One whose inputs are cut takes these and gives a summand of
the whole. This is arithmetic on the config, without torch; callers decide who cuts and into how many parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from opensora_launch.schema.config import MmditConfig


class CutKind(StrEnum):
    outputs = "outputs"  # weight and bias are cut; what follows works on the part
    inputs = "inputs"  # the weight is cut, the bias is not; results are summed
    gathered = "gathered"  # weight and bias are cut; results are put together again


@dataclass(frozen=True)
class Segment:
    """`count` things of `size` channels that lie one after another: heads, or single channels."""

    count: int
    size: int

    @property
    def channels(self) -> int:
        return self.count * self.size


@dataclass(frozen=True)
class Cut:
    """How to cut one linear layer. Its outputs or inputs are these segments in order; each segment is cut by itself."""

    kind: CutKind
    segments: tuple[Segment, ...]


def mmdit_cuts(cfg: MmditConfig) -> dict[str, Cut]:
    """Return the cuts by layer name; layers without a cut stay whole."""
    doubles, singles = dict(_double(cfg)), dict(_single(cfg))
    cuts = {f"double_blocks.{i}.{name}": cut for i in range(cfg.depth) for name, cut in doubles.items()}
    return cuts | {
        f"single_blocks.{i}.{name}": cut for i in range(cfg.depth_single_blocks) for name, cut in singles.items()
    }


def _sizes(cfg: MmditConfig) -> tuple[Segment, Segment]:
    heads = Segment(cfg.num_heads, cfg.hidden_size // cfg.num_heads)
    return heads, Segment(int(cfg.hidden_size * cfg.mlp_ratio), 1)


def _double(cfg: MmditConfig) -> Iterator[tuple[str, Cut]]:
    heads, wide = _sizes(cfg)
    for stream in ("img", "txt"):
        yield f"{stream}_mod.lin", Cut(CutKind.gathered, (Segment(6 * cfg.hidden_size, 1),))
        if cfg.fused_qkv:
            yield f"{stream}_attn.qkv", Cut(CutKind.outputs, (heads,) * 3)
        else:
            for part in ("q_proj", "k_proj", "v_proj"):
                yield f"{stream}_attn.{part}", Cut(CutKind.outputs, (heads,))
        yield f"{stream}_attn.proj", Cut(CutKind.inputs, (heads,))
        yield f"{stream}_mlp.0", Cut(CutKind.outputs, (wide,))
        yield f"{stream}_mlp.2", Cut(CutKind.inputs, (wide,))


def _single(cfg: MmditConfig) -> Iterator[tuple[str, Cut]]:
    heads, wide = _sizes(cfg)
    if cfg.fused_qkv:
        yield "linear1", Cut(CutKind.outputs, (heads, heads, heads, wide))
    else:
        yield "q_proj", Cut(CutKind.outputs, (heads,))
        yield "k_proj", Cut(CutKind.outputs, (heads,))
        yield "v_mlp", Cut(CutKind.outputs, (heads, wide))
    yield "linear2", Cut(CutKind.inputs, (heads, wide))
    yield "modulation.lin", Cut(CutKind.gathered, (Segment(3 * cfg.hidden_size, 1),))
