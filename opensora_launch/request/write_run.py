"""Write a run's folder and its attempts, before any rank starts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir, RunDir, make_folder, write_whole
from opensora_launch.schema.config import RunConfig
from opensora_launch.schema.plain import config_yaml


@dataclass(frozen=True)
class RunRecord:
    """What is written of a request: its config, the command line that makes it again, its prompts."""

    config: RunConfig
    argv: Sequence[str]  # flags and overrides, without the prompts
    prompts: Sequence[Mapping[str, Any]]  # one a line of prompts.jsonl


def write_run(runs_dir: Path, now: datetime, record: RunRecord, plan: Plan) -> RunDir:
    """Make runs_dir/<stamp> with everything but attempts; a taken stamp gets -2, -3, ..."""
    run = RunDir(make_folder(runs_dir, now.strftime("%Y%m%d-%H%M%S")))
    run.samples.mkdir()
    write_whole(run.config, config_yaml(record.config))
    write_whole(run.overrides, _json(list(record.argv)))
    write_whole(run.prompts, "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in record.prompts))
    write_whole(run.plan, _json(plan.to_dict()))
    return run


def write_attempt(run: RunDir, plan: Plan) -> AttemptDir:
    """Make run/attempts/<k> for the next free k, with the plan of what is still missing."""
    run.attempts_folder.mkdir(exist_ok=True)
    number = max((attempt.number for attempt in run.attempts()), default=-1) + 1
    while True:
        attempt = run.attempt(number)
        try:
            attempt.path.mkdir()
            break
        except FileExistsError:
            number += 1
    attempt.make_folders()
    write_whole(attempt.plan, _json(plan.to_dict()))
    return attempt


def attempt_like(other: AttemptDir, plan: Plan) -> AttemptDir:
    """A new attempt of the same run that the same script starts: by the same command, in the same environment."""
    attempt = write_attempt(other.run, plan)
    for source, copy in ((other.command, attempt.command), (other.environment, attempt.environment)):
        if source.exists():
            write_whole(copy, source.read_text(encoding="utf-8"))
    return attempt


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
