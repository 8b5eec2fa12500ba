"""The machine that ranks run on: visible GPUs by NVML, and the CPUs that this process may use."""

from collections.abc import Mapping

from opensora_launch.machine.choose_gpus import Picked, owner, pick_gpus
from opensora_launch.machine.host import count_cpus
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import Device, TopologyConfig

CPU_RANKS = 2  # by default, where there is no GPU
NOTHING = Picked()


def find_machine(topology: TopologyConfig, picked: Picked) -> tuple[Machine, list[str]]:
    """The machine that a topology asks for, and every reason why this host cannot provide it.

    Only this host is examined, of which `picked` are the GPUs; nothing is known about other nodes.
    """
    free, gpus = len(picked.gpus), picked.visible
    device = topology.device.value
    if topology.device is Device.auto:
        device = "cuda" if gpus or topology.gpus or picked.fault else "cpu"
    ranks = topology.gpus_per_node
    if ranks is None:
        ranks = max(free, 1) if device == "cuda" else CPU_RANKS
    uuids = tuple(gpu.uuid for gpu in picked.gpus[:ranks]) if free != gpus or topology.gpus else ()
    machine = Machine(device, topology.nodes, ranks, count_cpus(), uuids)
    problems = [picked.fault] if picked.fault else list(picked.problems)
    if device == "cuda" and free < ranks and not problems:
        problems.append(_too_few(topology, picked, ranks))
    return machine, problems


def _too_few(topology: TopologyConfig, picked: Picked, ranks: int) -> str:
    """A line for fewer free GPUs than ranks, with the settings that would start."""
    free = len(picked.gpus)
    asked = f"topology.gpus_per_node={ranks}, but " if topology.gpus_per_node else ""
    count = "none is" if not free else "1 is" if free == 1 else f"{free} are"
    seen = f"{asked}{count if asked else 'no GPU is'} {'free' if free < picked.visible else 'visible'} here"
    left_out = [line for line in picked.lines if "left out" in line]
    more = f"topology={free}gpu" if free in (1, 2, 4) else f"topology.gpus_per_node={free}" if free else ""
    ways = [more, *(["topology.gpus=[...] to share a busy GPU"] if left_out else [])]
    on_cpu = f"topology=cpu{min(topology.gpus_per_node or CPU_RANKS, 8)} for the CPU"
    return "; ".join([seen, *left_out, f"use {', or '.join([*filter(None, ways), on_cpu])}"])


def found_gpus(topology: TopologyConfig, env: Mapping[str, str]) -> Picked:
    """The GPUs of this host that a run would take, described."""
    if topology.device is Device.cpu:
        return NOTHING
    from opensora_launch.machine.find_gpus import find_gpus

    return pick_gpus(find_gpus(), topology.gpus, env.get("CUDA_VISIBLE_DEVICES"), owner)
