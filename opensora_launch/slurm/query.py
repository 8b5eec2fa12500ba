"""Submit, cancel and query Slurm jobs. Uses text formats only, which are the same in all versions."""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.errors import UserError

ASK_S, SUBMIT_S = 10.0, 60.0
LOOKS, LOOK_UP_S = 3, 3.0  # for a job whose id sbatch did not tell
OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
AT_WORK = ("RESIZING", "RUNNING", "SIGNALING", "STOPPED", "SUSPENDED")  # a job has nodes, and may have ranks
COMPLETING = "COMPLETING"  # what is left of a job is being ended; then it is over, or waits again

# What `sbatch --parsable` prints, and the errors after which its job may be there all the same.
_JOB_ID = re.compile(r"^(\d+)(?:;\S+)?\s*$", re.MULTILINE)
_UNDECIDED = re.compile(r"timed out|Zero Bytes|Unexpected message", re.IGNORECASE)


class MaybeSubmitted(UserError):
    """The job may be there or may still come, so its folder must stay."""


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
    expected: str = ""  # when Slurm expects to start a job that waits

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def failed(self) -> bool:
        """Whether it is over, and neither done nor stopped on request."""
        return self.over and self.state not in ("COMPLETED", "CANCELLED") and self.exit_code != exit_codes.PREEMPTED

    @property
    def at_work(self) -> bool:
        return self.state in AT_WORK

    @property
    def suspended(self) -> bool:
        """Whether its processes are stopped until somebody resumes it."""
        return self.state in ("SUSPENDED", "STOPPED")

    @property
    def waits(self) -> bool:
        """Whether the job has no nodes and will get some."""
        return not (self.over or self.at_work or self.state == COMPLETING)


def no_sbatch() -> list[str]:
    """The reason why this host cannot submit jobs, if there is one."""
    if shutil.which("sbatch"):
        return []
    return ["launcher=slurm: there is no sbatch on this host; use a login node, or show the script with dry_run=true"]


def submit_job(script: Path, env: Mapping[str, str], look_s: float = LOOK_UP_S) -> str:
    """Submit a script; the id of the new job, which gets `env`.

    If sbatch does not tell the id, looks for the job every `look_s` seconds. Raises MaybeSubmitted if that does not
    find it, and UserError with the message of sbatch if it refuses the script.
    """
    done = _run(["sbatch", "--parsable", str(script)], within_s=SUBMIT_S, env=env)
    message = done.stderr if done else f"no answer within {SUBMIT_S:.0f} s"
    if done and not done.returncode:
        if ids := _JOB_ID.findall(done.stdout):  # a site's wrapper may print more
            return str(ids[-1])
        message = f"no job id in its output: {done.stdout.strip() or 'nothing'}"
    said = [line.removeprefix("sbatch: error: ") for line in message.strip().splitlines()]
    if done and done.returncode and not _UNDECIDED.search(message):
        raise UserError(f"sbatch refuses {script}", said)
    for look in range(LOOKS):
        time.sleep(look_s if look else 0)
        if job := _job_of(script):
            return job
    raise MaybeSubmitted(
        f"it is not known whether Slurm has taken {script}",
        [
            *said,
            "squeue shows no such job now, or does not answer; look later: squeue --me --format='%i %T %o'",
            "if the job is there, status and cancel of the run's folder find it; if it is not, submit it:",
            f"sbatch {shlex.quote(str(script))}",
        ],
    )


def _job_of(script: Path) -> str | None:
    """The id of this user's job that was made of a script; None if Slurm does not know one or does not answer."""
    done = _run(["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%F|%o"])
    lines = done.stdout.splitlines() if done and not done.returncode else []
    return next(
        (job.strip() for job, _, command in (line.partition("|") for line in lines) if command == str(script)), None
    )


def estimate_start(script: str, env: Mapping[str, str]) -> list[str]:
    """The answer of `sbatch --test-only` for a script: when and where it would start, or why it cannot."""
    if no_sbatch():
        return []
    done = _run(["sbatch", "--test-only"], script, env=env)
    text = (done.stdout + done.stderr) if done else "sbatch does not answer"
    return [line.removeprefix("sbatch: ") for line in text.splitlines() if line.strip()]


def cancel_job(job: str) -> list[str]:
    """Cancel a job, or a step ("12.3"); the message of scancel if it fails."""
    done = _run(["scancel", job])
    if done is None:
        return [f"scancel does not answer; {'step' if '.' in job else 'job'} {job} may still run"]
    return done.stderr.split("\n")[:1] if done.returncode else []


def steps_named(job: str, name: str) -> list[str]:
    """The ids ("12.3") of the steps of a job that have this name and still run. Raises NoAnswer."""
    lines = _lines(["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i|%j"])
    return [step.strip() for step, _, called in (line.partition("|") for line in lines) if called.strip() == name]


def kill_steps(job: str, name: str) -> None:
    """End the steps of a job that have this name, if Slurm answers."""
    with suppress(NoAnswer):
        for step in steps_named(job, name):
            _run(["scancel", "--signal=KILL", step])


def job_states(job: str) -> list[JobState]:
    """The state of every task of a job, by the first of squeue, scontrol and sacct that knows it; else empty.

    Raises NoAnswer if Slurm cannot be queried.
    """
    return _ask(job, (_squeue, _scontrol, _sacct))


def final_states(job: str) -> list[JobState]:
    """The states of a job that is over, with exit codes, which squeue does not report."""
    return _ask(job, (_scontrol, _sacct, _squeue))


def known_states(jobs: Sequence[str]) -> list[JobState]:
    """The states of those jobs that squeue still knows, by one question. Raises NoAnswer."""
    return list(_squeue(",".join(jobs))) if jobs else []


def lost_nodes(nodes: str) -> list[str]:
    """Those of a job's nodes that are down or do not answer, with Slurm's reason: "n2 (Not responding)"."""
    try:
        lines = _lines(["sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N|%T|%E"])
    except NoAnswer:
        return []
    found = dict[str, None]()  # a node has a line per partition
    for name, state, reason in (line.split("|", 2) for line in lines):
        if state.endswith("*") or state.startswith(("down", "fail", "unk")):
            found[name if reason.strip() in ("", "none") else f"{name} ({reason.strip()})"] = None
    return list(found)


def exit_code(states: Sequence[JobState]) -> int:
    """The exit code of a job that is over, as this launcher's own: the worst of 1, 2, 75 and 0.

    A state other than success is a failure even without a code, and so is a script that a signal ended.
    """
    codes = {state.exit_code or int(state.state != "COMPLETED") for state in states}
    if not codes or codes - {0, 2, 75}:
        return 1
    return next(code for code in (2, 75, 0) if code in codes)


def _ask(job: str, sources: Sequence[Callable[[str], Iterator[JobState]]]) -> list[JobState]:
    answered, silences = False, list[NoAnswer]()
    for source in sources:
        try:
            if found := list(source(job)):
                return found
            answered |= source is not _sacct  # without accounting, sacct knows no job at all
        except NoAnswer as error:
            silences.append(error)
            if error.slow:  # the others would query the same daemon
                break
    if not answered:
        raise next((s for s in silences if s.slow), silences[0])
    return []


def _squeue(job: str) -> Iterator[JobState]:
    asked = ["--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i|%T|%N|%r|%S"]
    for line in _lines(["squeue", *asked]):
        name, state, nodes, reason, *start = (word.strip() for word in line.split("|"))
        found = JobState(name, state, nodes, reason, None, "squeue")
        yield replace(found, expected=start[0]) if found.waits and start and start[0] != "N/A" else found


def _scontrol(job: str) -> Iterator[JobState]:
    for line in _lines(["scontrol", "--oneliner", "show", "job", job]):
        found = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" not in found:
            continue
        name = f"{found['ArrayJobId']}_{found['ArrayTaskId']}" if "ArrayTaskId" in found else found["JobId"]
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
    argv: Sequence[str], text: str | None = None, within_s: float | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run a command, in this process's environment if no other is given; None if it is not there or takes too long."""
    try:
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=within_s or ASK_S, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
