"""Compute an operator on the host's memory of its operands, after the checks that CUDA makes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.fake_cuda.ledger import LEDGER
from tests.fake_cuda.tensor import CudaTensor, host_of

CPU = torch.device("cpu")
# Operators that take operands on both devices: copies, and an index from the host.
BETWEEN_DEVICES = ("copy_", "_to_copy", "index", "index_put_", "lift_fresh", "set_")
# The host must know how many or which elements there are.
WAITS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero")
FLASH, CUDNN, EFFICIENT = (f"_scaled_dot_product_{name}_attention" for name in ("flash", "cudnn", "efficient"))
HALF = (torch.bfloat16, torch.float16)


def compute(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the results, on CUDA if an operand is there or if `device=` says so."""
    space, name = func._schema.name.split("::")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_cuda = [x for x in tensors if isinstance(x, CudaTensor)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if name == "device" and space == "prim":
        return args[0].device
    if space == "c10d":
        return _collective(func, name, args, kwargs, on_cuda)
    if not on_cuda and (asked is None or asked.type != "cuda") and not kwargs.get("pin_memory"):
        return func(*args, **kwargs)
    _refuse(func, name, tensors, on_cuda)
    _count(name, args, kwargs, asked)
    if name in (FLASH, CUDNN, EFFICIENT):
        return _attention(name, *args)
    if name == "_scaled_mm":
        return _scaled_product(*args)
    device = asked or on_cuda[0].device
    out = _on_host(func, name, args, dict(kwargs), asked)
    return wrapped(out, tensors, _indexed(device)) if device.type == "cuda" else out


def _indexed(device: torch.device) -> torch.device:
    return device if device.index is not None or device.type != "cuda" else torch.device("cuda", _current())


def _current() -> int:
    return int(torch.cuda.current_device())


def _on_host(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], asked: torch.device | None) -> Any:
    """Call the operator with the host's memory. A copy to another device is always a copy."""
    if kwargs.pop("pin_memory", None):
        LEDGER.pin(torch.Size(args[0]).numel() * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize)
    if asked is not None:
        kwargs["device"] = CPU if asked.type == "cuda" else asked
    args, kwargs = tree_map(host_of, args), tree_map(host_of, kwargs)
    out = func(*args, **kwargs)
    return out.clone() if name == "_to_copy" and out is args[0] else out


def wrapped(out: Any, operands: Sequence[Tensor], device: torch.device) -> Any:
    """Return results as tensors on CUDA; an operand that came back is that operand itself."""
    known = {id(host_of(x)): x for x in operands}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, CudaTensor):
            return value
        return known[id(value)] if id(value) in known else CudaTensor(value, device)

    return tree_map(wrap, out)


def _refuse(func: Any, name: str, tensors: Sequence[Tensor], on_cuda: Sequence[CudaTensor]) -> None:
    """Raise what CUDA raises: for operands on several devices, and for operators without a CUDA kernel."""
    if name.endswith("_for_cpu") or name.startswith("mkldnn"):
        raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend.")
    if torch.Tag.inplace_view in func.tags:
        raise AssertionError(f"{func} would leave the double with the old shape: teach it this operator")
    devices = {str(x.device) for x in on_cuda}
    if name not in BETWEEN_DEVICES:
        may_be_number = torch.Tag.pointwise in func.tags or "where" in name or "fill" in name
        devices |= {"cpu" for x in tensors if not isinstance(x, CudaTensor) and (x.dim() or not may_be_number)}
    if len(devices) > 1:
        found = " and ".join(sorted(devices, reverse=True))
        shapes = [tuple(x.shape) for x in tensors]
        problem = f"Expected all tensors to be on the same device, but found at least two devices, {found}!"
        raise RuntimeError(f"{problem} ({func} of {shapes})")


