"""Facts about a host's GPUs before a run. These types need no NVML; `find_gpus` fills them in."""

from dataclasses import dataclass

from opensora_launch.machine.visible import visible_gpus


@dataclass(frozen=True)
class GpuFacts:
    """A GPU, or a MIG instance of one. None where the driver refuses a reading."""

    index: int  # by PCI address, as nvidia-smi counts; of an instance, its GPU's
    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    capability: tuple[int, int] | None  # (9, 0) is Hopper
    ecc: bool | None
    ecc_errors: int | None  # uncorrected, since boot
    remap_pending: bool | None  # a bad memory row will be replaced at the next reset
    throttled: tuple[str, ...]
    mig: bool  # divided into instances
    processes: tuple[tuple[int, int | None], ...]  # (pid, bytes)
    power_limit_w: float | None
    power_default_w: float | None
    pcie: tuple[int, int, int, int] | None  # generation now and maximum, lanes now and maximum


@dataclass(frozen=True)
class PairFacts:
    """How two GPUs are joined: `path` is NV<links>, or what of the PCIe lies between, PIX, PXB, PHB, NODE or SYS."""

    first: int
    second: int
    path: str
    p2p: str  # "ok", why not, or "unknown"

    @property
    def nvlink(self) -> bool:
        return self.path.startswith("NV")


@dataclass(frozen=True)
class HostGpus:
    gpus: tuple[GpuFacts, ...] = ()  # whole ones
    pairs: tuple[PairFacts, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None  # the newest version that the driver can run
    problem: str | None = None  # why there are none
    instances: tuple[GpuFacts, ...] = ()  # MIG instances

    def visible(self, setting: str | None) -> tuple[GpuFacts, ...]:
        """Those that CUDA shows; `setting` is CUDA_VISIBLE_DEVICES."""
        return visible_gpus([*self.gpus, *self.instances], setting)
