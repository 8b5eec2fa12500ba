"""Who works on a run: its attempts, launchers and ranks by the run's folder, and its jobs by Slurm."""

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from opensora_launch.machine import processes
from opensora_launch.rundir import AttemptDir, RunDir, write_whole
from opensora_launch.runs.alive import find_alive
from opensora_launch.slurm.query import JobState, NoAnswer, job_states, known_states, steps_named
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats
from opensora_launch.telemetry.lines import read_json
from opensora_launch.telemetry.stall import Beat


@dataclass(frozen=True)
class Launched:
    """Who started an attempt: a job, or a process of a host. `started` tells it from a later process with its id.

    `allocation` is the job in which that process starts the ranks as a step (launcher=srun), `step` the name of it.
    `ended` is what ended it from outside: a signal, or our own `cancel`.
    """

    kind: str
    host: str = ""
    pid: int = 0
    started: int = 0
    job: str = ""
    allocation: str = ""
    step: str = ""
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

    @property
    def job(self) -> str:
        """The job, or the task of an array ("7_2"), that started it; "" where none did."""
        return self.launched.job if self.launched else ""

    @property
    def stopped_by(self) -> str:
        """Who stopped it, in words: "Ctrl-C", a signal, or our own `cancel`; "" if nobody did."""
        return name_of_stop(self.ended)


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
    alive: frozenset[Path] = frozenset()  # the heartbeat files of ranks that are alive

    @property
    def at_work(self) -> list[AttemptState]:
        return [attempt for attempt in self.attempts if self.works(attempt)]

    def works(self, attempt: AttemptState) -> bool:
        """Whether a rank of an attempt is alive, and nothing ended the attempt."""
        return not self.was_ended(attempt) and bool(self.beats_alive(attempt))

    def was_ended(self, attempt: AttemptState) -> bool:
        """Whether something ended an attempt: a failure, a signal, its job's end, or a later start of its job.

        A job that completes or waits again has no ranks at work, however fresh their last heartbeats are.
        """
        state = self.job_state(attempt)
        return bool(attempt.failure or attempt.ended or self.requeued(attempt) or (state and not state.at_work))

    def beats_alive(self, attempt: AttemptState) -> list[Beat]:
        """The heartbeats of an attempt's ranks that are alive."""
        return [beat for beat in attempt.beats if attempt.folder.heartbeat(beat.rank) in self.alive]

    def job_state(self, attempt: AttemptState) -> JobState | None:
        """The state of the job, or of the task of an array, that started an attempt."""
        return next((s for answer in self.jobs for s in answer.states if s.job == attempt.job), None)

    def failed_job(self, attempt: AttemptState) -> JobState | None:
        """The state of the job of an attempt if it failed with it, although no rank reports an error."""
        state, ends = self.job_state(attempt), {beat.state for beat in attempt.beats}
        told = attempt.failure or attempt.ended or self.requeued(attempt) or ends in ({"preempted"}, {"done"})
        return state if state and state.failed and not told else None

    def requeued(self, attempt: AttemptState) -> bool:
        return has_later_start(attempt, self.attempts)

    def to_come(self, but: AttemptDir | None = None) -> bool:
        """Whether somebody works on the run, or a queued job will. `but` is an attempt that is over."""
        queued = any(not state.over for answer in self.jobs for state in answer.states)
        return queued or any(attempt.folder != but for attempt in self.at_work)


def name_of_stop(ended: str) -> str:
    """What ended an attempt from outside, as a user calls it."""
    return {"SIGINT": "Ctrl-C"}.get(ended, ended)


def has_later_start(attempt: AttemptState, attempts: Iterable[AttemptState]) -> bool:
    """Whether the job of an attempt has started a later one."""
    return bool(attempt.job) and any(a.number > attempt.number and a.job == attempt.job for a in attempts)


def record_launch(attempt: AttemptDir, launched: Launched) -> None:
    write_whole(attempt.launcher, msgspec.json.encode(launched).decode() + "\n")


