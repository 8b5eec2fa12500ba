"""From a command line to runs that can start, or to one message with every reason why not. Nothing is written here."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from opensora_launch.request.final_config import absolute, absolute_lora, final_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.prompt_rows import PromptRows, bad_row_lines, check_rows, left_out_notes, read_list
from opensora_launch.request.refine import FLAG, refine_entries, refine_words
from opensora_launch.request.video_names import template_problems
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
    """All runs of a command line. `notes` tell which model and GPUs were chosen, and which prompts cannot be made."""

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
    if (template := parsed.one("--name")) is not None:
        problems.add(template_problems(template, named=not entries or any(entry.name for entry in entries)))
    merged_points = _merge(composed.points) if composed else []
    if (folder := parsed.path("--output")) is not None:
        many = f"--output is the folder of one run, and this sweep is {len(merged_points)} runs: use runs_dir=FOLDER"
        problems.add([many] if len(merged_points) > 1 else output_problems(folder))
    with problems.collect():
        if (command := parsed.one(FLAG)) is not None:
            refine_words(command)
    each = list[tuple[PromptRows, RanksMachine]]()
    notes = [composed.model_note] if composed and composed.model_note else []
    bad, refuse_all = dict[tuple[str, str], None](), parsed.has("--strict")
    for merged in merged_points:
        here = gpus_of_run(merged[0].run, machine)
        points = [_final(point, here, parsed, problems) for point in merged]
        found = ranks_machine(points[0].run, here, machine)
        notes += [note for note in found.notes if note not in notes]
        rows = check_rows(entries, chosen, points, problems)
        bad |= dict.fromkeys(rows.bad)
        refuse_all |= not rows.good
        each.append((rows, found))
    planned = [_plan_run(rows, found, parsed, problems) for rows, found in each]
    if parsed.has("--images-only") and not all(one and one.plan.images for one in planned):
        problems.add(["--images-only: this makes no first frames; choose a model for them: image=flux"])
    refused = bad_row_lines(bad)
    problems.add(refused if refuse_all or problems.lines else ())
    problems.stop("this run cannot start")
    if command is not None and not dry_run:
        entries = refine_entries(command, entries, set[int]().union(*(rows.good for rows, _ in each)))
        each = [(replace(rows, entries=entries), found) for rows, found in each]
        planned = [_plan_run(rows, found, parsed, problems) for rows, found in each]
        problems.stop("this run cannot start")
    runs = [one for one in planned if one]
    if parsed.has("--images-only"):  # of this attempt; the run's own plan has the videos too
        runs = [replace(one, plan=replace(one.plan, videos=())) for one in runs]
    return Prepared(tuple(runs), (*notes, *left_out_notes(refused)))


def _final(point: ConfigPoint, here: Picked, parsed: Parsed, problems: Problems) -> ConfigPoint:
    """The point with its final config, whose ranks would use the GPUs that are `here`."""
    final = final_config(
        point.run,
        here,
        parsed.path("--config-dir"),
        negative_prompt=parsed.one("--negative-prompt"),
        loras=parsed.all("--lora"),
        image_loras=parsed.all("--image-lora"),
    )
    problems.add(final.problems)
    return replace(point, run=final.run)


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


def _merge(points: Sequence[ConfigPoint]) -> list[list[ConfigPoint]]:
    """Group the points that are one run: everything except PER_VIDEO is equal in a group."""
    runs = defaultdict[str, list[ConfigPoint]](list)
    for point in points:
        config = plain(point.run)
        config["sampling"] = {k: v for k, v in config["sampling"].items() if k not in PER_VIDEO}
        runs[repr(config)].append(point)
    return list(runs.values())


def _plan_run(rows: PromptRows, found: RanksMachine, parsed: Parsed, problems: Problems) -> PlannedRun | None:
    """The run of these prompts; None if a problem, which is added, keeps it from having a plan."""
    run, overrides = rows.points[0].run, rows.points[0].overrides
    unfit = (*found.problems, *engine_problems(run.engine), *weight_problems(run))
    if not run.dry_run:
        problems.add(unfit)
    requested = RequestedVideos((), ())
    if not problems.lines:
        requested = request_videos(rows.entries, rows.points, parsed.one("--name"), rows.chosen)
    refused = rows.refused(requested)
    flags = {"--config-dir": absolute, "--image-lora": absolute_lora, "--lora": absolute_lora}
    argv = [*parsed.again(flags | {"--name": str, "--negative-prompt": str}), *overrides]
    record = RunRecord(run, argv, requested.prompt_lines, requested.videos)
    swept = tuple((point.number, point.swept) for point in rows.points if point.swept)
    folder = Path(os.path.abspath(named)) if (named := parsed.path("--output")) is not None else None
    with problems.collect():
        for point in rows.points[1:]:  # their settings may be wrong; the plan is the same
            make_plan(point.run, found.machine, (), __version__)
        plan = make_plan(run, found.machine, [v for v in requested.videos if v.name not in refused], __version__)
        return PlannedRun(record, plan, refused, swept, unfit, folder)
    return None
