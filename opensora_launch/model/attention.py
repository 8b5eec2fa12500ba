"""Attention over whole sequences on one device: the choice among the kernels of `kernels.py`.

Every kernel is a function (q, k, v) -> (out, lse) with q, k, v of shape B S N D. `lse` is the log-sum-exp of
each query's scores, which partial results of a ring are merged by.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opensora_launch.errors import UserError, must_be_one_of
from opensora_launch.model import kernels
from opensora_launch.model.kernels import AttendLse
from opensora_launch.schema.config import AttentionKind

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v, each B S N D -> B S N D

HALF = (torch.bfloat16, torch.float16)
LOADERS: dict[str, Callable[[], tuple[AttendLse, str]]] = {
    "flash4": kernels.load_flash4,
    "flash3": kernels.load_flash3,
    "flash2": kernels.load_flash2,
    "xformers": kernels.load_xformers,
}
OWN = {
    "cudnn": kernels.cudnn,
    "sdpa_flash": kernels.sdpa_flash,
    "sdpa_efficient": kernels.sdpa_efficient,
    "cpu_flash": kernels.cpu_flash,
    "reference": kernels.reference,
}
INSTALL = {
    "flash4": "pip install --pre flash-attn-4",
    "flash3": "pip install fa3-fwd",
    "flash2": "pip install 'opensora-launch[flash]' --no-build-isolation",
    "xformers": "pip install 'opensora-launch[xformers]'",
}
# What `auto` tries, fastest first. sdpa_efficient is for fp32 and for GPUs before Ampere; the reference is for what
# no kernel takes, and holds a bounded part of the scores.
FASTEST = ("flash4", "flash3", "cudnn", "flash2", "sdpa_flash", "sdpa_efficient", "cpu_flash", "reference")


@dataclass(frozen=True)
class Kernel:
    """A kernel and where it comes from. `passed_over` says why each faster one was not taken."""

    name: str
    version: str
    call: AttendLse
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """What a kernel must be able to do. `capability` is the GPU's, (8, 0) for sm80; None is a CPU."""

    capability: tuple[int, int] | None
    dtype: torch.dtype
    head_dim: int


def attend_alone(
    q: Float[Tensor, "B S N D"], k: Float[Tensor, "B K N D"], v: Float[Tensor, "B K N D"]
) -> Float[Tensor, "B S N D"]:
    """Attention by torch's own choice of kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def choose_attention(kind: str, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The kernel called `kind`, or with "auto" the fastest that is installed and fits device, dtype and head size.

    UserError if a kernel that was asked for does not fit, or is not installed: then with the command to install it.
    """
    if problems := must_be_one_of("attention", kind, [k.value for k in AttentionKind]):
        raise UserError("this attention kernel cannot be used", problems)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    target = Target(capability, dtype, head_dim)
    return fastest(target) if kind == AttentionKind.auto else load(kind, target)


def fastest(target: Target) -> Kernel:
    """The first of FASTEST that loads. The fastest ones are for one generation of GPUs only."""
    passed_over: list[str] = []
    for name in FASTEST:
        if why_not(name, target, auto=True) is None:
            try:
                kernel = load(name, target)
            except UserError as error:
                passed_over.append(str(error))
                continue
            return Kernel(kernel.name, kernel.version, kernel.call, tuple(passed_over))
    raise AssertionError("the reference takes every target")


def load(name: str, target: Target) -> Kernel:
    """The kernel `name`; UserError if it does not fit the target or its package cannot be imported."""
    if reason := why_not(name, target):
        raise UserError(f"attention={name} cannot be used: {reason}; use attention=auto")
    if name in OWN:
        return Kernel(name, f"torch {torch.__version__}", with_empty(OWN[name]))
    try:
        call, version = LOADERS[name]()
    except (ImportError, OSError, RuntimeError) as error:  # missing, or built for another torch or CUDA
        raise UserError(f"attention={name} cannot be imported ({one_line(error)}); {INSTALL[name]}") from error
    return Kernel(name, version, with_empty(call))


def why_not(name: str, target: Target, *, auto: bool = False) -> str | None:
    """Why the target does not suit a kernel, or None. `auto` also leaves out GPUs where others are faster."""
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
        return f"heads may have {largest} channels at most, these have {target.head_dim}"
    if target.head_dim % 8:
        return f"heads must have a multiple of 8 channels, these have {target.head_dim}"
    return generation(name, major, this, auto)


def generation(name: str, major: int, this: str, auto: bool) -> str | None:
    """Why a kernel does not suit a generation of GPUs, or None."""
    if name == "flash4" and (major < 9 or (auto and major not in (10, 11))):
        return f"it needs sm90 or newer and is the fastest from sm100 on, {this}"
    if name == "flash3" and major != 9:
        return f"it needs sm90, {this}"
    if name == "cudnn" and auto and major not in (9, 10):
        return f"it is the fastest of torch's own on sm90 and sm100 only, {this}"
    if name in ("cudnn", "flash2", "sdpa_flash") and major < 8:
        return f"it needs sm80 or newer, {this}"
    return None


def with_empty(call: AttendLse) -> AttendLse:
    """No queries, keys or heads at all: out is zero and lse is -inf, as a merge of nothing must be."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if q.numel() == 0 or k.shape[1] == 0:
            lse = q.new_full((q.shape[0], q.shape[2], q.shape[1]), float("-inf"), dtype=kernels.lse_dtype(q.dtype))
            return torch.zeros_like(q, memory_format=torch.contiguous_format), lse
        out, lse = call(q, k, v)
        return out, lse.to(kernels.lse_dtype(q.dtype)).contiguous()

    return attend


def one_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
