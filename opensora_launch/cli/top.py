"""`opensora-launch top RUN`: what each rank does now, and its GPU. A table that moves on a terminal, else lines."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from opensora_launch import exit_codes
from opensora_launch.cli.view import LINE_EVERY_S, RunView, rank_lines, rank_table, screen
from opensora_launch.errors import UserError
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.alive import rank_state
from opensora_launch.runs.files import newest_preview
from opensora_launch.runs.state import is_job_suspended, is_over, read_attempts

if TYPE_CHECKING:
    from rich.console import RenderableType

_LOOK_S = 1.0
NO_RANK = "no rank has reported yet"


def top_verb(parsed: Parsed) -> int:
    """Watch the newest attempt of a run until nothing works on it; the exit code."""
    if len(parsed.rest) != 1:
        raise UserError(f"top takes one run's folder, not {len(parsed.rest)}: opensora-launch top runs/STAMP")
    run_dir = RunDir(Path(parsed.rest[0]))
    if not read_attempts(run_dir):
        raise UserError(f"{run_dir} is not a run's folder: it has no attempts")
    last_s = float("-inf")
    views = dict[AttemptDir, RunView]()
    with screen(sys.stdout) as live:
        while True:
            attempt = read_attempts(run_dir)[-1]
            view = views.setdefault(attempt.folder, RunView(attempt.folder))
            view.look(attempt.beats)
            if parsed.has("--once") or any(rank_state(beat) == "lost" for beat in view.beats):
                view.suspended = is_job_suspended(attempt)
            alive = any(view.state(beat) in ("running", "suspended") for beat in view.beats)
            ended, now = is_over(attempt, alive=alive), time.monotonic()
            if live:
                live.update(_picture(view, run_dir), refresh=True)
            elif ended or now - last_s >= LINE_EVERY_S:
                last_s = now
                lines = [view.summary(), *rank_lines(view), *_preview_line(run_dir)] if view.beats else [NO_RANK]
                print("\n".join(lines), flush=True)
            if ended or parsed.has("--once"):
                return exit_codes.DONE
            time.sleep(_LOOK_S)


def _picture(view: RunView, run_dir: RunDir) -> "RenderableType":
    from rich.console import Group

    if not view.beats:
        return NO_RANK
    return Group(view.summary(), view.bar(), rank_table(view), *_preview_line(run_dir))


def _preview_line(run_dir: RunDir) -> list[str]:
    newest = newest_preview(run_dir)
    return [f"preview: {newest}"] if newest else []
