"""`--resume RUN`: plan what is missing in a run, perhaps on other ranks."""

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.errors import Problems
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.media.reference_files import ReferenceCheck
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.compose import compose
from opensora_launch.request.final_config import PACKAGE, final_config
from opensora_launch.request.flags import GENERATE_FLAGS, Parsed, parse
from opensora_launch.request.prepare import gpus_of_run, ranks_machine, weight_problems
from opensora_launch.request.prompt_rows import bad_row_lines, left_out_notes
from opensora_launch.request.write_run import new_attempt
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import read_request
from opensora_launch.runs.finished_videos import forget_failed, missing_videos, record_failed, sample_file
from opensora_launch.runs.newest import named_run
from opensora_launch.runs.state import read_state
from opensora_launch.schema.config import Device, LauncherKind, ModelConfig, RunConfig, TopologyConfig
from opensora_launch.schema.kernel_kinds import APPROXIMATE
from opensora_launch.schema.plain import flat, plain

# What may differ from the run's config: where and how the videos are made, not which. Attention only if it is exact.
MAY_CHANGE = (
    "topology", "layout", "launcher", "env", "estimate", "attention", "compile", "overlap", "profile",
    "preview_every_steps", "dry_run", "follow", "runs_dir",
    "hardware", "text_cache", "model.folder", "model.download", "model.mmdit_prefix", "model.vae_prefix",
    "image.model.folder", "image.model.download", "image.model.mmdit_prefix", "image.model.vae_prefix",
    "model.trained_frames",
    "sampling.batch_size", "sampling.prune_rows", "fit",
    "placement.shard", "placement.offload", "placement.resident_blocks", "placement.rows_at_once",
)  # fmt: skip
NEW_RUN_FLAGS = (
    "--prompt", "--prompts", "--ref", "--lora", "--image-lora", "--negative-prompt", "--multirun", "--config-dir",
    "--start", "--end", "--name", "--refine-command",
)  # fmt: skip


@dataclass(frozen=True)
class ResumedRun:
    """The plan of what is missing. `unfit` says why this machine cannot run it: it is empty except in a dry run.

    `refused` are missing videos that the plan leaves out, by name, and why their references cannot be used.
    """

    run_dir: RunDir
    run: RunConfig
    plan: Plan
    refused: Mapping[str, str]
    unfit: tuple[str, ...]
    notes: tuple[str, ...]


def prepare_resume(parsed: Parsed, machine: Machine | None = None) -> ResumedRun:
    """Plan what is missing in the run after --resume. `machine` is found on this host if it is not given.

    Raises UserError for a folder that is not a run, for a run that is still being made, for overrides that would change
    the videos, and if the references of no missing video can be used (with --strict: of one).
    """
    run_dir = _run_dir(parsed)
    problems = Problems()
    unwanted = [name for name in NEW_RUN_FLAGS if parsed.has(name)]
    problems.add(f"{name} does not go with --resume: the run has its own videos" for name in unwanted)
    if (output := parsed.path("--output")) is not None and os.path.abspath(output) != str(run_dir):
        problems.add([f"--output {output} does not go with --resume {run_dir}: a run stays in its own folder"])
    before, config, argv = read_request(run_dir)
    problems.add(still_running(run_dir))
    words = _merged_words(argv, parsed.rest)
    with problems.collect():
        folder = words.path("--config-dir")
        composed = compose(words.rest, config_dir=folder).points[0].run
        new = {_key(text) for text in parsed.rest}
        composed = _with_recorded_folders(composed, config, new)
        if not any(key.startswith("topology") for key in new):
            composed = replace(composed, topology=_recorded_topology(composed, before.machine))
        here = gpus_of_run(composed, machine)
        final = final_config(composed, here, folder, negative_prompt=words.one("--negative-prompt"))
        run = final.run
        problems.add([*final.problems, *_changes(config, plain(run))])
        found = ranks_machine(run, here, machine)
        missing = missing_videos(run_dir, before.videos)
        unfit = (*found.problems, *(weight_problems(run) if missing else []))
        if missing and not run.dry_run:
            problems.add(unfit)
        check = ReferenceCheck(before.geometry.num_frames)
        reasons = {v.name: [] if v.image else check.problems(v.refs, v.cond_type) for v in missing}
        refused = {name: "; ".join(wrong) for name, wrong in reasons.items() if wrong}
        lines = bad_row_lines((name, reason) for name, wrong in reasons.items() for reason in wrong)
        if parsed.has("--strict") or len(refused) == len(missing):
            problems.add(lines)
        good = [video for video in missing if video.name not in refused]
        notes = (*found.notes, *left_out_notes(lines))
        made = {video.name for video in good if sample_file(run_dir.images, video.name)}
        plan = make_plan(run, found.machine, good, __version__, made_images=made)
        if "compile" not in new and before.machine.device == plan.machine.device:
            plan = replace(plan, compile=before.compile)  # a video keeps the kernels that it began with
            if plan.images and before.images:
                plan = replace(plan, images=replace(plan.images, compile=before.images.compile))
        plan = replace(plan, videos=()) if parsed.has("--images-only") else plan
        resumed = ResumedRun(run_dir, run, plan, refused, unfit, notes)
    problems.stop(f"{run_dir} cannot be resumed")
    return resumed


