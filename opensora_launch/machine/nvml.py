"""Read the GPUs of this host by NVIDIA's management library (NVML).

Readings that a driver refuses (containers, MIG, older drivers, cards without the sensor) are listed in `refused` and
missing in the samples. Nothing here raises after `open_gpus`. Match GPUs to CUDA's devices by UUID: indices may differ.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pynvml

from opensora_launch.machine.host_gpus import LostGpu
from opensora_launch.machine.nvml_causes import nvml_cause, nvml_text

SLOW_S = 1.0  # interval of readings that are slow (PCIe counters take 20 ms each) or change seldom
TRIES = 3  # a reading is given up after this many failures in a row
FOR_GOOD = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)
THROTTLES = {  # NVML's reasons why a GPU is slower than its owner wants
    "power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "too hot (driver)": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "too hot (hardware)": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "locked clocks": pynvml.nvmlClocksThrottleReasonUserDefinedClocks,
    "clocks in step with another GPU": pynvml.nvmlClocksEventReasonSyncBoost,
}
NVLINK_FIELDS = {
    "nvlink_tx_bytes": pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
    "nvlink_rx_bytes": pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
}
ALL_LINKS = 0xFFFFFFFF  # scope of a field value: the sum over all links of a GPU

Reading = Callable[[Any], dict[str, Any]]


@dataclass
class Gpu:
    """One GPU, or one MIG instance of it. CUDA uses the same `uuid`."""

    index: int
    uuid: str
    name: str
    handle: Any
    parent: "Gpu | None" = None
    refused: dict[str, str] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Facts that do not change during a run."""
        found: dict[str, Any] = {"index": self.index, "uuid": self.uuid, "name": self.name}
        if self.parent:
            found["mig_of"] = self.parent.uuid
        for name in _CONSTANT:
            found |= self.read(name)
        return found

    @property
    def pci_address(self) -> str:
        """As /sys writes it: NVML's domain has eight digits, the kernel's four. "" where the driver refuses it."""
        try:
            return str(pynvml.nvmlDeviceGetPciInfo((self.parent or self).handle).busId).lower()[-12:]
        except pynvml.NVMLError:
            return ""

    def read(self, name: str) -> dict[str, Any]:
        """Take one reading; empty where the driver refuses it, with the reason in `refused`."""
        if self.failures.get(name, 0) >= TRIES:
            return {}
        try:
            found = READINGS[name](self.handle)
        except Exception as error:  # noqa: BLE001 the other readings go on
            gone = getattr(error, "value", None) in FOR_GOOD
            self.failures[name] = TRIES if gone else self.failures.get(name, 0) + 1
            self.refused[name] = nvml_text(error)
            return {}
        self.failures[name] = 0
        return found


class Gpus:
    """All GPUs that this process may see. `close` it at the end. For one thread."""

    def __init__(self, gpus: list[Gpu], lost: list[LostGpu], driver: str, events: Any) -> None:
        self.gpus, self.lost, self.driver = gpus, lost, driver
        self._events = events
        self._slow_s = float("-inf")

    def sample(self) -> list[dict[str, Any]]:
        """One dict per GPU, in the order of `gpus`, without refused readings."""
        now = time.monotonic()
        slow = now - self._slow_s >= SLOW_S
        if slow:
            self._slow_s = now
        readings = _EVERY_SAMPLE | _EVERY_SECOND if slow else _EVERY_SAMPLE
        samples = []
        for gpu in self.gpus:
            found: dict[str, Any] = {"gpu": gpu.index}
            for name in readings:
                found |= gpu.read(name)
            samples.append(found)
        return samples

    def xids(self) -> list[dict[str, Any]]:
        """Critical errors (XID) that the driver reported since the last call."""
        found: list[dict[str, Any]] = []
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                found.append({"uuid": pynvml.nvmlDeviceGetUUID(event.device), "xid": int(event.eventData)})
            except Exception as error:  # noqa: BLE001 the samples continue without XIDs
                if getattr(error, "value", None) != pynvml.NVML_ERROR_TIMEOUT:
                    self._refuse_events(error)
                break
        return found

    def refused(self) -> dict[str, str]:
        """Reading -> why the driver refused it. GPUs are not told apart."""
        return {name: why for gpu in self.gpus for name, why in gpu.refused.items()}

    def close(self) -> None:
        try:
            if self._events is not None:
                pynvml.nvmlEventSetFree(self._events)
            pynvml.nvmlShutdown()
        except Exception as error:  # noqa: BLE001 this must not end a run
            self._refuse_events(error)

    def _refuse_events(self, error: Exception) -> None:
        self._events = None
        for gpu in self.gpus:
            gpu.refused["xid"] = nvml_text(error)


