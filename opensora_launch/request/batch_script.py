"""The batch script of an attempt, with the time and the memory that the planner predicts."""

import math
import sys
from dataclasses import replace

from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.plan import Plan, predict
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import RunConfig
from opensora_launch.schema.slurm import SlurmConfig
from opensora_launch.slurm.script import SlurmJob, job_script

TIME_MARGIN, START_MINUTES = 1.5, 15
MEMORY_MARGIN, RANK_GIB = 1.25, 8


def script_of(run: RunConfig, plan: Plan, attempt: AttemptDir, made: Profiled) -> str:
    """The batch script of an attempt."""
    settings = with_prediction(run, plan)
    return job_script(
        SlurmJob(
            settings,
            plan.machine,
            plan.threads_per_rank,
            attempt.path,
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
