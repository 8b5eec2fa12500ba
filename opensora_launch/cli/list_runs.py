"""`opensora-launch list [FOLDER]`: a line for each run in a folder."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.status import attempt_words
from opensora_launch.cli.terminal import StyledLine, print_lines, state_style
from opensora_launch.cli.view import clock
from opensora_launch.errors import UserError
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import RunDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.finished_videos import missing_videos
from opensora_launch.runs.newest import runs_in
from opensora_launch.runs.state import RunState, glance
from opensora_launch.schema.config import RunConfig

_COLUMNS = ("run", "state", "videos", "begun", "took", "effic.", "job")


def list_verb(parsed: Parsed) -> int:
    """Print a line for each run of a folder, and for each run of its sweeps; the exit code."""
    if len(parsed.rest) > 1:
        raise UserError(f"list takes one folder, not {len(parsed.rest)}: opensora-launch list FOLDER")
    folder = Path(parsed.rest[0] if parsed.rest else RunConfig().runs_dir)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: opensora-launch list FOLDER lists the runs of another one")
    found = runs_in(folder)
    states = glance(found)
    rows = [list(_row(folder, *one)) for one in zip(found, states, strict=True)]
    print_lines(_table(rows) if found else [[(f"no runs in {folder}", "")]])
    for silence in dict.fromkeys(answer.silence for state in states for answer in state.jobs if answer.silence):
        print(f"Slurm cannot be asked ({silence})", file=sys.stderr)
    return exit_codes.DONE


def _table(rows: Sequence[Sequence[str]]) -> Iterator[StyledLine]:
    """The rows under their names; a column without values is left out."""
    shown = [n for n in range(len(_COLUMNS)) if any(row[n] != "-" for row in rows)]
    whole = [[row[n] for n in shown] for row in (_COLUMNS, *rows)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for row in whole:
        name, state, *rest = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        bold = "bold" if row is whole[0] else ""
        yield [(f"{name}  ", bold), (state, bold or state_style(row[1])), ("  ".join(["", *rest]).rstrip(), bold)]


def _row(folder: Path, run: RunDir, state: RunState) -> Iterator[str]:
    """The cells of a run; "-" for what is not known or does not exist."""
    videos, missing = "?", True
    with suppress(UserError):  # the plan of another version
        plan = read_plan(run.plan)
        left = len(missing_videos(run, plan.videos))
        videos, missing = f"{len(plan.videos) - left} of {len(plan.videos)}", left > 0
    yield str(run.path.relative_to(folder)) if run.path != folder else run.path.resolve().name
    yield _words(state, missing=missing)
    yield videos
    begun_s = run.plan.stat().st_mtime
    yield time.strftime("%Y-%m-%d %H:%M", time.localtime(begun_s))
    worked_s, efficiency = _reported(run)
    yield clock(max(0.0, _last_activity_s(run) - begun_s) if worked_s is None else worked_s)
    yield "-" if efficiency is None else f"{efficiency:.0%}"
    launched = [attempt.launched for attempt in state.attempts if attempt.launched]
    yield next((one.job.partition("_")[0] or one.allocation for one in reversed(launched)), "") or "-"


def _reported(run: RunDir) -> tuple[float | None, float | None]:
    """How long all attempts of a run worked, and its efficiency, by its report; None if that does not say."""
    try:
        report = json.loads(run.report_json.read_text(encoding="utf-8"))
        found = report["efficiency"]
        return sum(a["wall_s"] for a in report["attempts"]), found and found["job"]["efficiency"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


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
