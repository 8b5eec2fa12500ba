"""What a rank does when it fails, or finds that another rank did: record the run's first failure, and leave."""

import errno
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch

from opensora_launch import exit_codes
from opensora_launch.errors import UserError, disk_problem
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.alive import is_process_gone
from opensora_launch.telemetry.failure import Failure, failure_at, read_failure, record_failure
from opensora_launch.telemetry.heartbeat import Heartbeat, read_heartbeats
from opensora_launch.telemetry.moves import Moves
from opensora_launch.telemetry.stall import SILENT_S, Verdict, find_guilty
from opensora_launch.worker.rank import Rank

PEER_ERRORS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "Connection refused",
    "remote process exited",
    "NCCL communicator was aborted",
    "Connection closed by remote peer",  # NCCL's socket: https://github.com/NVIDIA/nccl/issues/1514
    "setting up NCCL communicator and ret",  # its id is late; "retrieving", or "retreiving": pytorch/issues/82091
    "wait timeout after",  # the store's: https://github.com/NVIDIA-NeMo/Speech/issues/14399
    "Timeout waiting for key",
    "Socket Timeout",
)
# How libraries say that memory ran out, in small letters. torch raises its own class only where its own allocator is
# refused. cuBLAS, cuDNN, cuFFT, the driver, Triton and NCCL (its last warning, of include/alloc.h) say it in words.
MEMORY_ERRORS = (
    "out of memory",
    "cuda_error_out_of_memory",
    "alloc_failed",
    "allocation_failed",
    "failed to cuda calloc",
    "failed to cuda host alloc",
    "can't allocate memory",
    "cannot allocate memory (12)",
)
# What the same libraries say too where a kernel is missing or broken: then it is memory only if little of it is free.
# cuDNN tries one engine after another and hides that their workspaces did not fit (pytorch#108645).
UNCLEAR_ERRORS = (
    "unable to find an engine",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "cublas_status_not_initialized",
    "cublas_status_internal_error",
)
LITTLE_FREE = 0.1  # share of the GPU's memory
PEER_GRACE_S = 2.0  # how long a rank that lost a peer waits for that peer's own report


class VideoFailed(Exception):
    """One video cannot be made, and the others can. The text is the reason, in one line."""


log = logging.getLogger("opensora_launch.worker")


def fail(error: BaseException, attempt: AttemptDir, me: Rank, beat: Heartbeat) -> int:
    """Record the failure, if it is the first of the attempt, and return the exit code to leave with.

    Ctrl-C is not a failure. The process group is not destroyed: after an error that can wait for peers forever.
    """
    if isinstance(error, KeyboardInterrupt):
        log.info("interrupted in phase %s, step %s", beat.phase, beat.step)
        beat.close("failed")
        return exit_codes.INTERRUPTED
    problem = disk_problem(error)
    said = f": {problem}" if problem else ""
    log.error("failed in phase %s, step %s%s", beat.phase, beat.step, said, exc_info=None if problem else error)
    peers = is_peer_error(error) and not is_out_of_memory(error)
    failure = _peer_failure(attempt, me) if peers else _own_failure(error, me, beat)
    if failure:
        record_failure(attempt, failure)
    beat.close("failed")
    return exit_codes.USER_ERROR if failure and failure.kind == "user" else exit_codes.FAILURE


def record_early(attempt: AttemptDir, error: Exception, env: Mapping[str, str]) -> None:
    """Record the failure of a rank that has not joined the others yet."""
    rank = int(env.get("RANK") or env.get("SLURM_PROCID") or 0)
    kind = "user" if isinstance(error, UserError) else "failure"
    failure = Failure(rank=rank, host=socket.gethostname(), kind=kind, message=str(error), phase="setup")
    record_failure(attempt, failure)


def stop_stalled(attempt: AttemptDir, verdict: Verdict) -> None:
    """End this process, which waits in a collective that will not end. The heartbeat's thread calls this."""
    log.error("stalled: %s", verdict.message)
    record_failure(attempt, _failure_of(attempt, verdict))
    leave(exit_codes.FAILURE)


def is_peer_error(error: BaseException) -> bool:
    """Whether this error only says that another rank ended."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in PEER_ERRORS)


def is_out_of_memory(error: BaseException, free: Callable[[], float] | None = None) -> bool:
    """Whether a GPU, or a host whose allocator refused before the kernel ends the process, is out of memory.

    `free` gives the free share of the GPU's memory; without it, this rank's GPU is asked.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    if any(text in said for text in MEMORY_ERRORS):
        return True
    return any(text in said for text in UNCLEAR_ERRORS) and (free or _free_share)() < LITTLE_FREE


def _free_share() -> float:
    """Return the free share of this rank's GPU, with what torch's allocator holds unused; 1 if it cannot be asked."""
    if not torch.cuda.is_initialized():
        return 1.0
    try:
        free, total = torch.cuda.mem_get_info()
        return (free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / total
    except RuntimeError:  # after some errors the GPU answers nothing
        return 1.0


def leave(code: int) -> NoReturn:
    """End this process now, without waiting for threads or peers."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _own_failure(error: BaseException, me: Rank, beat: Heartbeat) -> Failure:
    kind = "user" if isinstance(error, UserError) else "memory" if is_out_of_memory(error) else "failure"
    return Failure(
        rank=me.rank,
        host=socket.gethostname(),
        kind=kind,
        message=str(error) if kind == "user" else disk_problem(error) or f"{type(error).__name__}: {error}",
        phase=beat.phase,
        step=beat.step,
        collective=beat.collective[0] if beat.collective and beat.inside else None,
        traceback="".join(traceback.format_exception(error)),
    )


def _peer_failure(attempt: AttemptDir, me: Rank) -> Failure | None:
    """Blame the peer that is gone. None if it reports within a moment why it ended.

    A peer on another host shows by its heartbeat whether it is gone, which takes longer.
    """
    moves, started_s = Moves(), time.monotonic()
    elsewhere = me.world > me.local_world
    while time.monotonic() - started_s < PEER_GRACE_S + SILENT_S * elsewhere:
        if read_failure(attempt):
            return None
        beats = moves.own_time(read_heartbeats(attempt.heartbeats))
        time.sleep(0.05)
    gone = [b.rank for b in beats if is_process_gone(b)]
    return _failure_of(attempt, find_guilty(beats, time.monotonic(), me.rank, gone=gone))


def _failure_of(attempt: AttemptDir, verdict: Verdict) -> Failure:
    """Return the record of a rank that cannot write its own, at the place of its last heartbeat."""
    beat = next((b for b in read_heartbeats(attempt.heartbeats) if b.rank == verdict.rank), None)
    return failure_at(-1 if verdict.rank is None else verdict.rank, beat, "stalled", verdict.message)
