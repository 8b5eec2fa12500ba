"""How a run ended: its videos, what is missing, why, and what to do next."""

import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.terminal import print_errors
from opensora_launch.launch.verdict import agent_exits, how_it_ended
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import constant_weights_lines, cut_prompts, stored_steps
from opensora_launch.runs.finished_videos import failed_videos, sample_files, unsettled_videos
from opensora_launch.runs.job_log import job_log
from opensora_launch.runs.state import AttemptState, RunState, read_state
from opensora_launch.slurm.query import JobState
from opensora_launch.telemetry.failure import Failure

_LIMITS = {
    "OUT_OF_MEMORY": "ask for more memory per node: launcher.slurm.mem=200G; 0 is all memory of a node",
    "TIMEOUT": "ask for more time: launcher.slurm.time=4:00:00",
}
TAIL_LINES = 12
LOG_BYTES = 64 * 1024
_NO_FOLDER = re.compile(
    r"launch failed: Slurmd could not (connect IO|set up)|is not a run's folder|[Cc]ould not open std"
)
_NO_PYTHON = re.compile(
    r"No module named |python\S*: (No such file|Permission denied|command not found)|execve\(\).*: |"
    r"ImportError|SyntaxError"
)


def print_samples(run_dir: RunDir, plan: Plan) -> None:
    """Print the file of each finished video, and what may be wrong with them."""
    images = () if plan.videos or plan.images is None else sample_files(run_dir.images, plan.images.videos)
    for path in (*images, *sample_files(run_dir, plan.videos)):
        print(path)
    print_errors([*cut_prompts(run_dir, plan.videos), *constant_weights_lines(run_dir)])


def what_is_missing(code: int, run_dir: RunDir, plan: Plan, ended: AttemptDir | None = None) -> tuple[int, list[str]]:
    """The exit code of a run whose ranks ended with `code`, and lines about videos that failed or are missing.

    A video that failed is a failure of the run, although its ranks end well. They may also leave videos to others that
    work on the run; if there are no others, that is a failure. `ended` is the attempt that is over.
    """
    if not run_dir.plan.exists():
        return exit_codes.FAILURE, [f"error: the run's folder {run_dir} was deleted while the run used it"]
    failed, missing = failed_lines(run_dir), unsettled_videos(run_dir, plan.videos)
    again = f"continue with --resume {run_dir}"
    if code == exit_codes.USER_ERROR or not missing:
        return code or (exit_codes.FAILURE if failed else code), [*failed, *([again] if failed else [])]
    line = f"{len(missing)} of {len(plan.videos)} videos {'is' if len(missing) == 1 else 'are'} missing"
    if code == exit_codes.DONE and read_state(run_dir).to_come(ended):
        others = f"{line}, and others work on them: opensora-launch status {run_dir}"
        return exit_codes.FAILURE if failed else code, [*failed, others]
    return code or exit_codes.FAILURE, [*failed, *stored_lines(run_dir), f"{line}; {again}"]


def failed_lines(run_dir: RunDir) -> list[str]:
    """Why each video failed that could not be made, while others were."""
    failed = failed_videos(run_dir)
    images = {name: why for name, why in failed_videos(run_dir.images).items() if name not in failed}
    return [
        *(f"the image {name} failed: {why}" for name, why in images.items()),
        *(f"{video} failed: {reason}" for video, reason in failed.items()),
    ]


def stored_lines(run_dir: RunDir) -> list[str]:
    """How far each unfinished batch is stored."""
    return [f"{name} is stored after step {step}" for name, step in stored_steps(run_dir)]


def last_error(state: RunState, told: Container[int] = ()) -> list[str]:
    """The error of the last attempt that had ranks, or that of its job if no rank could report one.

    Empty if that is one of the attempts whose failures are `told` already.
    """
    for attempt in reversed(state.attempts):
        if attempt.failure:
            return [] if attempt.number in told else list(failure_lines(attempt.failure, attempt.folder))
        if job := state.failed_job(attempt):
            return list(job_lines(job, attempt, state.attempts))
        if attempt.beats:
            break
    return []


def job_lines(job: JobState, attempt: AttemptState, attempts: Sequence[AttemptState]) -> Iterator[str]:
    """Why a job failed whose ranks left no error: Slurm's reason, the ends of its log and of the first rank's, a hint.

    The first rank is the one that srun names first.
    """
    why = [job.reason] if job.reason not in ("", "None") else []
    if code := job.exit_code:
        why.append(how_it_ended(code if code <= exit_codes.BY_SIGNAL else exit_codes.BY_SIGNAL - code))
    reasons = f": {', '.join(why)}" if why else ""
    yield f"error: job {job.job} ended as {job.state} on {job.nodes or 'no node'}{reasons}"
    log = job_log(attempts, attempt)
    said = _tail(log) if log else []
    exits = agent_exits("\n".join(said))
    logs = [log, *(attempt.folder.log(first.rank) for first in exits[:1])]
    tails = {path: lines for path in logs if path and (lines := _tail(path))}
    for path, lines in tails.items():
        yield f"log: {path}"
        yield from (f"  | {line}" for line in lines)
    text = "\n".join(line for lines in tails.values() for line in lines)
    if (log and not log.exists()) or _NO_FOLDER.search(text):
        where = f"{job.nodes} may not see {attempt.folder}"
        yield f"hint: {where}: put runs on a disk that all nodes share (runs_dir=FOLDER)"
    elif _NO_PYTHON.search(text):
        where = f"{job.nodes} may not have this Python with its packages"
        yield f"hint: {where}: put it on a disk that all nodes share, set launcher.slurm.python, or use a container"
    elif job.state in _LIMITS:
        yield f"hint: {_LIMITS[job.state]}"


def failure_lines(failure: Failure, attempt: AttemptDir) -> Iterator[str]:
    """The first rank that failed, its error, its log and the end of that. A user's mistake needs no log."""
    if failure.kind == "user":
        yield f"error: {failure.message}"
        return
    place = f" in phase {failure.phase}" if failure.phase else ""
    place += f", step {failure.step}" if failure.step is not None else ""
    named = failure.rank < 0 or failure.message.startswith("rank")  # as of a verdict; a rank's own error is not
    yield f"error: {'' if named else f'rank {failure.rank} on {failure.host} failed{place}: '}{failure.message}"
    logs = [attempt.log(failure.rank), attempt.starter_log, *sorted(attempt.logs.glob("job*.log"))]
    log = next((path for path in logs if _tail(path)), None)
    tail = [] if log == logs[0] else (failure.traceback or "").splitlines()[-TAIL_LINES:]
    if log:
        yield f"log: {log}"
        tail = tail or _tail(log)
    yield from (f"  | {line}" for line in tail)


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []
