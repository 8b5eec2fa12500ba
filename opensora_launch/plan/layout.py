"""How the ranks of a run are arranged: degrees of the mesh axes, by rule or as the user fixed them."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from opensora_launch.errors import UserError
from opensora_launch.plan.placement import Placement, next_smaller
from opensora_launch.schema.config import Engine, LayoutConfig, MmditConfig, RunConfig

# Rough costs of an axis, as a share of compute time, until the planner's performance model replaces them.
ULYSSES_COST, RING_COST, CFG_COST, CROSS_NODE_COST = 0.03, 0.12, 0.004, 0.5


@dataclass(frozen=True)
class Layout:
    """Degrees of the axes, slowest-varying first: the last axis varies fastest from rank to rank.

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
        """Parts of a sequence: each is on as many ranks as `tp` says."""
        return self.ring * self.ulysses

    def __str__(self) -> str:
        return " ".join(f"{axis}{degree}" for axis, degree in vars(self).items())

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """What str() wrote; an axis that is not named has degree 1."""
        named = dict(re.findall(r"([a-z]+)(\d+)", text))
        return cls(**{f.name: int(named[f.name]) for f in fields(cls) if f.name in named})


@dataclass(frozen=True)
class Rules:
    """What an engine's legal layouts depend on."""

    engine: Engine
    num_heads: int
    feed_forward: int  # inner width
    placement: Placement


def rules_of(mmdit: MmditConfig, engine: Engine, placement: Placement) -> Rules:
    """Of a model's sizes."""
    return Rules(engine, mmdit.num_heads, int(mmdit.hidden_size * mmdit.mlp_ratio), placement)


def layout_problem(rules: Rules, layout: Layout) -> str:
    """Why an engine cannot run a layout, and what to do; empty if it can."""
    tp, heads = layout.tp, rules.num_heads
    placed, unplaced = rules.placement.streamed, "placement.shard=none placement.offload=none placement.storage=full"
    if rules.engine is Engine.native:
        if tp > 1 and placed:
            return f"layout.tp={tp} says itself where the weights are: use {unplaced}, or layout.tp=1"
        return f"layout.tp={tp} is more than the model's {heads} heads" if tp > heads else ""
    if placed:
        return f"engine=colossalai places weights by layout.tp: use {unplaced}, or engine=native"
    if heads % tp or rules.feed_forward % tp:
        return (
            f"engine=colossalai cuts heads and feed-forward evenly: layout.tp={tp} does not divide {heads} heads and a "
            f"feed-forward of {rules.feed_forward}; use another layout.tp, or engine=native, which cuts unevenly"
        )
    if layout.ring > 1 and layout.ulysses > 1:
        return (
            f"engine=colossalai has one sequence mode at a time: layout.ring={layout.ring} is ring_attn and "
            f"layout.ulysses={layout.ulysses} all_to_all; set one of them to 1, or use engine=native"
        )
    return ""


def asked_degrees(fixed: LayoutConfig) -> dict[str, int]:
    """The axes that the user fixed."""
    return {axis: degree for axis, degree in vars(fixed).items() if degree is not None}


@dataclass(frozen=True)
class LayoutFacts:
    """What the choice depends on."""

    ranks: int
    gpus_per_node: int
    batches: int  # groups of videos to make
    max_rows: int  # of a batch's step
    total_tokens: int
    rules: Rules


def layouts_by_rows(facts: LayoutFacts, fixed: LayoutConfig) -> tuple[tuple[int, Layout], ...]:
    """The layout of a step with 1, 2, ... max_rows rows.

    What `fixed` names is the layout of the steps with the most rows. Steps with fewer rows keep dp and tp, and keep
    ring or ulysses at 1 if that was fixed; else they are free. Weights are cut (tp) only where that is asked for.
    Raises UserError if no layout is possible.
    """
    most = _best(facts, facts.max_rows, fixed)
    if most is None:
        raise UserError("this layout is impossible", [_why_not(facts, fixed)])
    fewer = LayoutConfig(
        dp=most.dp,
        tp=most.tp,
        ring=1 if fixed.ring == 1 else None,
        ulysses=1 if fixed.ulysses == 1 and fixed.ring != 1 else None,
    )
    found = [(rows, _best(facts, rows, fewer)) for rows in range(1, facts.max_rows)]
    return (*((rows, layout) for rows, layout in found if layout), (facts.max_rows, most))


def _best(facts: LayoutFacts, rows: int, fixed: LayoutConfig) -> Layout | None:
    asked = {"tp": 1} | asked_degrees(fixed)
    fitting = [c for c in all_layouts(facts.ranks) if all(getattr(c, axis) == degree for axis, degree in asked.items())]
    fitting = [c for c in fitting if c.sequence <= facts.total_tokens and not layout_problem(facts.rules, c)]
    return min(fitting, key=lambda c: (_cost(facts, rows, c), -c.cfg, c.ring), default=None)


def all_layouts(ranks: int) -> Iterator[Layout]:
    for dp in _divisors(ranks):
        for cfg in _divisors(ranks // dp):
            for ring in _divisors(ranks // dp // cfg):
                for ulysses in _divisors(ranks // dp // cfg // ring):
                    yield Layout(dp, cfg, ring, ulysses, ranks // dp // cfg // ring // ulysses)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _cost(facts: LayoutFacts, rows: int, layout: Layout) -> float:
    """Relative time of the whole job: rows and heads of the busiest rank, and a rough price of each axis."""
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
    asked = asked_degrees(fixed)
    said = " ".join(f"layout.{axis}={degree}" for axis, degree in asked.items())
    product = math.prod(asked.values())
    if any(degree < 1 for degree in asked.values()):
        return f"{said}: every degree must be at least 1"
    if (len(asked | {"tp": 1}) == len(vars(fixed)) and product != facts.ranks) or facts.ranks % product:
        return (
            f"{said} needs {product} ranks or a multiple, the topology has {facts.ranks}; "
            f"change topology.gpus_per_node or leave an axis out, and it is chosen"
        )
    asked = {"tp": 1} | asked
    like = [c for c in all_layouts(facts.ranks) if all(getattr(c, axis) == degree for axis, degree in asked.items())]
    if problems := [problem for c in like if (problem := layout_problem(facts.rules, c))]:
        return problems[0]
    return f"{said} spreads {facts.total_tokens} tokens over more ranks than there are tokens; use fewer ranks"


def smaller_placement(
    run: RunConfig, ranks: int, gpus_per_node: int, layouts: Sequence[tuple[int, Layout]], placement: Placement
) -> Placement | None:
    """The next smaller placement that these layouts go with."""
    less = next_smaller(placement, run.placement, run.fit, ranks, gpus_per_node)
    while less and any(layout_problem(rules_of(run.model.mmdit, run.engine, less), lay) for _, lay in layouts):
        less = next_smaller(less, run.placement, run.fit, ranks, gpus_per_node)
    return less
