"""Read YAML with values as they are written, where YAML would read a number out of a text.

YAML reads `time: 2:00:00` as 7200 and `account: 0104` as 68, and the schema turns these into the texts "7200" and "68".
A value whose type would lose how it is written stays a text here; the schema converts it where it wants a number.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader, which refuses a key that is there twice."""


def _as_written(typed: Callable[[Any, Any], float], loader: Any, node: Any) -> float | str:
    """The value, or its text if that is more than what the value shows. Not a number and infinite stay numbers."""
    value, written = typed(loader, node), str(node.value)
    return value if str(value) == written or not math.isfinite(value) else written


for _tag in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, partial(_as_written, _Loader.yaml_constructors[_tag]))


def read_yaml(file: Path) -> Any:
    """What a YAML file holds. Raises OSError, ValueError, and yaml.YAMLError, which names the file."""
    with file.open(encoding="utf-8") as text:
        return yaml.load(text, Loader=_Loader)
