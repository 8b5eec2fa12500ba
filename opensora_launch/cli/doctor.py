"""`opensora-launch doctor`: check this machine. Prints one line per finding, with the fix and its cost."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from opensora_launch import exit_codes
from opensora_launch.cli.plan_picture import Bar, picture_file, write_bars
from opensora_launch.cli.terminal import elapsed, print_errors, print_json, print_lines
from opensora_launch.doctor.check_result import CheckResult, Level, lines, worst
from opensora_launch.doctor.nodes import to_line
from opensora_launch.request.checkup import examine, prepare_checkup
from opensora_launch.request.flags import Parsed

COLOURS = {Level.ok: "green", Level.warn: "yellow", Level.fail: "bold red"}


def doctor_verb(parsed: Parsed) -> int:
    """Print the findings. Exit code 0, or 1 if something will not run."""
    picture = picture_file(parsed, svg_is_ours=True)
    checkup = prepare_checkup(parsed)
    print_errors(checkup.found.notes)
    with elapsed("checking this machine"):
        found = examine(checkup, parsed)
    if parsed.has("--here"):
        sys.stdout.writelines(f"{to_line(finding)}\n" for finding in found)
    elif parsed.has("--json"):
        print_json({"worst": worst(found).value, "findings": [asdict(finding) for finding in found]})
    else:
        counts = {level: sum(f.level is level for f in found) for level in Level}
        warnings, failures = _count(counts[Level.warn], "warning"), _count(counts[Level.fail], "failure")
        each = zip(found, lines(found), strict=True)
        print_lines([(line[:4], COLOURS[f.level]), (line[4:], "")] for f, line in each)
        print(f"{counts[Level.ok]} ok, {warnings}, {failures}")
    if picture:
        write_bars(picture, "doctor", _bars(found))
    return exit_codes.FAILURE if worst(found) is Level.fail else exit_codes.DONE


def _bars(found: Sequence[CheckResult]) -> list[Bar]:
    """Free memory, free disk, and the bandwidth of each axis."""
    measured = [(f"{f.host} " if f.host == "all" else "", f) for f in found if f.value is not None]
    return [(f"{where}{f.what.split(': ')[0][:44]}", f.value or 0.0, f.unit) for where, f in measured]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
