"""From a command line to runs that can start, or to one message with every reason why not. Nothing is written here."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.doctor.engine_packages import engine_problems
from opensora_launch.doctor.torch_facts import torch_problems
from opensora_launch.errors import Problems
from opensora_launch.launch.command import launch_problems
from opensora_launch.machine.choose_gpus import Picked
from opensora_launch.machine.find_machine import NOTHING, find_machine, found_gpus
from opensora_launch.media.reference_files import unreadable
from opensora_launch.plan.first_frames import image_problems, image_run
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.compose import Composed, ConfigPoint, compose
from opensora_launch.request.final_config import absolute_lora, final_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.prompt_rows import (
    PromptRows,
    bad_row_lines,
    check_rows,
    left_out_notes,
    name_problems,
    read_list,
)
from opensora_launch.request.refine import FLAG, refine_entries, refine_words
from opensora_launch.request.videos import RequestedVideos, request_videos
from opensora_launch.request.write_run import RunRecord
from opensora_launch.rundir import output_problems
from opensora_launch.schema.config import Device, LauncherKind, RunConfig, TopologyConfig
from opensora_launch.schema.plain import plain
from opensora_launch.slurm.allocation import allocation_machine, on_its_node
from opensora_launch.slurm.query import no_sbatch
from opensora_launch.slurm.script import slurm_machine

# Sampling settings that each video has for itself: points of a sweep that differ in nothing else are one run.
PER_VIDEO = (
    "num_steps", "guidance", "guidance_img", "text_osci", "image_osci", "scale_temporal_osci",
    "seed", "num_samples", "cond_type", "motion_score", "negative_prompt",
)  # fmt: skip
BLIND = "torch sees none of the GPUs here: opensora-launch doctor tells why; topology=cpu2 asks for CPU ranks"
NOT_A_NODE = (
    "launcher=srun: this host is no node of the allocation, so its GPUs tell nothing about the ranks' card, and "
    "layouts are chosen by rule: name the card with hardware=NAME"
)


@dataclass(frozen=True)
class PlannedRun:
    """One run: its plan, what its folder records, and why this machine cannot run it (empty if it can).

    `refused` are the videos that the plan leaves out, by name, and why their references cannot be used. `folder` is the
    one after --output; None for a new one in runs_dir.
    """

    record: RunRecord
    plan: Plan
    refused: Mapping[str, str]
    swept: tuple[tuple[int, tuple[str, ...]], ...]  # (number, swept overrides) of each of its points of a sweep
    unfit: tuple[str, ...]
    folder: Path | None = None

    @property
    def run(self) -> RunConfig:
        return self.record.config


@dataclass(frozen=True)
class Prepared:
    """All runs of a command line.

    `notes` tell which model and GPUs were chosen where the user named none, and which prompts cannot be made.
    """

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

    Raises UserError with every problem of config, prompts, references, plan, machine and weight files. In a list of
    several prompts, those whose references cannot be used are left out (PlannedRun.refused), unless that is all of them
    or --strict is given. With dry_run=true, problems of the machine and of weight files are in PlannedRun.unfit.
    """
    problems = Problems()
    composed: Composed | None = None
    with problems.collect():
        composed = compose(parsed.rest, multirun=parsed.has("--multirun"), config_dir=parsed.path("--config-dir"))
    dry_run = composed is not None and all(point.run.dry_run for point in composed.points)
    entries, chosen = read_list(parsed, problems, dry_run=dry_run)
    problems.add(unreadable(entries[chosen.start : chosen.stop]) if composed is None else ())
    problems.add(name_problems(parsed.one("--name"), entries))
    merged_points = _merge(composed.points) if composed else []
    problems.add(_folder_problems(parsed, len(merged_points)))
    with problems.collect():
        if (command := parsed.one(FLAG)) is not None:
            refine_words(command)
    each = list[tuple[PromptRows, RanksMachine]]()
    notes = [composed.model_note] if composed and composed.model_note else []
    bad, refuse_all = dict[tuple[str, str], None](), parsed.has("--strict")
    for merged in merged_points:
        points, here = _final(merged, parsed, machine, problems)
        found = ranks_machine(points[0][1].run, here, machine)
        notes += [note for note in found.notes if note not in notes]
        rows = check_rows(entries, chosen, points, problems)
        bad |= dict.fromkeys(rows.bad)
        refuse_all |= rows.none_is_good
        each.append((rows, found))
    planned = [(rows, *_plan_run(rows, found, parsed.one("--name"), problems)) for rows, found in each]
    if parsed.has("--images-only") and not all(plan and plan.images for _, _, plan, _ in planned):
        problems.add(["--images-only: this makes no first frames; choose a model for them: image=flux"])
    refused = bad_row_lines(bad)
    problems.add(refused if refuse_all or problems.lines else ())
    problems.stop("this run cannot start")
    if command is not None and not dry_run:
        entries = refine_entries(command, entries, set[int]().union(*(rows.good for rows, _ in each)))
        each = [(replace(rows, entries=entries), found) for rows, found in each]
        planned = [(rows, *_plan_run(rows, found, parsed.one("--name"), problems)) for rows, found in each]
        problems.stop("this run cannot start")
    return Prepared(tuple(_planned(parsed, *one) for one in planned), (*notes, *left_out_notes(refused)))


