"""One group for each distinct set of ranks, counted by the planner and connected before the first real exchange."""

import re
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from opensora_launch.parallel.mesh import Axis, Groups, build_meshes, node_axis, world_axis
from opensora_launch.parallel.warm_up import warm_up
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.rank_sets import device_sets, gathers_on_node, ranks_along
from opensora_launch.plan.set_aside import (
    CHANNELS,
    DIRECT_BYTES,
    DIRECT_CHANNELS,
    GROUP_BYTES,
    PAIR_BYTES,
    RESERVED_BYTES,
    set_aside_bytes,
)
from opensora_launch.schema.config import Engine, Shard
from tests.ranks import run_ranks

PACKAGE = Path(__file__).parents[2] / "opensora_launch"
CPU = torch.device("cpu")
LAYOUTS = (Layout(ulysses=2, ring=2), Layout(cfg=2, ulysses=2))  # of one row, and of two
NODE = 4  # ranks of a node


Ranks = tuple[int, ...]


def made_on_rank(layouts: tuple[Layout, ...], per_node: int, apart: bool) -> tuple[dict[Ranks, int], list[Ranks]]:
    """The sets of the axes that exchange tensors of the device, with the number of their groups; and the warm-up's."""
    rank, world, seen = dist.get_rank(), dist.get_world_size(), []

    def record(axis, ranks, nbytes):
        seen.append(ranks)
        return nullcontext()

    groups = Groups(timedelta(seconds=60))
    meshes = build_meshes(layouts, rank, groups, record)
    last = meshes[layouts[-1]]
    axes: list[Axis] = [world_axis(rank, world, groups, record), node_axis(last, per_node, world, groups, apart=apart)]
    axes += [a for m in meshes.values() for a in (m.ring, m.ulysses, m.tp, m.shares, m.video)]
    by_ranks: dict[Ranks, set[int]] = {}
    for axis in axes:
        by_ranks.setdefault(axis.ranks, set()).add(id(axis.group))
    warm_up(device_sets(layouts, rank, per_node, on_node=True, apart=apart), rank, groups, record, CPU)
    return {ranks: len(ids) for ranks, ids in by_ranks.items() if len(ranks) > 1}, seen


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("layouts", "per_node"),
    [
        (LAYOUTS, 4),
        pytest.param(LAYOUTS, 2, marks=pytest.mark.slow),
        ((Layout(tp=2, ulysses=2),), 4),
        ((Layout(dp=2, ring=2),), 4),
        ((Layout(ring=3),), 1),
        ((Layout(cfg=2, ulysses=3),), 4),  # the second node holds fewer ranks
    ],
)
def test_what_is_made_is_what_the_planner_counts(layouts, per_node, apart, tmp_path):
    """Axes with the same ranks share a group, but for weights that are gathered apart."""
    world = layouts[0].ranks
    every = run_ranks(world, tmp_path, made_on_rank, layouts, per_node, apart)
    for rank, (made, connected) in enumerate(every):
        counted = device_sets(layouts, rank, per_node, on_node=True, apart=apart)
        assert {ranks for ranks, groups in made.items() if groups > 1} == {
            r for r, uses in counted.items() if uses.apart
        }
        assert max(made.values()) == 1 + any(uses.apart for uses in counted.values())
        assert set(counted) | {tuple(range(world))} == set(made)  # of all ranks there is one, for texts on the CPU
        assert connected == list(counted), "each is connected once, in an order that all ranks have"


def test_the_sets_of_a_rank():
    sets = device_sets(LAYOUTS, 1, NODE, on_node=True)
    assert {ranks: uses.axes for ranks, uses in sets.items()} == {
        (0, 1): ("ulysses", "ulysses"),
        (0, 1, 2, 3): ("shares", "video", "shares", "video", "node"),
        (1, 3): ("ring",),
    }
    assert [uses.direct for uses in sets.values()] == [1, 3, 1]
    assert device_sets([Layout(dp=8)], 3, 8, on_node=True) == {}


def test_a_node_is_a_set_of_its_own_where_videos_span_nodes():
    layout = Layout(ulysses=4)
    assert list(device_sets([layout], 0, 2, on_node=True)) == [(0, 1), (0, 1, 2, 3)]
    assert list(device_sets([layout], 0, 2, on_node=False)) == [(0, 1, 2, 3)]
    assert gathers_on_node(Engine.native, layout, Placement())
    assert not gathers_on_node(Engine.native, layout, Placement(Shard.all))
    assert not gathers_on_node(Engine.native, Layout(tp=2), Placement())
    assert not gathers_on_node(Engine.colossalai, layout, Placement())


def test_ranks_along_agree_on_every_other_axis():
    layout = Layout(dp=2, cfg=2, ring=3, ulysses=2, tp=2)
    for axes in (("tp",), ("ring",), ("cfg", "ulysses"), ("cfg", "ring", "ulysses", "tp"), ()):
        found = {rank: ranks_along(layout, rank, axes) for rank in range(layout.ranks)}
        for rank, ranks in found.items():
            assert rank in ranks
            assert ranks == tuple(sorted(ranks))
            assert all(found[other] == ranks for other in ranks)


def test_memory_is_set_aside_by_sets_and_by_ranks_that_send_to_each_other():
    assert set_aside_bytes((Layout(),), 1, on_node=True, nvlink=True) == RESERVED_BYTES
    assert set_aside_bytes((Layout(dp=8),), 8, on_node=True, nvlink=True) == RESERVED_BYTES
    eight = set_aside_bytes((Layout(ulysses=8), Layout(cfg=2, ulysses=4)), 8, on_node=True, nvlink=True)
    assert eight == pytest.approx(RESERVED_BYTES + 2 * GROUP_BYTES + 10 * DIRECT_BYTES)
    pair = set_aside_bytes((Layout(ring=2),), 2, on_node=True, nvlink=False)
    assert pair == pytest.approx(RESERVED_BYTES + PAIR_BYTES * CHANNELS + DIRECT_BYTES * DIRECT_CHANNELS)
    apart = set_aside_bytes((Layout(ulysses=16),), 8, on_node=True, nvlink=True)  # on two nodes
    want = RESERVED_BYTES + 2 * GROUP_BYTES + (7 + 8 * DIRECT_CHANNELS) * DIRECT_BYTES
    assert apart == pytest.approx(want)


def test_tensors_of_the_device_are_sent_in_batches_only():
    """For a send outside a batch, NCCL makes a communicator of the two ranks, which nobody counts."""
    single = re.compile(r"dist\.(i?send|i?recv)\(")
    sources = [path for room in ("parallel", "engines", "sampling") for path in (PACKAGE / room).rglob("*.py")]
    assert [path.name for path in sources if single.search(path.read_text())] == []
