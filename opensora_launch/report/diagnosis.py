"""What went wrong in an attempt: findings with who, why and the seconds lost, each shown by events or samples.

A rank is slow when it computed longer than the others did at the same work, and the others waited for it meanwhile.
Its cause is the first one that its samples show; "unknown_cause" is a cause too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from opensora_launch.plan.layout import Layout
from opensora_launch.report.accounting import Accounts, RankAccount, cut, waited_for
from opensora_launch.report.device_use import (
    HELD_DOWN,
    LEAST_SHARED,
    RankUse,
    SampledNode,
    Window,
    gpu_findings,
    gpu_uses,
    host_use,
    rank_use,
    throttle_reasons,
)
from opensora_launch.report.reported import reported_findings
from opensora_launch.report.wording import Message, message
from opensora_launch.telemetry.events import RankEvents
from opensora_launch.telemetry.samples import bare_uuid

LEAST_COST = 0.05  # of the wall time, for a finding
SLOW_COMPUTE = 1.25  # times the others' compute
SLOW_LINK = 2.5  # times the others' seconds per byte
LEAST_EXCHANGES = 8  # of a group, to judge its link
LEAST_EXPLAINED = 0.5  # of what a rank lost, for a cause
SLOWER_CLOCK = 0.95
FAULTS_PER_S = 200
MEMORY_STALL = 0.05  # of the time that tasks waited for memory


@dataclass(frozen=True)
class Evidence:
    """Everything known about an attempt."""

    events: Sequence[RankEvents]
    accounts: Accounts
    nodes: Sequence[SampledNode]
    num_heads: int

    def node(self, host: str) -> SampledNode | None:
        return next((n for n in self.nodes if n.host == host), None)

    def events_of(self, rank: int) -> RankEvents:
        return next(e for e in self.events if e.meta.rank == rank)

    def window(self, rank: int) -> Window | None:
        """The time from a rank's first denoising step to the end of its last."""
        events = self.events_of(rank)
        shift = self.accounts.shifts[events.meta.host]
        if not events.steps:
            return None
        return min(s.start_s for s in events.steps) + shift, max(s.end_s for s in events.steps) + shift

    def rank_use(self, r: RankAccount) -> RankUse | None:
        node, window = self.node(r.host), self.window(r.rank)
        return rank_use(node, r.rank, window) if node and window else None


def findings(evidence: Evidence) -> list[Message]:
    """Return slow_rank, slow_link, memory, throttled, shared_gpu and gpu_error, and what the ranks reported.

    The most costly comes first. Each has `ranks`, `host`, `gpu` (a UUID or null), `seconds` (lost; null where unknown).
    """
    found = [*_slow_ranks(evidence), *_slow_links(evidence), *_node_findings(evidence)]
    return sorted([*found, *reported_findings(evidence.events)], key=lambda f: -(f["seconds"] or 0.0))


def _slow_ranks(evidence: Evidence) -> list[Message]:
    accounts = evidence.accounts
    computing = [r for r in accounts.ranks if r.row_forwards]
    late = {w.rank: w for w in waited_for(accounts)}
    causes, unknown = (_more_work, _slower_card, _gpu_cause, _cpu_cause), message("unknown_cause")
    found = []
    for r in computing:
        others = [o for o in computing if o.rank != r.rank]
        if not others or r.rank not in late:
            continue
        wait = late[r.rank]
        cost = max(wait.by.values()) * wait.while_in.get("compute", 0.0) / wait.seconds
        usual = median(o.parts["compute"] for o in others)
        excess = r.parts["compute"] - usual
        if min(cost, excess) < LEAST_COST * accounts.wall_s or r.parts["compute"] < SLOW_COMPUTE * usual:
            continue
        uuid, name = _gpu_of(evidence, r)
        found.append(
            message(
                "slow_rank",
                ranks=[r.rank],
                host=r.host,
                gpu=uuid,
                gpu_name=name,
                seconds=cost,
                computed_s=r.parts["compute"],
                others_s=usual,
                cause=next((cause for show in causes if (cause := show(evidence, r, others, excess))), unknown),
            )
        )
    return found


