"""`opensora-launch runs [FOLDER]`: a line for each run in a folder."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.status import attempt_words
from opensora_launch.errors import UserError
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import RunDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.finished_videos import missing_videos
from opensora_launch.runs.state import RunState, glance

_COLUMNS = ("run", "state", "videos", "job", "last activity")


def runs_verb(parsed: Parsed) -> int:
    """Print a line for each run of a folder, and for each run of its sweeps; the exit code."""
    if len(parsed.rest) > 1:
        raise UserError(f"runs takes one folder, not {len(parsed.rest)}: opensora-launch runs FOLDER")
    folder = Path(parsed.rest[0] if parsed.rest else "runs")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: opensora-launch runs FOLDER lists the runs of another one")
    found = [RunDir(path.parent) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/plan.json")]
    found.sort(key=lambda run: run.path)
    states = glance(found)
    rows = [list(_COLUMNS), *(list(_row(folder, *one)) for one in zip(found, states, strict=True))]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS))]
    for row in rows if found else [[f"no runs in {folder}"]]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    for silence in dict.fromkeys(answer.silence for state in states for answer in state.jobs if answer.silence):
        print(f"Slurm cannot be asked ({silence})", file=sys.stderr)
    return exit_codes.DONE


def _row(folder: Path, run: RunDir, state: RunState) -> Iterator[str]:
    """The cells of a run."""
    videos, missing = "?", True
    with suppress(UserError):  # the plan of another version
        plan = read_plan(run.plan)
        left = len(missing_videos(run, plan.videos))
        videos, missing = f"{len(plan.videos) - left} of {len(plan.videos)}", left > 0
    yield str(run.path.relative_to(folder))
    yield _words(state, missing=missing)
    yield videos
    launched = [attempt.launched for attempt in state.attempts if attempt.launched]
    yield next((one.job.partition("_")[0] or one.allocation for one in reversed(launched)), "") or "-"
    yield time.strftime("%Y-%m-%d %H:%M", time.localtime(_last_activity_s(run)))


def _words(state: RunState, *, missing: bool) -> str:
    """What a run does, or how it ended."""
    jobs = [job for answer in state.jobs for job in answer.states if not job.over]
    suspended = [a for a in state.attempts if (job := state.job_state(a)) and job.suspended]
    if busy := [*suspended, *state.at_work]:
        return attempt_words(busy[-1], state)
    if jobs:
        return jobs[0].state.lower()
    if not missing:
        return "done"
    if any(answer.silence for answer in state.jobs):
        return "unknown"
    if any(state.failed_job(attempt) for attempt in state.attempts[-1:]):
        return "failed"
    last = [attempt for attempt in state.attempts if attempt.beats or attempt.failure or attempt.ended][-1:]
    words = [attempt_words(attempt, state) for attempt in last] or ["not started"]
    return "incomplete" if words == ["done"] else words[0]


def _last_activity_s(run: RunDir) -> float:
    """When a video, a checkpoint, an attempt or a heartbeat was last written: a folder changes with its files."""
    attempts = [folder for attempt in run.attempts() for folder in (attempt.path, attempt.heartbeats)]
    return max(path.stat().st_mtime for path in (run.path, run.samples, run.checkpoints, *attempts) if path.exists())
