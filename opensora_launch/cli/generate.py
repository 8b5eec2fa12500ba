"""`opensora-launch generate`: from a command line to videos."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.show import command_lines, plan_table
from opensora_launch.cli.start import start
from opensora_launch.cli.submit import NotSubmitted, submit
from opensora_launch.doctor.preflight import preflight
from opensora_launch.launch.command import command
from opensora_launch.launch.env_profile import Profiled, profiled
from opensora_launch.plan.plan import Plan
from opensora_launch.request import compose
from opensora_launch.request.attempt import new_attempt, write_job
from opensora_launch.request.batch_script import script_of
from opensora_launch.request.flags import Parsed
from opensora_launch.request.prepare import Job, prepare_jobs
from opensora_launch.request.resume import Resumed, prepare_resume, words_of
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.schema.config import LauncherKind, RunConfig
from opensora_launch.slurm.query import estimate

# On request; by SIGHUP, Ctrl-C or SIGTERM: these end a whole sweep.
ENDED = (exit_codes.PREEMPTED, 129, exit_codes.INTERRUPTED, 143)


def generate(parsed: Parsed) -> int:
    """Everything behind the verb; the exit code."""
    if parsed.has("--cfg") or parsed.has("--info"):
        return _show_config(parsed)
    if parsed.has("--resume"):
        return _resume(parsed)
    prepared = prepare_jobs(parsed)
    _note(prepared.note)
    for job in prepared.jobs:
        if job.run.dry_run:
            _print_dry_run(job.run, job.plan, RunDir(Path(job.run.runs_dir) / "STAMP"), job.unfit)
    return _run_all([job for job in prepared.jobs if not job.run.dry_run])


def _show_config(parsed: Parsed) -> int:
    asked = words_of(parsed) if parsed.has("--resume") else parsed
    config_dir, multirun = asked.path("--config-dir"), parsed.has("--multirun")
    if cfg := parsed.one("--cfg"):
        what = compose.Shown(cfg, parsed.one("--package"), parsed.has("--resolve"))
        note = compose.show(asked.rest, what, multirun=multirun, config_dir=config_dir)
    else:
        info = parsed.one("--info") or "all"
        note = compose.show_info(asked.rest, info=info, multirun=multirun, config_dir=config_dir)
    _note(note)
    return 0


def _resume(parsed: Parsed) -> int:
    resumed: Resumed = prepare_resume(parsed, None)
    if not resumed.plan.videos:
        print(f"nothing is missing in {resumed.run_dir}")
        return 0
    if resumed.run.dry_run:
        _print_dry_run(resumed.run, resumed.plan, resumed.run_dir, resumed.unfit)
        return 0
    (made,) = preflight([(resumed.run, resumed.plan)])
    attempt = new_attempt(resumed.run_dir, resumed.plan, resumed.run.launcher.kind, made)
    return _start(resumed.run, resumed.plan, attempt, made)


def _run_all(jobs: Sequence[Job]) -> int:
    """One run after another; a failed one does not keep the others back, one that was ended or asked to stop does. The
    worst exit code.
    """
    codes = []
    environments = preflight([(job.run, job.plan) for job in jobs])
    for number, (job, made) in enumerate(zip(jobs, environments, strict=True), start=1):
        if len(jobs) > 1:
            print(f"run {number} of {len(jobs)}: {_points(job)}", flush=True)
        attempt = write_job(job, made)
        try:
            codes.append(_start(job.run, job.plan, attempt, made))
        except NotSubmitted as error:
            shutil.rmtree(attempt.run)  # nothing has worked on this run
            print(f"error: {error}", file=sys.stderr)
            codes.append(exit_codes.USER_ERROR)
        if _ended(job, codes[-1]):
            break
    if len(jobs) > 1:
        print(_count(codes, len(jobs)))
    if codes and _ended(jobs[len(codes) - 1], codes[-1]):
        return codes[-1]
    return next((code for code in (1, 2) if code in codes), max(codes, default=0))


def _ended(job: Job, code: int) -> bool:
    """Whether the sweep ends with this run. Each batch job has an end of its own."""
    return code in ENDED and not (code == exit_codes.PREEMPTED and job.run.launcher.kind is LauncherKind.slurm)


def _count(codes: Sequence[int], asked: int) -> str:
    failed = [str(number) for number, code in enumerate(codes, start=1) if code]
    said = f"{asked} runs: {len(codes) - len(failed)} done"
    said += f", failed: {', '.join(failed)}" if failed else ""
    return said + (f", not started: {asked - len(codes)}" if len(codes) < asked else "")


def _start(run: RunConfig, plan: Plan, attempt: AttemptDir, made: Profiled) -> int:
    if run.launcher.kind is LauncherKind.slurm:
        return submit(run, plan, attempt, made)
    return start(run.launcher.kind, plan, attempt, made)


def _points(job: Job) -> str:
    return "; ".join(" ".join(overrides) for _, overrides in job.swept)


def _print_dry_run(run: RunConfig, plan: Plan, run_dir: RunDir, unfit: Sequence[str]) -> None:
    attempt, kind = run_dir.attempt(0), run.launcher.kind
    print(f"plan:\n{plan_table(plan)}")
    if kind is LauncherKind.slurm:
        script = script_of(run, plan, attempt, profiled(os.environ, run.env))
        print("\n".join([f"{attempt.batch_script.name}:", script, *estimate(script)]))
    else:
        print(f"command:\n{command_lines(command(kind, plan.machine, attempt))}")
    if unfit:
        print("this machine cannot run it:\n" + "\n".join(f"  - {line}" for line in unfit))


def _note(note: str) -> None:
    if note:
        print(note, file=sys.stderr)
