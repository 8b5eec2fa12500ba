"""Show predictions for several counts of GPUs: what more GPUs bring."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from opensora_launch.plan.choose import Option
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import placement_text
from opensora_launch.plan.table import aligned, cost_text, cost_usd, layout_text, seconds_text, what_is_made
from opensora_launch.plan.workload import Workload

Best = tuple[Workload, Option]  # of a count: the work, and the best layout


def counts_text(found: Sequence[Best], usd_per_gpu_hour: float | None = None) -> str:
    """Return a table with one line per count: its best layout with the weights loaded, and the rent if it is known."""
    rent = usd_per_gpu_hour is not None
    heads = [
        ("GPUs", "layout", "total", "effic.", "memory", *(["rent"] if rent else []), ""),
        ("", "", "s", "", "GiB/GPU", *(["USD"] if rent else []), ""),
    ]
    lines = aligned(
        [*heads, *(_count_cells(work, option, usd_per_gpu_hour) for work, option in found)], {1, len(heads[0]) - 1}
    )
    return "\n".join(
        [what_is_made(found[0][0]), f"cards: {found[0][0].card.name}", "", *lines, "", *_notes(found, rent)]
    )


def _count_cells(work: Workload, option: Option, usd_per_gpu_hour: float | None) -> tuple[str, ...]:
    by_rows = dict(option.layouts)
    names = dict.fromkeys(layout_text(by_rows[rows]) for rows, count in sorted(work.steps, reverse=True) if count)
    return (
        count_text(work),
        ", then ".join(names),
        seconds_text(option.phases.making),
        f"{option.efficiency:.1%}",
        f"{option.memory.peak / GIB:.1f}",
        *([] if usd_per_gpu_hour is None else [cost_text(cost_usd(work, option, usd_per_gpu_hour)).split()[0]]),
        "" if option.fits else "does not fit",
    )


def count_text(work: Workload) -> str:
    """The count as `gpus=` writes it: "8", "2x8" on two nodes."""
    nodes = work.ranks // work.gpus_per_node
    return f"{nodes}x{work.gpus_per_node}" if nodes > 1 else str(work.ranks)


def _notes(found: Sequence[Best], rent: bool) -> Iterator[str]:
    for text, same in groupby(found, key=lambda one: placement_text(one[1].placement)):
        yield f"on {', '.join(count_text(work) for work, _ in same)}: {text}"
    before = sorted(one.phases.total - one.phases.making for _, one in found)
    seconds = " to ".join(dict.fromkeys(map(seconds_text, (before[0], before[-1]))))
    images = ", and the images" if found[0][0].images else ""
    yield f"before that, once: weights from disk and text{images}, {seconds} s{', which the rent includes' * rent}"
    yield "predicted, not measured: docs/plan.md explains how, docs/prediction.md how well"