def _count(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], asked: torch.device | None) -> None:
    if name in WAITS:
        LEDGER.wait(name)
    elif name in ("index", "index_put_"):
        parts = [x for x in args[1] if x is not None]
        if any(not isinstance(x, CudaTensor) for x in parts):
            LEDGER.wait("index by numbers of the host")
        elif any(x.dtype == torch.bool for x in parts):
            LEDGER.wait("index by a mask")
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        LEDGER.wait(name)
    elif name == "copy_":
        into, source = args[:2]
        not_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        _count_copy(source, isinstance(into, CudaTensor), not_blocking)
    elif name == "_to_copy" and asked is not None:
        _count_copy(args[0], asked.type == "cuda", kwargs.get("non_blocking", False))


def _count_copy(source: Tensor, to_cuda: bool, not_blocking: bool) -> None:
    if isinstance(source, CudaTensor) == to_cuda:
        return
    if not not_blocking:
        LEDGER.wait("copy from the host" if to_cuda else "copy to the host")
    elif to_cuda and not LEDGER.is_registered(source.data_ptr()):
        LEDGER.wait("copy from memory that is not pinned")


def _attention(name: str, query: CudaTensor, key: CudaTensor, value: CudaTensor, *args: Any) -> tuple[Any, ...]:
    """Compute one of torch's attention kernels, with the limits and the shapes of results of the real ones."""
    LEDGER.kernels[name] += 1
    q, k, v = query.host, key.host, value.host
    assert q.dtype in HALF or (name == EFFICIENT and q.dtype == torch.float32), f"{name} does not take {q.dtype}"
    assert q.shape[-1] % 8 == 0, f"{name} does not take heads of {q.shape[-1]} channels"
    assert min(q.numel(), k.numel()) > 0, f"{name} does not take empty inputs"
    assert name != CUDNN or min(q.shape[2], k.shape[2]) > 1, "cuDNN does not take a single query or key"
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)

    def on_cuda(x: Tensor) -> CudaTensor:
        return CudaTensor(x, query.device)

    nothing = on_cuda(torch.zeros((), dtype=torch.int64))
    if name == EFFICIENT:
        padded = torch.full((*lse.shape[:2], -(-lse.shape[2] // 32) * 32), float("inf"))
        padded[..., : lse.shape[2]] = lse
        return on_cuda(out), on_cuda(padded), nothing, nothing
    lengths = (None, None, q.shape[2], k.shape[2])
    if name == CUDNN:
        return on_cuda(out), on_cuda(lse[..., None]), *lengths, nothing, nothing, None
    return on_cuda(out), on_cuda(lse), *lengths, nothing, nothing, nothing


def _scaled_product(
    a: CudaTensor, b: CudaTensor, scale_a: CudaTensor, scale_b: CudaTensor, bias: CudaTensor | None, *how: Any
) -> CudaTensor:
    """Multiply rows and columns in fp8, under CUDA's conditions. It adds up first and then multiplies by the scales."""
    (rows, inner), columns = a.shape, b.shape[1]
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert a.is_contiguous()
    assert b.t().is_contiguous(), "columns must lie one after another"
    assert (scale_a.shape, scale_b.shape) == ((rows, 1), (1, columns))
    assert scale_a.dtype == scale_b.dtype == torch.float32
    assert scale_a.is_contiguous()
    assert scale_b.is_contiguous()
    assert inner % 16 == columns % 16 == 0
    assert how == (None, torch.bfloat16, True), "scales of rows come with bf16 results and fast sums"
    LEDGER.kernels["_scaled_mm"] += 1
    out = (a.host.float() @ b.host.float()) * scale_a.host * scale_b.host
    return CudaTensor((out if bias is None else out + bias.host).bfloat16(), a.device)


def _collective(
    func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], on_cuda: Sequence[CudaTensor]
) -> Any:
    """Run a collective of tensors on CUDA by gloo, under NCCL's conditions. It does not make the host wait."""
    if on_cuda:
        LEDGER.collectives[name] += 1
        if any(not x.is_contiguous() for x in on_cuda):
            raise ValueError(f"NCCL: tensors must be contiguous ({name})")
    out = func(*tree_map(host_of, args), **tree_map(host_of, dict(kwargs)))
    return wrapped(out, on_cuda, on_cuda[0].device) if on_cuda else out
