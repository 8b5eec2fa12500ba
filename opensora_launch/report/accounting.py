"""Divide each rank's wall time into parts that add up to it: every moment belongs to exactly one part.

A pure function of the ranks' events. A moment belongs to the innermost block that holds it: a collective in a kernel in
a block of the network in a step in a phase. In a collective a rank waits until the last rank of its group arrives
(`waiting`); the rest is `communication`. Steps in which a rank has no row are `idle` as a whole. Time outside all
phases is `other`, and so are time in the denoise phase outside its steps and previews.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

from opensora_launch.report.wording import Message, message
from opensora_launch.telemetry.events import IMAGE, Collective, RankEvents

WALL_PARTS = (
    "setup", "load", "text", "compile", "image", "compute", "communication", "waiting", "idle", "vae", "save", "other",
)  # fmt: skip
COMPUTE_KINDS = ("attention", "double", "single", "other")  # other: in a step, outside the network's blocks
SAME_HOST_S = 0.5  # clocks that differ by more are not of one host


class Interval(NamedTuple):
    """`detail`: the kind of compute, the axis of communication, the rank that is waited for, or "preview"."""

    start_s: float
    end_s: float
    part: str
    detail: str = ""


class Wait(NamedTuple):
    """`rank` waited for rank `on`, on the common clock."""

    rank: int
    on: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class RankAccount:
    """One rank of one attempt. Times are on the clock common to the attempt's ranks; `parts` add up to `wall_s`."""

    rank: int
    host: str
    device: str  # "cpu" or "cuda"
    device_name: str
    start_s: float
    end_s: float
    parts: Mapping[str, float]
    communication_by_axis: Mapping[str, float]
    compute_by_kind: Mapping[str, float]
    previews_s: float  # a part of `other`
    bytes_by_axis: Mapping[str, int]  # sent
    device_uuid: str | None
    timeline: tuple[Interval, ...]  # without gaps from start_s to end_s
    waits: tuple[Wait, ...]
    denoise_s: float  # all of its denoise phases
    image_s: float  # its image phase
    row_forwards: int
    peak_memory_bytes: int | None
    set_aside_bytes: int | None
    complete: bool

    @property
    def wall_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Accounts:
    """All ranks of an attempt that left events, by rank, and what could not be determined."""

    ranks: tuple[RankAccount, ...]
    unknown: tuple[Message, ...]
    clock_error_s: float | None  # how far the hosts' clocks may be apart; None if unknown
    shifts: Mapping[str, float]  # host -> seconds to add to its times

    @property
    def wall_s(self) -> float:
        """From the first rank's start to the last rank's end."""
        return max(r.end_s for r in self.ranks) - min(r.start_s for r in self.ranks)

    @property
    def all_ranks_s(self) -> float:
        """The wall time of all ranks together, also where a rank started later or ended earlier."""
        return self.wall_s * len(self.ranks)


Arrivals = dict[tuple[tuple[int, ...], int], dict[int, tuple[float, str]]]  # each rank's moment and axis


def account(ranks: Sequence[RankEvents]) -> Accounts:
    """Account for one attempt. `ranks` are those that left events, at least one."""
    shifts, clock_error_s, unknown = _common_clock(ranks)
    arrivals: Arrivals = defaultdict(dict)
    for events in ranks:
        for c in events.collectives:
            arrivals[c.ranks, c.sequence][events.meta.rank] = (c.start_s + shifts[events.meta.rank], c.axis)
    by_rank = sorted(ranks, key=lambda e: e.meta.rank)
    accounts = tuple(_account_one(events, shifts[events.meta.rank], arrivals) for events in by_rank)
    here = {events.meta.rank for events in ranks}
    if any(not here.issuperset(group) for group, _ in arrivals):
        unknown.append(message("waits_for_missing_ranks"))
    if any(len({axis for _, axis in came.values()}) > 1 for came in arrivals.values()):
        unknown.append(message("collectives_differ"))
    hosts = {events.meta.host: shifts[events.meta.rank] for events in ranks}
    return Accounts(accounts, tuple(unknown), clock_error_s, hosts)


