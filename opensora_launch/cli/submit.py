"""`launcher=slurm`: a run becomes a batch job, which is followed if asked."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch.batch_job import SlurmConfig
from opensora_launch.cli.progress import progress
from opensora_launch.cli.status import attempt_errors
from opensora_launch.config import RunConfig
from opensora_launch.errors import UserError
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.launch.run_dir import missing_videos, sample_files, write_attempt, write_whole
from opensora_launch.launch.run_state import Launched, read_attempts, record_launch
from opensora_launch.launch.slurm import SlurmJob, job_script
from opensora_launch.launch.slurm_query import exit_code, final_states, job_states
from opensora_launch.launch.slurm_query import submit as sbatch
from opensora_launch.plan.plan import Plan, predict
from opensora_launch.telemetry.stall import Beat

SCRIPT = "job.sbatch"
LOOK_S = 2.0
TIME_MARGIN, START_MINUTES = 1.5, 15
MEMORY_MARGIN, RANK_GIB = 1.25, 8
PATIENCE = 15  # looks without an answer of Slurm, before it is given up


def script_of(run: RunConfig, plan: Plan, attempt: Path, made: Profiled) -> str:
    """The batch script of an attempt."""
    settings = with_prediction(run, plan)
    return job_script(
        SlurmJob(
            settings,
            plan.machine,
            plan.threads_per_rank,
            attempt,
            settings.python or sys.executable,
            made.was_set,
            tuple(made.taken),
        )
    )


def with_prediction(run: RunConfig, plan: Plan) -> SlurmConfig:
    """Time and memory as predicted, with a margin, where nothing is said of them and the card is known.

    Host memory also holds each rank's own: CUDA's context, Python and its buffers.
    """
    settings, machine = run.launcher.slurm, plan.machine
    if machine.device != "cuda" or not run.hardware.known:
        return settings
    _, found = predict(run, machine, plan.videos)
    chosen = next((option for option in found if option.layouts == plan.layouts), found[0])
    minutes = math.ceil(TIME_MARGIN * chosen.phases.total / 60 / settings.array) + START_MINUTES
    gib = math.ceil(MEMORY_MARGIN * chosen.memory.host / 2**30) + RANK_GIB * machine.gpus_per_node
    return replace(settings, time=settings.time or str(minutes), mem=settings.mem or f"{gib}G")


def submit(run: RunConfig, plan: Plan, attempt: Path, made: Profiled) -> int:
    """Submit the attempt's job and say how to follow it; with follow=true wait for its end. The exit code."""
    if "\n" in str(attempt):
        raise UserError(f"runs_dir={run.runs_dir!r} holds a line break, which no option of sbatch can")
    script, run_dir = attempt / SCRIPT, attempt.parent.parent
    write_whole(script, script_of(run, plan, attempt, made))
    for _ in range(1, run.launcher.slurm.array):
        write_attempt(run_dir, plan)  # of the array's other tasks
    job = sbatch(script)
    record_launch(attempt, Launched("slurm", job=job))
    print(f"job: {job}\nrun: {run_dir}\nlog: {attempt / 'logs'}")
    if run.follow:
        return follow(job, plan, attempt)
    print(f"follow: opensora-launch status {run_dir}\ncancel: opensora-launch cancel {run_dir}")
    return 0


def follow(job: str, plan: Plan, attempt: Path) -> int:
    """Show how the first rank gets on until the job is over; the job's exit code."""
    run_dir, first = attempt.parent.parent, int(attempt.name)
    said, silent = "", 0
    with progress() as show:
        while True:
            states = job_states(job)
            silent = 0 if states else silent + 1
            now = ", ".join(dict.fromkeys(f"{s.state} {s.nodes or s.reason}".strip() for s in states))
            if states and now != said:
                print(f"job {job}: {now}", file=sys.stderr, flush=True)
                said = now
            show(_newest_beats(run_dir, first))
            if silent > PATIENCE or (states and all(s.over for s in states)):
                break
            time.sleep(LOOK_S)
    code = exit_code(final_states(job))
    for path in sample_files(run_dir, plan.videos):
        print(path)
    for line in attempt_errors(run_dir) if code else ():
        print(line, file=sys.stderr)
    if missing := missing_videos(run_dir, plan.videos):
        print(
            f"{len(missing)} of {len(plan.videos)} videos are missing; go on with --resume {run_dir}", file=sys.stderr
        )
    return code


def _newest_beats(run_dir: Path, first: int) -> Sequence[Beat]:
    with_beats = [a.beats for a in read_attempts(run_dir) if a.number >= first and a.beats]
    return with_beats[-1] if with_beats else ()
