"""`follow=true`: stay with a batch job until it is over, and tell what happens to it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from opensora_launch import exit_codes
from opensora_launch.cli.ending import failure_lines, last_error, print_samples, what_is_missing
from opensora_launch.cli.terminal import print_errors
from opensora_launch.cli.view import progress
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.alive import ALIVE_S
from opensora_launch.runs.finished_videos import unsettled_videos
from opensora_launch.runs.job_log import job_log, why_it_ended
from opensora_launch.runs.state import AttemptState, JobAnswer, RunState, has_later_start, read_attempts
from opensora_launch.slurm.pending import advice_on
from opensora_launch.slurm.query import JobState, NoAnswer, exit_code, final_states, job_states, lost_nodes

LOOK_S = 2.0
PATIENCE_S = 600.0  # before following ends: with no answer from Slurm and no heartbeat, or with a job that cannot start


def next_commands(run_dir: RunDir) -> list[str]:
    return [f"follow: opensora-launch status {run_dir}", f"cancel: opensora-launch cancel {run_dir}"]


def follow(job: str, plan: Plan, attempt: AttemptDir) -> int:
    """Show the progress of a job until it is over; its exit code."""
    run_dir = attempt.run
    followed = Followed(job, run_dir, attempt.number)
    try:
        _watch(followed)
    except KeyboardInterrupt:
        print_errors([f"job {job} continues", *next_commands(run_dir)])
        raise
    minutes = f"for {PATIENCE_S / 60:.0f} minutes by now"
    if why := followed.silence:
        print_errors([f"job {job} may still run: {why}, {minutes}", *next_commands(run_dir)])
        return exit_codes.FAILURE
    if followed.stuck:
        print_errors([f"job {job} stays in the queue and is not followed further: it could not start {minutes}"])
        print_errors(next_commands(run_dir))
        return exit_codes.FAILURE
    states = followed.states
    with suppress(NoAnswer):
        states = final_states(job) or states  # with exit codes
    code = exit_code(states)
    print_samples(run_dir, plan)
    state = RunState(tuple(followed.attempts), (JobAnswer(job, tuple(states)),))
    print_errors(last_error(state, followed.told))
    if not any(s.failed for s in states) and not unsettled_videos(run_dir, plan.videos):
        code = exit_codes.DONE  # others have made what a cancelled or stopped task left
    code, lines = what_is_missing(code, run_dir, plan)
    print_errors(lines)
    return code


@dataclass
class Followed:
    """A job as its follower knows it. `look` asks Slurm and reads the run's folder again."""

    job: str
    run_dir: RunDir
    first: int  # the attempt that was submitted; others work on the run's earlier ones
    states: Sequence[JobState] = ()  # empty while Slurm is silent, or does not know the job
    silence: str = ""  # why Slurm cannot be asked
    heard_s: float = field(default_factory=time.monotonic)  # the last answer that gives hope, or heartbeat
    attempts: Sequence[AttemptState] = ()
    _said: str = ""
    told: set[int] = field(default_factory=set)  # attempts whose failure is told
    _starts: dict[str, tuple[int, str]] = field(default_factory=dict)  # each task's attempt at work, and its nodes
    _left: set[int] = field(default_factory=set)  # attempts that are over, as their jobs started again
    _moved: dict[int, tuple[list[float], float]] = field(default_factory=dict)  # beats of an attempt, and since when

    def look(self) -> None:
        try:
            self.states, self.silence = job_states(self.job), ""
        except NoAnswer as error:
            self.states, self.silence = (), str(error)
        if self.states and not self.stuck:
            self.heard_s = time.monotonic()
        self.attempts = [a for a in read_attempts(self.run_dir) if a.number >= self.first]
        for attempt in self.attempts:
            times = [beat.time_s for beat in attempt.beats]
            if times != self._moved.get(attempt.number, ([], 0.0))[0]:
                self._moved[attempt.number] = times, time.monotonic()
                self.heard_s = time.monotonic()

    @property
    def over(self) -> bool:
        return bool(self.states) and all(state.over for state in self.states)

    @property
    def stuck(self) -> list[str]:
        """Why no task of the job will start, if none is at work or waits for its turn; with what to do."""
        left = [state for state in self.states if not state.over]
        reasons = {state.reason: advice_on(state.reason) if state.waits else "" for state in left}
        return [f"{reason}; {advice}" for reason, advice in reasons.items()] if all(reasons.values()) else []

    def news(self) -> Iterator[str]:
        """What has changed since it was told: the job's state, failures of ranks, and new starts of the job."""
        words = dict.fromkeys(f"{s.state} {s.nodes or s.reason}".strip() for s in self.states)
        expected = min((s.expected for s in self.states if s.expected), default="")
        now = ", ".join([*words, *(["expected to start at "] if expected else [])])  # Slurm estimates again and again
        for attempt in self.attempts:
            if attempt.failure and attempt.number not in self.told:
                self.told.add(attempt.number)
                yield from failure_lines(attempt.failure, attempt.folder)
        newest = {a.launched.job: a for a in self.attempts if a.launched and a.folder.started.exists()}
        for task, attempt in newest.items():
            yield from self._restart(task, attempt)
        if now and now != self._said:
            self._said = now
            yield f"job {self.job}: {now}{expected}"
            yield from (f"job {self.job} does not start by waiting: {line}" for line in self.stuck)

    def at_work(self) -> AttemptState | None:
        """The last attempt whose ranks work: their heartbeats move, and neither Slurm nor a failure has ended them."""
        return next((attempt for attempt in reversed(self.attempts) if self._works(attempt)), None)

    def _works(self, attempt: AttemptState) -> bool:
        state = self._state(attempt)
        ended = attempt.failure or (state and not state.at_work) or has_later_start(attempt, self.attempts)
        if ended or not attempt.beats or time.monotonic() - self._moved[attempt.number][1] > ALIVE_S:
            return False
        return any(beat.state in ("running", "done") for beat in attempt.beats)

    def _state(self, attempt: AttemptState) -> JobState | None:
        return next((state for state in self.states if state.job == attempt.job), None)

    def _restart(self, task: str, newest: AttemptState) -> Iterator[str]:
        """A line if the last start of a task has ended, and the task starts again."""
        state = self._state(newest)
        last, nodes = self._starts.get(task, (newest.number, ""))
        if (state and state.waits and task in self._starts) or last < newest.number:
            attempt = next(a for a in self.attempts if a.number == last)
            less = last < newest.number and attempt.failure and attempt.failure.kind == "memory"
            if last not in self._left and not less:  # with less memory, a job goes on without a restart
                yield self._requeued(task, attempt, nodes)
            self._left.add(last)
        if state and state.at_work:
            self._starts[task] = newest.number, state.nodes

    def _requeued(self, task: str, last: AttemptState, nodes: str) -> str:
        log = job_log(self.attempts, last)
        lost = lost_nodes(nodes)
        why = f"lost: {', '.join(lost)}" if lost else why_it_ended(log, last)
        return f"job {task}: requeued" + (f": {why}" if why else "") + (f"; log: {log}" if log and log.exists() else "")


def _watch(followed: Followed) -> None:
    """Tell what happens to a job until it is over, or until nothing was heard of it for PATIENCE_S."""
    with progress() as show:
        while True:
            followed.look()
            for line in followed.news():
                print(line, file=sys.stderr, flush=True)
            at_work = followed.at_work()
            show(*(at_work.folder, at_work.beats) if at_work else (followed.run_dir.attempt(followed.first), ()))
            if followed.over or time.monotonic() - followed.heard_s > PATIENCE_S:
                return
            time.sleep(LOOK_S)
