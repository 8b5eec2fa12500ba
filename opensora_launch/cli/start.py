"""Start an attempt, show how it goes, and say how it ended."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from opensora_launch.cli.progress import progress
from opensora_launch.cli.submit import print_samples, what_is_missing
from opensora_launch.launch.command import command, environment
from opensora_launch.launch.env_profile import Profiled, applied
from opensora_launch.launch.supervise import Outcome, Task, supervise
from opensora_launch.plan.placement import in_words
from opensora_launch.plan.plan import Plan
from opensora_launch.request.attempt import new_attempt
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import missing_videos
from opensora_launch.runs.state import record_launch, this_process
from opensora_launch.schema.config import LauncherKind
from opensora_launch.slurm.allocation import step_name
from opensora_launch.slurm.query import end_step
from opensora_launch.telemetry.failure import Failure, read_failure

TAIL_LINES = 12
LOG_BYTES = 64 * 1024


def start(kind: LauncherKind, plan: Plan, attempt: AttemptDir, made: Profiled) -> int:
    """Make the videos of an attempt, in the environment `made`; the exit code.

    Where memory runs out, the run goes on once from where it was, with less of its weights on a rank (`fit=auto`).
    """
    run_dir = attempt.run
    outcome = _attempt(kind, plan, attempt, made)
    if less := _with_less(kind, plan, attempt, outcome):
        plan = less
        attempt = new_attempt(run_dir, plan, kind, made)
        outcome = _attempt(kind, plan, attempt, made)
    print_samples(run_dir, plan)
    code, said = _ending(outcome, plan, attempt)
    for line in said:
        print(line, file=sys.stderr)
    if outcome.code == 0:
        print("\n".join(_report(run_dir)), flush=True)
    print(f"run: {run_dir}")
    return code


def _attempt(kind: LauncherKind, plan: Plan, attempt: AttemptDir, made: Profiled) -> Outcome:
    launched = this_process(kind.value)
    record_launch(attempt, launched)
    outcome = _inline(attempt, made) if kind is LauncherKind.inline else _watched(kind, plan, attempt, made)
    if outcome.code > 128:
        record_launch(attempt, replace(launched, ended=signal.Signals(outcome.code - 128).name))
    return outcome


def _with_less(kind: LauncherKind, plan: Plan, attempt: AttemptDir, outcome: Outcome) -> Plan | None:
    """The plan to go on with, if memory has run out and there is one; says so. Not in this process: it is spent."""
    if outcome.failure is None or outcome.failure.kind != "memory" or kind is LauncherKind.inline:
        return None
    less = plan.with_less(missing_videos(attempt.run, plan.videos))
    if less:
        where = f"in phase {outcome.failure.phase}" if outcome.failure.phase else "while loading"
        print(f"rank {outcome.failure.rank} ran out of memory {where}", file=sys.stderr)
        print(f"going on from there with {in_words(less.placement)}", file=sys.stderr, flush=True)
    return less


def report_lines(run_dir: RunDir, baseline: Path | None = None) -> list[str]:
    """Write the run's report, and return its summary."""
    from opensora_launch.report.build import build_report, summary_lines

    return list(summary_lines(build_report(run_dir.path, baseline=baseline)))


def _report(run_dir: RunDir) -> list[str]:
    """The videos are there: a disk that is full by now costs the report, not the run."""
    try:
        return report_lines(run_dir)
    except OSError as error:
        return [f"no report, {error.strerror}; make room, then: opensora-launch report {run_dir}"]


def _inline(attempt: AttemptDir, made: Profiled) -> Outcome:
    with applied(made):  # before torch is imported, which reads some of it then
        from opensora_launch import worker

        try:
            code = worker.main(["--attempt", str(attempt)])
        except KeyboardInterrupt:  # before or after the rank's own care
            code = 128 + signal.SIGINT
    return Outcome(code, read_failure(attempt) if code else None)


def _watched(kind: LauncherKind, plan: Plan, attempt: AttemptDir, made: Profiled) -> Outcome:
    argv = command(kind, plan.machine, attempt)
    env = environment(plan.threads_per_rank, made.env, plan.machine.gpus)
    task = Task(argv, env, attempt, plan.machine.ranks, plan.timeout_s)
    try:
        with progress() as show:
            return supervise(task, partial(show, attempt))
    finally:
        if kind is LauncherKind.srun:  # whatever has become of srun: its ranks are on other hosts
            end_step(os.environ.get("SLURM_JOB_ID", ""), step_name(attempt))


def _ending(outcome: Outcome, plan: Plan, attempt: AttemptDir) -> tuple[int, list[str]]:
    """The exit code, and what a user needs to know of a run that did not end well."""
    said = list[str]()
    if outcome.failure:
        said += failure_lines(outcome.failure, attempt)
    elif outcome.code > 128:
        said.append(f"ended by {signal.Signals(outcome.code - 128).name}")
    code, more = what_is_missing(outcome.code, attempt.run, plan, attempt)
    return code, [*said, *more]


def failure_lines(failure: Failure, attempt: AttemptDir) -> Iterator[str]:
    """The first failing rank, its error, its log and the end of that. A user's mistake needs no log."""
    if failure.kind == "user":
        yield f"error: {failure.message}"
        return
    place = f" in phase {failure.phase}" if failure.phase else ""
    place += f", step {failure.step}" if failure.step is not None else ""
    named = failure.message.startswith("rank")  # a verdict on a rank says who and where; a rank's own error does not
    yield f"error: {'' if named else f'rank {failure.rank} on {failure.host} failed{place}: '}{failure.message}"
    log = attempt.log(failure.rank)
    if not log.exists() or not log.stat().st_size:
        log = attempt.starter_log
    yield f"log: {log}"
    yield from (f"  | {line}" for line in _tail(log))


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []
