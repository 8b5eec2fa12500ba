"""`launcher=slurm`: submit a run as a batch job, and follow it if asked."""

import os
import shutil
import time

from opensora_launch import exit_codes
from opensora_launch.cli.follow import follow, next_commands
from opensora_launch.cli.terminal import print_errors
from opensora_launch.errors import UserError
from opensora_launch.launch.command import without_others
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.plan import Plan
from opensora_launch.request.write_run import array_tasks, script_of
from opensora_launch.rundir import AttemptDir, write_whole
from opensora_launch.runs.state import Launched, record_launch
from opensora_launch.runs.waited import Waited, record_waited
from opensora_launch.schema.config import LauncherKind, RunConfig
from opensora_launch.slurm.query import MaybeSubmitted, submit_job


class NotSubmitted(UserError):
    """There is no job, and the folder of its attempt is removed."""


def submit_run(run: RunConfig, plan: Plan, attempt: AttemptDir, made: Profiled, since_s: float) -> int:
    """Submit the attempt's job, and print how to follow it; with follow=true wait for its end. The exit code.

    since_s: when the user began to wait for it, in seconds of the epoch.
    Raises NotSubmitted if sbatch refuses it, and MaybeSubmitted if that is not known.
    """
    script, run_dir, tasks = attempt.batch_script, attempt.run, array_tasks(run, plan)
    print_errors(array_notes(run, plan))
    if unused := sorted(name for name in os.environ if name.startswith("SBATCH_")):
        print_errors([f"not used: {', '.join(unused)}; the options of the job are launcher.slurm.*"])
    try:
        if "\n" in str(attempt):
            raise UserError(f"the folder {str(run_dir)!r} contains a line break, which no option of sbatch can")
        write_whole(script, script_of(run, plan, attempt, made))
        record_waited(attempt, Waited(since_s, submitted_epoch_s=time.time()))
        job = submit_job(script, without_others(os.environ, LauncherKind.slurm))
    except MaybeSubmitted:
        raise
    except UserError as error:
        shutil.rmtree(attempt)
        raise NotSubmitted(error.title, error.problems) from error
    record_launch(attempt, Launched("slurm", job=f"{job}_0" if tasks > 1 else job))
    print(f"job: {job}\nrun: {run_dir}\nlog: {attempt.logs}", flush=True)
    if run.follow:
        return follow(job, plan, attempt)
    print("\n".join(next_commands(run_dir)))
    return exit_codes.DONE


def array_notes(run: RunConfig, plan: Plan) -> list[str]:
    """One line if the array is shorter than what was asked for."""
    asked, tasks = run.launcher.slurm.array, array_tasks(run, plan)
    if tasks == asked:
        return []
    are = "is" if tasks == 1 else "are"
    return [f"launcher.slurm.array={asked}: {tasks} {are} enough for {len(plan.videos)} videos"]