def _common_clock(ranks: Iterable[RankEvents]) -> tuple[dict[int, float], float | None, list[Message]]:
    """Return the seconds to add to each rank's times, their error, and what is unknown.

    Ranks of one host share a clock. Hosts are aligned by the offsets that they measured over the process group, or
    else by their wall clocks.
    """
    epochs: dict[str, dict[int, float]] = defaultdict(dict)
    offsets: dict[str, tuple[float, float]] = {}
    for events in ranks:
        meta = events.meta
        epochs[meta.host][meta.rank] = meta.start_epoch_s - meta.start_s
        if meta.clock_offset_s is not None:
            later = events.end.clock_offset_s if events.end else None
            moved = abs((meta.clock_offset_s if later is None else later) - meta.clock_offset_s)
            offsets[meta.host] = (meta.clock_offset_s, (meta.clock_offset_error_s or 0.0) + moved)
    unknown: list[Message] = []
    measured = offsets.keys() >= epochs.keys()
    error_s: float | None = max((error for _, error in offsets.values()), default=0.0) if measured else 0.0
    if len(epochs) > 1 and not measured:
        error_s = None
        unknown.append(message("wall_clocks"))
    shifts: dict[int, float] = {}
    zero = min(min(found.values()) for found in epochs.values())  # small numbers keep their digits
    for host, found in epochs.items():
        if max(found.values()) - min(found.values()) < SAME_HOST_S:
            shift = offsets[host][0] if measured and len(epochs) > 1 else min(found.values()) - zero
            shifts |= dict.fromkeys(found, shift)
            continue
        error_s = None
        unknown.append(message("host_clocks_differ", host=host))
        shifts |= {rank: epoch - zero for rank, epoch in found.items()}
    return shifts, error_s, unknown


def _account_one(events: RankEvents, shift: float, arrivals: Arrivals) -> RankAccount:
    meta = events.meta
    start, end = meta.start_s + shift, events.end_s + shift
    phases = [Interval(s.start_s + shift, s.end_s + shift, s.phase) for s in events.spans]
    steps = [Interval(s.start_s + shift, s.end_s + shift, "compute" if s.own_rows else "idle") for s in events.steps]
    work = [Interval(w.start_s + shift, w.end_s + shift, "compute", w.part) for w in events.work]
    kernels = [w for w in work if w.detail == "attention"]
    blocks = [w for w in work if w.detail != "attention"]
    inner: list[Interval] = []
    for c in events.collectives:
        begin, over = c.start_s + shift, c.end_s + shift
        on, latest = _last_to_come(meta.rank, c, arrivals[c.ranks, c.sequence])
        ready = min(max(latest, begin), over)
        inner += [Interval(begin, ready, "waiting", str(on)), Interval(ready, over, "communication", c.axis)]
    timeline = _timeline((start, end), phases, steps, blocks, kernels, inner)
    parts = dict.fromkeys(WALL_PARTS, 0.0)
    details: dict[str, dict[str, float]] = {part: defaultdict(float) for part in WALL_PARTS}
    for piece in timeline:
        parts[piece.part] += piece.end_s - piece.start_s
        details[piece.part][piece.detail] += piece.end_s - piece.start_s
    sent: dict[str, int] = defaultdict(int)
    for c in events.collectives:
        sent[c.axis] += c.bytes
    return RankAccount(
        rank=meta.rank,
        host=meta.host,
        device=meta.device,
        device_name=meta.device_name,
        start_s=start,
        end_s=end,
        parts=parts,
        communication_by_axis=dict(details["communication"]),
        compute_by_kind={kind: details["compute"][kind] for kind in COMPUTE_KINDS} if work else {},
        previews_s=details["other"]["preview"],
        bytes_by_axis=dict(sent),
        device_uuid=meta.device_uuid,
        timeline=timeline,
        waits=tuple(Wait(meta.rank, int(p.detail), p.start_s, p.end_s) for p in timeline if p.part == "waiting"),
        denoise_s=_seconds_in("denoise", events),
        image_s=_seconds_in(IMAGE, events),
        row_forwards=sum(s.own_rows for s in events.steps),
        peak_memory_bytes=events.end.peak_memory_bytes if events.end else None,
        set_aside_bytes=events.end.set_aside_bytes if events.end else None,
        complete=events.end is not None,
    )


def _seconds_in(phase: str, events: RankEvents) -> float:
    return sum((span.end_s - span.start_s for span in events.spans if span.phase == phase), 0.0)


