"""Pack the tensors of a block into one vector of bytes, which is cut into shares, sent and copied as a whole.

Tensors are stored in the dtype that they compute in; matrices may be stored in fp8. Whether a vector was whole,
gathered from shares or copied from host memory, its block computes with the same bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from opensora_launch.schema.model_constants import FP8_LARGEST

ALIGN = 32  # bytes: the alignment for the fastest matmul kernels; and no share cuts a number

# Tensor name, first, last -> elements [first, last) of the flattened tensor of that name in a block.
ReadRange = Callable[[str, int, int], Tensor]


@dataclass(frozen=True)
class Entry:
    """A tensor in the vector, from byte `first` on; it computes in `dtype`.

    In fp8, each output channel of a matrix is stored as its float8_e4m3fn numbers and then their scale in fp32. Scales
    are powers of two, so that a weight is rounded once and not again.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    first: int
    fp8: bool

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def unit(self) -> tuple[int, int]:
        """Bytes and elements of the smallest part that is read whole: a number, or an output channel in fp8."""
        return (_channel_bytes(self.shape[1]), self.shape[1]) if self.fp8 else (self.dtype.itemsize, 1)

    @property
    def nbytes(self) -> int:
        nbytes, elements = self.unit
        return self.count // elements * nbytes


@dataclass(frozen=True)
class Packing:
    """Where each tensor of a block lies in its vector of `size` bytes."""

    entries: tuple[Entry, ...]
    size: int

    @classmethod
    def of(cls, block: nn.Module, dtype: torch.dtype | None = None, *, fp8: bool = False) -> "Packing":
        """Lay out a block, which may be on the meta device. It computes in `dtype`, or each tensor in its own dtype."""
        entries, first = [], 0
        for name, tensor in block.state_dict().items():
            entry = Entry(name, tuple(tensor.shape), dtype or tensor.dtype, first, fp8 and tensor.ndim == 2)
            entries.append(entry)
            first += padded(entry.nbytes)
        return cls(tuple(entries), first)

    @property
    def room(self) -> int:
        """Bytes that `views` needs for weights widened from fp8."""
        return sum(padded(entry.count * entry.dtype.itemsize) for entry in self.entries if entry.fp8)

    def share(self, ranks: int) -> int:
        """Return the bytes of each rank's share. The last share ends past the vector if its size does not divide."""
        return padded(-(-self.size // ranks))

    def views(self, flat: UInt8[Tensor, "n"], room: UInt8[Tensor, "r"] | None = None) -> dict[str, Tensor]:
        """Return the tensors: views of the vector at the start of `flat`, or of `room` for weights widened from fp8."""
        views, used = {}, 0
        for entry in self.entries:
            packed = flat[entry.first : entry.first + entry.nbytes]
            if not entry.fp8:
                views[entry.name] = packed.view(entry.dtype).view(entry.shape)
                continue
            assert room is not None, "fp8 weights need room to be widened"
            nbytes = entry.count * entry.dtype.itemsize
            wide = room[used : used + nbytes].view(entry.dtype).view(entry.shape)
            numbers, scales = fp8_numbers(packed, entry.shape)
            views[entry.name] = wide.copy_(numbers).mul_(scales.to(entry.dtype))
            used += padded(nbytes)
        return views

    def read_share(self, index: int, ranks: int, read: ReadRange, like: UInt8[Tensor, "share"]) -> int:
        """Fill `like` with the share `index`, and return the number of elements that were read.

        Nothing that belongs to other shares is read, except the rest of fp8 output channels that the share cuts.
        """
        first, elements = index * self.share(ranks), 0
        last = first + self.share(ranks)
        like.zero_()
        for start, piece, count in self._pieces(first, last, lambda *what: read(*what).to(like.device)):
            a, b = max(first, start), min(last, start + piece.numel())
            like[a - first : b - first] = piece[a - start : b - start]
            elements += count
        return elements

    def _pieces(self, first: int, last: int, read: ReadRange) -> Iterator[tuple[int, Tensor, int]]:
        """Yield (first byte, bytes, elements read) of everything that the bytes first..last hold."""
        for entry in self.entries:
            nbytes, elements = entry.unit
            low = max(0, (first - entry.first) // nbytes)
            high = min(entry.count // elements, -(-(last - entry.first) // nbytes))
            if low < high:
                got = read(entry.name, low * elements, high * elements)
                packed = to_fp8(got.view(-1, elements)) if entry.fp8 else got.to(entry.dtype).contiguous()
                yield entry.first + low * nbytes, packed.view(torch.uint8).reshape(-1), got.numel()


def to_fp8(matrix: Float[Tensor, "out inputs"]) -> UInt8[Tensor, "out bytes"]:
    """Store each output channel in float8_e4m3fn, divided by the least power of two that fits its range, and that."""
    channels, inputs = matrix.shape
    most = matrix.float().abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scales = torch.exp2(torch.ceil(torch.log2(most / FP8_LARGEST)))
    table = torch.zeros(channels, _channel_bytes(inputs), dtype=torch.uint8, device=matrix.device)
    table[:, :inputs] = (matrix.float() / scales).to(torch.float8_e4m3fn).view(torch.uint8)
    table[:, -ALIGN : 4 - ALIGN] = scales.view(torch.uint8)
    return table


def fp8_numbers(
    packed: UInt8[Tensor, "n"], shape: tuple[int, ...]
) -> tuple[Shaped[Tensor, "out inputs"], Float[Tensor, "out 1"]]:
    """Return the float8_e4m3fn numbers of a packed matrix of this shape, and the scale of each output channel."""
    table = packed.view(shape[0], _channel_bytes(shape[1]))
    scales = table[:, -ALIGN : 4 - ALIGN].contiguous().view(torch.float32)
    return table[:, : shape[1]].view(torch.float8_e4m3fn), scales


def _channel_bytes(inputs: int) -> int:
    """Return the bytes of an output channel in fp8, with its scale."""
    return padded(inputs) + ALIGN


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN
