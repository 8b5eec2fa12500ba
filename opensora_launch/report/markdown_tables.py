"""Tables and numbers of report.md: GPUs, hosts, links, and the planner's seconds."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from opensora_launch.report.wording import label


def secs(seconds: float) -> str:
    return f"{seconds:.{2 if seconds < 10 else 1}f}"


def secs_of(seconds: float, wall_s: float) -> str:
    return f"{secs(seconds)} ({seconds / wall_s if wall_s else 0.0:.0%})"


def number(value: float | None, form: str = ".2f", unit: float = 1) -> str:
    """Write a number in a unit, such as 2**30 for GiB; "?" if it is unknown."""
    return "?" if value is None else format(value / unit, form)


def gib(value: float | None) -> str:
    return number(value, unit=2**30)


def md_text(text: str) -> str:
    """Escape text so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def md_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {md_text(line)}" for line in lines)


def md_table(head: Sequence[str], body: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Make a Markdown table that lines up as plain text too. Columns in `words` are left-aligned, the others right."""
    widths = [max(len(cells[n]) for cells in (head, *body)) for n in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if n in words else c.rjust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    ruler = "|".join("-" * (w + 2) if n in words else "-" * (w + 1) + ":" for n, w in enumerate(widths))
    return "\n".join([line(head), f"|{ruler}|", *(line(cells) for cells in body)])


def machines(attempt: Mapping[str, Any]) -> list[str]:
    """Memory and power of each sampled GPU, each host, and how far the hosts' clocks may be apart."""
    blocks = []
    if attempt["gpus"]:
        head = ["GPU", "host", "ranks", "peak GiB", "of GiB", "mean W", "limit W", "use"]
        blocks.append(md_table(head, [_gpu(g) for g in attempt["gpus"]], (0, 1)))
    if attempt["hosts"]:
        head = ["host", "CPU use", "memory GiB", "least free GiB", "waited for memory s"]
        blocks.append(md_table(head, [_host(h) for h in attempt["hosts"]]))
    several = len({r["host"] for r in attempt["ranks"]}) > 1
    if several and attempt["clock_error_s"] is not None:
        blocks.append(f"The hosts' clocks agree to {1000 * attempt['clock_error_s']:.3f} ms.")
    return blocks


def link_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ranks sent on each axis, and how fast."""
    if not found:
        return []
    head = [label("axis"), "sent MB", "seconds", "a rank sends MB/s", label("share_link")]
    body = []
    for x in found:
        sent, rate = (number(x[key], unit=1e6) for key in ("bytes", "bytes_per_s"))
        body.append([x["axis"], sent, secs(x["seconds"]), rate, number(x["share"], ".1%")])
    return ["## Links", md_table(head, body)]


def prediction_table(found: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The planner's seconds beside the busiest rank's."""
    if not found:
        return []
    head = [label("what"), "predicted s", "measured s", label("difference_of")]
    body = [[label(f"phase_{x['what']}"), secs(x["predicted_s"]), secs(x["measured_s"]), _difference(x)] for x in found]
    return [f"## {label('prediction')}", md_table(head, body)]


def _gpu(g: Mapping[str, Any]) -> list[str]:
    who = [f"{g['index']} {md_text(g['name'])}", g["host"], ", ".join(map(str, g["ranks"]))]
    watts = [number(g[key], ".0f") for key in ("power_mean_w", "power_limit_w")]
    return [*who, gib(g["memory_peak_bytes"]), gib(g["memory_bytes"]), *watts, number(g["util_mean"], ".0%")]


def _host(h: Mapping[str, Any]) -> list[str]:
    memory = [gib(h["memory_bytes"]), gib(h["least_available_bytes"]), number(h["memory_stall_s"])]
    return [h["host"], number(h["cpu_share"], ".0%"), *memory]


def _difference(x: Mapping[str, Any]) -> str:
    return f"{x['measured_s'] / x['predicted_s'] - 1:+.1%}" if x["predicted_s"] else "?"


def wrapped(text: str) -> list[str]:
    """Lines of at most 80 columns; a longer word stays whole."""
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text.strip(), 80, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
    )
