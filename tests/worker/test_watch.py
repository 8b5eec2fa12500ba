"""What the worker notes beside its phases: kernels, blocks, the node's samples."""

import json
import os
from pathlib import Path

import pytest
import torch

from opensora_launch.report.build import build_report
from opensora_launch.telemetry.samples import read_samples
from opensora_launch.worker.watch import device_uuid
from tests.worker.plans import small_plan, video
from tests.worker.test_generate import make


def test_a_cpu_has_no_uuid() -> None:
    assert device_uuid(torch.device("cpu")) is None


def test_a_run_notes_kernels_blocks_and_the_node(tmp_path: Path) -> None:
    plan = small_plan(2, [video()])
    make(plan, tmp_path)
    (attempt,) = build_report(tmp_path)["attempts"]
    for rank in attempt["ranks"]:
        kinds = rank["compute_by_kind"]
        assert list(kinds) == ["attention", "double", "single", "other"]
        assert min(kinds["attention"], kinds["double"], kinds["single"]) > 0
        assert sum(kinds.values()) == pytest.approx(rank["parts"]["compute"], abs=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "attempts/0/telemetry/rank0.jsonl").read_text().splitlines()]
    assert lines[0]["pid"] != os.getpid()
    steps = sum(line["kind"] == "step" and line["own_rows"] > 0 for line in lines)
    blocks = [line["part"] for line in lines if line["kind"] == "work"]
    assert (blocks.count("double"), blocks.count("single")) == (steps, steps)
    (node,) = (tmp_path / "attempts/0/telemetry").glob("node-*.jsonl")
    found = read_samples(node)
    assert found is not None
    assert {r["rank"] for s in found.samples for r in s["ranks"]} <= {0, 1}
    assert attempt["hosts"][0]["samples"] >= 2
