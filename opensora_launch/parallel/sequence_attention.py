"""Attend over a sequence whose tokens are spread over ranks: Ulysses, ring, and both.

Shapes, here and in every file of parallel/:
    B guidance rows   S tokens   N heads   D head size    a capital letter is the whole
    s, n                                                  a small one is this rank's share; shares may differ by one
Bidirectional attention does not depend on the order of the keys, so shares need no reordering.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.split import TokenShare
from opensora_launch.parallel.ulysses import Ulysses

# Mesh, tokens of the text and of the whole sequence, kernel -> the `attend` of this rank's share, in every block.
SequenceAttention = Callable[[Mesh, int, int, KernelCall], Attend]


def sharded_attention(
    mesh: Mesh, num_text: int, total_tokens: int, kernel: KernelCall, *, overlap: bool = False
) -> Attend:
    """Return the native `attend` for this rank's share of a sequence of `total_tokens`.

    Ulysses exchanges tokens for heads inside its axis; then the keys and values of those heads travel around the ring
    axis. With both axes at size 1 it is the kernel alone. overlap: Ulysses exchanges while the blocks compute.
    """
    layout, width = mesh.layout, mesh.ulysses.size
    shares = [TokenShare.of(num_text, total_tokens, i, layout.sequence) for i in range(layout.sequence)]
    sizes = [share.stop - share.start for share in shares]
    far = tuple(sum(sizes[r * width :][:width]) for r in range(mesh.ring.size))  # tokens of each ulysses group

    def around(
        q: Float[Tensor, "B s n D"], k: Float[Tensor, "B s n D"], v: Float[Tensor, "B s n D"]
    ) -> Float[Tensor, "B s n D"]:
        return ring_attention(q, k, v, far, mesh.ring, kernel)

    if width == 1:
        return around
    near = tuple(shares[mesh.ring.index * width :][:width])
    return Ulysses(mesh.ulysses, near, around, overlap, whole_heads=mesh.ring.size > 1)


def ring_attention(
    q: Float[Tensor, "B s N D"],
    k: Float[Tensor, "B s N D"],
    v: Float[Tensor, "B s N D"],
    tokens: tuple[int, ...],
    axis: Axis,
    kernel: KernelCall,
) -> Float[Tensor, "B s N D"]:
    """Attend from our queries to the keys and values of every rank of the axis, which travel around it.

    tokens[i] is the share of rank i. The next block travels while the current one is computed.
    Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers".
    """
    if axis.size == 1:
        return kernel(q, k, v)[0]
    block = torch.stack([k, v])
    merged: tuple[Tensor, Tensor] | None = None
    for hop in range(axis.size):
        last = hop == axis.size - 1
        coming = tokens[(axis.index - hop - 1) % axis.size]
        hop_ahead = None if last else _RingHop(block, coming, axis)
        out, lse = kernel(q, block[0], block[1])
        merged = merge(merged, out, lse)
        if hop_ahead:
            block = hop_ahead.arrive()
    assert merged is not None
    return merged[0].to(q.dtype)


def merge(
    running: tuple[Tensor, Tensor] | None, out: Float[Tensor, "B s N D"], lse: Float[Tensor, "B N s"]
) -> tuple[Float[Tensor, "B s N D"], Float[Tensor, "B N s"]]:
    """Merge one block's attention into the running result, in place; both are kept in at least fp32.

    The softmax over a union of blocks is the sum of their results, weighted by exp(lse of the block - lse of the
    union). For two blocks, the weight of the second is sigmoid(lse of the second - lse of the first): one pass over
    `out` suffices.
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    out, lse = out.to(wide), lse.to(wide)
    if running is None:
        return out, lse
    before, before_lse = running
    weight = (lse - before_lse).sigmoid_().transpose(1, 2).unsqueeze(-1)  # B s N 1
    return before.lerp_(out, weight), torch.logaddexp(before_lse, lse)


class _RingHop:
    """One hop of a block of keys and values: ours goes to the next rank, the previous rank's comes to us."""

    def __init__(self, block: Float[Tensor, "2 B s N D"], coming: int, axis: Axis) -> None:
        two, batch, _, heads, dim = block.shape
        self._axis, self._got = axis, block.new_empty(two, batch, coming, heads, dim)
        self._nbytes = block.numel() * block.element_size()
        to, source = axis.ranks[(axis.index + 1) % axis.size], axis.ranks[axis.index - 1]
        self._block = block  # kept alive until it has left
        self._works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, block, to, axis.group),
                dist.P2POp(dist.irecv, self._got, source, axis.group),
            ]
        )

    def arrive(self) -> Float[Tensor, "2 B s N D"]:
        with self._axis.exchange(self._nbytes):
            for work in self._works:
                work.wait()
        return self._got
