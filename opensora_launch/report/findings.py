"""What went wrong in an attempt, each with who, why and the seconds it cost. What cannot be shown is not said.

A rank is slow when it computed longer than the others did at the same work, and the others waited for it meanwhile.
Its cause is the first that its samples show; "not known" is a cause too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from opensora_launch.plan.layout import Layout
from opensora_launch.report.accounting import Accounts, RankAccount, waited_for
from opensora_launch.report.machine import Node, RankUse, Window, gpu_uses, host_use, rank_use
from opensora_launch.telemetry.events import RankEvents
from opensora_launch.telemetry.samples import bare_uuid

LEAST_SHARE = 0.05  # of the wall time that a finding must have cost
SLOW = 1.25  # times the others' compute
SLOW_LINK = 2.5  # times the others' seconds a byte
LEAST_EXCHANGES = 8  # of a group, to judge its link
MOST = 0.5  # of what a rank lost, that a cause must explain
THROTTLED = 0.2  # of the samples
HELD_DOWN = {"hardware slowdown", "too hot (driver)", "too hot (hardware)", "power brake"}  # heat, power, a fault
SLOWER_CLOCK = 0.95
FAULTS_PER_S = 200
MEMORY_STALL = 0.05  # of the time, that tasks waited for memory


@dataclass(frozen=True)
class Finding:
    """`kind`: slow_rank, slow_link, memory, throttled, shared_gpu or gpu_error. `seconds` it cost, where known."""

    kind: str
    ranks: tuple[int, ...]
    host: str
    gpu: str | None
    cause: (
        str  # of a slow rank: more_work, slower_card, throttled, shared_gpu, starved, asleep, memory or unknown_cause
    )
    seconds: float | None
    evidence: str


@dataclass(frozen=True)
class Scene:
    """Everything known of an attempt."""

    events: Sequence[RankEvents]
    accounts: Accounts
    nodes: Sequence[Node]
    num_heads: int

    def node(self, host: str) -> Node | None:
        return next((n for n in self.nodes if n.host == host), None)

    def window(self, rank: int) -> Window | None:
        """From a rank's first denoising step to the end of its last."""
        events = next(e for e in self.events if e.meta.rank == rank)
        shift = self.accounts.shifts[events.meta.host]
        if not events.steps:
            return None
        return min(s.start_s for s in events.steps) + shift, max(s.end_s for s in events.steps) + shift


def findings(scene: Scene) -> list[Finding]:
    """The dearest first."""
    found = [*_slow_ranks(scene), *_slow_links(scene), *_machines(scene)]
    return sorted(found, key=lambda f: -(f.seconds or 0.0))


def _slow_ranks(scene: Scene) -> list[Finding]:
    accounts, ranks = scene.accounts, scene.accounts.ranks
    computing = [r for r in ranks if r.row_forwards]
    late = {w.rank: w for w in waited_for(accounts)}
    found = []
    for r in computing:
        others = [o for o in computing if o.rank != r.rank]
        if not others or r.rank not in late:
            continue
        wait = late[r.rank]
        cost = max(wait.by.values()) * wait.while_in.get("compute", 0.0) / wait.seconds
        usual = median(o.parts["compute"] for o in others)
        excess = r.parts["compute"] - usual
        if min(cost, excess) < LEAST_SHARE * accounts.wall_s or r.parts["compute"] < SLOW * usual:
            continue
        cause, evidence = _cause(scene, r, others, excess)
        times = r.parts["compute"] / usual if usual else float("inf")
        text = f"computed {r.parts['compute']:.2f} s, {times:.1f} times the others' {usual:.2f} s; {evidence}"
        found.append(Finding("slow_rank", (r.rank,), r.host, _gpu_of(scene, r), cause, cost, text))
    return found


def _gpu_of(scene: Scene, r: RankAccount) -> str | None:
    """A rank's GPU by the driver's name for it, where its node was sampled."""
    if r.device_uuid is None or not (node := scene.node(r.host)):
        return r.device_uuid
    own = bare_uuid(r.device_uuid)
    return next((gpu["uuid"] for gpu in node.found.gpus if bare_uuid(gpu["uuid"]) == own), r.device_uuid)


