"""The networks, written as for one device.

`weight_files`, `shapes` and `tiles` are arithmetic that the launcher needs, also on machines without torch. So the
public name below is imported on first access.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opensora_launch.model.load import load_mmdit

__all__ = ["load_mmdit"]


def __getattr__(name: str) -> Any:
    if name == "load_mmdit":
        from opensora_launch.model.load import load_mmdit

        return load_mmdit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
