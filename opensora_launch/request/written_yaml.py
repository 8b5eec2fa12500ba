"""Read YAML with values as they are written, where YAML would read a number out of a text.

YAML reads `time: 2:00:00` as 7200 and `account: 0104` as 68, and the schema turns these into the texts "7200" and "68".
A value whose type would lose how it is written stays a text here; the schema converts it where it wants a number.
"""

import math
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader, which refuses a key that is there twice."""


def _keep_text(tag: str) -> None:
    typed = _Loader.yaml_constructors[tag]
    _Loader.add_constructor(tag, lambda loader, node: _as_written(typed(loader, node), node.value))


def _as_written(value: bool | int | float, written: str) -> bool | int | float | str:
    """The value, or its text if that is more than what the value shows. Not a number and infinite stay numbers."""
    return value if str(value) == written or not math.isfinite(value) else written


for _name in ("bool", "int", "float"):
    _keep_text(f"tag:yaml.org,2002:{_name}")


def read_yaml(file: Path) -> Any:
    """What a YAML file holds. Raises OSError, ValueError, and yaml.YAMLError, which names the file."""
    with file.open(encoding="utf-8") as text:
        return yaml.load(text, Loader=_Loader)
