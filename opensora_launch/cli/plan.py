"""`opensora-launch plan`: every layout of a topology with its predicted time and memory. Needs no GPU."""

import json
from collections.abc import Sequence

from opensora_launch import exit_codes
from opensora_launch.cli.plan_picture import picture_file, plot_plan
from opensora_launch.cli.terminal import StyledLine, print_lines
from opensora_launch.plan.count_table import counts_text
from opensora_launch.plan.table import plan_json, plan_text
from opensora_launch.request.flags import Parsed
from opensora_launch.request.predicted_layouts import Prediction, asked_counts, predict_counts, predict_layouts


def plan_verb(parsed: Parsed) -> int:
    """Print the table, or JSON. Exit code 0 if a layout fits, else 1."""
    picture = picture_file(parsed, svg_is_ours=False)
    if counts := asked_counts(parsed):
        return _several(predict_counts(parsed, counts), parsed)
    found = predict_layouts(parsed)
    if parsed.has("--json"):
        data = plan_json(found.work, found.options, found.passed_over, list(found.misfits))
        print(json.dumps(data | {"found_here": list(found.found_here)}, indent=1))
    else:
        note = "\n".join([*found.found_here, *([found.note] if found.note else [])])
        wide, price = parsed.has("--wide"), found.usd_per_gpu_hour
        text = plan_text(found.work, found.options, found.passed_over, note, wide=wide, usd_per_gpu_hour=price)
        lines = text.splitlines()
        lines += [word for line in found.misfits for word in ("", f"nothing fits: {line}")]
        print_lines(map(_styled, lines))
    if picture:
        plot_plan(found.work, found.options, picture)
    return exit_codes.FAILURE if found.misfits else exit_codes.DONE


def _several(found: Sequence[Prediction], parsed: Parsed) -> int:
    """Print the best layout of each count; exit code 1 if none fits."""
    if parsed.has("--json"):
        plans = [plan_json(one.work, one.options, one.passed_over, list(one.misfits)) for one in found]
        print(json.dumps({"schema": 1, "plans": plans}, indent=1))
    else:
        text = counts_text([(one.work, one.options[0]) for one in found], found[0].usd_per_gpu_hour)
        notes = dict.fromkeys(line for one in found for line in (*one.found_here, one.note) if line)
        print_lines(map(_styled, [*notes, *text.splitlines()]))
    return exit_codes.FAILURE if all(one.misfits for one in found) else exit_codes.DONE


def _styled(line: str) -> StyledLine:
    """A line of the table: the chosen layout stands out, and those that do not fit are dim."""
    styles = {"*": "bold green", "nothing fits": "bold red", "predicted": "dim"}
    marked = next((style for start, style in styles.items() if line.startswith(start)), "")
    head, small = " effic. " in line or " GiB/GPU" in line, " needs " in line or "does not fit" in line
    return [(line, marked or ("bold" if head else "dim" if small else ""))]
