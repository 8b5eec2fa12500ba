"""What the installed torch is and sees. A short subprocess answers: the launcher itself never imports torch."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 60.0
# Prints one JSON line. A kernel library that was built for another torch fails when its own module is loaded.
ASK = """
import importlib, json, sys
import torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
found["available"] = torch.cuda.is_available()
found["archs"] = torch.cuda.get_arch_list() if found["available"] else []
found["uuids"] = []
for n in range(torch.cuda.device_count() if found["available"] else 0):
    found["uuids"].append(str(torch.cuda.get_device_properties(n).uuid))
try:
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if found["available"] else None
except (AttributeError, RuntimeError):
    found["nccl"] = None
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
KERNELS = {"flash-attn 2": "flash_attn_2_cuda", "flash-attn 3": "flash_attn_3._C", "xformers": "xformers._C"}


@dataclass(frozen=True)
class TorchFacts:
    version: str
    cuda: str | None  # "12.8"; None for a build without CUDA
    hip: str | None
    available: bool
    archs: tuple[str, ...]  # sm_90, compute_90
    uuids: tuple[str, ...]  # of the GPUs that torch sees
    nccl: str | None
    kernels: tuple[tuple[str, str], ...]  # (library, why it cannot be loaded, or "")

    @property
    def number(self) -> tuple[int, int] | None:
        return version_number(self.version)


def ask_torch(env: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> tuple[TorchFacts | None, str]:
    """The facts, or None and the reason. `env` is the ranks' environment, so that torch sees what they will see."""
    code = f"import importlib.util\nKERNELS = {KERNELS!r}\n{ASK}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=dict(env), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return None, f"import torch took more than {timeout_s:.0f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return None, last[0]
    data: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for name in ("archs", "uuids"):
        data[name] = tuple(data[name])
    return TorchFacts(**{**data, "kernels": tuple(data["kernels"].items())}), ""


def installed_torch() -> tuple[int, int] | None:
    """The version of torch like (2, 13), read from the package's metadata without importing it."""
    try:
        return version_number(importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return None


def version_number(text: str) -> tuple[int, int] | None:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
