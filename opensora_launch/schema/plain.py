"""Convert a config to plain values and to YAML, and check plain values that were read."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any

from opensora_launch.schema.config import RunConfig


def plain(config: RunConfig) -> dict[str, Any]:
    """Return the config as dicts, lists and plain values."""
    return asdict(config, dict_factory=lambda items: {k: v.value if isinstance(v, Enum) else v for k, v in items})


def config_yaml(config: RunConfig) -> str:
    """Return the config as YAML. Every reader takes it literally, although texts may hold ${...}."""
    import yaml

    return str(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in nested dicts that is not a dict itself."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unknown_keys(data: Any, known: Any) -> Iterator[str]:
    """Yield the keys of JSON `data` that `known`, the same data rebuilt, does not have."""
    if isinstance(data, dict):
        yield from (key for key in data if key not in known)
        pairs = [(data[key], known[key]) for key in data if key in known]
    else:
        pairs = list(zip(data, known, strict=True)) if isinstance(data, list) else []
    for part, like in pairs:
        yield from unknown_keys(part, like)
