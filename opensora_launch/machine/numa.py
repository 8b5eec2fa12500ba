"""NUMA nodes of this host: their CPUs, the GPUs beside them, and how ranks share them."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from opensora_launch.machine.nvml import open_gpus
from opensora_launch.machine.processes import text_of
from opensora_launch.machine.visible import visible_gpus

NODES = Path("/sys/devices/system/node")
PCI = Path("/sys/bus/pci/devices")


def cpus_near_gpu(
    allowed: Sequence[int], numa: Mapping[int, Sequence[int]], places: Sequence[int], index: int, ranks: int
) -> list[int]:
    """The CPUs of rank `index`: its share of its GPU's NUMA node, divided among the ranks whose GPUs are there too.

    `places` is the node of each rank's GPU. Empty for all ranks if any rank would get no CPU this way.
    """
    room = {node: [cpu for cpu in cpus if cpu in set(allowed)] for node, cpus in numa.items()}
    if len(places) < ranks or any(len(room.get(node, ())) < places.count(node) for node in places):
        return []
    here = room[places[index]]
    return _share(here, places[:index].count(places[index]), places.count(places[index]))


def own_cpus(allowed: Sequence[int], numa: Sequence[Sequence[int]], index: int, ranks: int) -> list[int]:
    """The CPUs of rank `index` of `ranks`: neighbours on a NUMA node if possible; all CPUs if there are too few."""
    if len(allowed) < ranks:
        return list(allowed)
    known = [cpu for node in numa for cpu in node if cpu in set(allowed)]
    return _share(known + [cpu for cpu in allowed if cpu not in set(known)], index, ranks)


def _share(cpus: Sequence[int], index: int, ranks: int) -> list[int]:
    first, last = (len(cpus) * i // ranks for i in (index, index + 1))
    return sorted(cpus[first:last])


def numa_nodes(root: Path = NODES) -> dict[int, list[int]]:
    """The CPUs of each NUMA node as the kernel lists them; empty if it does not."""
    folders = {int(folder.name.removeprefix("node")): folder for folder in root.glob("node[0-9]*")}
    lists = {node: text_of(folder / "cpulist") for node, folder in sorted(folders.items())}
    return {node: parse_cpus(text) for node, text in lists.items() if text}


def gpu_nodes(env: Mapping[str, str], root: Path = PCI) -> list[int]:
    """The NUMA node of each GPU that CUDA shows this rank, in CUDA's order; empty if one of them is unknown."""
    opened, _ = open_gpus()
    if opened is None:
        return []
    with closing(opened):
        shown = visible_gpus(opened.gpus, env.get("CUDA_VISIBLE_DEVICES"))
        nodes = [text_of(root / gpu.pci_address / "numa_node").strip() for gpu in shown]
    return [int(node) for node in nodes] if all(map(str.isdigit, nodes)) else []  # -1: the firmware does not know


def parse_cpus(text: str) -> list[int]:
    """Read a list of CPUs: "0-3,8" is 0, 1, 2, 3, 8."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus += range(int(first), int(last or first) + 1)
    return cpus
