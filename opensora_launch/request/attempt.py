"""From a command line of `generate` to the folder of an attempt, for ranks that the launcher does not start."""

import os
import sys
from collections.abc import Sequence
from datetime import datetime

from opensora_launch.errors import UserError
from opensora_launch.launch.env_profile import Profiled, profiled
from opensora_launch.plan.plan import Machine
from opensora_launch.request.flags import GENERATE_FLAGS, parse
from opensora_launch.request.prepare import PlannedRun, prepare_runs
from opensora_launch.request.refine import FLAG
from opensora_launch.request.resume import prepare_resume, start_resumed
from opensora_launch.request.write_run import BY_HAND, new_attempt, write_run
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.finished_videos import record_failed
from opensora_launch.runs.waited import Waited, record_waited
from opensora_launch.schema.ranks_env import EnvConfig

NOT_FOR_RANKS = ("--cfg", "--info", "--help")


def prepare_attempt(argv: Sequence[str], machine: Machine | None = None) -> AttemptDir:
    """Write a new run, or the next attempt of the run after --resume. Raises UserError if it cannot start."""
    parsed = parse("generate", GENERATE_FLAGS, argv)
    if wrong := [name for name in NOT_FOR_RANKS if parsed.has(name)]:
        raise UserError(f"{wrong[0]} is for opensora-launch generate; ranks started by hand make videos")
    if parsed.has(FLAG):
        raise UserError(f"{FLAG} is for opensora-launch generate; ranks take a prompt file with a column 'refined'")
    if parsed.has("--resume"):
        resumed = prepare_resume(parsed, machine)
        if not (resumed.plan.videos or resumed.plan.images):
            raise UserError(f"nothing is missing in {resumed.run_dir}")
        sys.stderr.writelines(f"{note}\n" for note in resumed.notes)
        attempt = start_resumed(resumed, by_hand())
    else:
        prepared = prepare_runs(parsed, machine)
        sys.stderr.writelines(f"{note}\n" for note in prepared.notes)
        if (runs := len(prepared.runs)) > 1:
            raise UserError(f"this sweep is {runs} runs; ranks started by hand make one: use opensora-launch")
        if prepared.runs[0].run.dry_run:
            raise UserError("dry_run=true starts no ranks: use opensora-launch generate for it")
        attempt = write_planned(prepared.runs[0], by_hand())
    record_waited(attempt, Waited(parsed.since_s, parsed.since_s))
    return attempt


def write_planned(planned: PlannedRun, made: Profiled) -> AttemptDir:
    """Write the folder of a run and of its first attempt."""
    run_dir = write_run(planned.folder, datetime.now(), planned.record, planned.plan)
    record_failed(run_dir, planned.refused)
    return new_attempt(run_dir, planned.plan, planned.run.launcher.kind, made)


def by_hand() -> Profiled:
    """The environment of ranks that are already started: as it is."""
    return profiled(os.environ, EnvConfig(profile=BY_HAND, set=[], unset=[]))
