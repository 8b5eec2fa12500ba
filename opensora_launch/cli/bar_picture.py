"""Pictures: the check of `--plot FILE` before any other work, and horizontal bars."""

import importlib.util
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.request.flags import Parsed

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
    else:
        _draw_bars(file, title, rows)


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


def _draw_bars(file: Path, title: str, rows: Sequence[Bar]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 1 + 0.25 * len(rows)))
    bars = axis.barh(range(len(rows)), _shares(rows), color="#4878a8")
    axis.bar_label(bars, [f"{value:,.4g} {unit}" for _, value, unit in rows], padding=4, fontsize="small")
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize="small")
    axis.set_xticks([])
    axis.set_xlim(0, 1.35)
    axis.spines[:].set_visible(False)
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontweight="bold")
    figure.savefig(file, bbox_inches="tight")
    pyplot.close(figure)
