"""`--resume RUN`: plan what is missing in a run, perhaps on other ranks."""

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.errors import Problems
from opensora_launch.machine.find_machine import found_gpus
from opensora_launch.plan.plan import Machine, Plan, make_plan
from opensora_launch.request.compose import compose
from opensora_launch.request.final_config import PACKAGE, final_config
from opensora_launch.request.flags import GENERATE_FLAGS, Parsed, parse
from opensora_launch.request.prepare import ranks_machine, weight_problems
from opensora_launch.rundir import RunDir
from opensora_launch.runs.alive import is_rank_alive
from opensora_launch.runs.files import missing_videos, read_request
from opensora_launch.runs.state import read_state
from opensora_launch.schema.config import RunConfig
from opensora_launch.schema.plain import plain

# What may differ from the run's config: where and how the videos are made, not which.
MAY_CHANGE = (
    "topology", "layout", "launcher", "env", "estimate", "attention", "profile", "dry_run", "follow", "runs_dir",
    "hardware", "text_cache", "model.folder", "model.download", "sampling.batch_size", "sampling.prune_rows", "fit",
    "placement.shard", "placement.offload", "placement.resident_blocks", "placement.rows_at_once",
)  # fmt: skip
NEW_RUN_FLAGS = ("--prompt", "--prompts", "--ref", "--negative-prompt", "--multirun", "--config-dir")


@dataclass(frozen=True)
class ResumedRun:
    """The plan of what is missing. `unfit` says why this machine cannot run it: it is empty except in a dry run."""

    run_dir: RunDir
    run: RunConfig
    plan: Plan
    unfit: tuple[str, ...]
    notes: tuple[str, ...]


def prepare_resume(parsed: Parsed, machine: Machine | None = None) -> ResumedRun:
    """Plan what is missing in the run after --resume. `machine` is found on this host if it is not given.

    Raises UserError for a folder that is not a run, for a run that is still being made, and for overrides that would
    change the videos.
    """
    run_dir = _run_dir(parsed)
    problems = Problems()
    problems.add(
        f"{name} does not go with --resume: the run has its own videos" for name in NEW_RUN_FLAGS if parsed.has(name)
    )
    plan, config, argv = read_request(run_dir)
    problems.add(still_running(run_dir))
    words = _merged_words(argv, parsed.rest)
    with problems.collect():
        folder = words.path("--config-dir")
        composed = compose(words.rest, config_dir=folder).points[0].run
        composed = _with_recorded_folders(composed, config, {_key(text) for text in parsed.rest})
        here = found_gpus(composed.topology, os.environ)
        final = final_config(composed, here, folder, negative_prompt=words.one("--negative-prompt"))
        run = final.run
        problems.add([*final.problems, *_changes(config, plain(run))])
        found = ranks_machine(run, here, machine)
        missing = missing_videos(run_dir, plan.videos)
        unfit = (*found.problems, *(weight_problems(run) if missing else []))
        if missing and not run.dry_run:
            problems.add(unfit)
        resumed = ResumedRun(run_dir, run, make_plan(run, found.machine, missing, __version__), unfit, found.notes)
    problems.stop(f"{run_dir} cannot be resumed")
    return resumed


def _with_recorded_folders(run: RunConfig, config: Mapping[str, Any], new: Set[str]) -> RunConfig:
    """Keep the run's folders, whatever the working directory and the home are now.

    Except a model's folder inside this package, which may have moved, and what the new overrides set.
    """
    old = dict(_flat(config))
    if not {"model", "model.folder"} & new and not run.model.folder.startswith(PACKAGE):
        run = replace(run, model=replace(run.model, folder=str(old.get("model.folder", run.model.folder))))
    if "text_cache" not in new:
        run = replace(run, text_cache=old.get("text_cache", run.text_cache))
    return run


def resumed_words(parsed: Parsed) -> Parsed:
    """The flags and overrides that made the run, with the overrides that are given beside --resume."""
    _, _, argv = read_request(_run_dir(parsed))
    return _merged_words(argv, parsed.rest)


def _run_dir(parsed: Parsed) -> RunDir:
    return RunDir(Path(os.path.abspath(parsed.one("--resume") or "")))


def _merged_words(argv: Sequence[str], more: Sequence[str]) -> Parsed:
    before = parse("generate", GENERATE_FLAGS, argv)
    return replace(before, rest=(*_still_valid(before.rest, more), *more))


def still_running(run_dir: RunDir) -> list[str]:
    """A line if ranks work on this run, or if a job waits to: by Slurm, and by fresh heartbeats."""
    state = read_state(run_dir)
    if queued := [s for answer in state.jobs for s in answer.states if not s.over]:
        return [f"job {queued[0].job} is {queued[0].state}: opensora-launch cancel {run_dir} ends it"]
    alive = [beat for attempt in state.at_work for beat in attempt.beats if is_rank_alive(beat)]
    return [f"it is still running: rank {b.rank} on {b.host} (pid {b.pid}); end it first" for b in alive[:1]]


def _still_valid(before: Sequence[str], new: Sequence[str]) -> list[str]:
    """The run's overrides, except those that a new one replaces: the same key, or a key below a group chosen again."""
    keys = {_key(text) for text in new}
    return [text for text in before if not any(_key(text) == key or _key(text).startswith(f"{key}.") for key in keys)]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in dict.fromkeys([*old, *new]):
        may_change = any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)
        if not may_change and old.get(key) != new.get(key):
            yield f"{key}={new.get(key)} would change the videos (the run has {old.get(key)}); start a new run for that"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
