"""`opensora-launch estimate [TOPIC]`: FLOPs, GPU-hours, energy, money, fleets, machines and cards. Needs no GPU."""

import json
from pathlib import Path
from typing import Any

from opensora_launch import __version__, exit_codes
from opensora_launch.cli.bar_picture import picture_file, write_bars
from opensora_launch.cli.estimate_text import cards_text, figures_text
from opensora_launch.cli.view import print_lines
from opensora_launch.estimate.card_ranking import CardEstimate
from opensora_launch.request.estimation import EstimateRequest, answer, prepare_estimate, ranked_cards
from opensora_launch.request.flags import Parsed


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
        _print_json({"topic": asked.topic, "hardware": asked.run.hardware.name, "values": values, "how": how})
    else:
        print_lines(figures_text(figures, f"{asked.topic}: {asked.note}" if asked.note else asked.topic))
    if picture:
        bars = [(one.label, float(one.value), one.unit) for one in figures if isinstance(one.value, (int, float))]
        write_bars(picture, asked.topic, bars)
    return exit_codes.DONE


def _cards(parsed: Parsed, picture: Path | None, asked: EstimateRequest) -> int:
    work, found = ranked_cards(asked)
    if parsed.has("--json"):
        _print_json({"topic": "card", "cards": [_card_json(one) for one in found]})
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


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps({"schema": 1, "version": __version__, **content}, ensure_ascii=False, indent=1))
