"""VAE tiles spread over the ranks of a video; the first rank gets them all and blends."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch.parallel.mesh import Axis


def deal(costs: Sequence[int], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Indices of each rank's jobs: the dearest first, each to the rank with the least so far."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for job in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        hands[rank].append(job)
        loads[rank] += costs[job]
    return tuple(tuple(sorted(hand)) for hand in hands)


T = TypeVar("T", bound="SizedTile")


@runtime_checkable
class SizedTile(Protocol):
    @property
    def out_shape(self) -> tuple[int, int, int]: ...


def spread_tiles(
    axis: Axis, cost: Callable[[T], int]
) -> Callable[[Sequence[T], Callable[[T], Tensor]], Iterable[Tensor] | None]:
    """A `run_tiles(tiles, compute)` that deals the tiles over the axis.

    On its first rank it gives the outputs in order, as they arrive: they are taken before any other collective.
    Elsewhere it gives None. Every rank computes its own before any is sent, so none waits for another's tile; alone
    it computes one when it is asked for. All outputs agree in dtype and in what stands before their `tile.out_shape`.
    """

    def run(tiles: Sequence[T], compute: Callable[[T], Tensor]) -> Iterable[Tensor] | None:
        if axis.size == 1:
            return (compute(tile) for tile in tiles)
        hands = deal([cost(tile) for tile in tiles], axis.size)
        own = {i: compute(tiles[i]) for i in hands[axis.index]}
        if axis.index == 0:
            return _collect(axis, tiles, hands, own)
        for output in own.values():
            with _hop(axis, axis.index, output):
                dist.send(output.contiguous(), axis.ranks[0], group=axis.group)
        return None

    return run


def _collect(
    axis: Axis, tiles: Sequence[T], hands: Sequence[Sequence[int]], own: dict[int, Tensor]
) -> Iterator[Tensor]:
    owner = {job: index for index, hand in enumerate(hands) for job in hand}
    like = next(iter(own.values()))
    for i, tile in enumerate(tiles):
        if i in own:
            yield own.pop(i)
            continue
        got = like.new_empty((*like.shape[:-3], *tile.out_shape))
        with _hop(axis, owner[i], got):
            dist.recv(got, axis.ranks[owner[i]], group=axis.group)
        yield got


def _hop(axis: Axis, index: int, tensor: Tensor) -> AbstractContextManager[None]:
    return axis.record("vae", (axis.ranks[0], axis.ranks[index]), tensor.numel() * tensor.element_size())


def broadcast(axis: Axis, x: Tensor | None, device: torch.device) -> Tensor:
    """The first rank's tensor, on every rank of the axis; others pass None."""
    if axis.size == 1:
        assert x is not None
        return x
    facts = [None if x is None else (tuple(x.shape), x.dtype)]
    with axis.exchange(0):
        dist.broadcast_object_list(facts, axis.ranks[0], group=axis.group)
    assert facts[0] is not None
    got = torch.empty(facts[0][0], dtype=facts[0][1], device=device) if x is None else x.contiguous()
    with axis.exchange(got.numel() * got.element_size() if x is not None else 0):
        dist.broadcast(got, axis.ranks[0], group=axis.group)
    return got
