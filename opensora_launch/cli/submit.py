"""`launcher=slurm`: submit a run as a batch job, and follow it if asked."""

import shutil
import sys
import time
from collections.abc import Sequence

from opensora_launch import exit_codes
from opensora_launch.cli.ending import last_error, print_samples, what_is_missing
from opensora_launch.cli.terminal import print_errors
from opensora_launch.cli.view import progress
from opensora_launch.errors import UserError
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.plan import Plan
from opensora_launch.request.write_run import attempt_like, script_of
from opensora_launch.rundir import AttemptDir, RunDir, write_whole
from opensora_launch.runs.state import Launched, read_attempts, record_launch
from opensora_launch.schema.config import RunConfig
from opensora_launch.slurm.query import JobState, NoAnswer, exit_code, final_states, job_states, submit_job
from opensora_launch.telemetry.stall import Beat

_LOOK_S = 2.0
PATIENCE = 15  # looks without an answer from Slurm before following ends


class NotSubmitted(UserError):
    """There is no job, and the folders of its attempts are removed."""


def submit_run(run: RunConfig, plan: Plan, attempt: AttemptDir, made: Profiled) -> int:
    """Submit the attempt's job, and print how to follow it; with follow=true wait for its end. The exit code.

    Raises NotSubmitted if sbatch refuses it.
    """
    script, run_dir, array = attempt.batch_script, attempt.run, run.launcher.slurm.array
    attempts = [attempt]
    try:
        if "\n" in str(attempt):
            raise UserError(f"runs_dir={run.runs_dir!r} contains a line break, which no option of sbatch can")
        write_whole(script, script_of(run, plan, attempt, made))
        attempts += [attempt_like(attempt, plan) for _ in range(1, array)]  # for the other tasks of the array
        job = submit_job(script)
    except UserError as error:
        for folder in attempts:
            shutil.rmtree(folder)
        raise NotSubmitted(error.title, error.problems) from error
    for task, folder in enumerate(attempts):
        record_launch(folder, Launched("slurm", job=f"{job}_{task}" if array > 1 else job))
    print(f"job: {job}\nrun: {run_dir}\nlog: {attempt.logs}", flush=True)
    if run.follow:
        return follow(job, plan, attempt)
    print("\n".join(_next_commands(run_dir)))
    return exit_codes.DONE


def _next_commands(run_dir: RunDir) -> list[str]:
    return [f"follow: opensora-launch status {run_dir}", f"cancel: opensora-launch cancel {run_dir}"]


def follow(job: str, plan: Plan, attempt: AttemptDir) -> int:
    """Show the progress of a job until it is over; its exit code."""
    run_dir = attempt.run
    try:
        _watch(job, run_dir, attempt.number)
    except KeyboardInterrupt:
        print_errors([f"job {job} continues", *_next_commands(run_dir)])
        raise
    try:
        code = exit_code(final_states(job))
    except NoAnswer as silence:
        print_errors([f"job {job} may still run: Slurm cannot be asked ({silence})"])
        code = exit_codes.FAILURE
    print_samples(run_dir, plan)
    print_errors(last_error(run_dir) if code else [])
    code, lines = what_is_missing(code, run_dir, plan)
    print_errors(lines)
    return code


def _watch(job: str, run_dir: RunDir, first: int) -> None:
    """Show the job until it is over, or until Slurm has been silent for too long."""
    shown, silent = "", 0
    with progress() as show:
        while True:
            states = _states(job)
            silent = 0 if states else silent + 1
            now = ", ".join(dict.fromkeys(f"{s.state} {s.nodes or s.reason}".strip() for s in states))
            if states and now != shown:
                print(f"job {job}: {now}", file=sys.stderr, flush=True)
                shown = now
            show(*_newest_beats(run_dir, first))
            if silent > PATIENCE or (states and all(s.over for s in states)):
                return
            time.sleep(_LOOK_S)


def _states(job: str) -> list[JobState]:
    try:
        return job_states(job)
    except NoAnswer:
        return []


def _newest_beats(run_dir: RunDir, first: int) -> tuple[AttemptDir, Sequence[Beat]]:
    """The heartbeats of the last attempt that has any, with its folder."""
    with_beats = [(a.folder, a.beats) for a in read_attempts(run_dir) if a.number >= first and a.beats]
    return with_beats[-1] if with_beats else (run_dir.attempt(first), ())
