"""Check that driver, CUDA, torch, NCCL and attention kernels were built for each other and for the GPUs. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence

from opensora_launch.doctor.check_result import CheckResult, failure, ok, warning
from opensora_launch.doctor.torch_facts import TorchFacts, version_number
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus
from opensora_launch.schema.kernel_kinds import APPROXIMATE

# The oldest Linux driver per CUDA major version; minor versions are compatible (CUDA toolkit release notes).
LEAST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
LEAST_TORCH = (2, 6)
# Of 3D convolutions of 16-bit tensors that lie plainly in memory, large results are wrong (pytorch#163539).
WRONG_CUDNN = range(90800, 91500)
KERNEL_NEEDS = {"flash-attn 2": (8, 0), "flash-attn 3": (9, 0)}  # compute capability


def check_builds(host: HostGpus, torch: TorchFacts | None, why_not: str, *, wants_gpu: bool) -> list[CheckResult]:
    """Check that driver, torch, NCCL and kernels fit each other and the GPUs. `why_not`: why torch is None."""
    if torch is None:
        return [failure("torch", f"cannot be imported: {why_not}", "run scripts/bootstrap", "minutes, 1 GB")]
    found = [*_torch(host, torch, wants_gpu=wants_gpu), *(_driver(host, torch) if host.gpus else ())]
    if host.gpus and torch.cuda:
        found += [*_cards(host.gpus, torch), *_cudnn(torch), *_kernels(host.gpus, torch)]
    return found


def check_trials(problems: Mapping[str, str] | None, why_not: str) -> Iterator[CheckResult]:
    """Report how each attention kernel did when it ran on a GPU. `why_not`: why the trial gave no answer."""
    if problems is None:
        fix = "name a kernel that works: attention=sdpa_flash or attention=reference"
        yield warning("kernels", f"the trial of the attention kernels ended: {why_not}", fix, "no cost")
        return
    fine = [name for name, problem in problems.items() if not problem]
    if exact := [name for name in fine if name not in APPROXIMATE]:
        yield ok("kernels", f"{', '.join(exact)}: equal to the reference on this GPU")
    if rounded := [name for name in fine if name in APPROXIMATE]:
        yield ok("kernels", f"{', '.join(rounded)}: as close to the reference as 8 bits are; attention=auto takes none")
    for name, problem in problems.items():
        if problem:
            what = f"{name} fails on this GPU: {problem}; attention=auto does not use it"
            fix = "install a build for this torch and this GPU, or leave it"
            yield warning("kernels", what, fix, "slower attention without it")


def _torch(host: HostGpus, torch: TorchFacts, *, wants_gpu: bool) -> Iterator[CheckResult]:
    built = f"for CUDA {torch.cuda}" if torch.cuda else f"for ROCm {torch.hip}" if torch.hip else "for the CPU only"
    what = f"{torch.version}, built {built}" + (f", NCCL {torch.nccl}" if torch.nccl else "")
    if torch.number and torch.number < LEAST_TORCH:
        yield failure("torch", f"{what}: too old", "pip install 'torch>=2.6'", "minutes, 3 GB")
    elif host.gpus and wants_gpu and not torch.cuda:
        cuda = f"cu{host.cuda[0]}{host.cuda[1]}" if host.cuda else "cu126"
        what += f", but this host has {len(host.gpus)} {'GPU' if len(host.gpus) == 1 else 'GPUs'}"
        fix = f"install torch from the index of a CUDA build that the driver can run (up to {cuda})"
        yield failure("torch", what, fix, "minutes, 3 GB")
    elif host.gpus and wants_gpu and not torch.available:
        what += f"; it sees no GPU, but the driver shows {len(host.gpus)}"
        fix = "check CUDA_VISIBLE_DEVICES and the driver line below, or use docker run --gpus all"
        yield failure("torch", what, fix, "nothing, or a reboot")
    else:
        yield ok("torch", what)


def _driver(host: HostGpus, torch: TorchFacts) -> Iterator[CheckResult]:
    runs = f"{host.cuda[0]}.{host.cuda[1]}" if host.cuda else "unknown"
    what = f"{host.driver}, runs CUDA up to {runs}"
    cuda = version_number(torch.cuda or "")
    driver = version_number(host.driver or "")
    least = LEAST_DRIVER.get(cuda[0]) if cuda else None
    if cuda and driver and least and driver < least:
        what += f"; torch's CUDA {torch.cuda} needs {least[0]}.{least[1]} or newer"
        fix = f"install a newer driver, or torch for CUDA {runs}"
        yield failure("driver", what, fix, "root and a reboot, or 3 GB")
    elif cuda and host.cuda and cuda > host.cuda:
        what += f"; torch is built for CUDA {torch.cuda}: it works, but kernels compiled at run time (PTX) may not"
        yield warning("driver", what, "install a newer driver", "root and a reboot")
    else:
        yield ok("driver", what)


def _cards(gpus: Sequence[GpuFacts], torch: TorchFacts) -> Iterator[CheckResult]:
    """Check that torch has code for each card: its own, an older minor version's, or PTX that can be compiled."""
    for name, capability in dict.fromkeys((gpu.name, gpu.capability) for gpu in gpus):
        if capability is None or not torch.archs or _runs(capability, torch.archs):
            continue
        code = f"sm_{capability[0]}{capability[1]}"
        what = f"{torch.version} has no code for {name} ({code}); it has {', '.join(torch.archs)}"
        fix = "install a torch build for this card: a newer one for new cards, an older CUDA for old ones"
        yield failure("torch", what, fix, "minutes, 3 GB")


