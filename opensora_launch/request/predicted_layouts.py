"""What `plan` and `estimate` predict: one request on a machine that need not be this one."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.errors import Problems, UserError
from opensora_launch.machine.find_machine import NOTHING, found_gpus
from opensora_launch.machine.host import count_cpus
from opensora_launch.media.prompts import PromptEntry, PromptSettings
from opensora_launch.plan.checks import card_problems, prediction_problems
from opensora_launch.plan.choose import Option, passed_over
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.image_stage import image_fit_problems
from opensora_launch.plan.make_plan import make_plan, predict
from opensora_launch.plan.plan import Machine, VideoRequest
from opensora_launch.plan.workload import Workload
from opensora_launch.request.catalogue import DEFAULT_MODEL, read_cards
from opensora_launch.request.compose import ConfigPoint, compose
from opensora_launch.request.final_config import final_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.gpu_counts import GpuCount, read_counts
from opensora_launch.request.videos import prompt_setting_problems, request_videos
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import Device, RunConfig

PRICE = "usd_per_gpu_hour"  # the only key of `estimate` that plan reads


@dataclass(frozen=True)
class Prediction:
    """Every layout of a request, the best first; `passed_over` are the best layouts of the other placements."""

    work: Workload
    options: tuple[Option, ...]
    passed_over: tuple[Option, ...]
    misfits: tuple[str, ...]  # why no option fits in memory; empty if one does
    found_here: tuple[str, ...]
    note: str  # on the card
    usd_per_gpu_hour: float | None


def predict_layouts(parsed: Parsed) -> Prediction:
    """Predict every layout for a command line of `plan`. Raises UserError with everything wrong except memory."""
    config_dir, count, problems = parsed.path("--config-dir"), parsed.one("--videos") or "1", Problems()
    if not (count.isascii() and count.isdigit() and int(count)):
        raise UserError(f"--videos {count} must be a whole number of at least 1")
    composed = compose(with_default_model(parsed.rest), config_dir=config_dir).points[0].run
    asked = run_to_predict(composed, config_dir)
    run, machine = asked.run, asked.machine
    if any(re.match(rf"[+~]*estimate(=|\.(?!{PRICE}=))", word) for word in parsed.rest):
        problems.add([f"of the keys of estimate, plan reads estimate.{PRICE} alone; leave the others out"])
    problems.add(asked.problems)
    if not problems.lines:
        problems.add(_card_problems(run, config_dir, [*asked.found_here, asked.note]))
        problems.add(prediction_problems(replace(run, topology=replace(run.topology, link=composed.topology.link))))
    problems.add(prompt_setting_problems(run))
    videos = () if problems.lines else videos_like(run, int(count))
    with problems.collect():
        make_plan(run, machine, videos, __version__, by_rule=True)
    problems.stop("this cannot be planned")
    work, options = predict(run, machine, videos)
    misfits = tuple(image_fit_problems(work) or fit_problems(work, run.layout, options))
    others = tuple(passed_over(work, run.layout, options[0]))
    return Prediction(work, options, others, misfits, asked.found_here, asked.note, run.estimate.usd_per_gpu_hour)


def asked_counts(parsed: Parsed) -> tuple[GpuCount, ...]:
    """The counts of `gpus=[1,2,4]`; empty without it. Raises UserError for what is not a list of counts."""
    texts = [word.removeprefix("gpus=") for word in parsed.rest if word.startswith("gpus=")]
    if texts and parsed.has("--plot"):
        raise UserError("--plot draws one count of GPUs: leave gpus= out, and name a topology")
    return read_counts(texts[-1]) if texts else ()


def predict_counts(parsed: Parsed, counts: Sequence[GpuCount]) -> list[Prediction]:
    """Predict each count of GPUs. Raises UserError with everything that keeps any of them from being planned."""
    problems, found = Problems(), []
    words = tuple(word for word in parsed.rest if not word.startswith("gpus="))
    for count in counts:
        with problems.collect():
            found.append(predict_layouts(replace(parsed, rest=(*words, *count.overrides))))
    problems.stop("this cannot be planned")
    return found


@dataclass(frozen=True)
class RunToPredict:
    """A final config with its machine, which need not be this one. `found_here` tells which GPUs of this one it has."""

    run: RunConfig
    machine: Machine
    found_here: tuple[str, ...]
    note: str  # on the card
    problems: tuple[str, ...]


def run_to_predict(composed: RunConfig, config_dir: Path | None, assumed_card: Card | None = None) -> RunToPredict:
    """Complete a composed config by the GPUs of this host, unless a card is named: then it is for another machine."""
    elsewhere = composed.hardware.name is not None and not composed.topology.gpus
    here = NOTHING if elsewhere else found_gpus(composed.topology, os.environ)
    final = final_config(composed, here, config_dir, assumed_card=assumed_card)
    run = final.run
    if run.topology.gpus_per_node is None:
        run = replace(run, topology=replace(run.topology, gpus_per_node=max(len(here.gpus), 1)))
    found = (*here.lines, *filter(None, [here.fault]))
    return RunToPredict(run, requested_machine(run), found, final.note, (*here.problems, *final.problems))


def with_default_model(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides with Open-Sora's model if none is named: predictions need no weight files."""
    named = any(word.lstrip("+~").startswith(("model=", "model@")) for word in overrides)
    return overrides if named else (f"model={DEFAULT_MODEL}", *overrides)


def requested_machine(run: RunConfig) -> Machine:
    """The machine that the topology names, whether or not it is this one."""
    gpu = run.hardware.known and run.topology.device is not Device.cpu
    return Machine("cuda" if gpu else "cpu", run.topology.nodes, run.topology.gpus_per_node or 1, count_cpus())


def videos_like(run: RunConfig, count: int = 1) -> tuple[VideoRequest, ...]:
    """The videos of `count` text-to-video prompts with the sampling settings of a config."""
    entries = [PromptEntry(i, "a video", (), PromptSettings(), "a prediction") for i in range(count)]
    return request_videos(entries, [ConfigPoint((), (), run)], None, range(count)).videos


def _card_problems(run: RunConfig, config_dir: Path | None, found: Sequence[str]) -> list[str]:
    """Why the card cannot be predicted; `found` tells which GPUs are here."""
    if run.topology.device is Device.cpu:
        return ["plan predicts GPUs; on CPU ranks the layout follows a rule, which generate dry_run=true shows"]
    if run.hardware.name is not None:
        return card_problems(run.hardware)
    which = f"which card? give hardware=CARD, one of {', '.join(read_cards(config_dir))}"
    return ["; ".join([*filter(None, found), which])]
