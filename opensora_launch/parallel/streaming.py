"""Hold the weights of a chain of blocks, and bring them to the device one block ahead of use.

The tensors of a block are packed in one flat vector (packing.py). Some blocks have theirs whole on the device. Of the
others, each rank of an axis has a share, on the device or in host memory; the whole is gathered ahead of use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor, nn

from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.packing import Packing


def gather_flat(axis: Axis, share: UInt8[Tensor, "share"], into: UInt8[Tensor, "whole"]) -> Callable[[], None]:
    """Start gathering all shares of an axis in `into`; calling the result waits for them."""
    if axis.size == 1:
        into.copy_(share, non_blocking=True)
        return _nothing
    # torch 2.13 renames all_gather_into_tensor to this and deprecates the old name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work = gather(into, share, group=axis.group, async_op=True)

    def wait() -> None:
        with axis.record("weights", axis.ranks, share.numel() * share.element_size() * (axis.size - 1)):
            work.wait()

    return wait


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Placed:
    """This rank's part of a block's weights: a share on the device or in (pinned) host memory, or all."""

    packing: Packing
    share: UInt8[Tensor, "n"]
    resident: bool  # the share is the whole and is on the device


class StreamedBlocks:
    """Blocks whose weights pass through two buffers: one block computes while the next one's weights are on their way.

    Weights of resident blocks stay. Hooks of the blocks do the work, so the network does not know. A rank that sits out
    a forward must call `pass_through`, since the other ranks gather from it.

    The hooks hold this object, and it does not hold the blocks: without such a cycle, all weights are freed at once
    with the network.
    """

    def __init__(self, blocks: Sequence[nn.Module], placed: Sequence[Placed], axis: Axis, device: torch.device) -> None:
        self.placed, self._axis, self._device = placed, axis, device
        self._moving = [i for i, x in enumerate(placed) if not x.resident]
        copied = any(axis.size == 1 or placed[i].share.is_cpu for i in self._moving)
        self._side = torch.cuda.Stream(device) if device.type == "cuda" and copied else None
        self._buffers: list[Tensor] = []
        self._staging: list[Tensor] = []
        self._room: Tensor | None = None
        self._bound = [self._adopt(block, x.packing) for block, x in zip(blocks, placed, strict=True)]
        self._coming: tuple[int, int, Callable[[], None]] | None = None  # block, buffer, wait
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda module, args, i=i: self.need(i))

    def need(self, block: int) -> None:
        """Make a block's weights ready, and start fetching those of the next block that is not resident."""
        placed = self.placed[block]
        flat = placed.share
        if not placed.resident:
            if self._coming is None or self._coming[0] != block:
                self._drain()
                self._coming = self._fetch(block, 0)
            _, slot, wait = self._coming
            wait()
            flat, self._coming = self._buffer(slot), None
            following = self._moving[(self._moving.index(block) + 1) % len(self._moving)]
            self._coming = self._fetch(following, 1 - slot)
        for name, view in placed.packing.views(flat, self._widened()).items():
            self._bound[block][name].data = view

    def pass_through(self) -> None:
        """Take part in the gathers of one forward of the other ranks, without computing."""
        for block in self._moving:
            self.need(block)

    def release(self) -> None:
        """Wait for the weights on their way, and free the buffers until a block is needed again."""
        self._drain()
        for parameters in self._bound:
            for parameter in parameters.values():
                parameter.data = parameter.data.new_empty(0)
        self._buffers, self._staging, self._room = [], [], None

    def _drain(self) -> None:
        if self._coming:
            self._coming[2]()
        self._coming = None

    def _adopt(self, block: nn.Module, packing: Packing) -> dict[str, nn.Parameter]:
        """Give a block empty parameters on the device, whose data the hooks replace."""
        for entry in packing.entries:
            owner, _, last = entry.name.rpartition(".")
            empty = torch.empty(0, dtype=entry.dtype, device=self._device)
            setattr(block.get_submodule(owner), last, nn.Parameter(empty, requires_grad=False))
        return dict(block.named_parameters())

    def _buffer(self, slot: int) -> Tensor:
        """Return a buffer for a whole packed block."""
        if not self._buffers:
            most = max(self.placed[i].share.numel() for i in self._moving)
            self._buffers = [self._bytes(most * self._axis.size) for _ in range(2)]
            if self._side and self._axis.size > 1:
                self._staging = [self._bytes(most) for _ in range(2)]
        return self._buffers[slot]

    def _widened(self) -> Tensor | None:
        """Return the memory where the weights of the computing block are widened from fp8; None if none are in fp8."""
        room = max(x.packing.room for x in self.placed)
        if room and self._room is None:
            self._room = self._bytes(room)
        return self._room

    def _bytes(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self._device)

    def _fetch(self, block: int, slot: int) -> tuple[int, int, Callable[[], None]]:
        share, axis, side = self.placed[block].share, self._axis, self._side
        into = self._buffer(slot)[: share.numel() * axis.size]
        if side is None:
            return block, slot, gather_flat(axis, share, into)
        # Work that reads this buffer is already on the current stream; later work is not, and is not waited for.
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            if axis.size > 1:
                share = self._staging[slot][: share.numel()].copy_(share, non_blocking=True)
            arrive = gather_flat(axis, share, into)

        def join() -> None:  # does not hold this object, which will hold it
            arrive()
            with axis.record("weights", (axis.ranks[axis.index],), 0):
                torch.cuda.current_stream().wait_stream(side)

        return block, slot, join
