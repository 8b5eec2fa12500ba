"""Step times of an attempt, from the first rank that begins a step to the last rank that ends it."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from opensora_launch.report.accounting import RankAccount
from opensora_launch.telemetry.events import RankEvents


def step_times(events: Sequence[RankEvents], accounts: Sequence[RankAccount]) -> list[dict[str, Any]]:
    """Return one entry per number of rows and layout, as the report says it. `accounts` give the common clock."""
    shifts = {a.rank: a.start_s - e.meta.start_s for a in accounts for e in events if e.meta.rank == a.rank}
    begun: dict[tuple[str, int, int, str], list[tuple[float, float]]] = defaultdict(list)
    for rank in events:
        for s in rank.steps:
            shift = shifts[rank.meta.rank]
            begun[s.video, s.step, s.rows, s.layout].append((s.start_s + shift, s.end_s + shift))
    durations: dict[tuple[int, str], list[float]] = defaultdict(list)
    for (_, _, rows, layout), times in begun.items():
        durations[rows, layout].append(max(end for _, end in times) - min(start for start, _ in times))
    return [
        {
            "rows": rows,
            "layout": layout,
            "count": len(found),
            "median_s": median(found),
            "min_s": min(found),
            "max_s": max(found),
        }
        for (rows, layout), found in sorted(durations.items(), reverse=True)
    ]


def count_row_forwards(attempts: Sequence[Sequence[RankEvents]]) -> int:
    """Count the computed row-forwards: each step's rows once, however many ranks shared them."""
    return sum(sum({(s.video, s.step): s.rows for rank in events for s in rank.steps}.values()) for events in attempts)
