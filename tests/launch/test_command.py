"""The command that starts ranks, as a list, as a line for a shell, and why a launcher cannot."""

import shlex
import sys
from pathlib import Path

import pytest

from opensora_launch.config import LauncherKind, RunConfig
from opensora_launch.launch.command import command, command_text, environment, launch_problems
from opensora_launch.plan.plan import Machine, make_plan

HOSTILE = Path("/runs of 'me'/\"x\" $HOME #é\n/attempts/0")


def test_torchrun() -> None:
    argv = command(LauncherKind.torchrun, Machine("cpu", 1, 3, 4), HOSTILE)
    assert argv[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert argv[argv.index("--nproc-per-node") + 1] == "3"
    assert argv[-4:] == ["-m", "opensora_launch.worker", "--attempt", str(HOSTILE)]


def test_inline_by_hand() -> None:
    argv = command(LauncherKind.inline, Machine("cpu", 1, 1, 4), HOSTILE)
    assert argv == [sys.executable, "-m", "opensora_launch.worker", "--attempt", str(HOSTILE)]


def test_the_shells_line_gives_the_same_argv_and_environment() -> None:
    machine = Machine("cpu", 1, 2, 6)
    plan = make_plan(RunConfig(), machine, (), "1")
    argv = command(LauncherKind.torchrun, machine, HOSTILE)
    words = shlex.split(command_text(argv, plan))
    assert words[2:] == argv
    env = environment(plan.threads_per_rank, {"PATH": "/bin"})
    assert env == {"PATH": "/bin", "OMP_NUM_THREADS": "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert words[:2] == [f"{name}={env[name]}" for name in ("OMP_NUM_THREADS", "CUDA_DEVICE_ORDER")]


@pytest.mark.parametrize(
    ("kind", "machine", "said"),
    [
        (LauncherKind.torchrun, Machine("cuda", 1, 8, 8), None),
        (LauncherKind.inline, Machine("cpu", 1, 1, 8), None),
        (LauncherKind.inline, Machine("cpu", 1, 2, 8), "launcher=inline is one rank"),
        (LauncherKind.torchrun, Machine("cuda", 2, 8, 8), "topology.nodes=2"),
    ],
)
def test_what_a_launcher_cannot_start(kind: LauncherKind, machine: Machine, said: str | None) -> None:
    problems = launch_problems(kind, machine)
    assert [said in line for line in problems] == ([True] if said else [])  # type: ignore[operator]
