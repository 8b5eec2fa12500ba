"""`opensora-launch doctor`, and what `generate` asks of its machine before it starts."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from opensora_launch.cli import generate, main
from opensora_launch.doctor import examine as launch_doctor
from opensora_launch.doctor.check_result import CheckResult, Level
from opensora_launch.doctor.nodes import node_command, nodes_of_job, to_line
from opensora_launch.doctor.torch_facts import torch_build
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.plan import Plan
from tests.nvml_stub import build_stub

TINY = ["model=tiny", "topology=cpu2"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the shell or CI sets for itself."""
    for name in [n for n in os.environ if n.startswith(("OMP_", "MKL_", "NCCL_", "SLURM_", "PYTORCH_", "GLOO_"))]:
        monkeypatch.delenv(name)


def test_all_of_it_as_json_on_real_ranks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MEMORY_FRACTION", "0.4")
    assert main(["doctor", "--json", "--plot", "doctor.svg", *TINY, "layout.ulysses=2"]) == 0
    data = json.loads(capsys.readouterr().out)
    checks = {finding["check"]: finding for finding in data["findings"]}
    assert {"gpus", "torch", "memory", "disk", "shm", "limits", "env", "ranks", "bandwidth", "files"} <= set(checks)
    assert data["worst"] == "warn"
    assert checks["bandwidth"]["unit"] == "GB/s"
    assert f"{checks['bandwidth']['value']:.2f} GB/s" in checks["bandwidth"]["what"]
    assert ">ulysses of 2<" in Path("doctor.svg").read_text()
    assert checks["bandwidth"]["what"].startswith("ulysses of 2: all-to-all ")
    said = [finding["what"] for finding in data["findings"] if finding["check"] == "env"]
    what = "CUDA_MEMORY_FRACTION=0.4: neither CUDA nor torch reads it; env=workstation removes it for the ranks"
    assert what in said


def test_missing_files_and_gpus_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "model=open_sora_v2", "topology=custom", "topology.device=cuda"]) == 1
    lines = capsys.readouterr().out.splitlines()
    fails = [line for line in lines if line.startswith("fail")]
    assert any("are missing; to download them: " in line for line in fails)
    assert any(line.split()[1] == "gpus" and "0 of 0 visible, 1 requested" in line for line in fails)
    assert not any(" ranks " in line for line in lines)  # not started where they cannot
    assert re.fullmatch(r"\d+ ok, \d+ warnings?, \d+ failures", lines[-1])


