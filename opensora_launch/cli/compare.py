"""`opensora-launch compare A B`: two runs or sweeps side by side. Exit code 1 if B is slower beyond a threshold."""

import math

from opensora_launch.cli.terminal import print_lines
from opensora_launch.errors import UserError
from opensora_launch.report.compare import compare_reports, read_either
from opensora_launch.report.compare_page import compare_page
from opensora_launch.report.wording import say
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import write_whole
from opensora_launch.runs.newest import named_report

THRESHOLD_PERCENT = 5.0


def compare_verb(parsed: Parsed) -> int:
    """Print one line per value. Exit code 1 if B is slower by more than the threshold and beyond the spread."""
    if len(parsed.rest) != 2:
        raise UserError(f"compare takes two runs or sweeps, not {len(parsed.rest)}: opensora-launch compare A B")
    percent = not_negative(parsed, "--threshold", "percentage")
    threshold = (THRESHOLD_PERCENT if percent is None else percent) / 100
    out = parsed.path("--html")
    if out and out.is_dir():
        raise UserError(f"--html {out} is a folder; give a file, such as {out / 'compare.html'}")
    a, b = (named_report(path) for path in parsed.rest)
    reports = (read_either(a), read_either(b))
    changes, notes = compare_reports(*reports)
    print_lines([[("A: ", "bold"), (f"{a}", "")], [("B: ", "bold"), (f"{b}", "")]])
    width = max(len(change.what) for change in changes)
    print_lines([[(f"{'':<{width}}  {'A':>10}  {'B':>10}  {'B / A':>7}", "bold")]])
    # Slower is what is beyond the threshold, and beyond the spread if that is known.
    worse = [c for c in changes if c.gates and c.ratio > 1 + threshold and c.beyond is not False]
    for change in changes:
        mark = "  <- slower" if change in worse else "  beyond the spread" if change.beyond else ""
        unit = f" {change.unit}"
        text = f"{change.what:<{width}}  {change.a:>8.3f}{unit:<4}{change.b:>8.3f}{unit:<4}{change.ratio:>7.3f}{mark}"
        print_lines([[(text, "bold red" if change in worse else "yellow" if change.beyond else "")]])
    print_lines([("note: ", "yellow"), (say(note), "")] for note in notes)
    print(f"{len(worse)} of {sum(c.gates for c in changes)} times are slower by more than {threshold:.1%}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, compare_page((a, b), reports, changes, worse, notes))
        print(f"page: {out}")
    return 1 if worse else 0


def not_negative(parsed: Parsed, name: str, kind: str = "number") -> float | None:
    """The value of a flag, None without it. It must be finite: every comparison with "nan" is false."""
    text = parsed.one(name)
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = math.nan
    if value is not None and not 0 <= value < math.inf:
        raise UserError(f"{name} {text} must be a {kind} of at least 0")
    return value
