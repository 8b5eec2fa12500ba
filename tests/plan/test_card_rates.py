"""No prediction is faster than the data sheet allows, and unlike cards are between pairs of each of them."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from opensora_launch.errors import UserError
from opensora_launch.plan.choose import options
from opensora_launch.plan.costs import row_work
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.make_plan import make_plan, predict
from opensora_launch.plan.networks import NETWORKS, VAES
from opensora_launch.plan.plan import Machine
from opensora_launch.plan.times import StepLoad, step_counts
from opensora_launch.plan.workload import Workload
from opensora_launch.request.catalogue import read_cards
from opensora_launch.schema.cards import Card, joined
from opensora_launch.schema.config import (
    LayoutConfig,
    Link,
    NumericsConfig,
    Offload,
    PlacementConfig,
    Precision,
    RunConfig,
    Shard,
    Storage,
    TopologyConfig,
    VideoConfig,
)
from tests.plan.test_choose import machine, run_of, videos

CARDS = read_cards()
WHOLE = PlacementConfig(Shard.none, Offload.none)
PRODUCTS = ("bf16", "fp16", "tf32", "fp32")
PLACEMENTS = (
    PlacementConfig(),
    PlacementConfig(Shard.node),
    PlacementConfig(offload=Offload.host, storage=Storage.fp8),
)


def work_of(card: Card, size: str, gpus: int, **more: Any) -> Workload:
    return predict(RunConfig(video=VideoConfig(size), hardware=card, **more), machine(gpus), videos())[0]


def least_flops(work: Workload) -> float:
    """The FLOPs of denoising and decoding, without what tiles share or repeat."""
    rows = sum(rows * count for rows, count in work.steps) * work.batches
    size = work.video
    pixels = size.width_px * size.height_px * size.num_frames * work.videos
    return rows * row_work(work.net, work.grid).flops + pixels * VAES[work.net.vae].flops


def test_no_prediction_is_below_flops_over_the_peak() -> None:
    """For every card, precision, placement, layout and count; with the networks that have the fastest decoders too."""
    by_size = {size: work_of(CARDS["h100_sxm"], size, 1) for size in ("256px", "768px")}
    wan = replace(by_size["256px"], net=NETWORKS["wan2.2_ti2v_5b"])
    for card in CARDS.values():
        for products in PRODUCTS:
            peak = card.tflops(products)
            if peak is None:
                continue
            for gpus, work in ((1, by_size["256px"]), (2, wan), (8, by_size["768px"])):
                for placement in PLACEMENTS:
                    asked = replace(work, card=card, products=products, ranks=gpus, gpus_per_node=gpus)
                    for option in options(replace(asked, placement=placement), LayoutConfig()):
                        at_peak = least_flops(asked) / (gpus * peak * 1e12)
                        assert option.phases.making >= at_peak, (card.name, products, placement, option.layout)
                        assert 0 < option.efficiency <= 1.0001


def test_narrower_products_are_faster_and_send_less() -> None:
    for card in CARDS.values():
        work = work_of(card, "256px", 4, placement=WHOLE)
        fixed = LayoutConfig(cfg=1, ulysses=2, ring=2)
        known = [products for products in PRODUCTS if card.tflops(products)]
        times = {p: options(replace(work, products=p), fixed)[0].phases for p in known}
        assert times["fp16"].making < times["tf32"].making <= times["fp32"].making, card.name
        assert times["fp32"].ulysses > times["fp16"].ulysses
    load = StepLoad(work.net, work.grid, 2, Layout(ring=2, ulysses=2, tp=2), 8, sharded=4)
    half, full = (vars(step_counts(replace(load, element_bytes=size))) for size in (2, 4))
    for name in ("ulysses_bytes", "ring_bytes", "tensor_bytes", "weight_bytes"):
        assert full[name] == 2 * half[name] > 0, name
    assert full["elementwise_bytes"] > half["elementwise_bytes"]


@pytest.mark.parametrize("size", ["256px", "768px"])
def test_unlike_cards_are_between_pairs_of_each(size: str) -> None:
    """All pairs of two cards, over PCIe, with the smaller memory, which limits both."""
    pairs = list(combinations(CARDS.values(), 2))
    assert len(pairs) == len(CARDS) * (len(CARDS) - 1) / 2 > 200
    work = work_of(CARDS["v100"], size, 2, topology=TopologyConfig(link=Link.pcie))

    def making(card: Card) -> float:
        return options(replace(work, card=card), LayoutConfig())[0].phases.making

    for a, b in pairs:
        memory_gib = min(a.memory_gib, b.memory_gib)
        ours, theirs = (making(replace(card, memory_gib=memory_gib)) for card in (a, b))
        mixed = making(joined([a, b]))
        assert min(ours, theirs) <= mixed <= max(ours, theirs), (a.name, b.name)
        assert mixed >= 0.98 * max(ours, theirs), "the slower card sets the pace"


def test_unlike_cards_have_no_nvlink() -> None:
    mixed = joined([CARDS["a100_80gb_sxm"], CARDS["h100_sxm"]])
    assert [(card.nvlink_gb_s, card.link_efficiency) for card in mixed.each] == [(None, None)] * 2
    assert (mixed.name, mixed.memory_gib, mixed.tdp_w) == ("a100_80gb_sxm+h100_sxm", 79.65, 550.0)
    assert joined([CARDS["l20"]]) == CARDS["l20"]


def test_a_card_without_bf16() -> None:
    mixed = joined([CARDS["a100_80gb_sxm"], CARDS["v100"]])
    for card in (CARDS["v100"], mixed):
        run = replace(run_of("v100", "256px"), hardware=card)
        assert make_plan(run, machine(2), videos(), "0").precision == "fp16"
        with pytest.raises(UserError, match="precision=bf16: v100 does not support it; use fp32, or auto"):
            make_plan(replace(run, precision=Precision.bf16), machine(2), videos(), "0")


def test_tf32_is_used_or_refused() -> None:
    run = run_of("h100_sxm", numerics=NumericsConfig(tf32=True))
    one = Machine("cuda", 1, 1, 8)
    assert predict(replace(run, precision=Precision.fp32), one, videos())[0].products == "tf32"
    with pytest.raises(UserError, match=r"numerics\.tf32=true changes only fp32 products on GPUs"):
        make_plan(run, one, videos(), "0")
