"""Choose the kernel for attention over whole sequences on one device, among those of `kernels.py`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opensora_launch.errors import UserError, must_be_one_of
from opensora_launch.model import kernels
from opensora_launch.model.kernels import KernelCall
from opensora_launch.schema.config import AttentionKind

HALF = (torch.bfloat16, torch.float16)
LOADERS: dict[str, Callable[[], tuple[KernelCall, str]]] = {
    "flash4": kernels.load_flash4,
    "flash3": kernels.load_flash3,
    "flash2": kernels.load_flash2,
    "xformers": kernels.load_xformers,
}
IN_TORCH = {
    "cudnn": kernels.cudnn,
    "sdpa_flash": kernels.sdpa_flash,
    "sdpa_efficient": kernels.sdpa_efficient,
    "cpu_flash": kernels.cpu_flash,
    "reference": kernels.reference,
}
INSTALL_COMMANDS = {
    "flash4": "pip install --pre flash-attn-4",
    "flash3": "pip install fa3-fwd",
    "flash2": "pip install 'opensora-launch[flash]' --no-build-isolation",
    "xformers": "pip install 'opensora-launch[xformers]'",
}
# The order in which `auto` tries them, fastest first. sdpa_efficient serves fp32 and GPUs before Ampere; the reference
# serves what no other kernel takes, and holds a bounded part of the scores.
FASTEST = ("flash4", "flash3", "cudnn", "flash2", "sdpa_flash", "sdpa_efficient", "cpu_flash", "reference")


@dataclass(frozen=True)
class Kernel:
    """A kernel with the package it comes from. `passed_over` says why each faster kernel was not taken."""

    name: str
    version: str
    call: KernelCall
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelTarget:
    """What a kernel must be able to serve. `capability` is that of the GPU, (8, 0) for sm80; None means a CPU."""

    capability: tuple[int, int] | None
    dtype: torch.dtype
    head_dim: int


def choose_kernel(kind: str, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return the kernel called `kind`, or for "auto" the fastest that is installed and suits device, dtype and heads.

    Raises UserError if the requested kernel is unknown, does not suit, or is not installed (with the command to
    install it).
    """
    if problems := must_be_one_of("attention", kind, [k.value for k in AttentionKind]):
        raise UserError("this attention kernel cannot be used", problems)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    target = KernelTarget(capability, dtype, head_dim)
    return fastest_kernel(target) if kind == AttentionKind.auto else load_kernel(kind, target)


def fastest_kernel(target: KernelTarget) -> Kernel:
    """Return the first of FASTEST that suits the target and can be loaded."""
    passed_over: list[str] = []
    for name in FASTEST:
        if why_not(name, target, auto=True) is None:
            try:
                kernel = load_kernel(name, target)
            except UserError as error:
                passed_over.append(str(error))
                continue
            return Kernel(kernel.name, kernel.version, kernel.call, tuple(passed_over))
    raise AssertionError("the reference takes every target")


def load_kernel(name: str, target: KernelTarget) -> Kernel:
    """Load the kernel `name`. Raises UserError if it does not suit the target or its package cannot be imported."""
    if reason := why_not(name, target):
        raise UserError(f"attention={name} cannot be used: {reason}; use attention=auto")
    if name in IN_TORCH:
        return Kernel(name, f"torch {torch.__version__}", _taking_empty(IN_TORCH[name]))
    try:
        call, version = LOADERS[name]()
    except (ImportError, OSError, RuntimeError) as error:  # missing, or built for another torch or CUDA
        problem = f"attention={name} cannot be imported ({_one_line(error)}); {INSTALL_COMMANDS[name]}"
        raise UserError(problem) from error
    return Kernel(name, version, _taking_empty(call))


def why_not(name: str, target: KernelTarget, *, auto: bool = False) -> str | None:
    """Say why a kernel does not suit the target, or None if it does. `auto` also rules out where others are faster."""
    if name == "reference":
        return None
    if name == "cpu_flash":
        return None if target.capability is None else "it runs on CPUs"
    if target.capability is None:
        return "it needs a GPU"
    major, minor = target.capability
    this = f"this GPU is sm{major}{minor}"
    dtypes = (*HALF, torch.float32) if name in ("sdpa_efficient", "xformers") else HALF
    if target.dtype not in dtypes:
        return f"it computes in {', '.join(str(d).removeprefix('torch.') for d in dtypes)}, not {target.dtype}"
    if target.dtype == torch.bfloat16 and major < 8:
        return f"bf16 needs sm80 or newer, {this}"
    largest = 128 if name in ("cudnn", "flash4") else 256
    if name not in ("sdpa_efficient", "xformers") and target.head_dim > largest:
        return f"heads may have {largest} channels at most, and these have {target.head_dim}"
    if target.head_dim % 8:
        return f"heads must have a multiple of 8 channels, and these have {target.head_dim}"
    return _generation(name, major, this, auto)


def _generation(name: str, major: int, this: str, auto: bool) -> str | None:
    """Say why a kernel does not suit a generation of GPUs, or None if it does."""
    if name == "flash4" and (major < 9 or (auto and major not in (10, 11))):
        return f"it needs sm90 or newer and is the fastest from sm100 on, {this}"
    if name == "flash3" and major != 9:
        return f"it needs sm90, {this}"
    if name == "cudnn" and auto and major not in (9, 10):
        return f"it is torch's fastest kernel on sm90 and sm100 only, {this}"
    if name in ("cudnn", "flash2", "sdpa_flash") and major < 8:
        return f"it needs sm80 or newer, {this}"
    return None


def _taking_empty(call: KernelCall) -> KernelCall:
    """Let a kernel take inputs without queries, keys or heads: out is zero, lse is -inf: a merge of nothing."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if q.numel() == 0 or k.shape[1] == 0:
            lse = q.new_full((q.shape[0], q.shape[2], q.shape[1]), float("-inf"), dtype=kernels.lse_dtype(q.dtype))
            return torch.zeros_like(q, memory_format=torch.contiguous_format), lse
        out, lse = call(q, k, v)
        return out, lse.to(kernels.lse_dtype(q.dtype)).contiguous()

    return attend


def _one_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
