"""The attention kernels. Each one maps (q, k, v) to (out, lse), over whole sequences on one device.

    q B S N D    k, v B K N D    out B S N D in q's dtype    lse B N S, fp32 (fp64 for fp64)

`lse` is the log-sum-exp of each query's scaled scores; a ring merges partial results over parts of the keys by it.
Only the `load_*` functions import packages that may be missing. A test holds the private operators of torch to their
schemas.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opensora_launch.schema.model_constants import FP8_LARGEST

KernelCall = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # q, k, v -> out, lse
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (each B S N D) -> out, which a block of the model calls
QKV = tuple[Tensor, Tensor, Tensor]  # each B S N D
Place = tuple[slice, slice]  # some rows, and some of their tokens

SCORES = 2**26  # elements of the score matrix that the reference holds at once: 256 MiB in fp32


@runtime_checkable
class BegunAttention(Protocol):
    """An attention whose q, k and v are written to `qkv`, one chunk of tokens after another."""

    @property
    def qkv(self) -> QKV:
        """Where they are written, until `finish`."""

    def written(self, place: Place) -> None:
        """Learn that the next chunk was written."""

    def finish(self) -> Tensor:
        """Return the result of all tokens, B S N D."""


@runtime_checkable
class SpanAttend(Protocol):
    """An `attend` that can begin before all of q, k and v are there."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...

    def begin(self, qkv: QKV, *, one_stream: bool) -> BegunAttention:
        """Begin. one_stream: the tokens are written as one sequence, and not the text's apart from the video's."""


@dataclass
class AttentionAtOnce:
    """See `BegunAttention`: of an `attend` that needs all of q, k and v."""

    attend: Attend
    qkv: QKV

    def written(self, place: Place) -> None:
        pass

    def finish(self) -> Tensor:
        return self.attend(*self.qkv)


def attend_alone(
    q: Float[Tensor, "B S N D"], k: Float[Tensor, "B K N D"], v: Float[Tensor, "B K N D"]
) -> Float[Tensor, "B S N D"]:
    """Attend with the kernel that torch chooses."""
    q, k, v = heads_first(q, k, v)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the log-sum-exp for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def heads_first(*tensors: Tensor) -> list[Tensor]:
    return [t.transpose(1, 2) for t in tensors]


def reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Compute softmax(q k^T / sqrt(D)) v in fp32 (fp64 for fp64), a slice of the queries at a time."""
    wide = lse_dtype(q.dtype)
    qh, kh, vh = (t.to(wide) for t in heads_first(q, k, v))
    batch, heads, length, dim = qh.shape
    queries = max(1, SCORES // (batch * heads * kh.shape[2]))
    out, lse = torch.empty_like(qh), torch.empty(batch, heads, length, dtype=wide, device=q.device)
    for start in range(0, length, queries):
        part = slice(start, start + queries)
        scores = (qh[:, :, part] * dim**-0.5) @ kh.mT
        lse[:, :, part] = scores.logsumexp(dim=-1)
        out[:, :, part] = scores.sub_(lse[:, :, part, None]).exp_() @ vh
    return out.transpose(1, 2).to(q.dtype), lse


def cpu_flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads_first(q, k, v))
    return out.transpose(1, 2), lse


def sdpa_flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(*heads_first(q, k, v))[:2]
    return out.transpose(1, 2), lse[:, :, : q.shape[1]]


def sdpa_efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Also take fp32, and GPUs before Ampere. torch pads the lse to a multiple of 32 queries."""
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(*heads_first(q, k, v), None, True)[:2]
    return out.transpose(1, 2), lse[:, :, : q.shape[1]]


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Call cuDNN, or the flash kernel for a single query or key, which cuDNN refuses."""
    if q.shape[1] == 1 or k.shape[1] == 1:
        return sdpa_flash(q, k, v)
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(*heads_first(q, k, v), None, True)[:2]
    return out.transpose(1, 2), lse.reshape(q.shape[0], q.shape[2], q.shape[1])  # some versions return B N S 1


def load_flash4() -> tuple[KernelCall, str]:
    flash = import_module("flash_attn.cute").flash_attn_func
    return lambda q, k, v: flash(q, k, v, return_lse=True)[:2], version_of("flash-attn-4", "flash-attn")


def flash3_function() -> tuple[Callable[..., Any], str]:
    """Return FlashAttention-3's function, which returns (out, lse): of the source build, or else of the wheel.

    The wheel computes forward only. Releases before 2025-10 always return the lse and have no `return_attn_probs`.
    """
    try:
        flash = import_module("flash_attn_interface").flash_attn_func
    except ImportError:
        flash = import_module("fa3_fwd_interface").flash_attn_func
    if "return_attn_probs" in inspect.signature(flash).parameters:
        flash = partial(flash, return_attn_probs=True)
    return flash, version_of("flash_attn_3", "fa3-fwd", "flash-attn")


def load_flash3() -> tuple[KernelCall, str]:
    flash, version = flash3_function()
    return lambda q, k, v: flash(q, k, v)[:2], version


def load_flash3_fp8() -> tuple[KernelCall, str]:
    """Load FlashAttention-3 for q, k and v in float8_e4m3fn. It returns bf16, and the lse of what it was given.

    Each `descale` is fp32, one per row of the batch and head of the keys: hopper/flash_api.cpp at 000090d, and
    fa3_fwd_interface.py of fa3-fwd 0.0.3. The lse is natural: Softmax::finalize in hopper/softmax.h at 2291ed1.
    """
    flash, version = flash3_function()

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        (q8, q_scale), (k8, k_scale), (v8, v_scale) = (heads_to_fp8(x) for x in (q, k, v))
        out, lse = flash(q8, k8, v8, q_descale=q_scale, k_descale=k_scale, v_descale=v_scale)[:2]
        return out.to(q.dtype), lse

    return call, version


def heads_to_fp8(x: Float[Tensor, "B S N D"]) -> tuple[Float[Tensor, "B S N D"], Float[Tensor, "B N"]]:
    """Round each head to float8_e4m3fn, divided by the least power of two that makes it fit, and return that too.

    Such a division rounds nothing. The powers are normal numbers of fp16 too.
    """
    largest = torch.linalg.vector_norm(x, float("inf"), dim=(1, 3)).float().clamp(min=FP8_LARGEST * 2**-14)
    scale = torch.exp2(torch.ceil(torch.log2(largest / FP8_LARGEST)))
    return (x / scale[:, None, :, None].to(x.dtype)).to(torch.float8_e4m3fn), scale


def load_flash2() -> tuple[KernelCall, str]:
    flash = import_module("flash_attn").flash_attn_func
    return lambda q, k, v: flash(q, k, v, return_attn_probs=True)[:2], version_of("flash-attn")


def load_sage2() -> tuple[KernelCall, str]:
    """Load SageAttention 2, which takes B S N D as "NHD". Read in core.py of 2.2.0, at bbe24d4 and 0116592.

    It subtracts the mean of the keys before it rounds them. From the lse in base 2 it makes the natural one, B N S, and
    adds q times the mean, which is a product of 16 bits: the only part of the lse that is not in fp32.
    """
    sage = import_module("sageattention")
    if not hasattr(sage, "sageattn_qk_int8_pv_fp16_cuda"):
        raise ImportError(f"{version_of('sageattention')} is not SageAttention 2")
    return lambda q, k, v: sage.sageattn(q, k, v, tensor_layout="NHD", return_lse=True), version_of("sageattention")


def load_xformers() -> tuple[KernelCall, str]:
    forward = import_module("xformers.ops").memory_efficient_attention_forward_requires_grad

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = forward(q, k, v)
        return out, lse[:, :, : q.shape[1]]  # some of its kernels pad the lse

    return call, version_of("xformers")


def version_of(*packages: str) -> str:
    """Return name and version of the first of these distributions that is installed."""
    for package in packages:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return "version unknown"
