"""Since when a user waits for an attempt, and until when: `waited.json` in its folder."""

import time
from dataclasses import dataclass, replace

import msgspec

from opensora_launch.rundir import AttemptDir, write_whole
from opensora_launch.telemetry.lines import read_json


@dataclass(frozen=True)
class Waited:
    """Moments by the wall clock, in seconds of the epoch. Attempts of one command have the same `asked_epoch_s`."""

    asked_epoch_s: float  # the command line was read
    begun_epoch_s: float | None = None  # the ranks were started, or a job's script began; None while it is queued
    submitted_epoch_s: float | None = None  # to Slurm
    done_epoch_s: float | None = None  # the launcher wrote the report; None where nobody waited for it


def record_waited(attempt: AttemptDir, waited: Waited) -> None:
    write_whole(attempt.waited, msgspec.json.encode(waited).decode() + "\n")


def read_waited(attempt: AttemptDir) -> Waited | None:
    """What is recorded; None where nothing is, as in runs of versions before, or where it is damaged."""
    return read_json(attempt.waited, Waited)


def record_job_start(queued: AttemptDir, attempt: AttemptDir) -> None:
    """Record that a job works on `attempt` from now on; who asked for it, and when, stands in `queued`."""
    if waited := read_waited(queued):
        record_waited(attempt, replace(waited, begun_epoch_s=time.time()))
