"""Step times of an attempt, from the first rank that begins a step to the last rank that ends it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from opensora_launch.report.accounting import RankAccount
from opensora_launch.telemetry.events import RankEvents


@dataclass(frozen=True)
class StepTimes:
    """The steps with one number of rows in one layout; seconds."""

    rows: int
    layout: str
    count: int
    median_s: float
    min_s: float
    max_s: float


def step_times(events: Sequence[RankEvents], accounts: Sequence[RankAccount]) -> tuple[StepTimes, ...]:
    """Return one entry per number of rows and layout. `accounts` give the common clock."""
    shifts = {a.rank: a.start_s - e.meta.start_s for a in accounts for e in events if e.meta.rank == a.rank}
    begun: dict[tuple[str, int, int, str], list[tuple[float, float]]] = defaultdict(list)
    for rank in events:
        for s in rank.steps:
            shift = shifts[rank.meta.rank]
            begun[s.video, s.step, s.rows, s.layout].append((s.start_s + shift, s.end_s + shift))
    durations: dict[tuple[int, str], list[float]] = defaultdict(list)
    for (_, _, rows, layout), times in begun.items():
        durations[rows, layout].append(max(end for _, end in times) - min(start for start, _ in times))
    return tuple(
        StepTimes(rows, layout, len(found), median(found), min(found), max(found))
        for (rows, layout), found in sorted(durations.items(), reverse=True)
    )


def count_row_forwards(attempts: Sequence[Sequence[RankEvents]]) -> int:
    """Count the computed row-forwards: each step's rows once, however many ranks shared them."""
    return sum(sum({(s.video, s.step): s.rows for rank in events for s in rank.steps}.values()) for events in attempts)
