"""Ulysses: exchange tokens for heads before attention and back after it, piece by piece if that hides the transfers.

    spans    q, k and v of a chunk of tokens are sent as soon as they are computed, while the next chunk is
    groups   the result of a group of heads is sent back while the next group attends

A transfer runs beside the computation: on GPUs in NCCL's own stream, which waits for what the stream of the computation
holds when the transfer begins; on CPUs in gloo's threads. What is sent is kept until it has left. All ranks of the axis
begin their transfers in rounds, in one order; a rank with fewer spans or groups only receives in the last rounds.
Shapes are those of sequence_attention.py. The bits do not depend on spans and groups, if the kernel computes each head
by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.block_parts import chunk_places
from opensora_launch.model.kernels import QKV, Attend, Place
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.split import TokenShare
from opensora_launch.schema.even_shares import share_slices
from opensora_launch.schema.model_constants import HEAD_GROUPS


@dataclass(frozen=True)
class Ulysses:
    """Attention over the ranks of an axis, each with its share of the tokens. `call` attends with our heads."""

    axis: Axis
    shares: tuple[TokenShare, ...]  # of each rank
    call: Attend
    overlap: bool = False  # transfers with computation: in spans, and in groups of heads unless `whole_heads`
    whole_heads: bool = False

    def __call__(
        self, q: Float[Tensor, "B s N D"], k: Float[Tensor, "B s N D"], v: Float[Tensor, "B s N D"]
    ) -> Float[Tensor, "B s N D"]:
        begun = self.begin((q, k, v), one_stream=True)
        for place in begun.own_spans:
            begun.written(place)
        return begun.finish()

    def begin(self, qkv: QKV, *, one_stream: bool) -> "UlyssesExchange":
        """Begin an attention whose q, k and v (each B s N D) are still to be written."""
        batch = qkv[0].shape[0]
        spans = [self._spans(batch, share, one_stream) for share in self.shares]
        return UlyssesExchange(self, qkv, spans)

    def _spans(self, batch: int, share: TokenShare, one_stream: bool) -> list[Place]:
        """Return the parts in which a rank computes its tokens: rows, and tokens among those of the rank."""
        total = share.stop - share.start
        if not self.overlap:
            return [(slice(0, batch), slice(0, total))] if total else []
        text = share.text.stop - share.text.start
        streams = [(0, total)] if one_stream else [(0, text), (text, total - text)]
        return [
            (rows, slice(first + tokens.start, first + tokens.stop))
            for first, count in streams
            for rows, tokens in chunk_places(batch, count)
        ]

    def groups(self, heads: int) -> tuple[slice, ...]:
        """Divide a rank's heads into groups; none if it has no heads."""
        count = HEAD_GROUPS if self.overlap and not self.whole_heads else 1
        return share_slices(heads, min(heads, count)) if heads else ()


@dataclass
class _Transfers:
    """What is on its way: what is sent is kept alive, and what comes is copied to its place, once it is there."""

    axis: Axis
    works: list[dist.Work] = field(default_factory=list)
    sent: list[Tensor] = field(default_factory=list)
    arriving: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # place, what it gets

    def begin(self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]) -> None:
        """Begin one round: (rank of the axis, tensor), not empty. A place with gaps gets a copy at the end."""
        operations = []
        for index, tensor in ((index, tensor) for index, tensor in sends if tensor.numel()):
            operations.append(dist.P2POp(dist.isend, tensor, self.axis.ranks[index], self.axis.group))
            self.sent.append(tensor)
        for index, place in ((index, place) for index, place in receives if place.numel()):
            got = place if place.is_contiguous() else place.new_empty(place.shape)
            operations.append(dist.P2POp(dist.irecv, got, self.axis.ranks[index], self.axis.group))
            if got is not place:
                self.arriving.append((place, got))
        if operations:
            self.works += dist.batch_isend_irecv(operations)

    def finish(self) -> None:
        with self.axis.exchange(sum(tensor.numel() * tensor.element_size() for tensor in self.sent)):
            for work in self.works:
                work.wait()
        for place, got in self.arriving:
            place.copy_(got)
        self.works, self.sent, self.arriving = [], [], []


class UlyssesExchange:
    """One attention: `written` for each span in order, and then `finish`."""

    def __init__(self, ulysses: Ulysses, qkv: QKV, spans: list[list[Place]]) -> None:
        self._ulysses, self._qkv, self._spans, self._rounds = ulysses, qkv, spans, 0
        axis = ulysses.axis
        self._heads, self._index = share_slices(qkv[0].shape[2], axis.size), axis.index
        sizes = [share.stop - share.start for share in ulysses.shares]
        starts = [sum(sizes[:index]) for index in range(axis.size)]
        self._tokens = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        self._got: Tensor | None = None
        self._transfers = _Transfers(axis)

    @property
    def own_spans(self) -> list[Place]:
        return self._spans[self._index]

    @property
    def qkv(self) -> QKV:
        """Where q, k and v of our tokens are written, until `finish`."""
        return self._qkv

    def written(self, place: Place) -> None:
        """Send a span, which is the next one. If nothing overlaps, the span is everything, and `finish` sends it."""
        if self._ulysses.overlap:
            assert place == self.own_spans[self._rounds], "spans come in their order"
            self._round()

    def _room(self) -> Float[Tensor, "B S 3 n D"]:
        """Return where q, k and v of our heads come together: side by side, so that a span arrives where it belongs.

        It is made late, because the memory of a projection is free then if nothing overlaps.
        """
        if self._got is None:
            (batch, _, _, dim), own = self._qkv[0].shape, self._heads[self._index]
            self._got = self._qkv[0].new_empty(batch, self._tokens[-1].stop, 3, own.stop - own.start, dim)
        return self._got

    def _round(self) -> None:
        sends, receives = list[tuple[int, Tensor]](), list[tuple[int, Tensor]]()
        for index, spans in enumerate(self._spans):
            if self._rounds >= len(spans):
                continue
            rows, tokens = spans[self._rounds]
            first = self._tokens[index].start
            there = self._room()[rows, first + tokens.start : first + tokens.stop]
            if index != self._index:
                receives += [(index, row) for row in there]  # row by row, for a row of the span has no gaps
                continue
            batch, count, three, _, dim = there.shape
            for other, heads in enumerate(self._heads):
                sent = there if other == index else there.new_empty(batch, count, three, heads.stop - heads.start, dim)
                for i, x in enumerate(self._qkv):
                    sent[:, :, i] = x[rows, tokens, heads]
                sends += [(other, row) for row in sent if other != index]
        self._transfers.begin(sends, receives)
        self._rounds += 1

    def finish(self) -> Float[Tensor, "B s N D"]:
        """Wait for all spans, attend, and return the result of our tokens."""
        while self._rounds < max(map(len, self._spans)):
            self._round()
        self._transfers.finish()
        out = torch.empty_like(self._qkv[0])
        q, k, v = self._room().unbind(2)
        del self._qkv, self._got
        own, back = self._tokens[self._index], _Transfers(self._ulysses.axis)
        groups = [self._ulysses.groups(heads.stop - heads.start) for heads in self._heads]
        for number in range(max(map(len, groups))):
            sends, receives = list[tuple[int, Tensor]](), list[tuple[int, Tensor]]()
            for index, (heads, parts) in enumerate(zip(self._heads, groups, strict=True)):
                if number >= len(parts):
                    continue
                part = parts[number]
                there = out[:, :, heads.start + part.start : heads.start + part.stop]
                if index != self._index:
                    receives.append((index, there))
                    continue
                made = self._ulysses.call(q[:, :, part], k[:, :, part], v[:, :, part])
                there.copy_(made[:, own])
                others = [other for other in range(len(self._tokens)) if other != index]
                sends = [(other, made[:, self._tokens[other]].contiguous()) for other in others]
            back.begin(sends, receives)
        back.finish()
        return out
