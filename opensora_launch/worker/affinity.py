"""Which CPUs a rank of a batch job uses, where the site has not bound it. No torch: its threads inherit this."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pynvml

from opensora_launch.slurm.task_env import read_step

NODES = Path("/sys/devices/system/node")
PCI = Path("/sys/bus/pci/devices")


def bind_cpus(env: Mapping[str, str]) -> None:
    """Take this rank's part of the CPUs that the job's ranks of this node share. Does nothing outside a batch job."""
    step = read_step(env)
    if step is None or step.local_tasks == 1:
        return
    allowed, asked = sorted(os.sched_getaffinity(0)), int(env.get("SLURM_CPUS_PER_TASK", "0"))
    if len(allowed) <= asked:
        return  # bound already
    numa = numa_nodes()
    near = cpus_near_gpu(allowed, numa, gpu_nodes(env)[: step.local_tasks], step.local_rank, step.local_tasks)
    if len(near) < max(1, asked):
        near = own_cpus(allowed, list(numa.values()), step.local_rank, step.local_tasks)
    os.sched_setaffinity(0, near)


def cpus_near_gpu(
    allowed: Sequence[int], numa: Mapping[int, Sequence[int]], places: Sequence[int], index: int, ranks: int
) -> list[int]:
    """The share of rank `index` of its GPU's NUMA node, which it has with the ranks whose GPUs are there too.

    `places` is the node of each rank's GPU. Empty for all ranks where one has no CPU this way.
    """
    room = {node: [cpu for cpu in cpus if cpu in set(allowed)] for node, cpus in numa.items()}
    if len(places) < ranks or any(len(room.get(node, ())) < places.count(node) for node in places):
        return []
    here = room[places[index]]
    return _share(here, places[:index].count(places[index]), places.count(places[index]))


def own_cpus(allowed: Sequence[int], numa: Sequence[Sequence[int]], index: int, ranks: int) -> list[int]:
    """The share of rank `index` of `ranks`: neighbours on a NUMA node as far as possible; all of them if too few."""
    if len(allowed) < ranks:
        return list(allowed)
    known = [cpu for node in numa for cpu in node if cpu in set(allowed)]
    return _share(known + [cpu for cpu in allowed if cpu not in set(known)], index, ranks)


def _share(cpus: Sequence[int], index: int, ranks: int) -> list[int]:
    first, last = (len(cpus) * i // ranks for i in (index, index + 1))
    return sorted(cpus[first:last])


def numa_nodes(root: Path = NODES) -> dict[int, list[int]]:
    """The CPUs of each NUMA node, as the kernel lists them; empty where it does not."""
    found = {}
    for folder in sorted(root.glob("node[0-9]*"), key=lambda p: int(p.name.removeprefix("node"))):
        try:
            found[int(folder.name.removeprefix("node"))] = parse_cpus((folder / "cpulist").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return found


def gpu_nodes(env: Mapping[str, str], root: Path = PCI) -> list[int]:
    """The NUMA node of each GPU that CUDA shows this rank, in its order; empty where one of them is not known."""
    found = []
    for address in visible_gpus(env.get("CUDA_VISIBLE_DEVICES")):
        try:
            node = int((root / address / "numa_node").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return []
        if node < 0:  # the firmware does not tell
            return []
        found.append(node)
    return found


def visible_gpus(shown: str | None) -> list[str]:
    """PCI addresses as in /sys. `shown` is CUDA_VISIBLE_DEVICES: indices in the order of the bus, or UUIDs.

    Empty where NVML is not there, or `shown` names what it does not know, parts of a GPU (MIG) for one.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        uuids = [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        # NVML writes the domain with eight digits, /sys with four.
        addresses = [_text(pynvml.nvmlDeviceGetPciInfo(handle).busId).lower()[-12:] for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    if shown is None:
        return addresses
    chosen = [_index(name.strip(), uuids) for name in shown.split(",")]
    return [] if None in chosen else [addresses[n] for n in chosen if n is not None]


def _index(name: str, uuids: Sequence[str]) -> int | None:
    """CUDA takes the start of a UUID where it is one GPU's."""
    if name.isdecimal():
        return int(name) if int(name) < len(uuids) else None
    matches = [n for n, uuid in enumerate(uuids) if name and uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def parse_cpus(text: str) -> list[int]:
    """ "0-3,8" as numbers."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus += range(int(first), int(last or first) + 1)
    return cpus
