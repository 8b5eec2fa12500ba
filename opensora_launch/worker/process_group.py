"""Make the process group, which no other module does.

The ranks of a batch job find each other first, or report within a minute which one cannot be reached.
"""

import logging
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from opensora_launch.slurm import task_env
from opensora_launch.worker.rank import Rank, gpus_visible

CONNECT_S = 30.0  # to wait for a host that does not answer
START_S = 300.0  # to wait for ranks that still load torch, perhaps from a slow disk: only their host answers
TRY_S, AGAIN_S = 3.0, 0.2  # one attempt to connect, and the pause before the next

log = logging.getLogger("opensora_launch.worker")


class Unreachable(Exception):
    """The others cannot find a rank. The message names host and port."""


def meet(rank: int, world: int, host: str, port: int, connect_s: float = CONNECT_S, start_s: float = START_S) -> Any:
    """Return the store of all ranks, which rank 0 serves.

    Raises Unreachable if the host of rank 0 has not answered for `connect_s`, or ranks have not started in `start_s`.
    """
    deadline = time.monotonic() + start_s
    try:
        if rank == 0:
            store = _store(host, port, world, start_s, serves=True)
            _gather(store, world, deadline, f"{host}:{port}")
        else:
            _reach(rank, host, port, connect_s, start_s)
            store = _store(host, port, world, max(1.0, deadline - time.monotonic()), serves=False)
            store.set(f"here{rank}", socket.gethostname())
            store.wait(["everyone"], timedelta(seconds=start_s))
    except (RuntimeError, OSError) as error:
        raise Unreachable(f"rank {rank} on {socket.gethostname()}: {host}:{port} fails: {error}") from error
    log.info("%d ranks met at %s:%d", world, host, port)
    return store


def _store(host: str, port: int, world: int, timeout_s: float, *, serves: bool) -> Any:
    timeout = timedelta(seconds=timeout_s)
    return dist.TCPStore(host, port, world, serves, timeout, wait_for_workers=False)  # type: ignore[attr-defined]


def _gather(store: Any, world: int, deadline: float, place: str) -> None:
    waiting = set(range(1, world))
    while waiting := {rank for rank in waiting if not store.check([f"here{rank}"])}:
        if time.monotonic() > deadline:
            missing = ", ".join(map(str, sorted(waiting)))
            nodes = os.environ.get("SLURM_STEP_NODELIST", "unknown")
            raise Unreachable(
                f"rank 0 on {socket.gethostname()} waits at {place}, and these ranks did not connect: {missing}; the "
                f"nodes are {nodes}. Check that this name leads here from all of them and that no firewall closes the "
                f"port; launcher.slurm.host_suffix and launcher.slurm.interface choose another network"
            )
        time.sleep(0.05)
    store.set("everyone", "1")


def _reach(rank: int, host: str, port: int, connect_s: float, start_s: float) -> None:
    """Return as soon as rank 0 listens there."""
    started = answered = time.monotonic()
    while True:
        try:
            address = _resolve(host, port, connect_s)
            socket.create_connection(address, timeout=min(TRY_S, connect_s)).close()
            return
        except ConnectionRefusedError as refused:  # its host answers
            answered = time.monotonic()
            error: OSError = refused
        except OSError as failed:
            error = failed
        now = time.monotonic()
        if now - answered > connect_s or now - started > start_s:
            break
        time.sleep(AGAIN_S)
    raise Unreachable(
        f"rank {rank} on {socket.gethostname()} cannot reach rank 0 at {host}:{port}: {error}. This must name the "
        f"first node on a network that connects all nodes; launcher.slurm.host_suffix changes it"
    )


def _resolve(host: str, port: int, timeout_s: float) -> tuple[str, int]:
    """Return the first address of a name. Asks in a thread, because a resolver may take minutes to give up."""
    found: list[tuple[str, int]] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            found.append((str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]), port))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if found:
        return found[0]
    raise failed[0] if failed else TimeoutError(f"the name {host} was not resolved in {timeout_s:.0f} s")


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
        within_s = float(os.environ.get("CONNECT_TIMEOUT_S", CONNECT_S))
        store = meet(me.rank, me.world, host, port, within_s)
        dist.init_process_group(backend, store=store, rank=me.rank, world_size=me.world, timeout=_CONNECTED)
    elif me.starter == "torchrun":
        dist.init_process_group(backend, timeout=_ALL_STARTED)
    else:
        alone = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
