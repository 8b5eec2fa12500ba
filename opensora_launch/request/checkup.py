"""What `doctor` examines: this machine, or every node of a Slurm job, for a run with these settings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.doctor.check_result import CheckResult, Level, ok
from opensora_launch.doctor.examine import check_between_nodes, full_checks, profile_results, quick_checks, with_host
from opensora_launch.doctor.nodes import ask_nodes, nodes_of_job
from opensora_launch.doctor.preflight import target_of
from opensora_launch.errors import Problems, UserError
from opensora_launch.launch.env_profile import profile_problems, profiled
from opensora_launch.machine.find_machine import found_gpus
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Plan
from opensora_launch.request.compose import compose
from opensora_launch.request.final_config import absolute, final_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.predicted_layouts import videos_like
from opensora_launch.request.prepare import RanksMachine, ranks_machine, weight_problems
from opensora_launch.request.videos import prompt_setting_problems
from opensora_launch.schema.config import Init, RunConfig


@dataclass(frozen=True)
class Checkup:
    """A run to examine the machine for. `misfits` are findings about memory that the card does not have."""

    run: RunConfig
    found: RanksMachine
    plan: Plan  # of one text-to-video request
    misfits: tuple[CheckResult, ...]


def prepare_checkup(parsed: Parsed) -> Checkup:
    """Read a command line of `doctor`. Raises UserError with everything that keeps it from starting."""
    config_dir, problems = parsed.path("--config-dir"), Problems()
    composed = compose(parsed.rest, config_dir=config_dir).points[0].run
    gpus = found_gpus(composed.topology, os.environ)
    final = final_config(composed, gpus, config_dir)
    run = final.run
    problems.add([*final.problems, *profile_problems(run.env), *prompt_setting_problems(run)])
    problems.stop("doctor cannot start")
    found, videos = ranks_machine(run, gpus), videos_like(run)[:1]  # what this machine lacks is a finding
    misfits: tuple[CheckResult, ...] = ()
    try:
        plan = make_plan(run, found.machine, videos, __version__)
    except UserError as error:
        plan = make_plan(run, found.machine, videos, __version__, by_rule=True)  # refuses what is wrong but memory
        fix = "as it says; opensora-launch plan shows more"
        misfits = tuple(CheckResult(Level.fail, "plan", line, fix, "no cost") for line in error.problems)
    return Checkup(run, found, plan, misfits)


def examine(checkup: Checkup, parsed: Parsed) -> list[CheckResult]:
    """Every finding about this host, or about every node of the Slurm job that this process is in."""
    nodes = nodes_of_job(os.environ)
    if nodes > 1 and not parsed.has("--here"):
        flags = [name for name in ("--quick", "--no-ranks") if parsed.has(name)]
        words = [*flags, *parsed.again({"--config-dir": absolute}), *parsed.rest]
        found = ask_nodes(nodes, words, os.environ | {"PYTHONSAFEPATH": "1"})
        return [*found, *_between_nodes(checkup, parsed)]
    return with_host(_this_host(checkup, parsed))


def _this_host(checkup: Checkup, parsed: Parsed) -> Sequence[CheckResult]:
    run, machine, plan = checkup.run, checkup.found.machine, checkup.plan
    made = profiled(os.environ, run.env)
    target = target_of(run, plan, made.env)
    more = [*checkup.misfits, *profile_results(target, made)]
    if parsed.has("--quick"):
        return [*quick_checks(target), *more] or [ok("quick", "no problem found")]
    ranks = machine.ranks > 1 and machine.nodes == 1 and not parsed.has("--no-ranks")
    nvlink = run.hardware.nvlink_gb_s if run.hardware.known else None
    return [*full_checks(target, plan.layouts[-1][1], ranks=ranks, nvlink_gb_s=nvlink), *more, *_files(run)]


def _between_nodes(checkup: Checkup, parsed: Parsed) -> list[CheckResult]:
    """What only all nodes of a Slurm job together can show: their clocks, and the links between them."""
    run, plan = checkup.run, checkup.plan
    if checkup.found.machine.nodes == 1 or parsed.has("--quick") or parsed.has("--no-ranks"):
        return []
    target = target_of(run, plan, profiled(os.environ, run.env).env)
    found = check_between_nodes(target, plan.layouts[-1][1], run.topology.node_link_gb_s, Path(run.runs_dir))
    return [replace(result, host="all") for result in found]


def _files(run: RunConfig) -> list[CheckResult]:
    """Whether the weight files are there, complete by their headers, and of the config's shapes."""
    if problems := weight_problems(run):
        return [CheckResult(Level.fail, "files", line, "as it says", "a download") for line in problems]
    have = "random weights, no files" if run.model.init is Init.random else "all files are here and complete"
    return [ok("files", f"{run.model.name}: {have}")]