def _final(
    points: Sequence[tuple[int, ConfigPoint]], parsed: Parsed, machine: Machine | None, problems: Problems
) -> tuple[list[tuple[int, ConfigPoint]], Picked]:
    """The points with final configs, and the GPUs of this host that their ranks would use."""
    here, made = gpus_of_run(points[0][1].run, machine), []
    for number, point in points:
        final = final_config(
            point.run,
            here,
            parsed.path("--config-dir"),
            negative_prompt=parsed.one("--negative-prompt"),
            loras=parsed.all("--lora"),
            image_loras=parsed.all("--image-lora"),
        )
        problems.add(final.problems)
        made.append((number, replace(point, run=final.run)))
    return made, here


def gpus_of_run(run: RunConfig, given: Machine | None = None) -> Picked:
    """The GPUs of this host that a run would take: none if its ranks will be on others. `given`: as `ranks_machine`."""
    kind = run.launcher.kind
    elsewhere = kind is LauncherKind.slurm or (kind is LauncherKind.srun and not on_its_node(os.environ))
    return NOTHING if elsewhere and given is None else found_gpus(run.topology, os.environ)


def ranks_machine(run: RunConfig, here: Picked, given: Machine | None = None) -> RanksMachine:
    """The machine of a run. `here` are the GPUs of this host; `given` is the machine of ranks that are started."""
    if given is not None:
        return _as_started(run.topology, here, given)
    if run.launcher.kind is LauncherKind.slurm:
        machine, problems = slurm_machine(run.topology, run.launcher.slurm)
        return RanksMachine(machine, (*problems, *([] if run.dry_run else no_sbatch())))
    if run.launcher.kind is LauncherKind.srun:
        machine, problems = allocation_machine(run.topology, os.environ)
        unknown = machine.device == "cuda" and run.hardware.name is None and not on_its_node(os.environ)
        return RanksMachine(machine, tuple(problems), (NOT_A_NODE,) if unknown else ())
    machine, problems = find_machine(run.topology, here)
    notes = here.lines if machine.device == "cuda" else ()
    if here.gpus:
        problems += torch_problems(here.visible)
    return RanksMachine(machine, (*problems, *launch_problems(run.launcher.kind, machine)), notes)


def _as_started(topology: TopologyConfig, here: Picked, there: Machine) -> RanksMachine:
    """The machine of ranks that were started by hand, on the requested device. Ranks without a GPU have to be asked
    for where `here` has some.
    """
    problems = []
    if topology.device is Device.auto and there.device == "cpu" and (here.fault or here.visible):
        problems += [here.fault] if here.fault else torch_problems(here.visible) or [BLIND]
    asked = topology.nodes * (topology.gpus_per_node or 0)
    if asked and asked != there.ranks:
        problems.append(
            f"topology asks for {asked} ranks and {there.ranks} have been started: start {asked}, or leave topology out"
        )
    if topology.device is Device.cuda and there.device == "cpu":
        problems.append("topology.device=cuda, but these ranks see no GPU: use topology.device=cpu or auto")
    return RanksMachine(replace(there, device="cpu") if topology.device is Device.cpu else there, tuple(problems))


def weight_problems(run: RunConfig) -> list[str]:
    """Weight files and LoRAs that are missing or do not fit the config."""
    from opensora_launch.model.lora_files import lora_problems
    from opensora_launch.model.weight_files import check_files

    problems = check_files(run.model) or lora_problems(run.model)
    if run.image.model and not image_problems(run):
        image = image_run(run).model
        problems += [line for line in check_files(image) or lora_problems(image) if line not in problems]
    return problems


def _folder_problems(parsed: Parsed, runs: int) -> list[str]:
    """One line if the folder after --output cannot be that of this run."""
    if (folder := parsed.path("--output")) is None:
        return []
    if runs > 1:
        return [f"--output is the folder of one run, and this sweep is {runs} runs: use runs_dir=FOLDER"]
    return output_problems(folder)


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
    rows: PromptRows, found: RanksMachine, template: str | None, problems: Problems
) -> tuple[RequestedVideos, Plan | None, tuple[str, ...]]:
    run = rows.points[0][1].run
    unfit = (*found.problems, *engine_problems(run.engine), *weight_problems(run))
    if not run.dry_run:
        problems.add(unfit)
    plan, requested = None, RequestedVideos((), ())
    if not problems.lines:
        requested = request_videos(rows.entries, rows.points, template=template, chosen=rows.chosen)
    refused = rows.refused(requested)
    with problems.collect():
        for _, point in rows.points[1:]:  # their settings may be wrong; the plan is the same
            make_plan(point.run, found.machine, (), __version__)
        plan = make_plan(run, found.machine, [v for v in requested.videos if v.name not in refused], __version__)
    return requested, plan, unfit


def _planned(
    parsed: Parsed, rows: PromptRows, requested: RequestedVideos, plan: Plan | None, unfit: tuple[str, ...]
) -> PlannedRun:
    assert plan, "without a plan there is a problem, and it was raised"
    if parsed.has("--images-only"):
        plan = replace(plan, videos=())  # of this attempt; the run's own plan has them
    first = rows.points[0][1]
    argv = list(first.overrides)
    for flag in ("--negative-prompt", "--name"):
        if (value := parsed.one(flag)) is not None:
            argv = [flag, value, *argv]
    for flag in ("--lora", "--image-lora"):
        argv = [*(word for lora in parsed.all(flag) for word in (flag, absolute_lora(lora))), *argv]
    if folder := parsed.path("--config-dir"):
        argv = ["--config-dir", os.path.abspath(folder), *argv]
    swept = tuple((number, point.swept) for number, point in rows.points if point.swept)
    record = RunRecord(first.run, argv, requested.prompt_lines, requested.videos)
    folder = Path(os.path.abspath(named)) if (named := parsed.path("--output")) is not None else None
    return PlannedRun(record, plan, rows.refused(requested), swept, unfit, folder)