def _gpu_of(evidence: Evidence, r: RankAccount) -> tuple[str | None, str | None]:
    """A rank's GPU: its UUID as the driver writes it and its name there; torch's UUID where its node has no samples."""
    if r.device_uuid is None or not (node := evidence.node(r.host)):
        return r.device_uuid, r.device_uuid
    own = bare_uuid(r.device_uuid)
    gpus = ((gpu["uuid"], f"GPU {gpu['index']}") for gpu in node.found.gpus if bare_uuid(gpu["uuid"]) == own)
    return next(gpus, (r.device_uuid, r.device_uuid))


def _more_work(evidence: Evidence, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Message | None:
    """Compare the rows and heads that the rank was given with the others'."""
    mine, usual = _share(evidence, r.rank), median(_share(evidence, o.rank) for o in others)
    usual_s = median(o.parts["compute"] for o in others)
    if not usual or mine < 1.1 * usual or (mine / usual - 1) * usual_s < LEAST_EXPLAINED * excess_s:
        return None
    return message("more_work", times=mine / usual)


def _share(evidence: Evidence, rank: int) -> float:
    """Row-forwards of a rank, times its part of the heads."""
    total = 0.0
    for step in evidence.events_of(rank).steps:
        layout = Layout.parse(step.layout)
        heads = _dealt(evidence.num_heads, layout.tp, rank % layout.tp)
        heads = _dealt(heads, layout.ulysses, rank // layout.tp % layout.ulysses)
        total += step.own_rows * heads / layout.ring
    return total


def _dealt(things: int, ranks: int, place: int) -> int:
    base, extra = divmod(things, ranks)
    return base + (place < extra)


def _slower_card(evidence: Evidence, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Message | None:
    usual = median(o.parts["compute"] for o in others)
    names = sorted({o.device_name for o in others if o.parts["compute"] <= usual})
    return None if r.device_name in names else message("slower_card", card=r.device_name, faster_cards=names)


def _gpu_cause(evidence: Evidence, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Message | None:
    """Throttling or another process. Clocks are compared with those of cards of the same name."""
    window = evidence.window(r.rank)
    if window is None:
        return None
    everywhere = (use for n in evidence.nodes for use in gpu_uses(n, window, evidence.accounts))
    uses = {rank: use for use in everywhere for rank in use["ranks"]}
    mine = uses.get(r.rank)
    if mine is None:
        return None
    alike = [u for rank, u in uses.items() if rank != r.rank and u["name"] == mine["name"]]
    clocks = [u["sm_mhz_median"] for u in alike if u["sm_mhz_median"]]
    reasons = throttle_reasons(mine)
    slower = bool(clocks and mine["sm_mhz_median"]) and mine["sm_mhz_median"] < SLOWER_CLOCK * median(clocks)
    clock, others_clock = (mine["sm_mhz_median"], median(clocks)) if slower else (None, None)
    throttled = message("gpu_throttled", reasons=reasons, sm_mhz=clock, others_sm_mhz=others_clock)
    if reasons and (slower or (not clocks and any(reason["code"] in HELD_DOWN for reason in reasons))):
        return throttled
    if (mine["others_share"] or 0) >= LEAST_SHARED:
        return message("gpu_shared", share=mine["others_share"])
    return throttled if slower else None


def _cpu_cause(evidence: Evidence, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Message | None:
    """What the main thread did: it read memory back from disk, had no core, or slept. Only where CPUs compute.

    The largest of these decides; None where the thread simply ran longer.
    """
    use = evidence.rank_use(r)
    if use is None or r.device != "cpu":
        return None
    node = evidence.node(r.host)
    stall_s = (host_use(node, use.window)["memory_stall_s"] or 0.0) if node else 0.0
    if use.major_faults > FAULTS_PER_S * excess_s or stall_s > LEAST_EXPLAINED * excess_s:
        return message("memory_short", pages=use.major_faults, stall_s=stall_s)
    theirs = [found for o in others if (found := evidence.rank_use(o))]
    usual_s = median(o.starved_s for o in theirs) if theirs else 0.0
    longer_s = use.ran_s - (median(o.ran_s for o in theirs) if theirs else 0.0)
    starved_s = use.starved_s - usual_s
    resting = (p for p in cut(r.timeline, *use.window) if p.part in ("waiting", "communication", "idle"))
    off_cpu_s = sum(p.end_s - p.start_s for p in resting)  # a rank that waits or communicates needs no CPU
    asleep_s = use.window[1] - use.window[0] - use.ran_s - use.starved_s - off_cpu_s
    if starved_s > max(longer_s, asleep_s):
        return message("starved", starved_s=use.starved_s, others_s=usual_s)
    if asleep_s > max(longer_s, LEAST_EXPLAINED * excess_s):
        return message("asleep", asleep_s=asleep_s)
    return None


def _slow_links(evidence: Evidence) -> list[Message]:
    """Find groups of ranks whose best exchange took more seconds per byte than other groups of the axis usually take.

    The best exchange counts, because one in which a rank lost its core says nothing about the link.
    """
    seconds = exchanges(evidence)
    rates = {group: median(s / b for s, b in found) for group, found in seconds.items()}
    found = []
    for (axis, ranks), pairs in seconds.items():
        others = [rate for (a, r), rate in rates.items() if a == axis and r != ranks and len(r) == len(ranks)]
        best = min(s / b for s, b in pairs)
        if len(pairs) < LEAST_EXCHANGES or not others or best < SLOW_LINK * (usual := median(others)) or not usual:
            continue
        lost = sum(b * (best - usual) for _, b in pairs) / len(ranks)
        if lost < LEAST_COST * evidence.accounts.wall_s:
            continue
        found.append(
            message(
                "slow_link",
                ranks=list(ranks),
                host=", ".join(sorted({r.host for r in evidence.accounts.ranks if r.rank in ranks})),
                gpu=None,
                seconds=lost,
                axis=axis,
                bytes_per_s=1 / rates[axis, ranks],
                others_bytes_per_s=1 / usual,
            )
        )
    return found


def exchanges(evidence: Evidence) -> Mapping[tuple[str, tuple[int, ...]], list[tuple[float, int]]]:
    """Seconds and bytes of each exchange, by axis and group, counted from the arrival of the last rank."""
    arrivals: dict[tuple[tuple[int, ...], int], float] = {}
    shifted = [(evidence.accounts.shifts[e.meta.host], c) for e in evidence.events for c in e.collectives]
    for shift, c in shifted:
        key = (c.ranks, c.sequence)
        arrivals[key] = max(arrivals.get(key, float("-inf")), c.start_s + shift)
    seconds: dict[tuple[str, tuple[int, ...]], list[tuple[float, int]]] = defaultdict(list)
    for shift, c in shifted:
        if c.bytes and len(c.ranks) > 1:
            begun = max(c.start_s + shift, arrivals[c.ranks, c.sequence])
            seconds[c.axis, c.ranks].append((max(0.0, c.end_s + shift - begun), c.bytes))
    return seconds


def _node_findings(evidence: Evidence) -> list[Message]:
    """Problems of nodes and GPUs, whoever lost time by them. What a whole card reports is said once for its parts."""
    found: list[Message] = []
    start = min(r.start_s for r in evidence.accounts.ranks)
    whole = (start, start + evidence.accounts.wall_s)
    for node in evidence.nodes:
        use = host_use(node, whole)
        if (stall := use["memory_stall_s"] or 0.0) > MEMORY_STALL * evidence.accounts.wall_s:
            least = use["least_available_bytes"]
            new = message("memory", ranks=[], host=node.host, gpu=None, seconds=stall, least_available_bytes=least)
            found.append(new)
        of_gpus: list[Message] = []
        for gpu in gpu_uses(node, whole, evidence.accounts):
            for new in gpu_findings(gpu):
                same: Message = {"ranks": [], "gpu": None}
                if before := next((f for f in of_gpus if f | same == new | same), None):
                    before["ranks"] += new["ranks"]
                else:
                    of_gpus.append(new)
        found += of_gpus
    return found
