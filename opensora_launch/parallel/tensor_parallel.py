"""Weights cut over the tp axis: which part is whose, and how results are put together again.

Layers stay the plain ones of the network; hooks behind them sum or gather. Things that do not divide are dealt like
tokens: counts differ by at most one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.split import share_sizes, share_slices

Pieces = Sequence[tuple[int, int]]  # (how many things, channels of each), one piece after another along a dim


def own_channels(pieces: Pieces, axis: Axis) -> tuple[slice, ...]:
    """Our channels of each piece: whole things, and of every piece our share."""
    found, start = [], 0
    for count, size in pieces:
        mine = share_slices(count, axis.size)[axis.index]
        found.append(slice(start + mine.start * size, start + mine.stop * size))
        start += count * size
    return tuple(found)


def own_part(whole: Shaped[Tensor, "*shape"], dim: int, pieces: Pieces, axis: Axis) -> Shaped[Tensor, "*share"]:
    """Our part of a tensor, its pieces one after another; a copy. Of a mapped file only that part is read."""
    return torch.cat([whole.narrow(dim, s.start, s.stop - s.start) for s in own_channels(pieces, axis)], dim)


def sum_results(layer: nn.Linear, axis: Axis) -> None:
    """Of a layer whose inputs are cut: each rank has a summand of every output. The bias is the first rank's."""
    if axis.size == 1:
        return
    if axis.index > 0:
        layer.bias = None  # type: ignore[assignment] # torch's own way to have none

    def add_up(module: nn.Module, args: Any, out: Float[Tensor, "*lead C"]) -> Float[Tensor, "*lead C"]:
        with axis.exchange(2 * out.nbytes * (axis.size - 1) // axis.size):
            dist.all_reduce(out, group=axis.group)
        return out

    layer.register_forward_hook(add_up)


def gather_results(layer: nn.Linear, channels: int, axis: Axis) -> None:
    """Of a layer whose outputs are cut, where what follows needs all `channels` of them."""
    if axis.size == 1:
        return
    sizes = share_sizes(channels, axis.size)
    room = max(sizes)

    def put_together(module: nn.Module, args: Any, out: Float[Tensor, "B c"]) -> Float[Tensor, "B C"]:
        sent = out.new_zeros(out.shape[0], room)
        sent[:, : out.shape[1]] = out
        parts = [torch.empty_like(sent) for _ in sizes]
        with axis.exchange(out.nbytes * (axis.size - 1)):
            dist.all_gather(parts, sent, group=axis.group)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    layer.register_forward_hook(put_together)
