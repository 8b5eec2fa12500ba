"""The report of a sweep, or of published figures, as text."""

from collections.abc import Mapping
from typing import Any

from opensora_launch.report.markdown_tables import md_table
from opensora_launch.report.rates import karp_flatt_text
from opensora_launch.report.sweep import size
from opensora_launch.report.wording import label, say


def sweep_markdown(data: Mapping[str, Any]) -> str:
    """The report.md of a sweep or of published figures."""
    body = [
        [
            e["name"],
            str(e["gpus"]),
            e["layout"] or "",
            f"{e['seconds']:.2f}",
            "" if e["low"] is None else f"{e['low']:.2f} to {e['high']:.2f}",
            "" if e["speedup"] is None else f"{e['speedup']:.2f}",
            efficiency_text(e),
            karp_flatt_text(e["karp_flatt"]),
            e["source"],
        ]
        for e in data["table"]
    ]
    names = ("name", "layout", "median", "spread", "speedup", "efficiency", "karp", "source")
    head = [label(name) for name in names]
    blocks = [f"# {data['title']}", label("lead_published") if data["kind"] == "published" else ""]
    blocks += [md_table([head[0], f"{data['unit']}s", *head[1:]], body, (0, 2, 8))]
    blocks += ["\n".join(f"- {baseline_text(base, data['unit'])}" for base in data["baselines"])]
    blocks += [
        f"{fit['name']}: {label('amdahl_about' if fit['parallel_s'] else 'amdahl_none', **fit)}"
        for fit in data["amdahl"]
    ]
    if data["command"]:
        blocks.append(f"```\n{data['command']}\n```")
    if data["unknown"]:
        blocks += [f"## {label('unknown')}", "\n".join(f"- {say(line)}" for line in data["unknown"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def efficiency_text(entry: Mapping[str, Any]) -> str:
    """The efficiency in percent; there is none where other work was done."""
    if entry["efficiency"] is None:
        return label("no_value_other_work" if entry["other_work"] else "no_value")
    return f"{entry['efficiency']:.1%}"


def baseline_text(base: Mapping[str, Any], unit: str) -> str:
    """What a series is compared with, and where that comes from."""
    return label(f"sweep_baseline_{base['kind']}", **{**base, "size": size(base["gpus"], unit)})
