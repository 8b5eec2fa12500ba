"""What to change, each with the seconds of the job's time that it would save; nothing of it was tried.

Gains of settings are the planner's predicted ratios where it has rates for the card; all others come from this run's
own measured parts. Nothing is said that would change the videos.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opensora_launch.plan.plan import Plan, rows_per_step
from opensora_launch.report.accounting import Accounts
from opensora_launch.report.findings import Finding
from opensora_launch.report.planned import Better

LEAST_GAIN = 0.02  # of the job's time, to be worth a line
HOW = "from this run's measured parts; not tried"
HOW_PLANNED = "the planner's predicted ratio, applied to the measured time; not tried"
REMEDIES = {
    "throttled": "cool the card, raise its power limit, or unlock its clocks",
    "shared_gpu": "ask for GPUs of your own, or leave this one out by CUDA_VISIBLE_DEVICES",
    "slower_card": "use cards of one kind, or fewer ranks without the slow one",
    "starved": "lower launcher.threads_per_rank or the number of ranks, or end what else uses the CPUs",
    "asleep": "look into its log for what it waited for outside of collectives",
    "memory": "free host memory, or use fewer ranks a node",
    "more_work": "choose degrees that divide rows and heads evenly",
    "unknown_cause": "try another GPU or node in its place",
}


@dataclass(frozen=True)
class Advice:
    """`change` is what to set or do; `now_s` and `then_s` are the job's time, measured and predicted."""

    what: str
    change: str
    gain_s: float
    now_s: float
    then_s: float
    how: str


def advise(
    plan: Plan, accounts: Accounts, found: Sequence[Finding], planned: Sequence[Better] | None = None
) -> list[Advice]:
    """The dearest first; empty where nothing would save a fiftieth of the time. `planned` is the planner's, None where
    it has no rates for the card: then rows and idle ranks are judged by this run's own times.
    """
    wall = accounts.wall_s
    rules: Sequence[Callable[[Plan, Accounts], tuple[str, str, float] | None]] = (_prune, _idle, _one_load)
    hits = [hit for rule in (rules if planned is None else (_one_load,)) if (hit := rule(plan, accounts))]
    hits += [(f"rank {f.ranks[0]} is slow ({f.cause.replace('_', ' ')})", REMEDIES[f.cause], f.seconds or 0.0)
             for f in found if f.kind == "slow_rank"]  # fmt: skip
    hits += [
        (f"the link between ranks {', '.join(map(str, f.ranks))} is slow", "look at it with opensora-launch doctor",
         f.seconds or 0.0)
        for f in found if f.kind == "slow_link"
    ]  # fmt: skip
    made = [Advice(what, change, gain, wall, wall - gain, HOW) for what, change, gain in hits]
    making = wall - max(r.parts["setup"] + r.parts["load"] + r.parts["text"] for r in accounts.ranks)
    made += [
        Advice(way.what, way.change, way.share * making, wall, wall - way.share * making, HOW_PLANNED)
        for way in planned or ()
    ]
    return sorted((a for a in made if a.gain_s >= LEAST_GAIN * wall), key=lambda a: -a.gain_s)


def _prune(plan: Plan, accounts: Accounts) -> tuple[str, str, float] | None:
    """Rows whose weight is zero, or equal ones, were computed."""
    if plan.sampling.prune_rows:
        return None
    full, needed = (
        sum(sum(rows_per_step(v, plan.geometry.latent_frames, prune)) for v in plan.videos) for prune in (False, True)
    )
    compute = max(r.parts["compute"] + r.parts["communication"] for r in accounts.ranks)
    return (
        f"{full} row-forwards were computed where {needed} give the same video",
        "sampling.prune_rows=true",
        compute * (1 - needed / full),
    )


def _idle(plan: Plan, accounts: Accounts) -> tuple[str, str, float] | None:
    """Ranks without a row: the step could be spread over them."""
    idle = sum(r.parts["idle"] for r in accounts.ranks)
    if not idle:
        return None
    return (
        f"ranks had no row for {idle:.1f} s in all, in steps with fewer rows than the cfg axis",
        "leave layout.ring and layout.ulysses free, or layout.cfg=1",
        idle / len(accounts.ranks),
    )


def _one_load(plan: Plan, accounts: Accounts) -> tuple[str, str, float] | None:
    """Loading is paid once a run: shared by more videos it is less of each."""
    load = max(r.parts["load"] + r.parts["setup"] for r in accounts.ranks)
    count = len(plan.videos)
    if load < 0.2 * accounts.wall_s:
        return None
    return (
        f"setup and load are {load:.1f} s of {accounts.wall_s:.1f} s for {count} video{'s' * (count != 1)}",
        "give many prompts to one run (--prompts FILE): a run of ten times as many loads once",
        load * 0.9,
    )