def _runs(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    found = re.findall(r"\b(sm|compute)_(\d+)[af]*\b", " ".join(archs))
    built = [(kind, divmod(int(digits), 10)) for kind, digits in found]
    return any(code <= capability and (kind == "compute" or code[0] == capability[0]) for kind, code in built)


def _cudnn(torch: TorchFacts) -> Iterator[CheckResult]:
    """Name the versions that torch 2.9 and newer refuses for such tensors, with 17 times the memory (pytorch#166643).

    fp32 as TF32 is wrong too, and torch 2.9.1 and newer turns that off (pytorch#167024).
    """
    if torch.cudnn is None or torch.cuda is None:
        return
    version = f"{torch.cudnn // 10000}.{torch.cudnn // 100 % 100}.{torch.cudnn % 100}"
    if torch.cudnn not in WRONG_CUDNN:
        yield ok("cudnn", version)
        return
    what = (
        f"{version} with torch {torch.version}: large 3D convolutions of 16-bit tensors are wrong, or take 17 times "
        "the memory, unless their channels lie last, as the VAE's do; fp32 is wrong with numerics.tf32=true"
    )
    fix = f"pip install 'nvidia-cudnn-cu{torch.cuda.partition('.')[0]}>=9.15', after torch"
    yield warning("cudnn", what, fix, "minutes, 0.4 GB")


def _kernels(gpus: Sequence[GpuFacts], torch: TorchFacts) -> Iterator[CheckResult]:
    oldest = min((gpu.capability for gpu in gpus if gpu.capability), default=None)
    for name, problem in torch.kernels.items():
        needs = KERNEL_NEEDS.get(name)
        if problem:
            what = f"{name} is installed but cannot be loaded: {problem}; it was built for another torch"
            fix = f"pip install --no-build-isolation --force-reinstall --no-deps {name.split()[0]}"
            yield warning("kernels", what, fix, "a build of 5 to 60 minutes; SDPA is used without it")
        elif needs and oldest and oldest < needs:
            here = f"the oldest card here has {oldest[0]}.{oldest[1]}"
            what = f"{name} needs compute capability {needs[0]}.{needs[1]}, but {here}"
            yield warning("kernels", what, "use attention=auto, which does not use it", "no cost")
        else:
            yield ok("kernels", f"{name} loads")
    if not torch.kernels:
        yield ok("kernels", "no flash-attn; attention uses torch's own kernels")
