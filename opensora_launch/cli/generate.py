"""`opensora-launch generate`: from a command line to videos."""

import os
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.plan_summary import plan_summary
from opensora_launch.cli.start import start_run
from opensora_launch.cli.submit import NotSubmitted, array_notes, submit_run
from opensora_launch.cli.terminal import elapsed, print_errors
from opensora_launch.doctor.preflight import preflight
from opensora_launch.launch.command import command, refuse_as_rank, without_others
from opensora_launch.launch.env_profile import Profiled, profiled
from opensora_launch.plan.plan import Plan
from opensora_launch.request.attempt import write_planned
from opensora_launch.request.compose import shown_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.prepare import PlannedRun, prepare_runs
from opensora_launch.request.resume import prepare_resume, resumed_words, start_resumed
from opensora_launch.request.write_run import script_of
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.schema.config import LauncherKind, RunConfig
from opensora_launch.slurm.query import estimate_start

# A request to stop, SIGHUP, Ctrl-C and SIGTERM stop a whole sweep.
STOPPED = (exit_codes.PREEMPTED, exit_codes.BY_SIGNAL + 1, exit_codes.INTERRUPTED, exit_codes.BY_SIGNAL + 15)


def generate_verb(parsed: Parsed) -> int:
    """Make the videos of a command line, or show what would be made; the exit code."""
    refuse_as_rank(os.environ, "generate")
    if parsed.has("--cfg") or parsed.has("--info"):
        return _show_config(parsed)
    if parsed.has("--resume"):
        return _resume(parsed)
    with elapsed("preparing"):
        prepared = prepare_runs(parsed)
    print_errors(prepared.notes)
    for planned in prepared.runs:
        if planned.run.dry_run:
            folder = planned.folder or Path(planned.run.runs_dir) / "STAMP"
            _print_dry_run(planned.run, planned.plan, RunDir(folder), planned.unfit)
    return _run_all([planned for planned in prepared.runs if not planned.run.dry_run], parsed.since_s)


def _show_config(parsed: Parsed) -> int:
    words = resumed_words(parsed) if parsed.has("--resume") else parsed
    text, note = shown_config(words, asked=parsed)
    print(text, end="")
    print_errors([note] if note else [])
    return exit_codes.DONE


def _resume(parsed: Parsed) -> int:
    resumed = prepare_resume(parsed)
    if not (resumed.plan.videos or resumed.plan.images):
        print(f"nothing is missing in {resumed.run_dir}")
        return exit_codes.DONE
    print_errors(resumed.notes)
    if resumed.run.dry_run:
        _print_dry_run(resumed.run, resumed.plan, resumed.run_dir, resumed.unfit)
        return exit_codes.DONE
    (made,), warnings = preflight([(resumed.run, resumed.plan)])
    print_errors(warnings)
    attempt = start_resumed(resumed, made)
    return _start(resumed.run, resumed.plan, attempt, made, parsed.since_s)


def _run_all(runs: Sequence[PlannedRun], since_s: float) -> int:
    """Make one run after another, of which the first was asked for at `since_s`; the worst exit code.

    A run that fails does not stop the rest. One that is stopped or asked to stop does.
    """
    codes = list[int]()
    # A run's files go to the disk of its folder.
    placed = [(replace(p.run, runs_dir=str(p.folder)) if p.folder else p.run, p.plan) for p in runs]
    with elapsed("checking this machine"):
        environments, warnings = preflight(placed)
    print_errors(warnings)
    for number, (planned, made) in enumerate(zip(runs, environments, strict=True), start=1):
        if len(runs) > 1:
            points = "; ".join(" ".join(overrides) for _, overrides in planned.swept)
            print(f"run {number} of {len(runs)}: {points}", flush=True)
        attempt = write_planned(planned, made)
        try:
            codes.append(_start(planned.run, planned.plan, attempt, made, since_s))
        except NotSubmitted as error:
            shutil.rmtree(attempt.run, ignore_errors=True)  # nothing has worked on it; --output may be a mounted disk
            print_errors([f"error: {error}"])
            codes.append(exit_codes.USER_ERROR)
        if _stops_sweep(planned, codes[-1]):
            break
        since_s = time.time()
    if len(runs) > 1:
        print(_count(codes, runs))
    if codes and _stops_sweep(runs[len(codes) - 1], codes[-1]):
        return codes[-1]
    worst = (exit_codes.FAILURE, exit_codes.USER_ERROR)
    return next((code for code in worst if code in codes), max(codes, default=exit_codes.DONE))


def _stops_sweep(planned: PlannedRun, code: int) -> bool:
    """Whether the sweep stops with this run. A batch job that is preempted does not stop the others."""
    return code in STOPPED and not (code == exit_codes.PREEMPTED and planned.run.launcher.kind is LauncherKind.slurm)


def _count(codes: Sequence[int], runs: Sequence[PlannedRun]) -> str:
    """How many runs are done, only submitted, failed and not started."""
    ended = list(zip(codes, (planned.run for planned in runs), strict=False))
    queued = sum(not code and run.launcher.kind is LauncherKind.slurm and not run.follow for code, run in ended)
    failed = [str(number) for number, code in enumerate(codes, start=1) if code]
    done = len(codes) - len(failed) - queued
    parts = [f"{done} done"] if done or not queued else []
    parts += [f"{queued} submitted"] if queued else []
    parts += [f"failed: {', '.join(failed)}"] if failed else []
    parts += [f"not started: {len(runs) - len(codes)}"] if len(codes) < len(runs) else []
    return f"{len(runs)} runs: {', '.join(parts)}"


def _start(run: RunConfig, plan: Plan, attempt: AttemptDir, made: Profiled, since_s: float) -> int:
    if run.launcher.kind is LauncherKind.slurm:
        return submit_run(run, plan, attempt, made, since_s)
    return start_run(run.launcher.kind, plan, attempt, made, since_s)


def _print_dry_run(run: RunConfig, plan: Plan, run_dir: RunDir, unfit: Sequence[str]) -> None:
    attempt, kind = run_dir.attempt(0), run.launcher.kind
    print(f"plan:\n{plan_summary(plan)}")
    if kind is LauncherKind.slurm:
        script = script_of(run, plan, attempt, profiled(os.environ, run.env))
        print_errors(array_notes(run, plan))
        start = estimate_start(script, without_others(os.environ, kind))
        print("\n".join([f"{attempt.batch_script.name}:", script, *start]))
    else:
        print(f"command:\n  {shlex.join(command(kind, plan.machine, attempt))}")
    if unfit:
        print("this machine cannot run it:\n" + "\n".join(f"  - {line}" for line in unfit))
