"""Who really held up a rank that waits: where the rank that it waits for waits too, the one at the chain's end."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from opensora_launch.report.accounting import Accounts, Interval, cut


class HeldUp(NamedTuple):
    """`rank` waited because `root` was in `part` meanwhile; `axis` is that of an exchange."""

    rank: int
    root: int
    part: str
    axis: str


def root_waits(accounts: Accounts) -> Mapping[HeldUp, float]:
    """Seconds of waiting by who waited and by what the rank at the end of the chain did meanwhile."""
    timelines = {r.rank: r.timeline for r in accounts.ranks}
    found: dict[HeldUp, float] = defaultdict(float)
    for wait in (w for r in accounts.ranks for w in r.waits):
        passed = frozenset({wait.rank})
        for root, part, axis, seconds in _roots(timelines, wait.on, wait.start_s, wait.end_s, passed):
            found[HeldUp(wait.rank, root, part, axis)] += seconds
    return found


def _roots(
    timelines: Mapping[int, Sequence[Interval]], rank: int, start_s: float, end_s: float, passed: frozenset[int]
) -> Iterator[tuple[int, str, str, float]]:
    """What a rank did in a window. Where it waited, what the rank did that it waited for; nobody is asked twice."""
    for piece in cut(timelines[rank], start_s, end_s):
        on = int(piece.detail) if piece.part == "waiting" else rank
        if on != rank and on not in passed:
            yield from _roots(timelines, on, piece.start_s, piece.end_s, passed | {rank})
        else:
            part = piece.detail if piece.detail == "preview" else piece.part
            yield rank, part, piece.detail if piece.part == "communication" else "", piece.end_s - piece.start_s
