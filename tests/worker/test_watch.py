"""What the worker notes beside its phases: kernels, blocks, the node's samples."""

import json
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from opensora_launch.machine.nvml import open_gpus
from opensora_launch.report.build import build_report
from opensora_launch.telemetry.events import read_events
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.samples import bare_uuid, read_samples
from opensora_launch.worker.rank_facts import device_uuid
from opensora_launch.worker.watch import watch_blocks
from tests.worker.plans import small_plan, video
from tests.worker.test_generate import make


def test_a_cpu_has_no_uuid() -> None:
    assert device_uuid(torch.device("cpu")) is None


@pytest.mark.gpu
def test_the_gpu_that_torch_names_is_the_one_that_is_sampled() -> None:
    """1 GiB that torch takes is seen on it; each reading is either there or refused."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")
    uuid = device_uuid(torch.device("cuda", 0))
    if uuid is None:
        pytest.skip("torch before 2.4 does not tell a GPU's UUID")
    gpus, why_not = open_gpus()
    assert gpus is not None, why_not
    try:
        (place,) = (n for n, gpu in enumerate(gpus.gpus) if bare_uuid(gpu.uuid) == bare_uuid(uuid))
        before = gpus.sample()[place]
        taken = torch.ones(1 << 28, device="cuda")
        torch.cuda.synchronize()
        after = gpus.sample()[place]
        refused = gpus.gpus[place].refused
    finally:
        gpus.close()
    assert float(taken[-1]) == 1
    assert after["memory_used_bytes"] - before["memory_used_bytes"] >= 1 << 30
    one_of_each = {"utilisation": "util", "power": "power_w", "energy": "energy_j", "clocks": "sm_mhz",
                   "throttling": "throttled", "nvlink": "nvlink_tx_bytes", "temperature": "temperature_c",
                   "pcie": "pcie_tx_bytes_per_s", "ecc": "ecc_corrected", "processes": "processes"}  # fmt: skip
    assert {name for name, key in one_of_each.items() if key not in before} == refused.keys() - {"xid"}


class Blocks(nn.Module):
    """As many blocks as Open-Sora's network has of each kind, whose weights are waited for before the second double."""

    def __init__(self, doubles: int, singles: int) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList(nn.Identity() for _ in range(doubles))
        self.single_blocks = nn.ModuleList(nn.Identity() for _ in range(singles))
        self.waited: list[float] = []  # until then
        self.double_blocks[1].register_forward_pre_hook(lambda module, args: self.waited.append(time.monotonic()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in [*self.double_blocks, *self.single_blocks]:
            x = block(x)
        return x


@pytest.mark.parametrize("singles", [3, 0])
@pytest.mark.parametrize("streamed", [False, True])
def test_blocks_are_noted_by_kind_and_alone_where_they_are_streamed(
    tmp_path: Path, streamed: bool, singles: int
) -> None:
    network = Blocks(2, singles)
    meta = {"rank": 0, "world": 1, "local_rank": 0, "host": "h", "device_name": "", "threads": 1, "layouts": {}}
    beat = Heartbeat(tmp_path / "heartbeat/rank0.json", rank=0, host="h")
    recorder = Recorder(tmp_path / "telemetry/rank0.jsonl", meta, device="cpu", heartbeat=beat)
    watch_blocks(network, recorder, streamed=streamed)
    for _ in range(2):
        network(torch.zeros(1))
    recorder.flush()
    found = read_events(tmp_path / "telemetry/rank0.jsonl")
    assert found is not None
    noted = found.work
    each = (2, singles) if streamed else (1, min(1, singles))
    assert [w.part for w in noted] == 2 * (["double"] * each[0] + ["single"] * each[1])
    assert all(a.end_s <= b.start_s for a, b in pairwise(noted))
    doubles = [w for w in noted if w.part == "double"]
    assert any(w.start_s < end < w.end_s for w in doubles for end in network.waited) != streamed


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
