"""`opensora-launch report`: where the time of a run or sweep went, or what published figures amount to."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.cli.compare import not_negative
from opensora_launch.cli.ending import failed_lines
from opensora_launch.cli.terminal import print_lines, summary_line
from opensora_launch.errors import UserError
from opensora_launch.report.bench_report import report_sweep
from opensora_launch.report.build import build_report, build_sweep
from opensora_launch.report.markdown import advice_lines, summary_lines
from opensora_launch.report.published import published
from opensora_launch.report.rates import Prices
from opensora_launch.report.sweep import size, sweep_report
from opensora_launch.report.sweep_markdown import baseline_text, efficiency_text, note_lines
from opensora_launch.report.wording import message, say
from opensora_launch.request.flags import Parsed
from opensora_launch.request.slurm_task import this_job
from opensora_launch.rundir import RunDir, SweepDir
from opensora_launch.runs.newest import named_report
from opensora_launch.runs.state import read_attempts
from opensora_launch.runs.sweep_state import read_sweep


def report_verb(parsed: Parsed) -> int:
    """Write the report of a run from its files again, and print its summary; the exit code."""
    if len(parsed.rest) != 1:
        raise UserError(f"report takes one run's folder, not {len(parsed.rest)}: opensora-launch report runs/STAMP")
    path = named_report(parsed.rest[0])
    if path.is_file() and path.suffix == ".json":
        return _published(path, parsed.one("--out"))
    if SweepDir(path).state.is_file():
        return _sweep(SweepDir(path), parsed)
    run_dir = RunDir(path)
    if not run_dir.plan.is_file():
        raise UserError(f"{run_dir} is not a run's folder: there is no {run_dir.plan.name}")
    baseline = parsed.one("--baseline")
    prices = Prices(not_negative(parsed, "--usd-per-gpu-hour"), not_negative(parsed, "--usd-per-kwh"))
    base, own = None if baseline is None else named_report(baseline), _in_its_job(run_dir)
    made = build_report(run_dir.path, baseline=base, prices=prices, waiting=own)
    lines = [*summary_lines(made), *failed_lines(run_dir), *advice_lines(made)]
    print_lines(map(summary_line, [*lines, f"report: {run_dir.report_page}"]))
    return 0


def _in_its_job(run_dir: RunDir) -> bool:
    """Whether the job that made the last attempt makes this report: the user waits until it is written."""
    attempts = read_attempts(run_dir)
    job = attempts[-1].job if attempts else ""
    return bool(job) and this_job(os.environ).job == job


def _sweep(folder: SweepDir, parsed: Parsed) -> int:
    """Write the report of a sweep again, from the reports of its runs."""
    run_flags = ("--baseline", "--usd-per-gpu-hour", "--usd-per-kwh", "--out")
    if wrong := [name for name in run_flags if parsed.has(name)]:
        raise UserError(f"{', '.join(wrong)} goes with one run, and {folder} is a sweep")
    data = report_sweep(folder, read_sweep(folder))
    if data is None:
        again = f"see {folder.log}, and continue with: opensora-launch bench --resume {folder}"
        raise UserError(f"no run of {folder} that counts was successful; {again}")
    print_lines(map(summary_line, [*sweep_lines(data), f"report: {folder.report_page}"]))
    return 0


def sweep_lines(data: Mapping[str, Any]) -> Iterator[str]:
    """The table of a sweep: seconds and efficiency of each point, what they are relative to, and notes."""
    yield from _point_lines(data, max(len(point["name"]) for point in data["table"]), 12)
    yield from (baseline_text(base, data["unit"]) for base in data["baselines"])
    yield from note_lines(data)


def _point_lines(data: Mapping[str, Any], name_chars: int, size_chars: int) -> Iterator[str]:
    for point in data["table"]:
        name, where = f"{point['name']:<{name_chars}}", f"{say(size(point['gpus'], data['unit'])):>{size_chars}}"
        yield f"{name} {where} {point['seconds']:>9.2f} s  efficiency {efficiency_text(point)}"


def _published(file: Path, out: str | None) -> int:
    """Report published figures: NAME-report.md and .html, and .json and .csv with the numbers."""
    points, limits = published(file)
    if not points:
        raise UserError(f"{file} has no table with end-to-end times on several counts of GPUs")
    folder, name = Path(out) if out else file.parent, f"{file.stem}-report"
    folder.mkdir(parents=True, exist_ok=True)
    unknown = [message("load_time_unstated"), *limits]
    data = sweep_report("Published scaling", points, version=__version__, kind="published", unknown=unknown)
    build_sweep(folder, data, name)
    print("\n".join([*_point_lines(data, 40, 6), f"report: {folder / f'{name}.html'}"]))
    return 0
