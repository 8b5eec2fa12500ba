"""What to change, each with the seconds of the job's time that it would save. Nothing was tried.

Gains of settings are the planner's predicted ratios where it has rates for the card; all others come from this run's
own measurements. No advice changes the videos.
"""

from collections.abc import Callable, Sequence
from typing import Any

from opensora_launch.plan.plan import Plan, rows_per_step
from opensora_launch.report.accounting import Accounts
from opensora_launch.report.prediction import FasterSetting
from opensora_launch.report.wording import Message, message

LEAST_GAIN = 0.02  # of the job's time
LONG_LOAD = 0.2  # of the job's time

Hint = tuple[Message, Message, float]  # what was seen, what to do about it, gain_s


def advise(
    plan: Plan, accounts: Accounts, found: Sequence[Message], faster: Sequence[FasterSetting] | None = None
) -> list[dict[str, Any]]:
    """Return the changes that save 2% of the time or more, the largest gain first, as the report says them.

    `found` are the findings. `faster` are the planner's, None where it has no rates for the card: then rows and idle
    ranks are judged by this run's own times. `basis` of a gain: "measured" parts of this run, or the ratio that the
    planner "predicted".
    """
    wall = accounts.wall_s
    rules: Sequence[Callable[[Plan, Accounts], Hint | None]] = (_prune, _idle, _one_load)
    hints = [hint for rule in (rules if faster is None else (_one_load,)) if (hint := rule(plan, accounts))]
    hints += [(f, message("remedy", cause=f["cause"]), f["seconds"]) for f in found if f["code"] == "slow_rank"]
    hints += [(f, message("check_link"), f["seconds"]) for f in found if f["code"] == "slow_link"]
    making = wall - max(r.parts["setup"] + r.parts["load"] + r.parts["text"] + r.image_s for r in accounts.ranks)
    ways = [(way.what, message("set", overrides=way.overrides), way.share * making) for way in faster or ()]
    based = [*((*hint, "measured") for hint in hints), *((*way, "predicted") for way in ways)]
    return [
        {"what": what, "do": do, "gain_s": gain, "now_s": wall, "then_s": wall - gain, "basis": basis}
        for what, do, gain, basis in sorted(based, key=lambda advice: -advice[2])
        if gain >= LEAST_GAIN * wall
    ]


def _prune(plan: Plan, accounts: Accounts) -> Hint | None:
    """Rows with weight zero, or equal ones, were computed."""
    if plan.sampling.prune_rows:
        return None
    frames = plan.geometry.latent_frames
    full, needed = (sum(sum(rows_per_step(v, frames, prune)) for v in plan.videos) for prune in (False, True))
    compute = max(r.parts["compute"] + r.parts["communication"] for r in accounts.ranks)
    what = message("unneeded_rows", computed=full, needed=needed)
    return what, message("set", overrides="sampling.prune_rows=true"), compute * (1 - needed / full)


def _idle(plan: Plan, accounts: Accounts) -> Hint | None:
    """Some ranks had no row: the step could be spread over them."""
    idle = sum(r.parts["idle"] for r in accounts.ranks)
    if not idle:
        return None
    return message("idle_ranks", idle_s=idle), message("free_layout"), idle / len(accounts.ranks)


def _one_load(plan: Plan, accounts: Accounts) -> Hint | None:
    """A run loads once: with more videos, the share of each is smaller."""
    load = max(r.parts["load"] + r.parts["setup"] for r in accounts.ranks)
    if load < LONG_LOAD * accounts.wall_s:
        return None
    what = message("load_once", load_s=load, wall_s=accounts.wall_s, videos=len(plan.videos))
    return what, message("many_prompts"), load * 0.9
