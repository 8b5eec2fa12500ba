"""Which rank causes a stall: pure functions of the ranks' last heartbeats, and the words for a rank and its place.

A rank that waits is a victim, and the rank that it waits for may be waiting too. So the verdict follows the waiting
from rank to rank, until it reaches one that is dead, one that is alive outside a collective, or a circle.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Ten missed heartbeats make a rank the suspect of a stall. Whether a rank is alive is another question, with more
# patience: runs/alive.py.
SILENT_S = 5.0


class Position(NamedTuple):
    axis: str
    ranks: tuple[int, ...]
    sequence: int


@dataclass(frozen=True)
class Beat:
    """One heartbeat. `collective`, `ranks` and `sequence` describe the last collective; `inside`: it is not over."""

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
    loaded_bytes: int = 0  # weights that this rank has read; all that it reads; since when
    load_bytes: int = 0
    load_since_s: float = 0.0
    at_once: int = 1  # videos in the current batch; `video` is the first of them
    started: int = 0  # when the process began, in clock ticks: a later process with its id has another
    images: bool = False  # at work on first frames; `video` and the counts are of images then
    problem: str | None = None  # the last error of the heartbeat itself, which goes on

    @property
    def makes(self) -> str:
        """What the rank makes now."""
        return "image" if self.images else "video"


@dataclass(frozen=True)
class Verdict:
    """Which rank, why, and for how long it has not moved: infinite for a rank that cannot move any more.

    `rank` is None where no single rank is at fault: ranks wait for each other in different collectives, or all are in
    the same one, and it does not end.
    """

    rank: int | None
    message: str
    stalled_s: float


def find_guilty(
    beats: Sequence[Beat], now: float, me: int, *, silent_s: float = SILENT_S, gone: Collection[int] = ()
) -> Verdict:
    """The verdict of rank `me`, which makes no progress inside a collective. `now` and all beats have its time (Moves).

    `gone` are ranks whose process is known to have ended without a last heartbeat.
    """
    by_rank = {b.rank: b for b in beats}
    running = [b for b in beats if b.state == "running" and b.rank != me]
    if ended := oldest([b for b in running if b.rank in gone]):
        return Verdict(ended.rank, gone_message(ended), math.inf)
    if failed := oldest([b for b in beats if b.state == "failed" and b.rank != me]):
        return Verdict(failed.rank, f"{name_of(failed)} has failed; {last_seen(failed)}", math.inf)
    if silent := longest_silent(running, now, silent_s):
        return Verdict(silent.rank, silence_message(silent, now), math.inf)
    return _follow(by_rank, by_rank[me], now)


def oldest(beats: Sequence[Beat]) -> Beat | None:
    return min(beats, key=lambda beat: beat.time_s, default=None)


def longest_silent(beats: Sequence[Beat], now: float, silent_s: float) -> Beat | None:
    """The running rank whose heartbeat stopped first, if that is more than `silent_s` ago."""
    return oldest([b for b in beats if b.state == "running" and now - b.time_s > silent_s])


def gone_message(beat: Beat) -> str:
    return f"{name_of(beat)} ended without an error message: killed, or out of memory; {last_seen(beat)}"


def silence_message(beat: Beat, now: float) -> str:
    return f"{name_of(beat)} has been silent for {_ago(now, beat.time_s)}; {last_seen(beat)}"


def name_of(beat: Beat) -> str:
    return f"rank {beat.rank} on host {beat.host} (pid {beat.pid})"


def last_seen(beat: Beat) -> str:
    """Where a rank was at its last heartbeat."""
    place = f"phase {beat.phase}" + (f", {beat.makes} {beat.video}" if beat.video else "")
    if beat.step is not None:
        place += f", step {beat.step}" + (f" of {beat.steps}" if beat.steps else "")
    if beat.collective is None:
        return f"last seen in {place}, before any collective"
    return f"last seen in {place}, {'' if beat.inside else 'after '}collective {_collective(beat)}"


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
    text = f"rank {rank} has no heartbeat: it never started, or its host does not see the run's folder"
    return Verdict(rank, f"{text}; {name_of(waiting)} waits for it, {last_seen(waiting)}", math.inf)


def _together(one: Beat, other: Beat) -> bool:
    """Whether both are in the same collective."""
    return one.inside and other.inside and (one.ranks, one.sequence) == (other.ranks, other.sequence)


def _link(together: Sequence[Beat], now: float) -> Verdict:
    beat = max(together, key=lambda b: b.progress_s)  # the last to arrive
    name = _collective(beat)
    text = f"{_ranks(beat.ranks)} are all in collective {name}, which does not end: the link between them hangs"
    return Verdict(None, f"{text}; {last_seen(beat)}", now - beat.progress_s)


def _outside(beat: Beat, now: float) -> Verdict:
    if beat.state == "done":
        return Verdict(beat.rank, f"{name_of(beat)} has ended, but others wait for it; {last_seen(beat)}", math.inf)
    text = f"{name_of(beat)} is alive but has not moved for {_ago(now, beat.progress_s)}; {last_seen(beat)}"
    return Verdict(beat.rank, text, now - beat.progress_s)


def _knot(knot: Sequence[Beat], now: float) -> Verdict:
    """Ranks that wait for each other. They are stalled for as long as the one that moved last."""
    stalled_s = min(now - b.progress_s for b in knot)
    if len({b.ranks for b in knot}) == 1:
        last = min(knot, key=lambda b: b.sequence)
        text = f"{name_of(last)} is behind the others and has not moved for {_ago(now, last.progress_s)}"
        return Verdict(last.rank, f"{text}; {last_seen(last)}", stalled_s)
    each = "; ".join(
        f"{name_of(b)} in {_collective(b)} of {_ranks(b.ranks)}" for b in sorted(knot, key=lambda b: b.rank)
    )
    return Verdict(None, f"ranks wait for each other in different collectives: {each}", stalled_s)


def _collective(beat: Beat) -> str:
    return f"'{beat.collective}' (#{beat.sequence})"


def _ranks(ranks: Sequence[int]) -> str:
    return "ranks " + ", ".join(map(str, ranks))


def _ago(now: float, then: float) -> str:
    return f"{now - then:.0f} s"
