"""The arrangement of a run's ranks: degrees of the mesh axes, chosen by rule or configured."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from opensora_launch.errors import UserError
from opensora_launch.plan.placement import Placement, next_smaller
from opensora_launch.schema.config import Engine, LayoutConfig, MmditConfig, RunConfig

# Rough cost of each axis as a share of compute time, for cards that the performance model does not know.
ULYSSES_COST, RING_COST, CFG_COST, CROSS_NODE_COST = 0.03, 0.12, 0.004, 0.5


@dataclass(frozen=True)
class Layout:
    """Degrees of the axes, slowest-varying first: the last axis varies fastest between consecutive ranks.

    rank = (((dp * CFG + cfg) * RING + ring) * ULYSSES + ulysses) * TP + tp
    """

    dp: int = 1
    cfg: int = 1
    ring: int = 1
    ulysses: int = 1
    tp: int = 1

    @property
    def ranks(self) -> int:
        return self.dp * self.cfg * self.ring * self.ulysses * self.tp

    @property
    def sequence(self) -> int:
        """Number of parts of a sequence. Each part is on `tp` ranks."""
        return self.ring * self.ulysses

    def __str__(self) -> str:
        return " ".join(f"{axis}{degree}" for axis, degree in vars(self).items())

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Parse the text that str() writes; an axis that is not named has degree 1."""
        named = dict(re.findall(r"([a-z]+)(\d+)", text))
        return cls(**{f.name: int(named[f.name]) for f in fields(cls) if f.name in named})


@dataclass(frozen=True)
class Rules:
    """The facts that decide which layouts an engine allows."""

    engine: Engine
    num_heads: int
    feed_forward: int  # inner width
    placement: Placement


def rules_of(mmdit: MmditConfig, engine: Engine, placement: Placement) -> Rules:
    return Rules(engine, mmdit.num_heads, int(mmdit.hidden_size * mmdit.mlp_ratio), placement)


def layout_problem(rules: Rules, layout: Layout) -> str:
    """Return why an engine cannot run a layout, and what to do; empty if it can."""
    tp, heads = layout.tp, rules.num_heads
    placed, unplaced = rules.placement.streamed, "placement.shard=none placement.offload=none placement.storage=full"
    if rules.engine is Engine.native:
        if tp > 1 and placed:
            return f"layout.tp={tp} divides the weights itself: use {unplaced}, or layout.tp=1"
        return f"layout.tp={tp} is more than the model's {heads} heads; use a smaller layout.tp" if tp > heads else ""
    if placed:
        return f"engine=colossalai divides weights by layout.tp only: use {unplaced}, or engine=native"
    if heads % tp or rules.feed_forward % tp:
        return (
            f"engine=colossalai divides heads and feed-forward evenly, but layout.tp={tp} does not divide {heads} "
            f"heads and a feed-forward of {rules.feed_forward}; use another layout.tp, or engine=native"
        )
    if layout.ring > 1 and layout.ulysses > 1:
        return (
            f"engine=colossalai supports one sequence mode at a time, but layout.ring={layout.ring} is ring_attn and "
            f"layout.ulysses={layout.ulysses} is all_to_all; set one of them to 1, or use engine=native"
        )
    return ""


def configured_degrees(fixed: LayoutConfig) -> dict[str, int]:
    return {axis: degree for axis, degree in vars(fixed).items() if degree is not None}


@dataclass(frozen=True)
class LayoutFacts:
    """The facts that the choice by rule depends on."""

    ranks: int
    gpus_per_node: int
    batches: int  # batches of videos to make
    max_rows: int  # the most rows in a step of a batch
    total_tokens: int
    rules: Rules


def layouts_by_rows(facts: LayoutFacts, fixed: LayoutConfig) -> tuple[tuple[int, Layout], ...]:
    """Choose a layout for steps with 1, 2, ... max_rows rows.

    `fixed` is the configured layout of the steps with the most rows. Weights are divided (tp) only if that is
    configured. Raise UserError if no layout is possible.
    """
    most = _best(facts, facts.max_rows, fixed)
    if most is None:
        raise UserError("this layout is impossible", [_why_not(facts, fixed)])
    fewer = with_fewer_rows(most, fixed)
    found = [(rows, _best(facts, rows, fewer)) for rows in range(1, facts.max_rows)]
    return (*((rows, layout) for rows, layout in found if layout), (facts.max_rows, most))


