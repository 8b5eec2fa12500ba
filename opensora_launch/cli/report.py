"""`opensora-launch report RUN`: where the time of a run went."""

from pathlib import Path

from opensora_launch.cli.flags import Parsed
from opensora_launch.cli.start import report_lines
from opensora_launch.errors import UserError


def report(parsed: Parsed) -> int:
    """Rebuild the report of a run from its files and print its summary; the exit code."""
    if len(parsed.rest) != 1:
        raise UserError(f"report takes one run's folder, not {len(parsed.rest)}: opensora-launch report runs/STAMP")
    run_dir = Path(parsed.rest[0])
    if not (run_dir / "plan.json").is_file():
        raise UserError(f"{run_dir} is not a run's folder: there is no plan.json")
    baseline = parsed.one("--baseline")
    print("\n".join(report_lines(run_dir, None if baseline is None else Path(baseline))))
    return 0
