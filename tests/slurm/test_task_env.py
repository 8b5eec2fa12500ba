"""Ranks out of Slurm's variables, their CPUs, and a first rank that cannot be reached."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opensora_launch.errors import UserError
from opensora_launch.machine.numa import cpus_near_gpu, numa_nodes, own_cpus, parse_cpus
from opensora_launch.rundir import AttemptDir
from opensora_launch.slurm import task_env as slurm_env
from opensora_launch.worker import process_group
from opensora_launch.worker.own_interface import interface_towards
from opensora_launch.worker.process_group import Meeting, Unreachable, meet, refuse_loopback, usable_name
from opensora_launch.worker.rank import Rank, pick_device
from tests.nvml_stub import build_stub

STEP = {
    "SLURM_JOB_ID": "12345", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
}  # fmt: skip
TORCHRUN = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1",
}  # fmt: skip
ONE_A_NODE = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    ("env", "rank"),
    [
        ({}, Rank(0, 0, 1, 1)),
        (STEP, Rank(4, 0, 5, 1, "srun")),
        (STEP | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}, Rank(1, 1, 5, 2, "srun")),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, Rank(0, 0, 1, 1)),  # a batch script itself
        (TORCHRUN, Rank(1, 1, 2, 2, "torchrun")),
        (TORCHRUN | ONE_A_NODE | {"WORLD_SIZE": "4"}, Rank(1, 1, 4, 2, "torchrun")),
    ],
)
def test_the_rank(env: dict[str, str], rank: Rank) -> None:
    assert Rank.from_env(env) == rank


@pytest.mark.parametrize("step", [STEP, ONE_A_NODE])
def test_two_worlds_are_refused(step: dict[str, str]) -> None:
    with pytest.raises(UserError, match="one torchrun per node"):
        Rank.from_env(TORCHRUN | step)


def test_the_head() -> None:
    assert slurm_env.head_port(STEP) == 22345
    assert slurm_env.head_port(STEP | {"SLURM_STEP_ID": "2"}) == 22345 + 202
    assert slurm_env.head_port(STEP | {"MASTER_PORT": "7"}) == 7
    assert slurm_env.head_host(STEP | {"MASTER_ADDR": "n1-ib0"}) == "n1-ib0"


@pytest.mark.parametrize(("visible", "local_rank", "index"), [(4, 3, 3), (8, 1, 1), (1, 3, 0)])
def test_a_rank_takes_its_gpu_of_all_or_the_only_one(
    visible: int, local_rank: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the node's are visible, or a site gives each task its own, which is then number 0 for every one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert pick_device("cuda", Rank(local_rank, local_rank, 4, 4)) == torch.device("cuda", index)


def test_too_few_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"4 ranks on .* see only 2 GPUs"):
        pick_device("cuda", Rank(0, 0, 4, 4))


def test_a_job_has_one_name_through_its_restarts() -> None:
    assert slurm_env.job_name({}) == ""
    assert slurm_env.job_name(STEP) == "slurm 12345"
    assert slurm_env.job_name(STEP | {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}) == "slurm 12_3"


def test_cpus_are_shared_out_along_numa_nodes() -> None:
    numa = [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [own_cpus(range(8), numa, i, 2) for i in range(2)] == numa
    assert [own_cpus(range(8), numa, i, 3) for i in range(3)] == [[0, 1], [2, 4, 5], [3, 6, 7]]
    assert own_cpus([3, 9], numa, 2, 4) == [3, 9]
    assert own_cpus([1, 9], numa, 1, 2) == [9]
    assert parse_cpus("0-2,8,10-11\n") == [0, 1, 2, 8, 10, 11]
    known = {cpu for cpus in numa_nodes().values() for cpu in cpus}
    assert known >= (os.sched_getaffinity(0) if known else set())
    assert numa_nodes(Path("/no such folder")) == {}


def test_cpus_are_those_beside_the_gpu() -> None:
    """Four GPUs, the first and the last on the second node, of which the job has not all CPUs."""
    numa = {0: [0, 1, 2, 3], 2: [4, 5, 6, 7]}
    places = [2, 0, 0, 2]
    assert [cpus_near_gpu(range(8), numa, places, i, 4) for i in range(4)] == [[4, 5], [0, 1], [2, 3], [6, 7]]
    assert [cpus_near_gpu([0, 1, 2, 5, 7], numa, places, i, 4) for i in range(4)] == [[5], [0], [1, 2], [7]]
    assert cpus_near_gpu([0, 1, 2, 5], numa, places, 1, 4) == []  # two ranks at the one CPU of node 2
    assert cpus_near_gpu(range(8), numa, [2, 0], 0, 4) == []  # GPUs of two ranks are not known
    assert cpus_near_gpu(range(8), numa, [3, 0, 0, 3], 0, 4) == []


@pytest.mark.parametrize(
    ("shown", "nodes"),
    [
        (None, [1, 0, 0, 1]),
        ("3,1", [1, 0]),
        ("GPU-0000-2,GPU-0000-0", [0, 1]),
        ("MIG-0000-0", [1]),
        ("GPU-0000", []),  # of all four
        ("1,9", [0]),
        ("", []),
    ],
)
def test_the_numa_node_of_each_gpu(shown: str | None, nodes: list[int], tmp_path: Path) -> None:
    """By NVML's address of it, in /sys."""
    env = build_stub(tmp_path / "lib", "GPUS=4", "MIG")
    for gpu, node in enumerate([1, 0, 0, 1]):
        folder = tmp_path / "pci" / f"0000:{0x1A + gpu:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
    given = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    code = (
        "import sys; from pathlib import Path; from opensora_launch.machine.numa import gpu_nodes; "
        f"print(gpu_nodes({given!r}, Path(sys.argv[1])), gpu_nodes({given!r}, Path('/gone')))"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "pci")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{nodes} []\n"
    (tmp_path / "pci/0000:1a:00.0/numa_node").write_text("-1\n")
    of_first = shown in (None, "GPU-0000-2,GPU-0000-0", "MIG-0000-0")
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[] if of_first else nodes} []\n"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    found = AttemptDir(tmp_path)
    found.logs.mkdir()
    return found


