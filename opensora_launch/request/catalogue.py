"""What can be set: config groups with their choices, and every key of the schema.

The cards of configs/hardware and of a user's folder are read here too. All of it is fast and without Hydra.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import opensora_launch
from opensora_launch.errors import UserError, did_you_mean
from opensora_launch.plan.checks import card_problems
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import RunConfig
from opensora_launch.schema.settings import MEANING

# Units at the ends of names, and how they are written: the first one that fits.
_UNITS = {
    "flops_per_s": "FLOP/s", "usd_per_kwh": "USD/kWh", "usd_per_gpu_hour": "USD/h", "gb_s": "GB/s", "gib": "GiB",
    "px": "pixels", "frames": "frames", "length": "tokens", "tflops": "TFLOP/s", "usd": "USD",
    "months": "months", "hours_per_month": "hours", "minutes_per_day": "minutes", "s": "s", "w": "W",
}  # fmt: skip
DEFAULT_MODEL = "open_sora_v2"  # as in configs/config.yaml


@dataclass(frozen=True)
class Key:
    """One key of the schema."""

    path: str  # dotted
    kind: str  # in words: "a whole number or null"
    default: Any
    allowed: tuple[str, ...]  # the names of an enum, or true and false; else empty
    meaning: str

    @property
    def unit(self) -> str:
        """The unit that its name ends in; "" if it has none."""
        return next((unit for end, unit in _UNITS.items() if self.path.endswith(f"_{end}")), "")


@dataclass(frozen=True)
class Choice:
    name: str
    about: str  # the comment at its head


@dataclass(frozen=True)
class Group:
    name: str
    default: str
    choices: tuple[Choice, ...]


def config_folder() -> Path:
    """The folder of config.yaml: beside the package in a checkout, inside it in a wheel."""
    package = Path(opensora_launch.__file__).resolve().parent
    inside, beside = package / "configs", package.parent / "configs"
    return inside if inside.is_dir() else beside


def groups(extra: Sequence[Path] = ()) -> tuple[Group, ...]:
    """The config groups in the order of config.yaml's defaults; `extra` are folders of --config-dir."""
    defaults = default_choices()
    folders = [config_folder(), *extra]
    found = {file.parent.name for folder in folders for file in folder.glob("*/*.yaml")}
    names = [*defaults, *sorted(found - set(defaults))]
    return tuple(Group(name, defaults.get(name, ""), _choices(name, folders)) for name in names)


def default_choices() -> dict[str, str]:
    """Group -> its default choice, from config.yaml."""
    import yaml

    listed = yaml.safe_load((config_folder() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {name: choice for entry in listed if isinstance(entry, dict) for name, choice in entry.items()}


def keys(schema: type = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every key that holds a value, in the order of the schema."""
    hints = get_type_hints(schema)
    made = schema()
    for item in fields(schema):
        hint, path = _required(hints[item.name]), f"{prefix}{item.name}"
        if is_dataclass(hint) and isinstance(hint, type):
            yield from keys(hint, f"{path}.")
        else:
            yield Key(path, _in_words(hint), getattr(made, item.name), _allowed(hint), item.metadata.get(MEANING, ""))


def about_section(path: str) -> str:
    """The meaning of a part of the schema that holds keys, such as "sampling" or "model.vae"; "" if there is none."""
    schema: Any = RunConfig
    for name in path.split("."):
        schema = _required(get_type_hints(schema).get(name)) if is_dataclass(schema) else None
    return " ".join((schema.__doc__ or "").split("\n\n")[0].split()) if is_dataclass(schema) else ""


def as_text(value: Any) -> str:
    """A value as an override writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    return "''" if value == "" else str(value)


def _choices(group: str, folders: Sequence[Path]) -> tuple[Choice, ...]:
    files = {path.stem: path for folder in reversed(folders) for path in (folder / group).glob("*.yaml")}
    return tuple(Choice(name, _about(files[name])) for name in sorted(files))


def _about(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith("# @")), "")  # below Hydra's own header
    return first.removeprefix("#").strip() if first.startswith("# ") else ""


def _required(hint: Any) -> Any:
    """The part of the schema that a key holds which may be null; other hints stay."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return next((part for part in parts if is_dataclass(part)), hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _in_words(part) for part in get_args(hint))
    if get_origin(hint) is list:
        return "a list, such as [4,6,6]"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.name for member in hint)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]


def _allowed(hint: Any) -> tuple[str, ...]:
    if hint is bool:
        return ("true", "false")
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(member.name for member in hint)
    return ()


def read_cards(config_dir: Path | None = None) -> dict[str, Card]:
    """Read every card, by name. Raises UserError for a file that is not a card."""
    folders = [config_folder(), *([config_dir] if config_dir else [])]
    files = {path.stem: path for folder in folders for path in sorted((folder / "hardware").glob("*.yaml"))}
    return {name: _card(path) for name, path in sorted(files.items()) if name != "auto"}


def _card(file: Path) -> Card:
    """Read one card as Hydra would, which keeps texts as they are written and takes 300 for 300.0."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from opensora_launch.request.written_yaml import read_yaml

    try:
        values = read_yaml(file)
        card = cast(Card, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Card), values)))
        problems = card_problems(card)
    except OmegaConfBaseException as error:
        problems = [f"{error.full_key}: {str(error).splitlines()[0]}" if error.full_key else str(error).splitlines()[0]]
    except (OSError, ValueError, YAMLError) as error:
        problems = [" ".join(str(error).split())]
    if problems:
        raise UserError(f"{file} is not a card", problems)
    return card


def match(gpu_name: str, cards: Mapping[str, Card]) -> Card | None:
    """The card that the driver calls `gpu_name`: the one with the longest of its `nvml_names` in that name."""
    words = f" {gpu_name.removeprefix('NVIDIA ')} "
    if " Laptop " in words or " MIG " in words:  # the same name, but another chip or a part of one
        return None
    hits = [(len(name), card) for card in cards.values() for name in card.nvml_names if f" {name} " in words]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None


def unknown_card(name: str, known: Sequence[str]) -> str:
    """A line for a name that no card has."""
    return f"{name} is not a card of configs/hardware; {did_you_mean(name, known) or ', '.join(known)}"
