"""`opensora-launch status RUN` and `cancel RUN`: from the run's folder, and from Slurm where it knows the job."""

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch.cli.progress import describe
from opensora_launch.errors import UserError
from opensora_launch.machine import processes
from opensora_launch.plan.plan import Plan
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import RunDir
from opensora_launch.runs.files import missing_videos, read_run, stored_steps
from opensora_launch.runs.state import (
    AttemptState,
    JobAnswer,
    Launched,
    RunState,
    is_alive,
    launcher_alive,
    read_attempts,
    read_state,
    record_launch,
    seconds_left,
    state_of,
)
from opensora_launch.slurm.query import cancel as scancel
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
    state = read_state(run_dir)
    by_hand = [a for a in state.attempts if not (a.launched and a.launched.job)]
    for done, problems in (*map(_cancel_job, state.jobs), *map(_cancel, by_hand)):
        said += done
        left += problems
    print("\n".join([*said, *left]) or f"nothing works on {run_dir}")
    return 1 if left else 0


def status_lines(run_dir: RunDir, plan: Plan) -> Iterator[str]:
    """State, step, time left, nodes and logs of the ranks, and the last error."""
    missing = missing_videos(run_dir, plan.videos)
    yield f"run: {run_dir}"
    yield f"videos: {len(plan.videos) - len(missing)} of {len(plan.videos)} done"
    state = read_state(run_dir)
    for answer in state.jobs:
        yield from _job_lines(answer)
    at_work = state.at_work
    for attempt in at_work or [a for a in state.attempts if a.beats][-1:]:
        yield f"attempt {attempt.number}: {_in_words(attempt, state)}"
        yield from (f"  {_rank_line(attempt, beat, attempt in at_work)}" for beat in attempt.beats)
        left_s = seconds_left(attempt, _steps_to_come(at_work, plan, run_dir)) if attempt in at_work else None
        if left_s is not None:
            yield f"  about {time.strftime('%H:%M:%S', time.gmtime(left_s))} of denoising left"
    if missing:
        yield from stored_lines(run_dir) if not at_work else ()
        yield from attempt_errors(run_dir)


def stored_lines(run_dir: RunDir) -> list[str]:
    """Where batches stand that are not finished."""
    return [f"{name} is stored after step {step}" for name, step in stored_steps(run_dir)]


def attempt_errors(run_dir: RunDir) -> Iterator[str]:
    """The last attempt's error, with the log of its rank."""
    from opensora_launch.cli.start import failure_lines

    for attempt in reversed(read_attempts(run_dir)):
        if attempt.failure:
            yield from failure_lines(attempt.failure, attempt.folder)
            return
        if attempt.beats:
            return


def _job_lines(answer: JobAnswer) -> Iterator[str]:
    if answer.silence:
        yield f"job {answer.job}: Slurm cannot be asked ({answer.silence})"
    elif not answer.states:
        yield f"job {answer.job}: squeue, scontrol and sacct do not know it (any more)"
    for state in answer.states:
        place = f" on {state.nodes}" if state.nodes else f" ({state.reason})" if state.reason else ""
        yield f"job {state.job}: {state.state}{place}, says {state.source}"


def _in_words(attempt: AttemptState, state: RunState) -> str:
    kinds = {beat.state for beat in attempt.beats}
    if state.works(attempt):
        return "running"
    if attempt.ended:
        return f"ended by {attempt.ended}"
    if attempt.failure:
        return "failed"
    for kind in ("preempted", "failed"):
        if kind in kinds:
            return kind
    if kinds == {"done"}:
        return "done"
    if state.requeued(attempt):
        return "requeued"
    job = state.job_state(attempt)
    return f"over, its job is {job.state}" if job and job.over else "stopped without a word"


def _rank_line(attempt: AttemptState, beat: Beat, at_work: bool) -> str:
    log = attempt.folder.log(beat.rank)
    state = state_of(beat) if at_work or beat.state != "running" else "lost"
    where = describe([beat])
    where = f"silent for {time.time() - beat.time_s:.0f} s, {where}" if state == "lost" else where
    return f"rank {beat.rank} on {beat.host}: {state}" + (f", {where}" if beat.state == "running" else "") + f"; {log}"


def _steps_to_come(at_work: Sequence[AttemptState], plan: Plan, run_dir: RunDir) -> list[int]:
    """Steps of the videos that nobody makes yet, as they fall to one of the groups of ranks that are at work."""
    now = {beat.video for attempt in at_work for beat in attempt.beats if is_alive(beat)}
    waiting = [v.guidance.num_steps for v in missing_videos(run_dir, plan.videos) if v.name not in now]
    return waiting[:: plan.dp * max(1, len(at_work))]


def _cancel_job(answer: JobAnswer) -> tuple[list[str], list[str]]:
    if answer.silence:
        return [], [
            f"job {answer.job} may go on: Slurm cannot be asked ({answer.silence}); scancel {answer.job} ends it"
        ]
    if answer.over:
        return [], []
    problems = scancel(answer.job)
    return ([] if problems else [f"job {answer.job} is cancelled"]), problems


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
    if not own or left:
        return [], left
    record_launch(attempt.folder, replace(launched or Launched("by hand"), ended="opensora-launch cancel"))
    return [f"attempt {attempt.number} is ended"], []


def _run_dir(verb: str, parsed: Parsed) -> RunDir:
    if len(parsed.rest) != 1:
        raise UserError(f"{verb} takes one run's folder, not {len(parsed.rest)}: opensora-launch {verb} runs/STAMP")
    return RunDir(Path(parsed.rest[0]).absolute())
