"""Cut weights over the tp axis, and put the results together again.

Layers stay the plain ones of the network; forward hooks sum or gather their results. Heads and channels are split like
tokens: counts differ by at most one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from opensora_launch.model.cuts import Segment
from opensora_launch.parallel.mesh import Axis
from opensora_launch.schema.even_shares import share_sizes, share_slices


def own_channels(segments: Sequence[Segment], axis: Axis) -> tuple[slice, ...]:
    """Return this rank's channels of each segment: its share of the things in it, each thing whole."""
    found, start = [], 0
    for segment in segments:
        mine = share_slices(segment.count, axis.size)[axis.index]
        found.append(slice(start + mine.start * segment.size, start + mine.stop * segment.size))
        start += segment.channels
    return tuple(found)


def own_part(
    whole: Shaped[Tensor, "*shape"], dim: int, segments: Sequence[Segment], axis: Axis
) -> Shaped[Tensor, "*share"]:
    """Copy this rank's part of a tensor, segment after segment. From a mapped file only that part is read."""
    return torch.cat([whole.narrow(dim, s.start, s.stop - s.start) for s in own_channels(segments, axis)], dim)


def sum_results(layer: nn.Linear, axis: Axis) -> None:
    """Sum the results of a layer whose inputs are cut. The first rank of the axis adds the bias."""
    if axis.size == 1:
        return
    if axis.index > 0:
        layer.bias = None  # type: ignore[assignment] # how torch marks a layer without bias

    def add_up(module: nn.Module, args: Any, out: Float[Tensor, "*lead C"]) -> Float[Tensor, "*lead C"]:
        with axis.exchange(2 * out.nbytes * (axis.size - 1) // axis.size):
            dist.all_reduce(out, group=axis.group)
        return out

    layer.register_forward_hook(add_up)


def gather_results(layer: nn.Linear, channels: int, axis: Axis) -> None:
    """Gather the results of a layer whose outputs are cut, where the next layer needs all `channels` of them."""
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
