"""Findings on a host: memory, disk, shared memory, limits and clock. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from opensora_launch.doctor.host_facts import Disk, HostFacts
from opensora_launch.doctor.results import Finding, Level, free, gib, ok

LEAST_SHM = 64 * 2**20  # what a container gets unasked, and NCCL and data loaders do not get along with
SHM_PER_RANK = 32 * 2**20  # NCCL's rings between GPUs without peer access
LEAST_OPEN_FILES = 1024
LEAST_PROCESSES = 2048
LEAST_DISK = 2**30
CLOCK_ERROR_S = 0.5  # beyond it the times of two nodes cannot be laid side by side


@dataclass(frozen=True)
class Needs:
    """What a run takes of one host; 0 where nothing is known."""

    ranks: int
    nodes: int
    host_bytes: float = 0.0  # predicted
    host_weight_bytes: float = 0.0  # of it, weights: certain
    disk_bytes: float = 0.0
    gpu_bytes: float = 0.0  # the predicted peak of one GPU
    gpu_weight_bytes: float = 0.0  # of it, weights: certain
    on_gpu: bool = False


def memory_and_disk(host: HostFacts, needs: Needs) -> list[Finding]:
    """What `generate` looks at too: milliseconds."""
    available = host.available_bytes or 0
    return [*(free(finding, available) for finding in _memory(host, needs)), *_disks(host, needs)]


def limits(host: HostFacts, needs: Needs) -> list[Finding]:
    return [*_shm(host, needs), *_ulimits(host, needs), *_clock(host, needs)]


def _memory(host: HostFacts, needs: Needs) -> Iterator[Finding]:
    if host.available_bytes is None:
        return
    room = f"{gib(host.available_bytes)} of host memory are free"
    fix = "end what else runs (ps aux --sort -rss), fewer ranks, or a larger container limit"
    if needs.host_weight_bytes > host.available_bytes:
        what = f"{room} and the weights alone need {gib(needs.host_weight_bytes)}"
        yield Finding(Level.fail, "memory", what, fix, "other work stops")
    elif needs.host_bytes > host.available_bytes:
        what = f"{room} and the run is predicted to need {gib(needs.host_bytes)}"
        yield Finding(Level.warn, "memory", what, fix, "other work stops")
    elif needs.host_bytes:
        yield ok("memory", f"{room}; the run needs {gib(needs.host_bytes)}")
    else:
        yield ok("memory", room)


def _disks(host: HostFacts, needs: Needs) -> Iterator[Finding]:
    for disk in host.disks:
        yield free(_disk(disk, needs), disk.free_bytes)


def _disk(disk: Disk, needs: Needs) -> Finding:
    room = f"{disk.path}: {gib(disk.free_bytes)} free"
    if not disk.writable:
        return Finding(Level.fail, "disk", f"{disk.path} cannot be written", "chmod, or runs_dir=FOLDER", "no cost")
    if disk.free_bytes < needs.disk_bytes:
        what = f"{room}, the videos need {gib(needs.disk_bytes)}"
        return Finding(Level.fail, "disk", what, "runs_dir=FOLDER", "no cost")
    if disk.free_bytes < LEAST_DISK:
        return Finding(Level.warn, "disk", f"{room}: traces and videos may fill it", "runs_dir=FOLDER", "no cost")
    return ok("disk", room)


def _shm(host: HostFacts, needs: Needs) -> Iterator[Finding]:
    if host.shm_bytes is None:
        return
    least = max(LEAST_SHM, needs.ranks * SHM_PER_RANK)
    room = f"/dev/shm has {gib(host.shm_bytes)} free"
    if needs.ranks > 1 and host.shm_bytes <= least:
        yield Finding(
            Level.warn,
            "shm",
            f"{room}; {needs.ranks} ranks of one machine trade up to {gib(least)} through it, and NCCL stops with "
            "'unhandled system error' when it is full",
            "docker run --ipc=host, or --shm-size=8g; in Kubernetes an emptyDir of medium Memory",
            "the container is started again",
        )
    else:
        yield ok("shm", room)


def _ulimits(host: HostFacts, needs: Needs) -> Iterator[Finding]:
    bad = []
    if 0 <= host.open_files < LEAST_OPEN_FILES:
        bad.append(f"open files {host.open_files} (ulimit -n 65536)")
    if 0 <= host.processes < LEAST_PROCESSES:
        bad.append(f"processes {host.processes} (ulimit -u unlimited)")
    if needs.nodes > 1 and host.locked_bytes >= 0:
        bad.append(f"locked memory {gib(host.locked_bytes)}, InfiniBand pins its buffers (ulimit -l unlimited)")
    if bad:
        yield Finding(
            Level.warn,
            "limits",
            f"low: {'; '.join(bad)}",
            "the commands named, in the shell that starts the run; for good in /etc/security/limits.conf",
            "a new login",
        )
    else:
        yield ok("limits", f"open files {host.open_files}, processes {host.processes} (-1: no limit)")


def _clock(host: HostFacts, needs: Needs) -> Iterator[Finding]:
    if host.clock is None or needs.nodes == 1:
        return
    if not host.clock.synchronised or host.clock.error_s > CLOCK_ERROR_S:
        yield Finding(
            Level.warn,
            "clock",
            f"not synchronised (the kernel reckons with up to {host.clock.error_s:.1f} s): times of two nodes do not "
            "compare, and certificates may fail",
            "start chronyd or systemd-timesyncd",
            "root, a minute",
        )
    else:
        yield ok("clock", f"synchronised within {1e3 * host.clock.error_s:.0f} ms")
