"""`opensora-launch status RUN`: the state of a run, from its folder and, for a batch job, from Slurm."""

import re
import time
from collections.abc import Iterator, Sequence

from opensora_launch import exit_codes
from opensora_launch.cli.ending import failed_lines, last_error, stored_lines
from opensora_launch.cli.terminal import StyledLine, print_lines, state_style, summary_line
from opensora_launch.cli.view import clock, describe
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import RunDir
from opensora_launch.runs.alive import is_suspended
from opensora_launch.runs.files import read_request
from opensora_launch.runs.finished_videos import missing_videos
from opensora_launch.runs.newest import named_run
from opensora_launch.runs.progress import Pace
from opensora_launch.runs.state import AttemptState, JobAnswer, RunState, is_job_suspended, read_state
from opensora_launch.slurm.pending import advice_on
from opensora_launch.telemetry.stall import Beat


def status_verb(parsed: Parsed) -> int:
    """Print the state of a run; the exit code."""
    run_dir = one_run("status", parsed)
    plan, _, _ = read_request(run_dir)
    print_lines(map(_styled, status_lines(run_dir, plan)))
    return exit_codes.DONE


def _styled(line: str) -> StyledLine:
    """The states of attempts and ranks stand out, and so do errors."""
    found = re.match(r"( *(?:attempt|  rank) \d+[^:]*: )([^;,]*)(.*)", line)
    if found:
        return [(found[1], ""), (found[2], state_style(found[2])), (found[3], "")]
    return [(line, "bold red")] if line.startswith("error:") else summary_line(line)


def status_lines(run_dir: RunDir, plan: Plan) -> Iterator[str]:
    """Videos done, time left, jobs, the ranks with their steps and logs, and the last error."""
    missing, failed = missing_videos(run_dir, plan.videos), failed_lines(run_dir)
    yield f"run: {run_dir}"
    state = read_state(run_dir)
    at_work = state.at_work
    moving = [attempt for attempt in at_work if attempt_words(attempt, state) == "running"]
    done = f"{len(plan.videos) - len(missing)} of {len(plan.videos)} done"
    yield f"videos: {done}{f', {len(failed)} failed' if failed else ''}{_time_left(moving)}"
    yield from failed
    for answer in state.jobs:
        yield from _job_lines(answer)
    shown = at_work or [a for a in state.attempts if a.beats][-1:] or [a for a in state.attempts if not state.jobs][-1:]
    if not shown and not state.jobs:
        yield f"stopped before its first attempt; continue with --resume {run_dir}"
    for attempt in shown:
        a_step = bool(attempt.launched and attempt.launched.allocation)  # whose job is not among those of the run
        stopped = a_step and not state.was_ended(attempt) and is_job_suspended(attempt)
        yield f"attempt {attempt.number}: {'suspended by Slurm' if stopped else attempt_words(attempt, state)}"
        for beat in attempt.beats:
            still = "suspended" if stopped and beat.state == "running" else _rank_state(attempt, beat, state)
            yield f"  {_rank_line(attempt, beat, still)}"
    if missing:
        yield from stored_lines(run_dir) if not at_work else ()
        yield from last_error(state)


def _job_lines(answer: JobAnswer) -> Iterator[str]:
    if answer.silence:
        yield f"job {answer.job}: Slurm cannot be asked ({answer.silence})"
    elif not answer.states:
        yield f"job {answer.job}: not known to squeue, scontrol and sacct (any more)"
    for state in answer.states:
        place = f" on {state.nodes}" if state.nodes else f" ({state.reason})" if state.reason else ""
        start = f", expected to start at {state.expected}" if state.expected else ""
        yield f"job {state.job}: {state.state}{place}{start}, according to {state.source}"
        if state.waits and (advice := advice_on(state.reason)):
            yield f"  it does not start by waiting: {advice}"


def attempt_words(attempt: AttemptState, state: RunState) -> str:
    """Whether an attempt is at work, and otherwise how it ended."""
    kinds, job = {beat.state for beat in attempt.beats}, state.job_state(attempt)
    if job and job.suspended and not attempt.failure:
        return "suspended by Slurm"
    if state.works(attempt):
        return "suspended" if all(map(is_suspended, state.beats_alive(attempt))) else "running"
    if attempt.stopped_by:
        return f"stopped by {attempt.stopped_by}"
    if attempt.failure:
        return "failed"
    for kind in ("preempted", "failed"):
        if kind in kinds:
            return kind
    if kinds == {"done"}:
        return "done"
    if state.requeued(attempt):
        return "requeued"
    return f"over, its job is {job.state}" if job and not job.at_work else "stopped without a report"


def _rank_state(attempt: AttemptState, beat: Beat, state: RunState) -> str:
    """What its heartbeat says; of a rank that has not ended and writes none, whether it is lost or suspended."""
    job = state.job_state(attempt)
    if beat.state == "running" and ((job and job.suspended) or is_suspended(beat)):
        return "suspended"
    if attempt.stopped_by and beat.state in ("running", "failed"):
        return "stopped"
    silent = beat.state == "running" and not (state.works(attempt) and beat in state.beats_alive(attempt))
    return "lost" if silent else beat.state


def _rank_line(attempt: AttemptState, beat: Beat, state: str) -> str:
    log = attempt.folder.log(beat.rank)
    where = describe([beat]) if beat.state == "running" else ""
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
    return RunDir(named_run(parsed.rest[0]).absolute())
