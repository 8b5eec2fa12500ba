"""The command that starts the ranks, and their environment. Pure functions."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from opensora_launch.errors import UserError
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LauncherKind
from opensora_launch.slurm.allocation import step_name

WORKER = "opensora_launch.worker"

# What a torchrun, an operator of Kubernetes or an interactive shell has set for ranks of its own. Our torchrun would
# take it for its options, and our ranks for their places.
_FOR_OTHERS = re.compile(
    r"PET_.*|TORCHELASTIC_.*|TORCH_ELASTIC_.*|LOGLEVEL|PYTHON_EXEC|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME"
)
_FOR_STEPS = re.compile(r"SLURM_.*|MASTER_ADDR|MASTER_PORT")
# What an enclosing job has set: a job that is submitted from it would take its ids, limits and GPUs for its own.
# SBATCH_* would override the options of our script. How to reach Slurm stays.
_FOR_OTHER_JOBS = re.compile(
    r"SLURM_(?!(CONF|CLUSTERS|JWT)$).*|SBATCH_.*|SRUN_.*|MASTER_ADDR|MASTER_PORT|CUDA_VISIBLE_DEVICES"
)


def command(kind: LauncherKind, machine: Machine, attempt: AttemptDir, work: str = "--attempt") -> list[str]:
    """The argv that makes the videos of an attempt, or compares with "--verify". Ranks open their logs themselves."""
    worker = ["-m", WORKER, work, str(attempt)]
    if kind is LauncherKind.inline:
        return [sys.executable, *worker]
    if kind is LauncherKind.srun:
        return [*_step(machine, attempt), sys.executable, *worker]
    return torchrun(machine, worker[1:])


def torchrun(machine: Machine, words: Sequence[str]) -> list[str]:
    """The argv that starts `python -m WORDS` once per rank on this machine. It leaves no folder of logs in TMPDIR."""
    # Many hosts cannot resolve their own name, which --standalone needs without --local-addr.
    options = ["--standalone", "--local-addr", "127.0.0.1", "--log-dir", os.devnull]
    ranks = ["--nproc-per-node", str(machine.gpus_per_node)]
    return [sys.executable, "-m", "torch.distributed.run", *options, *ranks, "-m", *words]


def without_others(base: Mapping[str, str], kind: LauncherKind) -> dict[str, str]:
    """`base` without the variables that others have set for their ranks and jobs.

    The ranks of srun keep those of the job that they are in; a new batch job gets none of another job's.
    """
    further = {LauncherKind.srun: None, LauncherKind.slurm: _FOR_OTHER_JOBS}.get(kind, _FOR_STEPS)
    return {
        name: value
        for name, value in base.items()
        if not _FOR_OTHERS.fullmatch(name) and not (further and further.fullmatch(name))
    }


def refuse_as_rank(env: Mapping[str, str], verb: str) -> None:
    """Raise UserError if torchrun started this command: each of its ranks would start ranks of its own."""
    if "TORCHELASTIC_RUN_ID" in env:
        raise UserError(
            f"torchrun has started {verb}, which would make a run for each of its ranks: start opensora-launch without "
            f"torchrun; or, for ranks that you start yourself: torchrun ... -m {WORKER} ..."
        )


def _step(machine: Machine, attempt: AttemptDir) -> list[str]:
    """srun with one task per rank. Steps of any size begin at the first node, so they use the same nodes."""
    per_node = machine.gpus_per_node
    return [
        "srun", f"--job-name={step_name(attempt)}", f"--nodes={machine.nodes}", "--relative=0",
        f"--ntasks={machine.ranks}", f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={max(1, machine.cpus_per_node // per_node)}",
        "--overlap", "--kill-on-bad-exit=1", "--export=ALL", "--unbuffered",
    ]  # fmt: skip


def environment(threads_per_rank: int, base: Mapping[str, str], gpus: Sequence[str] = ()) -> dict[str, str]:
    """The ranks' environment: `base`, their threads, GPUs in NVML's order, and only `gpus` if some are named.

    A file of the working folder that is named like a module must not be imported in its place (PYTHONSAFEPATH).
    """
    named = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    fixed = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTHONSAFEPATH": "1"}
    return {**base, "OMP_NUM_THREADS": str(threads_per_rank), **fixed, **named}


def command_text(argv: list[str], plan: Plan, made: Profiled | None = None) -> str:
    """A shell line that starts the same ranks by hand, with the changes of the environment profile."""
    words = environment(plan.threads_per_rank, made.was_set if made else {}, plan.machine.gpus)
    taken = [word for name in (made.taken if made else ()) for word in ("-u", name)]
    assigned = [f"{name}={shlex.quote(value)}" for name, value in words.items()]
    return " ".join([*(["env", *taken] if taken else []), *assigned, shlex.join(argv)]) + "\n"


def launch_problems(kind: LauncherKind, machine: Machine) -> list[str]:
    """Every reason why this launcher cannot start these ranks."""
    if kind is LauncherKind.srun:
        return []
    if machine.nodes > 1:
        return [
            f"topology.nodes={machine.nodes}: launcher={kind.value} starts ranks on one machine; on Slurm use "
            f"launcher=slurm or, inside an allocation, launcher=srun; elsewhere start torchrun on each node by hand: "
            f"torchrun --nnodes {machine.nodes} --nproc-per-node {machine.gpus_per_node} "
            f"--rdzv-backend c10d --rdzv-endpoint HOST:PORT -m {WORKER} OVERRIDES"
        ]
    if kind is LauncherKind.inline and machine.ranks != 1:
        return [
            f"launcher=inline runs one rank in this process, but the topology has {machine.ranks}; "
            f"use topology=1gpu or topology=cpu1, or launcher=torchrun"
        ]
    return []
