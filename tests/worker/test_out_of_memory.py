"""A run that is out of memory goes on from where it was with less of its weights on a rank, once."""

import errno
import json
import os
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
from opensora_launch.telemetry.failure import read_failure
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker import set_up as worker_set_up
from opensora_launch.worker.failures import fail, is_out_of_memory
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.run import run_plan
from tests.ranks import run_ranks
from tests.worker.plans import small_plan, video
from tests.worker.test_checkpoint import attempt_of, stored

STEP_CALLS = 2  # of attention in a forward of the tiny model: a double and a single block


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


def makes(attempt: str, plan: Plan, fails_at_step: int, words: str = "") -> str:
    """Run the plan; a fake GPU is out of memory in the attention of that step on the last rank.

    It says so with torch's own error, or in these words.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    beat = Heartbeat(Path(attempt) / "heartbeat" / f"rank{rank}.json", rank=rank, host=socket.gethostname())
    calls = 0

    def fake_gpu(name: str, **facts: object) -> Kernel:
        kernel = choose_kernel(name, **facts)  # type: ignore[arg-type]

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal calls
            calls += 1
            if rank == world - 1 and calls > fails_at_step * STEP_CALLS >= 0:
                raise RuntimeError(words) if words else torch.OutOfMemoryError("CUDA out of memory (fake)")
            return kernel.call(q, k, v)

        return replace(kernel, call=call)

    started = (time.monotonic(), time.time())
    with mock.patch.object(worker_set_up, "choose_kernel", fake_gpu):
        me, where = Rank(rank, rank, world, world), AttemptDir(Path(attempt))
        try:
            run_plan(plan, where, me, beat, started)
        except RuntimeError as error:
            fail(error, where, me, beat)
            return "out of memory" if is_out_of_memory(error) else "lost a peer"
    return "done"


@pytest.mark.parametrize("words", ["", CUBLAS])
def test_the_steps_that_are_done_are_kept(tmp_path: Path, words: str) -> None:
    """Of two ranks the second fails in its sixth step; all go on after the fifth, in shares, to the same bits."""
    plan = small_plan(2, [video()], layout=LayoutConfig(dp=1), frames=1)
    assert plan.placement == Placement()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert run_ranks(2, tmp_path, makes, str(attempt_of(plan, whole, 0)), plan, -1) == ["done", "done"]
    ends = run_ranks(2, tmp_path, makes, str(attempt_of(plan, cut, 0)), plan, 5, words)
    assert ends == ["lost a peer", "out of memory"]
    failure = read_failure(AttemptDir(cut / "attempts/0"))
    assert failure
    assert (failure.kind, failure.rank) == ("memory", 1)
    step, _ = stored(cut)
    assert step == 5
    less = plan.with_less(plan.videos)
    assert less is not None
    assert (less.placement, less.smaller) == (Placement(Shard.node), None)
    assert run_ranks(2, tmp_path, makes, str(attempt_of(less, cut, 1)), less, -1) == ["done", "done"]
    assert (cut / "samples/0000_0.png").read_bytes() == (whole / "samples/0000_0.png").read_bytes()
    assert '"step": 4,' not in (cut / "attempts/1/telemetry/rank0.jsonl").read_text()


LARGE = (  # 30 blocks of 63 MB in fp32: 1.9 GB; a rank that holds a half of them has had 1.3 GB at most
    "model.mmdit.hidden_size=1024", "model.mmdit.num_heads=16", "model.mmdit.axes_dim=[16,24,24]",
    "model.mmdit.depth=0", "model.mmdit.depth_single_blocks=30",
)  # fmt: skip
ROOM = 1_750_000_000  # bytes of data: less than the weights, more than a half
# Else glibc keeps freed tensors of up to 32 MB in its heap, and how much that is differs from run to run.
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
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
    """Each rank may have ROOM over what it needs to come up."""
    limit = data_bytes() + ROOM
    words = ["model=tiny", "topology=cpu2", "layout.dp=1", *LARGE, "sampling.num_steps=1", "video.num_frames=5"]
    run = subprocess.run(
        [sys.executable, "-m", "opensora_launch.cli", "generate", *words, "--prompt", "rain"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | RETURNS_MEMORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ran out of memory in phase load\ncontinuing from there with weights spread over a node\n" in run.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    first, second = (json.loads((folder / "attempts" / k / "plan.json").read_text()) for k in ("0", "1"))
    assert (first["placement"]["shard"], second["placement"]["shard"]) == ("none", "node")
    assert json.loads((folder / "attempts/0/error.json").read_text())["kind"] == "memory"
    assert [p.suffix for p in (folder / "samples").glob("0000_0.*") if p.suffix not in (".json", ".png")] == [".mp4"]
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
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("Connection closed by peer"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))


NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3356, {}, NCCL version 2.29.7\n{}\nLast error:\n{}"
CUDA_CALL = ("unhandled cuda error", "ncclUnhandledCudaError: Call to CUDA function failed.")


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY",
        CUBLAS,
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        NCCL.format(*CUDA_CALL, "Failed to CUDA calloc 6291456 bytes"),
        NCCL.format(*CUDA_CALL, "Failed to CUDA calloc async 2432 bytes"),
        NCCL.format(*CUDA_CALL, "Cuda failure 2 'out of memory'"),
        "unable to mmap 4096 bytes from file </ckpts/a.safetensors>: Cannot allocate memory (12)",
    ],
)
def test_libraries_say_in_words_that_memory_ran_out(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words), free=lambda: 1.0)


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_words_with_several_causes_mean_memory_only_if_little_is_free(words: str) -> None:
    error = RuntimeError(words)
    assert (is_out_of_memory(error, free=lambda: 0.05), is_out_of_memory(error, free=lambda: 0.5)) == (True, False)
    assert not is_out_of_memory(error)  # no GPU here


@pytest.mark.parametrize(
    "words",
    [
        NCCL.format(
            "unhandled system error", "ncclSystemError", "Call to ibv_reg_mr failed with error Cannot allocate memory"
        ),
        NCCL.format(*CUDA_CALL, "Cuda failure 999 'unknown error'"),
        "CUDA error: an illegal memory access was encountered",
    ],
)
def test_other_errors_with_such_words_do_not_mean_it(words: str) -> None:
    """The first one is a limit on locked memory, which shares of the weights would not change."""
    assert not is_out_of_memory(RuntimeError(words), free=lambda: 0.05)