def with_fewer_rows(most: Layout, fixed: LayoutConfig) -> LayoutConfig:
    """Return what is fixed for steps with fewer rows: dp and tp, and ring or ulysses if it was configured as 1."""
    ring = 1 if fixed.ring == 1 else None
    return LayoutConfig(dp=most.dp, tp=most.tp, ring=ring, ulysses=1 if fixed.ulysses == 1 and not ring else None)


def _best(facts: LayoutFacts, rows: int, fixed: LayoutConfig) -> Layout | None:
    fitting = all_layouts(facts.ranks, {"tp": 1} | configured_degrees(fixed))
    fitting = [c for c in fitting if c.sequence <= facts.total_tokens and not layout_problem(facts.rules, c)]
    return min(fitting, key=lambda c: (_cost(facts, rows, c), -c.cfg, c.ring), default=None)


def all_layouts(ranks: int, degrees: Mapping[str, int] | None = None) -> list[Layout]:
    """Return every layout of so many ranks that has these degrees."""
    given = degrees or {}

    def divisors(axis: str, n: int) -> list[int]:
        return [d for d in ([given[axis]] if axis in given else range(1, n + 1)) if d > 0 and n % d == 0]

    return [
        Layout(dp, cfg, ring, ulysses, tp)
        for dp in divisors("dp", ranks)
        for tp in divisors("tp", ranks // dp)
        for cfg in divisors("cfg", ranks // dp // tp)
        for ring in divisors("ring", ranks // dp // tp // cfg)
        for ulysses in divisors("ulysses", ranks // dp // tp // cfg // ring)
        if dp * tp * cfg * ring * ulysses == ranks
    ]


def _cost(facts: LayoutFacts, rows: int, layout: Layout) -> float:
    """Return the relative time of the job: rows and heads of the busiest rank, plus a rough cost of each axis."""
    rounds = math.ceil(facts.batches / layout.dp)
    heads = math.ceil(facts.rules.num_heads / layout.tp)
    uneven_heads = math.ceil(heads / layout.ulysses) * layout.ulysses / heads
    compute = rounds * math.ceil(rows / layout.cfg) / layout.sequence * uneven_heads
    overhead = ULYSSES_COST * (1 - 1 / layout.ulysses) + RING_COST * (1 - 1 / layout.ring)
    overhead += CFG_COST * (1 - 1 / layout.cfg)
    if facts.gpus_per_node % layout.ulysses:
        overhead += CROSS_NODE_COST
    return compute * (1 + overhead)


def _why_not(facts: LayoutFacts, fixed: LayoutConfig) -> str:
    degrees = configured_degrees(fixed)
    overrides = " ".join(f"layout.{axis}={degree}" for axis, degree in degrees.items())
    product = math.prod(degrees.values())
    if any(degree < 1 for degree in degrees.values()):
        return f"{overrides}: every degree must be at least 1"
    if (len(degrees | {"tp": 1}) == len(vars(fixed)) and product != facts.ranks) or facts.ranks % product:
        return (
            f"{overrides} needs {product} ranks or a multiple of them, but the topology has {facts.ranks}; "
            f"change topology.gpus_per_node, or leave an axis out for the planner to choose"
        )
    alike = all_layouts(facts.ranks, {"tp": 1} | degrees)
    if problems := [problem for c in alike if (problem := layout_problem(facts.rules, c))]:
        return problems[0]
    return f"{overrides} divides {facts.total_tokens} tokens among more ranks than there are tokens; use fewer ranks"


def smaller_placement(
    run: RunConfig, ranks: int, gpus_per_node: int, layouts: Sequence[tuple[int, Layout]], placement: Placement
) -> Placement | None:
    """Return the next smaller placement that works with these layouts."""
    less = next_smaller(placement, run.placement, run.fit, ranks, gpus_per_node)
    while less and any(layout_problem(rules_of(run.model.mmdit, run.engine, less), lay) for _, lay in layouts):
        less = next_smaller(less, run.placement, run.fit, ranks, gpus_per_node)
    return less
