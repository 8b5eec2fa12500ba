"""What the planner says of a run: its seconds beside the measured ones, and which settings it predicts to be faster.

A prediction of another setting is a ratio of two predictions, applied to what was measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.plan.choose import Option
from opensora_launch.plan.placement import as_changes, placement_text
from opensora_launch.plan.plan import Plan, predict
from opensora_launch.plan.workload import Workload
from opensora_launch.report.accounting import Accounts
from opensora_launch.schema.config import Fit, LayoutConfig, PlacementConfig, RunConfig

NO_RATES = "the card is not in configs/hardware, or ranks are on CPUs: the planner has no rates for it"
TOGETHER = 0.02  # of the time, that all changes must save beyond the best of them, to be worth a line


@dataclass(frozen=True)
class Predicted:
    """A run as it was, by the planner."""

    config: RunConfig  # with everything that the plan has settled
    work: Workload
    option: Option


@dataclass(frozen=True)
class Better:
    """A change, in words and as overrides, and the share of the time of making the videos that it saves."""

    what: str
    change: str
    share: float


def as_it_ran(config: RunConfig | None, plan: Plan) -> Predicted | str:
    """The prediction of a run's own layout, placement and batches; or why there is none."""
    if config is None or not config.hardware.known:
        return NO_RATES
    settled = replace(config, placement=PlacementConfig(**vars(plan.placement)), sampling=plan.sampling)
    try:
        work, found = predict(settled, plan.machine, plan.videos)
    except (UserError, ValueError, KeyError, ZeroDivisionError) as error:
        return f"the planner could not predict it: {error}"
    option = next((o for o in found if o.layouts == plan.layouts), None)
    return "the planner does not know this layout" if option is None else Predicted(settled, work, option)


def beside_measured(ran: Predicted, accounts: Accounts) -> list[dict[str, Any]]:
    """The planner's seconds and the busiest rank's, by phase."""
    most = {part: max(r.parts[part] for r in accounts.ranks) for part in ("load", "text", "vae", "save")}
    phases = ran.option.phases
    pairs = {
        "load": (phases.load, most["load"]),
        "text": (phases.text, most["text"]),
        "denoise": (phases.denoise, max(r.denoise_s for r in accounts.ranks)),
        "vae": (phases.vae, most["vae"]),
        "save": (phases.save, most["save"]),
        "total": (phases.total, accounts.wall_s),
    }
    return [{"what": what, "predicted_s": p, "measured_s": m} for what, (p, m) in pairs.items()]


def better_ways(ran: Predicted, plan: Plan) -> list[Better]:
    """Settings that are predicted to be faster and to fit: one changed at a time, and all together where that is
    more. The videos stay the same.
    """
    now = ran.option.phases.making
    found: list[Better] = []
    together, names = ran.config, list[str]()
    for config, name in _changes(ran, plan):
        work, best = _best(config, plan)
        words = "" if best is None else _words(name, ran, best)
        if best is None or not words or best.phases.making >= now:
            continue
        found.append(Better(_what(name, ran, work, best), words, 1 - best.phases.making / now))
        together, names = _both(together, config, name), [*names, name]
    if len(found) > 1:
        _, best = _best(together, plan)
        share = 0.0 if best is None else 1 - best.phases.making / now
        if best and share > max(way.share for way in found) + TOGETHER:
            words = " ".join(filter(None, (_words(name, ran, best) for name in names)))
            found.append(Better("these changes together", words, share))
    return found


def _changes(ran: Predicted, plan: Plan) -> Iterator[tuple[RunConfig, str]]:
    """The run's config with one thing left to the planner."""
    config = ran.config
    if plan.machine.ranks > 1:
        yield replace(config, layout=LayoutConfig()), "layout"
    free = PlacementConfig(storage=plan.placement.storage)
    yield replace(config, placement=free, fit=Fit.auto), "placement"
    yield replace(config, sampling=replace(config.sampling, batch_size=None)), "batch"
    if not plan.sampling.prune_rows:
        yield replace(config, sampling=replace(config.sampling, prune_rows=True)), "rows"


def _both(one: RunConfig, other: RunConfig, name: str) -> RunConfig:
    """`one` with what `other` has changed."""
    if name == "layout":
        return replace(one, layout=other.layout)
    if name == "placement":
        return replace(one, placement=other.placement, fit=other.fit)
    key = {"batch": "batch_size", "rows": "prune_rows"}[name]
    return replace(one, sampling=replace(one.sampling, **{key: getattr(other.sampling, key)}))


def _best(config: RunConfig, plan: Plan) -> tuple[Workload | None, Option | None]:
    try:
        work, found = predict(config, plan.machine, plan.videos)
    except (UserError, ValueError, KeyError, ZeroDivisionError):
        return None, None
    return work, found[0] if found and found[0].fits else None


def _what(name: str, ran: Predicted, work: Workload | None, best: Option) -> str:
    if name == "layout":
        return f"another layout than {ran.option.layout} is predicted to be faster"
    if name == "placement":
        asked = placement_text(ran.option.placement)
        return f"{asked}: {placement_text(best.placement)} would fit and is predicted to be faster"
    if name == "rows":
        return "rows were computed that the videos do not need"
    assert work is not None
    return f"{ran.work.batches} batches: {work.batches} larger ones fit and are predicted to be faster"


def _words(name: str, ran: Predicted, best: Option) -> str:
    """A change as overrides; none where nothing differs from the run."""
    if name == "layout":
        return " ".join(f"layout.{axis}={degree}" for axis, degree in vars(best.layout).items())
    if name == "placement":
        return as_changes(ran.option.placement, best.placement)
    return {"rows": "sampling.prune_rows=true", "batch": "sampling.batch_size=null"}[name]
