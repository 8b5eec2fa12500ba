"""Which ranks work together in a layout, and which of those sets exchange tensors of the device. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import Engine, Shard

FASTEST_FIRST = ("tp", "ulysses", "ring", "cfg", "dp")
# Axes of a mesh whose ranks exchange tensors of the device: ranks of a set differ along these axes of the layout only.
# The ranks of the cfg axis alone exchange nothing: rows are put together with the tokens, over `shares`.
DEVICE_AXES = {
    "ulysses": ("ulysses",),
    "ring": ("ring",),
    "tp": ("tp",),
    "shares": ("cfg", "ring", "ulysses"),
    "video": ("cfg", "ring", "ulysses", "tp"),
}


def coordinates(layout: Layout, rank: int) -> dict[str, int]:
    """Return the place of a rank on every axis. `tp` varies fastest, so that its ranks share a node."""
    places = {}
    for axis in FASTEST_FIRST:
        rank, places[axis] = divmod(rank, getattr(layout, axis))
    return places


def ranks_along(layout: Layout, rank: int, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the ranks that agree with `rank` on every axis except `axes`, in ascending order."""
    found, stride, here = [rank], 1, coordinates(layout, rank)
    for axis in FASTEST_FIRST:
        degree = getattr(layout, axis)
        if axis in axes:
            first = -here[axis] * stride
            found = [r + first + i * stride for i in range(degree) for r in found]
        stride *= degree
    return tuple(found)


def ranks_on_node(layout: Layout, rank: int, gpus_per_node: int) -> tuple[int, ...]:
    """Return the ranks on the node of `rank` that work on the same videos."""
    video = ranks_along(layout, rank, DEVICE_AXES["video"])
    return tuple(r for r in video if r // gpus_per_node == rank // gpus_per_node)


def gathers_on_node(engine: Engine, layout: Layout, placement: Placement) -> bool:
    """Return whether the ranks of a node gather weights from one another, as a set of its own."""
    return engine is Engine.native and layout.tp == 1 and placement.shard is not Shard.all


def gathers_apart(layout: Layout, placement: Placement, *, overlap: bool) -> bool:
    """Return whether the ranks of a node gather weights in a group of their own, beside Ulysses that overlaps."""
    return overlap and layout.ulysses > 1 and placement.shard is Shard.node


@dataclass(frozen=True)
class Uses:
    """What a set of ranks exchanges. `direct` counts the other ranks to which this rank sends in an exchange of pairs.

    Everything else travels around a ring or a tree that the library builds over the whole set.
    """

    axes: tuple[str, ...]
    direct: int
    apart: bool = False  # whether they have a second communicator, for weights


def device_sets(
    layouts: Iterable[Layout], rank: int, gpus_per_node: int, *, on_node: bool, apart: bool = False
) -> Mapping[tuple[int, ...], Uses]:
    """Return the distinct sets of two ranks or more with which a rank exchanges tensors of the device, in order.

    Each set needs one communicator, and a second one if weights are gathered `apart` in a set that serves something
    else. The last layout is that of the steps with the most rows: `on_node` says that its ranks gather weights on each
    node. Ulysses and tiles that ranks share connect all pairs, a ring two neighbours.
    """
    found: dict[tuple[int, ...], Uses] = {}

    def add(axis: str, ranks: tuple[int, ...]) -> None:
        others = len(ranks) - 1
        if others:
            direct = {"ulysses": others, "ring": min(2, others), "video": others}.get(axis, 0)
            before = found.get(ranks, Uses((), 0))
            found[ranks] = Uses(
                (*before.axes, axis), max(before.direct, direct), apart and axis == "node" and before.direct > 0
            )

    last = None
    for last in layouts:
        for axis, free in DEVICE_AXES.items():
            add(axis, ranks_along(last, rank, free))
    if last and on_node:
        add("node", ranks_on_node(last, rank, gpus_per_node))
    return dict(sorted(found.items()))
