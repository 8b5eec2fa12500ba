"""From a command line to runs that can start, or to one message with every reason why not. Nothing is written here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.doctor.engine_packages import engine_problems
from opensora_launch.errors import Problems
from opensora_launch.launch.command import launch_problems
from opensora_launch.machine.choose_gpus import Picked
from opensora_launch.machine.find_machine import find_machine, found_gpus
from opensora_launch.media.prompts import PromptEntry, PromptSettings, read_prompts
from opensora_launch.media.reference_files import check_references, unreadable
from opensora_launch.plan.plan import Machine, Plan, make_plan
from opensora_launch.request.compose import Composed, ConfigPoint, compose
from opensora_launch.request.final_config import final_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.videos import (
    RequestedVideos,
    prompt_setting_problems,
    request_videos,
    with_condition_types,
)
from opensora_launch.request.write_run import RunRecord
from opensora_launch.schema.config import Device, LauncherKind, RunConfig, TopologyConfig
from opensora_launch.schema.plain import plain
from opensora_launch.slurm.allocation import allocation_machine
from opensora_launch.slurm.query import no_sbatch
from opensora_launch.slurm.script import slurm_machine

# Sampling settings that each video has for itself: points of a sweep that differ in nothing else are one run.
PER_VIDEO = (
    "num_steps", "guidance", "guidance_img", "text_osci", "image_osci", "scale_temporal_osci",
    "seed", "num_samples", "cond_type", "motion_score", "negative_prompt",
)  # fmt: skip
NO_PROMPT = 'no prompt: give one, as in: opensora-launch generate --prompt "raining, sea"; or a file by --prompts'


@dataclass(frozen=True)
class PlannedRun:
    """One run: its plan, what its folder records, and why this machine cannot run it (empty if it can)."""

    record: RunRecord
    plan: Plan
    swept: tuple[tuple[int, tuple[str, ...]], ...]  # (number, swept overrides) of each of its points of a sweep
    unfit: tuple[str, ...]

    @property
    def run(self) -> RunConfig:
        return self.record.config


@dataclass(frozen=True)
class Prepared:
    """All runs of a command line. `notes` tell which model and which GPUs were chosen where the user named none."""

    runs: tuple[PlannedRun, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RanksMachine:
    """The machine of a run's ranks, why this host cannot be or get it, and notes on its GPUs."""

    machine: Machine
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def prepare_runs(parsed: Parsed, machine: Machine | None = None) -> Prepared:
    """Plan the runs of a command line of `generate`. `machine` is found on this host if it is not given.

    Raises UserError with every problem of config, prompts, references, plan, machine and weight files. With
    dry_run=true, problems of the machine and of weight files are not raised: they are in PlannedRun.unfit.
    """
    problems = Problems()
    composed: Composed | None = None
    with problems.collect():
        composed = compose(parsed.rest, multirun=parsed.has("--multirun"), config_dir=parsed.path("--config-dir"))
    entries = _entries(parsed, composed, problems)
    problems.add(unreadable(entries) if composed is None else ())
    planned, notes = [], [composed.model_note] if composed and composed.model_note else []
    for merged in _merge(composed.points) if composed else ():
        points, here = _final(merged, parsed, problems)
        found = ranks_machine(points[0][1].run, here, machine)
        notes += [note for note in found.notes if note not in notes]
        planned.append((points, *_plan_run(points, entries, found, problems)))
    problems.stop("this run cannot start")
    return Prepared(tuple(_planned(parsed, *one) for one in planned), tuple(notes))


def _final(
    points: Sequence[tuple[int, ConfigPoint]], parsed: Parsed, problems: Problems
) -> tuple[list[tuple[int, ConfigPoint]], Picked]:
    """The points with final configs, and the GPUs of this host that their ranks would use."""
    here, made = found_gpus(points[0][1].run.topology, os.environ), []
    for number, point in points:
        final = final_config(
            point.run, here, parsed.path("--config-dir"), negative_prompt=parsed.one("--negative-prompt")
        )
        problems.add(final.problems)
        made.append((number, replace(point, run=final.run)))
    return made, here


