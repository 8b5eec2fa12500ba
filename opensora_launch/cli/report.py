"""`opensora-launch report RUN`: where the time of a run went."""

from collections.abc import Sequence
from pathlib import Path

from opensora_launch.cli.flags import REPORT_FLAGS, parse
from opensora_launch.cli.start import report_lines
from opensora_launch.errors import UserError


def report(argv: Sequence[str]) -> int:
    """Rebuild the report of a run from its files and print its summary; the exit code."""
    parsed = parse("report", REPORT_FLAGS, argv)
    if parsed.has("--help"):
        from opensora_launch.cli.help import report_help

        print(report_help())
        return 0
    if len(parsed.rest) != 1:
        raise UserError(f"report takes one run's folder, not {len(parsed.rest)}: opensora-launch report runs/STAMP")
    run_dir = Path(parsed.rest[0])
    if not (run_dir / "plan.json").is_file():
        raise UserError(f"{run_dir} is not a run's folder: there is no plan.json")
    baseline = parsed.one("--baseline")
    print("\n".join(report_lines(run_dir, None if baseline is None else Path(baseline))))
    return 0