def _cause(scene: Scene, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> tuple[str, str]:
    """The first cause that can be shown, in words."""
    for look in (_more_work, _other_card, _gpu_cause, _cpu_cause):
        if said := look(scene, r, others, excess_s):
            return said
    return "unknown_cause", "it had the same work, and its samples do not show why"


Said = tuple[str, str] | None


def _more_work(scene: Scene, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Said:
    """Rows and heads that it was dealt, against the others'."""
    mine, usual = _share(scene, r.rank), median(_share(scene, o.rank) for o in others)
    usual_s = median(o.parts["compute"] for o in others)
    if not usual or mine < 1.1 * usual or (mine / usual - 1) * usual_s < MOST * excess_s:
        return None
    return "more_work", f"it was dealt {mine / usual:.2f} times the others' rows and heads"


def _share(scene: Scene, rank: int) -> float:
    """Row-forwards of a rank, times its part of the heads."""
    events = next(e for e in scene.events if e.meta.rank == rank)
    total = 0.0
    for step in events.steps:
        layout = Layout.parse(step.layout)
        heads = _dealt(scene.num_heads, layout.tp, rank % layout.tp)
        heads = _dealt(heads, layout.ulysses, rank // layout.tp % layout.ulysses)
        total += step.own_rows * heads / layout.ring
    return total


def _dealt(things: int, ranks: int, place: int) -> int:
    base, extra = divmod(things, ranks)
    return base + (place < extra)


def _other_card(scene: Scene, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Said:
    usual = median(o.parts["compute"] for o in others)
    names = sorted({o.device_name for o in others if o.parts["compute"] <= usual})
    if r.device_name in names:
        return None
    return "slower_card", f"it runs on {r.device_name}, faster ranks on {', '.join(names)}"


def _gpu_cause(scene: Scene, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Said:
    """Clocks are compared with those of cards of the same name."""
    window = scene.window(r.rank)
    if window is None:
        return None
    uses = {rank: use for n in scene.nodes for use in gpu_uses(n, window, scene.accounts) for rank in use["ranks"]}
    mine = uses.get(r.rank)
    if mine is None:
        return None
    like = [u for rank, u in uses.items() if rank != r.rank and u["name"] == mine["name"]]
    clocks = [u["sm_mhz_median"] for u in like if u["sm_mhz_median"]]
    reasons = {why: share for why, share in mine["throttled"].items() if share >= THROTTLED}
    slower = clocks and mine["sm_mhz_median"] and mine["sm_mhz_median"] < SLOWER_CLOCK * median(clocks)
    if reasons and (slower or (not clocks and HELD_DOWN & reasons.keys())):
        said = ", ".join(f"{why} in {share:.0%} of the samples" for why, share in reasons.items())
        at = f", {mine['sm_mhz_median']:.0f} MHz against {median(clocks):.0f}" if slower else ""
        return "throttled", f"its GPU was throttled: {said}{at}"
    if (mine["others_share"] or 0) >= MOST:
        return "shared_gpu", f"another process computed on its GPU in {mine['others_share']:.0%} of the samples"
    if slower:
        return "throttled", f"its GPU ran at {mine['sm_mhz_median']:.0f} MHz, the others at {median(clocks):.0f}"
    return None


def _cpu_cause(scene: Scene, r: RankAccount, others: Sequence[RankAccount], excess_s: float) -> Said:
    """What the main thread did: it read memory back from disk, had no core, or slept. Only where CPUs compute.

    The largest of these decides; "unknown" stays where it simply ran longer.
    """
    use = _rank_use(scene, r)
    if use is None or r.device != "cpu":
        return None
    node = scene.node(r.host)
    stall_s = (host_use(node, use.window)["memory_stall_s"] or 0.0) if node else 0.0
    if use.major_faults > FAULTS_PER_S * excess_s or stall_s > MOST * excess_s:
        return "memory", f"memory was short: {use.major_faults} pages read back from disk, {stall_s:.2f} s of stalls"
    theirs = [found for o in others if (found := _rank_use(scene, o))]
    usual_s = median(o.starved_s for o in theirs) if theirs else 0.0
    longer_s = use.ran_s - (median(o.ran_s for o in theirs) if theirs else 0.0)
    starved_s = use.starved_s - usual_s
    asleep_s = use.window[1] - use.window[0] - use.ran_s - use.starved_s - _off_cpu(r, use.window)
    if starved_s > max(longer_s, asleep_s):
        return "starved", f"for {use.starved_s:.2f} s it was ready to run and had no core, the others {usual_s:.2f} s"
    if asleep_s > max(longer_s, MOST * excess_s):
        return "asleep", f"for {asleep_s:.2f} s of it its process slept: it neither ran nor waited for a core"
    return None


def _rank_use(scene: Scene, r: RankAccount) -> RankUse | None:
    node, window = scene.node(r.host), scene.window(r.rank)
    return rank_use(node, r.rank, window) if node and window else None


def _off_cpu(r: RankAccount, window: Window) -> float:
    """Seconds of a window in which a rank has no need of a CPU: it waits or communicates."""
    resting = (p for p in r.timeline if p.part in ("waiting", "communication", "idle"))
    return sum(max(0.0, min(p.end_s, window[1]) - max(p.start_s, window[0])) for p in resting)


def _slow_links(scene: Scene) -> list[Finding]:
    """Groups of ranks whose best exchange took longer for a byte than other groups of the axis usually need.

    The best one: an exchange in which a rank lost its core says nothing of the link.
    """
    seconds: dict[tuple[str, tuple[int, ...]], list[tuple[float, int]]] = defaultdict(list)
    arrivals: dict[tuple[tuple[int, ...], int], float] = {}
    for e in scene.events:
        shift = scene.accounts.shifts[e.meta.host]
        for c in e.collectives:
            key = (c.ranks, c.sequence)
            arrivals[key] = max(arrivals.get(key, float("-inf")), c.start_s + shift)
    for e in scene.events:
        shift = scene.accounts.shifts[e.meta.host]
        for c in e.collectives:
            if c.bytes and len(c.ranks) > 1:
                begun = max(c.start_s + shift, arrivals[c.ranks, c.sequence])
                seconds[c.axis, c.ranks].append((max(0.0, c.end_s + shift - begun), c.bytes))
    rates = {group: median(s / b for s, b in found) for group, found in seconds.items()}
    found = []
    for (axis, ranks), pairs in seconds.items():
        others = [rate for (a, r), rate in rates.items() if a == axis and r != ranks and len(r) == len(ranks)]
        best = min(s / b for s, b in pairs)
        if len(pairs) < LEAST_EXCHANGES or not others or best < SLOW_LINK * (usual := median(others)) or not usual:
            continue
        lost = sum(b * (best - usual) for _, b in pairs) / len(ranks)
        if lost < LEAST_SHARE * scene.accounts.wall_s:
            continue
        hosts = sorted({r.host for r in scene.accounts.ranks if r.rank in ranks})
        text = (
            f"{axis} between ranks {', '.join(map(str, ranks))} moves {1e-6 / rates[axis, ranks]:.1f} MB/s, "
            f"between other ranks {1e-6 / usual:.1f} MB/s"
        )
        found.append(Finding("slow_link", ranks, ", ".join(hosts), None, axis, lost, text))
    return found


def _machines(scene: Scene) -> list[Finding]:
    """Of nodes and GPUs, whoever suffered."""
    found = []
    start = min(r.start_s for r in scene.accounts.ranks)
    whole = (start, start + scene.accounts.wall_s)
    for node in scene.nodes:
        use = host_use(node, whole)
        if (stall := use["memory_stall_s"] or 0.0) > MEMORY_STALL * scene.accounts.wall_s:
            text = (
                f"tasks waited {stall:.2f} s for memory; the least that was free: {_gib(use['least_available_bytes'])}"
            )
            found.append(Finding("memory", (), node.host, None, "memory", stall, text))
        said: dict[str, Finding] = {}  # by evidence: what is of a whole card is said once for all its MIG instances
        for gpu in gpu_uses(node, whole, scene.accounts):
            for f in (Finding(*row) for look in (_heat, _others, _errors) for row in look(gpu)):
                before = said.get(f.evidence)
                said[f.evidence] = replace(f, ranks=(*before.ranks, *f.ranks)) if before else f
        found += said.values()
    return found


Row = tuple[str, tuple[int, ...], str, str | None, str, float | None, str]


def _row(gpu: Mapping[str, Any], kind: str, reading: str, text: str) -> Row:
    of = " (the whole card)" if reading in gpu["of_whole_card"] else ""
    return (kind, tuple(gpu["ranks"]), gpu["host"], gpu["uuid"], kind, None, f"GPU {gpu['index']}{of} {text}")


def _heat(gpu: Mapping[str, Any]) -> list[Row]:
    """Throttling by heat, power supply or a fault. A power cap is how a card is meant to run under full load, locked
    clocks are how its owner wants it to.
    """
    reasons = {why: share for why, share in gpu["throttled"].items() if share >= THROTTLED and why in HELD_DOWN}
    if not reasons:
        return []
    said = ", ".join(f"{why} in {share:.0%} of the samples" for why, share in reasons.items())
    at = f" at {gpu['sm_mhz_median']:.0f} of {gpu['sm_mhz_max']} MHz" if gpu["sm_mhz_median"] else ""
    return [_row(gpu, "throttled", "throttled", f"was throttled: {said}{at}")]


def _others(gpu: Mapping[str, Any]) -> list[Row]:
    if (share := gpu["others_share"] or 0.0) < MOST:
        return []
    return [_row(gpu, "shared_gpu", "others_share", f"held another process in {share:.0%} of the samples")]


def _errors(gpu: Mapping[str, Any]) -> list[Row]:
    found = [_row(gpu, "gpu_error", "xids", f"reported XID {xid}") for xid in gpu["xids"]]
    if count := gpu["ecc_uncorrected"]:
        text = f"had {count:.0f} memory errors that ECC could not correct"
        found.append(_row(gpu, "gpu_error", "ecc_uncorrected", text))
    return found


def _gib(count: float | None) -> str:
    return "not known" if count is None else f"{count / 2**30:.1f} GiB"
