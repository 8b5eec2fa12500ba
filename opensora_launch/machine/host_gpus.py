"""What is known of a host's GPUs before a run. `gpu_facts` asks the driver; this much needs no NVML."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFacts:
    index: int  # by PCI address, as nvidia-smi counts
    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    capability: tuple[int, int] | None  # (9, 0) is Hopper
    ecc: bool | None
    ecc_errors: int | None  # uncorrected, since boot
    remap_pending: bool | None  # a bad memory row waits for a reset
    throttled: tuple[str, ...]
    mig: bool
    processes: tuple[tuple[int, int | None], ...]  # (pid, bytes)
    power_limit_w: float | None
    power_default_w: float | None
    pcie: tuple[int, int, int, int] | None  # generation now and at most, lanes now and at most


@dataclass(frozen=True)
class PairFacts:
    """`path` is NV<links>, or what of the host's PCIe lies between: PIX, PXB, PHB, NODE, SYS."""

    first: int
    second: int
    path: str
    p2p: str  # "ok", why not, or "unknown"

    @property
    def nvlink(self) -> bool:
        return self.path.startswith("NV")


@dataclass(frozen=True)
class HostGpus:
    gpus: tuple[GpuFacts, ...]
    pairs: tuple[PairFacts, ...]
    driver: str | None
    cuda: tuple[int, int] | None  # the newest that the driver can run
    problem: str | None  # why there are none
