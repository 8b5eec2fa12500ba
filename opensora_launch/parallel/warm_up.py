"""Connect the ranks of every group before the first real exchange."""

from collections.abc import Mapping

import torch
import torch.distributed as dist

from opensora_launch.parallel.mesh import Groups, Record
from opensora_launch.parallel.tile_spreading import exchange_pairs
from opensora_launch.plan.rank_sets import Uses


def warm_up(
    sets: Mapping[tuple[int, ...], Uses], rank: int, groups: Groups, record: Record, device: torch.device
) -> None:
    """Make a tiny exchange of each kind in each of this rank's `sets`, as `device_sets` gives them.

    NCCL makes a group's communicator at its first exchange: ranks that come early wait for the id of the first one in
    the store, where no watch sees them, and the memory is taken then. So that happens here, under the watch.

    All ranks call this together. The sets are in one order on all of them, so no two wait for each other in different
    sets. The first exchange is one of all ranks of a set, as NCCL needs before a batch of sends between some of them.
    """
    for ranks, uses in sets.items():
        group, index = groups.of(ranks), ranks.index(rank)
        ones, got = (torch.ones(len(ranks), device=device) for _ in range(2))
        with record("connect", ranks, 0):
            dist.all_reduce(got, group=group)
            if uses.direct == len(ranks) - 1:
                others = [other for other in ranks if other != rank]
                sends = [dist.P2POp(dist.isend, ones, other, group) for other in others]
                receives = [dist.P2POp(dist.irecv, torch.empty_like(got), other, group) for other in others]
                exchange_pairs(*sends, *receives)
            elif "ring" in uses.axes:
                to, source = ranks[(index + 1) % len(ranks)], ranks[index - 1]
                exchange_pairs(dist.P2POp(dist.isend, ones, to, group), dist.P2POp(dist.irecv, got, source, group))
            if uses.apart:
                dist.all_reduce(got, group=groups.of(ranks, apart=True))
            assert int(got.sum()) > 0, "this waits for the device"
