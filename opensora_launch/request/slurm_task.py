"""`python -m opensora_launch.request.slurm_task`: answer a batch script. Prints a folder or an exit code.

    --attempt DIR                                 the attempt that the launcher made; a later start gets a new one
    --run-file FILE --submitted S --ranks-per-node N -- WORDS
                                                  an attempt for a script submitted by hand; WORDS go to `generate`
    --with-less DIR                               a new attempt with less memory after one ran out of it; exit 1 if none
    --code DIR                                    how the ranks of a failed attempt ended: 1, 2 or 75
    --requeue DIR WHY                             whether the job may be requeued after an attempt: exit 0, or 1 if not

Each start of a job, and each task of an array, has an attempt of its own in the run.
"""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.errors import UserError
from opensora_launch.machine.find_gpus import find_gpus
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.write_run import attempt_like
from opensora_launch.rundir import AttemptDir, RunDir, create_once, write_whole
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.finished_videos import plan_with_less
from opensora_launch.runs.state import Launched, read_attempts, record_launch
from opensora_launch.runs.waited import Waited, record_job_start, record_waited
from opensora_launch.slurm.allocation import cpus_per_node, in_allocation
from opensora_launch.slurm.task_env import job_id
from opensora_launch.telemetry.failure import read_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats

CLOCKS_S = 600.0  # by which the clocks of the file server and of Slurm may differ
FIRST_TASK_S = 60.0  # in which the first task of an array writes the run, from the moment when it has its folder
FRUITLESS = 3  # starts of a job in a row, after which it is not requeued


