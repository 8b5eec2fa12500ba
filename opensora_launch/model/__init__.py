"""The networks, as for one device."""

from opensora_launch.model.load import load_mmdit

__all__ = ["load_mmdit"]
