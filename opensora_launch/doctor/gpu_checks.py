"""Findings on GPUs: memory, who else is there, errors, throttling, MIG, and the links between pairs. Pure."""

from collections.abc import Collection, Iterator, Sequence

from opensora_launch.doctor.host_checks import Needs
from opensora_launch.doctor.results import Finding, Level, free, gib, ok
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus, PairFacts

LOW_POWER = 0.85  # of the card's own limit: below it the clocks fall by more than a few percent
CHOSEN = ("locked clocks", "power cap")  # by somebody's will


def gpu_memory(gpus: Sequence[GpuFacts], needs: Needs, ours: Collection[int]) -> list[Finding]:
    """Free memory of each GPU against what the run needs, with who holds the rest. `ours` are our own processes."""
    return [free(finding, gpu.free_bytes or 0) for gpu in gpus for finding in _memory(gpu, needs, ours)]


def gpu_state(gpus: Sequence[GpuFacts]) -> list[Finding]:
    """Errors, heat, limits, MIG: one line a GPU that has something, and one for those that have nothing."""
    found = [finding for gpu in gpus for finding in _state(gpu)]
    touched = {finding.what.split(":")[0] for finding in found}
    whole = [gpu for gpu in gpus if _name(gpu) not in touched]
    if whole:
        found.append(ok("gpu", f"{_several(whole)}: no errors, not throttled, full power limit, MIG off"))
    return found


def links(host: HostGpus, visible: Collection[int]) -> list[Finding]:
    """One line for each kind of link among the GPUs that the run uses, and a warning where peers cannot talk."""
    kinds: dict[tuple[str, str], list[PairFacts]] = {}
    for pair in host.pairs:
        if {pair.first, pair.second} <= set(visible):
            kinds.setdefault((pair.path, pair.p2p), []).append(pair)
    return [_link(path, p2p, pairs) for (path, p2p), pairs in kinds.items()]


def _memory(gpu: GpuFacts, needs: Needs, ours: Collection[int]) -> Iterator[Finding]:
    if gpu.free_bytes is None or gpu.total_bytes is None:
        return
    others = [(pid, used) for pid, used in gpu.processes if pid not in ours]
    held = ", ".join(f"process {pid}" + (f" ({gib(used)})" if used else "") for pid, used in others)
    room = f"{_name(gpu)}: {gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free" + (f"; {held} on it" if held else "")
    fix = f"end it, or leave the GPU out: CUDA_VISIBLE_DEVICES without {gpu.index}"
    if gpu.free_bytes < needs.gpu_weight_bytes:
        what = f"{room}; the weights alone need {gib(needs.gpu_weight_bytes)}"
        yield Finding(
            Level.fail, "gpu memory", what, fix if held else "placement.offload=host, or more GPUs", "their work"
        )
    elif gpu.free_bytes < needs.gpu_bytes:
        what = f"{room}; the predicted peak is {gib(needs.gpu_bytes)}"
        yield Finding(
            Level.warn, "gpu memory", what, fix if held else "placement.offload=host, or a smaller video", "their work"
        )
    elif held:
        yield Finding(Level.warn, "gpu memory", f"{room}: the run shares its time", fix, "their work")
    else:
        yield ok("gpu memory", room)


def _state(gpu: GpuFacts) -> Iterator[Finding]:
    name = _name(gpu)
    if gpu.ecc_errors:
        yield Finding(
            Level.fail, "ecc", f"{name}: {gpu.ecc_errors} uncorrected memory errors since the driver was loaded: "
            "results may be wrong", f"leave GPU {gpu.index} out, then nvidia-smi -r -i {gpu.index}", "root, idle GPU",
        )  # fmt: skip
    if gpu.remap_pending:
        yield Finding(
            Level.warn, "ecc", f"{name}: a bad memory row waits to be replaced",
            f"nvidia-smi -r -i {gpu.index}, or a reboot", "root, idle GPU",
        )  # fmt: skip
    if gpu.throttled:
        hot = [reason for reason in gpu.throttled if reason not in CHOSEN]
        fix = "air, dust, fans, a free slot between cards" if hot else f"nvidia-smi -rgc -rmc -i {gpu.index}"
        yield Finding(Level.warn, "throttled", f"{name}: {', '.join(gpu.throttled)}: slower clocks", fix, "root")
    limit, own = gpu.power_limit_w, gpu.power_default_w
    if limit and own and limit < LOW_POWER * own:
        what = f"{name}: power limited to {limit:.0f} of {own:.0f} W"
        yield Finding(Level.warn, "power", what, f"nvidia-smi -pl {own:.0f} -i {gpu.index}", "root; watts")
    if gpu.mig:
        what = f"{name}: MIG is on: a rank gets an instance, not the card, and instances have no peer access"
        fix = f"nvidia-smi -mig 0 -i {gpu.index}, or one rank an instance"
        yield Finding(Level.warn, "mig", what, fix, "root, a reset")
    if gpu.pcie and gpu.pcie[2] < gpu.pcie[3]:
        what = f"{name}: {gpu.pcie[2]} PCIe lanes of {gpu.pcie[3]}: loading and exchange in proportion slower"
        yield Finding(Level.warn, "pcie", what, "another slot, or seat the card again", "a shutdown")


def _link(path: str, p2p: str, pairs: Sequence[PairFacts]) -> Finding:
    listed = ", ".join(f"{pair.first}-{pair.second}" for pair in pairs[:8]) + (" ..." if len(pairs) > 8 else "")
    what = f"GPUs {listed}: {path}, peer access {p2p}"
    if p2p == "ok":
        return ok("links", what)
    if p2p == "unknown":
        return Finding(Level.warn, "links", f"{what}: the driver does not say", "see the bandwidth lines", "no cost")
    why = "exchange goes through host memory; prefer ring and cfg to Ulysses, as layout=auto does"
    fix = "ACS and IOMMU off in the BIOS" if "turned off" not in p2p else "a driver that offers it"
    if "GPU not supported" in p2p:
        fix = "none: this kind of card has no peer access"
    return Finding(Level.warn, "links", f"{what}: {why}", fix, "root, a reboot")


def _name(gpu: GpuFacts) -> str:
    return f"GPU {gpu.index} ({gpu.name.removeprefix('NVIDIA ')})"


def _several(gpus: Sequence[GpuFacts]) -> str:
    names = {gpu.name.removeprefix("NVIDIA ") for gpu in gpus}
    return f"{len(gpus)} x {names.pop()}" if len(names) == 1 else ", ".join(_name(gpu) for gpu in gpus)
