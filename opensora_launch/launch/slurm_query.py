"""What Slurm says of a job, and what it is told. Text formats only: they are the same in all versions."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.errors import UserError

ASK_S = 30.0
OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array. `source` is who said so."""

    job: str
    state: str
    nodes: str
    reason: str
    exit_code: int | None
    source: str

    @property
    def over(self) -> bool:
        return self.state in OVER


def no_sbatch() -> list[str]:
    """Why nothing can be submitted from this host."""
    if shutil.which("sbatch"):
        return []
    return [
        "launcher=slurm: there is no sbatch on this host; run this on a login node, or show the script: dry_run=true"
    ]


def submit(script: Path) -> str:
    """The id of the new job. UserError with what sbatch says against it."""
    done = _run(["sbatch", "--parsable", str(script)])
    if done is None or done.returncode:
        said = done.stderr.strip() if done else "sbatch does not answer"
        raise UserError(
            f"sbatch does not take {script}", [line.removeprefix("sbatch: error: ") for line in said.splitlines()]
        )
    return done.stdout.split(";")[0].strip()


def estimate(script: str) -> list[str]:
    """What `sbatch --test-only` says of a script: when and where it would start, or why it cannot."""
    if no_sbatch():
        return []
    done = _run(["sbatch", "--test-only"], script)
    said = (done.stdout + done.stderr) if done else "sbatch does not answer"
    return [line.removeprefix("sbatch: ") for line in said.splitlines() if line.strip()]


def cancel(job: str) -> list[str]:
    """Cancel a job; what scancel says against it."""
    done = _run(["scancel", job])
    if done is None:
        return [f"scancel does not answer: job {job} may go on"]
    return done.stderr.split("\n")[:1] if done.returncode else []


def end_step(job: str, name: str) -> None:
    """End what is left of the job's steps of that name."""
    done = _run(["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i|%j"])
    for line in done.stdout.splitlines() if done and not done.returncode else []:
        step, _, called = line.partition("|")
        if called.strip() == name:
            _run(["scancel", "--signal=KILL", step.strip()])


def job_states(job: str) -> list[JobState]:
    """Every task of a job, from the first of squeue, scontrol and sacct that knows it; empty if none does."""
    for source in (_squeue, _scontrol, _sacct):
        if found := list(source(job)):
            return found
    return []


def exit_code(states: Sequence[JobState]) -> int:
    """Of a job that is over: its worst; a state that is no success is one even without a code."""
    codes = [s.exit_code or (0 if s.state == "COMPLETED" else 1) for s in states]
    return max(codes, default=1)


def _squeue(job: str) -> Iterator[JobState]:
    done = _run(["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i|%T|%N|%r"])
    for line in done.stdout.splitlines() if done and not done.returncode else []:
        name, state, nodes, reason = line.split("|", 3)
        yield JobState(name.strip(), state.strip(), nodes.strip(), reason.strip(), None, "squeue")


def _scontrol(job: str) -> Iterator[JobState]:
    done = _run(["scontrol", "--oneliner", "show", "job", job])
    for line in done.stdout.splitlines() if done and not done.returncode else []:
        found = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" not in found:
            continue
        name = found["JobId"]
        if "ArrayTaskId" in found:
            name = f"{found['ArrayJobId']}_{found['ArrayTaskId']}"
        nodes, code = found.get("NodeList", "").replace("(null)", ""), _code(found.get("ExitCode", "0:0"))
        yield JobState(name, found["JobState"], nodes, found.get("Reason", ""), code, "scontrol")


def _sacct(job: str) -> Iterator[JobState]:
    argv = [
        "sacct",
        "--jobs",
        job,
        "--noheader",
        "--parsable2",
        "--allocations",
        "--format=JobID,State,NodeList,ExitCode",
    ]
    done = _run(argv)
    for line in done.stdout.splitlines() if done and not done.returncode else []:
        name, state, nodes, code = line.split("|", 3)
        yield JobState(name, state.split()[0] if state else "unknown", nodes, "", _code(code), "sacct")


def final_states(job: str) -> list[JobState]:
    """The same with exit codes, which squeue does not tell."""
    return list(_scontrol(job)) or list(_sacct(job)) or job_states(job)


def _code(text: str) -> int:
    """ "75:0" is 75, "0:9" is 137."""
    code, _, signum = text.partition(":")
    return int(code) or (128 + int(signum) if int(signum or 0) else 0)


def _run(argv: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
