"""Start the ranks, watch them, and leave nothing behind, however it ends.

Each rank is in a session of its own (torchrun does that), so signals reach the ranks by their process ids: all
descendants of this process, which adopts those whose parent has ended.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from opensora_launch import exit_codes
from opensora_launch.launch.verdict import (
    agent_exits,
    first_failure,
    missing_failure,
    silent_failure,
    was_preempted,
)
from opensora_launch.machine import processes
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.failure import Failure, read_failure, record_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats
from opensora_launch.telemetry.stall import Beat

TICK_S = 0.1
GRACE_S = 3.0  # for the other ranks, after the first failure or Ctrl-C, before they are ended
TERM_S = 2.0  # between SIGTERM and SIGKILL
COME_UP_S = 120.0  # the least time in which every rank must have given a sign of life


@dataclass(frozen=True)
class Task:
    """What to start, and how long a rank may be silent."""

    argv: Sequence[str]
    env: Mapping[str, str]
    attempt: AttemptDir
    ranks: int
    timeout_s: float


@dataclass(frozen=True)
class Outcome:
    """code: 0 done, 1 failure, 2 the user's mistake, 75 stored and stopped, 128 + number of the launcher's signal."""

    code: int
    failure: Failure | None = None


class _Signalled(Exception):
    def __init__(self, signum: int) -> None:
        self.signum = signum


@dataclass
class _Watch:
    """What was seen so far."""

    started_s: float = field(default_factory=time.monotonic)
    lost: set[int] = field(default_factory=set)
    failed_s: float | None = None  # when something was first seen to be wrong


def supervise(task: Task, on_beats: Callable[[Sequence[Beat]], None]) -> Outcome:
    """Run the ranks of an attempt to their end. Call it in the main thread; `on_beats` is called at every look."""
    before = processes.descendants(os.getpid())
    processes.adopt_orphans(True)
    try:
        with _signals_raise():
            try:
                outcome = _run(task, on_beats)
            except _Signalled as stop:
                _ignore_signals()
                _ask_to_stop(task, before, signal.Signals(stop.signum))
                outcome = Outcome(exit_codes.BY_SIGNAL + stop.signum)
            finally:
                _ignore_signals()
                _end_all(task, before)
        return outcome
    finally:
        processes.adopt_orphans(False)


def _run(task: Task, on_beats: Callable[[Sequence[Beat]], None]) -> Outcome:
    log = task.attempt.starter_log
    with log.open("ab") as out:
        process = subprocess.Popen(
            task.argv,
            env=dict(task.env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=processes.die_with_parent,  # safe: no thread of ours runs yet
        )
    watch = _Watch()
    failure: Failure | None = None
    while failure is None:
        code = process.poll()
        beats = read_heartbeats(task.attempt.heartbeats)
        on_beats(beats)
        if code == exit_codes.DONE:
            return Outcome(exit_codes.DONE)
        failure = _look(task, watch, beats, code, log)
        if failure is None:
            time.sleep(TICK_S)
    if was_preempted(agent_exits(log.read_text(encoding="utf-8", errors="replace"))):
        return Outcome(exit_codes.PREEMPTED)
    record_failure(task.attempt, failure)
    return Outcome(exit_codes.USER_ERROR if failure.kind == "user" else exit_codes.FAILURE, failure)


def _look(task: Task, watch: _Watch, beats: Sequence[Beat], code: int | None, log: Path) -> Failure | None:
    """The failure, once it is certain: after the ranks have had time to say what happened."""
    now, waited = time.time(), time.monotonic() - watch.started_s
    said = read_failure(task.attempt)
    if watch.failed_s is None:
        watch.lost |= {b.rank for b in beats if _is_lost(b)}
    if said or watch.lost or code is not None:
        watch.failed_s = watch.failed_s or time.monotonic()
    if watch.failed_s is not None:
        if code is None and time.monotonic() - watch.failed_s < GRACE_S:
            return None
        exits = agent_exits(log.read_text(encoding="utf-8", errors="replace"))
        return first_failure(said, beats, exits, watch.lost, code)
    limit_s = max(task.timeout_s, COME_UP_S)
    return silent_failure(beats, now, task.timeout_s) or (
        missing_failure(beats, task.ranks, waited) if waited > limit_s else None
    )


def _is_lost(beat: Beat) -> bool:
    return beat.state == "running" and beat.host == socket.gethostname() and not processes.is_alive(beat.pid)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise _Signalled; one that was ignored (nohup) stays so. Restored at the end."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _Signalled(signum)

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _ignore_signals() -> None:
    """While the ranks are ended, which takes a few seconds at most."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _ours(task: Task, before: set[int]) -> set[int]:
    """Every process of the run that still lives: what descends from us, and what the heartbeats name."""
    here = [b for b in read_heartbeats(task.attempt.heartbeats) if b.host == socket.gethostname()]
    named = {b.pid for b in here if b.state == "running" and _is_worker(b.pid, task.attempt)}
    found = (processes.descendants(os.getpid()) - before) | named
    processes.reap(pid for pid in found if not processes.is_alive(pid))
    return {pid for pid in found if processes.is_alive(pid)}


def _is_worker(pid: int, attempt: AttemptDir) -> bool:
    """Whether that process was started for this attempt, and is not another one that has got its id."""
    try:
        return os.fsencode(attempt) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _ask_to_stop(task: Task, before: set[int], signum: signal.Signals) -> None:
    pids = _ours(task, before)
    processes.send(pids, signum)
    processes.wait_for_end(pids, GRACE_S)


def _end_all(task: Task, before: set[int]) -> None:
    """SIGTERM, then SIGKILL, until nothing is left; stopped processes too."""
    if pids := _ours(task, before):
        processes.send(pids, signal.SIGTERM)
        processes.wait_for_end(pids, TERM_S)
    deadline = time.monotonic() + GRACE_S
    while (pids := _ours(task, before)) and time.monotonic() < deadline:
        processes.send(pids, signal.SIGKILL)
        processes.wait_for_end(pids, TICK_S)
