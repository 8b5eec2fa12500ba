"""The grid of ranks, one per layout of the plan. The worker builds the meshes once and passes them down."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta

import torch.distributed as dist

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.rank_sets import DEVICE_AXES, ranks_along, ranks_on_node

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
    def rank(self) -> int:
        """This rank among all of the run."""
        return self.video.ranks[self.video.index]

    @property
    def sequence_index(self) -> int:
        return self.ring.index * self.ulysses.size + self.ulysses.index


class Groups:
    """Makes the process groups of a run, one for each distinct set of ranks: on GPUs each takes up to a gigabyte.

    The exchanges of a group run one after another. So all its ranks must begin them in one order, whatever they are
    for. Weights that are gathered ahead of use have a group of their own (`apart`) where Ulysses overlaps, whose
    exchanges would wait for them. The default group is not used for all ranks: its timeout is that of the start.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._timeout = timeout
        self._made: dict[tuple[tuple[int, ...], bool], dist.ProcessGroup] = {}

    def make(self, ranks: tuple[int, ...], *, apart: bool = False) -> None:
        """Make the group of these ranks, if there is none. All ranks of the run make all groups, in one order."""
        if (ranks, apart) not in self._made:
            self._made[ranks, apart] = dist.new_group(list(ranks), timeout=self._timeout)

    def has(self, ranks: tuple[int, ...]) -> bool:
        """Whether there is a group of these ranks; the same on all ranks of the run."""
        return (ranks, False) in self._made

    def of(self, ranks: tuple[int, ...], *, apart: bool = False) -> dist.ProcessGroup:
        """Return the group of these ranks, of which this rank is one."""
        return self._made[ranks, apart]


def node_axis(mesh: Mesh, ranks_per_node: int, world: int, groups: Groups, *, apart: bool = False) -> Axis:
    """Build the axis of the ranks on this node that work on the same videos. All ranks must call this together.

    apart: it needs a group that nothing else uses.
    """
    sets = [ranks_on_node(mesh.layout, rank, ranks_per_node) for rank in range(world)]
    second = {ranks: apart and groups.has(ranks) for ranks in sets}
    for ranks in sets:
        groups.make(ranks, apart=second[ranks])
    ours = sets[mesh.rank]
    return Axis("weights", ours, ours.index(mesh.rank), groups.of(ours, apart=second[ours]), mesh.video.record)


def world_axis(rank: int, world: int, groups: Groups, record: Record) -> Axis:
    """Build the axis of all ranks of the run. All ranks must call this together."""
    everyone = tuple(range(world))
    groups.make(everyone)
    return Axis("text", everyone, rank, groups.of(everyone), record)


def build_meshes(layouts: Iterable[Layout], rank: int, groups: Groups, record: Record) -> dict[Layout, Mesh]:
    """Build this rank's mesh for every layout. All ranks call this together, with the same layouts in one order."""

    def axis(layout: Layout, name: str, axes: tuple[str, ...]) -> Axis:
        for other in range(layout.ranks):  # every rank takes part in creating every group
            groups.make(ranks_along(layout, other, axes))
        ours = ranks_along(layout, rank, axes)
        return Axis(name, ours, ours.index(rank), groups.of(ours), record)

    return {
        layout: Mesh(
            layout=layout,
            cfg=axis(layout, "cfg", ("cfg",)),
            ring=axis(layout, "ring", DEVICE_AXES["ring"]),
            ulysses=axis(layout, "ulysses", DEVICE_AXES["ulysses"]),
            tp=axis(layout, "tp", DEVICE_AXES["tp"]),
            shares=axis(layout, "video", DEVICE_AXES["shares"]),
            video=axis(layout, "video", DEVICE_AXES["video"]),
        )
        for layout in layouts
    }
