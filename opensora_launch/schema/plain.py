"""A config as plain values and as YAML."""

from dataclasses import asdict
from enum import Enum
from typing import Any

from opensora_launch.schema.config import RunConfig


def plain(config: RunConfig) -> dict[str, Any]:
    """The config as dicts, lists and plain values."""
    return asdict(config, dict_factory=lambda items: {k: v.value if isinstance(v, Enum) else v for k, v in items})


def config_yaml(config: RunConfig) -> str:
    """The config as YAML that any reader takes literally: texts may hold ${...}."""
    import yaml

    return str(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120))
