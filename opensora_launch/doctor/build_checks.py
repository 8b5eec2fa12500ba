"""Findings on what was built for what: driver, CUDA, torch, NCCL, attention kernels, and the GPUs themselves. Pure."""

from collections.abc import Iterator, Sequence

from opensora_launch.doctor.results import Finding, Level, ok
from opensora_launch.doctor.torch_facts import TorchFacts, version_number
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus

# The oldest Linux driver for each CUDA major version, whose minor versions are compatible (CUDA toolkit release notes).
LEAST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
LEAST_TORCH = (2, 6)
KERNEL_NEEDS = {"flash-attn 2": (8, 0), "flash-attn 3": (9, 0)}  # compute capability


def builds(host: HostGpus, torch: TorchFacts | None, why_not: str, *, wants_gpu: bool) -> list[Finding]:
    """Whether driver, torch, NCCL and kernels fit one another and the cards."""
    if torch is None:
        return [Finding(Level.fail, "torch", f"cannot be imported: {why_not}", "scripts/bootstrap", "minutes, 1 GB")]
    found = [*_torch(host, torch, wants_gpu=wants_gpu)]
    if not host.gpus:
        return found
    found += _driver(host, torch)
    if torch.cuda:
        found += _cards(host.gpus, torch)
        found += _kernels(host.gpus, torch)
    return found


def _torch(host: HostGpus, torch: TorchFacts, *, wants_gpu: bool) -> Iterator[Finding]:
    built = f"for CUDA {torch.cuda}" if torch.cuda else f"for ROCm {torch.hip}" if torch.hip else "for the CPU only"
    what = f"{torch.version}, built {built}" + (f", NCCL {torch.nccl}" if torch.nccl else "")
    if torch.number and torch.number < LEAST_TORCH:
        yield Finding(Level.fail, "torch", f"{what}: too old", "pip install 'torch>=2.6'", "minutes, 3 GB")
    elif host.gpus and wants_gpu and not torch.cuda:
        cuda = f"cu{host.cuda[0]}{host.cuda[1]}" if host.cuda else "cu126"
        yield Finding(
            Level.fail,
            "torch",
            f"{what}, and there are {len(host.gpus)} GPUs",
            f"pip install torch from the index of a CUDA build that the driver runs (up to {cuda})",
            "minutes, 3 GB",
        )
    elif host.gpus and wants_gpu and not torch.available:
        yield Finding(
            Level.fail,
            "torch",
            f"{what}; it sees no GPU though the driver shows {len(host.gpus)}",
            "CUDA_VISIBLE_DEVICES, the driver line below, or docker run --gpus all",
            "no cost to a reboot",
        )
    else:
        yield ok("torch", what)


def _driver(host: HostGpus, torch: TorchFacts) -> Iterator[Finding]:
    runs = f"{host.cuda[0]}.{host.cuda[1]}" if host.cuda else "unknown"
    what = f"{host.driver}, runs CUDA up to {runs}"
    cuda = version_number(torch.cuda or "")
    driver = version_number(host.driver or "")
    least = LEAST_DRIVER.get(cuda[0]) if cuda else None
    if cuda and driver and least and driver < least:
        yield Finding(
            Level.fail,
            "driver",
            f"{what}; torch's CUDA {torch.cuda} needs {least[0]}.{least[1]} or newer",
            f"a newer driver, or a torch for CUDA {runs}",
            "root and a reboot, or 3 GB",
        )
    elif cuda and host.cuda and cuda > host.cuda:
        yield Finding(
            Level.warn,
            "driver",
            f"{what}; torch is built for CUDA {torch.cuda}: it runs, but kernels compiled at run time (PTX) may not",
            "a newer driver",
            "root and a reboot",
        )
    else:
        yield ok("driver", what)


def _cards(gpus: Sequence[GpuFacts], torch: TorchFacts) -> Iterator[Finding]:
    """Whether torch holds code for each card: its own, of an older minor version, or PTX that can be compiled."""
    for name, capability in dict.fromkeys((gpu.name, gpu.capability) for gpu in gpus):
        if capability is None or not torch.archs or _runs(capability, torch.archs):
            continue
        code = f"sm_{capability[0]}{capability[1]}"
        yield Finding(
            Level.fail,
            "torch",
            f"{torch.version} has no code for {name} ({code}); it has {', '.join(torch.archs)}",
            "a torch build for that card: newer for new cards, an older CUDA for old ones",
            "minutes, 3 GB",
        )


def _runs(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    for arch in archs:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        built = divmod(int(digits), 10)
        if (kind == "sm" and built[0] == capability[0] and built <= capability) or (
            kind == "compute" and built <= capability
        ):
            return True
    return False


def _kernels(gpus: Sequence[GpuFacts], torch: TorchFacts) -> Iterator[Finding]:
    oldest = min((gpu.capability for gpu in gpus if gpu.capability), default=None)
    for name, problem in torch.kernels:
        needs = KERNEL_NEEDS.get(name)
        if problem:
            yield Finding(
                Level.warn,
                "kernels",
                f"{name} is installed and cannot be loaded: {problem}; it was built for another torch",
                f"pip install --no-build-isolation --force-reinstall --no-deps {name.split()[0]}",
                "a build of 5 to 60 minutes; without it SDPA is used",
            )
        elif needs and oldest and oldest < needs:
            yield Finding(
                Level.warn,
                "kernels",
                f"{name} needs compute capability {needs[0]}.{needs[1]} and the oldest card here has "
                f"{oldest[0]}.{oldest[1]}",
                "attention=auto, which leaves it out",
                "no cost",
            )
        else:
            yield ok("kernels", f"{name} loads")
    if not torch.kernels:
        yield ok("kernels", "no flash-attn: attention runs on torch's own kernels")
