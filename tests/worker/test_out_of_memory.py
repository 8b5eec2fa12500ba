"""A run that is out of memory goes on from where it was with less of its weights on a rank, once."""

import json
import resource
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from opensora_launch.model.kernel_choice import Kernel, choose_kernel
from opensora_launch.plan.placement import Placement, next_smaller
from opensora_launch.plan.plan import Plan
from opensora_launch.report.build import build_report
from opensora_launch.report.wording import say
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import Fit, LayoutConfig, Offload, PlacementConfig, Shard
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker import set_up as worker_set_up
from opensora_launch.worker.failures import is_out_of_memory
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.run import run_plan
from tests.ranks import run_ranks
from tests.worker.plans import small_plan, video
from tests.worker.test_checkpoint import attempt_of, stored

STEP_CALLS = 2  # of attention in a forward of the tiny model: a double and a single block


def makes(attempt: str, plan: Plan, fails_at_step: int) -> str:
    """Run the plan; a fake GPU is out of memory in the attention of that step on the last rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    beat = Heartbeat(Path(attempt) / "heartbeat" / f"rank{rank}.json", rank=rank, host=socket.gethostname())
    calls = 0

    def fake_gpu(name: str, **facts: object) -> Kernel:
        kernel = choose_kernel(name, **facts)  # type: ignore[arg-type]

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal calls
            calls += 1
            if rank == world - 1 and calls > fails_at_step * STEP_CALLS >= 0:
                raise torch.OutOfMemoryError("CUDA out of memory (fake)")
            return kernel.call(q, k, v)

        return replace(kernel, call=call)

    started = (time.monotonic(), time.time())
    with mock.patch.object(worker_set_up, "choose_kernel", fake_gpu):
        try:
            run_plan(plan, AttemptDir(Path(attempt)), Rank(rank, rank, world, world), beat, started)
        except RuntimeError as error:
            return "out of memory" if is_out_of_memory(error) else "lost a peer"
    return "done"


def test_the_steps_that_are_done_are_kept(tmp_path: Path) -> None:
    """Of two ranks the second fails in its sixth step; all go on after the fifth, in shares, to the same bits."""
    plan = small_plan(2, [video()], layout=LayoutConfig(dp=1), frames=1)
    assert plan.placement == Placement()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert run_ranks(2, tmp_path, makes, str(attempt_of(plan, whole, 0)), plan, -1) == ["done", "done"]
    ends = run_ranks(2, tmp_path, makes, str(attempt_of(plan, cut, 0)), plan, 5)
    assert ends == ["lost a peer", "out of memory"]
    step, _ = stored(cut)
    assert step == 5
    less = plan.with_less(plan.videos)
    assert less is not None
    assert (less.placement, less.smaller) == (Placement(Shard.node), None)
    assert run_ranks(2, tmp_path, makes, str(attempt_of(less, cut, 1)), less, -1) == ["done", "done"]
    assert (cut / "samples/0000_0.png").read_bytes() == (whole / "samples/0000_0.png").read_bytes()
    assert '"step": 4,' not in (cut / "attempts/1/telemetry/rank0.jsonl").read_text()


LARGE = (  # 40 blocks of 63 MB and one of 151 in fp32: 2.7 GB
    "model.mmdit.hidden_size=1024", "model.mmdit.num_heads=16", "model.mmdit.axes_dim=[16,24,24]",
    "model.mmdit.depth=1", "model.mmdit.depth_single_blocks=40",
)  # fmt: skip
BASE = (
    "import torch.distributed as dist, opensora_launch.worker.run_rank; "
    "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1); "
    "lines = open('/proc/self/status').read().splitlines(); "
    "print(next(line.split()[1] for line in lines if line.startswith('VmData')))"
)


def data_bytes() -> int:
    """Of a rank that has come up and loaded nothing."""
    done = subprocess.run([sys.executable, "-c", BASE], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_launcher_goes_on_with_shares_under_a_real_limit(tmp_path: Path) -> None:
    """Each rank may have 2.4 GB of data over what it needs to come up: less than the weights, more than a half."""
    limit = data_bytes() + 2_400_000_000
    words = ["model=tiny", "topology=cpu2", "layout.dp=1", *LARGE, "sampling.num_steps=2", "--prompt", "rain"]
    run = subprocess.run(
        [sys.executable, "-m", "opensora_launch.cli", "generate", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ran out of memory in phase load\ncontinuing from there with weights spread over a node\n" in run.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    first, second = (json.loads((folder / "attempts" / k / "plan.json").read_text()) for k in ("0", "1"))
    assert (first["placement"]["shard"], second["placement"]["shard"]) == ("none", "node")
    assert json.loads((folder / "attempts/0/error.json").read_text())["kind"] == "memory"
    assert [p.suffix for p in (folder / "samples").glob("0000_0.*") if p.suffix != ".json"] == [".mp4"]
    attempts = build_report(folder)["attempts"]
    assert [say(a["placement"]) for a in attempts] == ["replicated weights", "weights spread over a node"]


@pytest.mark.parametrize(
    ("asked", "placement", "want"),
    [
        (PlacementConfig(), Placement(), Placement(Shard.node)),
        (PlacementConfig(), Placement(Shard.node), Placement(Shard.none, Offload.host)),
        (PlacementConfig(), Placement(Shard.node, Offload.host, 7), Placement(Shard.node, Offload.host)),
        (PlacementConfig(shard=Shard.node), Placement(Shard.node), Placement(Shard.node, Offload.host)),
        (
            PlacementConfig(offload=Offload.host, resident_blocks=3),
            Placement(Shard.none, Offload.host, 3),
            Placement(Shard.node, Offload.host, 3),
        ),
        (PlacementConfig(Shard.node, Offload.host, 0, 1), Placement(Shard.node, Offload.host, 0, 1), None),
    ],
)
def test_what_is_fixed_stays_and_the_rest_takes_less(
    asked: PlacementConfig, placement: Placement, want: Placement | None
) -> None:
    assert next_smaller(placement, asked, Fit.auto, 2, 2) == want
    assert next_smaller(Placement(), PlacementConfig(), Fit.strict, 2, 2) is None


def test_errors_of_a_full_memory_are_known() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("Connection closed by peer"))
