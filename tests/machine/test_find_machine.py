"""The machine that a topology becomes."""

import os
from pathlib import Path

import pytest

from opensora_launch.machine import host
from opensora_launch.machine.find_machine import find_machine, found_gpus
from opensora_launch.machine.host import count_cpus
from opensora_launch.machine.host_gpus import HostGpus
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import Device, TopologyConfig
from tests.machine.test_choose_gpus import gpu
from tests.machine.test_choose_gpus import host as host_of


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora_launch.machine.find_gpus.find_gpus", lambda: host_of(*map(gpu, range(4))))


def found(topology: TopologyConfig, **env: str) -> tuple[Machine, list[str]]:
    return find_machine(topology, found_gpus(topology, env))


@pytest.mark.usefixtures("four_gpus")
def test_all_visible_gpus_by_default() -> None:
    cpus = count_cpus()
    assert found(TopologyConfig()) == (Machine("cuda", 1, 4, cpus), [])
    assert found(TopologyConfig(), CUDA_VISIBLE_DEVICES="1,2") == (Machine("cuda", 1, 2, cpus), [])
    assert found(TopologyConfig(), CUDA_VISIBLE_DEVICES="") == (Machine("cpu", 1, 2, cpus), [])
    assert found(TopologyConfig(device=Device.cpu, gpus_per_node=7)) == (Machine("cpu", 1, 7, cpus), [])


@pytest.mark.usefixtures("four_gpus")
def test_more_gpus_than_visible_is_told() -> None:
    _, (line,) = found(TopologyConfig(gpus_per_node=8, device=Device.cuda))
    assert "topology.gpus_per_node=8, but 4 are visible here" in line
    assert "topology=4gpu" in line


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora_launch.machine.find_gpus.find_gpus", HostGpus)
    asked, problems = found(TopologyConfig(gpus_per_node=3))
    assert (asked.device, asked.ranks, problems) == ("cpu", 3, [])
    _, (line,) = found(TopologyConfig(device=Device.cuda))
    assert line == "no GPU is visible here; use topology=cpu2 for the CPU"


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 16 CPUs and a terabyte, whose files of cgroups a test writes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(host, "host_sample", lambda: {"available_bytes": 10**12})
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_the_share_of_a_container_counts(cgroups: Path) -> None:
    assert count_cpus() == 16
    write(cgroups, {"proc/self/cgroup": "0::/\n"})
    for text, cpus in (("max 100000", 16), ("250000 100000", 3), ("50000 100000", 1), ("9900000 100000", 16)):
        write(cgroups, {"cgroup/cpu.max": text})
        assert count_cpus() == cpus


@pytest.mark.parametrize(
    ("of_process", "files", "cpus", "room"),
    [
        ("0::/job/step\n",
         {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000", "cpu.max": "800000 100000",
          "job/memory.max": "5000", "job/memory.current": "4000", "job/memory.stat": "inactive_file 500\nfile 9",
          "job/step/memory.max": "max", "job/step/memory.current": "4000"}, 3, 1500),
        ("4:memory:/job\n3:cpu,cpuacct:/job\n",
         {"cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
          "cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
          "memory/job/memory.limit_in_bytes": "7000\n", "memory/job/memory.usage_in_bytes": "6000\n",
          "memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "6500\n"}, 2, 1000),
        ("4:cpu:/docker/8f3a\n", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4, 10**12),
    ],
)  # fmt: skip
def test_every_cgroup_above_this_process_counts(
    of_process: str, files: dict[str, str], cpus: int, room: int, cgroups: Path
) -> None:
    """Nested ones, of version 2 and 1, and in a container that sees its host's path but not its folder."""
    write(cgroups, {"proc/self/cgroup": of_process})
    write(cgroups / "cgroup", files)
    assert (count_cpus(), host.host_facts([]).available_bytes) == (cpus, room)