def start_resumed(resumed: ResumedRun, made: Profiled) -> AttemptDir:
    """Make the folder of the next attempt. What failed before counts no more, except what is refused now."""
    forget_failed(resumed.run_dir)
    forget_failed(resumed.run_dir.images)
    record_failed(resumed.run_dir, resumed.refused)
    return new_attempt(resumed.run_dir, resumed.plan, resumed.run.launcher.kind, made)


def _with_recorded_folders(run: RunConfig, config: Mapping[str, Any], new: Set[str]) -> RunConfig:
    """Keep the run's folders, whatever the working directory and the home are now.

    Except a model's folder inside this package, which may have moved, and what the new overrides set.
    """
    old = dict(flat(config))
    text_cache = run.text_cache if "text_cache" in new else old.get("text_cache", run.text_cache)
    image = run.image
    if image.model:
        image = replace(image, model=_with_recorded_paths(image.model, "image.model", old, new))
    return replace(run, model=_with_recorded_paths(run.model, "model", old, new), image=image, text_cache=text_cache)


def _with_recorded_paths(model: ModelConfig, at: str, old: Mapping[str, Any], new: Set[str]) -> ModelConfig:
    """Keep the folder and the LoRAs of a model, of which `at` is the key; those of --lora are among them."""
    chosen = {at, at.partition(".")[0]} & new
    if not (chosen or f"{at}.folder" in new or model.folder.startswith(PACKAGE)):
        model = replace(model, folder=str(old.get(f"{at}.folder", model.folder)))
    if not (chosen or f"{at}.lora" in new):
        model = replace(model, lora=list(old.get(f"{at}.lora", [])))
    return model


def _recorded_topology(run: RunConfig, before: Machine) -> TopologyConfig:
    """The run's topology; for a batch job that names no number of ranks, that of the job which made the run.

    A job that was submitted by hand has its nodes and ranks from its script.
    """
    if run.launcher.kind is not LauncherKind.slurm or run.topology.gpus_per_node is not None:
        return run.topology
    device = Device(before.device)
    return replace(run.topology, nodes=before.nodes, gpus_per_node=before.gpus_per_node, device=device)


def resumed_words(parsed: Parsed) -> Parsed:
    """The flags and overrides that made the run, with the overrides that are given beside --resume."""
    _, _, argv = read_request(_run_dir(parsed))
    return _merged_words(argv, parsed.rest)


def _run_dir(parsed: Parsed) -> RunDir:
    return RunDir(Path(os.path.abspath(named_run(str(parsed.path("--resume") or "")))))


def _merged_words(argv: Sequence[str], more: Sequence[str]) -> Parsed:
    """The words of the run with `more` ones, which replace those of the same key, or below a group chosen again."""
    before, replaced = parse("generate", GENERATE_FLAGS, argv), tuple(f"{_key(text)}." for text in more)
    kept = (text for text in before.rest if not f"{_key(text)}.".startswith(replaced))
    return replace(before, rest=(*kept, *more))


def still_running(run_dir: RunDir) -> list[str]:
    """A line if ranks work on this run, or if a job waits to: by Slurm, processes and heartbeats."""
    state = read_state(run_dir)
    if queued := [s for answer in state.jobs for s in answer.states if not s.over]:
        return [f"job {queued[0].job} is {queued[0].state}: opensora-launch cancel {run_dir} ends it"]
    alive = [beat for attempt in state.at_work for beat in state.beats_alive(attempt)]
    return [f"it is still running: rank {b.rank} on {b.host} (pid {b.pid}); end it first" for b in alive[:1]]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Lines on settings that would change the videos. A run of an earlier version has the default of what it lacks."""
    old, new = dict(flat(plain(RunConfig()))) | dict(flat(before)), dict(flat(now))
    fixed = {"attention"} if not APPROXIMATE.isdisjoint((old["attention"], new["attention"])) else set()
    may_change = tuple(f"{name}." for name in MAY_CHANGE if name not in fixed)
    for key in dict.fromkeys([*old, *new]):
        if not f"{key}.".startswith(may_change) and old.get(key) != new.get(key):
            yield f"{key}={new.get(key)} would change the videos (the run has {old.get(key)}); start a new run for that"
