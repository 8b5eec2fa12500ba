"""Whether what was read from a file has the types that it should have: files may be torn, or made by somebody else."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def fits(record: Any) -> bool:
    """Whether every field of a NamedTuple or dataclass is of its declared type. A number is a finite one."""
    kind: Any = type(record)
    return all(check(getattr(record, name)) for name, check in _checks(kind))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@cache
def _checks(kind: Any) -> tuple[tuple[str, Callable[[Any], bool]], ...]:
    return tuple((name, _check(hint)) for name, hint in get_type_hints(kind).items())


def _check(hint: Any) -> Callable[[Any], bool]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        ways = [_check(arg) for arg in args]
        return lambda value: any(way(value) for way in ways)
    if origin is tuple:
        inner = _check(args[0])
        return lambda value: isinstance(value, tuple) and all(map(inner, value))
    if origin is Mapping:
        inner = _check(args[1])
        return lambda value: isinstance(value, Mapping) and all(map(inner, value.values()))
    if hint is float:
        return is_number
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    return lambda value: isinstance(value, hint)
