"""What a step can use of the allocation that this process is in, by Slurm's variables. Pure."""

import os
import zlib
from collections.abc import Mapping

from opensora_launch.plan.plan import Machine
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import Device, TopologyConfig
from opensora_launch.slurm.task_env import counts_by_node

GPU_WORDS = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")  # set if it has GPUs


def in_allocation(env: Mapping[str, str]) -> bool:
    """Whether this process runs inside an allocation of salloc or sbatch."""
    return "SLURM_JOB_ID" in env and "SLURM_JOB_CPUS_PER_NODE" in env


def on_its_node(env: Mapping[str, str]) -> bool:
    """Whether this process runs on a node of an allocation: salloc's own host need not be one."""
    return "SLURMD_NODENAME" in env


def allocation_machine(topology: TopologyConfig, env: Mapping[str, str]) -> tuple[Machine, list[str]]:
    """The machine of a step, and every reason why the allocation cannot provide it."""
    device, ranks = topology.device.value, topology.gpus_per_node
    if topology.device is Device.auto:
        device = "cuda" if any(env.get(name) for name in GPU_WORDS) else "cpu"
    if not in_allocation(env):
        return Machine(device, topology.nodes, ranks or 1, ranks or 1), [
            "launcher=srun starts ranks inside an allocation, but this process is in none: get one with salloc or "
            "sbatch, or submit a job with launcher=slurm"
        ]
    nodes, cpus = int(env.get("SLURM_JOB_NUM_NODES", "1")), cpus_per_node(env)
    told = env.get("SLURM_GPUS_ON_NODE", "")  # not on the host of salloc
    gpus = int(told) if told.isdigit() else None
    problems = []
    if ranks is None and (ranks := gpus) is None:
        problems.append("launcher=srun needs the number of ranks per node: topology=8gpu, topology=2x8, ...")
    ranks = ranks or 1
    if topology.nodes > nodes:
        problems.append(f"topology.nodes={topology.nodes}, but the allocation has {nodes}")
    if ranks > cpus:
        problems.append(f"topology.gpus_per_node={ranks} ranks need a CPU each, but the allocation has {cpus} per node")
    if device == "cuda" and gpus is not None and ranks > gpus:
        problems.append(f"topology.gpus_per_node={ranks}, but the allocation has {gpus} GPUs per node")
    return Machine(device, topology.nodes, ranks, max(cpus, ranks)), problems


def cpus_per_node(env: Mapping[str, str]) -> int:
    """The number of CPUs on the smallest node: "72(x2),36" is 36."""
    return min(counts_by_node(env["SLURM_JOB_CPUS_PER_NODE"]))


def step_name(attempt: AttemptDir) -> str:
    """The name by which a step is found again, made from the whole path of its attempt."""
    return f"opensora-{zlib.crc32(os.fsencode(attempt)):08x}"
