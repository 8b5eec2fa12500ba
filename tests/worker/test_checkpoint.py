"""Denoising that is stopped and goes on: the same bits on the same ranks, the same video on others."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LayoutConfig, PlacementConfig, Shard, Storage
from opensora_launch.schema.kernel_kinds import AttentionKind
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker.checkpoint import Preempted, fingerprint
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.run import run_plan
from tests.ranks import run_ranks
from tests.worker.plans import small_plan, video
from tests.worker.test_generate import frames_of, prepare


def stops_or_ends(attempt: str, plan: Plan, stop_at: int) -> str:
    """Make the plan's videos; all ranks come to that step, and then the last one asks to stop."""
    rank, world = dist.get_rank(), dist.get_world_size()
    beat = Heartbeat(Path(attempt) / "heartbeat" / f"rank{rank}.json", rank=rank, host=socket.gethostname())
    beat.start()
    move = type(beat).__setattr__

    class Watched(Heartbeat):
        def __setattr__(self, name: str, value: object) -> None:
            move(self, name, value)
            if name == "step" and value == stop_at:
                dist.barrier()
                if rank == world - 1:
                    AttemptDir(Path(attempt)).stop.touch()
                dist.barrier()

    beat.__class__ = Watched
    try:
        run_plan(plan, AttemptDir(Path(attempt)), Rank(rank, rank, world, world), beat, (time.monotonic(), time.time()))
    except Preempted:
        beat.close("preempted")
        return "preempted"
    beat.close("done")
    return "done"


def attempt_of(plan: Plan, run_dir: Path, number: int) -> Path:
    if number == 0:
        return prepare(plan, run_dir)
    attempt = run_dir / "attempts" / str(number)
    attempt.mkdir()
    return attempt


def run(plan: Plan, run_dir: Path, number: int = 0, stop_at: int = -1) -> list[str]:
    attempt = attempt_of(plan, run_dir, number)
    ends: list[str] = run_ranks(plan.machine.ranks, run_dir, stops_or_ends, str(attempt), plan, stop_at, timeout=90.0)
    return ends


def stored(run_dir: Path) -> tuple[int, torch.Tensor]:
    with safe_open(run_dir / "checkpoints/0000_0.safetensors", framework="pt") as file:
        return int(file.metadata()["step"]), file.get_tensor("latents")


@pytest.mark.timeout(300)  # four starts of ranks
def test_a_stopped_video_goes_on_bit_for_bit_and_on_other_ranks(tmp_path: Path) -> None:
    plan = small_plan(2, [video()], layout=LayoutConfig(dp=1), frames=1)
    assert run(plan, tmp_path / "whole") == ["done", "done"]
    want = (tmp_path / "whole/samples/0000_0.png").read_bytes()

    assert run(plan, tmp_path / "stopped", stop_at=5) == ["preempted", "preempted"]
    step, latents = stored(tmp_path / "stopped")
    assert step in (5, 6, 7)
    assert latents.isfinite().all()
    assert not list((tmp_path / "stopped").glob("samples/*"))
    kept = (tmp_path / "stopped/checkpoints/0000_0.safetensors").read_bytes()
    assert run(plan, tmp_path / "stopped", number=1) == ["done", "done"]
    assert (tmp_path / "stopped/samples/0000_0.png").read_bytes() == want
    assert not list((tmp_path / "stopped/checkpoints").iterdir())
    lines = (tmp_path / "stopped/attempts/1/telemetry/rank0.jsonl").read_text()
    assert f'"step": {step},' in lines
    assert f'"step": {step - 1},' not in lines

    (tmp_path / "stopped/samples/0000_0.json").unlink()
    (tmp_path / "stopped/checkpoints/0000_0.safetensors").write_bytes(kept)
    alone = small_plan(1, [video()], frames=1)
    assert run(alone, tmp_path / "stopped", number=2) == ["done"]
    got, same = frames_of(tmp_path / "stopped/samples/0000_0.png"), frames_of(tmp_path / "whole/samples/0000_0.png")
    assert abs(got.astype(int) - same.astype(int)).max() <= 1


@pytest.mark.timeout(300)  # four starts of ranks
@pytest.mark.parametrize("stop_at", [5, pytest.param(9, marks=pytest.mark.slow)])
def test_what_a_later_step_reuses_is_stored(stop_at: int, tmp_path: Path) -> None:
    reuses = video(reuse_every=4, reuse_from=2)
    plan = small_plan(2, [reuses], layout=LayoutConfig(dp=1), frames=1)
    assert run(plan, tmp_path / "whole") == ["done", "done"]
    assert run(plan, tmp_path / "stopped", stop_at=stop_at) == ["preempted", "preempted"]
    with safe_open(tmp_path / "stopped/checkpoints/0000_0.safetensors", framework="pt") as file:
        assert len(file.get_tensor("reused")) == 2  # of both rows
    kept = (tmp_path / "stopped/checkpoints/0000_0.safetensors").read_bytes()
    assert run(plan, tmp_path / "stopped", number=1) == ["done", "done"]
    want = (tmp_path / "whole/samples/0000_0.png").read_bytes()
    assert (tmp_path / "stopped/samples/0000_0.png").read_bytes() == want

    (tmp_path / "stopped/samples/0000_0.json").unlink()
    (tmp_path / "stopped/checkpoints/0000_0.safetensors").write_bytes(kept)
    assert run(small_plan(1, [reuses], frames=1), tmp_path / "stopped", number=2) == ["done"]
    got, same = frames_of(tmp_path / "stopped/samples/0000_0.png"), frames_of(tmp_path / "whole/samples/0000_0.png")
    assert abs(got.astype(int) - same.astype(int)).max() <= 1


def test_every_k_steps_and_two_groups_stop_together(tmp_path: Path) -> None:
    plan = small_plan(2, [video(), video("0001_0", seed=7)], layout=LayoutConfig(dp=2), frames=1)
    plan = replace(plan, checkpoint_every_steps=4)
    assert run(plan, tmp_path, stop_at=6) == ["preempted", "preempted"]
    assert {p.stem for p in (tmp_path / "checkpoints").iterdir()} == {"0000_0", "0001_0"}
    assert run(plan, tmp_path, number=1) == ["done", "done"]
    assert sorted(p.name for p in (tmp_path / "samples").glob("*.png")) == ["0000_0.png", "0001_0.png"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"machine": 4}, True),
        ({"prune_rows": False}, True),
        ({"state_dtype": "bf16"}, False),
        ({"frames": 5}, False),
        ({"placement": PlacementConfig(Shard.node)}, True),
        ({"placement": PlacementConfig(storage=Storage.fp8)}, False),
        ({"attention": AttentionKind.reference}, True),
        ({"attention": AttentionKind.sage2}, False),
        ({"video": video(seed=1)}, False),
        ({"video": video(steps=12)}, False),
    ],
)
def test_what_a_checkpoint_fits(change: dict, same: bool) -> None:
    plan, asked = small_plan(1, [video()], frames=9), change.pop("video", video())
    ranks, frames = change.pop("machine", 1), change.pop("frames", 9)
    attention = change.pop("attention", AttentionKind.auto)
    other = replace(small_plan(ranks, [asked], frames=frames, **change), attention=attention.value)
    assert (fingerprint(plan, plan.videos) == fingerprint(other, other.videos)) is same
