"""What a rank notes beside its phases, steps and collectives: its kernels and blocks, and how its clock stands."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora_launch.model.attention import Kernel
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.sampler import node_sampler
from opensora_launch.worker.start import Rank

PINGS = 32

log = logging.getLogger("opensora_launch.worker")


def watch_kernel(kernel: Kernel, recorder: Recorder) -> Kernel:
    """The same kernel, each call noted as work of the kind "attention"."""
    call = kernel.call

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start = recorder.mark()
        found = call(q, k, v)
        recorder.work("attention", start)
        return found

    return Kernel(kernel.name, kernel.version, attend, kernel.passed_over)


def watch_blocks(mmdit: nn.Module, recorder: Recorder, *, streamed: bool) -> None:
    """Note the time of each kind of blocks as work of that kind: all of a kind as one, for that costs least. Where the
    weights are streamed each block is noted alone, so that waiting for the next one's weights is in none.
    """
    begun: list[Any] = []

    def begin(module: nn.Module, args: Any) -> None:
        begun.append(recorder.mark())

    for part, blocks in (("double", mmdit.double_blocks), ("single", mmdit.single_blocks)):
        assert isinstance(blocks, nn.ModuleList)
        for first, last in [(b, b) for b in blocks] if streamed else [(blocks[0], blocks[-1])] if blocks else []:
            first.register_forward_pre_hook(begin)
            last.register_forward_hook(lambda module, args, out, part=part: recorder.work(part, begun.pop()))


def clock_offset(me: Rank) -> tuple[float | None, float | None]:
    """(offset, error): what to add to this host's monotonic clock to get that of rank 0's host, and half of the
    fastest round trip, within which the truth lies. Measured with the first rank of each node; None on the others.

    All ranks call it together, outside of other collectives. The fastest of 32 round trips counts (Cristian 1989).
    """
    places = [me.local_rank] * me.world
    if me.world > me.local_world:
        dist.all_gather_object(places, me.local_rank)
    if me.rank == 0:
        for rank in range(1, me.world):
            if me.world > me.local_world and places[rank] == 0:
                _answer(rank)
        return 0.0, 0.0
    return _ask() if me.local_rank == 0 else (None, None)


@contextmanager
def sampling(attempt: AttemptDir, me: Rank) -> Iterator[None]:
    """The node's samples, taken by its first rank."""
    if me.local_rank != 0:
        yield
        return
    sampler = node_sampler(attempt, socket.gethostname())
    sampler.start()
    try:
        yield
    finally:
        sampler.close()
    if sampler.problem:
        log.warning("the sampler of this node stopped: %s", sampler.problem)


def device_uuid(device: torch.device) -> str | None:
    """What NVML calls this GPU, but for the "GPU-" where it is a MIG instance; None on a CPU and before torch 2.4."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else (str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def _answer(rank: int) -> None:
    asked, now = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    for _ in range(PINGS):
        dist.recv(asked, rank)
        now[0] = time.monotonic()
        dist.send(now, rank)


def _ask() -> tuple[float, float]:
    asked, theirs = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    best = (0.0, float("inf"))
    for _ in range(PINGS):
        before = time.monotonic()
        dist.send(asked, 0)
        dist.recv(theirs, 0)
        after = time.monotonic()
        best = min(best, (float(theirs) - (before + after) / 2, (after - before) / 2), key=lambda found: found[1])
    return best