def _last_to_come(rank: int, c: Collective, came: Mapping[int, tuple[float, str]]) -> tuple[int, float]:
    """Which rank of the group arrived last, and when; `rank` itself where the ranks disagree on the collective."""
    if len({axis for _, axis in came.values()}) > 1:
        return rank, came[rank][0]
    last = max(came, key=lambda r: came[r][0])
    return last, came[last][0]


def _timeline(whole: tuple[float, float], *layers: Sequence[Interval]) -> tuple[Interval, ...]:
    """Cut [start, end) at every border and give each piece to the innermost block that holds it.

    `layers` begin with the outermost: phases, steps, the network's blocks, its kernels, collectives.
    """
    start, end = whole
    ordered = [_in_order(layer, start, end) for layer in layers]
    borders = sorted({start, end} | {t for layer in ordered for block in layer for t in block[:2]})
    at = [0] * len(ordered)
    pieces: list[Interval] = []
    for begin, over in pairwise(borders):
        holding: list[Interval | None] = []
        for n, layer in enumerate(ordered):
            while at[n] < len(layer) and layer[at[n]].end_s <= begin:
                at[n] += 1
            block = layer[at[n]] if at[n] < len(layer) else None
            holding.append(block if block and block.start_s <= begin else None)
        part, detail = _part(holding)
        if pieces and (pieces[-1].part, pieces[-1].detail) == (part, detail):
            pieces[-1] = pieces[-1]._replace(end_s=over)
        else:
            pieces.append(Interval(begin, over, part, detail))
    return tuple(pieces)


def _part(holding: Sequence[Interval | None]) -> tuple[str, str]:
    phase, step, block, kernel, inner = holding
    if step and step.part == "idle":
        return "idle", ""
    if inner:
        return inner.part, inner.detail
    if step:
        work = kernel or block
        return "compute", work.detail if work else "other"
    if block and block.detail == "preview":
        return "other", "preview"
    return ("other", "") if phase is None or phase.part == "denoise" else (phase.part, "")


def _in_order(blocks: Iterable[Interval], start: float, end: float) -> list[Interval]:
    """Sort one layer's blocks and cut them to [start, end]; of two that overlap, the second starts later."""
    found: list[Interval] = []
    for block in sorted(blocks):
        begin = max(block.start_s, found[-1].end_s if found else start)
        over = min(block.end_s, end)
        if over > begin:
            found.append(block._replace(start_s=begin, end_s=over))
    return found


@dataclass(frozen=True)
class WaitedFor:
    """How long others waited for `rank`: seconds by waiting rank, and by the part that `rank` was in meanwhile."""

    rank: int
    seconds: float
    by: Mapping[int, float]
    while_in: Mapping[str, float]


def cut(timeline: Sequence[Interval], start_s: float, end_s: float) -> list[Interval]:
    """Cut a timeline to a window. What the window has before the timeline's start is a last piece, `not_started`."""
    begun = bisect_right(timeline, start_s, key=lambda piece: piece.end_s)
    pieces: list[Interval] = []
    for piece in islice(timeline, begun, None):
        if piece.start_s >= end_s:
            break
        pieces.append(piece._replace(start_s=max(piece.start_s, start_s), end_s=min(piece.end_s, end_s)))
    before_s = end_s - start_s - sum(piece.end_s - piece.start_s for piece in pieces)
    return [*pieces, Interval(start_s, start_s + before_s, "not_started")] if before_s > 1e-9 else pieces


def waited_for(accounts: Accounts) -> tuple[WaitedFor, ...]:
    """Return the ranks that others waited for, the longest wait first."""
    by: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    doing: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    timelines = {r.rank: r.timeline for r in accounts.ranks}
    for wait in (w for r in accounts.ranks for w in r.waits):
        by[wait.on][wait.rank] += wait.end_s - wait.start_s
        for piece in cut(timelines[wait.on], wait.start_s, wait.end_s):
            doing[wait.on][piece.part] += piece.end_s - piece.start_s
    found = [WaitedFor(rank, sum(who.values()), dict(who), dict(doing[rank])) for rank, who in by.items()]
    return tuple(sorted(found, key=lambda w: (-w.seconds, w.rank)))
