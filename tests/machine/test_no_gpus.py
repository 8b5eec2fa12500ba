"""Where GPUs should be and none can be used, no verb takes CPU ranks unasked: all say the same line with the cause."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_launch.doctor.torch_facts import torch_problems
from opensora_launch.machine.choose_gpus import Picked, pick_gpus
from opensora_launch.machine.find_gpus import find_gpus
from opensora_launch.machine.find_machine import find_machine
from opensora_launch.machine.host_gpus import HostGpus, LostGpu, no_gpus_problem
from opensora_launch.machine.nvml_causes import NO_LIBRARY
from opensora_launch.plan.plan import Machine
from opensora_launch.request.prepare import BLIND, ranks_machine
from opensora_launch.schema.config import Device, RunConfig, TopologyConfig
from tests.machine.test_choose_gpus import gpu, host
from tests.nvml_stub import build_stub

ROOT = Path(__file__).parents[2]
BROKEN = HostGpus(problem="it is broken", expected=True)
ONE_LOST = HostGpus((gpu(0), gpu(2)), lost=(LostGpu(1, "it fell off the bus"),))


@pytest.mark.parametrize(
    ("found", "setting", "why"),
    [
        (HostGpus(problem=NO_LIBRARY), None, ""),
        (host(gpu(0)), None, ""),
        (host(gpu(0)), "", ""),
        (BROKEN, "", ""),
        (BROKEN, "-1", ""),
        (BROKEN, "NoDevFiles", ""),
        (BROKEN, None, "it is broken"),
        (BROKEN, "0", "it is broken"),
        (ONE_LOST, None, ""),
        (ONE_LOST, "1,0", ""),
        (ONE_LOST, "2", ""),  # CUDA counts the lost one
        (ONE_LOST, "1", "GPU 1: it fell off the bus"),
        (host(gpu(0), gpu(1)), "7", "CUDA_VISIBLE_DEVICES=7 names none of those here: 0 (GPU-00aa), 1 (GPU-11aa)"),
    ],
)
def test_cpu_ranks_follow_unasked_only_where_no_gpu_is_expected(found: HostGpus, setting: str | None, why: str) -> None:
    line = f"no GPU can be used: {why}; topology=cpu2 asks for CPU ranks" if why else ""
    assert no_gpus_problem(found, setting) == line
    picked = pick_gpus(found, (), setting, str)
    machine, problems = find_machine(TopologyConfig(), picked)
    assert (picked.fault, problems) == (line, [line] if line else [])
    assert machine.device == ("cuda" if line or picked.gpus else "cpu")
    assert find_machine(TopologyConfig(device=Device.cpu), Picked())[1] == []


def test_a_lost_gpu_is_left_out_with_the_cause() -> None:
    picked = pick_gpus(ONE_LOST, (), None, str)
    assert picked.lines[1:] == ("GPU 1 is left out: it fell off the bus",)
    assert find_machine(TopologyConfig(), picked)[0].gpus == ("GPU-00aa", "GPU-22aa")  # CUDA must not count for itself
    _, (line,) = find_machine(TopologyConfig(gpus_per_node=3), picked)
    assert line.startswith(
        "topology.gpus_per_node=3, but 2 are free here; GPU 1 is left out: it fell off the bus; use "
    )
    (line,) = pick_gpus(ONE_LOST, ("1",), None, str).problems
    assert line.endswith("there are: 0 (GPU-00aa), 2 (GPU-22aa); GPU 1: it fell off the bus")


@pytest.mark.parametrize(
    ("here", "device", "said"),
    [
        (pick_gpus(BROKEN, (), None, str), Device.auto, "it is broken"),
        (pick_gpus(host(gpu(0)), (), None, str), Device.auto, "torch"),
        (pick_gpus(HostGpus(problem=NO_LIBRARY), (), None, str), Device.auto, ""),
        (Picked(), Device.cpu, ""),
    ],
)
def test_ranks_that_were_started_by_hand(here: Picked, device: Device, said: str) -> None:
    asked = RunConfig(topology=TopologyConfig(device=device))
    problems = ranks_machine(asked, here, Machine("cpu", 1, 2, 2)).problems
    assert len(problems) == bool(said)
    assert all(said in line and "topology=cpu2 asks for CPU ranks" in line for line in problems)
    assert "topology=cpu2 asks for CPU ranks" in BLIND


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "cuda: Optional[str] = None\nhip: Optional[str] = None",
            "torch 2.9.0 is built for the CPU only, but this host",
        ),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", "torch 2.9.0 is built for ROCm 6.4, but this host"),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None", ""),
        ("cuda = '12.8'", ""),
        ("", ""),  # unknown
    ],
)
def test_a_torch_without_cuda_is_known_without_importing_it(lines: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.9.0'\n{lines}\n")
    assert [line[: len(said)] for line in torch_problems(2, tmp_path)] == ([said] if said else [])
    assert torch_problems(0, tmp_path) == torch_problems(2, tmp_path / "none") == []


def test_devices_without_the_drivers_library(tmp_path: Path) -> None:
    if find_gpus(tmp_path).problem != NO_LIBRARY:
        pytest.skip("this machine has NVIDIA's library")
    assert not find_gpus(tmp_path).expected
    (tmp_path / "nvidia0").touch()
    found = find_gpus(tmp_path)
    assert found.expected
    assert str(found.problem).startswith(f"/dev/nvidia0 is here, but {NO_LIBRARY} (")


CASES = {
    "no driver": (("INIT=9",), "NVIDIA's driver is not loaded", [], []),
    "forbidden": (("INIT=4",), "permission denied", [], []),
    "an unknown fault": (("INIT=999",), "Unknown Error (nvidia-smi and dmesg tell more)", [], []),
    "all lost": (("LOST=3",), "GPU 0: the driver has lost it, it fell off the bus (reboot; if it is lost", [], []),
    "all forbidden": (("DENIED=3",), "GPU 0: permission denied", [], []),
    "none": (("GPUS=0",), "the driver shows no GPU", [], []),
    # those of other jobs are neither counted nor lost
    "one of four": (("GPUS=4", "DENIED=3", "LOST=8"), "", [2], [3]),
}
VERBS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from opensora_launch.cli import main
found = {}
for words in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(words)
    found[" ".join(words[:2])] = [code, out.getvalue() + err.getvalue()]
sys.__stdout__.write(json.dumps(found))
"""


