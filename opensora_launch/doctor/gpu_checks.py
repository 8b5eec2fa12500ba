"""Check GPUs: memory, other processes, errors, throttling, MIG, and the links between pairs. Pure."""

from collections.abc import Collection, Iterator, Sequence

from opensora_launch.doctor.check_result import CheckResult, failure, ok, size_text, warning, with_free_bytes
from opensora_launch.doctor.host_checks import Needs
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus, PairFacts
from opensora_launch.machine.visible import MIG

LOW_POWER = 0.85  # of the card's default limit; below it clocks drop by more than a few percent
CHOSEN = ("locked clocks", "power cap")  # somebody set these


def check_gpu_memory(
    gpus: Sequence[GpuFacts], needs: Needs, ours: Collection[int], host_bytes: int | None = None
) -> list[CheckResult]:
    """Compare the free memory of each GPU with what the run needs. `ours` are our own processes.

    A GPU that shares the host's memory has what is free there: `host_bytes`.
    """
    found = []
    for gpu in gpus:
        free = host_bytes if gpu.shares_memory else gpu.free_bytes
        if free is not None:
            found += [with_free_bytes(one, free) for one in _memory(gpu, free, needs, ours, alone=len(gpus) == 1)]
    return found


def check_gpu_state(gpus: Sequence[GpuFacts]) -> list[CheckResult]:
    """Check errors, heat, limits and MIG: a line per problem, and one line for all GPUs without problems."""
    found = [result for gpu in gpus for result in _state(gpu)]
    touched = {result.what.split(":")[0] for result in found}
    alike: dict[str, list[GpuFacts]] = {}
    for gpu in gpus:
        if _name(gpu) not in touched:
            alike.setdefault(_healthy(gpu), []).append(gpu)
    return [*found, *(ok("gpu", f"{_several(group)}: {text}") for text, group in alike.items())]


def _healthy(gpu: GpuFacts) -> str:
    """What the sensors of a GPU without problems say, and which of them do not answer."""
    sensors = (
        ("no errors", "memory errors", gpu.ecc_errors is not None),
        ("not throttled", "throttling", gpu.throttled is not None),
        ("full power limit", "the power limit", gpu.power_limit_w is not None and gpu.power_default_w is not None),
    )
    said = [good for good, _, known in sensors if known]
    said += [] if gpu.uuid.startswith(MIG) else ["MIG off"]
    if silent := [name for _, name, known in sensors if not known]:
        said.append(f"the driver does not report {', '.join(silent)}")
    return ", ".join(said)


def check_links(host: HostGpus, visible: Collection[int]) -> list[CheckResult]:
    """One line per kind of link among the GPUs that the run uses, with a warning if they have no peer access."""
    kinds: dict[tuple[str, str], list[PairFacts]] = {}
    for pair in host.pairs:
        if {pair.first, pair.second} <= set(visible):
            kinds.setdefault((pair.path, pair.p2p), []).append(pair)
    return [_link(path, p2p, pairs) for (path, p2p), pairs in kinds.items()]


def _memory(gpu: GpuFacts, free: int, needs: Needs, ours: Collection[int], *, alone: bool) -> Iterator[CheckResult]:
    """`free` are bytes; `alone`: it is the only GPU, which nobody can exclude."""
    others = [(pid, used) for pid, used in gpu.processes if pid not in ours]
    held = ", ".join(f"process {pid}" + (f" ({size_text(used)})" if used else "") for pid, used in others)
    total = f" of {size_text(gpu.total_bytes)}" if gpu.total_bytes else ""
    shared = " of the host's memory, which it shares" if gpu.shares_memory else ""
    room = f"{_name(gpu)}: {size_text(free)}{total} free{shared}" + (f"; {held} on it" if held else "")
    fix = "end it" if alone else f"end it, or exclude the GPU: CUDA_VISIBLE_DEVICES without {gpu.index}"
    less = "use placement.storage=fp8" if gpu.shares_memory else "use placement.offload=host"
    if free < needs.gpu_weight_bytes:
        what = f"{room}; the weights alone need {size_text(needs.gpu_weight_bytes)}"
        yield failure("gpu memory", what, fix if held else f"{less}, or more GPUs", "that work stops")
    elif free < needs.gpu_bytes:
        what = f"{room}; the predicted peak is {size_text(needs.gpu_bytes)}"
        yield warning("gpu memory", what, fix if held else f"{less}, or a smaller video", "that work stops")
    elif held:
        yield warning("gpu memory", f"{room}; the run shares the GPU with it", fix, "that work stops")
    else:
        yield ok("gpu memory", room)


def _state(gpu: GpuFacts) -> Iterator[CheckResult]:
    name = _name(gpu)
    if gpu.ecc_errors:
        errors = f"{gpu.ecc_errors} uncorrected memory {'error' if gpu.ecc_errors == 1 else 'errors'}"
        what = f"{name}: {errors} since the driver was loaded; results may be wrong"
        fix = f"exclude GPU {gpu.index}, then nvidia-smi -r -i {gpu.index}"
        yield failure("ecc", what, fix, "root and an idle GPU")
    if gpu.remap_failed:
        what = f"{name}: a bad memory row could not be replaced; results may be wrong"
        yield failure("ecc", what, "replace the card (RMA); a reset does not mend it", "a new card")
    if gpu.remap_pending:
        what = f"{name}: a bad memory row is waiting to be replaced"
        yield warning("ecc", what, f"nvidia-smi -r -i {gpu.index}, or a reboot", "root and an idle GPU")
    if gpu.throttled:
        hot = [reason for reason in gpu.throttled if reason not in CHOSEN]
        fix = "check air flow, dust, fans, a free slot between cards" if hot else f"nvidia-smi -rgc -rmc -i {gpu.index}"
        yield warning("throttled", f"{name}: clocks are reduced ({', '.join(gpu.throttled)})", fix, "root")
    limit, own = gpu.power_limit_w, gpu.power_default_w
    if limit and own and limit < LOW_POWER * own:
        what = f"{name}: power is limited to {limit:.0f} of {own:.0f} W"
        yield warning("power", what, f"nvidia-smi -pl {own:.0f} -i {gpu.index}", "root; more power draw")
    if gpu.mig:
        what = f"{name}: MIG is on; a rank gets an instance, not the card, and instances have no peer access"
        fix = f"nvidia-smi -mig 0 -i {gpu.index}, or use one rank per instance"
        yield warning("mig", what, fix, "root and a reset")
    if gpu.pcie and gpu.pcie[2] < gpu.pcie[3]:
        what = f"{name}: {gpu.pcie[2]} of {gpu.pcie[3]} PCIe lanes; loading and exchange are slower in proportion"
        yield warning("pcie", what, "use another slot, or reseat the card", "a shutdown")


def _link(path: str, p2p: str, pairs: Sequence[PairFacts]) -> CheckResult:
    listed = ", ".join(f"{pair.first}-{pair.second}" for pair in pairs[:8]) + (" ..." if len(pairs) > 8 else "")
    what = f"GPUs {listed}: {path}, peer access {p2p}"
    if p2p == "ok":
        return ok("links", what)
    if p2p == "unknown":
        return warning("links", f"{what}; the driver does not report it", "see the bandwidth lines", "no cost")
    why = "data goes through host memory; prefer ring and cfg to Ulysses, as layout=auto does"
    fix = "disable ACS and IOMMU in the BIOS" if "turned off" not in p2p else "use a driver that offers it"
    if "GPU not supported" in p2p:
        fix = "none; this kind of card has no peer access"
    return warning("links", f"{what}; {why}", fix, "root and a reboot")


def _name(gpu: GpuFacts) -> str:
    return f"GPU {gpu.index} ({gpu.name.removeprefix('NVIDIA ')})"


def _several(gpus: Sequence[GpuFacts]) -> str:
    names = {gpu.name.removeprefix("NVIDIA ") for gpu in gpus}
    return f"{len(gpus)} x {names.pop()}" if len(names) == 1 else ", ".join(_name(gpu) for gpu in gpus)
