"""Dataclasses out of JSON."""

from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def decode(kind: Any, data: Any) -> Any:
    """Rebuild a dataclass from what json.loads(json.dumps(asdict(it))) gives."""
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
        return kind(**{name: decode(hints[name], value) for name, value in data.items()})
    return data
