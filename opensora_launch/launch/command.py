"""The command that starts the ranks, and their environment: pure functions to a list and a dict."""

import shlex
import sys
from collections.abc import Mapping, Sequence

from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LauncherKind
from opensora_launch.slurm.allocation import step_name

WORKER = "opensora_launch.worker"


def command(kind: LauncherKind, machine: Machine, attempt: AttemptDir, work: str = "--attempt") -> list[str]:
    """argv that makes the videos of an attempt, or with "--verify" compares. Ranks open logs/rank<R>.log themselves."""
    worker = ["-m", WORKER, work, str(attempt)]
    if kind is LauncherKind.inline:
        return [sys.executable, *worker]
    if kind is LauncherKind.srun:
        return [*_step(machine, attempt), sys.executable, *worker]
    # A host that cannot look up its own name is common; --standalone would ask for it without --local-addr.
    agent = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [sys.executable, *agent, "--nproc-per-node", str(machine.gpus_per_node), *worker]


def _step(machine: Machine, attempt: AttemptDir) -> list[str]:
    """srun with one task a rank. Steps of any size begin at the allocation's first node, so they meet the same ones."""
    per_node = machine.gpus_per_node
    return [
        "srun", f"--job-name={step_name(attempt)}", f"--nodes={machine.nodes}", "--relative=0",
        f"--ntasks={machine.ranks}", f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={max(1, machine.cpus_per_node // per_node)}",
        "--overlap", "--kill-on-bad-exit=1", "--export=ALL", "--unbuffered",
    ]  # fmt: skip


def environment(threads_per_rank: int, base: Mapping[str, str], gpus: Sequence[str] = ()) -> dict[str, str]:
    """`base` for the ranks: their threads, GPUs numbered as NVML numbers them, and only `gpus` where some are named."""
    named = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return {**base, "OMP_NUM_THREADS": str(threads_per_rank), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **named}


def command_text(argv: list[str], plan: Plan, made: Profiled | None = None) -> str:
    """A line for a shell that starts the same by hand, with what the profile has changed in the environment."""
    words = environment(plan.threads_per_rank, made.was_set if made else {}, plan.machine.gpus)
    taken = [word for name in (made.taken if made else ()) for word in ("-u", name)]
    assigned = [f"{name}={shlex.quote(value)}" for name, value in words.items()]
    return " ".join([*(["env", *taken] if taken else []), *assigned, shlex.join(argv)]) + "\n"


def launch_problems(kind: LauncherKind, machine: Machine) -> list[str]:
    """Why this launcher cannot start these ranks."""
    if kind is LauncherKind.srun:
        return []
    if machine.nodes > 1:
        return [
            f"topology.nodes={machine.nodes}: launcher={kind.value} starts the ranks of one machine; on Slurm use "
            f"launcher=slurm or, inside an allocation, launcher=srun; elsewhere start torchrun on each node by hand: "
            f"torchrun --nnodes {machine.nodes} --nproc-per-node {machine.gpus_per_node} "
            f"--rdzv-backend c10d --rdzv-endpoint HOST:PORT -m {WORKER} OVERRIDES"
        ]
    if kind is LauncherKind.inline and machine.ranks != 1:
        return [
            f"launcher=inline is one rank in this process and the topology has {machine.ranks}; "
            f"use topology=1gpu or topology=cpu1, or launcher=torchrun"
        ]
    return []
