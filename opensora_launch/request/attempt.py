"""Write a run and its attempts: the step between a request and the ranks."""

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.launch.command import command, command_text, environment
from opensora_launch.launch.env_profile import Profiled, profiled
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.flags import GENERATE_FLAGS, parse
from opensora_launch.request.prepare import Job, prepare_jobs
from opensora_launch.request.resume import prepare_resume
from opensora_launch.request.write_run import write_attempt, write_run
from opensora_launch.rundir import AttemptDir, RunDir, write_whole
from opensora_launch.schema.config import EnvConfig, LauncherKind

BY_HAND = "by hand"  # the profile of ranks that were started by somebody else


def prepare_attempt(argv: Sequence[str], machine: Machine | None = None) -> AttemptDir:
    """The attempt directory of a new run, or of one that is resumed, for ranks that were started by hand."""
    parsed = parse("generate", GENERATE_FLAGS, argv)
    if wrong := [name for name in ("--cfg", "--info", "--help", "--shell-completion") if parsed.has(name)]:
        raise UserError(f"{wrong[0]} is for opensora-launch generate; ranks started by hand make videos")
    if parsed.has("--resume"):
        resumed = prepare_resume(parsed, machine)
        if not resumed.plan.videos:
            raise UserError(f"nothing is missing in {resumed.run_dir}")
        return new_attempt(resumed.run_dir, resumed.plan, resumed.run.launcher.kind, by_hand())
    prepared = prepare_jobs(parsed, machine)
    if prepared.note:
        sys.stderr.write(f"{prepared.note}\n")
    if len(prepared.jobs) > 1:
        raise UserError(f"this sweep is {len(prepared.jobs)} runs; ranks started by hand make one: use opensora-launch")
    (job,) = prepared.jobs
    if job.run.dry_run:
        raise UserError("dry_run=true: ask opensora-launch generate for it, without starting ranks")
    return write_job(job, by_hand())


def write_job(job: Job, made: Profiled) -> AttemptDir:
    run_dir = write_run(Path(job.run.runs_dir), datetime.now(), job.record, job.plan)
    return new_attempt(run_dir, job.plan, job.run.launcher.kind, made)


def new_attempt(run_dir: RunDir, plan: Plan, kind: LauncherKind, made: Profiled) -> AttemptDir:
    """Make the folder of an attempt, with its plan, its command and the environment of its ranks."""
    attempt = write_attempt(run_dir, plan)
    ranks_env = made.env if made.profile == BY_HAND else environment(plan.threads_per_rank, made.env, plan.machine.gpus)
    write_whole(attempt.environment, made.to_json(ranks_env))
    by_slurm = kind is LauncherKind.slurm
    text = f"sbatch {shlex.quote(str(attempt.batch_script))}\n" if by_slurm else None
    text = text or command_text(command(kind, plan.machine, attempt), plan, made)
    write_whole(attempt.command, text)
    return attempt


def by_hand() -> Profiled:
    """The environment of ranks that are there already: as it is."""
    return profiled(os.environ, EnvConfig(profile=BY_HAND, set=[], unset=[]))