def ranks_machine(run: RunConfig, here: Picked, given: Machine | None = None) -> RanksMachine:
    """The machine of a run. `here` are the GPUs of this host; `given` is the machine of ranks that are started."""
    if given is not None:
        return _as_started(run.topology, given)
    if run.launcher.kind is LauncherKind.slurm:
        machine, problems = slurm_machine(run.topology, run.launcher.slurm)
        return RanksMachine(machine, (*problems, *([] if run.dry_run else no_sbatch())))
    if run.launcher.kind is LauncherKind.srun:
        machine, problems = allocation_machine(run.topology, os.environ)
        return RanksMachine(machine, tuple(problems))
    machine, problems = find_machine(run.topology, os.environ)
    notes = here.lines if machine.device == "cuda" else ()
    return RanksMachine(machine, (*problems, *launch_problems(run.launcher.kind, machine)), notes)


def _as_started(topology: TopologyConfig, there: Machine) -> RanksMachine:
    """The machine of ranks that were started by hand, on the requested device."""
    problems = []
    asked = topology.nodes * (topology.gpus_per_node or 0)
    if asked and asked != there.ranks:
        problems.append(
            f"topology asks for {asked} ranks and {there.ranks} have been started: start {asked}, or leave topology out"
        )
    if topology.device is Device.cuda and there.device == "cpu":
        problems.append("topology.device=cuda, but these ranks see no GPU: use topology.device=cpu or auto")
    return RanksMachine(replace(there, device="cpu") if topology.device is Device.cpu else there, tuple(problems))


def weight_problems(run: RunConfig) -> list[str]:
    """Weight files that are missing or do not fit the config."""
    from opensora_launch.model.weight_files import check_files

    return check_files(run.model)


def _entries(parsed: Parsed, composed: Composed | None, problems: Problems) -> tuple[PromptEntry, ...]:
    texts, files = parsed.all("--prompt"), [Path(file) for file in parsed.all("--prompts")]
    if not texts and not files:
        if composed and all(point.run.dry_run for point in composed.points):
            return (PromptEntry(0, "(no prompt given)", (), PromptSettings(), "dry_run=true"),)
        problems.add([NO_PROMPT])
        return ()
    return read_prompts(texts, files, parsed.all("--ref"), problems)


def _merge(points: Sequence[ConfigPoint]) -> list[list[tuple[int, ConfigPoint]]]:
    """Number the points, and group those that are one run: everything except PER_VIDEO is equal in a group."""

    def shared(numbered: tuple[int, ConfigPoint]) -> str:
        config = plain(numbered[1].run)
        config["sampling"] = {k: v for k, v in config["sampling"].items() if k not in PER_VIDEO}
        return repr(config)

    numbered = list(enumerate(points))
    first = {shared(p): p[0] for p in reversed(numbered)}
    ordered = sorted(numbered, key=lambda p: (first[shared(p)], p[0]))
    return [list(group) for _, group in groupby(ordered, key=shared)]


def _plan_run(
    points: Sequence[tuple[int, ConfigPoint]],
    entries: Sequence[PromptEntry],
    found: RanksMachine,
    problems: Problems,
) -> tuple[RequestedVideos, Plan | None, tuple[str, ...]]:
    run = points[0][1].run
    for _, point in points:
        if wrong := prompt_setting_problems(point.run):
            problems.add([*wrong, *unreadable(entries)])
        else:
            typed = with_condition_types(entries, point.run)
            problems.add(check_references(typed, point.run.sampling.cond_type, run.video.num_frames))
    unfit = (*found.problems, *engine_problems(run.engine), *weight_problems(run))
    if not run.dry_run:
        problems.add(unfit)
    plan, requested = None, RequestedVideos((), ()) if problems.lines else request_videos(entries, points)
    with problems.collect():
        for _, point in points[1:]:  # their settings may be wrong; the plan is the same
            make_plan(point.run, found.machine, (), __version__)
        plan = make_plan(run, found.machine, requested.videos, __version__)
    return requested, plan, unfit


def _planned(
    parsed: Parsed,
    points: Sequence[tuple[int, ConfigPoint]],
    requested: RequestedVideos,
    plan: Plan | None,
    unfit: tuple[str, ...],
) -> PlannedRun:
    assert plan, "without a plan there is a problem, and it was raised"
    first = points[0][1]
    argv = list(first.overrides)
    if (negative := parsed.one("--negative-prompt")) is not None:
        argv = ["--negative-prompt", negative, *argv]
    if folder := parsed.path("--config-dir"):
        argv = ["--config-dir", os.path.abspath(folder), *argv]
    swept = tuple((number, point.swept) for number, point in points if point.swept)
    return PlannedRun(RunRecord(first.run, argv, requested.prompt_lines), plan, swept, unfit)
