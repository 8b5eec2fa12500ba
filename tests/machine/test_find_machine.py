"""The machine that a topology becomes."""

import os

import pytest

from opensora_launch.machine import host
from opensora_launch.machine.find_machine import find_machine
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
    return find_machine(topology, env)


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
    assert "topology.gpus_per_node=1, but none is visible here" in line


def test_the_share_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    quota = tmp_path_factory.mktemp("cgroup") / "cpu.max"
    monkeypatch.setattr(host, "CGROUP_CPUS", quota)
    assert count_cpus() == 16
    for text, cpus in (("max 100000", 16), ("250000 100000", 3), ("50000 100000", 1), ("9900000 100000", 16)):
        quota.write_text(text)
        assert count_cpus() == cpus
