"""Which rank this process is, and on which device it works. The only reader of RANK and WORLD_SIZE."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from opensora_launch.errors import UserError
from opensora_launch.slurm import task_env

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """This process's place among the ranks. `starter` is "torchrun", "srun", or "" for neither."""

    rank: int
    local_rank: int
    world: int
    local_world: int
    starter: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Rank":
        """Read torchrun's variables, or else those of srun's step. Without either, this is the only rank.

        Raises UserError if torchrun's variables are incomplete, or contradict those of the step.
        """
        step = task_env.read_step(env)
        if "RANK" not in env:
            counts = (step.rank, step.local_rank, step.tasks, step.local_tasks) if step else (0, 0, 1, 1)
            return cls(*counts, starter="srun" if step else "")
        if missing := [name for name in LAUNCHED if name not in env]:
            raise UserError(f"RANK is set but {', '.join(missing)} is not: start ranks with torchrun, or unset RANK")
        rank, local_rank, world, local_world = (int(env[name]) for name in LAUNCHED[:4])
        if step is not None:
            task_env.refuse_two_worlds(step, world, local_world)
        return cls(rank, local_rank, world, local_world, "torchrun")


def may_have_peers(env: Mapping[str, str]) -> bool:
    """Whether other ranks may be waiting, judging by the raw environment variables."""
    step = task_env.read_step(env)
    return "RANK" in env or (step is not None and step.tasks > 1)


def pick_device(kind: str, me: Rank) -> torch.device:
    """Return this rank's device, "cpu" or "cuda". A site may show each rank its own GPU only, or all of the node's.

    Raises UserError if there is no GPU, or too few for the ranks of this node.
    """
    if kind == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 0:
        raise UserError("topology.device=cuda, but torch sees no GPU: check the driver, or use topology.device=cpu")
    if 1 < visible < me.local_world:
        raise UserError(
            f"{me.local_world} ranks on {socket.gethostname()} see only {visible} GPUs: "
            f"lower topology.gpus_per_node or widen CUDA_VISIBLE_DEVICES"
        )
    index = me.local_rank if visible >= me.local_world else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def gpus_visible() -> bool:
    return torch.cuda.is_available() and torch.cuda.device_count() > 0
