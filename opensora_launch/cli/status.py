"""`opensora-launch status RUN`: the state of a run, from its folder and, for a batch job, from Slurm."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.ending import last_error, stored_lines
from opensora_launch.cli.view import clock, describe
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import RunDir
from opensora_launch.runs.alive import rank_state
from opensora_launch.runs.files import missing_videos, read_request
from opensora_launch.runs.progress import Pace
from opensora_launch.runs.state import (
    AttemptState,
    JobAnswer,
    RunState,
    read_state,
)
from opensora_launch.telemetry.stall import Beat


def status_verb(parsed: Parsed) -> int:
    """Print the state of a run; the exit code."""
    run_dir = one_run("status", parsed)
    plan, _, _ = read_request(run_dir)
    print("\n".join(status_lines(run_dir, plan)))
    return exit_codes.DONE


def status_lines(run_dir: RunDir, plan: Plan) -> Iterator[str]:
    """Videos done, time left, jobs, the ranks with their steps and logs, and the last error."""
    missing = missing_videos(run_dir, plan.videos)
    yield f"run: {run_dir}"
    state = read_state(run_dir)
    at_work = state.at_work
    yield f"videos: {len(plan.videos) - len(missing)} of {len(plan.videos)} done{_time_left(at_work)}"
    for answer in state.jobs:
        yield from _job_lines(answer)
    for attempt in at_work or [a for a in state.attempts if a.beats][-1:]:
        yield f"attempt {attempt.number}: {_in_words(attempt, state)}"
        yield from (f"  {_rank_line(attempt, beat, attempt in at_work)}" for beat in attempt.beats)
    if missing:
        yield from stored_lines(run_dir) if not at_work else ()
        yield from last_error(run_dir)


def _job_lines(answer: JobAnswer) -> Iterator[str]:
    if answer.silence:
        yield f"job {answer.job}: Slurm cannot be asked ({answer.silence})"
    elif not answer.states:
        yield f"job {answer.job}: not known to squeue, scontrol and sacct (any more)"
    for state in answer.states:
        place = f" on {state.nodes}" if state.nodes else f" ({state.reason})" if state.reason else ""
        yield f"job {state.job}: {state.state}{place}, according to {state.source}"


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
    return f"over, its job is {job.state}" if job and job.over else "stopped without a report"


def _rank_line(attempt: AttemptState, beat: Beat, at_work: bool) -> str:
    log = attempt.folder.log(beat.rank)
    state = rank_state(beat) if at_work or beat.state != "running" else "lost"
    where = describe([beat])
    where = f"silent for {time.time() - beat.time_s:.0f} s, {where}" if state == "lost" else where
    return f"rank {beat.rank} on {beat.host}: {state}" + (f", {where}" if beat.state == "running" else "") + f"; {log}"


def _time_left(at_work: Sequence[AttemptState]) -> str:
    pace = Pace([attempt.folder for attempt in at_work])
    pace.look([beat for attempt in at_work for beat in attempt.beats])
    left_s = pace.seconds_left(time.time())
    return "" if left_s is None else f", about {clock(left_s)} left"


def one_run(verb: str, parsed: Parsed) -> RunDir:
    """The run's folder that a command line names."""
    if len(parsed.rest) != 1:
        raise UserError(f"{verb} takes one run's folder, not {len(parsed.rest)}: opensora-launch {verb} runs/STAMP")
    return RunDir(Path(parsed.rest[0]).absolute())
