"""Which GPUs CUDA would show, and what machine a topology becomes."""

import os

import pytest

from opensora_launch.machine import find_machine as machine
from opensora_launch.machine import host
from opensora_launch.machine.find_machine import count_visible, find_machine
from opensora_launch.machine.host import count_cpus
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import Device, TopologyConfig

UUIDS = ("GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3", "GPU-dddd-4")


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("2,0", 2),
        (" 1 , 3 ", 2),
        ("0,9,1", 1),
        ("0,-1,1", 1),
        ("GPU-cccc-3", 1),
        ("GPU-c,GPU-d", 2),
        ("GPU-aa", 0),
        ("GPU-zzzz", 0),
        ("0,GPU-zzzz,1", 1),
        ("MIG-1234", 1),
        ("NoDevFiles", 0),
        ("²", 0),
    ],
)
def test_cuda_visible_devices(visible: str | None, count: int) -> None:
    assert count_visible(UUIDS, visible) == count


def test_nothing_is_visible_where_nothing_is() -> None:
    assert count_visible((), "MIG-1234") == 0
    assert count_visible((), None) == 0


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_uuids", lambda: UUIDS)


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
    assert "8 GPUs are asked and 4 visible here" in line
    assert "topology=4gpu" in line


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_uuids", tuple)
    asked, problems = found(TopologyConfig(gpus_per_node=3))
    assert (asked.device, asked.ranks, problems) == ("cpu", 3, [])
    _, (line,) = found(TopologyConfig(device=Device.cuda))
    assert "none is visible here" in line


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
