"""`@settings`: the dataclasses of the config, whose fields nobody can assign after construction."""

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


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
