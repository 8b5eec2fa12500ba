"""Estimates as aligned text."""

from collections.abc import Iterator, Sequence

from opensora_launch.cli.view import StyledLine
from opensora_launch.estimate.card_ranking import FITS, NOT, CardEstimate
from opensora_launch.estimate.figures import Figure
from opensora_launch.plan.workload import Workload


def figures_text(figures: Sequence[Figure], title: str) -> Iterator[StyledLine]:
    """One line per figure: label, value, and the arithmetic."""
    label, value = (
        max(len(text) for text in column)
        for column in zip(*((one.label, value_text(one)) for one in figures), strict=True)
    )
    yield [(title, "bold")]
    for line in figures:
        how = f"  {line.how}" if line.how else ""
        yield [(f"  {line.label:<{label}}  ", ""), (f"{value_text(line):>{value}}", "bold"), (how, "dim")]


def value_text(figure: Figure) -> str:
    """A value with its unit."""
    value, unit = figure.value, figure.unit
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


def cards_text(found: Sequence[CardEstimate], work: Workload) -> Iterator[StyledLine]:
    """One line per card, in the given order."""
    size = work.video
    title = (
        f"{work.net.name}, {size.width_px} x {size.height_px}, {size.num_frames} frames, on {work.ranks} of each card"
    )
    head = ("card", "memory", "needs", "seconds", "kWh", "USD", "watts", "runs with")
    rows = [head, *(_card(one) for one in found)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    styles = ["bold", *({FITS: "green", NOT: "dim"}.get(one.fit, "yellow") for one in found)]
    yield [(title, "bold")]
    for row, style in zip(rows, styles, strict=True):
        cells = (
            f"{cell:<{w}}" if n in (0, 7) else f"{cell:>{w}}"
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield [(f"  {'  '.join(cells)}".rstrip(), style)]
    end = "USD: list price over the machine's life and electricity; - where none is published. Predicted, not measured."
    yield [(end, "dim")]


def _card(one: CardEstimate) -> tuple[str, ...]:
    seconds = "-" if one.seconds is None else f"{one.seconds:,.0f}"
    kwh = "-" if one.cost is None else f"{one.cost.kwh:.3f}"
    usd = "-" if one.usd is None else f"{one.usd:.3f}"
    sizes = (f"{one.card.memory_gib:.1f} GiB", f"{one.peak_gib:.1f}")
    return (str(one.card.name), *sizes, seconds, kwh, usd, f"{one.watts:,.0f}", one.how)
