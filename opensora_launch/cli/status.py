"""`opensora-launch status RUN` and `cancel RUN`: from the run's folder, and from Slurm where it knows the job."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from opensora_launch.cli.flags import Parsed
from opensora_launch.cli.progress import describe
from opensora_launch.errors import UserError
from opensora_launch.launch import processes
from opensora_launch.launch.run_dir import missing_videos, read_run
from opensora_launch.launch.run_state import (
    AttemptState,
    is_alive,
    jobs_of,
    launcher_alive,
    read_attempts,
    seconds_left,
    state_of,
)
from opensora_launch.launch.slurm_query import cancel as scancel
from opensora_launch.launch.slurm_query import job_states
from opensora_launch.plan.plan import Plan
from opensora_launch.telemetry.stall import Beat

END_S = 15.0  # for a launcher to end its ranks


def status(parsed: Parsed) -> int:
    """Print what is known of a run; 0."""
    run_dir = _run_dir("status", parsed)
    plan, _, _ = read_run(run_dir)
    print("\n".join(status_lines(run_dir, plan)))
    return 0


def cancel(parsed: Parsed) -> int:
    """End all that works on a run; 0, or 1 where something goes on."""
    run_dir = _run_dir("cancel", parsed)
    read_run(run_dir)
    said, left = [], []
    attempts = read_attempts(run_dir)
    by_hand = [a for a in attempts if not (a.launched and a.launched.job)]
    for done, problems in (*map(_cancel_job, jobs_of(attempts)), *map(_cancel, by_hand)):
        said += done
        left += problems
    print("\n".join([*said, *left]) or f"nothing works on {run_dir}")
    return 1 if left else 0


def status_lines(run_dir: Path, plan: Plan) -> Iterator[str]:
    """State, step, time left, nodes and logs of the ranks, and the last error."""
    missing = missing_videos(run_dir, plan.videos)
    yield f"run: {run_dir}"
    yield f"videos: {len(plan.videos) - len(missing)} of {len(plan.videos)} done"
    attempts = read_attempts(run_dir)
    for job in jobs_of(attempts):
        yield from _job_lines(job)
    shown = [a for a in attempts if a.at_work] or [a for a in attempts if a.beats][-1:]
    for attempt in shown:
        yield f"attempt {attempt.number}: {_state(attempt)}"
        yield from (f"  {_rank_line(attempt, beat)}" for beat in attempt.beats)
        if (left_s := seconds_left(attempt, _steps_to_come(attempt, plan, run_dir))) is not None:
            yield f"  about {time.strftime('%H:%M:%S', time.gmtime(left_s))} of denoising left"
    if missing:
        yield from attempt_errors(run_dir)


def attempt_errors(run_dir: Path) -> Iterator[str]:
    """The last attempt's error, with the log of its rank."""
    from opensora_launch.cli.start import failure_lines

    for attempt in reversed(read_attempts(run_dir)):
        if attempt.failure:
            yield from failure_lines(attempt.failure, attempt.folder)
            return
        if attempt.beats:
            return


def _job_lines(job: str) -> Iterator[str]:
    states = job_states(job)
    if not states:
        yield f"job {job}: squeue, scontrol and sacct do not know it (any more)"
    for state in states:
        place = f" on {state.nodes}" if state.nodes else f" ({state.reason})" if state.reason else ""
        yield f"job {state.job}: {state.state}{place}, says {state.source}"


def _state(attempt: AttemptState) -> str:
    kinds = {beat.state for beat in attempt.beats}
    if attempt.at_work:
        return "running"
    if attempt.failure:
        return "failed"
    for state in ("preempted", "failed"):
        if state in kinds:
            return state
    return "done" if kinds == {"done"} else "stopped without a word"


def _rank_line(attempt: AttemptState, beat: Beat) -> str:
    log = attempt.folder / "logs" / f"rank{beat.rank}.log"
    state = state_of(beat)
    where = describe([beat])
    where = f"silent for {time.time() - beat.time_s:.0f} s, {where}" if state == "lost" else where
    return f"rank {beat.rank} on {beat.host}: {state}" + (f", {where}" if beat.state == "running" else "") + f"; {log}"


def _steps_to_come(attempt: AttemptState, plan: Plan, run_dir: Path) -> list[int]:
    """Steps of the videos that are neither finished nor in the making, of each group of ranks."""
    now = {beat.video for beat in attempt.beats if is_alive(beat)}
    waiting = [v.guidance.num_steps for v in missing_videos(run_dir, plan.videos) if v.name not in now]
    return waiting[:: plan.dp]


def _cancel_job(job: str) -> tuple[list[str], list[str]]:
    if all(state.over for state in job_states(job)):
        return [], []
    problems = scancel(job)
    return ([] if problems else [f"job {job} is cancelled"]), problems


def _cancel(attempt: AttemptState) -> tuple[list[str], list[str]]:
    """What was ended, and what could not be."""
    launched = attempt.launched
    alive = [beat for beat in attempt.beats if is_alive(beat)]
    own = [beat.pid for beat in alive if beat.host == socket.gethostname()]
    if launched and launcher_alive(launched):
        own = [launched.pid]  # which ends its ranks
    elsewhere = sorted({beat.host for beat in alive} - {socket.gethostname()})
    left = [f"attempt {attempt.number} runs on {host}: cancel it there" for host in elsewhere]
    processes.send(own, signal.SIGTERM)
    if not processes.wait_for_end(own, END_S):
        left.append(f"attempt {attempt.number} does not end: pids {', '.join(map(str, own))}")
    return [f"attempt {attempt.number} is ended"] if own and not left else [], left


def _run_dir(verb: str, parsed: Parsed) -> Path:
    if len(parsed.rest) != 1:
        raise UserError(f"{verb} takes one run's folder, not {len(parsed.rest)}: opensora-launch {verb} runs/STAMP")
    return Path(parsed.rest[0]).absolute()
