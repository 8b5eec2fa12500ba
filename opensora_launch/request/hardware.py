"""The card of a run: named by the user, or found by NVML and looked up in configs/hardware."""

import difflib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from opensora_launch.errors import UserError
from opensora_launch.machine.choose_gpus import Picked, link_of
from opensora_launch.machine.find_machine import NOTHING, found_gpus
from opensora_launch.plan.checks import card_problems
from opensora_launch.request.catalogue import config_folder
from opensora_launch.schema.cards import slowest
from opensora_launch.schema.config import HardwareConfig, Link, RunConfig


def look_here(run: RunConfig) -> Picked:
    """The GPUs of this host, for a verb that only reckons; none where a card is named, for another machine is meant.

    Raises UserError where topology.gpus names what is not here.
    """
    if run.hardware.name is not None and not run.topology.gpus:
        return NOTHING
    here = found_gpus(run.topology, os.environ)
    if here.problems:
        raise UserError("these GPUs are not here", here.problems)
    return here


def settle_hardware(run: RunConfig, here: Picked, config_dir: Path | None = None) -> str:
    """Complete run.hardware and the link of its GPUs by those that are `here`, where the user left them open.

    Returns what was found out, in words, or "" if the user named the card. Cards that were mixed become one that is no
    better than any of them. An unknown card stays unknown.
    """
    if run.topology.link is Link.auto:
        run.topology.link = Link(link_of(here.gpus[: run.topology.gpus_per_node], here.pairs))
    unsettled = (run.hardware.name is None and here.gpus) or run.hardware.mixed
    cards = catalogue(config_dir) if unsettled else {}  # 23 files: not read for nothing
    note = ""
    if run.hardware.name is None and here.gpus:
        found = [match(name, cards) for name in dict.fromkeys(here.names)]
        if None in found:
            return f"{', '.join(dict.fromkeys(here.names))}: not in configs/hardware, so layouts are chosen by rule"
        run.hardware = slowest([card for card in found if card])
        note = f"hardware={run.hardware.name}, found here"
    if run.hardware.mixed:
        wrong = [name for name in run.hardware.mixed if name not in cards]
        if wrong:
            raise UserError("hardware.mixed cannot be read", [_unknown(name, sorted(cards)) for name in wrong])
        run.hardware = slowest([run.hardware, *(cards[name] for name in run.hardware.mixed)])
    return note


def catalogue(config_dir: Path | None = None) -> dict[str, HardwareConfig]:
    """Every card of configs/hardware, and of a user's own folder, by name. UserError for a file that is no card."""
    folders = [config_folder(), *([config_dir] if config_dir else [])]
    files = {path.stem: path for folder in folders for path in sorted((folder / "hardware").glob("*.yaml"))}
    hints = get_type_hints(HardwareConfig)
    numbers = frozenset(name for name, hint in hints.items() if float in (hint, *get_args(hint)))
    return {name: _card(path, numbers) for name, path in sorted(files.items()) if name != "auto"}


def _card(file: Path, numbers: Collection[str]) -> HardwareConfig:
    """A card of its YAML file, where 300 may stand for 300.0."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        made: dict[str, Any] = {k: float(v) if k in numbers and v is not None else v for k, v in values.items()}
        card = HardwareConfig(**made)
        problems = card_problems(card)
    except (AttributeError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        problems = [" ".join(str(error).split())]
    if problems:
        raise UserError(f"{file} is not a card", problems)
    return card


def match(gpu_name: str, cards: dict[str, HardwareConfig]) -> HardwareConfig | None:
    """The card that the driver calls `gpu_name`: the longest of the catalogue's names in it."""
    words = f" {gpu_name.removeprefix('NVIDIA ')} "
    if " Laptop " in words:  # the same name, another chip
        return None
    hits = [(len(name), card) for card in cards.values() for name in card.nvml_names if f" {name} " in words]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} is not a card of configs/hardware; " + (f"did you mean {near[0]}?" if near else ", ".join(known))
