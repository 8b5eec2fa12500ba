"""`opensora-launch doctor`: is this machine ready? One line a finding, with the fix and what it costs."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.cli.picture import Bar, picture_file, write_bars
from opensora_launch.cli.terminal import show
from opensora_launch.doctor.examine import between_nodes, full, here, kept_away, quick
from opensora_launch.doctor.nodes import ask_nodes, nodes_of_job, to_line
from opensora_launch.doctor.preflight import patient
from opensora_launch.doctor.results import Finding, Level, lines, ok, worst
from opensora_launch.errors import UserError
from opensora_launch.launch.env_profile import profile_problems, profiled
from opensora_launch.machine.find_machine import found_gpus
from opensora_launch.media.prompts import PromptEntry, PromptSettings
from opensora_launch.plan.plan import Machine, Plan, make_plan
from opensora_launch.request.compose import Point, compose
from opensora_launch.request.flags import Parsed
from opensora_launch.request.hardware import settle_hardware
from opensora_launch.request.prepare import finish_config, machine_of, weight_problems
from opensora_launch.request.videos import ask, prompt_setting_problems
from opensora_launch.schema.config import HardwareConfig, Init, RunConfig


def doctor(parsed: Parsed) -> int:
    """Examine, print, and return 0, or 1 where something will not run."""
    folder = parsed.one("--config-dir")
    config_dir = None if folder is None else Path(folder)
    picture = picture_file(parsed, svg_is_ours=True)
    point = compose(parsed.rest, multirun=False, config_dir=config_dir).points[0]
    finish_config(point.run, None)
    settle_hardware(point.run, found_gpus(point.run.topology, os.environ), config_dir)
    if problems := profile_problems(point.run.env) + prompt_setting_problems(point.run):
        raise UserError("doctor cannot start", problems)
    nodes = nodes_of_job(os.environ)
    if nodes > 1 and not parsed.has("--here"):
        found = [*ask_nodes(nodes, _words(parsed), os.environ), *_together(point, parsed)]
    else:
        found = here(_examine(point, parsed))
    if parsed.has("--here"):
        sys.stdout.writelines(f"{to_line(finding)}\n" for finding in found)
    elif parsed.has("--json"):
        print(json.dumps(_as_json(found), ensure_ascii=False, indent=1))
    else:
        _print(found)
    if picture:
        write_bars(picture, "doctor", _bars(found))
    return 1 if worst(found) is Level.fail else 0


def _examine(point: Point, parsed: Parsed) -> list[Finding]:
    run = point.run
    machine, _ = machine_of(run, None)  # what is missing is a finding of its own
    made = profiled(os.environ, run.env)
    plan, found = _plan(point, machine)
    who = patient(run, plan, made.env)
    found += kept_away(who, made)
    if parsed.has("--quick"):
        return [*quick(who), *found] or [ok("quick", "nothing to complain of")]
    ranks = machine.ranks > 1 and machine.nodes == 1 and not parsed.has("--no-ranks")
    nvlink = run.hardware.nvlink_gb_s if run.hardware.known else None
    return [*full(who, plan.layouts[-1][1], ranks=ranks, nvlink_gb_s=nvlink), *found, *_files(run)]


def _together(point: Point, parsed: Parsed) -> list[Finding]:
    """What only all nodes of a Slurm job can show: their clocks, and the links between them."""
    machine, _ = machine_of(point.run, None)
    if machine.nodes == 1 or parsed.has("--quick") or parsed.has("--no-ranks"):
        return []
    plan, _ = _plan(point, machine)
    who = patient(point.run, plan, profiled(os.environ, point.run.env).env)
    link_gb_s = point.run.topology.node_link_gb_s
    found = between_nodes(who, plan.layouts[-1][1], link_gb_s, Path(point.run.runs_dir))
    return [replace(finding, host="all") for finding in found]


def _plan(point: Point, machine: Machine) -> tuple[Plan, list[Finding]]:
    """The plan of one text-to-video request, with a finding where its memory does not fit the card."""
    videos = ask([PromptEntry(0, "a video", (), PromptSettings(), "doctor")], [(0, point)]).videos[:1]
    try:
        return make_plan(point.run, machine, videos, __version__), []
    except UserError as error:
        if not point.run.hardware.known:
            raise
        card, point.run.hardware = point.run.hardware, HardwareConfig()
        plan = make_plan(point.run, machine, videos, __version__)  # refuses what is wrong apart from memory
        point.run.hardware = card
        fix = "as it says; opensora-launch plan shows more"
        return plan, [Finding(Level.fail, "plan", line, fix, "no cost") for line in error.problems]


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


def _bars(found: Sequence[Finding]) -> list[Bar]:
    """Memory and disk that are free, and the bandwidth of each axis."""
    measured = [(f"{f.host} " if f.host == "all" else "", f) for f in found if f.value is not None]
    return [(f"{where}{f.what.split(': ')[0][:44]}", f.value or 0.0, f.unit) for where, f in measured]


def _print(found: Sequence[Finding]) -> None:
    colours = {Level.ok: "green", Level.warn: "yellow", Level.fail: "bold red"}
    counts = {level: sum(f.level is level for f in found) for level in Level}
    summary = f"{counts[Level.ok]} ok, {counts[Level.warn]} to look at, {counts[Level.fail]} that stop a run"
    each = zip(found, lines(found), strict=True)
    show([*([(line[:4], colours[f.level]), (line[4:], "")] for f, line in each), [(summary, "")]])
