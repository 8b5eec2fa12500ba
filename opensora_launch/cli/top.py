"""`opensora-launch top RUN`: what each rank does now, and its GPU. On a terminal a table that moves, else lines."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.live import Use, rank_metas, rank_uses, share_done, stuck_s
from opensora_launch.runs.state import AttemptState, is_alive, launcher_alive, read_attempts, state_of
from opensora_launch.slurm.query import NoAnswer, job_states
from opensora_launch.telemetry.stall import Beat

LOOK_S = 1.0
LINE_EVERY_S = 30.0
LEAST_SHARE = 0.02  # done, before the rest is guessed
HOME = "\x1b[H\x1b[2J"  # and clear


def top(parsed: Parsed) -> int:
    """Watch the newest attempt of a run until nobody works on it any more; the exit code."""
    if len(parsed.rest) != 1:
        raise UserError(f"top takes one run's folder, not {len(parsed.rest)}: opensora-launch top runs/STAMP")
    run_dir = RunDir(Path(parsed.rest[0]))
    if not read_attempts(run_dir):
        raise UserError(f"{run_dir} is not a run's folder: it has no attempts")
    live = sys.stdout.isatty()
    last_s = float("-inf")
    while True:
        attempt = read_attempts(run_dir)[-1]
        ended = is_over(attempt)
        now = time.monotonic()
        if live or ended or now - last_s >= LINE_EVERY_S:
            lines = rank_lines(attempt.folder, attempt.beats, time.time())
            print((HOME if live else "") + "\n".join(lines), flush=True)
            last_s = now
        if ended or parsed.has("--once"):
            return 0
        time.sleep(LOOK_S)


def is_over(attempt: AttemptState) -> bool:
    """No rank is alive, as `status` tells it, and none will be: the launcher has ended, or the job is over."""
    if attempt.failure is None and any(is_alive(beat) for beat in attempt.beats):
        return False
    launched = attempt.launched
    if launched is None:
        return bool(attempt.beats)
    if launched.job:
        try:
            states = job_states(launched.job)
        except NoAnswer:
            states = []
        return all(state.over for state in states) if states else bool(attempt.beats)
    alive = launcher_alive(launched)
    return not alive if alive is not None else bool(attempt.beats)


def rank_lines(attempt: AttemptDir, beats: Sequence[Beat], now: float) -> list[str]:
    """A line for the run and one for each rank."""
    if not beats:
        return ["no rank has given a sign of life"]
    uses = rank_uses(attempt, beats)
    started = min((m["start_epoch_s"] for m in rank_metas(attempt).values()), default=now)
    head = ["rank", "host", "doing", "step", "use", "memory", "power", "stuck since"]
    rows = [head, *(_row(b, uses.get(b.rank, Use()), now) for b in beats)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [summary(beats, now - started), *lines]


def summary(beats: Sequence[Beat], passed_s: float) -> str:
    """Videos, and when they will be done if the rest takes as long as what is behind."""
    lost, failed = sum(state_of(b) == "lost" for b in beats), sum(b.state == "failed" for b in beats)
    running = sum(state_of(b) == "running" for b in beats)
    ends = [f"{count} of them {how}" for count, how in ((failed, "failed"), (lost, "lost without a word")) if count]
    if not running:
        return ", ".join([f"all {len(beats)} ranks have ended", *ends])
    share = share_done(beats) or 0.0
    eta = f", about {passed_s * (1 - share) / share:.0f} s to go" if share > LEAST_SHARE else ""
    at_work = ", ".join([f"{running} of {len(beats)} ranks at work", *ends])
    return f"{at_work}, {share:.0%} done after {passed_s:.0f} s{eta}"


def _row(beat: Beat, use: Use, now: float) -> list[str]:
    state = state_of(beat)
    doing = beat.phase if state == "running" else f"{state} in {beat.phase}" if state == "lost" else state
    stuck = stuck_s(beat, now)
    waits = "" if stuck is None else f"{stuck:.0f} s in {beat.collective}"
    step = f"{beat.step + 1}/{beat.steps}" if beat.step is not None and beat.steps else ""
    return [str(beat.rank), beat.host, f"{doing} {beat.video or ''}".strip(), step, *use.cells, waits]
