"""Make the process group, which no other module does.

The ranks of a batch job find each other first, or report within a minute which one cannot be reached.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from opensora_launch.rundir import AttemptDir
from opensora_launch.slurm import task_env
from opensora_launch.worker.own_interface import address_of, interface_towards, is_loopback
from opensora_launch.worker.rank import Rank, gpus_visible

CONNECT_S = 30.0  # to wait for a host that does not answer
START_S = 300.0  # to wait for ranks that still load torch, perhaps from a slow disk: only their host answers
LOGS_S = 90.0  # until a shared disk shows the logs of all ranks
TRY_S, AGAIN_S = 3.0, 0.2  # one attempt to connect, and the pause before the next

log = logging.getLogger("opensora_launch.worker")

_T = TypeVar("_T")


class Unreachable(Exception):
    """Ranks cannot find or connect to each other. The message names host and port."""


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a batch job find each other. Rank 0 serves a store there.

    `first_node`: whether this rank is on rank 0's node. `logs`: the folder where srun made a log for every rank before
    it started any, if it did.
    """

    host: str
    port: int
    first_node: bool = False
    logs: AttemptDir | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def meet(rank: int, world: int, at: Meeting, connect_s: float = CONNECT_S, start_s: float = START_S) -> Any:
    """Return the store of all ranks.

    Raises Unreachable if the host of rank 0 has not answered for `connect_s`, if ranks have not started in `start_s`,
    or if a node's own name leads nowhere for the others.
    """
    deadline = time.monotonic() + start_s
    try:
        if rank == 0:
            store = _store(at, world, start_s, serves=True)
            store.set("here0", own_place(os.environ))
            _gather(store, world, deadline, at)
        else:
            _reach(rank, at, connect_s, start_s)
            store = _store(at, world, max(1.0, deadline - time.monotonic()), serves=False)
            store.set(f"here{rank}", own_place(os.environ))
            store.wait(["everyone"], timedelta(seconds=start_s))
    except (RuntimeError, OSError) as error:
        raise Unreachable(f"rank {rank} on {socket.gethostname()}: {at} fails: {error}") from error
    log.info("%d ranks met at %s", world, at)
    return store


def own_place(env: Mapping[str, str]) -> str:
    """This host and the address that its name leads to, which gloo tells the others; no address if it has others."""
    host = socket.gethostname()
    return f"{host} {'' if 'GLOO_SOCKET_IFNAME' in env else address_of(host)}"


def refuse_loopback(places: Sequence[str]) -> None:
    """Raise Unreachable if there are several nodes and the name of one leads to itself: others cannot connect to it."""
    by_host = dict(place.split(" ", 1) for place in places)
    for host, address in by_host.items():
        if len(by_host) > 1 and address and is_loopback(address):
            raise Unreachable(
                f"on node {host} its own name leads to {address}, where no other node can reach it: remove that line "
                f"from its /etc/hosts, or choose a network with launcher.slurm.interface=NAME"
            )


def _store(at: Meeting, world: int, timeout_s: float, *, serves: bool) -> Any:
    timeout = timedelta(seconds=timeout_s)
    return dist.TCPStore(at.host, at.port, world, serves, timeout, wait_for_workers=False)  # type: ignore[attr-defined]


def _gather(store: Any, world: int, deadline: float, at: Meeting) -> None:
    waiting, started_s = set(range(1, world)), time.monotonic()
    while waiting := {rank for rank in waiting if not store.check([f"here{rank}"])}:
        now = time.monotonic()
        late = at.logs if now - started_s > LOGS_S else None
        if late and (unseen := [rank for rank in waiting if not late.log(rank).exists()]):
            raise Unreachable(
                f"rank 0 on {socket.gethostname()} waits for these ranks, which have no log in {late.logs}: "
                f"{_listed(unseen)}; the nodes are {_nodes()}. Theirs do not see this folder: put the run on a disk "
                f"that all nodes share (runs_dir=FOLDER)"
            )
        if now > deadline:
            raise Unreachable(
                f"rank 0 on {socket.gethostname()} waits at {at}, and these ranks did not connect: {_listed(waiting)}; "
                f"the nodes are {_nodes()}. Check that this name leads here from all of them and that no firewall "
                f"closes the port; launcher.slurm.host_suffix and launcher.slurm.interface choose another network"
            )
        time.sleep(0.05)
    refuse_loopback([store.get(f"here{rank}").decode() for rank in range(world)])
    store.set("everyone", "1")


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))


