"""Submit, cancel and query Slurm jobs. Uses text formats only, which are the same in all versions."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.errors import UserError

ASK_S, SUBMIT_S = 10.0, 60.0
OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip


class NoAnswer(Exception):
    """Slurm cannot be queried now. `slow`: its daemon did not answer in time."""

    def __init__(self, message: str, *, slow: bool = False) -> None:
        super().__init__(message)
        self.slow = slow


@dataclass(frozen=True)
class JobState:
    """The state of one job, or of one task of an array. `source` is the command that reported it."""

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
    """The reason why this host cannot submit jobs, if there is one."""
    if shutil.which("sbatch"):
        return []
    return ["launcher=slurm: there is no sbatch on this host; use a login node, or show the script with dry_run=true"]


def submit_job(script: Path) -> str:
    """Submit a script; the id of the new job. Raises UserError with the message of sbatch."""
    done = _run(["sbatch", "--parsable", str(script)], within_s=SUBMIT_S)
    if done is None or done.returncode:
        message = done.stderr.strip() if done else f"no answer within {SUBMIT_S:.0f} s"
        raise UserError(
            f"sbatch refuses {script}", [line.removeprefix("sbatch: error: ") for line in message.splitlines()]
        )
    return done.stdout.split(";")[0].strip()


def estimate_start(script: str) -> list[str]:
    """The answer of `sbatch --test-only` for a script: when and where it would start, or why it cannot."""
    if no_sbatch():
        return []
    done = _run(["sbatch", "--test-only"], script)
    text = (done.stdout + done.stderr) if done else "sbatch does not answer"
    return [line.removeprefix("sbatch: ") for line in text.splitlines() if line.strip()]


def cancel_job(job: str) -> list[str]:
    """Cancel a job; the message of scancel if it fails."""
    done = _run(["scancel", job])
    if done is None:
        return [f"scancel does not answer; job {job} may still run"]
    return done.stderr.split("\n")[:1] if done.returncode else []


def end_step(job: str, name: str) -> None:
    """End the steps of a job that have this name and still run."""
    done = _run(["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i|%j"])
    for line in done.stdout.splitlines() if done and not done.returncode else []:
        step, _, called = line.partition("|")
        if called.strip() == name:
            _run(["scancel", "--signal=KILL", step.strip()])


def job_states(job: str) -> list[JobState]:
    """The state of every task of a job, by the first of squeue, scontrol and sacct that knows it; else empty.

    Raises NoAnswer if Slurm cannot be queried.
    """
    return _ask(job, (_squeue, _scontrol, _sacct))


def final_states(job: str) -> list[JobState]:
    """The states of a job that is over, with exit codes, which squeue does not report."""
    return _ask(job, (_scontrol, _sacct, _squeue))


def exit_code(states: Sequence[JobState]) -> int:
    """The exit code of a job that is over, as this launcher's own: the worst of 1, 2, 75 and 0.

    A state other than success is a failure even without a code, and so is a script that a signal ended.
    """
    codes = {_ours(state) for state in states} or {1}
    return next(code for code in (1, 2, 75, 0) if code in codes)


def _ours(state: JobState) -> int:
    code = state.exit_code or (0 if state.state == "COMPLETED" else 1)
    return code if code in (0, 2, 75) else 1


def _ask(job: str, sources: Sequence[Callable[[str], Iterator[JobState]]]) -> list[JobState]:
    answered, silences = False, list[NoAnswer]()
    for source in sources:
        try:
            if found := list(source(job)):
                return found
        except NoAnswer as error:
            silences.append(error)
            if error.slow:  # the others would query the same daemon
                break
        else:
            answered |= source is not _sacct  # without accounting, sacct knows no job at all
    if not answered:
        raise next((s for s in silences if s.slow), silences[0])
    return []


def _squeue(job: str) -> Iterator[JobState]:
    for line in _lines(["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i|%T|%N|%r"]):
        name, state, nodes, reason = line.split("|", 3)
        yield JobState(name.strip(), state.strip(), nodes.strip(), reason.strip(), None, "squeue")


def _scontrol(job: str) -> Iterator[JobState]:
    for line in _lines(["scontrol", "--oneliner", "show", "job", job]):
        found = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" not in found:
            continue
        name = found["JobId"]
        if "ArrayTaskId" in found:
            name = f"{found['ArrayJobId']}_{found['ArrayTaskId']}"
        nodes, code = found.get("NodeList", "").replace("(null)", ""), _code(found.get("ExitCode", "0:0"))
        yield JobState(name, found["JobState"], nodes, found.get("Reason", ""), code, "scontrol")


def _sacct(job: str) -> Iterator[JobState]:
    asked = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList,ExitCode"]
    for line in _lines(["sacct", "--jobs", job, *asked]):
        name, state, nodes, code = line.split("|", 3)
        yield JobState(name, state.split()[0] if state else "unknown", nodes, "", _code(code), "sacct")


def _code(text: str) -> int:
    """ "75:0" is 75, "0:9" is 137."""
    code, _, signum = text.partition(":")
    return int(code) or (128 + int(signum) if int(signum or 0) else 0)


def _lines(argv: Sequence[str]) -> list[str]:
    """The output of a command that was asked for a job; empty if it does not know the job."""
    if shutil.which(argv[0]) is None:
        raise NoAnswer(f"there is no {argv[0]} on this host")
    done = _run(argv)
    if done is None:
        raise NoAnswer(f"{argv[0]} does not answer within {ASK_S:.0f} s", slow=True)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise NoAnswer(f"{argv[0]}: {done.stderr.strip().partition(chr(10))[0] or f'exit code {done.returncode}'}")
    return [] if done.returncode else done.stdout.splitlines()


def _run(
    argv: Sequence[str], text: str | None = None, within_s: float = ASK_S
) -> subprocess.CompletedProcess[str] | None:
    """Run a command; None if it does not exist or takes too long."""
    try:
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=within_s)
    except (OSError, subprocess.TimeoutExpired):
        return None
