"""Who works on a run: its attempts, launchers and ranks by the run's folder, and its jobs by Slurm."""

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from opensora_launch.machine import processes
from opensora_launch.rundir import AttemptDir, RunDir, write_whole
from opensora_launch.runs.alive import is_rank_alive
from opensora_launch.slurm.query import JobState, NoAnswer, job_states
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats
from opensora_launch.telemetry.stall import Beat


@dataclass(frozen=True)
class Launched:
    """Who started an attempt: a job, or a process of a host. `started` tells it from a later process with its id.

    `ended` is what ended it from outside: a signal, or our own `cancel`.
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
    """What Slurm knows about a job. `silence` is the reason if Slurm cannot be queried, else ""."""

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
        """Whether a rank of an attempt is alive, and nothing ended the attempt."""
        if attempt.failure or attempt.ended or self.requeued(attempt):
            return False
        state = self.job_state(attempt)
        return not (state and state.over) and any(is_rank_alive(beat) for beat in attempt.beats)

    def job_state(self, attempt: AttemptState) -> JobState | None:
        """The state of the job, or of the task of an array, that started an attempt."""
        job = attempt.launched.job if attempt.launched else ""
        return next((s for answer in self.jobs for s in answer.states if s.job == job), None)

    def requeued(self, attempt: AttemptState) -> bool:
        """Whether the job of an attempt has started a later one."""
        job = attempt.launched.job if attempt.launched else ""
        later = (a for a in self.attempts if a.number > attempt.number and a.launched)
        return bool(job) and any(a.launched.job == job for a in later if a.launched)

    def to_come(self, but: AttemptDir | None = None) -> bool:
        """Whether somebody works on the run, or a queued job will. `but` is an attempt that is over."""
        queued = any(not state.over for answer in self.jobs for state in answer.states)
        return queued or any(attempt.folder != but for attempt in self.at_work)


def record_launch(attempt: AttemptDir, launched: Launched) -> None:
    write_whole(attempt.launcher, msgspec.json.encode(launched).decode() + "\n")


def this_process(kind: str) -> Launched:
    return Launched(kind, socket.gethostname(), os.getpid(), processes.start_ticks(os.getpid()))


def read_attempts(run_dir: RunDir) -> list[AttemptState]:
    """All attempts of a run, oldest first."""
    return [_read(attempt) for attempt in run_dir.attempts()]


def read_state(run_dir: RunDir) -> RunState:
    """The attempts and the states of their jobs. After one timeout, Slurm is not queried again."""
    attempts = read_attempts(run_dir)
    return RunState(tuple(attempts), tuple(_answers(jobs_of(attempts))))


def jobs_of(attempts: Sequence[AttemptState]) -> list[str]:
    """The id of each job, once: every start of a job has an attempt, and "7_2" is a task of array "7"."""
    return list(dict.fromkeys(a.launched.job.partition("_")[0] for a in attempts if a.launched and a.launched.job))


def _answers(jobs: Sequence[str]) -> Iterator[JobAnswer]:
    slow = ""
    for job in jobs:
        try:
            yield JobAnswer(job, () if slow else tuple(job_states(job)), slow)
        except NoAnswer as error:
            slow = str(error) if error.slow else ""
            yield JobAnswer(job, (), str(error))


def launcher_alive(launched: Launched) -> bool | None:
    """Whether the process that started an attempt still runs; None if it is on another host."""
    if launched.host != socket.gethostname():
        return None
    return processes.is_running(launched.pid) and processes.start_ticks(launched.pid) == launched.started


def is_over(attempt: AttemptState) -> bool:
    """Whether no rank of an attempt is alive and none will be: its launcher has ended, or its job is over."""
    if attempt.failure is None and any(is_rank_alive(beat) for beat in attempt.beats):
        return False
    launched = attempt.launched
    if launched is None:
        return bool(attempt.beats)
    if launched.job:
        try:
            states = job_states(launched.job)
        except NoAnswer:
            states = []
        return all(state.over for state in states) if states else bool(attempt.beats)
    alive = launcher_alive(launched)
    return not alive if alive is not None else bool(attempt.beats)


def _read(folder: AttemptDir) -> AttemptState:
    try:
        launched = msgspec.json.decode(folder.launcher.read_bytes(), type=Launched)
    except (OSError, msgspec.MsgspecError):
        launched = None
    return AttemptState(folder, launched, tuple(read_heartbeats(folder.heartbeats)), read_failure(folder))
