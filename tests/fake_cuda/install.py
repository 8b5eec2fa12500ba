"""Put the double into torch for the rest of this process. There is no way back: a test does it in another process."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fake_cuda.hardware import CudaRuntime, Event, Hardware, Stream, make_generator, use_stream
from tests.fake_cuda.ledger import LEDGER
from tests.fake_cuda.operators import compute

GIB = 2**30


class CudaMode(TorchDispatchMode):
    """Sees the operators that make tensors (`device="cuda"`), and those of the CPU's tensors."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {})


def install(env: Mapping[str, str] = os.environ) -> None:
    """Make torch see GPUs. FAKE_CUDA_FREE_GIB is their free memory, FAKE_CUDA_CAPABILITY such as 8.0 their kind."""
    assert not torch.cuda.is_available(), "this machine has a GPU, or the double is installed already"
    major, minor = map(int, env.get("FAKE_CUDA_CAPABILITY", "9.0").split("."))
    free = float(env.get("FAKE_CUDA_FREE_GIB", "70"))
    gpus = int(env.get("FAKE_CUDA_GPUS") or env.get("LOCAL_WORLD_SIZE") or 1)
    _install_hardware(Hardware(gpus, capability=(major, minor), free_bytes=int(free * GIB)))
    _install_factories()
    _install_groups()
    torch.set_grad_enabled(False)  # autograd asks for a real device
    CudaMode().__enter__()


def _install_hardware(gpus: Hardware) -> None:
    runtime = CudaRuntime()
    doubles: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: gpus.capability >= (8, 0),
        "device_count": lambda: gpus.count,
        "set_device": gpus.set_device,
        "current_device": lambda: gpus.current,
        "get_device_capability": lambda device=None: gpus.capability,
        "get_device_name": lambda device=None: gpus.properties(device).name,
        "get_device_properties": gpus.properties,
        "get_arch_list": lambda: ["sm_80", "sm_90"],
        "mem_get_info": lambda device=None: (gpus.free_bytes, gpus.total_bytes),
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": use_stream,
        "Event": Event,
        "Stream": Stream,
        "cudart": lambda: runtime,
        "empty_cache": lambda: None,
        "memory_stats": lambda device=None: dict.fromkeys(MEMORY_STATS, GIB),
        "reset_peak_memory_stats": lambda device=None: None,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
    } | dict.fromkeys(MEMORY, lambda device=None: GIB)
    for name, double in doubles.items():
        setattr(torch.cuda, name, double)
    torch.accelerator.empty_host_cache = LEDGER.empty_host_cache


MEMORY = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
MEMORY_STATS = [f"{kind}_bytes.all.{when}" for kind in ("allocated", "reserved") for when in ("current", "peak")]


def _install_factories() -> None:
    """Replace what makes tensors and generators without an operator that a mode could see."""
    make_tensor, make_gen = torch.tensor, torch.Generator

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        made = make_tensor(data, **options)
        if device is None or torch.device(device).type != "cuda":
            return made
        index = torch.device(device).index
        return made.to(torch.device("cuda", torch.cuda.current_device() if index is None else index))

    class Generator:
        def __new__(cls, device: Any = "cpu") -> Any:
            return make_generator(make_gen, device)

    torch.tensor = tensor  # type: ignore[assignment]
    torch.Generator = Generator  # type: ignore[misc]


def _install_groups() -> None:
    """Let gloo carry what NCCL would."""
    dist.is_nccl_available = lambda: True
    torch.cuda.nccl.version = lambda: (2, 27, 3)
    for name in ("init_process_group", "new_group"):
        setattr(dist, name, _by_gloo(getattr(dist, name)))
    dist.distributed_c10d.new_group = dist.new_group


def _by_gloo(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        args = tuple(x.replace("nccl", "gloo") if isinstance(x, str) else x for x in args)
        if isinstance(kwargs.get("backend"), str):
            kwargs["backend"] = kwargs["backend"].replace("nccl", "gloo")
        kwargs.pop("device_id", None)  # a group made at once on its device: NCCL only
        return make(*args, **kwargs)

    return made


def ledger() -> dict[str, Any]:
    return LEDGER.as_json()
