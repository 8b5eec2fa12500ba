"""Facts about a host's GPUs before a run. These types need no NVML; `find_gpus` fills them in."""

from dataclasses import dataclass

from opensora_launch.machine.visible import visible_gpus

DIVIDED = "it is divided into MIG instances; name one of them in CUDA_VISIBLE_DEVICES"
HIDES_ALL = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that mean "none"; the last one is Slurm's


@dataclass(frozen=True)
class GpuFacts:
    """A GPU, or a MIG instance of one. None where the driver refuses a reading."""

    index: int  # by PCI address, as nvidia-smi counts; of an instance, its GPU's
    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    capability: tuple[int, int] | None  # (9, 0) is Hopper
    ecc_errors: int | None  # uncorrected, since boot
    remap_pending: bool | None  # a bad memory row will be replaced at the next reset
    throttled: tuple[str, ...] | None
    mig: bool  # divided into instances: nothing can be done on the whole
    processes: tuple[tuple[int, int | None], ...]  # (pid, bytes)
    power_limit_w: float | None
    power_default_w: float | None
    pcie: tuple[int, int, int, int] | None  # generation now and maximum, lanes now and maximum
    remap_failed: bool | None = None  # a bad memory row could not be replaced
    shares_memory: bool = False  # with the host: it has none of its own


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
class LostGpu:
    """A GPU that the driver counts and cannot reach. `why` says what to do; its UUID cannot be read."""

    index: int
    why: str
    uuid: str = ""


@dataclass(frozen=True)
class HostGpus:
    gpus: tuple[GpuFacts, ...] = ()  # whole ones
    pairs: tuple[PairFacts, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None  # the newest version that the driver can run
    problem: str | None = None  # why there are none
    instances: tuple[GpuFacts, ...] = ()  # MIG instances
    expected: bool = False  # NVML or /dev/nvidia* is here: a host without GPUs has neither
    lost: tuple[LostGpu, ...] = ()  # beside those that work

    def visible(self, setting: str | None) -> tuple[GpuFacts, ...]:
        """Those that CUDA shows; `setting` is CUDA_VISIBLE_DEVICES."""
        return tuple(gpu for gpu in self._shown(setting) if isinstance(gpu, GpuFacts))

    def visible_lost(self, setting: str | None) -> tuple[LostGpu, ...]:
        """Those that CUDA would show if they were not lost."""
        return tuple(gpu for gpu in self._shown(setting) if isinstance(gpu, LostGpu))

    def _shown(self, setting: str | None) -> tuple[GpuFacts | LostGpu, ...]:
        whole: list[GpuFacts | LostGpu] = [*self.gpus, *self.lost]
        return visible_gpus([*sorted(whole, key=lambda gpu: gpu.index), *self.instances], setting)


def no_gpus_problem(host: HostGpus, setting: str | None) -> str:
    """Why no GPU can be used where there should be one, in one line for all verbs; `setting` is CUDA_VISIBLE_DEVICES.

    It is "" if a GPU can be used, and where CPU ranks may follow unasked: there is no sign of a GPU, or `setting` hides
    all of them.
    """
    if (setting is not None and setting.strip() in HIDES_ALL) or host.visible(setting):
        return ""
    if lost := host.visible_lost(setting):
        why = "; ".join(f"GPU {gpu.index}: {gpu.why}" for gpu in lost)
    elif host.gpus:
        there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in [*host.gpus, *host.instances])
        why = f"CUDA_VISIBLE_DEVICES={setting} names none of those here: {there}"
    elif host.expected:
        why = str(host.problem)
    else:
        return ""
    return f"no GPU can be used: {why}; topology=cpu2 asks for CPU ranks"
