"""NVIDIA's management library without an NVIDIA GPU: stub.c, built by cc and found by LD_LIBRARY_PATH."""

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("stub.c")
LIBRARY = "libnvidia-ml.so.1"


def build_stub(folder: Path, *options: str) -> dict[str, str]:
    """Build the stub into `folder` with options as ("GPUS=4", 'REFUSE="nvmlDeviceGetPowerUsage"', "HOT"), and
    return the environment in which a new process loads it.

    A process that has loaded one library keeps it, so each test of NVML runs in a process of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / LIBRARY
    defines = [f"-D{option}" for option in options]
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{LIBRARY}", *defines, "-o", str(target), str(SOURCE)], check=True
    )
    return os.environ | {"LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
