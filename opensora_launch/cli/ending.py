"""How a run ended: its videos, what is missing, why, and what to do next."""

from collections.abc import Iterator
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.terminal import print_errors
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import cut_prompts, missing_videos, sample_files, stored_steps
from opensora_launch.runs.state import read_attempts, read_state
from opensora_launch.telemetry.failure import Failure

TAIL_LINES = 12
LOG_BYTES = 64 * 1024


def print_samples(run_dir: RunDir, plan: Plan) -> None:
    """Print the file of each finished video."""
    for path in sample_files(run_dir, plan.videos):
        print(path)
    print_errors(cut_prompts(run_dir, plan.videos))


def what_is_missing(code: int, run_dir: RunDir, plan: Plan, ended: AttemptDir | None = None) -> tuple[int, list[str]]:
    """The exit code of a run whose ranks ended with `code`, and lines about missing videos.

    Ranks may end well and leave videos to others that work on the run. If there are no others, that is a failure.
    `ended` is the attempt that is over.
    """
    missing = missing_videos(run_dir, plan.videos)
    if code == exit_codes.USER_ERROR or not missing:
        return code, []
    line = f"{len(missing)} of {len(plan.videos)} videos {'is' if len(missing) == 1 else 'are'} missing"
    if code == exit_codes.DONE and read_state(run_dir).to_come(ended):
        return code, [f"{line}, and others work on them: opensora-launch status {run_dir}"]
    return code or exit_codes.FAILURE, [*stored_lines(run_dir), f"{line}; continue with --resume {run_dir}"]


def stored_lines(run_dir: RunDir) -> list[str]:
    """How far each unfinished batch is stored."""
    return [f"{name} is stored after step {step}" for name, step in stored_steps(run_dir)]


def last_error(run_dir: RunDir) -> list[str]:
    """The error of the last attempt that had ranks."""
    for attempt in reversed(read_attempts(run_dir)):
        if attempt.failure:
            return list(failure_lines(attempt.failure, attempt.folder))
        if attempt.beats:
            break
    return []


def failure_lines(failure: Failure, attempt: AttemptDir) -> Iterator[str]:
    """The first rank that failed, its error, its log and the end of that. A user's mistake needs no log."""
    if failure.kind == "user":
        yield f"error: {failure.message}"
        return
    place = f" in phase {failure.phase}" if failure.phase else ""
    place += f", step {failure.step}" if failure.step is not None else ""
    named = failure.message.startswith("rank")  # a verdict on a rank names it; a rank's own error does not
    yield f"error: {'' if named else f'rank {failure.rank} on {failure.host} failed{place}: '}{failure.message}"
    log = attempt.log(failure.rank)
    if not log.exists() or not log.stat().st_size:
        log = attempt.starter_log
    yield f"log: {log}"
    yield from (f"  | {line}" for line in _tail(log))


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []
