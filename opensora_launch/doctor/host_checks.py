"""Check a host: memory, disk, shared memory, limits and clock. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from opensora_launch.doctor.check_result import CheckResult, failure, ok, size_text, warning, with_free_bytes
from opensora_launch.machine.host import Disk, HostFacts

LEAST_SHM = 64 * 2**20  # a container's default, too little for NCCL and data loaders
SHM_PER_RANK = 32 * 2**20  # for NCCL's rings between GPUs without peer access
LEAST_OPEN_FILES = 1024
LEAST_PROCESSES = 2048
LEAST_DISK = 2**30
CLOCK_ERROR_S = 0.5  # above it, times of two nodes cannot be compared


@dataclass(frozen=True)
class Needs:
    """What a run needs on one host; 0 if unknown."""

    ranks: int
    nodes: int
    host_bytes: float = 0.0  # predicted
    host_weight_bytes: float = 0.0  # the weights' part, which is certain
    disk_bytes: float = 0.0
    gpu_bytes: float = 0.0  # predicted peak of one GPU
    gpu_weight_bytes: float = 0.0  # the weights' part, which is certain
    on_gpu: bool = False


def check_memory_and_disk(host: HostFacts, needs: Needs) -> list[CheckResult]:
    """Check memory and disks. Takes milliseconds, so `generate` does it too."""
    available = host.available_bytes or 0
    disks = (with_free_bytes(_disk(disk, needs), disk.free_bytes) for disk in host.disks)
    return [*(with_free_bytes(result, available) for result in _memory(host, needs)), *disks]


def check_limits(host: HostFacts, needs: Needs) -> list[CheckResult]:
    return [*_shm(host, needs), *_ulimits(host, needs), *_clock(host, needs)]


def _memory(host: HostFacts, needs: Needs) -> Iterator[CheckResult]:
    if host.available_bytes is None:
        return
    room = f"{size_text(host.available_bytes)} of host memory free"
    fix = "end other programs (ps aux --sort -rss), use fewer ranks, or raise the container's limit"
    if needs.host_weight_bytes > host.available_bytes:
        what = f"{room}, but the weights alone need {size_text(needs.host_weight_bytes)}"
        yield failure("memory", what, fix, "other work stops")
    elif needs.host_bytes > host.available_bytes:
        what = f"{room}, but the run is predicted to need {size_text(needs.host_bytes)}"
        yield warning("memory", what, fix, "other work stops")
    elif needs.host_bytes:
        yield ok("memory", f"{room}; the run needs {size_text(needs.host_bytes)}")
    else:
        yield ok("memory", room)


def _disk(disk: Disk, needs: Needs) -> CheckResult:
    room = f"{disk.path}: {size_text(disk.free_bytes)} free"
    if not disk.writable:
        return failure("disk", f"{disk.path} cannot be written", "use chmod, or runs_dir=FOLDER", "no cost")
    if disk.free_bytes < needs.disk_bytes:
        what = f"{room}, but the videos need {size_text(needs.disk_bytes)}"
        return failure("disk", what, "use runs_dir=FOLDER", "no cost")
    if disk.free_bytes < LEAST_DISK:
        return warning("disk", f"{room}: traces and videos may fill it", "use runs_dir=FOLDER", "no cost")
    return ok("disk", room)


def _shm(host: HostFacts, needs: Needs) -> Iterator[CheckResult]:
    if host.shm_bytes is None:
        return
    least = max(LEAST_SHM, needs.ranks * SHM_PER_RANK)
    room = f"/dev/shm has {size_text(host.shm_bytes)} free"
    if needs.ranks > 1 and host.shm_bytes <= least:
        use = f"{needs.ranks} ranks of one machine exchange up to {size_text(least)} through it"
        what = f"{room}; {use}, and NCCL stops with 'unhandled system error' when it is full"
        fix = "use docker run --ipc=host, or --shm-size=8g; in Kubernetes an emptyDir of medium Memory"
        yield warning("shm", what, fix, "restart of the container")
    else:
        yield ok("shm", room)


def _ulimits(host: HostFacts, needs: Needs) -> Iterator[CheckResult]:
    bad = []
    if 0 <= host.open_files < LEAST_OPEN_FILES:
        bad.append(f"open files {host.open_files} (ulimit -n 65536)")
    if 0 <= host.processes < LEAST_PROCESSES:
        bad.append(f"processes {host.processes} (ulimit -u unlimited)")
    if needs.nodes > 1 and host.locked_bytes >= 0:
        locked = size_text(host.locked_bytes)
        bad.append(f"locked memory {locked}, but InfiniBand pins its buffers (ulimit -l unlimited)")
    if bad:
        fix = "run these commands in the shell that starts the run; permanently in /etc/security/limits.conf"
        yield warning("limits", f"too low: {'; '.join(bad)}", fix, "a new login")
    else:
        yield ok("limits", f"open files {host.open_files}, processes {host.processes} (-1: no limit)")


def _clock(host: HostFacts, needs: Needs) -> Iterator[CheckResult]:
    if host.clock is None or needs.nodes == 1:
        return
    if not host.clock.synchronised or host.clock.error_s > CLOCK_ERROR_S:
        error = f"error up to {host.clock.error_s:.1f} s by the kernel"
        what = f"not synchronised ({error}); times of two nodes cannot be compared, and certificates may fail"
        yield warning("clock", what, "start chronyd or systemd-timesyncd", "root and a minute")
    else:
        yield ok("clock", f"synchronised within {1e3 * host.clock.error_s:.0f} ms")
