"""What a user waited for, from the command line to the report: before the ranks recorded, while they did, and after."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from opensora_launch.report.accounting import Accounts
from opensora_launch.report.run_files import RecordedAttempt
from opensora_launch.telemetry.events import PHASES, RankEvents

WORK_PARTS = (*PHASES, "other")


def whole_wait(attempts: Sequence[RecordedAttempt], accounts: Accounts | None) -> dict[str, Any] | None:
    """Return the seconds of each part of the wait for the last attempt, and their sum `total_s`.

    `accounts` are those of the last attempt. None if nobody recorded when it was asked for, or if it worked beside
    other attempts of the same command, as tasks of an array do.
    """
    last = attempts[-1] if attempts else None
    if last is None or accounts is None or last.waited is None or last.waited.begun_epoch_s is None:
        return None
    waited, begun = last.waited, last.waited.begun_epoch_s
    of_command = [a for a in attempts if a.waited and a.waited.asked_epoch_s == waited.asked_epoch_s]
    earlier = [e for a in of_command[:-1] for e in a.events]
    if any(e.meta.start_epoch_s + e.end_s - e.meta.start_s > begun for e in earlier):
        return None
    first = of_command[0].waited
    first_begun = first.begun_epoch_s if first and first.begun_epoch_s else begun
    queued = waited.submitted_epoch_s
    started = min(e.meta.start_epoch_s for e in last.events)
    parts = {
        "queue": None if queued is None else first_begun - queued,
        "earlier": begun - first_begun if len(of_command) > 1 else None,
        "start": (queued or first_begun) - waited.asked_epoch_s + started - begun,
        **job_phases(last.events, accounts),
        "end": None if waited.done_epoch_s is None else waited.done_epoch_s - started - accounts.wall_s,
    }
    known = {part: max(0.0, seconds) for part, seconds in parts.items() if seconds is not None}
    return {"total_s": sum(known.values()), "parts": known}


def job_phases(events: Sequence[RankEvents], accounts: Accounts) -> Mapping[str, float]:
    """Divide the wall time of all ranks into phases: each moment belongs to the phase that most ranks are in.

    Ranks in no phase do not count; moments in which no rank is in one are `other`.
    """
    starts = {r.rank: r.start_s for r in accounts.ranks}
    borders = []
    for e in events:
        shift = starts[e.meta.rank] - e.meta.start_s
        for span in e.spans:
            borders += [(span.start_s + shift, 1, span.phase), (span.end_s + shift, -1, span.phase)]
    found = dict.fromkeys(WORK_PARTS, 0.0)
    ranks: Counter[str] = Counter()
    at = min(starts.values())
    for when, change, phase in sorted(borders):
        most = max(PHASES, key=lambda p: ranks[p])
        found[most if ranks[most] else "other"] += when - at
        ranks[phase] += change
        at = when
    found["other"] += max(r.end_s for r in accounts.ranks) - at
    return found
