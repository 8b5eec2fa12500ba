"""Measure what phases, steps and collectives do not show: kernels, blocks, the node, and the offset of clocks."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora_launch.model.kernel_choice import Kernel
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.sampler import node_sampler
from opensora_launch.worker.rank import Rank

PINGS = 32

log = logging.getLogger("opensora_launch.worker")


def watch_kernel(kernel: Kernel, recorder: Recorder) -> Kernel:
    """Return the same kernel, which records each call as work of the kind "attention"."""
    call = kernel.call

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start = recorder.mark()
        found = call(q, k, v)
        recorder.work("attention", start)
        return found

    return replace(kernel, call=attend)


def watch_blocks(mmdit: nn.Module, recorder: Recorder, *, streamed: bool) -> None:
    """Record the time of double and single blocks as work of that kind.

    All blocks of a kind are one record, which costs least. If weights are streamed, each block is one record, so that
    none includes waiting for the weights of the next block.
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
    """Return (offset, error) in seconds: rank 0's host has this host's monotonic clock plus offset, give or take error.

    The first rank of each node measures it; the others get None. The fastest of 32 round trips counts, and the error
    is half of it (Cristian 1989). All ranks call this together, outside of other collectives.
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
    """Take samples of the node on its first rank, until the context ends."""
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
