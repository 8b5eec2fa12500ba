"""`opensora-launch estimate [TOPIC]`: FLOPs, GPU-hours, energy, money, fleets, machines and cards. Needs no GPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opensora_launch import exit_codes
from opensora_launch.cli.plan_picture import picture_file, write_bars
from opensora_launch.cli.terminal import StyledLine, print_json, print_lines
from opensora_launch.estimate.card_ranking import FITS, NOT, CardEstimate
from opensora_launch.estimate.figures import Figure
from opensora_launch.plan.table import aligned
from opensora_launch.plan.workload import Workload
from opensora_launch.request.estimation import EstimateRequest, answer, prepare_estimate, ranked_cards
from opensora_launch.request.flags import Parsed


def figures_text(figures: Sequence[Figure], title: str) -> Iterator[StyledLine]:
    """One line per figure: label, value, and the arithmetic."""
    label, value = max(len(one.label) for one in figures), max(len(value_text(one)) for one in figures)
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
    title = f"{work.net.name}, {size.width_px} x {size.height_px}, {size.length}, on {work.ranks} of each card"
    head = ("card", "memory", "needs", "seconds", "kWh", "USD", "watts", "runs with")
    lines = aligned([head, *map(_card, found)], {0, len(head) - 1})
    styles = ["bold", *({FITS: "green", NOT: "dim"}.get(one.fit, "yellow") for one in found)]
    yield [(title, "bold")]
    yield from ([(f"  {line}", style)] for line, style in zip(lines, styles, strict=True))
    end = "USD: list price over the machine's life and electricity; - where none is published. Predicted, not measured."
    yield [(end, "dim")]


def _card(one: CardEstimate) -> tuple[str, ...]:
    seconds = "-" if one.seconds is None else f"{one.seconds:,.0f}"
    kwh = "-" if one.cost is None else f"{one.cost.kwh:.3f}"
    usd = "-" if one.usd is None else f"{one.usd:.3f}"
    sizes = (f"{one.card.memory_gib:.1f} GiB", f"{one.peak_gib:.1f}")
    return (str(one.card.name), *sizes, seconds, kwh, usd, f"{one.watts:,.0f}", one.how)


def estimate_verb(parsed: Parsed) -> int:
    """Print the answer as text or JSON. Exit code 0, or 1 if no card fits."""
    picture = picture_file(parsed, svg_is_ours=True)
    asked = prepare_estimate(parsed)
    if asked.topic == "card":
        return _cards(parsed, picture, asked)
    figures = answer(asked)
    if parsed.has("--json"):
        values = {one.key: one.value for one in figures}
        how = {one.key: one.how for one in figures if one.how}
        print_json({"topic": asked.topic, "hardware": asked.run.hardware.name, "values": values, "how": how})
    else:
        print_lines(figures_text(figures, f"{asked.topic}: {asked.note}" if asked.note else asked.topic))
    if picture:
        bars = [(one.label, float(one.value), one.unit) for one in figures if isinstance(one.value, (int, float))]
        write_bars(picture, asked.topic, bars)
    return exit_codes.DONE


def _cards(parsed: Parsed, picture: Path | None, asked: EstimateRequest) -> int:
    work, found = ranked_cards(asked)
    if parsed.has("--json"):
        print_json({"topic": "card", "cards": [_card_json(one) for one in found]})
    else:
        print_lines(cards_text(found, work))
    if picture:
        times = [(str(one.card.name), one.seconds, "s per video") for one in found if one.seconds is not None]
        memory = [(str(one.card.name), one.peak_gib, "GiB per GPU") for one in found]
        write_bars(picture, "predicted time and memory", [*times, *memory])
    return exit_codes.DONE if any(one.seconds is not None for one in found) else exit_codes.FAILURE


def _card_json(one: CardEstimate) -> dict[str, Any]:
    return {
        "card": one.card.name,
        "gpus": one.gpus,
        "fits": one.seconds is not None,
        "how": one.how,
        "memory_gib": one.card.memory_gib,
        "peak_gib": one.peak_gib,
        "seconds": one.seconds,
        "kwh": one.cost.kwh if one.cost else None,
        "usd": one.usd,
        "watts": one.watts,
        "price_usd": one.card.price_usd,
    }
