"""The networks, as for one device.

`files`, `shapes` and `tiles` are arithmetic that a launcher needs, on machines without torch too: so the name below,
which others rely on, is imported when it is asked for.
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
