"""What one rank did, as short lists that the page can draw: its pieces and its steps.

Pieces that are finer than the page can show are merged: each stretch gets the part that filled most of it. The trace
holds them all.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from opensora_launch.report.accounting import Interval, RankAccount
from opensora_launch.telemetry.events import RankEvents

MOST_PIECES = 3000  # per rank
MOST_STEPS = 2000  # per rank
DIGITS_S = 5
EXCHANGES = ("waiting", "communication")  # parts with collectives in them


def rank_pieces(account: RankAccount, events: RankEvents | None, zero: float) -> tuple[dict[str, Any], float]:
    """Return the rank's `pieces` and `steps`, and how long a merged stretch is (0.0 if nothing is merged).

    A piece is [start, end, part, detail], and [..., axis, bytes] where that is known of the collective in it. A step is
    [start, end, number, rows]; there are none if there are too many. Times are from `zero`.
    """
    pieces, bin_s = _merged(account.timeline)
    shift = account.start_s - events.meta.start_s - zero if events else 0.0
    collectives = sorted(events.collectives, key=lambda c: c.start_s) if events and not bin_s else []
    starts = [c.start_s + shift for c in collectives]
    drawn: list[list[Any]] = []
    for p in pieces:
        begin, over = p.start_s - zero, p.end_s - zero
        cut = [round(begin, DIGITS_S), round(over, DIGITS_S), p.part, p.detail]
        first = max(0, bisect_right(starts, begin + 1e-9) - 1)  # no two collectives of a rank overlap
        inside = collectives[first : bisect_right(starts, over - 1e-9)]  # of which there may be several in a row
        exchanged = [inside[0].axis, sum(c.bytes for c in inside)] if inside and p.part in EXCHANGES else []
        drawn.append(cut + exchanged)
    steps = events.steps if events and len(events.steps) <= MOST_STEPS else ()
    return {
        "rank": account.rank,
        "host": account.host,
        "pieces": drawn,
        "steps": [
            [round(s.start_s + shift, DIGITS_S), round(s.end_s + shift, DIGITS_S), s.step, s.own_rows] for s in steps
        ],
    }, bin_s


def _merged(pieces: Sequence[Interval]) -> tuple[Sequence[Interval], float]:
    if len(pieces) <= MOST_PIECES:
        return pieces, 0.0
    start, end = pieces[0].start_s, pieces[-1].end_s
    bin_s = (end - start) / MOST_PIECES
    found: list[Interval] = []
    filled: dict[tuple[str, str], float] = defaultdict(float)
    edge = start + bin_s
    begun = start
    for piece in pieces:
        at = piece.start_s
        while at < piece.end_s:
            stop = min(piece.end_s, edge)
            filled[piece.part, piece.detail] += stop - at
            at = stop
            if at >= edge - 1e-12:
                part, detail = max(filled, key=lambda k: filled[k])
                if found and (found[-1].part, found[-1].detail) == (part, detail):
                    found[-1] = found[-1]._replace(end_s=edge)
                else:
                    found.append(Interval(begun, edge, part, detail))
                begun, edge = edge, edge + bin_s
                filled.clear()
    return found, bin_s
