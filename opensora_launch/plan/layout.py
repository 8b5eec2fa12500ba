"""How the ranks of a run are arranged: degrees of the mesh axes, by rule or as the user fixed them."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from opensora_launch.config import LayoutConfig
from opensora_launch.errors import UserError

# Rough costs of an axis, as a share of compute time, until the planner's performance model replaces them.
ULYSSES_COST, RING_COST, CFG_COST, CROSS_NODE_COST = 0.03, 0.12, 0.004, 0.5


@dataclass(frozen=True)
class Layout:
    """Degrees of the axes, slowest-varying first: rank = ((dp * CFG + cfg) * RING + ring) * ULYSSES + ulysses."""

    dp: int = 1
    cfg: int = 1
    ring: int = 1
    ulysses: int = 1

    @property
    def ranks(self) -> int:
        return self.dp * self.cfg * self.ring * self.ulysses

    @property
    def sequence(self) -> int:
        """Ranks that share one sequence."""
        return self.ring * self.ulysses

    def __str__(self) -> str:
        return f"dp{self.dp} cfg{self.cfg} ring{self.ring} ulysses{self.ulysses}"

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """What str() wrote; an axis that is not named has degree 1."""
        named = dict(re.findall(r"([a-z]+)(\d+)", text))
        return cls(**{f.name: int(named[f.name]) for f in fields(cls) if f.name in named})


@dataclass(frozen=True)
class LayoutFacts:
    """What the choice depends on."""

    ranks: int
    gpus_per_node: int
    num_heads: int
    batches: int  # groups of videos to make
    max_rows: int  # of a batch's step
    total_tokens: int


def layouts_by_rows(facts: LayoutFacts, fixed: LayoutConfig) -> tuple[tuple[int, Layout], ...]:
    """The layout of a step with 1, 2, ... max_rows rows.

    What `fixed` names is the layout of the steps with the most rows. Steps with fewer rows keep dp, and keep
    ring or ulysses at 1 if that was fixed; else they are free. Raises UserError if no layout is possible.
    """
    most = _best(facts, facts.max_rows, fixed)
    if most is None:
        raise UserError("this layout is impossible", [_why_not(facts, fixed)])
    fewer = LayoutConfig(
        dp=most.dp,
        ring=1 if fixed.ring == 1 else None,
        ulysses=1 if fixed.ulysses == 1 and fixed.ring != 1 else None,
    )
    found = [(rows, _best(facts, rows, fewer)) for rows in range(1, facts.max_rows)]
    return (*((rows, layout) for rows, layout in found if layout), (facts.max_rows, most))


def _best(facts: LayoutFacts, rows: int, fixed: LayoutConfig) -> Layout | None:
    asked = {axis: degree for axis, degree in vars(fixed).items() if degree is not None}
    fitting = [c for c in all_layouts(facts.ranks) if all(getattr(c, axis) == degree for axis, degree in asked.items())]
    fitting = [c for c in fitting if c.sequence <= facts.total_tokens]
    return min(fitting, key=lambda c: (_cost(facts, rows, c), -c.cfg, c.ring), default=None)


def all_layouts(ranks: int) -> Iterator[Layout]:
    for dp in _divisors(ranks):
        for cfg in _divisors(ranks // dp):
            for ring in _divisors(ranks // dp // cfg):
                yield Layout(dp, cfg, ring, ranks // dp // cfg // ring)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _cost(facts: LayoutFacts, rows: int, layout: Layout) -> float:
    """Relative time of the whole job: rows and heads of the busiest rank, and a rough price of each axis."""
    rounds = math.ceil(facts.batches / layout.dp)
    uneven_heads = math.ceil(facts.num_heads / layout.ulysses) * layout.ulysses / facts.num_heads
    compute = rounds * math.ceil(rows / layout.cfg) / layout.sequence * uneven_heads
    overhead = ULYSSES_COST * (1 - 1 / layout.ulysses) + RING_COST * (1 - 1 / layout.ring)
    overhead += CFG_COST * (1 - 1 / layout.cfg)
    if facts.gpus_per_node % layout.ulysses:
        overhead += CROSS_NODE_COST
    return compute * (1 + overhead)


def _why_not(facts: LayoutFacts, fixed: LayoutConfig) -> str:
    asked = {axis: degree for axis, degree in vars(fixed).items() if degree is not None}
    said = " ".join(f"layout.{axis}={degree}" for axis, degree in asked.items())
    product = math.prod(asked.values())
    if any(degree < 1 for degree in asked.values()):
        return f"{said}: every degree must be at least 1"
    if len(asked) == len(vars(fixed)) or facts.ranks % product:
        return (
            f"{said} needs {product} ranks or a multiple, the topology has {facts.ranks}; "
            f"change topology.gpus_per_node or leave an axis out, and it is chosen"
        )
    return f"{said} spreads {facts.total_tokens} tokens over more ranks than there are tokens; use fewer ranks"