def this_process(kind: str) -> Launched:
    return Launched(kind, socket.gethostname(), os.getpid(), processes.start_ticks(os.getpid()))


def read_attempts(run_dir: RunDir) -> list[AttemptState]:
    """All attempts of a run, oldest first."""
    return [_read(attempt) for attempt in run_dir.attempts()]


def read_state(run_dir: RunDir) -> RunState:
    """The attempts, the states of their jobs, and which ranks are alive, which takes ALIVE_S at most (find_alive).

    After one timeout, Slurm is not queried again.
    """
    attempts = read_attempts(run_dir)
    return _with_alive(RunState(tuple(attempts), tuple(_answers(jobs_of(attempts)))), watch=True)


def glance(run_dirs: Sequence[RunDir]) -> list[RunState]:
    """The states of many runs: one question to Slurm about all jobs, and no waiting for heartbeats to move."""
    attempts = [read_attempts(run_dir) for run_dir in run_dirs]
    known, silence = dict[str, list[JobState]](), ""
    try:
        for state in known_states([job for found in attempts for job in jobs_of(found)]):
            known.setdefault(state.job.partition("_")[0], []).append(state)
    except NoAnswer as error:
        silence = str(error)

    def answers(found: Sequence[AttemptState]) -> tuple[JobAnswer, ...]:
        return tuple(JobAnswer(job, tuple(known.get(job, ())), silence) for job in jobs_of(found))

    return [_with_alive(RunState(tuple(found), answers(found)), watch=False) for found in attempts]


def _with_alive(state: RunState, *, watch: bool) -> RunState:
    """The state with the ranks that are alive. Without `watch`, only recent heartbeats of other hosts count."""
    attempts = [a for a in state.attempts if not (watch and _is_step_over(a))]
    beats = {a.folder.heartbeat(b.rank): b for a in attempts for b in a.beats}
    ended = {a.folder.heartbeat(b.rank) for a in state.attempts if state.was_ended(a) for b in a.beats}
    return replace(state, alive=frozenset(find_alive(beats, ended if watch else set(beats))))


def _is_step_over(attempt: AttemptState) -> bool:
    """Whether an attempt's launcher ended here, and Slurm has no step of it any more; False if that is not known.

    What the launcher leaves to Slurm has no time for a last heartbeat.
    """
    launched = attempt.launched
    if launched is None or not launched.allocation or launcher_alive(launched) is not False:
        return False
    with suppress(NoAnswer):
        return not steps_named(launched.allocation, launched.step)
    return False


def jobs_of(attempts: Sequence[AttemptState]) -> list[str]:
    """The id of each job, once: every start of a job has an attempt, and "7_2" is a task of array "7"."""
    return list(dict.fromkeys(a.job.partition("_")[0] for a in attempts if a.job))


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


def is_over(attempt: AttemptState, *, alive: bool) -> bool:
    """Whether no rank of an attempt is `alive` and none will be: its launcher has ended, or its job is over."""
    if attempt.failure is None and alive:
        return False
    launched = attempt.launched
    if launched is None:
        return bool(attempt.beats)
    if launched.job:
        with suppress(NoAnswer):
            if states := job_states(launched.job):
                return all(state.over for state in states)
        return bool(attempt.beats)
    there = launcher_alive(launched)
    return not there if there is not None else bool(attempt.beats)


def is_job_suspended(attempt: AttemptState) -> bool:
    """Whether Slurm has suspended the job of an attempt, or the allocation that it is a step of."""
    job = (attempt.launched.job or attempt.launched.allocation) if attempt.launched else ""
    with suppress(NoAnswer):
        return any(state.job == job and state.suspended for state in job_states(job)) if job else False
    return False


def _read(folder: AttemptDir) -> AttemptState:
    beats = tuple(read_heartbeats(folder.heartbeats))
    return AttemptState(folder, read_json(folder.launcher, Launched), beats, read_failure(folder))
