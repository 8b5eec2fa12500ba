"""Products in fp8 in the plan: where they are refused, and what is predicted of them."""

from typing import Any

import pytest

from opensora_launch.errors import UserError
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.make_plan import make_plan, predict
from opensora_launch.plan.memory import activation_bytes
from opensora_launch.plan.networks import OPEN_SORA_2, TokenGrid, network_of
from opensora_launch.plan.plan import NOT_MEASURED, Machine
from opensora_launch.plan.times import rates_of
from opensora_launch.schema.config import (
    Engine,
    LayoutConfig,
    MmditConfig,
    ModelConfig,
    NumericsConfig,
    Precision,
    RunConfig,
    TopologyConfig,
)
from tests.plan.test_choose import card, machine, run_of, videos

ON = NumericsConfig(fp8_products=True)
FEW = ModelConfig(mmdit=MmditConfig(depth=1, depth_single_blocks=1))
ODD = ModelConfig(mmdit=MmditConfig(hidden_size=72, num_heads=3, axes_dim=[8, 8, 8]))


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("a100_80gb_sxm", {}, "a100_80gb_sxm has no products in fp8 (they need sm89 or newer); leave it out"),
        ("h100_sxm", {"precision": Precision.fp16}, "needs precision=bf16 on GPUs, not fp16"),
        ("h100_sxm", {"layout": LayoutConfig(tp=2)}, "the rounding depends on the number of ranks; use layout.tp=1"),
        ("h100_sxm", {"model": FEW}, "leaves the first and the last block alone, and the model has 2; leave it out"),
        ("h100_sxm", {"model": ODD}, "needs multiples of 16 on GPUs, but hidden_size=72 and the feed-forward has 288"),
        ("h100_sxm", {"engine": Engine.colossalai}, "engine=colossalai is not tested with numerics.fp8_products"),
    ],
)
def test_what_is_refused(name: str, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as refused:
        make_plan(run_of(name, numerics=ON, **change), machine(2), videos(), "0")
    assert [problem in line for line in refused.value.problems] == [True], refused.value.problems
    if "engine" not in change:
        assert make_plan(run_of(name, **change), machine(2), videos(), "0").approximate == ()


def test_a_cpu_needs_no_card_no_bf16_and_no_multiples_of_16() -> None:
    run = RunConfig(numerics=ON, model=ODD, precision=Precision.fp32)
    plan = make_plan(run, Machine("cpu", 1, 2, 2), videos(), "0")
    assert plan.approximate == (f"numerics.fp8_products=true{NOT_MEASURED}",)


def test_the_peak_in_fp8_counts_for_the_blocks_but_two() -> None:
    hopper, one = card("h100_sxm"), TopologyConfig(gpus_per_node=1)
    assert (OPEN_SORA_2.fp8_share, network_of(ModelConfig(), fp8_products=True).fp8_share) == (0.0, 55 / 57)
    full, half, fp8 = (rates_of(hopper, one, "bf16", share).matmul_flops for share in (0.0, 0.5, 1.0))
    assert hopper.fp8_tflops is not None
    assert hopper.bf16_tflops is not None
    assert fp8 / full == pytest.approx(hopper.fp8_tflops / hopper.bf16_tflops)
    assert full / half == pytest.approx((1 + full / fp8) / 2)
    ampere = card("a100_80gb_sxm")
    assert rates_of(ampere, one, "bf16", 1.0) == rates_of(ampere, one, "bf16")


def test_a_run_is_predicted_faster_with_more_memory_and_never_with_tp() -> None:
    for gpus in (1, 8):
        (plain, before), (work, after) = (
            predict(run_of("h100_sxm", numerics=numerics), machine(gpus), videos())
            for numerics in (NumericsConfig(), ON)
        )
        assert after[0].phases.denoise < before[0].phases.denoise
        assert {option.layout.tp for option in after} == {1}
        assert work.products == plain.products == "bf16"
    grid = TokenGrid(33, 2304, 512)
    more, less = (activation_bytes(net, grid, Layout(), 1, 2) for net in (work.net, plain.net))
    assert 0.3e9 < more - less < 1e9
