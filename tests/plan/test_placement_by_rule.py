"""A card that the catalogue does not know: weights are placed by its memory alone."""

from typing import Any

import pytest

from opensora_launch.errors import UserError
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Plan
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import Fit, Offload, PlacementConfig, RunConfig, Shard, VideoConfig
from tests.plan.test_choose import machine, videos


def on_unknown(gib: float, gpus: int = 1, **more: Any) -> Plan:
    run = RunConfig(video=VideoConfig("768px"), hardware=Card(memory_gib=gib), **more)
    return make_plan(run, machine(gpus), videos(), "0")


def test_what_fits_is_whole_else_shared_else_in_host_memory() -> None:
    assert not on_unknown(80).placement.streamed
    assert not on_unknown(0).placement.streamed  # nothing is known
    assert on_unknown(24, 4).placement.shard is Shard.node
    alone = on_unknown(24).placement
    assert alone.offload is Offload.host
    assert alone.resident_blocks > on_unknown(16).placement.resident_blocks > 0


def test_what_is_configured_remains() -> None:
    host = PlacementConfig(offload=Offload.host, resident_blocks=3)
    assert on_unknown(80, placement=host).placement.resident_blocks == 3
    assert not on_unknown(80, fit=Fit.strict).placement.streamed


def test_what_cannot_fit_is_refused_in_one_line() -> None:
    with pytest.raises(UserError) as refused:
        on_unknown(24, fit=Fit.strict)
    assert refused.value.problems == (
        "replicated weights: 31.4 GiB are needed, and a GPU has 23.6 free; use more GPUs, or a smaller video",
    )
    with pytest.raises(UserError, match=r"GiB are needed, and a GPU has 5\.9 free"):
        on_unknown(6)
