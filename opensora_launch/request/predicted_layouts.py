"""What `plan` and `estimate` predict: one request on a machine that need not be this one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.errors import Problems, UserError
from opensora_launch.machine.choose_gpus import Picked
from opensora_launch.machine.find_machine import NOTHING, found_gpus
from opensora_launch.machine.host import count_cpus
from opensora_launch.media.prompts import PromptEntry, PromptSettings
from opensora_launch.plan.checks import card_problems
from opensora_launch.plan.choose import Option, passed_over
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.plan import Machine, VideoRequest, make_plan, predict
from opensora_launch.plan.workload import Workload
from opensora_launch.request.catalogue import DEFAULT_MODEL, read_cards
from opensora_launch.request.compose import ConfigPoint, compose
from opensora_launch.request.final_config import final_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.videos import prompt_setting_problems, request_videos
from opensora_launch.schema.config import Device, LayoutConfig, RunConfig


@dataclass(frozen=True)
class Prediction:
    """Every layout of a request, the best first; `passed_over` are the best layouts of the other placements."""

    work: Workload
    options: tuple[Option, ...]
    passed_over: tuple[Option, ...]
    misfits: tuple[str, ...]  # why no option fits in memory; empty if one does
    found_here: tuple[str, ...]
    note: str  # on the card


def predict_layouts(parsed: Parsed) -> Prediction:
    """Predict every layout for a command line of `plan`. Raises UserError with everything wrong except memory."""
    config_dir, count, problems, here = parsed.path("--config-dir"), _video_count(parsed), Problems(), NOTHING
    composed = compose(with_default_model(parsed.rest), config_dir=config_dir).points[0].run
    with problems.collect():
        here = gpus_for_prediction(composed)
    final = final_config(composed, here, config_dir)
    run, machine = final.run, requested_machine(final.run, len(here.gpus))
    problems.add(final.problems)
    if not problems.lines:
        problems.add(_card_problems(run, machine, config_dir, [*here.lines, final.note]))
    problems.add(prompt_setting_problems(run))
    videos = () if problems.lines else videos_like(run, count)
    with problems.collect():
        make_plan(run, machine, videos, __version__, by_rule=True)
    problems.stop("this cannot be planned")
    work, options = predict(run, machine, videos)
    fixed = LayoutConfig(**vars(run.layout))
    misfits = tuple(fit_problems(work, fixed, options))
    return Prediction(work, options, tuple(passed_over(work, fixed, options[0])), misfits, here.lines, final.note)


def gpus_for_prediction(run: RunConfig) -> Picked:
    """The GPUs of this host; none if a card is named, because the prediction is then for another machine.

    Raises UserError if topology.gpus names a GPU that is not here.
    """
    if run.hardware.name is not None and not run.topology.gpus:
        return NOTHING
    here = found_gpus(run.topology, os.environ)
    if here.problems:
        raise UserError("these GPUs are not here", here.problems)
    return here


def with_default_model(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides with Open-Sora's model if none is named: predictions need no weight files."""
    named = any(word.lstrip("+~").startswith(("model=", "model@")) for word in overrides)
    return overrides if named else (f"model={DEFAULT_MODEL}", *overrides)


def requested_machine(run: RunConfig, gpus_here: int = 0) -> Machine:
    """The machine that the topology names, whether or not it is this one."""
    gpu = run.hardware.known and run.topology.device is not Device.cpu
    ranks = run.topology.gpus_per_node or max(gpus_here, 1)
    return Machine("cuda" if gpu else "cpu", run.topology.nodes, ranks, count_cpus())


def videos_like(run: RunConfig, count: int = 1) -> tuple[VideoRequest, ...]:
    """The videos of `count` text-to-video prompts with the sampling settings of a config."""
    entries = [PromptEntry(i, "a video", (), PromptSettings(), "a prediction") for i in range(count)]
    return request_videos(entries, [(0, ConfigPoint((), (), run))]).videos


def _card_problems(run: RunConfig, machine: Machine, config_dir: Path | None, found: Sequence[str]) -> list[str]:
    """Why the card cannot be predicted; `found` tells which GPUs are here."""
    if machine.device == "cuda" or (run.hardware.name is not None and run.topology.device is not Device.cpu):
        return card_problems(run.hardware)
    if run.topology.device is Device.cpu:
        return ["plan predicts GPUs; on CPU ranks the layout follows a rule, which generate dry_run=true shows"]
    which = f"which card? give hardware=CARD, one of {', '.join(read_cards(config_dir))}"
    return ["; ".join([*filter(None, found), which])]


def _video_count(parsed: Parsed) -> int:
    count = parsed.one("--videos") or "1"
    if not (count.isascii() and count.isdigit() and int(count)):
        raise UserError(f"--videos {count} must be a whole number of at least 1")
    return int(count)
