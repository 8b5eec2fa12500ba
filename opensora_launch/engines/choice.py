"""Choose the engine of a run."""

from opensora_launch.doctor.engine_packages import must_be_installed
from opensora_launch.engines.base import BlockEngine
from opensora_launch.engines.native import NativeEngine
from opensora_launch.schema.config import Engine


def choose_engine(kind: Engine) -> BlockEngine:
    """Return the engine of that kind. Raises UserError if its packages are not installed."""
    if kind is Engine.native:
        return NativeEngine()
    must_be_installed(kind)
    from opensora_launch.engines.colossal.engine import ColossalEngine

    return ColossalEngine()
