"""`opensora-launch doctor`: is this machine ready? One line a finding, with the fix and what it costs."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.cli.compose import compose
from opensora_launch.cli.flags import Parsed
from opensora_launch.cli.jobs import finish_config, machine_of, weight_problems
from opensora_launch.cli.preflight import patient
from opensora_launch.config import Init, RunConfig
from opensora_launch.errors import UserError
from opensora_launch.launch.doctor import full, here, quick
from opensora_launch.launch.doctor_nodes import ask_nodes, nodes_of_job, to_line
from opensora_launch.launch.env_profile import profile_problems, profiled
from opensora_launch.launch.findings import Finding, Level, lines, ok, worst
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Machine, VideoRequest, make_plan
from opensora_launch.plan.rows import Guidance


def doctor(parsed: Parsed) -> int:
    """Examine, print, and return 0, or 1 where something will not run."""
    folder = parsed.one("--config-dir")
    run = compose(parsed.rest, multirun=False, config_dir=None if folder is None else Path(folder)).points[0].run
    finish_config(run, None)
    if problems := profile_problems(run.env):
        raise UserError("doctor cannot start", problems)
    nodes = nodes_of_job(os.environ)
    if nodes > 1 and not parsed.has("--here"):
        found = ask_nodes(nodes, _words(parsed), os.environ)
    else:
        found = here(_examine(run, parsed))
    if parsed.has("--here"):
        sys.stdout.writelines(f"{to_line(finding)}\n" for finding in found)
    elif parsed.has("--json"):
        print(json.dumps(_as_json(found), ensure_ascii=False, indent=1))
    else:
        _print(found)
    return 1 if worst(found) is Level.fail else 0


def _examine(run: RunConfig, parsed: Parsed) -> list[Finding]:
    machine, _ = machine_of(run, None)  # what is missing is a finding of its own
    made = profiled(os.environ, run.env)
    who = patient(run, machine, made.env, 1)
    notes = [
        Finding(Level.warn, "env", note, "leave it out of your shell or image", "no cost") for note in made.notes()
    ]
    if parsed.has("--quick"):
        return [*quick(who), *notes] or [ok("quick", "nothing to complain of")]
    ranks = machine.ranks > 1 and machine.nodes == 1 and not parsed.has("--no-ranks")
    found = full(who, _layout(run, machine), ranks=ranks, nvlink_gb_s=None)
    return [*found, *notes, *_files(run)]


def _layout(run: RunConfig, machine: Machine) -> Layout:
    """That of the steps with the most rows of one text-to-video request."""
    sampling = run.sampling
    guidance = Guidance(
        num_steps=sampling.num_steps,
        text_scale=sampling.guidance,
        image_scale=sampling.guidance_img,
        text_osci=sampling.text_osci,
        image_osci=sampling.image_osci,
        temporal_osci=False,
        distilled=run.model.mmdit.guidance_embed,
    )
    video = VideoRequest("0000_0", "waves", "waves", sampling.negative_prompt, (), "t2v", 0, guidance)
    return make_plan(run, machine, [video], __version__).layouts[-1][1]


def _files(run: RunConfig) -> list[Finding]:
    """Weight files: there, whole by their headers, and of the config's shapes."""
    problems = weight_problems(run)
    if problems:
        return [Finding(Level.fail, "files", line, "as it says", "a download") for line in problems]
    random = run.model.init is Init.random
    return [ok("files", f"{run.model.name}: " + ("random weights, no files" if random else "all there and whole"))]


def _words(parsed: Parsed) -> list[str]:
    """The command line again, for the nodes."""
    flags = [name for name in ("--quick", "--no-ranks") if parsed.has(name)]
    folder = parsed.one("--config-dir")
    return [*flags, *(["--config-dir", os.path.abspath(folder)] if folder else []), *parsed.rest]


def _as_json(found: Sequence[Finding]) -> dict[str, object]:
    return {
        "schema": 1,
        "version": __version__,
        "worst": worst(found).value,
        "findings": [finding.to_dict() for finding in found],
    }


def _print(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console, colours = Console(soft_wrap=True, highlight=False), {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for finding, line in zip(found, lines(found), strict=True):
        text = Text(line)
        text.stylize(colours[finding.level.value], 0, 4)
        console.print(text)
    counts = {level: sum(f.level is level for f in found) for level in Level}
    console.print(f"{counts[Level.ok]} ok, {counts[Level.warn]} to look at, {counts[Level.fail]} that stop a run")
