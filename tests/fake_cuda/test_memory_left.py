"""Ranks that find less memory than planned keep fewer blocks on the GPUs, and make the same video."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from opensora_launch.schema.config import LayoutConfig, Offload, PlacementConfig
from tests.fake_cuda.making import make, plan_of

pytestmark = pytest.mark.fake_cuda


def test_fewer_blocks_stay_where_less_is_free(tmp_path: Path) -> None:
    asked = PlacementConfig(offload=Offload.host, resident_blocks=2)
    plan = plan_of(2, layout=LayoutConfig(dp=1, cfg=1, ulysses=2), placement=asked)
    plan = replace(plan, smaller=replace(plan.placement, resident_blocks=0))  # as if the planner had chosen 2
    want, _ = make(plan, tmp_path / "cpu", fake=False, timeout=300.0)
    got, _ = make(plan, tmp_path / "full", fake=True, timeout=300.0, env={"FAKE_CUDA_FREE_GIB": "0.5"})
    assert len(want) == 1
    assert got == want
    attempt = tmp_path / "full" / "attempts" / "0"
    for rank in range(2):
        assert "0 of 2 resident blocks fit" in (attempt / "logs" / f"rank{rank}.log").read_text()
        last = json.loads((attempt / "telemetry" / f"rank{rank}.jsonl").read_text().splitlines()[-1])
        assert 78e9 < last["set_aside_bytes"] < 80 * 2**30  # of 80 GiB, of which the double says half a GiB is free
