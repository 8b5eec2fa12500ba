"""Start the ranks, watch them, and leave no process behind, however they end.

torchrun gives each rank its own session, so signals are sent to process ids: to all descendants of this process, which
adopts those whose parent has ended.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from opensora_launch import exit_codes
from opensora_launch.launch import verdict
from opensora_launch.machine import processes
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.alive import has_ended_well, is_process_gone
from opensora_launch.telemetry.failure import Failure, read_failure, record_failure
from opensora_launch.telemetry.heartbeat import read_heartbeats
from opensora_launch.telemetry.moves import Moves
from opensora_launch.telemetry.stall import Beat

TICK_S = 0.1
GRACE_S = 3.0  # from the first failure or Ctrl-C until the other ranks are ended
TERM_S = 2.0  # between SIGTERM and SIGKILL
FIRST_BEAT_S = 120.0  # every rank has at least this long until its first heartbeat


@dataclass(frozen=True)
class Task:
    """What to start, and how long a rank may be silent."""

    argv: Sequence[str]
    env: Mapping[str, str]
    attempt: AttemptDir
    ranks: int
    timeout_s: float
    on_other_hosts: bool = False  # some ranks may be, so their starter tells when all have ended


@dataclass(frozen=True)
class Outcome:
    """code: 0 done, 1 failure, 2 a user's mistake, 75 stored and stopped, 128 + the signal that ended the launcher."""

    code: int
    failure: Failure | None = None


class _Signalled(Exception):
    def __init__(self, signum: int) -> None:
        self.signum = signum


@dataclass
class _Watch:
    """What has been observed so far."""

    started_s: float = field(default_factory=time.monotonic)
    moves: Moves = field(default_factory=Moves)
    lost: set[int] = field(default_factory=set)
    failed_s: float | None = None  # when the first failure was noticed


def supervise(task: Task, on_beats: Callable[[Sequence[Beat]], None]) -> Outcome:
    """Run the ranks of an attempt until they end. Call it in the main thread; it calls `on_beats` every TICK_S."""
    before = processes.descendants(os.getpid())
    processes.adopt_orphans(True)
    try:
        with _signals_handled(task.attempt):
            try:
                outcome = _run(task, on_beats)
            except _Signalled as stop:
                _ignore_signals()
                ours = _ours(task, before)
                processes.send(ours, signal.Signals(stop.signum))
                processes.wait_for_end(ours, GRACE_S)
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
            preexec_fn=_before_exec,  # safe: this process has no other thread yet
        )
    watch = _Watch()
    failure: Failure | None = None
    while failure is None:
        code = process.poll()
        beats = read_heartbeats(task.attempt.heartbeats)
        on_beats(beats)
        if code is None and not task.on_other_hosts and has_ended_well(beats, task.ranks):
            process.kill()  # torchrun has nothing left to do, but takes a second to take its Python apart
            code = exit_codes.DONE
        if code == exit_codes.DONE:
            return Outcome(exit_codes.DONE)
        failure = _look(task, watch, watch.moves.own_time(beats), code, log)
        if failure is None:
            time.sleep(TICK_S)
    said = _said(log)
    if verdict.was_preempted(verdict.agent_exits(said)):
        return Outcome(exit_codes.PREEMPTED)
    failure = verdict.with_last_words(failure, said, socket.gethostname())
    if not read_failure(task.attempt) and _disk_is_full(task.attempt):  # no rank could write why it ended
        failure = replace(failure, message=f"{failure.message}; No space left on device: {task.attempt}")
    record_failure(task.attempt, failure)
    return Outcome(exit_codes.USER_ERROR if failure.kind == "user" else exit_codes.FAILURE, failure)


def _said(log: Path) -> str:
    """What the ranks' starter has printed; nothing if somebody deleted the run's folder, which its end tells."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _disk_is_full(attempt: AttemptDir) -> bool:
    try:
        return shutil.disk_usage(attempt).free == 0
    except FileNotFoundError:
        return False


def _before_exec() -> None:
    """End with the launcher. SIGUSR1 is for the ranks, which listen to it: torchrun would die of it."""
    processes.die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _look(task: Task, watch: _Watch, beats: Sequence[Beat], code: int | None, log: Path) -> Failure | None:
    """The failure, once it is certain: after the ranks have had time to report what happened."""
    now = time.monotonic()
    reported = read_failure(task.attempt)
    if watch.failed_s is None:
        watch.lost |= {b.rank for b in beats if is_process_gone(b)}
    if reported or watch.lost or code is not None:
        watch.failed_s = watch.failed_s or now
    if watch.failed_s is not None:
        if code is None and now - watch.failed_s < GRACE_S:
            return None
        said = _said(log)
        return verdict.first_failure(
            reported, beats, verdict.agent_exits(said), watch.lost, code, verdict.step_end(said)
        )
    waited, limit_s = now - watch.started_s, max(task.timeout_s, FIRST_BEAT_S)
    return verdict.silent_failure(beats, now, task.timeout_s) or (
        verdict.missing_failure(beats, task.ranks, waited) if waited > limit_s else None
    )


@contextmanager
def _signals_handled(attempt: AttemptDir) -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP raise _Signalled, and SIGUSR1 ask the ranks to store and stop.

    Signals that are ignored (nohup) stay so. Restores the handlers.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _Signalled(signum)

    def store(signum: int, frame: FrameType | None) -> None:
        attempt.stop.touch()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: stop, signal.SIGUSR1: store}
    before = {signum: signal.getsignal(signum) for signum in handlers}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, handlers[signum])
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _ignore_signals() -> None:
    """Ignore signals while the ranks are being ended, which takes a few seconds at most."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _ours(task: Task, before: set[int]) -> set[int]:
    """Every process of the run that still exists: new descendants of this process, and ranks known by heartbeats."""
    here = [b for b in read_heartbeats(task.attempt.heartbeats) if b.host == socket.gethostname()]
    named = {b.pid for b in here if b.state == "running" and _is_worker(b.pid, task.attempt)}
    found = (processes.descendants(os.getpid()) - before) | named
    processes.reap(pid for pid in found if not processes.is_running(pid))
    return {pid for pid in found if processes.is_running(pid)}


def _is_worker(pid: int, attempt: AttemptDir) -> bool:
    """Whether a process was started for this attempt, and is not a later one with the same id."""
    try:
        return os.fsencode(attempt) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _end_all(task: Task, before: set[int]) -> None:
    """Send SIGTERM, then SIGKILL, until no process is left; this ends stopped processes too."""
    if pids := _ours(task, before):
        processes.send(pids, signal.SIGTERM)
        processes.wait_for_end(pids, TERM_S)
    deadline = time.monotonic() + GRACE_S
    while (pids := _ours(task, before)) and time.monotonic() < deadline:
        processes.send(pids, signal.SIGKILL)
        processes.wait_for_end(pids, TICK_S)
