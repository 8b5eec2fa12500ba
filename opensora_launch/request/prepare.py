"""From a command line to jobs that can start, or to one message with every reason why not. Nothing is written here."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.doctor.engine_packages import engine_problems
from opensora_launch.errors import UserError
from opensora_launch.launch.command import launch_problems
from opensora_launch.machine.find_machine import find_machine, found_gpus
from opensora_launch.media.prompts import PromptEntry, PromptSettings, collect_prompts
from opensora_launch.media.reference_files import check_references, unreadable
from opensora_launch.plan.plan import Machine, Plan, make_plan
from opensora_launch.request.compose import Composed, Point, compose
from opensora_launch.request.flags import Parsed
from opensora_launch.request.hardware import settle_hardware
from opensora_launch.request.videos import Asked, ask, prompt_setting_problems, settle_cond_types
from opensora_launch.request.write_run import RunRecord
from opensora_launch.schema.config import Device, LauncherKind, RunConfig, TopologyConfig
from opensora_launch.schema.plain import plain
from opensora_launch.slurm.allocation import allocation_machine
from opensora_launch.slurm.query import no_sbatch
from opensora_launch.slurm.script import slurm_machine

# Sampling settings that each video has for itself: points of a sweep that differ in nothing else are one job.
PER_VIDEO = (
    "num_steps", "guidance", "guidance_img", "text_osci", "image_osci", "scale_temporal_osci",
    "seed", "num_samples", "cond_type", "motion_score", "negative_prompt",
)  # fmt: skip
PACKAGE = "package:"
NO_PROMPT = 'no prompt: give one, as in: opensora-launch generate --prompt "raining, sea"; or a file by --prompts'


@dataclass(frozen=True)
class Job:
    """One run: its plan, what its folder records, and why this machine cannot run it (empty if it can)."""

    record: RunRecord
    plan: Plan
    run: RunConfig
    swept: tuple[tuple[int, tuple[str, ...]], ...]  # (number, overrides) of each point of the sweep in it
    unfit: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    jobs: tuple[Job, ...]
    note: str  # which model was taken and why, where the user named none; else empty


class Problems:
    """Collects what UserErrors say, so that a user sees all of it at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, lines: Sequence[str]) -> None:
        self.lines += [line for line in lines if line not in self.lines]

    @contextmanager
    def collect(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.add(error.problems or (error.title,))

    def stop(self, title: str) -> None:
        if self.lines:
            raise UserError(title, self.lines)


def prepare_jobs(parsed: Parsed, machine: Machine | None = None) -> Prepared:
    """The jobs of a command line of `generate`. `machine` is found on this host where it is not given.

    Raises UserError with every problem of config, prompts, references, plan, machine and weight files. With
    dry_run=true the last two are not raised but told by the job: its plan is still of use.
    """
    problems = Problems()
    composed: Composed | None = None
    with problems.collect():
        composed = compose(parsed.rest, multirun=parsed.has("--multirun"), config_dir=parsed.path("--config-dir"))
    entries = _entries(parsed, composed, problems)
    problems.add(unreadable(entries) if composed is None else ())
    jobs = []
    for points in _merge(composed.points) if composed else ():
        for _, point in points:
            finish_config(point.run, parsed.one("--negative-prompt"))
            with problems.collect():
                settle_hardware(point.run, found_gpus(point.run.topology, os.environ), parsed.path("--config-dir"))
        jobs.append((points, *_plan_job(points, entries, machine, problems)))
    problems.stop("this run cannot start")
    assert composed
    return Prepared(tuple(_job(parsed, *job) for job in jobs), composed.model_note)


def finish_config(run: RunConfig, negative: str | None) -> None:
    """What no override can say: free text, and folders that stay the same from another working directory."""
    if negative is not None:
        run.sampling.negative_prompt = negative
    run.runs_dir = os.path.abspath(os.path.expanduser(run.runs_dir))
    if run.text_cache is not None:
        run.text_cache = os.path.abspath(os.path.expanduser(run.text_cache))
    run.model.folder = weights_folder(run.model.folder)


def weights_folder(folder: str) -> str:
    """An absolute path. "package:demo/ckpts" lies in this package, wherever it is installed."""
    if folder.startswith(PACKAGE):
        return str(Path(__file__).parent.parent / folder.removeprefix(PACKAGE))
    return os.path.abspath(os.path.expanduser(folder))


def machine_of(run: RunConfig, machine: Machine | None) -> tuple[Machine, list[str]]:
    """The machine of a run, and why it cannot be had. One that is given is there already, with its ranks."""
    if machine is not None:
        return _as_asked(run.topology, machine)
    if run.launcher.kind is LauncherKind.slurm:
        asked, problems = slurm_machine(run.topology, run.launcher.slurm)
        return asked, problems + ([] if run.dry_run else no_sbatch())
    if run.launcher.kind is LauncherKind.srun:
        return allocation_machine(run.topology, os.environ)
    found, problems = find_machine(run.topology, os.environ)
    if found.device == "cuda":
        for line in found_gpus(run.topology, os.environ).lines:
            print(line, file=sys.stderr)
    return found, problems + launch_problems(run.launcher.kind, found)


def _as_asked(topology: TopologyConfig, there: Machine) -> tuple[Machine, list[str]]:
    """The ranks that were started by hand, on the device that is asked for, and what they do not fit."""
    problems = []
    asked = topology.nodes * (topology.gpus_per_node or 0)
    if asked and asked != there.ranks:
        problems.append(
            f"topology asks for {asked} ranks and {there.ranks} have been started: start {asked}, or leave topology out"
        )
    if topology.device is Device.cuda and there.device == "cpu":
        problems.append("topology.device=cuda, but these ranks see no GPU: use topology.device=cpu or auto")
    return (replace(there, device="cpu") if topology.device is Device.cpu else there), problems


def weight_problems(run: RunConfig) -> list[str]:
    """Weight files that are missing or do not fit."""
    from opensora_launch.model.files import check_files

    return check_files(run.model)


def _entries(parsed: Parsed, composed: Composed | None, problems: Problems) -> tuple[PromptEntry, ...]:
    texts, files = parsed.all("--prompt"), [Path(file) for file in parsed.all("--prompts")]
    if not texts and not files:
        if composed and all(point.run.dry_run for point in composed.points):
            return (PromptEntry(0, "(no prompt given)", (), PromptSettings(), "dry_run=true"),)
        problems.add([NO_PROMPT])
        return ()
    entries, wrong = collect_prompts(texts, files, parsed.all("--ref"))
    problems.add(wrong)
    return entries


def _merge(points: Sequence[Point]) -> list[list[tuple[int, Point]]]:
    """Points, numbered, in groups that are one job each: all that is not PER_VIDEO is equal in a group."""

    def of_the_job(numbered: tuple[int, Point]) -> str:
        config = plain(numbered[1].run)
        config["sampling"] = {k: v for k, v in config["sampling"].items() if k not in PER_VIDEO}
        return repr(config)

    numbered = list(enumerate(points))
    first = {of_the_job(p): p[0] for p in reversed(numbered)}
    ordered = sorted(numbered, key=lambda p: (first[of_the_job(p)], p[0]))
    return [list(group) for _, group in groupby(ordered, key=of_the_job)]


def _plan_job(
    points: Sequence[tuple[int, Point]], entries: Sequence[PromptEntry], machine: Machine | None, problems: Problems
) -> tuple[Asked, Plan | None, tuple[str, ...]]:
    run = points[0][1].run
    for _, point in points:
        if wrong := prompt_setting_problems(point.run):
            problems.add([*wrong, *unreadable(entries)])
        else:
            settled = settle_cond_types(entries, point.run)
            problems.add(check_references(settled, point.run.sampling.cond_type, run.video.num_frames))
    found, unfit = machine_of(run, machine)
    unfit = [*unfit, *engine_problems(run.engine), *weight_problems(run)]
    if not run.dry_run:
        problems.add(unfit)
    plan, asked = None, Asked((), ()) if problems.lines else ask(entries, points)
    with problems.collect():
        for _, point in points[1:]:  # what is wrong with their settings; the plan itself is one
            make_plan(point.run, found, (), __version__)
        plan = make_plan(run, found, asked.videos, __version__)
    return asked, plan, tuple(unfit)


def _job(
    parsed: Parsed, points: Sequence[tuple[int, Point]], asked: Asked, plan: Plan | None, unfit: tuple[str, ...]
) -> Job:
    assert plan, "a plan that failed left a problem"
    first = points[0][1]
    argv = [*(word for name in ("--config-dir", "--negative-prompt") for word in _said(parsed, name)), *first.overrides]
    swept = tuple((number, point.swept) for number, point in points if point.swept)
    return Job(RunRecord(first.run, argv, asked.prompts), plan, first.run, swept, unfit)


def _said(parsed: Parsed, name: str) -> list[str]:
    value: Any = parsed.one(name)
    if value is None:
        return []
    return [name, os.path.abspath(value) if name == "--config-dir" else value]
