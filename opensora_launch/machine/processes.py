"""Find and end all processes of a run. Linux: /proc and prctl."""

import atexit
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans(adopt: bool) -> None:
    """Make a descendant whose parent ends a child of this process, so that it can still be found; or stop doing so."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def die_with_parent() -> None:
    """Get SIGTERM when the parent ends, however it ends. Call it in a new child process."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end_without_teardown(code: int) -> NoReturn:
    """End this process after its exit functions. Python itself would take a second more, to take torch apart."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or the like has suspended the process until SIGCONT."""
    return _stat(pid)[:1] == ["T"]


def descendants(of: int) -> set[int]:
    """The children of a process, their children, and so on."""
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
    """Send a signal to those processes that still exist."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def wait_for_end(pids: Iterable[int], seconds: float) -> bool:
    """Wait until all have ended; False if that takes more than `seconds`."""
    waiting, deadline = set(pids), time.monotonic() + seconds
    while waiting := {pid for pid in waiting if is_running(pid)}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def reap(pids: Iterable[int]) -> None:
    """Collect the exit codes of adopted children that have ended, so that no zombies remain."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot; 0 if it is gone. Tells it from a later process with its id."""
    stat = _stat(pid)
    return int(stat[19]) if stat else 0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; the name before them may contain anything."""
    return text_of(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()


def text_of(path: Path) -> str:
    """The text of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
