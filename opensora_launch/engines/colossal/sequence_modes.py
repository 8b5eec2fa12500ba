"""Attend by ColossalAI's sequence parallel modes: all_to_all over the ulysses axis, ring_attn over the ring axis.

Its exchanges require equal shares, so shares are padded to the largest. Padding travels and is then dropped: nothing
attends to it. Shapes are those of parallel/sequence_attention.py.
"""

import math

import torch
import torch.nn.functional as F
from colossalai.shardformer.layer._operation import all_to_all_comm
from colossalai.shardformer.layer.utils import RingComm
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.sequence_attention import merge
from opensora_launch.parallel.split import share_sizes


def colossal_attention(mesh: Mesh, total_tokens: int, kernel: KernelCall) -> Attend:
    """Return the `attend` for this rank's share of a sequence of `total_tokens`."""
    assert mesh.ring.size == 1 or mesh.ulysses.size == 1, "the planner allows one sequence mode at a time"
    sizes = share_sizes(total_tokens, mesh.layout.sequence)

    def attend(
        q: Float[Tensor, "B s N D"], k: Float[Tensor, "B s N D"], v: Float[Tensor, "B s N D"]
    ) -> Float[Tensor, "B s N D"]:
        if mesh.ring.size > 1:
            return ring_attn_mode(q, k, v, sizes, mesh.ring, kernel)
        if mesh.ulysses.size > 1:
            return all_to_all_mode(q, k, v, sizes, mesh.ulysses, kernel)
        return kernel(q, k, v)[0]

    return attend


def all_to_all_mode(
    q: Tensor, k: Tensor, v: Tensor, tokens: tuple[int, ...], axis: Axis, kernel: KernelCall
) -> Float[Tensor, "B s N D"]:
    """Exchange tokens for heads, attend, and exchange back. tokens[i] is the share of rank i of the axis."""
    heads, own, room = q.shape[2], q.shape[1], max(tokens)
    more_heads = math.ceil(heads / axis.size) * axis.size - heads
    q, k, v = (
        torch.cat([block[:, :n] for block, n in zip(_exchanged(x, axis).split(room, 1), tokens, strict=True)], dim=1)
        for x in (F.pad(x, (0, 0, 0, more_heads, 0, room - own)) for x in (q, k, v))
    )
    out = kernel(q, k, v)[0]
    padded = [F.pad(block, (0, 0, 0, 0, 0, room - n)) for block, n in zip(out.split(tokens, 1), tokens, strict=True)]
    return _exchanged(torch.cat(padded, dim=1), axis, back=True)[:, :own, :heads]


def _exchanged(x: Tensor, axis: Axis, *, back: bool = False) -> Tensor:
    """Exchange all heads of our tokens for all tokens of our heads, or back."""
    dims = (1, 2) if back else (2, 1)
    with axis.exchange(x.nbytes * (axis.size - 1) // axis.size):
        out: Tensor = all_to_all_comm(x.contiguous(), axis.group, scatter_dim=dims[0], gather_dim=dims[1])
    return out


def ring_attn_mode(
    q: Tensor, k: Tensor, v: Tensor, tokens: tuple[int, ...], axis: Axis, kernel: KernelCall
) -> Float[Tensor, "B s N D"]:
    """Pass keys and values around the axis by ColossalAI's RingComm, the next block while the current one is computed.

    Its RingAttention serves causal masks only and merges blocks in the dtype of the queries; here they are merged in
    fp32, like in the native ring.
    """
    comm = RingComm(axis.group)
    block = F.pad(torch.stack([k, v]), (0, 0, 0, 0, 0, max(tokens) - k.shape[1]))
    merged: tuple[Tensor, Tensor] | None = None
    for hop in range(axis.size):
        coming = comm.send_recv(block) if hop < axis.size - 1 else block
        held = tokens[(axis.index - hop) % axis.size]
        out, lse = kernel(q, block[0, :, :held], block[1, :, :held])
        merged = merge(merged, out, lse)
        if hop < axis.size - 1:
            with axis.exchange(block.nbytes):
                comm.wait()
            block = coming
    assert merged is not None
    return merged[0].to(q.dtype)
