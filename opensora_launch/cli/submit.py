"""`launcher=slurm`: a run becomes a batch job, which is followed if asked."""

import shutil
import sys
import time
from collections.abc import Sequence

from opensora_launch import exit_codes
from opensora_launch.cli.progress import progress
from opensora_launch.cli.status import attempt_errors, stored_lines
from opensora_launch.errors import UserError
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.plan import Plan
from opensora_launch.request.batch_script import script_of
from opensora_launch.request.write_run import attempt_like
from opensora_launch.rundir import AttemptDir, RunDir, write_whole
from opensora_launch.runs.files import cut_prompts, missing_videos, sample_files
from opensora_launch.runs.state import Launched, read_attempts, read_state, record_launch
from opensora_launch.schema.config import RunConfig
from opensora_launch.slurm.query import JobState, NoAnswer, exit_code, final_states, job_states
from opensora_launch.slurm.query import submit as sbatch
from opensora_launch.telemetry.stall import Beat

LOOK_S = 2.0
PATIENCE = 15  # looks without an answer of Slurm, before it is given up


class NotSubmitted(UserError):
    """There is no job, and no attempt of it any more."""


def submit(run: RunConfig, plan: Plan, attempt: AttemptDir, made: Profiled) -> int:
    """Submit the attempt's job and say how to follow it; with follow=true wait for its end. The exit code.

    Raises NotSubmitted where sbatch does not take it.
    """
    script, run_dir, array = attempt.batch_script, attempt.run, run.launcher.slurm.array
    attempts = [attempt]
    try:
        if "\n" in str(attempt):
            raise UserError(f"runs_dir={run.runs_dir!r} holds a line break, which no option of sbatch can")
        write_whole(script, script_of(run, plan, attempt, made))
        attempts += [attempt_like(attempt, plan) for _ in range(1, array)]  # of the array's other tasks
        job = sbatch(script)
    except UserError as error:
        for folder in attempts:
            shutil.rmtree(folder)
        raise NotSubmitted(error.title, error.problems) from error
    for task, folder in enumerate(attempts):
        record_launch(folder, Launched("slurm", job=f"{job}_{task}" if array > 1 else job))
    print(f"job: {job}\nrun: {run_dir}\nlog: {attempt.logs}", flush=True)
    if run.follow:
        return follow(job, plan, attempt)
    print("\n".join(how_to_go_on(run_dir)))
    return 0


def how_to_go_on(run_dir: RunDir) -> list[str]:
    return [f"follow: opensora-launch status {run_dir}", f"cancel: opensora-launch cancel {run_dir}"]


def follow(job: str, plan: Plan, attempt: AttemptDir) -> int:
    """Show how the first rank gets on until the job is over; the job's exit code."""
    run_dir = attempt.run
    try:
        _watch(job, run_dir, attempt.number)
    except KeyboardInterrupt:
        print("\n".join([f"job {job} goes on", *how_to_go_on(run_dir)]), file=sys.stderr)
        raise
    try:
        code = exit_code(final_states(job))
    except NoAnswer as silence:
        print(f"job {job} may go on: Slurm cannot be asked ({silence})", file=sys.stderr)
        code = exit_codes.FAILURE
    print_samples(run_dir, plan)
    for line in attempt_errors(run_dir) if code else ():
        print(line, file=sys.stderr)
    code, said = what_is_missing(code, run_dir, plan)
    for line in said:
        print(line, file=sys.stderr)
    return code


def print_samples(run_dir: RunDir, plan: Plan) -> None:
    for path in sample_files(run_dir, plan.videos):
        print(path)
    for line in cut_prompts(run_dir, plan.videos):
        print(line, file=sys.stderr)


def what_is_missing(code: int, run_dir: RunDir, plan: Plan, own: AttemptDir | None = None) -> tuple[int, list[str]]:
    """The exit code of a run whose ranks ended with `code`, and lines about the videos that are not there.

    Ranks that end well may leave videos to others that work on the run; if there are none it is a failure all the same.
    `own` is the attempt that is over.
    """
    missing = missing_videos(run_dir, plan.videos)
    if code == exit_codes.USER_ERROR or not missing:
        return code, []
    line = f"{len(missing)} of {len(plan.videos)} videos are missing"
    if code == 0 and read_state(run_dir).to_come(own):
        return 0, [f"{line}, and others are at work on them: opensora-launch status {run_dir}"]
    return code or exit_codes.FAILURE, [*stored_lines(run_dir), f"{line}; go on with --resume {run_dir}"]


def _watch(job: str, run_dir: RunDir, first: int) -> None:
    """Until the job is over, or Slurm does not answer any more."""
    said, silent = "", 0
    with progress() as show:
        while True:
            states = _states(job)
            silent = 0 if states else silent + 1
            now = ", ".join(dict.fromkeys(f"{s.state} {s.nodes or s.reason}".strip() for s in states))
            if states and now != said:
                print(f"job {job}: {now}", file=sys.stderr, flush=True)
                said = now
            show(*_newest_beats(run_dir, first))
            if silent > PATIENCE or (states and all(s.over for s in states)):
                return
            time.sleep(LOOK_S)


def _states(job: str) -> list[JobState]:
    try:
        return job_states(job)
    except NoAnswer:
        return []


def _newest_beats(run_dir: RunDir, first: int) -> tuple[AttemptDir, Sequence[Beat]]:
    """Of the last attempt that has any, with its folder."""
    with_beats = [(a.folder, a.beats) for a in read_attempts(run_dir) if a.number >= first and a.beats]
    return with_beats[-1] if with_beats else (run_dir.attempt(first), ())
