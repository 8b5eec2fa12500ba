"""Real ranks that record themselves: what they waste on purpose is found again in the report."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from opensora_launch.report.build import build_report
from opensora_launch.telemetry.heartbeat import Heartbeat, read_heartbeats
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.stall import Verdict
from tests.ranks import everyone, run_ranks
from tests.report.synthetic import a_plan, write_run

LATE_S = 0.2
STEPS = 4


def open_recorder(attempt: str) -> Recorder:
    rank, world = dist.get_rank(), dist.get_world_size()
    heartbeat = Heartbeat(Path(attempt, "heartbeat", f"rank{rank}.json"), rank=rank, host="h", interval_s=0.05)
    meta = {
        "rank": rank, "world": world, "local_rank": rank, "host": "h", "device_name": "a CPU", "threads": 1,
        "layouts": {},
    }  # fmt: skip
    heartbeat.start()
    return Recorder(Path(attempt, "telemetry", f"rank{rank}.jsonl"), meta, device="cpu", heartbeat=heartbeat)


def work(attempt: str) -> float:
    """Four steps; rank 1 is late in each, rank 2 has no row in the last. Returns the wall time by this rank's watch."""
    start = time.monotonic()
    rec, rank, group = open_recorder(attempt), dist.get_rank(), everyone()
    ranks = tuple(range(dist.get_world_size()))
    x = torch.ones(1000)
    with rec.span("load"):
        time.sleep(0.05)
    with rec.span("denoise", video="0000_0"):
        for step in range(STEPS):
            own = 0 if rank == 2 and step == STEPS - 1 else 1
            with rec.step("0000_0", step, 1, own, "x", STEPS):
                time.sleep(0.02 + LATE_S * (rank == 1))
                with rec.collective("ulysses", ranks, x.numel() * 4):
                    dist.all_reduce(x, group=group)
    rec.close(0, ["0000_0"])
    end = time.monotonic()
    rec.heartbeat.close()
    return end - start


def test_a_late_rank_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", a_plan(3), [[]], done=["0000_0"])
    walls = run_ranks(3, tmp_path, work, str(run / "attempts/0"))
    report = build_report(run)
    (attempt,) = report["attempts"]
    for wall, rank in zip(walls, attempt["ranks"], strict=True):
        assert rank["wall_s"] == pytest.approx(wall, rel=0.2)
        assert sum(rank["parts"].values()) == pytest.approx(rank["wall_s"], rel=0.01)
        assert rank["parts"]["load"] >= 0.05
    parts = [rank["parts"] for rank in attempt["ranks"]]
    assert parts[1]["compute"] >= STEPS * (0.02 + LATE_S)
    assert parts[0]["waiting"] > STEPS * LATE_S / 2 > parts[1]["waiting"]
    assert parts[2]["idle"] > LATE_S
    assert attempt["waited_for"][0]["rank"] == 1
    assert next(iter(attempt["waited_for"][0]["while_in"])) == "compute"
    assert attempt["steps"][0]["count"] == STEPS
    assert report["efficiency"]["denoise"]["efficiency"] < 1
    assert [b.state for b in read_heartbeats(run / "attempts/0/heartbeat")] == ["done"] * 3


def stall(attempt: str) -> str | None:
    """Rank 1 never comes to the collective; the others tell who is guilty and end."""
    rec, rank = open_recorder(attempt), dist.get_rank()
    found: list[Verdict] = []
    rec.heartbeat.watch(0.5, found.append)
    with rec.span("denoise", video="0000_0"), rec.step("0000_0", 7, 1, 1, "x", 50):
        if rank != 1:
            with rec.collective("ulysses", tuple(range(dist.get_world_size())), 4):
                end = time.monotonic() + 10
                while not found and time.monotonic() < end:
                    time.sleep(0.02)
        else:
            time.sleep(2.0)
    rec.heartbeat.close()
    return found[0].message if found else None


def test_every_victim_names_the_rank_that_stalls(tmp_path: Path) -> None:
    messages = run_ranks(3, tmp_path, stall, str(tmp_path / "attempt"))
    assert messages[1] is None
    for message in (messages[0], messages[2]):
        assert message.startswith("rank 1 on host h (pid ")
        assert message.endswith("last seen in phase denoise, video 0000_0, step 7 of 50, before any collective")
