"""A block's tensors as one vector of bytes, which is cut into shares, sent and copied as a whole.

Tensors lie there as they are, or matrices in fp8. Whether a vector was whole, gathered from shares or copied from host
memory, the numbers that its block computes with are the same bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

ALIGN = 32  # bytes: every tensor starts where the fastest matmul kernels want it, and no share cuts a number
FP8_LARGEST = 448.0  # of float8_e4m3fn

# Elements [first, last) of the flattened tensor of that name in a block.
ReadRange = Callable[[str, int, int], Tensor]


@dataclass(frozen=True)
class Entry:
    """A tensor in the vector. In fp8, a row of a matrix is its float8_e4m3fn numbers and then a power of two in fp32 to
    multiply them by. A power of two, so that a weight is rounded once and not again.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype  # that it computes in
    first: int  # byte
    fp8: bool

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def unit(self) -> tuple[int, int]:
        """Bytes and elements of what is read whole: a number, or a row in fp8."""
        return (row_bytes(self.shape[1]), self.shape[1]) if self.fp8 else (self.dtype.itemsize, 1)

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
        """Of a block, which may be on the meta device; it computes in `dtype`, or each tensor in its own."""
        entries, first = [], 0
        for name, tensor in block.state_dict().items():
            entry = Entry(name, tuple(tensor.shape), dtype or tensor.dtype, first, fp8 and tensor.ndim == 2)
            entries.append(entry)
            first += padded(entry.nbytes)
        return cls(tuple(entries), first)

    @property
    def room(self) -> int:
        """Bytes that `views` needs besides the vector."""
        return sum(padded(entry.count * entry.dtype.itemsize) for entry in self.entries if entry.fp8)

    def share(self, ranks: int) -> int:
        """Bytes of each rank's share; the last one ends past the vector where it does not divide."""
        return padded(-(-self.size // ranks))

    def views(self, flat: UInt8[Tensor, "n"], room: UInt8[Tensor, "r"] | None = None) -> dict[str, Tensor]:
        """The tensors: views of a vector that begins with the block's, and of `room` where they had to be widened."""
        views, used = {}, 0
        for entry in self.entries:
            packed = flat[entry.first : entry.first + entry.nbytes]
            if not entry.fp8:
                views[entry.name] = packed.view(entry.dtype).view(entry.shape)
                continue
            assert room is not None, "fp8 weights are widened somewhere"
            nbytes = entry.count * entry.dtype.itemsize
            wide = room[used : used + nbytes].view(entry.dtype).view(entry.shape)
            numbers, powers = rows_of(packed, entry.shape)
            views[entry.name] = wide.copy_(numbers).mul_(powers.to(entry.dtype))
            used += padded(nbytes)
        return views

    def read_share(self, index: int, ranks: int, read: ReadRange, like: UInt8[Tensor, "share"]) -> int:
        """Fill `like` with the share `index`, reading nothing that belongs to other shares (of fp8, whole rows that it
        cuts). Gives the elements that were read.
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
        """(first byte, bytes, elements read) of everything that the bytes first..last hold."""
        for entry in self.entries:
            nbytes, elements = entry.unit
            low = max(0, (first - entry.first) // nbytes)
            high = min(entry.count // elements, -(-(last - entry.first) // nbytes))
            if low < high:
                got = read(entry.name, low * elements, high * elements)
                packed = fp8_rows(got.view(-1, elements)) if entry.fp8 else got.to(entry.dtype).contiguous()
                yield entry.first + low * nbytes, packed.view(torch.uint8).reshape(-1), got.numel()


def fp8_rows(matrix: Float[Tensor, "rows columns"]) -> UInt8[Tensor, "rows bytes"]:
    """Each row's numbers in float8_e4m3fn, over the least power of two that brings them into its range, and that."""
    rows, columns = matrix.shape
    most = matrix.float().abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    powers = torch.exp2(torch.ceil(torch.log2(most / FP8_LARGEST)))
    table = torch.zeros(rows, row_bytes(columns), dtype=torch.uint8, device=matrix.device)
    table[:, :columns] = (matrix.float() / powers).to(torch.float8_e4m3fn).view(torch.uint8)
    table[:, -ALIGN : 4 - ALIGN] = powers.view(torch.uint8)
    return table


def rows_of(
    packed: UInt8[Tensor, "n"], shape: tuple[int, ...]
) -> tuple[Shaped[Tensor, "rows columns"], Float[Tensor, "rows 1"]]:
    """The float8_e4m3fn numbers of a packed matrix, and the power of two of each row."""
    table = packed.view(shape[0], row_bytes(shape[1]))
    powers = table[:, -ALIGN : 4 - ALIGN].contiguous().view(torch.float32)
    return table[:, : shape[1]].view(torch.float8_e4m3fn), powers


def row_bytes(columns: int) -> int:
    """Of a row of a matrix in fp8, with its power of two."""
    return padded(columns) + ALIGN


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN
