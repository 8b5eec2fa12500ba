"""Bind a rank of a batch job to its CPUs where the site has not. Runs before torch, whose threads inherit it."""

import os
from collections.abc import Mapping

from opensora_launch.machine.numa import cpus_near_gpu, gpu_nodes, numa_nodes, own_cpus
from opensora_launch.slurm.task_env import read_step


def bind_cpus(env: Mapping[str, str]) -> None:
    """Take this rank's share of the CPUs that the job has on this node. Does nothing outside a batch job."""
    step = read_step(env)
    if step is None or step.local_tasks == 1:
        return
    allowed, asked = sorted(os.sched_getaffinity(0)), int(env.get("SLURM_CPUS_PER_TASK", "0"))
    if len(allowed) <= asked:
        return  # bound already
    numa = numa_nodes()
    near = cpus_near_gpu(allowed, numa, gpu_nodes(env)[: step.local_tasks], step.local_rank, step.local_tasks)
    if len(near) < max(1, asked):
        near = own_cpus(allowed, list(numa.values()), step.local_rank, step.local_tasks)
    os.sched_setaffinity(0, near)
