"""Dataclasses out of JSON."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def decode(kind: Any, data: Any) -> Any:
    """Rebuild a dataclass from what json.loads(json.dumps(asdict(it))) gives. ValueError says what else it is."""
    origin, args = get_origin(kind), get_args(kind)
    if data is None:
        return None
    if origin in (Union, UnionType):
        return decode(next(a for a in args if a is not type(None)), data)
    if origin is tuple:
        kinds = [args[0]] * len(data) if args[-1] is Ellipsis else args
        return tuple(decode(k, d) for k, d in zip(kinds, data, strict=True))
    if origin is list:
        return [decode(args[0], d) for d in data]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    if hasattr(kind, "__dataclass_fields__"):
        hints = get_type_hints(kind)
        if wrong := _differences(kind, data, hints):
            raise ValueError(wrong[0])
        return kind(**{name: decode(hints[name], value) for name, value in data.items()})
    return data


def _differences(kind: Any, data: Any, hints: Mapping[str, Any]) -> list[str]:
    if not isinstance(data, dict):
        return [f"{data!r} is no {kind.__name__}"]
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    strange = [f"{name!r} is nothing of {kind.__name__}" for name in sorted(set(data) - set(hints))]
    return strange + [f"{name!r} of {kind.__name__} is missing" for name in sorted(needed - set(data))]


def of_schema(data: Any, schema: int) -> Any:
    """The same data. ValueError if another version has written it, or it is something else."""
    if not isinstance(data, dict) or "schema" not in data:
        raise ValueError("it names no schema")
    if data["schema"] != schema:
        raise ValueError(f"it has schema {data['schema']}, and this version of opensora-launch reads {schema}")
    return data
