"""The allocation that this process is in, by Slurm's variables: what a step of it can be. Pure."""

import os
import zlib
from collections.abc import Mapping

from opensora_launch.plan.plan import Machine
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import Device, TopologyConfig

GPU_WORDS = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")  # set where it holds GPUs


def in_allocation(env: Mapping[str, str]) -> bool:
    """Whether salloc or sbatch has started us, perhaps through others."""
    return "SLURM_JOB_ID" in env and "SLURM_JOB_CPUS_PER_NODE" in env


def allocation_machine(topology: TopologyConfig, env: Mapping[str, str]) -> tuple[Machine, list[str]]:
    """The machine of a step, and every reason why the allocation cannot be it."""
    device, ranks = device_of(topology.device, env), topology.gpus_per_node
    if not in_allocation(env):
        machine = Machine(device, topology.nodes, ranks or 1, ranks or 1)
        return machine, [
            "launcher=srun starts ranks inside an allocation, and this is none: get one by salloc or sbatch, or let "
            "launcher=slurm submit a job"
        ]
    nodes, cpus, gpus = int(env.get("SLURM_JOB_NUM_NODES", "1")), cpus_a_node(env), _gpus_on_node(env)
    problems = []
    if ranks is None and (ranks := gpus) is None:
        problems.append("launcher=srun needs to know the ranks of a node: topology=8gpu, topology=2x8, ...")
    ranks = ranks or 1
    if topology.nodes > nodes:
        problems.append(f"topology.nodes={topology.nodes}, and the allocation has {nodes}")
    if ranks > cpus:
        problems.append(f"topology.gpus_per_node={ranks} ranks need a CPU each, and the allocation has {cpus} a node")
    if device == "cuda" and gpus is not None and ranks > gpus:
        problems.append(f"topology.gpus_per_node={ranks}, and the allocation has {gpus} GPUs a node")
    return Machine(device, topology.nodes, ranks, max(cpus, ranks)), problems


def device_of(asked: Device, env: Mapping[str, str]) -> str:
    """ "cuda" where nothing is asked and the allocation has GPUs."""
    if asked is not Device.auto:
        return asked.value
    return "cuda" if any(env.get(name) for name in GPU_WORDS) else "cpu"


def cpus_a_node(env: Mapping[str, str]) -> int:
    """Of the node that has fewest: "72(x2),36" is 36."""
    return min(int(part.partition("(")[0]) for part in env["SLURM_JOB_CPUS_PER_NODE"].split(","))


def step_name(attempt: AttemptDir) -> str:
    """By which a step is found again: of the attempt's whole path."""
    return f"opensora-{zlib.crc32(os.fsencode(attempt)):08x}"


def _gpus_on_node(env: Mapping[str, str]) -> int | None:
    """None where Slurm does not say, as on the host of salloc."""
    said = env.get("SLURM_GPUS_ON_NODE", "")
    return int(said) if said.isdigit() else None
