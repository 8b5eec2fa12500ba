"""What report.md says of GPUs, hosts and links, and of the planner's seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

from opensora_launch.report.words import gib, md_table, md_text, secs


def machines(attempt: Mapping[str, Any]) -> list[str]:
    """Memory and power of each GPU, each host, and how far the hosts' clocks may be apart; of what was sampled."""
    blocks = []
    if attempt["gpus"]:
        head = ["GPU", "host", "ranks", "peak GiB", "of GiB", "mean W", "limit W", "use"]
        blocks.append(md_table(head, [_gpu(g) for g in attempt["gpus"]], (0, 1)))
    if attempt["hosts"]:
        head = ["host", "CPU use", "memory GiB", "least free GiB", "stalled for memory s"]
        blocks.append(md_table(head, [_host(h) for h in attempt["hosts"]]))
    several = len({r["host"] for r in attempt["ranks"]}) > 1
    if several and attempt["clock_error_s"] is not None:
        blocks.append(f"The hosts' clocks agree to {1000 * attempt['clock_error_s']:.3f} ms.")
    return blocks


def links(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ranks sent on each axis, and how fast."""
    if not found:
        return []
    head = ["axis", "sent MB", "seconds", "a rank sends MB/s", "of the link's peak"]
    rows = [
        [x["axis"], _mega(x["bytes"]), secs(x["seconds"]), _mega(x["bytes_per_s"]), _percent(x["share"], 1)]
        for x in found
    ]
    return ["## Links", md_table(head, rows)]


def prediction(found: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The planner's seconds beside the busiest rank's."""
    if not found:
        return []
    rows = [[x["what"], secs(x["predicted_s"]), secs(x["measured_s"]), _difference(x)] for x in found]
    return ["## Predicted and measured", md_table(["what", "predicted s", "measured s", "difference"], rows)]


def _gpu(g: Mapping[str, Any]) -> list[str]:
    return [
        f"{g['index']} {md_text(g['name'])}",
        g["host"],
        ", ".join(map(str, g["ranks"])),
        gib(g["memory_peak_bytes"]),
        gib(g["memory_bytes"]),
        _number(g["power_mean_w"], 0),
        _number(g["power_limit_w"], 0),
        _percent(g["util_mean"], 0),
    ]


def _host(h: Mapping[str, Any]) -> list[str]:
    return [
        h["host"],
        _percent(h["cpu_share"], 0),
        gib(h["memory_bytes"]),
        gib(h["least_available_bytes"]),
        _number(h["memory_stall_s"], 2),
    ]


def _difference(x: Mapping[str, Any]) -> str:
    return f"{x['measured_s'] / x['predicted_s'] - 1:+.1%}" if x["predicted_s"] else "?"


def _mega(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e6:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None, digits: int) -> str:
    return "?" if share is None else f"{share:.{digits}%}"
