"""`--resume RUN`: the same run, only what is missing, perhaps on other ranks."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.machine.find_machine import found_gpus
from opensora_launch.plan.plan import Machine, Plan, make_plan
from opensora_launch.request.compose import compose
from opensora_launch.request.flags import GENERATE_FLAGS, Parsed, parse
from opensora_launch.request.hardware import settle_hardware
from opensora_launch.request.prepare import PACKAGE, Problems, finish_config, machine_of, weight_problems
from opensora_launch.rundir import RunDir
from opensora_launch.runs.files import missing_videos, read_run
from opensora_launch.runs.state import is_alive, read_state
from opensora_launch.schema.config import RunConfig
from opensora_launch.schema.plain import plain

# What may differ from the run's config: where and how the videos are made, not which.
FREE = (
    "topology", "layout", "launcher", "env", "estimate", "attention", "profile", "dry_run", "follow", "runs_dir",
    "hardware", "text_cache", "model.folder", "model.download", "sampling.batch_size", "sampling.prune_rows", "fit",
    "placement.shard", "placement.offload", "placement.resident_blocks", "placement.rows_at_once",
)  # fmt: skip
FRESH_S = 10.0  # twenty heartbeats
OF_THE_RUN = ("--prompt", "--prompts", "--ref", "--negative-prompt", "--multirun", "--config-dir")


@dataclass(frozen=True)
class Resumed:
    """The plan of what is missing; `unfit` says why this machine cannot run it, for a dry run."""

    run_dir: RunDir
    run: RunConfig
    plan: Plan
    unfit: tuple[str, ...]


def prepare_resume(parsed: Parsed, machine: Machine | None) -> Resumed:
    """Raises UserError for a folder that is no run, and for overrides that would change the videos."""
    run_dir = _run_dir(parsed)
    problems = Problems()
    problems.add(
        [f"{name} does not go with --resume: the videos are the run's own" for name in OF_THE_RUN if parsed.has(name)]
    )
    plan, config, argv = read_run(run_dir)
    problems.add(still_running(run_dir))
    asked = _asked(argv, parsed.rest)
    with problems.collect():
        folder = asked.path("--config-dir")
        run = compose(asked.rest, multirun=False, config_dir=folder).points[0].run
        _same_folders(run, config, {_key(text) for text in parsed.rest})
        finish_config(run, asked.one("--negative-prompt"))
        settle_hardware(run, found_gpus(run.topology, os.environ), folder)
        problems.add(list(_changes(config, plain(run))))
        found, unfit = machine_of(run, machine)
        missing = missing_videos(run_dir, plan.videos)
        unfit += weight_problems(run) if missing else []
        if missing and not run.dry_run:
            problems.add(unfit)
        resumed = Resumed(run_dir, run, make_plan(run, found, missing, __version__), tuple(unfit))
    problems.stop(f"{run_dir} cannot be resumed")
    return resumed


def _same_folders(run: RunConfig, config: Mapping[str, Any], new: Set[str]) -> None:
    """The run's own, whatever the working directory and the home are by now. This package may have moved: not its."""
    old = dict(_flat(config))
    if not {"model", "model.folder"} & new and not run.model.folder.startswith(PACKAGE):
        run.model.folder = str(old.get("model.folder", run.model.folder))
    if "text_cache" not in new:
        run.text_cache = old.get("text_cache", run.text_cache)


def words_of(parsed: Parsed) -> Parsed:
    """The run's own words, with the overrides that are given beside --resume."""
    _, _, argv = read_run(_run_dir(parsed))
    return _asked(argv, parsed.rest)


def _run_dir(parsed: Parsed) -> RunDir:
    return RunDir(Path(os.path.abspath(parsed.one("--resume") or "")))


def _asked(argv: Sequence[str], more: Sequence[str]) -> Parsed:
    before = parse("generate", GENERATE_FLAGS, argv)
    return replace(before, rest=(*_still_valid(before.rest, more), *more))


def still_running(run_dir: RunDir) -> list[str]:
    """A line if ranks are at work on this run, or a job will be: by Slurm, and by fresh heartbeats."""
    state = read_state(run_dir)
    if queued := [s for answer in state.jobs for s in answer.states if not s.over]:
        return [f"job {queued[0].job} is {queued[0].state}: opensora-launch cancel {run_dir} ends it"]
    beats = [beat for attempt in state.at_work for beat in attempt.beats if is_alive(beat)]
    alive = [beat for beat in beats if time.time() - beat.time_s < FRESH_S]
    return [f"it is still being made: rank {b.rank} runs on {b.host} (pid {b.pid}); end that first" for b in alive[:1]]


def _still_valid(before: Sequence[str], new: Sequence[str]) -> list[str]:
    """The run's overrides without those that the new ones replace: the same key, or a key of a group chosen anew."""
    said = {_key(text) for text in new}
    return [text for text in before if not any(_key(text) == key or _key(text).startswith(f"{key}.") for key in said)]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in dict.fromkeys([*old, *new]):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE)
        if not free and old.get(key) != new.get(key):
            yield f"{key}={new.get(key)} would change the videos (the run has {old.get(key)}); start a new run for that"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