def test_quick(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--quick", *TINY]) == 0
    assert "no problem found" in capsys.readouterr().out
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert main(["doctor", "--quick", *TINY]) == 1
    assert "matches no interface of this host" in capsys.readouterr().out


def test_wrong_profiles_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", *TINY, "env.set=[A]"]) == 2
    assert "env.set: 'A' is not NAME=VALUE" in capsys.readouterr().err


def test_every_node_of_a_slurm_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """srun played by a script that runs the task twice under other host names, and loses the third."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(
        '#!/bin/sh\necho "$@" >srun.args\nwhile [ "${1#--}" != "$1" ]; do shift; done\n'
        'for host in b a; do "$@" | sed "s/\\"host\\":\\"[^\\"]*\\"/\\"host\\":\\"$host\\"/"; done\n'
        "echo 'srun: error: c: node down' >&2; exit 1\n"
    )
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    assert main(["doctor", "--quick", "--json", *TINY]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(f["host"], f["level"]) for f in found] == [("", "fail"), ("a", "ok"), ("b", "ok")]
    assert found[0]["what"] == "2 of 3 nodes answered: srun: error: c: node down"
    assert "--nodes=3 --ntasks=3 --ntasks-per-node=1" in Path("srun.args").read_text()


def test_nodes_of_a_job() -> None:
    assert nodes_of_job({}) == 1
    assert nodes_of_job({"SLURM_JOB_NUM_NODES": "4"}) == 4
    assert nodes_of_job({"SLURM_JOB_NUM_NODES": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}) == 1
    assert nodes_of_job({"SLURM_JOB_NUM_NODES": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == 4
    assert node_command(2, ["--quick", "a=b c"])[-4:] == ["doctor", "--here", "--quick", "a=b c"]
    finding = CheckResult(Level.warn, "env", "é\n", "f", "c", "h")
    assert msgspec.json.decode(to_line(finding), type=CheckResult) == finding
    assert "\n" not in to_line(finding)


def started(monkeypatch: pytest.MonkeyPatch) -> list[Profiled]:
    """The environments of runs that would have been started."""
    seen: list[Profiled] = []

    def start(kind: object, plan: Plan, attempt: Path, made: Profiled, since_s: float) -> int:
        seen.append(made)
        return 0

    monkeypatch.setattr(generate, "start_run", start)
    return seen


def test_generate_stops_before_it_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    seen = started(monkeypatch)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert main(["generate", "--prompt", "x", *TINY]) == 2
    said = capsys.readouterr().err
    assert "this machine is not ready" in said
    assert "GLOO_SOCKET_IFNAME=nosuch0 matches no interface" in said
    assert (seen, list(empty_folder.iterdir())) == ([], [])


def test_generate_warns_once_and_records_the_profile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    seen = started(monkeypatch)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert main(["generate", "--prompt", "x", *TINY, "-m", "video.num_frames=5,9"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "NCCL_DEBUG=INFO" in line] == [said[1]]
    assert said[0].startswith("warn  env  CUDA_LAUNCH_BLOCKING=1: the CPU waits for every kernel")
    assert "; env=workstation removes it for the ranks; fix: remove it from your shell" in said[0]
    assert len(said) == 2
    assert [made.taken for made in seen] == [{"CUDA_LAUNCH_BLOCKING": "1"}] * 2
    for attempt in empty_folder.glob("runs/*/attempts/0"):
        record = json.loads((attempt / "environment.json").read_text())
        assert record["profile"] == "workstation"
        assert record["taken_away"] == {"CUDA_LAUNCH_BLOCKING": "1"}
        assert record["kept"] == {"NCCL_DEBUG": "INFO"}
        assert record["environment"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
        assert record["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # as ranks see it
        assert (attempt / "command.txt").read_text().startswith("env -u CUDA_LAUNCH_BLOCKING PYTORCH_CUDA_ALLOC_CONF=")


def test_another_profile_leaves_all_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = started(monkeypatch)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert main(["generate", "--prompt", "x", *TINY, "env=asis"]) == 0
    assert seen[0].env == dict(os.environ)


def test_the_quick_part_is_a_small_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what `generate` does before it starts ranks, by CPU time."""
    took: list[float] = []
    look = launch_doctor.quick_checks

    def timed(target: launch_doctor.CheckTarget) -> list[CheckResult]:
        begun = time.process_time()
        found = look(target)
        took.append(time.process_time() - begun)
        return found

    monkeypatch.setattr("opensora_launch.doctor.preflight.quick_checks", timed)
    started(monkeypatch)
    begun = time.process_time()
    assert main(["generate", "--prompt", "x", *TINY]) == 0
    whole = time.process_time() - begun
    assert capsys.readouterr().err == ""
    assert took[0] < whole / 10  # a hundredth is the usual


def test_a_machine_with_gpus_played_by_a_stub_driver(tmp_path: Path) -> None:
    env = build_stub(tmp_path / "nvml", "GPUS=2", "SICK", "HOT", "BUSY", "NO_P2P=1")
    env |= {"PYTHONPATH": str(ROOT), "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:8", "CUDA_LAUNCH_BLOCKING": "1"}
    env.pop("CUDA_VISIBLE_DEVICES")
    argv = ["doctor", "--json", "model=tiny", "topology=2gpu", "hardware=h100_sxm"]
    done = subprocess.run([sys.executable, "-m", "opensora_launch.cli", *argv], env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = [(f["level"], f["check"], f["what"]) for f in json.loads(done.stdout)["findings"]]

    def said(level: str, check: str, part: str) -> bool:
        return any(f[:2] == (level, check) and part in f[2] for f in found)

    driver = "570.86.10, runs CUDA up to 12.8"
    if cuda := torch_build()["cuda"]:  # as PyPI has it; the driver is judged by what this torch needs
        assert said("fail", "torch", "it sees no GPU, but the driver shows 2")
        assert said("fail", "driver", f"{driver}; torch's CUDA {cuda} needs") or said("ok", "driver", driver)
    else:
        assert said("fail", "torch", "built for the CPU only, but this host has 2 GPUs")
        assert said("ok", "driver", driver)
    assert said("fail", "ecc", "GPU 1 (Stub GPU): 2 uncorrected memory errors")
    assert said("warn", "throttled", "GPU 1 (Stub GPU): clocks are reduced (too hot (driver))")
    assert said("warn", "pcie", "4 of 16 PCIe lanes")
    assert said("warn", "gpu memory", "process 4242 (10.0 GiB)")
    assert said("warn", "links", "GPUs 0-1: PHB, peer access chipset not supported")
    assert said("fail", "env", "max_split_size_mb:8 is below 20")
    assert said("warn", "env", "CUDA_LAUNCH_BLOCKING=1: the CPU waits for every kernel")
    assert not any(check == "ranks" for _, check, _ in found)  # torch could not use these GPUs


def test_a_card_in_mig_instances_is_refused_as_by_generate(tmp_path: Path) -> None:
    env = build_stub(tmp_path / "nvml", "GPUS=1", "MIG") | {"PYTHONPATH": str(ROOT)}
    env.pop("CUDA_VISIBLE_DEVICES", None)
    for words in (["doctor", "--quick"], ["generate", "--prompt", "x"]):
        argv = [sys.executable, "-m", "opensora_launch.cli", *words, "model=tiny"]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == (1 if words[0] == "doctor" else 2)
        assert "it is divided into MIG instances; name one of them in CUDA_VISIBLE_DEVICES" in done.stdout + done.stderr


def test_a_video_that_does_not_fit_is_a_finding(tmp_path: Path) -> None:
    env = build_stub(tmp_path / "nvml", "GPUS=1") | {"PYTHONPATH": str(ROOT)}
    env.pop("CUDA_VISIBLE_DEVICES")
    argv = ["doctor", "--quick", "model=open_sora_v2", "video=768px", "topology=1gpu", "hardware=rtx4090", "fit=strict"]
    done = subprocess.run([sys.executable, "-m", "opensora_launch.cli", *argv], env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("fail") and " plan " in line]
    assert "placement.offload=host fits" in line
