"""What Linux tells of this host and of the ranks on it, from /proc. What is not there is left out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc")
CGROUP_CPUS = Path("/sys/fs/cgroup/cpu.max")
TICKS = os.sysconf("SC_CLK_TCK")


def count_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by its container's share rounded up."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_CPUS.read_text(encoding="ascii").split()
        return allowed if quota == "max" else max(1, min(allowed, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return allowed


def host_sample(proc: Path = PROC) -> dict[str, Any]:
    """CPU seconds since boot (busy and all cores together), memory, and how long tasks waited for memory."""
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
    """Of one process since its start: CPU seconds; of its main thread, which computes, seconds on a CPU and seconds
    ready to run without one; page faults that read a disk; memory."""
    stat = _text(proc / str(pid) / "stat").rpartition(")")[2].split()
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
    """`pids` of this host's ranks; a rank that has ended is left out."""
    return [{"rank": rank, **found} for rank, pid in sorted(pids.items()) if (found := process_sample(pid))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []
