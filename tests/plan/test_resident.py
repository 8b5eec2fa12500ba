"""How many offloaded blocks stay on the GPUs by what is free there, after CUDA and NCCL have taken their part."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from opensora_launch.parallel.mesh import Groups, world_axis
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.memory import FRAGMENTS, GIB, USABLE, blocks_bytes
from opensora_launch.plan.networks import OPEN_SORA_2
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.resident import fitting_placement, memory_of_plan, needed_bytes
from opensora_launch.plan.set_aside import LATER_BYTES
from opensora_launch.schema.config import Fit, Offload, PlacementConfig
from opensora_launch.worker.set_up import agreed_placement
from tests.plan.test_choose import machine, run_of, videos
from tests.ranks import run_ranks

BLOCK = blocks_bytes(OPEN_SORA_2, 2) / OPEN_SORA_2.blocks * FRAGMENTS


def offloaded(**more: Any) -> Plan:
    return make_plan(run_of("rtx4090", **more), machine(1), videos(), "0")


def test_a_plan_keeps_its_blocks_where_its_memory_is_free() -> None:
    plan = offloaded()
    assert plan.placement.resident_blocks > 30
    memory = memory_of_plan(plan, plan.placement)
    assert memory.peak <= 23.99 * GIB * USABLE
    assert needed_bytes(plan, plan.placement) == memory.peak - memory.set_aside
    assert fitting_placement(plan, 80 * GIB) == plan.placement, "no more than planned"
    assert fitting_placement(plan, needed_bytes(plan, plan.placement)) == plan.placement


@pytest.mark.parametrize("gib", [0.1, 1.0, 5.0, 9.0])
def test_what_is_missing_is_made_up_by_as_few_blocks_as_possible(gib: float) -> None:
    plan = offloaded()
    free = needed_bytes(plan, plan.placement) - gib * GIB
    found = fitting_placement(plan, free)
    assert replace(found, resident_blocks=plan.placement.resident_blocks) == plan.placement
    assert (
        needed_bytes(plan, found)
        <= free
        < needed_bytes(plan, replace(found, resident_blocks=found.resident_blocks + 1))
    )
    fewer = plan.placement.resident_blocks - found.resident_blocks
    assert fewer == pytest.approx(gib * GIB / BLOCK, abs=1.5)


def test_nothing_else_is_changed() -> None:
    plan = offloaded()
    none = fitting_placement(plan, 0.0)
    assert none == replace(plan.placement, resident_blocks=0)
    for fixed in (
        offloaded(placement=PlacementConfig(offload=Offload.host, resident_blocks=20)),
        offloaded(placement=PlacementConfig(offload=Offload.host, resident_blocks=20), fit=Fit.strict),
        replace(plan, placement=Placement(), smaller=None),
    ):
        assert fitting_placement(fixed, 0.0) == fixed.placement


def placement_on_rank(plan: Plan, free: list[float]) -> int:
    rank, world = dist.get_rank(), dist.get_world_size()
    axis = world_axis(rank, world, Groups(timedelta(seconds=60)), lambda *_: nullcontext())
    return agreed_placement(plan, int(free[rank]), 2 * 2**30, axis).resident_blocks


def test_all_ranks_take_what_fits_on_the_fullest_gpu(tmp_path) -> None:
    """What CUDA would say is free stands for the GPUs, of which there is none here."""
    plan = offloaded()
    enough = needed_bytes(plan, plan.placement)
    want = fitting_placement(plan, enough - 3 * GIB - LATER_BYTES).resident_blocks
    assert 0 < want < plan.placement.resident_blocks
    assert run_ranks(3, tmp_path, placement_on_rank, plan, [enough, enough - 3 * GIB, enough]) == [want] * 3
