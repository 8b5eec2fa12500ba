"""What the ranks will run on: visible GPUs by NVML, CPUs as this process may use them."""

from collections.abc import Mapping, Sequence

from opensora_launch.machine.choose_gpus import Picked, owner, pick_gpus
from opensora_launch.machine.host import count_cpus
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import Device, TopologyConfig

CPU_RANKS = 2  # where nothing is asked and there is no GPU
NOTHING = Picked((), (), ())


def find_machine(topology: TopologyConfig, env: Mapping[str, str]) -> tuple[Machine, list[str]]:
    """The machine that a topology asks for, and every reason why this host cannot be it.

    Only this host is looked at: of other nodes nothing is known here.
    """
    gpus = count_visible(gpu_uuids(), env.get("CUDA_VISIBLE_DEVICES"))
    device = topology.device.value
    if topology.device is Device.auto:
        device = "cuda" if gpus or topology.gpus else "cpu"
    picked = found_gpus(topology, env) if device == "cuda" and (gpus or topology.gpus) else NOTHING
    free = len(picked.gpus) if picked.lines else gpus
    ranks = topology.gpus_per_node
    if ranks is None:
        ranks = max(free, 1) if device == "cuda" else CPU_RANKS
    uuids = tuple(gpu.uuid for gpu in picked.gpus[:ranks]) if len(picked.gpus) != gpus or topology.gpus else ()
    machine = Machine(device, topology.nodes, ranks, count_cpus(), uuids)
    problems = list(picked.problems)
    if device == "cuda" and free < ranks and not problems:
        seen = f"{free} {'free' if free < gpus else 'visible'} here" if gpus else "none is visible here"
        left_out = "".join(f"; {line}" for line in picked.lines if "left out" in line)
        problems.append(
            f"topology.gpus_per_node={ranks} GPUs are asked and {seen}{left_out}; "
            f"use topology={f'{free}gpu' if free in (1, 2, 4) else 'auto'}, or topology=cpu{min(ranks, 8)} for the CPU"
        )
    return machine, problems


def found_gpus(topology: TopologyConfig, env: Mapping[str, str]) -> Picked:
    """The GPUs of this host that a run would take, with what there is to say of them."""
    if topology.device is Device.cpu:
        return NOTHING
    from opensora_launch.machine.gpu_facts import find_gpus

    return pick_gpus(find_gpus(), topology.gpus, env.get("CUDA_VISIBLE_DEVICES"), owner)


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


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
