"""`python -m opensora_launch.request.slurm_task`: a batch job that starts asks for the folder of its attempt.

    --attempt DIR                                 the attempt that the launcher has made, for its first start
    --run-file FILE --ranks-per-node N -- WORDS   a script submitted by hand: WORDS are those of `generate`
    --with-less DIR                               an attempt that ran out of memory, to go on with less; 1 if it cannot
    --code DIR                                    how the ranks of an attempt ended that failed: 1, 2 or 75

Prints the folder, or the code. Each start of a job, and each task of an array, has an attempt of its own in the run.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.errors import UserError
from opensora_launch.machine.find_machine import gpu_uuids
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.write_run import attempt_like
from opensora_launch.rundir import AttemptDir, RunDir, create_once, write_whole
from opensora_launch.runs.files import missing_videos, read_plan
from opensora_launch.runs.state import Launched, record_launch
from opensora_launch.telemetry.failure import read_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats


def main(argv: Sequence[str]) -> int:
    """The exit code: 2 for the user's mistake."""
    try:
        if len(argv) == 2 and argv[0] == "--attempt":
            attempt = attempt_of_launcher(AttemptDir(Path(argv[1])), os.environ)
        elif len(argv) == 2 and argv[0] == "--with-less":
            less = attempt_with_less(AttemptDir(Path(argv[1])), os.environ)
            if less is None:
                return exit_codes.FAILURE
            attempt = less
        elif len(argv) == 2 and argv[0] == "--code":
            print(code_of_ranks(AttemptDir(Path(argv[1]))))
            return 0
        else:
            assert list(argv[::2])[:2] == ["--run-file", "--ranks-per-node"] and argv[4] == "--", argv
            attempt = attempt_by_hand(Path(argv[1]), int(argv[3]), argv[5:], os.environ)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.USER_ERROR
    print(attempt)
    return 0


def attempt_of_launcher(made: AttemptDir, env: Mapping[str, str]) -> AttemptDir:
    """The attempt that was made for this task of the array at submission, or a new one like it."""
    mine = made.run.attempt(made.number + int(env.get("SLURM_ARRAY_TASK_ID", "0")))
    if not _use(mine):
        return _another(made, env)
    record_launch(mine, _this_job(env))
    return mine


def attempt_by_hand(run_file: Path, ranks: int, words: Sequence[str], env: Mapping[str, str]) -> AttemptDir:
    """The first start writes the run, and its folder into `run_file`; later ones and other tasks find it there."""
    from opensora_launch.request.attempt import prepare_attempt

    if not run_file.exists():
        cpus = int(env.get("SLURM_CPUS_ON_NODE", "1"))
        machine = Machine("cuda" if gpu_uuids() else "cpu", int(env.get("SLURM_JOB_NUM_NODES", "1")), ranks, cpus)
        attempt = prepare_attempt(words, machine)
        _use(attempt)
        record_launch(attempt, _this_job(env))
        write_whole(attempt.command, f"sbatch SCRIPT {shlex.join(words)}\n")
        if create_once(run_file, f"{attempt.run}\n"):
            return attempt
        shutil.rmtree(attempt.run)  # another task of the array was first
    run = RunDir(Path(run_file.read_text(encoding="utf-8").rstrip("\n")))
    return _another(run.attempt(0), env)


def code_of_ranks(attempt: AttemptDir) -> int:
    """75 where all of them have stored where they are, 2 for the user's mistake, else 1.

    What has started them may not tell: torchrun ends with 1 whatever its ranks end with.
    """
    beats, failure = read_heartbeats(attempt.heartbeats), read_failure(attempt)
    ranks = read_plan(attempt.plan).machine.ranks
    if len(beats) == ranks and all(beat.state == "preempted" for beat in beats):
        return exit_codes.PREEMPTED
    return exit_codes.USER_ERROR if failure and failure.kind == "user" else exit_codes.FAILURE


def attempt_with_less(spent: AttemptDir, env: Mapping[str, str]) -> AttemptDir | None:
    """A new attempt with less of the weights on a rank; None where memory is not what failed, or no less will do."""
    failure, plan = read_failure(spent), read_plan(spent.plan)
    less = plan.with_less(missing_videos(spent.run, plan.videos)) if failure and failure.kind == "memory" else None
    return _started(spent, less, env) if less else None


def _use(attempt: AttemptDir) -> bool:
    """Whether this attempt was still free, and is now ours."""
    try:
        attempt.started.touch(exist_ok=False)
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def _another(like: AttemptDir, env: Mapping[str, str]) -> AttemptDir:
    """A new attempt with the same plan: what is finished is passed over, and what is not may be in other hands."""
    return _started(like, read_plan(like.plan), env)


def _started(like: AttemptDir, plan: Plan, env: Mapping[str, str]) -> AttemptDir:
    attempt = attempt_like(like, plan)
    _use(attempt)
    record_launch(attempt, _this_job(env))
    return attempt


def _this_job(env: Mapping[str, str]) -> Launched:
    if "SLURM_ARRAY_JOB_ID" in env:
        return Launched("slurm", job=f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}")
    return Launched("slurm", job=env.get("SLURM_JOB_ID", ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
