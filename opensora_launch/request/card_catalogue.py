"""The cards of configs/hardware and of a user's own folder, by their names and by the names of the driver."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from opensora_launch.errors import UserError
from opensora_launch.plan.checks import card_problems
from opensora_launch.request.catalogue import config_folder
from opensora_launch.schema.cards import Card


def read_cards(config_dir: Path | None = None) -> dict[str, Card]:
    """Read every card, by name. Raises UserError for a file that is not a card."""
    folders = [config_folder(), *([config_dir] if config_dir else [])]
    files = {path.stem: path for folder in folders for path in sorted((folder / "hardware").glob("*.yaml"))}
    hints = get_type_hints(Card)
    numbers = frozenset(name for name, hint in hints.items() if float in (hint, *get_args(hint)))
    return {name: _card(path, numbers) for name, path in sorted(files.items()) if name != "auto"}


def _card(file: Path, numbers: Collection[str]) -> Card:
    """Read one card. The file may write 300 for 300.0."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        made: dict[str, Any] = {k: float(v) if k in numbers and v is not None else v for k, v in values.items()}
        card = Card(**made)
        problems = card_problems(card)
    except (AttributeError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        problems = [" ".join(str(error).split())]
    if problems:
        raise UserError(f"{file} is not a card", problems)
    return card


def match(gpu_name: str, cards: dict[str, Card]) -> Card | None:
    """The card that the driver calls `gpu_name`: the one with the longest of its `nvml_names` in that name."""
    words = f" {gpu_name.removeprefix('NVIDIA ')} "
    if " Laptop " in words or " MIG " in words:  # the same name, but another chip or a part of one
        return None
    hits = [(len(name), card) for card in cards.values() for name in card.nvml_names if f" {name} " in words]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None


def unknown_card(name: str, known: Sequence[str]) -> str:
    """A line for a name that no card has."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} is not a card of configs/hardware; " + (f"did you mean {near[0]}?" if near else ", ".join(known))
