"""Pictures of `--plot FILE`: its check before any other work, bars, and the plan's time, memory and roofline."""

import importlib.util
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.plan.choose import Option
from opensora_launch.plan.costs import row_work
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.table import PHASE_COLUMNS, SHOWN, layout_text
from opensora_launch.plan.times import rates_of
from opensora_launch.plan.workload import Workload
from opensora_launch.request.flags import Parsed


def plot_plan(work: Workload, found: Sequence[Option], file: Path) -> None:
    """Write the picture in the format of the file's suffix."""
    from matplotlib.figure import Figure

    shown = list(found[:SHOWN])
    figure = Figure(figsize=(16, 1.5 + 0.4 * max(len(shown), 6)))
    times, memory, roof = figure.subplots(1, 3)
    names = [layout_text(option.layout) for option in shown]
    left = [0.0] * len(shown)
    for part in PHASE_COLUMNS:
        values = [getattr(option.phases, part) for option in shown]
        times.barh(names, values, left=left, label=part)
        left = [a + b for a, b in zip(left, values, strict=True)]
    times.set_xlabel("predicted seconds, weights loaded")
    times.legend(fontsize="small")
    memory.barh(names, [option.memory.peak / GIB for option in shown])
    memory.axvline(shown[0].limit_bytes / GIB, color="black", linestyle="--", label=work.card.name)
    memory.set_xlabel("peak GiB per GPU")
    memory.legend(fontsize="small")
    for axis in (times, memory):
        axis.invert_yaxis()
    _roofline(roof, work)
    figure.suptitle(f"{work.net.name} on {work.ranks} x {work.card.name}, predicted")
    figure.tight_layout()
    figure.savefig(file)


def _roofline(axis: Any, work: Workload) -> None:
    """FLOP/s against FLOPs per byte that memory moves: the card's two limits, and the parts of a row."""
    rates = rates_of(work.card, work.topology, work.products)
    row = row_work(work.net, work.grid)
    peak, bandwidth = (work.card.tflops(work.products) or 0.0) * 1e12, work.card.bandwidth_gb_s * 1e9
    steps = [2.0**power for power in range(-2, 15)]
    axis.loglog(steps, [min(peak, x * bandwidth) / 1e12 for x in steps], color="black", label="data sheet")
    tensor = 2.0 * work.net.blocks * row.tokens * work.net.hidden  # bytes of one tensor in all blocks
    parts = {
        "products": (row.matmul_flops / (12 * tensor), rates.matmul_flops),
        "attention": (row.attention_flops / (4 * tensor), rates.attention_flops),
        "elementwise": (0.5, 0.5 * rates.memory_bytes),
    }
    for name, (intensity, rate) in parts.items():
        axis.plot([min(intensity, steps[-1])], [rate / 1e12], "o", label=name)
    axis.set_xlabel("FLOPs per byte")
    axis.set_ylabel("TFLOP/s")
    axis.legend(fontsize="small")


FORMATS = (".svg", ".png", ".pdf")
BAR_PX, ROW_PX, LABEL_PX, VALUE_PX = 420, 22, 300, 140
Bar = tuple[str, float, str]  # label, value, unit


def picture_file(parsed: Parsed, *, svg_is_ours: bool) -> Path | None:
    """The file of --plot, if any. With `svg_is_ours` an .svg does not need matplotlib.

    Raises UserError if it cannot be written, if its suffix is not a known format, and if matplotlib is missing.
    """
    text = parsed.one("--plot")
    if text is None:
        return None
    file, problems = Path(text), []
    if file.suffix.lower() not in FORMATS:
        problems.append(f"--plot {text}: the suffix must be one of {', '.join(FORMATS)}")
    elif not (svg_is_ours and file.suffix.lower() == ".svg") and importlib.util.find_spec("matplotlib") is None:
        more = "; an .svg does not" if svg_is_ours else ""
        problems.append(f"--plot needs matplotlib: pip install 'opensora-launch[figures]'{more}")
    if file.is_dir():
        problems.append(f"--plot {text} is a folder")
    elif not file.parent.is_dir():
        problems.append(f"--plot {text}: there is no folder {file.parent}")
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        problems.append(f"--plot {text} cannot be written")
    if problems:
        raise UserError("the picture cannot be drawn", problems)
    return file


def write_bars(file: Path, title: str, rows: Sequence[Bar]) -> None:
    """Draw bars in the format of the file's suffix."""
    if file.suffix.lower() == ".svg":
        file.write_text(bars_svg(title, rows), encoding="utf-8")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.25 * len(rows)))
    axis = figure.subplots()
    bars = axis.barh(range(len(rows)), _shares(rows), color="#4878a8")
    axis.bar_label(bars, [f"{value:,.4g} {unit}" for _, value, unit in rows], padding=4, fontsize="small")
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize="small")
    axis.set_xticks([])
    axis.set_xlim(0, 1.35)
    axis.spines[:].set_visible(False)
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontweight="bold")
    figure.savefig(file, bbox_inches="tight")


def bars_svg(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars as SVG, without a library. The longest bar of each unit has full length."""
    width, height = LABEL_PX + BAR_PX + VALUE_PX, ROW_PX * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="{ROW_PX}" font-weight="bold">{escape(title)}</text>'
    ]
    for n, ((label, value, unit), share) in enumerate(zip(rows, _shares(rows), strict=True), start=1):
        y, long = ROW_PX * (n + 0.5), BAR_PX * share
        parts.append(
            f'<text x="{LABEL_PX - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{LABEL_PX}" y="{y + 2}" width="{long:.1f}" height="{ROW_PX - 6}" fill="#4878a8"/>'
            f'<text x="{LABEL_PX + long + 6:.1f}" y="{y + 13}">{value:,.4g} {escape(unit)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _shares(rows: Sequence[Bar]) -> list[float]:
    """The length of each bar as a share of the longest with its unit."""
    most = {unit: max(value for _, value, u in rows if u == unit) or 1.0 for _, _, unit in rows}
    return [max(value, 0.0) / most[unit] for _, value, unit in rows]
