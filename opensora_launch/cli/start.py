"""Start an attempt on this host or in this allocation, show its progress, and tell how it ended."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

from opensora_launch import exit_codes
from opensora_launch.cli.ending import failure_lines, print_samples, what_is_missing
from opensora_launch.cli.plan_summary import made_name
from opensora_launch.cli.terminal import print_errors, print_lines, summary_line
from opensora_launch.cli.view import progress
from opensora_launch.errors import os_error_line
from opensora_launch.launch.command import command, environment, without_others
from opensora_launch.launch.env_profile import Profiled, applied
from opensora_launch.launch.supervise import Outcome, Task, supervise
from opensora_launch.plan.placement import placement_text
from opensora_launch.plan.plan import Plan
from opensora_launch.request.write_run import new_attempt
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.finished_videos import plan_with_less
from opensora_launch.runs.state import name_of_stop, record_launch, this_process
from opensora_launch.runs.waited import Waited, record_waited
from opensora_launch.schema.config import LauncherKind
from opensora_launch.slurm.allocation import step_name
from opensora_launch.slurm.query import kill_steps
from opensora_launch.telemetry.failure import read_failure


def start_run(kind: LauncherKind, plan: Plan, attempt: AttemptDir, made: Profiled, since_s: float) -> int:
    """Make the videos of an attempt, in the environment `made`; the exit code.

    since_s: when the user began to wait for them, in seconds of the epoch. If memory runs out, the run continues once
    from where it was, with less of its weights on a rank (`fit=auto`).
    """
    run_dir = attempt.run
    print(f"making {_what(plan)} in {run_dir}", flush=True)
    print(f"watch it: opensora-launch top {run_dir}", flush=True)
    outcome = _attempt(kind, plan, attempt, made, since_s)
    if less := _with_less(kind, plan, attempt, outcome):
        plan = less
        attempt = new_attempt(run_dir, plan, kind, made)
        outcome = _attempt(kind, plan, attempt, made, since_s)
    if outcome.failure:
        print_errors(failure_lines(outcome.failure, attempt))
    elif outcome.code > exit_codes.BY_SIGNAL:
        print_errors([f"stopped by {name_of_stop(_signal_name(outcome.code))}"])
    code, lines = what_is_missing(outcome.code, run_dir, plan, attempt)
    print_errors(lines)
    summary, last = _report(run_dir, since_s) if outcome.code == exit_codes.DONE and run_dir.plan.exists() else ([], [])
    print_lines(map(summary_line, summary))
    print_samples(run_dir, plan)
    if not plan.videos and code == exit_codes.DONE:
        last.append(f"these are first frames; the videos: opensora-launch generate --resume {run_dir}")
    print_lines(map(summary_line, [*last, f"run: {run_dir}"]))
    return code


def _what(plan: Plan) -> str:
    """What an attempt makes: "3 images and 3 videos"."""
    counts = {"image": len(plan.images.videos) if plan.images else 0, made_name(plan): len(plan.videos)}
    return " and ".join(f"{count} {noun}{'s' if count > 1 else ''}" for noun, count in counts.items() if count)


def _attempt(kind: LauncherKind, plan: Plan, attempt: AttemptDir, made: Profiled, since_s: float) -> Outcome:
    record_waited(attempt, Waited(since_s, time.time()))
    launched = this_process(kind.value)
    if kind is LauncherKind.srun:  # recorded before it starts, so that any host can end it
        launched = replace(launched, allocation=os.environ.get("SLURM_JOB_ID", ""), step=step_name(attempt))
    record_launch(attempt, launched)
    env = environment(plan.threads_per_rank, without_others(made.env, kind), plan.machine.gpus)
    outcome = _inline(attempt, env) if kind is LauncherKind.inline else _watched(kind, plan, attempt, env)
    if outcome.code > exit_codes.BY_SIGNAL:
        record_launch(attempt, replace(launched, ended=_signal_name(outcome.code)))
    return outcome


def _signal_name(code: int) -> str:
    return signal.Signals(code - exit_codes.BY_SIGNAL).name


def _with_less(kind: LauncherKind, plan: Plan, attempt: AttemptDir, outcome: Outcome) -> Plan | None:
    """The plan to continue with if memory ran out; prints that. None for a rank in this process: its memory is used."""
    if outcome.failure is None or outcome.failure.kind != "memory" or kind is LauncherKind.inline:
        return None
    less = plan_with_less(attempt.run, plan)
    if less:
        where = f"in phase {outcome.failure.phase}" if outcome.failure.phase else "while loading"
        print(f"rank {outcome.failure.rank} ran out of memory {where}", file=sys.stderr)
        print(f"continuing from there with {placement_text(less.placement)}", file=sys.stderr, flush=True)
    return less


def _report(run_dir: RunDir, since_s: float) -> tuple[list[str], list[str]]:
    """Write the report; return its summary with the top advice, and lines on its file and on how long the user waited.

    The videos are there, so a full disk is not a failure of the run.
    """
    from opensora_launch.report.build import build_report
    from opensora_launch.report.markdown import advice_lines, summary_lines

    try:
        report = build_report(run_dir.path, waiting=True)
        last = [f"report: {run_dir.report_page}", waited(report, since_s, time.time())]
        return [*summary_lines(report), *advice_lines(report)], last
    except OSError as error:
        return [], [f"no report, {os_error_line(error)}; make room, then: opensora-launch report {run_dir}"]


def waited(report: Mapping[str, Any], since_s: float, now_s: float) -> str:
    """How long a user waited, before, while and after the ranks of the last attempt recorded what they did.

    These are the report's numbers; where it has none, only the whole is known.
    """
    if (wait := report["wait"]) is None:
        return f"done in {now_s - since_s:.0f} s"
    parts = wait["parts"]
    start_s, end_s = sum(parts.get(part, 0.0) for part in ("queue", "earlier", "start")), parts.get("end", 0.0)
    work_s = wait["total_s"] - start_s - end_s
    return f"done in {wait['total_s']:.0f} s: start {start_s:.0f}, work {work_s:.0f}, end and report {end_s:.0f}"


def _inline(attempt: AttemptDir, env: Mapping[str, str]) -> Outcome:
    """Run the rank in this process. SIGTERM and SIGHUP end it like Ctrl-C, unless they are ignored (nohup)."""
    got = [signal.SIGINT]

    def end(signum: int, frame: FrameType | None) -> None:
        got.append(signal.Signals(signum))
        raise KeyboardInterrupt

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, end)
    try:
        with applied(env):  # before torch is imported, which reads some of it then
            from opensora_launch import worker

            code = worker.main(["--attempt", str(attempt)])
    except KeyboardInterrupt:  # outside of the part where the rank handles it
        code = exit_codes.INTERRUPTED
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if code == exit_codes.INTERRUPTED:
        code = exit_codes.BY_SIGNAL + got[-1]
    return Outcome(code, read_failure(attempt) if code else None)


def _watched(kind: LauncherKind, plan: Plan, attempt: AttemptDir, env: Mapping[str, str]) -> Outcome:
    argv = command(kind, plan.machine, attempt)
    task = Task(argv, env, attempt, plan.machine.ranks, plan.timeout_s, kind is LauncherKind.srun)
    try:
        with progress() as show:
            return supervise(task, partial(show, attempt))
    finally:
        if kind is LauncherKind.srun:  # whatever happened to srun, its ranks are on other hosts
            kill_steps(os.environ.get("SLURM_JOB_ID", ""), step_name(attempt))