def told(folder: Path, *options: str, verbs: list[list[str]]) -> dict[str, tuple[int, str]]:
    env = build_stub(folder, *options) | {"PYTHONPATH": str(ROOT)}
    env.pop("CUDA_VISIBLE_DEVICES", None)
    argv = [sys.executable, "-c", VERBS, json.dumps(verbs)]
    done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: (code, text) for name, (code, text) in json.loads(done.stdout).items()}


def test_every_verb_says_the_cause(tmp_path: Path) -> None:
    words = ["generate --prompt x", "doctor --quick", "verify", "bench", "plan video=256px"]
    found = told(tmp_path, "INIT=18", verbs=[[*verb.split(), "model=tiny"] for verb in words])
    assert [code for code, _ in found.values()] == [2, 1, 2, 2, 2]
    for _, text in found.values():
        assert "no GPU can be used: the driver's library and its kernel module have different versions (reboot" in text
        assert "; topology=cpu2 asks for CPU ranks" in text
    assert not (tmp_path / "runs").exists()


ASK = """
from opensora_launch.machine.find_gpus import find_gpus
from opensora_launch.machine.host_gpus import no_gpus_problem
host = find_gpus()
print(no_gpus_problem(host, None), [gpu.index for gpu in host.gpus], [gpu.index for gpu in host.lost], sep="|")
"""


@pytest.mark.parametrize(("options", "said", "gpus", "lost"), CASES.values(), ids=CASES)
def test_what_nvml_answers(
    options: tuple[str, ...], said: str, gpus: list[int], lost: list[int], tmp_path: Path
) -> None:
    env = build_stub(tmp_path, *options)
    done = subprocess.run([sys.executable, "-c", ASK], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line, *numbers = done.stdout.rstrip().split("|")
    assert line.startswith(f"no GPU can be used: {said}") if said else line == ""
    assert numbers == [str(gpus), str(lost)]
