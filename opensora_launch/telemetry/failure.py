"""`error.json` of an attempt: the first failure of any rank, and only that one."""

import time
from dataclasses import dataclass, field

import msgspec

from opensora_launch.rundir import AttemptDir, create_once
from opensora_launch.telemetry.lines import read_json
from opensora_launch.telemetry.stall import Beat

UNKNOWN_HOST = "unknown"
FAILURE_KINDS = ("user", "failure", "stalled", "memory")


@dataclass(frozen=True)
class Failure:
    rank: int
    host: str
    kind: str  # "user": the user can mend it (exit code 2); "failure", "stalled", "memory": exit code 1
    message: str
    phase: str | None = None
    step: int | None = None
    collective: str | None = None
    traceback: str | None = None
    time_s: float = field(default_factory=time.time)


def failure_at(rank: int, beat: Beat | None, kind: str, message: str) -> Failure:
    """The failure of a rank that cannot report it itself, at the place of its last heartbeat."""
    if beat is None:
        return Failure(rank, UNKNOWN_HOST, kind, message)
    return Failure(rank, beat.host, kind, message, beat.phase, beat.step, beat.collective)


def record_failure(attempt: AttemptDir, failure: Failure) -> bool:
    """Write `error.json` unless it exists; True if this failure was the first.

    If the disk is full, the failure is in the log alone: the one that is reported must not become that of the disk.
    """
    assert failure.kind in FAILURE_KINDS, failure.kind
    try:
        return create_once(attempt.error, msgspec.json.format(msgspec.json.encode(failure), indent=1).decode())
    except OSError:
        return False


def read_failure(attempt: AttemptDir) -> Failure | None:
    """The first failure of the attempt; None if there is none, or if it cannot be read."""
    return read_json(attempt.error, Failure)
