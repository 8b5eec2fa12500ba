"""A request is resolved: layouts for any number of ranks, and a plan that survives its JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from opensora_launch.cli.plan_summary import plan_summary
from opensora_launch.errors import UserError
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import NOT_MEASURED, Machine, Plan, VideoRequest, batches, rows_per_step
from opensora_launch.plan.rows import Guidance
from opensora_launch.schema.config import LayoutConfig, RunConfig, SamplingConfig, VideoConfig
from opensora_launch.schema.kernel_kinds import APPROXIMATE, AttentionKind

SP_ROWS = json.loads((Path(__file__).parent.parent / "reference/sp_geometry.json").read_text())["rows"]
T2V = Guidance(50, 7.5, 3.0, True, True, False)


def video(name: str = "0000_0", guidance: Guidance = T2V) -> VideoRequest:
    return VideoRequest(name, "rain", "rain. 24 FPS.", "", (), "t2v", 42, guidance)


def gpus(n: int) -> Machine:
    return Machine("cuda", math.ceil(n / 8), min(n, 8), 16)


def planned(run: RunConfig, n: int, videos: int = 1) -> Plan:
    return make_plan(run, gpus(n), [video(f"{i:04d}_0") for i in range(videos)], "0")


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 6, 7, 8])
def test_all_ninety_geometries_plan_on_any_number_of_ranks(ranks):
    for row in SP_ROWS:
        run = RunConfig(video=VideoConfig(row["resolution"], row["aspect_ratio"], num_frames=row["num_frames"]))
        got = planned(run, ranks)
        assert [layout.ranks for _, layout in got.layouts] == [ranks, ranks]
        assert got.geometry.grid.total_tokens == row["total_tokens"]


def test_the_layout_follows_the_number_of_rows():
    assert planned(RunConfig(), 8).layouts == ((1, Layout(ulysses=8)), (2, Layout(cfg=2, ulysses=4)))
    assert planned(RunConfig(), 7).layout(2) == Layout(ring=7)  # 24 heads on 7 ranks would leave 13% idle
    assert planned(RunConfig(), 5).layout(2) == Layout(ulysses=5)  # 5, 5, 5, 5, 4 heads
    assert planned(RunConfig(), 16).layout(1) == Layout(ring=2, ulysses=8)  # Ulysses stays within a node


def test_many_videos_go_to_separate_groups():
    groups = {videos: planned(RunConfig(), 4, videos).dp for videos in (1, 2, 4, 7, 40)}
    assert groups == {1: 1, 2: 2, 4: 4, 7: 1, 40: 4}  # 7 on 4 groups would take two rounds


def test_configured_degrees_are_kept():
    run = RunConfig(layout=LayoutConfig(cfg=2, ring=2))
    assert planned(run, 8).layout(2) == Layout(cfg=2, ring=2, ulysses=2)
    assert planned(RunConfig(layout=LayoutConfig(ulysses=1, cfg=1)), 4).layouts == (
        (1, Layout(ring=4)),
        (2, Layout(ring=4)),
    )


def test_an_impossible_layout_names_the_remedy():
    with pytest.raises(
        UserError, match=r"layout.cfg=2 layout.ring=2 needs 4 ranks or a multiple of them, but the topology has 6"
    ):
        planned(RunConfig(layout=LayoutConfig(cfg=2, ring=2)), 6)


def test_every_problem_is_reported_at_once():
    run = RunConfig(video=VideoConfig(num_frames=128), sampling=SamplingConfig(num_steps=0, state_dtype="fp8"))
    with pytest.raises(UserError) as e:
        planned(run, 2)
    assert e.value.problems == (
        "video.num_frames=128 must be 1 plus a multiple of 4; the nearest is 129",
        "sampling.num_steps=0 must be at least 1",
        "sampling.state_dtype=fp8 is not known; use one of fp32, bf16",
    )


def test_a_plan_survives_its_json():
    plan = planned(RunConfig(sampling=SamplingConfig(flow_shift=3.0)), 3, videos=2)
    data = json.loads(json.dumps(asdict(plan)))
    assert Plan.from_dict(data) == plan
    data["videos"][1]["guidance"]["scale"] = 1.0
    with pytest.raises(ValueError, match="it has an unknown key 'scale'"):
        Plan.from_dict(data)


@pytest.mark.parametrize("kind", AttentionKind)
def test_approximate_attention_is_off_by_default_and_named(kind: AttentionKind):
    assert RunConfig().attention is AttentionKind.auto
    if kind is AttentionKind.cpu_flash:
        return
    plan = planned(RunConfig(attention=kind), 2)
    assert plan.approximate == ((f"attention={kind}{NOT_MEASURED}",) if kind in APPROXIMATE else ())
    assert (f"attention={kind} (approximate)" in plan_summary(plan)) is (kind in APPROXIMATE)


def test_batches_hold_neighbours_with_equal_guidance():
    other = Guidance(50, 3.0, 3.0, True, True, False)
    videos = [video("a"), video("b"), video("c"), video("d", other), video("e")]
    assert [[v.name for v in b] for b in batches(videos, 2)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_rows_per_step_of_the_shipped_settings():
    assert sum(rows_per_step(video(), 33, prune=True)) == 80
    assert sum(rows_per_step(video(), 33, prune=False)) == 150
