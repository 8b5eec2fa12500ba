"""Who works on a run, read from its folder: attempts, their launchers and jobs, and how their ranks are."""

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from opensora_launch.launch import processes
from opensora_launch.launch.run_dir import write_whole
from opensora_launch.telemetry.events import read_events
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats
from opensora_launch.telemetry.stall import Beat

NAME = "launcher.json"
FRESH_S = 30.0  # sixty heartbeats: a shared disk may show them late


@dataclass(frozen=True)
class Launched:
    """Who has started an attempt: a job, or a process of a host, which `started` tells from a later one of its id."""

    kind: str
    host: str = ""
    pid: int = 0
    started: int = 0
    job: str = ""


@dataclass(frozen=True)
class AttemptState:
    folder: Path
    launched: Launched | None
    beats: tuple[Beat, ...]
    failure: Failure | None

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def at_work(self) -> bool:
        """Whether a rank has given a sign of life just now, and has not ended."""
        return any(is_alive(beat) for beat in self.beats)


def record_launch(attempt: Path, launched: Launched) -> None:
    write_whole(attempt / NAME, json.dumps(asdict(launched)) + "\n")


def this_process(kind: str) -> Launched:
    return Launched(kind, socket.gethostname(), os.getpid(), processes.start_ticks(os.getpid()))


def read_attempts(run_dir: Path) -> list[AttemptState]:
    """All attempts of a run, in order."""
    folders = [p for p in (run_dir / "attempts").glob("*") if p.name.isdigit()]
    return [_read(p) for p in sorted(folders, key=lambda p: int(p.name))]


def jobs_of(attempts: Sequence[AttemptState]) -> list[str]:
    """Each job once: every start of a job has an attempt, and "7_2" is a task of "7"."""
    found = list(dict.fromkeys(a.launched.job for a in attempts if a.launched and a.launched.job))
    return [job for job in found if "_" not in job or job.partition("_")[0] not in found]


def is_alive(beat: Beat) -> bool:
    """By its own word not long ago; on this host by its process too."""
    if beat.state != "running" or time.time() - beat.time_s > FRESH_S:
        return False
    return beat.host != socket.gethostname() or processes.is_alive(beat.pid)


def state_of(beat: Beat) -> str:
    """Its last word, or "lost" where that is too long ago or its process is gone."""
    return "lost" if beat.state == "running" and not is_alive(beat) else beat.state


def launcher_alive(launched: Launched) -> bool | None:
    """Whether the process that started an attempt is still there; None where it is another host's."""
    if launched.host != socket.gethostname():
        return None
    return processes.is_alive(launched.pid) and processes.start_ticks(launched.pid) == launched.started


def seconds_left(attempt: AttemptState, run_videos: Sequence[int]) -> float | None:
    """Of denoising, by the mean of its latest steps; `run_videos`: steps of each video to come."""
    beat = next((b for b in attempt.beats if is_alive(b)), None)
    if beat is None or beat.step is None or beat.steps is None:
        return None
    events = read_events(attempt.folder / "telemetry" / f"rank{beat.rank}.jsonl")
    steps = [e for e in events.steps if e.video == beat.video][-10:] if events else []
    if not steps:
        return None
    mean_s = (steps[-1].end_s - steps[0].start_s) / len(steps)
    return mean_s * (beat.steps - beat.step + sum(run_videos))


def _read(folder: Path) -> AttemptState:
    try:
        launched = Launched(**json.loads((folder / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        launched = None
    return AttemptState(folder, launched, tuple(read_heartbeats(folder / "heartbeat")), read_failure(folder))
