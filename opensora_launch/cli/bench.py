"""`opensora-launch bench gpus=[1,2,4]`: a scaling sweep that ends in one report. Every run is a `generate` of its own.

Runs never overlap, so each has the machine for itself. Rounds go through all points, every second one backwards, so
that drift hits all alike; the first rounds are warm-up and left out.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from opensora_launch.cli.bench_report import report_sweep
from opensora_launch.errors import UserError
from opensora_launch.machine.host import host_sample
from opensora_launch.request.flags import Parsed
from opensora_launch.request.override_checks import hydra_quoted
from opensora_launch.request.sweep_plan import (
    Done,
    Spot,
    Sweep,
    checked,
    in_words,
    read_sweep,
    read_words,
    rounds,
    with_done,
)
from opensora_launch.rundir import SweepDir, make_folder, write_whole

LOOK_S = 0.5  # before each run, whether the machine is idle
OF_A_NEW_ONE = ("--prompt", "--prompts", "--config-dir")


def bench(parsed: Parsed) -> int:
    """Run what is missing of a sweep and write its report; the exit code."""
    resumed = parsed.one("--resume")
    folder = _resumed(parsed, SweepDir(Path(resumed).absolute())) if resumed else _new(parsed)
    with _locked(folder):
        plan, failed = _run_all(folder, read_sweep(folder))
        made = report_sweep(folder, plan)
    if made:
        print(f"report: {folder.report_page}")
    else:
        print(f"no report: no run that counts ended well; see {folder.log}", file=sys.stderr)
    if failed:
        again = shlex.join(["opensora-launch", "bench", "--resume", str(folder)])
        print(f"failed: {in_words(plan.spots, sorted(failed))}; go on with: {again}", file=sys.stderr)
    return 1 if failed or not made else 0


def _run_all(folder: SweepDir, plan: Sweep) -> tuple[Sweep, set[int]]:
    """What is done then, and the points that failed: a failed one is not tried again and keeps nobody back."""
    have, failed = {(d.round, d.spot) for d in plan.done}, set[int]()
    todo = rounds(plan)
    for number, (round_, place) in enumerate(todo, start=1):
        if (round_, place) in have or place in failed:
            continue
        spot = plan.spots[place]
        kind = "warm-up" if round_ < plan.warmup else f"repeat {round_ - plan.warmup + 1}"
        print(f"run {number} of {len(todo)}: {spot.series}, {spot.size}, {kind}", flush=True)
        busy = None if plan.elsewhere else busy_share()
        run = _run(folder, plan.argv, spot)
        if run is None:
            failed.add(place)
            continue
        plan = with_done(plan, Done(place, round_, run, busy))
        plan.write(folder)
    return plan, failed


def _new(parsed: Parsed) -> SweepDir:
    config_dir = parsed.one("--config-dir")
    asked = read_words(parsed.rest, Path(config_dir) if config_dir else None)
    flags = [word for value in parsed.all("--prompt") for word in ("--prompt", value)]
    files = [(name, value) for name in ("--prompts", "--config-dir") for value in parsed.all(name)]
    flags += [word for name, value in files for word in (name, os.path.abspath(value))]
    if not parsed.has("--prompt") and not parsed.has("--prompts"):
        flags += ["--prompt", "waves at dusk"]
    spots = checked(flags, asked.spots)
    folder = SweepDir(make_folder(asked.runs_dir, f"bench-{datetime.now():%Y%m%d-%H%M%S}"))
    repeats, warmup, weak = int(asked.own["repeats"]), int(asked.own["warmup"]), asked.own["scaling"] == "weak"
    Sweep(tuple(flags), spots, repeats, warmup, weak, asked.elsewhere, ()).write(folder)
    write_whole(folder.command, shlex.join(["opensora-launch", "bench", *parsed.rest]) + "\n")
    return folder


def _resumed(parsed: Parsed, folder: SweepDir) -> SweepDir:
    read_sweep(folder)
    if extra := [*parsed.rest, *(name for name in OF_A_NEW_ONE if parsed.has(name))]:
        raise UserError(f"{extra[0]} does not go with --resume: what a sweep runs is in its sweep.json")
    return folder


@contextmanager
def _locked(folder: SweepDir) -> Iterator[None]:
    """Two benches in one folder would take each other's runs, and time each other."""
    with folder.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another bench works on {folder}") from error
        yield


def _run(folder: SweepDir, argv: Sequence[str], spot: Spot) -> str | None:
    """One `generate`, waited for; the run's folder, or None if it failed. What it prints goes to bench.log."""
    words = [*argv, *spot.overrides, f"runs_dir={hydra_quoted(str(folder))}"]
    command = [sys.executable, "-m", "opensora_launch.cli", "generate", *words]
    before = {p.name for p in folder.path.iterdir()}
    with folder.log.open("ab") as log:
        code = _to_its_end(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
    new = sorted(p.name for p in folder.path.iterdir() if p.is_dir() and p.name not in before)
    if code or not new or not folder.run(new[-1]).report_json.exists():
        print(f"failed with exit code {code}; see {folder.log}", file=sys.stderr)
        return None
    return new[-1]


def busy_share() -> float | None:
    """Of this machine's CPUs, for a moment in which nothing of ours runs. The load average would count our last run."""
    before = host_sample()
    time.sleep(LOOK_S)
    after = host_sample()
    busy, every = (after.get(key, 0.0) - before.get(key, 0.0) for key in ("cpu_busy_s", "cpu_all_s"))
    return busy / every if every > 0 else None


def _to_its_end(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. On Ctrl-C it ends its ranks first."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
