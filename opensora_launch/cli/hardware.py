"""The card of a run: named by the user, or found by NVML and looked up in configs/hardware."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from opensora_launch.cards import slowest
from opensora_launch.cli.catalog import config_folder
from opensora_launch.config import HardwareConfig, RunConfig
from opensora_launch.errors import UserError


def settle_hardware(run: RunConfig, gpu_names: Sequence[str], config_dir: Path | None = None) -> str:
    """Complete run.hardware; what was found out, in words, or "" if the user named the card.

    Cards that were mixed become one that is no better than any of them. An unknown card stays unknown.
    """
    unsettled = (run.hardware.name is None and gpu_names) or run.hardware.mixed
    cards = catalogue(config_dir) if unsettled else {}  # 23 files: not read for nothing
    note = ""
    if run.hardware.name is None and gpu_names:
        found = [match(name, cards) for name in dict.fromkeys(gpu_names)]
        if None in found:
            return f"{', '.join(dict.fromkeys(gpu_names))}: not in configs/hardware, so layouts are chosen by rule"
        run.hardware = slowest([card for card in found if card])
        note = f"hardware={run.hardware.name}, found here"
    if run.hardware.mixed:
        wrong = [name for name in run.hardware.mixed if name not in cards]
        if wrong:
            raise UserError("hardware.mixed cannot be read", [_unknown(name, sorted(cards)) for name in wrong])
        run.hardware = slowest([run.hardware, *(cards[name] for name in run.hardware.mixed)])
    return note


def catalogue(config_dir: Path | None = None) -> dict[str, HardwareConfig]:
    """Every card of configs/hardware, and of a user's own folder, by name."""
    import yaml

    folders = [config_folder(), *([config_dir] if config_dir else [])]
    files = {path.stem: path for folder in folders for path in sorted((folder / "hardware").glob("*.yaml"))}
    read = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in files.items() if name != "auto"}
    return {name: _card(values) for name, values in sorted(read.items())}


def _card(values: dict[str, Any]) -> HardwareConfig:
    """A card of its YAML file, where 300 may stand for 300.0."""
    hints = get_type_hints(HardwareConfig)
    numbers = {name for name, hint in hints.items() if float in (hint, *get_args(hint))}
    made: dict[str, Any] = {k: float(v) if k in numbers and v is not None else v for k, v in values.items()}
    return HardwareConfig(**made)


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
