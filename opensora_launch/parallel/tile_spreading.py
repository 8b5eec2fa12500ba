"""Spread VAE tiles over the ranks of a video; the first rank collects all outputs and blends them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch.distributed as dist
from torch import Tensor

from opensora_launch.model.tiles import Tile, tile_cost
from opensora_launch.parallel.mesh import Axis


def deal(costs: Sequence[int], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Return the indices of each rank's jobs: the most expensive jobs first, each to the rank with the least so far."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for job in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        hands[rank].append(job)
        loads[rank] += costs[job]
    return tuple(tuple(sorted(hand)) for hand in hands)


def spread_tiles(axis: Axis) -> Callable[[Sequence[Tile], Callable[[Tile], Tensor]], Iterable[Tensor] | None]:
    """Return a `run_tiles(tiles, compute)` (model/vae.py) that deals the tiles over the axis by their cost.

    Each tile is a batch of one: NCCL makes a communicator of two ranks for a send outside a batch, and takes the
    group's for one inside, which must exist (https://github.com/pytorch/pytorch/pull/74701).

    The first rank gets the outputs in order, as they arrive, and must take them all before any other collective. Other
    ranks get None. Every rank computes its own tiles before any is sent, so none waits for another's tile; a single
    rank computes each when it is asked for. All outputs agree in dtype and in the dims before their `tile.out_shape`.
    """

    def run(tiles: Sequence[Tile], compute: Callable[[Tile], Tensor]) -> Iterable[Tensor] | None:
        if axis.size == 1:
            return (compute(tile) for tile in tiles)
        hands = deal([tile_cost(tile) for tile in tiles], axis.size)
        own = {i: compute(tiles[i]) for i in hands[axis.index]}
        if axis.index == 0:
            return _collect(axis, tiles, hands, own)
        for output in own.values():
            with _hop(axis, axis.index, output):
                exchange_pairs(dist.P2POp(dist.isend, output.contiguous(), axis.ranks[0], axis.group))
        return None

    return run


def _collect(
    axis: Axis, tiles: Sequence[Tile], hands: Sequence[Sequence[int]], own: dict[int, Tensor]
) -> Iterator[Tensor]:
    owner = {job: index for index, hand in enumerate(hands) for job in hand}
    like = next(iter(own.values()))
    for i, tile in enumerate(tiles):
        if i in own:
            yield own.pop(i)
            continue
        got = like.new_empty((*like.shape[:-3], *tile.out_shape))
        with _hop(axis, owner[i], got):
            exchange_pairs(dist.P2POp(dist.irecv, got, axis.ranks[owner[i]], axis.group))
        yield got


def exchange_pairs(*operations: dist.P2POp) -> None:
    """Send and receive in one batch, and wait for it."""
    for work in dist.batch_isend_irecv(list(operations)):
        work.wait()


def _hop(axis: Axis, index: int, tensor: Tensor) -> AbstractContextManager[None]:
    return axis.record("vae", (axis.ranks[0], axis.ranks[index]), tensor.numel() * tensor.element_size())
