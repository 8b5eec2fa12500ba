"""What Linux tells of this host before a run: memory, disks, shared memory, limits, and whether its clock is set."""

import ctypes
import os
import resource
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.machine.host import host_sample

SHM = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
NUMBERS_OF_TIMEX = 64  # more than struct timex has


@dataclass(frozen=True)
class Disk:
    path: str
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class Clock:
    synchronised: bool
    error_s: float  # the largest that the kernel reckons with


@dataclass(frozen=True)
class HostFacts:
    available_bytes: int | None  # memory, of the container where that is less
    shm_bytes: int | None
    disks: tuple[Disk, ...]
    open_files: int  # soft limit; -1 is no limit, as for the next two
    locked_bytes: int
    processes: int
    clock: Clock | None


def host_facts(disks: Iterable[Path]) -> HostFacts:
    """Look at this host. `disks` are folders that are written to, or will be."""
    available = host_sample().get("available_bytes")
    room = _cgroup_room()
    return HostFacts(
        available_bytes=min(available, room) if available is not None and room is not None else available,
        shm_bytes=_free(SHM),
        disks=tuple(_disk(path) for path in disks),
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
        processes=_limit(resource.RLIMIT_NPROC),
        clock=clock(),
    )


def clock() -> Clock | None:
    """The kernel's own word on its clock, by adjtimex(2); None where a container does not let it be asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = (ctypes.c_long * NUMBERS_OF_TIMEX)()  # modes = 0: only read
    state = libc.adjtimex(timex)
    return None if state < 0 else Clock(state != TIME_ERROR, timex[3] / 1e6)  # modes offset freq maxerror


def _limit(which: int) -> int:
    soft, _ = resource.getrlimit(which)
    return -1 if soft == resource.RLIM_INFINITY else soft


def _disk(path: Path) -> Disk:
    """The disk of a folder that may not be there yet."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return Disk(str(path), shutil.disk_usage(there).free, os.access(there, os.W_OK))


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _cgroup_room() -> int | None:
    """Bytes left to this container, where it has a limit: of cgroup v2, without caches that can be dropped."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
