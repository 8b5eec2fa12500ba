"""What Linux knows about this host and its processes: CPUs, memory, disks, limits, clock. Unknowns are left out."""

import ctypes
import os
import re
import resource
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.machine.processes import text_of

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
_SHM = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
NUMBERS_OF_TIMEX = 64  # more than struct timex has


@dataclass(frozen=True)
class Disk:
    path: str
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class KernelClock:
    synchronised: bool
    error_s: float  # upper bound by the kernel


@dataclass(frozen=True)
class HostFacts:
    available_bytes: int | None  # memory of the host, or of the container if that is less
    shm_bytes: int | None
    disks: tuple[Disk, ...]
    open_files: int  # soft limit; -1 means no limit, as for the next two
    locked_bytes: int
    processes: int
    clock: KernelClock | None


def count_cpus() -> int:
    """Count the CPUs that this process may use: its affinity, and the smallest share of its cgroups, rounded up."""
    limits = [text_of(folder / "cpu.max") for folder in _cgroup_folders("")]
    for folder in _cgroup_folders("cpu"):
        limits.append(f"{text_of(folder / 'cpu.cfs_quota_us')} {text_of(folder / 'cpu.cfs_period_us')}")
    shares = [re.fullmatch(r"(\d+)\s+(\d+)\s*", limit) for limit in limits]  # of a period, unless it is "max" or -1
    return max(1, min([len(os.sched_getaffinity(0)), *(-(-int(s[1]) // int(s[2])) for s in shares if s)]))


def _cgroup_folders(controller: str) -> list[Path]:
    """This process's cgroup and those above it, whose limits hold too. `controller` is of version 1; "" is version 2.

    A container may show the host's path and mount only its own part: then the folder of the mount counts.
    """
    folders: list[Path] = []
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        for mount in (CGROUP / controllers, CGROUP / controller, *([] if controller else [CGROUP / "unified"])):
            inside = mount / path.lstrip("/")
            folders += [inside, *(folder for folder in inside.parents if folder.is_relative_to(mount))]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def host_sample(proc: Path = PROC) -> dict[str, Any]:
    """CPU seconds since boot (busy, and of all cores), memory, and how long tasks have waited for memory."""
    found: dict[str, Any] = {}
    if words := _words(proc / "stat"):
        ticks = [int(word) for word in words[1:9]]  # user nice system idle iowait irq softirq steal
        found |= {"cpu_all_s": sum(ticks) / TICKS, "cpu_busy_s": (sum(ticks) - ticks[3] - ticks[4]) / TICKS}
    memory = dict(line.split(":") for line in _lines(proc / "meminfo"))
    for name, key in (("memory_bytes", "MemTotal"), ("available_bytes", "MemAvailable")):
        if key in memory:
            found[name] = int(memory[key].split()[0]) * 1024
    for line in _lines(proc / "pressure" / "memory"):
        if line.startswith("some"):
            found["memory_stall_s"] = int(line.rpartition("total=")[2]) / 1e6
    return found


def process_sample(pid: int, proc: Path = PROC) -> dict[str, Any]:
    """What one process has used since its start: CPU seconds, page faults that read a disk, and memory.

    `ran_s` and `starved_s` are seconds that its main thread, which computes, ran on a CPU and waited for one.
    """
    stat = text_of(proc / str(pid) / "stat").rpartition(")")[2].split()
    if not stat:
        return {}
    found: dict[str, Any] = {
        "cpu_s": (int(stat[11]) + int(stat[12])) / TICKS,
        "major_faults": int(stat[9]),
        "memory_bytes": int(stat[21]) * os.sysconf("SC_PAGE_SIZE"),
    }
    if len(ran := _words(proc / str(pid) / "schedstat")) == 3:
        found |= {"ran_s": int(ran[0]) / 1e9, "starved_s": int(ran[1]) / 1e9}
    return found


def rank_samples(pids: Mapping[int, int]) -> list[dict[str, Any]]:
    """A sample of each rank on this host, by its process id; ranks that have ended are left out."""
    return [{"rank": rank, **found} for rank, pid in sorted(pids.items()) if (found := process_sample(pid))]


def host_facts(disks: Iterable[Path]) -> HostFacts:
    """Read the facts of this host. `disks` are folders that the run writes to, or will create."""
    available = host_sample().get("available_bytes")
    room = _cgroup_room()
    return HostFacts(
        available_bytes=min(available, room) if available is not None and room is not None else available,
        shm_bytes=_free(_SHM),
        disks=tuple(_disk(path) for path in disks),
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
        processes=_limit(resource.RLIMIT_NPROC),
        clock=_kernel_clock(),
    )


def _kernel_clock() -> KernelClock | None:
    """What the kernel knows about its clock, by adjtimex(2); None where a container forbids the call."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = (ctypes.c_long * NUMBERS_OF_TIMEX)()  # modes = 0: only read
    state = libc.adjtimex(timex)
    return None if state < 0 else KernelClock(state != TIME_ERROR, timex[3] / 1e6)  # modes offset freq maxerror


def _limit(which: int) -> int:
    soft, _ = resource.getrlimit(which)
    return -1 if soft == resource.RLIM_INFINITY else soft


def _disk(path: Path) -> Disk:
    """The disk of a folder, which need not exist yet."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return Disk(str(path), shutil.disk_usage(there).free, os.access(there, os.W_OK))


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _cgroup_room() -> int | None:
    """Bytes that this process's cgroups leave to it, counting droppable caches as free; None without a limit."""
    names = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    rooms = []
    for controller, (limit, used, cache) in names.items():
        for folder in _cgroup_folders(controller):
            numbers = [text_of(folder / name).strip() for name in (limit, used)]
            if all(number.isdigit() for number in numbers):
                stat = dict(line.split() for line in _lines(folder / "memory.stat"))
                rooms.append(int(numbers[0]) - int(numbers[1]) + int(stat.get(cache, 0)))
    return min(rooms, default=None)


def _lines(path: Path) -> list[str]:
    return text_of(path).splitlines()


def _words(path: Path) -> list[str]:
    return text_of(path).partition("\n")[0].split()
