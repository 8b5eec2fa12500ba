"""Format the evaluation and the training's log as Markdown, and save clips as strips of frames."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

STRIP_FRAMES = (0, 4, 8, 12, 16)


def percent(share: float) -> str:
    """Format a share: 0.975 becomes 97.5%."""
    return f"{100 * share:.1f}%"


def table(figures: Mapping[str, Any]) -> str:
    """Return the evaluation's figures as a table, one line per model and kind of condition."""
    drawn = figures["judge"]
    lines = [
        "| model | clips | number | colour | shape | direction | all three | PSNR of given frames, mean / worst |",
        "|---|---|---|---|---|---|---|---|",
        f"| | true clips, as drawn | {drawn['count']} | | | | {percent(drawn['true_clips_right'])} | |",
    ]
    for model, rows in figures["models"].items():
        for name, row in rows.items():
            if name == "vae":
                right, psnr = percent(row["round_trip_right"]), f"{row['round_trip_psnr_db']:.1f} dB (all frames)"
                what = "true clips, encoded and decoded"
                lines.append(f"| {model} | {what} | {row['count']} | | | | {right} | {psnr} |")
                continue
            keys = ("colour", "shape", "direction", "all_three")
            shares = [percent(row[key]) if key != "direction" or name != "t2i" else "" for key in keys]
            mean = row["psnr_mean_db"]
            psnr = "" if mean is None else f"{mean:.1f} / {row['psnr_worst_db']:.1f} dB"
            what = f"{name}, held-out combinations"
            lines.append(f"| {model} | {what} | {row['count']} | {' | '.join(shares)} | {psnr} |")
    return "\n".join(lines)


def training_table(log: Path) -> str:
    """Return steps, last loss and CPU minutes of every stage, and its gates, from the training's log."""
    stages: dict[str, dict[str, Any]] = {}
    gates, before = list[str](), dict[int | None, float]()
    for record in map(json.loads, log.read_text().splitlines()):
        process, total = record.get("process"), record["cpu_s"]
        known = before.get(process, 0.0)
        spent = total - known if total >= known else total  # smaller: a new process
        before[process] = total
        stage = stages.setdefault(record["stage"], {"cpu_s": 0.0, "steps": 0, "loss": None})
        stage["cpu_s"] += spent
        if "loss" in record:
            stage.update(steps=record["step"], loss=record["loss"])
        if "gate" in record:
            gates.append(f"| {record['stage']} | {record['gate']} | {record['value']:.4g} | {record['least']:.4g} |")
    lines = ["| stage | steps | last loss | CPU minutes |", "|---|---|---|---|"]
    for name, stage in stages.items():
        loss = "" if stage["loss"] is None else f"{stage['loss']:.4f}"
        lines.append(f"| {name} | {stage['steps'] or ''} | {loss} | {stage['cpu_s'] / 60:.1f} |")
    lines.append(f"| total | | | {sum(stage['cpu_s'] for stage in stages.values()) / 60:.1f} |")
    return "\n".join([*lines, "", "| stage | gate | measured | at least |", "|---|---|---|---|", *gates])


def fill(page: Path, name: str, text: str) -> None:
    """Replace the text between the page's marks `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def save_strips(made: Tensor, path: Path) -> None:
    """Save clips [N, 3, T, H, W] in [-1, 1] as one PNG: one strip per clip, with its STRIP_FRAMES."""
    chosen = [min(frame, made.shape[2] - 1) for frame in STRIP_FRAMES]
    rows = made[:, :, chosen].permute(0, 3, 2, 4, 1).flatten(2, 3).flatten(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((rows + 1) * 127.5).round().byte().numpy()).save(path)
