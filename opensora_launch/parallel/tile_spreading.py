"""Spread VAE tiles over the ranks of a video; the first rank collects all outputs and blends them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch.model.frame_shares import FrameShare
from opensora_launch.model.vae import Compute, RunTiles
from opensora_launch.parallel.mesh import Axis
from opensora_launch.schema.tile_shares import TileDeal, deal_tiles, share_shape
from opensora_launch.schema.tiles import Tile


def spread_tiles(axis: Axis) -> RunTiles:
    """Return a `run_tiles(tiles, compute)` (model/vae.py) that deals the tiles over the axis by their cost.

    Each tile is a batch of one: NCCL makes a communicator of two ranks for a send outside a batch, and takes the
    group's for one inside, which must exist (https://github.com/pytorch/pytorch/pull/74701).

    The first rank gets the outputs in order, as they arrive, and must take them all before any other collective. Other
    ranks get None. Every rank computes its own tiles before any is sent, so none waits for another's tile; a single
    rank computes each when it is asked for. Tiles that ranks share come first, when all of them begin. All outputs
    agree in dtype and in the dims before their `tile.out_shape`.
    """

    def run(tiles: Sequence[Tile], compute: Compute) -> Iterable[Tensor] | None:
        if axis.size == 1:
            return (compute(tile) for tile in tiles)
        deal = deal_tiles(tiles, axis.size)
        own = {
            i: compute(tiles[i], FrameShare(tiles[i].parts, ranks, axis.index, AxisLink(axis, len(ranks))))
            for i, ranks in deal.shared.items()
            if axis.index < len(ranks)
        }
        own |= {i: compute(tiles[i]) for i in deal.hands[axis.index]}
        if axis.index == 0:
            return _collect(axis, tiles, deal, own)
        for i in sorted(own):
            with _hop(axis, axis.index, own[i]):
                exchange_pairs(dist.P2POp(dist.isend, own[i].contiguous(), axis.ranks[0], axis.group))
        return None

    return run


def _collect(axis: Axis, tiles: Sequence[Tile], deal: TileDeal, own: dict[int, Tensor]) -> Iterator[Tensor]:
    owner = {job: index for index, hand in enumerate(deal.hands) for job in hand}
    like = next(iter(own.values()))

    def receive(index: int, shape: tuple[int, int, int]) -> Tensor:
        got = like.new_empty((*like.shape[:-3], *shape))
        with _hop(axis, index, got):
            exchange_pairs(dist.P2POp(dist.irecv, got, axis.ranks[index], axis.group))
        return got

    for i, tile in enumerate(tiles):
        if i in deal.shared:
            shapes = [share_shape(tile, share) for share in deal.shared[i]]
            others = [receive(index, shape) for index, shape in enumerate(shapes) if index > 0]
            yield torch.cat([own.pop(i), *others], dim=-3)
        else:
            yield own.pop(i) if i in own else receive(owner[i], tile.out_shape)


@dataclass(frozen=True)
class AxisLink:
    """The way between the first `count` ranks of an axis, which share a tile (model/frame_shares.py)."""

    axis: Axis
    count: int

    def before(self, last: Tensor) -> Tensor | None:
        """Send our last frames to the next rank, and return those of the rank before; None on the first."""
        operations, got, index = list[dist.P2POp](), None, self.axis.index
        if index + 1 < self.count:
            operations.append(self._operation(dist.isend, last.contiguous(), index + 1))
        if index > 0:
            got = torch.empty_like(last, memory_format=torch.contiguous_format)
            operations.append(self._operation(dist.irecv, got, index - 1))
        with self._recorded(last.numel() * last.element_size() * (index + 1 < self.count)):
            exchange_pairs(*operations)
        return got

    def gather(self, own: Tensor, frames: Sequence[int]) -> Tensor:
        """Return what all ranks have of each frame, in order; `frames` is how many each of them has."""
        everything = own.new_empty((sum(frames), *own.shape[1:]))
        parts = list(everything.split(list(frames)))
        own = own.contiguous()
        parts[self.axis.index].copy_(own)
        others = [index for index in range(self.count) if index != self.axis.index]
        operations = [self._operation(dist.isend, own, index) for index in others]
        operations += [self._operation(dist.irecv, parts[index], index) for index in others]
        with self._recorded(own.numel() * own.element_size() * len(others)):
            exchange_pairs(*operations)
        return everything

    def _operation(self, way: Callable[..., object], tensor: Tensor, index: int) -> dist.P2POp:
        return dist.P2POp(way, tensor, self.axis.ranks[index], self.axis.group)

    def _recorded(self, nbytes: int) -> AbstractContextManager[None]:
        return self.axis.record("vae", self.axis.ranks[: self.count], nbytes)


def exchange_pairs(*operations: dist.P2POp) -> None:
    """Send and receive in one batch, and wait for it."""
    for work in dist.batch_isend_irecv(list(operations)):
        work.wait()


def _hop(axis: Axis, index: int, tensor: Tensor) -> AbstractContextManager[None]:
    return axis.record("vae", (axis.ranks[0], axis.ranks[index]), tensor.numel() * tensor.element_size())
