"""Run doctor on every node of a Slurm allocation: one task per node prints its results as JSON lines."""

import subprocess
import sys
from collections.abc import Mapping, Sequence

import msgspec

from opensora_launch.doctor.check_result import CheckResult, failure

NODE_TIMEOUT_S = 180.0
HERE = "--here"  # the flag that makes doctor check this node only


def nodes_of_job(env: Mapping[str, str]) -> int:
    """Number of nodes in this process's allocation; 1 outside of one, or inside one of its steps."""
    step = env.get("SLURM_STEP_ID", "")
    inside_a_task = step.isdigit() and env.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    text = env.get("SLURM_JOB_NUM_NODES", "1")
    return 1 if inside_a_task or not text.isdigit() else int(text)


def node_command(nodes: int, words: Sequence[str]) -> list[str]:
    """The argv that runs doctor once on each node, with the same flags and overrides."""
    step = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=0"]
    return [*step, sys.executable, "-m", "opensora_launch.cli", "doctor", HERE, *words]


def ask_nodes(nodes: int, words: Sequence[str], env: Mapping[str, str]) -> list[CheckResult]:
    """The results of every node, sorted by host. A node that does not answer becomes a result too."""
    argv = node_command(nodes, words)
    try:
        done = subprocess.run(argv, env=dict(env), capture_output=True, text=True, timeout=NODE_TIMEOUT_S)
        out, problem = done.stdout, done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        out, problem = "", str(error)
    found = [msgspec.json.decode(line, type=CheckResult) for line in out.splitlines() if line.startswith("{")]
    answered = len({result.host for result in found})
    if answered < nodes:
        last = problem.splitlines()[-1] if problem else "srun printed nothing"
        what = f"{answered} of {nodes} nodes answered: {last}"
        found.append(failure("nodes", what, "check with sinfo -R and srun hostname", "no cost"))
    return sorted(found, key=lambda result: result.host)


def to_line(result: CheckResult) -> str:
    """One line of JSON, short enough to arrive whole through srun."""
    return msgspec.json.encode(result).decode()
