"""How exact a report is."""

from collections.abc import Mapping
from typing import Any

DIGITS = 6  # microseconds


def rounded(value: Any) -> Any:
    """Seconds to microseconds; the digits beyond are noise."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
