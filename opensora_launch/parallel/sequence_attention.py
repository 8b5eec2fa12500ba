"""Attend over a sequence whose tokens are spread over ranks: Ulysses, ring, and both.

Shapes, here and in every file of parallel/:
    B guidance rows   S tokens   N heads   D head size    a capital letter is the whole
    s, n                                                  a small one is this rank's share; shares may differ by one
Bidirectional attention does not depend on the order of the keys, so shares need no reordering.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.schema.even_shares import share_sizes, share_slices

# Mesh, tokens of the whole sequence, kernel -> the `attend` for this rank's share of the tokens, in every block.
SequenceAttention = Callable[[Mesh, int, KernelCall], Attend]


def sharded_attention(mesh: Mesh, total_tokens: int, kernel: KernelCall) -> Attend:
    """Return the native `attend` for this rank's share of a sequence of `total_tokens`.

    Ulysses exchanges tokens for heads inside its axis; then the keys and values of those heads travel around the ring
    axis. With both axes at size 1 it is the kernel alone.
    """
    sizes = share_sizes(total_tokens, mesh.layout.sequence)
    width = mesh.ulysses.size
    near = sizes[mesh.ring.index * width :][:width]  # tokens of each rank of our ulysses axis
    far = tuple(sum(sizes[r * width :][:width]) for r in range(mesh.ring.size))  # tokens of each ulysses group

    def attend(
        q: Float[Tensor, "B s N D"], k: Float[Tensor, "B s N D"], v: Float[Tensor, "B s N D"]
    ) -> Float[Tensor, "B s N D"]:
        heads = q.shape[2]
        q, k, v = tokens_to_heads((q, k, v), near, mesh.ulysses)
        out = ring_attention(q, k, v, far, mesh.ring, kernel) if q.shape[2] else q
        return heads_to_tokens(out, near, heads, mesh.ulysses)

    return attend


def tokens_to_heads(
    xs: tuple[Float[Tensor, "B s N D"], ...], tokens: tuple[int, ...], axis: Axis
) -> tuple[Float[Tensor, "B S n D"], ...]:
    """Exchange all heads of our tokens for all tokens of our heads, with several tensors in one all-to-all.

    tokens[i] is the share of rank i of the axis. Heads are split like tokens: counts differ by at most one.
    """
    if axis.size == 1:
        return xs
    batch, _, heads, dim = xs[0].shape
    split = share_slices(heads, axis.size)
    ours = split[axis.index].stop - split[axis.index].start
    sent = _packed([x[:, :, part] for part in split for x in xs])
    unit = len(xs) * batch * dim
    got = _all_to_all(
        sent,
        [unit * tokens[axis.index] * (part.stop - part.start) for part in split],
        [unit * count * ours for count in tokens],
        axis,
    )
    del sent  # the copies below need the memory
    blocks = [g.view(len(xs), batch, count, ours, dim) for g, count in zip(got, tokens, strict=True)]
    return tuple(torch.cat([b[i] for b in blocks], dim=1) for i in range(len(xs)))


def heads_to_tokens(
    x: Float[Tensor, "B S n D"], tokens: tuple[int, ...], heads: int, axis: Axis
) -> Float[Tensor, "B s N D"]:
    """Undo `tokens_to_heads`: exchange all tokens of our heads for all `heads` of our tokens."""
    if axis.size == 1:
        return x
    batch, _, ours, dim = x.shape
    here = tokens[axis.index]
    counts = share_sizes(heads, axis.size)
    sent = x.reshape(-1) if batch == 1 else _packed(torch.split(x, list(tokens), dim=1))  # one row is in order already
    got = _all_to_all(
        sent,
        [batch * count * ours * dim for count in tokens],
        [batch * here * count * dim for count in counts],
        axis,
    )
    return torch.cat([g.view(batch, here, count, dim) for g, count in zip(got, counts, strict=True)], dim=2)


def _packed(parts: Sequence[Tensor]) -> Tensor:
    """Lay out all elements of the parts, one part after another. Each is copied once, whatever its strides."""
    packed = parts[0].new_empty(sum(part.numel() for part in parts))
    for room, part in zip(packed.split([part.numel() for part in parts]), parts, strict=True):
        room.view(part.shape).copy_(part)
    return packed


def _all_to_all(sent: Tensor, send_sizes: list[int], receive_sizes: list[int], axis: Axis) -> tuple[Tensor, ...]:
    got = sent.new_empty(sum(receive_sizes))
    with axis.exchange((sent.numel() - send_sizes[axis.index]) * sent.element_size()):
        dist.all_to_all_single(got, sent, receive_sizes, send_sizes, group=axis.group)
    return tuple(torch.split(got, receive_sizes))


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
