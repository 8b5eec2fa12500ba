"""`opensora-launch cancel RUN`: stop everything that works on a run."""

import signal
import socket
from collections.abc import Sequence
from dataclasses import replace

from opensora_launch import exit_codes
from opensora_launch.cli.status import one_run
from opensora_launch.machine import processes
from opensora_launch.request.flags import Parsed
from opensora_launch.runs.files import read_request
from opensora_launch.runs.state import AttemptState, JobAnswer, Launched, launcher_alive, read_state, record_launch
from opensora_launch.slurm.query import NoAnswer, cancel_job, steps_named
from opensora_launch.telemetry.stall import Beat

END_S = 15.0  # for a launcher to stop its ranks


def cancel_verb(parsed: Parsed) -> int:
    """Stop everything that works on a run; the exit code."""
    run_dir = one_run("cancel", parsed)
    read_request(run_dir)
    stopped, problems = list[str](), list[str]()
    state = read_state(run_dir)
    without_job = [a for a in state.attempts if not a.job]
    cancelled = [_cancel_attempt(attempt, state.beats_alive(attempt)) for attempt in without_job]
    for lines, wrong in (*map(_cancel_job, state.jobs), *cancelled):
        stopped += lines
        problems += wrong
    print("\n".join([*stopped, *problems]) or f"nothing works on {run_dir}")
    return exit_codes.FAILURE if problems else exit_codes.DONE


def _cancel_job(answer: JobAnswer) -> tuple[list[str], list[str]]:
    """Lines about what was stopped, and about what was not."""
    if answer.silence:
        why = f"Slurm cannot be asked ({answer.silence})"
        return [], [f"job {answer.job} may still run: {why}; scancel {answer.job} stops it"]
    if answer.over:
        return [], []
    problems = cancel_job(answer.job)
    return ([] if problems else [f"job {answer.job} is cancelled"]), problems


def _cancel_attempt(attempt: AttemptState, alive: Sequence[Beat]) -> tuple[list[str], list[str]]:
    """The same for an attempt without a job: its launcher, its step, or its ranks on this host.

    `alive` are ranks at work.
    """
    launched = attempt.launched
    pids = [beat.pid for beat in alive if beat.host == socket.gethostname()]
    if launched and launcher_alive(launched):
        pids = [launched.pid]  # which stops its ranks
    processes.send(pids, signal.SIGTERM)
    processes.send(pids, signal.SIGCONT)  # a process that is stopped does not end before
    problems = []
    if not processes.wait_for_end(pids, END_S):
        problems.append(f"attempt {attempt.number} does not stop: pids {', '.join(map(str, pids))}")
    steps = list[str]()
    if launched and launched.allocation:
        steps, wrong = _cancel_steps(launched)
        problems += wrong
    else:
        elsewhere = sorted({beat.host for beat in alive} - {socket.gethostname()})
        problems += [f"attempt {attempt.number} runs on {host}: cancel it there" for host in elsewhere]
    if problems or not (pids or steps):
        return [], problems
    record_launch(attempt.folder, replace(launched or Launched("by hand"), ended="opensora-launch cancel"))
    return [f"attempt {attempt.number} is stopped" + "".join(f", step {step} is cancelled" for step in steps)], []


def _cancel_steps(launched: Launched) -> tuple[list[str], list[str]]:
    """The steps that were cancelled, and what was not. They are on any nodes of the allocation."""
    job = launched.allocation
    try:
        steps = steps_named(job, launched.step)
    except NoAnswer as silence:
        return [], [f"a step of job {job} may still run: Slurm cannot be asked ({silence}); scancel {job} ends the job"]
    return steps, [line for step in steps for line in cancel_job(step)]
