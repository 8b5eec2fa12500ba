"""Clocks of hosts, measured over the process group. Ranks of one machine play the hosts: their clocks are one."""

from pathlib import Path

import torch.distributed as dist

from opensora_launch.worker.rank import Rank
from opensora_launch.worker.watch import clock_offset
from tests.ranks import run_ranks


def offsets(local_world: int) -> tuple[float | None, float | None]:
    rank, world = dist.get_rank(), dist.get_world_size()
    return clock_offset(Rank(rank, rank % local_world, world, local_world))


def test_ranks_of_one_clock_measure_no_offset(tmp_path: Path) -> None:
    """Three ranks as if each were a host of its own: the truth, 0, lies within the error that they state."""
    first, *others = run_ranks(3, tmp_path, offsets, 1)
    assert first == (0.0, 0.0)
    for offset, error in others:
        assert 0 < error < 0.5
        assert abs(offset) <= error


def test_one_rank_a_node_measures(tmp_path: Path) -> None:
    found = run_ranks(4, tmp_path, offsets, 2)
    assert [offset is None for offset, _ in found] == [False, True, False, True]
    assert run_ranks(2, tmp_path, offsets, 2) == [(0.0, 0.0), (None, None)]
