"""Make the process group. No other module does."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from opensora_launch.slurm import task_env
from opensora_launch.worker import rendezvous
from opensora_launch.worker.rank import Rank, gpus_visible

BACKSTOP = timedelta(days=1)  # of collectives; the heartbeat's watch finds a stalled rank much sooner
_ALL_STARTED = timedelta(minutes=5)  # within which all ranks must start
_CONNECTED = timedelta(minutes=1)  # within which ranks that have met must connect to one another


def join(me: Rank) -> None:
    """Make the process group with all ranks. A rank that does not start in time is an error.

    Raises Unreachable in a batch job whose ranks do not find each other.
    """
    backend = "cpu:gloo,cuda:nccl" if gpus_visible() else "gloo"
    if me.starter == "srun" and me.world > 1:
        host, port = task_env.head_host(os.environ), task_env.head_port(os.environ)
        within_s = float(os.environ.get("CONNECT_TIMEOUT_S", rendezvous.CONNECT_S))
        store = rendezvous.meet(me.rank, me.world, host, port, within_s)
        dist.init_process_group(backend, store=store, rank=me.rank, world_size=me.world, timeout=_CONNECTED)
    elif me.starter == "torchrun":
        dist.init_process_group(backend, timeout=_ALL_STARTED)
    else:
        alone = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
