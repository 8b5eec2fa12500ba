"""What the ranks will run on: visible GPUs by NVML, CPUs as this process may use them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from opensora_launch.config import Device, TopologyConfig
from opensora_launch.plan.plan import Machine

CPU_RANKS = 2  # where nothing is asked and there is no GPU
CGROUP_CPUS = Path("/sys/fs/cgroup/cpu.max")


def find_machine(topology: TopologyConfig, env: Mapping[str, str]) -> tuple[Machine, list[str]]:
    """The machine that a topology asks for, and every reason why this host cannot be it.

    Only this host is looked at: of other nodes nothing is known here.
    """
    gpus = count_visible(gpu_uuids(), env.get("CUDA_VISIBLE_DEVICES"))
    device = topology.device.value
    if topology.device is Device.auto:
        device = "cuda" if gpus else "cpu"
    ranks = topology.gpus_per_node
    if ranks is None:
        ranks = max(gpus, 1) if device == "cuda" else CPU_RANKS
    machine = Machine(device=device, nodes=topology.nodes, gpus_per_node=ranks, cpus_per_node=count_cpus())
    problems = []
    if device == "cuda" and gpus < ranks:
        seen = f"{gpus} visible here" if gpus else "none is visible here"
        problems.append(
            f"topology.gpus_per_node={ranks} GPUs are asked and {seen}; "
            f"use topology={f'{gpus}gpu' if gpus in (1, 2, 4) else 'auto'}, or topology=cpu{min(ranks, 8)} for the CPU"
        )
    return machine, problems


def gpu_uuids() -> tuple[str, ...]:
    """UUIDs of this host's GPUs, in the order of their PCI addresses. Empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def count_visible(uuids: Sequence[str], visible: str | None) -> int:
    """How many GPUs CUDA will show, by the rules of CUDA_VISIBLE_DEVICES.

    Entries are indices, UUIDs or the start of one, or MIG instances; the first that names no GPU ends the list.
    """
    if visible is None:
        return len(uuids)
    count = 0
    for entry in (part.strip() for part in visible.split(",")):
        is_index = entry.isascii() and entry.isdigit() and int(entry) < len(uuids)
        is_uuid = bool(entry) and not entry.isdigit() and sum(uuid.startswith(entry) for uuid in uuids) == 1
        if not is_index and not is_uuid and not (uuids and entry.startswith("MIG-")):
            break
        count += 1
    return count


def count_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by its container's share rounded up."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_CPUS.read_text(encoding="ascii").split()
        return allowed if quota == "max" else max(1, min(allowed, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return allowed


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
