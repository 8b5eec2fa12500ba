"""Place the weights on a card whose rates are unknown, by its memory alone. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from opensora_launch.errors import UserError
from opensora_launch.plan.layout import Layout, Rules, layout_problem
from opensora_launch.plan.memory import GIB, USABLE, memory_of_run
from opensora_launch.plan.placement import Placement, placement_text, placements
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.config import Link, Offload


def placement_by_rule(work: Workload, layouts: Sequence[tuple[int, Layout]]) -> Placement:
    """Return the first placement that fits in the card's memory, from the most needed to the least.

    `layouts` are those of steps by their rows. Raises UserError if none fits.
    """
    limit, least = work.card.memory_gib * GIB * USABLE, (float("inf"), "")
    for placement in _ways(work, layouts):
        memory = memory_of_run(
            work.net, work.grid, work.video, layouts, gpus_per_node=work.gpus_per_node, placement=placement,
            element_bytes=work.element_bytes, engine=work.engine, nvlink=work.topology.link is Link.nvlink,
        )  # fmt: skip
        if memory.peak <= limit:
            return placement
        least = min(least, (memory.peak, placement_text(placement)))
    need = f"{least[1]}: {least[0] / GIB:.1f} GiB are needed, and a GPU has {limit / GIB:.1f} free"
    raise UserError("this run does not fit in GPU memory", [f"{need}; use more GPUs, or a smaller video"])


def _ways(work: Workload, layouts: Sequence[tuple[int, Layout]]) -> Iterator[Placement]:
    """Yield the placements that the config and the layouts allow, with as many resident blocks as possible first."""
    for placement in placements(work.placement, work.fit, work.ranks, work.gpus_per_node):
        rules = Rules(work.engine, work.net.heads, work.net.feed_forward, placement)
        if any(layout_problem(rules, layout) for _, layout in layouts):
            continue
        if placement.offload is Offload.host and work.placement.resident_blocks is None:
            yield from (replace(placement, resident_blocks=count) for count in range(work.net.blocks, 0, -1))
        yield placement
