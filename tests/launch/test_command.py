"""The command that starts ranks, as a list, as a line for a shell, and why a launcher cannot."""

import shlex
import sys
from pathlib import Path

import pytest

from opensora_launch.launch.command import command, command_text, environment, launch_problems, without_others
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Machine
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LauncherKind, RunConfig, TopologyConfig
from opensora_launch.slurm.allocation import allocation_machine, step_name

HOSTILE = Path("/runs of 'me'/\"x\" $HOME #é\n/attempts/0")


def test_torchrun() -> None:
    argv = command(LauncherKind.torchrun, Machine("cpu", 1, 3, 4), AttemptDir(HOSTILE))
    assert argv[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert argv[argv.index("--nproc-per-node") + 1] == "3"
    assert argv[-4:] == ["-m", "opensora_launch.worker", "--attempt", str(HOSTILE)]


def test_inline_by_hand() -> None:
    argv = command(LauncherKind.inline, Machine("cpu", 1, 1, 4), AttemptDir(HOSTILE))
    assert argv == [sys.executable, "-m", "opensora_launch.worker", "--attempt", str(HOSTILE)]


def test_a_step_of_an_allocation() -> None:
    """It begins at the allocation's first node, whatever its size, and is found again by its name."""
    argv = command(LauncherKind.srun, Machine("cpu", 2, 3, 7), AttemptDir(HOSTILE))
    assert argv[0] == "srun"
    said = dict(word.partition("=")[::2] for word in argv if word.startswith("--"))
    assert (said["--nodes"], said["--relative"], said["--ntasks"], said["--ntasks-per-node"]) == ("2", "0", "6", "3")
    assert (said["--cpus-per-task"], said["--job-name"]) == ("2", step_name(AttemptDir(HOSTILE)))
    assert argv[-5:] == [sys.executable, "-m", "opensora_launch.worker", "--attempt", str(HOSTILE)]
    assert step_name(AttemptDir(HOSTILE)) != step_name(AttemptDir(HOSTILE / "1"))


ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_CPUS_PER_NODE": "72(x2),36"}


@pytest.mark.parametrize(
    ("topology", "env", "machine", "said"),
    [
        (TopologyConfig(2, 4), ALLOCATION, Machine("cpu", 2, 4, 36), []),
        (TopologyConfig(3, None), ALLOCATION | {"SLURM_GPUS_ON_NODE": "8"}, Machine("cuda", 3, 8, 36), []),
        (TopologyConfig(1, 9), ALLOCATION | {"SLURM_GPUS_ON_NODE": "8"}, Machine("cuda", 1, 9, 36),
         ["topology.gpus_per_node=9, but the allocation has 8 GPUs per node"]),
        (TopologyConfig(4, 40), ALLOCATION, Machine("cpu", 4, 40, 40),
         ["topology.nodes=4, but the allocation has 3",
          "topology.gpus_per_node=40 ranks need a CPU each, but the allocation has 36 per node"]),
        (TopologyConfig(1, None), ALLOCATION, Machine("cpu", 1, 1, 36),
         ["launcher=srun needs the number of ranks per node: topology=8gpu, topology=2x8, ..."]),
        (TopologyConfig(1, 2), {}, Machine("cpu", 1, 2, 2),
         ["launcher=srun starts ranks inside an allocation, but this process is in none: get one with salloc or "
          "sbatch, or submit a job with launcher=slurm"]),
    ],
)  # fmt: skip
def test_the_machine_of_an_allocation(
    topology: TopologyConfig, env: dict[str, str], machine: Machine, said: list[str]
) -> None:
    assert allocation_machine(topology, env) == (machine, said)


def test_the_shells_line_gives_the_same_argv_and_environment() -> None:
    machine = Machine("cpu", 1, 2, 6)
    plan = make_plan(RunConfig(), machine, (), "1")
    argv = command(LauncherKind.torchrun, machine, AttemptDir(HOSTILE))
    words = shlex.split(command_text(argv, plan))
    assert words[3:] == argv
    env = environment(plan.threads_per_rank, {"PATH": "/bin"})
    assert env == {"PATH": "/bin", "OMP_NUM_THREADS": "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTHONSAFEPATH": "1"}
    assert words[:3] == [f"{name}={env[name]}" for name in ("OMP_NUM_THREADS", "CUDA_DEVICE_ORDER", "PYTHONSAFEPATH")]


def test_variables_that_others_set_for_their_ranks() -> None:
    """Kubeflow's, torchrun's, those of a shell inside a step. A step of our own keeps its job's."""
    others = ["PET_NNODES", "TORCHELASTIC_RUN_ID", "LOGLEVEL", "PYTHON_EXEC", "RANK", "LOCAL_RANK", "WORLD_SIZE"]
    steps = ["SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "MASTER_ADDR", "MASTER_PORT"]
    own = ["PATH", "PETER", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES"]
    base = dict.fromkeys([*others, *steps, *own], "1")
    for kind in (LauncherKind.torchrun, LauncherKind.inline):
        assert list(without_others(base, kind)) == own
    assert list(without_others(base, LauncherKind.srun)) == [*steps, *own]


def test_variables_of_a_job_that_submits_another() -> None:
    """They are the outer job's ids, limits and GPUs; sbatch keeps what it needs to reach Slurm."""
    outer = ["SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_CPU_BIND", "SLURM_CONF_X", "SBATCH_ARRAY_INX", "SRUN_DEBUG"]
    others = [*outer, "MASTER_ADDR", "RANK", "PET_NNODES", "CUDA_VISIBLE_DEVICES"]
    kept = ["PATH", "NCCL_DEBUG", "SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURMD_NODENAME"]
    assert list(without_others(dict.fromkeys([*others, *kept], "1"), LauncherKind.slurm)) == kept


@pytest.mark.parametrize(
    ("kind", "machine", "said"),
    [
        (LauncherKind.torchrun, Machine("cuda", 1, 8, 8), None),
        (LauncherKind.inline, Machine("cpu", 1, 1, 8), None),
        (LauncherKind.inline, Machine("cpu", 1, 2, 8), "launcher=inline runs one rank"),
        (LauncherKind.torchrun, Machine("cuda", 2, 8, 8), "topology.nodes=2"),
    ],
)
def test_what_a_launcher_cannot_start(kind: LauncherKind, machine: Machine, said: str | None) -> None:
    problems = launch_problems(kind, machine)
    assert [said in line for line in problems] == ([True] if said else [])  # type: ignore[operator]
