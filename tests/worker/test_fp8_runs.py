"""Runs with products in fp8: the same bits wherever the weights are, other ones than in full, and how far from them."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from opensora_launch.errors import UserError
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.kernels import KernelCall
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import NOT_MEASURED, Plan
from opensora_launch.schema.config import LayoutConfig, NumericsConfig, Offload, PlacementConfig, Shard, Storage
from opensora_launch.worker import set_up
from opensora_launch.worker.case_files import read_case
from opensora_launch.worker.cases import Ranks, run_case
from opensora_launch.worker.checkpoint import fingerprint
from tests.ranks import run_ranks
from tests.worker.plans import TINY, small_plan, video
from tests.worker.test_generate import pixels

DEEP = replace(TINY, mmdit=replace(TINY.mmdit, depth=2, depth_single_blocks=2))
ON = NumericsConfig(fp8_products=True)
CASES = sorted((Path(__file__).parent.parent / "reference").glob("mmdit_*.json"))
CPU = torch.device("cpu")


def plan_of(placement: PlacementConfig, numerics: NumericsConfig) -> Plan:
    layout = LayoutConfig(dp=1, cfg=1)
    plan = small_plan(2, [video(steps=3)], layout=layout, placement=placement, frames=1, model=DEEP)
    return replace(plan, numerics=numerics)


def test_every_placement_makes_the_same_bits_in_fp8(tmp_path):
    full = pixels(plan_of(PlacementConfig(), NumericsConfig()), tmp_path / "full")["0000_0"]
    want = pixels(plan_of(PlacementConfig(), ON), tmp_path / "whole")["0000_0"]
    assert 1e-3 < (want - full).norm() / full.norm() < 0.2
    for number, placement in enumerate((PlacementConfig(Shard.node), PlacementConfig(Shard.none, Offload.host))):
        assert torch.equal(pixels(plan_of(placement, ON), tmp_path / str(number))["0000_0"], want)
    stored = PlacementConfig(Shard.none, Offload.host, storage=Storage.fp8)
    assert not torch.equal(pixels(plan_of(stored, ON), tmp_path / "stored")["0000_0"], want)


def test_the_plan_names_it_and_a_checkpoint_fits_no_other_products():
    off, on = (plan_of(PlacementConfig(), numerics) for numerics in (NumericsConfig(), ON))
    assert (off.approximate, on.approximate) == ((), (f"numerics.fp8_products=true{NOT_MEASURED}",))
    assert fingerprint(off, off.videos) != fingerprint(on, on.videos)


def test_ranks_without_it_are_refused_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(set_up, "why_no_fp8", lambda device: "has a GPU of sm80, and products in fp8 need sm89")
    monkeypatch.setattr(set_up, "gathered", lambda mine: ["", mine])
    with pytest.raises(UserError, match=r"numerics\.fp8_products=true: rank 1 has a GPU of sm80, .*; leave it out"):
        set_up._refuse_without_fp8(CPU)


def errors_of_cases() -> dict[str, float]:
    """The error of each reference case, relative to its tensor."""
    groups = Groups(timedelta(seconds=60))
    mesh = build_meshes([Layout()], dist.get_rank(), groups, lambda *args: nullcontext())[Layout()]

    def kernel(dtype: torch.dtype, head_dim: int) -> KernelCall:
        return choose_kernel("cpu_flash", device=CPU, dtype=dtype, head_dim=head_dim).call

    found = {}
    for path in CASES:
        case = read_case(path, CPU)
        ranks = Ranks(dict.fromkeys(range(1, case.rows + 1), mesh), mesh.video, Placement(), kernel, fp8_products=True)
        got, want = run_case(case, ranks, lambda *args: nullcontext())["output"], case.tensors["output"]
        found[path.stem] = float((got - want).norm() / want.norm())
    return found


def test_the_error_of_reference_cases_is_that_of_eight_bits(tmp_path):
    (errors,) = run_ranks(1, tmp_path, errors_of_cases)
    assert len(errors) == 3
    assert all(5e-3 < error < 0.08 for error in errors.values()), errors
