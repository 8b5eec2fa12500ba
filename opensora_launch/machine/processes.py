"""Processes of a run, found and ended to the last one. Linux: /proc and prctl."""

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans(adopt: bool) -> None:
    """Whether a descendant whose parent ends becomes this process's child, so that it can still be found."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def die_with_parent() -> None:
    """For a fresh child: get SIGTERM when the parent ends, however it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def is_alive(pid: int) -> bool:
    """Whether the process is there and is no zombie."""
    return _state(pid) not in ("", "Z", "X")


def descendants(of: int) -> set[int]:
    """Children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [of]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found.add(child)
            waiting.append(child)
    return found


def send(pids: Iterable[int], signum: signal.Signals) -> None:
    """Signal those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def wait_for_end(pids: Iterable[int], seconds: float) -> bool:
    """Whether all have ended within `seconds`."""
    waiting, deadline = set(pids), time.monotonic() + seconds
    while waiting := {pid for pid in waiting if is_alive(pid)}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def reap(pids: Iterable[int]) -> None:
    """Take the exit codes of adopted children that have ended, so that no zombies stay."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot: tells it from a later one with its id. 0 if it is gone."""
    stat = _stat(pid)
    return int(stat[19]) if stat else 0


def _state(pid: int) -> str:
    stat = _stat(pid)
    return stat[0] if stat else ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; the name before them may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
