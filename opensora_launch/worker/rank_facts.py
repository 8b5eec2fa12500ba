"""Facts about a rank for its telemetry and for the records of videos: versions, device, memory."""

import importlib.metadata
import os
import platform
import resource
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from opensora_launch import __version__
from opensora_launch.errors import UserError
from opensora_launch.model.kernel_choice import Kernel
from opensora_launch.plan.plan import Plan
from opensora_launch.schema.config import Engine
from opensora_launch.worker.rank import Rank


def telemetry_header(
    plan: Plan, me: Rank, device: torch.device, kernel: Kernel, started: tuple[float, float]
) -> dict[str, Any]:
    """Return the facts at the start of a rank's telemetry. started: monotonic and epoch seconds."""
    return {
        "rank": me.rank,
        "world": me.world,
        "local_rank": me.local_rank,
        "host": socket.gethostname(),
        "device_name": device_name(device),
        "threads": plan.threads_per_rank,
        "start_s": started[0],
        "start_epoch_s": started[1],
        "layouts": {str(rows): str(layout) for rows, layout in plan.layouts},
        "attention": kernel.name,
        "attention_refused": kernel.refused,
        "pid": os.getpid(),
        "device_uuid": device_uuid(device),
        "versions": versions(plan.engine),
    }


def record_facts(engine: Engine, device: torch.device, kernel: Kernel) -> dict[str, Any]:
    """Return the facts that every record of a finished video holds."""
    return {
        "engine": engine,
        "device": device_name(device),
        "attention": kernel.name,
        **({"attention_refused": kernel.refused} if kernel.refused else {}),
        "versions": versions(engine),
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions(engine: Engine) -> dict[str, str]:
    """Return the versions of Python, of packages, and of the libraries that torch was built with."""
    packages = ["opensora-launch", "torch", "transformers", "safetensors", "av", "hydra-core"]
    packages += ["colossalai"] if engine is Engine.colossalai else []
    found = {"python": platform.python_version(), **{p: _version(p) for p in packages}}
    found["opensora-launch"] = __version__  # of the code that runs, which need not be the installed one
    found["torch"] = torch.__version__  # with its build, such as 2.13.0+cu130; the package's metadata may lack that
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
        if dist.is_nccl_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_uuid(device: torch.device) -> str | None:
    """Return NVML's name of this GPU (MIG instances without "GPU-"); None for a CPU and before torch 2.4."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else (str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def refuse_shared_gpus(seen: Sequence[tuple[str, str | None]]) -> None:
    """Raise UserError if two ranks have one GPU. `seen` are (host, UUID of its GPU) of each rank, None for a CPU."""
    by_gpu: dict[tuple[str, str], list[int]] = {}
    for rank, (host, uuid) in enumerate(seen):
        if uuid is not None:
            by_gpu.setdefault((host, uuid), []).append(rank)
    if shared := [(ranks, host, uuid) for (host, uuid), ranks in by_gpu.items() if len(ranks) > 1]:
        each = "; ".join(f"ranks {', '.join(map(str, r))} on {host} have the same GPU, {it}" for r, host, it in shared)
        raise UserError(
            f"{each}: each rank needs a GPU or MIG instance of its own; start fewer ranks, or let CUDA_VISIBLE_DEVICES "
            f"name one for each rank of the node"
        )


def memory_left(device: torch.device) -> tuple[int, int] | None:
    """Return the bytes of the GPU that are free, and those that PyTorch does not manage; None for a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return free + reserved, total - free - reserved


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated memory of the GPU, or of this process for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
