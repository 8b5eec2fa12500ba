"""GPUs of this host before a run, by NVML: their state, and the links of each pair.

Nothing here raises. Without a driver there are no GPUs, and a reason.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pynvml

from opensora_launch.machine.host_gpus import GpuFacts, HostGpus, PairFacts
from opensora_launch.machine.nvml import Gpu, open_gpus
from opensora_launch.machine.nvml_causes import NO_LIBRARY

MAX_NVLINKS = 18
P2P_READ = 0  # NVML_P2P_CAPS_INDEX_READ, which is a tuple in nvidia-ml-py by mistake
P2P = {  # nvmlGpuP2PStatus_t
    pynvml.NVML_P2P_STATUS_OK: "ok",
    pynvml.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED: "chipset not supported",
    pynvml.NVML_P2P_STATUS_GPU_NOT_SUPPORTED: "GPU not supported",
    pynvml.NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED: "topology not supported",
    pynvml.NVML_P2P_STATUS_DISABLED_BY_REGKEY: "turned off in the driver",
    pynvml.NVML_P2P_STATUS_NOT_SUPPORTED: "not supported",
}
PATHS = {  # nvmlGpuTopologyLevel_t, as nvidia-smi names them
    pynvml.NVML_TOPOLOGY_INTERNAL: "one board",
    pynvml.NVML_TOPOLOGY_SINGLE: "PIX",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
    pynvml.NVML_TOPOLOGY_NODE: "NODE",
    pynvml.NVML_TOPOLOGY_SYSTEM: "SYS",
}


def find_gpus(devices: Path = Path("/dev")) -> HostGpus:
    """Read the state of every GPU and MIG instance of this host."""
    opened, problem = open_gpus()
    if opened is None:
        return _none(str(problem), sorted(path.name for path in devices.glob("nvidia*")))
    with closing(opened):
        whole = [gpu for gpu in opened.gpus if gpu.parent is None]
        cuda = _try(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return HostGpus(
            gpus=tuple(map(_facts, whole)),
            pairs=tuple(_pair(a, b) for a, b in combinations(whole, 2)),
            driver=opened.driver,
            cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
            instances=tuple(_facts(gpu) for gpu in opened.gpus if gpu.parent),
            expected=True,
            lost=tuple(opened.lost),
        )


def _none(problem: str, devices: Sequence[str]) -> HostGpus:
    """No GPU. `devices` are the driver's files in /dev."""
    if problem != NO_LIBRARY or not devices:
        return HostGpus(problem=problem, expected=problem != NO_LIBRARY)
    what = f"/dev/{devices[0]} is here, but {problem} (install the driver; in a container, docker run --gpus all and "
    return HostGpus(problem=f"{what}NVIDIA_DRIVER_CAPABILITIES=compute,utility)", expected=True)


def _try(reading: Callable[..., Any], *args: Any) -> Any:
    """A reading, or None where the driver refuses it or does not have it."""
    try:
        return reading(*args)
    except pynvml.NVMLError:
        return None


def _facts(gpu: Gpu) -> GpuFacts:
    handle = gpu.handle
    memory, shares_memory = _memory(handle)
    remapped = _try(pynvml.nvmlDeviceGetRemappedRows, handle)
    mig = _try(pynvml.nvmlDeviceGetMigMode, handle)
    throttled = gpu.read("throttling").get("throttled")
    default = _try(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)
    return GpuFacts(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        total_bytes=int(memory.total) if memory else None,
        free_bytes=int(memory.free) if memory else None,
        capability=_try(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        ecc_errors=gpu.read("ecc").get("ecc_uncorrected"),
        remap_pending=bool(remapped[2]) if remapped else None,
        throttled=None if throttled is None else tuple(throttled),
        mig=bool(not gpu.parent and mig and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE),
        processes=tuple((pid, used) for pid, used in gpu.read("processes").get("processes", ())),
        power_limit_w=gpu.read("power limit").get("power_limit_w"),
        power_default_w=default / 1000 if default else None,
        pcie=_try(_pcie, handle),
        remap_failed=bool(remapped[3]) if remapped else None,
        shares_memory=shares_memory,
    )


def _memory(handle: Any) -> tuple[Any, bool]:
    """The memory, or None, and whether the GPU has none of its own, as NVML says by NOT_SUPPORTED (GB10, Jetson)."""
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle), False
    except pynvml.NVMLError as error:
        return None, error.value == pynvml.NVML_ERROR_NOT_SUPPORTED


def _pcie(handle: Any) -> tuple[int, int, int, int]:
    return (
        pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
        pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle),
    )


def _pair(a: Gpu, b: Gpu) -> PairFacts:
    status = _try(pynvml.nvmlDeviceGetP2PStatus, a.handle, b.handle, P2P_READ)
    links = _nvlinks(a, b)
    level = _try(pynvml.nvmlDeviceGetTopologyCommonAncestor, a.handle, b.handle)
    path = f"NV{links}" if links else PATHS.get(level, "unknown path")
    return PairFacts(a.index, b.index, path, P2P.get(status, "unknown"))


def _nvlinks(a: Gpu, b: Gpu) -> int:
    """Count the active NVLinks between two GPUs; a link to a switch reaches every GPU on it."""
    if _try(pynvml.nvmlDeviceGetP2PStatus, a.handle, b.handle, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) not in (0, None):
        return 0
    bus = _try(pynvml.nvmlDeviceGetPciInfo, b.handle)
    count = 0
    for link in range(MAX_NVLINKS):
        if not _try(pynvml.nvmlDeviceGetNvLinkState, a.handle, link):
            continue
        kind = _try(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, a.handle, link)
        remote = _try(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, a.handle, link)
        to_switch = kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
        count += bool(to_switch or (remote and bus and remote.busId == bus.busId))
    return count
