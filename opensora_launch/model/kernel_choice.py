"""Choose the kernel for attention over whole sequences on one device, among those of `kernels.py`.

A kernel that can be imported may still fail when it runs, or compute something else: it was built for other hardware or
another torch, or needs a compiler. So each is tried on a small input before it is chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opensora_launch.errors import UserError, must_be_one_of
from opensora_launch.model import kernels
from opensora_launch.model.kernels import KernelCall
from opensora_launch.schema.kernel_kinds import AttentionKind

HALF = (torch.bfloat16, torch.float16)
LOADERS: dict[str, Callable[[], tuple[KernelCall, str]]] = {
    "flash4": kernels.load_flash4,
    "flash3": kernels.load_flash3,
    "flash2": kernels.load_flash2,
    "xformers": kernels.load_xformers,
    "sage2": kernels.load_sage2,
    "flash3_fp8": kernels.load_flash3_fp8,
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
    "sage2": "pip install --no-build-isolation git+https://github.com/thu-ml/SageAttention",  # PyPI has version 1 only
    "flash3_fp8": "pip install fa3-fwd",
}
# The order in which `auto` tries them, fastest first. sdpa_efficient serves fp32 and GPUs before Ampere; the reference
# serves what no other kernel takes, and holds a bounded part of the scores. None of them is approximate.
FASTEST = ("flash4", "flash3", "cudnn", "flash2", "sdpa_flash", "sdpa_efficient", "cpu_flash", "reference")
SAGE2_GPUS = ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0))  # `sageattn` of SageAttention 2.2.0 refuses others

# Queries, keys and heads of the trial: more than a tile of any kernel and no multiple of one, as in a ring.
TRIAL = (300, 170, 2)
TOLERANCE = 1e-2  # of 16 bits, and of fp32 multiplied as TF32
# Of the result and of the lse in 8 bits: twice the largest error of plain code that rounds to the same types, which a
# test computes. FlashAttention-3's test allows twice too (hopper/test_flash_attn.py); SageAttention has no such test.
EIGHT_BITS = {"sage2": (0.12, 0.03), "flash3_fp8": (0.2, 0.1)}


@dataclass(frozen=True)
class Kernel:
    """A kernel with the package it comes from.

    `passed_over` says why each faster kernel was not taken; `refused` are those lines of it that are about a kernel
    that is installed.
    """

    name: str
    version: str
    call: KernelCall
    passed_over: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelTarget:
    """What a kernel must be able to serve. `capability` is that of the GPU, (8, 0) for sm80; None means a CPU."""

    capability: tuple[int, int] | None
    dtype: torch.dtype
    head_dim: int


Offer = tuple[str, str]  # the name of the kernel that a rank would take, and why it can take none


def choose_kernel(
    kind: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    agree: Callable[[Offer], Sequence[Offer]] = lambda mine: [mine],
) -> Kernel:
    """Return the kernel called `kind`, or for "auto" the fastest that is installed, suits and works on all ranks.

    `agree` returns the offers of all ranks in their order, and all ranks call this together. Raises UserError on all of
    them if the requested kernel is unknown, or on any of them does not suit, is not installed (with the command to
    install it) or does not work.
    """
    if problems := must_be_one_of("attention", kind, [k.value for k in AttentionKind]):
        raise UserError("this attention kernel cannot be used", problems)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    target = KernelTarget(capability, dtype, head_dim)
    names: tuple[str, ...] = FASTEST if kind == AttentionKind.auto else (kind,)
    passed_over, refused = list[str](), list[str]()
    while True:
        kernel, problem = None, ""
        try:
            kernel = fastest_kernel(names, target, device)
        except UserError as error:
            problem = str(error)
        offers = agree((kernel.name if kernel else "", problem))
        for rank, (_, why) in enumerate(offers):
            if why:
                raise UserError(why if len(offers) == 1 else f"rank {rank}: {why}")
        assert kernel
        passed_over += kernel.passed_over
        refused += kernel.refused
        if len({name for name, _ in offers}) == 1:
            return Kernel(kernel.name, kernel.version, kernel.call, tuple(passed_over), tuple(refused))
        slowest = max((name for name, _ in offers), key=FASTEST.index)
        if kernel.name != slowest:
            rank = [name for name, _ in offers].index(slowest)
            passed_over.append(f"attention={kernel.name} works here, but rank {rank} takes {slowest}")
        names = FASTEST[FASTEST.index(slowest) :]


def fastest_kernel(names: Sequence[str], target: KernelTarget, device: torch.device) -> Kernel:
    """Return the first of several kernels that suits, can be loaded and passes its trial; the only one must.

    Raises UserError if the only one does not.
    """
    passed_over, refused = list[str](), list[str]()
    for name in names:
        alone = len(names) == 1
        if not alone and why_not(name, target, auto=True) is not None:
            continue
        try:
            kernel = load_kernel(name, target)
        except UserError as error:
            if alone:
                raise
            passed_over.append(str(error))
            continue
        problem = None if name == "reference" else try_kernel(kernel, target, device)
        if problem is None:
            return Kernel(kernel.name, kernel.version, kernel.call, tuple(passed_over), tuple(refused))
        line = f"attention={name} ({kernel.version}) does not work here: {problem}"
        if alone:
            raise UserError(f"{line}; use attention=auto")
        passed_over.append(line)
        refused.append(line)
    raise AssertionError("the reference takes every target")


@torch.no_grad()
def try_kernel(kernel: Kernel, target: KernelTarget, device: torch.device) -> str | None:
    """Compare a kernel with the reference on a small input, lse included. Returns what is wrong, or None."""
    queries, keys, heads = TRIAL
    numbers = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, length, heads, target.head_dim, generator=numbers, dtype=torch.float64).to(device, target.dtype)
        for length in (queries, keys, keys)
    )
    want, want_lse = kernels.reference(q, k, v)
    try:
        out, lse = kernel.call(q, k, v)
        if (out.shape, lse.shape) != (want.shape, want_lse.shape):
            return f"its results have the shapes {tuple(out.shape)} and {tuple(lse.shape)}"
        wrong = float((out.double() - want.double()).abs().max())  # waits for the GPU, so its errors show here
        wrong_lse = float((lse.double() - want_lse.double()).abs().max())
    except Exception as error:  # noqa: BLE001 compilers and libraries raise errors of any class
        return f"{type(error).__name__}: {_one_line(error)}"
    bound = 1e-9 if target.dtype == torch.float64 else TOLERANCE
    most, most_lse = EIGHT_BITS.get(kernel.name, (bound, bound))
    if not (wrong <= most and wrong_lse <= most_lse):  # NaN is wrong too
        return f"its results differ from the reference by {wrong:.1g}, and their lse by {wrong_lse:.1g}"
    return None


def try_all(device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[str, str]:
    """Try every kernel that suits the device and can be loaded. Returns what is wrong with each, or ""."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    target, found = KernelTarget(capability, dtype, head_dim), dict[str, str]()
    for name in (*LOADERS, *IN_TORCH):
        if name == "reference" or why_not(name, target) is not None:
            continue
        try:
            kernel = load_kernel(name, target)
        except UserError:
            continue
        found[name] = try_kernel(kernel, target, device) or ""
    return found


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
    largest = 128 if name in ("cudnn", "flash4", "sage2") else 256
    if name not in ("sdpa_efficient", "xformers") and target.head_dim > largest:
        return f"heads may have {largest} channels at most, and these have {target.head_dim}"
    multiple = 16 if name == "flash3_fp8" else 8
    if target.head_dim % multiple:
        return f"heads must have a multiple of {multiple} channels, and these have {target.head_dim}"
    if name == "sage2" and target.capability not in SAGE2_GPUS:
        return f"it needs {', '.join(f'sm{a}{b}' for a, b in SAGE2_GPUS)}, {this}"
    return _generation(name, major, this, auto)


def _generation(name: str, major: int, this: str, auto: bool) -> str | None:
    """Say why a kernel does not suit a generation of GPUs, or None if it does."""
    if name == "flash4" and (major < 9 or (auto and major not in (10, 11))):
        return f"it needs sm90 or newer and is the fastest from sm100 on, {this}"
    if name in ("flash3", "flash3_fp8") and major != 9:
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
