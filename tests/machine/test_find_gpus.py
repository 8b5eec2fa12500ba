"""GPUs and links as the real nvidia-ml-py reads them from a stub driver."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.nvml_stub import build_stub

ROOT = Path(__file__).parents[2]
ASK = """
from opensora_launch.machine.find_gpus import find_gpus
host = find_gpus()
for gpu in host.gpus:
    print(gpu.index, gpu.uuid, gpu.free_bytes >> 30, gpu.capability, gpu.ecc_errors, gpu.remap_pending,
          gpu.throttled, gpu.mig, [pid for pid, _ in gpu.processes if pid == 4242], gpu.pcie, sep="|")
for pair in host.pairs:
    print(pair.first, pair.second, pair.path, pair.p2p, sep="|")
print(host.driver, host.cuda, host.problem, sep="|")
"""
ASK_ODD = """
from opensora_launch.machine.find_gpus import find_gpus
host = find_gpus()
(gpu,) = host.gpus
held = [used for pid, used in gpu.processes if pid == 4242]
print(gpu.remap_pending, gpu.remap_failed, gpu.shares_memory, gpu.throttled, held, *[i.mig for i in host.instances],
      sep="|")
"""
HEALTHY = "60|(9, 0)|0|False|()|False|[]|(1, 5, 16, 16)"


def ask(folder: Path, *options: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=build_stub(folder, *options), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("GPUS=2", "NVLINKS=4"),
            [f"0|GPU-0000-0|{HEALTHY}", f"1|GPU-0000-1|{HEALTHY}", "0|1|NV4|ok", "570.86.10|(12, 8)|None"],
        ),
        (
            ("GPUS=1", "HOT", "SICK", "BUSY", 'DRIVER="535.1"', "CUDA=12020", "CAPABILITY=89"),
            [
                "0|GPU-0000-0|60|(8, 9)|2|True|('too hot (driver)',)|False|[4242]|(1, 5, 4, 16)",
                "535.1|(12, 2)|None",
            ],
        ),
        (
            ("GPUS=2", "NO_P2P=1", "MIG"),
            [
                f"0|GPU-0000-0|{HEALTHY.replace('()|False', '()|True')}",
                f"1|GPU-0000-1|{HEALTHY}",
                "0|1|PHB|chipset not supported",
                "570.86.10|(12, 8)|None",
            ],
        ),
        (
            ("GPUS=2", 'REFUSE="nvmlDeviceGetEccMode nvmlDeviceGetTotalEccErrors nvmlDeviceGetRemappedRows '
             'nvmlDeviceGetP2PStatus"'),
            [
                "0|GPU-0000-0|60|(9, 0)|None|None|()|False|[]|(1, 5, 16, 16)",
                "1|GPU-0000-1|60|(9, 0)|None|None|()|False|[]|(1, 5, 16, 16)",
                "0|1|PHB|unknown",
                "570.86.10|(12, 8)|None",
            ],
        ),
    ],
    ids=["nvlink", "ill", "no peer access", "an older driver"],
)  # fmt: skip
def test_what_the_driver_tells(options: tuple[str, ...], expected: list[str], tmp_path: Path) -> None:
    assert ask(tmp_path, *options) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("WORN",), "False|True|False|()|[]"),
        (("SICK",), "True|False|False|()|[]"),
        (("BUSY", "BUSY_HOLDS=-1ull"), "False|False|False|()|[None]"),
        (
            ('REFUSE="nvmlDeviceGetMemoryInfo nvmlDeviceGetRemappedRows nvmlDeviceGetCurrentClocksEventReasons"',),
            "None|None|True|None|[]",
        ),
        (("MIG",), "False|False|False|()|[]|False"),  # the last word is about the instance
    ],
    ids=["worn out", "waits for a reset", "a process of unknown size", "GB10", "MIG"],
)
def test_what_is_not_known_is_not_good(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    env = build_stub(tmp_path, "GPUS=1", *options)
    done = subprocess.run([sys.executable, "-c", ASK_ODD], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip() == said
