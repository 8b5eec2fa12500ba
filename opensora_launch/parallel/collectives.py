"""Exchanges of tensors over an axis that several modules need."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opensora_launch.parallel.mesh import Axis


def all_gather_padded(part: Float[Tensor, "n"], room: int, axis: Axis) -> Float[Tensor, "ranks room"]:
    """Gather the 1-D parts of all ranks, each at the start of a block of `room` elements; the rest is undefined."""
    sent = part.new_zeros(room)
    sent[: part.numel()] = part
    got = part.new_empty(axis.size, room)
    with axis.exchange(part.numel() * part.element_size() * (axis.size - 1)):
        dist.all_gather(list(got.unbind(0)), sent, group=axis.group)
    return got


def broadcast(axis: Axis, x: Tensor | None, device: torch.device) -> Tensor:
    """Send the tensor of the axis' first rank to all its ranks, on `device`; the others pass None."""
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