def _nodes() -> str:
    return os.environ.get("SLURM_STEP_NODELIST", "unknown")


def _reach(rank: int, at: Meeting, connect_s: float, start_s: float) -> None:
    """Return as soon as rank 0 listens there."""
    started = answered = time.monotonic()
    here, advice = socket.gethostname(), "launcher.slurm.host_suffix changes it"
    while True:
        try:
            address = _resolve(at.host, at.port, connect_s)
            socket.create_connection(address, timeout=min(TRY_S, connect_s)).close()
            return
        except ConnectionRefusedError as refused:
            if at.first_node or not is_loopback(address[0]):
                answered = time.monotonic()  # its host answers
            else:
                advice = f"on {here} it leads to {here} itself ({address[0]}): correct /etc/hosts there"
            error: OSError = refused
        except OSError as failed:
            error = failed
        now = time.monotonic()
        if now - answered > connect_s or now - started > start_s:
            break
        time.sleep(AGAIN_S)
    raise Unreachable(
        f"rank {rank} on {here} cannot reach rank 0 at {at}: {error}. This must name the first node on a network that "
        f"connects all nodes; {advice}"
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
_CONNECTED = timedelta(minutes=5)  # within which all ranks must start, connect, and exchange their first messages


def join(me: Rank, logs: AttemptDir | None = None, timeout: timedelta = BACKSTOP) -> None:
    """Make the process group with all ranks. A rank that does not start in time is an error.

    `logs` as in Meeting. `timeout` is that of the store from then on: whenever ranks make a group they find each other
    there, and with NCCL one waits there for the id that another makes. Raises Unreachable if the ranks do not find each
    other, or cannot connect.
    """
    backend = "cpu:gloo,cuda:nccl" if gpus_visible() else "gloo"
    store: Any = torch.distributed.HashStore()  # type: ignore[attr-defined]
    if me.starter == "srun" and me.world > 1:
        first_node = os.environ.get("SLURM_NODEID", "0") == "0"
        host, within_s = task_env.head_host(os.environ), float(os.environ.get("CONNECT_TIMEOUT_S", CONNECT_S))
        if me.world > me.local_world:
            host = usable_name(host, within_s)
            _choose_interface(host)
        at = Meeting(host, task_env.head_port(os.environ), first_node, logs)
        store = meet(me.rank, me.world, at, within_s)
    try:
        if me.starter == "torchrun":
            store, _, _ = next(rendezvous("env://", timeout=_CONNECTED))
        dist.init_process_group(backend, store=store, rank=me.rank, world_size=me.world, timeout=_CONNECTED)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise Unreachable(f"rank {me.rank} on {socket.gethostname()} cannot connect to the others: {words}") from error
    store.set_timeout(timeout)


def gathered(mine: _T) -> list[_T]:
    """Return what each rank has, in their order. All ranks call this together."""
    each = [mine] * dist.get_world_size()
    dist.all_gather_object(each, mine)
    return each


def usable_name(host: str, timeout_s: float) -> str:
    """The name of the first node, or its address by Slurm where the name leads nowhere, or to the asking node."""
    with suppress(OSError):
        if not is_loopback(_resolve(host, 0, timeout_s)[0]):
            return host
    return task_env.node_address(host) or host


def _choose_interface(host: str) -> None:
    """Tell gloo the interface towards the first node where this node's own name leads nowhere, or to itself."""
    own = address_of(socket.gethostname())
    if "GLOO_SOCKET_IFNAME" not in os.environ and (not own or is_loopback(own)) and (name := interface_towards(host)):
        os.environ["GLOO_SOCKET_IFNAME"] = name
        log.info("gloo uses %s: the name %s leads to %s", name, socket.gethostname(), own or "no address")
