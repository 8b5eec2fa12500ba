"""Slurm's variables about this task, read by pure functions of the environment. No torch."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from opensora_launch.errors import UserError

FIRST_PORT, PORTS, STRIDE = 20_000, 10_000, 101
SCONTROL_S = 15.0


@dataclass(frozen=True)
class SrunStep:
    """This task among those that one srun started."""

    rank: int
    local_rank: int
    tasks: int
    local_tasks: int


def read_step(env: Mapping[str, str]) -> SrunStep | None:
    """Read the variables of the step; None if srun did not start this process."""
    if "SLURM_STEP_NUM_TASKS" not in env or "SLURM_PROCID" not in env:
        return None
    tasks = int(env["SLURM_STEP_NUM_TASKS"])
    by_node = counts_by_node(env.get("SLURM_STEP_TASKS_PER_NODE", env["SLURM_STEP_NUM_TASKS"]))
    node = int(env.get("SLURM_NODEID", "0"))
    return SrunStep(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", "0")), tasks, by_node[node])


def counts_by_node(text: str) -> list[int]:
    """Read a list of counts: "2(x3),1" is 2, 2, 2, 1."""
    return [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def refuse_two_worlds(step: SrunStep, world: int, local_world: int) -> None:
    """Raise UserError if srun started torchrun more than once on a node, or started separate torchruns."""
    if step.local_tasks == 1 and step.tasks * local_world == world:
        return
    raise UserError(
        f"srun started {step.tasks} tasks ({step.local_tasks} on this node), each a torchrun of {world} ranks: "
        f"start one torchrun per node (srun --ntasks-per-node=1) with --nnodes={step.tasks}, or none at all"
    )


def head_host(env: Mapping[str, str]) -> str:
    """The host of rank 0: HEAD_ADDRESS, MASTER_ADDR, or the first node of the job by scontrol."""
    if given := env.get("HEAD_ADDRESS") or env.get("MASTER_ADDR"):
        return given
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    try:
        return _scontrol("show", "hostnames", nodes).split()[0]
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"the first node of {nodes} cannot be found ({error}): set MASTER_ADDR and MASTER_PORT"
        ) from error


def node_address(node: str) -> str:
    """The address at which Slurm itself reaches a node; "" if it does not know the node, or cannot be asked."""
    try:
        found = re.search(r"\bNodeAddr=(\S+)", _scontrol("--oneliner", "show", "node", node))
    except (OSError, subprocess.SubprocessError):
        return ""
    return found[1] if found else ""


def _scontrol(*words: str) -> str:
    argv = ["scontrol", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=SCONTROL_S, check=True).stdout


def head_port(env: Mapping[str, str]) -> int:
    """MASTER_PORT, or a port made from the numbers of the job and the step."""
    if env.get("MASTER_PORT"):
        return int(env["MASTER_PORT"])
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env.get("SLURM_STEP_ID", "0"))
    return FIRST_PORT + (job + STRIDE * step) % PORTS


def job_id(env: Mapping[str, str]) -> str:
    """The job, the same after restarts, or "12_3" for a task of an array; empty outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
    return env.get("SLURM_JOB_ID", "")


def job_name(env: Mapping[str, str]) -> str:
    return f"slurm {job_id(env)}" if job_id(env) else ""
