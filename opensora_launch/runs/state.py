"""Who works on a run: attempts, launchers and ranks by the run's folder, jobs by Slurm."""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from opensora_launch.rundir import AttemptDir, RunDir, write_whole
from opensora_launch.machine import processes
from opensora_launch.slurm.query import (JobState, NoAnswer, job_states)
from opensora_launch.telemetry.events import read_events
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats
from opensora_launch.telemetry.stall import Beat

FRESH_S = 30.0  # sixty heartbeats: a shared disk may show them late


@dataclass(frozen=True)
class Launched:
    """Who has started an attempt: a job, or a process of a host, which `started` tells from a later one of its id.

    `ended` is what has ended it from outside: a signal, or our own `cancel`.
    """

    kind: str
    host: str = ""
    pid: int = 0
    started: int = 0
    job: str = ""
    ended: str = ""


@dataclass(frozen=True)
class AttemptState:
    folder: AttemptDir
    launched: Launched | None
    beats: tuple[Beat, ...]
    failure: Failure | None

    @property
    def number(self) -> int:
        return self.folder.number

    @property
    def ended(self) -> str:
        return self.launched.ended if self.launched else ""


@dataclass(frozen=True)
class JobAnswer:
    """What Slurm says of a job; `silence` is why it cannot be asked, "" where it can."""

    job: str
    states: tuple[JobState, ...]
    silence: str = ""

    @property
    def over(self) -> bool:
        return not self.silence and all(state.over for state in self.states)


@dataclass(frozen=True)
class RunState:
    attempts: tuple[AttemptState, ...]
    jobs: tuple[JobAnswer, ...]

    @property
    def at_work(self) -> list[AttemptState]:
        return [attempt for attempt in self.attempts if self.works(attempt)]

    def works(self, attempt: AttemptState) -> bool:
        """Whether a rank has given a sign of life not long ago, and nothing says that it was the last one."""
        if attempt.failure or attempt.ended or self.requeued(attempt):
            return False
        state = self.job_state(attempt)
        return not (state and state.over) and any(is_alive(beat) for beat in attempt.beats)

    def job_state(self, attempt: AttemptState) -> JobState | None:
        """Of the job, or the array's task, that has started an attempt."""
        job = attempt.launched.job if attempt.launched else ""
        return next((s for answer in self.jobs for s in answer.states if s.job == job), None)

    def requeued(self, attempt: AttemptState) -> bool:
        """Whether its job has started a later attempt."""
        job = attempt.launched.job if attempt.launched else ""
        later = (a for a in self.attempts if a.number > attempt.number and a.launched)
        return bool(job) and any(a.launched.job == job for a in later if a.launched)

    def to_come(self, but: AttemptDir | None = None) -> bool:
        """Whether anybody works on the run, or will when Slurm lets it; `but` is an attempt that is over."""
        queued = any(not state.over for answer in self.jobs for state in answer.states)
        return queued or any(attempt.folder != but for attempt in self.at_work)


def record_launch(attempt: AttemptDir, launched: Launched) -> None:
    write_whole(attempt.launcher, json.dumps(asdict(launched)) + "\n")


def this_process(kind: str) -> Launched:
    return Launched(kind, socket.gethostname(), os.getpid(), processes.start_ticks(os.getpid()))


def read_attempts(run_dir: RunDir) -> list[AttemptState]:
    """All attempts of a run, in order."""
    return [_read(attempt) for attempt in run_dir.attempts()]


def read_state(run_dir: RunDir) -> RunState:
    """Attempts, and what Slurm says of their jobs; it is not asked again once it was waited for in vain."""
    attempts = read_attempts(run_dir)
    return RunState(tuple(attempts), tuple(_answers(jobs_of(attempts))))


def jobs_of(attempts: Sequence[AttemptState]) -> list[str]:
    """Each job once, an array as a whole: every start of a job has an attempt, and "7_2" is a task of "7"."""
    return list(dict.fromkeys(a.launched.job.partition("_")[0] for a in attempts if a.launched and a.launched.job))


def _answers(jobs: Sequence[str]) -> Iterator[JobAnswer]:
    slow = ""
    for job in jobs:
        try:
            yield JobAnswer(job, () if slow else tuple(job_states(job)), slow)
        except NoAnswer as error:
            slow = str(error) if error.slow else ""
            yield JobAnswer(job, (), str(error))


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
    recorded = attempt.folder.events(beat.rank)
    events = read_events(recorded) if recorded.exists() else None
    steps = [e for e in events.steps if e.video == beat.video][-10:] if events else []
    if not steps:
        return None
    mean_s = (steps[-1].end_s - steps[0].start_s) / len(steps)
    return mean_s * (beat.steps - beat.step + sum(run_videos))


def stored_steps(run_dir: Path) -> list[tuple[str, int]]:
    """(first video, steps done) of each batch that was stored on the way, from the heads of its checkpoints."""
    found = []
    for path in sorted((run_dir / "checkpoints").glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found.append((path.stem, int(head["__metadata__"]["step"])))
        except (OSError, ValueError, KeyError, OverflowError, MemoryError):
            continue
    return found


def _read(folder: AttemptDir) -> AttemptState:
    try:
        launched = Launched(**json.loads(folder.launcher.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        launched = None
    return AttemptState(folder, launched, tuple(read_heartbeats(folder.heartbeats)), read_failure(folder))
