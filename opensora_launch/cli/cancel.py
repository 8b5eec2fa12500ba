"""`opensora-launch cancel RUN`: stop everything that works on a run."""

import signal
import socket
from dataclasses import replace

from opensora_launch import exit_codes
from opensora_launch.cli.status import one_run
from opensora_launch.machine import processes
from opensora_launch.request.flags import Parsed
from opensora_launch.runs.alive import is_rank_alive
from opensora_launch.runs.files import read_request
from opensora_launch.runs.state import (
    AttemptState,
    JobAnswer,
    Launched,
    launcher_alive,
    read_state,
    record_launch,
)
from opensora_launch.slurm.query import cancel_job

END_S = 15.0  # for a launcher to stop its ranks


def cancel_verb(parsed: Parsed) -> int:
    """Stop everything that works on a run; the exit code."""
    run_dir = one_run("cancel", parsed)
    read_request(run_dir)
    stopped, problems = list[str](), list[str]()
    state = read_state(run_dir)
    without_job = [a for a in state.attempts if not (a.launched and a.launched.job)]
    for lines, wrong in (*map(_cancel_job, state.jobs), *map(_cancel_attempt, without_job)):
        stopped += lines
        problems += wrong
    print("\n".join([*stopped, *problems]) or f"nothing works on {run_dir}")
    return exit_codes.FAILURE if problems else exit_codes.DONE


def _cancel_job(answer: JobAnswer) -> tuple[list[str], list[str]]:
    """Lines about what was stopped, and about what was not."""
    if answer.silence:
        return [], [
            f"job {answer.job} may still run: Slurm cannot be asked ({answer.silence}); scancel {answer.job} stops it"
        ]
    if answer.over:
        return [], []
    problems = cancel_job(answer.job)
    return ([] if problems else [f"job {answer.job} is cancelled"]), problems


def _cancel_attempt(attempt: AttemptState) -> tuple[list[str], list[str]]:
    """The same for an attempt without a job: its launcher, or its ranks on this host."""
    launched = attempt.launched
    alive = [beat for beat in attempt.beats if is_rank_alive(beat)]
    pids = [beat.pid for beat in alive if beat.host == socket.gethostname()]
    if launched and launcher_alive(launched):
        pids = [launched.pid]  # which stops its ranks
    elsewhere = sorted({beat.host for beat in alive} - {socket.gethostname()})
    problems = [f"attempt {attempt.number} runs on {host}: cancel it there" for host in elsewhere]
    processes.send(pids, signal.SIGTERM)
    if not processes.wait_for_end(pids, END_S):
        problems.append(f"attempt {attempt.number} does not stop: pids {', '.join(map(str, pids))}")
    if not pids or problems:
        return [], problems
    record_launch(attempt.folder, replace(launched or Launched("by hand"), ended="opensora-launch cancel"))
    return [f"attempt {attempt.number} is stopped"], []
