"""`@settings`: the dataclasses of the config, whose fields nobody can assign after construction.

`key` gives a field its default and its meaning, which `--help GROUP` prints.
"""

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")
MEANING = "meaning"  # of a field, in its metadata


def key(default: T, meaning: str) -> T:
    """A field of a config. It has the type of its default, so that mypy checks that against the annotation."""
    metadata = {MEANING: meaning}
    if isinstance(default, list):
        return cast(T, field(default_factory=default.copy, metadata=metadata))
    return field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(cls: type[T]) -> type[T]:
    """Make a dataclass that is final once constructed; use dataclasses.replace for another one.

    Not `dataclass(frozen=True)`: Hydra refuses to override the keys of a frozen dataclass.
    """

    def assign_once(self: Any, name: str, value: Any) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"{cls.__name__}.{name} is final; make another config with dataclasses.replace")
        object.__setattr__(self, name, value)

    cls.__setattr__ = assign_once  # type: ignore[method-assign]
    return dataclass(cls)
