"""Estimates as aligned text and as a picture."""

from collections.abc import Sequence
from html import escape

from opensora_launch.plan.choose import Work
from opensora_launch.plan.estimate_card import CardEstimate
from opensora_launch.plan.estimate_topics import Line

BAR_PX, ROW_PX, LABEL_PX, VALUE_PX = 420, 22, 300, 140


def lines_text(lines: Sequence[Line], title: str) -> str:
    """Label, value, and the arithmetic."""
    label, value = (
        max(len(text) for text in column) for column in zip(*((x.label, show(x)) for x in lines), strict=True)
    )
    body = [f"  {line.label:<{label}}  {show(line):>{value}}  {line.how}".rstrip() for line in lines]
    return "\n".join([title, *body])


def show(line: Line) -> str:
    """A value as people read it."""
    value, unit = line.value, line.unit
    if value is None or isinstance(value, str):
        return str(value or "-")
    if unit == "FLOP":
        return f"{value:.4g}".replace("e+", "e")
    if unit == "USD":
        return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"
    if unit == "share":
        return f"{value:.1%}"
    number = f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:,.4g}"
    return f"{number} {unit}".strip()


def cards_text(found: Sequence[CardEstimate], work: Work) -> str:
    """One line a card: memory first, then what the order asks for."""
    size = work.video
    title = (
        f"{work.net.name}, {size.width_px} x {size.height_px}, {size.num_frames} frames, on {work.ranks} of each card"
    )
    head = ("card", "memory", "needs", "seconds", "kWh", "USD", "watts", "runs with")
    rows = [head, *(_card(one) for one in found)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    lines = [
        "  ".join(
            f"{cell:<{w}}" if n in (0, 7) else f"{cell:>{w}}"
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    end = "USD: list price over the machine's life and electricity; - where none is published. Predicted, not measured."
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines), end])


def _card(one: CardEstimate) -> tuple[str, ...]:
    seconds = "-" if one.seconds is None else f"{one.seconds:,.0f}"
    kwh = "-" if one.cost is None else f"{one.cost.kwh:.3f}"
    usd = "-" if one.usd is None else f"{one.usd:.3f}"
    sizes = (f"{one.card.memory_gib:.1f} GiB", f"{one.peak_gib:.1f}")
    return (str(one.card.name), *sizes, seconds, kwh, usd, f"{one.watts:,.0f}", one.how)


def bars_svg(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars, each to its own largest of the same unit; no library needed."""
    most = {unit: max(value for _, value, u in rows if u == unit) or 1.0 for _, _, unit in rows}
    width, height = LABEL_PX + BAR_PX + VALUE_PX, ROW_PX * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="{ROW_PX}" font-weight="bold">{escape(title)}</text>'
    ]
    for n, (label, value, unit) in enumerate(rows, start=1):
        y, long = ROW_PX * (n + 0.5), BAR_PX * max(value, 0.0) / most[unit]
        parts.append(
            f'<text x="{LABEL_PX - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{LABEL_PX}" y="{y + 2}" width="{long:.1f}" height="{ROW_PX - 6}" fill="#4878a8"/>'
            f'<text x="{LABEL_PX + long + 6:.1f}" y="{y + 13}">{value:,.4g} {escape(unit)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
