"""Configs for tests that differ in some keys."""

from dataclasses import replace
from typing import Any, TypeVar

T = TypeVar("T")


def changed(config: T, **changes: Any) -> T:
    """A config with other values: video__num_frames=33 replaces video.num_frames. A config itself is final."""
    for name, value in changes.items():
        part, _, rest = name.partition("__")
        new = changed(getattr(config, part), **{rest: value}) if rest else value
        config = replace(config, **{part: new})  # type: ignore[type-var]
    return config
