"""`opensora-launch report RUN`: where the time of a run or sweep went; of published figures, what they amount to."""

import math
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.cli.bench_report import is_sweep, report_sweep
from opensora_launch.errors import UserError
from opensora_launch.report.build import build_report, build_sweep, summary_lines
from opensora_launch.report.document import Prices
from opensora_launch.report.sweep import baseline_text, efficiency_text, published, size, sweep
from opensora_launch.request.flags import Parsed
from opensora_launch.request.sweep_plan import read_sweep
from opensora_launch.rundir import RunDir, SweepDir


def report(parsed: Parsed) -> int:
    """Rebuild the report of a run from its files and print its summary; the exit code."""
    if len(parsed.rest) != 1:
        raise UserError(f"report takes one run's folder, not {len(parsed.rest)}: opensora-launch report runs/STAMP")
    path = Path(parsed.rest[0])
    if path.is_file() and path.suffix == ".json":
        return _published(path, parsed.one("--out"))
    if is_sweep(SweepDir(path)):
        return _sweep(SweepDir(path), parsed)
    run_dir = RunDir(path)
    if not run_dir.plan.is_file():
        raise UserError(f"{run_dir} is not a run's folder: there is no {run_dir.plan.name}")
    baseline = parsed.one("--baseline")
    prices = Prices(*(_price(parsed, name) for name in ("--usd-per-gpu-hour", "--usd-per-kwh")))
    made = build_report(run_dir.path, baseline=None if baseline is None else Path(baseline), prices=prices)
    print("\n".join(summary_lines(made)))
    print(f"report: {run_dir.report_page}")
    return 0


def _price(parsed: Parsed, name: str) -> float | None:
    said = parsed.one(name)
    if said is None:
        return None
    try:
        price = float(said)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise UserError(f"{name} {said} must be a number of at least 0")
    return price


def _sweep(folder: SweepDir, parsed: Parsed) -> int:
    """The report of a sweep anew, from its runs' reports."""
    of_a_run = ("--baseline", "--usd-per-gpu-hour", "--usd-per-kwh", "--out")
    if wrong := [name for name in of_a_run if parsed.has(name)]:
        raise UserError(f"{', '.join(wrong)} goes with one run, and {folder} is a sweep")
    data = report_sweep(folder, read_sweep(folder))
    if data is None:
        again = f"see {folder.log}, and go on with: opensora-launch bench --resume {folder}"
        raise UserError(f"no run of {folder} that counts ended well; {again}")
    for row in data["table"]:
        where = size(row["gpus"], data["unit"])
        print(f"{row['name']:<30} {where:>12} {row['seconds']:>9.2f} s  efficiency {efficiency_text(row)}")
    for base in data["baselines"]:
        print(baseline_text(base, data["unit"]))
    print(f"report: {folder.report_page}")
    return 0


def _published(file: Path, out: str | None) -> int:
    """Published figures as a report: NAME-report.md and .html, and .json and .csv with the numbers."""
    points, weaker = published(file)
    if not points:
        raise UserError(f"{file} has no table with end-to-end times on several counts of GPUs")
    folder, name = Path(out) if out else file.parent, f"{file.stem}-report"
    folder.mkdir(parents=True, exist_ok=True)
    unknown = ["whether the time to load the weights counts is stated in no source", *weaker]
    data = sweep("Published scaling", points, version=__version__, kind="published", unknown=unknown)
    build_sweep(folder, data, name)
    for row in data["table"]:
        print(f"{row['name']:<40} {row['gpus']:>3} GPUs {row['seconds']:>9.2f} s  efficiency {row['efficiency']:.1%}")
    print(f"report: {folder / f'{name}.html'}")
    return 0
