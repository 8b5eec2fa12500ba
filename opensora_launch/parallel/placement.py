"""Where the weights of a chain of blocks live, and how they come to the device one block ahead of use.

A block's tensors lie one after another in one flat vector, cut into equal shares, one a rank of an axis. Whether a
block is whole on every rank, gathered from shares, or copied from host memory, the numbers that it computes with are
the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from opensora_launch.parallel.mesh import Axis

ALIGN = 16  # elements: every tensor starts where the fastest matmul kernels want it


@dataclass(frozen=True)
class FlatLayout:
    """Where each tensor of a block lies in its flat vector: name, shape, first element."""

    tensors: tuple[tuple[str, tuple[int, ...], int], ...]
    size: int  # elements, with the gaps between tensors

    @classmethod
    def of(cls, block: nn.Module) -> "FlatLayout":
        """Of a block, which may be on the meta device."""
        tensors, offset = [], 0
        for name, tensor in block.state_dict().items():
            tensors.append((name, tuple(tensor.shape), offset))
            offset += -(-tensor.numel() // ALIGN) * ALIGN
        return cls(tuple(tensors), offset)

    def share(self, ranks: int) -> int:
        """Elements of each rank's share; the last one ends past the vector where it does not divide."""
        return -(-self.size // ranks)

    def views(self, flat: Shaped[Tensor, "n"]) -> dict[str, Tensor]:
        """The tensors, as views of a vector that begins with the block's."""
        views = {}
        for name, shape, offset in self.tensors:
            size = torch.Size(shape).numel()
            views[name] = flat[offset : offset + size].view(shape)
        return views


# Elements [first, last) of the flattened tensor of that name in a block.
ReadRange = Callable[[str, int, int], Tensor]


def read_share(layout: FlatLayout, index: int, ranks: int, read: ReadRange, like: Shaped[Tensor, "share"]) -> None:
    """Fill `like` with the share `index` of a block, reading nothing that belongs to other shares."""
    first = index * layout.share(ranks)
    last = first + layout.share(ranks)
    like.zero_()
    for name, shape, offset in layout.tensors:
        a, b = max(first, offset), min(last, offset + torch.Size(shape).numel())
        if a < b:
            like[a - first : b - first] = read(name, a - offset, b - offset)


def gather_flat(axis: Axis, share: Shaped[Tensor, "share"], into: Shaped[Tensor, "whole"]) -> Callable[[], None]:
    """Start putting all shares of an axis together in `into`; the result waits for it."""
    if axis.size == 1:
        into.copy_(share, non_blocking=True)
        return _nothing
    # The name that torch 2.13 gives to all_gather_into_tensor, which it calls deprecated.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work = gather(into, share, group=axis.group, async_op=True)

    def wait() -> None:
        with axis.record("weights", axis.ranks, share.numel() * share.element_size() * (axis.size - 1)):
            work.wait()

    return wait


def _nothing() -> None:
    return None


class StreamedBlocks:
    """Blocks whose weights pass through two buffers: one computes while the next one's are on their way.

    `shares[i]` is this rank's share of block i, on the device or in (pinned) host memory. Hooks of the blocks do
    the work, so the network does not know. A rank that sits a forward out must call `pass_through`, since the
    other ranks gather from it.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], shares: Sequence[Shaped[Tensor, "_"]], axis: Axis, device: torch.device
    ) -> None:
        assert len(blocks) == len(shares)
        self._axis, self._shares = axis, shares
        self._layouts = [FlatLayout.of(block) for block in blocks]
        whole = max(layout.share(axis.size) for layout in self._layouts) * axis.size
        dtype = shares[0].dtype
        self._buffers = [torch.empty(whole, dtype=dtype, device=device) for _ in range(2)]
        in_host = shares[0].device != self._buffers[0].device or axis.size == 1
        self._side = torch.cuda.Stream(device) if device.type == "cuda" and in_host else None
        room = max(share.numel() for share in shares) if self._side and axis.size > 1 else 0
        self._staging = [torch.empty(room, dtype=dtype, device=device) for _ in range(2)]
        self._bound = [self._adopt(i, block) for i, block in enumerate(blocks)]
        self._coming: tuple[int, int, Callable[[], None]] | None = None  # block, buffer, wait
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda module, args, i=i: self.need(i))

    @property
    def resident_bytes(self) -> int:
        """Of this rank's device: the buffers, and the shares if they are there."""
        here = [*self._buffers, *self._staging]
        here += [share for share in self._shares if share.device == self._buffers[0].device]
        return sum(x.numel() * x.element_size() for x in here)

    def need(self, block: int) -> None:
        """Make a block's weights ready, and send for the next one's."""
        if self._coming is None or self._coming[0] != block:
            self.drain()
            self._coming = self._fetch(block, 0)
        _, slot, wait = self._coming
        wait()
        for name, view in self._layouts[block].views(self._buffers[slot]).items():
            self._bound[block][name].data = view
        self._coming = self._fetch((block + 1) % len(self._shares), 1 - slot)

    def pass_through(self) -> None:
        """Take part in what the others gather during one forward, and compute nothing."""
        for block in range(len(self._shares)):
            self.need(block)

    def drain(self) -> None:
        """Wait for what is still on its way."""
        if self._coming:
            self._coming[2]()
        self._coming = None

    def _adopt(self, index: int, block: nn.Module) -> dict[str, nn.Parameter]:
        """Give a block parameters on the device, whose data the hooks replace."""
        for name, view in self._layouts[index].views(self._buffers[0]).items():
            owner, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(owner), leaf, nn.Parameter(view, requires_grad=False))
        return dict(block.named_parameters())

    def _fetch(self, block: int, slot: int) -> tuple[int, int, Callable[[], None]]:
        share = self._shares[block]
        into = self._buffers[slot][: share.numel() * self._axis.size]
        if self._side is None:
            return block, slot, gather_flat(self._axis, share, into)
        # What computes from this buffer is queued on the current stream by now, and what follows is not.
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            if self._axis.size > 1:
                share = self._staging[slot][: share.numel()].copy_(share, non_blocking=True)
            arrive = gather_flat(self._axis, share, into)
        return block, slot, lambda: self._join(arrive)

    def _join(self, arrive: Callable[[], None]) -> None:
        assert self._side is not None
        arrive()
        with self._axis.record("weights", (self._axis.ranks[self._axis.index],), 0):
            torch.cuda.current_stream().wait_stream(self._side)
