"""The tensor, and the methods of a tensor that do not reach operators in a torch that was built without CUDA."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.fake_cuda.ledger import LEDGER

NUMBERS: dict[Any, Callable[[Any], Any]] = {
    Tensor.__bool__: bool,
    Tensor.__float__: float,
    Tensor.__int__: int,
    Tensor.__index__: int,
    Tensor.item: Tensor.item,
    Tensor.tolist: Tensor.tolist,
}


class CudaTensor(Tensor):
    """Says that it is on CUDA. `host` is its memory: an ordinary tensor of the same shape, strides and dtype."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, device: torch.device) -> "CudaTensor":
        made: CudaTensor = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=device,
        )
        made.host = host
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({self.host!r}, device={self.device})"

    # With these two, torch exchanges a module's parameters in place when it moves it, as it does for real devices.
    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["host"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], device: torch.device, size: Any, stride: Any) -> "CudaTensor":
        return CudaTensor(inner["host"], device)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if found := METHODS.get(func):
            return found(*args, **(kwargs or {}))
        if func in NUMBERS:
            LEDGER.wait("read a number")
            return NUMBERS[func](args[0].host)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        from tests.fake_cuda.operators import compute

        return compute(func, args, kwargs or {})


def host_of(value: Any) -> Any:
    """Return the memory of a tensor on CUDA; anything else as it is."""
    return value.host if isinstance(value, CudaTensor) else value


def _refuse_numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
    raise TypeError(
        f"can't convert {tensor.device} device type tensor to numpy. "
        f"Use Tensor.cpu() to copy the tensor to host memory first."
    )


def _index_on_host(index: Any) -> Any:
    """Return an index of the host's memory. Lists and tensors of the CPU are copied to the GPU, which waits."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, list) or (isinstance(part, Tensor) and not isinstance(part, CudaTensor)):
            LEDGER.wait("index by numbers of the host")
        elif isinstance(part, CudaTensor) and part.dtype in (torch.bool, torch.uint8):
            LEDGER.wait("index by a mask")
    return tree_map(host_of, index)


def _get(tensor: Tensor, index: Any) -> Tensor:
    if not isinstance(tensor, CudaTensor):  # a tensor of the CPU indexed by one on CUDA
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    return CudaTensor(tensor.host[_index_on_host(index)], tensor.device)


def _set(tensor: Tensor, index: Any, value: Any) -> None:
    if not isinstance(tensor, CudaTensor):
        tensor[tree_map(_cpu, index)] = _cpu(value)
        return
    if isinstance(value, Tensor) and not isinstance(value, CudaTensor):
        LEDGER.wait("copy from the host")
    tensor.host[_index_on_host(index)] = host_of(value)


def _cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, CudaTensor) else value


def _set_data(tensor: Tensor, value: Tensor) -> None:
    if isinstance(tensor, CudaTensor) != isinstance(value, CudaTensor):
        raise RuntimeError(f"incompatible tensor type: data on {value.device} set in a tensor on {tensor.device}")
    with torch._C.DisableTorchFunctionSubclass():
        Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
    tensor.host = value.host  # type: ignore[attr-defined]


def _contiguous(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    made: Tensor = torch.ops.aten.clone.default(tensor, memory_format=memory_format)
    return made


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own choice on CUDA is one of its fused kernels, as on the CPU."""
    if not all(isinstance(x, CudaTensor) for x in tree_leaves((query, key, value, args, kwargs)) if _is_tensor(x)):
        raise RuntimeError("Expected query, key, and value to be on the same device")
    out = torch.nn.functional.scaled_dot_product_attention(
        query.host,  # type: ignore[attr-defined]
        key.host,  # type: ignore[attr-defined]
        value.host,  # type: ignore[attr-defined]
        *tree_map(host_of, args),
        **tree_map(host_of, kwargs),
    )
    return CudaTensor(out, query.device)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


METHODS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _get,
    Tensor.__setitem__: _set,
    Tensor.numpy: _refuse_numpy,
    Tensor.__array__: _refuse_numpy,
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    Tensor.contiguous: _contiguous,
    Tensor.copy_: lambda into, source, non_blocking=False: torch.ops.aten.copy_.default(into, source, non_blocking),
    Tensor.nonzero: torch.ops.aten.nonzero.default,
    Tensor.is_pinned: lambda tensor, device=None: False,
    Tensor.data_ptr: lambda tensor: tensor.host.data_ptr(),
    torch.nn.functional.scaled_dot_product_attention: _attention,
}
