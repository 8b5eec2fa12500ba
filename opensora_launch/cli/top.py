"""`opensora-launch top RUN`: what each rank does now, and its GPU. A table that moves on a terminal, else lines."""

import sys
import time
from typing import TYPE_CHECKING

from opensora_launch import exit_codes
from opensora_launch.cli.status import one_run
from opensora_launch.cli.top_table import rank_lines, rank_table
from opensora_launch.cli.view import LINE_EVERY_S, RunView, screen
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
    run_dir = one_run("top", parsed)
    if not read_attempts(run_dir):
        raise UserError(f"{run_dir} is not a run's folder: it has no attempts")
    last_s = float("-inf")
    views = dict[AttemptDir, RunView]()
    with screen(sys.stdout) as live:
        while True:
            attempt = read_attempts(run_dir)[-1]
            view = views.setdefault(attempt.folder, RunView(attempt.folder))
            view.look(attempt.beats)
            view.stopped = bool(attempt.stopped_by)
            if parsed.has("--once") or any(rank_state(beat) == "lost" for beat in view.beats):
                view.suspended = is_job_suspended(attempt)
            alive = any(view.state(beat) in ("running", "suspended") for beat in view.beats)
            ended, now = is_over(attempt, alive=alive), time.monotonic()
            if live:
                live.update(_picture(view, run_dir, live.console.width), refresh=True)
            elif ended or now - last_s >= LINE_EVERY_S:
                last_s = now
                lines = [view.summary(), *rank_lines(view), *_preview_line(run_dir)] if view.beats else [NO_RANK]
                print("\n".join(lines), flush=True)
            if ended or parsed.has("--once"):
                return exit_codes.DONE
            time.sleep(_LOOK_S)


def _picture(view: RunView, run_dir: RunDir, width: int) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    hosts = dict.fromkeys(beat.host for beat in view.beats)
    head = Text.assemble((run_dir.path.name, "bold"), f", attempt {view.attempt.number}, {', '.join(hosts)}")
    if not view.beats:
        return Group(head, NO_RANK)
    return Group(head, Text(view.summary()), view.bar(), Text(), rank_table(view, width), *_preview_line(run_dir))


def _preview_line(run_dir: RunDir) -> list[str]:
    newest = newest_preview(run_dir)
    return [f"preview: {newest}"] if newest else []
