"""`opensora-launch bench gpus=[1,2,4]`: a scaling sweep that ends in one report. Every run is a `generate` of its own.

Runs never overlap, so each has the machine for itself. Rounds go through all points, every second one backwards, so
that drift affects all alike. The first rounds are warm-up and do not count.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from opensora_launch import exit_codes
from opensora_launch.cli.report import sweep_lines
from opensora_launch.cli.terminal import can_redraw, print_errors, print_lines, summary_line
from opensora_launch.cli.view import clock, progress
from opensora_launch.errors import UserError
from opensora_launch.machine.host import host_sample
from opensora_launch.report.bench_report import report_sweep
from opensora_launch.request.bench_points import prepare_bench
from opensora_launch.request.flags import Parsed
from opensora_launch.request.override_checks import hydra_quoted
from opensora_launch.rundir import SweepDir, make_empty_folder, make_folder, output_problems, write_whole
from opensora_launch.runs.newest import named_sweep
from opensora_launch.runs.state import read_attempts
from opensora_launch.runs.sweep_state import BenchPoint, FinishedRun, Sweep, read_sweep

_IDLE_LOOK_S = 0.5  # before each run: does the machine do something else?
_LOOK_S = 1.0  # at a run that works
_NEW_SWEEP_FLAGS = ("--prompt", "--prompts", "--config-dir", "--output")


def bench_verb(parsed: Parsed) -> int:
    """Run what is missing of a sweep and write its report; the exit code."""
    resumed = parsed.one("--resume")
    folder = _resumed(parsed, SweepDir(named_sweep(resumed).absolute())) if resumed else _new(parsed)
    with _locked(folder):
        sweep, failed = _run_all(folder, read_sweep(folder))
        made = report_sweep(folder, sweep)
    if made:
        print_lines(map(summary_line, [*sweep_lines(made), f"report: {folder.report_page}"]))
    else:
        print_errors([f"no report: no run that counts was successful; see {folder.log}"])
    if failed:
        again = shlex.join(["opensora-launch", "bench", "--resume", str(folder)])
        print_errors([f"failed: {sweep.names(sorted(failed))}; continue with: {again}"])
    return exit_codes.FAILURE if failed or not made else exit_codes.DONE


def _run_all(folder: SweepDir, sweep: Sweep) -> tuple[Sweep, set[int]]:
    """The sweep with what is done now, and the points that failed.

    A failed point is not retried and does not block the rest.
    """
    have, failed = {(d.round, d.point) for d in sweep.done}, set[int]()
    runs, took = list(sweep.runs()), dict[int, float]()
    for number, (round_, place) in enumerate(runs, start=1):
        if (round_, place) in have or place in failed:
            continue
        point = sweep.points[place]
        words = [point.series, point.size, *([point.layout] if point.layout and point.gpus > 1 else [])]
        words.append("warm-up" if round_ < sweep.warmup else f"repeat {round_ - sweep.warmup + 1}")
        to_come = [p for r, p in runs[number - 1 :] if (r, p) not in have and p not in failed]
        left = f"; about {clock(_seconds_of(to_come, took))} left" if took else ""
        print_lines([[(f"run {number} of {len(runs)}: ", "bold"), (", ".join(words), ""), (left, "dim")]])
        sys.stdout.flush()
        busy, begun_s = None if sweep.elsewhere else busy_share(), time.monotonic()
        run = _run(folder, sweep, point)
        took[place] = time.monotonic() - begun_s
        if run is None:
            failed.add(place)
            continue
        sweep = sweep.with_done(FinishedRun(place, round_, run, busy))
        sweep.write(folder)
    return sweep, failed


def _seconds_of(places: Sequence[int], took: Mapping[int, float]) -> float:
    """How long runs of some points take, by the last run of each; one that has not run yet takes the mean."""
    mean = sum(took.values()) / len(took)
    return sum(took.get(place, mean) for place in places)


def _new(parsed: Parsed) -> SweepDir:
    named = parsed.path("--output")
    if named and (problems := output_problems(named)):
        raise UserError("this sweep cannot start", problems)
    asked = prepare_bench(parsed)
    name = f"bench-{datetime.now():%Y%m%d-%H%M%S}"
    folder = SweepDir(make_empty_folder(named.absolute()) if named else make_folder(asked.runs_dir, name))
    asked.sweep.write(folder)
    write_whole(folder.command, shlex.join(["opensora-launch", "bench", *parsed.rest]) + "\n")
    return folder


def _resumed(parsed: Parsed, folder: SweepDir) -> SweepDir:
    read_sweep(folder)
    if extra := [*parsed.rest, *(name for name in _NEW_SWEEP_FLAGS if parsed.has(name))]:
        raise UserError(f"{extra[0]} does not go with --resume: sweep.json holds what the sweep runs")
    return folder


@contextmanager
def _locked(folder: SweepDir) -> Iterator[None]:
    """Hold the sweep's lock: two benches in one folder would take each other's runs, and disturb each other's times."""
    with folder.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another bench works on {folder}") from error
        yield


def _run(folder: SweepDir, sweep: Sweep, point: BenchPoint) -> str | None:
    """Run one `generate` to its end; the run's folder, or None if it failed. Its output goes to bench.log."""
    words = [*sweep.argv, *point.overrides, f"runs_dir={hydra_quoted(str(folder))}"]
    command = [sys.executable, "-m", "opensora_launch.cli", "generate", *words]
    before = _run_names(folder)
    env = os.environ | {"PYTHONSAFEPATH": "1"}  # no file here is imported in place of a module
    with folder.log.open("ab") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        code = _watched(process, folder, before)
    new = sorted(_run_names(folder) - before)
    if code or not new or not folder.run(new[-1]).report_json.exists():
        print_errors([f"failed with exit code {code}; see {folder.log}"])
        return None
    return new[-1]


def _run_names(folder: SweepDir) -> set[str]:
    return {path.name for path in folder.path.iterdir() if path.is_dir()}


def busy_share() -> float | None:
    """The share of this machine's CPUs that others keep busy. The load average would include our last run."""
    before = host_sample()
    time.sleep(_IDLE_LOOK_S)
    after = host_sample()
    busy, every = (after.get(key, 0.0) - before.get(key, 0.0) for key in ("cpu_busy_s", "cpu_all_s"))
    return min(1.0, busy / every) if every > 0 else None  # differences of large numbers are rounded


def _watched(process: subprocess.Popen[bytes], folder: SweepDir, before: set[str]) -> int:
    """Wait for a run and show its progress on a terminal; its exit code. On Ctrl-C the run stops its ranks first."""
    try:
        if not can_redraw(sys.stderr):
            return process.wait()
        with progress() as show:
            while process.poll() is None:
                new = sorted(_run_names(folder) - before)[-1:]
                attempts = [attempt for name in new for attempt in read_attempts(folder.run(name))[-1:]]
                show(*((attempts[0].folder, attempts[0].beats) if attempts else (folder.run("to come").attempt(0), ())))
                time.sleep(_LOOK_S)
        return process.returncode
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
