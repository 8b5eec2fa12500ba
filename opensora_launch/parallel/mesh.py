"""The grid of ranks, one per layout of the plan. The worker builds the meshes once and passes them down."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta

import torch.distributed as dist

from opensora_launch.plan.layout import Layout

Record = Callable[[str, tuple[int, ...], int], AbstractContextManager[None]]  # axis, ranks, bytes that this rank sends


@dataclass(frozen=True)
class Axis:
    """This rank's place among the ranks that differ from it along one axis only. Every axis exists, also at size 1."""

    name: str
    ranks: tuple[int, ...]  # global ranks, in the order of the axis
    index: int  # this rank's place among them
    group: dist.ProcessGroup
    record: Record

    @property
    def size(self) -> int:
        return len(self.ranks)

    def exchange(self, nbytes: int) -> AbstractContextManager[None]:
        """Return a context that times one collective of this axis."""
        return self.record(self.name, self.ranks, nbytes)

    def alone(self) -> "Axis":
        """Return an axis that holds this rank only. Its group is never used: an axis of size 1 exchanges nothing."""
        return replace(self, ranks=(self.ranks[self.index],), index=0)


@dataclass(frozen=True)
class Mesh:
    """This rank's place in one layout.

    `video` holds every rank that works on the same videos. `shares` are those of them whose rows and tokens make up a
    prediction: from each tp axis, the rank that holds the same part of the weights as this rank.
    """

    layout: Layout
    cfg: Axis
    ring: Axis
    ulysses: Axis
    tp: Axis
    shares: Axis
    video: Axis

    @property
    def sequence_index(self) -> int:
        return self.ring.index * self.ulysses.size + self.ulysses.index


def coordinates(layout: Layout, rank: int) -> dict[str, int]:
    """Return the place of a rank on every axis. `tp` varies fastest, so that its ranks share a node."""
    places = {}
    for axis in ("tp", "ulysses", "ring", "cfg", "dp"):
        rank, places[axis] = divmod(rank, getattr(layout, axis))
    return places


def ranks_along(layout: Layout, rank: int, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the ranks that agree with `rank` on every axis except `axes`."""
    here = {k: v for k, v in coordinates(layout, rank).items() if k not in axes}
    same = (r for r in range(layout.ranks) if here.items() <= coordinates(layout, r).items())
    return tuple(same)


def node_axis(video: Axis, ranks_per_node: int, world: int, timeout: timedelta) -> Axis:
    """Build the axis of the ranks on this node that work on the same videos. All ranks must call this together."""
    size = video.size
    groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for start in range(0, world, size):  # the ranks of a video are consecutive
        for node in range(world // ranks_per_node):
            here = range(node * ranks_per_node, (node + 1) * ranks_per_node)
            if ranks := tuple(r for r in range(start, start + size) if r in here):
                groups[ranks] = dist.new_group(list(ranks), timeout=timeout)
    me = video.ranks[video.index]
    ours = next(ranks for ranks in groups if me in ranks)
    return Axis("weights", ours, ours.index(me), groups[ours], video.record)


def build_meshes(layouts: Iterable[Layout], rank: int, timeout: timedelta, record: Record) -> dict[Layout, Mesh]:
    """Build this rank's mesh for every layout. All ranks call this together, with the same layouts in one order."""
    groups: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def axis(layout: Layout, name: str, axes: tuple[str, ...]) -> Axis:
        for other in range(layout.ranks):  # every rank takes part in creating every group
            ranks = ranks_along(layout, other, axes)
            if ranks not in groups:
                groups[ranks] = dist.new_group(list(ranks), timeout=timeout)
        ours = ranks_along(layout, rank, axes)
        return Axis(name, ours, ours.index(rank), groups[ours], record)

    return {
        layout: Mesh(
            layout=layout,
            cfg=axis(layout, "cfg", ("cfg",)),
            ring=axis(layout, "ring", ("ring",)),
            ulysses=axis(layout, "ulysses", ("ulysses",)),
            tp=axis(layout, "tp", ("tp",)),
            shares=axis(layout, "video", ("cfg", "ring", "ulysses")),
            video=axis(layout, "video", ("cfg", "ring", "ulysses", "tp")),
        )
        for layout in layouts
    }
