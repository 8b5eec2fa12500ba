"""The report of a sweep, or of published figures, as text."""

from collections.abc import Mapping
from typing import Any

from opensora_launch.report.markdown_tables import md_list, md_table, md_text, secs, wrapped
from opensora_launch.report.rates import karp_flatt_text
from opensora_launch.report.scaling import scaling_notes
from opensora_launch.report.sweep import size
from opensora_launch.report.wording import label, say

LEAST_S = 0.005  # a part that is shown


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
    names = ("layout", "median", "spread", "speedup", "efficiency", "karp", "source")
    head = [label("name"), f"{data['unit']}s", *map(label, names)]
    blocks = [f"# {data['title']}", label("lead_published") if data["kind"] == "published" else ""]
    blocks += [f"**{md_text(say(note))}**" for note in scaling_notes(data)]
    blocks += [md_table(head, body, (0, 2, 8))]
    blocks += ["\n".join(f"- {baseline_text(base, data['unit'])}" for base in data["baselines"])]
    blocks += [
        f"{fit['name']}: {label('amdahl_about' if fit['parallel_s'] else 'amdahl_none', **fit)}"
        for fit in data["amdahl"]
    ]
    for explained in data["explained"]:
        advice = [f"{say(a['what'], 'title').removesuffix('.')}. {say(a['do'])}" for a in explained["advice"]]
        title = f"## {label('where_title')}: {explained['name']}"
        blocks += [title, _where(explained, data["unit"]), md_list(advice)]
    if data["command"]:
        blocks.append(f"```\n{data['command']}\n```")
    if data["unknown"]:
        blocks += [f"## {label('unknown')}", "\n".join(f"- {say(line)}" for line in data["unknown"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def note_lines(data: Mapping[str, Any]) -> list[str]:
    """What to read first, for the terminal."""
    return [line for note in scaling_notes(data) for line in wrapped(say(note))]


def _where(explained: Mapping[str, Any], unit: str) -> str:
    """The mean rank's seconds by part, one line per count; parts that no count has are left out."""
    bars = explained["bars"]
    parts = [part for part in bars[0]["parts"] if any(bar["parts"][part] >= LEAST_S for bar in bars)]
    names = [label("loss_tail") if part == "tail" else label(part) for part in parts]
    body = [[str(bar["gpus"]), *(secs(bar["parts"][part]) for part in parts)] for bar in bars]
    return md_table([f"{unit}s", *(f"{name} s" for name in names)], body, ())


def efficiency_text(entry: Mapping[str, Any]) -> str:
    """The efficiency in percent; there is none where other work was done."""
    if entry["efficiency"] is None:
        return label("no_value_other_work" if entry["other_work"] else "no_value")
    return f"{entry['efficiency']:.1%}"


def baseline_text(base: Mapping[str, Any], unit: str) -> str:
    """What a series is compared with, and where that comes from."""
    return label(f"sweep_baseline_{base['kind']}", **{**base, "size": size(base["gpus"], unit)})
