"""What a rank does when it fails, or finds that another rank did: record the run's first failure, and leave."""

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from typing import NoReturn

import torch

from opensora_launch import exit_codes
from opensora_launch.errors import UserError
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.alive import is_process_gone
from opensora_launch.telemetry.failure import Failure, failure_at, read_failure, record_failure
from opensora_launch.telemetry.heartbeat import Heartbeat, read_heartbeats
from opensora_launch.telemetry.stall import Verdict, find_guilty
from opensora_launch.worker.rank import Rank

PEER_ERRORS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "Connection refused",
    "remote process exited",
    "NCCL communicator was aborted",
)
PEER_GRACE_S = 2.0  # how long a rank that lost a peer waits for that peer's own report

log = logging.getLogger("opensora_launch.worker")


def fail(error: BaseException, attempt: AttemptDir, me: Rank, beat: Heartbeat) -> int:
    """Record the failure, if it is the first of the attempt, and return the exit code to leave with.

    Ctrl-C is not a failure. The process group is not destroyed: after an error that can wait for peers forever.
    """
    if isinstance(error, KeyboardInterrupt):
        log.info("interrupted in phase %s, step %s", beat.phase, beat.step)
        beat.close("failed")
        return exit_codes.INTERRUPTED
    log.error("failed in phase %s, step %s", beat.phase, beat.step, exc_info=error)
    failure = _peer_failure(attempt, me) if is_peer_error(error) else _own_failure(error, me, beat)
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or a host whose allocator refused before the kernel ends the process, is out of memory."""
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)


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
        message=str(error) if kind == "user" else f"{type(error).__name__}: {error}",
        phase=beat.phase,
        step=beat.step,
        collective=beat.collective[0] if beat.collective and beat.inside else None,
        traceback="".join(traceback.format_exception(error)),
    )


def _peer_failure(attempt: AttemptDir, me: Rank) -> Failure | None:
    """Blame the peer that is gone. None if it reports within a moment why it ended."""
    deadline = time.monotonic() + PEER_GRACE_S
    while time.monotonic() < deadline:
        if read_failure(attempt):
            return None
        time.sleep(0.05)
    beats = read_heartbeats(attempt.heartbeats)
    gone = [b.rank for b in beats if is_process_gone(b)]
    return _failure_of(attempt, find_guilty(beats, time.time(), me.rank, gone=gone))


def _failure_of(attempt: AttemptDir, verdict: Verdict) -> Failure:
    """Return the record of a rank that cannot write its own, at the place of its last heartbeat."""
    beat = next((b for b in read_heartbeats(attempt.heartbeats) if b.rank == verdict.rank), None)
    return failure_at(-1 if verdict.rank is None else verdict.rank, beat, "stalled", verdict.message)
