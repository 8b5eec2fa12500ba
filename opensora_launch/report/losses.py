"""Where the time of all ranks was lost in an attempt, and the verdict: the largest loss, its owner and its cause.

Findings compare ranks with one another, so they see nothing where all ranks lose alike. Losses are absolute: seconds of
all ranks together, as a share of the ranks' number times the wall time. Compute, text, images, VAE and save are work. A
core that was missing, or a clock that was held down, takes time within the work, so these losses may overlap with
others. What the other ranks lose because one had no core counts as a loss by missing cores, not as waiting or exchange.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from opensora_launch.report.device_use import HELD_DOWN, gpu_uses, rank_use
from opensora_launch.report.diagnosis import Evidence, exchanges
from opensora_launch.report.root_waits import HeldUp, root_waits
from opensora_launch.report.wording import Message, message

LEAST_LOSS = 0.05  # of all ranks' time, for a verdict
OWNED = 0.8  # of a loss: the fewest ranks that caused so much of it own it
MOST_OWNERS = 3  # of a wait; with more, the ranks waited for one another in turn

STANDSTILL = 10.0  # times the usual seconds of an exchange

Stalled = Mapping[tuple[str, int], float]

HELD_UP = message("doing_exchange")
DOING = {
    "setup": message("doing_setup"),
    "load": message("doing_load"),
    "text": message("doing_text"),
    "compile": message("doing_compile"),
    "image": message("doing_image"),
    "compute": message("doing_compute"),
    "communication": HELD_UP,
    "waiting": HELD_UP,
    "idle": HELD_UP,
    "vae": message("doing_vae"),
    "save": message("doing_save"),
    "other": message("doing_other"),
    "preview": message("doing_preview"),
    "not_started": message("doing_not_started"),
}
LOST_PARTS = {
    "idle": message("lost_idle"),
    "load": message("lost_load"),
    "compile": message("lost_compile"),
    "setup": message("lost_setup"),
    "other": message("lost_other"),
    "preview": message("lost_preview"),
}


def losses(evidence: Evidence, found: Sequence[Message]) -> list[Message]:
    """Return every loss, the largest first, with `ranks`, `seconds` of all ranks together and their `share`.

    `found` are the attempt's findings: they give a loss its cause where they know it.
    """
    held, stalled = root_waits(evidence.accounts), _stalled(evidence, found)
    made = [*_waits(held, stalled, evidence.accounts.all_ranks_s, found), *_parts(evidence, held, stalled, found)]
    made += [*_starved(evidence, made), *_held_down(evidence)]
    return sorted((loss for loss in made if loss["seconds"] > 0), key=lambda loss: -loss["seconds"])


def verdict(lost: Sequence[Message]) -> Message:
    """The largest loss and the one after it, or that each is below 5%."""
    large = [loss for loss in lost if loss["share"] >= LEAST_LOSS]
    return message("verdict_lost", largest=large[0], next=large[1:2]) if large else message("verdict_none")


def _waits(
    held: Mapping[HeldUp, float], stalled: Stalled, whole_s: float, found: Sequence[Message]
) -> Iterator[Message]:
    """Waiting in collectives, by what the rank that was waited for did meanwhile."""
    slow = _slow(found)
    seconds: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    waiting: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for wait, waited_s in held.items():
        if _by_link(wait, found):
            continue
        # A slow rank is also slow to leave an exchange that the others have left.
        own = "compute" if wait.part == "communication" and wait.root in slow else wait.part
        seconds[DOING[own]["code"]][wait.root] += waited_s
        waiting[DOING[own]["code"]][wait.root].add(wait.rank)
    for (_, sleeper), stalled_s in stalled.items():
        seconds[DOING["compute"]["code"]][sleeper] += stalled_s
    for what in {doing["code"]: doing for doing in DOING.values()}.values():
        if not (by_owner := seconds[what["code"]]):
            continue
        lost_s, owners = sum(by_owner.values()), _owners(by_owner)
        share = lost_s / whole_s
        if len(owners) > MOST_OWNERS:
            yield message("loss_in_turn", ranks=sorted(by_owner), doing=what, seconds=lost_s, share=share)
            continue
        others = sorted({rank for owner in owners for rank in waiting[what["code"]][owner]})
        cause = slow.get(owners[0]) if what == DOING["compute"] else None
        yield message("loss_wait", ranks=owners, doing=what, waiting=others, cause=cause, seconds=lost_s, share=share)


def _stalled(evidence: Evidence, found: Sequence[Message]) -> Stalled:
    """Seconds of exchanges that stood still because a rank slept, by axis and sleeper.

    A process that sleeps while it computes also sleeps in exchanges, and these then take many times as long as usual.
    """
    sleepers = {rank for rank, cause in _slow(found).items() if cause["code"] == "asleep"}
    stalled: dict[tuple[str, int], float] = defaultdict(float)
    for (axis, ranks), taken in exchanges(evidence).items() if sleepers else ():
        if asleep := sorted(sleepers.intersection(ranks)):
            usual = {sent: median(s for s, b in taken if b == sent) for sent in {b for _, b in taken}}
            stalled[axis, asleep[0]] += sum(max(0.0, s - STANDSTILL * usual[b]) for s, b in taken)
    return stalled


def _slow(found: Sequence[Message]) -> Mapping[int, Message]:
    """The cause of each slow rank."""
    return {f["ranks"][0]: f["cause"] for f in found if f["code"] == "slow_rank"}


def _by_link(wait: HeldUp, found: Sequence[Message]) -> bool:
    """Whether a rank waited for one that was in an exchange over a slow link."""
    links = (f for f in found if f["code"] == "slow_link")
    return wait.part == "communication" and any(f["axis"] == wait.axis and wait.root in f["ranks"] for f in links)


def _owners(seconds: Mapping[int, float]) -> list[int]:
    """The fewest ranks that account for most of the seconds, the one with the most first."""
    owners: list[int] = []
    for rank in sorted(seconds, key=lambda r: -seconds[r]):
        if sum(seconds[r] for r in owners) >= OWNED * sum(seconds.values()):
            break
        owners.append(rank)
    return owners


def _parts(
    evidence: Evidence, held: Mapping[HeldUp, float], stalled: Stalled, found: Sequence[Message]
) -> Iterator[Message]:
    """What the ranks' own parts lose: exchange, missing rows, the start, and what lies outside all phases.

    Waiting for ranks that exchange over a slow link is a loss by this exchange.
    """
    accounts = evidence.accounts
    whole_s, everyone = accounts.all_ranks_s, [r.rank for r in accounts.ranks]
    for axis in sorted({axis for r in accounts.ranks for axis in r.communication_by_axis}):
        lost_s = sum(r.communication_by_axis.get(axis, 0.0) for r in accounts.ranks)
        lost_s -= sum(stalled_s for (on, _), stalled_s in stalled.items() if on == axis)
        lost_s += sum(waited_s for wait, waited_s in held.items() if wait.axis == axis and _by_link(wait, found))
        link = next((f for f in found if f["code"] == "slow_link" and f["axis"] == axis), None)
        yield message("loss_exchange", ranks=everyone, axis=axis, link=link, seconds=lost_s, share=lost_s / whole_s)
    for part, what in LOST_PARTS.items():
        by_rank = {r.rank: r.previews_s if part == "preview" else r.parts[part] for r in accounts.ranks}
        if part == "other":  # of which previews are a loss of their own
            by_rank = {r.rank: by_rank[r.rank] - r.previews_s for r in accounts.ranks}
        lost_s, owners = sum(by_rank.values()), _owners(by_rank)
        on = owners if len(owners) <= MOST_OWNERS < len(everyone) or what is LOST_PARTS["idle"] else []
        yield message("loss_part", ranks=owners, what=what, on=on, seconds=lost_s, share=lost_s / whole_s)
    tails = {r.rank: accounts.wall_s - r.wall_s for r in accounts.ranks}
    lost_s = sum(tails.values())
    yield message("loss_ends", ranks=_owners(tails), seconds=lost_s, share=lost_s / whole_s)


def _starved(evidence: Evidence, made: Sequence[Message]) -> Iterator[Message]:
    """Time in which CPU ranks were ready to run and had no core, by host, and what the other ranks lost by it.

    A rank without a core keeps all others of its group waiting, and so does its thread that transfers. So up to twice
    what it starved, for each of the others, is taken out of the losses in `made` that can come from it.
    """
    for node in evidence.nodes:
        here = [r for r in evidence.accounts.ranks if r.host == node.host and r.device == "cpu"]
        uses = {r.rank: use for r in here if (use := rank_use(node, r.rank, (r.start_s, r.end_s)))}
        by_rank = {rank: use.starved_s for rank, use in uses.items()}
        threads = sum(evidence.events_of(r.rank).meta.threads for r in here)
        crowded = node.cpus is not None and threads > node.cpus
        starved_s = sum(by_rank.values())
        lost_s = starved_s + _taken(evidence, made, {*by_rank}, 2 * (len(by_rank) - 1) * starved_s)
        yield message(
            "loss_starved",
            ranks=_owners(by_rank),
            host=node.host,
            cause=message("too_many_threads", threads=threads, cpus=node.cpus) if crowded else message("busy_cpus"),
            seconds=lost_s,
            share=lost_s / evidence.accounts.all_ranks_s,
        )


def _taken(evidence: Evidence, made: Sequence[Message], ranks: set[int], most_s: float) -> float:
    """Take up to `most_s` seconds out of the losses that come from missing cores of these ranks, and return them."""
    delays: list[tuple[Message, float]] = []
    for loss in made:
        if loss["code"] == "loss_exchange" and not loss["link"] and ranks.issuperset(loss["ranks"]):
            delays.append((loss, min(loss["seconds"], _delayed(evidence, loss["axis"]))))
        elif loss["code"] in ("loss_wait", "loss_in_turn") and ranks.issuperset(loss["ranks"]):
            cause, late = loss.get("cause"), loss["doing"] in (DOING["compute"], HELD_UP)
            delays += [(loss, loss["seconds"])] if late and (not cause or cause["code"] == "starved") else []
    delayed_s = sum(seconds for _, seconds in delays)
    taken = min(1.0, most_s / delayed_s) if delayed_s else 0.0
    for loss, seconds in delays:
        left_s = loss["seconds"] - taken * seconds
        loss |= {"seconds": left_s, "share": left_s / evidence.accounts.all_ranks_s}
    return taken * delayed_s


def _delayed(evidence: Evidence, axis: str) -> float:
    """By how much the exchanges of an axis took longer than the fastest ones of as many bytes in the same group."""
    delayed_s = 0.0
    for (of_axis, _), taken in exchanges(evidence).items():
        if of_axis == axis:
            fastest = {sent: seconds for seconds, sent in sorted(taken, reverse=True)}  # the last of as many bytes
            delayed_s += sum(seconds - fastest[sent] for seconds, sent in taken)
    return delayed_s


def _held_down(evidence: Evidence) -> Iterator[Message]:
    """Compute under a clock that heat, power supply or a fault held down, by how far it was below its maximum."""
    accounts = evidence.accounts
    ranks = {r.rank: r for r in accounts.ranks}
    start = min(r.start_s for r in accounts.ranks)
    for node in evidence.nodes:
        for gpu in gpu_uses(node, (start, start + accounts.wall_s), accounts):
            clock, most = gpu["sm_mhz_median"], gpu["sm_mhz_max"]
            held = sum(share for why, share in gpu["throttled"].items() if why in HELD_DOWN)
            computing_s = sum(ranks[rank].parts["compute"] + ranks[rank].parts["vae"] for rank in gpu["ranks"])
            lost_s = computing_s * min(1.0, held) * max(0.0, 1 - clock / most) if clock and most else 0.0
            yield message(
                "loss_held_down",
                ranks=gpu["ranks"],
                host=node.host,
                gpu_name=f"GPU {gpu['index']}",
                seconds=lost_s,
                share=lost_s / accounts.all_ranks_s,
            )