@pytest.mark.parametrize(("host", "said"), [("no-such-host.invalid", "no-such-host.invalid"), ("127.0.0.1", "refused")])
def test_a_first_rank_that_is_not_there(host: str, said: str, free_port: int) -> None:
    with pytest.raises(Unreachable, match=said) as caught:
        meet(1, 2, Meeting(host, free_port), 1.0, 1.0)
    assert f"{host}:{free_port}" in str(caught.value)


def test_ranks_that_do_not_come_are_named(free_port: int) -> None:
    with pytest.raises(Unreachable, match="did not connect: 1, 2;"):
        meet(0, 3, Meeting("127.0.0.1", free_port), start_s=0.5)


def test_ranks_whose_nodes_do_not_see_the_folder_are_named(
    attempt: AttemptDir, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun makes the log of a rank before it starts the rank: one that is not there is on another disk."""
    monkeypatch.setattr(process_group, "LOGS_S", 0.0)
    attempt.log(1).touch()
    with pytest.raises(Unreachable, match=r"which have no log in .*: 2; .*do not see this folder") as caught:
        meet(0, 3, Meeting("127.0.0.1", free_port, logs=attempt), start_s=60.0)
    assert "firewall" not in str(caught.value)


def test_a_name_that_leads_to_another_nodes_own_loopback_is_named(free_port: int) -> None:
    """Debian writes 127.0.1.1 into /etc/hosts; a copied image has it for the wrong node."""
    with pytest.raises(Unreachable, match=r"on \S+ it leads to \S+ itself \(127\.0\.0\.1\): correct /etc/hosts"):
        meet(1, 2, Meeting("127.0.0.1", free_port), 0.1, 600.0)


def test_a_node_whose_own_name_leads_to_itself_is_named() -> None:
    refuse_loopback(["n1 127.0.1.1", "n1 127.0.1.1"])
    refuse_loopback(["n1 10.0.0.1", "n2 "])
    for own in ("127.0.1.1", "::1"):
        with pytest.raises(Unreachable, match=rf"on node n2 its own name leads to {own}"):
            refuse_loopback(["n1 10.0.0.1", f"n2 {own}"])


def test_a_name_that_leads_nowhere_gives_way_to_the_address_that_slurm_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake scontrol knows one node. A name that leads to the asking node itself is as bad as none."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n[ $4 = no-such-node.invalid ] || [ $4 = localhost ] || { echo Node $4 not found; exit 1; }\n"
        "echo NodeName=$4 Arch=x86_64 NodeAddr=192.0.2.7 NodeHostName=$4\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, used in (
        ("no-such-node.invalid", "192.0.2.7"),
        ("localhost", "192.0.2.7"),
        ("192.0.2.1", "192.0.2.1"),
        ("unknown.invalid", "unknown.invalid"),
    ):
        assert usable_name(name, 30.0) == used
    monkeypatch.setenv("PATH", "")
    assert usable_name("no-such-node.invalid", 30.0) == "no-such-node.invalid"


def test_the_address_of_the_config_goes_first() -> None:
    assert slurm_env.head_host({"MASTER_ADDR": "n1", "HEAD_ADDRESS": "10.0.0.1"}) == "10.0.0.1"


def test_the_interface_towards_a_host() -> None:
    """Not loopback, on which no other node answers."""
    assert interface_towards("127.0.0.1") is None
    assert interface_towards("no-such-node.invalid") is None
    others: set[str | None] = {name for _, name in socket.if_nameindex() if name != "lo"}
    assert interface_towards("192.0.2.1") in (others or {None})  # an address of the documentation, by the default route
