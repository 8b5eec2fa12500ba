"""What the installed torch is and sees. A short subprocess answers: the launcher itself never imports torch."""

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from opensora_launch.machine.processes import text_of

TIMEOUT_S = 60.0
# Prints one JSON line. A kernel library that was built for another torch fails when its own module is loaded.
ASK = """
import importlib, json, sys
import torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
found["available"] = torch.cuda.is_available()
found["archs"] = torch.cuda.get_arch_list() if found["available"] else []
try:
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if found["available"] else None
except (AttributeError, RuntimeError):
    found["nccl"] = None
found["cudnn"] = torch.backends.cudnn.version() if found["available"] else None
found["kernels"] = {}
for name, module in KERNELS.items():
    if importlib.util.find_spec(module.split(".")[0]):
        try:
            importlib.import_module(module)
            found["kernels"][name] = ""
        except Exception as error:
            found["kernels"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
sys.__stdout__.write(json.dumps(found))
"""
# Computes on the first GPU, in a process of its own, because a kernel may end it.
TRY = """
import json, sys
import torch
from opensora_launch.model.kernel_choice import try_all
dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
sys.__stdout__.write(json.dumps(try_all(torch.device("cuda"), dtype, 128)))
"""
TRY_TIMEOUT_S = 180.0  # some kernels are compiled when they first run
KERNELS = {"flash-attn 2": "flash_attn_2_cuda", "flash-attn 3": "flash_attn_3._C", "xformers": "xformers._C"}


@dataclass(frozen=True)
class TorchFacts:
    version: str
    cuda: str | None  # "12.8"; None for a build without CUDA
    hip: str | None
    available: bool
    archs: tuple[str, ...]  # sm_90, compute_90
    nccl: str | None
    kernels: Mapping[str, str]  # why a library cannot be loaded, or ""
    cudnn: int | None = None  # 92000 is 9.20.0

    @property
    def number(self) -> tuple[int, int] | None:
        return version_number(self.version)


def ask_torch(env: Mapping[str, str]) -> tuple[TorchFacts | None, str]:
    """The facts, or None and the reason. `env` is the ranks' environment, so that torch sees what they will see."""
    return _answer(f"import importlib.util\nKERNELS = {KERNELS!r}\n{ASK}", env, TIMEOUT_S, TorchFacts)


def ask_kernels(env: Mapping[str, str]) -> tuple[dict[str, str] | None, str]:
    """What is wrong with each attention kernel when it runs on the first GPU, or ""; or None and the reason."""
    return _answer(TRY, env, TRY_TIMEOUT_S, dict[str, str])


def _answer(code: str, env: Mapping[str, str], timeout_s: float, kind: Any) -> tuple[Any, str]:
    """Run a program and decode the line of JSON that it prints; or None and why there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=dict(env), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return None, f"it took more than {timeout_s:.0f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return None, last[0]
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=kind), ""


def installed_torch() -> tuple[int, int] | None:
    """The version of torch like (2, 13), read from the package's metadata without importing it."""
    try:
        return version_number(importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_build(folder: Path | None = None) -> dict[str, str | None]:
    """`__version__`, `cuda` and `hip` of the installed torch, read from its file without importing it; {} if unknown.

    `folder` is torch's, and is found if it is not given.
    """
    if folder is None and (spec := find_spec("torch")) and spec.origin:
        folder = Path(spec.origin).parent
    text = text_of(folder / "version.py") if folder else ""
    found = re.findall(r"^(__version__|cuda|hip)\b.*= *(?:'(.*)'|None)$", text, re.MULTILINE)
    return {name: value or None for name, value in found}


def torch_problems(gpus: int, folder: Path | None = None) -> list[str]:
    """A line if the installed torch cannot use the GPUs that NVML finds here, because it was built without CUDA."""
    build = torch_build(folder)
    if not gpus or build.get("cuda", "unknown"):
        return []
    built = f"ROCm {build['hip']}" if build.get("hip") else "the CPU only"
    return [
        f"torch {build.get('__version__')} is built for {built}, but this host has {gpus} "
        f"{'GPU' if gpus == 1 else 'GPUs'}: install a build for CUDA; topology=cpu2 asks for CPU ranks"
    ]


def version_number(text: str) -> tuple[int, int] | None:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