def open_gpus() -> tuple[Gpus | None, str | None]:
    """The GPUs of this host, or None and the reason why none can be used."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, nvml_cause(error)
    try:
        whole, lost = _reachable(pynvml.nvmlDeviceGetCount())
        gpus = [gpu for one in whole for gpu in (one, *_mig(one))]
        if gpus:
            return Gpus(gpus, lost, pynvml.nvmlSystemGetDriverVersion(), _register(whole)), None
        problem = "; ".join(f"GPU {gpu.index}: {gpu.why}" for gpu in lost) or "the driver shows no GPU"
    except Exception as error:  # noqa: BLE001 the host is sampled without GPUs
        problem = nvml_cause(error)
    pynvml.nvmlShutdown()
    return None, problem


def _reachable(count: int) -> tuple[list[Gpu], list[LostGpu]]:
    """The first `count` GPUs: those that can be read, and the others.

    Beside one that can be used, those that are forbidden belong to another job: CUDA does not count them.
    """
    whole, lost, denied = list[Gpu](), list[LostGpu](), list[LostGpu]()
    for n in range(count):
        try:
            whole.append(_gpu(n, pynvml.nvmlDeviceGetHandleByIndex(n)))
        except pynvml.NVMLError as error:
            others = denied if error.value == pynvml.NVML_ERROR_NO_PERMISSION else lost
            others.append(LostGpu(n, nvml_cause(error)))
    return whole, lost if whole else sorted([*lost, *denied], key=lambda gpu: gpu.index)


def _gpu(index: int, handle: Any, parent: Gpu | None = None) -> Gpu:
    return Gpu(index, pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle), handle, parent)


def _mig(gpu: Gpu) -> list[Gpu]:
    """The MIG instances of a GPU; none if MIG is off, or if the driver does not know it."""
    try:
        if pynvml.nvmlDeviceGetMigMode(gpu.handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu.handle)
    except pynvml.NVMLError:
        return []
    found = []
    for n in range(count):
        with suppress(pynvml.NVMLError):  # an unused slot
            found.append(_gpu(gpu.index, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, n), gpu))
    return found


def _register(gpus: list[Gpu]) -> Any:
    """An event set that receives XIDs; None if every GPU refuses, with the reason in each GPU's `refused`."""
    events = None
    for gpu in gpus:  # a GPU that refuses XID events does not stop the others from reporting
        try:
            if events is None:
                events = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(gpu.handle, pynvml.nvmlEventTypeXidCriticalError, events)
        except pynvml.NVMLError as error:
            gpu.refused["xid"] = str(error)
    if events is not None and all("xid" in gpu.refused for gpu in gpus):
        pynvml.nvmlEventSetFree(events)
        return None
    return events


def _use(handle: Any) -> dict[str, Any]:
    found = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return {"util": found.gpu / 100, "memory_util": found.memory / 100}


def _throttles(handle: Any) -> dict[str, Any]:
    try:
        bits = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError_FunctionNotFound:  # drivers before 535 use the former name
        bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return {"throttled": [name for name, bit in THROTTLES.items() if bits & bit]}


def _clocks(handle: Any) -> dict[str, Any]:
    return {
        "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
    }


def _nvlink(handle: Any) -> dict[str, Any]:
    values = pynvml.nvmlDeviceGetFieldValues(handle, [(field, ALL_LINKS) for field in NVLINK_FIELDS.values()])
    for value in values:
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(value.nvmlReturn)
    return {name: int(value.value.ullVal) * 1024 for name, value in zip(NVLINK_FIELDS, values, strict=True)}


def _pcie(handle: Any) -> dict[str, Any]:
    """NVML gives KB/s over the last 20 ms."""
    return {
        "pcie_tx_bytes_per_s": 1000 * pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES),
        "pcie_rx_bytes_per_s": 1000 * pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES),
    }


def _ecc(handle: Any) -> dict[str, Any]:
    kinds = {
        "ecc_corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
        "ecc_uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    }
    since_boot = pynvml.NVML_VOLATILE_ECC
    return {name: pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since_boot) for name, kind in kinds.items()}


def _processes(handle: Any) -> dict[str, Any]:
    """Processes that compute on a GPU. In a container, ids may be the host's, or only own processes are shown."""
    return {"processes": [[p.pid, p.usedGpuMemory] for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]}


_EVERY_SAMPLE: dict[str, Reading] = {
    "utilisation": _use,
    "memory": lambda handle: {"memory_used_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)},
    "power": lambda handle: {"power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000},
    "energy": lambda handle: {"energy_j": pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000},
    "clocks": _clocks,
    "throttling": _throttles,
    "nvlink": _nvlink,
}
_EVERY_SECOND: dict[str, Reading] = {
    "temperature": lambda handle: {
        "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    },
    "pcie": _pcie,
    "ecc": _ecc,
    "processes": _processes,
}
_CONSTANT: dict[str, Reading] = {
    "memory size": lambda handle: {"memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)},
    "power limit": lambda handle: {"power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000},
    "clock limit": lambda handle: {"sm_mhz_max": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)},
}
READINGS = _EVERY_SAMPLE | _EVERY_SECOND | _CONSTANT
