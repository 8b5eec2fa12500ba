"""Layouts are ranked by predicted time under the memory limit. A golden file holds the plans for every card."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from opensora_launch.errors import UserError
from opensora_launch.plan.choose import Option, options, ways_to_fit
from opensora_launch.plan.fit import GPU_COUNTS, fit_problems
from opensora_launch.plan.layout import Layout, all_layouts
from opensora_launch.plan.make_plan import make_plan, predict
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Machine, VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.plan.table import plan_text
from opensora_launch.plan.times import rates_of, uses_nvlink
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import (
    Fit,
    LayoutConfig,
    Offload,
    PlacementConfig,
    RunConfig,
    SamplingConfig,
    Shard,
    Storage,
    TopologyConfig,
    VideoConfig,
)
from opensora_launch.schema.kernel_kinds import Compile
from tests.configs import changed
from tests.speed import here, times_slower

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "plans.txt"
Predicted = tuple[Workload, tuple[Option, ...]]
T2V = Guidance(50, 7.5, 3.0, True, True, False)


def card(name: str) -> Card:
    return Card(**yaml.safe_load((ROOT / "configs" / "hardware" / f"{name}.yaml").read_text()))


CARDS = sorted(path.stem for path in (ROOT / "configs" / "hardware").glob("*.yaml") if path.stem != "auto")


def videos(count: int = 1) -> list[VideoRequest]:
    return [VideoRequest(f"{i:04d}_0", "rain", "rain.", "", (), "t2v", 42, T2V) for i in range(count)]


def machine(gpus: int) -> Machine:
    return Machine("cuda", math.ceil(gpus / 8), min(gpus, 8), 16)


def run_of(name: str, size: str = "768px", **more: Any) -> RunConfig:
    return RunConfig(video=VideoConfig(size), hardware=card(name), **more)


def planned(name: str, gpus: int, size: str = "768px", count: int = 1, **more: Any) -> Predicted:
    return predict(run_of(name, size, **more), machine(gpus), videos(count))


def test_every_legal_layout_is_ranked_once() -> None:
    _, found = planned("l20", 8)
    layouts = [option.layout for option in found]
    legal = [x for x in all_layouts(8) if x.dp == 1 and x.cfg <= 2]
    assert sorted(layouts, key=str) == sorted(legal, key=str)
    assert [option.phases.making for option in found] == sorted(option.phases.making for option in found)


def test_what_is_chosen_fits_and_what_fits_is_not_refused() -> None:
    for name in CARDS[::3]:
        for gpus in (1, 4):
            work, found = planned(name, gpus)
            run = run_of(name)
            if any(option.fits for option in found):
                layouts = make_plan(run, machine(gpus), videos(), "0").layouts
                assert found[0].fits
                assert layouts == found[0].layouts
                assert found[0].memory.peak <= 0.985 * card(name).memory_gib * GIB
                assert fit_problems(work, LayoutConfig(), found) == []
            else:
                with pytest.raises(UserError, match="does not fit in GPU memory"):
                    make_plan(run, machine(gpus), videos(), "0")


def test_the_weights_are_placed_so_that_the_run_fits() -> None:
    """Weights are replicated if that fits, else placed in the fastest way that fits. A 10 GB card makes 768px."""
    assert planned("h100_sxm", 8)[1][0].placement == Placement()
    two = planned("rtx4090", 2)[1][0]
    assert (two.placement, two.fits) == (Placement(Shard.node), True)
    one = planned("rtx4090", 1)[1][0]
    assert (one.placement.shard, one.placement.offload) == (Shard.none, Offload.host)
    assert 0 < one.placement.resident_blocks < 57
    small = planned("rtx3080", 1)[1][0]
    assert small.fits
    assert small.placement.resident_blocks < one.placement.resident_blocks
    run = run_of("rtx4090")
    plan = make_plan(run, machine(2), videos(), "0")
    assert (plan.placement, plan.smaller) == (Placement(Shard.node), Placement(Shard.none, Offload.host))


def test_as_many_blocks_stay_on_the_gpu_as_fit() -> None:
    for name in ("rtx3080", "rtx4080", "rtx4090"):
        best = planned(name, 1)[1][0]
        stay = best.placement.resident_blocks
        more = PlacementConfig(Shard.none, Offload.host, stay + 1, 0)
        fixed = planned(name, 1, placement=PlacementConfig(Shard.none, Offload.host, stay, 0))[1][0]
        assert fixed == best
        assert not planned(name, 1, placement=more)[1][0].fits


def test_configured_placement_settings_are_kept() -> None:
    run = run_of("h100_sxm", placement=PlacementConfig(offload=Offload.host, rows_at_once=1))
    chosen = predict(run, machine(2), videos())[1][0].placement
    assert (chosen.offload, chosen.rows_at_once) == (Offload.host, 1)
    fp8 = planned("rtx4080", 1, placement=PlacementConfig(storage=Storage.fp8))[1][0]
    full = planned("rtx4080", 1)[1][0]
    assert fp8.placement.storage is Storage.fp8
    assert fp8.placement.resident_blocks > full.placement.resident_blocks
    with pytest.raises(UserError, match=r"placement.resident_blocks=2 needs placement.offload=host"):
        make_plan(run_of("l20", placement=PlacementConfig(None, Offload.none, 2)), machine(1), videos(), "0")


def test_short_videos_are_made_in_batches() -> None:
    """Batches help if kernel launches or copies of weights take much of a step. Long videos gain nothing."""
    short = VideoConfig("256px", num_frames=1)

    def run(**more: Any) -> RunConfig:
        return changed(run_of("h100_sxm", **more), video=short)

    work, (best, *_) = predict(run(), machine(1), videos(8))
    one = predict(run(sampling=SamplingConfig(batch_size=1)), machine(1), videos(8))[1][0]
    assert work.batches in (1, 2, 4)
    assert best.fits
    assert best.phases.making < 0.98 * one.phases.making
    plan = make_plan(run(), machine(1), videos(8), "0")
    assert plan.sampling.batch_size == 8 // work.batches
    assert len(plan.batches) == work.batches
    assert make_plan(run_of("h100_sxm"), machine(1), videos(8), "0").sampling.batch_size == 1


def test_the_refusal_says_what_would_fit() -> None:
    with pytest.raises(UserError) as e:
        make_plan(run_of("rtx4090", fit=Fit.strict, layout=LayoutConfig(tp=1)), machine(8), videos(), "0")
    (line,) = e.value.problems
    assert line.startswith("replicated weights: VAE needs 32.3 of 23.6 GiB on rtx4090; placement.shard=node fits in ")
    many = run_of("rtx4090", placement=PlacementConfig(offload=Offload.host, resident_blocks=57))
    with pytest.raises(UserError, match=r"; placement\.offload=host placement\.resident_blocks=\d+ fits in"):
        make_plan(many, machine(1), videos(), "0")
    small = changed(run_of("rtx3080"), hardware__memory_gib=6.0)
    work, found = predict(small, machine(1), videos())
    assert not ways_to_fit(work, LayoutConfig())
    (line,) = fit_problems(work, LayoutConfig(), found)
    assert line.startswith("weights in host memory: VAE needs 8.9 of 5.9 GiB on rtx3080; video.num_frames=")


def test_remedies_suggest_common_numbers_of_gpus() -> None:
    """The suggested number is the first common number of GPUs that fits."""
    changes = {"video__num_frames": 1025, "model__vae__tile_frames": 64, "hardware__memory_gib": 16.0}
    asked = changed(run_of("l4"), **changes)
    work, found = predict(asked, machine(1), videos())
    (line,) = fit_problems(work, LayoutConfig(), found)
    offered = re.search(r"; (\d+) GPUs fit with placement", line)
    assert offered, line
    fit = [n for n in GPU_COUNTS if n > 1 and predict(asked, machine(n), videos())[1][0].fits]
    assert fit[0] == int(offered[1]) > 2


def test_every_suggested_remedy_fits() -> None:
    for name, gpus in (("rtx4090", 1), ("rtx4090", 4), ("rtx5090", 1), ("rtx4080", 2)):
        work, _ = planned(name, gpus, fit=Fit.strict)
        ways = ways_to_fit(work, LayoutConfig())
        assert ways
        for option in ways:
            asked = PlacementConfig(**vars(option.placement))
            again = predict(run_of(name, placement=asked, fit=Fit.strict), machine(gpus), videos())[1][0]
            assert again.fits
            assert again.phases == option.phases


def test_the_topology_decides() -> None:
    """PCIe prefers layouts that send little, many videos go to separate groups, uneven heads are avoided."""
    best = planned("l40", 8)[1][0]
    assert best.layout.cfg == 2
    assert planned("h100_sxm", 8, count=8)[1][0].layout == Layout(dp=8)
    assert planned("h100_sxm", 7)[1][0].layout.sequence == 7
    slow = TopologyConfig(nodes=2, gpus_per_node=8, node_link_gb_s=2.0)
    _, found = predict(run_of("h100_sxm", topology=slow), machine(16), videos())
    assert found[0].layout.cfg == 2  # only the latents of a step cross nodes
    assert found[0].layout.sequence == 8


def test_configured_degrees_are_kept() -> None:
    _, found = planned("h100_sxm", 8, layout=LayoutConfig(ring=2))
    assert {option.layout.ring for option in found} == {2}
    _, alone = planned("h100_sxm", 8, layout=LayoutConfig(cfg=1, ulysses=1, tp=1))
    assert [option.layouts for option in alone] == [((1, Layout(ring=8)), (2, Layout(ring=8)))]
    _, odd = planned("h100_sxm", 8, layout=LayoutConfig(cfg=8))  # useless, but configured
    assert [option.layout for option in odd] == [Layout(cfg=8)]


def test_an_unknown_card_follows_the_rule() -> None:
    plan = make_plan(RunConfig(), machine(8), videos(), "0")
    assert plan.layout(2) == Layout(cfg=2, ulysses=4)
    on_cpu = make_plan(run_of("rtx3080"), Machine("cpu", 1, 2, 4), videos(), "0")
    assert on_cpu.precision == "fp32"
    old = run_of("v100", "256px", placement=PlacementConfig(Shard.node))
    assert make_plan(old, machine(4), videos(), "0").precision == "fp16"


def test_parts_of_a_prediction_add_up() -> None:
    for gpus in (2, 8):
        best, alone = (planned("h100_sxm", n, compile=Compile.off)[1][0] for n in (gpus, 1))
        assert alone.efficiency == pytest.approx(1.0)
        once = {"load", "text", "compile"}
        parts = {name: seconds for name, seconds in vars(best.phases).items() if name not in once}
        assert sum(parts.values()) == pytest.approx(best.phases.making)
        assert best.efficiency == pytest.approx(alone.phases.making / (gpus * best.phases.making))
        assert best.phases.total == pytest.approx(best.phases.making + sum(getattr(best.phases, name) for name in once))
        assert best.energy_kwh == pytest.approx(gpus * 700 * best.phases.total / 3.6e6)


def test_the_disk_decides_the_load_time() -> None:
    slow, quick = (
        predict(run_of("h100_sxm", topology=TopologyConfig(disk_gb_s=speed)), machine(1), videos())[1][0].phases
        for speed in (2.0, 7.0)
    )
    assert slow.load == pytest.approx(3.5 * quick.load)
    assert slow.load == pytest.approx(17.0, abs=0.1)  # as docs/plan.md says
    assert slow.making == quick.making


def test_the_time_of_one_gpu_is_flops_over_rates() -> None:
    work, (alone,) = planned("h100_sxm", 1)
    rates = rates_of(work.card, work.topology, work.products)
    flops = 80 * 5.09e15
    assert flops / 989.4e12 < alone.phases.compute < 2.5 * flops / 989.4e12
    assert rates.attention_flops == pytest.approx(0.526 * 989.4e12)


def test_bridges_connect_only_pairs() -> None:
    bridged = card("rtx3090")
    assert uses_nvlink(bridged, TopologyConfig(gpus_per_node=2))
    assert not uses_nvlink(bridged, TopologyConfig(gpus_per_node=4))
    assert rates_of(bridged, TopologyConfig(gpus_per_node=4, link_gb_s=11.0), "bf16").link_bytes == 11e9


def test_the_work_depends_on_the_rows() -> None:
    pruned = planned("h100_sxm", 1)[1][0]
    whole = planned("h100_sxm", 1, sampling=SamplingConfig(prune_rows=False))[1][0]
    assert whole.phases.denoise / pruned.phases.denoise == pytest.approx(150 / 80, rel=1e-3)
    assert whole.memory.activations == pytest.approx(1.5 * pruned.memory.activations, rel=0.01)  # angles do not grow


def test_offload_and_shards_cost_time() -> None:
    whole = planned("rtx4090", 4, "256px", placement=PlacementConfig(Shard.none, Offload.none))[1][0]
    for placement in (PlacementConfig(Shard.node), PlacementConfig(Shard.none, Offload.host, 0)):
        small = planned("rtx4090", 4, "256px", placement=placement)[1][0]
        assert small.phases.gather > whole.phases.gather


def test_plans_of_every_card(request: pytest.FixtureRequest) -> None:
    argv = [sys.executable, str(Path(__file__).parent / "every_plan.py")]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(done.stdout)
    assert GOLDEN.read_text() == done.stdout


def test_planning_is_quick_and_the_table_is_whole() -> None:
    """On eight times as many GPUs at most thirty times as long; fourteen times is the usual."""
    small = here(lambda: plan_text(*planned("l20", 8, count=1)))
    assert times_slower(here(lambda: plan_text(*planned("l20", 64, count=64))), small, 30) <= 30
    work, found = planned("l20", 64, count=64)
    text = plan_text(work, found)
    assert text.splitlines()[0] == "open_sora_v2: 64 videos, 1024 x 576 pixels, 129 frames, 76,544 tokens"
    assert "chosen" in text
    assert "predicted, not measured" in text
    assert options(work, LayoutConfig()) == found  # pure
