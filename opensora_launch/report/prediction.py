"""The planner beside a run: its seconds next to the measured ones, and settings that it predicts to be faster.

The gain of another setting is the ratio of two predictions, applied to the measured time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.plan.choose import Option
from opensora_launch.plan.make_plan import predict
from opensora_launch.plan.placement import Placement, as_changes
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.workload import Workload
from opensora_launch.report.accounting import Accounts
from opensora_launch.report.wording import Message, message
from opensora_launch.schema.config import Fit, LayoutConfig, Offload, PlacementConfig, RunConfig, Shard, Storage

LEAST_GAIN_TOGETHER = 0.02  # of the time, that all changes must save beyond the best of them


@dataclass(frozen=True)
class PredictedRun:
    """A run as it was, as the planner predicts it."""

    config: RunConfig  # with everything that the plan has settled
    work: Workload
    option: Option


@dataclass(frozen=True)
class FasterSetting:
    """A change, as a message and as overrides, and the share of the time of making the videos that it saves."""

    what: Message
    overrides: str
    share: float


def predict_run(config: RunConfig | None, plan: Plan) -> PredictedRun | Message:
    """Predict a run with its own layout, placement and batches; or say why that is impossible."""
    if config is None or not config.hardware.known or plan.machine.device != "cuda":
        return message("no_planner_rates")
    settled = replace(config, placement=PlacementConfig(**vars(plan.placement)), sampling=plan.sampling)
    try:
        work, found = predict(settled, plan.machine, plan.videos)
    except (UserError, ValueError, KeyError, ZeroDivisionError) as error:
        return message("planner_failed", error=str(error))
    option = next((o for o in found if o.layouts == plan.layouts), None)
    return message("layout_not_planned") if option is None else PredictedRun(settled, work, option)


def beside_measured(ran: PredictedRun, accounts: Accounts) -> list[dict[str, Any]]:
    """The planner's seconds and the busiest rank's, by phase."""
    ranks = [{**r.parts, "image": r.image_s, "denoise": r.denoise_s, "total": accounts.wall_s} for r in accounts.ranks]
    return [
        {"what": what, "predicted_s": seconds, "measured_s": max(parts[what] for parts in ranks)}
        for what in ("load", "text", "compile", "image", "denoise", "vae", "save", "total")
        if (seconds := getattr(ran.option.phases, what)) or what not in ("compile", "image")
    ]


def faster_settings(ran: PredictedRun, plan: Plan) -> list[FasterSetting]:
    """Return settings that the planner predicts to fit and to be faster, with the same videos.

    One thing is changed at a time; all changes together are added where they save more.
    """
    now = ran.option.phases.making
    found: list[FasterSetting] = []
    together, names = ran.config, list[str]()
    for name, change in _changes(plan).items():
        fitting = _best(change(ran.config), plan)
        overrides = _overrides(name, ran, fitting[1]) if fitting else ""
        if fitting is None or not overrides or fitting[1].phases.making >= now:
            continue
        found.append(FasterSetting(_what(name, ran, *fitting), overrides, 1 - fitting[1].phases.making / now))
        together, names = change(together), [*names, name]
    if len(found) > 1 and (fitting := _best(together, plan)):
        best = fitting[1]
        share = 1 - best.phases.making / now
        if share > max(way.share for way in found) + LEAST_GAIN_TOGETHER:
            overrides = " ".join(filter(None, (_overrides(name, ran, best) for name in names)))
            found.append(FasterSetting(message("all_changes"), overrides, share))
    return found


def _changes(plan: Plan) -> dict[str, Callable[[RunConfig], RunConfig]]:
    """Each leaves one thing of a config to the planner."""
    free = PlacementConfig(storage=plan.placement.storage)
    changes: dict[str, Callable[[RunConfig], RunConfig]] = {
        "layout": lambda config: replace(config, layout=LayoutConfig()),
        "placement": lambda config: replace(config, placement=free, fit=Fit.auto),
        "batch": lambda config: replace(config, sampling=replace(config.sampling, batch_size=None)),
        "rows": lambda config: replace(config, sampling=replace(config.sampling, prune_rows=True)),
    }
    idle = {"layout"} if plan.machine.ranks == 1 else set[str]()
    idle |= {"rows"} if plan.sampling.prune_rows else set()
    return {name: change for name, change in changes.items() if name not in idle}


def _best(config: RunConfig, plan: Plan) -> tuple[Workload, Option] | None:
    """The best option, if it fits."""
    try:
        work, found = predict(config, plan.machine, plan.videos)
    except (UserError, ValueError, KeyError, ZeroDivisionError):
        return None
    return (work, found[0]) if found and found[0].fits else None


def _what(name: str, ran: PredictedRun, work: Workload, best: Option) -> Message:
    if name == "layout":
        return message("faster_layout", layout=str(ran.option.layout))
    if name == "placement":
        now, better = placement_message(ran.option.placement), placement_message(best.placement)
        return message("faster_placement", now=now, better=better)
    if name == "rows":
        return message("needless_rows")
    return message("larger_batches", batches=ran.work.batches, fewer=work.batches)


def _overrides(name: str, ran: PredictedRun, best: Option) -> str:
    """A change as overrides; empty where nothing differs from the run."""
    if name == "layout":
        return " ".join(f"layout.{axis}={degree}" for axis, degree in vars(best.layout).items())
    if name == "placement":
        return as_changes(ran.option.placement, best.placement)
    return {"rows": "sampling.prune_rows=true", "batch": "sampling.batch_size=null"}[name]


def placement_message(placement: Placement) -> Message:
    """Where the weights are, and how many rows a rank computes at once."""
    host = placement.offload is Offload.host
    in_host = message("in_host_memory") if host else None
    weights = {
        Shard.none: message("host_weights") if host else message("replicated_weights"),
        Shard.node: message("node_sharded", in_host=in_host),
        Shard.all: message("all_sharded", in_host=in_host),
    }
    return message(
        "placement",
        weights=weights[placement.shard],
        resident_blocks=placement.resident_blocks or None,
        storage=message("in_fp8") if placement.storage is Storage.fp8 else None,
        rows=message("one_row_at_once") if placement.rows_at_once == 1 else None,
    )
