"""doctor on every node of a Slurm allocation: one task a node looks at its host and prints its findings as lines."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from opensora_launch.doctor.results import Finding, Level

NODE_TIMEOUT_S = 180.0
HERE = "--here"  # the flag of doctor by which a node answers for itself


def nodes_of_job(env: Mapping[str, str]) -> int:
    """Nodes of the allocation that this process is in, if it is not one of its steps; else 1."""
    step = env.get("SLURM_STEP_ID", "")
    inside_a_task = step.isdigit() and env.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    text = env.get("SLURM_JOB_NUM_NODES", "1")
    return 1 if inside_a_task or not text.isdigit() else int(text)


def node_command(nodes: int, words: Sequence[str]) -> list[str]:
    """argv that runs doctor once on each node, with the same flags and overrides."""
    step = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=0"]
    return [*step, sys.executable, "-m", "opensora_launch.cli", "doctor", HERE, *words]


def ask_nodes(nodes: int, words: Sequence[str], env: Mapping[str, str]) -> list[Finding]:
    """The findings of every node, sorted by host; a node that does not answer is a finding too."""
    argv = node_command(nodes, words)
    try:
        done = subprocess.run(argv, env=dict(env), capture_output=True, text=True, timeout=NODE_TIMEOUT_S)
        out, problem = done.stdout, done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        out, problem = "", str(error)
    found = [from_line(line) for line in out.splitlines() if line.startswith("{")]
    answered = len({finding.host for finding in found})
    if answered < nodes:
        last = problem.splitlines()[-1] if problem else "no word from srun"
        found.append(
            Finding(
                Level.fail,
                "nodes",
                f"{answered} of {nodes} nodes answered: {last}",
                "sinfo -R; srun hostname",
                "no cost",
            )
        )
    return sorted(found, key=lambda finding: finding.host)


def to_line(finding: Finding) -> str:
    """One line of JSON, short enough to arrive whole through srun."""
    return json.dumps(finding.to_dict(), ensure_ascii=False)


def from_line(line: str) -> Finding:
    data = json.loads(line)
    return Finding(**{**data, "level": Level(data["level"])})
