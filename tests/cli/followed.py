"""A job whose ranks never ran, for its follower: the folder of its first start, and heartbeats."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

from opensora_launch.cli.follow import Followed
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.state import Launched, record_launch
from opensora_launch.telemetry.stall import Beat

Says = Callable[..., None]


def started(attempt: AttemptDir, job: str = "7") -> AttemptDir:
    for folder in (attempt.logs, attempt.heartbeats):
        folder.mkdir(parents=True, exist_ok=True)
    attempt.started.touch()
    if attempt.number == 0:
        attempt.batch_script.touch()
    record_launch(attempt, Launched("slurm", job=job))
    return attempt


def later(attempt: AttemptDir, number: int = 1) -> AttemptDir:
    return started(attempt.run.attempt(number))


def beats(attempt: AttemptDir, step: int = 1, state: str = "running") -> None:
    for rank in range(2):
        beat = Beat(rank, f"n{rank + 1}", 1, time.time(), state, "denoise", "0000_0", step, 6, 0, 1)
        attempt.heartbeat(rank).write_text(json.dumps(asdict(beat)))


def news(followed: Followed) -> list[str]:
    followed.look()
    return list(followed.news())
