"""What to change, each with the seconds that it would save. Gains come from this run's own measured parts.

`gain_s` is of the job's time and is an upper bound where it says "at most"; nothing here was tried.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opensora_launch.plan.plan import Plan, rows_per_step
from opensora_launch.report.accounting import Accounts, waited_for
from opensora_launch.report.findings import Finding

LEAST_GAIN = 0.02  # of the job's time, to be worth a line
HOW = "from this run's measured parts; not tried"
HOW_PLANNED = "the planner's predicted ratio, applied to the measured time; not tried"
REMEDIES = {
    "throttled": "cool the card, or raise its power limit",
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
    plan: Plan, accounts: Accounts, found: Sequence[Finding], planned: tuple[str, str, float] | None = None
) -> list[Advice]:
    """The dearest first; empty where nothing would save a fiftieth of the time. `planned` is the planner's."""
    wall = accounts.wall_s
    rules: Sequence[Callable[[Plan, Accounts], tuple[str, str, float] | None]] = (_prune, _idle, _alone, _one_load)
    hits = [hit for rule in rules if (hit := rule(plan, accounts))]
    hits += [(f"rank {f.ranks[0]} is slow ({f.cause.replace('_', ' ')})", REMEDIES[f.cause], f.seconds or 0.0)
             for f in found if f.kind == "slow_rank"]  # fmt: skip
    hits += [
        (f"the link between ranks {', '.join(map(str, f.ranks))} is slow", "look at it with opensora-launch doctor",
         f.seconds or 0.0)
        for f in found if f.kind == "slow_link"
    ]  # fmt: skip
    made = [Advice(what, change, gain, wall, wall - gain, HOW) for what, change, gain in hits]
    if planned:
        what, change, gain = planned
        made.append(Advice(what, change, gain, wall, wall - gain, HOW_PLANNED))
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


def _alone(plan: Plan, accounts: Accounts) -> tuple[str, str, float] | None:
    """One rank works in a phase and the others wait for it."""
    if len(accounts.ranks) < 2:
        return None
    best: tuple[str, str, float] | None = None
    for late in waited_for(accounts):
        held = max(late.by.values()) / late.seconds
        for part, change in (
            ("text", "encode on several ranks, or make more videos in one run: each prompt is encoded once"),
            ("vae", "smaller tiles (model.vae.tile_px) spread more evenly over the ranks"),
            ("save", "make more videos in one run with layout.dp: others denoise meanwhile"),
        ):
            seconds = late.while_in.get(part, 0.0) * held
            gain = seconds * (1 - 1 / len(accounts.ranks))
            if best is None or gain > best[2]:
                best = (f"the others waited {seconds:.1f} s for rank {late.rank} in {part}", change, gain)
    return best


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
