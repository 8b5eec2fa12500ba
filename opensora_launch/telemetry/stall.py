"""Who is guilty of a stall: a pure function of the ranks' last heartbeats.

The rank that waits is the victim, and the one it waits for may be waiting too. So the verdict follows the waiting from
rank to rank until it comes to one that is dead, or alive and not in a collective, or to a knot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SILENT_S = 5.0  # ten beats missed. Clocks of hosts must agree this well, as they do under NTP


class Position(NamedTuple):
    axis: str
    ranks: tuple[int, ...]
    sequence: int


@dataclass(frozen=True)
class Beat:
    """One heartbeat. `collective`, `ranks` and `sequence` are of the last collective, `inside` if it is not over."""

    rank: int
    host: str
    pid: int
    time_s: float
    state: str  # "running", "done", "failed" or "preempted"
    phase: str
    video: str | None = None
    step: int | None = None
    steps: int | None = None
    videos_done: int = 0
    videos: int = 0
    collective: str | None = None
    ranks: tuple[int, ...] = ()
    sequence: int = 0
    inside: bool = False
    progress_s: float = 0.0  # when anything but time_s last changed
    loaded_bytes: int = 0  # of weights that this rank reads: what has come, all of it, since when
    load_bytes: int = 0
    load_since_s: float = 0.0
    at_once: int = 1  # videos in the present batch, which `video` is the first of


@dataclass(frozen=True)
class Verdict:
    """Who, why, and for how long it has not moved: infinite for a rank that cannot move any more.

    kind: missing (no heartbeat was ever seen), failed, silent (its process is stopped or its host is gone), done (it
    ended while others wait), outside (alive, not in a collective), behind (in an earlier one), mismatch (ranks wait for
    each other in different collectives) or link (all are in the same one, and it does not end). rank is None for the
    last two.
    """

    rank: int | None
    kind: str
    message: str
    stalled_s: float


def find_guilty(beats: Sequence[Beat], now: float, me: int, *, silent_s: float = SILENT_S) -> Verdict:
    """The verdict of rank `me`, which is inside a collective and does not get on. `now` is the epoch's."""
    by_rank = {b.rank: b for b in beats}
    mine = by_rank[me]
    running = [b for b in beats if b.state == "running" and b.rank != me]
    if failed := [b for b in beats if b.state == "failed" and b.rank != me]:
        first = min(failed, key=lambda b: b.time_s)
        return Verdict(first.rank, "failed", f"{_who(first)} has failed; {_where(first)}", math.inf)
    if silent := [b for b in running if now - b.time_s > silent_s]:
        oldest = min(silent, key=lambda b: b.time_s)
        gone = f"{_who(oldest)} has been silent for {_ago(now, oldest.time_s)}; {_where(oldest)}"
        return Verdict(oldest.rank, "silent", gone, math.inf)
    return _follow(by_rank, mine, now)


def _follow(by_rank: Mapping[int, Beat], mine: Beat, now: float) -> Verdict:
    chain = [mine]
    while True:
        waiting = chain[-1]
        if absent := [r for r in waiting.ranks if r not in by_rank]:
            return _missing(absent[0], waiting)
        others = [by_rank[r] for r in waiting.ranks if r != waiting.rank]
        awaited = [b for b in others if not _together(b, waiting)]
        if not awaited:
            return _link([waiting, *others], now)
        if free := [b for b in awaited if not b.inside]:
            return _outside(min(free, key=lambda b: b.progress_s), now)
        next_one = min(awaited, key=lambda b: b.progress_s)
        if next_one in chain:
            return _knot(chain[chain.index(next_one) :], now)
        chain.append(next_one)


def _missing(rank: int, waiting: Beat) -> Verdict:
    text = f"rank {rank} has no heartbeat: it never came up, or its host does not see the run directory"
    return Verdict(rank, "missing", f"{text}; {_who(waiting)} waits for it, {_where(waiting)}", math.inf)


def _together(one: Beat, other: Beat) -> bool:
    """Are both in the same collective?"""
    return one.inside and other.inside and (one.ranks, one.sequence) == (other.ranks, other.sequence)


def _link(together: Sequence[Beat], now: float) -> Verdict:
    beat = max(together, key=lambda b: b.progress_s)  # the last that came
    text = f"{_ranks(beat.ranks)} are all in collective {_name(beat)} and it does not end: the link between them hangs"
    return Verdict(None, "link", f"{text}; {_where(beat)}", now - beat.progress_s)


def _outside(beat: Beat, now: float) -> Verdict:
    if beat.state == "done":
        return Verdict(beat.rank, "done", f"{_who(beat)} has ended while others wait for it; {_where(beat)}", math.inf)
    text = f"{_who(beat)} lives but has not moved for {_ago(now, beat.progress_s)}; {_where(beat)}"
    return Verdict(beat.rank, "outside", text, now - beat.progress_s)


def _knot(knot: Sequence[Beat], now: float) -> Verdict:
    """Ranks that wait for each other; the least time that any of them has not moved is the knot's."""
    stalled_s = min(now - b.progress_s for b in knot)
    if len({b.ranks for b in knot}) == 1:
        last = min(knot, key=lambda b: b.sequence)
        text = f"{_who(last)} is behind the others and has not moved for {_ago(now, last.progress_s)}; {_where(last)}"
        return Verdict(last.rank, "behind", text, stalled_s)
    each = "; ".join(f"{_who(b)} in {_name(b)} of {_ranks(b.ranks)}" for b in sorted(knot, key=lambda b: b.rank))
    return Verdict(None, "mismatch", f"ranks wait for each other in different collectives: {each}", stalled_s)


def _who(beat: Beat) -> str:
    return f"rank {beat.rank} on host {beat.host} (pid {beat.pid})"


def _where(beat: Beat) -> str:
    of_video = f" of {beat.video}" if beat.video else ""
    place = f"step {beat.step}{of_video}" if beat.step is not None else f"phase {beat.phase}{of_video}"
    if beat.collective is None:
        return f"last seen in {place}, before any collective"
    return f"last seen in {place}, {'' if beat.inside else 'after '}collective {_name(beat)}"


def _name(beat: Beat) -> str:
    return f"'{beat.collective}' (#{beat.sequence})"


def _ranks(ranks: Sequence[int]) -> str:
    return "ranks " + ", ".join(map(str, ranks))


def _ago(now: float, then: float) -> str:
    return f"{now - then:.0f} s"
