"""`opensora-launch plan`: every layout of a topology with its predicted time and memory. Needs no GPU."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.cli.picture import picture_file
from opensora_launch.cli.terminal import Line, show
from opensora_launch.errors import UserError
from opensora_launch.machine.find_machine import NOTHING
from opensora_launch.machine.host import count_cpus
from opensora_launch.media.prompts import PromptEntry, PromptSettings
from opensora_launch.plan.checks import card_problems
from opensora_launch.plan.choose import passed_over
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.plan import Machine, VideoRequest, make_plan, predict
from opensora_launch.plan.table import plan_json, plan_text
from opensora_launch.request.catalogue import DEFAULT_MODEL
from opensora_launch.request.compose import Point, compose
from opensora_launch.request.flags import Parsed
from opensora_launch.request.hardware import catalogue, look_here, settle_hardware
from opensora_launch.request.prepare import Problems, finish_config
from opensora_launch.request.videos import ask, prompt_setting_problems
from opensora_launch.schema.config import Device, HardwareConfig, LayoutConfig, RunConfig


def plan(parsed: Parsed) -> int:
    """Print the table, or JSON; 0 where a layout fits, 1 where none does."""
    folder, picture = parsed.path("--config-dir"), picture_file(parsed, svg_is_ours=False)
    point = compose(with_default_model(parsed.rest), multirun=False, config_dir=folder).points[0]
    run, problems, here, note = point.run, Problems(), NOTHING, ""
    with problems.collect():
        here = look_here(run)
        note = settle_hardware(run, here, folder)
    finish_config(run, None)
    machine = machine_asked(run, len(here.gpus))
    problems.add([] if problems.lines else _card_problems(run, machine, folder, [*here.lines, note]))
    problems.add(prompt_setting_problems(run))
    videos = () if problems.lines else _videos(point, parsed)
    with problems.collect():  # refuses what is wrong apart from memory
        make_plan(replace(run, hardware=HardwareConfig()), machine, videos, __version__)
    problems.stop("this cannot be planned")
    work, found = predict(run, machine, videos)
    fixed = LayoutConfig(**vars(run.layout))
    misfits, others = fit_problems(work, fixed, found), passed_over(work, fixed, found[0])
    if parsed.has("--json"):
        print(json.dumps(plan_json(work, found, others, misfits) | {"found_here": list(here.lines)}, indent=1))
    else:
        text = plan_text(work, found, others, "\n".join([*here.lines, *([note] if note else [])]))
        show(map(_styled, [*text.splitlines(), *(word for line in misfits for word in ("", f"nothing fits: {line}"))]))
    if picture:
        from opensora_launch.cli.plan_plot import plot_plan

        plot_plan(work, found, picture)
    return 1 if misfits else 0


def _styled(line: str) -> Line:
    """A line of the table: what is chosen stands out, what does not fit stands back."""
    styles = {"*": "bold green", "nothing fits": "bold red"}
    marked = next((style for start, style in styles.items() if line.startswith(start)), "")
    return [(line, marked or ("bold" if " effic. " in line else "dim" if " needs " in line else ""))]


def with_default_model(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The model that is planned where none is named: weights need not be here."""
    named = any(word.lstrip("+~").startswith(("model=", "model@")) for word in overrides)
    return overrides if named else (f"model={DEFAULT_MODEL}", *overrides)


def machine_asked(run: RunConfig, gpus_here: int) -> Machine:
    """The machine that the topology names, whether or not it is this one."""
    gpu = run.hardware.known and run.topology.device is not Device.cpu
    ranks = run.topology.gpus_per_node or max(gpus_here, 1)
    return Machine("cuda" if gpu else "cpu", run.topology.nodes, ranks, count_cpus())


def _card_problems(run: RunConfig, machine: Machine, config_dir: Path | None, found: Sequence[str]) -> list[str]:
    """`found` says what GPUs are here."""
    if machine.device == "cuda" or (run.hardware.name is not None and run.topology.device is not Device.cpu):
        return card_problems(run.hardware)
    if run.topology.device is Device.cpu:
        return ["plan predicts GPUs; on CPU ranks the layout follows a rule, which generate dry_run=true shows"]
    which = f"which card? give hardware=CARD, one of {', '.join(catalogue(config_dir))}"
    return ["; ".join([*filter(None, found), which])]


def _videos(point: Point, parsed: Parsed) -> tuple[VideoRequest, ...]:
    count = parsed.one("--videos") or "1"
    if not (count.isascii() and count.isdigit() and int(count)):
        raise UserError(f"--videos {count} must be a whole number of at least 1")
    entries = [PromptEntry(i, "a video", (), PromptSettings(), "plan") for i in range(int(count))]
    return ask(entries, [(0, point)]).videos
