"""`opensora-launch plan`: every layout of a topology with its predicted time and memory. Needs no GPU."""

import json

from opensora_launch import exit_codes
from opensora_launch.cli.plan_picture import picture_file
from opensora_launch.cli.terminal import StyledLine, print_lines
from opensora_launch.plan.table import plan_json, plan_text
from opensora_launch.request.flags import Parsed
from opensora_launch.request.predicted_layouts import predict_layouts


def plan_verb(parsed: Parsed) -> int:
    """Print the table, or JSON. Exit code 0 if a layout fits, else 1."""
    picture = picture_file(parsed, svg_is_ours=False)
    found = predict_layouts(parsed)
    if parsed.has("--json"):
        data = plan_json(found.work, found.options, found.passed_over, list(found.misfits))
        print(json.dumps(data | {"found_here": list(found.found_here)}, indent=1))
    else:
        note = "\n".join([*found.found_here, *([found.note] if found.note else [])])
        lines = plan_text(found.work, found.options, found.passed_over, note).splitlines()
        lines += [word for line in found.misfits for word in ("", f"nothing fits: {line}")]
        print_lines(map(_styled, lines))
    if picture:
        from opensora_launch.cli.plan_picture import plot_plan

        plot_plan(found.work, found.options, picture)
    return exit_codes.FAILURE if found.misfits else exit_codes.DONE


def _styled(line: str) -> StyledLine:
    """A line of the table: the chosen layout stands out, and those that do not fit are dim."""
    styles = {"*": "bold green", "nothing fits": "bold red"}
    marked = next((style for start, style in styles.items() if line.startswith(start)), "")
    return [(line, marked or ("bold" if " effic. " in line else "dim" if " needs " in line else ""))]