def main(argv: Sequence[str]) -> int:
    """Answer one request; the exit code."""
    try:
        match argv:
            case ["--attempt", folder]:
                print(attempt_of_launcher(AttemptDir(Path(folder)), os.environ))
            case ["--with-less", folder]:
                less = attempt_with_less(AttemptDir(Path(folder)), os.environ)
                if less is None:
                    return exit_codes.FAILURE
                print(less)
            case ["--code", folder]:
                print(code_of_ranks(AttemptDir(Path(folder))))
            case ["--requeue", folder, why]:
                if refused := requeue_problem(AttemptDir(Path(folder)), why, os.environ):
                    print(refused)
                    return exit_codes.FAILURE
            case ["--run-file", first, "--submitted", submitted_s, "--ranks-per-node", ranks, "--", *words]:
                run_file = run_file_of(Path(first), float(submitted_s), os.environ)
                print(attempt_by_hand(run_file, float(submitted_s), int(ranks), words, os.environ))
            case _:
                raise AssertionError(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.USER_ERROR
    return exit_codes.DONE


def attempt_of_launcher(made: AttemptDir, env: Mapping[str, str]) -> AttemptDir:
    """The attempt that was made at submission, for the first start of the job or of task 0; else a new one like it."""
    if int(env.get("SLURM_ARRAY_TASK_ID", "0")) or not _use(made):
        return _started(made, env)
    record_launch(made, this_job(env))
    record_job_start(made, made)
    return made


def run_file_of(first: Path, submitted_s: float, env: Mapping[str, str]) -> Path:
    """The file of this job: `first`, or one with a number if an earlier job of the same id has left files there.

    Slurm gives ids again. A file from before the job's submission is another job's, unless this job has started before:
    then the submission is that of this start.
    """
    names = [first, *(first.with_name(f"{first.stem}-{number}.run") for number in range(2, 100))]
    there = list(takewhile(Path.exists, names))
    if int(env.get("SLURM_RESTART_COUNT", "0")):
        return there[-1] if there else first
    own = (file for file in there if file.stat().st_mtime >= submitted_s - CLOCKS_S)
    return next(own, names[len(there)])


def attempt_by_hand(
    run_file: Path, submitted_s: float, ranks: int, words: Sequence[str], env: Mapping[str, str]
) -> AttemptDir:
    """The first start writes a run, and its folder into `run_file`. Later starts and other tasks read it there."""
    from opensora_launch.request.attempt import prepare_attempt

    if not run_file.exists():
        cpus = cpus_per_node(env) if in_allocation(env) else int(env.get("SLURM_CPUS_ON_NODE", "1"))
        if ranks > cpus:
            raise UserError(
                f"{ranks} ranks per node need a CPU each, but this job has {cpus} per node: ask for more with "
                "--cpus-per-task, or lower ranks_per_node in the script"
            )
        machine = Machine("cuda" if find_gpus().gpus else "cpu", int(env.get("SLURM_JOB_NUM_NODES", "1")), ranks, cpus)
        try:
            attempt = prepare_attempt(words, machine)
        except UserError:
            named = any(word.partition("=")[0] == "--output" for word in words)
            if not (named and "SLURM_ARRAY_JOB_ID" in env and _appears(run_file)):
                raise
            return attempt_by_hand(run_file, submitted_s, ranks, words, env)  # another task took the folder
        _use(attempt)
        record_launch(attempt, this_job(env))
        write_whole(attempt.command, f"sbatch SCRIPT {shlex.join(words)}\n")
        if submitted_s:  # Slurm told it
            record_waited(attempt, Waited(submitted_s, time.time(), submitted_s))
        if create_once(run_file, f"{attempt.run}\n"):
            return attempt
        shutil.rmtree(attempt.run)  # another task of the array was first
    run = RunDir(Path(run_file.read_text(encoding="utf-8").rstrip("\n")))
    return _started(run.attempt(0), env)


def _appears(file: Path) -> bool:
    """Whether a file is there within FIRST_TASK_S."""
    end_s = time.monotonic() + FIRST_TASK_S
    while not file.exists() and time.monotonic() < end_s:
        time.sleep(0.5)
    return file.exists()


def code_of_ranks(attempt: AttemptDir) -> int:
    """75 if all ranks have stored where they are, 2 for the user's mistake, else 1.

    Their starter may not tell: torchrun exits with 1, whatever its ranks exit with.
    """
    beats, failure = read_heartbeats(attempt.heartbeats), read_failure(attempt)
    ranks = read_plan(attempt.plan).machine.ranks
    if len(beats) == ranks and all(beat.state == "preempted" for beat in beats):
        return exit_codes.PREEMPTED
    return exit_codes.USER_ERROR if failure and failure.kind == "user" else exit_codes.FAILURE


def attempt_with_less(spent: AttemptDir, env: Mapping[str, str]) -> AttemptDir | None:
    """A new attempt with less of the weights on a rank; None if memory did not fail, or if less is not possible."""
    failure, plan = read_failure(spent), read_plan(spent.plan)
    less = plan_with_less(spent.run, plan) if failure and failure.kind == "memory" else None
    return _started(spent, env, less) if less else None


def requeue_problem(spent: AttemptDir, why: str, env: Mapping[str, str]) -> str | None:
    """Record `why` a job is requeued after an attempt; or say why it is not: its last FRUITLESS starts made no step."""
    write_whole(spent.requeued, f"{why}\n")
    job, fruitless = this_job(env).job, 0
    for attempt in reversed(read_attempts(spent.run)):
        if attempt.launched is None or attempt.launched.job != job:
            continue
        if _has_moved(attempt.folder):
            break
        fruitless += attempt.folder.requeued.exists()
    if fruitless < FRUITLESS:
        return None
    spent.requeued.unlink()
    return (
        f"the last {fruitless} starts of this job made no step (this one: {why}), so it is not requeued again; "
        f"when the cause is gone: opensora-launch generate --resume {spent.run}"
    )


def _has_moved(attempt: AttemptDir) -> bool:
    """Whether a rank of an attempt has made a step, or saved a video or an image."""
    since = attempt.plan.stat().st_mtime
    if any(record.stat().st_mtime > since for record in attempt.run.images.samples.glob("*.json")):
        return True
    for path in attempt.all_events():
        with path.open("rb") as file:
            if any(line.startswith(b'{"kind": "step"') or b'"phase": "save"' in line for line in file):
                return True
    return False


def _use(attempt: AttemptDir) -> bool:
    """Take an attempt. False if another start has it."""
    with suppress(FileExistsError, FileNotFoundError):
        attempt.started.touch(exist_ok=False)
        return True
    return False


def _started(like: AttemptDir, env: Mapping[str, str], plan: Plan | None = None) -> AttemptDir:
    """A new attempt, with the same plan if none is given. Its ranks skip finished videos; others may make the rest."""
    attempt = attempt_like(like, plan or read_plan(like.plan))
    _use(attempt)
    record_launch(attempt, this_job(env))
    record_job_start(like, attempt)
    return attempt


def this_job(env: Mapping[str, str]) -> Launched:
    """The job, or the task of an array, whose script runs; its name is empty outside of Slurm."""
    return Launched("slurm", job=job_id(env))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
